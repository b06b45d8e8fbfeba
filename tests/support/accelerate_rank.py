"""Two ranks of Hugging Face accelerate, in processes that are forked; `test_client_matrix` starts them.

Whoever could be given half of an epoch is refused on each rank; the ways that are named instead give every row once.
"""

from __future__ import annotations

import os
import sys
import warnings
from typing import Any

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration
from torch.utils.data import DataLoader, IterableDataset

from annbatch import InputError, Loader, Partition
from annbatch_torch import TorchLoader
from forked_ranks import fork_ranks, say_line

N_ROWS = 112


def loader(form: Any = "batch", **options: Any) -> TorchLoader:
    core = Loader(batch_size=8, chunk_size=2, preload_nchunks=4, threads=1, **options)
    core.add_anndatas([ad.AnnData(sp.csr_matrix(np.eye(N_ROWS, dtype=np.float32)))])
    return TorchLoader(core, form=form, layout="csr" if form == "batch" else "dense")


def tensors(batch: Any) -> dict[str, Any]:
    return {"index": batch["index"], "data": batch["data"].to_dense()}


def first_tensors(batches: list[Any]) -> dict[str, Any]:
    return tensors(batches[0])


class Transformed(IterableDataset[Any]):
    """A dataset of the user's own that has a loader in it."""

    def __iter__(self) -> Any:
        return map(tensors, loader())


def of_both_ranks(rows: list[int]) -> list[int]:
    gathered: list[Any] = [None, None]
    dist.all_gather_object(gathered, rows)
    return sorted(row for rows in gathered for row in rows)


def check_refused(accelerator: Accelerator, data: Any) -> None:
    with pytest.raises(InputError, match=r"prepare\(TorchLoader\(ds\)\).*Partition\(0, 1\)"):
        next(iter(accelerator.prepare(data)))


def start_rank(rank: int) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    main()


def main() -> None:
    accelerator = Accelerator(cpu=True)
    epochs = []
    prepared = accelerator.prepare(loader())
    for _ in range(2):
        rows = [row for batch in prepared for row in batch["index"].tolist()]
        assert of_both_ranks(rows) == list(range(N_ROWS))
        epochs.append(rows)
    assert epochs[0] != epochs[1]

    for data in (
        DataLoader(loader(), batch_size=None),
        DataLoader(loader(), batch_size=None, collate_fn=tensors),
        DataLoader(Transformed(), batch_size=None),
    ):
        check_refused(accelerator, data)
    every_second = Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(dispatch_batches=False))
    check_refused(every_second, DataLoader(loader(), batch_size=1, collate_fn=first_tensors))

    whole = loader("dict", partition=Partition(0, 1))
    for n_workers in (0, 2):
        data = DataLoader(whole, batch_size=None, num_workers=n_workers)
        dealt = accelerator.prepare(data)
        batches = [batch["index"].tolist() for batch in dealt]
        assert len(batches) == len(dealt)
        assert of_both_ranks([row for batch in batches for row in batch]) == list(range(N_ROWS))
    say_line("right")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    ranks = fork_ranks(2, start_rank)
    sys.exit(sum(os.waitpid(pid, 0)[1] != 0 for pid in ranks))
