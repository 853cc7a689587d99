"""Small layers: convolutions, Linear layers and BatchNorms with only some of the filters and input channels."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from convcircuits.compiler.layout import Value
from convcircuits.network.calls import ConvCall, KernelCall, LinearCall
from convcircuits.network.operations import argument, is_batch_norm


@dataclass(frozen=True)
class Part:
    """A layer that is a part of a larger one.

    Attributes:
        layer: The layer.
        filters: Index in the larger layer of each filter; -1 for one that only pads a group.
        channels: Index in the larger layer of each input channel.
    """

    layer: nn.Module
    filters: Tensor
    channels: Tensor


def part_of(call: KernelCall, weight: Tensor, bias: Tensor | None, rows: Tensor, read: Tensor) -> Part:
    """Build the layer that computes some filters of a call from the input channels that they read.

    Args:
        call: The call.
        weight: The weight that the circuit uses.
        bias: The bias that the circuit uses.
        rows: Indices of the filters to compute.
        read: The input channels that are read, bool (groups, channels or blocks).
    """
    if isinstance(call, LinearCall):
        columns = _some(read.repeat_interleave(weight.shape[1] // read.shape[1], 1)[0])
        return _linear(weight, bias, rows, columns)
    if call.groups > 1:
        return _grouped(call, weight, bias, rows, read)
    return conv(call, weight, bias, rows, _some(read[0]))


def conv(call: ConvCall, weight: Tensor, bias: Tensor | None, rows: Tensor, columns: Tensor) -> Part:
    """Build a convolution of some filters and channels, in one group."""
    device = weight.device  # indices are on the CPU, and index_select is faster than brackets
    small = weight.index_select(0, rows.to(device)).index_select(1, columns.to(device))
    return Part(_conv(call, small, None if bias is None else bias[rows], groups=1), rows, columns)


def norm(value: Value, channels: Tensor) -> nn.Module | None:
    """Build the BatchNorm of some channels, or return None if the value is not one with running statistics."""
    node = value.node
    if node is None or not is_batch_norm(node) or argument(node, "training"):
        return None
    given = {name: argument(node, name) for name in ("running_mean", "running_var", "weight", "bias")}
    like = given["running_mean"]
    if like is None or (given["weight"] is None) != (given["bias"] is None):
        return None
    kind = nn.BatchNorm2d if len(value.shape) == 3 else nn.BatchNorm1d
    eps = next(eps for eps in (argument(node, "eps"), argument(node, "epsilon")) if eps is not None)
    module = kind(len(channels), eps=eps, affine=given["weight"] is not None, device=like.device, dtype=like.dtype)
    with torch.no_grad():
        for name, values in given.items():
            if values is not None:
                getattr(module, name).copy_(values[channels])
    return module


def _some(read: Tensor) -> Tensor:
    """Return the indices of the channels that are read, at least one, so that a constant gets the size of a map."""
    return read.nonzero()[:, 0] if bool(read.any()) else torch.tensor([0])


def _linear(weight: Tensor, bias: Tensor | None, rows: Tensor, columns: Tensor) -> Part:
    module = nn.Linear(len(columns), len(rows), bias=bias is not None, device="meta")
    return Part(_filled(module, weight[rows][:, columns], None if bias is None else bias[rows]), rows, columns)


def _grouped(call: ConvCall, weight: Tensor, bias: Tensor | None, rows: Tensor, read: Tensor) -> Part:
    """Build a convolution of the remaining groups, padded to equal size with zero kernels."""
    rows, read, per_group, filters = rows.cpu(), read.cpu(), read.shape[1], len(weight) // call.groups
    of_group = torch.div(rows, filters, rounding_mode="floor")
    groups, group = of_group.unique(return_inverse=True)  # type: ignore[no-untyped-call]
    place = _places_within(group)  # of each filter in its group
    read = read[groups]
    read[~read.any(1), 0] = True  # as in _some
    of, column = read.nonzero(as_tuple=True)
    height, width = int(place.max()) + 1, int(read.sum(1).max())
    numbers = torch.full((len(groups), height), -1).index_put((group, place), rows)
    first = read.int().argmax(1, keepdim=True)
    columns = first.expand(-1, width).index_put((of, _places_within(of)), column)
    padding = torch.arange(width) >= read.sum(1, keepdim=True)
    kernels = weight[rows[:, None], columns[group]]
    kernels = kernels.masked_fill(padding[group].to(weight.device)[:, :, None, None], 0)
    small = weight.new_zeros(len(groups), height, *kernels.shape[1:]).index_put((group, place), kernels)
    biases = None
    if bias is not None:
        biases = bias.new_zeros(len(groups), height).index_put((group, place), bias[rows])
    channels = groups[:, None] * per_group + columns
    layer = _conv(call, small.flatten(0, 1), None if biases is None else biases.flatten(), groups=len(groups))
    return Part(layer, numbers.flatten(), channels.flatten())


def _places_within(group: Tensor) -> Tensor:
    """Return how many earlier entries of a tensor of indices equal each."""
    order = group.argsort(stable=True)
    counts = torch.bincount(group)
    starts = counts.cumsum(0) - counts
    return torch.empty_like(order).index_put((order,), torch.arange(len(group)) - starts[group[order]])


def _conv(call: ConvCall, weight: Tensor, bias: Tensor | None, groups: int) -> nn.Module:
    module = nn.Conv2d(
        weight.shape[1] * groups,
        len(weight),
        (weight.shape[2], weight.shape[3]),
        stride=call.stride,
        padding=call.padding,
        dilation=call.dilation,
        groups=groups,
        bias=bias is not None,
        device="meta",
    )
    return _filled(module, weight, bias)


def _filled(module: nn.Conv2d | nn.Linear, weight: Tensor, bias: Tensor | None) -> nn.Module:
    """Return a layer with a weight and a bias, which must be copies of the model's."""
    module.weight = nn.Parameter(weight.detach().contiguous())
    if bias is not None:
        module.bias = nn.Parameter(bias.detach().contiguous())
    return module
