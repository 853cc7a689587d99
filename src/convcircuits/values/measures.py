"""What units are sorted by: names of their statistics, and the order. No torch, as the explorer's server sorts too."""

from collections.abc import Mapping, Sequence
from typing import Any

MEASURES = {
    "rectified_variance": "varies",
    "active": "active",
    "active_images": "images",
    "sparsity": "sparsity",
    "at_border": "at border",
    "inside": "inside",
    "average_map_r2": "average map",
    "highest": "highest",
}
"""What the units of a layer can be sorted by, and its heading in a table."""


def ranked(rows: Sequence[Mapping[str, Any]], by: str, *, lowest_first: bool = False) -> list[Mapping[str, Any]]:
    """Sort statistics of units by a measure; dead units, and those for which it is not defined, come last.

    Args:
        rows: As from ``UnitStatistics.as_dict``.
        by: Name of the measure.
        lowest_first: Sort from the lowest instead of the highest.
    """
    sign = 1 if lowest_first else -1

    def key(row: Mapping[str, Any]) -> tuple[bool, bool, float]:
        value = row[by]
        return row["dead"], value is None, 0.0 if value is None else sign * value

    return sorted(rows, key=key)
