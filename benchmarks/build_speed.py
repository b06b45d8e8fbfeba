"""How fast are collections built, in how much memory, and what does mixing by blocks lose?

- ``field``: this project and scverse annbatch (``dataset_size="1GB"``) build from the same ``.h5ad`` files, in
  interleaved rounds, each in a process of its own: seconds, CPU seconds, peak memory, bytes a cell.
- ``scale``: cells per second for inputs of two sizes with the same memory limit.
- ``mixing``: a collection that was appended to file by file, and the same cells reshuffled: mean entropy of the files
  in the loader's batches, beside that of batches drawn at random.

Usage: ``python benchmarks/build_speed.py COMMAND [--cells 200000] [--rounds 5] …``
"""

from __future__ import annotations

import argparse
import shutil
from typing import Any

import numpy as np

from harness.command_line import options, prepared, run_command
from harness.contenders.registry import CONTENDERS
from harness.environments import Unavailable
from harness.mixing import entropy_bits
from harness.results import median, save, spread
from harness.stores import Bench, write_store

TITLES = {"ours": CONTENDERS["direct"].title, "peer-1GB": f"{CONTENDERS['peer'].title}, dataset_size=1GB"}
ENVIRONMENTS = {"ours": CONTENDERS["direct"].environment, "peer-1GB": CONTENDERS["peer"].environment}


def build_once(bench: Bench, owner: str) -> dict[str, Any]:
    """Let one writer build its store anew; give seconds, CPU seconds, peak memory and bytes."""
    store = bench.input / "builds" / owner
    shutil.rmtree(store, ignore_errors=True)
    measured = write_store(bench, ENVIRONMENTS[owner], owner, store)
    shutil.rmtree(store)
    return measured


def rounds_of(bench: Bench, owners: list[str], setting: str) -> list[dict[str, Any]]:
    """Build in turns, after one round that warms up; give a row for each writer."""
    built: dict[str, list[dict[str, Any]]] = {owner: [] for owner in owners}
    for number in range(bench.rounds + 1):
        for owner in list(built):
            try:
                measured = build_once(bench, owner)
            except Unavailable as error:
                print(f"  left out: {error}", flush=True)
                del built[owner]
                continue
            if number:
                built[owner].append(measured)
            print(f"  {TITLES[owner]}: {measured['seconds']:.1f} s", flush=True)
    n_obs = bench.facts["n_obs"]
    return [
        {
            "setting": setting,
            "contender": TITLES[owner],
            "cells_per_s": [n_obs / one["seconds"] for one in found],
            "cells_per_cpu_s": [n_obs / one["cpu_s"] for one in found],
            "seconds": [one["seconds"] for one in found],
            "cpu_s": [one["cpu_s"] for one in found],
            "peak_rss_bytes": max(one["peak_rss_bytes"] for one in found),
            "bytes_per_cell": found[0]["bytes"] / n_obs,
        }
        for owner, found in built.items()
    ]


def field(arguments: argparse.Namespace) -> None:
    """Compare with the peer."""
    bench = prepared(arguments)
    rows = rounds_of(bench, ["ours", "peer-1GB"], f"{bench.facts['n_obs']:,} cells")
    show(rows)
    save("build-field", arguments, bench.facts, rows)


def scale(arguments: argparse.Namespace) -> None:
    """Compare two sizes; the large one is built as often."""
    rows = []
    for cells in (arguments.cells, arguments.large):
        bench = prepared(arguments, cells=cells)
        rows += rounds_of(bench, ["ours"], f"{cells:,} cells")
    show(rows)
    print(f"{median(rows[1]) / median(rows[0]):.0%} of the rate at {arguments.cells} cells")
    save("build-scale", arguments, bench.facts, rows)


def mixing(arguments: argparse.Namespace) -> None:
    """Compare batches of an appended collection with those of a reshuffled one."""
    import annbatch

    bench = prepared(arguments, files=10)
    folder = bench.input / "builds"
    shutil.rmtree(folder, ignore_errors=True)
    appended = folder / "appended"
    annbatch.create_anndata_collection(bench.files[0], appended, progress=False)
    for path in bench.files[1:]:
        annbatch.append_to_collection(path, appended, progress=False)
    annbatch.reshuffle_collection(appended, folder / "reshuffled", progress=False)
    rows = []
    for name in ("appended", "reshuffled"):
        loader = annbatch.Loader(batch_size=4096, drop_last=True).use_collection(folder / name, labels=["src_path"])
        codes = [batch.codes["src_path"] for batch in loader]
        rng = np.random.default_rng(0)
        drawn = np.array_split(rng.permutation(np.concatenate(codes)), len(codes))
        row = {"setting": name, "entropy_bits": mean_entropy(codes), "random_entropy_bits": mean_entropy(drawn)}
        print(f"{name}: {row['entropy_bits']:.4f} bits a batch, drawn at random {row['random_entropy_bits']:.4f}")
        rows.append(row)
    shutil.rmtree(folder)
    save("build-mixing", arguments, bench.facts, rows)


def mean_entropy(batches: list[Any]) -> float:
    """Mean entropy, in bits, of the codes in each batch."""
    return float(np.mean([entropy_bits(codes) for codes in batches]))


def show(rows: list[dict[str, Any]]) -> None:
    """Print a row for each writer and size."""
    print(
        f"\n{'setting':<16} {'contender':<46} {'cells/s':>8} {'spread':>7} {'s':>6} {'CPU s':>6} {'peak MB':>8} "
        f"{'B/cell':>7}"
    )
    for row in rows:
        print(
            f"{row['setting']:<16} {row['contender']:<46} {median(row):>8,.0f} {spread(row):>6.1%} "
            f"{np.median(row['seconds']):>6.1f} {np.median(row['cpu_s']):>6.1f} "
            f"{row['peak_rss_bytes'] / 1e6:>8,.0f} {row['bytes_per_cell']:>7,.0f}"
        )


COMMANDS = {"field": field, "scale": scale, "mixing": mixing}


def main() -> None:
    """Run one command."""
    parser = options("Time how collections are built.")
    parser.add_argument("--large", type=int, default=2_000_000, help="cells of the larger input of `scale`")
    run_command(parser, COMMANDS)


if __name__ == "__main__":
    main()
