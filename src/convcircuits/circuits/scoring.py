"""From a model and images to the trace that a criterion gets, and from the saliencies that it returns to scores."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from convcircuits.circuits.asking import as_json, name_of
from convcircuits.circuits.criteria import Criterion
from convcircuits.circuits.ranking import in_order
from convcircuits.circuits.tracing import Trace
from convcircuits.errors import ConvCircuitsError, option, whole_number
from convcircuits.network.agreement import IMAGES
from convcircuits.network.batches import Batches, Images, Progress, check_progress
from convcircuits.network.capture import Network
from convcircuits.network.laws import checked
from convcircuits.network.masking import Subject
from convcircuits.texts import sentences
from convcircuits.values.circuit import Circuit
from convcircuits.values.feature import Feature
from convcircuits.values.granularity import SHAPES, check_granularity, check_inside, elements_with
from convcircuits.values.scores import Scores
from convcircuits.values.tables import LayerTable, suggest

MEMORY = 4 * 2**20
"""Default bytes of working memory for one chunk of pre-sum maps: about the size of a core's cache."""

_RANGE = 100
"""Float32 scores are scaled unless the largest is within 2**-_RANGE to 2**_RANGE, which leaves room for small ones."""


def trace_of(
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
    """Open a model for a feature and check what was given, as ``score`` describes it.

    Returns:
        The trace, the images, and the provenance of what is found, with the laws that were checked.

    Raises:
        ConvCircuitsError: As for ``score``.
    """
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


def scores_of(
    trace: Trace,
    batches: Batches,
    about: Mapping[str, Any],
    saliency: Mapping[str, Tensor],
    criterion: str | Criterion,
    options: Mapping[str, Any],
    circuit: Circuit | None,
) -> Scores:
    """Return what a criterion returned as scores, checked, with their provenance.

    Raises:
        ConvCircuitsError: If it is of another form, not finite, or all zero.
    """
    if batches.count == 0:
        trace.mean(lambda batch: ())  # the criterion read no images: count and hash them all the same
    subject = trace.subject
    dtype = torch.float64 if subject.network.dtype == torch.float64 else torch.float32
    if not isinstance(saliency, Mapping):
        raise ConvCircuitsError(
            f"{name_of(criterion)} returned {type(saliency).__name__}; expected a mapping from layers to scores."
        )
    for layer, values in saliency.items():
        if not isinstance(values, Tensor) or not values.is_floating_point():
            raise ConvCircuitsError(
                f"{name_of(criterion)} returned scores for {layer} that are not a tensor of floating-point numbers."
            )
        if layer not in trace.shapes:
            raise ConvCircuitsError(f"{name_of(criterion)} scored {layer!r}. {suggest(layer, trace.shapes)}")
        if values.shape != trace.shapes[layer]:
            raise ConvCircuitsError(
                f"{name_of(criterion)} returned scores of shape {tuple(values.shape)} for {layer}; expected "
                f"{trace.shapes[layer]}, that is {SHAPES[trace.granularity]}."
            )
    kernels, scale = in_range(in_order(saliency, trace.relevant, name_of(criterion)), dtype)
    if not any(bool(values.nan_to_num().any()) for values in kernels.values()):
        raise ConvCircuitsError(
            f"{name_of(criterion)} scored every {trace.granularity} 0, so there is nothing to choose by. This happens "
            f"if a unit is dead or silent on these images: no gradient of {subject.feature} reaches a kernel. Give "
            "other images or another unit."
        )
    provenance = dict(about) | {
        "criterion": name_of(criterion),
        "granularity": trace.granularity,
        "options": {key: as_json(value) for key, value in options.items()},
        "seed": trace.seed,
        "images": batches.describe(),
        "notes": list(sentences(trace.notes)),
    }
    if trace.cost["forward"]:  # none if units of a layer were scored together
        provenance["cost"] = dict(+trace.cost)
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


def in_range(kernels: Mapping[str, Tensor], dtype: torch.dtype) -> tuple[dict[str, Tensor], float]:
    """Return scores in a dtype, divided by a power of two if float32 could not hold them, and that power."""
    largest = max(float(values.double().nan_to_num(0, math.inf, math.inf).abs().max()) for values in kernels.values())
    scale = 1.0
    if dtype == torch.float32 and 0 < largest < math.inf and not 2.0**-_RANGE < largest < 2.0**_RANGE:
        scale = 2.0 ** math.frexp(largest)[1]
    return {layer: (values.double() / scale).to(dtype) for layer, values in kernels.items()}, scale
