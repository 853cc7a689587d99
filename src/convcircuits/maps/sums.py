"""Sums over the maps of many images, for all units of a layer at once, from which their statistics follow.

They are taken in double precision. If numba is installed, a compiled loop reads each value once for all sums, which
takes a quarter of the time of sums by torch.
"""

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from convcircuits.errors import ConvCircuitsError
from convcircuits.loops import has_loops
from convcircuits.maps.interior import Interior, highest_of
from convcircuits.threads import on_all_threads

_IN_CACHE = 2**17
"""Number of values, in double precision, that stay in a core's cache."""

_ROUNDING = 1e-12
"""A variance below this share of the mean square may come from rounding: the unit is constant as far as sums tell."""

COMPILED_AFTER = 2**30
"""Number of values that a process sums by torch before it compiles the loop, which takes as long as these sums."""


class Sums:
    """Sums over images for each unit, from which all statistics follow, (U,), and the summed map of each, (U, P).

    Args:
        interior: The interior of the units' maps.
        units: Number of units.

    Attributes:
        images: Number of images so far.
        by_torch: Number of values that this process has summed by torch, in all its ``Sums``.
    """

    by_torch = 0
    _COLUMNS = (
        "active",
        "squares",
        "squares_inside",
        "rectified",
        "rectified_squares",
        "active_images",
        "values",
        "value_squares",
        "at_border",
        "highest",
    )
    _OF_MAPS = 5  # the columns that are sums over positions

    def __init__(self, interior: Interior, units: int) -> None:
        self.interior, self.central, self.images = interior.mask, not interior.inside, 0
        self._map, (rows, self._columns) = interior.map, interior.window
        self._rows = torch.zeros(interior.map[0], dtype=torch.double)
        self._rows[rows] = 1
        self.total = torch.zeros(units, len(interior.mask), dtype=torch.double)
        self.columns = torch.zeros(len(self._COLUMNS), units, dtype=torch.double)
        self.columns[-1] = -math.inf
        self.by_photograph: dict[Hashable, Tensor] = {}
        self.crops: dict[Hashable, int] = {}

    def add(
        self,
        maps: Float[Tensor, "n u p"],
        photographs: Sequence[Hashable] | None = None,
        highest: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        """Add the maps of some images.

        Args:
            maps: The flattened maps, on the CPU.
            photographs: The photograph that each image is a crop of; None if each is its own.
            highest: The highest value of each map and its first position, (n, u) each, if they are known.
        """
        self.images += len(maps)
        active_images, values, value_squares, at_border, highest_so_far = self.columns[self._OF_MAPS :]
        folded = maps.reshape(*maps.shape[:2], *self._map)
        value, place = highest_of(folded) if highest is None else highest
        value = value.double()
        torch.maximum(highest_so_far, value.amax(0), out=highest_so_far)
        active_images += (value > 0).sum(0)
        values += value.clamp_min(0).sum(0)
        value_squares += value.clamp_min(0).square().sum(0)
        at_border += (~self.interior[place]).sum(0)
        if Sums.by_torch >= COMPILED_AFTER and has_loops(maps):
            self._add_in_loop(maps)
        else:
            self._add_by_torch(folded)
            Sums.by_torch += maps.numel()
        for photograph, one in zip(() if photographs is None else photographs, maps, strict=False):
            self.by_photograph[photograph] = self.by_photograph.get(photograph, 0) + one.double()
            self.crops[photograph] = self.crops.get(photograph, 0) + 1

    def _add_by_torch(self, folded: Float[Tensor, "n u h w"]) -> None:
        """Add what is summed over positions."""
        active, squares, squares_inside, rectified, rectified_squares = self.columns[: self._OF_MAPS]
        total = self.total.view(-1, *self._map)
        for some, where, part in parts_in_cache(folded):
            rows = self._rows[where]
            total[some, where] += part.sum(0)
            squares[some] += _squares(part.flatten(2)).sum(0)
            squares_inside[some] += (_squares(part[..., self._columns]) @ rows).sum(0)
            part.clamp_min_(0)
            rectified[some] += (part[..., self._columns].sum(3) @ rows).sum(0)
            rectified_squares[some] += (_squares(part[..., self._columns]) @ rows).sum(0)
            active[some] += part.sign_().sum((0, 2, 3))

    def _add_in_loop(self, maps: Float[Tensor, "n u p"]) -> None:
        """Add what is summed over positions, in the compiled loop."""
        from convcircuits.maps import sums_loop

        given = (maps.contiguous(), self.interior.double(), self.total, self.columns)
        arrays: Any = [one.numpy() for one in given]
        on_all_threads(sums_loop.add, arrays, rows=len(self.total))

    def statistics(self) -> Iterator[dict[str, Any]]:
        """Yield the attributes of each unit's ``UnitStatistics``.

        Raises:
            ConvCircuitsError: If all images are of one photograph.
        """
        if self.images < 2 or len(self.by_photograph) == 1:
            raise ConvCircuitsError("All images are of one photograph; give images of at least two.")
        n, inside, positions = self.images, self.interior, self.total.shape[1]
        active, squares, squares_inside, rectified, rectified_squares, *of_images = self.columns
        active_images, values, value_squares, at_border, highest = of_images
        within = int(inside.sum())
        mean = self.total.mean(1) / n

        def spread(squares: Tensor, total: Tensor, count: int) -> Tensor:  # around the one mean
            return squares - 2 * mean * total.sum(1) + n * count * mean.square()

        variance = spread(squares, self.total, positions)
        constant = variance <= _ROUNDING * squares
        share = spread(squares_inside, self.total[:, inside], within) / variance
        evenness = (values / n).square() / (value_squares / n)
        figures = {
            "active": active / positions / n,
            "active_images": active_images / n,
            "highest": highest,
            "sparsity": ((1 - evenness) / (1 - 1 / n)).clamp_min(0),
            "at_border": torch.full_like(mean, math.nan) if self.central else at_border / n,
            "inside": share.masked_fill(constant, math.nan),
            "interior": inside.double().mean().expand(len(mean)),
            "average_map_r2": (1 - self._missed(squares) / variance).masked_fill(constant, math.nan),
            "rectified_variance": (rectified_squares / within / n - (rectified / within / n).square()).clamp_min(0),
        }
        columns = {name: values.tolist() for name, values in figures.items()}
        for unit in range(len(mean)):
            yield {"unit": unit, **{name: values[unit] for name, values in columns.items()}, "central": self.central}

    def _missed(self, squares: Tensor) -> Float[Tensor, "u"]:
        """Return the squared error of the average map of other photographs, summed over images and positions."""
        n = self.images
        if not self.by_photograph:  # each image is its own: it is left out of the mean in closed form
            return (squares - self.total.square().sum(1) / n) * (n / (n - 1)) ** 2
        missed = squares.clone()
        for photograph, own in self.by_photograph.items():
            count = self.crops[photograph]
            others = (self.total - own) / (n - count)
            missed += (count * others.square() - 2 * others * own).sum(1)
        return missed

    def state(self) -> dict[str, Tensor]:
        """Return the sums so far, to go on from them; images must be their own photographs."""
        return {"total": self.total, "columns": self.columns}

    def resume(self, state: Mapping[str, Tensor], images: int) -> None:
        """Go on from the sums of some images."""
        self.total, self.columns, self.images = state["total"], state["columns"], images


def parts_in_cache(
    maps: Float[Tensor, "n u h w"],
) -> Iterator[tuple[slice, slice, Float[Tensor, "n some where w"]]]:
    """Yield maps in parts that stay in a core's cache, so that many sums of them take a fraction of the time.

    Each part is some units, some rows, and their values on all images in double precision. These may be changed; the
    next part overwrites them.
    """
    images, units, height, width = maps.shape
    few = max(1, _IN_CACHE // max(1, images * height * width))
    tall = max(1, min(height, _IN_CACHE // max(1, images * width)))
    room = torch.empty(images * few * tall * width, dtype=torch.double)  # new memory would take longer than the sums
    for unit in range(0, units, few):
        for row in range(0, height, tall):
            some, where = slice(unit, unit + few), slice(row, row + tall)
            part = maps[:, some, where]
            yield some, where, room[: part.numel()].view(part.shape).copy_(part)


def _squares(values: Float[Tensor, "*some p"]) -> Float[Tensor, "*some"]:
    """Return the sum of the squares of the last dimension."""
    norm: Tensor = torch.linalg.vector_norm(values, dim=-1)  # which, unlike a sum, stores no squares
    return norm.square_()
