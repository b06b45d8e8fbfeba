"""How does an input that cannot be read where it lies come to a place where it can?

HDF5 files are read at many places, which neither a gzip file nor an object store allows. `local_copy` writes such a
file into the hidden directory of the build, once: it unpacks the one and downloads the other. zarr groups behind a URL
are read from there.
"""

from __future__ import annotations

import errno
import gzip
import re
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit, urlunsplit

from annbatch import summary
from annbatch.errors import InputError, MissingInputError, OutputError, naming
from annbatch.remote.urls import is_url, open_url
from annbatch.write.inputs.file_formats import named_part
from annbatch.write.inputs.mtx_files import is_matrix
from annbatch.write.inputs.spill import spilling

_GZIP, _HDF5 = b"\x1f\x8b", b"\x89HDF\r\n\x1a\n"
_PLACES_OF_HDF5 = (0, 512, 1024)
"""Where HDF5 may begin: what is before belongs to others, and MuData says there what it is."""
_HEAD_BYTES = 1032
_BLOCK_BYTES = 2**20
_DOWNLOAD_BYTES = 2**23
_FILE_OF_URL = re.compile(r"(.*?\.(?:h5ad|h5mu|h5|hdf5|loom|zip|mtx)(?:\.gz)?)(?:/(.+))?", re.IGNORECASE | re.DOTALL)


def local_copy(given: str, where: str, directory: Path, checkpoint: Callable[[], None]) -> str:
    """Give the path of what can be read in place of ``given``: that itself, or that of a copy in ``directory``.

    Parameters
    ----------
    given
        A path or a URL, which may go on inside a file.
    where
        What messages call it.
    directory
        A directory for this input alone. A copy that is there is taken.
    checkpoint
        Is called between steps.

    Raises
    ------
    MissingInputError
        If there is no such object in an object store.
    InputError
        If it cannot be unpacked or downloaded.
    OutputError
        If the disk has no room for it.
    """
    if is_url(given):
        url, part = _file_of(given)
        if url is None:
            return given
        path = _downloaded(url, where, directory, checkpoint)
    else:
        path, part = named_part(given)
    path = _unpacked(path, where, directory, checkpoint)
    return path if part is None else f"{path}/{part}"


def _file_of(url: str) -> tuple[str | None, str | None]:
    """Split a URL into that of a file and what is named in it; None if it ends with no file."""
    pieces = urlsplit(url)
    if (found := _FILE_OF_URL.fullmatch(pieces.path)) is None:
        return None, None
    return urlunsplit(pieces._replace(path=found[1])), found[2]


def _downloaded(url: str, where: str, directory: Path, checkpoint: Callable[[], None]) -> str:
    pieces = urlsplit(url)
    path = PurePosixPath(pieces.path)
    if is_matrix(path.name):
        raise InputError(f"{where}: must be local, because a 10x Genomics matrix has three files; download them")
    target = directory / path.name
    if target.exists() or target.with_suffix("").exists():
        return str(target)
    try:
        # A query stays with the folder, and obstore sends it with each request.
        folder = open_url(urlunsplit(pieces._replace(path=str(path.parent).rstrip("/"))))
        with naming(where):
            try:
                found = folder.get(path.name)
            except FileNotFoundError:
                raise MissingInputError(f"{where}: no such object") from None
            directory.mkdir(parents=True, exist_ok=True)
            needed, free = int(found.meta["size"]), shutil.disk_usage(directory).free
            if needed > free:
                said = f"{summary.size(needed)} for a copy of {where}, {summary.size(free)} is free"
                raise OutputError(errno.ENOSPC, f"{directory}: the build needs {said}")
            _write((bytes(block) for block in found.stream(min_chunk_size=_DOWNLOAD_BYTES)), target, checkpoint)
    except ImportError as e:
        raise InputError(f"{where}: {e}") from e
    return str(target)


def _unpacked(path: str, where: str, directory: Path, checkpoint: Callable[[], None]) -> str:
    """Unpack an HDF5 file; give anything else back."""
    packed = Path(path)
    target = directory / packed.with_suffix("").name
    if target.exists():
        return str(target)
    if is_matrix(packed.name) or not packed.is_file() or _first_bytes(packed, len(_GZIP)) != _GZIP:
        return path
    try:
        with gzip.open(packed) as file:
            head = file.read(_HEAD_BYTES)
            if not any(head[at:].startswith(_HDF5) for at in _PLACES_OF_HDF5):
                raise InputError(f"{where}: must hold an HDF5 file, got a gzip file that begins with {head[:8]!r}")
            directory.mkdir(parents=True, exist_ok=True)
            file.seek(0)
            _write(iter(lambda: file.read(_BLOCK_BYTES), b""), target, checkpoint)
    except (EOFError, zlib.error, gzip.BadGzipFile) as e:
        raise InputError(f"{where}: is damaged or incomplete: {e}") from e
    if packed.parent == directory:
        packed.unlink()
    return str(target)


def _first_bytes(path: Path, n: int) -> bytes:
    with path.open("rb") as file:
        return file.read(n)


def _write(blocks: Iterable[bytes] | Iterator[bytes], target: Path, checkpoint: Callable[[], None]) -> None:
    building = target.with_name(f".{target.name}.part")
    with spilling():
        file = building.open("wb", buffering=0)
    with file:
        for block in blocks:
            checkpoint()
            with spilling():
                file.write(block)
    building.rename(target)
