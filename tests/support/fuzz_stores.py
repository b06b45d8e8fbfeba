"""Does a hostile store crash or hang the reader, or get something wrong out of it?

Each input is a small collection, AnnData store or ``.h5ad`` file with something changed (`mutations`): fields of the
metadata, a shard's index or chunks with checksums forged to fit, values of ``indptr``, ``indices`` or codes, raw bytes.
It is read on one of the `WAYS`: by the kernels alone, by loaders directly, through zarr or from an object store, as an
input of a build, or by a whole build.

1. Children read inputs by the thousand (`read_inputs`), and say what came of each. A child that dies, or is silent for
   `SILENT_S`, is a finding that names the input; another child goes on behind it. Memory is limited.
2. Only an `AnnbatchError` that names the store may come out, or what is right: column numbers, ``indptr`` and codes in
   their bounds, and the batches of the unchanged collection where checksums were not forged.
3. What came out is counted by kind, way and outcome, and added to a file of results.

Usage: ``python tests/support/fuzz_stores.py [--seed 0] [--inputs 1000] [--results FILE]``
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

from annbatch import Loader, create_anndata_collection
from annbatch.errors import AnnbatchError
from annbatch.remote import request_pool
from annbatch.shards.codecs import Workspace
from annbatch.shards.local_array import ShardedArray
from annbatch.sources import Sources
from annbatch.stores import array_opening
from annbatch.write.inputs.contents import describe
from annbatch.write.inputs.matrix_rows import matrix_of, read_dense, read_rows
from annbatch.write.inputs.opening import as_origins
from datagen import named_matrix
from former_codecs import with_differences
from mutations import Base, Mutation, mutate, write
from stores import opened_store

N_OBS, N_VARS, CHUNK, SHARD = 48, 12, 16, 64
LABELS = ("kind", "n")
SILENT_S = 300
"""A hang; long, since a busy machine is slow."""
START_S = 1200
"""What a child may take to begin."""
PER_PROCESS = 5000
"""Inputs that one child reads."""
METHOD = "spawn"
"""How a child is started: with nothing in its memory that it could spoil."""


# --- what is mutated --------------------------------------------------------------------------------------------------


def write_bases(folder: Path) -> None:
    """Write what all inputs are made from, each in a directory of its own."""
    x = named_matrix(np.random.default_rng(1), range(N_OBS), range(N_VARS), density=0.4)
    obs = pd.DataFrame(
        {
            "kind": pd.Categorical(["a", "b"] * (N_OBS // 2)),
            "n": np.arange(N_OBS),
            "word": [f"w{i % 3}" for i in range(N_OBS)],
            "some": pd.arrays.IntegerArray(np.arange(N_OBS), np.arange(N_OBS) % 3 == 0),
        },
        index=[f"cell{i}" for i in range(N_OBS)],
    )
    adata = ad.AnnData(x, obs, pd.DataFrame(index=[f"g{i}" for i in range(N_VARS)]))
    adata.layers["dense"] = x.toarray()
    adata.obsm["pca"] = np.ones((N_OBS, 2), np.float32)
    cut: dict[str, Any] = {"chunk_elements": CHUNK, "shard_elements": SHARD}
    create_anndata_collection(adata, folder / "collection", **cut, progress=False)
    with_differences(create_anndata_collection(adata, folder / "differences", **cut, progress=False))
    for name, zarr_format in (("v2", 2), ("v3", 3)):
        with ad.settings.override(zarr_write_format=zarr_format):
            adata.write_zarr(folder / name / "a.zarr")
    adata.layers["columns"] = sp.csc_matrix(x)
    (folder / "h5ad").mkdir()
    adata.write_h5ad(folder / "h5ad/a.h5ad")


# --- ways to read -----------------------------------------------------------------------------------------------------


def read_arrays(folder: Path, workspace: Workspace) -> None:
    """Read the arrays of X by the kernels alone."""
    for name in ("data", "indices", "indptr"):
        array = ShardedArray.open(folder / "chunk_0.zarr/X" / name)
        if isinstance(array, str):
            continue
        n = min(int(np.prod(array.shape)), 2**16)
        array.read_ranges(workspace, np.array([0, n // 2]), np.array([n // 3, n]))


def loader(rng: np.random.Generator) -> Loader:
    """Make one of a few loaders, whose right batches are known."""
    return Loader(batch_size=int(rng.choice([3, 8])), chunk_size=4, preload_nchunks=4, threads=1, prefetch=0)


def batches_of(ds: Loader) -> list[tuple[bytes, ...]]:
    """Read batches, and check what a consumer relies on."""
    found = []
    for i, batch in enumerate(ds):
        x = batch.data
        assert x.indptr[0] == 0
        assert (np.diff(x.indptr) >= 0).all(), "indptr falls"
        assert x.indptr[-1] == len(x.data) == len(x.indices), "indptr does not fit"
        assert len(x.indices) == 0 or (x.indices.min() >= 0 and x.indices.max() < ds.n_vars), "column out of bounds"
        for name, categories in ds.categories.items():
            codes = batch.codes[name]
            assert len(codes) == 0 or (codes.min() >= -1 and codes.max() < len(categories)), "code out of bounds"
        arrays = (x.data, x.indices, x.indptr, batch.index, *batch.codes.values())
        found.append(tuple(array.tobytes() for array in arrays))
        if i == 20:
            break
    return found


def read_collection(folder: Path, rng: np.random.Generator, *, direct: bool = True) -> tuple[Any, ...]:
    """Read a collection in a directory, directly or through zarr."""
    array_opening.DIRECT = direct
    try:
        ds = loader(rng).use_collection(folder, labels=LABELS)
        return ds.batch_size, batches_of(ds)
    finally:
        array_opening.DIRECT = True


def read_remote(folder: Path, rng: np.random.Generator) -> tuple[Any, ...]:
    """Read a collection as from an object store."""
    from obstore.store import LocalStore

    ds = loader(rng).use_collection(LocalStore(prefix=str(folder)), labels=LABELS)
    return ds.batch_size, batches_of(ds)


def read_store(folder: Path, rng: np.random.Generator) -> None:
    """Read the AnnData store of another program."""
    opened = opened_store(folder / "a.zarr", None, ("X", "layers/dense", "obsm/pca"))
    ds = Loader(batch_size=8, chunk_size=4, preload_nchunks=4, threads=1, prefetch=0, layers=["dense"], obsm=["pca"])
    ds._use(Sources((opened,)))
    batches_of(ds)


def read_input(path: Path) -> None:
    """Read an input of a build, as the build does."""
    (origin,) = as_origins([path], None)
    source, _ = describe(origin)
    with origin.open() as root:
        root.obs_names()
        for name in source.columns:
            root.column(name)
        for key, info in source.matrices.items():
            where, n_vars = f"{path}: {key}", info.shape[1]
            matrix, rows = matrix_of(source.element(root, key), where), slice(0, source.n_obs)
            if matrix.format == "dense":
                read_dense(matrix, rows, None, n_vars, where)
            elif matrix.row_starts(where) is not None and matrix.format == "csr":
                for piece in read_rows(matrix, rows, np.arange(n_vars), n_vars, where):
                    indices = piece.rows.indices
                    assert len(indices) == 0 or (indices.min() >= 0 and indices.max() < n_vars), "out of bounds"


def build(path: Path, rng: np.random.Generator) -> None:
    """Build a collection of an input, and read it."""
    with tempfile.TemporaryDirectory(dir=path.parents[1]) as folder:
        create_anndata_collection(path, Path(folder, "built"), progress=False, threads=1, memory_limit="64MB")
        batches_of(loader(rng).use_collection(Path(folder, "built"), labels=[]))


Way = tuple[str, str, float, Callable[..., Any]]
WAYS: tuple[Way, ...] = (
    ("arrays", "arrays", 0.5, lambda folder, rng, workspace: read_arrays(folder, workspace)),
    ("direct", "collection", 0.12, lambda folder, rng, workspace: read_collection(folder, rng)),
    ("differences", "differences", 0.08, lambda folder, rng, workspace: read_collection(folder, rng)),
    ("through zarr", "collection", 0.06, lambda folder, rng, workspace: read_collection(folder, rng, direct=False)),
    ("remote", "collection", 0.05, lambda folder, rng, workspace: read_remote(folder, rng)),
    ("foreign v3", "v3", 0.04, lambda folder, rng, workspace: read_store(folder, rng)),
    ("foreign v2", "v2", 0.04, lambda folder, rng, workspace: read_store(folder, rng)),
    ("input v3", "v3", 0.025, lambda folder, rng, workspace: read_input(folder / "a.zarr")),
    ("input v2", "v2", 0.025, lambda folder, rng, workspace: read_input(folder / "a.zarr")),
    ("input h5ad", "h5ad", 0.05, lambda folder, rng, workspace: read_input(folder / "a.h5ad")),
    ("build of v2", "v2", 0.005, lambda folder, rng, workspace: build(folder / "a.zarr", rng)),
    ("build of h5ad", "h5ad", 0.005, lambda folder, rng, workspace: build(folder / "a.h5ad", rng)),
)
"""Name, what is read, how often, and how."""


# --- inputs -----------------------------------------------------------------------------------------------------------


class Reader:
    """Reads inputs one after the other, and puts right again what each changed."""

    def __init__(self, pristine: Path, folder: Path) -> None:
        self._bases = {path.name: Base.of(path, N_VARS).copy(folder / path.name) for path in pristine.iterdir()}
        whole = self._bases["collection"]
        self._bases["arrays"] = whole.below("chunk_0.zarr/X/")
        self._folder = folder
        self._workspace = Workspace()
        self._right: dict[int, Any] = {}
        seed = 0
        while len(self._right) < 2:
            batch_size, found = read_collection(folder / "collection", np.random.default_rng(seed))
            self._right[batch_size] = found
            seed += 1

    def read(self, seed: int, number: int) -> tuple[str, str | None]:
        """Read an input: what came out, and what is wrong with that."""
        rng = np.random.default_rng([seed, number])
        way, name, _, function = WAYS[rng.choice(len(WAYS), p=[way[2] for way in WAYS])]
        base = self._bases[name]
        mutation = mutate(base, rng)
        for key, stored in mutation.files.items():
            write(base.folder / key, stored)
        try:
            outcome, wrong = self._outcome(way, partial(function, base.folder, rng, self._workspace), mutation)
        finally:
            for key in mutation.files:
                write(base.folder / key, base.files[key])
        return f"{way}: {mutation.kind}: {outcome}", None if wrong is None else f"{way}: {mutation}: {wrong}"

    def _outcome(self, way: str, read: Callable[[], Any], mutation: Mutation) -> tuple[str, str | None]:
        try:
            found = read()
        except AnnbatchError as e:
            named = str(self._folder) in str(e) or "memory://" in str(e) or "file://" in str(e)
            return type(e).__name__, None if named else f"names no store: {e}"
        except AssertionError as e:
            return "wrong", f"{e or 'an assertion failed'}"
        except Exception as e:  # noqa: BLE001
            return "untyped error", "".join(traceback.format_exception(e)[-12:])
        # zarr does not compare files without checksums of their own.
        is_seen = way != "through zarr" or "/X/data/" in mutation.name or "/X/indices/" in mutation.name
        if found is not None and "/c/" in mutation.name and is_seen and not mutation.is_hidden:
            batch_size, batches = found
            if batches != self._right[batch_size]:
                return "wrong", "other batches than those of the unchanged collection"
        return "read", None


def read_inputs(connection: Connection, pristine: Path, seed: int, first: int, stop: int) -> None:
    """Read inputs ``first`` to ``stop`` in a process of its own, and tell what came out."""
    warnings.simplefilter("ignore")
    resource.setrlimit(resource.RLIMIT_AS, (16 << 30, 16 << 30))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    request_pool.RETRY_S = 0.2
    with tempfile.TemporaryDirectory(dir=pristine.parent) as folder:
        reader = Reader(pristine, Path(folder))
        connection.send(None)
        for number in range(first, stop):
            connection.send(reader.read(seed, number))


def outcomes(pristine: Path, seed: int, n_inputs: int) -> Iterator[tuple[int, str, str | None]]:
    """Have all inputs read by children; gives number, outcome and finding of each."""
    context = multiprocessing.get_context(METHOD)
    done = 0
    while done < n_inputs:
        stop = min(done + PER_PROCESS, n_inputs)
        receiver, sender = context.Pipe(duplex=False)
        child = context.Process(target=read_inputs, args=(sender, pristine, seed, done, stop))
        child.start()
        sender.close()
        ready = False
        while done < stop:
            if not receiver.poll(SILENT_S if ready else START_S):
                child.kill()
                yield done, "hang", f"no answer within {SILENT_S} s"
                done += 1
                break
            try:
                answer = receiver.recv()
            except EOFError:
                child.join()
                if not ready:
                    raise RuntimeError("a child ended before it read anything") from None
                yield done, "crash", f"the process ended with {child.exitcode}"
                done += 1
                break
            ready = True
            if answer is not None:
                yield done, *answer
                done += 1
        child.join()


def record_of(results: Path | None) -> dict[str, Any]:
    """Give what earlier runs found, to add to it."""
    if results is not None and results.exists():
        found: dict[str, Any] = json.loads(results.read_text())
        return found
    return {"inputs": 0, "runs": [], "findings": [], "outcomes": {}}


def run(seed: int, n_inputs: int) -> tuple[Counter[str], list[dict[str, Any]]]:
    """Have inputs read; gives how often each outcome came, and the findings."""
    counts: Counter[str] = Counter()
    findings = []
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        pristine = Path(folder, "pristine")
        pristine.mkdir()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            write_bases(pristine)
        for number, outcome, finding in outcomes(pristine, seed, n_inputs):
            counts[outcome] += 1
            if finding is not None:
                print(f"seed {seed}, input {number}: {outcome}: {finding}", file=sys.stderr, flush=True)
                findings.append({"seed": seed, "input": number, "what": finding})
    return counts, findings


def main() -> None:
    """Read mutated stores."""
    parser = argparse.ArgumentParser(description="Read hostile stores.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--inputs", type=int, default=1000)
    parser.add_argument("--results", type=Path, help="JSON file of counts that this run is added to")
    arguments = parser.parse_args()
    counts, findings = run(arguments.seed, arguments.inputs)
    record = record_of(arguments.results)
    record["inputs"] += arguments.inputs
    record["runs"].append({"seed": arguments.seed, "inputs": arguments.inputs})
    record["findings"] += findings
    record["outcomes"] = dict(sorted((counts + Counter(record["outcomes"])).items()))
    print(json.dumps(record, indent=1))
    if arguments.results:
        arguments.results.write_text(json.dumps(record, indent=1) + "\n")
    sys.exit(bool(findings))


if __name__ == "__main__":
    main()
