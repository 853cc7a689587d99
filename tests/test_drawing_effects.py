"""The saliency by which a refitted circuit is drawn, against autograd through the circuit written out by hand."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import convcircuits as cc
from convcircuits.drawing.effects import with_effects
from convcircuits.drawing.sheet import lay_out
from convcircuits.network.batches import Batches
from nets import seeded

MODEL = seeded(
    lambda: nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Conv2d(5, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1)), 0
)()
IMAGES = torch.randn(12, 3, 9, 9, generator=torch.Generator().manual_seed(1)).double()
FEATURE = cc.Feature("4", 1, position=(2, 3))
LAYERS = ("0", "2", "4")


def by_hand(circuit):
    """Mean over images of (df/da_oi)^2, where a_oi scales what a kept kernel adds beyond its mean; at one position."""
    maps, changes = IMAGES, {}
    for layer in LAYERS:
        conv, kept, gain = MODEL[int(layer)], circuit.kernels[layer], circuit.gain[layer]
        parts = torch.stack(
            [F.conv2d(maps[:, i : i + 1], conv.weight[:, i : i + 1]) for i in range(maps.shape[1])], 2
        )  # (images, out, in, rows, columns): the map of each kernel
        parts = parts * (gain * kept)[None, :, :, None, None]
        mean = parts.mean((0, 3, 4), keepdim=True).detach()
        changes[layer] = torch.ones(len(IMAGES), *kept.shape, dtype=torch.float64, requires_grad=True)
        scale = changes[layer][:, :, :, None, None]
        alive = kept.any(1)[None, :, None, None]
        offset = (conv.bias + circuit.offset[layer])[None, :, None, None]
        maps = (mean + scale * (parts - mean)).sum(2) + offset
        maps = torch.where(alive, maps, torch.zeros_like(maps))
        maps = maps.relu() if layer != "4" else maps
    value = maps[:, FEATURE.unit, 2, 3].sum()  # images do not mix, so each has its own derivative
    grads = torch.autograd.grad(value, list(changes.values()))
    return {layer: grad.square().mean(0) for layer, grad in zip(changes, grads, strict=True)}


def test_effects_are_those_of_the_kernels_in_the_refitted_circuit():
    circuit = cc.find(MODEL, FEATURE, IMAGES, criterion="progressive", kernels=14)
    drawing = lay_out(MODEL, circuit, (), (3, 9, 9), 0)
    batches = Batches(IMAGES, device=torch.device("cpu"), dtype=torch.float64, batch_size=5)
    found = with_effects(drawing.subject, circuit, drawing.masks[0], batches)
    expected = by_hand(circuit)
    own = torch.cat([found.saliency[layer][kept] for layer, kept in circuit.kernels.items()])
    theirs = torch.cat([expected[layer][kept] for layer, kept in circuit.kernels.items()])
    torch.testing.assert_close(own / own.max(), theirs / theirs.max(), rtol=1e-9, atol=0)
    assert circuit == found  # the same kernels and constants


def test_a_diagram_of_a_refitted_circuit_is_drawn_by_them():
    circuit = cc.find(MODEL, FEATURE, IMAGES, criterion="progressive", kernels=14)
    laid = lay_out(
        MODEL,
        circuit,
        (),
        (3, 9, 9),
        0,
        fit=Batches(IMAGES, device=torch.device("cpu"), dtype=torch.float64, batch_size=5),
    )
    assert laid.measured[0]
    assert not laid.unmeasured
    for layer, kept in circuit.kernels.items():
        assert not torch.equal(laid.circuits[0].saliency[layer][kept], circuit.saliency[layer][kept])
    plain = cc.find(MODEL, FEATURE, IMAGES, criterion="snip", kernels=14)
    assert not any(lay_out(MODEL, plain, (), (3, 9, 9), 0).measured)
    assert pytest.approx(float(laid.circuits[0].gain["0"].sum())) == float(circuit.gain["0"].sum())


def test_each_of_two_circuits_is_measured_on_its_own_images():
    groups = IMAGES[:6], IMAGES[6:]
    circuits = [cc.find(MODEL, FEATURE, some, criterion="progressive", kernels=14) for some in groups]
    own = [Batches(some, device=torch.device("cpu"), dtype=torch.float64, batch_size=5) for some in groups]
    laid = lay_out(MODEL, circuits[0], circuits[1:], (3, 9, 9), 0, effects_on=own)
    for n, (circuit, batches) in enumerate(zip(circuits, own, strict=True)):
        expected = with_effects(laid.subject, circuit, laid.masks[n], batches)
        for layer, kept in circuit.kernels.items():
            assert torch.equal(laid.circuits[n].saliency[layer][kept], expected.saliency[layer][kept])
