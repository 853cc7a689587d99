"""Pictures of the nodes and maps on images: first kernels, patches, feature visualizations, activation maps."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from convcircuits.circuits.responses import responses
from convcircuits.drawing import data
from convcircuits.drawing.data import EdgeKind
from convcircuits.drawing.figure import Shown
from convcircuits.drawing.kernels import NOT_IN_COLOR, first_kernels, to_bytes
from convcircuits.drawing.sheet import Drawing
from convcircuits.drawing.target import in_bytes, target_maps
from convcircuits.drawing.tiles import data_url, pack
from convcircuits.drawing.wiring import SiteKind
from convcircuits.maps.colors import displayable
from convcircuits.maps.feature_visualization import visualize
from convcircuits.maps.patches import (
    LARGEST_MAP,
    Best,
    activation_maps,
    best_patches,
    crop,
    effects,
    presum_maps,
)
from convcircuits.maps.receptive_fields import Field, Reading, receptive_fields
from convcircuits.network.batches import Batches, Progress, begin

LABELS = {
    "patches": "the image parts that drive a filter most, as large as it sees; for the first layer, its kernels",
    "features": "pictures optimized to drive a filter most inside the circuit; for the first layer, its kernels",
}
"""The sets of pictures, with what they show."""

TILE = 64
"""Side of a picture, in pixels."""

PATCHES = 6  # per node that is drawn at first; other nodes have one
MOST_PICTURED = 2500  # nodes
THUMBNAIL = 112  # side, in pixels
MAPS, PRESUMS = 1_200_000, 600_000  # bytes of activation and pre-sum maps in a page


def readings_of(drawing: Drawing) -> dict[int, Reading]:
    """Return the map that shows each node: what the first kernel call to read it reads; for the target, its own map.

    Nodes that no kernel reads, such as gates, are left out.
    """
    found: dict[tuple[int, int], Reading] = {}
    for value in drawing.layout.values.values():
        if value.call is not None and value.number in drawing.wiring.reads:
            read = drawing.wiring.reads[value.number]
            for channel, source in enumerate(zip(read.site.tolist(), read.channel.tolist(), strict=True)):
                found.setdefault(source, (value.layer, value.call.turn, channel))
    ends = zip(drawing.graph.site.tolist(), drawing.graph.channel.tolist(), strict=True)
    image = next(n for n, site in drawing.wiring.sites.items() if site.kind is SiteKind.IMAGE)
    readings = {n: found[end] for n, end in enumerate(ends) if end in found and end[0] != image}
    return readings | {drawing.graph.goal: None}


def once_called(drawing: Drawing) -> set[str]:
    """Return the layers that run once: for the others, the calls of a kernel are not distinguished."""
    times = Counter(value.call.layer for value in drawing.layout.values.values() if value.call is not None)
    return {layer for layer, count in times.items() if count == 1}


@dataclass(frozen=True)
class Seen:
    """The circuit on some images, from the one that drives the feature most to the one that drives it least.

    Attributes:
        images: All images considered, (N, C, H, W).
        numbers: Indices of the I images that are shown.
        target: The feature's maps and figures on these.
        effect: The mean over positions of what each kernel adds, in the circuit, (E, I); NaN where it is not known,
            that is for kernels outside the circuit and for layers that run several times.
        readings: Node -> the map that shows it.
        fields: Map -> its receptive fields.
    """

    images: Batches
    numbers: tuple[int, ...]
    target: data.TargetMaps
    effect: np.ndarray
    readings: Mapping[int, Reading]
    fields: Mapping[Reading, Field]

    @classmethod
    def of(cls, drawing: Drawing, images: Batches) -> Self:
        """Rank the images in the full model, choose some, and run the circuits on them."""
        subject, g = drawing.subject, drawing.graph
        every = responses(subject, [], images).mean[0]
        ranked = every.argsort(descending=True, stable=True).tolist()
        count = len(ranked)
        steps = [0, count // 16, count // 8, count // 4, count // 2, count - 1]
        numbers = tuple(dict.fromkeys(ranked[step] for step in steps))
        shown = images.take(numbers)
        by_layer = effects(subject, drawing.masks[0], shown)
        effect = np.full((len(g.kind), len(numbers)), np.nan, np.float32)
        once = once_called(drawing)
        for call in drawing.calls:
            here = np.flatnonzero(g.present[0] & (g.call == call))
            layer = drawing.call(call).layer
            if layer in once:
                effect[here] = by_layer[layer][:, g.out[here], g.inp[here]].T
        readings = readings_of(drawing)
        fields = receptive_fields(subject, list(dict.fromkeys(readings.values())), local=True)
        target = target_maps(subject, drawing.masks, shown, fields[None])
        return cls(images, numbers, target, effect, readings, fields)

    def document(
        self, drawing: Drawing, shown: Shown, primaries: Tensor, turned: np.ndarray, names: Sequence[str] | None = None
    ) -> data.ImageMaps:
        """Return the document's images; maps of what is drawn at first come first, as far as there is room."""
        images, masks = self.images.take(self.numbers), drawing.masks[0]
        g, subject = drawing.graph, drawing.subject
        nodes = _with_maps(drawing, [n for n in shown.nodes if n in self.readings], self.readings)
        area = max(1, LARGEST_MAP**2 * len(self.numbers))
        fields = {self.readings[n]: self.fields[self.readings[n]] for n in [g.goal, *nodes[: MAPS // area]]}
        maps = activation_maps(subject, masks, images, fields)
        activation = _Maps(len(g.site), len(self.numbers))
        for n in dict.fromkeys([g.goal, *nodes[: MAPS // area]]):
            activation.add(n, maps[self.readings[n]])
        once = once_called(drawing)
        kernels = {
            e: (drawing.call(int(g.call[e])).layer, int(g.out[e]), int(g.inp[e]))
            for e in shown.edges
            if g.kind[e] <= EdgeKind.INNER and g.present[0][e] and drawing.call(int(g.call[e])).layer in once
        }
        kernels = dict(list(kernels.items())[: PRESUMS // area])
        sums = presum_maps(subject, masks, images, list(dict.fromkeys(kernels.values())))
        presum = _Maps(len(g.kind), len(self.numbers))
        for e, kernel in kernels.items():
            presum.add(e, sums[kernel])
        rgb = displayable(torch.cat(list(images)), primaries)
        return data.ImageMaps(
            names=tuple(f"image {number}" if names is None else names[number] for number in self.numbers),
            src=tuple(data_url(_resized(picture, THUMBNAIL)) for picture in to_bytes(rgb)),
            target=self.target,
            activation=activation.values(),
            activation_offset=activation.offset,
            activation_shape=activation.shape,
            activation_scale=activation.scale,
            effect=self.effect * turned[:, None],
            presum=presum.values(),
            presum_offset=presum.offset,
            presum_shape=presum.shape,
            presum_scale=presum.scale,
        )


class _Maps:
    """Maps of some nodes or edges on each image, one byte per value."""

    def __init__(self, count: int, images: int) -> None:
        self.offset = np.full(count, -1, np.int32)
        self.shape = np.zeros((count, 2), np.int16)
        self.scale = np.zeros((count, images), np.float32)
        self._parts: list[np.ndarray] = []
        self._filled = 0

    def add(self, number: int, maps: Tensor) -> None:
        bytes_, scale = in_bytes(maps)
        self.offset[number], self.shape[number], self.scale[number] = self._filled, bytes_.shape[1:], scale
        self._parts.append(bytes_.reshape(-1))
        self._filled += bytes_.size

    def values(self) -> np.ndarray:
        return np.concatenate(self._parts) if self._parts else np.zeros(0, np.int8)


# ---------------------------------------- pictures of nodes


def pictured(
    drawing: Drawing,
    document: data.Document,
    drawn: Sequence[int],
    seen: Seen | None,
    *,
    pictures: str,
    primaries: Tensor | None,
    seed: int,
    batch_size: int,
    progress: Progress | None,
) -> data.Document:
    """Add pictures to a document: kernels of the first filters, patches of images, feature visualizations."""
    album = _Album(len(drawing.graph.site))
    firsts = first_kernels(drawing, primaries)
    kernels = {n: picture.pixels for n, picture in firsts.items()}
    if not all(picture.in_color for picture in firsts.values()):
        meta = replace(document.meta, notes=(*document.meta.notes, NOT_IN_COLOR))
        document = replace(document, meta=meta)
    for n, picture in kernels.items():
        album.add("patches", n, picture)
    if seen is not None and primaries is not None:
        begin(progress, "choosing patches")
        for n, patches in _patches(drawing, drawn, seen, primaries).items():
            for patch in patches:
                album.add("patches", n, patch)
    target: list[tuple[str, np.ndarray]] = []
    if pictures == "features":
        for n, picture in kernels.items():
            album.add("features", n, picture)
        others = [n for n in drawn if n not in kernels]
        target = _features(drawing, others, album, primaries, seed, batch_size, progress)
    return album.bound(document, pictures, target)


class _Album:
    """Pictures of nodes for each set, the best first."""

    def __init__(self, nodes: int) -> None:
        self._nodes = nodes
        self.sets: dict[str, dict[int, list[np.ndarray]]] = {}

    def add(self, name: str, node: int, picture: np.ndarray) -> None:
        self.sets.setdefault(name, {}).setdefault(node, []).append(picture)

    def bound(self, document: data.Document, first: str, target: Sequence[tuple[str, np.ndarray]]) -> data.Document:
        """Pack all pictures into tiles; the chosen set comes first."""
        names = sorted(self.sets, key=lambda name: name != first)
        every = [p for name in names for pictures in self.sets[name].values() for p in pictures]
        tiles, numbers = pack([*every, *(picture for _, picture in target)], size=TILE)
        place, sets = 0, []
        for name in names:
            widest = max(map(len, self.sets[name].values()))
            table = np.full((self._nodes, widest), -1, np.int32)
            for node, pictures in self.sets[name].items():
                table[node, : len(pictures)] = numbers[place : place + len(pictures)]
                place += len(pictures)
            beside = [
                data.TargetPicture(label, int(number))
                for (label, _), number in zip(target, numbers[len(every) :], strict=True)
            ]
            sets.append(data.PictureSet(name, LABELS[name], table, tuple(beside) if name == "features" else ()))
        view = replace(document.view, pictures=names[0]) if names else document.view
        return replace(document, pictures=tuple(sets), tiles=tiles, view=view)


def _patches(drawing: Drawing, drawn: Sequence[int], seen: Seen, primaries: Tensor) -> dict[int, list[np.ndarray]]:
    """Return for each node the parts of images that drive it most, as large as it sees."""
    nodes = _with_maps(drawing, drawn, seen.readings)[:MOST_PICTURED]
    fields = {seen.readings[n]: seen.fields[seen.readings[n]] for n in nodes}
    best: Best = best_patches(drawing.subject, drawing.masks[0], seen.images, fields, top=PATCHES)
    rows, shown = {reading: r for r, reading in enumerate(fields)}, set(drawn)
    wanted = {n: PATCHES if n in shown else 1 for n in nodes}
    needed = sorted({int(i) for n in nodes for i in best.image[rows[seen.readings[n]], : wanted[n]]})
    rgb = {i: displayable(torch.cat(list(seen.images.take([i]))), primaries)[0] for i in needed}
    found: dict[int, list[np.ndarray]] = {}
    for n in nodes:
        r, field = rows[seen.readings[n]], fields[seen.readings[n]]
        places = list(zip(best.image[r].tolist(), best.position[r].tolist(), strict=True))[: wanted[n]]
        found[n] = [_small(to_bytes(crop(rgb[i], field.box(*position))[None])[0]) for i, position in places]
    return found


def _features(
    drawing: Drawing,
    some: Sequence[int],
    album: _Album,
    primaries: Tensor | None,
    seed: int,
    batch_size: int,
    progress: Progress | None,
) -> list[tuple[str, np.ndarray]]:
    """Optimize pictures of some nodes inside the circuit, and one of the target in the full model."""
    subject, masks, readings = drawing.subject, drawing.masks[0], readings_of(drawing)
    nodes = [n for n in dict.fromkeys([*some, drawing.graph.goal]) if n in readings]
    fields = receptive_fields(subject, list(dict.fromkeys(readings[n] for n in nodes)), local=True)
    begin(progress, "visualizing the feature in the full model")
    full = visualize(subject, {None: fields[None]}, primaries=primaries, seed=seed, progress=progress)[None]
    begin(progress, "visualizing filters in the circuit")
    found = visualize(
        subject, fields, masks=masks, primaries=primaries, seed=seed, batch_size=batch_size, progress=progress
    )
    for n in nodes:
        picture = found[readings[n]]
        if picture is not None:
            album.add("features", n, picture.pixels.numpy())
    both = [("in the circuit", found[None]), ("in the full model", full)]
    return [(label, picture.pixels.numpy()) for label, picture in both if picture is not None]


def _with_maps(drawing: Drawing, some: Sequence[int], known: Mapping[int, Reading]) -> list[int]:
    """List the nodes that have a map: the given ones, then the others from the most salient."""
    g = drawing.graph
    salience = np.bincount(g.target, np.nan_to_num(g.saliency[0]), len(g.site))
    return [n for n in dict.fromkeys([*some, *np.argsort(-salience).tolist()]) if n in known]


def _small(picture: np.ndarray) -> np.ndarray:
    """Return a picture no larger than a tile, since thousands at full size would not fit in memory."""
    return picture if max(picture.shape[:2]) <= TILE else _resized(picture, TILE)


def _resized(picture: np.ndarray, side: int) -> np.ndarray:
    scale = side / max(picture.shape[:2])
    size = (max(1, round(picture.shape[1] * scale)), max(1, round(picture.shape[0] * scale)))
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS))
