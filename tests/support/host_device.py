"""Which device can a test have that has none?

One whose memory is NumPy's, and whose kernels are those of ``kernels.cu``, compiled for the host. As on a real one,
what is queued on a stream happens in order but late: at the last moment that its marks and waits allow, or, as a
seeded dice falls, earlier. Memory that is dropped is used again at once on the stream that it was taken on. So a
wait that is missing shows as a wrong batch.
"""

from __future__ import annotations

import atexit
import ctypes
import fcntl
import hashlib
import os
import random
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numcodecs.zstd import Zstd

from annbatch.buffers import SlabPool, aligned
from annbatch.device.cuda import Kernel
from annbatch.device.nvcomp import Frames
from annbatch.errors import DeviceMemoryError

SOURCE = Path(__file__).parents[2] / "annbatch" / "device" / "kernels.cu"
COMPILER = shutil.which("g++") or shutil.which("c++") or shutil.which("clang++")
N_ARGUMENTS = {
    "check_rows": 11,
    "sum_rows": 8,
    "scatter_csr": 18,
    "scatter_dense": 19,
    "undo_differences": 6,
    "unpack_blocks": 8,
}
PHASED = {"undo_differences", "unpack_blocks"}
"""Kernels whose threads wait for each other: one thread does the work of all, phase by phase."""

_HEAD = """
#include <utility>
#define __global__
#define __device__ static
#define __shared__ static thread_local
struct Index { unsigned x; };
static thread_local Index blockIdx, threadIdx, blockDim, gridDim;
// In odd blocks the other way round, so that a phase that depends on the order of its threads is found out.
static int in_turn(int k, int n) { return blockIdx.x % 2 ? n - 1 - k : k; }
#define PHASE(i, n) for (int i##_ = 0, i = in_turn(0, n); i##_ < (n); i = in_turn(++i##_, n))
typedef long long i64;
template <class... A, std::size_t... I>
static void call(void (*kernel)(A...), const i64* a, std::index_sequence<I...>) { kernel(a[I]...); }
"""
FOLDER = Path(tempfile.gettempdir()) / f"annbatch-{os.environ.get('PYTEST_XDIST_TESTRUNUID', os.getpid())}"
atexit.register(shutil.rmtree, FOLDER, ignore_errors=True)
_NAMES = ("VALUE", "OUT", "INDEX", "INDEX_OUT", "HALF", "BFLOAT16", "LOG_NORMALIZE", "BINARIZE", *N_ARGUMENTS)


def compiled(kernels: Sequence[Kernel]) -> dict[Kernel, Callable[[int, Sequence[int]], None]]:
    """Compile kernels for the host; each takes a number of rows, and its arguments."""
    lines = [_HEAD]
    for i, kernel in enumerate(kernels):
        lines += [f"#undef {name}" for name in _NAMES]
        lines += [f"#define {name} {value}" for name, value in kernel.macros]
        lines += [f"#define {name} {name}_{i}" for name in N_ARGUMENTS]
        lines += [f"namespace n{i} {{", f'#include "{SOURCE}"', "}"]
        lines += [f'extern "C" void run_{i}(unsigned blocks, unsigned threads, const i64* a) {{']
        lines += ["gridDim.x = blocks; blockDim.x = threads;"]
        lines += ["for (blockIdx.x = 0; blockIdx.x < blocks; blockIdx.x++)"]
        lines += ["for (threadIdx.x = 0; threadIdx.x < threads; threadIdx.x++)"]
        lines += [f"call(n{i}::{kernel.name}, a, std::make_index_sequence<{N_ARGUMENTS[kernel.name]}>()); }}"]
    library = ctypes.CDLL(str(_built("\n".join(lines))))
    return {kernel: _caller(getattr(library, f"run_{i}"), kernel.name) for i, kernel in enumerate(kernels)}


def _built(text: str) -> Path:
    """Compile once for all processes of a test run."""
    name = hashlib.sha256(text.encode() + SOURCE.read_bytes()).hexdigest()[:16]
    FOLDER.mkdir(exist_ok=True)
    source, library = FOLDER / f"{name}.cpp", FOLDER / f"{name}.so"
    assert COMPILER is not None
    with (FOLDER / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not library.exists():
            source.write_text(text)
            command = [COMPILER, "-std=c++14", "-O0", "-Wall", "-Wno-unused-function", "-Werror", "-shared", "-fPIC"]
            command += [str(source), "-o", f"{library}.part"]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
            Path(f"{library}.part").rename(library)
    return library


def _caller(run: Any, name: str) -> Callable[[int, Sequence[int]], None]:
    def call(n_rows: int, arguments: Sequence[int]) -> None:
        assert len(arguments) == N_ARGUMENTS[name]
        # Fewer blocks than rows and fewer threads than elements, so that both go round.
        run(max(1, min(n_rows, 3)), 1 if name in PHASED else 5, (ctypes.c_longlong * len(arguments))(*arguments))

    return call


@cache
def kernel_on_host(kernel: Kernel) -> Callable[[int, Sequence[int]], None]:
    return compiled([kernel])[kernel]


def bytes_at(address: int, n_bytes: int) -> np.ndarray:
    return np.frombuffer((ctypes.c_uint8 * n_bytes).from_address(address), np.uint8)


class HostEvent:
    def __init__(self, stream: HostStream, position: int) -> None:
        self.stream = stream
        self.position = position

    @property
    def done(self) -> bool:
        return self.stream.n_done >= self.position

    def synchronize(self) -> None:
        self.stream.run_to(self.position)


class HostStream:
    """Its queue; ``None`` stands for work that is done."""

    def __init__(self, device: HostDevice, key: int) -> None:
        self.device = device
        self.key = key
        self.queue: list[Callable[[], None] | HostEvent | None] = []
        self.n_done = 0
        self.pool = SlabPool(max_idle_bytes=1 << 40)

    def _put(self, work: Callable[[], None] | HostEvent) -> None:
        with self.device.lock:
            self.queue.append(work)
        self.device.roll()

    def run_to(self, position: int) -> None:
        """Do what comes before a position, and what that waits for."""
        with self.device.lock:
            while self.n_done < position:
                self.step(forced=True)

    def step(self, *, forced: bool) -> bool:
        """Do the next piece of work; False if it waits for another stream, unless that is forced to go on."""
        work = self.queue[self.n_done]
        if isinstance(work, HostEvent):
            if not work.done and not forced:
                return False
            work.synchronize()
        elif work is not None:
            work()
        self.queue[self.n_done] = None
        self.n_done += 1
        return True

    def memory(self, n_bytes: int) -> Any:
        self.device.count(n_bytes)
        slab = self.pool.take(aligned(n_bytes))
        # Numbered for the address alone: the slab itself is what returns to its pool.
        return _Memory(slab, slab.carve((n_bytes, np.dtype(np.uint8)))[0].ctypes.data)

    def array(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
        n = int(np.prod(shape, dtype=np.int64))
        self.device.count(n * dtype.itemsize)
        return self.pool.arrays((n, dtype))[0].reshape(shape)

    def copy(self, target: int, source: int, n_bytes: int) -> None:
        if n_bytes:
            self._put(lambda: ctypes.memmove(target, source, n_bytes) and None)

    def zero(self, target: int, n_bytes: int) -> None:
        if n_bytes:
            self._put(lambda: ctypes.memset(target, 0, n_bytes) and None)

    def launch(self, kernel: Kernel, n_rows: int, arguments: Sequence[int]) -> None:
        assert all(isinstance(value, int) for value in map(int, arguments))
        run = kernel_on_host(kernel)
        arguments = [int(value) for value in arguments]
        self._put(lambda: run(n_rows, arguments))

    def decompress(self, frames: Frames) -> None:
        self._put(lambda: decompress(frames))

    def record(self) -> HostEvent:
        with self.device.lock:
            return HostEvent(self, len(self.queue))

    def wait(self, event: HostEvent) -> None:
        self._put(event)


class _Memory:
    def __init__(self, slab: Any, ptr: int) -> None:
        self.slab = slab
        self.ptr = ptr


class HostDevice:
    """A device for tests.

    Parameters
    ----------
    seed
        Of the dice that let streams go on early; None lets none.
    room
        Bytes that may be taken at once; more is refused.
    """

    name = "cuda:0"

    def __init__(self, seed: int | None = 0, room: int = 1 << 40) -> None:
        self.lock = threading.RLock()
        self.dice = None if seed is None else random.Random(seed)
        self.room = room
        self.copying = HostStream(self, 1)
        self.users = HostStream(self, 2)
        self.streams = [self.copying, self.users]
        self.locked: list[Any] = []

    def new_stream(self) -> HostStream:
        self.streams.append(HostStream(self, len(self.streams) + 1))
        return self.streams[-1]

    def current(self) -> HostStream:
        return self.users

    def page_locked(self, n_bytes: int) -> np.ndarray:
        # Filled with what no test expects: whoever reads what nobody wrote shall be found out.
        return np.full(n_bytes, 0xA5, np.uint8)

    def scratch_nbytes(self, n_frames: int, largest_nbytes: int, total_nbytes: int) -> int:
        assert n_frames > 0
        assert largest_nbytes <= total_nbytes
        return 1000

    def address(self, array: np.ndarray) -> int:
        return array.ctypes.data

    def count(self, n_bytes: int) -> None:
        if n_bytes > self.room:
            raise DeviceMemoryError(f"no {n_bytes} bytes left")

    def roll(self) -> None:
        """Let some streams go on for a while, perhaps."""
        if self.dice is None:
            return
        with self.lock:
            for stream in self.dice.sample(self.streams, len(self.streams)):
                for _ in range(self.dice.choice((0, 0, 1, 2, 9))):
                    if stream.n_done < len(stream.queue) and not stream.step(forced=False):
                        break

    def synchronize(self) -> None:
        for stream in self.streams:
            stream.run_to(len(stream.queue))


def decompress(frames: Frames) -> None:
    """What nvCOMP does."""
    columns = [
        bytes_at(at, 8 * frames.n).view(np.uint64)
        for at in (frames.sources, frames.source_nbytes, frames.targets, frames.target_nbytes)
    ]
    decoded = bytes_at(frames.decoded_nbytes, 8 * frames.n).view(np.uint64)
    statuses = bytes_at(frames.statuses, 4 * frames.n).view(np.int32)
    for j, (source, n_source, target, room) in enumerate(zip(*map(np.ndarray.tolist, columns), strict=True)):
        assert source % 8 == 0
        assert target % 8 == 0
        try:
            plain = bytes(Zstd().decode(bytes_at(source, n_source).tobytes()))
        except RuntimeError:
            statuses[j] = 12
            continue
        decoded[j] = len(plain)
        if len(plain) > room:
            statuses[j] = 12
            continue
        bytes_at(target, len(plain))[:] = np.frombuffer(plain, np.uint8)
