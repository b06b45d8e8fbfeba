"""How do packed chunks that a device unpacks become batches?

1. `UnpackedOnDevicePart` has those groups of blocks read that hold a window's rows (`annbatch.device.packed_blocks`),
   and copies them, packed, with a table that says where each block begins.
2. The device unpacks them behind each other, and checks the column numbers. What it found is there before the first
   batch of the window is handed over: no byte of a store is trusted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from annbatch.batches.filling import Filling
from annbatch.batches.on_device import C_TYPES, DeviceWindow, OnDeviceArray, OnDevicePart, extent, place_in
from annbatch.buffers import aligned
from annbatch.device.cuda import Kernel, Stream
from annbatch.device.packed_blocks import BlockRead, BlockTables, plan_blocks
from annbatch.device.stored_chunks import describe, find_chunks
from annbatch.errors import CorruptStoreError
from annbatch.plan.row_places import RowPlan
from annbatch.plan.window import Ints, WindowPlan, address
from annbatch.shards.decode_kernels import Status
from annbatch.shards.packed_layout import BLOCK
from annbatch.shards.shard_index import Located
from annbatch.stores.chunk_arrival import joined
from annbatch.stores.elements import DirectElements, Elements, Work

_INT64 = np.dtype(np.int64)


class _Blocks:
    """The blocks of one window in ``data``, or in ``indices``, of all stores."""

    def __init__(self, arrays: Sequence[Elements], rows: RowPlan, located: Located | None) -> None:
        direct = [array for array in arrays if isinstance(array, DirectElements)]
        self.form = direct[0].form
        self.tables = [array.tables for array in direct]
        self.plan = plan_blocks(rows, self.form.chunk_elements)
        self.n = len(self.plan.units) * self.plan.blocks_per_unit
        self.unit_nbytes = self.plan.blocks_per_unit * BLOCK * self.form.dtype.itemsize
        self._found = find_chunks(self.tables, self.plan.pieces, located)
        # No block takes more bytes than its values do, and those of a chunk no more than are stored.
        most = np.diff(self.plan.bounds) * self.unit_nbytes
        self.room = int(np.minimum(most, np.maximum(self._found.nbytes, 0)).sum())

    def work(self, blocks: NDArray[np.int64], target: NDArray[np.uint8], cursor: Ints) -> Work:
        """Say what reads them, and fills ``blocks``, (3, n) int64."""
        reads, first = [], 0
        for pieces, located in self._found.parts:
            bounds = self.plan.bounds[first : first + len(pieces.chunks) + 1]
            tables = BlockTables(*blocks)
            reads.append(BlockRead(self.form, self.tables, self.plan, pieces, bounds, tables, target, cursor, located))
            first += len(pieces.chunks)
        return Work(shared=[*reads]) if len(reads) == 1 else Work(single=[*reads])

    def unpack(self, stream: Stream, packed: int, nbytes: int, blocks: int, target: int, broken: int) -> OnDeviceArray:
        """Let the device unpack them; all but sizes are addresses there."""
        kernel = Kernel("unpack_blocks", (("VALUE", C_TYPES[f"u{self.form.dtype.itemsize}"]),))
        columns = (blocks + 8 * self.n * column for column in range(3))
        if self.n:
            stream.launch(kernel, self.n, (packed, nbytes, *columns, self.n, target, broken))
        return OnDeviceArray(target, self.plan.unit_elements, self.unit_nbytes)

    def refuse(self, broken: int) -> None:
        """Raise CorruptStoreError if the device found a block unsound: number ``broken`` (from 1, or 0)."""
        if broken:
            unit = (broken - 1) // self.plan.blocks_per_unit
            chunk = int(np.searchsorted(self.plan.bounds, unit, "right")) - 1
            raise CorruptStoreError(f"{describe(self.tables, self.plan.pieces, chunk)}: {Status.DECODE.text}")


class UnpackedOnDevicePart(OnDevicePart):
    """A CSR matrix over all stores whose packed chunks are unpacked, and whose batches are made, on a device."""

    def begin(self, plan: WindowPlan, rows: RowPlan, located: Iterator[Located | None]) -> Filling:
        """Take page-locked memory for the window's blocks, packed, and say what reads them."""
        values, indices = arrays = [_Blocks(part, rows, joined(part, located)) for part in self._arrays(plan)]
        n_rows = len(rows.lo)
        host = self._slabs.arrays(
            (n_rows, _INT64),
            (n_rows, _INT64),
            (len(rows.starts), _INT64),
            (len(self._lookup), np.dtype(np.int32)),
            (3 * values.n, _INT64),
            (3 * indices.n, _INT64),
            (3, _INT64),
            (1, _INT64),
            (values.room + indices.room, np.dtype(np.uint8)),
        )
        value_rows, index_rows, starts, lookup, value_blocks, index_blocks, results, cursor, packed = host
        value_rows[plan.order], index_rows[plan.order] = values.plan.sources, indices.plan.sources
        starts[:], lookup[:], results[:], cursor[:] = rows.starts, self._lookup, 0, 0
        work = values.work(value_blocks.reshape(3, -1), packed, cursor)
        work += indices.work(index_blocks.reshape(3, -1), packed, cursor)

        def send() -> DeviceWindow:
            stream, n_packed = self._pool.device.copying, int(cursor[0])
            sent = extent(host) - len(packed) + n_packed
            # In the memory of the device: what was read, unpacked values and column numbers, and marks of rows.
            to_values = aligned(sent)
            to_indices = to_values + aligned(len(values.plan.units) * values.unit_nbytes)
            marks = to_indices + aligned(len(indices.plan.units) * indices.unit_nbytes)
            staging = self._pool.take(marks + aligned(n_rows))
            place = partial(place_in, staging, host)
            stream.copy(staging.ptr, address(host[0]), sent)
            stream.zero(staging.ptr + marks, n_rows)
            of_packed, broken = (place(packed), n_packed), place(results) + 8
            window = DeviceWindow(
                staging,
                values.unpack(stream, *of_packed, place(value_blocks), staging.ptr + to_values, broken),
                indices.unpack(stream, *of_packed, place(index_blocks), staging.ptr + to_indices, broken + 8),
                place(value_rows),
                place(index_rows),
                place(starts),
                place(lookup) if len(lookup) else 0,
                staging.ptr + marks,
                stream.record(),
            )
            self._check_rows(window, rows, place(results))
            stream.copy(address(results), place(results), results.nbytes)
            window.copied = stream.record()
            window.check = partial(self._check, plan, rows, arrays, results)
            self._pool.keep(host, window.copied)
            return window

        return self._filling(plan, rows, work, extent(host), send)

    def _check(self, plan: WindowPlan, rows: RowPlan, arrays: Sequence[_Blocks], results: Any) -> None:
        """Look at what the device said.

        Raises
        ------
        CorruptStoreError
            If a block is unsound, or a column number out of range.
        """
        wrong, *broken = results.tolist()
        for array, number in zip(arrays, broken, strict=True):
            array.refuse(number)
        self._refuse_row(plan, rows, wrong)
