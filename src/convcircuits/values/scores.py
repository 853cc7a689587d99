"""Scores: a saliency for every element, that is every kernel, filter or weight."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from convcircuits.cards import card
from convcircuits.errors import ConvCircuitsError
from convcircuits.frames import frame
from convcircuits.texts import printable
from convcircuits.values.feature import Feature
from convcircuits.values.granularity import SHAPES, check_granularity, fits, of_kernels
from convcircuits.values.tables import LayerTable

if TYPE_CHECKING:
    import pandas

SCORE_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class Scores:
    """A saliency for every kernel, filter or weight that a feature depends on.

    Two Scores are equal if their features, layers, values and provenance are equal.

    Attributes:
        feature: The feature that was scored.
        elements: Layer name -> saliency, in execution order. The shape is (out, in per group) for kernels, (out,) for
            filters and the weight's own for weights. NaN for elements on no path from the image to the feature, or
            outside the circuit inside which was scored. ``provenance["scale"]``, if set, is the unit of the values.
        relevant_in_model: Number of elements on a path in the full model.
        provenance: How the scores were obtained, as JSON values.
        granularity: What an element is: ``"filter"``, ``"kernel"`` or ``"weight"``.
    """

    feature: Feature
    elements: LayerTable
    relevant_in_model: int
    provenance: Mapping[str, Any] = field(default_factory=dict)
    granularity: str = "kernel"

    __hash__ = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        check_granularity(self.granularity)
        object.__setattr__(self, "elements", LayerTable(self.elements))
        for layer, values in self.elements.items():
            if not fits(values, self.granularity) or values.dtype not in SCORE_DTYPES:
                raise ConvCircuitsError(
                    f"The scores of {layer} have dtype {values.dtype} and shape {tuple(values.shape)}; "
                    f"expected floating point of shape {SHAPES[self.granularity]}."
                )

    @property
    def kernels(self) -> LayerTable:
        """The scores of kernels: layer name -> saliency (out, in per group).

        Raises:
            ConvCircuitsError: If the elements are filters or weights.
        """
        return of_kernels(self.elements, self.granularity)

    @property
    def relevant(self) -> int:
        """Number of elements that have a score."""
        return sum(int((~s.isnan()).sum()) for s in self.elements.values())

    def __getitem__(self, layer: str) -> Tensor:
        return self.elements[layer]

    def __repr__(self) -> str:
        criterion = self.provenance.get("criterion", "?")
        counted = f"{self.relevant} {self.granularity}s in {len(self.elements)} layers"
        return printable(f"Scores({self.feature}, {criterion}, {counted})")

    def summary(self) -> str:
        """Tabulate, for each layer, the elements scored, their share of the total saliency and the largest score."""
        head, *rows = self._cells()
        wide = max(len(printable(row[0])) for row in (head, *rows))
        return "\n".join(
            [repr(self)]
            + [f"{printable(layer):<{wide}}  {n:>9}  {share:>7}  {most:>10}" for layer, n, share, most in (head, *rows)]
        )

    def to_pandas(self) -> "pandas.DataFrame":
        """Return a table of layers: the elements scored, their share of the total saliency and the largest score.

        Raises:
            ConvCircuitsError: If pandas is not installed (extra ``notebook``).
        """
        return frame(self._layers())

    def _repr_html_(self) -> str:
        head, *rows = self._cells()
        return card(repr(self), head, rows, map(str, self.provenance.get("notes", ())))

    def _layers(self) -> list[dict[str, Any]]:
        totals = {layer: float(s.nan_to_num().abs().sum()) for layer, s in self.elements.items()}
        whole = sum(totals.values()) or 1.0
        return [
            {
                "layer": layer,
                f"{self.granularity}s": int((~s.isnan()).sum()),
                "share": totals[layer] / whole,
                "largest": max(s[~s.isnan()].tolist(), default=0.0),
            }
            for layer, s in self.elements.items()
        ]

    def _cells(self) -> list[tuple[str, str, str, str]]:
        rows = [tuple(row.values()) for row in self._layers()]
        cells = [(layer, f"{n:,}", f"{share:.1%}", f"{most:.4g}") for layer, n, share, most in rows]
        return [("layer", f"{self.granularity}s", "share", "largest"), *cells]
