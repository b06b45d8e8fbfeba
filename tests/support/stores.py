"""In which forms can a store come? Each `FORMS` entry writes the same AnnData in another one."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
import zarr

from annbatch.stores.anndata_store import Store, Wanted, open_store
from annbatch.stores.location import LocalFolder
from datagen import awkward_obs, named_matrix


def write_store(
    store: Any,
    x: sp.csr_matrix,
    obs: pd.DataFrame,
    *,
    zarr_format: int = 3,
    chunks: int = 7,
    shards: int | None = None,
    index_dtype: Any = np.int32,
    **array_options: Any,
) -> zarr.Group:
    """Write X, obs and var of an AnnData store with tiny chunks, so that rows straddle them."""
    root = zarr.create_group(store, zarr_format=zarr_format, overwrite=True)
    root.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
    group = root.create_group("X")
    group.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": list(x.shape)})
    options: dict[str, Any] = {"chunks": (chunks,), "shards": None if shards is None else (chunks * shards,)}
    options |= array_options
    for name, values in (("data", x.data), ("indices", x.indices.astype(index_dtype))):
        array = group.create_array(name, shape=values.shape, dtype=values.dtype, **options)
        array[:] = values
    indptr = group.create_array("indptr", shape=x.indptr.shape, dtype=np.int64, chunks=(1000,))
    indptr[:] = x.indptr
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ad.io.write_elem(root, "obs", obs)
        ad.io.write_elem(root, "var", pd.DataFrame(index=[f"g{c}" for c in range(x.shape[1])]))
    return root


def opened(root: zarr.Group) -> ad.AnnData:
    """The AnnData that a user passes to ``add_anndatas``."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ad.AnnData(
            X=ad.io.sparse_dataset(root["X"]), obs=ad.io.read_elem(root["obs"]), var=ad.io.read_elem(root["var"])
        )


def _in_memory(path: Path, x: sp.csr_matrix, obs: pd.DataFrame) -> ad.AnnData:
    return ad.AnnData(X=x, obs=obs, var=pd.DataFrame(index=[f"g{c}" for c in range(x.shape[1])]))


FORMS: dict[str, Callable[[Path, sp.csr_matrix, pd.DataFrame], ad.AnnData]] = {
    "v3 sharded": lambda path, x, obs: opened(write_store(str(path), x, obs, shards=5)),
    "v3 sharded uint16": lambda path, x, obs: opened(
        write_store(str(path), x.astype(np.uint16), obs, shards=5, index_dtype=np.uint16)
    ),
    "v3 one chunk": lambda path, x, obs: opened(write_store(str(path), x, obs, chunks=10**6)),
    "v3 plain chunks": lambda path, x, obs: opened(write_store(str(path), x, obs)),
    "v3 uncompressed": lambda path, x, obs: opened(write_store(str(path), x, obs, compressors=None)),
    "v3 gzip": lambda path, x, obs: opened(
        write_store(str(path), x, obs, shards=3, compressors=zarr.codecs.GzipCodec())
    ),
    "v3 big endian": lambda path, x, obs: opened(
        write_store(str(path), x, obs, serializer=zarr.codecs.BytesCodec(endian="big"))
    ),
    "v2": lambda path, x, obs: opened(write_store(str(path), x, obs, zarr_format=2)),
    "memory store": lambda path, x, obs: opened(write_store(zarr.storage.MemoryStore(), x, obs, shards=5)),
    "zip store": lambda path, x, obs: opened(_zipped(path, x, obs)),
    "in memory": _in_memory,
}


def _zipped(path: Path, x: sp.csr_matrix, obs: pd.DataFrame) -> zarr.Group:
    with warnings.catch_warnings():
        # Attributes are written after the group is: the archive then holds zarr.json twice, and the last one counts.
        warnings.simplefilter("ignore")
        store = zarr.storage.ZipStore(f"{path}.zip", mode="w")
        write_store(store, x, obs)
        store.close()
    return zarr.open_group(zarr.storage.ZipStore(f"{path}.zip", mode="r"), mode="r")


_WRITTEN: dict[Any, Path] = {}
"""Where the copies lie of stores that were written, by form and contents."""
_COPIES = Path(tempfile.gettempdir(), f"annbatch-stores-{os.getpid()}")
atexit.register(shutil.rmtree, _COPIES, ignore_errors=True)


def _in_form(form: str, path: Path, x: sp.csr_matrix, obs: pd.DataFrame, key: tuple[Any, ...]) -> ad.AnnData:
    """Write a store in a form, or copy the one that was written of this key: to write one takes much longer."""
    if (kept := _WRITTEN.get((form, key))) is not None:
        return opened(zarr.open_group(str(shutil.copytree(kept, path)), mode="r+"))
    adata = FORMS[form](path, x, obs)
    if path.is_dir():
        _WRITTEN[form, key] = Path(shutil.copytree(path, _COPIES / str(len(_WRITTEN))))
    return adata


def named_stores(
    folder: Path, form: str, sizes: tuple[int, ...] = (37, 1, 60), n_vars: int = 30
) -> tuple[list[ad.AnnData], sp.csr_matrix, pd.DataFrame]:
    """Stores of one form, with the matrix and the obs of all their rows."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(7)
    matrices, tables, adatas, first = [], [], [], 0
    for i, n in enumerate(sizes):
        rows = range(first, first + n)
        matrices.append(named_matrix(rng, rows, range(n_vars)))
        tables.append(awkward_obs(rows, categories=(("B", "T"), ("NK",), ("T", "Mono", "B"))[i % 3]))
        adatas.append(_in_form(form, folder / f"{i}.zarr", matrices[-1], tables[-1], (sizes, n_vars, i)))
        first += n
    return adatas, sp.csr_matrix(sp.vstack(matrices)), pd.concat(tables)


def opened_store(path: Path, labels: tuple[str, ...] | None, elements: tuple[str, ...] = ("X",)) -> Store:
    """Open one AnnData store as the stores of a collection are."""
    return open_store(LocalFolder(path).group(""), Wanted(labels, elements), str(path))
