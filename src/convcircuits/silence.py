"""How a dead filter falls silent: follow which values of each map are those of live filters, and act where maps meet.

A dead filter has no kept kernel; what it holds is its bias, and the shift of a BatchNorm after it. Each map carries a
mark: a bool tensor of its shape, False where a value is a dead filter's.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from convcircuits.functions import (
    Kind,
    Rule,
    argument,
    base_name,
    in_place_of_maps,
    is_product,
    of_image,
    rule_of,
    set_gate,
    tensors_in,
    with_maps,
    writes_to_first,
)

_MEETINGS = (Kind.JOIN, Kind.MIX, Kind.OTHER)


def follow(function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Compute a function that is no kernel call, and follow which values are a dead filter's.

    Functions that only move values move their marks alike. Where maps meet (additions above all), what dead filters
    hold becomes zero; a gate, the smaller factor of a product, keeps it.
    """
    into = {"out": kwargs["out"]} if "out" in kwargs else {}
    named = {key: value for key, value in kwargs.items() if key != "out"}
    maps = [x for x in tensors_in((args, named)) if _is_map(x)]
    if all(mark_of(x) is None for x in maps):
        return function(*args, **kwargs)
    rule, marks = rule_of(function, args, named, maps), [_full_mark(x) for x in maps]
    if not meets(rule, marks):
        result = function(*args, **kwargs)
    else:
        if writes_to_first(function):
            maps[0].mul_(marks[0])
            set_mark(maps[0], None)
        silent = with_maps((args, named), lambda x: silenced(x) if _is_map(x) else x)
        result = function(*silent[0], **silent[1], **into)

    def again(others: Sequence[Tensor]) -> Any:
        moved = in_place_of_maps((args, named), others, _is_map, torch.bool)
        return function(*moved[0], **moved[1])

    after = marks_after(rule, function, (args, named), again, marks, result)
    for one, mark in zip(tensors_in(result), tensors_in(after), strict=False):
        set_mark(one, mark)
    if after is None:
        for one in tensors_in(result):
            set_mark(one, None)
    set_gate(result, rule.gate)
    return result


def meets(rule: Rule, marks: Sequence[Tensor]) -> bool:
    """Tell whether what dead filters hold would be added to live ones, so that it must be zero."""
    if rule.kind is Kind.REDUCE:
        least, most = marks[0].amin(rule.dims), marks[0].amax(rule.dims)
        return bool((least != most).any())
    return rule.kind in _MEETINGS


def marks_after(
    rule: Rule,
    function: Any,
    given: tuple[Sequence[Any], Mapping[str, Any]],
    again: Callable[[Sequence[Tensor]], Any],
    marks: Sequence[Tensor],
    result: Any,
) -> Any:
    """Give the marks of a call's results: for each a bool tensor of its shape, or None where all of it is live.

    Args:
        rule: What the call does.
        function: The function.
        given: Its arguments and keyword arguments.
        again: Calls it once more with other tensors in place of its maps.
        marks: The marks of its maps.
        result: What it gave.
    """
    if rule.kind is Kind.MOVE:
        return again(marks)
    if not isinstance(result, Tensor) or rule.kind is Kind.OTHER:
        return None
    if rule.kind is Kind.REDUCE:
        moved = marks[0].any(rule.dims, keepdim=True) if rule.dims else marks[0]
        return moved.reshape(result.shape) if moved.numel() == result.numel() else None
    if rule.kind is Kind.MIX:
        return _mixed(function, given, marks[0])
    if rule.kind is Kind.SCALE:
        data = marks[rule.data]
        return data if data.shape == result.shape else None
    if rule.kind is Kind.JOIN:
        spread = torch.stack([mark.expand(result.shape) for mark in marks])
        return spread.all(0) if is_product(function) else spread.any(0)
    return _passed_on(marks[0], result)


def mark_of(maps: Tensor) -> Tensor | None:
    """Give which values of a map are those of live filters (bool, same shape), where that is followed."""
    return getattr(maps, "_convcircuits_live", None)


def set_mark(maps: Tensor, mark: Tensor | None) -> None:
    """Mark which values of a map are those of live filters."""
    maps._convcircuits_live = mark  # type: ignore[attr-defined]


def silenced(maps: Tensor) -> Tensor:
    """Set what dead filters hold to zero."""
    mark = mark_of(maps)
    return maps if mark is None else maps * mark


def _is_map(x: Any) -> bool:
    return isinstance(x, Tensor) and of_image(x) and x.dim() > 1


def _full_mark(maps: Tensor) -> Tensor:
    mark = mark_of(maps)
    return torch.ones_like(maps, dtype=torch.bool) if mark is None else mark.contiguous()


def _passed_on(mark: Tensor, result: Tensor) -> Tensor | None:
    """Give the mark after a function that stays within channels: element-wise, or a pooling."""
    if result.shape == mark.shape:
        return mark
    if result.shape[:2] != mark.shape[:2]:
        return None
    channels = mark.flatten(2).any(2)
    return channels.reshape(*channels.shape, *[1] * (result.dim() - 2)).expand_as(result)


def _mixed(function: Any, given: tuple[Sequence[Any], Mapping[str, Any]], mark: Tensor) -> Tensor:
    """Give the mark after a normalisation over channels.

    Where a mean is subtracted, a dead channel holds that of the live ones. Where only a norm divides, it stays zero.
    """
    if base_name(function) == "layer_norm":
        over = len(argument(function, *given, "normalized_shape"))
        return mark.any(tuple(range(-over, 0)), keepdim=True).expand_as(mark)
    if base_name(function) == "group_norm":
        groups = mark.reshape(len(mark), argument(F.group_norm, *given, "num_groups"), -1)
        return groups.any(2, keepdim=True).expand_as(groups).reshape(mark.shape)
    return mark
