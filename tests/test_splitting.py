"""Images in groups by how the network computes a feature, on a unit whose mechanisms are known."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import convcircuits as cc
import twofold
from convcircuits.network.batches import Batches
from convcircuits.subfeatures import shuffling
from convcircuits.subfeatures.chosen import Chosen
from convcircuits.subfeatures.grouping import FEWEST, Coordinates, two_groups_p_value
from convcircuits.subfeatures.splitting import _named, _Tree, held_out_of
from convcircuits.zoo.planted import plant, planted_images, polysemantic

torch.set_num_threads(1)

OPTIONS = {"densities": [0.4, 0.25], "shuffles": 1}


def same(labels, truth):
    """Return whether two divisions into two are the same, whatever the names."""
    return bool((labels == truth.long()).all() or (labels == 1 - truth.long()).all())


def test_a_unit_of_two_mechanisms_is_divided_and_its_circuits_are_theirs():
    made, blue = twofold.images(80)
    found = cc.split(twofold.net(), twofold.FEATURE, made, **OPTIONS)
    assert len(found) == 2
    assert same(found.labels, blue)
    assert found.held_out.sum() == 32
    assert found.cross.verdict == "selective"
    assert found.divisions[0].p_value < 0.05
    assert found.divisions[0].kept
    assert "2 mechanisms" in found.verdict_sentence
    assert [one.groups for one in found.divisions] == [("A", "B"), ("A",), ("B",)]
    why = ("not fall into two", "too few", "too small")
    lines = [line for line in found.summary().splitlines() if any(each in line for each in why)]
    assert [line[:3] for line in lines] == ["A: ", "B: "]
    other = dataclasses.replace(found, cross=dataclasses.replace(found.cross))  # of groups that were merged
    assert other.verdict_sentence.endswith(f"These two groups: {found.cross.verdict_sentence}")
    assert "These two" not in found.verdict_sentence
    third = dataclasses.replace(found, circuits={**found.circuits, "C": found.circuits["A"]})
    assert third.verdict_sentence.endswith(f"All 3 groups together: {found.cross.verdict_sentence}")
    for name, circuits in found.circuits.items():
        color = "blue" if blue[found.images(name)[0]] else "red"
        assert circuits[-1].kernels == twofold.circuit(color).kernels
    assert found.confidence.min() > 0.3


def test_circuits_and_those_of_the_control_are_found_on_so_many_images_of_a_group_at_most(monkeypatch):
    made, _ = twofold.images(80)
    again = []
    monkeypatch.setattr(
        shuffling, "found_again", lambda model, like, images, **given: again.append(images.total_images) or like[-1]
    )
    every = cc.split(twofold.net(), twofold.FEATURE, made, groups=2, max_images=None, **OPTIONS)
    trained = [len(every.images(name, held_out=False)) for name in "AB"]
    assert sum(trained) == 48
    assert again == trained
    assert not any("drawn at random" in note for note in every.notes)
    enough = cc.split(twofold.net(), twofold.FEATURE, made, groups=2, max_images=max(trained), **OPTIONS)
    assert enough.cross.as_dict() == every.cross.as_dict()
    again.clear()
    few = cc.split(twofold.net(), twofold.FEATURE, made, groups=2, max_images=10, **OPTIONS)
    assert again == [10, 10]
    assert few.labels.tolist() == every.labels.tolist()
    assert few.held_out.tolist() == every.held_out.tolist()
    assert few.cross.groups == every.cross.groups
    assert not (few.found_on & few.held_out).any()
    for name, circuits in few.circuits.items():
        part = few.labels == list(few.circuits).index(name)
        assert (every.found_on & part).tolist() == (~every.held_out & part).tolist()
        again_on = Batches(made[few.found_on & part], device=made.device, dtype=made.dtype, batch_size=8)
        assert len(list(again_on.hashed())) == 2
        assert again_on.describe() == circuits[0].provenance["images"]
        seen = [one.provenance["images"] for one in circuits]
        assert {one["count"] for one in seen} == {10}
        assert few.cross.provenance["fitted_on"][name] == seen[0]
        assert circuits[-1].kernels == every.circuits[name][-1].kernels
    said = f"on 10 of the {trained[0]} training images of group A and on 10 of the {trained[1]} of group B"
    assert f"Circuits were found {said}, drawn at random." in few.notes
    assert few.provenance["max_images"] == 10
    whole = cc.split(twofold.net(), twofold.FEATURE, made, groups=1, max_images=10, **OPTIONS)
    assert "Circuits were found on 10 of the 48 training images, drawn at random." in whole.notes


def test_a_unit_of_one_mechanism_is_not_divided():
    made, blue = twofold.images(200)
    found = cc.split(twofold.net(), twofold.FEATURE, made[~blue], **OPTIONS)
    assert len(found) == 1
    assert set(found.labels.tolist()) == {0}
    assert found.cross is None
    assert not found.divisions[0].kept
    assert "one mechanism" in found.verdict_sentence


def test_what_the_first_cut_divides_although_it_is_one_mechanism_is_merged(monkeypatch):
    planted, halves = polysemantic(1, mechanisms=3), _Tree._halves
    made, truth = planted.labelled_images(150)
    first = (truth == 0) & (torch.arange(len(truth)) % 2 == 0)

    def cut(tree, part, count):
        """Cut the whole through a mechanism, and its parts where they part."""
        whole = len(part) == part.sum()
        return {"A": first | (truth == 1), "B": ~(first | (truth == 1))} if whole else halves(tree, part, count)

    monkeypatch.setattr(_Tree, "_halves", cut)
    found = cc.split(planted.model, planted.feature, made, densities=[0.25], shuffles=1)
    assert sorted(truth[found.images(name)].unique().tolist() for name in found.circuits) == [[0], [1], [2]]
    last = found.divisions[-1]
    assert last.sentence.startswith("Two groups are not told apart. The circuits are not sel")
    assert (last.kept, last.supported, last.images, len(last.groups)) == (False, False, 30, 1)


class Dealt(_Tree):
    """Images of pieces that are named by digits and cut as told.

    All groups are told apart but those in ``alike``, two names -> their selectivity. ``order`` is that of the pieces'
    images, and ``compared`` the names of the groups of each cross-test.
    """

    def __init__(self, cuts, alike=(), order="0123"):
        self.cuts, self.alike, self.compared = cuts, {frozenset(pair): of for pair, of in dict(alike).items()}, []
        self.pieces = torch.tensor([int(one) for one in order]).repeat_interleave(20)
        train = torch.arange(len(self.pieces)) % 2 == 0
        names = np.arange(len(self.pieces))
        how = {"alpha": 0.05, "held_out": 0.4, "noun": "photograph", "max_images": None, "seed": 0}
        super().__init__(None, names, train, **how, find_all=lambda some, called: [], cross_all=self.compare)

    def of(self, part):
        return "".join(str(one) for one in self.pieces[part].unique().tolist())

    def p_value(self, part):
        return (0.0 if self.of(part) in self.cuts else 1.0), 100

    def _halves(self, part, count):
        named = [torch.isin(self.pieces, torch.tensor([int(one) for one in some])) for some in self.cuts[self.of(part)]]
        return _named(named)

    def compare(self, circuits, tested, trained):
        pair = frozenset(self.of(part) for part in tested.values())
        assert pair == {self.of(part) for part in trained.values()}
        self.compared.append(pair)
        value = self.alike.get(pair, 1.0)
        word = "not selective" if value <= 0 else "not decided" if value < 1 else "selective"
        said = f"{' and '.join(sorted(pair))}: {word}."
        return SimpleNamespace(
            verdict=word, verdict_sentence=said, chosen=1, selectivity=[None, SimpleNamespace(value=value)]
        )

    def groups(self):
        return sorted(self.of(part) for part in self.divide(torch.ones(len(self.pieces), dtype=torch.bool)).values())


CUTS = {"0123": ["01", "23"], "01": ["0", "1"], "23": ["2", "3"]}


def test_what_is_merged_is_compared_with_all_other_groups_and_no_two_groups_twice():
    assert Dealt(CUTS).groups() == ["0", "1", "2", "3"]
    assert Dealt(CUTS, {("0", "2"): 0}).groups() == ["02", "1", "3"]
    tree = Dealt(CUTS, {("0", "2"): 0, ("02", "1"): 0.5})  # 0 and 1 were told apart, 1 and all that is alike are not
    assert tree.groups() == ["012", "3"]
    assert [one.supported for _, one in tree.tried][-2:] == [False, None]
    assert tree.tried[-1][1].sentence == "Two groups are not told apart. 02 and 1: not decided. So they are one group."
    assert len(tree.compared) == len(set(tree.compared)) == 10  # 01|23, each two of 0 to 3, those with 02, 012|3


@pytest.mark.parametrize("order", ["0123", "3210", "2013", "1302"])
@pytest.mark.parametrize("turned", [False, True])
def test_which_groups_are_merged_does_not_depend_on_their_order(order, turned):
    cuts = {whole: some[::-1] if turned else some for whole, some in CUTS.items()}
    assert Dealt(cuts, {("0", "2"): 0.2, ("0", "3"): 0.1, ("1", "2"): 0.3}, order).groups() == ["03", "12"]
    assert Dealt(cuts, {("0", "2"): -0.2, ("0", "3"): -0.1, ("02", "3"): 0.9}, order).groups() == ["023", "1"]
    named = Dealt(cuts, order=order).divide(torch.ones(80, dtype=torch.bool))
    assert {name: part.nonzero()[0].item() for name, part in named.items()} == {"A": 0, "B": 20, "C": 40, "D": 60}


def test_if_all_would_be_merged_the_parts_that_are_told_apart_stay():
    tree = Dealt(CUTS, {("0", "2"): 0, ("02", "1"): 0, ("012", "3"): 0})
    assert tree.groups() == ["01", "23"]
    assert [one.kept for _, one in tree.tried][-4:] == [False, False, False, True]
    assert tree.tried[-1][1].sentence.endswith("told apart. 01 and 23: selective. So these are the groups.")


def test_the_number_of_groups_can_be_given():
    made, blue = twofold.images(60)
    found = cc.split(twofold.net(), twofold.FEATURE, made, groups=2, **OPTIONS)
    assert same(found.labels, blue)
    assert found.asked
    assert found.verdict_sentence.startswith("2 groups were asked for. The tests support several mechanisms of 2:0@max")
    three = cc.split(twofold.net(), twofold.FEATURE, made, groups=3, **OPTIONS)
    assert len(three) == 3
    assert sorted(three.labels.unique().tolist()) == [0, 1, 2]
    assert len(three.images("A")) >= len(three.images("B")) >= len(three.images("C"))


def test_groups_that_were_asked_for_are_not_called_mechanisms_without_support():
    made, blue = twofold.images(200)
    whole = cc.split(twofold.net(), twofold.FEATURE, made[~blue], groups=2, **OPTIONS)
    assert whole.divisions[0].supported is False
    assert whole.verdict_sentence.startswith("2 groups were asked for. The tests do not support several mechanisms")
    assert whole.summary().startswith(whole.verdict_sentence)
    assert whole.summary().count(whole.cross.verdict_sentence) == 1
    assert whole.cross.verdict_sentence in whole.cross.summary()
    few = cc.split(twofold.net(), twofold.FEATURE, made[:24], groups=2, **OPTIONS)
    assert few.divisions[0].supported is None
    assert "The tests do not decide on several mechanisms" in few.verdict_sentence
    assert "14 photographs are too few to tell" in few.verdict_sentence
    one = cc.split(twofold.net(), twofold.FEATURE, made, groups=1, densities=[0.4])
    assert one.verdict_sentence.startswith("One group was asked for, so more than one mechanism")
    assert (len(one), one.divisions[0].kept, one.divisions[0].supported) == (1, False, None)


def test_phases_say_what_is_done():
    made, _ = twofold.images(24)
    phases = []

    class Told:
        def phase(self, name):
            phases.append(name)

        def __call__(self, done, total):
            pass

    cc.split(twofold.net(), twofold.FEATURE, made, groups=1, progress=Told(), **OPTIONS)
    assert phases == [
        "looking for copies of images",
        "reading how each image is computed",
        "finding circuits of all images",
        "refitting circuits of all images, size 1 of 2",
        "refitting circuits of all images, size 2 of 2",
    ]


@pytest.mark.parametrize("loaded", [False, True])
def test_progress_knows_how_much_there_is_to_do(loaded):
    made, _ = twofold.images(40)
    copied = torch.cat([made, made[:4]])
    told = {}

    class Told:
        def phase(self, name):
            told[name] = []

        def __call__(self, done, total):
            next(reversed(told.values())).append((done, total))

    given = [copied[:20], copied[20:]] if loaded else copied
    cc.split(twofold.net(), twofold.FEATURE, given, groups=2, progress=Told(), batch_size=8, **OPTIONS)
    assert list(told)[2:] == [
        *(
            f"{what} of group {n} of 2{size}"
            for n in (1, 2)
            for what, size in (
                ("finding circuits", ""),
                ("refitting circuits", ", size 1 of 2"),
                ("refitting circuits", ", size 2 of 2"),
            )
        ),
        "measuring every circuit on every group",
        "measuring every circuit on the images that it was found on",
        *(
            f"{what} the circuit of shuffled group {n} of 2, control 1 of 1"
            for n in (1, 2)
            for what in ("finding", "refitting")
        ),
        "measuring the circuits of shuffled groups",
    ]
    for phase, steps in list(told.items())[2:]:
        assert steps, phase
        assert len({total for _, total in steps}) == 1, phase
        assert steps[-1][0] == steps[-1][1], phase
        assert [done for done, _ in steps] == sorted({done for done, _ in steps}), phase


def test_held_out_images_and_crops_of_one_photograph_stay_together():
    made, _ = twofold.images(60)
    photographs = [n // 2 for n in range(60)]
    found = cc.split(twofold.net(), twofold.FEATURE, made, photographs=photographs, groups=2, **OPTIONS)
    assert found.held_out.reshape(30, 2).all(1).sum() * 2 == found.held_out.sum() == 24
    copied = torch.cat([made, made[:20]])
    again = cc.split(twofold.net(), twofold.FEATURE, copied, groups=2, **OPTIONS)
    assert again.held_out[:20].tolist() == again.held_out[60:].tolist()
    assert any("20 images are copies" in note for note in again.notes)


def test_a_loader_gives_what_a_tensor_does_and_seeds_repeat():
    made, _ = twofold.images(40)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(made), batch_size=7)
    one, other = (cc.split(twofold.net(), twofold.FEATURE, some, groups=2, **OPTIONS) for some in (made, loader))
    assert one.labels.tolist() == other.labels.tolist()
    assert one.cross.verdict_sentence == other.cross.verdict_sentence
    assert list(one.circuits) == list(other.circuits)
    for name, circuits in one.circuits.items():
        assert [dict(a.kernels) for a in circuits] != []
        assert all(cc.iou(a, b) == 1 for a, b in zip(circuits, other.circuits[name], strict=True))


def test_images_without_a_response_are_left_out():
    made, _ = twofold.images(40)
    silent = torch.full((5, 3, 12, 12), -1.0).double() - torch.arange(5)[:, None, None, None]
    found = cc.split(twofold.net(), twofold.FEATURE, torch.cat([made, silent]), groups=2, **OPTIONS)
    assert found.labels[40:].tolist() == [-1] * 5
    assert not found.held_out[40:].any()
    assert any("on 5 of 45 images; they are left out" in note for note in found.notes)
    assert [row["group"] for row in found.rows()][40:] == [""] * 5


def test_what_cannot_be_split_is_refused():
    made, _ = twofold.images(40)

    def refused(match, images=made, **options):
        with pytest.raises(cc.ConvCircuitsError, match=match):
            cc.split(twofold.net(), twofold.FEATURE, images, **options)

    refused(
        "is above 0, and at least 5% of its highest response, on 0 of 3 images",
        images=torch.full((3, 3, 12, 12), -1.0).double(),
    )
    refused("takes at least 40", groups=20, images=made[:30])
    silent = torch.full((2, 3, 12, 12), -1.0).double()
    refused("on 1 of 3 images, of 1 photograph;", images=torch.cat([made[:1], silent]))
    refused("held_out must be between 0 and 1", held_out=1.0)
    refused("alpha must be between 0 and 1", alpha=True)
    refused("one photograph for each image", photographs=[1, 2])
    refused("groups must be", groups=0)
    refused(r"densities must be one or more shares in \(0, 1\]; got \[\]", densities=[])
    refused(r"densities must be .* got \[1.5, 0.2\]", densities=[0.2, 1.5])
    refused("refit must be one of .* got 'best'", refit="best")
    data = torch.utils.data.TensorDataset(made)
    refused("not the same in every pass", images=torch.utils.data.DataLoader(data, batch_size=8, shuffle=True))
    with pytest.raises(cc.ConvCircuitsError, match="no group 'Z'"):
        cc.split(twofold.net(), twofold.FEATURE, made, groups=2, **OPTIONS).images("Z")


def test_what_is_tested_ends_with_the_size_that_the_verdict_is_about():
    made, _ = twofold.images(60)
    found = cc.split(twofold.net(), twofold.FEATURE, made, groups=2, **OPTIONS)
    for chosen, sizes in ((0, 1), (1, 2)):
        one = dataclasses.replace(found, cross=dataclasses.replace(found.cross, chosen=chosen))
        assert one.tested_circuits() == {name: some[:sizes] for name, some in found.circuits.items()}
    assert dataclasses.replace(found, cross=None).tested_circuits() == found.circuits


def test_both_sides_have_photographs_whatever_share_is_held_out():
    made, _ = twofold.images(20)
    for share, held in ((0.01, 1), (0.99, 19)):
        found = cc.split(twofold.net(), twofold.FEATURE, made, held_out=share, **OPTIONS)
        assert int(found.held_out.sum()) == held


def test_too_few_photographs_are_said():
    made, _ = twofold.images(20)
    found = cc.split(twofold.net(), twofold.FEATURE, made, **OPTIONS)
    assert len(found) == 1
    assert "12 photographs are too few to tell" in found.verdict_sentence
    found = cc.split(twofold.net(), twofold.FEATURE, made[:2], **OPTIONS)
    assert "1 photograph is too few to tell" in found.verdict_sentence


@pytest.mark.parametrize(("share", "needed"), [(0.4, 33), (0.5, 40), (0.01, 21), (0.999, 19500)])
def test_it_is_said_how_many_photographs_it_takes(share, needed):
    made, _ = twofold.images(20)
    found = cc.split(twofold.net(), twofold.FEATURE, made, held_out=share, **OPTIONS)
    assert f"It takes 20, that is {needed} with the held-out ones." in found.verdict_sentence
    for count, enough in ((needed, True), (needed - 1, False)):
        assert (count - held_out_of(count, share) >= FEWEST) == enough


def test_subjects_of_photographs_are_not_called_photographs():
    made, _ = twofold.images(24)
    found = cc.split(
        twofold.net(),
        twofold.FEATURE,
        made,
        photographs=[n // 2 for n in range(24)],
        subjects=True,
        groups=2,
        **OPTIONS,
    )
    assert "7 subjects are too few to tell" in found.verdict_sentence
    assert any("held-out subject" in note for note in found.cross.notes)
    assert not any("held-out photograph" in note for note in found.cross.notes)


def test_coordinates_ignore_the_strength_of_a_response():
    dice = torch.Generator().manual_seed(0)
    vectors = {"a": torch.randn(30, 8, generator=dice), "b": torch.randn(30, 5, generator=dice)}
    strength = 10 ** torch.rand(30, 1, generator=dice)
    one, other = (
        Coordinates.learned(some).of(some) for some in (vectors, {k: strength * v for k, v in vectors.items()})
    )
    np.testing.assert_allclose(one, other, atol=1e-6)


@pytest.mark.parametrize(("images", "sizes", "rank"), [(60, (300, 80), 40), (300, (20, 8), 28), (60, (300, 80), 4)])
@pytest.mark.parametrize("components", [10, 400])
def test_coordinates_are_those_of_a_full_decomposition(images, sizes, rank, components):
    dice = np.random.default_rng(0)
    ways = dice.normal(size=(images, rank)) * 0.8 ** np.arange(rank)
    tables = [ways @ dice.normal(size=(rank, size)) for size in sizes]
    vectors = {f"{n}": torch.from_numpy(table) for n, table in enumerate(tables)}
    learned = Coordinates.learned(vectors, components)
    found = learned.of(vectors)

    def unit(table):
        return table / np.linalg.norm(table, axis=1, keepdims=True)

    whole = np.concatenate([unit(unit(table) - unit(table).mean(0)) for table in tables], 1)
    left, values, right = np.linalg.svd(whole - whole.mean(0), full_matrices=False)
    kept = min(components, int((values > 1e-9 * values[0]).sum()))
    assert found.shape == (images, kept)
    signs = np.sign((learned.basis * right[:kept].T).sum(0))
    np.testing.assert_allclose(learned.basis * signs, right[:kept].T, atol=1e-10)
    np.testing.assert_allclose(found * signs, left[:, :kept] * values[:kept], atol=1e-10)
    np.testing.assert_array_equal(found, Coordinates.learned(vectors, components).of(vectors))


@pytest.mark.slow
def test_planted_units_of_one_mechanism_are_rarely_called_several():
    called = []
    for seed in range(60):
        planted = plant(seed)
        maximum = cc.Feature(planted.feature.layer, planted.feature.unit, position="max")
        found = cc.split(planted.model, maximum, planted_images(60, seed=1000 + seed), densities=[0.3], shuffles=1)
        called.append(len(found) > 1)
    assert sum(called) <= 6  # 5 % of 60 are 3; more than 6 have a probability of 3 %


def test_the_p_value_does_not_see_copies_of_crops():
    dice = torch.Generator().manual_seed(0)
    one = {"a": torch.randn(40, 6, generator=dice)}
    ten = {"a": one["a"].repeat_interleave(10, 0)}
    assert two_groups_p_value(ten, np.repeat(np.arange(40), 10), 0) == pytest.approx(
        two_groups_p_value(one, np.arange(40), 0), abs=0.2
    )
    assert two_groups_p_value(ten, np.repeat(np.arange(19), 22)[:400], 0) == 1.0


def test_chosen_images_can_be_read_again_and_must_stay_the_same():
    made, blue = twofold.images(10)
    chosen = Chosen([made[:4], made[4:]], blue)
    for _ in range(2):
        torch.testing.assert_close(torch.cat(list(chosen)), made[blue])
    with pytest.raises(cc.ConvCircuitsError, match="yielded 10 images in one pass and 4 in the next"):
        list(Chosen([made[:4]], blue))


def test_what_too_few_photographs_cannot_tell_is_no_answer():
    made, _ = twofold.images(24)
    found = cc.split(twofold.net(), twofold.FEATURE, made, **OPTIONS)
    assert (len(found), found.divisions[0].supported) == (1, None)
    assert found.verdict_sentence.startswith(
        "It cannot be told whether 2:0@max has several mechanisms on these images. "
    )
