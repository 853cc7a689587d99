"""A kernel call, that is one call of ``conv2d`` or ``linear``, in the notation of the formulas.

Shape letters: n image, g group, o filter in the group, i channel in the group, k weight in the kernel, p position.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor


@dataclass(frozen=True)
class ConvCall:
    """One call of ``conv2d``, with its input and weight.

    ``rows`` holds the indices of the filters that are computed, or None for all. ``live`` marks the input channels that
    are live in the run of a circuit, (g, i), bool, or is None if all are. ``turn`` counts the calls of the layer in a
    run, from 0.
    """

    layer: str
    x: Tensor
    weight: Tensor
    bias: Tensor | None
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    rows: Tensor | None = None
    live: Tensor | None = None
    turn: int = 0

    channel_dim = 1

    @property
    def kernels(self) -> Float[Tensor, "g o i k"]:
        """The weight as (g, o, i, k)."""
        out, inputs = self.weight.shape[:2]
        return self.weight.reshape(self.groups, out // self.groups, inputs, -1)

    def per_kernel(self, values: Shaped[Tensor, "out in"]) -> Shaped[Tensor, "..."]:
        """Reshape one value per kernel, (out, in per group), so that it broadcasts with the weight."""
        return values[:, :, None, None]

    def compute(self, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        """Compute the call, with another weight and bias if a weight is given."""
        if weight is None:
            weight, bias = self.weight, self.bias
        return torch.conv2d(self.x, weight, bias, self.stride, self.padding, self.dilation, self.groups)

    def spread(self, channels: Shaped[Tensor, "n c"]) -> Shaped[Tensor, "n ..."]:
        """Expand one value per channel, (n, c), to the shape of the input."""
        return channels[:, :, None, None].expand_as(self.x)

    def columns(self, images: slice, positions: Tensor | None = None) -> Float[Tensor, "n g i k p"]:
        """Return the inputs of the kernels, (n, g, i, k, p), at all positions of the output or at some of them."""
        x = self.x[images]
        n, k = len(x), self.weight[0, 0].numel()
        if positions is not None:
            return self._read_at(x, positions).reshape(n, self.groups, x.shape[1] // self.groups, k, -1)
        if k > 1 or self.stride != (1, 1) or self.padding != (0, 0):
            x = F.unfold(x, self.weight.shape[2:], self.dilation, self.padding, self.stride)
        return x.reshape(n, self.groups, x.shape[1] // self.groups // (k if x.dim() == 3 else 1), k, -1)

    def read_totals(self) -> Float[Tensor, "g i k"]:
        """Return the inputs of the kernels summed over images and positions, (g, i, k), float64."""
        (height, width), (tall, wide) = self.padding, self.weight.shape[2:]
        x = F.pad(self.x.sum(0, dtype=torch.float64), (width, width, height, height))
        spans = [
            size - dilation * (kernel - 1)  # of the places where one weight reads
            for size, dilation, kernel in zip(x.shape[1:], self.dilation, (tall, wide), strict=True)
        ]
        totals = [
            x[:, row : row + spans[0] : self.stride[0], column : column + spans[1] : self.stride[1]].sum((1, 2))
            for row in range(0, tall * self.dilation[0], self.dilation[0])
            for column in range(0, wide * self.dilation[1], self.dilation[1])
        ]
        return torch.stack(totals, 1).reshape(self.groups, -1, tall * wide)

    def _read_at(self, x: Float[Tensor, "n c _ _"], positions: Tensor) -> Float[Tensor, "n c kh kw p"]:
        """Return what the kernels read at some positions of the output."""
        (height, width), kernel = self.padding, self.weight.shape[2:]
        x = F.pad(x, (width, width, height, height))
        across = (x.shape[3] - self.dilation[1] * (kernel[1] - 1) - 1) // self.stride[1] + 1
        corners = positions // across * self.stride[0], positions % across * self.stride[1]
        taps = [torch.arange(size, device=x.device) * step for size, step in zip(kernel, self.dilation, strict=True)]
        rows, columns = (tap[:, None] + corner for tap, corner in zip(taps, corners, strict=True))
        return x[:, :, rows[:, None], columns[None]]

    def by_position(self, gradient: Float[Tensor, "n ..."]) -> Float[Tensor, "n g o p"]:
        """Reshape a gradient of the output to (n, g, o, p)."""
        return gradient.reshape(len(gradient), self.groups, gradient.shape[1] // self.groups, -1)

    def weight_gradient(self, gradient: Float[Tensor, "n ..."], image: int) -> Float[Tensor, "g o i k"]:
        """Return dL_n/dw for one image, (g, o, i, k)."""
        result: Tensor = torch.ops.aten.convolution_backward(
            gradient[image : image + 1],
            self.x[image : image + 1],
            self.weight,
            None,
            self.stride,
            self.padding,
            self.dilation,
            False,
            (0, 0),
            self.groups,
            (False, True, False),
        )[1]
        return result.reshape(self.kernels.shape)


@dataclass(frozen=True)
class LinearCall:
    """One call of ``linear``. After a flattened C x H x W map its kernels are H x W blocks, else single weights.

    There is one group; an input of vectors (n, ..., f) has one position per vector.
    """

    layer: str
    x: Tensor
    weight: Tensor
    bias: Tensor | None
    blocks: int
    rows: Tensor | None = None
    live: Tensor | None = None
    turn: int = 0

    channel_dim = -1
    groups = 1

    @property
    def kernels(self) -> Float[Tensor, "g o i k"]:
        """The weight as (1, o, i, k)."""
        return self.weight.reshape(1, len(self.weight), self.blocks, -1)

    def per_kernel(self, values: Shaped[Tensor, "out in"]) -> Shaped[Tensor, "..."]:
        """Expand one value per kernel, (out, blocks), to the shape of the weight."""
        return values.repeat_interleave(self.weight.shape[1] // self.blocks, 1)

    def compute(self, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        """Compute the call, with another weight and bias if a weight is given."""
        if weight is None:
            weight, bias = self.weight, self.bias
        return F.linear(self.x, weight, bias)

    def spread(self, channels: Shaped[Tensor, "n c"]) -> Shaped[Tensor, "n ..."]:
        """Expand one value per block, (n, blocks), to the shape of the input."""
        values = channels.repeat_interleave(self.x.shape[-1] // self.blocks, 1)
        return values.reshape(len(values), *[1] * (self.x.dim() - 2), -1).expand_as(self.x)

    def columns(self, images: slice, positions: Tensor | None = None) -> Float[Tensor, "n g i k p"]:
        """Return the inputs of the kernels, (n, 1, i, k, p), at all positions of the output or at some of them."""
        x = self.x[images]
        x = x.reshape(len(x), -1, self.blocks, x.shape[-1] // self.blocks)
        x = x if positions is None else x[:, positions]
        return x.permute(0, 2, 3, 1)[:, None]

    def read_totals(self) -> Float[Tensor, "g i k"]:
        """Return the inputs of the kernels summed over images and positions, (1, i, k), float64."""
        return self.x.reshape(-1, self.x.shape[-1]).sum(0, dtype=torch.float64).reshape(1, self.blocks, -1)

    def by_position(self, gradient: Float[Tensor, "n ..."]) -> Float[Tensor, "n g o p"]:
        """Reshape a gradient of the output to (n, 1, o, p)."""
        return gradient.reshape(len(gradient), 1, -1, gradient.shape[-1]).transpose(2, 3)

    def weight_gradient(self, gradient: Float[Tensor, "n ..."], image: int) -> Float[Tensor, "g o i k"]:
        """Return dL_n/dw for one image, (1, o, i, k)."""
        g = gradient[image].reshape(-1, gradient.shape[-1])
        return (g.T @ self.x[image].reshape(-1, self.x.shape[-1])).reshape(self.kernels.shape)


KernelCall = ConvCall | LinearCall
