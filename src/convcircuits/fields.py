"""Receptive fields: the box of the image that each position of a map depends on, from one run of the model itself.

The model runs once on four maps in place of images: minus the first row, the last row, minus the first column and the
last column of the box that a value depends on. Whatever joins values takes the largest of each, which is the box
around them all. So any graph is followed, channel by channel and position by position, and the weights' values play
no part. Padding counts as outside: the boxes of a padded map go on beyond its border as they do inside, and may leave
the image.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from convcircuits.calls import ConvCall, KernelCall
from convcircuits.errors import ConvCircuitsError
from convcircuits.functions import (
    Kind,
    argument,
    base_name,
    depends_on_image,
    in_place_of_maps,
    of_image,
    rule_of,
    tensors_in,
    with_maps,
    writes_to_first,
)
from convcircuits.masking import Subject

Reading = tuple[str, int, int] | int | None
"""A map: (layer, call, channel) is what that kernel call of the layer (from 0) reads, one channel or, of a flattened
map, one block, without padding that the model adds before the call; a number is a channel of the feature's layer that
the feature reads; None is the feature itself (of several units the largest, position by position)."""

# Functions that join neighbours; those that choose or scale positions as their arguments say; those over channels.
_POOLS = {"max_pool2d", "max_pool2d_with_indices", "avg_pool2d"}
_RESIZES = {"adaptive_avg_pool2d", "adaptive_max_pool2d", "adaptive_max_pool2d_with_indices", "lp_pool2d"}
_RESIZES |= {"interpolate", "upsample", "upsample_nearest", "upsample_bilinear"}
_ALONG_DIM = {"softmax": -1, "log_softmax": -1, "normalize": 1}
_NOWHERE = -(2.0**20)  # of a constant; whole numbers of this size are exact in float32


class Box(NamedTuple):
    """A part of an image, in pixels; it may leave the image."""

    top: int
    left: int
    height: int
    width: int


@dataclass(frozen=True)
class Field:
    """The receptive fields of a map's positions.

    Attributes:
        rows: For each row of the map the first row of the image and the one after the last.
        columns: Likewise.
        image: (H, W) of the image.
        padding: Rows of padding above and below the map, columns left and right of it, in what a call reads.
    """

    rows: tuple[tuple[int, int], ...]
    columns: tuple[tuple[int, int], ...]
    image: tuple[int, int]
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)

    @property
    def shape(self) -> tuple[int, int]:
        """(h, w) of the map."""
        return len(self.rows), len(self.columns)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of a position's field, in pixels; the largest where they differ."""
        return _longest(self.rows), _longest(self.columns)

    def unpadded(self) -> tuple[Tensor, Tensor]:
        """Return which rows and which columns of the map see the image alone, bool (h,) and (w,).

        These are at least a quarter of each, for which those count that see the least padding; all, along an axis
        where fields are as long as the image.
        """
        return _unpadded(self.rows, self.image[0]), _unpadded(self.columns, self.image[1])

    def interior(self) -> tuple[Tensor, Tensor, bool]:
        """Return which rows and which columns of the map see the image alone, bool (h,) and (w,), and nothing else.

        Where there are none along an axis, these are its central ones: the quarter of it whose fields leave the image
        least far on either side, with all that leave it as little. The last value tells whether all are inside.
        """
        beyond = [
            torch.tensor([max(0, -first, end - length) for first, end in spans])
            for spans, length in zip((self.rows, self.columns), self.image, strict=True)
        ]
        rows, columns = (outside <= outside.sort().values[(len(outside) - 1) // 4] for outside in beyond)
        inside = [outside == 0 for outside in beyond]
        exact = all(bool(axis.any()) for axis in inside)
        return (
            inside[0] if inside[0].any() else rows,
            inside[1] if inside[1].any() else columns,
            exact,
        )

    def box(self, row: int, column: int) -> Box:
        """Return the field of a position; along an axis where fields are as long as the image, all of it."""
        spans = [
            (0, length) if _longest(axis) >= length else axis[place]
            for axis, place, length in zip((self.rows, self.columns), (row, column), self.image, strict=True)
        ]
        (top, bottom), (left, right) = spans
        return Box(top, left, bottom - top, right - left)


def receptive_fields(subject: Subject, readings: Sequence[Reading], *, local: bool = False) -> dict[Reading, Field]:
    """Tell the part of the image that each position of some maps depends on, in the full model.

    Exact for kernel calls, poolings, paddings, resizing and whatever is element-wise, moves values, or normalises. Of
    a function that the catalogue of functions does not know, each value counts as depending on all that it was given.

    Args:
        subject: The feature of the model, surveyed on images of the size that is meant.
        readings: The maps.
        local: Leave out what reaches all positions of a map alike, as the gates of squeeze-excitation; else these
            make every field after them the whole image.

    Returns:
        The field of each reading, in their order.

    Raises:
        ConvCircuitsError: If there is no such map, or the image plays no part in it.
    """
    channels, height, width = subject.survey.input_shape
    run = _Run(readings, local, subject.network.dtype)
    y = torch.arange(height, dtype=torch.float32)[:, None].expand(height, width)
    x = torch.arange(width, dtype=torch.float32).expand(height, width)
    boxes = torch.stack([-y, y, -x, x])[:, None].expand(4, channels, height, width).to(subject.network.device)
    with torch.no_grad():
        output = subject.network.run(subject.feature, boxes, run.kernel, other=run.other)
    output = output if output.dim() == 4 else output[..., None, None]
    run.found |= {channel: output[:, channel] for channel in subject.rows.tolist()}
    run.found[None] = output[:, subject.rows].amax(1)
    known: dict[Any, Field] = {}
    fields = {}
    for reading in readings:
        if reading not in run.found:
            raise no_such_map(reading)
        padding = run.padding.get(reading, (0, 0, 0, 0))
        fields[reading] = _field(run.found[reading], (height, width), padding, known)
        if fields[reading].size[0] < 1:
            raise ConvCircuitsError(f"The map {reading} does not depend on the image, so it has no receptive field.")
    return fields


def maps_read(call: KernelCall, channels: Tensor, shape: tuple[int, int], padding: tuple[int, int, int, int]) -> Tensor:
    """Return some channels of what a call reads, padding cut off, a flattened map's folded back: (n, r, h, w).

    Raises:
        ConvCircuitsError: If they are not of that shape.
    """
    if isinstance(call, ConvCall):
        top, bottom, left, right = padding
        maps = call.x.index_select(1, channels)
        maps = maps[:, :, top : maps.shape[2] - bottom, left : maps.shape[3] - right]
        fits = maps.shape[2:] == shape
    elif call.x.dim() == 2:
        maps = call.x.reshape(len(call.x), call.blocks, -1).index_select(1, channels)
        fits = maps.shape[2] == shape[0] * shape[1]
    else:
        maps = call.x.index_select(-1, channels).movedim(-1, 1)
        fits = maps.shape[2] == shape[0] and maps[0, 0].numel() == shape[0] * shape[1]
    if not fits:
        raise ConvCircuitsError(
            f"{call.layer} reads maps of {tuple(call.x.shape[1:])}, where {shape[0]} x {shape[1]} positions were "
            "expected; give images of the one size that the feature was surveyed on."
        )
    return maps.reshape(*maps.shape[:2], *shape)


def channels_of(readings: Sequence[Reading]) -> dict[tuple[str, int], dict[Reading, int]]:
    """Sort readings of kernel calls by (layer, call): each reading's channel."""
    sorted_: dict[tuple[str, int], dict[Reading, int]] = {}
    for reading in readings:
        if isinstance(reading, tuple):
            layer, call, channel = reading
            sorted_.setdefault((layer, call), {})[reading] = channel
    return sorted_


def no_such_map(reading: Reading) -> ConvCircuitsError:
    """Say that a run meets no such map."""
    return ConvCircuitsError(
        f"On the way to the feature there is no map {reading!r}; give (layer, call, channel) of what a kernel call "
        "reads, a channel that the feature itself reads, or None for the feature."
    )


class _Run:
    """Compute boxes in place of values."""

    def __init__(self, readings: Sequence[Reading], local: bool, dtype: torch.dtype) -> None:
        self.wanted, self.local, self.dtype = channels_of(readings), local, dtype
        self.calls: Counter[str] = Counter()
        self.found: dict[Reading, Tensor] = {}
        self.padding: dict[Reading, tuple[int, int, int, int]] = {}

    def kernel(self, call: KernelCall) -> Tensor:
        x, number = call.x, self.calls[call.layer]
        self.calls[call.layer] += 1
        padding = getattr(x, "_convcircuits_padding", (0, 0, 0, 0))
        if isinstance(call, ConvCall):
            count, (top, bottom, left, right) = x.shape[1], padding
            shape = (x.shape[2] - top - bottom, x.shape[3] - left - right)
        elif x.dim() == 2:
            count, shape = call.blocks, getattr(x, "_convcircuits_map", (1, x.shape[1] // call.blocks))
        else:
            count, shape = x.shape[-1], (x.shape[1], x[0, 0, ..., 0].numel())
        for reading, channel in self.wanted.get((call.layer, number), {}).items():
            if 0 <= channel < count:
                self.found[reading] = maps_read(call, torch.tensor([channel], device=x.device), shape, padding)[:, 0]
                self.padding[reading] = padding
        if not isinstance(call, ConvCall):
            return x.amax(-1, keepdim=True).expand(*x.shape[:-1], len(call.weight)).clone()
        grouped = x.reshape(4, call.groups, -1, *x.shape[2:]).amax(2)
        kernel = (call.weight.shape[2], call.weight.shape[3])
        joined = _joined(grouped, kernel, call.stride, call.padding, call.dilation)
        return joined.repeat_interleave(len(call.weight) // call.groups, 1)

    def other(self, function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        maps = [x for x in tensors_in((args, kwargs)) if of_image(x) and x.is_floating_point()]
        if not maps or not depends_on_image(function, args, kwargs):
            return function(*args, **kwargs)
        result = self.boxes(function, args, kwargs, maps)
        x = maps[0]
        for one in tensors_in(result):
            if one.dim() == 2 and x.dim() == 4 and one.shape[1] == x[0].numel():
                one._convcircuits_map = tuple(x.shape[2:])  # type: ignore[attr-defined]
            elif one.shape == x.shape and hasattr(x, "_convcircuits_map"):
                one._convcircuits_map = x._convcircuits_map  # type: ignore[attr-defined]
        return result

    def boxes(self, function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], maps: list[Tensor]) -> Any:
        """Return the boxes of what a function computes."""
        name, x = base_name(function), maps[0]
        if name == "pad":
            return _padded(x, kwargs.get("pad", args[1] if len(args) > 1 else ()))
        rule = rule_of(function, args, kwargs, maps)
        if rule.kind is Kind.MOVE or name in ("get", "setitem"):
            args, kwargs = with_maps((args, kwargs), _constant_nowhere)
            return function(*args, **kwargs)
        # Only the form of the result is asked; the function may overwrite what it gets, and wants the model's dtype.
        copied = with_maps((args, kwargs), lambda x: x.to(self.dtype, copy=True) if x.is_floating_point() else x)
        like = function(*copied[0], **copied[1])
        if not tensors_in(like):
            return like
        if name in _POOLS:
            return _with_first(like, lambda form: _pooled(name, args, kwargs, x, form))
        if name in _RESIZES:
            return _with_first(like, lambda _: _resized(function, args, kwargs, x))
        if rule.kind is Kind.REDUCE and 0 not in rule.dims:
            return _with_first(like, lambda form: x.amax(rule.dims).reshape(form.shape))
        if rule.kind in (Kind.JOIN, Kind.SCALE):
            result = self.together(maps, like)
            return x.copy_(result) if writes_to_first(function) and args[0] is x else result
        if rule.kind is not Kind.OTHER and isinstance(like, Tensor) and like.shape == x.shape:
            return _normalised(function, args, kwargs, x)
        return _with_first(like, lambda form: _all_of(maps, form))

    def together(self, maps: list[Tensor], like: Tensor) -> Tensor:
        """Join maps element by element."""
        spread = [x for x in maps if x.dim() > 3 and x.shape[-2:].numel() > 1]
        chosen = spread if self.local and spread else maps
        return torch.stack([x.expand(like.shape) for x in chosen]).amax(0)


def _joined(
    x: Tensor,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    out: Sequence[int] | None = None,
) -> Tensor:
    """Return the boxes around windows of a map, of which there are as many as fit, or ``out`` along each axis."""
    pads = []
    for axis, length in enumerate(x.shape[2:]):
        reach = dilation[axis] * (kernel[axis] - 1)
        count = out[axis] if out else (length + 2 * padding[axis] - reach - 1) // stride[axis] + 1
        pads.append((padding[axis], (count - 1) * stride[axis] - padding[axis] + reach - (length - 1)))
    x = F.max_pool2d(_extended(x, pads), (kernel[0], 1), (stride[0], 1), 0, (dilation[0], 1))
    return F.max_pool2d(x, (1, kernel[1]), (1, stride[1]), 0, (1, dilation[1]))


def _extended(x: Tensor, pads: Sequence[tuple[int, int]]) -> Tensor:
    """Go on beyond the border as the boxes do inside, by (before, after) rows and columns; below zero, cut off."""
    for dim, (before, after) in zip((-2, -1), pads, strict=True):
        last = x.shape[dim] - 1
        place = torch.arange(-before, last + 1 + after, device=x.device)
        inside = place.clamp(0, last)
        beyond = place - inside
        edge = x.index_select(dim, inside)
        step = edge - x.index_select(dim, (inside - beyond.sign()).clamp(0, last))
        x = edge + step * (beyond.abs() if dim == -1 else beyond.abs()[:, None])
    return x


def _padded(x: Tensor, pad: Sequence[int]) -> Tensor:
    pairs = [(pad[i], pad[i + 1]) for i in range(0, len(pad), 2)] + [(0, 0)] * (2 - len(pad) // 2)
    further = [n for pair in pairs[2:] for n in pair]
    padded = F.pad(_extended(x, (pairs[1], pairs[0])), (0, 0, 0, 0, *further), value=_NOWHERE)
    around = tuple(max(0, n) for pair in (pairs[1], pairs[0]) for n in pair)
    padded._convcircuits_padding = around  # type: ignore[attr-defined]
    return padded


def _pooled(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], x: Tensor, form: Tensor) -> Tensor:
    names = ("kernel_size", "stride", "padding", "dilation")[: 3 if name == "avg_pool2d" else 4]
    given = {**dict(zip(names, args[1:], strict=False)), **kwargs}
    kernel = _pair(given["kernel_size"])
    stride = _pair(given.get("stride") or kernel)
    padding, dilation = _pair(given.get("padding", 0)), _pair(given.get("dilation", 1))
    return _joined(x, kernel, stride, padding, dilation, form.shape[2:])


def _resized(function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], x: Tensor) -> Tensor:
    """Ask the function itself, axis by axis, which rows and columns its results depend on: of each the outermost."""
    source, (height, width) = x, x.shape[2:]
    for dim, length in ((2, height), (3, width)):
        one_hot = torch.eye(length, device=x.device)
        probe = (one_hot[:, :, None] if dim == 2 else one_hot[:, None]).expand(length, height, width)[None]
        asked_args, asked_kwargs = in_place_of_maps((args, kwargs), [probe], lambda given: given is source, probe.dtype)
        response = tensors_in(function(*asked_args, **asked_kwargs))[0][0].abs().amax(4 - dim)
        reads = response > 1e-6  # (in, out)
        first, last = reads.int().argmax(0), length - 1 - reads.flip(0).int().argmax(0)
        x = torch.maximum(x.index_select(dim, first), x.index_select(dim, last))
    return x


def _normalised(function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], x: Tensor) -> Tensor:
    """Return the boxes of an element-wise function, or of one over channels or positions that keeps the shape."""
    name = base_name(function)
    if name in _ALONG_DIM:
        place = 2 if name == "normalize" else 1
        dim = kwargs.get("dim", args[place] if len(args) > place else None)
        return x.amax(_ALONG_DIM[name] if dim is None else dim, keepdim=True).expand_as(x).clone()
    if name in ("layer_norm", "rms_norm"):
        over = len(kwargs.get("normalized_shape", args[1] if len(args) > 1 else x.shape[-1:]))
        return x.amax(tuple(range(-over, 0)), keepdim=True).expand_as(x).clone()
    if name == "group_norm":
        grouped = x.reshape(len(x), argument(function, args, kwargs, "num_groups"), -1)
        return grouped.amax(2, keepdim=True).expand_as(grouped).reshape(x.shape)
    if name == "local_response_norm":
        size = argument(function, args, kwargs, "size")
        flat = F.pad(x.flatten(2)[:, None], (0, 0, size // 2, (size - 1) // 2), value=_NOWHERE)
        return F.max_pool2d(flat, (size, 1), 1)[:, 0].reshape(x.shape)
    statistics = {"instance_norm": "use_input_stats", "batch_norm": "training"}.get(name)
    if statistics and argument(function, args, kwargs, statistics):
        return x.amax((-2, -1), keepdim=True).expand_as(x).clone()
    return x.clone()


def _all_of(maps: Sequence[Tensor], form: Tensor) -> Tensor:
    """Let every value depend on all of the maps."""
    if not form.dim() or len(form) != 4:
        raise ConvCircuitsError("The model computes across images on the way to the feature: no receptive field.")
    largest = torch.stack([x.flatten(1).amax(1) for x in maps]).amax(0)
    return largest.reshape(4, *[1] * (form.dim() - 1)).expand(form.shape).clone()


def _with_first(like: Any, boxes: Callable[[Tensor], Tensor]) -> Any:
    """Return boxes in place of a result, or of the first part of (values, indices)."""
    if isinstance(like, Tensor):
        return boxes(like)
    return (boxes(like[0]), *like[1:])


def _constant_nowhere(x: Tensor) -> Tensor:
    return torch.full_like(x, _NOWHERE) if x.is_floating_point() and not of_image(x) else x


def _field(boxes: Tensor, image: tuple[int, int], padding: tuple[int, int, int, int], known: dict[Any, Field]) -> Field:
    """Read the boxes of a map's positions, (4, h, w); one object for all maps that are alike."""
    top, bottom = boxes[:2].amax(2)
    left, right = boxes[2:].amax(1)
    spans = torch.cat([-top, bottom + 1, -left, right + 1]).int().cpu()
    key = (boxes.shape, padding, spans.numpy().tobytes())
    if key not in known:
        height, width = boxes.shape[1:]
        ends = spans.tolist()
        rows = tuple(zip(ends[:height], ends[height : 2 * height], strict=True))
        columns = tuple(zip(ends[2 * height : -width], ends[-width:], strict=True))
        known[key] = Field(rows, columns, image, padding)
    return known[key]


def _unpadded(spans: Sequence[tuple[int, int]], length: int) -> Tensor:
    if _longest(spans) >= length:
        return torch.ones(len(spans), dtype=torch.bool)
    outside = torch.tensor([max(0, -first) + max(0, end - length) for first, end in spans])
    return outside <= outside.sort().values[(len(spans) - 1) // 4]


def _longest(spans: Sequence[tuple[int, int]]) -> int:
    return max(end - first for first, end in spans)


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[-1]))
