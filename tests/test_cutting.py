"""Cutting: what a circuit keeps of a recording, against the probe of reach, graph search and counts by hand."""

import pytest
import torch

import convcircuits as cc
import oracles
from convcircuits.capture import Network
from convcircuits.cutting import cut
from convcircuits.masking import Masks, Subject
from convcircuits.reach import survey
from convcircuits.recording import record
from nets import NETS, seeded
from random_nets import RandomNet
from test_feature_kinds import KINDS
from test_masking import FEATURES, random_masks

torch.set_num_threads(1)


def opened(model, feature, shape):
    network = Network(model)
    subject = Subject(network, feature, survey(network, feature, shape))
    return subject, record(subject, shape)


def kept_by(subject, recording, kernels, silent=True):
    rows = None if subject.survey.direct else subject.survey.rows
    return cut(recording, None if kernels is None else Masks(kernels, silent=silent), rows)


def as_probed(model, feature, shape):
    """Two independent ways to count: channel sets over a recording, and a probe run inside the masks."""
    subject, recording = opened(model, feature, shape)
    for seed, density in enumerate((0.15, 0.3, 0.5, 0.7)):
        masks = random_masks(subject.survey.kernels, density, seed)
        effective = kept_by(subject, recording, masks).effective(recording, masks)
        inside = subject.survey.inside(masks)
        assert list(effective) == list(masks)
        for layer, mask in masks.items():
            assert torch.equal(effective[layer], inside[layer] & mask), (layer, density)
        yield masks, effective


@pytest.mark.parametrize(("name", "layer", "unit"), FEATURES)
def test_effective_kernels_are_those_of_the_probe_and_of_graph_search(name, layer, unit, request):
    case = NETS[name]
    model = case.build()
    for masks, effective in as_probed(model, cc.Feature(layer, unit), case.input_shape):
        expected = oracles.reachable(model, layer, unit, case.input_shape, masks, blocks=case.blocks)
        assert all(torch.equal(effective[k], expected[k]) for k in masks)


@pytest.mark.parametrize(("name", "layer", "unit", "call"), KINDS.values(), ids=KINDS)
def test_effective_kernels_of_every_kind_of_feature_are_those_of_the_probe(name, layer, unit, call, request):
    case = NETS[name]
    assert list(as_probed(case.build(), cc.Feature(layer, unit, call=call), case.input_shape))


@pytest.mark.parametrize("seed", range(30))
def test_effective_kernels_in_random_nets_are_those_of_the_probe(seed, request):
    model = seeded(lambda: RandomNet(seed), seed)()
    assert list(as_probed(model, cc.Feature(model.layer, seed % 3), (3, 7, 6)))


@pytest.mark.parametrize(("name", "layer", "unit"), FEATURES)
def test_the_full_model_keeps_every_relevant_kernel_and_no_other(name, layer, unit):
    case = NETS[name]
    subject, recording = opened(case.build(), cc.Feature(layer, unit), case.input_shape)
    for kernels, silent in ((None, True), (subject.survey.kernels, True), (subject.survey.kernels, False)):
        whole = kept_by(subject, recording, kernels, silent)
        effective = whole.effective(recording, subject.survey.kernels)
        assert all(torch.equal(effective[k], mask) for k, mask in subject.survey.kernels.items())
    assert all(bool(live.all()) for live in whole.live)


@pytest.mark.parametrize("name", ["residual", "mobile", "dense", "se_conv", "inception", "grouped"])
def test_a_larger_circuit_keeps_what_a_smaller_one_does(name):
    case = NETS[name]
    subject, recording = opened(case.build(), cc.Feature(*case.features[-1]), case.input_shape)
    for seed in range(5):
        large = random_masks(subject.survey.kernels, 0.8, seed)
        small = random_masks(large, 0.7, seed + 10)
        a, b = (kept_by(subject, recording, masks) for masks in (small, large))
        for value, inner, outer in zip(recording.values, a.live, b.live, strict=True):
            assert not (inner & ~outer).any(), value.number
        for layer, kept in a.effective(recording, small).items():
            assert not (kept & ~b.effective(recording, large)[layer]).any()


def test_a_chain_is_cut_as_by_hand():
    """features.0 filters 0, 1 -> features.3 filters 0 (reads 0) and 1 (reads 3, dead) -> features.5 filter 2."""
    case = NETS["plain"]
    subject, recording = opened(case.build(), cc.Feature("features.5", 2), case.input_shape)
    masks = {layer: torch.zeros_like(mask) for layer, mask in subject.survey.kernels.items()}
    masks["features.0"][:2, 1] = True
    masks["features.3"][0, 0] = masks["features.3"][1, 3] = True
    masks["features.5"][2, :2] = True
    kept = kept_by(subject, recording, masks)
    calls = {v.layer: v.number for v in recording.values if v.call is not None}
    lists = {
        k: (kept.live[n].nonzero()[:, 0].tolist(), kept.need[n].nonzero()[:, 0].tolist()) for k, n in calls.items()
    }
    assert lists == {"features.0": ([0, 1], [0]), "features.3": ([0], [0]), "features.5": ([0], [0])}  # one row runs
    assert kept.need[0].tolist() == [False, True, False]
    effective = kept.effective(recording, masks)
    assert {k: m.nonzero().tolist() for k, m in effective.items()} == {
        "features.0": [[0, 1]],
        "features.3": [[0, 0]],
        "features.5": [[2, 0]],
    }


def test_a_dead_gate_is_needed_and_not_live():
    case = NETS["se_conv"]
    subject, recording = opened(case.build(), cc.Feature("head", 2), case.input_shape)
    masks = {layer: mask.clone() for layer, mask in subject.survey.kernels.items()}
    masks["se.fc2"][1] = False
    kept = kept_by(subject, recording, masks)
    gate = next(v.number for v in recording.values if v.layer == "se.fc2")
    assert kept.live[gate].tolist() == [True, False, True, True]
    assert bool(kept.need[gate].all())
