"""An atlas on a Ray cluster: tasks find and measure circuits, and one process writes them. Nothing else knows Ray.

There are two kinds of tasks. One computes, for some units and a part of the images, the means that a criterion in
``SHARED`` scores kernels by: these add up over images. The other adds them up for one unit, cuts the circuit and
measures it on all images: ranking kernels and measuring are not additive. Criteria outside ``SHARED`` rank kernels and
run again, so for them there is only the second kind, which finds the circuit too.

How the work is divided depends on units, images and ``memory``, never on the cluster, and sums are added in the order
of the images. So the number of workers, and deaths among them, change no result.
"""

import contextlib
import importlib
import itertools
import logging
import os
import re
import socket
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from convcircuits.atlases.making import (
    Asked,
    Measured,
    Opened,
    alone,
    at_once_of,
    attempted,
    measure,
    of_scores,
    open_layer,
    write,
)
from convcircuits.atlases.store import Index
from convcircuits.atlases.unit_maps import even
from convcircuits.circuits.asking import criterion_named
from convcircuits.circuits.together import ENOUGH, Given, means_together
from convcircuits.errors import ConvCircuitsError, option
from convcircuits.network.batches import Batches, Progress, begin
from convcircuits.values.circuit import Circuit
from convcircuits.version import __version__

try:
    ray: Any = importlib.import_module("ray")
except ImportError as error:
    raise ConvCircuitsError("Running on a cluster needs Ray: pip install 'convcircuits[ray]'.") from error

IMAGES_A_PART = 32
"""The fewest images of a task that scores, if there are more: with fewer, what it does once for all of them is felt."""

PARTS = 8
"""The most parts of the images: the tables of each are sent over the network."""

RETRIES = 5
"""How often a task whose worker dies is tried again."""

_SECONDS = 5  # until an address that does not answer is given up

Sums = dict[str, "np.ndarray[Any, np.dtype[np.float64]]"] | str
"""Name -> sum over some images, for one unit; or why there is none."""


@contextlib.contextmanager
def connected(address: str) -> Iterator[Callable[..., None]]:
    """Connect to a cluster; return what makes circuits there, as ``making.make_circuits`` does here.

    If this process is connected to a cluster already, it is that one, and it stays connected.

    Args:
        address: ``"auto"`` or ``"host:port"``.

    Raises:
        ConvCircuitsError: If the address has another form, or no cluster answers there.
    """
    if not isinstance(address, str) or not re.fullmatch(r"auto|(\[[\da-fA-F:.]+\]|[^\s/:]+):\d{1,5}", address):
        raise ConvCircuitsError(
            f"{option('ray')} is 'auto' or the address of a cluster, such as '10.0.0.1:6379'; got {address!r}."
        )
    if ray.is_initialized():
        yield make_circuits
        return
    _connect(os.environ.get("RAY_ADDRESS", address) if address == "auto" else address)
    try:
        yield make_circuits
    finally:
        ray.shutdown()


def _connect(address: str) -> None:
    if address.startswith("ray://"):
        raise ConvCircuitsError(
            f"RAY_ADDRESS is {address!r}, an address of Ray Client, which is not supported. Run on a node of the "
            f"cluster, or give the address of its head, such as {option('ray', '10.0.0.1:6379')}."
        )
    host, _, port = address.rpartition(":")
    try:
        if port.isdecimal():  # Ray itself tries for minutes, and then ends the process
            socket.create_connection((host.strip("[]"), int(port)), timeout=_SECONDS).close()
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (Exception, SystemExit) as error:
        raise ConvCircuitsError(
            f"No Ray cluster can be reached at {address!r} ({error}). Start one with 'ray start --head', give its "
            f"address, or omit {option('ray')} to run on this machine alone."
        ) from error


@dataclass(frozen=True)
class _Job:
    """What all tasks share; it is sent to a node once, and opened once by each worker.

    Attributes:
        key: Tells it from other jobs.
        opening: The model, how circuits are found and the arguments of ``open_layer``, pickled, in the object store.
        images: The images that circuits are found on, in the object store.
        held_out: The images that they are measured on, in the object store.
        units: The units whose circuits are found.
        said: What ``Opened.said`` must be on a worker too.
        gpus: The number of GPUs of a task.
    """

    key: str
    opening: Any
    images: Any
    held_out: Any
    units: Sequence[int]
    said: Mapping[str, Any]
    gpus: int


@dataclass
class _Chunk:
    """Units that are scored together.

    Attributes:
        units: The units.
        scored: For each part of the images the sums of each unit, as they will be in the object store; None once a
            task has been given them. If a node dies with them, Ray computes them again.
        left: Number of parts that are not scored yet.
    """

    units: Sequence[int]
    scored: list[list[Any]]
    left: int

    def taken(self, n: int) -> list[Any]:
        """Return the sums of the n-th unit, and forget them."""
        found = [part[n] for part in self.scored]
        for part in self.scored:
            part[n] = None
        return found


def make_circuits(opened: Opened, units: Sequence[int], index: Index, progress: Progress | None = None) -> None:
    """Find and measure the circuits of some units on the cluster, and write each as soon as it is measured.

    Twice as many tasks as the cluster has room for are under way at any time, also if it grows or shrinks. Units that
    are scored are measured before others are scored, so that few sums wait.

    Args:
        opened: As for ``making.make_circuits``.
        units: As for ``making.make_circuits``.
        index: As for ``making.make_circuits``.
        progress: Called with the tasks done and their total.

    Raises:
        ConvCircuitsError: If the model or the images cannot be sent, or a task fails; circuits written before are kept.
    """
    if not units:
        return
    gpus = int(ray.cluster_resources().get("GPU", 0) >= 1)
    job = _sent(opened, units, gpus)
    asking = {"num_cpus": 1, "num_gpus": gpus, "max_retries": RETRIES, "max_calls": 0}  # 0: a worker opens a job once
    scoring, measuring = ray.remote(**asking)(score), ray.remote(**asking)(found_and_measured)
    at_once, count = at_once_of(opened, units) if opened.asked.shared else (ENOUGH, 1)
    parts = image_parts(opened.images.count) if opened.asked.shared else []
    chunks = [_Chunk(some, [[]] * len(parts), len(parts)) for some in even(units, min(at_once, ENOUGH))]
    to_score = deque((chunk, n) for chunk in chunks for n in range(len(parts)))
    to_measure = deque((chunk, n) for chunk in chunks if not parts for n in range(len(chunk.units)))
    done, total = 0, len(to_score) + len(units)
    running: dict[Any, tuple[_Chunk, int | None]] = {}  # task -> its chunk, and the unit that it measures
    begin(progress, "finding circuits")
    try:
        while to_score or to_measure or running:
            room = 2 * max(1, int(ray.cluster_resources().get("GPU" if gpus else "CPU", 0)))
            while len(running) < room and (to_measure or to_score):
                if to_measure:
                    chunk, n = to_measure.popleft()
                    task = measuring.remote(job, chunk.units[n], *chunk.taken(n))
                    running[task] = chunk, chunk.units[n]
                else:
                    chunk, n = to_score.popleft()
                    returned = scoring.options(num_returns=1 + len(chunk.units))
                    task, *chunk.scored[n] = returned.remote(job, chunk.units, parts[n], count)
                    running[task] = chunk, None
            (ended,), _ = ray.wait(list(running), num_returns=1)
            chunk, unit = running.pop(ended)
            made = _result(ended, chunk.units if unit is None else [unit])
            if unit is not None:
                write(opened, index, unit, made)
            else:
                chunk.left -= 1
                if not chunk.left:
                    to_measure.extend((chunk, n) for n in range(len(chunk.units)))
            done += 1
            if progress is not None:
                progress(done, total)
    finally:
        for left in running:
            ray.cancel(left)


def image_parts(count: int) -> list[tuple[int, int]]:
    """Return the parts of so many images: for each the first, and the one after the last."""
    parts = max(1, min(PARTS, count // IMAGES_A_PART))
    ends = [count * n // parts for n in range(parts + 1)]
    return list(itertools.pairwise(ends))


def _result(ended: Any, units: Sequence[int]) -> Any:
    """Return what a task returned.

    Raises:
        ConvCircuitsError: If it failed, or its worker died too often.
    """
    which = f"unit {units[0]}" if len(units) == 1 else f"units {units[0]} to {units[-1]}"
    kept = "Circuits that were found are kept: run the same again, and it goes on."
    try:
        return ray.get(ended)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, ConvCircuitsError):
            raise ConvCircuitsError(f"{error.cause} {kept}") from error
        raise ConvCircuitsError(
            f"The task for {which} failed on the cluster: {error.cause!r}. Every node needs convcircuits "
            f"{__version__}, with the same packages as here. {kept}"
        ) from error
    except ray.exceptions.RayError as error:
        reason = str(error).strip().partition("\n")[0]
        raise ConvCircuitsError(
            f"The task for {which} was tried {RETRIES + 1} times, and its worker died each time or could not start "
            f"({type(error).__name__}: {reason}). If memory ran out, give a smaller {option('batch_size')} (in Python "
            f"also a smaller memory), or start the nodes with fewer CPUs (--num-cpus). {kept}"
        ) from error


# ---------------------------------------- what is sent


def _sent(opened: Opened, units: Sequence[int], gpus: int) -> _Job:
    """Put what all tasks share into the object store.

    Raises:
        ConvCircuitsError: If it cannot be sent.
    """
    feature = opened.subject.feature
    arguments = {
        "position": feature.position,
        "call": feature.call,
        "batch_size": opened.images.batch_size,
        "memory": opened.memory,
    }
    opening = pickled(opened.model, feature.layer, opened.asked, arguments)
    try:
        stored = ray.put(opening), ray.put(_arrays(opened.images)), ray.put(_arrays(opened.held_out))
    except ray.exceptions.RayError as error:
        raise ConvCircuitsError(
            f"The model and the images cannot be sent to the cluster ({error}); start its nodes with a larger "
            "--object-store-memory, or give fewer images."
        ) from error
    return _Job(uuid.uuid4().hex, *stored, units=units, said=_checkable(opened), gpus=gpus)


def pickled(model: nn.Module, layer: str, asked: Asked, arguments: Mapping[str, Any]) -> bytes:
    """Return a model, and what is asked of it, as bytes: tensors are on the CPU.

    Raises:
        ConvCircuitsError: If the model, or the criterion, cannot be sent.
    """
    try:
        if any(tensor.device.type != "cpu" for tensor in (*model.parameters(), *model.buffers())):
            model = deepcopy(model).cpu()
        content: bytes = ray.cloudpickle.dumps((model, layer, asked, dict(arguments)))
    except Exception as error:
        raise ConvCircuitsError(
            f"The model or the criterion cannot be sent to the cluster ({error}). Remove what belongs to this process, "
            "such as locks, open files and generators, from the model's attributes and hooks."
        ) from error
    return content


def _arrays(batches: Batches) -> list[tuple[Any, torch.dtype, torch.Size]]:
    """Return images as arrays of bytes, which workers of a node share."""
    given = [batches.given] if isinstance(batches.given, Tensor) else batches.given
    every = [batch[0] if isinstance(batch, (tuple, list)) else batch for batch in given]
    whole = [images.detach().cpu().contiguous() for images in every]
    return [(images.view(-1).view(torch.uint8).numpy(), images.dtype, images.shape) for images in whole]


def _images(arrays: Sequence[tuple[Any, torch.dtype, torch.Size]]) -> list[Tensor]:
    """Return images from arrays, without a copy. Nothing writes to them: models run on a clone."""
    return [torch.asarray(array).view(dtype).reshape(shape) for array, dtype, shape in arrays]


def _checkable(opened: Opened) -> dict[str, Any]:
    """Return of ``Opened.said`` what is the same on every worker: not the code of what is sent with its code."""
    said, criterion = opened.said(), criterion_named(opened.asked.criterion)
    if not all(map(_by_name, map(type, opened.model.modules()))):
        del said["architecture"]
    if not _by_name(criterion):
        said.pop("criterion_code", None)
    return said


def _by_name(thing: Any) -> bool:
    """Return whether a class or function is sent as its name alone."""
    name = getattr(thing, "__qualname__", "<locals>")
    return thing.__module__ != "__main__" and "<locals>" not in name


# ---------------------------------------- what runs on workers

_OPENED: dict[str, Opened] = {}


def score(job: _Job, units: Sequence[int], part: tuple[int, int], at_once: int) -> list[Sums | None]:
    """Return what a part of the images adds to the sums that units are scored by.

    Args:
        job: What all tasks share.
        units: The units.
        part: The first image, and the one after the last.
        at_once: The most images that run at once.

    Returns:
        None, so that the task has something small to wait for, and the sums of each unit.
    """
    opened = _open(job)
    sums = _sums(opened, units, _part(opened.images, part).in_batches_of(at_once), part[1] - part[0])
    return [None, *(sums[unit] for unit in units)]


def found_and_measured(job: _Job, unit: int, *parts: Sums) -> Measured:
    """Find and measure the circuit of a unit, given the sums that all parts of the images add, or on its own."""
    opened = _open(job)
    sums = [one for one in parts if not isinstance(one, str)]
    for problem in parts:
        if isinstance(problem, str):
            return None, None, problem, 0.0
    if opened.asked.shared:
        return measure(opened, attempted(lambda: _of_sums(opened, unit, sums)))
    return measure(opened, attempted(lambda: alone(opened, opened.of(unit))))


def _sums(opened: Opened, units: Sequence[int], images: Batches, count: int) -> dict[int, Sums]:
    asked, subjects, found = opened.asked, {}, dict[int, Sums]()
    for unit in units:
        try:
            subjects[unit] = opened.of(unit)
        except ConvCircuitsError as error:
            found[unit] = str(error)
    if not subjects:
        return found
    try:
        means = means_together(
            list(subjects.values()),
            images,
            criterion_named(asked.criterion),
            seed=asked.seed,
            memory=opened.memory,
            **asked.options,
        )
    except ConvCircuitsError as error:
        if len(units) == 1:
            return {units[0]: str(error)}
        for unit in subjects:  # the others need not suffer
            found |= _sums(opened, [unit], images, count)
        return found
    for n, unit in enumerate(subjects):
        found[unit] = {name: (table[n] * count).numpy() for name, table in means.items()}
    return found


def _of_sums(opened: Opened, unit: int, parts: Sequence[Mapping[str, Any]]) -> Circuit:
    subject, asked = opened.of(unit), opened.asked
    relevant = subject.relevant("kernel", subject.survey.input_shape)
    trace = Given(subject, opened.images, relevant=relevant, seed=asked.seed, memory=opened.memory)
    trace.means = {name: torch.from_numpy(sum(part[name] for part in parts) / opened.images.count) for name in parts[0]}
    return of_scores(opened, subject, criterion_named(asked.criterion)(trace, **asked.options))


def _part(images: Batches, part: tuple[int, int]) -> Batches:
    """Return some of the images, from the first to the one after the last."""
    at, some = 0, []
    for batch in images:
        chosen = batch[max(0, part[0] - at) : max(0, part[1] - at)]
        if len(chosen):
            some.append(chosen)
        at += len(batch)
    return Batches(some, device=some[0].device, dtype=some[0].dtype, batch_size=images.batch_size)


def _open(job: _Job) -> Opened:
    """Open the layer for a job, unless this worker has."""
    if job.key not in _OPENED:
        _OPENED.clear()
        _OPENED[job.key] = _opened(job)
    return _OPENED[job.key]


def _opened(job: _Job) -> Opened:
    opening, images, held_out = ray.get([job.opening, job.images, job.held_out])
    here = f"on the worker {socket.gethostname()}"
    try:
        model, layer, asked, arguments = ray.cloudpickle.loads(opening)
    except Exception as error:
        raise ConvCircuitsError(
            f"The model or the criterion cannot be read {here} ({error}). Install the module that defines it on every "
            "node, or send it: ray job submit --working-dir FOLDER."
        ) from error
    if job.gpus:
        if not torch.cuda.is_available():
            raise ConvCircuitsError(
                f"The cluster has GPUs, but torch cannot use them {here}. Install torch with CUDA there, or start the "
                "nodes with --num-gpus 0."
            )
        model = model.cuda()
    opened = open_layer(model, layer, _images(images), _images(held_out), asked, **arguments)
    said = opened.said()
    for name, value in job.said.items():
        if said[name] != value:
            raise ConvCircuitsError(
                f"{name} is {said[name]!r:.200} {here}, and {value!r:.200} where the run was started. Install the same "
                "code on every node."
            )
    holding = opened.holding(job.units)
    # A worker measures some units of each chunk, so only the maps of all units, found once, surely save work.
    return holding if holding.full is not None and len(holding.full.chunks) == 1 else opened
