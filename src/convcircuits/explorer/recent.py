"""The maps of the photographs that were looked at last, so that the next click on one need not run the model."""

import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping

import numpy as np

ROOM = 256 << 20
"""Bytes of maps that are kept at most: VGG16's on four photographs of 224 px."""


class RecentMaps:
    """Maps of photographs, as many as fit; those that were used last stay. Threads may share it.

    They are arrays and not tensors: torch releases Python's lock for each operation, and a job that runs takes it.

    Args:
        room: Bytes that they may take.
    """

    def __init__(self, room: int = ROOM) -> None:
        self.room = room
        # By photograph, the one that was used last at the end.
        self._maps: OrderedDict[str, Mapping[str, np.ndarray]] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, photo: str, layers: Iterable[str]) -> Mapping[str, np.ndarray] | None:
        """Return the maps of a photograph by layer, (C, h, w) each; None if they lack one of these layers."""
        with self._lock:
            maps = self._maps.get(photo)
            if maps is None or not maps.keys() >= {*layers}:
                return None
            self._maps.move_to_end(photo)
            return maps

    def keep(self, photo: str, maps: Mapping[str, np.ndarray]) -> None:
        """Keep a photograph's maps in place of those that it had, if there is room for them at all."""
        with self._lock:
            self._maps.pop(photo, None)
            rest = self.room - _bytes(maps)
            if rest < 0:
                return
            while sum(map(_bytes, self._maps.values())) > rest:
                self._maps.popitem(last=False)
            self._maps[photo] = maps


def _bytes(maps: Mapping[str, np.ndarray]) -> int:
    return sum(one.nbytes for one in maps.values())
