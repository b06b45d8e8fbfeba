"""How much of a fit is waiting for data, and from which loading speed on does it stop to matter?

1. A logistic regression (20,000 genes, 100 classes, torch) is really trained on generated cells that lie in memory;
   every step is timed.
2. A throttled loader hands over batch i when ``i * batch_size / rate`` seconds have passed. For each rate from 1,000 to
   1,000,000 cells/s the fit's time is measured with it; fits that would last long are computed from the steps' times
   (a step starts when its batch is there and the step before has ended), and their rows say so.
3. The speeds of the real loaders, from the main benchmark's results, are marked on the curve. The figure shows every
   machine whose ``fit-time-*.json`` lies in the folder of results.

Usage: ``python benchmarks/fit_time.py [--fit-cells 280000] [--epochs 1] …``
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import scipy.sparse as sp
import torch

from harness.command_line import options
from harness.generate import Spec, generate
from harness.machine import slug
from harness.plots import GRID, OTHERS, OURS, color_of, plt, short, style, write_figure
from harness.results import median, save

GENES, CLASSES, BATCH = 20_000, 100, 4096
RATES = [1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000, 500_000, 1_000_000]


class SparseProduct(torch.autograd.Function):
    """``x @ w`` for sparse x on the CPU, where torch's own backward converts x and is several times slower."""

    @staticmethod
    def forward(ctx: Any, w: torch.Tensor, x: torch.Tensor, same: sp.csr_matrix) -> torch.Tensor:
        """Multiply; ``same`` is x for SciPy."""
        ctx.same = same
        return x @ w

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        """Give ``x.T @ gradient``."""
        return torch.from_numpy(ctx.same.T @ gradients[0].numpy()), None, None


@dataclass(frozen=True, slots=True)
class Cells:
    """One batch as it lies in host memory."""

    x: torch.Tensor
    """(BATCH, GENES) sparse CSR."""
    same: sp.csr_matrix
    """The same for SciPy."""
    y: torch.Tensor
    """(BATCH,) int64 classes."""


class Regression:
    """A logistic regression and its optimiser: ``step`` takes one batch."""

    def __init__(self, device: str) -> None:
        torch.manual_seed(0)
        self.device = device
        self.w = torch.zeros(GENES, CLASSES, device=device, requires_grad=True)
        self.b = torch.zeros(CLASSES, device=device, requires_grad=True)
        self.optimiser = torch.optim.SGD([self.w, self.b], lr=20.0)

    def step(self, cells: Cells) -> float:
        """Train on one batch; give the loss before."""
        self.optimiser.zero_grad(set_to_none=True)
        if self.device == "cpu":
            scores = SparseProduct.apply(self.w, cells.x, cells.same) + self.b
        else:
            scores = cells.x.to(self.device).to_dense() @ self.w + self.b
        loss = torch.nn.functional.cross_entropy(scores, cells.y.to(self.device))
        loss.backward()
        self.optimiser.step()
        return loss.item()


def batches_in_memory(folder: Path, nnz: int, n_batches: int) -> list[Cells]:
    """Generate enough cells for ``n_batches`` different batches; give them log-transformed, rows of length 1."""
    spec = Spec(cells=BATCH * n_batches, genes=GENES, nnz=nnz, files=1, types=CLASSES)
    generate(spec, folder)
    adata = ad.read_h5ad(folder / "input_0.h5ad")
    x = adata.X.tocsr()
    x.data = np.log1p(x.data)
    x.data /= np.repeat(np.sqrt(np.add.reduceat(x.data**2, x.indptr[:-1])), np.diff(x.indptr))
    rows = np.random.default_rng(0).permutation(x.shape[0])
    classes = adata.obs["cell_type"].cat.codes.to_numpy().astype(np.int64)
    batches = []
    for start in range(0, len(rows), BATCH):
        part = x[rows[start : start + BATCH]]
        arrays = (torch.from_numpy(array) for array in (part.indptr, part.indices, part.data))
        with warnings.catch_warnings():
            # Sparse CSR tensors are in beta, says torch.
            warnings.simplefilter("ignore", UserWarning)
            tensor = torch.sparse_csr_tensor(*arrays, size=part.shape)
        batches.append(Cells(tensor, part, torch.from_numpy(classes[rows[start : start + BATCH]])))
    return batches


def throttled(batches: Iterable[Any], rate: float) -> Iterator[Any]:
    """Hand over each batch no sooner than a loader of ``rate`` cells/s could."""
    started = time.perf_counter()
    for number, batch in enumerate(batches, 1):
        wait_s = started + number * BATCH / rate - time.perf_counter()
        if wait_s > 0:
            time.sleep(wait_s)
        yield batch


def computed(step_s: Sequence[float], rate: float) -> float:
    """Give the time of a fit whose steps take ``step_s``, from when batches arrive at ``rate``."""
    end = 0.0
    for number, seconds in enumerate(step_s, 1):
        end = max(end, number * BATCH / rate) + seconds
    return end


def plot(results: Path) -> Path:
    """Draw total fit time over loading speed: a curve for each machine that was measured, loaders on the lowest."""
    style()
    records = [json.loads(path.read_text()) for path in sorted(results.glob("fit-time-*.json"))]
    records.sort(key=lambda record: record["input"]["step_s"])
    figure, axes = plt.subplots(figsize=(7.2, 4.2), layout="constrained")
    rates = np.geomspace(RATES[0], RATES[-1], 200)
    for number, record in enumerate(records):
        facts, points = record["input"], [row for row in record["rows"] if "rate" in row]
        step_s = [facts["step_s"]] * facts["steps"]
        shade = OURS if number == 0 else OTHERS
        label = f"trained on {facts['device']}: {record['machine']}"
        axes.plot(rates, [computed(step_s, rate) for rate in rates], color=shade, lw=1.6, zorder=2, label=label)
        axes.scatter([row["rate"] for row in points], [row["fit_s"] for row in points], s=16, color=shade, zorder=3)
    facts, marked = records[0]["input"], [row for row in records[0]["rows"] if "contender" in row]
    for number, row in enumerate(sorted(marked, key=median)):
        rate, name = median(row), row["contender"]
        axes.scatter([rate], [row["fit_s"]], s=60, color=color_of(name), edgecolor="white", zorder=4)
        axes.annotate(
            f"{name}\n{short(rate)} cells/s: {row['fit_s']:,.1f} s",
            (rate, row["fit_s"]),
            xytext=(0, 24 + 26 * (number % 3)),
            textcoords="offset points",
            ha="center",
            fontsize=7,
            fontweight="bold" if color_of(name) == OURS else None,
            arrowprops={"arrowstyle": "-", "color": OTHERS, "lw": 0.6},
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(RATES[0] / 1.6, RATES[-1] * 1.8)
    times = [row["fit_s"] for record in records for row in record["rows"]]
    axes.set_ylim(min(times) / 2, 2.5 * max(times))
    axes.grid(color=GRID, lw=0.5)
    axes.xaxis.set_major_formatter(lambda value, _: short(value))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f} s")
    axes.yaxis.set_minor_formatter(lambda value, _: "")
    axes.set_xlabel("loading speed, cells per second (dots without a name: a throttled loader)")
    axes.set_ylabel("total fit time")
    axes.set_title(f"Logistic regression, {GENES:,} genes, {CLASSES} classes, {facts['n_obs']:,} cells")
    axes.legend(frameon=False, fontsize=7.5, loc="upper right")
    return write_figure(figure, results / "fit-time.json")


def real_loaders(arguments: argparse.Namespace) -> list[tuple[str, float]]:
    """Give name and median speed of the real loaders from the main benchmark on this machine, if it was run."""
    path = arguments.results / f"cpu-{slug(arguments.machine)}.json"
    if not path.exists():
        print(f"{path} is not there: no loaders are marked; run bench.py first")
        return []
    best: dict[str, float] = {}
    for row in json.loads(path.read_text())["rows"]:
        if not row["contender"].startswith("decoding") and row["setting"] in ("512x32", "1x16384"):
            best[row["contender"]] = max(best.get(row["contender"], 0), median(row))
    shown = [name for name in best if name == "annbatch-dlpack" or not name.startswith("annbatch-dlpack")]
    return [(name, best[name]) for name in shown]


def main() -> None:
    """Measure from the command line."""
    parser = options("Measure fit time against loading speed.")
    parser.add_argument("--fit-cells", type=int, default=280_000, help="cells that the fit sees in an epoch")
    parser.add_argument("--epochs", type=int, default=1, help="epochs of the fit")
    parser.add_argument("--longest", type=float, default=60.0, help="seconds above which a fit is computed, not run")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="where to train")
    arguments = parser.parse_args()
    n_steps = -(-arguments.fit_cells * arguments.epochs // BATCH)
    folder = arguments.work / f"fit-{GENES}-{CLASSES}-{arguments.nnz}"
    batches = batches_in_memory(folder, arguments.nnz, n_batches=min(8, n_steps))
    sequence = [batches[i % len(batches)] for i in range(n_steps)]
    warm = Regression(arguments.device)
    for cells in sequence[:3]:
        warm.step(cells)
    regression, step_s, losses = Regression(arguments.device), [], []
    for cells in sequence:
        started = time.perf_counter()
        losses.append(regression.step(cells))
        step_s.append(time.perf_counter() - started)
    print(f"{n_steps} steps in {sum(step_s):.2f} s, loss {losses[0]:.2f} -> {losses[-1]:.2f}", flush=True)
    rows: list[dict[str, Any]] = []
    for rate in RATES:
        seconds = computed(step_s, rate)
        is_run = seconds < arguments.longest
        if is_run:
            regression = Regression(arguments.device)
            started = time.perf_counter()
            for cells in throttled(sequence, rate):
                regression.step(cells)
            seconds = time.perf_counter() - started
        rows.append({"rate": rate, "fit_s": round(seconds, 3), "is_run": is_run})
        print(f"{rate:>9,} cells/s: {seconds:.2f} s{'' if is_run else ' (computed)'}", flush=True)
    loaders = real_loaders(arguments)
    facts = {"n_obs": arguments.fit_cells, "n_vars": GENES, "nnz": arguments.nnz * arguments.fit_cells}
    facts |= {
        "epochs": arguments.epochs,
        "device": arguments.device,
        "steps": n_steps,
        "step_s": round(sum(step_s) / n_steps, 5),
    }
    facts |= {"loss_first": round(losses[0], 3), "loss_last": round(losses[-1], 3)}
    marked = [
        {"contender": name, "cells_per_s": [rate], "fit_s": round(computed(step_s, rate), 2)} for name, rate in loaders
    ]
    save("fit-time", arguments, facts, rows + marked)
    print(f"wrote {plot(arguments.results)}")


if __name__ == "__main__":
    main()
