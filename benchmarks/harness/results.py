"""How are the figures of a command kept, summed up and printed?

1. `save` writes ``{"machine", "date", "command", "input", "rows": […]}`` under ``benchmarks/results``.
2. `median` and `spread` sum up the rounds of a row; `print_table` prints them.
"""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from harness.machine import slug


def save(
    kind: str,
    arguments: argparse.Namespace,
    facts: dict[str, Any],
    rows: list[dict[str, Any]],
    software: Mapping[str, str] | None = None,
) -> Path:
    """Write the rows of one command; give the path.

    Parameters
    ----------
    kind
        First part of the file's name.
    arguments
        Parsed `command_line.options`.
    facts
        What `generate.generate` said about the input.
    rows
        One dict a measurement.
    software
        Versions of what matters besides Python.
    """
    arguments.results.mkdir(parents=True, exist_ok=True)
    path: Path = arguments.results / f"{kind}-{slug(arguments.machine)}.json"
    # Where the work folder lies and which interpreters were there is nobody's business and changes no figure.
    words, skip = [], False
    for word in sys.argv[1:]:
        if skip or word.split("=")[0] in ("--work", "--python", "--results"):
            skip = not skip and "=" not in word
            continue
        words.append(word)
    command = shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *words])
    record = {
        "machine": arguments.machine,
        "date": datetime.now(UTC).date().isoformat(),
        "command": command,
        "input": {key: value for key, value in facts.items() if key != "files"},
        "software": {"python": platform.python_version(), "system": f"{platform.system()} {platform.machine()}"}
        | dict(software or {}),
        "rows": rows,
    }
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(f"wrote {path}")
    return path


def median(row: dict[str, Any]) -> float:
    """Median of a row's rounds, cells per second."""
    return float(np.median(row["cells_per_s"]))


def spread(row: dict[str, Any]) -> float:
    """Half the range of a row's rounds, as a share of the median."""
    return float((max(row["cells_per_s"]) - min(row["cells_per_s"])) / 2 / median(row))


def print_table(rows: list[dict[str, Any]], reference: str | None = None) -> None:
    """Print medians, spreads, peak memory, and ratios to the contender ``reference`` of the same setting."""
    print(f"\n{'setting':<12} {'contender':<46} {'cells/s':>10} {'spread':>7} {'ratio':>7} {'peak MB':>8}")
    for row in rows:
        base = [other for other in rows if other["contender"] == reference and other["setting"] == row["setting"]]
        ratio = f"{median(row) / median(base[0]):7.2f}" if base else " " * 7
        note = "" if row.get("whole_epochs", True) else f"   ({row['cells_per_round']} cells a round)"
        print(
            f"{row['setting']:<12} {row['contender']:<46} {median(row):>10,.0f} {spread(row):>6.1%} {ratio} "
            f"{row['peak_rss_bytes'] / 1e6:>8,.0f}{note}"
        )
    print()
