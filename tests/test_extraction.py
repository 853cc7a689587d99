"""Extraction: the small module is the circuit, whatever the net, the feature and the units; sweeps give its figures."""

import copy
import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import convcircuits as cc
import oracles
from cases import (
    COUNTS,
    DERIVED,
    FEATURES,
    FIGURES,
    KINDS,
    LAST,
    agree,
    calibration,
    circuit_of,
    closed_form,
    counted,
    masks_for_oracle,
    same,
)
from convcircuits.circuits.evaluation import evaluate_all
from convcircuits.compiler.extraction import Sweep
from convcircuits.compiler.interpreter import CircuitModule, program_of
from convcircuits.compiler.layout import UnextractableError, layout_of
from convcircuits.network.capture import Network
from convcircuits.network.masking import Subject
from convcircuits.network.reach import survey
from nets import NETS, seeded
from random_nets import RandomNet

torch.set_num_threads(1)
pytestmark = pytest.mark.usefixtures("sizes_are_tried_once", "opened_once")


def check(case, model, circuit, tolerance=1e-10, **oracle):
    """The module, the masked run and the slow oracle agree on images that the module was not written from."""
    images = case.images(3, seed=7).to(next(model.parameters()).dtype)
    small = cc.extract(model, circuit)
    masked = cc.activations(model, circuit.feature, images, circuit=circuit)
    same(small(images), masked, tolerance)
    if oracle:
        feature = circuit.feature
        masks = masks_for_oracle(case, model, circuit) if circuit.granularity != "kernel" else dict(circuit.elements)
        expected = oracles.circuit_map(model, masks, feature.layer, feature.unit, images, blocks=case.blocks, **oracle)
        same(small(images), expected, tolerance)
    return small


def memory_of(model):
    tensors = (*model.parameters(), *model.buffers())
    return {tensor.untyped_storage().data_ptr() for tensor in tensors if tensor.numel()}


# ---------------------------------------- the module is the circuit


@pytest.mark.parametrize(("name", "layer", "unit"), FEATURES)
def test_the_module_is_the_circuit(name, layer, unit):
    case = NETS[name]
    model, feature = case.build(), cc.Feature(layer, unit)
    for density in (0.2, 0.6, 1.0):
        circuit = circuit_of(model, feature, case.images(), density, seed=3)
        small = check(case, model, circuit, call=None)
        assert not memory_of(small) & memory_of(model)  # training one changes nothing in the other
    images = case.images()
    same(small(images), oracles.full_map(model, layer, unit, images))


@pytest.mark.parametrize(
    ("name", "layer", "unit", "call", "leaf"), DERIVED, ids=[f"{n}:{la}#{c}:{u}" for n, la, u, c, _ in DERIVED]
)
def test_the_module_of_a_feature_on_any_module_is_the_circuit(name, layer, unit, call, leaf):
    case = NETS[name]
    model, feature = case.build(), cc.Feature(layer, unit, call=call)
    for density in (0.4, 0.8):
        small = check(case, model, circuit_of(model, feature, case.images(), density))
        assert small(case.images(2)).shape == cc.activations(model, feature, case.images(2)).shape


@pytest.mark.parametrize(("name", "layer", "unit", "call"), KINDS.values(), ids=KINDS)
def test_the_module_of_units_and_directions_is_the_circuit(name, layer, unit, call):
    case = NETS[name]
    model, feature = case.build(), cc.Feature(layer, unit, call=call)
    for density in (0.3, 0.7):
        check(case, model, circuit_of(model, feature, case.images(), density), call=call)


@pytest.mark.parametrize("granularity", ["filter", "weight"])
@pytest.mark.parametrize(("name", "layer", "unit"), LAST)
def test_the_module_of_filters_or_weights_is_the_circuit(name, layer, unit, granularity):
    case = NETS[name]
    model, feature = case.build(), cc.Feature(layer, unit)
    for density in (0.2, 0.6):
        check(case, model, circuit_of(model, feature, case.images(), density, granularity), call=None)


@pytest.mark.parametrize(("name", "layer", "unit"), LAST)
def test_the_module_of_a_calibrated_circuit_is_the_circuit(name, layer, unit):
    case = NETS[name]
    model, feature = case.build(), cc.Feature(layer, unit)
    plain = circuit_of(model, feature, case.images(), 0.6)
    tables = calibration(plain.kernels)
    check(case, model, dataclasses.replace(plain, **tables), **tables)


@pytest.mark.oracle
@pytest.mark.parametrize(("name", "layer", "unit"), LAST)
def test_criteria_circuits_are_extracted_in_float32_and_in_bfloat16(name, layer, unit):
    case = NETS[name]
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 0.1)):
        model, images = case.build().to(dtype), case.images().to(dtype)
        scores = cc.score(model, cc.Feature(layer, unit), images, normalizer="layer_l2")
        for density in (0.5, 0.9):
            circuit = cc.prune(scores, density=density)
            if cc.activations(model, circuit.feature, images, circuit=circuit).any():
                assert {p.dtype for p in check(case, model, circuit, tolerance).parameters()} == {dtype}


@pytest.mark.oracle
@pytest.mark.parametrize("seed", range(25))
def test_the_module_of_a_random_net_is_the_circuit_by_the_letter(seed):
    model = seeded(lambda: RandomNet(seed), seed)()
    images = torch.randn(3, 3, 7, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    unit = seed % 3
    for density in (0.4, 0.7, 1.0):
        circuit = circuit_of(model, cc.Feature(model.layer, unit), images, density, seed=seed)
        expected = model.circuit(images, dict(circuit.elements))[:, unit]
        same(cc.activations(model, circuit.feature, images, circuit=circuit), expected)
        same(cc.extract(model, circuit)(images), expected)
    same(expected, model(images)[:, unit].detach())


@pytest.mark.parametrize("position", ["max", "center", (1, 0)], ids=str)
def test_the_position_plays_no_part(position):
    case = NETS["residual"]
    model = case.build()
    circuit = circuit_of(model, cc.Feature("head", 0, position=position), case.images(), 0.8)
    check(case, model, circuit, call=None)


# ---------------------------------------- an ordinary module


def test_any_number_of_images_runs():
    case = NETS["mobile"]
    model = case.build()
    circuit = circuit_of(model, cc.Feature("head", 1), case.images(), 0.7)
    small, images = cc.extract(model, circuit), case.images(19)
    whole = small(images)
    for n in (1, 2, 5):
        same(torch.cat([small(batch) for batch in images.split(n)]), whole.detach())


FREE = [name for name in NETS if name not in ("same_pad", "flat_head")]  # code that asks for no size


@pytest.mark.parametrize("name", NETS)
def test_images_of_another_size_run_right_or_are_refused(name):
    case = NETS[name]
    model, feature = case.build(), cc.Feature(*case.features[-1])
    circuit = circuit_of(model, feature, case.images(), 0.8)
    small, (c, h, w) = cc.extract(model, circuit), case.input_shape
    for shape in ((c, h + 1, w + 1), (c, h + 3, w), (c, h + 8, w + 13)):
        images = torch.randn(2, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        if name in FREE:
            same(small(images), cc.activations(model, feature, images, circuit=circuit))
        else:
            with pytest.raises(cc.ConvCircuitsError, match=f"extracted for images of {h} x {w}"):
                small(images)
    if name == "same_pad":
        other = cc.extract(model, circuit, input_shape=shape)
        same(other(images), cc.activations(model, feature, images, circuit=circuit))


@pytest.mark.parametrize("name", ["residual", "flat_head", "dense", "twice"])
def test_the_module_owns_its_weights_and_leaves_the_model_alone(name):
    case = NETS[name]
    model = case.build()
    model.train()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    before, state = copy.deepcopy(model.state_dict()), [sorted(vars(m)) for m in model.modules()]
    circuit = circuit_of(model, cc.Feature(*case.features[-1]), case.images(), 0.8)
    small, images = cc.extract(model, circuit), case.images()
    expected = small(images).detach().clone()
    given = images.clone()
    assert not any(m.training for m in small.modules())
    assert all(p.requires_grad for p in small.parameters())
    assert torch.equal(small(images).detach(), expected)
    assert torch.equal(images, given)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    assert torch.equal(small(images).detach(), expected)
    model.load_state_dict(before)
    with torch.no_grad():
        for tensor in (*small.parameters(), *small.buffers()):
            tensor.zero_()
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    assert all(m.training for m in model.modules())
    assert [sorted(vars(m)) for m in model.modules()] == state
    assert not any(p.requires_grad or p.grad is not None for p in model.parameters())


def test_a_state_dict_loads_and_gradients_flow():
    case = NETS["residual"]
    model = case.build()
    circuit = circuit_of(model, cc.Feature("head", 0), case.images(), 0.8)
    small, other = cc.extract(model, circuit), cc.extract(model, circuit)
    assert isinstance(small, CircuitModule)
    state = {key: value.clone() for key, value in small.state_dict().items()}
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    other.load_state_dict(state)
    images = case.images().requires_grad_()
    assert torch.equal(other(images), small(images))
    small(images).sum().backward()
    assert images.grad.abs().max() > 0
    assert all(p.grad is not None for p in small.parameters())
    assert small.meta["circuit"]["feature"] == "head:0"
    assert small.meta["circuit"]["elements"] == len(circuit)


def test_the_same_module_is_written_inside_no_grad_and_in_another_random_state():
    case = NETS["inception"]
    model = case.build()
    circuit = circuit_of(model, cc.Feature("last", 2), case.images(), 0.8)
    small = cc.extract(model, circuit)
    state = torch.get_rng_state()
    with torch.no_grad():
        other = cc.extract(model, circuit)
    assert torch.equal(torch.get_rng_state(), state)
    assert program_of(other) == program_of(small)
    assert all(torch.equal(a, b) for a, b in zip(small.state_dict().values(), other.state_dict().values(), strict=True))


# ---------------------------------------- what cannot be extracted


class Odd(nn.Module):
    """A net that does one odd thing."""

    def __init__(self, what):
        super().__init__()
        self.conv, self.head, self.what = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1), what

    def forward(self, x):
        return self.head(F.relu(self.what(self.conv(x))))


def written(x):
    x[:, 0] = x[:, 1]
    return x


def written_through_a_view(x):
    x[:, :2].mul_(2.0)
    return x


def written_into_a_part(x):
    x[:, :2, 1:] = x[:, 2:, :-1]
    return x


ODD = {
    "images one by one": (lambda x: torch.stack([one * 2 for one in x]), "another number of images"),
    "images doubled": (lambda x: torch.cat([x, x])[: len(x)], "not one row per image"),
    "part of a map written": (written_into_a_part, "writes to a part of a map"),
    "a constant beside": (lambda x: torch.cat([x[:, :3], torch.ones_like(x[:, :1])], 1), "a nonzero constant"),
}


@pytest.mark.parametrize(("what", "message"), ODD.values(), ids=ODD)
def test_what_cannot_be_extracted_is_named_and_still_measured(what, message):
    model = seeded(lambda: Odd(what), 5)()
    images, feature = NETS["plain"].images(4), cc.Feature("head", 1)
    circuit = circuit_of(model, feature, images, 0.7)
    with pytest.raises(UnextractableError, match=message):
        cc.extract(model, circuit)
    full, kept = (cc.activations(model, feature, images, circuit=given).flatten(1).numpy() for given in (None, circuit))
    agree(cc.evaluate(model, circuit, images), closed_form(full, kept))


def space_to_depth(x):
    n, c, h, w = x.shape
    x = x.view(n, c, h // 2, 2, w // 2, 2).permute(0, 3, 5, 1, 2, 4)
    return F.interpolate(x.reshape(n, 4 * c, h // 2, w // 2)[:, 1:5], scale_factor=2)


def constant_beside(x):
    return torch.cat([x[:, :3], torch.zeros(len(x), 1, *x.shape[2:], dtype=x.dtype)], 1)


def batch_normed(x):
    return F.batch_norm(x, torch.ones(2, dtype=x.dtype), torch.ones(2, dtype=x.dtype) * 2)


def per_channel(x):
    return F.conv2d(x, torch.ones(4, 1, 3, 3, dtype=x.dtype), groups=4)


ALLOWED = {
    "a channel written": written,
    "channels written through a view": written_through_a_view,
    "a property": lambda x: x.mT,
    "a power": lambda x: (x + 1) ** 2,
    "zeros beside": constant_beside,
    "new zeros beside": lambda x: torch.cat([x[:, :3], x.new_zeros(len(x), 1, *x.shape[2:])], 1),
    "a unit norm": F.normalize,
    "a constant of the map's type": lambda x: x * torch.tensor(2.0).to(x),
    "space to depth": space_to_depth,
    "zeros like a part": lambda x: torch.cat([x[:, :3], torch.zeros_like(x[:, :1])], 1),
    "a constant's power": lambda x: torch.pow(x, 2),
    "a reflected difference": lambda x: 1 - x,
    "a quotient": lambda x: 1 / (1 + x.abs()),
    "a product with itself": lambda x: x * x,
    "a choice": lambda x: torch.where(x > 0.2, x, 0.1 * x),
    "maxima over halves": lambda x: torch.maximum(x[:, :2], x[:, 2:]).repeat(1, 2, 1, 1),
    "a global response norm": lambda x: x + x * x.norm(dim=(2, 3), keepdim=True),
    "softmax over channels": lambda x: x.softmax(1),
    "softmax over positions": lambda x: x * x.flatten(2).softmax(-1).view_as(x),
    "stacks": lambda x: torch.stack([x, x.flip(1)], 1).sum(1),
    "groups": lambda x: F.group_norm(x, 2),
    "resizing": lambda x: F.interpolate(F.avg_pool2d(x, 2), size=x.shape[2:], mode="bilinear"),
    "patches": lambda x: F.fold(F.unfold(x, 3, padding=1), x.shape[2:], 3, padding=1),
    "pixels to channels": lambda x: F.pixel_shuffle(F.pixel_unshuffle(x, 2), 2),
    "padding of channels": lambda x: F.pad(x[:, 1:3], (0, 0, 0, 0, 1, 1)),
    "a gated half": lambda x: F.glu(torch.cat([x, x.flip(1)], 1), 1),
    "one half twice": lambda x: torch.cat([F.relu(x), F.relu(-x)], 1)[:, 2:6],
    "PReLU": lambda x: F.prelu(x, torch.linspace(-1, 1, 4, dtype=x.dtype)),
    "all but an edge": lambda x: x[:, :, 1:, :-1],
    "every other position": lambda x: x[..., ::2, 1::2],
    "a split into one": lambda x: torch.cat([part * 2 for part in x.split(4, 1)], 1),
    "the norm of a batch after maxima over channels": lambda x: batch_normed(x.topk(2, 1).values).repeat(1, 2, 1, 1),
    "groups after maxima over channels": lambda x: per_channel(x.topk(4, 1).values)[:, 2:].repeat(1, 2, 1, 1),
}


@pytest.mark.oracle
@pytest.mark.parametrize("what", ALLOWED.values(), ids=ALLOWED)
def test_odd_functions_are_extracted_and_saved(what, tmp_path):
    model = seeded(lambda: Odd(what), 5)()
    images, feature = NETS["plain"].images(5), cc.Feature("head", 1)
    for density in (0.4, 0.7, 1.0):
        circuit = circuit_of(model, feature, images, density)
        masked = cc.activations(model, feature, images, circuit=circuit)
        small = cc.extract(model, circuit)
        same(small(images), masked)
        cc.save(small, tmp_path / "small.safetensors")
        same(cc.load(tmp_path / "small.safetensors")(images), masked)
    same(masked, model(images)[:, 1].detach())


class GatedTwice(nn.Module):
    """A map that is scaled by a gate, and one half of which is the gate of the other."""

    def __init__(self):
        super().__init__()
        self.conv, self.gate, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3), nn.Conv2d(2, 2, 1)

    def forward(self, x):
        return self.head(F.glu(self.conv(x) * torch.sigmoid(self.gate(x)), 1))


def test_a_dead_gate_of_a_dead_gate_stays_the_constant_it_is():
    model, images, feature = seeded(GatedTwice, 5)(), NETS["plain"].images(4), cc.Feature("head", 1)
    whole = cc.find(model, feature, images, density=1.0)
    kernels = {layer: mask.clone() for layer, mask in whole.kernels.items()}
    kernels["conv"][2] = kernels["gate"][2] = False
    circuit = cc.Circuit(feature, kernels, whole.saliency, whole.relevant, provenance=whole.provenance)
    with torch.no_grad():
        model.conv.weight[2] = model.gate.weight[2] = 0  # two constants, their biases
        expected = model(images)[:, 1]
    model = seeded(GatedTwice, 5)()
    same(cc.activations(model, feature, images, circuit=circuit), expected)
    same(cc.extract(model, circuit)(images), expected)


def test_groups_far_from_zero_are_as_exact_as_in_the_model():
    model = seeded(lambda: Odd(lambda x: F.group_norm(x + 300, 2)), 5)().float()
    images, feature = NETS["plain"].images(4).float(), cc.Feature("head", 1)
    small = cc.extract(model, cc.find(model, feature, images, density=1.0))
    same(small(images), model(images)[:, 1].detach(), 1e-4)


DECIDING = {
    "if": lambda x: x * 2 if x.sum() > 0 else x,
    "item": lambda x: x * x.mean().item(),
    "float": lambda x: x * float(x.max()),
}


@pytest.mark.parametrize("what", DECIDING.values(), ids=DECIDING)
def test_control_flow_by_values_is_refused(what):
    model = seeded(lambda: Odd(what), 5)()
    with pytest.raises(cc.ConvCircuitsError, match="depends on the values of a map"):
        circuit_of(model, cc.Feature("head", 1), NETS["plain"].images(), 0.7)


def test_other_errors_say_what_is_wrong():
    case = NETS["plain"]
    model, feature = case.build(), cc.Feature("features.5", 2)
    circuit = circuit_of(model, feature, case.images(), 0.5)
    with pytest.raises(cc.ConvCircuitsError, match="Expected a Circuit, got str"):
        cc.extract(model, "features.5")
    with pytest.raises(cc.ConvCircuitsError, match="weights"):
        cc.extract(NETS["no_bias"].build(), circuit)
    with pytest.raises(cc.ConvCircuitsError, match="No kernel of the circuit lies on a complete path"):
        cc.extract(model, circuit - circuit)
    with pytest.raises(cc.ConvCircuitsError, match="expects 3 channels, but got 4"):
        cc.extract(model, circuit, input_shape=(4, 8, 8))


# ---------------------------------------- sweeps


def sweep_of(model, circuits, shape, effective=True):
    network = Network(model)
    feature = circuits[0].feature
    return Sweep(Subject(network, feature, survey(network, feature, shape)), circuits, effective=effective)


def circuits_of(model, feature, images):
    """Nested ones, equal ones, a dead one, other units, a calibrated one, and the full model."""
    scores = cc.score(model, feature, images[:1], criterion="random", seed=2)
    nested = [cc.prune(scores, density=d) for d in (0.3, 0.6, 0.6, 0.9, 1.0)]
    others = [circuit_of(model, feature, images, 0.5, granularity) for granularity in ("filter", "weight")]
    return [*nested, nested[0] - nested[0], dataclasses.replace(nested[3], **calibration(nested[3].kernels)), *others]


@pytest.mark.parametrize(("name", "layer", "unit"), LAST)
def test_figures_of_a_sweep_are_those_of_masked_runs(name, layer, unit):
    case = NETS[name]
    model, feature = case.build(), cc.Feature(layer, unit)
    images = case.images(5)
    circuits = circuits_of(model, feature, images)
    full = cc.activations(model, feature, images)
    for effective in (True, False):
        options = {"effective": effective, "batch_size": 2}
        reports = evaluate_all(model, circuits, images, **options)
        for n, (circuit, report) in enumerate(zip(circuits, reports, strict=True)):
            kept = cc.activations(model, feature, images, circuit=circuit, effective=effective)
            agree(report, closed_form(counted(full, "all", full), counted(kept, "all", full)))
            if n not in (1, 2, 3):  # which differ from others in their sizes alone
                alone = cc.evaluate(model, circuit, images, **options)
                assert all(getattr(report, name) == getattr(alone, name) for name in COUNTS)


@pytest.mark.oracle
@pytest.mark.parametrize("effective", [True, False], ids=["effective", "published"])
@pytest.mark.parametrize("seed", range(8))
def test_maps_of_a_sweep_of_a_random_net_are_those_of_masked_runs(seed, effective):
    model = seeded(lambda: RandomNet(seed), seed)()
    images = torch.randn(3, 3, 7, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    feature = cc.Feature(model.layer, seed % 3)
    circuits = circuits_of(model, feature, images)
    sweep = sweep_of(model, circuits, (3, 7, 6), effective)
    assert layout_of(sweep.subject, (3, 7, 6))  # so that it is the network that runs
    with torch.no_grad():
        full, *others = sweep.maps(images)
    same(full, cc.activations(model, feature, images))
    for circuit, maps in zip(circuits, others, strict=True):
        same(maps, cc.activations(model, feature, images, circuit=circuit, effective=effective))


@pytest.mark.parametrize(("name", "layer", "unit"), LAST)
def test_some_maps_of_a_sweep_are_those_of_all(name, layer, unit):
    case = NETS[name]
    model, images = case.build(), case.images(3)
    circuits = circuits_of(model, cc.Feature(layer, unit), images)
    sweep, shape = sweep_of(model, circuits, case.input_shape), case.input_shape
    with torch.no_grad():
        every = sweep.maps(images)
        for only in ([0], [3], [6], [7, 1], [9, 0, 6], range(1, 10), []):  # 6 is dead
            for one in (sweep, sweep_of(model, circuits, shape)):
                found = one.maps(images, only)
                assert len(found) == len(only)
                for n, maps in zip(only, found, strict=True):
                    same(maps, every[n])


def test_the_network_of_a_sweep_runs_once_for_each_batch(monkeypatch):
    case = NETS["residual"]
    model, feature = case.build(), cc.Feature(*case.features[-1])
    circuit = circuit_of(model, feature, case.images(), 0.8)
    c, h, w = case.input_shape
    batches = [torch.randn(2, c, h + n, w, dtype=torch.float64) for n in (0, 1, 1, 2)]
    runs, forward = [], CircuitModule.forward
    monkeypatch.setattr(CircuitModule, "forward", lambda module, x: runs.append(tuple(x.shape)) or forward(module, x))
    cc.evaluate(model, circuit, batches)
    assert runs == [tuple(batch.shape) for batch in batches]


@pytest.mark.parametrize("name", ["residual", "same_pad", "se_conv"])
def test_images_of_several_sizes_are_measured_in_one_sweep(name):
    case = NETS[name]
    model, feature = case.build(), cc.Feature(*case.features[-1], position="max")
    circuit = circuit_of(model, feature, case.images(), 0.8)
    c, h, w = case.input_shape
    generator = torch.Generator().manual_seed(3)
    batches = [torch.randn(n, c, h + n, w + 2 * n, generator=generator, dtype=torch.float64) for n in (3, 1, 2)]
    pairs = [[cc.activations(model, feature, b, circuit=given) for given in (None, circuit)] for b in batches]
    best = [full.flatten(1).argmax(1, keepdim=True) for full, _ in pairs]
    full, kept = (
        torch.cat([pair[k].flatten(1).gather(1, at) for pair, at in zip(pairs, best, strict=True)]).numpy()
        for k in range(2)
    )
    report = cc.evaluate(model, circuit, batches)
    agree(report, {key: value for key, value in closed_form(full, kept).items() if key in FIGURES})


def work(model, circuits, images, only=None):
    sweep = sweep_of(model, circuits, tuple(images.shape[1:]))
    sweep.maps(images)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        sweep.maps(images, only)
    return counter.get_total_flops()


@pytest.mark.parametrize("name", ["plain", "residual", "dense", "mobile", "inception"])
def test_what_circuits_share_is_computed_once(name):
    case = NETS[name]
    model, feature, images = case.build(), cc.Feature(*case.features[-1]), case.images()
    scores = cc.score(model, feature, images, criterion="snip", normalizer="layer_l2")
    nested = [cc.prune(scores, density=d) for d in (0.5, 0.7, 0.9)]
    subject = sweep_of(model, nested, tuple(images.shape[1:])).subject
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        subject.maps(images)
    full = counter.get_total_flops()
    assert work(model, [cc.prune(scores, density=1.0)], images) == full  # it is the full model itself
    own = []
    for circuit in nested:
        small = cc.extract(model, circuit)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            small(images)
        own.append(counter.get_total_flops())
    assert work(model, nested, images) < full + sum(own)
    assert work(model, [nested[1]] * 4, images) < full + 2 * own[1]
    assert work(model, nested, images, [0]) == full  # and what is not wanted is not computed
    assert work(model, nested, images, [1]) <= work(model, nested, images, [1, 2]) < work(model, nested, images)
    assert work(model, [*nested, nested[0] - nested[0]], images, [4]) == work(model, nested, images, []) == 0


def test_equal_circuits_cost_as_much_as_one():
    case = NETS["plain"]
    model, feature, images = case.build(), cc.Feature(*case.features[-1]), case.images()
    circuit = cc.find(model, feature, images, criterion="snip", normalizer="layer_l2", density=0.7)
    assert work(model, [circuit] * 4, images) == work(model, [circuit], images)


class LowRank(nn.Module):
    """A Linear whose weight is a matrix and a product of two thin ones, as LoRA adapts it."""

    def __init__(self, inputs, outputs, rank):
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)
        self.down, self.up = nn.Parameter(torch.randn(rank, inputs)), nn.Parameter(torch.randn(outputs, rank))

    def forward(self, x):
        return F.linear(x, self.linear.weight + self.up @ self.down, self.linear.bias)


def test_a_linear_of_low_rank_updates_is_scored_measured_and_extracted():
    model = seeded(
        lambda: nn.Sequential(
            nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Flatten(), LowRank(180, 6, 2), nn.ReLU(), LowRank(6, 3, 1)
        ),
        4,
    )()
    images, feature = NETS["plain"].images(4), cc.Feature("5", 1)
    for density in (0.4, 0.7, 1.0):
        circuit = circuit_of(model, feature, images, density)
        kept = cc.activations(model, feature, images, circuit=circuit)
        same(cc.extract(model, circuit)(images), kept)
        full = cc.activations(model, feature, images)
        agree(cc.evaluate(model, circuit, images), closed_form(full[:, None].numpy(), kept[:, None].numpy()))
    same(kept, model(images)[:, 1].detach())
