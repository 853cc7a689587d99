"""Run a model with only some of its kernels."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from convcircuits.errors import ConvCircuitsError
from convcircuits.network.calls import ConvCall, KernelCall, computed_at
from convcircuits.network.capture import Network
from convcircuits.network.graph import Steps
from convcircuits.network.operations import Plan
from convcircuits.network.provenance import check_same_model, describe
from convcircuits.network.reach import Paths, Survey, guessed_input_shapes, survey, survey_of_unknown_size
from convcircuits.network.recording import record_graph
from convcircuits.values.circuit import Circuit
from convcircuits.values.feature import Feature
from convcircuits.values.granularity import elements_with, masks_of

_GRAPHS = 8  # shapes of images, and circuits on each, that are kept ready
_WORTH = 0.7  # share of a convolution's weights below which its rows and columns are taken out, which costs copies


@dataclass(frozen=True)
class Masks:
    """The kernels that a run keeps, and the calibration that it applies.

    Attributes:
        kernels: Layer name -> bool (out, in per group). Layers without a mask run in full.
        gain: Layer name -> (out, in per group), the factor of each kernel that runs.
        offset: Layer name -> (out,), added to the raw output of each live filter.
        effective: Whether dead filters, which have no kept kernel, contribute nothing: their bias, and any BatchNorm
            shift after it, are removed where their maps meet others. Dead gates, which multiply, keep their constant
            value. If False, every bias stays, as published.
        weights: Layer name -> bool in the weight's shape: the weights of kept kernels that are kept. Layers without a
            mask keep all of them.
        constant: Layer name -> bool (out, in per group): kernels that read only constants, according to the survey.
            They belong to their filter's bias, and are kept or removed with it.
    """

    kernels: Mapping[str, Tensor]
    gain: Mapping[str, Tensor] = field(default_factory=dict)
    offset: Mapping[str, Tensor] = field(default_factory=dict)
    effective: bool = True
    weights: Mapping[str, Tensor] = field(default_factory=dict)
    constant: Mapping[str, Tensor] = field(default_factory=dict)

    def to(self, device: torch.device, dtype: torch.dtype) -> "Masks":
        """Move the masks to a device, and gain and offset also to a dtype."""
        return Masks(
            {layer: mask.to(device) for layer, mask in self.kernels.items()},
            {layer: gain.to(device, dtype) for layer, gain in self.gain.items()},
            {layer: offset.to(device, dtype) for layer, offset in self.offset.items()},
            self.effective,
            {layer: mask.to(device) for layer, mask in self.weights.items()},
            {layer: mask.to(device) for layer, mask in self.constant.items()},
        )

    def running(self, call: KernelCall) -> Bool[Tensor, "out in"]:
        """Return which kernels of the computed filters run in a call."""
        mask = _computed(self.kernels[call.layer], call)
        if self.effective and call.live is not None:
            # Kernels that read a dead channel are dropped already, but in a layer that runs several times one call may.
            mask = (mask.reshape(call.groups, -1, mask.shape[1]) & call.live[:, None]).flatten(0, 1)
        return mask

    def weight_and_bias(self, call: KernelCall, running: Bool[Tensor, "out in"]) -> tuple[Tensor, Tensor | None]:
        """Return the weight and bias of a call, with zeros for kernels that do not run and the calibration applied.

        Args:
            call: The call.
            running: The kernels of the computed filters that run.
        """
        running = running.to(call.weight.device)
        kept, live = call.per_kernel(running), running.any(1)
        if call.layer in self.weights:
            kept = kept & _computed(self.weights[call.layer], call)
        if call.layer in self.constant:
            constant = _computed(self.constant[call.layer], call)
            biased = live | constant.all(1) | (not self.effective)  # a filter that reads only constants is a constant
            kept = kept | call.per_kernel(constant & biased[:, None])
        weight, bias = call.weight * kept, call.bias
        if call.layer in self.gain:
            # Kernels that read only constants are part of the bias, which has no gain.
            gain = torch.where(running, _computed(self.gain[call.layer], call), 1)
            weight = weight * call.per_kernel(gain)
        if call.layer in self.offset:
            bias = torch.where(live, _computed(self.offset[call.layer], call), 0) + (0 if bias is None else bias)
        return weight, bias

    def gained(self, call: KernelCall) -> Tensor:
        """Return the weight of a call with the gains applied, also of kernels that are not kept."""
        return call.weight * call.per_kernel(_computed(self.gain[call.layer], call))

    def kernel(self, call: KernelCall) -> Tensor:
        """Compute a kernel call with only the kept kernels."""
        if call.layer not in self.kernels:
            return call.compute()
        masked, filters, bias = self._masked(call)
        return _among(masked.compute(), filters, bias)

    def kernel_at(self, call: KernelCall, positions: Tensor) -> Float[Tensor, "n out p"]:
        """Compute a call of a masked layer with only the kept kernels, at some positions of the output."""
        masked, filters, bias = self._masked(call)
        return _among(computed_at(masked, positions), filters, bias)

    def _masked(self, call: KernelCall) -> tuple[KernelCall, Tensor | None, Tensor | None]:
        """Return a call with only the kept kernels, the filters that it computes or None for all, and the bias of all.

        Where that pays, the call has only the filters and channels of these kernels.
        """
        running = self.running(call)
        read = running | _computed(self.constant[call.layer], call) if call.layer in self.constant else running
        weight, bias = self.weight_and_bias(call, running)
        if isinstance(call, ConvCall) and (part := _part(call, read)) is not None:
            alone = replace(call, weight=weight, bias=bias).part(*part)
            return alone, part[0], bias if bias is not None else weight.new_zeros(len(weight))
        return read_alone(replace(call, weight=weight, bias=bias), read), None, bias

    def part(self, call: ConvCall) -> tuple[Tensor, Tensor] | None:
        """Return the computed filters and the channels of kept kernels, int64; None if that is not much less than all.

        All convolutions of a layer have the same ones, as a layer with several calls computes all filters.
        """
        return _part(call, _computed(self.kernels[call.layer], call))


class Subject:
    """A model opened for a feature: surveyed and ready to run.

    Args:
        network: The model.
        feature: The feature.
        found: The survey of the feature in the full model.

    Attributes:
        network: The model.
        feature: The feature.
        survey: The survey of the feature in the full model.
        rows: The channels of its layer that the feature reads, int64.
        coefficients: The feature's coefficient on each.
    """

    def __init__(self, network: Network, feature: Feature, found: Survey) -> None:
        self.network, self.feature, self.survey = network, feature, found
        self.rows = found.rows.to(network.device)
        self.coefficients = found.coefficients.to(network.device, network.dtype)
        self._paths: dict[torch.Size, Paths] = {found.paths.graph.shapes[0]: found.paths}
        self._plans: dict[tuple[int, torch.Size], tuple[Mapping[str, Tensor], Plan]] = {}

    @classmethod
    def open(cls, model: nn.Module | Network, feature: Feature, shape: Sequence[int] | None = None) -> "Subject":
        """Open a model for a feature.

        Args:
            model: Any CNN; it is not changed.
            feature: The feature.
            shape: (C, H, W) of an image; if None, the first of the common shapes that the model accepts.

        Raises:
            ConvCircuitsError: If the feature, or every image shape, does not fit the model.
        """
        network = model if isinstance(model, Network) else Network(model)
        return cls(network, feature, survey_of_unknown_size(network, feature, shape))

    @cached_property
    def about(self) -> dict[str, Any]:
        """The feature, the model's weights and the versions, as the start of a result's provenance."""
        return describe(self.network, self.feature, self.survey)

    def of(self, feature: Feature) -> "Subject":
        """Return the model opened for another feature of the same call of the same layer, without a new recording.

        The two share what has been recorded, and the hash of the weights.

        Raises:
            ConvCircuitsError: If the layer has no such unit, or no kernel lies on a path to it.
        """
        assert (feature.layer, feature.call) == (self.feature.layer, self.feature.call)
        other = Subject(self.network, feature, self.survey.of(feature))
        other._paths = self._paths
        other.about = self.about | {"feature": str(feature)}
        return other

    def check(self, circuit: Circuit) -> None:
        """Check that a circuit belongs to this model and feature.

        Raises:
            ConvCircuitsError: If it is not a Circuit, if its weights or its feature differ, or if a gain does not have
                the shape of the layer's kernels. The position may differ.
        """
        if not isinstance(circuit, Circuit):
            raise ConvCircuitsError(f"Expected a Circuit, got {type(circuit).__name__}.")
        check_same_model(circuit.provenance, self.about)
        if replace(circuit.feature, position=self.feature.position) != self.feature:
            raise ConvCircuitsError(
                f"The circuit preserves {circuit.feature}, not {self.feature}; give a circuit of the same unit."
            )
        for layer, gain in circuit.gain.items():
            kernels = tuple(self.survey.kernels[layer].shape)
            if tuple(gain.shape) != kernels:
                raise ConvCircuitsError(
                    f"The gain of {layer} has shape {tuple(gain.shape)}; expected {kernels}, one value per kernel, "
                    f"also for a circuit of {circuit.granularity}s."
                )

    def maps(
        self,
        images: Tensor,
        masks: Masks | None = None,
        watch: Callable[[KernelCall, Tensor], None] | None = None,
    ) -> Tensor:
        """Run the full or the masked model and return the feature's maps, (N, H, W) or (N,).

        For several units, the maps have an axis of units: (N, U, H, W) or (N, U).

        ``watch`` is called with every kernel call and its output.
        """
        compute = (lambda call: call.compute()) if masks is None else masks.kernel

        def kernel(call: KernelCall) -> Tensor:
            output = compute(call)
            if watch is not None:
                watch(call, output)
            return output

        output = self.output(images, kernel, masks).to(
            self.network.dtype
        )  # autocast inside a model may return another dtype
        if not self.survey.direct:
            output = output.index_select(1, self.rows)
        if isinstance(self.feature.unit, tuple):
            return output
        if len(self.rows) == 1:
            return output[:, 0] * self.coefficients[0]
        return torch.einsum("nc...,c->n...", output, self.coefficients)

    def output(self, images: Tensor, kernel: Callable[[KernelCall], Tensor], masks: Masks | None) -> Tensor:
        """Run the model with every kernel call computed by ``kernel``, and return the output of the feature's layer.

        The model's own code runs, except with effective masks. Then its graph runs, which distinguishes dead values
        from live ones.
        """
        rows = self.rows if self.survey.direct else None
        if masks is None or not masks.effective:
            return self.network.run(self.feature, images, kernel, rows=rows, copied=self.survey.copied)
        paths = self.paths_on(images)
        return paths.graph.run(images, kernel, self._plan(paths, masks), rows)

    def steps(self, images: Tensor, masks: Masks | None) -> Steps:
        """Run the graph of the full model, or of a circuit with effective masks, one kernel call after the other."""
        paths = self.paths_on(images)
        plan = None if masks is None else self._plan(paths, masks)
        return paths.graph.steps(images, plan, self.rows if self.survey.direct else None)

    def unread_filters(self, masks: Masks, images: Tensor) -> list[Tensor]:
        """Return, for each kernel call in order, the filters that are dead and not read as a gate, (out,) bool."""
        return self.paths_on(images).unread_filters(masks.kernels, self.survey.rows)

    def paths_on(self, images: Tensor) -> Paths:
        """Return the graph, with its rules, for batches of this shape."""
        if images.shape not in self._paths:
            if len(self._paths) >= _GRAPHS:
                del self._paths[next(iter(self._paths))]
            self._paths[images.shape] = Paths(record_graph(self.network, self.feature, images.detach()))
        return self._paths[images.shape]

    def _plan(self, paths: Paths, masks: Masks) -> Plan:
        key = (id(masks.kernels), paths.graph.shapes[0])
        if key not in self._plans:
            if len(self._plans) >= 4 * _GRAPHS:
                del self._plans[next(iter(self._plans))]
            plan = paths.plan(paths.live(masks.kernels)).to(self.network.device)
            self._plans[key] = masks.kernels, plan  # keeps these alive, so that their id stays unique
        return self._plans[key][1]

    def effective(self, kernels: Mapping[str, Tensor], input_shape: tuple[int, ...]) -> dict[str, Tensor]:
        """Return the kernels that lie on a complete path image -> feature within the given masks."""
        if tuple(input_shape) == self.survey.input_shape:
            return self.survey.inside(kernels)
        return survey(self.network, self.feature, input_shape).inside(kernels)

    def kept(self, elements: Mapping[str, Tensor], granularity: str) -> Masks:
        """Convert kept elements into the masks of a run that keeps every bias."""
        kernels, weights = masks_of(elements, granularity, self.survey.kernels)
        masks = Masks(kernels, effective=False, weights=weights, constant=self.survey.constant)
        return masks.to(self.network.device, self.network.dtype)

    def masks(self, circuit: Circuit, input_shape: tuple[int, ...], *, effective: bool) -> Masks:
        """Convert a circuit into the masks of a run: its effective part, or all that it keeps and every bias."""
        kernels, weights = masks_of(circuit.elements, circuit.granularity, self.survey.kernels)
        kernels = self.effective(kernels, input_shape) if effective else kernels
        masks = Masks(
            kernels,
            dict(circuit.gain),
            dict(circuit.offset),
            effective=effective,
            weights=weights,
            constant=self.survey.constant,
        )
        return masks.to(self.network.device, self.network.dtype)

    def relevant(self, granularity: str, input_shape: tuple[int, ...] | None) -> dict[str, Tensor]:
        """Return the elements on a path image -> feature: layer name -> bool, in the shape of the granularity."""
        shapes = self._weight_shapes(input_shape) if granularity == "weight" else {}
        return {
            layer: elements_with(mask, granularity, shapes.get(layer, ()))
            for layer, mask in self.survey.kernels.items()
        }

    def elements(
        self, circuit: Circuit, granularity: str, shapes: Mapping[str, tuple[int, ...]]
    ) -> Mapping[str, Tensor]:
        """Return the elements that a circuit of the same or a coarser granularity keeps.

        Args:
            circuit: The circuit.
            granularity: Granularity of the returned elements.
            shapes: Layer name -> shape of the table of elements.
        """
        if circuit.granularity == granularity:
            return circuit.elements
        kernels, _ = masks_of(circuit.elements, circuit.granularity, self.survey.kernels)
        return {layer: elements_with(mask, granularity, shapes[layer]) for layer, mask in kernels.items()}

    def _weight_shapes(self, input_shape: tuple[int, ...] | None) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the weights that are actually used, from a run on the first image shape that fits."""
        shapes: dict[str, tuple[int, ...]] = {}

        def watch(call: KernelCall, output: Tensor) -> None:
            if call.layer in self.survey.kernels:
                shape = (len(self.survey.kernels[call.layer]), *call.weight.shape[1:])
                if shapes.setdefault(call.layer, shape) != shape:
                    raise ConvCircuitsError(
                        f"{call.layer} uses its weight in two shapes, {shapes[call.layer]} and {shape}, so its single "
                        "weights are ambiguous; choose granularity 'kernel' or 'filter'."
                    )

        for shape in [input_shape] if input_shape else guessed_input_shapes(self.network.module):
            images = torch.zeros(2, *shape, device=self.network.device, dtype=self.network.dtype)
            try:  # two: a model may squeeze() a batch of one image
                with torch.no_grad():
                    self.maps(images, watch=watch)
                break
            except ConvCircuitsError as error:
                problem = error
        else:
            raise problem
        return shapes


def _computed(values: Tensor, call: KernelCall) -> Tensor:
    """Return the rows of a table for the filters that a call computes."""
    return values if call.rows is None else values[call.rows]


def _part(call: ConvCall, kernels: Bool[Tensor, "out in"]) -> tuple[Tensor, Tensor] | None:
    """Return the filters and the channels of some kernels of a call if it pays to take them out, else None.

    If all kernels between these are there, nothing is taken out, so that the whole circuit is the full model exactly.
    """
    if call.groups > 1:
        return None
    filters, channels = kernels.any(1).nonzero()[:, 0], kernels.any(0).nonzero()[:, 0]
    size = len(filters) * len(channels)
    if int(kernels.sum()) == size or size > _WORTH * kernels.numel():
        return None
    return filters, channels


def _among(computed: Tensor, filters: Tensor | None, bias: Tensor | None) -> Tensor:
    """Return what some filters put out, (N, filters, ...), among the biases of the others; None for all filters."""
    if filters is None or bias is None:
        return computed
    whole = bias.to(computed.dtype).reshape(1, -1, *[1] * (computed.dim() - 2))
    return whole.expand(len(computed), -1, *computed.shape[2:]).index_copy(1, filters, computed)


def read_alone(call: KernelCall, mask: Tensor) -> KernelCall:
    """Zero the channels that no kernel reads if the input has NaN or Inf, since 0 times these is NaN."""
    read = mask.reshape(call.groups, -1, mask.shape[1]).any(1).flatten()
    if bool(read.all()) or bool(call.x.sum().isfinite()):
        return call
    return replace(call, x=call.x.masked_fill(call.spread(~read[None].expand(len(call.x), -1)), 0))
