"""Circuits of several groups of images, each measured on every group."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from convcircuits.cards import card, figure
from convcircuits.errors import ConvCircuitsError
from convcircuits.frames import frame
from convcircuits.texts import printable
from convcircuits.values.report import without_nan

if TYPE_CHECKING:
    import pandas

Word = Literal["selective", "not selective", "not decided"]

KEPT = 0.25
"""Relative error on their own groups up to which circuits count as keeping the feature there."""

FEWEST_HELD_OUT = 6
"""The fewest held-out photographs of each group for a verdict. In a simulation of circuits that do not differ, the 95 %
interval was above 0 in 17 % of the trials at 2 photographs a group, 7 % at 4 and 5, and 5 to 6 % at 6, where 2.5 % are
nominal."""

FEW_HELD_OUT = 20
"""With fewer held-out photographs a group gets a note; at 20, the interval was above 0 in 4 % of the trials."""

FEW_TRAINED = 10
"""Groups with fewer training images get a note."""

OVERFIT = 0.1
"""How much larger the errors on held-out images may be than those on the training images without a note."""


@dataclass(frozen=True)
class Crossing:
    """One circuit measured on the held-out images of one group.

    All figures but ``r2`` are at one position of each image: where the feature is highest in the full model, or the
    feature's own position if that is a single one.

    Attributes:
        circuit: Name of the group that the circuit was found on.
        group: Name of the group that it is measured on.
        size: Index of its size, from 0, the largest.
        kernels: Number of elements that it keeps.
        density: Share of the relevant elements that it keeps.
        error: sum |f_c - f| / sum |f| over the images: 0 for the full model, 1 for a circuit that answers 0.
        kept: Mean of f_c / mean of f.
        r2: R2 over all positions of all images.
        r2_max: R2 of the values at the positions; NaN for fewer than 3 images.
        train_error: ``error`` on the images that the circuit was found on; NaN if they were not given, and unless
            ``circuit`` is ``group``.
    """

    circuit: str
    group: str
    size: int
    kernels: int
    density: float
    error: float
    kept: float
    r2: float
    r2_max: float
    train_error: float


@dataclass(frozen=True)
class Overlap:
    """What the circuits of two groups share in one layer.

    Attributes:
        first: Name of one group.
        second: Name of the other.
        size: Index of the size, as in ``Crossing``.
        layer: Name of the layer; ``"all"`` for all together.
        iou: Elements in both / elements in either; NaN if neither keeps any.
        above_chance: (iou - chance) / (1 - chance), with ``chance`` the IoU of two random circuits that keep as many of
            the layer's relevant elements: 1 if equal, 0 on average if unrelated. NaN if there is no choice.
        shared: Number of elements in both.
        alone: Number of elements in the first alone, and in the second alone.
        filters: The same for filters with a kept element: in both, in the first alone, in the second alone.
    """

    first: str
    second: str
    size: int
    layer: str
    iou: float
    above_chance: float
    shared: int
    alone: tuple[int, int]
    filters: tuple[int, int, int]


@dataclass(frozen=True)
class Selectivity:
    """How much better circuits do on their own groups than on the others, at one size.

    Attributes:
        size: Index of the size, as in ``Crossing``.
        kernels: Mean number of elements of the circuits.
        density: Mean density of the circuits.
        own: Mean of ``error`` of the circuits on their own groups.
        others: Mean of ``error`` of the circuits on all other groups.
        value: ``others - own``.
        low: Lower end of the 95 % interval of ``value``, over resampled photographs; NaN if a group has a single one.
        high: Its upper end.
        shuffled: ``value`` of circuits found alike on groups dealt at random, one for each deal; at the chosen size
            alone.
        photographs: Number of held-out photographs, or of their subjects, of the group that has the fewest.
        train: Mean of ``error`` of the circuits on the images that they were found on; NaN if they were not given.
        verdict: ``"selective"`` if ``low`` is above 0 and above every value in ``shuffled``; ``"not selective"`` if
            ``value`` is not; otherwise ``"not decided"``, also without any ``shuffled``, and always with fewer than
            ``FEWEST_HELD_OUT`` photographs.
    """

    size: int
    kernels: float
    density: float
    own: float
    others: float
    value: float
    low: float
    high: float
    shuffled: tuple[float, ...]
    photographs: int
    train: float

    @property
    def verdict(self) -> Word:
        """The verdict by the rule above."""
        if self.photographs < FEWEST_HELD_OUT:
            return "not decided"
        bound = max((0.0, *self.shuffled))
        if not self.value > bound:
            return "not selective"
        return "selective" if self.shuffled and self.low > bound else "not decided"


@dataclass(frozen=True)
class Cross:
    """Circuits of several groups of images, each measured on every group.

    Attributes:
        feature: Text form of the feature.
        groups: Name of each group -> its number of held-out images.
        rows: Every circuit on every group, by size.
        overlaps: What each two circuits of one size share, by layer and in all.
        selectivity: One for each size.
        chosen: Index of the size that the verdict is about: the smallest circuits whose error on their own groups is at
            most ``KEPT``; if there are none, those with the least.
        notes: Remarks needed to read the figures correctly.
        provenance: How the figures were obtained, as JSON values.
    """

    feature: str
    groups: Mapping[str, int]
    rows: tuple[Crossing, ...]
    overlaps: tuple[Overlap, ...]
    selectivity: tuple[Selectivity, ...]
    chosen: int
    notes: tuple[str, ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def verdict(self) -> Word:
        """Whether the circuits of the chosen size are selective."""
        return self.selectivity[self.chosen].verdict

    @property
    def verdict_sentence(self) -> str:
        """The verdict and its reasons."""
        one = self.selectivity[self.chosen]
        interval = "" if math.isnan(one.low) else f" (95 % interval {one.low:z.2f} to {one.high:z.2f})"
        beside = (
            f"with shuffled groups at most {max(one.shuffled):z.2f}" if one.shuffled else "without a shuffled control"
        )
        about = {
            "selective": "The circuits are selective",
            "not selective": "The circuits are not selective",
            "not decided": "Whether the circuits are selective is not decided",
        }[one.verdict]
        kept = "" if one.own <= KEPT else ", so none of these sizes keeps its own group's responses well"
        return (
            f"{about}: at {one.density:.2%} of the kernels their relative error is {one.own:z.2f} on images of their "
            f"own group and {one.others:z.2f} on others{kept}; the difference is {one.value:z.2f}{interval}, {beside}."
        )

    def row(self, circuit: str, group: str, size: int | None = None) -> Crossing:
        """Return one circuit on one group; of the chosen size if none is given.

        Raises:
            ConvCircuitsError: If there is no such row.
        """
        place = self.chosen if size is None else size
        for row in self.rows:
            if (row.circuit, row.group, row.size) == (circuit, group, place):
                return row
        raise ConvCircuitsError(
            f"There is no circuit of {circuit!r} on {group!r} of size {place}; the groups are "
            f"{', '.join(map(repr, self.groups))}, and sizes go from 0 to {len(self.selectivity) - 1}."
        )

    def as_dict(self) -> dict[str, Any]:
        """Return everything as JSON values; NaN becomes None."""
        found = {key: without_nan(value) for key, value in dataclasses.asdict(self).items()}
        for one, row in zip(self.selectivity, found["selectivity"], strict=True):
            row["verdict"] = one.verdict
        return found | {"verdict": self.verdict, "verdict_sentence": self.verdict_sentence}

    def to_pandas(self) -> "pandas.DataFrame":
        """Return a table with one row per circuit, group and size, and the columns of ``Crossing``.

        Raises:
            ConvCircuitsError: If pandas is not installed (extra ``notebook``).
        """
        return frame([dataclasses.asdict(row) for row in self.rows])

    def summary(self, *, verdict: bool = True) -> str:
        """Return the errors as a table, the selectivity of each size, the verdict if it is wanted, and the notes."""
        head, *rows = self._cells()
        wide = [max(len(row[n]) for row in (head, *rows)) for n in range(len(head))]
        return "\n".join(
            [
                f"{self.feature}: relative error at each image's own position, circuits by groups",
                *(
                    "  ".join(cell.ljust(w) for cell, w in zip(row, wide, strict=True)).rstrip()
                    for row in (head, *rows)
                ),
                *([self.verdict_sentence] if verdict else []),
                *(f"note: {printable(note)}" for note in self.notes),
            ]
        )

    def __repr__(self) -> str:
        return printable(f"Cross({self.feature}, {len(self.groups)} groups, {self.verdict})")

    def _repr_html_(self) -> str:
        head, *rows = self._cells()
        return card(f"{self.feature}: {self.verdict_sentence}", head, rows, self.notes)

    def _cells(self) -> list[Sequence[str]]:
        names = list(self.groups)
        cells: list[Sequence[str]] = [
            (
                "density",
                "circuit of",
                *(f"on {name}" for name in names),
                "in training",
                "selectivity",
                "interval",
                "shuffled",
            )
        ]
        for one in self.selectivity:
            interval = "–" if math.isnan(one.low) else f"{one.low:z.2f} to {one.high:z.2f}"
            beside = ", ".join(f"{value:z.2f}" for value in one.shuffled) or "–"
            for n, name in enumerate(names):
                errors = [figure(self.row(name, group, one.size).error) for group in names]
                errors.append(figure(self.row(name, name, one.size).train_error))
                last = (figure(one.value), interval, beside) if n == 0 else ("", "", "")
                cells.append((f"{one.density:.3%}" if n == 0 else "", name, *errors, *last))
        return cells
