"""Do objects say in a line what they hold, and do they read nothing for it?"""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from annbatch import Collection, Loader, create_anndata_collection
from annbatch.samplers import ClassBalanced

N = 10


@pytest.fixture
def cells() -> ad.AnnData:
    obs = pd.DataFrame({"donor": pd.Categorical(["<a>", "b"] * (N // 2)), "n": np.arange(N)}, index=list("abcdefghij"))
    cells = ad.AnnData(X=sp.csr_matrix(np.eye(N, dtype=np.float32)), obs=obs)
    cells.layers["counts"] = cells.X.copy()
    cells.obsm["pca"] = np.zeros((N, 3), np.float32)
    return cells


def test_a_loader(cells):
    ds = Loader(batch_size=4, layers=["counts"], obsm=["pca"])
    assert repr(ds) == "Loader(batch_size=4, sampler=Shuffled, stores=none yet)"
    ds.add_anndatas([cells])
    assert repr(ds) == (
        "Loader(batch_size=4, sampler=Shuffled, n_obs=10, n_batches=3, n_vars=10, stores=1, "
        "labels=[donor (2 categories), n], layers=[counts], obsm=[pca])"
    )
    # Rows that break a rule are an error when they are used, not when the loader is shown.
    assert "n_batches" not in repr(Loader(batch_size=4, rows=[N]).add_anndatas([cells]))


def test_a_sampler_that_has_to_read_is_not_asked(cells):
    ds = Loader(batch_size=4, sampler=ClassBalanced("donor")).add_anndatas([cells])
    assert "n_batches" not in repr(ds)
    assert len(ds) == 3
    assert "n_batches=3" in repr(ds)


def test_a_batch_and_its_parts(cells):
    ds = Loader(batch_size=4, layers=["counts"], obsm=["pca"]).add_anndatas([cells])
    batch = next(iter(ds))
    csr = "CSR(data=float32 (4,), indices=int32 (4,), indptr=int32 (5,), shape=(4, 10))"
    assert repr(batch.data) == csr
    carried = f"layers={{counts: {csr}}}, obsm={{pca: float32 (4, 3)}}"
    assert repr(batch) == f"Batch(data={csr}, labels=[donor, n], index=int64 (4,), {carried})"
    assert repr(batch.codes) == "Codes(donor=int32 (4,) into 2 categories, n=int64 (4,))"
    assert "labels" not in vars(batch)


def test_many_names_are_cut_short(cells):
    cells.obs = cells.obs.assign(**{f"c{i}": 0 for i in range(20)})
    shown = repr(Loader(batch_size=4).add_anndatas([cells]))
    assert "c5, … 14 more]" in shown


def test_a_collection(cells, tmp_path):
    collection = create_anndata_collection(cells, tmp_path / "c", progress=False)
    assert repr(collection) == (
        f"Collection(path={tmp_path}/c, n_obs=10, n_vars=10, stores=1, elements=[X, layers/counts], "
        f"obs_columns=[donor, n, src_path], shuffled=True, grouped_by=None)"
    )


def test_notebooks_get_a_table(cells):
    ds = Loader(batch_size=4).add_anndatas([cells])
    for shown in (ds, next(iter(ds)), next(iter(ds)).codes):
        table = shown._repr_html_()
        assert table.startswith(f"<table><caption>{type(shown).__name__}</caption><tr>")
        assert table.count("<tr>") == table.count("</tr>") == len(shown._facts())
    cells.obs["<b>"] = 1
    assert "&lt;b&gt;" in Loader(batch_size=4).add_anndatas([cells])._repr_html_()


def test_a_collection_that_is_open_is_taken_as_it_is(cells, tmp_path):
    collection = create_anndata_collection(cells, tmp_path / "c", progress=False)
    assert Collection.open(collection) is collection
    found = [Loader(batch_size=4).use_collection(given) for given in (collection, tmp_path / "c")]
    assert found[0].state_dict() == found[1].state_dict()
    assert [b.index.tolist() for b in found[0]] == [b.index.tolist() for b in found[1]]


def test_the_home_directory_may_be_written_as_a_tilde(cells, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    cells.write_h5ad(tmp_path / "cells.h5ad")
    # A sign that is a part of a name, and names no user, stays.
    cells.write_h5ad(tmp_path / "~copy.h5ad")
    collection = create_anndata_collection(["~/cells.h5ad", "~copy.h5ad"], "~/c", progress=False)
    assert (collection.path, collection.n_obs) == (tmp_path / "c", 2 * N)
    ds = Loader(batch_size=4, cache_dir="~/cache").use_collection("~/c")
    assert sorted(next(iter(ds)).labels["src_path"].cat.categories) == ["~/cells.h5ad", "~copy.h5ad"]
    assert ds.cache_dir == tmp_path / "cache"


def test_messages_name_the_remedy(cells, tmp_path):
    repeated = cells.copy()
    repeated.var_names = ["a"] * N
    for refused in (
        lambda: Loader(batch_size=4, var_names=["a"]).add_anndatas([repeated]),
        lambda: create_anndata_collection(repeated, tmp_path / "c", progress=False),
    ):
        with pytest.raises(ValueError, match=r"var names must be unique.*'a'.*var_names_make_unique\(\)"):
            refused()
    cells.write_h5ad(tmp_path / "cells.h5ad")
    backed = ad.read_h5ad(tmp_path / "cells.h5ad", backed="r+")
    with pytest.raises(ValueError, match="must be on disk and open for reading only.*backed='r'"):
        Loader(batch_size=4).add_anndatas([backed])
    backed.file.close()
    cells.obsm["images"] = np.zeros((N, 2, 3, 4), np.float32)
    with pytest.raises(ValueError, match=r"two dimensions, got 4: its shape is \(10, 2, 3, 4\)"):
        Loader(batch_size=4, obsm=["images"]).add_anndatas([cells])


def test_a_loader_has_no_rows_to_ask_for_by_number(cells):
    ds = Loader(batch_size=4).add_anndatas([cells])
    with pytest.raises(TypeError, match=r"DataLoader\(annbatch_torch.TorchLoader\(ds\), batch_size=None\)"):
        ds[0]
    with pytest.raises(TypeError, match="Batch holds no torch tensors; give the trainer annbatch_torch.TorchLoader"):
        next(iter(ds)).to("cpu")


def test_codes_are_shown_where_a_value_is_refused():
    obs = pd.DataFrame({"id": pd.array([2**53 + 1, None], "Int64")}, index=["a", "b"])
    adata = ad.AnnData(sp.csr_matrix(np.eye(2, dtype=np.float32)), obs=obs)
    codes = next(iter(Loader(batch_size=2).add_anndatas([adata]))).codes
    assert repr(codes) == "Codes(id=float64 (2,))"
    with pytest.raises(ValueError, match="must hold numbers that fit float64"):
        codes["id"]
