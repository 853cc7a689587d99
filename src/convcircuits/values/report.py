"""The report on a circuit: its figures and verdict."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from convcircuits.cards import card, figure
from convcircuits.frames import frame
from convcircuits.texts import printable
from convcircuits.values.origins import how_found
from convcircuits.values.verdict import Word

if TYPE_CHECKING:
    import pandas

WHERE = {"inside": "the interior", "central": "the central positions", "unknown": "the interior"}
"""The positions that ``Evaluation.r2_interior`` covers, in words, by ``Evaluation.interior``."""


@dataclass(frozen=True)
class Evaluation:
    """How well a circuit's feature map f_c follows the full model's f, over all images and counted positions.

    R2 alone can mislead: padding can make a map vary with position near the border, in the same way in every image. So
    R2 is reported together with R2 on the interior, and both with two baselines: the average training map, which
    needs no network, and a random circuit with the same number of elements in each layer. ``verdict`` follows from
    these figures by the rules in ``convcircuits.values.verdict``.

    The interior is the set of positions whose receptive field lies inside the image. If there are fewer than four (but
    not all positions), it is the central quarter of rows and columns (``Interior``). Every R2 uses the mean of f over
    the values that it covers.

    For several units, r, R2, R2 after a readout and r of the maxima are averaged per unit, each with its own mean and
    its own readout; pooling would inflate them. A unit that is constant in the full model is omitted; one that is
    constant only in the circuit counts as r = 0. The errors are pooled over units.

    Attributes:
        feature: Text form of the feature.
        pearson: Pearson r between f_c and f; insensitive to scale and shift.
        r2: 1 - sum (f - f_c)^2 / sum (f - mean f)^2; at most 1, and below 0 if the mean of f would do better.
        r2_interior: R2 over the counted positions of the interior; NaN if there are none or the interior is unknown.
        r2_rectified: R2 of max(0, f_c) for max(0, f), which is what the next layer reads if a ReLU follows. (Before a
            BatchNorm it is meaningless; use the BatchNorm's output as the feature.) NaN if f is never positive.
        r2_training: R2 on the ``fit`` images, those that the circuit was found and fitted on; NaN without them. What it
            is higher than ``r2`` is what does not carry over to other images.
        r2_average_map: R2 of the average map over the ``fit`` images, position by position; for the position
            ``"max"``, of the average maximum. NaN without ``fit``.
        r2_average_map_interior: The same, on the interior.
        r2_average_map_rectified: The same, rectified.
        r2_random: R2 of a random circuit with the same number of elements in each layer.
        r2_random_interior: The same, on the interior.
        r2_random_rectified: The same, rectified.
        verdict: ``"keeps"``, ``"keeps in part"``, ``"does not keep"``, or ``"not decided"`` if a figure that
            would decide is NaN.
        verdict_sentence: The verdict and its reasons.
        interior: What ``r2_interior`` covers: ``"inside"``; ``"central"`` if too few receptive fields lie inside the
            image; or ``"unknown"``.
        interior_share: Share of the counted values that are on the interior; NaN if the interior is unknown.
        maxima_at_border: Share of images (and units) whose highest value in the full model is not on the interior;
            NaN unless ``interior`` is ``"inside"``.
        positive: Share of the counted values that are above 0 in the full model.
        r2_readout: R2 of a f_c + d, with the two numbers fitted on the ``fit`` images; NaN without them.
        readout: The two numbers (a, d); NaN if not fitted, and for several units, since each has its own.
        error: mean |f_c - f| / mean |f|; 0 is perfect.
        error_at_max: The same, at each image's (and unit's) argmax in the full model.
        pearson_max: Pearson r between the maxima of f_c and f, over images.
        kernels: Kernels kept, whole or in part.
        effective_kernels: Kept kernels on a complete path image -> feature inside the circuit.
        filters: Filters with at least one kept kernel.
        effective_filters: Filters with at least one effective kernel.
        relevant: Elements (filters, kernels or weights, as the granularity says) on a path in the full model.
        density: elements / relevant.
        images: Number of images measured.
        elements: Number of elements that the circuit keeps.
        constants: Number of fitted constants, the gains and offsets of the circuit's calibration.
        granularity: What an element is.
        notes: Remarks needed to read the figures correctly.
        provenance: How the figures were obtained, as JSON values.
    """

    feature: str
    pearson: float
    r2: float
    r2_interior: float
    r2_rectified: float
    r2_training: float
    r2_average_map: float
    r2_average_map_interior: float
    r2_average_map_rectified: float
    r2_random: float
    r2_random_interior: float
    r2_random_rectified: float
    verdict: Word
    verdict_sentence: str
    interior: Literal["inside", "central", "unknown"]
    interior_share: float
    maxima_at_border: float
    positive: float
    r2_readout: float
    readout: tuple[float, float]
    error: float
    error_at_max: float
    pearson_max: float
    kernels: int
    effective_kernels: int
    filters: int
    effective_filters: int
    relevant: int
    density: float
    images: int
    elements: int
    constants: int
    granularity: str
    notes: tuple[str, ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def as_dict(self) -> dict[str, Any]:
        """Return all figures as JSON values; NaN becomes None."""
        return {k: without_nan(v) for k, v in dataclasses.asdict(self).items()}

    def summary(self) -> str:
        """Return the figures as a table, followed by the verdict and the notes."""
        share = f"{self.granularity}s kept ({self.density:.3%})"
        kernels = "" if self.granularity == "kernel" else f"{self.kernels:,} kernels, "
        rows = [(label, *figures) for label, _, *figures in self._figures()]
        how = how_found(self.provenance["circuit"])
        return "\n".join(
            [
                f"{self.feature}: {self.elements:,} of {self.relevant:,} {share}, {kernels}{self.effective_kernels:,} "
                f"effective; {self.filters:,} filters, {self.effective_filters:,} effective{self._fitted()}",
                *_table(f"on {self.images:,} image{'s' * (self.images != 1)}", rows),
                self.verdict_sentence,
                *([printable(how)] if how else []),
                *(f"note: {printable(note)}" for note in self.notes),
            ]
        )

    def to_pandas(self) -> "pandas.DataFrame":
        """Return the figures as a table with one row per figure, indexed by attribute name (``r2``, ...).

        The columns are ``circuit``, ``average_map`` and ``random_circuit``, with NaN for figures a baseline lacks.

        Raises:
            ConvCircuitsError: If pandas is not installed (extra ``notebook``).
        """
        columns = ("figure", "circuit", "average_map", "random_circuit")
        rows = ((name, *figures, math.nan, math.nan) for _, name, *figures in self._figures())
        return frame([dict(zip(columns, row, strict=False)) for row in rows], index="figure")

    def _repr_html_(self) -> str:
        head = (f"on {self.images:,} image{'s' * (self.images != 1)}", "circuit", "average map", "random circuit")
        rows = [(label, *map(figure, (*figures, math.nan, math.nan)[:3])) for label, _, *figures in self._figures()]
        kept = (
            f"{self.elements:,} of {self.relevant:,} {self.granularity}s kept ({self.density:.3%}), "
            f"{self.effective_kernels:,} kernels effective{self._fitted()}."
        )
        return card(self.verdict_sentence, head, rows, [kept, *self.notes])

    def _fitted(self) -> str:
        return f"; {self.constants:,} constants fitted" if self.constants else ""

    def _figures(self) -> list[tuple[Any, ...]]:
        """List the figures, each as label, name, value and, if there are any, the values of the baselines."""
        where = WHERE[self.interior].removeprefix("the ")
        inside = (self.r2_interior, self.r2_average_map_interior, self.r2_random_interior)
        rectified = (self.r2_rectified, self.r2_average_map_rectified, self.r2_random_rectified)
        return [
            ("R2", "r2", self.r2, self.r2_average_map, self.r2_random),
            (f"R2, {where}", "r2_interior", *inside),
            ("R2, rectified", "r2_rectified", *rectified),
            ("R2, training images", "r2_training", self.r2_training),
            ("R2, after a readout", "r2_readout", self.r2_readout),
            ("Pearson r", "pearson", self.pearson),
            ("Pearson r of the maxima", "pearson_max", self.pearson_max),
            ("relative error", "error", self.error),
            ("relative error at the maxima", "error_at_max", self.error_at_max),
        ]


def _table(head: str, rows: Sequence[tuple[Any, ...]]) -> list[str]:
    """Format figures of the circuit, the average map and a random circuit in columns, with a dash for NaN."""
    cells = [[head, "circuit", "average map", "random circuit"]]
    cells += [[label, *("-" if math.isnan(x) else f"{x:z.3f}" for x in figures)] for label, *figures in rows]
    wide = max(len(row[0]) for row in cells)
    return ["".join([row[0].ljust(wide), *(cell.rjust(16) for cell in row[1:])]) for row in cells]


def without_nan(value: Any) -> Any:
    """Return a JSON value with None in place of numbers that are not finite."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, (tuple, list)):
        return [without_nan(v) for v in value]
    if isinstance(value, Mapping):
        return {k: without_nan(v) for k, v in value.items()}
    return value
