"""Pictures that drive a map most, found by gradient ascent in the full model or inside a circuit.

After Olah, Mordvintsev and Schubert, Feature Visualization (Distill 2017): a picture is parametrized as a Fourier
spectrum in decorrelated colors, which keeps the ascent among natural-looking pictures, and it is jittered at each step.
The contrast is fixed here: a picture shows what drives a map most among pictures of equal contrast, and its gray areas
do not matter to the map.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

from convcircuits.errors import ConvCircuitsError, whole_number
from convcircuits.maps.colors import mixing_of
from convcircuits.maps.receptive_fields import Field, Reading, feature_map, no_such_map
from convcircuits.network.batches import Progress, check_progress
from convcircuits.network.calls import ConvCall, KernelCall
from convcircuits.network.graph import Graph
from convcircuits.network.masking import Masks, Subject
from convcircuits.network.operations import argument
from convcircuits.network.reach import Paths
from convcircuits.network.recording import Recorder, record_graph
from convcircuits.network.surroundings import outside_autocast

# The square root of the covariance of ImageNet's colors (rows red, green, blue), a measured fact, as published by lucid
# (Apache 2.0), divided by the norm of its longest column.
_COLORS = torch.tensor([[0.26, 0.09, 0.02], [0.27, 0.00, -0.05], [0.27, -0.09, 0.03]]) / 0.4619
_CONTRAST = 2.0  # root mean square of a picture before the sigmoid, in decorrelated colors
_FALL = 1.5  # amplitudes fall with this power of the frequency
_RATE = 0.1
_SLOPE = 0.1  # of a ReLU for negative inputs, in the first quarter of the steps
_TRIES = 3


@dataclass(frozen=True)
class Picture:
    """A picture that drives a map.

    Attributes:
        pixels: Red, green and blue, (h, w, 3), on the CPU; as large as the map's receptive field.
        value: The map's value on the picture, at the position that was optimized.
        start: Its value on the noise that the ascent started from.
    """

    pixels: UInt8[Tensor, "h w rgb"]
    value: float
    start: float


@outside_autocast
def visualize(
    subject: Subject,
    fields: Mapping[Reading, Field],
    *,
    masks: Masks | None = None,
    primaries: Tensor | None = None,
    steps: int = 128,
    seed: int = 0,
    batch_size: int = 32,
    progress: Progress | None = None,
) -> dict[Reading, Picture | None]:
    """Find the picture that drives each map most at one position, in the full model or inside a circuit.

    Pictures depend neither on each other nor on the batch size, up to rounding; all start from the same noise. A filter
    that is silent on noise has no gradient. So in the first quarter of the steps ReLUs pass a little of their negative
    inputs, and maps that stay silent start again from other noise, up to three times.

    Args:
        subject: The feature.
        fields: The maps with their fields, from ``receptive_fields``.
        masks: The circuit that runs; None for the full model.
        primaries: The inputs that the model's preparation makes of black, red, green and blue, (4, C), as in
            ``LoadedModel.primaries``. If it preserves no color, pictures are gray. Without it the model is given values
            from 0 to 1: red, green and blue, or the same gray in each channel if there are not three channels.
        steps: Number of steps of gradient ascent.
        seed: Seed of the noise and the jitter.
        batch_size: Maximum number of pictures optimized at once.
        progress: Called with the number of maps done and their total.

    Returns:
        The picture of each map, in order; None if no picture drives the map more than noise does.

    Raises:
        ConvCircuitsError: If there is no such map, the primaries have another number of channels, or a number is out of
            range.
    """
    check_progress(progress)
    steps, seed = whole_number("steps", steps, 1), whole_number("seed", seed, 0)
    batch_size = whole_number("batch_size", batch_size, 1)
    mixing, black = mixing_of(primaries, subject.survey.input_shape[0])
    found: dict[Reading, Picture | None] = dict.fromkeys(fields)
    for attempt in range(_TRIES):
        silent = {reading: fields[reading] for reading, picture in found.items() if picture is None}
        done = len(fields) - len(silent)
        for readings in _together(silent, batch_size):
            ascent = _Ascent(subject, masks, readings, fields[readings[0]], mixing, black)
            found |= zip(readings, ascent.run(steps, seed * _TRIES + attempt), strict=True)
            done += len(readings)
            if progress is not None and attempt == 0:
                progress(done, len(fields))
    return found


class _Read(BaseException):
    """Stop a forward pass at the call that reads the maps. Not an ``Exception``, so that no model swallows it."""

    def __init__(self, call: KernelCall) -> None:
        self.call = call


@dataclass(frozen=True)
class _Place:
    """Along one axis: a position of the map, the part of the image it sees, and the length of the image that runs."""

    position: int
    seen: slice
    length: int

    @classmethod
    def inside(cls, spans: Sequence[tuple[int, int]], image: int) -> "_Place":
        """Choose the first position that sees no padding, and as little of the image as it needs.

        What is cut off is a multiple of the map's stride, so padding that a model computes from the size is unchanged.
        """
        for position, (begin, end) in enumerate(spans):
            if begin >= 0 and end <= image and end - begin < image:
                stride = max(1, spans[position + 1][0] - begin) if position + 1 < len(spans) else 1
                return cls(position, slice(begin, end), end + (image - end) % stride)
        return cls.middle(spans, image)

    @classmethod
    def middle(cls, spans: Sequence[tuple[int, int]], image: int) -> "_Place":
        """Choose the position in the middle of the whole image."""
        begin, end = spans[len(spans) // 2]
        return cls(len(spans) // 2, slice(max(0, begin), min(image, end)), image)


class _Ascent:
    """Gradient ascent of one picture per map, for maps that one call reads and that share a field."""

    def __init__(
        self,
        subject: Subject,
        masks: Masks | None,
        readings: Sequence[Reading],
        field: Field,
        mixing: Tensor,
        black: Tensor,
    ) -> None:
        self.subject, self.masks = subject, Masks({}, effective=False) if masks is None else masks
        self.readings, self.field = readings, field
        device, dtype = subject.network.device, subject.network.dtype
        self.mixing, self.black = mixing.to(device, dtype), black.to(device, dtype)
        self.colors = (_COLORS if len(mixing) == 3 else torch.ones(1, 1)).to(device, dtype)
        axes = list(zip((field.rows, field.columns), field.image, strict=True))
        self.places = [_Place.inside(*axis) for axis in axes]
        try:
            self.graph, self.call = self.recorded()
        except ConvCircuitsError:  # the model takes images of one size only, or none this small
            self.places = [_Place.middle(*axis) for axis in axes]
            self.graph, self.call = self.recorded()
        self.plan = None
        if self.masks.effective:
            paths = Paths(self.graph)
            self.plan = paths.plan(paths.live(self.masks.kernels)).to(device)

    def run(self, steps: int, seed: int) -> list[Picture | None]:
        """Start from noise and climb."""
        generator = torch.Generator().manual_seed(seed)
        play = [min(8, (place.seen.stop - place.seen.start) // 8) for place in self.places]
        size = [place.length + 2 * room for place, room in zip(self.places, play, strict=True)]
        scale = _scale(size).to(self.mixing)
        noise = torch.randn(1, len(self.colors), *scale.shape, 2, generator=generator, dtype=torch.float64)
        spectrum = noise.to(scale).repeat(len(self.readings), 1, 1, 1, 1).requires_grad_()
        optimizer = torch.optim.Adam([spectrum], lr=_RATE)

        def pictures(offsets: Sequence[int]) -> Tensor:
            top, left = (slice(n, n + place.length) for n, place in zip(offsets, self.places, strict=True))
            return _pictures(spectrum, scale, self.colors, size)[..., top, left]

        with torch.no_grad():
            start = self.read(pictures(play))
        for step in range(steps):
            offsets = [int(torch.randint(2 * room + 1, (), generator=generator)) for room in play]
            with torch.enable_grad():
                values = self.read(pictures(offsets), leaky=step < steps / 4)
                if not values.requires_grad:  # computed from constants alone
                    break
                (spectrum.grad,) = torch.autograd.grad(-values.sum(), spectrum)
            optimizer.step()
        with torch.no_grad():
            final = (pictures(play) * 255).round()
            values = self.read(final / 255)
        shown = final[..., self.places[0].seen, self.places[1].seen].to("cpu", torch.uint8).movedim(1, -1)
        return [
            Picture(pixels.expand(-1, -1, 3).contiguous(), value, begun) if value > begun + 1e-6 * abs(begun) else None
            for pixels, value, begun in zip(shown, values.tolist(), start.tolist(), strict=True)
        ]

    def recorded(self) -> tuple[Graph, KernelCall | None]:
        """Record the graph up to the maps, on gray pictures; also return the kernel call that reads them, if any."""
        size = [place.length for place in self.places]
        images = self.images(self.mixing.new_full((len(self.readings), len(self.colors), *size), 0.5))
        network, feature, reading = self.subject.network, self.subject.feature, self.readings[0]
        if not isinstance(reading, tuple):
            return record_graph(network, feature, images), None
        recorder = Recorder(network, feature, images)

        def kernel(call: KernelCall) -> Tensor:
            if (call.layer, call.turn) == reading[:2]:
                recorder.stop(call.x)
                raise _Read(call)
            return recorder.kernel(call)

        try:
            with torch.no_grad(), recorder:
                network.run(feature, images, kernel)
        except _Read as read:
            return recorder.graph(), replace(read.call, x=read.call.x.new_empty(0))
        raise no_such_map(reading)

    def images(self, pictures: Tensor) -> Tensor:
        """Return the model's inputs for pictures."""
        return torch.einsum("nrhw,rc->nchw", pictures, self.mixing) + self.black[:, None, None]

    def read(self, pictures: Tensor, *, leaky: bool = False) -> Tensor:
        """Return the value of each map on its picture, (n,); with ``leaky``, ReLUs pass a little of negative inputs."""
        direct = self.call is None and self.subject.survey.direct
        graph, rows = _leaky(self.graph) if leaky else self.graph, self.subject.rows if direct else None
        output = graph.run(self.images(pictures), self.masks.kernel, self.plan, rows).to(self.mixing)
        maps, channels, (row, column) = self.maps(output)
        if max(channels) >= maps.shape[1]:
            raise no_such_map(self.readings[channels.index(max(channels))])
        return maps[list(range(len(maps))), channels, row, column]

    def maps(self, output: Tensor) -> tuple[Tensor, list[int], tuple[int, int]]:
        """Return maps (n, c, h, w), the channel of each reading, and the position (row, column) to read."""
        row, column = (place.position for place in self.places)
        first = self.readings[0]
        if self.call is not None:
            channels = [reading[2] for reading in self.readings if isinstance(reading, tuple)]
            if isinstance(self.call, ConvCall):
                return output, channels, (row + self.field.padding[0], column + self.field.padding[2])
            if output.dim() == 2:
                return output.reshape(len(output), self.call.blocks, *self.field.shape), channels, (row, column)
            return output.movedim(-1, 1)[..., None].flatten(3), channels, (row, column)
        rows = self.subject.rows.tolist()
        missing = [reading for reading in self.readings if reading is not None and reading not in rows]
        if missing:
            raise no_such_map(missing[0])
        output = output if self.subject.survey.direct else output.index_select(1, self.subject.rows)
        output = output if output.dim() == 4 else output[..., None, None]
        if first is not None:
            return output, [rows.index(reading) for reading in self.readings], (row, column)
        return feature_map(self.subject, output), [0], (row, column)


def _leaky(graph: Graph) -> Graph:
    """Return a graph in which ReLUs pass a little of negative inputs."""
    leaky = torch.ops.aten.leaky_relu.default
    return replace(
        graph,
        nodes=tuple(
            replace(node, op=leaky, args=(node.args[0], _SLOPE), kwargs={})
            if node.name == "relu" or (node.name == "hardtanh" and argument(node, "min_val") == 0)
            else node
            for node in graph.nodes
        ),
    )


def _scale(size: Sequence[int]) -> Tensor:
    """Return the amplitudes of a natural picture's spectrum, (h, w // 2 + 1)."""
    rows, columns = torch.fft.fftfreq(size[0])[:, None], torch.fft.rfftfreq(size[1])
    frequency: Tensor = (rows**2 + columns**2).sqrt()
    return frequency.clamp_min(1 / max(size)).pow(-_FALL)


def _pictures(spectrum: Tensor, scale: Tensor, colors: Tensor, size: Sequence[int]) -> Tensor:
    """Turn spectra (n, c, h, w // 2 + 1, 2) into pictures (n, c, h, w) from 0 to 1, all of equal contrast."""
    waves = torch.fft.irfft2(torch.view_as_complex(spectrum) * scale, s=tuple(size))
    waves = waves * (_CONTRAST / waves.square().mean((1, 2, 3), keepdim=True).sqrt())
    return torch.einsum("rc,nchw->nrhw", colors, waves).sigmoid()


def _together(fields: Mapping[Reading, Field], batch_size: int) -> Iterator[list[Reading]]:
    """Group maps that run together, at most ``batch_size`` at once: of one call, or the feature's, with one field."""
    groups: dict[Any, list[Reading]] = {}
    for reading, field in fields.items():
        kind = reading[:2] if isinstance(reading, tuple) else type(reading)
        groups.setdefault((kind, field), []).append(reading)
    for group in groups.values():
        yield from (group[n : n + batch_size] for n in range(0, len(group), batch_size))
