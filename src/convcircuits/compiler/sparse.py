"""Convolutions that compute only the kernels that a circuit keeps.

A plain convolution computes every kernel between its channels, also those that were cut: most of them, in a small
circuit. Here the kernels that are kept are rows of a table, and the time that a layer takes grows with their number.
"""

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from convcircuits.loops import has_loops
from convcircuits.threads import on_all_threads

_DENSE, _DENSE_POINTWISE = 0.3, 0.2
"""From this share of the work on, a plain convolution is about as fast, forward and backward; then for 1 x 1 ones."""
_MULTIPLE = 64
"""The number of positions is rounded up to this, as the loops read up to so many at a time."""
_BLOCK = 1024
"""Positions that are written for all filters before the next ones, so that what they read stays in the cache."""


def is_worth_it(layer: nn.Module, kept: Tensor) -> TypeGuard[nn.Conv2d]:
    """Return whether a ``SparseConv2d`` can stand for a layer, and on large maps is faster forward and backward.

    Args:
        layer: The layer.
        kept: bool (out, in per group): the kernels of it that are not 0.
    """
    return (
        isinstance(layer, nn.Conv2d)
        and layer.stride == (1, 1)
        and layer.padding_mode == "zeros"
        and isinstance(layer.padding, tuple)
        and has_loops(layer.weight)
        and int(kept.sum()) < _DENSE * kept.numel()
    )


class SparseConv2d(nn.Module):
    """Some kernels of a convolution, each with a gain: y_o = b_o + sum_i a_oi w_oi * x_i.

    Where maps are so small that padding and rounding would outweigh what is saved, all kernels are computed after all.
    For its backward pass, the layer keeps a padded copy of its input.

    Args:
        layer: The convolution, for which ``is_worth_it``.
        kept: bool (out, in per group): the kernels that are computed.

    Attributes:
        gains: (kernels,): the gain of each kernel, in row-major order; 1 to begin with.
        bias: (out,).
        weights: (kernels, k): the weights of each kernel.
        by_filter: The kernels by the filter that they belong to, which is their own order.
        by_channel: The kernels by the channel that they read.
    """

    weights: Tensor

    def __init__(self, layer: nn.Conv2d, kept: Tensor) -> None:
        super().__init__()
        assert isinstance(layer.padding, tuple)  # as is_worth_it asks
        group = torch.arange(len(kept)) // (len(kept) // layer.groups)
        channels = group[:, None] * kept.shape[1] + torch.arange(kept.shape[1])
        filters, sources, weight = kept.nonzero()[:, 0], channels[kept], layer.weight.detach()
        self.gains = nn.Parameter(weight.new_ones(len(sources)))
        self.bias = nn.Parameter(weight.new_zeros(len(kept)) if layer.bias is None else layer.bias.detach().clone())
        self.register_buffer("weights", weight[kept].flatten(1), persistent=False)
        self.by_filter = _Table.of(filters, sources, len(kept))
        self.by_channel = _Table.of(sources, filters, layer.in_channels)
        self._kept, self._groups = kept, layer.groups
        self._window = layer.kernel_size, layer.dilation, layer.padding

    def forward(self, images: Tensor) -> Tensor:
        """Compute the layer's output."""
        plan = _plan((images.shape[2], images.shape[3]), *self._window)
        if not self._is_faster(images, plan):
            return self._plain(images)
        output: Tensor = _Convolution.apply(images, self.gains, self.bias, self, plan)
        return output

    def _is_faster(self, images: Tensor, plan: "_Plan") -> bool:
        """Return whether the loops can run on images, and with less work."""
        fits = images.shape[1] == self._groups * self._kept.shape[1] and images.dtype == self.weights.dtype
        most = _DENSE if self.weights.shape[1] > 1 else _DENSE_POINTWISE
        work = math.prod(plan.output) * self._kept.numel()
        return fits and min(plan.output) > 0 and len(self.weights) * plan.length < most * work

    def _plain(self, images: Tensor) -> Tensor:
        """Compute the layer's output with all kernels, those that are not kept as 0."""
        kernel, dilation, padding = self._window
        weight = self.weights.new_zeros(*self._kept.shape, self.weights.shape[1])
        weight = weight.index_put(tuple(self._kept.nonzero().T), self.weights * self.gains[:, None])
        weight = weight.reshape(*self._kept.shape, *kernel)
        return F.conv2d(images, weight, self.bias, padding=padding, dilation=dilation, groups=self._groups)


@dataclass(frozen=True)
class _Table:
    """Kernels by what they write.

    Attributes:
        order: The kernels, those that write to the same channel beside each other.
        bounds: (channels + 1,): which of these write to a channel.
        sources: The channel that each of them reads.
    """

    order: Tensor
    bounds: Tensor
    sources: Tensor

    @classmethod
    def of(cls, written: Tensor, read: Tensor, channels: int) -> "_Table":
        order = torch.argsort(written, stable=True)
        counts = torch.bincount(written, minlength=channels)
        return cls(order, torch.cat([counts.new_zeros(1), counts.cumsum(0)]), read[order])


@dataclass(frozen=True)
class _Plan:
    """Where the values of an image are while it is convolved: its padded rows follow each other.

    Attributes:
        size: Height and width.
        output: The same, of the output.
        padded: The same, of the padded image.
        padding: Where the image begins in it.
        offsets: (k,): where each weight of a kernel reads, from the place of its output.
        length: Number of positions, rounded up.
    """

    size: tuple[int, int]
    output: tuple[int, int]
    padded: tuple[int, int]
    padding: tuple[int, int]
    offsets: Tensor
    length: int

    @property
    def last(self) -> int:
        """The largest offset."""
        return int(self.offsets[-1])

    def rows(self, maps: Tensor, first: tuple[int, int], before: int = 0) -> Tensor:
        """Return maps, (n, c, h, w), laid out: (n, c, before + length + last), with 0 around them.

        Args:
            maps: The maps.
            first: The row and column of the padded image where they begin.
            before: Number of positions before the padded image.
        """
        rows = maps.new_zeros(*maps.shape[:2], before + self.length + self.last)
        self.window(rows[:, :, before:], first, (maps.shape[2], maps.shape[3])).copy_(maps)
        return rows

    def window(self, rows: Tensor, first: tuple[int, int], size: tuple[int, int]) -> Tensor:
        """Return a window of padded images that are laid out, (n, c, h, w)."""
        count = self.padded[0] * self.padded[1]
        whole = rows[:, :, :count].view(*rows.shape[:2], *self.padded)
        return whole[:, :, first[0] : first[0] + size[0], first[1] : first[1] + size[1]]


@functools.lru_cache(maxsize=256)
def _plan(size: Sequence[int], kernel: Sequence[int], dilation: Sequence[int], padding: Sequence[int]) -> _Plan:
    """Return the plan of images of a size."""
    (high, wide), (above, left) = size, padding
    padded = high + 2 * above, wide + 2 * left
    reach = (kernel[0] - 1) * dilation[0], (kernel[1] - 1) * dilation[1]
    steps = itertools.product(range(0, reach[0] + 1, dilation[0]), range(0, reach[1] + 1, dilation[1]))
    offsets = torch.tensor([row * padded[1] + column for row, column in steps], device="cpu")  # whatever the default is
    length = -(-padded[0] * padded[1] // _MULTIPLE) * _MULTIPLE
    return _Plan((high, wide), (padded[0] - reach[0], padded[1] - reach[1]), padded, (above, left), offsets, length)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, gains: Tensor, bias: Tensor, layer: SparseConv2d, plan: _Plan) -> Tensor:
        reads = plan.rows(images, plan.padding)
        ctx.layer, ctx.plan = layer, plan
        ctx.save_for_backward(reads, gains)
        outputs = _convolved(reads, plan, plan.offsets, layer.by_filter, layer.weights * gains[:, None], bias)
        output = plan.window(outputs, (0, 0), plan.output)
        return output.clone(memory_format=torch.contiguous_format)  # no view, so that it may be changed in place

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slopes: Tensor) -> tuple[Tensor | None, ...]:
        from convcircuits.compiler import sparse_loop

        layer, plan, (reads, gains) = ctx.layer, ctx.plan, ctx.saved_tensors
        rows, of_images, of_gains = plan.rows(slopes, (0, 0), plan.last), None, None
        if ctx.needs_input_grad[0]:
            weights, nothing = layer.weights * gains[:, None], gains.new_zeros(reads.shape[1])
            moved = _convolved(rows, plan, plan.last - plan.offsets, layer.by_channel, weights, nothing)
            of_images = plan.window(moved, plan.padding, plan.size)
        if ctx.needs_input_grad[1]:
            of_gains, table = torch.zeros_like(gains), layer.by_filter  # in the order of the gains
            arrays = (reads, plan.offsets, table.bounds, table.sources, layer.weights, rows, of_gains)
            _run(sparse_loop.add_products, arrays, plan.last, plan.length, _BLOCK, rows=rows.shape[1])
        return of_images, of_gains, slopes.sum((0, 2, 3)), None, None


def _convolved(reads: Tensor, plan: _Plan, offsets: Tensor, table: _Table, weights: Tensor, bias: Tensor) -> Tensor:
    """Return the outputs of kernels on images that are laid out, likewise, (n, channels, length)."""
    from convcircuits.compiler import sparse_loop

    outputs = reads.new_empty(len(reads), len(bias), plan.length)
    arrays = (reads, offsets, table.bounds, table.sources, weights[table.order], bias, outputs)
    _run(sparse_loop.convolve, arrays, _BLOCK, rows=len(bias))
    return outputs


def _run(loop: Any, arrays: Sequence[Tensor], *numbers: int, rows: int) -> None:
    on_all_threads(loop, [*(one.detach().contiguous().numpy() for one in arrays), *numbers], rows=rows)
