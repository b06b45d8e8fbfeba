"""Do inputs of other formats than AnnData's come out as the libraries that know these formats read them?

The truth is what scanpy, mudata, anndata and loompy read from the same file.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from annbatch import append_to_collection, create_anndata_collection
from annbatch.errors import InputError, InputErrors, MissingInputError
from annbatch.stores.collection import Collection
from datagen import named_adata, value

# anndata warns of symbols that occur twice, as they are to.
pytestmark = pytest.mark.filterwarnings("ignore:Variable names are not unique:UserWarning")

CUT: dict[str, Any] = {"rows_per_store": 64, "chunk_elements": 8, "shard_elements": 64, "progress": False}


def built(path: Any, output: Path, **options: Any) -> tuple[Collection, ad.AnnData]:
    """A collection in the order of its inputs, and its only store."""
    collection = create_anndata_collection(path, output, shuffle=False, **CUT, **options)
    (store,) = collection.store_paths
    return collection, ad.read_zarr(store)


def assert_same(found: tuple[Collection, ad.AnnData], expected: ad.AnnData, **source: str) -> None:
    """Compare everything that a collection holds; ``source`` is the expected obs column ``src_path``, if it matters."""
    collection, cells = found
    assert cells.obs_names.tolist() == expected.obs_names.tolist()
    assert cells.obs.index.name == expected.obs.index.name
    obs = cells.obs.astype(object)
    assert set(obs.pop("src_path")) == set(source.values() or cells.obs["src_path"])
    pd.testing.assert_frame_equal(obs, expected.obs.astype(object), check_index_type=False)
    # A collection's genes are those of many inputs: var's index has no name.
    var = expected.var.rename_axis(index=None).astype(object)
    pd.testing.assert_frame_equal(cells.var.astype(object), var, check_like=True, check_index_type=False)
    elements = {"X": (cells.X, expected.X)}
    assert [*cells.layers] == sorted(name for name in expected.layers if name is not None)
    elements |= {f"layers/{name}": (cells.layers[name], expected.layers[name]) for name in cells.layers}
    for key, (ours, theirs) in elements.items():
        np.testing.assert_array_equal(ours.toarray(), theirs.toarray() if sp.issparse(theirs) else theirs)
        assert collection.types[key].original == theirs.dtype
    assert [*cells.obsm] == sorted(expected.obsm)
    for name in cells.obsm:
        np.testing.assert_array_equal(cells.obsm[name], expected.obsm[name])


def by_identifiers(adata: ad.AnnData) -> ad.AnnData:
    """What scanpy read by symbols, with genes named as collections name those of 10x Genomics."""
    adata.var["gene_symbols"] = adata.var_names.to_numpy()
    adata.var = adata.var.set_index("gene_ids")
    return adata


def counts(n_cells: int, n_genes: int) -> sp.csr_matrix:
    rows, columns = np.indices((n_cells, n_genes))
    return sp.csr_matrix(np.where((rows * 7 + columns * 3) % 4 == 0, value(rows, columns), 0))


def texts(*names: str) -> np.ndarray:
    return np.array([name.encode() for name in names])


SYMBOLS = ["A", "B", "B", "C", "D"]


def cell_ranger_2(path: Path, *genomes: str) -> Path:
    """The layout of Cell Ranger 2, as its documentation describes it."""
    with h5py.File(path, "w") as file:
        for i, genome in enumerate(genomes):
            x, group = counts(6 + i, 5), file.create_group(genome)
            group["barcodes"] = texts(*(f"CELL{r}-{i + 1}" for r in range(6 + i)))
            group["genes"] = texts(*(f"{genome}_ENSG{c}" for c in range(5)))
            group["gene_names"] = texts(*SYMBOLS)
            group["data"], group["indices"] = x.data.astype(np.int32), x.indices.astype(np.int64)
            group["indptr"], group["shape"] = x.indptr.astype(np.int64), np.array([5, 6 + i], np.int32)
    return path


def cell_ranger_3(path: Path, **features: Any) -> Path:
    """The layout of Cell Ranger 3 and later, as its documentation describes it."""
    x = counts(6, 5)
    with h5py.File(path, "w") as file:
        group = file.create_group("matrix")
        group["barcodes"] = texts(*(f"CELL{r}-1" for r in range(6)))
        group["data"], group["indices"] = x.data.astype(np.int32), x.indices.astype(np.int64)
        group["indptr"], group["shape"] = x.indptr.astype(np.int64), np.array([5, 6], np.int32)
        known = {
            "id": texts(*(f"ENSG{c}" for c in range(5))),
            "name": texts(*SYMBOLS),
            "feature_type": texts(*["Gene Expression"] * 4, "Antibody Capture"),
            "genome": texts("hg19", "hg19", "mm10", "mm10", ""),
            "_all_tag_keys": texts("genome", "pattern"),
        }
        for name, values in (known | features).items():
            group[f"features/{name}"] = values
        if "gene_id" in features:
            group["filtered_barcodes"] = np.arange(6) % 2
    return path


@pytest.fixture(scope="module")
def sc() -> Any:
    return pytest.importorskip("scanpy", reason="scanpy is not installed")


def test_cell_ranger_2(tmp_path: Path, sc: Any) -> None:
    one = cell_ranger_2(tmp_path / "one.h5", "hg19")
    two = cell_ranger_2(tmp_path / "two.h5", "hg19", "mm10")
    assert_same(built(one, tmp_path / "a"), by_identifiers(sc.read_10x_h5(one)), path=str(one))
    assert_same(built(f"{two}/mm10", tmp_path / "b"), by_identifiers(sc.read_10x_h5(two, genome="mm10")))
    # By symbols, as scanpy has it.
    expected = sc.read_10x_h5(one)
    expected.var_names_make_unique()
    _, cells = built(one, tmp_path / "c", var_key="gene_symbols", repeated_genes="unique")
    var = cells.var.drop(columns="gene_symbols").astype(object)
    pd.testing.assert_frame_equal(var, expected.var.astype(object), check_index_type=False)
    # Which genome is meant must be said; all faults are named at once.
    with pytest.raises(InputErrors) as refused:
        create_anndata_collection([two, f"{two}/rn6", f"{one}/x/y", f"{tmp_path}/no.h5/hg19"], tmp_path / "d", **CUT)
    faults = [str(fault).removeprefix(str(tmp_path)) for fault in refused.value.errors]
    assert faults == [
        f"/two.h5: must be one genome, got a file with ['hg19', 'mm10']; name one: {two}/hg19",
        "/two.h5/rn6: must name a genome of the file, got 'rn6'; it has ['hg19', 'mm10']",
        "/one.h5/x/y: must name a genome of the file, got 'x/y'; it has ['hg19']",
        "/no.h5/hg19: no such file or directory",
    ]


def test_cell_ranger_3(tmp_path: Path, sc: Any) -> None:
    tags = {"pattern": texts("", "", "", "", "^ACGT"), "target": np.array([True, False, True, False, True])}
    path = cell_ranger_3(tmp_path / "a.h5", **tags)
    expected = by_identifiers(sc.read_10x_h5(path, gex_only=False))
    # The type is the file's own; scanpy makes it float32.
    expected.X = expected.X.astype(np.int32)
    assert_same(built(path, tmp_path / "a"), expected)
    with pytest.raises(InputError, match=r"a.h5/hg19: must be named without 'hg19', .*; var_names= chooses genes"):
        create_anndata_collection(f"{path}/hg19", tmp_path / "b", **CUT)
    # A matrix of probes: several for a gene.
    path = cell_ranger_3(tmp_path / "probes.h5", gene_id=texts("G0", "G1", "G1", "G2", "G3"))
    expected = sc.read_10x_h5(path, gex_only=False)
    expected.var["gene_symbols"] = expected.var_names.to_numpy()
    expected.var, expected.X = expected.var.set_index("probe_ids"), expected.X.astype(np.int32)
    assert_same(built(path, tmp_path / "c"), expected)


def test_a_modality_of_h5mu(tmp_path: Path) -> None:
    mudata = pytest.importorskip("mudata", reason="mudata is not installed")
    path = tmp_path / "both.h5mu"
    rna, atac = (named_adata(np.random.default_rng(i), range(7), range(10 * i, 10 * i + 8)) for i in range(2))
    rna.layers["counts"], rna.obsm["pca"] = rna.X * 2, np.arange(14.0).reshape(7, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mdata = mudata.MuData({"rna": rna, "atac": atac})
        mdata.write_h5mu(path)
        mdata.write_zarr(tmp_path / "both.zarr")
        mudata.MuData({"atac": atac}).write_h5mu(tmp_path / "one.h5mu")
        expected = {name: mudata.read(f"{path}/{name}") for name in ("rna", "atac")}
    assert_same(built(f"{path}/rna", tmp_path / "a"), expected["rna"], path=f"{path}/rna")
    assert_same(built({"x": f"{path}/mod/atac"}, tmp_path / "b"), expected["atac"], name="x")
    assert_same(built(tmp_path / "one.h5mu", tmp_path / "c"), expected["atac"])
    assert_same(built(tmp_path / "both.zarr/mod/rna", tmp_path / "d"), expected["rna"])
    with pytest.raises(InputErrors) as refused:
        create_anndata_collection([path, f"{path}/protein", tmp_path / "both.zarr"], tmp_path / "e", **CUT)
    assert [str(fault).removeprefix(str(tmp_path)) for fault in refused.value.errors] == [
        f"/both.h5mu: must be one modality, got MuData with ['rna', 'atac']; name one: {path}/rna",
        "/both.h5mu/protein: must name a modality of the file, got 'protein'; it has ['rna', 'atac']",
        f"/both.zarr: must be one modality, got MuData with ['rna', 'atac']; name one: {tmp_path}/both.zarr/mod/rna",
    ]


def test_names_of_inputs(tmp_path: Path) -> None:
    cells = [named_adata(np.random.default_rng(i), range(5 * i, 5 * i + 5), range(8)) for i in range(3)]
    cells[0].write_h5ad(tmp_path / "a.h5ad")
    cells[1].write_h5ad(tmp_path / "b.h5ad")
    given = {"donor 1": tmp_path / "a.h5ad", "donor 2": tmp_path / "b.h5ad"}
    collection, found = built(given, tmp_path / "store")
    assert found.obs["src_path"].tolist() == ["donor 1"] * 5 + ["donor 2"] * 5
    assert [entry.name for entry in collection.inputs] == list(given)
    collection = append_to_collection({"donor 3": cells[2]}, tmp_path / "store", shuffle=False, progress=False)
    assert collection.inputs[-1].name == "donor 3"
    assert set(ad.read_zarr(collection.store_paths[1]).obs["src_path"]) == {"donor 3"}
    # Errors name the file too.
    with pytest.raises(MissingInputError, match=r"donor 4 \(.*gone.h5ad\): no such file"):
        create_anndata_collection({"donor 4": tmp_path / "gone.h5ad"}, tmp_path / "other", **CUT)
    with pytest.raises(InputError, match="adata_paths must have names that are strings and not empty, got ''"):
        create_anndata_collection({"": tmp_path / "a.h5ad"}, tmp_path / "other", **CUT)
