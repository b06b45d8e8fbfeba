"""How are the figures of a command kept, summed up and printed?

1. `save` writes ``{"machine", "date", "command", "commit", "input", "rows": […]}`` under ``benchmarks/results``.
2. `median` and `spread` sum up the rounds of a row, `ratios` compares those of two; `print_table` prints them.
"""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from harness import BENCHMARKS
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
    # Where folders lie and which interpreters were there is nobody's business and changes no figure.
    words, skip = [], False
    for word in sys.argv[1:]:
        if skip or word.split("=")[0] in ("--work", "--folder", "--python", "--results"):
            skip = not skip and "=" not in word
            continue
        words.append(word)
    command = shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *words])
    record = {
        "machine": arguments.machine,
        "date": datetime.now(UTC).date().isoformat(),
        "command": command,
        **({} if (commit := commit_of(BENCHMARKS.parent)) is None else {"commit": commit}),
        "input": {key: value for key, value in facts.items() if key != "files"},
        "software": {"python": platform.python_version(), "system": f"{platform.system()} {platform.machine()}"}
        | dict(software or {}),
        "rows": rows,
    }
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(f"wrote {path}")
    return path


def commit_of(repository: Path) -> str | None:
    """Give the commit of the code, with ``-dirty`` behind it where the code differs from it; None without git."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=repository, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", "annbatch", "adapters")
        return git("rev-parse", "HEAD") + ("-dirty" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def median(row: dict[str, Any], key: str = "cells_per_s") -> float:
    """Median of a row's rounds: cells per second, or per CPU second where ``key`` is ``"cells_per_cpu_s"``."""
    return float(np.median(row[key]))


def spread(row: dict[str, Any], key: str = "cells_per_s") -> float:
    """Half the range of a row's rounds, as a share of the median."""
    return float((max(row[key]) - min(row[key])) / 2 / median(row, key))


def ratios(row: dict[str, Any], base: dict[str, Any], key: str) -> tuple[float, float, float]:
    """Compare two rows round by round: median, least and largest ratio of ``row`` to ``base``."""
    found = np.divide(row[key], base[key])
    return float(np.median(found)), float(found.min()), float(found.max())


def print_table(rows: list[dict[str, Any]], reference: str | None = None) -> None:
    """Print medians, spreads, CPU seconds, peak memory, and ratios to the contender ``reference`` of the same setting.

    Cells are counted per second and per CPU second; each has a spread and a ratio of its own.
    """
    print(
        f"\n{'setting':<12} {'contender':<46} {'cells/s':>10} {'spread':>7} {'ratio':>7} "
        f"{'cells/CPU s':>11} {'spread':>7} {'ratio':>7} {'CPU/wall':>8} {'peak MB':>8}"
    )
    for row in rows:
        base = [other for other in rows if other["contender"] == reference and other["setting"] == row["setting"]]
        columns = []
        for key, width in (("cells_per_s", 10), ("cells_per_cpu_s", 11)):
            ratio = f"{median(row, key) / median(base[0], key):7.2f}" if base else " " * 7
            columns.append(f"{median(row, key):>{width},.0f} {spread(row, key):>6.1%}  {ratio}")
        note = "" if row.get("whole_epochs", True) else f"   ({row['cells_per_round']} cells a round)"
        print(
            f"{row['setting']:<12} {row['contender']:<46} {' '.join(columns)} "
            f"{row['cpu_s'] / row['seconds']:>8.2f} {row['peak_rss_bytes'] / 1e6:>8,.0f}{note}"
        )
    print()
