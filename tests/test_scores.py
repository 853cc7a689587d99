"""Scores: values with an order, a count and a true summary."""

import copy
import dataclasses
import math
import pickle
import re

import pytest
import torch

import convcircuits as cc
import oracles
from convcircuits.values.tables import LayerTable
from nets import NETS

FEATURE = cc.Feature("b", 1)


def scores(a=((1.0, math.nan),), b=((0.5,), (2.0,)), **changes):
    tables = LayerTable({"z": torch.tensor(a), "b": torch.tensor(b)})
    return dataclasses.replace(cc.Scores(FEATURE, tables, 4, {"criterion": "snip"}), **changes)


@pytest.mark.parametrize("name", NETS)
def test_exactly_the_relevant_kernels_have_a_score_in_execution_order(name):
    case = NETS[name]
    model, (layer, unit) = case.build(), case.features[-1]
    found = cc.score(model, cc.Feature(layer, unit), case.images(1), criterion="magnitude")
    relevant = oracles.reachable(model, layer, unit, case.input_shape, blocks=case.blocks)
    relevant = {name: mask for name, mask in relevant.items() if mask.any()}
    assert list(found.kernels) == list(relevant)
    for kernels, mask in relevant.items():
        assert torch.equal(~found[kernels].isnan(), mask)
    assert found.relevant == found.relevant_in_model == oracles.count(relevant)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_scores_are_float64_for_a_float64_model_else_float32(dtype):
    case = NETS["plain"]
    found = cc.score(case.build().to(dtype), cc.Feature("features.5", 2), case.images())
    assert {values.dtype for values in found.kernels.values()} == {dtype}
    assert not any(values.requires_grad for values in found.kernels.values())


def test_equality_is_by_feature_layers_values_and_provenance():
    assert scores() == scores()
    assert scores() != scores(a=((1.0, 2.0),))
    assert scores() != scores(feature=cc.Feature("b", 0))
    assert scores() != scores(relevant_in_model=5)
    assert scores() != scores(provenance={})
    assert scores() != "scores"
    with pytest.raises(TypeError, match="unhashable"):
        hash(scores())


@pytest.mark.parametrize("again", [copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))])
def test_copies_are_equal(again):
    assert again(scores()) == scores()


def test_scores_are_frozen_and_their_own():
    given = torch.ones(2, 2)
    made = cc.Scores(FEATURE, LayerTable({"b": given}), 4)
    given.zero_()
    assert made["b"].all()
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.relevant_in_model = 3


def test_repr_is_short_and_true():
    assert repr(scores()) == "Scores(b:1, snip, 3 kernels in 2 layers)"
    assert repr(scores(provenance={})) == "Scores(b:1, ?, 3 kernels in 2 layers)"


@pytest.mark.parametrize(
    ("a", "b", "rows"),
    [
        (
            ((1.0, math.nan),),
            ((0.5,), (2.5,)),
            [("z", "1", "25.0%", "1"), ("b", "2", "75.0%", "2.5")],
        ),
        (((0.0, 0.0),), ((0.0,), (math.nan,)), [("z", "2", "0.0%", "0"), ("b", "1", "0.0%", "0")]),
        (
            ((-1.0, math.nan),),
            ((-3.0,), (math.nan,)),
            [("z", "1", "25.0%", "-1"), ("b", "1", "75.0%", "-3")],
        ),
        (
            ((math.nan, math.nan),),
            ((3.0,), (math.nan,)),
            [("z", "0", "0.0%", None), ("b", "1", "100.0%", "3")],
        ),
    ],
    ids=["some", "zeros", "signed", "a layer without scores"],
)
def test_the_summary_is_true(a, b, rows):
    lines = scores(a=a, b=b).summary().splitlines()
    assert len(lines) == 4
    for line, (layer, kernels, share, largest) in zip(lines[2:], rows, strict=True):
        said = re.split(r"\s+", line.strip())
        assert said[:3] == [layer, kernels, share]
        assert largest is None or said[3] == largest


def test_an_unknown_layer_names_what_is_near():
    with pytest.raises(cc.ConvCircuitsError, match="no layer 'zz'"):
        scores()["zz"]
