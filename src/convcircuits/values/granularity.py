"""What a circuit keeps or drops as one unit: a filter, a kernel or a weight; and how the three turn into each other.

A table of units has the shape (out,) for filters, (out, in per group) for kernels and the weight's own for weights.
Any of them runs as kernel masks; weights need masks of their own besides.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from convcircuits.errors import ConvCircuitsError

SHAPES = {"filter": "(out,)", "kernel": "(out, in per group)", "weight": "the weight's own shape"}
"""The shape of a table of units, in words, for each granularity, the coarsest first."""

_DIMENSIONS = {"filter": (1,), "kernel": (2,), "weight": (2, 4)}


def check_granularity(granularity: object) -> None:
    """Refuse what is no granularity.

    Raises:
        ConvCircuitsError: If it is none of ``"filter"``, ``"kernel"`` and ``"weight"``.
    """
    if granularity not in list(SHAPES):
        raise ConvCircuitsError(f"granularity is one of {', '.join(map(repr, SHAPES))}; got {granularity!r}.")


def fits(table: Tensor, granularity: str) -> bool:
    """Return whether a table has as many dimensions as one of these units has."""
    return table.dim() in _DIMENSIONS[granularity]


def check_inside(outer: str, inner: str) -> None:
    """Refuse to look for units inside a circuit of smaller ones, which would keep only a part of some.

    Raises:
        ConvCircuitsError: If the outer circuit's granularity is finer than that of the units.
    """
    order = list(SHAPES)
    if order.index(outer) > order.index(inner):
        raise ConvCircuitsError(
            f"A circuit of {outer}s keeps parts of {inner}s; inside it, score with granularity={outer!r}"
            + ("." if outer == order[-1] else " or finer.")
        )


def by_unit(values: Float[Tensor, "g o i k"], granularity: str) -> Float[Tensor, "g o u e"]:
    """Lay out a value per weight so that the last axis is one unit's elements: (g, o, u, e), u units per filter."""
    if granularity == "kernel":
        return values
    flat = values.flatten(2)
    return flat[:, :, None] if granularity == "filter" else flat[..., None]


def units_with(kernels: Bool[Tensor, "out in"], granularity: str, weight_shape: tuple[int, ...]) -> Bool[Tensor, "..."]:
    """Return the units that some kernels belong to, or are made of.

    Args:
        kernels: (out, in per group).
        granularity: The units'.
        weight_shape: Of the layer's weight; only needed for weights.
    """
    if granularity == "filter":
        return kernels.any(1)
    if granularity == "kernel":
        return kernels
    per_kernel = torch.Size(weight_shape).numel() // kernels.numel()
    return kernels[:, :, None].expand(*kernels.shape, per_kernel).reshape(weight_shape)


def masks_of(
    units: Mapping[str, Tensor], granularity: str, relevant: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Turn kept units into masks that a run applies.

    Args:
        units: Layer name -> bool, in the shape of the granularity.
        granularity: The units'.
        relevant: Layer name -> bool (out, in per group): relevant kernels, which a kept filter keeps all.

    Returns:
        Layer name -> bool (out, in per group), kernels of which a part is kept; and for weights layer name -> bool
        in the weight's shape, else nothing.
    """
    if granularity == "filter":
        return {layer: kept[:, None] & relevant[layer] for layer, kept in units.items()}, {}
    if granularity == "kernel":
        return dict(units), {}
    kernels = {layer: kept.reshape(*relevant[layer].shape, -1).any(2) for layer, kept in units.items()}
    return kernels, dict(units)
