"""What is left when a build is killed, and does the next one bring it to its end?

Children are killed with SIGKILL, which nothing can catch, at moments drawn at random over the time that a build takes.
They are forked from a server that has imported everything but started no threads. `test_write_steps.py` stops a commit
at each of its steps.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pytest

from annbatch import append_to_collection, create_anndata_collection
from annbatch.errors import InputError, OutputError, OutputExistsError
from annbatch.stores.collection import Collection
from annbatch.write.output import workplace as workplace_module
from datagen import named_adata, write_adata
from small_budget import PRELOADED, small_budget

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs signals")

CUT: dict[str, Any] = {"rows_per_store": 60, "chunk_elements": 256, "shard_elements": 2048, "progress": False}
_spawn = multiprocessing.get_context("forkserver")
_spawn.set_forkserver_preload(PRELOADED)


def work(function: Any, inputs: Any, output: Path, options: dict[str, Any]) -> None:
    """What a child does."""
    with pytest.MonkeyPatch.context() as patch:
        small_budget(patch, run_bytes=20_000, piece_bytes=20_000)
        function(inputs, output, **CUT, **options)


def start(function: Any, inputs: Any, output: Path, **options: Any) -> Any:
    child = _spawn.Process(target=work, args=(function, inputs, output, options))
    child.start()
    return child


def kill(child: Any) -> None:
    os.kill(child.pid, signal.SIGKILL)
    child.join()


def all_bytes(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def hidden(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.name.startswith("."))


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("inputs")
    rng = np.random.default_rng(0)
    parts = [range(0, 100), range(100, 160), range(160, 240)]
    forms = ("csr", "csc", "csr")
    return [
        write_adata(named_adata(rng, rows, range(90), form=form), folder / f"{rows.start}", "h5ad")
        for rows, form in zip(parts, forms, strict=True)
    ]


@pytest.fixture(scope="module")
def whole(inputs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What a build of the inputs that nothing disturbs writes."""
    return all_bytes(create_anndata_collection(inputs, tmp_path_factory.mktemp("whole") / "store", **CUT).path)


def is_unharmed(path: Path, before: dict[str, bytes], after: dict[str, bytes]) -> bool:
    """The path holds what was there before, or all that was to come; a new store may be on its way in."""
    found = all_bytes(path) if path.exists() else {}
    manifest = found.get("collection.json")
    whole = after if manifest == after["collection.json"] else before
    return all(found.get(name) == content for name, content in whole.items()) and manifest == whole.get(
        "collection.json"
    )


def survive(
    n_kills: int,
    function: Any,
    given: Any,
    path: Path,
    before: dict[str, bytes],
    after: dict[str, bytes],
    **options: Any,
) -> tuple[int, int]:
    """Kill builds at random moments until ``n_kills`` were hit, checking each time; give kills and completions."""
    rng = np.random.default_rng(0)
    kills = finished = 0
    longest = 1.0
    while kills < n_kills:
        began = time.monotonic()
        child = start(function, given, path, **options)
        child.join(rng.uniform(0.02, longest))
        if child.is_alive():
            kill(child)
            kills += 1
            assert is_unharmed(path, before, after)
            if not path.with_name(f".{path.name}.building").exists() and path.exists() and all_bytes(path) == after:
                # Killed behind its last step: nothing is left that a second call could go on with.
                finished += 1
                restore(path, before)
        else:
            assert child.exitcode == 0
            longest = time.monotonic() - began
            assert all_bytes(path) == after
            assert hidden(path.parent) == []
            finished += 1
            restore(path, before)
    child = start(function, given, path, **options)
    child.join()
    assert child.exitcode == 0
    assert all_bytes(path) == after
    assert hidden(path.parent) == []
    return kills, finished + 1


def restore(path: Path, content: dict[str, bytes]) -> None:
    shutil.rmtree(path)
    for name, data in content.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)


@pytest.mark.parametrize("n_kills", [2, pytest.param(60, marks=pytest.mark.slow)])
def test_killed_builds_leave_nothing_or_all_and_go_on(
    tmp_path: Path, inputs: list[Path], whole: dict[str, bytes], n_kills: int
):
    (tmp_path / "out").mkdir()
    survive(n_kills, create_anndata_collection, inputs, tmp_path / "out" / "store", {}, whole)


@pytest.mark.slow
@pytest.mark.parametrize("n_kills", [60])
def test_killed_appends_leave_the_old_or_the_new(tmp_path: Path, inputs: list[Path], n_kills: int):
    old = create_anndata_collection(inputs[:1], tmp_path / "reference", **CUT)
    before = all_bytes(old.path)
    after = all_bytes(append_to_collection(inputs[1:], old.path, **CUT).path)
    path = tmp_path / "out" / "store"
    path.mkdir(parents=True)
    restore(path, before)
    survive(n_kills, append_to_collection, inputs[1:], path, before, after)


@pytest.mark.slow
@pytest.mark.parametrize("n_kills", [60])
def test_killed_replacements_leave_the_old_or_the_new(tmp_path: Path, inputs: list[Path], n_kills: int):
    before = all_bytes(create_anndata_collection(inputs[:1], tmp_path / "old", **CUT).path)
    after = all_bytes(create_anndata_collection(inputs, tmp_path / "new", **CUT).path)
    path = tmp_path / "out" / "store"
    path.mkdir(parents=True)
    restore(path, before)
    survive(n_kills, create_anndata_collection, inputs, path, before, after, overwrite=True)


def killed_midway(inputs: list[Path], path: Path, **options: Any) -> Path:
    """Leave a build behind that was killed while it wrote runs; give its directory."""
    building = path.with_name(f".{path.name}.building")
    child = start(create_anndata_collection, inputs, path, **options)
    deadline = time.monotonic() + 60
    while not list(building.glob("temporary/runs/0*")):
        assert child.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.001)
    kill(child)
    assert building.exists()
    return building


def test_what_is_complete_is_not_done_again(tmp_path: Path, inputs: list[Path], monkeypatch: pytest.MonkeyPatch):
    building = killed_midway(inputs, tmp_path / "store")
    done = {p.name: p.stat().st_ino for p in building.glob("temporary/runs/0*")}
    seen: dict[str, int] = {}
    commit = workplace_module.Workplace.commit

    def look(self: Any, collection: Collection) -> None:
        seen.update({p.name: p.stat().st_ino for p in building.glob("temporary/runs/0*")})
        commit(self, collection)

    monkeypatch.setattr(workplace_module.Workplace, "commit", look)
    small_budget(monkeypatch)
    create_anndata_collection(inputs, tmp_path / "store", **CUT)
    assert len(seen) > len(done)
    assert done.items() <= seen.items()


def test_an_unfinished_build_of_other_arguments_stays(tmp_path: Path, inputs: list[Path]):
    building = killed_midway(inputs, tmp_path / "store")
    before, then = all_bytes(building), inputs[1].stat()
    with pytest.raises(OutputExistsError, match=r"unfinished build with another seed .*there 0, now 5"):
        create_anndata_collection(inputs, tmp_path / "store", seed=5, **CUT)
    with pytest.raises(OutputExistsError, match=r"another inputs .*\(there 3, now 1; not now \['.*100.h5ad', .*\]\)"):
        create_anndata_collection(inputs[:1], tmp_path / "store", **CUT)
    os.utime(inputs[1], ns=(0, 0))
    with pytest.raises(OutputExistsError, match=r"another inputs .*\(1 of 3 have changed: \['.*100.h5ad'\]\)"):
        create_anndata_collection(inputs, tmp_path / "store", **CUT)
    os.utime(inputs[1], ns=(then.st_atime_ns, then.st_mtime_ns))
    assert all_bytes(building) == before
    collection = create_anndata_collection(inputs, tmp_path / "store", seed=5, overwrite=True, **CUT)
    assert collection.seed == 5
    assert hidden(tmp_path) == []


def test_runs_from_before_the_machine_started_are_not_trusted(
    tmp_path: Path, inputs: list[Path], whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
):
    building = killed_midway(inputs, tmp_path / "store")
    for run in building.glob("temporary/runs/0*/m0.data"):
        run.write_bytes(bytes(run.stat().st_size))
    monkeypatch.setattr(workplace_module, "_boot", lambda: "another")
    collection = create_anndata_collection(inputs, tmp_path / "store", **CUT)
    assert all_bytes(collection.path) == whole


def test_of_two_writers_one_is_told(tmp_path: Path, inputs: list[Path]):
    building = (tmp_path / "store").with_name(".store.building")
    child = start(create_anndata_collection, inputs, tmp_path / "store")
    while not (building / "build.json").exists():
        assert child.is_alive()
        time.sleep(0.001)
    os.kill(child.pid, signal.SIGSTOP)
    with pytest.raises(OutputError, match="store: another process is writing this collection"):
        create_anndata_collection(inputs, tmp_path / "store", **CUT)
    os.kill(child.pid, signal.SIGCONT)
    child.join()
    assert child.exitcode == 0
    Collection.open(tmp_path / "store").verify()


def test_an_input_that_breaks_half_way_leaves_the_old_collection(tmp_path: Path, inputs: list[Path]):
    adata = ad.read_h5ad(inputs[0])
    adata.X.data[-1] = np.nan
    bad = write_adata(adata, tmp_path / "bad", "h5ad")
    old = create_anndata_collection(inputs[:1], tmp_path / "store", **CUT)
    before = all_bytes(old.path)
    for function, options in ((append_to_collection, {}), (create_anndata_collection, {"overwrite": True})):
        with pytest.raises(InputError, match="X must hold finite values, got nan"):
            function([inputs[1], bad], old.path, **CUT, **options)
        assert all_bytes(old.path) == before
        assert hidden(tmp_path) == []
