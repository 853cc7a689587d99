"""Whether what a dead filter holds matters to a circuit: run one again with other constants in its dead filters.

One use is meant: a dead gate, a constant by which live maps are multiplied, stays the constant it is. Such uses are
found in the run itself, not by what convcircuits takes the model for: a factor, or divisor, of a product that is the
smaller one, or a sigmoid's, and is the same in all images; a softmax's argument that is the same in all images.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from convcircuits.agreement import Watch, agreement, difference, parting, random_images, units
from convcircuits.calls import KernelCall
from convcircuits.errors import ConvCircuitsError
from convcircuits.masking import Masks, Subject

_TRIES = 8  # random circuits to look for one with dead and live filters
_ATEN = torch.ops.aten
_PRODUCTS = {_ATEN.mul, _ATEN.mul_, _ATEN.div, _ATEN.div_}


class LeakError(ConvCircuitsError):
    """What dead filters hold changes a circuit's map.

    Attributes:
        error: The largest change, relative to the largest value.
        allowed: What rounding can do.
        where: The layer of which it changes the live filters first.
    """

    def __init__(self, error: float, allowed: float, where: str) -> None:
        super().__init__(f"what dead filters hold changes the map of a circuit at {where}")
        self.error, self.allowed, self.where = error, allowed, where


def change_by_dead_filters(subject: Subject, images: Tensor) -> tuple[float | None, str]:
    """Run a random circuit with other values in its dead filters.

    Returns:
        The largest change of its map, relative to the largest value; or None and why nothing could be tried.

    Raises:
        LeakError: If the map changes by more than rounding.
    """
    masks = circuit_with_dead_filters(subject, tuple(images.shape[1:]))
    if masks is None:
        return None, "what dead filters hold, as no random circuit had both dead and live ones."
    expected = subject.maps(images, masks)
    if not bool(expected.isfinite().all()):
        return None, "what dead filters hold, as the map of a random circuit holds NaN or Inf on these images."
    error, _ = difference(subject.maps(images, masks, _Other(masks)), expected)
    if error <= units(expected.dtype):
        return error, ""
    # The images may be equal, but what depends on them must differ to be told from a constant.
    images = torch.cat([images[:1], random_images(subject, tuple(images.shape[1:]))[1:]])
    expected = subject.maps(images, masks)
    gates = _Gates()
    with gates:
        subject.maps(images, masks, _Other(masks, size=0.0))

    def other(watch: Watch | None = None) -> Tensor:
        with gates.again():
            return subject.maps(images, masks, _Other(masks, then=watch))

    error, allowed = agreement(subject, masks, images, other(), expected)
    if error > allowed:
        where = parting(lambda watch: subject.maps(images, masks, watch), other, masks.kernels, allowed)
        raise LeakError(error, allowed, where)
    return error, ""


def circuit_with_dead_filters(subject: Subject, shape: tuple[int, ...]) -> Masks | None:
    """Draw a circuit of about half of the kernels, with dead filters and a path to the feature; None if none is found.

    A layer's only filter stays; later tries keep more.
    """
    relevant = subject.survey.kernels
    for seed in range(_TRIES):
        generator = torch.Generator().manual_seed(seed)
        share = 0.7 + 0.25 * seed / _TRIES
        kernels = {}
        for layer, mask in relevant.items():
            filters = torch.rand(len(mask), 1, generator=generator) < share
            filters |= mask.any(1).sum() == 1
            kernels[layer] = mask & filters & (torch.rand(mask.shape, generator=generator) < share)
        kept = subject.effective(kernels, shape)
        dead = any(bool((relevant[layer].any(1) & ~mask.cpu().any(1)).any()) for layer, mask in kept.items())
        if dead and any(bool(mask.any()) for mask in kept.values()):
            return replace(subject.kept(kept, "kernel"), silent=True)
    return None


class _Other:
    """A watch that adds constants as large as the layer's values to dead filters: to every other image, less.

    Args:
        masks: The circuit's.
        size: How large the constants are, in the layer's largest values.
        then: Another watch, told afterwards.
    """

    def __init__(self, masks: Masks, *, size: float = 1.0, then: Watch | None = None) -> None:
        self._kernels, self._size, self._then = masks.kernels, size, then
        self._generator = torch.Generator().manual_seed(0)

    def __call__(self, call: KernelCall, output: Tensor) -> None:
        if call.layer in self._kernels:
            dead = ~self._kernels[call.layer].any(1)
            dead = dead if call.rows is None else dead[call.rows]
            shape = [1] * output.dim()
            shape[call.channel_dim] = -1
            values = (torch.randn(len(dead), generator=self._generator).to(output) * dead).reshape(shape)
            largest = float(output.abs().max()) or 1.0
            output[0::2].add_(values, alpha=self._size * largest)
            output[1::2].sub_(values, alpha=self._size * largest)
        if self._then is not None:
            self._then(call, output)


class _Gates(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Keeps the factors of each product in a first run; in later ones puts back those that are constant gates."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._kept: list[tuple[Tensor, Tensor]] = []
        self._next: int | None = None

    def again(self) -> "_Gates":
        """Begin another run."""
        self._next = 0
        return self

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        packet, kwargs = func.overloadpacket, kwargs or {}
        if packet is _ATEN.glu:
            data, gate = args[0].chunk(2, args[1] if len(args) > 1 else kwargs.get("dim", -1))
            data, gate = self._factors(data, gate.sigmoid(), divides=False)
            return data * gate
        if packet is _ATEN._softmax:  # whose branches' logits may be constants, as gates may
            args = (self._factors(args[0], args[0], divides=True)[1], *args[1:])
        if packet in _PRODUCTS and all(isinstance(x, Tensor) and x.dim() > 1 for x in args[:2]):
            a, b = self._factors(args[0], args[1], divides=packet in (_ATEN.div, _ATEN.div_))
            if packet in (_ATEN.mul_, _ATEN.div_):
                a = args[0].copy_(a)
            args = (a, b, *args[2:])
        return func(*args, **kwargs)

    def _factors(self, a: Tensor, b: Tensor, *, divides: bool) -> tuple[Tensor, Tensor]:
        if self._next is None:
            self._kept.append((a.clone(), b.clone()))
            return a, b
        before = self._kept[self._next]
        self._next += 1
        if divides or _is_gate_of(b, before[1], a):
            return a, _put_back(b, before[1])
        return (_put_back(a, before[0]), b) if _is_gate_of(a, before[0], b) else (a, b)


def _is_gate_of(gate: Tensor, before: Tensor, data: Tensor) -> bool:
    """Tell whether a factor is the gate: the smaller one, or one between 0 and 1, of a sigmoid or softmax."""
    size, other = (math.prod(n for n, step in zip(x.shape, x.stride(), strict=True) if step) for x in (gate, data))
    if size != other:
        return size < other
    within = [bool(((x >= 0) & (x <= 1)).all()) for x in (gate, before, data)]
    return within == [True, True, False]


def _put_back(gate: Tensor, before: Tensor) -> Tensor:
    """Give a gate the values it had where these are the same in all images."""
    return torch.where((before == before[:1]).all(0, keepdim=True), before, gate)
