"""Which code does a result measure, and has that changed since?

1. `MEASURED` names the paths of each kind of results; the command that made a record is always one of them.
2. git says when one of these paths was last changed. Where a record names its commit, git says whether one of them
   was changed behind that commit; else only dates can be compared.
"""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

from harness import BENCHMARKS
from harness.report.markdown import Record

ROOT = BENCHMARKS.parent

READING = (
    "annbatch",
    *(f":!annbatch/{part}" for part in ("write", "commands", "device", "remote", "testing", "cli.py", "verify.py")),
)
"""What reads local files into batches in memory."""
WRITING = ("annbatch/write", "annbatch/order", "annbatch/shards", "annbatch/stores")
TORCH, JAX = "adapters/annbatch_torch", "adapters/annbatch_jax"

MEASURED: dict[str, tuple[str, ...]] = {
    "build-field": WRITING,
    "build-files": WRITING,
    "build-mixing": ("annbatch/write", "annbatch/order"),
    "build-scale": WRITING,
    "calls": READING,
    "checksum": READING,
    "chunk-size": READING,
    "codecs": (*READING, "annbatch/write"),
    "cold": (*READING, "annbatch/remote"),
    "counting": READING,
    "cpu": READING,
    "first-batch": READING,
    "fit-time": READING,
    "fuzz": ("annbatch/shards", "annbatch/stores", "tests/support/fuzz_stores.py"),
    "gpu": ("annbatch", "adapters", ":!annbatch/write", ":!annbatch/commands", ":!annbatch/testing"),
    "growth": READING,
    "handover": (*READING, TORCH, JAX),
    "in-place": READING,
    "inner-chunk": READING,
    "labels": READING,
    "layouts": (*READING, TORCH, JAX),
    "modalities": READING,
    "open-files": READING,
    "options": READING,
    "panels": READING,
    "random-rows": READING,
    "randomness": ("annbatch/order", "annbatch/samplers", "annbatch/write/shuffle"),
    "ranks": READING,
    "remote": (*READING, "annbatch/remote"),
    "sampling": READING,
    "soak": ("annbatch", "adapters", ":!annbatch/device", ":!annbatch/testing"),
    "threads": READING,
    "wait": READING,
    "whole": ("annbatch/write/output", "annbatch/write/array_layout.py"),
    "workers": (*READING, TORCH),
}
"""Kind of results -> paths in the repository; those behind ``:!`` are left out."""


@dataclass(frozen=True, slots=True)
class Age:
    """Whether a result is older than what it measures."""

    result: str
    """Name of the file."""
    measured: str
    """Date of the measurement; empty where the file has none."""
    changed: str
    """Date of the last commit that changed the code."""
    older: str
    """``yes``, ``no``, or what is known instead."""


def kind_of(path: Path) -> str:
    """Give the kind of a file of results: the longest one that its name begins with.

    Raises
    ------
    KeyError
        If no kind fits: the table above lacks it.
    """
    kinds = [kind for kind in MEASURED if path.stem == kind or path.stem.startswith(f"{kind}-")]
    if not kinds:
        raise KeyError(f"{path.name}: harness/report/measured_code.py must say which code it measures")
    return max(kinds, key=len)


def age_of(path: Path, record: Record) -> Age:
    """Compare a result with the code that it measures."""
    script = record.get("command", "").removeprefix("python ").partition(" ")[0]
    paths = [*MEASURED[kind_of(path)], *([script] if script else [])]
    changed = git("log", "-1", "--format=%cs", "--", *paths)
    measured = record.get("date", "")
    commit = record.get("commit", "")
    # What was not committed then may be what was committed since.
    if commit and not commit.endswith("-dirty") and is_known(commit):
        older = "yes" if git("log", "-1", "--format=%h", f"{commit}..HEAD", "--", *paths) else "no"
    elif not measured:
        older = "not known: no date"
    elif changed == measured:
        older = "not known: the same day"
    else:
        older = "yes" if changed > measured else "no"
    return Age(path.name, measured, changed, older)


def is_known(commit: str) -> bool:
    """Say whether the repository has a commit before this one of that name."""
    command = ["git", "merge-base", "--is-ancestor", commit, "HEAD"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, check=False).returncode == 0


def git(*words: str) -> str:
    """Give what git prints."""
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
