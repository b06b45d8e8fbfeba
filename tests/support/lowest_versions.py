"""Which versions are the oldest that ``pyproject.toml`` allows?

Prints a constraint for pip on each line: a dependency of the core or of an extra, at its lower bound. Nothing can be
installed with these constraints if a bound contradicts what another package requires. ``make test-lowest`` uses them.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"

_REQUIREMENT = re.compile(r"(?P<name>[\w.-]+)(\[[\w,.-]+\])?>=(?P<version>[\w.]+)(,<[\w.]+)?")
_ITSELF = re.compile(r"annbatch-dlpack\[[\w,.-]+\]")


def lowest(pyproject: dict[str, Any]) -> dict[str, str]:
    """Give the oldest version of each dependency, by name.

    Packages that a dependency group pins are left out, since pip cannot install two versions of them.
    """
    project = pyproject["project"]
    requirements = [
        *project["dependencies"],
        *(one for extra in project["optional-dependencies"].values() for one in extra),
    ]
    found: dict[str, str] = {}
    for requirement in requirements:
        if _ITSELF.fullmatch(requirement):
            continue
        match = _REQUIREMENT.fullmatch(requirement)
        if match is None:
            raise ValueError(f"a dependency must have a lower bound, as in name>=1.0, got {requirement!r}")
        name, version = match["name"], match["version"]
        if found.setdefault(name, version) != version:
            raise ValueError(f"{name} must have one lower bound, got {found[name]} and {version}")
    return {name: version for name, version in found.items() if name not in _pinned(pyproject)}


def _pinned(pyproject: dict[str, Any]) -> set[str]:
    groups = pyproject["dependency-groups"].values()
    return {
        one.partition("==")[0]
        for group in groups
        for one in group
        if isinstance(one, str) and "==" in one.partition(";")[0]
    }


if __name__ == "__main__":
    for name, version in lowest(tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))).items():
        print(f"{name}=={version}")
