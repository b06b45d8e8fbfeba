"""Which tables show what it costs to build collections?"""

from __future__ import annotations

from harness.report.markdown import Record, middle, rate, table
from harness.report.speeds import OURS
from harness.results import median

A_BILLION = 10**9


def build_table(record: Record) -> str:
    """Seconds, cells per second, peak memory and bytes of each build; ratios are those to the slowest."""
    base = min(map(median, record["rows"]))
    lines = [
        (
            row["contender"],
            row["setting"],
            f"{middle(row['seconds']):.1f} s",
            f"{middle(row['cpu_s']):.1f} s" if "cpu_s" in row else "",
            rate(row),
            f"{median(row) / base:.2f}×",
            f"{row['peak_rss_bytes'] / 1e6:,.0f} MB",
            f"{row['bytes_per_cell']:,.0f}",
        )
        for row in record["rows"]
    ]
    return table(("", "", "time", "CPU time", "cells/s", "ratio", "peak memory", "bytes a cell"), lines)


def field_table(record: Record) -> str:
    """The same, and what a billion such cells would take."""
    ours = next(row for row in record["rows"] if row["contender"] == OURS)
    hours = A_BILLION / median(ours) / 3600
    terabytes = A_BILLION * ours["bytes_per_cell"] / 1e12
    return (
        f"{build_table(record)}\nAt this rate, one such machine would need {hours:.1f} hours for a billion of these "
        f"cells. The collection would take {terabytes:.1f} TB.\n"
    )


def many_files_table(record: Record) -> str:
    """Seconds and peak memory of builds from several numbers of files."""
    lines = []
    for row in record["rows"]:
        cpu, memory = row["cpu_s"], row["peak_rss_bytes"]
        lines.append(
            (
                row["contender"],
                f"{row['files']:,}",
                f"{middle(row['seconds']):.1f} s",
                f"{middle(cpu):.1f} ± {(max(cpu) - min(cpu)) / 2:.1f} s",
                f"{middle(cpu) / row['files'] * 1000:,.0f} ms",
                f"{middle(memory) / 1e6:,.0f} ± {(max(memory) - min(memory)) / 2e6:,.0f} MB",
                row["dtype"],
            )
        )
    return table(("", "files", "time", "CPU time", "CPU time a file", "peak memory", "type of batches"), lines)
