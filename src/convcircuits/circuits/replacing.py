"""Put a circuit's map back into the model, in place of the feature's own, and see what the model answers."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from jaxtyping import Float
from torch import Tensor, nn

from convcircuits.circuits.evaluation import activations
from convcircuits.errors import ConvCircuitsError
from convcircuits.network.agreement import IMAGES
from convcircuits.network.batches import Batches, Images, Progress, check_progress
from convcircuits.network.capture import Network
from convcircuits.network.laws import checked
from convcircuits.network.masking import Subject
from convcircuits.network.surroundings import outside_autocast
from convcircuits.values.circuit import Circuit
from convcircuits.values.feature import Feature


@dataclass(frozen=True)
class Change:
    """How a model's answers change when the maps of a feature are replaced.

    Attributes:
        kl: Mean over images of KL(p || q) = sum_k p_k log(p_k / q_k), with p the model's class probabilities and q
            those of the changed model; in nats. If the model returns probabilities, those of 0 count as the smallest
            number of their dtype, and they are scaled to a sum of 1.
        top1: Share of the images on which the most probable class stays the same.
    """

    kl: float
    top1: float


@dataclass(frozen=True)
class Replaced:
    """A model's answers with the maps of a feature replaced, at all positions.

    Attributes:
        images: Number of images.
        classes: Number of classes.
        by_circuit: Replaced by the maps of the circuit.
        by_average_map: By the average map of the images that the circuit was found on: what needs no circuit.
        by_zero: By 0, which is what the feature is worth to the model at all.
    """

    images: int
    classes: int
    by_circuit: Change
    by_average_map: Change
    by_zero: Change


@outside_autocast
def replaced(
    model: nn.Module,
    circuit: Circuit,
    images: Images,
    *,
    fit: Images,
    batch_size: int = 16,
    progress: Progress | None = None,
) -> Replaced:
    """Replace the maps of a circuit's feature in the whole model, and compare the class probabilities.

    Args:
        model: The model that the circuit belongs to. It returns logits or probabilities, (N, classes).
        circuit: The circuit, of one unit or several units. Its maps replace theirs at all positions.
        images: Held-out images, as for ``score``.
        fit: The images that the circuit was found on, for the average map.
        batch_size: Maximum number of images that run at once.
        progress: Called with the number of images done and their total (or None).

    Raises:
        ConvCircuitsError: If the model returns something else than one vector for each image, the feature is a
            direction, the circuit belongs to other weights, or images do not fit the model or ``fit``.
    """
    check_progress(progress)
    if isinstance(circuit.feature.unit, Tensor):
        raise ConvCircuitsError("A direction has no map of its own that could be replaced; give a circuit of a unit.")
    network = Network(model)
    batches = Batches(images, device=network.device, dtype=network.dtype, batch_size=batch_size)
    first = batches.first(IMAGES)
    shape = tuple(first.shape[1:])
    subject = Subject.open(network, circuit.feature, shape)
    subject.check(circuit)
    checked(subject, first)
    masks = subject.masks(circuit, shape, effective=True)
    answer = _answer(network, circuit.feature, first)  # an error comes before any work
    tolerance = max(1e-4, 4 * torch.finfo(answer.dtype).eps)
    certain = bool((answer >= 0).all()) and bool(((answer.double().sum(1) - 1).abs() <= tolerance).all())
    logarithm = _of_probabilities if certain else _of_logits
    average = activations(model, circuit.feature, fit, batch_size=batch_size).mean(0).to(network.device)
    sums, count, classes = torch.zeros(3, 2, dtype=torch.float64), 0, 0
    for batch in batches:
        with torch.no_grad():
            own = logarithm(_answer(network, circuit.feature, batch))
            maps = subject.maps(batch, masks)
            if maps.shape[1:] != average.shape:
                raise ConvCircuitsError(
                    f"The maps of {circuit.feature} are of shape {tuple(maps.shape[1:])}, but {tuple(average.shape)} "
                    "on the images that the average map is of; give fit of the size of images."
                )
            others = (maps, average.expand_as(maps), torch.zeros_like(maps))
            for n, other in enumerate(others):
                found = logarithm(_answer(network, circuit.feature, batch, other))
                terms = torch.where(own > -torch.inf, own.exp() * (own - found), 0)
                sums[n, 0] += terms.sum().cpu()
                sums[n, 1] += (own.argmax(1) == found.argmax(1)).sum().cpu()
        count, classes = count + len(batch), own.shape[1]
        if progress is not None:
            progress(count, batches.expected)
    changes = [Change(*row) for row in (sums / count).tolist()]
    return Replaced(count, classes, *changes)


def classes_of(model: nn.Module, images: Float[Tensor, "n c h w"]) -> int | None:
    """Return the number of classes of which a model returns logits or probabilities, None if it returns otherwise."""
    network, answers = Network(model), list[Any]()
    with torch.no_grad():
        network.forward(images, lambda call: call.compute(), lambda module, output: answers.append(output))
    answer = answers[-1]  # the whole model is left last
    return answer.shape[1] if _is_of_classes(answer, len(images)) else None


def _is_of_classes(answer: Any, images: int) -> TypeGuard[Tensor]:
    """Return whether an answer has one number for each class and image."""
    if not isinstance(answer, Tensor) or not answer.is_floating_point() or answer.dim() != 2:
        return False
    return answer.shape[1] >= 2 and len(answer) == images


def _of_logits(answer: Float[Tensor, "n classes"]) -> Float[Tensor, "n classes"]:
    """Return the logarithms of class probabilities, float64."""
    return answer.double().log_softmax(1)


def _of_probabilities(answer: Float[Tensor, "n classes"]) -> Float[Tensor, "n classes"]:
    """Return the logarithms of class probabilities, float64; one that is rounded to 0 is no impossible class."""
    info = torch.finfo(answer.dtype)
    return answer.double().clamp_min(info.tiny * info.eps).log().log_softmax(1)


def _answer(
    network: Network, feature: Feature, images: Tensor, maps: Tensor | None = None
) -> Float[Tensor, "n classes"]:
    """Run the whole model, with the feature's units replaced by maps if any are given."""
    calls, answers = itertools.count(), list[Any]()
    used = False

    def replace(_module: nn.Module, _args: Any, output: Any) -> Any:
        nonlocal used
        if next(calls) != (feature.call or 0) or maps is None:
            return output
        used, changed = True, output.clone()
        rows, _ = feature.rows(output.shape[1])
        changed[:, rows] = (maps if isinstance(feature.unit, tuple) else maps[:, None]).to(output)
        return changed

    def on_exit(module: nn.Module, output: Any) -> None:
        if module is network.module:
            answers.append(output)

    compute: Callable[[Any], Tensor] = lambda call: call.compute()  # noqa: E731
    hook = network.layer(feature.layer).register_forward_hook(replace)
    try:
        with torch.no_grad():
            network.forward(images, compute, on_exit)
    except (RuntimeError, TypeError, IndexError) as error:
        raise ConvCircuitsError(
            f"{network.name} cannot run as a whole on images of shape {tuple(images.shape[1:])}: {error}"
        ) from error
    finally:
        hook.remove()
    if maps is not None and not used:
        raise ConvCircuitsError(f"{network.name} calls forward of {feature.layer} by itself, so it cannot be replaced.")
    (answer,) = answers or [None]
    if not _is_of_classes(answer, len(images)):
        what = f"a tensor of shape {tuple(answer.shape)}" if isinstance(answer, Tensor) else type(answer).__name__
        raise ConvCircuitsError(
            f"{network.name} returns {what} for {len(images)} images, which are no logits of classes, (N, classes), "
            "so there are no answers to compare."
        )
    return answer
