"""Is a collection of another codec than the default like any other one?"""

from __future__ import annotations

import importlib.util
import json
import warnings
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pytest
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
from annbatch.stores import array_opening
from datagen import write_inputs
from former_codecs import with_differences

SMALL: dict[str, Any] = {"rows_per_store": 40, "chunk_elements": 64, "shard_elements": 256, "progress": False}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("inputs")
    return write_inputs(folder, sizes=(50, 30), columns=[range(30)] * 2, obs_columns=["stage"])


SHUFFLE = {"name": "numcodecs.shuffle", "configuration": {"elementsize": 2}}
DELTA = {"name": "numcodecs.delta", "configuration": {"dtype": "<u2"}}
PACKED: dict[str, Any] = {"name": "annbatch.packed"}
CODECS: dict[Any, tuple[list[Any], list[Any]]] = {
    "zstd": (["bytes", SHUFFLE, "zstd", "crc32c"], [DELTA, "bytes", SHUFFLE, "zstd", "crc32c"]),
    "packed": ([PACKED | {"configuration": {"delta": False}}], [PACKED | {"configuration": {"delta": True}}]),
}
"""Codec -> those of the inner chunks of X/data and X/indices, by name, or as a whole."""


def batches(place: Any) -> list[bytes]:
    place = place.path if isinstance(place, Collection) else place
    with Loader(batch_size=16, chunk_size=4, preload_nchunks=4).use_collection(place) as ds:
        return [part.tobytes() for b in ds for part in (b.data.data, b.data.indices, b.data.indptr, b.index)]


def codecs_of(store: Path) -> str:
    """What inner chunks of X are: their size and codecs, as text."""
    arrays = [json.loads((store / "X" / name / "zarr.json").read_bytes()) for name in ("data", "indices")]
    inner = [array["codecs"][0]["configuration"] for array in arrays]
    return json.dumps([[one["chunk_shape"], one["codecs"]] for one in inner])


@pytest.mark.parametrize("codec", CODECS)
def test_it_holds_the_same_and_says_how(
    codec: Any, inputs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    collection = create_anndata_collection(inputs, tmp_path / "out", codec=codec, **SMALL)
    blosc = create_anndata_collection(inputs, tmp_path / "blosc", **SMALL)
    expected_batches = batches(blosc)
    assert batches(collection) == expected_batches
    for one, other in zip(collection.store_paths, blosc.store_paths, strict=True):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found, expected = ad.read_zarr(one), ad.read_zarr(other)
        for name in ("data", "indices", "indptr"):
            np.testing.assert_array_equal(getattr(found.X, name), getattr(expected.X, name))
        assert found.obs.equals(expected.obs)
        for name, chain in zip(("data", "indices"), CODECS[codec], strict=True):
            sharding = json.loads((one / "X" / name / "zarr.json").read_bytes())["codecs"][0]["configuration"]
            assert [
                inner if isinstance(stated, dict) else inner["name"]
                for inner, stated in zip(sharding["codecs"], chain, strict=True)
            ] == chain
    monkeypatch.setattr(array_opening, "DIRECT", False)
    assert batches(collection) == expected_batches


@pytest.mark.parametrize("codec", CODECS)
def test_it_can_be_appended_to_and_reshuffled_and_looked_at(codec: Any, inputs: list[Path], tmp_path: Path) -> None:
    collection = create_anndata_collection(inputs, tmp_path / "more", codec=codec, **SMALL)
    rest = {key: value for key, value in SMALL.items() if key != "chunk_elements"}
    more = append_to_collection(inputs, collection.path, **rest)
    anew = reshuffle_collection(more.path, tmp_path / "anew", **rest)
    assert anew.n_obs == 2 * collection.n_obs
    found = {codecs_of(path) for one in (more, anew) for path in one.store_paths}
    assert found == {codecs_of(collection.store_paths[0])}
    other = append_to_collection(inputs, more.path, codec="blosc", chunk_elements=32, **rest)
    assert codecs_of(other.store_paths[-1]) not in found
    for command in (["verify", str(anew.path), "--no-progress"], ["head", str(anew.path)]):
        done = CliRunner().invoke(main, command)
        assert done.exit_code == 0, done.output


@pytest.mark.parametrize(
    ("codec", "name"), [("zstd", "data"), ("blosc", "indices"), ("packed", "indices"), ("packed", "data")]
)
def test_a_flipped_bit_is_found(codec: Any, name: str, inputs: list[Path], tmp_path: Path) -> None:
    collection = create_anndata_collection(inputs, tmp_path / "out", codec=codec, **SMALL)
    shard = collection.store_paths[0] / "X" / name / "c" / "0"
    stored = np.fromfile(shard, np.uint8)
    stored[30] ^= 4
    stored.tofile(shard)
    with pytest.raises(ValueError, match="do not match their crc32c checksum"):
        batches(collection)


def test_packed_chunks_come_from_an_object_store_too(inputs: list[Path], tmp_path: Path) -> None:
    obstore = pytest.importorskip("obstore")
    collection = create_anndata_collection(inputs, tmp_path / "out", codec="packed", **SMALL)
    assert batches(obstore.store.LocalStore(prefix=str(collection.path))) == batches(collection)


def test_other_codecs_are_refused(inputs: list[Path], tmp_path: Path) -> None:
    for codec in ("lz4", "delta"):
        with pytest.raises(InputError, match=f"codec must be one of 'blosc', 'packed', 'zstd', got '{codec}'"):
            create_anndata_collection(inputs, tmp_path / "out", codec=codec, **SMALL)  # type: ignore[arg-type]


def test_what_was_written_as_differences_is_read_and_goes_on_packed(
    inputs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blosc = create_anndata_collection(inputs, tmp_path / "blosc", **SMALL)
    old = with_differences(create_anndata_collection(inputs, tmp_path / "old", **SMALL))
    assert "numcodecs.delta" in codecs_of(old.store_paths[0])
    old.verify()
    expected = batches(blosc)
    assert batches(old) == expected
    if importlib.util.find_spec("obstore"):
        store = importlib.import_module("obstore").store.LocalStore(prefix=str(old.path))
        assert batches(store) == expected
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Numcodecs codecs are not in the Zarr version 3 specification")
        found = ad.read_zarr(old.store_paths[0])
    np.testing.assert_array_equal(found.X.toarray(), ad.read_zarr(blosc.store_paths[0]).X.toarray())
    with monkeypatch.context() as patch:
        patch.setattr(array_opening, "DIRECT", False)
        assert batches(old) == expected

    rest = {key: value for key, value in SMALL.items() if key != "chunk_elements"}
    with pytest.warns(UserWarning, match="numcodecs.delta.*is no longer written. New stores get"):
        anew = reshuffle_collection(old.path, tmp_path / "anew", **rest)
    assert all("annbatch.packed" in codecs_of(path) for path in anew.store_paths)
    chosen = reshuffle_collection(old.path, tmp_path / "chosen", codec="blosc", **SMALL)
    assert batches(chosen) == batches(anew)
    command = ["append", *map(str, inputs), str(old.path), "--no-progress"]
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        done = CliRunner().invoke(main, command)
    assert done.exit_code == 0, done.output
    assert "pass --codec blosc if programs" in done.output
    more = Collection.open(old.path)
    assert "numcodecs.delta" in codecs_of(more.store_paths[0])
    assert "annbatch.packed" in codecs_of(more.store_paths[-1])
    assert len(batches(more)) == 2 * len(expected)
    more.verify()
