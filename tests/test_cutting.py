"""Cutting: what a circuit keeps of a model, and which of its kernels are effective, against search and by hand."""

import pytest
import torch

import convcircuits as cc
from cases import FEATURES, random_masks
from convcircuits.compiler.cutting import cut
from convcircuits.compiler.layout import layout_of
from convcircuits.network.capture import Network
from convcircuits.network.masking import Masks, Subject
from convcircuits.network.reach import survey
from graph_oracle import Graph
from nets import NETS, seeded
from random_nets import RandomNet

torch.set_num_threads(1)


def opened(model, feature, shape):
    network = Network(model)
    subject = Subject(network, feature, survey(network, feature, shape))
    return subject, layout_of(subject, shape)


def kept_by(subject, layout, kernels, effective=True):
    return cut(layout, None if kernels is None else Masks(kernels, effective=effective), subject.survey.rows)


@pytest.mark.oracle
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
def test_nothing_of_the_full_model_counts_for_zero_and_all_that_is_relevant_conducts(name, layer, unit):
    case = NETS[name]
    subject, layout = opened(case.build(), cc.Feature(layer, unit), case.input_shape)
    for kernels, effective in ((None, True), (subject.survey.kernels, False)):
        whole = kept_by(subject, layout, kernels, effective)
        assert whole.alive
        assert not whole.silent
        assert whole.output is None
        found = {name: torch.zeros_like(mask) for name, mask in subject.survey.kernels.items()}
        for number, table in whole.conducting.items():
            value = layout.values[number]
            if value.layer in found:
                found[value.layer] |= table & whole.needed(value)[:, None]
        assert all(torch.equal(found[name], mask) for name, mask in subject.survey.kernels.items())


@pytest.mark.parametrize("name", ["residual", "mobile", "dense", "se_conv", "inception", "grouped"])
def test_a_larger_circuit_keeps_what_a_smaller_one_does(name):
    case = NETS[name]
    subject, layout = opened(case.build(), cc.Feature(*case.features[-1]), case.input_shape)
    for seed in range(5):
        large = random_masks(subject.survey.kernels, 0.8, seed)
        small = random_masks(large, 0.7, seed + 10)
        a, b = (kept_by(subject, layout, masks) for masks in (small, large))
        for number, table in a.conducting.items():
            assert not (table & ~b.conducting[number]).any()
        inner, outer = subject.survey.inside(small), subject.survey.inside(large)
        for layer, kept in inner.items():
            assert not (kept & ~outer[layer]).any()


def test_a_chain_is_cut_as_by_hand():
    """features.0 filters 0, 1 -> features.3 filters 0 (reads 0) and 1 (reads 3, dead) -> features.5 filter 2."""
    case = NETS["plain"]
    subject, layout = opened(case.build(), cc.Feature("features.5", 2), case.input_shape)
    masks = {layer: torch.zeros_like(mask) for layer, mask in subject.survey.kernels.items()}
    masks["features.0"][:2, 1] = True
    masks["features.3"][0, 0] = masks["features.3"][1, 3] = True
    masks["features.5"][2, :2] = True
    kept = kept_by(subject, layout, masks)
    lists = {
        v.layer: (
            kept.conducting[v.number].nonzero().tolist(),
            kept.needed(v).nonzero()[:, 0].tolist(),
        )
        for v in layout.values.values()
        if v.call is not None
    }
    assert lists == {
        "features.0": ([[0, 1], [1, 1]], [0]),
        "features.3": ([[0, 0]], [0]),
        "features.5": ([[2, 0]], [2]),
    }
    assert kept.needed(layout.values[0]).tolist() == [False, True, False]
    effective = subject.survey.inside(masks)
    assert {k: m.nonzero().tolist() for k, m in effective.items()} == {
        "features.0": [[0, 1]],
        "features.3": [[0, 0]],
        "features.5": [[2, 0]],
    }


def test_a_dead_gate_is_needed_and_not_live():
    case = NETS["se_conv"]
    subject, layout = opened(case.build(), cc.Feature("head", 2), case.input_shape)
    masks = {layer: mask.clone() for layer, mask in subject.survey.kernels.items()}
    masks["se.fc2"][1] = False
    kept = kept_by(subject, layout, masks)
    gate = next(v for v in layout.values.values() if v.layer == "se.fc2")
    assert kept.conducting[gate.number].any(1).tolist() == [True, False, True, True]
    assert bool(kept.needed(gate).all())
    assert not any(number == gate.number for _, number in kept.silent)
