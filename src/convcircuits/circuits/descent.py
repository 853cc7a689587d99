"""Descend from a large circuit to a small one: score inside the refitted circuit, cut, refit, and so on.

A one-shot criterion scores kernels in the full model, where the others still do their work. Here every cut is decided
in the circuit that is left, whose kernels have been given the gains that make up for those that are gone. One descent
gives a refitted circuit of every size on its way, each inside the one before.
"""

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from convcircuits.circuits.budgets import Drawable, Effective, Kernels, Size
from convcircuits.circuits.learning import Learn
from convcircuits.circuits.ranking import in_order
from convcircuits.circuits.refitting import Refit
from convcircuits.circuits.tracing import Trace
from convcircuits.errors import ConvCircuitsError, option
from convcircuits.network.batches import begin
from convcircuits.network.masking import Masks
from convcircuits.network.reach import Survey
from convcircuits.values.tables import count_kept

Score = Callable[[Trace], Mapping[str, Tensor]]

_START = 0.25
"""Default density of the first circuit, or twice the largest that is asked for: its cut is by scores in the full model,
which do worse than those of later cuts."""

_START_DEPTHWISE = 0.5
"""The same for networks with depthwise layers, whose filters have one kernel each, and of which less is spare."""

_BEFORE_DRAWING = 0.01
"""Density down to which kernels are cut by their scores alone before a circuit is narrowed to what can be drawn."""


@dataclass(frozen=True)
class Level:
    """One circuit of a descent.

    Attributes:
        size: The size that was asked of it.
        kernels: Layer name -> bool (out, in per group): the kernels that it keeps, all effective.
        saliency: Layer name -> the scores by which they were kept, of the same shapes; NaN for kernels that were not
            scored.
        gain: Layer name -> (out, in per group), as fitted.
        offset: Layer name -> (out,), as fitted.
        notes: Sentences on how this circuit was fitted.
        calibration: How these were fitted, as JSON values.
        cost: Number of images that have run in this descent up to here: ``"forward"``, ``"backward"``, and both ways in
            steps of training, ``"trained"``, and in iterations of L-BFGS, ``"polished"``. They are counted where they
            run, in the full model or in a circuit.
    """

    size: Size
    kernels: dict[str, Tensor]
    saliency: dict[str, Tensor]
    gain: dict[str, Tensor]
    offset: dict[str, Tensor]
    calibration: dict[str, Any]
    cost: dict[str, int]
    notes: tuple[str, ...] = ()


def descend(
    trace: Trace,
    sizes: Sequence[Size],
    done: Sequence[Level],
    first: Score,
    score: Score,
    fit: Refit | Learn,
    *,
    start: float | None,
    ratio: float,
    scored: int,
) -> Iterator[Level]:
    """Yield refitted circuits, from a share of the relevant kernels down to a size.

    Args:
        trace: The feature's images, in the full model or in the circuit to descend in.
        sizes: The sizes that circuits have, the largest first. There are others in between, and before if the first is
            below ``start``. Several are numbers of effective kernels.
        done: The first circuits of this descent, if an earlier run found them.
        first: The criterion of the first cut.
        score: The criterion of the later cuts, which are decided inside the refitted circuit.
        fit: How circuits are refitted.
        start: Share of the relevant kernels that the first circuit keeps, in (0, 1]; None for ``first_share``.
        ratio: Each circuit keeps about this share of the kernels of the one before, in (0, 1).
        scored: Number of images that later cuts are scored on.

    Raises:
        ConvCircuitsError: If an option is out of range, or the elements are not kernels.
    """
    for name, value, most in (("start", _START if start is None else start, 1.0), ("ratio", ratio, 1 - 1e-9)):
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= most:
            raise ConvCircuitsError(
                f"{name} must be above 0 and {'at most' if most == 1 else 'below'} 1; got {value!r}."
            )
    if trace.granularity != "kernel":
        raise ConvCircuitsError(
            f"A descent refits kernels; choose {option('granularity', 'kernel')} or a criterion without refits."
        )
    relevant = count_kept(trace.relevant)
    last, wanted = sizes[-1], _wanted(trace, sizes)
    if start is None:
        start = first_share(trace, sizes)
    few = trace.batches.sample(scored, trace.seed)
    level: Level | None = None
    spent = Counter[str](done[-1].cost if done else {})

    def stages() -> Iterator[Size]:
        yield from map(Effective, _through([max(wanted[0], round(start * relevant)), *wanted], ratio))
        if isinstance(last, Drawable) and level is not None:
            yield from _narrower(level.kernels, last, ratio)

    for number, stage in enumerate(stages()):
        if number < len(done):
            level = replace(done[number], size=stage)
            yield level
            continue
        if level is None:
            begin(trace.progress, f"scoring {relevant:,} kernels")
            masks, saliency = None, in_order(first(trace), trace.relevant)
        else:
            begin(trace.progress, f"scoring {count_kept(level.kernels):,} kernels")
            masks = _masks(trace, level.kernels, level.gain, level.offset)
            saliency = in_order(score(trace.inside(masks, level.kernels, few)), level.kernels)
        kernels = stage.select(saliency, trace.subject.survey)
        begin(trace.progress, f"refitting {count_kept(kernels):,} kernels")
        bare = _masks(trace, kernels, {}, {})
        gain: dict[str, Tensor] = {}
        offset: dict[str, Tensor] = {}
        is_model = trace.masks is None and count_kept(kernels) == relevant
        if stage != last or not is_model:  # if the model itself is asked for, a ridge would only move it
            gain, offset = fit(bare, before=masks, last=stage == last) if isinstance(fit, Learn) else fit(bare)
        if stage == last and isinstance(last, Drawable):
            kernels, gain, offset = _working(kernels, gain, offset, trace.subject.survey)
        cost = dict(spent + trace.cost + fit.cost)
        level = Level(stage, kernels, saliency, gain, offset, fit.about(), cost, tuple(fit.notes))
        yield level


def _working(
    kernels: Kernels, gain: Kernels, offset: Kernels, survey: Survey
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """Return a circuit without kernels of gain 0, which do nothing: its kernels, gains and offsets.

    A filter that has no others keeps them, since its offset may matter. So does a layer that runs several times: a
    kernel may be the only one of its filter that is live in a call.
    """
    calls = Counter(node.call.layer for node in survey.paths.graph.nodes if node.call is not None)
    left = dict(kernels)
    for layer, table in gain.items():
        if calls[layer] == 1:
            working = kernels[layer] & (table != 0)
            left[layer] = torch.where(working.any(1, keepdim=True), working, kernels[layer])
    left = survey.inside(left)
    return (
        left,
        {layer: torch.where(left[layer], table, 1) for layer, table in gain.items() if left[layer].any()},
        {layer: torch.where(left[layer].any(1), table, 0) for layer, table in offset.items() if left[layer].any()},
    )


def first_share(trace: Trace, sizes: Sequence[Size]) -> float:
    """Return the default ``start`` of a descent: the share of the relevant kernels that its first circuit keeps."""
    graph, relevant = trace.subject.survey.paths.graph, count_kept(trace.relevant)
    calls = [node.call for node in graph.nodes if node.call is not None]
    depthwise = any(call.groups > 1 and call.weight.shape[1] == 1 for call in calls)
    return min(1.0, max(_START_DEPTHWISE if depthwise else _START, 2 * _wanted(trace, sizes)[0] / relevant))


def _wanted(trace: Trace, sizes: Sequence[Size]) -> list[int]:
    """Return the numbers of kernels that a descent passes through by cutting kernels by their scores alone."""
    last, wanted = sizes[-1], [size.kernels for size in sizes if isinstance(size, Effective)]
    if isinstance(last, Drawable):
        room = sum(min(int(mask.sum()), last.filters * last.fan_in) for mask in trace.relevant.values())
        wanted.append(max(room, round(_BEFORE_DRAWING * count_kept(trace.relevant))))
    return wanted


def _narrower(kernels: Mapping[str, Tensor], size: Drawable, ratio: float) -> list[Drawable]:
    """Return limits from those that a circuit keeps to those of a size, none twice.

    Each has room for about ``ratio`` times as many kernels as the one before.
    """
    widest = (
        max(int(mask.any(1).sum()) for mask in kernels.values()),
        max(int(mask.sum(1).max()) for mask in kernels.values()),
    )
    factors = [max(1.0, now / wanted) for now, wanted in zip(widest, (size.filters, size.fan_in), strict=True)]
    steps = max(1, math.ceil(math.log(math.prod(factors)) / -math.log(ratio)))
    shares = [[factor ** (step / steps) for factor in factors] for step in reversed(range(steps))]
    limits = (Drawable(round(size.filters * filters), round(size.fan_in * fan_in)) for filters, fan_in in shares)
    return list(dict.fromkeys(limits))


def _through(counts: Sequence[int], ratio: float) -> list[int]:
    """Return falling numbers with those between them, each about ``ratio`` times the one before, and none twice."""
    between = [_between(larger, smaller, ratio) for larger, smaller in itertools.pairwise(counts)]
    return list(dict.fromkeys(itertools.chain(*between)))


def _between(largest: int, smallest: int, ratio: float) -> list[int]:
    """Return whole numbers from the largest to the smallest, each about ``ratio`` times the one before."""
    steps = math.ceil(round(math.log(largest / smallest) / -math.log(ratio), 6))
    return [round(largest * (smallest / largest) ** (step / max(1, steps))) for step in range(steps + 1)]


def _masks(
    trace: Trace, kernels: Mapping[str, Tensor], gain: Mapping[str, Tensor], offset: Mapping[str, Tensor]
) -> Masks:
    subject = trace.subject
    masks = Masks(kernels, gain, offset, constant=subject.survey.constant)
    return masks.to(subject.network.device, subject.network.dtype)
