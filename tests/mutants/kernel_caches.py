"""Which cached kernels are out of date when a module changes?

numba renews the cache of a file when that file changes. Kernels of other files, which have a function or a constant of
it compiled in, stay as they were.
"""

from __future__ import annotations

import ast
from pathlib import Path

COMPILES = {"Kernel", "inline", "inserted", "intrinsic"}
"""Decorators of compiled functions."""


def stale_kernels(root: Path, path: str) -> list[str]:
    """Give the other files with kernels that have something of a module compiled in, directly or through others."""
    kernels: dict[str, tuple[ast.Module, set[str]]] = {}
    for file in sorted(root.glob("annbatch/**/*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        if names := names_in_kernels(tree):
            kernels[str(file.relative_to(root))] = (tree, names)
    found: list[str] = []
    changed = [path]
    while changed:
        module = changed.pop().removesuffix(".py").replace("/", ".")
        for user, (tree, names) in kernels.items():
            if names & names_from(tree, module) and user not in (path, *found):
                found.append(user)
                changed.append(user)
    return found


def names_in_kernels(tree: ast.Module) -> set[str]:
    """Give all names in the bodies of compiled functions."""
    return {
        node.id
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef)
        and any(isinstance(one, ast.Name) and one.id in COMPILES for one in function.decorator_list)
        for statement in function.body
        for node in ast.walk(statement)
        if isinstance(node, ast.Name)
    }


def names_from(tree: ast.Module, module: str) -> set[str]:
    """Give the names that a file imports from a module."""
    return {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == module
        for alias in node.names
    }
