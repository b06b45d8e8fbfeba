"""Do the lists of mutation testing name files that there are, does its page show its results, and are these right?"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
HERE = ROOT / "tests" / "mutants"


def listed(name: str) -> Any:
    return tomllib.loads((HERE / name).read_text())


def loaded(name: str) -> Any:
    """Import a file of the folder, which is no package."""
    spec = importlib.util.spec_from_file_location(f"mutants_{name}", HERE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_lists_name_what_there_is():
    modules = listed("modules.toml")["modules"]
    assert modules
    for module, tests in modules.items():
        assert [path for path in (module, *tests) if not (ROOT / path.partition("::")[0]).is_file()] == []
        assert tests
    results = json.loads((HERE / "results.json").read_text())
    assert set(results) | set(listed("survivors.toml")) <= set(modules)


def test_every_reason_is_of_a_survivor():
    results = json.loads((HERE / "results.json").read_text())
    for module, reasons in listed("survivors.toml").items():
        survived = {(one["was"], one["is"]) for one in results[module]["survivors"]}
        for reason in reasons:
            was = {pair for pair in survived if pair[0] == reason["was"] and reason["is"] in ("*", pair[1])}
            assert was, reason


def test_the_page_shows_the_results():
    results = json.loads((HERE / "results.json").read_text())
    found = loaded("table").table(listed("modules.toml")["modules"], results, listed("survivors.toml"))
    assert (ROOT / "docs/mutants-table.inc").read_text() == found, "run tests/mutants/table.py"


TRIALS: dict[str, tuple[str, bool | None]] = {
    "passes": ("def test_it(): pass", False),
    "fails": ("def test_it(): assert False", True),
    "cannot be imported": ("import annbatch_of_nobody", True),
    "loops": ("def test_it():\n    while True: pass", True),
    "waits": ("import time\ndef test_it(): time.sleep(99)", True),
    "crashes": ("import os\ndef test_it(): os.abort()", True),
    "is ended by others": ("import os\ndef test_it(): os.kill(os.getpid(), 15)", None),
    "has no test": ("", None),
}
"""Name of a test file to its source, and whether a mutant of which it is the test is killed."""

RUN_TRIALS = """
import json, sys
from pathlib import Path
import trials
running = [
    trials.begin(copy, ["test_case.py"], trials.Limits(cpu_s=1, clock_s=3 if copy.name == "waits" else 300))
    for copy in Path(sys.argv[1]).iterdir()
]
outcomes = {}
while running:
    trial, outcome = trials.end_of_one(running)
    running.remove(trial)
    outcomes[trial.copy.name] = outcome.is_killed
both = Path(sys.argv[1], "fails")
(both / "test_case.py").write_text("def test_a(): assert False\\ndef test_b(): assert False")
limits = trials.Limits(cpu_s=60, clock_s=300)
failed = [trials.run(both, ["test_case.py"], limits, first=first).failed for first in ([], ["test_case.py::test_b"])]
print(json.dumps([outcomes, failed]))
"""


def test_a_mutant_is_killed_by_its_tests_and_by_limits_alone(tmp_path: Path):
    for name, (source, _) in TRIALS.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "test_case.py").write_text(source)
    environment = os.environ | {"PYTHONPATH": str(HERE), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    command = [sys.executable, "-c", RUN_TRIALS, str(tmp_path)]
    found = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    outcomes, failed = json.loads(found.stdout)
    assert outcomes == {name: is_killed for name, (_, is_killed) in TRIALS.items()}
    assert failed == ["test_case.py::test_a", "test_case.py::test_b"]


def test_kernels_that_have_another_module_compiled_in_are_stale(tmp_path: Path):
    sources = {
        "a": "LIMIT = 3\nInts = object\n",
        "b": "from annbatch.a import LIMIT\n@inline\ndef small(x):\n    return x < LIMIT\n",
        "c": "from annbatch.a import Ints\n@Kernel\ndef same(x: Ints):\n    return x\n",
        "d": "from annbatch.b import small as is_small\n@Kernel\ndef not_small(x):\n    return not is_small(x)\n",
        "e": "from annbatch.a import LIMIT\ndef is_limit(x):\n    return x == LIMIT\n",
    }
    (tmp_path / "annbatch").mkdir()
    for name, source in sources.items():
        (tmp_path / f"annbatch/{name}.py").write_text(source)
    found = loaded("kernel_caches").stale_kernels(tmp_path, "annbatch/a.py")
    assert found == ["annbatch/b.py", "annbatch/d.py"]
