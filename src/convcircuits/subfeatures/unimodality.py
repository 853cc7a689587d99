"""Is a sample of numbers unimodal? Hartigan's dip test."""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from convcircuits.errors import ConvCircuitsError

_SIMULATED = 1000
"""Samples of the null distribution."""

_LARGEST = 200
"""Size from which on the null distribution of sqrt(n) dip is taken as that of this size."""

_ROUNDING = 1e-12

Numbers = NDArray[np.float64]


def dip(values: Numbers) -> float:
    """Return the dip: the largest distance of the empirical distribution from the nearest unimodal one.

    A distribution function is unimodal if it is convex up to some point, the mode, and concave from there.

    Args:
        values: At least 2 finite numbers, (n,).

    Returns:
        The dip, at most 1/4; for distinct values at least 1 / (2n).

    Source: Hartigan and Hartigan, The dip test of unimodality, Annals of Statistics 13, 1985.
    """
    if len(values) < 2 or not bool(np.isfinite(values).all()):
        raise ConvCircuitsError(f"The dip needs at least two finite numbers; got {values!r}.")
    x, counts = np.unique(values, return_counts=True)
    after = np.cumsum(counts) / len(values)  # the distribution function at each value, and just before it
    before = after - counts / len(values)

    low, high, least = 0, len(x) - 1, 0.0
    while True:
        some = slice(low, high + 1)
        convex, concave = _convex(x[some], before[some]), -_convex(x[some], -after[some])
        on_convex, on_concave = convex >= before[some] - _ROUNDING, concave <= after[some] + _ROUNDING
        gap = np.where(on_convex | on_concave, concave - convex, 0)  # it is widest where one of the two bends
        widest = int(gap.argmax())
        if gap[widest] <= least:
            return least / 2
        # The mode lies between the last point before the widest gap where the convex function touches, and the first
        # after it where the concave one does. Outside, the two must hold.
        first = int(np.flatnonzero(on_convex[: widest + 1])[-1])
        last = widest + int(np.flatnonzero(on_concave[widest:])[0])
        below = (after[some] - convex)[:first].max(initial=0)
        above = (concave - before[some])[last + 1 :].max(initial=0)
        least = max(least, float(below), float(above))
        if (first, last) == (0, high - low):
            return least / 2
        low, high = low + first, low + last


def dip_p_value(values: Numbers) -> float:
    """Return the probability of a dip at least as large in a sample of equal size from a uniform distribution.

    The uniform distribution is the unimodal one whose samples dip most, for large samples. So the test is conservative
    for all others. Simulated with a fixed seed; at least 1 / 1001.
    """
    size = min(len(values), _LARGEST)
    null = _null(size)
    scaled = dip(values) * np.sqrt(len(values) / size)
    return float((1 + (null >= scaled - 1e-12).sum()) / (1 + len(null)))


@lru_cache
def _null(size: int) -> Numbers:
    dice = np.random.default_rng(size)
    return np.array([dip(dice.random(size)) for _ in range(_SIMULATED)])


def _convex(x: Numbers, y: Numbers) -> Numbers:
    """Return the greatest convex function below some points, at the points; x increases."""
    from scipy.optimize import isotonic_regression

    if len(x) < 3:
        return y
    steps = np.diff(x)
    slopes = isotonic_regression(np.diff(y) / steps, weights=steps).x
    return np.concatenate([y[:1], y[0] + np.cumsum(slopes * steps)])
