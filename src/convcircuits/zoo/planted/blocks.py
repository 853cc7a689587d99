"""Several nets as blocks of channels of one net, permuted; one of them computes the feature.

::

      image --- block 0: all its kernels are the truth ------------- feature
                   ^ leak    | noise
                   |         v
      image --- block 1, block 2, ...: as large and as busy, and of no use

In place of a sparse circuit among random kernels, this is a whole net, perhaps a trained one, among others.
"""

import itertools
from collections.abc import Iterator, Sequence

import torch
from torch import Generator, Tensor, nn

from convcircuits.errors import ConvCircuitsError, whole_number
from convcircuits.zoo.planted.building import build, empty_net
from convcircuits.zoo.planted.network import Planted, planted_images
from convcircuits.zoo.planted.plans import Plan, dealt, draw

_UNITS = 4  # filters of the last layer of each random net


def stitched(
    seed: int = 0,
    *,
    blocks: int = 2,
    depth: int = 4,
    filters: int = 6,
    nets: Sequence[nn.Module] | None = None,
    images: Tensor | None = None,
    unit: int | None = None,
    pairs: int = 4,
    constants: int = 4,
    strength: float = 1.0,
    leak: float = 0.0,
    noise: float = 1.0,
    decades: float = 3.0,
    batchnorm: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Planted:
    """Stitch nets together as blocks of channels of one net, whose feature is a unit of the first of them.

    Args:
        seed: Seed of everything that is random.
        blocks: Number of random nets.
        depth: Number of convolutions of a random net.
        filters: Number of filters of each hidden layer of a random net.
        nets: Your own nets, in place of random ones, such as ``vgg.features[:8]``: plain convolutions of the same sides
            in all nets, with a ReLU between them and perhaps a max-pooling by 2. Their numbers of filters may differ.
            They keep their weights, but run without padding.
        images: Images (n, 3, h, w), as your nets take them, on which the sizes of what is added are measured.
            Default: 32 random ones.
        unit: The feature's unit in the last layer of the first net; drawn if None.
        pairs: As for ``plant``.
        constants: As for ``plant``.
        strength: As for ``plant``.
        leak: Standard deviation of what kernels that read other blocks add to a filter of the first block, relative to
            what the block's own kernels add.
        noise: The same for filters of other blocks. These kernels do not matter to the feature.
        decades: As for ``plant``.
        batchnorm: As for ``plant``.
        dtype: As for ``plant``.

    Returns:
        The net. Its truth is the first block, as far as it leads to the feature.

    Raises:
        ConvCircuitsError: If a number is out of range, or the nets are not plain or have different structures.

    Examples:
        >>> from convcircuits.zoo.planted import stitched
        >>> planted = stitched(filters=5)
        >>> sum(int(kept.sum()) for kept in planted.truth.values())  # 3 x 5, 5 x 5 twice, and 5 that the unit reads
        70
    """
    dice = Generator().manual_seed(seed)
    pairs, constants = whole_number("pairs", pairs, 0), whole_number("constants", constants, 0)
    if nets is None:
        count, depth = whole_number("blocks", blocks, 1), whole_number("depth", depth, 3)
        chains: list[list[nn.Conv2d]] = []
        widths = [[whole_number("filters", filters, 1)] * count] * (depth - 1) + [[_UNITS] * count]
        sides, pools = [3] * depth, {0}
    else:
        chains, pools = _chains(nets)
        widths = [[conv.out_channels for conv in layer] for layer in zip(*chains, strict=True)]
        sides = [conv.kernel_size[0] for conv in chains[0]]
    last = len(sides) - 1
    more = {"pairs": pairs, "constants": constants}
    channels = [sum(layer) + (2 * pairs + constants) * (n < last) for n, layer in enumerate(widths)]
    plans = [
        dealt(dice, total, live=sum(layer), **(more if n < last else dict.fromkeys(more, 0)))
        for n, (total, layer) in enumerate(zip(channels, widths, strict=True))
    ]
    parts = [_parts(plan.live, layer) for plan, layer in zip(plans, widths, strict=True)]
    _wire(plans, parts, leak, noise)
    for b, chain in enumerate(chains):
        for n, conv in enumerate(chain):
            biases = [0.0] * len(conv.weight) if conv.bias is None else conv.bias.tolist()
            plans[n].kernels |= zip(parts[n][b], conv.weight.detach().cpu(), strict=True)
            plans[n].biases |= zip(parts[n][b], biases, strict=True)
    units = parts[last][0]
    return build(
        dice,
        empty_net(channels, sides=sides, pools=pools, batchnorm=batchnorm),
        plans,
        units[draw(dice, len(units)) if unit is None else whole_number("unit", unit, 0, len(units) - 1)],
        planted_images(32, seed=seed) if images is None else images,
        strength=strength,
        decades=decades,
        dtype=dtype,
        draw=planted_images,
    )


def _parts(channels: list[int], widths: Sequence[int]) -> list[list[int]]:
    """Return the channels of each block."""
    ends = list(itertools.accumulate(widths, initial=0))
    return [channels[a:b] for a, b in itertools.pairwise(ends)]


def _wire(plans: list[Plan], parts: list[list[list[int]]], leak: float, noise: float) -> None:
    """Let each filter read all channels of its own block, and others as noise."""
    for n, plan in enumerate(plans):
        for b, block in enumerate(parts[n]):
            plan.reads |= dict.fromkeys(block, parts[n - 1][b] if n else [0, 1, 2])
            plan.noise |= dict.fromkeys(block, noise if b else leak)


def _chains(nets: Sequence[nn.Module]) -> tuple[list[list[nn.Conv2d]], set[int]]:
    """Return the convolutions of each net, and after which of them a max-pooling follows.

    Raises:
        ConvCircuitsError: If a net is not plain, or they have different structures.
    """
    read = [_chain(net, f"Net {number}") for number, net in enumerate(nets)]
    structures = [([conv.kernel_size for conv in convs], pools) for convs, pools in read]
    if not read or any(structure != structures[0] for structure in structures):
        raise ConvCircuitsError(
            "nets must have the same structure: as many convolutions, with kernels of the same sides, and max-poolings "
            f"after the same ones; got {len(read)} with {[[s[0] for s in sides] for sides, _ in structures]}."
        )
    return [convs for convs, _ in read], structures[0][1]


def _chain(net: nn.Module, name: str) -> tuple[list[nn.Conv2d], set[int]]:
    convs: list[nn.Conv2d] = []
    rectified: set[int] = set()
    pools: set[int] = set()
    for module in _flat(net):
        n = len(convs) - 1
        if isinstance(module, nn.Conv2d) and _is_plain(module) and (n < 0 or n in rectified):
            convs.append(module)
        elif isinstance(module, nn.ReLU) and n >= 0:
            rectified.add(n)
        elif isinstance(module, nn.MaxPool2d) and _halves(module) and n in rectified and n not in pools:
            pools.add(n)
        else:
            raise ConvCircuitsError(
                f"{name} has {module} after {len(convs)} convolutions. A net to stitch is an nn.Sequential of "
                "convolutions with odd kernels, stride 1 and one group, a ReLU between them, and perhaps a max-pooling "
                "by 2 after a ReLU."
            )
    if len(convs) < 2 or convs[0].in_channels != 3:
        raise ConvCircuitsError(f"{name} needs two convolutions or more, the first of which reads 3 channels.")
    return convs, pools - {len(convs) - 1}


def _flat(net: nn.Module) -> Iterator[nn.Module]:
    """Yield what a net consists of, through sequences in sequences."""
    if isinstance(net, nn.Sequential):
        for module in net:
            yield from _flat(module)
    else:
        yield net


def _is_plain(conv: nn.Conv2d) -> bool:
    side = conv.kernel_size[0]
    plain = (conv.stride, conv.dilation, conv.groups) == ((1, 1), (1, 1), 1)
    return plain and conv.kernel_size == (side, side) and side % 2 == 1


def _halves(pool: nn.MaxPool2d) -> bool:
    given = (pool.kernel_size, pool.stride, pool.padding, pool.dilation)
    return all(value in (wanted, (wanted, wanted)) for value, wanted in zip(given, (2, 2, 0, 1), strict=True))
