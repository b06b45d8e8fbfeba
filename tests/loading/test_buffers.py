"""Is memory used again, and never while anybody can see it?"""

from __future__ import annotations

import gc
import threading
from types import SimpleNamespace

import numpy as np
import pytest

from annbatch import Loader, buffers
from annbatch.buffers import ALIGNMENT_BYTES, SlabPool, slab_class
from annbatch.device import window_memory
from annbatch.testing import make_cells
from epochs import each_batch


def test_arrays_are_aligned_and_apart():
    wanted = [(5, np.dtype(np.uint8)), (7, np.dtype(np.float32)), (3, np.dtype(np.int64)), (0, np.dtype(np.int8))]
    arrays = SlabPool().arrays(*wanted)
    assert [(len(array), array.dtype) for array in arrays] == wanted
    for i, array in enumerate(arrays):
        assert array.ctypes.data % ALIGNMENT_BYTES == 0
        array[:] = i
    for i, array in enumerate(arrays):
        assert (array == i).all()


def test_scipys_matrix_is_on_the_memory_of_the_batch():
    cells = make_cells(40)
    for batch in each_batch(Loader(batch_size=16).add_anndatas([cells])):
        matrix = batch["data"].to_scipy()
        assert (matrix != cells.X[batch["index"]]).nnz == 0
        for name in ("data", "indices", "indptr"):
            assert np.shares_memory(getattr(matrix, name), getattr(batch["data"], name))


def test_a_slab_refuses_more_than_it_holds():
    slab = SlabPool().take(10)
    with pytest.raises(MemoryError, match="too small"):
        slab.carve((1 << 20, np.dtype(np.uint8)))


@pytest.mark.parametrize("n_bytes", [0, 1, 65535, 65536, 65537, 10**6, 10**8 + 1])
def test_size_classes_waste_at_most_an_eighth(n_bytes):
    size = slab_class(n_bytes)
    assert size >= n_bytes
    assert size <= max(1 << 16, n_bytes * 1.125 + (1 << 16))
    assert slab_class(size) == size


def test_memory_returns_when_the_last_view_is_gone():
    pool = SlabPool(max_idle_bytes=1 << 30)
    slab = pool.take(1 << 20)
    view = slab.carve((1000, np.dtype(np.float32)))[0][100:200].reshape(10, 10).view(np.int32)
    address = view.ctypes.data
    del slab
    gc.collect()
    assert pool.idle_bytes == 0, "a view of a view keeps the slab"
    (other,) = pool.take(1 << 20).carve((1000, np.dtype(np.float32)))
    assert abs(other.ctypes.data - address) > 1000
    del view
    gc.collect()
    assert pool.idle_bytes == slab_class((1 << 20) + ALIGNMENT_BYTES)
    (again,) = pool.take(1 << 20).carve((1000, np.dtype(np.float32)))
    assert again.ctypes.data == address - 400


def test_memory_returns_without_a_message_when_the_interpreter_ends(monkeypatch):
    """Python takes the names of modules away before the last batches."""
    pool = SlabPool(max_idle_bytes=1 << 30)
    slab = pool.take(10)
    window_pool = SimpleNamespace(_idle=[])
    window = window_memory.WindowMemory(SimpleNamespace(ptr=0), 10, window_pool)
    for module in (buffers, window_memory):
        for name in [name for name in vars(module) if not name.startswith("__")]:
            monkeypatch.setattr(module, name, None)
    del slab, window
    monkeypatch.undo()
    assert pool.idle_bytes > 0
    assert len(window_pool._idle) == 1


def test_idle_memory_is_bounded():
    pool = SlabPool(max_idle_bytes=3 << 20)
    slabs = [pool.take(1 << 20) for _ in range(10)]
    del slabs
    gc.collect()
    assert 0 < pool.idle_bytes <= 3 << 20


def test_threads_share_a_pool():
    """Every thread writes its number into its slab, lets others run, and finds it unchanged."""
    pool = SlabPool(max_idle_bytes=1 << 30)
    wrong: list[int] = []

    def work(number: int) -> None:
        rng = np.random.default_rng(number)
        kept = []
        for _ in range(300):
            (array,) = pool.arrays((100, np.dtype(np.int64)))
            array[:] = number
            kept.append(array)
            if len(kept) > 4:
                wrong.extend(a[0] for a in kept if (a != number).any())
                del kept[rng.integers(len(kept))]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
