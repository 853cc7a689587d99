"""From a model's inputs to colors and back.

*Primaries*, (4, C), are the model inputs that the preparation makes of plain black, red, green and blue. A preparation
is linear in the colors, so the primaries describe it completely.
"""

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor

from convcircuits.errors import ConvCircuitsError


def primaries_of(images: Iterable[Tensor]) -> Float[Tensor, "4 c"]:
    """Guess primaries for images of unknown preparation: each channel runs from its lowest to its highest value.

    Three channels are red, green and blue; any other number of channels is gray. The value of a constant channel is
    the middle of its range.

    Args:
        images: Batches of inputs, (N, C, H, W), at least one.
    """
    ends = [torch.aminmax(batch.cpu().double().movedim(1, 0).flatten(1), dim=1) for batch in images]
    low = torch.stack([end.min for end in ends]).amin(0)
    span = torch.stack([end.max for end in ends]).amax(0) - low
    low, span = torch.where(span > 0, low, low - 0.5), torch.where(span > 0, span, 1)
    steps = span.diag() if len(low) == 3 else (span / 3).expand(3, -1)
    return low + torch.cat([torch.zeros_like(steps[:1]), steps])


def mixing_of(primaries: Tensor | None, channels: int) -> tuple[Tensor, Tensor]:
    """Return what each color, or only gray, adds to the model's channels, (3 or 1, C), and the inputs of black, (C,).

    Args:
        primaries: (4, C). If they preserve no color, only gray is returned. None: the model's inputs are values from 0
            to 1, namely red, green and blue, or the same gray in each channel if there are not three channels.
        channels: C.

    Returns:
        Both float64, on the CPU.

    Raises:
        ConvCircuitsError: If the primaries have another number of channels.
    """
    if primaries is None:
        mixing = torch.eye(3) if channels == 3 else torch.ones(1, channels)
        return mixing.double(), torch.zeros(channels).double()
    if primaries.shape != (4, channels):
        raise ConvCircuitsError(
            f"The primaries have shape {tuple(primaries.shape)}; images with {channels} channels need "
            f"(4, {channels}): the inputs of black, red, green and blue."
        )
    black, *colors = primaries.detach().to("cpu", torch.float64)
    mixing = torch.stack(colors) - black
    return (mixing if int(torch.linalg.matrix_rank(mixing)) == 3 else mixing.sum(0, keepdim=True)), black


def displayable(images: Float[Tensor, "n c h w"], primaries: Float[Tensor, "4 c"]) -> Float[Tensor, "n h w rgb"]:
    """Turn a model's inputs back into pictures: float32 RGB from 0 to 1, on the CPU.

    Args:
        images: Inputs as the model expects them.
        primaries: (4, C); the preparation is inverted exactly. If it preserves no color, the pictures are gray.

    Raises:
        ConvCircuitsError: If the primaries have another number of channels.
    """
    pixels = images.detach().to("cpu", torch.float64).movedim(1, -1)
    mixing, black = mixing_of(primaries, pixels.shape[-1])
    pixels = pixels - black
    shown = pixels @ torch.linalg.pinv(mixing) if len(mixing) == 3 else (pixels / mixing[0]).mean(-1, keepdim=True)
    return shown.clamp(0, 1).float().expand(*shown.shape[:-1], 3).contiguous()
