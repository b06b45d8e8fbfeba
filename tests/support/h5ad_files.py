"""`.h5ad` files whose matrices are stored in every way that HDF5 knows, and what the loader says of them.

`LAYOUTS` maps a name to a `Layout`. `write` writes an AnnData so that X is CSR and the layer ``dense`` a dense array in
that layout.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import hdf5plugin
import numpy as np

Make = Callable[[h5py.Group, str, np.ndarray[Any, Any]], Any]


def with_settings(**settings: Any) -> Make:
    """Store with settings of h5py's, in chunks of whole rows where ``chunks`` is a number."""

    def make(group: h5py.Group, name: str, values: np.ndarray[Any, Any]) -> h5py.Dataset:
        own = dict(settings)
        if isinstance(own.get("chunks"), int):
            own["chunks"] = (min(own["chunks"], len(values)), *values.shape[1:])
        if own.pop("appendable", False):
            own["maxshape"] = (None, *values.shape[1:])
        return group.create_dataset(name, data=values, **own)

    return make


def tiled(group: h5py.Group, name: str, values: np.ndarray[Any, Any]) -> h5py.Dataset:
    """Store dense arrays in chunks of parts of rows."""
    return group.create_dataset(name, data=values, chunks=(30, 7)[: values.ndim], compression="gzip")


def external(group: h5py.Group, name: str, values: np.ndarray[Any, Any]) -> h5py.Dataset:
    """Store the elements in a file beside."""
    place = f"{group.file.filename}.{group.name.strip('/').replace('/', '.')}.{name}"
    Path(place).write_bytes(values.tobytes())
    return group.create_dataset(name, values.shape, values.dtype, external=[(place, 0, h5py.h5f.UNLIMITED)])


def virtual(group: h5py.Group, name: str, values: np.ndarray[Any, Any]) -> h5py.Dataset:
    """Store two halves, and a dataset that is both of them."""
    layout, half = h5py.VirtualLayout(values.shape, values.dtype), len(values) // 2
    for own, part in (("first", slice(0, half)), ("second", slice(half, len(values)))):
        source = group.file.require_group("parts").create_dataset(f"{group.name[1:]}/{name}/{own}", data=values[part])
        layout[part] = h5py.VirtualSource(source)
    return group.create_virtual_dataset(name, layout)


def compact(group: h5py.Group, name: str, values: np.ndarray[Any, Any]) -> h5py.Dataset:
    """Store what is small in the header."""
    if values.nbytes > 60_000:
        return group.create_dataset(name, data=values)
    settings = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    settings.set_layout(h5py.h5d.COMPACT)
    space, kind = h5py.h5s.create_simple(values.shape), h5py.h5t.py_create(values.dtype, logical=True)
    dataset = h5py.Dataset(h5py.h5d.create(group.id, name.encode(), kind, space, settings))
    dataset[...] = values
    return dataset


def sparsely_written(group: h5py.Group, name: str, values: np.ndarray[Any, Any]) -> h5py.Dataset:
    """Write only the chunks that are not all 7, which is the fill value."""
    settings = {"chunks": (8, *values.shape[1:]), "compression": "gzip", "fillvalue": 7}
    dataset = group.create_dataset(name, values.shape, values.dtype, **settings)
    for start in range(0, len(values), 8):
        if (values[start : start + 8] != 7).any():
            dataset[start : start + 8] = values[start : start + 8]
    return dataset


@dataclass(frozen=True, slots=True)
class Layout:
    """A way to store arrays."""

    make: Make
    """Makes a dataset."""
    why: str | None = None
    """What of the reason is said why h5py reads it; None where the kernels do."""
    only_dense: bool = False
    """Whether the reason is one for dense arrays only."""
    types: Mapping[str, str] = field(default_factory=dict)
    """The types in which ``data``, ``indices`` and ``indptr`` are stored, others than usual."""
    file: Mapping[str, Any] = field(default_factory=dict)
    """How the file is made."""


LAYOUTS = {
    "contiguous": Layout(with_settings()),
    "chunked": Layout(with_settings(chunks=70)),
    "gzip": Layout(with_settings(chunks=70, compression="gzip")),
    "gzip 9 shuffle fletcher32": Layout(
        with_settings(chunks=61, compression="gzip", compression_opts=9, shuffle=True, fletcher32=True)
    ),
    "lzf": Layout(with_settings(chunks=70, compression="lzf")),
    "lzf shuffle fletcher32": Layout(with_settings(chunks=33, compression="lzf", shuffle=True, fletcher32=True)),
    "fletcher32": Layout(with_settings(chunks=33, fletcher32=True)),
    "zstd": Layout(with_settings(chunks=70, **hdf5plugin.Zstd(3))),
    "zstd shuffle": Layout(with_settings(chunks=70, shuffle=True, **hdf5plugin.Zstd(3))),
    "blosc lz4": Layout(with_settings(chunks=70, **hdf5plugin.Blosc("lz4", 5, hdf5plugin.Blosc.SHUFFLE))),
    "blosc zstd": Layout(with_settings(chunks=70, **hdf5plugin.Blosc("zstd", 5, hdf5plugin.Blosc.NOSHUFFLE))),
    "newest": Layout(with_settings(chunks=70, compression="gzip"), file={"libver": "latest"}),
    "appendable": Layout(with_settings(chunks=70, compression="gzip", appendable=True), file={"libver": "latest"}),
    "big-endian": Layout(with_settings(), types={"data": ">f4", "indices": ">i4", "indptr": ">i8", "dense": ">f4"}),
    "big-endian gzip": Layout(
        with_settings(chunks=70, compression="gzip", shuffle=True),
        types={"data": ">f8", "indices": ">i8", "indptr": ">i4", "dense": ">i2"},
    ),
    "int64 indices": Layout(with_settings(), types={"indices": "<i8", "indptr": "<i8", "data": "<u2"}),
    "small types": Layout(with_settings(chunks=64), types={"data": "<u1", "indices": "<u1", "dense": "<f2"}),
    "float16": Layout(with_settings(chunks=64, compression="lzf"), types={"data": "<f2", "dense": "?"}),
    "never written": Layout(sparsely_written),
    "tiled": Layout(tiled, only_dense=True, why="chunks must span whole rows"),
    "bitshuffle": Layout(with_settings(chunks=70, **hdf5plugin.Bitshuffle()), why="there are filters beyond"),
    "blosc2": Layout(with_settings(chunks=70, **hdf5plugin.Blosc2()), why="there are filters beyond"),
    "blosc snappy": Layout(with_settings(chunks=70, **hdf5plugin.Blosc("snappy")), why="snappy"),
    "scaleoffset": Layout(
        with_settings(chunks=70, scaleoffset=0), why="there are filters beyond", types={"data": "<i4", "dense": "<i4"}
    ),
    "external": Layout(external, why="in external files"),
    "virtual": Layout(virtual, why="virtual dataset"),
    "user block": Layout(with_settings(), why="user block", file={"userblock_size": 512}),
    "in the header": Layout(compact, why="in its header"),
}


def stored_as(values: np.ndarray[Any, Any], dtype: Any) -> np.ndarray[Any, Any]:
    """Give numbers in another type; what an integer cannot hold wraps."""
    dtype = np.dtype(dtype)
    return (values.astype("i8") if dtype.kind in "iu" else values).astype(dtype)


def write(adata: ad.AnnData, path: Path, layout: Layout) -> Path:
    """Write AnnData with a CSR X; the layer ``dense`` holds the same numbers."""
    small = ad.AnnData(obs=adata.obs, var=adata.var, obsm=dict(adata.obsm))
    small.write_h5ad(path.with_suffix(".small"))
    x = adata.X.tocsr()
    with h5py.File(path.with_suffix(".small")) as source, h5py.File(path, "w", **layout.file) as file:
        file.attrs.update(source.attrs)
        for key in ("obs", "var", "obsm", "uns"):
            source.copy(key, file)
        group, layers = file.create_group("X"), file.create_group("layers")
        layers.attrs.update({"encoding-type": "dict", "encoding-version": "0.1.0"})
        group.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": np.array(x.shape)})
        for key in ("data", "indices", "indptr"):
            values = getattr(x, key)
            layout.make(group, key, stored_as(values, layout.types.get(key, values.dtype)))
        dense = x.toarray()
        layout.make(layers, "dense", stored_as(dense, layout.types.get("dense", dense.dtype)))
        layers["dense"].attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
    path.with_suffix(".small").unlink()
    return path
