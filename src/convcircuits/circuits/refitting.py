"""Refit a circuit: fit gains of its kernels and offsets of its filters, so that its layers compute what the model's do.

Layer after layer, on the inputs that the layer gets in the circuit refitted so far, each live filter o is fitted to the
full model's raw output of the same call by least squares:

    min over a, d of  sum_p (y_o(p) - sum_i a_i z_oi(p) - b_o - d)^2 + ridge sum_i (G_ii + F Y_o) (a_i - t)^2

p runs over positions of all images, z_oi is the pre-sum map of a kept kernel, G_ii its sum of squared deviations from
its mean and Y_o that of y_o, b_o the bias, and t is 1 or 0. Only the normal equations are kept, in float64. Regression
onto a full model's outputs is how channel pruning reconstructs layers (He et al., arXiv 1707.06168; Luo et al., arXiv
1707.06342).
"""

import itertools
import math
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from convcircuits.errors import ConvCircuitsError, option, whole_number
from convcircuits.network.agreement import IMAGES
from convcircuits.network.batches import Batches, Images, Progress, check_progress
from convcircuits.network.calls import KernelCall
from convcircuits.network.capture import Network
from convcircuits.network.graph import Graph, Steps, autocast
from convcircuits.network.laws import checked
from convcircuits.network.masking import Masks, Subject, read_alone
from convcircuits.network.surroundings import outside_autocast
from convcircuits.values.circuit import Circuit
from convcircuits.values.tables import LayerTable

Method = Literal["kernels", "filters", "mean", "none"]

METHODS: dict[str, str] = {
    "kernels": "a gain for each kernel and an offset for each filter",
    "filters": "a gain and an offset for each filter",
    "mean": "an offset for each filter",
    "none": "nothing",
}
"""What each method fits."""

RIDGE = 0.01
"""Default strength of the pull toward gain 1."""

FLOOR = 0.01
"""F in the formula. A kernel that hardly varies on these images would get a huge gain, and may vary on others."""

POSITIONS = 10_000
"""Default number of positions, over all images, on which a layer is fitted."""

MEMORY = 2**30
"""Default bytes for the runs that wait at a layer, and for the normal equations of a layer."""


@outside_autocast
def refit(
    model: nn.Module,
    circuit: Circuit,
    images: Images,
    *,
    method: Method = "kernels",
    ridge: float = RIDGE,
    toward: float = 1.0,
    positions: int | None = POSITIONS,
    batch_size: int = 16,
    seed: int = 0,
    memory: int = MEMORY,
    progress: Progress | None = None,
) -> Circuit:
    """Fit gains and offsets, so that each layer of a circuit computes what it does in the full model.

    Calls of a layer that runs several times share their gains. Filters and kernels that are not effective keep gain 1
    and offset 0, and so do those that miss nothing or whose maps do not vary on these images. With ``"filters"`` all
    kernels of a filter get its gain. The circuit's own calibration, if any, is replaced.

    Args:
        model: The model that the circuit belongs to.
        circuit: The circuit.
        images: The images to fit on, as for ``score``; never those that the circuit is to be measured on.
        method: What is fitted: ``"kernels"``, a gain for each kernel and an offset for each filter; ``"filters"``, one
            gain and offset for each filter; ``"mean"``, an offset alone; ``"none"`` removes the calibration.
        ridge: The pull of the gains, relative to the spread of each kernel's map; 0 for none.
        toward: The gain toward which they are pulled, 1 or 0. Toward 0, kernels of a filter that cancel each other
            fade; toward 1 they stay.
        positions: Number of positions over all images on which a layer is fitted, the same in every image, drawn at
            random; at least one an image. None for all.
        batch_size: Maximum number of images that run at once.
        seed: Seed of the drawn positions.
        memory: Bytes for the runs that wait for the gains of a layer, and for the equations of a layer. If they do not
            fit, images run again for each layer, or several times for a layer; the result is the same.
        progress: Called with the number of images done, over all passes, and their total.

    Returns:
        The circuit with new ``gain`` and ``offset``; its provenance says how they were fitted.

    Raises:
        ConvCircuitsError: If the circuit belongs to other weights, an option is invalid, or images do not fit the model
            or give values that are not finite.

    Examples:
        >>> refitted = cc.refit(model, circuit, images)
        >>> cc.evaluate(model, refitted, images).r2 > cc.evaluate(model, circuit, images).r2
        True
    """
    check_progress(progress)
    if method not in METHODS:
        raise ConvCircuitsError(f"method must be one of {', '.join(map(repr, METHODS))}; got {method!r}.")
    ridge, toward, positions = check_fit(ridge, toward, positions)
    memory = whole_number("memory, in bytes,", memory, 1)
    seed = whole_number(option("seed"), seed, 0, 2**32 - 1)
    network = Network(model)
    batches = Batches(images, device=network.device, dtype=network.dtype, batch_size=batch_size)
    first = batches.first(IMAGES)
    if not isinstance(circuit, Circuit):
        raise ConvCircuitsError(f"Expected a Circuit, got {type(circuit).__name__}.")
    subject = Subject.open(network, circuit.feature, tuple(first.shape[1:]))
    subject.check(circuit)
    checked(subject, first)
    bare = replace(circuit, gain=LayerTable(), offset=LayerTable())
    masks = subject.masks(bare, tuple(first.shape[1:]), effective=True)
    fit = Refit(
        subject,
        batches,
        method=method,
        ridge=ridge,
        toward=toward,
        positions=positions,
        seed=seed,
        memory=memory,
        progress=progress,
    )
    gain, offset = fit(masks)
    refitted = replace(bare, gain=LayerTable(gain), offset=LayerTable(offset))
    return replace(refitted, provenance=dict(circuit.provenance) | {"calibration": fit.about()})


def check_fit(ridge: float, toward: float, positions: int | None) -> tuple[float, float, int | None]:
    """Return the options of a fit if they are valid.

    Raises:
        ConvCircuitsError: If they are not.
    """
    if isinstance(ridge, bool) or not isinstance(ridge, (int, float)) or not 0 <= ridge < math.inf:
        raise ConvCircuitsError(f"ridge must be a finite number from 0; got {ridge!r}.")
    if isinstance(toward, bool) or toward not in (0, 1):
        raise ConvCircuitsError(f"toward must be 1 or 0, a gain; got {toward!r}.")
    return float(ridge), float(toward), None if positions is None else whole_number("positions", positions, 1)


class Refit:
    """The refitting of a feature's circuits on the same images; the other arguments are those of ``refit``.

    Args:
        subject: The model that the circuits belong to.
        batches: The images.
        target: The model whose layers they are fitted to, if it is another one of the same architecture.

    Attributes:
        target: The model whose layers circuits are fitted to.
        cost: Number of images that have run forward, in whole or in part, in the full model and in circuits.
        notes: Sentences on the last circuit; a refit has none.
    """

    def __init__(
        self,
        subject: Subject,
        batches: Batches,
        *,
        target: Subject | None = None,
        method: Method = "kernels",
        ridge: float = RIDGE,
        toward: float = 1.0,
        positions: int | None = POSITIONS,
        seed: int = 0,
        memory: int = MEMORY,
        progress: Progress | None = None,
    ) -> None:
        self._subject, self._batches, self._method = subject, batches, method
        self.target = target or subject
        self._ridge, self._toward = ridge, toward
        self._positions, self._seed, self._memory, self._progress = positions, seed, memory, progress
        self._images = sum(len(batch) for batch in batches)
        self._targets = _Targets(memory // 2, positions is not None and batches.total is not None)
        self.cost, self.notes = Counter(forward=0), list[str]()

    def about(self) -> dict[str, Any]:
        """Return how circuits are fitted, as JSON values."""
        return {
            "method": self._method,
            "ridge": self._ridge,
            "toward": self._toward,
            "positions": self._positions,
            "seed": self._seed,
            "images": self._batches.describe(),
        }

    def __call__(self, masks: Masks, *, like: Masks | None = None) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Fit the gains and offsets of a circuit without calibration.

        Args:
            masks: The circuit, effective.
            like: Another circuit, with its calibration, to whose layers this one is fitted in place of the full
                model's.

        Returns:
            The gains, layer name -> (out, in per group), and the offsets, layer name -> (out,), of the layers with any
            kernel; float64 for a float64 model, otherwise float32; on the CPU.
        """
        gain: dict[str, Tensor] = {}
        offset: dict[str, Tensor] = {}
        if self._method == "none":
            return gain, offset
        network = self._subject.network
        fitted = replace(masks, gain={}, offset={})  # grows with every layer
        parts = {layer: self._parts(mask.cpu()) for layer, mask in masks.kernels.items()}
        done, total = 0, self._images * sum(len(filters) for filters in parts.values())
        with torch.no_grad():
            known = self._targets if like is None else _Targets(0, usable=False)
            runs = _Runs(self._subject, self.target, fitted, like, self._batches, known, self._memory, self.cost)
            for layer, numbers in runs.layers():
                shape = masks.kernels[layer].shape
                gains, offsets = torch.ones(shape, dtype=torch.float64), torch.zeros(shape[0], dtype=torch.float64)
                for filters in parts[layer]:
                    equations = _Equations(fitted, layer, filters, self._method)
                    for images, full, circuit in runs.at(numbers):
                        call, output = circuit.call, circuit.output()
                        positions = self._drawn(call, output, len(numbers))
                        target = full.fitted(call, positions)
                        equations.add(call, target, _at(call, output, positions), positions)
                        if filters is parts[layer][-1]:
                            full.advance()
                        done += images
                        if images and self._progress is not None:
                            self._progress(done, total)
                    gains[filters], offsets[filters] = equations.solve(self._ridge, self._toward)
                if parts[layer]:
                    dtype = network.dtype if network.dtype == torch.float64 else torch.float32
                    gain[layer], offset[layer] = gains.to(dtype), offsets.to(dtype)
                if bool((gains != 1).any() | (offsets != 0).any()):  # else the layer runs as it is, without rounding
                    fitted.gain[layer] = gains.to(network.device, network.dtype)  # type: ignore[index]
                    fitted.offset[layer] = offsets.to(network.device, network.dtype)  # type: ignore[index]
        return gain, offset

    def _parts(self, kernels: Bool[Tensor, "out in"]) -> list[Tensor]:
        """Split the filters of a layer that have kernels into those whose equations fit into memory together."""
        widths = kernels.sum(1)
        filters = widths.argsort(descending=True, stable=True)[: int((widths > 0).sum())]  # like ones together
        parts = []
        while len(filters):
            width = int(widths[filters[0]]) if self._method == "kernels" else 1
            count = max(1, self._memory // (32 * (width + 1) ** 2))  # products, moments, the system and its factor
            parts.append(filters[:count])
            filters = filters[count:]
        return parts

    def _drawn(self, call: KernelCall, output: Tensor, calls: int) -> Tensor | None:
        """Return the positions on which a call is fitted; None for all."""
        count = call.by_position(output).shape[3]
        if self._positions is None:
            return None
        wanted = math.ceil(self._positions / self._images / calls)
        if wanted >= count:
            return None
        generator = torch.Generator().manual_seed(zlib.crc32(f"{self._seed}|{call.layer}|{call.turn}".encode()))
        return torch.randperm(count, generator=generator)[:wanted].sort().values.to(output.device)


class _Equations:
    """The normal equations of some filters of a layer: sums and products of what is missing and what kernels add.

    Each filter has its unknowns at positions 1, 2, ... of the tables, as many as the widest filter, and at 0 what its
    output misses. All values are shifted by their first means, so that no digits are lost to large ones.

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
        self._n, self._size, self._total = torch.zeros(3, len(filters), dtype=torch.float64)
        self._shift, self._sums = torch.zeros(2, len(filters), width + 1, dtype=torch.float64)
        self._products = torch.zeros(len(filters), width + 1, width + 1, dtype=torch.float64)

    def add(
        self, call: KernelCall, target: Float[Tensor, "o p"], output: Float[Tensor, "o p"], positions: Tensor | None
    ) -> None:
        """Add the positions of a batch, for the filters that are live in the call.

        Args:
            call: The call in the circuit.
            target: The full model's output at the positions that count.
            output: The circuit's, without gains and offsets of the layer.
            positions: These positions; None for all.
        """
        self._eps = max(self._eps, torch.finfo(target.dtype).eps)
        running = self._masks.running(call)
        rows = torch.arange(len(running)) if call.rows is None else call.rows.cpu()
        place = torch.full(self._shape[:1], -1)  # of a filter among those that are computed, if it is live
        place[rows] = torch.where(running.any(1).cpu(), torch.arange(len(rows)), -1)
        live = (place[self._filters] >= 0).nonzero()[:, 0]
        place = place[self._filters[live]]
        missing = target - output
        added = self._added(call, running, positions)
        width = self._which.shape[1] + 1
        step = max(1, _CHUNK // (width * call.kernels.shape[3] * target.shape[1]))
        for some, computed in zip(torch.split(live, step), torch.split(place, step), strict=True):
            if len(some):
                values = torch.cat([missing[computed, None], added(some, computed)], 1)
                self._add(some, target[computed].double(), values.double())  # squares of floats overflow and vanish

    def _add(self, some: Tensor, target: Float[Tensor, "o p"], values: Float[Tensor, "o width p"]) -> None:
        """Add values of some filters: at 0 what is missing, then what kernels add."""
        width, new = values.shape[1], self._n[some] == 0
        self._shift[some[new], :width] = values[new.to(values.device)].mean(2).cpu()
        values = values - self._shift[some, :width, None].to(values.device)
        self._n[some] += values.shape[2]
        self._size[some] += target.square().sum(1).cpu()
        self._total[some] += target.sum(1).cpu()
        self._sums[some, :width] += values.sum(2).cpu()
        self._products[some, :width, :width] += (values @ values.transpose(1, 2)).cpu()

    def _added(
        self, call: KernelCall, running: Bool[Tensor, "o i"], positions: Tensor | None
    ) -> Callable[[Tensor, Tensor], Float[Tensor, "o width p"]]:
        """Return a function from filters to what is given a gain: each kernel's map, or their sum.

        It takes the indices of filters in the tables and among those that the call computes.
        """
        call = read_alone(call, running)
        weight, _ = self._masks.weight_and_bias(replace(call, bias=None), running)
        if self._method != "kernels":
            whole = _at(call, call.compute(weight), positions)
            return lambda some, computed: whole[computed, None][:, : self._which.shape[1]]
        inputs = call.columns(slice(None), positions).permute(1, 2, 3, 0, 4)
        inputs = _wide(inputs.flatten(0, 1).flatten(2))  # (g i, k, n p)
        kernels = _wide(replace(call, weight=weight).kernels)
        filters, channels = kernels.shape[1:3]
        kernels = kernels.flatten(0, 1)

        def maps(some: Tensor, computed: Tensor) -> Tensor:
            width = int(self._there[some].sum(1).max())
            which = self._which[some, :width]
            read = which + computed[:, None] // filters * channels
            used = kernels[computed[:, None], which] * self._there[some, :width, None].to(kernels)
            return (used.flatten(0, 1)[:, None] @ inputs[read.flatten()]).reshape(len(some), width, -1)

        return maps

    def solve(self, ridge: float, toward: float) -> tuple[Float[Tensor, "o i"], Float[Tensor, "o"]]:
        """Return the gains and offsets of the filters.

        Raises:
            ConvCircuitsError: If what is computed is not finite.
        """
        if not bool(self._products.isfinite().all()):
            raise ConvCircuitsError(
                f"{self._layer} computes NaN, Inf or far too large values on these images and cannot be fitted; "
                "check how they are prepared."
            )
        n = self._n[:, None]
        means = self._sums / n
        moments = self._products - n[:, :, None] * means[:, :, None] * means[:, None]
        means = means + self._shift
        spread = moments.diagonal(dim1=1, dim2=2).clamp_min(0)
        # What rounding can cause, of a map and of the filter's output, is not fitted.
        noise = (8 * self._eps) ** 2 * self._size[:, None].expand_as(spread).clone()
        noise[:, 1:] += n * (8 * self._eps * means[:, 1:]) ** 2
        varies = spread > noise + _TINY
        missing = varies[:, :1] | (toward != 1)  # toward 1, a filter that misses nothing stays as it is
        free = varies[:, 1:] & missing & self._there
        scale = torch.where(free, spread[:, 1:], 1).rsqrt()
        both = free[:, :, None] & free[:, None]
        gram = torch.where(both, moments[:, 1:, 1:], 0)
        system = gram * scale[:, :, None] * scale[:, None]
        target = (self._size - self._total.square() / self._n).clamp_min(0)[:, None]
        pull = ridge * (1 + FLOOR * target * scale.square())
        system = system + torch.diag_embed(torch.where(free, pull, 1))
        wanted = torch.where(free, (moments[:, 1:, 0] + (1 - toward) * gram.sum(2)) * scale, 0)[:, :, None]
        # Along eigenvectors with smaller eigenvalues, the rounding of maps alone would make gains of any size.
        rounding = free.shape[1] * min(self._eps, torch.finfo(torch.float32).eps)
        if ridge > rounding:
            change = torch.cholesky_solve(wanted, torch.linalg.cholesky(system))
        else:  # maps that depend on each other get the smallest change
            change = torch.linalg.pinv(system, rtol=rounding, hermitian=True) @ wanted
        change = torch.where(free, toward - 1 + change[..., 0] * scale, 0)
        offset = means[:, 0] - (change * means[:, 1:]).sum(1)
        offset = torch.where(offset.abs() > (noise[:, 0] / self._n).sqrt(), offset, 0)
        gain = torch.ones(len(change), self._shape[1], dtype=torch.float64)
        gain = gain + change if self._method == "filters" else gain.scatter_add(1, self._which, change)
        return gain, offset


_CHUNK = 2**22  # values of what kernels read that are gathered at once
_TINY = 1e-290  # below it, squares of float64 lose digits


def _at(call: KernelCall, output: Tensor, positions: Tensor | None) -> Float[Tensor, "o p"]:
    """Return a call's output for each filter that is computed, at some positions of all images."""
    values = call.by_position(output).flatten(1, 2).transpose(0, 1)
    values = values if positions is None else values[..., positions]
    return _wide(values.flatten(1))


def _wide(x: Tensor) -> Tensor:
    """Return values in a precision that can be summed."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class _Run:
    """A run of a graph that waits at a kernel call.

    Attributes:
        number: Number of kernel calls before it.
        call: The kernel call.
    """

    def __init__(self, steps: Steps, kernel: Callable[[KernelCall], Tensor]) -> None:
        self._steps, self._kernel, self.number = steps, kernel, 0
        self.call, self._dtype = next(steps)

    def output(self) -> Tensor:
        """Compute the call."""
        with autocast(self.call.x.device.type, self._dtype):
            return self._kernel(self.call)

    def advance(self, output: Tensor) -> None:
        """Continue to the next kernel call, if there is one, with the output of this one."""
        with suppress(StopIteration):
            self.call, self._dtype = self._steps.send(output)
            self.number += 1

    def advance_to(self, number: int) -> None:
        """Continue to a kernel call."""
        while self.number < number:
            self.advance(self.output())


class _Targets:
    """What layers are fitted to, kept from one refit to the next: the full model's outputs at the drawn positions.

    Args:
        memory: The most bytes to keep; beyond them, nothing is kept.
        usable: Whether the images and their order are the same in every refit, and positions are drawn.
    """

    def __init__(self, memory: int, usable: bool) -> None:
        self._memory, self._usable = memory, usable
        self._kept: dict[tuple[int, int], Tensor] = {}

    def keep(self, batch: int, number: int, target: Tensor) -> None:
        """Keep the target of a kernel call of a batch."""
        if self._usable and (batch, number) not in self._kept:
            self._memory -= target.numel() * target.element_size()
            self._usable = self._memory >= 0
            self._kept[batch, number] = target
        if not self._usable:
            self._kept.clear()

    def get(self, batch: int, number: int) -> Tensor | None:
        """Return the target of a kernel call of a batch, if it is kept."""
        return self._kept.get((batch, number))


class _Full:
    """The full model's run on a batch, which is made only if a target is not kept."""

    def __init__(self, batch: int, targets: _Targets, start: Callable[[], _Run]) -> None:
        self._batch, self._targets, self._start = batch, targets, start
        self._run: _Run | None = None
        self._output: Tensor | None = None
        self._number = 0

    def advance_to(self, number: int) -> None:
        """Continue to a kernel call."""
        self._number, self._output = number, None

    def fitted(self, call: KernelCall, positions: Tensor | None) -> Float[Tensor, "o p"]:
        """Return the output of the kernel call at the positions on which it is fitted; ``call`` says how it lies."""
        kept = self._targets.get(self._batch, self._number)
        if kept is not None:
            return kept
        if self._output is None:
            self._run = self._run or self._start()
            self._run.advance_to(self._number)
            self._output = self._run.output()
        target = _at(call, self._output, positions)
        self._targets.keep(self._batch, self._number, target)
        return target

    def advance(self) -> None:
        """Continue to the next kernel call, if there is one."""
        if self._run is not None and self._output is not None:
            self._run.advance(self._output)
        self._number, self._output = self._number + 1, None


class _Runs:
    """Runs of the full model and of a circuit on every batch, which wait for each other at every layer.

    So fitting all layers costs one forward pass of each, and one of the circuit alone if the targets are kept. Batches
    for which there is no room start anew at every layer, and so do all batches of a loader if there is none for one of
    them.

    Args:
        subject: The feature of the circuit's model.
        target: The feature of the full model.
        masks: The circuit, whose calibration may grow.
        like: The circuit that runs in place of the full model; None for the full model.
        batches: The images.
        targets: What is kept of the full model's run.
        memory: Bytes for what waits.
        cost: Counts the images that run.
    """

    def __init__(
        self,
        subject: Subject,
        target: Subject,
        masks: Masks,
        like: Masks | None,
        batches: Batches,
        targets: _Targets,
        memory: int,
        cost: Counter[str],
    ) -> None:
        self._targets = targets
        self._subject, self._target, self._masks, self._like, self._batches = subject, target, masks, like, batches
        self._cost = cost
        graph = subject.survey.paths.graph
        self._calls = [node.call.layer for node in graph.nodes if node.call is not None]
        self._room = memory // max(1, 2 * _waiting(graph) * batches.batch_size // graph.shapes[0][0])
        self._held: list[tuple[int, _Full, _Run]] = []
        self._all_held = False

    def layers(self) -> Iterator[tuple[str, list[int]]]:
        """Yield each layer of the circuit and the numbers of its kernel calls, in the order of their first ones."""
        for layer in dict.fromkeys(self._calls):
            if layer in self._masks.kernels:
                yield layer, [number for number, name in enumerate(self._calls) if name == layer]

    def at(self, numbers: list[int]) -> Iterator[tuple[int, _Full, _Run]]:
        """Yield the full model's run and the circuit's for each batch and each of some kernel calls of a layer.

        The first value is the number of images that are done with them.
        """
        # Later calls depend on earlier ones, so runs that wait for several calls of a layer cannot be kept.
        every = self._every() if len(numbers) == 1 else itertools.starmap(self._started, enumerate(self._batches))
        for count, full, circuit in every:
            for number in numbers:
                full.advance_to(number)
                circuit.advance_to(number)
                yield count if number == numbers[-1] else 0, full, circuit

    def _every(self) -> Iterator[tuple[int, _Full, _Run]]:
        if self._all_held:
            yield from self._held
            return
        number = 0
        for number, images in enumerate(self._batches):
            runs = self._held[number] if number < len(self._held) else self._started(number, images)
            if len(self._held) == number < self._room:
                self._held.append(runs)
            elif self._batches.total is None:  # a loader may shuffle: then all runs are held, or none
                self._held, self._room = [], 0
            yield runs
        self._all_held = number < len(self._held)

    def _started(self, batch: int, images: Tensor) -> tuple[int, _Full, _Run]:
        kernel = (lambda call: call.compute()) if self._like is None else self._like.kernel

        def full() -> _Run:
            self._cost["forward"] += len(images)
            return _Run(self._target.steps(images, self._like), kernel)

        self._cost["forward"] += len(images)
        circuit = _Run(self._subject.steps(images, self._masks), self._masks.kernel)
        return len(images), _Full(batch, self._targets, full), circuit


def _waiting(graph: Graph) -> int:
    """Return the most bytes that values of a graph take while a run waits at a kernel call."""
    sizes = [shape.numel() * dtype.itemsize for shape, dtype in zip(graph.shapes, graph.dtypes, strict=True)]
    alive = most = sizes[0]
    for node, unread in zip(graph.nodes, graph.last_uses(), strict=True):
        if node.call is not None:
            most = max(most, alive)
        alive += sum(sizes[n] for n in node.outputs if n is not None) - sum(sizes[n] for n in unread)
    return most
