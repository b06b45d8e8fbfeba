"""Which faults can be planted in a module, and how?

1. Cosmic Ray lists the faults; a session, a database, keeps them with what came of them.
2. Left out are further replacements of an operator, and what is no part of the work: annotations, decorators, messages.
3. A fault is planted by writing the module anew, so that neither Python nor numba takes what they have in a cache.
"""

from __future__ import annotations

import ast
import contextlib
import difflib
import os
import re
from collections.abc import Collection, Mapping
from itertools import count
from pathlib import Path

from cosmic_ray.commands import init
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator
from cosmic_ray.work_db import WorkDB, WorkResultStorage, use_db
from cosmic_ray.work_item import MutationSpec, WorkerOutcome, WorkItem, WorkResult

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


def new_session(session: Path, path: str, source: str, copy: Path) -> None:
    """List the mutants of a module."""
    new = session.with_suffix(".new")
    new.unlink(missing_ok=True)
    with contextlib.chdir(copy), use_db(str(new), WorkDB.Mode.create) as database:
        init([Path(path)], database, {})
        leave_out(database, source)
    new.rename(session)


def leave_out(database: WorkDB, source: str) -> None:
    """Leave out further replacements of an operator, and what is no part of the work."""
    spans = idle_spans(ast.parse(source))
    skipped = WorkResult(worker_outcome=WorkerOutcome.SKIPPED)
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


def judged(database: WorkDB) -> list[tuple[WorkItem, WorkResult]]:
    """Give the mutants that tests were run for, with what came of it."""
    none = (WorkerOutcome.SKIPPED, WorkerOutcome.NO_TEST)
    return [(item, result) for item, result in database.completed_work_items if result.worker_outcome not in none]


def forget(database: WorkDB, job_ids: Collection[str]) -> None:
    """Let mutants be run again."""
    with database._session_maker.begin() as transaction:
        transaction.query(WorkResultStorage).where(WorkResultStorage.job_id.in_(job_ids)).delete()


def mutated(source: str, item: WorkItem) -> str | None:
    """Plant a fault; None if there is no place for it."""
    (mutation,) = item.mutations
    operator = get_operator(mutation.operator_name)(**mutation.operator_args)
    return mutate_code(source, operator, mutation.occurrence)


def difference(was: str, now: str) -> str:
    """Give the lines that differ, marked with - and +."""
    lines = difflib.unified_diff(was.splitlines(), now.splitlines(), n=0, lineterm="")
    return "\n".join(line for line in lines if not line.startswith(("---", "+++", "@@")))


class Planter:
    """Writes sources of one module into copies of the tree."""

    def __init__(self, path: str, source: str, stale: Mapping[str, str]) -> None:
        self.path, self.source = path, source
        self._stale = dict(stale)
        """Path to source of other files that must be compiled anew."""
        self._times = count(1)

    def plant(self, copy: Path, source: str) -> None:
        """Write a source that is in no cache: Python knows files by their time in seconds, numba by what they hold."""
        time_s = next(self._times)
        for name, text in (self._stale | {self.path: source}).items():
            (copy / name).write_text(f"{text}# {time_s}\n", encoding="utf-8")
            os.utime(copy / name, (time_s, time_s))
