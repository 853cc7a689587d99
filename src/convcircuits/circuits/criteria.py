"""Criteria: functions that assign a saliency to every element, that is every kernel, filter or weight.

A one-shot criterion is ``criterion(trace, **options) -> {layer: saliency}``, with tables of the shapes in
``trace.shapes``. A criterion that needs the budget takes it as its second parameter, ``criterion(trace, kernels,
**options)``, and only ``find`` can run it. Options are keyword-only and belong to the criterion. ``Trace.mean`` is the
one loop over images; it passes one ``Batch`` at a time, whose ``backward`` yields one ``Layer`` at a time.

The formulas are written for elements e: kernels by default, or whole filters or single weights with another
granularity, which is a matter of how ``Layer`` lays them out. k runs over the weights of an element, and m_e is a
factor on all of them.
"""

import math
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from convcircuits.circuits.budgets import Size
from convcircuits.circuits.descent import Level, descend
from convcircuits.circuits.learning import Learn, Training
from convcircuits.circuits.ranking import in_order, top
from convcircuits.circuits.refitting import POSITIONS, RIDGE, Refit, check_fit
from convcircuits.circuits.tracing import Batch, Trace
from convcircuits.errors import ConvCircuitsError, option, whole_number
from convcircuits.values.circuit import Circuit
from convcircuits.values.tables import count_kept

Saliency = dict[str, Tensor]
Criterion = Callable[..., Any]
Collapse = Literal["abs", "sum", "square"]
Normalizer = Literal["published", "sum", "layer_l2"]

# dL/df of the scalar L that a map is collapsed to, the sum over units and positions of |f|, f or f^2; and the power.
_COLLAPSE: dict[str, tuple[Callable[[Tensor], Tensor], int]] = {
    "abs": (torch.sign, 1),
    "sum": (torch.ones_like, 1),
    "square": (lambda f: 2 * f, 2),
}


def actgrad(
    trace: Trace,
    *,
    collapse: Collapse = "abs",
    normalizer: Normalizer = "published",
    signed: bool = False,
) -> Saliency:
    """Score |activation x gradient| of each element's pre-sum map: mean_n mean_hw |z_e(h, w) g_o(h, w)|.

    z_e is what the element's weights add to their filter o; for a whole filter, its output without the bias.

    Args:
        trace: The feature's images.
        collapse: The scalar L that g = dL/d(out) differentiates: the sum over positions of |f|, f or f^2.
        normalizer: The factor of the sum over positions: 1 / HW (``"published"``), 1 (``"sum"``), or 1 with each layer
            then divided by its L2 norm (``"layer_l2"``).
        signed: Omit the absolute value.

    Source: Hamblin et al., arXiv 2206.01627.
    """

    def contribution(batch: Batch) -> Iterator[tuple[str, Tensor]]:
        gradient, power = _gradient(batch, collapse)
        for layer in batch.backward(gradient):
            # Without the absolute value the sum over positions of z g is the sum over the element of w dL/dw.
            total = sum(layer.element_gradients()) if signed else layer.absolute_sums()
            scale = 1 / layer.positions if normalizer == "published" else 1.0
            yield layer.name, layer.per_element(total.double() * (scale * power))  # type: ignore[union-attr]

    return _normalized(trace, trace.mean(contribution), normalizer)


def snip(
    trace: Trace,
    *,
    collapse: Collapse = "abs",
    normalizer: Normalizer = "published",
    signed: bool = False,
) -> Saliency:
    """Score |weight x gradient| per image: mean_n mean_k |w dL_n/dw|, k the weights of the element.

    Args:
        trace: The feature's images.
        collapse: The scalar L: the sum over positions of |f|, f or f^2.
        normalizer: The factor of the sum over the element's weights: 1 / their number, for a kernel 1 / (kh kw)
            (``"published"``), 1 (``"sum"``), or 1 with each layer then divided by its L2 norm (``"layer_l2"``). If a
            layer uses its weight in several sizes, as 3x3 and, summed, as 1x1, the weights of all sizes count.
        signed: Omit the absolute value.

    Source: Lee et al., arXiv 1810.02340; for features Hamblin et al., arXiv 2206.01627.
    """

    def contribution(batch: Batch) -> Iterator[tuple[str, Tensor]]:
        gradient, power = _gradient(batch, collapse)
        for layer in batch.backward(gradient):
            total = sum(layer.element_gradients()) if signed else layer.absolute_products()
            scale = 1 / layer.element_size if normalizer == "published" else 1.0
            yield layer.name, layer.per_element(total.double() * (scale * power))  # type: ignore[union-attr]

    return _normalized(trace, trace.mean(contribution), normalizer)


def gauss_newton(
    trace: Trace, *, draws: int = 4, centered: bool = False, normalizer: Normalizer = "published"
) -> Saliency:
    """Score the squared change of the map when that one element is removed: mean_n sum_p (df_p / dm_e)^2, estimated.

    For random signs s_p, the square of sum_p s_p df_p/dm_e has this expectation. The estimate averages ``draws``
    backward passes with orthogonal (Hadamard) signs. All images share the same signs, so the result does not depend on
    batches. p runs over the positions that count, of all units if there are several.

    Args:
        trace: The feature's images.
        draws: Number of fields of signs; each costs one backward pass.
        centered: Replace a removed element by the mean of its map over images and positions, so that only its variation
            counts: z - mean z in place of z.
        normalizer: ``"published"`` and ``"sum"`` are the sum itself; ``"layer_l2"`` divides each layer by its L2 norm.
    """
    draws = whole_number("draws", draws, 1)

    def contribution(batch: Batch) -> Iterator[tuple[str, Tensor]]:
        fields = _signs(batch.field, draws, trace.seed)
        for draw, signs in enumerate(fields):
            for layer in batch.backward(signs.to(batch.maps).expand_as(batch.maps) / batch.scale):
                # (a - zbar b)^2 is expanded, since zbar is known only after the last image.
                slopes = layer.filter_gradients().double()[..., None] * batch.scale
                aa = torch.zeros((*slopes.shape[1:-1], layer.elements), dtype=torch.float64, device=slopes.device)
                ab = torch.zeros_like(aa)
                for gradient, b in zip(layer.element_gradients(), slopes, strict=True):
                    a = gradient.double() * batch.scale
                    aa.addcmul_(a, a)
                    if centered:
                        ab.addcmul_(a, b)
                yield f"{layer.name} aa", layer.per_element(aa) / len(fields)
                if centered:
                    bb = (slopes**2).sum(0).expand_as(aa)
                    yield f"{layer.name} ab", layer.per_element(ab) / len(fields)
                    yield f"{layer.name} bb", layer.per_element(bb) / len(fields)
                    if draw == 0:
                        total, count = layer.presum_totals()
                        yield f"{layer.name} z", layer.per_element(total / (count / layer.images))

    means = trace.mean(contribution)
    saliency = {}
    for layer in trace.shapes:
        if f"{layer} aa" in means:
            value = means[f"{layer} aa"]
            if centered:
                z = means[f"{layer} z"]
                value = value - 2 * z * means[f"{layer} ab"] + z**2 * means[f"{layer} bb"]
            saliency[layer] = value.clamp_min(0)
    return _normalized(trace, saliency, normalizer)


def magnitude(trace: Trace, *, normalizer: Normalizer = "published") -> Saliency:
    """Score the size of the weights: mean |w| over the element (a baseline that uses no images).

    Args:
        trace: The feature's images.
        normalizer: ``"published"`` takes the mean over the element's weights, ``"sum"`` their sum, ``"layer_l2"`` that
            sum divided by the layer's L2 norm.
    """

    def contribution(batch: Batch) -> Iterator[tuple[str, Tensor]]:
        for name, weights, layer in batch.weights():
            size = weights.abs().mean(3) if normalizer == "published" else weights.abs().sum(3)
            yield name, layer.per_element(size) * batch.size

    return _normalized(trace, trace.mean(contribution), normalizer)


def random(trace: Trace) -> Saliency:
    """Draw every saliency uniformly from [0, 1) (a baseline)."""
    return {
        layer: torch.rand(shape, generator=_generator(trace.seed, layer), dtype=torch.float64)
        for layer, shape in trace.shapes.items()
    }


def layer_random(trace: Trace, *, like: Circuit) -> Saliency:
    """Draw at random, with the number of elements per layer taken from another circuit (a baseline).

    The element at rank r (from 0) in its layer's random order gets count / (r + 1/2). Pruned to the size of ``like``,
    each layer keeps exactly its count; pruned to another size, a proportional share.

    Args:
        trace: The feature's images.
        like: The circuit that sets the number of elements per layer; of the same granularity.
    """
    if not isinstance(like, Circuit) or list(like.elements) != list(trace.relevant):
        raise ConvCircuitsError(
            "like must be a circuit of the same feature and model; it sets the number of elements per layer."
        )
    if like.granularity != trace.granularity:
        raise ConvCircuitsError(
            f"like is a circuit of {like.granularity}s, but {trace.granularity}s are scored; give "
            f"{option('granularity', like.granularity)} or another circuit."
        )
    return drawn_like(trace.relevant, like, trace.seed)


def drawn_like(relevant: Mapping[str, Tensor], like: Circuit, seed: int) -> Saliency:
    """Draw the scores of ``layer_random`` for the relevant elements (layer name -> bool); 0 for the others."""
    saliency = {}
    for layer, elements in relevant.items():
        count = int((like[layer] & elements).sum())
        order = torch.randperm(int(elements.sum()), generator=_generator(seed, layer))
        saliency[layer] = torch.zeros(elements.shape, dtype=torch.float64)
        saliency[layer][elements] = count / (order.double() + 0.5)
    return saliency


def force(
    trace: Trace,
    kernels: int,
    *,
    steps: int = 10,
    collapse: Collapse = "abs",
    normalizer: Normalizer = "published",
) -> Saliency:
    """Prune step by step: each step keeps the best by SNIP of the network masked so far, and can revive elements.

    Step t of T keeps k_t = ceil(exp(t/T ln k + (1 - t/T) ln n)) of the n relevant elements, the last exactly k. A
    masked element is scored by its unmasked weights and the masked network's gradient. Dead filters keep their biases;
    otherwise nothing could be revived. After each step the resulting mask is scored again; a layer whose scores are all
    zero has collapsed. The loop then stops, the k best by the last scores before the collapse are kept, and a note says
    so.

    Args:
        trace: The feature's images.
        kernels: k, the number of elements to keep.
        steps: T, the number of steps.
        collapse: As for ``snip``.
        normalizer: As for ``snip``.

    Returns:
        The scores whose k best elements are the mask.

    Source: de Jorge et al., arXiv 2006.09081; for features Hamblin et al., arXiv 2206.01627.
    """
    steps = whole_number("steps", steps, 1)
    options: dict[str, Any] = {"collapse": collapse, "normalizer": normalizer}
    relevant = count_kept(trace.relevant)
    trace.passes = steps + 1
    # Inside a circuit, all steps run under the same semantics, that of the masked network.
    scores = snip(trace if trace.masks is None else trace.masked(trace.relevant), **options)
    for step in range(1, steps + 1):
        share = step / steps
        count = math.ceil(math.exp(share * math.log(kernels) + (1 - share) * math.log(relevant)))
        count = kernels if step == steps else min(max(count, kernels), relevant)
        mask = top(in_order(scores, trace.relevant), count)
        rescored = snip(trace.masked(mask, passed=step), **options)
        dead = [
            layer
            for layer, on_path in trace.relevant.items()
            if layer not in rescored or not bool(rescored[layer][on_path].any())
        ]
        if dead:
            trace.notes.append(
                f"FORCE collapsed at step {step} of {steps} ({count} {trace.granularity}s kept): no gradient reaches "
                f"{', '.join(dead)}. The circuit keeps the {kernels} best by the scores before that step."
            )
            break
        if step < steps:
            scores = rescored
    return scores


def progressive(
    trace: Trace,
    sizes: Sequence[Size],
    done: Sequence[Level] = (),
    *,
    start: float | None = None,
    ratio: float = 0.71,
    draws: int = 1,
    scored: int = 64,
    ridge: float = RIDGE,
    toward: float = 0.0,
    positive: bool = False,
    positions: int | None = POSITIONS,
) -> Iterator[Level]:
    """Descend: refit the kernels that are left after every cut, and score them in the refitted circuit.

    The first cut is by ``gauss_newton`` in the full model, the others by centered ``gauss_newton`` in the refitted
    circuit. All kept kernels are effective.

    Args:
        trace: The feature's images.
        sizes: The sizes that circuits have, the largest first; the last is the size to reach.
        done: The first circuits of this descent, if an earlier run found them.
        start: Share of the relevant kernels that the first circuit keeps. Default: twice the largest size or, if that
            is more, 0.25, in networks with depthwise layers 0.5.
        ratio: Each circuit keeps about this share of the kernels of the one before.
        draws: As for ``gauss_newton``.
        scored: Number of images that later cuts are scored on.
        ridge: As for ``refit``.
        toward: As for ``refit``. Toward 0, kernels that cancel each other are found out; circuits of nearly all kernels
            then differ a little from the model.
        positive: As for ``refit``. Kernels of gain 0 are cut next. They are dropped from the last circuit if its size
            is given by filters and kernels a filter, except where a filter has no others. Without training, small
            circuits are better with gains of any sign.
        positions: As for ``refit``.
    """
    fit = _refit(trace, ridge, toward, positive, positions)
    return _descent(trace, sizes, done, fit, start=start, ratio=ratio, draws=draws, scored=scored)


def learned(
    trace: Trace,
    sizes: Sequence[Size],
    done: Sequence[Level] = (),
    *,
    start: float | None = None,
    ratio: float = 0.71,
    draws: int = 1,
    scored: int = 64,
    ridge: float = RIDGE,
    toward: float = 0.0,
    positive: bool = True,
    positions: int | None = POSITIONS,
    steps: int = 60,
    final: int = 960,
    rate: float = 0.02,
    batch: int = 8,
    rectified: float = 0.5,
    tolerance: float = 0.03,
    polish: int = 200,
) -> Iterator[Level]:
    """Descend as ``progressive`` does, and train the constants by gradient steps after every refit.

    The loss is the mean squared error of the map and of the rectified map, each relative to its variance. A circuit is
    refitted to the full model and to the trained circuit that it was cut from; the better of the two is trained, so
    that training goes on from cut to cut.

    Args:
        trace: The feature's images, all of one size. Steps are made on at most 512 of them, drawn at random.
        sizes: The sizes that circuits have, the largest first; the last is the size to reach.
        done: The first circuits of this descent, if an earlier run found them.
        start: As for ``progressive``.
        ratio: As for ``progressive``.
        draws: As for ``progressive``.
        scored: As for ``progressive``.
        ridge: As for ``progressive``.
        toward: As for ``progressive``.
        positive: As for ``progressive``, in training, too.
        positions: As for ``progressive``.
        steps: Number of steps of Adam for each circuit.
        final: Number of steps for the last one, the smallest that is asked for.
        rate: Size of the first steps: of gains, and of offsets in standard deviations of their filter's output. Of more
            than 400 constants each moves less, so that all together move as far. If the error on the images does not
            fall, a quarter and a sixteenth of the rate are tried.
        batch: Number of images in a step.
        rectified: Share of the rectified map's error in the loss, from 0 to 1.
        tolerance: Loss of a refitted circuit, a share of the variance, from which down it is not trained.
        polish: Number of iterations of L-BFGS, on at most 128 of the images, after the steps of the last circuit if it
            takes any.
    """
    steps, final = whole_number("steps", steps, 0), whole_number("final", final, 0)
    batch, polish = whole_number("batch", batch, 1), whole_number("polish", polish, 0)
    for name, value, allowed in (
        ("rate", rate, "above 0 and at most 1"),
        ("rectified", rectified, "from 0 to 1"),
        ("tolerance", tolerance, "from 0 to 1"),
    ):
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not (number and 0 <= value <= 1) or (name == "rate" and value == 0):
            raise ConvCircuitsError(f"{name} must be {allowed}; got {value!r}.")
    training = Training(steps, final, rate, batch, rectified, tolerance, trace.seed, polish)
    aims_elsewhere = trace.target is not trace.subject
    refit = _refit(trace, ridge, toward, positive, positions)
    fit = Learn(trace, refit, training, control=aims_elsewhere)
    return _descent(trace, sizes, done, fit, start=start, ratio=ratio, draws=draws, scored=scored)


def _refit(trace: Trace, ridge: float, toward: float, positive: bool, positions: int | None) -> Refit:
    ridge, toward, positive, positions = check_fit(ridge, toward, positive, positions)
    return Refit(
        trace.subject,
        trace.batches,
        target=trace.target,
        ridge=ridge,
        toward=toward,
        positive=positive,
        positions=positions,
        seed=trace.seed,
        progress=trace.progress,
    )


def _descent(
    trace: Trace,
    sizes: Sequence[Size],
    done: Sequence[Level],
    fit: Refit | Learn,
    *,
    start: float | None,
    ratio: float,
    draws: int,
    scored: int,
) -> Iterator[Level]:
    return descend(
        trace,
        sizes,
        done,
        partial(gauss_newton, draws=draws),
        partial(gauss_newton, draws=draws, centered=True),
        fit,
        start=start,
        ratio=ratio,
        scored=whole_number("scored", scored, 1),
    )


CRITERIA: dict[str, Criterion] = {
    "actgrad": actgrad,
    "snip": snip,
    "gauss_newton": gauss_newton,
    "force": force,
    "progressive": progressive,
    "learned": learned,
    "magnitude": magnitude,
    "random": random,
    "layer_random": layer_random,
}

DESCENTS: tuple[Criterion, ...] = (progressive, learned)
"""The criteria that yield circuits of several sizes, each refitted, in place of saliencies."""


def _gradient(batch: Batch, collapse: Collapse) -> tuple[Tensor, float]:
    """Return dL/df scaled so that f dL/df is near one, and the scale, a power of two."""
    if collapse not in _COLLAPSE:
        raise ConvCircuitsError(f"collapse must be one of {', '.join(map(repr, _COLLAPSE))}; got {collapse!r}.")
    gradient, power = _COLLAPSE[collapse]
    return gradient(batch.maps / batch.scale) / batch.scale, batch.scale**power


def _normalized(trace: Trace, saliency: Saliency, normalizer: Normalizer) -> Saliency:
    if normalizer not in ("published", "sum", "layer_l2"):
        raise ConvCircuitsError(f"normalizer must be one of 'published', 'sum', 'layer_l2'; got {normalizer!r}.")
    if normalizer != "layer_l2":
        return saliency
    norms = {
        layer: torch.linalg.vector_norm(s, dim=tuple(range(-len(trace.shapes[layer]), 0)), keepdim=True)
        for layer, s in saliency.items()
    }
    return {layer: s / norms[layer].masked_fill(norms[layer] == 0, 1) for layer, s in saliency.items()}


def _signs(shape: torch.Size, draws: int, seed: int) -> list[Tensor]:
    """Return random fields of signs of a shape, orthogonal to each other within blocks.

    There are at most as many as a field has values: on a single value, all draws would give the same square.
    """
    count = shape.numel()
    size = 1 << (min(draws, count) - 1).bit_length()
    hadamard = torch.ones(1, 1)
    while len(hadamard) < size:
        hadamard = torch.cat((torch.cat((hadamard, hadamard), 1), torch.cat((hadamard, -hadamard), 1)))
    generator = torch.Generator().manual_seed(seed)
    signs = torch.randint(0, 2, (count,), generator=generator) * 2.0 - 1
    columns = torch.randperm(count, generator=generator) % size
    return [(signs * row[columns]).reshape(shape) for row in hadamard[: min(draws, count)]]


def _generator(seed: int, layer: str) -> torch.Generator:
    return torch.Generator().manual_seed(zlib.crc32(f"{seed}|{layer}".encode()))
