"""The circuit diagram's document: what Python writes and every host of the diagram reads.

Its laws have their one home here. ``tools/diagram_types.py`` writes what else holds to them from the records below: the
JSON schema and the types of ``frontend/src/core/types.ts``, with the docstrings, and the comments behind the fields.
Shapes: N nodes, E edges, V variants, I images, K pictures of one node.
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Annotated, Any, Literal, Self, TypeAlias

import numpy as np

from convcircuits.drawing.records import Array, Law, Record, arrays, plain, read, within
from convcircuits.errors import ConvCircuitsError
from convcircuits.values.drawable import FAN_IN, FILTERS

SCHEMA = "convcircuits-diagram/2"
PAGE = 2048  # the most pixels a page of pictures may be wide or high, so that every browser decodes it
SHARES = (0.5, 0.8, 0.95)  # of a node's flow, which a view may isolate
LONGEST_NAME = 80  # characters of a group's name
LONGEST_LABEL = 40  # of a filter's label
LONGEST_NOTE = 1000  # of what is noted of it

Count: TypeAlias = Annotated[int, Law("minimum", 0)]
Positive: TypeAlias = Annotated[int, Law("minimum", 1)]
DataURL: TypeAlias = Annotated[str, Law("pattern", "^data:image/")]  # so that nothing is fetched
FileName: TypeAlias = Annotated[str, Law("pattern", "^[A-Za-z0-9_+][A-Za-z0-9_.+-]*$")]


class NodeKind(IntEnum):
    """What a node is."""

    FILTER = 0
    IMAGE = 1  # a channel of the image: never drawn, its kernels show in the first filters' pictures
    ADD = 2  # what is added or scaled where no filter does it alone
    GATE = 3
    MIX = 4  # what mixes channels
    TARGET = 5  # what reads several filters: a direction


class EdgeKind(IntEnum):
    """What an edge is: one kernel, or a connection without weights."""

    KERNEL = 0
    INNER = 1  # a kernel inside a node (source = target) that applies to all that comes into it
    IDENTITY = 2
    GATE = 3
    MIX = 4
    READOUT = 5


@dataclass(frozen=True, eq=False)
class Meta(Record):
    """What the diagram is of."""

    title: str
    feature: str  # "features.10:9"
    model: str
    criterion: str | None = None
    granularity: Literal["kernel", "filter", "weight"] = "kernel"
    notes: tuple[str, ...] = ()  # whole sentences, shown under "about"
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)
    file: FileName = "circuit"  # what its files are named, without a suffix


@dataclass(frozen=True, eq=False)
class Column(Record):
    """What stands over a column, which may hold several layers (the branches of one module)."""

    partial = True

    label: str
    detail: str = ""
    alias: str = ""  # the name that papers use for its only layer, if they do
    sees: Positive | None = None  # pixels that one position depends on, the longer side; None: not known


@dataclass(frozen=True, eq=False)
class DrawnLayer(Record):
    """A layer that has kernels, or filters of its own."""

    name: str
    label: str
    column: Count
    kernel: tuple[Positive, Positive]  # (kh, kw)
    filters: Positive


@dataclass(frozen=True, eq=False)
class Nodes(Record):
    """All nodes, one entry each."""

    kind: Annotated[Array, "uint8", "N"]  # NodeKind
    column: Annotated[Array, "int16", "N"]  # -1 for the image's channels
    layer: Annotated[Array, "int16", "N"]  # the layer of its last filter; -1 where it has none
    unit: Annotated[Array, "int32", "N"]  # number of the filter or channel
    names: Mapping[int, str] = dataclasses.field(default_factory=dict)  # of some nodes, such as a class's

    def __len__(self) -> int:
        return len(self.kind)


@dataclass(frozen=True, eq=False)
class Edges(Record):
    """All edges, one entry each. A source's column is left of its target's, but for inner kernels.

    One edge is one kernel, or a connection without weights. An inner kernel, such as the depthwise one of a chain of
    layers that is drawn as one step, applies to all that comes into its node, which is dead without it.
    """

    source: Annotated[Array, "int32", "E"]
    target: Annotated[Array, "int32", "E"]
    kind: Annotated[Array, "uint8", "E"]  # EdgeKind
    layer: Annotated[Array, "int16", "E"]  # -1 for connections without weights
    out: Annotated[Array, "int32", "E"]  # -1 likewise
    in_: Annotated[Array, "int32", "E"]  # -1 likewise
    sign: Annotated[Array, "int8", "E"]  # 1 excites, -1 inhibits, 0 neither (a connection)
    weights: Annotated[Array, "int32", "E"]  # where its kh * kw weights begin, row by row; -1 for none
    scale: Annotated[Array, "float32", "E"]  # a weight is its int8 / 127 * scale

    def __len__(self) -> int:
        return len(self.source)

    @property
    def weighted(self) -> Array:
        """Which edges are kernels, as bool (E)."""
        return np.asarray(self.kind <= EdgeKind.INNER)


@dataclass(frozen=True, eq=False)
class Drawn(Record):
    """What the default view draws, measured as a network of its own."""

    kernels: Count
    r2: float | None
    path: float  # share of the target's flow that complete drawn paths carry


@dataclass(frozen=True, eq=False)
class Rival(Record):
    """R2 of the best draw of a control that was treated as the circuit was. None: not defined."""

    name: Literal["relabelled", "random", "redrawn", "refound", "average_map"]
    r2: float | None
    r2_interior: float | None
    r2_rectified: float | None


@dataclass(frozen=True, eq=False)
class Controls(Record):
    """A circuit beside controls that were treated alike; margins are on the interior if there is one."""

    later = ("unmeasured",)

    verdict: Literal["found", "not found", "not decided"]
    sentence: str  # the verdict and why
    margin: float | None  # R2 of the circuit minus that of the best control, or minus 0 if that is higher
    noise: float | None  # of the margin; None, as of the margin: not defined
    best: Literal["relabelled", "random", "redrawn", "refound", "average_map"]  # the best control
    rivals: tuple[Rival, ...]  # those that could be made
    unmeasured: str = ""  # a control that the verdict does without, in words; empty: none

    def _check(self) -> None:
        names = [rival.name for rival in self.rivals]
        if len(set(names)) < len(names) or self.best not in names:
            raise ConvCircuitsError(f"Controls.rivals must be one of each name, {self.best} among them: got {names}.")


@dataclass(frozen=True, eq=False)
class Fidelity(Record):
    """Measured of the whole circuit on the held-out images; None where it is not defined or was not measured."""

    r2: float | None
    r2_interior: float | None = None
    r2_rectified: float | None = None
    r2_average_map: float | None = None  # of the average map of other images, which no network is needed for
    r2_average_map_interior: float | None = None
    r2_random: float | None = None  # of a random circuit that keeps as many elements of each layer
    r2_random_interior: float | None = None
    interior: Literal["inside", "central", "unknown"] = "unknown"  # central: too few receptive fields lie inside
    verdict: Literal["keeps", "keeps in part", "does not keep", "not decided"] = "not decided"
    sentence: str = "Not decided."  # the verdict and why
    found_on: bool = False  # whether these are the very images that it was found on
    drawn: Drawn | None = None
    random_refitted: bool = False  # whether the random circuit was refitted as this one was
    controls: Controls | None = None  # None: not measured


@dataclass(frozen=True, eq=False)
class Calibration(Record):
    """What was fitted of a circuit: gains of its kernels, and offsets of its filters."""

    later = ("thicker",)

    constants: Count  # how many gains and offsets that is
    images: Positive | None  # how many they were fitted on; None: not known
    gain: Annotated[Array, "float32", "E"]  # what the circuit multiplies a kernel by; 1 where it has no gain of its own
    thicker: str = ""  # what a thicker edge says of its kernel, for people; empty: not known


@dataclass(frozen=True, eq=False)
class Variant(Record):
    """A circuit over the document's nodes and edges."""

    name: str
    role: Literal["circuit", "against", "control", "level"]  # level: of its descent, or found anew
    saliency: Annotated[Array, "float32", "E"]  # NaN for connections and for kernels that are not in it
    rank: Annotated[Array, "int32", "E"]  # place by saliency, 0 the highest; -1: not in it; 0 for connections
    kernels: Count  # those that have a rank, inner ones and those of the image included
    effective: Count  # on a complete path; more, where some act through statistics of channels alone
    filters: Count  # filters that have effective kernels
    kept: Count  # kernels the circuit keeps, effective or not
    relevant: Count  # kernels of the full model that lie on a path to the feature
    calibration: Calibration | None  # None: its kernels are the model's
    nested: bool  # whether the first k kernels by rank are what the criterion would keep at k
    fidelity: Fidelity | None = None

    def _check(self) -> None:
        if not 0 <= self.kernels <= self.effective <= self.kept <= self.relevant:
            raise ConvCircuitsError(
                f"Variant {self.name!r} has {self.kernels} ranked kernels, {self.effective} effective, {self.kept} "
                f"kept and {self.relevant} relevant ones; none of these is more than the next."
            )
        if np.isinf(self.saliency).any():
            raise ConvCircuitsError(f"Variant {self.name!r} has an infinite saliency; it is finite or NaN.")
        if self.calibration is not None and not np.isfinite(self.calibration.gain).all():
            raise ConvCircuitsError(f"Variant {self.name!r} has a gain that is not a finite number.")


@dataclass(frozen=True, eq=False)
class TargetPicture(Record):
    """A picture of the target, shown in its details."""

    label: str
    tile: Count


@dataclass(frozen=True, eq=False)
class PictureSet(Record):
    """A way to picture the nodes. Sets of one name show the same, each on the images of one circuit's group."""

    later = ("median", "near_zero")

    name: str  # "patches", "features"
    label: str  # what it shows, for people
    tiles: Annotated[Array, "int32", "N K"]  # the best first, -1 where there is none
    target: tuple[TargetPicture, ...] = ()
    variant: Count | None = None  # the circuit that runs, on the images of its group; None: there are no groups
    median: tuple[Count, ...] = ()  # tiles of the target where its value is nearest its median, one of each photograph
    near_zero: tuple[Count, ...] = ()  # likewise, where it is nearest zero


@dataclass(frozen=True, eq=False)
class Page(Record):
    """One picture that holds ``count`` tiles, row by row, ``columns`` to a row."""

    columns: Positive
    count: Positive
    src: DataURL


@dataclass(frozen=True)
class Whole(Record):
    """An image that tiles were cut out of."""

    name: str
    src: DataURL  # a thumbnail
    size: tuple[Positive, Positive]  # height and width in pixels


@dataclass(frozen=True)
class Cut(Record):
    """The part of an image that a tile shows."""

    tile: Count
    whole: Count
    box: tuple[int, int, int, int]  # top, left, height and width in pixels; it may extend beyond the image


@dataclass(frozen=True, eq=False)
class Tiles(Record):
    """Square pictures, numbered through the pages."""

    partial = True

    size: Annotated[int, Law("minimum", 1), Law("maximum", PAGE)]  # pixels
    pages: tuple[Page, ...]
    wholes: tuple[Whole, ...] = ()  # images that some tiles were cut out of
    cuts: tuple[Cut, ...] = ()  # of these tiles

    def __len__(self) -> int:
        return sum(page.count for page in self.pages)

    def _check(self) -> None:
        most = PAGE // self.size
        for page in self.pages:
            if page.columns > most or page.count > page.columns * most:
                raise ConvCircuitsError(
                    f"A page of tiles is at most {PAGE} pixels wide and high; got {page.count} tiles of {self.size} "
                    f"pixels in {page.columns} columns."
                )
        for cut in self.cuts:
            if cut.tile >= len(self) or cut.whole >= len(self.wholes) or min(cut.box[2:]) < 1:
                raise ConvCircuitsError(
                    f"Tile {cut.tile} of {len(self)} is cut out of image {cut.whole} of {len(self.wholes)}, "
                    f"{cut.box[2]} x {cut.box[3]} pixels."
                )


@dataclass(frozen=True)
class Inside(Record):
    """The part of a map whose receptive fields lie inside the image; where too few do, its middle."""

    rows: tuple[Count, Count]  # the first, and the one after the last
    columns: tuple[Count, Count]
    exact: bool  # False: too few fields lie inside, and this is the middle


@dataclass(frozen=True, eq=False)
class TargetMaps(Record):
    """The target on some images, in the full model and in each variant. Figures are of the positions that count."""

    positions: str  # which count, for people
    shape: tuple[Count, Count]  # of its map; those below may be smaller, averaged
    inside: Inside | None  # None: not known
    full_mean: Annotated[Array, "float32", "I"]  # in the full model
    full_maximum: Annotated[Array, "float32", "I"]
    mean: Annotated[Array, "float32", "V I"]  # in each variant
    maximum: Annotated[Array, "float32", "V I"]
    r2: Annotated[Array, "float32", "V I"]  # on that image alone; NaN: not defined
    r2_inside: Annotated[Array, "float32", "V I"]  # of the positions inside; NaN likewise, or where they are not known
    full_map: Annotated[Array, "int8", "I h w"]  # int8 / 127 * its scale
    full_scale: Annotated[Array, "float32", "I"]
    map: Annotated[Array, "int8", "V I h w"]
    scale: Annotated[Array, "float32", "V I"]

    def _check(self) -> None:
        if self.map.shape[2:] != self.full_map.shape[1:]:
            raise ConvCircuitsError(
                f"images.target.map is of {self.map.shape[2:]}, the full model's of {self.full_map.shape[1:]}."
            )
        for name in ("full_scale", "scale"):
            scale = getattr(self, name)
            if not (np.isfinite(scale) & (scale >= 0)).all():
                raise ConvCircuitsError(f"images.target.{name} holds what is not a number of at least 0.")
        if self.inside is None:
            return
        for (first, end), length in zip((self.inside.rows, self.inside.columns), self.shape, strict=True):
            if not 0 <= first < end <= length:
                raise ConvCircuitsError(f"{first} to {end} are no rows or columns inside a map that has {length}.")


@dataclass(frozen=True, eq=False)
class ImageMaps(Record):
    """What the circuit does on some images; of images in groups, the circuit of each image's group.

    Maps are int8 / 127 * scale, map after map.
    """

    names: Annotated[tuple[str, ...], Law("minItems", 1)]
    src: Annotated[tuple[DataURL, ...], Law("minItems", 1)]  # thumbnails
    target: TargetMaps
    activation: Annotated[Array, "int8", "*"]  # node after node, each (I, h, w), in the circuit
    activation_offset: Annotated[Array, "int32", "N"]  # -1 for none
    activation_shape: Annotated[Array, "int16", "N 2"]
    activation_scale: Annotated[Array, "float32", "N I"]
    effect: Annotated[Array, "float32", "E I"]  # mean over positions of what a kernel adds; NaN: not known
    presum: Annotated[Array, "int8", "*"]  # edge after edge, each (I, h, w): what a kernel adds, by position
    presum_offset: Annotated[Array, "int32", "E"]  # -1 for none
    presum_shape: Annotated[Array, "int16", "E 2"]
    presum_scale: Annotated[Array, "float32", "E I"]
    variants: tuple[Count, ...] = ()  # of each image, the variant of its group; empty: there are no groups

    def __len__(self) -> int:
        return len(self.names)

    def of(self, variant: int, compare: int | None = None) -> tuple[int, ...]:
        """Return the images that a view of a variant, compared with another, lists: those of their groups, or all."""
        some = tuple(n for n, of in enumerate(self.variants) if of in (variant, compare))
        return some or tuple(range(len(self)))

    def _check(self) -> None:
        if len(self.src) != len(self.names):
            raise ConvCircuitsError(
                f"Each image has a name and a thumbnail; got {len(self.names)} names and {len(self.src)} thumbnails."
            )
        if len(self.variants) not in (0, len(self.names)):
            raise ConvCircuitsError(
                f"Each image is of one variant's group, or none is; got {len(self.names)} images and "
                f"{len(self.variants)} variants."
            )


@dataclass(frozen=True, eq=False)
class HeldOut(Record):
    """What fidelity was measured on."""

    count: Positive  # images


@dataclass(frozen=True)
class Crossed(Record):
    """What the circuits of groups of images do on held-out images of each group, at one position of each image."""

    verdict: Literal["selective", "not selective", "not decided"]
    sentence: str  # the verdict and, after a colon, why
    own: float  # their relative error on their own groups
    others: float  # on the other groups


@dataclass(frozen=True)
class Group(Record):
    """Nodes of one column, drawn as one."""

    name: Annotated[str, Law("maxLength", LONGEST_NAME)]
    nodes: Annotated[tuple[Count, ...], Law("minItems", 2)]


@dataclass(frozen=True)
class Note(Record):
    """What a reader calls a node, and has noted of it; plain text."""

    node: Count
    label: Annotated[str, Law("maxLength", LONGEST_LABEL)] = ""  # stands beside its number wherever it is named
    note: Annotated[str, Law("maxLength", LONGEST_NOTE)] = ""


@dataclass(frozen=True)
class Span(Record):
    """A range of columns, such as those of a residual block."""

    first: Count
    last: Count  # it belongs to the range


@dataclass(frozen=True)
class View(Record):
    """What a reader has chosen: all that a page's URL says, too. JSON holds only what differs from the defaults."""

    partial = True

    variant: Count = 0
    compare: Count | None = None  # a second variant: only this, only that, both
    kernels: Positive | None = None  # the first k kernels by rank; None: all
    nodes_per_column: Positive = FILTERS
    kernels_per_node: Positive = FAN_IN
    paths: Literal["main", "all"] = "main"  # what is lit of what is drawn where no node is isolated
    root: Count | None = None  # a node drawn as the target
    isolate: Count | None = None  # a node whose flow alone is drawn
    share: Annotated[float, Law("enum", SHARES)] = 0.8  # how much of its flow
    pins: tuple[Count, ...] = ()  # nodes that are drawn whatever their flow
    groups: tuple[Group, ...] = ()
    collapsed: tuple[Span, ...] = ()  # ranges of columns left of the target's, each drawn as one
    notes: tuple[Note, ...] = ()  # at most one of a node
    pictures: str = "patches"  # name of a picture set; where there is none of this one, the first is shown
    image: Count | None = None
    mode: Literal["diagram", "all", "table"] = "diagram"


@dataclass(frozen=True, eq=False)
class Document(Record):
    """A circuit diagram: everything that any host needs to draw it, and nothing that only Python can read.

    Raises:
        ConvCircuitsError: If a field has another type, dtype, shape or range, by name.
    """

    later = ("crossed",)

    meta: Meta
    columns: Annotated[tuple[Column, ...], Law("minItems", 1)]  # left to right; the target's is the last
    layers: tuple[DrawnLayer, ...]
    nodes: Nodes
    edges: Edges
    weights: Annotated[Array, "int8", "*"]
    target: Count  # the node of the feature
    variants: Annotated[tuple[Variant, ...], Law("minItems", 1)]  # the first is the circuit itself
    pictures: tuple[PictureSet, ...]  # the first is the default
    tiles: Tiles
    images: ImageMaps | None = None
    held_out: HeldOut | None = None  # None: fidelity was not measured
    view: View = dataclasses.field(default_factory=View)
    crossed: Crossed | None = None  # None: not circuits of groups, or not cross-tested

    def _check(self) -> None:
        if self.variants[0].role != "circuit":
            raise ConvCircuitsError("The first of a document's variants is the circuit itself.")
        sizes = {"N": len(self.nodes), "E": len(self.edges), "V": len(self.variants), "2": 2}
        if self.images is not None:
            sizes["I"] = len(self.images)
        for where, array, axes in arrays("", self):
            expected = tuple(sizes.get(axis, size) for axis, size in zip(axes, array.shape, strict=True))
            if array.shape != expected:
                raise ConvCircuitsError(f"{where} has shape {array.shape}; expected ({', '.join(axes)}) = {expected}.")
        _check_nodes(self)
        _check_edges(self)
        for variant in self.variants:
            _check_variant(self, variant)
        _check_pictures(self)
        if self.images is not None:
            _check_images(self, self.images)
        check_view(self, self.view)

    def to_json(self) -> str:
        """Return the document as JSON text, the same for the same document."""
        return json.dumps(self.to_dict(), ensure_ascii=False, allow_nan=False, separators=(",", ":"))

    def to_dict(self) -> dict[str, Any]:
        """Return the document as values that ``json`` can write."""
        return {"schema": SCHEMA, **plain(self)}

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Read the text that ``to_json`` returned.

        Raises:
            ConvCircuitsError: If the text is not valid JSON, has another schema, or is not a valid document.
        """
        try:
            said = json.loads(text)
            if not isinstance(said, dict) or said.pop("schema", None) != SCHEMA:
                raise ConvCircuitsError(f'This is not a circuit diagram: its "schema" is not {SCHEMA!r}.')
            document: Self = read("document", said, cls)
        except ConvCircuitsError:
            raise
        except ValueError as error:
            raise ConvCircuitsError(f"This is not valid JSON: {error}.") from error
        except RecursionError as error:
            raise ConvCircuitsError("This is not a circuit diagram: its JSON is nested too deep.") from error
        return document


def filter_names(document: Document) -> dict[int, str]:
    """Return the name of each filter's node, by layer and number: ``features.10:37``.

    A filter of a layer that runs several times has as many nodes, of one name.
    """
    nodes, layers = document.nodes, document.layers
    return {
        node: f"{layers[nodes.layer[node]].name}:{nodes.unit[node]}"
        for node in range(len(nodes))
        if nodes.kind[node] != NodeKind.IMAGE and nodes.layer[node] >= 0
    }


def view_from_dict(said: Mapping[str, Any]) -> View:
    """Read a view as the browser writes it: completely, or only what differs from the defaults."""
    view: View = read("view", said, View)
    return view


def view_to_dict(view: View) -> dict[str, Any]:
    """Return a complete view as the browser reads it."""
    said: dict[str, Any] = plain(view, whole=True)
    return said


def check_view(document: Document, view: View) -> None:
    """Refuse a view that does not fit the document. The browser would ignore what does not fit.

    Raises:
        ConvCircuitsError: If it names a node, variant, image or picture set that is not there, or a channel of the
            image, which is never drawn; compares a variant with itself; groups or collapses what cannot be drawn as
            one; or has two notes of one node.
    """
    nodes, variants = len(document.nodes), len(document.variants)
    images = 0 if document.images is None else len(document.images)
    grouped = [node for group in view.groups for node in group.nodes]
    noted = [note.node for note in view.notes]
    named = [node for node in (view.root, view.isolate, *view.pins, *grouped, *noted) if node is not None]
    asked = [("variant", view.variant, variants), ("variant", view.compare, variants), ("image", view.image, images)]
    for what, number, count in [*asked, *(("node", node, nodes) for node in named)]:
        if number is not None and number >= count:
            raise ConvCircuitsError(f"The view names {what} {number}; the document has {count}.")
    for node in named:
        if document.nodes.kind[node] == NodeKind.IMAGE:
            raise ConvCircuitsError(f"The view names node {node}, a channel of the image, which is never drawn.")
    listed = () if document.images is None else document.images.of(view.variant, view.compare)
    if view.image is not None and view.image not in listed:
        raise ConvCircuitsError(f"The view names image {view.image}, which is of the group of another variant.")
    if view.compare == view.variant:
        raise ConvCircuitsError(f"The view compares variant {view.variant} with itself.")
    sets = [pictures.name for pictures in document.pictures]
    if view.pictures not in (View.pictures, *sets):
        raise ConvCircuitsError(f"The view shows pictures {view.pictures!r}; the document has {', '.join(sets)}.")
    if len(set(grouped)) != len(grouped):
        raise ConvCircuitsError("The view's groups name a node twice.")
    ranges = sorted((span.first, span.last) for span in view.collapsed)
    ends = [-1, *(last for _, last in ranges)]
    for (first, last), before in zip(ranges, ends, strict=False):
        if not before < first < last < len(document.columns) - 1:
            raise ConvCircuitsError(
                f"The view draws columns {first} to {last} as one; such ranges are of two columns or more, end before "
                f"the target's, {len(document.columns) - 1}, and share none."
            )
    if len(set(noted)) != len(noted):
        raise ConvCircuitsError("The view has two notes of one node.")
    for group in view.groups:
        if len(set(document.nodes.column[list(group.nodes)].tolist())) != 1:
            raise ConvCircuitsError(f"Group {group.name!r} is not of nodes of one column.")


# The laws of a document


def _refuse(wrong: Array, what: str) -> None:
    """Raise an error that names the first wrong entry, if there is one."""
    if wrong.any():
        raise ConvCircuitsError(what.format(int(np.flatnonzero(wrong)[0])))


def _check_nodes(document: Document) -> None:
    nodes, columns = document.nodes, len(document.columns)
    for layer in document.layers:
        if layer.column >= columns:
            raise ConvCircuitsError(f"Layer {layer.name!r} is in column {layer.column}; there are {columns}.")
    within("nodes.kind", nodes.kind, 0, len(NodeKind))
    within("nodes.column", nodes.column, -1, columns)
    within("nodes.layer", nodes.layer, -1, len(document.layers))
    within("nodes.unit", nodes.unit, -1, 2**31)
    within("nodes.names", np.array(list(nodes.names), dtype=np.int64), 0, len(nodes))
    image = nodes.kind == NodeKind.IMAGE
    _refuse((nodes.column == -1) != image, "Node {} has column -1 but is not a channel of the image, or the reverse.")
    _refuse((nodes.kind == NodeKind.FILTER) & (nodes.layer == -1), "Node {} is a filter without a layer.")
    if document.target >= len(nodes):
        raise ConvCircuitsError(f"The target is node {document.target}; there are {len(nodes)}.")
    if nodes.column[document.target] != columns - 1:
        raise ConvCircuitsError(f"The target is in column {nodes.column[document.target]}; it belongs in the last.")


def _check_edges(document: Document) -> None:
    nodes, edges = document.nodes, document.edges
    for name in ("source", "target"):
        within(f"edges.{name}", getattr(edges, name), 0, len(nodes))
    within("edges.kind", edges.kind, 0, len(EdgeKind))
    within("edges.layer", edges.layer, -1, len(document.layers))
    within("edges.sign", edges.sign, -1, 2)
    for name in ("layer", "out", "in_"):
        wrong = (getattr(edges, name) >= 0) != edges.weighted
        _refuse(wrong, f"Edge {{}} is a kernel without {name.rstrip('_')}, or a connection with one; it is -1 then.")
    inner = edges.kind == EdgeKind.INNER
    _refuse(inner & (edges.source != edges.target), "Edge {} is inner but leads from one node to another.")
    leftwards = nodes.column[edges.source] >= nodes.column[edges.target]
    _refuse(~inner & leftwards, "Edge {} does not lead from a column to one on its right.")
    sizes = np.array([math.prod(layer.kernel) for layer in document.layers] + [0])  # [-1]: no layer
    beyond = (edges.weights >= 0) & (edges.weights.astype(np.int64) + sizes[edges.layer] > len(document.weights))
    _refuse(beyond | (edges.weights < -1), "The weights of edge {} are not all in the document's weights.")
    _refuse((edges.weights >= 0) & ~edges.weighted, "Edge {} is a connection but has weights.")
    _refuse(~np.isfinite(edges.scale) | (edges.scale < 0), "The scale of edge {} is not a number of at least 0.")


def _check_variant(document: Document, variant: Variant) -> None:
    weighted = document.edges.weighted
    _refuse(~weighted & (variant.rank != 0), f"Edge {{}} is a connection; its rank in {variant.name!r} should be 0.")
    ranks = np.unique(variant.rank[weighted & (variant.rank != -1)])
    if len(ranks) != variant.kernels or (len(ranks) and not 0 <= ranks[0] <= ranks[-1] < variant.kept):
        raise ConvCircuitsError(
            f"The ranks of variant {variant.name!r} should be {variant.kernels} of 0 to {variant.kept - 1}, one for "
            "each of its kernels, and -1."
        )
    if variant.fidelity is not None and document.held_out is None:
        raise ConvCircuitsError(f"Variant {variant.name!r} has a fidelity, but the document names no held-out images.")


def _check_pictures(document: Document) -> None:
    names = [(pictures.name, pictures.variant) for pictures in document.pictures]
    if len(set(names)) != len(names):
        raise ConvCircuitsError(
            f"Picture sets of one variant have names of their own; got {', '.join(name for name, _ in names)}."
        )
    for pictures in document.pictures:
        if pictures.variant is not None and pictures.variant >= len(document.variants):
            raise ConvCircuitsError(
                f"Pictures {pictures.name!r} are of variant {pictures.variant}, which is not there."
            )
        target = [*(picture.tile for picture in pictures.target), *pictures.median, *pictures.near_zero]
        shown = np.array(target, dtype=np.int64)
        within(f"The tiles of {pictures.name!r}", pictures.tiles, -1, len(document.tiles))
        within(f"The target's tiles of {pictures.name!r}", shown, 0, len(document.tiles))


def _check_images(document: Document, images: ImageMaps) -> None:
    within("images.variants", np.array(images.variants, dtype=np.int64), 0, len(document.variants))
    for name in ("activation", "presum"):
        maps, offset = getattr(images, name), getattr(images, f"{name}_offset").astype(np.int64)
        shape, scale = getattr(images, f"{name}_shape").astype(np.int64), getattr(images, f"{name}_scale")
        beyond = (offset >= 0) & (offset + len(images) * shape.prod(axis=1) > len(maps))
        _refuse(beyond | (offset < -1) | (shape < 0).any(axis=1), f"Map {{}} is not all in images.{name}.")
        known = np.isfinite(scale) & (scale >= 0)
        _refuse((offset >= 0) & ~known.all(axis=1), f"images.{name}_scale of {{}} is not a number of at least 0.")
