"""Sum |z g| over positions without ever storing z, the pre-sum map of each kernel.

z has (in x out x positions) values per image, and the time of a matrix product over a kernel's few weights goes into
writing them. If numba is installed, a loop compiled for the kernel's size keeps z in registers and takes about twice
the time of the convolution itself; matrix products in chunks take five to ten times as long. Large kernels use the
products all the same.
"""

import importlib.util
import itertools
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

LARGEST_UNROLLED = 32

Reads = list[tuple[Float[Tensor, "g i k p"], Float[Tensor, "g o p"]]]
"""For each call of a layer on one image: what the kernels read, (g, i, k, p), and the filters' gradients, (g, o, p)."""


def absolute_sums(
    images: Iterable[Reads], kernels: Sequence[Float[Tensor, "g o i _"]], memory: int
) -> Float[Tensor, "g o i"]:
    """Sum |z g| over images and positions; for a layer that runs several times, |sum over calls of z g|.

    Args:
        images: What the layer reads and the gradients, one image after another.
        kernels: The weights of each call, (g, o, i, k); k may differ between calls.
        memory: Bytes that a chunk of z may take if matrix products are used.

    Returns:
        (g, o, i), in the dtype of the kernels, at least float32.
    """
    groups, out, inputs, size = kernels[0].shape
    total = kernels[0].new_zeros(groups, inputs, out, dtype=torch.promote_types(kernels[0].dtype, torch.float32))
    by_input = [one.transpose(1, 2).contiguous() for one in kernels]
    compiled = (
        len(kernels) == 1
        and kernels[0].device.type == "cpu"
        and kernels[0].dtype in (torch.float32, torch.float64)
        and size <= LARGEST_UNROLLED
        and importlib.util.find_spec("numba") is not None
    )
    threads = min(torch.get_num_threads(), groups * inputs)
    with ThreadPoolExecutor(threads) as pool:
        for reads in images:
            active = torch.stack([(gradient != 0).flatten(0, 1).any(0) for _, gradient in reads]).any(0)
            if int(active.sum()) < active.numel() // 2:  # positions without a gradient add nothing
                reads = [(columns[..., active], gradient[..., active]) for columns, gradient in reads]
            if compiled:
                _add_compiled(total, *reads[0], by_input[0], pool, threads)
            else:
                _add_products(total, reads, by_input, memory)
    return total.transpose(1, 2)


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
        total[:, some] += torch.linalg.vector_norm(whole, 1, dim=3, dtype=total.dtype)


def _add_compiled(
    total: Tensor, columns: Tensor, gradient: Tensor, by_input: Tensor, pool: ThreadPoolExecutor, threads: int
) -> None:
    groups, inputs, out, size = by_input.shape
    rows = groups * inputs
    arrays = (
        columns.reshape(rows, size, -1).contiguous().numpy(),
        by_input.reshape(rows, out, size).numpy(),
        gradient.abs().contiguous().numpy(),
        gradient.ne(0).any(2).numpy(),
        total.view(rows, out).numpy(),
    )
    bounds = [rows * t // threads for t in range(threads + 1)]
    parts = [pool.submit(_loop(size), *arrays, inputs, *span) for span in itertools.pairwise(bounds)]
    for part in parts:
        part.result()


@lru_cache
def _loop(size: int) -> Callable[..., None]:
    """Compile the loop for kernels of ``size`` weights, so that the compiler can unroll it."""
    import numba

    # Sums may be reordered, so that they use vector registers; NaN and Inf keep their meaning.
    @numba.njit(nogil=True, fastmath={"reassoc", "contract", "nsz"})
    def loop(
        read: Any, weights: Any, slopes: Any, any_slope: Any, result: Any, inputs: int, start: int, stop: int
    ) -> None:
        zero = weights.dtype.type(0)
        for row in range(start, stop):
            group = row // inputs
            slope = slopes[group]
            for o in range(weights.shape[1]):
                if any_slope[group, o]:
                    total = zero
                    for p in range(read.shape[2]):
                        z = zero
                        for k in range(size):
                            z += weights[row, o, k] * read[row, k, p]
                        total += abs(z) * slope[o, p]
                    result[row, o] += total

    compiled: Callable[..., None] = loop
    return compiled
