"""Sum |z g| over positions without ever storing z, the pre-sum map of each kernel.

z has (in x out x positions) values per image, and a matrix product of a kernel's few elements is bound by writing them.
Where numba is installed, a loop compiled for the kernel's size keeps z in registers, and takes about twice the time of
the convolution itself; matrix products in chunks take five to ten times as long. Large kernels suit those better.
"""

import importlib.util
import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

LARGEST_UNROLLED = 32


def absolute_sums(reads: list[tuple[Tensor, Tensor]], kernels: Tensor, memory: int) -> Tensor:
    """Sum |z g| of one image over positions; where a layer runs several times, |sum over calls of z g|.

    Args:
        reads: For each call what the kernels read, (g, i, k, p), and the gradient of the filters' outputs, (g, o, p).
        kernels: The weights, (g, o, i, k).
        memory: Bytes that a chunk of z may take where matrix products are used.

    Returns:
        (g, o, i), in the dtype of the kernels.
    """
    active = torch.stack([gradient.any(1).any(0) for _, gradient in reads]).any(0)
    if int(active.sum()) < active.numel() // 2:  # where no filter has a gradient there is nothing to sum
        reads = [(columns[..., active], gradient[..., active]) for columns, gradient in reads]
    if (
        len(reads) == 1
        and kernels.device.type == "cpu"
        and kernels.dtype in (torch.float32, torch.float64)
        and kernels.shape[3] <= LARGEST_UNROLLED
        and importlib.util.find_spec("numba") is not None
    ):
        return _compiled_sums(*reads[0], kernels)
    return _matrix_sums(reads, kernels, memory)


def _matrix_sums(reads: list[tuple[Tensor, Tensor]], kernels: Tensor, memory: int) -> Tensor:
    groups, out, inputs, _ = kernels.shape
    by_input, sums = kernels.transpose(1, 2), kernels.new_empty(groups, out, inputs)
    bytes_per_channel = groups * out * reads[0][1].shape[2] * kernels.element_size()
    step = max(1, memory // max(1, bytes_per_channel * len(reads)))
    for first in range(0, inputs, step):
        channels = slice(first, first + step)
        products = [
            torch.matmul(by_input[:, channels], columns[:, channels]).mul_(gradient[:, None])
            for columns, gradient in reads
        ]
        whole = products[0] if len(products) == 1 else torch.stack(products).sum(0)
        sums[:, :, channels] = torch.linalg.vector_norm(whole, 1, dim=3).transpose(1, 2)
    return sums


def _compiled_sums(columns: Tensor, gradient: Tensor, kernels: Tensor) -> Tensor:
    groups, out, inputs, size = kernels.shape
    rows = groups * inputs
    read = columns.reshape(rows, size, -1).contiguous().numpy()
    weights = kernels.transpose(1, 2).reshape(rows, out, size).contiguous().numpy()
    slopes = gradient.abs().contiguous().numpy()
    sums = kernels.new_empty(rows, out)
    loop, result = _loop(size), sums.numpy()
    threads = min(torch.get_num_threads(), rows)
    bounds = [rows * t // threads for t in range(threads + 1)]
    with ThreadPoolExecutor(threads) as pool:
        parts = [
            pool.submit(loop, read, weights, slopes, inputs, start, stop, result)
            for start, stop in itertools.pairwise(bounds)
        ]
        for part in parts:
            part.result()
    return sums.reshape(groups, inputs, out).transpose(1, 2)


@lru_cache
def _loop(size: int) -> Callable[..., None]:
    """Compile the loop for kernels of that many elements, which the compiler then unrolls."""
    import numba

    # Sums may be reordered, so that they use vector registers; NaN and Inf keep their meaning.
    @numba.njit(nogil=True, fastmath={"reassoc", "contract", "nsz"})
    def loop(read: Any, weights: Any, slopes: Any, inputs: int, start: int, stop: int, result: Any) -> None:
        zero = weights.dtype.type(0)
        for row in range(start, stop):
            group = row // inputs
            for o in range(weights.shape[1]):
                total = zero
                for p in range(read.shape[2]):
                    z = zero
                    for k in range(size):
                        z += weights[row, o, k] * read[row, k, p]
                    total += abs(z) * slopes[group, o, p]
                result[row, o] = total

    compiled: Callable[..., None] = loop
    return compiled
