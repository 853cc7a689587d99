"""The explorer's index: the figures of `cc.units` and `cc.top` for all convolutions at once, however often it stops."""

import itertools
import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import convcircuits as cc
from convcircuits.explorer import index as indexing
from convcircuits.explorer.index import BINS, GRID, Histogram, LayerTally, Stopped, Subjects, build, convolutions
from convcircuits.explorer.layer_file import LayerFile
from convcircuits.explorer.routes.units import choice
from convcircuits.explorer.store import Store
from convcircuits.zoo.images import Photograph
from convcircuits.zoo.layers import list_layers
from convcircuits.zoo.prepared import Prepared
from convcircuits.zoo.preprocessing import Preprocess

KEY = "0" * 32
PREPROCESS = Preprocess(size=(24, 20), resize=(26, 26))


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(8, 5, 3, padding=1),
    ).eval()


def some_photographs(count=11):
    generator = np.random.default_rng(0)
    coarse = [Image.fromarray(generator.integers(0, 256, (5, 6, 3), dtype=np.uint8)) for _ in range(count)]
    return [Photograph(f"{n}.png", one.resize((36, 30))) for n, one in enumerate(coarse)]


def subjects(photographs):
    model = net()
    layers, left_out = convolutions(model, list_layers(model, (24, 20)))
    assert [info.name for info in layers] == ["0", "3", "5"]
    assert left_out == {}
    return Subjects(model, layers, photographs, PREPROCESS, None)


def layers_of(folder):
    index = json.loads((folder / "index.json").read_text())
    return index, {one["layer"]: LayerFile.read((folder / one["file"]).read_bytes()) for one in index["layers"]}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("index")
    index = build(folder, KEY, subjects(some_photographs()), batch_size=4)
    said, layers = layers_of(folder)
    assert said == index
    assert (index["complete"], index["images"], index["read"]) == (True, 11, list(range(11)))
    assert not (folder / "checkpoint.safetensors").exists()
    return layers


@pytest.mark.parametrize("layer", ["0", "3", "5"])
def test_statistics_and_highest_images_are_those_of_units_and_top(layer, built):
    of, one = subjects(some_photographs()), built[layer]
    images = Prepared(of.photographs, PREPROCESS)
    found = cc.units(of.model, layer, images, count=25)
    for row, expected in zip(one.header["statistics"], found, strict=True):
        assert row == pytest.approx(expected.as_dict(), rel=1e-5, abs=1e-6)
    anywhere = cc.top(of.model, cc.Feature(layer, range(len(found))), images, count=25, sample=0)
    for padding, top in ((False, found.top), (True, anywhere)):
        for unit in range(len(found)):
            rows = one.highest(unit, padding=padding)
            assert [row["image"] for row in rows] == top.highest.image[unit].tolist()
            assert [row["value"] for row in rows] == pytest.approx(top.highest.value[unit].tolist(), rel=1e-5, abs=1e-5)
            assert [row["box"] for row in rows] == top.highest.box[unit].tolist()
            assert [row["position"] for row in rows] == top.highest.position[unit].tolist()


@pytest.mark.parametrize("layer", ["0", "3", "5"])
def test_all_images_are_sorted_by_their_highest_values_on_the_interior(layer, built):
    of, one = subjects(some_photographs()), built[layer]
    top = cc.top(of.model, cc.Feature(layer, 1, position="interior"), Prepared(of.photographs, PREPROCESS), count=11)
    values = dict(zip(top.highest.image[0].tolist(), top.highest.value[0].tolist(), strict=True))
    boxes = dict(zip(top.highest.image[0].tolist(), top.highest.box[0].tolist(), strict=True))
    median = float(np.median(list(values.values())))
    keys = {
        "bottom": lambda v: v,
        "median": lambda v: abs(v - median),
        "near_zero": abs,
        "range": lambda v: -v,
    }
    for section, key in keys.items():
        rows = one.among(1, choice(section, None, None), 11)
        assert sorted(row["image"] for row in rows) == list(range(11))
        assert [key(row["value"]) for row in rows] == sorted(key(row["value"]) for row in rows)
        for row in rows:
            assert row["value"] == pytest.approx(values[row["image"]], rel=1e-5, abs=1e-5)
            assert row["box"] == boxes[row["image"]]
    low, high = sorted(values.values())[3:6:2]
    rows = one.among(1, choice("range", low - 1e-4, high + 1e-4), 11)
    assert {row["image"] for row in rows} == {n for n, v in values.items() if low <= v <= high}


def test_a_histogram_counts_every_value_in_its_bin(built):
    of = subjects(some_photographs())
    maps = cc.activations(of.model, cc.Feature("3", range(8)), torch.cat(list(Prepared(of.photographs, PREPROCESS))))
    for unit in range(8):
        said, values = built["3"].histogram(unit), maps[:, unit].numpy().ravel()
        assert said["every"] == 1
        assert sum(said["counts"]) == values.size
        assert said["counts"] == np.histogram(values, said["edges"])[0].tolist()
        above = sum(count for count, edge in zip(said["counts"], said["edges"][:-1], strict=True) if edge >= 0)
        assert above / values.size == pytest.approx(built["3"].header["statistics"][unit]["active"])
        assert said["counts"][0] > 0 < said["counts"][-1]


@pytest.mark.parametrize("parts", [1, 3, 7])
def test_a_histogram_does_not_depend_on_the_order_of_values_or_their_batches(parts, monkeypatch):
    generator = torch.Generator().manual_seed(parts)
    scale = torch.tensor([1e-20, 1.0, 1e20, 0.0, 1e-20])[:, None, None]
    maps = torch.randn(7, 5, 3, 2, generator=generator) * scale * 10 ** torch.arange(-3.0, 4)[:, None, None, None]
    maps[::2, 4] = 0  # whose bins must not be as wide as if it were never small
    whole, pieces = Histogram(5, (3, 2)), Histogram(5, (3, 2))
    whole.add(maps)
    monkeypatch.setattr("convcircuits.maps.sums._IN_CACHE", 5)  # a row of a unit at once
    for some in maps[torch.randperm(7, generator=generator)].chunk(parts):
        pieces.add(some)
    assert torch.equal(whole.counts, pieces.counts)
    assert torch.equal(whole.exponent, pieces.exponent)
    assert whole.counts.sum(1).tolist() == [42] * 5
    assert len(whole.counts[4].nonzero()) > 3
    assert whole.counts[3].nonzero().tolist() == [[BINS // 2]]  # a unit that is 0 everywhere


def test_a_large_map_is_counted_on_a_grid():
    histogram = Histogram(1, (100, 90))
    histogram.add(torch.ones(2, 1, 100, 90))
    assert histogram.every == 4
    assert int(histogram.counts.sum()) == 2 * 25 * 23 <= 2 * GRID**2


@pytest.mark.parametrize("known", [None, {}])
@pytest.mark.parametrize("stops", [[0], [1], [1, 1], [2, 0]])
def test_an_index_goes_on_where_it_stopped(stops, known, built, tmp_path):
    of, known = subjects(some_photographs()), None if known is None else {}

    def stopping(batches):
        def told(phase, done, total):
            nonlocal batches
            if phase.startswith("indexing"):
                batches -= 1
                if batches < 0:
                    raise Stopped

        return told

    for batches in stops:
        with pytest.raises(Stopped):
            build(tmp_path, KEY, of, known=known, batch_size=4, progress=stopping(batches))
        index, layers = layers_of(tmp_path)
        assert not index["complete"]
        for one in layers.values():
            assert one.header["images"] == index["images"] < 11
            assert not one.header["complete"]
    done = []
    build(
        tmp_path,
        KEY,
        of,
        known=known,
        batch_size=4,
        progress=lambda phase, n, _: done.append(n) if "indexing" in phase else None,
    )
    assert done[0] == 4 * sum(stops)
    _, layers = layers_of(tmp_path)
    for name, one in layers.items():
        assert one.header == {**built[name].header, "checksum": one.header["checksum"]}
        assert one.arrays.keys() == built[name].arrays.keys()
        for key, values in one.arrays.items():
            assert np.array_equal(values, built[name].arrays[key]), key


def test_photographs_that_cannot_be_read_are_left_out(tmp_path):
    photographs = some_photographs(6)
    broken = [Photograph(f"broken {n}", b"nothing") for n in range(3)]
    index = build(
        tmp_path, KEY, subjects([broken[0], *photographs[:3], broken[1], *photographs[3:], broken[2]]), batch_size=2
    )
    assert (index["complete"], index["images"], index["read"]) == (True, 6, [1, 2, 3, 5, 6, 7])


def test_a_damaged_file_is_removed_and_said_once(built, tmp_path):
    (tmp_path / "index" / KEY).mkdir(parents=True)
    build(tmp_path / "index" / KEY, KEY, subjects(some_photographs()))
    store = Store(tmp_path)
    index = store.index(KEY)
    assert store.layer(KEY, index["layers"][0]["file"]).header["layer"] == "0"
    file = tmp_path / "index" / KEY / index["layers"][0]["file"]
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    for _ in range(2):
        assert store.layer(KEY, file.name) is None
    assert len(store.remarks) == 1
    assert "was damaged" in store.remarks[0]
    assert not file.exists()
    assert store.index(KEY) is None  # so that it is made again
    store.close()


def test_after_a_damaged_checkpoint_an_index_begins_anew_and_says_so(tmp_path):
    of = subjects(some_photographs(4))

    def told(phase, done, total):
        if done:
            raise Stopped

    with pytest.raises(Stopped):
        build(
            tmp_path,
            KEY,
            of,
            batch_size=2,
            progress=lambda phase, done, _: told(phase, done * ("index" in phase), None),
        )
    file = tmp_path / "checkpoint.safetensors"
    file.write_bytes(file.read_bytes()[:-9])
    remarks = []
    assert build(tmp_path, KEY, of, remark=remarks.append)["images"] == 4
    assert len(remarks) == 1
    assert "began anew" in remarks[0]


def test_a_checkpoint_that_fails_half_way_leaves_nothing_in_the_sums(tmp_path, monkeypatch):
    """Layers before the one that cannot go on have gone on already, so they must begin anew too."""
    photographs = some_photographs(4)

    def told(phase, done, total):
        if done and "index" in phase:
            raise Stopped

    with pytest.raises(Stopped):
        build(tmp_path, KEY, subjects(photographs), batch_size=2, progress=told)
    resume, calls = LayerTally.resume, []

    def failing(tally, state, images):
        calls.append(tally)
        if len(calls) == 2:
            raise KeyError("sums/total")
        resume(tally, state, images)

    monkeypatch.setattr(LayerTally, "resume", failing)
    build(tmp_path, KEY, subjects(photographs), batch_size=2)
    _, found = layers_of(tmp_path)
    assert len(calls) == 2
    (tmp_path / "anew").mkdir()
    build(tmp_path / "anew", KEY, subjects(photographs), batch_size=2)
    _, expected = layers_of(tmp_path / "anew")
    for layer in expected:
        assert found[layer].header["statistics"] == expected[layer].header["statistics"]
        assert found[layer].highest(0, padding=False) == expected[layer].highest(0, padding=False)


def test_slow_checkpoints_are_far_apart(tmp_path, monkeypatch):
    """Writing what is known of many photographs can take seconds; doing so as often as asked for costs passes."""
    clock, saved = [0.0], []

    def passing(phase, done, total):
        clock[0] += 10

    def write(run, **kwargs):
        clock[0] += 4
        return whole(run, **kwargs)

    whole = indexing._Run.write
    monkeypatch.setattr(indexing.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(indexing._Run, "write", write)
    build(
        tmp_path,
        KEY,
        subjects(some_photographs(40)),
        batch_size=1,
        every=20.0,
        progress=passing,
        saved=lambda index: saved.append(index["images"]),
    )
    *checkpoints, last = saved
    assert last == 40
    # The first when it is due, the others when 120 seconds, thirty times what the one before took, have passed.
    assert [b - a for a, b in itertools.pairwise(checkpoints)] == [12] * (len(checkpoints) - 1)
    assert len(checkpoints) == 4
    assert 4 * len(checkpoints) < clock[0] / 25
