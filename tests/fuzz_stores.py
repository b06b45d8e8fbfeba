"""Does a hostile store crash the reader, or get a column number out of bounds into a batch?

Each input is a small AnnData store with something changed, structure-aware: a field of a ``zarr.json`` (removed, of
another type, extreme, another field's value), a shard's index or a chunk with its checksum forged to fit, values of
``indptr`` or ``indices``, or raw bytes of any file. It is read through the loader, or its arrays one by one, and every
batch is checked.

Only `AnnbatchError` and what Python raises for it may come out. A crash ends the process, and its input is known by
seed and number; memory is limited, so that what takes too much of it shows.

Usage: ``python tests/fuzz_stores.py [--seed 0] [--inputs 1000] [--results FILE]``
"""

from __future__ import annotations

import argparse
import copy
import json
import resource
import shutil
import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import zarr

from annbatch import Loader
from annbatch.codecs import Workspace
from annbatch.errors import AnnbatchError
from annbatch.native import crc32c
from annbatch.shards import ShardedArray
from annbatch.store import Wanted, _open_path
from datagen import named_matrix

N_OBS, N_VARS, CHUNK, SHARD = 40, 12, 16, 64
EXTREMES: list[Any] = [
    *(0, 1, -1, 2, 3, 7, 8, 255, 2**16, 2**31 - 1, 2**31, 2**32, 2**53, 2**62, 2**63 - 1, 2**63, 2**64 - 1, 2**64),
    *(-(2**63), None, True, "", "x", "\x00", "uint8", "int64", "float64", "NaN", "0x7fc00000", "../../x", 0.5, 1e308),
    *([], {}, [0], [2**40], [-1]),
    *(["bytes"], {"name": "blosc"}, {"name": "pickle"}, {"name": "numcodecs.zstd", "configuration": {"level": 1}}),
]  # fmt: skip


def write(folder: Path) -> None:
    """Write the store that all inputs are made from."""
    x = named_matrix(np.random.default_rng(1), range(N_OBS), range(N_VARS), density=0.4)
    root = zarr.create_group(str(folder), overwrite=True)
    root.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
    group = root.create_group("X")
    group.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": list(x.shape)})
    compressors = [zarr.codecs.BloscCodec(cname="lz4", shuffle="shuffle"), zarr.codecs.Crc32cCodec()]
    for name, values in (("data", x.data), ("indices", x.indices.astype(np.int32))):
        array = group.create_array(
            name, shape=values.shape, dtype=values.dtype, chunks=(CHUNK,), shards=(SHARD,), compressors=compressors
        )
        array[:] = values
    indptr = group.create_array("indptr", shape=x.indptr.shape, dtype=np.int64, chunks=(16,), compressors=None)
    indptr[:] = x.indptr
    obs = pd.DataFrame({"kind": pd.Categorical(["a", "b"] * (N_OBS // 2))}, index=[f"cell{i}" for i in range(N_OBS)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ad.io.write_elem(root, "obs", obs)
        ad.io.write_elem(root, "var", pd.DataFrame(index=[f"g{i}" for i in range(N_VARS)]))


# --- mutations --------------------------------------------------------------------------------------------------------


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Give the paths to all fields of a JSON value."""
    found = [at] if at else []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        found += places(inner, (*at, key))
    return found


def look_up(value: Any, at: tuple[Any, ...]) -> Any:
    for key in at:
        value = value[key]
    return value


def mutate_metadata(file: Path, rng: np.random.Generator) -> None:
    """Change one to three fields."""
    root = json.loads(file.read_text())
    for _ in range(int(rng.integers(1, 4))):
        all_places = places(root)
        if not all_places:
            break
        *parents, key = all_places[rng.integers(len(all_places))]
        parent = look_up(root, tuple(parents))
        kind = rng.integers(4)
        if kind == 0:
            del parent[key]
        elif kind == 1:
            parent[key] = copy.deepcopy(EXTREMES[rng.integers(len(EXTREMES))])
        elif kind == 2:
            parent[key] = copy.deepcopy(look_up(root, all_places[rng.integers(len(all_places))]))
        elif isinstance(parent[key], int) and not isinstance(parent[key], bool):
            parent[key] += int(rng.integers(-3, 4))
        elif isinstance(parent[key], list):
            parent[key] = parent[key] * 2
    file.write_text(json.dumps(root))


def mutate_bytes(raw: bytearray, rng: np.random.Generator, first: int = 0, stop: int | None = None) -> None:
    """Change some bytes in place."""
    stop = len(raw) if stop is None else stop
    if stop <= first:
        return
    for _ in range(int(rng.integers(1, 6))):
        raw[int(rng.integers(first, stop))] = int(rng.choice([0, 1, 0x7F, 0x80, 0xFF, int(rng.integers(256))]))


def mutate_shard(file: Path, rng: np.random.Generator) -> None:
    """Change a shard's index, or a chunk, and forge the checksums."""
    raw = bytearray(file.read_bytes())
    n = SHARD // CHUNK
    start = len(raw) - (16 * n + 4)
    index = np.frombuffer(bytes(raw[start:-4]), "<u8").copy()
    k = int(rng.integers(n))
    at, size = int(index[2 * k]), int(index[2 * k + 1])
    if rng.random() < 0.4:
        extremes = [0, 1, 4, 5, 16, at, size, len(raw), len(raw) - at, start, 2**31, 2**63, 2**64 - 1]
        index[int(rng.integers(2 * n))] = int(rng.choice(np.array(extremes, np.uint64)))
    elif at + size <= start and size > 4:
        # The header of a blosc chunk is where a forger would begin.
        mutate_bytes(raw, rng, at, at + (size - 4 if rng.random() < 0.5 else min(16, size - 4)))
        crc = crc32c(np.frombuffer(bytes(raw[at : at + size - 4]), np.uint8))
        raw[at + size - 4 : at + size] = int(crc).to_bytes(4, "little")
    raw[start:-4] = index.tobytes()
    raw[-4:] = int(crc32c(np.frombuffer(bytes(raw[start:-4]), np.uint8))).to_bytes(4, "little")
    file.write_bytes(raw)


def mutate_values(store: Path, rng: np.random.Generator) -> None:
    """Write other numbers into ``indptr``, ``indices`` or codes, by zarr."""
    name = str(rng.choice(["X/indptr", "X/indices", "obs/kind/codes"]))
    array: Any = zarr.open_array(str(store / name), mode="r+")
    values = array[:]
    info = np.iinfo(values.dtype)
    extremes = np.array([info.min, -1, 0, 1, N_VARS - 1, N_VARS, 2**7 - 1, info.max, info.max - 1], object)
    for _ in range(int(rng.integers(1, 4))):
        values[int(rng.integers(len(values)))] = extremes[rng.integers(len(extremes))]
    array[:] = values


def mutate_file(file: Path, rng: np.random.Generator) -> None:
    """Change raw bytes of a file, or its length."""
    raw = bytearray(file.read_bytes())
    kind = rng.integers(4)
    if kind == 0:
        raw = raw[: int(rng.integers(0, len(raw) + 1))]
    elif kind == 1:
        raw += rng.bytes(int(rng.integers(1, 64)))
    elif kind == 2 and len(raw) > 1:
        a, b = sorted(rng.integers(0, len(raw), 2).tolist())
        raw[a:b] = b""
    else:
        mutate_bytes(raw, rng)
    file.write_bytes(raw)


def mutate(store: Path, rng: np.random.Generator) -> tuple[str, Path]:
    """Change something; give what kind of change it was, and the file that it was made in."""
    kind = str(rng.choice(["metadata", "metadata of X", "shard", "values", "bytes"], p=[0.15, 0.35, 0.25, 0.1, 0.15]))
    if kind == "values":
        mutate_values(store, rng)
        return kind, store
    if kind == "shard":
        file = store / f"X/{rng.choice(['data', 'indices'])}/c/{rng.integers(2)}"
        mutate_shard(file, rng)
        return kind, file
    below = store / "X" if kind == "metadata of X" else store
    files = sorted(below.rglob("zarr.json" if "metadata" in kind else "*"))
    files = [file for file in files if file.is_file()]
    file = files[rng.integers(len(files))]
    (mutate_metadata if "metadata" in kind else mutate_file)(file, rng)
    return kind, file


# --- reading ----------------------------------------------------------------------------------------------------------


def read_arrays(store: Path, workspace: Workspace) -> None:
    """Read the arrays of X by the kernels alone."""
    for name in ("data", "indices", "indptr"):
        array = ShardedArray.open(store / "X" / name)
        if isinstance(array, str):
            continue
        n = min(int(np.prod(array.shape)), 2**16)
        array.read_ranges(workspace, np.array([0, n // 2]), np.array([n // 3, n]))


def read_batches(store: Path, rng: np.random.Generator) -> None:
    """Read batches, and check what a consumer relies on."""
    opened = _open_path(store, {}, Wanted(("kind",), ("X",)))
    ds = Loader(batch_size=int(rng.integers(1, 9)), chunk_size=4, preload_nchunks=4, threads=1, prefetch=0)
    ds._add([opened], [])
    for i, batch in enumerate(ds):
        x = batch.data
        assert x.indptr[0] == 0
        assert (np.diff(x.indptr) >= 0).all()
        assert x.indptr[-1] == len(x.data) == len(x.indices)
        assert len(x.indices) == 0 or (x.indices.min() >= 0 and x.indices.max() < ds.n_vars), "OUT OF BOUNDS"
        codes = batch.codes["kind"]
        if codes.dtype == np.int32:
            assert len(codes) == 0 or (codes.min() >= -1 and codes.max() < len(ds.categories["kind"])), "OUT OF BOUNDS"
        if i > 20:
            break


def main() -> None:
    """Read mutated stores."""
    parser = argparse.ArgumentParser(description="Read hostile stores.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--inputs", type=int, default=1000)
    parser.add_argument("--results", type=Path, help="where to write the counts, as JSON")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    resource.setrlimit(resource.RLIMIT_AS, (16 << 30, 16 << 30))
    counts: Counter[str] = Counter()
    workspace = Workspace()
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        pristine, store = Path(folder, "pristine"), Path(folder, "store.zarr")
        write(pristine)
        read_batches(pristine, np.random.default_rng(0))
        for number in range(arguments.inputs):
            rng = np.random.default_rng([arguments.seed, number])
            shutil.copytree(pristine, store)
            kind, file = mutate(store, rng)
            try:
                if rng.random() < 0.7 and file.is_relative_to(store / "X"):
                    read_arrays(store, workspace)
                else:
                    read_batches(store, rng)
                result = "read"
            except AnnbatchError as e:
                result = type(e).__name__
            except AssertionError:
                print(f"seed {arguments.seed}, input {number}: {kind} in {file}", flush=True)
                raise
            except Exception as e:  # noqa: BLE001
                result = f"other: {type(e).__name__}"
            counts[f"{kind}: {result}"] += 1
            shutil.rmtree(store)
    record = {"seed": arguments.seed, "inputs": arguments.inputs, "crashes": 0, "out_of_bounds": 0, "outcomes": counts}
    print(json.dumps(record, indent=1, sort_keys=True))
    if arguments.results:
        arguments.results.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
    sys.exit(0)


if __name__ == "__main__":
    main()
