"""A sparse circuit of random kernels, among distractors that are as large and as active.

The effect of the distractors on the feature is zero for every image::

      layer n                             layer n + 1

      live      --- K ----------------->  live       the truth: each live filter reads 2 to 4 live channels
      twin      --- share x K --------->  live       redundant: both twins compute the same channel
      twin      --- (1 - share) x K --->  live
      pair      --- +J ---------------->  live       both of a pair compute the same channel, from all channels;
      pair      --- -J ---------------->  live       they are read with opposite signs and add nothing
      constant  --- M ----------------->  live       has one value on all images; the reader's bias compensates it
      other     --- noise x leak ------>  live       with leak > 0, the only kernels outside the truth that matter

Constants read only constants. Finally each hidden channel is multiplied by a power of two and its readers are divided
by it. This spreads the weights over decades, and changes neither the function nor the truth.

Pairs and constants are hard in different ways. No kernel of a pair can be removed alone, so a criterion that asks what
one removal does ranks them high; only a fit of all kernels together shows that they are not needed. A constant's
kernels matter only as long as nothing replaces their mean.
"""

from collections.abc import Sequence
from functools import reduce

import torch
from torch import Generator

from convcircuits.errors import ConvCircuitsError, whole_number
from convcircuits.zoo.planted.building import Masks, build, empty_net
from convcircuits.zoo.planted.network import Planted, planted_images
from convcircuits.zoo.planted.plans import Plan, dealt, draw, without

_UNITS = 8  # filters of the last layer; the feature is one of them


def plant(
    seed: int = 0,
    *,
    depth: int = 4,
    channels: int = 24,
    live: int = 4,
    pairs: int = 4,
    constants: int = 10,
    twins: bool = True,
    strength: float = 1.0,
    leak: float = 0.0,
    decades: float = 3.0,
    groups: int = 1,
    batchnorm: bool = False,
    residual: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Planted:
    """Plant a sparse circuit in a random network.

    Args:
        seed: Seed of everything that is random.
        depth: Number of convolutions.
        channels: Number of filters of each hidden layer.
        live: Number of channels of each hidden layer that live filters are chosen from.
        pairs: Number of pairs in each hidden layer.
        constants: Number of constant channels in each hidden layer.
        twins: Compute one live channel twice: of one layer or, with residual connections, of all hidden layers.
        strength: Size of the kernels that read pairs and constants, relative to the kernels of the truth.
        leak: Standard deviation of what the noise kernels add to a live filter, relative to what the truth's kernels
            add; measured on 32 random images. At a depth of 4, the truth's 1 - R2 was at most .006 with 0.03 and .065
            with 0.1.
        decades: Range of the factors of hidden channels, in powers of ten; 0 for none.
        groups: Number of groups of the convolutions between the first and the last. Each group has its own distractors.
        batchnorm: As for ``PlantedNet``. The function is the one without BatchNorms.
        residual: Add to each convolution between the first and the last its own input.
        dtype: Dtype of the network and of ``offset``.

    Raises:
        ConvCircuitsError: If the channels do not suffice, or cannot be divided into groups.

    Examples:
        >>> from convcircuits.zoo.planted import plant
        >>> planted = plant(seed=1)
        >>> circuit = cc.Circuit.from_masks(planted.model, planted.feature, planted.truth)
    """
    last, groups = whole_number("depth", depth, 3) - 1, whole_number("groups", groups, 1)
    if whole_number("live", live, 0) < 2 * groups:
        raise ConvCircuitsError(f"live must be at least 2 for each of {groups} groups; got {live}.")
    dice = Generator().manual_seed(seed)
    parts = {"live": live, "pairs": pairs, "constants": constants, "twins": groups * twins, "groups": groups}
    plans = [dealt(dice, channels, **parts) for _ in range(last)]
    if residual:
        plans = [plans[0].same_parts() for _ in plans]
    plans.append(Plan())
    unit = draw(dice, _UNITS)
    _choose(dice, plans, unit, channels // groups, residual, twins)
    for plan in plans:
        plan.noise = dict.fromkeys(plan.reads, leak)
    sizes = [channels] * last + [_UNITS]
    net = empty_net(
        sizes,
        sides=[3] * depth,
        groups=groups,
        batchnorm=batchnorm,
        residual=range(1, last) if residual else (),
    )

    def smaller(truth: Masks) -> Sequence[Masks]:
        doubled = [(n, twins) for n, plan in enumerate(plans) for twins in plan.twins]
        return [
            reduce(lambda masks, one: without(masks, one[0], one[1][which]), doubled, truth)
            for which in ((0, 1) if doubled else ())
        ]

    return build(
        dice,
        net,
        plans,
        unit,
        planted_images(32, seed=seed),
        strength=strength,
        decades=decades,
        dtype=dtype,
        draw=planted_images,
        smaller=smaller,
    )


def _choose(dice: Generator, plans: list[Plan], unit: int, width: int, residual: bool, twins: bool) -> None:
    """Choose what live filters read, from the unit back to the image, and the twins. Groups have ``width`` channels."""
    last, live = len(plans) - 1, {unit}
    for n in range(last, -1, -1):
        for o in sorted(live):
            near = [i for i in plans[n - 1].live if n == last or i // width == o // width] if n else [0, 1, 2]
            order = torch.randperm(len(near), generator=dice).tolist()
            plans[n].reads[o] = sorted(near[k] for k in order[: 2 + draw(dice, 3)])
        live = {i for reads in plans[n].reads.values() for i in reads} | (live if residual and 0 < n < last else set())
    if twins:
        doubled = plans[:last] if residual else [plans[draw(dice, last)]]
        first = list(doubled[-1].reads)[draw(dice, len(doubled[-1].reads))]
        for plan in doubled:
            plan.twins = [(first, next(i for i in plan.others if i // width == first // width))]
