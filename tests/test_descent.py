"""Laws of descents: circuits inside each other, of the sizes asked, refitted, and the truth where it is known."""

import copy
import dataclasses
import inspect
import itertools
import json
import math
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

import convcircuits as cc
from cases import LAST, calibration, close
from convcircuits.circuits import descent as descending
from convcircuits.circuits import learning
from convcircuits.circuits.budgets import Drawable
from convcircuits.circuits.control_circuits import redrawn
from convcircuits.circuits.criteria import CRITERIA
from convcircuits.circuits.descent import _narrower, _working
from convcircuits.circuits.learning import Learn, Training
from convcircuits.circuits.refitting import Refit
from convcircuits.circuits.scoring import MEMORY
from convcircuits.circuits.sizes import PARTS
from convcircuits.circuits.tracing import Trace
from convcircuits.circuits.truth import agreement, removal_order
from convcircuits.compiler import sparse
from convcircuits.compiler.extraction import Trainable
from convcircuits.compiler.layout import UnextractableError
from convcircuits.network.batches import Batches
from convcircuits.network.capture import Network
from convcircuits.network.masking import Subject
from convcircuits.zoo.planted import plant, planted_images
from nets import NETS

TWICE = ("shared",)
"""Layers of the nets that run several times."""


def descent(name, **options):
    case = NETS[name]
    model, feature = case.build(), cc.Feature(*case.features[-1])
    return case, model, feature, cc.find_path(model, feature, case.images(6), **{"start": 0.8, **options})


@pytest.mark.parametrize(("name", "layer", "unit"), LAST)
def test_a_descent_gives_nested_refitted_circuits_without_dead_kernels(name, layer, unit):
    case = NETS[name]
    model, feature, images = case.build(), cc.Feature(layer, unit), case.images(6)
    whole = cc.find(model, feature, images, criterion="random", density=1.0)
    path = cc.find_path(model, feature, images, kernels=max(len(whole) // 4, 4), start=0.8)
    sizes = [len(circuit) for circuit in path]
    assert sizes == sorted(sizes, reverse=True)
    for larger, smaller in itertools.pairwise(path):
        assert all(bool((~kept | larger[layer]).all()) for layer, kept in smaller.elements.items())
    for circuit in path:
        asked = circuit.provenance["asked"]["kernels"]
        assert len(circuit) == asked or any("effective kernels" in note for note in circuit.provenance["notes"])
        assert circuit.constants > 0
    for circuit in (path[0], path[-1]):
        report = cc.evaluate(model, circuit, images)
        assert report.effective_kernels == report.kernels == len(circuit)
        again = cc.refit(model, circuit, images, toward=0)
        for mine, theirs in ((circuit.gain, again.gain), (circuit.offset, again.offset)):
            for layer in mine:
                close(mine[layer], theirs[layer])


@pytest.mark.parametrize("name", ["plain", "residual", "mobile"])
def test_find_returns_the_last_circuit_of_a_descent(name):
    case, model, feature, path = descent(name, density=0.3)
    images = case.images(6)
    assert cc.find(model, feature, images, criterion="progressive", density=0.3, start=0.8) == path[-1]
    named = cc.find_path(model, feature, images, criterion=cc.CRITERIA["progressive"], density=0.3, start=0.8)
    assert [circuit.elements for circuit in named] == [circuit.elements for circuit in path]


@pytest.mark.parametrize(("name", "layer", "unit"), LAST)
def test_all_kernels_are_the_model_without_constants(name, layer, unit):
    case = NETS[name]
    model, feature, images = case.build(), cc.Feature(layer, unit), case.images(6)
    whole = cc.find(model, feature, images, density=1.0)
    assert (whole.constants, whole.density) == (0, 1)
    assert cc.evaluate(model, whole, case.images(4, seed=2)).error == 0


def test_a_descent_ends_where_no_kernel_matters_any_more():
    case = NETS["plain"]
    model, images = case.build(), case.images(2)
    feature = cc.Feature("features.5", 1, position="interior")
    circuit = cc.find(model, feature, images, density=0.8)
    given = {"circuit": circuit, "start": 1.0, "kernels": [len(circuit) // part for part in PARTS]}
    path = cc.find_path(model, feature, images, enough=lambda _: True, **given)
    assert path
    with pytest.raises(cc.ConvCircuitsError, match=f"circuit of {len(path[-1])} kernels no kernel changes"):
        cc.find_path(model, feature, images, **given)


def test_all_kernels_of_a_circuit_are_refitted():
    case = NETS["residual"]
    model, feature, images = case.build(), cc.Feature(*case.features[-1]), case.images(6)
    outer = cc.find(model, feature, images, criterion="snip", density=0.5, effective=True)
    inner = cc.find(model, feature, images, circuit=outer, density=1.0)
    assert inner.elements == outer.elements
    assert cc.evaluate(model, inner, images).r2 > cc.evaluate(model, outer, images).r2


@pytest.mark.parametrize("name", ["plain", "residual", "mobile"])
def test_batches_and_order_change_nothing(name):
    case, model, feature, path = descent(name, density=0.3)
    images = case.images(6)
    for given, batch_size in ((images, 2), (images.flip(0), 16), ([images[3:], images[:3]], 3)):
        other = cc.find_path(model, feature, given, density=0.3, start=0.8, batch_size=batch_size)
        assert [circuit.elements for circuit in other] == [circuit.elements for circuit in path]
        for layer, gain in path[-1].gain.items():
            torch.testing.assert_close(other[-1].gain[layer], gain, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", ["plain", "residual", "inception", "mobile"])
def test_a_drawable_circuit_keeps_the_limits(name):
    case, model, _, path = descent(name, filters=2, fan_in=2)
    small = path[-1]
    assert all(int(kept.any(1).sum()) <= 2 and int(kept.sum(1).max()) <= 2 for kept in small.kernels.values())
    report = cc.evaluate(model, small, case.images(4, seed=2))
    assert report.effective_kernels == len(small) > 0
    for larger, smaller in itertools.pairwise(path):
        assert all(bool((~kept | larger[layer]).all()) for layer, kept in smaller.elements.items())


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("name", ["plain", "residual", "mobile", "flat_head"])
def test_no_kernel_does_the_opposite_of_what_it_does_in_the_model(name, trained):
    """In a copy of which half of the weights have the opposite sign, kernels would have to, to do as the model does."""
    case = NETS[name]
    model, feature, images = case.build(), cc.Feature(*case.features[-1]), case.images(16)
    turned, generator = copy.deepcopy(model), torch.Generator().manual_seed(0)
    for weight in (one for one in turned.parameters() if one.dim() > 1):
        weight.data *= (
            2 * torch.randint(0, 2, weight.shape[:2], generator=generator)[(..., *[None] * (weight.dim() - 2))] - 1
        )
    target, subject = (Subject.open(Network(one), feature, tuple(images.shape[1:])) for one in (model, turned))
    batches = Batches(images, device=images.device, dtype=images.dtype, batch_size=16)
    shape = subject.survey.input_shape
    relevant = subject.relevant("kernel", shape)
    trace = Trace(subject, batches, relevant=relevant, seed=0, memory=MEMORY, target=target)
    circuit = cc.find(turned, feature, images, criterion="snip", density=0.7, effective=True)
    masks = subject.masks(circuit, shape, effective=True)

    def fitted(positive):
        fit = Refit(subject, batches, target=target, positive=positive)
        training = Training(30, 30, 0.05, batch=16, rectified=0.5, tolerance=0.0, seed=0, polish=20)
        gain, offset = (Learn(trace, fit, training, control=True) if trained else fit)(masks)
        maps = subject.maps(images, dataclasses.replace(masks, gain=gain, offset=offset))
        return min(float(one.min()) for one in gain.values()), float((maps - target.maps(images)).square().mean())

    (lowest, error), (lowest_positive, error_positive) = fitted(False), fitted(True)
    assert lowest < 0 <= lowest_positive
    assert error < error_positive  # which makes it a stricter test of a wrong circuit


@pytest.mark.parametrize(("name", "layer", "unit"), LAST)
def test_what_can_be_drawn_has_no_kernel_that_does_nothing(name, layer, unit):
    """Kernels of gain 0 are dropped, which changes nothing; a filter that has no others keeps them."""
    case = NETS[name]
    model, feature, images = case.build(), cc.Feature(layer, unit), case.images(4)
    subject = Subject.open(Network(model), feature, tuple(images.shape[1:]))
    circuit = cc.find(model, feature, images, criterion="snip", density=0.7, effective=True)
    masks = subject.masks(circuit, subject.survey.input_shape, effective=True)
    dropped = 0
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        gain = {
            a: (torch.rand(mask.shape, generator=generator) > 0.5).double() * 2 for a, mask in masks.kernels.items()
        }
        offset = {a: torch.rand(len(mask), generator=generator).double() for a, mask in masks.kernels.items()}
        kept, left_gain, left_offset = _working(masks.kernels, gain, offset, subject.survey)
        before = subject.maps(images, dataclasses.replace(masks, gain=gain, offset=offset))
        after = subject.maps(images, dataclasses.replace(masks, kernels=kept, gain=left_gain, offset=left_offset))
        close(after, before)
        for a, mask in kept.items():
            assert not (mask & ~masks.kernels[a]).any()
            idle = mask & (gain[a] == 0)
            assert a in TWICE or not (idle.any(1) & (mask & ~idle).any(1)).any()
            dropped += int((masks.kernels[a] & ~mask).sum())
    assert dropped > 0


def test_a_descent_to_what_can_be_drawn_drops_kernels_that_do_nothing(monkeypatch):
    options = {"criterion": "learned", "filters": 3, "fan_in": 4, "steps": 20, "final": 40, "rate": 0.2, "polish": 0}
    dropped = 0
    for name in ("residual", "se_conv", "inception", "mobile"):
        small = descent(name, tolerance=0.0, **options)[-1][-1]
        assert small.provenance["schedule"]["sizes"][-1] == small.provenance["elements"] == len(small)
        for layer, mask in small.elements.items():
            idle = mask & (small.gain[layer] == 0) if layer in small.gain else mask & False
            assert not (idle.any(1) & (mask & ~idle).any(1)).any()
        with monkeypatch.context() as patch:
            patch.setattr(descending, "_working", lambda *parts: parts[:3])
            case, model, feature, path = descent(name, tolerance=0.0, **options)
        dropped += len(path[-1]) - len(small)
        images = case.images(6)
        close(*(cc.activations(model, feature, images, circuit=one) for one in (small, path[-1])))
    assert dropped > 0


@pytest.mark.parametrize("start", [0.2, 0.8, 1.0])
def test_a_descent_passes_through_every_size_that_is_asked_for(start):
    _, _, _, whole = descent("plain", density=1.0, start=1.0)
    kernels = len(whole[-1])
    asked = [kernels // 5, kernels // 2, kernels // 3]
    _, _, _, path = descent("plain", kernels=asked, start=start)
    sizes = [len(circuit) for circuit in path]
    assert set(asked) <= set(sizes)
    assert sizes == sorted(set(sizes), reverse=True)
    assert (sizes[0], sizes[-1]) == (max(round(start * kernels), max(asked)), min(asked))
    for larger, smaller in itertools.pairwise(path):
        assert len(smaller) >= 0.7 * len(larger) or len(larger) - len(smaller) <= 1
        assert all(bool((~kept | larger[layer]).all()) for layer, kept in smaller.elements.items())
    by_density = descent("plain", density=[size / kernels for size in asked], start=start)[3]
    assert by_density == path
    assert [circuit.provenance["path"]["number"] for circuit in path] == list(range(len(path)))


def test_a_descent_ends_with_the_first_circuit_that_is_not_enough():
    _, _, _, whole = descent("plain", kernels=8)
    seen = []
    _, _, _, path = descent("plain", kernels=8, enough=lambda circuit: seen.append(circuit) or len(circuit) > 12)
    assert list(path) == seen == list(whole[: len(path)])
    assert len(path[-1]) <= 12 < len(path[-2])
    assert len(path) < len(whole)
    with pytest.raises(cc.ConvCircuitsError, match="No complete path"):
        descent("plain", kernels=1)
    last = descent("plain", kernels=1, enough=lambda circuit: True)[3][-1]
    assert len(last) <= 4


VARIANTS = {"plain": {}, "batchnorm": {"batchnorm": True}, "residual": {"residual": True}, "grouped": {"groups": 2}}


@pytest.mark.parametrize(("seed", "variant"), [(n % 2, variant) for n, variant in enumerate(VARIANTS)])
def test_a_planted_circuit_is_recovered_and_its_gains_come_out_1(variant, seed):
    """Where one-shot scores fail: cancelling pairs, constants, redundant paths and rescaled channels."""
    planted = plant(seed, dtype=torch.float64, **VARIANTS[variant])
    images = planted_images(48, seed=seed).double()
    snip = cc.score(planted.model, planted.feature, images, criterion="snip")
    count = sum(int(kept.sum()) for kept in planted.truth.values())
    path = cc.find_path(planted.model, planted.feature, images, kernels=count, start=1.0, positions=2000)
    assert agreement(snip.elements, planted.truths).auroc < 0.8
    assert agreement(removal_order(path), planted.truths).auroc >= 0.95
    assert all(torch.equal(path[-1].kernels[layer], truth.bool()) for layer, truth in planted.truth.items())
    last = cc.refit(planted.model, path[-1], images, ridge=1e-6)
    assert cc.evaluate(planted.model, last, planted_images(24, seed=99).double()).r2 > 0.9999
    for layer, kept in last.kernels.items():
        torch.testing.assert_close(last.gain[layer][kept], torch.ones_like(last.gain[layer][kept]), rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"start": 0.0}, "start must be above 0 and at most 1; got 0.0"),
        ({"ratio": 1.0}, "ratio must be above 0 and below 1; got 1.0"),
        ({"scored": 0}, "scored"),
        ({"ridge": -1.0}, "ridge must be"),
        ({"toward": 2}, "toward must be 1 or 0"),
        ({"positive": "yes"}, "positive of progressive is true or false; got 'yes'"),
        ({"positions": 0}, "positions"),
        ({"granularity": "filter"}, "A descent refits kernels"),
        ({"criterion": "snip"}, "snip does not descend"),
        ({"kernels": 3}, "either"),
        ({"density": [0.3, 1.5]}, "1.5"),
        ({"density": []}, "must be in"),
        ({"unknown": 3}, "no option 'unknown'"),
    ],
)
def test_bad_options_are_refused(options, said):
    with pytest.raises(cc.ConvCircuitsError, match=said):
        descent("plain", **{"density": 0.3, **options})


def test_published_budgets_do_not_go_with_a_descent():
    case = NETS["plain"]
    with pytest.raises(cc.ConvCircuitsError, match="keeps only effective kernels"):
        cc.find(
            case.build(),
            cc.Feature(*case.features[-1]),
            case.images(3),
            criterion="progressive",
            density=0.3,
            effective=False,
        )


def test_find_takes_one_size():
    case = NETS["plain"]
    given = case.build(), cc.Feature(*case.features[-1]), case.images(3)
    for size in ({"density": [0.3, 0.1]}, {"kernels": [9, 5]}):
        with pytest.raises(cc.ConvCircuitsError, match="got "):
            cc.find(*given, criterion="progressive", **size)


def test_a_descent_inside_a_circuit_stays_inside():
    case = NETS["residual"]
    model, feature, images = case.build(), cc.Feature(*case.features[-1]), case.images(6)
    outer = cc.find(model, feature, images, density=0.7)
    inner = cc.find(model, feature, images, criterion="progressive", density=0.4, circuit=outer, start=0.8)
    assert all(bool((~kept | outer[layer]).all()) for layer, kept in inner.elements.items())
    assert inner.provenance["inside"] == outer.provenance


def test_the_random_circuit_is_refitted_like_the_circuit():
    case, model, _, path = descent("plain", density=0.6)
    images, held_out = case.images(6), case.images(6, seed=3)
    report = cc.evaluate(model, path[-1], held_out, fit=images)
    bare = dataclasses.replace(path[-1], gain={}, offset={})
    assert report.r2_random != cc.evaluate(model, bare, held_out, fit=images).r2_random
    assert any("constants that were fitted on 6 images" in note for note in report.notes)
    alone = cc.evaluate(model, path[-1], held_out)
    assert any("comparison favors the circuit" in note for note in alone.notes)
    assert any("are the images that it is measured on" in note for note in cc.evaluate(model, path[-1], images).notes)


@pytest.mark.parametrize(("name", "layer", "unit"), LAST)
def test_a_trainable_module_takes_gains_and_offsets(name, layer, unit, monkeypatch):
    case = NETS[name]
    model, feature, images = case.build(), cc.Feature(layer, unit), case.images(3)
    plain = cc.find(model, feature, images, density=0.6)
    circuit = dataclasses.replace(plain, **calibration(plain.kernels))
    subject = Subject.open(model, feature, tuple(images.shape[1:]))
    masks = subject.masks(circuit, tuple(images.shape[1:]), effective=True)
    kept = masks.kernels.items()
    gains = torch.cat([masks.gain[layer][mask] for layer, mask in kept]).requires_grad_()
    offsets = torch.cat([masks.offset[layer][mask.any(1)] for layer, mask in kept]).requires_grad_()
    slopes = []
    for most in (0.0, 2.0):  # convolutions as they are, and sparse ones wherever these can stand for them
        monkeypatch.setattr(sparse, "_DENSE", most)
        monkeypatch.setattr(sparse.SparseConv2d, "_is_faster", lambda *_: True)
        trainable = Trainable.of(subject, masks)
        left = [part for part in trainable.module.modules() if isinstance(part, torch.nn.Conv2d)]
        assert not most or not any(sparse.is_worth_it(part, torch.zeros(1)) for part in left)
        maps = trainable(images, gains, offsets)
        close(maps.detach(), cc.activations(model, feature, images, circuit=circuit))
        slopes.append(torch.autograd.grad(maps.square().sum(), [gains, offsets], allow_unused=True))
        assert any(bool(one.any()) for one in slopes[-1] if one is not None)
    for one, other in zip(*slopes, strict=True):
        if one is not None:
            close(other, one)


# ---------------------------------------- trained constants


@pytest.mark.parametrize(("name", "layer", "unit"), LAST)
def test_training_lowers_the_error_on_its_images(name, layer, unit):
    case = NETS[name]
    model, feature, images = case.build(), cc.Feature(layer, unit), case.images(16)
    options = {
        "density": 0.4,
        "start": 0.4,
        "rectified": 0.0,
        "tolerance": 0.0,
    }  # one circuit, so that both have the same kernels
    refitted = cc.find(model, feature, images, criterion="learned", steps=0, final=0, **options)
    trained = cc.find(model, feature, images, criterion="learned", final=100, rate=0.003, batch=16, **options)
    closed = cc.find(model, feature, images, criterion="progressive", positive=True, density=0.4, start=0.4)
    assert refitted == closed
    assert trained.elements == refitted.elements
    before, after = (cc.evaluate(model, circuit, images).r2 for circuit in (refitted, trained))
    assert after > before or before > 0.999
    about = trained.provenance["calibration"]["trained"]
    assert about == {
        "steps": 60,
        "final": 100,
        "rate": 0.003,
        "batch": 16,
        "rectified": 0.0,
        "tolerance": 0.0,
        "polish": 200,
        "images": 16,
    }
    assert trained.provenance["cost"]["trained"] == 100 * 16


@pytest.mark.parametrize("name", ["plain", "residual", "mobile"])
def test_training_goes_on_from_the_circuit_that_another_was_cut_from(name):
    case = NETS[name]
    model, feature, images = case.build(), cc.Feature(*case.features[-1]), case.images(16)
    subject = Subject.open(Network(model), feature, tuple(images.shape[1:]))
    batches = Batches(images, device=images.device, dtype=images.dtype, batch_size=16)
    trace = Trace(
        subject, batches, relevant=subject.relevant("kernel", subject.survey.input_shape), seed=0, memory=MEMORY
    )
    circuit = cc.find(model, feature, images, criterion="snip", density=0.4, effective=True)
    masks = subject.masks(circuit, subject.survey.input_shape, effective=True)

    def trained(steps, rate, before=None):
        fit = Refit(subject, batches, ridge=0.0, toward=0.0, positions=None)
        training = Training(steps, steps, rate, batch=16, rectified=0.0, tolerance=0.0, seed=0)
        gain, offset = Learn(trace, fit, training)(masks, before=before)
        return dataclasses.replace(masks, gain=gain, offset=offset)

    def error(masks):
        return float((subject.maps(images, masks) - subject.maps(images)).square().mean())

    refitted, before = trained(1, 1e-12), trained(400, 0.003)
    again = trained(1, 1e-12, before)
    assert error(before) < 0.99 * error(refitted)
    assert error(again) == pytest.approx(error(before), rel=1e-3)
    worse = dataclasses.replace(before, gain={layer: 5 * gain for layer, gain in before.gain.items()})
    assert error(trained(1, 1e-12, worse)) == pytest.approx(error(refitted), rel=1e-6)


def test_the_last_circuit_takes_its_own_number_of_steps():
    case = NETS["plain"]
    model, feature, images = case.build(), cc.Feature(*case.features[-1]), case.images(16)
    options = {"criterion": "learned", "density": [0.4, 0.2], "start": 0.4, "ratio": 0.45, "tolerance": 0.0, "steps": 3}
    for final, taken in ((7, 7), (0, 0)):
        path = cc.find_path(model, feature, images, final=final, batch=16, **options)
        trained = [circuit.provenance["cost"]["trained"] for circuit in path]
        assert trained == [3 * 16, (3 + taken) * 16]


@pytest.mark.parametrize("name", ["plain", "residual", "mobile", "flat_head"])
def test_the_last_circuit_is_polished_on_all_images(name):
    case = NETS[name]
    model, feature, images = case.build(), cc.Feature(*case.features[-1]), case.images(16)
    options = {"criterion": "learned", "density": [0.6, 0.4], "start": 0.6, "rectified": 0.0, "tolerance": 0.0}

    def path(polish):
        return cc.find_path(model, feature, images, steps=5, final=20, batch=16, rate=0.003, polish=polish, **options)

    plain, polished = path(0), path(30)
    assert [one.gain for one in polished[:-1]] == [one.gain for one in plain[:-1]]  # only the last one
    before, after = (1 - cc.evaluate(model, one[-1], images).r2 for one in (plain, polished))
    assert after < 0.99 * before or before < 1e-6
    cost = [one.provenance["cost"] for one in polished]
    assert all("polished" not in one for one in cost[:-1])
    assert 0 < cost[-1]["polished"] <= 16 * 30 * 1.25 * len(learning._SLOWER)
    assert cost[-1]["polished"] % 16 == 0
    assert f"{cost[-1]['polished']:,} both ways in L-BFGS" in polished[-1].summary()


def test_polishing_on_few_images_never_raises_the_error_on_all(monkeypatch):
    monkeypatch.setattr(learning, "_POLISHED", 1)
    raised = []
    for name in ("plain", "residual", "mobile", "flat_head"):
        case = NETS[name]
        model, feature, images = case.build(), cc.Feature(*case.features[-1]), case.images(12)
        options = {"criterion": "learned", "density": 0.4, "start": 0.4, "rectified": 0.0, "tolerance": 0.0}
        options |= {"final": 60, "rate": 0.003, "batch": 12}
        plain, polished = (cc.find(model, feature, images, polish=polish, **options) for polish in (0, 50))
        before, after = (cc.evaluate(model, one, images).r2 for one in (plain, polished))
        assert after >= before - 1e-9
        raised.append(polished.gain == plain.gain)
    assert any(raised)  # on one image it did, and was taken back


def test_few_images_are_polished_on(monkeypatch):
    monkeypatch.setattr(learning, "_POLISHED", 4)
    case = NETS["plain"]
    model, feature, images = case.build(), cc.Feature(*case.features[-1]), case.images(16)
    options = {"criterion": "learned", "density": 0.4, "start": 0.4, "tolerance": 0.0, "final": 3}
    cost = cc.find(model, feature, images, polish=5, **options).provenance["cost"]
    assert 0 < cost["polished"] <= 4 * 7 * len(learning._SLOWER)


def test_a_circuit_that_is_good_enough_is_not_trained():
    case = NETS["plain"]
    model, feature, images = case.build(), cc.Feature(*case.features[-1]), case.images(16)
    options = {"density": 0.4, "start": 0.4}
    found = cc.find(model, feature, images, criterion="learned", tolerance=1.0, **options)
    assert found == cc.find(model, feature, images, criterion="progressive", positive=True, **options)
    assert "trained" not in found.provenance["cost"]


def test_training_does_not_depend_on_batches_and_order():
    case = NETS["residual"]
    model, feature, images = case.build(), cc.Feature(*case.features[-1]), case.images(12)
    options = {"criterion": "learned", "density": 0.4, "start": 0.4, "tolerance": 0.0, "final": 20, "batch": 5}
    options["polish"] = 3  # more carry rounding on
    one = cc.find(model, feature, images, **options)
    for given, batch_size in ((images.flip(0), 16), ([images[6:], images[:6]], 4)):
        other = cc.find(model, feature, given, batch_size=batch_size, **options)
        for layer, gain in one.gain.items():
            torch.testing.assert_close(other.gain[layer], gain, rtol=1e-6, atol=1e-8)
    assert cc.find(model, feature, images, seed=1, **options) != one


def test_the_loss_can_count_the_rectified_map_alone():
    case = NETS["plain"]
    model, feature, images = case.build(), cc.Feature(*case.features[-1]), case.images(16)
    options = {"criterion": "learned", "density": 0.5, "start": 0.5, "tolerance": 0.0, "final": 200, "batch": 16}
    raw, rectified = (cc.find(model, feature, images, rectified=share, **options) for share in (0.0, 1.0))
    of_raw, of_rectified = (cc.evaluate(model, circuit, images) for circuit in (raw, rectified))
    assert of_rectified.r2_rectified > of_raw.r2_rectified
    assert of_rectified.r2 < of_raw.r2


@pytest.mark.parametrize("position", ["all", "max", "center", "interior", (1, 0)])
def test_a_position_of_the_feature_is_what_is_trained(position):
    case = NETS["plain"]
    layer, unit = case.features[-1]
    model, images = case.build(), case.images(16)
    feature = cc.Feature(layer, unit, position=position)
    options = {
        "criterion": "learned",
        "density": 0.5,
        "start": 0.5,
        "tolerance": 0.0,
        "rectified": 0.0,
        "batch": 16,
        "rate": 0.003,
    }
    before, after = (cc.find(model, feature, images, final=steps, **options) for steps in (0, 300))
    assert cc.evaluate(model, after, images).r2 > cc.evaluate(model, before, images).r2


def test_several_units_are_trained_together():
    case = NETS["plain"]
    layer, _ = case.features[-1]
    model, images, feature = case.build(), case.images(16), cc.Feature(case.features[-1][0], (0, 2))
    options = {
        "criterion": "learned",
        "density": 0.5,
        "start": 0.5,
        "tolerance": 0.0,
        "rectified": 0.0,
        "batch": 16,
        "rate": 0.003,
    }
    before, after = (cc.find(model, feature, images, final=steps, **options) for steps in (0, 300))
    assert layer in after.gain
    assert cc.evaluate(model, after, images).r2 > cc.evaluate(model, before, images).r2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"steps": -1}, "steps"),
        ({"polish": -1}, "polish"),
        ({"rate": 0}, "rate must be above 0 and at most 1; got 0"),
        ({"rectified": 1.5}, "rectified must be from 0 to 1; got 1.5"),
        ({"tolerance": -0.1}, "tolerance must be from 0 to 1; got -0.1"),
        ({"batch": 0}, "batch"),
    ],
)
def test_bad_options_of_training_are_refused(options, said):
    with pytest.raises(cc.ConvCircuitsError, match=said):
        descent("plain", criterion="learned", density=0.3, **options)


@pytest.mark.parametrize("limits", [(1, 1), (2, 2), (2, 3), (4, 3)])
@pytest.mark.parametrize("ratio", [0.5, 0.71, 0.9])
def test_no_limits_are_passed_twice_so_the_last_circuit_is_trained_once(limits, ratio):
    kernels = {"a": torch.ones(40, 3, dtype=torch.bool), "b": torch.ones(9, 40, dtype=torch.bool)}
    passed = _narrower(kernels, Drawable(*limits), ratio)
    assert passed[-1] == Drawable(*limits)
    assert len(set(passed)) == len(passed)
    assert passed == sorted(passed, key=lambda size: (-size.filters, -size.fan_in))


def test_images_of_several_sizes_cannot_be_trained_on():
    case = NETS["plain"]
    images = [case.images(2), torch.nn.functional.pad(case.images(2), (0, 4))]
    with pytest.raises(cc.ConvCircuitsError, match="images of one size"):
        cc.find(case.build(), cc.Feature(*case.features[-1]), images, criterion="learned", density=0.3)


def test_a_descent_aimed_at_another_model_scores_where_that_models_maps_have_their_maxima():
    case = NETS["plain"]
    feature, images = cc.Feature(*case.features[-1], position="max"), case.images(6)
    subject = Subject.open(Network(case.build()), feature, tuple(images.shape[1:]))
    other = redrawn(subject, whole=True)
    kernels = dict(other.survey.kernels)
    batches = Batches(images, device=torch.device("cpu"), dtype=subject.network.dtype, batch_size=6)
    trace = Trace(other, batches, relevant=kernels, memory=MEMORY, target=subject)
    scores = cc.score(other.network.module, feature, images)
    masks = other.masks(cc.prune(scores, density=0.5), images.shape[1:], effective=True)
    highest, own = (one.maps(images).flatten(1).argmax(1) for one in (subject, other))
    assert (highest != own).any()
    for one in (trace, trace.masked(kernels), trace.inside(masks, kernels, batches)):
        assert torch.equal(one.run(images).indices[:, 0], highest)


def test_a_single_value_cannot_be_trained_to():
    case = NETS["plain"]
    feature = cc.Feature(*case.features[-1], position="max")
    with pytest.raises(cc.ConvCircuitsError, match="does not vary on these images, so nothing can be trained"):
        cc.find(case.build(), feature, case.images(1), criterion="learned", density=0.3)


def test_a_model_that_is_no_module_is_trained_by_masked_runs(monkeypatch):
    case = NETS["residual"]
    model, feature, images = case.build(), cc.Feature(*case.features[-1]), case.images(8)
    options = {"criterion": "learned", "density": 0.4, "start": 0.4, "tolerance": 0.0, "final": 5, "polish": 3}
    expected = cc.find(model, feature, images, **options)

    def refuse(subject, masks):
        raise UnextractableError("it cannot be written")

    monkeypatch.setattr(Trainable, "of", refuse)
    found = cc.find(model, feature, images, **options)
    for layer, gain in expected.gain.items():
        torch.testing.assert_close(found.gain[layer], gain, rtol=1e-6, atol=1e-8)
    assert any("trained by masked runs" in note for note in found.provenance["notes"])


# ---------------------------------------- what is reported


COSTS = {  # images forward and backward, of 6
    "snip": ({"criterion": "snip"}, 6, 6),
    "draws": ({"criterion": "gauss_newton", "draws": 3}, 6, 18),
    "force": ({"criterion": "force", "steps": 2}, 18, 18),  # the full model, and two masked ones
    "magnitude": ({"criterion": "magnitude"}, 6, None),  # which counts and hashes the images
}


@pytest.mark.parametrize(("options", "forward", "backward"), COSTS.values(), ids=COSTS)
def test_images_are_counted_where_they_run(options, forward, backward):
    back = {} if backward is None else {"backward": backward}
    case = NETS["plain"]
    model, feature, images = case.build(), cc.Feature(*case.features[-1]), case.images(6)
    found = cc.find(model, feature, images, density=0.5, batch_size=4, **options)
    assert found.provenance["cost"] == {"forward": forward} | back
    if back == {}:
        assert found.summary().splitlines()[-1].endswith("images run: 6 forward, that is 1 pass over its 6 images")
    for times in (1, 2):  # the full model and the circuit
        found = cc.refit(model, found, images, positions=8)
        assert found.provenance["cost"] == {"forward": forward + 12 * times} | back


def test_the_cost_of_a_descent_is_that_of_its_parts():
    case = NETS["plain"]
    model, feature, images = case.build(), cc.Feature(*case.features[-1]), case.images(6)
    path = cc.find_path(model, feature, images, density=[0.4, 0.2], start=0.4, ratio=0.4, scored=4, positions=8)
    scoring, first, circuit = 6, 12, 6  # targets are kept for the second refit
    assert [one.provenance["cost"] for one in path] == [
        {"forward": scoring + first, "backward": 6},
        {"forward": scoring + first + 4 + circuit, "backward": 6 + 4},
    ]
    options = {"density": 0.4, "start": 0.4, "positions": 8, "final": 5, "batch": 4, "tolerance": 0.0}
    trained, polished = (
        cc.find(model, feature, images, criterion="learned", polish=polish, **options).provenance["cost"]
        for polish in (0, 3)
    )
    assert trained["trained"] == polished["trained"] == 5 * 4
    more = trained["forward"] - scoring - first  # targets, error of the refit, spread, error after the steps
    assert more == 4 * 6
    assert polished["forward"] - trained["forward"] == 6  # error after L-BFGS


@pytest.mark.parametrize("criterion", ["progressive", "learned"])
def test_a_circuit_and_its_report_say_seed_schedule_cost_and_gap(criterion):
    case = NETS["residual"]
    model, feature, images = case.build(), cc.Feature(*case.features[-1]), case.images(6)
    options = {"steps": 2, "final": 2} if criterion == "learned" else {}
    path = cc.find_path(
        model, feature, images, criterion=criterion, density=0.3, start=0.6, seed=3, ratio=0.6, **options
    )
    sizes, cost = [len(one) for one in path], path[-1].provenance["cost"]
    schedule = dict(path[-1].provenance["schedule"])
    assert schedule.pop("sizes") == sizes
    function = CRITERIA[criterion]
    defaults = {p.name: p.default for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY}
    assert schedule == defaults | path[-1].provenance["options"]
    assert (schedule["start"], schedule["ratio"], schedule["draws"], schedule["scored"]) == (0.6, 0.6, 1, 64)
    report = cc.evaluate(model, path[-1], case.images(12, seed=1), fit=images)
    line = (
        f"found by {criterion}, seed 3, in {len(path)} cuts, the first to {sizes[0]:,} kernels (start 0.6, ratio 0.6); "
    )
    for text in (report.summary(), path[-1].summary()):
        assert line + f"images run: {cost['forward']:,} forward" in text
        assert f"that is {cost['forward'] / 6:.4g}" in text
    elsewhere = cc.refit(model, path[-1], case.images(4, seed=2))  # what ran on which of the two is not known
    assert "images run: " in elsewhere.summary()
    assert "passes over" not in elsewhere.summary()
    pulled = cc.refit(model, path[-1], case.images(4, seed=2), toward=0)
    weighted = cc.refit(model, path[-1], images, toward=0, weights=[1, 2, 1, 1, 1, 1])
    assert all("then refitted (method kernels)" in one.summary() for one in (elsewhere, pulled, weighted))
    again = {method: cc.refit(model, path[-1], images, method=method) for method in ("kernels", "filters", "none")}
    snip = cc.find(model, feature, images, criterion="snip", density=0.3)
    for method in ("kernels", "filters"):
        for one in (again[method], cc.refit(model, snip, images, method=method)):
            assert f", then refitted (method {method}); images run: " in one.summary()
    assert ", then its constants removed; images run: " in again["none"].summary()
    assert "found by snip, seed 0; images run: " in cc.refit(model, snip, images, method="none").summary()
    held_in = cc.evaluate(model, path[-1], images)
    assert report.r2_training == pytest.approx(held_in.r2, abs=1e-9)
    gap = f"On those images R2 is {held_in.r2:.2f}, here {report.r2:z.2f}: a gap of {held_in.r2 - report.r2:z.2f}."
    assert gap in report.notes
    assert "a gap of" not in held_in.summary()


def test_networks_with_depthwise_layers_start_from_more():
    for name, start in (("plain", 0.25), ("mobile", 0.5)):
        case = NETS[name]
        model, feature = case.build(), cc.Feature(*case.features[-1])
        path = cc.find_path(model, feature, case.images(6), kernels=4, enough=lambda _: False)
        assert path[0].provenance["schedule"]["start"] == start


# ---------------------------------------- checkpoints


@pytest.mark.parametrize("criterion", ["progressive", "learned"])
def test_a_descent_goes_on_from_its_last_cut(criterion, tmp_path):
    case = NETS["residual"]
    model, feature, images = case.build(), cc.Feature(*case.features[-1]), case.images(6)
    options = {"criterion": criterion, "density": 0.2, "start": 0.8}
    options |= {"steps": 5, "final": 5} if criterion == "learned" else {}
    whole = cc.find_path(model, feature, images, **options)
    file = tmp_path / "run.safetensors"

    class StoppedError(Exception):
        pass

    class Stop:
        cuts = 0

        def __call__(self, done, total):
            pass

        def phase(self, description):
            self.cuts += description.startswith("refitting")
            if self.cuts == 4:
                raise StoppedError

    with pytest.raises(StoppedError):
        cc.find_path(model, feature, images, checkpoint=file, progress=Stop(), **options)
    assert cc.load(file) == whole[:3]
    seen = []

    class Watch(Stop):
        def phase(self, description):
            seen.append(description)

    assert cc.find_path(model, feature, images, checkpoint=file, progress=Watch(), **options) == whole
    assert sum(one.startswith("refitting") for one in seen) == len(whole) - 3
    assert cc.load(file) == whole
    assert cc.find_path(model, feature, images, checkpoint=file, **options) == whole  # nothing is left to do
    again, once = ([json.loads(json.dumps(dict(one.provenance))) for one in path] for path in (cc.load(file), whole))
    costs = [[one.pop("cost")["forward"] for one in path] for path in (again, once)]
    assert again == once
    more = [one - other for one, other in zip(*costs, strict=True)]
    anew = {"progressive": 1, "learned": 2}[criterion]  # passes of the full model, for refits and for training
    assert more == [0] * 3 + [anew * len(images)] * (len(whole) - 3)  # which is said
    for change in ({"density": 0.3}, {"start": 0.7}, {"seed": 1}):
        with pytest.raises(cc.ConvCircuitsError, match="is of another run"):
            cc.find_path(model, feature, images, checkpoint=file, **{**options, **change})
    with pytest.raises(cc.ConvCircuitsError, match="is of another run, with images"):
        cc.find_path(model, feature, images[:5], checkpoint=file, **options)
    cc.save(whole[0], file)
    with pytest.raises(cc.ConvCircuitsError, match="holds no path of circuits"):
        cc.find_path(model, feature, images, checkpoint=file, **options)
    with pytest.raises(cc.ConvCircuitsError, match="cannot be written"):
        cc.find_path(model, feature, images, checkpoint=tmp_path / "none" / "run.safetensors", **options)


# Kills itself, as kill -9 does, in the n-th refit or in the middle of the n-th writing of the checkpoint.
KILLED = """
import os, signal, sys
from pathlib import Path
import torch
import convcircuits as cc
from nets import NETS

torch.set_num_threads(1)
what, number, file, criterion = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
case, seen = NETS["residual"], [0]

def count(this):
    seen[0] += this == what
    if seen[0] == number:
        os.kill(os.getpid(), signal.SIGKILL)

class Progress:
    def __call__(self, done, total):
        pass

    def phase(self, description):
        count(description.split()[0])

real = Path.replace
Path.replace = lambda self, place: (count("writing"), real(self, place))[1]
options = {"steps": 3, "final": 3} if criterion == "learned" else {}
cc.find(case.build(), cc.Feature(*case.features[-1]), case.images(6), criterion=criterion, density=0.3, start=0.8,
        progress=Progress(), checkpoint=file, **options)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "number", "written", "criterion"), [("refitting", 3, 2, "learned"), ("writing", 2, 1, "progressive")]
)
def test_a_killed_run_goes_on_and_finds_the_same_circuit(what, number, written, criterion, tmp_path):
    case, file = NETS["residual"], tmp_path / "run.safetensors"
    paths = os.pathsep.join([*sys.path, str(Path(__file__).parent)])
    line = [sys.executable, "-c", KILLED, what, str(number), str(file), criterion]
    ended = subprocess.run(line, env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}, capture_output=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert len(cc.load(file)) == written
    given = (case.build(), cc.Feature(*case.features[-1]), case.images(6))
    options = {"criterion": criterion, "density": 0.3, "start": 0.8}
    options |= {"steps": 3, "final": 3} if criterion == "learned" else {}
    whole, seen = cc.find_path(*given, **options), Phases()
    assert cc.find(*given, checkpoint=file, progress=seen, **options) == whole[-1]
    assert seen.phases[0] == f"going on from {len(whole[written - 1]):,} kernels"
    assert sum(one.startswith("refitting") for one in seen.phases) == len(whole) - written
    assert [path.name for path in tmp_path.iterdir()] == [file.name]  # what was half written is gone


class Phases:
    """A progress callback that remembers the phases."""

    def __init__(self):
        self.phases = []

    def __call__(self, done, total):
        pass

    def phase(self, description):
        self.phases.append(description)


def test_a_checkpoint_of_another_question_is_refused(tmp_path):
    file, feature, images = tmp_path / "run.safetensors", cc.Feature("2", 1), torch.rand(6, 3, 8, 8)

    def net(stride=1):
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Conv2d(4, 3, 3, stride=stride))

    options = {"kernels": 5, "start": 0.9}
    found = cc.find(net(), feature, images, checkpoint=file, **options)
    before = file.read_bytes()
    others = net()
    others[0].weight.data[0, 0, 0, 0] += 1
    asked = {
        "weights": (others, feature, images, options),
        "architecture": (net(stride=2), feature, images, options),
        "feature": (net(), cc.Feature("2", 2), images, options),
        "images": (net(), feature, images.flip(3), options),
        "seed": (net(), feature, images, options | {"seed": 1}),
        "options": (net(), feature, images, options | {"ridge": 0.1}),
        "criterion": (net(), feature, images, options | {"criterion": "learned"}),
        "inside": (net(), feature, images, options | {"circuit": cc.find_path(net(), feature, images, **options)[0]}),
        "path": (net(), feature, images, options | {"kernels": 4}),
    }
    for name, (model, of, on, other) in asked.items():
        with pytest.raises(cc.ConvCircuitsError, match=f"is of another run, with {name} .* remove this one"):
            cc.find(model, of, on, checkpoint=file, **other)
    earlier = dataclasses.replace(found, provenance={**found.provenance, "versions": {"convcircuits": "0.0.1"}})
    cc.save((earlier,), file)
    with pytest.raises(cc.ConvCircuitsError, match="is of another run, with versions"):
        cc.find(net(), feature, images, checkpoint=file, **options)
    other_defaults = dict(found.provenance["schedule"]) | {"ridge": 0.02}  # of a version that had them
    cc.save((dataclasses.replace(found, provenance={**found.provenance, "schedule": other_defaults}),), file)
    with pytest.raises(cc.ConvCircuitsError, match="is of another run, with schedule"):
        cc.find(net(), feature, images, checkpoint=file, **options)
    file.write_bytes(before[:-9])
    with pytest.raises(cc.ConvCircuitsError, match="is not a complete"):
        cc.find(net(), feature, images, checkpoint=file, **options)
    with pytest.raises(cc.ConvCircuitsError, match="snip does not descend, so it has no cuts to go on from"):
        cc.find(net(), feature, images, criterion="snip", kernels=5, checkpoint=file)


@pytest.mark.parametrize("name", ["plain", "residual", "flat_head"])
def test_smaller_steps_are_tried_where_the_error_rises(name, monkeypatch):
    case = NETS[name]
    model, feature, images = case.build(), cc.Feature(*case.features[-1]), case.images(12)
    options = {"criterion": "learned", "density": 0.4, "start": 0.4, "tolerance": 0.0, "batch": 12, "rate": 1.0}
    run = partial(cc.find, model, feature, images, rectified=0.0, **options)
    refitted, slower = run(final=0), run(final=40)
    assert cc.evaluate(model, slower, images).r2 > cc.evaluate(model, refitted, images).r2
    monkeypatch.setattr(learning, "_SLOWER", (1.0,))
    assert run(final=40) == refitted


@pytest.mark.parametrize("name", ["plain", "residual", "flat_head"])
def test_steps_that_raise_the_error_are_taken_back(name, monkeypatch):
    case = NETS[name]
    model, feature, images = case.build(), cc.Feature(*case.features[-1]), case.images(12)
    options = {"criterion": "learned", "density": 0.4, "start": 0.4, "tolerance": 0.0, "batch": 1, "rate": 1.0}
    refitted = cc.find(model, feature, images, final=0, **options)
    monkeypatch.setattr(learning, "_SLOWER", (1.0,))
    found = cc.find(model, feature, images, final=3, polish=0, **options)
    assert found == refitted
    assert any("Training raised the error on its images" in note for note in found.provenance["notes"])


def test_an_error_that_is_not_a_number_is_no_lower_one(monkeypatch):
    case = NETS["plain"]
    model, feature, images = case.build(), cc.Feature(*case.features[-1]), case.images(12)
    options = {"criterion": "learned", "density": 0.4, "start": 0.4, "tolerance": 0.0}
    refitted = cc.find(model, feature, images, final=0, **options)
    trained = learning.Learn._trained
    monkeypatch.setattr(learning.Learn, "_trained", lambda *given: (trained(*given)[0], math.nan))
    found = cc.find(model, feature, images, final=3, **options)
    assert found == refitted
    assert any("Training raised the error on its images" in note for note in found.provenance["notes"])


def test_a_circuit_trained_on_some_of_the_images_says_so(monkeypatch):
    case = NETS["plain"]
    model, feature, images = case.build(), cc.Feature(*case.features[-1]), case.images(7)
    options = {"criterion": "learned", "density": 0.4, "start": 0.4, "tolerance": 0.0, "final": 3, "polish": 0}
    assert not any("trained on" in note for note in cc.find(model, feature, images, **options).provenance["notes"])
    monkeypatch.setattr(learning, "_IN_MEMORY", 5)
    circuit = cc.find(model, feature, images, **options)
    assert any("trained on 5 of the 7 images" in note for note in circuit.provenance["notes"])
    assert circuit.provenance["calibration"]["trained"]["images"] == 5
