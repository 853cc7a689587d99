"""Runs of the full model and of a circuit that wait for each other at every layer."""

import itertools
import math
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import suppress

from jaxtyping import Float
from torch import Tensor

from convcircuits.circuits.equations import sampled, wide
from convcircuits.network.batches import Batches
from convcircuits.network.calls import KernelCall
from convcircuits.network.graph import Graph, Steps, autocast
from convcircuits.network.masking import Masks, Subject


class Run:
    """A run of a graph that waits at a kernel call.

    Args:
        steps: The steps of the graph.
        masks: The circuit; None for the full model.

    Attributes:
        number: Number of kernel calls before it.
        call: The kernel call.
    """

    def __init__(self, steps: Steps, masks: Masks | None) -> None:
        self._steps, self._masks, self.number = steps, masks, 0
        self.call, self._dtype = next(steps)

    def output(self) -> Tensor:
        """Compute the call."""
        with autocast(self.call.x.device.type, self._dtype):
            return self.call.compute() if self._masks is None else self._masks.kernel(self.call)

    def output_at(self, positions: Tensor | None) -> Float[Tensor, "o p"]:
        """Compute the call of a circuit's layer at some positions of all images; at all of them for None."""
        if positions is None or self._masks is None:
            return sampled(self.call, self.output(), positions)
        with autocast(self.call.x.device.type, self._dtype):
            return wide(self._masks.kernel_at(self.call, positions).transpose(0, 1).flatten(1))

    def advance(self, output: Tensor) -> None:
        """Continue to the next kernel call, if there is one, with the output of this one."""
        with suppress(StopIteration):
            self.call, self._dtype = self._steps.send(output)
            self.number += 1

    def advance_to(self, number: int) -> None:
        """Continue to a kernel call."""
        while self.number < number:
            self.advance(self.output())


class Targets:
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


class Full:
    """The full model's run on a batch, which is made only if a target is not kept."""

    def __init__(self, batch: int, targets: Targets, start: Callable[[], Run]) -> None:
        self._batch, self._targets, self._start = batch, targets, start
        self._run: Run | None = None
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
        target = sampled(call, self._output, positions)
        self._targets.keep(self._batch, self._number, target)
        return target

    @property
    def waits_at(self) -> int | None:
        """Number of the kernel call that the run waits at; None if there is no run."""
        return None if self._run is None else self._run.number

    def advance(self) -> None:
        """Continue to the next kernel call, if there is one."""
        if self._run is not None and self._output is not None:
            self._run.advance(self._output)
        self._number, self._output = self._number + 1, None


class Runs:
    """Runs of the full model and of a circuit on every batch, which wait for each other at every layer.

    So fitting all layers costs one forward pass of each, and one of the circuit alone if the targets are kept. Batches
    for which there is no room where they wait start anew at the next layer, and so do all batches of a loader if there
    is none for one of them. Maps are largest in the first layers, which are soon run again.

    Args:
        subject: The feature of the circuit's model.
        target: The feature of the full model, which may be another one of the same architecture.
        masks: The circuit, whose calibration may grow.
        like: The circuit of the target that runs in place of the full model; None for the full model.
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
        targets: Targets,
        memory: int,
        cost: Counter[str],
    ) -> None:
        self._targets = targets
        self._subject, self._target, self._masks, self._like, self._batches = subject, target, masks, like, batches
        self._cost = cost
        graph = subject.survey.paths.graph
        self._calls = [node.call.layer for node in graph.nodes if node.call is not None]
        self._memory, self._waiting = memory, waiting(graph)
        self._held: list[tuple[int, Full, Run]] = []
        self._all_held = False

    def layers(self) -> Iterator[tuple[str, list[int]]]:
        """Yield each layer of the circuit and the numbers of its kernel calls, in the order of their first ones."""
        for layer in dict.fromkeys(self._calls):
            if layer in self._masks.kernels:
                yield layer, [number for number, name in enumerate(self._calls) if name == layer]

    def at(self, numbers: list[int]) -> Iterator[tuple[int, Full, Run]]:
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

    def _every(self) -> Iterator[tuple[int, Full, Run]]:
        """Yield the runs of every batch, and hold those that there is room for where they wait then."""
        before, room = self._again(deque(self._held)), self._memory
        self._held = []
        for runs in before:
            yield runs
            room -= self._bytes(*runs)
            if room >= 0:
                self._held.append(runs)
            elif self._batches.total is None:  # a loader may shuffle: then all runs are held, or none
                self._held = []
        self._all_held = room >= 0

    def _again(self, held: deque[tuple[int, Full, Run]]) -> Iterator[tuple[int, Full, Run]]:
        """Yield the runs of every batch, started anew where they are not held."""
        if self._all_held:
            while held:
                yield held.popleft()
            return
        for number, images in enumerate(self._batches):
            yield held.popleft() if held else self._started(number, images)

    def _bytes(self, images: int, full: Full, circuit: Run) -> int:
        """Return the bytes that a batch's runs take where they wait."""
        waits = self._waiting[circuit.number]
        return images * (waits if full.waits_at is None else waits + self._waiting[full.waits_at])

    def _started(self, batch: int, images: Tensor) -> tuple[int, Full, Run]:
        def full() -> Run:
            self._cost["forward"] += len(images)
            return Run(self._target.steps(images, self._like), self._like)

        self._cost["forward"] += len(images)
        circuit = Run(self._subject.steps(images, self._masks), self._masks)
        return len(images), Full(batch, self._targets, full), circuit


def waiting(graph: Graph) -> list[int]:
    """Return the bytes that the values of one image take while a run of a graph waits at each kernel call."""
    sizes = [shape.numel() * dtype.itemsize for shape, dtype in zip(graph.shapes, graph.dtypes, strict=True)]
    alive, found = sizes[0], []
    for node, unread in zip(graph.nodes, graph.last_uses(), strict=True):
        if node.call is not None:
            found.append(math.ceil(alive / graph.shapes[0][0]))
        alive += sum(sizes[n] for n in node.outputs if n is not None) - sum(sizes[n] for n in unread)
    return found
