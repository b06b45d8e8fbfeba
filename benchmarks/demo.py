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

import shutil
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import jax
import jax.numpy as jnp
import numpy as np
import optax
import scanpy as sc
import scipy.sparse as sp
import torch
from flax import nnx

import annbatch
from annbatch_jax import JaxLoader, densify
from annbatch_torch import TorchLoader
from harness.generate import Spec, generate
from picture import Course, draw
from read_speed import Speed, Sums, machine, measure

OUTPUT = Path("demo_output")
LABEL = "bulk_labels"
SEED = 0
EPOCHS = 30
READING = {"batch_size": 64, "chunk_size": 16, "preload_nchunks": 16, "seed": SEED}
GENERATED = {"cells": 20_000, "genes": 5_000, "nnz": 500, "files": 1}


# --- cells -----------------------------------------------------------------------------------------------------------


def blood_cells() -> ad.AnnData:
    """Give the 700 cells with integer counts as X.

    The package has log1p of counts that were scaled per cell. Every cell has a gene that was counted once, so its
    smallest value is the scale. The values carry about four digits: within 0.2 % they must be integers.

    Raises
    ------
    ValueError
        If a value is further than that from an integer.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what the stored file says about its own age
        cells = sc.datasets.pbmc68k_reduced()
    logged = sp.csr_matrix(cells.raw.X)
    scaled = np.expm1(logged.data.astype(np.float64))
    lengths = np.diff(logged.indptr)
    counts = scaled / np.repeat(np.minimum.reduceat(scaled, logged.indptr[:-1]), lengths)
    whole = np.rint(counts)
    if not np.allclose(counts, whole, rtol=2e-3, atol=0):
        raise ValueError(f"counts must be integers within 0.2 %, one is off by {np.abs(counts - whole).max()}")
    logged.data = whole.astype(np.float32)
    return ad.AnnData(X=logged, obs=cells.obs[[LABEL, "phase", "n_genes"]].copy(), var=cells.raw.var.copy())


def held_out(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Choose a quarter of each type: a mask, (n_obs,) bool."""
    chosen = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        chosen[rows[: round(len(rows) / 4)]] = True
    return chosen


def write_two_files(cells: ad.AnnData, folder: Path) -> list[Path]:
    """Write ``cells`` as two files such as two laboratories would hand in.

    Each lacks other genes (one in twenty) and one cell type, and each is sorted by cell type: only a real shuffle
    makes batches of them that look like the whole.
    """
    folder.mkdir(parents=True)
    labels = cells.obs[LABEL].astype(str).to_numpy()
    first = np.arange(cells.n_obs) % 2 == 0
    first |= labels == "CD4+/CD45RA+/CD25- Naive T"
    first &= labels != "CD34+"
    paths = []
    for number, rows in enumerate([first, ~first]):
        order = np.flatnonzero(rows)
        order = order[np.argsort(labels[order], kind="stable")]
        genes = np.arange(cells.n_vars) % 20 != number
        path = folder / f"laboratory{number}.h5ad"
        cells[order, genes].copy().write_h5ad(path)
        paths.append(path)
    return paths


def collection(cells: ad.AnnData, name: str) -> Path:
    """Write ``cells`` as two files and make a shuffled collection of them."""
    output = OUTPUT / name / "collection"
    annbatch.create_anndata_collection(
        adata_paths=write_two_files(cells, OUTPUT / name / "files"), output_path=output, shuffle=True, seed=SEED
    )
    return output


# --- training --------------------------------------------------------------------------------------------------------


def train_torch(train: annbatch.Loader, test: annbatch.Loader, n_types: int) -> Course:
    """Fit a logistic regression on dense torch tensors."""
    torch.manual_seed(SEED)
    model = torch.nn.Linear(train.n_vars, n_types)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=1e-2)

    def logits(counts: torch.Tensor) -> torch.Tensor:
        return model(torch.log1p(1000 * counts / counts.sum(dim=1, keepdim=True)))

    def fit(batch: Any) -> float:
        loss = torch.nn.functional.cross_entropy(logits(batch["data"]), batch.codes[LABEL])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        return loss.item()

    @torch.no_grad()
    def score(batch: Any) -> tuple[float, int, int]:
        scores, codes = logits(batch["data"]), batch.codes[LABEL]
        loss = torch.nn.functional.cross_entropy(scores, codes, reduction="sum")
        return loss.item(), int((scores.argmax(dim=1) == codes).sum()), len(codes)

    return course(
        "torch, logistic regression", TorchLoader(train, layout="dense"), TorchLoader(test, layout="dense"), fit, score
    )


class MLP(nnx.Module):
    """Two layers; takes the padded sparse batch and makes it dense under jit."""

    def __init__(self, n_vars: int, n_types: int, rngs: nnx.Rngs) -> None:
        self.hidden = nnx.Linear(n_vars, 64, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.out = nnx.Linear(64, n_types, rngs=rngs)

    def __call__(self, batch: Any) -> jax.Array:
        counts = densify(batch)
        total = jnp.maximum(counts.sum(axis=1, keepdims=True), 1)
        return self.out(self.dropout(nnx.relu(self.hidden(jnp.log1p(1000 * counts / total)))))


def train_flax(train: annbatch.Loader, test: annbatch.Loader, n_types: int) -> Course:
    """Fit an MLP on padded sparse JAX arrays; a short batch is filled with rows of code -1, which count nothing."""
    model = MLP(train.n_vars, n_types, nnx.Rngs(SEED))
    optimiser = nnx.Optimizer(model, optax.adamw(2e-3, weight_decay=1e-2), wrt=nnx.Param)

    def summed_loss(model: MLP, data: Any, codes: jax.Array) -> tuple[jax.Array, jax.Array]:
        scores, real = model(data), codes >= 0
        losses = optax.softmax_cross_entropy_with_integer_labels(scores, jnp.maximum(codes, 0))
        return jnp.where(real, losses, 0).sum(), scores

    @nnx.jit
    def step(model: MLP, optimiser: nnx.Optimizer, data: Any, codes: jax.Array) -> jax.Array:
        def mean_loss(model: MLP) -> jax.Array:
            return summed_loss(model, data, codes)[0] / (codes >= 0).sum()

        loss, gradient = nnx.value_and_grad(mean_loss)(model)
        optimiser.update(model, gradient)
        return loss

    @nnx.jit
    def evaluate(model: MLP, data: Any, codes: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        loss, scores = summed_loss(model, data, codes)
        return loss, (scores.argmax(axis=1) == codes).sum(), (codes >= 0).sum()

    def fit(batch: Any) -> float:
        model.train()
        return float(step(model, optimiser, batch["data"], batch.codes[LABEL]))

    def score(batch: Any) -> tuple[float, int, int]:
        model.eval()
        loss, right, count = evaluate(model, batch["data"], batch.codes[LABEL])
        return float(loss), int(right), int(count)

    return course("Flax, MLP with 64 hidden units", JaxLoader(train), JaxLoader(test), fit, score)


def course(
    name: str, train: Any, test: Any, fit: Callable[[Any], float], score: Callable[[Any], tuple[float, int, int]]
) -> Course:
    """Train for `EPOCHS` epochs; each pass over ``train`` comes in another order."""
    result = Course(name)
    for _ in range(EPOCHS):
        result.train_loss.append(float(np.mean([fit(batch) for batch in train])))
        losses, rights, counts = zip(*(score(batch) for batch in test), strict=True)
        result.test_loss.append(sum(losses) / sum(counts))
        result.test_accuracy.append(sum(rights) / sum(counts))
    return result


# --- the whole -------------------------------------------------------------------------------------------------------


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


def reading_speeds() -> dict[str, Speed]:
    """Time epochs of a generated collection through the core and through both adapters; every value is read."""
    folder = OUTPUT / "generated"
    files = generate(Spec(**GENERATED), folder)["files"]
    annbatch.create_anndata_collection(
        adata_paths=[folder / name for name in files], output_path=folder / "collection", shuffle=True, seed=SEED
    )
    touches: dict[str, tuple[Any, Callable[[Any], object]]]
    with loader(folder / "collection", batch_size=2048, chunk_size=512, preload_nchunks=16, label="cell_type") as ds:
        touches = {
            "annbatch, CSR in NumPy": (ds, Sums().add),
            "torch, sparse CSR": (TorchLoader(ds), lambda batch: batch["data"].values().sum().item()),
            "JAX, padded CSR": (JaxLoader(ds), lambda batch: batch["data"].data.sum().block_until_ready()),
        }
        return {name: measure(batches, ds.n_obs, 5, touch) for name, (batches, touch) in touches.items()}


def print_table(majority: str, baseline: float, courses: list[Course], speeds: dict[str, Speed], n_cells: int) -> None:
    """Print what was predicted and what was read."""
    print(f"\n{f'prediction of {n_cells} held-out cells':<34} right")
    print(f"{f'always {majority!r}':<34} {baseline:.1%}")
    for course in courses:
        print(f"{course.name:<34} {course.test_accuracy[-1]:.1%}")
    read = f"reading {GENERATED['cells']:,} × {GENERATED['genes']:,}"
    print(f"\n{read:<34} median of five epochs, and all of them")
    for name, speed in speeds.items():
        print(f"{name:<34} {speed}")
    print(f"\n{machine()}")


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
    print_table(majority, baseline, courses, reading_speeds(), int(chosen.sum()))
    draw(OUTPUT / "demo.png", courses, baseline, shares, types)
    print(f"\n{OUTPUT / 'demo.png'}, {time.perf_counter() - started:.0f} s in all")
    for result in courses:
        if result.test_accuracy[-1] < baseline + 0.2:
            raise SystemExit(f"{result.name} did not learn: {result.test_accuracy[-1]:.1%} against {baseline:.1%}")


if __name__ == "__main__":
    main()
