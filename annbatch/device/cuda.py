"""What does the loader ask of a CUDA device?

1. `open_device` finds CuPy and the device, or says what is missing. Nothing else imports CuPy.
2. A `Stream` is a queue of work: copies, kernels, and marks that other streams wait for. A `Device` has one of its own,
   for copies that are made ahead, and knows the consumer's: the one that is current in CuPy where a batch is asked for.
3. Memory comes from CuPy's current allocator, on the stream that uses it first; page-locked memory from the driver.

`Device`, `Stream` and `Event` are protocols: the tests have another device, which works as late as it may.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from annbatch.device.nvcomp import Frames, loaded
from annbatch.errors import DeviceMemoryError, InputError

Array = Any
"""A CuPy array."""

THREADS = 256
"""Threads that share a row."""

_MAX_BLOCKS = 2**31 - 1
_SOURCE = Path(__file__).with_name("kernels.cu")


class Event(Protocol):
    """A mark in a stream."""

    @property
    def done(self) -> bool:
        """Whether all work before it is done."""

    def synchronize(self) -> None:
        """Wait until it is."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """A function of ``kernels.cu``, compiled for some types."""

    name: str
    """Its name there."""
    macros: tuple[tuple[str, str], ...]
    """What is defined for the compiler."""


class Stream(Protocol):
    """A queue of work on a device; nothing waits for it unless it says so."""

    @property
    def key(self) -> int:
        """What tells it from others."""

    def memory(self, n_bytes: int) -> Any:
        """Give memory of the device that this stream uses first, with its address as ``ptr``.

        Raises
        ------
        DeviceMemoryError
            If there is not so much left.
        """

    def array(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """Give an uninitialised CuPy array that this stream uses first; raises as `memory` does."""

    def copy(self, target: int, source: int, n_bytes: int) -> None:
        """Queue a copy between addresses, of the device or of page-locked memory."""

    def zero(self, target: int, n_bytes: int) -> None:
        """Queue setting bytes to zero."""

    def launch(self, kernel: Kernel, n_rows: int, arguments: Sequence[int]) -> None:
        """Queue a kernel that works row by row."""

    def decompress(self, frames: Frames) -> None:
        """Queue decoding zstd frames."""

    def record(self) -> Event:
        """Give a mark behind all that was queued so far."""

    def wait(self, event: Event) -> None:
        """Let what is queued from now on wait for a mark of any stream."""


class Device(Protocol):
    """A CUDA device."""

    @property
    def name(self) -> str:
        """``"cuda:0"``, say."""

    @property
    def copying(self) -> Stream:
        """The stream that windows are copied on ahead of their use."""

    def current(self) -> Stream:
        """Give the stream that is current in the calling thread."""

    def page_locked(self, n_bytes: int) -> NDArray[np.uint8]:
        """Give page-locked host memory, (n_bytes,) uint8; raises DeviceMemoryError if there is none left."""

    def scratch_nbytes(self, n_frames: int, largest_nbytes: int, total_nbytes: int) -> int:
        """Say how much memory it takes to decode so many frames of at most, and of altogether, so many bytes."""

    def address(self, array: Array) -> int:
        """Give the address of an array of this device."""


def open_device(name: str) -> Device:
    """Open ``"cuda"`` (the device that is current in CuPy) or ``"cuda:1"``.

    Raises
    ------
    InputError
        If it is no such name, CuPy is not installed, or there is no such device.
    """
    found = re.fullmatch(r"cuda(?::(\d+))?", str(name))
    if found is None:
        raise InputError(f"device must be 'cpu', 'cuda' or 'cuda:0', 'cuda:1', …, got {name!r}")
    try:
        import cupy
    except ImportError as e:
        raise InputError(
            f"device {name!r} needs CuPy, which could not be imported ({e}): "
            "pip install cupy-cuda12x (or cupy-cuda13x, as your CUDA version is)"
        ) from e
    try:
        number = int(found[1]) if found[1] else cupy.cuda.Device().id
        n_devices = cupy.cuda.runtime.getDeviceCount()
        if number >= n_devices:
            raise InputError(f"device must be one of the {n_devices} CUDA devices, got {name!r}")
        return cuda(number, os.getpid())
    except cupy.cuda.runtime.CUDARuntimeError as e:
        raise InputError(f"device {name!r} needs a usable CUDA device: {e}") from e


@cache
def cuda(number: int, process: int) -> Cuda:
    """Give a device, once for each process: its stream outlives all loaders, as long as memory was used on it."""
    return Cuda(number)


@contextmanager
def _memory_errors(what: str, n_bytes: int) -> Iterator[None]:
    """Say which settings to lower when memory has run out; CuPy's, RMM's and the driver's errors all arrive here."""
    import cupy

    try:
        yield
    except (MemoryError, cupy.cuda.runtime.CUDARuntimeError) as e:
        if not isinstance(e, MemoryError) and "emory" not in str(e):
            raise
        raise DeviceMemoryError(
            f"{what} has fewer than {n_bytes} free bytes: lower preload_nchunks or chunk_size (smaller windows), lower "
            f"batch_size (smaller batches), or keep fewer batches; {e}"
        ) from e


class Cuda:
    """A CUDA device, through CuPy; the parameter is its number."""

    def __init__(self, number: int) -> None:
        import cupy

        self._device = cupy.cuda.Device(number)
        self.name = f"cuda:{number}"
        with self._device:
            self.copying = CudaStream(self._device, cupy.cuda.Stream(non_blocking=True))

    def current(self) -> CudaStream:
        """Give the stream that is current in the calling thread."""
        import cupy

        with self._device:
            return CudaStream(self._device, cupy.cuda.get_current_stream())

    def page_locked(self, n_bytes: int) -> NDArray[np.uint8]:
        """Give page-locked host memory that goes back to the system with its last array."""
        import cupy

        # Not from CuPy's pool of such memory, which keeps for ever what it once had.
        with self._device, _memory_errors("page-locked host memory", n_bytes):
            memory = cupy.cuda.PinnedMemoryPointer(cupy.cuda.PinnedMemory(n_bytes), 0)
        found: NDArray[np.uint8] = np.frombuffer(memory, np.uint8, n_bytes)
        return found

    def scratch_nbytes(self, n_frames: int, largest_nbytes: int, total_nbytes: int) -> int:
        """Ask nvCOMP how much memory decoding takes."""
        with self._device:
            return loaded().scratch_nbytes(n_frames, largest_nbytes, total_nbytes, self.copying.key)

    def address(self, array: Array) -> int:
        """Give the address of an array of this device."""
        return int(array.data.ptr)


class CudaStream:
    """A stream of CuPy's on one device."""

    def __init__(self, device: Any, stream: Any) -> None:
        self._device = device
        self._stream = stream

    @property
    def key(self) -> int:
        """The driver's handle."""
        return int(self._stream.ptr)

    def memory(self, n_bytes: int) -> Any:
        """Give memory from CuPy's current allocator."""
        import cupy

        with self._device, self._stream, _memory_errors("the CUDA device", n_bytes):
            return cupy.cuda.alloc(n_bytes)

    def array(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """Give an uninitialised array from CuPy's current allocator."""
        import cupy

        n_bytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        with self._device, self._stream, _memory_errors("the CUDA device", n_bytes):
            return cupy.empty(shape, dtype)

    def copy(self, target: int, source: int, n_bytes: int) -> None:
        """Queue a copy; both addresses say themselves whose memory they are."""
        import cupy

        if n_bytes:
            with self._device:
                cupy.cuda.runtime.memcpyAsync(target, source, n_bytes, cupy.cuda.runtime.memcpyDefault, self.key)

    def zero(self, target: int, n_bytes: int) -> None:
        """Queue setting bytes to zero."""
        import cupy

        if n_bytes:
            with self._device:
                cupy.cuda.runtime.memsetAsync(target, 0, n_bytes, self.key)

    def launch(self, kernel: Kernel, n_rows: int, arguments: Sequence[int]) -> None:
        """Queue a kernel with a block of threads for each row."""
        with self._device, self._stream:
            function = _compiled(kernel)
            function((min(max(1, n_rows), _MAX_BLOCKS),), (THREADS,), tuple(np.int64(value) for value in arguments))

    def decompress(self, frames: Frames) -> None:
        """Queue nvCOMP's decoding."""
        with self._device:
            loaded().decompress(frames, self.key)

    def record(self) -> Event:
        """Give an event of CuPy's behind all that was queued so far."""
        import cupy

        with self._device:
            event: Event = cupy.cuda.Event(disable_timing=True)
            event.record(self._stream)  # type: ignore[attr-defined]
        return event

    def wait(self, event: Event) -> None:
        """Let what is queued from now on wait."""
        with self._device:
            self._stream.wait_event(event)


@cache
def _compiled(kernel: Kernel) -> Callable[..., None]:
    """Compile a kernel for the current device; CuPy keeps the result on disk, and loads it once for each device."""
    import cupy

    options = tuple(f"-D{name}={value}" for name, value in kernel.macros)
    found: Callable[..., None] = cupy.RawKernel(_SOURCE.read_text(encoding="utf-8"), kernel.name, options=options)
    return found
