"""How does speed depend on how a collection is stored?

1. ``inner-chunk``: which inner chunk size serves which block size best?
2. ``codecs``: how much space does a collection take with each codec, and how fast is it read?
3. ``checksum``: what do the inner checksums cost?
4. ``whole``: how fast are whole files read into memory?
"""

from __future__ import annotations

import argparse
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import zarr
from zarr.codecs import Crc32cCodec

from annbatch import Collection, create_anndata_collection
from harness.command_line import prepared
from harness.contenders.registry import CONTENDERS
from harness.jobs import Job
from harness.plots import plot_lines
from harness.results import print_table, save
from harness.rounds import measure
from harness.settings import BLOCKS, SINGLE_ROWS, SMALL_BLOCKS, Setting
from harness.stores import jobs_of


def inner_chunk(arguments: argparse.Namespace) -> None:
    """Write our store with several inner chunk sizes and read each with several block sizes."""
    bench = prepared(arguments)
    rows: list[dict[str, Any]] = []
    stores = {}
    for elements in (2**14, 2**15, 2**16, 2**17, 2**18):
        stores[elements] = bench.store(f"ours-{elements}")
        if not (stores[elements] / "collection.json").exists():
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
    rows: list[dict[str, Any]] = []
    for setting in (BLOCKS, SMALL_BLOCKS, SINGLE_ROWS):
        jobs = jobs_of(bench, ("direct", "direct-packed", "direct-zstd"), setting)
        found = measure(bench, jobs)
        print_table(found, reference=CONTENDERS["direct"].title)
        for row, one in zip(found, jobs, strict=True):
            n_bytes = json.loads(Path(f"{one.store}.json").read_text())["bytes"]
            rows.append(row | {"bytes_per_cell": n_bytes / bench.facts["n_obs"]})
    save("codecs", arguments, bench.facts, rows)


def without_checksums(source: Path, target: Path) -> None:
    """Copy a collection, leaving out the inner checksums of X."""
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
    jobs = jobs_of(bench, ["direct"], BLOCKS, "with checksums")
    plain = bench.store("ours-without-checksums")
    if not plain.exists():
        without_checksums(Path(jobs[0].store), plain)
    jobs.append(replace(jobs[0], store=str(plain), label="without checksums"))
    rows = measure(bench, jobs)
    print_table(rows, reference="without checksums")
    save("checksum", arguments, bench.facts, rows)


def whole(arguments: argparse.Namespace) -> None:
    """Read whole files into memory: uncompressed HDF5 against our sharded store with zarrs."""
    bench = prepared(arguments)
    rows = measure(bench, jobs_of(bench, ("read-h5ad", "read-zarr"), Setting("whole files")))
    print_table(rows)
    save("whole", arguments, bench.facts, rows)
