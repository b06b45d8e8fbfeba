"""Is what the documentation calls public the same as what the code does?

1. ``docs/api.md`` lists the public modules, and documents every name of theirs under one of their paths.
2. What the README, the pages and the adapters import is public.
3. A sampler and an adapter can be written of public names alone.
4. Paths that the documentation showed earlier still work, and say which path to use now.
5. ``docs/cli.md`` shows every command.
"""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import annbatch
from annbatch import samplers
from annbatch.adapter import Adapter, Batch, Emit, Loader, converted
from annbatch.commands import COMMANDS, library_errors
from datagen import named_adata

ROOT = Path(__file__).parents[2]
API = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
FRAMEWORKS = {"annbatch_torch": "torch", "annbatch_jax": "jax", "annbatch_cupy": "cupy", "annbatch_ray": "ray"}
EARLIER = {
    "annbatch.stream": ["Stream"],
    "annbatch.permutation": ["Key", "Purpose", "permutation", "shuffle"],
}

# Modules are documented by their members.
_NOT_DOCUMENTED = {"annbatch.samplers"}


def listed_modules() -> list[str]:
    """Give the modules in the table of the page."""
    rows = [row.split("|")[1] for row in API.splitlines() if row.startswith("| `")]
    return [name for row in rows for name in re.findall(r"`([\w.]+)`", row)]


def documented_paths() -> Iterator[str]:
    """Give the full path of everything that a directive of the page documents."""
    current = ""
    for directive, argument in re.findall(r"^\.\. ([\w:]+):: ([\w.]+)$", API, flags=re.MULTILINE):
        if directive == "module":
            current = argument
        elif directive == "automodule":
            yield from (f"{argument}.{name}" for name in importlib.import_module(argument).__all__)
        else:
            yield argument if argument.partition(".")[0] in PACKAGES else f"{current}.{argument}"


MODULES = listed_modules()
PACKAGES = {module.partition(".")[0] for module in MODULES}
PATHS = sorted(documented_paths())


def imported(module: str) -> ModuleType:
    """Import a module, or skip the test if its framework is not installed."""
    if (framework := FRAMEWORKS.get(module.partition(".")[0])) is not None:
        pytest.importorskip(framework)
    if module in (
        "annbatch_torch.lightning",
        "annbatch_torch.scvi",
        "annbatch_torch.transformers",
        "annbatch_jax.grain",
    ):
        pytest.importorskip(module.rpartition(".")[2])
    return importlib.import_module(module)


def test_the_page_lists_modules_and_documents_names() -> None:
    assert MODULES[:4] == ["annbatch", "annbatch.samplers", "annbatch.errors", "annbatch.adapter"]
    assert set(FRAMEWORKS) < set(MODULES)
    assert len(PATHS) > 50
    assert len(PATHS) == len(set(PATHS))


@pytest.mark.parametrize("path", PATHS)
def test_a_documented_path_is_one_of_a_public_module(path: str) -> None:
    module, _, name = path.rpartition(".")
    assert module in MODULES
    assert name in imported(module).__all__


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.filterwarnings("ignore:::lightning", "ignore:::pytorch_lightning")
def test_every_public_name_is_documented(module: str) -> None:
    public = imported(module)
    split = [path.rpartition(".") for path in PATHS]
    core = [one for one in split if one[0] == module or one[0].partition(".")[0] == "annbatch"]
    documented = [getattr(importlib.import_module(one), name) for one, _, name in core]
    missing = [
        name
        for name in public.__all__
        if f"{module}.{name}" not in _NOT_DOCUMENTED and not any(getattr(public, name) is one for one in documented)
    ]
    assert missing == []
    assert len(public.__all__) == len(set(public.__all__))


def imports_of(code: str) -> Iterator[tuple[str, str]]:
    """Give what code imports from this project: (module, name), the name empty where the module itself is imported."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            found = [(alias.name, "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found = [(node.module or "", alias.name) for alias in node.names]
        else:
            continue
        yield from (one for one in found if one[0].partition(".")[0] in PACKAGES)


def refused(imports: Iterator[tuple[str, str]]) -> list[str]:
    """Say which imports are of no public name."""
    return [
        f"{module} {name}"
        for module, name in imports
        if module not in MODULES or (name and name not in imported(module).__all__)
    ]


SHOWN = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "docs" / "notebooks").glob("*.md"))]


@pytest.mark.parametrize("page", [pytest.param(page, id=page.name) for page in SHOWN])
@pytest.mark.filterwarnings("ignore:::lightning", "ignore:::pytorch_lightning")
def test_examples_import_public_names(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"^```(?:python|\{code-cell\}[^\n]*)\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)
    for code in blocks:
        code = re.sub(r"^(:\S.*|---\n(.*\n)*?---)$", "", code, flags=re.MULTILINE)
        assert refused(imports_of(re.sub(r"^[%!].*$", "", code, flags=re.MULTILINE))) == []


@pytest.mark.parametrize("package", FRAMEWORKS)
def test_adapters_import_public_names(package: str) -> None:
    files = sorted((ROOT / "adapters" / package).glob("*.py"))
    assert files
    found = [one for path in files for one in imports_of(path.read_text(encoding="utf-8"))]
    # An adapter's own modules are its own affair.
    core = [one for one in found if one[0].partition(".")[0] != package]
    assert any(module == "annbatch.adapter" for module, _ in core)
    assert refused(iter(core)) == []


# --- written of public names alone ------------------------------------------------------------------------------------


class EverySecond:
    """A sampler of one's own: every second row, in random order."""

    columns = ()

    def bind(self, table: samplers.Table) -> Any:
        n = table.n_rows // 2

        def order(epoch: int) -> samplers.Order:
            key = samplers.Key(table.seed, epoch, samplers.Purpose.BLOCKS)
            stream = samplers.Stream((n,), 1, samplers.permutation(n, key))
            return samplers.RowOrder(stream, table.batch_size, find=lambda numbers: 2 * numbers)

        return order

    def describe(self) -> dict[str, Any]:
        return {"sampler": "EverySecond"}


class ScipyLoader(Adapter):
    """An adapter of one's own: SciPy's matrices."""

    def __init__(self, ds: Loader) -> None:
        super().__init__(ds, Emit())

    def _hand_over(self, batch: Batch) -> Batch:
        return replace(batch, data=batch.data.to_scipy(), layers=converted(batch.layers, lambda csr: csr.to_scipy()))


def test_a_sampler_and_an_adapter_of_public_names_give_the_rows_of_scipy() -> None:
    adata = named_adata(np.random.default_rng(0), range(40), range(6))
    ds = Loader(batch_size=8, chunk_size=4, preload_nchunks=2, sampler=EverySecond()).add_anndatas([adata])
    orders = []
    for _ in range(2):
        batches = list(ScipyLoader(ds))
        for batch in batches:
            assert (batch["data"] != adata.X[batch["index"]]).nnz == 0
        orders.append(np.concatenate([batch["index"] for batch in batches]).tolist())
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(0, 40, 2))
    assert orders[0] != orders[1]


# --- earlier paths ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", EARLIER)
def test_an_earlier_path_works_and_names_the_new_one(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.delitem(vars(annbatch), module.partition(".")[2], raising=False)
    names = ", ".join(EARLIER[module])
    with pytest.warns(FutureWarning, match=rf"^{module} is deprecated: import {names} from annbatch\.samplers$") as w:
        exec(compile(f"from {module} import {names}", "user.py", "exec"), {})
    assert [warning.filename for warning in w] == ["user.py"]
    earlier = sys.modules[module]
    assert earlier.__all__ == EARLIER[module]
    for name in EARLIER[module]:
        assert getattr(earlier, name) is getattr(samplers, name)


def test_an_earlier_path_works_as_an_attribute_and_is_not_loaded_unasked() -> None:
    code = """
import sys, warnings
warnings.simplefilter("error")
import annbatch
assert not {"annbatch.stream", "annbatch.permutation"} & set(sys.modules)
warnings.simplefilter("ignore")
assert annbatch.stream.Stream is annbatch.samplers.Stream
assert annbatch.permutation.Key is annbatch.samplers.Key
assert not hasattr(annbatch, "nothing")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


# --- the command line -------------------------------------------------------------------------------------------------


def test_the_page_of_the_command_line_shows_every_command_and_exit_code() -> None:
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert re.findall(r"^```\{command-help\} (\w+)$", page, flags=re.MULTILINE) == list(COMMANDS)
    assert re.findall(r"^## annbatch (\w+)$", page, flags=re.MULTILINE) == list(COMMANDS)
    shown = {int(code) for code in re.findall(r"^\| (\d+) \|", page, flags=re.MULTILINE)}
    assert shown == {0, 130, *(code for _, code in library_errors.CODES)}
