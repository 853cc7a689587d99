"""Budgets that count effective kernels: circuits of exact size, or small enough to be drawn, that keep no dead kernel.

Effective kernels are those on a complete path image -> feature inside the circuit. Two properties make them easy to
count: more kept kernels never make an effective one dead, and a circuit without its dead kernels has the same effective
ones.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from convcircuits.circuits.ranking import top
from convcircuits.network.reach import Survey

Kernels = Mapping[str, Tensor]
"""Layer name -> a table of kernels, (out, in per group)."""

Inside = Callable[[Kernels], dict[str, Tensor]]
"""From kernel masks to the masks of their effective kernels, such as ``Survey.inside``."""

_REJECTED = 8
"""After this many paths for which no place was found, free places stay free."""
_EXCHANGED = 16
"""The number of worst kernels, and of best kernels not kept, that are left out in turn to reach a number."""
_CALLS = 500
"""After asking so often what is effective, no other kernel is left out."""
_TRIALS = 64
"""The number of kernels that may be tried, worst first, to make place for a path."""


@dataclass(frozen=True)
class Effective:
    """The size of a circuit by its number of effective kernels, the only ones that it keeps."""

    kernels: int

    def select(self, saliency: Kernels, survey: Survey) -> dict[str, Tensor]:
        """Select kernels as ``effective_top`` does."""
        return effective_top(saliency, self.kernels, survey.inside)

    def within(self, other: "Size") -> bool:
        """Return whether this is the other size."""
        return self == other


@dataclass(frozen=True)
class Drawable:
    """The size of a circuit by the most live filters of a layer and the most kernels of a filter, all effective."""

    filters: int
    fan_in: int

    def select(self, saliency: Kernels, survey: Survey) -> dict[str, Tensor]:
        """Select kernels as ``drawable_top`` does."""
        return drawable_top(saliency, self.filters, self.fan_in, survey.inside, survey.read)

    def within(self, other: "Size") -> bool:
        """Return whether no limit is above the other's; those on the way of a descent depend on its circuits."""
        return isinstance(other, Drawable) and self.filters <= other.filters and self.fan_in <= other.fan_in


Size = Effective | Drawable


def effective_top(saliency: Kernels, count: int, inside: Inside) -> dict[str, Tensor]:
    """Select the best kernels such that as many as asked are effective, and none is dead.

    The best kernels by saliency are taken, as by ``top``, as long as at most ``count`` of them are effective. Free
    places go to the best kernels that read a live channel and write a live filter, which add exactly one each; then to
    the complete path whose worst kernel is best, for which the worst kernels that others do not depend on make room.
    If places are free even then, the search is repeated without one of the kernels that are in its way. Where that does
    not help either, the number is a little lower: mostly because no set of kernels has it, as where filters have one
    kernel each, but in layers that run several times it may be lower than is possible. The kernels taken first are
    those of every larger circuit, too, unless one of them was in the way; the ones that fill free places need not be.

    Args:
        saliency: Layer name -> (out, in per group), in execution order; NaN for kernels that must not be kept.
        count: Number of effective kernels.
        inside: Function from kernel masks to the masks of their effective kernels, such as ``Survey.inside``.

    Returns:
        Layer name -> bool, same shapes. It keeps nothing if no complete path has as few kernels.
    """
    order = _Order(saliency)
    effective = order.effective(inside, torch.arange(order.count))
    if int(effective.sum()) <= count:
        return order.tables(effective)
    kept = _grown(order, inside, torch.zeros_like(effective), torch.ones_like(effective), count)
    return order.tables(_exchanged(order, inside, kept, count))


def drawable_top(
    saliency: Kernels,
    filters: int,
    fan_in: int,
    inside: Inside,
    read: Callable[[Kernels], dict[str, Tensor]],
) -> dict[str, Tensor]:
    """Select kernels such that no layer has more live filters, and no filter more kernels, than asked; none is dead.

    Each filter keeps its best kernels. A filter's score is the sum of the saliency of the kept kernels that read it; if
    only the feature reads it, that of its own. Layers are settled from the last to the first: a layer with too many
    live filters keeps those of the highest scores, and the kernels that read the others are replaced by the next best.
    A filter all of whose inputs are dropped in this way is dead, and its place stays free. The filters of a depthwise
    layer have one kernel each; the layers of a squeeze-excitation gate are layers like any other.

    Args:
        saliency: Layer name -> (out, in per group), in execution order; NaN for kernels that must not be kept.
        filters: The most live filters of a layer.
        fan_in: The most kernels of a filter.
        inside: Function from kernel masks to the masks of their effective kernels, such as ``Survey.inside``.
        read: Function from saliencies of kernels, NaN for those not kept, to the sums over the kernels that read each
            filter, such as ``Survey.read``.

    Returns:
        Layer name -> bool, same shapes.
    """
    allowed = inside({layer: ~values.isnan() for layer, values in saliency.items()})
    for layer in reversed(list(saliency)):
        kept = inside(_best_of_each_filter(saliency, allowed, fan_in))
        live = kept[layer].any(1)
        if int(live.sum()) > filters:
            own = {a: values.masked_fill(~kept[a], torch.nan) for a, values in saliency.items()}
            scores = read(own)[layer].double()
            scores = torch.where(scores.isnan(), own[layer].double().nansum(1), scores).masked_fill(~live, torch.nan)
            live = top({layer: scores}, filters)[layer]
        allowed = inside(allowed | {layer: allowed[layer] & live[:, None]})
    return inside(_best_of_each_filter(saliency, allowed, fan_in))


class _Order:
    """The kernels that may be kept, numbered by rank; ties as in ``top``."""

    def __init__(self, saliency: Kernels) -> None:
        self.shapes = {layer: values.shape for layer, values in saliency.items()}
        flat = torch.cat([values.flatten() for values in saliency.values()])
        scored = (~flat.isnan()).nonzero()[:, 0]
        self.places = scored[flat[scored].sort(descending=True, stable=True).indices]
        self.count, self._size = len(self.places), len(flat)

    def tables(self, kept: Tensor) -> dict[str, Tensor]:
        """Return the tables of the kernels that a bool for each rank keeps."""
        flat = torch.zeros(self._size, dtype=torch.bool)
        flat[self.places] = kept
        parts = torch.split(flat, [shape.numel() for shape in self.shapes.values()])
        return {layer: part.reshape(shape) for (layer, shape), part in zip(self.shapes.items(), parts, strict=True)}

    def ranked(self, tables: Kernels) -> Tensor:
        """Return the bool for each rank of tables of kernels."""
        return torch.cat([tables[layer].flatten() for layer in self.shapes])[self.places]

    def effective(self, inside: Inside, ranks: Tensor) -> Tensor:
        """Return which kernels are effective if those of some ranks are kept, a bool for each rank."""
        kept = torch.zeros(self.count, dtype=torch.bool).index_fill(0, ranks, True)
        return self.ranked(inside(self.tables(kept)))


def _grown(order: _Order, inside: Inside, kept: Tensor, usable: Tensor, count: int) -> Tensor:
    """Add the best kernels that are usable, then paths for which others make room, until ``count`` are effective."""
    allowed, rejected = usable.clone(), 0
    while rejected < _REJECTED:
        kept = _filled(order, inside, kept, usable, count)
        path = None if int(kept.sum()) == count else _next_path(order, inside, kept, allowed)
        if path is None:
            break
        longer = kept.index_fill(0, path, True)
        exact = longer if int(longer.sum()) <= count else _shortened(order, inside, longer, path, count)
        if exact is None:
            allowed[path[0]] = False
            rejected += 1
        else:
            kept = exact
    return kept


def _exchanged(order: _Order, inside: Inside, kept: Tensor, count: int) -> Tensor:
    """Leave out one of the worst kernels, with those that depend on it, if that lets more effective ones fit.

    Or one of the best of the others, so that paths lead around it.
    """
    calls = 0

    def counted(kernels: Kernels) -> dict[str, Tensor]:
        nonlocal calls
        calls += 1
        return inside(kernels)

    best, worst = kept, kept.nonzero()[:, 0].flip(0)[:_EXCHANGED]
    for rank in torch.cat([worst, (~kept).nonzero()[:_EXCHANGED, 0]]):
        if int(best.sum()) == count or calls >= _CALLS:
            break
        left = order.effective(counted, kept.index_fill(0, rank, False).nonzero()[:, 0])
        other = _grown(order, counted, left, torch.ones_like(kept).index_fill(0, rank, False), count)
        best = other if int(other.sum()) > int(best.sum()) else best
    return best


def _longest(order: _Order, inside: Inside, first: Tensor, ranks: Tensor, count: int) -> int:
    """Return how many of some ranks, in order and after the first ones, keep at most ``count`` kernels effective.

    All of them together keep more.
    """
    low, high = 0, len(ranks)
    while high - low > 1:
        middle = (low + high) // 2
        if int(order.effective(inside, torch.cat([first, ranks[:middle]])).sum()) <= count:
            low = middle
        else:
            high = middle
    return low


def _filled(order: _Order, inside: Inside, kept: Tensor, usable: Tensor, count: int) -> Tensor:
    """Add the best usable kernels as long as they fit, then those that read a live channel and write a live filter."""
    first, rest = kept.nonzero()[:, 0], (usable & ~kept).nonzero()[:, 0]
    best = rest[: _longest(order, inside, first, rest, count)]
    kept = order.effective(inside, torch.cat([first, best]))
    tried = kept | ~usable
    while int(kept.sum()) < count:
        filters = {layer: mask.any(1, keepdim=True).expand_as(mask) for layer, mask in order.tables(kept).items()}
        fitting = order.effective(inside, order.ranked(filters).nonzero()[:, 0]) & ~tried
        best = fitting.nonzero()[: count - int(kept.sum()), 0]
        if not len(best):
            break
        tried = tried.index_fill(0, best, True)
        # In a layer that runs several times, a kernel may be live only together with another that found no place.
        kept = order.effective(inside, kept.index_fill(0, best, True).nonzero()[:, 0])
    return kept


def _next_path(order: _Order, inside: Inside, kept: Tensor, allowed: Tensor) -> Tensor | None:
    """Return the ranks of a complete path to add, the worst first, whose worst kernel is as good as can be.

    Without any of its kernels, the others would be dead. None if there is no path.
    """
    first, rest, size = kept.nonzero()[:, 0], (allowed & ~kept).nonzero()[:, 0], int(kept.sum())
    if int(order.effective(inside, torch.cat([first, rest])).sum()) == size:
        return None
    path = rest[:0]
    while int(order.effective(inside, torch.cat([first, path])).sum()) == size:
        length = _longest(order, inside, torch.cat([first, path]), rest, size)
        path, rest = torch.cat([path, rest[length : length + 1]]), rest[:length]
    return path


def _shortened(order: _Order, inside: Inside, kept: Tensor, path: Tensor, count: int) -> Tensor | None:
    """Drop the worst kernels without which all others stay effective, none of a path, until ``count`` are left.

    None if there are too few such kernels.
    """
    filters = {layer: (mask.sum(1, keepdim=True) > 1).expand_as(mask) for layer, mask in order.tables(kept).items()}
    droppable = (order.ranked(filters) & kept).index_fill(0, path, False).nonzero()[:, 0]
    for rank in droppable.flip(0)[:_TRIALS]:
        fewer = kept.index_fill(0, rank, False)
        if torch.equal(order.effective(inside, fewer.nonzero()[:, 0]), fewer):
            kept = fewer
            if int(kept.sum()) == count:
                return kept
    return None


def _best_of_each_filter(saliency: Kernels, allowed: Kernels, count: int) -> dict[str, Tensor]:
    """Return the best allowed kernels of each filter, at most ``count``; ties go to the earlier channel."""
    kept = {}
    for layer, values in saliency.items():
        order = values.masked_fill(~allowed[layer], -torch.inf).sort(dim=1, descending=True, stable=True).indices
        kept[layer] = torch.zeros_like(allowed[layer]).scatter(1, order[:, :count], True) & allowed[layer]
    return kept
