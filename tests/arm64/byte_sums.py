"""Which bytes do builds, orders and batches give on this machine?

Prints the versions of packages that may change the bytes, then one line for each subject: a name, and the SHA-256 of
its bytes. Two architectures agree if they print the same lines.

    python tests/arm64/byte_sums.py

1. `collections`: every file of a collection, for each codec, and with dense X.
2. `orders`: the rows of two epochs, for each sampler, alone and for three ranks.
3. `batches`: values, columns, rows and labels of every batch of an epoch.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

import numpy as np

sys.path.append(str(Path(__file__).parents[1] / "support"))

from annbatch import Collection, Loader, create_anndata_collection
from annbatch.order.schedule import Schedule, Settings
from annbatch.testing.epochs import epoch_batches
from annbatch.write.array_layout import Codec
from datagen import write_inputs
from orders import NAMES, classes_of, sampler_of

PACKAGES = ("numpy", "scipy", "pandas", "anndata", "zarr", "zarrs", "numcodecs", "blosc2", "numba")
"""Those that may change the bytes."""

CUT: dict[str, Any] = {"rows_per_store": 200, "chunk_elements": 512, "shard_elements": 2048, "progress": False}
N_ROWS = 400


def digest(parts: Iterable[bytes]) -> str:
    """Give the SHA-256 of byte strings, each with its length."""
    found = hashlib.sha256()
    for part in parts:
        found.update(len(part).to_bytes(8, "little"))
        found.update(part)
    return found.hexdigest()


def collections() -> dict[str, Collection]:
    """Write collections into the working directory: manifests name inputs as they were given."""
    inputs = write_inputs(Path(), sizes=(300, 260), columns=[range(90), range(5, 95)])
    built = {codec: create_anndata_collection(inputs, Path(codec), codec=codec, **CUT) for codec in get_args(Codec)}
    return built | {"dense": create_anndata_collection(inputs, Path("dense"), dense=["X"], **CUT)}


def files_of(folder: Path) -> Iterator[bytes]:
    """Give the names and the contents of all files."""
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        yield path.relative_to(folder).as_posix().encode()
        yield path.read_bytes()


def orders(name: str) -> Iterator[bytes]:
    """Give the rows of each batch of each rank."""
    sampler = sampler_of(name, N_ROWS, 8)
    schedule = Schedule(Settings(sampler, 8, 4, 3, 7, False), (N_ROWS,), classes_of(sampler.columns, N_ROWS), None, {})
    for epoch, count in ((0, 1), (1, 1), (0, 3)):
        for rank in epoch_batches(schedule, epoch, count):
            yield from (np.array(batch, "<i8").tobytes() for batch in rank)


def batches(collection: Collection) -> Iterator[bytes]:
    """Give the arrays of each batch of an epoch."""
    with Loader(batch_size=32, seed=3).use_collection(collection.path, labels=["cell_type", "n_counts", "score"]) as ds:
        for batch in ds:
            x = batch.data
            arrays = (x,) if isinstance(x, np.ndarray) else (x.data, x.indices, x.indptr)
            yield from (array.tobytes() for array in (*arrays, batch.index, *batch.codes.values()))
            yield batch.labels.to_csv().encode()


def main() -> None:
    """Print all lines."""
    for package in PACKAGES:
        print("version", package, version(package))
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for name, collection in collections().items():
            print("collection", name, digest(files_of(collection.path)))
            print("batches", name, digest(batches(collection)))
        os.chdir(os.path.sep)
    for name in NAMES:
        print("order", name.replace(" ", "-"), digest(orders(name)))


if __name__ == "__main__":
    main()
