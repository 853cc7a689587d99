"""What criteria see: for each batch of images, the input of every element and the gradient of its output."""

import copy
import functools
import math
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from convcircuits.circuits.presum import absolute_sums, absolute_sums_of_lattice
from convcircuits.errors import ConvCircuitsError, option
from convcircuits.loops import has_loops
from convcircuits.maps.interior import Positions
from convcircuits.network.batches import Batches, Progress
from convcircuits.network.calls import ConvCall, KernelCall
from convcircuits.network.masking import Masks, Subject
from convcircuits.values.feature import Feature, at, flattened
from convcircuits.values.granularity import by_element

_LATTICES = 4
"""The bytes for images that are laid out at once, as a multiple of ``memory``."""


@dataclass(frozen=True)
class Layer:
    """The inputs of one layer in a batch and the gradients of its outputs; ``Batch.backward`` yields it.

    Shape letters: n image, g group, o filter in the group, e element of the filter, k weight of the element, p
    position. The granularity decides what the elements are: the filter itself, its kernels or its weights. So one
    formula that sums or averages over k serves every granularity. A layer that runs several times has several calls;
    their products are summed before any absolute value. If the calls' kernels differ in size, an element has the
    weights of all sizes. Whatever the model's dtype, all that it holds and returns is at least float32.

    Attributes:
        name: The layer's name, as in ``model.named_modules()``.
        shape: Shape of its table of elements, as returned by ``per_element``.
        granularity: What an element is: a ``"filter"``, a ``"kernel"`` or a ``"weight"``.
        calls: Its kernel calls in this batch, each with the gradient of its output. Inside a circuit they may hold only
            the filters and channels of its kernels; then the axes o and e have only these.
        memory: Bytes of working memory for chunks of pre-sum maps.
        channels: The input channels that the calls hold, int64; None for all.
    """

    name: str
    calls: tuple[tuple[KernelCall, Tensor], ...]
    shape: tuple[int, ...]
    memory: int
    granularity: str
    channels: Tensor | None = None

    @property
    def weights(self) -> Float[Tensor, "g o e k"]:
        """The weights of the elements; if calls use different weights, all of them."""
        used: list[Tensor] = []
        for call, _ in self.calls:
            if not any(torch.equal(call.kernels, one) for one in used):
                used.append(call.kernels)
        return by_element(_joined(used), self.granularity)

    @property
    def element_size(self) -> int:
        """Number of weights of one element, the size of the last axis of ``weight_products``."""
        kernels = [calls[0][0].kernels for calls in self._by(_kernel_size)]
        return by_element(_joined(kernels), self.granularity).shape[3]

    @property
    def elements(self) -> int:
        """Number of elements of a filter, the size of the axis e."""
        return self.weights.shape[2]

    @property
    def positions(self) -> int:
        """Number of output positions; if the calls' maps differ in size, summed over the sizes."""
        return sum(_map_size(*calls[0]) for calls in self._by(_map_size))

    @property
    def images(self) -> int:
        """Number of images in the batch."""
        return len(self.calls[0][0].x)

    def weight_products(self) -> Iterator[Float[Tensor, "g o e k"]]:
        """Yield w * dL_n/dw for one image after another, each (g, o, e, k)."""
        for gradients in zip(*(call.weight_gradients(gradient) for call, gradient in self.calls), strict=True):
            by_size: dict[int, Tensor] = {}
            for (call, _), gradient in zip(self.calls, gradients, strict=True):
                size, product = call.kernels.shape[3], gradient * call.kernels
                by_size[size] = by_size[size] + product if size in by_size else product
            yield by_element(torch.cat([*by_size.values()], 3), self.granularity)

    def element_gradients(self) -> Iterator[Float[Tensor, "g o e"]]:
        """Yield dL_n/dm_e for one image after another, with m_e a factor on all weights of an element."""
        if self.granularity != "kernel":
            return (product.sum(3) for product in self.weight_products())
        by_call = [call.kernel_gradients(gradient) for call, gradient in self.calls]
        return (functools.reduce(torch.add, parts) for parts in zip(*by_call, strict=True))

    def absolute_products(self) -> Float[Tensor, "g o e"]:
        """Return the sum of |w * dL_n/dw| over images and the weights of each element."""
        if len(self.calls) > 1:
            return functools.reduce(torch.add, (product.abs_().sum(3) for product in self.weight_products()))
        ((call, gradient),) = self.calls
        total = call.absolute_weight_gradients(gradient)
        return by_element(total.mul_(call.kernels.abs()), self.granularity).sum(3)

    def mask_gradients(self) -> Iterator[Float[Tensor, "n g o e"]]:
        """Yield ``element_gradients`` for some images at a time, in their order: so many as fit the memory.

        That is quicker for a feature with one position, of which only the receptive field is read, and slower for maps.
        """
        narrowed = [call.narrowed(gradient) for call, gradient in self.calls]
        sizes = [call.weight.numel() + 2 * call.columns(slice(1)).numel() for call, _ in narrowed]
        some = max(1, self.memory // (max(sizes) * self.calls[0][1].element_size()))
        for first in range(0, self.images, some):
            chosen = slice(first, first + some)
            parts = []
            for call, gradient in narrowed:
                reads = call.columns(chosen).flatten(2, 3)
                products = call.by_position(gradient[chosen]) @ reads.transpose(2, 3)
                products = products.reshape(*products.shape[:3], *call.kernels.shape[2:]).mul_(call.kernels)
                parts.append(_by_element(products, self.granularity))
            yield torch.stack(parts).sum(0)

    def absolute_sums(self) -> Float[Tensor, "g o e"]:
        """Return the sum of |z * g|, each element's pre-sum map times its filter's gradient, over images and positions.

        Products of calls with maps of equal size are added position by position, before the absolute value.
        """
        parts = []
        for calls in self._by(_map_size):
            call, gradient = calls[0]
            weights = by_element(call.kernels, self.granularity)
            if len(calls) > 1:
                parts.append(self._absolute_sums_of_calls(calls))
            elif weights.shape[3] == 1:  # |w x g| = |w| |x| |g|, summed as a weight gradient is
                sizes = replace(call, x=call.x.abs()).weight_gradient(gradient.abs()).flatten(2)
                parts.append(sizes * weights[..., 0].abs())
            elif isinstance(call, ConvCall) and has_loops(weights):
                parts.append(self._absolute_sums_of_conv(call, gradient, weights))
            else:
                parts.append(self._absolute_sums_of_calls(calls))
        return torch.stack(parts).sum(0)

    def _absolute_sums_of_calls(self, calls: list[tuple[KernelCall, Tensor]]) -> Float[Tensor, "g o e"]:
        kernels = [by_element(call.kernels, self.granularity) for call, _ in calls]
        laid_out = [
            (call, call.by_position(gradient), (len(weights), *weights.shape[2:], -1))
            for (call, gradient), weights in zip(calls, kernels, strict=True)
        ]
        images = (
            [(call.columns(slice(n, n + 1)).reshape(shape), gradient[n]) for call, gradient, shape in laid_out]
            for n in range(self.images)
        )
        return absolute_sums(images, kernels, self.memory)

    def _absolute_sums_of_conv(
        self, call: ConvCall, gradient: Tensor, weights: Float[Tensor, "g o e k"]
    ) -> Float[Tensor, "g o e"]:
        call, gradient = call.narrowed(gradient)
        some = max(1, _LATTICES * self.memory // (call.x[0].nbytes + gradient[0].nbytes))
        sums = weights.new_zeros(weights.shape[:3])
        for first in range(0, len(gradient), some):
            lattice = call.lattice(gradient, slice(first, first + some))
            if self.granularity == "filter":
                lattice = lattice.joined()
            sums += absolute_sums_of_lattice(lattice, weights, self.memory)
        return sums

    def filter_gradients(self) -> Float[Tensor, "n g o"]:
        """Return each filter's gradient, summed over positions."""
        return torch.stack([call.by_position(gradient).sum(3) for call, gradient in self.calls]).sum(0)

    def presum_totals(self) -> tuple[Float[Tensor, "g o e"], int]:
        """Return each element's pre-sum map summed over images, positions and calls, and the number of summed values.

        Raises:
            ConvCircuitsError: If the calls' kernels differ in size, so that their maps have no common mean.
        """
        if len(self._by(_kernel_size)) > 1:
            raise ConvCircuitsError(
                f"{self.name} uses its weight in several sizes, and their maps have no common mean; choose "
                f"{option('criterion', 'gauss_newton')} without {option('centered', True, of_criterion=True)}."
            )
        parts = [
            by_element(call.kernels.double() * call.read_totals()[:, None], self.granularity).sum(3)
            for call, _ in self.calls
        ]
        positions = sum(_map_size(call, gradient) for call, gradient in self.calls)
        return torch.stack(parts).sum(0), positions * self.images

    def per_element(self, values: Float[Tensor, "g o e"]) -> Float[Tensor, "out ..."]:
        """Return values in the shape of the layer's table, ``shape``; zero for elements that the calls do not hold."""
        rows = self.calls[0][0].rows
        if self.channels is not None:
            assert rows is not None
            whole = values.new_zeros(self.shape)
            whole[rows[:, None], self.channels] = values.flatten(0, 1)
            return whole
        computed = values.reshape(-1, *self.shape[1:])
        if rows is None:
            return computed
        whole = computed.new_zeros(self.shape)
        whole[rows] = computed
        return whole

    def _by(self, size: Callable[[KernelCall, Tensor], int]) -> list[list[tuple[KernelCall, Tensor]]]:
        """Group the calls by a size."""
        groups: dict[int, list[tuple[KernelCall, Tensor]]] = {}
        for call, gradient in self.calls:
            groups.setdefault(size(call, gradient), []).append((call, gradient))
        return list(groups.values())


def _joined(parts: Sequence[Float[Tensor, "g o i _"]]) -> Float[Tensor, "g o i k"]:
    """Concatenate the weights of several forms of one kernel."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), 3)


def _by_element(products: Float[Tensor, "n g o i k"], granularity: str) -> Float[Tensor, "n g o e"]:
    """Sum the products of single weights over each element."""
    if granularity == "weight":
        return products.flatten(3)
    return products.sum((3, 4))[..., None] if granularity == "filter" else products.sum(4)


def _map_size(call: KernelCall, gradient: Tensor) -> int:
    return call.by_position(gradient).shape[3]


def _kernel_size(call: KernelCall, gradient: Tensor) -> int:
    return call.kernels.shape[3]


class Batch:
    """One batch of images, run forward to the feature; ``Trace.mean`` passes it to the criterion.

    Attributes:
        size: Number of images.
        maps: The feature's maps, (N, H, W) or (N,); for several units (N, U, H, W) or (N, U).
        scale: A power of two near the maps' largest value. Gradients of maps divided by it neither overflow nor vanish,
            however large or small the maps are, and rounding is unchanged.
        indices: The flat positions that count in each map, (N, K) or (N, U, K), or None if all count.
    """

    def __init__(self, trace: "Trace", images: Tensor) -> None:
        self._trace, self.size = trace, len(images)
        self._calls: list[tuple[KernelCall, GradientEdge]] = []
        self._held: dict[str, list[ConvCall]] = {}  # of each layer, its calls with what a circuit needs of them
        subject = trace.subject
        with torch.enable_grad():
            maps = subject.maps(images.detach().requires_grad_(), trace.masks, self._watch)
        full = maps
        if subject.feature.follows_maximum and not (trace.masks is None and trace.target is subject):
            with torch.no_grad():
                full = trace.target.maps(images)
        trace.cost["forward"] += self.size * (1 if full is maps else 2)
        self.indices = trace.positions.counted(full, images)
        self._graph, self.maps = maps, maps.detach()
        self.scale = power_of_two(self.maps, subject.feature)

    @property
    def field(self) -> torch.Size:
        """Shape of a field of signs: one for each value of a map that counts; for several units, of all their maps."""
        # If one position of each unit's map counts, a field needs one sign per unit.
        single = self.indices is not None and self.indices.shape[-1] == 1 and self.maps.dim() > 2
        return (self.maps[..., :1, :1] if single else self.maps).shape[1:]

    def _watch(self, call: KernelCall, output: Tensor) -> None:
        if call.layer in self._trace.shapes:
            x, masks = call.x.detach(), self._trace.masks
            if masks is not None and masks.effective:  # nothing reads a dead channel, whatever bias it holds
                running = masks.running(call)
                read = running.reshape(call.groups, -1, running.shape[1]).any(1).flatten()
                x = x * call.spread(read.to(x).expand(len(x), -1))
            if masks is not None and call.layer in masks.gain:
                call = replace(call, weight=masks.gained(call))
            if not output.requires_grad:
                raise ConvCircuitsError(
                    f"{call.layer} runs on an input without a gradient (a constant, or a map that the model cuts off: "
                    "detach, a comparison), and criteria that follow gradients cannot score that. Give such calls a "
                    f"layer of their own, use {option('criterion', 'magnitude')}, or choose a feature before it."
                )
            self._calls.append((replace(call, x=x), get_gradient_edge(output)))

    def backward(self, gradient: Tensor) -> Iterator[Layer]:
        """Backpropagate a gradient of the maps and yield the layers, the last one first.

        It may be called several times, with different gradients.

        Args:
            gradient: dL/df, shaped like ``maps``; set to zero at positions that do not count.

        Raises:
            ConvCircuitsError: If no gradient can be computed, or none reaches a layer that leads to the feature.
        """
        gradient = where_counted(gradient, self.indices)
        # Edges, not tensors: an in-place ReLU changes a tensor's node.
        gradients = differentiated(
            self._graph, [edge for _, edge in self._calls], gradient, self._trace.subject.feature
        )
        by_layer: dict[str, list[tuple[KernelCall, Tensor]]] = {}
        for (call, _), g in zip(self._calls, gradients, strict=True):
            if g is not None:
                by_layer.setdefault(call.layer, []).append((call, g))
        self._trace.cost["backward"] += self.size
        del gradients
        check_reached(self._trace.subject.feature, self._trace.relevant, by_layer)
        for name in reversed(list(by_layer)):
            yield self._needed(name, by_layer.pop(name))

    def weights(self) -> Iterator[tuple[str, Tensor, Layer]]:
        """Yield each layer's name, the weights that its elements actually use, (g, o, e, k), and the layer."""
        by_layer: dict[str, list[tuple[KernelCall, Tensor]]] = {}
        for call, _ in self._calls:
            by_layer.setdefault(call.layer, []).append((call, call.x))
        for name, calls in by_layer.items():
            layer = self._layer(name, calls)
            yield name, layer.weights, layer

    def _layer(self, name: str, calls: list[tuple[KernelCall, Tensor]]) -> Layer:
        trace = self._trace
        wide = tuple(in_one_dtype(call, gradient) for call, gradient in calls)
        return Layer(name, wide, trace.shapes[name], trace.memory, trace.granularity)

    def _needed(self, name: str, calls: list[tuple[KernelCall, Tensor]]) -> Layer:
        """Return a layer with only the filters and channels of its kernels inside a circuit, where that pays."""
        layer, masks = self._layer(name, calls), self._trace.masks
        if masks is None or not masks.effective or self._trace.granularity != "kernel":
            return layer
        convolutions = [(call, gradient) for call, gradient in layer.calls if isinstance(call, ConvCall)]
        if len(convolutions) < len(calls):
            return layer
        part = masks.part(convolutions[0][0])
        if part is None:
            return layer
        if name not in self._held:  # several gradients need the same
            self._held[name] = [call.part(*part) for call, _ in convolutions]
        gradients = [gradient[:, part[0]] for _, gradient in convolutions]
        return replace(layer, calls=tuple(zip(self._held[name], gradients, strict=True)), channels=part[1])


def where_counted(gradient: Tensor, indices: Tensor | None) -> Tensor:
    """Return a gradient of maps that is zero at positions that do not count."""
    if indices is None:
        return gradient
    none = torch.zeros_like(flattened(gradient))
    return none.scatter(-1, indices, at(gradient, indices)).reshape(gradient.shape)


def differentiated(
    output: Tensor | GradientEdge, edges: Sequence[GradientEdge], gradient: Tensor, feature: Feature
) -> tuple[Tensor | None, ...]:
    """Return the gradients at some edges of the graph, which remains; None at one that the output does not depend on.

    Raises:
        ConvCircuitsError: If they cannot be computed.
    """
    try:
        return torch.autograd.grad(output, edges, gradient, retain_graph=True, allow_unused=True)
    except (RuntimeError, NotImplementedError) as error:
        raise ConvCircuitsError(
            f"No gradient of {feature} can be computed: {error} Choose a feature before that operation, or "
            f"{option('criterion', 'magnitude')}."
        ) from error


def check_reached(feature: Feature, relevant: Mapping[str, Tensor], layers: Container[str]) -> None:
    """Check that no layer leads to the feature on paths without a gradient only: its scores of zero would be wrong.

    Raises:
        ConvCircuitsError: If one does.
    """
    lost = next((name for name, elements in relevant.items() if bool(elements.any()) and name not in layers), None)
    if lost is not None:
        raise ConvCircuitsError(
            f"No gradient of {feature} reaches {lost}, although the feature depends on it: the "
            "model cuts the gradient off (detach, .data, argmax, a comparison). Criteria that follow gradients "
            f"cannot score that layer; use {option('criterion', 'magnitude')}, or choose a feature before it."
        )


def power_of_two(maps: Tensor, feature: Feature) -> float:
    """Return a power of two near the maps' largest value.

    Raises:
        ConvCircuitsError: If the maps contain NaN or Inf.
    """
    largest = float(maps.abs().max())
    if not math.isfinite(largest):
        raise ConvCircuitsError(
            f"The maps of {feature} contain NaN or Inf; check the model's weights and how the images are prepared."
        )
    most = math.frexp(torch.finfo(maps.dtype).max)[1] * 4 // 5
    return 2.0 ** max(-most, min(most, math.frexp(largest)[1]))


def in_one_dtype(call: KernelCall, gradient: Tensor) -> tuple[KernelCall, Tensor]:
    """Convert a call and its gradient to their widest dtype, at least float32.

    They differ under autocast. Products and sums of half precision would overflow, or be rounded to a few digits.
    """
    dtypes = call.x.dtype, call.weight.dtype, gradient.dtype
    dtype = functools.reduce(torch.promote_types, dtypes, torch.float32)
    if all(one == dtype for one in dtypes):
        return call, gradient
    return replace(call, x=call.x.to(dtype), weight=call.weight.to(dtype)), gradient.to(dtype)


class Trace:
    """A feature's images, run batch by batch: the argument of a criterion, created by ``score`` and ``find``.

    Attributes:
        subject: The opened model; ``subject.feature`` is the feature.
        granularity: What an element is: a ``"filter"``, a ``"kernel"`` or a ``"weight"``.
        shapes: Layer name -> shape of its table of elements, in execution order: (out,) for filters, (out, in per
            group) for kernels, the shape of the weight for weights.
        relevant: Layer name -> bool of that shape: the elements to score.
        masks: The network that is scored; None for the full model.
        positions: Which positions of the feature's map count.
        seed: Seed for criteria that draw random numbers.
        notes: Sentences that a criterion adds for the reader of the result.
        passes: Number of passes over the images that a criterion will make, for progress.
        batches: The images.
        cost: Number of images that have run forward, and that have run backward (once for each gradient).
        progress: Called with the images done, or None.
        target: The model that a descent fits its circuits to: ``subject``, or another one of the same architecture.
    """

    def __init__(
        self,
        subject: Subject,
        batches: Batches,
        *,
        relevant: dict[str, Tensor],
        granularity: str = "kernel",
        masks: Masks | None = None,
        seed: int = 0,
        memory: int,
        progress: Progress | None = None,
        target: Subject | None = None,
    ) -> None:
        self.subject, self.masks, self.seed, self.memory = subject, masks, seed, memory
        self.target = target or subject
        self.relevant, self.granularity, self.positions = relevant, granularity, Positions(subject)
        self.shapes = {layer: tuple(mask.shape) for layer, mask in relevant.items()}
        self.notes: list[str] = []
        self.cost = Counter(forward=0, backward=0)
        self.passes, self._passed = 1, 0
        self.batches, self.progress = batches, progress

    def masked(self, elements: Mapping[str, Tensor], *, passed: int = 0) -> "Trace":
        """Return a trace of the network that keeps only some elements; all biases stay, as published.

        Args:
            elements: Layer name -> bool, of the shapes in ``shapes``: the elements to keep.
            passed: Number of passes over the images made before, for progress.
        """
        trace = copy.copy(self)
        trace.masks, trace._passed = self.subject.kept(elements, self.granularity), passed
        return trace

    def inside(self, masks: Masks, kernels: dict[str, Tensor], images: Batches) -> "Trace":
        """Return a trace of a circuit, in which only its own kernels are scored.

        Args:
            masks: The circuit.
            kernels: Layer name -> bool (out, in per group): the kernels to score.
            images: The images to score them on.
        """
        trace = copy.copy(self)
        trace.masks, trace.relevant, trace.batches, trace.passes, trace._passed = masks, kernels, images, 1, 0
        return trace

    def run(self, images: Tensor) -> Batch:
        """Run images forward to the feature."""
        return Batch(self, images)

    def mean(self, contribution: Callable[[Batch], Iterable[tuple[str, Tensor]]]) -> dict[str, Tensor]:
        """Return means over all images. This is the one loop over them.

        Args:
            contribution: Function of a batch that yields pairs of a name and a tensor summed over the batch's images.
                Tensors with the same name are added.

        Returns:
            Name -> the mean over all images, float64, on the CPU; independent of batch size and order up to rounding.

        Examples:
            A criterion: the squared change of the sum of the map, to first order, if one kernel is removed:

            >>> def squared(trace):
            ...     def contribution(batch):
            ...         for layer in batch.backward(torch.ones_like(batch.maps)):
            ...             products = layer.weight_products()  # one image after another, each (g, o, e, k)
            ...             yield layer.name, layer.per_element(sum(p.sum(3) ** 2 for p in products))
            ...
            ...     return trace.mean(contribution)
            >>> cc.find(model, feature, images, criterion=squared, kernels=20)
            Circuit(features.5:1, squared, 20 of 96 kernels = 20.833%)
        """
        totals: dict[str, Tensor] = {}
        done = 0
        for images in self.batches:
            batch = self.run(images)
            for name, value in contribution(batch):
                value = value.detach().to("cpu", torch.float64)
                totals[name] = totals[name] + value if name in totals else value
            done += batch.size
            if self.progress is not None:
                total = self.batches.expected
                before = 0 if total is None else self._passed * total
                self.progress(before + done, None if total is None else self.passes * total)
        self._passed += 1
        return {name: total / done for name, total in totals.items()}
