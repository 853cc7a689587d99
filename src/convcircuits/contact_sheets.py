"""Contact sheets: parts of photographs in rows, with what there is to say of each, as one PNG."""

import io
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from convcircuits.texts import printable
from convcircuits.zoo.preprocessing import Region

_GROUND, _INK, _SOFT, _LINE, _MATT = "#ffffff", "#1f1f1f", "#6e6e6e", "#dcdcd7", "#f3f3f0"  # as in the diagram
_MARGIN, _GAP, _BETWEEN = 32, 8, 40  # around the sheet, between tiles, between sections side by side
_TITLE, _TEXT, _SMALL = 28, 16, 13  # sizes of the font


@dataclass(frozen=True)
class Tile:
    """A square picture, and two lines of text below it, which may be empty."""

    picture: Image.Image
    label: str = ""
    detail: str = ""


@dataclass(frozen=True)
class Section:
    """Rows of tiles below a heading and a remark on the same line."""

    heading: str
    remark: str
    tiles: Sequence[Tile]


def part_of(picture: Image.Image, window: Region, seen: Region, side: int) -> Image.Image:
    """Return a part of a picture as a square; what is not seen of it is hatched.

    Args:
        picture: The picture, in RGB.
        window: The part. Its longer side fills the square.
        seen: What there is to see of it, within the picture.
        side: Side of the square in pixels.
    """
    scale = side / max(window.height, window.width)
    top, left = ((side - scale * length) / 2 for length in (window.height, window.width))

    def placed(region: Region) -> tuple[int, int, int, int]:
        x, y = left + scale * (region.left - window.left), top + scale * (region.top - window.top)
        return round(x), round(y), round(x + scale * region.width), round(y + scale * region.height)

    square = Image.new("RGB", (side, side), _MATT)
    square.paste(_hatched(side).crop(placed(window)), placed(window))
    x, y, right, bottom = placed(seen)
    if right > x and bottom > y:
        edges = (seen.left, seen.top, seen.left + seen.width, seen.top + seen.height)
        square.paste(picture.resize((right - x, bottom - y), Image.Resampling.LANCZOS, box=edges), (x, y))
    return square


def contact_sheet(
    title: str, remarks: Sequence[str], sections: Sequence[Section], *, side: int, columns: int, across: int = 1
) -> bytes:
    """Draw a contact sheet.

    Args:
        title: Title of the sheet.
        remarks: Lines below the title.
        sections: The sections; those side by side are as high as the highest of them.
        side: Side of a tile in pixels; pictures of another size are resized.
        columns: Number of tiles in a row of a section.
        across: Number of sections side by side.

    Returns:
        The content of a PNG file.
    """
    wide = columns * (side + _GAP) - _GAP
    width = 2 * _MARGIN + across * (wide + _BETWEEN) - _BETWEEN
    lines = [line for remark in remarks for line in _wrapped(remark, width - 2 * _MARGIN)]
    top = _MARGIN + round(1.4 * _TITLE) + _line(_TEXT) * len(lines) + _MARGIN // 2
    bands = [sections[first : first + across] for first in range(0, len(sections), across)]
    heights = [max(_height(section, side, columns) for section in band) for band in bands]
    sheet = Image.new("RGB", (width, top + sum(heights) + _MARGIN // 2), _GROUND)
    pen = ImageDraw.Draw(sheet)
    pen.text((_MARGIN, _MARGIN), _fitted(title, width - 2 * _MARGIN, _TITLE), _INK, _font(_TITLE))
    for number, line in enumerate(lines):
        pen.text((_MARGIN, _MARGIN + round(1.4 * _TITLE) + _line(_TEXT) * number), line, _SOFT, _font(_TEXT))
    for band, height in zip(bands, heights, strict=True):
        for place, section in enumerate(band):
            _draw(sheet, section, (_MARGIN + place * (wide + _BETWEEN), top), side, columns)
        top += height
    content = io.BytesIO()
    sheet.save(content, "png")
    return content.getvalue()


def _draw(sheet: Image.Image, section: Section, corner: tuple[int, int], side: int, columns: int) -> None:
    pen, (left, top) = ImageDraw.Draw(sheet), corner
    wide = columns * (side + _GAP) - _GAP
    pen.text((left, top), section.heading, _INK, _font(_TEXT))
    beside = _font(_TEXT).getlength(section.heading) + _GAP
    pen.text(
        (left + beside, top + _TEXT - _SMALL), _fitted(section.remark, wide - beside, _SMALL), _SOFT, _font(_SMALL)
    )
    top += _line(_TEXT) + _GAP // 2
    for number, tile in enumerate(section.tiles):
        x, y = left + number % columns * (side + _GAP), top + number // columns * _row(section, side)
        sheet.paste(tile.picture.resize((side, side), Image.Resampling.LANCZOS), (x, y))
        pen.rectangle((x - 1, y - 1, x + side, y + side), outline=_LINE)
        y += side + 3
        for text, size, color in ((tile.label, _TEXT, _INK), (tile.detail, _SMALL, _SOFT)):
            if text:
                pen.text((x, y), _fitted(text, side, size), color, _font(size))
                y += _line(size)


def _height(section: Section, side: int, columns: int) -> int:
    rows = -(-len(section.tiles) // columns)
    return _line(_TEXT) + _GAP // 2 + rows * _row(section, side) + 2 * _GAP


def _row(section: Section, side: int) -> int:
    """Return the height of a row of tiles with their text."""
    texts = ((_TEXT, any(tile.label for tile in section.tiles)), (_SMALL, any(tile.detail for tile in section.tiles)))
    return side + _GAP + sum(_line(size) for size, there in texts if there)


def _line(size: int) -> int:
    return round(1.35 * size)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _fitted(text: str, width: float, size: int) -> str:
    """Shorten a text to a width in pixels, in the middle, since names differ at their ends."""
    text, font = printable(text), _font(size)
    if font.getlength(text) <= width:
        return text
    for kept in range(len(text) - 1, 0, -1):
        short = f"{text[: kept // 2]}…{text[len(text) - (kept - kept // 2) :]}"
        if font.getlength(short) <= width:
            return short
    return ""


def _wrapped(text: str, width: float) -> list[str]:
    lines: list[str] = []
    for word in printable(text).split(" "):
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and _font(_TEXT).getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def _hatched(side: int) -> Image.Image:
    """Return a square of diagonal lines."""
    square = Image.new("RGB", (side, side), _GROUND)
    pen = ImageDraw.Draw(square)
    for start in range(-side, side, 8):
        pen.line((start, side, start + side, 0), _LINE, 2)
    return square
