"""Do real cells get from ``.h5ad`` files into a torch and a Flax model, and do both learn?

1. Take 700 peripheral blood cells that the scanpy package carries, and recover their integer counts.
2. Hold out a quarter of each cell type. Write both parts as two files each, with different genes and cell types.
3. Make a shuffled collection of each part.
4. Stream it into a torch logistic regression and into a Flax MLP that predict the cell type.
5. Score both on the held-out cells, against always guessing the most frequent type.
6. Time reading on a larger generated collection.
7. Print a table and draw a picture, ``demo_output/demo.png``.

Example: ``make demo``
"""

from __future__ import annotations

import platform
import shutil
import time
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np

import annbatch
from annbatch_jax import JaxLoader
from annbatch_torch import TorchLoader
from blood.cells import LABEL, blood_cells, held_out, write_two_files
from blood.course import Course
from blood.models import train_flax, train_torch
from blood.picture import draw
from harness.generate import Spec, generate
from harness.jobs import Matrix
from harness.machine import describe_machine
from harness.results import median
from harness.touch import touch

OUTPUT = Path("demo_output")
SEED = 0
READING = {"batch_size": 64, "chunk_size": 16, "preload_nchunks": 16, "seed": SEED}
GENERATED = {"cells": 20_000, "genes": 5_000, "nnz": 500, "files": 1}


def collection(cells: ad.AnnData, name: str) -> Path:
    """Write ``cells`` as two files and make a shuffled collection of them."""
    output = OUTPUT / name / "collection"
    annbatch.create_anndata_collection(
        adata_paths=write_two_files(cells, OUTPUT / name / "files"), output_path=output, shuffle=True, seed=SEED
    )
    return output


def loader(path: Path, label: str = LABEL, **options: Any) -> annbatch.Loader:
    """Open a collection as the demo reads it, but for ``options``."""
    return annbatch.Loader(**{**READING, **options}).use_collection(path, labels=[label])


def compositions(train: annbatch.Loader, file_codes: np.ndarray, n_types: int) -> dict[str, np.ndarray]:
    """Give the share of each type in all cells, in a file's first rows and in an epoch's first batches."""

    def shares(codes: np.ndarray) -> np.ndarray:
        return np.bincount(codes, minlength=n_types) / len(codes)

    seen = [batch.codes[LABEL] for batch in train]
    result = {"all cells": shares(np.concatenate(seen))}
    result |= {f"batch {number}": shares(codes) for number, codes in enumerate(seen[:8], start=1)}
    return result | {"first 64 of a file": shares(file_codes[: len(seen[0])])}


def reading_speeds() -> dict[str, list[float]]:
    """Time epochs of a generated collection through the core and through both adapters; every value is read."""
    folder = OUTPUT / "generated"
    files = generate(Spec(**GENERATED), folder)["files"]
    annbatch.create_anndata_collection(
        adata_paths=[folder / name for name in files], output_path=folder / "collection", shuffle=True, seed=SEED
    )
    readers: dict[str, tuple[Any, Callable[[Any], object]]]
    with loader(folder / "collection", batch_size=2048, chunk_size=512, preload_nchunks=16, label="cell_type") as ds:
        readers = {
            "annbatch, CSR in NumPy": (ds, lambda batch: touch(Matrix.of_csr(batch.data))),
            "torch, sparse CSR": (TorchLoader(ds), lambda batch: batch["data"].values().sum().item()),
            "JAX, padded CSR": (JaxLoader(ds), lambda batch: batch["data"].data.sum().block_until_ready()),
        }
        return {name: cells_per_s(batches, ds.n_obs, read) for name, (batches, read) in readers.items()}


def cells_per_s(batches: Iterable[Any], n_obs: int, read: Callable[[Any], object]) -> list[float]:
    """Time five epochs after one that does not count."""
    found = []
    for _ in range(6):
        started = time.perf_counter()
        for batch in batches:
            read(batch)
        found.append(n_obs / (time.perf_counter() - started))
    return found[1:]


def print_tables(
    majority: str, baseline: float, courses: list[Course], speeds: dict[str, list[float]], n_cells: int
) -> None:
    """Print what was predicted, what was read, and on what."""
    print(f"\n{f'prediction of {n_cells} held-out cells':<34} right")
    print(f"{f'always {majority!r}':<34} {baseline:.1%}")
    for course in courses:
        print(f"{course.name:<34} {course.test_accuracy[-1]:.1%}")
    read = f"reading {GENERATED['cells']:,} × {GENERATED['genes']:,}"
    print(f"\n{read:<34} median of five epochs, and all of them")
    for name, rates in speeds.items():
        middle = median({"cells_per_s": rates})
        print(f"{name:<34} {middle:,.0f} cells/s (from {min(rates):,.0f} to {max(rates):,.0f})")
    packages = ", ".join(f"{name} {version(name)}" for name in ("annbatch-dlpack", "zarr", "zarrs", "anndata", "numpy"))
    print(f"\n{describe_machine()}, Python {platform.python_version()}, {packages}")


def main() -> None:
    started = time.perf_counter()
    shutil.rmtree(OUTPUT, ignore_errors=True)
    OUTPUT.mkdir()
    cells = blood_cells()
    labels = cells.obs[LABEL].astype(str).to_numpy()
    chosen = held_out(labels, np.random.default_rng(SEED))
    train_path, test_path = collection(cells[~chosen].copy(), "train"), collection(cells[chosen].copy(), "held_out")

    with loader(train_path) as train, loader(test_path, shuffle=False) as test:
        types = list(train.categories[LABEL])
        if types != list(test.categories[LABEL]) or list(train.var.index) != list(test.var.index):
            raise ValueError("both collections must have the same cell types and genes")
        print(f"{train.n_obs} blood cells to train on, {test.n_obs} held out, {train.n_vars} genes, {len(types)} types")
        courses = [train_torch(train, test, len(types)), train_flax(train, test, len(types))]
        file_labels = ad.read_h5ad(OUTPUT / "train" / "files" / "laboratory0.h5ad").obs[LABEL].astype(str)
        shares = compositions(train, np.array([types.index(label) for label in file_labels]), len(types))

    names, counts = np.unique(labels[~chosen], return_counts=True)
    majority = str(names[counts.argmax()])
    baseline = float(np.mean(labels[chosen] == majority))
    print_tables(majority, baseline, courses, reading_speeds(), int(chosen.sum()))
    draw(OUTPUT / "demo.png", courses, baseline, shares, types)
    print(f"\n{OUTPUT / 'demo.png'}, {time.perf_counter() - started:.0f} s in all")
    for result in courses:
        if result.test_accuracy[-1] < baseline + 0.2:
            raise SystemExit(f"{result.name} did not learn: {result.test_accuracy[-1]:.1%} against {baseline:.1%}")


if __name__ == "__main__":
    main()
