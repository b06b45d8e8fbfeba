"""May a loader be used in processes that were forked or spawned?"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
import warnings
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from numba.core.compiler_lock import global_compiler_lock

from annbatch import Loader, buffers
from annbatch.native import Kernel
from annbatch.shards import chunk_files, codecs
from annbatch.stores import array_opening as opening_module
from annbatch.stores import hdf5_files
from stores import named_stores


def contents(ds: Loader) -> list[tuple[bytes, ...]]:
    return [(batch.index.tobytes(), batch.data.data.tobytes(), batch.codes["stage"].tobytes()) for batch in ds]


def read(loaders: list[Loader], results: multiprocessing.SimpleQueue) -> None:
    results.put([contents(ds) for ds in loaders])


FORMS = ("v3 sharded", "v2", "memory store", "in memory")


# A child that imports everything anew takes seconds, so one reads all forms. `forkserver` pickles as `spawn` does.
@pytest.mark.parametrize("method", ["fork", "spawn", pytest.param("forkserver", marks=pytest.mark.slow)])
def test_a_child_reads_what_its_parent_opened(tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    loaders, here = {}, {}
    for form, direct in product(FORMS, (True, False)):
        if method != "fork" and form == "memory store":
            continue  # a store in memory is in one process
        monkeypatch.setattr(opening_module, "DIRECT", direct)
        adatas, _, _ = named_stores(tmp_path / f"{form} {direct}", form, sizes=(30, 5))
        ds = Loader(batch_size=8, chunk_size=4, preload_nchunks=2, threads=2).add_anndatas(adatas)
        loaders[form, direct], here[form, direct] = ds, contents(ds)
        assert contents(ds) != here[form, direct]
        ds.set_epoch(0)
    context = multiprocessing.get_context(method)
    results = context.SimpleQueue()
    with warnings.catch_warnings():
        # Python, and JAX where it was imported, warn of threads in a process that forks; that is what is tested.
        warnings.simplefilter("ignore")
        child = context.Process(target=read, args=(list(loaders.values()), results), daemon=True)
        child.start()
    found = dict(zip(loaders, _get(results, child), strict=True))
    child.join(60)
    assert child.exitcode == 0
    assert [case for case in loaders if found[case] != here[case]] == []


@Kernel
def doubled(x):
    return 2 * x


def answer(results: multiprocessing.SimpleQueue) -> None:
    results.put(doubled(21))


def test_a_fork_while_a_thread_compiles() -> None:
    """The child compiles too, although the thread that held the compiler's lock is not there to release it."""
    compiling = threading.Event()

    def compile_something() -> None:
        with global_compiler_lock:
            compiling.set()
            time.sleep(0.5)

    thread = threading.Thread(target=compile_something)
    thread.start()
    compiling.wait()
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        child = context.Process(target=answer, args=(results,), daemon=True)
        child.start()
    assert _get(results, child) == 42
    child.join(60)
    thread.join()


def _get(results: multiprocessing.SimpleQueue, child: multiprocessing.process.BaseProcess) -> Any:
    """Wait for the child's answer, but not for ever."""
    deadline = time.monotonic() + 60
    while results.empty():
        assert time.monotonic() < deadline, "the child hangs"
        assert child.is_alive() or not results.empty(), f"the child ended with {child.exitcode}"
        time.sleep(0.01)
    return results.get()


def test_a_fork_while_the_parent_reads(tmp_path: Path) -> None:
    """The child begins an epoch of its own while threads of the parent, which it does not have, are at work."""
    adatas, x, _ = named_stores(tmp_path, "v3 sharded", sizes=(60,))
    ds = Loader(batch_size=4, chunk_size=2, preload_nchunks=2, prefetch=3, threads=2).add_anndatas(adatas)
    batches = iter(ds)
    first = next(batches)
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        child = context.Process(target=read, args=([ds], results), daemon=True)
        child.start()
    assert [len(batches) for batches in _get(results, child)] == [len(ds)]
    child.join(60)
    rest = list(batches)
    rows = np.concatenate([batch.index for batch in (first, *rest)])
    np.testing.assert_array_equal(np.sort(rows), np.arange(x.shape[0]))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the platform cannot fork")
@pytest.mark.parametrize(
    "lock",
    [codecs._environment_lock, buffers._lock, chunk_files._lock, hdf5_files._lock, global_compiler_lock],
    ids=["codecs", "buffers", "chunk files", "hdf5 files", "compiler"],
)
def test_a_fork_leaves_no_lock_taken(lock: Any):
    """A lock that another thread holds at the moment of a fork would never be free in the child."""
    is_held = threading.Event()

    def hold() -> None:
        with lock:
            is_held.set()
            time.sleep(0.1)

    thread = threading.Thread(target=hold)
    thread.start()
    is_held.wait()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pid = os.fork()
    if pid == 0:
        # The child ends by the signal where it waits for ever.
        signal.alarm(5)
        with lock:
            os._exit(0)
    thread.join()
    assert os.waitpid(pid, 0)[1] == 0


def test_threads_that_open_at_once_do_not_change_each_others_codecs():
    """The setting is the process's: one thread's must not be seen, or put back, by another."""
    before = zarr.config.get("codec_pipeline.path")
    seen: list[tuple[str, str]] = []

    def use(path: str) -> None:
        for _ in range(50):
            with opening_module.codec_pipeline(path):
                time.sleep(0.0002)
                seen.append((path, zarr.config.get("codec_pipeline.path")))

    pipelines = [opening_module.ZARR, opening_module.ZARRS] * 2
    threads = [threading.Thread(target=use, args=(path,)) for path in pipelines]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(seen) == 200
    assert all(wanted == found for wanted, found in seen)
    assert zarr.config.get("codec_pipeline.path") == before
