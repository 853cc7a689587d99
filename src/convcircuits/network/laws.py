"""Laws that results rest on, checked on the caller's own model and images before a first result is given out.

A model run twice, on few images and on more, gives each the same map. The circuit of all relevant kernels is the model.
What a dead filter holds does not matter to a circuit. ``extraction`` adds: a module computes what the circuit's masked
run does.
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
"""Images that the model is run on once more, at once: more than a recording or another law runs, and an odd number."""

_passed: OrderedDict[tuple[Any, ...], dict[str, Any]] = OrderedDict()
_lock = Lock()


def checked(subject: Subject, images: Tensor | None = None) -> dict[str, Any]:
    """Check the laws, once per process for the same weights, feature and shape of images.

    Args:
        subject: The feature of the model.
        images: The caller's images, of which the first two are run; random ones where there are none.

    Returns:
        What the subject says about itself, with an entry ``"laws"``: which images were run, and by law the largest
        error found, relative to the largest value of the map. None stands for a law that could not be checked, and
        ``"unchecked"`` says why.

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
    """Return the relevant elements of a model without images, and where they come from.

    Raises:
        ConvCircuitsError: If the feature does not fit the model, no input shape does, or the model breaks a law.
    """
    subject = Subject.open(model, feature, input_shape)
    return subject.relevant(granularity, input_shape), checked(subject)


def sentence(laws: Mapping[str, Any]) -> str:
    """Return a sentence on what was checked."""
    error = max((value for value in laws.values() if isinstance(value, float)), default=0.0)
    said = (
        f"Checked on {laws['images']} images: a second run of the model in a larger batch, the circuit of all "
        "relevant kernels and other values in dead filters "
        + (f"change the map by at most {error:.1g} of its largest value." if error else "do not change the map at all.")
    )
    return said if "unchecked" not in laws else f"{said} Not checked: {laws['unchecked']}"


def _check(subject: Subject, images: Tensor) -> tuple[dict[str, Any], bool]:
    """Return the errors by law, and whether that is all there is to check."""
    model = subject.maps(images)
    if not bool(model.isfinite().all()):
        nothing = dict.fromkeys(("repeat", "all_relevant", "dead_filters"))
        return {**nothing, "unchecked": "the model's map holds NaN or Inf on these images."}, False
    found: dict[str, Any] = {
        "repeat": _repeat(subject, images, model),
        "all_relevant": _all_relevant(subject, images, model),
    }
    found["dead_filters"], unchecked = _dead_filters(subject, images)
    return (found | {"unchecked": unchecked} if unchecked else found), True


def _repeat(subject: Subject, images: Tensor, model: Tensor) -> float:
    """Run the model again, on the same images repeated: neither the run nor what stands beside an image may matter."""
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
            f"{subject.network.name} gives different maps of {subject.feature} for the same images (by {again:.2g} of "
            f"the largest value), first at {parting(run, run, None, 0.0)}: "
            f"{_draws(subject, images) or 'it draws numbers that torch does not see, or counts its own runs'}. Make "
            "what is random depend on self.training, as nn.Dropout does, so that eval mode turns it off."
        )
    error, allowed = agreement(subject, None, together, got, expected)
    if error > allowed:
        raise ConvCircuitsError(
            f"{subject.network.name} gives another map of {subject.feature} for an image in a batch of {_TOGETHER} "
            f"than in one of {len(images)} (by {error:.2g} of the largest value; rounding explains {allowed:.1g}): "
            "what it computes depends on how many images there are, or on an image's place among them, so it is no "
            "feature of an image. Choose a feature before that."
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
        what = "the circuit of all relevant kernels does not give the model's map"
        raise _broken(subject, what, error, allowed, where)
    return shown(error)


def _dead_filters(subject: Subject, images: Tensor) -> tuple[float | None, str]:
    """Return the error, or None and why there is none."""
    try:
        error, unchecked = change_by_dead_filters(subject, images)
    except LeakError as leak:
        what = "what dead filters hold changes the map of a circuit"
        raise _broken(subject, what, leak.error, leak.allowed, leak.where) from leak
    return None if error is None else shown(error), unchecked


def _broken(subject: Subject, what: str, error: float, allowed: float, where: str) -> ConvCircuitsError:
    return ConvCircuitsError(
        f"{subject.network.name} is not understood, so no result is given: {what} of {subject.feature}. They differ by "
        f"{error:.2g} of the largest value (rounding explains {allowed:.1g}), first at {where}. Choose a feature "
        "before it, and please report this model."
    )


def _draws(subject: Subject, images: Tensor) -> str:
    """Name the first module that draws random numbers, and the operation; empty where torch sees none."""
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
    """List what else decides how a model runs: its modules' types and their plain attributes."""
    return tuple(
        (name, type(module), tuple((key, value) for key, value in vars(module).items() if _is_plain(value)))
        for name, module in network.names.items()
    )


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_plain, value))
    return isinstance(value, bool | int | float | str | types.FunctionType | types.BuiltinFunctionType | None)
