"""Vectors of the processor for loops that numba compiles: a few operations, as matrix products are written with them.

numba vectorizes a loop over positions, but with vectors of half the length that recent processors have, and each sum
waits for the one before. So the vectors are spelled out. The module imports numba, so it is only imported where that
is.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import binding, ir
from numba import extending, types
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
def product_added(context: Any, a: Any, b: Any, total: Any) -> Any:
    """Return a * b + total."""
    return total(a, b, total), _llvm("fmuladd")


@intrinsic  # type: ignore[untyped-decorator]
def absolute(context: Any, vector: Any) -> Any:
    """Return the absolute values of a vector."""
    return vector(vector), _llvm("fabs")


@intrinsic  # type: ignore[untyped-decorator]
def loaded(context: Any, array: Any, start: Any) -> Any:
    """Return the values of an array from a place on."""
    vector = _Vector(array.dtype)

    def code(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        held = context.make_array(signature.args[0])(context, builder, given[0])
        place = builder.gep(held.data, [given[1]])
        place = builder.bitcast(place, context.get_value_type(vector).as_pointer())
        return builder.load(place, align=array.dtype.bitwidth // 8)

    return vector(array, start), code


@intrinsic  # type: ignore[untyped-decorator]
def stored(context: Any, array: Any, start: Any, vector: Any) -> Any:
    """Write a vector into an array from a place on."""

    def code(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        held = context.make_array(signature.args[0])(context, builder, given[0])
        place = builder.gep(held.data, [given[1]])
        place = builder.bitcast(place, given[2].type.as_pointer())
        builder.store(given[2], place, align=array.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(array, start, vector), code


@intrinsic  # type: ignore[untyped-decorator]
def spread(context: Any, value: Any) -> Any:
    """Return a vector of one value."""
    vector = _Vector(value)

    def code(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        kind = context.get_value_type(vector)
        nothing, index = ir.Constant(kind, ir.Undefined), ir.IntType(32)
        first = builder.insert_element(nothing, given[0], ir.Constant(index, 0))
        return builder.shuffle_vector(first, nothing, ir.Constant(ir.VectorType(index, vector.lanes), None))

    return vector(value), code


@intrinsic  # type: ignore[untyped-decorator]
def summed(context: Any, vector: Any) -> Any:
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
def lanes(context: Any, array: Any) -> Any:
    """Return how many values of an array are in a vector."""
    lanes = _Vector(array.dtype).lanes
    return types.intp(array), lambda context, *given: context.get_constant(types.intp, lanes)
