"""Do obs, names and classes come from object stores as from the local directory?"""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from annbatch import Collection, InputError, Loader, create_anndata_collection
from annbatch.samplers import Grouped
from annbatch.stores import cell_names
from annbatch.write.output import store_writer
from datagen import named_adata

obstore = pytest.importorskip("obstore")

N = 90
OPTIONS: dict[str, Any] = {"batch_size": 8, "chunk_size": 3, "preload_nchunks": 5, "threads": 1}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cells") / "c"
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setattr(store_writer, "NAMES_IN_CHUNK", 4)
        adata = named_adata(np.random.default_rng(0), range(N), range(12))
        adata.layers["twice"] = adata.X * 2
        create_anndata_collection([adata], path, rows_per_store=40, progress=False)
    return path


def remote(path: Path) -> Any:
    return obstore.store.LocalStore(str(path))


def test_obs_is_that_of_the_directory(path):
    truth = Collection.open(path).obs()
    assert len(truth) == N
    pd.testing.assert_frame_equal(Collection.open(remote(path)).obs(), truth)
    ds = Loader(**OPTIONS).use_collection(remote(path), labels=[])
    pd.testing.assert_frame_equal(ds.obs(["donor", "age"]), truth[["donor", "age"]])
    with pytest.raises(InputError, match="columns must be obs columns, got 'nope'"):
        ds.obs(["nope"])


@pytest.mark.parametrize("keep", [2, 1 << 16])
def test_batches_are_those_of_the_directory(path, monkeypatch, keep):
    monkeypatch.setattr(cell_names, "KEEP_ROWS", keep)

    def batches(where: Any) -> list[Any]:
        ds = Loader(**OPTIONS, names=True, classes=["n_counts"], sampler=Grouped(["doublet", "donor"]))
        with ds.use_collection(where, labels=["stage"]):
            return [(b["names"].tolist(), b.codes["n_counts"].tolist(), b.labels.index.tolist()) for b in ds]

    assert batches(remote(path)) == batches(path)


def test_a_remote_loader_is_replaced(path, tmp_path):
    ds = Loader(**OPTIONS, names=True).use_collection(remote(path), labels=["stage"])
    names = ds.obs([]).index
    for made in (
        ds.replace(shuffle=False),
        ds.replace(shuffle=False, layers=["twice"]),
        ds.replace(shuffle=False, cache_dir=tmp_path).replace(cache_dir=None),
        pickle.loads(pickle.dumps(ds)).replace(shuffle=False),
    ):
        assert [name for batch in made for name in batch.names] == names.tolist()
    with pytest.raises(InputError, match="can only be replaced in the process that opened the stores"):
        pickle.loads(pickle.dumps(ds)).replace(layers=["twice"])
