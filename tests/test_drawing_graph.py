"""Circuits laid over a model's wiring, against masks, unrolled nets and paths followed edge by edge."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import convcircuits as cc
from convcircuits.compiler.layout import layout_of
from convcircuits.drawing.data import EdgeKind
from convcircuits.drawing.graph import graph, kernels_of, turns
from convcircuits.drawing.wiring import SiteKind, wire
from convcircuits.network.capture import Network
from convcircuits.network.masking import Subject
from convcircuits.network.reach import survey
from nets import NETS

CASES = [(name, layer, unit) for name, case in NETS.items() for layer, unit in case.features]


def wired(name, layer, unit):
    case = NETS[name]
    network, feature = Network(case.build()), cc.Feature(layer, unit)
    subject = Subject(network, feature, survey(network, feature, case.input_shape))
    layout = layout_of(subject, case.input_shape)
    return subject, layout, wire(layout, subject.survey.kernels, subject.rows, subject.coefficients)


@pytest.mark.parametrize(("name", "layer", "unit"), CASES)
@pytest.mark.parametrize("density", [1.0, 0.5, 0.25])
def test_edges_are_the_effective_kernels_and_lie_on_complete_paths(name, layer, unit, density):
    subject, layout, wiring = wired(name, layer, unit)
    model, images = NETS[name].build(), NETS[name].images(2)
    circuits = [
        cc.find(model, cc.Feature(layer, unit), images, criterion="random", density=density, seed=seed)
        for seed in (0, 1)
    ]
    masks = [subject.masks(circuit, NETS[name].input_shape, effective=True).kernels for circuit in circuits]
    variants = [kernels_of(c, m, subject.survey.kernels) for c, m in zip(circuits, masks, strict=True)]
    drawn = graph(layout, wiring, subject.rows, variants)
    layers = [None if call < 0 else layout.values[call].call.layer for call in drawn.call]
    for n, mask in enumerate(masks):
        have = {
            (layers[e], int(drawn.out[e]), int(drawn.inp[e]))
            for e in range(len(layers))
            if drawn.call[e] >= 0 and drawn.present[n][e]
        }
        assert have == {(name, *index) for name, kept in mask.items() for index in kept.nonzero().tolist()}
    for e, call in enumerate(drawn.call):
        site = wiring.sites[int(drawn.site[drawn.target[e]])]
        if call >= 0:
            assert call in (site.inner if drawn.kind[e] == EdgeKind.INNER else site.calls)
            assert drawn.channel[drawn.target[e]] == drawn.out[e]
    # Every node but the target is read by some edge, and every edge goes to a later column.
    column = np.array([wiring.columns[int(s)] for s in drawn.site])
    assert set(range(len(column))) == {*drawn.source.tolist(), drawn.goal}
    between = drawn.kind != EdgeKind.INNER
    assert (column[drawn.source[between]] < column[drawn.target[between]]).all()
    assert (drawn.source[~between] == drawn.target[~between]).all()


def laid(name, layer, unit, density, seed=0):
    """One random circuit over a net's wiring, and which of its kernels are effective."""
    subject, layout, wiring = wired(name, layer, unit)
    case = NETS[name]
    circuit = cc.find(
        case.build(), cc.Feature(layer, unit), case.images(1), criterion="random", density=density, seed=seed
    )
    masks = subject.masks(circuit, case.input_shape, effective=True).kernels
    variant = kernels_of(circuit, masks, subject.survey.kernels)
    return layout, wiring, masks, graph(layout, wiring, subject.rows, [variant])


@pytest.mark.parametrize(("name", "layer", "unit"), CASES)
@pytest.mark.parametrize("density", [1.0, 0.8, 0.6])
def test_every_edge_of_a_circuit_connections_too_lies_on_a_way_from_the_image_to_the_target(name, layer, unit, density):
    """A gate alone lets nothing through: it counts behind what is live, and as a way to the target."""
    _, wiring, masks, drawn = laid(name, layer, unit, density)
    live = {n for n, site in enumerate(drawn.site) if wiring.sites[int(site)].kind is SiteKind.IMAGE}
    leads = {drawn.goal}
    edges = list(zip(drawn.source.tolist(), drawn.target.tolist(), drawn.kind.tolist(), strict=True))
    for _ in range(len(wiring.sites)):
        live |= {target for source, target, kind in edges if source in live and kind != EdgeKind.GATE}
        leads |= {source for source, target, _ in edges if target in leads}
    alive = any(kept.any() for kept in masks.values())
    assert alive or density < 1
    assert (drawn.goal in live) == (len(edges) > 0) == alive
    for source, target, _ in edges:
        assert source in live
        assert target in leads


class Unrolled(nn.Module):
    """`Twice` with a layer of its own for each of the two runs."""

    def __init__(self, net):
        super().__init__()
        self.stem, self.head = net.stem, net.head
        self.first, self.second = copy.deepcopy(net.shared), copy.deepcopy(net.shared)

    def forward(self, x):
        x = self.first(self.stem(x).relu()).relu()
        return self.head(self.second(x).relu())


@pytest.mark.parametrize("seed", range(6))
def test_of_a_layer_that_runs_twice_each_run_has_the_kernels_that_are_live_in_it(seed):
    layout, _, _, drawn = laid("twice", "head", 1, 0.45, seed)
    case = NETS["twice"]
    model = Unrolled(case.build())
    circuit = cc.find(case.build(), cc.Feature("head", 1), case.images(1), criterion="random", density=0.45, seed=seed)
    network, feature = Network(model), cc.Feature("head", 1)
    subject = Subject(network, feature, survey(network, feature, case.input_shape))
    kept = dict(circuit.elements)
    kept["first"] = kept["second"] = kept.pop("shared")
    expected = subject.effective({layer: kept[layer] for layer in subject.survey.kernels}, case.input_shape)
    names = {}
    for value in layout.values.values():
        if value.call is not None:
            layer = value.call.layer
            names[value.number] = layer if layer != "shared" else ("second" if "first" in names.values() else "first")
    have = {
        (names[int(call)], int(out), int(inp))
        for call, out, inp, here in zip(drawn.call, drawn.out, drawn.inp, drawn.present[0], strict=True)
        if call >= 0 and here
    }
    assert have == {(layer, *at) for layer, mask in expected.items() for at in mask.nonzero().tolist()}


def test_saliency_is_shared_out_among_kernels_and_summed_over_weights():
    case, feature = NETS["plain"], cc.Feature("features.5", 2)
    model, images = case.build(), case.images(2)
    subject = Subject(Network(model), feature, survey(Network(model), feature, case.input_shape))
    relevant = subject.survey.kernels
    for granularity in ("filter", "kernel", "weight"):
        circuit = cc.find(model, feature, images, criterion="snip", density=0.5, granularity=granularity)
        masks = subject.masks(circuit, case.input_shape, effective=False).kernels
        found = kernels_of(circuit, masks, relevant)
        assert list(found.saliency) == list(found.effective) == list(masks)
        for layer, saliency in found.saliency.items():
            given = circuit.saliency[layer].double().nan_to_num(0).abs()
            assert saliency.shape == relevant[layer].shape
            assert (saliency >= 0).all()
            for out in range(len(saliency)):
                if granularity == "filter":
                    parts = saliency[out][relevant[layer][out]].double()
                    assert parts.sum().item() == pytest.approx(given[out].item(), rel=1e-5)
                    assert len(set(parts.tolist())) <= 1
                for i in range(saliency.shape[1]):
                    if granularity == "kernel":
                        assert saliency[out, i].item() == pytest.approx(given[out, i].item(), rel=1e-6)
                    elif granularity == "weight":
                        weights = given[out, i][circuit.elements[layer][out, i]]
                        assert saliency[out, i].item() == pytest.approx(weights.sum().item(), rel=1e-5)


def test_a_batchnorm_with_a_negative_factor_turns_a_filter_round():
    case = NETS["residual"]
    model, feature = case.build(), cc.Feature("head", 0)
    model.bn.weight.data[1] = -2.0
    network = Network(model)
    layout = layout_of(Subject(network, feature, survey(network, feature, case.input_shape)), case.input_shape)
    stem = next(v.number for v in layout.values.values() if v.call is not None and v.call.layer == "stem")
    assert turns(layout, stem).tolist() == [1, -1, 1, 1]
    assert turns(layout, layout.output.number).tolist() == [1] * layout.output.channels  # no BatchNorm after it


class Beside(nn.Module):
    """Two layers side by side, added to what comes in; a feature of the sum reads one of them."""

    def __init__(self):
        super().__init__()
        self.stem, self.left, self.right = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x):
        x = self.stem(x)
        return x + torch.cat([self.left(x), self.right(x)], 1)


def test_layers_beside_the_path_are_left_out():
    model = Beside().double().eval()
    images = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    whole = nn.Sequential(model)
    circuit = cc.find(whole, cc.Feature("0", 1), images, criterion="magnitude", density=1.0)
    document = cc.diagram(whole, circuit, images=images).document
    assert "right" not in {layer.name.split(".")[-1] for layer in document.layers}
    assert document.variants[0].kernels == cc.evaluate(whole, circuit, images).effective_kernels == 12 + 4
