"""How is an ``.h5ad`` file opened for reading, as it is?

`open_h5ad` describes its matrices, reads the label columns and var, and closes it; `known_h5ad` does without the file
where an index knows it. Rows are read from where they lie in the file, by `annbatch.stores.hdf5_arrays`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import pandas as pd

from annbatch import summary
from annbatch.check import expanded
from annbatch.errors import InputError, MissingInputError, naming
from annbatch.remote.urls import is_url
from annbatch.shards.file_stamp import FileStamp
from annbatch.stores.anndata_store import Store, Wanted, checked, matrix_in_hdf5
from annbatch.stores.file_index import FileIndex
from annbatch.stores.hdf5_arrays import with_filters
from annbatch.stores.hdf5_files import open_hdf5
from annbatch.stores.hdf5_filters import ensure_filters
from annbatch.stores.hdf5_links import stamp_of_tables
from annbatch.stores.label_columns import columns_of_file
from annbatch.stores.obs_access import ObsInFile
from annbatch.stores.store_var import GeneNames, StoreVar, VarInFile, VarInMemory
from annbatch.stores.stored_frame import attribute, stored_frame

_OF_OTHER_FILES = "annbatch.create_anndata_collection builds a collection from it"


def open_h5ad(path: Path, wanted: Wanted, index: FileIndex | None = None) -> Store:
    """Open an ``.h5ad`` file.

    What an ``index`` knows of it is not read again; it is told of the rest.

    Raises
    ------
    MissingInputError
        If there is no such file.
    InputError
        If it holds no AnnData, or something is not there, or a matrix is stored by columns (CSC).
    StoreError
        If it cannot be read, or its parts do not fit together.
    """
    name = str(path)
    try:
        stamp = FileStamp.of(path)
    except FileNotFoundError as e:
        raise MissingInputError(f"{name}: no such file") from e
    except OSError as e:
        raise InputError(f"{name}: cannot be examined: {e}") from e
    if not path.is_file():
        raise InputError(
            f"{name}: must be an .h5ad file, got a folder; use_collection or add_anndatas takes zarr stores"
        )
    if index is not None and (known := index.load(stamp, wanted, _var_table)) is not None:
        return known
    with naming(name), open_hdf5(stamp) as root:
        _check_is_anndata(root, name)
        stamp = stamp_of_tables(root, stamp)
        matrices = {}
        for element in wanted.elements:
            with naming(f"{name} {element}"):
                matrices[element] = matrix_in_hdf5(_element(root, element, name), f"{name} {element}", stamp)
        shape = matrices["X"].shape
        obs, values = _obs(root, name, stamp, shape[0], wanted.labels, index)
        store = checked(Store(name, shape, matrices, dict(obs.labels), obs, _var(root, name, stamp, shape[1])))
    if index is not None:
        index.save(store, stamp, values)
    return store


def known_h5ad(path: Path, wanted: Wanted, index: FileIndex) -> Store | None:
    """Give what an ``index`` knows of a file; None if the file has to be opened."""
    try:
        return index.load(FileStamp.of(path), wanted, _var_table)
    except OSError:
        # `open_h5ad` says why.
        return None


def h5ad_paths(paths: Any) -> list[Path]:
    """Give one path or several as absolute paths; raises InputError if there is none, or one is a URL or no path."""
    given = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    if not given:
        raise InputError("paths must name at least one .h5ad file, got none")
    found = []
    for path in given:
        if not isinstance(path, str | os.PathLike):
            raise InputError(f"paths must name .h5ad files, got {type(path).__name__}")
        if isinstance(path, str) and is_url(path):
            raise InputError(f"paths must name local files, got a URL; {_OF_OTHER_FILES}")
        found.append(Path(expanded(path)).absolute())
    return found


def _check_is_anndata(root: h5py.File, name: str) -> None:
    encoding = attribute(root, "encoding-type", "anndata")
    if encoding != "anndata" or "obs" not in root or "var" not in root:
        held = summary.short(sorted(root))
        raise InputError(
            f"{name}: must be AnnData, with obs and var, got encoding-type {encoding!r} and {held}; {_OF_OTHER_FILES}"
        )


def _element(root: h5py.File, element: str, name: str) -> Any:
    part, _, key = element.partition("/")
    if key and isinstance(root.get(part), h5py.Dataset):
        raise InputError(
            f"{name}: {part} must be a group to be read in place, got one array, as anndata before 0.7 wrote it; "
            f"{_OF_OTHER_FILES}"
        )
    if element not in root or attribute(root[element], "encoding-type") == "null":
        held = f", {part} holds {summary.short(sorted(root[part]))}" if key and part in root else ""
        raise InputError(f"{name}: {element} is missing{held}")
    return root[element]


def _obs(
    root: h5py.File, name: str, stamp: FileStamp, n_obs: int, labels: Sequence[str] | None, index: FileIndex | None
) -> tuple[ObsInFile, dict[str, Any]]:
    """Give obs with the label columns that it has, and these as they were read."""
    values: dict[str, Any] = {}
    with naming(f"{name} obs"):
        frame = stored_frame(root, "obs", lambda: n_obs, f"{name} obs")
        there = frame.column_names

        def read(column: str) -> Any:
            values[column] = with_filters(root["obs"], f"{name} obs", lambda: frame.column(column))
            return values[column]

        asked = None if labels is None else [label for label in labels if label in there]
        columns = columns_of_file(there, read, asked, name)
    return ObsInFile(name, stamp, n_obs, there, columns, index), values


def _var(root: h5py.File, name: str, stamp: FileStamp, n_vars: int) -> StoreVar:
    """Give var; of a data frame whose names are strings, nothing else is read before somebody asks for it."""

    def read() -> StoreVar:
        names = _text_names(root["var"])
        if names is None:
            return VarInMemory(_table(root, name, n_vars))
        joined = b"\0".join(names[()].tolist())
        # Names that are no UTF-8 are an error now, not when somebody asks for them.
        joined.decode()
        return VarInFile(stamp, GeneNames.shared(joined, len(names)), _var_table)

    with naming(f"{name} var"):
        return with_filters(root["var"], f"{name} var", read)


def _text_names(var: Any) -> h5py.Dataset | None:
    """Give the names of a data frame where they are strings, and none is missing."""
    if attribute(var, "encoding-type") != "dataframe":
        return None
    names = var.get(str(attribute(var, "_index")))
    if isinstance(names, h5py.Group) and attribute(names, "encoding-type") == "nullable-string-array":
        # What anndata writes with pandas 3.
        names = None if names["mask"][()].any() else names["values"]
    if not isinstance(names, h5py.Dataset) or names.ndim != 1:
        return None
    kind = h5py.check_string_dtype(names.dtype)
    return names if kind is not None and kind.length is None else None


def _var_table(stamp: FileStamp) -> pd.DataFrame:
    """Read var of a file that was opened before."""
    name = str(stamp.path)
    with naming(f"{name} var"), open_hdf5(stamp) as root:
        ensure_filters(root["var"], f"{name} var")
        return _table(root, name, 0)


def _table(root: h5py.File, name: str, n_vars: int) -> pd.DataFrame:
    if attribute(root["var"], "encoding-type") == "dataframe":
        var: pd.DataFrame = ad.io.read_elem(root["var"])
        return var
    frame = stored_frame(root, "var", lambda: n_vars, f"{name} var")
    columns = {column: frame.column(column) for column in frame.column_names}
    return pd.DataFrame(columns, index=pd.Index(frame.index(), name=frame.index_name))
