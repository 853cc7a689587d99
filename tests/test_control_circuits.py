"""Circuits that show how well any of the same size, treated alike, would do."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

import convcircuits as cc
from convcircuits.circuits.control_circuits import (
    fit_of,
    fitted,
    random_like,
    redrawn,
    relabelled_like,
    treated_alike,
    without,
)
from convcircuits.network.batches import Batches
from convcircuits.network.capture import Network
from convcircuits.network.masking import Subject
from convcircuits.network.reach import survey
from convcircuits.values.tables import LayerTable
from nets import NETS, net

CASE = NETS["plain"]
FEATURE = cc.Feature("features.5", 2)


def subject_of(model):
    network = Network(model)
    return Subject(network, FEATURE, survey(network, FEATURE, CASE.input_shape))


def found(model, criterion="random", density=0.5, granularity="kernel", **options):
    images = CASE.images(5).to(next(model.parameters()).dtype)
    return cc.find(model, FEATURE, images, criterion=criterion, density=density, granularity=granularity, **options)


@pytest.mark.parametrize("granularity", ["kernel", "filter", "weight"])
@pytest.mark.parametrize("density", [0.02, 0.5, 1.0])
def test_it_keeps_as_many_units_of_each_layer_and_no_others_than_are_relevant(granularity, density):
    model = CASE.build()
    circuit = found(model, granularity=granularity, density=density)
    made = [random_like(subject_of(model), circuit, seed=seed) for seed in range(3)]
    for other in made:
        assert other.granularity == granularity
        assert other.feature == circuit.feature
        assert other.relevant == circuit.relevant
        for layer, kept in circuit.elements.items():
            assert other.elements[layer].sum() == kept.sum()
            assert not (other.elements[layer] & circuit.saliency[layer].isnan()).any()
    assert random_like(subject_of(model), circuit, seed=1) == made[1]
    tables = {tuple(torch.cat([kept.flatten() for kept in other.elements.values()]).tolist()) for other in made}
    assert (len(tables) > 1) == (density < 1)


def test_it_runs_where_the_circuit_does():
    for model in (CASE.build(), CASE.build().float()):
        circuit, images = found(model), CASE.images(2).to(next(model.parameters()).dtype)
        maps = cc.activations(model, FEATURE, images, circuit=random_like(subject_of(model), circuit))
        assert maps.dtype == images.dtype


def test_it_is_what_the_criterion_layer_random_keeps():
    model = CASE.build()
    circuit = found(model, "snip")
    made = random_like(subject_of(model), circuit, seed=3)
    again = cc.find(
        model,
        FEATURE,
        CASE.images(1),
        criterion="layer_random",
        kernels=len(circuit),
        like=circuit,
        seed=made.provenance["seed"],
    )
    assert made == again


def test_a_random_circuit_has_a_control_of_its_own():
    model = CASE.build()
    like = found(model, "random", density=0.5)
    circuit = cc.find(model, FEATURE, CASE.images(1), criterion="layer_random", kernels=len(like), like=like, seed=0)
    assert random_like(subject_of(model), circuit, seed=0).kernels != circuit.elements


def test_the_control_of_an_empty_circuit_is_empty():
    model = CASE.build()
    circuit = found(model)
    assert len(random_like(subject_of(model), circuit - circuit)) == 0


def batches_of(images):
    return Batches(images, device=images.device, dtype=images.dtype, batch_size=16)


@pytest.mark.parametrize(
    ("criterion", "options"),
    [
        ("progressive", {"start": 0.3, "toward": 1.0, "positions": 300}),
        ("learned", {"start": 0.3, "steps": 5, "final": 5, "rate": 0.03, "batch": 3, "polish": 0}),
    ],
)
def test_a_circuit_that_is_treated_as_it_was_comes_out_the_same(criterion, options):
    model = CASE.build()
    circuit = found(model, criterion, 0.3, **options)
    again = treated_alike(subject_of(model), circuit, circuit, batches_of(CASE.images(5)))
    assert again == circuit
    assert circuit.constants
    other = replace(circuit, provenance=dict(circuit.provenance) | {"calibration": {"method": "kernels"}})
    assert treated_alike(subject_of(model), circuit, other, batches_of(CASE.images(5))) != circuit


@pytest.mark.parametrize("method", ["kernels", "filters", "mean"])
def test_a_control_is_refitted_as_the_circuit_was(method):
    model, images = CASE.build(), CASE.images(5)
    options = {"method": method, "ridge": 0.3, "positions": 20, "seed": 4}
    circuit = cc.refit(model, found(model), images, **options)
    control = treated_alike(subject_of(model), random_like(subject_of(model), circuit), circuit, batches_of(images))
    bare = replace(control, gain=type(control.gain)(), offset=type(control.offset)())
    assert control == cc.refit(model, bare, images, **options)


def dead_after_a_refit(images):
    """A feature that sees x where a circuit sees |x| alone, which predicts it, but not linearly."""
    model = nn.Sequential(nn.Conv2d(2, 1, 1), nn.ReLU(), nn.Conv2d(1, 1, 1)).double().eval()
    with torch.no_grad():
        for layer, weight, bias in ((0, [4, 0.01], -6), (2, [1], 0.5)):
            model[layer].weight.copy_(torch.tensor(weight).reshape(model[layer].weight.shape))
            model[layer].bias.fill_(bias)
    kept = {"0": torch.tensor([[False, True]]), "2": torch.tensor([[True]])}
    circuit = cc.Circuit.from_masks(model, cc.Feature("2", 0), kept, input_shape=tuple(images.shape[1:]))
    calibration = cc.refit(model, circuit, images).provenance["calibration"] | {
        "trained": {"steps": 5, "final": 5, "rate": 0.02, "batch": 8, "rectified": 0.5, "tolerance": 0.0, "images": 16}
    }
    about = dict(circuit.provenance) | {"calibration": calibration, "cost": {"trained": 8 * 300}}
    return model, replace(cc.refit(model, circuit, images), provenance=about)


def test_a_control_that_its_refit_leaves_without_any_gradient_is_trained_from_elsewhere():
    x = torch.randn(16, 1, 9, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    images = torch.cat([x, x.abs()], 1)
    model, circuit = dead_after_a_refit(images)
    maps = cc.activations(model, circuit.feature, images, circuit=circuit)
    assert bool((maps == maps.flatten()[0]).all())
    subject = Subject.open(Network(model), circuit.feature, tuple(images.shape[1:]))
    fit = fit_of(subject, circuit, batches_of(images))
    trained = fitted(subject, circuit, fit)
    assert cc.evaluate(model, trained, images).r2 > 0.3
    fit = fit_of(subject, circuit, batches_of(images))
    fit._control = False  # in a descent, the circuit before it decides
    assert cc.evaluate(model, fitted(subject, circuit, fit), images).r2 == pytest.approx(0.0, abs=1e-9)


def test_a_control_keeps_the_other_start_if_training_only_raises_its_error(monkeypatch):
    x = torch.randn(16, 1, 9, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    images = torch.cat([x, x.abs()], 1)
    model, circuit = dead_after_a_refit(images)
    subject = Subject.open(Network(model), circuit.feature, tuple(images.shape[1:]))
    learn = fit_of(subject, circuit, batches_of(images))
    masks = subject.masks(replace(circuit, gain=LayerTable(), offset=LayerTable()), images.shape[1:], effective=True)
    refitted, matched, run = learn._fit(masks), learn._moment_matched(masks), learn._runner(masks)
    of_refitted, of_matched = (learn._error(learn._with(one, masks, run)) for one in (refitted, matched))
    assert 0.5 < of_matched < of_refitted
    monkeypatch.setattr(learn, "_trained", lambda start, *_: (start, math.inf))
    for got, wanted in zip(learn(masks), matched, strict=True):
        assert got.keys() == wanted.keys()
        assert all(torch.equal(got[layer], wanted[layer]) for layer in wanted)


@pytest.mark.parametrize("name", ["plain", "residual", "mobile", "dense", "se_conv", "inception"])
def test_the_other_start_has_the_means_and_spreads_of_the_full_model(name):
    case = NETS[name]
    model, feature, images = case.build(), cc.Feature(*case.features[-1]), case.images(12)
    circuit = cc.find(model, feature, images, criterion="learned", density=0.5, start=0.5, steps=1, final=1)
    subject = Subject.open(Network(model), feature, tuple(images.shape[1:]))
    learn = fit_of(subject, circuit, batches_of(images))
    masks = subject.masks(replace(circuit, gain=LayerTable(), offset=LayerTable()), images.shape[1:], effective=True)
    gain, offset = learn._moment_matched(masks)
    full = learn._moments(subject, None)
    own = learn._moments(subject, replace(masks, gain=gain, offset=offset))
    assert any(bool((spread > 0).any()) for _, spread in own.values())
    for layer, mask in masks.kernels.items():
        live = mask.any(1) & (own[layer][1] > 0)
        torch.testing.assert_close(own[layer][:, live], full[layer][:, live])


@pytest.mark.parametrize(("trained", "steps"), [(0, 5), (17, 6), (2100, 500)])
def test_a_control_takes_as_many_steps_as_the_whole_descent_did_up_to_a_limit(trained, steps):
    model = CASE.build()
    circuit = found(model, "learned", 0.3, start=0.3, steps=5, final=5, batch=3)
    said = dict(circuit.provenance) | {"cost": circuit.provenance["cost"] | {"trained": trained}}
    fit = fit_of(subject_of(model), replace(circuit, provenance=said), batches_of(CASE.images(5)))
    assert {fit.about()["trained"][name] for name in ("steps", "final")} == {steps}


def test_controls_are_not_polished():
    model = CASE.build()
    circuit = found(model, "learned", 0.3, start=0.3, steps=5, final=5, batch=3)
    again = treated_alike(subject_of(model), circuit, circuit, batches_of(CASE.images(5)))
    polish = [one.provenance["calibration"]["trained"]["polish"] for one in (circuit, again)]
    assert polish == [200, 0]
    assert again.provenance["cost"]["polished"] == circuit.provenance["cost"]["polished"] > 0
    assert again.provenance["cost"]["trained"] > circuit.provenance["cost"]["trained"]


def test_without_a_calibration_nothing_is_fitted():
    model, images = CASE.build(), CASE.images(5)
    circuit = found(model)
    assert fit_of(subject_of(model), circuit, batches_of(images)) is None
    refitted = cc.refit(model, circuit, images)
    assert fitted(subject_of(model), refitted, None) == circuit


def test_the_rest_of_the_model_without_a_circuit():
    model = CASE.build()
    circuit = cc.refit(model, found(model), CASE.images(5))
    rest = without(subject_of(model), circuit)
    assert not rest.gain
    for layer, relevant in subject_of(model).survey.kernels.items():
        assert torch.equal(rest[layer] | circuit[layer], relevant)
        assert not (rest[layer] & circuit[layer]).any()


def test_a_relabelled_circuit_says_how_it_was_made():
    model = CASE.build()
    circuit = found(model, density=0.3)
    made = [relabelled_like(subject_of(model), circuit, seed=seed) for seed in range(4)]
    assert len({str([mask.tolist() for mask in one.elements.values()]) for one in made}) > 1
    assert made[1] == relabelled_like(subject_of(model), circuit, seed=1)
    assert made[1].provenance["made_by"] == "relabelled"
    assert made[1].provenance["weights"] == circuit.provenance["weights"]


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("name", ["plain", "mobile", "standardised", "twice", "flat_head"])
def test_redrawn_weights_have_the_same_values_in_each_layer(name, whole):
    case = NETS[name]
    model = case.build()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    subject = Subject.open(model, cc.Feature(*case.features[-1]), case.input_shape)
    other = redrawn(subject, whole=whole, seed=3)
    after = other.network.module.state_dict()
    for key, value in before.items():
        assert torch.equal(model.state_dict()[key], value)
        if (kernels_of := subject.survey.kernels.get(key.removesuffix(".weight"))) is not None:
            assert not torch.equal(after[key], value)
            assert torch.equal(after[key].flatten().sort().values, value.flatten().sort().values)
            kernels = [sorted(map(tuple, one.reshape(kernels_of.numel(), -1).tolist())) for one in (after[key], value)]
            assert (kernels[0] == kernels[1]) == (whole or kernels[0][0][1:] == ())  # or of one weight each
        else:
            assert torch.equal(after[key], value)
    again = redrawn(subject, whole=whole, seed=3).network.module.state_dict()
    assert all(torch.equal(again[key], value) for key, value in after.items())


def test_weights_that_are_computed_cannot_be_drawn_again():
    model = net()
    nn.utils.parametrizations.weight_norm(model.conv)
    subject = Subject.open(model, cc.Feature("head", 1), (3, 8, 8))
    with pytest.raises(cc.ConvCircuitsError, match="computed while the model runs, so they cannot be drawn again"):
        redrawn(subject)


def test_a_circuit_of_another_model_is_fitted_to_the_trained_one():
    model, images = CASE.build(), CASE.images(5)
    scaled = CASE.build()
    for layer in ("features.0", "features.3", "features.5"):
        scaled.get_submodule(layer).weight.data *= 0.5
    whole = cc.Circuit.from_masks(
        scaled,
        FEATURE,
        {layer: torch.ones(mask.shape) for layer, mask in subject_of(scaled).survey.kernels.items()},
        input_shape=CASE.input_shape,
    )
    like = cc.refit(scaled, whole, images, ridge=0.0, positions=None)
    fit = fit_of(subject_of(scaled), like, batches_of(images), target=subject_of(model))
    made = fitted(subject_of(scaled), whole, fit)
    for layer, gain in made.gain.items():
        assert torch.allclose(gain[whole[layer]], torch.tensor(2.0, dtype=torch.float64))
    maps = cc.activations(scaled, FEATURE, images, circuit=made)
    assert torch.allclose(maps, cc.activations(model, FEATURE, images))
