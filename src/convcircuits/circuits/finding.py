"""Find a circuit: score kernels, filters or weights by a criterion and keep the best."""

import dataclasses
import inspect
import math
import numbers
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from convcircuits.circuits.budgets import Drawable, Effective, Size
from convcircuits.circuits.checkpoints import resumed
from convcircuits.circuits.criteria import CRITERIA, DESCENTS, Criterion
from convcircuits.circuits.ranking import in_order, top
from convcircuits.circuits.tracing import Trace
from convcircuits.errors import ConvCircuitsError, option, whole_number
from convcircuits.network.agreement import IMAGES
from convcircuits.network.batches import Batches, Images, Progress, check_progress
from convcircuits.network.capture import Network
from convcircuits.network.laws import checked
from convcircuits.network.masking import Subject
from convcircuits.network.surroundings import outside_autocast
from convcircuits.storage import save
from convcircuits.texts import sentences
from convcircuits.values.circuit import Circuit
from convcircuits.values.drawable import FAN_IN, FILTERS
from convcircuits.values.feature import Feature
from convcircuits.values.granularity import SHAPES, check_granularity, check_inside, elements_with
from convcircuits.values.scores import Scores
from convcircuits.values.tables import LayerTable, suggest

MEMORY = 4 * 2**20
"""Default bytes of working memory for one chunk of pre-sum maps: about the size of a core's cache."""

_RANGE = 100
"""Float32 scores are scaled unless the largest is within 2**-_RANGE to 2**_RANGE, which leaves room for small ones."""


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
    function = _criterion(criterion)
    if needs_budget(function):
        raise ConvCircuitsError(
            f"{_name(criterion)} must know how many {granularity}s to keep; use "
            f"find(model, feature, images, criterion={_name(criterion)!r}, density=...)."
        )
    _check_options(function, criterion, options)
    trace, batches, about = _trace(model, feature, images, granularity, circuit, batch_size, seed, memory, progress)
    saliency = function(trace, **options)
    return _scores(trace, batches, about, saliency, criterion, options, circuit)


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
    criterion: str | Criterion = "gauss_newton",
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
    **options: Any,
) -> Circuit:
    """Find a circuit with any criterion, including iterative ones.

    One of four sizes is given: ``density``, ``kernels``, ``filters`` with ``fan_in``, or ``drawable``.

    Args:
        model: Any CNN; it runs in eval mode.
        feature: What is to be preserved.
        images: As for ``score``.
        criterion: A name in ``CRITERIA``, or a function with the same signature.
        density: Kept elements as a share of the relevant ones, in (0, 1].
        kernels: Number of elements to keep, instead of a density.
        effective: Whether ``density`` and ``kernels`` count only effective kernels, those on a complete path inside the
            circuit. Then no other kernel is kept, and its place goes to the next best. If the number cannot be reached,
            a note says which one is. By default only criteria that descend count so.
        filters: The most live filters of a layer. With ``fan_in``, instead of a density; all kept kernels are
            effective.
        fan_in: The most kernels of a filter.
        drawable: Whether to keep what the default view of a diagram has room for: ``filters=12, fan_in=6``.
        granularity: What an element is: a ``"filter"``, a ``"kernel"`` or a ``"weight"``.
        circuit: Find inside this circuit, of the same or a coarser granularity.
        batch_size: Maximum number of images that run at once.
        seed: Seed for criteria that draw random numbers.
        memory: Bytes of working memory for chunks of pre-sum maps.
        progress: Called with the number of images done, over all passes, and their total (or None).
        **options: Options of the criterion, such as ``steps=10`` for FORCE.

    Raises:
        ConvCircuitsError: As for ``score`` and ``prune``; or if no complete path has as few kernels.

    Examples:
        >>> circuit = cc.find(model, feature, images, criterion="force", density=0.5, steps=3)
        >>> circuit.density
        0.5
        >>> small = cc.find(model, feature, images, filters=2, fan_in=3)
        >>> max(int(mask.any(1).sum()) for mask in small.kernels.values())
        2
    """
    function = _criterion(criterion)
    _check_options(function, criterion, options)
    shape = _drawable(density, kernels, filters, fan_in, drawable, granularity)
    if effective not in (None, True, False):
        raise ConvCircuitsError(f"effective is true or false; got {effective!r}.")
    if shape is None:
        budget(None, density, kernels, granularity)  # before any work is done
    if is_descent(function):
        if effective is False:
            raise ConvCircuitsError(f"{_name(criterion)} keeps only effective kernels; leave out effective=False.")
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
            memory=memory,
            progress=progress,
            **options,
        )
        return last
    if shape is None:
        if effective:
            _check_kernels("A budget of effective kernels", granularity)
    elif needs_budget(function):
        raise ConvCircuitsError(
            f"{_name(criterion)} must know how many kernels to keep, which {option('filters')} and {option('fan_in')} "
            f"do not say; give {option('density')} or {option('kernels')}, or another criterion."
        )
    trace, batches, about = _trace(model, feature, images, granularity, circuit, batch_size, seed, memory, progress)
    if needs_budget(function):
        relevant = sum(int(mask.sum()) for mask in trace.relevant.values())
        saliency = function(trace, budget(relevant, density, kernels, granularity), **options)
    else:
        saliency = function(trace, **options)
    scores = _scores(trace, batches, about, saliency, criterion, options, circuit)
    if shape is None and not effective:
        return prune(scores, density=density, kernels=kernels)
    size = shape or Effective(budget(scores.relevant, density, kernels, granularity))
    masks = size.select(scores.elements, trace.subject.survey)
    return _circuit(scores, masks, _asked(size, density), effective=True)


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
    memory: int = MEMORY,
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
        memory: Bytes of working memory for chunks of pre-sum maps.
        enough: Called with each circuit, the largest first; if it returns False, that circuit is the last. With it, the
            path also ends where no complete path from the image has so few kernels, which is an error without it.
        progress: Called with the number of images done in each step, and their total (or None).
        checkpoint: A ``.safetensors`` file to which the circuits found so far are written after every cut. If it exists
            already, the run goes on from its last circuit. ``load`` reads it.
        **options: Options of the criterion, such as ``start=0.1``, the size of the first circuit. If a size that is
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
    function = _criterion(criterion)
    if not is_descent(function):
        known = [name for name, one in CRITERIA.items() if is_descent(one)]
        raise ConvCircuitsError(
            f"{_name(criterion)} does not descend, so it gives no path of circuits; choose {' or '.join(known)}, or "
            "prune its scores to several sizes."
        )
    _check_options(function, criterion, options)
    shape = _drawable(density, kernels, filters, fan_in, drawable, granularity)
    wanted = [] if shape else _several(density, kernels)
    for size in wanted:
        budget(None, *size, granularity)
    trace, batches, about = _trace(model, feature, images, granularity, circuit, batch_size, seed, memory, progress)
    relevant = sum(int(mask.sum()) for mask in trace.relevant.values())
    counts = sorted({budget(relevant, *size, granularity) for size in wanted}, reverse=True)
    sizes: list[Size] = [shape] if shape else [Effective(count) for count in counts]
    asked = [dataclasses.asdict(size) for size in sizes]
    run = {
        "criterion": _name(criterion),
        "options": {key: _as_json(value) for key, value in options.items()},
        "inside": None if circuit is None else dict(circuit.provenance),
    }
    done = [] if checkpoint is None else resumed(Path(checkpoint), trace, sizes, run)
    path: list[Circuit] = []
    for level in function(trace, sizes, [level for _, level in done], **options):
        if len(path) < len(done):
            path.append(done[len(path)][0])
            if enough is not None and not enough(path[-1]):
                break
            continue
        if enough is not None and not any(bool(mask.any()) for mask in level.kernels.values()):
            break
        saliency = {layer: values.nan_to_num(0) for layer, values in level.saliency.items()}
        scores = _scores(trace, batches, about, saliency, criterion, options, circuit)
        found = _circuit(scores, level.kernels, dataclasses.asdict(level.size), effective=True)
        said = {"calibration": level.calibration, "path": {"asked": asked, "number": len(path)}}
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


def _asked(size: Size, density: float | None) -> dict[str, Any]:
    """Return the size that was asked for, as JSON values."""
    return ({} if density is None else {"density": density}) | dataclasses.asdict(size)


def _circuit(
    scores: Scores, masks: Mapping[str, Tensor], asked: Mapping[str, Any], *, effective: bool = False
) -> Circuit:
    """Return the circuit of some elements; ``effective`` says that only effective kernels were counted and kept."""
    elements = sum(int(mask.sum()) for mask in masks.values())
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


def _trace(
    model: nn.Module,
    feature: Feature,
    images: Images,
    granularity: str,
    circuit: Circuit | None,
    batch_size: int,
    seed: int,
    memory: int,
    progress: Progress | None,
) -> tuple[Trace, Batches, dict[str, Any]]:
    check_granularity(granularity)
    check_progress(progress)
    memory = whole_number("memory, in bytes,", memory, 1)
    seed = whole_number(option("seed"), seed, 0, 2**32 - 1)
    network = Network(model)
    batches = Batches(images, device=network.device, dtype=network.dtype, batch_size=batch_size)
    first = batches.first(IMAGES)
    shape = tuple(first.shape[1:])
    subject = Subject.open(network, feature, shape)
    about = checked(subject, first)
    scored, masks = subject.relevant(granularity, shape), None
    if circuit is not None:
        subject.check(circuit)
        check_inside(circuit.granularity, granularity)
        masks = subject.masks(circuit, shape, effective=True)
        kept = subject.elements(circuit, granularity, {layer: tuple(mask.shape) for layer, mask in scored.items()})
        scored = {layer: mask & kept[layer] for layer, mask in scored.items()}
        if len(circuit) == 0:
            raise ConvCircuitsError("The circuit to score inside keeps nothing; give one that keeps an element.")
    trace = Trace(
        subject,
        batches,
        relevant=scored,
        granularity=granularity,
        masks=masks,
        seed=seed,
        memory=memory,
        progress=progress,
    )
    return trace, batches, about


def _scores(
    trace: Trace,
    batches: Batches,
    about: Mapping[str, Any],
    saliency: Mapping[str, Tensor],
    criterion: str | Criterion,
    options: Mapping[str, Any],
    circuit: Circuit | None,
) -> Scores:
    if batches.count == 0:
        trace.mean(lambda batch: ())  # the criterion read no images: count and hash them all the same
    subject = trace.subject
    dtype = torch.float64 if subject.network.dtype == torch.float64 else torch.float32
    if not isinstance(saliency, Mapping):
        raise ConvCircuitsError(
            f"{_name(criterion)} returned {type(saliency).__name__}; expected a mapping from layers to scores."
        )
    for layer, values in saliency.items():
        if not isinstance(values, Tensor) or not values.is_floating_point():
            raise ConvCircuitsError(
                f"{_name(criterion)} returned scores for {layer} that are not a tensor of floating-point numbers."
            )
        if layer not in trace.shapes:
            raise ConvCircuitsError(f"{_name(criterion)} scored {layer!r}. {suggest(layer, trace.shapes)}")
        if values.shape != trace.shapes[layer]:
            raise ConvCircuitsError(
                f"{_name(criterion)} returned scores of shape {tuple(values.shape)} for {layer}; expected "
                f"{trace.shapes[layer]}, that is {SHAPES[trace.granularity]}."
            )
    kernels, scale = _in_range(in_order(saliency, trace.relevant), dtype)
    for layer, values in kernels.items():
        if not bool(values[trace.relevant[layer]].isfinite().all()):
            raise ConvCircuitsError(
                f"{_name(criterion)} returned NaN or Inf for {layer}; check the scale of the model's weights and of "
                "the images."
            )
    if not any(bool(values.nan_to_num().any()) for values in kernels.values()):
        raise ConvCircuitsError(
            f"{_name(criterion)} scored every {trace.granularity} 0, so there is nothing to choose by. This happens if "
            f"a unit is dead or silent on these images: no gradient of {subject.feature} reaches a kernel. Give other "
            "images or another unit."
        )
    provenance = dict(about) | {
        "criterion": _name(criterion),
        "granularity": trace.granularity,
        "options": {key: _as_json(value) for key, value in options.items()},
        "seed": trace.seed,
        "images": batches.describe(),
        "notes": list(sentences(trace.notes)),
    }
    if scale != 1:
        provenance["scale"] = scale
    if circuit is not None:
        provenance["inside"] = dict(circuit.provenance)
    relevant = (
        elements_with(mask, trace.granularity, trace.shapes[layer]) for layer, mask in subject.survey.kernels.items()
    )
    return Scores(
        subject.feature,
        LayerTable(kernels),
        relevant_in_model=sum(int(elements.sum()) for elements in relevant),
        provenance=provenance,
        granularity=trace.granularity,
    )


def _in_range(kernels: Mapping[str, Tensor], dtype: torch.dtype) -> tuple[dict[str, Tensor], float]:
    """Return scores in a dtype, divided by a power of two if float32 could not hold them, and that power."""
    largest = max(float(values.double().nan_to_num(0, math.inf, math.inf).abs().max()) for values in kernels.values())
    scale = 1.0
    if dtype == torch.float32 and 0 < largest < math.inf and not 2.0**-_RANGE < largest < 2.0**_RANGE:
        scale = 2.0 ** math.frexp(largest)[1]
    return {layer: (values.double() / scale).to(dtype) for layer, values in kernels.items()}, scale


def _criterion(criterion: str | Criterion) -> Criterion:
    if callable(criterion):
        return criterion
    if not isinstance(criterion, str) or criterion not in CRITERIA:
        raise ConvCircuitsError(f"There is no criterion {criterion!r}. {suggest(str(criterion), CRITERIA)}")
    return CRITERIA[criterion]


def _name(criterion: str | Criterion) -> str:
    return criterion if isinstance(criterion, str) else getattr(criterion, "__name__", repr(criterion))


def is_descent(function: Criterion) -> bool:
    """Return whether a criterion descends through circuits of several sizes, each refitted."""
    return function in DESCENTS


def needs_budget(function: Criterion) -> bool:
    """Return whether a criterion must know how many elements to keep, so that only ``find`` can run it."""
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return len([p for p in inspect.signature(function).parameters.values() if p.kind in positional]) > 1


def _check_options(function: Criterion, criterion: str | Criterion, options: Mapping[str, Any]) -> None:
    parameters = inspect.signature(function).parameters.values()
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
        return
    known = {p.name: p for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}
    for name in options:
        if name not in known:
            raise ConvCircuitsError(f"{_name(criterion)} has no option {name!r}. {suggest(name, known)}")
    for name, parameter in known.items():
        if parameter.default is inspect.Parameter.empty and name not in options:
            raise ConvCircuitsError(f"{_name(criterion)} needs the option {option(name, of_criterion=True)}.")
        if isinstance(parameter.default, bool) and not isinstance(options.get(name, True), bool):
            raise ConvCircuitsError(f"The option {name} of {_name(criterion)} is true or false; got {options[name]!r}.")


def budget(relevant: int | None, density: object, kernels: int | None, granularity: str) -> int:
    """Return the number of elements that a density or a number asks for, of the relevant ones.

    Raises:
        ConvCircuitsError: If it is out of range; without the number of relevant elements, if it is in any case.
    """
    if (density is None) == (kernels is None):
        raise ConvCircuitsError(
            f"Give either {option('density')}, a share in (0, 1], or {option('kernels')}, a number."
        )
    if density is not None:
        number = density if isinstance(density, numbers.Real) else math.nan
        share = math.nan if number is True else float(number)
        if not 0 < share <= 1:
            raise ConvCircuitsError(f"{option('density')} must be in (0, 1]; got {density!r}.")
        return max(1, round(share * (relevant or 0)))
    count = whole_number(option("kernels"), kernels, 1)
    if relevant is not None and count > relevant:
        raise ConvCircuitsError(f"{count} {granularity}s were requested, but only {relevant} have a score.")
    return count


def _several(density: object, kernels: object) -> list[tuple[Any, Any]]:
    """Return each size of a path, as a density or a number of kernels; the other is None."""
    if kernels is None and isinstance(density, Sequence) and density:
        return [(share, None) for share in density]
    if density is None and isinstance(kernels, Sequence) and kernels:
        return [(None, number) for number in kernels]
    return [(density, kernels)]


def _drawable(
    density: object,
    kernels: object,
    filters: int | None,
    fan_in: int | None,
    drawable: bool,
    granularity: str,
) -> Drawable | None:
    """Return the most filters of a layer and kernels of a filter, if that is the size that was given."""
    if not isinstance(drawable, bool):
        raise ConvCircuitsError(f"drawable is true or false; got {drawable!r}.")
    if not drawable and filters is None and fan_in is None:
        return None
    given = option("drawable") if drawable else f"{option('filters')} with {option('fan_in')}"
    others = {"density": density, "kernels": kernels}
    others |= {"filters": filters, "fan_in": fan_in} if drawable else {}
    if extra := [option(name) for name, value in others.items() if value is not None]:
        raise ConvCircuitsError(f"{given} sets the size, so it does not go with {' and '.join(extra)}.")
    _check_kernels(given, granularity)
    if drawable:
        return Drawable(FILTERS, FAN_IN)
    if filters is None or fan_in is None:
        raise ConvCircuitsError(
            f"Give both {option('filters')}, a number for each layer, and {option('fan_in')}, one for each filter."
        )
    return Drawable(whole_number(option("filters"), filters, 1), whole_number(option("fan_in"), fan_in, 1))


def _check_kernels(name: str, granularity: str) -> None:
    if granularity != "kernel":
        raise ConvCircuitsError(f"{name} needs granularity 'kernel'; got {granularity!r}.")


def _as_json(value: Any) -> Any:
    if isinstance(value, Circuit):
        return dict(value.provenance)
    if hasattr(value, "item") and not isinstance(value, torch.Tensor):  # a NumPy number
        value = value.item()
    plain = isinstance(value, (str, int, type(None))) or (isinstance(value, float) and math.isfinite(value))
    return value if plain else repr(value)
