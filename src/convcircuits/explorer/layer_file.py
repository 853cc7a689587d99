"""A layer's file of the index: what drives its units, looked up without torch."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from safetensors.numpy import load as from_bytes

from convcircuits import seals
from convcircuits.files import safe_name

INDEX = "convcircuits-index/1"


def index_file(number: int, layer: str) -> str:
    """Return the name of a layer's file in the folder of an index."""
    return f"{number:03}-{safe_name(layer)}.safetensors"


@dataclass(frozen=True)
class LayerFile:
    """A layer of an index.

    Attributes:
        header: The file's header.
        arrays: Its arrays, as ``explorer.index`` wrote them.
    """

    header: Mapping[str, Any]
    arrays: Mapping[str, np.ndarray]

    @classmethod
    def read(cls, content: bytes) -> "LayerFile":
        """Read a file's content. Errors are those of any damaged file."""
        arrays = from_bytes(content)
        header = json.loads(seals.metadata(content)[seals.KEY])
        if header["schema"] != INDEX or not seals.is_sealed(content, header):
            raise ValueError("its checksum does not match")
        return cls(header, arrays)

    def highest(self, unit: int, *, padding: bool) -> list[dict[str, Any]]:
        """Return the images on which a unit is highest, on the interior or anywhere."""
        where = "anywhere" if padding else "inside"
        image, value, position, box = (
            self.arrays[f"{where}/{name}"][unit].tolist() for name in ("image", "value", "position", "box")
        )
        return [
            {"image": i, "value": v, "position": p, "box": b}
            for i, v, p, b in zip(image, value, position, box, strict=True)
        ]

    def among(self, unit: int, order: Callable[[np.ndarray], np.ndarray], count: int) -> list[dict[str, Any]]:
        """Return images of the pool, in the order of a function of the unit's highest values on the interior."""
        values = self.arrays["pool/value"][unit]
        return [self._example(unit, int(place)) for place in order(values)[:count]]

    def _example(self, unit: int, place: int) -> dict[str, Any]:
        width = self.header["map"][1]
        row, column = divmod(int(self.arrays["pool/place"][unit, place]), width)
        return {
            "image": int(self.arrays["pool/image"][place]),
            "value": float(self.arrays["pool/value"][unit, place]),
            "position": [row, column],
            "box": self.box(row, column),
        }

    def box(self, row: int, column: int) -> list[int]:
        """Return the receptive field of a position: top, left, height and width in pixels of the model's image."""
        (top, bottom), (left, right) = self.arrays["rows"][row].tolist(), self.arrays["columns"][column].tolist()
        return [top, left, bottom - top, right - left]

    def nearest(self, y: float, x: float) -> list[int]:
        """Return the row and column of the position whose receptive field is centered closest to a pixel."""
        centers = (self.arrays[name].mean(1) for name in ("rows", "columns"))
        return [int(np.abs(center - at).argmin()) for center, at in zip(centers, (y, x), strict=True)]

    def quantiles(self, values: np.ndarray) -> np.ndarray:
        """Return the share of counted positions where each unit is at most as high as a value, in float64.

        Args:
            values: A value for each unit, (U,). Within a bin, shares are in proportion.
        """
        counts, exponent = self.arrays["histogram/counts"], self.arrays["histogram/exponent"]
        (units, bins), below = counts.shape, self._below
        place = np.clip(values / 2.0**exponent + bins // 2, 0, bins)
        whole = np.minimum(place.astype(int), bins - 1)
        each = np.arange(units)
        shares: np.ndarray = (below[each, whole] + (place - whole) * counts[each, whole]) / below[:, -1].clip(1)
        return shares

    @cached_property
    def _below(self) -> np.ndarray:
        """How many of each unit's counted positions are below each edge of its histogram, (U, BINS + 1)."""
        counts = self.arrays["histogram/counts"]
        return np.concatenate([np.zeros((len(counts), 1), int), counts.cumsum(1)], 1)

    def histogram(self, unit: int) -> dict[str, Any]:
        """Return a unit's histogram without the empty bins at its ends."""
        counts, width = self.arrays["histogram/counts"][unit], 2.0 ** int(self.arrays["histogram/exponent"][unit])
        (full,) = counts.nonzero()
        first, last = (int(full[0]), int(full[-1]) + 1) if len(full) else (0, 0)
        half = len(counts) // 2
        return {
            "edges": [(n - half) * width for n in range(first, last + 1)],
            "counts": counts[first:last].tolist(),
            "every": self.header["every"],
        }
