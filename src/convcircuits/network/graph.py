"""A model up to a feature as a list of ATen operations, recorded by running it once, and run again from that list.

Below functions, methods, operators, in-place spellings and custom autograd functions lies one closed vocabulary: the
ATen operations that tensors dispatch to. Calls of ``conv2d`` and ``linear`` are kept whole, as kernel calls; everything
else is recorded as it is dispatched. A write into a tensor is recorded as the operation that makes what is written, and
what it does to other views of the memory as a value of its own, so that each value is computed once from those before
it, and nothing is overwritten.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from convcircuits.errors import ConvCircuitsError
from convcircuits.network.calls import KernelCall
from convcircuits.network.operations import Plan, name_of


@dataclass(frozen=True)
class Ref:
    """Stands for a value among an operation's arguments."""

    number: int


@dataclass(frozen=True)
class Node:
    """One operation.

    Attributes:
        op: The ATen operation, or one of our own that moves values; None for a kernel call.
        args: Its arguments, with ``Ref`` in place of values of the image; everything else is a constant.
        kwargs: Its keyword arguments, likewise.
        call: The kernel call, without its input, for which ``args`` is the one ``Ref`` to it.
        outputs: Numbers of the values it makes, in the order of its results; None for a result that is no tensor.
        layer: Name of the innermost module that ran.
        autocast: The dtype that autocast gave kernel calls there, None where it was off.
    """

    op: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    call: KernelCall | None
    outputs: tuple[int | None, ...]
    layer: str
    autocast: torch.dtype | None = None

    @property
    def name(self) -> str:
        """Name of the operation, without overload: ``"add"``."""
        return "kernels" if self.op is None else name_of(self.op)

    @property
    def inputs(self) -> tuple[int, ...]:
        """Numbers of the values that it reads, in their order, with repeats."""
        return tuple(_numbers_in((self.args, self.kwargs)))

    def number_of(self, argument: Any) -> int | None:
        """Return the number of the value that an argument stands for; None for a constant."""
        return argument.number if isinstance(argument, Ref) else None

    def arguments(
        self, value: Callable[[int], Any], constant: Callable[[Tensor], Any] = lambda x: x
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return its arguments and keyword arguments with tensors in place of its values, and of constant tensors."""

        def change(x: Any) -> Any:
            if isinstance(x, Ref):
                return value(x.number)
            if isinstance(x, Tensor):
                return constant(x)
            return type(x)(change(part) for part in x) if type(x) in (tuple, list) else x

        return tuple(change(x) for x in self.args), {name: change(x) for name, x in self.kwargs.items()}

    def compute(self, value: Callable[[int], Tensor]) -> Sequence[Any]:
        """Compute its results from its values; nothing that is given is written to."""
        args, kwargs = self.arguments(value)
        if self.name in ("view", "_unsafe_view", "_reshape_alias"):  # a map's strides may be others than the recorded
            return (args[0].reshape(args[1]),)
        result = self.op(*args, **kwargs)
        return result if isinstance(result, (tuple, list)) else (result,)


@dataclass(frozen=True)
class Graph:
    """All operations from a batch of images to the output of the feature's layer.

    Attributes:
        nodes: In order.
        shapes: Of each value by number; the batch is value 0.
        dtypes: Of each value.
        output: Number of the layer's output.
    """

    nodes: tuple[Node, ...]
    shapes: tuple[torch.Size, ...]
    dtypes: tuple[torch.dtype, ...]
    output: int

    def run(
        self,
        images: Tensor,
        kernel: Callable[[KernelCall], Tensor],
        plan: "Plan | None" = None,
        rows: Tensor | None = None,
    ) -> Tensor:
        """Compute the output of the feature's layer.

        Args:
            images: Of the shape that was recorded.
            kernel: Computes each kernel call.
            plan: What is dead in a circuit, which counts for zero where it meets what is live; None for nothing.
            rows: The only filters that are wanted of the last kernel call, where the output is its result.
        """
        if images.shape != self.shapes[0]:
            raise ConvCircuitsError(f"The graph is of images {tuple(self.shapes[0])}; got {tuple(images.shape)}.")
        values: dict[int, Tensor] = {0: images}
        last = self.last_uses()
        with torch.autocast(images.device.type, enabled=False):
            for place, node in enumerate(self.nodes):
                value = _silenced(values, {} if plan is None else plan.silent.get(place, {}))
                if node.call is not None:
                    call = replace(node.call, x=value(node.inputs[0]))
                    if plan is not None:
                        call = replace(call, live=plan.reads[place])
                    if rows is not None and node.outputs[0] == self.output:
                        bias = None if call.bias is None else call.bias[rows]
                        call = replace(call, weight=call.weight[rows], bias=bias, rows=rows)
                    with _autocast(images.device.type, node.autocast):
                        results: Sequence[Any] = (kernel(call),)
                else:
                    results = node.compute(value)
                values |= {n: x for n, x in zip(node.outputs, results, strict=True) if n is not None}
                for number in last[place]:
                    del values[number]
        output = values[self.output]
        if plan is None or plan.output is None:
            return output
        live = plan.output
        if rows is not None and output.shape[1] != self.shapes[self.output][1]:
            live = live.expand(-1, self.shapes[self.output][1], *live.shape[2:]).index_select(1, rows)
        return output.masked_fill(~live, 0)

    def shapes_of(self, node: Node) -> list[torch.Size]:
        """Return the shapes of a node's results."""
        return [self.shapes[n] for n in node.outputs if n is not None]

    def last_uses(self) -> list[list[int]]:
        """List for each node the values that nothing after it reads."""
        last: dict[int, int] = {}
        for place, node in enumerate(self.nodes):
            last |= dict.fromkeys((n for n in node.outputs if n is not None), place)
            last |= dict.fromkeys(node.inputs, place)
        uses: list[list[int]] = [[] for _ in self.nodes]
        for number, place in last.items():
            if number != self.output:
                uses[place].append(number)
        return uses


def _silenced(values: Mapping[int, Tensor], silent: Mapping[int, Tensor]) -> Callable[[int], Tensor]:
    """Return what gives a value by its number, with zeros for what is dead of it, even where that is not finite."""
    return lambda n: values[n].masked_fill(~silent[n], 0) if n in silent else values[n]


def _numbers_in(value: Any) -> Iterator[int]:
    if isinstance(value, Ref):
        yield value.number
    elif isinstance(value, (tuple, list, Mapping)):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _numbers_in(part)


@contextmanager
def _autocast(device: str, dtype: torch.dtype | None) -> Iterator[None]:
    if dtype is None:
        yield
    else:
        with torch.autocast(device, dtype=dtype):
            yield
