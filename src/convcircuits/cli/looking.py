"""Shared by ``top`` and ``units``: every photograph as one image, and the parts of photographs on contact sheets."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from PIL import Image

import convcircuits as cc
from convcircuits.cli.console import Report, progress
from convcircuits.contact_sheets import Tile, part_of
from convcircuits.network.batches import Progress, begin
from convcircuits.recipes import loaded_model, notes_on, side
from convcircuits.values.recipe import Recipe
from convcircuits.zoo.images import originals, photographs
from convcircuits.zoo.models import LoadedModel
from convcircuits.zoo.prepared import Prepared, in_threads
from convcircuits.zoo.preprocessing import Region

_READERS = 4
_USUAL = (640, 480)  # a photograph's size


@dataclass(frozen=True)
class View:
    """A model and photographs, each of which is one image.

    Attributes:
        loaded: The model.
        images: Its images.
        left_out: Files that are not pictures.
        copies: Name of each photograph that is left out as a copy of another -> name of that one.
    """

    loaded: LoadedModel
    images: Prepared
    left_out: list[str]
    copies: Mapping[str, str]

    @property
    def unreadable(self) -> list[str]:
        """All files that could not be read, after a pass."""
        return [*self.left_out, *self.images.unreadable]

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader must know about the photographs and their normalization, after a pass."""
        return notes_on(self.loaded, self.unreadable, list(self.copies))

    def said(self) -> dict[str, Any]:
        """Return what there is to say of the model and the photographs as JSON values, after a pass."""
        return {
            "model": self.loaded.name,
            "normalization": self.loaded.normalization,
            "photographs": len(self.images.photographs),
            "unreadable": self.unreadable,
            "copies": list(self.copies),
        }

    def told(self, report: Report) -> Progress:
        """Return a callback for a pass that knows the number of photographs."""
        return lambda done, _: report(done, len(self.images))


def view(source: str, *, size: int | None, batch_size: int, device: str, model: str, **loading: Any) -> View:
    """Load a model and list photographs, without reading any.

    Raises:
        ConvCircuitsError: If that is not possible, or the model's images are not parts of photographs.
    """
    with progress("loading the model and photographs"):
        loaded = loaded_model(Recipe.of({"model": model, "feature": "", **loading}), device)
        pictures, left_out = photographs(source)
        first = originals(pictures)
        kept = [pictures[n] for n in sorted(set(first))]
        images = Prepared(kept, loaded.preprocess, size=side(size), batch_size=batch_size, threads=_READERS)
        images.region(_USUAL)
    copies = {one.name: pictures[n].name for one, n in zip(pictures, first, strict=True) if pictures[n] is not one}
    return View(loaded, images, left_out, copies)


def cut(
    found: "cc.Top", images: Prepared, side: int, report: Report
) -> tuple[list[dict[str, Any]], dict[tuple[int | str, str], list[Tile]]]:
    """Cut out what each unit sees on its images.

    Returns:
        The rows of ``found`` with the part of the photograph that is seen, in pixels of the photograph; and a tile for
        each, by unit and by ``which``.
    """
    begin(report, "cutting out parts of photographs")
    rows = found.rows()
    by_image: dict[int, list[int]] = {}
    for place, row in enumerate(rows):
        by_image.setdefault(row["image"], []).append(place)

    def parts(image: int) -> list[tuple[Region, Image.Image]]:
        picture = images.photographs[image].image
        shown = images.region(picture.size)
        whole = Region(0, 0, picture.height, picture.width)
        both = []
        for place in by_image[image]:
            window = shown.part([rows[place][name] for name in ("top", "left", "height", "width")], found.size)
            seen = window.within(shown).within(whole)
            both.append((seen, part_of(picture, window, seen, side)))
        return both

    names, tiles = short(images.names), dict[int, Tile]()
    for done, (places, found_there) in enumerate(
        zip(by_image.values(), in_threads(parts, by_image, _READERS, 2 * _READERS), strict=True), start=1
    ):
        for place, (seen, picture) in zip(places, found_there, strict=True):
            rows[place] |= _in_pixels(seen)
            tiles[place] = Tile(picture, f"{rows[place]['value']:.3g}", names[rows[place]["image"]])
        report(done, len(by_image))
    sorted_: dict[tuple[int | str, str], list[Tile]] = {}
    for place, row in enumerate(rows):
        sorted_.setdefault((row["unit"], row["which"]), []).append(tiles[place])
    return rows, sorted_


def short(names: Sequence[str]) -> list[str]:
    """Return names without suffixes, and without folders if they are distinct in that form."""
    stems = [PurePosixPath(name).stem for name in names]
    often = Counter(stems)
    return [
        stem if often[stem] == 1 else str(PurePosixPath(name).with_suffix(""))
        for name, stem in zip(names, stems, strict=True)
    ]


def _in_pixels(region: Region) -> Mapping[str, int]:
    """Return whole pixels of a photograph, at least one, as columns of a table."""
    top, left = round(region.top), round(region.left)
    sides = (max(1, round(region.top + region.height) - top), max(1, round(region.left + region.width) - left))
    return dict(zip(("photo_top", "photo_left", "photo_height", "photo_width"), (top, left, *sides), strict=True))


def described(found: "cc.Top") -> Sequence[str]:
    """Return the remarks at the head of a contact sheet."""
    height, width = found.size
    where = " on the interior" if found.feature.position == "interior" else ""
    hatched = any(bool(some.beyond(found.size).any()) for some in (found.highest, found.sample))
    return [
        f"{found.images:,} photographs, each one image of {height} x {width} pixels. A picture is the part of a "
        f"photograph that the unit sees where it is highest{where}; below it the value."
        + (" Hatched: outside of the image, where the unit sees padding." if hatched else "")
    ]
