"""How saliencies rank kernels, and the one rule by which the best are taken."""

from collections.abc import Mapping

import torch
from torch import Tensor


def top(scores: Mapping[str, Tensor], kernels: int) -> dict[str, Tensor]:
    """Keep exactly the best: ties go by layer in the mapping's order, then row-major; NaN is never kept.

    Args:
        scores: Layer name -> a table of elements.
        kernels: How many elements to keep, at most as many as have a score.

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


def in_order(saliency: Mapping[str, Tensor], scored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Put saliencies in execution order; NaN for elements that are not scored, 0 where no gradient came.

    Args:
        saliency: Layer name -> a table of elements, in any order; layers may be missing.
        scored: Layer name -> bool, same shapes, in execution order.
    """
    return {
        layer: saliency.get(layer, torch.zeros(mask.shape, dtype=torch.float64)).masked_fill(~mask, torch.nan)
        for layer, mask in scored.items()
    }
