"""Pictures of the nodes and maps on images: first kernels, patches, feature visualizations, activation maps."""

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
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
from convcircuits.drawing.tiles import OPTIMIZED, data_url, pack
from convcircuits.drawing.wiring import SiteKind
from convcircuits.errors import ConvCircuitsError
from convcircuits.maps.colors import displayable
from convcircuits.maps.feature_visualization import visualize
from convcircuits.maps.patches import (
    LARGEST_MAP,
    Best,
    activation_maps,
    best_patches,
    crop,
    effects,
    nearest_patches,
    presum_maps,
)
from convcircuits.maps.receptive_fields import Box, Field, Reading, receptive_fields
from convcircuits.network.batches import Batches, Progress, begin
from convcircuits.network.masking import Subject
from convcircuits.texts import counted, sentences

LABELS = {
    "patches": (
        "the image parts that drive a filter most, as large as it sees (hatched: beyond the image); for the first "
        "layer, its kernels"
    ),
    "features": "pictures optimized to drive a filter most inside the circuit; for the first layer, its kernels",
}
"""The sets of pictures, with what they show."""

TILE = 64
"""Side of a picture, in pixels."""

PATCHES = 6  # per node that is drawn at first; other nodes have one
TARGET_PATCHES = 9  # of the target
TARGET_STEPS = 48  # of gradient ascent, for the target's picture alone, so that it takes ten seconds at most
WHOLES = 24  # images that are kept whole: those of the target's patches first, then those of most patches
HATCH = (150, 225)  # gray levels
WHOLE = 160  # side, in pixels
MOST_PICTURED = 2500  # nodes
THUMBNAIL = 112  # side, in pixels
_STEPS, _HALF = (0, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1), (0, 1 / 8, 1)  # where images are shown, by their rank
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
    """The circuit on some images, or several circuits, each on the images of its own group.

    Attributes:
        images: All images considered, (N, C, H, W); of several groups, those of the circuit that has the same place.
        numbers: Of each group, the indices of the images that are shown, I in all, from the one that drives the feature
            most; held-out ones count on from the last of the group.
        shown: These images.
        target: The feature's maps and figures on these.
        effect: The mean over positions of what each kernel adds, in the circuit, (E, I); NaN where it is not known,
            that is for kernels outside the circuit and for layers that run several times.
        readings: Node -> the map that shows it.
        fields: Map -> its receptive fields.
    """

    images: tuple[Batches, ...]
    numbers: tuple[tuple[int, ...], ...]
    shown: tuple[Batches, ...]
    target: data.TargetMaps
    effect: np.ndarray
    readings: Mapping[int, Reading]
    fields: Mapping[Reading, Field]

    @classmethod
    def of(
        cls,
        drawing: Drawing,
        *groups: Batches,
        among: Sequence[int] | None = None,
        held_out: Batches | None = None,
    ) -> Self:
        """Rank the images of each group in the full model, choose some, and run the circuits on them.

        Of one group the images range from the highest to the lowest; of several, each has its highest.

        Args:
            drawing: What is drawn.
            groups: The images of each group.
            among: The numbers of the only group's images that may be shown, in order; all if not given.
            held_out: Half of those that are shown are of these; all, if no image of the group may be shown.
        """
        subject, g = drawing.subject, drawing.graph
        once, numbers, shown, effect = once_called(drawing), [], [], []
        for images, masks, present in zip(groups, drawing.masks, g.present, strict=False):
            ranked = _ranked(subject, images)
            if len(groups) > 1:
                numbers.append(tuple(ranked[: len(_STEPS)]))
                shown.append(images.take(numbers[-1]))
            else:
                allowed = set(range(len(ranked)) if among is None else among)
                ranked = [n for n in ranked if n in allowed]
                half = _HALF if held_out is not None and ranked else _STEPS
                some = _spread(ranked, half)
                others = [] if held_out is None else _spread(_ranked(subject, held_out), half)
                numbers.append((*some, *((images.total or 0) + n for n in others)))
                shown.append(images.take(some).followed_by([] if held_out is None else [held_out.take(others)]))
            by_layer = effects(subject, masks, shown[-1])
            here_added = np.full((len(g.kind), len(numbers[-1])), np.nan, np.float32)
            for call in drawing.calls:
                here = np.flatnonzero(present & (g.call == call))
                layer = drawing.call(call).layer
                if layer in once:
                    here_added[here] = by_layer[layer][:, g.out[here], g.inp[here]].T
            effect.append(here_added)
        readings = readings_of(drawing)
        fields = receptive_fields(subject, list(dict.fromkeys(readings.values())), local=True)
        target = target_maps(subject, drawing.masks, shown[0].followed_by(shown[1:]), fields[None])
        return cls(groups, tuple(numbers), tuple(shown), target, np.concatenate(effect, 1), readings, fields)

    def document(
        self,
        drawing: Drawing,
        shown: Shown,
        primaries: Tensor,
        turned: np.ndarray,
        names: Sequence[Sequence[str] | None],
    ) -> data.ImageMaps:
        """Return the document's images; maps of what is drawn at first come first, as far as there is room.

        Args:
            drawing: What is drawn.
            shown: What is drawn at first.
            primaries: As for ``diagram``.
            turned: As from ``edges_of``.
            names: Of each group, the names of its images; None: they are numbered.
        """
        g, subject, count = drawing.graph, drawing.subject, sum(map(len, self.numbers))
        groups = list(zip(self.shown, drawing.masks, strict=False))
        nodes = _with_maps(drawing, [n for n in shown.nodes if n in self.readings], self.readings)
        area = max(1, LARGEST_MAP**2 * count)
        fields = {self.readings[n]: self.fields[self.readings[n]] for n in [g.goal, *nodes[: MAPS // area]]}
        maps = [activation_maps(subject, masks, images, fields) for images, masks in groups]
        activation = _Maps(len(g.site), count)
        for n in dict.fromkeys([g.goal, *nodes[: MAPS // area]]):
            activation.add(n, torch.cat([one[self.readings[n]] for one in maps]))
        once = once_called(drawing)
        kernels = {
            e: (drawing.call(int(g.call[e])).layer, int(g.out[e]), int(g.inp[e]))
            for e in shown.edges
            if g.kind[e] <= EdgeKind.INNER
            and any(present[e] for present in g.present[: len(groups)])
            and drawing.call(int(g.call[e])).layer in once
        }
        kernels = dict(list(kernels.items())[: PRESUMS // area])
        wanted = list(dict.fromkeys(kernels.values()))
        sums = [presum_maps(subject, masks, images, wanted) for images, masks in groups]
        presum = _Maps(len(g.kind), count)
        for e, kernel in kernels.items():
            presum.add(e, torch.cat([one[kernel] for one in sums]))
        rgb = displayable(torch.cat([batch for images in self.shown for batch in images]), primaries)
        return data.ImageMaps(
            names=tuple(
                f"image {number}" if named is None else named[number]
                for numbers, named in zip(self.numbers, names, strict=True)
                for number in numbers
            ),
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
            variants=() if len(groups) == 1 else tuple(v for v, some in enumerate(self.numbers) for _ in some),
        )


def _ranked(subject: Subject, images: Batches) -> list[int]:
    """Return the numbers of images, from the one that drives the feature most in the full model."""
    ranked: list[int] = responses(subject, [], images).mean[0].argsort(descending=True, stable=True).tolist()
    return ranked


def _spread(ranked: Sequence[int], steps: Sequence[float]) -> list[int]:
    """Return some of ranked images, at these shares of the way from the first to the last, no one twice."""
    places: list[int] = []
    for step in steps:
        place = min(int(step * len(ranked)), len(ranked) - 1)
        places.append(max(place, places[-1] + 1) if places else place)
    return [ranked[place] for place in places if 0 <= place < len(ranked)]


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
    names: Sequence[Sequence[str] | None] | None = None,
    photographs: Sequence[Sequence[Hashable] | None] | None = None,
    subjects: bool = False,
    feature_picture: bool = False,
) -> data.Document:
    """Add pictures to a document: kernels of the first filters, patches of images, feature visualizations.

    With ``feature_picture`` there is a visualization of the target, also if there are none of filters. With
    ``photographs``, of each group the photograph of each image, a node has at most one patch of each photograph; or of
    each subject, if these are ``subjects`` of photographs. The images that most patches are of are kept whole, with the
    ``names`` of each group's images, or their numbers.
    """
    album = _Album(len(drawing.graph.site))
    firsts = first_kernels(drawing, primaries)
    kernels = {n: picture.pixels for n, picture in firsts.items()}
    groups = [None] if seen is None or len(seen.images) == 1 else [*range(len(seen.images))]
    if not all(picture.in_color for picture in firsts.values()):
        meta = replace(document.meta, notes=(*document.meta.notes, NOT_IN_COLOR))
        document = replace(document, meta=meta)
    for group in groups:
        for n, picture in kernels.items():
            album.add("patches", n, picture, group)
    if seen is not None and primaries is not None:
        of = {group: None if photographs is None else photographs[group or 0] for group in groups}
        album.searched = {group: _count_of(seen.images[group or 0], some, subjects) for group, some in of.items()}
        patches = {group: _patches(drawing, drawn, seen, primaries, group, of[group], progress) for group in groups}
        begin(progress, "choosing typical patches of the target")
        for group, chosen in patches.items():
            for n, some in chosen.items():
                for patch in some:
                    album.add("patches", n, patch.picture, group, patch)
            album.samples[group] = _samples(drawing, seen, primaries, group, of[group], seed)
            beside = (chosen.get(drawing.graph.goal, ()), *album.samples[group])
            of_target = [patch.image for some in beside for patch in some]
            album.keep(_wholes(seen, chosen, of_target, primaries, group, None if names is None else names[group or 0]))
    target: list[tuple[str, np.ndarray]] = []
    if pictures == "features":
        for n, picture in kernels.items():
            album.add("features", n, picture)
        others = [n for n in drawn if n not in kernels]
        target = _features(drawing, others, album, primaries, seed, batch_size, progress)
    elif feature_picture:
        begin(progress, "visualizing the feature in the full model")
        try:
            fields = receptive_fields(drawing.subject, [None], local=True)
            full = visualize(
                drawing.subject, fields, primaries=primaries, steps=TARGET_STEPS, seed=seed, progress=progress
            )[None]
        except ConvCircuitsError as error:
            lacking = f"There is no optimized picture of the feature: {error}"
            document = replace(document, meta=replace(document.meta, notes=sentences([*document.meta.notes, lacking])))
        else:
            target = [] if full is None else [(OPTIMIZED.format("the full model"), full.pixels.numpy())]
    return album.bound(document, pictures, target)


@dataclass(frozen=True)
class _Patch:
    """A part of an image of a group, as a picture."""

    group: int | None
    image: int
    box: Box
    picture: np.ndarray


class _Album:
    """Pictures of nodes for each set, the best first. A set has a name and, if there are groups, a variant."""

    def __init__(self, nodes: int) -> None:
        self._nodes = nodes
        self.sets: dict[tuple[str, int | None], dict[int, list[tuple[np.ndarray, _Patch | None]]]] = {}
        self.wholes: dict[tuple[int | None, int], data.Whole] = {}
        self.samples: dict[int | None, tuple[list[_Patch], list[_Patch]]] = {}  # by group: median, near zero
        self.searched: dict[int | None, str] = {}  # by group: what the patches were chosen of

    def add(
        self, name: str, node: int, picture: np.ndarray, group: int | None = None, patch: _Patch | None = None
    ) -> None:
        self.sets.setdefault((name, group), {}).setdefault(node, []).append((picture, patch))

    def keep(self, wholes: Mapping[tuple[int | None, int], data.Whole]) -> None:
        self.wholes.update(wholes)

    def bound(self, document: data.Document, first: str, target: Sequence[tuple[str, np.ndarray]]) -> data.Document:
        """Pack all pictures into tiles; the chosen set comes first, and the target's pictures are in it."""
        target = target if self.sets else ()
        keys = sorted(self.sets, key=lambda key: key[0] != first)
        samples = [patch for both in self.samples.values() for some in both for patch in some]
        every = [p for key in keys for pictures in self.sets[key].values() for p in pictures]
        every += [(patch.picture, patch) for patch in samples]
        tiles, numbers = pack([*(picture for picture, _ in every), *(picture for _, picture in target)], size=TILE)
        place_of = {key: number for number, key in enumerate(self.wholes)}
        cuts = tuple(
            data.Cut(int(number), place_of[patch.group, patch.image], patch.box)
            for (_, patch), number in zip(every, numbers, strict=False)
            if patch is not None and (patch.group, patch.image) in place_of
        )
        tiles = replace(tiles, wholes=tuple(self.wholes.values()), cuts=cuts)
        rest = iter(numbers[len(every) - len(samples) : len(every)].tolist())
        of_target = {group: [tuple(next(rest) for _ in some) for some in both] for group, both in self.samples.items()}
        place, sets = 0, list[data.PictureSet]()
        for name, group in keys:
            pictured = self.sets[name, group]
            table = np.full((self._nodes, max(map(len, pictured.values()))), -1, np.int32)
            for node, pictures in pictured.items():
                table[node, : len(pictures)] = numbers[place : place + len(pictures)]
                place += len(pictures)
            beside = [
                data.TargetPicture(label, int(number))
                for (label, _), number in zip(target, numbers[len(every) :], strict=True)
            ]
            shown = tuple(beside) if not sets else ()
            median, near_zero = of_target.get(group, ((), ())) if name == "patches" else ((), ())
            of = self.searched.get(group) if name == "patches" else None
            label = LABELS[name] + (f"; chosen among {of}" if of else "")
            sets.append(data.PictureSet(name, label, table, shown, group, median, near_zero))
        view = replace(document.view, pictures=sets[0].name) if sets else document.view
        return replace(document, pictures=tuple(sets), tiles=tiles, view=view)


def _patches(
    drawing: Drawing,
    drawn: Sequence[int],
    seen: Seen,
    primaries: Tensor,
    group: int | None,
    photographs: Sequence[Hashable] | None,
    progress: Progress | None,
) -> dict[int, list[_Patch]]:
    """Return for each node the parts of images that drive it most, as large as it sees; one of each photograph.

    Of a group, those parts of its own images that drive the nodes of its own circuit. Without groups, a node runs in
    the first circuit that has it: in the others nothing reaches it, so no part would drive it.
    """
    top = TARGET_PATCHES if photographs is None else len(photographs)
    images, shown = seen.images[group or 0], set(drawn)
    first: dict[int, int] = {}
    for variant in range(len(drawing.circuits)) if group is None else [group]:
        own = _nodes_of(drawing, variant)
        for n in _with_maps(drawing, drawn, seen.readings, variant):
            if own[n]:
                first.setdefault(n, variant)
    those = [*(n for n in first if n in shown), *(n for n in first if n not in shown)][:MOST_PICTURED]
    wanted = {n: PATCHES if n in shown else 1 for n in those} | {drawing.graph.goal: TARGET_PATCHES}
    chosen: dict[int, tuple[Field, list[Place]]] = {}
    for variant in sorted({first[n] for n in those}):
        begin(progress, "choosing patches" if variant == 0 else f"choosing patches of circuit {variant + 1} alone")
        nodes = [n for n in those if first[n] == variant]
        fields = {seen.readings[n]: seen.fields[seen.readings[n]] for n in nodes}
        best: Best = best_patches(drawing.subject, drawing.masks[variant], images, fields, top=top)
        rows = {reading: r for r, reading in enumerate(fields)}
        for n in nodes:
            r = rows[seen.readings[n]]
            ranked = list(zip(best.image[r].tolist(), best.position[r].tolist(), strict=True))
            chosen[n] = fields[seen.readings[n]], _one_of_each(ranked, photographs)[: wanted[n]]
    return _cut(chosen, images, primaries, group)


def _count_of(images: Batches, photographs: Sequence[Hashable] | None, subjects: bool) -> str:
    """Return how many images there are, in words: what drives a filter most in a few need not in more."""
    return f"{images.total:,} images" if photographs is None else counted(photographs, subjects=subjects)


Place = tuple[int, list[int]]  # an image, and a position of a map


def _samples(
    drawing: Drawing,
    seen: Seen,
    primaries: Tensor,
    group: int | None,
    photographs: Sequence[Hashable] | None,
    seed: int,
) -> tuple[list[_Patch], list[_Patch]]:
    """Return parts of images on which the target has its median value, and on which it is nearest zero."""
    variant, field = group or 0, seen.fields[None]
    images = seen.images[variant]
    both = nearest_patches(drawing.subject, drawing.masks[variant], images, field, seed)
    places = [
        _one_of_each(list(zip(found.image[0].tolist(), found.position[0].tolist(), strict=True)), photographs)
        for found in both
    ]
    cut = _cut({n: (field, some[:TARGET_PATCHES]) for n, some in enumerate(places)}, images, primaries, group)
    return cut[0], cut[1]


def _cut(
    places: Mapping[int, tuple[Field, Sequence[Place]]], images: Batches, primaries: Tensor, group: int | None
) -> dict[int, list[_Patch]]:
    """Cut the receptive fields of positions out of images."""
    needed = sorted({i for _, some in places.values() for i, _ in some})
    rgb = {i: displayable(torch.cat(list(images.take([i]))), primaries)[0] for i in needed}
    found: dict[int, list[_Patch]] = {}
    for n, (field, some) in places.items():
        boxes = [(i, field.box(*position)) for i, position in some]
        found[n] = [
            _Patch(group, i, box, _hatched(_small(to_bytes(crop(rgb[i], box)[None])[0]), box, rgb[i].shape))
            for i, box in boxes
        ]
    return found


def _wholes(
    seen: Seen,
    patches: Mapping[int, Sequence[_Patch]],
    of_target: Sequence[int],
    primaries: Tensor,
    group: int | None,
    names: Sequence[str] | None,
) -> dict[tuple[int | None, int], data.Whole]:
    """Return a group's images that are kept whole, by group and number."""
    counts = Counter(patch.image for some in patches.values() for patch in some)
    ranked = [*of_target, *(image for image, _ in counts.most_common())]
    kept = list(dict.fromkeys(ranked))[: WHOLES // len(seen.images)]
    found = {}
    for i in kept:
        rgb = displayable(torch.cat(list(seen.images[group or 0].take([i]))), primaries)
        picture, name = to_bytes(rgb)[0], f"image {i}" if names is None else names[i]
        found[group, i] = data.Whole(name, data_url(_resized(picture, WHOLE)), (rgb.shape[1], rgb.shape[2]))
    return found


def _hatched(picture: np.ndarray, box: Box, shape: Sequence[int]) -> np.ndarray:
    """Return the picture of a box with what lies beyond the image hatched, so that it is not taken for a part of it."""
    spans = ((box.top, box.height, shape[0], picture.shape[0]), (box.left, box.width, shape[1], picture.shape[1]))
    places = [start + (np.arange(pixels) + 0.5) / pixels * length for start, length, _, pixels in spans]
    rows, columns = ((at < 0) | (at > size) for at, (_, _, size, _) in zip(places, spans, strict=True))
    period = max(2, round(max(picture.shape[:2]) / 10))
    stripes = np.add.outer(*(np.arange(pixels) for *_, pixels in spans)) % period < period / 2
    hatch = np.where(stripes, *HATCH).astype(np.uint8)[..., None]
    return np.where((rows[:, None] | columns)[..., None], hatch, picture)


def _one_of_each(places: Sequence[Place], photographs: Sequence[Hashable] | None) -> list[Place]:
    """Return the first place, an image and a position, of each photograph, in their order."""
    first: dict[Hashable, Place] = {}
    for image, position in places:
        first.setdefault(image if photographs is None else photographs[image], (image, position))
    return list(first.values())


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
    both = [("the circuit", found[None]), ("the full model", full)]
    return [(OPTIMIZED.format(where), picture.pixels.numpy()) for where, picture in both if picture is not None]


def _with_maps(drawing: Drawing, some: Sequence[int], known: Mapping[int, Reading], variant: int = 0) -> list[int]:
    """List the nodes that have a map: the given ones, then the others from the most salient in a circuit."""
    g = drawing.graph
    salience = np.bincount(g.target, np.nan_to_num(g.saliency[variant]), len(g.site))
    return [n for n in dict.fromkeys([*some, *np.argsort(-salience).tolist()]) if n in known]


def _nodes_of(drawing: Drawing, variant: int) -> np.ndarray:
    """Return which nodes a circuit has, (N,): what its kernels read and write, and what no kernel reads or writes."""
    g = drawing.graph
    weighted = g.kind <= EdgeKind.INNER
    touched, own = np.zeros(len(g.site), bool), np.zeros(len(g.site), bool)
    for mask, kernels in ((touched, weighted), (own, weighted & g.present[variant])):
        mask[g.source[kernels]] = mask[g.target[kernels]] = True
    return own | ~touched


def _small(picture: np.ndarray) -> np.ndarray:
    """Return a picture no larger than a tile, since thousands at full size would not fit in memory."""
    return picture if max(picture.shape[:2]) <= TILE else _resized(picture, TILE)


def _resized(picture: np.ndarray, side: int) -> np.ndarray:
    scale = side / max(picture.shape[:2])
    size = (max(1, round(picture.shape[1] * scale)), max(1, round(picture.shape[0] * scale)))
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS))
