"""Statistics of units against slow loops, the interior against nets whose padding is changed, and the rule."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import convcircuits as cc
from convcircuits.circuits.units import UnitStatistics, choose_unit, unit_statistics
from convcircuits.zoo.images import crops, sample_photographs, split_photographs
from convcircuits.zoo.models import load_model
from nets import NETS

torch.set_num_threads(1)

PHOTOGRAPHS = ["a", "b", "c", "a", "b", "c", "a"]


def net(kernel=3):
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(3, 4, kernel, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 6, kernel, padding=1),
        nn.ReLU(),
        nn.Conv2d(6, 5, kernel, padding=1),
    ]
    return nn.Sequential(*layers).double().eval()


def some_images(count=7, side=20):
    return torch.rand(count, 3, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def touched_by_padding(model, images):
    """Which positions of the last map change when what is padded does, (h, w)."""

    def padded_with(value):
        x = images
        for layer in model:
            pads = isinstance(layer, nn.Conv2d)
            x = F.conv2d(F.pad(x, (1, 1, 1, 1), value=value), layer.weight, layer.bias) if pads else layer(x)
        return x

    return (padded_with(0.0) != padded_with(9.0)).any(0).any(0)


def slowly(maps, interior, photographs):
    """Every figure of one unit by loops over its maps, (N, h, w)."""
    values = maps.numpy()
    inside = interior.numpy()
    mean = values.mean()
    spread = [(value - mean) ** 2 for value in values]
    missed = 0.0
    for n, name in enumerate(photographs):
        average = np.mean([v for v, other in zip(values, photographs, strict=True) if other != name], axis=0)
        missed += ((values[n] - average) ** 2).sum()
    return {
        "active": np.mean([value > 0 for value in values]),
        "active_images": np.mean([(value > 0).any() for value in values]),
        "inside": sum(s[inside].sum() for s in spread) / sum(s.sum() for s in spread),
        "interior": inside.mean(),
        "average_map_r2": 1 - missed / sum(s.sum() for s in spread),
        "rectified_variance": np.var([np.maximum(value, 0)[inside] for value in values]),
    }


@pytest.mark.parametrize("photographs", [PHOTOGRAPHS, None])
@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_statistics_are_those_of_slow_loops(photographs, batch_size):
    model, images = net(), some_images()
    interior = ~touched_by_padding(model, images)
    assert 0 < interior.sum() < interior.numel()
    found = unit_statistics(model, "5", images, photographs=photographs, batch_size=batch_size)
    maps = model(images).detach()
    assert [one.unit for one in found] == list(range(5))
    for one in found:
        expected = slowly(maps[:, one.unit], interior, photographs or range(len(images)))
        assert {name: getattr(one, name) for name in expected} == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("name", NETS)
def test_every_layer_that_carries_a_feature_has_statistics(name):
    case = NETS[name]
    model, images = case.build(), case.images(4)
    for layer, unit in case.features:
        one = unit_statistics(model, layer, images)[unit]
        maps = cc.activations(model, cc.Feature(layer, unit), images)
        assert one.active == pytest.approx(float((maps > 0).double().mean()))
        assert 0 < one.interior <= 1
        assert one.rectified_variance >= 0


def test_where_no_position_is_inside_the_central_ones_count():
    model = nn.Sequential(nn.Conv2d(3, 1, 9, padding=4), nn.Conv2d(1, 2, 9, padding=4)).double()
    one = unit_statistics(model, "1", some_images(side=12))[0]
    assert one.central
    assert "% of its variance at the central positions, where 11% of the positions are;" in one.summary()
    assert one.interior == pytest.approx(
        16 / 144
    )  # every field leaves the image; least far from rows and columns 4 to 7


def test_images_may_come_in_batches_and_progress_is_told():
    model, images, told = net(), some_images(), []
    whole = unit_statistics(model, "5", images, photographs=PHOTOGRAPHS)
    parts = unit_statistics(
        model, "5", [images[:2], images[2:]], photographs=PHOTOGRAPHS, progress=lambda *done: told.append(done)
    )
    assert told == [(2, None), (7, None)]
    for one, other in zip(whole, parts, strict=True):
        assert one.average_map_r2 == pytest.approx(other.average_map_r2)


def test_a_unit_that_never_varies_has_no_share_inside_and_may_not_be_chosen():
    model = net()
    model[5].weight.data[2] = 0
    one = unit_statistics(model, "5", some_images())[2]
    assert np.isnan([one.inside, one.average_map_r2]).all()
    assert one.rectified_variance == pytest.approx(0, abs=1e-12)
    assert not one.allowed


def test_a_unit_that_only_sees_the_padding_may_not_be_chosen():
    """Ones all over the image's inside, so that what varies is the border, in each image alike."""
    model = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1, bias=False)).double()
    model[0].weight.data[:] = 1
    model[0].weight.data[1] = torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    border, other = unit_statistics(model, "0", 1 + 0.01 * torch.randn(9, 1, 16, 16, dtype=torch.float64))
    assert border.inside < 0.3 * border.interior
    assert border.average_map_r2 > 0.9
    assert not border.allowed
    assert other.interior == border.interior == (14 / 16) ** 2


GOOD = UnitStatistics(0, active=0.2, active_images=1, inside=0.5, interior=0.4, average_map_r2=0, rectified_variance=1)


@pytest.mark.parametrize(
    "change",
    [
        {"active": 0.04},
        {"active": 0.51},
        {"active_images": 0.4},
        {"inside": 0.39},
        {"inside": float("nan")},
        {"average_map_r2": 0.1},
        {"average_map_r2": float("nan")},
    ],
    ids=str,
)
def test_the_rule_leaves_out_what_it_says(change):
    other = replace(GOOD, unit=1, rectified_variance=9, **change)
    assert GOOD.allowed
    assert not other.allowed
    assert choose_unit([other, GOOD]) is GOOD
    with pytest.raises(cc.ConvCircuitsError, match="None of the 1 units satisfies the rule"):
        choose_unit([other])


def test_of_those_that_are_left_the_one_that_varies_most_is_chosen():
    some = [replace(GOOD, unit=n, rectified_variance=v) for n, v in enumerate([1, 5, 3])]
    assert choose_unit(some).unit == 1


def test_what_cannot_be_measured_is_an_error():
    model, images = net(), some_images()
    with pytest.raises(cc.ConvCircuitsError, match="one photograph"):
        unit_statistics(model, "5", images, photographs=["a"] * 7)
    for count in (6, 8):
        with pytest.raises(cc.ConvCircuitsError, match=f"7 images but {count} photographs"):
            unit_statistics(model, "5", images, photographs=[str(n) for n in range(count)])
    with pytest.raises(cc.ConvCircuitsError, match="has no layer '6'"):
        unit_statistics(model, "6", images)
    with pytest.raises(cc.ConvCircuitsError, match="one size"):
        unit_statistics(model, "5", [images, some_images(side=24)])


@pytest.mark.zoo
def test_of_conv3_3_the_rule_leaves_out_the_border_and_the_silent_units():
    """Measured before on 102 other photographs: 54 is the border's, 105 and 240 are never active."""
    loaded = load_model("vgg16_hed")
    train, _ = split_photographs(sample_photographs())
    images = crops(train, loaded.preprocess, count=35, seed=0, size=(112, 112))
    names = [train[i % len(train)].name for i in range(len(images))]
    found = unit_statistics(loaded.model, "features.14", images, photographs=names)
    assert not any(found[unit].allowed for unit in (54, 105, 240))
    assert min(found, key=lambda one: np.nan_to_num(one.inside, nan=1)).unit == 54
    assert max(found, key=lambda one: np.nan_to_num(one.average_map_r2, nan=-9)).unit == 54
    assert found[54].average_map_r2 == pytest.approx(0.75, abs=0.05)
    assert max(found[unit].active for unit in (105, 240)) < 0.001
    assert choose_unit(found).unit == 166
