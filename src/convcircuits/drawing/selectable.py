"""Which images can be selected in a diagram, and what is said of each: whether it was held out."""

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from jaxtyping import Float
from torch import Tensor

from convcircuits.circuits.sizes import found_on
from convcircuits.network.batches import Batches, Images
from convcircuits.values.boxes import image_hash
from convcircuits.values.circuit import Circuit
from convcircuits.zoo.images import Crops

USED, HELD_OUT = "used to find it", "held out"
"""What is said of an image behind its name."""


@dataclass(frozen=True)
class Listed:
    """Images in memory, with what they are called.

    Attributes:
        images: The images.
        names: The display name of each.
        photographs: The name of the photograph that each is a crop of; None where it is not known.
    """

    images: Float[Tensor, "n c h w"]
    names: tuple[str, ...]
    photographs: tuple[str | None, ...]

    @classmethod
    def of(
        cls,
        given: Images,
        images: Tensor,
        *,
        names: Sequence[str] | None = None,
        numbers: Sequence[int] | None = None,
        photographs: Sequence[Hashable] | None = None,
    ) -> Self:
        """Name some images of a set.

        Args:
            given: The set as a caller gave it.
            images: The images, (N, C, H, W), in memory.
            names: Display names of the set's images, in order; if not given, those of ``Crops``, or those that
                ``Crops`` of the photographs would have, or numbers.
            numbers: The place of each image in the set; if not given, they are its first.
            photographs: The photograph that each of the set's images is a crop of; if not given, that of ``Crops``.
        """
        places = range(len(images)) if numbers is None else numbers
        of: list[str | None] = [one if isinstance(one, str) else None for one in photographs or ()]
        called, earlier = dict[int, str](), Counter[str]()
        if isinstance(given, Crops):
            of, called = [given.names[p] for p in given.photographs], dict(enumerate(given.names))
        else:
            for n, photograph in enumerate(of):
                if photograph is not None:
                    called[n] = photograph + (f", crop {earlier[photograph]}" if earlier[photograph] else "")
                    earlier[photograph] += 1
        return cls(
            images,
            tuple(called.get(n, f"image {n}") if names is None else names[n] for n in places),
            tuple(of[n] if n < len(of) else None for n in places),
        )


@dataclass(frozen=True)
class Selectable:
    """The images from which those that can be selected are chosen.

    Attributes:
        among: Numbers of the images that are not held out.
        held_out: The held-out images of the same size; None if there is none.
        names: The names of all images, then of these, with what is known of them.
    """

    among: tuple[int, ...]
    held_out: Float[Tensor, "n c h w"] | None
    names: tuple[str, ...]


def selectable(
    circuit: Circuit,
    images: Listed,
    held_out: Listed | None = None,
    *,
    kept: Batches,
    all_held: Mapping[str, Any] | None = None,
    fit: Batches | None = None,
) -> Selectable:
    """Return which images can be selected, and their names with what is known of each.

    An image was used if it is known to be one of those that the circuit was found on or its size was chosen on, or to
    be a crop of the same photograph. Every other one of ``held_out`` was held out.

    Args:
        circuit: The circuit.
        images: The images of the diagram.
        held_out: Of the images that it is measured on, the first that are as large as these.
        kept: The images of the diagram, as batches.
        all_held: How a circuit that was found on all images that this one is measured on describes them.
        fit: The images that the circuit was found on, as far as the caller knows.
    """
    own, held = _hashes(images), _hashes(held_out)
    first = found_on(circuit, kept)
    known = set() if first is None else {image_hash(image) for image in first}
    for batch in () if fit is None else fit:
        known |= {image_hash(image) for image in batch}
    if all_held is not None and all_held == circuit.provenance.get("images"):
        known |= set(held)
    by_role = circuit.provenance.get("photographs", {})
    used = {name for role in ("found_on", "validated_on") for name in by_role.get(role, ())}
    for one, hashes in ((images, own), (held_out, held)):
        pairs = () if one is None else zip(hashes, one.photographs, strict=True)
        used |= {photograph for hashed, photograph in pairs if photograph is not None and hashed in known}

    apart: dict[int, int] = {}  # of each held-out image, by content: its first place
    if held_out is not None:
        for n, (hashed, photograph) in enumerate(zip(held, held_out.photographs, strict=True)):
            if hashed not in known and photograph not in used:
                apart.setdefault(hashed, n)
    marks = [
        USED if hashed in known or photograph in used else HELD_OUT if hashed in apart else ""
        for hashed, photograph in zip(own, images.photographs, strict=True)
    ]
    names = [f"{name}, {mark}" if mark else name for name, mark in zip(images.names, marks, strict=True)]
    among = tuple(n for n, mark in enumerate(marks) if mark != HELD_OUT)
    if held_out is None or not apart:
        return Selectable(among, None, tuple(names))
    called = dict(zip(own, images.names, strict=True))
    names += [f"{called.get(hashed, held_out.names[n])}, {HELD_OUT}" for hashed, n in apart.items()]
    return Selectable(among, held_out.images[list(apart.values())], tuple(names))


def _hashes(one: Listed | None) -> list[int]:
    return [] if one is None else [image_hash(image) for image in one.images]
