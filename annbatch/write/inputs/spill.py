"""How do arrays lie on disk between the two passes? As their bytes, nothing else; who reads them knows their type.

Inputs are open while runs are written: `SpillError` tells a disk that is full from an input that cannot be read.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt


class SpillError(OSError):
    """A temporary file cannot be written."""


@contextmanager
def spilling() -> Iterator[None]:
    """Let errors of the system become `SpillError`."""
    try:
        yield
    except OSError as e:
        raise SpillError(e.errno, e.strerror, e.filename) from e


def save(path: Path, array: npt.NDArray[Any]) -> None:
    """Write an array's bytes; unlike `numpy.ndarray.tofile`, a full disk gives its own error."""
    with spilling(), path.open("wb") as file:
        if array.size:
            file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


def load(path: Path, dtype: np.dtype[Any], start: int, stop: int, width: int = 1) -> npt.NDArray[Any]:
    """Read items ``start`` to ``stop``: (stop - start,), or (stop - start, width) if ``width`` is not 1.

    Raises
    ------
    OSError
        If the file is too short.
    """
    n = (stop - start) * width
    found = np.fromfile(path, dtype, n, offset=start * width * dtype.itemsize)
    if len(found) != n:
        raise OSError(f"{path}: ends before item {stop}")
    return found if width == 1 else found.reshape(-1, width)


class RawSlices:
    """Such a file, sliced like an array of the shape (length,) or (length, width)."""

    def __init__(self, path: Path, dtype: np.dtype[Any], length: int, width: int | None = None) -> None:
        self._path, self.dtype = path, dtype
        self.shape = (length,) if width is None else (length, width)

    def __getitem__(self, part: slice) -> npt.NDArray[Any]:
        start, stop, _ = part.indices(self.shape[0])
        width = int(np.prod(self.shape[1:], dtype=np.int64))
        return load(self._path, self.dtype, start, stop, width).reshape(stop - start, *self.shape[1:])
