"""Turn circuits into small networks: one module to keep, or a sweep of several circuits at once."""

import copy
import itertools
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call

from convcircuits.compiler.cutting import Cut, cut
from convcircuits.compiler.emission import Emitter
from convcircuits.compiler.interpreter import CircuitModule, with_outputs
from convcircuits.compiler.layout import Layout, UnextractableError, layout_of, takes_any_size
from convcircuits.compiler.sparse import SparseConv2d, is_worth_it
from convcircuits.errors import ConvCircuitsError
from convcircuits.network.agreement import IMAGES, agreement, difference, parting_of_module, random_images, shown
from convcircuits.network.batches import Progress, check_progress
from convcircuits.network.calls import KernelCall
from convcircuits.network.capture import Network
from convcircuits.network.laws import checked
from convcircuits.network.masking import Masks, Subject
from convcircuits.network.surroundings import outside_autocast
from convcircuits.values.circuit import Circuit
from convcircuits.values.tables import count_kept

_AT_ONCE = 1 << 24
"""Bytes of the largest map of the images that a CPU's thread runs at once: larger ones are slow to allocate."""

_HARMLESS = 1e-3
"""Up to this share of the largest value, a network's own rounding changes no figure in the digits that are shown."""


@outside_autocast
def extract(
    model: nn.Module,
    circuit: Circuit,
    *,
    input_shape: tuple[int, int, int] | None = None,
    fold: bool = True,
    progress: Progress | None = None,
) -> CircuitModule:
    """Turn a circuit into a small module that computes the feature's map, and nothing else.

    Dead filters are removed: from weights, BatchNorms, and residual and concatenated streams. Layers keep their names,
    and their buffers ``filters`` and ``channels`` hold the indices of the remaining filters and input channels. The
    module computes the same as ``activations(model, feature, images, circuit=circuit)``, which is checked on random
    images before it is returned.

    Args:
        model: The model that the circuit belongs to.
        circuit: The circuit.
        input_shape: (C, H, W) of an image; that of the images on which the circuit was found if None.
        fold: Whether to fold BatchNorms into the convolutions before them, which is faster. False keeps the weights of
            each layer as they are.
        progress: Called with the steps done and the total: the survey of the model, the cut, the module, its check.

    Returns:
        An ordinary ``torch.nn.Module`` in eval mode, on the model's device, with its own weights: images
        (N, C, H, W) -> (N, H, W), or (N,) for a Linear layer; for several units (N, U, H, W) or (N, U). Images of other
        sizes work unless the model's own code depends on the size; then the module raises an error for them.
        ``meta["circuit"]`` describes the circuit.

    Raises:
        ConvCircuitsError: If the circuit belongs to other weights, if no kernel of it lies on a complete path, or if
            the model cannot be written as a module, for instance because its operations depend on the images' values.

    Examples:
        >>> small = cc.extract(model, circuit)
        >>> torch.allclose(small(images), cc.activations(model, feature, images, circuit=circuit), atol=1e-5)
        True
    """
    if not isinstance(circuit, Circuit):
        raise ConvCircuitsError(f"Expected a Circuit, got {type(circuit).__name__}.")
    check_progress(progress)
    subject = Subject.open(model, circuit.feature, input_shape or circuit.provenance.get("input_shape"))
    subject.check(circuit)
    done = _steps(progress)
    laws = checked(subject)["laws"]
    done()
    shape = subject.survey.input_shape
    masks = _masks(subject, circuit, effective=True)
    with _writing(subject):
        layout = layout_of(subject, shape)
        kept = cut(layout, masks, subject.survey.rows)
    if not kept.alive:
        raise ConvCircuitsError(
            f"No kernel of the circuit lies on a complete path to {circuit.feature}, so its map is 0 everywhere and "
            "there is nothing to extract; prune to a larger density."
        )
    done()
    with _writing(subject):
        module = _written(subject, layout, [kept], [masks], fold=fold, any_size=takes_any_size(subject, layout))
    done()
    error = _same_as_masked(subject, module, subject.masks(circuit, shape, effective=True))
    module.meta["circuit"] = {**_about(circuit, subject.network, shape), "laws": {**laws, "module": error}}
    done()
    return module


def _steps(progress: Progress | None) -> Callable[[], None]:
    """Return a function that reports one more step of an extraction."""
    numbers = itertools.count(1)
    return lambda: None if progress is None else progress(next(numbers), 4)


class Sweep:
    """A feature in the full model and in several circuits, run together as one small network.

    What circuits share is computed once, and a small circuit is a small network: the results are those of masked runs
    at a fraction of the cost. If the model cannot be extracted, masked runs are used.

    Args:
        subject: The model, opened for the feature.
        circuits: Circuits of this feature.
        effective: As for ``evaluate``.

    Attributes:
        subject: The model, opened for the feature.
        kept: For each circuit, layer name -> bool (out, in per group): the kernels that it keeps.
    """

    def __init__(self, subject: Subject, circuits: Sequence[Circuit], *, effective: bool) -> None:
        self.subject, self._circuits, self._effective = subject, circuits, effective
        self._masks = [_masks(subject, circuit, effective=effective) for circuit in circuits]
        self.kept = [{layer: mask.cpu() for layer, mask in masks.kernels.items()} for masks in self._masks]
        self._written: dict[tuple[int, ...], _Written | None] = {}
        self._masked: dict[tuple[int, ...], list[Masks]] = {}
        self._errors: dict[tuple[int, ...], list[float]] = {}
        self._reason: str | None = None

    def maps(self, images: Tensor, only: Sequence[int] | None = None) -> list[Tensor]:
        """Return the feature's maps in the full model, then in each circuit: each (N, H, W), (N, U, H, W), ...

        Args:
            images: (N, C, H, W).
            only: Numbers of those that are wanted, in order: 0 for the full model, n + 1 for circuit n. None for all.
        """
        shape = tuple(images.shape[1:])
        every = range(1 + len(self._circuits))
        only = list(every if only is None else only)
        written = self._network(shape)
        if written is None:
            runs = [None, *self._runs(shape)]
            return [self.subject.maps(images, runs[n]) for n in only]
        try:
            with _writing(self.subject):
                maps = written.maps(images, only)
                others = [n for n in every if n not in only and shape not in self._errors]
                unwanted = written.maps(images[:IMAGES], others)
        except UnextractableError as problem:  # for instance, it depends on the number of images
            self._written[shape], self._reason = None, str(problem)
            return self.maps(images, only)
        if shape not in self._errors:
            first = dict(zip([*only, *others], [*(one[:IMAGES] for one in maps), *unwanted], strict=True))
            self._errors[shape] = self._checked(written, images[:IMAGES], [first[n] for n in every])
        return maps

    def _runs(self, shape: tuple[int, ...]) -> list[Masks]:
        """Return the masks of masked runs on images of shape (C, H, W), as ``activations`` uses them."""
        if shape not in self._masked:
            self._masked[shape] = [
                self.subject.masks(circuit, shape, effective=self._effective) for circuit in self._circuits
            ]
        return self._masked[shape]

    def about(self) -> dict[str, Any]:
        """Return, as JSON values, whether the network or masked runs were used, and why."""
        return {"run": "network"} if self._reason is None else {"run": "masked", "run_reason": self._reason}

    def laws(self, n: int) -> dict[str, float]:
        """Return the largest difference found between the network and masked runs, in the full model or circuit n."""
        errors = [error for by_run in self._errors.values() for error in (by_run[0], by_run[1 + n])]
        return {"network": shown(max(errors))} if errors else {}

    def effective(self, n: int, shape: tuple[int, ...]) -> dict[str, Tensor]:
        """Return the kernels of circuit n on a complete path, for images of shape (C, H, W)."""
        if not self._effective:
            return self.subject.effective(self.kept[n], shape)
        return {layer: mask.cpu() for layer, mask in self._runs(shape)[n].kernels.items()}

    def _checked(self, written: "_Written", images: Tensor, maps: Sequence[Tensor]) -> list[float]:
        """Compare the full model and every circuit with their masked runs, and return the difference of each.

        The full model and the smallest circuit are compared on the images. The others are compared on crops of them,
        which cost a fraction, and also on the images where crops do not suffice: where the network or the model does
        not accept them, where the map of a live circuit is constant on them, and where maps differ, as a model may
        compute something else at another size.

        Raises:
            ConvCircuitsError: If any of them differs by more than rounding.
        """
        runs = [None, *self._runs(tuple(images.shape[1:]))]
        live = [n + 1 for n in written.alive]
        whole = {0, min(live, key=lambda n: count_kept(self.kept[n - 1]), default=0)}
        crops = _crops(images)
        on_crops = None if crops is images else self._maps_on(written, crops)
        errors = []
        for n, (masks, got) in enumerate(zip(runs, maps, strict=True)):
            error = None
            if on_crops is not None and n not in whole:
                error = self._error_on(crops, masks, on_crops[n], may_be_constant=n not in live)
            errors.append(self._error(written, n, masks, images, got) if error is None else error)
        return errors

    def _maps_on(self, written: "_Written", crops: Tensor) -> list[Tensor] | None:
        """Return the network's maps on crops, or None if it does not run on them."""
        try:
            with _writing(self.subject):
                return written.maps(crops, range(1 + written.count))
        except ConvCircuitsError:
            return None

    def _error_on(self, crops: Tensor, masks: Masks | None, got: Tensor, *, may_be_constant: bool) -> float | None:
        """Return the difference from the masked run on crops, or None if that does not show that both are the same."""
        try:
            expected = self.subject.maps(crops, masks)
            constant = not may_be_constant and bool((expected == expected.flatten()[0]).all())
            if constant or expected.shape != got.shape:
                return None
            error, allowed = agreement(self.subject, masks, crops, expected, got)
        except Exception:  # the model's own code may refuse this size with any error; the images decide
            return None
        return error if error <= allowed else None

    def _error(self, written: "_Written", n: int, masks: Masks | None, images: Tensor, got: Tensor) -> float:
        """Return the difference from the masked run of the full model, n = 0, or of circuit n.

        Raises:
            ConvCircuitsError: If they differ by more than rounding.
        """
        expected = self.subject.maps(images, masks)
        if not bool(expected.isfinite().all() | got.isfinite().all()):
            return 0.0  # the evaluation adds a note
        error, allowed = agreement(self.subject, masks, images, expected, got)
        if error > allowed and not _is_rounding(
            lambda module, images: replace(written, module=module).maps(images, range(1 + written.count))[n],
            written.module,
            images,
            expected,
            error,
            allowed,
        ):
            raise self._wrong(n, images, error, allowed)
        return error

    def _wrong(self, n: int, images: Tensor, error: float, allowed: float) -> ConvCircuitsError:
        """Return the error for one circuit, written alone to find where it differs from its masked run."""
        masks = [None, *self._masks][n]
        with _writing(self.subject):
            layout = layout_of(self.subject, images.shape[1:])
            kept = cut(layout, masks, self.subject.survey.rows)
            alone = _written(self.subject, layout, [kept], [masks], fold=True)
        where = parting_of_module(alone, lambda watch: self.subject.maps(images, masks, watch), images, allowed)
        what = "the full model" if n == 0 else f"circuit {n} of {len(self._masks)}"
        return _not_the_same(self.subject, f"The network that measures {what}", error, allowed, where)

    def _network(self, shape: tuple[int, ...]) -> "_Written | None":
        """Return the network for images of one shape, or None if the model cannot be extracted."""
        if shape not in self._written:
            try:
                with _writing(self.subject):
                    self._written[shape] = self._write(layout_of(self.subject, shape))
            except UnextractableError as problem:
                self._written[shape], self._reason = None, str(problem)
        return self._written[shape]

    def _write(self, layout: Layout) -> "_Written":
        rows = self.subject.survey.rows
        cuts = [cut(layout, masks, rows) for masks in self._masks]
        alive = [n for n, kept in enumerate(cuts) if kept.alive]
        module = _written(
            self.subject,
            layout,
            [cut(layout, None, rows), *(cuts[n] for n in alive)],
            [None, *(self._masks[n] for n in alive)],
            fold=True,
            always_tuple=True,
        )
        largest = max(math.prod(value.shape) * value.dtype.itemsize for value in layout.values.values())
        on_cpu = self.subject.network.device.type == "cpu"
        together = max(1, _AT_ONCE * torch.get_num_threads() // largest) if on_cpu else None
        spatial = tuple(layout.output.shape[1:])
        shape = (len(rows), *spatial) if isinstance(self.subject.feature.unit, tuple) else spatial
        return _Written(module, alive, len(cuts), together, shape)


@dataclass(frozen=True)
class _Written:
    """A sweep's network for one image shape.

    Attributes:
        module: The network. Its outputs are the maps in the full model and in the circuits that are alive.
        alive: Indices of the circuits in it.
        count: The number of all circuits.
        together: The number of images that run at once; None for all.
        shape: The shape of an image's map.
    """

    module: CircuitModule
    alive: list[int]
    count: int
    together: int | None
    shape: tuple[int, ...]
    _parts: dict[tuple[int, ...], CircuitModule] = field(default_factory=dict, init=False)

    def maps(self, images: Tensor, only: Sequence[int]) -> list[Tensor]:
        """Return the feature's maps in the full model, 0, or circuit n, n + 1; zeros for those that are not alive."""
        outputs = {0: 0} | {n + 1: place for place, n in enumerate(self.alive, 1)}
        run = tuple(n for n in outputs if n in only)
        if not run:
            return [images.new_zeros(len(images), *self.shape) for _ in only]
        if run not in self._parts:
            whole = len(run) == len(outputs)
            self._parts[run] = self.module if whole else with_outputs(self.module, [outputs[n] for n in run])
        parts = [self._parts[run](some) for some in torch.split(images, self.together or len(images))]
        found = dict(zip(run, (torch.cat(some) for some in zip(*parts, strict=True)), strict=True))
        return [found[n] if n in found else torch.zeros_like(found[run[0]]) for n in only]


def _crops(images: Tensor) -> Tensor:
    """Return the centers of images; a size of 160 or more is reduced by a multiple of 64, to 96 or a little more.

    So sizes of maps stay even or odd, as padding may depend on that.
    """
    for dim in (2, 3):
        size = images.shape[dim]
        less = max(0, (size - 96) // 64 * 64)
        images = images.narrow(dim, less // 2, size - less) if less else images
    return images


def _masks(subject: Subject, circuit: Circuit, *, effective: bool) -> Masks:
    """Return a circuit's masks without finding its effective kernels, as the cut does that."""
    return replace(subject.masks(circuit, (), effective=False), effective=effective)


@dataclass(frozen=True)
class Trainable:
    """A circuit as a module whose gains and offsets are given at every call.

    It may be called in several threads at once. Each has a copy of the module, of the same tensors, as a call replaces
    the parameters.

    Attributes:
        module: The module, with gain 1 and offset 0.
        kernels: Name of a weight, or of a sparse convolution's gains -> the number of the kernel that each of its
            values belongs to.
        filters: Name of a bias -> the number of the filter that each of its values belongs to.
    """

    module: CircuitModule
    kernels: dict[str, Tensor]
    filters: dict[str, Tensor]
    _copies: dict[int, CircuitModule] = field(default_factory=dict, init=False)

    @classmethod
    def of(cls, subject: Subject, masks: Masks) -> "Trainable":
        """Write the module of a circuit.

        Its kernels are numbered from 1 over the layers of its masks in order, each in row-major order; so are its live
        filters. 0 stands for none.

        Raises:
            UnextractableError: If the model cannot be written as a module.
        """
        one = {layer: torch.ones_like(mask, dtype=subject.network.dtype) for layer, mask in masks.kernels.items()}
        zero = {layer: gain[:, 0] * 0 for layer, gain in one.items()}
        plain = replace(masks, gain=one, offset=zero)
        with _writing(subject):
            layout = layout_of(subject, subject.survey.input_shape)
            kept = cut(layout, plain, subject.survey.rows)
            module, numbered = (
                _written(subject, layout, [kept], [one], fold=False) for one in (plain, _Numbered.of(plain))
            )
        kernels, filters = dict[str, Tensor](), dict[str, Tensor]()
        for name, layer in numbered.named_modules():
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                weights, *biases = (values.detach().long() for values in layer.parameters())
                own, of_kernels = module.get_submodule(name), weights.reshape(*weights.shape[:2], -1)[..., 0]
                if is_worth_it(own, of_kernels > 0):
                    parent, _, last = name.rpartition(".")
                    module.get_submodule(parent)._modules[last] = SparseConv2d(own, of_kernels > 0)
                    kernels[f"{name}.gains"] = of_kernels[of_kernels > 0]
                else:
                    kernels[f"{name}.weight"] = weights
                filters |= {f"{name}.bias": numbers for numbers in biases}
        return cls(module.requires_grad_(False), kernels, filters)

    def __call__(self, images: Tensor, gains: Tensor, offsets: Tensor) -> Tensor:
        """Compute the feature's map.

        Args:
            images: (N, C, H, W).
            gains: (kernels,), the gain of each kernel.
            offsets: (filters,), the offset of each live filter.
        """
        gains, offsets = torch.cat([gains.new_ones(1), gains]), torch.cat([offsets.new_zeros(1), offsets])
        thread = threading.get_ident()
        if thread not in self._copies:
            tensors = (*self.module.parameters(), *self.module.buffers())
            self._copies[thread] = copy.deepcopy(self.module, {id(one): one for one in tensors})
        module = self._copies[thread]
        parameters = dict(module.named_parameters())
        weights = {name: parameters[name] * gains[number] for name, number in self.kernels.items()}
        biases = {name: parameters[name] + offsets[number] for name, number in self.filters.items()}
        maps: Tensor = functional_call(module, weights | biases, (images,))
        return maps


class _Numbered(Masks):
    """Masks of a circuit whose weights are the numbers of its kernels, and whose biases are those of its filters."""

    @classmethod
    def of(cls, masks: Masks) -> "_Numbered":
        """Number the kernels and live filters of some masks."""
        gain, offset, kernels, filters = {}, {}, 0, 0
        for layer, mask in masks.kernels.items():
            live = mask.any(1)
            gain[layer] = (kernels + mask.flatten().cumsum(0).double().reshape(mask.shape)) * mask
            offset[layer] = (filters + live.cumsum(0).double()) * live
            kernels, filters = kernels + int(mask.sum()), filters + int(live.sum())
        return cls(masks.kernels, gain, offset, masks.effective, masks.weights, masks.constant)

    def weight_and_bias(self, call: KernelCall, running: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the numbers of the kernels that run, in the shape of the weight, and of the live filters."""
        if call.layer not in self.gain:
            return torch.zeros_like(call.weight, dtype=torch.float64), None
        numbers = call.per_kernel(running * self.gain[call.layer]).expand_as(call.weight)
        return numbers, running.any(1) * self.offset[call.layer]


@contextmanager
def _writing(subject: Subject) -> Iterator[None]:
    """Turn unexpected errors of writing or running a network into an ``UnextractableError``."""
    try:
        yield
    except (ConvCircuitsError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise UnextractableError(
            f"{subject.network.name} cannot be written as a module ({type(error).__name__}: {error}); masked runs "
            "(evaluate, activations) still work."
        ) from error


def _written(
    subject: Subject,
    layout: Layout,
    cuts: Sequence[Cut],
    masks: Sequence[Masks | None],
    *,
    fold: bool,
    any_size: bool = True,
    always_tuple: bool = False,
) -> CircuitModule:
    emitter = Emitter(layout, cuts, masks)
    outputs = [_feature(emitter, n, layout, subject) for n in range(len(cuts))]
    any_size = any_size and emitter.any_size
    return emitter.writer.finish(outputs, fold=fold, any_size=any_size, always_tuple=always_tuple)


def _feature(emitter: Emitter, n: int, layout: Layout, subject: Subject) -> fx.Node:
    """Write the feature's map: the channels of the layer's output that it reads, weighted by its coefficients."""
    rows, write, aten = subject.survey.rows, emitter.writer, torch.ops.aten
    maps = emitter.output(n, rows)
    if isinstance(subject.feature.unit, tuple):
        return maps
    coefficients = subject.survey.coefficients.to(subject.network.dtype)
    if not bool((coefficients == 1).all()):
        weights = coefficients.reshape(-1, *[1] * (len(layout.output.shape) - 1))
        maps = write.call(aten.mul.Tensor, maps, write.constant("coefficients", weights))
    return write.call(aten.select.int, maps, 1, 0) if len(rows) == 1 else write.call(aten.sum.dim_IntList, maps, [1])


def _about(circuit: Circuit, network: Network, shape: tuple[int, ...]) -> dict[str, Any]:
    """Return a description of the circuit of a module, as JSON values."""
    return {
        "feature": str(circuit.feature),
        "model": network.name,
        "weights": circuit.provenance["weights"],
        "granularity": circuit.granularity,
        "elements": len(circuit),
        "relevant": circuit.relevant,
        "input_shape": list(shape),
    }


def _same_as_masked(subject: Subject, module: CircuitModule, masks: Masks) -> float:
    """Compare a module with the circuit's masked run on random images, and return the difference.

    Raises:
        ConvCircuitsError: If they differ by more than rounding.
    """
    images = random_images(subject, subject.survey.input_shape)
    with torch.no_grad():
        expected = subject.maps(images, masks)
        with _writing(subject):
            got = torch.cat([module(images[:1]), module(images)[1:]])
        error, allowed = agreement(subject, masks, images, expected, got)
        if error > allowed and not _is_rounding(nn.Module.__call__, module, images, expected, error, allowed):
            where = parting_of_module(module, lambda watch: subject.maps(images, masks, watch), images, allowed)
            raise _not_the_same(subject, "The module extracted", error, allowed, where)
    return shown(error)


def _is_rounding(
    run: Callable[[CircuitModule, Tensor], Tensor],
    module: CircuitModule,
    images: Tensor,
    expected: Tensor,
    error: float,
    allowed: float,
) -> bool:
    """Return whether a module, which differs from a masked run, does so by little and not if it computes in float64.

    What is allowed is measured in the masked run. A module adds the same terms in another order, and where large ones
    cancel, its rounding may be several times as large.
    """
    if expected.dtype == torch.float64 or error > _HARMLESS:
        return False
    try:
        wide = run(copy.deepcopy(module).double(), images.double())
    except Exception:  # an operation or a constant of the model may have one dtype; then it is not known
        return False
    return difference(wide, expected.double())[0] <= allowed


def _not_the_same(subject: Subject, what: str, error: float, allowed: float, where: str) -> ConvCircuitsError:
    return ConvCircuitsError(
        f"{what} from {subject.network.name} does not compute the same as the circuit's masked run: their maps of "
        f"{subject.feature} differ by {error:.2g} of the largest value (rounding explains {allowed:.1g}), first at "
        f"{where}. Please report this model; activations still works."
    )
