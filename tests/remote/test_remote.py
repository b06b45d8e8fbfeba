"""Do object stores give the batches that the local directory gives, and what is refused?"""

from __future__ import annotations

import ctypes
import gc
import logging
import multiprocessing
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp
import zarr
from click.testing import CliRunner
from zarr.core.buffer import cpu
from zarr.core.sync import sync

from annbatch import (
    Collection,
    CorruptStoreError,
    InputError,
    Loader,
    StoreError,
    append_to_collection,
    create_anndata_collection,
)
from annbatch.cli import main
from annbatch.plan import byte_ranges
from annbatch.remote import request_pool
from annbatch.stores import slices
from datagen import named_adata
from live_threads import background_threads
from stores import FORMS, named_stores

obstore = pytest.importorskip("obstore")
pytest.importorskip("hadro")

from object_servers import SECRET_KEY, Proxy, fault_proxy, n_descriptors, s3_environment, s3_server  # noqa: E402

N_OBS, N_VARS = 200, 30


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder whose one bucket holds a collection."""
    folder = tmp_path_factory.mktemp("buckets")
    adata = named_adata(np.random.default_rng(0), range(N_OBS), range(N_VARS))
    adata.layers["double"] = adata.X * 2
    adata.obsm["pca"] = adata.X.toarray()[:, :3]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adata.write_h5ad(folder / "a.h5ad")
    create_anndata_collection(
        folder / "a.h5ad",
        folder / "bucket/cells",
        rows_per_store=70,
        chunk_elements=64,
        shard_elements=256,
        progress=False,
    )
    return folder


@pytest.fixture(scope="module")
def server(folder) -> Any:
    with s3_server(folder) as port:
        yield port


@pytest.fixture(scope="module")
def proxied(server) -> Any:
    with fault_proxy(server) as proxy:
        yield proxy


@pytest.fixture
def proxy(proxied: Proxy, monkeypatch) -> Any:
    """A calm proxy, through which ``s3://`` leads."""
    for name, value in s3_environment(proxied.port).items():
        monkeypatch.setenv(name, value)
    proxied.calm()
    yield proxied
    proxied.calm()


def loader(place: Any, **options: Any) -> Loader:
    settings: dict[str, Any] = {"batch_size": 16, "chunk_size": 8, "preload_nchunks": 4}
    return Loader(**settings | options).use_collection(place, labels=["cell_type", "n_counts", "age"])


def contents(batch: Any) -> tuple[Any, ...]:
    arrays = [batch.index, *batch.codes.values(), *(batch.get("obsm") or {}).values()]
    for matrix in (batch.data, *(batch.get("layers") or {}).values()):
        arrays += [matrix.data, matrix.indices, matrix.indptr]
    return tuple((array.dtype, array.tobytes()) for array in arrays)


def epoch(place: Any, **options: Any) -> list[tuple[Any, ...]]:
    with loader(place, **options) as ds:
        return [contents(batch) for batch in ds]


@pytest.fixture(scope="module")
def wanted(folder) -> list[tuple[Any, ...]]:
    return epoch(folder / "bucket/cells")


URL = "s3://bucket/cells"


# --- the same batches -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("latency_s", [0.0, 0.02])
def test_a_bucket_gives_the_batches_of_the_directory(proxy, wanted, latency_s):
    proxy.set(latency_s=latency_s)
    assert epoch(URL) == wanted


@pytest.mark.parametrize(
    "options",
    [
        {"prefetch": 0},
        {"prefetch": 3, "threads": 3},
        {"chunk_size": 1, "preload_nchunks": 64},
        {"layers": ["double"], "obsm": ["pca"], "dtype": np.float64},
        {"var_names": ["g7", "g3"], "shuffle": False},
    ],
    ids=str,
)
def test_options_change_nothing_about_that(folder, options):
    store = obstore.store.LocalStore(folder / "bucket/cells")
    assert epoch(store, **options) == epoch(folder / "bucket/cells", **options)


def test_every_kind_of_place(folder, server, wanted, tmp_path):
    directory = folder / "bucket/cells"
    http = obstore.store.from_url(f"http://127.0.0.1:{server}/nothing", client_options={"allow_http": True})
    assert isinstance(http, obstore.store.HTTPStore)
    memory, in_zarr = obstore.store.MemoryStore(), zarr.storage.MemoryStore()
    for file in directory.rglob("*"):
        if file.is_file():
            key = file.relative_to(directory).as_posix()
            obstore.put(memory, key, file)
            sync(in_zarr.set(key, cpu.Buffer.from_bytes(file.read_bytes())))
    archive = shutil.make_archive(str(tmp_path / "cells"), "zip", directory)
    places = {
        "file URL": directory.as_uri(),
        "obstore store": memory,
        "zarr ObjectStore": zarr.storage.ObjectStore(memory),
        "zarr LocalStore": zarr.storage.LocalStore(directory),
        "zarr MemoryStore": in_zarr,
        "zip file": zarr.storage.ZipStore(archive, mode="r"),
    }
    for name, place in places.items():
        assert epoch(place) == wanted, name


def test_the_command_line_reads_urls(folder, proxy):
    def said(*arguments: str) -> str:
        done = CliRunner().invoke(main, arguments)
        assert done.exit_code == 0, done.output
        return done.output

    url, directory = "s3://bucket/cells", str(folder / "bucket/cells")
    assert said("verify", url, "--no-progress") == "3 of 3 stores are whole\n"
    assert said("head", url) == said("head", directory)
    assert said("info", url) == said("info", directory).replace(directory, url)


def test_verify_finds_damage_in_a_bucket(copied):
    path = copied / "chunk_1.zarr/X/data/c/0"
    raw = bytearray(path.read_bytes())
    raw[3] ^= 1
    path.write_bytes(raw)
    with pytest.raises(CorruptStoreError, match=r"chunk_1\.zarr/X/data/c/0: must have"):
        Collection.open(obstore.store.LocalStore(prefix=copied)).verify()
    path.unlink()
    with pytest.raises(CorruptStoreError, match=r"chunk_1\.zarr/X/data/c/0: cannot be read"):
        Collection.open(obstore.store.LocalStore(prefix=copied)).verify()


@pytest.mark.parametrize("write", [create_anndata_collection, append_to_collection])
def test_nothing_is_written_to_urls(folder, tmp_path, monkeypatch, write):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"_path must be a local directory, got the URL s3://…@bucket/cells"):
        write(folder / "a.h5ad", "s3://a-key:a-secret@bucket/cells", progress=False)
    done = CliRunner().invoke(main, ["create", str(folder / "a.h5ad"), "s3://bucket/new", "--no-progress"])
    assert (done.exit_code, "OUTPUT must be a local directory" in done.output) == (2, True)
    assert not list(tmp_path.iterdir())


def test_plain_http(folder, wanted):
    """A web server without signatures or listing."""
    with s3_server(folder, keys=False) as port:
        assert epoch(f"http://127.0.0.1:{port}/bucket/cells") == wanted


def test_long_label_columns_and_indptr_are_read_in_parts(proxy, wanted, monkeypatch):
    monkeypatch.setattr(slices, "KEEP_BYTES", 0)
    assert epoch(URL) == wanted


def test_ranges_that_are_cut_small_give_the_same(folder, wanted, monkeypatch):
    store = obstore.store.LocalStore(folder / "bucket/cells")
    for gap, largest in ((0, 1), (10, 300), (10**9, 10**9)):
        monkeypatch.setattr(byte_ranges, "MAX_GAP_NBYTES", gap)
        monkeypatch.setattr(byte_ranges, "MAX_RANGE_NBYTES", largest)
        assert epoch(store) == wanted


@pytest.mark.parametrize("form", [form for form in FORMS if form.startswith("v")])
def test_stores_of_other_programs(tmp_path, form):
    adatas, x, _ = named_stores(tmp_path, form)
    remote = []
    for i, adata in enumerate(adatas):
        root = zarr.open_group(zarr.storage.ObjectStore(obstore.store.LocalStore(tmp_path / f"{i}.zarr")), mode="r")
        remote.append(ad.AnnData(X=ad.io.sparse_dataset(root["X"]), obs=adata.obs, var=adata.var))
    ds = Loader(batch_size=8, chunk_size=4, preload_nchunks=4).add_anndatas(remote)
    rows = []
    for batch in ds:
        assert (batch.data.to_scipy() != x[batch.index]).nnz == 0
        rows.append(batch.index)
    np.testing.assert_array_equal(np.sort(np.concatenate(rows)), np.arange(x.shape[0]))


def test_the_direct_path_reads_object_stores(folder, caplog):
    with caplog.at_level(logging.INFO, "annbatch"):
        loader(obstore.store.LocalStore(folder / "bucket/cells"))
    assert "zarr, not the direct path" not in caplog.text


def test_a_loader_that_was_pickled(proxy, wanted):
    ds = pickle.loads(pickle.dumps(loader(URL)))
    assert [contents(batch) for batch in ds] == wanted


def test_requests_under_way_are_bounded(proxy, wanted, monkeypatch):
    """Each may be a connection, and so a descriptor."""
    monkeypatch.setattr(byte_ranges, "MAX_GAP_NBYTES", 0)
    monkeypatch.setattr(byte_ranges, "MAX_RANGE_NBYTES", 1)
    proxy.set(latency_s=0.02)
    assert epoch(URL) == wanted
    counts = proxy.calm()
    assert 20 < counts["most_under_way"] <= request_pool.max_requests


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("s3://bucket/nothing", "s3://bucket/nothing: not a collection"),
        ("s3://bucket", "not a collection"),
        ("s3://no-such-bucket/cells", "no-such-bucket"),
        ("s3://", "s3://"),
        ("https://name:pass@/x?signature=secret", "https://…@/x?…"),
    ],
)
def test_what_is_no_collection(proxy, url, message):
    with pytest.raises(StoreError) as caught:
        Loader(batch_size=16).use_collection(url)
    assert message in str(caught.value)
    assert "secret" not in str(caught.value)


def test_wrong_keys(proxy, monkeypatch, caplog, capfd):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another-secret")
    with caplog.at_level(logging.DEBUG), pytest.raises(StoreError, match="s3://bucket/cells.*denied") as caught:
        loader(URL)
    told = f"{caught.value!r} {caught.value.__cause__!r} {caplog.text} {capfd.readouterr()}"
    assert "another-secret" not in told


def test_keys_are_in_no_message_or_log(proxy, caplog, capfd):
    with caplog.at_level(logging.DEBUG):
        ds = loader(URL)
        told = repr(ds) + str(Collection.open(URL))
        proxy.set(fault="403", match="X/data/c", times=-1)
        with pytest.raises(
            StoreError, match=r"s3://bucket/cells/chunk_\d.zarr/X/data/c/\d+: access was denied"
        ) as caught:
            list(ds)
    assert SECRET_KEY not in f"{told} {caught.value!r} {caplog.text} {capfd.readouterr()}"


def test_without_obstore(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "obstore.store", None)
    with pytest.raises(ImportError, match="pip install obstore"):
        Loader(batch_size=16).use_collection(URL)


# --- faults -----------------------------------------------------------------------------------------------------------


PASSING = ["503", "500", "drop", "cut"]
CHUNKS = ["X/data/c", "X/indices/c", "X/indptr/c", "codes/c"]


@pytest.mark.parametrize(
    ("fault", "match"),
    [
        *((fault, "") for fault in PASSING),
        # What is read whole, and says itself how long it is, cannot be known to be short.
        *(("short", match) for match in CHUNKS[:2]),
        *(
            pytest.param(fault, match, marks=pytest.mark.slow)
            for fault in PASSING
            for match in (*CHUNKS, "zarr.json", "collection")
        ),
    ],
)
def test_faults_that_pass(proxy, wanted, fault, match):
    proxy.set(fault=fault, match=match, times=3)
    assert epoch(URL) == wanted
    assert proxy.calm()["faults"] == 3


@pytest.mark.parametrize("match", ["X/data/c", "X/indices/c"])
def test_flipped_bits_are_found(proxy, match):
    ds = loader(URL)
    proxy.set(fault="flip", match=match, times=1)
    with pytest.raises(CorruptStoreError, match=rf"s3://bucket/cells/chunk_\d.zarr/{match}/\d+.*checksum"):
        list(ds)


@pytest.mark.parametrize("fault", ["503", "drop", "cut", "short", "silence"])
def test_faults_that_stay_end_in_an_error_after_a_known_time(proxy, monkeypatch, fault):
    monkeypatch.setattr(request_pool, "RETRY_S", 1.0)
    monkeypatch.setattr(request_pool, "IDLE_S", 1.0)
    ds = loader(URL)
    proxy.set(fault=fault, match="X/data/c", times=-1)
    began = time.monotonic()
    with pytest.raises(StoreError, match=r"s3://bucket/cells/chunk_\d.zarr/X/data/c/\d+: could not be read within"):
        list(ds)
    assert time.monotonic() - began < 15


@pytest.fixture
def copied(folder, tmp_path) -> Path:
    """A copy of the collection that may be damaged."""
    return Path(shutil.copytree(folder / "bucket/cells", tmp_path / "cells"))


@pytest.mark.parametrize("name", ["X/data/c/1", "X/indices/c/0", "X/indptr/c/0", "obs/cell_type/codes/c/0"])
def test_an_object_that_is_short_or_missing_is_found_when_the_collection_is_opened(copied, name):
    file, store = copied / "chunk_1.zarr" / name, obstore.store.LocalStore(copied)
    good = file.read_bytes()
    file.write_bytes(good[:-1])
    with pytest.raises(CorruptStoreError, match=rf"{name}: must have {len(good)} bytes, .*, got {len(good) - 1}"):
        loader(store)
    file.unlink()
    with pytest.raises(CorruptStoreError, match=f"{name}: cannot be read"):
        loader(store)


@pytest.mark.parametrize("change", ["cut", "emptied", "removed"])
@pytest.mark.parametrize("name", ["X/data/c/1", "X/indptr/c/0"])
@pytest.mark.parametrize("moment", ["before", "after"])
def test_an_object_that_changes_while_it_is_read(copied, change, name, moment, monkeypatch):
    """Before its index was read, and after."""
    monkeypatch.setattr(slices, "KEEP_BYTES", 0)
    file, ds = copied / "chunk_0.zarr" / name, loader(obstore.store.LocalStore(copied))
    if moment == "after":
        list(ds)
    if change == "removed":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:100] if change == "cut" else b"")
    with pytest.raises(StoreError, match=rf"chunk_0.zarr/{name}"):
        list(ds)


# --- endings ----------------------------------------------------------------------------------------------------------


def test_early_exits_leave_nothing_behind(proxy):
    proxy.set(latency_s=0.005)
    ds = loader(URL, prefetch=2)
    for _ in range(3):
        next(iter(ds))
    gc.collect()
    before = n_descriptors()
    for i in range(30):
        batches = iter(ds)
        for _ in range(i % 4):
            next(batches)
    del batches
    ds.close()
    gc.collect()
    assert background_threads() == []
    assert n_descriptors() <= before + request_pool.max_requests


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_early_exits_keep_no_memory(tmp_path):
    """What was requested ahead is let go: a window holds 2 MB here, and each exit leaves several of them."""
    x = sp.random(8192, 1000, density=0.1, format="csr", dtype=np.float32, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ad.AnnData(X=x).write_h5ad(tmp_path / "a.h5ad")
    create_anndata_collection(tmp_path / "a.h5ad", tmp_path / "cells", progress=False)
    ds = Loader(batch_size=512, chunk_size=256, preload_nchunks=8, prefetch=2).use_collection(
        obstore.store.LocalStore(tmp_path / "cells")
    )

    def leave(times: int) -> None:
        for i in range(times):
            batches = iter(ds)
            for _ in range(i % 4):
                next(batches)

    leave(12)
    gc.collect()
    before = resident_bytes()
    leave(60)
    gc.collect()
    assert resident_bytes() - before < 60e6


class Heap(ctypes.Structure):
    """What glibc says of its memory: ``struct mallinfo2``, see mallinfo(3)."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "top",
        )
    )


@pytest.mark.slow
def test_many_epochs_keep_no_memory(proxy):
    """What malloc has given out, obstore's part of it too, and Python's objects; not what glibc keeps for later."""
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallinfo2"):
        pytest.skip("needs glibc 2.33")
    libc.mallinfo2.restype = Heap
    rng = np.random.default_rng(0)

    def epochs(times: int) -> tuple[int, int]:
        held = []
        for i in range(times):
            if i % 3 == 0:
                ds = loader(URL)
            stop = int(rng.integers(10))
            for b, _ in enumerate(ds):
                if b == stop:
                    break
            if i >= times - 10:
                ds.close()
                gc.collect()
                heap = libc.mallinfo2()
                held.append((heap.uordblks + heap.hblkhd, len(gc.get_objects())))
        # The least of some: requests that were cancelled may hold theirs a little longer.
        return min(n_bytes for n_bytes, _ in held), min(n_objects for _, n_objects in held)

    n_bytes, n_objects = epochs(100)
    n_bytes_after, n_objects_after = epochs(600)
    print(f"600 epochs: {n_bytes} -> {n_bytes_after} bytes, {n_objects} -> {n_objects_after} objects")
    assert n_bytes_after - n_bytes < 600 * 2000
    assert n_objects_after - n_objects < 300


def read_in_child(given: Loader | bytes, results: multiprocessing.SimpleQueue, variables: dict[str, str]) -> None:
    # A fork server has the environment of the moment in which it was started: by any test before this one.
    os.environ.update(variables)
    ds = pickle.loads(given) if isinstance(given, bytes) else given
    try:
        results.put([contents(batch) for batch in ds])
    except StoreError as e:
        results.put(str(e))


@pytest.mark.parametrize("method", ["fork", "spawn", pytest.param("forkserver", marks=pytest.mark.slow)])
def test_processes(proxy, wanted, method):
    ds = loader(URL)
    next(iter(ds))
    ds.set_epoch(0)
    context = multiprocessing.get_context(method)
    results = context.SimpleQueue()
    given = ds if method == "fork" else pickle.dumps(ds)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        child = context.Process(target=read_in_child, args=(given, results, dict(os.environ)), daemon=True)
        child.start()
    deadline = time.monotonic() + 60
    while results.empty():
        assert time.monotonic() < deadline, "the child hangs"
        assert child.is_alive() or not results.empty(), f"the child ended with {child.exitcode}"
        time.sleep(0.01)
    found = results.get()
    child.join(60)
    if method == "fork":
        assert "object stores cannot be read in a process forked" in found
        assert [contents(batch) for batch in ds] == wanted
    else:
        assert found == wanted


SCRIPT = """
import signal, sys, annbatch
signal.signal(signal.SIGINT, signal.default_int_handler)  # it may have been ignored where the tests were started
ds = annbatch.Loader(batch_size=16, chunk_size=8, preload_nchunks=4, prefetch=int(sys.argv[1])).use_collection("s3://bucket/cells")
batches = iter(ds)
if sys.argv[2] == "exit":
    import time
    time.sleep(0.5)
print("reading", flush=True)
if sys.argv[2] == "exit":
    sys.exit(0)
for batch in batches:
    pass
"""


@pytest.mark.parametrize(
    ("ending", "prefetch"),
    [
        ("interrupt", 1),
        ("exit", 1),
        *(pytest.param(*one, marks=pytest.mark.slow) for one in (("interrupt", 0), ("terminate", 0), ("terminate", 1))),
    ],
)
def test_a_process_ends_at_once_while_the_server_is_silent(proxy, ending, prefetch):
    proxy.set(fault="silence", match="X/data/c", times=-1)
    command = [sys.executable, "-c", SCRIPT, str(prefetch), ending]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ)
    assert process.stdout is not None
    assert process.stdout.readline() == "reading\n"
    if ending != "exit":
        time.sleep(0.5)
        process.send_signal(signal.SIGINT if ending == "interrupt" else signal.SIGTERM)
    began = time.monotonic()
    _, error = process.communicate(timeout=60)
    assert time.monotonic() - began < 15
    if ending == "exit":
        assert process.returncode == 0, error
    elif ending == "interrupt":
        assert "KeyboardInterrupt" in error
