"""The document's tables, against the model's own weights and what evaluate counts."""

import numpy as np
import pytest
import torch
from torch import nn

import convcircuits as cc
from convcircuits.drawing import data, sheet
from convcircuits.drawing.data import EdgeKind
from convcircuits.drawing.sheet import (
    columns_of,
    edges_of,
    kernel_shape,
    lay_out,
    layers_of,
    nodes_of,
    variants_of,
)
from nets import NETS

CASES = [(name, layer, unit) for name, case in NETS.items() for layer, unit in case.features]


def laid(name, layer, unit, granularity="kernel", density=0.6):
    """A net and two random circuits of it, the first of which is alive, laid out."""
    case = NETS[name]
    model, images = case.build(), case.images(2)
    feature = cc.Feature(layer, unit)

    def found(density, seed):
        return cc.find(model, feature, images, criterion="random", density=density, granularity=granularity, seed=seed)

    def alive(circuit):
        return cc.evaluate(model, circuit, images).effective_kernels > 0

    # Of narrow nets most random filters lead nowhere; where the feature has but two filters, only both do.
    seeds = [(density, seed) for seed in range(40)] + [(1.0, 0)]
    tried = next((at for at in seeds if alive(found(*at))), None)
    assert tried is not None
    circuit, other = found(*tried), found(tried[0], 41)
    return model, images, circuit, other, lay_out(model, circuit, other, case.input_shape, seed=2)


def document(drawing):
    edges, weights = edges_of(drawing, None)
    return data.Document(
        meta=data.Meta("t", "f", "m"),
        columns=columns_of(drawing),
        layers=layers_of(drawing),
        nodes=nodes_of(drawing),
        edges=edges,
        weights=weights,
        target=drawing.graph.goal,
        variants=variants_of(drawing, ["a", "b", "c"]),
        pictures=(),
        tiles=data.Tiles(64),
    )


@pytest.mark.parametrize("granularity", ["filter", "kernel", "weight"])
@pytest.mark.parametrize(("name", "layer", "unit"), CASES)
def test_a_document_counts_what_evaluate_counts_and_holds_the_models_weights(name, layer, unit, granularity):
    model, images, circuit, other, drawing = laid(name, layer, unit, granularity)
    made = document(drawing)
    for variant, one in zip(made.variants, drawing.circuits, strict=True):
        report = cc.evaluate(model, one, images)
        assert (variant.kernels, variant.filters) == (report.effective_kernels, report.effective_filters)
        assert variant.effective == variant.kernels
        assert variant.kept == report.kernels
    assert [len(one) for one in drawing.circuits] == [len(circuit)] * 3
    assert drawing.circuits[1] == other
    seen = {}
    drawing.subject.maps(images, watch=lambda call, output: seen.setdefault(call.layer, call.kernels.flatten(0, 1)))
    edges, dropped = made.edges, granularity == "weight"
    for e in np.flatnonzero(edges.weighted):
        layer_ = made.layers[edges.layer[e]]
        row = 0 if layer_.name == layer and len(seen[layer]) == 1 else edges.out[e]
        expected = seen[layer_.name][row, edges.in_[e]].numpy()
        size = layer_.kernel[0] * layer_.kernel[1]
        found = made.weights[edges.weights[e] : edges.weights[e] + size] / 127 * edges.scale[e]
        right = np.abs(found - expected) <= np.abs(expected).max() / 127
        assert (right | ((found == 0) & dropped)).all()
        assert edges.sign[e] == (-1 if found.sum() * _turned(drawing, e) < -1e-2 else edges.sign[e])


def _turned(drawing, e):
    from convcircuits.drawing.graph import excites

    signs = excites(drawing.recording, int(drawing.graph.call[e]))
    rows = drawing.call(int(drawing.graph.call[e])).rows
    return float(signs[int(drawing.graph.out[e])] if rows is None else signs[rows.tolist().index(drawing.graph.out[e])])


@pytest.mark.parametrize("granularity", ["filter", "kernel", "weight"])
def test_ranks_follow_the_saliency_that_the_circuit_was_pruned_by(granularity):
    *_, drawing = laid("residual", "head", 0, granularity, density=1.0)
    for variant, one in zip(document(drawing).variants, drawing.circuits, strict=True):
        inside = np.flatnonzero(drawing.graph.present[drawing.circuits.index(one)] & (drawing.graph.kind <= 1))
        assert sorted(set(variant.rank[inside])) == list(range(variant.kernels))
        order = inside[np.argsort(variant.rank[inside])]
        assert (np.diff(variant.saliency[order]) <= 0).all()
        for e in inside:
            call = drawing.call(int(drawing.graph.call[e]))
            given = one.saliency[call.layer]
            kept = one.kernels[call.layer]
            o, i = int(drawing.graph.out[e]), int(drawing.graph.inp[e])
            expected = {
                "kernel": lambda given=given, o=o, i=i: given[o, i],
                "weight": lambda given=given, kept=kept, o=o, i=i: given[o, i][kept[o, i]].abs().sum(),
                "filter": lambda given=given, o=o, name=call.layer: (
                    given[o] / drawing.subject.survey.kernels[name][o].sum()
                ),
            }[granularity]()
            assert variant.saliency[e] == pytest.approx(float(expected), rel=1e-5)


def test_a_circuit_that_leads_nowhere_is_an_error():
    case = NETS["plain"]
    model, feature = case.build(), cc.Feature("features.5", 2)
    masks = {"features.0": torch.ones(4, 3)}
    circuit = cc.Circuit.from_masks(model, feature, masks, input_shape=case.input_shape)
    with pytest.raises(cc.ConvCircuitsError, match="nothing to draw"):
        lay_out(model, circuit, None, case.input_shape, 0)


class ChannelNorm(nn.Module):
    """LayerNorm over the channels of each position: every channel is read for the mean and the spread of all."""

    def __init__(self, channels):
        super().__init__()
        self.norm = nn.LayerNorm(channels)

    def forward(self, x):
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def test_kernels_that_act_through_a_normalisation_alone_are_counted_though_they_are_not_drawn():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), ChannelNorm(4), nn.Conv2d(4, 2, 1)).double().eval()
    masks = {"0": torch.ones(4, 3, dtype=torch.bool), "2": torch.tensor([[False, True, False, False]] * 2)}
    circuit = cc.Circuit.from_masks(model, cc.Feature("2", 0), masks, input_shape=(3, 6, 6))
    report = cc.evaluate(model, circuit, torch.randn(2, 3, 6, 6, dtype=torch.float64))
    drawing = lay_out(model, circuit, None, (3, 6, 6), seed=0)
    (variant, _) = variants_of(drawing, ["a", "b"])
    assert (variant.effective, variant.filters) == (report.effective_kernels, report.effective_filters) == (13, 5)
    assert variant.kernels == 4  # filter 1's, and the one that reads it


def test_a_circuit_of_too_many_kernels_is_refused_with_a_size_that_fits(monkeypatch):
    model, _, circuit, _, drawing = laid("plain", "features.5", 2)
    effective = sum(int(mask.sum()) for mask in drawing.masks[0].kernels.values())
    shape = NETS["plain"].input_shape
    monkeypatch.setattr(sheet, "MOST_KERNELS", effective - 1)
    with pytest.raises(cc.ConvCircuitsError, match=f"^{effective} kernels .* at most {effective - 1} can"):
        lay_out(model, circuit, None, shape, seed=2)
    monkeypatch.setattr(sheet, "MOST_KERNELS", effective)
    assert lay_out(model, circuit, None, shape, seed=2).circuits[0] is circuit


def test_columns_are_headed_by_what_their_layers_share():
    *_, drawing = laid("inception", "last", 2, density=1.0)
    assert [column.label for column in columns_of(drawing)] == ["stem", "reduce", "one + three + project", "last"]
    assert [layer.label for layer in layers_of(drawing)][:2] == ["stem", "one"]
    assert kernel_shape(drawing.call(drawing.calls[0])) == (3, 3)


def test_a_direction_weighs_what_it_reads_by_its_coefficients():
    case = NETS["plain"]
    model, feature = case.build(), cc.Feature("features.3", torch.tensor([0.0, 2.0, 0.0, -1.0, 0.0]))
    circuit = cc.find(model, feature, case.images(2), criterion="magnitude", density=1.0)
    drawing = lay_out(model, circuit, None, case.input_shape, 0)
    made = document(drawing)
    readout = made.edges.kind == EdgeKind.READOUT
    units = made.nodes.unit[made.edges.source[readout]]
    assert dict(zip(units.tolist(), made.variants[0].saliency[readout].tolist(), strict=True)) == {1: 2.0, 3: 1.0}
