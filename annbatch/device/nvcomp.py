"""How does nvCOMP decode zstd frames on a device?

1. `loaded` loads the C library of nvCOMP 6, once, from the package ``nvidia-libnvcomp-cu12`` (or ``-cu13``) or from
   where the system finds it. Other major versions have other functions, and are refused.
2. `Library.decompress` queues the decoding of any number of frames in one call; what became of each stands beside it.

nvCOMP is not made for hostile input: its documentation leaves open what damaged frames do. What is read here has passed
its checksum and the checks of `annbatch.device.stored_chunks`; whoever does not trust a store decodes it on the CPU.
"""

from __future__ import annotations

import ctypes
import importlib.util
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from annbatch.errors import StoreError

MAJOR = 6
"""The version whose functions these are."""

_SONAME = f"libnvcomp.so.{MAJOR}"
_INSTALL = "pip install 'nvidia-libnvcomp-cu12>=6,<7' (or nvidia-libnvcomp-cu13, as your CUDA version is)"


class _Options(ctypes.Structure):
    """``nvcompBatchedZstdDecompressOpts_t``; all zero means that nvCOMP chooses."""

    _fields_ = (("backend", ctypes.c_int), ("reserved", ctypes.c_char * 60))


class _Properties(ctypes.Structure):
    """``nvcompProperties_t``."""

    _fields_ = (("version", ctypes.c_uint32), ("cudart_version", ctypes.c_uint32))


class _Alignments(ctypes.Structure):
    """``nvcompAlignmentRequirements_t``."""

    _fields_ = (("input", ctypes.c_size_t), ("output", ctypes.c_size_t), ("temp", ctypes.c_size_t))


ALIGNMENT_BYTES = 16
"""What frames, and what they are decoded to, are aligned to."""


@dataclass(frozen=True, slots=True)
class Frames:
    """Compressed chunks in the memory of a device, and where each is decoded to; all fields are addresses there."""

    n: int
    """How many there are."""
    sources: int
    """(n,) uint64 addresses of the frames."""
    source_nbytes: int
    """(n,) uint64 sizes of the frames."""
    targets: int
    """(n,) uint64 addresses that they are decoded to."""
    target_nbytes: int
    """(n,) uint64 room there."""
    decoded_nbytes: int
    """(n,) uint64: is filled with how many bytes each gave."""
    statuses: int
    """(n,) int32: is filled with nvCOMP's statuses, 0 for success."""
    scratch: int
    """Memory to work in."""
    scratch_nbytes: int
    """As much as `Device.scratch_nbytes` asks for."""


class Library:
    """The functions of nvCOMP's shared library that decode zstd.

    Parameters
    ----------
    path
        The library: a path, or the name that the system's loader finds.

    Raises
    ------
    OSError, AttributeError
        If it cannot be loaded, or is another version.
    """

    def __init__(self, path: str) -> None:
        functions = ctypes.CDLL(path)
        properties = _Properties()
        functions.nvcompGetProperties(ctypes.byref(properties))
        if properties.version // 1000 != MAJOR:
            raise OSError(f"nvCOMP must be version {MAJOR}, got {properties.version / 1000}")
        pointer, size = ctypes.c_void_p, ctypes.c_size_t
        self._scratch: Any = functions.nvcompBatchedZstdDecompressGetTempSize
        self._scratch.argtypes = [size, size, _Options, ctypes.POINTER(size), size, pointer]
        self._decompress: Any = functions.nvcompBatchedZstdDecompressAsync
        self._decompress.argtypes = [
            *(pointer, pointer, pointer, pointer, size, pointer, size, pointer, _Options, pointer, pointer)
        ]
        alignments = _Alignments()
        required = functions.nvcompBatchedZstdDecompressGetRequiredAlignments
        required.argtypes = [_Options, ctypes.POINTER(_Alignments)]
        _check(required(_Options(), ctypes.byref(alignments)), "tell its alignments")
        if max(alignments.input, alignments.output) > ALIGNMENT_BYTES:
            raise OSError(f"nvCOMP must accept an alignment of {ALIGNMENT_BYTES} bytes, but needs {alignments.input}")

    def scratch_nbytes(self, n_frames: int, largest_nbytes: int, total_nbytes: int, stream: int) -> int:
        """Say how much memory it takes to decode so many frames of at most, and of altogether, so many bytes."""
        found = ctypes.c_size_t()
        status = self._scratch(n_frames, largest_nbytes, _Options(), ctypes.byref(found), total_nbytes, stream)
        _check(status, f"plan the decoding of {n_frames} chunks")
        return found.value

    def decompress(self, frames: Frames, stream: int) -> None:
        """Queue decoding on a stream of the current device; returns at once."""
        status = self._decompress(
            frames.sources,
            frames.source_nbytes,
            frames.target_nbytes,
            frames.decoded_nbytes,
            frames.n,
            frames.scratch,
            frames.scratch_nbytes,
            frames.targets,
            _Options(),
            frames.statuses,
            stream,
        )
        _check(status, f"decode {frames.n} chunks")


def _check(status: int, what: str) -> None:
    if status:
        raise StoreError(f"nvCOMP could not {what}: status {status}")


@cache
def _load() -> Library | str:
    """Give the library, or the reason why there is none."""
    try:
        spec = importlib.util.find_spec("nvidia.libnvcomp")
    except ModuleNotFoundError:
        spec = None
    folders = [Path(place) for place in (spec.submodule_search_locations or [])] if spec else []
    packaged = (folder / place / _SONAME for folder in folders for place in ("lib64", "lib"))
    path = next((str(path) for path in packaged if path.is_file()), _SONAME)
    try:
        return Library(path)
    except (OSError, AttributeError, StoreError) as e:
        return f"nvCOMP {MAJOR} could not be loaded ({e}): {_INSTALL}"


def loaded() -> Library:
    """Give the library.

    Raises
    ------
    StoreError
        If there is none; says what to install.
    """
    found = _load()
    if isinstance(found, str):
        raise StoreError(found)
    return found


def missing() -> str | None:
    """Say why nvCOMP cannot decode here; None if it can."""
    found = _load()
    return found if isinstance(found, str) else None
