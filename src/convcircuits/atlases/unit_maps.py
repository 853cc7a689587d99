"""Maps of units in the full model, from runs that serve many units at once."""

import itertools
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from convcircuits.circuits.evaluation import ImageKey
from convcircuits.compiler.extraction import Sweep
from convcircuits.errors import ConvCircuitsError
from convcircuits.network.agreement import IMAGES
from convcircuits.network.batches import Batches
from convcircuits.network.masking import Subject
from convcircuits.values.feature import Feature

_HELD = 64
"""Maps of so many times ``memory`` are held."""


def held_at_once(map_bytes: int, images: int, memory: int) -> int:
    """Return of how many units the maps are held, given the size of a map and the number of images."""
    return max(1, _HELD * memory // (map_bytes * images))


def even(units: Sequence[int], most: int) -> list[Sequence[int]]:
    """Divide units into as few chunks of at most so many as there can be, which differ by one at most."""
    count = -(-len(units) // most)
    ends = [len(units) * n // count for n in range(count + 1)]
    return [units[start:end] for start, end in itertools.pairwise(ends)]


class UnitMaps:
    """The maps of units in the full model, on the images that their circuits are measured on.

    To measure the circuits of all units, the model then runs once for many of them, and not for each.

    Args:
        subject: The model, opened for all units of the layer as one feature.
        units: The units, in the order in which they will be asked for.
        images: The images.
        count: Their number.
        memory: As for ``atlas``.

    Attributes:
        chunks: The units whose maps are held together.
    """

    def __init__(
        self, subject: Subject, units: Sequence[int], images: Sequence[Batches], count: int, memory: int
    ) -> None:
        self._subject, self._images, self._room = subject, images, _HELD * memory
        with torch.no_grad():
            some = subject.maps(images[0].first(IMAGES))
        self.chunks = even(units, held_at_once(some[0, 0].numel() * some.element_size(), count, memory))
        self._held, self._maps = list[int](), dict[ImageKey, Tensor]()

    def of(self, feature: Feature) -> Mapping[ImageKey, Tensor]:
        """Return the maps of a unit on images for which they are held; none if that would serve it alone."""
        unit = feature.unit
        assert isinstance(unit, int)
        if unit not in self._held:
            (chunk,) = [chunk for chunk in self.chunks if unit in chunk]
            self._held, self._maps = list(chunk), {}  # before others are made
            if len(chunk) > 1:
                self._maps = self._found(self._held)
        place = self._held.index(unit)
        return {key: maps[place] for key, maps in self._maps.items()}

    def _found(self, units: list[int]) -> dict[ImageKey, Tensor]:
        """Return the maps of some units, (U, H, W), or none if the layer's units cannot run together.

        The whole layer runs, whatever the units, so that a run that goes on gets the same numbers.
        """
        found, room = dict[ImageKey, Tensor](), self._room
        try:
            sweep = Sweep(self._subject, [], effective=True)
            for batches in self._images:
                for images, hashes in batches.hashed():
                    with torch.no_grad():
                        maps = sweep.maps(images)[0][:, units]
                    room -= maps.numel() * maps.element_size()
                    if room < 0:  # images may differ in size
                        return found
                    found |= {(tuple(images.shape[1:]), key): one for key, one in zip(hashes, maps, strict=True)}
        except ConvCircuitsError:  # if a unit alone has this problem, too, its own run will say so
            return {}
        return found
