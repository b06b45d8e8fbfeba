"""What does it cost to read two modalities of the same cells, beside reading each of them alone?

Three collections are made of two generated matrices that have the same cells: one of both as modalities, and one of
each. Every case reads whole epochs with one decoding thread and sums up every value and column number; cases take turns
within one process. In "both, two loaders" the batches of two loaders are drawn in turn: these hold different cells.

Usage: ``python benchmarks/modalities.py [--cells 60000] [--rounds 5]``
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import annbatch
from annbatch import Loader
from harness.command_line import options, prepared
from harness.cpu_cases import time_cases
from harness.jobs import Matrix
from harness.touch import touch


def matrices(loaders: list[Loader]) -> Iterator[Any]:
    """Give every matrix of an epoch of loaders whose batches are drawn in turn."""
    for batches in zip(*loaders, strict=True):
        for batch in batches:
            yield from [batch.data] if batch.modalities is None else [one.data for one in batch.modalities.values()]


def epoch(loaders: list[Loader]) -> float:
    """Read an epoch and sum it up; gives the seconds of CPU of this process."""
    started = time.process_time()
    for matrix in matrices(loaders):
        touch(Matrix.of_csr(matrix))
    return time.process_time() - started


def main() -> None:
    """Time all cases in turn."""
    parser = options("Time modalities.")
    parser.set_defaults(cells=60_000)
    parser.add_argument("--atac-genes", type=int, default=200_000, help="columns of the second modality")
    parser.add_argument("--atac-nnz", type=int, default=6_000, help="its stored elements a cell, on average")
    arguments = parser.parse_args()
    rna = prepared(arguments)
    atac = prepared(arguments, genes=arguments.atac_genes, nnz=arguments.atac_nnz)
    pairs = [{"rna": one, "atac": other} for one, other in zip(rna.files, atac.files, strict=True)]
    collections = {"rna": (rna, rna.files), "atac": (atac, atac.files), "joint": (atac, pairs)}
    paths = {}
    for name, (bench, inputs) in collections.items():
        paths[name] = bench.store(f"modalities-{name}")
        if not paths[name].exists():
            annbatch.create_anndata_collection(list(inputs), paths[name], progress=False)

    def opened(*names: str, **more: Any) -> list[Loader]:
        loaders = [Loader(batch_size=4096, preload_nchunks=8, threads=1, **more) for _ in names]
        return [loader.use_collection(paths[name], labels=[]) for loader, name in zip(loaders, names, strict=True)]

    cases = {
        "RNA alone": lambda: opened("rna"),
        "ATAC alone": lambda: opened("atac"),
        "both, two loaders": lambda: opened("rna", "atac"),
        "both, modalities": lambda: opened("joint"),
        "both written, RNA read": lambda: opened("joint", modalities=["rna"]),
    }

    def seconds(case: Callable[[], list[Loader]]) -> float:
        loaders = case()
        # Memory is taken in the first epoch, and used again in the second one.
        taken = [epoch(loaders) for _ in range(2)][-1]
        for loader in loaders:
            loader.close()
        return taken

    time_cases("modalities", arguments, rna.facts, {name: partial(seconds, case) for name, case in cases.items()})


if __name__ == "__main__":
    main()
