"""How many images does a circuit need? Circuits found on more and more images, measured on the same held-out ones."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from convcircuits.cards import card, figure
from convcircuits.circuits.equations import Method
from convcircuits.circuits.evaluation import evaluate_all
from convcircuits.circuits.finding import find
from convcircuits.circuits.refitting import METHODS
from convcircuits.circuits.refitting import refit as refitted
from convcircuits.errors import ConvCircuitsError, option, whole_number
from convcircuits.frames import frame
from convcircuits.network.batches import Batches, Images, Progress, begin, check_progress
from convcircuits.network.capture import Network
from convcircuits.texts import printable
from convcircuits.values.feature import Feature
from convcircuits.values.report import without_nan

if TYPE_CHECKING:
    import pandas

FEWEST = 4
"""The fewest images that a default curve starts from."""

TOLERANCE = 0.02
"""Held-out R2 that the last step must gain to count as a rise, and by which training R2 must be above it to count."""


@dataclass(frozen=True)
class Learned:
    """A circuit that was found on some of the images.

    Attributes:
        images: Number of images that it was found on.
        draw: Which random choice of so many.
        constants: Number of gains and offsets that were fitted.
        kernels: Number of elements that it keeps.
        train_r2: R2 on the images that it was found on.
        r2: R2 on the held-out images.
        r2_interior: The same, over interior positions.
        train_error: Relative error at each image's own maximum, on the images that it was found on.
        error: The same, on the held-out images.
    """

    images: int
    draw: int
    constants: int
    kernels: int
    train_r2: float
    r2: float
    r2_interior: float
    train_error: float
    error: float

    def as_dict(self) -> dict[str, Any]:
        """Return the row as flat JSON values, NaN as None."""
        return {name: without_nan(value) for name, value in asdict(self).items()}


@dataclass(frozen=True)
class LearningCurve:
    """Circuits of one feature, found on more and more images, measured on the same held-out images.

    Attributes:
        feature: Text form of the feature.
        rows: One for each number of images and draw, the fewest images first.
        held_out: Number of held-out images.
    """

    feature: str
    rows: tuple[Learned, ...]
    held_out: int

    @property
    def counts(self) -> list[int]:
        """The numbers of images, ascending."""
        return sorted({row.images for row in self.rows})

    def median(self, count: int, name: str) -> float:
        """Return the median of a figure over the draws of so many images."""
        return float(statistics.median(getattr(row, name) for row in self.rows if row.images == count))

    @property
    def verdict_sentence(self) -> str:
        """Whether more images would help, as far as the curve can tell."""
        *fewer, most = self.counts
        r2, train = self.median(most, "r2"), self.median(most, "train_r2")
        said = f"{self.feature}: found on {most} images, R2 is {figure(train)} on them and {figure(r2)} on others."
        gap = train - r2
        if not fewer:
            return f"{said} One number of images is no curve."
        draws = [row.r2 for row in self.rows if row.images == fewer[-1]]
        before = statistics.median(draws)
        said += f" With {fewer[-1]} images it is {figure(before)} on others."
        if not all(map(math.isfinite, (*draws, r2, train))):
            return f"{said} R2 is not defined everywhere, so the curve says nothing."
        if r2 - before > TOLERANCE and r2 <= max(draws):
            return f"{said} Some choices of so many do as well as all: whether more would help is not decided."
        if r2 - before > TOLERANCE:
            return f"{said} It still rises: more images would help."
        if gap > TOLERANCE:
            return f"{said} It no longer rises, though the circuit fits its own images better by {figure(gap)}."
        return f"{said} It no longer rises: more images would change little."

    def to_pandas(self) -> "pandas.DataFrame":
        """Return the rows as a table.

        Raises:
            ConvCircuitsError: If pandas is not installed (extra ``notebook``).
        """
        return frame([row.as_dict() for row in self.rows])

    def summary(self) -> str:
        """Return the verdict and a table of medians over draws."""
        lines = [self._HEAD, *self._cells()]
        wide = [max(map(len, column)) for column in zip(*lines, strict=True)]
        table = ["  ".join(cell.rjust(w) for cell, w in zip(line, wide, strict=True)) for line in lines]
        return "\n".join([printable(self.verdict_sentence), *table])

    def __repr__(self) -> str:
        return printable(f"LearningCurve({self.feature}, {self.counts} images)")

    def _repr_html_(self) -> str:
        return card(self.verdict_sentence, self._HEAD, self._cells())

    _HEAD = ("images", "R2", "range", "R2 on its own images", "error at maxima", "constants")

    def _cells(self) -> list[tuple[str, ...]]:
        cells: list[tuple[str, ...]] = []
        for count in self.counts:
            some = [row.r2 for row in self.rows if row.images == count]
            shown = [figure(self.median(count, name)) for name in ("r2", "train_r2", "error")]
            between = f"{figure(min(some))} to {figure(max(some))}"
            constants = f"{self.median(count, 'constants'):,.0f}"
            cells.append((f"{count:,}", shown[0], between, shown[1], shown[2], constants))
        return cells


def learning_curve(
    model: nn.Module,
    feature: Feature,
    images: Images,
    held_out: Images,
    *,
    counts: Sequence[int] | None = None,
    draws: int = 3,
    refit: Method | None = None,
    batch_size: int = 16,
    seed: int = 0,
    progress: Progress | None = None,
    **options: Any,
) -> LearningCurve:
    """Find circuits on more and more images, and measure all of them on the same held-out images.

    With few images, constants that are fitted to them overfit: figures on the training images stay high while those on
    others fall. Images are drawn by their content, so their order does not matter, and of one draw the fewer are among
    the more. Give one crop of each photograph to count photographs.

    Args:
        model: Any CNN.
        feature: What is to be preserved.
        images: All images that circuits may be found on, as for ``score``.
        held_out: The images that circuits are measured on.
        counts: Numbers of images; by default all, a half, a quarter, ..., down to at least four.
        draws: Number of random choices of so many images; all of them are taken once.
        refit: How circuits are refitted on their images: a method of ``refit``. By default they stay as ``find``
            returns them, which for its default criterion are refitted.
        batch_size: Maximum number of images that run at once.
        seed: Seed of the choices and of criteria that draw random numbers.
        progress: Called with the circuits done and their total.
        **options: As for ``find``: a size, and the criterion with its options.

    Raises:
        ConvCircuitsError: If a number is out of range, there are fewer images, an image is among both, or as for
            ``find`` and ``evaluate``.

    Examples:
        >>> curve = cc.learning_curve(model, feature, images, held_out, criterion="snip", density=0.2, draws=1)
        >>> curve.counts
        [6, 12]
    """
    check_progress(progress)
    draws, seed = whole_number("draws", draws, 1), whole_number(option("seed"), seed, 0, 2**31 - 1)
    if refit is not None and refit not in METHODS:
        raise ConvCircuitsError(f"refit must be one of {', '.join(map(repr, METHODS))}, or None; got {refit!r}.")
    network = Network(model)
    given, others = (
        Batches(some, device=network.device, dtype=network.dtype, batch_size=batch_size) for some in (images, held_out)
    )
    hashes, measured_on = ([key for _, keys in some.hashed() for key in keys] for some in (given, others))
    if both := len({*hashes} & {*measured_on}):
        raise ConvCircuitsError(f"{both} images are both in images and in held_out; hold out others.")
    sizes = _counts(len(hashes), counts)
    chosen = [(count, draw) for count in sizes for draw in range(1 if count == len(hashes) else draws)]
    rows = []
    begin(progress, "finding circuits on more and more images")
    for done, (count, draw) in enumerate(chosen, start=1):
        some = given if count == len(hashes) else given.sample(count, seed + draw)
        circuit = find(model, feature, some, batch_size=batch_size, seed=seed, **options)
        if refit is not None:
            circuit = refitted(model, circuit, some, method=refit, batch_size=batch_size, seed=seed)
        own, new = (
            evaluate_all(model, [circuit], where, controls=[None], batch_size=batch_size)[0] for where in (some, others)
        )
        rows.append(
            Learned(
                images=count,
                draw=draw,
                constants=circuit.constants,
                kernels=len(circuit),
                train_r2=own.r2,
                r2=new.r2,
                r2_interior=new.r2_interior,
                train_error=own.error_at_max,
                error=new.error_at_max,
            )
        )
        if progress is not None:
            progress(done, len(chosen))
    return LearningCurve(str(feature), tuple(rows), len(measured_on))


def _counts(total: int, counts: Sequence[int] | None) -> list[int]:
    """Return the numbers of images, ascending."""
    if counts is not None:
        found = sorted({whole_number("counts", count, 1) for count in counts})
        if not found or found[-1] > total:
            raise ConvCircuitsError(f"counts must be numbers of images from 1 to {total}, all there are; got {counts}.")
        return found
    found = [total]
    while found[0] // 2 >= FEWEST:
        found.insert(0, found[0] // 2)
    return found
