"""Is what the pages say of the code so?

1. Every module, function and path that ``docs/architecture.md`` and ``CONTRIBUTING.md`` name is there.
2. The functions that the walk names are called in its order when a batch is made.
3. The drawing has the floors of the contract.
4. The side bar shows every page.
5. The docstring of each room names the modules in it.
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
import threading
import tomllib
from functools import reduce
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest

import annbatch
from datagen import named_adata

EARLIER_PATHS = {"permutation", "stream"}
"""Modules that only say where their names stand now."""

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
CODE = ("annbatch", "annbatch_torch", "annbatch_jax", "annbatch_cupy", "annbatch_ray")
PAGES = {page.name: page.read_text(encoding="utf-8") for page in (DOCS / "architecture.md", ROOT / "CONTRIBUTING.md")}


def quoted(page: str) -> list[str]:
    """Give what the page has in backticks, outside of blocks of code."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```$", "", page, flags=re.DOTALL | re.MULTILINE))


def found(path: str) -> Any:
    """Give a module or what is in it by its full path."""
    names = path.split(".")
    for n in range(len(names), 0, -1):
        try:
            module = importlib.import_module(".".join(names[:n]))
        except ModuleNotFoundError as e:
            if not path.startswith(str(e.name)):
                raise
        else:
            return reduce(getattr, names[n:], module)
    raise ModuleNotFoundError(path)


def table_of_changes() -> str:
    """Give the section that says where to change what; its paths are relative."""
    return PAGES["CONTRIBUTING.md"].partition("## Where to change what")[2].partition("\n## ")[0]


@pytest.mark.parametrize("name", PAGES)
def test_everything_that_a_page_names_is_there(name: str) -> None:
    names = quoted(PAGES[name].replace(table_of_changes(), ""))
    code = [one for one in names if re.fullmatch(rf"({'|'.join(CODE)})(\.\w+)+", one)]
    paths = [one for one in names if re.fullmatch(r"(annbatch|adapters|tests|docs)/[\w./-]*", one)]
    assert len(code + paths) > 20
    assert [one for one in paths if not (ROOT / one).exists()] == []
    for one in code:
        if one.startswith("annbatch_torch"):
            pytest.importorskip("torch")
        found(one)


def test_the_table_of_changes_names_code_and_tests() -> None:
    rows = [row.strip("|").split("|") for row in table_of_changes().splitlines() if row.startswith("|")][2:]
    assert len(rows) >= 15
    for change, code, tests in rows:
        opened, tested = quoted(code), quoted(tests)
        assert opened, change
        assert [one for one in opened if not any((folder / one).exists() for folder in (ROOT / "annbatch", ROOT))] == []
        assert [one for one in tested if not (ROOT / "tests" / one).is_file()] == []
        assert any(Path(one).name.startswith("test_") for one in tested), change


def walk() -> list[str]:
    """Give the functions of the walk, in its order."""
    page = PAGES["architecture.md"].partition("## From a file to a tensor")[2].partition("\n## ")[0]
    return re.findall(r"^\| `([\w.]+)` \|", page, flags=re.MULTILINE)


def test_a_batch_is_made_by_the_functions_of_the_walk_in_their_order(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    torch_adapter = importlib.import_module("annbatch_torch")
    # What is compiled leaves no trace in Python.
    functions = {step: inspect.unwrap(found(step)) for step in walk()}
    codes = {function.__code__: step for step, function in functions.items() if hasattr(function, "__code__")}
    assert len(codes) > 25
    collection = tmp_path / "collection"
    adata = named_adata(np.random.default_rng(0), range(100), range(10))
    annbatch.create_anndata_collection([adata], collection, progress=False)
    called: list[str] = []

    def note(frame: FrameType, event: str, argument: Any) -> None:
        if event == "call" and frame.f_code in codes:
            called.append(codes[frame.f_code])

    threading.setprofile(note)
    sys.setprofile(note)
    try:
        # Without a window ahead, there is one order of calls.
        with annbatch.Loader(batch_size=8, prefetch=0).use_collection(collection, labels=["cell_type"]) as ds:
            next(iter(torch_adapter.TorchLoader(ds)))
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    calls = iter(called)
    missing = [step for step in codes.values() if step not in calls]
    assert missing == []


def test_the_drawing_has_the_floors_of_the_contract() -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        contracts = tomllib.load(file)["tool"]["importlinter"]["contracts"]
    layers = next(contract["layers"] for contract in contracts if contract.get("containers") == ["annbatch"])
    floors = [set(layer.split(" | ")) - EARLIER_PATHS for layer in layers]
    drawing = (DOCS / "_static" / "floors.svg").read_text(encoding="utf-8")
    groups = re.findall(r"<g .*?</g>", drawing, flags=re.DOTALL)
    drawn = [set(re.findall(r'class="name"[^>]*>([\w ·]+)<', group)) for group in groups]
    frameworks = " · ".join(CODE[1:])
    assert drawn == [floors[0] | {frameworks}, *floors[1:], set()]


def test_every_page_is_in_the_side_bar() -> None:
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    trees = re.findall(
        r"^```\{toctree\}\n:hidden:\n:caption: (.+?)\n\n(.*?)^```$", index, flags=re.DOTALL | re.MULTILINE
    )
    assert [caption for caption, _ in trees] == [
        "Get started",
        "Guides",
        "How fast and how safe",
        "Reference",
        "Project",
    ]
    shown = sorted(entry for _, entries in trees for entry in entries.split())
    found = (page for suffix in ("md", "ipynb") for page in DOCS.rglob(f"*.{suffix}"))
    pages = [page for page in found if not {"_build", ".ipynb_checkpoints"} & {*page.parts} and page.name != "index.md"]
    assert shown == sorted(str(page.relative_to(DOCS).with_suffix("")) for page in pages)


@pytest.mark.parametrize(
    "room", sorted(path.parent for path in (ROOT / "annbatch").glob("*/**/__init__.py")), ids=lambda p: p.name
)
def test_a_room_names_what_is_in_it(room: Path) -> None:
    docstring = importlib.import_module(".".join(room.relative_to(ROOT).parts)).__doc__ or ""
    inside = {path.stem for path in room.glob("*.py")} | {path.parent.name for path in room.glob("*/__init__.py")}
    assert {name for name in inside - {"__init__"} if f"`{name}`" not in docstring} == set()
