"""A net whose weights are written by hand: it finds red squares by their corners, and crosses count against them.

::

      image        edges       corners and notches     "or"                     the unit

      red ----+--- top ---+--- top left ----------+--- not top left --- (-1) --+
              |           +--- top left, again ---+                            |
              +--- left --+--- top right ------------- top right ------ (+1) --+--- + 1
              +--- ...    +--- ...                     ...                     |
                          +--- top left notch -------- top left notch - (-1) --+

An edge is a pixel of the shape next to one that is not, a corner a pixel with two edges. A notch, where two arms of a
cross meet, is a pixel between two edges. The unit's map is 4 in the middle of a red square of 5 x 5 pixels, and -4 in
the middle of a red cross. What is green and blue does not matter.

All are 1 or 0 on images of shapes, and no ReLU is at its kink: an edge is relu(2 x - 2 x' - 1) of two pixels, a corner
relu(2 a + 2 b - 3) of two edges.

A redundant corner is found twice, from edges at different pixels, and both are joined by "or": 1 - relu(1 - 2 a - 2 b)
is 1 if either is found. On images of shapes neither is missed as long as the other is there, so a criterion that asks
what one kernel does sees nothing in either.
"""

import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor

from convcircuits.errors import ConvCircuitsError, whole_number
from convcircuits.zoo.planted.building import Masks, build, empty_net
from convcircuits.zoo.planted.network import Planted
from convcircuits.zoo.planted.plans import Plan, dealt, draw, without

_UNITS = 8  # filters of the last layer; the feature is one of them
_EDGES = {"top": (-1, 0), "bottom": (1, 0), "left": (0, -1), "right": (0, 1)}  # where the shape ends: down, right
_CORNERS = list(itertools.product(("top", "bottom"), ("left", "right")))
_CELL = 10  # side of the square that holds one shape of each color, with a gap to the next


@dataclass(frozen=True)
class _Detector:
    """A filter that is 1 where two edges are, and otherwise 0.

    ``reach`` says where it looks for them: at the pixel itself, 0; at its neighbors inside the shape, 1, where they are
    at corners, too; or at those outside, -1, where they are at notches.
    """

    corner: tuple[str, str]
    reach: int

    def kernels(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the two edges and the kernels on them, (3, 3)."""
        (vertical, horizontal), kernels = self.corner, torch.zeros(2, 3, 3)
        kernels[0, 1, 1 - self.reach * _EDGES[horizontal][1]] = 2
        kernels[1, 1 - self.reach * _EDGES[vertical][0], 1] = 2
        yield from zip(self.corner, kernels, strict=True)

    def readout(self, sign: float) -> Tensor:
        """Return the unit's kernel on it, (5, 5)."""
        away, kernel = (1 if self.reach < 0 else 2), torch.zeros(5, 5)
        kernel[2 + away * _EDGES[self.corner[0]][0], 2 + away * _EDGES[self.corner[1]][1]] = sign
        return kernel


def compiled(
    seed: int = 0,
    *,
    channels: int = 24,
    redundant: int = 1,
    inhibition: bool = True,
    pairs: int = 4,
    constants: int = 4,
    strength: float = 1.0,
    leak: float = 0.0,
    decades: float = 3.0,
    groups: int = 1,
    batchnorm: bool = False,
    residual: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Planted:
    """Write a circuit that finds squares by their corners into a net, among the distractors of ``plant``.

    Args:
        seed: Seed of where channels are, and of the distractors.
        channels: Number of filters of each hidden layer.
        redundant: Number of corners that are found twice, from 0 to 4. Each doubles the number of ``alternatives``,
            which are exact on ``images``, with the weights as they are.
        inhibition: Subtract notches, which crosses have, with negative kernels.
        pairs: As for ``plant``.
        constants: As for ``plant``.
        strength: As for ``plant``.
        leak: As for ``plant``.
        decades: As for ``plant``.
        groups: Number of groups of the two layers in the middle: 1, 2 or 4. Each has edges and corners of its own.
        batchnorm: As for ``plant``.
        residual: Let corners and notches bypass the third layer, on a residual connection, in place of kernels of 1.
        dtype: As for ``plant``.

    Raises:
        ConvCircuitsError: If a number is out of range, or the channels do not suffice.

    Examples:
        >>> from convcircuits.zoo.planted import compiled
        >>> planted = compiled()
        >>> maps = cc.activations(planted.model, planted.feature, planted.images(4))
        >>> round(float(maps.max()), 3)
        4.0
    """
    if groups not in (1, 2, 4):
        raise ConvCircuitsError(f"groups must be 1, 2 or 4; got {groups!r}.")
    found_twice = _CORNERS[: whole_number("redundant", redundant, 0, 4)]
    detectors: list[list[_Detector]] = [[] for _ in range(groups)]
    for k, corner in enumerate(_CORNERS):
        reaches = [0] + [1] * (corner in found_twice) + [-1] * inhibition
        detectors[k % groups] += [_Detector(corner, reach) for reach in reaches]
    edges = [sorted({edge for detector in group for edge in detector.corner}) for group in detectors]
    live = [groups * max(map(len, parts)) for parts in (edges, detectors)]
    dice = Generator().manual_seed(seed)
    parts = {"pairs": pairs, "constants": constants, "groups": groups}
    plans = [dealt(dice, channels, live=count, **parts) for count in (*live, live[1])]
    if residual:
        plans[2] = plans[1].same_parts()
    plans.append(Plan())
    unit = draw(dice, _UNITS)
    whats: list[Sequence[Sequence[Any]]] = [edges, detectors, detectors]
    places = [_places(plan, what) for plan, what in zip(plans, whats, strict=False)]
    doubled = _write(plans, unit, *places)
    for plan in plans:
        plan.noise = dict.fromkeys(plan.reads, leak)
    net = empty_net(
        [*[channels] * 3, _UNITS],
        sides=[3, 3, 1, 5],
        pools=(),
        groups=groups,
        batchnorm=batchnorm,
        residual=(2,) if residual else (),
    )

    def smaller(truth: Masks) -> list[Masks]:
        choices = itertools.product(*doubled) if doubled else ()
        return [reduce(lambda masks, channel: without(masks, 1, channel), choice, truth) for choice in choices]

    return build(
        dice,
        net,
        plans,
        unit,
        drawn_shapes(32, seed=seed),
        strength=strength,
        decades=decades,
        dtype=dtype,
        draw=drawn_shapes,
        smaller=smaller,
    )


def drawn_shapes(count: int, *, size: int = 32, seed: int = 0) -> Tensor:
    """Draw squares, rectangles and crosses that do not touch, in red, green and blue: (count, 3, size, size), 0 or 1.

    Each color has shapes of its own, in places of its own.
    """
    dice, cells = random.Random(seed), size // _CELL
    images = np.zeros((3 * count, size, size), np.float32)
    for image in images:
        shift = [dice.randrange(size - cells * _CELL + 1) for _ in range(2)]
        for cell in itertools.product(range(cells), repeat=2):
            shape = _shape(dice)
            top, left = (
                first + _CELL * place + dice.randrange(_CELL - side)
                for first, place, side in zip(shift, cell, shape.shape, strict=True)
            )
            image[top : top + shape.shape[0], left : left + shape.shape[1]] = shape
    return torch.from_numpy(images).reshape(count, 3, size, size)


def _shape(dice: random.Random) -> NDArray[np.float32]:
    """Draw nothing, a square that the unit finds, a cross or a rectangle."""
    kind = dice.randrange(4)
    if kind == 0:
        return np.zeros((1, 1), np.float32)
    if kind == 1:
        return np.ones((5, 5), np.float32)
    if kind == 2:
        cross = np.zeros((7, 7), np.float32)
        cross[2:5], cross[:, 2:5] = 1, 1
        return cross
    return np.ones((dice.randrange(3, 9), dice.randrange(3, 9)), np.float32)


_Places = Mapping[tuple[int, Any], int]  # the channel of an edge or a detector in a group


def _places(plan: Plan, groups: Sequence[Sequence[Any]]) -> _Places:
    each = len(plan.live) // len(groups)
    return {(g, what): plan.live[g * each + k] for g, group in enumerate(groups) for k, what in enumerate(group)}


def _write(plans: list[Plan], unit: int, edges: _Places, detectors: _Places, joined: _Places) -> list[tuple[int, int]]:
    """Write all filters; return the two detectors of each corner that is found twice.

    If the third layer has the channels of the second, detectors go through it on a residual connection.
    """
    residual, one = joined == detectors, torch.ones(1, 1)
    readouts, doubled = {}, []
    for (_, edge), o in edges.items():
        plans[0].write(o, {0: _edge_kernel(edge)}, -1)
    for (g, detector), o in detectors.items():
        plans[1].write(o, {edges[g, edge]: kernel for edge, kernel in detector.kernels()}, -3)
        again, out = detectors.get((g, replace(detector, reach=1))), joined[g, detector]
        if detector.reach == 0 and again is not None:
            doubled.append((o, again))
            plans[2].write(out, {o: -2 * one - residual * one, again: -2 * one}, 1)
            readouts[out] = detector.readout(-1)
        elif detector.reach < 1:
            plans[2].write(out, {} if residual else {o: one}, 0)
            readouts[out] = detector.readout(-1 if detector.reach else 1)
    plans[3].write(unit, readouts, len(doubled))
    return doubled


def _edge_kernel(edge: str) -> Tensor:
    (row, column), kernel = _EDGES[edge], torch.zeros(3, 3)
    kernel[1, 1], kernel[1 + row, 1 + column] = 2, -2
    return kernel
