"""Do ranks in real processes get their rows, and go on when they were killed?"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from annbatch import Loader
from ports import free_port
from stores import named_stores
from train_rank import opened

SUPPORT = Path(__file__).parents[1] / "support"
PATIENCE_S = 120


def start(framework: str, world: int, stores: Path, out: Path, stop_after: int) -> subprocess.Popen[str]:
    # No proxy stands between processes of one machine; JAX asks for its coordinator by HTTP.
    environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    arguments = [framework, str(world), str(free_port()), str(free_port()), str(stores), str(out), str(stop_after)]
    return subprocess.Popen(
        [sys.executable, str(SUPPORT / "train_rank.py"), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment | {"PYTHONPATH": os.pathsep.join(sys.path), "JAX_PLATFORMS": "cpu"},
        # Ranks that hang end with what forked them.
        start_new_session=True,
    )


def end(ranks: subprocess.Popen[str]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(ranks.pid, signal.SIGKILL)
    ranks.communicate()


def lines_of(out: Path, what: str, rank: int) -> list[list[int]]:
    return [json.loads(line) for line in (out / f"{what}.rank{rank}").read_text().splitlines()]


@pytest.mark.parametrize(
    ("framework", "world"),
    # That JAX's processes are its ranks, `test_jax_sharding` shows, too.
    [("torch", 3), *(pytest.param(*one, marks=pytest.mark.slow) for one in (("torch", 2), ("jax", 2), ("jax", 3)))],
)
def test_ranks_that_were_killed_go_on_where_they_stood(framework: str, world: int, tmp_path: Path) -> None:
    """Two ranks are killed behind their second batch; as many others, or three, take the rest of the epoch."""
    pytest.importorskip(framework)
    named_stores(tmp_path / "stores", "v3 sharded")
    out = tmp_path / "run"
    out.mkdir()
    ranks = start(framework, world, tmp_path / "stores", out, 2)
    assert ranks.stdout is not None
    try:
        for _ in range(2):
            pid, _, what = ranks.stdout.readline().partition(" ")
            assert what == "waits\n", ranks.communicate(timeout=PATIENCE_S)
            os.kill(int(pid), signal.SIGKILL)
        output, errors = ranks.communicate(timeout=PATIENCE_S)
    finally:
        end(ranks)
    assert ranks.returncode == 0, errors
    assert sorted(output.splitlines()) == [f"{rank} done, epoch 1 next" for rank in range(world)]
    # torch says that sparse tensors are in beta once in a process: in the first batch, unless it is kept from that.
    assert "beta" not in errors
    before = [lines_of(out, "killed", rank) for rank in range(2)]
    assert [len(batches) for batches in before] == [2, 2]
    after = [lines_of(out, "resumed", rank) for rank in range(world)]
    assert len({len(batches) for batches in after}) == 1

    core = Loader(batch_size=8, chunk_size=3, preload_nchunks=5, threads=1, seed=3)
    core.add_anndatas(opened(tmp_path / "stores"))
    rows = [row for batches in (*before, *after) for batch in batches for row in batch]
    np.testing.assert_array_equal(np.sort(rows), np.arange(core.n_obs))
