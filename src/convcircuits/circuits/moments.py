"""Streaming statistics of pairs: a feature's values in the full model and in a circuit or baseline."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from convcircuits.maps.interior import Interior
from convcircuits.values.feature import Feature, flattened


class Moments:
    """Means and co-moments of pairs (full, circuit) in float64, merged batch by batch (Chan et al. 1979)."""

    def __init__(self, eps: float) -> None:
        self.n, self.eps = 0, eps
        self.full = self.circuit = 0.0
        self.ff = self.cc = self.fc = 0.0
        self.squared_error = 0.0

    def add(self, full: Tensor, circuit: Tensor) -> None:
        """Add pairs of values, of any shape."""
        f, c = full.double().flatten(), circuit.double().flatten()
        if not len(f):
            return
        n, mean_f, mean_c = f.numel(), float(f.mean()), float(c.mean())
        self.squared_error += float((f - c).square().sum())
        f, c = f - mean_f, c - mean_c
        total = self.n + n
        step_f, step_c, weight = mean_f - self.full, mean_c - self.circuit, self.n * n / total
        self.ff += float(f @ f) + step_f**2 * weight
        self.cc += float(c @ c) + step_c**2 * weight
        self.fc += float(f @ c) + step_f * step_c * weight
        self.full += step_f * n / total
        self.circuit += step_c * n / total
        self.n = total

    @property
    def full_constant(self) -> bool:
        """Whether the full model's values are constant, up to rounding."""
        return _constant(self.ff, self.full, self.n, self.eps)

    @property
    def circuit_constant(self) -> bool:
        """Whether the circuit's values are constant, up to rounding."""
        return _constant(self.cc, self.circuit, self.n, self.eps)

    def pearson(self) -> float:
        """Return Pearson's r of the two; NaN if either is constant."""
        if self.full_constant or self.circuit_constant or not math.isfinite(self.fc + self.ff + self.cc):
            return math.nan
        return max(-1.0, min(1.0, self.fc / math.sqrt(self.ff) / math.sqrt(self.cc)))

    def r2(self) -> float:
        """Return 1 - squared error / squared deviation of the full model's values; NaN if these are constant."""
        return math.nan if self.full_constant else 1 - self.squared_error / self.ff

    def line(self) -> tuple[float, float]:
        """Fit full = a circuit + d by least squares; a is 0 if the circuit is constant."""
        a = 0.0 if self.circuit_constant else self.fc / self.cc
        return a, self.full - a * self.circuit

    def r2_of_line(self, a: float, d: float) -> float:
        """Return R2 of a circuit + d."""
        if self.full_constant:
            return math.nan
        left = self.ff - 2 * a * self.fc + a * a * self.cc
        return 1 - (left + self.n * (self.full - a * self.circuit - d) ** 2) / self.ff


class Comparison:
    """Moments of a feature's counted values for each unit, and errors over all units.

    Attributes:
        units: The feature's units.
        several: Whether the feature has several units.
        values: Moments of all counted values, for each unit.
        interior: Moments of the values at interior positions.
        rectified: Moments of max(0, value).
        maxima: Moments of each image's highest value.
    """

    def __init__(self, feature: Feature, eps: float) -> None:
        self.several = isinstance(feature.unit, tuple)
        self.units = feature.unit if isinstance(feature.unit, tuple) else (feature.unit,)
        self.values, self.interior, self.rectified, self.maxima = ([Moments(eps) for _ in self.units] for _ in range(4))
        self.error = self.size = self.error_at_max = self.size_at_max = 0.0

    def add(self, full: Tensor, other: Tensor, inside: Tensor | None) -> None:
        """Add a batch.

        Args:
            full: Counted values in the full model, (N, P), or (N, U, P) for several units.
            other: The values to compare with them, of the same shape.
            inside: Which values are at interior positions, bool of the same shape; None if that is not known.
        """
        gap, best = (other - full).abs(), full.argmax(-1, keepdim=True)
        self.error += float(gap.sum())
        self.size += float(full.abs().sum())
        self.error_at_max += float(gap.gather(-1, best).sum())
        self.size_at_max += float(full.gather(-1, best).abs().sum())
        for u in range(len(self.units)):
            f, o = (full[:, u], other[:, u]) if self.several else (full, other)
            self.values[u].add(f, o)
            self.rectified[u].add(f.relu(), o.relu())
            self.maxima[u].add(f.amax(1), o.amax(1))
            if inside is not None:
                here = inside[:, u] if self.several else inside
                self.interior[u].add(f[here], o[here])

    def lines(self) -> list[tuple[float, float]]:
        """Fit each unit's full = a other + d."""
        return [moments.line() for moments in self.values]

    def pearson(self, moments: Sequence[Moments]) -> float:
        """Average r over units; of several, one that is constant only in the circuit counts as 0."""
        return _mean(moments, [0.0 if self.several and m.circuit_constant else m.pearson() for m in moments])

    def r2(self, moments: Sequence[Moments]) -> float:
        """Average R2 over units."""
        return _mean(moments, [m.r2() for m in moments])

    def r2_of_lines(self, lines: Sequence[tuple[float, float]]) -> float:
        """Average over units the R2 after lines that were fitted on other images."""
        return _mean(self.values, [m.r2_of_line(*line) for m, line in zip(self.values, lines, strict=True)])


class Averages:
    """The average of a feature's counted values over images, position by position, for each size of map."""

    def __init__(self) -> None:
        self._sums: dict[tuple[int, ...], Tensor] = {}
        self._counts: dict[tuple[int, ...], int] = {}

    def add(self, values: Tensor, shape: tuple[int, ...]) -> None:
        """Add counted values, (N, P) or (N, U, P), of maps with a given shape."""
        self._sums[shape] = self._sums.get(shape, torch.zeros(())) + values.sum(0)
        self._counts[shape] = self._counts.get(shape, 0) + len(values)

    def of(self, shape: tuple[int, ...]) -> Tensor | None:
        """Return the average, (P,) or (U, P), of maps with a given shape; None if there were none."""
        return self._sums[shape] / self._counts[shape] if shape in self._sums else None


class Census:
    """Statistics of the full model's maps of a feature on some images.

    Attributes:
        values: Number of counted values.
        positive: Number of values above 0.
        inside: Number of values at interior positions.
        maxima: Number of maps, one per image and unit.
        at_border: Number of maps that are highest outside the interior.
        interior: The interior of the maps. If maps differ in size, that of one size, preferably one whose interior is
            the central positions.
        problem: Why the interior is not known, for some size of image; empty if it is known.
    """

    def __init__(self) -> None:
        self.values = self.positive = self.inside = self.maxima = self.at_border = 0
        self.interior: Interior | None = None
        self.problem = ""

    def add(self, values: Tensor, full: Tensor, interior: Interior | None, inside: Tensor | None) -> None:
        """Add a batch's counted values and maps, and which of the values are at interior positions."""
        self.values += values.numel()
        self.positive += int((values > 0).sum())
        self.maxima += flattened(full)[..., 0].numel()
        if interior is None or inside is None:
            self.interior = None
            return
        self.inside += int(inside.sum())
        self.at_border += int((~interior.mask[flattened(full).argmax(-1).cpu()]).sum())
        self.interior = interior if self.interior is None or self.interior.inside else self.interior


def _mean(moments: Sequence[Moments], figures: Sequence[float]) -> float:
    """Average a figure over the units that are not constant in the full model."""
    defined = [figure for m, figure in zip(moments, figures, strict=True) if not m.full_constant]
    return sum(defined) / len(defined) if defined else math.nan


def _constant(moment: float, mean: float, n: int, eps: float) -> bool:
    return moment <= n * (8 * eps * mean) ** 2  # the spread that rounding in the model's dtype can cause
