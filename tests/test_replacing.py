"""A circuit's map in place of the model's own, and which units have similar maps: against plain loops."""

import numpy as np
import pytest
import torch
from torch import nn

import convcircuits as cc
from convcircuits.circuits.replacing import Change, replaced
from convcircuits.maps.correlations import correlations
from convcircuits.network.capture import Network
from convcircuits.network.masking import Subject
from convcircuits.network.provenance import weights_up_to
from nets import NETS


class Classifier(nn.Module):
    """A head that reads what the feature's layer returns twice: directly, and in a residual sum."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU())
        self.body, self.gate, self.head = nn.Conv2d(6, 6, 3, padding=1), nn.ReLU(), nn.Linear(6, 4)

    def forward(self, x, change=None):
        x = self.stem(x)
        y = self.body(x)
        y = y if change is None else change(y)
        return self.head((self.gate(y) + x).mean((2, 3)))


@pytest.fixture(scope="module")
def case():
    torch.manual_seed(0)
    model = Classifier().double().eval()
    model.body.weight.data *= 5
    images = torch.rand(9, 3, 12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return model, images[:5], images[5:]


def answers(model, images, maps, unit):
    def change(y):
        y = y.clone()
        y[:, unit] = maps
        return y

    with torch.no_grad():
        return [model(images), model(images, change)]


def changed(own, other):
    p, q = (one.softmax(1).numpy() for one in (own, other))
    same = own.argmax(1) == other.argmax(1)
    return Change(
        pytest.approx(np.mean([(a * np.log(a / b)).sum() for a, b in zip(p, q, strict=True)])), same.double().mean()
    )


@pytest.mark.parametrize("unit", [2, (4, 1)])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_each_map_is_replaced_in_the_whole_model(case, unit, batch_size):
    model, fit, images = case
    feature = cc.Feature("body", unit)
    circuit = cc.prune(cc.score(model, feature, fit), density=0.6)
    found = replaced(model, circuit, images, fit=fit, batch_size=batch_size)
    rows = [unit] if isinstance(unit, int) else list(unit)
    maps = cc.activations(model, feature, images, circuit=circuit).reshape(4, len(rows), 12, 12)
    average = cc.activations(model, feature, fit).mean(0).reshape(len(rows), 12, 12)
    for change, own in ((found.by_circuit, maps), (found.by_average_map, average), (found.by_zero, 0.0)):
        assert change == changed(*answers(model, images, own, rows))
    assert (found.images, found.classes) == (4, 4)
    assert found.by_circuit.kl > 1e-9


def test_the_circuit_of_all_kernels_changes_nothing(case):
    model, fit, images = case
    circuit = cc.prune(cc.score(model, cc.Feature("body", 0), fit), density=1.0)
    assert replaced(model, circuit, images, fit=fit).by_circuit == Change(pytest.approx(0, abs=1e-12), 1.0)


def test_probabilities_are_not_taken_for_logits(case):
    model, fit, images = case
    circuit = cc.prune(cc.score(model, cc.Feature("body", 0), fit), density=0.3)
    expected = replaced(model, circuit, images, fit=fit)
    model.head = nn.Sequential(model.head, nn.Softmax(1))
    found = replaced(model, circuit, images, fit=fit)
    model.head = model.head[0]
    assert found.by_zero == Change(pytest.approx(expected.by_zero.kl), expected.by_zero.top1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_probabilities_in_half_precision_are_no_logits(dtype):
    torch.manual_seed(0)
    model = nn.Sequential(Classifier(), nn.Softmax(1)).eval()
    model[0].head.weight.data *= 30
    images = torch.rand(5, 3, 8, 8)
    circuit = cc.prune(cc.score(model, cc.Feature("0.body", 0), images), density=0.3)
    expected = replaced(model, circuit, images, fit=images).by_zero.kl
    half = nn.Sequential(Classifier(), nn.Softmax(1)).eval()
    half.load_state_dict(model.state_dict())
    half, images = half.to(dtype), images.to(dtype)
    circuit = cc.prune(cc.score(half, cc.Feature("0.body", 0), images), density=0.3)
    assert replaced(half, circuit, images, fit=images).by_zero.kl == pytest.approx(expected, rel=0.1)


def test_a_softmax_that_underflows_makes_no_infinite_change(case):
    model, fit, images = case
    circuit = cc.prune(cc.score(model, cc.Feature("body", 0), fit), density=0.3)
    between = sum(one[0] for one in answers(model, images, 0.0, [0])) / 2
    scaled = nn.Linear(4, 4).double()
    scaled.weight.data, scaled.bias.data = 1e7 * torch.eye(4, dtype=torch.float64), -1e7 * between
    model.head = nn.Sequential(model.head, scaled, nn.Softmax(1))
    found = replaced(model, circuit, images, fit=fit)
    model.head = model.head[0]
    assert 10 < found.by_zero.kl < 1000


def test_the_average_map_is_of_the_same_size(case):
    model, fit, images = case
    circuit = cc.prune(cc.score(model, cc.Feature("body", 0), fit), density=0.3)
    with pytest.raises(cc.ConvCircuitsError, match=r"shape \(10, 10\), but \(12, 12\) .* give fit of the size"):
        replaced(model, circuit, images[..., :10, :10], fit=fit)


@pytest.mark.parametrize(
    ("feature", "tail", "said"),
    [
        (cc.Feature("0", torch.ones(4)), (), "A direction has no map"),
        (cc.Feature("0", 1), (), "no logits of classes"),
        (cc.Feature("0", 1), (nn.Flatten(), nn.Linear(3, 2)), "2 expects 3 values"),
    ],
)
def test_a_model_without_classes_is_an_error(feature, tail, said):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), *tail).eval()
    images = torch.rand(2, 3, 8, 8)
    circuit = cc.prune(cc.score(model, feature, images, criterion="magnitude"), density=0.5)
    with pytest.raises(cc.ConvCircuitsError, match=said):
        replaced(model, circuit, images, fit=images)


@pytest.mark.parametrize("batch_size", [2, 5])
def test_correlations_are_those_of_numpy(case, batch_size):
    model, fit, _ = case
    model.body.weight.data[3] = 0  # a constant unit
    maps = cc.activations(model, cc.Feature("body", range(6)), fit + 100)
    found = correlations(model, "body", fit + 100, batch_size=batch_size)
    with np.errstate(invalid="ignore"):
        expected = np.corrcoef(maps.transpose(0, 1).flatten(1).numpy())
    assert found[3].isnan().all()
    known = ~found.isnan().numpy()
    assert known.sum() == 25
    assert np.allclose(found.numpy()[known], expected[known], atol=1e-6)


def test_large_maps_in_half_precision_are_not_constant():
    torch.manual_seed(0)
    model, images = nn.Sequential(nn.Conv2d(3, 4, 3)).eval(), torch.randn(6, 3, 12, 12)
    model[0].weight.data *= 100
    expected = correlations(model, "0", images)
    assert torch.allclose(correlations(model.half(), "0", images.half()), expected, atol=0.01)


@pytest.mark.parametrize("scale", [2.0**-80, 2.0**80])
def test_correlations_do_not_depend_on_the_scale_of_weights(scale):
    torch.manual_seed(0)
    model, images = nn.Sequential(nn.Conv2d(3, 4, 3)).eval(), torch.randn(6, 3, 12, 12)
    expected = correlations(model, "0", images, batch_size=4)
    model[0].weight.data[1:] *= scale
    model[0].bias.data[1:] *= scale
    torch.testing.assert_close(correlations(model, "0", images, batch_size=4), expected)


@pytest.mark.parametrize("name", ["residual", "mobile", "standardised", "twice"])
def test_the_hash_of_one_run_is_that_of_a_survey(name):
    case = NETS[name]
    network, (layer, unit) = Network(case.build()), case.features[0]
    feature = cc.Feature(layer, unit)
    expected = Subject.open(network, feature, case.input_shape).about["weights"]
    assert weights_up_to(network, feature, case.images(1)) == expected
