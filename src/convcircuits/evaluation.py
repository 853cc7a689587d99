"""Measure how well a circuit preserves its feature."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from convcircuits.batches import Batches, Images, Progress
from convcircuits.capture import Network
from convcircuits.circuit import Circuit
from convcircuits.errors import ConvCircuitsError
from convcircuits.feature import Feature, at
from convcircuits.finding import check_circuit
from convcircuits.masking import Masks, Subject
from convcircuits.provenance import describe
from convcircuits.reach import survey


@dataclass(frozen=True)
class Evaluation:
    """How well a circuit's feature map f_c follows the full model's f, over all images and counted positions.

    Attributes:
        feature: Text form of the feature.
        pearson: Pearson r between f_c and f; blind to scale and shift.
        r2: 1 - sum (f - f_c)^2 / sum (f - mean f)^2; at most 1, and below 0 where the mean of f would do better.
        r2_readout: R2 of a f_c + d, with the two numbers fitted on other images; NaN where none were given.
        readout: The two numbers (a, d); NaN where not fitted.
        error: mean |f_c - f| / mean |f|; 0 is perfect.
        error_at_max: The same, at each image's argmax in the full model.
        pearson_max: Pearson r between the maxima of f_c and f, over images.
        kernels: Kernels kept, whole or in part.
        effective_kernels: Kept kernels on a complete path image -> feature inside the circuit.
        filters: Filters with a kept kernel.
        effective_filters: Filters with an effective kernel.
        relevant: Units (filters, kernels or weights, as the granularity says) on a path in the full model.
        density: units / relevant.
        images: How many images were measured on.
        units: Units kept.
        granularity: What the circuit keeps or drops as one unit.
        notes: What the reader must know to read the figures rightly.
        provenance: How the figures came about, as JSON values.
    """

    feature: str
    pearson: float
    r2: float
    r2_readout: float
    readout: tuple[float, float]
    error: float
    error_at_max: float
    pearson_max: float
    kernels: int
    effective_kernels: int
    filters: int
    effective_filters: int
    relevant: int
    density: float
    images: int
    units: int
    granularity: str
    notes: tuple[str, ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def as_dict(self) -> dict[str, Any]:
        """Give all figures as JSON values; NaN becomes None."""
        return {k: _without_nan(v) for k, v in dataclasses.asdict(self).items()}

    def summary(self) -> str:
        """Say all figures in a few lines."""
        share = f"{self.granularity}s kept ({self.density:.3%})"
        kernels = "" if self.granularity == "kernel" else f"{self.kernels:,} kernels, "
        lines = [
            f"{self.feature}: {self.units:,} of {self.relevant:,} {share}, {kernels}"
            f"{self.effective_kernels:,} effective; {self.filters:,} filters, {self.effective_filters:,} effective",
            f"on {self.images:,} image{'s' * (self.images != 1)}: Pearson r {self.pearson:.3f}, R2 {self.r2:.3f}"
            + ("" if math.isnan(self.readout[0]) else f", R2 after readout {self.r2_readout:.3f}"),
            f"relative error {self.error:.3f}, at each image's maximum {self.error_at_max:.3f}"
            + ("" if math.isnan(self.pearson_max) else f"; r of the maxima {self.pearson_max:.3f}"),
        ]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


def evaluate(
    model: nn.Module,
    circuit: Circuit,
    images: Images,
    *,
    fit: Images | None = None,
    effective: bool = True,
    batch_size: int = 16,
    progress: Progress | None = None,
) -> Evaluation:
    """Measure how well a circuit preserves its feature on images it should not have been found on.

    Streams over batches; no map is stored. Where the feature has a position, only the values there count.

    Args:
        model: The model that the circuit belongs to.
        circuit: The circuit.
        images: Held-out images, as for ``score``.
        fit: Images on which the readout a f_c + d is fitted: those the circuit was found on.
        effective: Run the circuit as it is defined: no kernel reads a dead channel and a dead filter adds nothing.
            False leaves the biases of dead filters, as published.
        batch_size: The most images that run at once.
        progress: Called with images done and images in all (or None).

    Raises:
        ConvCircuitsError: If the circuit belongs to other weights, or images do not fit the model.
    """
    return evaluate_all(
        model, [circuit], images, fit=fit, effective=effective, batch_size=batch_size, progress=progress
    )[0]


def evaluate_all(
    model: nn.Module,
    circuits: Sequence[Circuit],
    images: Images,
    *,
    fit: Images | None = None,
    effective: bool = True,
    batch_size: int = 16,
    progress: Progress | None = None,
) -> list[Evaluation]:
    """Measure circuits of one feature as ``evaluate`` does, with one run of the full model for all of them.

    Raises:
        ConvCircuitsError: As ``evaluate``, or if there are no circuits or their features differ.
    """
    if not circuits:
        raise ConvCircuitsError("There are no circuits to measure; give at least one.")
    for circuit in circuits:
        if not isinstance(circuit, Circuit):
            raise ConvCircuitsError(f"Expected a Circuit, got {type(circuit).__name__}.")
    feature = circuits[0].feature
    if any(circuit.feature != feature for circuit in circuits):
        raise ConvCircuitsError("The circuits preserve different features; measure them one by one.")
    network = Network(model)
    batches = _batches(images, network, batch_size)
    shape = batches.first_shape()
    subject = Subject(network, feature, survey(network, feature, shape))
    described = describe(network, feature, subject.survey)
    for circuit in circuits:
        check_circuit(circuit, feature, described)
    masks = [subject.masks(circuit, shape, effective=effective) for circuit in circuits]
    fitted = None
    if fit is not None:
        fit_batches = _batches(fit, network, batch_size)
        fitted = _compare(subject, masks, fit_batches, None)
    measured = _compare(subject, masks, batches, progress)
    provenance = described | {
        "images": batches.describe(),
        "fitted_on": None if fit is None else fit_batches.describe(),
        "effective": effective,
    }
    return [
        _evaluation(
            circuit,
            subject.masks(circuit, shape, effective=False).kernels,
            subject.masks(circuit, shape, effective=True).kernels,
            comparison,
            fitted[i].values.line() if fitted else (math.nan, math.nan),
            batches,
            provenance,
        )
        for i, (circuit, comparison) in enumerate(zip(circuits, measured, strict=True))
    ]


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
    """Give the feature's maps in the full model, or in a circuit.

    Args:
        model: Any CNN; it runs in eval mode.
        feature: The feature; its position plays no part.
        images: As for ``score``.
        circuit: Run this circuit in place of the full model.
        effective: As for ``evaluate``.
        batch_size: The most images that run at once.
        progress: Called with images done and images in all (or None).

    Returns:
        (N, H, W), or (N,) where the layer is Linear; on the CPU, in the model's dtype.

    Raises:
        ConvCircuitsError: If the circuit is of other weights, or images do not fit the model or give maps of
            different size.
    """
    network = Network(model)
    batches = _batches(images, network, batch_size)
    shape = batches.first_shape()
    subject = Subject(network, feature, survey(network, feature, shape))
    masks = None
    if circuit is not None:
        check_circuit(circuit, feature, describe(network, feature, subject.survey))
        masks = subject.masks(circuit, shape, effective=effective)
    maps: list[Tensor] = []
    with torch.no_grad():
        for batch in batches:
            maps.append(subject.maps(batch, masks).cpu())
            if maps[-1].shape[1:] != maps[0].shape[1:]:
                raise ConvCircuitsError(
                    f"Images of different sizes give maps of {tuple(maps[0].shape[1:])} and "
                    f"{tuple(maps[-1].shape[1:])}; give images of one size."
                )
            if progress is not None:
                progress(sum(map(len, maps)), batches.total)
    return torch.cat(maps)


class _Moments:
    """Means and co-moments of pairs (full, circuit) in float64, merged batch by batch (Chan et al. 1979)."""

    def __init__(self, eps: float) -> None:
        self.n, self.eps = 0, eps
        self.full = self.circuit = 0.0
        self.ff = self.cc = self.fc = 0.0
        self.squared_error = 0.0

    def add(self, full: Tensor, circuit: Tensor) -> None:
        f, c = full.double().flatten(), circuit.double().flatten()
        n, mean_f, mean_c = f.numel(), float(f.mean()), float(c.mean())
        self.squared_error += float((f - c).square().sum())
        f, c = f - mean_f, c - mean_c
        total = self.n + n
        step_f, step_c, weight = mean_f - self.full, mean_c - self.circuit, self.n * n / total
        self.ff += float(f @ f) + step_f**2 * weight
        self.cc += float(c @ c) + step_c**2 * weight
        self.fc += float(f @ c) + step_f * step_c * weight
        self.full += step_f * n / total
        self.circuit += step_c * n / total
        self.n = total

    @property
    def full_constant(self) -> bool:
        return _constant(self.ff, self.full, self.n, self.eps)

    @property
    def circuit_constant(self) -> bool:
        return _constant(self.cc, self.circuit, self.n, self.eps)

    def pearson(self) -> float:
        if self.full_constant or self.circuit_constant or not math.isfinite(self.fc + self.ff + self.cc):
            return math.nan
        return max(-1.0, min(1.0, self.fc / math.sqrt(self.ff) / math.sqrt(self.cc)))

    def r2(self) -> float:
        return math.nan if self.full_constant else 1 - self.squared_error / self.ff

    def line(self) -> tuple[float, float]:
        """Fit full = a circuit + d by least squares; a is 0 where the circuit is constant."""
        a = 0.0 if self.circuit_constant else self.fc / self.cc
        return a, self.full - a * self.circuit

    def r2_of_line(self, a: float, d: float) -> float:
        if self.full_constant:
            return math.nan
        left = self.ff - 2 * a * self.fc + a * a * self.cc
        return 1 - (left + self.n * (self.full - a * self.circuit - d) ** 2) / self.ff


@dataclass
class _Comparison:
    values: _Moments
    maxima: _Moments
    error: float = 0.0
    size: float = 0.0
    error_at_max: float = 0.0
    size_at_max: float = 0.0


def _compare(
    subject: Subject, masks: Sequence[Masks], batches: Batches, progress: Progress | None
) -> list[_Comparison]:
    eps, done = torch.finfo(subject.network.dtype).eps, 0
    results = [_Comparison(_Moments(eps), _Moments(eps)) for _ in masks]
    for images in batches:
        with torch.no_grad():
            maps = subject.maps(images)
            indices = subject.feature.indices(maps)
            full = at(maps, indices).double().cpu()
            best = full.argmax(1, keepdim=True)
            for mask, result in zip(masks, results, strict=True):
                circuit = at(subject.maps(images, mask), indices).double().cpu()
                result.values.add(full, circuit)
                result.maxima.add(full.amax(1), circuit.amax(1))
                gap = (circuit - full).abs()
                result.error += float(gap.sum())
                result.size += float(full.abs().sum())
                result.error_at_max += float(gap.gather(1, best).sum())
                result.size_at_max += float(full.gather(1, best).abs().sum())
        done += len(images)
        if progress is not None:
            progress(done, batches.total)
    return results


def _evaluation(
    circuit: Circuit,
    kernels: Mapping[str, Tensor],
    effective: Mapping[str, Tensor],
    measured: _Comparison,
    readout: tuple[float, float],
    batches: Batches,
    provenance: Mapping[str, Any],
) -> Evaluation:
    return Evaluation(
        feature=str(circuit.feature),
        pearson=measured.values.pearson(),
        r2=measured.values.r2(),
        r2_readout=measured.values.r2_of_line(*readout),
        readout=readout,
        error=_ratio(measured.error, measured.size),
        error_at_max=_ratio(measured.error_at_max, measured.size_at_max),
        pearson_max=measured.maxima.pearson(),
        kernels=sum(int(mask.sum()) for mask in kernels.values()),
        effective_kernels=sum(int(mask.sum()) for mask in effective.values()),
        filters=sum(int(mask.any(1).sum()) for mask in kernels.values()),
        effective_filters=sum(int(mask.any(1).sum()) for mask in effective.values()),
        relevant=circuit.relevant,
        density=circuit.density,
        images=batches.count,
        units=len(circuit),
        granularity=circuit.granularity,
        notes=_notes(circuit, measured, provenance["images"], provenance["fitted_on"]),
        provenance={**provenance, "circuit": dict(circuit.provenance)},
    )


def _notes(
    circuit: Circuit, measured: _Comparison, images: Mapping[str, Any], fitted_on: Mapping[str, Any] | None
) -> tuple[str, ...]:
    notes = [str(note) for note in circuit.provenance.get("notes", ())]
    if circuit.provenance.get("images") == images:
        notes.append(
            "These are the very images that the circuit was found on; figures on held-out images may be lower."
        )
    if not math.isfinite(measured.values.squared_error):
        notes.append("The circuit's maps or the model's hold NaN or Inf, so r and R2 are not defined (NaN).")
    if fitted_on == images:
        notes.append("The readout was fitted on the very images that it is measured on.")
    if measured.values.full_constant:
        notes.append("The feature is constant on these images, so r and R2 are not defined (NaN).")
    elif measured.values.circuit_constant:
        notes.append("The circuit's feature is constant on these images, so r is not defined (NaN).")
    if measured.maxima.n < 2:
        notes.append("One image has no correlation of maxima (NaN).")
    elif not measured.values.full_constant and measured.maxima.full_constant:
        notes.append("The feature has the same maximum in every image, so r of the maxima is not defined (NaN).")
    elif not measured.values.circuit_constant and measured.maxima.circuit_constant:
        notes.append("The circuit has the same maximum in every image, so r of the maxima is not defined (NaN).")
    return tuple(notes)


def _constant(moment: float, mean: float, n: int, eps: float) -> bool:
    return moment <= n * (eps * mean) ** 2  # what rounding in the model's dtype alone can make


def _ratio(error: float, size: float) -> float:
    return error / size if size > 0 else math.nan


def _batches(images: Images, network: Network, batch_size: int) -> Batches:
    return Batches(images, device=network.device, dtype=network.dtype, batch_size=batch_size)


def _without_nan(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, (tuple, list)):
        return [_without_nan(v) for v in value]
    if isinstance(value, Mapping):
        return {k: _without_nan(v) for k, v in value.items()}
    return value
