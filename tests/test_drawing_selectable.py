"""The images that can be selected in a diagram: which, what is said of them, and that their maps are those of runs."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

import convcircuits as cc
import oracles
from convcircuits.drawing.selectable import Listed, selectable
from convcircuits.network.batches import Batches
from convcircuits.zoo.images import Crops, Photograph
from nets import NETS

CASE = NETS["plain"]
FEATURE = cc.Feature(*CASE.features[-1])
TRAIN, HELD_OUT = CASE.images(8), CASE.images(10, seed=1)


@pytest.fixture(scope="module")
def found():
    model = CASE.build()
    return model, cc.find(model, FEATURE, TRAIN, density=0.7, criterion="actgrad")


def named(document):
    """Name -> place."""
    return {name: n for n, name in enumerate(document.images.names)}


@pytest.mark.parametrize("given", ["apart", "the held-out ones alone", "both"])
def test_half_of_them_are_held_out_and_the_maps_are_those_of_masked_runs(found, given):
    model, circuit = found
    images = {"apart": TRAIN, "the held-out ones alone": HELD_OUT, "both": torch.cat([TRAIN, HELD_OUT])}[given]
    document = cc.diagram(model, circuit, images=images, held_out=HELD_OUT, controls=False).document
    kinds = [name.partition(", ")[2] for name in document.images.names]
    used = 0 if given == "the held-out ones alone" else 3
    assert kinds == ["used to find it"] * used + ["held out"] * (6 - used)
    first = len(TRAIN) if given == "both" else 0  # an image that was given twice has its name among the images
    pools = {"used to find it": (TRAIN, 0), "held out": (HELD_OUT, first)}
    responses = {kind: [] for kind in pools}
    target = document.images.target
    for name, n in named(document).items():
        number, _, kind = name.removeprefix("image ").partition(", ")
        pool, start = pools[kind]
        image = pool[int(number) - start :][:1]
        own = cc.activations(model, FEATURE, image)[0]
        by_hand = oracles.masked_map(model, circuit.kernels, FEATURE.layer, FEATURE.unit, image)[0]
        for bytes_, scale, exact in (
            (target.full_map[n], target.full_scale[n], own),
            (target.map[0, n], target.scale[0, n], by_hand),
        ):
            assert np.abs(bytes_ / 127 * scale - exact.numpy()).max() <= scale / 254 * (1 + 1e-4)
        error, spread = ((own - by_hand) ** 2).sum(), ((own - own.mean()) ** 2).sum()
        assert target.r2[0, n] == pytest.approx(float(1 - error / spread), rel=1e-4)
        responses[kind].append(float(own.mean()))
    for kind, values in responses.items():
        every = cc.activations(model, FEATURE, pools[kind][0]).flatten(1).mean(1)
        if values:
            assert values[0] == pytest.approx(float(every.max()))
            assert values[-1] == pytest.approx(float(every.min()))
            assert values == sorted(values, reverse=True)


def test_images_of_another_size_are_not_offered(found):
    model, circuit = found
    wider = torch.nn.functional.pad(HELD_OUT, (0, 4))
    document = cc.diagram(model, circuit, images=TRAIN, held_out=wider, controls=False).document
    assert all(name.endswith(", used to find it") for name in document.images.names)
    mixed = [wider, HELD_OUT[:4]]
    document = cc.diagram(model, circuit, images=TRAIN, held_out=mixed, controls=False).document
    assert {name for name in named(document) if "held out" in name} <= {f"image {n}, held out" for n in range(10, 14)}
    assert document.images.target.full_map.shape[0] == len(named(document)) == 6


def photographs(count, first=0):
    pixels = np.random.default_rng(first).integers(0, 256, (count, 32, 32, 3), np.uint8)
    return [Photograph(f"p{first + n}", Image.fromarray(some)) for n, some in enumerate(pixels)]


def prepare(picture):
    return torch.from_numpy(np.array(picture.resize((32, 32)))).permute(2, 0, 1).double() / 128 - 1


def test_what_is_said_of_images():
    images = Crops(photographs(3), prepare, count=5, seed=0, size=CASE.input_shape[1:])
    held = torch.cat(list(images))
    circuit = cc.find(CASE.build(), FEATURE, held[:2], density=0.9, criterion="magnitude")
    at_hand = cc.find(CASE.build(), FEATURE, held[2:], density=0.9, criterion="magnitude")
    others = torch.cat(list(Crops(photographs(4, 3), prepare, count=4, seed=0, size=CASE.input_shape[1:])))

    def batches(some):
        return Batches(some, device="cpu", dtype=some.dtype, batch_size=4)

    def marked(given, some, held_out=None, by=circuit, fit=None, of=None):
        apart = None if held_out is None else Listed.of(held_out, held_out, photographs=of)
        all_held = None
        if held_out is not None:
            every = batches(held_out)
            assert len(list(every))
            all_held = every.describe()
        listed = Listed.of(given, some, names=images.names)
        known = None if fit is None else batches(fit)
        return selectable(by, listed, apart, kept=batches(some), all_held=all_held, fit=known)

    def used(*asked, **how):
        return [n for n, name in enumerate(marked(*asked, **how).names) if name.endswith(", used to find it")]

    assert used(held, held) == [0, 1]
    assert used(images, held) == [0, 1, 3, 4]  # p0 and p1, whole or cropped
    assert used(held[1:], held[1:]) == []
    assert used(held[1:], held[1:], fit=held[:2]) == [0]
    said = dataclasses.replace(circuit, provenance={**circuit.provenance, "photographs": {"found_on": ["p2"]}})
    assert used(images, held[:4], by=said) == [0, 1, 2, 3]
    assert used(images, -held, by=said) == [2]
    chosen = dataclasses.replace(circuit, provenance={**circuit.provenance, "photographs": {"validated_on": ["p1"]}})
    assert used(images, -held, by=chosen) == [1, 4]

    # What it was found on is not called held out, whoever says so: the same images, their crops, or their photographs.
    assert marked(held, held, held[:2]).held_out is None
    assert marked(-held, -held, held[2:], by=at_hand).held_out is None
    assert marked(images, held, others, of=["p0", "p1", "p0", "p1"]).held_out is None
    choice = marked(images, held, others, of=["p0", "p5", "p5", "p0"])
    assert [name for name in choice.names if "held out" in name] == ["p5, held out", "p5, crop 1, held out"]
    assert torch.equal(choice.held_out, others[1:3])
    # An image that is given as both is offered once, and keeps its name.
    choice = marked(held[2:], held[2:], torch.cat([held[4:], others[:1], others[:1]]))
    assert choice.among == (0, 1)
    assert choice.names[2:] == (f"{images.names[2]}, held out", f"{images.names[2]}, held out", "image 1, held out")
