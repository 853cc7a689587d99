"""A stimulus: a simple gray figure on a uniform background, described by numbers."""

import dataclasses
import math
import numbers
from dataclasses import dataclass
from typing import Any, Literal

from convcircuits.errors import ConvCircuitsError
from convcircuits.values.tables import suggest

Kind = Literal["line", "arc", "corner", "circle", "square", "grating"]

OWN = {
    "line": ("width", "orientation"),
    "arc": ("width", "orientation", "turn"),
    "corner": ("width", "orientation", "turn"),
    "circle": ("width",),
    "square": ("width", "orientation"),
    "grating": ("orientation", "frequency", "phase"),
}
"""What each kind has besides size, contrast, background and offset."""

PERIODS = {"line": 180, "arc": 360, "corner": 360, "square": 90, "grating": 180}
"""The angle in degrees after which a kind's orientation repeats. (A grating then has the opposite phase.)"""

_RANGES = {
    "size": (0, math.inf),
    "width": (0, math.inf),
    "orientation": (-math.inf, math.inf),
    "phase": (-math.inf, math.inf),
    "frequency": (0, 0.5),
    "contrast": (-1, 1),
    "background": (0, 1),
}
_MOST_TURN = {"arc": 360, "corner": 150}  # the tip of a sharper corner would be far outside of it
_POSITIVE = ("size", "width", "frequency")
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Stimulus:
    """A line, an arc, a corner, a circle, a square or a grating, in gray on a uniform gray background.

    Lines, arcs and corners are one family: a stroke of length ``size`` whose middle is at the center, and which turns
    left by ``turn`` degrees on its way: an arc evenly, a corner all at once, a line not at all. Circles and squares are
    outlines around the center. The area of each of these is the length of its midline times ``width``.

    Lengths are in pixels. Angles are in degrees, counterclockwise as seen. Gray levels go from 0, black, to 1, white.

    Args:
        kind: ``"line"``, ``"arc"``, ``"corner"``, ``"circle"``, ``"square"`` or ``"grating"``.
        size: Length of the midline of a line, an arc or a corner; diameter of a circle's midline; side of a square's;
            diameter of the round window through which a grating is seen.
        width: Width of the stroke. Gratings have none.
        orientation: Direction of the stroke in its middle, of a square's side or of a grating's stripes; 0 is
            horizontal. Arcs and corners bend to the left of it: at 0 they open upwards. Circles have none.
        turn: How far an arc or a corner turns, in degrees: from 0, a straight line, to 360, a closed circle, or to 150
            for a corner. A corner of turn 90 is a right angle.
        frequency: Cycles per pixel of a grating, at most 0.5.
        phase: Phase of a grating, in degrees: at 0 there is a crest at the center, which moves to the left of
            ``orientation`` as the phase rises.
        contrast: Gray level of the stroke, or of the crests of a grating, minus the background's. Negative contrast is
            dark on bright. 0 shows the background alone.
        background: Gray level of the background.
        offset: Rows and columns from the place where the stimulus is drawn to its center; they may be fractions.

    Raises:
        ConvCircuitsError: If a parameter is missing, out of range or not one of this kind, if the inner edge of a
            stroke would cross itself, or if gray levels would leave 0 to 1.

    Examples:
        >>> cc.Stimulus("arc", 20, width=2, orientation=45, turn=90)
        Stimulus(arc, size=20, width=2, orientation=45, turn=90, contrast=0.5)
    """

    kind: Kind
    size: float
    width: float | None = None
    orientation: float | None = None
    turn: float | None = None
    frequency: float | None = None
    phase: float | None = None
    contrast: float = 0.5
    background: float = 0.5
    offset: tuple[float, float] = (0.0, 0.0)

    def __post_init__(self) -> None:
        if self.kind not in OWN:
            raise ConvCircuitsError(f"There is no kind of stimulus {self.kind!r}. {suggest(str(self.kind), OWN)}")
        for name in ("width", "orientation", "turn", "frequency", "phase"):
            has, given = name in OWN[self.kind], getattr(self, name) is not None
            if has != given:
                problem = f"needs {name}" if has else f"has no {name}"
                raise ConvCircuitsError(f"A {self.kind} {problem}; it has size, {', '.join(OWN[self.kind])}.")
        for name in _parameters(self.kind):
            low, high = (0, _MOST_TURN[self.kind]) if name == "turn" else _RANGES[name]
            object.__setattr__(self, name, _number(name, getattr(self, name), low, high, name not in _POSITIVE))
        if not isinstance(self.offset, (tuple, list)) or len(self.offset) != 2:
            raise ConvCircuitsError(f"offset must be (rows, columns) in pixels; got {self.offset!r}.")
        offset = tuple(_number("offset", value, -math.inf, math.inf, True) for value in self.offset)
        object.__setattr__(self, "offset", offset)
        self._check_fits()

    def _check_fits(self) -> None:
        ends = (self.background + self.contrast, self.background - self.contrast * (self.kind == "grating"))
        if not all(-_ROUNDING <= level <= 1 + _ROUNDING for level in ends):
            raise ConvCircuitsError(
                f"A {self.kind} of contrast {self.contrast:g} on a background of {self.background:g} would leave the "
                "gray levels from 0 to 1; give less contrast or another background."
            )
        if self.width is not None and self.width > self._widest() * (1 + _ROUNDING):
            raise ConvCircuitsError(
                f"The inner edge of this {self.kind} would cross itself: its width is {self.width:g}, at most "
                f"{self._widest():.4g} is possible; give a smaller width, a larger size or less turn."
            )

    def _widest(self) -> float:
        """Return the greatest width with which the inner edge of a stroke does not cross itself."""
        turn = math.radians(self.turn or 0)
        if self.kind in ("circle", "square"):
            return self.size
        if not turn:
            return math.inf
        return 2 * self.size / turn if self.kind == "arc" else self.size / math.tan(turn / 2)

    @property
    def reach(self) -> float:
        """The distance from its center that no part of the figure exceeds, in pixels."""
        return (self.size + (self.width or 0)) / 2 * (math.sqrt(2) if self.kind == "square" else 1)

    def as_dict(self) -> dict[str, Any]:
        """Return the parameters as a row of a table; None for those that the kind does not have."""
        row = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        row["offset_rows"], row["offset_columns"] = row.pop("offset")
        return row

    def __repr__(self) -> str:
        shown = {name: getattr(self, name) for name in _parameters(self.kind)}
        if self.background == Stimulus.background:
            del shown["background"]
        text = ", ".join(f"{name}={_short(value)}" for name, value in shown.items())
        offset = "({}, {})".format(*map(_short, self.offset))
        offset = "" if offset == "(0, 0)" else f", offset={offset}"
        return f"Stimulus({self.kind}, {text}{offset})"


def _short(value: float) -> str:
    """Return a parameter for a reader: two decimals from 1 on, three digits below."""
    rounded = round(value, 2) if abs(value) >= 1 else float(f"{round(value, 9):.3g}")
    return f"{rounded + 0.0:g}"


def _parameters(kind: str) -> tuple[str, ...]:
    return ("size", *OWN[kind], "contrast", "background")


def _number(name: str, value: Any, low: float, high: float, ends: bool) -> float:
    """Return a number in a range as a float; ``ends`` says whether the lower end belongs to it."""
    number = math.nan if isinstance(value, bool) or not isinstance(value, numbers.Real) else float(value)
    if math.isfinite(number) and (low <= number if ends else low < number) and number <= high:
        return number
    span = {
        (-math.inf, math.inf): "a number",
        (0, math.inf): "a number above 0",
        (0, 0.5): "above 0 and at most 0.5",
    }.get((low, high), f"from {low:g} to {high:g}")
    raise ConvCircuitsError(f"{name} of a stimulus must be {span}; got {value!r}.")
