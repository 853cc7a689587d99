"""The oracles against each other, wherever theory says that two of them must agree."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import alexnet

import oracles
from cases import FEATURES, LAST
from nets import NETS

pytestmark = pytest.mark.oracle


def random_masks(relevant, density, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {name: kept & (torch.rand(kept.shape, generator=generator) < density) for name, kept in relevant.items()}


def same(a, b, atol=1e-10):
    assert list(a) == list(b)
    for name in a:
        torch.testing.assert_close(
            a[name], b[name], rtol=1e-8, atol=atol, equal_nan=True, msg=lambda m, name=name: f"{name}: {m}"
        )


def hadamard(n):
    signs = torch.ones(1, 1, dtype=torch.float64)
    while len(signs) < n:
        signs = torch.cat([torch.cat([signs, signs], 1), torch.cat([signs, -signs], 1)])
    return signs


# ---------------------------------------- nets


@pytest.mark.parametrize("name", NETS)
def test_nets_are_seeded_and_leave_the_random_state_alone(name):
    torch.manual_seed(5)
    state = torch.get_rng_state()
    one, two = NETS[name].build(), NETS[name].build()
    assert torch.equal(state, torch.get_rng_state())
    same(one.state_dict(), two.state_dict(), atol=0)
    assert not any(module.training for module in one.modules())
    assert {p.dtype for p in one.parameters()} == {torch.float64}


# ---------------------------------------- maps and products


@pytest.mark.parametrize(("name", "layer", "unit"), FEATURES)
def test_masks_of_ones_change_nothing(name, layer, unit):
    case = NETS[name]
    model, images = case.build(), case.images()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    full = oracles.full_map(model, layer, unit, images)
    assert full.shape[0] == len(images)
    assert full.std() > 1e-3
    relevant = oracles.reachable(model, layer, unit, case.input_shape, blocks=case.blocks)
    for masks in ({}, relevant):
        torch.testing.assert_close(oracles.masked_map(model, masks, layer, unit, images, blocks=case.blocks), full)
        torch.testing.assert_close(oracles.circuit_map(model, masks, layer, unit, images, blocks=case.blocks), full)
    same(before, model.state_dict(), atol=0)


def test_a_direction_is_the_weighted_sum_of_units():
    case = NETS["residual"]
    model, images = case.build(), case.images()
    direction = torch.tensor([0.5, -2.0, 0.0])
    units = [oracles.full_map(model, "head", u, images) for u in range(3)]
    expected = 0.5 * units[0] - 2.0 * units[1]
    torch.testing.assert_close(oracles.full_map(model, "head", direction, images), expected)
    torch.testing.assert_close(oracles.circuit_map(model, {}, "head", direction, images), expected)


@pytest.mark.parametrize(("name", "layer", "unit"), LAST)
def test_pre_sum_maps_add_up_to_the_raw_output(name, layer, unit):
    case = NETS[name]
    model, images = case.build(), case.images(1)
    products = oracles.kernel_products(model, layer, unit, images[0], blocks=case.blocks)
    for kernels, calls in products.items():
        bias = model.get_submodule(kernels).bias
        for call, (z, g) in enumerate(calls):
            total = z.sum(1)
            assert g.shape == total.shape
            for o in range(len(total)):
                out = oracles.full_map(model, kernels, o, images, call=call)[0]
                torch.testing.assert_close(total[o] + (0.0 if bias is None else bias[o].detach()), out)


def test_a_shared_layer_has_one_product_per_call_and_a_feature_in_it_needs_its_call():
    case = NETS["twice"]
    model, images = case.build(), case.images(1)
    products = oracles.kernel_products(model, "head", 1, images[0])
    assert {name: len(calls) for name, calls in products.items()} == {"stem": 1, "shared": 2, "head": 1}
    with pytest.raises(ValueError, match="several times"):
        oracles.full_map(model, "shared", 1, images)
    first = oracles.kernel_products(model, "shared", 1, images[0], call=0)
    assert {name: len(calls) for name, calls in first.items()} == {"stem": 1, "shared": 1}
    kernels = oracles.reachable(model, "shared", 1, case.input_shape, call=0)["shared"]
    assert kernels.nonzero()[:, 0].unique().tolist() == [1]
    assert oracles.reachable(model, "shared", 1, case.input_shape, call=1)["shared"].all()


def test_masked_map_by_hand():
    case = NETS["flat_head"]
    model, images = case.build(), case.images()
    masks = {
        "features.0": torch.ones(4, 3, dtype=torch.bool),
        "classifier.1": torch.ones(5, 4, dtype=torch.bool),
    }
    masks["features.0"][2, 1] = masks["classifier.1"][3, 0] = False
    expected = case.build()
    with torch.no_grad():
        expected.features[0].weight[2, 1] = 0.0
        expected.classifier[1].weight[3, 0 * 8 : 1 * 8] = 0.0
        torch.testing.assert_close(
            oracles.masked_map(model, masks, "classifier.4", 1, images, blocks=case.blocks),
            expected(images)[:, 1],
        )


def test_standardised_weights_are_masked_after_standardising():
    case = NETS["standardised"]
    model, images = case.build(), case.images()
    mask = torch.ones(4, 3, dtype=torch.bool)
    mask[1, 2] = False
    weight = model.conv1.weight.detach()
    weight = F.instance_norm(weight.reshape(1, 4, -1), eps=1e-5).reshape(weight.shape)
    expected = F.conv2d(images, weight * mask[:, :, None, None], model.conv1.bias.detach(), padding=1)[:, 1]
    torch.testing.assert_close(oracles.masked_map(model, {"conv1": mask}, "conv1", 1, images), expected)


# ---------------------------------------- saliencies


@pytest.mark.parametrize(("name", "layer", "unit"), FEATURES)
def test_signed_actgrad_is_signed_snip_is_the_mask_gradient(name, layer, unit):
    case = NETS[name]
    model, images = case.build(), case.images(2)
    relevant = oracles.reachable(model, layer, unit, case.input_shape, blocks=case.blocks)
    for masks in (None, random_masks(relevant, 0.7)):
        options = {"masks": masks, "blocks": case.blocks}
        snip = oracles.snip(model, layer, unit, images, normalizer="sum", signed=True, **options)
        assert list(snip) == list(relevant)
        same(snip, oracles.actgrad(model, layer, unit, images, normalizer="sum", signed=True, **options))
        same(snip, oracles.mask_gradient(model, layer, unit, images, **options))
        if masks is None:
            assert all(snip[kernels][~kept].abs().sum() == 0 for kernels, kept in relevant.items())
            assert all(snip[kernels].abs().sum() > 0 for kernels, kept in relevant.items() if kept.any())


@pytest.mark.parametrize("collapse", ["abs", "sum", "square"])
@pytest.mark.parametrize("position", ["all", "max", "center", (1, 2)])
def test_the_identity_holds_for_every_collapse_and_position(collapse, position):
    case = NETS["residual"]
    model, images = case.build(), case.images(2)
    options = {"collapse": collapse, "position": position}
    snip = oracles.snip(model, "block2.conv2", 3, images, normalizer="sum", signed=True, **options)
    same(snip, oracles.mask_gradient(model, "block2.conv2", 3, images, **options))
    same(
        snip,
        oracles.actgrad(model, "block2.conv2", 3, images, normalizer="sum", signed=True, **options),
    )


@pytest.mark.parametrize(("name", "layer", "unit"), LAST)
def test_absolute_values_and_normalizers(name, layer, unit):
    case = NETS[name]
    model, images = case.build(), case.images(2)
    signed = oracles.mask_gradient(model, layer, unit, images, blocks=case.blocks)
    elements = {
        kernels: model.get_submodule(kernels).weight[0].numel() // values.shape[1] for kernels, values in signed.items()
    }
    products = oracles.kernel_products(model, layer, unit, images[0], blocks=case.blocks)
    positions = {kernels: calls[0][1][0].numel() for kernels, calls in products.items()}
    for criterion, sizes in ((oracles.snip, elements), (oracles.actgrad, positions)):
        total = criterion(model, layer, unit, images, normalizer="sum", blocks=case.blocks)
        published = criterion(model, layer, unit, images, blocks=case.blocks)
        same(total, {kernels: values * sizes[kernels] for kernels, values in published.items()})
        for kernels, values in total.items():
            assert (values >= signed[kernels].abs() - 1e-10).all()


def test_saliencies_are_means_over_images():
    case = NETS["mobile"]
    model, images = case.build(), case.images(3)
    for criterion in (oracles.snip, oracles.actgrad, oracles.mask_gradient):
        alone = [criterion(model, "head", 1, image[None]) for image in images]
        same(
            criterion(model, "head", 1, images.flip(0)),
            {kernels: sum(one[kernels] for one in alone) / 3 for kernels in alone[0]},
        )


def test_a_masked_kernel_still_gets_a_score():
    case = NETS["grouped"]
    model, images = case.build(), case.images(2)
    mask = torch.ones(6, 2, dtype=torch.bool)
    mask[4, 1] = False
    for criterion in (oracles.snip, oracles.actgrad):
        assert criterion(model, "conv3", 3, images, masks={"conv2": mask})["conv2"][4, 1] > 0


@pytest.mark.parametrize("name", ["residual", "twice", "standardised", "se_conv", "flat_head"])
def test_the_mask_gradient_by_finite_differences(name):
    case = NETS[name]
    layer, unit = case.features[-1]
    model, images = case.build(), case.images(1)
    gradient = oracles.mask_gradient(model, layer, unit, images, collapse="square", blocks=case.blocks)
    step = 1e-6
    for kernels, values in gradient.items():
        at = divmod(int(values.abs().argmax()), values.shape[1])
        losses = []
        for sign in (1, -1):
            mask = torch.ones_like(values)
            mask[at] += sign * step
            masked = oracles.masked_map(model, {kernels: mask}, layer, unit, images, blocks=case.blocks)
            losses.append(float((masked**2).sum()))
        assert (losses[0] - losses[1]) / (2 * step) == pytest.approx(float(values[at]), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize(("name", "layer", "unit"), LAST)
def test_gauss_newton_is_the_square_of_the_summed_products(name, layer, unit):
    case = NETS[name]
    model, images = case.build(), case.images(1)
    full = oracles.full_map(model, layer, unit, images)
    sign = torch.where(torch.rand(full[0].shape, generator=torch.Generator().manual_seed(3)) < 0.5, -1.0, 1.0)
    plain = oracles.gauss_newton(model, layer, unit, images, signs=[sign], blocks=case.blocks)
    assert all((values >= 0).all() for values in plain.values())
    ones = oracles.gauss_newton(model, layer, unit, images, signs=[torch.ones_like(sign)], blocks=case.blocks)
    linear = oracles.mask_gradient(model, layer, unit, images, collapse="sum", blocks=case.blocks)
    same(ones, {kernels: values**2 for kernels, values in linear.items()})


@pytest.mark.parametrize(("layer", "unit", "size"), [("features.3", 1, 4), ("features.5", 2, 2)])
def test_gauss_newton_with_all_hadamard_signs_is_the_squared_change_of_the_map(layer, unit, size):
    case = NETS["plain"]
    model, images = case.build(), case.images(2)
    signs = list(hadamard(size * size).reshape(-1, size, size))
    same(
        oracles.gauss_newton(model, layer, unit, images, signs=signs),
        oracles.map_change(model, layer, unit, images),
    )


def test_centered_gauss_newton_of_one_convolution_by_hand():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(2, 2, 3, padding=1)).double().eval()
        images = torch.randn(3, 2, 4, 4, dtype=torch.float64)
        sign = torch.where(torch.rand(4, 4) < 0.5, -1.0, 1.0).double()
    scores = oracles.gauss_newton(model, "0", 1, images, signs=[sign], centered=True)["0"]
    for i in range(2):
        z = F.conv2d(images[:, i : i + 1], model[0].weight.detach()[1:2, i : i + 1], padding=1)[:, 0]
        expected = ((sign * (z - z.mean())).sum((1, 2)) ** 2).mean()
        torch.testing.assert_close(scores[1, i], expected)
    assert (scores[0] == 0).all()


def test_centered_gauss_newton_ignores_a_constant_added_to_a_channel():
    def build(shift):
        case = NETS["pooled_head"].build()
        conv = nn.Conv2d(4, 3, 1).double()
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            conv.weight.normal_()
            bias = torch.randn(3, dtype=torch.float64)
            conv.bias.copy_(bias - conv.weight[:, 1, 0, 0] * shift)
            case.conv1.bias[1] += shift
        return nn.Sequential(case.conv1, conv, nn.Tanh(), nn.Conv2d(3, 1, 3).double()).eval()

    images = NETS["pooled_head"].images(2)
    one, two = build(0.0), build(7.0)
    two[3].load_state_dict(one[3].state_dict())
    signs = list(torch.where(torch.randn(2, 8, 8, generator=torch.Generator().manual_seed(2)) < 0, -1.0, 1.0))
    centered = [oracles.gauss_newton(m, "3", 0, images, signs=signs, centered=True)["1"] for m in (one, two)]
    torch.testing.assert_close(*centered)
    plain = [oracles.gauss_newton(m, "3", 0, images, signs=signs)["1"] for m in (one, two)]
    assert (plain[0][:, 1] - plain[1][:, 1]).abs().max() > 1e-3


# ---------------------------------------- reachability and the circuit's function


@pytest.mark.parametrize(("name", "layer", "unit"), FEATURES)
def test_kernels_that_are_not_relevant_do_not_change_the_map(name, layer, unit):
    case = NETS[name]
    model, images = case.build(), case.images(1)
    full = oracles.full_map(model, layer, unit, images)
    relevant = oracles.reachable(model, layer, unit, case.input_shape, blocks=case.blocks)
    for kernels, kept in relevant.items():
        for o, i in (~kept).nonzero().tolist():
            mask = torch.ones(kept.shape)
            mask[o, i] = 0.0
            masked = oracles.masked_map(model, {kernels: mask}, layer, unit, images, blocks=case.blocks)
            assert torch.equal(masked, oracles.masked_map(model, {}, layer, unit, images, blocks=case.blocks)), (
                kernels,
                o,
                i,
            )
            torch.testing.assert_close(masked, full)


@pytest.mark.parametrize(("name", "layer", "unit"), FEATURES)
def test_reachable_is_where_a_positive_network_has_a_gradient(name, layer, unit, monkeypatch):
    """Positive weights, no bias, no shift: nothing cancels, so a gradient is zero only where no path is."""
    case = NETS[name]
    model = case.build()
    for module in model.modules():
        if oracles.is_kernel_layer(module):
            module.bias = None
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data.abs_()
            module.bias.data.zero_()
            module.running_mean.zero_()
    positive = {
        cls: (lambda module, weight=weight: weight(module).abs(), pad) for cls, (weight, pad) in oracles.CLASSES.items()
    }
    monkeypatch.setattr(oracles, "CLASSES", positive)
    images = 0.02 * case.images(1).abs() + 0.001  # small: ReLU6 must not saturate
    relevant = oracles.reachable(model, layer, unit, case.input_shape, blocks=case.blocks)
    for seed, density in enumerate((1.0, 0.7, 0.4)):
        masks = None if density == 1.0 else random_masks(relevant, density, seed)
        found = oracles.reachable(model, layer, unit, case.input_shape, masks, blocks=case.blocks)
        gradient = oracles.mask_gradient(model, layer, unit, images, collapse="sum", masks=masks, blocks=case.blocks)
        assert list(found) == list(gradient)
        for kernels, kept in found.items():
            inside = torch.ones_like(kept) if masks is None else masks[kernels]
            assert torch.equal(kept, inside & (gradient[kernels] > 0)), (kernels, density)


def test_counts_of_relevant_kernels_by_hand():
    expected = {
        ("plain", "features.5", 2): 4 * 3 + 5 * 4 + 5,
        ("inception", "last", 2): 4 * 3 + 2 * 4 + 3 * 4 + 3 * 3 + 2 * 4 + 7,
        ("inception", "three", 1): 4 * 3 + 0 + 3 * 4 + 3,
        ("grouped", "conv3", 3): 2 * 3 + 3 * 2 + 3,  # one group of conv2, so channels 2 and 3 of conv1
        ("mobile", "multiply", 3): 4 * 3 + 6 * 4 + 6 + 6 + 1,  # channel 1: project's filter 1
        ("flat_head", "classifier.1", 3): 4 * 3 + 4,
        ("flat_head", "classifier.4", 1): 4 * 3 + 5 * 4 + 5,
        ("residual", "block2.down.0", 2): 4 * 3 + 4 * 4 + 4 * 4 + 4,
        ("se_conv", "conv2", 1): 4 * 3 + 3 * 4 + 4 * 3 + 4,
        ("dense", "layer2.conv", 1): 3 * 3 + 2 * 3 + 5,
        ("twice", "head", 1): 4 * 3 + 4 * 4 + 4,
    }
    for (name, layer, unit), number in expected.items():
        case = NETS[name]
        found = oracles.reachable(case.build(), layer, unit, case.input_shape, blocks=case.blocks)
        assert oracles.count(found) == number, name


@pytest.mark.zoo
@pytest.mark.parametrize(("layer", "number"), [("features.6", 12672), ("features.8", 86592), ("features.10", 184768)])
def test_alexnet_counts(layer, number, empty_alexnet):
    assert oracles.count(oracles.reachable(empty_alexnet, layer, 9, (3, 224, 224))) == number


@pytest.fixture(scope="module")
def empty_alexnet():
    with torch.device("meta"):
        model = alexnet(weights=None)
    return model.to_empty(device="cpu").eval()


@pytest.mark.parametrize(("name", "layer", "unit"), FEATURES)
@pytest.mark.parametrize("density", [0.6, 0.3])
def test_only_effective_kernels_matter_to_the_circuit(name, layer, unit, density):
    case = NETS[name]
    model, images = case.build(), case.images(1)
    relevant = oracles.reachable(model, layer, unit, case.input_shape, blocks=case.blocks)
    masks = random_masks(relevant, density, seed=2)
    effective = oracles.reachable(model, layer, unit, case.input_shape, masks, blocks=case.blocks)
    assert all((effective[kernels] <= masks[kernels]).all() for kernels in masks)
    same(effective, oracles.reachable(model, layer, unit, case.input_shape, effective, blocks=case.blocks))
    torch.testing.assert_close(
        oracles.circuit_map(model, masks, layer, unit, images, blocks=case.blocks),
        oracles.circuit_map(model, effective, layer, unit, images, blocks=case.blocks),
    )


def silence_dead_filters(model, effective):
    """In place: no bias for a dead filter, and no shift of the BatchNorm right after it."""
    after = {"stem": "bn", "conv1": "bn1", "conv2": "bn2", "0": "1"}
    for name, kept in effective.items():
        conv, dead = model.get_submodule(name), ~kept.any(1)
        if conv.bias is not None:
            conv.bias.data[dead] = 0.0
        parent, _, own = name.rpartition(".")
        norm = getattr(model.get_submodule(parent), after.get(own, ""), None)
        if isinstance(norm, nn.BatchNorm2d):
            norm.bias.data[dead] = 0.0
            norm.running_mean[dead] = 0.0


@pytest.mark.parametrize(
    ("name", "layer", "unit"), [p for p in FEATURES if p.values[0] not in ("se_conv", "se_linear", "twice")]
)
@pytest.mark.parametrize("density", [0.7, 0.4])
def test_the_circuit_is_the_masked_network_with_its_dead_filters_silenced(name, layer, unit, density):
    case = NETS[name]
    model, images = case.build(), case.images(2)
    relevant = oracles.reachable(model, layer, unit, case.input_shape, blocks=case.blocks)
    masks = random_masks(relevant, density, seed=4)
    effective = oracles.reachable(model, layer, unit, case.input_shape, masks, blocks=case.blocks)
    circuit = oracles.circuit_map(model, masks, layer, unit, images, blocks=case.blocks)
    silence_dead_filters(model, effective)
    masked = oracles.masked_map(model, effective, layer, unit, images, blocks=case.blocks)
    torch.testing.assert_close(circuit, masked)


def test_without_biases_the_circuit_is_the_masked_network():
    case = NETS["no_bias"]
    model, images = case.build(), case.images(2)
    relevant = oracles.reachable(model, "features.5", 0, case.input_shape)
    for seed in range(4):
        masks = random_masks(relevant, 0.4, seed)
        torch.testing.assert_close(
            oracles.circuit_map(model, masks, "features.5", 0, images),
            oracles.masked_map(model, masks, "features.5", 0, images),
        )


def test_a_dead_feature_is_zero_and_a_dead_residual_branch_adds_nothing():
    case = NETS["residual"]
    model, images = case.build(), case.images(2)
    relevant = oracles.reachable(model, "head", 0, case.input_shape)
    nothing = {name: torch.zeros_like(kept) for name, kept in relevant.items()}
    assert (oracles.circuit_map(model, nothing, "head", 0, images) == 0).all()
    assert (oracles.masked_map(model, nothing, "head", 0, images) != 0).any()

    masks = dict(relevant)
    masks["block1.conv2"] = torch.zeros_like(relevant["block1.conv2"])
    with torch.no_grad():
        x = F.relu(model.bn(model.stem(images)))  # block1 is the identity: x is positive already
        expected = model.head(model.block2(x))[:, 0]
    torch.testing.assert_close(oracles.circuit_map(model, masks, "head", 0, images), expected)


@pytest.mark.parametrize("name", ["se_conv", "se_linear"])
def test_a_dead_gate_is_its_constant_and_a_dead_map_needs_no_gate(name):
    case = NETS[name]
    model, images = case.build(), case.images(2)
    layer, unit = case.features[0]
    relevant = oracles.reachable(model, layer, unit, case.input_shape)
    masks = {kernels: kept.clone() for kernels, kept in relevant.items()}
    masks["se.fc2"][2] = False
    masks["se.fc1"][1] = False  # a dead hidden channel: not read
    masks["conv1"][3] = False  # a dead map: multiplies its gate by nothing
    effective = oracles.reachable(model, layer, unit, case.input_shape, masks)
    assert not effective["se.fc2"][3].any()
    assert not effective["conv2"][:, 3].any()
    assert effective["conv2"][unit, 2]
    assert not effective["se.fc1"][:, 3].any()
    with torch.no_grad():
        x = F.relu(model.bn1(model.conv1(images)))
        x[:, 3] = 0.0
        w1 = model.se.fc1.weight.reshape(3, 4)
        w2 = model.se.fc2.weight.reshape(4, 3)
        hidden = F.relu(F.linear(x.mean((2, 3)), w1, model.se.fc1.bias))
        hidden[:, 1] = 0.0
        gate = torch.sigmoid(F.linear(hidden, w2, model.se.fc2.bias))
        gate[:, 2] = torch.sigmoid(model.se.fc2.bias[2])
        expected = model.conv2(x * gate[:, :, None, None])[:, unit]
    torch.testing.assert_close(oracles.circuit_map(model, masks, layer, unit, images), expected)


class GatedSum(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 2, 1), nn.Conv2d(3, 2, 1)
        self.gate = nn.Conv2d(2, 2, 1)
        self.last = nn.Conv2d(2, 1, 1)

    def forward(self, x):
        a, b = self.a(x), self.b(x)
        return self.last(a * torch.sigmoid(self.gate(F.adaptive_avg_pool2d(b, 1))) + b)


def test_the_gate_of_a_dead_map_is_not_effective_though_the_sum_goes_on():
    masks = {"a": torch.tensor([[True] * 3, [False] * 3])}
    effective = oracles.reachable(GatedSum().eval(), "last", 0, (3, 4, 4), masks)
    assert effective["gate"].tolist() == [[True, True], [False, False]]
    assert effective["b"].all()
    assert effective["last"].all()


def test_liveness_of_a_shared_layer_is_per_call():
    case = NETS["twice"]
    model, images = case.build(), case.images(1)
    masks = {
        name: torch.zeros_like(kept) for name, kept in oracles.reachable(model, "head", 1, case.input_shape).items()
    }
    masks["stem"][0, 1] = masks["shared"][1, 0] = masks["shared"][2, 1] = masks["shared"][3, 2] = True
    masks["head"][1] = True
    effective = oracles.reachable(model, "head", 1, case.input_shape, masks)
    assert [n.nonzero().tolist() for n in effective.values()] == [[[0, 1]], [[1, 0], [2, 1]], [[1, 2]]]
    with torch.no_grad():
        w, b = model.shared.weight, model.shared.bias
        x = F.relu(F.conv2d(images[:, 1:2], model.stem.weight[:1, 1:2], model.stem.bias[:1]))
        x = F.relu(F.conv2d(x, w[1:2, 0:1], b[1:2], padding=1))
        x = F.relu(F.conv2d(x, w[2:3, 1:2], b[2:3], padding=1))
        expected = F.conv2d(x, model.head.weight[1:2, 2:3], model.head.bias[1:2])[:, 0]
    torch.testing.assert_close(oracles.circuit_map(model, masks, "head", 1, images), expected)


def test_a_calibration_scales_kernels_and_shifts_the_raw_output_of_live_filters():
    case = NETS["plain"]
    model, images = case.build(), case.images(2)
    gain, offset = torch.linspace(0.5, 2, 12).reshape(4, 3), torch.tensor([0.0, 0.2, -0.1, 0.3])
    masks = {"features.0": torch.ones(4, 3, dtype=torch.bool)}
    masks["features.0"][1] = False
    found = oracles.circuit_map(
        model, masks, "features.3", 1, images, gain={"features.0": gain}, offset={"features.0": offset}
    )
    with torch.no_grad():
        first = model.features[0]
        weight = first.weight * gain[:, :, None, None]
        x = F.conv2d(images, weight, first.bias + offset, first.stride, first.padding)
        x[:, 1] = 0.0
        expected = model.features[3](F.max_pool2d(F.relu(x), 2))[:, 1]
    torch.testing.assert_close(found, expected)


class Shuffled(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.last = nn.Conv2d(4, 2, 1)

    def forward(self, x):
        return self.last(self.conv(x).flip(1))


def test_unknown_operations_and_unknown_layers_are_errors():
    with pytest.raises(NotImplementedError, match="flip"):
        oracles.reachable(Shuffled().eval(), "last", 0, (3, 4, 4))
    case = NETS["plain"]
    with pytest.raises(ValueError, match=r"features\.9"):
        oracles.masked_map(case.build(), {"features.9": torch.ones(1, 1)}, "features.3", 0, case.images(1))


# ---------------------------------------- selection


def test_topk_breaks_ties_by_layer_then_out_then_in_and_never_takes_nan():
    nan = math.nan
    scores = {
        "b": torch.tensor([[1.0, nan], [2.0, 1.0]]),
        "a": torch.tensor([[1.0, 3.0]]),
    }
    order = [("a", 0, 1), ("b", 1, 0), ("b", 0, 0), ("b", 1, 1), ("a", 0, 0)]
    for k in range(7):
        kept = oracles.topk(scores, k)
        found = {(name, o, i) for name, mask in kept.items() for o, i in mask.nonzero().tolist()}
        assert found == set(order[:k])


def test_force_in_one_step_is_snip_and_its_last_step_is_exact():
    case = NETS["plain"]
    model, images = case.build(), case.images(2)
    relevant = oracles.reachable(model, "features.5", 2, case.input_shape)
    snip = oracles.nan_outside(oracles.snip(model, "features.5", 2, images), relevant)
    same(oracles.force(model, "features.5", 2, images, 9, 1).circuit, oracles.topk(snip, 9), atol=0)

    result = oracles.force(model, "features.5", 2, images, 12, 5)
    assert oracles.force_schedule(37, 12, 5) == result.counts == [30, 24, 19, 16, 12]
    assert [oracles.count(mask) for mask in result.masks] == result.counts
    same(result.scores[0], snip)
    for scores, mask in zip(result.scores, result.masks, strict=True):
        same(mask, oracles.topk(scores, oracles.count(mask)), atol=0)
    same(
        result.scores[3],
        oracles.nan_outside(oracles.snip(model, "features.5", 2, images, masks=result.masks[2]), relevant),
    )


@pytest.mark.parametrize(("n", "k", "steps"), [(1000, 10, 10), (184768, 1848, 10), (37, 37, 4), (500, 1, 7)])
def test_force_schedules_fall_geometrically_from_n_to_k(n, k, steps):
    counts = oracles.force_schedule(n, k, steps)
    assert len(counts) == steps
    assert counts[-1] == k
    assert all(a >= b for a, b in zip([n, *counts], counts, strict=False))
    for t, kept in enumerate(counts, start=1):
        assert kept == pytest.approx(n * (k / n) ** (t / steps), abs=1.0 + 1e-6)


def test_force_reports_a_collapse():
    case = NETS["no_bias"]
    model, images = case.build(), case.images(2)
    result = oracles.force(model, "features.5", 0, images, 1, 2)
    assert oracles.count(result.circuit) == 1
    assert result.collapsed  # one kernel is no path, and without biases nothing else is there


# ---------------------------------------- fidelity


def test_fidelity_by_closed_forms():
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(2, 5, 4, 4))
    y = 0.3 * x + 0.5 * y + 1.0
    assert oracles.pearson(x, y) == pytest.approx(np.corrcoef(x.ravel(), y.ravel())[0, 1])
    assert oracles.r2(x, x) == 1.0
    assert oracles.r2(x, np.full_like(x, x.mean())) == pytest.approx(0.0)
    assert oracles.r2(x, y) == pytest.approx(1 - np.mean((x - y) ** 2) / np.var(x))
    slope, shift = np.polyfit(y.ravel(), x.ravel(), 1)
    assert oracles.readout(x, y) == pytest.approx((slope, shift))
    assert oracles.readout_r2(x, y, x, y) == pytest.approx(oracles.pearson(x, y) ** 2)
    assert oracles.readout_r2(x, 2 * x - 1, x, 2 * x - 1) == pytest.approx(1.0)
    assert math.isnan(oracles.pearson(x, np.ones_like(x)))
    assert oracles.readout(x, np.ones_like(x)) == pytest.approx((0.0, x.mean()))
