"""The compiled loop of ``Sums``. The module imports numba, so it is only imported where that is."""

from typing import Any

import numpy as np
from numba import njit

_BLOCK = 1024  # positions whose sums over images stay in a core's fastest cache


@njit(nogil=True, fastmath={"contract", "nsz", "reassoc"})  # sums in any order, or no vectors are used; NaN remains NaN
def add(maps: Any, interior: Any, total: Any, columns: Any, start: int, stop: int) -> None:
    """Add the maps of some images to the sums of some units. Nothing is checked.

    Args:
        maps: The maps, (n, u, p).
        interior: 1 at interior positions, else 0, (p,).
        total: The summed map of each unit, (u, p), in double precision.
        columns: The first five sums of ``Sums.columns``, (5 or more, u), in double precision.
        start: The first unit.
        stop: The unit after the last one.
    """
    images, _, positions = maps.shape
    for unit in range(start, stop):
        sums = np.zeros(5)
        for begin in range(0, positions, _BLOCK):
            weight, summed = interior[begin : begin + _BLOCK], total[unit, begin : begin + _BLOCK]
            for image in range(images):
                values = maps[image, unit, begin : begin + _BLOCK]
                # Sums of sums: in one long sum, rounding would make a constant unit vary.
                active, squares, squares_inside, rectified, rectified_squares = 0.0, 0.0, 0.0, 0.0, 0.0
                for p in range(len(values)):
                    value, inside = np.float64(values[p]), weight[p]
                    summed[p] += value
                    squares += value * value
                    squares_inside += value * value * inside
                    active += 1.0 if value > 0 else 0.0
                    positive = (value if value > 0 else 0.0) * inside
                    rectified += positive
                    rectified_squares += value * positive
                sums[0] += active
                sums[1] += squares
                sums[2] += squares_inside
                sums[3] += rectified
                sums[4] += rectified_squares
        for n in range(5):
            columns[n, unit] += sums[n]
