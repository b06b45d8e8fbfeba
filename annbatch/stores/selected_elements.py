"""How do only the elements of wanted columns get from the chunks of CSR matrices to the batches?

`plan_selected` does for values and column numbers together what `annbatch.stores.elements.plan_work` does for each of
them, if the kernels can decode all of both. If not, everything is scattered, and columns are selected behind that.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from annbatch.plan.chunk_pieces import Pieces
from annbatch.plan.column_selection import Selection
from annbatch.shards.chunk_files import MAX_FILES
from annbatch.shards.scatter import Scatter
from annbatch.shards.select_scatter import Picked, SelectScatter
from annbatch.shards.shard_index import Located
from annbatch.stores.elements import DirectElements, Elements, RemoteElements, Work, alike_runs, workspace


def can_select(values: Sequence[Elements], indices: Sequence[Elements], dtypes: tuple[Any, Any]) -> bool:
    """Say whether `plan_selected` can read arrays, without a cast, to memory of these types of values and columns."""
    kinds = set()
    for one, other in zip(values, indices, strict=True):
        if not isinstance(one, DirectElements | RemoteElements) or not isinstance(
            other, DirectElements | RemoteElements
        ):
            return False
        if (one.dtype, other.dtype) != dtypes or not SelectScatter.can_take(one.form, other.form):
            return False
        kinds.add((type(one), one.form, type(other), other.form))
    # Arrays of one kind are read together.
    return len(kinds) == 1


def plan_selected(
    arrays: tuple[Sequence[Elements], Sequence[Elements]],
    pieces: Pieces,
    selection: Selection,
    picked: Picked,
    located: Iterator[Located | None],
) -> Work | None:
    """Say how the wanted elements of all pieces are picked.

    Parameters
    ----------
    arrays
        Values and column numbers of each store, for which `can_select` holds.
    pieces
        Planned for the chunks of both; where they go does not matter.
    selection
        Which columns are wanted.
    picked
        Where wanted elements go.
    located
        Where chunks are that are in memory, of values and then of column numbers.

    Returns
    -------
    Work or None
        None if that takes more files than are opened at once.
    """
    scatters: list[Scatter] = []
    for elements in arrays:
        ((alike, part),) = alike_runs(elements, pieces)
        first = alike[0]
        assert isinstance(first, DirectElements | RemoteElements)
        limit = len(selection.lookup) if scatters else None
        in_memory = next(located, None)
        if in_memory is not None:
            layouts = [array.tables.layout for array in alike if isinstance(array, DirectElements | RemoteElements)]
            scatters.append(Scatter(first.form, layouts, part, first.dtype, limit, in_memory))
            continue
        tables = [array.tables for array in alike if isinstance(array, DirectElements)]
        if len(part.parts([of_array.layout.chunks_per_shard for of_array in tables], MAX_FILES)) != 1:
            return None
        scatters.append(Scatter.of(first.form, tables, part, first.dtype, limit))
    return Work(shared=[partial(_run, SelectScatter(scatters[0], scatters[1], selection, picked))])


def _run(scatter: SelectScatter) -> None:
    scatter.run(workspace())
