"""The layout of channels: for each value of a model's graph, the dimension of its channels and where they come from.

The *axis* of a value is found by following channels from the kernel calls. An operation that only moves values (a view,
a concatenation, a shuffle) is described by the source channel of each of its channels. Nothing here depends on a
circuit: ``reach`` finds what is live and needed, and ``emission`` writes it.

A graph is recorded for a fixed number of images, but a written module must do the same for any number. So the model is
recorded on two images and on three, and operations that do not treat every image alike raise an error.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from convcircuits.errors import ConvCircuitsError
from convcircuits.network.calls import ConvCall, KernelCall
from convcircuits.network.graph import Graph, Node, Ref
from convcircuits.network.masking import Subject
from convcircuits.network.operations import (
    Operation,
    argument,
    gives_a_list,
    is_batch_norm,
    is_constant_fill,
    is_padding,
    part_of_storage,
    written_into_storage,
)
from convcircuits.network.reach import Paths
from convcircuits.network.recording import record_graph

_IMAGES = 2  # enough to distinguish what is per image from what runs across images
_STEPS = (1, 2, 4, 8, 16, 64)  # by how much larger images are to try, or smaller
_TO_THE_END = 2**63 - 1  # how torch records the end of x[:, 1:]
_CONSTANT = -2  # in place of the number of a scalar
_SAME = ("clone", "contiguous", "lift_fresh_copy")  # nothing is moved
_VIEWS = ("view", "_unsafe_view", "reshape", "_reshape_alias")
# Moves that work unchanged on fewer channels if they leave the dimension of channels alone.
_AGAIN = {"permute", "transpose", "t", "unsqueeze", "squeeze", "expand", "flip", "roll", "slice", "select", "repeat"}
_AGAIN |= {"index_select", "rot90"}


@dataclass(frozen=True)
class Move:
    """Where the channels of a moved value come from.

    Attributes:
        sources: The values with an axis from which this one is computed.
        channels: For each channel, its index in the concatenated channels of the sources, or -1 for a zero. None if
            channels do not lie along one dimension.
        inner: How many consecutive channels of this value come from one channel of the source, if there is one source.
        form: How the value is computed from only some channels of the sources: ``"gather"`` of channels along the same
            axis, ``"reshape"`` in the same order, or ``"call"`` of the operation as it is. None if the whole sources
            are needed.
    """

    sources: tuple[int, ...]
    channels: Tensor | None
    form: str | None
    inner: int = 1


@dataclass(frozen=True)
class Value:
    """One tensor between the image and the feature.

    Attributes:
        number: Its number in the graph.
        shape: Its shape for one image.
        axis: The dimension of that shape along which channels lie, or None.
        dtype: Its dtype.
        place: Index of its node in the graph; None for the image.
        node: The node that computes it; None for the image.
        operation: What the node does with channels; None for the image and for kernel calls.
        part: Index among several results; None if it is the only one.
        inputs: The values from which it is computed, each once.
        move: Where its channels come from, if they were only moved.
    """

    number: int
    shape: tuple[int, ...]
    axis: int | None
    dtype: torch.dtype
    place: int | None = None
    node: Node | None = None
    operation: Operation | None = None
    part: int | None = None
    inputs: tuple[int, ...] = ()
    move: Move | None = None

    @property
    def call(self) -> KernelCall | None:
        """The kernel call that computes it, without its input, or None."""
        return None if self.node is None else self.node.call

    @property
    def layer(self) -> str:
        """Name of the module that computes it."""
        return "" if self.node is None else self.node.layer

    @property
    def channels(self) -> int:
        """Number of channels along the axis, 1 without an axis."""
        return 1 if self.axis is None else self.shape[self.axis]

    def along_axis(self, values: Tensor) -> Tensor:
        """Reshape one value per channel so that it broadcasts with the value of one image."""
        if self.axis is None:
            return values
        shape = [1] * len(self.shape)
        shape[self.axis] = -1
        return values.reshape(shape)

    def by_channel(self, mark: Tensor) -> Tensor:
        """Return which channels have any mark, (channels,), or without an axis whether there is any, (1,).

        Args:
            mark: Bool tensor that broadcasts to the value of a batch.
        """
        if self.axis is None:
            return mark.any().reshape(1)
        return mark.movedim(self.axis + 1, 0).flatten(1).any(1).expand(self.channels)

    def reads_aligned(self, source: "Value") -> bool:
        """Return whether each channel is computed only from the channel of the same index of a source."""
        over = None if self.operation is None else self.operation.over
        if over is None or self.axis is None or source.axis is None or source.channels != self.channels:
            return False
        return source.axis + 1 not in over and _axis_after(self, source) == self.axis


class UnextractableError(ConvCircuitsError):
    """A model cannot be written as a module; masked runs still work."""


@dataclass(frozen=True)
class Written:
    """An operation as it is written into a module, for any number of images.

    Attributes:
        op: The operation.
        args: The arguments, with ``Ref`` for values.
        kwargs: The keyword arguments, likewise.
        part: Index of the result if there are several; None if it is the only one.
    """

    op: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    part: int | None


class Layout:
    """The values of a model up to a feature, with the layout and origin of their channels.

    Args:
        paths: The model's graph for two images, with its rules.
        more: The model's graph for three images.

    Attributes:
        paths: The model's graph for two images, with its rules.
        values: Number -> value, in order; the last is the output of the feature's layer.
        input_shape: (C, H, W) of an image.

    Raises:
        UnextractableError: If the operations depend on the number of images or are not supported.
    """

    def __init__(self, paths: Paths, more: Graph) -> None:
        self.paths, self._graph, self._more = paths, paths.graph, more
        self.input_shape = tuple(self._graph.shapes[0][1:])
        self.values: dict[int, Value] = {0: Value(0, self.input_shape, 0, self._graph.dtypes[0])}
        self._elements: dict[int, tuple[tuple[int, ...], Tensor]] = {}
        self._constant: dict[int, Node] = {}  # values that contain nonzero constants, which a later one may overwrite
        if [str(n.op) for n in self._graph.nodes] != [str(n.op) for n in more.nodes]:
            raise _unextractable("The model", "does something else for another number of images")
        self._read = {n for node in self._graph.nodes for n in node.inputs} | {self._graph.output}
        for place, node in enumerate(self._graph.nodes):
            self._add(place, node)
        if self._graph.output in self._constant:
            raise _joins_a_constant(self._constant[self._graph.output])
        del self._elements, self._constant

    @property
    def output(self) -> Value:
        """The output of the feature's layer."""
        return self.values[self._graph.output]

    def fixed(self) -> list[Any]:
        """List what an emitted module would hard-code."""
        return [(v.layer, None if v.node is None else v.node.name, *self._fixed_in(v)) for v in self.values.values()]

    def is_that_of(self, other: Graph) -> bool:
        """Return whether the graph for images of another size has this layout, without computing its own.

        False may only mean that it must be computed: where a size is an argument, or a move depends on sizes.
        """
        nodes = self._graph.nodes
        return len(nodes) == len(other.nodes) and all(
            (a.op, a.layer, a.outputs) == (b.op, b.layer, b.outputs)
            and _alike((a.args, a.kwargs), (b.args, b.kwargs))
            and _form(a.call) == _form(b.call)
            and (
                operation is None
                or not operation.moves
                or _moves_channels(a)
                or self._graph.shapes_of(a) == other.shapes_of(b)
            )
            for a, b, operation in zip(nodes, other.nodes, self.paths.operations, strict=True)
        )

    def written(self, value: Value) -> Written:
        """Return a value's operation as it is written into a module.

        Raises:
            UnextractableError: If it depends on the number of images or writes to a part of a map.
        """
        assert value.node is not None
        assert value.place is not None
        node = value.node
        if node.op in (part_of_storage, written_into_storage):
            raise _unextractable(node.layer, "writes to a part of a map")
        two, three = (self._spelled(value, one) for one in (node, self._more.nodes[value.place]))
        args, kwargs = (_of_any_number(node, a, b) for a, b in ((two.args, three.args), (two.kwargs, three.kwargs)))
        return replace(two, args=args, kwargs=kwargs)

    def _spelled(self, value: Value, node: Node) -> Written:
        """Return a value's operation in a variant that does not fix the number of images or, if possible, a size."""
        aten, args, kwargs = torch.ops.aten, node.args, node.kwargs
        if value.part:
            return Written(node.op, args, kwargs, value.part)
        if node.name in _VIEWS:
            return Written(aten.reshape.default, (args[0], [-1, *value.shape]), {}, None)
        if node.name == "expand":
            sizes = [-1 if d == value.axis else size for d, size in enumerate(value.shape)]
            return Written(aten.expand.default, (args[0], [-1, *sizes]), {}, None)
        if node.name == "slice" and argument(node, "end") == _TO_THE_END:
            start, step = argument(node, "start"), argument(node, "step")
            return Written(aten.slice.Tensor, (args[0], argument(node, "dim"), start, None, step), {}, None)
        if node.name in ("_to_copy", "to"):
            return Written(aten._to_copy.default, args[:1], {"dtype": value.dtype}, None)
        affine = [argument(node, name) for name in ("weight", "bias", "eps")]
        if node.name == "native_layer_norm":
            return Written(aten.layer_norm.default, (args[0], args[1], *affine), {}, None)
        if node.name == "native_group_norm":
            return Written(aten.group_norm.default, (args[0], argument(node, "group"), *affine), {}, None)
        if node.name == "_fused_rms_norm":
            return Written(aten.rms_norm.default, (args[0], args[1], affine[0], affine[2]), {}, None)
        if is_batch_norm(node) and not argument(node, "training"):
            affine += [argument(node, name) for name in ("running_mean", "running_var", "epsilon")]
            weight, bias, eps, mean, variance, epsilon = affine
            given = (args[0], weight, bias, mean, variance, False, 0.0, epsilon if eps is None else eps, False)
            return Written(aten.batch_norm.default, given, {}, None)
        if node.name == "max_pool2d_with_indices" and self._is_alone(value):
            return Written(aten.max_pool2d.default, args, kwargs, None)
        scales = [argument(node, "scales_h"), argument(node, "scales_w")]
        if node.name.startswith("upsample_") and None not in scales:
            aligned = () if "nearest" in node.name else (argument(node, "align_corners"),)
            return Written(getattr(aten, node.name).vec, (args[0], None, *aligned, scales), {}, None)
        return Written(node.op, args, kwargs, value.part)

    def _is_alone(self, value: Value) -> bool:
        """Return whether a value is the only result of its operation that is read."""
        assert value.node is not None
        return {n for n in value.node.outputs if n in self._read} == {value.number}

    # ---------------------------------------- values

    def _add(self, place: int, node: Node) -> None:
        operation = self.paths.operations[place]
        if node.autocast is not None:
            raise _unextractable(node.layer, "uses autocast in its own forward")
        several, held = (
            len(node.outputs) > 1 or gives_a_list(node),
            [self._constant[n] for n in node.inputs if n in self._constant],
        )
        if held and (operation is None or not operation.moves):
            raise _joins_a_constant(held[0])
        for part, number in enumerate(node.outputs):
            if number is None or number not in self._read:
                continue
            shape, more = self._graph.shapes[number], self._more.shapes[self._more.nodes[place].outputs[part] or 0]
            if (*shape[:1], *more[:1]) != (_IMAGES, _IMAGES + 1) or shape[1:] != more[1:]:
                what = f"computes a tensor of shape {tuple(shape)} for {_IMAGES} images, not one row per image"
                raise _unextractable(node.layer, f"{what} ({node.name})")
            value = Value(
                number,
                tuple(shape[1:]),
                None,
                self._graph.dtypes[number],
                place,
                node,
                operation,
                part if several else None,
                tuple(dict.fromkeys(node.inputs)),
            )
            if operation is None:
                assert node.call is not None
                value = replace(value, axis=0 if isinstance(node.call, ConvCall) else len(shape) - 2)
            elif operation.moves and not self._pads_within(value):
                value = self._moved(value)
            else:
                value = replace(value, axis=self._axis(value))
            self.values[number] = value

    def _pads_within(self, value: Value) -> bool:
        """Return whether a value pads each channel by itself."""
        node, source = value.node, self.values[value.inputs[0]]
        if node is None or not is_padding(node) or source.axis is None:
            return False
        pads = argument(node, "padding" if node.name.endswith("d") and node.name[-2].isdigit() else "pad")
        back = len(source.shape) - source.axis  # counted from the last dimension, which is 1
        return not any(pads[2 * (back - 1) : 2 * back])

    def _axis(self, value: Value) -> int | None:
        """Return the dimension along which a computed value's channels lie, or None."""
        over = None if value.operation is None else value.operation.over
        if over is None:
            return None
        if 0 in over:
            raise _unextractable(value.layer, f"computes across images ({value.node.name if value.node else ''})")
        sources = [self.values[n] for n in value.inputs]
        if value.operation is not None and value.operation.data is not None:
            sources = [sources[value.operation.data]]
        axes = set()
        for source in sources:
            axis = _axis_after(value, source)
            if axis is not None and value.shape[axis] == source.channels:
                axes.add(axis)
        return axes.pop() if len(axes) == 1 else None

    def _fixed_in(self, value: Value) -> tuple[Any, ...]:
        node, call = value.node, value.call
        if node is None:
            return ()
        if call is not None:
            return _form(call)
        form = None if value.move is None else value.move.form
        if form == "gather":
            return (value.move.channels.tolist(),) if value.move and value.move.channels is not None else ()
        if form == "reshape" or node.op in (part_of_storage, written_into_storage):
            return (value.shape,)
        written = self.written(value)
        return (_plain((written.args, written.kwargs)),)

    # ---------------------------------------- moves

    def _moved(self, value: Value) -> Value:
        """Trace every scalar of a moved value back to the values with an axis."""
        assert value.node is not None
        source = self.values[value.inputs[0]]
        if value.node.name in _SAME and source.axis is not None:
            return replace(value, axis=source.axis, move=Move(value.inputs, torch.arange(source.channels), "gather"))
        if self._joins_channels(value):
            channels = torch.arange(sum(self.values[n].channels for n in value.node.inputs))
            return replace(value, axis=source.axis, move=Move(value.node.inputs, channels, "gather"))
        sources, elements = self._to_sources(value, self._numbered(value))
        if any(self.values[s].axis is None for s in sources):
            if bool((elements == _CONSTANT).any()):
                raise _joins_a_constant(value.node)
            return replace(value, move=Move(sources, None, None))
        if bool((elements == _CONSTANT).any()):
            self._elements[value.number], self._constant[value.number] = (sources, elements), value.node
            return replace(value, move=Move(sources, None, None))
        offsets = _offsets([self.values[s].shape for s in sources])
        channel = torch.full_like(elements, -1)
        first = 0
        for n, number in enumerate(sources):
            inside = (elements >= offsets[n]) & (elements < offsets[n + 1])
            labels = self._labels(number).flatten() + first
            channel[inside] = labels[elements[inside] - offsets[n]]
            first += self.values[number].channels
        axis = _axis_of(channel, [self.values[s] for s in sources])
        if axis is None:
            self._elements[value.number] = (sources, elements)
            return replace(value, move=Move(sources, None, None))
        index: list[Any] = [0] * channel.dim()
        index[axis] = slice(None)
        channels = channel[tuple(index)].clone()
        value = replace(value, axis=axis)
        form, inner = self._form(value, axis, sources, elements, channels), 1
        if form in ("reshape", "call"):
            inner = _run(channels, self.values[sources[0]].channels)
            form = form if inner else None
        return replace(value, move=Move(sources, channels, form, inner))

    def _joins_channels(self, value: Value) -> bool:
        """Return whether a value is a concatenation of channels, the most common move, which needs no tracing."""
        node = value.node
        assert node is not None
        axes = {self.values[n].axis for n in node.inputs}
        if node.name != "cat" or len(axes) > 1 or None in axes or len(node.inputs) != len(node.args[0]):
            return False
        return int(argument(node, "dim") or 0) % (len(value.shape) + 1) == (axes.pop() or 0) + 1

    def _numbered(self, value: Value) -> Tensor:
        """Run the operation on inputs whose scalars are numbered from 1, source after source.

        Zeros stay 0, and other constants become -1.
        """
        node = value.node
        assert node is not None
        count, numbered = 1, {}
        for number in value.inputs:
            shape = self._graph.shapes[number]
            numbered[number] = torch.arange(count, count + shape.numel(), dtype=torch.float64).reshape(shape)
            count += shape.numel()
        args, kwargs = node.arguments(numbered.__getitem__, _numbered_constant)
        if is_constant_fill(node):
            filled = _numbered_constant(torch.as_tensor(args[1] if len(args) > 1 else 0.0, dtype=torch.float64))
            return filled.expand(self._graph.shapes[value.number]).long()
        if node.name == "constant_pad_nd":
            args = (*args[:2], -1.0 if argument(node, "value") else 0.0)
        kwargs = {key: x for key, x in kwargs.items() if key not in ("dtype", "memory_format")}
        made = args[0].reshape(args[1]) if node.name in _VIEWS else node.op(*args, **kwargs)
        one: Tensor = made if value.part is None else made[value.part]
        return one.long()

    def _to_sources(self, value: Value, numbered: Tensor) -> tuple[tuple[int, ...], Tensor]:
        """Convert numbers of scalars in the operation's inputs to numbers in the sources, for one image."""
        shapes = [self.values[n].shape for n in value.inputs]
        whole, own = _offsets([(_IMAGES, *shape) for shape in shapes]), _offsets(shapes)
        first, second = numbered[0] - 1, numbered[1] - 1
        sources: list[int] = []
        for n in value.inputs:
            sources += [s for s in self._elements.get(n, ((n,), None))[0] if s not in sources]
        starts = dict(zip(sources, _offsets([self.values[s].shape for s in sources]), strict=False))
        result = first.clamp_max(-1)
        for n, number in enumerate(value.inputs):
            inside = (first >= whole[n]) & (first < whole[n + 1])
            size = own[n + 1] - own[n]
            if not bool(((second - first)[inside] == size).all()) or not bool((first[inside] < whole[n] + size).all()):
                raise _unextractable(
                    value.layer, f"moves values across images ({value.node.name if value.node else ''})"
                )
            local = first[inside] - whole[n]
            if number in self._elements:
                roots, elements = self._elements[number]
                before = _offsets([self.values[s].shape for s in roots])
                flat = elements.flatten()[local]
                moved = flat.clone()
                for r, root in enumerate(roots):
                    here = (flat >= before[r]) & (flat < before[r + 1])
                    moved[here] = flat[here] - before[r] + starts[root]
                result[inside] = moved
            else:
                result[inside] = local + starts[number]
        return tuple(sources), result

    def _labels(self, number: int) -> Tensor:
        """Return the channel of each scalar."""
        value = self.values[number]
        return value.along_axis(torch.arange(value.channels)).expand(value.shape)

    def _form(
        self, value: Value, axis: int, sources: tuple[int, ...], elements: Tensor, channels: Tensor
    ) -> str | None:
        values = [self.values[s] for s in sources]
        rest = {(*v.shape[: v.axis], *v.shape[(v.axis or 0) + 1 :]) for v in values if v.axis is not None}
        if rest == {(*value.shape[:axis], *value.shape[axis + 1 :])} and {v.axis for v in values} == {axis}:
            starts = _offsets([v.shape for v in values])
            laid = torch.cat([_numbered(v, start) for v, start in zip(values, starts, strict=False)], axis)
            taken = laid.index_select(axis, channels.clamp_min(0))
            zeros = value.along_axis(channels < 0).expand(value.shape)
            if bool((taken.masked_fill(zeros, -1) == elements).all()):
                return "gather"
        if value.inputs != sources or len(sources) != 1:
            return "reshape" if len(sources) == 1 and _in_order(elements, values[0]) else None
        if value.node is not None and value.node.name in _AGAIN and value.node.name != "expand":
            return "call"
        if _in_order(elements, values[0]):
            return "reshape"
        return "call" if value.node is not None and value.node.name == "expand" else None


def takes_any_size(subject: Subject, layout: Layout) -> bool:
    """Return whether the model does the same with images of any size that it accepts.

    Padding computed from the size differs between sizes with different remainders modulo powers of two, the products of
    strides.
    """
    channels, height, width = layout.input_shape
    for step in _STEPS:
        step = -step if min(height, width) > 96 else step
        shape = (channels, height + step, width + step)
        try:
            graph = record_graph(subject.network, subject.feature, _images(subject, shape, _IMAGES))
            if not layout.is_that_of(graph) and layout_of(subject, shape, graph).fixed() != layout.fixed():
                return False
        except ConvCircuitsError:
            if abs(step) == 64:
                return False
    return True


def layout_of(subject: Subject, input_shape: Sequence[int], graph: Graph | None = None) -> Layout:
    """Return the layout of the channels of each value that a model computes up to a feature.

    Args:
        subject: The model, opened for the feature.
        input_shape: (C, H, W) of an image.
        graph: The model's graph for two such images, if it has been recorded.

    Raises:
        UnextractableError: If the operations depend on the number of images or are not supported.
    """
    images = _images(subject, input_shape, _IMAGES + 1)
    more = record_graph(subject.network, subject.feature, images)
    return Layout(subject.paths_on(images[:_IMAGES]) if graph is None else Paths(graph), more)


def _images(subject: Subject, input_shape: Sequence[int], count: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(count, *input_shape, generator=generator)
    return images.to(subject.network.device, subject.network.dtype)


def _unextractable(layer: str, what: str) -> UnextractableError:
    return UnextractableError(
        f"{layer or 'The model'} {what}, so no module can be extracted and no diagram drawn; masked runs (evaluate, "
        "activations) still work."
    )


def _joins_a_constant(node: Node) -> UnextractableError:
    return _unextractable(node.layer, f"joins a map and a nonzero constant ({node.name})")


def _axis_after(value: Value, source: Value) -> int | None:
    """Return the dimension of a computed value that corresponds to a source's axis, or None if it is gone."""
    over = () if value.operation is None or value.operation.over is None else value.operation.over
    if source.axis is None:
        return None
    if len(value.shape) >= len(source.shape):
        return len(value.shape) - len(source.shape) + source.axis
    if source.axis + 1 in over:
        return None
    return source.axis - sum(dim < source.axis + 1 for dim in over)


def _of_any_number(node: Node, a: Any, b: Any) -> Any:
    """Return an argument that is equal for two and three images; of a constant with equal rows per image, one row."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        if a.shape == b.shape:
            return a
        rows = a.dim() == b.dim() > 0 and a.shape[1:] == b.shape[1:] and len(b) == len(a) + 1 == _IMAGES + 1
        if rows and bool((a == a[:1]).all()) and torch.equal(a[:1], b[:1]):
            return a[:1]
    elif isinstance(a, Ref) and isinstance(b, Ref):
        return a
    elif isinstance(a, Mapping) and isinstance(b, Mapping) and a.keys() == b.keys():
        return {key: _of_any_number(node, a[key], b[key]) for key in a}
    elif type(a) in (tuple, list) and type(a) is type(b) and len(a) == len(b):
        return type(a)(_of_any_number(node, x, y) for x, y in zip(a, b, strict=True))
    elif type(a) is type(b) and (a == b or (a != a and b != b)):
        return a
    raise _unextractable(node.layer, f"does something else for another number of images ({node.name})")


def _form(call: KernelCall | None) -> tuple[Any, ...]:
    """Return what a kernel call does besides its weight and bias."""
    if call is None:
        return ()
    return (call.stride, call.padding, call.dilation) if isinstance(call, ConvCall) else (call.blocks,)


def _moves_channels(node: Node) -> bool:
    """Return whether an operation moves whole channels, the same ones for any height and width."""
    if node.name == "cat" or node.name in _SAME:
        return True
    return node.name in ("slice", "split", "split_with_sizes") and argument(node, "dim") == 1


def _alike(a: Any, b: Any) -> bool:
    """Return whether arguments are equal."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a is b or (a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b))
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(_alike(a[key], b[key]) for key in a)
    if type(a) is not type(b):
        return False
    if isinstance(a, (tuple, list)):
        return len(a) == len(b) and all(map(_alike, a, b))
    return bool(a == b)


def _plain(value: Any) -> Any:
    """Return a key that is equal for equal arguments."""
    if isinstance(value, Tensor):
        return (tuple(value.shape), value.flatten().tolist())
    if isinstance(value, Mapping):
        return [(key, _plain(x)) for key, x in value.items()]
    return [_plain(x) for x in value] if isinstance(value, (tuple, list)) else repr(value)


def _numbered_constant(x: Tensor) -> Tensor:
    """Return the number for each constant scalar of a move: 0 for zeros, -1 for others. Indices stay."""
    return -(x != 0).double() if x.is_floating_point() or x.is_complex() else x.cpu()


def _offsets(shapes: Sequence[Sequence[int]]) -> list[int]:
    """Return the start of each tensor when all are concatenated flat, and the end of the last."""
    starts = [0]
    for shape in shapes:
        starts.append(starts[-1] + int(torch.Size(shape).numel()))
    return starts


def _numbered(value: Value, start: int) -> Tensor:
    return torch.arange(start, start + _offsets([value.shape])[1]).reshape(value.shape)


def _run(channels: Tensor, count: int) -> int:
    """Return k such that channels repeat the sequence of k times 0, k times 1 and so on; 0 if there is no such k."""
    whole = len(channels) // count
    for k in (k for k in range(1, whole + 1) if whole % k == 0):
        if torch.equal(channels, torch.arange(count).repeat_interleave(k).repeat(whole // k)):
            return k
    return 0


def _in_order(elements: Tensor, source: Value) -> bool:
    return elements.numel() == _offsets([source.shape])[1] and torch.equal(
        elements.flatten(), _numbered(source, 0).flatten()
    )


def _axis_of(channel: Tensor, sources: Sequence[Value]) -> int | None:
    """Return the dimension along which channel indices vary, if there is exactly one.

    A single channel out of several lies along the dimension of the original channels, if that still exists.
    """
    candidates = []
    for axis in range(channel.dim()):
        index = [slice(0, 1)] * channel.dim()
        index[axis] = slice(None)
        if bool((channel == channel[tuple(index)]).all()):
            candidates.append(axis)
    if bool((channel == channel.flatten()[:1]).all()):  # there is one channel only
        own = [s.axis for s in sources if s.axis in candidates]
        if any(s.channels > 1 for s in sources):
            return next((axis for axis in own if axis is not None and channel.shape[axis] == 1), None)
        long = [axis for axis in candidates if channel.shape[axis] > 1]
        candidates = long if len(long) == 1 else own[:1] or candidates[:1]
    return candidates[0] if candidates else None
