"""Stopped at any step, does a build leave the old collection or the new one, and does the next call finish it?

1. A small stand-in for a build claims its place, writes two files for each store, and commits: every step of that is
   taken. `test_write_crash.py` kills whole builds, at random moments.
2. Marked ``slow``: whole builds, stopped at each step.
3. The cache on the local disk, stopped at each step of a write.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import traceback
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest

from annbatch import append_to_collection, create_anndata_collection
from annbatch.remote.disk_cache import PAGE_NBYTES, DiskCache
from annbatch.stores.collection import FORMAT, Collection, digest_names
from annbatch.stores.manifest import StoreEntry
from annbatch.testing.cells import awkward_obs
from annbatch.write.output import directory_swap
from annbatch.write.output.workplace import Mode, claimed, seal
from crash_steps import stop_before
from datagen import named_adata, write_adata
from forked import in_a_fork
from small_budget import PRELOADED, small_budget

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs signals")

T = TypeVar("T")

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(PRELOADED)

ARGUMENTS = {"inputs": [["a.h5ad", 1]], "seed": 0}


def collection_of(path: Path, names: tuple[str, ...], what: str) -> Collection:
    """A collection whose stores hold what they are called, and ``what``."""
    stores = []
    for name in names:
        # What was stopped may have left half of it.
        shutil.rmtree(path / name, ignore_errors=True)
        (path / name).mkdir(parents=True)
        (path / name / "zarr.json").write_text(name)
        (path / name / "data").write_text(f"{what} {name}" * 3)
        stores.append(StoreEntry(name, 2, 4, seal(path / name, {})))
    digest = digest_names([what])
    return Collection(path, FORMAT, 2 * len(names), 3, digest, tuple(stores), {}, (), True, 0, "test")


def use_run(temporary: Path) -> None:
    """Write a temporary folder that is there whole or not at all, unless a former call did, and use it."""
    if not (temporary / "run").exists():
        (temporary / "partial").mkdir()
        for name in ("keys", "values"):
            (temporary / "partial" / name).write_text(name)
        (temporary / "partial").rename(temporary / "run")
    assert list(content(temporary / "run")) == ["keys", "values"]


def write(output: Path, mode: Mode, overwrite: bool, what: str) -> None:
    """Do what a build does to its place."""
    with claimed(output, mode, ARGUMENTS | {"what": what}, overwrite=overwrite) as place:
        if not place.finished:
            use_run(place.temporary)
            if mode == "create":
                place.commit(collection_of(place.stores, ("chunk_0.zarr", "chunk_1.zarr"), what))
                return
            old = Collection.open(output)
            new = collection_of(place.stores, ("chunk_2.zarr", "chunk_3.zarr"), what)
            place.commit(replace(old, n_obs=old.n_obs + new.n_obs, stores=old.stores + new.stores))


def child(folder: Path, number: int | None, log: Path, work: Callable[..., None], *arguments: Any) -> None:
    names: list[str] = []
    stop_before(folder, number, names)
    work(*arguments)
    log.write_text(json.dumps(names))


def run(folder: Path, number: int | None, log: Path, work: Callable[..., None], *arguments: Any) -> bool:
    """Let a forked process do the work up to a step; say whether it was stopped there.

    It has the imports and the compiled kernels of this process, which must have no threads: see `in_a_fork`.
    """
    with warnings.catch_warnings():
        # JAX warns of forks where it was imported.
        warnings.simplefilter("ignore")
        pid = os.fork()
    if pid == 0:
        try:
            child(folder, number, log, work, *arguments)
            os._exit(0)
        except Exception:
            traceback.print_exc()
            raise
        finally:
            # Not back into what forked it.
            os._exit(1)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code in (0, -signal.SIGKILL)
    return code != 0


def in_a_process(function: Callable[..., T], *arguments: Any) -> T:
    """Call a function in a small process that has no threads, and so forks quickly."""
    with ProcessPoolExecutor(1, mp_context=_context) as pool:
        return pool.submit(function, *arguments).result()


def content(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}


def restore(folder: Path, path: Path, before: dict[str, bytes]) -> None:
    shutil.rmtree(folder)
    folder.mkdir()
    for name, data in before.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)


def check_unharmed(path: Path, before: dict[str, bytes], after: dict[str, bytes], may_be_away: bool) -> None:
    """What is there can be opened, and is what was there or what was to come, to the byte."""
    if not path.exists():
        assert not before or may_be_away
        return
    found = content(path)
    Collection.open(path)
    whole = after if found["collection.json"] == after["collection.json"] else before
    assert found["collection.json"] == whole["collection.json"]
    # A store that is on its way in is named by no manifest yet.
    assert {name: data for name, data in found.items() if name in whole} == whole


def check_each_step(
    every: bool,
    folder: Path,
    before: dict[str, bytes],
    after: dict[str, bytes],
    work: Callable[..., None],
    *arguments: Any,
) -> list[str]:
    """Stop the work at each step, look at what is left, and do it again; give the steps.

    Without ``every`` of steps of one name only the first is taken, and so it is of those that remove what is no longer
    needed in the end. None is taken that waits for the disk: what a process that is killed there leaves is what it
    leaves at the next step.
    """
    path, log = folder / "store", folder.with_name("steps")
    restore(folder, path, before)
    if before:
        Collection.open(path).verify()
    assert not run(folder, None, log, work, path, *arguments)
    assert content(path) == after
    Collection.open(path).verify()
    names = json.loads(log.read_text())
    for number, name in enumerate(names):
        is_over = "rename .store.building" in names[:number]
        if name == "fsync" or (name in names[:number] and (is_over or not every)):
            continue
        restore(folder, path, before)
        # Threads may take a step more or less.
        stopped = run(folder, number, log, work, path, *arguments)
        assert stopped or number > len(names) - 10
        if stopped:
            check_unharmed(path, before, after, "exchange" not in names)
        hidden = [p.name for p in folder.iterdir() if p != path]
        if ".store.building" in hidden or not (path.exists() and content(path) == after):
            run(folder, None, log, work, path, *arguments)
            hidden = [p.name for p in folder.iterdir() if p != path]
            assert hidden == [], name
        assert content(path) == after, name
        # What is on its way out when the process ends is removed by the next build of this path.
        assert all(name.startswith(".store.building.") for name in hidden)
    return names


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "folder").mkdir()
    return tmp_path / "folder"


def written(path: Path, *calls: tuple[Mode, bool, str]) -> dict[str, bytes]:
    for call in calls:
        write(path, *call)
    return content(path)


FIRST: tuple[Mode, bool, str] = ("create", False, "first")


EVERY = pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["", "every"])


@EVERY
@pytest.mark.parametrize(
    ("calls", "steps"),
    [
        ((FIRST,), ["rename collection"]),
        ((FIRST, ("create", True, "second")), ["exchange"]),
        ((FIRST, ("append", False, "second")), ["rename chunk_2.zarr", "rename chunk_3.zarr"]),
    ],
    ids=["create", "replace", "append"],
)
def test_a_commit_at_each_step(folder: Path, tmp_path: Path, calls: Any, steps: list[str], every: bool):
    before = written(tmp_path / "before", *calls[:-1]) if calls[:-1] else {}
    after = written(tmp_path / "after", *calls)
    names = in_a_process(check_each_step, every, folder, before, after, write, *calls[-1])
    assert set(steps) <= set(names)
    assert {"fsync", "open .collection.json.writing", "rename .collection.json.writing"} <= set(names)
    is_append = calls[-1][0] == "append"
    assert ("rename .zarr.json.writing" in names) == (not is_append)
    assert {"open .committed.json.writing", "rename .committed.json.writing", "rename .store.building"} <= set(names)


@EVERY
def test_an_append_to_a_collection_without_a_root_group_at_each_step(folder: Path, tmp_path: Path, every: bool):
    """Such as earlier versions wrote: it gets one before the manifest names the new stores."""
    before = written(tmp_path / "before", FIRST)
    del before["zarr.json"]
    after = written(tmp_path / "after", FIRST, ("append", False, "second"))
    names = in_a_process(check_each_step, every, folder, before, after, write, "append", False, "second")
    renames = [name for name in names if name.startswith("rename")]
    assert renames.index("rename chunk_3.zarr") < renames.index("rename .zarr.json.writing")
    assert renames.index("rename .zarr.json.writing") < len(renames) - 1 - renames[::-1].index(
        "rename .collection.json.writing"
    )


def write_aside(output: Path, *arguments: Any) -> None:
    """As where the kernel cannot swap two names."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(directory_swap, "_exchange_at_once", lambda new, old: False)
        write(output, *arguments)


@EVERY
def test_a_replacement_where_names_cannot_be_swapped(folder: Path, tmp_path: Path, every: bool):
    before, after = written(tmp_path / "before", FIRST), written(tmp_path / "after", FIRST, ("create", True, "second"))
    names = in_a_process(check_each_step, every, folder, before, after, write_aside, "create", True, "second")
    assert {"rename store", "rename collection", "rename collection.replaced"} <= set(names)


# --- whole builds -----------------------------------------------------------------------------------------------------

CUT: dict[str, Any] = {"rows_per_store": 20, "chunk_elements": 64, "shard_elements": 256, "progress": False}


def build(output: Path, inputs: list[Path], append: bool, overwrite: bool) -> None:
    with pytest.MonkeyPatch.context() as patch:
        small_budget(patch, run_bytes=2500, piece_bytes=2500, tasks=1)
        if append:
            append_to_collection(inputs, output, **CUT)
        else:
            create_anndata_collection(inputs, output, overwrite=overwrite, **CUT)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("operation", ["create", "replace", "append"])
def test_a_build_at_each_step(folder: Path, tmp_path: Path, operation: str):
    """Beside the names there are a column with a mask, and one of categories: where cells come from."""
    rng, inputs = np.random.default_rng(0), []
    # Two new stores, or one.
    n_rows = 24 if operation == "create" else 16
    for first in (0, n_rows):
        rows = range(first, first + n_rows)
        adata = named_adata(rng, rows, range(12), obs=awkward_obs(rows)[["age"]])
        del adata.var["gene_id"], adata.var["length"]
        inputs.append(write_adata(adata, tmp_path / f"{first}", "h5ad"))
    before: dict[str, bytes] = {}
    (tmp_path / "old").mkdir()
    if operation != "create":
        build(tmp_path / "old/store", inputs[:1], False, False)
        before = content(tmp_path / "old/store")
    call = (inputs[1:], operation == "append", operation == "replace")
    build(tmp_path / "old/store", *call)
    after = content(tmp_path / "old/store")
    # The builds above have compiled what those in forked processes need.
    names = in_a_fork(lambda: check_each_step(True, folder, before, after, build, *call))
    assert len(names) > 100


# --- the cache --------------------------------------------------------------------------------------------------------

OBJECT = np.random.default_rng(0).integers(0, 256, 3 * PAGE_NBYTES + 100, np.uint8)
LIMIT = 1 << 24


def keep(folder: Path, first: int) -> None:
    """Keep an object's pages from one on."""
    file = DiskCache(folder, LIMIT).file("place", "key", "etag", len(OBJECT))
    file.store(first * PAGE_NBYTES, OBJECT[first * PAGE_NBYTES :])


def kept(folder: Path) -> list[bool]:
    """Say which pages are there; what is there must be the object's."""
    target = np.zeros(4 * PAGE_NBYTES, np.uint8)
    found = DiskCache(folder, LIMIT).file("place", "key", "etag", len(OBJECT)).load(np.arange(4), target)
    for page in np.flatnonzero(found):
        part = slice(page * PAGE_NBYTES, min((page + 1) * PAGE_NBYTES, len(OBJECT)))
        np.testing.assert_array_equal(target[part], OBJECT[part])
    return found.tolist()


def check_the_cache_at_each_step(folder: Path, log: Path) -> None:
    assert not run(folder, None, log, keep, folder, 1)
    assert kept(folder) == [False, True, True, True]
    names = json.loads(log.read_text())
    assert names[-2:] == ["pwrite", "pwrite"]
    for number in range(len(names)):
        for before in (None, 3):
            restore(folder, folder, {})
            if before is not None:
                keep(folder, before)
            assert run(folder, number, log, keep, folder, 1)
            if number == len(names) - 1:
                # Pages are written before the marks that say so.
                (file,) = folder.iterdir()
                assert file.read_bytes()[PAGE_NBYTES : len(OBJECT)] == OBJECT[PAGE_NBYTES:].tobytes()
            assert kept(folder) in ([False] * 4, [False, False, False, before is not None])
            keep(folder, 0)
            assert kept(folder) == [True] * 4


def test_a_write_of_the_cache_at_each_step(folder: Path, tmp_path: Path):
    in_a_process(check_the_cache_at_each_step, folder, tmp_path / "steps")
