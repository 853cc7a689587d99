"""Refit a circuit: fit gains of its kernels and offsets of its filters, so that its layers compute what the model's do.

Layer after layer, on the inputs that the layer gets in the circuit refitted so far, each live filter o is fitted to the
full model's raw output of the same call by least squares:

    min over a, b of  sum_p (y_o(p) - sum_i a_i z_oi(p) - b)^2 + ridge sum_i G_ii (a_i - 1)^2

p runs over positions of all images, z_oi is the pre-sum map of a kept kernel and G_ii its sum of squared deviations
from its mean. Only the normal equations are kept, in float64. Regression onto a full model's outputs is how channel
pruning reconstructs layers (He et al., arXiv 1707.06168; Luo et al., arXiv 1707.06342).
"""

import math
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
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
from convcircuits.network.masking import Masks, Subject
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

POSITIONS = 10_000
"""Default number of positions, over all images, on which a layer is fitted."""

MEMORY = 2**30
"""Default bytes for runs that wait at a layer, and for the normal equations of one layer."""


@outside_autocast
def refit(
    model: nn.Module,
    circuit: Circuit,
    images: Images,
    *,
    method: Method = "kernels",
    ridge: float = RIDGE,
    positions: int | None = POSITIONS,
    batch_size: int = 16,
    seed: int = 0,
    memory: int = MEMORY,
    progress: Progress | None = None,
) -> Circuit:
    """Fit gains and offsets, so that each layer of a circuit computes what it does in the full model.

    Calls of a layer that runs several times share their gains. Kernels and filters that are not effective, and kernels
    whose maps do not vary on these images, keep gain 1. The circuit's own calibration, if any, is replaced.

    Args:
        model: The model that the circuit belongs to.
        circuit: The circuit.
        images: The images to fit on, as for ``score``; never those that the circuit is to be measured on.
        method: What is fitted: ``"kernels"``, a gain for each kernel and an offset for each filter; ``"filters"``, one
            gain and offset for each filter; ``"mean"``, an offset alone; ``"none"`` removes the calibration.
        ridge: The pull of the gains toward 1, relative to the spread of each kernel's map; 0 for none.
        positions: Number of positions over all images on which a layer is fitted, the same in every image, drawn at
            random; at least one an image. None for all.
        batch_size: Maximum number of images that run at once.
        seed: Seed of the drawn positions.
        memory: Bytes for runs that wait at a layer; batches beyond it are run again for each layer.
        progress: Called with the number of images done, over all layers, and their total.

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
    ridge, positions = check_fit(ridge, positions)
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
        subject, batches, method=method, ridge=ridge, positions=positions, seed=seed, memory=memory, progress=progress
    )
    gain, offset = fit(masks)
    refitted = replace(bare, gain=LayerTable(gain), offset=LayerTable(offset))
    return replace(refitted, provenance=dict(circuit.provenance) | {"calibration": fit.about(refitted)})


def check_fit(ridge: float, positions: int | None) -> tuple[float, int | None]:
    """Return the options of a fit if they are valid.

    Raises:
        ConvCircuitsError: If they are not.
    """
    if isinstance(ridge, bool) or not isinstance(ridge, (int, float)) or not 0 <= ridge < math.inf:
        raise ConvCircuitsError(f"ridge must be a finite number from 0; got {ridge!r}.")
    return float(ridge), None if positions is None else whole_number("positions", positions, 1)


class Refit:
    """The refitting of a feature's circuits on the same images; the arguments are those of ``refit``.

    Attributes:
        notes: Sentences on what could not be fitted as asked.
    """

    def __init__(
        self,
        subject: Subject,
        batches: Batches,
        *,
        method: Method = "kernels",
        ridge: float = RIDGE,
        positions: int | None = POSITIONS,
        seed: int = 0,
        memory: int = MEMORY,
        progress: Progress | None = None,
    ) -> None:
        self._subject, self._batches, self._method, self._ridge = subject, batches, method, ridge
        self._positions, self._seed, self._memory, self._progress = positions, seed, memory, progress
        self._images = batches.total or sum(len(batch) for batch in batches)
        self.notes: list[str] = []

    def about(self, circuit: Circuit) -> dict[str, Any]:
        """Return how a circuit's calibration was fitted, as JSON values."""
        return {
            "method": self._method,
            "ridge": self._ridge,
            "positions": self._positions,
            "seed": self._seed,
            "constants": circuit.constants,
            "images": self._batches.describe(),
        } | ({"notes": self.notes} if self.notes else {})

    def __call__(self, masks: Masks) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Fit the gains and offsets of a circuit without calibration.

        Args:
            masks: The circuit, effective.

        Returns:
            The gains, layer name -> (out, in per group), and the offsets, layer name -> (out,); float64 for a float64
            model, otherwise float32; on the CPU.
        """
        self.notes = []
        gain: dict[str, Tensor] = {}
        offset: dict[str, Tensor] = {}
        if self._method == "none":
            for _ in self._batches:  # counted and hashed all the same
                pass
            return gain, offset
        fitted = replace(masks, gain={}, offset={})  # grows with every layer
        with torch.no_grad():
            runs = _Runs(self._subject, fitted, self._batches, self._memory)
            for numbers in runs.layers():
                equations = self._equations(runs, fitted, numbers)
                if equations is None:
                    continue
                layer = runs.calls[numbers[0]].layer
                gain[layer], offset[layer] = equations.solve(self._ridge)
                device, dtype = self._subject.network.device, self._subject.network.dtype
                fitted.gain[layer], fitted.offset[layer] = (  # type: ignore[index]
                    values[layer].to(device, dtype) for values in (gain, offset)
                )
        return gain, offset

    def _equations(self, runs: "_Runs", masks: Masks, numbers: list[int]) -> "_Equations | None":
        """Gather the normal equations of a layer, given its calls; None if none of its kernels runs."""
        equations: _Equations | None = None
        for full, circuit in runs.at(numbers):
            call, running = circuit.call, masks.running(circuit.call)
            if not bool(running.any()):
                circuit.advance()
                full.advance()
                continue
            target, output = full.output(), circuit.output()
            positions = self._drawn(call, target, len(numbers))
            if equations is None:
                equations = self._begun(call, masks)
            equations.add(call, running, target, output, positions)
            full.advance(target)
            if len(numbers) > 1:  # else it waits for the gains
                circuit.advance(output)
        return equations

    def _begun(self, call: KernelCall, masks: Masks) -> "_Equations":
        """Return the empty equations of a layer; with one gain per filter if there is no room for one per kernel."""
        kernels = masks.kernels[call.layer].cpu()
        kernels = kernels if call.rows is None else kernels[call.rows.cpu()]
        width = int(kernels.sum(1).max())
        method, size = self._method, len(kernels) * (width + 1) ** 2 * 8
        if method == "kernels" and size > self._memory:
            method = "filters"
            self.notes.append(
                f"{call.layer} has up to {width:,} kernels in a filter, whose equations take {size / 2**30:.1f} GiB; "
                "its filters got one gain each."
            )
        return _Equations(call, masks, method)

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
    """The normal equations of one layer: means and co-moments of what its kernels add, and of what is missing.

    Filters have different numbers of kernels; all are filled up with empty ones to the same width.

    Args:
        call: A call of the layer.
        masks: The circuit.
        method: What is fitted.
    """

    def __init__(self, call: KernelCall, masks: Masks, method: Method) -> None:
        self._masks, self._rows = masks, None if call.rows is None else call.rows.cpu()
        self._shape, self._method = masks.kernels[call.layer].shape, method
        self._eps = torch.finfo(call.weight.dtype).eps
        mask = masks.kernels[call.layer].cpu()
        mask = mask if self._rows is None else mask[self._rows]
        self._live = mask.any(1)
        order = mask.long().argsort(dim=1, descending=True, stable=True)
        width = {"kernels": int(mask.sum(1).max()), "filters": 1, "mean": 0}[method]
        self._which, self._there = order[:, :width], mask.gather(1, order[:, :width])
        self._n, self._size = 0, torch.zeros(len(mask), dtype=torch.float64)
        self._shift: Tensor | None = None
        self._sums = torch.zeros(len(mask), width + 1, dtype=torch.float64)
        self._products = torch.zeros(len(mask), width + 1, width + 1, dtype=torch.float64)

    def add(
        self, call: KernelCall, running: Bool[Tensor, "o i"], target: Tensor, output: Tensor, positions: Tensor | None
    ) -> None:
        """Add a batch.

        Args:
            call: The call in the circuit.
            running: The kernels that run in it.
            target: The full model's output.
            output: The circuit's output, without gains and offsets of the layer.
            positions: The positions that count; None for all.
        """
        target, output = (call.by_position(x).flatten(1, 2) for x in (target, output))
        if positions is not None:
            target, output = target[..., positions], output[..., positions]
        missing = (target - output).transpose(0, 1).flatten(1)[:, None]  # (o, 1, n p)
        values = missing
        if self._method != "mean":
            values = torch.cat([self._added(call, running, positions), missing], 1)
        if not bool(values.isfinite().all()):
            raise ConvCircuitsError(
                f"{call.layer} computes NaN or Inf on these images and cannot be fitted; check how they are prepared."
            )
        if self._shift is None:
            self._shift = values.mean(2, keepdim=True)  # so that no digits are lost to a large mean
        values = values - self._shift
        self._n += values.shape[2]
        self._sums += values.sum(2).double().cpu()
        self._products += (values @ values.transpose(1, 2)).double().cpu()
        self._size += target.transpose(0, 1).flatten(1).double().square().sum(1).cpu()

    def _added(
        self, call: KernelCall, running: Bool[Tensor, "o i"], positions: Tensor | None
    ) -> Float[Tensor, "o width np"]:
        """Return what is given a gain, at each position: each kernel's map, or the sum of a filter's."""
        uncalibrated = replace(self._masks, gain={}, offset={}, constant={})
        weight, _ = uncalibrated.weight_and_bias(replace(call, bias=None), running)
        if self._method == "filters":
            whole = call.by_position(call.compute(weight)).flatten(1, 2)
            whole = whole if positions is None else whole[..., positions]
            return whole.transpose(0, 1).flatten(1)[:, None]
        filters, width = self._which.shape
        columns = call.columns(slice(None), positions)  # (n, g, i, k, p)
        n, groups, inputs, k, p = columns.shape
        columns, kernels = columns.flatten(1, 2), replace(call, weight=weight).kernels.flatten(0, 1)  # (o, i, k)
        group = torch.arange(filters) // (filters // groups)
        maps = []
        step = max(1, _CHUNK // max(1, n * width * k * p))
        for some in torch.split(torch.arange(filters), step):
            which = self._which[some]
            read = columns[:, (which + group[some, None] * inputs).flatten().to(columns.device)]
            used = kernels[some].gather(1, which.to(kernels.device)[:, :, None].expand(-1, -1, k))
            used = used * self._there[some].to(used)[:, :, None]
            z = torch.einsum("nckp,ck->cnp", read, used.flatten(0, 1))
            maps.append(z.reshape(len(some), width, n * p))
        return torch.cat(maps)

    def solve(self, ridge: float) -> tuple[Float[Tensor, "out i"], Float[Tensor, "out"]]:
        """Return the gains and offsets."""
        assert self._shift is not None
        shift = self._shift[..., 0].double().cpu()
        means = self._sums / self._n
        moments = self._products - self._n * means[:, :, None] * means[:, None]
        means = means + shift
        spread = moments.diagonal(dim1=1, dim2=2).clamp_min(0)
        # What rounding alone can cause is not fitted.
        noise = self._n * (8 * self._eps * means) ** 2
        noise[:, -1] = self._size * (8 * self._eps) ** 2
        varies = spread > noise
        free = varies[:, :-1] & varies[:, -1:] & self._live[:, None]
        free = free & self._there if self._method == "kernels" else free
        scale = torch.where(free, spread[:, :-1], 1).rsqrt()
        both = free[:, :, None] & free[:, None]
        system = torch.where(both, moments[:, :-1, :-1] * scale[:, :, None] * scale[:, None], 0)
        system = system + torch.diag_embed((~free).double() + ridge * free.double())
        wanted = torch.where(free, moments[:, :-1, -1] * scale, 0)[:, :, None]
        if ridge > 0:
            change = torch.cholesky_solve(wanted, torch.linalg.cholesky(system))[..., 0] * scale
        else:  # maps may depend on each other; then the smallest change is the answer
            change = (torch.linalg.pinv(system, hermitian=True) @ wanted)[..., 0] * scale
        change = torch.where(free, change, 0)
        offset = means[:, -1] - (change * means[:, :-1]).sum(1)
        known = self._live & (offset.abs() > (noise[:, -1] / self._n).sqrt())
        return self._tables(change, torch.where(known, offset, 0))

    def _tables(self, change: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
        """Return gains and offsets in the shapes of the layer's tables."""
        gain = torch.ones(len(change), self._shape[1], dtype=torch.float64)
        if self._method == "filters":
            gain = gain + change
        else:
            gain.scatter_add_(1, self._which, change)
        dtype = torch.float64 if self._eps < 1e-10 else torch.float32
        if self._rows is not None:
            whole = torch.ones(self._shape, dtype=torch.float64), torch.zeros(self._shape[0], dtype=torch.float64)
            whole[0][self._rows], whole[1][self._rows] = gain, offset
            gain, offset = whole
        return gain.to(dtype), offset.to(dtype)


_CHUNK = 2**22  # values of what kernels read that are gathered at once


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

    def advance(self, output: Tensor | None = None) -> None:
        """Continue to the next kernel call, with an output of this one if it is known."""
        try:
            self.call, self._dtype = self._steps.send(self.output() if output is None else output)
        except StopIteration:
            return  # it was the last one
        self.number += 1

    def advance_to(self, number: int) -> None:
        """Continue to a kernel call."""
        while self.number < number:
            self.advance()


class _Runs:
    """Runs of the full model and of a circuit on every batch, which wait for each other at every layer.

    So fitting all layers costs one forward pass of each. Batches for which there is no room start anew at every layer.

    Args:
        subject: The feature of the model.
        masks: The circuit, whose calibration may grow.
        batches: The images.
        memory: Bytes for what waits.

    Attributes:
        calls: The kernel calls of a run, without their inputs.
    """

    def __init__(self, subject: Subject, masks: Masks, batches: Batches, memory: int) -> None:
        self._subject, self._masks, self._batches = subject, masks, batches
        graph = subject.survey.paths.graph
        self.calls = [node.call for node in graph.nodes if node.call is not None]
        self._room = int(memory // max(1, 2 * _largest(graph) * batches.batch_size // graph.shapes[0][0]))
        self._held: list[tuple[_Run, _Run]] | None = None
        self._all_held = False

    def layers(self) -> Iterator[list[int]]:
        """Yield, for each layer of the circuit, the numbers of its kernel calls, in the order of their first ones."""
        times = Counter(call.layer for call in self.calls)
        for layer in times:
            if layer in self._masks.kernels:
                yield [number for number, call in enumerate(self.calls) if call.layer == layer]

    def at(self, numbers: list[int]) -> Iterator[tuple[_Run, _Run]]:
        """Yield, for each batch and each of some kernel calls of a layer, the full model's run and the circuit's."""
        if len(numbers) > 1:  # later calls depend on earlier ones, so held runs cannot wait at all of them
            for images in self._batches:
                yield from _stops(self._started(images), numbers)
            return
        for full, circuit in self._every():
            full.advance_to(numbers[0])
            circuit.advance_to(numbers[0])
            yield full, circuit

    def _every(self) -> Iterator[tuple[_Run, _Run]]:
        if self._all_held:
            yield from self._held or []
            return
        held, self._held = self._held, self._held or []
        count = 0
        for count, images in enumerate(self._batches, start=1):
            if held is not None and count <= len(held):
                yield held[count - 1]
                continue
            run = self._started(images)
            if count <= self._room:
                self._held.append(run)
            yield run
        self._all_held = count <= len(self._held)

    def _started(self, images: Tensor) -> tuple[_Run, _Run]:
        full = _Run(self._subject.steps(images, None), lambda call: call.compute())
        return full, _Run(self._subject.steps(images, self._masks), self._masks.kernel)


def _stops(runs: tuple[_Run, _Run], numbers: list[int]) -> Iterator[tuple[_Run, _Run]]:
    for number in numbers:
        for run in runs:
            run.advance_to(number)
        yield runs


def _largest(graph: Graph) -> int:
    """Return the most bytes that values of a graph take at once."""
    sizes = [shape.numel() * dtype.itemsize for shape, dtype in zip(graph.shapes, graph.dtypes, strict=True)]
    alive = most = sizes[0]
    for node, unread in zip(graph.nodes, graph.last_uses(), strict=True):
        alive += sum(sizes[n] for n in node.outputs if n is not None)
        most = max(most, alive)
        alive -= sum(sizes[n] for n in unread)
    return most
