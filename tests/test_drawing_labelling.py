"""Labels of filters that a person has written: from a file, and in a diagram."""

import csv
import io
import json
from xml.etree import ElementTree

import pytest

import convcircuits as cc
from convcircuits.drawing.labelling import read_labels
from nets import NETS
from texts import LONG, TEXTS

CASE = NETS["plain"]
FEATURE = cc.Feature(*CASE.features[-1])


def drawn(labels, density=0.7, **options):
    model = CASE.build()
    circuit = cc.find(model, FEATURE, CASE.images(2), density=density, criterion="actgrad")
    return cc.diagram(model, circuit, labels=labels, **options)


def test_they_are_in_the_document_as_those_that_are_typed():
    labels = {f"{FEATURE.layer}:{FEATURE.unit}": "curve", "features.0:1": "edge é <b>"}
    diagram = drawn(labels, density=1.0)
    typed = drawn(None, density=1.0)
    typed.labels = labels
    assert diagram.labels == labels
    assert diagram.document.view == diagram.view == typed.view
    compared = cc.find(CASE.build(), FEATURE, CASE.images(2), density=0.5, criterion="magnitude")
    both = drawn(labels, density=1.0, against=compared)
    assert (both.labels, both.view.compare) == (labels, 1)


def test_a_filter_of_the_model_that_no_circuit_has_is_named():
    assert (FEATURE.layer, FEATURE.unit) == ("features.5", 2)
    diagram = drawn({f"features.5:{n}": f"no. {n}" for n in range(4)})
    assert diagram.labels == {"features.5:2": "no. 2"}
    said = "Labels of filters that no circuit here has are left out (3): features.5:0, features.5:1, features.5:3."
    assert said in diagram.document.meta.notes


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ({"features.9:0": "x"}, r"has no layer 'features.9'. Similar names: features"),
        ({"features.0:99": "x"}, r"Layer 'features.0' has no filter 99: there are \d+, from 0"),
        ({"features.1:0": "x"}, "Layer 'features.1' has no filters to label; filters are named by"),
        ({"features.0": "x"}, "'features.0' is not a filter; filters are named by"),
        ({"features.0:-1": "x"}, "'features.0:-1' is not a filter"),
        ({"features.0:01": "x"}, "'features.0:01' is not a filter"),
        ({3: "x"}, "3 is not a filter"),
        ({"features.0:1": ""}, "of features.0:1 must be a text of 1 to 40 characters; got ''"),
        ({"features.0:1": "x" * 41}, "a text of 1 to 40 characters"),
        ({"features.0:1": 4}, "1 to 40 characters; got 4"),
        (["features.0:1"], "labels must map names of filters to labels"),
    ],
)
def test_what_is_no_label_of_a_filter_is_refused(labels, words):
    circuit = cc.Circuit.from_masks(CASE.build(), FEATURE, {})
    with pytest.raises(cc.ConvCircuitsError, match=words):
        cc.diagram(CASE.build(), circuit, labels=labels)


LABELS = {"features.7:24": "curve, left", "conv3_1:0": "é"}


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(LABELS),
        '\n{"features.7:24": "curve, left", "features.7:24": "curve, left", "conv3_1:0": "é"}',
        'label,filter,note\n"curve, left",features.7:24,mine\né,conv3_1:0,\n',
        '\ufefffilter,label\r\nfeatures.7:24,"curve, left"\r\nconv3_1:0,é\r\n',
    ],
)
def test_a_file_of_labels_is_json_or_a_table(tmp_path, text):
    path = tmp_path / "labels"
    path.write_bytes(text.encode())
    assert read_labels(path) == LABELS


def test_texts_come_back_as_they_were_written(tmp_path):
    """In files of labels and of diagrams, and a figure shows them as text."""
    labels = {f"features.0:{n}": text for n, text in enumerate(TEXTS.values())}
    for name, text in (("labels.json", json.dumps(labels)), ("labels.csv", tabled(labels))):
        (tmp_path / name).write_text(text, encoding="utf-8", newline="")
        assert read_labels(tmp_path / name) == labels
    for text in TEXTS.values():
        diagram = drawn({f"{FEATURE.layer}:{FEATURE.unit}": text}, density=1.0)
        diagram.notes = {"features.0:1": LONG[:1000]}
        for kind in ("json", "html"):
            diagram.save(tmp_path / f"d.{kind}")
            again = cc.Diagram.load(tmp_path / f"d.{kind}")
            assert (again.labels, again.notes) == (diagram.labels, diagram.notes)
        diagram.save(tmp_path / "d.svg")
        root = ElementTree.fromstring((tmp_path / "d.svg").read_text(encoding="utf-8"))
        assert {element.tag.rpartition("}")[2] for element in root.iter()}.isdisjoint({"script", "img", "style"})
        shown = ["".join(element.itertext()) for element in root.iter("{http://www.w3.org/2000/svg}text")]
        assert any(text.split()[0][:6] in each for each in shown), shown


def tabled(labels):
    table = io.StringIO()
    csv.writer(table).writerows([("filter", "label"), *labels.items()])
    return table.getvalue()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "is not a readable file of labels: No such file"),
        (b"\xff", "is not a readable file of labels: "),
        (b"{", "is not a readable file of labels: "),
        (b"{}", "holds no labels; give a JSON object such as"),
        (b"", "holds no labels"),
        (b"[1]", "holds no labels"),
        (b'{"features.7:24": 3}', "holds no labels"),
        (b'{"features.7:24": {"a": "b"}}', "holds no labels"),
        (b"filter,label\nfeatures.7:24\n", "holds no labels"),
        (b"name,label\nfeatures.7:24,x\n", "holds no labels"),
        (b'{"features.7:24": "a", "features.7:24": "b"}', "has two labels of 'features.7:24'"),
        (b"filter,label\nfeatures.7:24,a\nfeatures.7:24,b\n", "has two labels of 'features.7:24'"),
    ],
)
def test_other_files_are_refused(tmp_path, content, words):
    path = tmp_path / "labels.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(cc.ConvCircuitsError, match=words):
        read_labels(path)
