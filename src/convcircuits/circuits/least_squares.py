"""Least squares of many filters at once, with a pull of their gains, which are non-negative if asked.

Each filter o minimizes, over the changes c of its kernels' gains from 1,

    |y_o - sum_i c_i z_oi|^2 + sum_i pull_oi (1 + c_i - toward)^2

where y_o is what the filter misses and z_oi what its kernels add, less their means.
"""

from abc import ABC, abstractmethod

import torch
from jaxtyping import Bool, Float
from torch import Tensor

_PATIENCE = 3  # exchanges of whole blocks that may fail to lower the number of wrong signs
_EXCHANGES = 100  # from then on nothing is let go again, so that the search ends also where maps depend on each other
_ROUNDING = 1e-12  # slopes below it have no sign


class LeastSquares(ABC):
    """The problems of some filters.

    Args:
        pull: What each squared difference from ``toward`` is multiplied by, (o, width).
        toward: The gain toward which gains are pulled.
        spread: Sums of squares of what is missing, and then of what kernels add, (o, 1 + width).
    """

    def __init__(self, pull: Float[Tensor, "o width"], toward: float, spread: Float[Tensor, "o width_and_1"]) -> None:
        self._pull, self._toward, self._spread = pull, toward, spread

    @abstractmethod
    def _changes(
        self, rows: Tensor, free: Bool[Tensor, "o width"], gone: Bool[Tensor, "o width"]
    ) -> Float[Tensor, "o width"]:
        """Return the best changes of some filters' free kernels: -1 for those that are gone, 0 for all others."""

    @abstractmethod
    def _correlations(self, rows: Tensor, changes: Float[Tensor, "o width"]) -> Float[Tensor, "o width"]:
        """Return the products of what is left missing in some filters and what their kernels add."""

    def solve(self, free: Bool[Tensor, "o width"]) -> Float[Tensor, "o width"]:
        """Return the best changes of free kernels."""
        return self._changes(torch.arange(len(free)), free, torch.zeros_like(free))

    def solve_positive(self, free: Bool[Tensor, "o width"]) -> Float[Tensor, "o width"]:
        """Return the best changes of free kernels that leave no gain below 0.

        Kernels whose gain would be negative get gain 0, and those at 0 that would do better above it are let go, as a
        block, until all signs are right (block principal pivoting: Portugal, Judice and Vicente, 1994). If that lowers
        the number of wrong ones no longer, one is exchanged at a time.
        """
        found, gone = self.solve(free), torch.zeros_like(free)
        wrong = free & (found < -1)
        fewest, patience = wrong.sum(1), torch.full((len(free),), _PATIENCE)
        for exchange in range(_EXCHANGES + free.shape[1] + 1):
            rows = wrong.any(1).nonzero()[:, 0]
            if not len(rows):
                break
            flipped = torch.where(patience[rows, None] > 0, wrong[rows], _last(wrong[rows]))
            gone[rows] ^= flipped
            found[rows] = self._changes(rows, free[rows] & ~gone[rows], gone[rows])
            wrong[rows] = free[rows] & ~gone[rows] & (found[rows] < -1)
            if exchange < _EXCHANGES:
                wrong[rows] |= gone[rows] & (self._slopes(rows, found[rows]) > _ROUNDING)
            count = wrong[rows].sum(1)
            patience[rows] = torch.where(count < fewest[rows], _PATIENCE, patience[rows] - 1)
            fewest[rows] = torch.minimum(fewest[rows], count)
        return found

    def _slopes(self, rows: Tensor, changes: Float[Tensor, "o width"]) -> Float[Tensor, "o width"]:
        """Return how much higher gains would lower the error, relative to all maps of a filter and a kernel's own."""
        pulled = self._pull[rows] * (self._toward - 1 - changes)
        size = self._spread[rows].sqrt()
        scale = size.sum(1, keepdim=True) * size[:, 1:]
        return torch.where(scale > 0, (self._correlations(rows, changes) + pulled) / scale, 0)


class ByProducts(LeastSquares):
    """Problems of which the products of all maps are known.

    Args:
        products: Products of what is missing, at 0, and what kernels add, (o, 1 + width, 1 + width).
        pull: As for ``LeastSquares``.
        toward: As for ``LeastSquares``.
        dependent: Relative size of an eigenvalue down to which maps are taken to depend on each other: they get the
            smallest changes. None if the pull decides between them.
    """

    def __init__(
        self,
        products: Float[Tensor, "o width_and_1 width_and_1"],
        pull: Float[Tensor, "o width"],
        toward: float,
        dependent: float | None,
    ) -> None:
        super().__init__(pull, toward, products.diagonal(dim1=1, dim2=2).clamp_min(0))
        self._products, self._dependent = products, dependent

    def _changes(
        self, rows: Tensor, free: Bool[Tensor, "o width"], gone: Bool[Tensor, "o width"]
    ) -> Float[Tensor, "o width"]:
        scale, pull = torch.where(free, self._spread[rows, 1:], 1).rsqrt(), self._pull[rows]
        products = self._products[rows]
        between = products[:, 1:, 1:] * free[:, :, None]
        gram, lost = between * free[:, None], (between * gone[:, None]).sum(2)
        system = gram * scale[:, :, None] * scale[:, None]
        system += torch.diag_embed(torch.where(free, pull * scale.square(), 1))
        wanted = torch.where(free, (products[:, 1:, 0] + lost + (1 - self._toward) * gram.sum(2)) * scale, 0)
        if self._dependent is None:
            found = torch.cholesky_solve(wanted[:, :, None], torch.linalg.cholesky(system))
        else:
            found = torch.linalg.pinv(system, rtol=self._dependent, hermitian=True) @ wanted[:, :, None]
        return torch.where(free, self._toward - 1 + found[..., 0] * scale, -gone.double())

    def _correlations(self, rows: Tensor, changes: Float[Tensor, "o width"]) -> Float[Tensor, "o width"]:
        products = self._products[rows]
        return products[:, 1:, 0] - (products[:, 1:, 1:] @ changes[..., None])[..., 0]


class ByValues(LeastSquares):
    """Problems of fewer positions than unknowns, which are solved in systems of the size of the positions.

    Args:
        values: What is missing, at 0, and what kernels add, (o, 1 + width, p).
        pull: As for ``LeastSquares``.
        toward: As for ``LeastSquares``.
    """

    def __init__(self, values: Float[Tensor, "o width_and_1 p"], pull: Float[Tensor, "o width"], toward: float) -> None:
        super().__init__(pull, toward, values.square().sum(2))
        self._values = values

    def _changes(
        self, rows: Tensor, free: Bool[Tensor, "o width"], gone: Bool[Tensor, "o width"]
    ) -> Float[Tensor, "o width"]:
        # (S S' + D)^-1 S = D^-1 S (S' D^-1 S + 1)^-1, and the second is of the size of the positions.
        scale, values = torch.where(free, self._spread[rows, 1:], 1).rsqrt(), self._values[rows]
        read = values[:, 1:] * free[..., None]
        scaled = read * scale[..., None]
        weighted = scaled / torch.where(free, self._pull[rows] * scale.square(), 1)[..., None]
        system = scaled.transpose(1, 2) @ weighted + torch.eye(values.shape[2], dtype=torch.float64)
        lost = (values[:, 1:] * gone[..., None]).sum(1)
        wanted = values[:, 0] + lost + (1 - self._toward) * read.sum(1)
        found = weighted @ torch.cholesky_solve(wanted[..., None], torch.linalg.cholesky(system))
        return torch.where(free, self._toward - 1 + found[..., 0] * scale, -gone.double())

    def _correlations(self, rows: Tensor, changes: Float[Tensor, "o width"]) -> Float[Tensor, "o width"]:
        values = self._values[rows]
        left = values[:, 0] - (changes[:, None] @ values[:, 1:])[:, 0]
        return (values[:, 1:] @ left[..., None])[..., 0]


def _last(wrong: Bool[Tensor, "o width"]) -> Bool[Tensor, "o width"]:
    """Return the last of the wrong ones of each row alone."""
    return wrong & (wrong.long().flip(1).cumsum(1).flip(1) == 1)
