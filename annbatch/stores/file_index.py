"""What was read of an ``.h5ad`` file when it was opened before, so that opening it again needs no HDF5?

A `FileIndex` is a folder that several processes may use at once:

1. `FileIndex.save` writes down, for each file, where the chunks of its matrices lie, the obs columns that were read,
   and the digest of its gene names. Lists of names are files of their own, one for all files that have the same.
2. `FileIndex.load` gives the store again if the file has the size and time that it had then.
3. Files are written under another name and then renamed. What is damaged, was written by another version or on another
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
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from annbatch.shards.chunk_files import ChunkFiles
from annbatch.shards.codecs import Codec, Decoder, Library, library
from annbatch.shards.file_stamp import FileStamp
from annbatch.shards.hdf5_chunks import FileChunks
from annbatch.shards.local_array import ShardedArray
from annbatch.shards.scatter import Form
from annbatch.stores import array_opening
from annbatch.stores.anndata_store import DenseMatrix, Matrix, SparseMatrix, Store, Wanted, checked
from annbatch.stores.elements import DirectElements
from annbatch.stores.indexed_columns import Arrays, packed_column, unpacked_column
from annbatch.stores.label_columns import columns_of_file
from annbatch.stores.obs_access import ObsInFile
from annbatch.stores.slices import Direct
from annbatch.stores.store_var import GeneNames, VarInFile

_SETTLED_NS = 2 * 10**9
"""Disks tell times this coarsely: a file that was written later may change once more and keep its time."""

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
            matrices = {element: _matrix(header["matrices"][element], arrays, stamp) for element in wanted.elements}
            names = header["column_names"]
            asked = names if wanted.labels is None else [label for label in wanted.labels if label in names]
            columns = {label: unpacked_column(header["columns"][label], arrays) for label in asked}
            genes = self._genes(bytes.fromhex(header["genes"]), header["n_vars"])
            shape = matrices["X"].shape
            described = columns_of_file(names, columns.__getitem__, asked, name)
            obs, var = ObsInFile(name, stamp, shape[0], names), VarInFile(stamp, genes, read_var)
            return checked(Store(name, shape, matrices, described, obs, var))
        except Exception:  # noqa: BLE001 whatever lies in the folder, the file itself can be read
            return None

    def save(self, store: Store, stamp: FileStamp, columns: Mapping[str, Any]) -> None:
        """Write down what was read of a file; ``columns`` are those of obs, as `StoredFrame.column` gave them."""
        if not _is_usable() or not isinstance(store.var, VarInFile) or stamp.mtime_ns > time.time_ns() - _SETTLED_NS:
            return
        arrays = Arrays()
        matrices = {key: _packed(one, arrays) for key, one in store.matrices.items() if _is_direct(one, stamp)}
        described = {key: packed_column(values, arrays) for key, values in columns.items()}
        with suppress(Exception):
            # What was kept before, for other elements and labels, remains.
            header, old = self._entry(stamp)
            for key in header["matrices"].keys() - store.matrices.keys():
                matrices[key] = _packed(_matrix(header["matrices"][key], old, stamp), arrays)
            for key in header["columns"].keys() - columns.keys():
                described[key] = packed_column(unpacked_column(header["columns"][key], old), arrays)
        genes = store.var.genes
        header = {
            **_identity(stamp),
            "matrices": matrices,
            "columns": {key: column for key, column in described.items() if column is not None},
            "column_names": store.obs.column_names,
            "genes": genes.digest.hex(),
            "n_vars": genes.n,
        }
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if genes.digest not in self._whole:
                _write(self._names_file(genes.digest), genes.joined)
                self._whole.add(genes.digest)
            _write(self._file(stamp), arrays.with_header(header))
        except OSError as e:
            if not self._told:
                self._told = True
                _log.warning("%s: the index of .h5ad files cannot be written: %s", self.folder, e)

    def _entry(self, stamp: FileStamp) -> tuple[dict[str, Any], Arrays]:
        header, arrays = Arrays.parsed(self._file(stamp).read_bytes())
        if any(header[key] != value for key, value in _identity(stamp).items()):
            raise ValueError("the file has changed")
        return header, arrays

    def _genes(self, digest: bytes, n: int) -> GeneNames:
        found = GeneNames.known(digest, n)
        if found is None:
            found = GeneNames.shared(self._names_file(digest).read_bytes(), n)
            if found.digest != digest:
                raise ValueError("the names are damaged")
            self._whole.add(digest)
        return found

    def _file(self, stamp: FileStamp) -> Path:
        return self.folder / f"{hashlib.sha256(os.fsencode(stamp.path)).hexdigest()[:40]}.h5ad-index"

    def _names_file(self, digest: bytes) -> Path:
        return self.folder / f"{digest.hex()[:40]}.genes"


def _identity(stamp: FileStamp) -> dict[str, Any]:
    """Say of which file an entry is."""
    return {"path": str(stamp.path), "nbytes": stamp.nbytes, "mtime_ns": stamp.mtime_ns}


def _is_usable() -> bool:
    """Say whether what the kernels read is read by them here, too."""
    return array_opening.DIRECT and hasattr(os, "pread") and sys.maxsize > 2**32 and sys.byteorder == "little"


def _is_direct(matrix: Matrix, stamp: FileStamp) -> bool:
    return matrix.file == stamp and all(isinstance(part, DirectElements | Direct) for part in _parts(matrix).values())


def _parts(matrix: Matrix) -> dict[str, Any]:
    if isinstance(matrix, DenseMatrix):
        return {"values": matrix.values}
    return {"data": matrix.data, "indices": matrix.indices, "indptr": matrix.indptr}


def _packed(matrix: Matrix, arrays: Arrays) -> dict[str, Any]:
    """Describe a matrix that the kernels read."""
    parts = {key: _packed_array(part.array, arrays) for key, part in _parts(matrix).items()}
    return {"shape": list(matrix.shape), "dtype": matrix.dtype.str, **parts}


def _matrix(kept: Mapping[str, Any], arrays: Arrays, stamp: FileStamp) -> Matrix:
    """Give a matrix as `annbatch.stores.anndata_store.matrix_in_hdf5` does."""
    n_obs, n_columns = kept["shape"]
    dtype = np.dtype(kept["dtype"])
    if "values" in kept:
        values = DirectElements(_array(kept["values"], arrays, stamp))
        return DenseMatrix((n_obs, n_columns), dtype, values, None, stamp)
    data, indices = (DirectElements(_array(kept[key], arrays, stamp)) for key in ("data", "indices"))
    indptr = Direct(_array(kept["indptr"], arrays, stamp))
    return SparseMatrix((n_obs, n_columns), dtype, indptr, data, indices, None, stamp)


def _packed_array(array: ShardedArray, arrays: Arrays) -> dict[str, Any]:
    chunks, form = array.tables.layout, array.form
    assert isinstance(chunks, FileChunks)
    decoder = form.decoder
    return {
        "dataset": chunks.dataset,
        "shape": list(array.shape),
        "dtype": form.dtype.str,
        "chunk_elements": form.chunk_elements,
        "fill": form.fill.hex(),
        "codec": decoder.codec.name,
        "shuffle": decoder.shuffle,
        "fletcher32": decoder.fletcher32,
        "swapped": decoder.swapped,
        "offsets": arrays.add(chunks.offsets),
        "nbytes": arrays.add(chunks.nbytes),
    }


def _array(kept: Mapping[str, Any], arrays: Arrays, stamp: FileStamp) -> ShardedArray:
    codec = Codec[kept["codec"]]
    if codec in (Codec.BLOSC, Codec.ZSTD, Codec.ZLIB) and not isinstance(library(), Library):
        raise ValueError("the kernels do not decode that here")
    decoder = Decoder(codec, kept["shuffle"], fletcher32=kept["fletcher32"], swapped=kept["swapped"])
    shape, elements = tuple(kept["shape"]), kept["chunk_elements"]
    form = Form(np.dtype(kept["dtype"]), elements, decoder, bytes.fromhex(kept["fill"]))
    n_elements = int(np.prod(shape, dtype=object))
    offsets, nbytes = arrays.get(kept["offsets"]), arrays.get(kept["nbytes"])
    chunks = FileChunks(stamp, kept["dataset"], n_elements, elements, offsets, nbytes)
    return ShardedArray(chunks.folder, shape, form, ChunkFiles(chunks))


def _write(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all."""
    number, temporary = tempfile.mkstemp(dir=path.parent, prefix=".new-")
    try:
        with os.fdopen(number, "wb") as file:
            file.write(content)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
