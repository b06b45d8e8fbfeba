"""Which results are older than the code that they measure?

1. `harness.report.measured_code` names the code of each kind of results.
2. The date of a result, or its commit where it names one, is compared with the last commit that changed that code.
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


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description="Compare the dates of results with those of the code that they measure."
    )
    parser.add_argument("--results", type=Path, default=BENCHMARKS / "results", help="folder of the results")
    arguments = parser.parse_args()
    ages = [age_of(path, json.loads(path.read_text())) for path in sorted(arguments.results.glob("*.json"))]
    ages.sort(key=lambda age: ORDER.index(age.older))
    lines = [("result", "measured on", "code last changed on", "older?")]
    lines += [(age.result, age.measured or "-", age.changed, age.older) for age in ages]
    widths = [max(len(line[i]) for line in lines) for i in range(4)]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


if __name__ == "__main__":
    main()
