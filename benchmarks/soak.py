"""Does anything grow while loaders and builds run for an hour, and are left early all the time?

1. A process with three loaders in threads (local, through zarr, from a web server), two processes with a loader each
   (local, from a web server) and one that builds a collection over and over run at once, until the time is over.
2. Half of all epochs are left early, at a random batch, with or without closing the loader; loaders are opened anew
   every few epochs. Whole epochs must give every cell and the sum of all values; builds must verify.
3. Resident memory, descriptors and threads of each process are sampled every few seconds (`sample`), and fitted after
   the first minutes, in which caches and pools fill (`growth`).

Usage: ``python benchmarks/soak.py [--minutes 60] [--cells 40000] …`` (Linux; web server: see `harness.range_server`)
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import zarr
from scipy.stats import theilslopes

import annbatch
from harness.command_line import options
from harness.environments import Unavailable
from harness.generate import Spec, generate
from harness.plots import GRID, INK, OURS, plt, style, write_figure
from harness.range_server import range_server
from harness.results import save

WARM_UP_MINUTES = 10.0
"""What is left out of the fit; a sixth of a shorter run."""
FLAT = 0.05
"""Growth over the whole fit, as a share of the median, up to which something counts as flat."""
FIGURES = {"rss_bytes": "resident memory, MiB", "descriptors": "descriptors", "threads": "threads"}
BINS = 120
"""Values kept of each figure: the largest samples of equal spans of time."""


@dataclass(frozen=True, slots=True)
class Source:
    """What a loader reads, and what a whole epoch of it must add up to."""

    place: str
    """Directory or URL of a collection; or of a zarr v2 store, which zarr reads."""
    n_obs: int
    total: float
    """Sum of all values."""

    def open(self) -> annbatch.Loader:
        """Open it anew."""
        ds = annbatch.Loader(batch_size=512, chunk_size=64, preload_nchunks=32, dtype="float32")
        if not self.place.endswith(".zarr"):
            return ds.use_collection(self.place, labels=["cell_type", "n_counts"])
        root: Any = zarr.open_group(self.place, mode="r")
        return ds.add_anndatas([ad.AnnData(X=ad.io.sparse_dataset(root["X"]), obs=ad.io.read_elem(root["obs"]))])


@dataclass(frozen=True, slots=True)
class Shared:
    """What the main process and one of the others share."""

    stop: Any
    """Event: end soon."""
    counts: Any
    """(2,) whole epochs or builds, and early exits."""

    def count(self, which: int) -> None:
        with self.counts.get_lock():
            self.counts[which] += 1


def read(source: Source, seed: int, shared: Shared) -> None:
    """Read epochs until the time is over."""
    rng = np.random.default_rng(seed)
    while not shared.stop.is_set():
        ds = source.open()
        for _ in range(int(rng.integers(1, 8))):
            read_epoch(ds, source, rng, shared)
        if rng.random() < 0.5:
            ds.close()


def read_epoch(ds: annbatch.Loader, source: Source, rng: np.random.Generator, shared: Shared) -> None:
    """Read an epoch, every second time only to a random batch."""
    leave_at = int(rng.integers(0, 2 * len(ds)))
    rows, total = 0, 0.0
    for i, batch in enumerate(ds):
        if i == leave_at:
            if rng.random() < 0.5:
                ds.close()
            shared.count(1)
            return
        rows += batch.data.shape[0]
        total += float(batch.data.data.sum(dtype=np.float64))
    if (rows, total) != (source.n_obs, source.total):
        raise AssertionError(f"an epoch of {source} gave {rows} rows that sum to {total}")
    shared.count(0)


def read_in_threads(sources: Sequence[Source], seed: int, shared: Shared) -> None:
    """Read each of the sources in a thread of its own; if one fails, all end."""

    def one(at: int) -> None:
        try:
            read(sources[at], seed + at, shared)
        finally:
            shared.stop.set()

    with ThreadPoolExecutor(len(sources)) as pool:
        list(pool.map(one, range(len(sources))))


def build(files: Sequence[str], output: str, shared: Shared) -> None:
    """Build a collection over and over, each time in another order."""
    while not shared.stop.is_set():
        built = annbatch.create_anndata_collection(
            files, output, seed=shared.counts[0], memory_limit="200MB", overwrite=True, progress=False
        )
        built.verify()
        shared.count(0)


# --- watching ---------------------------------------------------------------------------------------------------------


def sample(pid: int) -> dict[str, int]:
    """Say what a process has now."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return {
        "rss_bytes": int(fields["VmRSS"].split()[0]) * 1024,
        "descriptors": sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir()),
        "threads": int(fields["Threads"]),
    }


def watch(processes: dict[str, Any], stop: Any, seconds: float, period_s: float) -> dict[str, list[dict[str, float]]]:
    """Sample all processes until the time is over, or one has ended."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in processes}
    began = time.monotonic()
    while (now := time.monotonic() - began) < seconds and not stop.is_set():
        for name, process in processes.items():
            try:
                found[name].append({"minutes": now / 60, **sample(process.pid)})
            except (OSError, KeyError):
                # It has ended, which is what `stop` tells everybody.
                stop.set()
        stop.wait(period_s)
    stop.set()
    return found


def largest(samples: list[dict[str, float]], seconds: float) -> dict[str, list[float]]:
    """Keep the largest samples of each span of time."""
    at = [int(one["minutes"] * 60 / seconds * BINS) for one in samples]
    spans = [[one for one, span in zip(samples, at, strict=True) if span == k] for k in sorted(set(at))]
    return {
        "minutes": [round(span[0]["minutes"], 2) for span in spans],
        **{key: [max(one[key] for one in span) for span in spans] for key in FIGURES},
    }


def growth(minutes: Sequence[float], values: Sequence[float], warm_up: float) -> dict[str, Any]:
    """Fit a line (Theil and Sen's, which single peaks do not move) to what follows the warm-up."""
    at, y = np.array(minutes), np.array(values)
    at, y = at[np.array(minutes) >= warm_up], y[np.array(minutes) >= warm_up]
    slope = float(theilslopes(y, at).slope) if len(at) > 1 else float("nan")
    middle = float(np.median(y)) if len(y) else float("nan")
    share = slope * float(np.ptp(at)) / middle if len(at) > 1 else float("nan")
    return {"per_hour": slope * 60, "median": middle, "largest": max(values), "share": share, "flat": share <= FLAT}


# --- the soak ---------------------------------------------------------------------------------------------------------


@contextmanager
def served(folder: Path) -> Iterator[str | None]:
    """Serve a folder; None where there is no web server to do it."""
    try:
        with range_server(folder, [0.0]) as urls:
            yield urls[0.0]
    except Unavailable as error:
        print(f"  without a web server: {error}", flush=True)
        yield None


def sources(folder: Path, facts: dict[str, Any]) -> tuple[Source, Source]:
    """Write the collection that most loaders read, and the store that zarr reads."""
    files = [folder / name for name in facts["files"]]
    collection, store = folder / "served/cells", folder / "v2.zarr"
    if not collection.exists():
        annbatch.create_anndata_collection(files, collection, progress=False)
    adata = ad.read_h5ad(files[0])
    if not store.exists():
        ad.settings.zarr_write_format = 2
        adata.write_zarr(store)
    whole = Source(str(collection), facts["n_obs"], float(facts["sum_values"]))
    return whole, Source(str(store), adata.n_obs, float(adata.X.sum(dtype=np.float64)))


def run(jobs: dict[str, tuple[Callable[..., None], tuple[Any, ...]]], seconds: float, period_s: float) -> list[Any]:
    """Run all jobs at once, each in a process of its own; give what was seen of them."""
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    shared = {name: Shared(stop, context.Array("q", 2)) for name in jobs}
    processes = {
        name: context.Process(target=function, args=(*arguments, shared[name]), daemon=True)
        for name, (function, arguments) in jobs.items()
    }
    for process in processes.values():
        process.start()
    found = watch(processes, stop, seconds, period_s)
    warm_up = min(WARM_UP_MINUTES, seconds / 360)
    rows = []
    for name, process in processes.items():
        process.join(120)
        hangs = process.is_alive()
        if hangs:
            process.kill()
        kept = largest(found[name], seconds)
        rows.append(
            {
                "process": name,
                "ended": "hangs" if hangs else process.exitcode,
                "whole": shared[name].counts[0],
                "left_early": shared[name].counts[1],
                "growth": {key: growth(kept["minutes"], kept[key], warm_up) for key in FIGURES},
                **kept,
            }
        )
    return rows


def verdict(rows: list[dict[str, Any]], minutes: float) -> str:
    """Say in a sentence what was found."""
    lasted = min(row["minutes"][-1] for row in rows)
    if bad := [row["process"] for row in rows if row["ended"] != 0 or lasted < minutes * 0.95]:
        return f"ended before the time, or with errors, after {lasted:.1f} minutes: {', '.join(bad)}"
    grown = [f"{FIGURES[key]} of {row['process']}" for row in rows for key in FIGURES if not row["growth"][key]["flat"]]
    return f"not flat: {'; '.join(grown)}" if grown else "flat"


def plot(path: Path, rows: list[dict[str, Any]], warm_up: float) -> None:
    """Draw memory, descriptors and threads over time, a line a process."""
    style()
    figure, panels = plt.subplots(3, 1, figsize=(7.6, 6.6), sharex=True, layout="constrained")
    shades = (OURS, INK, "#c77d11", "#7b5ea7")
    for axes, (key, label) in zip(panels, FIGURES.items(), strict=True):
        for row, color in zip(rows, shades, strict=False):
            values = np.array(row[key]) / (2**20 if key == "rss_bytes" else 1)
            axes.plot(row["minutes"], values, color=color, lw=1.4, label=row["process"])
        axes.axvspan(0, warm_up, color=GRID, alpha=0.5, lw=0)
        axes.set_ylabel(label)
        axes.set_ylim(0)
        axes.grid(color=GRID, lw=0.6)
    panels[0].legend(frameon=False, fontsize=8, ncols=2, loc="upper center", bbox_to_anchor=(0.5, 1.3))
    panels[-1].set_xlabel("minutes")
    write_figure(figure, path)


def main() -> None:
    """Run from the command line."""
    parser = options("Run loaders and builds for a long time, and watch what they hold.")
    parser.set_defaults(cells=40_000, genes=4_000, nnz=300)
    parser.add_argument("--minutes", type=float, default=60, help="how long")
    parser.add_argument("--period", type=float, default=3, help="seconds between samples")
    arguments = parser.parse_args()
    spec = Spec(cells=arguments.cells, genes=arguments.genes, nnz=arguments.nnz, seed=arguments.seed)
    folder = arguments.work / f"soak-{spec.cells}x{spec.genes}-{spec.nnz}-{spec.seed}"
    facts = generate(spec, folder)
    local, through_zarr = sources(folder, facts)
    with served(folder / "served") as url:
        remote = [] if url is None else [Source(f"{url}/cells", local.n_obs, local.total)]
        files = [str(folder / name) for name in facts["files"]]
        jobs: dict[str, tuple[Callable[..., None], tuple[Any, ...]]] = {
            f"{2 + len(remote)} loaders in threads": (read_in_threads, ([local, through_zarr, *remote], 1)),
            "a loader of local files": (read, (local, 11)),
            "builds": (build, (files, str(folder / "built"))),
        }
        if remote:
            jobs["a loader of a web server"] = (read, (remote[0], 12))
        rows = run(jobs, arguments.minutes * 60, arguments.period)
    found = verdict(rows, arguments.minutes)
    print(found)
    path = save("soak", arguments, facts, rows)
    plot(path, rows, min(WARM_UP_MINUTES, arguments.minutes / 6))


if __name__ == "__main__":
    main()
