"""What can be an input, and how is it opened?

1. `as_origins` takes what the caller passed: paths, AnnData objects, zarr stores. An `Origin` can be opened any number
   of times, in any process, and has a `stamp` that changes when its contents do.
2. An opened origin is a `Root`: the names of its cells, single obs columns, var, and its matrices, none of which is
   read before it is asked for. Files and zarr groups of AnnData (`annbatch.write.inputs.stored_input`), AnnData in
   memory (`annbatch.write.inputs.memory_input`) and 10x Genomics ``.h5`` files differ in nothing else.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import anndata as ad
import h5py
import numpy.typing as npt
import pandas as pd
import zarr
from zarr.abc.store import Store as ZarrStore

from annbatch.check import expanded
from annbatch.errors import InputError, MissingInputError, OutputError, StoreError
from annbatch.stores.stored_frame import as_text
from annbatch.write.inputs.hdf5_filters import load_filters
from annbatch.write.inputs.matrix_rows import Matrix
from annbatch.write.inputs.memory_input import MemoryRoot, stamp_of
from annbatch.write.inputs.spill import SpillError
from annbatch.write.inputs.stored_input import StoredInput

Input: TypeAlias = str | os.PathLike[str] | ad.AnnData | ZarrStore
Load = Callable[[str], ad.AnnData]


class Root(Protocol):
    """An opened input."""

    @property
    def column_names(self) -> list[Any]:
        """Names of the obs columns."""

    @property
    def index_name(self) -> Any:
        """Name of the obs index, None if it has none."""

    def obs_names(self) -> npt.NDArray[Any]:
        """Read the names of the cells, (n_obs,) str objects."""

    def check_column(self, name: Any) -> int:
        """Give the length of an obs column without reading its values; raises StoreError if it cannot be one."""

    def column(self, name: Any) -> pd.Series[Any]:
        """Read one obs column, (n_obs,)."""

    def var(self, raw: bool) -> pd.DataFrame:
        """Read var, or that of raw."""

    def names(self, group: str) -> list[Any]:
        """Names of what is in ``layers`` or ``obsm``."""

    def element(self, key: str) -> Any:
        """Give ``"X"``, ``"raw/X"``, ``"layers/…"`` or ``"obsm/…"``, unread; None if it is not there."""


@dataclass(frozen=True, slots=True)
class Origin:
    """One input, as the caller gave it."""

    name: str
    """What messages and the obs column ``src_path`` call it."""
    given: str | ad.AnnData | ZarrStore
    """A path, or the object."""
    load: Load | None
    """Makes AnnData of a path that is no file that can be read here."""

    @contextmanager
    def open(self) -> Iterator[Root]:
        """Open it; whatever goes wrong inside becomes an InputError that names it.

        Raises
        ------
        MissingInputError
            If nothing is there.
        InputError
            If it is no AnnData.
        """
        try:
            if isinstance(self.given, ad.AnnData):
                yield MemoryRoot(self.given)
            elif isinstance(self.given, ZarrStore):
                yield StoredInput(zarr.open_group(self.given, mode="r"), self.name)
            elif self.load is not None:
                yield MemoryRoot(self.load(self.given))
            else:
                with _open_path(self.given) as root:
                    yield root
        except (InputError, OutputError, SpillError, MemoryError):
            raise
        except StoreError as e:
            raise InputError(f"{self.name}: cannot be read as AnnData: {e}") from e
        except Exception as e:
            raise InputError(f"{self.name}: cannot be read as AnnData: {type(e).__name__}: {e}") from e

    def stamp(self) -> object:
        """Give a JSON value that differs if the contents do: sizes and times of files, checksums of memory."""
        if isinstance(self.given, ad.AnnData):
            try:
                return stamp_of(self.given)
            except Exception as e:
                raise InputError(f"{self.name}: cannot be read as AnnData: {type(e).__name__}: {e}") from e
        if isinstance(self.given, ZarrStore):
            return self.name
        path = Path(self.given)
        files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        stats = [p.stat() for p in files if p.exists()]
        return [str(path.resolve()), [s.st_size for s in stats], [s.st_mtime_ns for s in stats]]


def as_origins(given: Input | Sequence[Input], load: Load | None) -> list[Origin]:
    """Give the inputs in a list; a single one counts as a list of one.

    Raises
    ------
    InputError
        If there is none, or it is of no such kind.
    """
    items = [given] if isinstance(given, str | os.PathLike | ad.AnnData | ZarrStore) else list(given)
    if not items:
        raise InputError("adata_paths must name at least one input, got none")
    origins = []
    for i, item in enumerate(items):
        if isinstance(item, ad.AnnData):
            origins.append(Origin(f"adata_{i}", item, None))
        elif isinstance(item, ZarrStore):
            origins.append(Origin(str(item), item, None))
        elif isinstance(item, str | os.PathLike):
            origins.append(Origin(_text(os.fspath(item)), expanded(item), load))
        else:
            raise InputError(f"adata_paths must be paths, AnnData or zarr stores, got {type(item).__name__} at {i}")
    return origins


def _text(path: str) -> str:
    """Refuse a path that cannot be written as text: it becomes a value of the obs column ``src_path``."""
    try:
        path.encode()
    except UnicodeEncodeError as e:
        raise InputError(f"{path!a}: must be a path in UTF-8, got other bytes; rename it, or make a link") from e
    return path


@contextmanager
def _open_path(path: str) -> Iterator[Root]:
    if not Path(path).exists():
        hint = (
            "; what is elsewhere is passed as a zarr store, zarr.storage.FsspecStore.from_url(…)"
            if "://" in path
            else ""
        )
        raise MissingInputError(f"{path}: no such file or directory{hint}")
    if Path(path).is_dir():
        _check_store(Path(path))
        yield StoredInput(zarr.open_group(path, mode="r"), path)
        return
    if not h5py.is_hdf5(path):
        raise InputError(
            f"{path}: must be an AnnData file, a .h5ad (HDF5) file or a .zarr directory; this is neither. "
            f"Pass load= to read other files"
        )
    load_filters(path, Path(path).stat().st_mtime_ns)
    with h5py.File(path, mode="r") as file:
        is_10x = "obs" not in file and isinstance(file.get("matrix"), h5py.Group) and "barcodes" in file["matrix"]
        yield TenxRoot(file["matrix"]) if is_10x else StoredInput(file, path)


def _check_store(folder: Path) -> None:
    """Refuse a folder that is no zarr store."""
    if any((folder / name).exists() for name in ("zarr.json", ".zgroup", ".zmetadata")):
        return
    held = next((kind for kind in ("*.h5ad", "*.zarr", "*.h5") if next(folder.glob(kind), None)), None)
    remedy = "it holds neither" if held is None else f"pass what is in it: {folder}/{held}"
    raise InputError(f"{folder}: must be an AnnData file or a .zarr directory, got a folder that is no store; {remedy}")


class TenxRoot:
    """A feature-barcode matrix of 10x Genomics, as Cell Ranger 3 and later write it; its columns are cells.

    Format: https://www.10xgenomics.com/support/software/cell-ranger/latest/analysis/outputs/cr-outputs-h5-matrices
    """

    def __init__(self, group: h5py.Group) -> None:
        self._group = group
        self.column_names: list[str] = []
        self.index_name: str | None = None

    def obs_names(self) -> npt.NDArray[Any]:
        """Read the barcodes, (n_obs,) str objects."""
        return as_text(self._group["barcodes"].asstr()[:])

    def check_column(self, name: str) -> int:
        """There is none."""
        raise KeyError(name)

    def column(self, name: str) -> pd.Series[Any]:
        """There is none."""
        raise KeyError(name)

    def var(self, raw: bool) -> pd.DataFrame:
        """Read the features, named by their identifiers, which are unique as their symbols are not."""
        features = self._group["features"]
        columns = {"gene_symbols": "name", "feature_types": "feature_type", "genome": "genome"}
        read = {ours: features[theirs].asstr()[:] for ours, theirs in columns.items() if theirs in features}
        return pd.DataFrame(read, index=pd.Index(as_text(features["id"].asstr()[:]), dtype=object, name="gene_ids"))

    def names(self, group: str) -> list[str]:
        """There are none."""
        return []

    def element(self, key: str) -> Any:
        """Give X, whose rows are the file's columns; None for all else."""
        if key != "X":
            return None
        n_vars, n_obs = (int(n) for n in self._group["shape"][:])
        data, indices, indptr = (self._group[name] for name in ("data", "indices", "indptr"))
        return Matrix("csr", (n_obs, n_vars), data.dtype, data, indices, indptr)
