"""Extraction on the architectures of torchvision and timm: the small module is the circuit, and is small."""

import functools
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import convcircuits as cc
from architectures import ARCHITECTURES, SUPPORTED, UNSUPPORTED
from convcircuits.compiler import extraction
from convcircuits.network.masking import Subject

torch.set_num_threads(1)

pytestmark = pytest.mark.zoo


@functools.lru_cache(maxsize=1)
def built(name):
    return ARCHITECTURES[name].build()


def alive_circuit(model, feature, images, densities=(0.1, 0.3, 0.6, 0.9)):
    """The sparsest circuit that has a map at all."""
    scores = cc.score(model, feature, images[:1], normalizer="layer_l2", draws=1)
    for density in (*densities, 1.0):
        circuit = cc.prune(scores, density=density)
        maps = cc.activations(model, feature, images, circuit=circuit)
        if maps.any():
            return scores, circuit, maps
    raise AssertionError("the full model has no map")


def work(run, images):
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run(images)
    return counter.get_total_flops()


def error_of(got, expected):
    return float((got.detach() - expected).abs().max() / expected.abs().max())


@pytest.fixture
def sizes_are_tried_once(monkeypatch):
    """The second extraction from a model takes the first one's answer, as running it at six sizes takes most time."""
    ask, answers = extraction.takes_any_size, []

    def asked(*given):
        if not answers:
            answers.append(ask(*given))
        return answers[0]

    monkeypatch.setattr(extraction, "takes_any_size", asked)


@pytest.fixture
def opened_once(monkeypatch):
    """Scores, maps and modules of a test come from one opening of its model: all would find the same."""
    find, found = Subject.open, []

    def opened(*given):
        if not found:
            found.append(find(*given))
        return found[0]

    monkeypatch.setattr(Subject, "open", opened)


@pytest.mark.usefixtures("sizes_are_tried_once", "opened_once")
@pytest.mark.parametrize(("name", "layer", "unit"), SUPPORTED.values(), ids=SUPPORTED)
def test_the_extracted_module_is_the_circuit_and_smaller_than_the_model(name, layer, unit):
    architecture, model, feature = ARCHITECTURES[name], built(name), cc.Feature(layer, unit)
    images = architecture.images()
    tolerance = 2e-5 if architecture.dtype is torch.float32 else 1e-11
    scores, circuit, masked = alive_circuit(model, feature, images)
    small = cc.extract(model, circuit)
    assert error_of(small(images), masked) <= tolerance
    whole = cc.extract(model, cc.prune(scores, density=1.0))
    assert error_of(whole(images), cc.activations(model, feature, images)) <= tolerance
    sizes = [sum(p.numel() for p in module.parameters()) for module in (small, whole)]
    assert sizes[0] <= sizes[1] <= sum(p.numel() for p in model.parameters())
    if circuit.density < 1:
        assert sizes[0] < sizes[1]
        assert work(small, images) < work(whole, images)


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_what_is_not_supported_is_a_clear_error(name):
    architecture, model = ARCHITECTURES[name], built(name)
    for layer, unit in architecture.features:
        with pytest.raises(cc.ConvCircuitsError, match=architecture.error):
            cc.Circuit.from_masks(model, cc.Feature(layer, unit), {}, input_shape=architecture.input_shape)


@pytest.mark.smoke
def test_the_support_table_lists_these_architectures():
    lines = (Path(__file__).parents[1] / "docs" / "support.md").read_text().splitlines()
    rows = [tuple(cell.strip(" `") for cell in line.split("|")[1:3]) for line in lines if line.startswith("| `")]
    assert rows == [(a.name, f"{layer}:{unit}") for a in ARCHITECTURES.values() for layer, unit in a.features]
