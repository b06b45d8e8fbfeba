"""What do the command lines of all benchmarks share?

1. `options` makes the parser with what all commands know.
2. `prepared` turns what was given into a `Bench` whose input has been generated.
3. `run_command` runs one of several measurements of a benchmark.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from harness import BENCHMARKS
from harness.generate import Spec, generate
from harness.machine import describe_machine
from harness.stores import Bench


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
    parser.add_argument("--machine", default=describe_machine(), help="the machine's name in the results")
    parser.add_argument("--results", type=Path, default=BENCHMARKS / "results", help="folder of the results")
    parser.add_argument(
        "--python",
        action="append",
        default=[],
        metavar="ENVIRONMENT=PATH",
        help="interpreter of an environment that exists already (peer, peer-gpu, torch, lamindb, cellstream, bixverse)",
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


def run_command(parser: argparse.ArgumentParser, commands: Mapping[str, Callable[[argparse.Namespace], None]]) -> None:
    """Parse the command line, whose first word names one of ``commands``, and run that."""
    parser.add_argument("command", choices=commands)
    arguments = parser.parse_args()
    commands[arguments.command](arguments)
