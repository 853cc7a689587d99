"""A circuit beside its controls, and the verdict on whether it was found."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from convcircuits.cards import card, figure
from convcircuits.frames import frame
from convcircuits.texts import printable
from convcircuits.values.report import WHERE, without_nan

if TYPE_CHECKING:
    import pandas

RIVALS = {
    "relabelled": "the same graph on other filters",
    "random": "a random circuit of equal size",
    "redrawn": "the same graph with shuffled weights",
    "refound": "a circuit found alike among shuffled kernels",
    "average_map": "the average training map",
}
"""The controls that a circuit must beat, in words."""

CHECKS = {
    "refitted": "the same kernels, fitted again",
    "without_circuit": "the full model without the circuit",
    "without_random": "the full model without as many others",
}
"""What else is measured, in words."""

STRICTEST = f"the strictest control, {RIVALS['refound']}"
"""The control that takes a descent, in words, for notes that it was not measured."""

_NAMES = {"circuit": "the circuit", **RIVALS, **CHECKS}


@dataclass(frozen=True)
class Control:
    """The figures of a circuit, or of the best draw of a control.

    Attributes:
        name: ``"circuit"`` or the name of a control.
        r2: R2 over all counted positions, as in ``Evaluation``.
        r2_interior: The same, on the interior.
        r2_rectified: R2 of the rectified map.
        draws: The R2 that decides, of each draw.
        margin: How much more the circuit reaches, as in ``Controls``; NaN for the circuit and for what is no rival.
        noise: The noise of the margin: two standard deviations, of the control's draws (those below 0 count as 0) and
            of the margin over resampled held-out images, taken together. A control that was drawn once is given the
            largest spread of the others.
    """

    name: str
    r2: float
    r2_interior: float
    r2_rectified: float
    draws: tuple[float, ...]
    margin: float = math.nan
    noise: float = math.nan


@dataclass(frozen=True)
class Controls:
    """How well a circuit does beside controls that were treated alike: whether it was found, or made by its constants.

    A circuit is found if its R2 exceeds that of each rival by more than the noise of that margin. R2 on the interior
    decides, if there is one. The rivals are refitted and trained as the circuit was; of several draws, the best counts.
    They are

    - ``relabelled``: the circuit's graph on other filters;
    - ``random``: as many random elements in each layer;
    - ``redrawn``: the circuit itself in a copy of the model whose weights are shuffled within each layer, fitted to the
      trained model;
    - ``refound``: if it was asked for, what the descent that found the circuit finds, aimed at the trained model, in a
      copy whose kernels are shuffled within each layer, but not inside;
    - ``average_map``: the average training map, which needs no network.

    Three others are reported beside them: ``refitted``, the circuit's own elements fitted again from the start;
    ``without_circuit``, the full model without them, which nothing makes up for; and ``without_random``, the same for
    as many random ones in each layer.

    Attributes:
        feature: Text form of the feature.
        circuit: The figures of the circuit.
        controls: The figures of each control that could be made.
        best: Name of the rival that comes closest.
        margin: R2 of the circuit minus that of the best rival, or minus 0, where a constant is, if that is higher. In
            place of the circuit counts ``refitted`` if that is lower, since the rivals were fitted as that was, except
            beside ``refound``, which was fitted all along a descent as the circuit was.
        noise: The noise of that margin, as in ``Control``. Where images are crops of the same photographs, these are
            resampled.
        verdict: ``"found"``, ``"not found"``, or ``"not decided"`` if R2 or a noise is undefined. Controls whose R2 is
            undefined are left out, and a note says so.
        verdict_sentence: The verdict and its reasons.
        interior: What ``r2_interior`` covers, as in ``Evaluation``; ``"unknown"`` if all positions decide.
        elements: Number of elements that the circuit keeps.
        constants: Number of fitted constants of the circuit.
        images: Number of held-out images.
        notes: Remarks needed to read the figures correctly.
        provenance: How the figures were obtained, as JSON values.
    """

    feature: str
    circuit: Control
    controls: tuple[Control, ...]
    best: str
    margin: float
    noise: float
    verdict: Literal["found", "not found", "not decided"]
    verdict_sentence: str
    interior: Literal["inside", "central", "unknown"]
    elements: int
    constants: int
    images: int
    notes: tuple[str, ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def __getitem__(self, name: str) -> Control:
        """Return the figures of ``"circuit"`` or of a control by its name.

        Raises:
            KeyError: If there is no such control.
        """
        return {row.name: row for row in self._rows()}[name]

    def as_dict(self) -> dict[str, Any]:
        """Return all figures as JSON values; NaN becomes None."""
        return {key: without_nan(value) for key, value in dataclasses.asdict(self).items()}

    def summary(self) -> str:
        """Return the figures as a table, followed by the verdict and the notes."""
        cells = [
            self._head(),
            *([name, *(f"{x:z.3f}" if x == x else "-" for x in xs)] for name, *xs in self._figures()),
        ]
        first, *wide = (max(map(len, column)) for column in zip(*cells, strict=True))
        return "\n".join(
            [
                f"{self.feature}: {self._about()}",
                *("   ".join([name.ljust(first), *map(str.rjust, row, wide)]) for name, *row in cells),
                self.verdict_sentence,
                *(f"note: {printable(note)}" for note in self.notes),
            ]
        )

    def to_pandas(self) -> "pandas.DataFrame":
        """Return the figures as a table with one row for the circuit and each control, indexed by name.

        The columns are ``r2``, ``r2_interior``, ``r2_rectified``, ``margin`` and ``noise``.

        Raises:
            ConvCircuitsError: If pandas is not installed (extra ``notebook``).
        """
        columns = ("control", "r2", "r2_interior", "r2_rectified", "margin", "noise")
        return frame(
            [{name: getattr(row, name if name != "control" else "name") for name in columns} for row in self._rows()],
            index="control",
        )

    def _repr_html_(self) -> str:
        rows = [(name, *map(figure, figures)) for name, *figures in self._figures()]
        return card(self.verdict_sentence, self._head(), rows, [f"{self._about()}.", *self.notes])

    def _rows(self) -> tuple[Control, ...]:
        return (self.circuit, *self.controls)

    def _about(self) -> str:
        fitted = f", {self.constants:,} constants fitted" if self.constants else ""
        return f"a circuit of {self.elements:,} elements{fitted}, and its controls"

    def _head(self) -> list[str]:
        where = WHERE[self.interior].removeprefix("the ")
        figures = ["R2", f"R2, {where}", "R2, rectified", "margin", "its noise"]
        return [f"on {self.images:,} image{'s' * (self.images != 1)}", *figures]

    def _figures(self) -> list[tuple[Any, ...]]:
        return [
            (_NAMES[row.name], row.r2, row.r2_interior, row.r2_rectified, row.margin, row.noise) for row in self._rows()
        ]


def margins(r2: Mapping[str, float]) -> dict[str, tuple[str, float]]:
    """Return, for each rival, what is compared with it and the margin, the rival that comes closest first.

    A rival whose R2 is not defined comes last.

    A trained circuit was fitted all along its descent, and its rivals were not, so what its kernels reach if they are
    fitted as these were counts, if that is less. ``refound`` was fitted all along a descent, too.

    Args:
        r2: ``"circuit"`` and the name of each control -> R2.
    """
    by_fit = "refitted" if r2.get("refitted", math.inf) < r2["circuit"] else "circuit"
    held = {name: "circuit" if name == "refound" else by_fit for name in RIVALS if name in r2}
    over = {name: (one, r2[one] - max(r2[name], 0.0)) for name, one in held.items()}

    def closeness(name: str) -> tuple[bool, float, float]:
        return math.isnan(over[name][1]), over[name][1], -r2[name]

    return {name: over[name] for name in sorted(over, key=closeness)}


def judged(
    r2: Mapping[str, float],
    noises: Mapping[str, float],
    *,
    feature: str,
    where: str,
    fitted: bool,
    drawn_once: bool,
) -> tuple[Literal["found", "not found", "not decided"], str]:
    """Return the verdict on a circuit, and sentences that state and explain it.

    Args:
        r2: ``"circuit"`` and the name of each control -> R2.
        noises: The name of each rival -> the noise of the margin over it.
        feature: Text form of the feature.
        where: The positions that the figures cover, in words.
        fitted: Whether the circuit, and so its controls, were fitted.
        drawn_once: Whether each control was drawn once, so that the noise is that of the images alone.
    """
    over = {name: one for name, one in margins(r2).items() if not math.isnan(one[1])}
    if not over or any(math.isnan(noises[name]) for name in over):
        return (
            "not decided",
            f"Whether the circuit of {feature} was found is not decided: R2 on {where}, or its noise, is not defined.",
        )
    best, (held, margin) = next(iter(over.items()))
    within = [name for name, (_, one) in over.items() if one <= noises[name]]
    again = ""
    if f"{r2[held]:z.2f}" != f"{r2['circuit']:z.2f}":
        again = f" ({r2[held]:z.2f} if its kernels are fitted again as the controls are)"
    rival = f"{r2[best]:z.2f}" + (" (less than a constant)" if r2[best] < 0 else "")
    graph = RIVALS["relabelled"] + (", fitted alike," if fitted else "")
    if best == "relabelled":
        reached = f"the best control, {graph.rstrip(',')}, reaches {rival}"
    elif "relabelled" in r2:
        reached = f"{graph} reaches {r2['relabelled']:z.2f}, and the best control, {RIVALS[best]}, {rival}"
    else:
        reached = f"the best control, {RIVALS[best]}, reaches {rival}"
    other = ""
    if within and best not in within:
        name = within[0]
        other = (
            f", but the one over {RIVALS[name]}, which reaches {r2[name]:z.2f}, is {over[name][1]:z.2f}, not above its "
            f"own of {noises[name]:.2f}"
        )
    return "not found" if within else "found", (
        f"The circuit of {feature} was {'not ' if within else ''}found: R2 on {where} is {r2['circuit']:z.2f}{again}; "
        f"{reached}. The margin of {margin:z.2f} is "
        f"{'not ' if best in within else ''}above its noise of {noises[best]:.2f}{other}"
        f"{', that of the images alone, since each control was drawn once' if drawn_once else ''}."
    )
