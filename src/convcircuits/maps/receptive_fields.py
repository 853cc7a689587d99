"""Receptive fields: the box of the image that each position of a map depends on, followed through the model's graph.

Boxes take the place of values in two walks through the graph, one for rows and one for columns. In each, the first of
two images holds the first row (or column) that a value depends on, the second image the last. Whatever joins values
takes the outermost, which is the box around them all. So any graph can be followed, channel by channel and position by
position, whatever the weights' values. Padding counts as outside: the boxes of a padded map continue beyond its border
as they do inside, and may extend beyond the image.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from convcircuits.errors import ConvCircuitsError
from convcircuits.network.calls import ConvCall, KernelCall
from convcircuits.network.graph import Node
from convcircuits.network.masking import Subject
from convcircuits.network.operations import argument
from convcircuits.network.reach import Paths

Reading = tuple[str, int, int] | int | None
"""A map. (layer, call, channel) is one channel that a kernel call of the layer (from 0) reads, or one block of a
flattened map, without padding that the model adds before the call. A number is a channel of the feature's layer that
the feature reads. None is the feature itself (for several units the largest, position by position)."""

Padding = tuple[int, int, int, int]  # rows above and below, columns left and right

# A first row r is stored as _BASE - r and a last row as _BASE + r: the larger is the further out, and the zeros that
# operations fill in lie inside of everything. Whole numbers of this size are exact in float32.
_BASE = 2**20


class Box(NamedTuple):
    """A part of an image, in pixels; it may extend beyond the image."""

    top: int
    left: int
    height: int
    width: int


@dataclass(frozen=True)
class Field:
    """The receptive fields of a map's positions.

    Attributes:
        rows: For each row of the map, the first row of the image and the one after the last.
        columns: The same for columns.
        image: (H, W) of the image.
        padding: Rows of padding above and below the map and columns left and right of it, in what a call reads.
    """

    rows: tuple[tuple[int, int], ...]
    columns: tuple[tuple[int, int], ...]
    image: tuple[int, int]
    padding: Padding = (0, 0, 0, 0)

    @property
    def shape(self) -> tuple[int, int]:
        """(h, w) of the map."""
        return len(self.rows), len(self.columns)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of a position's field, in pixels; the largest if they differ."""
        return _longest(self.rows), _longest(self.columns)

    def unpadded(self) -> Tensor:
        """Return which positions of the map see no padding, bool (h, w).

        These are at least a quarter of its rows and columns: if fewer see no padding, those that see the least. Along
        an axis where fields are as long as the image, all count.
        """
        return _unpadded(self.rows, self.image[0])[:, None] & _unpadded(self.columns, self.image[1])

    def box(self, row: int, column: int) -> Box:
        """Return the field of a position; along an axis where fields are as long as the image, the whole axis."""
        (top, bottom), (left, right) = (
            _seen(axis, length)[place]
            for axis, place, length in zip((self.rows, self.columns), (row, column), self.image, strict=True)
        )
        return Box(top, left, bottom - top, right - left)

    def spans(self) -> tuple[Tensor, Tensor]:
        """Return where ``box`` begins and ends for each row of the map, int64 (h, 2), and for each column, (w, 2)."""
        rows, columns = (
            torch.tensor(_seen(axis, length)).reshape(-1, 2)
            for axis, length in zip((self.rows, self.columns), self.image, strict=True)
        )
        return rows, columns

    def boxes(self) -> Tensor:
        """Return ``box`` of all positions, int64 (h, w, 4)."""
        (top, bottom), (left, right) = (spans.T for spans in self.spans())
        parts = (top[:, None], left, (bottom - top)[:, None], right - left)
        return torch.stack([part.expand(self.shape) for part in parts], 2)


def receptive_fields(subject: Subject, readings: Sequence[Reading], *, local: bool = False) -> dict[Reading, Field]:
    """Return the part of the image that each position of some maps depends on, in the full model.

    Exact for kernel calls, pooling, padding, resizing, and operations that are element-wise, move values, or mix them
    along whole dimensions, as normalizations do. For other operations, each result counts as depending on every input.

    Args:
        subject: The feature, surveyed on images of the size in question.
        readings: The maps.
        local: Leave out what reaches all positions of a map alike, such as the gates of squeeze-excitation, which would
            make every later field the whole image.

    Returns:
        The field of each reading, in order.

    Raises:
        ConvCircuitsError: If there is no such map, or it does not depend on the image.
    """
    shape = subject.survey.input_shape
    rows, columns = _walked(subject, readings, local)
    known: dict[Any, Field] = {}
    fields = {}
    for reading in readings:
        if reading not in rows.found:
            raise no_such_map(reading)
        spans = (_spans(rows.found[reading], 2), _spans(columns.found[reading], 1))
        padding = rows.padding.get(reading, (0, 0, 0, 0))
        key = (*(one.numpy().tobytes() for one in spans), padding)
        if key not in known:  # one object for all equal fields
            first, second = (tuple((top, bottom) for top, bottom in one.tolist()) for one in spans)
            known[key] = Field(first, second, (shape[1], shape[2]), padding)
        fields[reading] = known[key]
        if fields[reading].size[0] < 1:
            raise ConvCircuitsError(
                f"The map {reading} does not depend on the image, so it has no receptive field; choose another map."
            )
    return fields


def output_fields(subject: Subject) -> tuple[Field, dict[str, Field]]:
    """Return the receptive fields of the feature's map, and of what each layer returns, around all its filters.

    They leave out what reaches all positions alike. Of a layer that runs several times, they are those of its last run.

    Raises:
        ConvCircuitsError: If they cannot be computed.
    """
    try:
        rows, columns = _walked(subject, [], True)
    except ConvCircuitsError:
        raise
    except Exception as error:  # a rule met a form that it does not know
        raise _unknown(subject, error) from error
    image = subject.survey.input_shape[1:]

    def field(tall: Tensor, wide: Tensor) -> Field:
        first, second = (
            tuple((top, bottom) for top, bottom in _spans(one, along).tolist()) for one, along in ((tall, 2), (wide, 1))
        )
        return Field(first, second, (image[0], image[1]))

    layers = {layer: field(boxes, columns.outputs[layer]) for layer, boxes in rows.outputs.items()}
    return field(rows.found[None], columns.found[None]), layers


def _walked(subject: Subject, readings: Sequence[Reading], local: bool) -> "tuple[_Walk, _Walk]":
    """Walk through the feature's graph along rows and along columns."""
    shape, network = subject.survey.input_shape, subject.network
    paths = subject.paths_on(torch.zeros(2, *shape, device=network.device, dtype=network.dtype))
    walks = []
    for axis in (1, 2):
        form = [shape[axis] if dim == axis else 1 for dim in range(3)]
        places = torch.arange(shape[axis], dtype=torch.float32).reshape(form)
        walk = _Walk(paths, readings, local)
        output = walk.run(torch.stack([_BASE - places, _BASE + places]).expand(2, *shape))
        output = output if output.dim() == 4 else output[..., None, None]
        walk.found |= {channel: output[:, channel] for channel in subject.survey.rows.tolist()}
        walk.found[None] = output[:, subject.survey.rows].amax(1)
        walks.append(walk)
    return walks[0], walks[1]


def local_fields(subject: Subject, readings: Sequence[Reading]) -> dict[Reading, Field]:
    """Return the receptive fields of some maps, without what reaches all positions alike.

    Raises:
        ConvCircuitsError: If they cannot be computed.
    """
    try:
        return receptive_fields(subject, readings, local=True)
    except ConvCircuitsError:
        raise
    except Exception as error:  # a rule met a form that it does not know: no figure, but no crash either
        raise _unknown(subject, error) from error


def _unknown(subject: Subject, error: Exception) -> ConvCircuitsError:
    return ConvCircuitsError(
        f"The receptive fields of {subject.network.name} cannot be computed: {type(error).__name__}: {error}"
    )


def maps_read(call: KernelCall, channels: Tensor, shape: tuple[int, int], padding: Padding) -> Tensor:
    """Return some channels of what a call reads, (n, r, h, w), without padding; a flattened map is folded back.

    Raises:
        ConvCircuitsError: If they do not have the given shape.
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
            f"{call.layer} reads maps of shape {tuple(call.x.shape[1:])}, but {shape[0]} x {shape[1]} positions were "
            "expected; give images of the size that the feature was surveyed on."
        )
    return maps.reshape(*maps.shape[:2], *shape)


def feature_map(subject: Subject, maps: Float[Tensor, "n c h w"]) -> Float[Tensor, "n 1 h w"]:
    """Return the map of the feature itself, the reading None, from the maps of the channels that it reads."""
    if isinstance(subject.feature.unit, tuple):
        return maps.amax(1, keepdim=True)
    return torch.einsum("nchw,c->nhw", maps, subject.coefficients)[:, None]


def channels_of(readings: Sequence[Reading]) -> dict[tuple[str, int], dict[Reading, int]]:
    """Group the readings of kernel calls: (layer, call) -> the channel of each reading."""
    sorted_: dict[tuple[str, int], dict[Reading, int]] = {}
    for reading in readings:
        if isinstance(reading, tuple):
            layer, call, channel = reading
            sorted_.setdefault((layer, call), {})[reading] = channel
    return sorted_


def no_such_map(reading: Reading) -> ConvCircuitsError:
    """Return the error for a map that a run does not meet."""
    return ConvCircuitsError(
        f"There is no map {reading!r} on a path to the feature; give (layer, call, channel) for what a kernel call "
        "reads, a channel that the feature itself reads, or None for the feature."
    )


class _Walk:
    """A walk of boxes through a graph: in place of two images, where boxes begin and end along one axis."""

    def __init__(self, paths: Paths, readings: Sequence[Reading], local: bool) -> None:
        self.paths, self.graph, self.local = paths, paths.graph, local
        self.wanted = channels_of(readings)
        self.found: dict[Reading, Tensor] = {}
        self.padding: dict[Reading, Padding] = {}
        self.places = {n: place for place, node in enumerate(self.graph.nodes) for n in node.outputs if n is not None}
        self.around: dict[int, Padding] = {}  # value number -> padding that is part of the value
        self.outputs: dict[str, Tensor] = {}  # layer -> boxes of what its last call returns, around all filters

    def run(self, boxes: Tensor) -> Tensor:
        """Return the boxes of the output, and keep those of the wanted maps in ``found``."""
        values, last = {0: boxes}, self.graph.last_uses()
        for place, node in enumerate(self.graph.nodes):
            given = [values[n] for n in dict.fromkeys(node.inputs)]
            results = [self.kernels(node, given[0])] if node.call is not None else self.results(place, given)
            values |= zip((n for n in node.outputs if n is not None), results, strict=True)
            for number in last[place]:
                del values[number]
        return values[self.graph.output]

    def kernels(self, node: Node, x: Tensor) -> Tensor:
        """Return the boxes of a kernel call's filters."""
        assert node.call is not None
        call, (number,) = replace(node.call, x=x), node.inputs
        padding = self.around.get(number, (0, 0, 0, 0))
        if isinstance(call, ConvCall):
            count, (top, bottom, left, right) = x.shape[1], padding
            shape = (x.shape[2] - top - bottom, x.shape[3] - left - right)
        elif x.dim() == 2:
            count, shape = call.blocks, self.folded(number) or (1, x.shape[1] // call.blocks)
        else:
            count, shape = x.shape[-1], (x.shape[1], x[0, 0, ..., 0].numel())
        for reading, channel in self.wanted.get((call.layer, call.turn), {}).items():
            if 0 <= channel < count:
                self.found[reading] = maps_read(call, torch.tensor([channel]), shape, padding)[:, 0]
                self.padding[reading] = padding
        if not isinstance(call, ConvCall):
            boxes = x.amax(-1, keepdim=True)
            self.outputs[call.layer] = boxes.reshape(2, *[*x.shape[1:-1], 1, 1][:2])
            return boxes.expand(*x.shape[:-1], len(call.weight))
        grouped = x.reshape(2, call.groups, -1, *x.shape[2:]).amax(2)
        joined = _joined(
            grouped, call.weight.shape[2:], call.stride, call.padding, call.dilation, self.graph.shapes_of(node)[0][2:]
        )
        self.outputs[call.layer] = joined.amax(1)
        return joined.repeat_interleave(len(call.weight) // call.groups, 1)

    def folded(self, number: int) -> tuple[int, int] | None:
        """Return (h, w) of the map that was flattened into a value; None if the value is not a flattened map."""
        shape = self.graph.shapes[number]
        while number in self.places:
            number = self.graph.nodes[self.places[number]].inputs[0]
            source = self.graph.shapes[number]
            if len(source) == 4 and math.prod(source[1:]) == shape[1]:
                return source[2], source[3]
            if source != shape:
                break
        return None

    def results(self, place: int, given: list[Tensor]) -> list[Tensor]:
        """Return the boxes of the results of an operation that is not a kernel call."""
        node, operation, x = self.graph.nodes[place], self.paths.operations[place], given[0]
        assert operation is not None
        shapes = self.graph.shapes_of(node)
        if "pad" in node.name:
            return [self.padded(node, x)]
        if operation.moves:
            boxes = self.paths.through(place, given)
        elif operation.over is None:
            boxes = [self.all_of(given, shape) for shape in shapes]
        elif not operation.over:
            boxes = [self.together(given, shapes[0])]
        elif argument(node, "kernel_size"):
            boxes = [_pooled(node, x, operation.over, shapes[0])]
        elif argument(node, "output_size"):
            boxes = [_resized(node, x, operation.over)]
        elif node.name == "native_group_norm":
            groups = argument(node, "group")
            moments = x.reshape(len(x), groups, -1).amax(2)
            boxes = [moments[..., None].expand(-1, -1, x[0].numel() // groups).reshape(x.shape), moments, moments]
        else:
            boxes = [x.amax(operation.over, keepdim=True)]
        boxes += boxes[:1] * (len(shapes) - len(boxes))
        return [_as_wide(one, shape) for one, shape in zip(boxes, shapes, strict=True)]

    def together(self, maps: list[Tensor], shape: torch.Size) -> Tensor:
        """Join maps element by element."""
        spread = [x for x in maps if x.dim() > 3 and x.shape[-2:].numel() > 1]
        joined, *rest = spread if self.local and spread else maps
        for x in rest:
            joined = torch.maximum(joined, x)
        return joined.expand(shape)

    def all_of(self, maps: list[Tensor], shape: torch.Size) -> Tensor:
        """Return boxes in which every value depends on all of the maps."""
        if any(not form or form[0] != 2 for form in (shape, *(x.shape for x in maps))):
            raise ConvCircuitsError(
                "The model mixes images of a batch before the feature, so receptive fields are not defined; choose an "
                "earlier layer."
            )
        largest = torch.stack([x.flatten(1).amax(1) for x in maps]).amax(0)
        return largest.reshape(2, *[1] * (len(shape) - 1)).expand(shape)

    def padded(self, node: Node, x: Tensor) -> Tensor:
        """Return the boxes of a padded map: rows and columns continue as inside, further dimensions get zeros."""
        left, right, top, bottom, *further = [*node.args[1], *[0] * 4][: max(4, len(node.args[1]))]
        (number,) = node.outputs
        assert number is not None
        self.around[number] = (max(0, top), max(0, bottom), max(0, left), max(0, right))
        return F.pad(_extended(x, ((top, bottom), (left, right))), (0, 0, 0, 0, *further))


def _as_wide(boxes: Tensor, shape: torch.Size) -> Tensor:
    """Expand boxes to a shape, or drop dimensions of size 1."""
    if not shape.numel():  # e.g. statistics that are not computed
        return boxes.new_zeros(shape)
    return boxes.expand(shape) if boxes.dim() == len(shape) else boxes.reshape(shape)


def _joined(
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    out: Sequence[int],
) -> Tensor:
    """Return the boxes around windows of a map, ``out`` of them along each of its last dimensions."""
    reach = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    pads = [
        (before, (count - 1) * step - before + more - (length - 1))
        for before, count, step, more, length in zip(padding, out, stride, reach, x.shape[-len(out) :], strict=True)
    ]
    x = _extended(x, pads)
    for dim, (size, step, gap) in enumerate(zip(kernel, stride, dilation, strict=True), -len(out)):
        taps = x.unfold(dim, gap * (size - 1) + 1, step)[..., ::gap].unbind(-1)
        x = reduce(torch.maximum, taps)  # many times faster than the maximum of a dimension of so few
    return x


def _extended(x: Tensor, pads: Sequence[tuple[int, int]]) -> Tensor:
    """Continue boxes linearly beyond the border of the last dimensions by (before, after); negative numbers crop."""
    for dim, (before, after) in enumerate(pads, -len(pads)):
        last = x.shape[dim] - 1
        parts = [x.narrow(dim, max(0, -before), last + 1 - max(0, -before) - max(0, -after))]
        if before > 0:
            parts.insert(0, _continued(x, dim, 0, min(1, last), torch.arange(before, 0, -1)))
        if after > 0:
            parts.append(_continued(x, dim, last, max(0, last - 1), torch.arange(1, after + 1)))
        x = torch.cat(parts, dim)
    return x


def _continued(x: Tensor, dim: int, edge: int, inner: int, far: Tensor) -> Tensor:
    """Continue boxes along a dimension from the place at the edge and the one inside of it, so far beyond the edge."""
    last = x.narrow(dim, edge, 1)
    return last + (last - x.narrow(dim, inner, 1)) * far.reshape(-1, *[1] * (-1 - dim))


def _pooled(node: Node, x: Tensor, over: Sequence[int], shape: torch.Size) -> Tensor:
    def given(name: str, otherwise: Any) -> list[int]:
        value = argument(node, name) or otherwise
        return list(value) * (len(over) if len(value) == 1 else 1)

    kernel = given("kernel_size", None)
    return _joined(
        x, kernel, given("stride", kernel), given("padding", [0]), given("dilation", [1]), shape[-len(over) :]
    )


def _resized(node: Node, x: Tensor, over: Sequence[int]) -> Tensor:
    """Return the boxes of a resized map: probe the operation, axis by axis, for the outermost positions it reads."""
    shape = x.shape[over[0] :]
    for dim in over:
        length = x.shape[dim]
        form = [length if other == dim else 1 for other in over]
        probe = torch.eye(length).reshape(1, length, *form).expand(1, length, *shape)
        response = node.compute(dict.fromkeys(node.inputs, probe).__getitem__)[0].abs()[0]
        reads = response.amax([other - 1 for other in over if other != dim]) > 1e-6  # (in, out)
        first, last = reads.int().argmax(0), length - 1 - reads.flip(0).int().argmax(0)
        x = torch.maximum(x.index_select(dim, first), x.index_select(dim, last))
    return x


def _spans(boxes: Tensor, along: int) -> Tensor:
    """Return the first position and the one after the last, (length, 2), of boxes (2, h, w) along one axis."""
    first, last = boxes.amax(along)
    return torch.stack([_BASE - first, last - _BASE + 1], 1).int()


def _unpadded(spans: Sequence[tuple[int, int]], length: int) -> Tensor:
    if _longest(spans) >= length:
        return torch.ones(len(spans), dtype=torch.bool)
    outside = torch.tensor([max(0, -first) + max(0, end - length) for first, end in spans])
    return outside <= outside.sort().values[(len(spans) - 1) // 4]


def _seen(spans: tuple[tuple[int, int], ...], length: int) -> tuple[tuple[int, int], ...]:
    """Return fields along an axis; each is the whole axis if they are as long as that."""
    return ((0, length),) * len(spans) if _longest(spans) >= length else spans


def _longest(spans: Sequence[tuple[int, int]]) -> int:
    return max(end - first for first, end in spans)
