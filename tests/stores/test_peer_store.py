"""Do we read what scverse annbatch wrote, and does it read what we write?

1. ``data/peer_collection.zip`` was written by the real package (``data/make_peer_store.py``); every value in it names
   its row and column, every row its number.
2. The other way needs that package, which cannot share an environment with ours: ``ANNBATCH_PEER_PYTHON`` names the
   Python of an environment that has it.
"""

from __future__ import annotations

import os
import runpy
import subprocess
import zipfile
from pathlib import Path
from typing import Any, get_args

import anndata as ad
import numpy as np
import pytest
import zarr

from annbatch import Collection, Loader, create_anndata_collection
from annbatch.write.array_layout import Codec
from object_servers import s3_server

TESTS = Path(__file__).parents[1]
PEER = os.environ.get("ANNBATCH_PEER_PYTHON")
MAKE: dict[str, Any] = runpy.run_path(str(TESTS / "data/make_peer_store.py"))
N_OBS, N_VARS = MAKE["N_OBS"], MAKE["N_VARS"]


@pytest.fixture(scope="module")
def peer_collection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("peer") / "peer_collection.zarr"
    with zipfile.ZipFile(MAKE["ARCHIVE"]) as archive:
        archive.extractall(path)
    return path


def row_numbers(collection: Path) -> np.ndarray:
    """Give each row's number, in the order of the stores, from the cells' names."""
    stores = sorted(collection.glob("dataset_*"), key=lambda store: int(store.name.partition("_")[2]))
    names = [name for store in stores for name in ad.read_zarr(store).obs_names]
    return np.array([int(name.removeprefix("cell_")) for name in names])


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize(
    ("batch_size", "chunk_size", "preload_nchunks"), [(16, 4, 5), (50, 64, 2), (7, 1, 9), (500, 512, 32)]
)
def test_every_row_of_a_peers_collection(
    shuffle: bool, batch_size: int, chunk_size: int, preload_nchunks: int, peer_collection: Path
) -> None:
    numbers = row_numbers(peer_collection)
    columns = [
        int(name.removeprefix("gene_")) for name in Loader(batch_size=1).use_collection(peer_collection).var.index
    ]
    seen = []
    with Loader(
        batch_size=batch_size, chunk_size=chunk_size, preload_nchunks=preload_nchunks, shuffle=shuffle
    ).use_collection(peer_collection, labels=["cell_type", "depth"]) as ds:
        assert (ds.n_obs, ds.n_vars) == (N_OBS, N_VARS)
        for batch in ds:
            rows = numbers[batch.index]
            seen.extend(rows.tolist())
            expected = np.stack([MAKE["expected_row"](row)[columns] for row in rows])
            assert batch.data.data.dtype == np.float32
            np.testing.assert_array_equal(batch.data.to_scipy().toarray(), expected)
            labels = [MAKE["expected_labels"](row) for row in rows]
            names = np.asarray(ds.categories["cell_type"])
            assert names[batch.codes["cell_type"]].tolist() == [name for name, _ in labels]
            assert batch.codes["depth"].tolist() == [depth for _, depth in labels]
            assert list(zip(batch.labels["cell_type"], batch.labels["depth"], strict=True)) == labels
    assert sorted(seen) == list(range(N_OBS))
    assert shuffle or seen == numbers.tolist()


def test_all_labels_of_a_peers_collection(peer_collection: Path) -> None:
    with Loader(batch_size=N_OBS).use_collection(peer_collection) as ds:
        (batch,) = ds
    assert set(batch.codes) == {"cell_type", "depth", "src_path"}
    first = np.asarray(ds.categories["src_path"])[batch.codes["src_path"]] == "first.h5ad"
    np.testing.assert_array_equal(first, row_numbers(peer_collection)[batch.index] < MAKE["FIRST_FILE_ROWS"])


def test_a_peers_collection_describes_itself(peer_collection: Path) -> None:
    collection = Collection.open(peer_collection)
    assert [store.name for store in collection.stores] == ["dataset_0", "dataset_1", "dataset_2"]
    assert (collection.n_obs, collection.n_vars) == (N_OBS, N_VARS)


@pytest.mark.skipif(PEER is None, reason="ANNBATCH_PEER_PYTHON names no Python that has scverse annbatch")
@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("codec", [codec for codec in get_args(Codec) if codec != "packed"])
def test_the_peer_reads_what_we_write(shuffle: bool, codec: Codec, tmp_path: Path) -> None:
    sources = [tmp_path / "first.h5ad", tmp_path / "second.h5ad"]
    MAKE["write_source"](sources[0], range(MAKE["FIRST_FILE_ROWS"]))
    MAKE["write_source"](sources[1], range(MAKE["FIRST_FILE_ROWS"], N_OBS))
    store = tmp_path / "ours"
    create_anndata_collection(
        sources, store, shuffle=shuffle, codec=codec, rows_per_store=50, chunk_elements=64, shard_elements=192,
        progress=False,
    )  # fmt: skip
    assert len(list(store.glob("*.zarr"))) == 3
    # Outside the repository, whose own package would otherwise be imported in the place of the peer's.
    command = [str(PEER), "-I", str(TESTS / "support/peer_reads_ours.py"), str(store)]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.endswith(f"{N_OBS} rows\n")


def contents(place: Any) -> list[tuple[bytes, ...]]:
    ds = Loader(batch_size=16, chunk_size=4, preload_nchunks=5).use_collection(place, labels=["cell_type"])
    arrays = ((b.index, b.data.data, b.data.indices, b.data.indptr, b.codes["cell_type"]) for b in ds)
    return [tuple(array.tobytes() for array in each) for each in arrays]


def test_a_peers_collection_in_a_zip_file(peer_collection: Path) -> None:
    with zarr.storage.ZipStore(MAKE["ARCHIVE"], mode="r") as store:
        assert contents(store) == contents(peer_collection)


def test_a_peers_collection_on_a_web_server(peer_collection: Path) -> None:
    """Which lists nothing, so that its stores have to be looked for."""
    pytest.importorskip("obstore")
    pytest.importorskip("hadro")
    with s3_server(peer_collection.parents[1], keys=False) as port:
        url = f"http://127.0.0.1:{port}/{peer_collection.parent.name}/{peer_collection.name}"
        assert contents(url) == contents(peer_collection)
