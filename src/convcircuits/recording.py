"""Record what a model does with an image up to a feature, as a list of values that says where each channel comes from.

One run on two images tells every call of a function, with its arguments. A value has an *axis*, the dimension along
which its channels lie, found by following channel numbers from the convolutions on; a function that only moves values
(a view, a concatenation, a shuffle) is described by which channel of which source each of its channels is. Nothing
here depends on a circuit; `extraction` does the cutting.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from convcircuits.calls import ConvCall, KernelCall
from convcircuits.errors import ConvCircuitsError
from convcircuits.functions import (
    Kind,
    Rule,
    argument,
    base_name,
    depends_on_image,
    in_place_of_maps,
    of_image,
    rule_of,
    set_gate,
    set_of_image,
    tensors_in,
    with_maps,
    writes_to_first,
)
from convcircuits.masking import Subject

_IMAGES = 2  # enough to tell what belongs to an image from what runs across images
# Functions whose result is a copy of a map with other values at some places.
_PLACED = {"index_fill", "index_copy", "index_add", "index_put", "index_reduce", "masked_scatter", "put"}
_PLACED |= {"scatter", "scatter_add", "scatter_reduce", "slice_scatter", "select_scatter", "diagonal_scatter"}
# Functions whose result is a number that depends on the image: the model's path may depend on it.
_READINGS = {"item", "bool", "float", "int", "tolist", "numpy", "is_nonzero", "equal", "allclose", "index", "array"}


@dataclass(frozen=True)
class Ref:
    """Stands for a recorded value among a function's arguments."""

    number: int


@dataclass(frozen=True)
class Move:
    """Where the channels of a moved value come from.

    Attributes:
        sources: Values that have an axis, of which this one is made.
        channels: For each channel its number in the sources' channels laid end to end; -1 for a zero. None where
            channels do not lie along one dimension.
        inner: How many channels in a row, of this value, come from each channel of the source, where there is one.
        form: How the value is made of the sources, other channels taken away: ``"gather"`` of channels along the same
            axis, ``"reshape"`` in the same order, or ``"call"``, the function as it is. None where only the whole
            sources will do.
    """

    sources: tuple[int, ...]
    channels: Tensor | None
    form: str | None
    inner: int = 1


@dataclass(frozen=True)
class Value:
    """One tensor on the way from the image to the feature.

    Attributes:
        number: Its place in the recording.
        shape: Its shape for one image.
        axis: The dimension of that shape along which channels lie, or None.
        dtype: Its dtype.
        layer: Name of the module that made it.
        rule: What the function does with channels; None for the image and for kernel calls.
        call: The kernel call that made it, without its input, if one did.
        function: The function that made it, if one did.
        args: Its arguments, with `Ref` in place of values.
        kwargs: Its keyword arguments, likewise.
        part: Which of several results it is.
        inputs: Numbers of the values among the arguments.
        move: Where its channels come from, if the function only moved values.
    """

    number: int
    shape: tuple[int, ...]
    axis: int | None
    dtype: torch.dtype
    layer: str = ""
    rule: Rule | None = None
    call: KernelCall | None = None
    function: Any = None
    args: Any = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    part: int | None = None
    inputs: tuple[int, ...] = ()
    move: Move | None = None

    @property
    def channels(self) -> int:
        """How many channels lie along the axis."""
        return 1 if self.axis is None else self.shape[self.axis]

    def along_axis(self, values: Tensor) -> Tensor:
        """Shape one value per channel so that it broadcasts against the value of one image."""
        if self.axis is None:
            return values
        shape = [1] * len(self.shape)
        shape[self.axis] = -1
        return values.reshape(shape)


# Moves that name the sizes of their result, which are written as the result's shape.
SIZED = {"view", "reshape", "view_as", "reshape_as", "unflatten", "expand", "expand_as"}


class UnextractableError(ConvCircuitsError):
    """A model does something that a recording cannot say; a masked run still can."""


@dataclass(frozen=True)
class Recording:
    """What a model does up to a feature: its values in order, the last of them the output of the feature's layer."""

    values: tuple[Value, ...]
    input_shape: tuple[int, ...]

    def fixed(self) -> list[Any]:
        """List all that a module written from this would have fixed, whatever the size of its images."""
        return [(v.layer, getattr(v.function, "__name__", None), *_fixed_in(v)) for v in self.values[1:]]


def record(subject: Subject, input_shape: Sequence[int]) -> Recording:
    """Run the full model up to the feature and write down what it does.

    Args:
        subject: The feature of the model.
        input_shape: (C, H, W) of an image.

    Raises:
        UnextractableError: If what the model does depends on the image's values, goes across images, or is written
            through views.
    """
    network = subject.network
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(_IMAGES, *input_shape, generator=generator).to(network.device, network.dtype)
    recorder = _Recorder(tuple(input_shape), network.dtype, network.running)
    with torch.no_grad():
        output = network.run(
            subject.feature,
            images,
            recorder.kernel,
            other=recorder.other,
            rows=subject.rows if subject.survey.direct else None,
        )
    recorder.alias(output)
    return Recording(tuple(recorder.values), tuple(input_shape))


class _Recorder:
    def __init__(self, input_shape: tuple[int, ...], dtype: torch.dtype, running: Callable[[], str]) -> None:
        self.values = [Value(0, input_shape, 0, dtype)]
        self._running = running
        self._elements: dict[int, tuple[tuple[int, ...], Tensor]] = {}

    def kernel(self, call: KernelCall) -> Tensor:
        if torch.is_autocast_enabled(call.x.device.type):
            raise self._problem("runs under an autocast of the model's own")
        output = call.compute()
        axis = 0 if isinstance(call, ConvCall) else output.dim() - 2
        number = self.number(call.x)
        bare = replace(call, x=call.x.new_empty(0))
        self._add(output, axis, call=bare, layer=call.layer, inputs=(number,))
        return output

    def other(self, function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        if base_name(function) == "glu":
            return self._gated(*args, **kwargs)
        maps = [x for x in tensors_in((args, kwargs)) if of_image(x)]
        if not depends_on_image(function, args, kwargs):
            return function(*args, **kwargs)
        inputs = tuple(self.number(x) for x in maps)
        versions = [x._version for x in maps]
        rule = rule_of(function, args, kwargs, maps)
        before = with_maps((args, kwargs), lambda x: Ref(self.number(x)) if of_image(x) else _of_one_image(x, maps))
        result = function(*args, **kwargs)
        written = [x for x, version in zip(maps, versions, strict=True) if x._version != version]
        results = tensors_in(result)
        if not results and base_name(function) in _READINGS:
            raise self._problem(f"reads a value that depends on the image ({base_name(function)})")
        if results and base_name(function) == "get":
            raise self._problem("reads a property that is a tensor, such as x.T")
        in_part = base_name(function) in _PLACED or (writes_to_first(function) and not of_image(args[0]))
        if in_part or kwargs.get("out") is not None or any(all(x is not y for y in results) for x in written):
            raise self._problem(f"writes into part of a map ({base_name(function)})")
        if not results or (not written and any(results[0] is x for x in maps)):
            return result  # a shape, or the very same tensor
        set_gate(result, rule.gate)
        for part, one in enumerate(results):
            made = Value(
                len(self.values),
                tuple(one.shape[1:]),
                axis=None,
                dtype=one.dtype,
                layer=self._running(),
                rule=rule,
                function=function,
                args=before[0],
                kwargs=before[1],
                part=None if one is result else part,
                inputs=inputs,
            )
            self._check(one)
            made = self._moved(made, one, maps) if rule.kind is Kind.MOVE else replace(made, axis=self._axis(made))
            self._put(one, made)
        return result

    def _gated(self, input: Tensor, dim: int = -1) -> Any:
        """Record a gated linear unit as what it is: one half scaled by the sigmoid of the other."""

        def then(function: Any, *args: Any) -> Any:
            result = self.other(function, args, {})
            set_of_image(result)
            return result

        data, gate = then(torch.chunk, input, 2, dim)
        return then(torch.mul, data, then(torch.sigmoid, gate))

    def number(self, x: Tensor) -> int:
        number: int = getattr(x, "_convcircuits_value", 0)
        if number and x._version != x._convcircuits_version:  # type: ignore[attr-defined]
            raise self._problem("reads a map that was written to through a view of it")
        return number

    def alias(self, output: Tensor) -> None:
        """Let the feature's output be the last value."""
        number = self.number(output)
        del self.values[number + 1 :]

    def _add(self, output: Tensor, axis: int, **fields: Any) -> None:
        self._check(output)
        self._put(output, Value(len(self.values), tuple(output.shape[1:]), axis, output.dtype, **fields))

    def _put(self, x: Tensor, value: Value) -> None:
        self.values.append(value)
        x._convcircuits_value = value.number  # type: ignore[attr-defined]
        x._convcircuits_version = x._version  # type: ignore[attr-defined]

    def _check(self, x: Tensor) -> None:
        if x.dim() < 2 or len(x) != _IMAGES:
            raise self._problem(
                f"makes a tensor of shape {tuple(x.shape)} of {_IMAGES} images, across images or not along them first"
            )

    def _problem(self, what: str) -> UnextractableError:
        return UnextractableError(
            f"{self._running() or 'The model'} {what}, so no module can be extracted and no diagram drawn; masked runs "
            "(evaluate, activations) still work."
        )

    def _axis(self, value: Value) -> int | None:
        """Find along which dimension a computed value's channels lie."""
        rule, rank = value.rule, len(value.shape)
        first = self.values[value.inputs[0]]
        if rule is None or rule.kind is Kind.OTHER:
            return None
        if rule.kind is Kind.REDUCE:
            if 0 in rule.dims:
                raise self._problem(f"reduces over images ({base_name(value.function)})")
            if first.axis is None or first.axis + 1 in rule.dims:
                return None
            kept = rank == len(first.shape)
            return first.axis if kept else first.axis - sum(dim < first.axis + 1 for dim in rule.dims)
        if rule.kind in (Kind.WITHIN, Kind.MIX):
            same = first.axis is not None and rank == len(first.shape)
            return first.axis if same and value.shape[first.axis] == first.channels else None  # type: ignore[index]
        candidates = [self.values[n] for n in value.inputs]
        if rule.kind is Kind.SCALE:
            candidates = [candidates[rule.data]]
        axes = {
            rank - len(one.shape) + one.axis
            for one in candidates
            if one.axis is not None and one.channels == value.shape[rank - len(one.shape) + one.axis]
        }
        return axes.pop() if len(axes) == 1 else None

    def _moved(self, value: Value, x: Tensor, maps: Sequence[Tensor]) -> Value:
        """Follow every element of a moved value back to the values with an axis that it comes from."""
        if self._joins_channels(value):
            channels = torch.arange(sum(self.values[n].channels for n in value.inputs))
            return replace(value, axis=self.values[value.inputs[0]].axis, move=Move(value.inputs, channels, "gather"))
        part, elements = value.part, self._moved_elements(value, maps)
        one = tensors_in(elements)[part or 0] if part is not None else elements
        sources, elements = self._to_sources(value, one)
        if any(self.values[s].axis is None for s in sources):
            return replace(value, move=Move(sources, None, None))
        offsets = _offsets([self.values[s].shape for s in sources])
        channel = torch.full_like(elements, -1)
        first = 0
        for n, source in enumerate(sources):
            inside = (elements >= offsets[n]) & (elements < offsets[n + 1])
            label = self._labels(source).flatten() + first
            channel[inside] = label[elements[inside] - offsets[n]]
            first += self.values[source].channels
        axis = _axis_of(channel, [self.values[s] for s in sources])
        if axis is None:
            self._elements[value.number] = (sources, elements)
            return replace(value, move=Move(sources, None, None))
        index = [0] * channel.dim()
        index[axis] = slice(None)  # type: ignore[call-overload]
        channels = channel[tuple(index)].clone()
        value = replace(value, axis=axis)
        form, inner = self._form(value, axis, sources, elements, channels), 1
        if form in ("reshape", "call"):
            inner = _run(channels, self.values[sources[0]].channels)
            form = form if inner else None
        return replace(value, move=Move(sources, channels, form, inner))

    def _joins_channels(self, value: Value) -> bool:
        """Tell the commonest move, a concatenation of channels, which needs no following of elements."""
        axes = {self.values[n].axis for n in value.inputs}
        if _constants(value.args):
            return False
        if base_name(value.function) not in ("cat", "concat", "concatenate") or len(axes) > 1 or None in axes:
            return False
        dim = value.kwargs.get("dim", value.kwargs.get("axis", value.args[1] if len(value.args) > 1 else 0))
        return int(dim) % (len(value.shape) + 1) == (axes.pop() or 0) + 1

    def _moved_elements(self, value: Value, maps: Sequence[Tensor]) -> Any:
        """Call the function on numbered elements in place of its maps: source after source, from 1; 0 is a zero."""
        count, numbered = 1, []
        for x in maps:
            numbered.append(torch.arange(count, count + x.numel()).reshape(x.shape))
            count += x.numel()
        fill = argument(F.pad, value.args, value.kwargs, "value") if base_name(value.function) == "pad" else 0
        if fill or not all(bool((x == 0).all()) for x in _constants(value.args)):
            raise self._problem(f"joins a map and a constant that is not zero ({base_name(value.function)})")
        given = in_place_of_maps((value.args, value.kwargs), numbered, lambda x: isinstance(x, Ref), torch.long)
        given = with_maps(given, lambda x: x.expand(_IMAGES, *x.shape[1:]) if _is_short(x, maps) else x)
        return value.function(*given[0], **given[1])

    def _to_sources(self, value: Value, numbered: Tensor) -> tuple[tuple[int, ...], Tensor]:
        """Turn numbers of elements in the function's maps into numbers in the sources, for one image."""
        shapes = [self.values[n].shape for n in value.inputs]
        whole, own = _offsets([(_IMAGES, *shape) for shape in shapes]), _offsets(shapes)
        first, second = numbered[0] - 1, numbered[1] - 1
        sources: list[int] = []
        for n in value.inputs:
            sources += [s for s in self._elements.get(n, ((n,), None))[0] if s not in sources]
        starts = dict(zip(sources, _offsets([self.values[s].shape for s in sources]), strict=False))
        result = torch.full_like(first, -1)
        for n, number in enumerate(value.inputs):
            inside = (first >= whole[n]) & (first < whole[n + 1])
            size = own[n + 1] - own[n]
            if not bool(((second - first)[inside] == size).all()) or not bool((first[inside] < whole[n] + size).all()):
                raise self._problem(f"moves values across images ({base_name(value.function)})")
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
        """Return each element's channel."""
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
        if base_name(value.function) in ("flatten", "permute", "transpose", "unsqueeze", "contiguous", "getitem"):
            return "call"
        if _in_order(elements, values[0]):
            return "reshape"
        return "call" if base_name(value.function) in ("expand", "flip", "roll", "movedim", "swapaxes") else None


def _of_one_image(x: Tensor, maps: Sequence[Tensor]) -> Tensor:
    """Keep a constant; of one that was made as long as the batch, what all images have."""
    x = x.detach().clone()
    return x[:1] if x.dim() == maps[0].dim() and len(x) == _IMAGES and torch.equal(x[0], x[1]) else x


def _is_short(x: Tensor, maps: Sequence[Tensor]) -> bool:
    return x.dim() == maps[0].dim() and len(x) == 1


def _constants(args: Any) -> list[Tensor]:
    return [x for x in tensors_in(args) if x.is_floating_point()]


def _fixed_in(value: Value) -> tuple[Any, ...]:
    if value.call is not None:
        call = value.call
        return (call.stride, call.padding, call.dilation) if isinstance(call, ConvCall) else (call.blocks,)
    if value.move is not None and base_name(value.function) in SIZED:
        return (value.shape,) if value.move.form != "gather" else ()
    if value.move is not None and value.move.form == "reshape":
        return (value.shape,)
    plain = with_maps((value.args, dict(value.kwargs)), lambda x: (tuple(x.shape), x.flatten().tolist()))
    return (repr(plain),)


def _offsets(shapes: Sequence[Sequence[int]]) -> list[int]:
    """Return where each tensor starts when all are laid end to end, and the end."""
    starts = [0]
    for shape in shapes:
        starts.append(starts[-1] + int(torch.Size(shape).numel()))
    return starts


def _numbered(value: Value, start: int) -> Tensor:
    return torch.arange(start, start + _offsets([value.shape])[1]).reshape(value.shape)


def _run(channels: Tensor, count: int) -> int:
    """Find k such that channels are 0 k times, 1 k times, ..., and so on, again and again; 0 where there is none."""
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
    """Find the one dimension along which the channel numbers change, if they change along one alone."""
    candidates = []
    for axis in range(channel.dim()):
        index = [slice(0, 1)] * channel.dim()
        index[axis] = slice(None)
        if bool((channel == channel[tuple(index)]).all()):
            candidates.append(axis)
    if len(candidates) > 1:  # there is one channel only
        long = [axis for axis in candidates if channel.shape[axis] > 1]
        own = [s.axis for s in sources if s.axis in candidates]
        candidates = long if len(long) == 1 else own[:1] or candidates[:1]
    return candidates[0] if candidates else None
