"""What criteria see: every kernel's input and the gradient of what it wrote."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import convcircuits as cc
import oracles
from cases import LAST
from convcircuits.circuits.tracing import Batch, Trace
from convcircuits.network.batches import Batches
from convcircuits.network.capture import Network
from convcircuits.network.masking import Subject
from convcircuits.network.reach import survey
from nets import NETS, seeded

torch.set_num_threads(1)


def trace_of(model, feature, images, *, memory=2**20, batch_size=16, progress=None):
    network = Network(model)
    found = survey(network, feature, tuple(images.shape[1:]))
    batches = Batches(images, device=network.device, dtype=network.dtype, batch_size=batch_size)
    subject = Subject(network, feature, found)
    return Trace(subject, batches, relevant=found.kernels, memory=memory, progress=progress)


def shaped(layer, values):
    """(g, o, i, ...) of the computed filters -> (filters, i, ...)."""
    return values.reshape(-1, *values.shape[2:])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("granularity", ["kernel", "filter", "weight"])
@pytest.mark.parametrize("criterion", ["actgrad", "snip", "gauss_newton", "magnitude"])
def test_scores_of_a_model_in_half_precision_are_not_summed_in_it(criterion, granularity, size, dtype):
    """What the last layer reads and its gradient, ones or signs, are exact in half precision: the rest is sums."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, size, padding=size // 2)).to(dtype)
    images = torch.rand(5, 3, 40, 40).to(dtype)
    options = {"criterion": criterion, "granularity": granularity}
    options |= {"collapse": "sum"} if criterion in ("actgrad", "snip") else {}
    half = cc.score(model, cc.Feature("0", 1), images, **options).elements
    double = cc.score(model.double(), cc.Feature("0", 1), images.double(), **options).elements
    torch.testing.assert_close(half["0"].double(), double["0"], rtol=1e-4, atol=1e-9, equal_nan=True)


@pytest.mark.parametrize("memory", [1, 2**30], ids=["chunked", "whole"])
@pytest.mark.parametrize(("name", "layer", "unit"), LAST)
def test_products_are_those_of_the_oracle(name, layer, unit, memory):
    case = NETS[name]
    model, image = case.build(), case.images(1)
    trace = trace_of(model, cc.Feature(layer, unit), image, memory=memory)
    batch = Batch(trace, image)
    products = oracles.kernel_products(model, layer, unit, image[0], collapse="sum", blocks=case.blocks)
    order = []
    for seen in batch.backward(torch.ones_like(batch.maps)):
        order.append(seen.name)
        expected = sum((z * g[:, None]).reshape(*z.shape[:2], -1) for z, g in products[seen.name])
        if seen.calls[0][0].rows is not None:
            expected = expected[seen.calls[0][0].rows]
        sums = shaped(seen, seen.absolute_sums())
        torch.testing.assert_close(sums, expected.abs().sum(2), rtol=1e-9, atol=1e-13)
        (weight_products,) = list(seen.weight_products())
        torch.testing.assert_close(shaped(seen, weight_products).sum(2), expected.sum(2), rtol=1e-9, atol=1e-13)
    ran = [k for k in products if k in trace.shapes]
    assert order == ran[::-1]


@pytest.mark.parametrize(("name", "layer", "unit"), LAST)
def test_the_maps_are_the_full_models(name, layer, unit):
    case = NETS[name]
    model, images = case.build(), case.images(3)
    batch = Batch(trace_of(model, cc.Feature(layer, unit), images), images)
    torch.testing.assert_close(batch.maps, oracles.full_map(model, layer, unit, images))
    assert not batch.maps.requires_grad
    assert not images.requires_grad


def test_mean_is_a_float64_mean_over_images_and_progress_counts_them():
    case = NETS["plain"]
    model, images = case.build(), case.images(5)
    told = []
    trace = trace_of(model, cc.Feature("features.3", 1), images, batch_size=2, progress=lambda *a: told.append(a))
    means = trace.mean(lambda batch: [("n", torch.full((2,), float(batch.size))), ("n", torch.ones(2))])
    assert told == [(2, 5), (4, 5), (5, 5)]
    assert means["n"].dtype == torch.float64
    assert means["n"].tolist() == [(5 + 3) / 5] * 2


# ---------------------------------------- what happens in place


class Overwritten(nn.Module):
    """Overwrites what a convolution has read, in one of several ways."""

    def __init__(self, how):
        super().__init__()
        self.stem, self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 2, 1)
        self.how = how

    def forward(self, x):
        x = self.stem(x)
        y = self.conv(x)
        if self.how == "relu_":
            x.relu_()
        elif self.how == "iadd":
            x += 1.0
        elif self.how == "functional":
            F.relu(x, inplace=True)
        elif self.how == "slice":
            x[:, :2] *= 2.0
        elif self.how == "output":
            y.mul_(2.0)
        elif self.how == "output relu":
            y = F.relu(y, inplace=True)
        elif self.how == "view":
            x.flatten(1).mul_(0.5)
        return self.head(y + x)


class Rewritten(Overwritten):
    """The same function, nothing in place."""

    def forward(self, x):
        x = self.stem(x)
        y = self.conv(x)
        if self.how in ("relu_", "functional"):
            x = x.relu()
        elif self.how == "iadd":
            x = x + 1.0
        elif self.how == "slice":
            x = torch.cat([x[:, :2] * 2.0, x[:, 2:]], 1)
        elif self.how == "output":
            y = y * 2.0
        elif self.how == "output relu":
            y = y.relu()
        elif self.how == "view":
            x = x * 0.5
        return self.head(y + x)


@pytest.mark.parametrize("how", ["relu_", "iadd", "functional", "slice", "output", "output relu", "view"])
def test_an_input_that_is_overwritten_later_is_scored_as_it_was_read(how):
    model, images = seeded(lambda: Overwritten(how), 5)(), NETS["plain"].images(3)
    pure = seeded(lambda: Rewritten(how), 5)()
    feature = cc.Feature("head", 1)
    expected = {
        "snip": oracles.snip(pure, "head", 1, images),
        "actgrad": oracles.actgrad(pure, "head", 1, images),
    }
    for criterion, wanted in expected.items():
        scores = cc.score(model, feature, images, criterion=criterion)
        assert list(scores.elements) == ["stem", "conv", "head"]
        for layer, values in scores.elements.items():
            kept = ~values.isnan()
            torch.testing.assert_close(values[kept], wanted[layer][kept], rtol=1e-9, atol=1e-13)
    for centered in (False, True):
        one = cc.score(model, feature, images, centered=centered)
        two = cc.score(pure, feature, images, centered=centered)
        for layer, values in one.kernels.items():
            torch.testing.assert_close(values, two[layer], rtol=1e-9, atol=1e-13, equal_nan=True)
    circuit = cc.find(model, feature, images, criterion="snip", density=0.5)
    same = cc.Circuit.from_masks(pure, feature, dict(circuit.elements), input_shape=(3, 8, 8))
    for effective in (True, False):
        torch.testing.assert_close(
            cc.activations(model, feature, images, circuit=circuit, effective=effective),
            cc.activations(pure, feature, images, circuit=same, effective=effective),
        )


class Brightened(nn.Module):
    """Changes the image that it is given."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1)

    def forward(self, x):
        x.mul_(0.5).add_(1.0)
        return self.head(F.relu(self.conv(x)))


def test_a_model_that_overwrites_its_image_leaves_the_callers_images_alone():
    model, images = seeded(Brightened, 0)(), NETS["plain"].images(2)
    given, feature = images.clone(), cc.Feature("head", 1)
    expected = model(images.clone())[:, 1].detach()
    torch.testing.assert_close(cc.activations(model, feature, given), expected)
    assert torch.equal(given, images)
    cc.score(model, feature, given, criterion="snip")
    assert torch.equal(given, images)


class Detached(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1)

    def forward(self, x):
        return self.head(self.conv(x).detach())


def test_a_layer_on_a_detached_map_is_said_to_have_no_gradient():
    model, images, feature = seeded(Detached, 0)(), NETS["plain"].images(2), cc.Feature("head", 1)
    with pytest.raises(cc.ConvCircuitsError, match="head runs on an input without a gradient"):
        cc.score(model, feature, images, criterion="snip")


# ---------------------------------------- layers that run several times


class Tied(nn.Module):
    """Two modules that share one weight."""

    def __init__(self, bias):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.a = nn.Conv2d(4, 4, 3, padding=1, bias=bias)
        self.b = nn.Conv2d(4, 4, 3, padding=1, bias=bias)
        self.b.weight = self.a.weight
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, x):
        x = F.relu(self.stem(x))
        return self.head(F.relu(self.b(F.relu(self.a(x)))))


class Once(nn.Module):
    """The same with one module that runs twice."""

    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 2, 1)
        self.a = nn.Conv2d(4, 4, 3, padding=1, bias=False)

    def forward(self, x):
        x = F.relu(self.stem(x))
        return self.head(F.relu(self.a(F.relu(self.a(x)))))


@pytest.mark.parametrize("criterion", ["snip", "actgrad"])
def test_two_modules_with_one_weight_are_one_layer_whose_products_add_up(criterion):
    tied, images = seeded(lambda: Tied(bias=False), 2)(), NETS["plain"].images(2)
    once = seeded(Once, 0)()
    once.load_state_dict({k: v for k, v in tied.state_dict().items() if not k.startswith("b.")})
    expected = getattr(oracles, criterion)(once, "head", 1, images)
    scores = cc.score(tied, cc.Feature("head", 1), images, criterion=criterion)
    assert list(scores.elements) == ["stem", "a", "head"]
    for layer, values in scores.elements.items():
        kept = ~values.isnan()
        torch.testing.assert_close(values[kept], expected[layer][kept], rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("layer", ["a", "b"])
def test_a_feature_in_one_of_two_tied_modules_is_that_modules_map(layer):
    model, images = seeded(lambda: Tied(bias=True), 2)(), NETS["plain"].images(2)
    run = cc.activations(model, cc.Feature(layer, 1), images)
    torch.testing.assert_close(run, oracles.full_map(model, layer, 1, images))


@pytest.mark.parametrize("call", [0, 1])
@pytest.mark.parametrize("criterion", ["snip", "actgrad", "gauss_newton"])
def test_a_feature_at_any_call_of_a_layer_is_scored_as_the_oracle_says(criterion, call):
    case = NETS["twice"]
    model, images = case.build(), case.images(2)
    feature = cc.Feature("shared", 1, call=call, position="center")
    options = {"call": call, "position": "center"}
    if criterion == "gauss_newton":
        one = torch.ones_like(oracles.full_map(model, "shared", 1, images[:1], call=call)[0])
        expected = oracles.gauss_newton(model, "shared", 1, images, signs=[one], **options)
    else:
        expected = getattr(oracles, criterion)(model, "shared", 1, images, **options)
    scores = cc.score(model, feature, images, criterion=criterion)
    for layer, values in scores.elements.items():
        kept = ~values.isnan()
        torch.testing.assert_close(values[kept], expected[layer][kept], rtol=1e-9, atol=1e-13)


# ---------------------------------------- features anywhere


class Functional(nn.Module):
    """Owns two weights and calls conv2d itself."""

    def __init__(self):
        super().__init__()
        self.first = nn.Parameter(torch.randn(4, 4, 3, 3))
        self.second = nn.Parameter(torch.randn(4, 4, 3, 3))

    def forward(self, x):
        return F.conv2d(F.relu(F.conv2d(x, self.first)), self.second)


def test_a_module_that_calls_conv2d_twice_itself_is_followed():
    class Parent(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.body = nn.Conv2d(3, 4, 1), Functional()

        def forward(self, x):
            return self.body(self.stem(x))

    model, images = seeded(Parent, 0)(), NETS["plain"].images(2)
    modules = seeded(lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, bias=False)), 0)()
    modules.append(nn.ReLU()).append(copy.deepcopy(modules[1]))
    with torch.no_grad():
        modules[0].load_state_dict(model.stem.state_dict())
        modules[1].weight.copy_(model.body.first)
        modules[3].weight.copy_(model.body.second)
    run = cc.activations(model, cc.Feature("body", 2), images)
    torch.testing.assert_close(run, oracles.full_map(modules, "3", 2, images))
    expected = oracles.snip(modules, "3", 2, images)
    scores = cc.score(model, cc.Feature("body", 2), images, criterion="snip")
    for values, wanted in zip(scores.elements.values(), ("0", "1", "3"), strict=True):
        kept = ~values.isnan()
        torch.testing.assert_close(values[kept], expected[wanted][kept], rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize(
    ("name", "layer", "unit", "call", "leaf"),
    [
        ("plain", "features.1", 2, None, None),
        ("plain", "features.4", 2, None, None),
        ("residual", "bn", 3, None, None),
        ("residual", "block1", 1, None, ("block1.relu", 1)),
        ("residual", "block2", 0, None, ("block2.relu", 1)),
        ("mobile", "depth", 3, None, ("depth.2", None)),
        ("twice", "relu", 2, 1, None),
        ("flat_head", "classifier", 2, None, ("classifier.4", None)),
        ("flat_head", "classifier.2", 2, None, None),
        ("pooled_head", "flat", 2, None, None),
        ("se_conv", "se.sigmoid", 1, None, None),
        ("dense", "layer2.norm", 4, None, None),
        ("nested", "stage.0", 1, None, ("relu", 1)),
    ],
)
def test_a_feature_on_any_module_is_scored_as_the_oracle_says(name, layer, unit, call, leaf):
    case = NETS[name]
    model, images = case.build(), case.images(2)
    node, node_call = leaf or (layer, call)
    relevant = oracles.reachable(model, node, unit, case.input_shape, blocks=case.blocks, call=node_call)
    for criterion in ("snip", "actgrad"):
        scores = cc.score(model, cc.Feature(layer, unit, call=call), images, criterion=criterion)
        expected = getattr(oracles, criterion)(model, node, unit, images, blocks=case.blocks, call=node_call)
        expected = oracles.nan_outside(expected, relevant)
        assert list(scores.elements) == list(expected)
        for kernels, values in expected.items():
            torch.testing.assert_close(scores[kernels], values, rtol=1e-9, atol=1e-13, equal_nan=True)
