"""The module that an extracted circuit is: it carries out a list of steps, and no code is ever made of it."""

import keyword
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import reduce
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

from convcircuits.compiler.instructions import IN_PLACE, Constant, Result, standing_in
from convcircuits.errors import ConvCircuitsError

_OF_GRAPHS = frozenset([*dir(fx.GraphModule), "graph", "meta"])
_ROOM, _RATIO = 1 << 24, 1 << 12  # values that a module may hold: so many, and so many for each value of its images


@dataclass(frozen=True, slots=True)
class Step:
    """One call.

    Attributes:
        function: What is called, an ATen operation or a function of ours; None for a layer.
        args: Its arguments, with ``Result`` and ``Constant`` in the place of tensors.
        kwargs: Its keyword arguments, likewise.
        layer: The name of the layer that is called on the first argument.
        run: The same, or what does it in place.
        last: Numbers of results that no later step reads.
        path: The parts of the layer's name.
        rest: The arguments after the first.
        source: The number of the result that its first argument is, where that is its only tensor: the usual case, in
            which there is little to do beside the call.
    """

    function: Callable[..., Any] | None
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    layer: str = ""
    run: Any = None
    last: tuple[int, ...] = ()
    path: tuple[str, ...] = ()
    source: int | None = None
    rest: tuple[Any, ...] = ()

    def __reduce__(self) -> Any:  # torch pickles no operations
        values = {known.name: getattr(self, known.name) for known in fields(self)}
        names = {k: str(v) for k, v in values.items() if isinstance(v, OpOverload)}
        return _restored, (values | names, [*names])


def _restored(values: Mapping[str, Any], names: Sequence[str]) -> Step:
    operations = {k: reduce(getattr, values[k].split("."), torch.ops) for k in names}
    return Step(**{**values, **operations})


@dataclass(frozen=True)
class Program:
    """What a module does with a batch of images.

    Attributes:
        steps: The calls, in order.
        output: What is given, a ``Result`` or a tuple of them.
        shape: (C, H, W) of the images that it was written for.
        any_size: Whether it takes images of another height and width.
        bounds: Finds the sizes of all results before images of a new shape are run; of a module from a file.
    """

    steps: tuple[Step, ...]
    output: Any
    shape: tuple[int, int, int]
    any_size: bool = True
    bounds: "Bounds | None" = None

    def run(
        self, module: nn.Module, images: Tensor, before: Callable[[Any, Mapping[int, Any]], None] | None = None
    ) -> Any:
        """Carry out the steps; ``before`` each, and the output, is shown its arguments and all results still held."""
        results: dict[int, Any] = {0: images}
        constants = module._buffers
        for number, step in enumerate(self.steps, 1):
            if before is not None:
                before((step.args, step.kwargs), results)
            function = step.run
            if function is None:
                function = module
                for part in step.path:
                    function = function._modules[part]
            if step.source is not None:
                results[number] = function(results[step.source], *step.rest, **step.kwargs)
            else:
                args = [_given(value, results, constants) for value in step.args]
                kwargs = {name: _given(value, results, constants) for name, value in step.kwargs.items()}
                results[number] = function(*args, **kwargs)
                del args, kwargs  # so that nothing holds a tensor longer than it is needed
            for dead in step.last:
                del results[dead]
        if before is not None:
            before(self.output, results)
        return _given(self.output, results, constants)


class CircuitModule(nn.Module):
    """A circuit as a small network: images (N, C, H, W) -> the feature's map.

    Its layers have the names that they have in the model, any that ``torch.nn.Module`` allows; so it has hardly a name
    of its own.

    Args:
        root: Has the layers and, as buffers, the constants.
        program: What to do with them.

    Attributes:
        meta: What the module was made of, under ``"circuit"``.
    """

    def __init__(self, root: nn.Module, program: Program) -> None:
        super().__init__()
        self.meta: dict[str, Any] = {}
        self._program = program
        # Past the checks of add_module: a model may have a layer that is called meta.
        self._modules.update(root._modules)
        self._buffers.update(root._buffers)

    def forward(self, images: Tensor) -> Any:
        """Compute the feature's map."""
        program = program_of(self)
        if not program.any_size and images.shape[2:] != program.shape[1:]:
            raise ConvCircuitsError(
                f"This module was extracted for images of {program.shape[1]} x {program.shape[2]}; got "
                f"{' x '.join(map(str, images.shape[2:]))}. Extract it with another input_shape."
            )
        if program.bounds is not None:
            if torch.compiler.is_compiling():
                program.bounds.check_names()
            else:
                program.bounds.check(images)
        return program.run(self, images)

    def get_submodule(self, target: str) -> nn.Module:
        """Return a layer by its name, whatever else this module has under that name."""
        return submodule(self, target)


def program_of(module: CircuitModule) -> Program:
    """Return what a module does."""
    program: Program = module.__dict__["_program"]
    return program


def _given(value: Any, results: Mapping[int, Any], constants: Mapping[str, Any]) -> Any:
    """Put tensors in the place of what stands for them."""
    kind = type(value)
    if kind is Result:
        return results[value.number] if value.part is None else results[value.number][value.part]
    if kind is Constant:
        return constants[value.name]
    if kind is tuple:
        return tuple([_given(part, results, constants) for part in value])
    if kind is list:
        return [_given(part, results, constants) for part in value]
    return value


def submodule(root: nn.Module, target: str) -> nn.Module:
    """Return a layer by its name.

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
    """Finds on tensors without memory how large the results of a module from a file are, and refuses what is too large.

    Args:
        module: The module, its tensors on the device ``meta``.
    """

    def __init__(self, module: CircuitModule) -> None:
        self._module = module
        floating = (x.dtype for x in module.state_dict().values() if x.is_floating_point())
        self._dtype = next(floating, torch.float32)
        self._fitting: set[tuple[int, ...]] = set()
        self._unquotable = [name for name in module.state_dict() if set('"\\') & {*name} or not name.isprintable()]

    def check_names(self) -> None:
        """Refuse names that would be more than names in the code that torch makes of them when it exports a module.

        Raises:
            ConvCircuitsError: If there is one.
        """
        if self._unquotable:
            raise ConvCircuitsError(
                f"torch makes code of the names of a module that it compiles or exports, and {self._unquotable[0]!r} "
                "comes from a file; extract the circuit from its model and export that."
            )

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
                if isinstance(ref, Result) and isinstance(results[ref.number], Tensor) != (ref.part is None):
                    raise ConvCircuitsError("one of its steps reads something other than a tensor")

        with torch.no_grad(), _EachResult(limit):
            program_of(self._module).run(self._module, torch.empty(shape, dtype=self._dtype, device="meta"), before)
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


def tidy(steps: Sequence[Step], output: Any) -> tuple[Step, ...]:
    """Note for each step what dies with it, and let it write into its map where it can and nobody else reads that."""
    read = [_numbers((step.args, step.kwargs)) for step in steps]
    users, kept = Counter(n for numbers in [*read, _numbers(output)] for n in numbers), set(_numbers(output))
    last = {n: number for number, numbers in enumerate(read, 1) for n in numbers}
    dead: dict[int, list[int]] = {}
    for number in range(len(steps) + 1):
        if number not in kept:
            dead.setdefault(last.get(number, max(number, 1)), []).append(number)
    tidied = []
    for number, step in enumerate(steps, 1):
        tidied.append(
            replace(
                step,
                run=_in_place(step, steps, users),
                last=tuple(dead.get(number, ())),
                path=tuple(step.layer.split(".")),
                source=_only_source(step),
                rest=step.args[1:],
            )
        )
    return tuple(tidied)


def _only_source(step: Step) -> int | None:
    """Return which result a step reads first, if that is the only tensor it is given."""
    match step.args:
        case [Result(number, None), *rest] if not standing_in((rest, step.kwargs)):
            return number
    return None


def _in_place(step: Step, steps: Sequence[Step], users: Mapping[int, int]) -> Any:
    """Return what a step calls: what writes into its map, where there is such a function and nobody else reads that."""
    match step.args:
        case [Result(number, None), *_] if number and users[number] == 1 and step.function in IN_PLACE:
            fresh = steps[number - 1].function in (None, torch.ops.aten.constant_pad_nd.default)
            return IN_PLACE[step.function] if fresh else step.function
    return step.function


def _numbers(value: Any) -> list[int]:
    return [one.number for one in standing_in(value) if isinstance(one, Result)]


def with_plain_names(module: CircuitModule) -> CircuitModule:
    """Return a module of the same layers in which those of names that torch cannot export have others."""
    program, root = program_of(module), nn.Module()
    root._buffers.update(module._buffers)
    names: dict[str, str] = {}
    for step in program.steps:
        if step.function is None and step.layer not in names:
            path = step.path if all(map(_is_plain, step.path)) else (f"layer_{len(names)}",)
            names[step.layer], place = ".".join(path), root
            for part in path[:-1]:
                place = place._modules.setdefault(part, nn.Module())  # type: ignore[assignment]
            place._modules[path[-1]] = module.get_submodule(step.layer)
    steps = [replace(step, layer=names.get(step.layer, "")) for step in program.steps]
    return CircuitModule(root, replace(program, steps=tidy(steps, program.output), bounds=None))


def _is_plain(name: str) -> bool:
    """Return whether a name can be that of an attribute in the code that torch makes when it exports."""
    word = name.isascii() and name.replace("_", "").isalnum()
    return word and not keyword.iskeyword(name) and name not in _OF_GRAPHS


# ---------------------------------------- from a graph that was written


def one_of(result: Any, number: int) -> Any:
    """Stand in a graph for one of several results."""
    return result[number]


def from_graph(
    root: nn.Module, graph: fx.Graph, shape: tuple[int, int, int], *, any_size: bool = True
) -> CircuitModule:
    """Make the module of a graph and of the layers and constants that it names, in eval mode.

    The graph is only read: ``torch.fx`` would make Python code of it, and of every name in it.
    """
    places: dict[fx.Node, Any] = {}
    steps: list[Step] = []
    output: Any = None
    for node in graph.nodes:
        args, kwargs = _plain(node.args, places), _plain(dict(node.kwargs), places)
        if node.op == "placeholder":
            places[node] = Result(0)
        elif node.op == "get_attr":
            places[node] = Constant(str(node.target))
        elif node.op == "output":
            output = args[0]
        elif node.target is one_of:
            places[node] = replace(args[0], part=args[1])
        else:
            is_layer = node.op == "call_module"
            steps.append(Step(None, args, layer=str(node.target)) if is_layer else Step(node.target, args, kwargs))
            places[node] = Result(len(steps))
    return CircuitModule(root, Program(tidy(steps, output), output, shape, any_size)).eval()


def _plain(value: Any, places: Mapping[fx.Node, Any]) -> Any:
    """Put in the place of nodes what stands for their results, in ordinary containers."""
    if isinstance(value, fx.Node):
        return places[value]
    if isinstance(value, (tuple, list)):
        parts = [_plain(one, places) for one in value]
        return parts if isinstance(value, list) else tuple(parts)
    return {name: _plain(one, places) for name, one in value.items()} if isinstance(value, dict) else value
