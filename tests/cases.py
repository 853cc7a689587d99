"""What tests of several modules share: cases to run over, circuits of them, how results are compared."""

import dataclasses
import itertools
import json
import math
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load as from_bytes
from torch import nn

import convcircuits as cc
import oracles
from convcircuits.compiler import module_json
from convcircuits.compiler.interpreter import CircuitModule
from convcircuits.network.masking import Masks, Subject
from convcircuits.values.tables import LayerTable
from nets import NETS

# ---------------------------------------- cases


def calibration(kernels, seed=4):
    """Random gains of kernels and offsets of filters, for layers with these kernel masks."""
    generator = torch.Generator().manual_seed(seed)
    gain = {k: 0.5 + torch.rand(m.shape, generator=generator, dtype=torch.float64) for k, m in kernels.items()}
    offset = {k: torch.rand(len(m), generator=generator, dtype=torch.float64) - 0.5 for k, m in kernels.items()}
    return {"gain": gain, "offset": offset}


FEATURES = [
    pytest.param(name, layer, unit, id=f"{name}:{layer}:{unit}")
    for name, case in NETS.items()
    for layer, unit in case.features
]
LAST = [pytest.param(name, *case.features[-1], id=name) for name, case in NETS.items()]
GRANULARITIES = ["filter", "kernel", "weight"]  # from coarse to fine
# What a law of all granularities runs over: kernels of every feature; filters and weights of each net's last one.
FEATURES_BY_GRANULARITY = [
    pytest.param(*case.values, granularity, id=f"{case.id}-{granularity}")
    for granularity in GRANULARITIES
    for case in (FEATURES if granularity == "kernel" else LAST)
]
# Features on modules that are no convolution: net, layer, unit, call, and the leaf that the oracles look at.
DERIVED = [
    ("plain", "features.1", 2, None, None),
    ("plain", "features.2", 1, None, None),
    ("plain", "features", 2, None, ("features.6", None)),
    ("residual", "bn", 3, None, None),
    ("residual", "block1.bn1", 1, None, None),
    ("residual", "block1.bn2", 2, None, None),
    ("residual", "block1.relu", 2, 0, None),
    ("residual", "block1", 1, None, ("block1.relu", 1)),
    ("residual", "block2.down", 4, None, ("block2.down.1", None)),
    ("residual", "block2", 0, None, ("block2.relu", 1)),
    ("mobile", "stem", 2, None, ("stem.2", None)),
    ("mobile", "depth.1", 3, None, None),
    ("mobile", "project", 1, None, ("project.1", None)),
    ("twice", "shared", 1, 0, None),
    ("twice", "shared", 1, 1, None),
    ("twice", "relu", 2, 1, None),
    ("twice", "relu", 2, 2, None),
    ("flat_head", "features", 1, None, ("features.2", None)),
    ("flat_head", "classifier.2", 2, None, None),
    ("flat_head", "classifier", 2, None, ("classifier.4", None)),
    ("nested", "stage.1.body.first", 3, None, None),
    ("pooled_head", "pool", 3, None, None),
    ("pooled_head", "flat", 3, None, None),
    ("se_conv", "se.sigmoid", 1, None, None),
    ("dense", "layer1.norm", 2, None, None),
    ("dense", "layer2.norm", 1, None, None),
    ("dense", "layer2.norm", 4, None, None),
    ("dense", "pool", 3, None, None),
    ("nested", "stage.0", 1, None, ("relu", 1)),
    ("nested", "relu", 1, 3, None),
]
# net, layer, unit (int, several, or a direction), call
KINDS = {
    "conv units": ("plain", "features.5", (2, 0), None),
    "set of one conv unit": ("plain", "features.3", (1,), None),
    "units of a grouped conv": ("grouped", "conv3", (3, 0), None),
    "units of one group": ("grouped", "conv2", (4, 3, 5), None),
    "units of a call of a conv": ("twice", "shared", (1, 3), 0),
    "BatchNorm unit": ("residual", "block1.bn2", 2, None),
    "BatchNorm units": ("residual", "block2.bn2", (4, 1, 2), None),
    "BatchNorm units after a concatenation": ("dense", "layer2.norm", (4, 0), None),
    "ReLU unit": ("plain", "features.1", 2, None),
    "units of a shared ReLU": ("residual", "block1.relu", (1, 2), 0),
    "units of a ReLU shared by blocks": ("nested", "relu", (3, 0), 3),
    "block unit after an addition": ("residual", "block2", 3, None),
    "block units after an addition": ("residual", "block1", (3, 1), None),
    "block direction after an addition": ("residual", "block2", torch.tensor([0.5, 0.0, -2.0, 0.0, 1.0]), None),
    "block unit of a concatenation": ("dense", "layer2", 6, None),
    "block units of a concatenation": ("dense", "layer2", (0, 6, 3), None),
    "direction of a concatenation": ("dense", "layer1", torch.tensor([0.0, 1.0, 0.0, 0.0, -1.5]), None),
    "units of a branch": ("inception", "three", (1, 2), None),
    "units of a gate": ("se_conv", "se.sigmoid", (3, 1), None),
    "units of a gated block": ("se_linear", "se", (3, 1), None),
    "Linear units on a flattened map": ("flat_head", "classifier.1", (3, 0), None),
    "units of a ReLU after Linear": ("flat_head", "classifier.2", (0, 3), None),
    "logit": ("pooled_head", "fc", 2, None),
    "all logits": ("flat_head", "classifier", (0, 1, 2, 3), None),
    "direction of logits": ("flat_head", "classifier.4", torch.tensor([0.0, 1.0, 0.0, -1.0]), None),
    "depthwise units": ("mobile", "depth.0", (5, 2), None),
}
COMBINATIONS = [
    dict(zip(("collapse", "position", "normalizer", "signed"), values, strict=True))
    for values in itertools.product(
        ("abs", "sum", "square"),
        ("all", "max", "center", (0, 1)),
        ("published", "sum"),
        (False, True),
    )
]
HEAD = cc.Feature("head", 1)  # of `nets.net`
FIGURES = ["pearson", "r2", "r2_readout", "error", "error_at_max", "pearson_max"]
COUNTS = ["kernels", "effective_kernels", "filters", "effective_filters", "relevant", "density", "images"]


# ---------------------------------------- what is relevant, and circuits of it


def single_units(unit):
    if isinstance(unit, torch.Tensor):
        return unit.nonzero()[:, 0].tolist()
    return [unit] if isinstance(unit, int) else list(unit)


def is_linear(model, layer):
    return isinstance(model.get_submodule(layer), nn.Linear)


def relevant_of(case, model, layer, unit, call=None):
    """The union, over the units, of the kernels that graph search finds."""
    union = {}
    for one in single_units(unit):
        found = _reachable(case, model, layer, one, call)
        union = {name: kept | union.get(name, kept) for name, kept in found.items()}
    return {name: kept for name, kept in union.items() if kept.any()}


_reached = {}  # what the oracle finds in a net: weights play no part in it, and hundreds of tests ask for the same


def _reachable(case, model, layer, unit, call):
    key = (case.build, case.input_shape, str(model), layer, unit, call)
    if key not in _reached:
        _reached[key] = oracles.reachable(model, layer, unit, case.input_shape, blocks=case.blocks, call=call)
    return {layer: kept.clone() for layer, kept in _reached[key].items()}


def units_of(case, model, layer, unit, granularity):
    """The relevant units of a granularity, by graph search; layers in execution order."""
    return oracles.relevant_elements(model, relevant_of(case, model, layer, unit), granularity, case.blocks)


def random_masks(relevant, density, seed):
    generator = torch.Generator().manual_seed(seed)
    return {k: r & (torch.rand(r.shape, generator=generator) < density) for k, r in relevant.items()}


def masks_for_oracle(case, model, circuit):
    """A circuit as the oracles take it: kernel masks, or weight masks."""
    relevant = relevant_of(case, model, circuit.feature.layer, circuit.feature.unit)
    return oracles.unit_masks(dict(circuit.elements), relevant, circuit.granularity)


def circuit_of(model, feature, images, density, granularity="kernel", seed=0):
    """A random circuit; another where there is no complete path in it."""
    for one in range(seed, seed + 8):
        options = {"criterion": "random", "granularity": granularity, "seed": one}
        circuit = cc.prune(cc.score(model, feature, images[:1], **options), density=density)
        if cc.activations(model, feature, images[:1], circuit=circuit).any():
            return circuit
    return cc.prune(cc.score(model, feature, images[:1], **options), density=1.0)


def extracted(model, feature, x, density):
    scores = cc.score(model, feature, x, criterion="random")
    return cc.extract(model, cc.prune(scores, density=density), input_shape=tuple(x.shape[1:]))


# ---------------------------------------- how results are compared


def close(a, b, msg=None):
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11, msg=msg)


def same(got, expected, tolerance=1e-10):
    assert got.shape == expected.shape
    assert got.dtype == expected.dtype
    assert float((got.detach() - expected).abs().max()) <= tolerance * float(expected.abs().max())


def assert_scores(scores, expected, relevant):
    """Equal to the oracle where relevant, NaN elsewhere, layers in execution order."""
    expected = oracles.nan_outside(expected, relevant)
    assert list(scores.elements) == list(expected)
    for name, values in expected.items():
        scale = float(values.nan_to_num().abs().max())
        torch.testing.assert_close(
            scores[name],
            values,
            rtol=1e-9,
            atol=1e-12 * max(scale, 1e-6),
            equal_nan=True,
            msg=lambda m, name=name: f"{name}: {m}",
        )


def assert_same(a, b, rtol=1e-12):
    """Equal to rounding, relative to each layer's largest score."""
    assert list(a.elements) == list(b.elements)
    for name, values in a.elements.items():
        atol = rtol * float(values.nan_to_num().abs().max())
        torch.testing.assert_close(b[name], values, rtol=rtol, atol=atol, equal_nan=True)


# ---------------------------------------- figures by their closed forms


def counted(maps, position, full):
    """(N, P): the values that count, by plain Python over images."""
    rows = []
    for one, whole in zip(maps.numpy(), full.numpy(), strict=True):
        if one.ndim == 0 or position == "all":
            rows.append(one.reshape(-1))
            continue
        height, width = one.shape
        place = {"max": np.unravel_index(whole.argmax(), whole.shape), "center": (height // 2, width // 2)}
        rows.append(one[place.get(position, position)].reshape(1))
    return np.stack(rows)


def pearson(full, circuit):
    """The oracles' r; NaN where one of them is constant to rounding."""
    if any(np.ptp(v) <= 1e-12 * np.abs(v).max() for v in (full, circuit)):
        return math.nan
    return oracles.pearson(full, circuit)


def closed_form(full, circuit, fit=None):
    """The figures from (N, P) arrays."""
    gap, rows = np.abs(circuit - full), np.arange(len(full))
    best = full.argmax(1)
    a, d = oracles.readout(*fit) if fit else (math.nan, math.nan)
    return {
        "pearson": pearson(full, circuit),
        "r2": oracles.r2(full, circuit),
        "r2_training": oracles.r2(*fit) if fit else math.nan,
        "r2_readout": oracles.readout_r2(*fit, full, circuit) if fit else math.nan,
        "readout": (a, d),
        "error": gap.mean() / np.abs(full).mean(),
        "error_at_max": gap[rows, best].mean() / np.abs(full[rows, best]).mean(),
        "pearson_max": pearson(full.max(1), circuit.max(1)),
    }


def agree(report, expected, tolerance=1e-8):
    for name, value in expected.items():
        assert getattr(report, name) == pytest.approx(value, rel=tolerance, abs=tolerance, nan_ok=True), name


# ---------------------------------------- files


def parts_of_file(value):
    """Header and tensors of a saved value."""
    with tempfile.TemporaryDirectory() as folder:
        raw = cc.save(value, Path(folder) / "f.safetensors").read_bytes()
    tensors = from_bytes(raw)
    size = int.from_bytes(raw[:8], "little")
    header = json.loads(json.loads(raw[8 : 8 + size])["__metadata__"]["convcircuits"])
    del header["checksum"]
    return header, tensors


def through_text(module):
    """The module that its JSON and its state make."""
    said = json.loads(json.dumps(module_json.to_json(module), allow_nan=False))
    return module_json.from_json(said, {name: x.clone() for name, x in module.state_dict().items()})


def check_same(again, module, x):
    """The same module to the bit."""
    assert isinstance(again, CircuitModule)
    assert not again.training
    types, wanted = ({name: x.dtype for name, x in one.state_dict().items()} for one in (again, module))
    assert types == wanted
    assert [p for p, _ in again.named_parameters()] == [p for p, _ in module.named_parameters()]
    with torch.no_grad():
        assert torch.equal(again(x), module(x))


# ---------------------------------------- planted circuits


def planted_circuit(net, masks, offset=None):
    """The circuit of these kernels with the truth's offsets, or others."""
    circuit = cc.Circuit.from_masks(net.model, net.feature, masks, input_shape=(3, 32, 32))
    return dataclasses.replace(circuit, offset=LayerTable(net.offset if offset is None else offset))


def planted_map(net, masks, images, offset=None):
    return cc.activations(net.model, net.feature, images, circuit=planted_circuit(net, masks, offset))


def planted_loss(net, masks, images):
    """1 - R2 of the circuit with these masks and the truth's offsets."""
    (loss,) = planted_losses(net, [masks], images)
    return loss


def planted_losses(net, several, images):
    """``planted_loss`` of several circuits; the network is surveyed once."""
    shape = tuple(images.shape[1:])
    subject = Subject.open(net.model, net.feature, shape)
    with torch.no_grad():
        full = subject.maps(images)
        for masks in several:
            kernels = subject.effective({layer: mask.bool() for layer, mask in masks.items()}, shape)
            run = Masks(kernels, {}, dict(net.offset), constant=subject.survey.constant)
            found = subject.maps(images, run.to(images.device, images.dtype))
            yield float((found - full).square().sum() / (full - full.mean()).square().sum())
