"""The page in a real browser. What it must draw is asked of the core, run without one."""

import dataclasses
import io
import itertools
import json
import math
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import expect

import convcircuits as cc
import twofold
from convcircuits.drawing import figure
from convcircuits.drawing.data import Cut, Document, EdgeKind, NodeKind, Note, TargetPicture, View, Whole
from convcircuits.drawing.host import Diagram
from convcircuits.drawing.page import plain_text
from convcircuits.drawing.tiles import read_data_url
from diagrams import DOCUMENTS, HOSTILE, deep, hostile, plain
from texts import LONG, TEXTS

AXE_RUN = """axe.run(document, { rules: { "label-content-name-mismatch": { enabled: true } } })
  .then(({ violations }) => violations)"""
AXE = Path(__file__).parents[1] / "frontend" / "node_modules" / "axe-core" / "axe.min.js"
# A point on an edge, on the screen.
POINT_ON = """path => {
    const [{ x, y }, m] = [path.getPointAtLength(path.getTotalLength() / 4), path.getScreenCTM()];
    return [x * m.a + m.e, y * m.d + m.f];
}"""
BIDI = re.compile("[\u202a-\u202e\u2066-\u2069]")
DRAWINGS = [name for name in DOCUMENTS if name != "hostile"]

pytestmark = pytest.mark.browser


@pytest.fixture
def show(browser, tmp_path):
    """Open a document's page, as a file, offline; whatever a test does, nothing may be said, asked or fetched."""
    contexts, said, fetched = [], [], []

    def opened(document, fragment="", **options):
        path = Diagram(document).save(tmp_path / "circuit.html")
        options = {"viewport": {"width": 1440, "height": 1000}, **options}
        contexts.append(browser.new_context(offline=True, **options))
        page = contexts[-1].new_page()
        page.set_default_timeout(120_000)
        page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: said.append(f"error: {error}"))
        page.on("dialog", lambda dialog: (said.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.on("request", lambda request: fetched.append(request.url))
        page.goto(path.as_uri() + fragment)
        if options.get("java_script_enabled", True):
            page.locator("html[data-ready=true]").wait_for()
        return page

    yield opened
    for context in contexts:
        context.close()
    assert said == []
    page = (tmp_path / "circuit.html").as_uri()
    assert {url.split("#")[0] for url in fetched if not url.startswith("blob:")} == {page}


def numbers(page, selector, name):
    """The numbers that elements carry in a data attribute, sorted."""
    return sorted(int(x) for x in page.locator(selector).evaluate_all(f"all => all.map(each => each.dataset.{name})"))


def lines(document, edges):
    """The edges that are lines: not the kernels inside a node, nor those that read the image."""
    kind, source = document.edges.kind, document.edges.source
    return sorted(e for e in edges if kind[e] != EdgeKind.INNER and document.nodes.kind[source[e]] != NodeKind.IMAGE)


def compared(document):
    """What a comparison calls the circuits: the first by its criterion and density."""
    first, *others = document.variants
    return [f"random {100 * first.kept / first.relevant:.1f} %", *(variant.name for variant in others)]


def middle(document):
    """The drawn node of the second column through which most is drawn."""
    shown = figure.drawn(document)
    degree = np.bincount(document.edges.target[list(shown.edges)], minlength=len(document.nodes))
    return max((n for n in shown.nodes if document.nodes.column[n] == 1), key=lambda n: (degree[n], -n))


def fragment_of(page, pattern):
    """The URL's fragment, once it holds a pattern: the page writes it a little after what it says."""
    expect(page).to_have_url(re.compile(f"#.*{pattern}"))
    return "#" + page.url.split("#")[1]


def focused(page):
    """The number of the node that has the focus, or None."""
    found = page.evaluate("document.getElementById('diagram').shadowRoot.activeElement?.dataset.node")
    return None if found is None else int(found)


@pytest.mark.parametrize("name", DRAWINGS)
def test_the_page_draws_what_the_core_selects(show, name):
    document = DOCUMENTS[name]()
    page = show(document)
    shown = figure.drawn(document)
    assert numbers(page, "[data-node]", "node") == sorted(shown.nodes)
    assert numbers(page, ".edges [data-edge]", "edge") == lines(document, shown.edges)
    expect(page.locator("#diagram h1")).to_have_text(document.meta.title)
    expect(page.locator("[part=caption]")).to_have_text(shown.caption)


@pytest.mark.smoke
def test_a_click_isolates_what_the_core_isolates_and_escape_clears_it(show):
    document = DOCUMENTS["wide"]()
    page, node = show(document), middle(document)
    page.locator(f"[data-node='{node}'] .frame").click()
    nodes, edges = figure.drawn(document, dataclasses.replace(document.view, isolate=node)).lit
    expect(page.locator(f"svg[data-isolated='{node}']")).to_have_count(1)
    assert numbers(page, "[data-node].lit", "node") == list(nodes)
    assert numbers(page, "[data-lit-edge]", "litEdge") == list(edges)
    assert set(edges) <= set(numbers(page, ".edges [data-edge]", "edge"))
    assert node in nodes
    assert document.target in nodes
    assert len(nodes) < page.locator("[data-node]").count()
    page.keyboard.press("Escape")
    expect(page.locator("svg[data-isolated]")).to_have_count(0)
    assert numbers(page, "[data-node].lit", "node") == list(figure.drawn(document).lit[0])


def test_the_main_paths_are_lit_until_everything_is(show):
    document = DOCUMENTS["wide"]()
    page = show(document)
    nodes, edges = figure.drawn(document).lit
    assert numbers(page, "[data-node].lit", "node") == list(nodes)
    assert numbers(page, "[data-lit-edge]", "litEdge") == list(edges)
    assert document.target in nodes
    expect(page.locator("[part=state]")).to_contain_text("Lit: the main paths")
    page.locator("[data-paths=all]").click()
    expect(page.locator(".isolated, [data-lit-edge]")).to_have_count(0)
    assert numbers(page, "[data-node]", "node") == sorted(figure.drawn(document).nodes)
    again = show(document, fragment_of(page, "paths=all"))
    expect(again.locator("[data-paths=all]")).to_have_attribute("aria-pressed", "true")
    again.locator("[data-paths=main]").click()
    assert numbers(again, "[data-node].lit", "node") == list(nodes)


@pytest.mark.parametrize("share", [0.5, 0.95])
def test_the_url_holds_the_view(show, share):
    document = DOCUMENTS["wide"]()
    node = middle(document)
    page = show(document, f"#isolate={node}&share={share}&nodesPerColumn=5")
    view = dataclasses.replace(document.view, isolate=node, share=share, nodes_per_column=5)
    shown = figure.drawn(document, view)
    assert numbers(page, "[data-node]", "node") == sorted(shown.nodes)
    assert numbers(page, "[data-node].lit", "node") == list(shown.lit[0])
    page.keyboard.press("Escape")
    page.locator("[data-mode-button=table]").click()
    fragment = fragment_of(page, "mode=table")
    assert "isolate" not in fragment
    again = show(document, fragment)
    expect(again.locator("[data-mode-button=table]")).to_have_attribute("aria-pressed", "true")
    again.locator("[data-mode-button=diagram]").click()
    view = dataclasses.replace(view, isolate=None)
    assert numbers(again, "[data-node]", "node") == sorted(figure.drawn(document, view).nodes)


def test_back_and_forward_undo_and_redo_clicks_but_not_steps_of_a_slider(show):
    document = DOCUMENTS["wide"]()
    page, node = show(document), middle(document)
    entries = page.evaluate("history.length")
    page.locator(f"[data-node='{node}'] .frame").click()
    page.locator("[data-paths=all]").click()
    page.locator("[part=density]").evaluate(
        """async slider => {
            for (const value of [190, 175, 160]) {
                slider.value = value;
                slider.dispatchEvent(new Event("input", { bubbles: true }));
                await new Promise(done => setTimeout(done, 250));
            }
        }"""
    )
    seen = fragment_of(page, "kernels=")
    assert page.evaluate("history.length") == entries + 2
    page.go_back()
    expect(page.locator("[data-paths=main]")).to_have_attribute("aria-pressed", "true")
    expect(page.locator(f"svg[data-isolated='{node}']")).to_have_count(1)
    expect(page.locator("[data-card=node]")).to_be_visible()
    shown = figure.drawn(document, dataclasses.replace(document.view, isolate=node))
    assert numbers(page, "[data-node]", "node") == sorted(shown.nodes)
    page.go_back()
    expect(page.locator("svg[data-isolated]")).to_have_count(0)
    expect(page.locator("[data-card]")).to_have_count(0)
    page.go_forward()
    expect(page.locator(f"svg[data-isolated='{node}']")).to_have_count(1)
    page.go_forward()
    expect(page.locator("[data-paths=all]")).to_have_attribute("aria-pressed", "true")
    assert fragment_of(page, "kernels=") == seen
    page.reload()
    page.locator("html[data-ready=true]").wait_for()
    expect(page.locator("[data-paths=all]")).to_have_attribute("aria-pressed", "true")
    page.wait_for_timeout(300)
    assert fragment_of(page, "kernels=") == seen
    assert page.evaluate("history.length") == entries + 2


def with_photographs(document, names):
    """The document with whole photographs that the target's parts are cut out of."""
    tiles = [int(tile) for tile in document.pictures[0].tiles[document.target] if tile >= 0]
    wholes = tuple(Whole(name, document.images.src[0], (20, 30)) for name in names)
    cuts = tuple(Cut(tile, i, (-4, 6, 10, 12)) for i, tile in enumerate(tiles[: len(names)]))
    return dataclasses.replace(document, tiles=dataclasses.replace(document.tiles, wholes=wholes, cuts=cuts))


def test_back_closes_what_a_click_opened_in_the_panel_and_forward_opens_it_again(show):
    document = with_photographs(plain(images=2, measured=True), ["rocket.png"])
    patches, *others = document.pictures
    document = dataclasses.replace(document, pictures=[dataclasses.replace(patches, median=(0, 3, 5)), *others])
    page = show(document)
    entries = page.evaluate("history.length")
    edge, whole = page.locator("[data-card=edge]"), page.locator("[part=whole]")
    median = page.locator("button[data-sample=median]")
    median.click()
    page.locator("button[data-sample=top]").click()
    page.locator("[data-cut]").first.click()
    expect(whole).to_be_visible()
    x, y = page.locator(".edges [data-edge]").first.evaluate(POINT_ON)
    page.mouse.click(x, y)
    page.mouse.click(x, y)  # nothing else
    page.mouse.move(3, 3)
    expect(edge).to_be_visible()
    page.locator(f"[data-node='{middle(document)}'] .frame").click()
    page.keyboard.press("Escape")
    page.mouse.move(3, 3)
    expect(page.locator("[data-card]")).to_have_count(0)
    assert page.evaluate("history.length") == entries + 6
    page.go_back()
    expect(page.locator("[data-card=node]")).to_be_visible()
    page.go_back()
    expect(edge).to_be_visible()
    expect(page.locator("svg[data-isolated]")).to_have_count(0)
    page.go_back()
    expect(edge).to_have_count(0)
    expect(whole).to_be_visible()
    page.go_back()
    expect(whole).to_have_count(0)
    page.go_back()
    expect(median).to_have_attribute("aria-pressed", "true")
    page.go_back()
    expect(median).to_have_attribute("aria-pressed", "false")
    for _ in range(3):
        page.go_forward()
    expect(whole).to_be_visible()
    page.go_forward()
    expect(edge).to_be_visible()
    page.reload()
    page.locator("html[data-ready=true]").wait_for()
    page.go_back()
    page.go_forward()
    expect(page.locator("[part=crops]")).to_be_visible()  # not what another diagram showed


def test_back_closes_the_sheet_of_a_narrow_screen(show):
    page = show(DOCUMENTS["wide"](), viewport={"width": 390, "height": 800}, has_touch=True, is_mobile=True)
    sheet = page.locator(".details")
    page.locator("[data-paths=all]").evaluate("button => button.click()")
    x, y = page.locator(".edges [data-edge]").first.evaluate(POINT_ON)
    page.touchscreen.tap(x, y)
    expect(page.locator("[data-card=edge]")).to_be_visible()
    page.go_back()
    expect(sheet).to_be_hidden()
    expect(page.locator("[data-paths=all]")).to_have_attribute("aria-pressed", "true")
    page.locator("[part=handle]").tap()
    expect(sheet).to_be_visible()
    page.go_back()
    expect(sheet).to_be_hidden()
    page.go_forward()
    expect(sheet).to_be_visible()


def test_a_page_in_a_frame_adds_nothing_to_the_history_around_it(browser, tmp_path):
    document = DOCUMENTS["wide"]()
    Diagram(document).save(tmp_path / "circuit.html")
    around = tmp_path / "around.html"
    around.write_text('<iframe src="circuit.html" width="1440" height="900"></iframe>', encoding="utf-8")
    page = browser.new_page(viewport={"width": 1480, "height": 1000})
    page.goto(around.as_uri())
    frame = page.frame_locator("iframe")
    frame.locator("html[data-ready=true]").wait_for()
    entries = page.evaluate("history.length")
    for node in (middle(document), document.target):
        frame.locator(f"[data-node='{node}'] .frame").click()
        expect(frame.locator(f"svg[data-isolated='{node}']")).to_have_count(1)
        page.wait_for_timeout(300)
    assert "isolate=" in page.frames[1].url
    assert page.evaluate("history.length") == entries
    page.close()


@pytest.mark.parametrize(
    "fragment", ["#isolate=9999", "#root=x&pins=1,-4,zz&mode=evil", "#%E0%A4%A", "#variant=7&image=3"]
)
def test_a_url_that_says_what_is_not_there_is_passed_over(show, fragment):
    document = DOCUMENTS["wide"]()
    page = show(document, fragment)
    assert set(numbers(page, "[data-node]", "node")) >= {document.target}


def test_the_keyboard_walks_reroots_and_goes_back(show):
    document = DOCUMENTS["wide"]()
    page = show(document)
    for _ in range(40):
        page.keyboard.press("Tab")
        if focused(page) is not None:
            break
    assert focused(page) == document.target
    edges, shown = document.edges, figure.drawn(document)
    walked = [document.target]
    for _ in range(3):
        page.keyboard.press("ArrowLeft")
        walked.append(focused(page))
    steps = set(zip(edges.source.tolist(), edges.target.tolist(), strict=True))
    assert all((source, target) in steps for target, source in itertools.pairwise(walked))
    column = [n for n in shown.nodes if document.nodes.column[n] == document.nodes.column[walked[-1]]]
    page.keyboard.press("Home")
    seen = [focused(page)]
    for _ in column[1:]:
        page.keyboard.press("ArrowDown")
        seen.append(focused(page))
    assert sorted(seen) == sorted(column)
    page.keyboard.press("ArrowUp")
    assert focused(page) == seen[-2]
    page.keyboard.press("ArrowRight")
    root = focused(page)
    assert (seen[-2], root) in steps
    page.keyboard.press("Enter")
    fragment_of(page, rf"\broot={root}\b")
    rooted = figure.drawn(document, dataclasses.replace(document.view, root=root))
    assert numbers(page, "[data-node]", "node") == sorted(rooted.nodes)
    assert root in rooted.nodes
    assert document.target not in rooted.nodes
    page.keyboard.press("Escape")
    expect(page).not_to_have_url(re.compile("root="))
    assert numbers(page, "[data-node]", "node") == sorted(shown.nodes)


def test_the_density_slider_draws_the_first_kernels_by_rank(show):
    document = DOCUMENTS["wide"]()
    page = show(document)
    page.locator("[part=density]").evaluate(
        "slider => { slider.value = 160; slider.dispatchEvent(new Event('input', { bubbles: true })); }"
    )
    kernels = int(re.search(r"\bkernels=(\d+)", fragment_of(page, "kernels="))[1])
    assert 1 < kernels < document.variants[0].kernels
    shown = figure.drawn(document, dataclasses.replace(document.view, kernels=kernels))
    assert numbers(page, "[data-node]", "node") == sorted(shown.nodes)
    assert (document.variants[0].rank[list(shown.edges)] < kernels).all()


def with_level(document):
    """The same with the second circuit as the first one found anew, and keeping fewer kernels."""
    first, second, *others = document.variants
    level = dataclasses.replace(second, role="level", nested=False)
    return dataclasses.replace(document, variants=(dataclasses.replace(first, nested=False), level, *others))


def test_of_an_iterative_criterion_the_slider_has_the_sizes_at_which_it_was_run(show):
    document = with_level(plain(widths=(4, 5, 1), variants=3, measured=True))
    page = show(document)
    slider, kept = page.locator("[part=density]"), page.locator("[part=kept]")
    assert [option.inner_text() for option in page.locator("[part=variant] option").all()] == [
        document.variants[n].name for n in (0, 2)
    ]
    expect(kept).to_contain_text(f"{document.variants[0].kept} ")
    slider.focus()
    page.keyboard.press("Home")
    expect(kept).to_contain_text(f"{document.variants[1].kept} ")
    assert "variant=1" in fragment_of(page, "variant=1")
    shown = figure.drawn(document, View(variant=1))
    assert numbers(page, "[data-node]", "node") == sorted(shown.nodes)
    expect(page.locator("[part=caption]")).to_have_text(shown.caption)
    page.keyboard.press("End")
    expect(kept).to_contain_text(f"{document.variants[0].kept} ")


def test_larger_circuits_of_the_descent_are_on_the_slider_after_the_drawn_one(show):
    document = with_level(plain(widths=(4, 5, 1), variants=3, measured=True))
    small, large, *others = document.variants
    document = dataclasses.replace(document, variants=(small, dataclasses.replace(large, kept=small.kept + 9), *others))
    page = show(document)
    slider, kept = page.locator("[part=density]"), page.locator("[part=kept]")
    slider.focus()
    page.keyboard.press("End")
    expect(kept).to_contain_text(f"{small.kept + 9} ")
    page.keyboard.press("Home")
    expect(kept).to_contain_text(f"{small.kept} ")


def test_maps_of_the_circuit_are_shown_with_no_other(show):
    document = plain(images=2, variants=2, measured=True)
    page = show(document, "#image=1")
    assert page.locator("image.map").count() > 0
    page.locator("[part=variant]").select_option("1")
    expect(page.locator("image.map")).to_have_count(0)
    expect(page.locator("[part=target]")).to_contain_text("known for the circuit itself")
    page.locator("[part=variant]").select_option("0")
    assert page.locator("image.map").count() > 0


def gain_text(gain):
    """A gain as the page writes it: three significant digits and a true minus sign."""
    digits = max(0, 2 - math.floor(math.log10(abs(gain))))
    return f"\u00d7 {gain:.{digits}f}".replace("-", "\u2212")


def test_the_gains_of_a_fitted_circuit_are_in_the_table_and_under_the_pointer(show):
    document = plain(variants=2, measured=True)
    circuit, other = document.variants
    fitted = dataclasses.replace(circuit, calibration=other.calibration)
    document = dataclasses.replace(document, variants=(fitted, dataclasses.replace(other, calibration=None)))
    edges, gain = document.edges, fitted.calibration.gain
    page = show(document)
    expect(page.locator("[part=caption]")).to_contain_text("fitted on 9 images")
    expect(page.locator(".stub")).to_have_count(0)
    expect(page.locator(".more rect")).to_have_count(0)
    expect(page.locator("[part=caption]")).to_contain_text("The whole circuit is drawn")
    path = page.locator(".edges path[data-edge]").last
    x, y = path.evaluate(POINT_ON)
    page.mouse.move(x, y)
    card = page.locator("[data-card=edge]")
    layer, out, read = re.fullmatch(r"(\w+), (\d+) \u2190 (\d+)", card.locator("h2").inner_text()).groups()
    index = [made.name for made in document.layers].index(layer)
    (edge,) = np.flatnonzero((edges.layer == index) & (edges.out == int(out)) & (edges.in_ == int(read)))
    expect(card).to_contain_text(f"{gain_text(gain[edge])} these weights")
    page.locator("[data-mode-button=table]").click()
    rows = page.locator("[data-edge]")
    assert rows.count() == fitted.effective
    at = page.locator(".table thead th").all_inner_texts().index("gain")
    for row in rows.all():
        edge = int(row.get_attribute("data-edge"))
        assert row.locator("td").nth(at).inner_text() == gain_text(gain[edge])
    page.locator("[part=variant]").select_option("1")
    expect(page.locator(".table thead")).not_to_contain_text("gain")


HEAT = np.array([[84, 49, 150], [247, 246, 244], [180, 78, 6]])  # of the least, of zero, of the highest


def painted(values, top):
    """The pixels of a map: its values' shares of what full color stands for."""
    share = (values / top)[..., None]
    return HEAT[1] + (np.where(share < 0, HEAT[0], HEAT[2]) - HEAT[1]) * np.abs(share)


def cells_of(page, part):
    return [
        [cell.inner_text().replace("\u2212", "-") for cell in row.locator("th, td").all()]
        for row in page.locator(f"{part} .figures tbody tr").all()
    ]


@pytest.mark.parametrize("networks", [(0,), (1,), (0, 1), (2, 0)])
def test_the_targets_maps_are_on_one_scale_beside_their_figures(show, networks):
    document = plain(images=2, variants=3, measured=True)
    target, image = document.images.target, 0
    compare = f"&compare={networks[1]}" if len(networks) > 1 else ""
    page = show(document, f"#image={image}&variant={networks[0]}{compare}")
    exact = [target.full_map[image] / 127 * target.full_scale[image]]
    exact += [target.map[v, image] / 127 * target.scale[v, image] for v in networks]
    top = max([target.full_scale[image], *(target.scale[v, image] for v in networks)])
    shown = page.locator("[part=target] .map")
    expect(shown).to_have_count(len(exact))
    for values, src in zip(exact, shown.evaluate_all("all => all.map(each => each.src)"), strict=True):
        assert np.abs(read_data_url(src) - painted(values, top)).max() <= 1
    figures = [("the full model", target.full_maximum[image], target.full_mean[image], None, None)]
    for v in networks:
        row = (target.maximum[v, image], target.mean[v, image], target.r2[v, image], target.r2_inside[v, image])
        names = compared(document) if compare else [variant.name for variant in document.variants]
        figures.append((names[v], *row))
    for expected, row in zip(figures, cells_of(page, "[part=target]"), strict=True):
        assert row[0] == expected[0]
        for value, text in zip(expected[1:], row[1:], strict=True):
            assert (text == "") if value is None else float(text) == pytest.approx(value, abs=0.0051)
    ends = [0.0, *np.concatenate([values.ravel() for values in exact])]
    low, high = page.locator("[part=target] .scale").get_attribute("aria-label").replace("\u2212", "-").split()[2:5:2]
    assert float(low) == pytest.approx(min(ends), abs=0.0051)
    assert float(high.rstrip(",")) == pytest.approx(max(ends), abs=0.0051)
    expect(page.locator("[part=target]")).to_contain_text(f"Over {target.positions}.")


@pytest.mark.parametrize("width", [1280, 390])
def test_the_circuits_map_stands_beside_the_full_models_whatever_they_are_called(show, width):
    document = plain(images=1, measured=True)
    name = "categorization/images/tools/multimeter2.webp, crop 2, held out"
    document = dataclasses.replace(document, images=dataclasses.replace(document.images, names=(name,)))
    page = show(document, "#image=0", viewport={"width": width, "height": 720})
    if width < 800:
        page.locator("[part=handle]").click()
    shown = page.locator("[part=target] :is(.pictures > img, .framed)").all()
    assert len(shown) == 3
    assert len({round(box_of(each)[1]) for each in shown}) == 1
    assert box_of(page.locator("[part=target]"))[2] <= width


def test_photographs_are_called_by_their_files_and_say_whether_they_were_held_out(show):
    folder, long = "categorization/images/tools", f"{'multimeter' * 6}.webp"
    names = (f"{folder}/{long}, crop 2, held out", f"{folder}/plier3.webp, used to find it")
    document = plain(images=2, measured=True)
    document = dataclasses.replace(document, images=dataclasses.replace(document.images, names=names))
    document = with_photographs(document, [names[1].rpartition(",")[0]])
    page = show(document, "#image=1")
    expect(page.locator("[part=image]")).to_have_text("image: plier3.webp")
    expect(page.locator("[part=target] h2")).to_have_text("Its map on plier3.webp, used to find it")
    page.locator("[data-cut]").first.click()
    expect(page.locator("[part=whole] h2")).to_have_text("plier3.webp")
    expect(page.locator("[part=whole] h2")).to_have_attribute("title", f"{folder}/plier3.webp")
    page.locator("[part=image]").click()
    first = page.locator("[data-image='0']")
    expect(first).to_have_attribute("title", names[0])
    expect(first.locator("span")).to_have_text(long)
    said = first.locator("small")
    expect(said).to_have_text("crop 2, held out")
    file, mark, around = box_of(first.locator("span")), box_of(said), box_of(first)
    assert file[3] <= mark[1] < mark[3] <= around[3]
    assert said.evaluate("each => each.scrollHeight <= each.clientHeight")


def test_an_image_without_an_r2_says_so_and_the_frame_is_where_the_inside_is(show):
    document = plain(images=2, variants=1)
    page = show(document, "#image=1")
    assert [row[3:] for row in cells_of(page, "[part=target]")] == [["", ""], ["\u2013", "\u2013"]]
    expect(page.locator("[part=target]")).to_contain_text("R² is not defined")
    inside, (height, width) = document.images.target.inside, document.images.target.shape
    box, frame = (page.locator(f"[part=target] .framed {what}").first.bounding_box() for what in (".map", "i"))
    for axis, length, span, count in (("y", "height", inside.rows, height), ("x", "width", inside.columns, width)):
        assert frame[axis] - box[axis] == pytest.approx(span[0] / count * box[length], abs=1)
        assert frame[length] == pytest.approx((span[1] - span[0]) / count * box[length], abs=1)


def test_a_target_of_one_value_has_a_value_and_neither_map_nor_r2(show):
    document = plain(images=2, variants=2)
    target = document.images.target
    one = {"positions": "the only position", "shape": (1, 1), "inside": None}
    maps = {name: getattr(target, name)[..., :1, :1] for name in ("full_map", "map")}
    images = dataclasses.replace(document.images, target=dataclasses.replace(target, **one, **maps))
    page = show(dataclasses.replace(document, images=images), "#image=0&compare=1")
    assert [[row[0], float(row[1])] for row in cells_of(page, "[part=target]")] == [
        ["the full model", pytest.approx(target.full_maximum[0], abs=0.0051)],
        *[[compared(document)[v], pytest.approx(target.maximum[v, 0], abs=0.0051)] for v in (0, 1)],
    ]
    assert page.locator("[part=target] .map, [part=target] .scale").count() == 0
    assert "R²" not in page.locator("[part=target]").inner_text()


def test_what_is_seen_of_the_target_is_said_too(show):
    document = plain(images=2, variants=2)
    target = document.images.target
    page = show(document)
    node = page.locator(f"[data-node='{document.target}']")
    assert "R²" not in node.get_attribute("aria-label")
    page.get_by_role("button", name="image", exact=True).click()
    page.locator("[data-image='0']").click()
    said = page.locator("[part=message]").inner_text()
    for words in (said, node.get_attribute("aria-label")):
        plainly = words.replace("\u2212", "-")
        assert f"in the full model maximum {target.full_maximum[0]:.2f}" in plainly
        assert f"in the circuit maximum {target.maximum[0, 0]:.2f}" in plainly
        assert f"R² {target.r2[0, 0]:.2f}, {target.r2_inside[0, 0]:.2f} inside" in plainly
        assert f"over {target.positions}" in plainly
    seen = cells_of(page, "[part=target]")
    node.hover()
    assert cells_of(page, "[part=card]") == seen != []


def box_of(locator):
    box = locator.bounding_box()
    return box["x"], box["y"], box["x"] + box["width"], box["y"] + box["height"]


@pytest.mark.parametrize("size", [(1280, 720), (1440, 810)])
def test_the_page_fits_its_window(show, size):
    """Nothing has to be scrolled to see the whole diagram, beside its verdict and its legend."""
    page = show(DOCUMENTS["wide"](), viewport={"width": size[0], "height": size[1]})
    sizes = "({ scrollHeight, scrollWidth }) => [scrollWidth, scrollHeight]"
    for fragment in ("", "image=0", "paths=all", "mode=all", "mode=table"):
        page.evaluate("fragment => { location.hash = fragment; }", fragment)
        expect(page.locator("[data-mode-button][aria-pressed=true]")).to_have_count(1)
        page.wait_for_timeout(100)
        assert page.evaluate(f"({sizes})(document.documentElement)") == list(size)
        for stage in page.locator(".stage").all():
            within = stage.evaluate(sizes)
            assert within == stage.evaluate("({ clientWidth, clientHeight }) => [clientWidth, clientHeight]")
        left, top, right, bottom = box_of(page.locator(".stage-frame"))
        for mark in page.locator(".node .frame, .more rect, .headings text").all()[::7]:
            x0, y0, x1, y1 = box_of(mark)
            assert left <= x0 <= x1 <= right
            assert top <= y0 <= y1 <= bottom
        for part in ("[part=verdict]", ".legend", "[part=side]"):
            assert box_of(page.locator(part))[3] <= size[1]


@pytest.mark.parametrize("seed", [1, 7])
def test_in_a_comparison_lit_pictures_measure_48_pixels_and_the_page_fits_its_window(show, seed):
    """Also in columns of five and six lit filters, whose numbers all stand below them or beside them."""
    view = View(compare=1)
    document = plain(widths=(12,) * 6 + (1,), density=0.4, seed=seed, variants=2, measured=True, view=view)
    page = show(document, viewport={"width": 1280, "height": 720})
    expect(page.locator("[part=compare]")).to_have_value("1")
    columns = {}
    for node in page.locator(".node.lit:not(.target)").all():
        left, top, right, bottom = box_of(node.locator(".frame"))
        assert min(right - left, bottom - top) >= 48 - 0.01
        number = document.nodes.unit[int(node.get_attribute("data-node"))]
        assert node.locator("tspan").all_text_contents() == [str(number)]
        columns.setdefault(round(left + right), []).append(number)
    assert max(map(len, columns.values())) == {1: 5, 7: 6}[seed]
    stage = page.locator(".stage")
    assert stage.evaluate("e => e.scrollHeight <= e.clientHeight && e.scrollWidth <= e.clientWidth")
    assert page.evaluate("document.documentElement.scrollHeight") == 720
    assert box_of(page.locator(".legend"))[3] <= 720


def test_numbers_and_maps_are_in_sight_beside_nine_crops(show):
    document = DOCUMENTS["plain"]()
    tiles = next(each for each in document.pictures if each.name == "patches")
    nine = np.repeat(tiles.tiles[:, :1], 9, axis=1)
    pictures = [dataclasses.replace(each, tiles=nine) if each is tiles else each for each in document.pictures]
    document = dataclasses.replace(document, pictures=tuple(pictures))
    page = show(document, viewport={"width": 1280, "height": 720})
    expect(page.locator("[part=crops] .crops > *")).to_have_count(9)
    assert box_of(page.locator("[part=numbers] tbody tr").last)[3] <= 720
    page.evaluate("location.hash = 'image=0'")
    assert box_of(page.locator("[part=target] table"))[3] <= 720


def test_the_panel_fits_its_window_with_nine_parts_and_the_feature_picture(show):
    document = plain(measured=True)
    (patches, *others), tile = document.pictures, int(document.pictures[0].tiles[document.target, 0])
    label = "the image parts that drive a filter most, as large as it sees; chosen among 120 crops of 48 photographs"
    own = (TargetPicture("optimized to drive it most in the full model", tile),)
    tiles = np.repeat(patches.tiles[:, :1], 9, axis=1)
    full = dataclasses.replace(patches, tiles=tiles, median=(0, 3, 5), label=label, target=own)
    page = show(dataclasses.replace(document, pictures=[full, *others]), viewport={"width": 1280, "height": 720})
    assert page.locator(".details").evaluate("each => each.scrollHeight <= each.clientHeight")
    crops, picture = box_of(page.locator(".crops")), box_of(page.locator("[part=features]"))
    assert crops[2] <= picture[0]
    assert picture[3] <= box_of(page.locator("[part=numbers]"))[1]
    said = page.locator("[part=crops] figcaption").first
    expect(said).to_have_text("Chosen among 120 crops of 48 photographs.")
    expect(said).to_have_attribute("title", label)
    expect(page.locator("[part=caption]")).to_be_hidden()
    page.get_by_text("In full").click()
    expect(page.locator("[part=caption]")).to_be_visible()


def test_of_a_deep_network_every_column_can_be_scrolled_to(show):
    page = show(plain(widths=(2,) * 30 + (1,)), viewport={"width": 1280, "height": 720})
    stage, marks = page.locator(".stage"), page.locator(".headings text")
    left, _, right, _ = box_of(stage)
    assert box_of(marks.first)[0] >= left
    assert box_of(marks.last)[0] > right
    assert stage.evaluate("({ scrollHeight, clientHeight }) => scrollHeight <= clientHeight")
    stage.evaluate("stage => { stage.scrollLeft = stage.scrollWidth; }")
    assert box_of(marks.last)[2] <= right
    expect(stage).to_have_attribute("tabindex", "0")


def test_details_open_in_the_panel_and_stay_where_they_were_clicked(show):
    document = DOCUMENTS["wide"]()
    page, node = show(document), middle(document)
    card, side = page.locator("[part=card]"), page.locator("[part=side]")
    assert box_of(side)[0] >= box_of(page.locator(".stage-frame"))[2] - 1
    assert side.bounding_box()["width"] == 320
    expect(page.locator("[part=crops]")).to_be_visible()
    expect(card).to_have_count(0)
    frame = page.locator(f"[data-node='{node}'] .frame")
    frame.hover()
    inner, outer = box_of(card), box_of(side)
    assert outer[0] <= inner[0] <= inner[2] <= outer[2]
    name = card.locator("h2").first.inner_text()
    page.mouse.move(3, 3)
    expect(card).to_have_count(0)
    frame.click()
    page.mouse.move(3, 3)
    expect(card.locator("h2").first).to_have_text(name)
    page.locator("[part=back]").click()
    expect(card).to_have_count(0)
    expect(page.locator("svg[data-isolated]")).to_have_count(0)
    x, y = page.locator("[data-lit-edge]").last.evaluate(POINT_ON)
    page.mouse.click(x, y)
    page.mouse.move(3, 3)
    expect(page.locator("[data-card=edge]")).to_be_visible()
    page.keyboard.press("Escape")
    expect(card).to_have_count(0)


def test_on_a_narrow_screen_a_tap_opens_a_sheet(show):
    document = DOCUMENTS["wide"]()
    page = show(document, viewport={"width": 390, "height": 800}, has_touch=True, is_mobile=True)
    sheet = page.locator(".details")
    expect(sheet).to_be_hidden()
    page.locator("[part=handle]").tap()
    expect(page.locator("[part=crops]")).to_be_visible()
    page.locator("[part=handle]").tap()
    expect(sheet).to_be_hidden()
    page.locator(f"[data-node='{document.target}'] .frame").tap()
    expect(page.locator("[data-card=node]")).to_be_visible()
    assert box_of(page.locator("[part=side]"))[3] == pytest.approx(800, abs=1)
    expect(page.locator("[part=density]")).to_be_hidden()
    page.locator("[part=menu]").tap()
    expect(page.locator("[part=density]")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") == 390


def test_the_sheet_of_a_narrow_screen_does_not_cover_what_was_tapped(show):
    document = DOCUMENTS["wide"]()
    page = show(document, viewport={"width": 390, "height": 800}, has_touch=True, is_mobile=True)
    for number in numbers(page, "[data-node].lit", "node")[::4]:
        node = page.locator(f"[data-node='{number}'] .frame")
        node.scroll_into_view_if_needed()
        node.tap()
        expect(page.locator("[data-card=node]")).to_be_visible()
        page.wait_for_timeout(100)
        assert box_of(node)[3] <= box_of(page.locator("[part=side]"))[1]
        assert box_of(node)[1] >= 0
        page.locator("[part=back]").tap()
        page.locator("[part=handle]").tap()


def test_what_is_isolated_is_said_in_lines_on_a_narrow_screen(show):
    document = DOCUMENTS["wide"]()
    page = show(document, viewport={"width": 390, "height": 800}, has_touch=True, is_mobile=True)
    page.locator(f"[data-node='{document.target}'] .frame").tap()
    around = page.locator("[part=state] .group")
    for part in (around.locator("b"), *around.locator("button").all()):
        assert part.evaluate("each => new Set(Array.from(each.getClientRects(), ({ top }) => top)).size") == 1
        assert "\n" not in part.inner_text()
    heights = [bottom - top for _, top, _, bottom in map(box_of, around.locator("button").all())]
    assert heights == pytest.approx([40] * 4, abs=1)  # of one line, for a finger
    expect(page.locator("[part=clear]")).to_have_text("clear")


def test_menus_open_in_front_of_the_sheet_of_a_narrow_screen(show):
    page = show(DOCUMENTS["wide"](), viewport={"width": 390, "height": 560}, has_touch=True, is_mobile=True)
    page.locator("[part=handle]").tap()
    page.locator("[part=menu]").tap()
    page.locator("[part=similar]").tap()
    panel, side = box_of(page.locator("[part=similar-panel]")), box_of(page.locator("[part=side]"))
    assert panel[3] > side[1] + 20
    at = [(panel[0] + panel[2]) / 2, max(panel[1], side[1]) + 10]
    part = "at => document.getElementById('diagram').shadowRoot.elementFromPoint(...at).closest('[part]').part.value"
    assert page.evaluate(part, at) == "similar-panel"


def test_the_zoom_of_a_narrow_screen_is_for_fingers_and_covers_nothing(show):
    page = show(DOCUMENTS["wide"](), viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    before = box_of(page.locator("[data-node].lit .frame").first)
    drawn, handle = box_of(page.locator(".stage")), box_of(page.locator("[part=handle]"))
    for button in page.locator(".zoom button").all():
        left, top, right, bottom = box_of(button)
        assert min(right - left, bottom - top) >= 44
        assert drawn[3] <= top
        assert bottom <= handle[1]
        assert right <= 390
    assert box_of(page.locator(".legend"))[1] >= box_of(page.locator(".zoom"))[3]
    page.locator("[data-zoom=in]").tap()
    page.wait_for_timeout(100)
    after = box_of(page.locator("[data-node].lit .frame").first)
    assert after[2] - after[0] == pytest.approx(1.25 * (before[2] - before[0]), rel=0.01)
    page.locator("[data-mode-button=table]").tap()
    expect(page.locator(".zoom")).to_have_count(0)


def test_the_diagram_zooms_and_pans(show):
    page = show(DOCUMENTS["wide"](), viewport={"width": 1280, "height": 720})
    stage = page.locator(".stage")
    node = page.locator("[data-node].lit .frame").nth(1)
    before = box_of(node)
    x, y = (before[0] + before[2]) / 2, (before[1] + before[3]) / 2
    page.mouse.move(x, y)
    page.keyboard.down("Control")
    page.mouse.wheel(0, -200)
    page.keyboard.up("Control")
    page.wait_for_timeout(100)
    larger = box_of(node)
    assert larger[2] - larger[0] == pytest.approx(1.25**2 * (before[2] - before[0]), rel=0.01)
    assert larger[0] - 3 <= x <= larger[2] + 3  # what is under the pointer stays under it
    assert larger[1] - 3 <= y <= larger[3] + 3

    # An edge is found where it is now drawn.
    edge = page.locator("[data-lit-edge]").first
    page.mouse.move(*edge.evaluate(POINT_ON))
    expect(page.locator("[data-card=edge]")).to_be_visible()

    # A drag on empty ground scrolls, and is no click.
    page.locator("[data-node].lit .frame").first.click()
    expect(page.locator("[part=clear]")).to_be_visible()
    left, top, *_ = box_of(stage)
    places = "({ scrollLeft, scrollTop }) => [scrollLeft, scrollTop]"
    stage.evaluate("stage => stage.scrollTo(0, 0)")
    page.mouse.move(left + 6, top + 6)
    page.mouse.down()
    page.mouse.move(left - 34, top - 44, steps=4)
    page.mouse.up()
    assert stage.evaluate(places) == [40, 50]
    expect(page.locator("[part=clear]")).to_be_visible()
    page.mouse.click(left + 6, top + 6)
    expect(page.locator("[part=clear]")).to_have_count(0)

    page.locator("[data-zoom=fit]").click()
    page.wait_for_timeout(100)
    assert box_of(node) == pytest.approx(before, abs=1)
    page.locator("[data-zoom=out]").click()
    page.wait_for_timeout(100)
    assert box_of(node)[2] - box_of(node)[0] == pytest.approx((before[2] - before[0]) / 1.25, rel=0.01)


def test_what_is_not_lit_is_dimmed_as_in_figures(show):
    page = show(DOCUMENTS["wide"]())
    for part in (".drawing > .edges", ".node:not(.lit) .frame", ".node:not(.lit) text", ".picture:not(.lit) image"):
        expect(page.locator(part).first).to_have_css("opacity", "0.08")


def test_the_panels_table_is_the_documents(show):
    document = plain(variants=3, measured=True)
    page = show(document)
    fidelity = document.variants[0].fidelity
    shown = {
        row[0]: row[1:]
        for row in (
            [cell.inner_text().replace("\u2212", "-") for cell in row.locator("th, td").all()]
            for row in page.locator("[part=numbers] tbody tr").all()
        )
    }
    expected = {
        "this circuit": (fidelity.r2, fidelity.r2_interior, fidelity.r2_rectified),
        "average map, no network": (fidelity.r2_average_map, fidelity.r2_average_map_interior, None),
    }
    for name, values in expected.items():
        for text, value in zip(shown[name], values, strict=True):
            assert (text == "\u2013") if value is None else float(text) == pytest.approx(value, abs=0.0051)
    assert "random, equal size" in shown
    assert "same graph, other filters" not in shown  # no controls were fitted
    page.locator("[part=compare]").select_option("1")
    names = page.locator("[part=numbers] tbody th").all_inner_texts()
    assert names[:2] == compared(document)[:2]


def test_a_click_on_a_part_shows_the_whole_image_with_its_box_and_name(show):
    document = plain(images=2, measured=True)
    source, tile = document.images.src[0], int(document.pictures[0].tiles[document.target, 0])
    wholes = (Whole("rocket.png", source, (20, 30)), Whole("moon.png", source, (20, 30)))
    other = int(document.pictures[0].tiles[middle(document), 0])
    cuts = (Cut(tile, 0, (-4, 6, 10, 12)), Cut(other, 1, (2, 3, 5, 5)))
    tiles = dataclasses.replace(document.tiles, wholes=wholes, cuts=cuts)
    page = show(dataclasses.replace(document, tiles=tiles))
    whole = page.locator("[part=whole]")
    expect(whole).to_have_count(0)
    expect(page.locator("[data-cut]")).to_have_count(1)
    page.locator(f"[data-cut='{tile}']").click()
    expect(whole.locator("h2")).to_have_text("rocket.png")
    assert whole.locator("svg").get_attribute("viewBox") == "0 -4 30 24"
    frame = whole.locator("svg > rect").last
    assert [frame.get_attribute(name) for name in ("x", "y", "width", "height")] == ["6", "-4", "12", "10"]
    page.keyboard.press("Escape")
    expect(whole).to_have_count(0)
    page.locator(f"[data-cut='{tile}']").focus()
    page.keyboard.press("Enter")
    expect(whole).to_be_visible()
    page.locator(f"[data-node='{middle(document)}'] .frame").click()
    expect(whole).to_have_count(0)
    page.mouse.move(3, 3)
    page.locator(f"[data-card] [data-cut='{other}']").click()
    expect(whole.locator("h2")).to_have_text("moon.png")


def test_the_panel_shows_where_the_target_is_highest_at_its_median_and_near_zero(show):
    document = DOCUMENTS["plain"]()
    (patches, *others), target = document.pictures, document.target
    page = show(document)  # of an older version: without them
    assert page.locator(".crops > *").count() == (patches.tiles[target] >= 0).sum()
    expect(page.locator("[part=crops] [data-sample]:is(button)")).to_have_count(0)
    sampled = dataclasses.replace(patches, median=(0, 3, 5), near_zero=(1, 2, 4, 6))
    page = show(dataclasses.replace(document, pictures=(sampled, *others)))
    for name, count in (("median", 3), ("near zero", 4), ("top", 2)):
        page.locator(f"button[data-sample='{name}']").click()
        expect(page.locator(f".crops[data-sample='{name}'] > *")).to_have_count(count)
    page = show(dataclasses.replace(document, pictures=(sampled, *others), view=View(root=middle(document))))
    expect(page.locator("button[data-sample]")).to_have_count(0)


def test_what_is_pinned_to_be_isolated_is_pinned_no_longer_than_that(show):
    document = DOCUMENTS["wide"]()
    drawn = figure.drawn(document, View(nodes_per_column=2)).nodes
    kind, column = document.nodes.kind, document.nodes.column
    alive = figure.drawn(document, View(nodes_per_column=40, kernels_per_node=40)).nodes
    hidden = next(n for n in alive if n not in drawn and kind[n] == NodeKind.FILTER and column[n] == 1)
    page = show(document, f"#nodesPerColumn=2&isolate={hidden}")
    expect(page.locator(f"[data-node='{hidden}'][data-pinned]")).to_have_count(1)
    page.keyboard.press("Escape")
    expect(page.locator(f"[data-node='{hidden}']")).to_have_count(0)
    expect(page.locator("[data-pinned]")).to_have_count(0)
    assert numbers(page, "[data-node]", "node") == sorted(drawn)


def test_two_circuits_are_compared_and_an_image_is_chosen(show):
    document = DOCUMENTS["plain"]()
    page = show(document, "#compare=1")
    marks = set(page.locator(".edges [data-edge]").evaluate_all("all => all.map(each => each.dataset.mark)"))
    assert marks <= {"both", "a", "b"}
    assert {"both", "a"} <= marks
    names = compared(document)[:2]
    legend = page.locator("[aria-label=legend]").inner_text()
    assert all(f"only {name}" in legend for name in names)
    assert legend.count("in both") == 1
    assert "not measured on this image" not in legend
    mark = page.locator(".edges [data-mark=a]").first
    assert mark.get_attribute("aria-label").endswith(f"only in {names[0]}")
    for part in ("variant", "compare"):
        assert "the circuit" not in page.locator(f"[part={part}] option").all_inner_texts()
    page.locator("[part=compare]").select_option("")
    assert page.locator("[part=variant] option").first.inner_text() == "the circuit"
    page = show(document, "#image=1")
    assert "gray = not measured on this image" in page.locator("[aria-label=legend]").inner_text()
    assert page.locator(".pictures image.map").count() == page.locator("[data-node]").count()


def test_pictures_and_the_list_of_images_follow_the_group(show):
    made, blue = twofold.images(24)
    circuits = {color: twofold.circuit(color) for color in twofold.OWN}
    names = {color: [f"{color} {n}" for n in range(12)] for color in circuits}
    groups = {"red": made[~blue], "blue": made[blue]}
    document = cc.group_diagram(twofold.net(), circuits, groups, names=names).document
    page = show(document)

    def listed():
        page.locator("[part=image]").click()
        found = page.locator("[data-image] span").all_inner_texts()
        page.locator("[part=image]").click()
        return found

    together = listed()
    assert {name.split(" (")[1] for name in together} == {"red)", "blue)"}
    page.locator(f"[data-node='{document.target}']").hover()
    assert page.locator(".card h3").all_inner_texts()[:2] == ["red", "blue"]
    page.locator("[part=compare]").select_option("")
    assert [name.split()[0] for name in listed()] == ["red"] * 6
    page.locator("[part=variant]").select_option("1")
    assert [name.split()[0] for name in listed()] == ["blue"] * 6
    page.locator("[part=image]").click()
    page.locator("[data-image]").first.click()
    assert page.locator(".pictures image.map").count() == page.locator("[data-node]").count()
    page.locator("[part=variant]").select_option("0")
    assert page.locator("[part=image]").inner_text() == "image"


def saved(page, kind, name="a-small-network-conv3-1"):
    page.locator("[part~=export], button:text-is('export')").first.click()
    with page.expect_download() as waiting:
        page.locator(f"[data-export='{kind}']").click()
    assert Path(waiting.value.suggested_filename).stem == name
    return Path(waiting.value.path()).read_bytes()


def test_a_view_is_saved_to_a_file_and_opened_again(show, tmp_path):
    document = DOCUMENTS["wide"]()
    page, node = show(document), middle(document)

    def opened(path):
        page.locator("[part=export]").click()
        with page.expect_file_chooser() as chosen:
            page.locator("[data-export=open]").click()
        chosen.value.set_files(path)

    page.locator(f"[data-node='{node}'] .frame").click()
    path = tmp_path / "view.json"
    path.write_bytes(saved(page, "view", "a-small-network-conv3-1.view"))
    page.keyboard.press("Escape")
    expect(page).not_to_have_url(re.compile("#"))
    opened(path)
    fragment_of(page, f"isolate={node}")
    broken = tmp_path / "broken.json"
    broken.write_text("<script>alert(1)</script>")
    opened(broken)
    expect(page.locator("[part=notice]")).to_contain_text("not a saved view")
    expect(page.locator(f"svg[data-isolated='{node}']")).to_have_count(1)
    page.go_back()
    expect(page.locator("svg[data-isolated]")).to_have_count(0)


LATE = """addEventListener("popstate", event => {
    if (!window.late || !event.isTrusted) return;
    event.stopImmediatePropagation();
    setTimeout(() => dispatchEvent(new PopStateEvent("popstate")), 400);
})"""
FORWARD = """async () => {
    const heard = () => new Promise(done => addEventListener("popstate", done, { once: true }));
    history.forward();
    await heard();
    window.late = true;
    history.forward();
    await heard();
}"""


def test_forward_right_after_forward_is_not_lost(show):
    """The page writes its view a moment after it is another one. Here it hears later than that of the second step."""
    document = DOCUMENTS["wide"]()
    page, node = show(document), middle(document)
    page.add_init_script(LATE)  # before the page listens itself
    page.reload()
    page.locator(f"[data-node='{node}'] .frame").click()
    page.locator("[data-paths=all]").click()
    for _ in range(2):
        page.go_back()
    expect(page.locator("svg[data-isolated]")).to_have_count(0)
    page.wait_for_timeout(300)
    page.evaluate(FORWARD)
    expect(page.locator("[data-paths=all]")).to_have_attribute("aria-pressed", "true")
    expect(page).to_have_url(re.compile(f"isolate={node}&paths=all$"))


def test_back_undoes_the_last_click_however_soon(show):
    page = show(DOCUMENTS["wide"]())
    page.locator("[data-paths=all]").click()
    fragment_of(page, "paths=all")
    page.locator("[data-paths=main]").evaluate("button => (button.click(), history.back())")
    expect(page.locator("[data-paths=all]")).to_have_attribute("aria-pressed", "true")
    fragment_of(page, "paths=all")


def test_a_block_is_drawn_as_one_column_and_opened_again(show):
    document = plain(widths=(3, 4, 5, 4, 1), seed=2)
    names = ["conv1", "layer1.0.conv1", "layer1.0.conv2", "layer1.1.conv1", "layer1.1.conv2"]
    layers = [dataclasses.replace(layer, name=name) for layer, name in zip(document.layers, names, strict=True)]
    page = show(dataclasses.replace(document, layers=layers))
    page.locator("[part=blocks]").click()
    expect(page.locator("[data-block]")).to_have_count(1)
    everything = page.locator("[data-node]").count()
    page.locator("[data-block='1']").click()
    fragment_of(page, "collapsed=1-2")
    block = page.locator("[data-group='layer1.0']")
    expect(block).to_have_attribute("aria-label", re.compile("2 layers, 9 filters"))
    expect(block.locator("text")).to_contain_text("2 layers")
    assert page.locator("[data-node]").count() == everything - 8
    block.locator(".frame").click()
    expect(page.locator(".card h2").first).to_have_text("layer1.0")
    page.locator("[part=open]").click()
    expect(page.locator("[data-node]")).to_have_count(everything)
    page.go_back()
    expect(block).to_have_count(1)
    block.focus()
    page.keyboard.press("Enter")
    expect(page.locator("[data-node]")).to_have_count(everything)


def test_a_deep_network_opens_with_its_blocks_collapsed(show):
    document = figure.with_blocks_collapsed(deep(5, seed=2))
    page = show(document)
    expect(page.locator("[data-group]")).to_have_count(4)
    expect(page).not_to_have_url(re.compile("#"))
    block = page.locator("[data-group='layer1.1']")
    block.locator(".frame").click()
    page.locator("[part=open]").click()
    expect(page.locator("[data-group]")).to_have_count(3)
    fragment_of(page, "collapsed=1-2,5-6,7-8")
    page.go_back()
    page.go_back()
    expect(page.locator("[data-group]")).to_have_count(4)
    page.go_forward()
    page.go_forward()
    expect(block).to_have_count(0)
    page.reload()
    expect(page.locator("[data-group]")).to_have_count(3)


def test_a_very_deep_network_opens_with_neighboring_blocks_as_one_and_fits_the_window(show):
    document = figure.with_blocks_collapsed(deep(12, seed=2))
    page = show(document, viewport={"width": 1280, "height": 720})
    stage = page.locator(".stage")
    fitting = "e => e.scrollWidth <= e.clientWidth && e.scrollHeight <= e.clientHeight"
    assert stage.evaluate(fitting)
    several = page.locator("[data-group='layer1.0 to layer1.4']")
    within = re.compile(r"10 layers, \d+ filters, \d+ kernels; Enter opens its 5 blocks")
    expect(several).to_have_attribute("aria-label", within)
    several.locator(".frame").click()
    expect(page.locator("[part=state]")).to_contain_text("through layer1.0 to layer1.4")
    inputs = page.locator(".card ol").first
    expect(inputs).to_contain_text("of stem")
    expect(inputs).not_to_contain_text("layer1")
    page.locator("[part=open]").click()
    expect(page.locator("[data-group='layer1.3']")).to_have_count(1)
    expect(page.locator("[data-group]")).to_have_count(5 + 6)
    page.locator("[part=blocks]").click()
    page.locator("[part=as-first]").click()
    expect(several).to_have_count(1)
    expect(page.locator("[data-block='5']")).to_contain_text("in layer1.0 to layer1.4")
    page.locator("[data-block='5']").click()  # one of them alone
    fragment_of(page, "collapsed=11-12,13-14,15-16,17-18,19-20,21-22,1-2,3-4,7-8,9-10")


def test_in_a_crowded_column_numbers_stand_beside_the_pictures(show):
    page = show(plain(widths=(12, 2, 1), density=1.0), viewport={"width": 1280, "height": 720})
    page.locator("[data-paths=all]").click()
    crowded = page.locator("[data-node]").filter(has=page.locator("text[text-anchor=start]"))
    expect(crowded).to_have_count(12)
    sides = [box_of(frame) for frame in crowded.locator(".frame").all()]
    assert min(right - left for left, _, right, _ in sides) >= 20
    assert all(above[3] <= below[1] for above, below in itertools.pairwise(sides))


def test_groups_of_similar_filters_are_suggested_and_accepted_by_a_click(show):
    document = plain(density=1.0)
    edges, nodes = document.edges, document.nodes
    first, second = np.flatnonzero(nodes.column == 1)[:2]
    weights = document.weights.copy()
    for one, other in zip(np.flatnonzero(edges.target == first), np.flatnonzero(edges.target == second), strict=True):
        a, b = (edges.weights[edge] for edge in (one, other))
        weights[b : b + 9] = np.rot90(weights[a : a + 9].reshape(3, 3)).ravel()
    edges = dataclasses.replace(edges, scale=np.full(len(edges), 0.5))
    page = show(dataclasses.replace(document, weights=weights, edges=edges))
    page.locator("[part=similar]").click()
    panel = page.locator("[part=similar-panel]")
    expect(panel).to_contain_text("alike if turned or mirrored, 1.00")
    assert page.locator("[data-group]").count() == 0
    page.locator(f"[data-suggested='{first},{second}']").click()
    expect(page.locator("[data-group]")).to_have_count(1)
    expect(panel).to_contain_text("There are no groups")


def test_labels_and_notes_are_shown_found_saved_and_undone(show, tmp_path):
    document = DOCUMENTS["plain"]()
    node = middle(document)
    unit, layer = document.nodes.unit[node], document.layers[document.nodes.layer[node]].name
    page = show(document)
    page.locator(f"[data-node='{node}'] .frame").click()
    page.locator("[part=label]").fill("<i>rim")
    page.locator("[part=label]").press("Enter")
    page.locator("[part=note-text]").fill("round\nand dark")
    page.locator("[part=note-text]").press("Escape")
    expect(page.locator(f"[data-node='{node}'] text")).to_contain_text("<i>rim")
    expect(page.locator(".card h2").first).to_contain_text("<i>rim")
    for kind in ("json", "html"):
        path = tmp_path / f"saved.{kind}"
        path.write_bytes(saved(page, kind))
        again = Diagram.load(path)
        assert again.labels == {f"{layer}:{unit}": "<i>rim"}
        assert again.notes == {f"{layer}:{unit}": "round\nand dark"}
    page.locator("[part=search]").fill("rim")
    expect(page.locator(".results li")).to_have_count(1)
    page.keyboard.press("Escape")
    page.go_back()
    expect(page.locator("[part=notice]")).to_contain_text("Labels and notes are those of this address now.")
    page.go_back()
    expect(page.locator(f"[data-node='{node}'] text")).not_to_contain_text("rim")
    page.go_back()  # before the filter was clicked, where there are no labels either
    expect(page.locator("[part=notice]")).to_have_count(0)
    page.evaluate("location.hash = '#label=9999:nothing'")
    expect(page.locator("[part=notice]")).to_contain_text("opened without what does not fit this diagram: notes.")
    page = show(again.document)
    expect(page.locator(f"[data-node='{node}'] text")).to_contain_text("<i>rim")
    page.locator("[data-mode-button=table]").click()
    assert any("<i>rim" in text for text in page.locator("tbody td").all_inner_texts())


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_texts_are_text_in_the_page_in_its_address_and_in_its_files(show, tmp_path, text):
    """``show`` fails if one runs, or is an element that the page's policy refuses."""
    document = DOCUMENTS["plain"]()
    page, node = show(document), middle(document)
    page.locator(f"[data-node='{node}'] .frame").click()
    page.locator("[part=label]").fill(text)
    page.locator("[part=label]").press("Enter")
    page.locator("[part=note-text]").fill(LONG[:900])  # a browser counts some characters twice
    page.locator("[part=note-text]").press("Escape")
    page.reload()
    page.locator("html[data-ready=true]").wait_for()
    expect(page.locator("[part=notice]")).to_have_count(0)
    document = Document.from_json(saved(page, "json"))
    assert document.view.notes == (Note(node, text, LONG[:900]),)
    (tmp_path / "view.json").write_bytes(saved(page, "view", "a-small-network-conv3-1.view"))
    ElementTree.fromstring(saved(page, "svg"))
    page = show(DOCUMENTS["plain"]())
    page.locator("[part=export]").click()
    with page.expect_file_chooser() as chosen:
        page.locator("[data-export=open]").click()
    chosen.value.set_files(tmp_path / "view.json")
    page.locator(f"svg[data-isolated='{node}']").wait_for()
    expect(page.locator("[part=notice]")).to_have_count(0)
    assert Document.from_json(saved(page, "json")).view == document.view


HREF = re.compile(r'(?<=href=")data:image/[^"]*')


@pytest.mark.parametrize(("kind", "width"), [("svg-180", "180mm"), ("svg-88", "88mm")])
@pytest.mark.parametrize("name", DRAWINGS)
def test_the_svg_of_a_page_is_the_svg_of_python(show, name, kind, width):
    """Sign by sign, but for how its pictures are written; these are the same to the eye."""
    document = DOCUMENTS[name]()
    text, expected = (
        saved(show(document), kind, f"{document.meta.file}-{width}").decode(),
        figure.svg(document, width=width),
    )
    assert HREF.sub("", text) == HREF.sub("", expected)
    pictures = list(zip(HREF.findall(text), HREF.findall(expected), strict=True))
    assert pictures
    for ours, theirs in pictures:
        difference = read_data_url(ours).astype(int) - read_data_url(theirs)
        assert np.abs(difference).max() <= 4


def test_the_files_of_a_page_can_be_read(show):
    document = DOCUMENTS["wide"]()
    page, node = show(document), middle(document)
    page.locator(f"[data-node='{node}'] .frame").click()
    read = Document.from_json(saved(page, "json"))
    assert read.view == dataclasses.replace(document.view, isolate=node)
    assert dataclasses.replace(read, view=document.view).to_json() == document.to_json()
    image = Image.open(io.BytesIO(saved(page, "png")))
    assert image.width > 2000
    assert len(np.unique(np.asarray(image.convert("RGB")).reshape(-1, 3), axis=0)) > 50
    text = saved(page, "svg").decode()
    root = ElementTree.fromstring(text)
    assert root.get("viewBox") == f"0 0 {root.get('width')} {root.get('height')}"
    held = [element.get("href") for element in root.iter("{http://www.w3.org/2000/svg}image")]
    assert len(held) == page.locator("[data-node]").count() == len(figure.drawn(document, read.view).nodes)
    assert {read_data_url(src).shape for src in held} == {(document.tiles.size, document.tiles.size, 3)}


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("mode", ["diagram", "all", "table"])
def test_axe_finds_nothing_to_complain_of(show, mode, theme):
    assert AXE.exists(), "These tests need axe-core: npm ci in frontend/ (make test does it)."
    page = show(DOCUMENTS["plain"](), f"#mode={mode}&image=0", color_scheme=theme)
    page.evaluate(AXE.read_text(encoding="utf-8"))
    found = page.evaluate(AXE_RUN)
    assert [(each["id"], [node["html"][:120] for node in each["nodes"]]) for each in found] == []


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing_to_complain_of_where_a_node_is_isolated_and_panels_are_open(show, theme):
    document = DOCUMENTS["wide"]()
    page = show(document, f"#isolate={middle(document)}", color_scheme=theme)
    page.get_by_role("button", name="about").click()
    page.evaluate(AXE.read_text(encoding="utf-8"))
    found = page.evaluate(AXE_RUN)
    assert [(each["id"], [node["html"][:120] for node in each["nodes"]]) for each in found] == []


def test_axe_finds_nothing_to_complain_of_where_filters_have_labels(show):
    document = plain(widths=(4, 4, 1), density=1.0)
    last = np.flatnonzero(document.nodes.column == len(document.columns) - 2)
    notes = (Note(int(last[0]), "wheel"), Note(int(last[1]), "the spokes of a very large wheel, seen ", "rim"))
    page = show(dataclasses.replace(document, view=View(notes=notes, paths="all")))
    named = page.locator(f"[data-node='{last[0]}']")
    expect(named).to_contain_text("wheel")
    page.evaluate(AXE.read_text(encoding="utf-8"))
    found = page.evaluate(AXE_RUN)
    assert [(each["id"], [node["html"][:120] for node in each["nodes"]]) for each in found] == []


@pytest.mark.parametrize("mode", ["diagram", "all", "table"])
def test_hostile_text_appears_as_text(show, mode):
    document = hostile()
    page = show(document, f"#mode={mode}&image=0")
    for name in ("about", "export", "filters"):
        page.get_by_role("button", name=name, exact=True).click()
        page.keyboard.press("Escape")
    title = page.locator("#diagram h1")
    assert BIDI.sub("", HOSTILE[0]) in title.inner_text()
    text = page.locator("#diagram .app").inner_text()
    assert not BIDI.search(text)
    assert page.locator("script").count() == 2
    assert page.locator("img[src=x], [onerror], iframe, object, embed, a[href^=javascript]").count() == 0
    assert page.title() == plain_text(document.meta.title)


def test_before_the_script_runs_the_title_and_a_skeleton_are_there(show):
    document = plain()
    page = show(document, java_script_enabled=False)
    expect(page.locator("h1")).to_be_visible()
    expect(page.locator("h1")).to_have_text(document.meta.title)
    assert page.locator(".skeleton i").count() == (document.nodes.kind != NodeKind.IMAGE).sum()
    expect(page.locator(".skeleton i").first).to_be_visible()
    expect(page.locator("noscript p")).to_be_visible()
    assert "scripts are disabled" in page.locator("noscript").inner_html()
    assert page.locator("html").get_attribute("lang") == "en"


def test_the_pages_policy_lets_no_other_script_run_and_nothing_out(browser, tmp_path):
    path = Diagram(plain()).save(tmp_path / "circuit.html")
    page = browser.new_page()
    page.goto(path.as_uri())
    page.locator("html[data-ready=true]").wait_for()
    refused = page.evaluate(
        """async () => {
            const refused = [];
            document.addEventListener("securitypolicyviolation", event => refused.push(event.effectiveDirective));
            const script = document.createElement("script");
            script.textContent = "window.ran = true";
            document.body.append(script);
            const image = document.createElement("img");
            image.src = "https://example.org/a.png";
            document.body.append(image);
            document.body.setAttribute("onclick", "window.ran = true");
            document.body.click();
            await fetch("https://example.org/").catch(() => {});
            await new Promise(done => setTimeout(done, 200));
            return refused;
        }"""
    )
    assert {"script-src-elem", "script-src-attr", "img-src", "connect-src"} <= set(refused)
    assert page.evaluate("window.ran") is None
    page.close()


# What a notebook's kernel and anywidget's front end are to the bundle: traits that both sides set and hear of.
NOTEBOOK = """async ([code, state]) => {
    const heard = {};
    window.model = {
        state, saved: 0,
        get: name => window.model.state[name],
        set(name, value) {
            window.model.state[name] = value;
            for (const call of heard["change:" + name] ?? []) call();
        },
        on(event, call) { (heard[event] ??= []).push(call); },
        off(event, call) { heard[event] = (heard[event] ?? []).filter(each => each !== call); },
        save_changes() { window.model.saved++; },
    };
    window.listeners = () => Object.values(heard).flat().length;
    const bundle = await import(URL.createObjectURL(new Blob([code], { type: "text/javascript" })));
    const el = document.body.appendChild(document.createElement("div"));
    el.id = "diagram";
    window.close_ = await bundle.default.render({ model: window.model, el });
}"""
TRAITS = ["document", "view", "selection", "kernels", "image"]


def test_a_notebooks_widget_and_python_choose_for_each_other(browser):
    document = DOCUMENTS["wide"]()
    diagram, node = Diagram(document), middle(document)
    widget, said = diagram.widget(), []
    page = browser.new_context(offline=True, viewport={"width": 1440, "height": 1000}).new_page()
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto("about:blank")
    page.evaluate(NOTEBOOK, [str(widget._esm), json.loads(json.dumps(widget.get_state(TRAITS)))])
    assert numbers(page, "[data-node]", "node") == sorted(figure.drawn(document).nodes)
    assert page.evaluate("model.saved") == 0  # nothing was chosen yet
    # The reader chooses: a message comes, and Python sees it.
    page.locator(f"[data-node='{node}'] .frame").click()
    for _ in range(100):
        if page.evaluate("model.saved"):
            break
        page.wait_for_timeout(30)
    state = page.evaluate("model.state")
    widget.set_state({name: state[name] for name in TRAITS[1:]})
    assert diagram.view == dataclasses.replace(document.view, isolate=node)
    assert diagram.selection == (node,)
    # Python chooses: what is drawn follows, and no message comes back.
    messages = page.evaluate("model.saved")
    diagram.view = dataclasses.replace(document.view, nodes_per_column=4)
    diagram.kernels = 40
    for name in ("view", "kernels", "image", "selection"):
        page.evaluate("([name, value]) => model.set(name, value)", [name, widget.get_state([name])[name]])
    shown = figure.drawn(document, diagram.view)
    assert numbers(page, "[data-node]", "node") == sorted(shown.nodes)
    assert page.locator("[data-node].lit").count() == 0
    expect(page.locator("[part=caption]")).to_have_text(shown.caption)
    page.wait_for_timeout(400)
    assert page.evaluate("model.saved") == messages
    # Another document in the same widget, and the end of it.
    other = DOCUMENTS["residual"]()
    page.evaluate("Object.assign(model.state, { view: {}, kernels: null })")
    page.evaluate("text => model.set('document', text)", other.to_json())
    assert numbers(page, "[data-node]", "node") == sorted(figure.drawn(other).nodes)
    page.evaluate("close_()")
    assert page.locator("[data-node]").count() == 0
    assert page.evaluate("listeners()") == 0
    assert said == []
    page.context.close()


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_narrow_and_a_dark_page_draw_the_same(show, name):
    document = DOCUMENTS[name]()
    page = show(document, viewport={"width": 800, "height": 700}, color_scheme="dark")
    groups = sum(len(group.nodes) - 1 for group in document.view.groups)
    assert page.locator("[data-node]").count() == len(figure.drawn(document).nodes) - groups
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
