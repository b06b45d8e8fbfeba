"""How does compiled code reach memory, files and C functions?

1. `inline` compiles a part of a kernel, `Kernel` a kernel that is cached on disk, `Routine` a function that kernels
   call by its address.
2. `view` gives an array at an address, `load` one element of it, `pread` fills one from a file or memory and counts the
   bytes and the time, `call_decompress` and `call_inflate` call C decoders by address: kernels that hold a ctypes
   object could not be cached.
3. `first_bit` and `count_bits` are instructions; `stream_line` and `accumulate_vectors` are what LLVM would not make of
   a loop by itself.

Caches are renewed when a kernel's own file changes, not when this one does: remove ``__pycache__`` after a change here.
"""

from __future__ import annotations

import inspect
import os
import pickle
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar, cast

import numba
import numpy as np
from llvmlite import ir
from numba import extending
from numba.core import cgutils
from numba.core.compiler_lock import global_compiler_lock

from annbatch.counters import BYTES_READ, CLOCK, READ_NS

Array = np.ndarray[Any, Any]
F = TypeVar("F", bound=Callable[..., Any])

# Its annotations describe how types are declared, not what the declared objects do in compiled code.
types: Any = numba.types

# Functions that C calls are not compiled, nor are those by which Python would call a part of a kernel: each would be
# compiled again in every kernel that the part is in.
_njit: Any = partial(numba.njit, nogil=True, error_model="numpy", no_cfunc_wrapper=True)


def inline(function: F) -> F:
    """Compile a part of a kernel, which is what gets cached; only compiled functions can call the part."""
    return cast(F, _njit(no_cpython_wrapper=True)(function))


def intrinsic(function: Callable[..., Any]) -> Callable[..., Any]:
    """Let a function say which instructions a call of it becomes."""
    return cast(Callable[..., Any], extending.intrinsic(function))


def inserted(function: F) -> F:
    """Compile a part of a kernel in each place where it is called: handing many arrays over takes time, too."""
    return cast(F, _njit(inline="always")(function))


class Kernel:
    """A nogil compiled function, cached on disk where that is possible.

    A cache that cannot be written or is damaged costs the compilation, never the call.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._compile = partial(_njit, function)
        self.__doc__ = function.__doc__
        try:
            self._compiled: Callable[..., Any] = _njit(cache=True)(function)
        except RuntimeError:
            # No folder for the cache can be written to.
            self._compiled = self._compile()

    def __call__(self, *arguments: Any) -> Any:
        """Call the function, compiled or loaded for the types of the arguments if that has not happened yet."""
        try:
            return self._compiled(*arguments)
        except (OSError, EOFError, pickle.UnpicklingError):
            # Kernels raise nothing: this came from loading or saving the cache.
            self._compiled = self._compile()
            return self._compiled(*arguments)


class Routine:
    """A compiled function of integers, (n,) int64 to int64, that kernels call by its address (`call_routine`).

    A kernel contains all that it calls otherwise, and is compiled with it for each combination of types. A routine is
    compiled once, and cached by itself where that is possible. It must raise nothing.
    """

    def __init__(self, function: Callable[..., int]) -> None:
        self._function = function
        self._compiled: Any = None
        self._found: tuple[int, Callable[..., int]] | None = None
        self.__doc__ = function.__doc__

    @property
    def address(self) -> int:
        """Address of the compiled function, which is compiled or loaded if that has not happened yet."""
        return self._ready()[0]

    def __call__(self, *integers: int) -> int:
        """Call the function without the GIL."""
        return int(self._ready()[1](*integers))

    def _ready(self) -> tuple[int, Callable[..., int]]:
        """Give the address, and what Python calls; made by one thread, behind the lock for which forks wait."""
        if self._found is None:
            with global_compiler_lock:
                if self._found is None:
                    self._compiled = self._compile()
                    self._found = int(self._compiled.address), self._compiled.ctypes
        return self._found

    def _compile(self) -> Any:
        signature = types.int64(*[types.int64] * len(inspect.signature(self._function).parameters))
        try:
            return numba.cfunc(signature, cache=True, error_model="numpy")(self._function)
        except (RuntimeError, OSError, EOFError, pickle.UnpicklingError):
            # As for kernels: no folder for the cache, or one that cannot be written or is damaged.
            return numba.cfunc(signature, error_model="numpy")(self._function)


def place_of(array: Array, dtype: Any = None) -> int:
    """Give the address of an array's first element, for a `Routine`.

    Raises
    ------
    ValueError
        If the elements do not lie one behind the other, or have another dtype than the one that is given.
    """
    if not array.flags.c_contiguous or (dtype is not None and array.dtype != dtype):
        raise ValueError(
            f"a routine takes contiguous arrays of {dtype or array.dtype}, got {array.dtype} with strides "
            f"{array.strides}"
        )
    return int(array.ctypes.data)


# A thread may be compiling, or loading from the cache, while another one forks. The fork waits for it, or the child
# would wait for ever.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=global_compiler_lock.acquire,
        after_in_parent=global_compiler_lock.release,
        after_in_child=global_compiler_lock.release,
    )


# --- memory and C -----------------------------------------------------------------------------------------------------


@intrinsic
def pointer(typing: Any, address: Any, like: Any) -> Any:
    """Turn an address into a pointer to elements of the dtype of ``like``; it is indexed without a check."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return types.CPointer(like.dtype)(types.int64, like), generate


@inline
def view(address: int, size: int, like: Array) -> Any:
    """Give (size,) elements of the dtype of ``like`` at an address, which must be aligned for it."""
    return numba.carray(pointer(address, like), (size,))  # type: ignore[attr-defined]


@intrinsic
def load(typing: Any, address: Any, like: Any) -> Any:
    """Load an element of the dtype of ``like`` from any address, aligned or not."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        stored = context.get_value_type(signature.return_type)
        return builder.load(builder.inttoptr(arguments[0], stored.as_pointer()), align=1)

    return like.dtype(types.int64, like), generate


@inline
def address_of(array: Array) -> int:
    """Give the address of an array's first element."""
    return np.int64(array.ctypes.data)  # type: ignore[return-value]


@intrinsic
def fetch_add(typing: Any, address: Any, value: Any) -> Any:
    """Add to the int64 at an address, as one step for all threads; gives what it was before."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = builder.inttoptr(arguments[0], ir.IntType(64).as_pointer())
        return builder.atomic_rmw("add", pointer, arguments[1], "monotonic")

    return types.int64(types.int64, types.int64), generate


@inline
def take_ticket(tickets: Array) -> int:
    """Give the next number of a counter, (1,) int64, that several threads share: each number to one of them."""
    return fetch_add(address_of(tickets), 1)  # type: ignore[no-any-return]


@intrinsic
def first_bit(typing: Any, bits: Any) -> Any:
    """Give the number of the lowest bit that is 1, or 64."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 0))

    return types.int64(types.int64), generate


@intrinsic
def count_bits(typing: Any, bits: Any) -> Any:
    """Count the bits that are 1."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.ctpop(arguments[0])

    return types.int64(types.int64), generate


@intrinsic
def stream_line(typing: Any, target: Any, source: Any, like: Any, stored: Any) -> Any:
    """Cast elements of the dtype of ``stored`` into one 64-byte line of the dtype of ``like``, past the caches.

    A batch is far larger than the caches: reading its lines into them before overwriting them would be half the work.
    """
    wanted, given = like.dtype, stored.dtype
    lanes = 512 // wanted.bitwidth

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        line = ir.VectorType(context.get_data_type(wanted), lanes)
        vector = ir.VectorType(context.get_data_type(given), lanes)
        value = builder.load(builder.inttoptr(arguments[1], vector.as_pointer()), align=given.bitwidth // 8)
        if isinstance(wanted, types.Float) and isinstance(given, types.Float):
            if wanted.bitwidth > given.bitwidth:
                value = builder.fpext(value, line)
            elif wanted.bitwidth < given.bitwidth:
                value = builder.fptrunc(value, line)
        elif isinstance(wanted, types.Float):
            value = builder.sitofp(value, line) if given.signed else builder.uitofp(value, line)
        elif wanted.bitwidth > given.bitwidth:
            value = builder.sext(value, line) if given.signed else builder.zext(value, line)
        elif wanted.bitwidth < given.bitwidth:
            value = builder.trunc(value, line)
        stored_line = builder.store(value, builder.inttoptr(arguments[0], line.as_pointer()), align=64)
        stored_line.set_metadata("nontemporal", builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)]))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, like, stored), generate


@intrinsic
def streamed(typing: Any) -> Any:
    """Let what `stream_line` wrote be seen by other threads."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
def accumulate_vectors(typing: Any, address: Any, n: Any, like: Any) -> Any:
    """Replace ``n`` vectors of 16 bytes, of integers as wide as the dtype of ``like``, by their running sums.

    Each vector is summed up by itself: only one addition waits for the vector before.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        lanes = 128 // like.dtype.bitwidth
        vector, lane = ir.VectorType(ir.IntType(like.dtype.bitwidth), lanes), ir.IntType(32)

        def chosen(one: Any, other: Any, numbers: Any) -> Any:
            return builder.shuffle_vector(one, other, ir.Constant(ir.VectorType(lane, lanes), list(numbers)))

        nothing = ir.Constant(vector, None)
        before = cgutils.alloca_once_value(builder, nothing)  # type: ignore[no-untyped-call]
        base = builder.inttoptr(arguments[0], vector.as_pointer())
        with cgutils.for_range(builder, arguments[1]) as loop:
            place = builder.gep(base, [loop.index])
            sums = builder.load(place, align=like.dtype.bitwidth // 8)
            distance = 1
            while distance < lanes:
                # From `distance` zeros on, the lanes from the first one on.
                moved = chosen(nothing, sums, range(lanes - distance, 2 * lanes - distance))
                sums = builder.add(sums, moved)
                distance *= 2
            carried = builder.load(before)
            builder.store(builder.add(sums, carried), place, align=like.dtype.bitwidth // 8)
            builder.store(builder.add(carried, chosen(sums, nothing, [lanes - 1] * lanes)), before)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, like), generate


@intrinsic
def call_decompress(typing: Any, function: Any, context_: Any, source: Any, size: Any, target: Any, room: Any) -> Any:
    """Call ``int function(void *context, const void *source, int32 size, void *target, int32 room)``."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer, int32 = ir.IntType(8).as_pointer(), ir.IntType(32)
        function_type = ir.FunctionType(int32, [pointer, pointer, int32, pointer, int32])
        address, state, source, size, target, room = arguments
        result = builder.call(
            builder.inttoptr(address, function_type.as_pointer()),
            [
                builder.inttoptr(state, pointer),
                builder.inttoptr(source, pointer),
                builder.trunc(size, int32),
                builder.inttoptr(target, pointer),
                builder.trunc(room, int32),
            ],
        )
        return builder.sext(result, ir.IntType(64))

    return types.int64(*[types.int64] * 6), generate


@intrinsic
def call_inflate(typing: Any, function: Any, context_: Any, source: Any, size: Any, target: Any, room: Any) -> Any:
    """Call ``int function(void *, const void *source, size_t size, void *target, size_t room, size_t *)``.

    With NULL at the end: it gives 0 only if ``room`` bytes came.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer, size_type = ir.IntType(8).as_pointer(), ir.IntType(64)
        function_type = ir.FunctionType(ir.IntType(32), [pointer, pointer, size_type, pointer, size_type, pointer])
        address, state, source, size, target, room = arguments
        result = builder.call(
            builder.inttoptr(address, function_type.as_pointer()),
            [
                builder.inttoptr(state, pointer),
                builder.inttoptr(source, pointer),
                size,
                builder.inttoptr(target, pointer),
                room,
                ir.Constant(pointer, None),
            ],
        )
        return builder.sext(result, ir.IntType(64))

    return types.int64(*[types.int64] * 6), generate


@intrinsic
def call_routine(typing: Any, address: Any, integers: Any) -> Any:
    """Call the `Routine` at an address with a tuple of int64; gives its int64."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        int64 = ir.IntType(64)
        function_type = ir.FunctionType(int64, [int64] * integers.count)
        given = cgutils.unpack_tuple(builder, arguments[1], integers.count)  # type: ignore[no-untyped-call]
        return builder.call(builder.inttoptr(arguments[0], function_type.as_pointer()), given)

    return types.int64(types.int64, integers), generate


READ_OK, READ_FAILED, READ_SHORT = 0, 1, 2
"""What `pread` returns."""
IN_MEMORY = -2
"""In the place of a descriptor: the offset is an address, and its caller knows that so many bytes lie there."""

_c_pread = types.ExternalFunction("pread", types.int64(types.int32, types.int64, types.int64, types.int64))
_c_memcpy = types.ExternalFunction("memcpy", types.int64(types.int64, types.int64, types.int64))
_c_errno = types.ExternalFunction("__error" if sys.platform == "darwin" else "__errno_location", types.int64())
_c_clock = types.ExternalFunction("clock_gettime", types.int32(types.int32, types.int64))
_MONOTONIC = getattr(time, "CLOCK_MONOTONIC", 1)
_INT32 = np.empty(0, np.int32)
_BYTES = np.empty(0, np.uint8)
_EINTR = 4


@inline
def _now_ns(counts: Array) -> int:
    """Read the clock; ``counts`` has room for what it says."""
    _c_clock(np.int32(_MONOTONIC), address_of(counts) + 8 * CLOCK)
    return counts[CLOCK] * 1_000_000_000 + counts[CLOCK + 1]  # type: ignore[no-any-return]


@inline
def pread(fd: int, address: int, size: int, offset: int, counts: Array) -> int:
    """Read exactly ``size`` bytes of a file, or of memory, to an address; a file may give them in parts.

    Bytes of a file, and the time that they take, are added to ``counts``, those of the thread
    (`annbatch.counters.of_thread`).
    """
    if fd == IN_MEMORY:
        _c_memcpy(address, offset, size)
        return READ_OK
    began = _now_ns(counts)
    done, status = 0, READ_OK
    while done < size and status == READ_OK:
        got = _c_pread(np.int32(fd), address + done, size - done, offset + done)
        if got == 0:
            status = READ_SHORT
        elif got > 0:
            done += got
        elif view(_c_errno(), 1, _INT32)[0] != _EINTR:
            status = READ_FAILED
    counts[BYTES_READ] += done
    counts[READ_NS] += _now_ns(counts) - began
    return status
