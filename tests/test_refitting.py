"""Refitting: against explicit design matrices, and the laws that least squares obeys."""

import copy
import functools
import itertools
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import convcircuits as cc
import oracles
from cases import DERIVED, FEATURES, GRANULARITIES, HEAD, LAST, calibration, circuit_of, close, masks_for_oracle
from convcircuits.circuits.equations import Equations
from convcircuits.circuits.lockstep import waiting
from convcircuits.circuits.refitting import METHODS, Refit
from convcircuits.network.batches import Batches
from convcircuits.network.calls import ConvCall, LinearCall
from convcircuits.network.capture import Network
from convcircuits.network.masking import Subject
from convcircuits.values.tables import LayerTable
from nets import NETS, net, seeded
from states import World, state_of

FITTED = ["kernels", "filters", "mean"]
MANY = ["plain", "residual", "grouped", "mobile", "flat_head", "se_conv", "dense", "twice"]


@functools.cache
def built(name):
    return NETS[name].build()


@functools.cache
def found(name, layer, unit, density=0.5, granularity="kernel"):
    case = NETS[name]
    return circuit_of(built(name), cc.Feature(layer, unit), case.images(2, seed=1), density, granularity)


def last(name, density=0.5, granularity="kernel"):
    return found(name, *NETS[name].features[-1], density, granularity)


def agree(circuit, gain, offset, rtol=1e-8, atol=1e-9):
    """The calibration is this one, of the layers that have any kernel."""
    assert list(circuit.gain) == list(circuit.offset) == list(gain)
    for layer in gain:
        for got, expected in ((circuit.gain[layer], gain[layer]), (circuit.offset[layer], offset[layer])):
            assert got.shape == expected.shape
            torch.testing.assert_close(
                got.double(), expected.double(), rtol=rtol, atol=atol, msg=lambda m, layer=layer: f"{layer}: {m}"
            )


# ---------------------------------------- the closed form


@pytest.mark.parametrize(
    ("name", "layer", "unit", "method", "ridge", "positive"),
    [
        pytest.param(*case.values, method, ridge, positive, id=f"{case.id}-{method}-{ridge}-{positive}")
        for method, ridge, positive in itertools.product(FITTED, [0.0, 0.01], [False, True])
        for case in (FEATURES if (method, ridge) == ("kernels", 0.01) else LAST)
        if (ridge, positive) != (0.0, True)  # where maps depend on each other, there is no single best
    ],
)
def test_gains_and_offsets_are_those_of_an_explicit_design_matrix(name, layer, unit, method, ridge, positive):
    case, model, circuit = NETS[name], built(name), found(name, layer, unit)
    images = case.images(12)
    refitted = cc.refit(model, circuit, images, method=method, ridge=ridge, positive=positive, batch_size=5)
    gain, offset = oracles.refit(
        model,
        masks_for_oracle(case, model, circuit),
        layer,
        unit,
        images,
        method=method,
        ridge=ridge,
        positive=positive,
        blocks=case.blocks,
    )
    agree(refitted, gain, offset)
    if positive:
        assert all(bool((table >= 0).all()) for table in refitted.gain.values())


@pytest.mark.parametrize(
    ("name", "method"), [*itertools.product(MANY, ["kernels"]), ("plain", "filters"), ("twice", "mean")]
)
def test_weights_of_images_are_those_of_explicit_weighted_least_squares(name, method):
    case, model, circuit = NETS[name], built(name), last(name)
    images, weights = case.images(8), torch.linspace(0.5, 3, 8, dtype=torch.float64).sqrt()
    refitted = cc.refit(model, circuit, images, method=method, weights=weights, batch_size=3)
    about = {"method": method, "ridge": 0.01, "blocks": case.blocks, "weights": (weights / weights.mean()).numpy()}
    masks = masks_for_oracle(case, model, circuit)
    agree(refitted, *oracles.refit(model, masks, *case.features[-1], images, **about))
    assert refitted != cc.refit(model, circuit, images, method=method)
    assert refitted.provenance["calibration"]["weights"] == (weights / weights.mean()).tolist()


@pytest.mark.parametrize("positions", [None, 4])
@pytest.mark.parametrize("name", ["plain", "flat_head", "twice"])
def test_an_image_of_weight_two_counts_as_two_and_one_of_weight_zero_not_at_all(name, positions):
    case, model, circuit = NETS[name], built(name), last(name)
    images, fit = case.images(6), partial(cc.refit, model, circuit)
    many = fit(torch.cat([images[:4], images[:2]]), positions=None)
    agree(fit(images, weights=[4, 4, 2, 2, 0, 0], positions=None), many.gain, many.offset)
    equal = fit(images, positions=positions)
    agree(fit(images, weights=[5] * 6, positions=positions), equal.gain, equal.offset)


@pytest.mark.parametrize("toward", [0, 1])
@pytest.mark.parametrize("name", ["flat_head", "pooled_head", "se_linear", "se_conv"])
def test_with_fewer_positions_than_unknowns_the_solution_is_the_same(name, toward, monkeypatch):
    case, model, circuit = NETS[name], built(name), last(name, 0.8)
    images, about = case.images(3), {"toward": toward, "batch_size": 2, "positions": 4}
    centered, explicit = Equations._centered, []
    monkeypatch.setattr(Equations, "_centered", lambda self: explicit.append(self) or centered(self))
    few = cc.refit(model, circuit, images, **about)
    assert explicit
    add = Equations.add
    monkeypatch.setattr(Equations, "add", lambda self, *given: (add(self, *given), self._reduce()))
    explicit.clear()
    reduced = cc.refit(model, circuit, images, **about)
    assert not explicit
    agree(few, reduced.gain, reduced.offset)


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("name", ["plain", "residual", "grouped", "mobile"])
def test_circuits_of_every_granularity_are_fitted_by_kernel(name, granularity):
    case, model, circuit = NETS[name], built(name), last(name, granularity=granularity)
    images = case.images(12)
    masks = masks_for_oracle(case, model, circuit)
    expected = oracles.refit(model, masks, *case.features[-1], images, method="kernels", ridge=0.01)
    agree(cc.refit(model, circuit, images), *expected)


@pytest.mark.parametrize(
    ("name", "layer", "unit", "call"), [case[:4] for case in DERIVED if case[4] is None and case[0] in MANY], ids=str
)
def test_features_that_are_no_kernel_layer_are_fitted_alike(name, layer, unit, call):
    case, model = NETS[name], built(name)
    images = case.images(12)
    circuit = circuit_of(model, cc.Feature(layer, unit, call=call), images[:2], 0.6)
    about = {"method": "kernels", "ridge": 0.01, "blocks": case.blocks, "call": call}
    agree(cc.refit(model, circuit, images), *oracles.refit(model, dict(circuit.elements), layer, unit, images, **about))


class ChannelsLast(nn.Module):
    """A block of ConvNeXt: depthwise, LayerNorm and Linear layers over channels that come last; then a GroupNorm."""

    def __init__(self):
        super().__init__()
        self.stem, self.depth = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.norm, self.up, self.down = nn.LayerNorm(6), nn.Linear(6, 8), nn.Linear(8, 6)
        self.groups, self.head = nn.GroupNorm(2, 6), nn.Conv2d(6, 3, 1)
        for norm in (self.norm, self.groups):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias)

    def forward(self, x):
        x = self.stem(x)
        y = self.norm(self.depth(x).permute(0, 2, 3, 1))
        y = self.down(torch.nn.functional.gelu(self.up(y))).permute(0, 3, 1, 2)
        return self.head(self.groups(x + y).relu())


def outputs(model, images):
    """{layer: (what it reads, what it gives)}, called once."""
    found = {}

    def watch(layer, read, gives):
        found[layer] = read[0], gives

    layers = {name: one for name, one in model.named_modules() if isinstance(one, nn.Conv2d | nn.Linear)}
    hooks = [one.register_forward_hook(watch) for one in layers.values()]
    with torch.no_grad():
        model(images)
    for hook in hooks:
        hook.remove()
    return {name: found[one] for name, one in layers.items()}


@pytest.mark.parametrize("method", FITTED)
def test_layers_around_norms_over_channels_are_fitted_alike(method):
    """No filter is dead, so the circuit is the model with its gains in the weights and its offsets in the biases."""
    model = seeded(ChannelsLast, 21)()
    images = torch.randn(6, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    weights = {name: one.weight.data for name, one in model.named_modules() if isinstance(one, nn.Conv2d | nn.Linear)}
    masks = {name: torch.ones(weight.shape[:2]) for name, weight in weights.items()}
    masks["stem"][torch.arange(6), torch.arange(6) % 3] = 0
    masks["up"][torch.arange(8), torch.arange(8) % 6] = 0
    masks["down"][torch.arange(6), torch.arange(6)] = 0
    masks["head"][1, 4] = 0
    circuit = cc.Circuit.from_masks(model, cc.Feature("head", 1), masks, input_shape=(3, 8, 8))
    assert len(circuit) < circuit.relevant
    refitted = cc.refit(model, circuit, images, method=method, batch_size=4)
    full, copied = outputs(model, images), copy.deepcopy(model)
    gain, offset = {}, {}
    for name, kept in circuit.kernels.items():
        layer = copied.get_submodule(name)
        layer.weight.data *= over_weights(kept.double(), layer.weight)
        (reads, gives), target = outputs(copied, images)[name], full[name][1]
        axis = 1 if isinstance(layer, nn.Conv2d) else 3
        gain[name], offset[name] = torch.ones(kept.shape).double(), torch.zeros(len(kept)).double()
        for o in kept.any(1).nonzero()[:, 0].tolist():
            y, made = target.select(axis, o).flatten().numpy(), gives.select(axis, o).flatten()
            z = torch.stack([alone(layer, reads, o, i).flatten() for i in kept[o].nonzero()[:, 0].tolist()], 1)
            rest = (made - z.sum(1)).numpy()  # the bias
            spread = ((y - y.mean()) ** 2).sum()
            if method == "mean":
                offset[name][o] = float((y - made.numpy()).mean())
            elif method == "filters":
                a, offset[name][o] = oracles.least_squares(y - rest, z.sum(1, keepdim=True).numpy(), 0.01, spread)
                gain[name][o] = float(a[0])
            else:
                a, offset[name][o] = oracles.least_squares(y - rest, z.numpy(), 0.01, spread)
                gain[name][o, kept[o]] = torch.from_numpy(a)
        layer.weight.data *= over_weights(gain[name], layer.weight)
        layer.bias.data += offset[name]
    agree(refitted, gain, offset)
    with torch.no_grad():
        close(cc.activations(model, circuit.feature, images, circuit=refitted), copied(images)[:, 1])
        close(cc.extract(model, refitted, input_shape=(3, 8, 8))(images), copied(images)[:, 1])


def over_weights(table, weight):
    """A table of kernels that multiplies a weight."""
    return table.reshape(*table.shape, *[1] * (weight.dim() - 2))


def alone(layer, reads, o, i):
    """What one kernel adds."""
    weight = torch.zeros_like(layer.weight)
    weight[o, i] = layer.weight[o, i].detach()
    if isinstance(layer, nn.Linear):
        return torch.nn.functional.linear(reads, weight)[..., o]
    made = torch.nn.functional.conv2d(reads, weight, None, layer.stride, layer.padding, groups=layer.groups)
    return made[:, o]


def test_a_filter_that_is_dead_in_one_call_is_fitted_on_the_other():
    """In the first call of `shared`, filter 2 reads only filters of the stem that are dead."""
    case, model = NETS["twice"], built("twice")
    masks = {"stem": torch.zeros(4, 3), "shared": torch.zeros(4, 4), "head": torch.zeros(3, 4)}
    masks["stem"][0] = masks["head"][1] = 1
    for kernel in ((1, 0), (0, 1), (2, 1), (3, 0), (3, 1)):
        masks["shared"][kernel] = 1
    circuit = cc.Circuit.from_masks(model, cc.Feature("head", 1), masks, input_shape=case.input_shape)
    images = case.images(6)
    for method in FITTED:
        expected = oracles.refit(model, dict(circuit.elements), "head", 1, images, method=method, ridge=0.01)
        agree(cc.refit(model, circuit, images, method=method), *expected)


def test_without_ridge_and_with_few_positions_the_gains_stay_as_close_to_one_as_they_can():
    """One image gives a Linear one position per filter, which is met exactly by an offset alone."""
    case, model, circuit = NETS["flat_head"], built("flat_head"), last("flat_head", 1.0)
    circuit = replace(circuit, elements=LayerTable(dict(circuit.elements) | {"features.0": thinned(circuit)}))
    one = cc.refit(model, circuit, case.images(1), ridge=0)
    assert (one.gain["features.0"] != 1).any()
    assert (one.gain["classifier.1"] == 1).all()
    assert (one.offset["classifier.1"] != 0).any()
    full = cc.activations(model, circuit.feature, case.images(1))
    close(cc.activations(model, circuit.feature, case.images(1), circuit=one), full)
    # Three images, four kernels: the smallest change, each kernel's measured by the spread of its map.
    images = case.images(3)
    three = cc.refit(model, circuit, images, ridge=0)
    calls = oracles.kernel_calls(
        model,
        dict(circuit.elements),
        "classifier.4",
        1,
        images,
        blocks=case.blocks,
        gain=part(three.gain, 1),
        offset=part(three.offset, 1),
    )
    whole = oracles.kernel_calls(model, None, "classifier.4", 1, images, blocks=case.blocks)
    for o in range(5):
        y, z, rest = oracles.design(whole["classifier.1"], calls["classifier.1"], o)
        spread = np.sqrt(((z - z.mean(0)) ** 2).sum(0))
        missing = y - rest - z.sum(1)
        change = np.linalg.lstsq((z - z.mean(0)) / spread, missing - missing.mean(), rcond=1e-12)[0] / spread
        assert three.gain["classifier.1"][o].numpy() == pytest.approx(1 + change, rel=1e-6)


def part(table, layers):
    return {layer: table[layer] for layer in list(table)[:layers]}


def thinned(circuit):
    mask = circuit.elements["features.0"].clone()
    mask[:, 0] = False
    return mask


# ---------------------------------------- laws


@pytest.mark.parametrize(("method", "ridge"), [("kernels", 0.0), ("kernels", 0.01), ("filters", 0.01), ("mean", 0.0)])
@pytest.mark.parametrize("name", NETS)
def test_the_full_circuit_stays_as_it_is(name, method, ridge):
    case, model, circuit = NETS[name], built(name), last(name, 1.0)
    refitted = cc.refit(model, circuit, case.images(5), method=method, ridge=ridge)
    assert list(refitted.gain) == list(refitted.offset) == list(circuit.elements)
    assert all((gain == 1).all() for gain in refitted.gain.values())
    assert all((offset == 0).all() for offset in refitted.offset.values())
    assert refitted.constants == 0
    close(
        cc.activations(model, circuit.feature, case.images(), circuit=refitted),
        oracles.full_map(model, *case.features[-1], case.images()),
    )


def errors(case, model, circuit, images, only=None):
    """{(layer, filter): (sum of squared errors without its gain and offset, with them, its pull)}, given its inputs.

    The pull toward gain 0 of strength 1, without its gains and with them.
    """
    layer, unit = circuit.feature.layer, circuit.feature.unit
    about = {"blocks": case.blocks, "graph_module": oracles.trace(model, case.input_shape)}
    full = oracles.kernel_calls(model, None, layer, unit, images, of=(), **about)
    masks = oracles.reachable(model, layer, unit, case.input_shape, dict(circuit.elements), blocks=case.blocks)
    found = {}
    for number, name in enumerate(circuit.gain):
        if only not in (None, name):
            continue
        before = {"gain": part(circuit.gain, number), "offset": part(circuit.offset, number)}
        calls = oracles.kernel_calls(model, masks, layer, unit, images, of=(name,), **about, **before)
        for o in masks[name].any(1).nonzero()[:, 0].tolist():
            y, z, rest = oracles.design(full[name], calls[name], o)
            fitted = rest + z @ circuit.gain[name][o].numpy() + float(circuit.offset[name][o])
            pull = (((z - z.mean(0)) ** 2).sum(0) + ((y - y.mean()) ** 2).sum() / 100) * masks[name][o].numpy()
            pulls = pull.sum(), (pull * circuit.gain[name][o].numpy() ** 2).sum()
            found[name, o] = ((y - rest - z.sum(1)) ** 2).sum(), ((y - fitted) ** 2).sum(), pulls
    return found


@pytest.mark.parametrize(
    ("method", "ridge", "positive"),
    [
        ("kernels", 0.0, False),
        ("kernels", 0.01, False),
        ("kernels", 3.0, False),
        ("kernels", 0.01, True),
        ("filters", 0.01, False),
        ("mean", 0.0, False),
    ],
)
@pytest.mark.parametrize("name", NETS)
def test_refitting_never_raises_the_error_of_a_filter_given_its_inputs(name, method, ridge, positive):
    case, model = NETS[name], built(name)
    refitted = cc.refit(model, last(name), case.images(6), method=method, ridge=ridge, positive=positive)
    found = errors(case, model, refitted, case.images(6))
    assert found
    assert all(after <= before * (1 + 1e-9) + 1e-15 for before, after, _ in found.values())
    assert any(after < 0.999 * before for before, after, _ in found.values())


@pytest.mark.parametrize("name", NETS)
def test_pulled_toward_0_the_error_of_a_filter_and_its_pull_together_never_rise(name):
    case, model = NETS[name], built(name)
    refitted = cc.refit(model, last(name), case.images(6), ridge=0.01, toward=0)
    found = errors(case, model, refitted, case.images(6))
    assert found
    for before, after, (pull, pulled) in found.values():
        assert after + 0.01 * pulled <= (before + 0.01 * pull) * (1 + 1e-9) + 1e-15
    assert any(after < 0.999 * before for before, after, _ in found.values())


@pytest.mark.parametrize("name", NETS)
def test_without_ridge_more_kernels_never_raise_the_error_of_a_layer(name):
    """The last layer reads more and more; all that it reads is computed by the same kernels, one channel left out."""
    case, model, whole = NETS[name], built(name), last(name, 1.0)
    images, (layer, unit) = case.images(8), case.features[-1]
    first, *_ = masks = dict(whole.elements)
    masks[first] = masks[first].clone()
    masks[first][:, 0] = False
    order = masks[layer][unit].nonzero()[:, 0].tolist()[::-1]
    found = []
    for count in range(1, len(order) + 1):
        masks[layer] = torch.zeros_like(masks[layer])
        masks[layer][unit, order[:count]] = True
        circuit = cc.Circuit.from_masks(model, whole.feature, masks, input_shape=case.input_shape)
        refitted = cc.refit(model, circuit, images, ridge=0)
        found.append(errors(case, model, refitted, images, layer)[layer, unit][1])
    assert len(found) > 1 or name == "grouped"
    assert all(after <= before * (1 + 1e-9) + 1e-15 for before, after in itertools.pairwise(found))
    assert len(found) == 1 or found[-1] < 0.999 * found[0]


@pytest.mark.parametrize("name", NETS)
def test_without_ridge_more_constants_never_raise_the_error_of_the_first_layer(name):
    case, model, circuit = NETS[name], built(name), last(name, 0.7)
    images, first = case.images(5), next(iter(circuit.elements))
    kernels, filters, mean = (
        errors(case, model, cc.refit(model, circuit, images, method=method, ridge=0), images, first)
        for method in FITTED
    )
    for o, (none, after, _) in kernels.items():
        assert after <= filters[o][1] * (1 + 1e-9) + 1e-15
        assert filters[o][1] <= mean[o][1] * (1 + 1e-9) + 1e-15
        assert mean[o][1] <= none * (1 + 1e-9) + 1e-15


@pytest.mark.parametrize("name", NETS)
def test_batches_order_and_memory_change_nothing(name):
    case, model, circuit = NETS[name], built(name), last(name)
    images = case.images(7)
    expected = cc.refit(model, circuit, images)
    assert expected.constants
    data = TensorDataset(images.flip(0), torch.arange(7))
    shuffled = DataLoader(data, batch_size=2, shuffle=True, generator=torch.Generator().manual_seed(0))
    for how, (given, options) in {
        "batches of one": (images, {"batch_size": 1}),
        "batches of three": (images, {"batch_size": 3}),
        "another order": (images[[3, 1, 6, 0, 2, 5, 4]], {}),
        "a loader": (DataLoader(data, batch_size=4), {}),
        "all runs start anew": (images, {"memory": 1, "batch_size": 4}),
        "a shuffling loader": (shuffled, {}),
        "a shuffling loader whose runs start anew": (shuffled, {"memory": 1}),
        "a shuffling loader and room for some": (shuffled, {"memory": room(model, circuit, case, 2)}),
        "a list of unequal batches": ([images[:1], images[1:6], images[6:]], {"batch_size": 4}),
    }.items():
        refitted = cc.refit(model, circuit, given, **options)
        agree(refitted, expected.gain, expected.offset, rtol=1e-7, atol=1e-9)
        assert refitted.provenance["calibration"]["images"] == expected.provenance["calibration"]["images"], how
    again = cc.refit(model, circuit, images)
    assert again == expected
    assert again.provenance == expected.provenance


def room(model, circuit, case, batches):
    """Bytes in which runs of so many batches, but not of one more, fit."""
    subject = Subject.open(Network(model), circuit.feature, case.input_shape)
    return batches * 2 * 2 * max(waiting(subject.survey.paths.graph))


@pytest.mark.parametrize("name", MANY)
def test_drawn_positions_are_the_same_in_every_image_and_depend_on_the_seed_alone(name, monkeypatch):
    case, model, circuit = NETS[name], built(name), last(name)
    drawn = {}
    draw = Refit._drawn

    def watched(self, call, calls):
        positions, count = draw(self, call, calls), call.by_position(call.compute()).shape[3]
        assert call.positions == count
        seen = tuple(range(count)) if positions is None else tuple(positions.tolist())
        drawn.setdefault((call.layer, call.turn), set()).add((count, seen))
        return positions

    monkeypatch.setattr(Refit, "_drawn", watched)
    found = []
    for seed, size, memory in ((0, 16, 2**30), (0, 2, 2**30), (0, 3, 1), (1, 16, 2**30)):
        found.append(
            cc.refit(model, circuit, case.images(6), positions=6 * 7, seed=seed, batch_size=size, memory=memory)
        )
        if len(found) < 4:
            assert all(len(places) == 1 for places in drawn.values())
            for ((count, places),) in drawn.values():
                assert len(set(places)) == len(places) <= count
                assert len(places) in (min(count, 7), min(count, 4))  # 4 where a layer runs twice
    agree(found[1], found[0].gain, found[0].offset)
    agree(found[2], found[0].gain, found[0].offset)
    assert any(len(places) == 2 for places in drawn.values())  # the other seed
    assert found[3] != found[0]
    assert found[3].provenance["calibration"]["seed"] == 1


@pytest.mark.parametrize(("memory", "kept"), [(2**30, True), (1, False)])
@pytest.mark.parametrize("name", MANY)
def test_one_run_of_the_full_model_serves_all_refits_if_there_is_room(name, memory, kept):
    case, model, circuit = NETS[name], built(name), last(name)
    subject = Subject.open(Network(model), circuit.feature, tuple(case.images(1).shape[1:]))
    images = case.images(6)
    batches = Batches(images, device=images.device, dtype=images.dtype, batch_size=4)
    smaller = found(name, *case.features[-1], density=0.3)
    first, second = (subject.masks(one, subject.survey.input_shape, effective=True) for one in (circuit, smaller))
    alone, again = (Refit(subject, batches, positions=6 * 7, memory=memory) for _ in range(2))
    expected = alone(second)
    again(first)
    before = again.cost["forward"]
    assert all(
        torch.equal(one[layer], other[layer])
        for one, other in zip(expected, again(second), strict=True)
        for layer in one
    )
    assert (again.cost["forward"] - before < alone.cost["forward"]) == kept
    shuffled = Refit(
        subject, Batches(list(images.split(4)), device=images.device, dtype=images.dtype, batch_size=4), positions=42
    )
    shuffled(first)
    before = shuffled.cost["forward"]
    shuffled(first)
    assert shuffled.cost["forward"] == 2 * before  # a loader may give other images


def test_runs_for_which_first_layers_have_no_room_are_held_from_where_maps_are_small():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3 if n == 0 else 4, 4, 3, padding=1) for n in range(6)]
    net = nn.Sequential(*layers[:2], nn.ReLU(), nn.MaxPool2d(4), *layers[2:]).double()
    images = torch.randn(8, 3, 16, 16, dtype=torch.float64)
    circuit = cc.find(net, cc.Feature("7", 1), images, criterion="snip", density=0.5)
    subject = Subject.open(Network(net), circuit.feature, (3, 16, 16))
    waits = waiting(subject.survey.paths.graph)
    assert max(waits[2:]) * 8 < min(waits[:2])
    memory = 8 * 2 * max(waits[2:]) + 2 * (waits[0] + waits[1])  # all where maps are small, else one batch of two
    batches = Batches(images, device=images.device, dtype=images.dtype, batch_size=2)
    fit = Refit(subject, batches, positions=None, memory=memory)
    held = [min(4, memory // (2 * (waits[n] + waits[n + 1]))) for n in range(5)]
    assert held == [1, 2, 4, 4, 4]
    expected = Refit(subject, batches, positions=None)
    masks = subject.masks(circuit, (3, 16, 16), effective=True)
    for one, other in zip(fit(masks), expected(masks), strict=True):
        assert all(torch.equal(one[layer], other[layer]) for layer in one)
    assert expected.cost["forward"] == 2 * 8
    assert fit.cost["forward"] == 2 * 2 * (4 + (4 - held[0]) + (4 - held[1]))


@pytest.mark.parametrize("name", MANY)
def test_all_positions_are_as_good_as_more(name):
    case, model, circuit = NETS[name], built(name), last(name)
    expected = cc.refit(model, circuit, case.images(5), positions=None)
    assert cc.refit(model, circuit, case.images(5), positions=5 * 200) == expected
    assert cc.refit(model, circuit, case.images(5), positions=5 * 7) != expected


@pytest.mark.parametrize("name", ["residual", "flat_head"])
def test_the_drawn_positions_alone_are_fitted(name, monkeypatch):
    case, model, circuit = NETS[name], built(name), last(name)
    drawn = {}
    draw = Refit._drawn

    def watched(self, call, calls):
        positions = draw(self, call, calls)
        if positions is not None:
            drawn[call.layer] = positions
        return positions

    monkeypatch.setattr(Refit, "_drawn", watched)
    images = case.images(10)
    got = cc.refit(model, circuit, images, positions=10 * 9)
    assert drawn
    about = {"method": "kernels", "ridge": 0.01, "blocks": case.blocks}
    masks = dict(circuit.elements)
    agree(got, *oracles.refit(model, masks, *case.features[-1], images, positions=drawn, **about))


# ---------------------------------------- what is fitted, and what is not


@pytest.mark.parametrize("target", ["the model", "another"])
@pytest.mark.parametrize("name", [name for name in NETS if name != "twice"])  # its calls cannot be fitted one by one
def test_fitted_to_another_circuit_of_the_same_kernels_it_computes_the_same(name, target):
    case, model, circuit = NETS[name], built(name), last(name)
    subject = Subject.open(Network(model), circuit.feature, tuple(case.images(1).shape[1:]))
    other = replace(circuit, **{key: LayerTable(value) for key, value in calibration(circuit.kernels).items()})
    batches = Batches(case.images(6), device=torch.device("cpu"), dtype=torch.float64, batch_size=4)
    bare, like = (subject.masks(one, subject.survey.input_shape, effective=True) for one in (circuit, other))
    whole = None
    if target == "another":  # whose weights are others, and which that circuit does not belong to
        whole = Subject.open(copy.deepcopy(model), circuit.feature, subject.survey.input_shape)
        for parameter in whole.network.module.parameters():
            parameter.data = parameter.data.flip(0)
    fit = Refit(subject, batches, target=whole, ridge=0.0, toward=0.0, positions=None)
    gain, offset = fit(bare, like=like)
    fitted = replace(circuit, gain=LayerTable(gain), offset=LayerTable(offset))
    expected = cc.activations(model, circuit.feature, case.images(6), circuit=other)
    torch.testing.assert_close(
        cc.activations(model, circuit.feature, case.images(6), circuit=fitted), expected, rtol=1e-6, atol=1e-8
    )
    assert not torch.allclose(cc.activations(model, circuit.feature, case.images(6), circuit=circuit), expected)


@pytest.mark.parametrize("method", FITTED)
@pytest.mark.parametrize("name", NETS)
def test_what_is_dead_keeps_gain_one_and_offset_zero(name, method):
    case, model, circuit = NETS[name], built(name), last(name)
    live = oracles.reachable(model, *case.features[-1], case.input_shape, dict(circuit.elements), blocks=case.blocks)
    refitted = cc.refit(model, circuit, case.images(6), method=method)
    assert list(refitted.gain) == [layer for layer, mask in live.items() if mask.any()]
    for layer, gain in refitted.gain.items():
        dead = ~live[layer].any(1)
        assert (gain[dead] == 1).all()
        assert (refitted.offset[layer][dead] == 0).all()
        if method == "kernels":
            assert (gain[~live[layer]] == 1).all()
        if method == "filters":
            assert (gain == gain[:, :1]).all()
        if method == "mean":
            assert (gain == 1).all()


def test_a_map_that_does_not_vary_keeps_gain_one():
    """Channel 0 of the images is a constant; rounding in it is not fitted, in either precision."""
    for dtype in (torch.float64, torch.float32):
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)).to(dtype).eval()
        images = torch.randn(6, 3, 9, 9, generator=torch.Generator().manual_seed(1)).to(dtype)
        images[:, 0] = 0.7
        masks = {"0": torch.tensor([[1, 1, 0]] * 4), "2": torch.ones(2, 4)}
        circuit = cc.Circuit.from_masks(model, cc.Feature("2", 1), masks, input_shape=(3, 9, 9))
        for ridge in (0.0, 0.01):
            refitted = cc.refit(model, circuit, images, ridge=ridge)
            assert (refitted.gain["0"][:, 0] == 1).all()
            assert (refitted.gain["0"][:, 1] != 1).all()
            by_filter = cc.refit(model, circuit, images, ridge=ridge, method="filters")
            assert (by_filter.gain["0"] != 1).all()
        same = images[:1, :, :1, :1].expand(6, 3, 9, 9).contiguous()  # nothing varies
        for method in ("kernels", "filters"):
            refitted = cc.refit(model, circuit, same, ridge=0, method=method)
            assert all((gain == 1).all() for gain in refitted.gain.values())
            assert (refitted.offset["0"] != 0).all()
            maps = cc.activations(model, circuit.feature, same)
            torch.testing.assert_close(cc.activations(model, circuit.feature, same, circuit=refitted), maps)


def test_kernels_that_read_the_same_share_the_change():
    """Two channels that are equal get the smallest change; in float32 too, where the equations are rounded."""
    for dtype in (torch.float64, torch.float32):
        model = seeded(lambda: nn.Sequential(nn.Conv2d(4, 3, 3), nn.ReLU(), nn.Conv2d(3, 2, 3)), 3)().to(dtype)
        images = torch.randn(8, 4, 9, 9, generator=torch.Generator().manual_seed(1)).to(dtype)
        images[:, 1] = images[:, 0]
        with torch.no_grad():
            model[0].weight[:, 1] = model[0].weight[:, 0] * 1.5
            model[0].weight[:, 3] += model[0].weight[:, 0]
        images[:, 3] += images[:, 0]
        masks = {"0": torch.tensor([[1, 1, 1, 0]] * 3), "2": torch.ones(2, 3)}
        circuit = cc.Circuit.from_masks(model, cc.Feature("2", 1), masks, input_shape=(4, 9, 9))
        for ridge in (0.0, 1e-12, 1e-8, 1e-4):
            change = cc.refit(model, circuit, images, ridge=ridge).gain["0"] - 1
            assert 0.1 < change.abs().max() < 2
            # With a ridge, the pull that is the same for both maps makes the smaller one change a little less.
            torch.testing.assert_close(change[:, 0], change[:, 1] * 1.5, rtol=0.15 if ridge else 0.02, atol=1e-3)


@pytest.mark.parametrize("power", [-80, 60])
def test_the_scale_of_a_filter_changes_nothing(power):
    """In float32, its squares would vanish, or overflow."""
    model = seeded(lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)), 3)().float()
    images = torch.randn(6, 3, 9, 9, generator=torch.Generator().manual_seed(1))
    masks = {"0": torch.tensor([[1, 1, 0]] * 4), "2": torch.tensor([[1, 1, 1, 0]] * 2)}

    def refitted(ridge):
        circuit = cc.Circuit.from_masks(model, cc.Feature("2", 1), masks, input_shape=(3, 9, 9))
        return cc.refit(model, circuit, images, ridge=ridge)

    expected = [refitted(ridge) for ridge in (0, 0.01)]
    with torch.no_grad():
        for parameter in model[0].parameters():
            parameter *= 2.0**power
        model[2].weight *= 2.0**-power
    for ridge, before in zip((0, 0.01), expected, strict=True):
        after = refitted(ridge)
        offset = dict(after.offset) | {"0": after.offset["0"] * 2.0**-power}
        agree(replace(after, offset=LayerTable(offset)), before.gain, before.offset, rtol=1e-5, atol=1e-6)


def test_a_kernel_that_adds_nothing_visible_is_not_fitted():
    """Its map varies, but its filter's output rounds it away: no gain however large may make something of it."""
    model = seeded(lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)), 3)()
    images = torch.randn(6, 3, 9, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    images[:, 1] *= 1e-20
    masks = {"0": torch.tensor([[1, 1, 0]] * 4), "2": torch.ones(2, 4)}
    circuit = cc.Circuit.from_masks(model, cc.Feature("2", 1), masks, input_shape=(3, 9, 9))
    gain = cc.refit(model, circuit, images).gain["0"]
    assert (gain[:, 1] == 1).all()
    assert (gain[:, 0] != 1).all()


def test_rounding_is_not_fitted():
    """Neither what a removed kernel adds in the last digit, nor the last digits of a map far larger than the output."""
    model = seeded(lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)), 3)()
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(6, 3, 9, 9, generator=generator, dtype=torch.float64)

    def refitted(first):
        masks = {"0": torch.tensor([first] * 4), "2": torch.ones(2, 4)}
        circuit = cc.Circuit.from_masks(model, cc.Feature("2", 1), masks, input_shape=(3, 9, 9))
        return cc.refit(model, circuit, images)

    images[:, 1] = images[:, 1].abs() * 1e-16
    unchanged = refitted([1, 0, 1])
    assert all((gain == 1).all() for gain in unchanged.gain.values())
    assert all((offset == 0).all() for offset in unchanged.offset.values())
    digits = torch.randint(0, 5, images[:, 1].shape, generator=generator).double()
    images[:, 1] = 1 + digits * torch.finfo(torch.float64).eps
    with torch.no_grad():
        model[0].weight[:, 1] = 1e8
        model[0].bias -= 9e8
    gain = refitted([1, 1, 0]).gain["0"]
    assert (gain[:, 1] == 1).all()
    assert (gain[:, 0] != 1).all()


class OverSpread(nn.Module):
    """Each channel over its own spread, which is no number, or a huge one, where a dead filter holds a constant."""

    least = 0.0

    def forward(self, x):
        return x / (x.std((2, 3), keepdim=True) + self.least)


def test_a_dead_filter_that_holds_no_number_does_not_matter():
    images, model, expected = NETS["plain"].images(6), net(OverSpread), net(OverSpread)
    expected.between.least = 1e-30
    masks = {"conv": torch.tensor([[1, 1, 0], [0, 0, 0], [0, 1, 1], [1, 0, 1]]), "head": torch.ones(3, 4)}
    for method in FITTED:
        with_nan, without = (
            cc.refit(m, cc.Circuit.from_masks(m, HEAD, masks, input_shape=(3, 8, 8)), images, method=method)
            for m in (model, expected)
        )
        assert with_nan.constants
        agree(with_nan, without.gain, without.offset)


def test_values_that_are_not_finite_cannot_be_fitted():
    """Half of the circuit overflows where the whole model does not: its two channels cancel."""
    model = seeded(lambda: nn.Sequential(nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1)), 3)()
    with torch.no_grad():
        model[0].weight[:] = torch.tensor([[1e200, -1e200], [1e200, -1e200]])[:, :, None, None]
        model[1].weight[:] = 1e200
    images = torch.rand(3, 1, 5, 5, dtype=torch.float64).expand(3, 2, 5, 5)
    masks = {"0": torch.tensor([[1, 0], [1, 0]]), "1": torch.ones(2, 2), "2": torch.ones(2, 2)}
    circuit = cc.Circuit.from_masks(model, cc.Feature("2", 1), masks, input_shape=(2, 5, 5))
    with pytest.raises(
        cc.ConvCircuitsError,
        match=r"^[01] computes NaN, Inf or far too large values on these images and cannot be fitted",
    ):
        cc.refit(model, circuit, images)


@pytest.mark.parametrize("name", MANY)
def test_single_precision_agrees_with_double(name):
    case = NETS[name]
    expected = cc.refit(built(name), last(name), case.images(8))
    model = case.build().float()
    elements = last(name).elements
    circuit = cc.Circuit.from_masks(model, cc.Feature(*case.features[-1]), dict(elements), input_shape=case.input_shape)
    got = cc.refit(model, circuit, case.images(8).float())
    assert {gain.dtype for gain in got.gain.values()} == {torch.float32}
    agree(got, expected.gain, expected.offset, rtol=1e-3, atol=1e-4)


def test_images_of_several_sizes_are_fitted_together():
    model = net()
    circuit = circuit_of(model, HEAD, torch.zeros(1, 3, 9, 9, dtype=torch.float64), 0.5)
    generator = torch.Generator().manual_seed(2)
    small, large = (torch.randn(4, 3, s, s + 1, dtype=torch.float64, generator=generator) for s in (9, 12))
    got = cc.refit(model, circuit, [small, large], batch_size=3)
    live = oracles.reachable(model, "head", 1, (3, 9, 10), dict(circuit.elements))
    gain, offset = {}, {}
    for name in got.gain:
        pairs = [
            (
                oracles.kernel_calls(model, None, "head", 1, x)[name],
                oracles.kernel_calls(model, dict(circuit.elements), "head", 1, x, gain=gain, offset=offset)[name],
            )
            for x in (small, large)
        ]
        gain[name], offset[name] = torch.ones_like(got.gain[name]), torch.zeros_like(got.offset[name])
        for o in live[name].any(1).nonzero()[:, 0].tolist():
            y, z, rest = oracles.design(pairs[0][0] + pairs[1][0], pairs[0][1] + pairs[1][1], o)
            kept = live[name][o]
            spread = ((y - y.mean()) ** 2).sum()
            a, offset[name][o] = oracles.least_squares(y - rest, z[:, kept.numpy()], 0.01, spread)
            gain[name][o, kept] = torch.from_numpy(a)
    agree(got, gain, offset)


# ---------------------------------------- the refitted circuit is a circuit


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", MANY)
def test_a_refitted_circuit_runs_the_same_everywhere(name, method, tmp_path):
    case, model, circuit = NETS[name], built(name), last(name, 0.6)
    refitted = cc.refit(model, circuit, case.images(6), method=method)
    held_out = case.images(3, seed=5)
    expected = oracles.circuit_map(
        model,
        dict(circuit.elements),
        *case.features[-1],
        held_out,
        blocks=case.blocks,
        gain=refitted.gain,
        offset=refitted.offset,
    )
    close(cc.activations(model, circuit.feature, held_out, circuit=refitted), expected)
    loaded = cc.load(cc.save(refitted, tmp_path / "c.safetensors"))
    assert loaded == refitted
    assert loaded.provenance == refitted.provenance
    close(cc.activations(model, circuit.feature, held_out, circuit=loaded), expected)
    module = cc.extract(model, refitted, input_shape=case.input_shape)
    with torch.no_grad():
        close(module(held_out), expected)
    report = cc.evaluate(model, refitted, held_out)
    assert report.constants == refitted.constants
    assert report.r2 == pytest.approx(oracles.r2(oracles.full_map(model, *case.features[-1], held_out), expected))


@pytest.mark.parametrize("granularity", ["filter", "weight"])
@pytest.mark.parametrize("name", ["plain", "residual", "grouped", "mobile"])
def test_so_does_one_of_filters_or_weights(name, granularity, tmp_path):
    case, model, circuit = NETS[name], built(name), last(name, 0.6, granularity)
    refitted = cc.refit(model, circuit, case.images(6))
    assert refitted.constants
    held_out, about = case.images(3, seed=5), {"gain": refitted.gain, "offset": refitted.offset}
    masks = masks_for_oracle(case, model, circuit)
    expected = oracles.circuit_map(model, masks, *case.features[-1], held_out, blocks=case.blocks, **about)
    close(cc.activations(model, circuit.feature, held_out, circuit=refitted), expected)
    assert cc.load(cc.save(refitted, tmp_path / "c.safetensors")) == refitted
    with torch.no_grad():
        close(cc.extract(model, refitted, input_shape=case.input_shape)(held_out), expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["residual", "flat_head"])
def test_a_refitted_circuit_runs_in_onnxruntime(name, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    case = NETS[name]
    model = case.build().float()
    circuit = cc.Circuit.from_masks(
        model, cc.Feature(*case.features[-1]), dict(last(name, 0.6).elements), input_shape=case.input_shape
    )
    refitted = cc.refit(model, circuit, case.images(6).float())
    images = case.images(3, seed=5).float()
    path = cc.save(cc.extract(model, refitted, input_shape=case.input_shape), tmp_path / "f.onnx")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {"images": images.numpy()})
    expected = cc.activations(model, circuit.feature, images, circuit=refitted)
    torch.testing.assert_close(torch.from_numpy(got), expected, rtol=1e-4, atol=1e-5)
    assert (expected - cc.activations(model, circuit.feature, images, circuit=circuit)).abs().max() > 1e-2


def test_the_circuit_says_how_it_was_fitted():
    case, model, circuit = NETS["plain"], built("plain"), last("plain")
    refitted = cc.refit(model, circuit, case.images(5), ridge=0.5, positions=40, seed=3)
    about = refitted.provenance["calibration"]
    assert about.pop("images")["count"] == 5
    assert about == {"method": "kernels", "ridge": 0.5, "toward": 1.0, "positive": False, "positions": 40, "seed": 3}
    own = {k: v for k, v in refitted.provenance.items() if k != "calibration"}
    assert own == circuit.provenance | {"cost": {"forward": circuit.provenance["cost"]["forward"] + 2 * 5}}
    assert refitted.elements == circuit.elements
    assert refitted.saliency == circuit.saliency
    assert not circuit.gain
    # Fitted again, nothing of the first fit is left.
    assert cc.refit(model, refitted, case.images(5)) == cc.refit(model, circuit, case.images(5))
    assert cc.refit(model, refitted, case.images(5), method="none") == circuit


def test_weights_stay_with_their_images():
    """A control is fitted as the circuit was: on the same images in the same order, or not at all."""
    case, model, circuit = NETS["plain"], built("plain"), last("plain")
    images, held_out = case.images(6), case.images(9)[6:]
    weighted = cc.refit(model, circuit, images, weights=[8, 1, 1, 1, 1, 0.1])
    found = cc.evaluate(model, weighted, held_out, fit=images, batch_size=2)
    assert found.r2_random == pytest.approx(cc.evaluate(model, weighted, held_out, fit=images).r2_random, rel=1e-9)
    for others in (images.flip(0), images[:5]):
        with pytest.raises(cc.ConvCircuitsError, match="same images in the same order; give these as fit"):
            cc.evaluate(model, weighted, held_out, fit=others)


def test_progress_counts_images_over_all_passes():
    case, model, circuit = NETS["twice"], built("twice"), last("twice", 1.0)
    for method, memory, passes in (("kernels", 2**30, 3), ("mean", 1, 9), ("kernels", 1, 9)):
        seen = []
        options = {"method": method, "memory": memory, "progress": lambda *counts, seen=seen: seen.append(counts)}
        cc.refit(model, circuit, case.images(5), batch_size=2, **options)
        assert [done for done, _ in seen] == [k * 5 + n for k in range(passes) for n in (2, 4, 5)]
        assert {total for _, total in seen} == {passes * 5}


def test_an_empty_circuit_has_nothing_to_fit():
    case, model, circuit = NETS["plain"], built("plain"), last("plain")
    empty = circuit - circuit
    refitted = cc.refit(model, empty, case.images(2))
    assert refitted == empty
    assert refitted.constants == 0
    assert refitted.provenance["calibration"]["images"]["count"] == 2


def test_refitting_leaves_the_model_and_the_world_as_they_were():
    case, model = NETS["residual"], NETS["residual"].build()
    circuit = last("residual")
    before = state_of(model)
    for method in METHODS:
        with World():
            cc.refit(model, circuit, case.images(3), method=method)
    with World(), pytest.raises(cc.ConvCircuitsError):
        cc.refit(model, circuit, case.images(3), method="no")
    with World(), pytest.raises(KeyboardInterrupt):
        cc.refit(model, circuit, case.images(3), progress=interrupt)
    assert state_of(model) == before
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert cc.refit(model, circuit, case.images(3)) == cc.refit(model, circuit, case.images(3))


def interrupt(done, total):
    raise KeyboardInterrupt


IMAGES = NETS["plain"].images(2)
MISTAKES = {
    "unknown method": (
        {"method": "affine"},
        "method must be one of 'kernels', 'filters', 'mean', 'none'; got 'affine'",
    ),
    "method None": ({"method": None}, "method must be one of"),
    "negative ridge": ({"ridge": -0.1}, "ridge must be a finite number from 0; got -0.1"),
    "ridge NaN": ({"ridge": float("nan")}, "ridge must be"),
    "infinite ridge": ({"ridge": float("inf")}, "ridge must be"),
    "ridge True": ({"ridge": True}, "ridge must be"),
    "ridge as text": ({"ridge": "0.1"}, "ridge must be"),
    "positive as a number": ({"positive": 1}, "positive must be True or False; got 1"),
    "no positions": ({"positions": 0}, "positions must be a whole number from 1; got 0"),
    "half a position": ({"positions": 1.5}, "positions must be a whole number"),
    "weights of nothing": (
        {"weights": [1.0, 1.0], "method": "none"},
        "method 'none' fits nothing, so it takes no weights",
    ),
    "too few weights": ({"weights": [1.0]}, r"one number for each of the 2 images; got the shape \(1,\)"),
    "weights of text": ({"weights": ["a", "b"]}, r"weights must be numbers, one for each image; got \['a', 'b'\]"),
    "negative weights": ({"weights": [1, -1]}, "weights must be finite numbers from 0, not all 0"),
    "no weight": ({"weights": [0, 0]}, "not all 0"),
    "weights NaN": ({"weights": [1, float("nan")]}, "weights must be finite"),
    "no memory": ({"memory": 0}, "memory, in bytes, must be a whole number from 1; got 0"),
    "negative seed": ({"seed": -1}, "seed=-1|seed must be a whole number"),
    "no batch": ({"batch_size": 0}, "batch_size must be a whole number from 1"),
    "progress": ({"progress": 3}, "progress must be a function"),
    "no circuit": ({"circuit": {}}, "Expected a Circuit, got dict"),
    "no images": ({"images": IMAGES[:0]}, "There are no images"),
    "images NaN": ({"images": IMAGES * float("nan")}, "contains NaN or Inf"),
    "one-shot images": ({"images": iter([IMAGES])}, "one-shot iterator"),
    "another model": ({"model": NETS["no_bias"].build()}, "weights"),
    "images of another shape": (
        {"images": torch.zeros(1, 4, 8, 8, dtype=torch.float64)},
        "expects 3 channels, but got 4",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_errors_that_say_what_was_given(mistake):
    options, match = MISTAKES[mistake]
    given = {"model": built("plain"), "circuit": last("plain"), "images": IMAGES} | options
    with pytest.raises(cc.ConvCircuitsError, match=match):
        cc.refit(given.pop("model"), given.pop("circuit"), given.pop("images"), **given)


# ---------------------------------------- what kernels read


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 6, 3),
        nn.Conv2d(4, 6, 1),
        nn.Conv2d(4, 6, 1, stride=2),
        nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 2)),
        nn.Conv2d(4, 6, 3, padding=2, dilation=(2, 1)),
        nn.Conv2d(4, 6, (2, 3), stride=(1, 3), padding=(0, 1), dilation=(3, 2), groups=2),
        nn.Conv2d(4, 8, 3, stride=2, groups=4, padding=1, bias=False),
        nn.Conv2d(4, 6, (7, 9)),
    ],
    ids=lambda layer: layer.extra_repr(),
)
def test_what_kernels_read_at_some_positions_is_that_part_of_what_they_read_at_all(layer):
    layer, x = layer.double(), torch.randn(3, 4, 7, 9, dtype=torch.float64)
    call = ConvCall("c", x, layer.weight, layer.bias, layer.stride, layer.padding, layer.dilation, layer.groups)
    check_columns(call)


@pytest.mark.parametrize(("shape", "blocks"), [((3, 12), 12), ((3, 12), 4), ((3, 5, 12), 12), ((3, 2, 5, 12), 6)])
def test_what_blocks_of_a_linear_read_at_some_positions_is_that_part(shape, blocks):
    layer = nn.Linear(12, 5).double()
    call = LinearCall("l", torch.randn(*shape, dtype=torch.float64), layer.weight, layer.bias, blocks)
    check_columns(call)


def check_columns(call):
    torch.testing.assert_close(call.read_totals(), call.columns(slice(None)).sum((0, 4)), rtol=1e-12, atol=1e-12)
    with torch.no_grad():
        whole = call.columns(slice(None))
        output = call.by_position(replace(call, bias=None).compute())
        assert whole.shape[-1] == output.shape[-1]
        close(torch.einsum("ngikp,goik->ngop", whole, call.kernels), output)
        count = output.shape[-1]
        generator = torch.Generator().manual_seed(0)
        for wanted in {1, (count + 1) // 2, count}:
            at = torch.randperm(count, generator=generator)[:wanted]
            for images in (slice(None), slice(1, 2)):
                assert torch.equal(call.columns(images, at), whole[images][..., at])
