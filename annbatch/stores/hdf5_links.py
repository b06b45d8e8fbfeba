"""Which other files hold parts of an HDF5 file?

1. A link may lead into another file. HDF5 says which one that is.
2. A dataset may have its elements in *external files*, which are plain bytes.
3. A *virtual dataset* shows parts of other datasets, which may lie in other files.

HDF5 reads fill values where a file of a virtual dataset is missing, and zeros where external files are too short.
`stamp_behind` refuses both.

How HDF5 looks for files: https://support.hdfgroup.org/documentation/hdf5/latest/group___d_a_p_l.html
(``H5Pset_efile_prefix``, ``H5Pset_virtual_prefix``).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py

from annbatch.errors import StoreError
from annbatch.shards.file_stamp import FileStamp

_PATTERN = re.compile(r"(?<!%)(?:%%)*%\d*b")
"""What HDF5 replaces by numbers in the names of a virtual dataset's files."""
_ORIGIN = "${ORIGIN}"
"""What the folder of the file is called in the variables of HDF5."""


def stamp_behind(node: h5py.Group | h5py.Dataset, stamp: FileStamp) -> FileStamp:
    """Give the stamp of the file that holds an object, and of the others that hold parts of it.

    Parameters
    ----------
    node
        The object, of an open file, or of one that a link of it leads to.
    stamp
        The open file.

    Raises
    ------
    StoreError
        If a file that belongs to a dataset is missing or too short.
    """
    path = _file_of(node.id)
    own = stamp if path == str(stamp.path) else FileStamp.of(Path(path).absolute())
    others = [FileStamp.of(other) for other in files_behind(node) if other != own.path]
    return replace(own, others=tuple(others))


def stamp_of_tables(root: h5py.Group, stamp: FileStamp) -> FileStamp:
    """Give the stamp of an open file with the others that hold parts of its obs and var; raises as `stamp_behind`."""
    found = [one for key in ("obs", "var") for one in stamp_behind(root[key], stamp).each if one != stamp]
    return replace(stamp, others=tuple(dict.fromkeys(found)))


def files_behind(node: h5py.Group | h5py.Dataset) -> list[Path]:
    """Name the files that hold the datasets of a group, or one dataset, each once.

    Raises
    ------
    StoreError
        As `stamp_behind` does.
    """
    names = dict.fromkeys(name for dataset in datasets_behind(node) for name in _files_of(dataset))
    return list(dict.fromkeys(Path(name).absolute() for name in names))


def datasets_behind(node: h5py.Group | h5py.Dataset) -> Iterator[Any]:
    """Give the datasets of a group, those behind links, too, or one dataset; as h5py's identifiers, which are fast."""
    return _datasets(node.id, set())


def _file_of(node: Any) -> str:
    return os.fsdecode(h5py.h5f.get_name(node))


def _datasets(node: Any, seen: set[int]) -> Iterator[Any]:
    if isinstance(node, h5py.h5d.DatasetID):
        yield node
    elif isinstance(node, h5py.h5g.GroupID) and hash(node) not in seen:
        # Links may lead to a group around them.
        seen.add(hash(node))
        for name in node:
            try:
                found = h5py.h5o.open(node, name)
            except (KeyError, OSError):
                # A link to nothing: whoever needs it says so.
                continue
            yield from _datasets(found, seen)


def _files_of(dataset: Any) -> Iterator[str]:
    """Give the files in which a dataset lies."""
    name, settings = _file_of(dataset), dataset.get_create_plist()
    yield name
    if settings.get_layout() == h5py.h5d.VIRTUAL:
        yield from _files_of_virtual(dataset, settings, Path(name).absolute())
    elif n_external := settings.get_external_count():
        files = [settings.get_external(i) for i in range(n_external)]
        yield from _external_files(dataset, Path(name).absolute(), files)


def _external_files(dataset: Any, path: Path, files: list[tuple[bytes, int, int]]) -> Iterator[str]:
    where, n_held = _describe(dataset, path), 0
    prefix = os.environ.get("HDF5_EXTFILE_PREFIX", "").replace(_ORIGIN, str(path.parent))
    for name, offset, size in files:
        found = (Path(prefix) / os.fsdecode(name)).absolute()
        if not found.is_file():
            raise StoreError(f"{where}: its external file {found} is missing")
        n_held += min(max(found.stat().st_size - offset, 0), size)
        yield str(found)
    n_needed = dataset.get_space().get_simple_extent_npoints() * dataset.get_type().get_size()
    if n_held < n_needed:
        raise StoreError(f"{where}: its external files must hold {n_needed} bytes, got {n_held}; the last is {found}")


def _files_of_virtual(dataset: Any, settings: Any, path: Path) -> Iterator[str]:
    where = _describe(dataset, path)
    parts = [
        (settings.get_virtual_filename(i), settings.get_virtual_dsetname(i))
        for i in range(settings.get_virtual_count())
    ]
    for name, source in dict.fromkeys(parts):
        if _PATTERN.search(name) or _PATTERN.search(source):
            raise StoreError(
                f"{where}: a virtual dataset must name its files, got the pattern {name}/{source}; copy the "
                f"values into an ordinary dataset"
            )
        name, source = name.replace("%%", "%"), source.replace("%%", "%")
        if (found := path if name == "." else _found(name, path)) is None:
            raise StoreError(f"{where}: the file {name!r} of this virtual dataset is missing")
        with h5py.File(found, mode="r") as file:
            if not isinstance(file.get(source), h5py.Dataset):
                raise StoreError(f"{where}: this virtual dataset must refer to datasets, got {source!r} of {found}")
            yield from _files_of(file[source].id)


def _found(name: str, path: Path) -> Path | None:
    """Find a file that a virtual dataset names, where HDF5 looks for it; None if it is nowhere."""
    prefixes = [
        one for one in os.environ.get("HDF5_VDS_PREFIX", "").replace(_ORIGIN, str(path.parent)).split(":") if one
    ]
    folders = [*map(Path, prefixes), path.parent, Path(), path.resolve().parent]
    # What has moved is looked for under its last name.
    names = [name, Path(name).name] if Path(name).is_absolute() else [name]
    places = ((folder / one).absolute() for one in names for folder in folders)
    return next((place for place in places if place.is_file()), None)


def _describe(dataset: Any, path: Path) -> str:
    return f"{path}/{(h5py.h5i.get_name(dataset) or b'').decode(errors='replace').lstrip('/')}"
