"""Does a damaged collection give an error that names file and chunk, never a wrong batch?"""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import zarr

from annbatch import CorruptStoreError, Loader, create_anndata_collection
from annbatch.stores import array_opening as opening_module
from datagen import named_matrix

N_OBS, N_VARS = 200, 30


@pytest.fixture(scope="module")
def intact(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("faults")
    x = named_matrix(np.random.default_rng(0), range(N_OBS), range(N_VARS))
    obs = pd.DataFrame({"kind": pd.Categorical(["a", "b"] * (N_OBS // 2))}, index=[f"cell{i}" for i in range(N_OBS)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ad.AnnData(X=x, obs=obs).write_h5ad(folder / "a.h5ad")
    create_anndata_collection(
        folder / "a.h5ad", folder / "store", rows_per_store=150, chunk_elements=64, shard_elements=256, progress=False
    )
    return folder / "store"


@pytest.fixture
def store(intact, tmp_path) -> Path:
    return Path(shutil.copytree(intact, tmp_path / "store"))


def epoch(path: Path) -> list[bytes]:
    ds = Loader(batch_size=16, chunk_size=8, preload_nchunks=4).use_collection(path)
    return [batch.data.data.tobytes() + batch.data.indices.tobytes() for batch in ds]


@pytest.fixture(params=["direct", "zarr"])
def path_taken(request, monkeypatch) -> str:
    monkeypatch.setattr(opening_module, "DIRECT", request.param == "direct")
    return request.param


def test_checksums_are_checked_whatever_codecs_the_user_set(store, monkeypatch):
    """zarrs would check none of a shard that is read in part."""
    monkeypatch.setattr(opening_module, "DIRECT", False)
    shard = store / "chunk_0.zarr/X/data/c/1"
    good = shard.read_bytes()
    with zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}):
        assert epoch(store)
        for at in range(0, len(good), 61):
            shard.write_bytes(good[:at] + bytes([good[at] ^ 0x10]) + good[at + 1 :])
            with pytest.raises(ValueError, match=r"chunk_0.zarr.*X/data"):
                epoch(store)


@pytest.mark.parametrize("array", ["data", "indices"])
def test_every_flipped_byte_is_noticed(store, path_taken, array):
    """One byte at a time, all over a shard: in its chunks and in its index."""
    shard = store / "chunk_0.zarr/X" / array / "c/1"
    good = shard.read_bytes()
    for at in range(0, len(good), 11 if path_taken == "direct" else 61):
        shard.write_bytes(good[:at] + bytes([good[at] ^ 0x10]) + good[at + 1 :])
        with pytest.raises(ValueError, match=rf"chunk_0.zarr.*X/{array}"):
            epoch(store)
    shard.write_bytes(good)
    assert epoch(store)


def test_the_chunk_is_named(store):
    shard = store / "chunk_0.zarr/X/data/c/1"
    damaged = bytearray(shard.read_bytes())
    damaged[40] ^= 1
    shard.write_bytes(damaged)
    with pytest.raises(CorruptStoreError, match=r"chunk_0.zarr/X/data/c/1: inner chunk 0: .*crc32c"):
        epoch(store)


@pytest.mark.parametrize("name", ["X/data/c/1", "X/indices/c/0", "X/indptr/c/0", "obs/kind/codes/c/0"])
def test_a_file_that_is_short_or_missing_is_found_when_the_collection_is_opened(store, name):
    file = store / "chunk_1.zarr" / name if (store / "chunk_1.zarr" / name).exists() else store / "chunk_0.zarr" / name
    good = file.read_bytes()
    file.write_bytes(good[:-1])
    with pytest.raises(CorruptStoreError, match=rf"{name}: must have {len(good)} bytes, .*, got {len(good) - 1}"):
        Loader(batch_size=16).use_collection(store)
    file.unlink()
    with pytest.raises(CorruptStoreError, match=f"{name}: cannot be read"):
        Loader(batch_size=16).use_collection(store)


def test_a_shard_that_is_cut_short_while_it_is_read(store):
    ds = Loader(batch_size=16, chunk_size=8, preload_nchunks=4).use_collection(store)
    shard = store / "chunk_0.zarr/X/data/c/2"
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(CorruptStoreError, match="X/data/c/2"):
        list(ds)
