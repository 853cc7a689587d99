"""The module of an extracted circuit: it interprets a list of steps, which is never turned into code."""

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
_ROOM, _RATIO = (
    1 << 24,
    1 << 12,
)  # values that a module may hold: a fixed number, plus this many per value of the images


@dataclass(frozen=True, slots=True)
class Step:
    """One call.

    Attributes:
        function: The function to call, an ATen operation or one of ours; None for a layer.
        args: The arguments, with ``Result`` and ``Constant`` for tensors.
        kwargs: The keyword arguments, likewise.
        layer: The name of the layer to call on the first argument.
        run: The function that is actually called: ``function`` or its in-place variant.
        last: Numbers of results that no later step reads.
        path: The parts of the layer's name.
        source: The number of the result that is the first argument, if that is the only tensor: the common case, which
            needs little work beside the call.
        rest: The arguments after the first.
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

    def __reduce__(self) -> Any:  # operations cannot be pickled
        values = {known.name: getattr(self, known.name) for known in fields(self)}
        names = {k: str(v) for k, v in values.items() if isinstance(v, OpOverload)}
        return _restored, (values | names, [*names])


def _restored(values: Mapping[str, Any], names: Sequence[str]) -> Step:
    operations = {k: reduce(getattr, values[k].split("."), torch.ops) for k in names}
    return Step(**{**values, **operations})


@dataclass(frozen=True)
class Program:
    """The computation of a module on a batch of images.

    Attributes:
        steps: The calls, in order.
        output: A ``Result`` or a tuple of them.
        shape: (C, H, W) of the images for which it was written.
        any_size: Whether it accepts images of another height and width.
        bounds: Checks the sizes of all results before images of a new shape are run; only for a module from a file.
    """

    steps: tuple[Step, ...]
    output: Any
    shape: tuple[int, int, int]
    any_size: bool = True
    bounds: "Bounds | None" = None

    def run(
        self, module: nn.Module, images: Tensor, before: Callable[[Any, Mapping[int, Any]], None] | None = None
    ) -> Any:
        """Run the steps, calling ``before`` before each step and the output with its arguments and all held results."""
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
                del args, kwargs  # release tensors as early as possible
            for dead in step.last:
                del results[dead]
        if before is not None:
            before(self.output, results)
        return _given(self.output, results, constants)


class CircuitModule(nn.Module):
    """A circuit as a small network: images (N, C, H, W) -> the feature's map.

    Its layers keep their names from the model. As these may be any name that ``torch.nn.Module`` allows, the class has
    few attributes of its own.

    Args:
        root: Holds the layers and, as buffers, the constants.
        program: The computation.

    Attributes:
        meta: A description of the circuit, under ``"circuit"``.
    """

    def __init__(self, root: nn.Module, program: Program) -> None:
        super().__init__()
        self.meta: dict[str, Any] = {}
        self._program = program
        # Bypasses the checks of add_module, since a model may have a layer named meta.
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
        """Return a layer by name, even if this module has an attribute of that name."""
        return submodule(self, target)


def program_of(module: CircuitModule) -> Program:
    """Return the program of a module."""
    program: Program = module.__dict__["_program"]
    return program


def _given(value: Any, results: Mapping[int, Any], constants: Mapping[str, Any]) -> Any:
    """Replace references by tensors."""
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
    """Return a layer by name.

    Raises:
        AttributeError: If there is no such layer.
    """
    for part in target.split(".") if target else ():
        found = root._modules.get(part)
        if found is None:
            raise AttributeError(f"There is no layer {target!r}.")
        root = found
    return root


class Bounds:
    """Checks the size of the results of a module from a file, on tensors without memory.

    Args:
        module: The module, with its tensors on the device ``meta``.
    """

    def __init__(self, module: CircuitModule) -> None:
        self._module = module
        floating = (x.dtype for x in module.state_dict().values() if x.is_floating_point())
        self._dtype = next(floating, torch.float32)
        self._fitting: set[tuple[int, ...]] = set()
        self._unquotable = [name for name in module.state_dict() if set('"\\') & {*name} or not name.isprintable()]

    def check_names(self) -> None:
        """Check that no name could act as code in the source that torch generates when it exports a module.

        Raises:
            ConvCircuitsError: If a name could.
        """
        if self._unquotable:
            raise ConvCircuitsError(
                f"torch generates code from the names in a module that it compiles or exports, and the name "
                f"{self._unquotable[0]!r} comes from a file; extract the circuit from its model and export that."
            )

    def check(self, images: Tensor) -> None:
        """Check that no result for images of this shape is too large.

        Raises:
            ConvCircuitsError: If a result, or all results held at once, have too many values.
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
    """Checks the result of every operation that torch dispatches, including those inside others."""

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
        raise ConvCircuitsError(f"it needs {count:,} values at once, more than the {limit:,} allowed for such images")


def _tensors(result: Any) -> Sequence[Tensor]:
    """Return a step's results, each of which must be a tensor."""
    found = result if isinstance(result, (tuple, list)) else (result,)
    if not all(isinstance(x, Tensor) for x in found):
        raise ConvCircuitsError("one of its steps returns something other than tensors")
    return found


def tidy(steps: Sequence[Step], output: Any) -> tuple[Step, ...]:
    """Add to each step the results that it reads last, and let it run in place if nothing else reads its input."""
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
    """Return the number of a step's first argument if that is a result and the only tensor."""
    match step.args:
        case [Result(number, None), *rest] if not standing_in((rest, step.kwargs)):
            return number
    return None


def _in_place(step: Step, steps: Sequence[Step], users: Mapping[int, int]) -> Any:
    """Return the function that a step calls, in place if there is such a variant and nothing else reads its input."""
    match step.args:
        case [Result(number, None), *_] if number and users[number] == 1 and step.function in IN_PLACE:
            fresh = steps[number - 1].function in (None, torch.ops.aten.constant_pad_nd.default)
            return IN_PLACE[step.function] if fresh else step.function
    return step.function


def _numbers(value: Any) -> list[int]:
    return [one.number for one in standing_in(value) if isinstance(one, Result)]


def with_outputs(module: CircuitModule, chosen: Sequence[int]) -> CircuitModule:
    """Return a module with the same layers that computes only the chosen ones of its outputs, as a tuple.

    Each is computed as before, so it is the same number for number.
    """
    program = program_of(module)
    output = tuple(program.output[n] for n in chosen)
    read = set(_numbers(output))
    for number in range(len(program.steps), 0, -1):
        if number in read:
            step = program.steps[number - 1]
            read.update(_numbers((step.args, step.kwargs)))
    order = sorted(read - {0})
    moved = {0: 0} | {old: new for new, old in enumerate(order, 1)}
    steps = [
        replace(step, args=_moved(step.args, moved), kwargs=_moved(step.kwargs, moved))
        for step in (program.steps[number - 1] for number in order)
    ]
    output = _moved(output, moved)
    root = nn.Module()
    root._modules, root._buffers = module._modules, module._buffers
    return CircuitModule(root, replace(program, steps=tidy(steps, output), output=output)).eval()


def _moved(value: Any, moved: Mapping[int, int]) -> Any:
    """Replace the numbers of results."""
    if isinstance(value, Result):
        return replace(value, number=moved[value.number])
    if isinstance(value, (tuple, list)):
        parts = [_moved(one, moved) for one in value]
        return parts if isinstance(value, list) else tuple(parts)
    return {name: _moved(one, moved) for name, one in value.items()} if isinstance(value, Mapping) else value


def with_plain_names(module: CircuitModule) -> CircuitModule:
    """Return a module with the same layers, renamed where torch cannot export their names."""
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
    """Return whether a name can be an attribute in the code that torch generates on export."""
    word = name.isascii() and name.replace("_", "").isalnum()
    return word and not keyword.iskeyword(name) and name not in _OF_GRAPHS


# ---------------------------------------- from a written graph


def one_of(result: Any, number: int) -> Any:
    """Return one of several results; stands for it in a graph."""
    return result[number]


def from_graph(
    root: nn.Module, graph: fx.Graph, shape: tuple[int, int, int], *, any_size: bool = True
) -> CircuitModule:
    """Build the module of a graph and of the layers and constants that it names, in eval mode.

    The graph is only read, because ``torch.fx`` would generate Python code from it and from every name in it.
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
    """Replace nodes by references to their results, and containers by ordinary ones."""
    if isinstance(value, fx.Node):
        return places[value]
    if isinstance(value, (tuple, list)):
        parts = [_plain(one, places) for one in value]
        return parts if isinstance(value, list) else tuple(parts)
    return {name: _plain(one, places) for name, one in value.items()} if isinstance(value, dict) else value
