"""Which tables show the time that something costs?"""

from __future__ import annotations

from harness.report.markdown import Record, cpu_rate, middle, milliseconds, rate, table
from harness.results import median


def first_batch_table(record: Record) -> str:
    """Seconds to open and to the first batch."""
    lines = [
        (row["contender"], row["setting"], f"{middle(row['open_s']):.2f} s", f"{middle(row['first_batch_s']):.2f} s")
        for row in record["rows"]
    ]
    return table(("", "", "open", "first batch after that"), lines)


def open_files_table(record: Record) -> str:
    """Seconds to open many files."""
    lines = []
    for row in record["rows"]:
        times = [f"{middle(row[key]):.2f} s ({min(row[key]):.2f}–{max(row[key]):.2f})" for key in ("cpu_s", "seconds")]
        lines.append((f"{row['contender']}, {row['setting']}", *times))
    return table((f"{record['input']['n_files']:,} files", "CPU time", "time"), lines)


def cpu_table(record: Record) -> str:
    """Seconds of CPU of each case."""
    lines = []
    for row in record["rows"]:
        values = row["cpu_us_a_cell"]
        lines.append((row["case"], f"{middle(values):.2f} ± {(max(values) - min(values)) / 2:.2f} µs"))
    return table(("", "CPU for each cell"), lines)


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
    head = ("", "counts/s of a thread", "of a process", "lost", "cells/s with the thread", "with the process")
    return table(head, lines)


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
    head = ("", "cells/s", "share of the default", "cells a CPU second", "values decoded for each value in a batch")
    for setting in dict.fromkeys(row["setting"] for row in reads):
        rows = [row for row in reads if row["setting"] == setting]
        base = median(rows[0])
        lines = [
            (row["contender"], rate(row), f"{median(row) / base:.0%}", cpu_rate(row), f"{row['amplification']:.2f}")
            for row in rows
        ]
        text += f"**Collection: {setting}**\n\n"
        text += f"{table(head, lines)}\n"
    return text


def handover_table(record: Record) -> str:
    """Time a batch through each adapter beside the core's, and what of it is the hand-over."""
    lines = []
    base = 0.0
    for row in record["rows"]:
        batch = milliseconds(row["batch_ms"], 2)
        if row["contender"] == "core":
            base = middle(row["batch_ms"])
            lines.append((row["setting"], row["contender"], batch, cpu_rate(row), "", "", ""))
            continue
        handing = middle(row["handing_ms"])
        ratio = f"{middle(row['batch_ms']) / base - 1:+.1%}"
        handed = f"{handing:.3f} ms", f"{handing / base:.1%}"
        lines.append((row["setting"], row["contender"], batch, cpu_rate(row), ratio, *handed))
    head = ("", "", "a batch", "cells a CPU second", "more than the core", "hand-over alone", "of the core's time")
    return table(head, lines)


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
    return table(("", "a batch", "until the next batch", "forward", "forward and backward"), lines)
