"""Boxes: the part of each image in which a feature counts."""

import dataclasses

import pytest
import torch
from torch import nn

import convcircuits as cc
from convcircuits.maps.interior import Positions
from convcircuits.network.capture import Network
from convcircuits.network.masking import Subject
from convcircuits.values.boxes import image_hash
from nets import seeded

MODEL = seeded(lambda: nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 3, padding=1)), 0)()
IMAGES = torch.randn(6, 3, 10, 9, generator=torch.Generator().manual_seed(3)).double()
SHAPE = tuple(IMAGES.shape[1:])
PLACES = [(0, 0), (4, 7), (2, 3), (9, 8), (7, 1), (2, 3)]  # rows and columns of the map, one for each image


def single(place: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return a box with the center of one position's field; fields are 5 x 5, one pixel apart, and padded by 2."""
    return (*place, 1, 1)


def at_places(unit=1):
    return cc.Feature("2", unit, position=cc.Boxes.of(IMAGES, [single(place) for place in PLACES]))


def counted(feature, images=IMAGES, model=MODEL):
    subject = Subject.open(Network(model), feature, tuple(images.shape[1:]))
    maps = cc.activations(model, dataclasses.replace(feature, position="all"), images)
    return Positions(subject).counted(maps, images)


def test_a_box_of_one_position_counts_there():
    assert counted(at_places())[:, 0].tolist() == [row * 9 + column for row, column in PLACES]


def test_of_the_positions_in_a_box_the_highest_counts():
    boxes = [(0, 0, 4, 5), (3, 2, 4, 4), (-5, -5, 8, 30), (6, 5, 40, 2), (0, 0, 10, 9), (8, 0, 2, 9)]
    maps = cc.activations(MODEL, cc.Feature("2", 1), IMAGES)
    found = counted(cc.Feature("2", 1, position=cc.Boxes.of(IMAGES, torch.tensor(boxes))))
    for image, (top, left, height, width) in enumerate(boxes):
        inside = {
            (row, column): float(maps[image, row, column])
            for row in range(10)
            for column in range(9)
            if top <= row + 0.5 <= top + height and left <= column + 0.5 <= left + width
        }
        row, column = max(inside, key=inside.get)
        assert int(found[image]) == row * 9 + column


def test_each_of_several_units_counts_where_it_is_highest():
    boxes = cc.Boxes.of(IMAGES, [(1, 1, 6, 5)] * 6)
    both = counted(cc.Feature("2", [0, 1], position=boxes))
    alone = [counted(cc.Feature("2", unit, position=boxes)) for unit in (0, 1)]
    assert torch.equal(both, torch.stack(alone, 1))


def test_a_box_between_positions_counts_at_the_nearest():
    model = nn.Sequential(nn.Conv2d(3, 4, 1, stride=4)).double()  # fields of 1 pixel at 0, 4 and 8
    feature = cc.Feature("0", 0, position=cc.Boxes.of(IMAGES, [(5, 2, 2, 1)] * 6))
    assert counted(feature, model=model)[:, 0].tolist() == [1 * 3 + 0] * 6


@pytest.mark.parametrize("criterion", ["snip", "actgrad", "gauss_newton"])
def test_scores_in_boxes_are_means_of_scores_at_each_place(criterion):
    """At one position, Gauss-Newton's random sign is squared away, so its scores are exact, too."""
    options = {"normalizer": "sum"}
    found = cc.score(MODEL, at_places(), IMAGES, criterion=criterion, batch_size=4, **options)
    alone = [
        cc.score(MODEL, cc.Feature("2", 1, position=place), IMAGES[n : n + 1], criterion=criterion, **options)
        for n, place in enumerate(PLACES)
    ]
    for layer, values in found.elements.items():
        torch.testing.assert_close(
            values, torch.stack([one[layer] for one in alone]).mean(0), rtol=1e-12, atol=0, equal_nan=True
        )


@pytest.mark.parametrize("whole", ["image", "top"])
def test_a_box_around_the_image_or_its_maximum_is_the_position_max(whole):
    found = cc.top(MODEL, cc.Feature("2", 1), IMAGES, count=6)
    order = found.highest.image[0]
    boxes = [(0, 0, 10, 9)] * 6 if whole == "image" else found.highest.box[0]
    inside = cc.Feature("2", 1, position=cc.Boxes.of(IMAGES[order], boxes))
    best = cc.Feature("2", 1, position="max")
    assert torch.equal(counted(inside), counted(best))
    assert torch.equal(cc.top(MODEL, inside, IMAGES, count=6).highest.value, found.highest.value)
    for criterion, options in (("progressive", {}), ("learned", {"steps": 2, "final": 2})):
        one, other = (
            cc.find(MODEL, feature, IMAGES, kernels=6, criterion=criterion, **options) for feature in (inside, best)
        )
        assert one.kernels == other.kernels
        assert one.gain == other.gain
        report, expected = (cc.evaluate(MODEL, c, IMAGES + 0, fit=IMAGES) for c in (one, other))
        assert report.r2 == expected.r2
        assert report.r2_average_map == expected.r2_average_map


def test_order_and_batches_do_not_matter():
    order, feature = torch.tensor([3, 0, 5, 1, 4, 2]), at_places()
    scores = cc.score(MODEL, feature, IMAGES, criterion="snip", batch_size=6)
    others = cc.score(MODEL, feature, list(IMAGES[order].split(2)), criterion="snip")
    for layer, values in scores.elements.items():
        torch.testing.assert_close(others[layer], values, rtol=1e-12, atol=0, equal_nan=True)
    labelled = [(some, torch.zeros(len(some))) for some in IMAGES[order].split(2)]
    assert cc.Boxes.of(labelled, [single(PLACES[n]) for n in order]) == feature.position


@pytest.mark.parametrize("given", [torch.float32, torch.float64])
def test_images_are_recognized_in_the_models_dtype(given):
    images = IMAGES.float().to(given)
    feature = cc.Feature("2", 1, position=cc.Boxes.of(images, [single(place) for place in PLACES]))
    cc.score(MODEL, feature, images, criterion="snip")


def test_circuits_in_boxes_are_measured_drawn_and_compared():
    feature = at_places()
    circuit = cc.find(MODEL, feature, IMAGES, density=0.5)
    inside = cc.find(MODEL, feature, IMAGES, density=0.25, criterion="snip", circuit=circuit)
    assert all(bool((mask <= circuit.kernels[layer]).all()) for layer, mask in inside.kernels.items())
    assert cc.evaluate(MODEL, circuit, IMAGES).r2 > cc.evaluate(MODEL, inside, IMAGES).r2
    groups = {"a": IMAGES[:3], "b": IMAGES[3:]}
    plain = cc.Circuit.from_masks(MODEL, feature, circuit.kernels)  # found on no images, so these are held out
    crossed = cc.cross(MODEL, {name: [plain] for name in groups}, groups)
    full = cc.activations(MODEL, cc.Feature("2", 1), IMAGES)
    other = cc.activations(MODEL, cc.Feature("2", 1), IMAGES, circuit=plain)
    for name, numbers in (("a", [0, 1, 2]), ("b", [3, 4, 5])):
        values = [(float(full[n][PLACES[n]]), float(other[n][PLACES[n]])) for n in numbers]
        expected = sum(abs(x - y) for x, y in values) / sum(abs(x) for x, _ in values)
        row = next(row for row in crossed.rows if (row.circuit, row.group) == ("a", name))
        assert row.error == pytest.approx(expected, rel=1e-9)
    drawn = cc.diagram(MODEL, circuit, images=IMAGES)
    assert drawn.document.images.target.positions == "the one where the full model is highest within the image's box"


def test_a_file_holds_the_boxes(tmp_path):
    circuit = cc.find(MODEL, at_places(), IMAGES, kernels=5)
    again = cc.load(cc.save(circuit, tmp_path / "circuit.safetensors"))
    assert again.feature == circuit.feature
    assert again.feature.position == circuit.feature.position
    assert cc.evaluate(MODEL, again, IMAGES).r2 == cc.evaluate(MODEL, circuit, IMAGES).r2


def test_a_feature_with_other_boxes_is_another():
    feature = at_places()
    moved = dict(feature.position.by_image)
    moved[image_hash(IMAGES[0])] = (1, 0, 1, 1)
    other = cc.Feature("2", 1, position=cc.Boxes(moved))
    assert feature == at_places()
    assert hash(feature) == hash(at_places())
    assert feature != other
    assert str(feature) != str(other)
    assert str(feature).startswith("2:1@boxes-")
    assert feature.at_maximum() is feature
    assert repr(feature.position) == "Boxes(of 6 images)"
    assert "the maximum within a box of each of" in feature._repr_html_()
    with pytest.raises(cc.ConvCircuitsError, match="counts in boxes of images, which text cannot hold"):
        cc.Feature.parse(str(feature))


@pytest.mark.parametrize(
    ("images", "boxes", "said"),
    [
        (IMAGES, [single((0, 0))] * 5, "There are 6 images but 5 boxes; give one box for each image"),
        (IMAGES, 3, "There are 6 images but int boxes"),
        (IMAGES, [(0, 0, 1)] * 6, "The box of image 0 must be top, left, height and width; got"),
        (IMAGES, [(0, 0, 0, 3)] * 6, "The height of the box of image 0 must be a whole number from 1; got 0"),
        (IMAGES, torch.ones(6, 4), "The top of the box of image 0 must be a whole number .*; got 1.0"),
        (IMAGES[:0], [], "There are no images to give boxes"),
        (IMAGES[0], [], r"must be a tensor \(N, C, H, W\); got shape \(3, 10, 9\)"),
        (IMAGES[[0, 0]], [(0, 0, 1, 1), (0, 0, 2, 1)], "Image 1 is given twice, with the boxes"),
    ],
)
def test_boxes_that_do_not_fit_are_refused(images, boxes, said):
    with pytest.raises(cc.ConvCircuitsError, match=said):
        cc.Boxes.of(images, boxes)


def test_an_image_without_a_box_or_with_one_outside_is_refused():
    with pytest.raises(cc.ConvCircuitsError, match="An image has no box: the feature counts in the boxes of"):
        cc.score(MODEL, at_places(), IMAGES + 1, criterion="snip")
    for box in [(10, 0, 2, 2), (-3, 0, 3, 2), (0, 9, 2, 2), (0, -4, 2, 4)]:
        feature = cc.Feature("2", 1, position=cc.Boxes.of(IMAGES, [box] * 6))
        with pytest.raises(cc.ConvCircuitsError, match="lies outside its image of 10 x 9 pixels"):
            cc.score(MODEL, feature, IMAGES, criterion="snip")


@pytest.mark.parametrize("header", [{"xyz": [0, 0, 1, 1]}, {"0123456789abcdef": [0, 0, 1]}, [1, 2], {}])
def test_a_foreign_header_is_refused(header):
    with pytest.raises(cc.ConvCircuitsError):
        cc.Boxes.from_json(header)
