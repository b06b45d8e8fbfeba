"""Which tables do the documentation and the README show, so that nobody types a number by hand?

1. Every file under ``benchmarks/results`` has a kind: the first part of its name.
2. Each kind has a function that turns its record into Markdown (`SECTIONS`).
3. The sections of all files, with machine, date and command, go to ``docs/{page}-tables.inc``, which the pages include.
4. The README gets this project beside the peer, between two comments that mark the place.

Usage: ``python benchmarks/report.py``
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np

from harness import BENCHMARKS
from harness.plots import TITLES
from harness.results import median, spread

DOCS = BENCHMARKS.parent / "docs"
README = BENCHMARKS.parent / "README.md"
BEGIN, END = "<!-- speed -->", "<!-- /speed -->"
PEER = "scverse annbatch 0.3.1"
OURS = "annbatch-dlpack"
WITH_DELTA = f"{OURS}, codec delta"
Record = dict[str, Any]


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Give a Markdown table; every column but the first is aligned to the right."""
    rule = ["---"] + ["---:"] * (len(head) - 1)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *lines)) + "\n"


def origin(record: Record) -> str:
    """Say on what, when and how a record was measured."""
    facts = record["input"]
    size = f"{facts['n_obs']:,} cells × {facts['n_vars']:,} genes, {facts['nnz'] / facts['n_obs']:,.0f} values a cell"
    return f"{record['machine']}; {record['date']}; {size}. Command: `{record['command']}`\n"


def rate(row: Record) -> str:
    """Write a row's median and spread."""
    return f"{median(row):,.0f} ± {spread(row):.0%}"


def middle(values: Sequence[float]) -> float:
    """Give the median of one figure a round."""
    return float(np.median(values))


def main_table(record: Record) -> str:
    """Speeds, spreads, ratios to the peer and peak memory, a table a setting."""
    text = ""
    for setting in dict.fromkeys(row["setting"] for row in record["rows"]):
        rows = [row for row in record["rows"] if row["setting"] == setting]
        base = next((median(row) for row in rows if row["contender"] == PEER), None)
        lines = []
        for row in sorted(rows, key=median, reverse=True):
            note = "" if row["whole_epochs"] else f" ({row['cells_per_round']:,} cells a round)"
            ratio = f"{median(row) / base:.2f}×" if base else ""
            memory = f"{row['peak_rss_bytes'] / 1e6:,.0f} MB"
            lines.append((row["contender"] + note, rate(row), ratio, memory))
        title = TITLES.get(setting, setting)
        head = ("", "cells/s", f"against {PEER}" if base else "", "peak memory")
        text += f"\n**{title[0].upper()}{title[1:]}**\n\n{table(head, lines)}"
    return text


def gpu_table(record: Record) -> str:
    """Speeds by size of windows beside the peer's best, what the machine can do at best, and idle time in training."""
    rows = record["rows"]
    speeds = [row for row in rows if "model" not in row and not row["contender"].startswith("limit")]
    best = max((median(row) for row in speeds if row["contender"].startswith("peer")), default=None)
    text = ""
    for setting in dict.fromkeys(row["setting"] for row in speeds):
        own = sorted((row for row in speeds if row["setting"] == setting), key=median, reverse=True)
        lines = [(row["contender"], rate(row), f"{median(row) / best:.2f}×" if best else "") for row in own]
        title = TITLES.get(setting, setting)
        head = ("", "cells/s", "against the peer's best of all settings" if best else "")
        text += f"\n**{title[0].upper()}{title[1:]}**\n\n{table(head, lines)}"
    limits = [row for row in rows if row["contender"].startswith("limit")]
    if limits:
        lines = [(row["contender"].removeprefix("limit: "), rate(row)) for row in limits]
        text += f"\n**One stage alone, for all of X**\n\n{table(('', 'cells/s'), lines)}"
    trained = [row for row in rows if "model" in row]
    if trained:
        lines = [
            (
                row["contender"],
                row["setting"],
                rate(row),
                f"{middle(row['idle_share']):.1%} ± {(max(row['idle_share']) - min(row['idle_share'])) / 2:.1%}",
            )
            for row in trained
        ]
        facts = trained[0]
        size = (
            f"{facts['n_obs']:,} cells × {facts['n_vars']:,} genes, {facts['nnz'] / facts['n_obs']:,.0f} values a cell"
        )
        head = ("", "model, window", "cells/s", "time without a step")
        text += f"\n**While training on {size}**\n\n{table(head, lines)}"
    versions = ", ".join(f"{name} {version}" for name, version in record["software"].items())
    return f"{text}\n{versions}.\n"


def remote_table(record: Record) -> str:
    """Speeds by distance, beside the faster of the peer's pipelines."""
    text = ""
    for setting in dict.fromkeys(row["setting"] for row in record["rows"]):
        rows = [row for row in record["rows"] if row["setting"] == setting]
        base = max((median(row) for row in rows if row["contender"].startswith(PEER)), default=None)
        lines = [
            (
                row["contender"],
                rate(row),
                f"{median(row) / base:.1f}×" if base else "",
                f"{row['peak_rss_bytes'] / 1e6:,.0f} MB",
            )
            for row in sorted(rows, key=median, reverse=True)
        ]
        head = ("", "cells/s", f"against the faster {PEER}" if base else "", "peak memory")
        text += f"\n**Blocks × blocks a window, delay: {setting}**\n\n{table(head, lines)}"
    return text


def speeds_table(record: Record) -> str:
    """One line a contender and setting."""
    head = ("", "setting", "cells/s", "peak memory")
    memory = [f"{row['peak_rss_bytes'] / 1e6:,.0f} MB" for row in record["rows"]]
    return table(
        head,
        [(row["contender"], row["setting"], rate(row), mb) for row, mb in zip(record["rows"], memory, strict=True)],
    )


def pivot(record: Record, key: str) -> str:
    """Speeds with a column a contender, a line for each value of ``key``."""
    names = list(dict.fromkeys(row["contender"] for row in record["rows"]))
    lines = []
    for value in dict.fromkeys(row[key] for row in record["rows"]):
        found = {row["contender"]: row for row in record["rows"] if row[key] == value}
        lines.append([f"{value:,}", *(rate(found[name]) if name in found else "" for name in names)])
    return table([key, *names], lines)


def first_batch_table(record: Record) -> str:
    """Seconds to open and to the first batch."""
    lines = [
        (row["contender"], row["setting"], f"{middle(row['open_s']):.2f} s", f"{middle(row['first_batch_s']):.2f} s")
        for row in record["rows"]
    ]
    return table(("", "", "open", "first batch after that"), lines)


def wait_table(record: Record) -> str:
    """Shares of time that a training step waits."""
    lines = []
    for row in record["rows"]:
        shares = f"{middle(row['wait_share']):.1%}", f"{middle(row['wait_share_with_first']):.1%}"
        lines.append((row["contender"], row["setting"], row["step"], *shares))
    return table(("", "", "step", "time spent waiting", "with the first batch of each epoch"), lines)


def counting_table(record: Record) -> str:
    """What a counting thread loses."""
    lines = []
    for row in record["rows"]:
        counts = f"{middle(row['inside_per_s']):,.0f}", f"{middle(row['beside_per_s']):,.0f}"
        cells = f"{middle(row['cells_inside']):,.0f}", f"{middle(row['cells_beside']):,.0f}"
        lines.append((row["contender"], *counts, f"{middle(row['lost']):.1%}", *cells))
    head = ("", "counts/s of a thread", "of a process", "lost", "cells/s beside the thread", "beside the process")
    return table(head, lines)


def growth_table(record: Record) -> str:
    """Speeds of each contender on the small and on the large collection, and what of its speed it keeps."""
    lines = []
    sizes = sorted({row["n_obs"] for row in record["rows"]})
    for setting, name in dict.fromkeys((row["setting"], row["contender"]) for row in record["rows"]):
        rows = [row for row in record["rows"] if (row["setting"], row["contender"]) == (setting, name)]
        found = {row["n_obs"]: row for row in rows}
        kept = f"{median(found[sizes[-1]]) / median(found[sizes[0]]):.0%}" if len(found) == len(sizes) else ""
        lines.append(
            (name, TITLES.get(setting, setting), *(rate(found[size]) if size in found else "" for size in sizes), kept)
        )
    return table(("", "setting", *(f"{size:,} cells" for size in sizes), "kept"), lines)


def fit_table(record: Record) -> str:
    """Fit times by loading speed."""
    lines = []
    for row in record["rows"]:
        if "rate" in row:
            how = "run" if row["is_run"] else "computed from the measured steps"
            lines.append((f"throttled, {row['rate']:,} cells/s", f"{row['fit_s']:,.1f} s", how))
        else:
            name = f"{row['contender']}, {median(row):,.0f} cells/s"
            lines.append((name, f"{row['fit_s']:,.1f} s", "computed from the measured steps"))
    facts = record["input"]
    steps = f"{facts['steps']} steps of {1000 * facts['step_s']:,.1f} ms on {facts['device']}"
    return f"{steps}; loss {facts['loss_first']} → {facts['loss_last']}.\n\n{table(('loader', 'fit', ''), lines)}"


def sampling_table(record: Record) -> str:
    """What each sampler costs to plan and to read."""
    plans = [
        (
            row["plan"],
            f"{row['rows'][0]:,}",
            f"{middle(row['seconds']):.2f} s",
            f"{middle(row['ms_a_window']):.2f} ms",
            f"{max(row['added_mb']):,.0f} MB",
        )
        for row in record["rows"]
        if "plan" in row
    ]
    text = f"**Planning**\n\n{table(('', 'rows planned', 'time', 'a window', 'memory added'), plans)}\n"
    reads = [row for row in record["rows"] if "plan" not in row]
    for setting in dict.fromkeys(row["setting"] for row in reads):
        rows = [row for row in reads if row["setting"] == setting]
        base = median(rows[0])
        lines = [
            (row["contender"], rate(row), f"{median(row) / base:.0%}", f"{row['amplification']:.2f}") for row in rows
        ]
        text += f"**Collection {setting}**\n\n"
        text += f"{table(('', 'cells/s', 'of the default', 'decoded for each value handed over'), lines)}\n"
    return text


def workers_table(record: Record) -> str:
    """Speeds beside the loader alone, with peak memory."""
    base = median(record["rows"][0])
    lines = []
    for row in record["rows"]:
        note = "" if row["whole_epochs"] else f" ({row['cells_per_round']:,} cells a round)"
        memory = f"{row['peak_rss_bytes'] / 1e6:,.0f} MB"
        lines.append((row["contender"] + note, rate(row), f"{median(row) / base:.2f}×", memory))
    return table(("", "cells/s", "of the loader alone", "peak memory, workers included"), lines)


def milliseconds(values: Sequence[float], digits: int = 1) -> str:
    """Write a median and half the range, in milliseconds."""
    half = (max(values) - min(values)) / 2 / middle(values) if middle(values) else 0.0
    return f"{middle(values):,.{digits}f} ms ± {half:.0%}"


def handover_table(record: Record) -> str:
    """Time a batch through each adapter beside the core's, and what of it is the hand-over."""
    lines = []
    base = 0.0
    for row in record["rows"]:
        batch = milliseconds(row["batch_ms"], 2)
        if row["contender"] == "core":
            base = middle(row["batch_ms"])
            lines.append((row["setting"], row["contender"], batch, "", "", ""))
            continue
        handing = middle(row["handing_ms"])
        ratio = f"{middle(row['batch_ms']) / base - 1:+.1%}"
        lines.append((row["setting"], row["contender"], batch, ratio, f"{handing:.3f} ms", f"{handing / base:.1%}"))
    return table(("", "", "a batch", "against the core", "hand-over alone", "of the core's batch"), lines)


def layouts_table(record: Record) -> str:
    """Loading, bytes and a first layer, a line for each layout."""
    lines = [
        (
            row["contender"],
            f"{row['bytes'] / 1e6:,.0f} MB",
            *(milliseconds(row[key]) for key in ("load_ms", "forward_ms", "both_ms")),
        )
        for row in record["rows"]
    ]
    return table(("", "a batch", "until the next batch", "layer forwards", "forwards and backwards"), lines)


def randomness_table(record: Record) -> str:
    """Entropies and accuracies, a line for each setting."""
    lines = []
    for row in record["rows"]:
        accuracy = row["accuracy"]
        half = (max(accuracy) - min(accuracy)) / 2
        shares = [f"{middle(values):.3f}" for values in row["entropy_share"].values()]
        setting = f"{row['window_rows']:,}", f"{row['chunk_size']:,}"
        lines.append((row["collection"], *setting, *shares, f"{middle(accuracy):.3f} ± {half:.3f}"))
    names = ("entropy of cell types", "of plates", "of source files")
    return table(("collection", "window", "block", *names, "accuracy"), lines)


def build_table(record: Record) -> str:
    """Seconds, cells per second, peak memory and bytes of each build; ratios are those to the slowest."""
    base = min(map(median, record["rows"]))
    lines = [
        (
            row["contender"],
            row["setting"],
            f"{middle(row['seconds']):.1f} s",
            rate(row),
            f"{median(row) / base:.2f}×",
            f"{row['peak_rss_bytes'] / 1e6:,.0f} MB",
            f"{row['bytes_per_cell']:,.0f}",
        )
        for row in record["rows"]
    ]
    return table(("", "", "time", "cells/s", "ratio", "peak memory", "bytes a cell"), lines)


def codecs_table(record: Record) -> str:
    """Bytes a cell and speeds, a line for each codec."""
    settings = list(dict.fromkeys(row["setting"] for row in record["rows"]))
    lines = []
    for contender in dict.fromkeys(row["contender"] for row in record["rows"]):
        rows = {row["setting"]: row for row in record["rows"] if row["contender"] == contender}
        codec = contender.partition("codec ")[2] or "blosc"
        lines.append(
            (f"`{codec}`", f"{rows[settings[0]]['bytes_per_cell']:,.0f}", *(rate(rows[one]) for one in settings))
        )
    return table(("`codec`", "bytes a cell", *(TITLES.get(one, one) for one in settings)), lines)


def mixing_table(record: Record) -> str:
    """Entropy of the parts in a batch."""
    lines = [
        (row["setting"], f"{row['entropy_bits']:.4f} bits", f"{row['random_entropy_bits']:.4f} bits")
        for row in record["rows"]
    ]
    return table(("collection", "batches of the loader", "batches drawn at random"), lines)


def soak_table(record: Record) -> str:
    """What each process did, and what its memory, descriptors and threads did meanwhile."""
    lines = []
    for row in record["rows"]:
        memory, *others = (row["growth"][key] for key in ("rss_bytes", "descriptors", "threads"))
        lines.append(
            (
                row["process"],
                f"{row['whole']:,}",
                f"{row['left_early']:,}",
                f"{memory['median'] / 2**20:,.0f} MiB, at most {memory['largest'] / 2**20:,.0f}",
                f"{memory['per_hour'] / 2**20:+,.1f} MiB",
                *(f"{one['median']:,.0f}, at most {one['largest']:,} ({one['per_hour']:+.1f})" for one in others),
                "yes" if row["ended"] == 0 and all(one["flat"] for one in (memory, *others)) else "no",
            )
        )
    growing = "(and an hour)"
    head = (
        *("", "whole epochs, or builds", "left early", "resident memory", "an hour"),
        *(f"descriptors {growing}", f"threads {growing}", "flat"),
    )
    return table(head, lines)


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
    page: str = "speed"
    """Page of the documentation that shows it."""


SECTIONS = {
    "cpu": Section("The field", main_table, "", "own"),
    "fit-time": Section(
        "Why it matters",
        fit_table,
        "A logistic regression, trained on batches that come as fast as a throttled loader lets them; the real loaders "
        "are marked at the speeds that the main benchmark found.",
        "fit-time.png",
    ),
    "wait": Section(
        "Waiting under a training step of 10 ms",
        wait_table,
        "A step keeps a core busy, or is idle as when a GPU works; the loader reads on meanwhile.",
    ),
    "counting": Section(
        "Python beside the loader",
        counting_table,
        "A thread counts in pure Python while an epoch runs in its process; then another process counts instead, so "
        "that only the cores are shared. Of the two, the interpreter's lock makes the difference.",
    ),
    "first-batch": Section("Time to the first batch", first_batch_table, "New processes; the files lie in the cache."),
    "chunk-size": Section(
        "Speed over chunk_size",
        lambda record: pivot(record, "chunk_size"),
        "Windows hold 16,384 rows throughout; a `chunk_size` of 1 is perfectly random.",
        "own",
    ),
    "threads": Section("Speed over threads", lambda record: pivot(record, "threads"), "", "own"),
    "growth": Section(
        "Ten times as many cells",
        growth_table,
        "Each contender's store of the small and of the large collection, in the same rounds.",
    ),
    "inner-chunk": Section(
        "Inner chunk size",
        lambda record: pivot(record, "chunk_size"),
        "The same cells written with inner chunks of several sizes.",
        "own",
    ),
    "checksum": Section("What checksums cost", speeds_table, ""),
    "labels": Section("What obs columns cost, batches of 128", speeds_table, ""),
    "whole": Section(
        "Reading whole files into memory",
        speeds_table,
        "`anndata.read_h5ad` of the uncompressed files against `anndata.read_zarr` of this project's stores with the "
        "zarrs pipeline; no shuffling, no batches.",
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
        "Batches of 4,096 cells, bare from the core and through the adapters, which ask the core for the same form.",
        page="layouts",
    ),
    "workers": Section(
        "Worker processes, measured",
        workers_table,
        "Blocks of 512 rows, 32 of them shuffled together, batches of 4,096; every value and column number is summed.",
        page="distributed",
    ),
    "ranks": Section(
        "Several processes on one machine",
        speeds_table,
        "Processes that share the rows of one collection and the machine's cores, each with its share of the threads; "
        "cells per second and peak memory of all together. Blocks of 512 rows, 32 of them shuffled together, 500 "
        "values a row.",
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
        "Stores on a web server on the same machine, which shares its cores, and waits before each answer. zarr's "
        "ObjectStore only reads the blocks; it neither shuffles nor collects their rows.",
        page="remote",
    ),
    "soak": Section(
        "Measured",
        soak_table,
        "Medians and slopes are those after the first minutes (grey), of the largest samples of equal spans of time. "
        "Flat means that the fitted growth over that time is at most 5 % of the median, and that the process ended "
        "without an error.",
        "own",
        "soak",
    ),
    "randomness": Section(
        "Measured",
        randomness_table,
        "Entropies are shares of what batches of 128 uniformly drawn cells have. Accuracy is that of a softmax "
        "regression on held-out cells after one epoch. Medians over the seeds, ± half their range.",
        "own",
        "randomness",
    ),
    "build-field": Section(
        "Beside the field",
        build_table,
        "Both build from the same two uncompressed `.h5ad` files, in turns, each time in a new process.",
        page="building",
    ),
    "build-scale": Section(
        "Ten times as many cells in the same memory",
        build_table,
        "`memory_limit` is 1 GB for both; the ratio is that of cells a second.",
        page="building",
    ),
    "codecs": Section(
        "What a codec costs, and gives",
        codecs_table,
        "The same cells written with each codec: bytes of all files of a collection, and cells per second on the CPU, "
        "every value and column number summed.",
        page="building",
    ),
    "build-mixing": Section(
        "What appending loses until a collection is reshuffled",
        mixing_table,
        "Mean entropy of the source files in a batch of 4,096, of ten files that were appended one after the other.",
        page="building",
    ),
}
"""Kind of results -> how they are shown, in the order of the page."""


NOTHING_YET = {
    "gpu": "## Measured\n\nNothing yet: there are no figures of a GPU. `make bench-gpu`, on a machine with one, "
    "makes them, and `python benchmarks/report.py` then puts the tables here.\n"
}
"""Page -> what it says where there are no results."""


def section(kind: str, results: Path, target: Path) -> str:
    """Give the Markdown of all records of one kind, or nothing where there is none."""
    shown = SECTIONS[kind]
    paths = sorted(results.glob(f"{kind}-*.json"))
    parts = [f"{shown.about}\n"] if shown.about else []
    for path in paths:
        record = json.loads(path.read_text())
        own = shown.figure == "own"
        image = path.with_suffix(".png") if own else results / shown.figure if shown.figure else None
        parts.append(origin(record))
        if image is not None and image.exists() and (own or path is paths[0]):
            place = Path(os.path.relpath(image, target.parent)).as_posix()
            parts.append(f"![{shown.heading}]({place})\n")
        parts.append(shown.render(record))
    return f"## {shown.heading}\n\n" + "\n".join(parts) + "\n" if paths else ""


def readme_table(record: Record) -> str:
    """Ours, with both codecs for a CPU, beside the peer, a line for each setting; with the machine and the command."""
    lines = []
    for setting in dict.fromkeys(row["setting"] for row in record["rows"]):
        rows = {row["contender"]: row for row in record["rows"] if row["setting"] == setting}
        if all(name in rows for name in (OURS, WITH_DELTA, PEER)):
            ours = [rows[OURS], rows[WITH_DELTA]]
            ratios = [f"{median(row) / median(rows[PEER]):.1f}×" for row in ours]
            lines.append((TITLES.get(setting, setting), *map(rate, [*ours, rows[PEER]]), ", ".join(ratios)))
    head = ("", "this project", 'with `codec="delta"`', PEER, "ratios")
    return f"{table(head, lines)}\n{origin(record)}"


def fill_readme(results: Path, readme: Path) -> None:
    """Put the table of the newest results between the README's two comments."""
    records = [json.loads(path.read_text()) for path in sorted(results.glob("cpu-*.json"))]
    if not records:
        print(f"{results} holds no results of bench.py: the table in {readme} is left as it is")
        return
    before, rest = readme.read_text().split(BEGIN)
    _, after = rest.split(END)
    readme.write_text(f"{before}{BEGIN}\n\n{readme_table(max(records, key=itemgetter('date')))}\n{END}{after}")


def main() -> None:
    """Write the fragments and the README's table."""
    parser = argparse.ArgumentParser(description="Turn results into the tables of the documentation.")
    parser.add_argument("--results", type=Path, default=BENCHMARKS / "results", help="folder of the results")
    parser.add_argument("--docs", type=Path, default=DOCS, help="folder of the pages that include the fragments")
    parser.add_argument("--readme", type=Path, default=README, help="the README with its two comments")
    arguments = parser.parse_args()
    for page in dict.fromkeys(shown.page for shown in SECTIONS.values()):
        tables = arguments.docs / f"{page}-tables.inc"
        kinds = [kind for kind, shown in SECTIONS.items() if shown.page == page]
        text = "".join(section(kind, arguments.results, tables) for kind in kinds)
        text = text or NOTHING_YET.get(page, "")
        if text:
            tables.write_text(text.rstrip() + "\n")
            print(f"wrote {tables}")
        else:
            print(f"{arguments.results} holds no results for the page {page}")
    fill_readme(arguments.results, arguments.readme)


if __name__ == "__main__":
    main()
