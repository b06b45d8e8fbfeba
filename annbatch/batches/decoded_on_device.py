"""How do zstd chunks that nvCOMP decodes become batches?

1. `DecodedOnDevicePart` has them read as they are stored (`annbatch.device.stored_chunks`), copies them, and
   lets the device decode them and check the column numbers. What it found is there before the first batch of the
   window is handed over.
2. The device sums up chunks that are stored as differences; stores of one collection may differ in that.
3. Shuffled bytes are put together when batches are made (`annbatch.batches.on_device`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from annbatch.batches.filling import Filling
from annbatch.batches.on_device import C_TYPES, DeviceWindow, OnDeviceArray, OnDevicePart, extent, place_in
from annbatch.buffers import aligned
from annbatch.device.cuda import Kernel, Stream
from annbatch.device.nvcomp import ALIGNMENT_BYTES, Frames
from annbatch.device.stored_chunks import FrameRead, describe, find_chunks, missing_frame, plan_chunks
from annbatch.errors import CorruptStoreError
from annbatch.plan.row_places import RowPlan
from annbatch.plan.window import Ints, WindowPlan, address
from annbatch.shards.decode_kernels import Status
from annbatch.shards.shard_index import Located
from annbatch.stores.chunk_arrival import joined
from annbatch.stores.elements import DirectElements, Elements, Work

AT_ONCE = 4096
"""Chunks that are decoded together: enough to keep a device busy, while nvCOMP's own memory stays in bounds (three
times what it decodes)."""

_INT64 = np.dtype(np.int64)


class _Array:
    """The chunks of one window in ``data``, or in ``indices``, of all stores."""

    def __init__(self, arrays: Sequence[Elements], rows: RowPlan, located: Located | None) -> None:
        direct = [array for array in arrays if isinstance(array, DirectElements)]
        self.form = direct[0].form
        self.tables = [array.tables for array in direct]
        self.pieces, self.sources = plan_chunks(rows, self.form.chunk_elements)
        self.stride = _up(self.form.nbytes)
        self._found = find_chunks(self.tables, self.pieces, located)
        stored = self._found.nbytes
        is_missing = stored < 0
        self._missing = missing_frame(self.form) if is_missing.any() else np.empty(0, np.uint8)
        self.room = np.where(is_missing, len(self._missing), stored)
        self.nbytes = self.room - np.where(is_missing, 0, 4 if self.form.decoder.crc32c else 0)
        are_differences = np.repeat([array.form.decoder.delta for array in direct], np.diff(self.pieces.edges))
        self.are_differences = are_differences & ~is_missing

    def work(self, targets: Ints) -> Work:
        """Say what reads the chunks to these addresses."""
        reads, first = [], 0
        for part, located in self._found.parts:
            own = targets[first : first + len(part.chunks)]
            reads.append(FrameRead(self.form, self.tables, part, own, self._missing, located))
            first += len(own)
        return Work(shared=[*reads]) if len(reads) == 1 else Work(single=[*reads])

    def decoded(self, stream: Stream, at: int, are_differences: int) -> OnDeviceArray:
        """Let the device sum up decoded chunks at an address; ``are_differences`` is that of which ones, there."""
        found = OnDeviceArray(at, self.form.chunk_elements, self.stride, self.form.decoder.shuffle > 1)
        if self.are_differences.any():
            kernel = Kernel("undo_differences", (("VALUE", C_TYPES[f"u{self.form.dtype.itemsize}"]),))
            n_chunks = len(self.are_differences)
            stream.launch(kernel, n_chunks, (*found.arguments, are_differences, n_chunks))
        return found


class DecodedOnDevicePart(OnDevicePart):
    """A CSR matrix over all stores whose chunks are decoded, and whose batches are made, on a device."""

    def begin(self, plan: WindowPlan, rows: RowPlan, located: Iterator[Located | None]) -> Filling:
        """Take page-locked memory for the window's chunks, as they are stored, and say what reads them."""
        values, indices = arrays = [_Array(part, rows, joined(part, located)) for part in self._arrays(plan)]
        n_rows, n_values = len(rows.lo), len(values.room)
        room, nbytes = (np.concatenate([getattr(one, name) for one in arrays]) for name in ("room", "nbytes"))
        n_frames = len(room)
        ends = np.cumsum(_up(room))
        host = self._slabs.arrays(
            (n_rows, _INT64),
            (n_rows, _INT64),
            (len(rows.starts), _INT64),
            (len(self._lookup), np.dtype(np.int32)),
            (5 * n_frames, _INT64),
            (int(ends[-1]) if n_frames else 0, np.dtype(np.uint8)),
            (1, _INT64),
            (n_frames, _INT64),
            (n_frames, np.dtype(np.int32)),
        )
        value_rows, index_rows, starts, lookup, table, frames, wrong, decoded, statuses = host
        value_rows[plan.order], index_rows[plan.order] = values.sources, indices.sources
        starts[:], lookup[:] = rows.starts, self._lookup
        targets = address(frames) + ends - _up(room)
        work = values.work(targets[:n_values])
        work += indices.work(targets[n_values:])
        are_differences = np.concatenate([one.are_differences for one in arrays])

        def send() -> DeviceWindow:
            device = self._pool.device
            stream, sent, results = device.copying, extent(host[:6]), extent(host[6:])
            sizes = np.repeat([values.form.nbytes, indices.form.nbytes], [n_values, n_frames - n_values])
            strides = np.repeat([values.stride, indices.stride], [n_values, n_frames - n_values])
            places = np.cumsum(strides) - strides
            # In the memory of the device: what the slab holds, decoded chunks, and marks of rows.
            first = aligned(extent(host))
            marks = first + aligned(int(strides.sum()))
            staging = self._pool.take(marks + aligned(n_rows))
            place = partial(place_in, staging, host)
            at = staging.ptr + first
            sources = place(frames) + ends - _up(room)
            table.reshape(5, n_frames)[:] = sources, nbytes, at + places, sizes, are_differences
            stream.copy(staging.ptr, address(host[0]), sent)
            stream.zero(place(wrong), results)
            stream.zero(staging.ptr + marks, n_rows)
            if n_frames:
                largest, n_together = int(sizes.max()), min(n_frames, AT_ONCE)
                scratch_nbytes = device.scratch_nbytes(n_together, largest, n_together * largest)
                scratch = self._pool.scratch(scratch_nbytes)
            for k in range(0, n_frames, AT_ONCE):
                source, source_nbytes, target, target_nbytes = (
                    place(table) + 8 * (n_frames * column + k) for column in range(4)
                )
                stream.decompress(
                    Frames(
                        n=min(AT_ONCE, n_frames - k),
                        sources=source,
                        source_nbytes=source_nbytes,
                        targets=target,
                        target_nbytes=target_nbytes,
                        decoded_nbytes=place(decoded) + 8 * k,
                        statuses=place(statuses) + 4 * k,
                        scratch=scratch,
                        scratch_nbytes=scratch_nbytes,
                    )
                )
            window = DeviceWindow(
                staging,
                values.decoded(stream, at, place(table) + 32 * n_frames),
                indices.decoded(stream, at + n_values * values.stride, place(table) + 32 * n_frames + 8 * n_values),
                place(value_rows),
                place(index_rows),
                place(starts),
                place(lookup) if len(lookup) else 0,
                staging.ptr + marks,
                stream.record(),
            )
            self._check_rows(window, rows, place(wrong))
            stream.copy(address(wrong), place(wrong), results)
            window.copied = stream.record()
            window.check = partial(self._check, plan, rows, arrays, wrong, decoded, statuses)
            self._pool.keep(host, window.copied)
            return window

        return self._filling(plan, rows, work, extent(host), send)

    def _check(
        self, plan: WindowPlan, rows: RowPlan, arrays: Sequence[_Array], wrong: Ints, decoded: Ints, statuses: Any
    ) -> None:
        """Look at what the device said.

        Raises
        ------
        CorruptStoreError
            If a chunk was not decoded, to its size, or a column number is out of range.
        """
        first = 0
        for array in arrays:
            own = slice(first, first + len(array.room))
            bad = np.flatnonzero((statuses[own] != 0) | (decoded[own] != array.form.nbytes))
            if len(bad):
                j = int(bad[0])
                raise CorruptStoreError(
                    f"{describe(array.tables, array.pieces, j)}: {Status.DECODE.text} (nvCOMP's status "
                    f"{statuses[own][j]}, {decoded[own][j]} of {array.form.nbytes} bytes)"
                )
            first = own.stop
        self._refuse_row(plan, rows, int(wrong[0]))


def _up(nbytes: Any) -> Any:
    """Round up to what nvCOMP wants."""
    return -(-nbytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
