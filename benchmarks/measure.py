"""What else should a user know about the loader's speed?

Each command below answers one question with the workers of the main benchmark, and writes its own file of results:

1. ``first-batch``: how long after opening does the first batch come, with kernels cached on disk and without?
2. ``wait``: what share of the time does a training step of 10 ms wait for data?
3. ``counting``: how much does an epoch slow down pure Python in the same process, and the other way round?
4. ``chunk-size``, ``threads``: how does speed depend on them?
5. ``inner-chunk``: which inner chunk size serves which block size best?
6. ``codecs``: how much space does a collection take with each codec, and how fast is it read?
7. ``checksum``: what do the inner checksums cost?
8. ``labels``: what do twenty obs columns cost where batches are small?
9. ``growth``: does speed last as the collection grows ten-fold?
10. ``whole``: how fast are whole files read into memory?
11. ``workers``: what does torch's ``DataLoader`` with worker processes make of it?
12. ``ranks``: what do several processes that share the rows, as training ranks do, read together?

Usage: ``python benchmarks/measure.py COMMAND [options]``
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from harness.contenders.registry import CONTENDERS, Job, Setting
from harness.plots import plot_lines
from harness.results import options, prepared, print_table, save
from harness.rounds import Bench, Worker, measure, runnable

BLOCKS = Setting("512x32")
SMALL_BLOCKS = Setting("32x256", chunk_size=32, preload_nchunks=256)
SINGLE_ROWS = Setting("1x16384", chunk_size=1, preload_nchunks=16384)
Rows = list[dict[str, Any]]


def job(bench: Bench, contender: str, setting: Setting, label: str = "") -> list[Job]:
    """Give a job as a list of one, or an empty list with a message where the contender cannot run."""
    return [Job(name, setting, bench.files, str(store), label) for name, store in runnable(bench, [contender])]


def first_batch(arguments: argparse.Namespace) -> None:
    """Start processes that open a store and take one batch, with an empty kernel cache and with a filled one."""
    bench = prepared(arguments)
    rows: Rows = []
    for contender in ("direct", "peer"):
        for one in job(bench, contender, BLOCKS):
            with tempfile.TemporaryDirectory() as cache:
                for cold in (True, False):
                    name = "kernels compiled" if cold else "kernels cached"
                    row: dict[str, Any] = {"setting": name, "open_s": [], "first_batch_s": []}
                    for _ in range(arguments.rounds):
                        if cold:
                            shutil.rmtree(cache)
                            Path(cache).mkdir()
                        worker = Worker(bench, one, {"NUMBA_CACHE_DIR": cache})
                        answer = worker.run(cells=1)
                        row["open_s"].append(round(worker.open_s, 3))
                        row["first_batch_s"].append(round(answer["first_batch_s"], 3))
                        worker.close()
                    rows.append({"contender": worker.title, **row})
                    medians = np.median(row["open_s"]), np.median(row["first_batch_s"])
                    print(
                        f"{worker.title}, {name}: open {medians[0]:.2f} s, first batch {medians[1]:.2f} s", flush=True
                    )
                    if contender == "peer":
                        break
    save("first-batch", arguments, bench.facts, rows)


def wait(arguments: argparse.Namespace) -> None:
    """Run epochs under a training step of 10 ms that keeps a core busy, and one that waits as for a GPU.

    The wait for the first batch of an epoch, which nothing can hide, is told apart from the others.
    """
    bench = prepared(arguments)
    rows: Rows = []
    for batch_size in (128, 512, 1024):
        setting = replace(BLOCKS, name=f"batch {batch_size}", batch_size=batch_size)
        for contender in ("direct", "peer"):
            for one in job(bench, contender, setting):
                worker = Worker(bench, one)
                worker.run(at_most_s=bench.warm_up_s)
                for busy in (True, False):
                    step = "busy" if busy else "idle"
                    row: dict[str, Any] = {"contender": worker.title, "setting": setting.name, "step": step}
                    row |= {"wait_share": [], "wait_share_with_first": []}
                    for _ in range(arguments.rounds):
                        seconds = bench.total_s / bench.rounds
                        answer = worker.run(cells=10**12, at_most_s=seconds, step_s=0.01, busy=busy)
                        work_s, wait_s, first_s = answer["step_s"], answer["wait_s"], answer["wait_first_s"]
                        row["wait_share"].append(round(wait_s / (wait_s + work_s), 4))
                        row["wait_share_with_first"].append(round((wait_s + first_s) / (wait_s + first_s + work_s), 4))
                    rows.append(row)
                    shares = np.median(row["wait_share"]), np.median(row["wait_share_with_first"])
                    print(f"{worker.title}, {setting.name}, {step} step: waits {shares[0]:.1%} ({shares[1]:.1%})")
                worker.close()
    save("wait", arguments, bench.facts, rows)


def counting(arguments: argparse.Namespace) -> None:
    """Count in a thread beside an epoch in the same process, and in another process beside the same epoch.

    Both sides are timed: the counts, and the cells that the loader hands over meanwhile.
    """
    bench = prepared(arguments)
    rows: Rows = []
    for contender in ("direct", "zarr", "peer"):
        for one in job(bench, contender, BLOCKS):
            worker, other = Worker(bench, one), Worker(bench, one)
            seconds = bench.total_s / bench.rounds
            worker.run(at_most_s=bench.warm_up_s)
            row: dict[str, Any] = {"contender": worker.title, "setting": one.setting.name}
            row |= {key: [] for key in ("inside_per_s", "beside_per_s", "lost", "cells_inside", "cells_beside")}
            for _ in range(arguments.rounds):
                inside = worker.run(cells=10**12, at_most_s=seconds, count=True)
                worker.send(cells=10**12, at_most_s=seconds)
                counts_beside = other.run(count_for_s=0.9 * seconds)["counts_per_s"]
                beside = worker.receive()
                row["inside_per_s"].append(round(inside["counts_per_s"]))
                row["beside_per_s"].append(round(counts_beside))
                row["lost"].append(round(1 - inside["counts_per_s"] / counts_beside, 4))
                row["cells_inside"].append(round(inside["cells"] / inside["seconds"], 1))
                row["cells_beside"].append(round(beside["cells"] / beside["seconds"], 1))
            rows.append(row)
            print(
                f"{worker.title}: a counting thread loses {np.median(row['lost']):.1%}; "
                f"{np.median(row['cells_inside']):,.0f} cells/s beside it, "
                f"{np.median(row['cells_beside']):,.0f} beside a counting process",
                flush=True,
            )
            worker.close()
            other.close()
    save("counting", arguments, bench.facts, rows)


def sweep(arguments: argparse.Namespace, kind: str, key: str, settings: list[Setting], names: list[str]) -> None:
    """Time contenders over settings that differ in one field, and draw a line for each."""
    bench = prepared(arguments)
    rows: Rows = []
    for setting in settings:
        print(f"{key} {getattr(setting, key)}", flush=True)
        found = measure(bench, [one for name in names for one in job(bench, name, setting)])
        rows += [row | {key: getattr(setting, key)} for row in found]
    print_table(rows)
    plot_lines(save(kind, arguments, bench.facts, rows), key, key)


def chunk_size(arguments: argparse.Namespace) -> None:
    """Go through block sizes, with windows of 16,384 rows throughout."""
    settings = [
        Setting(f"{size}x{16384 // size}", chunk_size=size, preload_nchunks=16384 // size)
        for size in (1, 4, 16, 32, 64, 128, 256, 512, 1024)
    ]
    sweep(arguments, "chunk-size", "chunk_size", settings, ["direct", "peer"])


def threads(arguments: argparse.Namespace) -> None:
    """Go through numbers of threads, up to the cores that there are and once beyond."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    counts = [n for n in (1, 2, 4, 8, 16, 32, 64) if n <= 2 * cores]
    settings = [replace(BLOCKS, name=f"{n} threads", threads=n) for n in counts]
    sweep(arguments, "threads", "threads", settings, ["direct", "peer", "limit"])


def inner_chunk(arguments: argparse.Namespace) -> None:
    """Write our store with several inner chunk sizes and read each with several block sizes."""
    bench = prepared(arguments)
    rows: Rows = []
    stores = {}
    for elements in (2**14, 2**15, 2**16, 2**17, 2**18):
        stores[elements] = bench.store(f"ours-{elements}")
        if not (stores[elements] / "collection.json").exists():
            from annbatch import create_anndata_collection

            print(f"writing {stores[elements]}", flush=True)
            stores[elements].parent.mkdir(exist_ok=True)
            create_anndata_collection(bench.files, stores[elements], chunk_elements=elements, progress=False)
    for size in (32, 64, 128, 256, 512):
        setting = Setting(f"{size}x{16384 // size}", chunk_size=size, preload_nchunks=16384 // size)
        jobs = [
            Job("direct", setting, bench.files, str(store), f"chunks of {elements:,} elements")
            for elements, store in stores.items()
        ]
        rows += [row | {"chunk_size": size} for row in measure(bench, jobs)]
    print_table(rows)
    plot_lines(save("inner-chunk", arguments, bench.facts, rows), "chunk_size", "chunk_size")


def codecs(arguments: argparse.Namespace) -> None:
    """Read our stores of all codecs, at three block sizes, and weigh them."""
    bench = prepared(arguments)
    rows: Rows = []
    for setting in (BLOCKS, SMALL_BLOCKS, SINGLE_ROWS):
        jobs = [one for name in ("direct", "direct-delta", "direct-zstd") for one in job(bench, name, setting)]
        found = measure(bench, jobs)
        print_table(found, reference=CONTENDERS["direct"].title)
        for row, one in zip(found, jobs, strict=True):
            n_bytes = json.loads(Path(f"{one.store}.json").read_text())["bytes"]
            rows.append(row | {"bytes_per_cell": n_bytes / bench.facts["n_obs"]})
    save("codecs", arguments, bench.facts, rows)


def without_checksums(source: Path, target: Path) -> None:
    """Copy a collection, leaving out the inner checksums of X."""
    import zarr
    from zarr.codecs import Crc32cCodec

    from annbatch import Collection

    shutil.copytree(source, target)
    for store in target.glob("*.zarr"):
        for name in ("data", "indices"):
            old = zarr.open_array(store / "X" / name, mode="r")
            assert old.shards is not None
            new = zarr.create_array(
                store / "X" / f"{name}-plain",
                shape=old.shape,
                dtype=old.dtype,
                chunks=old.chunks,
                shards=old.shards,
                filters=None,
                serializer=old.serializer,
                compressors=[codec for codec in old.compressors if not isinstance(codec, Crc32cCodec)],
                attributes=dict(old.attrs),
            )
            for start in range(0, old.shape[0], old.shards[0]):
                new[start : start + old.shards[0]] = old[start : start + old.shards[0]]
            shutil.rmtree(store / "X" / name)
            (store / "X" / f"{name}-plain").rename(store / "X" / name)
    collection = Collection.open(target)
    # The files are others than those that the manifest records.
    replace(collection, stores=tuple(replace(store, files={}) for store in collection.stores)).save(target)


def checksum(arguments: argparse.Namespace) -> None:
    """Read our store, and a copy of it without the inner checksums."""
    bench = prepared(arguments)
    jobs = job(bench, "direct", BLOCKS, "with checksums")
    plain = bench.store("ours-without-checksums")
    if not plain.exists():
        without_checksums(Path(jobs[0].store), plain)
    jobs.append(replace(jobs[0], store=str(plain), label="without checksums"))
    rows = measure(bench, jobs)
    print_table(rows, reference="without checksums")
    save("checksum", arguments, bench.facts, rows)


def growth(arguments: argparse.Namespace) -> None:
    """Time a collection and one ten times as large, with 500 stored elements a cell."""
    arguments.nnz = 500
    benches = [prepared(arguments), prepared(arguments, cells=10 * arguments.cells)]
    rows: Rows = []
    for setting in (BLOCKS, SINGLE_ROWS):
        jobs, sizes = [], {}
        for bench in benches:
            for contender in ("direct", "peer"):
                for one in job(bench, contender, setting):
                    title = CONTENDERS[contender].title
                    jobs.append(replace(one, label=f"{title}, {bench.facts['n_obs']:,} cells"))
                    sizes[jobs[-1].label] = {"contender": title, "n_obs": bench.facts["n_obs"]}
        found = measure(benches[0], jobs)
        print_table(found)
        rows += [row | sizes[row["contender"]] for row in found]
    save("growth", arguments, benches[1].facts, rows)


def whole(arguments: argparse.Namespace) -> None:
    """Read whole files into memory: uncompressed HDF5 against our sharded store with zarrs."""
    bench = prepared(arguments)
    setting = Setting("whole files")
    rows = measure(bench, [one for name in ("read-h5ad", "read-zarr") for one in job(bench, name, setting)])
    print_table(rows)
    save("whole", arguments, bench.facts, rows)


def labels(arguments: argparse.Namespace) -> None:
    """Time small batches with one obs column and with twenty, in turn."""
    bench = prepared(arguments)
    settings = [Setting("1 obs column", batch_size=128), Setting("20 obs columns", batch_size=128, columns=20)]
    rows = measure(
        bench, [one for name in ("direct", "peer") for setting in settings for one in job(bench, name, setting)]
    )
    print_table(rows)
    save("labels", arguments, bench.facts, rows)


def workers(arguments: argparse.Namespace) -> None:
    """Time the loader for torch alone, and inside torch's DataLoader with workers that persist."""
    bench = prepared(arguments)
    rows = measure(bench, [one for name in CONTENDERS if name.startswith("torch") for one in job(bench, name, BLOCKS)])
    print_table(rows, reference=CONTENDERS["torch"].title)
    save("workers", arguments, bench.facts, rows)


def ranks(arguments: argparse.Namespace) -> None:
    """Let 1, 4 and 16 processes share the rows of ten times as many cells, of 500 stored elements, all at once.

    The processes of a number share the machine's cores; their rounds are interleaved with those of the other numbers.
    """
    arguments.nnz = 500
    bench = prepared(arguments, cells=10 * arguments.cells)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    groups: dict[int, list[Worker]] = {}
    for n in (1, 4, 16):
        settings = [replace(BLOCKS, threads=max(1, cores // n), rank=rank, ranks=n) for rank in range(n)]
        groups[n] = [Worker(bench, one) for setting in settings for one in job(bench, "direct", setting)]
    found: dict[int, list[dict[str, Any]]] = {n: [] for n in groups}
    for number in range(arguments.rounds + 1):
        for n, workers in groups.items():
            for worker in workers:
                worker.send(cells=10**12, at_most_s=bench.total_s / bench.rounds)
            answers = [worker.receive() for worker in workers]
            if number:
                rates = [answer["cells"] / answer["seconds"] for answer in answers]
                found[n].append({"rates": rates, "peak": sum(answer["peak_rss_bytes"] for answer in answers)})
                print(f"{n} process(es): {sum(rates):,.0f} cells/s together", flush=True)
    rows: Rows = [
        {
            "contender": f"{n} processes" if n > 1 else "1 process",
            "setting": BLOCKS.name,
            "cells_per_s": [round(sum(one["rates"]), 1) for one in each],
            "slowest_cells_per_s": [round(min(one["rates"]), 1) for one in each],
            "peak_rss_bytes": each[-1]["peak"],
            "processes": n,
        }
        for n, each in found.items()
    ]
    for workers in groups.values():
        for worker in workers:
            worker.close()
    print_table(rows, reference="1 process")
    save("ranks", arguments, bench.facts, rows)


COMMANDS: dict[str, Callable[[argparse.Namespace], None]] = {
    "first-batch": first_batch,
    "wait": wait,
    "counting": counting,
    "chunk-size": chunk_size,
    "threads": threads,
    "inner-chunk": inner_chunk,
    "codecs": codecs,
    "checksum": checksum,
    "labels": labels,
    "growth": growth,
    "whole": whole,
    "workers": workers,
    "ranks": ranks,
}


def main() -> None:
    """Run one measurement from the command line."""
    parser = options("Answer one question about the loader's speed.")
    parser.add_argument("command", choices=COMMANDS)
    arguments = parser.parse_args()
    COMMANDS[arguments.command](arguments)


if __name__ == "__main__":
    main()
