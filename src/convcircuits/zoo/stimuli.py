"""Draw stimuli: lines, arcs, corners, circles, squares and gratings, anti-aliased, at any place of a picture."""

import math
from collections.abc import Iterator, Sequence
from itertools import product

import torch
from torch import Tensor

from convcircuits.errors import ConvCircuitsError, whole_number
from convcircuits.values.stimulus import Kind, Stimulus

_FINE = 8
"""Sub-pixels along each side of a pixel. In each, the coverage by a straight edge is exact; what is left is the bend of
the edge, and its direction, within a sub-pixel: less than 1 % of the contrast."""
_SMALLEST = 6  # pixels along the side of a battery's square
_LENGTHS = (0.4, 0.6)  # of lines, arcs and corners, in sides of the square
_DIAMETERS = (0.15, 0.25, 0.35, 0.45, 0.6)  # of circles
_TURNS: tuple[tuple[Kind, int], ...] = (("arc", 90), ("arc", 180), ("corner", 90))


def draw(
    stimuli: Sequence[Stimulus],
    *,
    size: tuple[int, int],
    center: tuple[float, float] | None = None,
) -> Tensor:
    """Draw each stimulus into a picture of its own. What lies outside of it is cut off.

    A pixel gets its mean gray level over its area, so that stimuli may be moved and turned by any amount.

    The crests of a grating are cos(2 pi frequency d - phase) high, for the distance d to the left of the line through
    the center. Its mean over the window is subtracted, and the rest is scaled back to the range that the contrast
    allows, so that the mean gray level is the background's at every phase.

    Args:
        stimuli: The stimuli, at least one.
        size: (H, W) of the pictures, in pixels.
        center: Row and column of the center, to which each stimulus adds its offset. The pixel in row r and column c
            covers r to r + 1 and c to c + 1, so that (H / 2, W / 2) is the middle, which is the default.

    Returns:
        float32 (N, 3, H, W) from 0 to 1, on the CPU; the channels are equal.

    Raises:
        ConvCircuitsError: If there are no stimuli, or the size is not two whole numbers from 1.

    Examples:
        >>> from convcircuits.zoo.stimuli import draw
        >>> pictures = draw([cc.Stimulus("circle", 12, width=2)], size=(32, 32))
        >>> round(float((pictures[0, 0] - 0.5).sum() / 0.5), 1)  # the area: pi x 12 x 2
        75.4
    """
    height, width = (whole_number("The size of a picture", side, 1) for side in size)
    if not stimuli:
        raise ConvCircuitsError("There are no stimuli to draw; give at least one.")
    row, column = (height / 2, width / 2) if center is None else center
    pictures = torch.empty(len(stimuli), height, width)
    for picture, stimulus in zip(pictures, stimuli, strict=True):
        picture.fill_(stimulus.background)
        down, right = row + stimulus.offset[0], column + stimulus.offset[1]
        rows, columns = _around(down, stimulus.reach, height), _around(right, stimulus.reach, width)
        if rows and columns:
            part = _coverage(stimulus, down - _fine(rows)[:, None], _fine(columns) - right)
            part = part.reshape(len(rows), _FINE, len(columns), _FINE).mean((1, 3))
            levels = (stimulus.background + stimulus.contrast * part).clamp(0, 1)
            picture[rows.start : rows.stop, columns.start : columns.stop] = levels
    return pictures[:, None].repeat(1, 3, 1, 1)


def battery(side: float, *, contrast: float = 0.5, background: float = 0.5) -> list[Stimulus]:
    """Return about 2,000 stimuli of all kinds that fit into a square, to find out what a unit prefers.

    Strokes are a twentieth and a tenth of the square wide, but at least one and two pixels. Lines, arcs and corners are
    40 and 60 % as long as the square, at three places across their direction; arcs turn by 90 and 180 degrees, corners
    by 90. Circles have five diameters, from 15 to 60 % of the square, and squares the same circumferences, at nine
    places. All of these come bright and dark, in the same widths and contrasts. Gratings fill the square with 2, 4, 8
    and 16 cycles, in four phases. In small squares, what would not fit, strokes too thick for their length, and waves
    finer than two pixels are left out.

    Args:
        side: Side of the square in pixels, such as that of a receptive field; at least 6.
        contrast: Contrast of the gratings and the bright strokes.
        background: Gray level of the background.

    Raises:
        ConvCircuitsError: If the square is smaller, or gray levels would leave 0 to 1.

    Examples:
        >>> from convcircuits.zoo.stimuli import battery
        >>> sorted({stimulus.size for stimulus in battery(40) if stimulus.kind == "circle"})
        [6.0, 10.0, 14.0, 18.0, 24.0]
    """
    if not side >= _SMALLEST:
        raise ConvCircuitsError(
            f"These stimuli need a square of {_SMALLEST} pixels or more; got {side:g}. Choose a later layer, "
            "or other stimuli."
        )
    widths = [width for width in (max(1, side / 20), max(2, side / 10)) if math.pi * width <= _LENGTHS[-1] * side]
    strokes = [
        stimulus
        for width, level in product(widths, (contrast, -contrast))
        for stimulus in _strokes(side, {"width": width, "contrast": level, "background": background})
    ]
    gratings = [
        Stimulus("grating", side, None, angle, None, cycles / side, phase, contrast, background)
        for cycles, angle, phase in product((2, 4, 8, 16), range(0, 180, 15), range(0, 360, 90))
        if cycles / side <= 0.5
    ]
    return [stimulus for stimulus in strokes if _fits(stimulus, side)] + gratings


def _strokes(side: float, common: dict[str, float]) -> Iterator[Stimulus]:
    """Yield the strokes of one width and contrast."""
    for size, shift in product([share * side for share in _LENGTHS], (-side / 8, 0.0, side / 8)):
        for angle in range(0, 360, 15):
            across = _clean(-shift * math.cos(math.radians(angle))), _clean(-shift * math.sin(math.radians(angle)))
            if angle < 180:
                yield Stimulus("line", size, orientation=angle, offset=across, **common)
            if angle % 30 == 0:
                for kind, turn in _TURNS:
                    yield Stimulus(kind, size, orientation=angle, turn=turn, offset=across, **common)
    for size, rows, columns in product([share * side for share in _DIAMETERS], (-1, 0, 1), (-1, 0, 1)):
        offset, edge = (rows * side / 14, columns * side / 14), size * math.pi / 4
        if edge >= common["width"]:
            yield Stimulus("circle", size, offset=offset, **common)
            yield from (Stimulus("square", edge, orientation=angle, offset=offset, **common) for angle in (0, 30, 60))


def _clean(length: float) -> float:
    """Return a length without what rounding leaves of 0."""
    return round(length, 9) + 0.0


def _fits(stimulus: Stimulus, side: float) -> bool:
    return max(map(abs, stimulus.offset)) + stimulus.reach <= side / 2


def _around(center: float, reach: float, length: int) -> range:
    """Return the pixels of an axis that a figure may cover."""
    return range(max(0, math.floor(center - reach)), min(length, math.ceil(center + reach)))


def _fine(pixels: range) -> Tensor:
    """Return the centers of the sub-pixels along an axis."""
    return pixels.start + (torch.arange(len(pixels) * _FINE, dtype=torch.float64) + 0.5) / _FINE


def _coverage(stimulus: Stimulus, up: Tensor, right: Tensor) -> Tensor:
    """Return how much of each sub-pixel the figure covers, or the height of a grating, for places around its center."""
    if stimulus.kind == "circle":
        return _within(torch.hypot(up, right) - stimulus.size / 2, _width(stimulus) / 2)
    angle = math.radians(stimulus.orientation or 0)
    along = right * math.cos(angle) + up * math.sin(angle)
    left = up * math.cos(angle) - right * math.sin(angle)
    if stimulus.kind == "grating":
        return _grating(stimulus, along, left)
    if stimulus.kind == "square":
        return _within(torch.maximum(along.abs(), left.abs()) - stimulus.size / 2, _width(stimulus) / 2)
    across, further = _stroke(stimulus, along.abs(), left)  # both halves of a stroke are alike
    return _within(across, _width(stimulus) / 2) * _within(further, stimulus.size / 2)


def _stroke(stimulus: Stimulus, along: Tensor, left: Tensor) -> tuple[Tensor, Tensor]:
    """Return the distance of places from a stroke's midline, and how far along it they are from its middle."""
    turn = math.radians(stimulus.turn or 0)
    if turn == 0:
        return left, along
    if stimulus.kind == "corner":
        cosine, sine = math.cos(turn / 2), math.sin(turn / 2)
        return left * cosine - along * sine, along * cosine + left * sine
    radius = stimulus.size / turn
    distance = torch.hypot(along, radius - left)
    if turn >= 2 * math.pi:  # closed: there are no ends
        return distance - radius, torch.zeros_like(distance)
    beyond = (torch.atan2(along, radius - left) - turn / 2) * distance  # past the end, at its own distance
    return distance - radius, beyond + stimulus.size / 2


def _grating(stimulus: Stimulus, along: Tensor, left: Tensor) -> Tensor:
    frequency, phase = stimulus.frequency or 0, math.radians(stimulus.phase or 0)
    angle = math.radians(stimulus.orientation or 0)
    window = _within(torch.hypot(along, left), stimulus.size / 2)
    argument = torch.tensor(math.pi * frequency * stimulus.size, dtype=torch.float64)
    mean = float(2 * torch.special.bessel_j1(argument) / argument) * math.cos(phase)  # over a disc
    steps = torch.tensor([math.sin(angle), math.cos(angle)], dtype=torch.float64) * frequency / _FINE
    within = float(torch.sinc(steps).prod())  # the mean of a wave over a sub-pixel
    return window * (within * torch.cos(2 * math.pi * frequency * left - phase) - mean) / (1 + abs(mean))


def _within(distance: Tensor, limit: float) -> Tensor:
    """Return the share of a sub-pixel, at a distance from a line, that is no further from the line than a limit."""
    half = 0.5 / _FINE
    return ((distance + half).clamp(max=limit) - (distance - half).clamp(min=-limit)).clamp(min=0) / (2 * half)


def _width(stimulus: Stimulus) -> float:
    assert stimulus.width is not None
    return stimulus.width
