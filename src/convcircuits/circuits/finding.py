"""Find a circuit: score kernels, filters or weights by a criterion and keep the best."""

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from convcircuits.circuits.asking import (
    as_json,
    asked_for,
    budget,
    check_effective,
    check_kernels,
    check_options,
    criterion_named,
    drawable_size,
    is_descent,
    name_of,
    needs_budget,
    schedule_of,
    several,
)
from convcircuits.circuits.budgets import Effective, Size
from convcircuits.circuits.checkpoints import resumed
from convcircuits.circuits.criteria import CRITERIA, Criterion
from convcircuits.circuits.descent import first_share
from convcircuits.circuits.ranking import top
from convcircuits.circuits.scoring import MEMORY, scores_of, trace_of
from convcircuits.errors import ConvCircuitsError, option, whole_number
from convcircuits.network.batches import Images, Progress, begin
from convcircuits.network.provenance import architecture_hash
from convcircuits.network.reach import Survey
from convcircuits.network.surroundings import outside_autocast
from convcircuits.storage import save
from convcircuits.values.circuit import Circuit
from convcircuits.values.feature import Feature
from convcircuits.values.granularity import check_granularity
from convcircuits.values.recipe import default_criterion
from convcircuits.values.scores import Scores
from convcircuits.values.tables import LayerTable, count_kept


@outside_autocast
def score(
    model: nn.Module,
    feature: Feature,
    images: Images,
    *,
    criterion: str | Criterion = "gauss_newton",
    granularity: str = "kernel",
    circuit: Circuit | None = None,
    batch_size: int = 16,
    seed: int = 0,
    memory: int = MEMORY,
    progress: Progress | None = None,
    **options: Any,
) -> Scores:
    """Score every kernel, filter or weight that a feature depends on, in one pass over the images.

    Scores are means over images, so they do not depend on batch size or order, up to rounding. The model is not
    changed.

    Args:
        model: Any CNN; it runs in eval mode.
        feature: What is to be preserved.
        images: (N, C, H, W), or a re-iterable of such tensors or (tensor, label) batches, prepared for the model.
        criterion: A name in ``CRITERIA``, or a function with the same signature.
        granularity: What an element is: a ``"filter"``, a ``"kernel"`` or a ``"weight"``. A filter is relevant if any
            of its kernels is, a weight if its kernel is.
        circuit: Score inside this circuit, run as ``evaluate`` runs it; elements outside it get NaN. Its granularity
            must be the same or coarser, so that each element lies entirely inside or outside.
        batch_size: Maximum number of images that run at once.
        seed: Seed for criteria that draw random numbers.
        memory: Bytes of working memory for chunks of pre-sum maps.
        progress: Called with the number of images done, over all passes, and their total (or None).
        **options: Options of the criterion, such as ``collapse="sum"`` or ``normalizer="layer_l2"``.

    Returns:
        Scores on the CPU; float64 for a float64 model, otherwise float32. If float32 cannot hold them, they are divided
        by a power of two, ``provenance["scale"]``.

    Raises:
        ConvCircuitsError: If feature, images, criterion, granularity or an option is invalid, the criterion is
            iterative, or scores are not finite or all zero.

    Examples:
        >>> scores = cc.score(model, feature, images, criterion="snip", collapse="square")
        >>> tuple(scores["features.3"].shape)  # (out, in)
        (8, 8)
    """
    function = criterion_named(criterion)
    if needs_budget(function):
        raise ConvCircuitsError(
            f"{name_of(criterion)} must know how many {granularity}s to keep; use "
            f"find(model, feature, images, criterion={name_of(criterion)!r}, density=...)."
        )
    check_options(function, criterion, options)
    trace, batches, about = trace_of(model, feature, images, granularity, circuit, batch_size, seed, memory, progress)
    saliency = function(trace, **options)
    return scores_of(trace, batches, about, saliency, criterion, options, circuit)


def prune(scores: Scores, *, density: float | None = None, kernels: int | None = None) -> Circuit:
    """Keep the elements (kernels, filters or weights) with the highest scores: exactly the requested number.

    Ties are broken by layer in execution order, then filter, then input channel, then position in the kernel, so
    smaller circuits lie inside larger ones. Kernels that lie on no complete path inside the circuit count too;
    ``find(..., effective=True)``, which has the model, keeps only others.

    Args:
        scores: From ``score``.
        density: Kept elements as a share of the elements that have a score, in (0, 1]; rounded, at least one.
        kernels: Number of elements to keep, instead of a density.

    Raises:
        ConvCircuitsError: If neither or both are given, or the one given is out of range.

    Examples:
        >>> len(cc.prune(scores, kernels=20))
        20
    """
    if not isinstance(scores, Scores):
        raise ConvCircuitsError(f"prune expects the Scores that score returns; got {type(scores).__name__}.")
    count = budget(scores.relevant, density, kernels, scores.granularity)
    asked = {"density": density} if kernels is None else {"kernels": kernels}
    return _circuit(scores, top(scores.elements, count), asked)


@outside_autocast
def find(
    model: nn.Module,
    feature: Feature,
    images: Images,
    *,
    criterion: str | Criterion | None = None,
    density: float | None = None,
    kernels: int | None = None,
    effective: bool | None = None,
    filters: int | None = None,
    fan_in: int | None = None,
    drawable: bool = False,
    granularity: str = "kernel",
    circuit: Circuit | None = None,
    batch_size: int = 16,
    seed: int = 0,
    memory: int = MEMORY,
    progress: Progress | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    **options: Any,
) -> Circuit:
    """Find a circuit with any criterion, including iterative ones.

    One of four sizes is given: ``density``, ``kernels``, ``filters`` with ``fan_in``, or ``drawable``.

    Args:
        model: Any CNN; it runs in eval mode.
        feature: What is to be preserved.
        images: As for ``score``.
        criterion: A name in ``CRITERIA``, or a function with the same signature. Default: ``"progressive"``, which also
            refits what it keeps, for kernels; ``"gauss_newton"`` for filters and weights, which it cannot descend
            through.
        density: Kept elements as a share of the relevant ones, in (0, 1].
        kernels: Number of elements to keep, instead of a density.
        effective: Whether ``density`` and ``kernels`` count only effective kernels, those on a complete path inside the
            circuit. Then no other kernel is kept, and its place goes to the next best. If so many are not found to fit
            together, a note says how many are; where a layer runs several times, more may be possible. By default only
            criteria that descend count so.
        filters: The most live filters of a layer. With ``fan_in``, instead of a density; all kept kernels are
            effective.
        fan_in: The most kernels of a filter.
        drawable: Whether to keep what the default view of a diagram has room for: ``filters=12, fan_in=6``.
        granularity: What an element is: a ``"filter"``, a ``"kernel"`` or a ``"weight"``.
        circuit: Find inside this circuit, of the same or a coarser granularity.
        batch_size: Maximum number of images that run at once.
        seed: Seed for criteria that draw random numbers.
        memory: Bytes of working memory for chunks of pre-sum maps, which a descent does without.
        progress: Called with the number of images done, over all passes, and their total (or None).
        checkpoint: As for ``find_path``, for a criterion that descends.
        **options: Options of the criterion, such as ``steps=10`` for FORCE.

    Raises:
        ConvCircuitsError: As for ``score`` and ``prune``; if no complete path has as few kernels; or if the checkpoint
            is of another run, or the criterion does not descend.

    Examples:
        >>> circuit = cc.find(model, feature, images, criterion="force", density=0.5, steps=3)
        >>> circuit.density
        0.5
        >>> small = cc.find(model, feature, images, filters=2, fan_in=3)
        >>> max(int(mask.any(1).sum()) for mask in small.kernels.values())
        2
    """
    check_granularity(granularity)
    criterion = default_criterion(granularity) if criterion is None else criterion
    function = criterion_named(criterion)
    check_options(function, criterion, options)
    shape = drawable_size(density, kernels, filters, fan_in, drawable, granularity)
    check_effective(function, criterion, effective)
    if shape is None:
        budget(None, density, kernels, granularity)  # before any work is done
    whole_number("memory, in bytes,", memory, 1)
    if is_descent(function):
        *_, last = find_path(
            model,
            feature,
            images,
            criterion=criterion,
            density=density,
            kernels=kernels,
            filters=filters,
            fan_in=fan_in,
            drawable=drawable,
            granularity=granularity,
            circuit=circuit,
            batch_size=batch_size,
            seed=seed,
            progress=progress,
            checkpoint=checkpoint,
            **options,
        )
        return last
    if checkpoint is not None:
        raise ConvCircuitsError(
            f"{name_of(criterion)} does not descend, so it has no cuts to go on from; omit {option('checkpoint')}, or "
            f"choose {option('criterion', 'progressive')}."
        )
    if shape is None:
        if effective:
            check_kernels("A budget of effective kernels", granularity)
    elif needs_budget(function):
        raise ConvCircuitsError(
            f"{name_of(criterion)} must know how many kernels to keep, which {option('filters')} and "
            f"{option('fan_in')} do not say; give {option('density')} or {option('kernels')}, or another criterion."
        )
    trace, batches, about = trace_of(model, feature, images, granularity, circuit, batch_size, seed, memory, progress)
    if needs_budget(function):
        relevant = count_kept(trace.relevant)
        saliency = function(trace, budget(relevant, density, kernels, granularity), **options)
    else:
        saliency = function(trace, **options)
    scores = scores_of(trace, batches, about, saliency, criterion, options, circuit)
    return kept(scores, trace.subject.survey, shape, density=density, kernels=kernels, effective=bool(effective))


def kept(
    scores: Scores,
    survey: Survey,
    shape: Size | None,
    *,
    density: float | None,
    kernels: int | None,
    effective: bool,
) -> Circuit:
    """Return the circuit of a size, as ``find`` describes it, from scores.

    Args:
        scores: The scores.
        survey: The survey of the feature in the model.
        shape: The size; None if it is a density or a number of kernels.
        density: As for ``find``.
        kernels: As for ``find``.
        effective: As for ``find``.
    """
    if shape is None and not effective:
        return prune(scores, density=density, kernels=kernels)
    size = shape or Effective(budget(scores.relevant, density, kernels, scores.granularity))
    masks = size.select(scores.elements, survey)
    return _circuit(scores, masks, asked_for(size, density), effective=True)


@outside_autocast
def find_path(
    model: nn.Module,
    feature: Feature,
    images: Images,
    *,
    criterion: str | Criterion = "progressive",
    density: float | Sequence[float] | None = None,
    kernels: int | Sequence[int] | None = None,
    filters: int | None = None,
    fan_in: int | None = None,
    drawable: bool = False,
    granularity: str = "kernel",
    circuit: Circuit | None = None,
    batch_size: int = 16,
    seed: int = 0,
    enough: Callable[[Circuit], bool] | None = None,
    progress: Progress | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    **options: Any,
) -> tuple[Circuit, ...]:
    """Find circuits of many sizes in one descent, each refitted and inside the one before.

    The last one is what ``find`` returns for the same arguments.

    Args:
        model: Any CNN; it runs in eval mode.
        feature: What is to be preserved.
        images: As for ``score``. Gains and offsets are fitted on them, so use many different ones.
        criterion: A name in ``CRITERIA`` of a criterion that descends: ``"progressive"`` or ``"learned"``.
        density: Size of the smallest circuit, as a share of the relevant kernels, in (0, 1]; or several sizes, all of
            which circuits of the path have. All kept kernels are effective.
        kernels: Number of kernels of the smallest circuit, instead of a density; or several numbers.
        filters: The most live filters of a layer of the smallest circuit, with ``fan_in``, instead of a density.
        fan_in: The most kernels of a filter of the smallest circuit.
        drawable: Whether the smallest circuit is one that the default view of a diagram has room for.
        granularity: ``"kernel"``.
        circuit: Find inside this circuit.
        batch_size: Maximum number of images that run at once.
        seed: Seed of random signs, positions and images.
        enough: Called with each circuit, the largest first; if it returns False, that circuit is the last. With it, the
            path also ends where no complete path from the image has so few kernels, or no kernel that is left changes
            the feature, which is an error without it.
        progress: Called with the number of images done in each step, and their total (or None).
        checkpoint: A ``.safetensors`` file to which the circuits found so far are written after every cut, completely
            or not at all. If it exists already, the run goes on from its last circuit; if that is of another model,
            feature, size, criterion, version or other images or options, it is refused. ``load`` reads it.
        **options: Options of the criterion, such as ``start=0.5``, the size of the first circuit. If a size that is
            asked for is larger, the first circuit has that one.

    Returns:
        The circuits, the largest first.

    Raises:
        ConvCircuitsError: As for ``find``, or if the criterion does not descend or the checkpoint is of another run.

    Examples:
        >>> path = cc.find_path(model, feature, images, kernels=10, start=0.5)
        >>> [len(circuit) for circuit in path]
        [48, 35, 26, 19, 14, 10]
        >>> path = cc.find_path(model, feature, images, kernels=[30, 20, 10], start=0.5)
        >>> [len(circuit) for circuit in path]
        [48, 38, 30, 24, 20, 16, 13, 10]
    """
    function = criterion_named(criterion)
    if not is_descent(function):
        known = [name for name, one in CRITERIA.items() if is_descent(one)]
        raise ConvCircuitsError(
            f"{name_of(criterion)} does not descend, so it gives no path of circuits; choose {' or '.join(known)}, or "
            "prune its scores to several sizes."
        )
    check_options(function, criterion, options)
    shape = drawable_size(density, kernels, filters, fan_in, drawable, granularity)
    wanted = [] if shape else several(density, kernels)
    for size in wanted:
        budget(None, *size, granularity)
    trace, batches, about = trace_of(model, feature, images, granularity, circuit, batch_size, seed, MEMORY, progress)
    relevant = count_kept(trace.relevant)
    counts = sorted({budget(relevant, *size, granularity) for size in wanted}, reverse=True)
    sizes: list[Size] = [shape] if shape else [Effective(count) for count in counts]
    asked, code = [dataclasses.asdict(size) for size in sizes], architecture_hash(model)
    schedule = schedule_of(function, options, first_share(trace, sizes))
    run = {
        "architecture": code,
        "criterion": name_of(criterion),
        "options": {key: as_json(value) for key, value in options.items()},
        "inside": None if circuit is None else dict(circuit.provenance),
        "schedule": schedule,
    }
    done = [] if checkpoint is None else resumed(Path(checkpoint), trace, sizes, run)
    if done:
        begin(progress, f"going on from {len(done[-1][0]):,} kernels")
    path: list[Circuit] = []
    for level in function(trace, sizes, [level for _, level in done], **options):
        if len(path) < len(done):
            path.append(done[len(path)][0])
            if enough is not None and not enough(path[-1]):
                break
            continue
        saliency = {layer: values.nan_to_num(0) for layer, values in level.saliency.items()}
        still = bool(path) and not any(bool(values.any()) for values in saliency.values())
        if enough is not None and (still or not any(bool(mask.any()) for mask in level.kernels.values())):
            break
        if still:
            raise ConvCircuitsError(
                f"In the refitted circuit of {len(path[-1]):,} kernels no kernel changes {feature} on these images any "
                "more, so there is nothing to choose fewer by; ask for more kernels, or give other images."
            )
        scores = scores_of(trace, batches, about, saliency, criterion, options, circuit)
        found = _circuit(scores, level.kernels, dataclasses.asdict(level.size), effective=True)
        sizes_so_far = [*map(len, path), len(found)]
        said = {"architecture": code, "calibration": level.calibration, "cost": level.cost}
        said |= {"path": {"asked": asked, "number": len(path)}, "schedule": schedule | {"sizes": sizes_so_far}}
        said["notes"] = [*found.provenance["notes"], *level.notes]
        path.append(
            dataclasses.replace(
                found,
                gain=LayerTable(level.gain),
                offset=LayerTable(level.offset),
                provenance={**found.provenance, **said},
            )
        )
        if checkpoint is not None:
            save(tuple(path), checkpoint)
        if enough is not None and not enough(path[-1]):
            break
    return tuple(path)


def _circuit(
    scores: Scores, masks: Mapping[str, Tensor], asked: Mapping[str, Any], *, effective: bool = False
) -> Circuit:
    """Return the circuit of some elements; ``effective`` says that only effective kernels were counted and kept."""
    elements = count_kept(masks)
    provenance = dict(scores.provenance) | {"elements": elements, "asked": dict(asked)}
    if effective:
        provenance["effective"] = True
        if elements == 0:
            raise ConvCircuitsError(
                f"No complete path from the image to {scores.feature} was found that has so few kernels; ask for more."
            )
        if elements != asked.get("kernels", elements):
            note = f"Asked for {asked['kernels']:,} effective kernels; only {elements:,} were found to fit together."
            provenance["notes"] = [*provenance.get("notes", ()), note]
    return Circuit(
        scores.feature,
        LayerTable(masks),
        scores.elements,
        scores.relevant_in_model,
        provenance=provenance,
        granularity=scores.granularity,
    )
