"""Do the files of a release say the same?

1. There is one version, and the conda recipe has the dependencies of ``pyproject.toml``.
2. The Pythons of the classifiers are those that the workflows test.
3. `lowest_versions` finds every lower bound, and refuses a dependency that has none.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from lowest_versions import lowest

ROOT = Path(__file__).parents[2]
PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
CONDA_NAMES = {"blosc2": "python-blosc2"}


def read_yaml(path: str) -> dict[str, Any]:
    if not (ROOT / path).exists():
        pytest.skip(f"{path} is not part of the sdist")
    return yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))


def test_one_version() -> None:
    recipe, citation = read_yaml("conda.recipe/recipe.yaml"), read_yaml("CITATION.cff")
    assert recipe["context"]["version"] == citation["version"] == PROJECT["version"]


def test_the_recipe_is_that_of_pyproject() -> None:
    recipe = read_yaml("conda.recipe/recipe.yaml")
    bounds = (re.fullmatch(r"([\w-]+)(>=.+)", requirement) for requirement in PROJECT["dependencies"])
    needed = [f"{CONDA_NAMES.get(match[1], match[1])} {match[2]}" for match in bounds if match is not None]
    assert len(needed) == len(PROJECT["dependencies"])
    assert recipe["requirements"]["run"] == ["__unix", "python >=${{ python_min }}", *needed]
    assert f">={recipe['context']['python_min']}" == PROJECT["requires-python"]
    assert recipe["about"]["summary"] == PROJECT["description"]
    assert recipe["about"]["license"] == PROJECT["license"]
    assert recipe["build"]["python"]["entry_points"] == [
        f"{name} = {place}" for name, place in PROJECT["scripts"].items()
    ]


def test_workflows_test_the_pythons_of_the_classifiers() -> None:
    jobs = read_yaml(".github/workflows/ci.yml")["jobs"]
    everywhere = jobs["checks"]["steps"][1]["with"]["python-version"].split()
    some = [
        case["python"] for case in jobs["tests"]["strategy"]["matrix"]["include"] if case["dependencies"] == "newest"
    ]
    claimed = [match[1] for one in PROJECT["classifiers"] if (match := re.search(r":: (3\.\d+)$", one))]
    assert claimed
    assert set(claimed) <= {*everywhere, *some}


def test_lower_bounds() -> None:
    found = lowest(PYPROJECT)
    assert all(f"{name}>={found[name]}" in PROJECT["dependencies"] for name in ("numpy", "anndata", "zarr"))
    assert found["obstore"]
    # The tests pin it.
    assert "torch" not in found
    for bad, message in (
        (["tqdm"], "must have a lower bound, as in name>=1.0, got 'tqdm'"),
        (["a>=1", "a>=2"], "got 1 and 2"),
    ):
        project = {"dependencies": bad, "optional-dependencies": {}}
        with pytest.raises(ValueError, match=message):
            lowest({"project": project, "dependency-groups": {}})
