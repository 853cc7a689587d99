"""Which positions of a feature's map count, and which of them see no padding."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from convcircuits.errors import ConvCircuitsError
from convcircuits.maps.receptive_fields import Field, local_fields
from convcircuits.network.masking import Subject
from convcircuits.values.boxes import Boxes
from convcircuits.values.feature import Position, at

FEWEST = 4
"""Minimum number of interior positions: a figure over fewer describes single positions, not the map."""


@dataclass(frozen=True)
class Interior:
    """The positions of a map whose receptive fields lie inside the image, or the central ones if these are too few.

    Too few means fewer than ``FEWEST`` and not the whole map. Along each axis, the central positions are the quarter
    whose fields extend least beyond the image on either side, including ties.

    Attributes:
        mask: The interior positions, bool (P,), in the order of ``flattened``.
        inside: Whether their fields lie inside the image; False if these are the central positions.
        within: Number of positions whose fields lie inside the image.
        map: (h, w) of the map.
        field: (height, width) of a field, in pixels.
        image: (H, W) of the image.
    """

    mask: Tensor
    inside: bool
    within: int
    map: tuple[int, int]
    field: tuple[int, int]
    image: tuple[int, int]

    @classmethod
    def of(cls, field: Field) -> "Interior":
        """Build the interior from the receptive fields of a map's positions."""
        beyond = [_beyond(*axis) for axis in zip((field.rows, field.columns), field.image, strict=True)]
        rows, columns = (outside == 0 for outside in beyond)
        mask = rows[:, None] & columns
        within = int(mask.sum())
        inside = within >= FEWEST or within == mask.numel()
        if not inside:
            rows, columns = (outside <= outside.sort().values[(len(outside) - 1) // 4] for outside in beyond)
            mask = rows[:, None] & columns
        return cls(mask.flatten(), inside, within, field.shape, field.size, field.image)

    @property
    def positions(self) -> Tensor:
        """The flat indices of the interior positions, int64 (K,)."""
        return self.mask.nonzero()[:, 0]

    @property
    def window(self) -> tuple[slice | Tensor, slice | Tensor]:
        """What rows and what columns of a map cross at the interior positions: slices, or indices if they have gaps."""
        mask = self.mask.reshape(self.map)
        return _places(mask.any(1)), _places(mask.any(0))

    def among(self, values: Tensor, indices: Tensor | None) -> Tensor:
        """Return which counted values, in the layout of ``at``, are at interior positions: bool of their shape."""
        return self.mask.expand_as(values) if indices is None else self.mask[indices.cpu()]


class Positions:
    """The positions of a feature's map that count, and its interior, for images of any size.

    Receptive fields here leave out what reaches all positions of a map alike, such as the gates of squeeze-excitation,
    since that does not distinguish the border from the rest. For several units, or the channels that a direction reads,
    the largest field counts.

    Args:
        subject: The feature of the model.

    Attributes:
        subject: The feature of the model.
    """

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self._fields: dict[tuple[int, ...], tuple[Field, ...] | ConvCircuitsError] = {}
        self._interiors: dict[tuple[int, ...], Interior] = {}

    def at(self, position: Position) -> "Positions":
        """Return those of the same units at another position, which have the same receptive fields."""
        subject = self.subject
        other = Positions(Subject(subject.network, replace(subject.feature, position=position), subject.survey))
        other._fields, other._interiors = self._fields, self._interiors
        return other

    def interior(self, shape: tuple[int, ...]) -> Interior:
        """Return the interior of the map on images of shape (C, H, W).

        Raises:
            ConvCircuitsError: If the receptive fields cannot be computed.
        """
        if shape not in self._interiors:
            self._interiors[shape] = Interior.of(self._computed(shape)[0])
        return self._interiors[shape]

    def fields(self, shape: tuple[int, ...]) -> tuple[Field, ...]:
        """Return the receptive fields of each unit's map on images of shape (C, H, W).

        They are those of the feature itself if it is not several units, and if one of these does not depend on the
        image.

        Raises:
            ConvCircuitsError: If the receptive fields cannot be computed.
        """
        return self._computed(shape)[1:]

    def known(self, shape: tuple[int, ...]) -> Interior | None:
        """Return the interior, or None if the receptive fields cannot be computed."""
        try:
            return self.interior(shape)
        except ConvCircuitsError:
            return None

    def _computed(self, shape: tuple[int, ...]) -> tuple[Field, ...]:
        """Return the receptive fields of the feature's map, then those of each unit's."""
        if shape not in self._fields:
            try:
                self._fields[shape] = self._walked(shape)
            except ConvCircuitsError as error:
                self._fields[shape] = error
        found = self._fields[shape]
        if isinstance(found, ConvCircuitsError):
            raise found
        return found

    def _walked(self, shape: tuple[int, ...]) -> tuple[Field, ...]:
        subject = self.subject
        sized = Subject(subject.network, subject.feature, replace(subject.survey, input_shape=shape))
        units = subject.rows.tolist() if isinstance(subject.feature.unit, tuple) else [None]
        try:
            found = local_fields(sized, [None, *units])
        except ConvCircuitsError:
            found = local_fields(sized, [None])
        return tuple(found.get(unit, found[None]) for unit in [None, *units])

    def counted(self, full: Tensor, images: Tensor) -> Tensor | None:
        """Return the flat positions that count in the full model's maps of images (N, C, H, W), as ``Feature.indices``.

        Raises:
            ConvCircuitsError: As for ``Feature.indices``; if the interior or boxes count and receptive fields cannot be
                computed; or if an image has no box.
        """
        feature, shape = self.subject.feature, tuple(images.shape[1:])
        if isinstance(feature.position, Boxes):
            boxes = [feature.position.box(image) for image in images]
            field = self._needed(shape)
            return feature.indices(full, within=torch.stack([_within(field, box) for box in boxes]))
        if feature.position == "interior":
            self._needed(shape)
            return feature.indices(full, interior=self.interior(shape).positions)
        return feature.indices(full)

    def highest(self, full: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the highest value of each of the full model's maps at the positions that count, and its flat position.

        Of equally high ones, the first. If the value is NaN, so is one of the map's.

        Shape: (N, H, W) or (N,) -> (N,); for several units (N, U, H, W) or (N, U) -> (N, U).

        Raises:
            ConvCircuitsError: As for ``counted``.
        """
        if full.dim() > 2 and self.subject.feature.position == "all":
            return highest_of(full)
        if full.dim() > 2 and self.subject.feature.position == "interior":
            shape = tuple(images.shape[1:])
            self._needed(shape)
            return highest_of(full, self.interior(shape).window)
        indices = self.counted(full, images)
        value, which = at(full, indices).max(-1)
        return value, which if indices is None else indices.gather(-1, which.unsqueeze(-1)).squeeze(-1)

    def _needed(self, shape: tuple[int, ...]) -> Field:
        """Return the receptive fields of the feature's map, without which it is not known which positions count."""
        try:
            return self._computed(shape)[0]
        except ConvCircuitsError as error:
            what = "interior" if self.subject.feature.position == "interior" else "place of a box in the map"
            raise ConvCircuitsError(
                f"The {what} of {self.subject.feature} is not known: {error} Give the feature another position."
            ) from error


def highest_of(
    maps: Tensor, window: tuple[slice | Tensor, slice | Tensor] = (slice(None), slice(None))
) -> tuple[Tensor, Tensor]:
    """Return the highest value of each map where some rows and columns cross, and its flat position in the map.

    Of equally high ones, the first. Shape: (..., h, w) -> (...).
    """
    rows, columns = window
    part = maps[..., rows, :][..., columns]
    # The highest value of a row is found many times faster than its place, which only one row has to tell.
    value, row = part.amax(-1).max(-1)
    column = part.gather(-2, row[..., None, None].expand(*row.shape, 1, part.shape[-1])).argmax(-1).squeeze(-1)
    height, width = (torch.arange(length, device=maps.device) for length in maps.shape[-2:])
    return value, height[rows][row] * len(width) + width[columns][column]


def _places(chosen: Tensor) -> slice | Tensor:
    """Return the indices of what is chosen along an axis, bool (n,), as a slice if they have no gaps."""
    places = chosen.nonzero()[:, 0]
    first, last = int(places[0]), int(places[-1])
    return slice(first, last + 1) if len(places) == last - first + 1 else places


def _within(field: Field, box: tuple[int, int, int, int]) -> Tensor:
    """Return which positions of a map have the center of their field in a box, bool (P,); at least the nearest one."""
    along = []
    for axis, begin, length in zip((field.rows, field.columns), box[:2], box[2:], strict=True):
        centers = torch.tensor([(first + end) / 2 for first, end in axis])
        inside = (begin <= centers) & (centers <= begin + length)
        if not bool(inside.any()):
            far = (centers - begin - length / 2).abs()
            inside = torch.arange(len(far)) == far.argmin()
        along.append(inside)
    rows, columns = along
    return (rows[:, None] & columns).flatten()


def _beyond(spans: Sequence[tuple[int, int]], length: int) -> Tensor:
    """Return how far each field extends beyond the image along one axis, on its worse side, in pixels."""
    return torch.tensor([max(0, -first, end - length) for first, end in spans])
