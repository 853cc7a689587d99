"""What functions other than kernel calls do with channels: the one catalogue that runs and extraction both follow.

A function moves values without computing (a view, a concatenation), stays within each channel (a ReLU, a BatchNorm, a
pooling), joins maps element by element (an addition), scales one map by another (a gate), reduces some dimensions, or
mixes channels (a LayerNorm). Anything else is `OTHER`: nothing is known of it.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from convcircuits.operations import EACH


class Kind(Enum):
    """What a function does with the channels of the maps it is given."""

    MOVE = "move"
    WITHIN = "within"
    JOIN = "join"
    SCALE = "scale"
    REDUCE = "reduce"
    MIX = "mix"
    OTHER = "other"


@dataclass(frozen=True)
class Rule:
    """What one call of a function does.

    Attributes:
        kind: What it does with channels.
        data: Which map, by number, is scaled; the others are gates. For ``SCALE`` alone.
        dims: The dimensions that are reduced, from 0 (the batch). For ``REDUCE`` alone.
        gate: Whether the result is a gate: a sigmoid's, or what is made of one alone (a view, a resized one, 1 - it).
    """

    kind: Kind
    data: int = 0
    dims: tuple[int, ...] = ()
    gate: bool = False


# Functions are told by name, whether function, method or operator, in place or not.
_MOVES = {"cat", "concat", "concatenate", "stack", "chunk", "split", "tensor_split", "unbind", "narrow", "select"}
_MOVES |= {"getitem", "index_select", "flip", "roll", "channel_shuffle", "pixel_shuffle", "pixel_unshuffle"}
_MOVES |= {"view", "reshape", "flatten", "unflatten", "permute", "transpose", "swapaxes", "movedim", "squeeze"}
_MOVES |= {"unsqueeze", "contiguous", "clone", "expand", "expand_as", "view_as", "reshape_as"}
_JOINS = {"add", "sub", "subtract", "rsub", "maximum", "minimum", "max", "min", "where"}
_SCALINGS = {"mul", "multiply", "div", "truediv", "divide", "true_divide"}
_GATES = {"sigmoid", "hardsigmoid", "softmax"}
# Position of the dimensions among the arguments; where none are given, all are reduced.
_REDUCES = {"mean": 1, "sum": 1, "amax": 1, "amin": 1, "max": 1, "min": 1, "prod": 1, "norm": 2, "var": 1, "std": 1}
_REDUCES |= {"logsumexp": 1, "argmax": 1}
_MIXES: set[Callable[..., Any]] = {F.layer_norm, F.group_norm, F.local_response_norm, F.normalize}
_MIXES |= {function for function in (getattr(F, "rms_norm", None), torch.rms_norm) if function is not None}
# Computed within each channel of maps of any form; and of maps (N, C, H, W) alone.
_WITHIN = EACH | _SCALINGS | _GATES | {"log_softmax", "softmin", "batch_norm", "instance_norm", "to", "type", "type_as"}
_WITHIN |= {"float", "double", "half", "bfloat16", "detach", "logsigmoid", "tanhshrink", "softsign", "cpu", "cuda"}
_WITHIN |= {"floordiv", "mod", "and", "or", "xor", "invert"}
_WITHIN |= {"dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout"}
_WINDOWS = {"max_pool2d", "avg_pool2d", "lp_pool2d", "adaptive_max_pool2d", "adaptive_avg_pool2d", "interpolate", "pad"}
_WINDOWS |= {"upsample", "max_pool2d_with_indices"}


def _lerp(input: Tensor, end: Tensor, weight: Any) -> Tensor:
    return torch.add(input, torch.mul(torch.sub(end, input), weight))


def _lerp_(input: Tensor, end: Tensor, weight: Any) -> Tensor:
    return input.add_(torch.mul(torch.sub(end, input), weight))


def _addcmul(input: Tensor, tensor1: Tensor, tensor2: Tensor, *, value: float = 1) -> Tensor:
    return torch.add(input, torch.mul(tensor1, tensor2), alpha=value)


def _addcmul_(input: Tensor, tensor1: Tensor, tensor2: Tensor, *, value: float = 1) -> Tensor:
    return input.add_(torch.mul(tensor1, tensor2), alpha=value)


def _addcdiv(input: Tensor, tensor1: Tensor, tensor2: Tensor, *, value: float = 1) -> Tensor:
    return torch.add(input, torch.div(tensor1, tensor2), alpha=value)


def _addcdiv_(input: Tensor, tensor1: Tensor, tensor2: Tensor, *, value: float = 1) -> Tensor:
    return input.add_(torch.div(tensor1, tensor2), alpha=value)


IN_PARTS: Mapping[Any, Callable[..., Tensor]] = {
    torch.lerp: _lerp,
    Tensor.lerp: _lerp,
    Tensor.lerp_: _lerp_,
    torch.addcmul: _addcmul,
    Tensor.addcmul: _addcmul,
    Tensor.addcmul_: _addcmul_,
    torch.addcdiv: _addcdiv,
    Tensor.addcdiv: _addcdiv,
    Tensor.addcdiv_: _addcdiv_,
}
"""Functions that scale and add at once, as the two that they are: so a gate is told from what it scales."""


def base_name(function: Any) -> str:
    """Name what a function, method or operator does, in place or reflected too: ``add`` for ``__iadd__``."""
    name: str = function.__name__
    core = name.strip("_")
    operators = ("add", "sub", "mul", "truediv", "div", "floordiv", "mod", "matmul", "pow", "and", "or", "xor")
    return core[1:] if name.startswith("__") and core[:1] in "ir" and core[1:] in operators else core


def writes_to_first(function: Any) -> bool:
    """Tell by its name whether a function works in place."""
    name: str = function.__name__
    return name.startswith("__i") or name == "__setitem__" or (name.endswith("_") and not name.endswith("__"))


def tensors_in(value: Any) -> list[Tensor]:
    """List the tensors among a function's arguments."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        value = tuple(value.values())
    return [x for part in value for x in tensors_in(part)] if isinstance(value, (tuple, list)) else []


def with_maps(value: Any, change: Callable[[Any], Any], kind: type = Tensor) -> Any:
    """Change every tensor (or what stands for one) among a function's arguments."""
    if isinstance(value, Mapping):
        return {key: with_maps(part, change, kind) for key, part in value.items()}
    if type(value) in (tuple, list, torch.Size):
        return (list if isinstance(value, list) else tuple)(with_maps(part, change, kind) for part in value)
    return change(value) if isinstance(value, kind) else value


def rule_of(function: Any, args: Sequence[Any], kwargs: Mapping[str, Any], maps: Sequence[Tensor]) -> Rule:
    """Return what a call does with the channels of its maps.

    Args:
        function: The function.
        args: Its arguments.
        kwargs: Its keyword arguments.
        maps: The tensors among them that hold the image's values, each (n, ...), in their order.
    """
    name = base_name(function)
    if name in _MOVES or (name == "pad" and _pads_channels(args, kwargs, maps[0])):
        return Rule(Kind.MOVE, gate=is_gate(maps[0]))
    if len(maps) == 1:
        if name in _REDUCES and len(tensors_in((args, kwargs))) == 1:  # and no maximum of a map and a constant
            return Rule(Kind.REDUCE, dims=_reduced(name, args, kwargs, maps[0].dim()))
        if function in _MIXES:
            return Rule(Kind.MIX)
        clipped = name in ("max", "min") and len(tensors_in((args, kwargs))) > 1  # by a constant
        within = clipped or name in _WITHIN or (name in _WINDOWS and maps[0].dim() == 4)
        return Rule(Kind.WITHIN, gate=name in _GATES or is_gate(maps[0])) if within else Rule(Kind.OTHER)
    if name in _SCALINGS and len(maps) == 2:
        data = _data_of_scaling(name, maps)
        return Rule(Kind.JOIN) if data is None else Rule(Kind.SCALE, data=data)
    return Rule(Kind.JOIN if name in _JOINS else Kind.OTHER)


def is_product(function: Any) -> bool:
    """Return whether a function multiplies its maps, so that one zero is enough for a zero."""
    return base_name(function) in _SCALINGS


def of_image(x: Tensor) -> bool:
    """Return whether a tensor was computed from the image, and is no constant."""
    return getattr(x, "_convcircuits_of_image", False)


def set_of_image(result: Any) -> None:
    """Remember of a function's results that they were computed from the image."""
    for one in tensors_in(result):
        one._convcircuits_of_image = True  # type: ignore[attr-defined]


# Functions of which only the form of the result depends on a map: of all their tensors, or of those after the first.
_NEW = {"zeros_like", "ones_like", "full_like", "empty_like", "new_zeros", "new_ones", "new_full", "new_empty"}
_NEW |= {"new_tensor", "rand_like", "randn_like"}
_FORMED_BY = {"to", "type_as", "expand_as", "view_as", "reshape_as"}


def depends_on_image(function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Return whether what a call gives is computed from the image."""
    name = base_name(function)
    if name in _NEW:
        return False
    given = args[:1] if name in _FORMED_BY and args else (args, kwargs)
    return any(of_image(x) for x in tensors_in(given))


def in_place_of_maps(given: Any, others: Sequence[Any], is_map: Callable[[Any], bool], zero: torch.dtype) -> Any:
    """Put other tensors in the place of maps among arguments; zeros in the place of constants that hold values."""
    rest = iter(others)

    def change(x: Any) -> Any:
        if is_map(x):
            return next(rest)
        return torch.zeros_like(x, dtype=zero) if isinstance(x, Tensor) and x.is_floating_point() else x

    return with_maps(given, change, object)


def is_gate(maps: Tensor) -> bool:
    """Return whether a map is a gate: a sigmoid's result, or what is made of one alone."""
    return getattr(maps, "_convcircuits_gate", False)


def set_gate(result: Any, gate: bool) -> None:
    """Remember of a function's results whether they are gates."""
    for one in tensors_in(result):
        one._convcircuits_gate = gate  # type: ignore[attr-defined]


def argument(function: Any, args: Sequence[Any], kwargs: Mapping[str, Any], name: str) -> Any:
    """Return an argument of a Python function by its name."""
    return inspect.signature(function).bind(*args, **kwargs).arguments.get(name)


def _data_of_scaling(name: str, maps: Sequence[Tensor]) -> int | None:
    """Number what a product or quotient scales: not the divisor, nor the gate (a sigmoid's, or the smaller factor)."""
    a, b = maps
    if "div" in name:
        return 0
    if is_gate(a) != is_gate(b):
        return int(is_gate(a))
    return None if a.numel() == b.numel() else int(a.numel() < b.numel())


def _reduced(name: str, args: Sequence[Any], kwargs: Mapping[str, Any], rank: int) -> tuple[int, ...]:
    place = _REDUCES[name]
    given = kwargs.get("dim", kwargs.get("axis", args[place] if len(args) > place else None))
    dims = range(rank) if given is None else (given,) if isinstance(given, int) else given
    return tuple(int(dim) % rank for dim in dims)


def _pads_channels(args: Sequence[Any], kwargs: Mapping[str, Any], x: Tensor) -> bool:
    pads = kwargs.get("pad", args[1] if len(args) > 1 else ())
    return len(pads) > 2 * (x.dim() - 2)
