"""Elements, the filters, kernels or weights that a circuit keeps or drops one by one, and conversions between them.

A table of elements has shape (out,) for filters, (out, in per group) for kernels and the weight's own for weights.
All of them run as kernel masks; weights need weight masks in addition.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from convcircuits.errors import ConvCircuitsError
from convcircuits.values.tables import LayerTable

SHAPES = {"filter": "(out,)", "kernel": "(out, in per group)", "weight": "the weight's own shape"}
"""The shape of a table of elements in words, by granularity, coarsest first."""

_DIMENSIONS = {"filter": (1,), "kernel": (2,), "weight": (2, 4)}


def check_granularity(granularity: object) -> None:
    """Raise an error if the value is not a granularity.

    Raises:
        ConvCircuitsError: If it is not one of ``"filter"``, ``"kernel"`` and ``"weight"``.
    """
    if granularity not in list(SHAPES):
        raise ConvCircuitsError(f"{granularity!r} is not a granularity; choose one of {', '.join(map(repr, SHAPES))}.")


def fits(table: Tensor, granularity: str) -> bool:
    """Return whether a table has the number of dimensions of this granularity."""
    return table.dim() in _DIMENSIONS[granularity]


def of_kernels(elements: LayerTable, granularity: str) -> LayerTable:
    """Return the table if its elements are kernels.

    Raises:
        ConvCircuitsError: If the elements are filters or weights.
    """
    if granularity != "kernel":
        raise ConvCircuitsError(f"The elements are {granularity}s, not kernels; read them as .elements.")
    return elements


def check_inside(outer: str, inner: str) -> None:
    """Check that elements can be scored inside a circuit, which must not keep only parts of them.

    Raises:
        ConvCircuitsError: If the outer granularity is finer than the inner one.
    """
    order = list(SHAPES)
    if order.index(outer) > order.index(inner):
        raise ConvCircuitsError(
            f"A circuit of {outer}s keeps parts of {inner}s; inside it, score with granularity={outer!r}"
            + ("." if outer == order[-1] else " or finer.")
        )


def by_element(values: Float[Tensor, "g o i k"], granularity: str) -> Float[Tensor, "g o e k"]:
    """Reshape one value per weight so that the last axis holds the weights of one element."""
    if granularity == "kernel":
        return values
    flat = values.flatten(2)
    return flat[:, :, None] if granularity == "filter" else flat[..., None]


def elements_with(
    kernels: Bool[Tensor, "out in"], granularity: str, weight_shape: tuple[int, ...]
) -> Bool[Tensor, "..."]:
    """Return the elements that contain the given kernels or are part of them.

    Args:
        kernels: Mask of shape (out, in per group).
        granularity: Granularity of the elements.
        weight_shape: Shape of the layer's weight; only needed for weights.
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
    """Convert kept elements into the masks that a run applies.

    Args:
        elements: Layer name -> bool, in the shape of the granularity.
        granularity: Granularity of the elements.
        relevant: Layer name -> bool (out, in per group): the relevant kernels. A kept filter keeps all of its own.

    Returns:
        Kernel masks, layer name -> bool (out, in per group), True if any part of the kernel is kept; and weight
        masks, layer name -> bool in the weight's shape, empty unless the elements are weights.
    """
    if granularity == "filter":
        return {layer: kept[:, None] & relevant[layer] for layer, kept in elements.items()}, {}
    if granularity == "kernel":
        return dict(elements), {}
    kernels = {layer: kept.reshape(*relevant[layer].shape, -1).any(2) for layer, kept in elements.items()}
    return kernels, dict(elements)
