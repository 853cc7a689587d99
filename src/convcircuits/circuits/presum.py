"""Sum |z g| over positions without ever storing z, the pre-sum map of each kernel.

z has (in x out x positions) values per image, and the time of a matrix product over a kernel's few weights goes into
writing them. If numba is installed, a compiled loop keeps z in registers and takes about as long as the convolution
itself; matrix products in chunks take five to ten times as long.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from convcircuits.network.calls import Lattice
from convcircuits.threads import on_all_threads

Reads = list[tuple[Float[Tensor, "g i k p"], Float[Tensor, "g o p"]]]
"""For each call of a layer on one image: what the kernels read, (g, i, k, p), and the filters' gradients, (g, o, p)."""

_QUAD = 4  # filters that the loop computes at once
# Blocks of positions that fit the working memory, so that one of them and what it is multiplied by stay in a cache.
_BLOCKS = 8


def absolute_sums(
    images: Iterable[Reads], kernels: Sequence[Float[Tensor, "g o i _"]], memory: int
) -> Float[Tensor, "g o i"]:
    """Sum |z g| over images and positions; for a layer that runs several times, |sum over calls of z g|.

    Args:
        images: What the layer reads and the gradients, one image after another.
        kernels: The weights of each call, (g, o, i, k); k may differ between calls.
        memory: Bytes that a chunk of z may take.

    Returns:
        (g, o, i), in the dtype of the kernels.
    """
    groups, out, inputs, _ = kernels[0].shape
    total = kernels[0].new_zeros(groups, inputs, out)
    by_input = [one.transpose(1, 2).contiguous() for one in kernels]
    for reads in images:
        active = torch.stack([(gradient != 0).flatten(0, 1).any(0) for _, gradient in reads]).any(0)
        if int(active.sum()) < active.numel() // 2:  # positions without a gradient add nothing
            reads = [(columns[..., active], gradient[..., active]) for columns, gradient in reads]
        _add_products(total, reads, by_input, memory)
    return total.transpose(1, 2)


def absolute_sums_of_lattice(
    lattice: Lattice, weights: Float[Tensor, "g o i k"], memory: int
) -> Float[Tensor, "g o i"]:
    """Sum |z g| over the positions of a lattice in the compiled loop.

    Args:
        lattice: What the kernels read, and the gradient g.
        weights: The weights, of a dtype and device that ``loops.has_loops`` takes.
        memory: Bytes that fit a core's cache.

    Returns:
        (g, o, i), in the dtype of the weights.
    """
    from convcircuits.circuits import presum_loop

    (groups, out, inputs, size), positions = weights.shape, lattice.gradient.shape[2]
    assert lattice.gradient.shape == (groups, out, positions)
    assert lattice.reads.shape == (groups, inputs, lattice.reads.shape[2])
    assert len(lattice.offsets) == size
    assert positions % Lattice.MULTIPLE == 0
    assert min(lattice.offsets) >= 0
    assert max(lattice.offsets) + positions <= lattice.reads.shape[2]
    padded = F.pad(weights.permute(0, 2, 3, 1), (0, -out % _QUAD))
    quads = padded.reshape(groups, inputs, size, -1, _QUAD).transpose(2, 3)
    sums = weights.new_zeros(groups, inputs, out)
    step = Lattice.MULTIPLE
    block = max(1, memory // _BLOCKS // (out * weights.element_size()) // step) * step
    given = (lattice.reads, torch.tensor(lattice.offsets), quads, lattice.gradient.abs(), sums)
    arrays: Any = [one.contiguous().numpy() for one in given]
    on_all_threads(presum_loop.add, [*arrays, block], rows=groups * inputs)
    return sums.transpose(1, 2)


def _add_products(
    total: Float[Tensor, "g i o"], reads: Reads, by_input: Sequence[Float[Tensor, "g i o _"]], memory: int
) -> None:
    groups, inputs, out = total.shape
    bytes_per_channel = groups * out * reads[0][1].shape[2] * by_input[0].element_size()
    step = max(1, memory // max(1, bytes_per_channel * len(reads)))
    for first in range(0, inputs, step):
        some = slice(first, first + step)
        products = [
            torch.matmul(weights[:, some], columns[:, some]).mul_(gradient[:, None])
            for weights, (columns, gradient) in zip(by_input, reads, strict=True)
        ]
        whole = products[0] if len(products) == 1 else torch.stack(products).sum(0)
        total[:, some] += torch.linalg.vector_norm(whole, 1, dim=3)
