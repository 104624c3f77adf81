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
def address_of(_: Any, array: Any) -> Any:
    """address_of(array): where its elements begin, as an int64.

    Numba counts references to arrays, with atomic instructions, around every call, which costs small functions more than their work: here
    a scanner three times its time. An address keeps nothing alive: take it of a kernel's arguments, not of an array that it made itself.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.ptrtoint(context.make_array(signature.args[0])(context, builder, arguments[0]).data, WORD)

    return types.int64(array), generate


def _at(builder: Any, address: Any, index: Any, kind: Any) -> Any:
    """Pointer to the element `index` of an array of `kind` that begins at `address`."""
    return builder.gep(builder.inttoptr(address, kind.as_pointer()), [index])


@intrinsic
def byte_at(_: Any, address: Any, index: Any) -> Any:
    """byte_at(address, index): that byte, as an int64."""

    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        return builder.zext(builder.load(_at(builder, arguments[0], arguments[1], ir.IntType(8))), WORD)

    return types.int64(types.int64, types.int64), generate


@intrinsic
def load_word(_: Any, address: Any, index: Any) -> Any:
    """load_word(address, index): the 8 bytes from there on, aligned or not, as a little-endian uint64."""

    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        pointer = builder.bitcast(_at(builder, arguments[0], arguments[1], ir.IntType(8)), WORD.as_pointer())
        return builder.load(pointer, align=1)

    return types.uint64(types.int64, types.int64), generate


@intrinsic
def word_at(_: Any, address: Any, index: Any) -> Any:
    """word_at(address, index): element of an array of uint64."""

    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        return builder.load(_at(builder, arguments[0], arguments[1], WORD))

    return types.uint64(types.int64, types.int64), generate


@intrinsic
def put_word(_: Any, address: Any, index: Any, word: Any) -> Any:
    """put_word(address, index, word): set an element of an array of uint64."""

    def generate(context: Any, builder: Any, __: Any, arguments: Any) -> Any:
        builder.store(arguments[2], _at(builder, arguments[0], arguments[1], WORD))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.uint64), generate


@intrinsic
def put_float(_: Any, address: Any, index: Any, value: Any) -> Any:
    """put_float(address, index, value): set an element of an array of float64."""

    def generate(context: Any, builder: Any, __: Any, arguments: Any) -> Any:
        builder.store(arguments[2], _at(builder, arguments[0], arguments[1], ir.DoubleType()))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.float64), generate


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


@intrinsic
def unowned(_: Any, array: Any) -> Any:
    """unowned(array): the same array, but not counted: passing it on costs nothing (see `address_of`).

    It keeps nothing alive: use it on a kernel's arguments only, whose owner waits for the kernel to return.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = context.make_array(signature.args[0])
        borrowed = kind(context, builder, arguments[0])
        borrowed.meminfo = ir.Constant(borrowed.meminfo.type, None)
        borrowed.parent = ir.Constant(borrowed.parent.type, None)
        return borrowed._getvalue()  # noqa: SLF001 - how numba's own intrinsics return a struct

    return array(array), generate
