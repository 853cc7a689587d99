"""The notebook's widget, without a browser: what is chosen on one side is chosen on the other."""

import dataclasses
import json
from importlib.resources import files

import pytest
import traitlets

from convcircuits.drawing.data import Document, Group, View, view_to_dict
from convcircuits.drawing.host import Diagram
from diagrams import plain

CHOSEN = View(variant=2, compare=1, kernels=7, isolate=4, pins=(3,), groups=(Group("g", (3, 4)),), image=1, mode="all")


@pytest.fixture
def diagram():
    return Diagram(plain(images=2, variants=3, measured=True))


def by_reader(widget, **state):
    """What the browser says, as its message has it."""
    widget.set_state(json.loads(json.dumps(state)))


def test_the_widget_holds_the_document_and_runs_the_bundle(diagram):
    widget = diagram.widget()
    assert Document.from_json(widget.document).to_json() == diagram.document.to_json()
    assert str(widget._esm) == (files("convcircuits.drawing") / "static" / "diagram.js").read_text(encoding="utf-8")
    synced = widget.get_state(["document", "view", "selection", "kernels", "image"])
    json.dumps(synced)
    assert synced["view"] == view_to_dict(View())
    assert diagram.widget() is widget  # one for all its places


def test_what_was_chosen_before_is_shown(diagram):
    diagram.view, diagram.selection = CHOSEN, [3, 4]
    widget = diagram.widget()
    assert widget.view == view_to_dict(CHOSEN)
    assert (widget.kernels, widget.image, widget.selection) == (7, 1, [3, 4])
    assert diagram.view == CHOSEN
    assert diagram.selection == (3, 4)


def test_what_python_chooses_the_widget_shows(diagram):
    widget = diagram.widget()
    diagram.view = CHOSEN
    assert (widget.view, widget.kernels, widget.image) == (view_to_dict(CHOSEN), 7, 1)
    diagram.kernels = 3
    assert (widget.kernels, widget.view["kernels"]) == (3, 3)
    diagram.image = None
    assert (widget.image, widget.view["image"]) == (None, None)
    diagram.selection = [5]
    assert widget.selection == [5]
    assert diagram.view == dataclasses.replace(CHOSEN, kernels=3, image=None)


def test_what_the_reader_chooses_python_sees(diagram, tmp_path):
    widget = diagram.widget()
    by_reader(widget, view=view_to_dict(CHOSEN), kernels=7, image=1, selection=[4, 3])
    assert diagram.view == CHOSEN
    assert (diagram.kernels, diagram.image, diagram.selection) == (7, 1, (4, 3))
    assert Diagram.load(diagram.save(tmp_path / "x.json")).view == CHOSEN
    by_reader(widget, view={"nodesPerColumn": 3}, kernels=None, image=None)  # only what differs will do
    assert diagram.view == View(nodes_per_column=3)


def test_the_traits_alone_are_enough_for_the_slider_and_the_image(diagram):
    """In Python, `widget.kernels = 5` says all."""
    widget = diagram.widget()
    widget.kernels, widget.image = 5, 1
    assert diagram.view == View(kernels=5, image=1)
    widget.kernels = None
    assert diagram.kernels is None


def test_one_choice_is_one_message(diagram):
    widget, sent = diagram.widget(), []
    widget.send_state = lambda key=None: sent.append(set([key] if isinstance(key, str) else key))
    diagram.view = CHOSEN
    assert sent == [{"view", "kernels", "image"}]


def test_who_listens_is_told(diagram):
    widget, told = diagram.widget(), []
    widget.observe(lambda change: told.append(change["new"]), "selection")
    by_reader(widget, selection=[3])
    diagram.selection = [4]
    assert told == [[3], [4]]


@pytest.mark.parametrize(
    ("name", "value"), [("kernels", "7"), ("image", 1.5), ("selection", ["a"]), ("view", [1]), ("document", 3)]
)
def test_a_trait_of_another_type_is_refused(diagram, name, value):
    with pytest.raises(traitlets.TraitError):
        setattr(diagram.widget(), name, value)
