"""How rankings of kernels agree with known circuits, and what criteria reach on planted ones."""

import dataclasses
import json

import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

import convcircuits as cc
from convcircuits.circuits.truth import Agreement, Case, Recoveries, agreement, recover, removal_order
from convcircuits.zoo.planted import KINDS, plant, polysemantic

SHAPES = {"a": (5, 3), "b": (7, 5), "c": (1, 7)}


def drawn(seed, levels):
    """A ranking with ties, some kernels not ranked, and a truth among the others."""
    dice = torch.Generator().manual_seed(seed)
    ranking, truth = {}, {}
    for layer, shape in SHAPES.items():
        values = torch.rand(shape, generator=dice)
        ranking[layer] = (values * levels).floor() if levels else values
        truth[layer] = torch.rand(shape, generator=dice) < 0.2 + 0.3 * values
        absent = torch.rand(shape, generator=dice) < 0.2
        ranking[layer][absent], truth[layer][absent] = torch.nan, False
    return ranking, truth


def flat(ranking, table):
    return torch.cat([table[layer][~values.isnan()] for layer, values in ranking.items()]).numpy()


@pytest.mark.parametrize("levels", [None, 1, 2, 5])
@pytest.mark.parametrize("seed", range(5))
def test_the_figures_are_those_of_scikit_learn(seed, levels):
    ranking, truth = drawn(seed, levels)
    found = agreement(ranking, [truth])
    true, values = flat(ranking, truth), flat(ranking, ranking)
    assert found.auroc == pytest.approx(roc_auc_score(true, values), abs=1e-12)
    assert found.average_precision == pytest.approx(average_precision_score(true, values), abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_precision_is_that_of_the_pruned_circuit(seed):
    ranking, truth = drawn(seed, 3)
    scores = cc.Scores(cc.Feature("c", 0), ranking, relevant_in_model=60)
    size = sum(int(mask.sum()) for mask in truth.values())
    circuit = cc.prune(scores, kernels=size)
    right = sum(int((circuit[layer] & mask).sum()) for layer, mask in truth.items())
    assert agreement(ranking, [truth]).precision == right / size


def test_a_truth_is_found_exactly_or_not_at_all():
    ranking, truth = drawn(0, None)
    first = {layer: torch.where(ranking[layer].isnan(), torch.nan, mask.double()) for layer, mask in truth.items()}
    assert agreement(first, [truth]) == Agreement(1, 1, 1)
    last = {layer: -values for layer, values in first.items()}
    assert agreement(last, [truth]).auroc == 0


def test_the_best_of_several_truths_counts():
    ranking, truth = drawn(0, None)
    other = drawn(1, None)[1]
    other = {layer: mask & ~ranking[layer].isnan() for layer, mask in other.items()}
    one, two, both = (agreement(ranking, truths) for truths in ([truth], [other], [truth, other]))
    assert both.auroc == max(one.auroc, two.auroc)
    assert both.average_precision == max(one.average_precision, two.average_precision)
    assert both.precision == max(one.precision, two.precision)


def test_a_truth_that_says_nothing_is_refused():
    ranking, truth = drawn(0, None)
    ranked = {layer: ~values.isnan() for layer, values in ranking.items()}
    nothing = {layer: torch.zeros_like(mask) for layer, mask in truth.items()}
    everywhere = {layer: torch.ones_like(mask) for layer, mask in truth.items()}
    for wrong in (nothing, ranked, everywhere):
        with pytest.raises(
            cc.ConvCircuitsError, match=r"must have some of the .* kernels that are ranked, but not all"
        ):
            agreement(ranking, [wrong])


def test_what_a_descent_keeps_longer_ranks_higher():
    net = plant(0, dtype=torch.float64)
    path = cc.find_path(net.model, net.feature, net.images(12), kernels=40, start=0.5)
    order = removal_order(path)
    ranks = torch.cat([values[~values.isnan()] for values in order.values()])
    assert len(ranks) == path[0].relevant
    for place, circuit in enumerate(path):
        kept = torch.cat([order[layer][mask] for layer, mask in circuit.elements.items()])
        assert len(kept) == len(circuit)
        assert float(kept.min()) >= place + 1
        assert int((ranks >= float(kept.min())).sum()) == len(circuit)
        before = path[place - 1].elements if place else {layer: ~values.isnan() for layer, values in order.items()}
        left = {layer: mask & ~circuit[layer] for layer, mask in before.items()}  # together
        by_score = torch.cat([circuit.saliency[layer][mask] for layer, mask in left.items()]).argsort(stable=True)
        by_rank = torch.cat([order[layer][mask] for layer, mask in left.items()]).argsort(stable=True)
        assert torch.equal(by_score, by_rank)


def case(net, kind="plain"):
    return Case(kind, 0, net.model, net.feature, net.images(24, seed=1000), net.truths)


def test_criteria_that_refit_find_the_truth_and_others_do_not():
    rows = recover(case(plant(1)), criteria=["progressive", "snip", "force", "random", "layer_random"])
    found = {row.criterion: row for row in rows}
    assert found["progressive"].average_precision > 0.9
    assert all(row.average_precision < 0.3 for row in rows if row.criterion != "progressive")
    assert abs(found["random"].auroc - 0.5) < 0.15
    assert found["layer_random"].auroc > found["random"].auroc
    whole = cc.find(plant(1).model, plant(1).feature, plant(1).images(4), criterion="random", density=1.0)
    assert {(row.kernels, row.relevant) for row in rows} == {(38, len(whole))}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_descent_finds_most_of_every_kind_of_network(kind):
    (row,) = recover(case(KINDS[kind](0), kind), criteria=["progressive"])
    assert row.average_precision > 0.8
    assert row.precision > 0.8


def test_a_descent_finds_what_several_mechanisms_depend_on():
    (row,) = recover(case(polysemantic(0)), criteria=["progressive"])
    assert row.average_precision > 0.95


def test_options_are_those_of_the_criterion():
    net = case(plant(0))
    plain, centered = (
        recover(net, criteria=["gauss_newton"], options={"gauss_newton": {"centered": centered}})[0]
        for centered in (False, True)
    )
    assert centered.auroc > plain.auroc
    with pytest.raises(cc.ConvCircuitsError, match="no option 'center'"):
        recover(net, criteria=["gauss_newton"], options={"gauss_newton": {"center": True}})
    with pytest.raises(cc.ConvCircuitsError, match="Similar names: snip"):
        recover(net, criteria=["random", "snap"])


def test_rows_are_data_and_a_table():
    rows = recover(case(plant(0)), criteria=["magnitude", "random"])
    rows += [dataclasses.replace(row, seed=1, auroc=row.auroc / 2) for row in rows]
    assert json.loads(json.dumps(rows[0].as_dict())) == rows[0].as_dict()
    assert list(rows[0].as_dict())[:5] == ["net", "seed", "criterion", "kernels", "relevant"]
    head, one, two = rows.summary().splitlines()
    assert head.split("  ")[0] == "net"
    assert one.startswith("plain  magnitude")
    half, full = rows[2].auroc, rows[0].auroc
    assert f"{(half + full) / 2:.3f} ({half:.3f} to {full:.3f})" in one
    assert "random" in two
    assert repr(rows) == "Recoveries(4 rankings by magnitude, random)"
    assert len(rows.to_pandas()) == 4
    assert "magnitude" in rows._repr_html_()
    assert isinstance(rows, Recoveries)
