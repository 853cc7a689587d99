"""A unit that is several mechanisms in one: the sum of rectified features, each with a sparse circuit of its own.

::

      image --- circuit 1 --- f_1 - b_1 --- relu --- w_1 ---+
                                                            +--> unit
      image --- circuit 2 --- f_2 - b_2 --- relu --- w_2 ---+

Each circuit has channels of its own, scattered among the same distractors as those of ``plant``. b_m is such that f_m
is above it at few positions, so that on most images one mechanism alone drives the unit.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from convcircuits.errors import ConvCircuitsError, whole_number
from convcircuits.zoo.planted.building import build, empty_net, peaks
from convcircuits.zoo.planted.network import Planted, planted_images
from convcircuits.zoo.planted.plans import Plan, circuit_of, dealt, draw

_UNITS = 8  # filters of the last layer; the feature is one of them
_ACTIVE = 0.01  # share of positions of random images where a mechanism is active
_MINOR = 0.1  # the most that other mechanisms may add, relative to the one that drives an image
_TRIED = 512  # random images from which some are chosen
_AT_ONCE = 32  # of them: enough are often among the first, and maps of so few stay in the processor's cache
_ROUNDS = 100


@dataclass(frozen=True, eq=False)
class Polysemantic(Planted):
    """A planted unit that several mechanisms drive, or one.

    Its truth is what all mechanisms depend on together.

    Attributes:
        mechanisms: For each mechanism, layer name -> bool (out, in per group): the kernels that it depends on. No two
            mechanisms share a kernel.
        channels: For each mechanism, the filter of the last but one layer that computes it.
    """

    mechanisms: tuple[dict[str, Tensor], ...]
    channels: tuple[int, ...]

    def contributions(self, images: Tensor) -> Tensor:
        """Return what each mechanism adds to the unit: (n, mechanisms, h, w). The rest is the same everywhere."""
        hidden, last = self.model.hidden(images), self.model.convs[-1]
        rows = last.weight[self.feature.unit]  # type: ignore[index]
        return torch.cat([F.conv2d(hidden[:, [c]], rows[None, [c]]) for c in self.channels], 1)

    def images(self, count: int, *, size: int = 32, seed: int = 0) -> Tensor:
        """Return the images of ``labelled_images``."""
        return self.labelled_images(count, size=size, seed=seed)[0]

    def labelled_images(self, count: int, *, size: int = 32, seed: int = 0) -> tuple[Tensor, Tensor]:
        """Return images each of which one mechanism drives, in random order, and which one it is.

        They are chosen from many ``planted_images``: those to which one mechanism adds at least 1 somewhere, its
        mean maximum on the images where it is active at all, and no other anywhere more than a tenth of what it does.

        Returns:
            (count, 3, size, size) in the network's dtype, and (count,) with numbers of mechanisms from 0, int64. Each
            mechanism has the same number of images, but for one.

        Raises:
            ConvCircuitsError: If so few images are like that that they are not found.
        """
        count, kinds = whole_number("count", count, 1), len(self.mechanisms)
        dice = Generator().manual_seed(seed)
        wanted = torch.arange(count) % kinds
        found: list[list[Tensor]] = [[] for _ in range(kinds)]
        for _ in range(_ROUNDS):
            seeds = int(torch.randint(2**31, (), generator=dice))
            tried = planted_images(_TRIED, size=size, seed=seeds).to(next(self.model.parameters()))
            for some in torch.split(tried, _AT_ONCE):
                drive = self.driven_by(some)
                for kind, images in enumerate(found):
                    images += some[drive == kind].unbind()
                if all(len(images) >= int((wanted == kind).sum()) for kind, images in enumerate(found)):
                    labels = wanted[torch.randperm(count, generator=dice)]
                    given = [iter(images) for images in found]
                    return torch.stack([next(given[kind]) for kind in labels.tolist()]), labels
        raise ConvCircuitsError(
            f"Of {_ROUNDS * _TRIED:,} random images, {min(map(len, found))} are driven by one of the mechanisms alone, "
            f"fewer than {count // kinds}; ask for fewer images, or plant with another seed or less leak."
        )

    def driven_by(self, images: Tensor) -> Tensor:
        """Return the number of the mechanism that drives each image, (n,), int64; -1 if none does so alone."""
        tops = peaks(self.contributions(images))
        most, which = tops.max(1)
        rest = tops.scatter(1, which[:, None], -torch.inf).amax(1)
        return which.where((most >= 1) & (rest <= _MINOR * most), -1)


def polysemantic(
    seed: int = 0,
    *,
    mechanisms: int = 2,
    sizes: Sequence[int] | None = None,
    depth: int = 4,
    channels: int = 32,
    pairs: int = 4,
    constants: int = 6,
    strength: float = 1.0,
    leak: float = 0.0,
    decades: float = 3.0,
    batchnorm: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Polysemantic:
    """Plant a unit that is the sum of rectified features, each computed by a sparse circuit of its own.

    With one mechanism, the unit has a single circuit among the same distractors: what is said to have several
    mechanisms must not be said of it.

    Args:
        seed: Seed of everything that is random.
        mechanisms: Number of mechanisms.
        sizes: For each mechanism, the number of live filters in each hidden layer but the last, where it has one.
            Default: 4 each.
        depth: Number of convolutions.
        channels: Number of filters of each hidden layer.
        pairs: As for ``plant``.
        constants: As for ``plant``.
        strength: As for ``plant``.
        leak: As for ``plant``. The noise kernels of a live filter read the channels of the other mechanisms, too.
        decades: As for ``plant``.
        batchnorm: As for ``plant``.
        dtype: As for ``plant``.

    Raises:
        ConvCircuitsError: If the channels do not suffice.

    Examples:
        >>> from convcircuits.zoo.planted import polysemantic
        >>> planted = polysemantic(seed=1, mechanisms=2)
        >>> images, labels = planted.labelled_images(6)
        >>> sorted(labels.tolist())
        [0, 0, 0, 1, 1, 1]
    """
    last, count = whole_number("depth", depth, 3) - 1, whole_number("mechanisms", mechanisms, 1)
    sizes = [whole_number("Each of sizes", size, 1) for size in ([4] * count if sizes is None else sizes)]
    if len(sizes) != count:
        raise ConvCircuitsError(f"There are {count} mechanisms, but {len(sizes)} sizes; give one for each.")
    dice = Generator().manual_seed(seed)
    parts = {"pairs": pairs, "constants": constants}
    plans = [dealt(dice, channels, live=sum(sizes) if n < last - 1 else count, **parts) for n in range(last)]
    plans.append(Plan(sums=True))
    unit, tops = draw(dice, _UNITS), plans[last - 1].live
    plans[last].reads[unit] = sorted(tops)
    for m, top in enumerate(tops):
        _choose(dice, plans, top, slice(sum(sizes[:m]), sum(sizes[: m + 1])))
    plans[last - 1].active = dict.fromkeys(tops, _ACTIVE)
    for plan in plans:
        plan.noise = dict.fromkeys(plan.reads, leak)
    net = empty_net([channels] * last + [_UNITS], sides=[3] * depth, batchnorm=batchnorm)
    planted = build(
        dice,
        net,
        plans,
        unit,
        planted_images(64, seed=seed),
        strength=strength,
        decades=decades,
        dtype=dtype,
        draw=planted_images,
    )
    circuits = []
    for top in tops:
        masks = circuit_of(plans, net.widths, [top], layer=last - 1)
        masks[last][unit, top] = True
        circuits.append(dict(zip(planted.truth, masks, strict=True)))
    return Polysemantic(**vars(planted), mechanisms=tuple(circuits), channels=tuple(tops))


def _choose(dice: Generator, plans: list[Plan], top: int, own: slice) -> None:
    """Choose what the filters of a mechanism read, from its last back to the image: each of its channels is read."""
    readers = [top]
    for n in range(len(plans) - 2, -1, -1):
        near = plans[n - 1].live[own] if n else [0, 1, 2]
        for o in readers:
            order = torch.randperm(len(near), generator=dice).tolist()
            plans[n].reads[o] = [near[k] for k in order[: 2 + draw(dice, 3)]]
        for i in near if n else []:
            if not any(i in plans[n].reads[o] for o in readers):
                plans[n].reads[readers[draw(dice, len(readers))]].append(i)
        readers = near
