"""Do the lists of mutation testing name files that there are, and does its page show its results?"""

from __future__ import annotations

import importlib.util
import json
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
HERE = ROOT / "tests" / "mutants"


def listed(name: str) -> Any:
    return tomllib.loads((HERE / name).read_text())


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
    spec = importlib.util.spec_from_file_location("mutants_table", HERE / "table.py")
    assert spec is not None
    assert spec.loader is not None
    table = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(table)
    results = json.loads((HERE / "results.json").read_text())
    found = table.table(listed("modules.toml")["modules"], results, listed("survivors.toml"))
    assert (ROOT / "docs/mutants-table.inc").read_text() == found, "run tests/mutants/table.py"
