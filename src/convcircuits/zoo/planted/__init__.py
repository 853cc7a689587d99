"""Small CNNs whose circuits are known: the truth that criteria are tested against.

``plant`` plants a sparse circuit among distractors, ``stitched`` a whole net among others, ``compiled`` one that is
written by hand, and ``polysemantic`` several in one unit. All return a ``Planted``. Each says in ``plans`` which part
each channel plays, from which ``building`` makes a network.
"""

from collections.abc import Callable
from functools import partial

from convcircuits.zoo.planted.blocks import stitched
from convcircuits.zoo.planted.mechanisms import Polysemantic, polysemantic
from convcircuits.zoo.planted.network import Planted, PlantedNet, planted_images
from convcircuits.zoo.planted.shapes import compiled, drawn_shapes
from convcircuits.zoo.planted.sparse import plant

KINDS: dict[str, Callable[[int], Planted]] = {
    "plain": plant,
    "leaky": partial(plant, leak=0.1),
    "stitched": stitched,
    "compiled": compiled,
    "polysemantic": polysemantic,
}
"""Networks for ``convcircuits benchmark truth``: a function of a seed for each name."""

__all__ = [
    "KINDS",
    "Planted",
    "PlantedNet",
    "Polysemantic",
    "compiled",
    "drawn_shapes",
    "plant",
    "planted_images",
    "polysemantic",
    "stitched",
]
