"""Is host memory left alone until copies from it are made, and is what arrives on a device right?

1. On the CPU the device is a thread that makes the copies it was given in order, when it is let: the same loader, the
   same ownership, real memory that is used again.
2. The tests marked ``gpu`` do the same on a CUDA device.
"""

from __future__ import annotations

import ctypes
import gc
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from conftest import MakeLoader  # noqa: E402

from adapter_truth import N_VARS, STORE_ROWS, Truth  # noqa: E402
from annbatch.buffers import SlabPool  # noqa: E402
from annbatch_torch import TorchLoader, densify  # noqa: E402
from annbatch_torch import _loader as loader_module  # noqa: E402
from annbatch_torch._device import Copies, page_locked  # noqa: E402
from epochs import each_batch  # noqa: E402

Layout = Literal["csr", "dense"]


class Event:
    """Stands behind the work that a `Device` has been given."""

    def __init__(self, work: Future[Any]) -> None:
        self._work = work

    def query(self) -> bool:
        return self._work.done()

    def synchronize(self) -> None:
        self._work.result()


class Device:
    """A thread that does what was queued, in order and late."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1)

    def submit(self, work: Callable[[], Any]) -> None:
        self._pool.submit(time.sleep, 0.001)
        self._pool.submit(work)

    def copy(self, source: Any) -> Any:
        """Copy late, from an address: as little as a real device does this own its source."""
        target = torch.empty_like(source)
        address, n_bytes = source.data_ptr(), source.numel() * source.element_size()
        self.submit(lambda: ctypes.memmove(target.data_ptr(), address, n_bytes))
        return target

    def event(self) -> Event:
        return Event(self._pool.submit(int))

    def close(self) -> None:
        self._pool.shutdown()


@pytest.fixture
def device() -> Iterator[Device]:
    device = Device()
    yield device
    device.close()


def test_memory_is_kept_until_it_was_copied(device: Device) -> None:
    pool, copies, targets = SlabPool(max_idle_bytes=1 << 30), Copies(), []
    for number in range(40):
        (array,) = pool.arrays((1000, np.dtype(np.int64)))
        array[:] = number
        targets.append(device.copy(torch.from_numpy(array)))
        copies.keep(array, device.event())
        del array
    device.event().synchronize()
    assert [int(target.unique()) for target in targets] == list(range(40))
    assert pool.idle_bytes <= 4 << 16, "no more than three pieces were in use"


def test_memory_of_copies_that_are_made_returns(device: Device) -> None:
    pool, copies = SlabPool(max_idle_bytes=1 << 30), Copies()
    for _ in range(2):
        device.copy(torch.from_numpy(pool.arrays((10, np.dtype(np.int64)))[0]))
        copies.keep(pool.arrays((10, np.dtype(np.int64))), device.event())
    device.event().synchronize()
    copies.keep(None, device.event())
    gc.collect()
    assert pool.idle_bytes >= 2 << 16


def test_who_goes_away_waits_for_the_copies() -> None:
    done = threading.Event()
    pool = ThreadPoolExecutor(1)
    copies = Copies()
    copies.keep(None, Event(pool.submit(done.wait, 0.05)))
    start = done.is_set()
    work = pool.submit(done.set)
    del copies
    work.result()
    assert not start
    pool.shutdown()


@pytest.mark.parametrize("layout", ["csr", "dense"])
def test_a_loader_for_a_device(
    layout: Layout, device: Device, make_loader: MakeLoader, truth: Truth, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches are right once the device has caught up, though it lags, and memory is used again meanwhile."""
    taken: list[int] = []

    def allocate(n_bytes: int) -> np.ndarray:
        taken.append(n_bytes)
        return np.empty(n_bytes, np.uint8)

    class OnDevice(TorchLoader):
        def _matrix(self, data: Any) -> Any:
            parts = [device.copy(self._tensor(part)) for part in (data.indptr, data.indices, data.data)]
            if self.layout == "csr":
                loader_module._accept_beta_state()
                return torch.sparse_csr_tensor(*parts, size=data.shape, check_invariants=False)
            dense = torch.empty(data.shape)
            device.submit(lambda: dense.copy_(densify(*parts, data.shape[1])))
            return dense

    monkeypatch.setattr(loader_module, "event_behind_copies", lambda _: device.event())
    core = make_loader()
    core._slabs = SlabPool(1 << 24, allocate)
    ds = OnDevice(core, layout=layout)
    ds._emit = replace(ds._emit, layout="csr", allocate=allocate)
    ds._copies = Copies()
    batches = [batch for _ in range(4) for batch in ds]
    device.event().synchronize()
    assert len(taken) < 0.8 * len(batches), "memory must be used again, or this tests nothing"
    for batch in batches:
        assert batch.data.is_sparse_csr == (layout == "csr")
        codes = {name: tensor.numpy() for name, tensor in batch.codes.items()}
        truth.check(batch.index.numpy(), batch.data.to_dense().numpy(), codes, ds.categories)


def test_memory_of_another_kind_is_not_mixed(make_loader: MakeLoader) -> None:
    core = make_loader()
    taken: list[np.ndarray] = []

    def allocate(n_bytes: int) -> np.ndarray:
        taken.append(np.empty(n_bytes, np.uint8))
        return taken[-1]

    list(TorchLoader(core))
    ds = TorchLoader(core)
    ds._emit = replace(ds._emit, allocate=allocate)
    for batch in each_batch(ds):
        address = batch.data.values().data_ptr()
        assert any(0 <= address - memory.ctypes.data < len(memory) for memory in taken)


# --- on a real device ------------------------------------------------------------------------------------------------


def check_on_host(batch: Any, truth: Truth, categories: Any) -> None:
    codes = {name: tensor.cpu().numpy() for name, tensor in batch.codes.items()}
    truth.check(batch.index.cpu().numpy(), batch.data.to_dense().cpu().numpy(), codes, categories)


@pytest.fixture
def cuda() -> None:
    if not torch.cuda.is_available():
        pytest.skip("this torch sees no CUDA device")


@pytest.mark.gpu
@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize("layout", ["csr", "dense"])
def test_on_a_gpu(layout: Layout, make_loader: MakeLoader, truth: Truth) -> None:
    ds = TorchLoader(make_loader(), device="cuda", layout=layout)
    seen = []
    for batch in ds:
        assert batch.data.is_sparse_csr == (layout == "csr")
        assert batch.data.dtype == torch.float32
        assert batch.data.device.type == batch.index.device.type == batch.codes["cell_type"].device.type == "cuda"
        if layout == "csr":
            assert batch.data.crow_indices().dtype == batch.data.col_indices().dtype == torch.int32
        check_on_host(batch, truth, ds.categories)
        seen.append(batch.index.cpu().numpy())
    np.testing.assert_array_equal(np.sort(np.concatenate(seen)), np.arange(sum(STORE_ROWS)))


@pytest.mark.gpu
@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize("layout", ["csr", "dense"])
def test_a_gpu_that_lags(layout: Layout, make_loader: MakeLoader, truth: Truth) -> None:
    """Copies wait behind long work, under another stream than the default one; the slabs must wait with them."""
    core = make_loader()
    core._slabs = SlabPool(1 << 24, page_locked)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        ds = TorchLoader(core, device="cuda", layout=layout)
        batches = []
        for _ in range(4):
            for batch in each_batch(ds):
                torch.cuda._sleep(20_000_000)
                batches.append(batch)
    stream.synchronize()
    for batch in batches:
        check_on_host(batch, truth, ds.categories)


@pytest.mark.gpu
@pytest.mark.usefixtures("cuda")
def test_host_memory_is_page_locked(make_loader: MakeLoader, monkeypatch: pytest.MonkeyPatch) -> None:
    pinned = []

    class Seen(TorchLoader):
        def _hand_over(self, batch: Any) -> Any:
            pinned.append(torch.from_numpy(batch.data.data).is_pinned())
            return super()._hand_over(batch)

    list(Seen(make_loader(), device="cuda"))
    assert pinned
    assert all(pinned)


@pytest.mark.gpu
@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.int32], ids=str)
@pytest.mark.parametrize("layout", ["csr", "dense"])
def test_dtypes_on_a_gpu(dtype: Any, layout: Layout, make_loader: MakeLoader, truth: Truth) -> None:
    for batch in each_batch(TorchLoader(make_loader(casting="unsafe"), device="cuda", layout=layout, dtype=dtype)):
        expected = torch.from_numpy(truth.x[batch.index.cpu().numpy()].toarray()).to(dtype)
        values = batch.data.values() if layout == "csr" else batch.data
        assert values.dtype == dtype
        assert torch.equal(values.cpu(), expected[expected != 0] if layout == "csr" else expected)


@pytest.mark.gpu
@pytest.mark.usefixtures("cuda")
@pytest.mark.filterwarnings("ignore:.*fork.*", "ignore:Sparse")
def test_workers_refuse_a_gpu(make_loader: MakeLoader) -> None:
    ds = TorchLoader(make_loader(), device="cuda")
    workers = torch.utils.data.DataLoader(ds, batch_size=None, num_workers=1, multiprocessing_context="fork")
    with pytest.raises(Exception, match="device must be 'cpu' in worker processes"):
        list(workers)


@pytest.mark.gpu
@pytest.mark.usefixtures("cuda")
def test_batches_can_be_moved(make_loader: MakeLoader, truth: Truth) -> None:
    ds = TorchLoader(make_loader())
    for batch in each_batch(ds):
        check_on_host(batch.pin_memory().to("cuda", non_blocking=True), truth, ds.categories)
        assert batch.data.shape[1] == N_VARS
