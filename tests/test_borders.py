"""Groups of images that are no more than the border of the map, told from those that are more."""

import itertools
import math

import pytest
import torch

import bordered
import convcircuits as cc
import twofold
from convcircuits.maps.interior import Positions
from convcircuits.values.borders import APART, PLACES, SURE, Borders, fisher

torch.set_num_threads(1)

OPTIONS = {"densities": [0.25], "shuffles": 1}


def slowly(model, images, labels, side=bordered.SIDE, seen=bordered.SEEN):
    """Count each group's images at each place, one by one."""
    counts = {place: [0] * (int(labels.max()) + 1) for place in PLACES}
    for image, label in zip(images, labels.tolist(), strict=True):
        if label < 0:
            continue
        (map_,) = model(image[None])[:, 0].tolist()
        _, row, column = max(
            (map_[row][column], -row, -column) for row, column in itertools.product(range(side), range(side))
        )
        row, column = -row, -column
        sides = {"top": row == 0, "bottom": row == side - 1, "left": column == 0, "right": column == side - 1}
        inside = seen <= row < side - seen and seen <= column < side - seen
        for place, there in {"padding": not inside, "edge": any(sides.values()), **sides}.items():
            counts[place][label] += there
    return {place: tuple(some) for place, some in counts.items()}


@pytest.fixture(scope="module")
def at_corners():
    made, red = bordered.images(80)
    return cc.split(bordered.net(), bordered.FEATURE, made, groups=2, **OPTIONS), made, red


def test_groups_that_are_the_border_are_said_to_be_with_the_verdict(at_corners):
    found, _, red = at_corners
    assert found.verdict_sentence.startswith("2 groups were asked for. The tests support several mechanisms of 2:0@max")
    assert found.borders.separate
    assert found.verdict_sentence.endswith("But these groups may be the border of the images: see the notes.")
    corners, squares = sorted(found.circuits, key=lambda name: bool(red[found.images(name)[0]]))
    said = next(note for note in found.notes if note.startswith("The groups differ in where the feature is highest"))
    assert f"on 40 of 40 images of group {corners}" in said
    assert f"on 0 of 40 images of group {squares}" in said
    assert "may be the border of the images, and not mechanisms" in said
    assert said in found.summary()
    lines = {line[0]: line for line in found.summary().splitlines() if line[1:12] == ": 40 images"}
    assert lines[corners].endswith("; highest where padding is seen on 100%, at the edge of the map on 100%")
    assert lines[squares].endswith("; highest where padding is seen on 0%, at the edge of the map on 0%")
    assert "sees padding" in found._repr_html_()
    (again,) = (note for note in found.cross.notes if "The groups differ in where" in note)
    held = {name: len(found.images(name, held_out=True)) for name in found.circuits}
    assert f"on {held[corners]} of {held[corners]} held-out images of group {corners}" in again


def test_counts_are_those_of_a_slow_count(at_corners):
    found, made, _ = at_corners
    assert dict(found.borders.counts) == slowly(bordered.net(), made, found.labels)
    squares, _ = twofold.images(60)
    other = cc.split(twofold.net(), twofold.FEATURE, squares, groups=2, **OPTIONS)
    assert dict(other.borders.counts) == slowly(twofold.net(), squares, other.labels)
    assert 0 < other.borders.share("A") < other.borders.share("B") < 1
    assert other.borders.share("A", "edge") == 0


def test_groups_with_and_without_padding_alike_are_not_called_the_border():
    made, _ = twofold.images(80)
    found = cc.split(twofold.net(), twofold.FEATURE, made, **OPTIONS)
    assert len(found) == 2
    assert not found.borders.separate
    assert "border" not in found.verdict_sentence
    assert not any("where the feature is highest" in note for note in (*found.notes, *found.cross.notes))


def test_boxes_inside_the_images_keep_away_from_the_border():
    made, _ = bordered.images(40)
    inside = cc.Boxes.of(made, torch.tensor([3, 3, 6, 6]).expand(40, 4))
    found = cc.split(bordered.net(), cc.Feature("2", 0, position=inside), made, groups=2, **OPTIONS)
    assert set(found.borders.counts["padding"]) == {0}
    assert not found.borders.separate


def test_without_padding_no_position_is_at_the_border():
    model = bordered.net()
    model[0].padding = model[2].padding = (0, 0)
    made, _ = bordered.images(40)
    with torch.no_grad():
        model[0].bias[3:] = 3  # above 0 everywhere
    found = cc.split(model, bordered.FEATURE, made, groups=2, **OPTIONS)
    assert {count for some in found.borders.counts.values() for count in some} == {0}


def test_images_of_several_sizes_have_maps_of_several_sizes():
    made, _ = bordered.images(40)
    larger = torch.nn.functional.pad(bordered.images(40, seed=1)[0], (0, 4, 0, 4), mode="replicate")
    found = cc.split(bordered.net(), bordered.FEATURE, [made, larger], groups=2, **OPTIONS | {"shuffles": 0})
    one, other = (
        slowly(bordered.net(), some, labels, side=side)
        for some, labels, side in ((made, found.labels[:40], 12), (larger, found.labels[40:], 16))
    )
    assert dict(found.borders.counts) == {
        place: tuple(a + b for a, b in zip(one[place], other[place], strict=True)) for place in PLACES
    }


def test_what_cannot_be_checked_is_said(monkeypatch):
    def unknown(self, shape):
        raise cc.ConvCircuitsError("Layer 'x' mixes positions.")

    made, _ = bordered.images(40)
    monkeypatch.setattr(Positions, "fields", unknown)
    found = cc.split(bordered.net(), bordered.FEATURE, made, groups=2, **OPTIONS)
    assert found.borders is None
    (said,) = (note for note in found.notes if "sees padding" in note)
    assert said.endswith("is not known: Layer 'x' mixes positions.")
    assert said in found.cross.notes
    assert found.summary().count(said) == 1
    assert "padding is seen" not in found.summary().split("note:")[0]
    assert "sees padding" in found._repr_html_()
    by = cc.groupings(bordered.net(), bordered.FEATURE, made, density=None, resamples=0)
    assert all(math.isnan(row.border) and not row.by_border for row in by.rows)
    assert said in by.notes


def test_groupings_say_which_descriptions_find_the_border():
    made, red = bordered.images(60)
    made[::2, 2] += 0.5 * (torch.arange(30) % 2).double()[:, None, None]  # what the unit does not see
    known = (torch.arange(60) // 2 % 2).tolist()
    by = cc.groupings(bordered.net(), bordered.FEATURE, made, known=known, density=0.4, refit="none", resamples=0)
    for row in by.rows:
        counts = slowly(bordered.net(), made, by.labels[row.by])
        assert dict(by.borders[row.by].counts) == counts
        sizes = by.labels[row.by].bincount().tolist()
        gaps = [abs(some[0] / sizes[0] - some[1] / sizes[1]) for some in counts.values()]
        assert row.border == pytest.approx(max(gaps))
    assert by["saliencies"].border == 1
    assert by["saliencies"].by_border
    assert not by["shuffled"].by_border
    assert not by["known groups"].by_border
    assert "1.00*" in by.summary()
    (said,) = (note for note in by.notes if note.startswith("* By saliencies: "))
    assert "on 30 of 30 images of group" in said
    assert by["saliencies"].as_dict()["by_border"] is True
    assert red.sum() == 30


def test_the_rule_takes_a_large_difference_that_is_not_of_chance():
    def of(counts, images):
        counts = {place: counts if place == "top" else (0,) * len(images) for place in PLACES}
        return Borders(dict(zip("ABC", images, strict=False)), counts)

    assert of((30, 2), (30, 40)).separate
    assert not of((15, 2), (40, 40)).separate  # .33
    assert not of((3, 0), (3, 3)).separate  # may be chance
    assert of((2, 30, 4), (40, 30, 40)).gap.groups == ("B", "A")
    assert of((30, 2), (30, 40)).difference == pytest.approx(0.95)
    assert math.isnan(of((3,), (3,)).difference)
    assert of((3,), (3,)).sentence == ""
    assert of((3, 0), (3, 0)).gap is None
    assert of((30, 2), (30, 40)).as_dict()["place"] == "top"
    small = of((4, 0), (4, 100))
    assert (small.difference, small.separate) == (1, True)
    assert small.gap.p_value == pytest.approx(6 * fisher(4, 4, 0, 100))
    assert (APART, SURE) == (0.5, 0.01)


def test_fisher_is_that_of_scipy():
    scipy = pytest.importorskip("scipy.stats")
    dice = torch.Generator().manual_seed(0)
    for _ in range(100):
        n, m = (int(torch.randint(1, 50, (), generator=dice)) for _ in range(2))
        a, b = (int(torch.randint(0, size + 1, (), generator=dice)) for size in (n, m))
        assert fisher(a, n, b, m) == pytest.approx(scipy.fisher_exact([[a, n - a], [b, m - b]])[1])
