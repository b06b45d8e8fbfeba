"""Which of many column numbers, one behind the other, are wanted ones?

Vectors of 64 bytes are looked up at once in a bitmap of all columns. Within a row column numbers ascend, so those of a
vector usually lie within 1,024 columns, and the bits of so many columns fit two registers. Needs the instructions of
AVX-512BW; where a processor lacks them, nothing is found near, and the caller looks at one number after the other.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba.core.registry import cpu_target
from numpy.typing import NDArray

from annbatch.native import intrinsic, types

_I32, _I64 = ir.IntType(32), ir.IntType(64)
_TRIPLE, _CPU, _FEATURES = cpu_target.target_context.codegen().magic_tuple()
_HAS_VECTORS = "+avx512bw" in _FEATURES.split(",")
# Each gives lane i of two vectors what lane ``places[i]`` of both, one behind the other, holds.
_PERMUTE = {16: "llvm.x86.avx512.vpermi2var.hi.512", 32: "llvm.x86.avx512.vpermi2var.d.512"}
_VECTOR_NBYTES = 64


def bitmap_of(is_wanted: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Give a bit for each column, with as many bytes behind them as `find_wanted` may load."""
    bits = np.packbits(is_wanted, bitorder="little")
    return np.append(bits, np.zeros(2 * _VECTOR_NBYTES + 8, np.uint8))


@intrinsic
def find_wanted(typing: Any, source: Any, n: Any, bitmap: Any, limit: Any, like: Any) -> Any:
    """Look up the column numbers at ``source``, at least ``n`` of the dtype of ``like``, in a `bitmap_of` columns.

    Reads 64 bytes at ``source`` however small ``n`` is. Gives how many of them, from the first one on, are known, and a
    bit for each of these: 1 if it is wanted. A number not below ``limit``, that of the columns, is not known.
    """
    bits = like.dtype.bitwidth

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if not _HAS_VECTORS or bits not in _PERMUTE:
            return context.make_tuple(builder, signature.return_type, [_I64(0), _I64(0)])
        source, n, bitmap, limit = arguments[:4]
        lanes, item = 8 * _VECTOR_NBYTES // bits, ir.IntType(bits)
        vector, shift = ir.VectorType(item, lanes), bits.bit_length() - 1

        def all_lanes(value: Any) -> Any:
            one = builder.insert_element(ir.Constant(vector, ir.Undefined), value, _I32(0))
            return builder.shuffle_vector(one, one, ir.Constant(ir.VectorType(_I32, lanes), [0] * lanes))

        def constant(value: int) -> Any:
            return ir.Constant(vector, [value] * lanes)

        def load(address: Any) -> Any:
            return builder.load(builder.inttoptr(address, vector.as_pointer()), align=1)

        def at_most(value: Any, most: Any) -> Any:
            return builder.select(builder.icmp_unsigned("<", value, most), value, most)

        def mask(condition: Any) -> Any:
            return builder.zext(builder.bitcast(condition, ir.IntType(lanes)), _I64)

        last = builder.trunc(at_most(builder.sub(limit, _I64(1)), _I64(2**bits - 1)), item)
        columns = load(source)
        first = builder.lshr(at_most(builder.extract_element(columns, _I32(0)), last), item(shift))
        words = builder.sub(builder.lshr(columns, constant(shift)), all_lanes(first))
        place = builder.add(bitmap, builder.mul(builder.zext(first, _I64), _I64(bits // 8)))
        name = _PERMUTE[bits]
        function = builder.module.globals.get(name) or ir.Function(
            builder.module, ir.FunctionType(vector, [vector] * 3), name
        )
        own = builder.call(function, [load(place), words, load(builder.add(place, _I64(_VECTOR_NBYTES)))])
        bit = builder.and_(builder.lshr(own, builder.and_(columns, constant(bits - 1))), constant(1))
        is_far = builder.or_(
            builder.icmp_unsigned(">", words, constant(2 * lanes - 1)),
            builder.icmp_unsigned(">", columns, all_lanes(last)),
        )
        stop = builder.or_(mask(is_far), builder.shl(_I64(1), at_most(n, _I64(lanes))))
        n_known = builder.cttz(stop, ir.Constant(ir.IntType(1), 1))
        known = builder.sub(builder.shl(_I64(1), n_known), _I64(1))
        wanted = builder.and_(mask(builder.icmp_unsigned("!=", bit, constant(0))), known)
        return context.make_tuple(builder, signature.return_type, [n_known, wanted])

    return types.UniTuple(types.int64, 2)(types.int64, types.int64, types.int64, types.int64, like), generate
