"""Make the gallery: circuits of three networks as pages, photographed in a browser; writes docs/gallery.md beside them.

    python docs/gallery.py            # all
    python docs/gallery.py vgg16      # those whose name contains the word

Each is found, measured and drawn anew, on the built-in photographs. A picture is the page as a reader sees it, without
its controls.
"""

import argparse
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from playwright.sync_api import Browser, sync_playwright

import convcircuits as cc
from convcircuits.drawing import figure
from convcircuits.drawing.data import Document
from convcircuits.images import crops, sample_photographs, split_photographs
from convcircuits.models import load_model

FOLDER = Path(__file__).parent / "gallery"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
QUIET = ".bar, .state { display: none !important; }"  # what is to be pressed
WIDTHS, SCHEMES = (1440, 800), ("light", "dark")


@dataclass(frozen=True)
class Entry:
    """A circuit of the gallery."""

    name: str
    model: str
    feature: str
    density: float
    size: int
    say: str
    pictures: str = "patches"


ENTRIES = [
    Entry("vgg16-conv2_2", "vgg16_hed", "features.7:35", 0.1, 112, "VGG16, conv2_2"),
    Entry("vgg16-conv3_3", "vgg16_hed", "features.14:54", 0.05, 112, "VGG16, conv3_3"),
    Entry(
        "vgg16-conv3_3-features",
        "vgg16_hed",
        "features.14:54",
        0.05,
        112,
        "VGG16, conv3_3, the same circuit with feature visualisations of each filter inside it",
        "features",
    ),
    Entry("vgg16-conv4_2", "vgg16_hed", "features.19:231", 0.1, 112, "VGG16, conv4_2"),
    Entry("lite0-block3", "efficientnet_lite0", "_blocks.3._project_conv:12", 0.3, 224, "EfficientNet-Lite0, block 3"),
    Entry("lite0-block8", "efficientnet_lite0", "_blocks.8._project_conv:4", 0.3, 224, "EfficientNet-Lite0, block 8"),
    Entry(
        "resnet18",
        "torchvision:resnet18@random",
        "layer2.1.conv2:5",
        0.1,
        112,
        "ResNet18, layer2.1.conv2, **random weights**: none can be had without a model hub. Its kernels mean nothing; "
        "what it shows is how residual connections are drawn",
    ),
]


def drawn(entry: Entry) -> cc.Diagram:
    """Find a circuit on some photographs, measure it on others, draw it."""
    loaded = load_model(entry.model)
    train, others = split_photographs(sample_photographs())
    side = (entry.size, entry.size)
    images = crops(train, loaded.preprocess, count=24, seed=0, size=side)
    circuit = cc.find(loaded.model, loaded.feature(entry.feature), images, density=entry.density)
    return cc.diagram(
        loaded.model,
        circuit,
        images=crops(train, loaded.preprocess, count=120, seed=0, size=side),
        held_out=crops(others, loaded.preprocess, count=24, seed=1, size=side),
        pictures=entry.pictures,
        primaries=loaded.primaries(),
        title=f"{entry.model} {entry.feature}",
    )


def shown_part(document: Document) -> int:
    """Choose what to isolate: of the filters drawn halfway, the one through which most flows."""
    column = len(document.columns) // 2
    nodes = [n for n in figure.drawn(document).nodes if n != document.target]
    incoming = np.bincount(
        document.edges.target, np.nan_to_num(document.variants[0].saliency), minlength=len(document.nodes)
    )
    return max((n for n in nodes if abs(document.nodes.column[n] - column) <= 1), key=lambda n: incoming[n])


def photograph(browser: Browser, page: Path, entry: Entry, isolate: int) -> None:
    """Save the overview and one part isolated, in both schemes and widths."""
    for scheme in SCHEMES:
        for width in WIDTHS:
            for what, view in (("overview", ""), ("isolated", f"#isolate={isolate}")):
                context = browser.new_context(
                    offline=True, viewport={"width": width, "height": 900}, color_scheme=scheme
                )
                tab = context.new_page()
                tab.goto(page.as_uri() + view)
                tab.locator("html[data-ready=true]").wait_for()
                tab.evaluate(
                    "css => document.getElementById('diagram').shadowRoot.append("
                    "Object.assign(document.createElement('style'), { textContent: css }))",
                    QUIET,
                )
                tab.wait_for_timeout(300)
                file = FOLDER / f"{entry.name}-{what}-{scheme}-{width}.png"
                tab.screenshot(path=file, full_page=True)
                # A palette, for a third of the size.
                colours = Image.open(file).convert("RGB")
                colours.quantize(255, kmeans=2, dither=Image.Dither.NONE).save(file, optimize=True)
                context.close()


def section(entry: Entry, caption: str) -> str:
    """Write what the page says of one circuit."""
    lines = [f"## {entry.say}", "", f"`{entry.model}` `{entry.feature}`, {entry.density:.0%} of its kernels.", ""]
    for what in ("overview", "isolated"):
        file = f"gallery/{entry.name}-{what}"
        lines += [f"![{entry.say.split(',')[0]}, {what}]({file}-light-1440.png)", ""]
        others = [(s, w) for s in SCHEMES for w in WIDTHS if (s, w) != ("light", 1440)]
        lines += [f"{what}: " + ", ".join(f"[{s}, {w} px]({file}-{s}-{w}.png)" for s, w in others), ""]
    return "\n".join([*lines, f"> {caption}", ""])


def main() -> None:
    """Make all, or some."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("word", nargs="?", default="", help="makes only those whose name contains it; no gallery.md")
    word = parser.parse_args().word
    path = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
    if path is None:
        raise SystemExit("This needs Chromium: apt-get install chromium.")
    FOLDER.mkdir(exist_ok=True)
    sections = [
        "# Gallery",
        "",
        "Made by `python docs/gallery.py`: circuits found by `gauss_newton` on 24 crops of seven of the built-in",
        "photographs and measured on 24 crops of five others. [How to read them](diagram.md#how-to-read-it).",
        "*Isolated* lights what 80 % of the drawn flow through one filter takes.",
        "",
    ]
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        for entry in ENTRIES:
            if word not in entry.name:
                continue
            diagram = drawn(entry)
            page = diagram.save(Path(folder) / f"{entry.name}.html")
            photograph(browser, page, entry, shown_part(diagram.document))
            sections.append(section(entry, diagram.caption))
            print(f"{entry.name}: {page.stat().st_size / 1e6:.1f} MB. {diagram.caption}", file=sys.stderr)
        browser.close()
    if not word:
        (FOLDER.parent / "gallery.md").write_text("\n".join(sections), encoding="utf-8")


if __name__ == "__main__":
    main()
