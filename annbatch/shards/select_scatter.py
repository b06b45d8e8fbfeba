"""How do threads share out chunks of which only wanted columns are kept?

A `SelectScatter` is to `select_chunks` what `annbatch.shards.scatter.Scatter` is to `scatter_chunks`: any number of
threads may `run` it, each with its own workspace. It takes values and column numbers of CSR matrices whose chunks hold
equally many elements, as they are stored.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from annbatch.counters import of_thread
from annbatch.plan.column_selection import Selection
from annbatch.shards.codecs import Codec, Workspace, calls_of
from annbatch.shards.decode_kernels import Status, copy_types
from annbatch.shards.scatter import Form, Scatter
from annbatch.shards.select_kernels import select_chunks

_CODECS = (Codec.RAW, Codec.BLOSC, Codec.ZSTD, Codec.ZLIB, Codec.LZF)


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

    @staticmethod
    def can_take(values: Form, indices: Form) -> bool:
        """Say whether chunks of these forms can be decoded together."""
        return (
            values.chunk_elements == indices.chunk_elements
            and values.decoder.codec in _CODECS
            and indices.decoder.codec in _CODECS
        )

    def run(self, workspace: Workspace) -> None:
        """Read, decode and pick until no chunk is left; raises as `Scatter.run` does."""
        both = self.values, self.indices
        forms = [one.form for one in both]
        types = [copy_types(form.dtype)[0] for form in forms]
        decoders = [form.decoder for form in forms]
        decompress, context, chains = calls_of(decoders, workspace)
        raw = workspace.raw(max(form.max_stored_nbytes for form in forms))
        n_bytes = [form.nbytes for form in forms]
        shuffled = workspace.shuffled(max(n if d.shuffle > 1 else 0 for n, d in zip(n_bytes, decoders, strict=True)))
        scratch = workspace.scratch(sum(n_bytes) + 4 * forms[0].chunk_elements + 64)
        ends = np.cumsum([0, *(-(-n // 8) * 8 for n in n_bytes)])
        buffers = [scratch[ends[i] : ends[i] + n_bytes[i]].view(types[i]) for i in (0, 1)]
        numbers = scratch[ends[2] : ends[2] + 4 * forms[0].chunk_elements].view(np.int32)
        pieces, picked = self.values.pieces, self.picked
        edges = np.append(0, np.cumsum(pieces.lengths))[pieces.bounds]
        status, j, is_index = select_chunks(
            decompress,
            context,
            chains,
            *((one.located.fds, one.located.offsets, one.located.nbytes) for one in both),
            tuple(np.frombuffer(bytearray(form.fill), kind) for form, kind in zip(forms, types, strict=True)),
            (pieces.bounds, pieces.sources, pieces.lengths),
            edges,
            (picked.values.view(types[0]), picked.columns.view(types[1])),
            (picked.firsts, picked.counts),
            self.selection.is_wanted,
            self.selection.lookup,
            raw,
            tuple(shuffled[: n if d.shuffle > 1 else 0] for n, d in zip(n_bytes, decoders, strict=True)),
            tuple(buffers),
            numbers,
            self.tickets,
            of_thread(),
        )
        if status != Status.OK:
            both[is_index].fail(status, j)
