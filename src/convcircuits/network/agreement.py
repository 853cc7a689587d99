"""Check that two runs agree up to rounding, and find the first layer, in execution order, at which they differ.

Two runs agree if their maps differ by a few units of rounding (machine epsilon) of the largest value, as sums in
another order do. If they differ by more, the effect of rounding is measured: each sum in each layer is moved by one
unit of rounding of its terms' sizes, up or down at random, and the resulting change of the map is observed. This is the
most that rounding does to a dot product of usual length (Higham, Accuracy and Stability of Numerical Algorithms, 2002,
section 3.1).
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from convcircuits.errors import ConvCircuitsError
from convcircuits.network.calls import ConvCall, KernelCall
from convcircuits.network.masking import Masks, Subject

Watch = Callable[[KernelCall, Tensor], None]
Run = Callable[[Watch], object]
"""Runs a model and passes every kernel call and its output to a watch."""

IMAGES = 2
"""Number of images in a comparison."""

_UNITS = 8  # of rounding, up to which two runs agree without measuring
_GROWTH = 4  # times the measured change of the map is accepted as rounding
_MOST = 0.25  # of the largest value; a comparison with a larger tolerance is meaningless
_TF32 = 2.0**-11  # unit of rounding of cuDNN's float32 convolutions, unless the caller disables TF32


def random_images(subject: Subject, shape: tuple[int, ...]) -> Tensor:
    """Return normal random images, the same at every call, for use when the caller gives none."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(IMAGES, *shape, generator=generator).to(subject.network.device, subject.network.dtype)


def difference(got: Tensor, expected: Tensor) -> tuple[float, float]:
    """Return the largest difference between two maps, relative to the largest value of either, and that value."""
    got, expected = got.detach(), expected.detach()
    sizes = float(got.abs().max()), float(expected.abs().max())
    size = max(sizes)
    if not all(map(math.isfinite, sizes)):  # NaN is neither more nor less than any number
        return math.inf, math.inf
    return (float((got - expected).abs().max()) / size if size else 0.0), size


def units(dtype: torch.dtype) -> float:
    """Return the relative difference up to which two maps agree without measuring the effect of rounding."""
    return _UNITS * torch.finfo(dtype).eps


def agreement(subject: Subject, masks: Masks | None, images: Tensor, run: Tensor, other: Tensor) -> tuple[float, float]:
    """Compare two maps of a circuit, or of the full model, that should differ only by rounding.

    Args:
        subject: The model, opened for the feature.
        masks: The circuit's masks; None for the full model.
        images: The images.
        run: The map ``subject.maps(images, masks)``.
        other: The other map.

    Returns:
        The largest difference and the tolerance, both relative to the largest value of either map.

    Raises:
        ConvCircuitsError: If rounding alone changes the map so much that a comparison is meaningless.
    """
    error, size = difference(run, other)
    allowed = units(run.dtype)
    if error <= allowed or not math.isfinite(error):
        return error, allowed
    moved = 0.0
    for one in moves(subject, masks, images, run):
        moved = max(moved, one / size)
        if error <= min(_GROWTH * moved, _MOST):  # further moves can only allow more
            break
    if _MOST < error <= _GROWTH * moved:
        raise ConvCircuitsError(
            f"In {str(run.dtype).removeprefix('torch.')}, rounding alone changes the map of {subject.feature} by "
            f"{moved:.0%} of its largest value, so its figures would be meaningless; convert "
            f"{subject.network.name} and the images to a wider type, such as float64."
        )
    return error, max(allowed, min(_GROWTH * moved, _MOST))


def shown(error: float) -> float:
    """Round an error to two significant digits, for the provenance."""
    return float(f"{error:.1e}")


def moves(subject: Subject, masks: Masks | None, images: Tensor, run: Tensor) -> Iterator[float]:
    """Yield how much a map moves if each sum in each layer is off by one unit of rounding, up or down.

    First by a unit of the sum, which is quick and at most what rounding does, and often enough; then twice by a unit of
    the sizes of its terms. The arguments are those of ``agreement``.
    """
    generator = torch.Generator().manual_seed(0)

    def off(call: KernelCall, output: Tensor, *, by_terms: bool) -> None:
        sizes = _sizes_of_terms(call, masks) if by_terms else output.abs()
        unit = _TF32 if output.is_cuda and output.dtype == torch.float32 else torch.finfo(output.dtype).eps
        signs = torch.randint(0, 2, output.shape, generator=generator, dtype=torch.int8).to(output.device) * 2 - 1
        output.add_(sizes * signs, alpha=unit)

    for by_terms in (False, True, True):
        yield float((subject.maps(images, masks, partial(off, by_terms=by_terms)) - run).abs().max())


def _sizes_of_terms(call: KernelCall, masks: Masks | None) -> Tensor:
    """Return the sum of the sizes of the terms of each sum in a call."""
    bias = None if call.bias is None else call.bias.abs()
    absolute = replace(call, x=call.x.abs(), weight=call.weight.abs(), bias=bias)
    if masks is None or call.layer not in masks.kernels:
        return absolute.compute()
    gain, offset = ({name: one.abs() for name, one in table.items()} for table in (masks.gain, masks.offset))
    return replace(masks, gain=gain, offset=offset).kernel(absolute)


def parting(first: Run, second: Run, kernels: Mapping[str, Tensor] | None, tolerance: float) -> str:
    """Return the layer of the first kernel call whose output differs between two runs.

    Args:
        first: A run.
        second: Another run of the same calls.
        kernels: Masks, layer name -> (out, in); only filters with a kernel in them are compared. None for all.
        tolerance: Tolerance relative to the largest value.
    """
    seen: list[tuple[str, Tensor]] = []
    found: list[str] = []
    number = 0

    def chosen(call: KernelCall, output: Tensor) -> Tensor:
        if kernels is None:
            return output.clone()
        mask = kernels.get(call.layer, torch.zeros(0, 1))
        live = mask.any(1) if call.rows is None or not len(mask) else mask[call.rows].any(1)
        return output.index_select(call.channel_dim, live.nonzero()[:, 0].to(output.device))

    def compare(call: KernelCall, output: Tensor) -> None:
        nonlocal number
        if number < len(seen):
            layer, expected = seen[number]
            if layer != call.layer or _differ(chosen(call, output), expected, tolerance):
                found.append(call.layer)
        number += 1

    first(lambda call, output: seen.append((call.layer, chosen(call, output))))
    second(compare)
    return found[0] if found else f"an operation after {seen[-1][0]}"


def parting_of_module(module: nn.Module, run: Run, images: Tensor, tolerance: float) -> str:
    """Return the first layer whose input differs between an extracted module and the circuit's masked run.

    Inputs of layers are compared, not outputs, because the layers of a module have BatchNorms folded into them. If all
    inputs agree, the output of the last layer differs.

    Args:
        module: The module.
        run: The masked run, on the same images.
        images: The images.
        tolerance: Tolerance relative to the largest value.
    """
    layers = {name: part for name, part in module.named_modules() if "channels" in part._buffers}
    read: dict[str, Tensor] = {}

    def keep(name: str, layer: nn.Module, given: tuple[Tensor, ...]) -> None:
        read.setdefault(name, given[0].clone())

    handles = [layer.register_forward_pre_hook(partial(keep, name)) for name, layer in layers.items()]
    try:
        module(images)
    finally:
        for handle in handles:
            handle.remove()
    passed: list[str] = []
    found: list[str] = []

    def compare(call: KernelCall, output: Tensor) -> None:
        if call.layer in read and call.layer not in passed and not found:
            layer = layers[call.layer]
            used = _used(layer).nonzero()[:, 0]
            dim = 1 if isinstance(call, ConvCall) else -1
            got = read[call.layer].index_select(dim, used)
            expected = call.x.index_select(dim, layer.get_buffer("channels")[used])
            (found if _differ(got, expected, tolerance) else passed).append(call.layer)

    run(compare)
    if found:
        return f"the input of {found[0]}"
    return passed[-1] if passed else "an unknown layer"


def _used(layer: nn.Module) -> Tensor:
    """Return which input channels of a layer have a nonzero weight."""
    weight = layer.get_parameter("weight")
    groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
    return (weight != 0).reshape(groups, -1, weight.shape[1], weight[0, 0].numel()).flatten(3).any(3).any(1).flatten()


def _differ(got: Tensor, expected: Tensor, tolerance: float) -> bool:
    if got.shape != expected.shape:
        return True
    if not got.numel():
        return False
    size = max(float(got.abs().max()), float(expected.abs().max()))
    return not bool(((got - expected).abs() <= tolerance * size).all())
