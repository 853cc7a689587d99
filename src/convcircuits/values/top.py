"""The images of a feature: those on which it is highest, and a sample over its range."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from convcircuits.cards import card
from convcircuits.frames import frame
from convcircuits.texts import printable
from convcircuits.values.feature import Feature

if TYPE_CHECKING:
    import pandas

_LISTED = 20  # units in a summary


@dataclass(frozen=True, eq=False)
class Examples:
    """Some images and, on each, the position where a unit is highest; one row per unit.

    Attributes:
        image: Index of each image, (U, K).
        value: The unit's value there, (U, K), float64.
        position: Row and column in the unit's map, (U, K, 2), from 0; (0, 0) for a Linear layer.
        box: The receptive field of that position: top, left, height and width in pixels of the image, (U, K, 4). It
            may extend beyond the image, into padding.
    """

    image: Int[Tensor, "u k"]
    value: Float[Tensor, "u k"]
    position: Int[Tensor, "u k two"]
    box: Int[Tensor, "u k four"]

    def __len__(self) -> int:
        """Return the number of images of each unit."""
        return self.image.shape[1]

    def beyond(self, size: tuple[int, int]) -> Bool[Tensor, "u k"]:
        """Return which boxes extend beyond images of size (H, W), into padding."""
        low, high = self.box[..., :2], self.box[..., :2] + self.box[..., 2:]
        return ((low < 0) | (high > torch.tensor(size))).any(2)


@dataclass(frozen=True, eq=False)
class Top:
    """The images on which each unit of a feature is highest, and a sample over its range.

    A single unit and a direction are one row.

    Attributes:
        feature: The feature.
        highest: The images on which each unit is highest, the highest first.
        sample: Images spread over the range of the unit's values, the highest first; no images if none were asked for.
        active: Share of all images on which the unit is above zero at the positions that count, (U,), float64.
        images: Number of all images.
        size: (H, W) of the images.
        names: Names of all images; empty if they have none.
        notes: Remarks needed to read the table correctly.
        provenance: How it was obtained, as JSON values.
    """

    feature: Feature
    highest: Examples
    sample: Examples
    active: Float[Tensor, "u"]
    images: int
    size: tuple[int, int]
    names: tuple[str, ...] = field(default=(), repr=False)
    notes: tuple[str, ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def __repr__(self) -> str:
        return f"Top({self.feature.slug}, {len(self.highest)} of {self.images:,} images)"

    @property
    def units(self) -> tuple[int | str, ...]:
        """What the rows are: indices of units, or ``"direction"``."""
        unit = self.feature.unit
        return unit if isinstance(unit, tuple) else ("direction",) if isinstance(unit, Tensor) else (unit,)

    def rows(self) -> list[dict[str, Any]]:
        """Return one row for each image of each unit, as JSON values.

        The columns are ``unit``; ``which``, ``"highest"`` or ``"sample"``; ``rank``, from 1; ``image``, its index;
        ``name``, empty if images have none; ``value``; ``row`` and ``column`` in the map; and the box in pixels of the
        image: ``top``, ``left``, ``height``, ``width``.
        """
        return [
            row
            for number in range(len(self.units))
            for which, examples in (("highest", self.highest), ("sample", self.sample))
            for row in self._rows(number, which, examples)
        ]

    def to_pandas(self) -> "pandas.DataFrame":
        """Return ``rows`` as a table.

        Raises:
            ConvCircuitsError: If pandas is not installed (extra ``notebook``).
        """
        return frame(self.rows())

    def summary(self) -> str:
        """Return the table of a unit, or one line for each of several, and the notes."""
        head, rows = self._cells()
        lines = [head, *rows] if rows else []
        wide = [max(map(len, column)) for column in zip(*lines, strict=True)]
        table = ["  ".join(map(str.ljust, line, wide)).rstrip() for line in lines]
        return "\n".join([self._title(), *table, *(f"note: {printable(note)}" for note in self._remarks())])

    def _repr_html_(self) -> str:
        return card(self._title(), *self._cells(), self._remarks())

    def _title(self) -> str:
        if len(self.units) == 1:
            return f"{self.feature} on {self.images:,} images: above 0 on {float(self.active[0]):.0%}"
        layer = self.feature.layer if self.feature.call is None else f"{self.feature.layer}#{self.feature.call}"
        return f"{len(self.units)} units of {layer} on {self.images:,} images"

    def _remarks(self) -> tuple[str, ...]:
        more = len(self.units) - _LISTED
        return (*self.notes, *([f"{more} more units are not listed; rows() has all."] if more > 0 else []))

    def _cells(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """Return the head and rows of a table for people."""
        if len(self.units) == 1:
            head = ("", "value", "row, column", "receptive field", "image")
            return head, [
                (
                    f"{row['which']} {row['rank']}",
                    f"{row['value']:.4g}",
                    f"{row['row']}, {row['column']}",
                    f"{row['height']} x {row['width']} at {row['top']}, {row['left']}",
                    printable(row["name"]) or str(row["image"]),
                )
                for row in self.rows()
            ]
        return ("unit", "images above 0", "highest", "on"), [
            (
                str(unit),
                f"{float(self.active[n]):.0%}",
                f"{float(self.highest.value[n, 0]):.4g}",
                ", ".join(printable(self._name(i)) or str(i) for i in self.highest.image[n, :3].tolist()),
            )
            for n, unit in enumerate(self.units[:_LISTED])
        ]

    def _rows(self, number: int, which: str, examples: Examples) -> Iterator[dict[str, Any]]:
        tables = (examples.image, examples.value, examples.position, examples.box)
        for rank, (image, value, position, box) in enumerate(
            zip(*(t[number].tolist() for t in tables), strict=True), 1
        ):
            yield {
                "unit": self.units[number],
                "which": which,
                "rank": rank,
                "image": image,
                "name": self._name(image),
                "value": value,
                **dict(zip(("row", "column"), position, strict=True)),
                **dict(zip(("top", "left", "height", "width"), box, strict=True)),
            }

    def _name(self, image: int) -> str:
        return self.names[image] if self.names else ""
