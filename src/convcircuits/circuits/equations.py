"""The normal equations of a layer's filters: what is kept of many positions to fit gains and offsets."""

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from convcircuits.circuits.least_squares import ByProducts, ByValues, LeastSquares
from convcircuits.errors import ConvCircuitsError
from convcircuits.network.calls import ConvCall, KernelCall
from convcircuits.network.masking import Masks, read_alone

Method = Literal["kernels", "filters", "mean", "none"]
"""What is fitted; see ``METHODS``."""

FLOOR = 0.01
"""F in ``refitting``'s formula. A kernel that hardly varies on these images would get a huge gain, and may vary on
others."""

_CHUNK = 2**22  # values of what kernels add that are computed at once
_TINY = 1e-290  # below it, squares of float64 lose digits


class Equations:
    """The normal equations of some filters of a layer: sums and products of what is missing and what kernels add.

    Each filter has its unknowns at positions 1, 2, ... of the tables, as many as the widest filter, and at 0 what its
    output misses. All values are shifted by their first means, so that no digits are lost to large ones. As long as
    there are no more positions than unknowns, as in wide Linear layers, the values themselves are kept: then a system
    of the size of the positions has the same solution.

    Args:
        masks: The circuit, without gains and offsets of the layer.
        layer: Name of the layer.
        filters: Indices of the filters, those with the most kernels first.
        method: What is fitted.
    """

    def __init__(self, masks: Masks, layer: str, filters: Tensor, method: Method) -> None:
        self._masks, self._filters, self._method = replace(masks, gain={}, offset={}, constant={}), filters, method
        kernels = masks.kernels[layer].cpu()[filters]
        width = {"kernels": int(kernels.sum(1).max()), "filters": 1, "mean": 0}[method]
        self._layer, self._shape, self._eps = layer, masks.kernels[layer].shape, 0.0
        self._which = kernels.long().argsort(dim=1, descending=True, stable=True)[:, :width]
        self._there = kernels.gather(1, self._which)
        # Positions, the sum of their weights, and weighted sums of the target's squares and of the target.
        self._count, self._n, self._size, self._total = torch.zeros(4, len(filters), dtype=torch.float64)
        self._first = torch.ones(len(filters), dtype=torch.bool)
        self._few: list[tuple[Tensor, Tensor, Tensor]] = []  # filters, their values, and weights of the positions
        self._shift, self._sums = torch.zeros(2, len(filters), width + 1, dtype=torch.float64)
        self._products, self._weighted = torch.zeros(0), False

    def add(
        self,
        call: KernelCall,
        target: Float[Tensor, "o p"],
        output: Float[Tensor, "o p"],
        positions: Tensor | None,
        weights: Float[Tensor, "n"] | None = None,
    ) -> None:
        """Add the positions of a batch, for the filters that are live in the call.

        Args:
            call: The call in the circuit.
            target: The full model's output at the positions that count.
            output: The circuit's, without gains and offsets of the layer.
            positions: These positions; None for all.
            weights: What the squared error of each image is multiplied by; None for 1.
        """
        weight = target.new_ones(target.shape[1], dtype=torch.float64)
        if weights is not None:
            self._weighted = True
            weight *= weights.repeat_interleave(len(weight) // len(weights)).to(weight)
        self._eps = max(self._eps, torch.finfo(target.dtype).eps)
        running = self._masks.running(call)
        rows = torch.arange(len(running)) if call.rows is None else call.rows.cpu()
        place = torch.full(self._shape[:1], -1)  # of a filter among those that are computed, if it is live
        place[rows] = torch.where(running.any(1).cpu(), torch.arange(len(rows)), -1)
        live = (place[self._filters] >= 0).nonzero()[:, 0]
        place = place[self._filters[live]]
        missing = target - output
        added = self._added(call, running, output, positions)
        width = self._which.shape[1] + 1
        step = max(1, _CHUNK // (width * target.shape[1]))
        for some, computed in zip(torch.split(live, step), torch.split(place, step), strict=True):
            if len(some):
                values = torch.cat([missing[computed, None], added(some, computed)], 1)
                wanted = target[computed].double()  # squares of floats overflow and vanish
                self._count[some] += wanted.shape[1]
                self._n[some] += weight.sum().cpu()
                self._size[some] += (weight * wanted.square()).sum(1).cpu()
                self._total[some] += (weight * wanted).sum(1).cpu()
                self._few.append((some, values.double(), weight))
        if bool((self._count >= width).any()):
            self._reduce()

    def _reduce(self) -> None:
        """Keep sums and products of the values in their place."""
        width = self._which.shape[1] + 1
        if self._few and not len(self._products):
            self._products = torch.zeros(len(self._n), width, width, dtype=torch.float64)
        for some, values, weight in self._few:
            self._add(some, values, weight)
        self._few = []

    def _add(self, some: Tensor, values: Float[Tensor, "o width p"], weight: Float[Tensor, "p"]) -> None:
        """Add values of some filters: at 0 what is missing, then what kernels add."""
        width, new = values.shape[1], self._first[some]
        self._first[some] = False
        if bool(new.any()):
            self._shift[some[new], :width] = values[new.to(values.device)].mean(2).cpu()
        values -= self._shift[some, :width, None].to(values.device)
        weighted = weight * values if self._weighted else values
        self._sums[some, :width] += weighted.sum(2).cpu()
        self._products[some, :width, :width] += (weighted @ values.transpose(1, 2)).cpu()

    def _added(
        self, call: KernelCall, running: Bool[Tensor, "o i"], output: Float[Tensor, "o p"], positions: Tensor | None
    ) -> Callable[[Tensor, Tensor], Float[Tensor, "o width p"]]:
        """Return a function from filters to what is given a gain: each kernel's map, or their sum.

        It takes the indices of filters in the tables and among those that the call computes.
        """
        if self._method != "kernels":
            whole = output if call.bias is None else output - call.bias[:, None]
            return lambda some, computed: whole[computed, None][:, : self._which.shape[1]]
        weight, _ = self._masks.weight_and_bias(replace(call, bias=None), running)
        kernels = wide(replace(call, weight=weight).kernels)
        filters, channels = kernels.shape[1:3]
        kernels, place = kernels.flatten(0, 1), torch.arange(call.groups * channels)  # of a channel among those read
        read = running.any(0).nonzero()[:, 0]
        if isinstance(call, ConvCall) and call.groups == 1 and len(read):
            call, place = replace(call, x=call.x[:, read]), torch.zeros_like(place)
            place[read.cpu()] = torch.arange(len(read))
        else:
            call = read_alone(call, running)
        inputs = call.columns(slice(None), positions).permute(1, 2, 3, 0, 4)
        inputs = wide(inputs.flatten(0, 1).flatten(2))  # (g i, k, n p)

        def maps(some: Tensor, computed: Tensor) -> Tensor:
            there = self._there[some]
            there = there[:, : int(there.sum(1).max())]
            which = self._which[some, : there.shape[1]]
            read = place[which + computed[:, None] // filters * channels][there]
            used = kernels[computed[:, None].expand_as(which)[there], which[there]]
            values = inputs.new_zeros(there.numel(), inputs.shape[2])
            to = there.flatten().nonzero()[:, 0]
            if kernels.shape[2] == 1:
                values[to] = used * inputs[read, 0]
            else:  # all kernels that read a channel at once
                together = zip(torch.split(read.argsort(), read.bincount().tolist()), inputs, strict=False)
                for those, channel in together:
                    if len(those):
                        values[to[those]] = used[those] @ channel
            return values.reshape(*there.shape, -1)

        return maps

    def solve(self, ridge: float, toward: float, *, positive: bool) -> tuple[Float[Tensor, "o i"], Float[Tensor, "o"]]:
        """Return the gains, none below 0 if ``positive``, and the offsets of the filters.

        Raises:
            ConvCircuitsError: If what is computed is not finite.
        """
        # Along eigenvectors with smaller eigenvalues, the rounding of maps alone would make gains of any size.
        rounding = self._which.shape[1] * min(self._eps, torch.finfo(torch.float32).eps)
        if ridge <= rounding:
            self._reduce()
        n = self._n[:, None]
        if self._few:
            values, means = self._centered()
            spread = values.square().sum(2)
        else:
            means = self._sums / n
            moments = self._products - n[:, :, None] * means[:, :, None] * means[:, None]
            means, spread = means + self._shift, moments.diagonal(dim1=1, dim2=2).clamp_min(0)
        if not bool(spread.isfinite().all()):
            raise ConvCircuitsError(
                f"{self._layer} computes NaN, Inf or far too large values on these images and cannot be fitted; "
                "check how they are prepared."
            )
        # What rounding can cause, of a map and of the filter's output, is not fitted.
        noise = (8 * self._eps) ** 2 * self._size[:, None].expand_as(spread).clone()
        noise[:, 1:] += n * (8 * self._eps * means[:, 1:]) ** 2
        varies = spread > noise + _TINY
        missing = varies[:, :1] | (toward != 1)  # toward 1, a filter that misses nothing stays as it is
        free = varies[:, 1:] & missing & self._there
        target = (self._size - self._total.square() / self._n).clamp_min(0)[:, None]
        pull = ridge * (spread[:, 1:] + FLOOR * target)
        problem: LeastSquares
        if self._few:
            problem = ByValues(values, pull, toward)
        else:
            problem = ByProducts(moments, pull, toward, rounding if ridge <= rounding else None)
        change = problem.solve_positive(free) if positive else problem.solve(free)
        offset = means[:, 0] - (change * means[:, 1:]).sum(1)
        offset = torch.where(offset.abs() > (noise[:, 0] / self._n).sqrt(), offset, 0)
        gain = torch.ones(len(change), self._shape[1], dtype=torch.float64)
        gain = gain + change if self._method == "filters" else gain.scatter_add(1, self._which, change)
        return gain, offset

    def _centered(self) -> tuple[Float[Tensor, "o width p"], Float[Tensor, "o width"]]:
        """Return the values less their means, times the roots of the weights, and the means.

        There are zeros after the values of filters that have fewer.
        """
        width = self._which.shape[1] + 1
        values = torch.zeros(len(self._n), width, int(self._count.max()), dtype=torch.float64)
        weights = torch.zeros(len(values), 1, values.shape[2], dtype=torch.float64)
        begin = torch.zeros(len(self._n), dtype=torch.long)
        for some, added, weight in self._few:
            place = begin[some, None] + torch.arange(added.shape[2])
            weights[some[:, None], 0, place] = weight.cpu()
            values[some[:, None, None], torch.arange(added.shape[1])[:, None], place[:, None]] = added.cpu()
            begin[some] += added.shape[2]
        means = (weights * values).sum(2) / self._n[:, None]
        return weights.sqrt() * (values - means[..., None]), means


def sampled(call: KernelCall, output: Tensor, positions: Tensor | None) -> Float[Tensor, "o p"]:
    """Return a call's output for each filter that is computed, at some positions of all images."""
    values = call.by_position(output).flatten(1, 2).transpose(0, 1)
    values = values if positions is None else values[..., positions]
    return wide(values.flatten(1))


def wide(x: Tensor) -> Tensor:
    """Return values in a precision that can be summed."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
