"""Saliencies of single images against slow loops over kernels."""

from functools import partial

import pytest
import torch

import convcircuits as cc
import oracles
from cases import LAST
from convcircuits.subfeatures import saliencies
from convcircuits.subfeatures.saliencies import image_saliencies
from nets import NETS

torch.set_num_threads(1)


@pytest.mark.parametrize("position", ["max", "all", "center"])
@pytest.mark.parametrize(("name", "layer", "unit"), LAST)
def test_saliencies_are_the_gradients_of_kernel_masks_on_each_image(name, layer, unit, position):
    case = NETS[name]
    model, images = case.build(), case.images(3)
    scores = cc.score(model, cc.Feature(layer, unit), images, criterion="magnitude")
    found = image_saliencies(model, cc.Feature(layer, unit, position=position), images, batch_size=2)
    for n, image in enumerate(images):
        options = {"collapse": "sum", "position": position, "blocks": case.blocks}
        expected = oracles.mask_gradient(model, layer, unit, image[None], **options)
        for name_of, rows in found.layers.items():
            wanted = expected[name_of][~scores[name_of].isnan()].float()
            torch.testing.assert_close(rows[n], wanted, rtol=1e-5, atol=1e-6 * float(wanted.abs().max()) + 1e-12)


def test_inside_a_circuit_they_are_the_gradients_of_its_own_run():
    """Of a sparse one only the filters and channels of its kernels are computed; of a dense one, all."""
    conv, relu = partial(torch.nn.Conv2d, kernel_size=3, bias=False), torch.nn.ReLU()  # no constants of dead channels
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = torch.nn.Sequential(conv(3, 24), relu, conv(24, 24), relu, conv(24, 4)).double().eval()
        images = torch.randn(3, 3, 12, 12).double()
    feature = cc.Feature("4", 1, position="center")
    scores = cc.score(model, feature, images)
    for density in (0.6, 0.06):
        circuit = cc.prune(scores, density=density)
        masks = dict(circuit.elements.items())
        found = image_saliencies(model, feature, images, circuit=circuit)
        for n, image in enumerate(images):
            options = {"collapse": "sum", "position": "center", "masks": masks}
            expected = oracles.mask_gradient(model, "4", 1, image[None], **options)
            for layer, rows in found.layers.items():
                torch.testing.assert_close(rows[n], expected[layer][masks[layer]].float(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("memory", [1, 2**30], ids=["chunked", "whole"])
@pytest.mark.parametrize("name", ["plain", "grouped", "dilated", "flat_head", "mobile"])
def test_memory_and_batches_change_nothing(name, memory):
    case = NETS[name]
    model, images = case.build(), case.images(5)
    feature = cc.Feature(*case.features[-1], position="max")
    expected = image_saliencies(model, feature, images)
    found = image_saliencies(model, feature, images, batch_size=2, memory=memory)
    for layer, rows in expected.layers.items():
        torch.testing.assert_close(found.layers[layer], rows)
    assert found.position.tolist() == expected.position.tolist()


def test_the_response_is_the_feature_at_its_maximum():
    case = NETS["plain"]
    model, images = case.build(), case.images(4)
    layer, unit = case.features[-1]
    found = image_saliencies(model, cc.Feature(layer, unit, position="max"), images)
    maps = oracles.full_map(model, layer, unit, images).flatten(1)
    torch.testing.assert_close(found.response, maps.amax(1))
    assert found.position.tolist() == maps.argmax(1).tolist()
    assert image_saliencies(model, cc.Feature(layer, unit), images).position.tolist() == [-1] * 4


def test_a_sketch_keeps_scalar_products(monkeypatch):
    """The mean over sketches is the product itself, and the spread is at most what a count sketch allows."""
    case = NETS["plain"]
    model, images = case.build(), case.images(2)
    feature = cc.Feature(*case.features[-1], position="max")
    exact = image_saliencies(model, feature, images)
    monkeypatch.setattr(saliencies, "SKETCH", 16)
    layer = max(exact.layers, key=lambda one: exact.layers[one].shape[1])
    a, b = exact.layers[layer]
    products = []
    for seed in range(200):
        c, d = image_saliencies(model, feature, images, seed=seed).layers[layer]
        assert c.shape == (16,)
        products.append(float(c @ d))
    norms = float(a.norm() * b.norm())
    spread = float(torch.tensor(products).std())
    assert spread <= 1.2 * norms * (2 / 16) ** 0.5
    assert abs(sum(products) / 200 - float(a @ b)) <= 4 * spread / 200**0.5


def test_several_units_are_refused():
    case = NETS["plain"]
    with pytest.raises(cc.ConvCircuitsError, match="several units"):
        image_saliencies(case.build(), cc.Feature(case.features[-1][0], (0, 1)), case.images(2))
