"""What is in a feature-barcode matrix that Cell Ranger wrote as HDF5?

Its columns are the cells, so that its compressed columns are the rows of X. Genes are named by their identifiers, which
are unique as their symbols are not, in all versions alike.

1. `v3_root` reads a file of Cell Ranger 3 and later, and of what other programs of 10x Genomics write in its layout.
2. `v2_root` reads one of Cell Ranger 2 and earlier, which has a group for each genome.

Formats: https://www.10xgenomics.com/support/software/cell-ranger/latest/analysis/outputs/cr-outputs-h5-matrices and
https://support.10xgenomics.com/single-cell-gene-expression/software/pipelines/2.0/advanced/h5_matrices
"""

from __future__ import annotations

from functools import partial
from typing import Any

import h5py
import numpy as np
import pandas as pd

from annbatch.errors import InputError
from annbatch.stores.stored_frame import as_text
from annbatch.write.inputs.matrix_rows import Matrix
from annbatch.write.inputs.opened_input import Array, PartsRoot

GENE_IDS = "gene_ids"
"""Name of var's index: what scanpy calls the identifiers."""
GENE_SYMBOLS = "gene_symbols"
"""What scanpy calls the symbols where identifiers name the genes."""

_ALSO_CALLED = {"name": GENE_SYMBOLS, "feature_type": "feature_types", "gene_id": GENE_IDS}
"""Name of a dataset of features -> what scanpy calls it; others keep their names."""
_IN_V2 = frozenset({"barcodes", "genes", "gene_names", "data", "indices", "indptr", "shape"})


def is_v3(file: h5py.File) -> bool:
    """Say whether a file has the layout of Cell Ranger 3."""
    return "obs" not in file and isinstance(file.get("matrix"), h5py.Group) and "barcodes" in file["matrix"]


def genomes(file: h5py.File) -> list[str]:
    """Name the genomes of a file that has the layout of Cell Ranger 2; none if it has another one."""
    return [name for name, group in file.items() if isinstance(group, h5py.Group) and group.keys() >= _IN_V2]


def v3_root(file: h5py.File, where: str, part: str | None) -> PartsRoot:
    """Read a file of Cell Ranger 3 and later.

    Raises
    ------
    InputError
        If a part of it is asked for.
    """
    if part is not None:
        raise InputError(
            f"{where}: the path must not continue with {part!r}: a file of Cell Ranger 3 holds all genomes in one "
            f"matrix; var_names= selects genes"
        )
    group = file["matrix"]
    flags = group.get("filtered_barcodes")
    columns = {} if flags is None else {"filtered_barcodes": (len(flags), lambda: flags[:].astype(bool))}
    x = _by_cells(group, group["data"].dtype)
    return PartsRoot(partial(_text, group, "barcodes"), lambda: _features(group["features"]), {"X": x}, columns)


def v2_root(file: h5py.File, where: str, genome: str | None) -> PartsRoot:
    """Read one genome of a file of Cell Ranger 2; None if it has just one.

    Raises
    ------
    InputError
        If it is unknown which one is meant.
    """
    there = genomes(file)
    if genome is None and len(there) > 1:
        raise InputError(f"{where}: must be one genome, got a file with {there}; add one to the path: …/{there[0]}")
    if genome is not None and genome not in there:
        raise InputError(f"{where}: must name a genome of the file, got {genome!r}; it has {there}")
    group = file[there[0] if genome is None else genome]
    # As scanpy reads them.
    dtype = np.dtype(np.float32) if group["data"].dtype == np.int32 else group["data"].dtype
    return PartsRoot(partial(_text, group, "barcodes"), lambda: _genes(group), {"X": _by_cells(group, dtype)})


def _genes(group: h5py.Group) -> pd.DataFrame:
    index = pd.Index(_text(group, "genes"), dtype=object, name=GENE_IDS)
    return pd.DataFrame({GENE_SYMBOLS: _text(group, "gene_names")}, index=index)


def _features(features: h5py.Group) -> pd.DataFrame:
    """Read all that is known of the features; those of a matrix of probes are named by the probes."""
    others = [name for name, item in features.items() if isinstance(item, h5py.Dataset) and name != "_all_tag_keys"]
    names = [name for name in (*_ALSO_CALLED, "genome", *others) if name in others and name != "id"]
    columns = {_ALSO_CALLED.get(name, name): _values(features[name]) for name in dict.fromkeys(names)}
    index_name = "probe_ids" if GENE_IDS in columns else GENE_IDS
    return pd.DataFrame(columns, index=pd.Index(_text(features, "id"), dtype=object, name=index_name))


def _values(item: h5py.Dataset) -> Array:
    values: Array = item[:] if item.dtype.kind == "b" else item.asstr()[:] if item.dtype.kind in "OS" else item[:]
    return values if values.dtype.kind in "bO" else values.astype(str).astype(object)


def _text(group: h5py.Group, name: str) -> Array:
    return as_text(group[name].asstr()[:])


def _by_cells(group: h5py.Group, dtype: Any) -> Matrix:
    """Give X, whose rows are the file's columns."""
    n_vars, n_obs = (int(n) for n in group["shape"][:])
    data, indices, indptr = (group[name] for name in ("data", "indices", "indptr"))
    return Matrix("csr", (n_obs, n_vars), dtype, data, indices, indptr)
