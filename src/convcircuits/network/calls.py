"""A kernel call, that is one call of ``conv2d`` or ``linear``, in the notation of the formulas.

Shape letters: n image, g group, o filter in the group, i channel in the group, k weight in the kernel, p position.
"""

import functools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

_FEW, _MANY = 256, 32  # positions and channels for which matrix products are quicker than a convolution's backward pass
_BLOCK = 8  # images for which such products are held at once


@dataclass(frozen=True)
class Lattice:
    """What the kernels of a call read, and the gradient of its output, laid out along one axis without any repeats.

    At position p, weight k of a kernel reads ``reads[..., offsets[k] + p]``. The gradient is zero at positions between
    the rows of the output.

    Attributes:
        reads: (g, i, length).
        offsets: The offset of each weight of a kernel.
        gradient: (g, o, p), with a multiple of ``MULTIPLE`` positions, which fill the vectors of a processor.
        size: Number of positions of one image; images follow each other.
    """

    reads: Float[Tensor, "g i length"]
    offsets: list[int]
    gradient: Float[Tensor, "g o p"]
    size: int

    MULTIPLE: ClassVar[int] = 64

    def weight_gradients(self, images: slice) -> Iterator[Float[Tensor, "n o i"]]:
        """Yield dL_n/dw of some images for one weight of each kernel after another. There must be one group."""
        start, count = images.start * self.size, images.stop - images.start

        def by_image(laid_out: Float[Tensor, "1 c _"], begin: int) -> Float[Tensor, "n c p"]:
            cut = laid_out[0, :, begin : begin + count * self.size]
            return cut.view(len(cut), count, self.size).transpose(0, 1)

        slopes = by_image(self.gradient, start)
        for offset in self.offsets:
            yield slopes @ by_image(self.reads, start + offset).transpose(1, 2)

    def joined(self) -> "Lattice":
        """Return a lattice of whole filters: one input of each group, with the weights of all its kernels."""
        channels, length = self.reads.shape[1:]
        offsets = [channel * length + offset for channel in range(channels) for offset in self.offsets]
        return replace(self, reads=self.reads.flatten(1)[:, None], offsets=offsets)


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

    @property
    def positions(self) -> int:
        """Number of positions of the output."""
        return math.prod(
            (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
            for size, padding, dilation, kernel, stride in zip(
                self.x.shape[2:], self.padding, self.dilation, self.weight.shape[2:], self.stride, strict=True
            )
        )

    def per_kernel(self, values: Shaped[Tensor, "out in"]) -> Shaped[Tensor, "..."]:
        """Reshape one value per kernel, (out, in per group), so that it broadcasts with the weight."""
        return values[:, :, None, None]

    def compute(self, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        """Compute the call, with another weight and bias if a weight is given."""
        if weight is None:
            weight, bias = self.weight, self.bias
        return torch.conv2d(self.x, weight, bias, self.stride, self.padding, self.dilation, self.groups)

    def sketch(self) -> Tensor:
        """Compute the call with one channel of each group, for an output of the same shape, dtype and memory format."""
        weight, channels = self.weight[:, :1], self.x.shape[1] // self.groups
        return torch.conv2d(
            self.x[:, ::channels], weight, self.bias, self.stride, self.padding, self.dilation, self.groups
        )

    def part(self, filters: Tensor, channels: Tensor) -> "ConvCall":
        """Return a call of one group with only some of its computed filters and of its channels, int64 indices."""
        return replace(
            self,
            x=self.x.index_select(1, channels),
            weight=self.weight.index_select(0, filters).index_select(1, channels),
            bias=None if self.bias is None else self.bias[filters],
            rows=filters if self.rows is None else self.rows[filters],
            live=None if self.live is None else self.live[:, channels],
        )

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

    def lattice(self, gradient: Float[Tensor, "n c h w"], images: slice = slice(None)) -> Lattice:
        """Lay out the inputs of some images, and the gradient of their outputs."""
        x, gradient = self.x[images], gradient[images]
        (n, channels), (down, across), (top, left) = x.shape[:2], self.stride, self.padding
        (out, *shape), groups = gradient.shape[1:], self.groups
        # The zeros before a row are also those after the row before it, and those above an image those below another.
        sizes = zip(x.shape[2:], self.padding, self.stride, shape, strict=True)
        rows, columns = (max(-(-(size + padding) // stride), length) for size, padding, stride, length in sizes)
        cells = n * rows * columns
        positions = -(-cells // Lattice.MULTIPLE) * Lattice.MULTIPLE
        taps = [
            (divmod(row * self.dilation[0], down), divmod(column * self.dilation[1], across))
            for row in range(self.weight.shape[2])
            for column in range(self.weight.shape[3])
        ]
        shifts = [row * columns + column for (row, _), (column, _) in taps]
        phases = [(row, column) for (_, row), (_, column) in taps]  # pixels that are a stride apart share a plane
        planes = {phase: number for number, phase in enumerate(dict.fromkeys(phases))}
        length = positions + max(shifts)
        reads = x.new_zeros(channels, len(planes), length)
        cut = reads[:, :, :cells].view(channels, len(planes), n, rows, columns)
        for (row, column), plane in planes.items():
            part = x[:, :, (row - top) % down :: down, (column - left) % across :: across].transpose(0, 1)
            first, begin = -(-(top - row) // down), -(-(left - column) // across)
            cut[:, plane, :, first : first + part.shape[2], begin : begin + part.shape[3]] = part
        slopes = gradient.new_zeros(out, positions)
        held = slopes[:, :cells].view(out, n, rows, columns)
        held[:, :, : shape[0], : shape[1]] = gradient.transpose(0, 1)
        return Lattice(
            reads.reshape(groups, channels // groups, -1),
            [planes[phase] * length + shift for phase, shift in zip(phases, shifts, strict=True)],
            slopes.reshape(groups, out // groups, positions),
            rows * columns,
        )

    def presum_maps(self, image: int, filter: int) -> Float[Tensor, "g i p"]:
        """Return the pre-sum maps of one filter of each group on one image, (g, i, p)."""
        weight = self.weight.reshape(self.groups, -1, *self.weight.shape[1:])[:, filter].flatten(0, 1)[:, None]
        x = self.x[image : image + 1]
        # One kernel for each channel that is read: a depthwise convolution.
        z = torch.conv2d(x, weight, None, self.stride, self.padding, self.dilation, len(weight))
        return z.reshape(self.groups, len(weight) // self.groups, -1)

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

    def narrowed(self, gradient: Float[Tensor, "n c h w"]) -> tuple["ConvCall", Float[Tensor, "n c _ _"]]:
        """Return a call on the smallest windows of the input that hold all positions with a gradient, and the gradient.

        The windows of all images have one size. If a feature has one position, they are its receptive field.
        """
        rims = (gradient[:, :, 0], gradient[:, :, -1]), (gradient[..., 0], gradient[..., -1])
        if all(bool((one.flatten(1).any(1) & other.flatten(1).any(1)).any()) for one, other in rims):
            return self, gradient  # most maps: a look at their rims is enough
        used = (gradient != 0).any(1)
        (rows, height), (columns, width) = _spans(used.any(2)), _spans(used.any(1))
        if (height, width) == tuple(gradient.shape[2:]):
            return self, gradient
        x = F.pad(self.x, (self.padding[1], self.padding[1], self.padding[0], self.padding[0]))
        tall, wide = (
            (count - 1) * stride + dilation * (size - 1) + 1
            for count, stride, dilation, size in zip(
                (height, width), self.stride, self.dilation, self.weight.shape[2:], strict=True
            )
        )
        x = _windows(x, rows * self.stride[0], columns * self.stride[1], tall, wide)
        return replace(self, x=x, padding=(0, 0)), _windows(gradient, rows, columns, height, width)

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

    def weight_gradients(self, gradient: Float[Tensor, "n ..."]) -> Iterator[Float[Tensor, "g o i k"]]:
        """Yield dL_n/dw for one image after another, (g, o, i, k)."""
        if self.few_positions(gradient):
            lattice = self.lattice(gradient)
            for n in range(len(gradient)):
                yield torch.stack(list(lattice.weight_gradients(slice(n, n + 1))), 3)  # one image, and one group
        else:
            yield from (self.weight_gradient(gradient, slice(n, n + 1)) for n in range(len(gradient)))

    def absolute_weight_gradients(self, gradient: Float[Tensor, "n ..."]) -> Float[Tensor, "g o i k"]:
        """Return the sum of |dL_n/dw| over images, (g, o, i, k)."""
        if not self.few_positions(gradient):
            return _sum(one.abs_() for one in self.weight_gradients(gradient))
        groups, out, inputs, weights = self.kernels.shape
        lattice, total = self.lattice(gradient), gradient.new_zeros(groups, weights, out, inputs)
        for images in _blocks(len(gradient)):
            for sums, slopes in zip(total[0], lattice.weight_gradients(images), strict=True):
                sums += slopes.abs_().sum(0)
        return total.permute(0, 2, 3, 1)

    def kernel_gradients(self, gradient: Float[Tensor, "n ..."]) -> Iterator[Float[Tensor, "g o i"]]:
        """Yield the sum of w dL_n/dw over the weights of each kernel for one image after another, (g, o, i)."""
        if not self.few_positions(gradient):
            yield from (one.mul_(self.kernels).sum(3) for one in self.weight_gradients(gradient))
            return
        lattice, weights = self.lattice(gradient), self.kernels[0].permute(2, 0, 1).contiguous()
        for images in _blocks(len(gradient)):
            sums = weights.new_zeros(images.stop - images.start, *weights.shape[1:])
            for weight, slopes in zip(weights, lattice.weight_gradients(images), strict=True):
                sums.addcmul_(slopes, weight)
            yield from sums[:, None]

    def few_positions(self, gradient: Float[Tensor, "n c h w"]) -> bool:
        """Return whether an image has so few that matrix products find dL_n/dw faster than a convolution does."""
        return self.groups == 1 and self.x.is_cpu and gradient[0, 0].numel() <= _FEW and self.x.shape[1] >= _MANY

    def weight_gradient(
        self, gradient: Float[Tensor, "n ..."], images: slice = slice(None)
    ) -> Float[Tensor, "g o i k"]:
        """Return the sum of dL_n/dw over images, (g, o, i, k)."""
        result: Tensor = torch.ops.aten.convolution_backward(
            gradient[images],
            self.x[images],
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

    def input_gradient(self, gradient: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c _ _"]:
        """Return dL/dx, given the gradient of the output."""
        result: Tensor = torch.ops.aten.convolution_backward(
            gradient,
            self.x,
            self.weight,
            None,
            self.stride,
            self.padding,
            self.dilation,
            False,
            (0, 0),
            self.groups,
            (True, False, False),
        )[0]
        return result


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

    @property
    def positions(self) -> int:
        """Number of positions of the output: of vectors in an image."""
        return math.prod(self.x.shape[1:-1])

    def per_kernel(self, values: Shaped[Tensor, "out in"]) -> Shaped[Tensor, "..."]:
        """Expand one value per kernel, (out, blocks), to the shape of the weight."""
        return values.repeat_interleave(self.weight.shape[1] // self.blocks, 1)

    def compute(self, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        """Compute the call, with another weight and bias if a weight is given."""
        if weight is None:
            weight, bias = self.weight, self.bias
        return F.linear(self.x, weight, bias)

    def sketch(self) -> Tensor:
        """Compute the call with one input, for an output of the same shape and dtype."""
        return F.linear(self.x[..., :1], self.weight[:, :1], self.bias)

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

    def presum_maps(self, image: int, filter: int) -> Float[Tensor, "g i p"]:
        """Return the pre-sum maps of one filter on one image, (1, i, p)."""
        return torch.einsum("ik,ikp->ip", self.kernels[0, filter], self.columns(slice(image, image + 1))[0, 0])[None]

    def narrowed(self, gradient: Float[Tensor, "n ..."]) -> tuple["LinearCall", Float[Tensor, "n ..."]]:
        """Return the call and the gradient as they are: vectors have no windows."""
        return self, gradient

    def read_totals(self) -> Float[Tensor, "g i k"]:
        """Return the inputs of the kernels summed over images and positions, (1, i, k), float64."""
        return self.x.reshape(-1, self.x.shape[-1]).sum(0, dtype=torch.float64).reshape(1, self.blocks, -1)

    def by_position(self, gradient: Float[Tensor, "n ..."]) -> Float[Tensor, "n g o p"]:
        """Reshape a gradient of the output to (n, 1, o, p)."""
        return gradient.reshape(len(gradient), 1, -1, gradient.shape[-1]).transpose(2, 3)

    def weight_gradients(self, gradient: Float[Tensor, "n ..."]) -> Iterator[Float[Tensor, "g o i k"]]:
        """Yield dL_n/dw for one image after another, (1, o, i, k)."""
        yield from (self.weight_gradient(gradient, slice(n, n + 1)) for n in range(len(gradient)))

    def absolute_weight_gradients(self, gradient: Float[Tensor, "n ..."]) -> Float[Tensor, "g o i k"]:
        """Return the sum of |dL_n/dw| over images, (1, o, i, k)."""
        return _sum(one.abs_() for one in self.weight_gradients(gradient))

    def kernel_gradients(self, gradient: Float[Tensor, "n ..."]) -> Iterator[Float[Tensor, "g o i"]]:
        """Yield the sum of w dL_n/dw over the weights of each kernel for one image after another, (1, o, i)."""
        yield from (one.mul_(self.kernels).sum(3) for one in self.weight_gradients(gradient))

    def few_positions(self, gradient: Float[Tensor, "n ..."]) -> bool:
        """Return True: dL_n/dw is a matrix product."""
        return True

    def weight_gradient(
        self, gradient: Float[Tensor, "n ..."], images: slice = slice(None)
    ) -> Float[Tensor, "g o i k"]:
        """Return the sum of dL_n/dw over images, (1, o, i, k)."""
        g = gradient[images].reshape(-1, gradient.shape[-1])
        return (g.T @ self.x[images].reshape(-1, self.x.shape[-1])).reshape(self.kernels.shape)

    def input_gradient(self, gradient: Float[Tensor, "n ..."]) -> Float[Tensor, "n ..."]:
        """Return dL/dx, given the gradient of the output."""
        return gradient @ self.weight


KernelCall = ConvCall | LinearCall


def computed_at(call: KernelCall, positions: Tensor) -> Float[Tensor, "n out p"]:
    """Return the output of a call at some positions, the same in every image, without computing the rest."""
    output = torch.einsum("goik,ngikp->ngop", call.kernels, call.columns(slice(None), positions)).flatten(1, 2)
    return output if call.bias is None else output + call.bias[:, None]


def _sum(tables: Iterable[Tensor]) -> Tensor:
    """Return the sum of tables, in the first of them."""
    return functools.reduce(Tensor.add_, tables)


def _blocks(images: int) -> Iterator[slice]:
    return (slice(start, min(start + _BLOCK, images)) for start in range(0, images, _BLOCK))


def _spans(used: Bool[Tensor, "n length"]) -> tuple[Tensor, int]:
    """Return where windows of one length begin, (n,), and the length, so that they cover all that is used."""
    length = used.shape[1]
    numbers = torch.arange(length, device=used.device)
    first = torch.where(used, numbers, length - 1).amin(1)
    last = torch.where(used, numbers, 0).amax(1)
    longest = int((last - first).amax().clamp_min(0)) + 1
    return first.clamp_max(length - longest), longest


def _windows(x: Tensor, rows: Tensor, columns: Tensor, height: int, width: int) -> Tensor:
    """Return a window of each image, given its first row and column: (n, c, height, width)."""
    n, c = (torch.arange(size, device=x.device) for size in x.shape[:2])
    h = rows[:, None] + torch.arange(height, device=x.device)
    w = columns[:, None] + torch.arange(width, device=x.device)
    return x[n[:, None, None, None], c[:, None, None], h[:, None, :, None], w[:, None, None, :]]
