"""Contact sheets: what is cut out and where it stands."""

import io

import numpy as np
import pytest
from PIL import Image

from convcircuits.contact_sheets import _LINE, Section, Tile, _fitted, _font, contact_sheet, part_of
from convcircuits.zoo.preprocessing import Region

WHOLE = Region(0, 0, 90, 120)


def quarters():
    """Red, green, blue and black quarters, 120 x 90."""
    pixels = np.zeros((90, 120, 3), np.uint8)
    pixels[:45, :60, 0] = pixels[:45, 60:, 1] = pixels[45:, :60, 2] = 255
    return Image.fromarray(pixels)


def read(content):
    with Image.open(io.BytesIO(content)) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def colors(picture):
    return {tuple(color) for color in np.asarray(picture).reshape(-1, 3).tolist()}


def test_a_part_within_a_picture_fills_the_square():
    for window, color in (
        ((5, 5, 30, 30), (255, 0, 0)),
        ((11, 26, 30, 30), (255, 0, 0)),
        ((5, 70, 30, 30), (0, 255, 0)),
        ((50, 5, 30, 30), (0, 0, 255)),
        ((50, 70, 30, 30), (0, 0, 0)),
    ):
        part = part_of(quarters(), Region(*window), Region(*window), 40)
        assert part.size == (40, 40)
        assert colors(part) == {color}
    middle = np.asarray(part_of(quarters(), Region(25, 40, 40, 40), Region(25, 40, 40, 40), 40))
    assert middle[5, 5].tolist() == [255, 0, 0]
    assert middle[5, 35].tolist() == [0, 255, 0]
    assert middle[35, 5].tolist() == [0, 0, 255]


def test_what_is_not_seen_is_hatched():
    window = Region(-20, -20, 40, 40)
    part = np.asarray(part_of(quarters(), window, window.within(WHOLE), 40)).astype(int)
    assert (part[20:, 20:] == [255, 0, 0]).all()
    assert colors(part[:20]) == colors(part[20:, :20]) == {(255, 255, 255), tuple(bytes.fromhex(_LINE[1:]))}
    unseen = part_of(quarters(), window, window.within(Region(500, 500, 1, 1)), 40)
    assert (255, 0, 0) not in colors(unseen)


def test_a_part_that_is_not_square_is_centered_and_keeps_its_shape():
    window = Region(5, 5, 10, 40)
    part = np.asarray(part_of(quarters(), window, window, 40)).astype(int)
    red = (part == [255, 0, 0]).all(2)
    assert red[15:25].all()
    assert not red[:15].any()
    assert not red[25:].any()


@pytest.mark.parametrize("across", [1, 2, 3])
@pytest.mark.parametrize("columns", [2, 4])
def test_every_picture_is_on_the_sheet_once_in_order(columns, across):
    colors = [(10 * n + 5, 100, 200 - 10 * n) for n in range(7)]
    tiles = [Tile(Image.new("RGB", (9, 9), color), str(n), f"photograph {n}") for n, color in enumerate(colors)]
    sections = [Section("first", "remark", tiles[:5]), Section("second", "", tiles[5:]), Section("none", "said", [])]
    sheet = read(contact_sheet("title", ["a remark"], sections, side=32, columns=columns, across=across))
    places = []
    for color in colors:
        rows, where = (sheet == color).all(2).nonzero()
        assert len(rows) == 32 * 32
        assert (np.ptp(rows), np.ptp(where)) == (31, 31)
        places.append((rows[0], where[0]))
    first, second = places[:5], places[5:]
    for section in (first, second):
        assert section == sorted(section)
        assert len({row for row, _ in section}) == -(-len(section) // columns)
    assert (first[0][0] == second[0][0]) == (across > 1)


def test_a_sheet_without_sections_has_its_title():
    sheet = read(contact_sheet("title", [], [], side=32, columns=8))
    assert (sheet < 100).any()
    assert (sheet[-10:] == 255).all()


def test_texts_are_shortened_to_their_room():
    assert _fitted("short", 500, 13) == "short"
    for width in (20, 60, 130):
        text = _fitted("a very long name of a photograph 0042", width, 13)
        assert _font(13).getlength(text) <= width
        assert "…" in text
    assert _fitted("a very long name of a photograph 0042", 130, 13).startswith("a very")
    assert _fitted("a very long name of a photograph 0042", 130, 13).endswith("0042")
    assert _fitted("line\nbreak", 500, 13) == r"line\nbreak"
    assert _fitted("wide", 1, 13) == ""
    wide = [Tile(Image.new("RGB", (8, 8), "red"), "9" * 99, "x" * 99)]
    sheet = read(contact_sheet("t" * 500, ["word " * 200], [Section("h", "r" * 500, wide)], side=64, columns=4))
    assert sheet.shape[1] == 2 * 32 + 4 * 72 - 8
    assert (sheet[:, -32:] == 255).all()
