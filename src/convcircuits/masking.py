"""Run a model with only some of its kernels."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from convcircuits.calls import KernelCall
from convcircuits.capture import Network, tensors_in, writes_to_first
from convcircuits.circuit import Circuit
from convcircuits.feature import Feature
from convcircuits.reach import Survey, survey


@dataclass(frozen=True)
class Masks:
    """Kernels that a run keeps, with the calibration it applies.

    Attributes:
        kernels: Layer name -> bool (out, in per group). A layer that is not named is left as it is.
        gain: Layer name -> (out,), on the raw output of live filters.
        offset: Layer name -> (out,), as ``gain``.
        silent: Whether a dead filter, one without any kept kernel, adds nothing to others: its bias, and the shift
            of a BatchNorm that follows, are removed where its map meets other maps. A dead gate, which multiplies,
            stays the constant it is. Without ``silent`` every bias stays (the published semantics).
    """

    kernels: Mapping[str, Tensor]
    gain: Mapping[str, Tensor] = field(default_factory=dict)
    offset: Mapping[str, Tensor] = field(default_factory=dict)
    silent: bool = True

    def to(self, device: torch.device, dtype: torch.dtype) -> "Masks":
        """Move to the device; gain and offset also to the dtype."""
        return Masks(
            {layer: mask.to(device) for layer, mask in self.kernels.items()},
            {layer: gain.to(device, dtype) for layer, gain in self.gain.items()},
            {layer: offset.to(device, dtype) for layer, offset in self.offset.items()},
            self.silent,
        )

    def kernel(self, call: KernelCall) -> Tensor:
        """Compute a kernel call with the kept kernels alone."""
        if call.layer not in self.kernels:
            return call.compute()
        mask = self.kernels[call.layer]
        mask = mask if call.rows is None else mask[call.rows]
        mark = _mark_of(call.x)
        if self.silent and mark is not None:
            # Reach drops kernels that read a dead channel; where a layer runs several times, this one call may.
            mask = (mask.reshape(call.groups, -1, mask.shape[1]) & call.marked(mark)[:, None]).flatten(0, 1)
        output = call.compute(call.weight * call.per_kernel(mask), call.bias)
        live = mask.any(1)
        for table, rule in ((self.gain, torch.mul), (self.offset, torch.add)):
            if call.layer in table:
                values = table[call.layer]
                values = _along(values if call.rows is None else values[call.rows], output, call.channel_dim)
                output = torch.where(_along(live, output, call.channel_dim), rule(output, values), output)
        if self.silent:
            _set_mark(output, _along(live, output, call.channel_dim).expand_as(output))
        return output

    def other(self, function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Compute any other function, and follow which values are a dead filter's.

        Functions that only move values move their marks alike. Where maps meet (additions above all), what dead filters
        hold becomes zero; a gate, the smaller factor of a product, keeps it.
        """
        into = {"out": kwargs["out"]} if "out" in kwargs else {}
        named = {key: value for key, value in kwargs.items() if key != "out"}
        maps = [x for x in tensors_in((args, tuple(named.values()))) if x.dim() > 1]
        if all(_mark_of(x) is None for x in maps):
            return function(*args, **kwargs)
        name: str = function.__name__
        if name in _MOVES:
            moved = function(
                *_with(args, _full_mark), **{key: _with(value, _full_mark) for key, value in named.items()}
            )
            result = _marked_like(function(*args, **kwargs), moved)
            if isinstance(result, Tensor):
                result._convcircuits_gate = getattr(maps[0], "_convcircuits_gate", False)  # type: ignore[attr-defined]
            return result
        if len(maps) == 1 and name not in _REDUCES:
            result = function(*args, **kwargs)
            if isinstance(result, Tensor):
                _set_mark(result, _passed_on(_full_mark(maps[0]), result))
                result._convcircuits_gate = name.strip("_") in _GATES  # type: ignore[attr-defined]
            return result
        if name.strip("_") in _SCALINGS and len(maps) == 2:
            data = maps[0] if "div" in name else _data_of_product(*maps)
        else:
            data = None
        if data is not None:
            mark = _full_mark(data)
            result = function(*args, **kwargs)
            _set_mark(result, mark if result.shape == mark.shape else None)
            return result
        marks = [_mark_of(x) for x in maps]
        if writes_to_first(function) and marks[0] is not None:
            maps[0].mul_(marks[0])
            _set_mark(maps[0], None)
        silent = {key: _with(value, _silenced) for key, value in named.items()}
        result = function(*_with(args, _silenced), **silent, **into)
        if isinstance(result, Tensor):
            same = [mark for mark in marks if mark is not None and mark.shape == result.shape]
            _set_mark(result, torch.stack(same).any(0) if len(same) == len(maps) else None)
        return result


# Functions that move values and compute nothing: views, cuts, joins.
_MOVES = {"cat", "concat", "concatenate", "stack", "chunk", "split", "tensor_split", "unbind", "narrow", "select"}
_MOVES |= {"__getitem__", "index_select", "flip", "roll", "channel_shuffle", "pixel_shuffle", "pixel_unshuffle"}
_MOVES |= {"view", "reshape", "flatten", "unflatten", "permute", "transpose", "swapaxes", "movedim", "squeeze"}
_MOVES |= {"unsqueeze", "contiguous", "clone", "expand", "expand_as"}
# Functions of one map in which its values meet. (Pooling is none: it stays within a channel.)
_REDUCES = {"sum", "mean", "amax", "amin", "max", "min", "prod", "norm", "logsumexp", "einsum", "matmul", "bmm"}


_SCALINGS = {"mul", "rmul", "imul", "multiply", "div", "truediv", "itruediv", "divide", "true_divide"}
_GATES = {"sigmoid", "hardsigmoid", "softmax"}


def _data_of_product(a: Tensor, b: Tensor) -> Tensor | None:
    """Tell which factor is data and not a gate: the other comes from a sigmoid, or is smaller; None if neither."""
    for data, gate in ((a, b), (b, a)):
        if getattr(gate, "_convcircuits_gate", False) and not getattr(data, "_convcircuits_gate", False):
            return data
    return None if a.numel() == b.numel() else max(a, b, key=Tensor.numel)


def _mark_of(maps: Tensor) -> Tensor | None:
    """Give which values of a map are those of live filters (bool, same shape), where that is followed."""
    return getattr(maps, "_convcircuits_live", None)


def _full_mark(maps: Tensor) -> Tensor:
    mark = _mark_of(maps)
    return torch.ones_like(maps, dtype=torch.bool) if mark is None else mark.contiguous()


def _set_mark(maps: Tensor, mark: Tensor | None) -> None:
    maps._convcircuits_live = mark  # type: ignore[attr-defined]


def _marked_like(result: Any, moved: Any) -> Any:
    """Mark one result, or each of several, by what became of the marks."""
    if isinstance(result, Tensor):
        _set_mark(result, moved)
    elif isinstance(result, (tuple, list)):
        for one, mark in zip(result, moved, strict=True):
            _set_mark(one, mark)
    return result


def _passed_on(mark: Tensor, result: Tensor) -> Tensor | None:
    """Give the mark after an element-wise function or a pooling."""
    if result.shape == mark.shape:
        return mark
    if result.shape[:2] != mark.shape[:2]:
        return None
    channels = mark.flatten(2).any(2)
    return channels.reshape(*channels.shape, *[1] * (result.dim() - 2)).expand_as(result)


def _with(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Change the maps among a function's arguments."""
    if isinstance(value, Tensor):
        return change(value) if value.dim() > 1 else value
    return type(value)(_with(part, change) for part in value) if type(value) in (tuple, list) else value


def _silenced(maps: Tensor) -> Tensor:
    mark = _mark_of(maps)
    return maps if mark is None else maps * mark


def _along(values: Tensor, maps: Tensor, dim: int) -> Tensor:
    shape = [1] * maps.dim()
    shape[dim] = -1
    return values.reshape(shape)


class Subject:
    """A feature of a model, surveyed and ready to run.

    Args:
        network: The model.
        feature: The feature.
        found: What the survey of the feature in the full model told.
    """

    def __init__(self, network: Network, feature: Feature, found: Survey) -> None:
        self.network, self.feature, self.survey = network, feature, found
        self._rows = found.rows.to(network.device)
        self._coefficients = found.coefficients.to(network.device, network.dtype)

    def maps(
        self,
        images: Tensor,
        masks: Masks | None = None,
        watch: Callable[[KernelCall, Tensor], None] | None = None,
    ) -> Tensor:
        """Run the full model, or the masked one; give the feature's maps, (N, H, W) or (N,).

        ``watch`` is told of every kernel call and its output.
        """
        compute = _in_full if masks is None else masks.kernel

        def kernel(call: KernelCall) -> Tensor:
            output = compute(call)
            if watch is not None:
                watch(call, output)
            return output

        output = self.network.run(
            self.feature,
            images,
            kernel,
            other=None if masks is None else masks.other,
            rows=self._rows if self.survey.direct else None,
            copied=self.survey.copied,
        )
        output = _silenced(output)
        if not self.survey.direct:
            output = output.index_select(1, self._rows)
        if len(self._rows) == 1:
            return output[:, 0] * self._coefficients[0]
        return torch.einsum("nc...,c->n...", output, self._coefficients)

    def effective(self, kernels: Mapping[str, Tensor], input_shape: tuple[int, ...]) -> dict[str, Tensor]:
        """Keep of some masks the kernels on a complete path image -> feature inside them."""
        inside = survey(self.network, self.feature, input_shape, kernels).kernels
        return {layer: inside[layer] & kernels[layer] for layer in kernels}

    def masks(self, circuit: Circuit, input_shape: tuple[int, ...], *, effective: bool) -> Masks:
        """Turn a circuit into the masks of a run: its effective part, or all it keeps with every bias left."""
        kernels = self.effective(circuit.kernels, input_shape) if effective else dict(circuit.kernels)
        masks = Masks(kernels, dict(circuit.gain), dict(circuit.offset), silent=effective)
        return masks.to(self.network.device, self.network.dtype)


def _in_full(call: KernelCall) -> Tensor:
    return call.compute()
