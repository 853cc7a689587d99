"""Finding: exact counts, one rule for ties, and errors that say what to do."""

import copy
import functools
import inspect
import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import convcircuits as cc
import oracles
from convcircuits.circuits.asking import is_descent
from convcircuits.values.tables import LayerTable
from nets import NETS

CASE = NETS["plain"]
MODEL, X = CASE.build(), CASE.images(5)
FEATURE = cc.Feature("features.5", 2)
FULL = cc.prune(cc.score(MODEL, FEATURE, X), density=1.0)
HALF = cc.prune(cc.score(MODEL, FEATURE, X), density=0.5)
SCORED = [name for name, one in cc.CRITERIA.items() if not is_descent(one)]
"""Descents, which do more than score, have laws of their own in ``test_descent``."""
ONE_SHOT = [name for name in SCORED if name != "force"]
quick = settings(database=None, max_examples=60)


def options(criterion):
    return {"like": HALF} if criterion == "layer_random" else {}


# ---------------------------------------- prune

VALUES = st.sampled_from([0.0, 1.0, 2.0, -1.0, math.nan])
TABLES = st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=4).flatmap(
    lambda shapes: st.tuples(
        *[st.lists(st.lists(VALUES, min_size=i, max_size=i), min_size=o, max_size=o) for o, i in shapes]
    )
)


def tied(tables):
    """Scores with many ties; the layers' names are not in alphabetical order."""
    kernels = LayerTable({f"layer{9 - n}": torch.tensor(values) for n, values in enumerate(tables)})
    scores = cc.Scores(cc.Feature("layer9", 0), kernels, 99, {"weights": "w"})
    assume(scores.relevant > 0)
    return scores


@quick
@given(TABLES, st.floats(0, 1, exclude_min=True))
def test_a_density_keeps_exactly_its_share_the_oracles_best(tables, density):
    scores = tied(tables)
    circuit = cc.prune(scores, density=density)
    expected = max(1, round(density * scores.relevant))
    assert len(circuit) == expected
    best = oracles.topk(scores.elements, expected)
    assert all(torch.equal(circuit[layer], mask) for layer, mask in best.items())
    assert circuit.saliency == scores.elements
    assert circuit.relevant == 99
    assert circuit.feature == scores.feature


@quick
@given(TABLES)
def test_every_number_of_kernels_is_exact_and_nested(tables):
    scores = tied(tables)
    before = None
    for kernels in range(1, scores.relevant + 1):
        circuit = cc.prune(scores, kernels=kernels)
        assert len(circuit) == kernels
        if before is not None:
            assert len(before - circuit) == 0
        before = circuit
    assert all(torch.equal(circuit[layer], ~values.isnan()) for layer, values in scores.elements.items())


def test_pruning_leaves_the_scores_as_they_are_and_says_what_was_asked():
    scores = cc.score(MODEL, FEATURE, X)
    before = copy.deepcopy(scores)
    assert cc.prune(scores, density=0.5).provenance["asked"] == {"density": 0.5}
    assert cc.prune(scores, kernels=7).provenance["asked"] == {"kernels": 7}
    assert cc.prune(scores, density=0.5).provenance["elements"] == round(0.5 * scores.relevant)
    assert scores == before


BUDGETS = {
    "none": ({}, "Give either density, a share in .*, or kernels, a number"),
    "both": ({"density": 0.5, "kernels": 5}, "Give either density, a share in .*, or kernels, a number"),
    **{
        f"density {d}": ({"density": d}, r"density must be in \(0, 1\]")
        for d in (0, 0.0, -0.1, 1.0001, 2, True, False, math.nan, math.inf, "0.5", [0.5])
    },
    **{
        f"kernels {k}": ({"kernels": k}, "kernels must be a whole number from 1")
        for k in (0, -1, True, False, 1.5, math.nan, "5", [5])
    },
    "too many": ({"kernels": 38}, "38 kernels were requested, but only 37 have a score"),
}


@pytest.mark.parametrize(("budget", "said"), BUDGETS.values(), ids=BUDGETS)
@pytest.mark.parametrize("criterion", ["prune", "magnitude", "force"])
def test_a_budget_out_of_range_is_refused(criterion, budget, said):
    scores = cc.score(MODEL, FEATURE, X[:1], criterion="magnitude")
    assert scores.relevant == 37
    run = functools.partial(cc.find, MODEL, FEATURE, X[:1], criterion=criterion)
    if criterion == "prune":
        run = functools.partial(cc.prune, scores)
    with pytest.raises(cc.ConvCircuitsError, match=said):
        run(**budget)


@pytest.mark.parametrize("budget", [{"density": 1}, {"density": 1.0}, {"kernels": 37}])
def test_the_largest_budget_keeps_all(budget):
    assert cc.find(MODEL, FEATURE, X, **budget).density == 1.0


def test_prune_takes_scores_only():
    with pytest.raises((TypeError, cc.ConvCircuitsError)):
        cc.prune(HALF, density=0.5)


# ---------------------------------------- find


@pytest.mark.parametrize("criterion", ONE_SHOT)
@pytest.mark.parametrize("budget", [{"density": 0.3}, {"kernels": 1}], ids=str)
def test_find_is_prune_of_score(criterion, budget):
    found = cc.find(MODEL, FEATURE, X, criterion=criterion, seed=3, **budget, **options(criterion))
    scores = cc.score(MODEL, FEATURE, X, criterion=criterion, seed=3, **options(criterion))
    assert found == cc.prune(scores, **budget)
    assert found.saliency == scores.elements
    assert found.provenance == cc.prune(scores, **budget).provenance


@pytest.mark.parametrize("kernels", [1, 2, 11, 36, 37])
def test_force_keeps_exactly_the_budget(kernels):
    assert len(cc.find(MODEL, FEATURE, X, criterion="force", kernels=kernels)) == kernels


def test_score_refuses_force_and_points_to_find():
    with pytest.raises(cc.ConvCircuitsError, match=r"use find\(.*criterion='force', density="):
        cc.score(MODEL, FEATURE, X, criterion="force")


@pytest.mark.parametrize("criterion", cc.CRITERIA)
def test_inside_a_circuit_only_its_kernels_are_scored_and_kept(criterion):
    found = cc.find(MODEL, FEATURE, X, criterion=criterion, kernels=9, circuit=HALF, **options(criterion))
    assert len(found - HALF) == 0
    assert len(found) == 9
    assert found.relevant == HALF.relevant
    assert all(torch.equal(~found.saliency[layer].isnan(), HALF[layer]) for layer in HALF.kernels)
    assert found.provenance["inside"] == HALF.provenance


def test_inside_the_full_circuit_scores_are_those_of_the_model():
    inside = cc.score(MODEL, FEATURE, X, circuit=FULL)
    assert list(inside.kernels) == list(FULL.kernels)
    for layer, values in cc.score(MODEL, FEATURE, X).kernels.items():
        torch.testing.assert_close(inside[layer], values, equal_nan=True)


@pytest.mark.parametrize(
    "other", [cc.Feature("features.5", 1), cc.Feature("features.5", torch.tensor([1.0, 1, 0, 0]))], ids=str
)
def test_a_circuit_of_another_feature_is_no_place_to_score_in(other):
    with pytest.raises(cc.ConvCircuitsError):
        cc.score(MODEL, other, X, circuit=HALF)


def test_a_budget_above_the_circuit_scored_in_is_refused():
    with pytest.raises(cc.ConvCircuitsError, match="only 18 have a score"):
        cc.find(MODEL, FEATURE, X, kernels=len(HALF) + 1, circuit=HALF)


def test_a_criterion_of_ones_own_is_called_by_its_name_with_its_options():
    def mine(trace, *, times):
        return {layer: torch.full(shape, float(times)) for layer, shape in trace.shapes.items()}

    scores = cc.score(MODEL, FEATURE, X, criterion=mine, times=2)
    assert scores.provenance["criterion"] == "mine"
    assert scores.provenance["options"] == {"times": 2}
    assert {float(v) for t in scores.elements.values() for v in t[~t.isnan()]} == {2.0}

    def budgeted(trace, kernels, *, extra=1):
        assert kernels == 5
        return mine(trace, times=extra)

    assert len(cc.find(MODEL, FEATURE, X, criterion=budgeted, kernels=5)) == 5


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (lambda shape: torch.ones(shape)[:1], "bad returned scores of shape .* expected"),
        (lambda shape: torch.full(shape, math.nan), "bad returned NaN or Inf for features.0"),
        (lambda shape: torch.full(shape, math.inf), "bad returned NaN or Inf for features.0"),
    ],
    ids=["shape", "NaN", "Inf"],
)
def test_a_criterion_that_gives_nonsense_is_named(values, said):
    def bad(trace):
        return {layer: values(shape) for layer, shape in trace.shapes.items()}

    with pytest.raises(cc.ConvCircuitsError, match=said):
        cc.score(MODEL, FEATURE, X, criterion=bad)


@pytest.mark.parametrize("given", ["none", "zeros"])
def test_scores_that_are_all_zero_are_no_scores(given):
    def nothing(trace):
        return {layer: torch.zeros(shape) for layer, shape in trace.shapes.items() if given == "zeros"}

    with pytest.raises(cc.ConvCircuitsError, match="nothing scored every kernel 0, so there is nothing to choose by"):
        cc.score(MODEL, FEATURE, X, criterion=nothing)


def test_a_layer_without_scores_counts_as_zero_in_any_mapping():
    keep = {"features.5"}

    def some(trace):
        return LayerTable({layer: torch.ones(s) for layer, s in trace.shapes.items() if layer in keep})

    scores = cc.score(MODEL, FEATURE, X, criterion=some)
    assert scores.relevant == 37
    for layer, values in scores.elements.items():
        assert set(values[~values.isnan()].tolist()) == {1.0 if layer in keep else 0.0}


# ---------------------------------------- what may be given


@pytest.mark.parametrize("criterion", SCORED)
def test_the_form_of_the_images_the_batch_size_and_the_mode_do_not_matter(criterion):
    def found(images, batch_size, model=MODEL):
        return cc.find(
            model, FEATURE, images, criterion=criterion, kernels=12, batch_size=batch_size, **options(criterion)
        )

    expected = found(X, 16)
    loader = DataLoader(TensorDataset(X, torch.zeros(5)), batch_size=2)
    training = CASE.build().train()
    for again in (found(X, 1), found(X.flip(0), 3), found(loader, 2), found([X[:4], X[4:]], 9)):
        assert again == expected
        assert again.provenance == expected.provenance
        for layer, values in expected.saliency.items():
            torch.testing.assert_close(again.saliency[layer], values, equal_nan=True)
    assert found(X, 16, training) == expected
    assert all(module.training for module in training.modules())


def test_a_model_with_batch_norm_in_train_mode_is_scored_as_in_eval_mode():
    case = NETS["residual"]
    model, feature = case.build(), cc.Feature(*case.features[-1])
    expected = cc.score(model, feature, case.images())
    before = copy.deepcopy(model.state_dict())
    assert cc.score(model.train(), feature, case.images()) == expected
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("criterion", SCORED)
def test_progress_is_told_and_ends_at_the_total(criterion):
    told = []
    cc.find(
        MODEL,
        FEATURE,
        X,
        criterion=criterion,
        kernels=5,
        batch_size=2,
        progress=lambda *n: told.append(n),
        **options(criterion),
    )
    total = 5 * (1 + 10 if criterion == "force" else 1)  # images times passes
    assert told
    assert told[-1] == (total, total)
    assert {whole for _, whole in told} == {total}
    assert [done for done, _ in told[:3]] == [2, 4, 5]


def test_progress_over_a_loader_has_no_total():
    told = []
    cc.score(MODEL, FEATURE, [X[:2], X[2:]], progress=lambda *n: told.append(n))
    assert told == [(2, None), (5, None)]


NO_KERNELS = nn.Sequential(nn.Identity(), nn.MaxPool2d(2), nn.Conv2d(3, 2, 3)).double()
BAD = {
    "unknown layer": ({"feature": cc.Feature("feature.5", 2)}, r"no layer 'feature.5'. Similar names: .*features.5"),
    "far layer": ({"feature": cc.Feature("qqq", 2)}, "no layer 'qqq'. Known names: features"),
    "unit": ({"feature": cc.Feature("features.5", 4)}, r"Unit 4 does not exist: features.5 has 4 channels"),
    "direction": ({"feature": cc.Feature("features.5", torch.ones(5))}, "one coefficient per channel"),
    "position": ({"feature": cc.Feature("features.5", 2, position=(2, 0))}, "outside the 2 x 2 map"),
    "no such call": ({"feature": cc.Feature("features.5", 2, call=1)}, "runs only 1 times"),
    "identity": ({"model": NO_KERNELS, "feature": cc.Feature("0", 1)}, "choose a later layer"),
    "first pooling": ({"model": NO_KERNELS, "feature": cc.Feature("1", 1)}, "choose a later layer"),
    "no kernels at all": ({"model": nn.Sequential(nn.ReLU())}, "no floating-point parameters"),
    "no module": ({"model": "alexnet"}, "Expected a torch.nn.Module, got str"),
    "channels": ({"images": X[:, :2]}, "features.0 expects 3 channels, but got 2"),
    "small": ({"images": X[:, :, :1, :1]}, "cannot run on images of shape|too small"),
    "no images": ({"images": X[:0]}, "There are no images"),
    "an empty batch": ({"images": [X[:0]]}, "There are no images"),
    "NaN": ({"images": X * math.nan}, "NaN or Inf"),
    "Inf": ({"images": X / 0}, "NaN or Inf"),
    "integers": ({"images": X.long()}, "look unprepared"),
    "3-D": ({"images": X[0]}, r"\(N, C, H, W\)"),
    "generator": ({"images": (x for x in [X])}, "one-shot iterator"),
    "batch_size": ({"batch_size": 0}, "batch_size must be a whole number"),
    **{f"memory {m}": ({"memory": m}, "memory, in bytes, must be a whole") for m in (0, -1, 1.5, True, None, "1GB")},
    **{f"seed {s}": ({"seed": s}, "seed") for s in ("a", 1.5, None, 2**70)},
    "criterion": ({"criterion": "sinp"}, "no criterion 'sinp'. Similar names: snip"),
    "criterion number": ({"criterion": 5}, "no criterion 5"),
    "criterion list": ({"criterion": ["snip"]}, "no criterion"),
    "option": ({"colapse": "sum"}, "no option 'colapse'"),
    "near option": ({"criterion": "snip", "colapse": "sum"}, "snip has no option 'colapse'. Similar names: collapse"),
    "collapse": ({"criterion": "snip", "collapse": "mean"}, "collapse must be one of 'abs', 'sum', 'square'"),
    "normalizer": ({"criterion": "snip", "normalizer": "l2"}, "normalizer must be one of"),
    "draws": ({"draws": 0}, "draws must be a whole number"),
    "missing option": ({"criterion": "layer_random"}, "needs the option like"),
    "circuit": ({"circuit": "c"}, "Expected a Circuit, got str"),
    "empty circuit": ({"circuit": HALF - HALF}, "keeps nothing"),
    "feature text": ({"feature": "features.5:2"}, "Feature"),
}


@pytest.mark.parametrize(("given", "said"), BAD.values(), ids=BAD)
@pytest.mark.parametrize("function", [cc.score, cc.find], ids=["score", "find"])
def test_what_does_not_fit_is_named(function, given, said):
    arguments = {"model": MODEL, "feature": FEATURE, "images": X} | given
    if function is cc.find:
        arguments["kernels"] = 5
    with pytest.raises(cc.ConvCircuitsError, match=said):
        function(**arguments)


@pytest.mark.parametrize("steps", [0, -1, True, 1.5])
def test_bad_steps_of_force_are_refused(steps):
    with pytest.raises(cc.ConvCircuitsError, match="steps must be a whole number"):
        cc.find(MODEL, FEATURE, X, criterion="force", kernels=5, steps=steps)


def test_a_budget_is_refused_before_any_work_is_done():
    def never(trace):
        raise AssertionError

    with pytest.raises(cc.ConvCircuitsError, match="density"):
        cc.find(MODEL, FEATURE, X, criterion=never, density=2.0)


@pytest.mark.parametrize("function", [cc.score, cc.find, cc.prune, cc.evaluate, cc.activations])
def test_everything_after_the_first_arguments_is_keyword_only(function):
    parameters = inspect.signature(function).parameters.values()
    positional = [p for p in parameters if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    assert len(positional) <= 3
    assert all(p.default is inspect.Parameter.empty for p in positional)


def test_progress_of_force_goes_once_from_nothing_to_all_passes():
    case, seen = NETS["plain"], []
    cc.find(
        case.build(),
        cc.Feature("features.3", 1),
        case.images(3),
        criterion="force",
        density=0.5,
        steps=4,
        batch_size=2,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1] == (15, 15)
    assert {total for _, total in seen} == {15}
