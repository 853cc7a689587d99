"""Make the gallery: circuits of three networks as pages, photographed in a browser; writes docs/gallery.md.

    make gallery                                # all: some ten minutes on two cores
    python docs/gallery.py conv3_3              # those whose name contains the word
    python docs/gallery.py conv3_3 --figure dark    # of these the figures whose name contains the other
    python docs/gallery.py --reuse              # photographs the pages that are there, and draws only the others

The pages and all pictures, in two widths and both colours, go to gallery-output/, which is not committed; the few
that README and docs show go to docs/gallery/ too, small.
Each is found, measured and drawn anew, on the built-in photographs. Of a layer the unit is chosen by the rule of
``convcircuits.circuits.units``, which looks at no circuit. A picture is the page as a reader sees it, without its
controls.
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
from convcircuits.circuits.units import RULE, UnitStatistics, choose_unit, unit_statistics
from convcircuits.drawing import figure
from convcircuits.drawing.data import Document
from convcircuits.zoo.images import crops, sample_photographs, split_photographs
from convcircuits.zoo.models import LoadedModel, load_model

DOCS = Path(__file__).parent
OUT = DOCS.parent / "gallery-output"
PAGE = DOCS / "gallery.md"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
QUIET = ".bar, .state { display: none !important; }"  # what is to be pressed
WIDTHS, SCHEMES = (1440, 800), ("light", "dark")
SHOWN_WIDTH, SHOWN_BYTES = 1200, 150_000  # of a picture in docs/gallery, at most
HEAD = f"""# Gallery

Circuits found by `gauss_newton` on 24 crops of seven of the built-in photographs and measured on 24 crops of five
others. [How to read them](diagram.md#how-to-read-it). `make gallery` makes the pages themselves, in `gallery-output/`,
with pictures of them in both colours and two widths. *Isolated* lights what 80 % of the drawn flow through one filter
takes.

The unit of each layer is chosen on the first seven photographs by a rule that looks at no circuit
(`convcircuits.circuits.units`): {RULE}.
"""


@dataclass(frozen=True)
class Entry:
    """A circuit of the gallery, and the ways in which it is pictured."""

    name: str
    model: str
    layer: str
    density: float
    size: int
    say: str
    pictures: str = "patches"
    views: tuple[str, ...] = ("overview", "isolated")
    shown: tuple[str, ...] = ("overview-light",)  # in docs/


CONV3_3 = Entry(
    "vgg16-conv3_3",
    "vgg16_hed",
    "features.14",
    0.05,
    112,
    "VGG16, conv3_3",
    views=("overview", "isolated", "image"),
    shown=("overview-light", "isolated-dark", "image-light"),
)
ENTRIES = [
    Entry("vgg16-conv2_2", "vgg16_hed", "features.7", 0.1, 112, "VGG16, conv2_2"),
    CONV3_3,
    replace(
        CONV3_3,
        name="vgg16-conv3_3-features",
        say="VGG16, conv3_3, the same circuit with feature visualisations of each filter inside it",
        pictures="features",
        views=("overview", "isolated"),
        shown=("overview-light",),
    ),
    Entry("vgg16-conv4_2", "vgg16_hed", "features.19", 0.1, 112, "VGG16, conv4_2"),
    Entry("lite0-block3", "efficientnet_lite0", "_blocks.3._project_conv", 0.3, 224, "EfficientNet-Lite0, block 3"),
    Entry("lite0-block8", "efficientnet_lite0", "_blocks.8._project_conv", 0.3, 224, "EfficientNet-Lite0, block 8"),
    Entry(
        "resnet18",
        "torchvision:resnet18@random",
        "layer2.1.conv2",
        0.1,
        112,
        "ResNet18, layer2.1.conv2, **random weights**: none can be had without a model hub. Its kernels mean nothing; "
        "what it shows is how residual connections are drawn",
    ),
]


@functools.cache
def prepared(model: str, size: int) -> tuple[LoadedModel, torch.Tensor, torch.Tensor, torch.Tensor, tuple[str, ...]]:
    """Load a model; crops to find circuits on, to picture filters with (with their photographs), and to measure on."""
    loaded, (train, others) = load_model(model), split_photographs(sample_photographs())
    found_on = crops(train, loaded.preprocess, count=24, seed=0, size=(size, size))
    pictured = crops(train, loaded.preprocess, count=120, seed=0, size=(size, size))
    held_out = crops(others, loaded.preprocess, count=24, seed=1, size=(size, size))
    return loaded, found_on, pictured, held_out, tuple(train[i % len(train)].name for i in range(len(pictured)))


@functools.cache
def chosen(model: str, layer: str, size: int) -> UnitStatistics:
    """Choose a layer's unit by the rule, on the training photographs."""
    loaded, _, pictured, _, photographs = prepared(model, size)
    return choose_unit(unit_statistics(loaded.model, layer, pictured, photographs=photographs))


def drawn(entry: Entry) -> cc.Diagram:
    """Find a circuit on some photographs, measure it on others, draw it."""
    loaded, found_on, pictured, held_out, _ = prepared(entry.model, entry.size)
    feature = cc.Feature(entry.layer, chosen(entry.model, entry.layer, entry.size).unit)
    circuit = cc.find(loaded.model, feature, found_on, density=entry.density)
    return cc.diagram(
        loaded.model,
        circuit,
        images=pictured,
        held_out=held_out,
        fit=found_on,
        pictures=entry.pictures,
        primaries=loaded.primaries(),
        title=f"{entry.model} {feature}",
    )


def shown_part(document: Document) -> int:
    """Choose what to isolate: of the filters drawn halfway, the one through which most flows."""
    column = len(document.columns) // 2
    nodes = [n for n in figure.drawn(document).nodes if n != document.target]
    incoming = np.bincount(
        document.edges.target, np.nan_to_num(document.variants[0].saliency), minlength=len(document.nodes)
    )
    return max((n for n in nodes if abs(document.nodes.column[n] - column) <= 1), key=lambda n: incoming[n])


def figures(entry: Entry, wanted: str) -> Iterator[tuple[str, str, int, Path]]:
    """List what is photographed of an entry: the view, the colours, the width, the file."""
    for what in entry.views:
        for scheme in SCHEMES:
            for width in WIDTHS:
                file = OUT / f"{entry.name}-{what}-{scheme}-{width}.png"
                if wanted in file.stem.removeprefix(entry.name):
                    yield what, scheme, width, file


def photograph(browser: Browser, page: Path, entry: Entry, document: Document, wanted: str) -> None:
    """Save the overview, one part isolated and what happens on an image, in both schemes and widths."""
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
        # A palette, for a third of the size.
        colours = Image.open(file).convert("RGB")
        colours.quantize(255, kmeans=2, dither=Image.Dither.NONE).save(file, optimize=True)
        if width == max(WIDTHS) and f"{what}-{scheme}" in entry.shown:
            show(colours, DOCS / "gallery" / f"{entry.name}-{what}-{scheme}.webp")


def show(picture: Image.Image, file: Path) -> None:
    """Save a picture as README and docs show it: narrower, and as good as the bytes allow."""
    picture = picture.resize(
        (SHOWN_WIDTH, round(picture.height * SHOWN_WIDTH / picture.width)), Image.Resampling.LANCZOS
    )
    for quality in range(90, 0, -5):
        picture.save(file, quality=quality, method=6)
        if file.stat().st_size < SHOWN_BYTES:
            return


def section(entry: Entry, document: Document, caption: str) -> str:
    """Write what the page says of one circuit."""
    unit = chosen(entry.model, entry.layer, entry.size).summary()
    lines = [f"## {entry.say}", "", f"`{entry.model}` `{document.meta.feature}`, {entry.density:.0%} of its kernels."]
    lines += [f"{unit[0].upper()}{unit[1:]}.", ""]
    for what in entry.shown:
        lines += [
            f"![{entry.say.split(',')[0]}, {what.replace('-', ' in ')} colours](gallery/{entry.name}-{what}.webp)",
            "",
        ]
    return "\n".join([*lines, f"> {caption}", ""])


def write(made: dict[str, str]) -> None:
    """Write the page: what was made now, and of the others what stands there."""
    before = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
    there = {part.split("\n", 1)[0]: f"## {part}" for part in before.split("\n## ")[1:]}
    sections = [made.get(entry.name, there.get(entry.say, "")).rstrip("\n") for entry in ENTRIES]
    PAGE.write_text("\n\n".join([HEAD.rstrip("\n"), *filter(None, sections)]) + "\n", encoding="utf-8")


def main() -> None:
    """Make all, or some."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("word", nargs="?", default="", help="makes only those whose name contains it")
    parser.add_argument("--figure", default="", help="photographs only figures whose name contains it")
    parser.add_argument("--reuse", action="store_true", help=f"photographs the pages in {OUT.name}/ that are there")
    parser.add_argument("--browser", default=os.environ.get("CHROME_BIN"), help="the path of a Chromium or Chrome")
    given = parser.parse_args()
    if not given.browser:
        raise SystemExit("This needs a Chromium: name it by --browser or CHROME_BIN, as make gallery does.")
    OUT.mkdir(exist_ok=True)
    made: dict[str, str] = {}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=given.browser, args=FLAGS)
        for entry in ENTRIES:
            if given.word not in entry.name or not any(figures(entry, given.figure)):
                continue
            page = OUT / f"{entry.name}.html"
            diagram = cc.Diagram.load(page) if given.reuse and page.exists() else drawn(entry)
            diagram.save(page)  # by the code of now
            photograph(browser, page, entry, diagram.document, given.figure)
            made[entry.name] = section(entry, diagram.document, diagram.caption)
            write(made)
            print(f"{entry.name}: {page.stat().st_size / 1e6:.1f} MB. {diagram.caption}", file=sys.stderr)
        browser.close()


if __name__ == "__main__":
    main()
