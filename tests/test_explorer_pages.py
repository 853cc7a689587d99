"""The explorer's pages in a real browser, on a real server with a tiny model and generated pictures."""

import contextlib
import functools
import gzip
import importlib
import json
import re
import shlex
import threading
from datetime import datetime, timedelta
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import numpy as np
import pytest
import torch
from PIL import Image
from playwright.sync_api import expect
from typer.testing import CliRunner

import convcircuits as cc
import twofold
from convcircuits.cli import application
from convcircuits.drawing.page import read_page
from needs import find_chromium

AXE = Path(__file__).parents[1] / "frontend" / "node_modules" / "axe-core" / "axe.min.js"
MODEL = """
import torch
from torch import nn

from convcircuits.drawing import pictures
from convcircuits.zoo.preprocessing import Preprocess

pictures.TARGET_STEPS = 2  # in the worker's process
preprocess = Preprocess(size=(20, 20), resize=(22, 22))


def net():
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 80, 3, padding=1), nn.ReLU())
    with torch.no_grad():
        layers[2].bias[0] = -100.0  # a dead unit
        layers[0].bias[5] = 5.0  # always above 0, so a unit that reads it alone, inhibited, is highest at the border
        layers[2].weight[:, 5], layers[2].weight[1] = 0.0, 0.0
        layers[2].weight[1, 5], layers[2].bias[1] = -1.0, 40.0
    return layers.eval()
"""
TWOFOLD = """
import os
import signal
import time
from pathlib import Path

import twofold
from torch import nn

from convcircuits.drawing import pictures
from convcircuits.zoo.preprocessing import Preprocess

pictures.TARGET_STEPS = 2
preprocess = Preprocess(size=(12, 12), resize=(12, 12), mean=(0.0,) * 3, std=(150.0,) * 3)
FOLDER = Path(__file__).parent


class Net(nn.Sequential):
    def forward(self, x):
        while len(x) > 1 and (FOLDER / "waits").exists():  # as the index has them
            time.sleep(0.02)
        if (FOLDER / "slow").exists():
            time.sleep(0.02)
        if (FOLDER / "dies").exists():
            (FOLDER / "dies").unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(x)


def net():
    return Net(*twofold.net().float())
"""
SLOW = {"kind": "find", "feature": "2:0", "density": 0.05, "criterion": "force", "options": ["steps=200"], "count": 6}
NOWHERE = 16 * "0"  # an id of nothing
TRAJECTORY = "/api/v1/layers/2/units/9/trajectory"
WIDTHS = (1440, 1280, 800, 390)
SQUARE = ((0.02, 0.02), (0.98, 0.02), (0.98, 0.98), (0.02, 0.98))
PAGES = {"light": ("", "l/2", "u/2/7"), "dark": ("l/2", "u/2/7")}

pytestmark = pytest.mark.browser
expect.set_options(timeout=120_000)  # a busy machine


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the model, the pictures and the project are."""
    return tmp_path_factory.mktemp("pages")


@pytest.fixture(scope="module")
def address(folder, planted, unindexed):
    """The address of an explorer. The others start before it: they load torch while the first tests use this one."""
    (folder / "paged_net.py").write_text(MODEL)
    (folder / "pictures").mkdir()
    generator = np.random.default_rng(0)
    for name in "abcdefghij":
        coarse = Image.fromarray(generator.integers(0, 256, (5, 6, 3), dtype=np.uint8))
        coarse.resize((36, 30)).save(folder / f"pictures/{name}.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        images = torch.rand(4, 3, 20, 20, generator=torch.Generator().manual_seed(0))
        model = importlib.import_module("paged_net").net()
        cc.atlas(model, "0", images[:2], images[2:], folder=folder / "project/atlases/small", density=0.5)
        with cc.explore("paged_net:net", folder / "pictures", project=folder / "project", port=0, open=False) as server:
            yield server.address


@contextlib.contextmanager
def of_two_mechanisms(folder, port=0):
    """Yields the address of an explorer of a unit of two mechanisms, on 60 red and blue squares."""
    (folder / "twofold_net.py").write_text(TWOFOLD)
    (folder / "pictures").mkdir(exist_ok=True)
    made, blue = twofold.images(60)
    for n, (image, is_blue) in enumerate(zip(made, blue, strict=True)):
        pixels = (150 * image).round().permute(1, 2, 0).byte().numpy()
        Image.fromarray(pixels).save(folder / f"pictures/{'blue' if is_blue else 'red'}{n:02}.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        project = folder / "project"
        with cc.explore("twofold_net:net", folder / "pictures", project=project, port=port, open=False) as one:
            yield one.address


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """The folder and the address of an explorer of a unit of two mechanisms.

    Its worker dies when the folder gets a file ``dies``, and each pass takes 20 ms if it has a file ``slow``.
    """
    folder = tmp_path_factory.mktemp("planted")
    with of_two_mechanisms(folder) as address:
        yield folder, address


@pytest.fixture(scope="module")
def unindexed(tmp_path_factory):
    """The folder and the address of an explorer that indexes nothing as long as the folder has the file ``waits``."""
    folder = tmp_path_factory.mktemp("unindexed")
    (folder / "waits").touch()
    with of_two_mechanisms(folder) as address:
        yield folder, address


@pytest.fixture
def open_page(browser, request):
    """Open an explorer. Whatever a test does, nothing may be said and nothing but the server asked."""
    contexts, said, asked = [], [], []

    def opened(at=None, **options):
        address = at or request.getfixturevalue("address")
        contexts.append(browser.new_context(viewport={"width": 1440, "height": 900}, **options))
        contexts[-1].on("console", lambda message: said.append(f"{message.type}: {message.text}"))
        contexts[-1].on("weberror", lambda error: said.append(f"error: {error.error}"))
        contexts[-1].on("request", lambda request: asked.append(request.url))  # of all of its tabs
        page = contexts[-1].new_page()
        page.set_default_timeout(120_000)
        page.goto(address)
        page.locator("[data-ready=true]").wait_for()
        return page

    yield opened
    for context in contexts:
        context.close()
    assert said == []
    assert {urlsplit(url).hostname for url in asked if urlsplit(url).scheme != "blob"} <= {"127.0.0.1"}


def accessible(page):
    """Check the page with axe."""
    if not page.evaluate("'axe' in window"):
        page.evaluate(AXE.read_text())
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']}).then(r => r.violations)")
    assert [(each["id"], each["nodes"][0]["html"]) for each in found] == []


ASK = """async (job) => {
  const ask = (path, init) => fetch(`/api/v1/${path}`, init).then((answer) => answer.json());
  const headers = { "content-type": "application/json" };
  let found = await ask("jobs", { method: "POST", headers, body: JSON.stringify(job) });
  while (found.state === "queued" || found.state === "running") {
    await new Promise((done) => setTimeout(done, 50));
    found = await ask(`jobs/${found.id}`);
  }
  return found;
}"""


ASKED = """(job) =>
  fetch("/api/v1/jobs", { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(job) })
    .then((answer) => answer.json().then((said) => [answer.status, said.result?.circuit]))"""


NOTED = """async ([of, label]) => {
  const path = `/api/v1/notes/${of}`;
  const tag = await fetch(path).then((answer) => answer.headers.get("etag"));
  const headers = { "content-type": "application/json", "if-match": tag };
  await fetch(path, { method: "PUT", headers, body: JSON.stringify({ label, star: false, text: "" }) });
}"""


def answered(page, **job):
    """Ask for a job as the page does, and return its result."""
    found = page.evaluate(ASK, job)
    assert found["state"] == "done", found
    return found["result"]


IDLE = """async () => {
  const busy = ({ state }) => state === "queued" || state === "running";
  while ((await fetch("/api/v1/jobs").then((answer) => answer.json())).some(busy))
    await new Promise((done) => setTimeout(done, 30));
}"""


@contextlib.contextmanager
def done(page):
    """Wait until the job that the page asks for within is done: `expect` looks only once a second after a while."""
    with page.expect_response(lambda said: said.request.method == "POST" and urlsplit(said.url).path == "/api/v1/jobs"):
        yield
    page.evaluate(IDLE)


def fits(page):
    """Check the page with axe, and that it fits every window."""
    accessible(page)
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.set_viewport_size({"width": 1440, "height": 900})


def test_bundles_are_small():
    for package, name, most in (("drawing", "diagram.js", 65_000), ("explorer", "explorer.js", 90_000)):
        bundle = (files(f"convcircuits.{package}") / "static" / name).read_bytes()
        assert len(gzip.compress(bundle)) <= most


def test_from_the_start_to_a_circuit_and_back(open_page, folder):
    page = open_page()
    expect(page).not_to_have_url(re.compile("token"))
    expect(page.get_by_text("Complete: 10 photographs.")).to_be_visible()
    accessible(page)

    page.locator("nav.layers").get_by_role("link", name="2 80").click()
    expect(page).to_have_url(re.compile("/l/2$"))
    expect(page.locator(".cell").first).to_have_text("unit 0dead")
    expect(page.locator("[data-at='1'] .badge")).to_have_text("border")
    assert page.locator("[data-at]").count() < 80  # only what is in the window, and around it
    page.locator(".cell").first.focus()
    page.keyboard.press("End")
    expect(page.locator("[data-at='79'] .cell")).to_be_focused()
    assert page.locator("[data-at='0']").count() == 0
    accessible(page)
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text("2 · unit 79")
    page.go_back()
    expect(page.locator("[data-at='79'] .cell")).to_be_in_viewport()  # where the reader was
    page.locator("[part=sort]").select_option("at_border")
    expect(page).to_have_url(re.compile("sort=at_border"))
    page.get_by_role("button", name="lowest first").click()
    page.go_back()
    page.go_back()
    expect(page).to_have_url(re.compile("/l/2$"))

    page.locator("[data-at='7'] .cell").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("2 · unit 7")
    expect(page.get_by_role("heading", level=1)).to_be_focused()
    expect(page.locator(".examples .crop")).to_have_count(10)
    page.get_by_role("tab", name="median").click()
    expect(page).to_have_url(re.compile("show=median"))
    page.locator(".examples .crop").first.click()
    expect(page.locator("figure.map canvas")).to_be_visible()
    accessible(page)

    page.locator("[part=criterion]").select_option("gauss_newton")
    page.locator("[part=number]").fill("2")
    page.locator("[part=find]").click()
    expect(page.locator(".find + .problem")).to_contain_text("must be above 0")
    page.locator("[part=number]").fill(".4")
    page.locator("[part=crops]").fill("6")
    with done(page):
        page.locator("[part=find]").click()
    with done(page):  # its diagram
        page.get_by_role("link", name="open the circuit").click()
    expect(page).to_have_url(re.compile("/c/[0-9a-f]{16}$"))
    expect(page.locator("[part=why]")).to_contain_text("On 6 held-out crops")
    expect(page.locator(".figures .own td").first).to_have_text(re.compile(r"\d"))
    page.locator("[part=diagram] [data-node]").first.wait_for()
    page.get_by_role("combobox", name="colors").select_option("dark")
    expect(page.locator("[part=diagram] [part=app]")).to_have_attribute("data-theme", "dark")
    accessible(page)
    page.get_by_role("combobox", name="colors").select_option("system")
    file = next((folder / "project" / "circuits").iterdir())
    expect(page.locator("pre[aria-label^='The command']")).to_contain_text(f"--density 0.4 --images {folder}/pictures")
    again = {}
    exec(page.locator("pre[aria-label='In Python']").inner_text(), again)
    assert cc.iou(again["circuit"], cc.load(file)) == 1.0

    circuit = page.url
    page.locator("[part=diagram] [data-node] .frame").first.click()
    expect(page).to_have_url(re.compile("/c/.*#isolate="))
    isolated = page.url
    page.go_back()
    expect(page).to_have_url(circuit)
    whole = page.locator("[part=diagram] [part=whole]")
    page.locator("[part=diagram] [data-cut]").first.click()
    expect(whole).to_be_visible()
    page.go_back()
    expect(whole).to_have_count(0)
    page.go_forward()
    expect(whole).to_be_visible()
    page.go_back()
    expect(page).to_have_url(circuit)
    page.go_back()
    expect(page.get_by_role("heading", level=1)).to_have_text("2 · unit 7")
    listed = page.locator(".side .circuits li")
    expect(listed).to_have_count(1)
    expect(listed).to_contain_text(re.compile("on 6 crops .*random circuit .*, average map"))
    card = page.evaluate("id => fetch(`/api/v1/circuits/${id}`).then(r => r.json())", circuit.split("/")[-1])
    expect(page.locator(".examples .badge")).to_have_count(len(card["report"]["found_on"]))  # of the 10 crops
    page.go_forward()
    page.locator("[part=diagram] [data-node]").first.wait_for()

    page.goto(isolated)  # a link into the middle
    page.locator("[part=diagram] svg[data-isolated]").wait_for()
    start = circuit.split("/c/")[0]
    page.goto(f"{start}/jobs")
    expect(page.locator(".jobs li")).to_have_count(3)
    accessible(page)
    page.goto(f"{start}/l/a%2Fb")
    expect(page.locator("main .problem")).to_have_text("There is no layer a/b.")
    page.goto(f"{start}/u/2/3?weights=00000000")
    expect(page.locator(".banner")).to_contain_text("made on other weights")


def test_the_reader_chooses_colors_and_no_style_needs_a_permission(open_page):
    page = open_page(color_scheme="light")
    answer = page.goto(page.url)
    assert "unsafe" not in answer.headers["content-security-policy"]
    assert page.locator("[style]").count() > 0  # set by the script, which the policy lets pass
    colors = page.get_by_role("combobox", name="colors")
    expect(page.locator(".explorer")).to_have_attribute("data-theme", "light")
    colors.select_option("dark")
    page.reload()
    expect(page.locator(".explorer")).to_have_attribute("data-theme", "dark")
    colors.select_option("system")
    expect(page.locator(".explorer")).to_have_attribute("data-theme", "light")
    page.emulate_media(color_scheme="dark")
    expect(page.locator(".explorer")).to_have_attribute("data-theme", "dark")


def test_figures_go_before_pictures(open_page):
    """Browsers open six connections to a server, and pictures that are seen first may take long to be made."""
    page = open_page()
    expect(page.get_by_text("Complete: 10 photographs.")).to_be_visible()
    paths, priorities = {}, []
    session = page.context.new_cdp_session(page)
    session.send("Network.enable")

    def asked(said):
        paths[said["requestId"]] = urlsplit(said["request"]["url"]).path
        priorities.append((said["requestId"], said["request"]["initialPriority"]))

    session.on("Network.requestWillBeSent", asked)
    session.on(  # by default, when a picture turns out to be in sight
        "Network.resourceChangedPriority", lambda said: priorities.append((said["requestId"], said["newPriority"]))
    )
    page.goto(f"{page.url}l/2")
    page.locator("[data-at='7'] .cell").click()
    expect(page.locator(".examples .crop")).to_have_count(10)
    until(page, lambda: page.evaluate("[...document.images].every((one) => one.complete)"))
    of = {kind: {priority for id, priority in priorities if kind in paths[id]} for kind in ("/thumb/", "/units")}
    assert of == {"/thumb/": {"Low"}, "/units": {"High"}}


def test_no_picture_is_another_explorers_at_the_same_address(open_page):
    """Browsers keep pictures for good, and the next explorer at a port may prepare its photographs in another way."""
    page, asked = open_page(), []
    expect(page.get_by_text("Complete: 10 photographs.")).to_be_visible()
    start, images = page.url, page.evaluate("fetch('/api/v1/model').then(r => r.json()).then(card => card.images)")
    photo = page.evaluate("fetch('/api/v1/photos').then(r => r.json()).then(said => said.photographs[0].id)")
    page.on("response", lambda answer: asked.append(answer))
    for path, picture in (("l/2", ".mosaic img"), ("u/2/7", ".examples img"), (f"i/{photo}", "[part=photo] img")):
        page.goto(start + path)
        expect(page.locator(picture).first).to_have_js_property("complete", True)
    thumbs = [answer for answer in asked if "/thumb/" in answer.url]
    assert thumbs
    for answer in thumbs:
        assert images.startswith(dict(parse_qsl(urlsplit(answer.url).query))["of"])
        assert "immutable" in answer.headers["cache-control"]


def test_pictures_of_a_page_that_was_left_are_not_asked_for_any_more(open_page):
    page = open_page()
    expect(page.get_by_text("Complete: 10 photographs.")).to_be_visible()
    held, left = set(), set()
    page.route("**/thumb/**", lambda route: held.add(route.request.url))  # none is answered
    page.on("requestfailed", lambda request: left.add(request.url))

    def of(urls, width):
        return {url for url in urls if f"?w={width}&" in url}

    page.goto(f"{page.url}l/2")
    until(page, lambda: len(of(held, 120)) > 10)
    page.locator("[data-at='7'] .cell").click()
    expect(page.locator(".examples .crop")).to_have_count(10)
    until(page, lambda: len(of(held, 192)) == 10)
    until(page, lambda: of(left, 120) == of(held, 120))
    assert not of(left, 192)


CLICK = """(link) => new Promise((done) => {
  const asked = [];
  const { fetch } = window;
  window.fetch = (path, ...rest) => {
    asked.push(path);
    return fetch(path, ...rest);
  };
  const look = () => document.querySelector("h1").textContent.endsWith("unit 7") && done([...asked]);
  new MutationObserver(look).observe(document, { childList: true, subtree: true, characterData: true });
  document.querySelector(link).click();
})"""


def test_a_unit_is_asked_for_before_its_page_is_drawn_without_it(open_page):
    page = open_page()
    expect(page.get_by_text("Complete: 10 photographs.")).to_be_visible()
    page.goto(f"{page.url}l/2")
    page.locator("[data-at='7'] .cell").wait_for()
    asked = page.evaluate(CLICK, "[data-at='7'] .cell")
    assert sorted(urlsplit(path).path.rpartition("/units/7")[2] for path in asked if "/units/7" in path) == [
        "",
        "/examples",
    ]


def until(page, met):
    """Wait until something holds, while the page goes on."""
    for _ in range(1200):
        if met():
            return
        page.wait_for_timeout(100)
    raise AssertionError("It does not happen.")


def test_the_units_at_a_point_of_a_photograph(open_page):
    page = open_page()
    expect(page.get_by_text("Complete: 10 photographs.")).to_be_visible()
    start = page.url
    photo = page.evaluate("fetch('/api/v1/photos').then(r => r.json()).then(said => said.photographs[3].id)")
    page.goto(f"{start}i/{photo}")
    page.locator("[part=photo]").click(position={"x": 90, "y": 60})
    expect(page).to_have_url(re.compile(r"\?x=[\d.]+&y=[\d.]+$"))
    before = page.url
    page.keyboard.press("ArrowRight")
    expect(page).not_to_have_url(before)
    expect(page.locator(".strongest tr")).to_have_count(2)
    chip = page.locator(".strongest .chip").last
    chip.hover()
    expect(page.locator(".pointed canvas")).to_be_visible()
    expect(page.locator(".at-point figcaption")).to_contain_text("The map of 2 unit")
    fits(page)
    chip.click()
    expect(page).to_have_url(re.compile(rf"/u/2/\d+\?photo={photo}$"))


SEEN = """(one) => {
  const { left, top, right, bottom } = one.getBoundingClientRect();
  const at = document.elementFromPoint((left + right) / 2, (top + bottom) / 2);
  return top >= 0 && bottom <= innerHeight && at !== null && one.contains(at);
}"""


def in_sight(locator):
    """Wait until something is in the window as a whole, and nothing covers it."""
    until(locator.page, lambda: locator.evaluate(SEEN))


@pytest.mark.parametrize("width", [390, 800])
def test_what_a_finger_chooses_is_in_sight(open_page, width):
    page = open_page(has_touch=True)
    expect(page.get_by_text("Complete: 10 photographs.")).to_be_visible()
    start, photo = page.url, page.evaluate("fetch('/api/v1/photos').then(r => r.json()).then(s => s.photographs[3].id)")
    page.set_viewport_size({"width": width, "height": 844})
    page.goto(f"{start}u/2/7")
    expect(page.locator(".examples .crop")).to_have_count(10)
    page.get_by_role("link", name="find its circuit").tap()
    in_sight(page.locator("[part=find]"))
    expect(page).to_have_url(f"{start}u/2/7")
    for crop in (page.locator(".examples .crop").last, page.locator(".examples .crop").first):
        crop.tap()
        in_sight(page.locator("figure.map canvas"))
        in_sight(page.get_by_role("link", name="all units on this photograph"))
        in_sight(crop)
        expect(page.locator(".sheet .frame")).to_be_visible()
    accessible(page)
    page.get_by_role("button", name="close").tap()
    expect(page.locator("figure.map")).to_have_count(0)

    page.goto(f"{start}i/{photo}?x=9&y=9")
    chips = page.locator(".strongest .chip")
    for chip in (chips.first, chips.last):
        chip.tap()
        in_sight(page.locator(".sheet canvas" if width < 620 else ".at-point canvas"))
        in_sight(chip)
        in_sight(page.get_by_role("link", name="open unit").locator("visible=true"))
        expect(page).to_have_url(re.compile("/i/"))
    accessible(page)
    chips.last.tap()
    expect(page).to_have_url(re.compile(rf"/u/2/\d+\?photo={photo}$"))
    page.go_back()
    chips.first.tap()
    page.get_by_role("link", name="open unit").locator("visible=true").tap()
    expect(page).to_have_url(re.compile(rf"/u/0/\d+\?photo={photo}$"))


def maps(page, address):
    """Look at the maps of a unit's ten photographs, which are in two groups, in every way. All ten stay chosen."""
    expect(page).to_have_url(address)
    expect(page.get_by_role("heading", level=1)).to_have_text("2 · unit 9 · its photographs")
    expect(page.locator("nav.layers [aria-current=page]")).to_contain_text("2")
    expect(page.get_by_role("complementary")).to_contain_text("None chosen")
    chosen = page.locator(".thumbs img")
    find = page.get_by_role("button", name="Find a circuit for them")
    expect(find).to_be_disabled()
    page.get_by_role("button", name="2", exact=True).click()
    expect(page).to_have_url(f"{address}?at=2")
    expect(page.locator(".said")).to_contain_text("2: the map holds")
    canvas = page.locator(".plot canvas")
    place = canvas.bounding_box()
    corners = [(place["x"] + x * place["width"], place["y"] + y * place["height"]) for x, y in SQUARE]
    page.mouse.move(*corners[0])
    page.mouse.down()
    for corner in corners[1:]:
        page.mouse.move(*corner)
    page.mouse.up()
    expect(chosen).to_have_count(10)
    everything = page.url
    assert re.fullmatch(r"at=2&chosen=[0-9a-f]{80}", urlsplit(everything).query)
    canvas.press("Escape")
    expect(chosen).to_have_count(0)
    expect(page).to_have_url(f"{address}?at=2")
    canvas.press("ArrowRight")
    strongest = page.locator(".card h3").text_content()
    canvas.press(" ")
    expect(chosen).to_have_count(1)
    assert chosen.get_attribute("alt") == strongest
    page.locator("[part=colors]").select_option("response")
    expect(page).to_have_url(re.compile(r"\?at=2&colors=response&chosen=[0-9a-f]{8}$"))
    for count in (1, 0, 10):
        page.go_back()
        expect(chosen).to_have_count(count)
    expect(page).to_have_url(everything)
    page.go_forward()
    expect(chosen).to_have_count(0)
    page.goto(f"{everything}00000000")
    expect(page.get_by_text("1 photograph of this link is not on the map.")).to_be_visible()
    page.goto(everything)
    expect(chosen).to_have_count(10)
    expect(page.locator("input[type=range]")).to_have_value("1")
    for theme in ("dark", "system"):
        page.get_by_role("combobox", name="colors").select_option(theme)
        fits(page)
    page.get_by_label("kernels to keep").select_option("0.2")
    expect(find).to_be_enabled()


def test_what_is_measured_of_a_unit_and_its_circuits(open_page, folder):
    page = open_page()
    expect(page.get_by_text("Complete: 10 photographs.")).to_be_visible()
    start = page.url
    page.goto(f"{start}u/2/9")
    expect(page.locator("[part=estimate]")).to_contain_text("about")
    with done(page):
        page.locator("[part=neighbours]").click()
    expect(page.locator(".pair .row").first.locator("a")).to_have_count(5)
    with done(page):
        page.locator("[part=visualise]").click()
    expect(page.locator(".feature figcaption")).to_contain_text("128 steps")
    page.locator("[part=groups]").select_option("2")
    with done(page):
        page.locator("[part=split]").click()
    expect(page.locator("[part=split-verdict]")).to_contain_text("10 photographs")
    expect(page.locator(".split .group")).to_have_count(2)
    expect(page.locator(".cross tbody tr")).to_have_count(2)
    fits(page)

    page.goto(f"{start}t/2/9")
    expect(page.get_by_text("They have not been placed yet.")).to_be_visible()
    with done(page):
        page.locator("[part=trajectory]").click()
    expect(page.locator(".plot canvas")).to_be_visible()
    page.get_by_role("link", name="unit 9").click()
    page.get_by_role("link", name="Open the maps").click()
    (file,) = (folder / "project" / "trajectories").iterdir()
    written, said = json.loads(file.read_text()), page.evaluate(f"fetch('{TRAJECTORY}').then(r => r.json())")
    assert all(said[name] == written[name] for name in ("photos", "names", "boxes", "groups", "labels", "response"))
    assert np.allclose(said["points"], written["points"], rtol=0, atol=1e-4)
    maps(page, f"{start}t/2/9")
    with done(page):
        page.get_by_role("button", name="Find a circuit for them").click()
    found = page.locator(".own-jobs li").first
    expect(found).to_contain_text("Found for 10 chosen photographs (density 0.2)")
    found.get_by_role("link").click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("2 unit 9")
    expect(page.get_by_text("It was found on whole photographs", exact=False)).to_be_visible()

    large, small = (
        answered(page, kind="find", feature="2:9", criterion="gauss_newton", density=density, count=6, refit=refit)[
            "circuit"
        ]
        for density, refit in ((0.4, "none"), (0.2, "filters"))
    )
    page.goto(f"{start}c/{small}")
    with done(page):
        page.get_by_role("button", name="Fit controls").click()
    expect(page.get_by_role("button", name="Fit controls")).to_have_count(0)
    expect(page.locator("[part=diagram] [part=caption]")).not_to_contain_text("No controls were fitted")
    card = page.evaluate(f"fetch('/api/v1/circuits/{small}').then(r => r.json())")
    assert card["controls"] in ("found", "not found", "not decided")
    with done(page):  # its diagram
        page.goto(f"{start}c/{large}")
    expect(page.get_by_alt_text("the picture that drives it most")).to_be_visible()
    in_panel = page.locator("[part=diagram] [part=features]")
    expect(in_panel).to_have_text("optimized to drive it most in the full model")
    expect(in_panel.locator("image")).to_have_attribute("href", "/api/v1/layers/2/units/9/picture")
    with done(page):
        page.locator("[part=sweep]").click()
    stop = page.locator(".stop").nth(2)
    stop.hover()
    expect(page.locator(".stop-card")).to_contain_text("R²")
    stop.click()  # its circuit was kept
    expect(page).to_have_url(re.compile("/c/[0-9a-f]{16}$"))
    expect(page).not_to_have_url(re.compile(large))
    expect(page.locator("[part=why]")).to_contain_text("On 6 held-out crops")
    card = page.evaluate("id => fetch(`/api/v1/circuits/${id}`).then(r => r.json())", page.url.split("/")[-1])
    found = {"kind": "find", "feature": "2:9", "criterion": "gauss_newton", "count": 6, "seed": 0}
    found["density"] = card["provenance"]["recipe"]["density"]
    assert page.evaluate(ASKED, found) == [200, card["id"]]  # so finding it takes no time
    page.goto(f"{start}c/{large}")
    with done(page):
        page.locator("[part=extract]").click()
    with page.expect_download() as download:
        page.get_by_role("link", name=", safetensors").click()
    assert download.value.suggested_filename.endswith("-module.safetensors")
    page.locator("[part=diagram] [data-node]").first.wait_for()
    with page.expect_download() as download:
        page.locator("[part=page]").click()
    assert download.value.suggested_filename.endswith(".html")
    shared = read_page(download.value.path().read_text())
    assert len([one for pictures in shared.pictures for one in pictures.target]) == 1  # the same picture
    with page.expect_download() as download:
        page.locator("[part=bundle]").click()
    assert download.value.suggested_filename.endswith(".zip")
    expect(page.get_by_text("answer is no logits of classes")).to_be_visible()
    expect(page.locator("[part=put_back]")).to_have_count(0)  # it could only fail
    page.set_viewport_size({"width": 1280, "height": 720})
    place = page.get_by_role("region", name="the diagram").bounding_box()
    assert place["y"] + place["height"] <= 720  # nothing of it is below the window
    clusters = [page.get_by_role("group", name=name, exact=True).bounding_box()["y"] for name in ("show", "detail")]
    assert abs(clusters[0] - clusters[1]) < 10  # controls in one row leave room for pictures
    expect(page.get_by_role("heading", level=1)).to_have_count(1)
    page.locator("[part=diagram] [data-node] .frame").first.click()
    with done(page):
        page.locator("[part=ablate]").click()
    expect(page.locator("[part=without]")).to_contain_text("Measured without it, on 6 held-out crops: R²")
    fits(page)

    a, b = page.evaluate("fetch('/api/v1/photos').then(r => r.json()).then(r => r.photographs.map(p => p.id))")[:2]
    page.locator("[part=photo-a]").select_option(a)
    page.locator("[part=photo-b]").select_option(b)
    expect(page).to_have_url(re.compile(rf"c/{large}\?a={a}&b={b}#"))  # with the diagram's own view
    expect(page.locator(".differing")).to_have_count(2)
    expect(page.locator("[part=diagram] .tilt").first).to_be_visible()
    expect(page.locator("[data-legend=excites]")).to_have_text("more on A")
    page.get_by_role("button", name="swap").click()
    expect(page).to_have_url(re.compile(f"a={b}&b={a}#"))
    fits(page)

    page.locator(f".beside-it[href$='{small}']").click()
    expect(page).to_have_url(f"{start}compare?a={large}&b={small}")
    with done(page):
        page.locator("[part=compare]").click()
    page.locator("[part=diagram] [data-node]").first.wait_for()
    page.locator("[part=diagram] [data-node] .frame").last.click()
    expect(page.locator("[part=diagram] .notes")).to_contain_text(
        "Kept in this page's address alone: the project keeps"
    )
    expect(page.locator(".beside tbody td").first).to_contain_text("on 6 crops")
    for width, height in ((1280, 720), (1440, 810)):
        page.set_viewport_size({"width": width, "height": height})
        place = page.get_by_role("region", name="the diagram").bounding_box()
        assert place["y"] + place["height"] <= height  # figures are below the diagram, as on a circuit's page
        # Room for six filters of 48 px in a column: frontend/test/core.test.ts has the sum.
        assert page.locator("[part=diagram] .stage-frame").bounding_box()["height"] >= 398 + 16
    fits(page)


def test_what_a_finger_taps_is_not_covered_by_what_is_said_of_it(open_page):
    page = open_page(has_touch=True)
    expect(page.get_by_text("Complete: 10 photographs.")).to_be_visible()
    circuit = answered(page, kind="find", feature="0:2", criterion="gauss_newton", density=0.6, count=4)["circuit"]
    page.set_viewport_size({"width": 390, "height": 640})
    page.goto(f"{page.url}c/{circuit}")
    node = page.locator("[part=diagram] [data-node]").last
    node.locator(".frame").first.tap()
    sheet = page.locator("[part=diagram] [part=side]")
    expect(sheet.locator("[part=card]")).to_be_in_viewport()
    page.wait_for_function("""() => {
      const root = document.querySelector("[part=diagram]").shadowRoot;
      const card = root.querySelector("[part=side]").getBoundingClientRect();
      const node = [...root.querySelectorAll("[data-node]")].at(-1).getBoundingClientRect();
      return node.bottom <= card.top && card.bottom <= innerHeight + 1;
    }""")


def test_from_a_layer_to_its_atlas_and_to_a_circuit_of_it(open_page):
    page = open_page()
    start = page.url
    page.goto(f"{start}l/0")
    page.get_by_role("link", name="small").click()
    title, panel = page.get_by_role("heading", level=1), page.get_by_role("complementary")
    expect(title).to_have_text("0 · atlas of 6 units")
    expect(page.locator("nav.layers [aria-current=page]")).to_contain_text("0")
    expect(panel).to_contain_text("Units are placed by the two principal axes")
    address = page.url
    page.locator(".plot canvas").press("ArrowRight")
    expect(page).to_have_url(f"{address}?unit=0")
    page.locator("[part=unit]").select_option("3")
    expect(panel.locator("h2").first).to_have_text("0:3")
    page.locator("#hubs button").first.click()
    expect(page.locator("#hubs [aria-pressed=true]")).to_have_count(1)
    view = page.url
    page.reload()
    expect(page.locator("#hubs [aria-pressed=true]")).to_have_count(1)
    expect(page.get_by_role("heading", name="Kernels that serve few units, below chance")).to_be_visible()
    expect(panel.locator("h2").first).to_have_text("0:3")
    expect(page.get_by_role("link", name="the unit")).to_have_attribute("href", "/u/0/3")
    page.get_by_role("combobox", name="colors").select_option("dark")
    fits(page)
    page.get_by_role("link", name="its circuit").click()
    expect(title).to_contain_text("0 unit 3")
    page.go_back()
    expect(page).to_have_url(view)
    page.go_back()
    expect(page.locator("#hubs [aria-pressed=true]")).to_have_count(0)
    page.goto(f"{address}?unit=99")
    expect(panel).to_contain_text("Unit 99 has no circuit here.")
    title.get_by_role("link").click()
    expect(page).to_have_url(f"{start}l/0")


def test_a_file_that_the_command_wrote_appears_when_the_window_is_looked_at(open_page, folder):
    page = open_page()
    file = folder / "project" / "circuits" / "of-the-command.safetensors"
    file.write_bytes(b"x")
    page.evaluate("dispatchEvent(new Event('focus'))")
    expect(page.get_by_role("link", name=file.name)).to_be_visible()
    file.unlink()
    page.evaluate("dispatchEvent(new Event('focus'))")
    expect(page.get_by_role("link", name=file.name)).to_have_count(0)


def test_what_is_labeled_is_found_again(open_page, folder):
    page = open_page()
    expect(page.get_by_text("Complete: 10 photographs.")).to_be_visible()
    images = torch.rand(4, 3, 20, 20)
    circuit = cc.find(
        importlib.import_module("paged_net").net(), cc.Feature("2", 11), images, density=0.3, criterion="magnitude"
    )
    cc.save(circuit, folder / "project/circuits/labeled.safetensors")
    page.evaluate("dispatchEvent(new Event('focus'))")
    expect(page.locator(".circuits").first).to_contain_text("2 unit 11")
    known = page.evaluate("fetch('/api/v1/circuits').then(r => r.json())")
    (id,) = (one["id"] for one in known if one["unit"] == 11)
    photo = page.evaluate("fetch('/api/v1/photos').then(r => r.json()).then(said => said.photographs[2])")
    page.evaluate(NOTED, [f"circuits/{id}", "a fine one"])
    page.evaluate(NOTED, [f"photos/{photo['id']}", "a strange one"])
    expect(page.locator(".circuits").first.locator("li").filter(has_text="unit 11")).to_contain_text("“a fine one”")
    labels = page.locator("section").filter(has=page.get_by_role("heading", name="Labels"))
    expect(labels.locator("li").filter(has_text="a fine one")).to_contain_text("2 unit 11")
    labels.locator("li").filter(has_text="a strange one").get_by_role("link").click()
    expect(page).to_have_url(re.compile(f"/i/{photo['id']}$"))
    (folder / "project/circuits/labeled.safetensors").unlink()


def test_two_tabs_do_not_overwrite_each_others_notes(open_page):
    page = open_page()
    expect(page.get_by_text("Complete: 10 photographs.")).to_be_visible()
    page.goto(page.url + "u/0/1")
    other = page.context.new_page()
    other.goto(page.url)
    page.locator("[part=label]").fill("mine")
    other.locator("[part=label]").fill("theirs")
    other.get_by_role("button", name="Save").click()
    expect(page.locator(".both")).to_contain_text("Another tab wrote meanwhile: “theirs”")
    expect(page.locator(".both")).to_contain_text("Yours, not saved: “mine”")
    page.get_by_role("button", name="keep mine").click()
    expect(other.locator("[part=label]")).to_have_value("mine")


def test_what_is_written_on_a_filter_of_a_diagram_stays_and_no_tab_overwrites_another(open_page):
    page = open_page()
    expect(page.get_by_text("Complete: 10 photographs.")).to_be_visible()
    circuit = answered(page, kind="find", feature="0:2", criterion="gauss_newton", density=0.6, count=4)["circuit"]
    address = f"{page.url}c/{circuit}"

    def label(tab):
        tab.locator("[part=diagram] [data-node] .frame").last.click()
        return tab.locator("[part=diagram] [part=label]")

    page.goto(address)
    first = label(page)
    first.fill("wheel")
    first.press("Enter")
    expect(page).to_have_url(re.compile(r"#isolate=\d+$"))  # not in the address
    other = page.context.new_page()
    other.goto(address)
    second = label(other)
    expect(second).to_have_value("wheel")
    second.fill("tyre")
    first.fill("hub")
    first.press("Enter")
    page.wait_for_function("() => fetch('/api/v1/notes').then(r => r.text()).then(text => text.includes('hub'))")
    everything = other.locator("[part=diagram] [data-paths=all]")
    everything.evaluate("button => button.click()")  # by a script, so that the label stays in focus
    expect(everything).to_have_attribute("aria-pressed", "true")
    other.wait_for_timeout(300)  # until the address has what was clicked
    expect(other).to_have_url(re.compile("paths=all$"))  # nobody wrote in this tab what it still shows
    page.goto("about:blank")
    page.goto(address)
    expect(label(page)).to_have_value("hub")
    expect(second).to_have_value("tyre")  # what is being written stays
    second.press("Enter")
    expect(other.locator(".both")).to_contain_text("Another tab wrote meanwhile on filter 2 of 0: “hub”")
    expect(other.locator(".both")).to_contain_text("Yours, not saved: “tyre”")
    other.get_by_role("button", name="keep mine").click()
    expect(first).to_have_value("tyre")
    expect(page.locator("[part=diagram] .notes")).not_to_contain_text("Kept in")
    expect(other.locator(".both")).to_have_count(0)
    expect(other).to_have_url(re.compile("paths=all$"))


def test_what_is_saved_of_a_filter_stays_when_the_reader_goes_back_or_on(open_page):
    page = open_page()
    expect(page.get_by_text("Complete: 10 photographs.")).to_be_visible()
    start = page.url
    circuit = answered(page, kind="find", feature="0:2", criterion="gauss_newton", density=0.6, count=4)["circuit"]
    notes = f"**/api/v1/notes/circuits/{circuit}/**"
    page.evaluate(NOTED, [f"circuits/{circuit}/filters/0/2", "tyre"])
    page.goto(f"{start}c/{circuit}#label=999:nothing&label=NaN:none")
    notice = page.locator("[part=diagram] [part=notice]")
    expect(notice).to_contain_text("The view was opened without what does not fit this diagram: notes.")
    page.locator("[part=diagram] [data-node] .frame").last.click()
    expect(notice).to_have_count(0)
    label = page.locator("[part=diagram] [part=label]")
    page.route(notes, lambda route: route.fulfill(body="no JSON"))
    label.fill("wheel")
    label.press("Enter")
    expect(page).to_have_url(re.compile(r"#isolate=\d+&label=\d+:wheel$"))  # it cannot be saved, nor is it lost
    expect(page.get_by_text("is in the page's address, but not saved")).to_be_visible()
    page.locator("[part=diagram] [data-paths=all]").click()
    expect(page).to_have_url(re.compile(r"paths=all&label=\d+:wheel$"))
    page.unroute(notes)
    label.fill("hub")
    label.press("Enter")
    expect(page).to_have_url(re.compile("paths=all$"))
    expect(page.get_by_text("is in the page's address, but not saved")).to_have_count(0)
    page.go_back()
    expect(page.locator("[part=diagram] [data-paths=all]")).to_have_attribute("aria-pressed", "false")
    expect(label).to_have_value("hub")
    expect(page).to_have_url(re.compile(r"#isolate=\d+$"))
    held = []
    page.route(notes, lambda route: held.append(route) if route.request.method == "PUT" else route.continue_())
    label.fill("rim")
    label.press("Enter")
    expect(page).to_have_url(re.compile("label="))
    page.locator("a[href='/']").first.click()
    expect(page).to_have_url(start)
    while not held:
        page.wait_for_timeout(20)
    held[0].continue_()
    page.wait_for_function("() => fetch('/api/v1/notes').then(r => r.text()).then(text => text.includes('rim'))")
    page.wait_for_timeout(300)
    expect(page).to_have_url(start)


def test_a_link_with_another_label_than_is_saved_says_so_and_the_reader_chooses(open_page):
    page = open_page()
    expect(page.get_by_text("Complete: 10 photographs.")).to_be_visible()
    circuit = answered(page, kind="find", feature="0:2", criterion="gauss_newton", density=0.6, count=4)["circuit"]
    of = f"circuits/{circuit}/filters/0/2"
    address = f"{page.url}c/{circuit}"
    page.evaluate(NOTED, [of, "hub"])
    page.goto(address)
    page.locator("[part=diagram] [data-node] .frame").last.click()
    expect(page).to_have_url(re.compile(r"isolate=\d+$"))
    node = page.url.rpartition("=")[2]
    label, both = page.locator("[part=diagram] [part=label]"), page.locator(".both")
    saved = "() => fetch('/api/v1/notes').then(r => r.text())"

    page.goto(f"{address}#isolate={node}&label={node}:wheel%26%25%23")
    expect(label).to_have_value("wheel&%#")
    expect(both).to_contain_text("Saved on filter 2 of 0: “hub”")
    expect(both).to_contain_text("In this page's address, not saved: “wheel&%#”")
    accessible(page)
    both.get_by_role("button", name="take what is saved").click()
    expect(label).to_have_value("hub")
    expect(both).to_have_count(0)
    expect(page).to_have_url(f"{address}#isolate={node}")

    page.goto(f"{address}#isolate={node}&label={node}:rim")
    expect(both).to_contain_text("not saved: “rim”")
    page.reload()  # what is not saved is in the address
    expect(both).to_contain_text("not saved: “rim”")
    both.get_by_role("button", name="save the address's").click()
    expect(both).to_have_count(0)
    expect(page).to_have_url(f"{address}#isolate={node}")
    assert '"rim"' in page.evaluate(saved)
    page.go_back()
    expect(page.locator(f"[part=diagram] [data-node='{node}']")).to_contain_text("rim")
    expect(page).to_have_url(f"{address}#isolate={node}")
    expect(both).to_have_count(0)

    page.goto(f"{address}#label={node}:")  # one that takes it away
    expect(both).to_contain_text("In this page's address, not saved: nothing")
    both.get_by_role("button", name="save the address's").click()
    expect(page).to_have_url(address)
    assert '"rim"' not in page.evaluate(saved)


def test_a_note_from_another_tab_undoes_no_click(open_page):
    page = open_page()
    expect(page.get_by_text("Complete: 10 photographs.")).to_be_visible()
    circuit = answered(page, kind="find", feature="0:2", criterion="gauss_newton", density=0.6, count=4)["circuit"]
    page.clock.install()
    page.goto(f"{page.url}c/{circuit}")
    node = page.locator("[part=diagram] [data-node]").last
    node.wait_for()
    page.clock.pause_at(datetime.now() + timedelta(hours=1))  # the address never follows what is clicked now
    node.locator(".frame").click()
    page.evaluate(NOTED, [f"circuits/{circuit}/filters/0/2", "spoke"])
    for _ in range(100):
        page.wait_for_timeout(50)
        page.clock.run_for(1)
        if "spoke" in (node.text_content() or ""):
            break
    expect(node).to_contain_text("spoke")
    expect(node).to_have_attribute("aria-pressed", "true")
    expect(page.locator("[part=diagram] [part=label]")).to_have_value("spoke")
    expect(page).to_have_url(re.compile(r"#isolate=\d+$"))


def test_a_unit_of_two_mechanisms_is_split_into_them(open_page, planted):
    page = open_page(planted[1])
    expect(page.get_by_text("Complete: 60 photographs.")).to_be_visible()
    answered(page, kind="split", feature="2:0", densities=[0.4, 0.3], shuffles=1)
    page.goto(f"{page.url}u/2/0")
    expect(page.locator("[part=split-verdict] b")).to_contain_text("2 mechanisms")
    expect(page.locator(".split .group")).to_have_count(2)
    colors = [
        {title[:3] for title in group.locator("li a").evaluate_all("all => all.map(each => each.title)")}
        for group in page.locator(".split .group").all()
    ]
    assert sorted(colors, key=str) == [{"blu"}, {"red"}]
    said = []
    for size in page.locator(".tools").filter(has_text="held-out photographs").locator("button").all():
        size.click()
        said.append(page.locator(".split").get_by_text("higher on other groups").inner_text())
    decided, other = sorted(said, key=lambda text: "dealt at random" in text, reverse=True)
    assert re.search(r"with groups dealt at random \S+: selective\.$", decided)
    assert re.search(r"the verdict and its control are about the circuits of \d+ %\.$", other)


def test_a_page_hears_again_after_its_server_was_started_anew_or_refused_it(browser, tmp_path):
    with contextlib.closing(browser.new_context()) as context:
        page = context.new_page()
        with of_two_mechanisms(tmp_path) as address:
            page.route("**/api/v1/events", lambda route: route.fulfill(status=503, json={"error": "busy"}), times=1)
            page.goto(address)
            expect(page.locator(".banner")).to_contain_text("does not hear what changes")
            expect(page.locator(".banner")).to_have_count(0)
        expect(page.locator(".banner")).to_contain_text("does not answer")
        with of_two_mechanisms(tmp_path, urlsplit(address).port) as address:
            expect(page.locator(".banner")).to_contain_text("opened by the address that the explorer printed")
            other = context.new_page()
            other.goto(address)
            other.locator("[data-ready=true]").wait_for()
            expect(page.locator(".banner")).to_have_count(0)
            other.evaluate(NOTED, ["units/2/0", "heard"])
            expect(page.locator("main")).to_contain_text("heard")


# What a page can try: to read, to hear, and to write with what needs no permission of the other side.
INTRUDES = """async ([api, photo]) => {
  const heard = () => new Promise((done) => {
    const events = new EventSource(`${api}/events`, { withCredentials: true });
    events.onopen = () => done("heard");
    events.onerror = () => { events.close(); done("refused"); };
  });
  const seen = () => new Promise((done) => {
    const image = new Image();
    image.onload = () => done("seen");
    image.onerror = () => done("refused");
    image.src = `${api}/thumb/${photo}?w=64`;
  });
  const init = { credentials: "include" };
  const read = await fetch(`${api}/model`, init).then(() => "read", () => "refused");
  const body = JSON.stringify({ kind: "index" });
  const plain = { ...init, method: "POST", mode: "no-cors", headers: { "content-type": "text/plain" }, body };
  await fetch(`${api}/jobs`, plain).catch(() => {});
  const json = { ...init, method: "POST", headers: { "content-type": "application/json" }, body };
  const written = await fetch(`${api}/jobs`, json).then(() => "written", () => "refused");
  return [read, await seen(), await heard(), written];
}"""


def test_a_browser_lets_no_other_name_no_other_page_and_no_stranger_in(address, browser, tmp_path):
    """A name that leads to this machine, as in DNS rebinding; a page of another port, with the cookie; no cookie."""
    start, jobs = address.split("?")[0], "fetch('/api/v1/jobs').then((answer) => answer.json())"
    named = start.replace("127.0.0.1", "rebound.test")
    flags = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--host-resolver-rules=MAP rebound.test 127.0.0.1"]
    (tmp_path / "index.html").touch()
    serve = functools.partial(SimpleHTTPRequestHandler, directory=tmp_path)
    with (
        contextlib.closing(browser.browser_type.launch(executable_path=find_chromium(), args=flags)) as chromium,
        ThreadingHTTPServer(("127.0.0.1", 0), serve) as other,
    ):
        threading.Thread(target=other.serve_forever, daemon=True).start()
        context = chromium.new_context()
        page = context.new_page()
        page.goto(address)
        page.locator("[data-ready=true]").wait_for()
        (cookie,) = context.cookies()
        photo = page.evaluate("fetch('/api/v1/photos').then((answer) => answer.json())")["photographs"][0]["id"]
        own = page.evaluate(INTRUDES, [f"{start}api/v1", photo])
        assert own == ["read", "seen", "heard", "written"]
        before = page.evaluate(jobs)

        rebound = context.new_page()
        context.add_cookies([{**cookie, "domain": "rebound.test"}])
        for path in ("", "api/v1/model", "l/2"):
            assert rebound.goto(named + path).status == 421
        assert rebound.goto(f"{named}?{address.split('?')[1]}").status == 421

        foreign = context.new_page()
        foreign.goto(f"http://127.0.0.1:{other.server_port}")
        assert foreign.evaluate(INTRUDES, [f"{start}api/v1", photo]) == ["refused"] * 4
        assert page.evaluate(jobs) == before

        for path in ("thumb/..%2F..%2Fpaged_net.py?w=64", "circuits/..%2Fnotes", "photos/%2e%2e", "map/2/1/..%2Fa.png"):
            assert page.evaluate("(at) => fetch(at).then((answer) => answer.status)", f"/api/v1/{path}") in (404, 422)

        stranger = chromium.new_context().new_page()
        for path in ("", "api/v1/model", "u/2/7"):
            assert stranger.goto(start + path).status == 401
        assert stranger.context.cookies() == []
        other.shutdown()


def slowed(open_page, planted):
    """Open the page of jobs of the planted model, which runs slowly until the file ``slow`` is gone."""
    folder, address = planted
    page = open_page(address)
    expect(page.get_by_text("Complete: 60 photographs.")).to_be_visible()
    page.goto(f"{page.url}jobs")
    (folder / "slow").touch()
    return folder, page


def test_a_job_is_cancelled_in_the_middle_and_the_next_one_runs(open_page, planted):
    folder, page = slowed(open_page, planted)
    page.evaluate(ASKED, SLOW)
    page.wait_for_function("() => document.querySelector('[role=progressbar]')?.ariaValueNow >= 30")
    page.get_by_role("button", name="cancel: find").click()
    cancelled = page.locator("section").filter(has=page.get_by_role("heading", name="Cancelled"))
    expect(cancelled).to_contain_text("It was cancelled.")
    (job,) = page.evaluate("fetch('/api/v1/jobs').then(r => r.json()).then(all => all.filter(j => j.kind === 'find'))")
    assert 30 <= round(100 * job["done"] / job["total"]) < 100  # as the bar rounds
    expect(page.get_by_text("Nothing runs.")).to_be_visible()
    (folder / "slow").unlink()
    answered(page, **SLOW | {"options": ["steps=3"]})
    expect(page.get_by_role("link", name="circuit", exact=True)).to_have_count(1)


def test_a_worker_that_is_killed_fails_its_job_with_a_sentence_and_the_page_lives(open_page, planted):
    folder, page = slowed(open_page, planted)
    page.evaluate(ASKED, SLOW | {"seed": 1})
    expect(page.locator("[role=progressbar]")).to_have_count(1)
    (folder / "dies").touch()
    failed = page.locator("section").filter(has=page.get_by_role("heading", name="Failed"))
    expect(failed).to_contain_text("The worker process ended by signal 9, perhaps because memory ran out.")
    (folder / "slow").unlink()
    found = answered(page, **SLOW | {"options": ["steps=4"]})
    page.locator(f"a[href$='{found['circuit']}']").first.click()
    expect(page.locator("[part=why]")).to_contain_text("On 6 held-out crops")


def test_a_page_of_what_is_not_indexed_says_so_and_has_it_as_soon_as_it_is(open_page, unindexed):
    """It asks for nothing that is not there: no answer is an error, which the console would have."""
    folder, address = unindexed
    page = open_page(address)
    start = page.url
    photo = page.evaluate("fetch('/api/v1/photos').then(r => r.json()).then(said => said.photographs[0].id)")
    for path, said in (
        ("l/2", "This layer has not been indexed yet."),
        ("l/1", "This layer is no convolution, so it is not indexed."),
        ("l/nine", "There is no layer nine."),
        ("u/nine/0", "There is no layer nine."),
        ("u/2/99", "2 has 2 units; there is no unit 99."),
        (f"c/{NOWHERE}", f"The project has no circuit {NOWHERE}."),
        (f"a/{NOWHERE}", f"There is no atlas {NOWHERE} here."),
        (f"i/{NOWHERE}?x=5&y=5", f"There is no photograph {NOWHERE} here."),
        (f"i/{photo}?x=5&y=5", "No layer has been indexed yet."),
        ("u/2/0", "This layer has not been indexed yet."),
    ):
        page.goto(start + path)
        expect(page.get_by_text(said)).to_be_visible()
    (folder / "waits").unlink()
    expect(page.locator(".examples .crop").first).to_be_visible()
    expect(page.get_by_text("This layer has not been indexed yet.")).to_have_count(0)
    page.goto(f"{start}i/{photo}?x=5&y=5")
    expect(page.locator(".strongest .chip").first).to_be_visible()
    page.goto(f"{start}i/{photo}?x=9999&y=-3")
    expect(page.locator(".strongest tr")).to_have_count(2)
    page.goto(f"{start}u/2/0?photo={NOWHERE}")
    expect(page.get_by_text(f"There is no photograph {NOWHERE} here.")).to_be_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_fit_every_window_and_can_be_read(open_page, scheme):
    page = open_page(color_scheme=scheme)
    start = page.url
    for path in PAGES[scheme]:
        page.goto(start + path)
        page.locator("#main h1").wait_for()
        if scheme == "dark":
            accessible(page)
        for width in WIDTHS:
            page.set_viewport_size({"width": width, "height": 900})
            assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.zoo
def test_on_real_weights_the_page_finds_what_its_command_finds(browser, open_page, tmp_path):
    with cc.explore("vgg16_hed", "sample", project=tmp_path / "project", size=80, port=0, open=False) as server:
        page = open_page(server.address)
        expect(page.get_by_text(re.compile(r"Complete: \d+ photographs"))).to_be_visible(timeout=600_000)
        page.goto(f"{page.url}l/features.5")
        page.locator("[data-at='1'] .cell").click()
        expect(page.get_by_role("heading", level=1)).to_contain_text("unit 1")
        page.locator("[part=number]").fill(".2")
        page.locator("[part=criterion]").select_option("snip")
        page.locator("[part=crops]").fill("5")
        page.locator("[part=find]").click()
        page.get_by_role("link", name="open the circuit").click(timeout=600_000)
        shown = page.locator(".figures .own td").first.inner_text()
        command = page.locator("pre[aria-label^='The command']").inner_text()
        (file,) = (tmp_path / "project" / "circuits").glob("*.safetensors")
        page.context.close()
    found = CliRunner().invoke(application.app, [*shlex.split(command)[1:-1], str(tmp_path / file.name), "--json"])
    assert (tmp_path / file.name).read_bytes() == file.read_bytes()
    assert float(shown) == pytest.approx(json.loads(found.stdout)["r2"], abs=0.006)
