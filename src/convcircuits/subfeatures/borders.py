"""Count on how many images of groups a feature is highest at the border, where padding is seen."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from convcircuits.errors import ConvCircuitsError
from convcircuits.maps.interior import Positions
from convcircuits.maps.receptive_fields import Field
from convcircuits.network.masking import Subject
from convcircuits.values.borders import PLACES, Borders, Place

Seen = Mapping[Place, Bool[Tensor, " n"]]
"""Place of ``Borders`` -> whether the feature is highest there, for each image."""

Shape = tuple[int, ...]


def seen_places(subject: Subject, position: Int[Tensor, " n"], shapes: Sequence[Shape]) -> Seen | str:
    """Return at which places of the border a feature is highest on images.

    Args:
        subject: The feature.
        position: For each image, the flat position at which the feature is highest in its map.
        shapes: The shape (C, H, W) of each image.

    Returns:
        The places of each image, or a sentence why they are not known.
    """
    positions, found = Positions(subject), {place: torch.zeros(len(position), dtype=torch.bool) for place in PLACES}
    if bool((position < 0).any()):
        return _unknown("It counts at several positions of each image.")
    for shape in dict.fromkeys(shapes):
        some = torch.tensor([one == shape for one in shapes])
        try:
            field = positions.fields(shape)[0]
        except ConvCircuitsError as error:
            return _unknown(str(error))
        for place, there in at_places(field, position[some]).items():
            found[place][some] = there
    return found


def at_places(field: Field, position: Int[Tensor, " n"]) -> Seen:
    """Return which positions of a map, given by flat index, are at each place of ``Borders``."""
    (height, width), (tall, wide) = field.shape, field.image
    row, column = position // width, position % width
    above, below = _beyond(field.rows, tall)
    before, after = _beyond(field.columns, wide)
    top, bottom = (row == 0) & above[row], (row == height - 1) & below[row]
    left, right = (column == 0) & before[column], (column == width - 1) & after[column]
    return {
        "padding": (above | below)[row] | (before | after)[column],
        "edge": top | bottom | left | right,
        "top": top,
        "bottom": bottom,
        "left": left,
        "right": right,
    }


def counted(seen: Seen, groups: Mapping[str, Bool[Tensor, " n"]], what: str = "images") -> Borders:
    """Count the images of each group, given as masks, at each place. ``what`` is what they are called."""
    return Borders(
        images={name: int(some.sum()) for name, some in groups.items()},
        counts={place: tuple(int((there & some).sum()) for some in groups.values()) for place, there in seen.items()},
        what=what,
    )


def _beyond(spans: Sequence[tuple[int, int]], length: int) -> tuple[Tensor, Tensor]:
    """Return which fields begin before the image along an axis, and which end after it."""
    return torch.tensor([first < 0 for first, _ in spans]), torch.tensor([end > length for _, end in spans])


def _unknown(why: str) -> str:
    return f"Whether the groups differ in where the feature sees padding, and may be nothing else, is not known: {why}"
