"""What becomes of the hidden directory of a build, and of what lies at the output path? No cells are written here."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from annbatch.errors import InputError, OutputError, OutputExistsError
from annbatch.stores.collection import FORMAT, Collection
from annbatch.stores.manifest import FileEntry, StoreEntry, checksum_of
from annbatch.write.output import workplace
from annbatch.write.output.workplace import (
    Workplace,
    _other_inputs,
    _output_error,
    check_output,
    claimed,
    hidden_directory,
    seal,
)

ARGUMENTS = {"seed": 0, "inputs": [["a.h5ad", [1, 2]]]}


def stores(n: int) -> tuple[StoreEntry, ...]:
    return tuple(StoreEntry(f"chunk_{i}.zarr", 3, 4, {}) for i in range(n))


def manifest(n: int = 1, seed: int = 0) -> Collection:
    return Collection(Path("here"), FORMAT, 3 * n, 2, "0" * 64, stores(n), {}, (), True, seed, "test")


def fill(folder: Path, *numbers: int, text: str = "new") -> None:
    for number in numbers:
        (folder / f"chunk_{number}.zarr").mkdir(parents=True)
        (folder / f"chunk_{number}.zarr" / "data").write_text(text)


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "some" / "folder" / "store"


@pytest.fixture
def there(output: Path) -> Path:
    """A collection of one store at the output path."""
    fill(output, 0, text="old")
    manifest(seed=7).save(output)
    return output


def interrupted(output: Path, arguments: dict[str, Any] = ARGUMENTS, mode: Any = "create", **how: Any) -> Path:
    """Leave an unfinished build behind; give its directory."""
    with pytest.raises(KeyboardInterrupt) as caught, claimed(output, mode, arguments, **how) as place:
        (place.temporary / "runs").mkdir()
        (place.temporary / "partial").mkdir()
        fill(place.stores, 5)
        raise KeyboardInterrupt
    assert caught.value.__notes__ == [f"{output}: run the same again to resume; to give up, remove {place.path}"]
    assert place.path.exists()
    return place.path


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- the output path --------------------------------------------------------------------------------------------------


def test_where_a_collection_may_go(output: Path):
    check_output(output, overwrite=False)
    output.mkdir(parents=True)
    check_output(output, overwrite=False)
    (output / "file").write_text("")
    with pytest.raises(OutputExistsError, match="store: already exists; pass overwrite=True"):
        check_output(output, overwrite=False)
    with pytest.raises(OutputExistsError, match="which this is not: it has no collection.json"):
        check_output(output, overwrite=True)
    (output / "collection.json").write_text("{}")
    with pytest.raises(OutputExistsError, match="which this is not: .*format must be"):
        check_output(output, overwrite=True)
    manifest().save(output)
    check_output(output, overwrite=True)
    with pytest.raises(OutputExistsError, match="already exists"):
        check_output(output / "file", overwrite=False)
    with pytest.raises(OutputExistsError, match="which this is not"):
        check_output(output / "file", overwrite=True)


def test_a_name_must_leave_room_for_the_hidden_directory(output: Path):
    output.parent.mkdir(parents=True)
    longest = os.pathconf(output.parent, "PC_NAME_MAX") - len(".") - len(".building") - len(".12345678")
    assert hidden_directory(output) == output.parent / ".store.building"
    with claimed(output.with_name("n" * longest), "create", ARGUMENTS):
        pass
    assert names_in(output.parent) == []
    with pytest.raises(InputError, match=f"a name of at most {longest} bytes, .*, got one of {longest + 1} bytes"):
        hidden_directory(output.with_name("n" * (longest + 1)))
    # Of characters, there are fewer; the folder need not be there.
    with pytest.raises(InputError, match=f"at most {longest} bytes"):
        hidden_directory(output.parent / "none" / "deeper" / ("é" * longest))


# --- a build from its beginning to its end ----------------------------------------------------------------------------


def test_a_new_collection_appears_whole(output: Path):
    with claimed(output, "create", ARGUMENTS) as place:
        assert place == Workplace(output.parent / ".store.building", output, "create", False, False)
        assert (place.stores.is_dir(), place.temporary.is_dir()) == (True, True)
        assert place.emptied("runs").is_dir()
        (place.temporary / "runs" / "0").write_text("")
        assert list(place.emptied("runs").iterdir()) == []
        # Whoever cleaned up took nothing that is needed.
        shutil.rmtree(place.temporary)
        assert place.emptied("runs").is_dir()
        shutil.rmtree(place.temporary)
        fill(place.stores, 0)
        assert not output.exists()
        place.commit(manifest())
        assert names_in(output) == ["chunk_0.zarr", "collection.json", "zarr.json"]
    assert names_in(output.parent) == ["store"]
    assert replace(Collection.open(output), path=Path("here")) == manifest()


def test_a_collection_is_replaced_only_if_that_is_wanted(there: Path):
    with pytest.raises(OutputExistsError, match="already exists"), claimed(there, "create", ARGUMENTS):
        pass
    assert names_in(there.parent) == ["store"]
    with claimed(there, "create", ARGUMENTS, overwrite=True) as place:
        assert place.overwrite
        fill(place.stores, 0)
        place.commit(manifest())
    assert names_in(there.parent) == ["store"]
    assert (there / "chunk_0.zarr" / "data").read_text() == "new"
    assert Collection.open(there).seed == 0


def test_an_empty_directory_is_filled(output: Path):
    output.mkdir(parents=True)
    with claimed(output, "create", ARGUMENTS) as place:
        place.commit(manifest(0))
    assert Collection.open(output).n_obs == 0


def test_stores_are_added(there: Path):
    with claimed(there, "append", ARGUMENTS) as place:
        fill(place.stores, 1)
        place.commit(manifest(2))
    assert names_in(there.parent) == ["store"]
    assert names_in(there) == ["chunk_0.zarr", "chunk_1.zarr", "collection.json", "zarr.json"]
    assert [(there / f"chunk_{i}.zarr" / "data").read_text() for i in range(2)] == ["old", "new"]
    assert len(Collection.open(there).stores) == 2


def test_one_process_builds_at_a_time(output: Path):
    with claimed(output, "create", ARGUMENTS) as place:
        with pytest.raises(OutputError, match="store: another process is writing this collection") as caught:
            claimed(output, "create", ARGUMENTS).__enter__()
        assert caught.value.errno == errno.EWOULDBLOCK
        assert place.path.exists()


@pytest.mark.parametrize("is_made_again", [True, False])
def test_a_directory_that_its_last_owner_removes_is_locked_anew(
    output: Path, is_made_again: bool, monkeypatch: pytest.MonkeyPatch
):
    path, lock, n_calls = output.with_name(".store.building"), fcntl.flock, 0

    def flock(descriptor: int, flags: int) -> None:
        nonlocal n_calls
        n_calls += 1
        lock(descriptor, flags)
        if n_calls == 1:
            path.rmdir()
            if is_made_again:
                path.mkdir()

    output.parent.mkdir(parents=True)
    monkeypatch.setattr(fcntl, "flock", flock)
    with claimed(output, "create", ARGUMENTS) as place:
        assert place.path.exists()
    assert n_calls == 2


@pytest.mark.parametrize("error", [RuntimeError("odd"), BlockingIOError()], ids=["odd", "locked"])
def test_nothing_stays_open_where_no_lock_can_be_had(output: Path, error: Exception, monkeypatch: pytest.MonkeyPatch):
    def flock(descriptor: int, flags: int) -> None:
        raise error

    output.parent.mkdir(parents=True)
    monkeypatch.setattr(fcntl, "flock", flock)
    before = names_in(Path("/proc/self/fd"))
    with pytest.raises((RuntimeError, OutputError)):
        claimed(output, "create", ARGUMENTS).__enter__()
    assert names_in(Path("/proc/self/fd")) == before


# --- what goes wrong --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "expected", "notes"),
    [
        (RuntimeError("odd"), RuntimeError, ["was not written; its unfinished parts have been removed"]),
        (InputError("odd"), InputError, []),
        (OutputError(errno.EIO, "odd"), OutputError, []),
    ],
    ids=lambda value: getattr(value, "__name__", type(value).__name__),
)
def test_after_an_error_nothing_is_left(output: Path, error: Exception, expected: type, notes: list[str]):
    with pytest.raises(expected, match="odd") as caught, claimed(output, "create", ARGUMENTS):
        raise error
    assert caught.value is error
    assert getattr(error, "__notes__", []) == [f"{output}: {note}" for note in notes]
    assert names_in(output.parent) == []


def test_errors_of_the_system_name_the_output(output: Path):
    message = r"store: cannot be written \(No space left on device\)"
    with pytest.raises(OutputError, match=message) as caught, claimed(output, "create", ARGUMENTS):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert caught.value.errno == errno.ENOSPC
    assert names_in(output.parent) == []
    known = OutputError(errno.EIO, "known")
    assert _output_error(output, known) is known
    assert "(odd)" in str(_output_error(output, OSError("odd")))


# --- what an interrupted build left -----------------------------------------------------------------------------------


def test_the_same_build_goes_on(output: Path):
    interrupted(output)
    with claimed(output, "create", ARGUMENTS) as place:
        assert not place.finished
        assert names_in(place.temporary) == ["runs"]
        assert names_in(place.stores) == ["chunk_5.zarr"]


def test_temporary_files_are_not_trusted_after_a_restart(output: Path, monkeypatch: pytest.MonkeyPatch):
    interrupted(output)
    monkeypatch.setattr(workplace, "_boot", lambda: "another")
    with claimed(output, "create", ARGUMENTS) as place:
        assert names_in(place.temporary) == []
        assert names_in(place.stores) == ["chunk_5.zarr"]


def test_temporary_files_of_after_a_restart_are_trusted(output: Path, monkeypatch: pytest.MonkeyPatch):
    interrupted(output)
    monkeypatch.setattr(workplace, "_boot", lambda: "another")
    with pytest.raises(KeyboardInterrupt), claimed(output, "create", ARGUMENTS) as place:
        (place.temporary / "later").mkdir()
        raise KeyboardInterrupt
    with claimed(output, "create", ARGUMENTS) as place:
        assert names_in(place.temporary) == ["later"]


def test_temporary_files_that_somebody_removed_are_not_missed(output: Path, monkeypatch: pytest.MonkeyPatch):
    shutil.rmtree(interrupted(output) / "temporary")
    monkeypatch.setattr(workplace, "_boot", lambda: "another")
    with claimed(output, "create", ARGUMENTS) as place:
        assert names_in(place.stores) == ["chunk_5.zarr"]


@pytest.mark.parametrize(
    ("mode", "change", "message"),
    [
        ("create", {"seed": 5}, r"another seed \(there 0, now 5\)"),
        ("create", {"seed": 5, "inputs": []}, r"another seed \(there 0, now 5\)"),
        ("create", {"inputs": [["b.h5ad", [1, 2]]]}, r"another inputs \(there 1, now 1; not now \['a.h5ad'\], new"),
        ("append", {}, "another mode"),
    ],
)
def test_another_build_is_refused_and_both_stay(output: Path, mode: Any, change: dict[str, Any], message: str):
    path = interrupted(output)
    with pytest.raises(OutputExistsError, match=f"unfinished build with {message}"):
        claimed(output, mode, ARGUMENTS | change).__enter__()
    assert names_in(path / "temporary") == ["partial", "runs"]
    with claimed(output, mode, ARGUMENTS | change, overwrite=True) as place:
        assert names_in(place.path) == ["build.json", "collection", "temporary"]
        assert names_in(place.temporary) == names_in(place.stores) == []


def test_what_another_build_left_is_no_build_while_it_is_removed(output: Path, monkeypatch: pytest.MonkeyPatch):
    """Who is killed then leaves nothing that the other build would go on with."""
    path, remove, entries = interrupted(output), shutil.rmtree, Path.iterdir

    def watched(folder: Path, **options: Any) -> None:
        if folder.parent == path:
            assert not (path / "build.json").exists()
        remove(folder, **options)

    monkeypatch.setattr(Path, "iterdir", lambda folder: iter(sorted(entries(folder), reverse=True)))
    monkeypatch.setattr(shutil, "rmtree", watched)
    with claimed(output, "create", ARGUMENTS | {"seed": 5}, overwrite=True) as place:
        assert names_in(place.temporary) == names_in(place.stores) == []


@pytest.mark.parametrize("text", ["", "[]", '{"mode": "create"}', None])
def test_what_is_no_build_is_removed(output: Path, text: str | None):
    path = interrupted(output)
    (path / "build.json").unlink()
    if text is not None:
        (path / "build.json").write_text(text)
    with claimed(output, "create", ARGUMENTS | {"seed": 5}) as place:
        assert names_in(place.stores) == []
        assert json.loads((path / "build.json").read_text())["arguments"]["seed"] == 5


def committed(output: Path, patch: pytest.MonkeyPatch) -> None:
    """Leave a build behind that was committed, but not moved to its place."""

    def fail(place: Workplace) -> None:
        raise OSError(errno.EIO, "odd")

    with patch.context() as context, pytest.raises(OSError, match="odd") as caught:
        context.setattr(workplace, "_install", fail)
        with claimed(output, "create", ARGUMENTS) as place:
            fill(place.stores, 0)
            place.commit(manifest())
    assert caught.value.__notes__ == [f"{output}: was already complete"]
    assert not output.exists()
    assert (output.parent / ".store.building" / "committed.json").exists()


def test_a_committed_build_is_finished_by_whoever_comes_next(output: Path, monkeypatch: pytest.MonkeyPatch):
    committed(output, monkeypatch)
    with claimed(output, "create", ARGUMENTS) as place:
        assert place.finished
        assert Collection.open(output).n_obs == 3
    assert names_in(output.parent) == ["store"]


def test_a_committed_build_is_finished_before_another_begins(output: Path, monkeypatch: pytest.MonkeyPatch):
    committed(output, monkeypatch)
    with claimed(output, "append", {"seed": 1}) as place:
        assert not place.finished
        assert Collection.open(output).n_obs == 3
        fill(place.stores, 1)
        place.commit(manifest(2))
    assert len(Collection.open(output).stores) == 2
    assert names_in(output.parent) == ["store"]


def test_an_error_behind_the_commit_undoes_nothing(output: Path):
    with pytest.raises(RuntimeError, match="odd") as caught, claimed(output, "create", ARGUMENTS) as place:
        fill(place.stores, 0)
        place.commit(manifest())
        raise RuntimeError("odd")
    assert caught.value.__notes__ == [f"{output}: was already complete"]
    assert names_in(output.parent) == ["store"]
    assert Collection.open(output).n_obs == 3


# --- parts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("there", "now", "text"),
    [
        ([["a", 1], ["b", 1]], [["a", 1], ["b", 2]], "1 of 2 have changed: ['b']"),
        ([["a", 1]], [["a", 1], ["b", 2]], "there 1, now 2; new ['b']"),
        ([["a", 1], ["b", 1]], [["b", 1]], "there 2, now 1; not now ['a']"),
        ([["a", 1], ["b", 1]], [["b", 1], ["a", 1]], "there 2, now 2; in another order"),
        ([["a", 1]], [["b", 1]], "there 1, now 1; not now ['a'], new ['b']"),
    ],
    ids=str,
)
def test_other_inputs_are_named(there: Any, now: Any, text: str):
    assert _other_inputs(there, now) == text


def test_a_store_is_sealed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for key in ("zarr.json", "X/data/c/1", "X/data/c/0", "obs/a"):
        (tmp_path / key).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / key).write_bytes(key.encode())
    synced: list[int] = []
    fsync: Callable[[int], None] = os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: (synced.append(descriptor), fsync(descriptor)))
    known = {"X/data/c/0": FileEntry(1, 2)}
    found = seal(tmp_path, known)
    assert list(found) == ["X/data/c/0", "X/data/c/1", "obs/a", "zarr.json"]
    assert found == {key: known.get(key, checksum_of(key.encode())) for key in found}
    # Three files, and the directories: the store, X, X/data, X/data/c, obs.
    assert len(synced) == 3 + 5


def test_what_threads_still_write_is_removed_in_the_end(output: Path, monkeypatch: pytest.MonkeyPatch):
    remove, n_calls = shutil.rmtree, 0

    def busy(path: Path, ignore_errors: bool = False) -> None:
        nonlocal n_calls
        n_calls += ".building." in path.name
        if n_calls not in (1, 2):
            remove(path, ignore_errors=ignore_errors)
        elif not ignore_errors:
            raise OSError(errno.ENOTEMPTY, "odd")

    monkeypatch.setattr(workplace, "_REMOVE_PAUSE_S", 0)
    monkeypatch.setattr(shutil, "rmtree", busy)
    with claimed(output, "create", ARGUMENTS):
        pass
    assert n_calls == 3
    assert names_in(output.parent) == []


def test_systems_that_do_not_say_when_they_began(monkeypatch: pytest.MonkeyPatch):
    def read_text(path: Path, encoding: str) -> str:
        raise FileNotFoundError(path)

    assert workplace._boot() == workplace._boot() != "unknown"
    monkeypatch.setattr(Path, "read_text", read_text)
    assert workplace._boot() == "unknown"
