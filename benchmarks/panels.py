"""What do gene panels and transforms cost, in seconds of CPU?

Each case reads whole epochs of one collection with one decoding thread; cases take turns within one process. What a
machine's other work does to wall time then matters little. ``--touch`` also sums every value and column number, as the
other benchmarks do.

Usage: ``python benchmarks/panels.py [--cells 20000] [--rounds 5] [--touch] [--codec packed]``
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

import annbatch
from annbatch import Batch, Binarize, Emit, Loader, LogNormalize
from harness.command_line import options, prepared
from harness.cpu_cases import time_cases
from harness.jobs import Matrix
from harness.touch import touch

N_GENES = 2000


def unchanged(batch: Batch) -> Batch:
    """Do nothing."""
    return batch


def log1p_in_python(batch: Batch) -> Batch:
    """Do with NumPy what `LogNormalize` does."""
    x = batch.data
    totals = np.add.reduceat(x.data, x.indptr[:-1]) if x.nnz else np.zeros(0)
    scale = np.repeat(1e4 / totals, np.diff(x.indptr)).astype(np.float32)
    return batch.replace(data=x.replace(data=np.log1p(x.data * scale)))


def cases(collection: Any) -> dict[str, tuple[Loader, Emit]]:
    """Open the collection once for each case."""

    def opened(**more: Any) -> Loader:
        return Loader(batch_size=4096, preload_nchunks=8, threads=1, **more).use_collection(collection, labels=[])

    names = np.array(opened().var.index)
    chosen = np.random.default_rng(0).choice(len(names), N_GENES, replace=False)
    mask = np.zeros(len(names), bool)
    mask[chosen] = True
    csr, dense = Emit(dtype=np.dtype("f4")), Emit(dtype=np.dtype("f4"), layout="dense")
    listed = list(names[chosen])
    return {
        "all genes": (opened(), csr),
        f"{N_GENES:,} genes, a mask": (opened(var_names=mask), csr),
        f"{N_GENES:,} genes, in an order of one's own": (opened(var_names=listed), csr),
        "all genes, dense": (opened(), dense),
        f"{N_GENES:,} genes, a mask, dense": (opened(var_names=mask), dense),
        "a function that does nothing": (opened(transform=unchanged), csr),
        "LogNormalize": (opened(transform=LogNormalize()), csr),
        "the same by NumPy": (opened(transform=log1p_in_python), csr),
        "Binarize": (opened(transform=Binarize()), csr),
        f"LogNormalize, {N_GENES:,} genes, a mask, dense": (opened(var_names=mask, transform=LogNormalize()), dense),
    }


def seconds(loader: Loader, emit: Emit, use: Callable[[Batch], Any]) -> float:
    """Read an epoch; gives the seconds of CPU of this process."""
    started = time.process_time()
    for batch in loader.batches(emit):
        use(batch)
    return time.process_time() - started


def used(batch: Batch) -> None:
    """Sum up everything."""
    matrix = batch.data
    touch(Matrix(matrix, None, len(matrix)) if isinstance(matrix, np.ndarray) else Matrix.of_csr(matrix))


def ignored(batch: Batch) -> None:
    """Do nothing with a batch."""


def main() -> None:
    """Time all cases in turn."""
    parser = options("Time gene panels and transforms.")
    parser.set_defaults(cells=20_000)
    parser.add_argument("--touch", action="store_true", help="sum every value and column number of the batches")
    parser.add_argument("--codec", default="blosc", help="codec of the collection")
    arguments = parser.parse_args()
    bench = prepared(arguments)
    collection = bench.store(f"panels-{arguments.codec}")
    if not collection.exists():
        annbatch.create_anndata_collection(list(bench.files), collection, codec=arguments.codec, progress=False)
    use = used if arguments.touch else ignored

    def timed(loader: Loader, emit: Emit) -> float:
        # Memory is taken in the first epoch, and used again in the second one.
        taken = [seconds(loader, emit, use) for _ in range(2)][-1]
        # Nothing of this one may be kept while another one is timed.
        loader.close()
        return taken

    kind = f"panels-{arguments.codec}{'-touched' if arguments.touch else ''}"
    time_cases(kind, arguments, bench.facts, {name: partial(timed, *case) for name, case in cases(collection).items()})


if __name__ == "__main__":
    main()
