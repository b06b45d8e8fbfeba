"""Does the cache on the local disk ever change a batch, and does it keep its limit, whatever happens to it?"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import pickle
import resource
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from subprocess import PIPE
from typing import Any

import anndata as ad
import numpy as np
import pytest
import zarr

from annbatch import CorruptStoreError, Loader, OutputError, StoreError
from annbatch.remote.cached_reads import CachedObjects, Version
from annbatch.remote.disk_cache import PAGE_NBYTES, DiskCache
from annbatch.remote.object_reads import fetch
from annbatch.remote.request_pool import Requests
from annbatch.stores import slices
from epochs import each_batch
from fault_matrix import Batches, contents, two_epochs, write_collection
from stores import named_stores

obstore = pytest.importorskip("obstore")
pytest.importorskip("hadro")

from object_servers import ACCESS_KEY, SECRET_KEY, Proxy, fault_proxy, s3_environment, s3_server  # noqa: E402

URL = "s3://bucket/cells"
SUPPORT = Path(__file__).parents[1] / "support"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder whose one bucket holds a collection."""
    folder = tmp_path_factory.mktemp("buckets")
    write_collection(folder)
    return folder


@pytest.fixture(scope="module")
def proxied(folder) -> Iterator[Proxy]:
    with s3_server(folder) as port, fault_proxy(port) as proxy:
        yield proxy


@pytest.fixture
def proxy(proxied: Proxy, monkeypatch) -> Iterator[Proxy]:
    for name, value in s3_environment(proxied.port).items():
        monkeypatch.setenv(name, value)
    proxied.calm()
    yield proxied
    proxied.calm()


@pytest.fixture
def kept(tmp_path) -> Path:
    return tmp_path / "kept"


def loader(place: Any, kept: Path | None, **options: Any) -> Loader:
    settings: dict[str, Any] = {"batch_size": 16, "chunk_size": 8, "preload_nchunks": 4, "cache_dir": kept}
    return Loader(**settings | options).use_collection(place, labels=["cell_type", "n_counts"])


def epoch(place: Any, kept: Path | None, **options: Any) -> list[tuple[bytes, ...]]:
    with loader(place, kept, **options) as ds:
        return [contents(batch) for batch in each_batch(ds)]


@pytest.fixture(scope="module")
def wanted(folder) -> list[tuple[bytes, ...]]:
    return epoch(folder / "bucket/cells", None)


def files(kept: Path) -> list[Path]:
    return sorted(kept.glob("*.annbatch-cache"))


def some(now: list[Any], later: list[Any]) -> list[Any]:
    """Parameters for each run, and for a long one."""
    return [*now, *(pytest.param(one, marks=pytest.mark.slow) for one in later)]


def n_used(kept: Path) -> int:
    found = 0
    for file in files(kept):
        # Another process may have removed it in the meantime.
        with suppress(FileNotFoundError):
            found += file.stat().st_blocks * 512
    return found


# --- hits and misses --------------------------------------------------------------------------------------------------


def test_what_was_read_once_is_not_asked_for_again(proxy, wanted, kept):
    ds = loader(URL, kept)
    proxy.calm()
    batches = list(ds)
    first = ds.stats()
    assert first.requests == proxy.calm()["requests"] > 0
    assert [contents(batch) for batch in batches] == wanted
    # Objects of the test are smaller than a page.
    assert 0 < first.bytes_read < first.cache_misses * PAGE_NBYTES
    assert first.request_seconds > 0
    assert first.retries == 0
    ds = loader(URL, kept)
    proxy.set(fault="403", match="/c/", times=-1)
    assert [contents(batch) for batch in ds] == wanted
    assert proxy.calm()["requests"] == 0
    again = ds.stats()
    assert (again.requests, again.cache_misses, again.bytes_read) == (0, 0, 0)
    assert again.cache_hits > 0


def test_parts_of_long_columns(folder, wanted, kept, monkeypatch):
    monkeypatch.setattr(slices, "KEEP_BYTES", 0)
    store = obstore.store.LocalStore(folder / "bucket/cells")
    assert epoch(store, kept, prefetch=3) == wanted
    assert epoch(store, kept, prefetch=0) == wanted


@pytest.mark.parametrize("form", some(["v3 sharded"], ["v3 uncompressed", "v3 gzip"]))
def test_stores_of_other_programs(tmp_path, kept, form):
    adatas, x, _ = named_stores(tmp_path, form)
    remote = []
    for i, adata in enumerate(adatas):
        root = zarr.open_group(zarr.storage.ObjectStore(obstore.store.LocalStore(tmp_path / f"{i}.zarr")), mode="r")
        remote.append(ad.AnnData(X=ad.io.sparse_dataset(root["X"]), obs=adata.obs, var=adata.var))
    for _ in range(2):
        ds = Loader(batch_size=8, chunk_size=4, preload_nchunks=4, cache_dir=kept).add_anndatas(remote)
        rows = []
        for batch in ds:
            assert (batch.data.to_scipy() != x[batch.index]).nnz == 0
            rows.append(batch.index)
        np.testing.assert_array_equal(np.sort(np.concatenate(rows)), np.arange(x.shape[0]))
        assert files(kept)


def test_a_loader_that_was_pickled(proxy, wanted, kept):
    ds = pickle.loads(pickle.dumps(loader(URL, kept)))
    assert [contents(batch) for batch in ds] == wanted
    assert files(kept)


def test_local_collections_and_stores_in_memory_are_not_kept(folder, wanted, kept):
    assert epoch(folder / "bucket/cells", kept) == wanted
    assert not kept.exists()
    memory = obstore.store.MemoryStore()
    for file in (folder / "bucket/cells").rglob("*"):
        if file.is_file():
            obstore.put(memory, file.relative_to(folder / "bucket/cells").as_posix(), file)
    assert epoch(memory, kept) == wanted
    assert not files(kept)


def test_objects_without_a_strong_etag_are_not_kept(folder, wanted, kept, monkeypatch):
    monkeypatch.setattr(Version, "of", lambda meta: Version(None, int(meta["size"])))
    assert epoch(obstore.store.LocalStore(folder / "bucket/cells"), kept) == wanted
    assert not files(kept)


def test_weak_etags():
    assert Version.of({"e_tag": 'W/"a"', "size": 3}) == Version.of({"e_tag": None, "size": 3}) == Version(None, 3)
    assert Version.of({"e_tag": '"a"', "size": 3}) == Version('"a"', 3)


def test_keys_are_in_no_name_and_no_file(proxy, kept, caplog):
    with caplog.at_level(logging.DEBUG):
        epoch(URL, kept)
    told = caplog.text.encode() + b"".join(file.name.encode() + file.read_bytes() for file in files(kept))
    assert files(kept)
    assert SECRET_KEY.encode() not in told
    assert ACCESS_KEY.encode() not in told
    assert all(file.stat().st_mode & 0o077 == 0 for file in (kept, *files(kept)))


def test_what_is_refused(tmp_path, folder):
    for limit in ("much", "20 XB", -1):
        with pytest.raises(ValueError, match="cache_limit must be"):
            Loader(batch_size=1, cache_dir=tmp_path, cache_limit=limit)
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="file: the cache folder cannot be created"):
        loader(obstore.store.LocalStore(folder / "bucket/cells"), tmp_path / "file")


# --- one object -------------------------------------------------------------------------------------------------------


def stored(folder: Path, data: bytes) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "object").write_bytes(data)
    return folder


def read(objects: CachedObjects, starts: Any, nbytes: Any) -> list[bytes]:
    """Read pieces of the one object."""
    starts, nbytes = np.array(starts, np.int64), np.array(nbytes, np.int64)
    work = fetch([(objects, "object")], np.zeros_like(starts), starts, nbytes)
    found = Requests().run(work)
    return [ctypes.string_at(int(at), int(n)) for at, n in zip(found.addresses, nbytes, strict=True)]


def test_any_pieces_whatever_befalls_the_file(tmp_path, kept):
    rng = np.random.default_rng(0)
    data = rng.bytes(40 * PAGE_NBYTES + 777)
    store, disk = obstore.store.LocalStore(stored(tmp_path / "store", data)), DiskCache(kept, 10**8)
    for i in range(60):
        starts = np.sort(rng.integers(0, len(data), rng.integers(1, 9)))
        nbytes = np.minimum(rng.integers(1, 5 * PAGE_NBYTES, len(starts)), len(data) - starts)
        found = read(CachedObjects(store, disk), starts, nbytes)
        assert found == [data[a : a + n] for a, n in zip(starts, nbytes, strict=True)]
        [file] = files(kept)
        raw = bytearray(file.read_bytes())
        if i % 3 == 0:
            # Anywhere: in pages and in marks.
            for at in rng.integers(0, len(raw), 8):
                raw[at] ^= int(rng.integers(1, 256))
            file.write_bytes(raw)
        elif i % 10 == 1:
            file.write_bytes(raw[: rng.integers(0, len(raw))])
        elif i % 10 == 5:
            # Pages that changed places.
            raw[:PAGE_NBYTES], raw[PAGE_NBYTES : 2 * PAGE_NBYTES] = (
                raw[PAGE_NBYTES : 2 * PAGE_NBYTES],
                raw[:PAGE_NBYTES],
            )
            file.write_bytes(raw)


def test_pieces_of_two_versions_never_meet(tmp_path, kept, caplog):
    old, new = bytes(2 * PAGE_NBYTES), b"\1" * (2 * PAGE_NBYTES)
    store, disk = obstore.store.LocalStore(stored(tmp_path / "store", old)), DiskCache(kept, 10**8)
    objects = CachedObjects(store, disk)
    assert read(objects, [0], [9]) == [old[:9]]
    stored(tmp_path / "store", new)
    assert read(objects, [5], [2 * PAGE_NBYTES - 5]) == [new[5:]]
    assert read(objects, [0], [9]) == [new[:9]]
    # What keeps changing is not kept.
    assert not caplog.text
    stored(tmp_path / "store", old + b"more")
    assert read(objects, [PAGE_NBYTES], [9]) == [new[:9]]
    disk.file(objects._place, "object", "another", 1).remove()
    for file in files(kept):
        file.unlink()
    assert read(objects, [0], [2 * PAGE_NBYTES]) == [old]
    assert "keeps changing" in caplog.text
    assert not files(kept)


def test_an_object_that_ends_before_a_piece(tmp_path, kept):
    store = obstore.store.LocalStore(stored(tmp_path / "store", bytes(100)))
    with pytest.raises(CorruptStoreError, match="object: must have at least 120 bytes, got 100"):
        read(CachedObjects(store, DiskCache(kept, 10**8)), [0], [120])
    (tmp_path / "store/object").unlink()
    with pytest.raises(StoreError, match="object: has been removed"):
        read(CachedObjects(store, DiskCache(kept, 10**8)), [0], [10])


# --- faults -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_another_collection_at_the_same_place(tmp_path, folder, wanted, kept):
    place = Path(shutil.copytree(folder / "bucket/cells", tmp_path / "cells"))
    store = obstore.store.LocalStore(place)
    assert epoch(store, kept) == wanted
    write_collection(tmp_path / "another", seed=1)
    other = epoch(tmp_path / "another/bucket/cells", None)
    assert other != wanted
    shutil.rmtree(place)
    shutil.move(tmp_path / "another/bucket/cells", place)
    assert epoch(store, kept) == other


@pytest.mark.parametrize("damage", some(["flipped", "cut", "link"], ["zeros", "noise", "directory", "pipe", "loop"]))
def test_damaged_files(folder, wanted, kept, damage, tmp_path):
    store, rng = obstore.store.LocalStore(folder / "bucket/cells"), np.random.default_rng(0)
    assert epoch(store, kept) == wanted
    for file in files(kept):
        raw = bytearray(file.read_bytes())
        if damage == "flipped":
            raw[int(rng.integers(0, 200))] ^= 1
            file.write_bytes(raw)
        elif damage == "cut":
            file.write_bytes(raw[: int(rng.integers(0, len(raw)))])
        elif damage == "zeros":
            file.write_bytes(bytes(PAGE_NBYTES) + raw[PAGE_NBYTES:])
        elif damage == "noise":
            file.write_bytes(rng.bytes(len(raw)))
        else:
            file.unlink()
            if damage == "directory":
                file.mkdir()
            elif damage == "pipe":
                os.mkfifo(file)
            elif damage == "link":
                (tmp_path / "elsewhere").write_bytes(raw)
                file.symlink_to(tmp_path / "elsewhere")
            else:
                file.symlink_to(file)
    for _ in range(2):
        assert epoch(store, kept) == wanted
    if damage == "link":
        assert (tmp_path / "elsewhere").read_bytes() == raw


@pytest.mark.parametrize("match", some(["X/data/c"], ["X/indptr/c", "codes/c"]))
def test_what_was_damaged_on_its_way_is_not_kept(proxy, wanted, kept, match):
    ds = loader(URL, kept)
    proxy.set(fault="flip", match=match, times=1)
    with pytest.raises(CorruptStoreError, match=match):
        list(ds)
    ds.set_epoch(0)
    assert [contents(batch) for batch in ds] == wanted
    assert epoch(URL, kept) == wanted


@pytest.mark.parametrize("fault", some(["short"], ["503", "cut"]))
def test_requests_that_fail(proxy, wanted, kept, fault):
    ds = loader(URL, kept)
    proxy.set(fault=fault, match="/c/", times=5)
    assert [contents(batch) for batch in ds] == wanted
    assert proxy.calm()["faults"] == 5
    # The client of the store repeats other requests itself, and does not say so.
    assert (1 <= ds.stats().retries <= 5) or fault != "short"
    assert epoch(URL, kept) == wanted


@pytest.fixture
def full(kept) -> Iterator[Path]:
    """A file system with room for a few files."""
    kept.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", kept], capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    yield kept
    subprocess.run(["umount", kept], check=True)


def test_a_full_disk(folder, wanted, full, caplog):
    store = obstore.store.LocalStore(folder / "bucket/cells")
    ds = loader(store, full)
    assert [contents(batch) for batch in ds] == wanted
    assert caplog.text.count("cannot be written") == caplog.text.count("No space left on device") == 1
    assert files(full)
    for other in (ds, loader(store, full)):
        other.set_epoch(0)
        assert [contents(batch) for batch in other] == wanted


def test_files_that_may_not_grow(folder, wanted, kept, caplog):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (PAGE_NBYTES, before[1]))
    try:
        found = epoch(obstore.store.LocalStore(folder / "bucket/cells"), kept)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert found == wanted
    assert caplog.text.count("cannot be written") == 1


# --- the limit --------------------------------------------------------------------------------------------------------


def test_the_limit_is_kept_and_what_was_used_last_stays(tmp_path, kept):
    limit = 40 * PAGE_NBYTES
    disk, page = DiskCache(kept, limit), np.zeros(PAGE_NBYTES, np.uint8)
    (kept / "notes.txt").write_text("mine")
    for i in range(100):
        file = disk.file("place", f"key {i}", "etag", PAGE_NBYTES)
        file.store(0, page)
        assert disk.file("place", "key 0", "etag", PAGE_NBYTES).load(np.array([0]), page.copy()).all()
        assert file.load(np.array([0]), page.copy()).all()
        assert n_used(kept) <= limit
    assert len(files(kept)) > 20
    assert not disk.file("place", "key 1", "etag", PAGE_NBYTES).load(np.array([0]), page.copy()).any()
    assert (kept / "notes.txt").exists()


def test_a_limit_that_nothing_meets(folder, wanted, kept):
    assert epoch(obstore.store.LocalStore(folder / "bucket/cells"), kept, cache_limit=1000) == wanted
    assert not files(kept)


def test_files_that_are_removed_all_the_time(folder, wanted, kept):
    store, done = obstore.store.LocalStore(folder / "bucket/cells"), threading.Event()

    def remove() -> None:
        while not done.is_set():
            for file in files(kept):
                file.unlink(missing_ok=True)

    thread = threading.Thread(target=remove)
    thread.start()
    try:
        for _ in range(2):
            assert epoch(store, kept) == wanted
    finally:
        done.set()
        thread.join()


# --- several processes ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def readers(folder, proxied) -> Iterator[subprocess.Popen[str]]:
    """What starts processes."""
    command = [
        sys.executable,
        str(SUPPORT / "cache_readers.py"),
        str(folder / "bucket/cells"),
    ]
    variables = os.environ | s3_environment(proxied.port)
    with subprocess.Popen(command, stdin=PIPE, stdout=PIPE, text=True, env=variables) as process:
        yield process
        process.communicate(timeout=60)


def read_by_others(
    readers: subprocess.Popen[str], task: str, kept: Path, n: int, output: Path, limit: int = 10**9, place: str = URL
) -> list[Any]:
    """Let processes do a task of ``cache_readers.py``, see that the limit is kept, and give what each wrote."""
    kept.mkdir(mode=0o700)
    assert readers.stdin is not None
    assert readers.stdout is not None
    print(json.dumps([task, place, str(kept), limit, n, str(output)]), file=readers.stdin, flush=True)
    answer = ThreadPoolExecutor(1).submit(readers.stdout.readline)
    try:
        while not answer.done():
            assert n_used(kept) <= limit
            time.sleep(0.005)
    finally:
        # Not left to whoever asks next.
        said = answer.result()
    assert said == "true\n"
    return [pickle.loads((output / f"{i}").read_bytes()) for i in range(len(list(output.glob("?"))))]


@pytest.fixture(scope="module")
def both(folder) -> Batches:
    return two_epochs(folder / "bucket/cells", lambda now: None)


@pytest.mark.slow
@pytest.mark.parametrize("limit", [10**9, 24 * PAGE_NBYTES])
def test_processes_that_write_the_same(proxy, readers, both, kept, tmp_path, limit):
    """And, where the limit is low, remove what others read."""
    assert read_by_others(readers, "together", kept, 4, tmp_path / "output", limit) == [both] * 4
    assert files(kept)


def test_processes_that_are_killed_while_they_write(proxy, readers, both, kept, tmp_path):
    assert read_by_others(readers, "killed", kept, 6, tmp_path / "output") == [both]
    assert files(kept)


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become another user")
def test_a_cache_that_may_be_read_no_more(proxy, readers, kept, tmp_path):
    assert read_by_others(readers, "after the first batch", kept, 1, tmp_path / "output") == ["right"]


def check_ranks(found: list[Any]) -> None:
    """Together they have every row once in each epoch."""
    n = len(found[0]) // 2
    for own in (slice(0, n), slice(n, None)):
        rows = [np.frombuffer(batch[3], np.int64) for rank in found for batch in rank[own]]
        np.testing.assert_array_equal(np.sort(np.concatenate(rows)), np.arange(200))
    assert len(found) == 8
    assert {len(rank) for rank in found} == {2 * n}


def test_ranks_share_a_cache(proxy, readers, kept, tmp_path):
    """They remove what others wrote, too."""
    check_ranks(read_by_others(readers, "ranks", kept, 8, tmp_path / "output", 24 * PAGE_NBYTES))
    assert files(kept)


def test_ranks_share_a_directory(readers, folder, kept, tmp_path):
    place = str(folder / "bucket/cells")
    check_ranks(read_by_others(readers, "ranks", kept, 8, tmp_path / "output", place=place))
    assert not files(kept)
