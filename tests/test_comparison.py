"""A comparison is find and evaluate, done for each row, and nothing else."""

import dataclasses
import inspect
import json

import pytest
import torch

import convcircuits as cc
from convcircuits.circuits import criteria as criteria_module
from convcircuits.circuits.comparison import compare
from nets import NETS

CRITERIA = ["snip", "force", "random", "actgrad", "gauss_newton", "magnitude", "layer_random"]
DENSITIES = [0.5, 0.1, 0.9]  # in no order
OPTIONS = {"force": {"steps": 3}, "actgrad": {"signed": True}}
KEYS = [
    *("criterion", "density", "pearson", "r2", "r2_interior", "r2_rectified", "r2_training"),
    *(
        "r2_average_map",
        "r2_average_map_interior",
        "r2_average_map_rectified",
        "r2_random",
        "r2_random_interior",
        "r2_random_rectified",
        "verdict",
        "interior",
        "interior_share",
    ),
    *("maxima_at_border", "positive", "r2_readout", "error", "error_at_max", "pearson_max"),
    *("kernels", "effective_kernels", "filters", "effective_filters", "relevant", "images"),
    "constants",
]


@pytest.fixture(scope="module")
def made():
    case = NETS["residual"]
    layer, unit = case.features[-1]
    given = case.build(), cc.Feature(layer, unit), case.images(4), case.images(5, seed=1)
    criteria = [c for c in CRITERIA if c != "layer_random"]  # needs a circuit to be like
    like = cc.find(*given[:3], criterion="snip", density=0.4)
    options = OPTIONS | {"layer_random": {"like": like}}
    seen = []
    criteria.append("layer_random")
    rows = compare(
        *given,
        criteria=criteria,
        densities=DENSITIES,
        options=options,
        seed=7,
        batch_size=3,
        progress=lambda done, total: seen.append((done, total)),
    )
    return given, options, rows, seen


def test_rows_come_in_the_order_asked(made):
    assert [(row.criterion, row.density) for row in made[2]] == [(c, d) for c in CRITERIA for d in DENSITIES]


@pytest.mark.parametrize("index", range(len(CRITERIA) * len(DENSITIES)))
def test_a_row_is_find_and_evaluate_done_by_hand(made, index):
    (model, feature, images, held_out), options, rows, _ = made
    row = rows[index]
    chosen = {"criterion": row.criterion, "seed": 7, "batch_size": 3, **options.get(row.criterion, {})}
    circuit = cc.find(model, feature, images, density=row.density, **chosen)
    assert row.circuit == circuit
    assert row.circuit.provenance == circuit.provenance
    by_hand = cc.evaluate(model, circuit, held_out, fit=images, batch_size=3)
    for field in dataclasses.fields(by_hand):
        got, wanted = getattr(row.evaluation, field.name), getattr(by_hand, field.name)
        if field.name == "provenance":  # a sweep's network rounds as it does
            got, wanted = ({**p, "laws": {**p["laws"], "network": 0}} for p in (got, wanted))
            assert row.evaluation.provenance["laws"]["network"] < 1e-13
        assert got == pytest.approx(wanted, nan_ok=True) if "float" in str(field.type) else got == wanted, field.name


def test_progress_starts_at_zero_climbs_by_one_and_ends_at_the_total(made):
    total = (len(CRITERIA) - 1) + len(DENSITIES) + len(CRITERIA)  # force is found anew at every density
    assert made[3] == [(done, total) for done in range(total + 1)]


@pytest.mark.parametrize("criterion", ["progressive", "learned"])
def test_a_descent_runs_once_through_all_densities(criterion, monkeypatch):
    case = NETS["plain"]
    given = case.build(), cc.Feature("features.5", 2), case.images(4), case.images(5, seed=1)
    options = {"steps": 4, "final": 8} if criterion == "learned" else {}
    runs, descend = [], criteria_module.descend
    monkeypatch.setattr(criteria_module, "descend", lambda *a, **k: runs.append(a[1]) or descend(*a, **k))
    seen = []
    rows = compare(
        *given,
        criteria=[criterion],
        densities=DENSITIES,
        options={criterion: options},
        progress=lambda done, total: seen.append((done, total)),
    )
    assert len(runs) == 1
    assert seen == [(0, 2), (1, 2), (2, 2)]
    path = cc.find_path(*given[:3], criterion=criterion, density=DENSITIES, **options)
    whole = cc.find(*given[:3], criterion="random", density=1.0)
    for row, density in zip(rows, DENSITIES, strict=True):
        assert row.density == density
        asked = row.circuit.provenance["asked"]["kernels"]
        assert asked == round(density * len(whole))
        assert len(row.circuit) == asked or any("effective kernels" in note for note in row.circuit.provenance["notes"])
        assert row.circuit in path
        assert row.evaluation.constants == row.circuit.constants > 0
        assert row.evaluation.r2 == pytest.approx(cc.evaluate(given[0], row.circuit, given[3]).r2, rel=1e-9)


def test_a_row_is_flat_strict_json(made):
    for row in made[2]:
        flat = row.as_dict()
        assert list(flat) == KEYS
        assert all(value is None or isinstance(value, (str, int, float)) for value in flat.values())
        assert json.loads(json.dumps(flat, allow_nan=False)) == flat
        assert flat["density"] == row.density
        assert flat["kernels"] == len(row.circuit)


def test_undefined_figures_become_none():
    case = NETS["no_bias"]
    model, (layer, unit) = case.build(), case.features[0]
    with torch.no_grad():
        rows = compare(
            model, cc.Feature(layer, unit), case.images(2), case.images(1), criteria=["random"], densities=[0.01]
        )
    flat = rows[0].as_dict()
    assert flat["kernels"] == 1
    assert flat["pearson"] is None
    json.dumps(flat, allow_nan=False)


def test_wrong_names_and_densities_are_errors_that_say_so():
    case = NETS["plain"]
    given = case.build(), cc.Feature("features.5", 2), case.images(2), case.images(2, seed=1)
    for criteria, densities, said in (
        (["snap"], [0.5], "snip"),
        (["snip"], [0.0], "0.0"),
        (["force"], [1.5], "1.5"),
    ):
        with pytest.raises(cc.ConvCircuitsError, match=said):
            compare(*given, criteria=criteria, densities=densities)
    with pytest.raises(cc.ConvCircuitsError, match="steeps"):
        compare(*given, criteria=["force"], densities=[0.5], options={"force": {"steeps": 3}})


def test_nothing_but_the_first_four_arguments_is_positional():
    kinds = [p.kind for p in inspect.signature(compare).parameters.values()]
    assert kinds[4:] == [inspect.Parameter.KEYWORD_ONLY] * (len(kinds) - 4)
