"""Read the boxes of photographs from a table, such as ``top`` writes, and place them on a model's images."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import torch

from convcircuits.errors import ConvCircuitsError
from convcircuits.texts import names
from convcircuits.values.boxes import Boxes
from convcircuits.values.feature import Feature
from convcircuits.zoo.images import Crops, Photograph
from convcircuits.zoo.preprocessing import Preprocessing, Region, region_shown

_SIDES = ("photo_top", "photo_left", "photo_height", "photo_width")


def read_boxes(path: str | Path, feature: Feature) -> dict[str, Region]:
    """Return the box of each photograph that a table names, in pixels of the photograph.

    Args:
        path: A CSV file with the columns ``name``, ``photo_top``, ``photo_left``, ``photo_height`` and ``photo_width``,
            such as the ``top.csv`` of ``convcircuits top``.
        feature: The feature that counts in the boxes. If the table has columns ``layer`` and ``unit``, only the rows of
            the feature's layer and of its unit count; a direction or several units have those of all units.

    Raises:
        ConvCircuitsError: If the file cannot be read, lacks a column, has no rows of the feature, a box is not four
            numbers or has no area, or a photograph has two different boxes.
    """
    try:
        with Path(path).open(newline="", encoding="utf-8-sig") as file:
            table = csv.DictReader(file)
            columns, rows = table.fieldnames or (), list(table)
    except (OSError, ValueError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConvCircuitsError(f"{path} is not a readable table of boxes: {reason}.") from error
    missing = [name for name in ("name", *_SIDES) if name not in columns]
    if missing:
        raise ConvCircuitsError(
            f"{path} has no column {', '.join(missing)}; give a table such as the top.csv of convcircuits top."
        )
    if "layer" in columns:
        rows = [row for row in rows if row["layer"] == feature.layer]
    if isinstance(feature.unit, int) and "unit" in columns:
        rows = [row for row in rows if row["unit"] == str(feature.unit)]
    if not rows:
        raise ConvCircuitsError(f"{path} has no boxes of {feature}.")
    found: dict[str, Region] = {}
    for row in rows:
        box = _box(path, row["name"], [row[side] for side in _SIDES])
        if found.setdefault(row["name"], box) != box:
            raise ConvCircuitsError(f"{path} has two boxes for {row['name']!r:.80}; give each photograph one box.")
    return found


def _box(path: str | Path, name: str | None, sides: Sequence[str | None]) -> Region:
    if not name:
        raise ConvCircuitsError(f"{path} has a row without the name of a photograph; add it, or remove the row.")
    try:
        box = Region(*(float(side or "") for side in sides))
    except ValueError:
        box = Region(math.nan, 0, 0, 0)
    if not all(map(math.isfinite, box)) or min(box.height, box.width) <= 0:
        raise ConvCircuitsError(
            f"The box of {name!r:.80} in {path} is {', '.join(map(str, sides))}; expected top, left, height and width "
            "in pixels of the photograph, the last two above 0."
        )
    return box


def having_a_box(photographs: Sequence[Photograph], boxes: dict[str, Region], source: str) -> list[Photograph]:
    """Return the photographs that have a box.

    Raises:
        ConvCircuitsError: If a box is of a photograph that is not there.
    """
    missing = sorted(boxes.keys() - {photograph.name for photograph in photographs})
    if missing:
        raise ConvCircuitsError(f"There are boxes of photographs that {source} does not have: {names(missing)}.")
    return [photograph for photograph in photographs if photograph.name in boxes]


def placed(
    boxes: dict[str, Region],
    photographs: Sequence[Photograph],
    preprocess: Preprocessing,
    parts: Sequence[tuple[Sequence[str], torch.Tensor | Crops]],
) -> Boxes:
    """Return the boxes on a model's images, each of which is a whole photograph.

    Args:
        boxes: The box of each photograph, in its pixels.
        photographs: The photographs.
        preprocess: What turned them into images.
        parts: The names of photographs and their images, in the same order.

    Raises:
        ConvCircuitsError: If the model's images are not parts of photographs, or a box lies outside of its image.
    """
    by_name = {photograph.name: photograph for photograph in photographs}
    found, images = [], []
    for those, some in parts:
        batches = [some] if isinstance(some, torch.Tensor) else some
        for name, image in zip(those, chain.from_iterable(batches), strict=True):
            shown = region_shown(preprocess, by_name[name].image.size)
            found.append(_on_image(name, boxes[name], shown, (image.shape[1], image.shape[2])))
            images.append(image[None])
    return Boxes.of(images, found)


def _on_image(name: str, box: Region, shown: Region, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return a box in whole pixels of an image of a size (H, W) that shows a region of the photograph."""
    part = box.within(shown)
    if min(part.height, part.width) <= 0:
        raise ConvCircuitsError(
            f"The box of {name!r:.80} lies outside of what the model sees of the photograph: it takes its center, "
            f"{shown.width:.0f} x {shown.height:.0f} pixels from row {shown.top:.0f} and column {shown.left:.0f}."
        )
    rows, columns = size[0] / shown.height, size[1] / shown.width
    top, left = round((part.top - shown.top) * rows), round((part.left - shown.left) * columns)
    bottom = round((part.top + part.height - shown.top) * rows)
    right = round((part.left + part.width - shown.left) * columns)
    top, left = min(top, size[0] - 1), min(left, size[1] - 1)
    return top, left, max(bottom - top, 1), max(right - left, 1)
