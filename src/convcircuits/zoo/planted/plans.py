"""Plans: which part each channel of a layer plays, before any weight is drawn."""

import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Generator, Tensor

from convcircuits.errors import ConvCircuitsError, whole_number


@dataclass
class Plan:
    """Which part each channel of a layer plays, and what is already known of its filters.

    Attributes:
        live: Channels that filters with a circuit are chosen from, group by group.
        pairs: Channels that compute the same, from all channels of the layer before.
        constants: Channels with one value on all images.
        others: Channels that read all channels of the layer before.
        twins: Two channels that compute the same and share their readers.
        reads: Filter with a circuit -> the channels that its circuit reads.
        kernels: Filter -> its kernels on these channels, (channels, h, w); filters without an entry draw them.
        biases: Filter -> its bias, if nothing but its circuit were there; filters without an entry draw one.
        noise: Filter -> standard deviation of what its kernels on channels outside its circuit add, relative to what
            its circuit's add.
        active: Filter -> share of the positions of random images where it is active; a third to two thirds if missing.
        sums: Whether the filters with a circuit add up what they read: their kernels have no negative weight, and each
            adds as much as the others.
    """

    live: list[int] = field(default_factory=list)
    pairs: list[tuple[int, int]] = field(default_factory=list)
    constants: list[int] = field(default_factory=list)
    others: list[int] = field(default_factory=list)
    twins: list[tuple[int, int]] = field(default_factory=list)
    reads: dict[int, list[int]] = field(default_factory=dict)
    kernels: dict[int, Tensor] = field(default_factory=dict)
    biases: dict[int, float] = field(default_factory=dict)
    noise: dict[int, float] = field(default_factory=dict)
    active: dict[int, float] = field(default_factory=dict)
    sums: bool = False

    def write(self, filter: int, kernels: Mapping[int, Tensor], bias: float) -> None:
        """Write a filter by hand: the kernel, (h, w), on each channel that it reads, and its bias."""
        self.reads[filter] = list(kernels)
        self.kernels[filter] = torch.stack([*kernels.values()]) if kernels else torch.empty(0, 1, 1)
        self.biases[filter] = bias

    def same_parts(self) -> "Plan":
        """Return the plan of a layer whose channels play the same parts, as those do that are added up."""
        return Plan(self.live, self.pairs, self.constants, self.others)


def dealt(
    dice: Generator, channels: int, *, live: int, pairs: int, constants: int, twins: int = 0, groups: int = 1
) -> Plan:
    """Deal the channels of each group out to parts, given the number of each part in the whole layer.

    Raises:
        ConvCircuitsError: If the channels do not suffice, among them one for each of ``twins``, or cannot be divided
            into groups.
    """
    numbers = {"channels": channels, "live": live, "pairs": pairs, "constants": constants}
    for name, number in numbers.items():
        whole_number(name, number, 0)
    if any(number % groups for number in numbers.values()) or live + 2 * pairs + constants + twins > channels:
        doubled = f" and {twins} twins" if twins else ""
        raise ConvCircuitsError(
            f"{channels} channels in {groups} groups cannot contain {live} live ones, {pairs} pairs, {constants} "
            f"constants{doubled}. Each group needs the same number of each."
        )
    plan, paired = Plan(), (live + 2 * pairs) // groups
    live, fixed = live // groups, paired + constants // groups
    for group in torch.arange(channels).chunk(groups):
        hand = group[torch.randperm(len(group), generator=dice)].tolist()
        plan.live += hand[:live]
        plan.pairs += zip(hand[live:paired:2], hand[live + 1 : paired : 2], strict=True)
        plan.constants += hand[paired:fixed]
        plan.others += hand[fixed:]
    return plan


def circuit_of(
    plans: Sequence[Plan],
    widths: Sequence[int],
    filters: Collection[int],
    *,
    layer: int | None = None,
    residual: Collection[int] = (),
) -> list[Tensor]:
    """Return the kernels that filters depend on, by what their circuits read: bool (out, in) for each layer.

    Args:
        plans: A plan for each layer.
        widths: Number of channels of the image, and of filters of each layer.
        filters: The filters.
        layer: Their layer; the last if None.
        residual: Layers to which their own input is added.
    """
    masks = [torch.zeros(o, i, dtype=torch.bool) for i, o in itertools.pairwise(widths)]
    needed = set(filters)
    for n in range(len(plans) - 1 if layer is None else layer, -1, -1):
        doubled = dict(plans[n - 1].twins if n else ())
        read = {}
        for o in needed:
            read[o] = [*plans[n].reads[o], *(doubled[i] for i in plans[n].reads[o] if i in doubled)]
            masks[n][o, read[o]] = True
        for first, second in plans[n].twins:
            masks[n][second] = masks[n][first]
        carried = needed if n in residual else set()
        needed = {i for channels in read.values() for i in channels if i not in doubled.values()} | carried
    return masks


def without(masks: Sequence[Tensor], layer: int, channel: int) -> list[Tensor]:
    """Return a circuit without a channel: neither the kernels that compute it nor those that read it."""
    left = [mask.clone() for mask in masks]
    left[layer][channel] = False
    left[layer + 1][:, channel] = False
    return left


def draw(dice: Generator, count: int) -> int:
    """Draw a whole number below ``count``."""
    return int(torch.randint(count, (), generator=dice))
