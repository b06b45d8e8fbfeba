"""Is the package what it says it is?

1. `import annbatch` loads no framework, and no module of the core imports one anywhere, not even inside a function; nor
   a test framework.
2. An adapter without its framework gives one ImportError that says what to install.
3. On Windows one ImportError says where the package works.
4. The version is the one in the metadata; every package carries its types.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import annbatch

FRAMEWORKS = ("torch", "jax", "jaxlib", "flax", "cupy", "cupyx", "ray")
ADAPTERS = {"annbatch_torch": "torch", "annbatch_jax": "jax", "annbatch_cupy": "cupy", "annbatch_ray": "ray"}
CORE = Path(annbatch.__file__).parent


def run(code: str) -> str:
    """Run ``code`` in a fresh interpreter and give what it printed."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def imported_names(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]


def test_import_loads_no_framework() -> None:
    loaded = run(f"import sys; from annbatch import *; print(*sorted(set(sys.modules) & set({FRAMEWORKS})))").split()
    assert loaded == []


def test_every_public_name_is_there() -> None:
    assert annbatch.__all__
    missing = [name for name in annbatch.__all__ if not hasattr(annbatch, name)]
    assert missing == []


def test_core_modules_import_no_framework() -> None:
    found = {
        (str(path.relative_to(CORE)), name)
        for path in sorted(CORE.rglob("*.py"))
        for name in imported_names(path)
        if name in (*FRAMEWORKS, "pytest", "hypothesis")
    }
    lazily = {(module, name) for module in ("buffers.py", "device/cuda.py") for name in ("cupy", "cupyx")}
    assert found <= lazily


def test_adapters_without_their_frameworks_say_what_to_install() -> None:
    code = f"""
import importlib, importlib.abc, sys

class Hide(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == self.framework:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
        return None

hide = Hide()
sys.meta_path.insert(0, hide)
for adapter, hide.framework in {ADAPTERS}.items():
    try:
        importlib.import_module(adapter)
    except ImportError as error:
        print(adapter, type(error).__name__, error)
"""
    lines = run(code).splitlines()
    assert len(lines) == len(ADAPTERS)
    for line, (adapter, framework) in zip(lines, ADAPTERS.items(), strict=True):
        assert line.startswith(f"{adapter} ImportError ")
        assert f"pip install {framework}" in line
        assert "annbatch[" not in line


def test_windows_is_refused_in_one_sentence() -> None:
    # The standard library asks for the platform, too: what annbatch imports of it is there before the platform changes.
    code = """
import importlib.metadata, sys, typing
sys.platform = "win32"
for name in ("annbatch", "annbatch.cli"):
    try:
        importlib.import_module(name)
    except ImportError as error:
        print(error.name, error)
"""
    sentence = "annbatch does not support Windows; install it in the Windows Subsystem for Linux (WSL)"
    assert run(code).splitlines() == [f"annbatch {sentence}"] * 2


def test_version_is_that_of_the_metadata() -> None:
    assert annbatch.__version__ == version("annbatch-dlpack")


def test_types_are_shipped() -> None:
    packages = ["annbatch", *ADAPTERS]
    find = "importlib.util.find_spec(package).submodule_search_locations[0]"
    printed = run(f"import importlib.util\nfor package in {packages}: print({find})").splitlines()
    assert [Path(folder).name for folder in printed] == packages
    assert [folder for folder in printed if not Path(folder, "py.typed").is_file()] == []
