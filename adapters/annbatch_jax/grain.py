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
    """The source of a Grain pipeline: batches as plain dicts of NumPy arrays.

    ``data`` is a dense array or a `PaddedCSR`; ``mask``, ``index``, ``layers`` and ``obsm`` are those of `JaxLoader`.
    The codes of each label column are under the column's name. With modalities, each modality is a dict. All batches
    have ``batch_size`` rows.

    Each iterator begins with epoch 0. ``iterator.get_state()`` and ``set_state`` resume with the very next batch,
    whatever was read ahead. A state is small and can be written as JSON. It fits the same data, settings and number of
    workers; see `annbatch.Loader.load_state_dict`.

    Under ``jax.distributed``, each process gets its own windows, and all get the same number of batches, unless the
    core loader has a ``partition``. Worker processes of ``mp_prefetch`` share out the windows of their process.

    Parameters
    ----------
    batches
        The form of the batches: ``JaxLoader(ds, layout="dense")``.
    n_epochs
        Number of epochs, each in another order; None means that the dataset never ends. (Grain's ``repeat`` would
        repeat the same order.)

    Raises
    ------
    annbatch.errors.InputError
        If the loader makes its batches on a device or for a sharding (put the arrays on devices after Grain), or if a
        dict cannot hold its batches.
    TypeError, ValueError
        If ``batches`` is not a `JaxLoader`, or ``n_epochs`` is below 1.

    Examples
    --------
    >>> import annbatch
    >>> from annbatch_jax import JaxLoader
    >>> from annbatch_jax.grain import LoaderDataset
    >>> ds = annbatch.Loader(batch_size=32).use_collection(
    ...     "collection", labels=["cell_type"]
    ... )
    >>> dataset = LoaderDataset(JaxLoader(ds, layout="dense"), n_epochs=2)
    >>> sum(int(batch["mask"].sum()) for batch in dataset)
    240
    """

    def __init__(self, batches: JaxLoader, *, n_epochs: int | None = 1) -> None:
        super().__init__()
        if not isinstance(batches, JaxLoader):
            raise TypeError(f"batches must be a JaxLoader, got {type(batches).__name__}")
        if batches._placement is not None:
            raise InputError("sharding must be None: a dataset yields NumPy arrays; use jax.device_put after Grain")
        check_flat(batches.loader, device="cpu")
        self._batches = batches
        self._n_epochs = None if n_epochs is None else integer("n_epochs", n_epochs, 1)
        # Worker processes must not ask JAX, which would take a device for each of them.
        self._partition = batches.partition or WHOLE

    def set_slice(self, sl: slice, sequential_slice: bool = False) -> None:
        """Restrict the dataset to the part of a worker process; Grain calls this there.

        Parameters
        ----------
        sl
            ``slice(worker, None, n_workers)``.
        sequential_slice
            Must be False.

        Raises
        ------
        ValueError
            If ``sequential_slice`` is True, which asks for a range of batches.
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
        """Return the position of the iterator: after the batch that it gave last."""
        return self._loader.state_dict()

    def set_state(self, state: dict[str, Any]) -> None:
        """Continue where a state was taken.

        Raises
        ------
        annbatch.errors.InputError
            If the state belongs to other data, settings or workers. The error names what differs.
        """
        self._loader.load_state_dict(state, self._partition)
        self._running = None

    def close(self) -> None:
        """Stop reading ahead."""
        super().close()
        self._loader.close()

    def __str__(self) -> str:
        return "LoaderIterator"
