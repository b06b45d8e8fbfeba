"""Is bad input refused with one clear error, before anything is written?"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pytest
import scipy.sparse as sp
import zarr

from annbatch.errors import InputError, MissingInputError, OutputExistsError
from annbatch.write import create_anndata_collection
from annbatch.write.inputs.matrix_rows import matrix_of, read_rows
from annbatch.write.inputs.opening import as_origins
from annbatch.write.inputs.transpose import transpose, transposed
from datagen import FILE_KINDS, named_adata, write_adata, write_inputs


def adata(rows: range = range(3), columns: range = range(4), **kwargs: Any) -> ad.AnnData:
    return named_adata(np.random.default_rng(0), rows, columns, density=1.0, **kwargs)


def written(directory: Path, *adatas: ad.AnnData) -> list[Path]:
    return [write_adata(a, directory / f"input{i}", "h5ad") for i, a in enumerate(adatas)]


def edited(directory: Path, edit: Callable[[h5py.File], None], **kwargs: Any) -> list[Path]:
    """One good file, then changed by hand."""
    paths = written(directory, adata(**kwargs))
    with h5py.File(paths[0], "r+") as file:
        edit(file)
    return paths


def with_value(value: float, layer: str | None = None) -> ad.AnnData:
    a = adata()
    if layer is not None:
        a.layers[layer] = a.X.copy()
    (a.X if layer is None else a.layers[layer]).data[5] = value
    return a


def repeated_entry(file: h5py.File) -> None:
    file["X/indices"][5] = file["X/indices"][4]


def unsorted_repeated_entry(file: h5py.File) -> None:
    file["X/indices"][4:8] = [3, 1, 0, 3]


def text_file(directory: Path, name: str) -> list[Path]:
    (directory / name).write_text("cell,gene,count\n")
    return [directory / name]


def plain_hdf5(directory: Path) -> list[Path]:
    with h5py.File(directory / "plain.h5ad", "w") as file:
        file["numbers"] = [1, 2, 3]
    return [directory / "plain.h5ad"]


def plain_zarr(directory: Path) -> list[Path]:
    zarr.create_group(directory / "plain.zarr")
    return [directory / "plain.zarr"]


def truncated(directory: Path) -> list[Path]:
    (path,) = written(directory, adata())
    path.write_bytes(path.read_bytes()[:3000])
    return [path]


def no_x(directory: Path) -> list[Path]:
    return written(directory, ad.AnnData(obs=adata().obs, var=adata().var))


def repeated_genes(directory: Path) -> list[Path]:
    def edit(file: h5py.File) -> None:
        file["var/_index"][1] = "g0"

    return edited(directory, edit)


def without_cells(directory: Path) -> list[Path]:
    return written(directory, adata(), adata()[:0].copy())


def without_genes(directory: Path) -> list[Path]:
    return written(directory, adata()[:, :0].copy())


def clashing_obsm(directory: Path) -> list[Path]:
    first, second = adata(), adata(range(3, 6))
    first.obsm["pca"], second.obsm["pca"] = np.zeros((3, 2)), np.zeros((3, 4))
    return written(directory, first, second)


def short_obsm(directory: Path) -> list[Path]:
    first = adata()
    first.obsm["pca"] = np.zeros((3, 2))
    (path,) = written(directory, first)
    with h5py.File(path, "r+") as file:
        del file["obsm/pca"]
        ad.io.write_elem(file["obsm"], "pca", np.zeros((2, 2)))
    return [path]


def clashing_obs(directory: Path) -> list[Path]:
    first, second = adata(), adata(range(3, 6))
    first.obs["stage"] = [1, 2, 3]
    return written(directory, first, second)


def numeric_source(directory: Path) -> list[Path]:
    first = adata()
    first.obs["src_path"] = [1, 2, 3]
    return written(directory, first)


def complex_x(directory: Path) -> list[Path]:
    return written(directory, ad.AnnData(X=np.ones((2, 2), np.complex64)))


Make = Callable[[Path], list[Path]]
CASES: dict[str, tuple[Make, dict[str, Any], str]] = {
    "no inputs": (lambda d: [], {}, "adata_paths must name at least one input, got none"),
    "no AnnData file": (lambda d: text_file(d, "counts.h5ad"), {}, r"counts.h5ad: must be an AnnData file"),
    "HDF5 but not AnnData": (plain_hdf5, {}, r"plain.h5ad: must be an AnnData file, got .* keys \['numbers'\]"),
    "zarr but not AnnData": (plain_zarr, {}, r"plain.zarr: must be an AnnData file"),
    "a directory that is no zarr": (lambda d: [d], {}, "got a folder that is not a store; it holds neither"),
    "a damaged file": (truncated, {}, "input0.h5ad: cannot be read as AnnData: OSError"),
    "X missing": (no_x, {}, "input0.h5ad: X is missing"),
    "no cells": (
        lambda d: without_cells(d)[1:],
        {},
        r"at least one input must have cells, got none in \['.*input1.h5ad",
    ),
    "no genes": (without_genes, {}, "input0.h5ad: var must have at least one row, got 0"),
    "no genes in common": (
        lambda d: written(d, adata(), adata(range(3, 6), range(7, 9))),
        {"join": "inner"},
        "no genes are left: join='inner' .* has no gene in common",
    ),
    "repeated var names": (repeated_genes, {}, r"input0.h5ad: var names must be unique, got more than one of \['g0'\]"),
    "repeated entries": (
        lambda d: edited(d, repeated_entry),
        {},
        "input0.h5ad: X: a row must have at most one entry for a gene, row 1 has several",
    ),
    "repeated entries, unsorted": (lambda d: edited(d, unsorted_repeated_entry), {}, "row 1 has several"),
    "NaN": (
        lambda d: written(d, with_value(np.nan)),
        {},
        r"input0.h5ad: X must hold finite values, got nan in row 1 \('cell1'\)",
    ),
    "infinite": (lambda d: written(d, with_value(-np.inf)), {}, "X must hold finite values, got -inf in row 1"),
    "NaN in a layer": (lambda d: written(d, with_value(np.nan, "raw")), {}, "layers/raw must hold finite values"),
    "column numbers out of range": (
        lambda d: edited(d, lambda f: f["X/indices"].__setitem__(5, 4)),
        {},
        r"X: column numbers must be in \[0, 4\), got 0 to 4",
    ),
    "negative column numbers": (
        lambda d: edited(d, lambda f: f["X/indices"].__setitem__(5, -1)),
        {},
        r"X: column numbers must be in \[0, 4\), got -1 to 3",
    ),
    "indptr falls": (
        lambda d: edited(d, lambda f: f["X/indptr"].__setitem__(1, 9)),
        {},
        "X: indptr must start at 0 and never fall",
    ),
    "indptr too long": (
        lambda d: edited(d, lambda f: f["X/indptr"].__setitem__(3, 99)),
        {},
        "X: data and indices must have 99 elements",
    ),
    "X of another shape": (
        lambda d: edited(d, lambda f: f["X"].attrs.__setitem__("shape", [3, 9])),
        {},
        r"X must have the shape of obs and var \(3, 4\), got \(3, 9\)",
    ),
    "complex X": (complex_x, {}, "X must hold real numbers, got complex64"),
    "obsm of other widths": (
        clashing_obsm,
        {"obsm": ["pca"]},
        "obsm 'pca' must be one array of all inputs, but has 2 columns in .*input0.h5ad, 4 columns in",
    ),
    "obsm of another length": (short_obsm, {}, "input0.h5ad: obsm/pca must have 3 rows, got 2"),
    "obs of other kinds": (
        clashing_obs,
        {"obs_columns": ["stage"]},
        "obs column 'stage' must be of one kind everywhere",
    ),
    "src_path is taken": (numeric_source, {}, "obs column 'src_path' must hold strings, got int64"),
    "unknown gene": (
        lambda d: written(d, adata()),
        {"var_names": ["g1", "g9"]},
        r"var_names must be in at least one input, got \['g9'\]",
    ),
    "gene given twice": (
        lambda d: written(d, adata()),
        {"var_names": ["g1", "g1"]},
        r"var_names must be unique, got more than one of \['g1'\]",
    ),
    "no genes given": (lambda d: written(d, adata()), {"var_names": []}, "no genes are left"),
    "genes as one string": (lambda d: written(d, adata()), {"var_names": "g1"}, "var_names must be a list of names"),
    "unknown join": (
        lambda d: written(d, adata()),
        {"join": "left"},
        "join must be 'outer', 'inner' or 'same', got 'left'",
    ),
    "seed below": (lambda d: written(d, adata()), {"seed": -1}, r"seed must be in \[0, 2\*\*64\), got -1"),
    "seed above": (lambda d: written(d, adata()), {"seed": 2**64, "shuffle": False}, "seed must be in"),
    "rows_per_store": (lambda d: written(d, adata()), {"rows_per_store": 0}, "rows_per_store must be >= 1, got 0"),
    "chunk_elements": (
        lambda d: written(d, adata()),
        {"chunk_elements": 0},
        r"chunk_elements must be in \[1, 2\*\*27\], got 0",
    ),
    "shard_elements": (
        lambda d: written(d, adata()),
        {"chunk_elements": 8, "shard_elements": 7},
        "shard_elements must be >= chunk_elements 8, got 7",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_refused_before_anything_is_written(tmp_path: Path, name: str):
    make, options, message = CASES[name]
    inputs, outputs = tmp_path / "inputs", tmp_path / "outputs"
    inputs.mkdir()
    outputs.mkdir()
    paths = make(inputs)
    with pytest.raises(InputError, match=message):
        create_anndata_collection(paths, outputs / "store", progress=False, **options)
    assert not list(outputs.iterdir())


def test_a_seed_that_is_no_integer(tmp_path: Path):
    with pytest.raises(TypeError):
        create_anndata_collection(written(tmp_path, adata()), tmp_path / "store", seed=0.5, progress=False)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["gone.h5ad", "gone.zarr"])
def test_a_missing_file(tmp_path: Path, name: str):
    paths = [*written(tmp_path, adata()), tmp_path / name]
    with pytest.raises(MissingInputError, match=rf"{name}: no such file or directory"):
        create_anndata_collection(paths, tmp_path / "store", progress=False)
    with pytest.raises(FileNotFoundError):
        create_anndata_collection(paths, tmp_path / "store", progress=False)
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("kind", FILE_KINDS)
def test_a_damaged_value_array_is_refused(tmp_path: Path, kind: Any):
    """The bytes of X are read only after the file was described."""
    path = write_adata(adata(), tmp_path / "input", kind)
    if kind == "h5ad":
        with h5py.File(path, "r+") as file:
            del file["X/data"]
    else:
        (path / "X" / "data" / ("0" if kind == "zarr2" else "c/0")).write_bytes(b"no compressed chunk")
    with pytest.raises(InputError, match=r"input.*cannot be read as AnnData"):
        create_anndata_collection([path], tmp_path / "store", progress=False)
    assert not (tmp_path / "store").exists()


def test_taken_output_paths_are_refused_and_stay(tmp_path: Path):
    (tmp_path / "in").mkdir()
    paths = write_inputs(tmp_path / "in")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "directory").mkdir()
    (tmp_path / "directory" / "notes.txt").write_text("mine")
    (tmp_path / "forged").mkdir()
    (tmp_path / "forged" / "collection.json").write_text('{"format": "something else"}')
    collection = create_anndata_collection(paths, tmp_path / "collection", progress=False)
    for name in ("file", "directory", "forged", "collection"):
        with pytest.raises(OutputExistsError, match=rf"{name}: already exists; pass overwrite=True"):
            create_anndata_collection(paths, tmp_path / name, progress=False)
    for name in ("file", "directory", "forged"):
        with pytest.raises(OutputExistsError, match=rf"{name}: overwrite=True replaces only a collection"):
            create_anndata_collection(paths, tmp_path / name, overwrite=True, progress=False)
    collection.verify()
    assert (tmp_path / "file").read_text() == "mine"
    assert (tmp_path / "directory" / "notes.txt").read_text() == "mine"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["collection", "directory", "file", "forged", "in"]


@pytest.mark.parametrize("form", ["csr", "csc", "dense"])
@pytest.mark.parametrize("block_elements", [1, 7, 1000])
def test_blocks_hold_all_rows(tmp_path: Path, form: Any, block_elements: int):
    """Reading in pieces of any size gives the rows, with the genes renamed, reordered and left out."""
    a = named_adata(np.random.default_rng(1), range(9), range(6), form=form)
    (origin,) = as_origins(write_adata(a, tmp_path / "input", "zarr3"), None)
    columns = np.array([3, -1, 0, 2, -1, 1])
    with origin.open() as root:
        matrix = matrix_of(root.element("X"), "X")
        if form == "csc":
            transpose(tmp_path / "turned", matrix, "X", 1000, block_elements, lambda: None)
            matrix = transposed(tmp_path / "turned", matrix)
        read = list(read_rows(matrix, slice(1, 9), columns, 4, "X", block_elements))
    blocks = [joined.rows for joined in read]
    x = a.X.toarray() if sp.issparse(a.X) else a.X
    wanted = x[1:, [2, 5, 3, 0]]
    np.testing.assert_array_equal(sp.vstack([block.to_scipy() for block in blocks]).toarray(), wanted)
    assert all(block.to_scipy().has_canonical_format for block in blocks)
    assert block_elements == 1000 or len(blocks) > 1
    lost = x[1:, [1, 4]]
    assert sum(joined.n_lost for joined in read) == np.count_nonzero(lost)
    assert sum(joined.counts_lost or 0 for joined in read) == lost.sum()
