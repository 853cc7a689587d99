"""The responses of a feature to single images, in the full model and in circuits."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from convcircuits.circuits.moments import Comparison
from convcircuits.maps.interior import Positions
from convcircuits.network.batches import Batches
from convcircuits.network.masking import Masks, Subject
from convcircuits.values.feature import Feature, at


@dataclass(frozen=True)
class Responses:
    """The responses of a feature to each of N images, at the counted positions, in C circuits; float64, on the CPU.

    With position ``"max"``, the full model's maximum is the position.

    Attributes:
        mean: Mean over positions and units, for the full model and then each circuit.
        maximum: Maximum over positions and units, in the same order.
        r2: R2 of each circuit on that image alone, as ``Evaluation.r2``; NaN if the full model is constant on it.
        r2_interior: The same for ``Evaluation.r2_interior``; NaN also if the interior is not known.
    """

    mean: Float[Tensor, "1+c n"]
    maximum: Float[Tensor, "1+c n"]
    r2: Float[Tensor, "c n"]
    r2_interior: Float[Tensor, "c n"]


def responses(subject: Subject, circuits: Sequence[Masks], batches: Batches) -> Responses:
    """Run the full model and some circuits on images of one size."""
    positions, parts, insides = Positions(subject), list[Tensor](), list[Tensor | None]()
    for images in batches:
        shape = tuple(images.shape[1:])
        with torch.no_grad():
            full = subject.maps(images)
            indices = positions.counted(full, images)
            maps = [full, *(subject.maps(images, masks) for masks in circuits)]
        parts.append(torch.stack([at(one, indices).double().cpu() for one in maps]))
        interior = positions.known(shape)
        insides.append(None if interior is None else interior.among(parts[-1][0], indices))
    values = torch.cat(parts, 1)
    known = [one for one in insides if one is not None]
    inside = torch.cat(known) if len(known) == len(insides) else None
    eps = torch.finfo(subject.network.dtype).eps
    r2 = [
        [
            _r2(subject.feature, eps, values[0, n], one[n], None if inside is None else inside[n])
            for n in range(values.shape[1])
        ]
        for one in values[1:]
    ]
    flat = values.flatten(2)
    both = torch.tensor(r2, dtype=torch.float64).reshape(len(circuits), flat.shape[1], 2)
    return Responses(flat.mean(2), flat.amax(2), both[..., 0], both[..., 1])


def _r2(feature: Feature, eps: float, full: Tensor, other: Tensor, inside: Tensor | None) -> tuple[float, float]:
    """Return R2 on one image, over all positions and over the interior ones."""
    comparison = Comparison(feature, eps)
    comparison.add(full[None], other[None], None if inside is None else inside[None])
    return comparison.r2(comparison.values), comparison.r2(comparison.interior)
