"""How does a finished collection appear at the output path, or nothing at all?

1. `check_output` refuses a path that is taken, before any work.
2. `staged` gives a hidden directory beside the output path, on the same filesystem, to build in.
3. When the build is done it is renamed to the output path, once; whatever goes wrong before, the hidden directory goes
   away.
"""

from __future__ import annotations

import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import TypeVar

from annbatch.collection import MANIFEST, Collection
from annbatch.errors import AnnbatchError, OutputError, OutputExistsError, StoreError
from annbatch.manifest import FileEntry, checksum, sync_directory

_REMOVE_ATTEMPTS = 50
_REMOVE_PAUSE_S = 0.02

T = TypeVar("T")


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
            f"{output}: exists; pass overwrite=True to replace a collection, or choose another output_path"
        )
    try:
        if not (output / MANIFEST).is_file():
            raise StoreError(f"it has no {MANIFEST}")
        Collection.open(output)
    except StoreError as e:
        raise OutputExistsError(
            f"{output}: overwrite=True replaces nothing but a collection of this program, and this is none: {e}"
        ) from e


@contextmanager
def staged(output: Path, *, overwrite: bool) -> Iterator[Path]:
    """Give a hidden directory to build in; rename it to ``output`` at the end, or remove it if anything fails.

    With ``overwrite`` the old collection steps aside only once the new one is complete, and comes back if the new one
    cannot take its place.

    Raises
    ------
    OutputError
        If the disk is full, or the path cannot be written; keeps the ``errno``.
    OutputExistsError
        If the output path was taken in the meantime.
    """
    building = output.with_name(f".{output.name}.building-{secrets.token_hex(4)}")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        building.mkdir()
        yield building
        check_output(output, overwrite=overwrite)
        _publish(building, output)
    except BaseException as e:
        _remove(building)
        if isinstance(e, OSError) and not isinstance(e, AnnbatchError):
            message = f"{output}: cannot be written ({e.strerror or e}); what was written has been removed"
            raise OutputError(e.errno, message) from e
        if not isinstance(e, AnnbatchError):
            e.add_note(f"{output}: was not written; what was there of it has been removed")
        raise


def seal(store: Path) -> dict[str, FileEntry]:
    """Wait until all of ``store`` is on the disk, and give size and checksum of each of its files by relative path."""
    entries = {}
    for directory, _, names in os.walk(store):
        for name in names:
            file = Path(directory, name)
            entries[file.relative_to(store).as_posix()] = checksum(file, sync=True)
        sync_directory(Path(directory))
    return dict(sorted(entries.items()))


def finish_before_raising(work: Callable[[Callable[[], None]], T]) -> T:
    """Run ``work`` in a thread, and if this one is interrupted, let ``work`` stop before the exception goes on.

    zarr writes on threads of its own and does not stop them when the waiting thread is interrupted; they would write on
    into a directory that is being removed. ``work`` is given a function to call between its steps, which raises when it
    shall stop.
    """
    stop = Event()

    def checkpoint() -> None:
        if stop.is_set():
            raise InterruptedError("stopped")

    with ThreadPoolExecutor(1, thread_name_prefix="annbatch-write") as pool:
        future = pool.submit(work, checkpoint)
        try:
            return future.result()
        except BaseException:
            stop.set()
            wait([future])
            raise


def _publish(building: Path, output: Path) -> None:
    aside = None
    if (output / MANIFEST).exists():
        aside = output.with_name(f".{output.name}.replaced-{secrets.token_hex(4)}")
        output.rename(aside)
    try:
        building.rename(output)
    except BaseException:
        if aside is not None:
            aside.rename(output)
        raise
    sync_directory(output.parent)
    if aside is not None:
        shutil.rmtree(aside, ignore_errors=True)


def _remove(directory: Path) -> None:
    # When one of several concurrent chunk writes fails, zarr's threads may still be finishing the others.
    for _ in range(_REMOVE_ATTEMPTS):
        shutil.rmtree(directory, ignore_errors=True)
        if not directory.exists():
            return
        time.sleep(_REMOVE_PAUSE_S)
