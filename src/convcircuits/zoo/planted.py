"""Small CNNs with a planted circuit: the truth that criteria are tested against.

One unit of the last layer is computed by a sparse circuit of random kernels. Around it are distractors that are as
large and as active, but whose effect on the unit is zero for every image::

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

import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from convcircuits.errors import ConvCircuitsError, whole_number
from convcircuits.values.feature import Feature

_UNITS = 8  # filters of the last layer; the feature is one of them


class PlantedNet(nn.Module):
    """3x3 convolutions with ReLUs and one max-pooling, without padding: what is constant has no border.

    Args:
        channels: Number of filters of each layer.
        groups: Number of groups of the convolutions between the first and the last.
        batchnorm: Put a BatchNorm after each convolution except the last.
        residual: Add to each convolution between the first and the last its own input.
    """

    def __init__(
        self, channels: list[int], *, groups: int = 1, batchnorm: bool = False, residual: bool = False
    ) -> None:
        super().__init__()
        last = len(channels) - 1
        self.residual = residual
        self.convs = nn.ModuleList(
            nn.Conv2d(i, o, 3, groups=groups if 0 < n < last else 1, bias=not batchnorm or n == last)
            for n, (i, o) in enumerate(zip([3, *channels[:-1]], channels, strict=True))
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(o) if batchnorm else nn.Identity() for o in channels[:-1])

    def forward(self, x: Tensor) -> Tensor:
        """Return the maps of the last layer."""
        for n, norm in enumerate(self.norms):
            x = self.after(n, x, norm(self.convs[n](x)))
        return self.convs[-1](x)  # type: ignore[no-any-return]

    def after(self, n: int, x: Tensor, y: Tensor) -> Tensor:
        """Return the input of layer n + 1, given the input x of layer n and its output y."""
        return F.max_pool2d(F.relu(y), 2) if n == 0 else F.relu(y + self.skip(n, x))

    def skip(self, n: int, x: Tensor) -> Tensor | float:
        """Return what the residual connection around layer n adds."""
        return x[..., 1:-1, 1:-1] if self.residual and 0 < n < len(self.norms) else 0.0


@dataclass(frozen=True, eq=False)
class Planted:
    """A network and a feature whose circuit is known.

    What is said of the truth holds for every image, not only for ``planted_images``.

    Attributes:
        model: The network, in eval mode.
        feature: A unit of the last layer.
        truth: Layer name -> bool (out, in per group), the kernels that the feature depends on. If ``leak`` is 0, these
            kernels with ``offset``, and with all gains 1, compute the feature's map exactly, up to rounding.
        alternatives: Smaller masks that do so with other gains, each without one of the twins. Empty without twins.
        offset: Layer name -> (out,), what the other kernels add on average to the raw output of each filter of the
            truth: what constants add, and, with ``leak``, the mean of the noise. 0 without both.
    """

    model: PlantedNet
    feature: Feature
    truth: dict[str, Tensor]
    alternatives: tuple[dict[str, Tensor], ...]
    offset: dict[str, Tensor]


def planted_images(count: int, *, size: int = 32, seed: int = 0) -> Tensor:
    """Return random images with structure at several scales: (count, 3, size, size), float32, from 0 to 1."""
    dice = Generator().manual_seed(seed)
    scales = [torch.rand(count, 3, cells, cells, generator=dice) for cells in (2, 4, 8, 16, size)]
    return torch.stack([F.interpolate(s, (size, size), mode="bilinear") for s in scales]).mean(0)


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
        residual: As for ``PlantedNet``.
        dtype: Dtype of the network and of ``offset``.

    Raises:
        ConvCircuitsError: If the channels do not suffice, or cannot be divided into groups.

    Examples:
        >>> from convcircuits.zoo.planted import plant
        >>> planted = plant(seed=1)
        >>> circuit = cc.Circuit.from_masks(planted.model, planted.feature, planted.truth)
    """
    last, groups = whole_number("depth", depth, 3) - 1, whole_number("groups", groups, 1)
    for name, count in (("channels", channels), ("live", live), ("pairs", pairs), ("constants", constants)):
        whole_number(name, count, 0)
    needed = live + 2 * pairs + constants + groups * twins
    if any(count % groups for count in (channels, live, pairs, constants)) or live < 2 * groups or needed > channels:
        raise ConvCircuitsError(
            f"{channels} channels in {groups} groups cannot contain {live} live ones, {pairs} pairs, {constants} "
            f"constants and {groups * twins} twins. Each group needs the same number of each, and two live ones."
        )
    dice = Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):  # its weights are all replaced
        net = PlantedNet([channels] * last + [_UNITS], groups=groups, batchnorm=batchnorm, residual=residual)
    net.double().eval().requires_grad_(False)
    convs = [conv for conv in net.convs if isinstance(conv, nn.Conv2d)]
    plans = [_layout(dice, channels, live // groups, pairs // groups, constants // groups, groups) for _ in range(last)]
    if residual:  # a channel plays the same part in all layers that are added up
        plans = [_Plan(first.live, first.pairs, first.constants, first.others) for first in plans[:1] * last]
    plans.append(_Plan())
    unit = _draw(dice, _UNITS)
    _choose(dice, plans, unit, channels // groups, residual, twins)
    # Powers of two, so that nothing is rounded.
    spread = (torch.rand(last, channels, generator=dice).double() - 0.5) * decades * math.log2(10)
    factors = [torch.ones(3), *(2.0 ** spread[0 if residual else n].round() for n in range(last)), torch.ones(_UNITS)]
    truth, offset = [], {}
    x = planted_images(32, seed=seed).double()
    for n, plan in enumerate(plans):
        conv, (scale, factor) = convs[n], factors[n : n + 2]
        weight, mask, added = _kernels(dice, x, plans[n - 1] if n else _Plan(), plan, conv, strength, leak)
        y = F.conv2d(x, weight)
        bias = _biases(dice, y + net.skip(n, x), plan)
        x = net.after(n, x, y + bias[:, None, None])
        weight = _of_groups(weight / scale[:, None, None] * factor[:, None, None, None], conv.groups)
        slope = _write(dice, conv, net.norms[n] if n < last else None, weight, bias * factor)
        truth.append(mask)
        offset[f"convs.{n}"] = (added * factor / slope).to(dtype)
    masks = [
        {layer: _of_groups(mask, conv.groups) for layer, mask, conv in zip(offset, found, convs, strict=True)}
        for found in (truth, *(_without(which, truth, plans) for which in (0, 1) if twins))
    ]
    return Planted(net.to(dtype), Feature(f"convs.{last}", unit), masks[0], tuple(masks[1:]), offset)


@dataclass
class _Plan:
    """Which part each channel of a layer plays."""

    live: list[int] = field(default_factory=list)  # channels that may be live; the keys of reads are
    pairs: list[tuple[int, int]] = field(default_factory=list)
    constants: list[int] = field(default_factory=list)
    others: list[int] = field(default_factory=list)
    twins: list[tuple[int, int]] = field(default_factory=list)
    reads: dict[int, list[int]] = field(default_factory=dict)  # live filter -> the live channels that it reads


def _layout(dice: Generator, channels: int, live: int, pairs: int, constants: int, groups: int) -> _Plan:
    """Deal the channels of each group out to parts, given the number of each part in a group."""
    plan, paired, fixed = _Plan(), live + 2 * pairs, live + 2 * pairs + constants
    for group in torch.arange(channels).chunk(groups):
        dealt = group[torch.randperm(len(group), generator=dice)].tolist()
        plan.live += dealt[:live]
        plan.pairs += zip(dealt[live:paired:2], dealt[live + 1 : paired : 2], strict=True)
        plan.constants += dealt[paired:fixed]
        plan.others += dealt[fixed:]
    return plan


def _choose(dice: Generator, plans: list[_Plan], unit: int, width: int, residual: bool, twins: bool) -> None:
    """Choose what live filters read, from the unit back to the image, and the twins. Groups have ``width`` channels."""
    last, live = len(plans) - 1, {unit}
    for n in range(last, -1, -1):
        for o in sorted(live):
            near = [i for i in plans[n - 1].live if n == last or i // width == o // width] if n else [0, 1, 2]
            order = torch.randperm(len(near), generator=dice).tolist()
            plans[n].reads[o] = sorted(near[k] for k in order[: 2 + _draw(dice, 3)])
        live = {i for reads in plans[n].reads.values() for i in reads} | (live if residual and 0 < n < last else set())
    if twins:
        doubled = plans[:last] if residual else [plans[_draw(dice, last)]]
        first = list(doubled[-1].reads)[_draw(dice, len(doubled[-1].reads))]
        for plan in doubled:
            plan.twins = [(first, next(i for i in plan.others if i // width == first // width))]


def _kernels(
    dice: Generator, x: Tensor, before: _Plan, plan: _Plan, conv: nn.Conv2d, strength: float, leak: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return a layer's weights (out, in, h, w), its true kernels (out, in), and what others add on average (out,).

    The standard deviation of each filter on the inputs x is 1; of a live one, that of what its true kernels add.
    """
    filters, inputs = conv.out_channels, conv.in_channels
    group_out, group_in = (torch.arange(count) * conv.groups // count for count in (filters, inputs))
    near = group_out[:, None] == group_in
    weight = torch.randn(filters, inputs, 3, 3, generator=dice, dtype=torch.float64) * near[:, :, None, None]
    weight *= 3 / torch.linalg.vector_norm(weight, dim=(2, 3), keepdim=True).clamp_min(1e-9)
    weight *= 0.7 + 0.6 * torch.rand(filters, inputs, 1, 1, generator=dice)
    truth, added = torch.zeros(filters, inputs, dtype=torch.bool), torch.zeros(filters, dtype=torch.float64)
    for o, drawn in enumerate(weight.clone()):
        if o in plan.constants:
            weight[o] = _only(drawn, before.constants)
        elif o not in plan.reads:
            weight[o] = drawn / _deviation(x, drawn)
        else:
            true, paired, rest = _live_filter(dice, x, drawn, before, plan.reads[o], strength, leak)
            truth[o] = true.abs().sum((1, 2)) > 0
            weight[o] = true + paired + rest
            added[o] = F.conv2d(x, rest[None]).mean()
    for first, second in (*plan.pairs, *plan.twins):
        weight[second], truth[second], added[second] = weight[first], truth[first], added[first]
    return weight, truth, added


def _live_filter(
    dice: Generator, x: Tensor, drawn: Tensor, before: _Plan, reads: list[int], strength: float, leak: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return a live filter's true kernels, those that read pairs, and the rest, constants and noise (all in, h, w)."""
    true = _only(drawn, reads)
    for first, second in before.twins:
        share = 0.3 + 0.4 * torch.rand((), generator=dice)
        true[second] = (1 - share) * true[first]
        true[first] *= share
    size = 1 / _deviation(x, true)
    paired = torch.zeros_like(true)
    for first, second in before.pairs:
        paired[first], paired[second] = drawn[first], -drawn[first]
    noise = _only(drawn, [i for i in (*before.live, *before.others) if not bool(true[i].any())])
    noise *= leak / _deviation(x, noise).clamp_min(1e-9)
    return true * size, paired * size * strength, _only(drawn, before.constants) * size * strength + noise


def _biases(dice: Generator, y: Tensor, plan: _Plan) -> Tensor:
    """Return biases for outputs y: active on a third to two thirds of the positions, or a positive constant."""
    shift, mean = torch.rand(y.shape[1], generator=dice), y.mean((0, 2, 3))
    bias = (shift - 0.5) * y.std((0, 2, 3)) - mean
    bias[plan.constants] = (0.5 + shift - mean)[plan.constants]
    for first, second in (*plan.pairs, *plan.twins):
        bias[second] = bias[first]
    return bias


def _write(dice: Generator, conv: nn.Conv2d, norm: nn.Module | None, weight: Tensor, bias: Tensor) -> Tensor:
    """Write a layer into the network; return the slopes of its BatchNorm, by which the weights are divided."""
    slope = torch.ones_like(bias)
    if isinstance(norm, nn.BatchNorm2d):
        mean, variance, gamma = torch.rand(3, len(bias), generator=dice).double()
        slope = (0.5 + gamma) / (0.5 + variance + norm.eps).sqrt()
        state = {"weight": 0.5 + gamma, "bias": bias + slope * mean, "running_mean": mean}
        norm.load_state_dict(state | {"running_var": 0.5 + variance}, strict=False)
    else:
        conv.bias.copy_(bias)  # type: ignore[union-attr]
    conv.weight.copy_(weight / slope[:, None, None, None])
    return slope


def _without(which: int, truth: list[Tensor], plans: list[_Plan]) -> list[Tensor]:
    """Return the truth without one of the two twins: neither the kernels that compute it nor those that read it."""
    masks = [mask.clone() for mask in truth]
    for n, plan in enumerate(plans):
        for twins in plan.twins:
            masks[n][twins[which]] = False
            masks[n + 1][:, twins[which]] = False
    return masks


def _of_groups(table: Tensor, groups: int) -> Tensor:
    """Return the blocks on the diagonal of (out, in, ...), one below the other: (out, in per group, ...)."""
    return torch.cat([rows.chunk(groups, 1)[group] for group, rows in enumerate(table.chunk(groups))])


def _only(kernels: Tensor, channels: list[int]) -> Tensor:
    """Return one filter's kernels (in, h, w) with zeros on all channels but these."""
    kept = torch.zeros_like(kernels)
    kept[channels] = kernels[channels]
    return kept


def _deviation(x: Tensor, kernels: Tensor) -> Tensor:
    return F.conv2d(x, kernels[None]).std()


def _draw(dice: Generator, count: int) -> int:
    return int(torch.randint(count, (), generator=dice))
