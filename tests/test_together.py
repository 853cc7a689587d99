"""All units of a layer scored at once have the scores of units scored one by one."""

import dataclasses

import pytest
import torch
from torch import nn

import convcircuits as cc
from cases import LAST
from convcircuits.circuits.criteria import CRITERIA
from convcircuits.circuits.together import fitting, score_together
from convcircuits.network.batches import Batches
from convcircuits.network.masking import Subject
from nets import NETS

torch.set_num_threads(1)

WAYS = [
    ("actgrad", {}),
    ("snip", {"collapse": "square", "normalizer": "sum"}),
    ("gauss_newton", {"draws": 2, "centered": True, "normalizer": "layer_l2"}),
]


def together(model, features, images, criterion, *, memory=4 << 20, batch_size=1, granularity="kernel", **options):
    """Each feature's saliencies, layer name -> table."""
    first = Subject.open(model, features[0], images.shape[1:])
    subjects = [first.of(feature) for feature in features]
    batches = Batches(images, device=torch.device("cpu"), dtype=images.dtype, batch_size=batch_size)
    every = first.of(dataclasses.replace(features[0], unit=tuple(feature.unit for feature in features)))
    at_once, count = fitting(every, batches, memory)
    batches, tables = batches.in_batches_of(count), []
    given = {"granularity": granularity, "seed": 3, "memory": memory}
    for start in range(0, len(subjects), at_once):
        some = subjects[start : start + at_once]
        saliency = score_together(some, batches, CRITERIA[criterion], **given, **options)
        tables += [{layer: table[n] for layer, table in saliency.items()} for n in range(len(some))]
    return tables


def assert_equals_score(
    model, features, images, criterion, granularity="kernel", memory=4 << 20, compared=None, **options
):
    found = together(model, features, images, criterion, memory=memory, granularity=granularity, **options)
    assert len(found) == len(features)
    for feature, tables in list(zip(features, found, strict=True))[:compared]:
        expected = cc.score(model, feature, images, criterion=criterion, granularity=granularity, seed=3, **options)
        for layer, table in expected.elements.items():
            own, scored = tables.get(layer, torch.zeros_like(table)), ~table.isnan()
            largest = float(table[scored].abs().max())
            torch.testing.assert_close(own[scored], table[scored], rtol=1e-9, atol=1e-11 * largest)


@pytest.mark.parametrize(("name", "layer", "unit"), LAST)
def test_units_scored_at_once_have_the_scores_of_units_alone(name, layer, unit):
    case = NETS[name]
    model, images = case.build(), case.images(2)
    features = [cc.Feature(layer, one) for one in dict.fromkeys((unit, 0))]
    for criterion, options in WAYS:
        assert_equals_score(model, features, images, criterion, compared=1, **options)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("criterion", ["actgrad", "snip", "gauss_newton"])
@pytest.mark.parametrize("size", [1, 3])
def test_units_of_a_model_in_half_precision_are_not_summed_in_it(size, criterion, dtype):
    torch.manual_seed(0)
    # Two layers without a nonlinearity, of which the last copies: all maps and gradients are exact in half precision.
    model = nn.Sequential(nn.Conv2d(3, 4, size), nn.Conv2d(4, 2, 1)).to(dtype)
    model[1].weight.data, model[0].bias.data = torch.eye(4, dtype=dtype)[:2, :, None, None], torch.zeros(4, dtype=dtype)
    images, features = torch.rand(3, 3, 20, 20).to(dtype), [cc.Feature("1", 0), cc.Feature("1", 1)]
    options = {} if criterion == "gauss_newton" else {"collapse": "sum"}
    half = together(model, features, images, criterion, **options)
    double = together(model.double(), features, images.double(), criterion, **options)
    for one, other in zip(half, double, strict=True):
        torch.testing.assert_close(one["0"], other["0"], rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("position", ["max", "center", "interior", (1, 0)])
def test_each_unit_counts_its_own_positions(position):
    case = NETS["plain"]
    features = [cc.Feature("features.5", unit, position=position) for unit in (3, 0, 2)]
    for criterion in ("snip", "gauss_newton"):
        assert_equals_score(case.build(), features, case.images(3), criterion)


@pytest.mark.parametrize("granularity", ["filter", "weight"])
def test_other_granularities_are_shared_too(granularity):
    case = NETS["residual"]
    features = [cc.Feature("head", unit) for unit in (0, 2)]
    assert_equals_score(case.build(), features, case.images(3), "actgrad", granularity)


def test_little_memory_and_small_batches_change_no_score():
    case = NETS["mobile"]
    layer = case.features[-1][0]
    model, images = case.build(), case.images(3)
    features = [cc.Feature(layer, unit) for unit in range(2)]
    for criterion in ("actgrad", "snip", "gauss_newton"):
        whole = together(model, features, images, criterion, batch_size=3)
        for got, expected in zip(together(model, features, images, criterion, memory=1), whole, strict=True):
            for table, other in zip(got.values(), expected.values(), strict=True):
                torch.testing.assert_close(table, other, rtol=1e-9, atol=1e-12)


class Tied(nn.Module):
    """Two modules share a weight, and the earlier one also has the other's name if it is registered last."""

    def __init__(self):
        super().__init__()
        self.stem, self.last = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.before = nn.Conv2d(4, 4, 3, padding=1)
        self.before.weight = self.last.weight

    def forward(self, x):
        return self.last(self.before(self.stem(x).relu()).relu())


def test_an_earlier_module_that_shares_the_weight_is_scored_too():
    torch.manual_seed(0)
    model, images = Tied().double().eval(), torch.randn(3, 3, 6, 6, dtype=torch.float64)
    for criterion in ("snip", "actgrad", "gauss_newton"):
        assert_equals_score(model, [cc.Feature("last", unit) for unit in (0, 2)], images, criterion)
    found = cc.score(model, cc.Feature("last", 2), images, criterion="snip").elements["last"]
    expected = torch.zeros_like(found)
    for image in images:
        model.last.weight.grad = None
        model(image[None])[0, 2].abs().sum().backward()
        expected += (model.last.weight * model.last.weight.grad).abs().mean((2, 3)).detach() / len(images)
    torch.testing.assert_close(found, expected)


class Wide(nn.Module):
    """Units that read 3 x 3 pixels, and units that read one."""

    def __init__(self):
        super().__init__()
        self.far, self.near = nn.Conv2d(4, 2, 3, padding=1), nn.Conv2d(4, 2, 1)

    def forward(self, x):
        return torch.cat((self.far(x), self.near(x)), 1)


def test_units_may_differ_in_how_many_positions_count():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), Wide()).double().eval()
    features = [cc.Feature("2", unit, position="interior") for unit in (0, 2)]  # one position counts, and nine
    images = torch.randn(3, 3, 3, 3, dtype=torch.float64)
    assert_equals_score(model, features, images, "gauss_newton", draws=2)
