"""Pack pictures of any size into a few pages of square tiles, as data URLs for browsers and the PDF writer."""

import base64
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
from PIL import Image

from convcircuits.drawing.data import PAGE, Document, Page, TargetPicture, Tiles
from convcircuits.drawing.records import Array
from convcircuits.errors import ConvCircuitsError

OPTIMIZED = "optimized to drive it most in {}"
"""What a feature visualization of the target is called; to be formatted with where it runs."""

SHARP = 12  # pictures of at most this many pixels per side, such as kernels, keep their pixels
_MATT = (236, 236, 232)  # fills the tile beside pictures that are not square


def pack(pictures: Iterable[Array], *, size: int = 64) -> tuple[Tiles, Array]:
    """Make one tile per picture; small pictures keep sharp pixels, others are resampled (Lanczos).

    Sharp tiles and photographs go to separate pages, since the first compress better without loss and the second as
    JPEG; each page uses whichever is smaller. (WebP would be smaller still, but not every SVG reader supports it.)

    Args:
        pictures: RGB pictures, uint8 (h, w, 3), of any size. Those that are not square are centered on a square.
        size: Side of a tile in pixels; multiples of 16 keep JPEG blocks from spanning two tiles.

    Returns:
        The tiles, and the number of each picture's tile, int32.

    Raises:
        ConvCircuitsError: If a picture has another dtype or shape, or the size is not a multiple of 16 from 16 to 512.
    """
    if size % 16 or not 16 <= size <= 512:
        raise ConvCircuitsError(f"A tile's size must be a multiple of 16 from 16 to 512; got {size}.")
    tiles: dict[bool, list[Array]] = {True: [], False: []}
    places: list[tuple[bool, int]] = []
    for number, picture in enumerate(pictures):
        given = np.asarray(picture)
        if given.dtype != np.uint8 or given.ndim != 3 or given.shape[2] != 3 or 0 in given.shape:
            raise ConvCircuitsError(
                f"Pictures must be uint8 of shape (h, w, 3); number {number} is {given.dtype} of shape {given.shape}."
            )
        sharp = max(given.shape[:2]) <= SHARP
        places.append((sharp, len(tiles[sharp])))
        tiles[sharp].append(_tile(given, size, sharp))
    pages = (*_pages(tiles[True], size), *_pages(tiles[False], size))
    numbers = [place if sharp else len(tiles[True]) + place for sharp, place in places]
    return Tiles(size, pages), np.array(numbers, dtype=np.int32)


def with_target_picture(document: Document, label: str, picture: Array) -> Document:
    """Return a document with one more picture of its target, uint8 (h, w, 3), and with the tile after the others.

    A document without pictures stays without: it has no place for them.
    """
    if not document.pictures:
        return document
    own, (first, *others) = document.tiles, document.pictures
    more, _ = pack([picture], size=own.size)
    first = replace(first, target=(*first.target, TargetPicture(label, len(own))))
    tiles = replace(own, pages=(*own.pages, *more.pages))
    return replace(document, tiles=tiles, pictures=(first, *others))


def data_url(picture: Array, *, lossless: bool = False) -> str:
    """Return one picture, uint8 (h, w, 3), as a data URL: PNG, or JPEG if that is smaller and losses are allowed."""
    kinds = ("png",) if lossless else ("png", "jpeg")
    kind, content = min((_encoded(picture, kind) for kind in kinds), key=lambda made: len(made[1]))
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"


def read_data_url(src: str) -> Array:
    """Return the picture of a data URL, uint8 (h, w, 3)."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(src.split(",", 1)[1]))).convert("RGB"))


def _tile(picture: Array, size: int, sharp: bool) -> Array:
    height, width = picture.shape[:2]
    scale = size / max(height, width)
    inner = (max(1, round(width * scale)), max(1, round(height * scale)))
    how = Image.Resampling.NEAREST if sharp else Image.Resampling.LANCZOS
    square = Image.new("RGB", (size, size), _MATT)
    square.paste(
        Image.fromarray(picture).resize(inner, how),
        ((size - inner[0]) // 2, (size - inner[1]) // 2),
    )
    return np.asarray(square)


def _pages(tiles: Sequence[Array], size: int) -> list[Page]:
    most = PAGE // size
    return [_page(tiles[first : first + most**2], size) for first in range(0, len(tiles), most**2)]


def _page(tiles: Sequence[Array], size: int) -> Page:
    columns = math.ceil(math.sqrt(len(tiles)))
    rows = math.ceil(len(tiles) / columns)
    page = np.zeros((rows * columns, size, size, 3), dtype=np.uint8)
    page[: len(tiles)] = tiles
    picture = page.reshape(rows, columns, size, size, 3).swapaxes(1, 2).reshape(rows * size, columns * size, 3)
    return Page(columns, len(tiles), data_url(picture))


def _encoded(picture: Array, kind: str) -> tuple[str, bytes]:
    file = io.BytesIO()
    # Full color resolution, because the edges of a small picture are its content. JPEGs are not optimized: libjpeg
    # would buffer the whole file, and Pillow's buffer is too small for grainy pictures. That costs about 1 % of a page.
    options = {"quality": 85, "subsampling": 0} if kind == "jpeg" else {"optimize": True}
    Image.fromarray(picture).save(file, kind, **options)
    return kind, file.getvalue()
