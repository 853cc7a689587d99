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
from convcircuits.files import named_after
from convcircuits.values.feature import at

LAYERS = st.text("abz019._-é/\\ \t'\"*?<>|~$", min_size=1, max_size=20)
NAMES = st.from_regex(r"[A-Za-z_0-9\-é]+(\.[A-Za-z_0-9\-é]+)*", fullmatch=True)
POSITIONS = st.sampled_from(["all", "max", "center", "interior"]) | st.tuples(st.integers(0, 999), st.integers(0, 999))
CALLS = st.none() | st.integers(0, 99)
UNITS = st.integers(0, 10**6)
SEVERAL = st.lists(UNITS, min_size=1, max_size=12, unique=True).map(tuple)
quick = settings(database=None, max_examples=60)


@quick
@given(NAMES, UNITS | SEVERAL, POSITIONS, CALLS)
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
        ("features.10:9@interior", cc.Feature("features.10", 9, position="interior")),
        ("features.10:9@3,5", cc.Feature("features.10", 9, position=(3, 5))),
        ("relu#2:9@3,5", cc.Feature("relu", 9, position=(3, 5), call=2)),
        ("features.10:3,9,40", cc.Feature("features.10", [3, 9, 40])),
        ("features.10:3,9,40@max", cc.Feature("features.10", (3, 9, 40), position="max")),
        ("features.10:3,9@3,5", cc.Feature("features.10", [3, 9], position=(3, 5))),
        ("relu#2:3,9@center", cc.Feature("relu", [3, 9], position="center", call=2)),
        ("features.10:3,", cc.Feature("features.10", [3])),
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
        "a:1@max@max",
        "a:,",
        "a:,3",
        "a:3,,4",
        "a:3,b",
        "a:3, 4",
        "a:3;4",
        "a:golden retriever",
    ],
)
def test_other_texts_are_refused_with_an_example(text):
    with pytest.raises(cc.ConvCircuitsError, match=r"is not a feature; write layer:unit"):
        cc.Feature.parse(text)


@quick
@given(LAYERS, UNITS | SEVERAL | st.just(torch.tensor([1.0, 2.0])), POSITIONS, CALLS)
def test_slug_is_safe_in_a_file_name(layer, unit, position, call):
    slug = cc.Feature(layer, unit, position=position, call=call).slug
    assert re.fullmatch(r"[A-Za-z0-9_.\-+]+", slug)
    assert len(slug) < 120


def test_slug_is_as_documented():
    assert cc.Feature("features.10", 9).slug == "features.10-9"
    assert cc.Feature("features.10", [3, 9, 40]).slug == "features.10-3+9+40"
    assert cc.Feature("relu", [3, 9], position=(1, 2), call=0).slug == "relu-0-3+9-1-2"
    assert named_after("../my model:make", "relu-3") == "my-model-make-relu-3"
    assert named_after("\u6a21", "relu-3") == "relu-3"


def test_slugs_of_many_units_are_short_distinct_and_the_same_each_time():
    many = [tuple(range(8)), tuple(range(9)), (*range(7), 8), (*range(6), 7, 6), tuple(range(512))]
    features = [cc.Feature("a", units) for units in [*many, 3, (3,), (3, 4), (4, 3)]]
    slugs = [feature.slug for feature in features]
    assert len(set(slugs)) == len(slugs)
    assert max(map(len, slugs)) < 40
    assert slugs[0] == cc.Feature("a", range(8)).slug == "a-0+1+2+3+4+5+2more-1eacc8c1"


# ---------------------------------------- several units


@pytest.mark.parametrize(
    "given",
    [[3, 9, 40], (3, 9, 40), np.array([3, 9, 40]), torch.tensor([3, 9, 40]), [np.int64(3), torch.tensor(9), 40]],
    ids=str,
)
def test_whole_numbers_in_a_row_are_several_units(given):
    feature = cc.Feature("a", given)
    assert feature.unit == (3, 9, 40)
    assert [type(unit) for unit in feature.unit] == [int] * 3
    assert feature == cc.Feature("a", (3, 9, 40))


def test_a_range_of_units():
    assert cc.Feature("a", range(2, 8, 3)).unit == (2, 5)


@pytest.mark.parametrize(
    "given", [[0.5, -2.0, 0.0], (0.5, -2.0, -0.0), np.array([0.5, -2.0, 0.0], np.float32)], ids=str
)
def test_floats_in_a_row_are_a_direction(given):
    feature = cc.Feature("a", given)
    assert feature == cc.Feature("a", torch.tensor([0.5, -2.0, 0.0]))
    assert feature.unit.dtype == torch.float64


def test_a_set_of_one_is_another_feature_than_its_unit():
    one, unit = cc.Feature("a", [3]), cc.Feature("a", 3)
    assert one != unit
    assert (one.unit, str(one), one.slug) == ((3,), "a:3,", "a-3+")


def test_units_keep_their_order():
    assert cc.Feature("a", [9, 3]) != cc.Feature("a", [3, 9])
    assert cc.Feature("a", [9, 3]).rows(10)[0].tolist() == [9, 3]


# ---------------------------------------- class names


def test_names_are_read_where_they_are_given():
    asked = []

    def names(layer, name):
        asked.append((layer, name))
        return 207

    parse = cc.Feature.parse
    assert parse("fc:golden retriever@max", names=names) == cc.Feature("fc", 207, position="max")
    assert parse("fc#1:jack-o'-lantern, pumpkin", names=names) == cc.Feature("fc", 207, call=1)
    assert asked == [("fc", "golden retriever"), ("fc", "jack-o'-lantern, pumpkin")]
    assert parse("fc:3,4", names=names) == cc.Feature("fc", [3, 4])
    for text in ("fc:golden@retriever", "fc:", "fc"):
        with pytest.raises(cc.ConvCircuitsError, match=r"is not a feature; write layer:unit"):
            parse(text, names=names)


@pytest.mark.parametrize("number", [np.int64(3), np.uint8(3), np.array(3), torch.tensor(3), 3])
def test_any_whole_number_is_a_unit(number):
    feature = cc.Feature("a", number)
    assert type(feature.unit) is int
    assert feature == cc.Feature("a", 3)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"layer": ""}, "must be the name of a module"),
        ({"layer": 3}, "must be the name of a module"),
        ({"layer": None}, "must be the name of a module"),
        ({"unit": -1}, "^A feature's unit .* must be a whole number from 0; got"),
        ({"unit": 1.0}, "^A feature's unit .* must be a whole number from 0; got"),
        ({"unit": True}, "^A feature's unit .* must be a whole number from 0; got"),
        ({"unit": None}, "^A feature's unit .* must be a whole number from 0; got"),
        ({"unit": "3"}, "^A feature's unit .* must be a whole number from 0; got"),
        ({"unit": torch.ones(2, 2)}, "^unit must be a 1-D tensor of real numbers"),
        ({"unit": np.ones((2, 2))}, "^A feature's unit .* must be a whole number from 0; got"),
        ({"unit": {3, 9}}, "^A feature's unit .* must be a whole number from 0; got"),
        ({"unit": []}, "needs at least one unit; got none"),
        ({"unit": range(0)}, "needs at least one unit; got none"),
        ({"unit": np.array([])}, "needs at least one unit; got none"),
        ({"unit": [3, 9, 3, 40, 9]}, "distinct; given more than once: 3, 9. For a direction, give floats"),
        ({"unit": torch.tensor([1, 0, 0])}, "distinct; given more than once: 0"),
        ({"unit": [1, -2]}, "^Each of several units .* must be a whole number from 0; got -2"),
        (
            {"unit": [3, 9.0]},
            r"^Each of several units \(a direction is all floats\) must be a whole .*; got 9.0",
        ),
        ({"unit": [3, None]}, "^Each of several units .* must be a whole number from 0; got None"),
        ({"unit": [3, True]}, "^Each of several units .* must be a whole number from 0; got True"),
        ({"unit": ["3", "9"]}, "^Each of several units .* must be a whole number from 0; got '3'"),
        ({"unit": np.array([True, False])}, "^Each of several units .* must be a whole number from 0; got True"),
        ({"unit": torch.tensor([True, False])}, "^unit must be a 1-D tensor of real numbers"),
        ({"unit": [math.nan, 1.0]}, "finite coefficients"),
        ({"unit": np.zeros(3)}, "finite coefficients"),
        ({"unit": torch.zeros(3)}, "finite coefficients"),
        ({"unit": torch.tensor([])}, "finite coefficients"),
        ({"unit": torch.tensor([1.0, math.nan])}, "finite coefficients"),
        ({"unit": torch.tensor([1.0, math.inf])}, "finite coefficients"),
        ({"position": "middle"}, r"^position must be .all., .max., .center., .interior., \(h, w\) from 0 or Boxes"),
        ({"position": None}, r"^position must be .all., .max., .center., .interior., \(h, w\) from 0 or Boxes"),
        ({"position": 3}, r"^position must be .all., .max., .center., .interior., \(h, w\) from 0 or Boxes"),
        ({"position": (1,)}, r"^position must be .all., .max., .center., .interior., \(h, w\) from 0 or Boxes"),
        ({"position": (1, 2, 3)}, r"^position must be .all., .max., .center., .interior., \(h, w\) from 0 or Boxes"),
        ({"position": (-1, 2)}, "^A position.s row must be a whole number from 0; got"),
        ({"position": (1.0, 2)}, "^A position.s row must be a whole number from 0; got"),
        ({"position": (True, 2)}, "^A position.s row must be a whole number from 0; got"),
        (
            {"position": np.array([1, 2])},
            r"^position must be .all., .max., .center., .interior., \(h, w\) from 0 or Boxes",
        ),
        ({"call": -1}, "call must be a whole number"),
        ({"call": 1.0}, "call must be a whole number"),
        ({"call": True}, "call must be a whole number"),
        ({"call": "1"}, "call must be a whole number"),
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
        {"unit": [3]},
        {"unit": [3, 4]},
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
    assert feature == cc.Feature("a", torch.tensor([1.0, -2.0], dtype=torch.float16))
    assert hash(feature) == hash(cc.Feature("a", [1.0, -2.0]))
    assert feature != cc.Feature("a", torch.tensor([1.0, -2.5]))
    with torch.no_grad():
        given.zero_()
    assert feature.unit.tolist() == [1.0, -2.0]
    assert feature.unit.dtype == torch.float64
    assert not feature.unit.requires_grad


def test_the_text_of_a_direction_tells_it_from_others_and_is_not_read():
    first, second = cc.Feature("a", [1.0, 0.0]), cc.Feature("a", [0.0, 1.0], position="max")
    assert str(first) == str(cc.Feature("a", torch.tensor([1.0, -0.0]))) == "a:direction-3239b05c"
    assert re.fullmatch(r"a:direction-[0-9a-f]{8}@max", str(second))
    assert first.slug != second.slug
    for text in (str(first), str(second), "a:direction"):
        with pytest.raises(cc.ConvCircuitsError, match=r"is a direction, which text cannot hold"):
            cc.Feature.parse(text, names=lambda layer, name: 0)


@pytest.mark.parametrize("unit", [3, [3, 4], torch.tensor([1.0, 2.0])])
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
    [(2, [2], [1.0]), ([3, 0], [3, 0], [1.0, 1.0]), (torch.tensor([0.0, 2.0, 0.0, -1.0]), [1, 3], [2.0, -1.0])],
)
def test_rows_are_the_channels_read_with_their_coefficients(unit, rows, coefficients):
    channels, values = cc.Feature("a", unit).rows(4)
    assert channels.tolist() == rows
    assert values.tolist() == coefficients
    assert values.dtype == torch.float64


@pytest.mark.parametrize(
    ("unit", "said"),
    [
        (4, "Unit 4 does not exist: a has 4 channels, so units go from 0 to 3"),
        ([1, 7, 2], "Unit 7 does not exist: a has 4 channels, so units go from 0 to 3"),
        (torch.ones(3), "has 3 coeff.*4 chan"),
    ],
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
    assert found[:, 0].tolist() == flat
    assert found.dtype == torch.int64
    assert at(MAPS, found)[:, 0].tolist() == [MAPS[n].flatten()[p].item() for n, p in enumerate(flat)]


@pytest.mark.parametrize("position", ["max", "center", (2, 3)])
def test_each_of_several_units_has_its_own_index(position):
    maps = torch.stack([MAPS, -MAPS, MAPS * 0], 1)
    feature = cc.Feature("a", [1, 2, 0], position=position)
    found = feature.indices(maps)
    assert found.tolist() == torch.stack([feature.indices(maps[:, u]) for u in range(3)], 1).tolist()
    assert torch.equal(at(maps, found), torch.stack([at(maps[:, u], found[:, u]) for u in range(3)], 1))
    assert at(maps, None).shape == (5, 3, 12)


@pytest.mark.parametrize("position", ["max", "center", (0, 0)])
def test_a_linear_layer_has_one_position(position):
    assert cc.Feature("a", 0, position=position).indices(torch.randn(5)).tolist() == [[0]] * 5
    assert cc.Feature("a", [0, 1], position=position).indices(torch.randn(5, 2)).tolist() == [[[0], [0]]] * 5


def test_all_positions_have_no_index():
    assert cc.Feature("a", 0).indices(MAPS) is None
    assert at(MAPS, None).shape == (5, 12)
    assert at(torch.ones(5), None).shape == (5, 1)
    assert at(torch.ones(5, 2), None).shape == (5, 2, 1)


@pytest.mark.parametrize("position", [(3, 0), (0, 4), (99, 99)])
def test_a_position_outside_the_map_is_refused(position):
    with pytest.raises(cc.ConvCircuitsError, match=r"outside the 3 x 4 map of a; rows go from 0 to 2"):
        cc.Feature("a", 0, position=position).indices(MAPS)
