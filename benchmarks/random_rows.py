"""How fast are perfectly random rows, in windows no larger than a batch, beside readers made for them?

1. Each row comes once an epoch, in random order: ``chunk_size=1``, and ``preload_nchunks`` is the batch size, so that
   nothing read for one batch serves another. Every value and column number is summed up.
2. This project reads its collection with each codec that is asked for; cellstream, in an environment of its own, an
   archive of the same cells (`harness.contenders.per_cell`). They run in interleaved rounds.
3. bixverse writes no store of given cells. So it draws some (`harness.bixverse_cells`), and all run on those again.
   They are few, so that rows of a large batch share chunks.
4. Print, for each batch size, medians and spreads of cells per second and per CPU second, and the ratios to cellstream
   in each round; say who was ahead; write JSON.

Usage: ``python benchmarks/random_rows.py [--codecs blosc,packed] [--batch-sizes 256,1024,4096] [--cells 200000] …``
"""

from __future__ import annotations

from typing import Any

from harness.bixverse_cells import generate
from harness.command_line import options, prepared
from harness.contenders.registry import CODECS, CONTENDERS, of_codec
from harness.environments import Unavailable
from harness.report.random_rows import ahead_of_ours
from harness.results import print_table, ratios, save
from harness.rounds import measure
from harness.settings import Setting
from harness.stores import Bench, jobs_of

OTHERS = ("cellstream", "bixverse")
GENERATED, DRAWN = "generated cells", "cells that bixverse drew"


def setting_of(batch_size: int) -> Setting:
    """Give the setting of perfectly random rows in windows of one batch, without obs columns."""
    return Setting(f"batch {batch_size}", batch_size, chunk_size=1, preload_nchunks=batch_size, columns=0)


def benches_of(bench: Bench, others: list[str], n_drawn: int) -> dict[str, tuple[Bench, list[str]]]:
    """Give each input with the other contenders that can read it."""
    found = {GENERATED: (bench, [name for name in others if name != "bixverse"])}
    if "bixverse" in others:
        try:
            found[DRAWN] = generate(bench, n_drawn), others
        except Unavailable as error:
            print(f"  left out: {CONTENDERS['bixverse'].title}: {error}", flush=True)
    return found


def show_ratios(rows: list[dict[str, Any]]) -> None:
    """Print the ratios to cellstream, round by round, and who is ahead of this project."""
    for row in rows:
        base = next((one for one in rows if same_run(one, row) and one["contender"] == reference()), None)
        if base in (None, row):
            continue
        found = ", ".join(
            f"{middle:.2f} ({least:.2f}–{most:.2f}) {what}"
            for what, (middle, least, most) in (
                ("by wall time", ratios(row, base, "cells_per_s")),
                ("by CPU time", ratios(row, base, "cells_per_cpu_s")),
            )
        )
        print(f"{row['setting']}, {row['cells']}, {row['contender']}, against cellstream in each round: {found}")
    print(ahead_of_ours({"rows": rows}))


def same_run(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Say whether two rows were timed in turns."""
    return (one["setting"], one["cells"]) == (other["setting"], other["cells"])


def reference() -> str:
    """Give the title of the contender that others are compared with."""
    return CONTENDERS["cellstream"].title


def main() -> None:
    """Run the benchmark from the command line."""
    parser = options("Time perfectly random rows beside readers whose stores hold each cell by itself.")
    parser.add_argument("--codecs", default="blosc,packed", help=f"of this project, of {', '.join(CODECS)}")
    parser.add_argument("--others", default=",".join(OTHERS), help=f"of {', '.join(OTHERS)}; empty for none")
    parser.add_argument("--batch-sizes", default="256,1024,4096", help="rows of a batch, and of a window")
    parser.add_argument("--bixverse-cells", type=int, default=20_000, help="cells that bixverse draws")
    parser.add_argument(
        "--prepare", action="store_true", help="only generate the input, the environments and the stores"
    )
    parser.set_defaults(seconds=5.0)
    arguments = parser.parse_args()
    codecs, others = arguments.codecs.split(","), [name for name in arguments.others.split(",") if name]
    for given, known in ((codecs, CODECS), (others, OTHERS)):
        if unknown := [name for name in given if name not in known]:
            parser.error(f"unknown: {', '.join(unknown)}; there are {', '.join(known)}")
    bench = prepared(arguments)
    rows: list[dict[str, Any]] = []
    for cells, (own, chosen) in benches_of(bench, others, arguments.bixverse_cells).items():
        facts = {key: own.facts[key] for key in ("n_obs", "n_vars", "nnz")}
        for batch_size in map(int, arguments.batch_sizes.split(",")):
            print(f"batches of {batch_size}, {cells}", flush=True)
            jobs = jobs_of(own, [*map(of_codec, codecs), *chosen], setting_of(batch_size))
            if not arguments.prepare:
                rows += [row | {"cells": cells, "batch_size": batch_size} | facts for row in measure(own, jobs)]
    if arguments.prepare:
        return
    for cells in dict.fromkeys(row["cells"] for row in rows):
        print(f"\n{cells}")
        print_table([row for row in rows if row["cells"] == cells], reference=reference())
    show_ratios(rows)
    save("random-rows", arguments, bench.facts, rows)


if __name__ == "__main__":
    main()
