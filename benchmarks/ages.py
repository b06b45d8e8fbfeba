"""Which results are older than the code that they measure?

1. `harness.report.measured_code` names the code of each kind of results.
2. That code is compared with the code of the commit that a result names, or of its date. Comments, docstrings and
   messages do not count.
3. Print a table, the results that are older first. This is a report: the exit code is 0 whatever it says.

Usage: ``make figures``, or ``python benchmarks/ages.py``
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from harness import BENCHMARKS
from harness.report.measured_code import age_of

ORDER = ("yes", "not known: no date", "not known: the same day", "no")
NAMED = 4
"""Files that are named for each result."""


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Say which results are older than the code that they measure.")
    parser.add_argument("--results", type=Path, default=BENCHMARKS / "results", help="folder of the results")
    arguments = parser.parse_args()
    ages = [age_of(path, json.loads(path.read_text())) for path in sorted(arguments.results.glob("*.json"))]
    ages.sort(key=lambda age: ORDER.index(age.older))
    lines = [("result", "measured on", "older?", "changed since")]
    lines += [(age.result, age.measured or "-", age.older, named(age.changed)) for age in ages]
    widths = [max(len(line[i]) for line in lines) for i in range(4)]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def named(files: tuple[str, ...]) -> str:
    """Name a few files, and say how many there are."""
    names = [Path(file).name for file in files[:NAMED]]
    return ", ".join(names) + (f" and {len(files) - NAMED} more" if len(files) > NAMED else "")


if __name__ == "__main__":
    main()
