"""The one rule by which the best kernels are taken."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import convcircuits as cc
import oracles
from convcircuits.circuits.ranking import in_order, top
from nets import NETS

torch.set_num_threads(1)

VALUES = st.sampled_from([0.0, -0.0, 0.5, 0.5, 1.0, -1.0, 1e-300, math.inf, -math.inf, math.nan])


@st.composite
def tables(draw):
    shapes = draw(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 3)), min_size=1, max_size=4))
    names = draw(st.permutations([f"layer{i}" for i in range(len(shapes))]))
    return {
        name: torch.tensor([draw(VALUES) for _ in range(o * i)], dtype=torch.float64).reshape(o, i)
        for name, (o, i) in zip(names, shapes, strict=True)
    }


def scored(table):
    return sum(int((~values.isnan()).sum()) for values in table.values())


@settings(max_examples=150, derandomize=True)
@given(tables(), st.data())
def test_top_keeps_exactly_the_best_with_ties_by_layer_then_out_then_in(table, data):
    k = data.draw(st.integers(0, scored(table)))
    kept = top(table, k)
    expected = oracles.topk(table, k)
    assert list(kept) == list(table)
    assert all(torch.equal(kept[name], expected[name]) for name in table)
    assert sum(int(mask.sum()) for mask in kept.values()) == k
    assert not any(bool((kept[name] & table[name].isnan()).any()) for name in table)


@settings(max_examples=60, derandomize=True)
@given(tables())
def test_smaller_choices_lie_inside_larger_ones(table):
    choices = [top(table, k) for k in range(scored(table) + 1)]
    for small, large in itertools.pairwise(choices):
        assert all(bool((large[name] | ~small[name]).all()) for name in table)


def test_thousands_of_equal_scores_are_taken_from_the_front():
    table = {"b": torch.zeros(50, 40), "a": torch.zeros(60, 70)}
    kept = top(table, 2500)
    assert bool(kept["b"].all())
    assert kept["a"].flatten().nonzero()[:, 0].tolist() == list(range(500))


def test_in_order_puts_layers_in_execution_order_and_fills_what_is_missing():
    on_path = {"z": torch.tensor([[True, False]]), "a": torch.tensor([[True], [True]])}
    table = in_order({"a": torch.tensor([[1.0], [2.0]])}, on_path)
    assert list(table) == ["z", "a"]
    assert table["z"][0, 0] == 0
    assert table["z"][0, 1].isnan()
    assert table["a"].tolist() == [[1.0], [2.0]]


def test_in_order_leaves_what_it_was_given_alone():
    given_scores = {"a": torch.tensor([[1.0, 2.0]])}
    in_order(given_scores, {"a": torch.tensor([[True, False]])})
    assert given_scores["a"].tolist() == [[1.0, 2.0]]


@pytest.mark.parametrize("density", [1e-9, 0.01, 0.05, 0.3, 0.5, 0.999, 1.0, 1])
@pytest.mark.parametrize("name", ["residual", "mobile", "flat_head"])
def test_prune_keeps_exactly_the_rounded_share_and_at_least_one(name, density):
    case = NETS[name]
    scores = cc.score(case.build(), cc.Feature(*case.features[-1]), case.images(1), criterion="magnitude")
    circuit = cc.prune(scores, density=density)
    assert len(circuit) == max(1, round(density * scores.relevant))
    assert circuit == cc.prune(scores, kernels=len(circuit))
    expected = oracles.topk(dict(scores.elements), len(circuit))
    assert all(torch.equal(mask, expected[layer]) for layer, mask in circuit.elements.items())
    assert circuit.saliency == scores.elements


@pytest.mark.parametrize(
    "budget",
    [
        {},
        {"density": 0.5, "kernels": 3},
        {"density": 0},
        {"density": -0.1},
        {"density": 1.01},
        {"density": math.nan},
        {"density": "half"},
        {"density": True},
        {"kernels": 0},
        {"kernels": 10**6},
        {"kernels": 2.0},
        {"kernels": True},
    ],
    ids=str,
)
def test_a_budget_out_of_range_is_an_error(budget):
    case = NETS["plain"]
    model, images, feature = case.build(), case.images(1), cc.Feature("features.3", 1)
    scores = cc.score(model, feature, images, criterion="random")
    with pytest.raises(cc.ConvCircuitsError):
        cc.prune(scores, **budget)
    with pytest.raises(cc.ConvCircuitsError):
        cc.find(model, feature, images, criterion="force", **budget)
