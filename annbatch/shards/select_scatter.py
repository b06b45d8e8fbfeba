"""How do threads share out chunks of which only wanted columns are kept?

A `SelectScatter` is to `select_chunks` and `select_packed` what `annbatch.shards.scatter.Scatter` is to
`scatter_chunks` and `scatter_packed`: any number of threads may `run` it, each with its own workspace. It takes values
and column numbers of CSR matrices whose chunks hold equally many elements, as they are stored.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from annbatch.plan.column_selection import Selection
from annbatch.shards.codecs import HEAD_NBYTES, TAIL_NBYTES, Codec, Workspace
from annbatch.shards.decode_kernels import DECODE, Job, Status
from annbatch.shards.packed_kernels import RUN_NBYTES, PackedJob
from annbatch.shards.packed_layout import BLOCK
from annbatch.shards.scatter import Form, Scatter
from annbatch.shards.scatter_kernels import copy_types
from annbatch.shards.select_kernels import PLACES_ROOM, select_chunks, select_packed
from annbatch.shards.select_vectors import bitmap_of

_CODECS = {Codec.RAW, Codec.BLOSC, Codec.ZSTD, Codec.ZLIB, Codec.LZF}


@dataclass(frozen=True, slots=True, eq=False)
class Picked:
    """The wanted elements of pieces of chunks; empty until they were picked."""

    values: NDArray[Any]
    """(n_elements,) as they are stored: room for all elements of all pieces."""
    columns: NDArray[Any]
    """(n_elements,) their numbers among the wanted columns, in the type of the stored column numbers."""
    firsts: NDArray[np.int64]
    """(n_pieces,) where those of each piece begin."""
    counts: NDArray[np.int64]
    """(n_pieces,) how many there are of each piece."""


@dataclass(frozen=True, slots=True, eq=False)
class SelectScatter:
    """Pieces of chunks of values and of column numbers, of which wanted elements are picked."""

    values: Scatter
    """The values; where its pieces go does not matter."""
    indices: Scatter
    """The column numbers: the same pieces of the same chunks."""
    selection: Selection
    """Which columns are wanted."""
    picked: Picked
    """Where they go."""
    tickets: NDArray[np.int64] = field(default_factory=lambda: np.zeros(1, np.int64))
    """(1,) the next chunk."""

    bitmap: NDArray[np.uint8] = field(init=False)
    """The `bitmap_of` the wanted columns."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "bitmap", bitmap_of(self.selection.is_wanted))

    @staticmethod
    def can_take(values: Form, indices: Form) -> bool:
        """Say whether chunks of these forms can be decoded together."""
        codecs = {values.decoder.codec, indices.decoder.codec}
        return values.chunk_elements == indices.chunk_elements and (codecs <= _CODECS or codecs == {Codec.PACKED})

    def run(self, workspace: Workspace) -> None:
        """Read, decode and pick until no chunk is left; raises as `Scatter.run` does."""
        both = self.values, self.indices
        forms = [one.form for one in both]
        types = [copy_types(form.dtype)[0] for form in forms]
        n = forms[0].chunk_elements
        is_packed = forms[0].decoder.codec is Codec.PACKED
        # Whole blocks, where there are any; 64 bytes behind each, and each on a boundary of 64.
        rooms = [(-(-n // BLOCK) * BLOCK if is_packed else n) * form.dtype.itemsize for form in forms]
        ends = np.cumsum([0, *(-(-room // 64) * 64 + 64 for room in rooms)])
        memory = workspace.scratch(int(ends[2]) + 4 * (n + PLACES_ROOM))
        scratch = [memory[a : a + room].view(kind) for a, room, kind in zip(ends, rooms, types, strict=False)]
        pieces, picked = self.values.pieces, self.picked
        stored = [(one.located.fds, one.located.offsets, one.located.nbytes) for one in both]
        fills = tuple(np.frombuffer(bytearray(form.fill), kind) for form, kind in zip(forms, types, strict=True))
        wanted = (
            (pieces.bounds, pieces.sources, pieces.lengths),
            np.append(0, np.cumsum(pieces.lengths))[pieces.bounds],
            (picked.values.view(types[0]), picked.columns.view(types[1])),
            (picked.firsts, picked.counts),
            (self.selection.is_wanted, self.bitmap, self.selection.lookup),
        )
        ends_with = memory[ends[2] :].view(np.int32), self.tickets
        run = self._run_packed if is_packed else self._run_others
        status, j, is_index = run(workspace, stored, fills, wanted, scratch, ends_with)
        if status != Status.OK:
            both[is_index].fail(status, j)

    def _run_others(
        self, workspace: Workspace, stored: Any, fills: Any, wanted: Any, scratch: Any, ends_with: Any
    ) -> tuple[int, int, int]:
        forms = self.values.form, self.indices.form
        shuffled_nbytes = [form.nbytes if form.decoder.shuffle > 1 else 0 for form in forms]
        shuffled = workspace.shuffled(max(shuffled_nbytes))
        raw = workspace.raw(max(form.max_stored_nbytes for form in forms))
        _, sources, lengths = wanted[0]
        jobs = [
            Job(form.decoder, workspace, fill, sources, lengths, raw, shuffled[:nbytes], decoded)
            for form, fill, nbytes, decoded in zip(forms, fills, shuffled_nbytes, scratch, strict=True)
        ]
        found: tuple[int, int, int] = select_chunks(
            DECODE.address, tuple(job.fields for job in jobs), *stored, *wanted, tuple(scratch), *ends_with
        )
        return found

    def _run_packed(
        self, workspace: Workspace, stored: Any, fills: Any, wanted: Any, scratch: Any, ends_with: Any
    ) -> tuple[int, int, int]:
        forms = self.values.form, self.indices.form
        # Room for what `Workspace.raw` has around a run, twice.
        nbytes = -(-max(RUN_NBYTES, *(form.max_stored_nbytes for form in forms)) // 64) * 64 + HEAD_NBYTES + TAIL_NBYTES
        raw = workspace.raw(2 * nbytes)
        # Where both can be read at once.
        runs = np.union1d(self.values.runs, self.indices.runs)
        own = zip(forms, stored, fills, (raw[:nbytes], raw[nbytes : 2 * nbytes]), scratch, strict=True)
        jobs = [
            PackedJob(form.decoder.delta, form.chunk_elements, at, runs, wanted[0], fill, buffer, blocks)
            for form, at, fill, buffer, blocks in own
        ]
        found: tuple[int, int, int] = select_packed(
            tuple(job.decode for job in jobs),
            tuple(job.fields for job in jobs),
            runs,
            *wanted,
            tuple(blocks[: form.chunk_elements] for blocks, form in zip(scratch, forms, strict=True)),
            *ends_with,
        )
        return found
