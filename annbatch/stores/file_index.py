"""What was read of an ``.h5ad`` file when it was opened before, so that opening it again needs no HDF5?

A `FileIndex` is a folder that several processes may use at once:

1. `FileIndex.save` writes down, for each file, where the chunks of its matrices lie, the obs columns that were read,
   and the digest of its gene names. Lists of names are files of their own, one for all files that have the same.
   `FileIndex.keep` adds further obs columns, and the names of the cells, when somebody has asked for them.
2. `FileIndex.load` gives the store again if the file, and the others that hold parts of its obs and var, have the size
   and time that they had then; `FileIndex.columns` and `FileIndex.cell_names` give what else was kept.
3. `FileIndex.lists` joins the genes of files. Where they differ, it keeps the result for the same files in the same
   order.
4. Files are written under another name and then renamed. What is damaged, was written by another version or on another
   platform, or cannot be read for any other reason, is not there: the ``.h5ad`` file is opened instead. A folder that
   cannot be written is told once through `logging`.

Matrices that h5py has to read are left out, since HDF5 may lack what it takes to read them: their files are opened.
"""

from __future__ import annotations

import hashlib
import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from annbatch.shards.file_stamp import FileStamp
from annbatch.stores import array_opening
from annbatch.stores.anndata_store import Store, Wanted, checked
from annbatch.stores.gene_lists import GeneLists
from annbatch.stores.indexed_columns import Arrays, packed_column, packed_texts, unpacked_column, unpacked_texts
from annbatch.stores.indexed_genes import packed_lists, unpacked_lists
from annbatch.stores.indexed_matrices import is_direct, packed_matrix, unpacked_matrix
from annbatch.stores.label_columns import columns_of_file
from annbatch.stores.obs_access import ObsInFile
from annbatch.stores.store_var import GeneNames, StoreVar, VarInFile

_SETTLED_NS = 2 * 10**9
"""Disks tell times this coarsely: a file that was written later may change once more and keep its time."""

_MAX_JOINED = 1 << 26
"""Genes of all lists together, of which the join is kept: 256 MB."""

_MAX_JOINS = 8
"""Joins that are kept: each is of other files, or of the same ones in another order."""

_log = logging.getLogger("annbatch")


class FileIndex:
    """A folder of what was read of ``.h5ad`` files.

    Parameters
    ----------
    folder
        The folder. It is made, for its owner alone, when the first file is kept.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self._told = False
        self._whole: set[bytes] = set()
        """Digests of the names whose files were read or written."""

    def load(self, stamp: FileStamp, wanted: Wanted, read_var: Callable[[FileStamp], pd.DataFrame]) -> Store | None:
        """Give the store of a file; None if the file has to be opened."""
        if not _is_usable():
            return None
        name = str(stamp.path)
        try:
            header, arrays = self._entry(stamp)
            stamp = replace(stamp, others=_others(header))
            kept = header["matrices"]
            matrices = {element: unpacked_matrix(kept[element], arrays, stamp) for element in wanted.elements}
            there = header["column_names"]
            asked = there if wanted.labels is None else [label for label in wanted.labels if label in there]
            columns = {label: unpacked_column(header["columns"][label], arrays) for label in asked}
            described = columns_of_file(there, columns.__getitem__, asked, name)
            digest, n_vars, shape = bytes.fromhex(header["genes"]), header["n_vars"], matrices["X"].shape
            read = partial(self._gene_names, digest, stamp, read_var)
            genes = GeneNames.known(digest, n_vars) or GeneNames(digest, n_vars, None, read)
            obs, var = ObsInFile(name, stamp, shape[0], there, described, self), VarInFile(stamp, genes, read_var)
            return checked(Store(name, shape, matrices, described, obs, var))
        except Exception:  # noqa: BLE001 whatever lies in the folder, the file itself can be read
            return None

    def save(self, store: Store, stamp: FileStamp, columns: Mapping[str, Any]) -> None:
        """Write down what was read of a file; ``columns`` are those of obs, as `StoredFrame.column` gave them."""
        if not isinstance(store.var, VarInFile) or not _may_keep(stamp):
            return
        genes = store.var.genes
        try:
            # What was kept before, for other elements and labels, remains.
            header, arrays = self._entry(stamp)
            if _others(header) != stamp.others:
                raise ValueError("other files hold parts of it")
        except Exception:  # noqa: BLE001 as in `load`
            others = [[str(one.path), one.nbytes, one.mtime_ns] for one in stamp.others]
            header, arrays = {**_identity(stamp), "others": others, "matrices": {}, "columns": {}}, Arrays()
            header |= {"column_names": store.obs.column_names, "genes": genes.digest.hex(), "n_vars": genes.n}
        for key, one in store.matrices.items():
            if key not in header["matrices"] and is_direct(one, stamp):
                header["matrices"][key] = packed_matrix(one, arrays)
        _add_columns(header, arrays, columns)
        if genes.digest not in self._whole and self._write(self._names_file(genes.digest), genes.joined()):
            self._whole.add(genes.digest)
        self._write(self._file(stamp), arrays.with_header(header))

    def columns(self, stamp: FileStamp, names: Sequence[str]) -> dict[str, Any]:
        """Give those obs columns of a file that are kept, as `StoredFrame.column` gives them."""
        with suppress(Exception):
            header, arrays = self._entry(stamp)
            kept = header["columns"]
            return {name: unpacked_column(kept[name], arrays) for name in names if name in kept}
        return {}

    def cell_names(self, stamp: FileStamp) -> pd.Index[Any] | None:
        """Give the index of a file's obs; None if it is not kept."""
        with suppress(Exception):
            header, arrays = self._entry(stamp)
            names = np.array(unpacked_texts(header["names"], arrays), object)
            found: pd.Index[Any] = pd.Index(names, name=header["index_name"])
            return found
        return None

    def keep(self, stamp: FileStamp, columns: Mapping[str, Any], names: pd.Index[Any] | None = None) -> None:
        """Add obs columns, and the names of cells, to what is kept of a file, if something is."""
        if not _may_keep(stamp):
            return
        with suppress(Exception):
            header, arrays = self._entry(stamp)
            is_more = _add_columns(header, arrays, columns)
            if names is not None and (packed := packed_texts(names.tolist(), arrays)) is not None:
                header, is_more = header | {"names": packed, "index_name": names.name}, True
            if is_more:
                self._write(self._file(stamp), arrays.with_header(header))

    def lists(self, stores: Sequence[StoreVar]) -> GeneLists | None:
        """Give the lists of the genes of stores, one after the other; None if some are no ``.h5ad`` files."""
        genes = [var.genes for var in stores if isinstance(var, VarInFile)]
        if len(genes) < len(stores):
            return None
        distinct = list(dict.fromkeys(one.digest for one in genes))
        path = self.folder / f"{hashlib.sha256(b''.join(distinct)).hexdigest()[:40]}.gene-lists"
        lists, is_kept = GeneLists(), len(distinct) == 1
        with suppress(Exception):
            lists = lists if is_kept else unpacked_lists(np.fromfile(path, np.uint8), distinct)
            is_kept = True
        for one in genes:
            lists.add_known(one.digest, one.names)
        if not is_kept and sum(lists.lengths) <= _MAX_JOINED and (stored := packed_lists(lists)) is not None:
            self._write(path, stored)
            with suppress(OSError):
                joins = sorted(self.folder.glob("*.gene-lists"), key=lambda one: one.stat().st_mtime_ns)
                for old in joins[:-_MAX_JOINS]:
                    old.unlink(missing_ok=True)
        return lists

    def _entry(self, stamp: FileStamp) -> tuple[dict[str, Any], Arrays]:
        header, arrays = Arrays.parsed(np.fromfile(self._file(stamp), np.uint8))
        if any(header[key] != value for key, value in _identity(stamp).items()):
            raise ValueError("the file has changed")
        for other in _others(header):
            other.check()
        return header, arrays

    def _gene_names(self, digest: bytes, stamp: FileStamp, read_var: Callable[[FileStamp], pd.DataFrame]) -> bytes:
        """Read the names that have a digest, or where they are damaged those of a file that has them."""
        with suppress(OSError):
            joined = self._names_file(digest).read_bytes()
            if hashlib.sha256(joined).digest() == digest:
                self._whole.add(digest)
                return joined
        joined = GeneNames.of(read_var(stamp).index).joined()
        self._write(self._names_file(digest), joined)
        return joined

    def _file(self, stamp: FileStamp) -> Path:
        return self.folder / f"{hashlib.sha256(os.fsencode(stamp.path)).hexdigest()[:40]}.h5ad-index"

    def _names_file(self, digest: bytes) -> Path:
        return self.folder / f"{digest.hex()[:40]}.genes"

    def _write(self, path: Path, content: bytes) -> bool:
        """Write a file, whole or not at all; say whether that could be done."""
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            number, temporary = tempfile.mkstemp(dir=self.folder, prefix=".new-")
            try:
                with os.fdopen(number, "wb") as file:
                    file.write(content)
                Path(temporary).replace(path)
            except BaseException:
                Path(temporary).unlink(missing_ok=True)
                raise
        except OSError as e:
            if not self._told:
                self._told = True
                _log.warning("%s: the index of .h5ad files cannot be written: %s", self.folder, e)
            return False
        return True


def _identity(stamp: FileStamp) -> dict[str, Any]:
    """Say of which file an entry is."""
    return {"path": str(stamp.path), "nbytes": stamp.nbytes, "mtime_ns": stamp.mtime_ns}


def _others(header: Mapping[str, Any]) -> tuple[FileStamp, ...]:
    """Give the other files that hold parts of what an entry describes, as they were."""
    return tuple(FileStamp(Path(path), nbytes, mtime_ns) for path, nbytes, mtime_ns in header["others"])


def _is_usable() -> bool:
    """Say whether what the kernels read is read by them here, too."""
    return array_opening.DIRECT and hasattr(os, "pread") and sys.maxsize > 2**32 and sys.byteorder == "little"


def _may_keep(stamp: FileStamp) -> bool:
    return _is_usable() and all(one.mtime_ns <= time.time_ns() - _SETTLED_NS for one in stamp.each)


def _add_columns(header: dict[str, Any], arrays: Arrays, columns: Mapping[str, Any]) -> bool:
    """Describe those obs columns that are not there already, and can be kept; say whether there are some."""
    kept = header["columns"]
    packed = {key: packed_column(values, arrays) for key, values in columns.items() if key not in kept}
    kept |= {key: one for key, one in packed.items() if one is not None}
    return any(one is not None for one in packed.values())
