"""What the reader of a circuit's figures must know to read them rightly."""

import math
from collections.abc import Iterator

from convcircuits.circuits.moments import Census, Comparison, Moments
from convcircuits.texts import sentences
from convcircuits.values.report import WHERE, Evaluation

FEW_IMAGES = 10
"""Figures on fewer images than these are said to be on few."""

HARDLY_VARIES = 0.05
"""A feature of which the standard deviation is less than this share of its root mean square hardly varies."""


def notes(report: Evaluation, own: Comparison, census: Census) -> tuple[str, ...]:
    """Return what stands behind the figures of a circuit.

    Args:
        report: The figures, without notes.
        own: What they were made of.
        census: What the full model's maps say.
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
        yield "These are the very images that the circuit was found on; figures on held-out images may be lower."
    if report.provenance["fitted_on"] == report.provenance["images"]:
        yield "The readout was fitted on the very images that it is measured on, and they make the average map too."


def _on_images(report: Evaluation) -> Iterator[str]:
    if report.images < FEW_IMAGES:
        count = f"{report.images} image{'s' * (report.images != 1)}"
        yield f"Measured on {count} alone; on fewer than {FEW_IMAGES}, figures can be far from those on others."
    if report.images < 2:
        yield "One image has no correlation of maxima (NaN)."


def _on_run(report: Evaluation) -> Iterator[str]:
    if report.provenance["run"] == "masked":
        yield f"Measured by masked runs of the whole model, which are slower: {report.provenance['run_reason']}"
    if "unchecked" in report.provenance["laws"]:
        yield f"Not all could be checked: {report.provenance['laws']['unchecked']}"


def _on_constancy(values: Moments, maxima: Moments) -> Iterator[str]:
    if not math.isfinite(values.squared_error):
        yield "The circuit's maps or the model's hold NaN or Inf, so r and R2 are not defined (NaN)."
    if values.full_constant:
        yield "The feature is constant on these images, so r and R2 are not defined (NaN)."
    elif values.circuit_constant:
        yield "The circuit's feature is constant on these images, so r is not defined (NaN)."
    if _hardly_varies(values):
        yield "The feature hardly varies on these images, so R2 is of small differences."
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
        yield "The circuit's maps or the model's hold NaN or Inf, so r and R2 are not defined (NaN)."
    if silent:
        yield f"Constant on these images, and so left out of r and R2: unit {', '.join(silent)}."
    if lost:
        yield f"Constant in the circuit, and so counted as r = 0: unit {', '.join(lost)}."
    if still:
        yield f"Hardly varying on these images, so that R2 is of small differences: unit {', '.join(still)}."


def _hardly_varies(values: Moments) -> bool:
    square = values.ff / max(values.n, 1)
    return not values.full_constant and square < HARDLY_VARIES**2 * (square + values.full**2)


def _on_interior(report: Evaluation, own: Comparison, census: Census) -> Iterator[str]:
    interior = census.interior
    if interior is None:
        yield f"Receptive fields are not known, so there is no R2 on the interior (NaN): {census.problem}"
        return
    where = WHERE[report.interior]
    if not interior.inside and interior.mask.numel() > 1:
        field, image, whole = (f"{h} x {w}" for h, w in (interior.field, interior.image, interior.map))
        few = f"only {interior.within} of them" if interior.within else "none"
        yield (
            f"Receptive fields are {field} pixels, and {few} lie{'s' * (interior.within < 2)} inside the image ({image}"
            f"), so the {len(interior.positions)} central positions of the {whole} map, whose fields leave the image "
            "least, stand in for the interior."
        )
    if not census.inside:
        yield f"No position that counts is on {where}, so R2 there is not defined (NaN)."
    elif all(m.full_constant for m in own.interior) and not all(m.full_constant for m in own.values):
        yield f"The feature varies at the border alone: on {where} it is constant, and R2 not defined (NaN)."
    if report.maxima_at_border > 0.5:
        yield (
            f"In {report.maxima_at_border:.0%} of the images the feature is highest at the border, where its receptive "
            f"field leaves the image ({1 - interior.mask.double().mean():.0%} of the positions): padding may drive it."
        )


def _on_baseline(report: Evaluation) -> Iterator[str]:
    fitted_on, found_on = report.provenance["fitted_on"], report.provenance["circuit"].get("images")
    if fitted_on is None:
        yield "No baseline: the images that the circuit was found on were not given, so their average map is not known."
        return
    if found_on is not None and fitted_on not in (found_on, report.provenance["images"]):
        yield "The average map is of other images, or of other crops, than those that the circuit was found on."
    if math.isnan(report.r2_average_map) and not math.isnan(report.r2):
        yield "The training images give maps of other sizes, so there is no average map to compare with (NaN)."
    elif report.r2 > 0 and report.r2_average_map > report.r2 / 2:
        yield (
            f"The average training map, which needs no network, reaches R2 {report.r2_average_map:.2f}, more than half "
            f"of the circuit's {report.r2:.2f}: much of what varies is alike in every image."
        )


def _on_rectification(report: Evaluation, own: Comparison) -> Iterator[str]:
    if not report.positive:
        yield "The feature is never above 0 on these images: where a ReLU follows, nothing of it is ever read."
    elif dead := [str(u) for u, m in zip(own.units, own.rectified, strict=True) if own.several and not m.full]:
        yield f"Never above 0 on these images: unit {', '.join(dead)}. Where a ReLU follows, nothing of it is read."
