"""Elements, which a circuit keeps or drops one by one: filters, kernels or weights; and how they turn into each other.

A table of elements has the shape (out,) for filters, (out, in per group) for kernels and the weight's own for weights.
Any of them runs as kernel masks; weights need masks of their own besides.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from convcircuits.errors import ConvCircuitsError
from convcircuits.values.tables import LayerTable

SHAPES = {"filter": "(out,)", "kernel": "(out, in per group)", "weight": "the weight's own shape"}
"""The shape of a table of elements, in words, for each granularity, the coarsest first."""

_DIMENSIONS = {"filter": (1,), "kernel": (2,), "weight": (2, 4)}


def check_granularity(granularity: object) -> None:
    """Refuse what is no granularity.

    Raises:
        ConvCircuitsError: If it is none of ``"filter"``, ``"kernel"`` and ``"weight"``.
    """
    if granularity not in list(SHAPES):
        raise ConvCircuitsError(f"granularity is one of {', '.join(map(repr, SHAPES))}; got {granularity!r}.")


def fits(table: Tensor, granularity: str) -> bool:
    """Return whether a table has as many dimensions as one of elements of this granularity."""
    return table.dim() in _DIMENSIONS[granularity]


def of_kernels(elements: LayerTable, granularity: str) -> LayerTable:
    """Return a table of elements if these are kernels.

    Raises:
        ConvCircuitsError: If they are filters or weights.
    """
    if granularity != "kernel":
        raise ConvCircuitsError(f"There is no table of kernels here but one of {granularity}s; read it as elements.")
    return elements


def check_inside(outer: str, inner: str) -> None:
    """Refuse to look for elements inside a circuit of smaller ones, which would keep only a part of some.

    Raises:
        ConvCircuitsError: If the outer circuit's granularity is finer than that of the elements.
    """
    order = list(SHAPES)
    if order.index(outer) > order.index(inner):
        raise ConvCircuitsError(
            f"A circuit of {outer}s keeps parts of {inner}s; inside it, score with granularity={outer!r}"
            + ("." if outer == order[-1] else " or finer.")
        )


def by_element(values: Float[Tensor, "g o i k"], granularity: str) -> Float[Tensor, "g o e k"]:
    """Lay out a value per weight so that the last axis holds one element's weights."""
    if granularity == "kernel":
        return values
    flat = values.flatten(2)
    return flat[:, :, None] if granularity == "filter" else flat[..., None]


def elements_with(
    kernels: Bool[Tensor, "out in"], granularity: str, weight_shape: tuple[int, ...]
) -> Bool[Tensor, "..."]:
    """Return the elements that some kernels belong to, or are made of.

    Args:
        kernels: (out, in per group).
        granularity: The elements'.
        weight_shape: Of the layer's weight; only needed for weights.
    """
    if granularity == "filter":
        return kernels.any(1)
    if granularity == "kernel":
        return kernels
    per_kernel = torch.Size(weight_shape).numel() // kernels.numel()
    return kernels[:, :, None].expand(*kernels.shape, per_kernel).reshape(weight_shape)


def masks_of(
    elements: Mapping[str, Tensor], granularity: str, relevant: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Turn kept elements into masks that a run applies.

    Args:
        elements: Layer name -> bool, in the shape of the granularity.
        granularity: The elements'.
        relevant: Layer name -> bool (out, in per group): relevant kernels, which a kept filter keeps all.

    Returns:
        Layer name -> bool (out, in per group), kernels of which a part is kept; and for weights layer name -> bool
        in the weight's shape, else nothing.
    """
    if granularity == "filter":
        return {layer: kept[:, None] & relevant[layer] for layer, kept in elements.items()}, {}
    if granularity == "kernel":
        return dict(elements), {}
    kernels = {layer: kept.reshape(*relevant[layer].shape, -1).any(2) for layer, kept in elements.items()}
    return kernels, dict(elements)
