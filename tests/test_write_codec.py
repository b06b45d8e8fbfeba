"""Is a collection whose chunks are zstd behind a shuffle like any other one?"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pytest
import zarr
from click.testing import CliRunner

from annbatch import (
    Collection,
    InputError,
    Loader,
    append_to_collection,
    create_anndata_collection,
    reshuffle_collection,
)
from annbatch.cli import main
from datagen import write_inputs

SMALL: dict[str, Any] = {"rows_per_store": 40, "chunk_elements": 64, "shard_elements": 256, "progress": False}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("inputs")
    return write_inputs(folder, sizes=(50, 30), columns=[range(30)] * 2, obs_columns=["stage"])


@pytest.fixture(scope="module")
def zstd(inputs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Collection:
    return create_anndata_collection(inputs, tmp_path_factory.mktemp("zstd") / "out", codec="zstd", **SMALL)


def batches(collection: Collection) -> list[bytes]:
    with Loader(batch_size=16, chunk_size=4, preload_nchunks=4).use_collection(collection.path) as ds:
        return [part.tobytes() for b in ds for part in (b.data.data, b.data.indices, b.data.indptr, b.index)]


def test_it_holds_the_same_and_says_how(inputs: list[Path], zstd: Collection, tmp_path: Path) -> None:
    blosc = create_anndata_collection(inputs, tmp_path / "blosc", **SMALL)
    assert batches(zstd) == batches(blosc)
    for one, other in zip(zstd.store_paths, blosc.store_paths, strict=True):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found, expected = ad.read_zarr(one), ad.read_zarr(other)
            codecs = zarr.open_group(one, mode="r")["X/data"].metadata.to_dict()["codecs"]
        for name in ("data", "indices", "indptr"):
            np.testing.assert_array_equal(getattr(found.X, name), getattr(expected.X, name))
        assert found.obs.equals(expected.obs)
        inner = codecs[0]["configuration"]["codecs"]  # type: ignore[index, call-overload]
        assert [codec["name"] for codec in inner] == ["bytes", "numcodecs.shuffle", "zstd", "crc32c"]
        assert inner[1]["configuration"]["elementsize"] == 2


def test_it_can_be_appended_to_and_reshuffled_and_looked_at(
    inputs: list[Path], zstd: Collection, tmp_path: Path
) -> None:
    more = create_anndata_collection(inputs, tmp_path / "more", codec="zstd", **SMALL)
    more = append_to_collection(inputs, more.path, codec="zstd", **SMALL)
    anew = reshuffle_collection(more.path, tmp_path / "anew", codec="zstd", **SMALL)
    assert anew.n_obs == 2 * zstd.n_obs
    for command in (["verify", str(anew.path), "--no-progress"], ["head", str(anew.path)]):
        done = CliRunner().invoke(main, command)
        assert done.exit_code == 0, done.output


def test_a_flipped_bit_is_found(inputs: list[Path], tmp_path: Path) -> None:
    collection = create_anndata_collection(inputs, tmp_path / "out", codec="zstd", **SMALL)
    shard = collection.store_paths[0] / "X" / "data" / "c" / "0"
    stored = np.fromfile(shard, np.uint8)
    stored[30] ^= 4
    stored.tofile(shard)
    with pytest.raises(ValueError, match="do not match their crc32c checksum"):
        batches(collection)


def test_other_codecs_are_refused(inputs: list[Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="codec must be one of 'blosc', 'zstd', got 'lz4'"):
        create_anndata_collection(inputs, tmp_path / "out", codec="lz4", **SMALL)  # type: ignore[arg-type]
