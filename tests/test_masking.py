"""Masked runs against the oracles: the circuit's own function and the published one."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import convcircuits as cc
import oracles
from cases import DERIVED, FEATURES, LAST, calibration, close, random_masks, relevant_of
from convcircuits.network import masking
from convcircuits.network.calls import ConvCall
from convcircuits.network.masking import Subject
from nets import NETS, seeded

torch.set_num_threads(1)


def circuit_of(case, model, feature, masks):
    return cc.Circuit.from_masks(model, feature, masks, input_shape=case.input_shape)


# ---------------------------------------- the two semantics


@pytest.mark.parametrize("density", [0.1, 0.4, 0.7, 0.9])
@pytest.mark.parametrize(("name", "layer", "unit"), FEATURES)
def test_a_circuit_runs_as_both_oracles_say(name, layer, unit, density):
    case = NETS[name]
    model, images, feature = case.build(), case.images(2), cc.Feature(layer, unit)
    masks = random_masks(relevant_of(case, model, layer, unit), density, seed=int(density * 100))
    circuit = circuit_of(case, model, feature, masks)
    assert len(circuit) == oracles.count(masks)
    run = cc.activations(model, feature, images, circuit=circuit)
    close(run, oracles.circuit_map(model, masks, layer, unit, images, blocks=case.blocks))
    run = cc.activations(model, feature, images, circuit=circuit, effective=False)
    close(run, oracles.masked_map(model, masks, layer, unit, images, blocks=case.blocks))


@pytest.mark.parametrize("density", [0.15, 0.4, 0.7])
@pytest.mark.parametrize(
    ("name", "layer", "unit", "call", "leaf"), DERIVED, ids=[f"{n}:{la}#{c}:{u}" for n, la, u, c, _ in DERIVED]
)
def test_a_feature_on_any_module_runs_as_both_oracles_say(name, layer, unit, call, leaf, density):
    case = NETS[name]
    model, images, feature = case.build(), case.images(2), cc.Feature(layer, unit, call=call)
    node, node_call = leaf or (layer, call)
    options = {"blocks": case.blocks, "call": node_call}
    close(cc.activations(model, feature, images), oracles.full_map(model, layer, unit, images, call=call))
    relevant = relevant_of(case, model, node, unit, node_call)
    for seed in range(2):
        masks = random_masks(relevant, density, seed)
        circuit = circuit_of(case, model, feature, masks)
        assert list(circuit.elements) == list(relevant)
        assert circuit.relevant == oracles.count(relevant)
        run = cc.activations(model, feature, images, circuit=circuit)
        close(run, oracles.circuit_map(model, masks, node, unit, images, **options))
        run = cc.activations(model, feature, images, circuit=circuit, effective=False)
        close(run, oracles.masked_map(model, masks, node, unit, images, **options))


@pytest.mark.parametrize(("name", "layer", "unit"), FEATURES)
def test_the_whole_circuit_is_the_full_model_exactly(name, layer, unit):
    case = NETS[name]
    model, images, feature = case.build(), case.images(2), cc.Feature(layer, unit)
    circuit = circuit_of(case, model, feature, relevant_of(case, model, layer, unit))
    assert circuit.density == 1
    full = cc.activations(model, feature, images)
    close(full, oracles.full_map(model, layer, unit, images))
    for effective in (True, False):
        run = cc.activations(model, feature, images, circuit=circuit, effective=effective)
        assert torch.equal(run, full)


@pytest.mark.parametrize(("name", "layer", "unit"), LAST)
def test_an_empty_circuit_is_silent(name, layer, unit):
    case = NETS[name]
    model, images, feature = case.build(), case.images(2), cc.Feature(layer, unit)
    circuit = circuit_of(case, model, feature, {})
    assert not cc.activations(model, feature, images, circuit=circuit).any()
    close(
        cc.activations(model, feature, images, circuit=circuit, effective=False),
        oracles.masked_map(model, dict(circuit.elements), layer, unit, images, blocks=case.blocks),
    )


@pytest.mark.parametrize("density", [0.3, 0.7])
@pytest.mark.parametrize("name", ["residual", "flat_head", "plain"])
def test_a_direction_runs_as_the_sum_of_its_live_units(name, density):
    case = NETS[name]
    model, images = case.build(), case.images(2)
    layer = case.features[-1][0]
    channels = oracles.slow_copy(model, blocks=case.blocks)[0].get_submodule(layer).weight.shape[0]
    direction = torch.linspace(-1.0, 2.0, channels, dtype=torch.float64)
    direction[1] = 0.0
    feature = cc.Feature(layer, direction)
    masks = random_masks(relevant_of(case, model, layer, direction), density, 5)
    circuit = circuit_of(case, model, feature, masks)
    close(
        cc.activations(model, feature, images, circuit=circuit),
        oracles.circuit_map(model, masks, layer, direction, images, blocks=case.blocks),
    )


def test_batches_change_nothing():
    case = NETS["residual"]
    model, images, feature = case.build(), case.images(5), cc.Feature("head", 0)
    masks = random_masks(relevant_of(case, model, "head", 0), 0.5, 1)
    circuit = circuit_of(case, model, feature, masks)
    expected = cc.activations(model, feature, images, circuit=circuit)
    for given, options in ((images, {"batch_size": 1}), ([(images[:2], 0), (images[2:], 1)], {})):
        close(cc.activations(model, feature, given, circuit=circuit, **options), expected)


# ---------------------------------------- calibration


@pytest.mark.parametrize("density", [0.4, 0.8])
@pytest.mark.parametrize(("name", "layer", "unit"), FEATURES)
def test_gain_and_offset_apply_to_the_raw_output_of_live_filters(name, layer, unit, density):
    case = NETS[name]
    model, images, feature = case.build(), case.images(2), cc.Feature(layer, unit)
    relevant = relevant_of(case, model, layer, unit)
    masks = random_masks(relevant, density, seed=9)
    plain = circuit_of(case, model, feature, masks)
    tables = calibration(relevant)
    circuit = dataclasses.replace(plain, **tables)
    close(
        cc.activations(model, feature, images, circuit=circuit),
        oracles.circuit_map(model, masks, layer, unit, images, blocks=case.blocks, **tables),
    )


@pytest.mark.parametrize("granularity", ["filter", "weight"])
@pytest.mark.parametrize("name", ["residual", "mobile", "flat_head"])
def test_gains_are_per_kernel_for_filters_and_weights_too(name, granularity):
    case = NETS[name]
    model, images, feature = case.build(), case.images(2), cc.Feature(*case.features[-1])
    plain = cc.find(model, feature, images, criterion="magnitude", density=0.5, granularity=granularity)
    tables = calibration(relevant_of(case, model, *case.features[-1]))
    circuit = dataclasses.replace(plain, **tables)
    masks = plain.elements
    if granularity == "filter":
        masks = {k: r & plain[k][:, None] for k, r in relevant_of(case, model, *case.features[-1]).items()}
    expected = oracles.circuit_map(model, masks, *case.features[-1], images, blocks=case.blocks, **tables)
    close(cc.activations(model, feature, images, circuit=circuit), expected)
    layer = next(iter(tables["gain"]))
    wrong = dataclasses.replace(circuit, gain={layer: torch.ones(len(plain[layer]), 1)})
    with pytest.raises(cc.ConvCircuitsError, match="one value per kernel"):
        cc.activations(model, feature, images, circuit=wrong)


def test_equal_gains_scale_a_filter_without_its_bias():
    case = NETS["plain"]
    model, images, feature = case.build(), case.images(2), cc.Feature("features.3", 1)
    whole = circuit_of(case, model, feature, relevant_of(case, model, "features.3", 1))
    circuit = dataclasses.replace(whole, gain={"features.3": torch.full((5, 4), 3.0)})
    bias = float(model.features[3].bias[1].detach())
    close(
        cc.activations(model, feature, images, circuit=circuit),
        3 * (cc.activations(model, feature, images) - bias) + bias,
    )
    assert circuit.constants == 1  # of the one filter that is relevant in the feature's layer


# ---------------------------------------- by hand


def net(make):
    return seeded(make, 3)()


class Halves(nn.Module):
    """Cuts a map into halves and adds them."""

    def __init__(self, how):
        super().__init__()
        self.conv, self.head, self.how = nn.Conv2d(3, 8, 3), nn.Conv2d(4, 2, 1), how

    def forward(self, x):
        x = self.conv(x)
        if self.how == "chunk":
            a, b = x.chunk(2, dim=1)
        elif self.how == "split":
            a, b = x.split([4, 4], dim=1)
        else:
            a, b = x[:, :4], x[:, 4:]
        return self.head(a + b)


@pytest.mark.parametrize("how", ["chunk", "split", "slice"])
def test_a_dead_filter_adds_nothing_after_its_map_was_cut(how):
    model, images = net(lambda: Halves(how)), NETS["plain"].images(2)
    feature = cc.Feature("head", 0)
    masks = {"conv": torch.ones(8, 3, dtype=torch.bool), "head": torch.tensor([[True] * 4, [False] * 4])}
    masks["conv"][5] = False
    circuit = cc.Circuit.from_masks(model, feature, masks, input_shape=(3, 8, 8))
    silenced = net(lambda: Halves(how))
    with torch.no_grad():
        silenced.conv.weight[5] = 0
        silenced.conv.bias[5] = 0
        expected = silenced(images)[:, 0]
    close(cc.activations(model, feature, images, circuit=circuit), expected)


class Stacked(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1)

    def forward(self, x):
        return self.head(torch.stack([self.a(x), self.b(x)]).sum(0))


@pytest.mark.parametrize("n", [2, 3, 4])
def test_a_dead_filter_adds_nothing_to_a_stack_whatever_the_number_of_images(n):
    model, images, feature = net(Stacked), NETS["plain"].images(n), cc.Feature("head", 0)
    masks = {k: torch.ones(4, 3, dtype=torch.bool) for k in "ab"} | {"head": torch.ones(2, 4).bool()}
    masks["a"][1] = masks["b"][1] = masks["b"][2] = False
    circuit = cc.Circuit.from_masks(model, feature, masks, input_shape=(3, 8, 8))
    silenced = net(Stacked)
    with torch.no_grad():
        silenced.a.weight[1] = silenced.a.bias[1] = 0
        silenced.b.weight[1:3] = silenced.b.bias[1:3] = 0
        silenced.head.weight[0, 1] = 0
        expected = silenced(images)[:, 0]
    close(cc.activations(model, feature, images, circuit=circuit), expected)


class Overwriting(nn.Module):
    """Adds in place, in the ways that there are."""

    def __init__(self, how):
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1)
        self.how = how

    def forward(self, x):
        a, b = self.a(x), self.b(x)
        if self.how == "iadd":
            a += b
        elif self.how == "add_":
            a.add_(b)
        elif self.how == "add_alpha":
            a = torch.add(a, b, alpha=1)
        elif self.how == "keyword":
            a = torch.add(input=a, other=b)
        elif self.how == "out":
            a = torch.sum(torch.cat([a[:, :, None], b[:, :, None]], 2), 2)
        elif self.how == "sum":
            a = sum([a, b])
        elif self.how == "sub":
            a = a - (-b)
        return self.head(F.relu(a))


@pytest.mark.parametrize("how", ["iadd", "add_", "add_alpha", "keyword", "out", "sum", "sub"])
def test_a_dead_filter_adds_nothing_however_the_sum_is_written(how):
    model, images = net(lambda: Overwriting(how)), NETS["plain"].images(2)
    feature = cc.Feature("head", 0)
    masks = {k: torch.ones(4, 3, dtype=torch.bool) for k in "ab"} | {"head": torch.ones(2, 4).bool()}
    masks["a"][0] = masks["b"][2] = masks["a"][3] = masks["b"][3] = False
    circuit = cc.Circuit.from_masks(model, feature, masks, input_shape=(3, 8, 8))
    silenced = net(lambda: Overwriting(how))
    with torch.no_grad():
        for conv, row in ((silenced.a, 0), (silenced.b, 2), (silenced.a, 3), (silenced.b, 3)):
            conv.weight[row] = conv.bias[row] = 0
        silenced.head.weight[0, 3] = 0
        expected = silenced(images)[:, 0]
    close(cc.activations(model, feature, images, circuit=circuit), expected)


class Piece(nn.Module):
    """The head of a net up to a block whose output is no leaf's, with an Identity for the oracles to look at."""

    def __init__(self, name):
        super().__init__()
        whole = NETS[name].build()
        parts = {"dense": ["stem", "layer1"], "se_conv": ["conv1", "bn1", "se"]}[name.replace("linear", "conv")]
        self.parts = parts
        for part in parts:
            setattr(self, part, getattr(whole, part))
        self.out = nn.Identity()

    def forward(self, x):
        for part in self.parts:
            x = getattr(self, part)(F.relu(x) if part == "se" else x)
        return self.out(x)


@pytest.mark.parametrize("density", [0.2, 0.5, 0.8])
@pytest.mark.parametrize(
    ("name", "layer", "unit"),
    [("dense", "layer1", 1), ("dense", "layer1", 4), ("se_conv", "se", 1), ("se_linear", "se", 2)],
)
def test_a_feature_on_a_blocks_computed_output_runs_as_the_oracle_says(name, layer, unit, density):
    model, images = Piece(name), NETS[name].images(2)
    whole = NETS[name].build()
    for seed in range(3):
        masks = random_masks(relevant_of(NETS[name], model, "out", unit), density, seed)
        expected = oracles.circuit_map(model, masks, "out", unit, images)
        for net_, node in ((model, "out"), (model, layer), (whole, layer)):
            feature = cc.Feature(node, unit)
            circuit = cc.Circuit.from_masks(net_, feature, masks, input_shape=NETS[name].input_shape)
            close(cc.activations(net_, feature, images, circuit=circuit), expected)


class Gated(nn.Module):
    """A squeeze-excitation whose gate may be of its data's size: the map is pooled to `side`."""

    def __init__(self, how):
        super().__init__()
        self.data, self.gate, self.how = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1), how
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, x):
        y = F.relu(self.data(x))
        if self.how == "one position":
            y = F.adaptive_avg_pool2d(y, 1)
        gate = self.gate(F.adaptive_avg_pool2d(y, 1) if self.how == "pooled" else y)
        return self.head(y / (1 + torch.exp(-gate)) if self.how == "divided" else y * torch.sigmoid(gate))


@pytest.mark.parametrize("how", ["pooled", "full size", "one position", "divided"])
def test_a_dead_gate_stays_its_constant_whatever_its_size(how):
    torch.manual_seed(3)
    model, images = Gated(how).double().eval(), NETS["plain"].images(2)
    feature = cc.Feature("head", 1)
    full = cc.prune(cc.score(model, feature, images, criterion="random"), density=1.0)
    masks = {layer: mask.clone() for layer, mask in full.kernels.items()}
    masks["gate"][2] = False
    gated = Gated(how).double().eval()
    gated.load_state_dict(model.state_dict())
    with torch.no_grad():
        gated.gate.weight[2] = 0
        expected = gated(images)[:, 1]
    circuit = cc.Circuit.from_masks(model, feature, masks, input_shape=tuple(images.shape[1:]))
    close(cc.activations(model, feature, images, circuit=circuit), expected)


class Spread(nn.Module):
    """Each channel over its own spread, which is NaN or huge where a dead filter holds a constant."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1)

    def forward(self, x):
        x = self.conv(x)
        return self.head(x / x.std((2, 3), keepdim=True))


def test_a_dead_filter_that_holds_no_number_does_not_matter():
    model, images = seeded(Spread, 2)(), NETS["plain"].images(4)
    feature = cc.Feature("head", 1)
    whole = cc.find(model, feature, images, density=1.0)
    kernels = {layer: mask.clone() for layer, mask in whole.kernels.items()}
    kernels["conv"][2] = False
    circuit = cc.Circuit(feature, kernels, whole.saliency, whole.relevant, provenance=whole.provenance)
    maps = model.conv(images)
    maps = (maps / maps.std((2, 3), keepdim=True)).index_fill(1, torch.tensor([2]), 0)
    expected = model.head(maps)[:, 1].detach()
    torch.testing.assert_close(cc.activations(model, feature, images, circuit=circuit), expected)
    torch.testing.assert_close(cc.extract(model, circuit)(images).detach(), expected)
    full = model(images)[:, 1].detach()
    r2 = 1 - (full - expected).square().sum() / (full - full.mean()).square().sum()
    assert cc.evaluate(model, circuit, images).r2 == pytest.approx(float(r2))


# ---------------------------------------- only what a circuit's kernels need is computed


@pytest.mark.parametrize("effective", [True, False])
@pytest.mark.parametrize("name", ["plain", "residual", "twice", "mobile"])
def test_a_call_computes_the_same_as_with_zeros_for_kernels_that_are_removed(name, effective):
    case = NETS[name]
    model, images, (layer, unit) = case.build(), case.images(2), case.features[-1][:2]
    relevant, parts = relevant_of(case, model, layer, unit), 0
    for seed in range(6):
        masks = random_masks(relevant, 0.1 + seed / 20, seed)
        circuit = circuit_of(case, model, cc.Feature(layer, unit), masks)
        circuit = dataclasses.replace(circuit, **calibration(circuit.elements, seed))
        subject = Subject.open(model, circuit.feature, case.input_shape)
        run = subject.masks(circuit, case.input_shape, effective=effective)

        def watch(call, output, run=run):
            nonlocal parts
            weight, bias = run.weight_and_bias(call, run.running(call))
            close(output, call.compute(weight, bias))
            some = torch.arange(0, call.positions, 2)
            close(run.kernel_at(call, some), call.by_position(output).flatten(1, 2)[..., some])
            parts += isinstance(call, ConvCall) and run.part(call) is not None

        subject.maps(images, run, watch)
    assert parts


@pytest.mark.parametrize("criterion", ["gauss_newton", "snip", "actgrad"])
@pytest.mark.parametrize("name", ["plain", "residual", "twice"])
def test_scores_inside_a_circuit_do_not_depend_on_what_is_left_out(name, criterion, monkeypatch):
    case = NETS[name]
    model, images, (layer, unit) = case.build(), case.images(3), case.features[-1][:2]
    feature = cc.Feature(layer, unit)
    circuit = cc.find(model, feature, images, criterion="random", density=0.3, effective=True, seed=1)
    options = {"centered": True} if criterion == "gauss_newton" else {}
    given = {"criterion": criterion, "circuit": circuit, **options}
    found = cc.score(model, circuit.feature, images, **given)
    monkeypatch.setattr(masking, "_WORTH", 0.0)  # nothing is ever taken out
    whole = cc.score(model, circuit.feature, images, **given)
    for layer, values in whole.elements.items():
        torch.testing.assert_close(found[layer], values, rtol=1e-4, atol=1e-7, equal_nan=True)
