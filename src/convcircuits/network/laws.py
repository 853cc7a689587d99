"""Laws on which all results rest, checked on the caller's model and images before the first result is returned.

A model run twice, in a small and a larger batch, computes the same map for each image. The circuit of all relevant
kernels computes the model's map. The values of dead filters do not matter to a circuit. ``extraction`` adds one more: a
module computes the same map as the circuit's masked run.
"""

import types
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace
from threading import Lock
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from convcircuits.errors import ConvCircuitsError
from convcircuits.network.agreement import IMAGES, Watch, agreement, difference, parting, random_images, shown, units
from convcircuits.network.capture import Network
from convcircuits.network.dead_filters import LeakError, change_by_dead_filters
from convcircuits.network.masking import Subject
from convcircuits.network.surroundings import outside_autocast
from convcircuits.values.feature import Feature

_CACHED = 64
_TOGETHER = 5
"""Batch size of the second run of the model: odd, and larger than that of recordings and other laws."""

_passed: OrderedDict[tuple[Any, ...], dict[str, Any]] = OrderedDict()
_lock = Lock()


def checked(subject: Subject, images: Tensor | None = None) -> dict[str, Any]:
    """Check the laws, once per process for the same weights, feature and image shape.

    Args:
        subject: The model, opened for the feature.
        images: The caller's images, of which the first two are used; random images if None.

    Returns:
        The provenance of the subject with an entry ``"laws"``, which holds the images used and, for each law, the
        largest error relative to the largest value of the map. The error is None for a law that could not be checked,
        and ``"unchecked"`` gives the reason.

    Raises:
        ConvCircuitsError: If the model breaks a law.
    """
    shape = subject.survey.input_shape if images is None else tuple(images.shape[1:])
    network = subject.network
    key = (subject.about["weights"], subject.feature, shape, network.dtype, network.device, _settings(network))
    with _lock:
        found = _passed.get(key)
    if found is None:
        given = random_images(subject, shape) if images is None else images[:IMAGES].to(network.device, network.dtype)
        with torch.no_grad():
            found, complete = _check(subject, given)
        found = {"images": f"{len(given)} {'random' if images is None else 'given'}", **found}
        if complete:
            with _lock:
                _passed[key] = found
                while len(_passed) > _CACHED:
                    _passed.popitem(last=False)
    return {**subject.about, "laws": dict(found)}


@outside_autocast
def relevant_elements(
    model: nn.Module, feature: Feature, granularity: str, input_shape: Any
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the relevant elements of a model, found without images, and their provenance.

    Raises:
        ConvCircuitsError: If the feature or every input shape does not fit the model, or the model breaks a law.
    """
    subject = Subject.open(model, feature, input_shape)
    return subject.relevant(granularity, input_shape), checked(subject)


def sentence(laws: Mapping[str, Any]) -> str:
    """Return a sentence on the laws that were checked."""
    error = max((value for value in laws.values() if isinstance(value, float)), default=0.0)
    said = (
        f"Checked on {laws['images']} images: a second run of the model in a larger batch, the circuit of all "
        "relevant kernels, and other values in dead filters "
        + (f"change the map by at most {error:.1g} of its largest value." if error else "do not change the map at all.")
    )
    return said if "unchecked" not in laws else f"{said} Not checked: {laws['unchecked']}"


def _check(subject: Subject, images: Tensor) -> tuple[dict[str, Any], bool]:
    """Return the errors by law, and whether all that applies to this model was checked."""
    model = subject.maps(images)
    if not bool(model.isfinite().all()):
        nothing = dict.fromkeys(("repeat", "all_relevant", "dead_filters"))
        return {**nothing, "unchecked": "the model's map contains NaN or Inf on these images."}, False
    found: dict[str, Any] = {
        "repeat": _repeat(subject, images, model),
        "all_relevant": _all_relevant(subject, images, model),
    }
    found["dead_filters"], unchecked = _dead_filters(subject, images)
    return (found | {"unchecked": unchecked} if unchecked else found), True


def _repeat(subject: Subject, images: Tensor, model: Tensor) -> float:
    """Check that neither a second run nor a larger batch of the same images changes the maps."""
    which = torch.arange(_TOGETHER) % len(images)
    together, expected = images[which], model[which]
    got = subject.maps(together)
    error, _ = difference(got, expected)
    if error <= units(model.dtype):
        return shown(error)

    def run(watch: Watch) -> Tensor:
        return subject.maps(images, watch=watch)

    again, _ = difference(subject.maps(images), model)
    if again > units(model.dtype):
        raise ConvCircuitsError(
            f"{subject.network.name} computes different maps of {subject.feature} for the same images (by {again:.2g} "
            f"of the largest value), first at {parting(run, run, None, 0.0)}: "
            f"{_draws(subject, images) or 'it draws random numbers outside torch, or counts its own runs'}. Make "
            "randomness depend on self.training, as nn.Dropout does, so that eval mode turns it off."
        )
    error, allowed = agreement(subject, None, together, got, expected)
    if error > allowed:
        raise ConvCircuitsError(
            f"{subject.network.name} computes another map of {subject.feature} for an image in a batch of {_TOGETHER} "
            f"than in one of {len(images)} (by {error:.2g} of the largest value; rounding explains {allowed:.1g}): "
            "the map depends on the batch size or on the position in the batch, so it is not a feature of an image. "
            "Choose a feature before that."
        )
    return shown(error)


def _all_relevant(subject: Subject, images: Tensor, model: Tensor) -> float:
    masks = replace(subject.kept(subject.survey.kernels, "kernel"), effective=True)
    error, allowed = agreement(subject, masks, images, subject.maps(images, masks), model)
    if error > allowed:
        where = parting(
            lambda watch: subject.maps(images, watch=watch),
            lambda watch: subject.maps(images, masks, watch),
            masks.kernels,
            allowed,
        )
        what = "the circuit of all relevant kernels does not compute the model's map"
        raise _broken(subject, what, error, allowed, where)
    return shown(error)


def _dead_filters(subject: Subject, images: Tensor) -> tuple[float | None, str]:
    """Return the error and "", or None and the reason why it was not measured."""
    try:
        error, unchecked = change_by_dead_filters(subject, images)
    except LeakError as leak:
        what = "the values of dead filters change the map of a circuit"
        raise _broken(subject, what, leak.error, leak.allowed, leak.where) from leak
    return None if error is None else shown(error), unchecked


def _broken(subject: Subject, what: str, error: float, allowed: float, where: str) -> ConvCircuitsError:
    return ConvCircuitsError(
        f"{subject.network.name} is not analyzed correctly, so there is no result: {what} of {subject.feature}. The "
        f"maps differ by {error:.2g} of the largest value (rounding explains {allowed:.1g}), first at {where}. "
        "Choose a feature before it, and please report this model."
    )


def _draws(subject: Subject, images: Tensor) -> str:
    """Describe the first module and operation that draw random numbers; empty if torch sees none."""
    draws = _Draws(subject.network)
    with draws:
        subject.maps(images)
    return draws.found


class _Draws(TorchDispatchMode):  # type: ignore[no-untyped-call]
    found = ""

    def __init__(self, network: Network) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._network = network

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.nondeterministic_seeded in func.tags and not self.found:
            where = self._network.running() or self._network.name
            self.found = f"{where} draws random numbers ({func.overloadpacket.__name__})"
        return func(*args, **(kwargs or {}))


def _settings(network: Network) -> tuple[Any, ...]:
    """Return everything else that determines a run of a model: the types and plain attributes of its modules."""
    return tuple(
        (name, type(module), tuple((key, value) for key, value in vars(module).items() if _is_plain(value)))
        for name, module in network.names.items()
    )


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_plain, value))
    return isinstance(value, bool | int | float | str | types.FunctionType | types.BuiltinFunctionType | None)
