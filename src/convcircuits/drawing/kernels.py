"""Pictures of the filters that read the image: their kernels, in the colors of the image that they respond to."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from convcircuits.drawing.data import EdgeKind
from convcircuits.drawing.sheet import Drawing
from convcircuits.drawing.wiring import SiteKind
from convcircuits.maps.colors import mixing_of
from convcircuits.network.calls import ConvCall, KernelCall

NOT_IN_COLOR = (
    "Kernels of the first layer are drawn as their weights, summed over input channels, orange above zero and purple "
    "below: the model does not feed them a weighted sum of nearby colors of the image."
)
"""The note of a diagram with such pictures."""

_ZERO, _POSITIVE, _NEGATIVE = (247, 246, 244), (180, 78, 6), (84, 49, 150)  # as in frontend/src/core/color.ts


@dataclass(frozen=True)
class KernelPicture:
    """The picture of a filter that reads the image.

    Attributes:
        pixels: RGB, uint8 (h, w, 3); zero is gray.
        in_color: Whether the pixels are colors of the image; otherwise they show weights above and below zero.
    """

    pixels: np.ndarray
    in_color: bool


def first_kernels(drawing: Drawing, primaries: Tensor | None) -> dict[int, KernelPicture]:
    """Picture the filters that read the image: what each pixel of the image adds to the filter.

    A model may prepare the image itself (repeat a gray one, swap its colors, move neighboring pixels into channels)
    before the first convolution reads it. So a filter is traced back to the image by its gradient there. If the
    preparation is a weighted sum of nearby pixels, the gradient is the filter itself. Otherwise the gradients on two
    images differ, and the picture shows the weights.

    Args:
        drawing: What is drawn; kernels outside the circuit are left out of the pictures.
        primaries: As for ``mixing_of``.

    Returns:
        Node -> picture, for filters of a convolution without groups that reads the image.
    """
    weights = _weights(drawing)
    if not weights:
        return {}
    found: dict[int, KernelPicture] = {}
    for number, slopes in _slopes(drawing, weights, primaries).items():
        for n, weight in weights[number].items():
            in_color = n in slopes
            found[n] = KernelPicture(_colored(slopes[n], primaries) if in_color else _heat(weight.sum(0)), in_color)
    return found


def to_bytes(pictures: Tensor) -> list[np.ndarray]:
    """Convert pictures with values from 0 to 1 to uint8."""
    return list((pictures.clamp(0, 1) * 255).round().to(torch.uint8).numpy())


def _weights(drawing: Drawing) -> dict[int, dict[int, Tensor]]:
    """Return the kept kernels, (C, kh, kw), of each call that reads the image and each node that only it writes."""
    g, found = drawing.graph, dict[int, dict[int, Tensor]]()
    image = {n for n, site in drawing.wiring.sites.items() if site.kind is SiteKind.IMAGE}
    from_image = np.isin(g.site[g.source], list(image)) & (g.kind == EdgeKind.KERNEL)
    for n in np.unique(g.target[from_image]):
        site = drawing.wiring.sites[int(g.site[n])]
        call = drawing.call(site.calls[0])
        if len(site.calls) > 1 or site.inner or site.links or not isinstance(call, ConvCall) or call.groups > 1:
            continue
        mine = from_image & (g.target == n)
        kept = mine & g.present[0] if (mine & g.present[0]).any() else mine
        channels = torch.from_numpy(g.inp[kept])
        row = int(g.channel[n]) if call.rows is None else int((call.rows == int(g.channel[n])).nonzero()[0])
        weight = torch.zeros(call.weight.shape[1:], dtype=torch.float64)
        weight[channels] = call.weight[row][channels].detach().cpu().double()
        gain = drawing.circuits[0].gain.get(call.layer)
        if gain is not None:
            weight *= gain[int(g.channel[n])].cpu().double()[:, None, None]
        found.setdefault(site.calls[0], {})[int(n)] = weight
    return found


def _slopes(
    drawing: Drawing, weights: Mapping[int, Mapping[int, Tensor]], primaries: Tensor | None
) -> dict[int, dict[int, Tensor]]:
    """Trace filters back to the image: for each call, its nodes' gradients there, (C, h, w), if two images agree.

    The model runs on two pictures of noise, and each filter is considered at the middle of the image.
    """
    subject = drawing.subject
    wanted = {
        (value.layer, value.call.turn): value.number
        for value in drawing.layout.values.values()
        if value.call is not None
    }
    mixing, black = mixing_of(primaries, subject.survey.input_shape[0])
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(2, len(mixing), *subject.survey.input_shape[1:], generator=generator, dtype=torch.float64)
    images = torch.einsum("nrhw,rc->nchw", noise, mixing) + black[:, None, None]
    images = images.to(subject.network.device, subject.network.dtype).requires_grad_()
    found: dict[int, dict[int, Tensor]] = {}

    def kernel(call: KernelCall) -> Tensor:
        number = wanted.get((call.layer, call.turn))
        if number is not None and number in weights and isinstance(call, ConvCall):
            found[number] = _gradients(call, weights[number], images)
        return replace(call, x=call.x.detach()).compute()

    with torch.enable_grad():
        subject.network.run(subject.feature, images, kernel, copied=subject.survey.copied)
    return found


def _gradients(call: ConvCall, weights: Mapping[int, Tensor], images: Tensor) -> dict[int, Tensor]:
    """Return the gradient of each filter at the middle of the image, cropped to what the call's filters see there."""
    window = _middle(call)
    if not window.requires_grad:
        return {}

    def gradient(weight: Tensor) -> Tensor:
        value = (window * weight.to(window)).sum()
        (slope,) = torch.autograd.grad(value, images, retain_graph=True, allow_unused=True)
        return torch.zeros_like(images).cpu() if slope is None else slope.detach().double().cpu()

    # A sum with random weights is never zero by chance, so this shows how far any filter sees.
    any_filter = torch.randn(window.shape[1:], generator=torch.Generator().manual_seed(0))
    try:
        seen = gradient(any_filter) != 0
        rows, columns = _span(seen.any(3)), _span(seen.any(2))
        extent = [d * (k - 1) + 1 for d, k in zip(call.dilation, call.weight.shape[2:], strict=True)]
        spans = zip((rows, columns), extent, images.shape[2:], strict=True)
        if any(side.stop - side.start > max(own, whole // 2) for side, own, whole in spans) or not seen.any():
            return {}
        slopes = {n: gradient(weight)[:, :, rows, columns] for n, weight in weights.items()}
    except RuntimeError:  # an operation without a gradient
        return {}
    tolerance = 64 * torch.finfo(images.dtype).eps
    return {n: one for n, (one, other) in slopes.items() if (one - other).abs().max() <= tolerance * one.abs().max()}


def _middle(call: ConvCall) -> Tensor:
    """Return what the filters read at the middle of their input, (n, C, kh, kw)."""
    height, width = call.padding
    window = F.pad(call.x, (width, width, height, height))
    for dim, stride, dilation in zip((2, 3), call.stride, call.dilation, strict=True):
        taps = dilation * torch.arange(call.weight.shape[dim], device=window.device)
        first = (window.shape[dim] - 1 - int(taps[-1])) // stride // 2 * stride
        window = window.index_select(dim, first + taps)
    return window


def _span(seen: Tensor) -> slice:
    """Return the part of the last axis that contains anything seen."""
    places = seen.flatten(0, -2).any(0).nonzero()[:, 0].tolist()
    return slice(places[0], places[-1] + 1) if places else slice(0, 0)


def _colored(slope: Tensor, primaries: Tensor | None) -> np.ndarray:
    mixing, _ = mixing_of(primaries, len(slope))  # what a step of red, green, blue, or of gray, adds to channels
    colors = torch.einsum("cyx,rc->yxr", slope, mixing).expand(-1, -1, 3)
    pixels = 0.5 + 0.5 * colors / colors.abs().max().clamp_min(1e-30)
    return to_bytes(pixels[None].float())[0]


def _heat(weight: Tensor) -> np.ndarray:
    """Draw a kernel: orange above zero, purple below, zero neutral."""
    share = (weight / weight.abs().max().clamp_min(1e-30))[:, :, None]
    zero, positive, negative = (torch.tensor(color).double() for color in (_ZERO, _POSITIVE, _NEGATIVE))
    pixels = zero + (torch.where(share < 0, negative, positive) - zero) * share.abs()
    return to_bytes(pixels[None].float() / 255)[0]
