"""Find the smallest circuit that reaches an R2, on images that it is neither found on nor reported on."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from convcircuits.circuits.criteria import CRITERIA
from convcircuits.circuits.evaluation import evaluate_all
from convcircuits.circuits.finding import find, needs_budget, prune, score
from convcircuits.errors import ConvCircuitsError, option
from convcircuits.network.batches import Images, Progress, begin
from convcircuits.values.circuit import Circuit
from convcircuits.values.feature import Feature

_AT_ONCE = 8
"""Circuits of a sweep, where one scoring gives them all."""
_WITHIN = 100
"""The size is found to within its hundredth part, or one unit."""


@dataclass(frozen=True)
class Reached:
    """The smallest circuit of those tried that reaches an R2.

    Attributes:
        circuit: The circuit.
        r2: Its R2 on the validation images.
        tried: The sizes that were tried and their R2 on the validation images, from the smallest.
    """

    circuit: Circuit
    r2: float
    tried: tuple[tuple[int, float], ...]


def reach(
    model: nn.Module,
    feature: Feature,
    images: Images,
    validation: Images,
    *,
    r2: float,
    criterion: str = "gauss_newton",
    granularity: str = "kernel",
    batch_size: int = 16,
    seed: int = 0,
    progress: Progress | None = None,
    **options: Any,
) -> Reached:
    """Find the smallest circuit whose R2 on validation images is at least so much.

    Sizes are tried between the largest that failed and the smallest that did not, evenly by their logarithms, until
    these are a hundredth apart, or one unit. R2 need not grow with the size: a smaller one that was not tried may
    reach it too. Having been chosen by it, the R2 on validation images flatters the circuit: report it on others.

    Args:
        model: Any CNN.
        feature: What is to be preserved.
        images: The images that circuits are found on.
        validation: The images that decide on the size.
        r2: Above 0 and below 1, over all positions that count.
        criterion: A name in ``CRITERIA``; one that is iterative runs anew for every size.
        granularity: As for ``find``.
        batch_size: The most images that run at once.
        seed: For criteria that draw.
        progress: As for ``find``, anew for each step.
        **options: The criterion's own.

    Raises:
        ConvCircuitsError: If r2 is out of range or not defined on the validation images, or as ``find``.
    """
    if isinstance(r2, bool) or not isinstance(r2, (int, float)) or not 0 < r2 < 1:
        raise ConvCircuitsError(f"{option('reach_r2')} is an R2 above 0 and below 1; got {r2!r}.")
    chosen: dict[str, Any] = {
        "criterion": criterion,
        "granularity": granularity,
        "batch_size": batch_size,
        "seed": seed,
        **options,
    }
    begin(progress, f"scoring with {criterion}")
    make: Callable[[int], Circuit]
    if criterion in CRITERIA and needs_budget(CRITERIA[criterion]):
        at_once, whole = 1, find(model, feature, images, density=1.0, progress=progress, **chosen)

        def make(kernels: int) -> Circuit:
            begin(progress, f"finding a circuit of {kernels:,} {granularity}s")
            return find(model, feature, images, kernels=kernels, progress=progress, **chosen)
    else:
        scores = score(model, feature, images, progress=progress, **chosen)
        at_once, whole = _AT_ONCE, prune(scores, density=1.0)

        def make(kernels: int) -> Circuit:
            return prune(scores, kernels=kernels)

    def measure(circuits: list[Circuit]) -> list[float]:
        begin(progress, f"measuring on validation images, up to {max(map(len, circuits)):,} {granularity}s")
        reports = evaluate_all(
            model, circuits, validation, controls=[None] * len(circuits), batch_size=batch_size, progress=progress
        )
        return [report.r2 for report in reports]

    best, (best_r2,), failed = whole, measure([whole]), 0
    if math.isnan(best_r2):
        raise ConvCircuitsError(f"{feature} does not vary on the validation images, so R2 says nothing; give others.")
    tried = {len(whole): best_r2}
    while len(best) - failed > max(1, len(best) // _WITHIN):
        sizes = _between(failed, len(best), at_once)
        circuits = [make(size) for size in sizes]
        measured = measure(circuits)
        tried |= dict(zip(sizes, measured, strict=True))
        for circuit, found in zip(circuits, measured, strict=True):
            if found >= r2:
                best, best_r2 = circuit, found
                break
            failed = len(circuit)
    return Reached(best, best_r2, tuple(sorted(tried.items())))


def _between(low: int, high: int, count: int) -> list[int]:
    """Return at most so many whole numbers between two others, evenly spaced by their logarithms; one at least."""
    start = max(low, 0.5)
    numbers = {round(start * (high / start) ** (step / (count + 1))) for step in range(1, count + 1)}
    return sorted(number for number in numbers if low < number < high) or [(low + high) // 2]
