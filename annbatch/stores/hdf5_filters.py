"""Can HDF5 read all of a file, whatever it is compressed with?

gzip and lzf come with h5py. Blosc, zstd, lz4 and others are filters that HDF5 knows once the package hdf5plugin has
been imported: whoever wrote such a file has done so, but not every process that reads it.
"""

from __future__ import annotations

from contextlib import suppress
from functools import lru_cache

import h5py

from annbatch.errors import InputError
from annbatch.stores.hdf5_links import datasets_behind, files_behind


@lru_cache(maxsize=1024)
def ensure_readable(path: str, changed_ns: int) -> None:
    """Check that HDF5 can read all of a file; import hdf5plugin if a dataset needs a filter that HDF5 lacks.

    Parameters
    ----------
    changed_ns
        When the file was changed last: one that is opened again is not looked through again.

    Raises
    ------
    InputError
        If HDF5 lacks a filter all the same.
    StoreError
        If another file that holds parts of it is missing or too short.
    """
    with h5py.File(path, mode="r") as file:
        ensure_filters(file, path)
        files_behind(file)


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
    for dataset in datasets_behind(node):
        settings = dataset.get_create_plist()
        for i in range(settings.get_nfilters()):
            code, _, _, label = settings.get_filter(i)
            if not h5py.h5z.filter_avail(code):
                name = "it" if isinstance(node, h5py.Dataset) else h5py.h5i.get_name(dataset).decode().lstrip("/")
                return f"{name} is compressed with HDF5 filter {code} ({label.decode() or 'without a name'})"
    return None
