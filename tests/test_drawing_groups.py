"""The diagram of circuits on groups of images, on a unit whose two mechanisms are known."""

import dataclasses

import numpy as np
import pytest
import torch

import convcircuits as cc
import twofold
from convcircuits.drawing.data import Document, View, check_view
from convcircuits.drawing.tiles import read_data_url

torch.set_num_threads(1)

PRIMARIES = torch.eye(4, 3).roll(1, 0).double()  # black, red, green, blue


@pytest.fixture(scope="module")
def groups():
    made, blue = twofold.images(24)
    return {"red": made[~blue], "blue": made[blue]}


@pytest.fixture(scope="module")
def circuits():
    return {color: twofold.circuit(color) for color in twofold.OWN}


@pytest.fixture(scope="module")
def drawn(groups, circuits):
    return cc.group_diagram(twofold.net(), circuits, groups, primaries=PRIMARIES).document


def tiles(document, variant):
    """Return the pictures of each node of a variant by column and unit."""
    every = []
    for page in document.tiles.pages:
        picture, side = read_data_url(page.src), document.tiles.size
        for n in range(page.count):
            top, left = (side * at for at in divmod(n, page.columns))
            every.append(picture[top : top + side, left : left + side].astype(int))
    (shown,) = (each for each in document.pictures if each.variant == variant)
    ends = zip(document.nodes.column.tolist(), document.nodes.unit.tolist(), strict=True)
    return {end: [every[t] for t in row if t >= 0] for end, row in zip(ends, shown.tiles, strict=True)}


def test_each_circuit_has_the_pictures_that_it_has_alone_on_the_images_of_its_group(drawn, groups, circuits):
    for variant, color in enumerate(circuits):
        alone = cc.diagram(twofold.net(), circuits[color], images=groups[color], primaries=PRIMARIES).document
        expected, found = tiles(alone, None), tiles(drawn, variant)
        own = {(0, filter_) for filter_ in twofold.OWN[color]} | {(1, 0)}
        assert {end for end, pictures in found.items() if len(pictures) > 1} == own  # others have their kernels alone
        for end in own:
            assert len(found[end]) == len(expected[end])
            for one, other in zip(found[end], expected[end], strict=True):
                assert np.abs(one - other).mean() < 4  # they are compressed with other pictures beside them


def dead_circuit(circuit):
    """Return the circuit without the kernels of its first layer."""
    masks = {layer: mask & (layer != "0") for layer, mask in circuit.elements.items()}
    return cc.Circuit.from_masks(twofold.net(), twofold.FEATURE, masks)


def test_the_page_opens_as_a_comparison_and_lists_the_highest_images_of_the_groups_it_shows(drawn, groups):
    assert (drawn.view.variant, drawn.view.compare) == (0, 1)
    assert [variant.name for variant in drawn.variants[:2]] == ["red", "blue"]
    images = drawn.images
    assert images.of(0) == tuple(range(6))
    assert images.of(1) == tuple(range(6, 12))
    assert images.of(0, 1) == images.of(2) == tuple(range(12))  # the random circuit has no group
    for variant, some in enumerate(groups.values()):
        full = cc.activations(twofold.net(), twofold.FEATURE, some).amax((1, 2))
        ranked = full.argsort(descending=True)[:6].tolist()
        assert [images.names[n] for n in images.of(variant)] == [f"image {n}" for n in ranked]
    check_view(drawn, View(variant=1, image=7))
    with pytest.raises(cc.ConvCircuitsError, match="image 3, which is of the group of another variant"):
        check_view(drawn, View(variant=1, image=3))


def test_maps_and_effects_on_an_image_are_those_of_the_circuit_of_its_group(drawn, groups, circuits):
    images, goal, every = drawn.images, drawn.target, dataclasses.replace(twofold.FEATURE, position="all")
    for n, (variant, name) in enumerate(zip(images.variants, images.names, strict=True)):
        color = list(groups)[variant]
        image = groups[color][int(name.split()[1])][None]
        own = dataclasses.replace(circuits[color], feature=every)
        exact = cc.activations(twofold.net(), every, image, circuit=own)
        assert images.activation_scale[goal, n] == pytest.approx(float(exact.abs().max()), rel=1e-5)
        known, kernels = ~np.isnan(images.effect[:, n]), drawn.edges.weighted & (drawn.variants[variant].rank >= 0)
        np.testing.assert_array_equal(known, kernels)


def test_the_smallest_circuits_with_a_complete_path_are_drawn(groups, circuits):
    whole = cc.Circuit.from_masks(
        twofold.net(),
        twofold.FEATURE,
        {layer: torch.ones_like(mask) for layer, mask in circuits["red"].elements.items()},
    )
    dead = dead_circuit(circuits["blue"])
    several = {"red": [whole, circuits["red"], circuits["red"]], "blue": [whole, circuits["blue"], dead]}
    made = cc.group_diagram(twofold.net(), several, groups).document
    assert [variant.kept for variant in made.variants[:2]] == [6, 6]
    with pytest.raises(
        cc.ConvCircuitsError, match="At no size does the circuit of every group have a kernel on a comp"
    ):
        cc.group_diagram(twofold.net(), {"red": circuits["red"], "blue": dead}, groups)


def test_of_crops_a_filter_shows_one_part_of_each_photograph(groups, circuits):
    of = {name: [n % 3 for n in range(len(some))] for name, some in groups.items()}
    made = cc.group_diagram(twofold.net(), circuits, groups, photographs=of).document
    for set_ in made.pictures:
        own = [cut for cut in made.tiles.cuts if cut.tile in set_.tiles[made.target]]
        names = [made.tiles.wholes[cut.whole].name for cut in own]
        assert (
            len({int(name.split()[1]) % 3 for name in names}) == len(names) == (set_.tiles[made.target] >= 0).sum() == 3
        )


@pytest.mark.parametrize(
    ("numbers", "subjects", "said"),
    [
        (3, False, "12 crops of 3 photographs"),
        (3, True, "12 photographs of 3 subjects"),
        (12, True, "12 photographs"),
    ],
)
def test_photographs_of_one_subject_are_not_called_crops(groups, circuits, numbers, subjects, said):
    of = {name: [n % numbers for n in range(len(some))] for name, some in groups.items()}
    made = cc.group_diagram(twofold.net(), circuits, groups, photographs=of, subjects=subjects).document
    assert {set_.label.rpartition("; chosen among ")[2] for set_ in made.pictures} == {said}


def test_one_group_is_drawn_alone_under_its_own_name(groups, circuits):
    made = cc.group_diagram(twofold.net(), {"red": circuits["red"]}, {"red": groups["red"]}, title="A title").document
    assert made.view.compare is None
    assert made.variants[0].name == "the circuit"
    assert made.meta.title == "A title"


def test_the_page_opens_with_the_cross_test_of_the_groups(groups, circuits):
    again, _ = twofold.images(24, seed=5)
    crossed = cc.cross(twofold.net(), circuits, {"red": again[::2], "blue": again[1::2]}, shuffles=0)
    made = cc.group_diagram(twofold.net(), circuits, groups, cross=crossed)
    of = made.document.crossed
    assert (of.verdict, of.sentence) == (crossed.verdict, crossed.verdict_sentence)
    assert (of.own, of.others) == (crossed.selectivity[0].own, crossed.selectivity[0].others)
    assert made.caption.startswith(crossed.verdict_sentence)
    assert "crossed" not in cc.group_diagram(twofold.net(), circuits, groups).document.to_dict()
    assert cc.Diagram(type(made.document).from_json(made.document.to_json())).document.crossed == of
    with pytest.raises(cc.ConvCircuitsError, match="cross is of 2 groups; there are circuits of 1"):
        cc.group_diagram(twofold.net(), {"red": circuits["red"]}, {"red": groups["red"]}, cross=crossed)


BAD = {
    "other groups": (lambda c, g: (c, {"red": g["red"]}), {}, "circuits are of the groups 'red', 'blue' and images of"),
    "another order": (lambda c, g: (c, {"blue": g["blue"], "red": g["red"]}), {}, "in one order"),
    "no group": (lambda c, g: ({}, {}), {}, "of the groups none"),
    "sizes": (lambda c, g: ({"red": [c["red"]] * 2, "blue": [c["blue"]]}, g), {}, "same number of sizes; got 2, 1"),
    "no size": (lambda c, g: ({"red": [], "blue": []}, g), {}, "same number of sizes; got 0, 0"),
    "names": (
        lambda c, g: (c, g),
        {"names": {"red": ["a"] * 12}},
        "names must have an entry for each of 'red', 'blue'",
    ),
    "few photographs": (
        lambda c, g: (c, g),
        {"photographs": {"red": [1], "blue": [1] * 12}},
        "photographs must hold one for each of 12 images; got 1",
    ),
    "few names": (lambda c, g: (c, g), {"names": {"red": ["a"], "blue": ["a"] * 12}}, "names must hold one string"),
    "fit": (lambda c, g: (c, g), {"fit": {}}, "fit must have an entry"),
    "progress": (lambda c, g: (c, g), {"progress": 3}, "progress must be"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_fit_is_refused(case, groups, circuits):
    change, options, reason = BAD[case]
    with pytest.raises(cc.ConvCircuitsError, match=reason):
        cc.group_diagram(twofold.net(), *change(circuits, groups), **options)


@pytest.mark.parametrize(("variants", "reason"), [((0,) * 11, "11 variants"), ((0,) * 11 + (9,), "expected 0 to")])
def test_images_are_of_variants_that_are_there(drawn, variants, reason):
    with pytest.raises(cc.ConvCircuitsError, match=reason):
        dataclasses.replace(drawn, images=dataclasses.replace(drawn.images, variants=variants))


@pytest.mark.parametrize(("variant", "reason"), [(0, "names of their own"), (9, "variant 9, which is not there")])
def test_picture_sets_are_of_variants_that_are_there(drawn, variant, reason):
    first, second = drawn.pictures
    with pytest.raises(cc.ConvCircuitsError, match=reason):
        dataclasses.replace(drawn, pictures=(first, dataclasses.replace(second, variant=variant)))


def test_a_document_of_groups_is_read_as_it_was_written(drawn):
    again = Document.from_json(drawn.to_json())
    assert again.images.variants == drawn.images.variants
    assert [each.variant for each in again.pictures] == [0, 1]
    assert again.to_json() == drawn.to_json()
