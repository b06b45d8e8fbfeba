"""How does a finished collection appear at the output path, or nothing at all, whatever happens meanwhile?

1. `claimed` takes a hidden directory beside the output path, on the same filesystem, for this process alone, by a lock
   that the system lets go when the process ends, however it ends.
2. What an interrupted build of the same arguments left there is used; one of others is refused.
3. `Workplace.commit` leaves the new manifest there: from then on the collection counts as written, and `_install` moves
   it to its place. If that is interrupted, whoever claims the directory next finishes it first.
4. Whatever goes wrong before, the hidden directory goes away. After Ctrl-C it stays, as it does after a kill, for the
   same call to go on with.

A new collection takes its place by one rename. Stores that are appended are moved in one by one, and nobody looks at
them until the manifest that names them takes the place of the old one.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from annbatch import summary
from annbatch.errors import AnnbatchError, InputError, OutputError, OutputExistsError, StoreError
from annbatch.stores.collection import MANIFEST, Collection
from annbatch.stores.manifest import FileEntry, checksum, sync_directory, write_whole
from annbatch.stores.root_group import write_root_group
from annbatch.write.output.directory_swap import exchange

Mode = Literal["create", "append"]

_BUILD = "build.json"
_COMMITTED = "committed.json"
_SYNCS = 16
_REMOVE_ATTEMPTS = 50
_REMOVE_PAUSE_S = 0.02
_TRASH_DIGITS = 8


@dataclass(frozen=True, slots=True)
class Workplace:
    """A hidden directory that one process builds in."""

    path: Path
    output: Path
    """Where the collection goes."""
    mode: Mode
    """Whether it is a new collection, or more stores for one."""
    overwrite: bool
    """Whether a collection at `output` is replaced."""
    finished: bool
    """Whether an interrupted build of the same arguments had been committed: nothing is left to do."""

    @property
    def stores(self) -> Path:
        """Where finished stores and, last, the manifest go."""
        return self.path / "collection"

    @property
    def temporary(self) -> Path:
        """Where everything else goes."""
        return self.path / "temporary"

    def emptied(self, name: str) -> Path:
        """Make an empty directory among the temporary files, in the place of one of that name."""
        directory = self.temporary / name
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        return directory

    def commit(self, collection: Collection) -> None:
        """Write the manifest and move everything to its place."""
        if self.mode == "create":
            check_output(self.output, overwrite=self.overwrite)
            write_root_group(self.stores)
        collection.save(self.stores)
        sync_directory(self.stores)
        write_whole(self.path / _COMMITTED, collection.to_json())
        _install(self)


def check_output(output: Path, *, overwrite: bool) -> None:
    """Check that a collection may be put at ``output``.

    Nothing may be there but an empty directory, or, with ``overwrite``, a collection of ours.

    Raises
    ------
    OutputExistsError
        If something else is there.
    """
    if not os.path.lexists(output) or (output.is_dir() and not any(output.iterdir())):
        return
    if not overwrite:
        raise OutputExistsError(
            f"{output}: already exists; pass overwrite=True to replace a collection, or choose another output_path"
        )
    try:
        if not (output / MANIFEST).is_file():
            raise StoreError(f"it has no {MANIFEST}")
        Collection.open(output)
    except StoreError as e:
        raise OutputExistsError(
            f"{output}: overwrite=True replaces only a collection that annbatch-dlpack wrote, which this is not: {e}"
        ) from e


def hidden_directory(output: Path) -> Path:
    """Give the directory beside ``output`` that it is built in.

    Raises
    ------
    InputError
        If the filesystem does not take so long a name.
    """
    path = output.with_name(f".{output.name}.building")
    longest = _longest_name(output.parent) - len(os.fsencode(path.name)) + len(os.fsencode(output.name))
    # What is removed gets a longer name still.
    longest -= 1 + _TRASH_DIGITS
    if len(os.fsencode(output.name)) > longest:
        raise InputError(
            f"output_path must end in a name of at most {longest} bytes, because the hidden directory beside it needs "
            f"a longer name, got one of {len(os.fsencode(output.name))} bytes: {output.name}"
        )
    return path


@contextmanager
def claimed(output: Path, mode: Mode, arguments: Mapping[str, Any], *, overwrite: bool = False) -> Iterator[Workplace]:
    """Claim the hidden directory of ``output``; remove it at the end, also if anything fails, but not after Ctrl-C.

    Parameters
    ----------
    arguments
        JSON values that determine what is built; ``inputs`` are pairs of a name and a stamp.

    Raises
    ------
    InputError
        If the name of ``output`` is too long for the hidden directory beside it.
    OutputError
        If another process is writing there, the disk is full, or the path cannot be written; keeps the ``errno``.
    OutputExistsError
        If an unfinished build of other arguments lies there and ``overwrite`` is not set.
    """
    path = hidden_directory(output)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        lock = _lock(path, output)
    except OSError as e:
        raise _output_error(output, e) from e
    try:
        try:
            place = _taken_up(path, output, mode, json.loads(json.dumps(arguments)), overwrite)
        except BaseException:
            # What somebody else left unfinished stays.
            if _read_build(path) is None:
                _remove(path)
            raise
        try:
            yield place
        except BaseException as e:
            if (path / _COMMITTED).exists():
                # Committed means written: it is moved to its place now, or by whoever comes next.
                with suppress(OSError):
                    _install(place)
                    _remove(path)
                e.add_note(f"{output}: was already complete")
                raise
            if isinstance(e, KeyboardInterrupt):
                e.add_note(f"{output}: run the same again to resume; to give up, remove {path}")
                raise
            _remove(path)
            if isinstance(e, OSError) and not isinstance(e, AnnbatchError):
                raise _output_error(output, e) from e
            if not isinstance(e, AnnbatchError):
                e.add_note(f"{output}: was not written; its unfinished parts have been removed")
            raise
        _remove(path)
    finally:
        os.close(lock)


def seal(store: Path, known: Mapping[str, FileEntry]) -> dict[str, FileEntry]:
    """Wait until all of ``store`` is on the disk, and give size and checksum of each of its files by relative path.

    ``known`` holds those of files that are on the disk already.
    """
    files = {path.relative_to(store).as_posix(): path for path in store.rglob("*") if path.is_file()}
    missing = [key for key in files if key not in known]
    # The disk takes many waiting files together in little more than the time of one.
    with ThreadPoolExecutor(_SYNCS, thread_name_prefix="annbatch-sync") as pool:
        found = pool.map(lambda key: checksum(files[key], sync=True), missing)
        entries = dict(known) | dict(zip(missing, found, strict=True))
        folders = [store, *(path for path in store.rglob("*") if path.is_dir())]
        list(pool.map(sync_directory, folders))
    return dict(sorted(entries.items()))


def _lock(path: Path, output: Path) -> int:
    while True:
        path.mkdir(exist_ok=True)
        descriptor = os.open(path, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Its last owner may have removed it between our opening and locking it.
            if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        except BlockingIOError:
            os.close(descriptor)
            raise OutputError(errno.EWOULDBLOCK, f"{output}: another process is writing this collection") from None
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _taken_up(path: Path, output: Path, mode: Mode, arguments: Mapping[str, Any], overwrite: bool) -> Workplace:
    """Find out what is in the directory, and finish, use, refuse or remove it."""
    place = Workplace(path, output, mode, overwrite, False)
    found = _read_build(path)
    if found is not None and (path / _COMMITTED).exists():
        _install(Workplace(path, output, found["mode"], found["overwrite"], True))
        if (found["mode"], found["arguments"]) == (mode, arguments):
            return Workplace(path, output, mode, overwrite, True)
        found = None
    if mode == "create":
        check_output(output, overwrite=overwrite)
    if found is not None and (found["mode"], found["arguments"]) != (mode, arguments):
        if not overwrite:
            raise OutputExistsError(_other_build(path, output, found, mode, arguments))
        found = None
    build = {"mode": mode, "overwrite": overwrite, "arguments": arguments, "boot": _boot()}
    if found is None:
        # First what says that the rest can be used: this may be interrupted, too.
        (path / _BUILD).unlink(missing_ok=True)
        for entry in path.iterdir():
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        write_whole(path / _BUILD, json.dumps(build))
    elif found["boot"] != build["boot"]:
        # Temporary files are not forced to the disk: after a crash of the machine they may be anything.
        shutil.rmtree(place.temporary, ignore_errors=True)
        write_whole(path / _BUILD, json.dumps(found | {"boot": build["boot"]}))
    shutil.rmtree(place.temporary / "partial", ignore_errors=True)
    place.stores.mkdir(exist_ok=True)
    place.temporary.mkdir(exist_ok=True)
    return place


def _read_build(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads((path / _BUILD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and {"mode", "overwrite", "arguments", "boot"} <= found.keys() else None


def _longest_name(directory: Path) -> int:
    """Give the most bytes of a name in a directory that need not be there yet."""
    present = next(path for path in (directory, *directory.parents) if os.path.lexists(path))
    return os.pathconf(present, "PC_NAME_MAX")


def _other_build(path: Path, output: Path, found: Mapping[str, Any], mode: Mode, arguments: Mapping[str, Any]) -> str:
    """Say what of an unfinished build is not as it is now."""
    theirs = found["arguments"]
    differing = [key for key in arguments if theirs.get(key) != arguments[key]] if found["mode"] == mode else ["mode"]
    first = differing[0] if differing else "arguments"
    if first == "inputs":
        difference = _other_inputs(theirs.get(first, ()), arguments[first])
    else:
        there, now = (summary.short(value) for value in (theirs.get(first, found["mode"]), arguments.get(first, mode)))
        difference = f"there {there}, now {now}"
    return (
        f"{output}: {path} holds an unfinished build with another {first} ({difference}); "
        f"run that build again to resume it, or remove the directory"
    )


def _other_inputs(there: Sequence[Sequence[Any]], now: Sequence[Sequence[Any]]) -> str:
    """Say which of two lists of names and stamps are not the same."""
    names = [[name for name, _ in inputs] for inputs in (there, now)]
    if names[0] == names[1]:
        changed = [name for (name, stamp), (_, other) in zip(there, now, strict=True) if stamp != other]
        return f"{len(changed)} of {len(now)} have changed: {summary.short(changed)}"
    gone, new = (list(dict.fromkeys(x for x in a if x not in set(b))) for a, b in (names, names[::-1]))
    words = [f"not now {summary.short(gone)}"] * bool(gone) + [f"new {summary.short(new)}"] * bool(new)
    return f"there {len(there)}, now {len(now)}; {', '.join(words) or 'in another order'}"


def _install(place: Workplace) -> None:
    """Move what was committed to its place; may be done again from any point on."""
    manifest = (place.path / _COMMITTED).read_text(encoding="utf-8")
    try:
        if (place.output / MANIFEST).read_text(encoding="utf-8") == manifest:
            return
    except OSError:
        pass
    if place.mode == "create":
        if os.path.lexists(place.output) and any(place.output.iterdir()):
            exchange(place.stores, place.output)
        else:
            place.stores.rename(place.output)
        sync_directory(place.output.parent)
        return
    for store in Collection.from_json(manifest, place.output).stores:
        if (place.stores / store.name).exists():
            (place.stores / store.name).rename(place.output / store.name)
    sync_directory(place.output)
    # Collections of earlier versions are none yet.
    write_root_group(place.output)
    write_whole(place.output / MANIFEST, manifest)


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return "unknown"


def _output_error(output: Path, e: OSError) -> OutputError:
    if isinstance(e, OutputError):
        return e
    return OutputError(e.errno, f"{output}: cannot be written ({e.strerror or e}); what was written has been removed")


def _remove(directory: Path) -> None:
    """Let a directory vanish at once, then remove what was in it."""
    trash = directory.with_name(f"{directory.name}.{secrets.token_hex(_TRASH_DIGITS // 2)}")
    with suppress(OSError):
        directory.rename(trash)
    # Names may have characters that mean something in patterns.
    for found in [path for path in directory.parent.iterdir() if path.name.startswith(f"{directory.name}.")]:
        # When one of several concurrent chunk writes fails, zarr's threads may still be finishing the others.
        for _ in range(_REMOVE_ATTEMPTS):
            shutil.rmtree(found, ignore_errors=True)
            if not found.exists():
                break
            time.sleep(_REMOVE_PAUSE_S)
