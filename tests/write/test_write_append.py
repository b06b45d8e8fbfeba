"""Does a collection grow without disturbing who reads it, and can it be mixed anew?"""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import numpy as np
import pytest

from annbatch import Loader, append_to_collection, create_anndata_collection, reshuffle_collection
from annbatch.errors import InputError
from annbatch.stores.collection import Collection
from datagen import awkward_obs, named_adata, write_adata, write_inputs
from small_budget import small_budget

CUT = {"rows_per_store": 8, "chunk_elements": 8, "shard_elements": 64, "progress": False}
OBS = ["cell_type", "age"]


def cells(collection: Collection) -> ad.AnnData:
    found = ad.concat([ad.read_zarr(path) for path in collection.store_paths], join="outer", merge="same")
    return found


def more(folder: Path, rows: range, columns: range = range(12), categories: tuple[str, ...] = ("B", "T", "NK")) -> Path:
    obs = awkward_obs(rows, categories)[OBS]
    adata = named_adata(np.random.default_rng(rows.start), rows, columns, obs=obs)
    return write_adata(adata, folder / f"more{rows.start}", "h5ad")


def test_appending_many_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    small_budget(monkeypatch)
    paths = write_inputs(tmp_path, obs_columns=OBS)
    create_anndata_collection(paths, tmp_path / "store", **CUT)
    for start in (12, 24, 36):
        paths.append(more(tmp_path, range(start, start + 12)))
        collection = append_to_collection([paths[-1]], tmp_path / "store", seed=start, **CUT)
    collection.verify()
    assert [store.name for store in collection.stores] == [f"chunk_{i}.zarr" for i in range(8)]
    assert [entry.n_obs for entry in collection.inputs] == [7, 5, 12, 12, 12]
    expected = ad.concat([ad.read_h5ad(path) for path in paths], join="outer", fill_value=0)
    found = cells(collection)
    assert sorted(found.obs_names) == sorted(expected.obs_names)
    wanted = expected[found.obs_names, found.var_names].X.toarray()
    np.testing.assert_array_equal(found.X.toarray(), wanted)
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith(".")) == []


def test_readers_keep_what_they_opened(tmp_path: Path):
    create_anndata_collection(write_inputs(tmp_path, obs_columns=OBS), tmp_path / "store", **CUT)
    with Loader(batch_size=4, chunk_size=2, preload_nchunks=2).use_collection(tmp_path / "store") as ds:
        batches = iter(ds)
        seen = [next(batches).index.tolist()]
        append_to_collection([more(tmp_path, range(12, 24))], tmp_path / "store", **CUT)
        seen += [batch.index.tolist() for batch in batches]
        again = [batch.index.tolist() for batch in ds]
    assert sorted(i for batch in seen for i in batch) == list(range(12))
    assert sorted(i for batch in again for i in batch) == list(range(12))
    with Loader(batch_size=4).use_collection(tmp_path / "store", labels=["cell_type"]) as ds:
        assert ds.n_obs == 24


def test_new_categories_come_behind_the_known_ones(tmp_path: Path):
    create_anndata_collection(write_inputs(tmp_path, obs_columns=OBS), tmp_path / "store", **CUT)
    collection = append_to_collection(
        [more(tmp_path, range(12, 20), categories=("Mono", "T"))], tmp_path / "store", **CUT
    )
    last = ad.read_zarr(collection.store_paths[-1])
    assert last.obs["cell_type"].cat.categories.tolist() == ["B", "T", "NK", "Mono"]
    collection = append_to_collection([more(tmp_path, range(20, 24), categories=("pDC",))], tmp_path / "store", **CUT)
    last = ad.read_zarr(collection.store_paths[-1])
    assert last.obs["cell_type"].cat.categories.tolist() == ["B", "T", "NK", "Mono", "pDC"]
    with Loader(batch_size=64).use_collection(tmp_path / "store", labels=["cell_type"]) as ds:
        (batch,) = list(ds)
        assert list(ds.categories["cell_type"]) == ["B", "T", "NK", "Mono", "pDC"]
        truth = cells(collection).obs["cell_type"].astype(object)
        assert [v if isinstance(v, str) else None for v in batch.labels["cell_type"]] == [
            v if isinstance(v, str) else None for v in truth.iloc[batch.index]
        ]


def test_unknown_genes_are_counted_and_names_stay_unique(tmp_path: Path):
    create_anndata_collection(write_inputs(tmp_path, obs_columns=OBS), tmp_path / "store", **CUT)
    path = more(tmp_path, range(4, 12), range(10, 20))
    with pytest.warns(UserWarning, match="5 of the 10 genes of .*more4.h5ad are not in the collection"):
        collection = append_to_collection([path], tmp_path / "store", **CUT)
    adata = ad.read_h5ad(path)
    lost = adata[:, [f"g{c}" for c in range(15, 20)]].X
    entry = collection.inputs[-1]
    assert (entry.n_vars, entry.genes_lost, entry.elements_lost, entry.counts_lost) == (10, 5, lost.nnz, lost.sum())
    names = cells(collection).obs_names
    assert names.is_unique
    assert {f"cell{r}-1" for r in range(4, 12)} <= set(names)


def test_wider_values_and_other_types(tmp_path: Path):
    create_anndata_collection(write_inputs(tmp_path), tmp_path / "store", **CUT)
    adata = named_adata(np.random.default_rng(0), range(12, 20), range(12), density=1.0)
    adata.X.data += 0.25
    collection = append_to_collection(adata, tmp_path / "store", **CUT)
    assert collection.types["X"].stored == np.float32
    found = ad.read_zarr(collection.store_paths[-1])
    np.testing.assert_array_equal(found.X.toarray()[:, :12], adata[found.obs_names].X.toarray())
    Collection.open(collection.path).verify()


def test_only_collections_grow(tmp_path: Path):
    (path,) = write_inputs(tmp_path, sizes=(4,), obs_columns=OBS)
    with pytest.raises(InputError, match="only a complete collection can be appended to"):
        append_to_collection(path, tmp_path / "nothing", **CUT)
    create_anndata_collection(path, tmp_path / "store", **CUT)
    (tmp_path / "store" / "chunk_1.zarr").mkdir()
    with pytest.raises(InputError, match="chunk_1.zarr: is in the way"):
        append_to_collection(path, tmp_path / "store", **CUT)
    Collection.open(tmp_path / "store").verify()


def test_reshuffling_mixes_all_and_keeps_types(tmp_path: Path):
    create_anndata_collection(write_inputs(tmp_path, obs_columns=OBS), tmp_path / "store", **CUT)
    old = append_to_collection([more(tmp_path, range(12, 24))], tmp_path / "store", **CUT)
    new = reshuffle_collection(old.path, tmp_path / "mixed", seed=3, **CUT)
    assert new.types == old.types
    found, wanted = cells(new), cells(old)
    np.testing.assert_array_equal(found.X.toarray(), wanted[found.obs_names, found.var_names].X.toarray())
    assert found.obs["src_path"].tolist() == wanted.obs["src_path"][found.obs_names].tolist()
    first = set(ad.read_zarr(new.store_paths[0]).obs_names)
    assert first & {f"cell{r}" for r in range(12)}
    assert first & {f"cell{r}" for r in range(12, 24)}
    again = reshuffle_collection(new.path, new.path, seed=4, groupby="cell_type", overwrite=True, **CUT)
    assert again.grouped_by == "cell_type"
    np.testing.assert_array_equal(cells(again)[found.obs_names].X.toarray(), found.X.toarray())
