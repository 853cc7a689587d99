"""Scores in any range of numbers, in mixed precision, and of weights that are used in several forms."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import convcircuits as cc
from cases import HEAD
from nets import NETS, Net, net, seeded

X = NETS["plain"].images(4)
CRITERIA = ["actgrad", "snip", "gauss_newton", "force", "magnitude"]
DEGREE = {"actgrad": 1, "snip": 1, "gauss_newton": 2}


def without_biases():
    """A net that is homogeneous in each layer's weights, in float32."""
    model = net(lambda: nn.Conv2d(4, 4, 1, bias=False)).float()
    for layer in (model.conv, model.head):
        layer.bias.data.zero_()
    return model


def scaled(**powers):
    model = without_biases()
    for layer, power in powers.items():
        model.get_submodule(layer).weight.data.mul_(2.0**power)
    return model


# ---------------------------------------- large and small numbers

POWERS = [{"head": 100}, {"head": -100}, {"head": 120}, {"head": -105}, {"conv": 90, "head": -90}, {"between": -80}]


@pytest.mark.parametrize("powers", POWERS, ids=str)
@pytest.mark.parametrize("criterion", ["actgrad", "snip", "gauss_newton", "force"])
def test_the_size_of_a_feature_changes_no_choice(criterion, powers):
    """Powers of two round nothing: the scores are those of the plain net times a power of two, bit for bit."""
    images = X.float()
    expected = cc.find(without_biases(), HEAD, images, criterion=criterion, density=0.3)
    found = cc.find(scaled(**powers), HEAD, images, criterion=criterion, density=0.3)
    assert all(torch.equal(found[layer], mask) for layer, mask in expected.elements.items())
    if criterion != "force":
        factor = 2.0 ** (DEGREE[criterion] * sum(powers.values()))
        unit = found.provenance.get("scale", 1.0) / factor
        for layer, values in expected.saliency.items():
            assert torch.equal((found.saliency[layer].double() * unit).nan_to_num(), values.double().nan_to_num())


@pytest.mark.parametrize("collapse", ["sum", "square"])
@pytest.mark.parametrize("power", [100, -100])
def test_no_collapse_overflows_or_vanishes(collapse, power):
    options = {"criterion": "snip", "collapse": collapse, "density": 0.3}
    expected = cc.find(without_biases(), HEAD, X.float(), **options)
    found = cc.find(scaled(head=power), HEAD, X.float(), **options)
    assert all(torch.equal(found[layer], mask) for layer, mask in expected.elements.items())


def test_scores_of_ordinary_size_are_in_no_unit():
    for model in (without_biases(), scaled(head=20), scaled(head=-20)):
        assert "scale" not in cc.score(model, HEAD, X.float()).provenance


def test_a_unit_of_scores_is_kept_in_files(tmp_path):
    scores = cc.score(scaled(head=100), HEAD, X.float())
    assert scores.provenance["scale"] > 2.0**190
    assert cc.load(cc.save(scores, tmp_path / "s.safetensors")) == scores


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("criterion", [*CRITERIA, "random"])
def test_a_feature_that_is_not_finite_is_scored_by_no_criterion(criterion, bad):
    model = without_biases()
    model.head.weight.data[1] = bad
    with pytest.raises(cc.ConvCircuitsError, match=r"The maps of head:1 contain NaN or Inf; check the model's weights"):
        cc.find(model, HEAD, X.float(), criterion=criterion, density=0.5)


class Saturated(nn.Module):
    """A map of 1 with no gradient where what ``last`` reads is Inf: on images of ones, not on those of zeros."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(1, 2, 1, bias=False), nn.Conv2d(2, 2, 1)
        self.first.weight.data[:, 0] = torch.tensor([1.0, 0.5])[:, None, None]
        self.last.weight.data = torch.tensor([[0.1, 0.2], [0.3, 0.1]])[..., None, None]

        self.out = nn.Hardtanh()

    def forward(self, x):
        return self.out(self.last((150 * self.first(x)).exp()))


@pytest.mark.parametrize("criterion", ["actgrad", "snip", "gauss_newton", "force", "progressive", "learned"])
def test_an_element_that_reads_what_is_not_finite_is_not_passed_over(criterion):
    images = torch.cat([torch.zeros(3, 1, 4, 4), torch.ones(1, 1, 4, 4)])
    feature = cc.Feature("out", 0)
    cc.find(Saturated(), feature, images[:3] + torch.rand(3, 1, 4, 4) / 200, criterion=criterion, kernels=2)
    with pytest.raises(cc.ConvCircuitsError, match=r"returned NaN or Inf for (first|last); check the scale"):
        cc.find(Saturated(), feature, images, criterion=criterion, kernels=2)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e300])
def test_a_criterion_of_ones_own_may_be_of_any_size_but_finite(value):
    def mine(trace):
        tables = {layer: torch.ones(shape, dtype=torch.float64) for layer, shape in trace.shapes.items()}
        tables["conv"][2] = value
        return tables

    if value < 1e301:
        scores = cc.score(without_biases(), HEAD, X.float(), criterion=mine)
        assert cc.prune(scores, kernels=3)["conv"][2].all()
        return
    with pytest.raises(cc.ConvCircuitsError, match="mine returned NaN or Inf for conv"):
        cc.score(without_biases(), HEAD, X.float(), criterion=mine)


# ---------------------------------------- mixed precision


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_callers_autocast_changes_nothing(dtype, tmp_path):
    model, images = net().float(), X.float()

    def results():
        circuit = cc.find(model, HEAD, images, criterion="gauss_newton", density=0.5)
        return {
            "circuit": circuit,
            "centered": cc.score(model, HEAD, images, centered=True),
            "force": cc.find(model, HEAD, images, criterion="force", density=0.4),
            "report": cc.evaluate(model, circuit, images, fit=images).as_dict(),
            "masks": cc.Circuit.from_masks(model, HEAD, dict(circuit.elements), input_shape=(3, 8, 8)),
        }, [
            cc.activations(model, HEAD, images),
            cc.activations(model, HEAD, images, circuit=circuit),
            *cc.extract(model, circuit).state_dict().values(),
        ]

    expected, tensors = results()
    with torch.autocast("cpu", dtype=dtype):
        found, others = results()
        assert torch.is_autocast_enabled("cpu")
        assert torch.get_autocast_dtype("cpu") == dtype
    assert found == expected
    for a, b in zip(others, tensors, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


class Cast(Net):
    """Runs its first layer in half precision, as a model of mixed precision does."""

    def forward(self, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            x = F.relu(self.conv(x))
        return self.head(x.to(self.head.weight.dtype))


class AllCast(Net):
    def forward(self, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return super().forward(x)


@pytest.mark.parametrize("kind", [Cast, AllCast])
@pytest.mark.parametrize("criterion", CRITERIA)
def test_the_models_own_autocast_is_part_of_the_model(criterion, kind):
    model, plain, images = net(kind=kind).float(), net().float(), X.float()
    full = cc.activations(model, HEAD, images)
    with torch.no_grad():
        assert torch.equal(full, model(images)[:, 1].float())
    assert not torch.equal(full, cc.activations(plain, HEAD, images))
    if criterion != "force":
        found = cc.score(model, HEAD, images, criterion=criterion)
        for layer, values in cc.score(plain, HEAD, images, criterion=criterion).elements.items():
            largest = float(values.nan_to_num().abs().max())
            torch.testing.assert_close(found[layer], values, rtol=0.1, atol=0.02 * largest, equal_nan=True)
    circuit = cc.find(model, HEAD, images, criterion=criterion, density=1.0)
    assert torch.equal(cc.activations(model, HEAD, images, circuit=circuit), full)
    assert cc.evaluate(model, circuit, images).r2 == 1
    with pytest.raises(cc.ConvCircuitsError, match="conv uses autocast in its own forward"):
        cc.extract(model, circuit)


# ---------------------------------------- a weight in several forms


class CentralDifference(nn.Conv2d):
    """Su et al.: the weight as it is, less its sum at the centre."""

    def forward(self, x):
        return super().forward(x) - 0.7 * F.conv2d(x, self.weight.sum((2, 3), keepdim=True))


class WrittenOut(nn.Conv2d):
    """The same as one convolution."""

    def forward(self, x):
        weight = self.weight.clone()
        weight[:, :, 1, 1] = weight[:, :, 1, 1] - 0.7 * self.weight.sum((2, 3))
        return self._conv_forward(x, weight, self.bias)


class TwoWeights(nn.Conv2d):
    """Two convolutions of one size, whose weights are computed from one."""

    def forward(self, x):
        return self._conv_forward(x, 2 * self.weight, None) + self._conv_forward(x, self.weight - 1, self.bias)


class Added(nn.Conv2d):
    def forward(self, x):
        return self._conv_forward(x, 3 * self.weight - 1, self.bias)


def forms(kind):
    return seeded(lambda: Net(lambda: kind(4, 4, 3, padding=1)), 0)()


@pytest.mark.parametrize(("several", "one"), [(CentralDifference, WrittenOut), (TwoWeights, Added)])
@pytest.mark.parametrize("criterion", ["actgrad", "gauss_newton", "centered", "signed snip", "random"])
@pytest.mark.parametrize("granularity", ["kernel", "filter"])
def test_a_weight_in_several_forms_is_scored_as_the_one_convolution_that_it_is(criterion, several, one, granularity):
    """What goes by kernel, whatever its elements, is the same."""
    options = {
        "centered": {"criterion": "gauss_newton", "centered": True},
        "signed snip": {"criterion": "snip", "signed": True, "normalizer": "sum"},
    }.get(criterion, {"criterion": criterion})
    if criterion == "centered" and several is CentralDifference:
        with pytest.raises(cc.ConvCircuitsError, match="between uses its weight in several sizes"):
            cc.score(forms(several), HEAD, X, granularity=granularity, **options)
        return
    found = cc.score(forms(several), HEAD, X, granularity=granularity, **options)
    expected = cc.score(forms(one), HEAD, X, granularity=granularity, **options)
    for layer, values in expected.elements.items():
        torch.testing.assert_close(found[layer], values, rtol=1e-9, atol=1e-13, equal_nan=True)


@pytest.mark.parametrize("several", [CentralDifference, TwoWeights])
@pytest.mark.parametrize("criterion", CRITERIA)
def test_a_weight_in_several_forms_runs_as_kernels(criterion, several):
    model = forms(several)
    report = cc.evaluate(model, cc.find(model, HEAD, X, criterion=criterion, density=1.0), X)
    assert report.r2 == pytest.approx(1, abs=1e-12)
    circuit = cc.find(model, HEAD, X, criterion=criterion, density=0.8)
    maps = cc.activations(model, HEAD, X, circuit=circuit)
    torch.testing.assert_close(cc.extract(model, circuit)(X), maps)


def test_masks_reach_every_form_of_a_weight():
    model = forms(CentralDifference)
    circuit = cc.find(model, HEAD, X, criterion="gauss_newton", density=0.6)
    masked = forms(CentralDifference)
    for layer, mask in circuit.elements.items():
        masked.get_submodule(layer).weight.data.mul_(mask[:, :, None, None])
    with torch.no_grad():
        expected = masked(X)[:, 1]
    torch.testing.assert_close(cc.activations(model, HEAD, X, circuit=circuit, effective=False), expected)


def test_a_descent_says_that_weights_in_several_sizes_need_another_criterion():
    with pytest.raises(cc.ConvCircuitsError, match=r"between uses its weight in several sizes.*choose .*gauss_newton"):
        cc.find(forms(CentralDifference), HEAD, X, density=0.6)


def test_snip_counts_the_elements_of_all_forms():
    """sum |w dL/dw| of the 3x3 and of the 1x1, over ten weights."""
    model, image = forms(CentralDifference), X[:1]
    scores = cc.score(model, HEAD, image, criterion="snip", collapse="sum")["between"]
    three = model.between.weight.detach().clone().requires_grad_()
    point = three.detach().sum((2, 3), keepdim=True).requires_grad_()
    x = model.conv(image)
    y = F.conv2d(x, three, model.between.bias, padding=1) - 0.7 * F.conv2d(x, point)
    model.head(F.relu(y))[:, 1].sum().backward()
    sums = (three * three.grad).abs().sum((2, 3)) + (point * point.grad).abs().sum((2, 3))
    torch.testing.assert_close(scores, (sums / 10).detach(), rtol=1e-9, atol=1e-14)


def test_single_weights_of_several_forms_are_refused():
    with pytest.raises(cc.ConvCircuitsError, match="between uses its weight in two shapes"):
        cc.score(forms(CentralDifference), HEAD, X, granularity="weight")
