"""Maps of units in the full model, from runs that serve many units at once."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from convcircuits.network.agreement import IMAGES
from convcircuits.network.batches import Batches
from convcircuits.network.masking import Subject
from convcircuits.values.feature import Feature

_HELD = 64
"""Maps of so many times ``memory`` are held."""


def held_at_once(map_bytes: int, images: int, memory: int) -> int:
    """Return of how many units the maps are held, given the size of a map and the number of images."""
    return max(1, _HELD * memory // (map_bytes * images))


class UnitMaps:
    """The maps of a layer's units in the full model, on the images that their circuits are measured on.

    To measure circuits of all units, the model then runs once for many units, and not for each.

    Args:
        subject: The model, opened for all units of the layer as one feature.
        images: The images.
        count: Their number.
        memory: As for ``atlas``.
    """

    def __init__(self, subject: Subject, images: Sequence[Batches], count: int, memory: int) -> None:
        self._subject, self._images = subject, images
        with torch.no_grad():
            some = subject.maps(images[0].first(IMAGES))
        self._at_once = held_at_once(some[0, 0].numel() * some.element_size(), count, memory)
        self._units, self._maps = range(0), dict[int, Tensor]()

    def of(self, feature: Feature) -> Mapping[int, Tensor]:
        """Return the maps of a unit by hash of their image; none if they would have to be found for it alone."""
        unit = feature.unit
        assert isinstance(unit, int)
        if self._at_once == 1:
            return {}
        if unit not in self._units:
            start = unit - unit % self._at_once
            self._units = range(start, min(start + self._at_once, len(self._subject.rows)))
            self._maps = self._found()
        place = self._units.index(unit)
        return {one: maps[place] for one, maps in self._maps.items()}

    def _found(self) -> dict[int, Tensor]:
        """Return the maps of the units, (U, H, W), by hash of their image."""
        self._maps.clear()  # before others are made
        found = dict[int, Tensor]()
        for batches in self._images:
            for images, hashes in batches.hashed():
                with torch.no_grad():
                    maps = self._subject.maps(images)[:, self._units.start : self._units.stop]
                found |= dict(zip(hashes, maps.clone(), strict=True))
        return found
