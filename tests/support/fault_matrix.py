"""What comes out when something goes wrong while a collection is read?

Each trial makes a fresh copy of a small collection (or goes through a proxy to an S3-compatible server), reads it, and
lets one thing happen at one moment. It must end in the right batches, or in an error of this package that names the
object; after it no thread and no descriptor may be left. `outcome` is the judge; everything else injects.

Usage: ``python tests/support/fault_matrix.py [--table docs/faults-table.inc] [--seed 0]`` (about ten minutes;
the table is what ``docs/faults.md`` shows). ``tests/stores/test_fault_matrix.py`` runs a sample.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from annbatch import Loader, StoreError, create_anndata_collection
from annbatch.remote import request_pool
from annbatch.shards import scatter
from datagen import named_adata

N_OBS, N_VARS, DEADLINE_S = 200, 30, 60
MOMENTS = ("before opening", "after opening", "after the first batch", "between epochs")
Batches = list[tuple[bytes, ...]]


def write_collection(folder: Path, seed: int = 0) -> Path:
    """Write the collection of all trials."""
    folder.mkdir(exist_ok=True)
    adata = named_adata(np.random.default_rng(seed), range(N_OBS), range(N_VARS))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adata.write_h5ad(folder / "a.h5ad")
    create_anndata_collection(
        folder / "a.h5ad", folder / "bucket/cells", rows_per_store=70, chunk_elements=64, shard_elements=256,
        progress=False,
    )  # fmt: skip
    return folder / "bucket/cells"


def contents(batch: Any) -> tuple[bytes, ...]:
    arrays = (batch.data.data, batch.data.indices, batch.data.indptr, batch.index, *batch.codes.values())
    return tuple(array.tobytes() for array in arrays)


def loader_of(place: Any, **options: Any) -> Loader:
    """Open a collection, or an ``.h5ad`` file."""
    settings: dict[str, Any] = {"batch_size": 16, "chunk_size": 8, "preload_nchunks": 4} | options
    ds = Loader(**settings)
    use = ds.use_h5ad if str(place).endswith(".h5ad") else ds.use_collection
    return use(place, labels=["cell_type", "n_counts"])


def two_epochs(place: Any, inject: Callable[[str], None], **options: Any) -> Batches:
    """Read two epochs; ``inject`` is told which moment it is."""
    inject("before opening")
    found: Batches = []
    with loader_of(place, **options) as ds:
        inject("after opening")
        for epoch in range(2):
            for i, batch in enumerate(ds):
                found.append(contents(batch))
                if (epoch, i) == (0, 0):
                    inject("after the first batch")
            if not epoch:
                inject("between epochs")
    return found


def left_behind(before: int, allowed: int) -> str | None:
    """Say which threads there are that should not be, or that there are more descriptors than allowed."""
    gc.collect()
    names = [t.name for t in threading.enumerate() if t.name.startswith("annbatch") and t.name != "annbatch-requests"]
    if names:
        return f"threads {names}"
    more = sum(1 for _ in Path("/proc/self/fd").iterdir()) - before
    return f"{more} descriptors" if more > allowed else None


def outcome(
    run: Callable[[], Batches],
    wanted: Batches,
    names: str = "",
    *,
    is_remote: bool = False,
    kinds: type[Exception] | tuple[type[Exception], ...] = StoreError,
) -> str:
    """Run a trial, and say in a word what came out: ``right``, ``error``, or what is wrong with it.

    Errors are to be of these ``kinds``. Connections to an object store stay open for a while, each a descriptor, as
    many as requests may be under way.
    """
    before = sum(1 for _ in Path("/proc/self/fd").iterdir())
    began = time.monotonic()
    try:
        found = run()
    except kinds as e:
        result = "error" if names in str(e) else f"UNNAMED {e}"
    except Exception as e:  # noqa: BLE001
        result = f"UNTYPED {type(e).__name__}: {e}"
    else:
        result = "right" if found == wanted else "WRONG BATCH"
    if time.monotonic() - began > DEADLINE_S:
        return "HANG"
    left = left_behind(before, request_pool.max_requests if is_remote else 0)
    return f"LEAK of {left}" if left else result


# --- damage on disk ---------------------------------------------------------------------------------------------------


def flip(file: Path, at: int) -> None:
    raw = bytearray(file.read_bytes())
    raw[at] ^= 0x10
    file.write_bytes(raw)


def make_directory(file: Path) -> None:
    file.unlink()
    file.mkdir()


def damages(file: Path, rng: np.random.Generator) -> dict[str, Callable[[], object]]:
    """Say what may befall a file."""
    size = file.stat().st_size
    index = 16 * 4 + 4
    return {
        "cut short": lambda: file.write_bytes(file.read_bytes()[: int(rng.integers(0, size))]),
        "emptied": lambda: file.write_bytes(b""),
        "byte flipped": lambda: flip(file, int(rng.integers(0, max(1, size - index)))),
        "last bytes flipped (a shard's index)": lambda: flip(file, size - 1 - int(rng.integers(0, min(size, index)))),
        "removed": file.unlink,
        "a directory in its place": lambda: make_directory(file),
        "overwritten by zeros": lambda: file.write_bytes(bytes(size)),
        "longer than it was": lambda: file.write_bytes(file.read_bytes() + b"more"),
    }


FILES = ("X/data/c/1", "X/indices/c/0", "X/indptr/c/0", "obs/cell_type/codes/c/0")


def on_disk(
    collection: Path, wanted: Batches, rng: np.random.Generator, times: int, few: bool = False
) -> Iterator[tuple[str, str, str]]:
    """Damage each file in each way at each moment; gives kind, moment and outcome.

    With ``few`` each file, each way and each moment is there, but not with each of the others.
    """
    kinds = list(damages(collection / "chunk_1.zarr" / FILES[0], rng))
    faults = [(name, kind, moment) for name in FILES for kind in kinds for moment in MOMENTS] * times
    if few:
        faults = [
            (FILES[i % len(FILES)], kind, MOMENTS[(i + i // len(FILES)) % len(MOMENTS)]) for i, kind in enumerate(kinds)
        ]
    with tempfile.TemporaryDirectory() as folder:
        for name, kind, moment in faults:
            copy = Path(shutil.copytree(collection, Path(folder, "cells")))
            damage = damages(copy / "chunk_1.zarr" / name, rng)[kind]

            def inject(now: str, moment: str = moment, damage: Callable[[], object] = damage) -> None:
                if now == moment:
                    damage()

            yield kind, moment, outcome(lambda: two_epochs(copy, inject), wanted, name)  # noqa: B023
            shutil.rmtree(copy)


# --- faults on the way ------------------------------------------------------------------------------------------------


def on_the_way(proxy: Any, wanted: Batches, times: int) -> Iterator[tuple[str, str, str]]:
    """Let requests fail, a few of them and all of them; gives kind, moment and outcome."""
    for _ in range(times):
        for fault in ("503", "500", "403", "drop", "cut", "short", "flip", "silence"):
            for n in (1, 3, -1):
                for match in ("X/data/c", "X/indptr/c", "codes/c"):
                    for moment in MOMENTS[1:]:

                        def inject(now: str, moment: str = moment, fault: str = fault, n: int = n, match: str = match):
                            if now == moment:
                                proxy.set(fault=fault, match=match, times=n)

                        many = "all requests" if n < 0 else "a few requests"
                        kind = f"{fault} for {many}"
                        yield (
                            kind,
                            moment,
                            outcome(lambda: two_epochs("s3://bucket/cells", inject), wanted, is_remote=True),
                        )
                        proxy.calm()


# --- what befalls the cache -------------------------------------------------------------------------------------------


def cache_damages(kept: Path, rng: np.random.Generator) -> dict[str, Callable[[], object]]:
    """Say what may befall a cache: its files, and the disk under it."""

    def each(name: str) -> None:
        for file in kept.glob("*.annbatch-cache"):
            damages(file, rng)[name]()

    def fill_up() -> None:
        with suppress(OSError), (kept / "other").open("wb") as other:
            while True:
                other.write(bytes(4096))
                other.flush()

    names = ("cut short", "emptied", "byte flipped", "removed", "a directory in its place", "overwritten by zeros")
    return {name: partial(each, name) for name in names} | {"the disk is full": fill_up}


def in_the_cache(bucket: str, wanted: Batches, rng: np.random.Generator, times: int) -> Iterator[tuple[str, str, str]]:
    """Damage all files of a cache that holds what the first epoch needs, or fill the disk under an empty one."""
    for kind in [*cache_damages(Path(), rng)] * times:
        for moment in MOMENTS:
            with tempfile.TemporaryDirectory() as folder, small_disk(Path(folder)) as kept:

                def inject(now: str, kind: str = kind, moment: str = moment, kept: Path = kept) -> None:
                    if now == moment:
                        cache_damages(kept, rng)[kind]()

                def run(kind: str = kind, kept: Path = kept, inject: Callable[[str], None] = inject) -> Batches:
                    if kind != "the disk is full":
                        two_epochs(bucket, lambda now: None, cache_dir=kept)
                    return two_epochs(bucket, inject, cache_dir=kept)

                yield kind, moment, outcome(run, wanted, is_remote=True)


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """Give a folder on a file system of its own, if one can be mounted; else files that are small is all there is."""
    mounted = not subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], capture_output=True, check=False
    ).returncode
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    if not mounted:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**14, before[1]))
    try:
        yield folder
    finally:
        if mounted:
            subprocess.run(["umount", folder], check=True)
        else:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)


# --- what happens to the process --------------------------------------------------------------------------------------


@contextmanager
def alarm(after_s: float) -> Iterator[None]:
    """Raise KeyboardInterrupt in the main thread, wherever it is then."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, after_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def interrupted(place: Any, wanted: Batches, rng: np.random.Generator, times: int) -> Iterator[tuple[str, str, str]]:
    """Interrupt at random moments; the loader must be usable afterwards."""

    def run() -> Batches:
        ds = loader_of(place)
        try:
            with alarm(float(rng.uniform(0.0005, 0.05))):
                for _ in range(3):
                    for batch in ds:
                        contents(batch)
        except KeyboardInterrupt:
            pass
        ds.set_epoch(0)
        found = [contents(batch) for _ in range(2) for batch in ds]
        ds.close()
        return found

    for _ in range(times):
        yield "KeyboardInterrupt", "any", outcome(run, wanted, is_remote=isinstance(place, str))


def forked(place: Any, wanted: Batches, times: int, every: int = 3) -> Iterator[tuple[str, str, str]]:
    """Fork at every so many batches; the child reads epochs of its own."""

    def run(at: int) -> Batches:
        found: Batches = []
        child = 0
        ds = loader_of(place)
        for _ in range(2):
            for batch in ds:
                found.append(contents(batch))
                if len(found) == at:
                    with warnings.catch_warnings():
                        warnings.simplefilter("ignore")
                        child = os.fork()
                    if not child:
                        ds.set_epoch(0)
                        own = [contents(batch) for _ in range(2) for batch in ds]
                        os._exit(0 if own == wanted else 1)
        deadline = time.monotonic() + DEADLINE_S
        while (ended := os.waitpid(child, os.WNOHANG))[0] == 0:
            if time.monotonic() > deadline:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                raise TimeoutError("the child hangs")
            time.sleep(0.002)
        if ended[1]:
            raise RuntimeError(f"the child ended with {ended[1]}")
        ds.close()
        return found

    for _ in range(times):
        for at in range(1, 26, every):
            yield "fork", "any", outcome(lambda at=at: run(at), wanted)  # type: ignore[misc]


class Injected(Exception):
    """Stands for anything that may go wrong in a thread that decodes."""


def in_a_kernel_thread(place: Any, wanted: Batches, times: int, every: int = 3) -> Iterator[tuple[str, str, str]]:
    """Let the n-th call of a kernel fail."""
    real = scatter.scatter_chunks
    for _ in range(times):
        for n in range(1, 30, every):
            calls = iter(range(1, 10**6))

            def failing(*arguments: Any, n: int = n, calls: Iterator[int] = calls) -> Any:
                if next(calls) == n:
                    raise Injected
                return real(*arguments)

            def run() -> Batches:
                try:
                    return two_epochs(place, lambda now: None)
                except Injected:
                    raise StoreError("injected") from None

            scatter.scatter_chunks = failing  # type: ignore[assignment]
            try:
                yield "error in a decoding thread", "any", outcome(run, wanted, is_remote=isinstance(place, str))
            finally:
                scatter.scatter_chunks = real


def few_descriptors(place: Any, wanted: Batches, every: int = 1) -> Iterator[tuple[str, str, str]]:
    """Lower the limit of open files once the loader is open."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    in_use = max(int(path.name) for path in Path("/proc/self/fd").iterdir())
    for more in range(0, 40, every):

        def inject(now: str, more: int = more) -> None:
            if now == "after opening":
                resource.setrlimit(resource.RLIMIT_NOFILE, (in_use + 1 + more, before[1]))

        def run() -> Batches:
            try:
                return two_epochs(place, inject)
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, before)

        yield "too few descriptors", "after opening", outcome(run, wanted, is_remote=isinstance(place, str))


_CHILD = """
import sys, annbatch
ds = annbatch.Loader(batch_size=16, chunk_size=8, preload_nchunks=4, prefetch=2).use_collection(sys.argv[1])
while True:
    for i, batch in enumerate(ds):
        if i == 0:
            print("reading", flush=True)
        if sys.argv[2] == "exit" and i == int(sys.argv[3]):
            sys.exit(0)
"""


def ended(place: str, rng: np.random.Generator, times: int) -> Iterator[tuple[str, str, str]]:
    """Let processes end while they read ahead."""
    for i in range(times):
        for how in ("SIGTERM", "exit"):
            command = [sys.executable, "-c", _CHILD, place, how, str(i % 10)]
            with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
                assert process.stdout is not None
                process.stdout.readline()
                time.sleep(float(rng.uniform(0, 0.05)))
                if how == "SIGTERM":
                    process.terminate()
                try:
                    _, error = process.communicate(timeout=DEADLINE_S)
                except subprocess.TimeoutExpired:
                    process.kill()
                    result = "HANG"
                else:
                    expected = -signal.SIGTERM if how == "SIGTERM" else 0
                    result = (
                        "right" if process.returncode == expected else f"CRASH {process.returncode}: {error[-300:]!r}"
                    )
            yield {"SIGTERM": "SIGTERM", "exit": "the interpreter's exit"}[how], "any", result


def permission_lost(place: str, kept: str, collection: Path, times: int) -> Iterator[tuple[str, str, str]]:
    """Let a process become a user who may not look into the folder of the collection, or of the cache."""
    if os.geteuid():
        return
    command = [sys.executable, str(Path(__file__).with_name("cache_readers.py")), str(collection)]
    for moment in MOMENTS[1:] * times:
        with tempfile.TemporaryDirectory() as folder:
            output = Path(folder, "output")
            task = [moment, place, str(Path(folder, kept)) if kept else "", 10**9, 1, str(output)]
            try:
                answer = subprocess.run(
                    command, input=json.dumps(task), stdout=subprocess.PIPE, text=True, timeout=DEADLINE_S, check=True
                ).stdout
                result = str(pickle.loads((output / "0").read_bytes())) if answer == "true\n" else "CRASH"
            except subprocess.TimeoutExpired:
                result = "HANG"
        yield "permission lost", moment, result


# --- the table --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Trial:
    """One injected fault."""

    where: str
    kind: str
    moment: str
    result: str


def trials(collection: Path, proxy: Any, seed: int, times: int) -> Iterator[Trial]:
    """Run all trials."""
    rng = np.random.default_rng(seed)
    wanted = two_epochs(collection, lambda now: None)
    bucket = "s3://bucket/cells"
    for where, found in (
        ("local file", on_disk(collection, wanted, rng, times)),
        ("object store", on_the_way(proxy, wanted, times)),
        ("cache on disk", in_the_cache(bucket, wanted, rng, times)),
        ("cache on disk", permission_lost(bucket, "kept", collection, times)),
        ("local file", permission_lost(str(collection), "", collection, times)),
        ("local process", interrupted(collection, wanted, rng, 40 * times)),
        ("process with object store", interrupted(bucket, wanted, rng, 20 * times)),
        ("local process", forked(collection, wanted, 2 * times)),
        ("local process", in_a_kernel_thread(collection, wanted, times)),
        ("process with object store", in_a_kernel_thread(bucket, wanted, times)),
        ("local process", few_descriptors(collection, wanted)),
        ("process with object store", few_descriptors(bucket, wanted)),
        ("local process", ended(str(collection), rng, 5 * times)),
        ("process with object store", ended(bucket, rng, 3 * times)),
    ):
        for kind, moment, result in found:
            yield Trial(where, kind, moment, result)


def table(done: list[Trial]) -> str:
    """Give the Markdown of all trials."""
    counts = Counter((t.where, t.kind, t.moment, t.result if t.result in ("right", "error") else "bad") for t in done)
    lines = ["| where | what | when | trials | right batches | typed error | anything else |",
             "| --- | --- | --- | ---: | ---: | ---: | ---: |"]  # fmt: skip
    for where, kind, moment in dict.fromkeys((t.where, t.kind, t.moment) for t in done):
        right, error, bad = (counts[where, kind, moment, result] for result in ("right", "error", "bad"))
        lines.append(f"| {where} | {kind} | {moment} | {right + error + bad} | {right} | {error} | {bad} |")
    bad = sum(1 for t in done if t.result not in ("right", "error"))
    lines.append(f"| | | **all** | **{len(done)}** | | | **{bad}** |")
    return "\n".join(lines) + "\n"


@contextmanager
def served(collection: Path) -> Iterator[Any]:
    """Serve the collection's bucket behind a proxy; faults that stay are given up soon."""
    from object_servers import fault_proxy, s3_environment, s3_server

    before = request_pool.RETRY_S, request_pool.IDLE_S
    request_pool.RETRY_S, request_pool.IDLE_S = 1.0, 1.0
    try:
        with s3_server(collection.parents[1]) as port, fault_proxy(port) as proxy:
            os.environ.update(s3_environment(proxy.port))
            yield proxy
    finally:
        request_pool.RETRY_S, request_pool.IDLE_S = before


def main() -> None:
    """Run the matrix from the command line."""
    parser = argparse.ArgumentParser(description="Inject faults while a collection is read.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--times", type=int, default=1, help="how often each fault is injected at each moment")
    parser.add_argument("--table", type=Path, help="where to write the table")
    arguments = parser.parse_args()
    done: list[Trial] = []
    with tempfile.TemporaryDirectory() as folder:
        collection = write_collection(Path(folder))
        with served(collection) as proxy:
            for trial in trials(collection, proxy, arguments.seed, arguments.times):
                done.append(trial)
                if trial.result not in ("right", "error"):
                    print(trial, flush=True)
    text = table(done)
    print(text)
    if arguments.table:
        arguments.table.write_text(text)
    sys.exit(any(trial.result not in ("right", "error") for trial in done))


if __name__ == "__main__":
    main()
