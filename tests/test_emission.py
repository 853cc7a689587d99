"""Emission: what is left of each layer, under which name, with which numbers; and what is written once."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

import convcircuits as cc
import oracles
from cases import FEATURES, circuit_of, same
from nets import NETS, seeded

torch.set_num_threads(1)

GATED = ("se.fc1", "se.fc2")  # layers of which a dead filter may be needed, as a constant


def layers_of(small):
    """Layer of the model -> its modules in a small one; the second call's have a second name."""
    found = {}
    for name, module in small.named_modules():
        if hasattr(module, "channels") and name:
            found.setdefault("shared" if name == "shared_1" else name, []).append(module)
    return found


def by_group(module):
    """(filter, channel, weight) of every kernel of a module, in the numbers of the original layer."""
    weight, filters, channels = module.weight.detach(), module.filters, module.channels
    groups = getattr(module, "groups", 1)
    for row, f in enumerate(filters.tolist()):
        group = row // (len(filters) // groups)
        for column in range(weight.shape[1]):
            yield f, int(channels[group * weight.shape[1] + column]), weight[row, column]


def laid_out(weight, groups, size):
    """A layer's weight without groups: (out, all in, ...), with one row more for filters that stand for none."""
    out, per_group = weight.shape[:2]
    full = weight.new_zeros(out + 1, size, *weight.shape[2:])
    for f in range(out):
        first = (f // (out // groups)) * per_group
        full[f, first : first + per_group] = weight[f]
    return full


@pytest.mark.parametrize("density", [0.25, 0.6, 1.0])
@pytest.mark.parametrize(("name", "layer", "unit"), FEATURES)
def test_exactly_the_needed_filters_are_left_with_the_models_weights(name, layer, unit, density):
    case = NETS[name]
    model, feature = case.build(), cc.Feature(layer, unit)
    circuit = circuit_of(model, feature, case.images(), density, seed=5)
    small = cc.extract(model, circuit, fold=False)
    inside = oracles.reachable(model, layer, unit, case.input_shape, dict(circuit.elements), blocks=case.blocks)
    slow, modules = oracles.slow_copy(model, blocks=case.blocks)[0], layers_of(small)
    for key, effective in inside.items():
        expected = effective.any(1).nonzero()[:, 0].tolist()
        filters = sorted({f for module in modules.get(key, []) for f in module.filters.tolist() if f >= 0})
        if key in GATED:
            assert set(expected) <= set(filters)
        else:
            assert filters == expected, key
        if not filters:
            continue
        original = slow.get_submodule(key)
        groups = original.module[0].groups if original.conv else 1
        full = laid_out(original.weight.detach(), groups, original.weight.shape[1] * groups)
        kept = laid_out(original.spread(effective).to(full).expand(original.weight.shape), groups, full.shape[1])
        found = torch.zeros_like(kept, dtype=torch.bool)
        for module in modules[key]:
            for f, c, kernel in by_group(module):
                if kernel.any():
                    torch.testing.assert_close(kernel, full[f, c] * kept[f, c])
                    found[f, c] = True
        assert torch.equal(found, kept.bool())
        for module in modules[key]:
            assert (module.bias is None) == (original.bias is None)
            if module.bias is not None:
                real = module.filters >= 0
                assert torch.equal(module.bias.detach()[real], original.bias.detach()[module.filters[real]])


@pytest.mark.parametrize("name", ["residual", "mobile", "same_pad", "dense", "se_conv"])
def test_batch_norms_keep_the_needed_channels_alone(name):
    case = NETS[name]
    model, feature = case.build(), cc.Feature(*case.features[-1])
    small = cc.extract(model, circuit_of(model, feature, case.images(), 0.6), fold=False)
    norms = {key: module for key, module in small.named_modules() if isinstance(module, _BatchNorm)}
    assert norms
    for key, module in norms.items():
        original = model.get_submodule(key)
        for table in ("weight", "bias", "running_mean", "running_var"):
            assert torch.equal(getattr(module, table), getattr(original, table)[module.channels])
    if name in ("residual", "mobile"):
        for key in norms:
            before = {"bn": "stem"}.get(key, key.replace("bn", "conv").replace(".1", ".0"))
            filters = small.get_submodule(before).filters
            assert torch.equal(norms[key].channels, filters[filters >= 0])


def test_a_chain_is_as_small_as_by_hand():
    case = NETS["plain"]
    model = case.build()
    masks = {"features.0": torch.zeros(4, 3), "features.3": torch.zeros(5, 4), "features.5": torch.zeros(4, 5)}
    masks["features.0"][:2, 1] = 1
    masks["features.3"][[0, 4, 1], [0, 1, 3]] = 1  # filter 1 reads a dead channel
    masks["features.5"][2, [0, 1, 4]] = 1
    small = cc.extract(
        model, cc.Circuit.from_masks(model, cc.Feature("features.5", 2), masks, input_shape=(3, 8, 8)), fold=False
    )
    sizes = {key: tuple(p.shape) for key, p in small.named_parameters()}
    assert sizes == {
        "features.0.weight": (2, 1, 3, 3),
        "features.0.bias": (2,),
        "features.3.weight": (2, 2, 3, 3),
        "features.3.bias": (2,),
        "features.5.weight": (1, 2, 3, 3),
        "features.5.bias": (1,),
    }
    assert small.features.get_submodule("3").filters.tolist() == [0, 4]
    assert small.features.get_submodule("5").channels.tolist() == [0, 4]


def test_streams_are_as_small_as_by_hand():
    """Of a residual stream only channel 2 is live, of a concatenation only channels 1 (one) and 5 (project)."""
    model = NETS["residual"].build()
    masks = {name: torch.zeros(m.weight.shape[:2]) for name, m in model.named_modules() if isinstance(m, nn.Conv2d)}
    masks["stem"][2, 0] = masks["block1.conv1"][1, 2] = masks["block1.conv2"][2, 1] = 1
    masks["block2.down.0"][3, 2] = masks["head"][0, 3] = 1
    small = cc.extract(
        model, cc.Circuit.from_masks(model, cc.Feature("head", 0), masks, input_shape=(3, 10, 10)), fold=False
    )
    sizes = {key: m.channels.tolist() for key, m in small.named_modules() if isinstance(m, _BatchNorm)}
    assert sizes == {"bn": [2], "block1.bn1": [1], "block1.bn2": [2], "block2.down.1": [3]}
    assert sum(p.numel() for p in small.parameters()) == 9 + 1 + 2 + 9 + 2 + 9 + 2 + 1 + 2 + 1 + 1
    model = NETS["inception"].build()
    masks = {name: torch.zeros(m.weight.shape[:2]) for name, m in model.named_modules() if isinstance(m, nn.Conv2d)}
    masks["stem"][0, 1] = masks["one"][1, 0] = masks["project"][0, 0] = 1
    masks["last"][2, [1, 5]] = 1
    small = cc.extract(
        model, cc.Circuit.from_masks(model, cc.Feature("last", 2), masks, input_shape=(3, 9, 9)), fold=False
    )
    assert dict(small.named_children()).keys() == {"stem", "one", "project", "last"}
    assert small.last.channels.tolist() == [1, 5]


def test_a_layer_that_runs_twice_has_a_second_name_and_its_own_kernels():
    case = NETS["twice"]
    model = case.build()
    masks = {"stem": torch.zeros(4, 3), "shared": torch.zeros(4, 4), "head": torch.zeros(3, 4)}
    masks["stem"][0, 0] = masks["shared"][1, 0] = masks["shared"][2, 1] = masks["head"][1, 2] = 1
    circuit = cc.Circuit.from_masks(model, cc.Feature("head", 1), masks, input_shape=case.input_shape)
    small = cc.extract(model, circuit, fold=False)
    assert [key for key, _ in small.named_children()] == ["stem", "shared", "shared_1", "head"]
    kernels = [(m.filters.tolist(), m.channels.tolist()) for m in (small.shared, small.shared_1)]
    assert kernels == [([1], [0]), ([2], [1])]


@pytest.mark.parametrize("name", NETS)
def test_modules_are_named_after_their_layers_and_nothing_else_holds_weights(name):
    case = NETS[name]
    model = case.build()
    small = cc.extract(model, circuit_of(model, cc.Feature(*case.features[-1]), case.images(), 0.7), fold=False)
    own = dict(model.named_modules())
    for key, module in small.named_modules():
        if list(module.parameters(recurse=False)):
            original = own[key.removesuffix("_1") if name == "twice" else key]
            assert isinstance(module, nn.Conv2d) == isinstance(original, nn.Conv2d)
            assert isinstance(module, nn.Linear) == isinstance(original, nn.Linear)
        assert not set(dict(module.named_buffers(recurse=False))) - {
            *("filters", "channels", "channels_1", "channels_2", "channels_3"),
            *("running_mean", "running_var", "num_batches_tracked", "rows"),
        }
    assert not list(small.parameters(recurse=False))


class InPlace(nn.Module):
    """Overwrites what others read, in every way: the copy must not."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(8, 2, 1)
        self.bn = nn.BatchNorm2d(4)

    def forward(self, x):
        x = self.a(x)
        y = F.relu_(self.b(x))
        x += y
        y = F.hardtanh(self.bn(y), 0.0, 6.0, True)
        x.mul_(0.5).clamp_(-2.0, 2.0)
        z = torch.cat([x, y], 1)
        x.add_(1.0)  # z is a copy
        return self.head(F.silu(z, inplace=True).sub_(1.0))


@pytest.mark.parametrize("density", [0.4, 0.7, 1.0])
def test_the_module_overwrites_nothing_that_is_read_again(density):
    model, images = seeded(InPlace, 8)(), NETS["plain"].images(3)
    circuit = circuit_of(model, cc.Feature("head", 1), images.clone(), density)
    small, given = cc.extract(model, circuit, fold=False), images.clone()
    first = small(images)
    assert torch.equal(images, given)
    assert torch.equal(small(images), first)
    same(first, cc.activations(model, circuit.feature, images.clone(), circuit=circuit))
    if density == 1.0:
        same(first, model(images.clone())[:, 1].detach())
