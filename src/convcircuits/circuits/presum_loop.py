"""The compiled loop of ``presum``: a matrix product that never leaves the registers, in vectors of the processor.

Four filters run at a time, as in the innermost loop of a matrix product. One compilation serves kernels of any size.
The module imports numba, so it is only imported where that is.
"""

from typing import Any

from numba import njit

from convcircuits.vectors import absolute, lanes, loaded, product_added, spread, summed


@njit(nogil=True)
def add(reads: Any, offsets: Any, weights: Any, slopes: Any, sums: Any, block: int, start: int, stop: int) -> None:
    """Add sum_p |sum_k w_oik x_i(p + offset_k)| s_o(p) to the sums of some rows. Nothing is checked.

    Args:
        reads: x, (g, i, length): at least the number of positions and the largest offset long.
        offsets: (k,), int64.
        weights: (g, i, quads, k, 4): four filters beside each other.
        slopes: s, not negative, (g, o, p), with a multiple of 32 positions.
        sums: (g, i, o).
        block: The positions that are read for all filters before the next ones, a multiple of 32.
        start: The first row, of the g * i rows of ``reads``.
        stop: The row after the last one.
    """
    inputs, step, (_, out, positions) = reads.shape[1], lanes(reads), slopes.shape
    for begin in range(0, positions, block):
        end = min(positions, begin + block)
        for row in range(start, stop):
            group, channel = divmod(row, inputs)
            read, total = reads[group, channel], sums[group, channel]
            for a in range(0, out, 4):
                b, c, d = min(a + 1, out - 1), min(a + 2, out - 1), min(a + 3, out - 1)
                weight = weights[group, channel, a // 4]
                slope_a, slope_b = slopes[group, a], slopes[group, b]
                slope_c, slope_d = slopes[group, c], slopes[group, d]
                zero = spread(read.dtype.type(0))
                sum_a, sum_b, sum_c, sum_d = zero, zero, zero, zero
                for p in range(begin, end, step):
                    z_a, z_b, z_c, z_d = zero, zero, zero, zero
                    for k in range(len(offsets)):
                        x = loaded(read, offsets[k] + p)
                        z_a = product_added(spread(weight[k, 0]), x, z_a)
                        z_b = product_added(spread(weight[k, 1]), x, z_b)
                        z_c = product_added(spread(weight[k, 2]), x, z_c)
                        z_d = product_added(spread(weight[k, 3]), x, z_d)
                    sum_a = product_added(absolute(z_a), loaded(slope_a, p), sum_a)
                    sum_b = product_added(absolute(z_b), loaded(slope_b, p), sum_b)
                    sum_c = product_added(absolute(z_c), loaded(slope_c, p), sum_c)
                    sum_d = product_added(absolute(z_d), loaded(slope_d, p), sum_d)
                total[a] += summed(sum_a)
                if a + 1 < out:
                    total[b] += summed(sum_b)
                if a + 2 < out:
                    total[c] += summed(sum_c)
                if a + 3 < out:
                    total[d] += summed(sum_d)
