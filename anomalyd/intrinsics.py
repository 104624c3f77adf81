"""Single machine instructions that numba has no name for, callable from compiled code only."""
# ruff: noqa: ANN401, ARG001, D402 - the shape of numba's intrinsics: typed by numba itself, called with other arguments than written here

from collections.abc import Callable
from typing import Any

import numba.extending
from llvmlite import ir
from numba import types
from numba.core import cgutils

# Its annotation describes the function written here, not what compiled code calls.
intrinsic: Callable[[Callable[..., Any]], Callable[..., Any]] = numba.extending.intrinsic

WORD = ir.IntType(64)
DOUBLE_WORD = ir.IntType(128)


def _element(context: Any, builder: Any, array_type: Any, array: Any, index: Any) -> Any:
    """Pointer to array[index], as numba's code generator passes arrays around; `array` is one-dimensional and contiguous."""
    return builder.gep(context.make_array(array_type)(context, builder, array).data, [index])


@intrinsic
def prefetch(_: Any, array: Any, index: Any) -> Any:
    """prefetch(array, index): begin to bring the cache line of array[index] closer; any index is harmless."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = builder.bitcast(_element(context, builder, signature.args[0], *arguments), cgutils.voidptr_t)
        flag = ir.IntType(32)
        signature = ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t, flag, flag, flag])
        function = builder.module.declare_intrinsic("llvm.prefetch", [cgutils.voidptr_t], signature)
        builder.call(function, [pointer, flag(0), flag(3), flag(1)])  # for reading, into the nearest cache, data
        return context.get_dummy_value()

    return types.void(array, types.intp), generate


@intrinsic
def load_word(_: Any, array: Any, index: Any) -> Any:
    """load_word(bytes, index): the 8 bytes at any index as a little-endian uint64; the caller knows that they exist."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = builder.bitcast(_element(context, builder, signature.args[0], *arguments), WORD.as_pointer())
        return builder.load(pointer, align=1)

    return types.uint64(array, types.intp), generate


@intrinsic
def multiply_high(_: Any, a: Any, b: Any) -> Any:
    """multiply_high(a, b): the upper 64 bits of the 128-bit product of two uint64."""

    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        a, b = (builder.zext(argument, DOUBLE_WORD) for argument in arguments)
        return builder.trunc(builder.lshr(builder.mul(a, b), DOUBLE_WORD(64)), WORD)

    return types.uint64(types.uint64, types.uint64), generate


@intrinsic
def trailing_zeros(_: Any, word: Any) -> Any:
    """trailing_zeros(word): number of zero bits below the lowest one bit of a uint64, as int64; 64 for zero."""

    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.IntType(1)(0))

    return types.int64(types.uint64), generate


@intrinsic
def leading_zeros(_: Any, word: Any) -> Any:
    """leading_zeros(word): number of zero bits above the highest one bit of a uint64, as int64; 64 for zero."""

    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        return builder.ctlz(arguments[0], ir.IntType(1)(0))

    return types.int64(types.uint64), generate


@intrinsic
def float_of_bits(_: Any, word: Any) -> Any:
    """float_of_bits(word): the float64 whose bits the uint64 holds."""

    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.DoubleType())

    return types.float64(types.uint64), generate


@intrinsic
def count_ones(_: Any, word: Any) -> Any:
    """count_ones(word): number of one bits of a uint64."""

    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        return builder.ctpop(arguments[0])

    return types.uint64(types.uint64), generate


@intrinsic
def signed(_: Any, word: Any) -> Any:
    """signed(word): the int64 with the bits of a uint64; numba turns sums of both kinds into floats, so positions must be int64."""

    def generate(_: Any, __: Any, ___: Any, arguments: Any) -> Any:
        return arguments[0]

    return types.int64(types.uint64), generate
