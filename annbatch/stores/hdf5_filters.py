"""Can HDF5 read what a file is compressed with?

gzip and lzf come with h5py. Blosc, zstd, lz4 and others are filters that HDF5 knows once the package hdf5plugin has
been imported: whoever wrote such a file has done so, but not every process that reads it.
"""

from __future__ import annotations

from contextlib import suppress
from functools import lru_cache

import h5py

from annbatch.errors import InputError


@lru_cache(maxsize=1024)
def load_filters(path: str, changed_ns: int) -> None:
    """Import hdf5plugin if a dataset of the file needs a filter that HDF5 lacks.

    Parameters
    ----------
    changed_ns
        When the file was changed last: one that is opened again is not looked through again.

    Raises
    ------
    InputError
        If HDF5 lacks a filter all the same.
    """
    with h5py.File(path, mode="r") as file:
        ensure_filters(file, path)


def ensure_filters(node: h5py.Group | h5py.Dataset, where: str) -> bool:
    """Import hdf5plugin if a dataset, or one in a group, needs a filter that HDF5 lacks; say whether that was so.

    Raises
    ------
    InputError
        If HDF5 lacks a filter all the same; names the dataset and the filter.
    """
    if missing_filter(node) is None:
        return False
    with suppress(ImportError):
        import hdf5plugin  # noqa: F401
    if (missing := missing_filter(node)) is not None:
        raise InputError(f"{where}: {missing}, which this HDF5 installation lacks; pip install hdf5plugin provides it")
    return True


def missing_filter(node: h5py.Group | h5py.Dataset) -> str | None:
    """Name the first dataset that cannot be read here, and its filter; None if all can."""

    def look(name: str, item: h5py.Group | h5py.Dataset) -> str | None:
        if not isinstance(item, h5py.Dataset):
            return None
        settings = item.id.get_create_plist()
        for i in range(settings.get_nfilters()):
            code, _, _, label = settings.get_filter(i)
            if not h5py.h5z.filter_avail(code):
                return f"{name} is compressed with HDF5 filter {code} ({label.decode() or 'without a name'})"
        return None

    if isinstance(node, h5py.Dataset):
        return look("it", node)
    found: str | None = node.visititems(look)
    return found
