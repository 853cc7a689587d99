"""Convert extracted modules to JSON and tensors and back, without the code of the original model.

A file refers to operations of the table in ``convcircuits.compiler.instructions``, to small layers of four kinds, and
to its own results by number. Nothing in it is looked up elsewhere or turned into code: names of layers are dictionary
keys, every argument must be of the kind in the table, and the sizes of all results are checked on tensors without
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
_NUMBERS = ("filters", "channels")  # buffers that a layer may have in addition to its own

_CHANNELS = {"in_channels": "int", "out_channels": "int", "groups": "int", "bias": "bool"}
_LEAST = {"channels": 1, "features": 1, "size": 1, "stride": 1, "dilation": 1, "groups": 1, "padding": 0}
"""The minimum values of options, by the last word of their names."""
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
_OF_MODULES = frozenset(dir(nn.Module()))  # torch does not allow these as names of layers either


def to_json(module: CircuitModule) -> dict[str, Any]:
    """Return a module as JSON values, without its state dict.

    Raises:
        ConvCircuitsError: If the module calls a function or contains a layer that is not allowed in files.
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
    """Build a module, in eval mode, from the result of ``to_json`` and a state dict, without running it.

    Before it runs on images of a new shape, the module checks the sizes of all results.

    Raises:
        ConvCircuitsError: If an operation, an argument, a layer or a name is not allowed in files, if tensors are
            missing or unexpected, or if a result would be far too large. Other malformed input raises exceptions of
            other types.
    """
    layers, steps, any_size = said["layers"], said["steps"], said["any_size"]
    shape = _checked_shape(said["images"])
    if type(any_size) is not bool or type(layers) is not dict or type(steps) is not list:
        raise ConvCircuitsError("its graph has values of the wrong type")
    if max(len(layers), len(steps), len(tensors)) > _MOST:
        raise ConvCircuitsError(f"it has more than {_MOST} steps, layers or tensors")
    root = nn.Module()
    for name, layer in layers.items():
        _put(root, name, _layer(layer))
    odd = [f"{name!r:.80} has the unsupported dtype {x.dtype}" for name, x in tensors.items() if x.dtype not in DTYPES]
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
        raise _unsavable(f"it calls {step.function}, which is not an operation allowed in files")
    given = operation.given(step.args, step.kwargs)
    wrong = operation.wrong(given)
    if wrong is not None:
        raise _unsavable(f"it calls {operation.name}, and {wrong}")
    return {"call": operation.name, "given": {name: _encoded(value) for name, value in given.items()}}


def _step(said: Mapping[str, Any], number: int, layers: Mapping[str, Any], constants: list[str]) -> Step:
    """Return one step, after checking that it is allowed and reads only earlier results."""
    if said.keys() == {"layer", "of"}:
        name, x = said["layer"], _decoded(said["of"])
        if type(name) is not str or name not in layers or not isinstance(x, Result):
            raise ConvCircuitsError(f"step {number} does not call a layer of the file on a result")
        step = Step(None, (x,), layer=name)
    elif said.keys() == {"call", "given"}:
        name = said["call"]
        operation = OPERATIONS.get(name) if type(name) is str else None
        if operation is None:
            raise ConvCircuitsError(f"{name!r:.80} is not an operation allowed in files")
        given = {key: _decoded(value) for key, value in said["given"].items()}
        wrong = operation.wrong(given)
        if wrong is not None:
            raise ConvCircuitsError(f"step {number} calls {name}, and {wrong}")
        step = Step(operation.function, *operation.call(given))
    else:
        raise ConvCircuitsError(f"step {number} calls neither an operation nor a layer")
    for one in standing_in((step.args, step.kwargs)):
        if isinstance(one, Result) and not 0 <= one.number < number:
            raise ConvCircuitsError(f"step {number} reads result {one.number}, which is not an earlier one")
        if isinstance(one, Constant) and one.name not in constants:
            raise ConvCircuitsError(f"step {number} reads {one.name!r:.80}, which is not a constant")
    return step


def _output(output: Any, steps: int) -> Any:
    parts = output if isinstance(output, list) else [output]
    if not parts or not all(isinstance(one, Result) and 0 <= one.number <= steps for one in parts):
        raise ConvCircuitsError("its output is not one of its results")
    return tuple(output) if isinstance(output, list) else output


def _check_used(steps: list[Step], layers: Mapping[str, Any], constants: list[str]) -> None:
    read = {one.name for step in steps for one in standing_in((step.args, step.kwargs)) if isinstance(one, Constant)}
    called = {step.layer for step in steps}
    unused = [name for name in constants if "." not in name and name not in read]
    unused += [name for name in layers if name not in called]
    if unused:
        raise ConvCircuitsError(f"no step uses {', '.join(map(repr, unused[:3]))}")


def _encoded(value: Any) -> Any:
    """Return an argument as JSON; values that JSON cannot express become objects."""
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
    raise _unsavable(f"it has the argument {value!r} of the unsupported type {type(value).__name__}")


def _decoded(value: Any, depth: int = 0) -> Any:
    if depth > 2:
        raise ConvCircuitsError("an argument is nested too deeply")
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
    raise ConvCircuitsError(f"{value!r:.80} is not a valid argument")


# ---------------------------------------- layers and tensors


def _described(name: str, layer: nn.Module) -> dict[str, Any]:
    kind = type(layer).__name__
    if kind not in _LAYERS or _LAYERS[kind][0] is not type(layer):
        known = ", ".join(_LAYERS)
        raise _unsavable(f"its layer {name} is a {kind}; the layers allowed in files are {known}")
    options = {option: getattr(layer, option) for option in _LAYERS[kind][1]}
    if "bias" in options:
        options["bias"] = options["bias"] is not None
    return {"kind": kind, "options": {option: _encoded(value) for option, value in options.items()}}


def _layer(said: Mapping[str, Any]) -> nn.Module:
    """Build a layer without memory for its weights, which the file must contain."""
    kind, kinds = _LAYERS[said["kind"]]
    decoded = {name: _decoded(value) for name, value in said["options"].items()}
    options = {name: tuple(value) if isinstance(value, list) else value for name, value in decoded.items()}
    if options.keys() != kinds.keys():
        raise ConvCircuitsError(f"a {said['kind']} needs {', '.join(kinds)}; got {', '.join(options)}")
    for name, value in options.items():
        if not is_of_kind(kinds[name], value):
            raise ConvCircuitsError(f"the {name} of a {said['kind']} is {value!r:.80}; expected {kinds[name]}")
    for name, value in options.items():
        least = _LEAST.get(name.rpartition("_")[2])
        numbers = value if isinstance(value, tuple) else (value,)
        if least is not None and any(isinstance(number, int) and number < least for number in numbers):
            raise ConvCircuitsError(f"the {name} of a {said['kind']} is {value!r:.80}, below {least}")
    return kind(**options, device="meta")


def _put(root: nn.Module, name: str, layer: nn.Module) -> None:
    """Add a layer under its name, with empty modules for its parents."""
    parts = name.split(".")
    if len(name) > _LONGEST_NAME or not all(parts) or not _OF_MODULES.isdisjoint(parts):
        raise ConvCircuitsError(f"{name!r:.80} is not a valid name for a layer")
    for part in parts[:-1]:
        _check_free(root, part)
        if part not in root._modules:
            root._modules[part] = nn.Module()
        root = root._modules[part]  # type: ignore[assignment]
    _check_free(root, parts[-1])
    children = root._modules.get(parts[-1])
    if children is not None:
        if type(children) is not nn.Module:  # a plain nn.Module only holds others
            raise ConvCircuitsError(f"it has two layers {name!r:.80}")
        layer._modules.update(children._modules)
    root._modules[parts[-1]] = layer


def _put_buffer(root: nn.Module, name: str, value: Tensor, layers: Mapping[str, Any]) -> None:
    """Add a constant, or the channel indices of a layer, under its name."""
    layer, _, own = name.rpartition(".")
    if layer:
        if layer not in layers or own not in _NUMBERS:
            raise ConvCircuitsError(f"{name!r:.80} is not a tensor of a layer")
        for part in layer.split("."):
            root = root._modules[part]  # type: ignore[assignment]
    elif not own or len(own) > _LONGEST_NAME or own in root._modules or hasattr(CircuitModule, own):
        raise ConvCircuitsError(f"{name!r:.80} is not a valid name for a constant")
    root._buffers[own] = value


def _check_free(parent: nn.Module, name: str) -> None:
    if name in parent._parameters or name in parent._buffers:
        raise ConvCircuitsError(f"{name!r:.80} is both a layer and a tensor")


def _listed(names: Any, tensors: Mapping[str, Tensor]) -> list[str]:
    if type(names) is not list or not all(type(name) is str for name in names) or len({*names}) != len(names):
        raise ConvCircuitsError("its list of tensors is not a list of distinct names")
    differing = tensors.keys() ^ {*names}
    if differing:
        raise ConvCircuitsError(f"its header and its tensors differ in {min(differing)!r:.80}")
    return names


def _checked_shape(shape: Any) -> tuple[int, int, int]:
    whole = type(shape) is list and len(shape) == 3 and all(type(n) is int and 0 < n < 1 << 16 for n in shape)
    if not whole:
        raise ConvCircuitsError("the shape of its images is not a valid (C, H, W)")
    return (shape[0], shape[1], shape[2])


def _unsavable(why: str) -> ConvCircuitsError:
    return ConvCircuitsError(
        f"This module cannot be saved as .safetensors: {why}. "
        "torch.export.save(torch.export.export(module, (images,)), FILE) can save it."
    )
