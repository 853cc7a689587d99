"""A model up to a feature as a graph: a list of ATen operations, recorded from one run, that can be run again.

Functions, methods, operators, in-place variants and custom autograd functions all dispatch to one closed vocabulary,
the ATen operations. Calls of ``conv2d`` and ``linear`` are recorded as one kernel call each, everything else as
dispatched. A write to a tensor is recorded as the out-of-place operation, and its effect on other views of the memory
as a separate value. So each value is computed once, from earlier ones, and nothing is overwritten.
"""

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from convcircuits.errors import ConvCircuitsError
from convcircuits.network.calls import KernelCall
from convcircuits.network.operations import Plan, name_of

Steps = Generator[tuple[KernelCall, torch.dtype | None], Tensor, Tensor]
"""A run that waits at each kernel call for its output; see ``Graph.steps``."""


@dataclass(frozen=True)
class Ref:
    """A reference to a value among the arguments of an operation."""

    number: int


@dataclass(frozen=True)
class Node:
    """One operation.

    Attributes:
        op: The ATen operation, or one of ours that moves values; None for a kernel call.
        args: The arguments, with a ``Ref`` for each value that depends on the image; everything else is a constant.
        kwargs: The keyword arguments, likewise.
        call: The kernel call, without its input; ``args`` is then the ``Ref`` to the input.
        outputs: Numbers of the values it computes, in the order of its results; None for a result that is not a tensor.
        layer: Name of the innermost running module.
        autocast: The dtype of autocast for a kernel call, or None if autocast was off.
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
        """Name of the operation without its overload, such as ``"add"``."""
        return "kernels" if self.op is None else name_of(self.op)

    @cached_property
    def inputs(self) -> tuple[int, ...]:
        """Numbers of the values that the operation reads, in order, with repeats."""
        return tuple(_numbers_in((self.args, self.kwargs)))

    def number_of(self, argument: Any) -> int | None:
        """Return the number of the value that an argument refers to, or None for a constant."""
        return argument.number if isinstance(argument, Ref) else None

    def arguments(
        self, value: Callable[[int], Any], constant: Callable[[Tensor], Any] = lambda x: x
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments and keyword arguments, with values and constant tensors replaced by the functions."""

        def change(x: Any) -> Any:
            if isinstance(x, Ref):
                return value(x.number)
            if isinstance(x, Tensor):
                return constant(x)
            return type(x)(change(part) for part in x) if type(x) in (tuple, list) else x

        return tuple(change(x) for x in self.args), {name: change(x) for name, x in self.kwargs.items()}

    def compute(self, value: Callable[[int], Tensor]) -> Sequence[Any]:
        """Compute the results from the values, without writing to any of them."""
        args, kwargs = self.arguments(value)
        if self.name in ("view", "_unsafe_view", "_reshape_alias"):  # strides may differ from the recorded ones
            return (args[0].reshape(args[1]),)
        result = self.op(*args, **kwargs)
        return result if isinstance(result, (tuple, list)) else (result,)


@dataclass(frozen=True)
class Graph:
    """All operations from a batch of images to the output of the feature's layer.

    Attributes:
        nodes: The operations, in execution order.
        shapes: Shape of each value, by number; the batch is value 0.
        dtypes: Dtype of each value.
        output: Number of the value that is the layer's output.
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
        """Compute the output of the feature's layer, with each kernel call computed by ``kernel``.

        The other arguments are as for ``steps``.

        Raises:
            ConvCircuitsError: If the images do not have the recorded shape.
        """
        steps = self.steps(images, plan, rows)
        output = None
        with torch.autocast(images.device.type, enabled=False):
            while True:
                try:
                    call, dtype = steps.send(output)  # type: ignore[arg-type]
                except StopIteration as end:
                    result: Tensor = end.value
                    return result
                with autocast(images.device.type, dtype):
                    output = kernel(call)

    def steps(self, images: Tensor, plan: "Plan | None" = None, rows: Tensor | None = None) -> "Steps":
        """Yield one kernel call after the other, each with its dtype of autocast, and take its output in return.

        Autocast must be off while the steps run. The value of the generator is the output of the feature's layer.

        Args:
            images: The batch, of the recorded shape.
            plan: The dead values of a circuit, which are set to zero where they meet live ones; None if there are none.
            rows: The only filters of the last kernel call to compute, if the output is its result.

        Raises:
            ConvCircuitsError: If the images do not have the recorded shape.
        """
        if images.shape != self.shapes[0]:
            raise ConvCircuitsError(
                f"The graph was recorded on images of shape {tuple(self.shapes[0])}; got {tuple(images.shape)}."
            )
        values: dict[int, Tensor] = {0: images}
        last = self.last_uses()
        for place, node in enumerate(self.nodes):
            value = _silenced(values, {} if plan is None else plan.silent.get(place, {}))
            if node.call is not None:
                call = replace(node.call, x=value(node.inputs[0]))
                if plan is not None:
                    call = replace(call, live=plan.reads[place])
                if rows is not None and node.outputs[0] == self.output:
                    bias = None if call.bias is None else call.bias[rows]
                    call = replace(call, weight=call.weight[rows], bias=bias, rows=rows)
                results: Sequence[Any] = ((yield call, node.autocast),)
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
        """Return, for each node, the values that no later node reads."""
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
    """Return a function from a number to its value, with silent parts set to zero even if they are not finite."""
    return lambda n: values[n].masked_fill(~silent[n], 0) if n in silent else values[n]


def _numbers_in(value: Any) -> Iterator[int]:
    if isinstance(value, Ref):
        yield value.number
    elif isinstance(value, (tuple, list, Mapping)):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _numbers_in(part)


@contextmanager
def autocast(device: str, dtype: torch.dtype | None) -> Iterator[None]:
    """Turn on autocast to a dtype, or leave it as it is for None."""
    if dtype is None:
        yield
    else:
        with torch.autocast(device, dtype=dtype):
            yield
