"""Circuits of other sizes: the smallest that reaches an R2, and smaller ones to compare with a given circuit."""

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from convcircuits.circuits.asking import is_descent, needs_budget, options_again
from convcircuits.circuits.criteria import CRITERIA
from convcircuits.circuits.equations import Method
from convcircuits.circuits.evaluation import evaluate_all
from convcircuits.circuits.finding import find, find_path, prune, score
from convcircuits.circuits.refitting import refit
from convcircuits.errors import ConvCircuitsError, option
from convcircuits.network.batches import Batches, Images, Progress, begin
from convcircuits.values.circuit import Circuit
from convcircuits.values.feature import Feature

PARTS = (2, 4, 8)
"""The smaller circuits keep a half, a quarter and an eighth of the elements."""
_AT_ONCE = 8
"""Circuits measured per sweep if one scoring pass ranks them all."""
_WITHIN = 100
"""The size is found to within one part in this many, or one element."""


@dataclass(frozen=True)
class Reached:
    """The smallest circuit, of those tried, that reaches an R2.

    Attributes:
        circuit: The circuit.
        r2: Its R2 on the validation images.
        tried: The sizes that were tried and their R2 on the validation images, in ascending order of size.
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
    criterion: str,
    granularity: str = "kernel",
    method: Method = "none",
    batch_size: int = 16,
    seed: int = 0,
    progress: Progress | None = None,
    **options: Any,
) -> Reached:
    """Find the smallest circuit whose R2 on validation images is at least ``r2``.

    Sizes are tried between the largest that failed and the smallest that succeeded, evenly spaced on a log scale, until
    the two are 1 % or one element apart. A criterion that descends does so once, until a circuit falls short; the size
    is then known only to within its option ``ratio``. If the first circuit of the descent falls short already, it
    starts again from all relevant kernels. ``learned`` trains longest at the end of a descent, where the circuit that
    is chosen is not: ``find``, asked for as many kernels or fewer, may reach more. R2 need not grow with the size, so a
    smaller circuit that was not tried may reach it too. The circuit is chosen by its R2 on the validation images, which
    is therefore too optimistic: report R2 on other images.

    Args:
        model: Any CNN.
        feature: What is to be preserved.
        images: The images that circuits are found on.
        validation: The images that decide on the size.
        r2: The R2 to reach over all counted positions, above 0 and below 1.
        criterion: A name in ``CRITERIA``; an iterative one that does not descend runs again for every size.
        granularity: As for ``find``.
        method: How each circuit is refitted before it is measured, as for ``refit``; not if the criterion descends.
        batch_size: Maximum number of images that run at once.
        seed: Seed for criteria that draw random numbers.
        progress: As for ``find``, starting again for each step.
        **options: Options of the criterion.

    Raises:
        ConvCircuitsError: If r2 is out of range, not defined on the validation images or reached by no circuit of a
            descent, or as for ``find``.
    """
    if isinstance(r2, bool) or not isinstance(r2, (int, float)) or not 0 < r2 < 1:
        raise ConvCircuitsError(f"{option('reach_r2')} must be above 0 and below 1; got {r2!r}.")
    chosen: dict[str, Any] = {
        "criterion": criterion,
        "granularity": granularity,
        "batch_size": batch_size,
        "seed": seed,
        **options,
    }

    def measure(circuits: list[Circuit]) -> list[float]:
        begin(progress, f"measuring on validation images, up to {max(map(len, circuits)):,} {granularity}s")
        reports = evaluate_all(
            model, circuits, validation, controls=[None] * len(circuits), batch_size=batch_size, progress=progress
        )
        measured = [report.r2 for report in reports]
        if math.isnan(measured[0]):
            raise ConvCircuitsError(
                f"{feature} does not vary on the validation images, so R2 is not defined; give other images."
            )
        return measured

    if criterion in CRITERIA and is_descent(CRITERIA[criterion]):
        return _descended(model, feature, images, measure, r2, {"progress": progress, **chosen})
    begin(progress, f"scoring with {criterion}")
    find_one: Callable[[int], Circuit]
    if criterion in CRITERIA and needs_budget(CRITERIA[criterion]):
        at_once, whole = 1, find(model, feature, images, density=1.0, progress=progress, **chosen)

        def find_one(kernels: int) -> Circuit:
            begin(progress, f"finding a circuit of {kernels:,} {granularity}s")
            return find(model, feature, images, kernels=kernels, progress=progress, **chosen)
    else:
        scores = score(model, feature, images, progress=progress, **chosen)
        at_once, whole = _AT_ONCE if method == "none" else 1, prune(scores, density=1.0)

        def find_one(kernels: int) -> Circuit:
            return prune(scores, kernels=kernels)

    def make(kernels: int) -> Circuit:
        circuit = find_one(kernels)
        if method == "none":
            return circuit
        begin(progress, f"refitting {kernels:,} {granularity}s")
        return refit(model, circuit, images, method=method, batch_size=batch_size, seed=seed, progress=progress)

    best, (best_r2,), failed = whole, measure([whole]), 0
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


def _descended(
    model: nn.Module,
    feature: Feature,
    images: Images,
    measure: Callable[[list[Circuit]], list[float]],
    r2: float,
    chosen: dict[str, Any],
) -> Reached:
    """Descend until a circuit falls short of an R2."""
    tried: list[tuple[Circuit, float]] = []

    def enough(circuit: Circuit) -> bool:
        (found,) = measure([circuit])
        tried.append((circuit, found))
        return found >= r2

    find_path(model, feature, images, kernels=1, enough=enough, **chosen)
    if not tried or tried[0][1] < r2:
        find_path(model, feature, images, kernels=1, enough=enough, **{**chosen, "start": 1.0})
    reached = [one for one in tried if one[1] >= r2]
    if not reached:
        raise ConvCircuitsError(
            f"No circuit of the descent reaches R2 = {r2:g} on the validation images; the one of all kernels has "
            f"{tried[-1][1]:.3f}. Ask for less, or give more images to find circuits on."
        )
    return Reached(*reached[-1], tuple(sorted({(len(circuit), found) for circuit, found in tried})))


def _between(low: int, high: int, count: int) -> list[int]:
    """Return 1 to ``count`` whole numbers between two others, evenly spaced on a log scale."""
    start = max(low, 0.5)
    numbers = {round(start * (high / start) ** (step / (count + 1))) for step in range(1, count + 1)}
    return sorted(number for number in numbers if low < number < high) or [(low + high) // 2]


def nested(circuit: Circuit) -> bool:
    """Return whether the first kernels by saliency are those that a smaller circuit would keep."""
    criterion = CRITERIA.get(str(circuit.provenance.get("criterion")))
    ranked = criterion is None or not needs_budget(criterion)
    return circuit.granularity == "kernel" and ranked and not circuit.provenance.get("effective", False)


def found_on(circuit: Circuit, images: Batches) -> Tensor | None:
    """Return the images that a circuit was found on if ``images``, in memory, begin with them; otherwise None."""
    recorded = circuit.provenance.get("images", {})
    first = images.take(range(min(int(recorded.get("count", 0)), images.total or 0)))
    held = list(first) if first.total else []
    return torch.cat(held) if held and first.describe() == recorded else None


def smaller(model: nn.Module, circuit: Circuit, images: Batches, progress: Progress | None = None) -> list[Circuit]:
    """Find smaller circuits again if an iterative criterion found this one, since its rankings are not nested.

    They are found on the images that the circuit was found on. The list is empty if ``images``, in memory, do not begin
    with these, if the circuit was found inside another one, if its criterion is not iterative or not known by name, or
    if an option is not a plain value. Circuits that would keep less than one element are left out. If the criterion
    descends, it does so once more, from this circuit through all smaller ones; but not from one that is small enough to
    be drawn whole.
    """
    provenance = circuit.provenance
    criterion = CRITERIA.get(str(provenance.get("criterion")))
    if criterion is None or not needs_budget(criterion) or "inside" in provenance:
        return []
    options = options_again(criterion, provenance)
    if not all(isinstance(value, (str, int, float, bool)) for value in options.values()):
        return []
    if options.keys() & inspect.signature(find).parameters.keys():
        return []  # a custom criterion of the same name, or an edited file
    if is_descent(criterion) and "fan_in" in provenance.get("asked", {}):
        return []
    first = found_on(circuit, images)
    if first is None:
        return []
    counts = [len(circuit) // part for part in PARTS if len(circuit) >= part]
    chosen: dict[str, Any] = {
        "criterion": str(provenance["criterion"]),
        "granularity": circuit.granularity,
        "batch_size": images.batch_size,
        "seed": int(provenance.get("seed", 0)),
        "progress": progress,
        **options,
    }
    if is_descent(criterion):
        chosen |= {"circuit": circuit, "start": 1.0, "enough": lambda _: True}  # to the last with a complete path
        path = find_path(model, circuit.feature, first, kernels=counts, **chosen) if counts else ()
        return [one for one in path if one.provenance["asked"]["kernels"] in counts]
    found = []
    for count in counts:
        begin(progress, f"finding {count:,} {circuit.granularity}s anew")
        effective = bool(provenance.get("effective", False))
        found.append(find(model, circuit.feature, first, kernels=count, effective=effective, **chosen))
    return found
