"""A circuit on two images: against hooks and loops on the full circuit, and the law that kernels add up to filters."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import convcircuits as cc
from cases import LAST, calibration, circuit_of
from convcircuits.circuits.contrasting import contrasted
from convcircuits.values.tables import LayerTable
from nets import NETS

SOME = [case for case in LAST if case.id in ("plain", "residual", "se_conv", "flat_head", "grouped")]


def place_of(model, feature, images):
    return cc.activations(model, feature, images).reshape(2, -1).argmax(1)


@pytest.mark.parametrize(("name", "layer", "unit"), SOME)
def test_what_kernels_add_differs_by_what_their_filter_differs(name, layer, unit):
    model, feature = NETS[name].build(), cc.Feature(layer, unit)
    images = NETS[name].images(2)
    circuit = circuit_of(model, feature, images, 0.6)
    circuit = replace(circuit, **{k: LayerTable(v) for k, v in calibration(circuit.kernels).items()})
    found = contrasted(model, circuit, images)
    places = place_of(model, feature, images)
    for values, of in ((found.full, None), (found.circuit, circuit)):
        maps = cc.activations(model, feature, images, circuit=of).reshape(2, -1).double()
        torch.testing.assert_close(torch.tensor(values).double(), maps[[0, 1], places])
    assert found.layers
    for layer in found.layers.values():
        differences = torch.zeros(int(layer.filters.max()) + 1, dtype=torch.float64)
        differences.index_add_(0, layer.kernels[:, 0], layer.added[:, 0] - layer.added[:, 1])
        own = layer.outputs[:, 0] - layer.outputs[:, 1]
        torch.testing.assert_close(differences[layer.filters], own, rtol=1e-9, atol=1e-9)


def test_values_are_means_over_what_the_position_sees():
    torch.manual_seed(0)
    convs = [nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), nn.Conv2d(6, 2, 3)]
    model = nn.Sequential(convs[0], nn.ReLU(), nn.AvgPool2d(2), convs[1], nn.ReLU(), convs[2]).double().eval()
    images = torch.randn(2, 3, 20, 18, dtype=torch.float64)
    feature = cc.Feature("5", 1)
    found = contrasted(model, cc.prune(cc.score(model, feature, images), density=1.0), images)
    positive = copy.deepcopy(model)  # in which nothing cancels, so that a gradient says what depends on what
    for one in positive.parameters():
        one.data.fill_(1.0)
    maps, ones = [images], [torch.ones_like(images[:1]).requires_grad_()]
    for own, other in zip(model, positive, strict=True):
        maps.append(own(maps[-1]).detach())
        ones.append(other(ones[-1]))
    for n, place in enumerate(maps[-1][:, 1].flatten(1).argmax(1).tolist()):
        assert found.position[n] == divmod(place, maps[-1].shape[3])
        (slope,) = torch.autograd.grad(ones[-1][0, 1].flatten()[place], ones[0], retain_graph=True)
        rows, columns = (slope[0].sum((0, axis)).nonzero()[:, 0] for axis in (2, 1))
        top, left, height, width = found.box[n]  # which goes on beyond the image
        assert rows.tolist() == [row for row in range(top, top + height) if 0 <= row < 20]
        assert columns.tolist() == [column for column in range(left, left + width) if 0 <= column < 18]
        for at, conv in ((0, convs[0]), (3, convs[1]), (5, convs[2])):
            layer = found.layers[str(at)]
            (slope,) = torch.autograd.grad(ones[-1][0, 1].flatten()[place], ones[at + 1], retain_graph=True)
            window = slope[0].sum(0) > 0
            assert layer.positions[n] == int(window.sum())
            own = maps[at + 1][n][layer.filters][:, window].mean(1)
            torch.testing.assert_close(layer.outputs[:, n], own)
            for (out, channel), added in zip(layer.kernels.tolist(), layer.added[:, n], strict=True):
                first = out // (conv.out_channels // conv.groups) * conv.weight.shape[1]
                read, weight = maps[at][n, first + channel], conv.weight.data[out, channel]
                alone = F.conv2d(read[None, None], weight[None, None], None, conv.stride, conv.padding)
                torch.testing.assert_close(added, alone[0, 0][window].mean())


def test_a_layer_that_runs_twice_is_left_out_and_named():
    model, images = NETS["twice"].build(), NETS["twice"].images(2)
    found = contrasted(model, circuit_of(model, cc.Feature("head", 1), images, 0.7), images)
    assert "shared" not in found.layers
    assert found.notes == ("shared run several times for one output, so their filters and kernels are left out.",)


def test_what_cannot_be_compared_is_refused():
    model, images = NETS["plain"].build(), NETS["plain"].images(3)
    circuit = circuit_of(model, cc.Feature("features.5", 2), images, 0.7)
    with pytest.raises(cc.ConvCircuitsError, match="of two images; got 3"):
        contrasted(model, circuit, images)
    with pytest.raises(cc.ConvCircuitsError, match="one unit"):
        contrasted(model, circuit_of(model, cc.Feature("features.5", (0, 2)), images, 0.7), images[:2])
    with pytest.raises(cc.ConvCircuitsError, match="Expected a Circuit, got str"):
        contrasted(model, "circuit", images[:2])
    model.features[0].weight.data[0] += 1
    with pytest.raises(cc.ConvCircuitsError, match="weights"):
        contrasted(model, circuit, images[:2])
