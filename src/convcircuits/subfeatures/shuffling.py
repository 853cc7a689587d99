"""The control of a cross-test: the same images, dealt into groups at random."""

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice

import torch
from torch import Generator, nn

from convcircuits.circuits.resuming import Kept
from convcircuits.network.batches import Batches, Images, Progress, begin
from convcircuits.network.masking import Subject
from convcircuits.subfeatures.again import found_again
from convcircuits.subfeatures.chosen import Dealt
from convcircuits.subfeatures.responses import dealt_again, responses_of, selective
from convcircuits.values.circuit import Circuit

Hashes = Mapping[str, Sequence[int]]
"""Name of a group -> the hashes of its images."""


@dataclass(frozen=True)
class Shuffle:
    """Circuits of groups that are dealt at random, found as those of the given groups were.

    Attributes:
        model: The model that the circuits belong to.
        like: Name of a group -> its circuits, the largest first; the last is found again.
        fit: Name of the same group -> the images that its circuits were found on.
        seen: Hashes of these images.
        held_out: Hashes of the held-out images.
        batch_size: Maximum number of images that run at once.
        progress: As for ``cross``.
        kept: Where the circuits are kept.
    """

    model: nn.Module
    like: Mapping[str, Sequence[Circuit]]
    fit: Mapping[str, Images]
    seen: Hashes
    held_out: Hashes
    batch_size: int
    progress: Progress | None
    kept: Kept

    def selectivity(
        self, subject: Subject, held_out: Mapping[str, Batches], shuffles: int, seed: int
    ) -> tuple[float, ...]:
        """Return the selectivity of circuits found on each of several deals, on held-out images dealt alike."""
        circuits: dict[str, list[Circuit]] = {name: [] for name in self.like}
        deals = []
        for n in range(shuffles):
            dice = torch.Generator().manual_seed(seed + n)
            trained = _dealt(self.seen, dice)
            deals.append(list(_dealt(self.held_out, dice).values()))
            for place, name in enumerate(self.like, start=1):
                called = f"the circuit of shuffled group {place} of {len(self.like)}, control {n + 1} of {shuffles}"
                circuits[name] += self._found(name, trained[name], called)
        begin(self.progress, "measuring the circuits of shuffled groups")
        answers = list(responses_of(subject, circuits, held_out, self.progress).values())  # a deal in place of a size
        return tuple(float(selective(dealt_again(answers, deal, n)).value) for n, deal in enumerate(deals))

    def _found(self, name: str, hashes: set[int], called: str) -> list[Circuit]:
        """Find the circuit of a group on images given by their hashes."""
        like = self.like[name]
        images = Dealt(list(self.fit.values()), hashes, _count(hashes, self.seen))

        def find() -> list[Circuit]:
            size, progress = self.batch_size, self.progress
            return [found_again(self.model, like, images, batch_size=size, progress=progress, called=called)]

        return self.kept.circuits(find, like=[dict(one.provenance) for one in like], images=sorted(hashes))


def _count(hashes: Container[int], groups: Hashes) -> int:
    """Return how many images, copies included, have one of the hashes."""
    return sum(one in hashes for some in groups.values() for one in some)


def _dealt(groups: Hashes, dice: Generator) -> dict[str, set[int]]:
    """Deal the images of all groups at random into groups of the same sizes."""
    kept = {name: list(dict.fromkeys(some)) for name, some in groups.items()}  # copies go together
    every = list(chain(*kept.values()))
    order = iter(torch.randperm(len(every), generator=dice).tolist())
    return {name: {every[n] for n in islice(order, len(some))} for name, some in kept.items()}
