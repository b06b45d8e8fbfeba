"""Do inputs of other formats than AnnData's come out as the libraries that know these formats read them?

The truth is what scanpy, mudata, anndata and loompy read from the same file.
"""

from __future__ import annotations

import gzip
import warnings
import zipfile
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
from annbatch.testing.cells import value
from annbatch.write.inputs.local_copy import local_copy
from datagen import named_adata, write_adata
from small_budget import small_budget

# anndata warns of symbols that occur twice, as they are to.
pytestmark = pytest.mark.filterwarnings("ignore:Variable names are not unique:UserWarning")

CUT: dict[str, Any] = {"rows_per_store": 256, "chunk_elements": 512, "shard_elements": 4096, "progress": False}


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
    pd.testing.assert_frame_equal(obs, expected.obs.astype(object), check_index_type=False, check_column_type=False)
    # A collection's genes are those of many inputs: var's index has no name.
    var = expected.var.rename_axis(index=None).astype(object)
    pd.testing.assert_frame_equal(cells.var.astype(object), var, check_like=True, check_index_type=False)
    elements = {"X": (cells.X, expected.X)}
    # anndata 0.13 lists X among the layers, under None.
    layers = {name: matrix for name, matrix in expected.layers.items() if name is not None}
    assert {name for name in cells.layers if name is not None} == set(layers)
    elements |= {f"layers/{name}": (cells.layers[name], matrix) for name, matrix in layers.items()}
    for key, (ours, theirs) in elements.items():
        np.testing.assert_array_equal(ours.toarray(), theirs.toarray() if sp.issparse(theirs) else theirs)
        assert collection.types[key].original == theirs.dtype
    assert set(cells.obsm) == set(expected.obsm)
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
        "/two.h5: must be one genome, got a file with ['hg19', 'mm10']; add one to the path: …/hg19",
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
    with pytest.raises(InputError, match=r"a.h5/hg19: .* must not continue with 'hg19': .*; var_names= selects genes"):
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
    one, _ = built([tmp_path / "one.h5mu", tmp_path / "both.zarr/mod/atac"], tmp_path / "c")
    assert [(entry.n_obs, entry.n_vars, entry.left_out) for entry in one.inputs] == [(7, 8, ())] * 2
    with pytest.raises(InputErrors) as refused:
        create_anndata_collection([path, f"{path}/protein", tmp_path / "both.zarr"], tmp_path / "e", **CUT)
    assert [str(fault).removeprefix(str(tmp_path)) for fault in refused.value.errors] == [
        "/both.h5mu: must be one modality, got MuData with ['rna', 'atac']; add one to the path: …/mod/rna",
        "/both.h5mu/protein: must name a modality of the file, got 'protein'; it has ['rna', 'atac']",
        "/both.zarr: must be one modality, got MuData with ['rna', 'atac']; add one to the path: …/mod/rna",
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
    with pytest.raises(InputError, match="adata_paths must have non-empty strings as names, got ''"):
        create_anndata_collection({"": tmp_path / "a.h5ad"}, tmp_path / "other", **CUT)


def tenx_mtx(
    folder: Path, prefix: str = "", *, version: int = 3, field: str = "integer", end: str | None = None
) -> Path:
    """The three files of a matrix, in no order of cells; ``end`` is that of their names if it is not the version's."""
    x = counts(6, 5).tocoo()
    order = np.random.default_rng(0).permutation(x.nnz)
    scale = 1 if field == "integer" else 0.1
    lines = [
        f"{c + 1} {r + 1} {v * scale:g}" for r, c, v in zip(x.row[order], x.col[order], x.data[order], strict=True)
    ]
    head = [
        f"%%MatrixMarket matrix coordinate {field} general",
        '%metadata_json: {"format_version": 2}',
        f"5 6 {x.nnz}",
    ]
    kinds = [f"\t{kind}" for kind in ["Gene Expression"] * 4 + ["Antibody Capture"]] if version == 3 else [""] * 5
    files = {
        "matrix.mtx": [*head, *lines],
        "features.tsv" if version == 3 else "genes.tsv": [f"ENSG{c}\t{SYMBOLS[c]}{kinds[c]}" for c in range(5)],
        "barcodes.tsv": [f"CELL{r}-1" for r in range(6)],
    }
    folder.mkdir(exist_ok=True)
    end = (".gz" if version == 3 else "") if end is None else end
    for name, text in files.items():
        path = folder / f"{prefix}{name}{end}"
        data = "".join(f"{line}\n" for line in text).encode()
        path.write_bytes(gzip.compress(data) if end else data)
    return folder


def test_mtx_folders(tmp_path: Path, sc: Any) -> None:
    for name, version, field in (("v3", 3, "integer"), ("v2", 2, "real")):
        folder = tenx_mtx(tmp_path / name, version=version, field=field)
        expected = sc.read_10x_mtx(folder, var_names="gene_ids", gex_only=False)
        expected.var.index.name = "gene_ids"
        assert_same(built(folder, tmp_path / f"of {name}"), expected, path=str(folder))
    # As GEO and STARsolo have them: compressed where scanpy expects it not to be, and with a prefix.
    others = [tenx_mtx(tmp_path / "2", "GSM1_", version=2, end=".gz"), tenx_mtx(tmp_path / "3", "GSM1_", end="")]
    tenx_mtx(others[1], "GSM2_", end="")
    _, found = built([others[0], others[1] / "GSM1_matrix.mtx"], tmp_path / "others")
    np.testing.assert_array_equal(found.X.toarray(), np.tile(counts(6, 5).toarray(), (2, 1)))
    assert found.obs_names.tolist() == [f"CELL{r}-1" for r in range(6)] + [f"CELL{r}-1-1" for r in range(6)]


def test_bad_mtx_folders(tmp_path: Path) -> None:
    """What the header says is refused with all other faults at once, and so is what the entries say."""
    ours = {"several": "", "no header": "1 1 1", "pattern": "", "no genes": "", "short": "", "far": "", "twice": ""}
    folders = {name: tenx_mtx(tmp_path / name, version=2) for name in ours}
    tenx_mtx(folders["several"], "A_"), tenx_mtx(folders["several"], "B_")
    (folders["several"] / "matrix.mtx").unlink()
    (folders["no genes"] / "genes.tsv").unlink()
    head = "%%MatrixMarket matrix coordinate integer general\n5 6 2\n"
    for name, text in {
        "no header": "1 1 1\n",
        "pattern": "%%MatrixMarket matrix array real general\n5 6\n",
        "short": f"{head}1 1 1\n",
        "far": f"{head}1 1 1\n6 1 1\n",
        "twice": f"{head}1 2 1\n1 2 1\n",
    }.items():
        (folders[name] / "matrix.mtx").write_text(text)
    with pytest.raises(InputErrors) as refused:
        create_anndata_collection(list(folders.values()), tmp_path / "store", **CUT)
    assert [str(fault).removeprefix(f"{tmp_path}/") for fault in refused.value.errors] == [
        f"several: must be one matrix, got a folder of 2; name one, such as {folders['several']}/A_matrix.mtx.gz",
        "no header: matrix.mtx must begin with %%MatrixMarket, got '1 1 1'",
        "pattern: matrix.mtx must be a matrix coordinate integer general or matrix coordinate real general, "
        "got 'matrix array real general'",
        "no genes: must be a 10x Genomics matrix, got matrix.mtx without "
        "genes.tsv or features.tsv.gz or features.tsv or genes.tsv.gz beside it",
    ]
    with pytest.raises(InputErrors) as refused:
        inputs = [folders[name] for name in ("short", "far", "twice")]
        create_anndata_collection(inputs, tmp_path / "store", **CUT)
    assert [str(fault).removeprefix(f"{tmp_path}/") for fault in refused.value.errors] == [
        "short: matrix.mtx: must have the 2 entries that its header gives, got 1",
        "far: matrix.mtx: rows and columns must be in 1 to 5 and 6",
        "twice: X: a cell must have at most one entry for a gene, cell 1 has several for gene 0; "
        "scipy.io.mmread sums them",
    ]
    assert not (tmp_path / "store").exists()


def loom(path: Path, loompy: Any, *, spliced: bool = False, names: bool = True, dtype: Any, chunks: Any = None) -> Path:
    """A file that loompy wrote, except for the ``chunks`` of its main matrix."""
    x = counts(150, 70).T.toarray()
    layers = {"": x.astype(dtype)}
    if spliced:
        layers |= {"spliced": (x // 2).astype(np.uint16), "ambiguous": (x * 0.5).astype(np.float32)}
    columns = {"Clusters": np.arange(150) % 3, "Cell type": np.array(["T &amp; B", "NK"] * 75), "x": np.arange(150.0)}
    columns["scores"] = np.arange(300.0).reshape(150, 2)
    genes = {"Accession": np.array([f"ENSG{c}" for c in range(70)])}
    if names:
        columns["CellID"] = np.array([f"c{r}" for r in range(150)])
        genes["Gene"] = np.array([f"g{c}" for c in range(70)])
    loompy.create(str(path), layers, genes, columns)
    if chunks is not None:
        with h5py.File(path, "r+") as file:
            del file["matrix"]
            file.create_dataset("matrix", data=layers[""], chunks=chunks or None)
    return path


@pytest.mark.parametrize("chunks", [(1, 150), pytest.param((), marks=pytest.mark.slow)])
@pytest.mark.filterwarnings(
    "ignore:Transforming to str index",
    "ignore:datetime.datetime.utcnow:DeprecationWarning",
    "ignore:The function read_loom is deprecated:FutureWarning",
    "ignore:The inplace keyword in DataFrame.set_index:DeprecationWarning",
)
def test_loom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunks: tuple[int, ...]) -> None:
    loompy = pytest.importorskip("loompy", reason="loompy is not installed")
    small_budget(monkeypatch)
    cases: dict[str, dict[str, Any]] = {
        "velocyto": {"spliced": True, "dtype": np.float64},
        "without names": {"names": False, "dtype": np.int16, "chunks": chunks},
    }
    for name, options in cases.items():
        path = loom(tmp_path / f"{name}.loom", loompy, **options)
        assert_same(built(path, tmp_path / name), ad.io.read_loom(path), path=str(path))
    with pytest.raises(InputError, match=r"loom/spliced: .* must not continue with 'spliced'; x='layers/…' takes X"):
        create_anndata_collection(f"{tmp_path}/velocyto.loom/spliced", tmp_path / "store", **CUT)


def zipped(folder: Path, path: Path, *, with_folder: bool) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        for item in sorted(folder.rglob("*")):
            file.write(item, item.relative_to(folder.parent if with_folder else folder))
    return path


def interrupt() -> None:
    raise InterruptedError("stopped")


def test_gzip_and_zip(tmp_path: Path) -> None:
    cells = named_adata(np.random.default_rng(0), range(20), range(8))
    cells.layers["counts"] = cells.X * 2
    plain = write_adata(cells, tmp_path / "a", "h5ad")
    expected = ad.read_h5ad(plain)
    packed = tmp_path / "a.h5ad.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    assert_same(built(packed, tmp_path / "of gzip"), expected, path=str(packed))
    store = write_adata(cells, tmp_path / "a", "zarr3")
    both = [zipped(store, tmp_path / f"{i}.zarr.zip", with_folder=bool(i)) for i in range(2)]
    assert_same(built(both[0], tmp_path / "of zip"), expected, path=str(both[0]))
    again = append_to_collection([both[1], packed], tmp_path / "of gzip", shuffle=False, progress=False)
    added = ad.read_zarr(again.store_paths[1])
    np.testing.assert_array_equal(added.X.toarray(), np.tile(expected.X.toarray(), (2, 1)))
    assert added.obs["src_path"].tolist() == [str(both[1])] * 20 + [str(packed)] * 20
    # No copy is left beside the stores.
    names = sorted(path.name for path in (tmp_path / "of gzip").iterdir())
    assert names == ["chunk_0.zarr", "chunk_1.zarr", "collection.json", "zarr.json"]
    # A build that goes on takes the copy that is there, if it is whole.
    copies = [Path(local_copy(str(packed), "a", tmp_path / "work", lambda: None)) for _ in range(2)]
    assert copies == [tmp_path / "work/a.h5ad"] * 2
    copies[0].write_bytes(b"as it was")
    assert local_copy(str(packed), "a", tmp_path / "work", lambda: None) == str(copies[0])
    assert copies[0].read_bytes() == b"as it was"
    with pytest.raises(InterruptedError):
        local_copy(str(packed), "a", tmp_path / "stopped", interrupt)
    assert not (tmp_path / "stopped/a.h5ad").exists()
    # What is no such file, or not whole, is refused, and nothing is left of it.
    other, half, text = (tmp_path / name for name in ("other.zip", "half.h5ad.gz", "text.gz"))
    (tmp_path / "of gzip" / "zarr.json").unlink()
    zipped(tmp_path / "of gzip", other, with_folder=False)
    half.write_bytes(packed.read_bytes()[:-2000])
    text.write_bytes(gzip.compress(b"a,b,c"))
    with pytest.raises(InputErrors) as refused:
        create_anndata_collection([other, half, text], tmp_path / "store", **CUT)
    assert [str(fault).removeprefix(f"{tmp_path}/") for fault in refused.value.errors] == [
        "other.zip: must hold a zarr store, got a zip file with ['chunk_0.zarr', 'chunk_1.zarr', 'collection.json']",
        "half.h5ad.gz: is damaged or incomplete: Compressed file ended before the end-of-stream marker was reached",
        "text.gz: must hold an HDF5 file, got a gzip file that begins with b'a,b,c'",
    ]
    assert not (tmp_path / "store").exists()
    assert not (tmp_path / ".store.building").exists()
