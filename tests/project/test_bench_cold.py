"""Does the benchmark of cold files run, and does the documentation show what it found?"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow


def run(*words: object) -> str:
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "adapters")))
    done = subprocess.run(
        [sys.executable, *map(str, words)],
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="no file is dropped from memory here")
def test_runs_and_is_shown(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    remote = "direct" if shutil.which("nginx") else ""
    options = ["--cells", 3000, "--genes", 400, "--nnz", 40, "--rounds", 2, "--settings", "512x32"]
    where = ["--work", tmp_path / "work", "--results", tmp_path / "results"]
    said = run(ROOT / "benchmarks/cold.py", *options, *where, "--contenders", "direct,direct-zstd", "--remote", remote)
    (path,) = (tmp_path / "results").glob("cold-*.json")
    rows = json.loads(path.read_text())["rows"]
    assert {row["state"] for row in rows} >= {"cold", "warm"}
    ours = [row for row in rows if row["contender"] == "annbatch-dlpack"]
    assert [len(row["cells_per_s"]) for row in ours if row["state"] != "object store"] == [2, 2]
    if "left out: the object store" not in said and remote:
        (far,) = (row for row in ours if row["state"] == "object store")
        assert far["requests_per_1000_cells"] > 0
        assert far["bytes_per_cell"] > 40
    readme = tmp_path / "README.md"
    readme.write_text("<!-- speed --><!-- /speed -->")
    run(ROOT / "benchmarks/report.py", "--results", tmp_path / "results", "--docs", tmp_path, "--readme", readme)
    shown = (tmp_path / "results-tables.inc").read_text()
    assert "Files that are not in memory" in shown
    assert "cat of" not in shown
    assert "| ours-zstd |" in shown
