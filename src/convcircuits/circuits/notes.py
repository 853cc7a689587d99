"""Notes beside a circuit's figures: what a reader must know to interpret them."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from convcircuits.circuits.moments import Census, Comparison, Moments
from convcircuits.texts import sentences
from convcircuits.values.report import WHERE, Evaluation

FEW_IMAGES = 10
"""Figures on fewer images than this get a note."""

HARDLY_VARIES = 0.05
"""A feature hardly varies if its standard deviation is below this share of its root mean square."""


def notes(report: Evaluation, own: Comparison, census: Census) -> tuple[str, ...]:
    """Return the notes on a circuit's figures, as sentences.

    Args:
        report: The figures, without notes.
        own: The comparison of the circuit with the full model, from which they were computed.
        census: Statistics of the full model's maps.
    """
    return sentences(
        [
            *_on_origin(report),
            *_on_images(report),
            *_on_run(report),
            *(_on_units(own) if own.several else _on_constancy(*own.values, *own.maxima)),
            *_on_interior(report, own, census),
            *_on_baseline(report),
            *_on_rectification(report, own),
        ]
    )


def _on_origin(report: Evaluation) -> Iterator[str]:
    circuit = report.provenance["circuit"]
    yield from (str(note) for note in circuit.get("notes", ()))
    if circuit.get("images") == report.provenance["images"]:
        yield "Measured on the same images that the circuit was found on; figures on held-out images may be lower."
    if report.constants:
        yield from _on_calibration(report, circuit.get("calibration", {}))
    if report.provenance["fitted_on"] == report.provenance["images"]:
        yield "The readout and the average map come from the same images that the circuit is measured on."


def _on_calibration(report: Evaluation, calibration: Mapping[str, Any]) -> Iterator[str]:
    fitted_on = calibration.get("images")
    on = "" if fitted_on is None else f" on {fitted_on['count']:,} images"
    yield f"The circuit has {report.constants:,} constants that were fitted{on}."
    if fitted_on is not None and fitted_on == report.provenance["images"]:
        yield "These are the images that it is measured on; figures on held-out images may be much lower."
    elif not math.isnan(report.r2_training) and report.provenance["fitted_on"] == fitted_on:
        gap = report.r2_training - report.r2
        yield f"On those images R2 is {report.r2_training:.2f}, here {report.r2:z.2f}: a gap of {gap:z.2f}."
    if report.provenance["fitted_on"] is None and not math.isnan(report.r2_random):
        yield "The random circuit has none, as no images were given to fit them on; the comparison favors the circuit."


def _on_images(report: Evaluation) -> Iterator[str]:
    if report.images < FEW_IMAGES:
        count = f"{report.images} image{'s' * (report.images != 1)}"
        yield f"Measured on only {count}; with fewer than {FEW_IMAGES}, figures can differ much on other images."
    if report.images < 2:
        yield "With one image, r of the maxima is not defined (NaN)."


def _on_run(report: Evaluation) -> Iterator[str]:
    if report.provenance["run"] == "masked":
        yield f"Measured by masked runs of the whole model, which are slower: {report.provenance['run_reason']}"
    if "unchecked" in report.provenance["laws"]:
        yield f"Some checks were not possible: {report.provenance['laws']['unchecked']}"


def _on_constancy(values: Moments, maxima: Moments) -> Iterator[str]:
    if not math.isfinite(values.squared_error):
        yield "Maps of the circuit or of the model contain NaN or Inf, so r and R2 are not defined (NaN)."
    if values.full_constant:
        yield "The feature is constant on these images, so r and R2 are not defined (NaN)."
    elif values.circuit_constant:
        yield "The circuit's feature is constant on these images, so r is not defined (NaN)."
    if _hardly_varies(values):
        yield "The feature hardly varies on these images, so R2 describes small differences."
    if maxima.n > 1 and not values.full_constant and maxima.full_constant:
        yield "The feature has the same maximum in every image, so r of the maxima is not defined (NaN)."
    elif maxima.n > 1 and not values.circuit_constant and maxima.circuit_constant:
        yield "The circuit has the same maximum in every image, so r of the maxima is not defined (NaN)."


def _on_units(own: Comparison) -> Iterator[str]:
    by_unit = list(zip(own.units, own.values, strict=True))
    silent = [str(unit) for unit, m in by_unit if m.full_constant]
    lost = [str(unit) for unit, m in by_unit if m.circuit_constant and not m.full_constant]
    still = [str(unit) for unit, m in by_unit if _hardly_varies(m)]
    if not all(math.isfinite(m.squared_error) for m in own.values):
        yield "Maps of the circuit or of the model contain NaN or Inf, so r and R2 are not defined (NaN)."
    if silent:
        yield f"Constant on these images, so left out of r and R2: {_named(silent)}."
    if lost:
        yield f"Constant in the circuit, so counted as r = 0: {_named(lost)}."
    if still:
        yield f"Hardly varying on these images, so R2 describes small differences: {_named(still)}."


def _named(units: Sequence[str]) -> str:
    return f"unit{'s' * (len(units) > 1)} {', '.join(units)}"


def _hardly_varies(values: Moments) -> bool:
    square = values.ff / max(values.n, 1)
    return not values.full_constant and square < HARDLY_VARIES**2 * (square + values.full**2)


def _on_interior(report: Evaluation, own: Comparison, census: Census) -> Iterator[str]:
    interior = census.interior
    if interior is None:
        yield f"Receptive fields are not known, so R2 on the interior is not defined (NaN): {census.problem}"
        return
    where = WHERE[report.interior]
    if not interior.inside and interior.mask.numel() > 1:
        field, image, whole = (f"{h} x {w}" for h, w in (interior.field, interior.image, interior.map))
        few = f"only {interior.within} of them" if interior.within else "none"
        yield (
            f"Receptive fields are {field} pixels, and {few} lie{'s' * (interior.within < 2)} inside the image ({image}"
            f"), so the {len(interior.positions)} central positions of the {whole} map, whose fields extend least "
            "beyond the image, are used as the interior."
        )
    if not census.inside:
        yield f"No counted position is on {where}, so R2 there is not defined (NaN)."
    elif all(m.full_constant for m in own.interior) and not all(m.full_constant for m in own.values):
        yield f"The feature varies only at the border: on {where} it is constant, so R2 there is not defined (NaN)."
    if report.maxima_at_border > 0.5:
        yield (
            f"In {report.maxima_at_border:.0%} of the images the feature is highest at the border, where its receptive "
            f"field extends beyond the image ({1 - interior.mask.double().mean():.0%} of the positions): padding may "
            "drive it."
        )


def _on_baseline(report: Evaluation) -> Iterator[str]:
    fitted_on, found_on = report.provenance["fitted_on"], report.provenance["circuit"].get("images")
    if fitted_on is None:
        yield "There is no average map to compare with: the images that the circuit was found on were not given."
        return
    if found_on is not None and fitted_on not in (found_on, report.provenance["images"]):
        yield "The average map was computed on other images or crops than those that the circuit was found on."
    if math.isnan(report.r2_average_map) and not math.isnan(report.r2):
        yield "The training images give maps of other sizes, so there is no average map to compare with (NaN)."
    elif report.r2 > 0 and report.r2_average_map > report.r2 / 2:
        yield (
            f"The average training map, which needs no network, reaches R2 {report.r2_average_map:.2f}, more than half "
            f"of the circuit's {report.r2:.2f}: much of the variation is the same in every image."
        )


def _on_rectification(report: Evaluation, own: Comparison) -> Iterator[str]:
    if not report.positive:
        yield "The feature is never above 0 on these images: if a ReLU follows, nothing of it passes."
    elif dead := [str(u) for u, m in zip(own.units, own.rectified, strict=True) if own.several and not m.full]:
        yield f"Never above 0 on these images: {_named(dead)}. If a ReLU follows, nothing of that passes."
