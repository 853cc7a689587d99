"""A circuit as a small network of its own."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from convcircuits.capture import Network
from convcircuits.circuit import Circuit
from convcircuits.cutting import Cut, cut
from convcircuits.emission import Emitter
from convcircuits.errors import ConvCircuitsError
from convcircuits.finding import check_circuit
from convcircuits.interpreter import CircuitModule
from convcircuits.masking import Masks, Subject
from convcircuits.provenance import describe
from convcircuits.reach import survey, survey_of_unknown_size
from convcircuits.recording import Recording, UnextractableError, record


def extract(
    model: nn.Module,
    circuit: Circuit,
    *,
    input_shape: tuple[int, int, int] | None = None,
    fold: bool = True,
) -> CircuitModule:
    """Make of a circuit a small module that computes the feature's map, and nothing else.

    Dead filters are gone: from weights, from BatchNorms, from residual and concatenated streams. Layers keep their
    names; each holds in its buffers ``filters`` and ``channels`` which of the layer's filters and input channels are
    left. The module computes what ``activations(model, feature, images, circuit=circuit)`` does, which is checked
    here on random images.

    Args:
        model: The model that the circuit belongs to.
        circuit: The circuit.
        input_shape: (C, H, W) of an image; that of the images the circuit was found on if not given.
        fold: Make one layer of a convolution and the BatchNorm that follows it, which is faster. False keeps each
            layer's own weights.

    Returns:
        An ordinary `torch.nn.Module` in eval mode, on the model's device, of weights of its own: images
        (N, C, H, W) -> (N, H, W), or (N,) where the layer is Linear; of several units (N, U, H, W) or (N, U). Images
        of other sizes work where the model's own code does not depend on the size; else the module refuses them.
        ``meta["circuit"]`` says what it was made of.

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
    masks = _masks(subject, circuit, effective=True)
    recording = record(subject, shape)
    kept = cut(recording, masks, _rows(subject))
    if not _alive(kept):
        raise ConvCircuitsError(
            f"No kernel of the circuit lies on a complete path to {circuit.feature}, so its map is 0 everywhere and "
            "there is nothing to extract; prune to a larger density."
        )
    module = _written(subject, recording, [kept], [masks], fold=fold, any_size=_takes_any_size(subject, recording))
    module.meta["circuit"] = _about(circuit, network, shape)
    masked = subject.masks(circuit, shape, effective=True)
    if not _agrees(subject, module, masked) and not _agrees_in_double(model, subject, masked, fold=fold):
        raise ConvCircuitsError(
            f"The module extracted from {network.name} does not compute what the circuit's masked run does; please "
            "report this model. evaluate and activations still work."
        )
    return module


class Sweep:
    """A feature in the full model and in several circuits, run together as one small network.

    What circuits share is computed once, and a small circuit is a small network: the figures are those of masked runs
    at a part of their cost. Where the model cannot be extracted, masked runs do the work.

    Args:
        subject: The feature of the model.
        circuits: Circuits of that feature.
        effective: As for ``evaluate``.

    Attributes:
        subject: The feature of the model.
        kept: For each circuit, layer name -> bool (out, in per group), kernels that it keeps.
    """

    def __init__(self, subject: Subject, circuits: Sequence[Circuit], *, effective: bool) -> None:
        self.subject, self._circuits, self._effective = subject, circuits, effective
        self._masks = [_masks(subject, circuit, effective=effective) for circuit in circuits]
        self.kept = [{layer: mask.cpu() for layer, mask in masks.kernels.items()} for masks in self._masks]
        self._written: dict[tuple[int, ...], _Written | None] = {}
        self._checked: set[tuple[int, ...]] = set()

    def maps(self, images: Tensor) -> list[Tensor]:
        """Give the feature's maps in the full model, then in each circuit: each (N, H, W), (N, U, H, W), ..."""
        shape = tuple(images.shape[1:])
        written = self._network(shape)
        if written is not None:
            full, *others = written.module(images)
            if shape not in self._checked:
                self._checked.add(shape)
                if not self._holds(written, images[:2], [full[:2], *(maps[:2] for maps in others)]):
                    self._written[shape] = written = None
        if written is None:
            masks = [self.subject.masks(circuit, shape, effective=self._effective) for circuit in self._circuits]
            return [self.subject.maps(images), *(self.subject.maps(images, one) for one in masks)]
        found = dict(zip(written.alive, others, strict=True))
        return [full, *(found[n] if n in found else torch.zeros_like(full) for n in range(len(self._masks)))]

    def effective(self, shape: tuple[int, ...]) -> list[dict[str, Tensor]]:
        """Give for each circuit the kernels on a complete path, on images (C, H, W)."""
        written = self._network(shape)
        if written is None or not self._effective:
            masks = [self.subject.masks(circuit, shape, effective=True) for circuit in self._circuits]
            return [{layer: mask.cpu() for layer, mask in one.kernels.items()} for one in masks]
        return written.effective

    def _holds(self, written: "_Written", images: Tensor, maps: Sequence[Tensor]) -> bool:
        """Compare the network with the full model, and the circuit that is cut the most with its masked run.

        The network was written from one run on other images.
        """
        if not _close(maps[0], self.subject.maps(images)):
            return False
        if not written.alive:
            return True
        fewest = min(range(len(written.alive)), key=lambda k: len(self._circuits[written.alive[k]]))
        return _close(maps[1 + fewest], self.subject.maps(images, self._masks[written.alive[fewest]]))

    def _network(self, shape: tuple[int, ...]) -> "_Written | None":
        """Write the network for images of a size; None where the model cannot be extracted."""
        if shape not in self._written:
            try:
                recording = record(self.subject, shape)
            except UnextractableError:
                self._written[shape] = None
            else:
                self._written[shape] = self._write(recording)
        return self._written[shape]

    def _write(self, recording: Recording) -> "_Written":
        rows = _rows(self.subject)
        cuts = [cut(recording, masks, rows) for masks in self._masks]
        alive = [n for n, c in enumerate(cuts) if _alive(c)]
        module = _written(
            self.subject,
            recording,
            [cut(recording, None, rows), *(cuts[n] for n in alive)],
            [None, *(self._masks[n] for n in alive)],
            fold=True,
            always_tuple=True,
        )
        effective = [c.effective(recording, kept) for kept, c in zip(self.kept, cuts, strict=True)]
        return _Written(module, alive, effective)


@dataclass(frozen=True)
class _Written:
    """A sweep's network for one size of images, the circuits in it, and all circuits' effective kernels."""

    module: nn.Module
    alive: list[int]
    effective: list[dict[str, Tensor]]


def _masks(subject: Subject, circuit: Circuit, *, effective: bool) -> Masks:
    """Give a circuit's masks without a probe of what is effective: the cut finds that anyway."""
    return replace(subject.masks(circuit, (), effective=False), silent=effective)


def _written(
    subject: Subject,
    recording: Recording,
    cuts: Sequence[Cut],
    masks: Sequence[Masks | None],
    *,
    fold: bool,
    any_size: bool = True,
    always_tuple: bool = False,
) -> CircuitModule:
    emitter = Emitter(recording, cuts, masks)
    outputs = [_feature(emitter, n, recording, subject) for n in range(len(cuts))]
    return emitter.writer.finish(outputs, fold=fold, any_size=any_size, always_tuple=always_tuple)


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
        maps = emitter.writer.call(torch.index_select, whole, 1, emitter.writer.constant("rows", rows))
    if isinstance(subject.feature.unit, tuple):
        return maps
    coefficients = subject.survey.coefficients.to(subject.network.dtype)
    if not bool((coefficients == 1).all()):
        weights = coefficients.reshape(-1, *[1] * (len(last.shape) - 1))
        maps = emitter.writer.call(torch.mul, maps, emitter.writer.constant("coefficients", weights))
    return emitter.writer.call(torch.select, maps, 1, 0) if len(rows) == 1 else emitter.writer.call(torch.sum, maps, 1)


def _takes_any_size(subject: Subject, recording: Recording) -> bool:
    """Tell whether the model does the same with images of other sizes, of all those that it takes.

    Padding that is computed from the size shows at sizes of other remainders by powers of two, the strides' products.
    """
    channels, height, width = recording.input_shape
    for step in (1, 2, 4, 8, 16, 64):
        step = -step if min(height, width) > 96 else step
        try:
            other = record(subject, (channels, height + step, width + step))
        except ConvCircuitsError:
            if abs(step) == 64:
                return False
            continue
        if other.fixed() != recording.fixed():
            return False
    return True


def _about(circuit: Circuit, network: Network, shape: tuple[int, ...]) -> dict[str, Any]:
    """Say what a module was made of, as JSON values."""
    return {
        "feature": str(circuit.feature),
        "model": network.name,
        "weights": circuit.provenance["weights"],
        "granularity": circuit.granularity,
        "units": len(circuit),
        "relevant": circuit.relevant,
        "input_shape": list(shape),
    }


def _close(got: Tensor, expected: Tensor) -> bool:
    """Tell whether two runs of one computation agree, up to what the order of sums can do."""
    share = 1e-10 if expected.dtype is torch.float64 else 1000 * torch.finfo(expected.dtype).eps
    allowed = share * float(expected.abs().max())
    return bool(((got - expected).abs() <= allowed).all())


def _agrees(subject: Subject, module: nn.Module, masks: Masks) -> bool:
    """Compare a module with the masked run on three random images."""
    network, shape = subject.network, subject.survey.input_shape
    images = torch.randn(3, *shape, generator=torch.Generator().manual_seed(1)).to(network.device, network.dtype)
    with torch.no_grad():
        return _close(module(images), subject.maps(images, masks))


def _agrees_in_double(model: nn.Module, subject: Subject, masks: Masks, *, fold: bool) -> bool:
    """Tell a wrong module from a network in which rounding grows: in float64 the second agrees."""
    if subject.network.dtype == torch.float64:
        return False
    shape = subject.survey.input_shape
    network = Network(copy.deepcopy(model).double())
    double = Subject(network, subject.feature, survey(network, subject.feature, shape))
    recording, masks = record(double, shape), masks.to(network.device, network.dtype)
    kept = cut(recording, masks, _rows(double))
    return _agrees(double, _written(double, recording, [kept], [masks], fold=fold), masks)
