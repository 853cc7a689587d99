"""A diagram in Python's hands: what is chosen comes back, and files are written whole or not at all."""

import dataclasses
import importlib
import io
import json
import os
import sys
import tempfile
import webbrowser
from pathlib import Path
from types import SimpleNamespace

import pypdf
import pytest
from PIL import Image

from convcircuits import ConvCircuitsError
from convcircuits.drawing import figure, host
from convcircuits.drawing.data import Document, Group, Note, View
from convcircuits.drawing.host import Diagram, check_file
from convcircuits.drawing.page import page
from diagrams import DOCUMENTS, plain

VIEWS = [
    View(),
    View(variant=1, compare=0, kernels=7, nodes_per_column=2, kernels_per_node=1),
    View(root=5, isolate=4, share=0.95, pins=(3, 6), pictures="features", image=1, mode="table"),
    View(groups=(Group("a & b", (3, 4)),), notes=(Note(5, "rim", "round\nand dark"),), mode="all"),
]


@pytest.fixture
def diagram():
    return Diagram(plain(images=2, variants=3, measured=True))


def files(folder):
    return sorted(path.name for path in Path(folder).iterdir())


# ---------------------------------------------------------------------- files


def test_each_suffix_is_written_as_what_it_says(diagram, tmp_path):
    paths = [diagram.save(tmp_path / f"x{suffix}") for suffix in (".html", ".json", ".svg", ".pdf", ".png")]
    assert files(tmp_path) == sorted(path.name for path in paths)
    html, said, svg, pdf, png = (path.read_bytes() for path in paths)
    assert html.decode() == page(diagram.document)
    assert said.decode() == diagram.document.to_json()
    assert svg.decode() == figure.svg(diagram.document)
    assert len(pypdf.PdfReader(io.BytesIO(pdf)).pages) == 1
    assert Image.open(io.BytesIO(png)).format == "PNG"
    assert diagram.save(str(tmp_path / "y.json")) == tmp_path / "y.json"  # a text will do


@pytest.mark.parametrize("width", ["screen", "180mm", "88mm"])
def test_a_figure_is_of_the_width_that_is_asked_for(diagram, tmp_path, width):
    assert diagram.save(tmp_path / "x.svg", width=width).read_text() == figure.svg(diagram.document, width=width)


@pytest.mark.parametrize(
    ("name", "width", "words"),
    [
        ("x.gif", None, r"\.html, \.svg, \.pdf, \.png or \.json"),
        ("x", None, r"\.html, \.svg, \.pdf, \.png or \.json"),
        ("x.SVG", None, r"\.html, \.svg, \.pdf, \.png or \.json"),
        ("x.html", "88mm", r"Only \.svg, \.pdf and \.png have a width.*'88mm' for x\.html"),
        ("x.json", "screen", r"Only \.svg, \.pdf and \.png have a width"),
        ("x.png", "10cm", r"one of screen, 180mm, 88mm; got '10cm' for x\.png"),
        ("nowhere/x.svg", None, "no folder .*nowhere to write x.svg to"),
    ],
)
def test_what_cannot_be_written_is_refused_before_anything_is_drawn(diagram, tmp_path, monkeypatch, name, width, words):
    monkeypatch.setattr(host, "_FIGURES", dict.fromkeys(host._FIGURES, pytest.fail))
    monkeypatch.setattr(host, "_PAGES", dict.fromkeys(host._PAGES, pytest.fail))
    with pytest.raises(ConvCircuitsError, match=words):
        diagram.save(tmp_path / name, width=width)
    with pytest.raises(ConvCircuitsError, match=words):
        check_file(tmp_path / name, width)
    assert files(tmp_path) == []


@pytest.mark.parametrize("suffix", [".pdf", ".png"])
def test_without_the_converter_a_figure_for_it_is_refused_and_the_others_are_not(tmp_path, monkeypatch, suffix):
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    with pytest.raises(ConvCircuitsError, match=r"convcircuits\[figure\]"):
        check_file(tmp_path / f"x{suffix}")
    for other in (".svg", ".html", ".json"):
        check_file(tmp_path / f"x{other}")


@pytest.mark.parametrize("name", ["x.html", "x.svg", "x.json"])
def test_a_file_is_written_whole_or_not_at_all(diagram, tmp_path, monkeypatch, name):
    path = diagram.save(tmp_path / name)
    before = path.read_bytes()
    diagram.kernels = 3

    def fail(*_, **__):
        raise OSError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", fail)  # all is written, but not in its place
        with pytest.raises(ConvCircuitsError, match="cannot be written: the disk is full"):
            diagram.save(path)
    with monkeypatch.context() as patch:
        for table in (host._PAGES, host._FIGURES):
            for suffix in table:
                patch.setitem(table, suffix, fail)
        with pytest.raises(OSError, match="full"):
            diagram.save(path)
    assert path.read_bytes() == before
    assert files(tmp_path) == [name]
    assert diagram.save(path).read_bytes() != before


def test_what_is_shown_in_a_browser_is_a_page_in_a_new_folder(diagram, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    opened = []
    monkeypatch.setattr(webbrowser, "open", opened.append)
    first, second = diagram.open(), diagram.open()
    assert opened == [first.as_uri(), second.as_uri()]
    assert first != second
    assert first.read_text() == page(diagram.document)
    assert first.parent.parent == tmp_path
    assert first.name == f"{diagram.document.meta.file}.html"


# ---------------------------------------------------------------------- what is read


@pytest.mark.parametrize("suffix", [".html", ".json"])
@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_diagram_comes_back_from_its_files(tmp_path, name, suffix):
    document = DOCUMENTS[name]()
    read = Diagram.load(Diagram(document).save(tmp_path / f"x{suffix}"))
    assert type(read) is Diagram
    assert read.document.to_json() == document.to_json()
    assert read.view == document.view


@pytest.mark.parametrize("suffix", [".html", ".json"])
@pytest.mark.parametrize("view", VIEWS)
def test_what_was_chosen_is_saved_with_it(diagram, tmp_path, view, suffix):
    given = diagram.document
    diagram.view = view
    read = Diagram.load(diagram.save(tmp_path / f"x{suffix}"))
    assert read.view == diagram.view == view
    assert diagram.document is given  # it never changes
    assert diagram.document.view == View()
    assert dataclasses.replace(read.document, view=View()).to_json() == given.to_json()
    assert read.caption == diagram.caption == figure.drawn(given, view).caption


@pytest.mark.parametrize("view", VIEWS)
def test_figures_show_what_was_chosen(diagram, tmp_path, view):
    diagram.view = view
    text = diagram.save(tmp_path / "x.svg").read_text()
    assert text == figure.svg(dataclasses.replace(diagram.document, view=view))
    assert diagram._repr_mimebundle_()["image/svg+xml"] == text


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("x.json", None, "x.json cannot be read: No such file"),
        ("x.html", None, "x.html cannot be read: No such file"),
        ("x.svg", "<svg/>", "can be read from .json and .html"),
        ("x", "{}", "can be read from .json and .html"),
        ("x.json", "{}", "x.json: This is not a circuit diagram"),
        ("x.json", "", "x.json: This is not valid JSON"),
        ("x.html", "<html></html>", "x.html: This HTML contains no circuit diagram"),
        ("x.html", '<script type="application/json" id="circuit">{"schema": 1}</script>', "not a circuit diagram"),
        ("x.html", '<script type="application/json" id="circuit">{}', "contains no circuit diagram"),
        ("x.json", b"\xff\xfe\x00", "x.json: "),
        ("x.json", "[" * 100_000, "x.json: This is not a circuit diagram: its JSON is nested too deep"),
        ("x" * 300 + ".json", None, "cannot be read: File name too long"),
    ],
)
def test_what_is_no_diagram_is_refused_by_its_name(tmp_path, name, content, words):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(ConvCircuitsError, match=words):
        Diagram.load(path)


def test_a_folder_is_no_diagram(tmp_path):
    (tmp_path / "x.json").mkdir()
    os.mkfifo(tmp_path / "x.html")
    for name in ("x.json", "x.html"):
        with pytest.raises(ConvCircuitsError, match="cannot be read: it is not an ordinary file"):
            Diagram.load(str(tmp_path / name))


@pytest.mark.parametrize("depth", [50, 400, 900, 990, 3000])
def test_json_nested_at_any_place_and_depth_is_refused_in_a_sentence(diagram, tmp_path, depth):
    said = json.loads(diagram.document.to_json())
    for key in said:
        path = tmp_path / "x.json"
        others = json.dumps({k: v for k, v in said.items() if k != key})
        path.write_text(f'{others[:-1]}, "{key}": {"[" * depth}{"]" * depth}}}')
        with pytest.raises(ConvCircuitsError, match=r"x\.json: "):
            Diagram.load(path)


# ---------------------------------------------------------------------- what is chosen


def test_the_slider_and_the_image_are_parts_of_the_view(diagram):
    assert (diagram.kernels, diagram.image) == (None, None)
    diagram.kernels = 5
    diagram.image = 1
    assert diagram.view == View(kernels=5, image=1)
    assert "5 most salient kernels" in diagram.caption
    diagram.view = View(kernels=2)
    assert (diagram.kernels, diagram.image) == (2, None)
    diagram.kernels = None
    assert diagram.view == View()


def test_a_diagram_begins_with_its_documents_view():
    view = View(kernels=3, nodes_per_column=2)
    diagram = Diagram(plain(view=view))
    assert diagram.view == view
    assert diagram.kernels == 3


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("kernels", 0, "View.kernels is a whole number, at least 1"),
        ("kernels", 1.5, "kernels"),
        ("image", 2, "image 2; the document has 2"),
        ("image", -1, "View.image is a whole number, at least 0; got -1"),
        ("view", View(isolate=99), "node 99"),
        ("view", View(variant=3), "variant 3; the document has 3"),
        ("view", View(groups=(Group("g", (3, 7)),)), "not of nodes of one column"),
        ("selection", [99], "node 99"),
        ("selection", [-1], "at least 0; got -1"),
        ("selection", [0], "node 0, a channel of the image"),
    ],
)
def test_what_is_not_there_cannot_be_chosen(diagram, name, value, words):
    diagram.kernels, diagram.selection = 4, [3]
    with pytest.raises(ConvCircuitsError, match=words):
        setattr(diagram, name, value)
    assert (diagram.view, diagram.selection) == (View(kernels=4), (3,))


def test_labels_and_notes_are_of_filters_by_name(diagram):
    diagram.labels = {"conv1:0": "edge", "conv2:3": "rim"}
    diagram.notes = {"conv2:3": "round"}
    assert diagram.labels == {"conv1:0": "edge", "conv2:3": "rim"}
    assert diagram.notes == {"conv2:3": "round"}
    diagram.labels = {"conv2:1": "bar"}
    assert diagram.labels == {"conv2:1": "bar"}
    assert diagram.notes == {"conv2:3": "round"}
    assert diagram.view.notes == (Note(7 + 2, note="round"), Note(7, "bar"))
    with pytest.raises(ConvCircuitsError, match="no filter 'conv9:0'; filters are named by layer and number, such as"):
        diagram.labels = {"conv9:0": "x"}
    with pytest.raises(ConvCircuitsError, match="at most 40 characters"):
        diagram.labels = {"conv2:1": "x" * 41}
    assert diagram.labels == {"conv2:1": "bar"}


def test_chosen_nodes_are_numbers(diagram):
    assert diagram.selection == ()
    diagram.selection = [4, 3]
    assert diagram.selection == (4, 3)
    diagram.selection = ()
    assert diagram.selection == ()


# ---------------------------------------------------------------------- in a notebook


def test_it_says_briefly_what_it_is(diagram):
    variant = diagram.document.variants[0]
    assert repr(diagram) == (
        f"Diagram(conv3:1 of a small network: {variant.kernels} kernels of {variant.filters} filters in 3 columns)"
    )


def test_where_no_kernel_runs_a_notebook_gets_a_figure(diagram):
    assert diagram._repr_mimebundle_() == {
        "text/plain": repr(diagram),
        "image/svg+xml": figure.svg(diagram.document),
    }


@pytest.fixture
def kernel(monkeypatch):
    """As if this ran in a notebook's kernel."""
    importlib.import_module("convcircuits.drawing.widget")  # which asks for the true IPython
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: SimpleNamespace(kernel=None)))


def test_in_a_kernel_a_notebook_gets_the_widget_beside_the_figure(diagram, kernel):
    diagram.kernels = 9
    data, _ = diagram._repr_mimebundle_()
    assert data["image/svg+xml"] == figure.svg(dataclasses.replace(diagram.document, view=diagram.view))
    assert data["text/plain"] == repr(diagram)
    shown = data["application/vnd.jupyter.widget-view+json"]
    assert shown["model_id"] == diagram.widget().model_id
    json.dumps(data)


def test_a_terminal_of_ipython_has_no_kernel(diagram, monkeypatch):
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: None))
    assert set(diagram._repr_mimebundle_()) == {"text/plain", "image/svg+xml"}


def test_without_anywidget_the_figure_is_shown_and_the_error_says_what_to_install(diagram, kernel, monkeypatch):
    monkeypatch.delitem(sys.modules, "convcircuits.drawing.widget", raising=False)
    monkeypatch.setitem(sys.modules, "anywidget", None)
    assert set(diagram._repr_mimebundle_()) == {"text/plain", "image/svg+xml"}
    with pytest.raises(ConvCircuitsError, match=r"pip install 'convcircuits\[notebook\]'"):
        diagram.widget()
    assert Document.from_json(diagram.document.to_json()).view == diagram.view
