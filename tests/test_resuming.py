"""A run that was stopped goes on from what it has kept, and from nothing else."""

import pytest
import torch

import convcircuits as cc
import twofold
from convcircuits.circuits.resuming import Kept
from convcircuits.subfeatures import baselines, shuffling, splitting

torch.set_num_threads(1)

OPTIONS = {"groups": 2, "densities": [0.4], "shuffles": 1, "refit": "none"}


class Stopped(BaseException):
    """As on Ctrl-C."""


@pytest.fixture
def made():
    return twofold.images(16)[0]


@pytest.fixture
def work(monkeypatch):
    """Count what is computed: saliencies, circuits of groups and of the control; stop before one if asked to."""
    done = {"stop": None, "all": []}

    def counted(name, real):
        def call(*args, **options):
            if len(done["all"]) == done["stop"]:
                raise Stopped
            done["all"].append(name)
            return real(*args, **options)

        return call

    for module, name in ((splitting, "image_saliencies"), (splitting, "circuits_of_group"), (shuffling, "found_again")):
        monkeypatch.setattr(module, name, counted(name, getattr(module, name)))
    return done


def same(one, other):
    assert one.rows() == other.rows()
    assert one.summary() == other.summary()
    assert one.cross.as_dict() == other.cross.as_dict()
    assert {name: list(some) for name, some in one.circuits.items()} == {
        name: list(some) for name, some in other.circuits.items()
    }


@pytest.mark.parametrize("stop", [1, 2, 4])
def test_a_stopped_split_goes_on_and_finds_what_an_undisturbed_one_finds(tmp_path, made, work, stop):
    options = OPTIONS | {"densities": [0.4, 0.25], "refit": "filters"}
    expected = cc.split(twofold.net(), twofold.FEATURE, made, **options)
    total = ["image_saliencies", *["circuits_of_group"] * 2, *["found_again"] * 2]
    assert work["all"] == total
    work.update(stop=stop, all=[])
    with pytest.raises(Stopped):
        cc.split(twofold.net(), twofold.FEATURE, made, checkpoint=tmp_path / "new", **options)
    work.update(stop=None, all=[])
    found = cc.split(twofold.net(), twofold.FEATURE, made, checkpoint=tmp_path / "new", **options)
    assert work["all"] == total[stop:]
    same(found, expected)
    work["all"].clear()
    same(cc.split(twofold.net(), twofold.FEATURE, made, checkpoint=tmp_path / "new", **options), expected)
    assert work["all"] == []


def test_stopped_groupings_go_on_also_from_what_a_split_has_kept(tmp_path, made, work, monkeypatch):
    for name in ("image_saliencies", "circuits_of_group"):
        monkeypatch.setattr(baselines, name, getattr(splitting, name))
    options = {"density": 0.4, "embedding": "0", "refit": "none", "resamples": 0}
    expected = cc.groupings(twofold.net(), twofold.FEATURE, made, **options)
    total = work["all"]
    assert total[:3] == ["image_saliencies", *["circuits_of_group"] * 2]
    work.update(stop=2, all=[])
    with pytest.raises(Stopped):
        cc.groupings(twofold.net(), twofold.FEATURE, made, checkpoint=tmp_path, **options)
    work.update(stop=None, all=[])
    found = cc.groupings(twofold.net(), twofold.FEATURE, made, checkpoint=tmp_path, **options)
    assert work["all"] == total[2:]
    assert found.summary() == expected.summary()
    assert {by: labels.tolist() for by, labels in found.labels.items()} == {
        by: labels.tolist() for by, labels in expected.labels.items()
    }
    work["all"].clear()
    cc.split(twofold.net(), twofold.FEATURE, made, checkpoint=tmp_path, **OPTIONS)
    assert set(work["all"]) == {"found_again"}  # saliencies and the circuits of both groups are there


CHANGED = {
    "weights": lambda made: (twofold.net(leak=0.1), twofold.FEATURE, made, {}),
    "a direction": lambda made: (twofold.net(), cc.Feature("2", 1, position="max"), made, {}),
    "an image": lambda made: (twofold.net(), twofold.FEATURE, torch.cat([made[:1] * 1.01, made[1:]]), {}),
    "the order": lambda made: (twofold.net(), twofold.FEATURE, made.flip(0), {}),
    "the seed": lambda made: (twofold.net(), twofold.FEATURE, made, {"seed": 1}),
    "the batches": lambda made: (twofold.net(), twofold.FEATURE, made, {"batch_size": 7}),
}


@pytest.mark.parametrize("change", CHANGED)
def test_nothing_is_taken_from_another_run(tmp_path, made, work, change):
    cc.split(twofold.net(), twofold.FEATURE, made, checkpoint=tmp_path, **OPTIONS)
    model, feature, images, options = CHANGED[change](made)
    work["all"].clear()
    found = cc.split(model, feature, images, checkpoint=tmp_path, **OPTIONS, **options)
    assert work["all"][:3] == ["image_saliencies", *["circuits_of_group"] * 2]
    same(found, cc.split(model, feature, images, **OPTIONS, **options))


@pytest.mark.parametrize(
    ("option", "reused"),
    [({"densities": [0.3]}, 1), ({"refit": "filters"}, 1), ({"criterion": "actgrad"}, 1), ({"shuffles": 2}, 5)],
)
def test_what_does_not_depend_on_an_option_is_reused(tmp_path, made, work, option, reused):
    cc.split(twofold.net(), twofold.FEATURE, made, checkpoint=tmp_path, **OPTIONS)
    options = {**OPTIONS, **option}
    work["all"].clear()
    found = cc.split(twofold.net(), twofold.FEATURE, made, checkpoint=tmp_path, **options)
    kept, work["all"] = len(work["all"]), []
    same(found, cc.split(twofold.net(), twofold.FEATURE, made, **options))
    assert kept == len(work["all"]) - reused


def test_what_is_kept_is_removed_and_other_files_are_not(tmp_path):
    folder = tmp_path / "new"
    kept = Kept(folder, run=1)
    kept.clear()
    assert not folder.exists()
    assert torch.equal(kept.tensors(lambda: {"a": torch.ones(3)})["a"], torch.ones(3))
    assert torch.equal(kept.tensors(lambda: pytest.fail("made again"))["a"], torch.ones(3))
    (folder / "mine.txt").write_text("mine")
    kept.clear()
    assert [path.name for path in folder.iterdir()] == ["mine.txt"]
    (folder / "mine.txt").unlink()
    kept.clear()
    assert not folder.exists()


def test_damage_is_refused_and_so_is_what_cannot_be_a_key(tmp_path, made):
    kept = Kept(tmp_path)
    kept.tensors(lambda: {"a": torch.ones(3)})
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(cc.ConvCircuitsError, match=r"is damaged .*; remove it"):
        kept.tensors(lambda: {"a": torch.ones(3)})
    with pytest.raises(cc.ConvCircuitsError, match="can be written as JSON"):
        kept.circuits(list, criterion=len)
    (tmp_path / "file").touch()
    with pytest.raises(cc.ConvCircuitsError, match="file cannot be created"):
        Kept(tmp_path / "file").tensors(lambda: {"a": torch.ones(3)})
