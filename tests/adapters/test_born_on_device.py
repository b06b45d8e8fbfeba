"""Do the adapters hand over what the core makes on a device, on the right stream, and for as long as it is read?

Without a GPU the device is that of `host_device`, whose streams are late. Whoever reads a batch does so from its
address when the stream comes to it, as kernels do, and owns nothing.
"""

from __future__ import annotations

import gc
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
from conftest import MakeLoader

import host_device
from adapter_truth import Truth
from annbatch import InputError
from annbatch import loader_data as core_module
from epochs import each_batch
from host_device import HostDevice, HostStream, bytes_at

pytestmark = pytest.mark.skipif(host_device.COMPILER is None, reason="no C++ compiler")


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> HostDevice:
    found = HostDevice()
    monkeypatch.setattr(core_module, "open_device", lambda name: found)
    return found


@contextmanager
def current(device: HostDevice, stream: HostStream) -> Iterator[None]:
    before, device.users = device.users, stream
    try:
        yield
    finally:
        device.users = before


def copied_by(stream: HostStream, address: int, n: int, dtype: Any) -> np.ndarray:
    """Queue a copy of what lies at an address then."""
    copy = np.empty(n, dtype)
    stream._put(lambda: copy.view(np.uint8).__setitem__(slice(None), bytes_at(address, copy.nbytes)))
    return copy


# --- torch ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def torch_stream(device: HostDevice, monkeypatch: pytest.MonkeyPatch) -> HostStream:
    """The stream that is current in torch; CuPy has another one."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    from annbatch_torch import _device, _loader

    stream = device.new_stream()
    monkeypatch.setattr(_device, "current_in_cupy", lambda _: current(device, stream))
    monkeypatch.setattr(_loader, "_usable_device", lambda name: torch.device("cpu"))
    return stream


def test_torch_reads_late(
    device: HostDevice, torch_stream: HostStream, make_disk_loader: MakeLoader, disk_truth: Truth
) -> None:
    """Batches are read late, and dropped before that; some are kept and read again at the end."""
    from annbatch_torch import TorchLoader

    seen, kept, addresses = [], [], []

    class Seen(TorchLoader):
        def _hand_over(self, batch: Any) -> Any:
            addresses.append(tuple(part.ctypes.data for part in (batch.data.data, batch.data.indices)))
            return super()._hand_over(batch)

    ds = Seen(make_disk_loader(device="cuda"))
    for number in range(3):
        for batch in ds:
            values, columns = batch.data.values(), batch.data.col_indices()
            assert (values.data_ptr(), columns.data_ptr()) == addresses[-1]
            parts = [
                copied_by(torch_stream, part.data_ptr(), len(part), part.numpy().dtype)
                for part in (values, columns, batch.data.crow_indices())
            ]
            seen.append((batch.index.numpy(), parts))
            if number == len(seen) % 3:
                kept.append(batch)
        del batch, values, columns
    assert device.current() is not torch_stream
    assert len(set(addresses)) < len(addresses), "memory must be used again, or this tests nothing"
    device.synchronize()
    for index, (values, columns, starts) in seen:
        x = sp.csr_matrix((values, columns, starts), shape=(len(index), disk_truth.x.shape[1]))
        np.testing.assert_array_equal(x.toarray(), disk_truth.x[index].toarray())
    assert kept
    for batch in kept:
        np.testing.assert_array_equal(batch.data.to_dense().numpy(), disk_truth.x[batch.index.numpy()].toarray())


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int32"])
@pytest.mark.parametrize("layout", ["csr", "dense"])
def test_torch_types(
    dtype: str,
    layout: Any,
    device: HostDevice,
    torch_stream: HostStream,
    make_disk_loader: MakeLoader,
    disk_truth: Truth,
) -> None:
    import torch

    from annbatch_torch import TorchLoader

    wanted = getattr(torch, dtype)
    ds = TorchLoader(make_disk_loader(device="cuda", casting="unsafe"), layout=layout, dtype=wanted)
    # What torch does itself, it does at once: values that it narrows have to be there.
    is_narrowed = layout == "csr" and wanted.itemsize == 2
    seen = 0
    for batch in ds:
        device.synchronize()
        values = batch.data.values() if layout == "csr" else batch.data
        assert values.dtype == wanted
        if not is_narrowed:
            expected = torch.from_numpy(disk_truth.x[batch.index.numpy()].toarray()).to(wanted)
            assert torch.equal(batch.data.to_dense() if layout == "csr" else batch.data, expected)
        seen += len(batch.index)
    assert seen == disk_truth.x.shape[0]


def test_torch_has_no_say_in_the_device(device: HostDevice, make_loader: MakeLoader) -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    from annbatch_torch import TorchLoader
    from annbatch_torch import _loader as loader_module

    core = make_loader(device="cuda")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loader_module, "_usable_device", lambda name: f"usable {name}")
        with pytest.raises(InputError, match="device must be 'cuda:0', that of the Loader, got 'cpu'"):
            TorchLoader(core, device="cpu")


# --- JAX --------------------------------------------------------------------------------------------------------------


class HostLender:
    """A lender of `HostDevice`'s memory: JAX's own CPU arrays lie on it."""

    def __init__(self, device: HostDevice, begin: Callable[[], Any]) -> None:
        from annbatch_jax._device import Returned

        self._device = device
        self._stream = device.new_stream()
        self._contexts: list[Any] = []
        self.returned = Returned(begin)
        self.lent: list[int] = []

    def __enter__(self) -> HostLender:
        self._contexts.append(current(self._device, self._stream))
        self._contexts[-1].__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._contexts.pop().__exit__(*error)

    def wait_for_made(self) -> Callable[[], None]:
        return self._stream.record().synchronize

    def put(self, tree: Any) -> Any:
        import jax

        return jax.tree.map(self._put, tree)

    def _put(self, array: np.ndarray) -> Any:
        import jax

        from annbatch_jax._device import _Loan

        if not array.flags.writeable or array.ctypes.data % 64:
            return jax.device_put(array.copy())
        self.lent.append(array.ctypes.data)
        return jax.dlpack.from_dlpack(np.asarray(Lent(array, _Loan(array, self.returned))))


class Lent:
    def __init__(self, array: np.ndarray, loan: Any) -> None:
        self.loan = loan
        self.__array_interface__ = array.__array_interface__


@pytest.mark.parametrize("n_ahead", [0, 2])
@pytest.mark.parametrize("layout", ["padded_csr", "dense"])
def test_jax_gets_what_is_made(
    layout: Any, n_ahead: int, device: HostDevice, make_disk_loader: MakeLoader, disk_truth: Truth, monkeypatch: Any
) -> None:
    """The host waits until a batch is made, and memory comes back when it is let go, and is used again."""
    jax = pytest.importorskip("jax", reason="JAX is not installed")
    from annbatch_jax import JaxLoader, PaddedCSR, densify
    from annbatch_jax import _loader as loader_module

    successor = jax.jit(lambda x: x + 1)
    lender = HostLender(device, lambda: successor(0))
    monkeypatch.setattr(loader_module, "lender", lambda number: lender)
    ds = JaxLoader(make_disk_loader(device="cuda"), layout=layout, prefetch_to_device=n_ahead)
    read = jax.jit(lambda data: (densify(data) if isinstance(data, PaddedCSR) else data) * 1)
    seen, kept, addresses = [], [], []
    for _ in range(3):
        for batch in ds:
            data = batch.data.data if layout == "padded_csr" else batch.data
            addresses.append(data.unsafe_buffer_pointer())
            seen.append((batch.index, read(batch.data)))
            if len(seen) % 5 == 0:
                kept.append(batch)
        del batch, data
    assert set(addresses) <= set(lender.lent)
    assert len(set(addresses)) < len(addresses), "memory must be used again, or this tests nothing"
    seen += [(batch.index, read(batch.data)) for batch in kept]
    for index, dense in seen:
        real = index >= 0
        np.testing.assert_array_equal(np.asarray(dense)[real], disk_truth.x[index[real]].toarray())
        assert not np.asarray(dense)[~real].any()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("layout", ["padded_csr", "dense"])
def test_jax_narrow_types(
    layout: Any, dtype: str, device: HostDevice, make_disk_loader: MakeLoader, disk_truth: Truth, monkeypatch: Any
) -> None:
    jax = pytest.importorskip("jax", reason="JAX is not installed")
    from annbatch_jax import JaxLoader, densify
    from annbatch_jax import _loader as loader_module

    monkeypatch.setattr(loader_module, "lender", lambda number: HostLender(device, lambda: jax.numpy.zeros(1)))
    for batch in each_batch(JaxLoader(make_disk_loader(device="cuda", casting="unsafe"), layout=layout, dtype=dtype)):
        real = batch.index >= 0
        dense = densify(batch.data) if layout == "padded_csr" else batch.data
        assert dense.dtype == dtype
        expected = disk_truth.x[batch.index[real]].toarray().astype(dense.dtype)
        np.testing.assert_array_equal(np.asarray(dense)[real], expected)


def test_jax_takes_no_sharding(device: HostDevice, make_loader: MakeLoader) -> None:
    jax = pytest.importorskip("jax", reason="JAX is not installed")
    from annbatch_jax import JaxLoader

    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("data",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    with pytest.raises(InputError, match="sharding must be None for Loader.device=.cuda:0"):
        JaxLoader(make_loader(device="cuda"), sharding=sharding)


def test_jax_has_to_see_the_device(device: HostDevice, make_loader: MakeLoader) -> None:
    jax = pytest.importorskip("jax", reason="JAX is not installed")
    pytest.importorskip("cupy", reason="CuPy is not installed")
    from annbatch_jax import JaxLoader

    if any(found.platform == "gpu" for found in jax.devices()):
        pytest.skip("JAX sees a GPU")
    with pytest.raises(InputError, match="device 'cuda:0' must be one that JAX sees"):
        JaxLoader(make_loader(device="cuda"))


class Mark:
    """A computation that is over when the test says so."""

    def __init__(self, over: list[Any]) -> None:
        self._over = over
        self.waited = False

    def is_ready(self) -> bool:
        return self in self._over

    def block_until_ready(self) -> None:
        self.waited = not self.is_ready()


def test_returned_memory_is_kept_until_it_is_read() -> None:
    pytest.importorskip("jax", reason="JAX is not installed")
    from annbatch_jax._device import Returned, _Loan

    begun: list[Mark] = []
    over: list[Mark] = []
    alive: deque[int] = deque()

    class Memory:
        def __init__(self, number: int) -> None:
            self.number = number
            alive.append(number)

        def __del__(self) -> None:
            alive.remove(self.number)

    def begin() -> Mark:
        begun.append(Mark(over))
        return begun[-1]

    returned = Returned(begin)
    loans = [_Loan(Memory(number), returned) for number in range(6)]
    returned.settle()
    assert not begun, "nothing has come back"
    loans[0] = loans[1] = None
    gc.collect()
    assert list(alive) == [0, 1, 2, 3, 4, 5], "what has just come back may still be read"
    returned.settle()
    assert len(begun) == 1
    assert list(alive) == [0, 1, 2, 3, 4, 5]
    over.append(begun[0])
    loans[2] = None
    returned.settle()
    assert list(alive) == [2, 3, 4, 5]
    for number in (3, 4, 5):
        loans[number] = None
        returned.settle()
    assert list(alive) == [4, 5], "no more than two are kept"
    assert [mark.waited for mark in begun] == [False, True, True, False, False]
