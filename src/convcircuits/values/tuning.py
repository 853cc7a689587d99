"""How units are tuned to stimuli: their responses, tuning curves, and measures of what they prefer."""

import cmath
import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from convcircuits.cards import card
from convcircuits.errors import ConvCircuitsError
from convcircuits.frames import frame
from convcircuits.values.feature import Feature
from convcircuits.values.report import without_nan
from convcircuits.values.stimulus import OWN, PERIODS, Stimulus
from convcircuits.values.tables import suggest

if TYPE_CHECKING:
    import pandas

WEAK = 0.5
"""A unit is weak if its highest relative response is not above 0, or below this share of the median over all units."""

VARIED = ("size", "width", "orientation", "turn", "frequency", "phase", "contrast")
"""Parameters along which there are tuning curves."""

_HELD = ("size", "width", "orientation", "turn", "frequency", "background")  # and the contrast, without its sign


@dataclass(frozen=True, eq=False)
class Tuning:
    """The responses of units to stimuli that are placed in the receptive field of one position of their maps.

    A *relative* response is the response minus that to the stimulus's background alone. Measures are tensors (U,) with
    a value for each unit; NaN where they are not defined.

    Attributes:
        features: The U units, in order, at that position.
        stimuli: The N stimuli, in order.
        responses: The features' values at the position, float64 (U, N), on the CPU.
        blank: The same for the background alone of each stimulus.
        center: Row and column of the image, in pixels, where the stimuli are placed: the center of the receptive field.
        field: (height, width) of the receptive field, in pixels. It may extend beyond the image.
        image: (H, W) of the images.
        notes: What a reader of the figures must know.
        provenance: The model, the images, the circuit if one was run, and versions.
    """

    features: tuple[Feature, ...]
    stimuli: tuple[Stimulus, ...] = dataclasses.field(repr=False)
    responses: Tensor = dataclasses.field(repr=False)
    blank: Tensor = dataclasses.field(repr=False)
    center: tuple[float, float]
    field: tuple[int, int]
    image: tuple[int, int]
    notes: tuple[str, ...] = ()
    provenance: Mapping[str, Any] = dataclasses.field(default_factory=dict, repr=False)

    @cached_property
    def relative(self) -> Tensor:
        """The relative responses, float64 (U, N)."""
        return self.responses - self.blank

    @cached_property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of stimuli that were shown."""
        return tuple(kind for kind in OWN if any(stimulus.kind == kind for stimulus in self.stimuli))

    def take(self, units: Sequence[int]) -> "Tuning":
        """Return the tuning of some of the units, by their indices in ``features``."""
        some = list(units)
        return dataclasses.replace(
            self,
            features=tuple(self.features[n] for n in some),
            responses=self.responses[some],
            blank=self.blank[some],
        )

    # ---------------------------------------- what units prefer

    def highest(self, kind: str | None = None) -> Tensor:
        """Return each unit's highest relative response, to any stimulus or to one kind of them."""
        return self.relative[:, self._of(kind)].amax(1)

    def least(self, kind: str) -> Tensor:
        """Return each unit's relative response to the size and contrast of a kind that excites it least.

        At each size and contrast, the best of all other parameters and places counts. So a unit that responds to
        circles of all sizes, dark and bright, has a high value.
        """
        alike: dict[tuple[float | None, float], list[int]] = {}
        for number in self._of(kind):
            alike.setdefault((self.stimuli[number].size, self.stimuli[number].contrast), []).append(number)
        return torch.stack([self.relative[:, numbers].amax(1) for numbers in alike.values()]).amin(0)

    def preferred(self, kind: str | None = None) -> list[Stimulus]:
        """Return the stimulus with the highest relative response of each unit, of all or of one kind."""
        numbers = self._of(kind)
        return [self.stimuli[numbers[n]] for n in self.relative[:, numbers].argmax(1).tolist()]

    def along(self, kind: str, parameter: str) -> tuple[list[float], Tensor]:
        """Return each unit's tuning curve: relative responses to a kind of stimulus along one of its parameters.

        All other parameters are those of the kind's preferred stimulus, except for phase, polarity (the sign of the
        contrast) and place (the offset): of these the best counts.

        Returns:
            The values of the parameter, rising, and float64 (U, V); NaN for values that were not shown with the
            preferred stimulus's other parameters.

        Raises:
            ConvCircuitsError: If no stimulus of this kind was shown, or the kind does not have this parameter.
        """
        numbers = self._of(kind)
        if parameter not in ("size", "contrast", *OWN[kind]):
            raise ConvCircuitsError(f"A {kind} has no parameter {parameter!r}. {suggest(parameter, OWN[kind])}")
        members: dict[tuple[Any, ...], dict[float, list[int]]] = {}
        for n in numbers:
            value = getattr(self.stimuli[n], parameter)
            members.setdefault(_held(self.stimuli[n], parameter), {}).setdefault(value, []).append(n)
        values = sorted({value for group in members.values() for value in group})
        preferred = [_held(stimulus, parameter) for stimulus in self.preferred(kind)]
        curves = torch.full((len(self.features), len(values)), math.nan, dtype=torch.float64)
        for key in dict.fromkeys(preferred):
            units = [u for u, own in enumerate(preferred) if own == key]
            for value, some in members[key].items():
                curves[units, values.index(value)] = self.relative[units][:, some].amax(1)
        return values, curves

    def selectivity(self, kind: str) -> Tensor:
        """Return how selective each unit is for the orientation of a kind of stimulus, from 0 to 1.

        It is 1 minus the circular variance of the tuning curve r_k >= 0 at the angles a_k: |sum r_k exp(i m a_k)| /
        sum r_k, where m a_k makes one turn within the period of the kind: m is 2 for lines and gratings, 1 for arcs and
        corners. Relative responses below 0 count as 0. A unit that responds alike to all orientations has 0, one that
        responds to a single one 1. NaN unless the orientations are at least three, evenly spaced over the period, and
        excite the unit.

        Source: Ringach, Shapley and Hawken, Orientation selectivity in macaque V1 (J. Neurosci. 22, 2002); Swindale,
        Orientation tuning curves (Biol. Cybern. 78, 1998).

        Raises:
            ConvCircuitsError: If no stimulus of this kind was shown, or the kind has no orientation.
        """
        angles, curves = self.along(kind, "orientation")
        period = PERIODS[kind]
        step = period / len(angles)
        even = all(abs(angle - angles[0] - n * step) < 1e-6 for n, angle in enumerate(angles))
        if len(angles) < 3 or not even:
            return torch.full((len(self.features),), math.nan, dtype=torch.float64)
        turns = torch.tensor([cmath.rect(1, 2 * math.pi * angle / period) for angle in angles], dtype=torch.complex128)
        rates = curves.clamp(min=0)
        return (rates.to(turns.dtype) @ turns).abs() / rates.sum(1)

    @cached_property
    def curve_preference(self) -> Tensor:
        """How much each unit prefers curved figures to straight ones, from -1 to 1: (c - s) / max(c, s).

        c is the highest relative response to an arc or a circle, s that to a line, a corner, a square or a grating.
        Below 0, both count as 0. A unit that is excited by nothing straight has 1. The index has the form of that of
        direction selectivity: (preferred - opposite) / preferred.

        NaN if neither excites the unit, and unless arcs were matched by lines, and circles by squares, of the same
        widths, contrasts and backgrounds.
        """
        curved = [n for n, s in enumerate(self.stimuli) if s.kind == "circle" or (s.kind == "arc" and s.turn)]
        straight = [n for n in range(len(self.stimuli)) if n not in set(curved)]
        inks = {kind: {_ink(s) for s in self.stimuli if s.kind == kind} for kind in OWN}
        if not curved or not (inks["arc"] <= inks["line"] and inks["circle"] <= inks["square"]):
            return torch.full((len(self.features),), math.nan, dtype=torch.float64)
        c, s = (self.relative[:, some].amax(1).clamp(min=0) for some in (curved, straight))
        return (c - s) / torch.maximum(c, s)

    @cached_property
    def polarity_invariance(self) -> Tensor:
        """How alike each unit's highest relative responses to bright and to dark strokes are, from 0 to 1: low / high.

        Responses below 0 count as 0. NaN unless strokes of both polarities were shown, and if none excites the unit.
        """
        some = [
            [n for n, s in enumerate(self.stimuli) if s.kind != "grating" and sign * s.contrast > 0] for sign in (1, -1)
        ]
        if not all(some):
            return torch.full((len(self.features),), math.nan, dtype=torch.float64)
        bright, dark = (self.relative[:, numbers].amax(1).clamp(min=0) for numbers in some)
        return torch.minimum(bright, dark) / torch.maximum(bright, dark)

    @cached_property
    def weak(self) -> Tensor:
        """Which units are weak, bool (U,): hardly anything excites them, as ``WEAK`` says."""
        highest = self.highest()
        return (highest <= 0) | (highest < WEAK * highest.median())

    @cached_property
    def excited(self) -> Tensor:
        """Which units some stimulus excites, bool (U,): to above 0 and above the response to its background."""
        return (self.responses.amax(1) > 0) & (self.highest() > 0)

    # ---------------------------------------- tables

    def units(self) -> list[dict[str, Any]]:
        """Return the measures, one row per unit; None where not defined.

        ``blank`` is the response to the background of the first stimulus. ``response`` and ``relative`` are the
        highest ones, ``prefers`` is the kind that evokes the latter, and a kind's name is the highest relative
        response to it.
        """
        columns: dict[str, list[Any]] = {
            "feature": [str(feature) for feature in self.features],
            "blank": self.blank[:, 0].tolist(),
            "response": self.responses.amax(1).tolist(),
            "relative": self.highest().tolist(),
            "weak": self.weak.tolist(),
            "prefers": [stimulus.kind for stimulus in self.preferred()],
            **{kind: self.highest(kind).tolist() for kind in self.kinds},
            **{f"{kind}_selectivity": self.selectivity(kind).tolist() for kind in self.kinds if kind in PERIODS},
            "curve_preference": self.curve_preference.tolist(),
            "polarity_invariance": self.polarity_invariance.tolist(),
        }
        return [without_nan(dict(zip(columns, row, strict=True))) for row in zip(*columns.values(), strict=True)]

    def ranked(self, by: str = "curve_preference") -> list[int]:
        """Return the indices of the units, those with the highest value of a column of ``units`` first.

        Weak units come last, and those without a value last of all.

        Raises:
            ConvCircuitsError: If there is no such column of numbers.
        """
        rows = self.units()
        numbers = [name for name in rows[0] if name not in ("feature", "weak", "prefers")]
        if by not in numbers:
            raise ConvCircuitsError(f"Units cannot be ranked by {by!r}. {suggest(by, numbers)}")
        return sorted(range(len(rows)), key=lambda u: (rows[u][by] is None, rows[u]["weak"], -(rows[u][by] or 0), u))

    def rows(self) -> list[dict[str, Any]]:
        """Return every response, one row per unit and stimulus: the stimulus's parameters and what it evoked."""
        shown = [stimulus.as_dict() for stimulus in self.stimuli]
        return [
            {"feature": str(feature), **row, "response": response, "blank": blank, "relative": response - blank}
            for feature, responses, blanks in zip(
                self.features, self.responses.tolist(), self.blank.tolist(), strict=True
            )
            for row, response, blank in zip(shown, responses, blanks, strict=True)
        ]

    def curves(self) -> list[dict[str, Any]]:
        """Return all tuning curves of more than one value, one row per unit, kind, parameter and value.

        A parameter is left out if no unit has a relative response at more than one of its values.
        """
        found = []
        for kind in self.kinds:
            for parameter in (name for name in VARIED if name in ("size", "contrast", *OWN[kind])):
                values, curves = self.along(kind, parameter)
                if int((~curves.isnan()).sum(1).amax()) < 2:
                    continue
                found += [
                    {
                        "feature": str(feature),
                        "kind": kind,
                        "parameter": parameter,
                        "value": value,
                        "relative": relative,
                    }
                    for feature, curve in zip(self.features, curves.tolist(), strict=True)
                    for value, relative in zip(values, curve, strict=True)
                    if not math.isnan(relative)
                ]
        return found

    def to_pandas(self) -> "pandas.DataFrame":
        """Return ``rows`` as a DataFrame.

        Raises:
            ConvCircuitsError: If pandas is not installed (extra ``notebook``).
        """
        return frame(self.rows())

    def summary(self, by: str = "curve_preference", *, most: int = 20) -> str:
        """Tabulate what one unit prefers, by kind; or at most ``most`` units, ranked as by ``ranked``."""
        head, *cells = self._cells(by)[: most + 1]
        wide = [max(map(len, column)) for column in zip(head, *cells, strict=True)]
        lines = ["  ".join(map(str.ljust, line, wide)).rstrip() for line in (head, *cells)]
        return "\n".join([self._title(), *lines, *self._sentences()])

    def _repr_html_(self) -> str:
        head, *cells = self._cells("curve_preference")
        return card(self._title(), head, cells, self._sentences())

    def _title(self) -> str:
        count, first = len(self.features), self.features[0]
        what = str(first) if count == 1 else f"{count} units of {first.layer}"
        field, image = (f"{height} x {width}" for height, width in (self.field, self.image))
        return f"{what}: {len(self.stimuli):,} stimuli in its receptive field of {field} pixels, on images of {image}"

    def _sentences(self) -> list[str]:
        if len(self.features) > 1:
            weak = int(self.weak.sum())
            are = f"{weak or 'None'} of the units {'is' if weak == 1 else 'are'} weak"
            return [f"{are}: their highest relative response is below {WEAK:.0%} of the median.", *self.notes]
        preference, invariance = (
            _cell(without_nan(float(x))) for x in (self.curve_preference, self.polarity_invariance)
        )
        return [
            f"Curve preference {preference}: 1 if nothing straight excites it, -1 if nothing curved does. Polarity "
            f"invariance {invariance}: 1 if bright and dark strokes excite it alike.",
            *self.notes,
        ]

    def _cells(self, by: str) -> list[tuple[str, ...]]:
        rows = self.units()
        if len(rows) > 1:
            names = [name for name in rows[0] if name not in ("blank", "response")]
            return [tuple(names), *(tuple(_cell(rows[u][name]) for name in names) for u in self.ranked(by))]
        cells: list[tuple[str, ...]] = [("kind", "relative response", "orientation selectivity", "preferred stimulus")]
        for kind in sorted(self.kinds, key=lambda kind: -rows[0][kind]):
            selectivity = rows[0].get(f"{kind}_selectivity")
            cells.append((kind, _cell(rows[0][kind]), _cell(selectivity), repr(self.preferred(kind)[0])))
        return cells

    def _of(self, kind: str | None) -> list[int]:
        """Return the indices of the stimuli of a kind, or of all."""
        if kind is not None and kind not in self.kinds:
            raise ConvCircuitsError(f"No stimulus of kind {kind!r} was shown. {suggest(str(kind), self.kinds)}")
        return [n for n, stimulus in enumerate(self.stimuli) if kind in (None, stimulus.kind)]


def _held(stimulus: Stimulus, parameter: str) -> tuple[Any, ...]:
    """Return what stays the same along a tuning curve."""
    held = tuple(getattr(stimulus, name) for name in _HELD if name != parameter)
    return held if parameter == "contrast" else (*held, abs(stimulus.contrast))


def _ink(stimulus: Stimulus) -> tuple[float | None, float, float]:
    return stimulus.width, stimulus.contrast, stimulus.background


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
