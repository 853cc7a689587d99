"""Reach and the circuit's masked run on the architectures of torchvision and timm, against a search in their graphs."""

import copy
import functools

import pytest
import torch

import convcircuits as cc
from architectures import ARCHITECTURES
from convcircuits.capture import Network
from convcircuits.masking import Masks, Subject
from convcircuits.reach import survey
from graph_oracle import Graph

torch.set_num_threads(1)

CASES = [
    pytest.param(name, layer, unit, id=f"{name}-{layer}-{unit}")
    for name, architecture in ARCHITECTURES.items()
    for layer, unit in architecture.features
    if architecture.error is None
]
UNSUPPORTED = [name for name, architecture in ARCHITECTURES.items() if architecture.error is not None]


@functools.lru_cache(maxsize=2)
def built(name):
    return ARCHITECTURES[name].build()


@functools.lru_cache(maxsize=2)
def graph_of(name, layer):
    return Graph(built(name), layer, ARCHITECTURES[name].input_shape)


def thinned(kernels, density, seed=0):
    """Random masks that keep `density` of each layer, and about 1.5 kernels of each filter at least."""
    generator = torch.Generator().manual_seed(seed)
    masks = {}
    for layer, relevant in kernels.items():
        kept = max(density, min(0.75, 1.5 / relevant.shape[1]))
        masks[layer] = relevant & (torch.rand(relevant.shape, generator=generator) < kept)
    return masks


def bytes_of(model):
    return {name: tensor.detach().clone() for name, tensor in (*model.named_parameters(), *model.named_buffers())}


def condition_of(model):
    """All that could be left on a model: hooks, modes, flags, gradients, attributes."""
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks)) for m in model.modules()]
    flags = [(p.requires_grad, p.grad, p._version) for p in model.parameters()]
    return hooks, flags, [m.training for m in model.modules()], [sorted(vars(m)) for m in model.modules()]


def own_map(model, layer, unit, images):
    """The feature's map in the model itself."""
    found = []

    def hook(module, args, output):
        found.append(output[:, unit].clone())

    handle = model.get_submodule(layer).register_forward_hook(hook)
    with torch.no_grad():
        model(images)
    handle.remove()
    return found[0]


# ---------------------------------------- supported


@pytest.mark.parametrize(("name", "layer", "unit"), CASES)
def test_relevant_and_effective_kernels_are_those_of_a_search_in_the_graph(name, layer, unit):
    architecture, graph = ARCHITECTURES[name], graph_of(name, layer)
    network, feature = Network(built(name)), cc.Feature(layer, unit)
    relevant = survey(network, feature, architecture.input_shape).kernels
    expected = graph.reachable(unit, blocks=architecture.blocks)
    assert list(relevant) == [key for key, mask in expected.items() if mask.any()]
    for key, mask in relevant.items():
        assert torch.equal(mask, expected[key]), key
    assert set(architecture.blocks) <= set(relevant) | {"classifier.1"}
    for density in (0.4, 0.1):
        masks = thinned(relevant, density)
        expected = graph.reachable(unit, masks)
        found = survey(network, feature, architecture.input_shape, masks).kernels
        for key, mask in masks.items():
            assert torch.equal(found[key] & mask, expected[key]), (density, key)
        assert density < 0.4 or any(mask.any() for mask in expected.values())


@pytest.mark.parametrize(("name", "layer", "unit"), CASES)
def test_the_full_circuit_is_the_model_itself_and_leaves_it_as_it_was(name, layer, unit):
    architecture, model = ARCHITECTURES[name], built(name)
    before, condition, images = bytes_of(model), condition_of(model), architecture.images()
    feature = cc.Feature(layer, unit)
    full = cc.activations(model, feature, images)
    relevant = survey(Network(model), feature, architecture.input_shape).kernels
    circuit = cc.Circuit.from_masks(model, feature, relevant, input_shape=architecture.input_shape)
    inside = cc.activations(model, feature, images, circuit=circuit)
    assert condition_of(model) == condition
    assert all(torch.equal(tensor, before[key]) for key, tensor in bytes_of(model).items())
    assert circuit.density == 1
    expected = own_map(model, layer, unit, images)
    assert expected.isfinite().all()
    assert expected.std() > 0
    tolerance = 1e-5 if architecture.dtype is torch.float32 else 1e-10
    for maps in (full, inside):
        assert float((maps - expected).abs().max()) <= tolerance * float(expected.abs().max())


@pytest.mark.parametrize(("name", "layer", "unit"), CASES)
def test_what_only_dead_filters_hold_plays_no_part_in_a_circuit(name, layer, unit):
    architecture, graph = ARCHITECTURES[name], graph_of(name, layer)
    model, feature, images = copy.deepcopy(built(name)), cc.Feature(layer, unit), architecture.images()
    network = Network(model)
    found = survey(network, feature, architecture.input_shape)
    kept = graph.reachable(unit, thinned(found.kernels, 0.4))
    kept = {key: kept[key] for key in found.kernels}
    subject = Subject(network, feature, found)
    with torch.no_grad():
        before = subject.maps(images, Masks(kept))
        for key, dead in graph.dead_constants(kept).items():
            model.get_parameter(key).data[dead] += 1.7
        after = subject.maps(images, Masks(kept))
    assert torch.equal(before, after)


# ---------------------------------------- not supported: a clear error


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_what_cannot_be_told_is_said(name):
    architecture, model = ARCHITECTURES[name], built(name)
    condition = condition_of(model)
    for layer, unit in architecture.features:
        with pytest.raises(cc.ConvCircuitsError, match=architecture.error):
            survey(Network(model), cc.Feature(layer, unit), architecture.input_shape)
    assert condition_of(model) == condition
