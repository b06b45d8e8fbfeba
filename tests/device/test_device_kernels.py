"""Do the kernels of ``kernels.cu``, compiled for the host, do what NumPy and SciPy do?"""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp

import host_device
from annbatch import CSR, Binarize, LogNormalize
from annbatch.batches.on_device import C_TYPES, OnDeviceArray, changed_macros, value_macros
from annbatch.batches.value_kernels import apply, totals_of
from annbatch.device.cuda import Kernel
from annbatch.plan.column_selection import NO_LOOKUP, fill_dense
from annbatch.transform import ValueKernel
from edge_values import TYPES, edge_values
from host_device import HostDevice, compiled

pytestmark = pytest.mark.skipif(host_device.COMPILER is None, reason="no C++ compiler")

CASTS = [
    (stored, wanted)
    for stored in TYPES
    for wanted in TYPES
    if value_macros(stored, wanted) is not None
    and wanted in dict.fromkeys([stored, *map(np.dtype, ("i4", "f2", "f4", "f8"))])
]
DENSE_CASTS = [(stored, wanted) for stored, wanted in CASTS if wanted in map(np.dtype, ("f2", "f4", "i4"))]
INDEX_TYPES = [np.dtype(name) for name in ("u2", "u4", "i4", "i8")]
INDEX_CASTS = [(stored, np.dtype(wanted)) for stored in INDEX_TYPES for wanted in ("i4", "i8")]
BFLOAT16 = [np.dtype(name) for name in ("u2", "i8", "f4", "f8")]
N_COLUMNS = 50


def index_macros(stored: np.dtype, wanted: np.dtype | None = None) -> tuple[tuple[str, str], ...]:
    macros = (("INDEX", C_TYPES[stored.str[1:]]),)
    return macros if wanted is None else (*macros, ("INDEX_OUT", C_TYPES[wanted.str[1:]]))


def csr_kernel(stored, wanted, index, index_out) -> Kernel:
    return Kernel("scatter_csr", (*value_macros(stored, wanted), *index_macros(index, index_out)))


def dense_kernel(stored, wanted, index, *, bfloat16: bool = False) -> Kernel:
    return Kernel("scatter_dense", (*value_macros(stored, wanted, bfloat16=bfloat16), *index_macros(index)))


U2, I4, F4 = map(np.dtype, ("u2", "i4", "f4"))
CHANGES = [LogNormalize(100), Binarize()]
CHANGED = [
    (stored, wanted, change)
    for change in CHANGES
    for stored, wanted in [("u2", "f4"), ("f8", "f8"), ("f4", "f4"), ("u4", "f2"), ("f4", "bfloat16"), ("i8", "i4")]
    if wanted != "i4" or isinstance(change, Binarize)
]


def changed_kernels(stored: str, wanted: str, change: ValueKernel) -> list[Kernel]:
    """Kernels that sum up rows, and that scatter changed values into CSR and dense matrices."""
    plain = "f4" if wanted == "bfloat16" else wanted
    values = changed_macros(np.dtype(stored), np.dtype(plain), change, bfloat16=wanted == "bfloat16")
    csr, dense = (*values, *index_macros(U2, I4)), (*values, *index_macros(U2))
    return [Kernel("sum_rows", dense), Kernel("scatter_csr", csr), Kernel("scatter_dense", dense)]


def differences_kernel(itemsize: int) -> Kernel:
    return Kernel("undo_differences", (("VALUE", C_TYPES[f"u{itemsize}"]),))


@pytest.fixture(scope="module")
def kernels():
    wanted = [csr_kernel(*cast, U2, I4) for cast in CASTS]
    wanted += [csr_kernel(U2, F4, *cast) for cast in INDEX_CASTS]
    wanted += [dense_kernel(*cast, U2) for cast in DENSE_CASTS]
    wanted += [dense_kernel(U2, F4, index) for index in INDEX_TYPES]
    wanted += [dense_kernel(stored, F4, U2, bfloat16=True) for stored in BFLOAT16]
    wanted += [Kernel("check_rows", index_macros(index)) for index in INDEX_TYPES]
    wanted += [differences_kernel(size) for size in (1, 2, 4, 8)]
    wanted += [kernel for case in CHANGED for kernel in changed_kernels(*case)]
    return compiled(list(dict.fromkeys(wanted)))


def laid_out(values: np.ndarray, form: str) -> tuple[np.ndarray, tuple[int, ...]]:
    """Elements as they lie in the memory of a device: in one piece, or in chunks of 7, shuffled or not."""
    if form == "whole":
        memory = values.copy()
        return memory, OnDeviceArray(memory.ctypes.data, max(1, values.size)).arguments
    n, itemsize = 7, values.itemsize
    stride = -(-n * itemsize // 16) * 16
    n_chunks = -(-values.size // n)
    memory = np.full((n_chunks, stride), 0xEE, np.uint8)
    for j in range(n_chunks):
        chunk = np.zeros(n, values.dtype)
        part = values[j * n : (j + 1) * n]
        chunk[: part.size] = part
        planes = chunk.view(np.uint8).reshape(n, itemsize)
        memory[j, : n * itemsize] = (planes.T if form == "shuffled" else planes).reshape(-1)
    return memory, OnDeviceArray(memory.ctypes.data, n, stride, form == "shuffled").arguments


def rows_of(seed: int, values: np.ndarray, index: np.dtype) -> tuple[sp.csr_matrix, np.ndarray]:
    """Rows that hold all the values, some rows empty, and the order in which a batch has them."""
    rng = np.random.default_rng(seed)
    lengths = np.r_[0, rng.multinomial(values.size, np.full(9, 1 / 9)), 0]
    indices = np.concatenate([np.sort(rng.choice(N_COLUMNS, n, replace=False)) for n in lengths])
    indptr = np.cumsum(np.r_[0, lengths])
    x = sp.csr_matrix((np.arange(values.size), indices, indptr), shape=(len(lengths), N_COLUMNS))
    x.indices = x.indices.astype(index)
    return x, rng.permutation(len(lengths))


def run_csr(kernels, kernel, x, order, values, index_out, wanted, form, n_all, totals=(0, 0)):
    value_memory, of_values = laid_out(values, form)
    index_memory, of_indices = laid_out(x.indices, form)
    lengths = np.diff(x.indptr)[order]
    starts = np.cumsum(np.r_[0, lengths])
    begins = x.indptr[:-1][order].astype(np.int64)
    out = np.full(values.size + 1, 1, wanted)
    out_indices = np.full(values.size + 1, 99, index_out)
    indptr = np.full(n_all + 2, 77, index_out)
    tables = begins.ctypes.data, begins.ctypes.data, starts.ctypes.data
    outs = out.ctypes.data, out_indices.ctypes.data, indptr.ctypes.data
    kernels[kernel](n_all, [*of_values, *of_indices, *tables, len(order), n_all, *outs, *totals])
    assert (out[-1], out_indices[-1], indptr[-1]) == (1, 99, 77)
    assert indptr[: n_all + 1].tolist() == [*starts, *[starts[-1]] * (n_all - len(order))]
    picked = x[order]
    assert out_indices[:-1].tolist() == picked.indices.tolist()
    return out[:-1], picked.data


@pytest.mark.parametrize("form", ["whole", "chunks", "shuffled"])
@pytest.mark.parametrize(("stored", "wanted"), CASTS, ids=str)
def test_csr_rows_are_cast_as_numpy_casts(kernels, stored, wanted, form):
    values = edge_values(stored)
    x, order = rows_of(1, values, U2)
    with np.errstate(all="ignore"):
        expected = values.astype(wanted)
    kernel = csr_kernel(stored, wanted, U2, I4)
    found, places = run_csr(kernels, kernel, x, order, values, I4, wanted, form, len(order) + 2)
    assert found.tobytes() == expected[places].tobytes() or np.array_equal(found, expected[places], equal_nan=True)


@pytest.mark.parametrize("form", ["whole", "chunks", "shuffled"])
@pytest.mark.parametrize(("stored", "wanted"), INDEX_CASTS, ids=str)
def test_csr_column_numbers(kernels, stored, wanted, form):
    values = np.arange(100, 200).astype("u2")
    x, order = rows_of(2, values, stored)
    found, places = run_csr(kernels, csr_kernel(U2, F4, stored, wanted), x, order, values, wanted, F4, form, len(order))
    np.testing.assert_array_equal(found, values[places])


def run_dense(kernels, kernel, x, order, values, wanted, form, lookup=None, unordered=None, totals=(0, 0)):
    value_memory, of_values = laid_out(values, form)
    index_memory, of_indices = laid_out(x.indices, form)
    starts = np.cumsum(np.r_[0, np.diff(x.indptr)[order]])
    begins = x.indptr[:-1][order].astype(np.int64)
    n_columns = N_COLUMNS if lookup is None else int(lookup.max()) + 1
    out = np.zeros((len(order) + 1, n_columns), wanted)
    marks = np.zeros(len(order), np.uint8) if unordered is None else unordered
    tables = begins.ctypes.data, begins.ctypes.data, starts.ctypes.data
    place = 0 if lookup is None else lookup.ctypes.data
    ends = len(order), marks.ctypes.data, place, N_COLUMNS, n_columns, out.ctypes.data, *totals
    kernels[kernel](len(order), [*of_values, *of_indices, *tables, *ends])
    assert not out[-1].any()
    return out[:-1]


def dense_truth(x, order, expected):
    truth = np.zeros((len(order), N_COLUMNS), expected.dtype)
    for i, row in enumerate(order):
        own = slice(x.indptr[row], x.indptr[row + 1])
        truth[i, x.indices[own]] = expected[x.data[own]]
    return truth


@pytest.mark.parametrize("form", ["whole", "shuffled"])
@pytest.mark.parametrize(("stored", "wanted"), DENSE_CASTS, ids=str)
def test_dense_rows(kernels, stored, wanted, form):
    values = edge_values(stored)
    x, order = rows_of(3, values, U2)
    with np.errstate(all="ignore"):
        # Minus zero is written onto zero. What is wider than a float goes by way of float64, as in compiled Python.
        by = np.float64 if wanted == F4 and stored.kind in "iu" else wanted
        expected = values.astype(by).astype(wanted) + wanted.type(0)
    found = run_dense(kernels, dense_kernel(stored, wanted, U2), x, order, values, wanted, form)
    np.testing.assert_array_equal(found, dense_truth(x, order, expected))


@pytest.mark.parametrize("index", INDEX_TYPES, ids=str)
def test_dense_rows_of_chosen_columns(kernels, index):
    values = np.arange(100, 200).astype("u2")
    x, order = rows_of(4, values, index)
    wanted = np.random.default_rng(0).permutation(N_COLUMNS)[:20]
    lookup = np.full(N_COLUMNS, -1, np.int32)
    lookup[wanted] = np.arange(20)
    found = run_dense(kernels, dense_kernel(U2, F4, index), x, order, values, F4, "shuffled", lookup)
    np.testing.assert_array_equal(found, dense_truth(x, order, values.astype(F4))[:, wanted])


def bfloat16(values: np.ndarray) -> np.ndarray:
    """Round the bits of float32 to nearest even, by way of integers of 64 bits."""
    bits = values.astype(np.float32).view(np.uint32).astype(np.uint64)
    rounded = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), (bits >> 16 | 0x40).astype(np.uint16), rounded)


@pytest.mark.parametrize("stored", BFLOAT16, ids=str)
def test_dense_rows_as_bfloat16(kernels, stored):
    values = edge_values(stored)
    if stored == F4:
        values = np.random.default_rng(0).integers(0, 2**32, 100, np.uint32).view(np.float32)
    x, order = rows_of(5, values, U2)
    with np.errstate(all="ignore"):
        expected = bfloat16(values.astype(F4))
    found = run_dense(kernels, dense_kernel(stored, F4, U2, bfloat16=True), x, order, values, np.uint16, "whole")
    truth = dense_truth(x, order, expected)
    truth[truth == 0x8000] = 0
    np.testing.assert_array_equal(found, truth)
    ml_dtypes = pytest.importorskip("ml_dtypes")
    with np.errstate(all="ignore"):
        theirs = values.astype(F4).astype(ml_dtypes.bfloat16).view(np.uint16)
    is_number = ~np.isnan(values.astype(np.float64))
    assert expected[is_number].tolist() == theirs[is_number].tolist()


def test_halves_of_all_sizes(kernels):
    """All halves, what lies between neighbours, and what rounds to either."""
    with np.errstate(all="ignore"):
        halves = np.arange(2**15, dtype=np.uint16).view(np.float16).astype(np.float32)
    halves = halves[np.isfinite(halves)]
    between = (halves[1:] + halves[:-1]) / 2
    values = np.concatenate([halves, between, np.nextafter(between, F4.type(0)), np.nextafter(between, F4.type(1e9))])
    values = np.concatenate([values, -values, np.array([65519, 65520, 1e38, np.inf, 1e-40, 2**-25, 2**-24], F4)])
    starts, begins = np.array([0, values.size]), np.zeros(1, np.int64)
    columns = np.zeros(values.size, np.uint16)
    out, indices, indptr = np.zeros(values.size, np.float16), np.zeros(values.size, I4), np.zeros(2, I4)
    _, of_values = laid_out(values, "whole")
    memory = values.copy()
    of_values = OnDeviceArray(memory.ctypes.data, values.size).arguments
    of_indices = OnDeviceArray(columns.ctypes.data, values.size).arguments
    tables = begins.ctypes.data, begins.ctypes.data, starts.ctypes.data
    outs = out.ctypes.data, indices.ctypes.data, indptr.ctypes.data
    kernels[csr_kernel(F4, np.dtype("f2"), U2, I4)](1, [*of_values, *of_indices, *tables, 1, 1, *outs, 0, 0])
    with np.errstate(all="ignore"):
        assert out.view(np.uint16).tolist() == values.astype(np.float16).view(np.uint16).tolist()


@pytest.mark.parametrize("index", INDEX_TYPES, ids=str)
def test_columns_that_are_none_are_found_and_never_written(kernels, index):
    """Descending, repeated, negative and too large column numbers, each in a row of its own."""
    rows = [[3, 1], [4, 4, 4], [0, 1, 2], [], [5, N_COLUMNS], [7], [-1, 3]]
    wrong_rows = {4, 6} if index.kind == "i" else {4}
    rows = rows if index.kind == "i" else rows[:-1]
    indptr = np.cumsum([0, *map(len, rows)])
    indices = np.array([column for row in rows for column in row]).astype(index)
    values = np.arange(1, indices.size + 1).astype("u2")
    x = sp.csr_matrix((len(rows), N_COLUMNS))
    x.indptr, x.indices, x.data = indptr, indices, np.arange(indices.size)
    memory, of_indices = laid_out(indices, "shuffled")
    unordered, wrong = np.zeros(len(rows), np.uint8), np.zeros(1, np.int64)
    check = kernels[Kernel("check_rows", index_macros(index))]
    tables = indptr[:-1].astype(np.int64), indptr.astype(np.int64)
    ends = len(rows), N_COLUMNS, unordered.ctypes.data, wrong.ctypes.data, 1000
    check(len(rows), [*of_indices, *(table.ctypes.data for table in tables), *ends])
    assert unordered.tolist()[:2] == [1, 1]
    assert not unordered[2:].any()
    assert wrong[0] - 1001 in wrong_rows
    order = np.arange(len(rows))
    found = run_dense(kernels, dense_kernel(U2, F4, index), x, order, values, F4, "chunks", unordered=unordered)
    truth = np.zeros((len(rows), N_COLUMNS), F4)
    for i, row in enumerate(rows):
        for k, column in enumerate(row):
            if 0 <= column < N_COLUMNS:
                truth[i, column] += values[indptr[i] + k]
    np.testing.assert_array_equal(found, truth)


@pytest.mark.parametrize("form", ["whole", "chunks", "shuffled"])
@pytest.mark.parametrize(("stored", "wanted", "change"), CHANGED, ids=str)
def test_changed_values_are_those_of_the_cpu(kernels, stored, wanted, change, form):
    """Bit for bit, also where columns occur twice, and narrowed at last where that is asked for."""
    rng = np.random.default_rng(8)
    values = rng.integers(0, 300, 90).astype(stored)
    values = values / 7 if values.dtype.kind == "f" else values
    x, order = rows_of(9, values, U2)
    plain = F4 if wanted in ("f2", "bfloat16") else np.dtype(wanted)
    on_cpu = CSR(values.astype(plain), x.indices.astype(I4), x.indptr.astype(np.int64), x.shape)
    totals = totals_of(change, on_cpu, plain)[order] if isinstance(change, LogNormalize) else np.empty(0)

    def narrowed(found: np.ndarray) -> np.ndarray:
        return bfloat16(found) if wanted == "bfloat16" else found.astype(wanted)

    sum_rows, scatter_csr, scatter_dense = changed_kernels(stored, wanted, change)
    arguments, out_type = (0, 0), np.dtype(np.uint16) if wanted == "bfloat16" else np.dtype(wanted)
    if isinstance(change, LogNormalize):
        memory, of_values = laid_out(values, form)
        starts, begins = np.cumsum(np.r_[0, np.diff(x.indptr)[order]]), x.indptr[:-1][order].astype(np.int64)
        sums = np.full(len(order) + 1, -1.0)
        tables = begins.ctypes.data, starts.ctypes.data, len(order), sums.ctypes.data
        kernels[sum_rows](2, [*of_values, *tables])
        assert sums.tolist() == [*totals, -1]
        arguments = sums.ctypes.data, int(np.float64(change.target_sum).view(np.int64))
    if out_type != np.uint16:
        found, places = run_csr(
            kernels, scatter_csr, x, order, values, I4, out_type, form, len(order), totals=arguments
        )
        truth = apply(change, replace(on_cpu, data=on_cpu.data.copy())).data[places]
        assert found.tobytes() == narrowed(truth).tobytes()
    # All columns of a row fall onto few, so that some occur several times and none ascend.
    x.indices %= 5
    unordered = (np.diff(x.indptr)[order] > 1).astype(np.uint8)
    found = run_dense(kernels, scatter_dense, x, order, values, out_type, form, unordered=unordered, totals=arguments)
    expected = np.zeros((len(order), N_COLUMNS), plain)
    picked = np.array(x.indptr[:-1][order]), np.array(x.indptr[1:][order])
    for row, (begin, end) in enumerate(zip(*picked, strict=True)):
        fill_dense(
            values[begin:end], x.indices[begin:end], np.array([0, end - begin]), NO_LOOKUP, expected[row : row + 1]
        )
    expected = apply(change, expected, totals) if len(totals) else apply(change, expected)
    assert found.tobytes() == narrowed(expected).tobytes()


@pytest.mark.parametrize("form", ["whole", "chunks", "shuffled"])
@pytest.mark.parametrize("index", INDEX_TYPES, ids=str)
def test_rows_that_do_not_ascend_are_found_across_chunks(kernels, index, form):
    """Ascending rows, of which some have two neighbours exchanged or alike: every place of a chunk is among these."""
    rng = np.random.default_rng(6)
    lengths = rng.integers(0, 12, 300)
    rows = [np.sort(rng.choice(N_COLUMNS, n, replace=False)) for n in lengths]
    expected = np.zeros(len(rows), np.uint8)
    for i in np.flatnonzero(lengths > 1)[::2]:
        k = rng.integers(1, lengths[i])
        rows[i][k - 1] = rows[i][k] + rng.integers(2) if rows[i][k] < N_COLUMNS - 1 else rows[i][k]
        expected[i] = 1
    ends = np.cumsum(lengths)
    memory, of_indices = laid_out(np.concatenate(rows).astype(index), form)
    unordered, wrong = np.zeros(len(rows), np.uint8), np.zeros(1, np.int64)
    tables = (ends - lengths).astype(np.int64), np.r_[0, ends].astype(np.int64)
    results = len(rows), N_COLUMNS, unordered.ctypes.data, wrong.ctypes.data, 0
    check = kernels[Kernel("check_rows", index_macros(index))]
    check(len(rows), [*of_indices, *(table.ctypes.data for table in tables), *results])
    assert wrong[0] == 0
    np.testing.assert_array_equal(unordered, expected)


@pytest.mark.parametrize("is_shuffled", [True, False])
@pytest.mark.parametrize("itemsize", [1, 2, 4, 8])
def test_differences_are_summed_up(kernels, itemsize, is_shuffled):
    """Around the sizes of runs, groups and tiles, in some of the chunks, and in no byte between them."""
    rng = np.random.default_rng(itemsize)
    dtype = np.dtype(f"u{itemsize}")
    for n in (1, 15, 16, 17, 255, 257, 4095, 4096, 4097, 8192, 9001):
        stride = n * itemsize + 16 - n * itemsize % 8
        memory = rng.integers(0, 256, (4, stride), np.uint8)
        flags = np.array([1, 0, 1, 0], np.int64)
        expected = memory.copy()
        for c in np.flatnonzero(flags):
            planes = expected[c, : n * itemsize]
            values = (planes.reshape(itemsize, n).T if is_shuffled else planes).copy().view(dtype).reshape(-1)
            sums = np.cumsum(values, dtype=dtype).view(np.uint8).reshape(n, itemsize)
            planes[:] = (sums.T if is_shuffled else sums).reshape(-1)
        form = OnDeviceArray(memory.ctypes.data, n, stride, is_shuffled)
        kernels[differences_kernel(itemsize)](4, [*form.arguments, flags.ctypes.data, 4])
        np.testing.assert_array_equal(memory, expected)


def test_a_wait_that_is_missing_shows():
    """The device of the other tests is late: a stream that does not wait reads what was there before."""
    for is_waiting in (True, False):
        device = HostDevice(seed=None)
        source, there = np.full(1000, 7, np.uint8), device.copying.memory(1000)
        device.copying.copy(there.ptr, source.ctypes.data, 1000)
        copied, out = device.copying.record(), device.users.array((1000,), np.dtype(np.uint8))
        out[:] = 0
        if is_waiting:
            device.users.wait(copied)
        device.users.copy(out.ctypes.data, there.ptr, 1000)
        device.users.run_to(len(device.users.queue))
        assert (out == 7).all() == is_waiting


NVCC_KERNELS = [
    csr_kernel(U2, F4, U2, I4),
    pytest.param(dense_kernel(F4, np.dtype("f2"), I4), marks=pytest.mark.slow),
    pytest.param(dense_kernel(U2, F4, U2, bfloat16=True), marks=pytest.mark.slow),
    *(pytest.param(kernel, marks=pytest.mark.slow) for kernel in changed_kernels("u2", "f4", CHANGES[0])),
]


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc")
@pytest.mark.parametrize("kernel", NVCC_KERNELS, ids=["csr", "half", "bfloat16", "sums", "log csr", "log dense"])
def test_nvcc_compiles_them(tmp_path: Path, kernel: Kernel):
    macros = [f"-D{name}={value}" for name, value in kernel.macros]
    command = ["nvcc", "-cubin", "-arch=sm_90", "-std=c++17", *macros, str(host_device.SOURCE)]
    done = subprocess.run([*command, "-o", str(tmp_path / "found.cubin")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
