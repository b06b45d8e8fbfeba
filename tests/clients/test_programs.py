"""Do the programs of docs/clients.md run as they stand there?

Each is a process of its own, in a folder with the collection that the page makes. A program that saves checkpoints runs
a second time. It resumes, and ends as the first run did.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

pytest.importorskip("ray", reason="the clients are not installed: make test-clients")

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "clients.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, flags=re.DOTALL | re.MULTILINE))
NEEDED = {
    "Accelerate": ["accelerate", "torch"],
    "transformers": ["transformers", "torch"],
    "Ray Train": ["ray.train", "torch"],
    "Ray Data": ["ray.data"],
    "Grain, Flax NNX and Orbax": ["grain", "flax", "orbax"],
    "Equinox": ["equinox"],
    "Keras": ["keras", "torch"],
    "tf.data": ["tensorflow"],
    "scikit-learn": ["sklearn"],
    "scanpy and dask": ["scanpy", "dask", "xarray"],
}
"""Section -> the modules that its program needs."""
TWICE = ("Accelerate", "Ray Train", "Grain, Flax NNX and Orbax")


def examples(text: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)


def run(program: Path) -> str:
    # What a program of one's own would find installed.
    path = os.pathsep.join([str(ROOT), str(ROOT / "adapters")])
    environment = os.environ | {
        "PYTHONPATH": path,
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_worker_niceness": "0",  # as in test_ray
        "CUDA_VISIBLE_DEVICES": "",
    }
    done = subprocess.run(
        [sys.executable, str(program)], cwd=program.parent, env=environment, capture_output=True, text=True, timeout=540
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("section", NEEDED)
@pytest.mark.timeout(1200)
def test_program(section: str, tmp_path: Path) -> None:
    # Not by importing them here: Keras would look for TensorFlow.
    if absent := [module for module in NEEDED[section] if find_spec(module) is None]:
        pytest.skip(f"{', '.join(absent)} is not installed")
    (collection,) = examples((ROOT / "docs" / "collection.inc").read_text(encoding="utf-8"))
    (example,) = examples(SECTIONS[section])
    (tmp_path / "collection.py").write_text(collection, encoding="utf-8")
    run(tmp_path / "collection.py")
    program = tmp_path / "program.py"
    program.write_text(example, encoding="utf-8")
    first = run(program)
    if section in TWICE:
        assert run(program).splitlines()[-1] == first.splitlines()[-1]


def test_every_program_is_run() -> None:
    assert [section for section in SECTIONS if examples(SECTIONS[section])] == list(NEEDED)


def test_the_table_counts_the_lines_of_programs() -> None:
    table = dict(re.findall(r"^\| \[(.+?)\]\(#.+\| (\d+) \|$", PAGE, flags=re.MULTILINE))
    lines = {
        section: str(sum(bool(line.strip()) for line in examples(SECTIONS[section])[0].splitlines()))
        for section in NEEDED
    }
    assert table == lines
