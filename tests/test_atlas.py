"""The atlas of a layer: its circuits are those of ``find``, no run loses one, and what they share is counted."""

import errno
import itertools
import math
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import convcircuits as cc
from convcircuits import files
from convcircuits.atlases import making, store
from convcircuits.atlases.unit_maps import UnitMaps
from convcircuits.compiler.extraction import Sweep
from convcircuits.maps.units import all_units
from convcircuits.network.batches import Batches
from convcircuits.network.capture import Network
from convcircuits.values.boxes import image_hash
from nets import NETS

torch.set_num_threads(1)

CASE, LAYER = NETS["residual"], "block2.conv2"


def made(folder, **given):
    asked = {"density": 0.2, **given}
    return cc.atlas(CASE.build(), LAYER, CASE.images(4), CASE.images(4, seed=5), folder=folder, **asked)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return made(tmp_path_factory.mktemp("atlas"))


# ---------------------------------------- circuits and figures


def test_circuits_and_figures_are_those_of_find_and_evaluate(found):
    model, images, held_out = CASE.build(), CASE.images(4), CASE.images(4, seed=5)
    assert found.units == (0, 1, 2, 3, 4)
    assert not found.problems
    for unit, row in zip(found, found.rows(), strict=True):
        circuit = cc.find(model, cc.Feature(LAYER, unit), images, criterion="gauss_newton", density=0.2)
        assert found.circuit(unit) == circuit
        report = cc.evaluate(model, circuit, held_out, fit=images).as_dict()
        for name in store.FIGURES:
            number = isinstance(report[name], float)
            assert row[name] == (pytest.approx(report[name], rel=1e-9, abs=1e-12) if number else report[name])


@pytest.fixture
def full_runs(monkeypatch):
    """The unit that each run of the full model is for, or "all"."""
    units, run = [], Sweep.maps

    def maps(sweep, images, only=None):
        unit = sweep.subject.feature.unit
        if only is None or 0 in only:
            units.append("all" if isinstance(unit, tuple) else unit)
        return run(sweep, images, only)

    monkeypatch.setattr(Sweep, "maps", maps)
    return units


def same_figures(rows, expected):
    for row, before in zip(rows, expected, strict=True):
        for name in store.FIGURES:
            number = isinstance(row[name], float)
            assert row[name] == (pytest.approx(before[name], rel=1e-9, abs=1e-12) if number else before[name])


@pytest.mark.parametrize(
    ("memory", "units", "runs"),
    [
        (4 * 2**20, None, ["all"]),
        (60, None, [0, "all", "all"]),
        (60, [4, 0, 2, 1], ["all", "all"]),
        (60, [3], [3]),
        (1, [0, 4], [0, 4]),
    ],
)
@pytest.mark.parametrize("criterion", ["gauss_newton", "progressive"])
def test_the_full_model_runs_once_for_many_units(memory, units, runs, criterion, found, tmp_path, full_runs):
    again = made(tmp_path, units=units, memory=memory, criterion=criterion)
    assert full_runs == [one for one in runs for _ in range(2)]  # images to fit on and held-out ones are a batch each
    if criterion == "gauss_newton":
        same_figures(again.rows(), [row for row in found.rows() if units is None or row["unit"] in units])


def test_shards_do_not_run_the_full_model_for_units_of_others(found, tmp_path, full_runs):
    for k in (1, 2):
        again = made(tmp_path, shard=(k, 2))
    assert full_runs == ["all"] * 4
    same_figures(again.rows(), found.rows())


def test_if_units_cannot_run_together_each_runs_alone(found, tmp_path, full_runs, monkeypatch):
    run = Sweep.maps

    def short_of_memory(sweep, *more):
        if isinstance(sweep.subject.feature.unit, tuple):
            raise cc.ConvCircuitsError("out of memory")
        return run(sweep, *more)

    monkeypatch.setattr(Sweep, "maps", short_of_memory)
    same_figures(made(tmp_path).rows(), found.rows())
    assert full_runs == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]


def test_images_of_other_shapes_are_other_images(tmp_path):
    """Where all values are the same, images of 7 x 10 and 10 x 7 have the same bytes."""
    model, images = CASE.build(), CASE.images(4)
    c, h, w = CASE.input_shape
    blank = [torch.full((1, c, *size), 0.3, dtype=torch.float64) for size in ((h, w + 3), (w + 3, h))]
    others = torch.randn(3, c, w + 3, h, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    held_out = [blank[0], torch.cat([blank[1], others])]
    assert image_hash(blank[0][0]) == image_hash(blank[1][0])
    found = cc.atlas(model, LAYER, images, held_out, folder=tmp_path, criterion="snip", density=0.4)
    expected = [cc.evaluate(model, found.circuit(n), held_out, fit=images).as_dict() for n in found]
    same_figures(found.rows(), expected)


@pytest.mark.parametrize(
    ("name", "layer"), [("residual", "block2.conv2"), ("pooled_head", "fc"), ("mobile", "project.0")]
)
@pytest.mark.parametrize("at_once", [1, 2, 99])
def test_maps_of_units_are_those_of_activations(name, layer, at_once):
    case = NETS[name]
    model, pictures = case.build(), case.images(5)
    network = Network(model)
    subject = all_units(network, layer, case.input_shape)
    maps = cc.activations(model, subject.feature, pictures)
    batches = Batches(pictures, device=network.device, dtype=network.dtype, batch_size=2)
    memory = -(-at_once * 5 * maps[0, 0].numel() * 8 // 64)
    held = UnitMaps(subject, range(maps.shape[1]), (batches,), 5, memory)
    for unit in range(maps.shape[1]):
        own = held.of(replace(subject.feature, unit=unit))
        together = next(len(chunk) for chunk in held.chunks if unit in chunk)
        assert together <= at_once
        assert len(own) == (0 if together == 1 else 5)
        for (_, (one,)), expected in zip(batches.in_batches_of(1).hashed(), maps[:, unit], strict=True):
            if own:
                torch.testing.assert_close(own[case.input_shape, one], expected)


def test_no_more_maps_are_held_than_there_is_room_for():
    """The images that are asked for first are smaller than the others."""
    case = NETS["residual"]
    network = Network(case.build())
    subject = all_units(network, LAYER, case.input_shape)
    c, h, w = case.input_shape
    images = [torch.randn(2, c, side * h, side * w, dtype=torch.float64) for side in (1, 3, 3, 3)]
    batches = Batches(images, device=network.device, dtype=network.dtype, batch_size=2)
    memory = 500
    own = UnitMaps(subject, range(5), (batches,), 8, memory).of(replace(subject.feature, unit=1))
    assert 0 < 5 * sum(8 * one.numel() for one in own.values()) <= 64 * memory
    assert len(own) < 8


@pytest.mark.parametrize("criterion", ["gauss_newton", "progressive"])
def test_figures_are_fitted_on_some_images_unless_circuits_are_fitted_on_all(criterion, tmp_path, monkeypatch):
    monkeypatch.setattr(making, "FIT", 3)
    model, images, held_out = CASE.build(), CASE.images(4), CASE.images(4, seed=5)
    some = made(tmp_path, units=[1], criterion=criterion)
    about = {"device": images.device, "dtype": images.dtype, "batch_size": 16}
    drawn = torch.cat(list(Batches(images, **about).sample(3, seed=0)))
    of_each = [cc.evaluate(model, some.circuit(1), held_out, fit=fit) for fit in (images, drawn)]
    assert of_each[0].r2_average_map != of_each[1].r2_average_map
    expected = of_each[criterion == "gauss_newton"]
    (row,) = some.rows()
    for name in ("r2", "r2_readout", "r2_average_map", "r2_random"):
        assert row[name] == pytest.approx(getattr(expected, name), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("size", [{"kernels": 9}, {"density": 0.3, "effective": True}, {"filters": 2, "fan_in": 2}])
def test_every_size_is_that_of_find(size, tmp_path):
    some = made(tmp_path, units=[3], criterion="snip", **({"density": None} | size))
    circuit = cc.find(CASE.build(), cc.Feature(LAYER, 3), CASE.images(4), criterion="snip", **size)
    assert some.units == (3,)
    assert some.circuit(3) == circuit


def test_criteria_that_are_not_shared_run_unit_by_unit(tmp_path):
    some = made(tmp_path, units=[1], criterion="force", steps=2)
    expected = cc.find(CASE.build(), cc.Feature(LAYER, 1), CASE.images(4), criterion="force", density=0.2, steps=2)
    assert some.circuit(1) == expected


def test_a_unit_without_a_circuit_has_a_row_that_says_why(tmp_path):
    model = CASE.build()
    model.block2.conv2.weight.data[1] = 0
    given = model, LAYER, CASE.images(4), CASE.images(4, seed=5)
    some = cc.atlas(*given, folder=tmp_path, units=[1, 2], density=0.2)
    assert some.units == (2,)
    assert list(some.problems) == [1]
    assert "scored every kernel 0" in some.problems[1]
    assert [row["problem"] != "" for row in some.rows()] == [True, False]
    with pytest.raises(cc.ConvCircuitsError, match="has no circuit"):
        some.circuit(1)
    assert cc.atlas(*given, folder=tmp_path, units=[1, 2], density=0.2).problems == some.problems


# ---------------------------------------- runs that end


KILLED = """
    import os, signal, sys
    sys.path.insert(0, {tests!r})
    import torch
    import test_atlas
    from convcircuits.atlases import store

    torch.set_num_threads(1)
    save, done = store.save, []

    def saved(circuit, path):
        if {before}:
            os.kill(os.getpid(), signal.SIGKILL)
        save(circuit, path)
        done.append(path)
        if len(done) == {count}:
            os.kill(os.getpid(), signal.SIGKILL)  # the file is there, its row is not

    store.save = saved
    test_atlas.made({folder!r})
"""


@pytest.mark.slow
def test_a_run_that_is_killed_goes_on_and_loses_nothing(found, tmp_path):
    for count, before in ((2, False), (9, True)):
        code = KILLED.format(tests=str(Path(__file__).parent), folder=str(tmp_path), count=count, before=before)
        ended = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], env=os.environ, check=False)
        assert ended.returncode == -signal.SIGKILL
    before = cc.Atlas.read(tmp_path)
    assert before.units == (0,)  # the first run also wrote the file of the next; the second run added nothing
    times = {unit: before.file(unit).stat().st_mtime_ns for unit in before}
    whole = made(tmp_path)
    assert whole.units == found.units
    assert {unit: whole.file(unit).stat().st_mtime_ns for unit in before} == times
    assert all(whole.circuit(unit) == found.circuit(unit) for unit in whole)
    for one, other in zip(whole.rows(), found.rows(), strict=True):
        assert {**one, "seconds": 0} == {**other, "seconds": 0}


def test_shards_are_read_together(found, tmp_path):
    parts = [made(tmp_path, shard=(n, 2)) for n in (1, 2)]
    assert [part.units for part in parts] == [(0, 2, 4), (0, 1, 2, 3, 4)]
    assert sorted(path.name for path in tmp_path.glob("*.sqlite")) == ["index-1-of-2.sqlite", "index-2-of-2.sqlite"]
    assert torch.equal(parts[1].overlap().nan_to_num(9), found.overlap().nan_to_num(9))
    elsewhere = [tmp_path / name for name in ("a", "b")]
    for n, folder in enumerate(elsewhere, start=1):
        made(folder, shard=(n, 3), units=[0, 1])
    both = cc.Atlas.read(*elsewhere)
    assert both.units == (0, 1)
    assert both.circuit(1) == found.circuit(1)


def test_a_folder_takes_no_other_atlas(found, tmp_path):
    made(tmp_path, units=[0])
    for given, what in (({"density": 0.3}, "size"), ({"seed": 1}, "seed"), ({"criterion": "snip"}, "criterion")):
        with pytest.raises(cc.ConvCircuitsError, match=f"holds another atlas: there {what} is"):
            made(tmp_path, **given)
    model = CASE.build()
    model.stem.weight.data += 1
    with pytest.raises(cc.ConvCircuitsError, match="there weights is"):
        cc.atlas(model, LAYER, CASE.images(4), CASE.images(4, seed=5), folder=tmp_path, density=0.2)
    with pytest.raises(cc.ConvCircuitsError, match=r"the images differ \(4 there, 3 here\)"):
        cc.atlas(CASE.build(), LAYER, CASE.images(3), CASE.images(4, seed=5), folder=tmp_path, density=0.2)
    with pytest.raises(cc.ConvCircuitsError) as caught:
        cc.atlas(CASE.build(), LAYER, CASE.images(4), CASE.images(4), folder=tmp_path, density=0.2, seed=1)
    said = str(caught.value)
    assert "holds another atlas: the held-out images differ (4 there, 4 here); there seed is 0, here it is 1." in said
    assert all(option in said for option in ("--size", "--seed", "--held-out"))
    assert "hash" not in said


def test_equal_weights_are_not_the_same_model(tmp_path):
    def run(gate, folder=tmp_path):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), gate, torch.nn.Conv2d(4, 2, 3)).double().eval()
        return cc.atlas(model, "2", CASE.images(2), CASE.images(2, seed=5), folder=folder, density=0.2, units=[0])

    run(torch.nn.ReLU())
    assert len(run(torch.nn.ReLU())) == 1
    with pytest.raises(cc.ConvCircuitsError, match="there architecture is"):
        run(torch.nn.Sigmoid())


def test_an_edited_criterion_is_not_the_same(tmp_path):
    def of(power):
        def own(trace):
            return {layer: torch.ones(shape).double() ** power for layer, shape in trace.shapes.items()}

        return own

    made(tmp_path, units=[0], criterion=of(1))
    assert len(made(tmp_path, units=[0], criterion=of(1))) == 1
    with pytest.raises(cc.ConvCircuitsError, match="there criterion_code is"):
        made(tmp_path, units=[0], criterion=of(2))

    def own(trace):
        return {layer: torch.zeros(shape).double() + 1 for layer, shape in trace.shapes.items()}

    with pytest.raises(cc.ConvCircuitsError, match="there criterion_code is"):
        made(tmp_path, units=[0], criterion=own)


def test_units_whose_measuring_failed_are_tried_again(found, tmp_path):
    class Disk:
        passes, away = 0, True

        def __iter__(self):
            Disk.passes += 1
            if Disk.away and Disk.passes > 4:
                raise cc.ConvCircuitsError("a.jpg cannot be read")
            yield CASE.images(4, seed=5)

    given = CASE.build(), LAYER, CASE.images(4), Disk()
    first = cc.atlas(*given, folder=tmp_path, density=0.2, units=[0, 1, 2], shard=(1, 2))
    assert "a.jpg cannot be read" in set(first.problems.values())
    Disk.away = False
    times = {unit: first.file(unit).stat().st_mtime_ns for unit in first}
    again = cc.atlas(*given, folder=tmp_path, density=0.2, units=[0, 1, 2])  # the row of another shard does not count
    assert again.units == (0, 1, 2)
    assert not again.problems
    assert {unit: again.file(unit).stat().st_mtime_ns for unit in times} == times
    assert again.circuit(2) == found.circuit(2)


def test_an_atlas_without_circuits_has_empty_tables(found, tmp_path):
    model = CASE.build()
    model.block2.conv2.weight.data[1] = 0
    none = cc.atlas(model, LAYER, CASE.images(2), CASE.images(2, seed=5), folder=tmp_path, units=[1], density=0.2)
    assert (none.units, none.hubs(), none.rare(), none.families()) == ((), [], [], ())
    assert tuple(none.placed().shape) == (0, 2)
    assert all(not bool(table.any()) for tables in (none.users(), none.expected_users()) for table in tables.values())
    assert [row["layer"] for row in none.profile()] == list(found.layers)
    assert none.rows()[0].keys() == found.rows()[0].keys()
    assert none.users_of("stem", 0, 0) == ()
    assert none.as_dict()["units"] == []
    assert "has no circuit" in none.summary()
    with pytest.raises(cc.ConvCircuitsError, match="has no circuit: it is not in this atlas"):
        none.circuit(99)


def test_a_run_that_ended_at_its_very_start_locks_nothing(tmp_path):
    (tmp_path / "index-2-of-2.sqlite").touch()
    (tmp_path / "index.sqlite").touch()
    with pytest.raises(cc.ConvCircuitsError, match=r"There is no atlas .* or an empty one"):
        cc.Atlas.read(tmp_path)
    assert made(tmp_path, units=[0]).units == (0,)


class Mixed(torch.nn.Module):
    """Units that are channels of the image come first; no kernel lies on a path to them."""

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 2, 3, padding=1)

    def forward(self, x):
        return torch.cat((x, self.conv(x)), 1)


def test_units_on_no_path_have_rows_and_the_others_circuits(tmp_path):
    torch.manual_seed(0)
    model, images = torch.nn.Sequential(Mixed()).double().eval(), CASE.images(2)
    given = model, "0", images, CASE.images(2, seed=5)
    some = cc.atlas(*given, folder=tmp_path, density=0.5)
    assert some.units == (3, 4)
    assert all("No kernel lies between" in some.problems[unit] for unit in (0, 1, 2))
    assert not cc.atlas(*given, folder=tmp_path / "none", density=0.5, units=[0, 2]).units


class Squeezed(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.pool, self.head = torch.nn.Conv2d(3, 4, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.pool(self.conv(x).relu()).squeeze())


def test_a_model_that_squeezes_one_image_has_an_atlas(tmp_path):
    torch.manual_seed(0)
    given = Squeezed().double().eval(), "head", CASE.images(4), CASE.images(4, seed=5)
    assert cc.atlas(*given, folder=tmp_path, density=0.5).units == (0, 1, 2)


def test_seconds_count_the_time_of_finding(tmp_path):
    def slow(trace):
        time.sleep(0.3)
        return {layer: torch.ones(shape) for layer, shape in trace.shapes.items()}

    assert made(tmp_path, units=[0], criterion=slow).rows()[0]["seconds"] > 0.3


def test_a_file_system_without_locks_is_only_warned_of(found, tmp_path, monkeypatch):
    def without(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(files.fcntl, "flock", without)
    with pytest.warns(UserWarning, match=r"without locks \(No locks available\)"):
        store.Index(tmp_path, found.asked, found.layers, None).close()


@pytest.mark.parametrize("change", [lambda blob: blob + b"x", lambda blob: blob[:-2]])
def test_a_table_is_read_to_its_end(change, tmp_path):
    made(tmp_path, units=[0])
    path = tmp_path / "index.sqlite"
    with sqlite3.connect(path) as database:
        (blob,) = database.execute("SELECT kept FROM circuits").fetchone()
        database.execute("UPDATE circuits SET kept = ?", (change(blob),))
    database.close()
    with pytest.raises(cc.ConvCircuitsError, match="is damaged"):
        cc.Atlas.read(tmp_path)


def test_one_process_writes_an_index(found, tmp_path):
    index = store.Index(tmp_path, found.asked, found.layers, None)
    with pytest.raises(cc.ConvCircuitsError, match="Another process is writing"):
        store.Index(tmp_path, found.asked, found.layers, None)
    index.close()
    store.Index(tmp_path, found.asked, found.layers, None).close()


def test_a_damaged_index_is_an_error(tmp_path):
    made(tmp_path, units=[0])
    path = tmp_path / "index.sqlite"
    with sqlite3.connect(path) as database:
        database.execute("UPDATE circuits SET kept = ?", (b"\x00" * 9,))
    database.close()
    with pytest.raises(cc.ConvCircuitsError, match="is damaged"):
        cc.Atlas.read(tmp_path)
    path.write_bytes(b"no database" * 100)
    with pytest.raises(cc.ConvCircuitsError, match="is damaged"):
        cc.Atlas.read(tmp_path)
    path.unlink()
    with pytest.raises(cc.ConvCircuitsError, match="There is no atlas"):
        cc.Atlas.read(tmp_path)


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"density": None}, "Give either density"),
        ({"density": 2.0}, r"density must be in \(0, 1\]"),
        ({"criterion": "nope"}, "no criterion 'nope'"),
        ({"collapse": "abs"}, "no option 'collapse'"),
        ({"units": [5]}, "from 0 to 4"),
        ({"units": []}, "distinct units"),
        ({"units": [1, 1]}, "distinct units"),
        ({"shard": (0, 2)}, "from 1 to 2"),
        ({"shard": 3}, r"shard is \(k, n\)"),
        ({"position": cc.Boxes.of(CASE.images(1), [(0, 0, 2, 2)])}, "no Boxes"),
        ({"criterion": "force", "density": None, "filters": 2, "fan_in": 2}, "must know how many"),
        ({"effective": 3}, "effective is true or false"),
        ({"criterion": "progressive", "effective": False}, "keeps only effective kernels"),
        ({"density": None, "kernels": 10**6}, "1000000 kernels were requested"),
        ({"units": [1], "shard": (2, 2)}, "has no unit; give at most as many parts as there are units, here 1"),
        ({"seed": -1}, "seed must be a whole number"),
    ],
)
def test_what_is_wrong_is_said_before_any_work(given, problem, tmp_path):
    with pytest.raises(cc.ConvCircuitsError, match=problem):
        made(tmp_path / "new", **given)
    assert not (tmp_path / "new").exists()


# ---------------------------------------- what circuits share


def pairs(masks, relevant, layers):
    """Kernels in both, in either, and expected in both by chance, of the kernels on a path to both units."""
    both = either = chance = 0.0
    for layer in layers:
        a, b, room = 0, 0, 0
        for o, i in itertools.product(*map(range, relevant[0][layer].shape)):
            if relevant[0][layer][o, i] and relevant[1][layer][o, i]:
                one, other = (bool(mask[layer][o, i]) for mask in masks)
                a, b, room, both = a + one, b + other, room + 1, both + (one and other)
        either, chance = either + a + b, chance + (a * b / room if room else 0)
    return both, either - both, chance, either


@pytest.mark.parametrize("layer", [None, "stem", "block2.conv1"])
def test_overlap_is_the_iou_corrected_for_chance(layer, found):
    circuits, table = [found.circuit(unit) for unit in found], found.overlap(layer)
    for u, v in itertools.product(range(len(circuits)), repeat=2):
        masks = [dict(circuits[n].kernels) for n in (u, v)]
        relevant = [{name: ~values.isnan() for name, values in circuits[n].saliency.items()} for n in (u, v)]
        both, either, chance, total = pairs(masks, relevant, found.layers if layer is None else [layer])
        expected = chance / (total - chance) if total > chance else math.nan
        assert float(table[u, v]) == pytest.approx((both / either - expected) / (1 - expected), rel=1e-12)
    assert torch.equal(table.diagonal(), torch.ones(5, dtype=torch.float64))
    assert torch.equal(table, table.T)


def test_kernels_are_counted_by_the_circuits_that_keep_them(found):
    users, expected = found.users(), found.expected_users()
    circuits = [found.circuit(unit) for unit in found]
    for layer, table in users.items():
        for o, i in itertools.product(*map(range, table.shape)):
            kept = tuple(u for u, one in zip(found, circuits, strict=True) if one[layer][o, i])
            assert int(table[o, i]) == len(kept)
            assert found.users_of(layer, o, i) == kept
        kept = sum(float(one[layer].sum()) for one in circuits)
        assert float(expected[layer].sum()) == pytest.approx(kept) == float(table.sum())


def test_the_profile_of_layers_adds_up(found):
    profile = found.profile()
    assert [row["layer"] for row in profile] == list(found.layers)
    circuits = [found.circuit(unit) for unit in found]
    for row in profile:
        assert row["kept"] == pytest.approx(sum(int(one[row["layer"]].sum()) for one in circuits) / 5)
        used = torch.stack([one[row["layer"]] for one in circuits]).any(0)
        relevant = torch.stack([~one.saliency[row["layer"]].isnan() for one in circuits]).any(0)
        assert row["used"] == pytest.approx(float(used.sum()) / float(relevant.sum()))
    assert sum(row["share"] for row in profile) == pytest.approx(1)


class Planted(cc.Atlas):
    """An atlas of circuits that are drawn: a part of each family's kernels, and others at random."""

    def __init__(self, sizes=(6, 4, 3), shared=0.9, seed=0):
        generator = torch.Generator().manual_seed(seed)
        shape, found, unit = (20, 25), {}, 0
        for size in sizes:
            own = torch.rand(shape, generator=generator) < 0.1
            for _ in range(size):
                other = torch.rand(shape, generator=generator) < 0.1
                kept = torch.where(torch.rand(shape, generator=generator) < shared, own, other)
                every = torch.ones(shape, dtype=torch.bool)
                found[unit] = (Path(), store.Row(unit, "f", "", {}, 0.0, {"a": kept}, {"a": every}))
                unit += 1
        super().__init__({"layer": "a", "criterion": "planted"}, {"a": shape}, found)


@pytest.mark.parametrize("seed", range(3))
def test_planted_families_are_found(seed):
    families = Planted(seed=seed).families()
    assert [family.units for family in families] == [tuple(range(6)), (6, 7, 8, 9), (10, 11, 12)]
    assert all(family.overlap > 0.5 for family in families)


@pytest.mark.parametrize("which", ["found", "planted"])
def test_kernels_that_serve_many_and_few_units_are_those_of_a_count_by_hand(which, found):
    atlas = found if which == "found" else Planted(sizes=(6, 4, 3), shared=0.7)
    rows = [atlas.rows_by_unit[unit] for unit in atlas]
    many, few, unused = [], [], 0
    for layer, shape in atlas.layers.items():
        chances = [float(row.kept[layer].sum()) / max(1, int(row.relevant[layer].sum())) for row in rows]
        for o, i in itertools.product(*map(range, shape)):
            units = sum(bool(row.kept[layer][o, i]) for row in rows)
            chance = sum(one for one, row in zip(chances, rows, strict=True) if row.relevant[layer][o, i])
            one = {"layer": layer, "filter": o, "channel": i, "units": units, "share": units / len(rows)}
            one["expected"] = pytest.approx(chance, rel=1e-12)
            unused += not units
            if units > chance + 1e-9:
                many.append((chance - units, one))
            elif 0 < units < chance - 1e-9:
                few.append((units - chance, one))
    for table, expected in ((atlas.hubs(10**6), many), (atlas.rare(10**6), few)):
        expected.sort(key=lambda pair: round(pair[0], 9))  # stable: equals stay in the order of the loop
        assert table == [one for _, one in expected]
    assert min(len(few), unused) > 0
    assert (atlas.hubs(3), atlas.rare(3)) == (atlas.hubs(10**6)[:3], atlas.rare(10**6)[:3])
    said = atlas.as_dict(hubs=2, rare=1)
    for name, table in (("hubs", atlas.hubs(2)), ("rare", atlas.rare(1))):
        users = [atlas.users_of(row["layer"], row["filter"], row["channel"]) for row in table]
        assert said[name] == [row | {"users": list(some)} for row, some in zip(table, users, strict=True)]
        assert [len(some) for some in users] == [row["units"] for row in table]


def test_a_kernel_of_as_many_circuits_as_by_chance_serves_neither_many_nor_few():
    tables = torch.zeros(10, 1, 10, dtype=torch.bool)
    tables[torch.arange(10), 0, torch.arange(10)] = True  # ten circuits of a kernel each: ten times .1, not quite 1
    every, rows = torch.ones(1, 10, dtype=torch.bool), {}
    for unit, kept in enumerate(tables):
        rows[unit] = Path(), store.Row(unit, "f", "", {}, 0.0, {"a": kept}, {"a": every})
    atlas = cc.Atlas({"layer": "a", "criterion": "planted"}, {"a": (1, 10)}, rows)
    assert float(atlas.expected_users()["a"][0, 0]) != 1
    assert atlas.hubs() == atlas.rare() == []


def test_unrelated_circuits_overlap_by_chance_alone():
    overlap = Planted(sizes=(1,) * 40, shared=0.0).overlap()
    pairs = overlap[torch.ones(40, 40).triu(1).bool()]
    assert abs(float(pairs.mean())) < 0.005


def test_alike_units_are_placed_close():
    planted = Planted()
    places, overlap = planted.placed(), planted.overlap()
    apart = torch.cdist(places, places)
    same = overlap > 0.5
    assert float(apart[same].max()) < float(apart[~same].min())
    best = planted.alike(7, 3)
    assert {unit for unit, _ in best} == {6, 8, 9}
    assert [value for _, value in best] == sorted(dict(best).values())[::-1]


@pytest.mark.slow  # compiles
def test_umap_keeps_neighbors_and_depends_on_its_seed_alone():
    planted = Planted(sizes=(14, 12, 10))
    places = planted.placed("umap", seed=3)
    assert torch.get_num_threads() == 1  # numba sets how many threads OpenMP starts, for torch, too
    assert torch.equal(places, planted.placed("umap", seed=3))
    assert not torch.equal(places, planted.placed("umap", seed=4))
    family = torch.tensor([0] * 14 + [1] * 12 + [2] * 10)
    apart = torch.cdist(places, places).fill_diagonal_(math.inf)
    assert torch.equal(family[apart.topk(5, largest=False).indices], family[:, None].expand(-1, 5))
    torch.testing.assert_close(places.mean(0), torch.zeros(2, dtype=torch.float64), atol=1e-9, rtol=0)
    said = planted.as_dict(method="umap", seed=3)
    assert said["method"] == "umap"
    assert [row["place"] for row in said["units"]] == places.tolist()
    assert any("UMAP keeps neighbors" in note for note in said["notes"])


def test_umap_begins_at_the_principal_axes_of_the_distances(monkeypatch):
    asked, planted = [], Planted()

    def umap(**options):
        return SimpleNamespace(fit_transform=lambda given: asked.append((given, options)) or options["init"])

    monkeypatch.setitem(sys.modules, "umap", SimpleNamespace(UMAP=umap))
    first, places = planted.placed(), planted.placed("umap", seed=5)
    ((given, options),) = asked
    torch.testing.assert_close(torch.from_numpy(given) ** 2, (1 - planted.overlap()).clamp_min(0))
    assert (options["metric"], options["random_state"]) == ("precomputed", 5)
    torch.testing.assert_close(places, 10 * first / first.abs().max(), atol=1e-9, rtol=1e-9)


def test_umap_is_asked_for_where_it_is_used(found, monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", None)
    for use in (Planted().placed, Planted().as_dict, found.as_dict):
        with pytest.raises(cc.ConvCircuitsError, match=r"pip install 'convcircuits\[umap\]'"):
            use(method="umap")
        with pytest.raises(cc.ConvCircuitsError, match="method must be one of 'pca', 'umap'; got 'tsne'"):
            use(method="tsne")
    monkeypatch.setitem(sys.modules, "umap", SimpleNamespace())
    with pytest.raises(cc.ConvCircuitsError, match="There are 5 circuits; to place them by umap it takes at least 10"):
        found.placed("umap")
    said = found.as_dict(method="umap")
    assert said["method"] == "pca"
    assert [row["place"] for row in said["units"]] == found.placed().tolist()
    assert any("these are placed by classical scaling" in note for note in said["notes"])
    assert found.as_dict()["method"] == "pca"
    with pytest.raises(cc.ConvCircuitsError, match="seed must be"):
        Planted().placed(seed=-1)


def test_families_may_be_counted():
    assert len(Planted().families(5)) == 5
    with pytest.raises(cc.ConvCircuitsError, match="from 1 to 13"):
        Planted().families(14)


def test_pairs_without_an_overlap_do_not_count_as_0():
    planted = Planted(sizes=(3,))
    table = torch.full((3, 3), 0.5, dtype=torch.float64)
    table[0, 1] = table[1, 0] = math.nan
    planted._overlaps[None] = table
    (family,) = planted.families(1)
    assert family.overlap == 0.5
