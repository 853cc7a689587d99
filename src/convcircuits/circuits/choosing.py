"""Choose a circuit's constants by validation images: few images support few constants."""

import math
from dataclasses import dataclass

from torch import nn

from convcircuits.circuits.equations import Method
from convcircuits.circuits.evaluation import evaluate_all
from convcircuits.circuits.refitting import METHODS, RIDGE, refit
from convcircuits.errors import ConvCircuitsError
from convcircuits.network.batches import Images, Progress, begin
from convcircuits.values.circuit import Circuit

AS_FOUND = "as found"
"""The constants that the circuit came with."""


@dataclass(frozen=True)
class Chosen:
    """A circuit with the constants that do best on validation images.

    Attributes:
        circuit: The circuit.
        method: What was fitted, a key of ``METHODS``, or ``AS_FOUND``.
        r2: What could have been chosen -> its R2 on the validation images.
        interior: Whether that R2 is the one on the interior.
    """

    circuit: Circuit
    method: str
    r2: dict[str, float]
    interior: bool


def best_constants(
    model: nn.Module,
    circuit: Circuit,
    images: Images,
    validation: Images,
    *,
    batch_size: int = 16,
    seed: int = 0,
    progress: Progress | None = None,
) -> Chosen:
    """Return a circuit with the constants that do best on validation images: its own or those of a method of ``refit``.

    Constants fitted on few images describe these images. So what was fitted and what was not is compared on others, by
    R2 on the interior, or over all counted positions if there is none. Of equals, the one with the fewest constants is
    chosen. The figure of the best is too optimistic: report R2 on images that had no part in this.

    Args:
        model: The model that the circuit belongs to.
        circuit: The circuit. If it was fitted, others are pulled as its own constants were.
        images: The images to fit on, those that the circuit was found on.
        validation: The images that decide.
        batch_size: Maximum number of images that run at once.
        seed: As for ``refit``.
        progress: Called with the number of images done in each phase, and their total.

    Raises:
        ConvCircuitsError: As for ``refit``, or if the feature does not vary on the validation images.
    """
    known = circuit.provenance.get("calibration", {})
    pull = {
        name: known.get(name, default) for name, default in (("ridge", RIDGE), ("toward", 1.0), ("positive", False))
    }
    found: dict[str, Circuit] = {}
    methods: tuple[Method, ...] = ("none", "mean", "filters", "kernels")  # the fewest constants first
    for method in methods:
        begin(progress, f"fitting {METHODS[method]}")
        found[method] = refit(
            model, circuit, images, method=method, batch_size=batch_size, seed=seed, progress=progress, **pull
        )
    if circuit.calibrated:
        found[AS_FOUND] = circuit
    begin(progress, "choosing constants on validation images")
    reports = evaluate_all(
        model,
        list(found.values()),
        validation,
        controls=[None] * len(found),
        batch_size=batch_size,
        progress=progress,
    )
    interior = not math.isnan(reports[0].r2_interior)
    figures = {
        method: report.r2_interior if interior else report.r2 for method, report in zip(found, reports, strict=True)
    }
    if math.isnan(next(iter(figures.values()))):
        raise ConvCircuitsError(
            f"{circuit.feature} does not vary on the validation images, so R2 is not defined; give other images."
        )
    best = max(figures, key=lambda method: figures[method])
    return Chosen(found[best], best, figures, interior)
