"""Find and measure circuits of all units of a layer, and never lose one."""

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn

from convcircuits.atlases.atlas import Atlas
from convcircuits.atlases.store import Index
from convcircuits.atlases.unit_maps import UnitMaps
from convcircuits.circuits.asking import (
    as_json,
    budget,
    check_effective,
    check_options,
    criterion_named,
    drawable_size,
    is_descent,
    name_of,
    needs_budget,
)
from convcircuits.circuits.criteria import CRITERIA, Criterion
from convcircuits.circuits.evaluation import measured
from convcircuits.circuits.finding import find, kept
from convcircuits.circuits.scoring import MEMORY, scores_of
from convcircuits.circuits.together import SHARED, fitting, score_together
from convcircuits.circuits.tracing import Trace
from convcircuits.errors import ConvCircuitsError, option, whole_number
from convcircuits.maps.units import all_units
from convcircuits.network.agreement import IMAGES
from convcircuits.network.batches import Batches, Images, Progress, begin, check_progress
from convcircuits.network.capture import Network
from convcircuits.network.laws import checked
from convcircuits.network.masking import Subject
from convcircuits.network.provenance import architecture_hash, code_hash
from convcircuits.network.surroundings import outside_autocast
from convcircuits.values.boxes import Boxes
from convcircuits.values.circuit import Circuit
from convcircuits.values.feature import Position
from convcircuits.values.report import Evaluation
from convcircuits.values.tables import count_kept
from convcircuits.version import __version__

Found = tuple[Circuit | None, str, float]
"""The circuit of a unit, or None and the reason, and the seconds that it took."""

Measured = tuple[Circuit | None, Evaluation | None, str, float]
"""The same with the circuit's figures."""


FIT = 128
"""The most images that average maps and readouts are fitted on. A unit's circuit and its control run on each of them,
which would take longer than scoring on thousands, and figures hardly change with more."""


@dataclass(frozen=True)
class Asked:
    """How circuits are found, alike for all units.

    Attributes:
        criterion: A name in ``CRITERIA``, or a function with the same signature.
        options: Options of the criterion.
        size: The size, as ``find`` takes it: ``density``, ``kernels``, ``effective``, ``filters``, ``fan_in``,
            ``drawable``.
        seed: As for ``find``.
    """

    criterion: str | Criterion
    options: dict[str, Any] = field(default_factory=dict)
    size: dict[str, Any] = field(default_factory=dict)
    seed: int = 0

    def check(self) -> None:
        """Check everything before any work is done.

        Raises:
            ConvCircuitsError: As for ``find``.
        """
        function = criterion_named(self.criterion)
        check_options(function, self.criterion, self.options)
        size = dict(self.size)
        check_effective(function, self.criterion, size.pop("effective", None))
        shape = drawable_size(**size, granularity="kernel")
        if shape is None:
            budget(None, size["density"], size["kernels"], "kernel")
        elif needs_budget(function) and not is_descent(function):
            raise ConvCircuitsError(
                f"{name_of(self.criterion)} must know how many kernels to keep; give {option('density')} or "
                f"{option('kernels')}."
            )

    @property
    def shared(self) -> bool:
        """Whether all units are scored at once."""
        return criterion_named(self.criterion) in SHARED

    def to_json(self) -> dict[str, Any]:
        """Return all that the circuits depend on as JSON values."""
        function = criterion_named(self.criterion)
        return {
            "criterion": name_of(self.criterion),
            **({} if function in CRITERIA.values() else {"criterion_code": code_hash(function)}),
            "options": {key: as_json(value) for key, value in sorted(self.options.items())},
            "size": {key: value for key, value in self.size.items() if value not in (None, False)},
            "seed": self.seed,
        }


@dataclass(frozen=True)
class Opened:
    """A model opened for the units of a layer, with the images.

    Attributes:
        model: The model as it was given.
        subject: The model, opened for all units of the layer as one feature.
        images: The images that circuits are found on, all counted.
        held_out: The images that they are measured on.
        fit: At most ``FIT`` of ``images``, drawn by their content.
        asked: How circuits are found.
        memory: Bytes of working memory for chunks of pre-sum maps.
        finish: What is done to a circuit before it is written.
        full: Maps of units in the full model; None if it runs for each of them.
    """

    model: nn.Module
    subject: Subject
    images: Batches
    held_out: Batches
    fit: Batches
    asked: Asked
    memory: int = MEMORY
    finish: Callable[[Circuit], Circuit] = lambda circuit: circuit
    full: UnitMaps | None = None

    @property
    def units(self) -> int:
        """Number of units of the layer."""
        return len(self.subject.rows)

    def of(self, unit: int | tuple[int, ...]) -> Subject:
        """Return the model opened for a unit, or for units as one feature.

        Raises:
            ConvCircuitsError: If no kernel lies on a path to it, or to any of them.
        """
        return self.subject.of(replace(self.subject.feature, unit=unit))

    def holding(self, units: Sequence[int]) -> "Opened":
        """Return the same, with room for maps of these units in the full model."""
        fits = is_descent(criterion_named(self.asked.criterion))
        seen, count = (self.images, self.images.count) if fits else (self.fit, min(FIT, self.images.count))
        count += self.held_out.count
        return replace(self, full=UnitMaps(self.subject, units, (seen, self.held_out), count, self.memory))

    def layers(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the tables of kernels of all layers that any unit depends on, in execution order."""
        return {layer: tuple(mask.shape) for layer, mask in self.subject.survey.kernels.items()}

    def said(self) -> dict[str, Any]:
        """Return all that the circuits and figures depend on as JSON values."""
        feature = self.subject.feature
        return {
            "model": self.subject.about["model"],
            "weights": self.subject.about["weights"],
            "architecture": architecture_hash(self.model),
            "layer": feature.layer,
            "call": feature.call,
            "position": list(feature.position) if isinstance(feature.position, tuple) else feature.position,
            **self.asked.to_json(),
            "images": self.images.describe(),
            "held_out": self.held_out.describe(),
            "version": __version__,
        }


@outside_autocast
def atlas(
    model: nn.Module,
    layer: str,
    images: Images,
    held_out: Images,
    *,
    folder: str | os.PathLike[str],
    units: Sequence[int] | None = None,
    position: Position = "all",
    call: int | None = None,
    criterion: str | Criterion = "gauss_newton",
    density: float | None = None,
    kernels: int | None = None,
    effective: bool | None = None,
    filters: int | None = None,
    fan_in: int | None = None,
    drawable: bool = False,
    shard: tuple[int, int] | None = None,
    ray: str | None = None,
    batch_size: int = 16,
    seed: int = 0,
    memory: int = MEMORY,
    progress: Progress | None = None,
    finish: Callable[[Circuit], Circuit] | None = None,
    **options: Any,
) -> Atlas:
    """Find and measure a circuit for every unit of a layer.

    Scores and circuits are those of ``find`` for each unit, up to rounding. The criteria ``"actgrad"``, ``"snip"`` and
    ``"gauss_newton"`` score all units at once: one pass forward, and what the kernels read and add computed once for
    all. Others run for one unit after another.

    Each circuit is written as soon as it is measured, and its figures after it. If the run ends, even if it is killed,
    the same call goes on from there, and tries again the units that have no circuit. A folder takes no other model,
    images or options, and no criterion function whose source was edited.

    Args:
        model: Any CNN; it runs in eval mode.
        layer: The layer's name.
        images: The images to find circuits on, as for ``score``, all of one size.
        held_out: Other images, to measure the circuits on. As ``evaluate`` does it, the average map of ``images`` and
            a random circuit are measured beside each. Average maps and readouts are fitted on at most 128 of
            ``images``, drawn at random, unless the criterion fits the circuits.
        folder: Where circuits and their index are kept; created if it does not exist.
        units: The units; all of the layer if None.
        position: The positions that count, as for ``Feature``; not ``Boxes``.
        call: Which call of a layer that runs several times.
        criterion: A name in ``CRITERIA``, or a function with the same signature.
        density: The size of each circuit, as for ``find``, by one of ``density``, ``kernels``, ``filters`` with
            ``fan_in``, and ``drawable``.
        kernels: As for ``find``.
        effective: As for ``find``.
        filters: As for ``find``.
        fan_in: As for ``find``.
        drawable: As for ``find``.
        shard: ``(k, n)``: only the k-th of n parts of the units, from 1. Parts may run at the same time, also on
            several machines that share the folder.
        ray: Run on a Ray cluster (extra ``ray``): ``"auto"`` for the one that this machine belongs to, or an address,
            ``"host:port"``. The circuits are those of a run without it, up to rounding; only this process writes.
        batch_size: Maximum number of images that run at once.
        seed: Seed for criteria that draw random numbers, and of the random circuits.
        memory: Bytes of working memory for chunks of pre-sum maps. The gradients of units that are scored at once take
            up to 256 times as much, and the maps of units in the full model, which are kept while circuits are
            measured, up to 64 times.
        progress: Called with the images or units done and their total; on a cluster, with tasks.
        finish: Called with each circuit before it is written; returns what to write, such as the circuit with more
            provenance.
        **options: Options of the criterion.

    Returns:
        All circuits of the folder, those of other shards included.

    Raises:
        ConvCircuitsError: As for ``find``; if the folder holds another atlas, or another process writes it; if the
            shard has no unit; or if Ray is not installed, no cluster answers, the model or the images cannot be sent
            to it, or tasks fail there. A unit that has no circuit, such as a dead one, is no error: its row says why.

    Examples:
        >>> found = cc.atlas(model, "features.5", images, held_out, folder="atlas", density=0.2)
        >>> len(found)
        6
        >>> found.circuit(1)
        Circuit(features.5:1, gauss_newton, 19 of 96 kernels = 19.792%)
        >>> tuple(found.overlap().shape)
        (6, 6)
    """
    size = {"density": density, "kernels": kernels, "filters": filters, "fan_in": fan_in, "drawable": drawable}
    asked = Asked(criterion, options, size | {"effective": effective}, whole_number(option("seed"), seed, 0, 2**32 - 1))
    asked.check()
    check_progress(progress)
    part = _checked_shard(shard)
    if isinstance(position, Boxes):
        raise ConvCircuitsError("An atlas takes no Boxes; give another position.")
    with _maker(ray) as make:
        opened = open_layer(
            model,
            layer,
            images,
            held_out,
            asked,
            position=position,
            call=call,
            batch_size=batch_size,
            memory=memory,
            progress=progress,
        )
        if finish is not None:
            opened = replace(opened, finish=finish)
        every = _checked_units(units, opened.units, layer)
        wanted = every[part]
        if not wanted:
            raise ConvCircuitsError(
                f"{option('shard')}: this part has no unit; give at most as many parts as there are units, here "
                f"{len(every)}."
            )
        _check_kernels(opened, wanted)
        place = Path(folder)
        try:
            place.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConvCircuitsError(f"The folder {place} cannot be created: {error.strerror}.") from error
        index = Index(place, opened.said(), opened.layers(), shard)
        try:
            done = index.finished()
            make(opened, [unit for unit in wanted if unit not in done], index, progress)
        finally:
            index.close()
    return Atlas.read(place)


def open_layer(
    model: nn.Module,
    layer: str,
    images: Images,
    held_out: Images,
    asked: Asked,
    *,
    position: Position = "all",
    call: int | None = None,
    batch_size: int = 16,
    memory: int = MEMORY,
    progress: Progress | None = None,
) -> Opened:
    """Open a model for the units of a layer, check its laws, and count and hash the images.

    Args:
        model: As for ``atlas``.
        layer: As for ``atlas``.
        images: As for ``atlas``.
        held_out: As for ``atlas``.
        asked: How circuits are found.
        position: As for ``atlas``.
        call: As for ``atlas``.
        batch_size: As for ``atlas``.
        memory: As for ``atlas``.
        progress: As for ``atlas``.

    Raises:
        ConvCircuitsError: As for ``score``.
    """
    memory, network = whole_number("memory, in bytes,", memory, 1), Network(model)
    taken, measured_on = (
        Batches(given, device=network.device, dtype=network.dtype, batch_size=batch_size)
        for given in (images, held_out)
    )
    seen = taken.first(IMAGES)
    subject = all_units(network, layer, tuple(seen.shape[1:]), position=position, call=call)
    checked(subject, seen)
    begin(progress, "reading images")
    for batches in (taken, measured_on):
        for _ in batches:
            pass
    fit = taken if taken.count <= FIT else taken.sample(FIT, asked.seed)
    return Opened(model, subject, taken, measured_on, fit, asked, memory)


def _maker(ray: str | None) -> contextlib.AbstractContextManager[Callable[..., None]]:
    """Return what makes circuits: ``make_circuits``, or the one of a cluster, while it is connected."""
    if ray is None:
        return contextlib.nullcontext(make_circuits)
    from convcircuits.atlases.cluster import connected  # the only module that knows Ray

    return connected(ray)


def make_circuits(opened: Opened, units: Sequence[int], index: Index, progress: Progress | None = None) -> None:
    """Find, measure and write the circuits of some units, one after the other, to an index.

    Args:
        opened: The model, the images and how circuits are found.
        units: The units; none of them may have a circuit in the index.
        index: Where they are written.
        progress: Called with the units done and their total.
    """
    opened = opened.holding(units) if units else opened
    for done, (unit, found) in enumerate(_found(opened, units, progress), start=1):
        write(opened, index, unit, measure(opened, found))
        if progress is not None:
            begin(progress, "finding circuits")
            progress(done, len(units))


def measure(opened: Opened, found: Found) -> Measured:
    """Measure the circuit of a unit, if it has one."""
    circuit, problem, seconds = found
    full = {} if circuit is None or opened.full is None else opened.full.of(circuit.feature)
    start, report = time.perf_counter(), None
    if circuit is not None:
        try:
            subject = opened.subject.of(circuit.feature)
            # A fitted circuit has seen all images, so its control is fitted on all, too.
            fit = opened.images if circuit.calibrated else opened.fit
            (report,) = measured(subject, [circuit], opened.held_out, fit=fit, full=full, seed=opened.asked.seed)
        except ConvCircuitsError as error:
            circuit, problem = None, str(error)
    return circuit, report, problem, seconds + time.perf_counter() - start


def write(opened: Opened, index: Index, unit: int, made: Measured) -> None:
    """Write what is known of a unit to the index."""
    circuit, report, problem, seconds = made
    finished = None if circuit is None else opened.finish(circuit)
    index.add(unit, seconds, circuit=finished, report=report, problem=problem)


def _found(opened: Opened, units: Sequence[int], progress: Progress | None) -> Iterator[tuple[int, Found]]:
    """Yield each unit with its circuit."""
    at_once, count = at_once_of(opened, units) if opened.asked.shared else (1, 1)
    for start in range(0, len(units), at_once):
        some, subjects = units[start : start + at_once], {}
        for unit in some:
            try:
                subjects[unit] = opened.of(unit)
            except ConvCircuitsError as error:
                yield unit, (None, str(error), 0.0)
        if opened.asked.shared and subjects:
            begin(progress, f"scoring units {some[0]} to {some[-1]}")
            yield from _together(opened, subjects, count, progress)
        elif subjects:
            (subject,) = subjects.values()
            yield some[0], attempted(lambda subject=subject: alone(opened, subject, progress))  # type: ignore[misc]


def at_once_of(opened: Opened, units: Sequence[int]) -> tuple[int, int]:
    """Return how many of the units, and images, are scored at once."""
    try:
        every = opened.of(tuple(units))
    except ConvCircuitsError:  # there is none, or no kernel lies on a path to any of them, as their rows will say
        return 1, 1
    return fitting(every, opened.images, opened.memory)


def _together(
    opened: Opened, subjects: dict[int, Subject], count: int, progress: Progress | None
) -> Iterator[tuple[int, Found]]:
    """Yield the circuits of units that are scored at once, as ``_found`` does."""
    asked = opened.asked
    try:
        saliency = score_together(
            list(subjects.values()),
            opened.images.in_batches_of(count),
            criterion_named(asked.criterion),
            granularity="kernel",
            seed=asked.seed,
            memory=opened.memory,
            progress=progress,
            **asked.options,
        )
    except ConvCircuitsError as error:
        if len(subjects) == 1:
            yield next(iter(subjects)), (None, str(error), 0.0)
            return
        for unit, subject in subjects.items():  # the others need not suffer
            yield from _together(opened, {unit: subject}, count, progress)
        return
    for n, (unit, subject) in enumerate(subjects.items()):
        own = {layer: table[n] for layer, table in saliency.items()}
        yield unit, attempted(lambda subject=subject, own=own: of_scores(opened, subject, own))  # type: ignore[misc]


def of_scores(opened: Opened, subject: Subject, saliency: Mapping[str, Any]) -> Circuit:
    """Return the circuit of a unit, given what the criterion returned for it.

    Raises:
        ConvCircuitsError: As for ``find``.
    """
    asked, shape = opened.asked, subject.survey.input_shape
    about = checked(subject, opened.images.first(IMAGES))
    relevant = subject.relevant("kernel", shape)
    saliency = {layer: table for layer, table in saliency.items() if layer in relevant}
    trace = Trace(subject, opened.images, relevant=relevant, seed=asked.seed, memory=opened.memory)
    scores = scores_of(trace, opened.images, about, saliency, asked.criterion, asked.options, None)
    size = dict(asked.size)
    effective = bool(size.pop("effective", None))
    return kept(
        scores,
        subject.survey,
        drawable_size(**size, granularity="kernel"),
        density=size["density"],
        kernels=size["kernels"],
        effective=effective,
    )


def alone(opened: Opened, subject: Subject, progress: Progress | None = None) -> Circuit:
    """Find the circuit of a unit on its own.

    Raises:
        ConvCircuitsError: As for ``find``.
    """
    asked = opened.asked
    return find(
        opened.model,
        subject.feature,
        opened.images.given,
        criterion=asked.criterion,
        batch_size=opened.images.batch_size,
        seed=asked.seed,
        memory=opened.memory,
        progress=progress,
        **asked.size,
        **asked.options,
    )


def attempted(make: Callable[[], Circuit]) -> Found:
    """Return a circuit, or None and the reason, and the seconds that it took."""
    start = time.perf_counter()
    try:
        circuit, problem = make(), ""
    except ConvCircuitsError as error:
        circuit, problem = None, str(error)
    return circuit, problem, time.perf_counter() - start


def _check_kernels(opened: Opened, units: Sequence[int]) -> None:
    """Check that a number of kernels is not more than every unit has.

    Raises:
        ConvCircuitsError: As for ``prune``.
    """
    problem, kernels = None, opened.asked.size["kernels"]
    for unit in units if kernels is not None else ():
        try:
            found = opened.of(unit).survey.kernels
        except ConvCircuitsError:  # as its row will say
            continue
        try:
            budget(count_kept(found), None, kernels, "kernel")
            return
        except ConvCircuitsError as error:
            problem = error
    if problem is not None:
        raise problem


def _checked_units(units: Sequence[int] | None, count: int, layer: str) -> list[int]:
    if units is None:
        return list(range(count))
    chosen = [whole_number(f"Each of the units of {layer}", unit, 0, count - 1) for unit in units]
    if not chosen or len(set(chosen)) < len(chosen):
        raise ConvCircuitsError(f"units must be distinct units of {layer}, at least one; got {list(units)!r:.200}.")
    return chosen


def _checked_shard(shard: tuple[int, int] | None) -> slice:
    """Return which of the units a shard takes: every n-th, so that shards take equally long."""
    if shard is None:
        return slice(None)
    if not isinstance(shard, (tuple, list)) or len(shard) != 2:
        raise ConvCircuitsError(f"shard is (k, n), the k-th of n parts from 1; got {shard!r}.")
    of = whole_number(f"{option('shard')}: the number of parts", shard[1], 1)
    part = whole_number(f"{option('shard')}: the part", shard[0], 1, of)
    return slice(part - 1, None, of)
