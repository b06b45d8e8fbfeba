"""Does `annbatch bench` measure what it says, recommend what it measured, and leave the collection alone?"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from annbatch import Loader, Stats, create_anndata_collection
from annbatch.cli import main
from annbatch.commands import bench_command
from annbatch.commands.bench_advice import Measured, advise
from annbatch.commands.bench_measurements import Run, Setting, disk_rates, files_of, forget, is_kept, run
from datagen import write_inputs

QUICK = ["--seconds", 0.5, "--chunk-size", 4, "--chunk-size", 16, "--batch-size", 8, "--threads", 1]


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench")
    create_anndata_collection(write_inputs(folder, sizes=(130, 53)), folder / "cells", progress=False)
    return folder / "cells"


def bench(*arguments: Any) -> Result:
    return CliRunner().invoke(main, ["bench", *map(str, arguments)])


def everything(folder: Path) -> dict[Path, tuple[bytes, int]]:
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


def test_measures_each_setting_and_recommends_one(collection: Path) -> None:
    before = everything(collection)
    done = bench(collection, *QUICK, "--json", "--no-progress")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert (found["n_obs"], found["bytes"]) == (183, sum(map(os.path.getsize, files_of(collection))))
    chunk_sizes = [one["setting"]["chunk_size"] for one in found["measured"]]
    assert chunk_sizes == [4, 16]
    for one in found["measured"]:
        assert one["warm"]["cells_per_second"] > 0
        assert one["warm"]["decode_cells_per_second"] > one["warm"]["cells_per_second"]
        assert one["warm"]["memory_bytes"] > 0
        assert one["warm"]["cells_of_pass"] <= 183 + 8
        assert (one["cold"] is None) == (found["disk_bytes_per_second"] is None)
    assert found["memory_bytes_per_second"] > 0
    assert found["recommended"]["setting"] in [one["setting"] for one in found["measured"]]
    assert everything(collection) == before


def test_says_it_in_text_with_progress(collection: Path) -> None:
    done = bench(collection, "--seconds", 0.2, "--chunk-size", 16, "--preload-nchunks", 2, "--batch-size", 8)
    assert done.exit_code == 0, done.output
    assert "183 cells" in done.stdout
    assert "recommended: Loader(batch_size=8, chunk_size=16, preload_nchunks=2" in done.stdout
    assert "measuring" in done.stderr
    assert "measuring" not in done.stdout


def test_an_object_store_has_no_disk(collection: Path) -> None:
    pytest.importorskip("obstore")
    done = bench(f"file://{collection}", "--seconds", 0.2, "--chunk-size", 16, "--batch-size", 8, "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    (one,) = found["measured"]
    assert one["warm"] is found["disk_bytes_per_second"] is None
    assert one["cold"]["requests"] > 0
    assert "object store" in found["notes"][0]


def test_what_cannot_be_dropped_is_not_called_cold(collection: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_command, "can_forget", lambda: False)
    done = bench(collection, "--seconds", 0.2, "--chunk-size", 16, "--batch-size", 8, "--json")
    found = json.loads(done.stdout)
    assert found["measured"][0]["cold"] is None
    assert "nothing was measured cold" in found["notes"][0]
    assert found["recommended"]["counts"] == "warm"


def test_what_is_no_collection_is_refused(tmp_path: Path) -> None:
    assert bench(tmp_path).exit_code == 3
    assert bench(tmp_path, "--chunk-size", 0).exit_code == 2


def test_dropped_files_are_gone(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(os.urandom(1 << 22))
    if is_kept(path) is None:
        pytest.skip("this file system does not say what it keeps")
    assert is_kept(path)
    cold, warm = disk_rates([path], 2, 0.2)
    forget([path])
    # What never leaves memory, as on tmpfs, is said to be kept.
    assert (cold is None) == is_kept(path)
    assert warm > 0


def test_a_run_repeats_the_same_rows(collection: Path) -> None:
    prepared: list[Stats] = []
    with Loader(batch_size=8, chunk_size=4, preload_nchunks=4).use_collection(collection, labels=[]) as ds:
        found = run(ds, 0.3, at_most_cells=40, prepare=lambda: prepared.append(ds.stats()))
    assert len(prepared) > 1
    assert {one.cells for one in prepared[1:]} == {found.cells_of_pass} == {40}
    assert {one.epoch for one in prepared} == {0}


def measured(speed: float, chunk_size: int, memory: int = 1, **more: Any) -> Measured:
    made = Run(speed, 2 * speed, 10 * speed, 0, "decoding", memory, 100)
    return Measured(Setting(64, chunk_size, memory, 2), **({"cold": made, "warm": made} | more))


# What was measured, what else is known, and what must hold of the advice.
CASES: dict[str, tuple[list[Measured], dict[str, Any], Callable[[Any], bool]]] = {
    "smaller blocks, where they are as fast": (
        [measured(95, 32), measured(100, 512), measured(40, 8)],
        {},
        lambda advice: advice.setting.chunk_size == 32,
    ),
    "larger ones, where they are faster": (
        [measured(80, 32), measured(100, 512)],
        {},
        lambda advice: advice.setting.chunk_size == 512,
    ),
    "less memory": (
        [measured(99, 32, 9), measured(100, 32, 10)],
        {},
        lambda advice: advice.setting.preload_nchunks == 9 and "99%" in advice.reasons[1],
    ),
    "cold counts where files do not fit": (
        [measured(100, 32)],
        {"n_bytes": 10**9, "memory": 10**9},
        lambda advice: advice.counts == "cold",
    ),
    "warm counts where they fit": (
        [measured(100, 32)],
        {"n_bytes": 10**9, "memory": 10**10},
        lambda advice: advice.counts == "warm",
    ),
    "warm counts where cold is not known": (
        [measured(100, 32, cold=None)],
        {"memory": None},
        lambda advice: advice.counts == "warm",
    ),
    "an object store": (
        [measured(100, 32, warm=None)],
        {"is_remote": True},
        lambda advice: "cache_dir" in advice.reasons[0],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_advice(case: str) -> None:
    given, facts, holds = CASES[case]
    advice = advise(given, **({"n_bytes": 10**9, "memory": 10**8, "disk": 1e9, "is_remote": False} | facts))
    assert holds(advice), advice
    assert all(reason.endswith(".") for reason in advice.reasons)
