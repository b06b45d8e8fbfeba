"""Does the GPU's benchmark refuse a machine that has none, before it does anything?"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_refuses_a_machine_without_a_gpu(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "adapters")))
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "bench_gpu.py", "--work", tmp_path / "work", "--results", tmp_path],
        env=os.environ | {"PYTHONPATH": paths, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("bench_gpu.py needs a CUDA device that is usable here, got: ")
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []
