"""The document's tables, against the model's own weights and what evaluate counts."""

import numpy as np
import pytest
import torch
from torch import nn

import convcircuits as cc
from convcircuits.circuits.evaluation import evaluate_all
from convcircuits.drawing import data, sheet
from convcircuits.drawing.data import EdgeKind
from convcircuits.drawing.edges import edges_of
from convcircuits.drawing.graph import turns
from convcircuits.drawing.sheet import (
    columns_of,
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
    return model, images, circuit, other, lay_out(model, circuit, [other], case.input_shape, seed=2)


def document(drawing):
    edges, weights, _ = edges_of(drawing, None)
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
        tiles=data.Tiles(64, ()),
    )


@pytest.mark.usefixtures("opened_once")
@pytest.mark.parametrize("granularity", ["filter", "kernel", "weight"])
@pytest.mark.parametrize(("name", "layer", "unit"), CASES)
def test_a_document_counts_what_evaluate_counts_and_holds_the_models_weights(name, layer, unit, granularity):
    model, images, circuit, other, drawing = laid(name, layer, unit, granularity)
    made = document(drawing)
    for variant, report in zip(made.variants, evaluate_all(model, drawing.circuits, images), strict=True):
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
    """1, or -1 where the BatchNorm after a kernel, or what follows in a chain of layers, turns what it adds round."""
    g = drawing.graph
    turned = float(turns(drawing.layout, int(g.call[e]))[int(g.out[e])])
    later = [i for i in np.flatnonzero((g.kind == EdgeKind.INNER) & (g.target == g.target[e])) if g.call[i] > g.call[e]]
    if not later:
        return turned
    following = min(later, key=lambda i: g.call[i])
    weights = drawing.call(int(g.call[following])).kernels.flatten(0, 1)[int(g.out[following]), 0]
    kept = torch.stack([circuit.elements[drawing.call(int(g.call[following])).layer] for circuit in drawing.circuits])
    if all(circuit.granularity == "weight" for circuit in drawing.circuits):
        weights = weights * kept.any(0)[int(g.out[following])].reshape(-1)
    return turned * (-1 if float(weights.sum()) * _turned(drawing, following) < 0 else 1)


@pytest.mark.parametrize("name", ["plain", "residual", "mobile", "twice"])
def test_the_first_kernels_by_rank_are_those_that_prune_keeps(name):
    case = NETS[name]
    model, (layer, unit) = case.build(), case.features[-1]
    scores = cc.score(model, cc.Feature(layer, unit), case.images(2), criterion="snip")
    circuit = cc.prune(scores, density=0.8)
    drawing = lay_out(model, circuit, (), case.input_shape, 0)
    made = document(drawing)
    variant, edges = made.variants[0], made.edges
    assert variant.nested
    for k in range(1, len(circuit) + 1):
        fewer = cc.prune(scores, kernels=k).kernels
        for e in np.flatnonzero(drawing.graph.present[0] & edges.weighted):
            kept = bool(fewer[made.layers[edges.layer[e]].name][int(edges.out[e]), int(edges.in_[e])])
            assert (variant.rank[e] < k) == kept


@pytest.mark.parametrize("granularity", ["filter", "kernel", "weight"])
def test_ranks_follow_the_saliency_that_the_circuit_was_pruned_by(granularity):
    *_, drawing = laid("residual", "head", 0, granularity, density=1.0)
    for variant, one in zip(document(drawing).variants, drawing.circuits, strict=True):
        inside = np.flatnonzero(drawing.graph.present[drawing.circuits.index(one)] & (drawing.graph.kind <= 1))
        assert len(set(variant.rank[inside])) == variant.kernels
        assert 0 <= min(variant.rank[inside]) <= max(variant.rank[inside]) < variant.kept
        order = inside[np.argsort(variant.rank[inside])]
        assert (np.diff(variant.saliency[order]) <= 0).all()
        for e in inside:
            call = drawing.call(int(drawing.graph.call[e]))
            given = one.saliency[call.layer]
            kept = one.elements[call.layer]
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
        lay_out(model, circuit, (), case.input_shape, 0)


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
    drawing = lay_out(model, circuit, (), (3, 6, 6), seed=0)
    (variant, _) = variants_of(drawing, ["a", "b"])
    assert (variant.effective, variant.filters) == (report.effective_kernels, report.effective_filters) == (13, 5)
    assert variant.kernels == 4  # filter 1's, and the one that reads it


def test_a_circuit_of_too_many_kernels_is_refused_with_a_size_that_fits(monkeypatch):
    model, _, circuit, _, drawing = laid("plain", "features.5", 2)
    effective = sum(int(mask.sum()) for mask in drawing.masks[0].kernels.values())
    shape = NETS["plain"].input_shape
    monkeypatch.setattr(sheet, "MOST_KERNELS", effective - 1)
    with pytest.raises(cc.ConvCircuitsError, match=f"^{effective} kernels .* at most {effective - 1} can"):
        lay_out(model, circuit, (), shape, seed=2)
    monkeypatch.setattr(sheet, "MOST_KERNELS", effective)
    assert lay_out(model, circuit, (), shape, seed=2).circuits[0] is circuit


def test_columns_are_headed_by_what_their_layers_share():
    *_, drawing = laid("inception", "last", 2, density=1.0)
    assert [column.label for column in columns_of(drawing)] == ["stem", "reduce", "one + three + project", "last"]
    assert [layer.label for layer in layers_of(drawing)][:2] == ["stem", "one"]
    assert kernel_shape(drawing, drawing.calls[0]) == (3, 3)


class VGG(nn.Module):
    """Named and built as torchvision's, but small."""

    def __init__(self):
        super().__init__()
        layers = [nn.Conv2d(3, 2, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(2, 2, 3, stride=2), nn.ReLU()]
        self.features = nn.Sequential(*layers, nn.Conv2d(2, 2, (3, 1), dilation=2), nn.ReLU())

    def forward(self, x):
        return self.features(x)


def test_a_column_says_what_papers_call_its_layer_and_what_a_position_sees():
    model, images = VGG().double().eval(), torch.rand(2, 3, 40, 40, dtype=torch.float64)
    circuit = cc.find(model, cc.Feature("features.5", 0), images, criterion="magnitude", density=1.0)
    document = cc.diagram(model, circuit).document
    assert document.meta.title == "Circuit for conv1_3:0 (features.5:0) of VGG"
    columns = document.columns
    assert [column.alias for column in columns] == ["conv1_1", "conv1_2", "conv1_3"]  # its pooling is no MaxPool2d
    for column in columns:
        x = images[:1].clone().requires_grad_()
        y = x
        for layer in model.features:
            y = (
                layer(y)
                if not isinstance(layer, nn.Conv2d)
                else nn.functional.conv2d(
                    y, torch.ones_like(layer.weight), None, layer.stride, layer.padding, layer.dilation
                )
            )
            if layer is model.get_submodule(column.label):
                break
        y[0, 0, y.shape[2] // 2, y.shape[3] // 2].backward()
        rows, spans = (x.grad[0].abs().sum(dim) > 0 for dim in ((0, 2), (0, 1)))
        assert column.sees == max(int(rows.sum()), int(spans.sum()))
    *_, drawing = laid("inception", "last", 2, density=1.0)
    assert {column.alias for column in columns_of(drawing)} == {""}


def test_a_direction_weighs_what_it_reads_by_its_coefficients():
    case = NETS["plain"]
    model, feature = case.build(), cc.Feature("features.3", torch.tensor([0.0, 2.0, 0.0, -1.0, 0.0]))
    circuit = cc.find(model, feature, case.images(2), criterion="magnitude", density=1.0)
    drawing = lay_out(model, circuit, (), case.input_shape, 0)
    made = document(drawing)
    readout = made.edges.kind == EdgeKind.READOUT
    units = made.nodes.unit[made.edges.source[readout]]
    assert dict(zip(units.tolist(), made.variants[0].saliency[readout].tolist(), strict=True)) == {1: 2.0, 3: 1.0}
    signs = {int(made.nodes.unit[made.edges.source[e]]): int(made.edges.sign[e]) for e in np.flatnonzero(readout)}
    assert signs == {1: 1, 3: -1}
    assert made.nodes.unit[made.target] == -1


class Chain(nn.Module):
    """A layer, the depthwise layer that alone reads it, and a reader."""

    def __init__(self):
        super().__init__()
        self.stem, self.expand, self.depth = nn.Conv2d(3, 2, 1), nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 3, groups=2)
        self.norm, self.project = nn.BatchNorm2d(2), nn.Conv2d(2, 1, 1)

    def forward(self, x):
        return self.project(self.norm(self.depth(self.expand(self.stem(x).relu()).relu())))


@pytest.mark.parametrize("with_images", [False, True])
def test_kernels_before_a_depthwise_one_in_their_node_work_as_it_lets_them(with_images):
    model = Chain().double().eval()
    for layer in (model.stem, model.expand, model.depth, model.project):
        layer.weight.data.abs_()
        layer.bias.data.zero_()
    model.depth.weight.data[1] *= -1
    images = torch.rand(2, 3, 6, 6, dtype=torch.float64)
    for scale, expected in ((1.0, {0: 1, 1: -1}), (-1.0, {0: 1, 1: 1})):
        model.norm.weight.data[1] = scale
        circuit = cc.find(model, cc.Feature("project", 0), images, criterion="magnitude", density=1.0)
        made = cc.diagram(model, circuit, images=images if with_images else None).document
        names = [made.layers[n].name if n >= 0 else "" for n in made.edges.layer]
        signs = {
            (names[e], int(made.edges.out[e])): int(made.edges.sign[e]) for e in np.flatnonzero(made.edges.weighted)
        }
        assert {out: signs["expand", out] for out in (0, 1)} == expected
        assert {out: signs["depth", out] for out in (0, 1)} == expected
        assert signs["stem", 0] == 1


def test_a_kernel_of_a_flattened_map_has_the_maps_shape():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 2 * 8, 3)).double().eval()
    images = torch.randn(2, 3, 4, 10, dtype=torch.float64)
    circuit = cc.find(model, cc.Feature("3", 1), images, criterion="magnitude", density=1.0)
    made = cc.diagram(model, circuit, images=images).document
    assert [layer.kernel for layer in made.layers] == [(3, 3), (2, 8)]
    edge = int(np.flatnonzero(made.edges.layer == 1)[2])
    weights = made.weights[made.edges.weights[edge] :][:16] / 127 * made.edges.scale[edge]
    expected = model[3].weight[1].reshape(4, 16)[made.edges.in_[edge]].detach().numpy()
    np.testing.assert_allclose(weights, expected, atol=made.edges.scale[edge] / 250)
