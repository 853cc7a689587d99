"""Measure the explorer: what its index costs, and how fast its pages answer in a Chromium while no job and a job runs.

The index is a ratio to one plain forward pass of the same images, up to the last convolution, both in CPU time of all
threads; reading the pictures is measured apart. Pages are timed in the browser, by its own clock, in milliseconds.
The photographs are crops of those given, written as JPEG files of the size that is measured.

    python benchmarks/explorer.py --images gcompris:FOLDER                       # 2,000 photographs, 224 px: long
    python benchmarks/explorer.py --images gcompris:FOLDER --count 200 --only index
"""

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from playwright.sync_api import Page, sync_playwright
from torch import nn

import convcircuits as cc
from convcircuits.explorer.index import Subjects, build, convolutions
from convcircuits.zoo.images import photographs
from convcircuits.zoo.layers import list_layers
from convcircuits.zoo.models import LoadedModel, load_model
from convcircuits.zoo.prepared import Prepared

BATCH, LAYER, CLICKS = 16, "features.21", 40
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]

GRID = """async () => {
  const area = document.querySelector("[data-at]").closest("main");
  const scroller = [area, document.scrollingElement].find((one) => one.scrollHeight > one.clientHeight + 100);
  const frames = [];
  let last = await new Promise(requestAnimationFrame);
  for (let n = 0; n < 180; n++) {
    scroller.scrollTop += n < 90 ? 60 : -60;
    const now = await new Promise(requestAnimationFrame);
    frames.push(now - last);
    last = now;
  }
  return frames;
}"""

# From a click on a link to a frame in which `done` holds, and to one in which all pictures are there.
CLICK = """async ([link, done]) => {
  const start = performance.now();
  document.querySelector(link).click();
  const holds = () => document.querySelectorAll(done).length > 0;
  while (!holds()) await new Promise(requestAnimationFrame);
  const figures = performance.now() - start;
  const missing = () => [...document.querySelectorAll("main img")].some((one) => !one.complete);
  while (missing()) await new Promise(requestAnimationFrame);
  return [figures, performance.now() - start];
}"""


def written(images: str, count: int, size: int, folder: Path) -> None:
    """Write random crops of photographs as files."""
    pictures, draw = photographs(images)[0], random.Random(0)
    for n in range(count):
        image = pictures[n % len(pictures)].image
        side = min(image.size)
        part = draw.randint(max(1, side // 2), side)
        left, top = (draw.randint(0, length - part) for length in image.size)
        crop = image.crop((left, top, left + part, top + part)).resize((size, size))
        crop.save(folder / f"{n:05}.jpg", quality=90)


def index(loaded: LoadedModel, folder: Path, size: int) -> None:
    """Print what an index costs."""
    model, pictures = loaded.model, photographs(str(folder))[0]
    infos = list_layers(model, (size, size), channels=loaded.channels, categories=loaded.categories)
    layers, _ = convolutions(model, infos)
    last = dict(model.named_modules())[layers[-1].name]

    def prepared() -> Prepared:
        return Prepared(pictures, loaded.preprocess, size=(size, size), batch_size=BATCH)

    def read() -> None:
        for _ in prepared():
            pass

    def forward() -> None:
        for images in prepared():
            with torch.no_grad():
                to_the_last(model, last, images)

    def indexed() -> None:
        with tempfile.TemporaryDirectory() as made:
            build(Path(made), "0", Subjects(model, layers, pictures, loaded.preprocess, (size, size)), batch_size=BATCH)

    reading, passing, indexing = (seconds(run) for run in (read, forward, indexed))
    print(
        f"index of {len(pictures)} photographs at {size} px, {len(layers)} layers: {indexing:.0f} s of CPU time, "
        f"{(indexing - reading) / (passing - reading):.2f} forward passes ({passing - reading:.0f} s) beside reading "
        f"the pictures ({reading:.0f} s); with reading, {indexing / passing:.2f}"
    )


class _Last(BaseException):
    """The last layer has run."""


def to_the_last(model: nn.Module, last: nn.Module, images: torch.Tensor) -> None:
    """Run a model up to a layer."""

    def stop(*_: Any) -> None:
        raise _Last

    handle = last.register_forward_hook(stop)
    try:
        model(images)
    except _Last:
        pass
    finally:
        handle.remove()


def seconds(run: Callable[[], object]) -> float:
    """Return the CPU time of a run."""
    start = time.process_time()
    run()
    return time.process_time() - start


def pages(name: str, folder: Path, size: int, browser: str, *, busy: bool) -> None:
    """Print how fast pages answer, of an index that is complete or, if ``busy``, while it is made."""
    with (
        tempfile.TemporaryDirectory() as made,
        cc.explore(name, folder, project=made, size=size, port=0, open=False) as explorer,
        sync_playwright() as playwright,
    ):
        chromium = playwright.chromium.launch(executable_path=browser, args=FLAGS)
        page = chromium.new_page(viewport={"width": 1440, "height": 900})
        page.goto(explorer.address)
        page.locator("[data-ready=true]").wait_for(timeout=300_000)
        start = page.url
        layer = f"{start}l/{LAYER}"
        while not _indexed(page, start, 1 if busy else len(list(folder.iterdir()))):
            page.wait_for_timeout(2000)
        page.goto(start)
        page.locator("[data-ready=true]").wait_for()
        paint = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
        page.goto(layer)
        page.locator("[data-at='0'] .cell").wait_for()
        figures, whole = [], []
        for n in range(CLICKS):
            one = page.evaluate(CLICK, [f"[data-at='{n % 20}'] .cell", ".examples .crop"])
            figures.append(one[0])
            whole.append(one[1])
            page.go_back()
            page.locator(f"[data-at='{n % 20}'] .cell").wait_for()
        frames = page.evaluate(GRID)
        print(f"{'while indexing' if busy else 'once indexed'}, in milliseconds: first paint {paint:.0f}")
        for what, times in (
            ("a unit's figures after a click", figures),
            ("a unit's page with all pictures, first seen", whole[:20]),
            ("the same, seen before", whole[20:]),
            ("a frame while the grid scrolls", frames),
        ):
            print(f"  {what}: median {statistics.median(times):.0f}, 95 %: {sorted(times)[int(0.95 * len(times))]:.0f}")
        chromium.close()


def _indexed(page: Page, start: str, least: int) -> bool:
    """Return whether so many photographs are indexed in every layer."""
    layers: list[dict[str, Any]] = page.evaluate(
        "url => fetch(url).then((answer) => answer.json())", f"{start}api/v1/layers"
    )
    return all(one["images"] >= least for one in layers if one["indexed"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", default="sample", help="as in `convcircuits explore`")
    parser.add_argument("--count", type=int, default=2000, help="number of photographs")
    parser.add_argument("--size", type=int, default=224, help="their side in pixels")
    parser.add_argument("--only", choices=("index", "idle", "busy"), help="measure only this")
    parser.add_argument("--browser", default="chromium", help="path of a Chromium or Chrome")
    given = parser.parse_args()
    name = "vgg16_hed"
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        written(given.images, given.count, given.size, folder)
        if given.only in (None, "index"):
            index(load_model(name), folder, given.size)
        for what in ("idle", "busy"):
            if given.only in (None, what):
                pages(name, folder, given.size, given.browser, busy=what == "busy")


if __name__ == "__main__":
    main()
