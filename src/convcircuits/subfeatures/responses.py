"""What circuits of several groups answer on each group's images, and how selective that makes them."""

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from convcircuits.compiler.extraction import Sweep
from convcircuits.maps.interior import Positions
from convcircuits.network.batches import Batches, Progress
from convcircuits.network.masking import Subject
from convcircuits.subfeatures.borders import Shape
from convcircuits.values.circuit import Circuit
from convcircuits.values.feature import at, flattened


@dataclass(frozen=True)
class Answers:
    """What the full model and every circuit answer at one position of each image of a group.

    Attributes:
        full: The feature's value in the full model, (n,), float64.
        values: The same in the circuits, (n, circuits' groups, sizes).
        hashes: Hash of each image.
    """

    full: Float[Tensor, " n"]
    values: Float[Tensor, "n groups sizes"]
    hashes: Sequence[int]

    def errors(self, weights: Float[Tensor, "times n"]) -> Float[Tensor, "times groups sizes"]:
        """Return the relative error of each circuit, if each image counts as often as a row of weights says."""
        wrong = (self.values - self.full[:, None, None]).abs()
        return torch.einsum("tn,ngs->tgs", weights, wrong) / (weights @ self.full.abs())[:, None, None]


@dataclass(frozen=True)
class Responses(Answers):
    """What the full model and every circuit answer on a group's images, with what is known of the whole maps.

    Attributes:
        missed: Squared error over all positions of all images, (circuits' groups, sizes).
        spread: Squared deviation of the full model's map from its mean, over the same.
        position: Flat position of each image in its map, (n,).
        shapes: The shape (C, H, W) of each image.
    """

    missed: Float[Tensor, "groups sizes"]
    spread: float
    position: Int[Tensor, " n"]
    shapes: Sequence[Shape]

    @classmethod
    def of(cls, sweep: Sweep, count: int, batches: Batches, progress: Progress | None) -> "Responses":
        """Run the full model and all circuits, those of ``count`` groups, on a group's images."""
        positions, form = Positions(sweep.subject), (count, -1)
        full, values, done, spread = [], [], 0, _Spread()
        where, shapes, hashes = [], list[Shape](), list[int]()
        missed = torch.zeros(len(sweep.kept), dtype=torch.float64)
        for images, keys in batches.hashed():
            with torch.no_grad():
                expected, *others = (one.double().cpu() for one in sweep.maps(images))
            indices = positions.counted(expected, images)
            full.append(at(expected, indices)[:, 0])
            where.append(torch.zeros(len(images), dtype=torch.long) if indices is None else indices[:, 0])
            shapes += [tuple(images.shape[1:])] * len(images)
            hashes += keys
            values.append(torch.stack([at(one, indices)[:, 0] for one in others], 1))
            missed += torch.stack([(one - expected).square().sum() for one in others])
            spread.add(flattened(expected))
            done += len(images)
            if progress is not None:
                progress(done, batches.expected)
        return cls(
            full=torch.cat(full),
            values=torch.cat(values).reshape(done, *form),
            hashes=hashes,
            missed=missed.reshape(form),
            spread=spread.total,
            position=torch.cat(where),
            shapes=shapes,
        )


class _Spread:
    """The squared deviation of values from their mean, of which no more than a batch is in memory."""

    def __init__(self) -> None:
        self.total, self._mean, self._count = 0.0, 0.0, 0

    def add(self, values: Tensor) -> None:
        """Count more values (Chan et al., 1983)."""
        mean, count = float(values.mean()), values.numel()
        both = self._count + count
        apart = mean - self._mean
        self.total += float((values - mean).square().sum()) + apart**2 * self._count * count / both
        self._mean += apart * count / both
        self._count = both


def responses_of(
    subject: Subject,
    sizes: Mapping[str, Sequence[Circuit]],
    groups: Mapping[str, Batches],
    progress: Progress | None,
    *,
    each_alone: bool = False,
) -> dict[str, Responses]:
    """Return what the full model and every circuit, or each group's circuits alone, answer on each group's images."""
    counts = [batches.expected for batches in groups.values()]
    known = [count for count in counts if count is not None]
    total = sum(known) if len(known) == len(counts) else None
    found: dict[str, Responses] = {}
    together = None if each_alone else Sweep(subject, list(chain(*sizes.values())), effective=True)
    for name, batches in groups.items():
        before = sum(len(one.full) for one in found.values())
        told = None if progress is None else _after(before, total, progress)
        sweep = together or Sweep(subject, list(sizes[name]), effective=True)
        found[name] = Responses.of(sweep, 1 if each_alone else len(sizes), batches, told)
    return found


def _after(before: int, total: int | None, progress: Progress) -> Progress:
    """Return a callback for the images of one of several groups, which counts those of all."""
    return lambda done, _: progress(before + done, total)


def dealt_again(groups: Sequence[Answers], deal: Sequence[Container[int]], size: int) -> list[Answers]:
    """Return the answers of the circuits of one size, with the images of all groups dealt anew by their hashes."""
    full, values = torch.cat([one.full for one in groups]), torch.cat([one.values for one in groups])
    hashes = list(chain(*(one.hashes for one in groups)))
    chosen = [[n for n, key in enumerate(hashes) if key in group] for group in deal]
    return [Answers(full[some], values[some, :, size, None], [hashes[n] for n in some]) for some in chosen]


class Selective(NamedTuple):
    """Errors by size: of circuits on their own groups, on others, and the difference; (sizes,) or (times, sizes)."""

    own: Tensor
    others: Tensor
    value: Tensor


def selective(groups: Sequence[Answers], weights: Sequence[Tensor] | None = None) -> Selective:
    """Return the selectivity of circuits, given the responses on each group, in the order of the circuits."""
    if weights is None:
        weights = [torch.ones(1, len(one.full), dtype=torch.float64) for one in groups]
    errors = torch.stack([one.errors(some) for one, some in zip(groups, weights, strict=True)], 2)  # (t, of, on, sizes)
    count = len(groups)
    own = errors.diagonal(dim1=1, dim2=2).mean(2)
    others = (errors.sum((1, 2)) - own * count) / (count * (count - 1))
    return Selective(own, others, others - own)
