"""The page of a trajectory: what it lets run, that no text gets out of its place, and what it does in a browser."""

import base64
import hashlib
import json
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from playwright.sync_api import expect

import convcircuits as cc
from convcircuits.drawing.page import shipped
from convcircuits.drawing.tiles import data_url
from convcircuits.drawing.trajectory_page import trajectory_page
from convcircuits.values.trajectory import Trajectory
from convcircuits.zoo.boxes import read_boxes

AXE = Path(__file__).parents[1] / "frontend" / "node_modules" / "axe-core" / "axe.min.js"

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)> \u202e'$(id)'"
SHELL = {"command": "convcircuits find --feature 2:0 --images 'my photographs'"}


def written(names=None, feature="2:0@max", model="small", finding=SHELL, layer="2", group="red"):
    """A page of eight images in two layers: in the first on a line, in the second on a circle."""
    angle = torch.arange(8, dtype=torch.float64) * torch.pi / 4 + 0.1
    figures = torch.tensor([0.9, float("nan")], dtype=torch.float64)
    found = Trajectory(
        feature=feature,
        method="pca",
        layers=("0", layer),
        image=torch.arange(8),
        points=torch.stack(
            [torch.stack([torch.linspace(-1.7, 1.7, 8).double(), torch.zeros(8).double()], 1),
             torch.stack([angle.cos(), angle.sin()], 1)]
        ),
        explained=figures,
        kept=figures,
        disparity=figures.flip(0),
        shared=figures.flip(0),
        neighbors=3,
        response=torch.arange(8) + 1.0,
        groups=(group, "blue"),
        labels=torch.tensor([0, 0, 0, 1, 1, 1, 1, -1]),
        notes=(HOSTILE,),
    )  # fmt: skip
    picture = data_url(np.full((16, 16, 3), 90, dtype=np.uint8))
    names = names or [f"{n}.png" for n in range(8)]
    return trajectory_page(found.as_dict(), model=model, names=names, pictures=[picture] * 8, finding=finding)


def test_a_page_runs_its_one_script_and_fetches_nothing():
    text = written()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)[1]
    script = re.search(r'<script type="module">(.*?)</script>', text, re.DOTALL)[1]
    hashed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert "default-src 'none'" in policy
    assert f"script-src 'sha256-{hashed}'" in policy
    assert script == shipped("map.js")
    urls = set(re.findall(r"https?:[^\s\"']*", text))
    assert all(url.startswith("http://www.w3.org/") for url in urls)  # names of namespaces


def test_hostile_text_stays_data():
    names = [f"{HOSTILE}{n}" for n in range(8)]
    text = written(names, feature=HOSTILE, model=HOSTILE, layer=HOSTILE, group=HOSTILE)
    assert text.count("<script") == text.count("</script") == 2
    assert "<img" not in text
    data = json.loads(re.search(r'id="trajectory">(.*?)</script>', text, re.DOTALL)[1])
    assert data["names"] == names
    assert data["layers"][1]["layer"] == HOSTILE
    assert "\u202e" not in text.split('id="trajectory"')[0]


@pytest.fixture
def show(browser, tmp_path):
    """Open a page as a file, offline; nothing may be said, asked or fetched."""
    said, opened = [], []

    def show(text, **options):
        file = tmp_path / "trajectory.html"
        file.write_text(text, encoding="utf-8")
        context = browser.new_context(offline=True, viewport={"width": 1280, "height": 720}, **options)
        opened.append(context)
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda one: None if one.url.startswith(("data:", "file:")) else said.append(one.url))
        page.goto(file.as_uri())
        return page

    yield show
    for context in opened:
        context.close()
    assert said == []


def lasso(page, left, right):
    """Draw a lasso around a part of the map, given as shares of its width."""
    box = page.locator("canvas").bounding_box()
    x, y = (lambda share: box["x"] + share * box["width"]), (lambda share: box["y"] + share * box["height"])
    page.mouse.move(x(left), y(0.02))
    page.mouse.down()
    for across, down in ((right, 0.02), (right, 0.98), (left, 0.98)):
        page.mouse.move(x(across), y(down))
    page.mouse.up()


@pytest.mark.browser
def test_a_lasso_lists_images_and_how_to_find_a_circuit_for_them(show):
    page = show(written(), reduced_motion="reduce")
    expect(page.locator("h1")).to_have_text("2:0@max of small")
    lasso(page, 0.01, 0.5)  # on the line of the first layer
    assert page.locator(".thumbs img").evaluate_all("all => all.map(one => one.alt)") == [
        f"{n}.png" for n in (3, 2, 1, 0)
    ]
    lines = page.locator("pre").text_content()
    stem = re.search("chosen-[0-9a-f]{8}", lines)[0]
    rows = "".join(f" \\\n  {n}.png,0,0,1e9,1e9" for n in (3, 2, 1, 0))
    assert lines == (
        f"printf '%s\\n' name,photo_top,photo_left,photo_height,photo_width{rows} > {stem}.csv &&\n"
        f"{SHELL['command']} --boxes {stem}.csv --out {stem}.safetensors"
    )
    expect(page.get_by_text("found on 60 % of them")).to_be_visible()
    page.locator("input[type=range]").press("ArrowRight")
    expect(page.locator(".said")).to_have_text(re.compile("^2: against 0: disparity 0.90, neighbors shared 0.90"))
    lasso(page, 0.5, 0.99)  # on the circle of the second
    assert sorted(page.locator(".thumbs img").evaluate_all("all => all.map(one => one.alt)")) == [
        f"{n}.png" for n in (0, 1, 6, 7)
    ]
    assert stem not in page.locator("pre").text_content()  # other photographs, other files
    lasso(page, 0.01, 0.99)
    page.locator("input[type=range]").press("ArrowLeft")
    lasso(page, 0.01, 0.5)
    assert page.locator("pre").text_content() == lines  # the same photographs, the same files
    page.locator(".legend button", has_text="blue").click()
    expect(page.locator(".heading h2")).to_have_text("4 chosen")
    page.locator(".thumbs img").first.hover()
    expect(page.locator(".card")).to_have_text("6.pngresponse 7.00group blue")
    page.keyboard.press("Escape")
    expect(page.locator(".thumbs img")).to_have_count(0)


@pytest.mark.browser
def test_points_move_smoothly_from_layer_to_layer(show):
    page = show(written())
    page.get_by_role("button", name="2", exact=True).click()
    seen = [float(page.locator("input[type=range]").input_value()) for _ in range(20)]
    expect(page.locator("input[type=range]")).to_have_value("1")
    assert seen == sorted(seen)
    assert any(0 < value < 1 for value in seen)


@pytest.mark.browser
def test_a_page_of_hostile_names_says_them_as_text_and_quotes_them_for_a_shell(show, tmp_path):
    page = show(written([f"a/{HOSTILE}", f"b/{HOSTILE}", *"cdefgh"], layer=HOSTILE, group=HOSTILE))
    page.locator(".legend button").first.click()
    assert "onerror=alert(2)> \ufffd'\"'\"'$(id)'\"'\"',0,0,1e9,1e9'" in page.locator("pre").text_content()
    names = ["a/'$(id)'%s\\n", 'b/"no", 1', "c\nc", *"defgh"]
    page = show(written(names, finding={"command": "true"}))
    page.locator(".legend button").first.click()
    subprocess.run(["sh", "-c", page.locator("pre").text_content()], cwd=tmp_path, check=True)
    (table,) = tmp_path.glob("chosen-*.csv")
    assert sorted(read_boxes(table, cc.Feature("2", 0))) == names[:3]
    page = show(written(finding={"program": "chosen = CHOSEN\n$&"}))
    page.locator(".legend button").first.click()
    made = {}
    exec(page.locator("pre").text_content().replace("$&", ""), made)
    assert made["chosen"] == ["2.png", "1.png", "0.png"]


@pytest.mark.browser
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing_to_complain_of(show, theme):
    assert AXE.exists(), "These tests need axe-core: npm ci in frontend/ (make test does it)."
    page = show(written(), color_scheme=theme, bypass_csp=True)
    page.evaluate(AXE.read_text())
    for part in ("summary", ".legend button"):
        assert page.evaluate("axe.run(document).then(result => result.violations.map(one => one.id))") == []
        page.locator(part).first.click()
    assert page.evaluate("axe.run(document).then(result => result.violations.map(one => one.id))") == []
