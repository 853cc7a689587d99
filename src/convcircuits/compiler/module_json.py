"""An extracted module as JSON and tensors, and back, without the code of the model it came from.

A file names operations of the table in ``convcircuits.compiler.instructions``, small layers of four kinds, and its own
results by their numbers. No word of it is ever looked up elsewhere or made into code: names of layers are keys of
dictionaries, every argument has to be of the kind that the table says, and how large all results are is found without
memory before anything is computed.
"""

import copy
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from convcircuits.compiler.instructions import (
    DTYPES,
    LONGEST,
    OPERATIONS,
    Constant,
    Result,
    is_of_kind,
    operation_of,
    standing_in,
)
from convcircuits.compiler.interpreter import Bounds, CircuitModule, Program, Step, program_of, tidy
from convcircuits.errors import ConvCircuitsError

_MOST = 1 << 14  # steps, layers or tensors of one file
_LONGEST_NAME = 1000
_NUMBERS = ("filters", "channels")  # buffers that a layer may have beside its own

_CHANNELS = {"in_channels": "int", "out_channels": "int", "groups": "int", "bias": "bool"}
_LEAST = {"channels": 1, "features": 1, "size": 1, "stride": 1, "dilation": 1, "groups": 1, "padding": 0}
"""The least numbers that options may hold, by the ends of their names."""
_WINDOW = dict.fromkeys(("kernel_size", "stride", "dilation"), "List[int]") | {"padding": "List[int]|same|valid"}
_NORM = {"num_features": "int", "eps": "float", "momentum": "float|None"}
_NORM |= dict.fromkeys(("affine", "track_running_stats"), "bool")
_LAYERS: dict[str, tuple[type[nn.Module], dict[str, str]]] = {
    "Conv2d": (nn.Conv2d, _CHANNELS | _WINDOW | {"padding_mode": "zeros|reflect|replicate|circular"}),
    "Linear": (nn.Linear, {"in_features": "int", "out_features": "int", "bias": "bool"}),
    "BatchNorm1d": (nn.BatchNorm1d, _NORM),
    "BatchNorm2d": (nn.BatchNorm2d, _NORM),
}
_WORDS: dict[str, dict[str, Any]] = {
    kind.__name__: {str(value): value for value in vars(torch).values() if isinstance(value, kind)}
    for kind in (torch.dtype, torch.memory_format)
}
_OF_MODULES = frozenset(dir(nn.Module()))  # that torch does not let a layer be called either


def to_json(module: CircuitModule) -> dict[str, Any]:
    """Return what a module computes as JSON values; its state dict is not among them.

    Raises:
        ConvCircuitsError: If it calls a function or holds a layer that a file cannot name.
    """
    program = program_of(module)
    called = {step.layer for step in program.steps if step.function is None}
    layers = {name: _described(name, layer) for name, layer in module.named_modules() if name in called}
    return {
        "images": list(program.shape),
        "any_size": program.any_size,
        "layers": layers,
        "tensors": list(module.state_dict()),  # safetensors sorts its keys
        "steps": [_said(step) for step in program.steps],
        "output": _encoded(program.output),
    }


def from_json(said: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> CircuitModule:
    """Make the module of what ``to_json`` said and of its state dict, in eval mode; nothing of it is run.

    Before images of a new shape are run, the module finds how large all results will be.

    Raises:
        ConvCircuitsError: If an operation, an argument, a layer or a name is none that a file may hold, tensors are
            missing or too many, or a result would be far too large. What is wrong in other ways raises an exception
            of another type.
    """
    layers, steps, any_size = said["layers"], said["steps"], said["any_size"]
    shape = _checked_shape(said["images"])
    if type(any_size) is not bool or type(layers) is not dict or type(steps) is not list:
        raise ConvCircuitsError("its graph has values of another type")
    if max(len(layers), len(steps), len(tensors)) > _MOST:
        raise ConvCircuitsError(f"it has more than {_MOST} steps, layers or tensors")
    root = nn.Module()
    for name, layer in layers.items():
        _put(root, name, _layer(layer))
    odd = [f"{name!r:.80} is of {x.dtype}" for name, x in tensors.items() if x.dtype not in DTYPES]
    if odd:
        raise ConvCircuitsError(f"its tensor {odd[0]}")
    own = root.state_dict()
    constants = [name for name in _listed(said["tensors"], tensors) if name not in own]
    for name in constants:
        _put_buffer(root, name, tensors[name].to("meta"), layers)
    read = [_step(step, number, layers, constants) for number, step in enumerate(steps, 1)]
    output = _output(_decoded(said["output"]), len(read))
    _check_used(read, layers, constants)
    program = Program(tidy(read, output), output, shape, any_size)
    without_memory = CircuitModule(root, program).eval()
    without_memory.load_state_dict({name: x.to("meta") for name, x in tensors.items()}, assign=True)
    bounds = Bounds(without_memory)
    bounds.check(torch.empty((2, *shape), device="meta"))
    module = CircuitModule(copy.deepcopy(root), replace(program, bounds=bounds)).eval()
    module.load_state_dict(dict(tensors), assign=True)
    return module


# ---------------------------------------- steps


def _said(step: Step) -> dict[str, Any]:
    if step.function is None:
        return {"layer": step.layer, "of": _encoded(step.args[0])}
    operation = operation_of(step.function)
    if operation is None:
        raise _unsavable(f"it calls {step.function}, which is not among the operations that a file may name")
    given = operation.given(step.args, step.kwargs)
    wrong = operation.wrong(given)
    if wrong is not None:
        raise _unsavable(f"it calls {operation.name}, and {wrong}")
    return {"call": operation.name, "given": {name: _encoded(value) for name, value in given.items()}}


def _step(said: Mapping[str, Any], number: int, layers: Mapping[str, Any], constants: list[str]) -> Step:
    """Read one step, if it is one that a file may hold and reads only what was made before it."""
    if said.keys() == {"layer", "of"}:
        name, x = said["layer"], _decoded(said["of"])
        if type(name) is not str or name not in layers or not isinstance(x, Result):
            raise ConvCircuitsError(f"step {number} calls no layer of the file on a result")
        step = Step(None, (x,), layer=name)
    elif said.keys() == {"call", "given"}:
        name = said["call"]
        operation = OPERATIONS.get(name) if type(name) is str else None
        if operation is None:
            raise ConvCircuitsError(f"{name!r:.80} is not among the operations that a file may name")
        given = {key: _decoded(value) for key, value in said["given"].items()}
        wrong = operation.wrong(given)
        if wrong is not None:
            raise ConvCircuitsError(f"step {number} calls {name}, and {wrong}")
        step = Step(operation.function, *operation.call(given))
    else:
        raise ConvCircuitsError(f"step {number} is neither a call of an operation nor of a layer")
    for one in standing_in((step.args, step.kwargs)):
        if isinstance(one, Result) and not 0 <= one.number < number:
            raise ConvCircuitsError(f"step {number} reads result {one.number}")
        if isinstance(one, Constant) and one.name not in constants:
            raise ConvCircuitsError(f"step {number} reads {one.name!r:.80}, which is no constant")
    return step


def _output(output: Any, steps: int) -> Any:
    parts = output if isinstance(output, list) else [output]
    if not parts or not all(isinstance(one, Result) and 0 <= one.number <= steps for one in parts):
        raise ConvCircuitsError("its output is none of its results")
    return tuple(output) if isinstance(output, list) else output


def _check_used(steps: list[Step], layers: Mapping[str, Any], constants: list[str]) -> None:
    read = {one.name for step in steps for one in standing_in((step.args, step.kwargs)) if isinstance(one, Constant)}
    called = {step.layer for step in steps}
    unused = [name for name in constants if "." not in name and name not in read]
    unused += [name for name in layers if name not in called]
    if unused:
        raise ConvCircuitsError(f"no step uses {', '.join(map(repr, unused[:3]))}")


def _encoded(value: Any) -> Any:
    """Return an argument as JSON; whatever JSON has no word for becomes an object."""
    match value:
        case Result(number, part):
            return {"result": number} if part is None else {"result": number, "part": part}
        case Constant(name):
            return {"constant": name}
        case float():
            return value if math.isfinite(value) else {"float": str(value)}
        case None | bool() | int() | str():
            return value
        case tuple() | list():
            return [_encoded(part) for part in value]
        case torch.dtype() | torch.memory_format():
            return {type(value).__name__: str(value)}
    raise _unsavable(f"an argument in it is {value!r}, of type {type(value).__name__}")


def _decoded(value: Any, depth: int = 0) -> Any:
    if depth > 2:
        raise ConvCircuitsError("an argument is nested too deep")
    if isinstance(value, list):
        if len(value) > LONGEST:
            raise ConvCircuitsError("an argument is too long")
        return [_decoded(part, depth + 1) for part in value]
    if not isinstance(value, dict):
        return value
    match value:
        case {"result": number, "part": part} if len(value) == 2 and type(number) is type(part) is int and part >= 0:
            return Result(number, part)
        case {"result": number} if len(value) == 1 and type(number) is int:
            return Result(number)
        case {"constant": str(name)} if len(value) == 1:
            return Constant(name)
        case {"float": "inf" | "-inf" | "nan" as text} if len(value) == 1:
            return float(text)
        case {"dtype": str(text)} | {"memory_format": str(text)} if len(value) == 1:
            return _WORDS[next(iter(value))][text]
    raise ConvCircuitsError(f"an argument is {value!r:.80}")


# ---------------------------------------- layers and tensors


def _described(name: str, layer: nn.Module) -> dict[str, Any]:
    kind = type(layer).__name__
    if kind not in _LAYERS or _LAYERS[kind][0] is not type(layer):
        known = ", ".join(_LAYERS)
        raise _unsavable(f"its layer {name} is {kind}, and a file may hold {known}")
    options = {option: getattr(layer, option) for option in _LAYERS[kind][1]}
    if "bias" in options:
        options["bias"] = options["bias"] is not None
    return {"kind": kind, "options": {option: _encoded(value) for option, value in options.items()}}


def _layer(said: Mapping[str, Any]) -> nn.Module:
    """Make a layer without memory for its weights, which the file has to bring."""
    kind, kinds = _LAYERS[said["kind"]]
    decoded = {name: _decoded(value) for name, value in said["options"].items()}
    options = {name: tuple(value) if isinstance(value, list) else value for name, value in decoded.items()}
    if options.keys() != kinds.keys():
        raise ConvCircuitsError(f"a {said['kind']} needs {', '.join(kinds)}; given were {', '.join(options)}")
    for name, value in options.items():
        if not is_of_kind(kinds[name], value):
            raise ConvCircuitsError(f"the {name} of a {said['kind']} is {value!r:.80}, which is no {kinds[name]}")
    for name, value in options.items():
        least = _LEAST.get(name.rpartition("_")[2])
        numbers = value if isinstance(value, tuple) else (value,)
        if least is not None and any(isinstance(number, int) and number < least for number in numbers):
            raise ConvCircuitsError(f"the {name} of a {said['kind']} is {value!r:.80}, below {least}")
    return kind(**options, device="meta")


def _put(root: nn.Module, name: str, layer: nn.Module) -> None:
    """Put a layer into its place, and modules that only hold others on the way to it."""
    parts = name.split(".")
    if len(name) > _LONGEST_NAME or not all(parts) or not _OF_MODULES.isdisjoint(parts):
        raise ConvCircuitsError(f"{name!r:.80} is no name for a layer")
    for part in parts[:-1]:
        _check_free(root, part)
        if part not in root._modules:
            root._modules[part] = nn.Module()
        root = root._modules[part]  # type: ignore[assignment]
    _check_free(root, parts[-1])
    children = root._modules.get(parts[-1])
    if children is not None:
        if type(children) is not nn.Module:  # a bare one only holds others
            raise ConvCircuitsError(f"it has two layers {name!r:.80}")
        layer._modules.update(children._modules)
    root._modules[parts[-1]] = layer


def _put_buffer(root: nn.Module, name: str, value: Tensor, layers: Mapping[str, Any]) -> None:
    """Put a constant into its place, or numbers of a layer's channels."""
    layer, _, own = name.rpartition(".")
    if layer:
        if layer not in layers or own not in _NUMBERS:
            raise ConvCircuitsError(f"{name!r:.80} is no tensor of a layer")
        for part in layer.split("."):
            root = root._modules[part]  # type: ignore[assignment]
    elif not own or len(own) > _LONGEST_NAME or own in root._modules or hasattr(CircuitModule, own):
        raise ConvCircuitsError(f"{name!r:.80} is no name for a constant")
    root._buffers[own] = value


def _check_free(parent: nn.Module, name: str) -> None:
    if name in parent._parameters or name in parent._buffers:
        raise ConvCircuitsError(f"{name!r:.80} is a layer and a tensor at once")


def _listed(names: Any, tensors: Mapping[str, Tensor]) -> list[str]:
    if type(names) is not list or not all(type(name) is str for name in names) or len({*names}) != len(names):
        raise ConvCircuitsError("its list of tensors is no list of different names")
    differing = tensors.keys() ^ {*names}
    if differing:
        raise ConvCircuitsError(f"its header and its tensors differ in {min(differing)!r:.80}")
    return names


def _checked_shape(shape: Any) -> tuple[int, int, int]:
    whole = type(shape) is list and len(shape) == 3 and all(type(n) is int and 0 < n < 1 << 16 for n in shape)
    if not whole:
        raise ConvCircuitsError("the shape of its images is no (C, H, W)")
    return (shape[0], shape[1], shape[2])


def _unsavable(why: str) -> ConvCircuitsError:
    return ConvCircuitsError(
        f"This module cannot be saved as .safetensors: {why}. "
        "torch.export.save(torch.export.export(module, (images,)), FILE) can save it."
    )
