"""Is a user told that stores which lie as they were written mix poorly, and is a shuffled collection one call away?"""

from __future__ import annotations

import warnings
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import zarr

from annbatch import InputError, Loader, create_anndata_collection
from annbatch.order.mixing import measure
from epochs import each_batch

N_STORES, N_OBS = 5, 2_400


def store(number: int) -> ad.AnnData:
    """A file of one cell type; each value says which row of all it is of."""
    rows = np.arange(N_OBS * number, N_OBS * (number + 1))
    x = sp.csr_matrix(np.stack([rows % 7, rows % 3, rows + 1], axis=1).astype(np.float32))
    obs = pd.DataFrame({"n": rows, "kind": pd.Categorical([f"kind{number}"] * N_OBS)}, index=rows.astype(str))
    genes = [f"g{number % 2}", "g2", "all"]
    return ad.AnnData(x, obs, pd.DataFrame(index=genes), layers={"dense": x.toarray() * 2})


@pytest.fixture(scope="module")
def adatas(tmp_path_factory: pytest.TempPathFactory) -> list[ad.AnnData]:
    """In memory, but for one."""
    found = [store(number) for number in range(N_STORES)]
    path = tmp_path_factory.mktemp("stores") / "0"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found[0].write_zarr(path)
    group = zarr.open_group(path, mode="r")
    x, dense = ad.io.sparse_dataset(group["X"]), group["layers/dense"]
    return [ad.AnnData(x, found[0].obs, found[0].var, layers={"dense": dense}), *found[1:]]


def loader(adatas: list[ad.AnnData], **options) -> Loader:
    blocks = {"batch_size": 64, "chunk_size": 256, "preload_nchunks": 2}
    return Loader(**(blocks | {"join": "outer"} | options)).add_anndatas(adatas)


def test_poor_mixing_is_said_once_with_its_entropy(adatas: list[ad.AnnData]):
    ds = loader(adatas)
    with pytest.warns(UserWarning, match="mixes them poorly") as warned:
        iter(ds)
    assert warned[0].filename == __file__
    said = str(warned[0].message)
    # Two blocks of as many files at most.
    (by_file, by_kind) = (one.of_windows for one in ds._mixing())
    assert by_file == by_kind <= 1
    assert f"512 rows mixes them poorly: it has {by_file:.1f} bits by source file, where random rows have 2.3" in said
    assert f"{by_kind:.1f} bits by obs['kind']" in said
    assert "chunk_size=16 and preload_nchunks=32" in said
    iter(ds)


@pytest.mark.parametrize(
    "options", [{"chunk_size": 8, "preload_nchunks": 64}, {"shuffle": False}, {"rows": np.arange(9_000)}], ids=str
)
def test_what_mixes_well_or_is_small_or_in_order_is_not_warned_of(adatas: list[ad.AnnData], options: dict):
    iter(loader(adatas, **options))


def test_stores_of_a_shuffled_collection_are_none(adatas: list[ad.AnnData], tmp_path: Path):
    """Their rows come from all files, which ``src_path`` says."""
    create_anndata_collection(adatas[1:], tmp_path / "c", rows_per_store=1000, progress=False, layers=[])
    groups = [zarr.open_group(path, mode="r") for path in (tmp_path / "c").glob("*.zarr")]
    parts = [ad.AnnData(ad.io.sparse_dataset(one["X"]), obs=ad.io.read_elem(one["obs"])) for one in groups]
    assert sum(part.n_obs for part in parts) < 10_000
    ds = Loader(batch_size=64, chunk_size=256, preload_nchunks=2).add_anndatas([*parts, parts[0]])
    assert ds.n_obs >= 10_000
    iter(ds)
    # A collection knows it without a look.
    iter(Loader(batch_size=64, chunk_size=256, preload_nchunks=2).use_collection(tmp_path / "c"))


def test_the_entropy_is_that_of_counts():
    codes = np.repeat(np.arange(4), 1000)
    windows = [np.arange(1000), np.arange(500, 1500)]
    found = measure("x", codes.__getitem__, windows, range(4000))
    assert found.of_windows == pytest.approx(np.mean([0, 1]))
    assert found.of_random_rows == pytest.approx(2, abs=0.01)
    assert measure("x", codes.__getitem__, windows, np.arange(1000, 2000)).of_random_rows == 0


def test_a_collection_of_the_same_rows_is_one_call_away(adatas: list[ad.AnnData], tmp_path: Path):
    whole = ad.concat([one.to_memory() for one in adatas], join="outer", fill_value=0)
    ds = loader(adatas, layers=["dense"])
    mixed = ds.write_collection(tmp_path / "mixed", progress=False)
    assert mixed.shuffled
    panel = Loader(batch_size=500, join="outer", var_names=["all", "g1"], absent="zero")
    with pytest.warns(UserWarning, match="'g1' is not in"):
        panel.use_collection(mixed.path, labels=["n"]).add_anndatas(adatas[:1], labels=["n"])
    other = panel.write_collection(tmp_path / "panel", progress=False, shuffle=False)
    for path, n_obs, genes in ((mixed.path, N_STORES * N_OBS, list(ds.var.index)), (other.path, 14_400, ["all", "g1"])):
        read = Loader(batch_size=500, layers=["dense"] if path == mixed.path else []).use_collection(path, labels=["n"])
        assert read.n_obs == n_obs
        assert list(read.var.index) == genes
        for batch in each_batch(read):
            wanted = whole[batch.labels["n"].to_numpy()][:, genes]
            np.testing.assert_array_equal(batch.data.to_scipy().toarray(), wanted.X.toarray())
            if batch.layers:
                np.testing.assert_array_equal(batch.layers["dense"], wanted.layers["dense"])
    with pytest.raises(InputError, match="write_collection writes all rows"):
        ds.split({"a": 0.5, "b": None})["a"].write_collection(tmp_path / "part")
