"""How is a crc32c computed at the speed of memory, in compiled code?

Three streams are fed to the processor's instruction; where it has none, eight bytes at a time go through tables.

Definition: RFC 3720, B.4. After a change here remove ``__pycache__``, as `annbatch.native` says.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba.core.registry import cpu_target

from annbatch.native import Array, Routine, inline, intrinsic, place_of, types, view

_POLYNOMIAL = 0x82F63B78
_STREAM = 2048
_BYTES = np.empty(0, np.uint8)


def _crc_tables() -> tuple[Array, Array]:
    """Give the (8, 256) tables of eight bytes at a time, and the (4, 256) that advance a state over `_STREAM` zeros."""
    byte: Array = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        byte = (byte >> 1) ^ np.where(byte & 1, np.uint32(_POLYNOMIAL), np.uint32(0))
    slices = [byte]
    for _ in range(7):
        slices.append(byte[slices[-1] & 255] ^ (slices[-1] >> 8))

    def advance(states: Array, columns: Array) -> Array:
        bits = (states[:, None] >> np.arange(32, dtype=np.uint32)) & 1
        return np.asarray(np.bitwise_xor.reduce(np.where(bits, columns, np.uint32(0)), axis=1))

    # A state's advance is linear over GF(2), so 32 columns describe it and squaring doubles the distance.
    columns: Array = np.uint32(1) << np.arange(32, dtype=np.uint32)
    columns = byte[columns & 255] ^ (columns >> 8)
    for _ in range(_STREAM.bit_length() - 1):
        columns = advance(columns, columns)
    shifts = [advance(np.arange(256, dtype=np.uint32) << np.uint32(8 * place), columns) for place in range(4)]
    return np.stack(slices).astype(np.int64), np.stack(shifts).astype(np.int64)


_SLICES, _SHIFTS = _crc_tables()
_TRIPLE, _CPU, _FEATURES = cpu_target.target_context.codegen().magic_tuple()
_INSTRUCTION = {
    (True, False): ("llvm.x86.sse42.crc32.64.64", 64),
    (False, True): ("llvm.aarch64.crc32cx", 32),
}.get(("+sse4.2" in _FEATURES.split(","), "+crc" in _FEATURES.split(",") and _TRIPLE.startswith(("aarch64", "arm64"))))


@intrinsic
def _load_word(typing: Any, address: Any) -> Any:
    """Load eight bytes from any address."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.load(builder.inttoptr(arguments[0], ir.IntType(64).as_pointer()), align=1)

    return types.int64(types.int64), generate


@intrinsic
def _step_instruction(typing: Any, state: Any, word: Any) -> Any:
    """Advance a crc32c state over eight bytes with the processor's instruction."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        assert _INSTRUCTION is not None
        name, width = _INSTRUCTION
        state_type, word_type = ir.IntType(width), ir.IntType(64)
        function_type = ir.FunctionType(state_type, [state_type, word_type])
        function = builder.module.globals.get(name) or ir.Function(builder.module, function_type, name)
        state, word = arguments
        result = builder.call(function, [builder.trunc(state, state_type) if width < 64 else state, word])
        return builder.zext(result, word_type) if width < 64 else result

    return types.int64(types.int64, types.int64), generate


@inline
def _step_tables(state: Any, word: Any) -> Any:
    word ^= state
    state = _SLICES[7, word & 255] ^ _SLICES[6, word >> 8 & 255] ^ _SLICES[5, word >> 16 & 255]
    state ^= _SLICES[4, word >> 24 & 255] ^ _SLICES[3, word >> 32 & 255] ^ _SLICES[2, word >> 40 & 255]
    return state ^ _SLICES[1, word >> 48 & 255] ^ _SLICES[0, word >> 56 & 255]


_step = _step_tables if _INSTRUCTION is None else _step_instruction


@inline
def _shift(state: Any) -> Any:
    low = _SHIFTS[0, state & 255] ^ _SHIFTS[1, state >> 8 & 255]
    return low ^ _SHIFTS[2, state >> 16 & 255] ^ _SHIFTS[3, state >> 24 & 255]


@inline
def crc32c_at(address: int, size: int) -> int:
    """Give the crc32c (RFC 3720, B.4) of the bytes at an address."""
    state, end = 0xFFFFFFFF, address + size
    # The instruction takes three cycles and one can start in each, hence three independent streams.
    while end - address >= 3 * _STREAM:
        second = third = 0
        for place in range(address, address + _STREAM, 8):
            state = _step(state, _load_word(place))
            second = _step(second, _load_word(place + _STREAM))
            third = _step(third, _load_word(place + 2 * _STREAM))
        state = _shift(_shift(state) ^ second) ^ third
        address += 3 * _STREAM
    while end - address >= 8:
        state = _step(state, _load_word(address))
        address += 8
    if end > address:
        # No byte past the end may be touched, so the rest goes byte by byte.
        for byte in view(address, end - address, _BYTES):
            state = _SLICES[0, (state ^ byte) & 255] ^ state >> 8
    return state ^ 0xFFFFFFFF


@Routine
def CRC32C(address: int, size: int) -> int:
    """Give the crc32c of ``size`` bytes at an address, as the kernels that decode chunks call it."""
    return crc32c_at(address, size)


def crc32c(buffer: Array) -> int:
    """Give the crc32c (RFC 3720, B.4) of a contiguous uint8 array."""
    return CRC32C(place_of(buffer, np.uint8), buffer.size)
