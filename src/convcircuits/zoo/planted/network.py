"""The network that a circuit is planted in, and what is known of it."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from convcircuits.values.feature import Feature


class PlantedNet(nn.Module):
    """Convolutions with ReLUs and max-poolings, without padding: what is constant has no border.

    Args:
        channels: Number of filters of each layer.
        sides: Side of the kernels of each layer.
        pools: Layers that a max-pooling by 2 follows.
        groups: Number of groups of the convolutions between the first and the last.
        batchnorm: Put a BatchNorm after each convolution except the last.
        residual: Layers between the first and the last to which their own input is added.
    """

    def __init__(
        self,
        channels: Sequence[int],
        *,
        sides: Sequence[int],
        pools: Collection[int] = (0,),
        groups: int = 1,
        batchnorm: bool = False,
        residual: Collection[int] = (),
    ) -> None:
        super().__init__()
        last = len(channels) - 1
        self.widths = (3, *channels)
        self.pools, self.residual = frozenset(pools), frozenset(residual)
        self.convs = nn.ModuleList(
            nn.Conv2d(i, o, side, groups=groups if 0 < n < last else 1, bias=not batchnorm or n == last)
            for n, (i, o, side) in enumerate(zip(self.widths[:-1], channels, sides, strict=True))
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(o) if batchnorm else nn.Identity() for o in channels[:-1])

    def forward(self, x: Tensor) -> Tensor:
        """Return the maps of the last layer."""
        return self.convs[-1](self.hidden(x))  # type: ignore[no-any-return]

    def hidden(self, x: Tensor) -> Tensor:
        """Return the input of the last layer."""
        for n, norm in enumerate(self.norms):
            x = self.after(n, x, norm(self.convs[n](x)))
        return x

    def after(self, n: int, x: Tensor, y: Tensor) -> Tensor:
        """Return the input of layer n + 1, given the input x of layer n and its output y."""
        y = F.relu(y + self.skip(n, x))
        return F.max_pool2d(y, 2) if n in self.pools else y

    def skip(self, n: int, x: Tensor) -> Tensor | float:
        """Return what the residual connection around layer n adds."""
        border = self.convs[n].kernel_size[0] // 2  # type: ignore[index]
        return x[..., border : x.shape[-2] - border, border : x.shape[-1] - border] if n in self.residual else 0.0


@dataclass(frozen=True, eq=False)
class Planted:
    """A network and a feature whose circuit is known.

    What is said of the truth holds for every image, not only for ``images``.

    Attributes:
        model: The network, in eval mode.
        feature: A unit of the last layer.
        truth: Layer name -> bool (out, in per group), the kernels that the feature depends on. If ``leak`` is 0, these
            kernels with ``offset``, and with all gains 1, compute the feature's map exactly, up to rounding.
        alternatives: Smaller masks that do so, too: with other gains those without one of two twins, and on ``images``
            as they are those without one of two redundant paths. Empty without either.
        offset: Layer name -> (out,), what the other kernels add on average to the raw output of each filter of the
            truth: what constants add, and, with ``leak``, the mean of the noise. 0 without both.
        draw: Draws images of the kind that the network was made for, as ``planted_images`` does.
    """

    model: PlantedNet
    feature: Feature
    truth: dict[str, Tensor]
    alternatives: tuple[dict[str, Tensor], ...]
    offset: dict[str, Tensor]
    draw: Callable[..., Tensor]

    @property
    def truths(self) -> tuple[dict[str, Tensor], ...]:
        """The truth and its alternatives, each of which is right."""
        return self.truth, *self.alternatives

    def images(self, count: int, *, size: int = 32, seed: int = 0) -> Tensor:
        """Return images that the network was made for: (count, 3, size, size), in its dtype."""
        return self.draw(count, size=size, seed=seed).to(next(self.model.parameters()))


def planted_images(count: int, *, size: int = 32, seed: int = 0) -> Tensor:
    """Return random images with structure at several scales: (count, 3, size, size), float32, from 0 to 1."""
    dice = Generator().manual_seed(seed)
    scales = [torch.rand(count, 3, cells, cells, generator=dice) for cells in (2, 4, 8, 16, size)]
    return torch.stack([F.interpolate(s, (size, size), mode="bilinear") for s in scales]).mean(0)
