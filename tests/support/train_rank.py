"""Ranks of a training run, which are killed and go on; `test_distributed` starts and kills them.

Usage: train_rank.py FRAMEWORK WORLD PORT PORT STORES OUT BATCHES

The ranks are forked once the framework has been imported. Two ranks read BATCHES batches each, say so on a line with
the number of their process, and wait to be killed. Then WORLD ranks go on where these stood, and say when the epoch is
over.

Row numbers of every batch go to ``OUT/killed.rank{RANK}``, then ``OUT/resumed.rank{RANK}``, as they come, a line each;
after each batch rank 0 puts the state in ``OUT/state``, whole or not at all.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import zarr

from annbatch import Loader
from forked_ranks import fork_ranks, say_line


def opened(folder: Path) -> list[ad.AnnData]:
    groups = [zarr.open_group(path, mode="r") for path in sorted(folder.glob("*.zarr"), key=lambda path: path.stem)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [ad.AnnData(X=ad.io.sparse_dataset(group["X"]), obs=ad.io.read_elem(group["obs"])) for group in groups]


Rank = tuple[Any, Callable[[Any], None], Callable[[], None], Callable[[], None]]
"""The adapter; a training step; waits for the other ranks; takes leave of them."""


def torch_rank(rank: int, world: int, port: str, ds: Loader) -> Rank:
    import torch
    import torch.distributed as dist

    from annbatch_torch import TorchLoader

    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(ds.n_vars, 2))

    def step(batch: Any) -> None:
        # Hangs unless all ranks make the same steps.
        model(batch["data"].to_dense()).square().mean().backward()

    return TorchLoader(ds), step, dist.barrier, dist.destroy_process_group


def jax_rank(rank: int, world: int, port: str, ds: Loader) -> Rank:
    import jax

    from annbatch_jax import JaxLoader, densify

    jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=world, process_id=rank)
    total = jax.jit(lambda data: densify(data).sum())

    def step(batch: Any) -> None:
        assert total(batch["data"]) >= 0

    return JaxLoader(ds), step, lambda: None, jax.distributed.shutdown


def read(
    framework: str, rank: int, world: int, port: str, stores: Path, out: Path, what: str, stop_after: int | None
) -> None:
    core = Loader(batch_size=8, chunk_size=3, preload_nchunks=5, threads=1, seed=3).add_anndatas(opened(stores))
    ds, step, barrier, leave = {"torch": torch_rank, "jax": jax_rank}[framework](rank, world, port, core)
    assert (ds.partition.index, ds.partition.count) == (rank, world)
    state_file = out / "state"
    if state_file.exists():
        ds.load_state_dict(json.loads(state_file.read_text()))
    lines = (out / f"{what}.rank{rank}").open("w")
    for n, batch in enumerate(ds, 1):
        step(batch)
        print(json.dumps([int(row) for row in batch["index"] if row >= 0]), file=lines, flush=True)
        barrier()
        if rank == 0:
            temporary = out / "state.new"
            temporary.write_text(json.dumps(ds.state_dict()))
            temporary.rename(state_file)
        barrier()
        if n == stop_after:
            say_line(f"{os.getpid()} waits")
            time.sleep(600)
    leave()
    say_line(f"{rank} done, epoch {ds.state_dict()['epoch']} next")


if __name__ == "__main__":
    framework, world, *ports, stores, out, stop_after = sys.argv[1:]
    importlib.import_module(f"annbatch_{framework}")
    for port, what, n_ranks, stop in (
        (ports[0], "killed", 2, int(stop_after)),
        (ports[1], "resumed", int(world), None),
    ):
        shared = n_ranks, port, Path(stores), Path(out), what, stop
        ranks = fork_ranks(n_ranks, lambda rank, shared=shared: read(framework, rank, *shared))
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in ranks]
        if any(code != (0 if stop is None else -signal.SIGKILL) for code in codes):
            sys.exit(f"the ranks ended with {codes}")
