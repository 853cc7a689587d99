"""How a dead filter falls silent: follow which values of each map are those of live filters, and act where maps meet.

A dead filter has no kept kernel; what it holds is its bias, and the shift of a BatchNorm after it. Each map carries a
mark: a bool tensor of its shape, False where a value is a dead filter's.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from convcircuits.capture import base_name, tensors_in, writes_to_first

# Functions that move values and compute nothing: views, cuts, joins.
_MOVES = {"cat", "concat", "concatenate", "stack", "chunk", "split", "tensor_split", "unbind", "narrow", "select"}
_MOVES |= {"getitem", "index_select", "flip", "roll", "channel_shuffle", "pixel_shuffle", "pixel_unshuffle"}
_MOVES |= {"view", "reshape", "flatten", "unflatten", "permute", "transpose", "swapaxes", "movedim", "squeeze"}
_MOVES |= {"unsqueeze", "contiguous", "clone", "expand", "expand_as"}
# Functions of one map in which its values meet. (Pooling is none: it stays within a channel.)
_REDUCES = {"sum", "mean", "amax", "amin", "max", "min", "prod", "norm", "logsumexp", "einsum", "matmul", "bmm"}


_SCALINGS = {"mul", "multiply", "div", "truediv", "divide", "true_divide"}
_GATES = {"sigmoid", "hardsigmoid", "softmax"}


def follow(function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Compute a function that is no kernel call, and follow which values are a dead filter's.

    Functions that only move values move their marks alike. Where maps meet (additions above all), what dead filters
    hold becomes zero; a gate, the smaller factor of a product, keeps it.
    """
    into = {"out": kwargs["out"]} if "out" in kwargs else {}
    named = {key: value for key, value in kwargs.items() if key != "out"}
    maps = [x for x in tensors_in((args, tuple(named.values()))) if x.dim() > 1]
    if all(mark_of(x) is None for x in maps):
        return function(*args, **kwargs)
    name = base_name(function)
    if name in _MOVES:
        moved = function(*_with(args, _full_mark), **{key: _with(value, _full_mark) for key, value in named.items()})
        result = _marked_like(function(*args, **kwargs), moved)
        if isinstance(result, Tensor):
            result._convcircuits_gate = getattr(maps[0], "_convcircuits_gate", False)  # type: ignore[attr-defined]
        return result
    if len(maps) == 1 and name not in _REDUCES:
        result = function(*args, **kwargs)
        if isinstance(result, Tensor):
            set_mark(result, _passed_on(_full_mark(maps[0]), result))
            result._convcircuits_gate = name in _GATES  # type: ignore[attr-defined]
        return result
    data = _data_of_scaling(name, maps)
    if data is not None:
        mark = _full_mark(data)
        result = function(*args, **kwargs)
        set_mark(result, mark if result.shape == mark.shape else None)
        return result
    marks = [mark_of(x) for x in maps]
    if writes_to_first(function) and marks[0] is not None:
        maps[0].mul_(marks[0])
        set_mark(maps[0], None)
    silent = {key: _with(value, silenced) for key, value in named.items()}
    result = function(*_with(args, silenced), **silent, **into)
    if isinstance(result, Tensor):
        same = [mark for mark in marks if mark is not None and mark.shape == result.shape]
        set_mark(result, torch.stack(same).any(0) if len(same) == len(maps) else None)
    return result


def _data_of_scaling(name: str, maps: list[Tensor]) -> Tensor | None:
    """Tell what a product or quotient scales: not the divisor, nor the gate (from a sigmoid, or the smaller factor)."""
    if name not in _SCALINGS or len(maps) != 2:
        return None
    a, b = maps
    if "div" in name:
        return a
    for data, gate in ((a, b), (b, a)):
        if getattr(gate, "_convcircuits_gate", False) and not getattr(data, "_convcircuits_gate", False):
            return data
    return None if a.numel() == b.numel() else max(a, b, key=Tensor.numel)


def mark_of(maps: Tensor) -> Tensor | None:
    """Give which values of a map are those of live filters (bool, same shape), where that is followed."""
    return getattr(maps, "_convcircuits_live", None)


def _full_mark(maps: Tensor) -> Tensor:
    mark = mark_of(maps)
    return torch.ones_like(maps, dtype=torch.bool) if mark is None else mark.contiguous()


def set_mark(maps: Tensor, mark: Tensor | None) -> None:
    """Mark which values of a map are those of live filters."""
    maps._convcircuits_live = mark  # type: ignore[attr-defined]


def _marked_like(result: Any, moved: Any) -> Any:
    """Mark one result, or each of several, by what became of the marks."""
    if isinstance(result, Tensor):
        set_mark(result, moved)
    elif isinstance(result, (tuple, list)):
        for one, mark in zip(result, moved, strict=True):
            set_mark(one, mark)
    return result


def _passed_on(mark: Tensor, result: Tensor) -> Tensor | None:
    """Give the mark after an element-wise function or a pooling."""
    if result.shape == mark.shape:
        return mark
    if result.shape[:2] != mark.shape[:2]:
        return None
    channels = mark.flatten(2).any(2)
    return channels.reshape(*channels.shape, *[1] * (result.dim() - 2)).expand_as(result)


def _with(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Change the maps among a function's arguments."""
    if isinstance(value, Tensor):
        return change(value) if value.dim() > 1 else value
    return type(value)(_with(part, change) for part in value) if type(value) in (tuple, list) else value


def silenced(maps: Tensor) -> Tensor:
    """Set what dead filters hold to zero."""
    mark = mark_of(maps)
    return maps if mark is None else maps * mark
