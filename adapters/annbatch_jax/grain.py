"""How do batches become a dataset of Grain, whose checkpoints hold where they stand?

1. A `LoaderDataset` is the source of a Grain pipeline: ``map``, ``mp_prefetch`` and the like follow it.
2. Its iterators count epochs themselves: ``repeat`` of Grain would give the same order again.
3. ``mp_prefetch`` gives a worker process a slice of the dataset. Here that is every n-th window, as in a ``DataLoader``
   of torch: workers change neither the batches nor their number.
4. Grain saves the state of each iterator, which is that of its loader.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

try:
    import grain
except ImportError as error:
    raise ImportError("annbatch_jax.grain needs Grain, which could not be imported: pip install grain") from error

from annbatch.adapter import WHOLE, Batch, Partition, available_cores, check_flat, flat, integer
from annbatch.errors import InputError
from annbatch_jax._loader import JaxLoader

__all__ = ["LoaderDataset"]


class LoaderDataset(grain.IterDataset[dict[str, Any]]):  # type: ignore[misc]
    """Batches as plain dicts of NumPy arrays, the source of a Grain pipeline.

    ``data`` is a dense array or a `PaddedCSR`, ``mask`` says which rows only fill up, and ``index``, ``layers`` and
    ``obsm`` are those of `JaxLoader`. The codes of each label column stand under the column's name. Of a collection
    with modalities each modality is a dict. All batches have ``batch_size`` rows.

    Each iterator begins with epoch 0. ``iterator.get_state()`` and ``set_state`` go on at the very next batch, whatever
    was read ahead; a state is small and consists of what JSON holds. It fits the same data, settings and number of
    workers, as `annbatch.Loader.load_state_dict` says.

    Under ``jax.distributed`` each process gets its own windows, and equally many batches, unless the core loader was
    given a ``partition``. Worker processes of ``mp_prefetch`` share out the windows of their process.

    Parameters
    ----------
    batches
        Says what batches look like: ``JaxLoader(ds, layout="dense")``.
    n_epochs
        How many epochs there are, one after the other, each in another order; None means without end. Grain's
        ``repeat`` gives the same order each time.

    Raises
    ------
    annbatch.errors.InputError
        If the loader makes its batches on a device, or for a sharding: give the arrays to the devices behind Grain. If
        a dict cannot hold what the loader gives.
    TypeError, ValueError
        If ``batches`` is no `JaxLoader`, or ``n_epochs`` is below 1.

    Examples
    --------
    >>> dataset = LoaderDataset(JaxLoader(ds, layout="dense"), n_epochs=10)  # doctest: +SKIP
    >>> for batch in dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=2)):  # doctest: +SKIP
    ...     params = step(params, batch["data"], batch["cell_type"], batch["mask"])
    """

    def __init__(self, batches: JaxLoader, *, n_epochs: int | None = 1) -> None:
        super().__init__()
        if not isinstance(batches, JaxLoader):
            raise TypeError(f"batches must be a JaxLoader, got {type(batches).__name__}")
        if batches._placement is not None:
            raise InputError("sharding must be None: a dataset gives arrays of the host, for jax.device_put behind it")
        check_flat(batches.loader, device="cpu")
        self._batches = batches
        self._n_epochs = None if n_epochs is None else integer("n_epochs", n_epochs, 1)
        # Worker processes must not ask JAX, which would take a device for each of them.
        self._partition = batches.partition or WHOLE

    def set_slice(self, sl: slice, sequential_slice: bool = False) -> None:
        """Become the part of a worker process: what Grain calls there, with ``slice(worker, None, n_workers)``.

        Raises
        ------
        ValueError
            If the slice is a range of batches, ``sequential_slice=True``.
        """
        if sequential_slice:
            raise ValueError("sequential_slice must be False: workers share out windows in turn")
        self._partition = replace(self._partition, worker=sl.start, n_workers=sl.step)

    def __iter__(self) -> LoaderIterator:
        return LoaderIterator(self._batches, self._n_epochs, self._partition)

    def __str__(self) -> str:
        return f"LoaderDataset({self._batches!r}, n_epochs={self._n_epochs})"


class LoaderIterator(grain.DatasetIterator[dict[str, Any]]):  # type: ignore[misc]
    """The batches of one process, or of a worker of it, epoch after epoch; what iterating a `LoaderDataset` gives."""

    def __init__(self, batches: JaxLoader, n_epochs: int | None, partition: Partition) -> None:
        super().__init__()
        self._batches, self._n_epochs, self._partition = batches, n_epochs, partition
        # Each iterator stands at a place of its own.
        self._loader = batches.loader.replace()
        if self._loader.threads is None and partition.n_workers:
            self._loader.threads = max(1, available_cores() // partition.n_workers)
        self._running: Iterator[Batch] | None = None

    def __next__(self) -> dict[str, Any]:
        while True:
            if self._running is None:
                if self._n_epochs is not None and self._loader.next_epoch >= self._n_epochs:
                    raise StopIteration
                self._running = self._loader.batches(self._batches._emit, self._partition)
            for batch in self._running:
                handed = self._batches._on_host(batch)
                return flat(handed, mask=handed.mask)
            self._running = None

    def get_state(self) -> dict[str, Any]:
        """Say where the iterator stands: behind the batch that it gave last."""
        return self._loader.state_dict()

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on where a state was taken.

        Raises
        ------
        annbatch.errors.InputError
            If the state is of other data, settings or workers; names what differs.
        """
        self._loader.load_state_dict(state, self._partition)
        self._running = None

    def close(self) -> None:
        """Stop reading ahead."""
        super().close()
        self._loader.close()

    def __str__(self) -> str:
        return "LoaderIterator"
