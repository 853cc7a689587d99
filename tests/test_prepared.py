"""Photographs read by threads: what is yielded, in which order, what is skipped, and which part of each is seen."""

import gc
import logging
import threading
import time
import warnings
import weakref

import numpy as np
import pytest
import torch
from PIL import Image

from convcircuits.errors import ConvCircuitsError
from convcircuits.zoo import images as module
from convcircuits.zoo.images import Photograph, crops, load_folder
from convcircuits.zoo.models import load_model
from convcircuits.zoo.prepared import Prepared, in_threads
from convcircuits.zoo.preprocessing import Preprocess, Region, region_shown


def noise(name, size=(60, 40)):
    pixels = np.random.default_rng(list(name.encode())).integers(0, 256, (size[1], size[0], 3))
    return Photograph(name, Image.fromarray(pixels.astype(np.uint8)))


def small(image):
    return torch.from_numpy(np.array(image.resize((16, 16)), dtype=np.float32)).permute(2, 0, 1)


NAMES = [f"{n}" for n in range(11)]


@pytest.mark.parametrize("size", [None, (9, 7)])
@pytest.mark.parametrize("threads", [1, 3, 20])
@pytest.mark.parametrize("batch_size", [1, 4, 11, 50])
def test_each_photograph_is_an_image_in_order_as_whole_crops_are(batch_size, threads, size):
    pictures = [noise(name) for name in NAMES]
    expected = crops(pictures, small, count=11, seed=0, size=size)
    prepared = Prepared(pictures, small, size=size, batch_size=batch_size, threads=threads)
    assert len(prepared) == 11
    for _ in range(2):
        batches = list(prepared)
        assert all(len(batch) == batch_size for batch in batches[:-1])
        assert torch.equal(torch.cat(batches), expected)
        assert prepared.names == tuple(NAMES)


def test_threads_read_at_the_same_time_and_never_far_ahead():
    running, most, begun = 0, 0, []
    lock = threading.Lock()

    def work(item):
        nonlocal running, most
        with lock:
            running, most = running + 1, max(most, running + 1)
            begun.append(item)
        time.sleep(0.01)
        with lock:
            running -= 1
        return -item

    results = in_threads(work, range(80), threads=4, ahead=30)
    for expected in range(20):
        assert next(results) == -expected
    assert 1 < most <= 4
    time.sleep(0.3)
    assert len(begun) == 20 - 1 + 30  # no more is begun before the next result is asked for
    next(results), next(results)
    before = len(begun)
    results.close()
    assert len(begun) <= before + 4
    results = in_threads(work, range(80), threads=2, ahead=40)
    next(results)
    results.close()
    assert len(begun) < before + 4 + 20  # what was waiting is cancelled
    assert not [thread for thread in threading.enumerate() if "ThreadPool" in thread.name]


def test_an_error_in_a_thread_is_raised_and_ends_the_threads():
    def broken(image):
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        list(Prepared([noise(name) for name in NAMES], broken))
    assert not [thread for thread in threading.enumerate() if "ThreadPool" in thread.name]


def test_what_cannot_be_read_is_skipped_named_and_logged(tmp_path, caplog):
    for name in "abcdef":
        noise(name).image.save(tmp_path / f"{name}.png")
    for name in "bcf":
        whole = (tmp_path / f"{name}.png").read_bytes()
        (tmp_path / f"{name}.png").write_bytes(whole[: len(whole) // 2])
    pictures, _ = load_folder(tmp_path)
    prepared = Prepared(pictures, small, batch_size=2)
    with caplog.at_level(logging.WARNING):
        read, again = (torch.cat(list(prepared)) for _ in range(2))
    assert torch.equal(read, again)
    assert torch.equal(read, torch.stack([small(noise(name).image) for name in "ade"]))
    assert prepared.names == ("a.png", "d.png", "e.png")
    assert prepared.unreadable == ("b.png", "c.png", "f.png")
    assert [record.args[0] for record in caplog.records] == ["b.png", "c.png", "f.png"]  # once, in two passes
    with pytest.raises(ConvCircuitsError, match=r"None of these photographs can be read: b\.png, c\.png"):
        list(Prepared(pictures[1:3], small))


def test_few_decoded_photographs_are_in_memory(tmp_path, monkeypatch):
    for number in range(30):
        noise(f"{number}").image.save(tmp_path / f"{number}.png")
    alive, most, lock, real = 0, 0, threading.Lock(), module._read

    def end():
        nonlocal alive
        with lock:
            alive -= 1

    def spy(source):
        nonlocal alive, most
        picture = real(source)
        with lock:
            alive, most = alive + 1, max(most, alive + 1)
        weakref.finalize(picture, end)
        return picture

    monkeypatch.setattr(module, "_read", spy)
    pictures, _ = load_folder(tmp_path)
    assert sum(len(batch) for batch in Prepared(pictures, small, batch_size=8, threads=3)) == 30
    gc.collect()
    assert alive == 0
    assert most <= 6  # in each thread, the one before goes when the next one takes its name


def test_a_pass_that_is_broken_off_changes_nothing():
    prepared = Prepared([noise(name) for name in NAMES], small, batch_size=3)
    list(prepared)
    for _ in prepared:
        break
    assert prepared.names == tuple(NAMES)


def test_reading_in_threads_leaves_the_warning_filters_alone(tmp_path):
    for name in NAMES:
        noise(name).image.save(tmp_path / f"{name}.png")
    before = list(warnings.filters)
    for _ in Prepared(load_folder(tmp_path)[0], small, batch_size=2, threads=4):
        assert warnings.filters == before
    assert warnings.filters == before


def test_mistakes():
    with pytest.raises(ConvCircuitsError, match="There are no photographs to read"):
        Prepared([], small)
    for name in ("batch_size", "threads"):
        with pytest.raises(ConvCircuitsError, match=f"{name} must be a whole number from 1"):
            Prepared([noise("a")], small, **{name: 0})


# --- which part is seen

SIZES = [(640, 480), (480, 640), (97, 301), (1024, 1024), (50, 40), (31, 900)]
PREPARATIONS = [
    Preprocess(),
    Preprocess(size=(160, 160), resize=(160, 160), resample=Image.Resampling.BICUBIC),
    Preprocess(size=(120, 200), resize=(150, 220), bgr=True),
    Preprocess().gray(),
]


def colored(region, size):
    """A photograph that is white where the region is, (left, top, right, bottom) in whole pixels, and else black."""
    picture = Image.new("RGB", size, "black")
    picture.paste("white", region)
    return picture


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("preprocess", PREPARATIONS, ids=range(len(PREPARATIONS)))
def test_what_lies_outside_of_the_region_is_not_seen(preprocess, size):
    region = preprocess.region(size)
    black, white = (preprocess(Image.new("RGB", size, color)) for color in ("black", "white"))
    inside = [region.left, region.top, region.left + region.width, region.top + region.height]
    assert -1e-9 <= inside[0] < inside[2] <= size[0] + 1e-9
    assert -1e-9 <= inside[1] < inside[3] <= size[1] + 1e-9
    # A filter reaches a little beyond the pixel that it computes.
    reach = [2.1 * max(1, region.width / white.shape[2]) + 1, 2.1 * max(1, region.height / white.shape[1]) + 1] * 2
    around = [round(edge + sign * r) for edge, r, sign in zip(inside, reach, (-1, -1, 1, 1), strict=True)]
    assert torch.allclose(preprocess(colored(tuple(around), size)), white, atol=1e-4)
    for side, edge in enumerate(inside):  # and nothing within it can be left out
        cut = [round(one) for one in around]
        cut[side] = round(edge + (1 if side < 2 else -1) * reach[side])
        seen = preprocess(colored(tuple(cut), size))
        assert not torch.allclose(seen, white, atol=1e-4)
    assert not torch.equal(black, white)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("preprocess", PREPARATIONS, ids=range(len(PREPARATIONS)))
def test_a_function_of_another_origin_is_measured(preprocess, size):
    exact, measured = preprocess.region(size), region_shown(lambda image: preprocess(image), size)
    assert region_shown(preprocess, size) == exact
    sides = [max(exact.height, 1) / preprocess.size[0], max(exact.width, 1) / preprocess.size[1]]
    for one, other, side in zip(exact, measured, sides * 2, strict=True):
        assert abs(one - other) < 0.25 * side + 0.1  # in pixels of the input and of the photograph


def test_padding_that_makes_a_picture_square_is_outside_of_it():
    def letterboxed(image):
        longest = max(image.size)
        square = Image.new("RGB", (longest, longest), "gray")
        square.paste(image, ((longest - image.width) // 2, (longest - image.height) // 2))
        return torch.from_numpy(np.array(square.resize((64, 64)), dtype=np.float32)).permute(2, 0, 1)

    found = region_shown(letterboxed, (300, 200))
    assert found == pytest.approx((-50, 0, 300, 300), abs=2)
    assert found.within(Region(0, 0, 200, 300)) == pytest.approx((0, 0, 200, 300), abs=2)


@pytest.mark.parametrize(
    "strange",
    [
        lambda image: small(image).flip(2),
        lambda image: small(image).sort(dim=2).values.flip(1),
        lambda image: torch.sin(small(image)),
        lambda image: torch.zeros(3, 16, 16) + small(image).mean(),
    ],
)
def test_what_is_no_resize_and_crop_is_an_error(strange):
    with pytest.raises(ConvCircuitsError, match="does more than resize and crop"):
        region_shown(strange, (60, 40))


@pytest.mark.zoo
@pytest.mark.parametrize("name", ["torchvision:resnet18@random", "timm:resnet18@random"])
def test_the_transforms_of_libraries_are_measured(name):
    loaded = load_model(name)
    region = region_shown(loaded.preprocess, (1200, 900))
    assert region.height == pytest.approx(region.width, abs=1)
    assert region.top + region.height / 2 == pytest.approx(450, abs=2)
    assert region.left + region.width / 2 == pytest.approx(600, abs=2)
    assert 0.8 * 900 < region.height < 900


def test_a_box_of_an_image_is_a_part_of_its_region():
    region = Region(10, 20, 100, 200)
    assert region.part((0, 0, 50, 50), (50, 50)) == region
    assert region.part((-5, 25, 10, 10), (50, 50)) == Region(0, 120, 20, 40)
    assert region.part((-5, 25, 10, 10), (50, 50)).within(region) == Region(10, 120, 10, 40)
    assert region.within(Region(500, 0, 10, 10)).height == 0


def test_a_region_is_measured_once_for_each_size():
    calls = []

    def counted(image):
        calls.append(image.size)
        return small(image)

    prepared = Prepared([noise("a")], counted)
    first = prepared.region((60, 40))
    before = len(calls)
    assert prepared.region((60, 40)) == first
    assert len(calls) == before
