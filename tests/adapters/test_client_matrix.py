"""Does every client get each row once, in as many batches as `len` says, for any number of workers and ranks?

The truth is what the core loader gives a rank that has no workers, and SciPy's rows of the matrix.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import combinations, product
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp

torch = pytest.importorskip("torch", reason="torch is not installed")

from torch.utils.data import DataLoader  # noqa: E402

from annbatch import InputError, Loader, Partition  # noqa: E402
from annbatch_torch import TorchLoader  # noqa: E402
from ports import free_port  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*fork.*"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),
    pytest.mark.filterwarnings("ignore:Sparse"),
    pytest.mark.filterwarnings("ignore:.*set_vital"),
    pytest.mark.filterwarnings("ignore:::lightning"),
    pytest.mark.filterwarnings("ignore:::pytorch_lightning"),
    pytest.mark.filterwarnings("ignore:.*isinstance.*LeafSpec"),
]

N_ROWS, N_EPOCHS = 333, 2
# Row r has its number where row and column meet, and r mod 3 other values.
X = sp.csr_matrix((np.arange(N_ROWS)[:, None] % 7 == np.arange(7)) * (np.arange(N_ROWS)[:, None] + 1), dtype=np.float32)

Rows = list[list[int]]
Client = Callable[[TorchLoader, int], Iterator[tuple[int, Rows]]]
"""Gives, for each epoch, the length that the client saw and the rows of its batches."""


def core(**options: Any) -> Loader:
    asked = {"batch_size": 8, "chunk_size": 4, "preload_nchunks": 4, "threads": 1, "seed": 5} | options
    return Loader(**asked).add_anndatas([ad.AnnData(X)])


def rows_of(batches: Any) -> Rows:
    found = []
    for batch in batches:
        index, data = batch["index"], batch["data"]
        np.testing.assert_array_equal(data.to_dense().numpy(), X[index.numpy()].toarray())
        found.append(index.tolist())
    return found


def data_loader(ds: TorchLoader, n_workers: int, kind: Any = DataLoader, **options: Any) -> Any:
    context = "fork" if n_workers else None
    return kind(ds, batch_size=None, num_workers=n_workers, multiprocessing_context=context, **options)


def plain(ds: TorchLoader, n_workers: int) -> Iterator[tuple[int, Rows]]:
    batches = data_loader(ds, n_workers, persistent_workers=n_workers > 0)
    for _ in range(N_EPOCHS):
        yield len(batches), rows_of(batches)


def stateful(ds: TorchLoader, n_workers: int) -> Iterator[tuple[int, Rows]]:
    """Another one goes on in the middle of the first epoch."""
    from torchdata.stateful_dataloader import StatefulDataLoader

    batches = data_loader(ds, n_workers, StatefulDataLoader)
    iterator = iter(batches)
    begun = rows_of(next(iterator) for _ in range(len(batches) // 2))
    state = batches.state_dict()
    del iterator
    batches = data_loader(
        TorchLoader(core(drop_last=ds.loader.drop_last, partition=ds.loader.partition)), n_workers, StatefulDataLoader
    )
    batches.load_state_dict(state)
    yield len(batches), begun + rows_of(batches)
    yield len(batches), rows_of(batches)


def lightning(ds: TorchLoader, n_workers: int) -> Iterator[tuple[int, Rows]]:
    """Trains and, behind the last batch of each epoch, validates."""
    pytest.importorskip("lightning.pytorch", reason="Lightning is not installed")
    from train_lightning import RowModel, make_trainer

    model, batches = RowModel(X.shape[1]), data_loader(ds, n_workers)
    val = TorchLoader(core(rows=np.arange(8)))
    make_trainer(max_epochs=N_EPOCHS, num_sanity_val_steps=1).fit(model, batches, val)
    assert len(model.val_rows) == 1 + N_EPOCHS
    n_batches = len(batches)
    for epoch in range(N_EPOCHS):
        yield n_batches, model.train_rows[epoch * n_batches : (epoch + 1) * n_batches]
    assert len(model.train_rows) == N_EPOCHS * n_batches


def accelerated(ds: TorchLoader, n_workers: int) -> Iterator[tuple[int, Rows]]:
    """As a loader of its own, and in a DataLoader of tensors that accelerate deals."""
    pytest.importorskip("accelerate", reason="accelerate is not installed")
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    if n_workers:
        prepared = accelerator.prepare(data_loader(ds, n_workers, collate_fn=tensors))
    else:
        prepared = accelerator.prepare(ds)
    for _ in range(N_EPOCHS):
        batches = [batch["index"].tolist() for batch in prepared]
        yield len(prepared), batches


def tensors(batch: Any) -> dict[str, Any]:
    return {"index": batch["index"], "data": batch["data"].to_dense()}


CLIENTS: dict[str, Client] = {
    "plain": plain,
    "stateful": stateful,
    "lightning": lightning,
    "accelerate": accelerated,
}
WORKERS, RANKS, DROP_LAST = (0, 2, 3, 5), (1, 2), (False, True)
# Each pair of values of two of the dimensions is in one of these.
PAIRS = {
    *(("plain", 0, 1, False), ("plain", 2, 2, True), ("plain", 3, 1, True), ("plain", 5, 2, False)),
    *(("stateful", 0, 2, True), ("stateful", 2, 1, False), ("stateful", 3, 2, False), ("stateful", 5, 1, True)),
    *(("lightning", 0, 2, False), ("lightning", 2, 1, True), ("lightning", 3, 2, True), ("lightning", 5, 1, False)),
    *(("accelerate", 0, 1, True), ("accelerate", 2, 2, False), ("accelerate", 3, 1, False), ("accelerate", 5, 2, True)),
}


@pytest.mark.parametrize(
    ("client", "n_workers", "n_ranks", "drop_last"),
    [
        pytest.param(*cell, marks=() if cell in PAIRS else pytest.mark.slow)
        for cell in product(CLIENTS, WORKERS, RANKS, DROP_LAST)
    ],
)
def test_a_client_gets_every_row_once(client: str, n_workers: int, n_ranks: int, drop_last: bool) -> None:
    seen: list[list[int]] = [[] for _ in range(N_EPOCHS)]
    lengths = set()
    for rank in range(n_ranks):
        partition = Partition(rank, n_ranks)
        truth = core(drop_last=drop_last, partition=partition)
        ds = TorchLoader(core(drop_last=drop_last, partition=partition))
        n_epochs = 0
        for epoch, (length, batches) in enumerate(CLIENTS[client](ds, n_workers)):
            expected = [batch.index.tolist() for batch in truth]
            assert length == len(batches) == len(expected)
            # The order in which workers' batches come is their own.
            assert sorted(batches) == sorted(expected)
            assert n_workers or batches == expected
            seen[epoch] += [row for batch in batches for row in batch]
            lengths.add(length)
            n_epochs += 1
        assert n_epochs == N_EPOCHS
    assert len(lengths) == 1
    for rows in seen:
        assert len(set(rows)) == len(rows) == (N_ROWS // (8 * n_ranks) * 8 * n_ranks if drop_last else N_ROWS)


def test_pairs_of_values_are_all_there() -> None:
    dimensions = (tuple(CLIENTS), WORKERS, RANKS, DROP_LAST)
    for one, other in combinations(range(4), 2):
        assert {(cell[one], cell[other]) for cell in PAIRS} == set(product(dimensions[one], dimensions[other]))


@pytest.mark.parametrize(("n_ranks", "drop_last"), [*product(RANKS, DROP_LAST)])
def test_jax_gets_every_row_once(n_ranks: int, drop_last: bool) -> None:
    pytest.importorskip("jax", reason="JAX is not installed")
    from annbatch_jax import JaxLoader, densify

    for rank in range(n_ranks):
        ds = JaxLoader(core(drop_last=drop_last, partition=Partition(rank, n_ranks)))
        truth = core(drop_last=drop_last, partition=Partition(rank, n_ranks))
        for _ in range(N_EPOCHS):
            iter(ds)
            found = []
            for batch in ds:
                index = batch["index"][np.asarray(batch["mask"])]
                np.testing.assert_array_equal(np.asarray(densify(batch["data"]))[: len(index)], X[index].toarray())
                found.append(index.tolist())
            assert found == [batch.index.tolist() for batch in truth]
            assert len(found) == len(ds)


class TestAccelerate:
    """Its ranks are real processes."""

    @pytest.fixture(autouse=True)
    def accelerate(self) -> None:
        pytest.importorskip("accelerate", reason="accelerate is not installed")

    def test_one_process_is_told_what_many_would_need(self) -> None:
        from accelerate import Accelerator

        prepared = Accelerator(cpu=True).prepare(data_loader(TorchLoader(core()), 0))
        with pytest.raises(InputError, match=r"accelerator.prepare\(TorchLoader\(ds\)\).*Partition\(0, 1\)"):
            next(iter(prepared))

    def test_ranks(self, tmp_path: Path) -> None:
        script = Path(__file__).parents[1] / "support/accelerate_rank.py"
        ranks = subprocess.run(
            [sys.executable, str(script)],
            capture_output=True,
            text=True,
            env=os.environ
            | {"PYTHONPATH": os.pathsep.join(sys.path), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())},
            timeout=250,
        )
        assert ranks.returncode == 0, ranks.stderr
        assert ranks.stdout == "right\n" * 2
