"""Choose a unit that is worth a circuit: statistics of all units of a layer in the full model, and a rule.

The rule considers no circuit, so that no unit is chosen because its circuit does well.
"""

import math
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from convcircuits.cards import card
from convcircuits.errors import ConvCircuitsError
from convcircuits.frames import frame
from convcircuits.maps.interior import FEWEST, Positions
from convcircuits.maps.sums import Sums
from convcircuits.maps.top import Ranking, full_maps, names_of
from convcircuits.network.batches import Batches, Images, Progress
from convcircuits.network.capture import Network
from convcircuits.network.masking import Subject
from convcircuits.network.surroundings import outside_autocast
from convcircuits.values.feature import Feature, Position, flattened
from convcircuits.values.measures import MEASURES, ranked
from convcircuits.values.report import without_nan
from convcircuits.values.tables import suggest
from convcircuits.values.top import Top

if TYPE_CHECKING:
    import pandas

ACTIVE = (0.05, 0.5)
"""Lowest and highest share of positions where a chosen unit is above zero."""

ACTIVE_IMAGES = 0.5
"""Lowest share of images with such a position."""

AVERAGE_MAP = 0.1
"""R2 of the average map must be below this."""

RULE = (
    "the unit whose rectified map varies most inside, of those (1) that are above zero, so that a ReLU passes them, at "
    f"{ACTIVE[0]:.0%} to {ACTIVE[1]:.0%} of all positions and on at least {ACTIVE_IMAGES:.0%} of the images, (2) whose "
    "map varies inside, where the receptive field does not reach the padding (or at the central positions, if there "
    f"are fewer than {FEWEST} inside), at least as much as over all positions, and (3) whose map is predicted by the "
    f"average map of other photographs with R2 below {AVERAGE_MAP:.2g}"
)
"""How ``choose_unit`` chooses. The rule considers no circuit."""


@dataclass(frozen=True)
class UnitStatistics:
    """Statistics of a unit of a layer on some images, in the full model.

    The value on an image is the highest of the unit's map.

    Attributes:
        unit: Index of the unit.
        active: Share of all positions, over all images, where it is above zero.
        active_images: Share of the images with such a position.
        highest: The highest value on any image.
        sparsity: Lifetime sparseness of its rectified values r_i on the n images, from 0 (all equal) to 1 (only one is
            above zero): (1 - (sum r_i / n)^2 / (sum r_i^2 / n)) / (1 - 1 / n). The fraction is the activity ratio of
            Treves and Rolls (1991); Vinje and Gallant (Science, 2000) scaled it. NaN if the unit is dead.
        at_border: Share of the images whose highest value is outside the interior: at the border, where padding has a
            part in it. NaN if no position, or too few, are interior.
        inside: Share of its variance, around its mean over images and positions, that is on interior positions: those
            whose receptive field lies inside the image, or the central ones if these are too few (``Interior``). NaN
            for a constant unit.
        interior: Share of the positions that are interior, the same for all units.
        average_map_r2: R2 of the average map of the other photographs, which does not see the image itself; NaN for a
            constant unit.
        rectified_variance: Variance of the rectified map, which the next layer reads, over interior positions.
        central: Whether the interior positions are the central ones.
    """

    unit: int
    active: float
    active_images: float
    highest: float
    sparsity: float
    at_border: float
    inside: float
    interior: float
    average_map_r2: float
    rectified_variance: float
    central: bool = False

    @property
    def dead(self) -> bool:
        """Whether the unit is never above zero, so that a ReLU never passes it."""
        return self.active == 0

    @property
    def allowed(self) -> bool:
        """Whether the rule may choose the unit."""
        return (
            ACTIVE[0] <= self.active <= ACTIVE[1]
            and self.active_images >= ACTIVE_IMAGES
            and self.inside >= self.interior
            and self.average_map_r2 < AVERAGE_MAP
        )

    def as_dict(self) -> dict[str, Any]:
        """Return all statistics as JSON values; NaN becomes None."""
        return {**without_nan(vars(self)), "dead": self.dead, "allowed": self.allowed}

    def summary(self) -> str:
        """Return the statistics as one line."""
        inside = "at the central positions" if self.central else "inside"
        return (
            f"unit {self.unit}: above zero at {self.active:.0%} of the positions and on {self.active_images:.0%} of "
            f"the images; {self.inside:.0%} of its variance {inside}, where {self.interior:.0%} of the positions are; "
            f"R2 of the average map {self.average_map_r2:z.2f}"
        )


class Units(list[UnitStatistics]):
    """The units of a layer, in order: a list that displays as a table.

    Attributes:
        top: The images on which each unit is highest on the interior, where padding has no part in it. (If too few
            positions are interior, the central ones count, see ``Interior``.)
    """

    def __init__(self, statistics: Iterable[UnitStatistics], top: Top) -> None:
        super().__init__(statistics)
        self.top = top

    @property
    def notes(self) -> list[str]:
        """Sentences on the units as a whole."""
        dead = [str(one.unit) for one in self if one.dead]
        allowed = [one for one in self if one.allowed]
        return [
            f"{len(dead)} of {len(self)} units are dead, that is never above 0 on these images"
            + (f": {', '.join(dead)}." if dead else "."),
            f"{len(allowed)} units may be chosen for a circuit by the rule"
            + (f", which prefers unit {choose_unit(allowed).unit}." if allowed else "."),
            f"{self[0].interior:.0%} of the positions of each map are interior"
            + (", the central ones, because too few see no padding." if self[0].central else "."),
        ]

    def __repr__(self) -> str:
        return f"Units({len(self)} of {self.top.feature.layer}, {self.top.images:,} images)"

    def ranked(self, by: str = "rectified_variance", *, lowest_first: bool = False) -> list[UnitStatistics]:
        """Sort the units by a measure; dead ones, and those for which it is not defined, come last.

        Args:
            by: Name of the measure, one of ``MEASURES``.
            lowest_first: Sort from the lowest instead of the highest.

        Raises:
            ConvCircuitsError: If there is no such measure.
        """
        if by not in MEASURES:
            raise ConvCircuitsError(f"There is no measure {by!r}. {suggest(by, MEASURES)}")
        order = ranked([one.as_dict() for one in self], by, lowest_first=lowest_first)
        statistics = {one.unit: one for one in self}
        return [statistics[row["unit"]] for row in order]

    def to_pandas(self) -> "pandas.DataFrame":
        """Return the statistics as a table with one row per unit, indexed by unit, and whether it is dead or allowed.

        Raises:
            ConvCircuitsError: If pandas is not installed (extra ``notebook``).
        """
        return frame([one.as_dict() for one in self], index="unit")

    def summary(self, by: str = "rectified_variance", *, lowest_first: bool = False, most: int = 20) -> str:
        """Return a table of at most ``most`` units, sorted as by ``ranked``, and sentences about the rest."""
        lines = [_HEAD, *map(_cells, self.ranked(by, lowest_first=lowest_first)[:most])]
        wide = [max(map(len, column)) for column in zip(*lines, strict=True)]
        table = ["  ".join(map(str.rjust, line, wide)) for line in lines]
        return "\n".join([self._title(), *table, *self.notes])

    def _repr_html_(self) -> str:
        return card(self._title(), _HEAD, map(_cells, self.ranked()), self.notes)

    def _title(self) -> str:
        return f"{len(self)} units of {self.top.feature.layer} on {self.top.images:,} images"


_HEAD = ("unit", *MEASURES.values(), "may be chosen")


def _cells(one: UnitStatistics) -> tuple[str, ...]:
    """Return a row of a table for people."""
    cells = []
    for name in MEASURES:
        value = getattr(one, name)
        share = name in ("active", "active_images", "at_border", "inside")
        cells.append("-" if math.isnan(value) else f"{value:.1%}" if share else f"{value:z.3g}")
    return (str(one.unit), *cells, "dead" if one.dead else "yes" if one.allowed else "no")


@outside_autocast
def units(
    model: nn.Module,
    layer: str,
    images: Images,
    *,
    call: int | None = None,
    count: int = 16,
    photographs: Sequence[Hashable] | None = None,
    names: Sequence[str] | None = None,
    batch_size: int = 16,
    progress: Progress | None = None,
) -> Units:
    """Describe all units of a layer: how often each is active, how much of that is due to padding, what drives it.

    One pass over the images, up to the layer, is enough.

    Args:
        model: Any CNN; it runs in eval mode.
        layer: Name of a module whose output is (N, C, H, W) or (N, C).
        images: As for ``score``, of one size; they may be more than fit into memory.
        call: Index of the layer's call, from 0, if it runs several times in one forward pass.
        count: Number of images to return on which each unit is highest, or all if there are fewer.
        photographs: The photograph that each image is a crop of, in order; crops of the same photograph are left out
            together for ``average_map_r2``, and one map per unit and photograph is held in memory. None: each image is
            its own photograph.
        names: As for ``top``.
        batch_size: Maximum number of images that run at once.
        progress: Called with the number of images done and their total (or None).

    Raises:
        ConvCircuitsError: As for ``top``, or if there is no such layer, it has no units, images come from only one
            photograph, or there is not one photograph for each image.

    Examples:
        >>> found = cc.units(model, "features.5", images)
        >>> len(found), found[1].unit
        (6, 1)
        >>> best = found.ranked("sparsity")[0]
        >>> found.top.highest.image[best.unit].shape
        torch.Size([12])
    """
    network = Network(model)
    batches = Batches(images, device=network.device, dtype=network.dtype, batch_size=batch_size, progress=progress)
    subject = all_units(network, layer, batches.first_shape(), position="interior", call=call)
    ranking = Ranking(Positions(subject), count=count, sample=0, seed=0)
    sums, done = Sums(ranking.positions.interior(subject.survey.input_shape), len(subject.rows)), 0
    for batch, maps, hashes in full_maps(subject, batches):
        ranking.add(batch, maps, hashes)
        sums.add(flattened(maps).cpu(), None if photographs is None else photographs[done : done + len(maps)])
        done += len(maps)
    if photographs is not None and len(photographs) != done:
        raise ConvCircuitsError(
            f"There are {done} images but {len(photographs)} photographs; give one photograph for each image."
        )
    statistics = (UnitStatistics(**one) for one in sums.statistics())
    return Units(statistics, ranking.top(batches, names_of(images) if names is None else names))


def choose_unit(statistics: Sequence[UnitStatistics]) -> UnitStatistics:
    """Choose a unit by ``RULE``.

    Raises:
        ConvCircuitsError: If the rule allows no unit.
    """
    allowed = [one for one in statistics if one.allowed]
    if not allowed:
        raise ConvCircuitsError(
            f"None of the {len(statistics)} units satisfies the rule: {RULE}. Name a unit yourself."
        )
    return max(allowed, key=lambda one: one.rectified_variance)


def all_units(
    network: Network, layer: str, shape: tuple[int, ...], *, position: Position = "all", call: int | None = None
) -> Subject:
    """Open a feature that consists of all units of a layer."""
    # Two images, since a model may squeeze() a batch of one.
    images = torch.zeros(2, *shape, device=network.device, dtype=network.dtype)
    with torch.no_grad():
        output = network.run(Feature(layer, 0, call=call), images, lambda call: call.compute())
    every = tuple(range(output.shape[1]))
    return Subject.open(network, Feature(layer, every, position=position, call=call), shape)
