"""A feature: its text form, its arguments, its rows and positions."""

import copy
import dataclasses
import math
import pickle
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import convcircuits as cc
from convcircuits.feature import at

LAYERS = st.text("abz019._-é/\\ \t'\"*?<>|~$", min_size=1, max_size=20)
NAMES = st.from_regex(r"[A-Za-z_0-9\-é]+(\.[A-Za-z_0-9\-é]+)*", fullmatch=True)
POSITIONS = st.sampled_from(["all", "max", "center"]) | st.tuples(st.integers(0, 999), st.integers(0, 999))
CALLS = st.none() | st.integers(0, 99)
UNITS = st.integers(0, 10**6)
quick = settings(deadline=None, database=None, max_examples=60)


@quick
@given(NAMES, UNITS, POSITIONS, CALLS)
def test_text_form_comes_back_as_the_same_feature(layer, unit, position, call):
    feature = cc.Feature(layer, unit, position=position, call=call)
    again = cc.Feature.parse(str(feature))
    assert again == feature
    assert hash(again) == hash(feature)
    assert (again.layer, again.unit, again.position, again.call) == (layer, unit, position, call)
    assert cc.Feature.parse(f"  {feature}\n") == feature


@pytest.mark.parametrize(
    ("text", "feature"),
    [
        ("features.10:9", cc.Feature("features.10", 9)),
        ("features.10:9@all", cc.Feature("features.10", 9)),
        ("features.10:9@max", cc.Feature("features.10", 9, position="max")),
        ("features.10:9@center", cc.Feature("features.10", 9, position="center")),
        ("features.10:9@3,5", cc.Feature("features.10", 9, position=(3, 5))),
        ("relu#2:9@3,5", cc.Feature("relu", 9, position=(3, 5), call=2)),
    ],
)
def test_documented_text_forms(text, feature):
    assert cc.Feature.parse(text) == feature
    assert str(feature) == text.removesuffix("@all")
    assert repr(feature) == f"Feature({feature!s})"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a",
        "a:",
        ":3",
        "a:b",
        "a:-1",
        "a:1@",
        "a:1@top",
        "a:1@1",
        "a:1@1,2,3",
        "a:1@-1,2",
        "a#:1",
        "a#x:1",
        "a:1:2",
        "a b:1",
        "a:1.5",
        "a:direction",
        "a:1@max@max",
    ],
)
def test_other_texts_are_refused_with_an_example(text):
    with pytest.raises(cc.ConvCircuitsError, match=r"names no feature; write layer:unit"):
        cc.Feature.parse(text)


@quick
@given(LAYERS, UNITS | st.just(torch.tensor([1.0, 2.0])), POSITIONS, CALLS)
def test_slug_is_safe_in_a_file_name(layer, unit, position, call):
    slug = cc.Feature(layer, unit, position=position, call=call).slug
    assert re.fullmatch(r"[\w.\-]+", slug)


def test_slug_is_as_documented():
    assert cc.Feature("features.10", 9).slug == "features.10-9"


@pytest.mark.parametrize("number", [np.int64(3), np.uint8(3), np.array(3), torch.tensor(3), 3])
def test_any_whole_number_is_a_unit(number):
    feature = cc.Feature("a", number)
    assert type(feature.unit) is int
    assert feature == cc.Feature("a", 3)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"layer": ""}, "module's name"),
        ({"layer": 3}, "module's name"),
        ({"layer": None}, "module's name"),
        ({"unit": -1}, "^A feature's unit .* is a whole number from 0; got"),
        ({"unit": 1.0}, "^A feature's unit .* is a whole number from 0; got"),
        ({"unit": True}, "^A feature's unit .* is a whole number from 0; got"),
        ({"unit": None}, "^A feature's unit .* is a whole number from 0; got"),
        ({"unit": "3"}, "^A feature's unit .* is a whole number from 0; got"),
        ({"unit": torch.ones(2, 2)}, "^A direction is a 1-D tensor of real numbers; got"),
        ({"unit": [1.0, 2.0]}, "^A feature's unit .* is a whole number from 0; got"),
        ({"unit": np.ones(3)}, "^A feature's unit .* is a whole number from 0; got"),
        ({"unit": torch.zeros(3)}, "finite coefficients"),
        ({"unit": torch.tensor([])}, "finite coefficients"),
        ({"unit": torch.tensor([1.0, math.nan])}, "finite coefficients"),
        ({"unit": torch.tensor([1.0, math.inf])}, "finite coefficients"),
        ({"position": "middle"}, "^position is .all., .max., .center. or"),
        ({"position": None}, "^position is .all., .max., .center. or"),
        ({"position": 3}, "^position is .all., .max., .center. or"),
        ({"position": (1,)}, "^position is .all., .max., .center. or"),
        ({"position": (1, 2, 3)}, "^position is .all., .max., .center. or"),
        ({"position": (-1, 2)}, "^A position.s row is a whole number from 0; got"),
        ({"position": (1.0, 2)}, "^A position.s row is a whole number from 0; got"),
        ({"position": (True, 2)}, "^A position.s row is a whole number from 0; got"),
        ({"position": np.array([1, 2])}, "^position is .all., .max., .center. or"),
        ({"call": -1}, "call is a whole number"),
        ({"call": 1.0}, "call is a whole number"),
        ({"call": True}, "call is a whole number"),
        ({"call": "1"}, "call is a whole number"),
    ],
    ids=str,
)
def test_a_bad_argument_is_named(arguments, said):
    with pytest.raises(cc.ConvCircuitsError, match=said):
        cc.Feature(**({"layer": "a", "unit": 0} | arguments))


def test_a_complex_direction_is_refused():
    with pytest.raises(cc.ConvCircuitsError):
        cc.Feature("a", torch.tensor([1j, 2.0]))


BASE = {"layer": "a", "unit": 3, "position": "all", "call": None}


@pytest.mark.parametrize(
    "change",
    [
        {"layer": "b"},
        {"unit": 4},
        {"unit": torch.tensor([1.0, 0.0])},
        {"position": "max"},
        {"position": (0, 0)},
        {"call": 0},
    ],
    ids=str,
)
def test_features_that_differ_are_not_equal(change):
    assert cc.Feature(**BASE) == cc.Feature(**BASE)
    assert cc.Feature(**BASE) != cc.Feature(**(BASE | change))
    assert cc.Feature(**BASE) != "a:3"


def test_a_call_is_not_part_of_a_layer_name():
    assert cc.Feature("a#1", 2) != cc.Feature("a", 2, call=1)


def test_directions_are_equal_by_value_and_keep_their_own_copy():
    given = torch.tensor([1.0, -2.0], requires_grad=True)
    feature = cc.Feature("a", given)
    assert feature == cc.Feature("a", torch.tensor([1, -2]))
    assert hash(feature) == hash(cc.Feature("a", torch.tensor([1, -2])))
    assert feature != cc.Feature("a", torch.tensor([1.0, -2.5]))
    assert str(feature) == "a:direction"
    with torch.no_grad():
        given.zero_()
    assert feature.unit.tolist() == [1.0, -2.0]
    assert feature.unit.dtype == torch.float64
    assert not feature.unit.requires_grad


@pytest.mark.parametrize("unit", [3, torch.tensor([1.0, 2.0])])
@pytest.mark.parametrize("again", [copy.deepcopy, lambda f: pickle.loads(pickle.dumps(f))])
def test_copies_are_equal(unit, again):
    feature = cc.Feature("a", unit, position=[1, 2], call=1)
    assert again(feature) == feature
    assert again(feature).position == (1, 2)


def test_a_feature_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        cc.Feature("a", 1).unit = 2


@pytest.mark.parametrize(
    ("unit", "rows", "coefficients"),
    [(2, [2], [1.0]), (torch.tensor([0.0, 2.0, 0.0, -1.0]), [1, 3], [2.0, -1.0])],
)
def test_rows_are_the_channels_read_with_their_coefficients(unit, rows, coefficients):
    channels, values = cc.Feature("a", unit).rows(4)
    assert channels.tolist() == rows
    assert values.tolist() == coefficients
    assert values.dtype == torch.float64


@pytest.mark.parametrize(
    ("unit", "said"),
    [(4, "Unit 4 does not exist: a has 4 channels, so units go from 0 to 3"), (torch.ones(3), "has 3 coeff.*4 chan")],
)
def test_a_unit_or_direction_that_does_not_fit_is_refused(unit, said):
    with pytest.raises(cc.ConvCircuitsError, match=said):
        cc.Feature("a", unit).rows(4)


MAPS = torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize(
    ("position", "flat"),
    [
        ("max", [int(np.argmax(m)) for m in MAPS.numpy()]),
        ("center", [1 * 4 + 2] * 5),
        ((2, 3), [11] * 5),
        ((0, 0), [0] * 5),
    ],
)
def test_indices_are_flat_positions(position, flat):
    found = cc.Feature("a", 0, position=position).indices(MAPS)
    assert found.tolist() == flat
    assert found.dtype == torch.int64
    assert at(MAPS, found)[:, 0].tolist() == [MAPS[n].flatten()[p].item() for n, p in enumerate(flat)]


@pytest.mark.parametrize("position", ["max", "center", (0, 0)])
def test_a_linear_layer_has_one_position(position):
    assert cc.Feature("a", 0, position=position).indices(torch.randn(5)).tolist() == [0] * 5


def test_all_positions_have_no_index():
    assert cc.Feature("a", 0).indices(MAPS) is None
    assert at(MAPS, None).shape == (5, 12)
    assert at(torch.ones(5), None).shape == (5, 1)


@pytest.mark.parametrize("position", [(3, 0), (0, 4), (99, 99)])
def test_a_position_outside_the_map_is_refused(position):
    with pytest.raises(cc.ConvCircuitsError, match=r"outside the 3 x 4 map of a; rows go from 0 to 2"):
        cc.Feature("a", 0, position=position).indices(MAPS)
