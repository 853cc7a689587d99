"""Which channels of a recorded model a circuit needs: liveness forward, need backward, channel by channel.

A channel is *live* where a kept kernel on a path from the image writes it; what a dead filter holds is a constant. A
channel is *needed* where the feature reads it: a dead one only as a constant gate, for where maps meet it counts for
zero.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from convcircuits.calls import ConvCall
from convcircuits.functions import Kind, Rule, argument, base_name, in_place_of_maps, is_product, with_maps
from convcircuits.masking import Masks
from convcircuits.recording import Recording, Ref, Value

_SOFTMAX = ("softmax", "log_softmax", "softmin")


@dataclass(frozen=True)
class Cut:
    """What a circuit keeps of a recording.

    Attributes:
        live: For each value which channels are live, (channels,); which elements, where it has no axis.
        need: For each value which channels are needed, (channels,); whether it is needed, (), where it has no axis.
        conducting: For each kernel call, by the number of its value, the kept kernels that read a live channel.
    """

    live: tuple[Tensor, ...]
    need: tuple[Tensor, ...]
    conducting: dict[int, Tensor]


@dataclass(frozen=True)
class Reading:
    """How a value reads one of its inputs.

    Attributes:
        aligned: Each channel is read by the channel of the same number alone; otherwise all are read.
        silent: What dead filters hold counts for zero.
    """

    aligned: bool
    silent: bool


def reading(recording: Recording, value: Value, source: Value) -> Reading:
    """Return how a value that is no kernel call and no move reads an input."""
    rule = value.rule
    assert rule is not None
    silent = rule.kind in (Kind.JOIN, Kind.MIX, Kind.OTHER) or _over_channels(value)
    if rule.kind is Kind.REDUCE:
        silent = source.axis is None or source.axis + 1 in rule.dims
    if value.axis is None or source.axis is None or rule.kind in (Kind.MIX, Kind.OTHER):
        return Reading(False, silent)
    if rule.kind is Kind.REDUCE:
        return Reading(not silent, silent)
    place = len(value.shape) - len(source.shape) + source.axis
    aligned = place == value.axis and source.channels == value.channels and not _over_channels(value)
    return Reading(aligned, silent)


def dim_of_softmax(value: Value) -> int | None:
    """Return the dimension that a softmax goes along, from 0 (the batch); None for other functions."""
    if base_name(value.function) not in _SOFTMAX:
        return None
    dim = value.kwargs.get("dim", value.args[1] if len(value.args) > 1 else 1)
    return (1 if dim is None else int(dim)) % (len(value.shape) + 1)


def _over_channels(value: Value) -> bool:
    """Return whether a softmax goes over the channels, or over what they are mixed with."""
    dim = dim_of_softmax(value)
    return dim is not None and (value.axis is None or dim == value.axis + 1)


def cut(recording: Recording, masks: Masks | None, rows: Tensor | None) -> Cut:
    """Find what a circuit keeps.

    Args:
        recording: What the model does.
        masks: The circuit's masks; None keeps the full model, in which everything is live.
        rows: Channels of the last value that the feature reads; None for all.
    """
    live: list[Tensor] = []
    conducting: dict[int, Tensor] = {}
    for value in recording.values:
        if value.call is not None:
            conducting[value.number] = _conducting(recording, value, masks, live)
            kept = conducting[value.number].any(1)
            live.append(kept if masks is not None and masks.silent else torch.ones_like(kept))
        else:
            live.append(_live(recording, value, live))
    return Cut(tuple(live), tuple(_needed(recording, rows, live, conducting)), conducting)


def _needed(
    recording: Recording, rows: Tensor | None, live: Sequence[Tensor], conducting: dict[int, Tensor]
) -> list[Tensor]:
    """Find what the feature needs of each value, with one channel where a constant needs a map's size."""
    need = [torch.zeros(v.channels if v.axis is not None else (), dtype=torch.bool) for v in recording.values]
    last = recording.values[-1]
    if last.axis == 0:
        wanted = torch.ones(last.channels, dtype=torch.bool)
        if rows is not None:
            wanted = torch.zeros_like(wanted).index_fill(0, rows.cpu(), True)
        need[-1] = wanted & live[-1]
    else:
        need[-1] = torch.ones_like(need[-1])
    for value in reversed(recording.values):
        if bool(need[value.number].any()):
            _read(recording, value, live, need, conducting)
    return need


def full(value: Value, channels: Tensor) -> Tensor:
    """Spread one bool per channel over a value's elements, for one image."""
    return value.along_axis(channels).expand(value.shape)


def input_channels(value: Value, source: Value, elements: Tensor) -> Tensor:
    """Turn bools for a kernel call's input, by channel or element, into bools by (group, channel or block)."""
    call = value.call
    assert call is not None
    if isinstance(call, ConvCall):
        channels = elements if source.axis == 0 else full(source, elements).flatten(1).any(1)
        return channels.reshape(call.groups, -1)
    last = len(source.shape) - 1
    values = elements if source.axis == last else full(source, elements).reshape(-1, source.shape[-1]).any(0)
    return values.reshape(1, call.blocks, -1).any(2)


def _conducting(recording: Recording, value: Value, masks: Masks | None, live: Sequence[Tensor]) -> Tensor:
    call, source = value.call, recording.values[value.inputs[0]]
    assert call is not None
    g, o, i = call.kernels.shape[:3]
    mask = None if masks is None else masks.kernels.get(call.layer)
    if mask is None:
        mask = torch.ones(g * o, i, dtype=torch.bool)
    else:
        mask = (mask if call.rows is None else mask[call.rows]).cpu()
    if masks is None or not masks.silent:
        return mask
    reads = input_channels(value, source, live[source.number])
    return (mask.reshape(g, o, i) & reads[:, None]).flatten(0, 1)


def _live(recording: Recording, value: Value, live: Sequence[Tensor]) -> Tensor:
    if not value.inputs:
        return torch.ones(value.channels, dtype=torch.bool)  # the image
    sources = [recording.values[n] for n in value.inputs]
    if all(bool(live[s.number].all()) for s in sources) and not (value.move and _has_zeros(value)):
        return torch.ones(value.channels if value.axis is not None else value.shape, dtype=torch.bool)
    if value.move is not None and value.move.channels is not None:
        laid = torch.cat([live[s] for s in value.move.sources])
        return laid[value.move.channels.clamp_min(0)] & (value.move.channels >= 0)
    rule = value.rule
    assert rule is not None
    if all(reading(recording, value, s).aligned for s in sources) and value.move is None:
        if rule.kind in (Kind.WITHIN, Kind.REDUCE):
            return live[sources[0].number]
        if rule.kind is Kind.SCALE:
            return live[sources[rule.data].number]
    marks = [full(s, live[s.number]).expand(2, *s.shape) for s in sources]
    if rule.kind is Kind.OTHER and value.move is None:
        mark = _measured(value, sources, marks)
        return mark if value.axis is None else mark.movedim(value.axis, 0).reshape(value.channels, -1).any(1)
    after = marks_after(
        rule,
        value.function,
        (value.args, value.kwargs),
        _again(value),
        marks,
        torch.empty(2, *value.shape, device="meta"),
    )
    if value.part is not None and after is not None:
        after = after[value.part]
    mark = torch.ones(value.shape, dtype=torch.bool) if after is None else after[0]
    if value.axis is None:
        return mark
    return mark.movedim(value.axis, 0).reshape(value.channels, -1).any(1)


def _measured(value: Value, sources: Sequence[Value], marks: Sequence[Tensor]) -> Tensor:
    """Try a function that is not known: which slices of its result, along channels, change when live filters do."""
    generator, results = torch.Generator().manual_seed(0), []
    for _ in range(4):
        drawn = []
        for source, mark in zip(sources, marks, strict=True):
            values = torch.randn(mark.shape, generator=generator) * mark
            drawn.append(values > 0 if source.dtype is torch.bool else values.to(source.dtype))
        args, kwargs = with_maps((value.args, dict(value.kwargs)), _in_turn(drawn), Ref)
        result = value.function(*args, **kwargs)
        results.append(result if value.part is None else result[value.part])
    moved = torch.zeros(results[0].shape, dtype=torch.bool)
    for result in results[1:]:
        moved |= (result != results[0]) & ~(result.isnan() & results[0].isnan())
    slices = moved.movedim(1, 0).flatten(1).any(1) if moved.dim() > 1 else moved.any()
    return slices.reshape(-1, *[1] * (moved.dim() - 2)).expand(moved.shape[1:])


def _in_turn(values: Sequence[Tensor]) -> Callable[[Any], Tensor]:
    rest = iter(values)
    return lambda _: next(rest)


def _has_zeros(value: Value) -> bool:
    channels = None if value.move is None else value.move.channels
    return channels is not None and bool((channels < 0).any())


def _again(value: Value) -> Callable[[Sequence[Tensor]], Any]:
    def again(marks: Sequence[Tensor]) -> Any:
        given = in_place_of_maps((value.args, value.kwargs), marks, lambda x: isinstance(x, Ref), torch.bool)
        return value.function(*given[0], **given[1])

    return again


def _read(
    recording: Recording,
    value: Value,
    live: Sequence[Tensor],
    need: list[Tensor],
    conducting: dict[int, Tensor],
) -> None:
    """Mark what a needed value needs of its inputs."""
    if value.call is not None:
        source = recording.values[value.inputs[0]]
        read = read_by(value, need[value.number], conducting[value.number])
        channel_dim = 0 if isinstance(value.call, ConvCall) else len(source.shape) - 1
        if source.axis != channel_dim:
            need[source.number] = torch.ones_like(need[source.number])
            return
        if not bool(read.any()) and not is_point(value):
            read[0, 0] = True  # a constant still has the size of a map
        if not isinstance(value.call, ConvCall):
            read = read.repeat_interleave(source.channels // read.shape[1], 1)
        need[source.number] = need[source.number] | read.flatten()
    elif value.move is not None:
        sources = value.move.sources
        if value.move.form is None:
            for n in value.inputs:
                need[n] = torch.ones_like(need[n])
            return
        assert value.move.channels is not None
        parts = [need[s] for s in sources]
        laid = torch.cat([torch.zeros_like(p) for p in parts])
        wanted = value.move.channels[need[value.number]]
        laid[wanted[wanted >= 0]] = True
        for s, part in zip(sources, torch.split(laid, [len(p) for p in parts]), strict=True):
            need[s] = need[s] | part
    else:
        for n in value.inputs:
            source = recording.values[n]
            how = reading(recording, value, source)
            if how.aligned:
                wanted = need[value.number] & live[n] if how.silent else need[value.number]
                if not bool(wanted.any()) and not _zero_of_others(recording, value, source, need[value.number], live):
                    wanted = need[value.number].nonzero()[0] == torch.arange(source.channels)
                need[n] = need[n] | wanted
            elif source.axis is not None and how.silent:
                need[n] = need[n] | live[n]
            else:
                need[n] = torch.ones_like(need[n])


def _zero_of_others(recording: Recording, value: Value, source: Value, wanted: Tensor, live: Sequence[Tensor]) -> bool:
    """Return whether an input that is dead where it is wanted can be had as zeros of another input's shape."""
    others = [recording.values[n] for n in value.inputs if n != source.number]
    return any(
        other.shape == value.shape
        and reading(recording, value, other).aligned
        and bool((wanted & live[other.number]).any())
        for other in others
    )


def is_point(value: Value) -> bool:
    """Return whether a value has one position, so that a constant in its place needs no map's size."""
    return value.channels == torch.Size(value.shape).numel()


def read_by(value: Value, rows: Tensor, conducting: Tensor) -> Tensor:
    """Return which input channels some rows of a kernel call read: (groups, channels or blocks)."""
    call = value.call
    assert call is not None
    return (conducting & rows[:, None]).reshape(call.groups, -1, conducting.shape[1]).any(1)


# ---------------------------------------- marks of elements


def marks_after(
    rule: Rule,
    function: Any,
    given: tuple[Sequence[Any], Mapping[str, Any]],
    again: Callable[[Sequence[Tensor]], Any],
    marks: Sequence[Tensor],
    result: Any,
) -> Any:
    """Return the marks of a call's results: for each a bool tensor of its shape, or None where all of it is live.

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
    if base_name(function) in _SOFTMAX:
        return (
            marks[0].any(given[1].get("dim", given[0][1] if len(given[0]) > 1 else 1), keepdim=True).expand_as(marks[0])
        )
    if rule.kind is Kind.SCALE:
        data = marks[rule.data]
        return data if data.shape == result.shape else None
    if rule.kind is Kind.JOIN:
        spread = torch.stack([mark.expand(result.shape) for mark in marks])
        return spread.all(0) if is_product(function) else spread.any(0)
    return _passed_on(marks[0], result)


def _passed_on(mark: Tensor, result: Tensor) -> Tensor | None:
    """Return the mark after a function that stays within channels: element-wise, or a pooling."""
    if result.shape == mark.shape:
        return mark
    if result.shape[:2] != mark.shape[:2]:
        return None
    channels = mark.flatten(2).any(2)
    return channels.reshape(*channels.shape, *[1] * (result.dim() - 2)).expand_as(result)


def _mixed(function: Any, given: tuple[Sequence[Any], Mapping[str, Any]], mark: Tensor) -> Tensor:
    """Return the mark after a normalisation over channels.

    Where a mean is subtracted, a dead channel holds that of the live ones. Where only a norm divides, it stays zero.
    """
    if base_name(function) == "layer_norm":
        over = len(argument(function, *given, "normalized_shape"))
        return mark.any(tuple(range(-over, 0)), keepdim=True).expand_as(mark)
    if base_name(function) == "group_norm":
        groups = mark.reshape(len(mark), argument(F.group_norm, *given, "num_groups"), -1)
        return groups.any(2, keepdim=True).expand_as(groups).reshape(mark.shape)
    return mark
