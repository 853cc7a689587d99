"""Pictures of the filters that read the image: the kernels that they are, in the colours of what they really read."""

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

NOT_IN_COLOUR = (
    "Kernels of the first layer are drawn as their weights, summed over what they read, orange above zero and purple "
    "below: what the model makes of the image before them is no sum of its colours near by."
)
"""Said of a diagram with such pictures."""

_ZERO, _POSITIVE, _NEGATIVE = (247, 246, 244), (180, 78, 6), (84, 49, 150)  # as in frontend/src/core/colour.ts


@dataclass(frozen=True)
class KernelPicture:
    """A first filter's picture.

    Attributes:
        pixels: RGB, uint8 (h, w, 3); zero is grey.
        in_colour: Whether these are the image's colours; else those of weights above and below zero.
    """

    pixels: np.ndarray
    in_colour: bool


def first_kernels(drawing: Drawing, primaries: Tensor | None) -> dict[int, KernelPicture]:
    """Picture the filters that read the image: what each of the image's pixels adds to the filter.

    A model may prepare the image itself (repeat a grey one, swap its colours, lay neighbouring pixels into channels)
    before the first convolution reads it. So a filter is followed back to the image, by its gradient there: that is
    the filter itself where the preparation is a weighted sum of near pixels, and differs between two images where it
    is not; then the picture is of the weights alone.

    Args:
        drawing: What is drawn; kernels that the circuit drops are left out of the pictures.
        primaries: As for ``mixing_of``.

    Returns:
        Node -> picture, for filters of a convolution in one group that reads the image.
    """
    weights = _weights(drawing)
    if not weights:
        return {}
    found: dict[int, KernelPicture] = {}
    for number, slopes in _slopes(drawing, weights, primaries).items():
        for n, weight in weights[number].items():
            in_colour = n in slopes
            found[n] = KernelPicture(_coloured(slopes[n], primaries) if in_colour else _heat(weight.sum(0)), in_colour)
    return found


def to_bytes(pictures: Tensor) -> list[np.ndarray]:
    """Turn pictures from 0 to 1 into bytes."""
    return list((pictures.clamp(0, 1) * 255).round().to(torch.uint8).numpy())


def _weights(drawing: Drawing) -> dict[int, dict[int, Tensor]]:
    """Return for each call that reads the image, and each node that it alone makes, its kept kernels, (C, kh, kw)."""
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
        found.setdefault(site.calls[0], {})[int(n)] = weight
    return found


def _slopes(
    drawing: Drawing, weights: Mapping[int, Mapping[int, Tensor]], primaries: Tensor | None
) -> dict[int, dict[int, Tensor]]:
    """Follow filters back to the image: for each call its nodes' gradients there, (C, h, w), where these are one.

    The model runs on two pictures of noise, and a filter is looked at where it is applied to the middle.
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
    """Return the gradient of each filter in the middle of the image, cut to what the call's filters see there."""
    window = _middle(call)
    if not window.requires_grad:
        return {}

    def gradient(weight: Tensor) -> Tensor:
        value = (window * weight.to(window)).sum()
        (slope,) = torch.autograd.grad(value, images, retain_graph=True, allow_unused=True)
        return torch.zeros_like(images).cpu() if slope is None else slope.detach().double().cpu()

    # No sum of random weights is zero by chance: this tells how far any filter sees.
    any_filter = torch.randn(window.shape[1:], generator=torch.Generator().manual_seed(0))
    try:
        seen = gradient(any_filter) != 0
        rows, columns = _span(seen.any(3)), _span(seen.any(2))
        extent = [d * (k - 1) + 1 for d, k in zip(call.dilation, call.weight.shape[2:], strict=True)]
        spans = zip((rows, columns), extent, images.shape[2:], strict=True)
        if any(side.stop - side.start > max(own, whole // 2) for side, own, whole in spans) or not seen.any():
            return {}
        slopes = {n: gradient(weight)[:, :, rows, columns] for n, weight in weights.items()}
    except RuntimeError:  # a function without a gradient
        return {}
    tolerance = 64 * torch.finfo(images.dtype).eps
    return {n: one for n, (one, other) in slopes.items() if (one - other).abs().max() <= tolerance * one.abs().max()}


def _middle(call: ConvCall) -> Tensor:
    """Return what the filters read where they are applied to the middle, (n, C, kh, kw)."""
    height, width = call.padding
    window = F.pad(call.x, (width, width, height, height))
    for dim, stride, dilation in zip((2, 3), call.stride, call.dilation, strict=True):
        taps = dilation * torch.arange(call.weight.shape[dim], device=window.device)
        first = (window.shape[dim] - 1 - int(taps[-1])) // stride // 2 * stride
        window = window.index_select(dim, first + taps)
    return window


def _span(seen: Tensor) -> slice:
    """Return the part of the last axis where anything is seen."""
    places = seen.flatten(0, -2).any(0).nonzero()[:, 0].tolist()
    return slice(places[0], places[-1] + 1) if places else slice(0, 0)


def _coloured(slope: Tensor, primaries: Tensor | None) -> np.ndarray:
    mixing, _ = mixing_of(primaries, len(slope))  # what a step of red, green, blue, or of grey, does to channels
    colours = torch.einsum("cyx,rc->yxr", slope, mixing).expand(-1, -1, 3)
    pixels = 0.5 + 0.5 * colours / colours.abs().max().clamp_min(1e-30)
    return to_bytes(pixels[None].float())[0]


def _heat(weight: Tensor) -> np.ndarray:
    """Paint a kernel: orange above zero, purple below, zero neutral."""
    share = (weight / weight.abs().max().clamp_min(1e-30))[:, :, None]
    zero, positive, negative = (torch.tensor(colour).double() for colour in (_ZERO, _POSITIVE, _NEGATIVE))
    pixels = zero + (torch.where(share < 0, negative, positive) - zero) * share.abs()
    return to_bytes(pixels[None].float() / 255)[0]
