"""Are genes that inputs call differently found, and can they be named alike?"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner, Result

from annbatch import append_to_collection, create_anndata_collection
from annbatch.cli import main
from annbatch.errors import InputError, InputErrors
from annbatch.stores.collection import Collection

OPTIONS: dict[str, Any] = {"shuffle": False, "progress": False}
SYMBOLS = ["CD3E", "CD4", "TBCE"]
IDS = ["ENSG00000198851", "ENSG00000010610", "ENSG00000284770"]


def adata(genes: list[str], name: str = "cell", **var: Any) -> ad.AnnData:
    """Gene number i has the value i + 1 in each cell."""
    values = np.tile(np.arange(1, len(genes) + 1, dtype=np.float32), (2, 1))
    obs = pd.DataFrame(index=[f"{name}{row}" for row in range(2)])
    return ad.AnnData(values, obs=obs, var=pd.DataFrame(var, index=pd.Index(genes, dtype=object)))


def backs(collection: Collection) -> ad.AnnData:
    return ad.concat([ad.read_zarr(path) for path in collection.store_paths], join="outer", merge="same")


def test_names_of_two_kinds_are_warned_of(tmp_path: Path):
    inputs = [adata(SYMBOLS), adata(IDS, "x"), adata(SYMBOLS, "y"), adata(IDS, "z")]
    said = (
        f"adata_0 (with genes such as {SYMBOLS}) shares few genes with adata_1 and 1 more inputs (such as {IDS}): "
        f"0 of 3. If these are two kinds of names, such as symbols and Ensembl identifiers, use one kind: var_key="
    )
    with pytest.warns(UserWarning, match=f"^{re.escape(said)}"):
        create_anndata_collection(inputs, tmp_path / "store", **OPTIONS)
    with pytest.raises(InputError, match=f"no genes are left: .*{re.escape(said)}"):
        create_anndata_collection(inputs, tmp_path / "inner", join="inner", **OPTIONS)


@pytest.mark.parametrize(("n_shared", "warned"), [(0, True), (1, True), (2, False), (20, False)])
def test_how_many_genes_in_common_are_few(
    tmp_path: Path, recwarn: pytest.WarningsRecorder, n_shared: int, warned: bool
):
    """Fewer than a tenth of the smaller list: a panel of twenty genes that lie in a transcriptome is fine."""
    first = adata([f"g{i}" for i in range(200)])
    panel = adata([f"g{i}" if i < n_shared else f"h{i}" for i in range(20)], "x")
    create_anndata_collection([first, panel], tmp_path / "store", **OPTIONS)
    said = [str(warning.message) for warning in recwarn if warning.category is UserWarning]
    assert [f"{n_shared} of 20" in message for message in said] == [True] * warned


def test_genes_named_by_a_column(tmp_path: Path):
    """As of two files with symbols, of which one has an order of its own, and one with identifiers."""
    inputs = [
        adata(SYMBOLS, gene_ids=pd.Categorical(IDS)),
        adata(SYMBOLS[::-1], "x", gene_ids=IDS[::-1]),
        adata(IDS, "y", gene_symbols=SYMBOLS),
    ]
    with pytest.warns(UserWarning, match=r"no column 'gene_ids' \(var_key\) in adata_2, where genes keep their names"):
        collection = create_anndata_collection(inputs, tmp_path / "store", var_key="gene_ids", **OPTIONS)
    found = backs(collection)
    assert found.var_names.tolist() == IDS
    assert found.var["var_names"].astype(object).tolist() == SYMBOLS
    np.testing.assert_array_equal(found.X.toarray(), [[1, 2, 3], [1, 2, 3], [3, 2, 1], [3, 2, 1], [1, 2, 3], [1, 2, 3]])
    with pytest.raises(InputError, match="var_key must be a column of var, but 'gene_ids' is missing in adata_2"):
        create_anndata_collection(inputs, tmp_path / "strict", var_key="gene_ids", strict=True, **OPTIONS)
    with pytest.raises(InputError, match="var_key must .*, but 'ids' is missing in adata_0 and 2 more inputs"):
        create_anndata_collection(inputs, tmp_path / "typo", var_key="ids", **OPTIONS)
    with pytest.raises(InputError, match=r"must share a gene with the collection, .*'CD3E'.* has \['ENSG.*var_key="):
        append_to_collection([adata(SYMBOLS, gene_ids=IDS)], collection.path, **OPTIONS)
    more = append_to_collection([adata(SYMBOLS, "z", gene_ids=IDS)], collection.path, var_key="gene_ids", **OPTIONS)
    np.testing.assert_array_equal(backs(more).X.toarray()[-2:], [[1, 2, 3]] * 2)


def test_identifiers_of_10x_files_are_gene_ids(tmp_path: Path):
    with h5py.File(tmp_path / "cells.h5", "w") as file:
        group = file.create_group("matrix")
        group["shape"], group["barcodes"] = [3, 1], np.array([b"AAA"])
        group["data"], group["indices"], group["indptr"] = np.array([7, 9]), np.array([0, 2]), np.array([0, 2])
        features = {"id": IDS, "name": SYMBOLS}
        for name, values in features.items():
            group[f"features/{name}"] = np.array(values, dtype="S")
    inputs = [tmp_path / "cells.h5", adata(SYMBOLS, gene_ids=IDS)]
    found = backs(create_anndata_collection(inputs, tmp_path / "store", var_key="gene_ids", **OPTIONS))
    assert found.var_names.tolist() == IDS
    np.testing.assert_array_equal(found.X.toarray(), [[7, 0, 9], [1, 2, 3], [1, 2, 3]])


@pytest.mark.filterwarnings("ignore:Variable names are not unique")
def test_repeated_genes_are_refused_with_the_ways_out_or_made_unique(tmp_path: Path):
    a = adata(["TBCE", "CD4", "TBCE"], gene_ids=IDS)
    b = adata(["CD4", "TBCE", "TBCE", "TBCE"], "x", gene_ids=["i", "i", None, "j"])
    remedies = r"make .*='unique' or .*var_names_make_unique\(\), or name genes .* var_key=: \['gene_ids'\]"
    with pytest.raises(InputErrors, match=rf"adata_0: var names must be unique, .*\['TBCE'\]; {remedies}[^$]*adata_1"):
        create_anndata_collection([a, b], tmp_path / "store", **OPTIONS)
    with pytest.raises(InputError, match=r"adata_0: var column 'gene_ids' must name each gene .*, got no value for"):
        create_anndata_collection([b], tmp_path / "store", var_key="gene_ids", **OPTIONS)
    with pytest.raises(InputError, match=r"var column 'gene_ids' must be unique, got more than one of \['i'\]"):
        create_anndata_collection([b[:, [0, 1, 3]]], tmp_path / "store", var_key="gene_ids", **OPTIONS)
    with pytest.warns(UserWarning, match="left out: 'var/gene_ids' differs between inputs"):
        collection = create_anndata_collection([a, b], tmp_path / "store", repeated_genes="unique", **OPTIONS)
    found = backs(collection)
    assert found.var_names.tolist() == ["TBCE", "CD4", "TBCE-1", "TBCE-2"]
    np.testing.assert_array_equal(found.X.toarray(), [[1, 2, 3, 0], [1, 2, 3, 0], [2, 1, 3, 4], [2, 1, 3, 4]])


def test_genes_that_a_collection_lacks_are_named(tmp_path: Path):
    collection = create_anndata_collection([adata(SYMBOLS)], tmp_path / "store", **OPTIONS)
    more, same = adata(["CD4", "CD8A", "FOXP3"], "x"), adata(SYMBOLS, "y")
    said = r"2 of the 3 genes of adata_1, and genes of 1 more inputs, are not in the collection: \['CD8A', 'FOXP3'\]$"
    with pytest.raises(InputError, match=rf"no gene may be left out \(strict=True\), but {said}"):
        append_to_collection([same, more, more], collection.path, strict=True, **OPTIONS)
    with pytest.warns(UserWarning, match=f"^genes are left out: {said}"):
        grown = append_to_collection([same, more, more], collection.path, **OPTIONS)
    assert [entry.genes_lost for entry in grown.inputs] == [0, 0, 2, 2]
    append_to_collection([same], collection.path, strict=True, **OPTIONS)


@pytest.mark.filterwarnings("ignore:Variable names are not unique")
def test_ways_out_have_options_of_the_command_line(tmp_path: Path):
    a, b = adata(["TBCE", "TBCE"], gene_ids=IDS[:2]), adata(["TBCE", "TBCE"], "x", gene_ids=IDS[1::-1])
    a.obs["cluster"], b.obs["cluster"] = [1, 2], ["1", "2"]
    a.obs["age"] = b.obs["age"] = 30
    paths = [str(tmp_path / name) for name in ("a.h5ad", "b.h5ad")]
    for found, path in zip((a, b), paths, strict=True):
        found.write_h5ad(path)

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(main, [*arguments, str(tmp_path / "store"), "--no-progress", "--no-shuffle"])

    refused = run("create", *paths)
    assert refused.exit_code == 2
    assert "a.h5ad: var names must be unique" in refused.output
    assert "--repeated-genes unique or adata.var_names_make_unique(), or name genes" in refused.output
    strict = run("create", *paths, "--var-key", "gene_ids", "--strict")
    assert strict.exit_code == 2
    assert "no element may be left out (--strict), but 'obs/cluster'" in strict.output
    done = run("create", *paths, "--var-key", "gene_ids", "--obs-as-strings", "cluster")
    assert done.exit_code == 0
    assert backs(Collection.open(tmp_path / "store")).obs["cluster"].tolist() == ["1", "2", "1", "2"]
    assert run("append", paths[0], "--var-key", "gene_ids").exit_code == 2
    assert run("append", paths[0], "--var-key", "gene_ids", "--obs-column", "age").exit_code == 0
    assert run("append", paths[0], "--var-key", "gene_ids", "--obs-as-strings", "cluster").exit_code == 0
    found = backs(Collection.open(tmp_path / "store")).obs
    assert found["cluster"].astype(object).fillna("-").tolist() == ["1", "2", "1", "2", "-", "-", "1", "2"]
    assert found["age"].tolist() == [30] * 8
