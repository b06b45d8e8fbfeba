"""What do all benchmark commands share: options, the machine's description, the file of results?

1. `options` makes the command line; `prepared` turns it into a `Bench` whose input has been generated.
2. `machine` says in words what ran, `slug` gives that a file name.
3. `save` writes ``{"machine", "date", "command", "input", "rows": […]}`` under ``benchmarks/results``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shlex
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from harness import BENCHMARKS
from harness.generate import Spec, generate
from harness.rounds import Bench


def options(description: str) -> argparse.ArgumentParser:
    """Make a parser with the options that all commands know."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument(
        "--work", type=Path, default=BENCHMARKS.parent / "bench_output", help="folder of inputs and stores"
    )
    parser.add_argument("--cells", type=int, default=Spec().cells, help="rows of the generated input")
    parser.add_argument("--genes", type=int, default=Spec().genes, help="columns of the generated input")
    parser.add_argument("--nnz", type=int, default=Spec().nnz, help="stored elements a cell, on average")
    parser.add_argument("--seed", type=int, default=Spec().seed, help="seed of the generated input")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds")
    parser.add_argument("--seconds", type=float, default=12.0, help="what the rounds of one contender last together")
    parser.add_argument("--machine", default=machine(), help="the machine's name in the results")
    parser.add_argument("--results", type=Path, default=BENCHMARKS / "results", help="folder of the results")
    parser.add_argument(
        "--python",
        action="append",
        default=[],
        metavar="ENVIRONMENT=PATH",
        help="interpreter of an environment that exists already (peer, peer-gpu, torch, lamindb)",
    )
    return parser


def prepared(arguments: argparse.Namespace, **changes: Any) -> Bench:
    """Generate the input that the options ask for, unless it is there; give the bench on it.

    Parameters
    ----------
    arguments
        Parsed `options`.
    **changes
        Fields of `Spec` that differ from the options.
    """
    fields = {"cells": arguments.cells, "genes": arguments.genes, "nnz": arguments.nnz, "seed": arguments.seed}
    spec = Spec(**(fields | changes))
    folder = arguments.work / f"input-{spec.cells}x{spec.genes}-{spec.nnz}-{spec.files}-{spec.seed}"
    generate(spec, folder)
    pythons = dict(pair.split("=", 1) for pair in arguments.python)
    return Bench(
        input=folder,
        environments=arguments.work / "envs",
        rounds=arguments.rounds,
        total_s=arguments.seconds,
        pythons={name: Path(path) for name, path in pythons.items()},
    )


def machine() -> str:
    """Describe the processor, the number of usable cores and the memory."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = re.findall(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(), re.MULTILINE)
        name = re.sub(r"\((?:R|TM)\)| CPU| Processor", "", models[0]) if models else name
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = ""
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        memory = f", {os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.0f} GiB"
    return f"{name}, {cores} cores{memory}"


def slug(text: str) -> str:
    """Give a text as part of a file name; the memory at the end of a machine's name is left out."""
    text = re.sub(r", \d+ GiB$", "", text)
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


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
        Parsed `options`.
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
