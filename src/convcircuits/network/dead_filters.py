"""Check that the values of dead filters do not matter, by running a circuit with other constants in its dead filters.

There is one intended exception: a dead gate, by which live maps are multiplied, keeps its constant value.
"""

from dataclasses import replace

import torch
from torch import Tensor

from convcircuits.errors import ConvCircuitsError
from convcircuits.network.agreement import Watch, agreement, parting
from convcircuits.network.calls import KernelCall
from convcircuits.network.masking import Masks, Subject

_TRIES = 8  # random circuits to try until one has dead and live filters


class LeakError(ConvCircuitsError):
    """The values of dead filters change a circuit's map.

    Attributes:
        error: The largest change, relative to the largest value.
        allowed: The largest change that rounding explains.
        where: The first layer whose live filters change.
    """

    def __init__(self, error: float, allowed: float, where: str) -> None:
        super().__init__(f"the values of dead filters change the map of a circuit at {where}")
        self.error, self.allowed, self.where = error, allowed, where


def change_by_dead_filters(subject: Subject, images: Tensor) -> tuple[float | None, str]:
    """Measure how the map of a random circuit changes with other values in its dead filters.

    Returns:
        The largest change, relative to the largest value, and ""; or None and the reason why it was not measured.

    Raises:
        LeakError: If the map changes by more than rounding.
    """
    masks = circuit_with_dead_filters(subject, tuple(images.shape[1:]))
    if masks is None:
        return None, "the values of dead filters, as no random circuit had both dead and live filters."
    expected = subject.maps(images, masks)
    if not bool(expected.isfinite().all()):
        return None, "the values of dead filters, as the map of a random circuit contains NaN or Inf on these images."
    unread = subject.unread_filters(masks, images)

    def other(watch: Watch | None = None) -> Tensor:
        return subject.maps(images, masks, _Other(unread, then=watch))

    error, allowed = agreement(subject, masks, images, expected, other())
    if error > allowed:
        where = parting(lambda watch: subject.maps(images, masks, watch), other, masks.kernels, allowed)
        raise LeakError(error, allowed, where)
    return error, ""


def circuit_with_dead_filters(subject: Subject, shape: tuple[int, ...]) -> Masks | None:
    """Draw a circuit of about half of the kernels that has dead filters and a path to the feature.

    A layer's only filter is always kept, and later tries keep more. Returns None if no try succeeds.
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
            return replace(subject.kept(kept, "kernel"), effective=True)
    return None


class _Other:
    """A watch that adds constants as large as a call's values to filters that nothing may read.

    Args:
        unread: For each kernel call in order, the filters to change, (out,) bool.
        then: Another watch, called afterwards.
    """

    def __init__(self, unread: list[Tensor], then: Watch | None = None) -> None:
        self._unread, self._then = iter(unread), then
        self._generator = torch.Generator().manual_seed(0)

    def __call__(self, call: KernelCall, output: Tensor) -> None:
        unread = next(self._unread)
        unread = unread if call.rows is None else unread[call.rows.cpu()]
        shape = [1] * output.dim()
        shape[call.channel_dim] = -1
        values = (torch.randn(len(unread), generator=self._generator) * unread).to(output).reshape(shape)
        output.add_(values, alpha=float(output.abs().max()) or 1.0)
        if self._then is not None:
            self._then(call, output)
