"""Cutting: what a circuit keeps of a recording, and which of its kernels are effective, against search and by hand."""

import pytest
import torch

import convcircuits as cc
from convcircuits.capture import Network
from convcircuits.cutting import cut
from convcircuits.masking import Masks, Subject
from convcircuits.reach import survey
from graph_oracle import Graph
from nets import NETS, seeded
from random_nets import RandomNet
from test_masking import FEATURES, random_masks

torch.set_num_threads(1)


def opened(model, feature, shape):
    network = Network(model)
    subject = Subject(network, feature, survey(network, feature, shape))
    return subject, record(subject, shape)


def kept_by(subject, recording, kernels, silent=True):
    rows = None if subject.survey.direct else subject.survey.rows
    return cut(recording, None if kernels is None else Masks(kernels, silent=silent), rows)


@pytest.mark.parametrize("seed", range(30))
def test_effective_kernels_in_random_nets_are_those_of_graph_search(seed):
    model = seeded(lambda: RandomNet(seed), seed)()
    feature, shape = cc.Feature(model.layer, seed % 3), (3, 7, 6)
    found, graph = survey(Network(model), feature, shape), Graph(model, model.layer, shape)
    for density in (0.3, 0.5, 0.7):
        masks = random_masks(found.kernels, density, seed)
        expected, inside = graph.reachable(seed % 3, masks), found.inside(masks)
        assert list(inside) == list(masks)
        for layer, mask in inside.items():
            assert torch.equal(mask, expected[layer]), (layer, density)


@pytest.mark.parametrize(("name", "layer", "unit"), FEATURES)
def test_all_of_the_full_model_is_live(name, layer, unit):
    case = NETS[name]
    subject, recording = opened(case.build(), cc.Feature(layer, unit), case.input_shape)
    for kernels, silent in ((None, True), (subject.survey.kernels, False)):
        whole = kept_by(subject, recording, kernels, silent)
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
        inner, outer = subject.survey.inside(small), subject.survey.inside(large)
        for layer, kept in inner.items():
            assert not (kept & ~outer[layer]).any()


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
    effective = subject.survey.inside(masks)
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
