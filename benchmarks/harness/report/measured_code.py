"""Which code does a result measure, and has that changed since?

1. `MEASURED` names the paths of each kind of results; the command that made a record is always one of them.
2. git lists the files of these paths that changed after the commit that the record names, or after its date if it
   names none.
3. Only what runs counts. A module is parsed before and after, and what it says in comments, docstrings and messages
   is left out of the comparison (`what_runs`).
"""

from __future__ import annotations

import ast
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from harness import BENCHMARKS
from harness.report.markdown import Record

ROOT = BENCHMARKS.parent
NO_FILES = "4b825dc642cb6eb9a060e54bf8d69288fbee4904"
"""git's name of a tree without files."""

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
    older: str
    """``yes``, ``no``, or what is known instead."""
    changed: tuple[str, ...]
    """Files whose code changed since, as far as that is known."""


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
    paths = (*MEASURED[kind_of(path)], *([script] if script else []))
    measured = record.get("date", "")
    commit = record.get("commit", "")
    head = git("rev-parse", "HEAD")
    # What was not committed then may be what was committed since.
    if commit and not commit.endswith("-dirty") and is_known(commit):
        changed = changed_code(commit, head, paths)
        return Age(path.name, measured, "yes" if changed else "no", changed)
    if not measured:
        return Age(path.name, measured, "not known: no date", ())
    before, after = (
        changed_code(git("rev-list", "-1", f"--until={measured}T{time}", head) or NO_FILES, head, paths)
        for time in ("00:00:00", "23:59:59")
    )
    older = "yes" if after else "not known: the same day" if before else "no"
    return Age(path.name, measured, older, after or before)


@cache
def changed_code(before: str, after: str, paths: tuple[str, ...]) -> tuple[str, ...]:
    """Give the files of the paths whose code differs between two commits."""
    names = git("diff", "--no-renames", "--name-only", before, after, "--", *paths).splitlines()
    return tuple(name for name in names if what_runs(before, name) != what_runs(after, name))


@cache
def what_runs(commit: str, name: str) -> str | None:
    """Give a file of a commit without its words, or None if the commit lacks it.

    Words are comments and docstrings, and all text with a space in it: messages have one, names and keys have none.
    """
    if not git("ls-tree", "--name-only", commit, "--", name):
        return None
    text = git("show", f"{commit}:{name}")
    if not name.endswith(".py"):
        return text
    tree = ast.parse(text)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            body[:] = [part for part in body if not is_text(part)]
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            node.value = " "
    return ast.dump(tree)


def is_text(node: ast.AST) -> bool:
    """Say whether a statement is nothing but a text, as docstrings are."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def is_known(commit: str) -> bool:
    """Say whether the repository has a commit before this one of that name."""
    command = ["git", "merge-base", "--is-ancestor", commit, "HEAD"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, check=False).returncode == 0


def git(*words: str) -> str:
    """Give what git prints."""
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
