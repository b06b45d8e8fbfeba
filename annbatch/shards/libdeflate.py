"""Can libdeflate decode zlib streams, which it does faster than others?

The package ``deflate`` carries libdeflate and exports its functions. If it is installed and decodes a known stream, the
kernels call it for HDF5's gzip filter. Without it libblosc2 decodes the same streams.

Interface: https://github.com/ebiggers/libdeflate/blob/master/libdeflate.h
"""

from __future__ import annotations

import ctypes
import importlib.util
import weakref
import zlib
from functools import cache
from pathlib import Path

_KNOWN = bytes(range(256)) * 4


class Libdeflate:
    """libdeflate's functions; `libdeflate` gives the one instance.

    Parameters
    ----------
    path
        What exports them.

    Raises
    ------
    OSError, AttributeError
        If that does not.
    """

    def __init__(self, path: Path) -> None:
        functions = ctypes.CDLL(str(path))
        pointer, size = ctypes.c_void_p, ctypes.c_size_t
        self._create = functions.libdeflate_alloc_decompressor
        self._create.argtypes, self._create.restype = [], pointer
        self._free = functions.libdeflate_free_decompressor
        self._free.argtypes, self._free.restype = [pointer], None
        self._decompress = functions.libdeflate_zlib_decompress
        self._decompress.argtypes = [pointer, ctypes.c_char_p, size, ctypes.c_char_p, size, pointer]
        self._decompress.restype = ctypes.c_int
        self.decompress_address = ctypes.cast(self._decompress, pointer).value or 0
        """Address of ``int libdeflate_zlib_decompress(context, source, size_t, destination, size_t, size_t *)``."""

    def create_context(self) -> int:
        """Give the address of a new decompressor, plain memory for one thread; raise MemoryError if there is none."""
        context = self._create()
        if not context:
            raise MemoryError("libdeflate could not create a decompressor")
        return int(context)

    def free_with(self, owner: object, context: int) -> None:
        """Free a decompressor when its owner goes."""
        weakref.finalize(owner, self._free, context).atexit = False

    def is_right(self) -> bool:
        """Say whether a known stream is decoded, and a damaged one refused."""
        context, stream = self.create_context(), zlib.compress(_KNOWN)
        destination = ctypes.create_string_buffer(len(_KNOWN))
        try:
            ends = [
                self._decompress(context, source, len(source), destination, len(_KNOWN), None)
                for source in (stream[:-1] + bytes([stream[-1] ^ 1]), stream)
            ]
        finally:
            self._free(context)
        return ends[0] != 0 and ends[1] == 0 and destination.raw == _KNOWN


@cache
def libdeflate() -> Libdeflate | None:
    """Give libdeflate, loaded once and tried on a known stream; None if it is not there or not right."""
    spec = importlib.util.find_spec("deflate")
    folders = [Path(place) for place in (spec.submodule_search_locations or [])] if spec else []
    for path in (path for folder in folders for path in sorted(folder.glob("_deflate*")) if path.suffix != ".pyi"):
        try:
            found = Libdeflate(path)
            if found.is_right():
                return found
        except (OSError, AttributeError, MemoryError):
            continue
    return None
