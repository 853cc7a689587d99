"""A circuit as a small network of its own."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, fx, nn

from convcircuits.capture import Network
from convcircuits.circuit import Circuit
from convcircuits.cutting import Cut, cut
from convcircuits.emission import Emitter
from convcircuits.errors import ConvCircuitsError
from convcircuits.finding import check_circuit
from convcircuits.masking import Masks, Subject
from convcircuits.provenance import describe
from convcircuits.reach import survey_of_unknown_size
from convcircuits.recording import Recording, UnextractableError, record


def extract(model: nn.Module, circuit: Circuit, *, input_shape: tuple[int, int, int] | None = None) -> fx.GraphModule:
    """Make of a circuit a small module that computes the feature's map, and nothing else.

    Dead filters are gone: from weights, from BatchNorms, from residual and concatenated streams. Layers keep their
    names; each holds in its buffers ``filters`` and ``channels`` which of the layer's filters and input channels are
    left. The module computes what ``activations(model, feature, images, circuit=circuit)`` does, which is checked
    here on random images.

    Args:
        model: The model that the circuit belongs to.
        circuit: The circuit.
        input_shape: (C, H, W) of an image; that of the images the circuit was found on if not given.

    Returns:
        An ordinary `torch.fx.GraphModule` in eval mode, on the model's device, of weights of its own: images
        (N, C, H, W) -> (N, H, W), or (N,) where the layer is Linear; of several units (N, U, H, W) or (N, U).

    Raises:
        ConvCircuitsError: If the circuit is of other weights, no kernel of it lies on a complete path, or the model
            decides by the image's values what to compute.
    """
    if not isinstance(circuit, Circuit):
        raise ConvCircuitsError(f"Expected a Circuit, got {type(circuit).__name__}.")
    network = Network(model)
    shape = input_shape or circuit.provenance.get("input_shape")
    found = survey_of_unknown_size(network, circuit.feature, None if shape is None else tuple(shape))
    subject = Subject(network, circuit.feature, found)
    check_circuit(circuit, circuit.feature, describe(network, circuit.feature, found))
    shape = found.input_shape
    masks = subject.masks(circuit, shape, effective=True)
    recording = record(subject, shape)
    kept = cut(recording, masks, _rows(subject))
    if not _alive(kept):
        raise ConvCircuitsError(
            f"No kernel of the circuit lies on a complete path to {circuit.feature}, so its map is 0 everywhere and "
            "there is nothing to extract; prune to a larger density."
        )
    module = _written(subject, recording, [kept], [masks])
    _check(subject, module, masks, shape)
    return module


class Sweep:
    """A feature in the full model and in several circuits, run together as one small network.

    What circuits share is computed once, and a small circuit is a small network: the figures are those of masked runs
    at a part of their cost. Where the model cannot be extracted, masked runs do the work.

    Args:
        subject: The feature of the model.
        masks: The circuits, as ``Subject.masks`` gives them.
    """

    def __init__(self, subject: Subject, masks: Sequence[Masks]) -> None:
        self._subject, self._masks = subject, masks
        self._written: dict[tuple[int, ...], tuple[nn.Module, list[int]] | None] = {}

    def maps(self, images: Tensor) -> list[Tensor]:
        """Give the feature's maps in the full model, then in each circuit: each (N, H, W), (N, U, H, W), ..."""
        shape = tuple(images.shape[1:])
        if shape not in self._written:
            self._written[shape] = self._write(shape)
        written = self._written[shape]
        if written is None:
            return [self._subject.maps(images), *(self._subject.maps(images, masks) for masks in self._masks)]
        module, alive = written
        maps = module(images)
        full, *others = maps if isinstance(maps, tuple) else (maps,)
        found = dict(zip(alive, others, strict=True))
        return [full, *(found[n] if n in found else torch.zeros_like(full) for n in range(len(self._masks)))]

    def _write(self, shape: tuple[int, ...]) -> tuple[nn.Module, list[int]] | None:
        """Write the network for images of a size, with the numbers of the circuits that are not dead."""
        try:
            recording = record(self._subject, shape)
        except UnextractableError:
            return None
        rows = _rows(self._subject)
        cuts = [cut(recording, masks, rows) for masks in self._masks]
        alive = [n for n, c in enumerate(cuts) if _alive(c)]
        full = cut(recording, None, rows)
        return _written(
            self._subject, recording, [full, *(cuts[n] for n in alive)], [None, *(self._masks[n] for n in alive)]
        ), alive


def _written(
    subject: Subject, recording: Recording, cuts: Sequence[Cut], masks: Sequence[Masks | None]
) -> fx.GraphModule:
    def finish(emitter: Emitter, n: int) -> fx.Node:
        return _feature(emitter, n, recording, subject)

    return Emitter(recording, cuts, masks).emit(finish)


def _rows(subject: Subject) -> Tensor | None:
    return None if subject.survey.direct else subject.survey.rows


def _alive(c: Cut) -> bool:
    return bool(c.need[-1].any())


def _feature(emitter: Emitter, n: int, recording: Recording, subject: Subject) -> fx.Node:
    """Write the feature's map: the rows it reads of the layer's output, weighted by its coefficients."""
    last, rows = recording.values[-1], subject.survey.rows
    if last.axis == 0:
        at = torch.arange(len(rows)) if subject.survey.direct else rows
        maps = emitter.take(n, last.number, at, silent=True)
    else:
        whole = emitter.whole(n, last.number, silent=True)
        maps = emitter.call(torch.index_select, whole, 1, emitter.constant("rows", rows))
    if isinstance(subject.feature.unit, tuple):
        return maps
    coefficients = subject.survey.coefficients.to(subject.network.dtype)
    if not bool((coefficients == 1).all()):
        weights = coefficients.reshape(-1, *[1] * (len(last.shape) - 1))
        maps = emitter.call(torch.mul, maps, emitter.constant("coefficients", weights))
    return emitter.call(torch.select, maps, 1, 0) if len(rows) == 1 else emitter.call(torch.sum, maps, 1)


def _check(subject: Subject, module: nn.Module, masks: Masks, shape: tuple[int, ...]) -> None:
    """Compare the module with the masked run on three random images."""
    generator = torch.Generator().manual_seed(1)
    network = subject.network
    images = torch.randn(3, *shape, generator=generator).to(network.device, network.dtype)
    with torch.no_grad():
        expected, got = subject.maps(images, masks), module(images)
    eps = torch.finfo(network.dtype).eps
    worst = float((got - expected).abs().max() / expected.abs().max().clamp_min(torch.finfo(network.dtype).tiny))
    if not math.isfinite(worst) or worst > 1000 * eps:
        raise ConvCircuitsError(
            f"The module extracted from {network.name} differs from the circuit's masked run by {worst:.1e} of its "
            "largest value; please report this model. evaluate and activations still work."
        )
