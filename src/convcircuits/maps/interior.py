"""Which positions of a feature's map count, and which see the image alone."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from convcircuits.errors import ConvCircuitsError
from convcircuits.maps.receptive_fields import Field, receptive_fields
from convcircuits.network.masking import Subject

FEWEST = 4
"""Positions that an interior has at least: a figure of fewer tells of single places, not of the map."""


@dataclass(frozen=True)
class Interior:
    """The positions of a map whose receptive fields lie inside the image, or where these are too few, the central ones.

    Too few are fewer than ``FEWEST`` that are not all of the map. The central ones are of each axis the quarter whose
    fields leave the image least far on either side, with all that leave it as little.

    Attributes:
        mask: Which positions these are, bool (P,), laid out as by ``flattened``.
        inside: Whether their fields do lie inside the image; False: these are the central ones.
        within: How many positions' fields do.
        map: (h, w).
        field: (height, width) of a field, in pixels.
        image: (H, W).
    """

    mask: Tensor
    inside: bool
    within: int
    map: tuple[int, int]
    field: tuple[int, int]
    image: tuple[int, int]

    @classmethod
    def of(cls, field: Field) -> "Interior":
        """Build it from the receptive fields of a map's positions."""
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
        """The flat numbers of its positions, int64 (K,)."""
        return self.mask.nonzero()[:, 0]

    def among(self, values: Tensor, indices: Tensor | None) -> Tensor:
        """Return which counted values, laid out as by ``at``, are at its positions: bool of their shape."""
        return self.mask.expand_as(values) if indices is None else self.mask[indices.cpu()]


class Positions:
    """The positions of a feature's map that count, and its interior, for images of any size.

    What reaches all positions of a map alike, as the gates of squeeze-excitation, is no part of a receptive field
    here: it does not tell the border from the rest. Of several units, and of the channels that a direction reads, the
    largest field counts.

    Args:
        subject: The feature of the model.
    """

    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        self._found: dict[tuple[int, ...], Interior | ConvCircuitsError] = {}

    def interior(self, shape: tuple[int, ...]) -> Interior:
        """Return the interior of the map on images of shape (C, H, W).

        Raises:
            ConvCircuitsError: If the receptive fields cannot be told.
        """
        if shape not in self._found:
            try:
                self._found[shape] = self._told(shape)
            except ConvCircuitsError as error:
                self._found[shape] = error
        found = self._found[shape]
        if isinstance(found, ConvCircuitsError):
            raise found
        return found

    def _told(self, shape: tuple[int, ...]) -> Interior:
        subject = self._subject
        sized = Subject(subject.network, subject.feature, replace(subject.survey, input_shape=shape))
        try:
            field = receptive_fields(sized, [None], local=True)[None]
        except ConvCircuitsError:
            raise
        except Exception as error:  # a rule met a form that it was not made for: no figure, but no crash
            raise ConvCircuitsError(
                f"{subject.network.name} cannot compute receptive fields: {type(error).__name__}: {error}"
            ) from error
        return Interior.of(field)

    def counted(self, full: Tensor, shape: tuple[int, ...]) -> Tensor | None:
        """Return the flat positions that count in the full model's maps of images (C, H, W), as ``Feature.indices``.

        Raises:
            ConvCircuitsError: As ``Feature.indices``, or if the interior counts and cannot be told.
        """
        feature = self._subject.feature
        if feature.position != "interior":
            return feature.indices(full)
        try:
            return feature.indices(full, interior=self.interior(shape).positions)
        except ConvCircuitsError as error:
            raise ConvCircuitsError(
                f"The interior of {feature} cannot be told: {error} Give the feature another position."
            ) from error


def _beyond(spans: Sequence[tuple[int, int]], length: int) -> Tensor:
    """Return how far each field of an axis leaves the image on the side where it does so most, in pixels."""
    return torch.tensor([max(0, -first, end - length) for first, end in spans])
