"""Statistics of units against slow loops, the interior against nets whose padding is changed, and the rule."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import convcircuits as cc
from convcircuits.maps import sums
from convcircuits.maps.interior import Interior
from convcircuits.maps.units import UnitStatistics, choose_unit, units
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
    highest = [value.max() for value in values]
    passed = np.maximum(highest, 0)
    return {
        "highest": max(highest),
        "sparsity": (1 - passed.mean() ** 2 / np.mean(passed**2)) / (1 - 1 / len(values)) if any(passed) else np.nan,
        "at_border": np.mean([not inside[np.unravel_index(value.argmax(), value.shape)] for value in values]),
        "active": np.mean([value > 0 for value in values]),
        "active_images": np.mean([(value > 0).any() for value in values]),
        "inside": sum(s[inside].sum() for s in spread) / sum(s.sum() for s in spread),
        "interior": inside.mean(),
        "average_map_r2": 1 - missed / sum(s.sum() for s in spread),
        "rectified_variance": np.var([np.maximum(value, 0)[inside] for value in values]),
    }


@pytest.mark.parametrize("photographs", [PHOTOGRAPHS, None])
@pytest.mark.parametrize(
    ("batch_size", "cache", "by_torch"),
    [
        *((1, 2**17, 2**60), (3, 2**17, 2**60), (16, 2**17, 2**60), (3, 100, 2**60), (16, 400, 2**60), (3, 1, 2**60)),
        *((1, 2**17, 0), (3, 2**17, 0), (3, 2**17, 1)),  # the loop, also after one batch by torch
    ],
)
def test_statistics_are_those_of_slow_loops(photographs, batch_size, cache, by_torch, monkeypatch):
    monkeypatch.setattr(sums, "_IN_CACHE", cache)
    monkeypatch.setattr(sums, "COMPILED_AFTER", by_torch)
    monkeypatch.setattr(sums.Sums, "by_torch", 0)
    model, images = net(), some_images()
    interior = ~touched_by_padding(model, images)
    assert 0 < interior.sum() < interior.numel()
    found = units(model, "5", images, photographs=photographs, batch_size=batch_size)
    maps = model(images).detach()
    assert [one.unit for one in found] == list(range(5))
    for one in found:
        expected = slowly(maps[:, one.unit], interior, photographs or range(len(images)))
        assert {name: getattr(one, name) for name in expected} == pytest.approx(expected, abs=1e-9, nan_ok=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(5, 7, 3, 9), (2, 1, 40, 50), (3, 4, 1, 1)])
def test_the_loop_sums_what_torch_sums_on_any_number_of_threads(dtype, shape, monkeypatch):
    maps = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    rows, columns = (torch.arange(length) % 4 != 1 for length in shape[2:])
    interior = Interior((rows[:, None] & columns).flatten(), True, 1, shape[2:], (1, 1), (9, 9))
    found = []
    for by_torch, threads in ((2**60, 1), (0, 1), (0, 3)):
        monkeypatch.setattr(sums, "COMPILED_AFTER", by_torch)
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        one = sums.Sums(interior, shape[1])
        for _ in range(2):
            one.add(maps.flatten(2))
        found.append((one.total, one.columns))
    for total, columns in found[1:]:
        torch.testing.assert_close(total, found[0][0], rtol=1e-13, atol=1e-13)
        torch.testing.assert_close(columns, found[0][1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", NETS)
def test_every_layer_that_carries_a_feature_has_statistics(name):
    case = NETS[name]
    model, images = case.build(), case.images(4)
    for layer, unit in case.features:
        one = units(model, layer, images)[unit]
        maps = cc.activations(model, cc.Feature(layer, unit), images)
        assert one.active == pytest.approx(float((maps > 0).double().mean()))
        assert 0 < one.interior <= 1
        assert one.rectified_variance >= 0


@pytest.mark.parametrize("name", NETS)
def test_the_images_of_each_unit_are_those_of_top_on_the_interior(name):
    case = NETS[name]
    model, images = case.build(), case.images(6)
    layer, _ = case.features[-1]
    found = units(model, layer, images, count=2)
    expected = cc.top(model, cc.Feature(layer, range(len(found)), position="interior"), images, count=2, sample=0)
    assert found.top.rows() == expected.rows()
    assert found.top.units == tuple(one.unit for one in found) == tuple(range(len(found)))


def test_units_are_ranked_by_a_measure_with_the_dead_ones_last():
    model, images = net(), some_images()
    model[5].weight.data[[1, 3]], model[5].bias.data[[1, 3]] = 0, torch.tensor([-1.0, 2.0]).double()
    found = units(model, "5", images)
    assert [one.dead for one in found] == [one.highest <= 0 for one in found]
    assert found[1].dead
    assert found[3].average_map_r2 != found[3].average_map_r2
    for lowest_first in (False, True):
        ranked = found.ranked("average_map_r2", lowest_first=lowest_first)
        assert sorted(one.unit for one in ranked) == list(range(5))
        assert [one.dead for one in ranked] == sorted(one.dead for one in found)
        alive = [one for one in ranked if not one.dead]
        assert alive[-1].unit == 3  # it does not vary
        figures = [one.average_map_r2 for one in alive[:-1]]
        assert figures == sorted(figures, reverse=not lowest_first)
    with pytest.raises(cc.ConvCircuitsError, match=r"no measure 'sparsness'\. Similar names: sparsity"):
        found.ranked("sparsness")


def test_units_are_a_list_that_displays_as_a_table():
    model, images = net(), some_images()
    model[5].weight.data[1], model[5].bias.data[1] = 0, -1
    found = units(model, "5", images, names=[f"<{n}>" for n in range(7)])
    assert repr(found) == "Units(5 of 5, 7 images)"
    lines = found.summary("active", most=3).splitlines()
    assert lines[0] == "5 units of 5 on 7 images"
    assert [int(line.split()[0]) for line in lines[2:5]] == [one.unit for one in found.ranked("active")[:3]]
    dead = [one.unit for one in found if one.dead]
    assert (
        lines[5]
        == f"{len(dead)} of 5 units are dead, that is never above 0 on these images: {dead[0]}"
        + "".join(f", {unit}" for unit in dead[1:])
        + "."
    )
    assert "&lt;" not in (html := found._repr_html_())
    assert html.count("<tr>") == 6
    table = found.to_pandas()
    assert list(table.index) == list(range(5))
    assert table.loc[1, "dead"]
    assert table.loc[0, "active"] == found[0].active
    assert found.top._repr_html_().count("&lt;") > 4


def test_sparsity_is_0_if_all_images_are_equal_and_1_if_one_alone_drives_it():
    model = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False)).double()
    model[0].weight.data[:] = 1
    for values, expected in (([2, 2, 2, 2], 0), ([0, 0, 5, -1], 1), ([1, 1, 0, 0], 2 / 3), ([-1, -2, 0, 0], np.nan)):
        images = torch.tensor(values, dtype=torch.float64).reshape(-1, 1, 1, 1).expand(-1, 1, 3, 3)
        (one,) = units(model, "0", images)
        assert one.sparsity == pytest.approx(expected, abs=1e-12, nan_ok=True)
        assert one.at_border == 0


def test_a_layer_that_runs_several_times_needs_the_call():
    case = NETS["twice"]
    model, images = case.build(), case.images(4)
    with pytest.raises(cc.ConvCircuitsError, match="call"):
        units(model, "shared", images)
    first, second = (units(model, "shared", images, call=call)[0].highest for call in (0, 1))
    assert first != second


def test_where_no_position_is_inside_the_central_ones_count():
    model = nn.Sequential(nn.Conv2d(3, 1, 9, padding=4), nn.Conv2d(1, 2, 9, padding=4)).double()
    one = units(model, "1", some_images(side=12))[0]
    assert one.central
    assert "% of its variance at the central positions, where 11% of the positions are;" in one.summary()
    assert one.interior == pytest.approx(
        16 / 144
    )  # every field leaves the image; least far from rows and columns 4 to 7


def test_images_may_come_in_batches_and_progress_is_told():
    model, images, told = net(), some_images(), []
    whole = units(model, "5", images, photographs=PHOTOGRAPHS)
    parts = units(
        model, "5", [images[:2], images[2:]], photographs=PHOTOGRAPHS, progress=lambda *done: told.append(done)
    )
    assert told == [(2, None), (7, None)]
    for one, other in zip(whole, parts, strict=True):
        assert one.average_map_r2 == pytest.approx(other.average_map_r2)


def test_a_unit_that_never_varies_has_no_share_inside_and_may_not_be_chosen():
    model = net()
    model[5].weight.data[2] = 0
    one = units(model, "5", some_images())[2]
    assert np.isnan([one.inside, one.average_map_r2]).all()
    assert one.dead == (one.highest <= 0)
    assert one.rectified_variance == pytest.approx(0, abs=1e-12)
    assert not one.allowed


@pytest.mark.parametrize("value", [0.1, -3.3, 1e-7, 12345.678, 0.0])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_constant_unit_is_constant_whatever_its_value(value, batch_size):
    model = net()
    model[5].weight.data[2] = 0
    model[5].bias.data[2] = value
    one = units(model, "5", some_images(), batch_size=batch_size)[2]
    assert np.isnan([one.inside, one.average_map_r2]).all()


@pytest.mark.parametrize("by_torch", [2**60, 0])
@pytest.mark.parametrize("value", [0.1, -3.3, 1e-3, 12345.678])
def test_rounding_in_sums_of_millions_of_values_is_far_below_what_counts_as_variance(value, by_torch, monkeypatch):
    monkeypatch.setattr(sums, "COMPILED_AFTER", by_torch)
    side, batches, images = 224, 4, 16
    one = sums.Sums(Interior(torch.ones(side**2, dtype=torch.bool), True, 1, (side, side), (1, 1), (9, 9)), 1)
    for _ in range(batches):
        one.add(torch.full((images, 1, side**2), value, dtype=torch.float64))
    _, squares, inside, rectified, rectified_squares = one.columns[:5, 0].tolist()
    count = side**2 * images * batches
    assert squares == pytest.approx(count * value**2, rel=sums._ROUNDING / 10)
    assert inside == pytest.approx(squares, rel=sums._ROUNDING / 10)
    assert rectified == pytest.approx(count * max(value, 0), rel=sums._ROUNDING / 10)
    assert rectified_squares == pytest.approx(count * max(value, 0) ** 2, rel=sums._ROUNDING / 10)


@pytest.mark.parametrize("scale", [2.0**-100, 2.0**100])
def test_whether_a_unit_is_dead_or_constant_does_not_depend_on_the_scale_of_its_weights(scale):
    model = net().float()
    before = units(model, "5", some_images().float())
    model[5].weight.data *= scale
    model[5].bias.data *= scale
    for one, other in zip(before, units(model, "5", some_images().float()), strict=True):
        assert other.highest == scale * one.highest
        assert other.rectified_variance == pytest.approx(scale**2 * one.rectified_variance, rel=1e-9)
        for name in ("active", "active_images", "sparsity", "at_border", "inside", "average_map_r2", "dead", "allowed"):
            assert getattr(other, name) == pytest.approx(getattr(one, name), rel=1e-9, nan_ok=True), name


def test_a_unit_that_only_sees_the_padding_may_not_be_chosen():
    """Ones all over the image's inside, so that what varies is the border, in each image alike."""
    model = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1, bias=False)).double()
    model[0].weight.data[:] = 1
    model[0].weight.data[1] = torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    border, other = units(model, "0", 1 + 0.01 * torch.randn(9, 1, 16, 16, dtype=torch.float64))
    assert border.inside < 0.3 * border.interior
    assert border.average_map_r2 > 0.9
    assert not border.allowed
    assert other.interior == border.interior == (14 / 16) ** 2


GOOD = UnitStatistics(
    unit=0,
    active=0.2,
    active_images=1,
    highest=5,
    sparsity=0.3,
    at_border=0.5,
    inside=0.5,
    interior=0.4,
    average_map_r2=0,
    rectified_variance=1,
)


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
        units(model, "5", images, photographs=["a"] * 7)
    for count in (6, 8):
        with pytest.raises(cc.ConvCircuitsError, match=f"7 images but {count} photographs"):
            units(model, "5", images, photographs=[str(n) for n in range(count)])
    with pytest.raises(cc.ConvCircuitsError, match="has no layer '6'"):
        units(model, "6", images)
    with pytest.raises(cc.ConvCircuitsError, match="one size"):
        units(model, "5", [images, some_images(side=24)])


@pytest.mark.zoo
def test_of_conv3_3_the_rule_leaves_out_the_border_and_the_silent_units():
    """Measured before on 102 other photographs: 54 is the border's, 105 and 240 are never active."""
    loaded = load_model("vgg16_hed")
    train, _ = split_photographs(sample_photographs())
    images = crops(train, loaded.preprocess, count=35, seed=0, size=(112, 112))
    names = [train[i % len(train)].name for i in range(len(images))]
    found = units(loaded.model, "features.14", images, photographs=names)
    assert not any(found[unit].allowed for unit in (54, 105, 240))
    assert min(found, key=lambda one: np.nan_to_num(one.inside, nan=1)).unit == 54
    assert max(found, key=lambda one: np.nan_to_num(one.average_map_r2, nan=-9)).unit == 54
    assert found[54].average_map_r2 == pytest.approx(0.75, abs=0.05)
    assert max(found[unit].active for unit in (105, 240)) < 0.001
    assert choose_unit(found).unit == 166
