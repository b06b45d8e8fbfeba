"""Does a collection of stores that lie behind HTTP hold their cells?

A real server on this machine serves the files; zarr reads them through each of its two libraries for remote stores.
"""

from __future__ import annotations

import asyncio
import gzip
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pytest
import zarr

from annbatch import Loader, create_anndata_collection
from annbatch.errors import InputError, InputErrors, MissingInputError
from datagen import FileKind, write_inputs
from object_servers import s3_environment, s3_server
from stores import opened

web = pytest.importorskip("aiohttp.web", reason="aiohttp is not installed")
obstore = pytest.importorskip("obstore.store", reason="obstore is not installed")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A folder, and the address at which its files are."""
    folder = tmp_path_factory.mktemp("served")
    with socket.create_server(("127.0.0.1", 0)) as listening:
        loop, stop = asyncio.new_event_loop(), asyncio.Event()

        async def serve() -> None:
            application = web.Application()
            application.router.add_static("/", folder)
            runner = web.AppRunner(application)
            await runner.setup()
            await web.SockSite(runner, listening).start()
            await stop.wait()
            await runner.cleanup()

        thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
        thread.start()
        yield folder, f"http://127.0.0.1:{listening.getsockname()[1]}"
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()


def through_obstore(url: str) -> Any:
    options: Any = {"client_options": {"allow_http": True}, "retry_config": {"max_retries": 0}}
    return zarr.storage.ObjectStore(obstore.HTTPStore.from_url(url, **options), read_only=True)


def through_fsspec(url: str) -> Any:
    return zarr.storage.FsspecStore.from_url(url, read_only=True)


@pytest.mark.parametrize(("remote", "kind"), [(through_obstore, "zarr2"), (through_fsspec, "zarr3")])
def test_remote_stores(tmp_path: Path, served: tuple[Path, str], remote: Callable[[str], Any], kind: FileKind) -> None:
    folder, url = served
    (folder / kind).mkdir()
    paths = write_inputs(folder / kind, kind=kind)
    given = [remote(f"{url}/{path.relative_to(folder)}") for path in paths]
    collection = create_anndata_collection(given, tmp_path / "store", rows_per_store=8, progress=False)
    expected = ad.concat([ad.read_zarr(path) for path in paths], join="outer", fill_value=0)
    found = ad.concat([ad.read_zarr(path) for path in collection.store_paths])
    assert sorted(found.obs_names) == sorted(expected.obs_names)
    wanted = expected[found.obs_names, found.var_names]
    np.testing.assert_array_equal(found.X.toarray(), wanted.X.toarray())
    assert found.obs["n_counts"].tolist() == wanted.obs["n_counts"].tolist()
    assert found.obs["src_path"].astype(str).tolist() == [
        str(given[int(name.removeprefix("cell")) >= 7]) for name in found.obs_names
    ]


@pytest.mark.filterwarnings(
    "ignore:Successfully reconstructed a store defined in another Python module",
    "ignore:Consolidated metadata is currently not part in the Zarr format 3",
)
def test_shards_behind_http(tmp_path: Path, served: tuple[Path, str]) -> None:
    """Stores of a collection, of which parts of files are read, are inputs and are loaded from."""
    folder, url = served
    cut: dict[str, Any] = {"chunk_elements": 8, "shard_elements": 64, "progress": False}
    first = create_anndata_collection(write_inputs(tmp_path), folder / "collection", **cut)
    store = through_obstore(f"{url}/collection/chunk_0.zarr")
    source = ad.read_zarr(first.store_paths[0])
    remote = opened(zarr.open_group(store, mode="r"))
    with Loader(batch_size=5, chunk_size=2, preload_nchunks=2).add_anndatas([remote], labels=["n_counts"]) as ds:
        rows = 0
        for batch in ds:
            np.testing.assert_array_equal(batch.data.to_scipy().toarray(), source.X[batch.index].toarray())
            rows += len(batch.index)
    assert rows == source.n_obs
    # Plain HTTP cannot list what is in a group.
    zarr.consolidate_metadata(first.store_paths[0])
    again = create_anndata_collection([store], tmp_path / "again", shuffle=False, **cut)
    np.testing.assert_array_equal(ad.read_zarr(again.store_paths[0]).X.toarray(), source.X.toarray())


def test_a_server_that_is_gone(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    store = through_obstore(f"http://127.0.0.1:{port}/a.zarr")
    with pytest.raises(InputError, match=r"object_store://.*a\.zarr.*: cannot be read as AnnData"):
        create_anndata_collection([store], tmp_path / "store", progress=False)
    assert list(tmp_path.iterdir()) == []


def test_addresses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """URLs are inputs: zarr groups where they lie, files after a download."""
    bucket = tmp_path / "buckets/data"
    bucket.mkdir(parents=True)
    store, other = write_inputs(bucket, kind="zarr3")
    file = Path(write_inputs(tmp_path, kind="h5ad")[1])
    (bucket / "b.h5ad.gz").write_bytes(gzip.compress(file.read_bytes()))
    expected = ad.concat([ad.read_zarr(store), ad.read_h5ad(file)], join="outer", fill_value=0)
    with s3_server(tmp_path / "buckets") as port:
        for name, value in s3_environment(port).items():
            monkeypatch.setenv(name, value)
        given = [f"s3://data/{store.name}", "s3://data/b.h5ad.gz"]
        collection = create_anndata_collection(given, tmp_path / "store", shuffle=False, progress=False)
        with pytest.raises(InputErrors) as refused:
            gone = ["s3://data/gone.zarr", "s3://data/gone.h5ad", "s3://data/matrix.mtx.gz", "s3://data/b.h5ad.gz/rna"]
            create_anndata_collection(gone, tmp_path / "other", progress=False)
    (path,) = collection.store_paths
    found = ad.read_zarr(path)
    assert found.obs_names.tolist() == expected.obs_names.tolist()
    np.testing.assert_array_equal(found.X.toarray(), expected[:, found.var_names].X.toarray())
    assert found.obs["src_path"].cat.categories.tolist() == given
    assert [type(fault) for fault in refused.value.errors] == [MissingInputError] * 2 + [InputError] * 2
    assert [str(fault) for fault in refused.value.errors] == [
        "s3://data/gone.zarr: must be a zarr group, or have the name of a file such as .h5ad",
        "s3://data/gone.h5ad: no such object",
        "s3://data/matrix.mtx.gz: must be local, because a 10x Genomics matrix has three files; download them",
        "s3://data/b.h5ad.gz/rna: the path must not continue with 'rna'; only MuData files have modalities",
    ]


def test_a_file_behind_http(tmp_path: Path, served: tuple[Path, str]) -> None:
    folder, url = served
    _, path = write_inputs(folder, kind="h5ad")
    # What may be a secret is in no message, and no name of a source.
    given = f"{url}/{path.name}?token=secret"
    collection = create_anndata_collection({"b": given}, tmp_path / "store", shuffle=False, progress=False)
    assert ad.read_zarr(collection.store_paths[0]).obs_names.tolist() == ad.read_h5ad(path).obs_names.tolist()
    with pytest.raises(MissingInputError, match=r"^http://127.0.0.1:\d+/gone.h5ad\?…: no such object$"):
        create_anndata_collection(f"{url}/gone.h5ad?token=secret", tmp_path / "other", progress=False)


def test_addresses_need_obstore(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore.store", None)
    with pytest.raises(InputError, match=r"s3://data/a.h5ad: reading s3://data needs obstore: pip install obstore"):
        create_anndata_collection("s3://data/a.h5ad", tmp_path / "store", progress=False)
