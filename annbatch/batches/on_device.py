"""How do the rows of a window become batches on a device?

1. Threads decode the window's rows into page-locked memory as they are stored: narrow, in the order of reading. Tables
   beside them say where each row of each batch begins.
2. `OnDevicePart` copies that in one go, on the device's stream for copies (`annbatch.device.window_memory`).
3. Where a batch is asked for, `HandOver` lets a kernel gather its rows and widen them, on the consumer's stream and
   into memory that is taken there: what becomes of the batch is ordered with everything else on that stream.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from annbatch.batch import CSR, Batch, Modality
from annbatch.batches.filling import Filling
from annbatch.batches.sparse_on_host import SparsePart
from annbatch.buffers import aligned
from annbatch.device.cuda import Event, Kernel, Stream
from annbatch.device.window_memory import WindowMemory, WindowMemoryPool
from annbatch.plan.column_selection import NO_LOOKUP
from annbatch.plan.row_places import RowPlan
from annbatch.plan.window import WindowPlan, address
from annbatch.shards.scatter_kernels import native_types
from annbatch.shards.shard_index import Located
from annbatch.stores.elements import Work
from annbatch.transform import LogNormalize, ValueKernel

_INT32, _INT64 = np.dtype(np.int32), np.dtype(np.int64)
_ROWS_OF_BLOCK = 32
"""Rows that a block of threads sums up, each by one of them: few, so that all of a device has something to do."""

C_TYPES = {
    "u1": "unsigned char",
    "u2": "unsigned short",
    "u4": "unsigned int",
    "u8": "unsigned long long",
    "i1": "signed char",
    "i2": "short",
    "i4": "int",
    "i8": "long long",
    "f4": "float",
    "f8": "double",
}


def value_macros(
    stored: np.dtype[Any], wanted: np.dtype[Any], *, bfloat16: bool = False
) -> tuple[tuple[str, str], ...] | None:
    """Give the types as which a kernel shall see stored and wanted values; None if it would not cast as NumPy does."""
    if bfloat16 or (wanted == np.float16 and stored.itemsize <= 4 and stored != np.float16):
        name = _c_type(stored)
        extra = ("BFLOAT16" if bfloat16 else "HALF", "1")
        return None if name is None else (("VALUE", name), ("OUT", "unsigned short"), extra)
    types = native_types(stored, wanted)
    return None if types is None else (("VALUE", C_TYPES[types[0].str[1:]]), ("OUT", C_TYPES[types[1].str[1:]]))


def changed_macros(
    stored: np.dtype[Any], wanted: np.dtype[Any], kernel: ValueKernel, *, bfloat16: bool = False
) -> tuple[tuple[str, str], ...] | None:
    """Do what `value_macros` does for a kernel that computes with the values: types are then never those of copies."""
    given, plain = _c_type(stored), _c_type(wanted)
    name = "LOG_NORMALIZE" if isinstance(kernel, LogNormalize) else "BINARIZE"
    if bfloat16 or wanted == np.float16:
        macros = value_macros(stored, wanted, bfloat16=bfloat16)
        return None if macros is None else (*macros, (name, "1"))
    if given is None or plain is None or (stored.kind == "f" and wanted.kind != "f"):
        return None
    return ("VALUE", given), ("OUT", plain), (name, "1")


def _c_type(dtype: np.dtype[Any]) -> str | None:
    return "unsigned char" if dtype.kind == "b" else C_TYPES.get(dtype.str[1:])


@dataclass(frozen=True, slots=True)
class OnDeviceArray:
    """Elements of a window in the memory of a device."""

    at: int
    """Address."""
    chunk_elements: int
    """Elements that lie together."""
    chunk_nbytes: int = 0
    """How far such chunks are apart."""
    is_shuffled: bool = False
    """Whether a chunk holds the first bytes of all its elements, then the second ones, …"""

    @property
    def arguments(self) -> tuple[int, ...]:
        """What kernels take."""
        return self.at, self.chunk_elements, self.chunk_nbytes, int(self.is_shuffled)


@dataclass(slots=True, eq=False)
class DeviceWindow:
    """A window on its way to a device, or there; numbers are addresses there."""

    staging: WindowMemory
    """What holds it all."""
    values: OnDeviceArray
    indices: OnDeviceArray
    value_rows: int
    """(n_rows,) int64: at which of the values each row begins, in the order of the batches."""
    index_rows: int
    """(n_rows,) int64: the same for indices."""
    starts: int
    """(n_rows + n_batches,) int64, as `RowPlan.starts`."""
    lookup: int
    """(n_columns,) int32, as `annbatch.plan.column_selection.Selection.lookup`; 0 if all columns are wanted."""
    unordered: int
    """(n_rows,) uint8: whether a row's column numbers do not ascend."""
    copied: Event
    """Behind all that."""
    check: Callable[[], None] | None = None
    """Raises if something is wrong with the window, once it is there."""

    def await_on(self, stream: Stream) -> None:
        """Let a stream wait for the window; where something may be wrong with it, wait here."""
        if self.check is not None:
            self.copied.synchronize()
            self.check()
            self.check = None
        stream.wait(self.copied)


@dataclass(frozen=True, slots=True, eq=False)
class OnDeviceMatrix:
    """The matrix of a batch before it is made."""

    shape: tuple[int, int]
    make: Callable[[Stream], Any]
    """Makes it, on a stream."""


class OnDevicePart(SparsePart):
    """A CSR matrix over all stores whose batches are made on a device; chunks are decoded on the CPU."""

    def __init__(self, *arguments: Any, staging: WindowMemoryPool) -> None:
        super().__init__(*arguments)
        self._pool = staging
        macros = _value_macros(self)
        assert macros is not None
        self._macros = *macros, ("INDEX", C_TYPES[self._stored_index_dtype.str[1:]])
        self._lookup = NO_LOOKUP if self._selection is None else self._selection.lookup

    @classmethod
    def can_serve(cls, part: SparsePart) -> bool:
        """Say whether batches of a part can be made on a device; if not, they are made on the host and copied."""
        kinds = {matrix.data.dtype.kind.replace("u", "i") for matrix in part._matrices}
        return (
            part._emit.parts is None
            and part._check_values is None
            and part._columns is None
            and (part._selection is None or part._emit.layout == "dense")
            and len(kinds) == 1
            and kinds == {part._stored_dtype.kind.replace("u", "i")}
            and part._stored_index_dtype.kind in "iu"
            and _value_macros(part) is not None
        )

    def begin(self, plan: WindowPlan, rows: RowPlan, located: Iterator[Located | None]) -> Filling:
        """Take page-locked memory for the window's rows, and say what fills it."""
        lengths = rows.hi - rows.lo
        n_rows, n_elements = len(lengths), int(lengths.sum())
        begins, starts, lookup, values, indices = host = self._slabs.arrays(
            (n_rows, _INT64),
            (len(rows.starts), _INT64),
            (len(self._lookup), _INT32),
            (n_elements, self._stored_dtype.newbyteorder("=")),
            (n_elements, self._stored_index_dtype.newbyteorder("=")),
        )
        offsets = np.cumsum(lengths) - lengths
        begins[plan.order], starts[:], lookup[:] = offsets, rows.starts, self._lookup
        staged = replace(rows, batches=np.zeros(n_rows, np.int64), offsets=offsets)
        work = self._work(plan, staged, [CSR(values, indices, starts, (n_rows, self._n_stored))], located)

        def send() -> DeviceWindow:
            stream, n_bytes = self._pool.device.copying, extent(host)
            staging = self._pool.take(aligned(n_bytes) + n_rows)
            place = partial(place_in, staging, host)
            stream.copy(staging.ptr, address(begins), n_bytes)
            whole = max(1, n_elements)
            window = DeviceWindow(
                staging,
                OnDeviceArray(place(values), whole),
                OnDeviceArray(place(indices), whole),
                place(begins),
                place(begins),
                place(starts),
                place(lookup) if len(lookup) else 0,
                staging.ptr + aligned(n_bytes),
                stream.record(),
            )
            if self._emit.layout == "dense":
                stream.zero(window.unordered, n_rows)
                # The threads have seen to it that no column number is out of range: nothing is reported.
                self._check_rows(window, rows, wrong=0)
                window.copied = stream.record()
            self._pool.keep(host, window.copied)
            return window

        return self._filling(plan, rows, work, extent(host), send)

    def _filling(
        self, plan: WindowPlan, rows: RowPlan, work: Work, n_bytes: int, send: Callable[[], DeviceWindow]
    ) -> Filling:
        """Give batches that are made when they are asked for; what `send` gives is shared by all of them."""
        n_elements, n_rows = rows.n_elements, np.diff(plan.cuts).tolist()
        most: list[int | None] = [None] * len(n_rows) if rows.most is None else rows.most.tolist()
        index_dtype = None if rows.most is None else self._memory.index_dtype(int(rows.most.max()))
        rooms = [self._memory.room(n_elements[b : b + 1], most[b], index_dtype) for b in range(len(n_rows))]
        window = cache(send)

        def finish(b: int) -> OnDeviceMatrix:
            n_all = self._batch_size if self._emit.pad_rows else n_rows[b]
            first = int(plan.cuts[b])
            make = (
                self._make_dense if self._emit.layout == "dense" else partial(self._make_csr, n_elements[b], *rooms[b])
            )
            return OnDeviceMatrix((n_all, self._n_columns), partial(make, window(), b, first, n_rows[b], n_all))

        return Filling(work, finish, False, n_bytes)

    def _make_csr(
        self,
        nnz: int,
        nse: int,
        index_dtype: np.dtype[Any],
        window: DeviceWindow,
        b: int,
        first: int,
        n_rows: int,
        n_all: int,
        stream: Stream,
    ) -> CSR:
        window.await_on(stream)
        data, indices, indptr = wanted = [
            stream.array((n,), dtype) for n, dtype in ((nse, self._dtype), (nse, index_dtype), (n_all + 1, index_dtype))
        ]
        to_data, to_indices, to_indptr = map(self._pool.device.address, wanted)
        stream.zero(to_data + nnz * self._dtype.itemsize, (nse - nnz) * self._dtype.itemsize)
        stream.zero(to_indices + nnz * index_dtype.itemsize, (nse - nnz) * index_dtype.itemsize)
        kernel = Kernel("scatter_csr", (*self._macros, ("INDEX_OUT", C_TYPES[index_dtype.str[1:]])))
        rows = _rows_of(window, b, first, n_rows)
        totals = self._totals(window, b, first, n_rows, stream)
        stream.launch(kernel, n_all, (*rows, n_all, to_data, to_indices, to_indptr, *totals.arguments))
        window.staging.used_on(stream)
        return CSR(data, indices, indptr, (n_all, self._n_columns))

    def _make_dense(self, window: DeviceWindow, b: int, first: int, n_rows: int, n_all: int, stream: Stream) -> Any:
        window.await_on(stream)
        dtype = np.dtype(np.uint16) if self._emit.bfloat16 else self._dtype
        out = stream.array((n_all, self._n_columns), dtype)
        to = self._pool.device.address(out)
        stream.zero(to, n_all * self._n_columns * dtype.itemsize)
        arguments = *_rows_of(window, b, first, n_rows), window.unordered + first, window.lookup
        arguments = *arguments, self._n_stored, self._n_columns, to
        totals = self._totals(window, b, first, n_rows, stream)
        stream.launch(Kernel("scatter_dense", self._macros), n_rows, (*arguments, *totals.arguments))
        window.staging.used_on(stream)
        return out

    def _totals(self, window: DeviceWindow, b: int, first: int, n_rows: int, stream: Stream) -> _Totals:
        """Queue summing up the rows of a batch, where values are normalised by that."""
        if not isinstance(self._kernel, LogNormalize):
            return _Totals()
        totals = stream.array((max(1, n_rows),), np.dtype(np.float64))
        at = self._pool.device.address(totals)
        tables = window.value_rows + 8 * first, window.starts + 8 * (first + b)
        kernel = Kernel("sum_rows", self._macros)
        stream.launch(kernel, -(-n_rows // _ROWS_OF_BLOCK), (*window.values.arguments, *tables, n_rows, at))
        target = int(np.float64(self._kernel.target_sum).view(np.int64))
        return _Totals(totals, (at, target))

    def _refuse_row(self, plan: WindowPlan, rows: RowPlan, number: int) -> None:
        """Raise CorruptStoreError if a device found a column number out of range: in row ``number`` (from 1, or 0)."""
        if number:
            self._refuse_column(plan, number - 1)

    def _check_rows(self, window: DeviceWindow, rows: RowPlan, wrong: int) -> None:
        """Queue a look at the column numbers of all rows."""
        kernel = Kernel("check_rows", tuple(macro for macro in self._macros if macro[0] == "INDEX"))
        cuts = rows.cuts.tolist()
        for b, (first, stop) in enumerate(zip(cuts[:-1], cuts[1:], strict=True)):
            tables = window.index_rows + 8 * first, window.starts + 8 * (first + b), stop - first
            arguments = *window.indices.arguments, *tables, self._n_stored, window.unordered + first, wrong, first
            self._pool.device.copying.launch(kernel, stop - first, arguments)


@dataclass(frozen=True, slots=True, eq=False)
class _Totals:
    """What kernels take of the sums of a batch's rows."""

    memory: Any = None
    """Holds them until the kernel that takes them is queued."""
    arguments: tuple[int, int] = (0, 0)
    """Their address, and the bits of the sum that they are scaled to."""


def _value_macros(part: SparsePart) -> tuple[tuple[str, str], ...] | None:
    """Give the types, and what is done with values, as kernels shall see them; None if a device cannot do it."""
    types, bfloat16 = (part._stored_dtype, part._dtype), part._emit.bfloat16
    if part._kernel is None:
        return value_macros(*types, bfloat16=bfloat16)
    return changed_macros(*types, part._kernel, bfloat16=bfloat16)


def _rows_of(window: DeviceWindow, b: int, first: int, n_rows: int) -> tuple[int, ...]:
    """Give the first arguments of a kernel that makes a batch."""
    tables = window.value_rows + 8 * first, window.index_rows + 8 * first, window.starts + 8 * (first + b)
    return *window.values.arguments, *window.indices.arguments, *tables, n_rows


def extent(arrays: Sequence[NDArray[Any]]) -> int:
    """Say how many bytes arrays take that lie one behind the other."""
    return address(arrays[-1]) + arrays[-1].nbytes - address(arrays[0])


def place_in(staging: WindowMemory, arrays: Sequence[NDArray[Any]], array: NDArray[Any]) -> int:
    """Say where an array lies in the memory that all of them are copied to."""
    return staging.ptr + address(array) - address(arrays[0])


Held = TypeVar("Held", Batch, Modality)


class HandOver:
    """Makes batches on the stream that is current where they are asked for."""

    def __init__(self, pool: WindowMemoryPool) -> None:
        self._pool = pool

    def __call__(self, batch: Batch) -> Batch:
        """Give a batch whose matrices lie on the device; labels stay where they are.

        Raises
        ------
        DeviceMemoryError
            If there is no room left for them.
        CorruptStoreError
            If what was decoded on the device is not what it should be.
        """
        stream = self._pool.device.current()
        copied: list[NDArray[Any]] = []
        made = self._made(batch, stream, copied)
        if batch.modalities is not None:
            modalities = {name: self._made(one, stream, copied) for name, one in batch.modalities.items()}
            made = replace(made, modalities=modalities)
        if copied:
            self._pool.keep(copied, stream.record())
        return made

    def _made(self, held: Held, stream: Stream, copied: list[NDArray[Any]]) -> Held:
        return replace(
            held,
            data=None if held.data is None else self._matrix(held.data, stream, copied),
            layers=self._all(held.layers, stream, copied),
            obsm=self._all(held.obsm, stream, copied),
        )

    def _all(self, matrices: Any, stream: Stream, copied: list[NDArray[Any]]) -> dict[str, Any] | None:
        if matrices is None:
            return None
        return {name: self._matrix(matrix, stream, copied) for name, matrix in matrices.items()}

    def _matrix(self, matrix: Any, stream: Stream, copied: list[NDArray[Any]]) -> Any:
        if isinstance(matrix, OnDeviceMatrix):
            return matrix.make(stream)
        if isinstance(matrix, CSR):
            data, indices, indptr = (
                self._copy(part, stream, copied) for part in (matrix.data, matrix.indices, matrix.indptr)
            )
            return CSR(data, indices, indptr, matrix.shape)
        return self._copy(matrix, stream, copied)

    def _copy(self, array: NDArray[Any], stream: Stream, copied: list[NDArray[Any]]) -> Any:
        found = stream.array(array.shape, array.dtype)
        stream.copy(self._pool.device.address(found), address(array), array.nbytes)
        copied.append(array)
        return found
