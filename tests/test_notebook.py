"""What values show in a notebook, and the tables and graphs of other packages that they become."""

import math
import sys
from html.parser import HTMLParser

import networkx
import numpy as np
import pytest
import torch
from PIL import Image

import convcircuits as cc
from convcircuits.cards import card
from convcircuits.zoo.images import Crops, Photograph
from nets import NETS

CASE = NETS["residual"]
FEATURE = cc.Feature(*CASE.features[-1])
TRAIN, HELD_OUT = CASE.images(4), CASE.images(5, seed=1)


class Reader(HTMLParser):
    """Reads the cells of tables, and checks that each tag is closed in its turn."""

    def __init__(self, html):
        super().__init__()
        self.open, self.cells, self.words = [], [], []
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        assert tag in ("div", "strong", "table", "tr", "th", "td")
        assert [name for name, _ in attrs] in ([], ["style"])
        self.open.append(tag)
        if tag == "tr":
            self.cells.append([])
        if tag in ("th", "td"):
            self.cells[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)
        if self.open[-1] in ("th", "td"):
            self.cells[-1][-1] += data


@pytest.fixture(scope="module")
def found():
    model = CASE.build()
    scores = cc.score(model, FEATURE, TRAIN)
    circuit = cc.prune(scores, density=0.5)
    return model, scores, circuit, cc.evaluate(model, circuit, HELD_OUT, fit=TRAIN)


@pytest.fixture(scope="module")
def compared(found):
    return cc.compare(found[0], FEATURE, TRAIN, HELD_OUT, criteria=["snip", "random"], densities=[0.5, 0.2])


def test_text_of_others_is_escaped():
    evil = '<img src=x onerror="alert(1)">&\x1b[2J'
    html = card(evil, (evil,), [(evil,)], [evil])
    assert "<img" not in html
    assert "\x1b" not in html
    assert Reader(html).cells == [[evil.replace("\x1b", "\\x1b")]] * 2
    assert "<script>" not in cc.Feature("<script>", 1)._repr_html_()


def test_colours_are_the_notebooks_own():
    html = card("a", ("b",), [("c",)])
    assert "color: inherit" in html
    assert "background: none" in html
    assert "#" not in html


@pytest.mark.parametrize(
    ("feature", "rows"),
    [
        (cc.Feature("a.b", 3), [["layer", "a.b"], ["unit", "3"], ["position", "all"]]),
        (
            cc.Feature("a", [3, 9], position=(1, 2)),
            [["layer", "a"], ["units", "3, 9"], ["position", "row 1, column 2"]],
        ),
        (
            cc.Feature("a", [0.0, 2.0], call=1),
            [["layer", "a"], ["call", "1"], ["direction", "2 coefficients, 1 of them not 0"], ["position", "all"]],
        ),
    ],
)
def test_a_feature_says_what_it_is(feature, rows):
    assert Reader(feature._repr_html_()).cells == rows


def test_scores_and_circuits_show_the_rows_of_their_summaries(found):
    _, scores, circuit, _ = found
    for value in (scores, circuit):
        _, *rows = Reader(value._repr_html_()).cells
        assert len(rows) == len(value.kernels)
        for row, line in zip(rows, value.summary().splitlines()[2 : 2 + len(rows)], strict=True):
            assert "".join(row).replace("of", "/").replace(" ", "") == line.replace(" ", "")


def test_an_evaluation_shows_its_controls_and_its_verdict(found):
    report = found[3]
    reader = Reader(report._repr_html_())
    assert reader.words[0] == report.verdict_sentence
    assert reader.cells[0][1:] == ["circuit", "average map", "random circuit"]
    assert reader.cells[1] == ["R2", *(f"{x:z.2f}" for x in (report.r2, report.r2_average_map, report.r2_random))]
    assert all(note in reader.words for note in report.notes)


def test_a_comparison_shows_its_controls(compared):
    head, *rows = Reader(compared._repr_html_()).cells
    assert head[2:6] == ["constants fitted", "R2", "average map", "random circuit"]
    for row, made in zip(rows, compared, strict=True):
        e = made.evaluation
        assert row[:3] == [made.criterion, f"{made.density:g}", f"{e.constants:,}"]
        figures = (e.r2, e.r2_average_map, e.r2_random, e.r2_interior, e.r2_average_map_interior, e.r2_random_interior)
        assert row[3:9] == ["–" if math.isnan(x) else f"{x:z.2f}" for x in figures]
        assert row[9] == e.verdict
    assert [line.split()[0] for line in compared.summary().splitlines()] == ["criterion", *(r[0] for r in rows)]
    assert repr(compared) == "ComparisonTable(4 circuits by snip, random)"
    assert [row.criterion for row in compared[1:3]] == ["snip", "random"]


def test_tables_of_pandas_hold_the_figures(found, compared):
    _, scores, circuit, report = found
    layers = circuit.to_pandas()
    assert layers["kernels_kept"].sum() == len(circuit)
    assert layers["kernels"].sum() == circuit.relevant
    assert list(layers["layer"]) == list(circuit.elements)
    assert scores.to_pandas()["kernels"].sum() == scores.relevant
    assert scores.to_pandas()["share"].sum() == pytest.approx(1)
    figures = report.to_pandas()
    for name in figures.index:
        assert figures.loc[name, "circuit"] == pytest.approx(getattr(report, name), nan_ok=True)
    assert figures.loc["r2", "random_circuit"] == report.r2_random
    assert figures.loc["r2_interior", "average_map"] == pytest.approx(report.r2_average_map_interior, nan_ok=True)
    assert list(compared.to_pandas().columns) == list(compared[0].as_dict())
    assert list(compared.to_pandas()["r2"]) == [row.evaluation.r2 for row in compared]


@pytest.mark.parametrize("granularity", ["filter", "kernel", "weight"])
def test_columns_have_one_name_each_whatever_the_granularity(found, granularity):
    circuit = cc.find(found[0], FEATURE, TRAIN, density=0.5, granularity=granularity)
    assert circuit.to_pandas().columns.is_unique


@pytest.mark.parametrize(("package", "call"), [("pandas", "to_pandas"), ("networkx", "to_networkx")])
def test_what_is_not_installed_is_named(found, monkeypatch, package, call):
    model, _, circuit, _ = found
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(cc.ConvCircuitsError, match=rf"{call} needs {package}: pip install 'convcircuits\[notebook\]'"):
        getattr(circuit, call)(*([model] if package == "networkx" else []))


@pytest.mark.parametrize(
    "name", ["plain", "residual", "inception", "grouped", "mobile", "twice", "flat_head", "se_conv", "dense"]
)
@pytest.mark.parametrize("density", [0.3, 1.0])
def test_the_graph_has_the_effective_kernels_on_complete_paths(name, density):
    case = NETS[name]
    model, feature = case.build(), cc.Feature(*case.features[-1])
    circuit = cc.find(model, feature, case.images(3), density=density, criterion="magnitude")
    effective = cc.evaluate(model, circuit, case.images(3)).effective_kernels
    made = circuit.to_networkx(model)
    kernels = {(d["layer"], d["filter"], d["channel"]) for _, _, d in made.edges(data=True) if d["kind"] == "kernel"}
    assert len(kernels) == effective
    assert all(circuit[layer][o, i] for layer, o, i in kernels)
    if not effective:
        return
    target = made.graph["target"]
    assert {target} | networkx.ancestors(made, target) == set(made)
    image = [node for node, kind in made.nodes(data="kind") if kind == "image"]
    assert set(image) <= {("image", c) for c in range(case.input_shape[0])}
    assert set(made) == set(image).union(*(networkx.descendants(made, node) for node in image))


def test_in_a_chain_of_layers_a_channel_is_the_filter_of_its_number():
    case = NETS["plain"]
    model, feature = case.build(), cc.Feature(*case.features[0])
    circuit = cc.find(model, feature, case.images(3), density=0.6, criterion="magnitude")
    made = circuit.to_networkx(model)
    before = dict(zip(list(circuit.elements)[1:], circuit.elements, strict=False))
    for source, (layer, o), data in made.edges(data=True):
        assert source == (before.get(layer, "image"), data["channel"])
        assert o == data["filter"]
        assert data["saliency"] == pytest.approx(float(circuit.saliency[layer][o, data["channel"]]))
    assert made.graph["target"] == (feature.layer, feature.unit)


def test_the_graph_is_of_the_circuits_own_weights(found):
    other = CASE.build()
    with torch.no_grad():
        next(other.parameters()).add_(1)
    with pytest.raises(cc.ConvCircuitsError, match="another model"):
        found[2].to_networkx(other)


def photographs(count):
    return [Photograph(f"p{n}", Image.new("RGB", (32, 32), (40 * n, 90, 255 - 40 * n))) for n in range(count)]


def prepare(picture):
    return torch.from_numpy(np.array(picture.resize((32, 32)))).permute(2, 0, 1).double() / 128 - 1


def test_photographs_keep_their_names():
    images = Crops(photographs(3), prepare, count=5, seed=0, size=CASE.input_shape[1:])
    assert images.names == ("p0", "p1", "p2", "p0, crop 1", "p1, crop 1")
    assert images.photographs == (0, 1, 2, 0, 1)
    model = CASE.build()
    circuit = cc.find(model, FEATURE, images, density=0.9, criterion="magnitude")
    shown = cc.diagram(model, circuit, images=images).document.images
    marked = [f"{name}, used to find it" for name in images.names]
    assert set(shown.names) <= set(marked)
    held = torch.cat(list(images))
    numbered = cc.diagram(model, circuit, images=held).document.images.names
    named = cc.diagram(model, circuit, images=held, names=images.names).document.images.names
    parts = [cc.diagram(model, circuit, images=some).document for some in (images, held)]
    assert [int((one.pictures[0].tiles[one.target] >= 0).sum()) for one in parts] == [3, 5]
    assert [one.pictures[0].label.rpartition("; ")[2] for one in parts] == [
        "chosen among 5 crops of 3 photographs",
        "chosen among 5 images",
    ]
    number = {f"image {n}, used to find it": name for n, name in enumerate(marked)}
    assert named == shown.names == tuple(number[name] for name in numbered)
    with pytest.raises(cc.ConvCircuitsError, match="names must hold one string for each of 5 images"):
        cc.diagram(model, circuit, images=held, names=["a"])
