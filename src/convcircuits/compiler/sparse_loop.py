"""The compiled loops of ``sparse``: convolutions that read only the kernels that are kept, in vectors of the processor.

Rows of an image follow each other, with padding between them, so each weight of a kernel reads at an offset of its own.
The sums of a filter stay in registers. The module imports numba, so it is only imported where that is.
"""

from typing import Any

from numba import njit

from convcircuits.vectors import lanes, loaded, product_added, spread, stored, summed


@njit(nogil=True)
def convolve(
    reads: Any,
    offsets: Any,
    bounds: Any,
    sources: Any,
    weights: Any,
    bias: Any,
    outputs: Any,
    block: int,
    start: int,
    stop: int,
) -> None:
    """Write y_o(p) = b_o + sum_e sum_k w_ek x_s(e)(p + offset_k) for some filters. Nothing is checked.

    Args:
        reads: x, (n, i, length): at least the number of positions and the largest offset long.
        offsets: (k,), int64, not negative.
        bounds: (o + 1,), int64: kernels ``bounds[o]`` to ``bounds[o + 1]`` are those of filter o.
        sources: s, (e,), int64: the channel that each kernel reads.
        weights: w, (e, k).
        bias: b, (o,).
        outputs: y, (n, o, p), with a multiple of ``2 * lanes`` positions.
        block: The positions that are written for all filters before the next ones, a multiple of ``2 * lanes``.
        start: The first filter.
        stop: The filter after the last one.
    """
    step, (_, _, positions) = lanes(reads), outputs.shape
    for image in range(len(reads)):
        for begin in range(0, positions, block):
            end = min(positions, begin + block)
            for o in range(start, stop):
                output, constant = outputs[image, o], spread(bias[o])
                for p in range(begin, end, 2 * step):
                    a, b = constant, constant
                    for e in range(bounds[o], bounds[o + 1]):
                        read = reads[image, sources[e]]
                        for k in range(len(offsets)):
                            weight, place = spread(weights[e, k]), p + offsets[k]
                            a = product_added(weight, loaded(read, place), a)
                            b = product_added(weight, loaded(read, place + step), b)
                    stored(output, p, a)
                    stored(output, p + step, b)


@njit(nogil=True)
def add_products(
    reads: Any,
    offsets: Any,
    bounds: Any,
    sources: Any,
    weights: Any,
    slopes: Any,
    sums: Any,
    lead: int,
    positions: int,
    block: int,
    start: int,
    stop: int,
) -> None:
    """Add sum_p g_o(p) sum_k w_ek x_s(e)(p + offset_k) to the sum of each kernel of some filters. Nothing is checked.

    Args:
        reads: x, as in ``convolve``.
        offsets: As there.
        bounds: As there.
        sources: As there.
        weights: As there.
        slopes: g, (n, o, lead + p at least).
        sums: (e,).
        lead: Number of values of ``slopes`` before those of the first position.
        positions: Number of positions, a multiple of ``2 * lanes``.
        block: The positions that are read for all filters before the next ones, a multiple of ``2 * lanes``.
        start: The first filter.
        stop: The filter after the last one.
    """
    step, zero = lanes(reads), spread(sums.dtype.type(0))
    for image in range(len(reads)):
        for begin in range(0, positions, block):
            end = min(positions, begin + block)
            for o in range(start, stop):
                slope = slopes[image, o]
                for e in range(bounds[o], bounds[o + 1]):
                    read, sum_a, sum_b = reads[image, sources[e]], zero, zero
                    for p in range(begin, end, 2 * step):
                        a, b = zero, zero
                        for k in range(len(offsets)):
                            weight, place = spread(weights[e, k]), p + offsets[k]
                            a = product_added(weight, loaded(read, place), a)
                            b = product_added(weight, loaded(read, place + step), b)
                        sum_a = product_added(a, loaded(slope, lead + p), sum_a)
                        sum_b = product_added(b, loaded(slope, lead + p + step), sum_b)
                    sums[e] += summed(sum_a) + summed(sum_b)
