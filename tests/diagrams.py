"""Small circuit diagrams for tests, made of numbers alone; ``python tests/diagrams.py`` writes them as fixtures."""

import base64
import dataclasses
import io
import math
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from convcircuits.drawing.data import (
    Calibration,
    Column,
    Controls,
    Document,
    Drawn,
    DrawnLayer,
    EdgeKind,
    Edges,
    Fidelity,
    Group,
    HeldOut,
    ImageMaps,
    Inside,
    Meta,
    NodeKind,
    Nodes,
    Page,
    PictureSet,
    Rival,
    TargetMaps,
    TargetPicture,
    Tiles,
    Variant,
    View,
)

FIXTURES = Path(__file__).parent / "fixtures" / "diagram"

HOSTILE = (
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<!--<script>",
    "\u202eevil\u202c \u2066x\u2069",
    "a & b \"c\" 'd' ]]> &lt;b&gt;",
    "javascript:alert(1)//${alert(1)}`",
    "control \x00\x07\x1b\ufffe characters",
)


def picture(size: int, seed: int) -> str:
    """A square PNG of random pixels as a data URL."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def sheet(count: int, size: int, seed: int = 0) -> Tiles:
    """Plain coloured tiles in one page."""
    columns = math.ceil(math.sqrt(count))
    colours = np.random.default_rng(seed).integers(0, 256, (math.ceil(count / columns), columns, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(colours.repeat(size, 0).repeat(size, 1)).save(file, "png")
    src = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    return Tiles(size, (Page(columns, count, src),))


class Sketch:
    """A graph that is built up node by node and edge by edge."""

    def __init__(self) -> None:
        self.columns: list[Column] = []
        self.layers: list[DrawnLayer] = []
        self.nodes: list[tuple[int, int, int, int]] = []
        self.edges: list[tuple[int, int, int, int, int, int]] = []
        self.names: dict[int, str] = {}

    def column(self, label: str, detail: str = "") -> int:
        self.columns.append(Column(label, detail))
        return len(self.columns) - 1

    def layer(self, name: str, column: int, kernel: tuple[int, int], filters: int) -> int:
        self.layers.append(DrawnLayer(name, name, column, kernel, filters))
        return len(self.layers) - 1

    def node(self, kind: NodeKind, column: int, unit: int, layer: int = -1) -> int:
        self.nodes.append((kind, column, layer, unit))
        return len(self.nodes) - 1

    def kernel(self, source: int, target: int, layer: int, kind: EdgeKind = EdgeKind.KERNEL) -> None:
        self.edges.append((source, target, kind, layer, self.nodes[target][3], self.nodes[source][3]))

    def connect(self, source: int, target: int, kind: EdgeKind) -> None:
        self.edges.append((source, target, kind, -1, -1, -1))

    def document(
        self, target: int, *, seed: int = 0, variants: int = 1, images: int = 0, measured: bool = False, **changes: Any
    ) -> Document:
        """Fill in random weights, saliencies, pictures and maps."""
        rng = np.random.default_rng(seed)
        node, edge = np.array(self.nodes).reshape(-1, 4).T, np.array(self.edges).reshape(-1, 6).T
        source, sink, kind, layer, out, in_ = edge
        weighted = kind <= EdgeKind.INNER
        sizes = np.where(weighted, [math.prod(self.layers[x].kernel) for x in layer], 0)
        begin = np.where(weighted, np.cumsum(sizes) - sizes, -1)
        weights = rng.integers(-127, 128, int(sizes.sum()))
        sign = np.array([np.sign(weights[b : b + s].sum()) if w else 0 for b, s, w in zip(begin, sizes, weighted)])  # noqa: B905
        count, n = len(kind), node.shape[1]
        given = {
            "meta": Meta(
                "A circuit of conv3:1",
                "conv3:1",
                "a small network",
                "random",
                notes=("Its numbers are random.",),
                versions={"convcircuits": "0", "torch": "none"},
                file="a-small-network-conv3-1",
            ),
            "columns": self.columns,
            "layers": self.layers,
            "nodes": Nodes(node[0], node[1], node[2], node[3], self.names),
            "edges": Edges(source, sink, kind, layer, out, in_, sign, begin, rng.uniform(0.1, 1, count)),
            "weights": weights,
            "target": target,
            "variants": [self._variant(rng, edge, number, measured) for number in range(variants)],
            "pictures": [
                PictureSet("patches", "patches of images", np.arange(2 * n).reshape(n, 2), (TargetPicture("best", 0),)),
                PictureSet("features", "feature visualisations", np.arange(n)[::-1].reshape(n, 1)),
            ],
            "tiles": sheet(2 * n, 8, seed),
            "images": self._images(rng, images, variants, target) if images else None,
            "held_out": HeldOut(7) if measured else None,
        }
        return Document(**(given | changes))

    def _variant(self, rng: np.random.Generator, edge: np.ndarray, number: int, measured: bool) -> Variant:
        kind = edge[2]
        weighted = kind <= EdgeKind.INNER
        kept = weighted & ((rng.random(len(kind)) < 0.8) | (number == 0))
        saliency = np.where(kept, rng.gamma(0.7, size=len(kind)), np.nan)
        saliency[kind == EdgeKind.READOUT] = 0.5
        rank = np.where(weighted, -1, 0)
        rank[kept] = (-saliency[kept]).argsort(kind="stable").argsort(kind="stable")
        effective = int(kept.sum())
        drawn = Drawn(max(1, effective // 2), 0.6, 0.8)
        return Variant(
            ("the circuit", "another circuit", "a random circuit")[number],
            ("circuit", "against", "control")[number],
            saliency,
            rank,
            kernels=effective,
            effective=effective,
            filters=len({(int(edge[3, e]), int(edge[4, e])) for e in np.flatnonzero(kept)}),
            kept=effective + 1,
            relevant=len(kind) * 4 + 1,
            calibration=self._calibration(rng, kind) if number == 1 else None,
            nested=number == 0,
            fidelity=self._fidelity(number, drawn) if measured else None,
        )

    def _calibration(self, rng: np.random.Generator, kind: np.ndarray) -> Calibration:
        gain = np.where(kind <= EdgeKind.INNER, rng.normal(1, 1, len(kind)), 1)
        return Calibration(constants=int((gain != 1).sum()), images=9, gain=gain)

    def _fidelity(self, number: int, drawn: Drawn) -> Fidelity:
        word = ("keeps", "does not keep", "not decided")[number]
        return Fidelity(
            0.9 - number / 3,
            r2_interior=None if number == 2 else 0.8 - number,
            r2_rectified=0.85,
            r2_average_map=0.3,
            r2_average_map_interior=-0.1,
            r2_random=None if number == 2 else 0.1,
            r2_random_interior=None if number == 2 else -0.4,
            interior=("inside", "central", "unknown")[number],
            verdict=word,
            sentence=("The circuit keeps a:3: R2 is 0.90.", "The circuit does not keep a:3: R2 is 0.23.", f"{word}.")[
                number
            ],
            found_on=number == 1,
            drawn=drawn,
            random_refitted=number == 1,
            controls=self._controls() if number == 1 else None,
        )

    def _controls(self) -> Controls:
        return Controls(
            verdict="not found",
            sentence="The circuit of a:3 was not found: R2 on the interior is -0.20; the best control, the same "
            "graph on other filters, fitted alike, reaches -0.50 (less than a constant). The margin of -0.20 is not "
            "above its noise of 0.10.",
            margin=-0.2,
            noise=0.1,
            best="relabelled",
            rivals=(Rival("relabelled", -0.6, -0.5, None), Rival("average_map", -0.7, -0.6, -0.1)),
            unmeasured="the strictest control, a circuit found alike among shuffled kernels",
        )

    def _images(self, rng: np.random.Generator, images: int, variants: int, target: int) -> ImageMaps:
        n, e, h, w = len(self.nodes), len(self.edges), 4, 5
        filters = np.array([kind != NodeKind.IMAGE for kind, *_ in self.nodes])
        kernels = np.array([kind == EdgeKind.KERNEL for _, _, kind, *_ in self.edges])
        return ImageMaps(
            names=[f"photograph {i}" for i in range(images)],
            src=[picture(16, i) for i in range(images)],
            target=self._target(rng, images, variants),
            activation=rng.integers(0, 128, int(filters.sum()) * images * h * w),
            activation_offset=np.where(filters, (np.cumsum(filters) - filters) * images * h * w, -1),
            activation_shape=np.tile([h, w], (n, 1)),
            activation_scale=rng.random((n, images)),
            effect=np.where(kernels[:, None], rng.normal(size=(e, images)), np.nan),
            presum=rng.integers(-127, 128, int(kernels.sum()) * images * h * w),
            presum_offset=np.where(kernels, (np.cumsum(kernels) - kernels) * images * h * w, -1),
            presum_shape=np.tile([h, w], (e, 1)),
            presum_scale=rng.random((e, images)),
        )

    def _target(self, rng: np.random.Generator, images: int, variants: int) -> TargetMaps:
        h, w = 6, 7
        r2 = np.where(np.arange(images) == 1, np.nan, rng.uniform(-0.5, 1, (variants, images)))
        return TargetMaps(
            positions=f"all {h} x {w} positions",
            shape=(h, w),
            inside=Inside((1, h - 1), (2, w - 1), exact=True),
            full_mean=rng.random(images),
            full_maximum=1 + rng.random(images),
            mean=rng.random((variants, images)),
            maximum=1 + rng.random((variants, images)),
            r2=r2,
            r2_inside=r2 - 0.1,
            full_map=rng.integers(-40, 128, (images, h, w)),
            full_scale=1 + rng.random(images),
            map=rng.integers(-40, 128, (variants, images, h, w)),
            scale=1 + rng.random((variants, images)),
        )


def plain(*, widths: tuple[int, ...] = (3, 4, 1), density: float = 1.0, seed: int = 0, **options: Any) -> Document:
    """A chain of 3x3 convolutions on an RGB image; each filter reads each of the one before with a chance."""
    sketch, rng = Sketch(), np.random.default_rng(seed)
    before = [sketch.node(NodeKind.IMAGE, -1, c) for c in range(3)]
    for depth, width in enumerate(widths):
        column = sketch.column(f"conv{depth + 1}", "3 x 3")
        layer = sketch.layer(f"conv{depth + 1}", column, (3, 3), max(width, 2))
        filters = [sketch.node(NodeKind.FILTER, column, u, layer) for u in range(width)]
        for target in filters:
            for i, source in enumerate(before):
                if i == target % len(before) or depth == 0 or rng.random() < density:
                    sketch.kernel(source, target, layer)
        before = filters
    return sketch.document(before[0], seed=seed, **options)


def deep(blocks: int, **options: Any) -> Document:
    """A stem, then blocks of two layers each, the last of which has the target."""
    made = plain(widths=(*[4] * (2 * blocks), 1), **options)
    names = ["stem", *(f"layer1.{n}.conv{c}" for n in range(blocks) for c in (1, 2))]
    layers = [dataclasses.replace(layer, name=name) for layer, name in zip(made.layers, names, strict=True)]
    return dataclasses.replace(made, layers=layers)


def residual(**options: Any) -> Document:
    """What is not a chain of filters: a stream that is added to, a gate, mixing, inner kernels, branches, a readout."""
    sketch = Sketch()
    channels = [sketch.node(NodeKind.IMAGE, -1, c) for c in range(2)]
    first = sketch.layer("stem", sketch.column("stem"), (5, 1), 2)
    stem = [sketch.node(NodeKind.FILTER, 0, u, first) for u in range(2)]
    column = sketch.column("block", "two branches")
    narrow, deep = sketch.layer("block.a", column, (1, 1), 4), sketch.layer("block.depthwise", column, (3, 3), 4)
    branch = [sketch.node(NodeKind.FILTER, column, u, layer) for u, layer in ((0, narrow), (3, deep))]
    gate = sketch.node(NodeKind.GATE, column, 1)
    column = sketch.column("add")
    added = [sketch.node(NodeKind.ADD, column, u) for u in range(2)]
    mixed = sketch.node(NodeKind.MIX, sketch.column("norm"), 0)
    column = sketch.column("head")
    head = sketch.layer("head", column, (1, 1), 3)
    ends = [sketch.node(NodeKind.FILTER, column, u, head) for u in range(2)]
    target = sketch.node(NodeKind.TARGET, sketch.column("a direction"), -1)
    for filter_ in stem:
        for channel in channels:
            sketch.kernel(channel, filter_, first)
        for node, layer in zip(branch, (narrow, deep), strict=True):
            sketch.kernel(filter_, node, layer)
        sketch.connect(filter_, gate, EdgeKind.MIX)
    sketch.kernel(branch[1], branch[1], deep, EdgeKind.INNER)
    for filter_, branched, total in zip(stem, branch, added, strict=True):
        sketch.connect(filter_, total, EdgeKind.IDENTITY)
        sketch.connect(branched, total, EdgeKind.IDENTITY)
        sketch.connect(gate, total, EdgeKind.GATE)
        sketch.connect(total, mixed, EdgeKind.MIX)
    for end in ends:
        sketch.kernel(mixed, end, head)
        sketch.kernel(added[0], end, head)
        sketch.connect(end, target, EdgeKind.READOUT)
    sketch.names = {target: "golden retriever"}
    return sketch.document(target, seed=1, **options)


def hostile() -> Document:
    """A diagram in which every text that comes from outside is an attack."""
    a, b, c, d, e, f, g = HOSTILE
    made = plain(images=2, variants=3, measured=True)
    sets, images, variants = made.pictures, made.images, made.variants
    assert images is not None
    return Document(
        **{
            **vars(made),
            "meta": Meta(a + d, b, c, e, notes=(f, g, a, b), versions={a: b, d: c}),
            "columns": [Column(text, more) for text, more in ((a, d), (b, e), (c + d, g))],
            "layers": [
                DrawnLayer(text, text, layer.column, layer.kernel, layer.filters)
                for layer, text in zip(made.layers, (b, d, a), strict=True)
            ],
            "nodes": Nodes(
                **{**vars(made.nodes), "names": {n: HOSTILE[n % len(HOSTILE)] for n in range(len(made.nodes))}}
            ),
            "variants": [
                Variant(**{**vars(variant), "name": text}) for variant, text in zip(variants, (a, b, d), strict=True)
            ],
            "pictures": [
                PictureSet(a, b, sets[0].tiles, (TargetPicture(a, 0), TargetPicture(d, 1))),
                PictureSet(e, d, sets[1].tiles),
            ],
            "images": ImageMaps(**{**vars(images), "names": (a, d)}),
            "view": View(pictures=a, groups=(Group(b, (3, 4)),)),
        }
    )


DOCUMENTS = {
    "tiny": lambda: plain(widths=(1,)),
    "plain": lambda: plain(images=2, variants=3, measured=True),
    "wide": lambda: plain(widths=(20, 24, 18, 16, 1), density=0.3, seed=3, view=View(nodes_per_column=8)),
    "residual": lambda: residual(images=1, variants=2),
    "hostile": hostile,
}


def main() -> None:
    """Write every document as a fixture for the tests of both sides."""
    FIXTURES.mkdir(parents=True, exist_ok=True)
    for name, make in DOCUMENTS.items():
        (FIXTURES / f"{name}.json").write_text(make().to_json() + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
