"""How saliencies rank elements, and the one rule that selects the best."""

from collections.abc import Mapping

import torch
from torch import Tensor

from convcircuits.errors import ConvCircuitsError


def top(scores: Mapping[str, Tensor], kernels: int) -> dict[str, Tensor]:
    """Select the best elements; ties go to the earlier layer, then in row-major order. NaN is never selected.

    Args:
        scores: Layer name -> a table of elements.
        kernels: Number of elements to keep; all that have a score if there are fewer.

    Returns:
        Layer name -> bool, same shapes.
    """
    flat = torch.cat([s.flatten() for s in scores.values()])
    scored = (~flat.isnan()).nonzero()[:, 0]
    order = flat[scored].sort(descending=True, stable=True).indices[:kernels]
    kept = torch.zeros(len(flat), dtype=torch.bool)
    kept[scored[order]] = True
    parts = torch.split(kept, [s.numel() for s in scores.values()])
    return {layer: part.reshape(s.shape) for (layer, s), part in zip(scores.items(), parts, strict=True)}


def in_order(
    saliency: Mapping[str, Tensor], scored: Mapping[str, Tensor], criterion: str = "The criterion"
) -> dict[str, Tensor]:
    """Put saliencies in execution order; NaN for elements that are not scored, 0 for layers that are missing.

    Args:
        saliency: Layer name -> a table of elements, in any order; layers may be missing.
        scored: Layer name -> bool, same shapes, in execution order.
        criterion: Name of the criterion, for the message of an error.

    Raises:
        ConvCircuitsError: If a scored element has NaN or Inf, which no rank is right for.
    """
    ordered = {}
    for layer, mask in scored.items():
        values = saliency.get(layer, torch.zeros(mask.shape, dtype=torch.float64))
        if not bool(values[mask].isfinite().all()):
            raise ConvCircuitsError(
                f"{criterion} returned NaN or Inf for {layer}; check the scale of the model's weights and of the "
                "images."
            )
        ordered[layer] = values.masked_fill(~mask, torch.nan)
    return ordered
