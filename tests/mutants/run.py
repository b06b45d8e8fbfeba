"""Which faults, planted one at a time, does the suite not notice?

1. `modules.toml` says which modules are mutated, and which test files concern each of them.
2. Cosmic Ray plants one fault after the other in a copy of the tree, and runs those tests for each.
3. What survived stands in ``results.json``; ``survivors.toml`` says why it may. `table.py` makes of both the page in
   the documentation.

A session is kept in ``.mutants`` for each state of a module's source. The same command goes on with one that was
interrupted, and runs the survivors of a finished one again, since the tests may have become better.

Compiled kernels need nothing special: numba's cache on disk holds for one time stamp of the source file, so the kernels
of a mutated file are compiled from it anew, and those of other files are loaded.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from datetime import date
from pathlib import Path
from typing import Any

from cosmic_ray.work_db import WorkDB, WorkResultStorage, use_db
from cosmic_ray.work_item import MutationSpec, TestOutcome, WorkerOutcome, WorkResult

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SESSIONS = ROOT / ".mutants"
RESULTS = HERE / "results.json"

OPERATORS = re.compile(
    "core/(AddNot|NumberReplacer|ZeroIterationForLoop|ExceptionReplacer"
    "|Replace(AndWithOr|OrWithAnd|BreakWithContinue|ContinueWithBreak|FalseWithTrue|TrueWithFalse)"
    "|ReplaceUnaryOperator_(Delete_Invert|Delete_Not|Delete_USub)"
    # Each comparison with its boundary moved, and negated.
    "|ReplaceComparisonOperator_(Lt_LtE|Lt_GtE|LtE_Lt|LtE_Gt|Gt_GtE|Gt_LtE|GtE_Gt|GtE_Lt|Eq_NotEq|NotEq_Eq|Is_IsNot|IsNot_Is)"
    "|ReplaceBinaryOperator_(Add_Sub|Sub_Add|Mul_Add|Div_Mul|FloorDiv_Mul|Mod_FloorDiv|Pow_Mul|LShift_RShift"
    "|RShift_LShift|BitAnd_BitOr|BitOr_BitAnd|BitXor_BitOr))"
)
"""One or two replacements of each operator; Cosmic Ray has all pairs, most of which fail for the same reason."""


def modules() -> dict[str, list[str]]:
    """Give the modules that are mutated, each with its test files."""
    with (HERE / "modules.toml").open("rb") as file:
        return tomllib.load(file)["modules"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="parts of the modules' paths, say order/; none means all of them")
    names = parser.parse_args().names
    chosen = {path: tests for path, tests in modules().items() if not names or any(name in path for name in names)}
    if not chosen:
        sys.exit(f"no module in {HERE / 'modules.toml'} has a path with one of {names}")
    SESSIONS.mkdir(exist_ok=True)
    for path, tests in chosen.items():
        with tempfile.TemporaryDirectory(prefix="mutants-") as copy:
            result = mutate(path, tests, Path(copy))
        results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        results[path] = result
        RESULTS.write_text(json.dumps(dict(sorted(results.items())), indent=1, ensure_ascii=False) + "\n")
        print(f"{path}: {result['killed']} of {result['mutants']} mutants killed", flush=True)


def mutate(path: str, tests: list[str], copy: Path) -> dict[str, Any]:
    """Plant every fault in one module, and give what the tests noticed."""
    copy_tree(copy)
    source = (copy / path).read_text(encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    environment = os.environ | {
        "PYTHONPATH": f"{copy}{os.pathsep}{copy / 'adapters'}",
        "PYTHONDONTWRITEBYTECODE": "1",
        "HYPOTHESIS_PROFILE": "mutants",
    }
    # Twice: the first run compiles kernels.
    for _ in range(2):
        began = time.monotonic()
        subprocess.run(command, cwd=copy, env=environment, check=True, stdout=subprocess.DEVNULL)
    limit_s = 30 + 4 * (time.monotonic() - began)
    config = copy / "cosmic-ray.toml"
    quoted = json.dumps(" ".join(command))
    config.write_text(
        f"[cosmic-ray]\nmodule-path = {json.dumps(path)}\ntimeout = {limit_s:.0f}\nexcluded-modules = []\n"
        f'test-command = {quoted}\n[cosmic-ray.distributor]\nname = "local"\n'
    )
    digest = hashlib.sha256(source.encode()).hexdigest()[:12]
    session = SESSIONS / f"{path.replace('/', '.')}-{digest}.sqlite"
    if not session.exists():
        new = session.with_suffix(".new")
        subprocess.run([*cosmic_ray("init"), str(config), str(new)], cwd=copy, env=environment, check=True)
        leave_out(new, source)
        new.rename(session)
    forget_survivors(session)
    subprocess.run([*cosmic_ray("exec"), str(config), str(session)], cwd=copy, env=environment, check=True)
    return result_of(session) | {
        "source": digest,
        "date": date.today().isoformat(),
        "python": platform.python_version(),
    }


def copy_tree(copy: Path) -> None:
    """Copy what tests need, with compiled kernels and the times that these hold for."""
    for name in ("annbatch", "adapters", "tests", "benchmarks"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("results", "*.pyc"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy2(ROOT / name, copy / name)


def cosmic_ray(command: str) -> list[str]:
    return [sys.executable, "-c", "from cosmic_ray.cli import main; main()", command]


def leave_out(session: Path, source: str) -> None:
    """Leave out further replacements of an operator, and what is no part of the work."""
    spans = idle_spans(ast.parse(source))
    skipped = WorkResult(worker_outcome=WorkerOutcome.SKIPPED)
    with use_db(str(session), WorkDB.Mode.open) as database:
        for item in database.work_items:
            (mutation,) = item.mutations
            if OPERATORS.fullmatch(mutation.operator_name) is None or is_within(mutation, spans):
                database.set_result(item.job_id, skipped)


Span = tuple[tuple[int, int], tuple[int, int]]


def idle_spans(tree: ast.Module) -> list[Span]:
    """Give where annotations, decorators and the texts of errors stand, from (line, column) to (line, column)."""
    nodes: list[ast.expr | None] = []
    for node in ast.walk(tree):
        match node:
            case ast.AnnAssign() | ast.arg():
                nodes.append(node.annotation)
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                nodes += [node.returns, *node.decorator_list]
            case ast.ClassDef():
                nodes += node.decorator_list
            case ast.Raise():
                nodes += [inner for inner in ast.walk(node) if isinstance(inner, ast.JoinedStr)]
    return [
        ((node.lineno, node.col_offset), (node.end_lineno or 0, node.end_col_offset or 0))
        for node in nodes
        if node is not None
    ]


def is_within(mutation: MutationSpec, spans: list[Span]) -> bool:
    return any(first <= tuple(mutation.start_pos) and tuple(mutation.end_pos) <= last for first, last in spans)


def forget_survivors(session: Path) -> None:
    """Let what survived be run again."""
    with use_db(str(session), WorkDB.Mode.open) as database, database._session_maker.begin() as transaction:
        survivors = transaction.query(WorkResultStorage).where(
            WorkResultStorage.test_outcome == TestOutcome.SURVIVED,
            WorkResultStorage.worker_outcome != WorkerOutcome.SKIPPED,
        )
        survivors.delete()


def result_of(session: Path) -> dict[str, Any]:
    n_killed, survivors = 0, []
    with use_db(str(session), WorkDB.Mode.open) as database:
        for item, result in database.completed_work_items:
            if result.worker_outcome in (WorkerOutcome.SKIPPED, WorkerOutcome.NO_TEST):
                continue
            if result.is_killed:
                n_killed += 1
                continue
            (mutation,) = item.mutations
            changed = [line for line in (result.diff or "").splitlines() if not line.startswith(("---", "+++"))]
            survivors.append(
                {
                    "line": mutation.start_pos[0],
                    "was": " ".join(line[1:].strip() for line in changed if line.startswith("-")),
                    "is": " ".join(line[1:].strip() for line in changed if line.startswith("+")),
                }
            )
    survivors.sort(key=lambda one: (one["line"], one["is"]))
    return {"mutants": n_killed + len(survivors), "killed": n_killed, "survivors": survivors}


if __name__ == "__main__":
    main()
