"""Features of every kind, on every kind of module, against the oracles: what is relevant, maps, scores, figures."""

import math

import numpy as np
import pytest
import torch
import torchvision

import convcircuits as cc
import oracles
from cases import KINDS, assert_scores, close, random_masks, relevant_of
from nets import NETS

torch.set_num_threads(1)

EVERY = pytest.mark.parametrize(("name", "layer", "unit", "call"), KINDS.values(), ids=KINDS)
SEVERAL = {kind: given for kind, given in KINDS.items() if isinstance(given[2], tuple)}
SQUARE = {kind: given for kind, given in SEVERAL.items() if len(given[2]) in (1, 2, 4)}  # orthogonal signs exist
EVERY_SET = pytest.mark.parametrize(("name", "layer", "unit", "call"), SEVERAL.values(), ids=SEVERAL)


# ---------------------------------------- what is relevant, and maps


@EVERY
def test_maps_and_circuits_are_those_of_the_oracles(name, layer, unit, call):
    case = NETS[name]
    model, images, feature = case.build(), case.images(2), cc.Feature(layer, unit, call=call)
    relevant = relevant_of(case, model, layer, unit, call)
    options = {"blocks": case.blocks, "call": call}
    full = oracles.full_map(model, layer, unit, images, call=call)
    assert full.dim() == (4 if isinstance(unit, tuple) else 3) - 2 * (name in ("flat_head", "pooled_head"))
    close(cc.activations(model, feature, images), full)
    for seed, density in enumerate((0.3, 0.7)):
        masks = random_masks(relevant, density, seed)
        circuit = cc.Circuit.from_masks(model, feature, masks, input_shape=case.input_shape)
        assert list(circuit.elements) == list(relevant)
        assert (len(circuit), circuit.relevant) == (oracles.count(masks), oracles.count(relevant))
        run = cc.activations(model, feature, images, circuit=circuit)
        close(run, oracles.circuit_map(model, masks, layer, unit, images, **options))
        run = cc.activations(model, feature, images, circuit=circuit, effective=False)
        close(run, oracles.masked_map(model, masks, layer, unit, images, **options))
    inside = oracles.reachable(model, layer, unit, case.input_shape, masks, **options)
    report = cc.evaluate(model, circuit, images)
    assert report.effective_kernels == oracles.count({k: inside[k] & masks[k] for k in masks})


def test_several_units_are_their_single_maps_in_the_given_order():
    case = NETS["dense"]
    model, images = case.build(), case.images(3)
    maps = cc.activations(model, cc.Feature("layer2", [6, 0, 3]), images)
    singles = [cc.activations(model, cc.Feature("layer2", unit), images) for unit in (6, 0, 3)]
    assert torch.equal(maps, torch.stack(singles, 1))


# ---------------------------------------- scores


@pytest.mark.parametrize("criterion", ["snip", "actgrad"])
@EVERY
def test_scores_are_those_of_the_oracles(name, layer, unit, call, criterion):
    case = NETS[name]
    model, images = case.build(), case.images(2)
    relevant = relevant_of(case, model, layer, unit, call)
    is_linear = oracles.full_map(model, layer, unit, images, call=call).dim() < 3
    collapses = {"all": "abs"} if is_linear else {"all": "abs", "max": "square", "center": "sum", (1, 0): "abs"}
    if layer == "se.sigmoid":
        del collapses[1, 0]  # its map is one value
    for position, collapse in collapses.items():
        feature = cc.Feature(layer, unit, position=position, call=call)
        scores = cc.score(model, feature, images, criterion=criterion, collapse=collapse, batch_size=1)
        options = {"position": position, "collapse": collapse, "blocks": case.blocks, "call": call}
        oracle = {"snip": oracles.snip, "actgrad": oracles.actgrad}[criterion]
        assert_scores(scores, oracle(model, layer, unit, images, **options), relevant)


@pytest.mark.parametrize("centered", [False, True])
@pytest.mark.parametrize(("name", "layer", "unit", "call"), SQUARE.values(), ids=SQUARE)
def test_gauss_newton_is_exact_with_as_many_draws_as_units(name, layer, unit, call, centered):
    case = NETS[name]
    model, images = case.build(), case.images(2)
    options = {"blocks": case.blocks, "call": call}
    relevant = relevant_of(case, model, layer, unit, call)
    shape = oracles.full_map(model, layer, unit, images, call=call).shape[1:]
    position = "all" if len(shape) == 1 else "max"
    signs = [torch.zeros(shape, dtype=torch.float64).index_fill(0, torch.tensor(u), 1.0) for u in range(len(unit))]
    mean = oracles.gauss_newton(
        model, layer, unit, images, signs=signs, centered=centered, position=position, **options
    )
    expected = {name: values * len(unit) for name, values in mean.items()}
    feature = cc.Feature(layer, unit, position=position, call=call)
    for draws in (len(unit), 8):
        assert_scores(cc.score(model, feature, images, draws=draws, centered=centered), expected, relevant)


def test_gauss_newton_over_all_positions_of_several_units():
    case = NETS["plain"]
    model, images = case.build(), case.images(2)
    scores = cc.score(model, cc.Feature("features.5", (2, 0)), images, draws=8)
    expected = oracles.map_change(model, "features.5", (2, 0), images)
    assert_scores(scores, expected, relevant_of(case, model, "features.5", (2, 0), None))


def test_a_set_of_one_scores_as_its_unit():
    case = NETS["residual"]
    model, images = case.build(), case.images(2)
    for criterion in ("snip", "actgrad", "gauss_newton"):
        for position in ("all", "max"):
            one, single = (
                cc.score(model, cc.Feature("block1", unit, position=position), images, criterion=criterion)
                for unit in ([2], 2)
            )
            assert one.kernels == single.elements


@pytest.mark.parametrize("position", ["all", "max"])  # the maximum of the full model, in every masked one
@pytest.mark.parametrize(
    ("name", "layer", "unit", "kernels"), [("residual", "block1", (3, 1), 30), ("dense", "layer2", (0, 6, 3), 20)]
)
def test_force_preserves_several_units(name, layer, unit, kernels, position):
    case = NETS[name]
    model, images, feature = case.build(), case.images(2), cc.Feature(layer, unit, position=position)
    circuit = cc.find(model, feature, images, criterion="force", kernels=kernels, steps=3)
    expected = oracles.force(model, layer, unit, images, kernels, 3, position=position)
    assert not expected.collapsed
    assert all(torch.equal(circuit[layer], mask) for layer, mask in expected.circuit.items())


# ---------------------------------------- figures


def figures(full, kept, fit):
    """The figures of one unit from (N, P) arrays."""
    return {
        "pearson": oracles.pearson(full, kept),
        "r2": oracles.r2(full, kept),
        "r2_readout": oracles.readout_r2(*fit, full, kept),
        "pearson_max": oracles.pearson(full.max(1), kept.max(1)),
    }


@pytest.mark.parametrize("position", ["all", "max"])
@EVERY_SET
def test_figures_are_means_over_units_and_errors_are_pooled(name, layer, unit, call, position):
    case = NETS[name]
    model, images, fit = case.build(), case.images(5), case.images(4, seed=1)
    feature = cc.Feature(layer, unit, position=position, call=call)
    masks = random_masks(relevant_of(case, model, layer, unit, call), 0.85, 3)
    circuit = cc.Circuit.from_masks(model, feature, masks, input_shape=case.input_shape)
    report = cc.evaluate(model, circuit, images, fit=fit, batch_size=2)

    def values(given):
        full = oracles.full_map(model, layer, unit, given, call=call)
        kept = oracles.circuit_map(model, masks, layer, unit, given, blocks=case.blocks, call=call)
        full, kept = (maps.reshape(len(given), len(unit), -1) for maps in (full, kept))
        if position == "max":
            best = full.argmax(2, keepdim=True)
            full, kept = full.gather(2, best), kept.gather(2, best)
        return full.numpy(), kept.numpy()

    full, kept = values(images)
    trained = values(fit)
    gap, best = np.abs(kept - full), full.argmax(2)[..., None]
    assert report.error == pytest.approx(gap.mean() / np.abs(full).mean(), rel=1e-9)
    at_max = np.abs(np.take_along_axis(full, best, 2)).mean()
    assert report.error_at_max == pytest.approx(np.take_along_axis(gap, best, 2).mean() / at_max, rel=1e-9)
    assert all(map(math.isnan, report.readout))
    if not any("onstant" in note for note in report.notes):
        by_unit = [figures(full[:, u], kept[:, u], [t[:, u] for t in trained]) for u in range(len(unit))]
        for figure in by_unit[0]:
            expected = np.mean([one[figure] for one in by_unit])
            assert getattr(report, figure) == pytest.approx(expected, rel=1e-7, abs=1e-9), figure
    said = report.summary().split("R2, after a readout")[1].split()[0]
    assert said == ("-" if math.isnan(report.r2_readout) else f"{report.r2_readout:.3f}")


def test_a_set_of_one_is_measured_as_its_unit():
    case = NETS["plain"]
    model, images = case.build(), case.images(5)
    reports = []
    for unit in (2, [2]):
        circuit = cc.find(model, cc.Feature("features.5", unit), case.images(4, seed=1), density=0.6)
        reports.append(cc.evaluate(model, circuit, images, fit=case.images(4, seed=1)).as_dict())
    single, one = reports
    assert single["readout"] != [None, None] == one["readout"]
    single["verdict_sentence"] = single["verdict_sentence"].replace("features.5:2", one["feature"])
    for key in set(single) - {"feature", "readout", "provenance"}:
        assert single[key] == one[key], key


def test_units_that_are_constant_are_named_and_counted_as_documented():
    case = NETS["plain"]
    model, images = case.build(), case.images(5)
    with torch.no_grad():
        model.features[5].weight[1] = 0  # constant in the full model
    masks = {name: kept.clone() for name, kept in relevant_of(case, model, "features.5", (0, 1, 2), None).items()}
    masks["features.5"][2] = False  # constant in the circuit
    feature = cc.Feature("features.5", [0, 1, 2])
    circuit = cc.Circuit.from_masks(model, feature, masks, input_shape=case.input_shape)
    report = cc.evaluate(model, circuit, images)
    full = oracles.full_map(model, "features.5", 2, images)
    assert report.pearson == pytest.approx((1 + 0) / 2)
    assert report.pearson_max == pytest.approx((1 + 0) / 2)
    assert report.r2 == pytest.approx((1 + oracles.r2(full, 0 * full)) / 2)
    notes = " ".join(report.notes)
    assert "left out of r and R2: unit 1." in notes
    assert "counted as r = 0: unit 2." in notes
    everything_constant = cc.Circuit.from_masks(
        model, cc.Feature("features.5", [1]), masks, input_shape=case.input_shape
    )
    assert math.isnan(cc.evaluate(model, everything_constant, images).r2)


# ---------------------------------------- whole networks


def small(build):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build().eval()


@pytest.mark.zoo
@pytest.mark.parametrize(
    ("build", "layer", "units", "channels"),
    [
        (lambda: torchvision.models.resnet18(), "layer3", (7, 200), 256),
        (lambda: torchvision.models.googlenet(init_weights=False, aux_logits=False), "inception4a", (0, 510), 512),
    ],
    ids=["resnet18 layer3", "googlenet inception4a"],
)
def test_blocks_of_whole_networks_carry_features(build, layer, units, channels):
    model = small(build)
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    relevant = {}
    for unit in (*units, units, torch.eye(channels)[units[0]] - torch.eye(channels)[units[1]]):
        feature = cc.Feature(layer, unit)
        circuit = cc.find(model, feature, images, criterion="snip", density=0.5)
        relevant[str(feature)] = {name: ~s.isnan() for name, s in circuit.saliency.items()}
        whole = cc.Circuit.from_masks(model, feature, relevant[str(feature)], input_shape=(3, 64, 64))
        assert whole.density == 1
        full = cc.activations(model, feature, images)
        assert torch.equal(cc.activations(model, feature, images, circuit=whole), full)
        assert cc.evaluate(model, circuit, images).effective_kernels > 0
    first, second, both, direction = relevant.values()
    union = {k: first[k] | second[k] if k in first and k in second else first.get(k, second.get(k)) for k in both}
    assert all(torch.equal(both[k], union[k]) and torch.equal(both[k], direction[k]) for k in both)
    if layer == "inception4a":  # unit 0 is of the first branch, unit 510 of the last
        assert "inception4a.branch4.1.conv" not in first
        assert "inception4a.branch1.conv" not in second
