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
from convcircuits.extraction import Sweep
from convcircuits.feature import Feature, at
from convcircuits.finding import check_circuit
from convcircuits.masking import Subject
from convcircuits.provenance import describe
from convcircuits.reach import survey
from convcircuits.texts import printable


@dataclass(frozen=True)
class Evaluation:
    """How well a circuit's feature map f_c follows the full model's f, over all images and counted positions.

    Of several units, r, R2, R2 after a readout and r of the maxima are means over units, each with its own mean and
    its own readout: pooled, the differences between units would flatter them. A unit that is constant in the full
    model is left out; one that is constant in the circuit alone counts as r = 0. The errors are pooled over units.

    Attributes:
        feature: Text form of the feature.
        pearson: Pearson r between f_c and f; blind to scale and shift.
        r2: 1 - sum (f - f_c)^2 / sum (f - mean f)^2; at most 1, and below 0 where the mean of f would do better.
        r2_readout: R2 of a f_c + d, with the two numbers fitted on other images; NaN where none were given.
        readout: The two numbers (a, d); NaN where not fitted, and for several units, as each has its own.
        error: mean |f_c - f| / mean |f|; 0 is perfect.
        error_at_max: The same, at each image's (and unit's) argmax in the full model.
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
        fitted = not (math.isnan(self.readout[0]) and math.isnan(self.r2_readout))
        share = f"{self.granularity}s kept ({self.density:.3%})"
        kernels = "" if self.granularity == "kernel" else f"{self.kernels:,} kernels, "
        lines = [
            f"{self.feature}: {self.units:,} of {self.relevant:,} {share}, {kernels}"
            f"{self.effective_kernels:,} effective; {self.filters:,} filters, {self.effective_filters:,} effective",
            f"on {self.images:,} image{'s' * (self.images != 1)}: Pearson r {self.pearson:.3f}, R2 {self.r2:.3f}"
            + (f", R2 after readout {self.r2_readout:.3f}" if fitted else ""),
            f"relative error {self.error:.3f}, at each image's maximum {self.error_at_max:.3f}"
            + ("" if math.isnan(self.pearson_max) else f"; r of the maxima {self.pearson_max:.3f}"),
        ]
        return "\n".join([*lines, *(f"note: {printable(note)}" for note in self.notes)])


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
    sweep = Sweep(subject, circuits, effective=effective)
    fitted = None
    if fit is not None:
        fit_batches = _batches(fit, network, batch_size)
        fitted = _compare(sweep, fit_batches, None)
    measured = _compare(sweep, batches, progress)
    provenance = described | {
        "images": batches.describe(),
        "fitted_on": None if fit is None else fit_batches.describe(),
        "effective": effective,
    }
    return [
        _evaluation(
            circuit,
            sweep.kept[i],
            sweep.effective(shape)[i],
            comparison,
            fitted[i] if fitted else None,
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
        (N, H, W), or (N,) where the layer is Linear; of several units (N, U, H, W) or (N, U), in the feature's order;
        on the CPU, in the model's dtype.

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


class _Comparison:
    """Sums over images of what a circuit's values and the full model's say: moments per unit, errors of all units."""

    def __init__(self, feature: Feature, eps: float) -> None:
        self.several = isinstance(feature.unit, tuple)
        self.units = feature.unit if isinstance(feature.unit, tuple) else (feature.unit,)
        self.values = [_Moments(eps) for _ in self.units]
        self.maxima = [_Moments(eps) for _ in self.units]
        self.error = self.size = self.error_at_max = self.size_at_max = 0.0

    def add(self, full: Tensor, circuit: Tensor) -> None:
        """Add a batch: counted values, (N, P), or (N, U, P) of several units."""
        gap, best = (circuit - full).abs(), full.argmax(-1, keepdim=True)
        self.error += float(gap.sum())
        self.size += float(full.abs().sum())
        self.error_at_max += float(gap.gather(-1, best).sum())
        self.size_at_max += float(full.gather(-1, best).abs().sum())
        pairs = zip(full.unbind(1), circuit.unbind(1), strict=True) if self.several else [(full, circuit)]
        for (f, c), values, maxima in zip(pairs, self.values, self.maxima, strict=True):
            values.add(f, c)
            maxima.add(f.amax(1), c.amax(1))

    def lines(self) -> list[tuple[float, float]]:
        return [moments.line() for moments in self.values]

    def pearson(self, moments: Sequence[_Moments]) -> float:
        return _mean(moments, [0.0 if self.several and m.circuit_constant else m.pearson() for m in moments])

    def r2(self) -> float:
        return _mean(self.values, [m.r2() for m in self.values])

    def r2_of_lines(self, lines: Sequence[tuple[float, float]]) -> float:
        return _mean(self.values, [m.r2_of_line(*line) for m, line in zip(self.values, lines, strict=True)])


def _mean(moments: Sequence[_Moments], figures: Sequence[float]) -> float:
    """Average a figure over the units that are not constant in the full model."""
    telling = [figure for m, figure in zip(moments, figures, strict=True) if not m.full_constant]
    return sum(telling) / len(telling) if telling else math.nan


def _compare(sweep: Sweep, batches: Batches, progress: Progress | None) -> list[_Comparison]:
    subject, done = sweep.subject, 0
    eps = torch.finfo(subject.network.dtype).eps
    results = [_Comparison(subject.feature, eps) for _ in sweep.kept]
    for images in batches:
        with torch.no_grad():
            full, *others = sweep.maps(images)
            indices = subject.feature.indices(full)
            values = at(full, indices).double().cpu()
            for maps, result in zip(others, results, strict=True):
                result.add(values, at(maps, indices).double().cpu())
        done += len(images)
        if progress is not None:
            progress(done, batches.total)
    return results


def _evaluation(
    circuit: Circuit,
    kernels: Mapping[str, Tensor],
    effective: Mapping[str, Tensor],
    measured: _Comparison,
    fitted: _Comparison | None,
    batches: Batches,
    provenance: Mapping[str, Any],
) -> Evaluation:
    lines = [] if fitted is None else fitted.lines()
    return Evaluation(
        feature=str(circuit.feature),
        pearson=measured.pearson(measured.values),
        r2=measured.r2(),
        r2_readout=measured.r2_of_lines(lines) if lines else math.nan,
        readout=lines[0] if lines and not measured.several else (math.nan, math.nan),
        error=_ratio(measured.error, measured.size),
        error_at_max=_ratio(measured.error_at_max, measured.size_at_max),
        pearson_max=measured.pearson(measured.maxima),
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
    if not all(math.isfinite(moments.squared_error) for moments in measured.values):
        notes.append("The circuit's maps or the model's hold NaN or Inf, so r and R2 are not defined (NaN).")
    if fitted_on == images:
        notes.append("The readout was fitted on the very images that it is measured on.")
    notes += _notes_on_units(measured) if measured.several else _notes_on_constancy(*measured.values, *measured.maxima)
    if measured.maxima[0].n < 2:
        notes.append("One image has no correlation of maxima (NaN).")
    return tuple(notes)


def _notes_on_constancy(values: _Moments, maxima: _Moments) -> list[str]:
    notes = []
    if values.full_constant:
        notes.append("The feature is constant on these images, so r and R2 are not defined (NaN).")
    elif values.circuit_constant:
        notes.append("The circuit's feature is constant on these images, so r is not defined (NaN).")
    if maxima.n > 1 and not values.full_constant and maxima.full_constant:
        notes.append("The feature has the same maximum in every image, so r of the maxima is not defined (NaN).")
    elif maxima.n > 1 and not values.circuit_constant and maxima.circuit_constant:
        notes.append("The circuit has the same maximum in every image, so r of the maxima is not defined (NaN).")
    return notes


def _notes_on_units(measured: _Comparison) -> list[str]:
    by_unit = list(zip(measured.units, measured.values, strict=True))
    silent = [str(unit) for unit, m in by_unit if m.full_constant]
    lost = [str(unit) for unit, m in by_unit if m.circuit_constant and not m.full_constant]
    notes = []
    if silent:
        notes.append(f"Constant on these images, and so left out of r and R2: unit {', '.join(silent)}.")
    if lost:
        notes.append(f"Constant in the circuit, and so counted as r = 0: unit {', '.join(lost)}.")
    return notes


def _constant(moment: float, mean: float, n: int, eps: float) -> bool:
    return moment <= n * (8 * eps * mean) ** 2  # what rounding in the model's dtype alone can make


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
