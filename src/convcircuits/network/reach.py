"""Find the kernels on a path image -> feature, in the full model or inside a circuit.

The model is run once on two random images and recorded as a graph of operations (``graph``). Marks are propagated
through it by the rules of ``operations``: a value is live if it is computed from the image by kept kernels, and a
kernel is on a path if it reads a live channel and writes one that the feature needs. The values of weights do not
matter. Values computed from constants alone are never live: a kernel that reads a constant channel has no path from the
image, and its term is part of its filter's bias.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from convcircuits.errors import ConvCircuitsError
from convcircuits.network.calls import ConvCall, KernelCall, LinearCall
from convcircuits.network.capture import Network, checked_output, no_such_call
from convcircuits.network.graph import Graph
from convcircuits.network.operations import Operation, Plan, operation_of
from convcircuits.network.recording import Recorder
from convcircuits.values.feature import Feature


@dataclass(frozen=True)
class Survey:
    """What one recording of a model shows about a feature.

    Attributes:
        kernels: Layer name -> bool (out, in per group), in execution order: kernels on a path image -> feature.
        constant: Layer name -> bool (out, in per group), for the same layers: kernels that read only constants. They
            are part of their filter's bias.
        rows: Channels of its layer that the feature reads.
        coefficients: The feature's coefficient on each of them.
        direct: Whether the layer's output is that of its one kernel call, so that other filters need not be computed.
        copied: Layers whose input is overwritten in place later in the same pass.
        modules: Names of the modules that run up to the feature, and of the layers whose weights are used.
        input_shape: (C, H, W) of the image.
        paths: The graph for two images, with its rules.
    """

    kernels: dict[str, Tensor]
    constant: dict[str, Tensor]
    rows: Tensor
    coefficients: Tensor
    direct: bool
    copied: frozenset[str]
    modules: tuple[str, ...]
    input_shape: tuple[int, ...]
    paths: "Paths"

    def inside(self, kernels: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return those of some kernels that form a complete path image -> feature: layer name -> (out, in)."""
        found = self.paths.found(self.paths.live(kernels), self.rows)
        return {layer: found[layer] & mask.cpu() for layer, mask in kernels.items()}

    def of(self, feature: Feature) -> "Survey":
        """Return the survey of another feature of the same call of the same layer, from the same recording.

        Raises:
            ConvCircuitsError: If the layer has no such unit, or no kernel lies on a path to it.
        """
        shapes = self.paths.graph.shapes
        rows, coefficients = feature.rows(shapes[self.paths.graph.output][1])
        kernels, constant = _on_paths(self.paths, feature.layer, rows)
        return replace(self, kernels=kernels, constant=constant, rows=rows, coefficients=coefficients)

    def read(self, saliency: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return, for each filter, the summed saliency of the kernels that read it; NaN if none does.

        Args:
            saliency: Layer name -> (out, in per group); NaN for kernels that are not kept.

        Returns:
            Layer name -> (out,), same layers.
        """
        kept = {layer: ~values.isnan() for layer, values in saliency.items()}
        live = self.paths.live(kept)
        sums = self.paths.read(live, {layer: values.float().nan_to_num(0) for layer, values in saliency.items()})
        readers = self.paths.read(live, {layer: mask.float() for layer, mask in kept.items()})
        return {layer: values.masked_fill(readers[layer] == 0, torch.nan) for layer, values in sums.items()}


@dataclass(frozen=True)
class Live:
    """The live values of a circuit.

    Attributes:
        marks: Number of a value -> bool tensor that broadcasts to its shape.
        reads: Index of a kernel call's node -> which channels that it reads are live, (groups, channels or blocks).
        conducting: Index of a kernel call's node -> the kept kernels that read a live channel, (out, in per group).
    """

    marks: dict[int, Tensor]
    reads: dict[int, Tensor]
    conducting: dict[int, Tensor]


class Paths:
    """A graph of operations, with the rule of each.

    Args:
        graph: The graph.

    Attributes:
        graph: The graph.
        operations: The rule of each node; None for kernel calls.
        full: The live values of the full model. All others are constants.

    Raises:
        ConvCircuitsError: If an operation is unknown and cannot be measured.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.full = self._images(None)
        self.operations: list[Operation | None] = []
        gates = {0: False}
        for place, node in enumerate(graph.nodes):
            constants = {n: ~self.full.marks[n] for n in node.inputs}
            operation = None if node.call is not None else operation_of(graph, node, gates, constants)
            self.operations.append(operation)
            gates |= {n: operation is not None and operation.gate for n in node.outputs if n is not None}
            self._follow(place, self.full, None, None)

    def live(self, kernels: Mapping[str, Tensor] | None, images: Tensor | None = None) -> Live:
        """Propagate live values from the images to the feature.

        Args:
            kernels: Layer name -> bool (out, in per group): kept kernels. Layers without a mask keep all; None means
                the full model.
            images: The images that change, (n,) bool, to mark the values that change with them. None to mark live
                values.
        """
        live = self._images(images)
        for place in range(len(self.graph.nodes)):
            self._follow(place, live, kernels, images)
        return live

    def _images(self, images: Tensor | None) -> Live:
        """Return the marks before the first operation."""
        image = torch.ones(1, dtype=torch.bool) if images is None else images
        return Live({0: image.reshape(-1, 1, 1, 1).expand(-1, self.graph.shapes[0][1], -1, -1)}, {}, {})

    def _follow(self, place: int, live: Live, kernels: Mapping[str, Tensor] | None, images: Tensor | None) -> None:
        """Add the marks of an operation's results."""
        node = self.graph.nodes[place]
        given = [live.marks[n] for n in dict.fromkeys(node.inputs)]
        if node.call is not None:
            mask = None if kernels is None else kernels.get(node.call.layer)
            live.reads[place] = _channels_read(node.call, given[0], self.graph.shapes[node.inputs[0]])
            live.conducting[place] = _conducting(node.call, mask, live.reads[place])
            out = _along_channels(node.call, live.conducting[place].any(1), self.graph.shapes_of(node)[0])
            if images is not None:
                out = out & given[0].flatten(1).any(1).reshape(-1, *[1] * (out.dim() - 1))
            results = [out]
        elif self._adds(place):
            (shape,), mark = self.graph.shapes_of(node), given[0]
            for other in given[1:]:
                mark = mark | other
            results = [_fitted(mark.reshape((1,) * (len(shape) - mark.dim()) + mark.shape), shape).bool()]
        else:
            marks = [mark.float() for mark in given]
            results = [mark > 0 for mark in self.through(place, marks, changes=images is not None)]
        live.marks.update(zip((n for n in node.outputs if n is not None), results, strict=True))

    def found(self, live: Live, rows: Tensor) -> dict[str, Tensor]:
        """Return the kernels on a path to the feature's rows: layer name -> (out, in per group)."""
        found: dict[str, Tensor] = {}
        for place, on_path in self.found_by_call(live, rows).items():
            call = self.graph.nodes[place].call
            assert call is not None
            found[call.layer] = found[call.layer] | on_path if call.layer in found else on_path
        return found

    def found_by_call(self, live: Live, rows: Tensor) -> dict[int, Tensor]:
        """Return the kernels on a path by index of the kernel call's node, (out, in per group)."""
        return self._back_from(live, rows)[1]

    def unread_filters(self, kernels: Mapping[str, Tensor], rows: Tensor) -> list[Tensor]:
        """Return, for each kernel call in order, the filters that are dead in a circuit and not read as a gate."""
        live, full = self.live(kernels), self.full.conducting
        need = self.needed(live, rows)
        return [
            full[place].any(1) & ~conducting.any(1) & ~self._rows_needed(place, need)
            for place, conducting in live.conducting.items()
        ]

    def _rows_needed(self, place: int, need: Mapping[int, Tensor]) -> Tensor:
        """Return the filters of a kernel call that are needed, (out,) bool."""
        node = self.graph.nodes[place]
        (shape,), (number,) = self.graph.shapes_of(node), node.outputs
        assert node.call is not None
        if number is None or number not in need:
            return torch.zeros(len(node.call.weight), dtype=torch.bool)
        dim = _channel_dim(node.call, len(shape))
        return _per_channel(need[number], dim, shape[dim])

    def needed(self, live: Live, rows: Tensor) -> dict[int, Tensor]:
        """Return marks of the values that the feature needs, by number. Dead values that are zeroed are not needed."""
        return self._back_from(live, rows)[0]

    def _back_from(self, live: Live, rows: Tensor) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
        """Return what ``needed`` and ``found_by_call`` do."""
        graph = self.graph
        output = torch.zeros(graph.shapes[graph.output][1], dtype=torch.bool).index_fill(0, rows.cpu(), True)
        need = {graph.output: output.reshape(1, -1, *[1] * (len(graph.shapes[graph.output]) - 2))}
        need[graph.output] = need[graph.output] & live.marks[graph.output]
        found: dict[int, Tensor] = {}
        for place, node in reversed(list(enumerate(graph.nodes))):
            if node.call is not None:
                found[place] = live.conducting[place] & self._rows_needed(place, need)[:, None]
                if node.outputs[0] in need:
                    back = found[place].reshape(node.call.groups, -1, found[place].shape[1]).any(1).flatten()
                    _add(need, node.inputs[0], _along_inputs(node.call, back, graph.shapes[node.inputs[0]]))
                continue
            for number, gradient in self._back(place, live, need):
                _add(need, number, gradient > 0)
        return need, {place: found[place] for place in live.conducting}

    def read(self, live: Live, saliency: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return, for each filter, the sum of a saliency over the kernels that read it: layer name -> (out,).

        What lies between passes sums back by the gradients of its rules: BatchNorm, ReLU, pooling, additions and
        concatenations as they are.

        Args:
            live: The live values of a circuit.
            saliency: Layer name -> (out, in per group); 0 for kernels that are not counted.
        """
        graph, sums, found = self.graph, dict[int, Tensor](), dict[str, Tensor]()
        for place, node in reversed(list(enumerate(graph.nodes))):
            if node.call is None:
                for number, gradient in self._back(place, live, sums):
                    sums[number] = sums[number] + gradient if number in sums else gradient
                continue
            layer, (result,), (read, *_) = node.call.layer, node.outputs, node.inputs
            if layer not in saliency:
                continue
            if result is not None and result in sums:
                by_channel = sums[result].movedim(_channel_dim(node.call, sums[result].dim()), 0)
                of_call = by_channel.flatten(1).sum(1).expand(len(node.call.weight))
                found[layer] = found[layer] + of_call if layer in found else of_call
            shape = graph.shapes[read]
            counted = saliency[layer] * live.conducting[place]
            back = counted.reshape(node.call.groups, -1, counted.shape[1]).sum(1).flatten()
            back = _along_inputs(node.call, back, shape) * (len(back) / shape[_channel_dim(node.call, len(shape))])
            sums[read] = sums[read] + back if read in sums else back
        return {layer: found.get(layer, values.new_zeros(len(values))) for layer, values in saliency.items()}

    def _back(self, place: int, live: Live, given: Mapping[int, Tensor]) -> list[tuple[int, Tensor]]:
        """Return what the gradient of an operation's rule makes of values at its results, by number of its inputs."""
        node = self.graph.nodes[place]
        distinct, numbers = list(dict.fromkeys(node.inputs)), [n for n in node.outputs if n is not None]
        if not any(n in given for n in numbers):
            return []
        if self._adds(place):
            wanted_of_all = _as_wide(given[numbers[0]], live.marks[numbers[0]].shape)
            parts = [(n, _summed_to(wanted_of_all, live.marks[n].shape)) for n in distinct]
            return parts if len(parts) == 1 else [(n, part * live.marks[n]) for n, part in parts]
        values = [live.marks[n].float().requires_grad_() for n in distinct]
        with torch.enable_grad():
            results = self.through(place, values)
        wanted = [
            (result, _as_wide(given[n], result.shape))
            for n, result in zip(numbers, results, strict=True)
            if n in given and result.requires_grad
        ]
        if not wanted:
            return []
        operation = self.operations[place]
        assert operation is not None
        spared = operation.spared([value.detach() for value in values])
        gradients = torch.autograd.grad(
            [result for result, _ in wanted], values, [mark for _, mark in wanted], allow_unused=True
        )
        return [
            (number, gradient * counts)
            for number, gradient, counts in zip(distinct, gradients, spared, strict=True)
            if gradient is not None
        ]

    def _adds(self, place: int) -> bool:
        """Return whether an operation's one result is marked by the sum of its inputs' marks: most are such."""
        operation = self.operations[place]
        return operation is not None and operation.adds and len(self.graph.shapes_of(self.graph.nodes[place])) == 1

    def plan(self, live: Live) -> Plan:
        """Return the dead values of a circuit and where they must be zero. Constants of the full model stay."""
        silent = {}
        for place, (node, operation) in enumerate(zip(self.graph.nodes, self.operations, strict=True)):
            given = {n: live.marks[n] for n in node.inputs}
            if operation is not None:
                spared = dict(zip(given, operation.spared([mark.float() for mark in given.values()]), strict=True))
            else:
                spared = given if _within_channels(node.call, live.marks[node.inputs[0]]) else {}
            spared = {n: mark | ~self.full.marks[n] for n, mark in spared.items()}
            partly = {n: mark for n, mark in spared.items() if not bool(mark.all())}
            if partly:
                silent[place] = partly
        output = live.marks[self.graph.output] | ~self.full.marks[self.graph.output]
        return Plan(live.reads, silent, None if bool(output.all()) else output)

    def check_images_apart(self, layer: str) -> None:
        """Check that no image of a batch changes the values computed for another.

        Raises:
            ConvCircuitsError: If one does; the message names the first layer that reads such a value.
        """
        count = self.graph.shapes[0][0]
        live = self.live(None, torch.arange(count) == 0)
        places = [(n.call.layer, n.inputs[0]) for n in self.graph.nodes if n.call is not None]
        for where, number in [*places, (layer, self.graph.output)]:
            mark = live.marks[number]
            if (len(mark) != 1 and bool(mark[1:].any())) or (len(mark) == 1 and bool(mark.any())):
                raise ConvCircuitsError(
                    f"The input or output of {where} for one image depends on the other images of the batch, so it is "
                    "not a feature of an image. Choose a feature before it."
                )

    def through(self, place: int, marks: list[Tensor], *, changes: bool = False) -> list[Tensor]:
        """Apply an operation's rule to the marks of its distinct inputs, in order, and return one mark per result.

        The marks are of live values or, with ``changes``, of values that change.
        """
        operation = self.operations[place]
        assert operation is not None
        result = (operation.changes if changes and operation.changes else operation.rule)(*marks)
        shapes = self.graph.shapes_of(self.graph.nodes[place])
        parts = list(result) if isinstance(result, (tuple, list)) else [result] * len(shapes)
        return [_fitted(part, shape) for part, shape in zip(parts, shapes, strict=True)]


def _fitted(mark: Tensor, shape: torch.Size) -> Tensor:
    """Return the mark if it broadcasts to a shape, else a single value for all of it."""
    if mark.dim() == len(shape) and all(m in (1, n) for m, n in zip(mark.shape, shape, strict=True)):
        return mark
    return mark.sum().reshape((1,) * len(shape))


def _add(need: dict[int, Tensor], number: int, mark: Tensor) -> None:
    need[number] = need[number] | mark if number in need else mark


def _as_wide(mark: Tensor, shape: torch.Size) -> Tensor:
    """Sum a mark, or divide it equally, over a shape that it broadcasts with."""
    if mark.shape == shape:
        return mark
    both = torch.Size(max(m, n) for m, n in zip(mark.shape, shape, strict=True))
    share = mark.numel() / max(1, both.numel())  # a slice beyond the end has no values
    return (mark * share).expand(both).sum_to_size(shape)


def _summed_to(mark: Tensor, shape: torch.Size) -> Tensor:
    """Return the mark of an addend from that of a sum over which its own mark, of a given shape, was broadcast."""
    if mark.shape == shape:
        return mark
    both = torch.broadcast_shapes(mark.shape, shape)  # type: ignore[no-untyped-call]
    return mark.expand(both).sum_to_size(shape)


def _table(call: KernelCall) -> tuple[int, int]:
    groups, out, inputs = call.kernels.shape[:3]
    return groups * out, inputs


def _channel_dim(call: KernelCall, rank: int) -> int:
    return call.channel_dim % rank


def _per_channel(mark: Tensor, dim: int, channels: int) -> Tensor:
    """Return whether any value of each channel is marked, (channels,) bool."""
    return mark.movedim(dim, 0).flatten(1).any(1).expand(channels)


def _within_channels(call: KernelCall | None, mark: Tensor) -> bool:
    """Return whether a kernel call reads channels or blocks that are live at some positions and dead at others."""
    assert call is not None
    by_channel = mark.movedim(_channel_dim(call, mark.dim()), 0)
    blocks = call.blocks if isinstance(call, LinearCall) and len(by_channel) > 1 else len(by_channel)
    by_channel = by_channel.reshape(blocks, -1)
    return bool((by_channel.amin(1) != by_channel.amax(1)).any())


def _channels_read(call: KernelCall, mark: Tensor, shape: torch.Size) -> Tensor:
    dim = _channel_dim(call, len(shape))
    channels = _per_channel(mark, dim, shape[dim])
    if isinstance(call, ConvCall):
        return channels.reshape(call.groups, -1)
    return channels.reshape(1, call.blocks, -1).any(2)


def _conducting(call: KernelCall, mask: Tensor | None, reads: Tensor) -> Tensor:
    kept = torch.ones(_table(call), dtype=torch.bool) if mask is None else mask.cpu()
    return (kept.reshape(call.groups, -1, kept.shape[1]) & reads[:, None]).flatten(0, 1)


def _along_channels(call: KernelCall, values: Tensor, shape: torch.Size) -> Tensor:
    form = [1] * len(shape)
    form[_channel_dim(call, len(shape))] = -1
    return values.reshape(form)


def _along_inputs(call: KernelCall, values: Tensor, shape: torch.Size) -> Tensor:
    """Expand one bool per channel or block that a call reads along its input."""
    spread = values.repeat_interleave(shape[_channel_dim(call, len(shape))] // len(values))
    return _along_channels(call, spread, shape)


# ---------------------------------------- surveys


def survey(network: Network, feature: Feature, input_shape: tuple[int, ...]) -> Survey:
    """Record a model and find the kernels on a path from the image to the feature.

    Args:
        network: The model.
        feature: The feature.
        input_shape: (C, H, W) of an image.

    Raises:
        ConvCircuitsError: If the layer, the call or the unit does not exist, if the layer runs several times and
            the feature does not name the call, if no kernel lies on a path, or if the model does something that is not
            supported.
    """
    if not isinstance(feature, Feature):
        raise ConvCircuitsError(f"Expected a Feature, got {feature!r}; use Feature.parse for the text form.")
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, *input_shape, generator=generator).to(network.device, network.dtype)
    sharing = network.shared
    watcher = _watched(network, feature, images)
    if network.shared != sharing:  # the model writes to its weights, so the run was restarted with copies of them
        watcher = _watched(network, feature, images)
    return watcher.finish(tuple(input_shape))


def _watched(network: Network, feature: Feature, images: Tensor) -> "_Watcher":
    """Run the whole model, and record it up to the feature."""
    watcher = _Watcher(network, feature, images)
    with torch.no_grad(), watcher.recorder:
        try:
            network.forward(images, watcher.kernel, watcher.on_exit)
        except ConvCircuitsError:
            if watcher.output is None:
                raise
        except Exception as error:
            # Layers after the feature need not run: a head may expect another image size.
            if watcher.output is None:
                raise ConvCircuitsError(
                    f"{network.name} cannot run on images of shape {tuple(images.shape[1:])}: {error}"
                ) from error
    return watcher


class _Watcher:
    """Observes a run of the whole model, which is recorded up to the feature."""

    def __init__(self, network: Network, feature: Feature, images: Tensor) -> None:
        self.network, self.feature = network, feature
        self.recorder = Recorder(network, feature, images)
        self.target = network.layer(feature.layer)
        self.shapes: dict[str, tuple[int, int]] = {}
        self.read: list[tuple[str, Tensor, int]] = []
        self.modules: dict[str, None] = {}
        self.calls = self.own_calls = 0
        self.output: Tensor | None = None
        self.direct = False
        self.last: tuple[Any, KernelCall | None] = (None, None)

    def kernel(self, call: KernelCall) -> Tensor:
        if self.output is None:
            shape = _table(call)
            if self.shapes.setdefault(call.layer, shape) != shape:
                raise ConvCircuitsError(
                    f"Two kernel calls named {call.layer!r} differ in shape, {self.shapes[call.layer]} and {shape}, "
                    "because their weights are computed in the forward of one module. Give each its own nn.Conv2d or "
                    "nn.Linear."
                )
            self.read.append((call.layer, call.x, call.x._version))
            self.modules[call.layer] = None  # the module that owns the weight may not run
        result = self.recorder.kernel(call)
        self.last = (result, call)
        self.own_calls += self.network.runs_itself(self.target)
        return result

    def on_exit(self, module: nn.Module, output: Any) -> None:
        if self.output is None:
            self.modules[self.network.running()] = None
            if ".quantized" in type(module).__module__:
                raise self.recorder.undecided("is quantized (give the model from before quantization)")
        if module is not self.target:
            return
        self.calls += 1
        own_calls, self.own_calls = self.own_calls, 0
        if self.calls - 1 != (self.feature.call or 0):
            return
        output = checked_output(self.feature, output, 2)
        self.rows, self.coefficients = self.feature.rows(output.shape[1])
        result, call = self.last
        untouched = output is result and output._version == 0
        self.direct = (
            untouched
            and own_calls == 1
            and call is not None
            and call.groups == 1
            # A module that shares the weight, and ran before, needs all filters.
            and [layer for layer, *_ in self.read].count(call.layer) == 1
        )
        self.modules.update(dict.fromkeys(self.network.all_running()))
        self.recorder.stop(output)
        self.output = output

    def finish(self, input_shape: tuple[int, ...]) -> Survey:
        name, layer = self.network.name, self.feature.layer
        if self.output is None:
            raise no_such_call(self.feature, self.calls, name)
        if self.calls > 1 and self.feature.call is None:
            raise ConvCircuitsError(
                f"{layer} runs {self.calls} times in one forward pass of {name}; name the call with "
                f"Feature({layer!r}, ..., call=k), or {layer}#k:unit as text, with k from 0 to {self.calls - 1}."
            )
        paths = Paths(self.recorder.graph())
        paths.check_images_apart(layer)
        kernels, constant = _on_paths(paths, layer, self.rows)
        return Survey(
            kernels,
            constant,
            self.rows,
            self.coefficients,
            self.direct and self.calls == 1,  # other calls of the layer need all filters
            frozenset(layer for layer, x, version in self.read if x._version != version),
            tuple(self.modules),
            input_shape,
            paths,
        )


def _on_paths(paths: Paths, layer: str, rows: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the kernels on a path to some channels of a layer, and those of the same layers that read only constants.

    Raises:
        ConvCircuitsError: If no kernel lies on a path.
    """
    live = paths.full
    kernels = {name: mask for name, mask in paths.found(live, rows).items() if bool(mask.any())}
    if not kernels:
        raise ConvCircuitsError(
            f"No kernel lies between the image and {layer}, so there is no circuit to find; choose a later layer."
        )
    read = {name: torch.zeros_like(mask) for name, mask in kernels.items()}
    for place, conducting in live.conducting.items():
        call = paths.graph.nodes[place].call
        if call is not None and call.layer in read:
            read[call.layer] |= conducting
    return kernels, {name: ~mask for name, mask in read.items()}


def guessed_input_shapes(model: nn.Module) -> list[tuple[int, int, int]]:
    """Return image shapes that a model may expect, the most likely first."""
    for name in ("default_cfg", "pretrained_cfg"):
        config = getattr(model, name, None)
        size = config.get("input_size") if isinstance(config, Mapping) else getattr(config, "input_size", None)
        if size is not None:
            return [(int(size[0]), int(size[1]), int(size[2]))]
    conv = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    channels = 3 if conv is None else conv.in_channels
    return [(channels, side, side) for side in (224, 32, 28, 64, 96, 128, 256, 299, 16, 12, 10, 8)]


def survey_of_unknown_size(network: Network, feature: Feature, input_shape: Sequence[int] | None) -> Survey:
    """Survey a model on images of a given shape, or of the first shape that it accepts.

    Raises:
        ConvCircuitsError: If the model accepts none of them.
    """
    if input_shape is not None:
        if len(input_shape) != 3:
            raise ConvCircuitsError(f"input_shape must be the (C, H, W) of an image; got {input_shape!r}.")
        return survey(network, feature, tuple(input_shape))
    network.layer(feature.layer)
    for shape in guessed_input_shapes(network.module):
        try:
            return survey(network, feature, shape)
        except ConvCircuitsError as error:
            problem = error
    raise ConvCircuitsError(f"{problem} Give input_shape=(C, H, W).") from problem
