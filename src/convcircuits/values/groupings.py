"""The images of a feature grouped by several descriptions of them, each measured alike."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from jaxtyping import Int
from torch import Tensor

from convcircuits.cards import card, figure
from convcircuits.frames import frame
from convcircuits.texts import printable
from convcircuits.values.borders import Borders
from convcircuits.values.report import without_nan

if TYPE_CHECKING:
    import pandas

KNOWN = "known groups"
"""The row of the groups that were given."""

SHUFFLED = "shuffled"
"""The row of the control, the groups by saliencies dealt at random."""


@dataclass(frozen=True)
class Grouping:
    """Groups of images by one description of them.

    Attributes:
        by: What the images are described by.
        size: Numbers that describe an image.
        ari: Adjusted Rand index with the known groups, over all images: 1 if equal, 0 on average for random groups; NaN
            if none are known.
        accuracy: Share of the held-out images whose nearest center is that of their known group, where centers and
            known groups are matched on the training images; NaN if none are known.
        stability: Mean adjusted Rand index of two groupings of the held-out images, each by centers found on one half
            of the training photographs; NaN for known and shuffled groups, or if the halves are too small.
        selectivity: How much better circuits of the groups keep the feature on held-out images of their own than of the
            others (``Selectivity.value``); NaN if a group is too small for a cross-test, or there was none.
        low: Lower end of its 95 % interval.
        high: Its upper end.
        own: Error of the circuits on their own groups.
        border: Largest difference of two groups' shares of images on which the feature is highest at one place of the
            border (``Borders.difference``); NaN if that is not known.
        by_border: Whether this tells the groups apart (``Borders.separate``), so that they may be nothing else.
    """

    by: str
    size: int
    ari: float
    accuracy: float
    stability: float
    selectivity: float
    low: float
    high: float
    own: float
    border: float
    by_border: bool

    def as_dict(self) -> dict[str, Any]:
        """Return the row as flat JSON values, NaN as None."""
        return {name: without_nan(value) for name, value in asdict(self).items()}


@dataclass(frozen=True, eq=False)
class Groupings:
    """The images of a feature grouped by several descriptions of them: those of circuits, and baselines.

    Attributes:
        feature: Text form of the feature, at each image's own maximum.
        density: Size of the circuits that selectivity is measured with; None if it is not.
        rows: One for each description; before them the known groups and after them the shuffled ones, if groups were
            cross-tested.
        labels: Description -> group of each image, (images,), int64; -1 of those that do not
            drive the feature: not above 0, or below 5 % of the highest response.
        held_out: Number of held-out images.
        borders: Description -> on how many images of each of its groups the feature is highest at the border; empty if
            that is not known.
        notes: Remarks needed to read the figures correctly.
        provenance: How the groups were found, as JSON values.
    """

    feature: str
    density: float | None
    rows: tuple[Grouping, ...]
    labels: Mapping[str, Int[Tensor, " n"]]
    held_out: int
    borders: Mapping[str, Borders] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def __getitem__(self, by: str) -> Grouping:
        return next(row for row in self.rows if row.by == by)

    def to_pandas(self) -> "pandas.DataFrame":
        """Return the rows as a table.

        Raises:
            ConvCircuitsError: If pandas is not installed (extra ``notebook``).
        """
        return frame([row.as_dict() for row in self.rows], index="by")

    def summary(self) -> str:
        """Return the table and the notes as text."""
        lines = [self._head, *self._cells()]
        wide = [max(map(len, column)) for column in zip(*lines, strict=True)]
        table = ["  ".join(cell.ljust(w) for cell, w in zip(line, wide, strict=True)).rstrip() for line in lines]
        return "\n".join([self._title, *table, *(f"note: {printable(note)}" for note in self.notes)])

    def __repr__(self) -> str:
        return printable(f"Groupings({self.feature}, by {', '.join(row.by for row in self.rows)})")

    def _repr_html_(self) -> str:
        return card(self._title, self._head, self._cells(), self.notes)

    @property
    def _head(self) -> tuple[str, ...]:
        tested = () if self.density is None else ("selectivity", "own error")
        return ("grouped by", "ARI", "held-out accuracy", "stability", *tested, "border")

    @property
    def _title(self) -> str:
        tested = "" if self.density is None else f"; circuits of {self.density:.3g} of the kernels"
        return f"{self.feature}: images grouped in {len(self.rows)} ways{tested}"

    def _cells(self) -> list[tuple[str, ...]]:
        cells = []
        for row in self.rows:
            figures: tuple[str, ...] = (printable(row.by), *map(figure, (row.ari, row.accuracy, row.stability)))
            if self.density is not None:
                selectivity = f"{figure(row.selectivity)} ({figure(row.low)} to {figure(row.high)})"
                figures = (*figures, selectivity, figure(row.own))
            cells.append((*figures, figure(row.border) + "*" * row.by_border))
        return cells
