"""The module that an extracted circuit is: it carries out a list of steps, and no code is ever made of it."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import TorchDispatchMode

from convcircuits.errors import ConvCircuitsError
from convcircuits.instructions import Constant, Ref, in_table, operation_of

_ROOM, _RATIO = 1 << 24, 1 << 12  # values that a module may hold: so many, and so many for each value of its images


@dataclass(frozen=True)
class Step:
    """One call.

    Attributes:
        function: What is called; None for a layer.
        args: Its arguments, with `Ref` and `Constant` in the place of tensors.
        kwargs: Its keyword arguments, likewise.
        layer: The name of the layer that is called on the first argument.
        last: Numbers of results that no later step reads.
    """

    function: Callable[..., Any] | None
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    layer: str = ""
    last: tuple[int, ...] = ()


class CircuitModule(nn.Module):
    """A circuit as a small network: images (N, C, H, W) -> the feature's map.

    Its layers have the names that they have in the model, any that `torch.nn.Module` allows.

    Args:
        root: Has the layers and, as buffers, the constants.
        steps: What to do with the images, in order.
        output: What to give, a `Ref` or a tuple of them.
        shape: (C, H, W) of the images that it was written for.
        any_size: Whether it takes images of another height and width.

    Attributes:
        meta: What the module was made of, under ``"circuit"``.
    """

    def __init__(
        self, root: nn.Module, steps: Sequence[Step], output: Any, *, shape: tuple[int, int, int], any_size: bool = True
    ) -> None:
        super().__init__()
        self.meta: dict[str, Any] = {}
        self._steps, self._output = _tidy(steps, output), output
        self._shape, self._any_size = shape, any_size
        self._bounds: Bounds | None = None
        # Past the checks of add_module: a model may have layers that are called as something is here.
        self._modules.update(root._modules)
        self._buffers.update(root._buffers)

    def forward(self, images: Tensor) -> Any:
        """Compute the feature's map."""
        if not self._any_size and images.shape[2:] != self._shape[1:]:
            raise ConvCircuitsError(
                f"This module was extracted for images of {self._shape[1]} x {self._shape[2]}; got "
                f"{' x '.join(map(str, images.shape[2:]))}. Extract it with another input_shape."
            )
        if self._bounds is not None and not torch.compiler.is_compiling():
            self._bounds.check(images)
        return self.run(images)

    def run(self, images: Tensor, before: Callable[[Any, Mapping[int, Any]], None] | None = None) -> Any:
        """Carry out the steps; ``before`` each, and the output, is shown its arguments and all results still held."""
        results: dict[int, Any] = {0: images}
        for number, step in enumerate(self._steps, 1):
            if before is not None:
                before((step.args, step.kwargs), results)
            if step.function is None:
                results[number] = self.get_submodule(step.layer)(self._given(step.args[0], results))
            else:
                args = [self._given(value, results) for value in step.args]
                kwargs = {name: self._given(value, results) for name, value in step.kwargs.items()}
                results[number] = step.function(*args, **kwargs)
                del args, kwargs  # so that nothing holds a tensor longer than it is needed
            for dead in step.last:
                del results[dead]
        if before is not None:
            before(self._output, results)
        return self._given(self._output, results)

    def get_submodule(self, target: str) -> nn.Module:
        """Give a layer by its name, whatever else this module has under that name."""
        return submodule(self, target)

    @property
    def steps(self) -> tuple[Step, ...]:
        """What is done with the images, in order."""
        return self._steps

    @property
    def output(self) -> Any:
        """What is given: a `Ref` or a tuple of them."""
        return self._output

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the images that it was written for."""
        return self._shape

    @property
    def any_size(self) -> bool:
        """Whether it takes images of another height and width."""
        return self._any_size

    def bound(self, bounds: "Bounds") -> None:
        """Let the sizes of all results be found, and checked, before images of a new shape are run."""
        self._bounds = bounds

    def fix_size(self) -> None:
        """Refuse images of another size: the model's own code made of the size what is now fixed."""
        self._any_size = False

    def _given(self, value: Any, results: Mapping[int, Any]) -> Any:
        """Put tensors in the place of what stands for them."""
        if isinstance(value, Ref):
            return results[value.number] if value.part is None else results[value.number][value.part]
        if isinstance(value, Constant):
            return self._buffers[value.name]
        if type(value) is tuple:
            return tuple([self._given(part, results) for part in value])
        if type(value) is list:
            return [self._given(part, results) for part in value]
        return value


def submodule(root: nn.Module, target: str) -> nn.Module:
    """Give a layer by its name.

    Raises:
        AttributeError: If there is none.
    """
    for part in target.split(".") if target else ():
        found = root._modules.get(part)
        if found is None:
            raise AttributeError(f"There is no layer {target!r}.")
        root = found
    return root


class Bounds:
    """Finds on tensors without memory how large the results of a module are, and refuses what is far too large.

    Args:
        module: The module, its tensors on the device ``meta``.
    """

    def __init__(self, module: CircuitModule) -> None:
        self._module = module
        floating = (x.dtype for x in module.state_dict().values() if x.is_floating_point())
        self._dtype = next(floating, torch.float32)
        self._fitting: set[tuple[int, ...]] = set()

    def check(self, images: Tensor) -> None:
        """Refuse images of a shape for which a result would be too large.

        Raises:
            ConvCircuitsError: If the results that are held at once, or one of them, have too many values.
        """
        shape = tuple(images.shape)
        if shape in self._fitting:
            return
        limit = _ROOM + _RATIO * images.numel()

        def before(arguments: Any, results: Mapping[int, Any]) -> None:
            _allow(sum(x.numel() for result in results.values() for x in _tensors(result)), limit)
            for ref in standing_in(arguments):
                if isinstance(ref, Ref) and isinstance(results[ref.number], Tensor) != (ref.part is None):
                    raise ConvCircuitsError("one of its steps reads something other than a tensor")

        with torch.no_grad(), _EachResult(limit):
            self._module.run(torch.empty(shape, dtype=self._dtype, device="meta"), before)
        self._fitting.add(shape)


class _EachResult(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Checks what every operation of torch makes, those inside of others too."""

    def __init__(self, limit: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._limit = limit

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for x in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(x, Tensor):
                _allow(x.numel(), self._limit)
        return result


def _allow(count: int, limit: int) -> None:
    if count > limit:
        raise ConvCircuitsError(f"it asks for {count:,} values at once, and for such images {limit:,} are allowed")


def _tensors(result: Any) -> Sequence[Tensor]:
    """List a step's results, each of which has to be a tensor."""
    found = result if isinstance(result, (tuple, list)) else (result,)
    if not all(isinstance(x, Tensor) for x in found):
        raise ConvCircuitsError("one of its steps makes something other than tensors")
    return found


def standing_in(value: Any) -> list[Ref | Constant]:
    """List what stands for tensors among arguments."""
    if isinstance(value, (Ref, Constant)):
        return [value]
    if isinstance(value, Mapping):
        value = tuple(value.values())
    return [one for part in value for one in standing_in(part)] if isinstance(value, (tuple, list)) else []


def _tidy(steps: Sequence[Step], output: Any) -> tuple[Step, ...]:
    """Say of each step what dies with it, and let it write into its map where it can and nobody else reads that."""
    read = [_numbers((step.args, step.kwargs)) for step in steps]
    users, kept = Counter(n for numbers in [*read, _numbers(output)] for n in numbers), set(_numbers(output))
    last = {n: number for number, numbers in enumerate(read, 1) for n in numbers}
    dead: dict[int, list[int]] = {}
    for number in range(len(steps) + 1):
        if number not in kept:
            dead.setdefault(last.get(number, max(number, 1)), []).append(number)
    tidied = []
    for number, step in enumerate(steps, 1):
        args, kwargs = step.args, dict(step.kwargs)
        operation = operation_of(step.function)
        if operation is not None and "inplace" in operation.kinds and isinstance(args[0], Ref):
            args = args[: list(operation.kinds).index("inplace")]
            source = steps[args[0].number - 1].function if args[0].number else torch.clone
            fresh = (source is None or source is F.pad) and args[0].part is None
            kwargs["inplace"] = fresh and users[args[0].number] == 1
        tidied.append(replace(step, args=args, kwargs=kwargs, last=tuple(dead.get(number, ()))))
    return tuple(tidied)


def _numbers(value: Any) -> list[int]:
    return [one.number for one in standing_in(value) if isinstance(one, Ref)]


# ---------------------------------------- from a graph that was written


def one_of(result: Any, number: int) -> Any:
    """Stand in a graph for one of several results."""
    return result[number]


def from_graph(root: nn.Module, graph: fx.Graph, shape: tuple[int, int, int]) -> CircuitModule:
    """Make the module of a graph and of the layers and constants that it names, in eval mode.

    The graph is only read: `torch.fx` would make Python code of it, and of every name in it.
    """
    places: dict[fx.Node, Any] = {}
    steps: list[Step] = []
    output: Any = None
    for node in graph.nodes:
        args, kwargs = _plain(node.args, places), _plain(dict(node.kwargs), places)
        if node.op == "placeholder":
            places[node] = Ref(0)
        elif node.op == "get_attr":
            places[node] = Constant(str(node.target))
        elif node.op == "output":
            output = args[0]
        elif node.target is one_of:
            places[node] = replace(args[0], part=args[1])
        else:
            steps.append(_step(node, args, kwargs))
            places[node] = Ref(len(steps))
    return CircuitModule(root, steps, output, shape=shape).eval()


def _step(node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Step:
    if node.op == "call_module":
        return Step(None, args, layer=str(node.target))
    function: Any = getattr(Tensor, str(node.target)) if node.op == "call_method" else node.target
    found = in_table(function, args, kwargs)
    if found is not None:
        operation, given = found
        function, (args, kwargs) = operation.function, operation.call(given)
    return Step(function, args, kwargs)


def _plain(value: Any, places: Mapping[fx.Node, Any]) -> Any:
    """Put in the place of nodes what stands for their results, in ordinary containers."""
    if isinstance(value, fx.Node):
        return places[value]
    if isinstance(value, slice):
        return slice(*(_plain(one, places) for one in (value.start, value.stop, value.step)))
    if isinstance(value, (tuple, list)):
        parts = [_plain(one, places) for one in value]
        return parts if isinstance(value, list) else tuple(parts)
    return {name: _plain(one, places) for name, one in value.items()} if isinstance(value, dict) else value
