"""Can this codec chain be decoded without the GIL, and how?

1. `parse_codecs` reads the ``codecs`` of a zarr array (in terms of v3; those inside the shard, if it is sharded) and
   gives a `Decoder`, or the reason why not; `annbatch.shards.hdf5_chunks` does the same for HDF5.
2. `library` loads libblosc2, which decodes blosc, zstd and zlib, and lets it decode known chunks before it is trusted.
3. A `Workspace` is what one thread needs to decode: contexts of the libraries and its buffers.
4. `decompressor` chooses which function the kernels call: that of libblosc2, or of libdeflate for zlib streams.

gzip has no public C interface here: `gunzip` decodes it in Python, with a bounded output.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import sys
import threading
import warnings
import weakref
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from annbatch.shards.libdeflate import libdeflate
from annbatch.shards.packed_layout import NAME, Layout, can_pack, parse_delta

HEAD_NBYTES = 64
"""Free bytes before the stored bytes in a raw buffer: room for a header, and the stored bytes stay aligned."""
TAIL_NBYTES = 64
"""Free bytes behind them: room for an empty zstd frame."""
MAX_CHUNK_NBYTES = 2**29 - 2**20
"""Largest decoded inner chunk: libblosc2 refuses larger blocks, and its sizes are int32."""

_BLOSC_CNAMES = frozenset({"lz4", "lz4hc", "zstd", "zlib", "blosclz"})
_NUMCODECS_PREFIX = "numcodecs."


class Codec(IntEnum):
    """The one compressor of a chain."""

    RAW = 0
    BLOSC = 1
    ZSTD = 2
    GZIP = 3
    """gzip members, as zarr stores them."""
    PACKED = 4
    ZLIB = 5
    """A zlib stream, as HDF5's gzip filter stores it."""
    LZF = 6
    LIBDEFLATE = 7
    """What kernels are told in place of `ZLIB` where libdeflate decodes it."""


class Checksum(IntEnum):
    """What the stored bytes of a chunk end in."""

    NONE = 0
    CRC32C = 1
    FLETCHER32 = 2


@dataclass(frozen=True, slots=True)
class Decoder:
    """How the bytes of an inner chunk become its elements, from the last step of writing to the first."""

    codec: Codec
    """The compressor."""
    shuffle: int = 1
    """Element size of the ``numcodecs.shuffle`` in front of it, in bytes; 1 means none."""
    crc32c: bool = False
    """Whether the stored bytes end in a crc32c of themselves."""
    delta: bool = False
    """Whether elements are stored as differences from the one before in their chunk, as ``numcodecs.delta`` does; of
    packed ones, as ``docs/packed.md`` says."""
    fletcher32: bool = False
    """Whether the stored bytes end in a fletcher32 checksum of themselves, as HDF5 writes it."""
    swapped: bool = False
    """Whether elements are stored big-endian."""

    @property
    def has_checksums(self) -> bool:
        """Whether damage to the stored bytes shows."""
        return self.crc32c or self.fletcher32 or self.codec in (Codec.PACKED, Codec.ZLIB)

    @property
    def checksum(self) -> Checksum:
        """What the stored bytes end in."""
        return Checksum.CRC32C if self.crc32c else Checksum.FLETCHER32 if self.fletcher32 else Checksum.NONE

    def stored_nbytes(self, n: int, itemsize: int) -> tuple[int, int]:
        """Give the fewest and the most bytes that a chunk of ``n`` elements can be stored in."""
        if self.codec is Codec.PACKED:
            layout = Layout(n, itemsize)
            return layout.blocks, layout.max_nbytes
        suffix, chunk_nbytes = 4 if self.crc32c or self.fletcher32 else 0, n * itemsize
        if self.codec is Codec.RAW:
            return chunk_nbytes + suffix, chunk_nbytes + suffix
        # Each compressor falls back to stored blocks: a header and well below 1/128 more than it was given.
        return 1 + suffix, chunk_nbytes + chunk_nbytes // 128 + 1024 + suffix


def parse_codecs(codecs: Sequence[Mapping[str, Any]], dtype: np.dtype[Any], chunk_nbytes: int) -> Decoder | str:
    """Give the decoder of a codec chain, or the reason why there is none.

    Parameters
    ----------
    codecs
        The chain, as in ``zarr.json``.
    dtype
        The array's dtype.
    chunk_nbytes
        Size of a decoded inner chunk.
    """
    if sys.byteorder != "little":
        return "the machine is big-endian"
    if not 1 <= chunk_nbytes <= MAX_CHUNK_NBYTES:
        return f"inner chunks must decode to 1 to {MAX_CHUNK_NBYTES} bytes, not {chunk_nbytes}"
    steps = [(str(codec["name"]), dict(codec.get("configuration") or {})) for codec in codecs]
    if steps and steps[0][0] == NAME:
        if len(steps) > 1 or not can_pack(dtype):
            return f"{NAME} must be the only codec, of integers, got {[name for name, _ in steps]} and {dtype}"
        return Decoder(Codec.PACKED, delta=parse_delta(steps[0][1]))
    delta = bool(steps) and steps[0][0] == f"{_NUMCODECS_PREFIX}delta"
    if delta:
        stored_as = steps.pop(0)[1]
        if dtype.kind not in "iu" or {np.dtype(name) for name in stored_as.values()} != {dtype}:
            return f"differences must be of the integers' own type, {dtype}, got {stored_as}"
    if not steps or steps[0][0] != "bytes":
        return f"the codec chain does not start with 'bytes': {[name for name, _ in steps]}"
    if steps.pop(0)[1].get("endian", "little" if dtype.itemsize == 1 else None) != "little" and dtype.itemsize > 1:
        return "the values are not little-endian"

    shuffle, codec, crc32c = 1, Codec.RAW, False
    if steps and steps[0][0] == f"{_NUMCODECS_PREFIX}shuffle":
        shuffle = int(steps.pop(0)[1].get("elementsize", 4))
        if shuffle not in (1, 2, 4, 8) or chunk_nbytes % shuffle:
            return f"the shuffle's elementsize must be 1, 2, 4 or 8 and divide {chunk_nbytes}, got {shuffle}"
    if steps and steps[0][0].removeprefix(_NUMCODECS_PREFIX) in ("blosc", "zstd", "gzip", "zlib"):
        name, configuration = steps.pop(0)
        codec = Codec[name.removeprefix(_NUMCODECS_PREFIX).upper()]
        cname = configuration.get("cname", "lz4")
        if codec is Codec.BLOSC and cname not in _BLOSC_CNAMES:
            return f"blosc's compressor must be one of {sorted(_BLOSC_CNAMES)}, got {cname!r}"
    if steps and steps[0][0] == "crc32c":
        crc32c = bool(steps.pop(0))
    if steps:
        rest = [name for name, _ in steps]
        return f"the codec chain has codecs beyond [delta, bytes, shuffle, compressor, crc32c]: {rest}"
    if codec in (Codec.BLOSC, Codec.ZSTD, Codec.ZLIB) and isinstance(loaded := library(), str):
        return loaded
    return Decoder(codec, shuffle, crc32c, delta)


@contextmanager
def numcodecs_are_known() -> Iterator[None]:
    """Keep zarr from saying, at each array, that codecs of numcodecs are not in its specification: all know it here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Numcodecs codecs are not in the Zarr version 3 specification")
        yield


def gunzip(stored: npt.NDArray[np.uint8], nbytes: int) -> npt.NDArray[np.uint8] | None:
    """Give the ``nbytes`` decoded bytes of gzip members, or None if they are anything else."""
    parts: list[bytes] = []
    rest, missing = bytes(stored), nbytes
    try:
        while rest:
            member = zlib.decompressobj(wbits=31)
            # One byte more than is missing, so that too long a member shows.
            parts.append(member.decompress(rest, missing + 1))
            missing -= len(parts[-1])
            if missing < 0 or not member.eof:
                return None
            rest = member.unused_data
    except zlib.error:
        return None
    return None if missing else np.frombuffer(b"".join(parts), np.uint8)


class _DecompressionParameters(ctypes.Structure):
    """The public ``blosc2_dparams``; it goes by value, so room is left for what newer versions append."""

    _fields_ = (
        ("nthreads", ctypes.c_int16),
        ("schunk", ctypes.c_void_p),
        ("postfilter", ctypes.c_void_p),
        ("postparams", ctypes.c_void_p),
        ("typesize", ctypes.c_int32),
        ("later", ctypes.c_byte * 64),
    )


class Library:
    """libblosc2's functions; `library` gives the one instance.

    Parameters
    ----------
    path
        The shared library.

    Raises
    ------
    OSError, AttributeError
        If it is not a libblosc2.
    """

    def __init__(self, path: Path) -> None:
        # ctypes keeps the library's symbols to itself: loaded globally, its ZSTD_ and LZ4_ would serve other packages.
        functions = ctypes.CDLL(str(path))
        self._create = functions.blosc2_create_dctx
        self._create.argtypes, self._create.restype = [_DecompressionParameters], ctypes.c_void_p
        self._free = functions.blosc2_free_ctx
        self._free.argtypes, self._free.restype = [ctypes.c_void_p], None
        self._decompress = functions.blosc2_decompress_ctx
        self._decompress.restype = ctypes.c_int
        pointer, size = ctypes.c_void_p, ctypes.c_int32
        self._decompress.argtypes = [pointer, ctypes.c_char_p, size, ctypes.c_char_p, size]
        self.decompress_address = ctypes.cast(self._decompress, ctypes.c_void_p).value or 0
        """Address of ``int blosc2_decompress_ctx(context, source, int32, destination, int32)``."""
        functions.blosc2_init()

    def create_context(self) -> int:
        """Give the address of a new single-threaded context; raise MemoryError if there is none."""
        parameters = _DecompressionParameters(nthreads=1, typesize=8)
        with _environment_lock:
            # The variable would overrule nthreads, and the threads of a context do not survive a fork.
            nthreads = os.environ.pop("BLOSC_NTHREADS", None)
            try:
                context = self._create(parameters)
            finally:
                if nthreads is not None:
                    os.environ["BLOSC_NTHREADS"] = nthreads
        if not context:
            raise MemoryError("libblosc2 could not create a context")
        return int(context)

    def free_context(self, context: int) -> None:
        """Free a context."""
        self._free(context)

    def decompress(self, context: int, source: bytes, nbytes: int) -> bytes | None:
        """Decode a small chunk, holding a copy; None if it does not give exactly ``nbytes``."""
        destination = ctypes.create_string_buffer(nbytes)
        decoded = self._decompress(context, source, len(source), destination, nbytes)
        return destination.raw if decoded == nbytes else None


# A fork waits until the variable is put back, and the child gets the lock free.
_environment_lock = threading.Lock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_environment_lock.acquire,
        after_in_parent=_environment_lock.release,
        after_in_child=_environment_lock.release,
    )

# 16 times each uint16 from 0 to 7, as numcodecs' blosc (lz4, shuffle) and zstd and Python's zlib wrote them, the latter
# two behind a header.
_KNOWN = np.repeat(np.arange(8, dtype="<u2"), 16).tobytes()
_KNOWN_CHUNKS = (
    bytes.fromhex(
        "0201210200010000000100004d00000014000000260000001b0001001b0101001b0201001b0301001b0401001b0501001b060100"
        "160701005007070707070b0000001f00010067500000000000"
    ),
    np.array([0x01900102, 256, 256, 38 + 24, 20, 38], "<i4").tobytes()
    + bytes.fromhex("28b52ffd600000e50000480000010203040506070800a011d01c6818680434071a966b8408b0"),
    np.array([0x01700102, 256, 256, 31 + 24, 20, 31], "<i4").tobytes()
    + bytes.fromhex("785e6360c00f18094026029099006421005909403602909d0004008ec001c1"),
)


def _find_library() -> Path | None:
    """Give the path of libblosc2, without importing the package that carries it."""
    name = {"darwin": "libblosc2.dylib", "win32": "libblosc2.dll"}.get(sys.platform, "libblosc2.so")
    spec = importlib.util.find_spec("blosc2")
    packages = [Path(place) for place in (spec.submodule_search_locations or [])] if spec else []
    # Some distributions link the package to a library of the environment.
    folders = [package / folder for package in packages for folder in ("lib", "lib64")] + [Path(sys.prefix) / "lib"]
    return next((folder / name for folder in folders if (folder / name).is_file()), None)


@cache
def library() -> Library | str:
    """Give libblosc2, loaded once and tried on known chunks, or the reason why it cannot serve."""
    path = _find_library()
    if path is None:
        return "libblosc2 was not found; the package blosc2 carries it"
    try:
        loaded = Library(path)
        context = loaded.create_context()
    except (OSError, AttributeError, MemoryError) as error:
        return f"libblosc2 could not be loaded from {path}: {error}"
    try:
        if any(loaded.decompress(context, chunk, len(_KNOWN)) != _KNOWN for chunk in _KNOWN_CHUNKS):
            return f"libblosc2 at {path} decoded a known chunk wrongly"
    finally:
        loaded.free_context(context)
    return loaded


def aligned_bytes(nbytes: int) -> npt.NDArray[np.uint8]:
    """Give (nbytes,) uninitialised bytes on a 64-byte boundary."""
    block = np.empty(nbytes + 64, np.uint8)
    start = -block.ctypes.data % 64
    return block[start : start + nbytes]


class Workspace:
    """What one thread needs to decode: a context and buffers that grow to the largest chunk.

    It must not be used by two threads at once. A forked child makes its own context on first use.
    """

    def __init__(self) -> None:
        self._raw = self._shuffled = self._scratch = aligned_bytes(0)
        self._context = self._inflating = 0
        self._pid = -1

    @property
    def context(self) -> int:
        """Address of this thread's context; 0 without the library."""
        if self._pid != os.getpid():
            loaded = library()
            self._context = 0 if isinstance(loaded, str) else loaded.create_context()
            self._pid = os.getpid()
            if not isinstance(loaded, str):
                weakref.finalize(self, _free_in_owner, loaded, self._context, self._pid).atexit = False
        return self._context

    @property
    def inflating(self) -> int:
        """Address of this thread's context of libdeflate, plain memory that a forked child has, too."""
        if not self._inflating and (loaded := libdeflate()) is not None:
            self._inflating = loaded.create_context()
            loaded.free_with(self, self._inflating)
        return self._inflating

    def raw(self, stored_nbytes: int) -> npt.NDArray[np.uint8]:
        """Give a buffer for stored bytes with free bytes around them; its size is a multiple of 64."""
        needed = HEAD_NBYTES + -(-stored_nbytes // 64) * 64 + TAIL_NBYTES
        if self._raw.size < needed:
            self._raw = aligned_bytes(needed)
        return self._raw

    def shuffled(self, nbytes: int) -> npt.NDArray[np.uint8]:
        """Give (nbytes,) for a chunk before its shuffle is undone."""
        if self._shuffled.size < nbytes:
            self._shuffled = aligned_bytes(nbytes)
        return self._shuffled[:nbytes]

    def scratch(self, nbytes: int) -> npt.NDArray[np.uint8]:
        """Give (nbytes,) for a decoded chunk."""
        if self._scratch.size < nbytes:
            self._scratch = aligned_bytes(nbytes)
        return self._scratch[:nbytes]


def _free_in_owner(loaded: Library, context: int, pid: int) -> None:
    # A context that a fork copied is left alone: it belongs to a thread that does not exist here.
    if pid == os.getpid():
        loaded.free_context(context)


def decompressor(codec: Codec, workspace: Workspace) -> tuple[int, int, int]:
    """Give the address of the C function that decodes, that of its context, and the codec as kernels take it.

    zlib streams are decoded by libdeflate if that is there; libblosc2 decodes all others.
    """
    if codec is Codec.ZLIB and (inflater := libdeflate()) is not None:
        return inflater.decompress_address, workspace.inflating, int(Codec.LIBDEFLATE)
    loaded = library()
    return loaded.decompress_address if isinstance(loaded, Library) else 0, workspace.context, int(codec)
