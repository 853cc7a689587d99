"""Score all units of a layer at once: one pass forward, and what the kernels read and add computed once for all units.

``Trace`` and ``Batch`` with an axis of units, which comes first. A criterion whose formulas broadcast over that axis
runs on them unchanged: maps are (U, N, H, W), sums over elements (U, g, o, e), tables (U, ...).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from convcircuits.circuits.criteria import Criterion, actgrad, gauss_newton, snip
from convcircuits.circuits.tracing import (
    Batch,
    Layer,
    Trace,
    check_reached,
    differentiated,
    in_one_dtype,
    power_of_two,
    where_counted,
)
from convcircuits.maps.interior import Positions
from convcircuits.network.batches import Batches, Progress
from convcircuits.network.calls import KernelCall
from convcircuits.network.masking import Subject

SHARED: tuple[Criterion, ...] = (actgrad, snip, gauss_newton)
"""The criteria that score all units of a layer at once."""

STORE = 256
"""The bytes for gradients and tables of the units that are scored at once, as a multiple of ``memory``."""

ENOUGH = 32
"""The units that share the work on kernels: more gain little, and then more images at once are better."""


def fitting(subject: Subject, batches: Batches, memory: int) -> tuple[int, int]:
    """Return how many units, and images, are scored at once so that gradients and tables fit ``STORE * memory``.

    Args:
        subject: The model, opened for all units as one feature.
        batches: The images.
        memory: As for ``score_together``.
    """
    sizes: list[int] = []
    some = batches.first(2)  # a model may squeeze() a batch of one image

    def watch(call: KernelCall, output: Tensor) -> None:
        sizes.append(-(-output.numel() * output.element_size() // len(some)))

    with torch.no_grad():
        subject.maps(some, watch=watch)
    tables = sum(8 * mask.numel() for mask in subject.survey.kernels.values())
    images = max(1, min(batches.batch_size, STORE * memory // (ENOUGH * sum(sizes) + tables)))
    return max(1, min(len(subject.rows), STORE * memory // (images * sum(sizes) + tables))), images


def score_together(
    subjects: Sequence[Subject],
    batches: Batches,
    criterion: Criterion,
    *,
    granularity: str,
    seed: int,
    memory: int,
    progress: Progress | None = None,
    **options: Any,
) -> dict[str, Tensor]:
    """Score units of a layer, all of them at once.

    Args:
        subjects: The model, opened for one unit after another of one call of one layer, as by ``Subject.of``.
        batches: The images.
        criterion: One of ``SHARED``.
        granularity: What an element is.
        seed: Seed of the criterion.
        memory: Bytes of working memory for chunks of pre-sum maps. The gradients and tables of the units take more:
            ``fitting`` says how many units to give.
        progress: Called with the images done and their total.
        **options: Options of the criterion.

    Returns:
        Layer name -> (U, ...), float64: for each unit the scores of its table. Zero where it does not depend on a
        kernel.

    Raises:
        ConvCircuitsError: As for ``score``.
    """
    trace = UnitsTrace(subjects, batches, granularity=granularity, seed=seed, memory=memory, progress=progress)
    saliency: dict[str, Tensor] = criterion(trace, **options)
    return saliency


def means_together(
    subjects: Sequence[Subject],
    batches: Batches,
    criterion: Criterion,
    *,
    seed: int,
    memory: int,
    **options: Any,
) -> dict[str, Tensor]:
    """Return the means over images by which a criterion in ``SHARED`` scores kernels; called as ``score_together``.

    All that these criteria compute of images are means, in one pass. So images may be divided among processes: the
    means over all of them, given to ``Given``, give the scores.

    Returns:
        Name, as the criterion has it -> (U, ...), float64.

    Raises:
        ConvCircuitsError: As for ``score``.
    """
    trace = UnitsTrace(subjects, batches, granularity="kernel", seed=seed, memory=memory)
    criterion(trace, **options)
    units = len(subjects)
    return {name: table.expand(units, *table.shape[1:]) for name, table in trace.means.items()}  # some are of all alike


class Given(Trace):
    """A trace of images that have been seen: a criterion in ``SHARED`` finds the means over them here.

    Attributes:
        means: What ``means_together`` returns for the unit, over all images.
    """

    means: Mapping[str, Tensor]

    def mean(self, contribution: Callable[[Batch], Iterable[tuple[str, Tensor]]]) -> dict[str, Tensor]:
        """Return the means that are known."""
        return dict(self.means)


def _union(relevant: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return the elements that are relevant to any unit, in execution order."""
    every: dict[str, Tensor] = {}
    for one in relevant:
        for layer, mask in one.items():
            every[layer] = every[layer] | mask if layer in every else mask
    return every


class UnitsTrace(Trace):
    """The images of several units of one layer: the argument of a criterion in ``SHARED``.

    Attributes:
        subjects: The model, opened for each unit.
        relevant_to: For each unit, layer name -> bool: the elements to score.
        positions_of: For each unit, which positions of its map count.
        means: What the criterion has asked ``mean`` for.
    """

    def __init__(
        self,
        subjects: Sequence[Subject],
        batches: Batches,
        *,
        granularity: str,
        seed: int,
        memory: int,
        progress: Progress | None = None,
    ) -> None:
        feature = subjects[0].feature
        together = replace(feature, unit=tuple(int(subject.feature.unit) for subject in subjects))  # type: ignore[arg-type]
        relevant = [one.relevant(granularity, one.survey.input_shape) for one in subjects]
        chunk, every = subjects[0].of(together), _union(relevant)
        super().__init__(
            chunk,
            batches,
            relevant={layer: every[layer] for layer in chunk.survey.kernels},
            granularity=granularity,
            seed=seed,
            memory=memory,
            progress=progress,
        )
        self.subjects, self.relevant_to = subjects, relevant
        self.positions_of = [Positions(subject) for subject in subjects]
        self._stores: dict[tuple[Any, ...], Tensor] = {}
        self.means: dict[str, Tensor] = {}

    def mean(self, contribution: Callable[[Batch], Iterable[tuple[str, Tensor]]]) -> dict[str, Tensor]:
        """Return means over all images, with an axis of units."""
        self.means = super().mean(contribution)
        return dict(self.means)

    def store(self, number: int, gradient: Tensor) -> Tensor:
        """Return the buffer for the gradients of all units at a call, (U, N, ...); batches of one size share it."""
        key = number, gradient.shape, gradient.dtype
        if key not in self._stores:
            self._stores[key] = gradient.new_empty(len(self.subjects), *gradient.shape)
        return self._stores[key]

    def run(self, images: Tensor) -> "UnitsBatch":
        """Run images forward to the layer."""
        return UnitsBatch(self, images)


class UnitsBatch(Batch):
    """One batch of images, run forward to the layer.

    Attributes:
        size: Number of images.
        maps: The maps of the units, (U, N, H, W); of a Linear layer (U, N, 1, 1).
        scale: For each unit, a power of two near its maps' largest value, (U, 1, 1, 1), float64.
        counted: For each unit, the flat positions that count, (N, K), or None if all count.
    """

    _trace: UnitsTrace

    def __init__(self, trace: UnitsTrace, images: Tensor) -> None:
        self._read: GradientEdge | None = None
        self._last: KernelCall | None = None
        self._trace, self.size = trace, len(images)
        self._calls = []
        with torch.enable_grad():
            graph = trace.subject.maps(images.detach().requires_grad_(), None, self._watch)
        trace.cost["forward"] += self.size
        self._graph, maps = graph, graph.detach().transpose(0, 1)
        self._form = maps.shape[1:]
        self.counted = [positions.counted(own, images) for positions, own in zip(trace.positions_of, maps, strict=True)]
        scales = [power_of_two(own, one.feature) for own, one in zip(maps, trace.subjects, strict=True)]
        self.scale = torch.tensor(scales, dtype=torch.float64, device=maps.device)[:, None, None, None]  # type: ignore[assignment]
        self.maps = maps if maps.dim() == 4 else maps[..., None, None]

    @property
    def field(self) -> torch.Size:
        """Shape of a field of signs: one for each value of a unit's map, or a single one if one position counts."""
        single = all(counted is not None and counted.shape[-1] == 1 for counted in self.counted)
        return (self.maps[..., :1, :1] if single else self.maps).shape[2:]

    def _watch(self, call: KernelCall, output: Tensor) -> None:
        subject = self._trace.subject
        if subject.survey.direct and call.layer == subject.feature.layer:
            # The last call has one filter for each unit: its gradients are known, and that of its input is cheap.
            if call.x.requires_grad:
                self._read = get_gradient_edge(call.x)
            self._last = replace(call, x=call.x.detach())
            return
        super()._watch(call, output)

    def backward(self, gradient: Float[Tensor, "u n h w"]) -> "Iterator[UnitsLayer]":  # type: ignore[override]
        """Backpropagate a gradient of each unit's maps and yield the layers, the last one first.

        Args:
            gradient: dL/df of each unit, shaped like ``maps``; set to zero at positions that do not count.

        Raises:
            ConvCircuitsError: As for ``Batch.backward``.
        """
        trace, edges = self._trace, [edge for _, edge in self._calls]
        stores: list[Tensor | None] = [None] * len(edges)
        own: list[tuple[KernelCall, Tensor]] = []
        for unit, subject in enumerate(trace.subjects):
            slope = where_counted(gradient[unit].to(self.maps.dtype).reshape(self._form), self.counted[unit])
            found = self._differentiated(unit, slope, edges, own)
            reached = {call.layer for (call, _), g in zip(self._calls, found, strict=True) if g is not None}
            reached |= {call.layer for call, _ in own[-1:]}
            check_reached(subject.feature, trace.relevant_to[unit], reached)
            for n, g in enumerate(found):
                if g is not None:
                    store = stores[n]
                    if store is None:
                        stores[n] = store = trace.store(n, g)
                        store[:unit] = 0
                    store[unit] = g
                elif stores[n] is not None:
                    stores[n][unit] = 0  # type: ignore[index]
            del found
            trace.cost["backward"] += self.size
        if own:
            yield UnitsLayer(tuple(self._layer(call.layer, [(call, g)]) for call, g in own), None)
        by_layer: dict[str, list[int]] = {}
        for n, (call, _) in enumerate(self._calls):
            if stores[n] is not None:
                by_layer.setdefault(call.layer, []).append(n)
        for name in reversed(list(by_layer)):
            parts: list[tuple[KernelCall, Tensor]] = []
            for n in by_layer.pop(name):
                store, stores[n] = stores[n], None
                assert store is not None
                parts.append(in_one_dtype(self._calls[n][0], store))
            layers = tuple(
                self._layer(name, [(call, store[unit]) for call, store in parts]) for unit in range(len(trace.subjects))
            )
            alone = len(parts) == 1 and trace.granularity == "kernel"
            yield UnitsLayer(layers, parts[0] if alone else None)

    def _differentiated(
        self, unit: int, slope: Tensor, edges: Sequence[GradientEdge], own: list[tuple[KernelCall, Tensor]]
    ) -> Sequence[Tensor | None]:
        """Return one unit's gradients at the edges, and add the unit's own filter to ``own`` if it is a call's."""
        subject = self._trace.subjects[unit]
        if self._last is None:
            whole = torch.zeros_like(self._graph)
            whole[:, unit] = slope
            return differentiated(self._graph, edges, whole, subject.feature) if edges else []
        weight = self._last.weight[unit : unit + 1].detach()
        call = replace(self._last, weight=weight, bias=None, rows=subject.rows)
        call, last = in_one_dtype(call, slope.unsqueeze(call.channel_dim))
        own.append((call, last))
        if self._read is None or not edges:
            return [None] * len(edges)
        back = call.input_gradient(last).to(self._last.x.dtype)
        return differentiated(self._read, edges, back, subject.feature)


@dataclass(frozen=True)
class UnitsLayer:
    """What ``Layer`` is for one feature, for several units: all that it returns has an axis of units.

    Attributes:
        units: The layer as each unit sees it.
        shared: The call, and the gradients of its output, (U, N, ...), if all units read the same kernels in one call;
            None if each is computed on its own.
    """

    units: tuple[Layer, ...]
    shared: tuple[KernelCall, Tensor] | None

    @property
    def name(self) -> str:
        """The layer's name."""
        return self.units[0].name

    @property
    def element_size(self) -> int:
        """Number of weights of one element."""
        return self.units[0].element_size

    @property
    def elements(self) -> int:
        """Number of elements of a filter."""
        return self.units[0].elements

    @property
    def positions(self) -> int:
        """Number of output positions, as for ``Layer``."""
        return self.units[0].positions

    @property
    def images(self) -> int:
        """Number of images in the batch."""
        return self.units[0].images

    def absolute_sums(self) -> Float[Tensor, "u g o e"]:
        """Return the sum of |z * g| over images and positions, as for ``Layer``."""
        if self.shared is None:
            return torch.stack([layer.absolute_sums() for layer in self.units])
        call, slopes = self.shared
        absolute = replace(call, x=call.x.abs(), weight=call.weight.abs()) if _single(call) else call
        slopes = slopes.abs_()  # in place: the signs of a layer's gradients are not needed again
        return sum(_contracted(absolute, slopes, image, absolute=True) for image in range(self.images))  # type: ignore[return-value]

    def absolute_products(self) -> Float[Tensor, "u g o e"]:
        """Return the sum of |w * dL_n/dw| over images and the weights of each element."""
        if self.shared is None or not self.shared[0].few_positions(self.shared[1][0]):
            return torch.stack([layer.absolute_products() for layer in self.units])
        call, slopes = self.shared
        sizes = call.kernels.abs().transpose(2, 3)  # (g, o, k, i), so that sums over k run along vectors
        total = slopes.new_zeros(len(slopes), *call.kernels.shape[:3])
        for image in range(self.images):
            reads = call.columns(slice(image, image + 1))[0].transpose(1, 2)  # (g, k, i, p)
            reads = reads.flatten(1, 2).transpose(1, 2).contiguous()
            for unit, own in enumerate(slopes):
                products = call.by_position(own[image : image + 1])[0] @ reads
                products = products.reshape(sizes.shape).abs_().mul_(sizes)
                total[unit] += products.sum(2)
        return total

    def element_gradients(self) -> Iterator[Float[Tensor, "u g o e"]]:
        """Yield dL_n/dm_e for one image after another, with m_e a factor on all weights of an element."""
        if self.shared is None:
            for parts in zip(*(layer.element_gradients() for layer in self.units), strict=True):
                yield torch.stack(parts)
            return
        call, slopes = self.shared
        for image in range(self.images):
            yield _contracted(call, slopes, image, absolute=False)

    def filter_gradients(self) -> Float[Tensor, "n u g o"]:
        """Return each filter's gradient, summed over positions."""
        return torch.stack([layer.filter_gradients() for layer in self.units], 1)

    def presum_totals(self) -> tuple[Float[Tensor, "u g o e"], int]:
        """Return each element's pre-sum map summed as for ``Layer``; if all units read the same kernels, only once."""
        if self.shared is not None:
            total, count = self.units[0].presum_totals()
            return total[None], count
        found = [layer.presum_totals() for layer in self.units]
        return torch.stack([total for total, _ in found]), found[0][1]

    def per_element(self, values: Float[Tensor, "u g o e"]) -> Float[Tensor, "u ..."]:
        """Return values in the shape of the layer's table, for each unit."""
        units = self.units[:1] if len(values) == 1 else self.units  # what all units share has an axis of one
        return torch.stack([layer.per_element(own) for layer, own in zip(units, values, strict=True)])


def _single(call: KernelCall) -> bool:
    """Return whether each kernel is a single weight, so that |z g| = |w| |x| |g|."""
    return call.kernels.shape[3] == 1


def _contracted(call: KernelCall, slopes: Tensor, image: int, *, absolute: bool) -> Float[Tensor, "u g o i"]:
    """Sum z g, or |z| g, over the positions of an image for all units: one matrix product per filter.

    Args:
        call: The call.
        slopes: The gradients of its output, (U, N, ...).
        image: Index of the image.
        absolute: Whether to take |z|.
    """
    groups, out, inputs, _ = call.kernels.shape
    gradients = call.by_position(slopes[:, image])  # (U, g, o, p)
    if _single(call):
        reads = call.columns(slice(image, image + 1))[0, :, :, 0]  # (g, i, p)
        return (gradients @ reads.transpose(1, 2)) * call.kernels[..., 0]
    total = slopes.new_zeros(groups, out, inputs, len(slopes))
    for filter in range(out):
        z = call.presum_maps(image, filter)
        if absolute:
            z = z.abs_()
        if groups == 1:  # no copy
            total[0, filter] = z[0] @ gradients[:, 0, filter].T
        else:
            total[:, filter] = z @ gradients[:, :, filter].permute(1, 2, 0)
    return total.permute(3, 0, 1, 2)
