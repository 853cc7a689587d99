"""The compiled loop of ``presum``: a matrix product that never leaves the registers, in vectors of the processor.

numba vectorizes a loop over positions, but with vectors of half the length that recent processors have, and each sum
waits for the one before. So the vectors are spelled out: four filters at a time, as in the innermost loop of a matrix
product. One compilation serves kernels of any size. The module imports numba, so it is only imported where that is.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import binding, ir
from numba import extending, njit, types
from numba.extending import models, register_model

intrinsic: Any = extending.intrinsic  # its types are those of what it is given, not of what it makes
_BITS = 1024 if binding.get_host_cpu_features().get("avx512f") else 512  # two registers of most processors


class _Vector(types.Type):
    def __init__(self, dtype: Any) -> None:
        self.dtype, self.lanes = dtype, _BITS // dtype.bitwidth
        super().__init__(name=f"Vector({dtype}, {self.lanes})")


@register_model(_Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, vector: _Vector) -> None:
        element = manager.lookup(vector.dtype).get_value_type()
        super().__init__(manager, vector, ir.VectorType(element, vector.lanes))  # type: ignore[no-untyped-call]


def _llvm(name: str) -> Callable[..., Any]:
    """Return code that calls a function of LLVM on vectors."""

    def code(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        vector = context.get_value_type(signature.return_type)
        kind = ir.FunctionType(vector, [vector] * len(given))
        full = f"llvm.{name}.v{vector.count}{vector.element.intrinsic_name}"
        function = builder.module.globals.get(full) or ir.Function(builder.module, kind, full)
        return builder.call(function, given)

    return code


@intrinsic  # type: ignore[untyped-decorator]
def _product_added(context: Any, a: Any, b: Any, total: Any) -> Any:
    """Return a * b + total."""
    return total(a, b, total), _llvm("fmuladd")


@intrinsic  # type: ignore[untyped-decorator]
def _absolute(context: Any, vector: Any) -> Any:
    return vector(vector), _llvm("fabs")


@intrinsic  # type: ignore[untyped-decorator]
def _loaded(context: Any, array: Any, start: Any) -> Any:
    """Return the values of an array from a place on."""
    vector = _Vector(array.dtype)

    def code(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        held = context.make_array(signature.args[0])(context, builder, given[0])
        place = builder.gep(held.data, [given[1]])
        place = builder.bitcast(place, context.get_value_type(vector).as_pointer())
        return builder.load(place, align=array.dtype.bitwidth // 8)

    return vector(array, start), code


@intrinsic  # type: ignore[untyped-decorator]
def _spread(context: Any, value: Any) -> Any:
    """Return a vector of one value."""
    vector = _Vector(value)

    def code(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        kind = context.get_value_type(vector)
        nothing, index = ir.Constant(kind, ir.Undefined), ir.IntType(32)
        first = builder.insert_element(nothing, given[0], ir.Constant(index, 0))
        return builder.shuffle_vector(first, nothing, ir.Constant(ir.VectorType(index, vector.lanes), None))

    return vector(value), code


@intrinsic  # type: ignore[untyped-decorator]
def _summed(context: Any, vector: Any) -> Any:
    """Return the sum of a vector's values."""

    def code(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        (total,), index = given, ir.IntType(32)
        while total.type.count > 1:
            half = total.type.count // 2
            parts = [
                builder.shuffle_vector(total, total, ir.Constant(ir.VectorType(index, half), [*range(start, stop)]))
                for start, stop in ((0, half), (half, 2 * half))
            ]
            total = builder.fadd(*parts)
        return builder.extract_element(total, ir.Constant(index, 0))

    return vector.dtype(vector), code


@intrinsic  # type: ignore[untyped-decorator]
def _lanes(context: Any, array: Any) -> Any:
    """Return how many values of an array are in a vector."""
    lanes = _Vector(array.dtype).lanes
    return types.intp(array), lambda context, *given: context.get_constant(types.intp, lanes)


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
    inputs, lanes, (_, out, positions) = reads.shape[1], _lanes(reads), slopes.shape
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
                zero = _spread(read.dtype.type(0))
                sum_a, sum_b, sum_c, sum_d = zero, zero, zero, zero
                for p in range(begin, end, lanes):
                    z_a, z_b, z_c, z_d = zero, zero, zero, zero
                    for k in range(len(offsets)):
                        x = _loaded(read, offsets[k] + p)
                        z_a = _product_added(_spread(weight[k, 0]), x, z_a)
                        z_b = _product_added(_spread(weight[k, 1]), x, z_b)
                        z_c = _product_added(_spread(weight[k, 2]), x, z_c)
                        z_d = _product_added(_spread(weight[k, 3]), x, z_d)
                    sum_a = _product_added(_absolute(z_a), _loaded(slope_a, p), sum_a)
                    sum_b = _product_added(_absolute(z_b), _loaded(slope_b, p), sum_b)
                    sum_c = _product_added(_absolute(z_c), _loaded(slope_c, p), sum_c)
                    sum_d = _product_added(_absolute(z_d), _loaded(slope_d, p), sum_d)
                total[a] += _summed(sum_a)
                if a + 1 < out:
                    total[b] += _summed(sum_b)
                if a + 2 < out:
                    total[c] += _summed(sum_c)
                if a + 3 < out:
                    total[d] += _summed(sum_d)
