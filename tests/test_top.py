"""The images of a feature against slow loops over full maps, and what no batch, order or seed may change."""

import math
import weakref
from collections import Counter

import pytest
import torch
from torch import nn

import convcircuits as cc
import oracles
from cases import KINDS
from convcircuits.maps import top as module
from convcircuits.maps.interior import Positions
from convcircuits.network.capture import Network
from convcircuits.network.masking import Subject
from convcircuits.network.reach import survey
from convcircuits.values.feature import flattened
from nets import NETS

torch.set_num_threads(1)

EVERY = pytest.mark.parametrize(("name", "layer", "unit", "call"), KINDS.values(), ids=KINDS)
# A gate sees the whole image, which boxes leave out, since it reaches all positions alike.
UNGATED = {kind: given for kind, given in KINDS.items() if not given[0].startswith("se_")}


def counted(model, feature, maps, shape):
    """The flat positions that count."""
    height, width = maps.shape[-2:] if maps.dim() > 2 else (1, 1)
    if feature.position == "interior":
        network = Network(model)
        return Positions(Subject(network, feature, survey(network, feature, shape))).interior(shape).positions.tolist()
    if feature.position in ("all", "max"):
        return range(height * width)
    row, column = (height // 2, width // 2) if feature.position == "center" else feature.position
    return [row * width + column]


def slowly(maps, positions):
    """The images of each unit, the highest first: (value, image, row, column)."""
    width = maps.shape[-1] if maps.dim() > 2 else 1
    flat = flattened(maps)
    found = []
    for unit in (flat[:, None] if flat.dim() == 2 else flat).transpose(0, 1).tolist():
        places = [max(positions, key=lambda p, values=values: values[p]) for values in unit]
        entries = [
            (values[p], n, p // width, p % width) for n, (values, p) in enumerate(zip(unit, places, strict=True))
        ]
        found.append(sorted(entries, key=lambda entry: -entry[0]))
    return found


def listed(examples):
    """The same of what was found."""
    tables = (examples.value, examples.image, examples.position[..., 0], examples.position[..., 1])
    return [list(zip(*(table[u].tolist() for table in tables), strict=True)) for u in range(len(examples.image))]


def same(found, expected):
    assert [[entry[1:] for entry in unit] for unit in found] == [[entry[1:] for entry in unit] for unit in expected]
    for unit, other in zip(found, expected, strict=True):
        assert [entry[0] for entry in unit] == pytest.approx([entry[0] for entry in other], rel=1e-12)


def larger(count):
    """Images larger than the receptive fields of ``plain``."""
    return torch.randn(count, 3, 24, 24, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


# ---------------------------------------- against the oracle


@EVERY
@pytest.mark.parametrize("position", ["all", "max", "center", "interior", (0, 0)], ids=str)
def test_the_highest_images_are_those_of_a_loop_over_full_maps(name, layer, unit, call, position):
    case = NETS[name]
    model, images = case.build(), case.images(9)
    feature = cc.Feature(layer, unit, position=position, call=call)
    maps = oracles.full_map(model, layer, unit, images, call=call)
    expected = slowly(maps, counted(model, feature, maps, case.input_shape))
    found = cc.top(model, feature, images, count=4, sample=9, batch_size=2)
    same(listed(found.highest), [unit[:4] for unit in expected])
    same(listed(found.sample), expected)  # as many as there are images
    assert found.active.tolist() == [sum(entry[0] > 0 for entry in unit) / 9 for unit in expected]
    assert (found.images, found.size) == (9, case.input_shape[1:])
    assert found.feature == feature


@pytest.mark.parametrize(("name", "layer", "unit", "call"), UNGATED.values(), ids=UNGATED)
def test_what_lies_outside_of_the_box_does_not_matter(name, layer, unit, call):
    case = NETS[name]
    model, images = case.build(), case.images(3)
    found = cc.top(model, cc.Feature(layer, unit, call=call), images, count=1, sample=0)
    for u, row in enumerate(found.rows()):
        other = torch.randn(images[:1].shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
        rows, columns = (
            slice(max(0, row[a]), max(0, row[a] + row[b])) for a, b in (("top", "height"), ("left", "width"))
        )
        other[..., rows, columns] = images[row["image"], :, rows, columns]
        maps = oracles.full_map(model, layer, unit, other, call=call)
        one = maps[0, u] if isinstance(unit, tuple) else maps[0]
        there = one[row["row"], row["column"]] if one.dim() else one
        assert float(there) == pytest.approx(row["value"], rel=1e-9, abs=1e-12)


def test_boxes_are_those_of_the_closed_form():
    """Three by three kernels: field 3, then pooled by 2 with step 2, so 4 wide with step 2, then 8, then 12."""
    model, images = NETS["plain"].build(), larger(8)
    found = cc.top(model, cc.Feature("features.5", range(4)), images, count=8, sample=0)
    position, box = found.highest.position, found.highest.box
    assert position.shape == (4, 8, 2)
    assert torch.equal(box[..., :2], 2 * position - 1 - 2)  # padded by 1 pixel, then by 1 position of 2 pixels
    assert torch.equal(box[..., 2:], torch.full_like(position, 12))


@pytest.mark.parametrize("name", NETS)
def test_a_whole_layer_is_its_units(name):
    case = NETS[name]
    model, images = case.build(), case.images(5)
    layer, _ = case.features[-1]
    count = len(cc.units(model, layer, images))
    whole = cc.top(model, cc.Feature(layer, range(count)), images, count=3, sample=2)
    for unit in range(count):
        one = cc.top(model, cc.Feature(layer, unit), images, count=3, sample=2)
        rows = [row for row in whole.rows() if row["unit"] == unit]
        for row, other in zip(rows, one.rows(), strict=True):
            assert row.pop("value") == pytest.approx(other.pop("value"), rel=1e-12)
            assert row == other


def test_each_unit_of_a_concatenation_has_its_own_receptive_field():
    model, images = NETS["inception"].build(), NETS["inception"].images(4)

    class Joined(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.joined = model, nn.Identity()

        def forward(self, x):
            x = self.net.stem(x).relu()
            return self.joined(torch.cat([self.net.one(x), self.net.three(self.net.reduce(x))], 1))

    found = cc.top(Joined().eval(), cc.Feature("joined", range(5)), images, count=1, sample=0)
    assert found.highest.box[:, 0, 2:].tolist() == [[3, 3]] * 2 + [[5, 5]] * 3


def test_a_constant_channel_leaves_the_others_boxes():
    model, images = NETS["plain"].build(), larger(4)

    class Beside(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.joined = model, nn.Identity()

        def forward(self, x):
            y = self.net(x)
            return self.joined(torch.cat([y, torch.ones_like(y[:, :1])], 1))

    found = cc.top(Beside().eval(), cc.Feature("joined", [2, 4]), images, count=1, sample=0)
    assert found.highest.box[0, 0, 2:].tolist() == [12, 12]
    assert found.highest.value[1].tolist() == [1]


# ---------------------------------------- what must not matter

FEATURE = cc.Feature("features.5", [3, 0, 1])


def plain(count=40):
    return NETS["plain"].build(), NETS["plain"].images(count)


def by_content(found, order):
    """The rows with the images' numbers in another order; ties would make them differ, and there are none."""
    return [{**row, "image": order[row["image"]], "value": round(row["value"], 9)} for row in found.rows()]


@pytest.mark.parametrize("pool", [2048, 12])
def test_neither_batches_nor_the_order_of_images_matter(pool, monkeypatch):
    monkeypatch.setattr(module, "POOL", pool)
    model, images = plain()
    whole = cc.top(model, FEATURE, images, count=5, sample=6)
    expected = by_content(whole, range(40))
    for batch_size in (1, 3, 7, 40):
        assert (
            by_content(cc.top(model, FEATURE, images, count=5, sample=6, batch_size=batch_size), range(40)) == expected
        )
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    for given in (images[order], list(images[order].split(11)), [(part, None) for part in images[order].split(4)]):
        assert by_content(cc.top(model, FEATURE, given, count=5, sample=6), order.tolist()) == expected
    assert whole.provenance["images"] == {"count": 40, "hash": whole.provenance["images"]["hash"]}


def test_of_equally_high_images_the_earlier_come_first():
    model, images = plain(6)
    twice = torch.cat([images, images])
    found = cc.top(model, FEATURE, twice, count=12, sample=12, batch_size=5)
    for examples in (found.highest, found.sample):
        for unit in examples.image.tolist():
            assert unit[1::2] == [image + 6 for image in unit[::2]]
    model.features[5].bias.data[0] = -99  # and 0 on each image after the ReLU
    dead = cc.top(model, cc.Feature("features.6", 0), images.repeat(50, 1, 1, 1), count=20, batch_size=100)
    assert dead.highest.image[0].tolist() == list(range(20))


@pytest.mark.parametrize("seed", range(3))
def test_the_sample_takes_from_each_stratum_by_turns(seed):
    """Of 10 strata those that have images left differ by at most one, and a later turn begins above."""
    model, images = plain(60)
    found = cc.top(model, FEATURE, images, count=60, sample=10, seed=seed)
    for every, some in zip(found.highest.value.tolist(), found.sample.value.tolist(), strict=True):
        assert some == sorted(some, reverse=True)
        assert len(set(some)) == 10
        low, high = min(every), max(every)

        def stratum(value, low=low, high=high):
            return min(9, int((value - low) / (high - low) * 10))

        there, taken = Counter(map(stratum, every)), Counter(map(stratum, some))
        most = max(taken.values())
        for s, count in there.items():
            assert taken[s] == count or taken[s] >= most - 1
        last = [s for s in there if taken[s] == most]
        assert not any(s > min(last) and taken[s] < min(most, there[s]) for s in there)


def test_the_sample_depends_on_the_seed_and_is_fair(monkeypatch):
    """Of more images than are kept, each is in the sample about equally often: 5 of 20 in 200 draws."""
    monkeypatch.setattr(module, "POOL", 5)
    model, images = plain(20)
    drawn = Counter()
    for seed in range(200):
        found = cc.top(model, cc.Feature("features.3", 1), images, count=1, sample=5, seed=seed, batch_size=20)
        drawn.update(found.sample.image[0].tolist())
    assert sum(drawn.values()) == 1000
    assert all(abs(drawn[n] - 50) < 5 * math.sqrt(200 * 0.25 * 0.75) for n in range(20))
    assert found.notes[0] == "The sample is from 5 images drawn at random."


def test_no_more_than_a_batch_is_held_of_images_that_are_made_as_they_are_read():
    model, images = plain(30)
    alive, most = set(), 0

    class Made:
        def __iter__(self):
            nonlocal most
            for number, part in enumerate(images.split(5)):
                made = part.clone()
                alive.add(number)
                weakref.finalize(made, alive.discard, number)
                most = max(most, len(alive))
                yield made

    found = cc.top(model, FEATURE, Made(), count=3)
    assert most <= 2  # the one before goes when the next one takes its name
    assert not alive
    assert found.rows() == cc.top(model, FEATURE, images, count=3).rows()


def test_the_model_runs_up_to_the_layer_and_is_as_it_was():
    class Long(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.rest = NETS["plain"].build(), nn.Identity()

        def forward(self, x):
            x = self.first(x)
            if len(x) > 2:  # not in the recording, which runs the whole model on two images
                raise AssertionError
            return self.rest(x)

    model, images = Long().train(), NETS["plain"].images(8)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = cc.top(model, cc.Feature("first", 0), images, count=2)
    assert found.images == 8
    assert model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    with torch.autocast("cpu", torch.bfloat16):
        assert cc.top(model, cc.Feature("first", 0), images, count=2).rows() == found.rows()


# ---------------------------------------- what it says


def test_rows_have_names_and_a_frame_has_the_rows():
    model, images = plain(5)
    found = cc.top(model, FEATURE, images, count=2, sample=3, names=[f"{n}.jpg" for n in range(5)])
    rows = found.rows()
    assert len(rows) == 3 * 5
    assert [row["unit"] for row in rows] == [3] * 5 + [0] * 5 + [1] * 5
    assert [(row["which"], row["rank"]) for row in rows[:5]] == [
        *(("highest", rank) for rank in (1, 2)),
        *(("sample", rank) for rank in (1, 2, 3)),
    ]
    assert all(row["name"] == f"{row['image']}.jpg" for row in rows)
    assert list(found.to_pandas().columns) == list(rows[0])
    assert cc.top(model, FEATURE, images, count=1).rows()[0]["name"] == ""

    class Named(list):
        names = tuple("abcde")

    assert cc.top(model, FEATURE, Named([images]), count=1).names == tuple("abcde")
    Named.names = (None,) * 4  # as a tensor has in older versions of torch
    assert cc.top(model, FEATURE, Named([images]), count=1).names == ()


def test_it_displays_as_a_table():
    model, images = plain(5)
    names = ["<b>", "b\x1b", "c", "d", "e"]
    one = cc.top(model, cc.Feature("features.5", 3), images, count=5, sample=0, names=names)
    assert repr(one) == "Top(features.5-3, 5 of 5 images)"
    lines = one.summary().splitlines()
    assert lines[0].startswith("features.5:3 on 5 images: above 0 on ")
    assert [line.split()[0] for line in lines[2:7]] == ["highest"] * 5
    assert "\x1b" not in one.summary()
    assert "&lt;b&gt;" in one._repr_html_()
    several = cc.top(model, FEATURE, images, names=names).summary().splitlines()
    assert several[0] == "3 units of features.5 on 5 images"
    assert [line.split()[0] for line in several[2:5]] == ["3", "0", "1"]
    direction = cc.top(model, cc.Feature("features.5", [1.0, 0.0, -1.0, 2.0]), images)
    assert direction.units == ("direction",)
    assert direction.rows()[0]["unit"] == "direction"


def test_many_units_are_not_all_listed():
    model, images = nn.Sequential(nn.Conv2d(3, 30, 3)).eval(), larger(4).float()
    lines = cc.top(model, cc.Feature("0", range(30)), images).summary().splitlines()
    assert len(lines) == 2 + 20 + 1 + 1
    assert lines[-1] == "note: 10 more units are not listed; rows() has all."


def test_notes_say_what_a_reader_must_know():
    model, images = NETS["plain"].build(), larger(5)
    model.features[5].weight.data[3], model.features[5].bias.data[3] = 0, -1
    notes = cc.top(model, FEATURE, images, count=9, sample=2).notes
    assert notes[0] == "There are only 5 images; 9 were asked for."
    assert notes[1].startswith("Never above 0 on these images: 3")
    found = cc.top(model, FEATURE, images, count=3, sample=0)
    beyond = found.highest.beyond(found.size).sum(1).tolist()
    where = ", ".join(f"{unit} on {n}" for unit, n in zip((3, 0, 1), beyond, strict=True) if n)
    assert found.notes[-1].startswith(f"Highest at a place that sees padding: {where} of these 3 images.")
    inside = cc.top(model, cc.Feature("features.5", [0, 1], position="interior"), images, count=3, sample=0)
    assert not inside.highest.beyond(found.size).any()
    assert inside.notes == ()


# ---------------------------------------- mistakes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"count": 0}, "count must be a whole number from 1; got 0"),
        ({"sample": -1}, "sample must be a whole number from 0; got -1"),
        ({"seed": -1}, "seed must be a whole number from 0"),
        ({"batch_size": 0}, "batch_size must be a whole number from 1; got 0"),
        ({"names": ["a", "b"]}, "There are 5 images but 2 names"),
        ({"names": "abcde"}, "give one name for each image"),
        ({"images": torch.empty(0, 3, 16, 16)}, "There are no images; give at least one"),
        ({"images": []}, "There are no images"),
        ({"feature": cc.Feature("features.55", 0)}, "no layer 'features.55'. Similar names: features.5"),
        ({"feature": cc.Feature("features.5", 99)}, "Unit 99 does not exist"),
        ({"feature": cc.Feature("features.5", 0, position=(99, 0))}, "lies outside the"),
        ({"progress": 3}, "progress must be a function"),
    ],
)
def test_a_mistake_is_a_clear_error(change, message):
    model, images = plain(5)
    given = {"feature": FEATURE, "images": images, **change}
    with pytest.raises(cc.ConvCircuitsError, match=message):
        cc.top(model, given.pop("feature"), given.pop("images"), **given)


def test_images_of_several_sizes_and_values_that_are_not_finite_are_errors():
    model, images = plain(5)
    with pytest.raises(cc.ConvCircuitsError, match="give images of one size"):
        cc.top(model, FEATURE, [images, images[..., :-2]])
    model.features[5].bias.data[1] = math.nan
    with pytest.raises(cc.ConvCircuitsError, match="contains NaN or Inf on image 0"):
        cc.top(model, FEATURE, images)


def test_progress_is_told():
    model, images = plain(5)
    told = []
    cc.top(model, FEATURE, images, batch_size=2, progress=lambda *done: told.append(done))
    assert told == [(2, 5), (4, 5), (5, 5)]
