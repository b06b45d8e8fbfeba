"""How do batches reach Ray Data?

1. `LoaderDatasource` cuts an epoch into ranges of windows, and gives Ray one read task for each.
2. A task starts where its range does, as a run that is resumed does: nothing before it is read.
3. Each batch becomes one block, a table whose columns are the arrays of the batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

try:
    import ray
    from ray.data import Datasource, ReadTask
    from ray.data.block import BlockAccessor, BlockMetadata
except ImportError as error:
    raise ImportError("annbatch_ray needs Ray Data, which could not be imported: pip install ray[data]") from error

from annbatch.adapter import WHOLE, Emit, a_loader, check_flat, flat

if TYPE_CHECKING:
    from annbatch import Loader

__all__ = ["LoaderDatasource"]

_EMIT = Emit(layout="dense")


class LoaderDatasource(Datasource):  # type: ignore[misc]
    """One epoch of an `annbatch.Loader` as a source of Ray Data.

    Read it with ``ray.data.read_datasource(LoaderDatasource(ds))``. Its rows are cells. The columns are ``data``, dense
    rows in the type of the core loader; ``index``; the codes of each label column, under the column's name;
    ``layers/{name}`` and ``obsm/{name}``; and, with modalities, ``rna/data`` and the like.

    All rows of the epoch come once, whatever the number of tasks and nodes. Each node needs the stores under the same
    path or URL.

    A task reads its windows one after the other, on one thread unless the loader has ``threads``, so that more tasks
    read faster. There are at most as many tasks as windows: lower ``preload_nchunks`` for more tasks.

    Tasks may finish in any order; ``index`` identifies rows. To keep the order of the loader, set
    ``ray.data.DataContext.get_current().execution_options.preserve_order = True``.

    Parameters
    ----------
    ds
        The core loader, to which data have been added. The epoch is the one that the next ``iter`` would start, from
        its beginning; ``ds.set_epoch(epoch)`` chooses it.

    Raises
    ------
    annbatch.errors.InputError
        If the loader makes its batches on a device, carries the names of cells, or has a label column named like
        another column.

    Examples
    --------
    >>> import annbatch, ray  # doctest: +SKIP
    >>> from annbatch_ray import LoaderDatasource  # doctest: +SKIP
    >>> ds = annbatch.Loader(batch_size=32).use_collection(
    ...     "collection", labels=["cell_type"]
    ... )  # doctest: +SKIP
    >>> rows = ray.data.read_datasource(LoaderDatasource(ds))  # doctest: +SKIP
    """

    def __init__(self, ds: Loader) -> None:
        super().__init__()
        check_flat(a_loader(ds), device="cpu")
        self._loader = ds
        self._epoch = ds.next_epoch

    def get_name(self) -> str:
        """Return the name under which Ray lists the read tasks."""
        return "annbatch"

    def estimate_inmemory_data_size(self) -> int:
        """Estimate the bytes of all ``data`` and layers."""
        ds, n_bytes = self._loader, 0
        for name, values in ds.emitted(_EMIT).items():
            modality, _, element = name.partition(":") if ds.mod else ("", "", name)
            if not element.startswith("obsm/"):
                n_bytes += values.dtype.itemsize * (ds.mod[modality].n_vars if ds.mod else ds.n_vars)
        return len(ds) * ds.batch_size * n_bytes

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        """Return at most ``parallelism`` tasks, each of a range of windows; Ray calls this."""
        ds = self._loader
        n_batches = len(ds)
        in_window = -(-ds.chunk_size * ds.preload_nchunks // ds.batch_size)
        n_windows = -(-n_batches // in_window)
        n_tasks = max(1, min(parallelism, n_windows))
        starts = [n_windows * task // n_tasks * in_window for task in range(n_tasks)]
        shared = ray.put(ds.replace(prefetch=0, threads=ds.threads or 1))
        # How many rows a range has depends on the sampler.
        unknown = BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)
        return [
            ReadTask(partial(_read, shared, self._epoch, start, stop), unknown, per_task_row_limit=per_task_row_limit)
            for start, stop in zip(starts, [*starts[1:], n_batches], strict=True)
        ]


def _read(shared: ray.ObjectRef[Loader], epoch: int, start: int, stop: int) -> Iterator[Any]:
    """Give batches ``start`` to ``stop`` of an epoch as blocks."""
    with ray.get(shared).replace() as ds:
        count = (ds.partition or WHOLE).count
        ds.load_state_dict(ds.state_dict() | {"epoch": epoch, "parts": [[count, start]]})
        for batch in islice(ds.batches(_EMIT), stop - start):
            yield BlockAccessor.batch_to_block(_columns(flat(batch)))


def _columns(arrays: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Make columns of arrays: what lies in a dict gets the dict's name in front."""
    columns: dict[str, Any] = {}
    for name, held in arrays.items():
        columns |= _columns(held, f"{prefix}{name}/") if isinstance(held, Mapping) else {f"{prefix}{name}": held}
    return columns
