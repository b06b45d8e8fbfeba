"""Do worker processes of torch's DataLoader give every row once, another order each epoch, and go on exactly?"""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from conftest import MakeLoader  # noqa: E402
from torch.utils.data import DataLoader  # noqa: E402

from annbatch import InputError, Loader, Partition  # noqa: E402
from annbatch.samplers import Stratified  # noqa: E402
from annbatch_torch import TorchLoader  # noqa: E402
from epochs import each_batch  # noqa: E402
from stores import named_stores  # noqa: E402

pytestmark = [
    # Python, and JAX where it was imported, warn of threads in a process that forks; that is what is tested.
    pytest.mark.filterwarnings("ignore:.*fork.*"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),
    # torch makes the tensors anew where they arrive, in its own words.
    pytest.mark.filterwarnings("ignore:Sparse"),
    # torchdata calls what torch has deprecated.
    pytest.mark.filterwarnings("ignore:.*set_vital"),
]


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return named_stores(tmp_path_factory.mktemp("stores"), "v3 sharded", sizes=(130, 53))


def torch_loader(stores: Any, **options: Any) -> TorchLoader:
    asked = {"batch_size": 8, "chunk_size": 4, "preload_nchunks": 4, "threads": 1} | options
    return TorchLoader(Loader(**asked).add_anndatas(stores[0], labels=["stage"]))


def rows_of(batches: Any) -> list[list[int]]:
    return [batch["index"].tolist() for batch in batches]


def flat(batches: list[list[int]]) -> list[int]:
    return [row for batch in batches for row in batch]


def in_turn(stores: Any, n_workers: int, epoch: int) -> list[list[int]]:
    """What one process finds if it plays all the workers itself: a batch of each, in their turn."""
    workers = [torch_loader(stores, partition=Partition(0, 1, w, n_workers)) for w in range(max(1, n_workers))]
    for ds in workers:
        ds.set_epoch(epoch)
    return [batch for batches in zip_longest(*map(rows_of, workers)) for batch in batches if batch is not None]


@pytest.mark.parametrize(
    ("method", "persistent", "n_workers"),
    [
        (None, False, 0),
        ("fork", True, 4),
        ("fork", False, 4),
        ("spawn", True, 1),
        # Two workers that are forked, `test_client_matrix` has, too. A second one that is spawned shows no more.
        pytest.param("fork", False, 2, marks=pytest.mark.slow),
        pytest.param("spawn", True, 2, marks=pytest.mark.slow),
        pytest.param("forkserver", True, 2, marks=pytest.mark.slow),
        # Interpreters that start anew for each epoch take long, and so do many of them.
        *(
            pytest.param(method, persistent, n_workers, marks=pytest.mark.slow)
            for method in ("spawn", "forkserver")
            for persistent, n_workers in ((True, 4), (False, 2), (False, 4))
        ),
    ],
)
def test_workers(stores: Any, method: str | None, persistent: bool, n_workers: int) -> None:
    """Every row once, in the turn that the order demands; other orders each epoch; data and codes in their places."""
    _, x, obs = stores
    ds = torch_loader(stores)
    workers = DataLoader(
        ds, batch_size=None, num_workers=n_workers, multiprocessing_context=method, persistent_workers=persistent
    )
    epochs = []
    for _ in range(3):
        epoch = []
        for batch in workers:
            index = batch["index"].numpy()
            np.testing.assert_array_equal(batch["data"].to_dense().numpy(), x[index].toarray())
            np.testing.assert_array_equal(batch.codes["stage"].numpy(), obs["stage"].cat.codes.to_numpy()[index])
            assert batch["labels"]["stage"].tolist() == obs["stage"].iloc[index].tolist()
            epoch.append(index.tolist())
        assert sorted(flat(epoch)) == list(range(x.shape[0]))
        epochs.append(epoch)
        stats = ds.stats()
        assert (stats.cells, stats.batches, stats.workers) == (x.shape[0], len(epoch), n_workers)
        assert stats.epoch == len(epochs) - 1
        assert stats.bytes_decoded >= 8 * x.nnz
        assert (stats.wait_share is None) == (n_workers > 0)
    assert epochs[0] != epochs[1] != epochs[2]
    assert epochs == [in_turn(stores, n_workers, epoch) for epoch in range(3)]
    alone = torch_loader(stores)
    assert [sorted(epoch) for epoch in epochs] == [sorted(rows_of(alone)) for _ in range(3)]
    ds.set_epoch(1)
    assert rows_of(workers) == epochs[1]
    assert rows_of(workers) == epochs[2]


def test_an_adapter_resumes(stores: Any) -> None:
    whole = rows_of(torch_loader(stores))
    ds = torch_loader(stores)
    iterator = iter(ds)
    had = rows_of(next(iterator) for _ in range(7))
    resumed = torch_loader(stores)
    resumed.load_state_dict(json.loads(json.dumps(ds.state_dict())))
    assert had + rows_of(resumed) == whole


def test_an_epoch_left_early_is_followed_by_a_whole_one(stores: Any) -> None:
    for persistent in (False, True):
        ds = torch_loader(stores)
        workers = DataLoader(
            ds, batch_size=None, num_workers=2, multiprocessing_context="fork", persistent_workers=persistent
        )
        first: Iterator[Any] = iter(workers)
        next(first)
        del first
        gc.collect()
        assert sorted(flat(rows_of(workers))) == list(range(183))


def test_classes_go_to_workers(stores: Any) -> None:
    ds = torch_loader(stores, sampler=Stratified("stage", {"early": 1, "late": 7}))
    codes = stores[2]["stage"].cat.codes.to_numpy()
    for batch in each_batch(DataLoader(ds, batch_size=None, num_workers=2, multiprocessing_context="fork")):
        assert np.bincount(codes[batch["index"]], minlength=3).tolist() == [1, 0, 7]


def test_a_state_loaded_here_holds_for_workers_too(stores: Any) -> None:
    """One consumer had ten batches; two workers take the rest, and then go on with whole epochs."""
    alone = torch_loader(stores)
    iterator = iter(alone)
    had = rows_of(next(iterator) for _ in range(10))
    ds = torch_loader(stores)
    ds.load_state_dict(json.loads(json.dumps(alone.state_dict())))
    workers = DataLoader(ds, batch_size=None, num_workers=2, multiprocessing_context="fork")
    assert sorted(flat(had) + flat(rows_of(workers))) == list(range(183))
    assert sorted(flat(rows_of(workers))) == list(range(183))


def test_workers_that_cannot_hear_of_a_state_say_so(stores: Any) -> None:
    ds = torch_loader(stores)
    workers = DataLoader(ds, batch_size=None, num_workers=1, multiprocessing_context="fork", persistent_workers=True)
    list(workers)
    ds.load_state_dict(ds.state_dict())
    with pytest.raises(RuntimeError, match="make a new one"):
        list(workers)


@pytest.mark.parametrize(
    "n_workers", [pytest.param(0, marks=pytest.mark.slow), 1, 2, pytest.param(5, marks=pytest.mark.slow)]
)
def test_stateful_data_loader_resumes_exactly(stores: Any, n_workers: int) -> None:
    """Also behind the last batch, which is one of a worker that still reads when another one is done."""
    stateful = pytest.importorskip("torchdata.stateful_dataloader")

    def workers() -> Any:
        context = "fork" if n_workers else None
        return stateful.StatefulDataLoader(
            torch_loader(stores), batch_size=None, num_workers=n_workers, multiprocessing_context=context
        )

    whole = workers()
    epochs = [rows_of(whole) for _ in range(3)]
    n_batches = len(epochs[0])
    assert n_batches == len(whole)
    # With one worker the ends of an epoch are what is of interest.
    for n_had in (0, 5, n_batches - 1, n_batches) if n_workers != 1 else (n_batches,):
        begun = workers()
        iterator = iter(begun)
        had = rows_of(next(iterator) for _ in range(n_had))
        assert had == epochs[0][:n_had]
        state = begun.state_dict()
        del iterator
        resumed = workers()
        resumed.load_state_dict(state)
        assert rows_of(resumed) == epochs[0][n_had:]
        assert rows_of(resumed) == epochs[1]
    begun = workers()
    for epoch in range(2):
        assert rows_of(begun) == epochs[epoch]
        resumed = workers()
        resumed.load_state_dict(begun.state_dict())
        assert rows_of(resumed) == epochs[epoch + 1]


def test_nodes_of_torchdata_resume_exactly(stores: Any) -> None:
    nodes = pytest.importorskip("torchdata.nodes")

    def loader() -> Any:
        return nodes.Loader(nodes.IterableWrapper(torch_loader(stores)))

    whole = loader()
    epochs = [rows_of(whole) for _ in range(3)]
    for n_had in (0, 3):
        begun = loader()
        iterator = iter(begun)
        rows_of(next(iterator) for _ in range(n_had))
        resumed = loader()
        resumed.load_state_dict(begun.state_dict())
        assert rows_of(resumed) == epochs[0][n_had:]
        assert rows_of(resumed) == epochs[1]
    begun = loader()
    assert rows_of(begun) == epochs[0]
    resumed = loader()
    resumed.load_state_dict(begun.state_dict())
    assert [rows_of(resumed) for _ in range(2)] == epochs[1:]


def test_states_of_workers_are_for_the_same_workers(stores: Any) -> None:
    def of(*numbers: int) -> TorchLoader:
        return torch_loader(stores, partition=Partition(*numbers))

    second = of(0, 1, 1, 2)
    batches = iter(second)
    had = rows_of(next(batches) for _ in range(3))
    state = json.loads(json.dumps(second.state_dict()))
    resumed = of(0, 1, 1, 2)
    resumed.load_state_dict(state)
    assert had + rows_of(resumed) == rows_of(of(0, 1, 1, 2))
    for numbers in ((0, 1), (0, 1, 0, 2), (0, 1, 1, 3), (0, 2, 1, 2)):
        with pytest.raises(InputError, match="got the state of worker 1 of 2 of one of 1 ranks: load the state"):
            of(*numbers).load_state_dict(state)
    for worker in ([2, 2, 0], [0, 2], "all", [0, 1, -1]):
        with pytest.raises(InputError, match="worker of the state must be"):
            second.load_state_dict(state | {"worker": worker})
    with pytest.raises(InputError, match=r"beyond the end of epoch 0: worker 1 of 2 gets \d+ batches, not 99"):
        second.load_state_dict(state | {"worker": [1, 2, 99]})
    # Earlier versions made each of the two workers a consumer.
    del state["worker"]
    with pytest.raises(InputError, match=r"one of 1 ranks, got the state of one of 2 consumers: .* an earlier version"):
        second.load_state_dict(state | {"parts": [[2, 3]]})


def test_length_in_workers_is_that_of_the_worker(stores: Any) -> None:
    lengths = [len(torch_loader(stores, partition=Partition(0, 1, worker, 5))) for worker in range(5)]
    assert lengths == [len(torch_loader(stores, partition=Partition(0, 1, worker, 5)).loader) for worker in range(5)]
    assert len(set(lengths)) > 1
    assert sum(lengths) == len(torch_loader(stores))


def test_labels_of_a_batch_go_to_other_processes_without_the_stores(stores: Any, tmp_path: Path) -> None:
    import pickle

    batch = next(iter(torch_loader(stores)))
    assert len(pickle.dumps(batch.make_labels)) < 6000


@pytest.mark.parametrize("workers", [0, 1])
def test_a_data_loader_must_not_make_batches_of_batches(make_loader: MakeLoader, workers: int) -> None:
    wrapped = DataLoader(TorchLoader(make_loader()), num_workers=workers)
    with pytest.raises(TypeError, match=r"write DataLoader\(TorchLoader\(ds\), batch_size=None\)"):
        next(iter(wrapped))


@pytest.mark.parametrize("batch_size", [1, None])
def test_a_data_loader_takes_no_core_loader(make_loader: MakeLoader, batch_size: int | None) -> None:
    with pytest.raises(TypeError, match=r"write DataLoader\(annbatch_torch.TorchLoader\(ds\), batch_size=None\)"):
        next(iter(DataLoader(make_loader(), batch_size=batch_size)))


def test_loaders_and_batches_say_what_they_hold(make_loader: MakeLoader) -> None:
    ds = TorchLoader(make_loader())
    assert repr(ds).startswith("TorchLoader(layout=csr, dtype=torch.float32, device=cpu, batch_size=32, ")
    assert repr(next(iter(ds))).startswith(f"TorchBatch(data=sparse_csr float32 (32, {ds.n_vars}), labels=[")
