"""How random are batches, and how random do they have to be?

1. Generate cells, and arrange them as files of an atlas come: file by file, in each file cell type by cell type, in
   plates of neighbours (`arranged`).
2. Write two collections of them: one shuffled, one in the order of the files.
3. For each block size and window size, train a softmax regression for one epoch on nine tenths of the cells. On the
   way, compute the entropy of each batch's composition (cell type, plate, source file), as a share of what batches of
   uniformly drawn cells have.
4. Test the classifier on the other tenth. All with several seeds.
5. Write JSON, and a figure beside it.

Usage: ``python benchmarks/randomness.py [--cells 60000] [--genes 2000] [--nnz 6] [--seeds 3]``
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

import annbatch
from annbatch_torch import TorchLoader
from harness.command_line import options
from harness.generate import Spec, generate
from harness.mixing import entropy_bits
from harness.plots import GRID, INK, OURS, plt, style, write_figure
from harness.results import save

BATCH_SIZE = 128
BLOCKS = (1, 4, 16, 64, 256, 1024, 4096)
WINDOWS = (1024, 4096, 16384)
LABELS = {"cell_type": "cell type", "plate": "plate", "src_path": "source file"}
COLLECTIONS = {True: "shuffled when written", False: "in the order of the files"}


def arranged(spec: Spec, folder: Path) -> list[Path]:
    """Write the cells of ``spec`` again, in each file cell type by cell type, plates of neighbours; give the files."""
    facts = generate(spec, folder)
    written = []
    for i, name in enumerate(facts["files"]):
        path = folder / f"arranged_{i}.h5ad"
        if not path.exists():
            cells = ad.read_h5ad(folder / name)
            cells = cells[np.argsort(cells.obs["cell_type"].cat.codes.to_numpy(), kind="stable")].copy()
            plates = i * 8 + np.arange(cells.n_obs) * 8 // cells.n_obs
            cells.obs = pd.DataFrame(
                {"cell_type": cells.obs["cell_type"], "plate": pd.Categorical([f"plate {p:02d}" for p in plates])}
            )
            cells.write_h5ad(path)
        written.append(path)
    return written


def uniform_entropy(codes: npt.NDArray[Any]) -> float:
    """Mean entropy of batches of uniformly drawn cells, from a thousand such batches."""
    rng = np.random.default_rng(0)
    draws = [rng.choice(codes, BATCH_SIZE, replace=False) for _ in range(1000)]
    return float(np.mean([entropy_bits(draw) for draw in draws]))


def features(counts: torch.Tensor) -> torch.Tensor:
    """Shares of each cell's counts, per hundred, on a logarithmic scale."""
    return torch.log1p(counts * (100 / counts.sum(1, keepdim=True).clamp(min=1)))


def run(collection: Path, block: int, window: int, seed: int) -> dict[str, Any]:
    """Train for one epoch; give the accuracy on held-out cells and the batches' entropies."""
    whole = annbatch.Loader(batch_size=BATCH_SIZE, chunk_size=block, preload_nchunks=window // block, seed=seed)
    whole.use_collection(collection, labels=list(LABELS))
    held_out = np.random.default_rng(1).random(whole.n_obs) < 0.1
    parts = whole.split({"train": ~held_out, "test": held_out})
    train, test = (TorchLoader(parts[name], layout="dense") for name in ("train", "test"))
    n_types = len(train.categories["cell_type"])
    torch.manual_seed(seed)
    model = torch.nn.Linear(train.n_vars, n_types)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    found: dict[str, list[float]] = {name: [] for name in LABELS}
    for batch in train:
        if len(batch["index"]) == BATCH_SIZE:
            for name, values in found.items():
                values.append(entropy_bits(batch.codes[name].numpy()))
        loss = torch.nn.functional.cross_entropy(model(features(batch["data"])), batch.codes["cell_type"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        right = sum(int((model(features(batch["data"])).argmax(1) == batch.codes["cell_type"]).sum()) for batch in test)
    whole.close()
    return {"accuracy": right / test.n_obs, "entropy": {name: float(np.mean(found[name])) for name in LABELS}}


def measure(collection: Path, shuffled: bool, seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Go through all block and window sizes."""
    loader = annbatch.Loader(batch_size=4096, shuffle=False).use_collection(collection, labels=list(LABELS))
    codes = {name: np.concatenate([batch.codes[name] for batch in loader]) for name in LABELS}
    uniform = {name: uniform_entropy(codes[name]) for name in LABELS}
    rows = []
    for window, block in itertools.product(WINDOWS, BLOCKS):
        if block > window:
            continue
        runs = [run(collection, block, window, seed) for seed in seeds]
        row = {
            "collection": COLLECTIONS[shuffled],
            "chunk_size": block,
            "window_rows": window,
            "accuracy": [one["accuracy"] for one in runs],
            "entropy_share": {name: [one["entropy"][name] / uniform[name] for one in runs] for name in LABELS},
        }
        rows.append(row)
        shares = ", ".join(f"{name} {np.median(values):.3f}" for name, values in row["entropy_share"].items())
        print(
            f"{row['collection']:<26} blocks of {block:>4}, windows of {window:>6}: "
            f"accuracy {np.median(row['accuracy']):.3f}, entropy {shares}",
            flush=True,
        )
    return rows


def plot(path: Path, rows: list[dict[str, Any]]) -> None:
    """Draw entropy and accuracy over the block size, a line a window size, a column a collection."""
    style()
    figure, panels = plt.subplots(2, 2, figsize=(7.6, 5.4), sharex=True, sharey="row", layout="constrained")
    shades = dict(zip(WINDOWS, ("#c77d11", OURS, INK), strict=True))
    for column, (title, window) in itertools.product(range(2), itertools.product(("entropy", "accuracy"), WINDOWS)):
        name = list(COLLECTIONS.values())[column]
        own = [row for row in rows if row["collection"] == name and row["window_rows"] == window]
        axes = panels[0 if title == "entropy" else 1, column]
        x = [row["chunk_size"] for row in own]
        values = [row["entropy_share"]["cell_type"] if title == "entropy" else row["accuracy"] for row in own]
        axes.plot(x, [np.median(v) for v in values], color=shades[window], lw=2, label=f"windows of {window:,} rows")
        for at, points in zip(x, values, strict=True):
            axes.scatter([at] * len(points), points, s=8, color=shades[window], lw=0, alpha=0.7)
        axes.set_xscale("log", base=4)
        axes.set_xticks(BLOCKS, [f"{block:,}" for block in BLOCKS])
        axes.minorticks_off()
        axes.grid(color=GRID, lw=0.6)
    for column, name in enumerate(COLLECTIONS.values()):
        panels[0, column].set_title(f"collection {name}")
        panels[1, column].set_xlabel("rows in a block (chunk_size)")
    panels[0, 0].set_ylabel("entropy of cell types in a batch,\nshare of uniform sampling")
    panels[1, 0].set_ylabel("accuracy on held-out cells\nafter one epoch")
    panels[0, 0].legend(frameon=False, fontsize=8, loc="lower left")
    write_figure(figure, path)


def main() -> None:
    """Run from the command line."""
    parser = options("Measure how random batches are, and what it does to a classifier.")
    parser.set_defaults(cells=60_000, genes=2_000, nnz=6)
    parser.add_argument("--seeds", type=int, default=3, help="runs of each setting")
    arguments = parser.parse_args()
    spec = Spec(cells=arguments.cells, genes=arguments.genes, nnz=arguments.nnz, files=4, seed=arguments.seed)
    folder = arguments.work / f"randomness-{spec.cells}x{spec.genes}-{spec.nnz}-{spec.seed}"
    files = arranged(spec, folder)
    rows = []
    for shuffled, name in ((True, "shuffled"), (False, "as-it-came")):
        collection = folder / name
        if not collection.exists():
            annbatch.create_anndata_collection(files, collection, shuffle=shuffled, progress=False)
        rows += measure(collection, shuffled, range(arguments.seeds))
    plot(save("randomness", arguments, generate(spec, folder), rows), rows)


if __name__ == "__main__":
    main()
