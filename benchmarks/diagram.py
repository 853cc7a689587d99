"""Measure the circuit diagram: how long it takes to make, how large its page is, and how fast the page responds.

The circuit is like the demo's: a unit of VGG16's conv3_3 with real weights and the built-in photographs. The page is
opened as a file in a real Chromium, as a reader would. A latency is the time from an event to the frame that shows its
effect, including handlers, layout, paint and the wait for the next frame (up to 16 ms). ``--browser`` names another
browser.
"""

import argparse
import gzip
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import torch
from playwright.sync_api import Page, sync_playwright

import convcircuits as cc
from convcircuits.zoo.images import crops, sample_photographs, split_photographs
from convcircuits.zoo.models import load_model

FEATURE = cc.Feature("features.14", 166)
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
TRIES = 15

# Until the next frame has been painted.
PAINTED = """
  await new Promise((done) => requestAnimationFrame(() => {
    const channel = new MessageChannel();
    channel.port1.onmessage = done;
    channel.port2.postMessage(0);
  }));
"""
POINT = f"""async (element, type) => {{
  const {{ left, top, width, height }} = element.getBoundingClientRect();
  const at = {{ bubbles: true, composed: true, clientX: left + width / 2, clientY: top + height / 2 }};
  const start = performance.now();
  element.dispatchEvent(type === "click" ? new MouseEvent(type, at) : new PointerEvent(type, at));
  {PAINTED}
  return performance.now() - start;
}}"""
ZOOM = """async (canvas) => {
  const times = [];
  const frame = () => new Promise(requestAnimationFrame);
  const { left, top, width, height } = canvas.getBoundingClientRect();
  const at = { clientX: left + width / 2, clientY: top + height / 2, bubbles: true, cancelable: true };
  let last = await frame();
  for (let i = 0; i < 60; i++) {
    canvas.dispatchEvent(new WheelEvent("wheel", { deltaY: i < 30 ? -40 : 40, ...at }));
    const now = await frame();
    times.push(now - last);
    last = now;
  }
  return times;
}"""
# Runs before the page's own script. Records when the page was ready and painted.
WATCH = f"""new MutationObserver(async (_, observer) => {{
  if (document.documentElement?.dataset.ready !== "true") return;
  observer.disconnect();
  {PAINTED}
  window.readyAt = performance.now();
}}).observe(document, {{ attributes: true, childList: true, subtree: true }});"""
LOADED = """async () => {
  while (!window.readyAt) await new Promise((done) => setTimeout(done, 20));
  const [{ loadEventEnd, responseEnd }] = performance.getEntriesByType("navigation");
  const [paint] = performance.getEntriesByName("first-contentful-paint");
  return { ready: window.readyAt, load: loadEventEnd, first: paint?.startTime ?? null, response: responseEnd };
}"""


def spread(times: list[float]) -> str:
    return f"**{statistics.median(times):.0f} ms** ({min(times):.0f}-{max(times):.0f})"


def seconds(run: Callable[[], object], rounds: int = 3) -> float:
    run()
    taken = []
    for _ in range(rounds):
        start = time.perf_counter()
        run()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def latencies(page: Page, selector: str, event: str, undo: str | None = None) -> list[float]:
    elements = page.locator(selector)
    count = elements.count()
    times = []
    for number in range(TRIES):
        element = elements.nth(number * count // TRIES)
        times.append(float(element.evaluate(POINT, event)))
        if undo:
            page.keyboard.press(undo)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--browser", default=os.environ.get("CHROME_BIN"))
    options = parser.parse_args()
    if not options.browser:
        raise SystemExit("This needs a Chromium: name it by --browser or CHROME_BIN, as make bench does.")

    loaded = load_model("vgg16_hed")
    train, others = split_photographs(sample_photographs())
    images = crops(train, loaded.preprocess, count=24, seed=0, size=(112, 112))
    pictured = crops(train, loaded.preprocess, count=120, seed=0, size=(112, 112))
    held_out = crops(others, loaded.preprocess, count=24, seed=1, size=(112, 112))
    scores = cc.score(loaded.model, FEATURE, images)

    def yardstick() -> None:  # one forward and backward pass of all images, up to the feature
        x = pictured.clone().requires_grad_()
        torch.autograd.grad(loaded.model.features[:15](x)[:, FEATURE.unit].abs().sum(), x)

    def made(circuit: cc.Circuit) -> cc.Diagram:
        primaries = loaded.primaries()
        return cc.diagram(loaded.model, circuit, images=pictured, held_out=held_out, primaries=primaries)

    rows = []
    static = files("convcircuits.drawing") / "static"
    bundle = len(gzip.compress((static / "diagram.js").read_bytes(), 9))
    rows.append(("bundle, gzipped", f"**{bundle / 1000:.1f} kB**", "60 kB"))
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        small, large = cc.prune(scores, density=0.05), cc.prune(scores, kernels=20_000)
        diagram = made(small)
        one = seconds(yardstick)
        making = seconds(lambda: made(small), rounds=1)
        rows.append(
            ("making the diagram, in forward + backward passes of its 120 images", f"**{making / one:.1f}x**", "")
        )
        svg = seconds(lambda: diagram.save(Path(folder) / "a.svg"), rounds=1)
        pdf = seconds(lambda: diagram.save(Path(folder) / "a.pdf"), rounds=1)
        png = seconds(lambda: diagram.save(Path(folder) / "a.png"), rounds=1)
        rows.append(("writing SVG, PDF, PNG", f"**{svg:.1f} s, {pdf:.1f} s, {png:.1f} s**", ""))
        path = diagram.save(Path(folder) / "circuit.html")
        all_path = made(large).save(Path(folder) / "all.html")
        kernels = diagram.document.variants[0].kernels
        rows.append((f"page of {kernels:,} kernels", f"**{path.stat().st_size / 1e6:.1f} MB**", "8 MB"))

        browser = playwright.chromium.launch(executable_path=options.browser, args=FLAGS)
        version = browser.version

        def opened(file: Path, view: str) -> Page:
            page = browser.new_context(offline=True, viewport={"width": 1440, "height": 1000}).new_page()
            page.add_init_script(WATCH)
            page.goto(file.as_uri() + view)
            page.locator("html[data-ready=true]").wait_for()
            return page

        wide = "#nodesPerColumn=24&kernelsPerNode=8"
        said = []
        for _ in range(5):
            page = opened(path, wide)
            said.append(page.evaluate(LOADED))
            edges = page.locator(".edges [data-edge]").count()
            page.context.close()
        firsts = spread([each["first"] for each in said])
        rows.append(("from the request to the title and skeleton", firsts, "at once"))
        loads = spread([max(0.0, each["ready"] - each["load"]) for each in said])
        rows.append((f"{edges:,} edges drawn: from the page's load to interactive and painted", loads, "1,000 ms"))
        ready = spread([each["ready"] for each in said])
        rows.append((f"{edges:,} edges drawn: from the request to the same point", ready, ""))
        for view in (wide, ""):
            page = opened(path, view)
            edges = page.locator(".edges [data-edge]").count()
            pointed = latencies(page, ".nodes .frame", "pointermove")
            rows.append((f"{edges:,} edges drawn: pointing at a filter", spread(pointed), "50 ms"))
            isolated = latencies(page, ".nodes .frame", "click", "Escape")
            rows.append((f"{edges:,} edges drawn: isolating a filter", spread(isolated), "50 ms"))
            page.context.close()
        page = opened(all_path, "#mode=all")
        lines = cc.Diagram.load(all_path).document.variants[0].kernels
        canvas = page.locator("canvas")
        page.wait_for_timeout(500)
        rows.append((f"all kernels, {lines:,}: a frame while zooming", spread(canvas.evaluate(ZOOM)), ""))
        page.context.close()
        browser.close()

    text = [
        "# How fast the circuit diagram is",
        "",
        "Written by `make bench`: medians, with minimum and maximum in parentheses.",
        f"VGG16 conv3_3 unit {FEATURE.unit}; Chromium {version} without a GPU; torch {torch.__version__}, "
        f"{torch.get_num_threads()} threads, {platform.machine()}.",
        "",
        "| | measured | goal |",
        "| --- | --- | --- |",
        *(f"| {what} | {value} | {goal} |" for what, value, goal in rows),
        "",
    ]
    print("\n".join(text))
    if options.out:
        options.out.write_text("\n".join(text))


if __name__ == "__main__":
    main()
