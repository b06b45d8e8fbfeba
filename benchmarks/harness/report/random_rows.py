"""Which tables compare random rows with readers that are made for them?"""

from __future__ import annotations

from harness.report.markdown import Record, cpu_rate, rate, table
from harness.report.speeds import CPU, OURS, WITH_CODEC
from harness.results import median, ratios

CELLSTREAM = "cellstream 0.11"


def random_rows_table(record: Record) -> str:
    """Speeds of random rows, by wall and by CPU time, beside cellstream, a table an input and batch size."""
    text = ""
    for cells, size in dict.fromkeys((row["cells"], row["batch_size"]) for row in record["rows"]):
        rows = [row for row in record["rows"] if (row["cells"], row["batch_size"]) == (cells, size)]
        base = next((row for row in rows if row["contender"] == CELLSTREAM), None)
        lines = []
        for row in sorted(rows, key=lambda row: median(row, "cells_per_cpu_s"), reverse=True):
            by_wall, by_cpu = (
                "" if base is None else "{:.2f}× ({:.2f}–{:.2f})".format(*ratios(row, base, key))
                for key in ("cells_per_s", "cells_per_cpu_s")
            )
            memory = f"{row['peak_rss_bytes'] / 1e6:,.0f} MB"
            lines.append((row["contender"], cpu_rate(row), by_cpu, rate(row), by_wall, memory))
        head = ("", CPU, f"against {CELLSTREAM}", "cells/s", f"against {CELLSTREAM}", "peak memory")
        facts = rows[0]
        size_of = f"{facts['n_obs']:,} cells, {facts['nnz'] / facts['n_obs']:,.0f} values a cell"
        text += f"\n**Batches of {size:,}, {cells} ({size_of})**\n\n{table(head, lines)}"
    return f"{ahead_of_ours(record)}\n{text}"


def ahead_of_ours(record: Record) -> str:
    """Say where other contenders gave more cells a CPU second, or a second, than the best of this project."""
    found = []
    for key, what in (("cells_per_cpu_s", "a CPU second"), ("cells_per_s", "a second")):
        for cells, setting in dict.fromkeys((row["cells"], row["setting"]) for row in record["rows"]):
            rows = [row for row in record["rows"] if (row["cells"], row["setting"]) == (cells, setting)]
            own = [row for row in rows if row["contender"].startswith(OURS)]
            best = max(own, key=lambda row: median(row, key), default=None)
            for row in rows:
                if best is not None and row not in own and median(row, key) > median(best, key):
                    times = median(row, key) / median(best, key)
                    found.append(
                        f"{row['contender']} gives {times:.2f} times as many cells {what} as {best['contender']} "
                        f"({setting}, {cells})"
                    )
    if not found:
        return "No other contender gives more cells, a second or a CPU second, than the best codec of this project.\n"
    return "Where others are ahead of the best codec of this project:\n\n" + "".join(f"- {line}\n" for line in found)


def random_rows_sentence(record: Record) -> str:
    """Say how many cells per CPU second both codecs give beside cellstream, over all sizes of batches.

    The first cells alone count: those that bixverse draws suit stores with many rows in a chunk.
    """
    first = record["rows"][0]["cells"]
    rows = {(row["contender"], row["batch_size"]): row for row in record["rows"] if row["cells"] == first}

    sizes = sorted({size for _, size in rows})
    key = "cells_per_cpu_s"

    def range_of(contender: str) -> str:
        found = [ratios(rows[contender, size], rows[CELLSTREAM, size], key)[0] for size in sizes]
        return f"{min(found):.2f}× to {max(found):.2f}×"

    return (
        f'For rows drawn one by one, `codec="packed"` gives {range_of(f"{WITH_CODEC}packed")} as many cells per CPU '
        "second as [cellstream](https://pypi.org/project/cellstream/) 0.11, a reader made for that. "
        f"The default codec gives {range_of(OURS)}. (Batches of {sizes[0]:,} to {sizes[-1]:,}; {record['machine']}; "
        f"{record['date']}; `{record['command']}`)"
    )
