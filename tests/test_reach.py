"""Which kernels reach a feature: the probe against a search in the graph, and on real architectures."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision.models as zoo
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

import convcircuits as cc
import oracles
from cases import FEATURES
from convcircuits.network.capture import Network
from convcircuits.network.reach import survey
from meetings import MEETINGS, Two
from nets import NETS, seeded

torch.set_num_threads(1)


def relevant_in(model, feature, shape):
    return survey(Network(model), feature, shape).kernels


def assert_same_masks(a, b):
    assert list(a) == list(b)
    for layer, mask in b.items():
        assert torch.equal(a[layer], mask), layer


def count(masks):
    return sum(int(mask.sum()) for mask in masks.values())


# ---------------------------------------- the tiny nets


@pytest.mark.parametrize(("name", "layer", "unit"), FEATURES)
def test_relevant_kernels_are_those_of_a_graph_search(name, layer, unit):
    case = NETS[name]
    model = case.build()
    expected = oracles.reachable(model, layer, unit, case.input_shape, blocks=case.blocks)
    found = relevant_in(model, cc.Feature(layer, unit), case.input_shape)
    assert_same_masks(found, {k: r for k, r in expected.items() if r.any()})


@pytest.mark.parametrize(("name", "layer", "unit"), FEATURES)
def test_effective_kernels_are_those_of_a_graph_search_inside_the_masks(name, layer, unit):
    case = NETS[name]
    model, feature = case.build(), cc.Feature(layer, unit)
    network = Network(model)
    relevant = relevant_in(model, feature, case.input_shape)
    generator = torch.Generator().manual_seed(0)
    for density in (0.1, 0.25, 0.4, 0.5, 0.6, 0.75, 0.9):
        masks = {k: r & (torch.rand(r.shape, generator=generator) < density) for k, r in relevant.items()}
        expected = oracles.reachable(model, layer, unit, case.input_shape, masks, blocks=case.blocks)
        inside = survey(network, feature, case.input_shape).inside(masks)
        assert_same_masks({k: inside[k] & masks[k] for k in masks}, {k: expected[k] for k in masks})


@pytest.mark.parametrize(("name", "layer", "unit"), FEATURES)
def test_evaluate_counts_relevant_and_effective_kernels_and_filters(name, layer, unit):
    case = NETS[name]
    model, images, feature = case.build(), case.images(2), cc.Feature(layer, unit)
    circuit = cc.find(model, feature, images, criterion="random", density=0.5)
    expected = oracles.reachable(model, layer, unit, case.input_shape, dict(circuit.elements), blocks=case.blocks)
    expected = {k: expected[k] for k in circuit.elements}
    report = cc.evaluate(model, circuit, images)
    assert report.relevant == circuit.relevant == count(relevant_in(model, feature, case.input_shape))
    assert report.effective_kernels == count(expected)
    assert report.effective_filters == sum(int(m.any(1).sum()) for m in expected.values())
    assert report.filters == sum(int(m.any(1).sum()) for m in circuit.elements.values())


@pytest.mark.parametrize("call", [0, 1])
def test_relevance_of_a_layer_that_runs_twice_ends_at_the_call(call):
    case = NETS["twice"]
    model = case.build()
    expected = oracles.reachable(model, "shared", 1, case.input_shape, call=call)
    found = relevant_in(model, cc.Feature("shared", 1, call=call), case.input_shape)
    assert_same_masks(found, {k: r for k, r in expected.items() if r.any()})


def test_a_direction_reaches_what_its_nonzero_units_reach():
    case = NETS["grouped"]
    model = case.build()
    for direction in ([0.0, 0.0, 0.0, 2.0], [1.0, 0.0, 0.0, -2.0]):
        unit = torch.tensor(direction, dtype=torch.float64)
        expected = oracles.reachable(model, "conv3", unit, case.input_shape)
        assert_same_masks(relevant_in(model, cc.Feature("conv3", unit), case.input_shape), expected)


# ---------------------------------------- the weights play no part


@pytest.mark.parametrize("fill", [0.0, -1.0, 1e30], ids=str)
@pytest.mark.parametrize("name", ["plain", "residual", "mobile", "se_conv", "se_linear", "dense", "flat_head"])
def test_relevance_is_the_same_whatever_the_weights(name, fill):
    case = NETS[name]
    model, feature = case.build(), cc.Feature(*case.features[-1])
    expected = relevant_in(model, feature, case.input_shape)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(fill)
    assert_same_masks(relevant_in(model, feature, case.input_shape), expected)


def frozen_norms(model):
    """Replace every BatchNorm by torchvision's frozen one, which is written out as x * scale + bias."""
    for module in list(model.modules()):
        for key, child in module._modules.items():
            if isinstance(child, nn.BatchNorm2d):
                frozen = FrozenBatchNorm2d(child.num_features, eps=child.eps).double()
                for part in ("weight", "bias", "running_mean", "running_var"):
                    getattr(frozen, part).copy_(getattr(child, part).detach())
                module._modules[key] = frozen
    return model


@pytest.mark.parametrize("name", ["residual", "mobile", "dense"])
def test_a_written_out_normalisation_hides_no_kernel(name):
    case = NETS[name]
    feature = cc.Feature(*case.features[-1])
    expected = relevant_in(case.build(), feature, case.input_shape)
    assert_same_masks(relevant_in(frozen_norms(case.build()), feature, case.input_shape), expected)


@pytest.mark.parametrize("meeting", MEETINGS)
def test_every_kernel_of_two_convolutions_that_meet_is_relevant(meeting):
    torch.manual_seed(0)
    model = Two(MEETINGS[meeting])
    model(torch.randn(1, 3, 8, 8))
    found = relevant_in(model.double().eval(), cc.Feature("head", 0), (3, 8, 8))
    assert {k: int(m.sum()) for k, m in found.items() if k != "head"} == {"a": 24, "b": 24}
    assert bool(found["head"][0].all())
    assert not found["head"][1].any()


GATES = {
    "no sigmoid": lambda b: F.relu(b.mean((2, 3), keepdim=True)),
    "sigmoid": torch.sigmoid,
    "resized": lambda b: F.interpolate(torch.sigmoid(F.avg_pool2d(b, 2)), size=b.shape[2:]),
    "one minus": lambda b: 1 - torch.sigmoid(b),
    "softmax": lambda b: torch.softmax(b, 1),
}


@pytest.mark.parametrize("gate", GATES)
def test_what_a_dead_gate_scales_stays_live(gate):
    torch.manual_seed(0)
    model = Two(lambda net, a, b: a * GATES[gate](b))
    model(torch.randn(1, 3, 8, 8))
    network, feature = Network(model.double().eval()), cc.Feature("head", 0)
    masks = dict(survey(network, feature, (3, 8, 8)).kernels)
    masks["b"] = torch.zeros_like(masks["b"])
    found = survey(network, feature, (3, 8, 8)).inside(masks)
    assert int(found["a"].sum()) == 24
    assert int(found["head"].sum()) == 8


UNTOLD = {
    "control flow": (lambda net, a, b: a if b.mean() > 0 else b, r"depends on the values of a map \(item\)"),
    "numpy": (lambda net, a, b: a * float(b.detach().numpy().max()), r"depends on the values of a map \(numpy\)"),
    "an array": (lambda net, a, b: a * float(np.asarray(b.detach()).max()), r"of a map \((__array__|numpy)\)"),
    "a list": (lambda net, a, b: a if b.flatten().tolist()[0] > 0 else b, r"the values of a map \(tolist\)"),
    "a number": (lambda net, a, b: a * b.max().item(), r"depends on the values of a map \(item\)"),
    "chosen values": (lambda net, a, b: a + a[a > 0].sum(), "depends on the values of a map"),
    "product of maps": (lambda net, a, b: torch.matmul(a, b), "mixes maps with bmm"),
    "computed weight": (
        lambda net, a, b: torch.einsum("nchw,cd->ndhw", a, net.scale[:, :, 0] * torch.ones(8, 8)),
        "multiplies by a weight with",
    ),
    "windows": (lambda net, a, b: a.reshape(-1, 8, 3, 3), "windows or tokens split along the batch"),
    "other images": (lambda net, a, b: a - b.mean(0), "depends on the other images"),
    "a factor of other images": (lambda net, a, b: a * b.flip(0), "depends on the other images"),
    "a gate of other images": (lambda net, a, b: a * b.mean().sigmoid(), "depends on the other images"),
    "a divisor of other images": (lambda net, a, b: a / b.abs().max(), "depends on the other images"),
    "statistics of the batch": (lambda net, a, b: F.batch_norm(a, None, None, training=True), "other images"),
    "put at places": (
        lambda net, a, b: a.clone().put_(torch.tensor([0, 40]), torch.ones(2).to(a)) + b,
        "uses indices across all images",
    ),
    "taken from places": (
        lambda net, a, b: a + b.take(torch.arange(288)).reshape(1, 8, 6, 6),
        "uses indices across all images",
    ),
    "strides": (lambda net, a, b: a.as_strided((2, 8, 3, 3), (288, 36, 6, 1)), "with other strides"),
    "another memory": (lambda net, a, b: (setattr(a, "data", b * 2), a + b)[1], r"assigns to the \.data of a map"),
    "a part of its memory": (lambda net, a, b: (setattr(a, "data", a[:, :4]), a + b[:, :4])[1], r"the \.data of a map"),
    "another form": (lambda net, a, b: a + copy.deepcopy(b), "memory of a map as another dtype"),
    "sparse": (lambda net, a, b: F.relu(a).to_sparse().to_dense() + b, r"could not measure .*layout torch\.sparse"),
    "dropout": (lambda net, a, b: F.dropout(a + b), r"draws random numbers \(bernoulli\)"),
    "noise": (lambda net, a, b: a + torch.randn_like(b), r"draws random numbers \(randn_like\)"),
}


@pytest.mark.parametrize("meeting", UNTOLD)
def test_what_cannot_be_told_is_an_error_that_says_why(meeting):
    torch.manual_seed(0)
    meet, words = UNTOLD[meeting]
    model = Two(lambda net, a, b: a + b)
    model(torch.randn(1, 3, 8, 8))
    model.meet = meet
    with pytest.raises(cc.ConvCircuitsError, match=words):
        relevant_in(model.eval(), cc.Feature("head", 0), (3, 8, 8))
    assert count(relevant_in(model, cc.Feature("b", 0), (3, 8, 8))) == 3


# ---------------------------------------- deep nets


@pytest.mark.slow
@pytest.mark.parametrize("activation", [nn.ReLU, nn.Sigmoid, nn.Tanh, nn.SiLU, nn.Hardswish])
def test_a_deep_net_does_not_underflow(activation):
    layers = [nn.Conv2d(3, 3, 1)]
    for _ in range(200):
        layers += [nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), activation()]
    model = nn.Sequential(*layers).eval()
    for layer in ("598", "599", "600"):
        assert count(relevant_in(model, cc.Feature(layer, 1), (3, 6, 6))) == 9 * 200 + 3


def test_a_deep_residual_net_neither_overflows_nor_underflows():
    class Deep(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList(nn.Conv2d(3, 3, 3, padding=1) for _ in range(150))

        def forward(self, x):
            for block in self.blocks:
                x = x + F.relu(block(x))
            return x

    model = nn.Sequential(Deep(), nn.Conv2d(3, 2, 1)).eval()
    assert count(relevant_in(model, cc.Feature("1", 1), (3, 6, 6))) == 9 * 150 + 3


# ---------------------------------------- real architectures


@pytest.mark.zoo
@pytest.mark.parametrize(
    ("layer", "number"), [("features.6", 12_672), ("features.8", 86_592), ("features.10", 184_768)]
)
def test_alexnet_counts(layer, number):
    with torch.device("meta"):
        model = zoo.alexnet(weights=None)
    model = model.to_empty(device="cpu").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    for unit in (0, 9):
        circuit = cc.Circuit.from_masks(model, cc.Feature(layer, unit), {})
        assert circuit.relevant == number
        assert len(circuit) == 0


# ---------------------------------------- what cannot be surveyed


def test_errors_say_what_is_there():
    case = NETS["plain"]
    model = case.build()
    for feature, words in (
        (cc.Feature("features.33", 0), "features.3"),
        (cc.Feature("features.3", 5), "0 to 4"),
        (cc.Feature("features.3", torch.ones(4)), "4 coefficients"),
        (cc.Feature("features.3", 0, call=1), "runs only 1"),
    ):
        with pytest.raises(cc.ConvCircuitsError, match=words):
            relevant_in(model, feature, case.input_shape)
    with pytest.raises(cc.ConvCircuitsError, match="3 channels"):
        relevant_in(model, cc.Feature("features.3", 0), (4, 8, 8))
    with pytest.raises(cc.ConvCircuitsError, match="too small"):
        relevant_in(model, cc.Feature("features.5", 0), (3, 2, 2))


def test_a_layer_without_a_kernel_before_it_carries_no_circuit():
    model = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(3, 2, 1)).double()
    with pytest.raises(cc.ConvCircuitsError, match="No kernel"):
        relevant_in(model, cc.Feature("0", 0), (3, 8, 8))


def test_what_comes_after_the_feature_need_not_run():
    def make():
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 2))

    model = seeded(make, 0)()
    assert count(relevant_in(model, cc.Feature("0", 1), (3, 11, 11))) == 3
    with pytest.raises(cc.ConvCircuitsError):
        relevant_in(model, cc.Feature("3", 1), (3, 11, 11))
