"""The page of an atlas: what it lets run, that no text gets out of its place, and what it does in a browser."""

import base64
import hashlib
import json
import re

import pytest
from playwright.sync_api import expect, sync_playwright

from convcircuits.drawing.atlas_page import atlas_page
from convcircuits.drawing.page import shipped
from needs import find_chromium

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)> \u202e'$(id)'"


def row(unit, place, family, alike, **figures):
    known = {"kernels": 5, "effective_kernels": 4, "density": 0.1, "r2": 0.5, "r2_interior": None, "positive": 0.2}
    known |= dict.fromkeys(("r2_rectified", "r2_random", "r2_average_map", "pearson", "r2_random_interior"))
    known |= {"r2_average_map_interior": None, "verdict": "keeps", "file": f"circuits/a b-{unit}.safetensors"}
    return known | {"unit": unit, "place": place, "family": family, "alike": alike} | figures


def written(text="features.5", model="small", **changed):
    """A page of two units that are alike and one that is not, with a kernel of the first two and one of the last."""
    data = {
        "layer": text,
        "method": "pca",
        "asked": {"criterion": text, "size": {text: 0.1}, "images": {"count": 4}, "held_out": {"count": 3}},
        "units": [
            row(0, [-0.5, 0.1], 0, [[2, 0.6], [5, -0.1]]),
            row(2, [-0.5, -0.1], 0, [[0, 0.6], [5, 0.0]]),
            row(5, [0.9, 0.0], 1, [[2, 0.0], [0, -0.1]], file=text),
        ],
        "families": [{"units": [0, 2], "overlap": 0.6}, {"units": [5], "overlap": None}],
        "hubs": [
            {"layer": text, "filter": 3, "channel": 1, "units": 2, "share": 0.67, "expected": 0.3, "users": [0, 2]}
        ],
        "rare": [{"layer": text, "filter": 0, "channel": 2, "units": 1, "share": 0.33, "expected": 2.4, "users": [5]}],
        "layers": [{"layer": text, "kept": 3.0, "density": 0.1, "used": 0.2, "overlap": None}],
        "problems": {"7": text},
        "notes": [text],
    }
    return atlas_page(data | changed, model=model)


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
    text = written(HOSTILE, HOSTILE)
    assert text.count("<script") == text.count("</script") == 2
    assert "<img" not in text
    data = json.loads(re.search(r'id="atlas">(.*?)</script>', text, re.DOTALL)[1])
    assert data["layer"] == data["notes"][0] == HOSTILE
    assert "\u202e" not in text.split('id="atlas"')[0]


@pytest.fixture
def show(tmp_path):
    """Open a page as a file, offline; nothing may be said, asked or fetched."""
    said = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=["--no-sandbox", "--disable-gpu"])

        def show(text):
            file = tmp_path / "atlas.html"
            file.write_text(text, encoding="utf-8")
            page = browser.new_context(offline=True, viewport={"width": 1280, "height": 720}).new_page()
            page.on("console", lambda message: said.append(message.text))
            page.on("pageerror", lambda error: said.append(str(error)))
            page.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
            page.goto(file.as_uri())
            return page

        yield show
        browser.close()
    assert said == []


@pytest.mark.browser
def test_units_lead_to_those_alike_and_to_their_circuits(show):
    page = show(written())
    expect(page.locator("h1")).to_have_text("features.5 of small")
    side = page.locator(".side")
    expect(side).to_contain_text("Units are placed by the two principal axes of the overlaps.")
    page.locator("canvas").press("ArrowRight")
    expect(side.locator("h2").first).to_have_text("features.5:0")
    expect(side).to_contain_text("Its circuit: keeps.")
    assert side.locator("a").get_attribute("href") == "circuits/a%20b-0.safetensors"
    side.get_by_role("button", name="2", exact=True).first.click()
    expect(side.locator("h2").first).to_have_text("features.5:2")
    page.locator("[part=unit]").select_option(label="5")
    expect(side.locator("h2").first).to_have_text("features.5:5")
    page.locator("canvas").press("Escape")
    expect(side).to_contain_text("1 unit has no circuit")
    box = page.locator("canvas").bounding_box()
    page.mouse.move(
        box["x"] + box["width"] / 2 + (min(box["width"], box["height"]) / 2 - 24), box["y"] + box["height"] / 2
    )
    expect(side.locator("h2").first).to_have_text("features.5:5")


@pytest.mark.browser
def test_a_kernel_that_is_pressed_shows_its_units(show):
    page = show(written())
    drawn = "document.querySelector('canvas').toDataURL()"
    before = page.evaluate(drawn)
    expect(page.get_by_role("heading", name="Kernels that serve few units, below chance")).to_be_visible()
    page.get_by_role("button", name="features.5 [3, 1]").click()
    expect(page.locator("#hubs [aria-pressed=true]")).to_have_count(1)
    many = page.evaluate(drawn)
    rare = page.locator("#rare").get_by_role("button", name="features.5 [0, 2]")
    rare.click()
    expect(page.locator("[aria-pressed=true]")).to_have_count(1)
    expect(page.locator("#rare tr[data-chosen=true] td")).to_have_text(["1", "2.4"])
    few = page.evaluate(drawn)
    rare.click()
    expect(page.locator("[aria-pressed=true]")).to_have_count(0)
    assert len({before, many, few}) == 3
    assert page.evaluate(drawn) == before


@pytest.mark.browser
def test_a_page_without_the_circuits_files_leads_to_none(show):
    text = written(units=[row(0, [0.0, 0.0], -1, [], file="")], families=[], hubs=[], rare=[])
    page = show(text)
    page.locator("canvas").press("ArrowRight")
    side = page.locator(".side")
    expect(side).to_contain_text("Its circuit: keeps.")
    expect(side.locator("a, pre")).to_have_count(0)
    expect(page.locator(".tables")).to_contain_text("There are none.")


@pytest.mark.browser
def test_the_legend_lists_what_the_map_shows(show):
    both = [[-0.5, 0.1], [-0.5, -0.1], [0.9, 0.1], [0.9, -0.1]]
    units = [row(n, place, n // 2, []) for n, place in enumerate(both)]
    families = [{"units": [0, 1], "overlap": 0.6}, {"units": [2, 3], "overlap": 0.5}]
    legend = show(written(units=units, families=families)).locator(".legend span")
    expect(legend).to_have_text(["2 units", "2 units"])
    alone = {"units": [*units, row(4, [0.0, 0.9], 2, [])], "families": [*families, {"units": [4], "overlap": None}]}
    expect(show(written(**alone)).locator(".legend span")).to_have_text(["2 units", "2 units", "others"])
    page = show(written(units=[row(n, [n, 0.0], -1, []) for n in range(3)], families=[]))
    expect(page.locator(".legend")).to_contain_text("0 or less")


@pytest.mark.browser
@pytest.mark.parametrize(
    ("verdict", "rectified", "said"),
    [
        ("keeps", -3.04, True),
        ("keeps in part", 0.39, True),
        ("keeps", 0.4, False),
        ("keeps", None, False),
        ("does not keep", -3.0, False),
    ],
)
def test_a_circuit_that_keeps_little_above_0_says_so(verdict, rectified, said, show):
    given = row(
        0, [0.0, 0.0], -1, [], verdict=verdict, r2_rectified=rectified, kernels=127_891, effective_kernels=127_836
    )
    page = show(written(units=[given], families=[]))
    page.locator("canvas").press("ArrowRight")
    side = page.locator(".side")
    expect(side).to_contain_text(f"Its circuit: {verdict}.")
    expect(side).to_contain_text("127,891 kernels (10.0 %), 127,836 effective")
    if said:
        number = f"{rectified:.2f}".replace("-", "\u2212")
        expect(side).to_contain_text(f"if a ReLU follows: R² of the rectified map is {number}.")
    else:
        expect(side).not_to_contain_text("if a ReLU follows")


@pytest.mark.browser
def test_an_atlas_that_was_drawn_before_shows_what_it_has(show):
    known = json.loads(re.search(r'id="atlas">(.*?)</script>', written(), re.DOTALL)[1])
    del known["rare"]
    page = show(atlas_page(known, model="small"))
    expect(page.locator("#hubs button")).to_have_count(1)
    expect(page.get_by_role("heading", name="few units")).to_have_count(0)


@pytest.mark.browser
def test_hostile_text_shows_as_text(show):
    page = show(written(HOSTILE, HOSTILE))
    page.locator("canvas").press("ArrowLeft")
    expect(page.locator(".side h2").first).to_contain_text("<script>alert(1)</script>")
    assert page.locator("img").count() == 0
