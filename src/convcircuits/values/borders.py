"""Where a feature is highest on the images of groups: at the border, where padding is seen, or away from it."""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

from convcircuits.values.report import without_nan

Place = Literal["padding", "edge", "top", "bottom", "left", "right"]

PLACES: Mapping[Place, str] = {
    "padding": "where its receptive field leaves the image, so that it sees padding",
    "edge": "at the edge of its map, beside padding",
    "top": "in the first row of its map, beside padding",
    "bottom": "in the last row of its map, beside padding",
    "left": "in the first column of its map, beside padding",
    "right": "in the last column of its map, beside padding",
}

APART = 0.5
"""How much the shares of two groups at the border must differ before the groups may be the border."""

SURE = 0.01
"""The p-value up to which such a difference is none of chance."""


class Gap(NamedTuple):
    """How much more often a feature is highest at a place on the images of one group than on those of another.

    Attributes:
        place: The place.
        groups: The group with the larger share, and the other.
        difference: Of the shares.
        p_value: By Fisher's exact test, two-sided, times the number of places and pairs of groups that are compared.
    """

    place: Place
    groups: tuple[str, str]
    difference: float
    p_value: float

    @property
    def separates(self) -> bool:
        """Whether the difference is at least ``APART`` and the p-value at most ``SURE``."""
        return self.difference >= APART and self.p_value <= SURE


@dataclass(frozen=True)
class Borders:
    """On how many images of each group a feature is highest at the border, where padding is seen.

    In a deep layer the receptive field of most positions leaves the image, though only its outermost parts do. So the
    positions at the edge of the map, which lie beside padding, are counted, too, also by side.

    Attributes:
        images: Name of each group -> its number of images.
        counts: Place -> the number of images of each group on which the feature is highest there, in the same order:
            ``"padding"``, where its receptive field leaves the image; ``"edge"``, those of them in the first or last
            row or column of its map; and ``"top"``, ``"bottom"``, ``"left"`` and ``"right"``, those on one side.
        what: What the images are called in ``sentence``.
    """

    images: Mapping[str, int]
    counts: Mapping[Place, tuple[int, ...]]
    what: str = "images"

    def share(self, group: str, place: Place = "padding") -> float:
        """Return the share of a group's images on which the feature is highest at a place; NaN of no images."""
        count = self.counts[place][list(self.images).index(group)]
        return count / self.images[group] if self.images[group] else math.nan

    @cached_property
    def gap(self) -> Gap | None:
        """The largest difference between two groups at any place; one that separates them comes first.

        None if there are not two groups with images.
        """
        sizes = [(name, size) for name, size in self.images.items() if size]
        pairs = list(itertools.combinations(sizes, 2))
        found = []
        for place, (one, other) in itertools.product(self.counts, pairs):
            (a, n), (b, m) = sorted((one, other), key=lambda each: -self.share(each[0], place))
            first, second = (self.counts[place][list(self.images).index(name)] for name in (a, b))
            p_value = min(1.0, fisher(first, n, second, m) * len(self.counts) * len(pairs))
            found.append(Gap(place, (a, b), first / n - second / m, p_value))
        return max(found, key=lambda gap: (gap.separates, gap.difference, -gap.p_value)) if found else None

    @property
    def difference(self) -> float:
        """The largest difference of the shares of two groups; NaN if there are not two."""
        return math.nan if self.gap is None else self.gap.difference

    @property
    def separate(self) -> bool:
        """Whether the border tells two groups apart, so that they may be nothing else."""
        return self.gap is not None and self.gap.separates

    @property
    def sentence(self) -> str:
        """What to say of groups that the border tells apart; empty if it does not."""
        if self.gap is None or not self.separate:
            return ""
        counts = dict(zip(self.images, self.counts[self.gap.place], strict=True))
        said = [
            f"on {counts[name]} of {size} {self.what} of group {name}" for name, size in self.images.items() if size
        ]
        return (
            f"The groups differ in where the feature is highest: {PLACES[self.gap.place]}, {', '.join(said[:-1])} and "
            f"{said[-1]}. So they may be the border of the images, and not mechanisms of what is in them. Crops "
            "that have the maximum in their middle, or boxes inside the images (Boxes), can tell."
        )

    def as_dict(self) -> dict[str, Any]:
        """Return the counts and the largest difference as JSON values, NaN as None."""
        return {
            "images": dict(self.images),
            **{place: dict(zip(self.images, some, strict=True)) for place, some in self.counts.items()},
            "difference": without_nan(self.difference),
            "place": None if self.gap is None else self.gap.place,
            "p_value": None if self.gap is None else self.gap.p_value,
            "separate": self.separate,
        }


def fisher(first: int, of_first: int, second: int, of_second: int) -> float:
    """Return the two-sided p-value of Fisher's exact test, that two shares are of the same kind.

    It adds up the probabilities of all tables with the same sums that are no more likely than the one given.
    """
    both, every = first + second, of_first + of_second

    def likely(count: int) -> float:
        return math.exp(_log_choose(of_first, count) + _log_choose(of_second, both - count) - _log_choose(every, both))

    given = likely(first) * (1 + 1e-7)  # equal ones count, whatever their rounding
    tables = range(max(0, both - of_second), min(both, of_first) + 1)
    return min(1.0, sum(chance for chance in map(likely, tables) if chance <= given))


def _log_choose(count: int, some: int) -> float:
    return math.lgamma(count + 1) - math.lgamma(some + 1) - math.lgamma(count - some + 1)
