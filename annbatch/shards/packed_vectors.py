"""How are the 16 lanes of a packed block handled at once, in compiled code?

LLVM's vectors, one instruction sequence for every width: LLVM makes no such loops by itself, and a function for each
width would compile for seconds. Addresses are those of bytes, and need no alignment.

1. `unpack_row` takes 16 values of some bits out of words of 16 bits.
2. `split_pairs` and `split_nibbles` give values of two and four bits a byte each.
3. `expand_row` adds such bytes to those of 16 values that are flagged.
4. `sum_row` sums up steps.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba.core.registry import cpu_target

from annbatch.native import intrinsic, types

_I8, _I16, _I32, _I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
_LANES = 16
_ROW, _BYTES = ir.VectorType(_I16, _LANES), ir.VectorType(_I8, _LANES)
_TRIPLE, _CPU, _FEATURES = cpu_target.target_context.codegen().magic_tuple()
# Both give 0 where a place is 128 or more.
_PERMUTE = {
    (True, False): "llvm.x86.ssse3.pshuf.b.128",
    (False, True): "llvm.aarch64.neon.tbl1.v16i8",
}.get(("+ssse3" in _FEATURES.split(","), _TRIPLE.startswith(("aarch64", "arm64"))))


def _places_of_flags() -> list[int]:
    """Give for each byte of flags the eight places, a byte each, that its values come from; 128 where no flag is."""
    flags = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
    places = np.where(flags, np.cumsum(flags, axis=1) - 1, 128).astype(np.uint8)
    return [int(word) for word in places.view("<u8")[:, 0]]


_PLACES = _places_of_flags()


def _numbers(places: Any) -> Any:
    return ir.Constant(ir.VectorType(_I32, len(places)), list(places))


def _splat(builder: Any, value: Any, n: int = _LANES) -> Any:
    empty = ir.Constant(ir.VectorType(value.type, n), ir.Undefined)
    return builder.shuffle_vector(builder.insert_element(empty, value, _I32(0)), empty, _numbers([0] * n))


def _load(builder: Any, address: Any, vector: Any) -> Any:
    return builder.load(builder.inttoptr(address, vector.as_pointer()), align=1)


def _store(builder: Any, vector: Any, address: Any) -> None:
    builder.store(vector, builder.inttoptr(address, vector.type.as_pointer()), align=1)


@intrinsic
def unpack_row(typing: Any, low: Any, high: Any, shift: Any, mask: Any, target: Any) -> Any:
    """Write 16 uint16: ``(words at low >> shift | words at high << 16 - shift) & mask``; ``shift`` is below 16."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        low, high = (_load(builder, address, _ROW) for address in arguments[:2])
        shift = _splat(builder, builder.trunc(arguments[2], _I16))
        mask = _splat(builder, builder.trunc(arguments[3], _I16))
        # In two steps: a shift by all 16 bits is undefined.
        back = builder.sub(ir.Constant(_ROW, [15] * _LANES), shift)
        high = builder.shl(builder.shl(high, back), ir.Constant(_ROW, [1] * _LANES))
        _store(builder, builder.and_(builder.or_(builder.lshr(low, shift), high), mask), arguments[4])
        return context.get_dummy_value()

    return types.void(*[types.int64] * 5), generate


@intrinsic
def split_pairs(typing: Any, source: Any, target: Any) -> Any:
    """Write 64 bytes: the values of two bits at ``source``."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _split(builder, arguments[0], arguments[1], 2)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


@intrinsic
def split_nibbles(typing: Any, source: Any, target: Any) -> Any:
    """Write 32 bytes: the values of four bits at ``source``."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _split(builder, arguments[0], arguments[1], 4)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


def _split(builder: Any, source: Any, target: Any, bits: int) -> None:
    stored = _load(builder, source, _BYTES)

    def part(k: int) -> Any:
        mask = ir.Constant(_BYTES, [2**bits - 1] * _LANES)
        return builder.and_(builder.lshr(stored, ir.Constant(_BYTES, [k * bits] * _LANES)), mask)

    def interleaved(one: Any, other: Any) -> Any:
        n = one.type.count
        return builder.shuffle_vector(one, other, _numbers([i // 2 + i % 2 * n for i in range(2 * n)]))

    parts = [part(k) for k in range(8 // bits)]
    while len(parts) > 1:
        parts = [interleaved(parts[k], parts[k + len(parts) // 2]) for k in range(len(parts) // 2)]
    _store(builder, parts[0], target)


@intrinsic
def expand_row(typing: Any, flags: Any, source: Any, shift: Any, target: Any) -> Any:
    """Add the next of the bytes at ``source``, shifted up, to each of 16 uint16 that is flagged; give their number."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        source, shift, target = arguments[1:]
        flags = builder.zext(_load(builder, arguments[0], _I16), _I64)
        module = builder.module
        table = module.globals.get("annbatch.places") or ir.GlobalVariable(
            module, ir.ArrayType(_I64, 256), "annbatch.places"
        )
        table.linkage, table.global_constant = "internal", True
        table.initializer = ir.Constant(ir.ArrayType(_I64, 256), _PLACES)

        def looked_up(byte: Any) -> Any:
            return builder.load(builder.gep(table, [_I64(0), byte], inbounds=True))

        first, second = builder.and_(flags, _I64(255)), builder.and_(builder.lshr(flags, _I64(8)), _I64(255))
        before = builder.ctpop(first)
        shifted = builder.add(looked_up(second), builder.mul(before, _I64(0x0101010101010101)))
        places = builder.insert_element(ir.Constant(ir.VectorType(_I64, 2), ir.Undefined), looked_up(first), _I32(0))
        places = builder.bitcast(builder.insert_element(places, shifted, _I32(1)), _BYTES)
        stored = _load(builder, source, _BYTES)
        added = builder.shl(
            builder.zext(_permuted(builder, stored, places), _ROW), _splat(builder, builder.trunc(shift, _I16))
        )
        _store(builder, builder.or_(_load(builder, target, _ROW), added), target)
        return builder.add(before, builder.ctpop(second))

    return types.int64(*[types.int64] * 4), generate


def _permuted(builder: Any, stored: Any, places: Any) -> Any:
    """Give byte ``places[i]`` of ``stored`` in lane i, and 0 where that is 128 or more."""
    if _PERMUTE is not None:
        function_type = ir.FunctionType(_BYTES, [_BYTES, _BYTES])
        function = builder.module.globals.get(_PERMUTE) or ir.Function(builder.module, function_type, _PERMUTE)
        return builder.call(function, [stored, places])
    result = ir.Constant(_BYTES, [0] * _LANES)
    for i in range(_LANES):
        place = builder.extract_element(places, _I32(i))
        lane = builder.zext(builder.and_(place, _I8(_LANES - 1)), _I32)
        is_flagged = builder.icmp_unsigned("<", place, _I8(128))
        value = builder.select(is_flagged, builder.extract_element(stored, lane), _I8(0))
        result = builder.insert_element(result, value, _I32(i))
    return result


@intrinsic
def sum_row(typing: Any, target: Any, before: Any) -> Any:
    """Replace 16 steps, as uint16, by the values that they lead to from the one ``before``; give the last."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        # A step of 0 leads to the next number.
        zero = ir.Constant(_ROW, [0] * _LANES)
        sums = builder.add(_load(builder, arguments[0], _ROW), ir.Constant(_ROW, [1] * _LANES))
        for distance in (1, 2, 4, 8):
            moved = range(_LANES - distance, 2 * _LANES - distance)
            sums = builder.add(sums, builder.shuffle_vector(zero, sums, _numbers(moved)))
        sums = builder.add(sums, _splat(builder, builder.trunc(arguments[1], _I16)))
        _store(builder, sums, arguments[0])
        return builder.zext(builder.extract_element(sums, _I32(_LANES - 1)), _I64)

    return types.int64(types.int64, types.int64), generate


@intrinsic
def clear_row(typing: Any, target: Any) -> Any:
    """Write 16 zeros, as uint16."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _store(builder, ir.Constant(_ROW, [0] * _LANES), arguments[0])
        return context.get_dummy_value()

    return types.void(types.int64), generate


@intrinsic
def add_row(typing: Any, target: Any, base: Any) -> Any:
    """Add a number to 16 uint16."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        base = _splat(builder, builder.trunc(arguments[1], _I16))
        _store(builder, builder.add(_load(builder, arguments[0], _ROW), base), arguments[0])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate
