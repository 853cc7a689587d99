"""Choose a unit that is worth a circuit: statistics of all units of a layer in the full model, and a rule.

The rule considers no circuit, so that no unit is chosen because its circuit does well.
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from convcircuits.errors import ConvCircuitsError
from convcircuits.maps.interior import FEWEST, Interior, Positions
from convcircuits.network.batches import Batches, Images, Progress
from convcircuits.network.capture import Network
from convcircuits.network.masking import Subject
from convcircuits.values.feature import Feature

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

    Attributes:
        unit: Index of the unit.
        active: Share of all positions, over all images, where it is above zero.
        active_images: Share of the images with such a position.
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
    inside: float
    interior: float
    average_map_r2: float
    rectified_variance: float
    central: bool = False

    @property
    def allowed(self) -> bool:
        """Whether the rule may choose the unit."""
        return (
            ACTIVE[0] <= self.active <= ACTIVE[1]
            and self.active_images >= ACTIVE_IMAGES
            and self.inside >= self.interior
            and self.average_map_r2 < AVERAGE_MAP
        )

    def summary(self) -> str:
        """Return the statistics as one line."""
        inside = "at the central positions" if self.central else "inside"
        return (
            f"unit {self.unit}: above zero at {self.active:.0%} of the positions and on {self.active_images:.0%} of "
            f"the images; {self.inside:.0%} of its variance {inside}, where {self.interior:.0%} of the positions are; "
            f"R2 of the average map {self.average_map_r2:z.2f}"
        )


def unit_statistics(
    model: nn.Module,
    layer: str,
    images: Images,
    *,
    photographs: Sequence[Hashable] | None = None,
    batch_size: int = 16,
    progress: Progress | None = None,
) -> list[UnitStatistics]:
    """Return, for each unit of a layer, how often it is active and how much of its variation is at the border.

    Args:
        model: Any CNN.
        layer: Name of a module whose output is (N, C, H, W) or (N, C).
        images: As for ``score``, of one size.
        photographs: The photograph that each image is a crop of, in order; crops of the same photograph are left out
            together for ``average_map_r2``. None: each image is its own photograph. One map per unit and photograph is
            held in memory.
        batch_size: Maximum number of images that run at once.
        progress: Called with the number of images done and their total (or None).

    Raises:
        ConvCircuitsError: If there is no such layer, it has no units, images do not fit the model or come from only
            one photograph, or there is not one photograph for each image.
    """
    network = Network(model)
    batches = Batches(images, device=network.device, dtype=network.dtype, batch_size=batch_size)
    shape = batches.first_shape()
    subject = all_units(network, layer, shape)
    sums, done = _Sums(Positions(subject).interior(shape)), 0
    for batch in batches:
        if tuple(batch.shape[1:]) != shape:
            raise ConvCircuitsError(
                f"Images have shapes {shape} and {tuple(batch.shape[1:])}; give images of one size."
            )
        names = range(done, done + len(batch)) if photographs is None else photographs[done : done + len(batch)]
        with torch.no_grad():
            maps = subject.maps(batch)
        sums.add(maps.reshape(*maps.shape[:2], -1).cpu().double(), names)
        done += len(batch)
        if progress is not None:
            progress(done, batches.total)
    if photographs is not None and len(photographs) != done:
        raise ConvCircuitsError(
            f"There are {done} images but {len(photographs)} photographs; give one photograph for each image."
        )
    return sums.statistics()


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


class _Sums:
    """Sums over images for each position, from which all statistics follow."""

    def __init__(self, interior: Interior) -> None:
        self.interior, self.central, self.images = interior.mask, not interior.inside, 0
        self.active = self.active_images = self.squares = self.rectified = self.rectified_squares = torch.zeros(())
        self.by_photograph: dict[Hashable, Tensor] = {}
        self.crops: dict[Hashable, int] = {}

    def add(self, maps: Float[Tensor, "n u p"], photographs: Sequence[Hashable]) -> None:
        rectified = maps[..., self.interior].clamp_min(0)
        self.images += len(maps)
        self.active = self.active + (maps > 0).double().sum((0, 2))
        self.active_images = self.active_images + (maps > 0).any(2).double().sum(0)
        self.squares = self.squares + maps.square().sum(0)
        self.rectified = self.rectified + rectified.sum((0, 2))
        self.rectified_squares = self.rectified_squares + rectified.square().sum((0, 2))
        for one, photograph in zip(maps, photographs, strict=False):
            self.by_photograph[photograph] = self.by_photograph.get(photograph, 0) + one
            self.crops[photograph] = self.crops.get(photograph, 0) + 1

    def statistics(self) -> list[UnitStatistics]:
        if len(self.by_photograph) < 2:
            raise ConvCircuitsError("All images are of one photograph; give images of at least two.")
        n, inside = self.images, self.interior
        total = torch.stack(list(self.by_photograph.values())).sum(0)  # (U, P)
        mean = total.mean(1, keepdim=True) / n
        spread = self.squares - 2 * mean * total + n * mean.square()  # around the one mean, for each position
        missed = self.squares.clone()
        for photograph, own in self.by_photograph.items():
            count = self.crops[photograph]
            others = (total - own) / (n - count)
            missed += count * others.square() - 2 * others * own
        variance = spread.sum(1)
        constant = variance <= n * spread.shape[1] * (1e-9 * mean[:, 0]).square()
        count = n * int(inside.sum())
        figures = {
            "active": self.active / (n * spread.shape[1]),
            "active_images": self.active_images / n,
            "inside": (spread[:, inside].sum(1) / variance).masked_fill(constant, math.nan),
            "interior": inside.double().mean().expand(len(total)),
            "average_map_r2": (1 - missed.sum(1) / variance).masked_fill(constant, math.nan),
            "rectified_variance": (self.rectified_squares / count - (self.rectified / count).square()).clamp_min(0),
        }
        columns = {name: values.tolist() for name, values in figures.items()}
        return [
            UnitStatistics(unit, **{k: v[unit] for k, v in columns.items()}, central=self.central)
            for unit in range(len(total))
        ]


def all_units(network: Network, layer: str, shape: tuple[int, ...]) -> Subject:
    """Open a feature that consists of all units of a layer."""
    image = torch.zeros(1, *shape, device=network.device, dtype=network.dtype)
    with torch.no_grad():
        count = network.run(Feature(layer, 0), image, lambda call: call.compute()).shape[1]
    feature = Feature(layer, range(count))  # type: ignore[arg-type]
    return Subject.open(network, feature, shape)
