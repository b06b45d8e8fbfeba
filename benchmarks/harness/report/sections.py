"""Which kinds of results are there, and how and on which page does the documentation show each?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from harness.report.builds import build_table, field_table, many_files_table
from harness.report.costs import (
    counting_table,
    cpu_table,
    first_batch_table,
    fit_table,
    handover_table,
    layouts_table,
    open_files_table,
    sampling_table,
    wait_table,
)
from harness.report.markdown import Record
from harness.report.qualities import mixing_table, randomness_table, soak_table
from harness.report.random_rows import random_rows_table
from harness.report.speeds import (
    codecs_table,
    cold_table,
    gpu_table,
    growth_table,
    in_place_table,
    main_table,
    pivot,
    remote_table,
    speeds_table,
    workers_table,
)


@dataclass(frozen=True, slots=True)
class Section:
    """How results of one kind are shown."""

    heading: str
    render: Callable[[Record], str]
    """Makes the table."""
    about: str
    """What was measured, where the heading does not say it."""
    figure: str | None = None
    """Name of its figure; ``own`` means a PNG of the same name as the results."""
    page: str = "results"
    """Page of the documentation that shows it."""


HEADLINE = "cpu"
"""The kind whose newest record the figure and the first table show."""
SENTENCE = "random-rows"
"""The kind whose newest record the README sums up in a sentence."""

SECTIONS = {
    "cpu": Section("All loaders", main_table, "", "own"),
    "fit-time": Section(
        "When loading speed matters",
        fit_table,
        "A logistic regression is trained with a loader that is throttled to a given speed. The figure marks the real "
        "loaders at the speeds of the main benchmark.",
        "fit-time.png",
        "speed",
    ),
    "wait": Section(
        "Time spent waiting with a training step of 10 ms",
        wait_table,
        "The step keeps a core busy, or sleeps as if a GPU did the work. The loader reads on in the meantime.",
    ),
    "counting": Section(
        "Python threads while a loader reads",
        counting_table,
        "A thread counts in pure Python while an epoch runs in the same process. Then a separate process counts "
        "instead, so that only the cores are shared. The difference is the effect of the interpreter's lock.",
    ),
    "first-batch": Section(
        "Time to the first batch", first_batch_table, "Each in a new process; the files are in the page cache."
    ),
    "chunk-size": Section(
        "Speed by chunk_size",
        lambda record: pivot(record, "chunk_size"),
        "All windows have 16,384 rows. With a `chunk_size` of 1, rows are drawn perfectly at random.",
        "own",
    ),
    "threads": Section("Speed by number of threads", lambda record: pivot(record, "threads"), "", "own"),
    "random-rows": Section(
        "Perfectly random rows, in windows of one batch",
        random_rows_table,
        "A window is one batch, so nothing that is read for one batch serves another. Every value and column number is "
        "summed. Rates are medians of the rounds ± half their range; ratios are the median, least and largest of the "
        "rounds. cellstream reads one batch after the other, with a thread for each core. bixverse cannot store given "
        "cells, so all are compared once more on cells that it generates. These are so few that the rows of a large "
        "batch share chunks.",
    ),
    "cold": Section(
        "Files that are not in memory",
        cold_table,
        "Before each cold epoch the system drops all files from memory; the warm epoch follows at once. Bytes from the "
        "device are those that the kernel counts for the process. The object store is a web server on the same machine "
        "that counts requests and bytes. For a distant store, these counts matter, not the speed measured here.",
    ),
    "growth": Section(
        "Ten times as many cells",
        growth_table,
        "Each loader reads its own stores of the small and of the large collection, in the same rounds.",
    ),
    "inner-chunk": Section(
        "Inner chunk size",
        lambda record: pivot(record, "chunk_size"),
        "The same cells written with inner chunks of several sizes.",
        "own",
    ),
    "checksum": Section("What checksums cost", speeds_table, ""),
    "labels": Section("What obs columns cost, batches of 128", speeds_table, ""),
    "options": Section(
        "What names and classes cost",
        speeds_table,
        "`names=True`, and a column of integers as a class, compared with a loader that has neither.",
    ),
    "calls": Section(
        "What calls that read no counts cost",
        cpu_table,
        "CPU time divided by the number of cells in the collection.",
    ),
    "panels": Section(
        "What gene panels and transforms cost",
        cpu_table,
        "One thread decodes. With `--touch` every value and column number of the batches is summed, as in the other "
        "tables.",
    ),
    "modalities": Section(
        "What modalities cost",
        cpu_table,
        "The same cells in one collection of two modalities, and in a collection for each modality. Every value and "
        "column number is summed. The batches of the two separate loaders hold different cells.",
    ),
    "whole": Section(
        "Reading whole files into memory",
        speeds_table,
        "`anndata.read_h5ad` of the uncompressed files, compared with `anndata.read_zarr` of this project's stores "
        "with the zarrs pipeline; no shuffling, no batches.",
    ),
    "open-files": Section(
        "Opening many files",
        open_files_table,
        'Each `Loader(join="outer", cache_dir=…).use_h5ad(paths, labels=["cell_type", "donor"])` runs in a new '
        "process: first with an empty `cache_dir`, then with the one that the first process filled. CPU time includes "
        "that of worker processes. Medians and ranges of the rounds.",
        page="h5ad",
    ),
    "in-place": Section(
        "Reading in place",
        in_place_table,
        "scDataset reads the same files, in an environment of its own. libdeflate is installed. Every value and column "
        "number is summed. Rates are medians of the rounds ± half their range; ratios are the median, least and "
        "largest of the rounds.",
        page="h5ad",
    ),
    "sampling": Section("What samplers cost", sampling_table, "", page="sampling"),
    "layouts": Section(
        "Measured",
        layouts_table,
        "Batches of 4,096 cells; a layer of 128 units in float32. Loading is timed without any training.",
        page="layouts",
    ),
    "handover": Section(
        "What the hand-over costs",
        handover_table,
        "Batches of 4,096 cells, from the core alone and through the adapters, which request the same form from the "
        "core.",
        page="layouts",
    ),
    "workers": Section(
        "What worker processes cost",
        workers_table,
        "Blocks of 512 rows, 32 of them shuffled together, batches of 4,096; every value and column number is summed.",
        page="distributed",
    ),
    "ranks": Section(
        "Several processes on one machine",
        speeds_table,
        "The processes share the rows of one collection and the machine's cores; each has its share of the threads. "
        "Cells per second and peak memory are those of all processes together. Blocks of 512 rows, 32 of them shuffled "
        "together, 500 values a row.",
        page="distributed",
    ),
    "gpu": Section(
        "Measured",
        gpu_table,
        "Batches of 4,096 cells on the GPU, each summed up there. A step of training begins with its dense batch.",
        "own",
        "gpu",
    ),
    "remote": Section(
        "Measured",
        remote_table,
        "A web server on the same machine serves the stores. It shares the cores with the loader, and waits before "
        "each response. zarr's ObjectStore only reads the blocks; it neither shuffles nor collects their rows.",
        page="remote",
    ),
    "soak": Section(
        "Measured",
        soak_table,
        "Medians and slopes leave out the first minutes (grey). They are those of the largest samples of equal spans "
        "of time. Flat means that the fitted growth after the first minutes is at most 5 % of the median, and that the "
        "process ended without an error.",
        "own",
        "soak",
    ),
    "randomness": Section(
        "Measured",
        randomness_table,
        "Entropies are given as a share of the entropy of batches of 128 cells drawn uniformly. Accuracy is that of a "
        "softmax regression on held-out cells after one epoch. Medians over the seeds, ± half their range.",
        "own",
        "randomness",
    ),
    "build-field": Section(
        "Compared with scverse annbatch",
        field_table,
        "Both build from the same two uncompressed `.h5ad` files, in turns, each time in a new process.",
        page="building",
    ),
    "build-scale": Section(
        "Ten times as many cells in the same memory",
        build_table,
        "`memory_limit` is 1 GB for both. The ratio compares cells a second.",
        page="building",
    ),
    "build-files": Section(
        "Many files",
        many_files_table,
        'Builds with `memory_limit="64MB"`, each in a new process. CPU time and peak memory include what the program '
        "itself takes; ± is half the range of the rounds. Files of `genes` and `types` have five cells each. Counts of "
        "`types` are int32, float32 and float64 in turns. Files of `obs` have 500 cells and 60 obs columns.",
        page="building",
    ),
    "codecs": Section(
        "Size and speed of each codec",
        codecs_table,
        "The same cells, written with each codec: bytes of all files of the collection, and cells per second on the "
        "CPU. Every value and column number is summed.",
        page="building",
    ),
    "build-mixing": Section(
        "What appending loses until a collection is reshuffled",
        mixing_table,
        "Ten files were appended one after the other. The table gives the mean entropy of the source files in a batch "
        "of 4,096.",
        page="building",
    ),
}
"""Kind of results -> how they are shown, in the order of the page."""


NOTHING_YET = {
    "gpu": "## Measured\n\nThere are no measurements on a GPU yet. On a machine with one, `make bench-gpu` makes them, "
    "and `python benchmarks/report.py` then puts the tables here.\n"
}
"""Page -> what it says where there are no results."""
