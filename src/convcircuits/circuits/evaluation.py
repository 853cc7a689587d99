"""Measure how well a circuit preserves its feature."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from convcircuits.circuits.control_circuits import random_like, treated_alike
from convcircuits.circuits.moments import Averages, Census, Comparison
from convcircuits.circuits.notes import notes
from convcircuits.compiler.extraction import Sweep
from convcircuits.errors import ConvCircuitsError, option, whole_number
from convcircuits.maps.interior import Interior, Positions
from convcircuits.network.agreement import IMAGES
from convcircuits.network.batches import Batches, Images, Progress, check_progress
from convcircuits.network.capture import Network
from convcircuits.network.laws import checked
from convcircuits.network.masking import Subject
from convcircuits.network.surroundings import outside_autocast
from convcircuits.values.circuit import Circuit
from convcircuits.values.feature import Feature, at
from convcircuits.values.report import WHERE, Evaluation
from convcircuits.values.tables import count_kept
from convcircuits.values.verdict import R2, decide

ImageKey = tuple[tuple[int, ...], int]
"""An image: its shape (C, H, W) and a hash of its values."""


def evaluate(
    model: nn.Module,
    circuit: Circuit,
    images: Images,
    *,
    fit: Images | None = None,
    effective: bool = True,
    batch_size: int = 16,
    seed: int = 0,
    progress: Progress | None = None,
) -> Evaluation:
    """Measure how well a circuit preserves its feature, on images that it was not found on.

    Streams over batches and stores no map except the average. If the feature has a position, only the values there
    count.

    Args:
        model: The model that the circuit belongs to.
        circuit: The circuit.
        images: Held-out images, as for ``score``.
        fit: The images that the circuit was found on. The readout a f_c + d is fitted on them, and their average map is
            the baseline. The random circuit is refitted, or trained, on them as the circuit was, if that has a
            calibration. Without them there is no verdict, unless the circuit fails on its own.
        effective: Run the circuit as it is defined: no kernel reads a dead channel, and a dead filter adds nothing.
            False keeps the biases of dead filters, as published.
        batch_size: Maximum number of images that run at once.
        seed: Seed of the random circuit that this one is compared with.
        progress: Called with the number of images done and their total (or None).

    Raises:
        ConvCircuitsError: If the circuit belongs to other weights, or images do not fit the model.

    Examples:
        >>> report = cc.evaluate(model, circuit, held_out, fit=images)
        >>> report.effective_kernels <= report.kernels == len(circuit)
        True
        >>> whole = cc.evaluate(model, cc.prune(scores, density=1.0), held_out)
        >>> round(whole.r2, 6)
        1.0
    """
    return evaluate_all(
        model, [circuit], images, fit=fit, effective=effective, batch_size=batch_size, seed=seed, progress=progress
    )[0]


@outside_autocast
def evaluate_all(
    model: nn.Module,
    circuits: Sequence[Circuit],
    images: Images,
    *,
    fit: Images | None = None,
    effective: bool = True,
    controls: Sequence[Circuit | None] | None = None,
    readout: bool = True,
    batch_size: int = 16,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[Evaluation]:
    """Measure several circuits of one feature as ``evaluate`` does, running the full model only once.

    ``controls`` replaces the random circuits that the circuits are compared with, one each; None for no comparison.
    Without ``readout``, only the full model runs on the images of ``fit``.

    Raises:
        ConvCircuitsError: As for ``evaluate``, or if there are no circuits or their features differ.
    """
    if not circuits:
        raise ConvCircuitsError("There are no circuits to measure; give at least one.")
    check_progress(progress)
    for circuit in circuits:
        if not isinstance(circuit, Circuit):
            raise ConvCircuitsError(f"Expected a Circuit, got {type(circuit).__name__}.")
    feature = circuits[0].feature
    if any(circuit.feature != feature for circuit in circuits):
        raise ConvCircuitsError("The circuits preserve different features; measure them one by one.")
    seed = whole_number(option("seed"), seed, 0, 2**32 - 1)
    network = Network(model)
    batches = _batches(images, network, batch_size)
    subject = Subject.open(network, feature, batches.first_shape())
    for circuit in circuits:
        subject.check(circuit)
    return measured(
        subject,
        circuits,
        batches,
        fit=None if fit is None else _batches(fit, network, batch_size),
        effective=effective,
        controls=controls,
        readout=readout,
        seed=seed,
        progress=progress,
    )


def measured(
    subject: Subject,
    circuits: Sequence[Circuit],
    batches: Batches,
    *,
    fit: Batches | None,
    effective: bool = True,
    controls: Sequence[Circuit | None] | None = None,
    readout: bool = True,
    full: Mapping[ImageKey, Tensor] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[Evaluation]:
    """Measure circuits of the feature that a model is opened for. The arguments are those of ``evaluate_all``.

    ``full`` holds the feature's maps in the full model on some images; it runs on the others.

    Raises:
        ConvCircuitsError: If the model breaks a law, or images do not fit it.
    """
    first = batches.first(IMAGES)
    shape = tuple(first.shape[1:])
    described = checked(subject, first)
    if controls is None:
        controls = [random_like(subject, circuit, seed=seed) for circuit in circuits]
    if fit is not None:
        controls = [
            control
            if control is None or control.calibrated  # a caller has fitted it already
            else treated_alike(subject, control, circuit, fit)
            for control, circuit in zip(controls, circuits, strict=True)
        ]
    swept = {id(circuit): circuit for circuit in [*circuits, *controls] if circuit is not None}
    sweep, positions = Sweep(subject, list(swept.values()), effective=effective), Positions(subject)
    fitted = None
    if fit is not None:
        own = range(len({id(circuit) for circuit in circuits}) if readout else 0)  # controls have no readout
        fitted = _measure(sweep, own, positions, fit, full or {})
    averages = None if fitted is None else fitted.averages
    found = _measure(sweep, range(len(swept)), positions, batches, full or {}, averages=averages, progress=progress)
    provenance = described | {
        **sweep.about(),
        "images": batches.describe(),
        "fitted_on": None if fit is None else fit.describe(),
        "effective": effective,
        "seed": seed,
    }
    place = {key: n for n, key in enumerate(swept)}
    reports = []
    for circuit, control in zip(circuits, controls, strict=True):
        n, other = place[id(circuit)], place.get(id(control))
        about = {**provenance, "laws": {**described["laws"], **sweep.laws(n)}}
        reports.append(_evaluation(circuit, (sweep.kept[n], sweep.effective(n, shape)), found, fitted, n, other, about))
    return reports


@outside_autocast
def activations(
    model: nn.Module,
    feature: Feature,
    images: Images,
    *,
    circuit: Circuit | None = None,
    effective: bool = True,
    batch_size: int = 16,
    progress: Progress | None = None,
) -> Tensor:
    """Return the feature's maps in the full model or in a circuit.

    Args:
        model: Any CNN; it runs in eval mode.
        feature: The feature; its position is ignored.
        images: As for ``score``.
        circuit: Run this circuit instead of the full model.
        effective: As for ``evaluate``.
        batch_size: Maximum number of images that run at once.
        progress: Called with the number of images done and their total (or None).

    Returns:
        (N, H, W), or (N,) for a Linear layer; for several units (N, U, H, W) or (N, U), in the feature's order; on the
        CPU, in the model's dtype.

    Raises:
        ConvCircuitsError: If the circuit belongs to other weights, or images do not fit the model or give maps of
            different sizes.

    Examples:
        >>> maps = cc.activations(model, feature, images, circuit=circuit)
        >>> tuple(maps.shape)  # (N, H, W)
        (12, 16, 16)
    """
    check_progress(progress)
    network = Network(model)
    batches = _batches(images, network, batch_size)
    first = batches.first(IMAGES)
    shape = tuple(first.shape[1:])
    subject = Subject.open(network, feature, shape)
    masks = None
    if circuit is not None:
        subject.check(circuit)
        checked(subject, first)
        masks = subject.masks(circuit, shape, effective=effective)
    maps: list[Tensor] = []
    with torch.no_grad():
        for batch in batches:
            maps.append(subject.maps(batch, masks).cpu())
            if maps[-1].shape[1:] != maps[0].shape[1:]:
                raise ConvCircuitsError(
                    f"Images of different sizes give maps of shape {tuple(maps[0].shape[1:])} and "
                    f"{tuple(maps[-1].shape[1:])}; give images of one size."
                )
            if progress is not None:
                progress(sum(map(len, maps)), batches.expected)
    return torch.cat(maps)


@dataclass(frozen=True)
class _Measured:
    """The results of one pass over images.

    Attributes:
        comparisons: Each circuit that ran, compared with the full model.
        average_map: The average map of other images, compared with the full model; None if it is not known.
        averages: The average maps of these images.
        census: Statistics of the full model's maps.
    """

    comparisons: list[Comparison]
    average_map: Comparison | None
    averages: Averages
    census: Census


def _measure(
    sweep: Sweep,
    circuits: Sequence[int],
    positions: Positions,
    batches: Batches,
    known: Mapping[ImageKey, Tensor],
    *,
    averages: Averages | None = None,
    progress: Progress | None = None,
) -> _Measured:
    """Run some of a sweep's circuits, and the full model on images on which its map is not known."""
    feature, done = sweep.subject.feature, 0
    eps = torch.finfo(sweep.subject.network.dtype).eps
    comparisons = [Comparison(feature, eps) for _ in circuits]
    average_map = None if averages is None else Comparison(feature, eps)
    own, census = Averages(), Census()
    runs = [n + 1 for n in circuits]
    for images, hashes in batches.hashed():
        shape = tuple(images.shape[1:])
        with torch.no_grad():
            keys = [(shape, one) for one in hashes]
            if known.keys() >= {*keys}:
                full, others = torch.stack([known[key] for key in keys]), sweep.maps(images, runs)
            else:
                full, *others = sweep.maps(images, [0, *runs])
            indices = positions.counted(full, images)
            values = at(full, indices).double().cpu()
            interior = _interior(positions, shape, census)
            inside = None if interior is None else interior.among(values, indices)
            for maps, comparison in zip(others, comparisons, strict=True):
                comparison.add(values, at(maps, indices).double().cpu(), inside)
        average = None if averages is None else averages.of(tuple(full.shape[1:]))
        if average is None:
            average_map = None
        elif average_map is not None:
            average_map.add(values, average.expand_as(values), inside)
        own.add(values, tuple(full.shape[1:]))
        census.add(values, full, interior, inside)
        done += len(images)
        if progress is not None:
            progress(done, batches.expected)
    return _Measured(comparisons, average_map, own, census)


def _interior(positions: Positions, shape: tuple[int, ...], census: Census) -> Interior | None:
    """Return the interior; None once it is not known for some size of image, with the reason in the census."""
    if census.problem:
        return None
    try:
        return positions.interior(shape)
    except ConvCircuitsError as error:
        census.problem = str(error)
        return None


def _evaluation(
    circuit: Circuit,
    counts: tuple[Mapping[str, Tensor], Mapping[str, Tensor]],
    measured: _Measured,
    fitted: _Measured | None,
    place: int,
    control: int | None,
    provenance: Mapping[str, Any],
) -> Evaluation:
    """Return the figures of a circuit, given its index in the sweep and that of its control."""
    own, census, interior = measured.comparisons[place], measured.census, measured.census.interior
    training = fitted.comparisons[place] if fitted is not None and fitted.comparisons else None
    lines = training.lines() if training is not None else []
    kernels, effective = counts
    random = None if control is None else measured.comparisons[control]
    compared = (own, measured.average_map, random)
    r2, average_map, of_random = (_r2(one, interior) for one in compared)
    rectified = [math.nan if one is None else one.r2(one.rectified) for one in compared]
    kind: Literal["inside", "central", "unknown"] = (
        "unknown" if interior is None else "inside" if interior.inside else "central"
    )
    verdict, sentence = decide(r2, average_map, of_random, feature=str(circuit.feature), where=WHERE[kind])
    report = Evaluation(
        feature=str(circuit.feature),
        pearson=own.pearson(own.values),
        r2=r2.all,
        r2_interior=r2.interior,
        r2_rectified=rectified[0],
        r2_training=training.r2(training.values) if training is not None else math.nan,
        r2_average_map=average_map.all,
        r2_average_map_interior=average_map.interior,
        r2_average_map_rectified=rectified[1],
        r2_random=of_random.all,
        r2_random_interior=of_random.interior,
        r2_random_rectified=rectified[2],
        verdict=verdict,
        verdict_sentence=sentence,
        interior=kind,
        interior_share=math.nan if interior is None else census.inside / census.values,
        maxima_at_border=census.at_border / census.maxima if interior is not None and interior.inside else math.nan,
        positive=census.positive / census.values,
        r2_readout=own.r2_of_lines(lines) if lines else math.nan,
        readout=lines[0] if lines and not own.several else (math.nan, math.nan),
        error=_ratio(own.error, own.size),
        error_at_max=_ratio(own.error_at_max, own.size_at_max),
        pearson_max=own.pearson(own.maxima),
        kernels=count_kept(kernels),
        effective_kernels=count_kept(effective),
        filters=sum(int(mask.any(1).sum()) for mask in kernels.values()),
        effective_filters=sum(int(mask.any(1).sum()) for mask in effective.values()),
        relevant=circuit.relevant,
        density=circuit.density,
        images=provenance["images"]["count"],
        elements=len(circuit),
        constants=circuit.constants,
        granularity=circuit.granularity,
        provenance={**provenance, "circuit": dict(circuit.provenance)},
    )
    return dataclasses.replace(report, notes=notes(report, own, census))


def _r2(comparison: Comparison | None, interior: Interior | None) -> R2:
    if comparison is None:
        return R2(math.nan, math.nan)
    return R2(comparison.r2(comparison.values), math.nan if interior is None else comparison.r2(comparison.interior))


def _ratio(error: float, size: float) -> float:
    return error / size if size > 0 else math.nan


def _batches(images: Images, network: Network, batch_size: int) -> Batches:
    return Batches(images, device=network.device, dtype=network.dtype, batch_size=batch_size)
