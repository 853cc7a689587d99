"""Tables of tensors by layer: immutable values with an order."""

import copy
import math
import pickle

import pytest
import torch

import convcircuits as cc
from convcircuits.values.tables import LayerTable, suggest


def table(**layers):
    return LayerTable({name: torch.tensor(values) for name, values in layers.items()})


ONE = table(b=[1.0, math.nan], a=[2.0])


def test_a_table_keeps_the_order_and_is_a_mapping():
    assert list(ONE) == ["b", "a"]
    assert len(ONE) == 2
    assert "a" in ONE
    assert "c" not in ONE
    assert [tuple(t.shape) for t in ONE.values()] == [(2,), (1,)]
    assert repr(ONE) == "LayerTable(b: (2,), a: (1,))"
    assert len(LayerTable()) == 0


def test_get_gives_the_default_as_any_mapping_does():
    assert ONE.get("a").item() == 2.0
    assert ONE.get("nope") is None
    assert ONE.get("nope", 3) == 3


def test_a_table_is_detached_contiguous_and_its_own():
    given = torch.ones(3, 4, requires_grad=True)
    made = LayerTable({"a": given.T})
    with torch.no_grad():
        given.zero_()
    assert made["a"].all()
    assert not made["a"].requires_grad
    assert made["a"].is_contiguous()
    assert made["a"].device.type == "cpu"


@pytest.mark.parametrize(
    ("other", "equal"),
    [
        (table(b=[1.0, math.nan], a=[2.0]), True),
        (table(a=[2.0], b=[1.0, math.nan]), False),
        (table(b=[1.0, 0.0], a=[2.0]), False),
        (table(b=[1.0, math.nan], a=[3.0]), False),
        (table(b=[1.0, math.nan], a=[2]), False),
        (table(b=[1.0, math.nan], a=[[2.0]]), False),
        (table(b=[1.0, math.nan]), False),
        (table(b=[1.0, math.nan], a=[2.0], c=[0.0]), False),
        ({"b": torch.tensor([1.0, math.nan])}, False),
    ],
    ids=["same", "order", "value-for-nan", "value", "dtype", "shape", "fewer", "more", "dict"],
)
def test_equality_compares_names_order_shapes_dtypes_and_values(other, equal):
    assert (other == ONE) is equal
    assert (other != ONE) is not equal


@pytest.mark.parametrize(
    ("a", "b"), [(math.inf, torch.finfo(torch.float32).max), (-math.inf, -torch.finfo(torch.float32).max)]
)
def test_infinity_is_not_the_largest_number(a, b):
    assert table(a=[a]) == table(a=[a])
    assert table(a=[a]) != table(a=[b])


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda t: pickle.loads(pickle.dumps(t))])
def test_copies_are_equal(again):
    assert again(ONE) == ONE


def test_tables_are_not_hashable():
    with pytest.raises(TypeError, match="unhashable"):
        hash(ONE)


def test_an_unknown_layer_names_what_is_near():
    features = table(**{f"features{i}": [0.0] for i in range(20)})
    with pytest.raises(cc.ConvCircuitsError, match=r"'feature3'.*Similar names:.*features3"):
        features["feature3"]
    with pytest.raises(cc.ConvCircuitsError, match=r"Known names: features0, .* and [0-9]+ more\."):
        features["qqq"]
    with pytest.raises(cc.ConvCircuitsError, match="There are none"):
        LayerTable()["a"]


@pytest.mark.parametrize(
    ("given", "known", "said"),
    [
        ("sinp", ["snip", "force"], "Similar names: snip."),
        ("zzz", ["snip", "force"], "Known names: snip, force."),
        ("zzz", [], "There are none."),
    ],
)
def test_suggest_names_near_words_else_known_ones(given, known, said):
    assert suggest(given, iter(known)) == said
