import base64
import io

import numpy as np
import pytest
from PIL import Image

from convcircuits import ConvCircuitsError
from convcircuits.drawing.tiles import SHARP, data_url, pack

pytestmark = pytest.mark.slow


def decoded(src):
    head, content = src.split(",")
    image = Image.open(io.BytesIO(base64.b64decode(content)))
    assert head == f"data:image/{image.format.lower()};base64"
    return np.asarray(image.convert("RGB"))


def tile(tiles, number):
    """Cut one tile out of its page, as any reader of the document does."""
    for page in tiles.pages:
        if number < page.count:
            row, column = divmod(number, page.columns)
            size = tiles.size
            return decoded(page.src)[row * size : (row + 1) * size, column * size : (column + 1) * size]
        number -= page.count
    raise AssertionError("no such tile")


def pictures(seed, *shapes):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (*shape, 3), dtype=np.uint8) for shape in shapes]


def test_small_pictures_keep_their_very_pixels():
    given = pictures(0, (3, 3), (4, 4), (8, 8), (1, 1))
    tiles, numbers = pack(given, size=48)
    for picture, number in zip(given, numbers, strict=True):
        scale = 48 // len(picture)
        np.testing.assert_array_equal(tile(tiles, number), picture.repeat(scale, 0).repeat(scale, 1))


@pytest.mark.parametrize("side", [5, 7, 11, SHARP])
def test_small_pictures_of_any_side_show_no_colour_that_is_not_theirs(side):
    (given,) = pictures(side, (side, side))
    tiles, numbers = pack([given], size=64)
    shown = {tuple(pixel) for pixel in tile(tiles, numbers[0]).reshape(-1, 3).tolist()}
    assert shown == {tuple(pixel) for pixel in given.reshape(-1, 3).tolist()}


def smooth(height, width):
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    return (np.stack([x, y, (x + y) / 2], axis=-1) * 255).astype(np.uint8)


@pytest.mark.parametrize("side", [13, 64, 150])
def test_photographs_are_resampled_smoothly(side):
    tiles, numbers = pack([smooth(side, side)], size=64)
    assert np.abs(tile(tiles, numbers[0]).astype(int) - smooth(64, 64)).mean() < 6


def test_what_is_not_square_is_whole_and_centered():
    (given,) = pictures(0, (2, 4))
    tiles, numbers = pack([given], size=64)
    shown = tile(tiles, numbers[0])
    np.testing.assert_array_equal(shown[16:48], given.repeat(16, 0).repeat(16, 1))
    assert len(np.unique(np.concatenate([shown[:16], shown[48:]]).reshape(-1, 3), axis=0)) == 1


def test_every_picture_has_a_tile_of_its_own_whatever_the_order_and_the_pages():
    size, count = 512, 40  # 16 to a page
    colours = np.random.default_rng(0).integers(0, 256, (count, 3), dtype=np.uint8)
    given = [np.broadcast_to(c, (3, 3, 3) if i % 3 else (40, 40, 3)).copy() for i, c in enumerate(colours)]
    tiles, numbers = pack(given, size=size)
    assert sorted(numbers) == list(range(count)) == list(range(len(tiles)))
    assert len(tiles.pages) == 3
    for colour, number in zip(colours, numbers, strict=True):
        assert np.abs(tile(tiles, number).astype(int) - colour).max() <= 4  # JPEG may round
    for page in tiles.pages:
        assert max(decoded(page.src).shape[:2]) <= 2048


def test_no_tile_of_a_jpeg_reaches_into_the_next():
    black, white = np.zeros((64, 64, 3), np.uint8), np.full((64, 64, 3), 255, np.uint8)
    noise = pictures(0, *[(64, 64)] * 6)
    tiles, numbers = pack([black, white, *noise], size=64)
    assert tiles.pages[0].src.startswith("data:image/jpeg")
    assert tile(tiles, numbers[0]).max() <= 1
    assert tile(tiles, numbers[1]).min() >= 254


def test_no_pictures_are_no_pages():
    tiles, numbers = pack([], size=64)
    assert (len(tiles), tiles.pages, numbers.shape, numbers.dtype) == (0, (), (0,), np.int32)


def test_a_single_picture_is_its_own_data_url():
    flat = np.full((20, 30, 3), 7, np.uint8)
    np.testing.assert_array_equal(decoded(data_url(flat)), flat)
    assert data_url(pictures(0, (99, 99))[0]).startswith("data:image/jpeg")


@pytest.mark.parametrize(
    ("side", "grain"),
    # The strongest of the largest alone would take ten seconds.
    [(side, grain) for side in (200, 257, 300, 700, 2048) for grain in (30, 50, 255) if side * grain < 2048 * 255],
)
def test_grain_of_any_strength_and_size_is_encoded(side, grain):
    """A JPEG of grain takes more than a byte a pixel."""
    noise = np.random.default_rng(side).normal(0, grain, (side, side, 3))
    picture = np.clip(smooth(side, side) + noise, 0, 255).astype(np.uint8)
    shown = decoded(data_url(picture))
    assert shown.shape == picture.shape
    assert np.abs(shown.astype(int) - picture).mean() < 12


def test_pages_of_grainy_pictures_are_encoded():
    given = pictures(1, *[(64, 64)] * 70)
    tiles, numbers = pack(given, size=64)
    assert max(len(page.src) for page in tiles.pages) > 70 * 64 * 64  # more than a byte a pixel, in base64
    assert np.abs(tile(tiles, numbers[-1]).astype(int) - given[-1]).mean() < 12


@pytest.mark.parametrize(
    ("picture", "words"),
    [
        (np.zeros((3, 3, 3)), "number 0 is float64"),
        (np.zeros((3, 3), np.uint8), r"of shape \(3, 3\)"),
        (np.zeros((3, 3, 4), np.uint8), r"of shape \(3, 3, 4\)"),
        (np.zeros((0, 3, 3), np.uint8), r"of shape \(0, 3, 3\)"),
    ],
)
def test_what_is_no_picture_is_refused(picture, words):
    with pytest.raises(ConvCircuitsError, match=words):
        pack([picture])


@pytest.mark.parametrize("size", [0, 8, 60, 1024])
def test_a_size_that_blocks_do_not_divide_is_refused(size):
    with pytest.raises(ConvCircuitsError, match="multiple of 16"):
        pack([], size=size)
