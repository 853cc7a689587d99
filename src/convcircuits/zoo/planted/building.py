"""From plans to a network: draw the weights, layer by layer, on random images."""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from convcircuits.values.feature import Feature
from convcircuits.zoo.planted.network import Planted, PlantedNet
from convcircuits.zoo.planted.plans import Plan, circuit_of

Masks = list[Tensor]  # bool (out, in) for each layer, whatever the groups


def build(
    dice: Generator,
    net: PlantedNet,
    plans: Sequence[Plan],
    unit: int,
    x: Tensor,
    *,
    strength: float,
    decades: float,
    dtype: torch.dtype,
    draw: Callable[..., Tensor],
    smaller: Callable[[Masks], Sequence[Masks]] = lambda truth: (),
) -> Planted:
    """Write plans into a network.

    Args:
        dice: Source of everything that is random.
        net: A network from ``empty_net``.
        plans: A plan for each layer.
        unit: The filter of the last layer that is the feature.
        x: Images on which sizes are measured.
        strength: As for ``plant``.
        decades: As for ``plant``.
        dtype: Dtype of the network and of the offsets.
        draw: Draws images that the network is made for.
        smaller: Returns the alternatives to the truth.
    """
    convs = [conv for conv in net.convs if isinstance(conv, nn.Conv2d)]
    truth = circuit_of(plans, net.widths, [unit], residual=net.residual)
    factors = _factors(dice, net, decades)
    offset, x = {}, x.double()
    for n, plan in enumerate(plans):
        conv, (scale, factor) = convs[n], factors[n : n + 2]
        weight, added, size = _kernels(dice, x, plans[n - 1] if n else Plan(), plan, conv, strength)
        y = F.conv2d(x, weight)
        bias = _biases(dice, y + net.skip(n, x), plan, added, size)
        x = net.after(n, x, y + bias[:, None, None])
        weight = _of_groups(weight / scale[:, None, None] * factor[:, None, None, None], conv.groups)
        slope = _write(dice, conv, net.norms[n] if n < len(net.norms) else None, weight, bias * factor)
        offset[f"convs.{n}"] = (added * truth[n].any(1) * factor / slope).to(dtype)
    masks = [
        {layer: _of_groups(mask, conv.groups) for layer, mask, conv in zip(offset, found, convs, strict=True)}
        for found in (truth, *smaller(truth))
    ]
    feature = Feature(f"convs.{len(convs) - 1}", unit)
    return Planted(net.to(dtype), feature, masks[0], tuple(masks[1:]), offset, draw)


def empty_net(channels: Sequence[int], **options: object) -> PlantedNet:
    """Return a network in float64 and eval mode whose weights are still to be written."""
    with torch.random.fork_rng(devices=[]):  # they are all replaced
        net = PlantedNet(channels, **options)  # type: ignore[arg-type]
    return net.double().eval().requires_grad_(False)


def peaks(maps: Tensor) -> Tensor:
    """Return the largest value of each map: (n, c, h, w) -> (n, c)."""
    return maps.flatten(2).amax(2)


def _factors(dice: Generator, net: PlantedNet, decades: float) -> list[Tensor]:
    """Return the factors of the image's channels and of each layer's: powers of two, so that nothing is rounded."""
    (image, *hidden, units), last = net.widths, len(net.norms)
    spread = (torch.rand(last, max(hidden), generator=dice).double() - 0.5) * decades * math.log2(10)
    factors = [torch.ones(image)]
    for n, channels in enumerate(hidden):
        factors.append(factors[-1] if n in net.residual else 2.0 ** spread[n, :channels].round())
    return [*factors, torch.ones(units)]


def _kernels(
    dice: Generator, x: Tensor, before: Plan, plan: Plan, conv: nn.Conv2d, strength: float
) -> tuple[Tensor, Tensor, float]:
    """Return a layer's weights (out, in, h, w), what kernels outside circuits add on average (out,), and its size.

    The size is the standard deviation of a filter on the inputs x; of one with a circuit, that of what its circuit
    adds. It is 1 where kernels are drawn.
    """
    drawn, rows = _drawn(dice, conv), sorted(plan.reads)
    circuits = _circuits(x, drawn, plan, rows)
    sizes = _deviations(x, circuits)
    sizes = sizes.where(sizes > 0, 1)  # 0 if a filter only passes on its residual connection
    size = float(sizes.mean())
    weight, added = drawn * (size / _deviations(x, drawn))[:, None, None, None], torch.zeros(len(drawn)).double()
    weight[plan.constants] = _only(drawn[plan.constants], before.constants)
    noise = sizes * torch.tensor([plan.noise.get(o, 0.0) for o in rows])
    weight[rows], rest = _beside(dice, x, drawn[rows], circuits, before, strength, noise)
    added[rows] = F.conv2d(x, rest).mean((0, 2, 3))
    for first, second in (*plan.pairs, *plan.twins):
        weight[second], added[second] = weight[first], added[first]
    return weight, added, size


def _drawn(dice: Generator, conv: nn.Conv2d) -> Tensor:
    """Draw kernels of about equal size, (out, in, h, w); 0 between groups."""
    filters, inputs, side = conv.out_channels, conv.in_channels, conv.kernel_size[0]
    group_out, group_in = (torch.arange(count) * conv.groups // count for count in (filters, inputs))
    near = group_out[:, None] == group_in
    drawn = torch.randn(filters, inputs, side, side, generator=dice, dtype=torch.float64) * near[:, :, None, None]
    drawn *= side / torch.linalg.vector_norm(drawn, dim=(2, 3), keepdim=True).clamp_min(1e-9)
    return drawn * (0.7 + 0.6 * torch.rand(filters, inputs, 1, 1, generator=dice))


def _circuits(x: Tensor, drawn: Tensor, plan: Plan, rows: list[int]) -> Tensor:
    """Return the kernels of circuits, (rows, in, h, w): given ones, or drawn ones of the size that they are to have."""
    circuits = torch.cat([_only(drawn[[o]], plan.reads[o]) for o in rows])
    for kernels, o, deviation in zip(circuits, rows, _deviations(x, circuits), strict=True):
        if o in plan.kernels:
            kernels[plan.reads[o]] = plan.kernels[o].double()
        elif plan.sums:
            kernels.abs_()
            for i in plan.reads[o]:
                highest = peaks(F.conv2d(x[:, [i]], kernels[None, [i]]))
                kernels[i] /= highest[highest > 0].mean()
        else:
            kernels /= deviation
    return circuits


def _beside(
    dice: Generator, x: Tensor, drawn: Tensor, circuits: Tensor, before: Plan, strength: float, noise: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the kernels of filters, those of their circuits and all others, and those that read constants and noise.

    All are (rows, in, h, w). ``noise`` (rows,) is the standard deviation of what the noise adds.
    """
    read = circuits.flatten(2).any(2)[:, :, None, None]
    norms = torch.linalg.vector_norm(circuits, dim=(1, 2, 3)), torch.linalg.vector_norm(drawn * read, dim=(1, 2, 3))
    size = strength * (norms[0] / norms[1]).nan_to_num(1)[:, None, None, None]  # NaN if nothing is read
    whole, leaked = circuits.clone(), drawn * ~read
    for first, second in before.twins:
        share = (0.3 + 0.4 * torch.rand(len(drawn), generator=dice).double())[:, None, None]
        whole[:, second] = (1 - share) * circuits[:, first]
        whole[:, first] = share * circuits[:, first]
        leaked[:, second] *= ~read[:, first]
    rest = _only(drawn, before.constants) * size
    if noise.any():
        leaked = _only(leaked, [*before.live, *before.others])
        rest += leaked * (noise / _deviations(x, leaked).clamp_min(1e-9))[:, None, None, None]
    for first, second in before.pairs:
        whole[:, [first]] = size * drawn[:, [first]]
        whole[:, [second]] = -size * drawn[:, [first]]
    return whole + rest, rest


def _biases(dice: Generator, y: Tensor, plan: Plan, added: Tensor, size: float) -> Tensor:
    """Return biases for outputs y: given ones, drawn ones, or those that make a filter a positive constant."""
    shift, mean = torch.rand(y.shape[1], generator=dice), y.mean((0, 2, 3))
    bias = (shift - 0.5) * y.std((0, 2, 3)) - mean
    bias[plan.constants] = ((0.5 + shift) * size - mean)[plan.constants]
    for o, given in plan.biases.items():
        bias[o] = given - added[o]
    for o, share in plan.active.items():
        bias[o] = -y[:, o].quantile(1 - share)
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


def _of_groups(table: Tensor, groups: int) -> Tensor:
    """Return the blocks on the diagonal of (out, in, ...), one below the other: (out, in per group, ...)."""
    return torch.cat([rows.chunk(groups, 1)[group] for group, rows in enumerate(table.chunk(groups))])


def _only(kernels: Tensor, channels: list[int]) -> Tensor:
    """Return kernels (out, in, h, w) with zeros on all channels that are read but these."""
    kept = torch.zeros_like(kernels)
    kept[:, channels] = kernels[:, channels]
    return kept


def _deviations(x: Tensor, kernels: Tensor) -> Tensor:
    return F.conv2d(x, kernels).std((0, 2, 3))
