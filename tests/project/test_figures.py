"""Does the project show its newest figures, and know which results are older than the code that they measure?"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def measured_code(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return pytest.importorskip("harness.report.measured_code")


def test_every_result_has_code_that_it_measures(measured_code: Any) -> None:
    results = sorted((ROOT / "benchmarks" / "results").glob("*.json"))
    kinds = {path.name: measured_code.kind_of(path) for path in results}
    assert kinds["cpu-amd-epyc-2-cores.json"] == "cpu"
    assert kinds["build-field-amd-epyc-2-cores.json"] == "build-field"
    named = {path.removeprefix(":!") for paths in measured_code.MEASURED.values() for path in paths}
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []
    scripts = {
        json.loads(path.read_text()).get("command", "").split()[1:2][0] for path in results if "fuzz" not in path.name
    }
    assert [script for script in sorted(scripts) if not (ROOT / script).is_file()] == []
    with pytest.raises(KeyError, match="nothing-here.json: .* must say which code it measures"):
        measured_code.kind_of(Path("nothing-here.json"))


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_a_result_is_older_than_code_that_changed_since(
    measured_code: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("GIT_AUTHOR", "GIT_COMMITTER"):
        monkeypatch.setenv(f"{name}_NAME", "somebody")
        monkeypatch.setenv(f"{name}_EMAIL", "somebody@example.org")
    monkeypatch.setattr(measured_code, "ROOT", tmp_path)
    monkeypatch.setitem(measured_code.MEASURED, "cpu", ("annbatch", ":!annbatch/write"))

    def commit(path: str, day: int, text: str = "") -> str:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text or str(day))
        monkeypatch.setenv("GIT_COMMITTER_DATE", f"2026-01-{day:02}T12:00:00+0000")
        for words in (["add", "."], ["commit", "-q", "-m", path]):
            subprocess.run(["git", *words], cwd=tmp_path, check=True)
        return str(measured_code.git("rev-parse", "HEAD"))

    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    first = commit("annbatch/loader.py", 3)
    last = commit("annbatch/write/build.py", 7)

    def older(**record: str) -> str:
        return str(measured_code.age_of(Path("cpu-machine.json"), record).older)

    assert [older(date=f"2026-01-0{day}") for day in (2, 3, 4)] == ["yes", "not known: the same day", "no"]
    assert older() == "not known: no date"
    assert older(date="2026-01-03", commit=first) == older(date="2026-01-03", commit=last) == "no"
    # What builds is not what is measured, the benchmark is.
    changed = commit("benchmarks/bench.py", 9)
    command = "python benchmarks/bench.py --rounds 3"
    assert older(date="2026-01-08", command=command) == "yes"
    assert older(date="2026-01-08") == "no"
    assert older(date="2026-01-09", commit=last, command=command) == "yes"
    assert older(date="2026-01-09", commit=changed, command=command) == "no"
    assert older(date="2026-01-02", commit=f"{first}-dirty") == older(date="2026-01-02", commit="0" * 40) == "yes"

    # Of a module, only what runs is compared: not comments, docstrings and messages.
    source = '"""A few words."""\ndef f(x: int) -> int:\n    """One."""\n    return g(x, "key", f"no {x}")\n'
    said = commit("annbatch/words.py", 11, source)
    new_words = source.replace("One", "Two").replace("no {x}", "not {x}").replace("A few", "# Some")
    commit("annbatch/words.py", 12, new_words + "# The end.\n")
    assert older(date="2026-01-11", commit=said) == "no"
    for day, (old, new) in enumerate((('"key"', '"keys"'), ("{x}", "{-x}"), ("x: int", "x: float")), start=13):
        before = measured_code.git("rev-parse", "HEAD")
        commit("annbatch/words.py", day, new_words := new_words.replace(old, new))
        assert measured_code.age_of(Path("cpu-machine.json"), {"commit": before}).changed == ("annbatch/words.py",)


def test_the_headline_is_of_the_newest_result() -> None:
    paths = sorted((ROOT / "benchmarks" / "results").glob("cpu-*.json"))
    records = [json.loads(path.read_text()) for path in paths]
    newest = max(records, key=lambda record: record["date"])
    drawing = ROOT / "docs" / "_static" / "headline.svg"
    text = drawing.read_text(encoding="utf-8")
    assert drawing.stat().st_size <= 40_000
    for shown in (f"{newest['machine']}; {newest['date']}", "this project", "scverse annbatch", "Cells per second"):
        assert shown in text
    origin = f"{newest['machine']}; {newest['date']}"
    assert origin in (ROOT / "docs" / "speed-tables.inc").read_text(encoding="utf-8")


@pytest.fixture
def report(measured_code: Any) -> Any:
    return pytest.importorskip("report")


def test_pages_show_the_results_as_they_are(report: Any, tmp_path: Path) -> None:
    results, docs = ROOT / "benchmarks" / "results", ROOT / "docs"
    for kind, shown in report.SECTIONS.items():
        tables = docs / f"{shown.page}-tables.inc"
        assert report.section(kind, results, tables).strip() in tables.read_text(encoding="utf-8"), kind
    readme = tmp_path / "README.md"
    shutil.copy(ROOT / "README.md", readme)
    report.fill_readme(results, readme)
    assert readme.read_text(encoding="utf-8") == (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("command", ["genes", "obs", "types"])
def test_builds_from_many_files_are_measured_and_shown(command: str, tmp_path: Path, report: Any) -> None:
    options = ["--files", "2", "3", "--genes", "60", "--columns", "4", "--rounds", "1", "--folder", str(tmp_path)]
    script = [sys.executable, str(ROOT / "benchmarks" / "build_files.py"), command, *options]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([*script, "--results", str(tmp_path)], env=environment, check=True)
    text = report.section("build-files", tmp_path, tmp_path / "building-tables.inc")
    assert f"`python benchmarks/build_files.py {command} --files 2 3 --genes 60 --columns 4 --rounds 1`" in text
    assert len(re.findall(r"^\| build \| [23] \|.* ms \|.* MB \| float32 \|$", text, re.MULTILINE)) == 2
    assert text.count("| AnnData only reads obs |") == (2 if command == "obs" else 0)
