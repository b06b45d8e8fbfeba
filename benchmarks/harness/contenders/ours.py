"""How does this project's loader take part?

Setting `Setting.device` to ``"cpu"`` tries the ways of the GPU where there is none; those figures mean nothing.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from harness.environments import Unavailable
from harness.jobs import Epoch, Job, Matrix


def loader_of(job: Job, **options: Any) -> Any:
    """Open the job's store, or its input where it has none, with a Loader as its setting says."""
    import annbatch

    loader = annbatch.Loader(**job.setting.reading, **(dict(job.setting.options) | options))
    if not job.store:
        return loader.use_h5ad(job.inputs, labels=job.setting.labels)
    return loader.use_collection(job.store, labels=job.setting.labels)


def open_ours(path: str) -> Callable[[Job], Epoch]:
    """Open with the Loader alone; ``path`` is ``direct``, ``zarr`` or, with an empty cache, ``cached``."""

    def open_it(job: Job) -> Epoch:
        import annbatch

        _take_path(path)
        options: dict[str, Any] = {} if job.setting.threads is None else {"threads": job.setting.threads}
        if path == "cached":
            folder = Path(job.inputs[0]).parent / "cache"
            shutil.rmtree(folder, ignore_errors=True)
            options |= {"cache_dir": folder, "cache_limit": "1TB"}
        loader = loader_of(job, partition=annbatch.Partition(job.setting.rank, job.setting.ranks), **options)

        def epoch() -> Iterator[Matrix]:
            for batch in loader:
                # As a training loop does: the codes of every label, the DataFrame only where the setting asks for it.
                assert all(len(batch.codes[name]) == batch.data.shape[0] for name in job.setting.labels)
                if job.setting.frame:
                    assert len(batch.labels) == batch.data.shape[0]
                yield Matrix.of_csr(batch.data)

        return epoch

    return open_it


def _take_path(path: str) -> None:
    """Make this process take the direct path or zarr's API: the one place that knows the switch."""
    from annbatch.stores import array_opening

    array_opening.DIRECT = path != "zarr"


def open_torch(n_workers: int | None = None, method: str | None = None) -> Callable[[Job], Epoch]:
    """Open with the adapter for torch, as it is or inside torch's DataLoader."""

    def open_it(job: Job) -> Epoch:
        from torch.utils.data import DataLoader

        from annbatch_torch import TorchLoader

        batches: Any = TorchLoader(loader_of(job))
        if n_workers is not None:
            batches = DataLoader(
                batches,
                batch_size=None,
                num_workers=n_workers,
                multiprocessing_context=method,
                persistent_workers=n_workers > 0,
            )

        def epoch() -> Iterator[Matrix]:
            for batch in batches:
                data = batch.data
                yield Matrix(data.values().numpy(), data.col_indices().numpy(), data.shape[0])

        return epoch

    return open_it


def open_gpu(decode: str, layout: str) -> Callable[[Job], Epoch]:
    """Open on the setting's device: with the adapter for CuPy, or with that for torch to train."""

    def open_it(job: Job) -> Epoch:
        on_gpu = job.setting.device != "cpu"
        loader = loader_of(job, **({"device": job.setting.device, "decode": decode} if on_gpu else {}))
        if on_gpu and loader.decode != decode:
            raise Unavailable(f"chunks must be decoded by the {decode}, got {loader.decode}")
        if job.train:
            return _to_train(loader, layout)
        if on_gpu:
            from annbatch_cupy import CupyLoader

            adapter = CupyLoader(loader, layout=layout)
            batches: Callable[[], Any] = partial(iter, adapter)
        else:
            from annbatch import Emit

            emit = Emit(dtype=np.dtype(np.float32), layout=layout)
            batches = partial(loader.batches, emit)

        def epoch() -> Iterator[Matrix]:
            for batch in batches():
                data = batch.data
                assert all(len(batch.codes[name]) == data.shape[0] for name in job.setting.labels)
                yield Matrix(data, None, data.shape[0]) if layout == "dense" else Matrix.of_csr(data)

        return epoch

    return open_it


def _to_train(loader: Any, layout: str) -> Epoch:
    from annbatch_torch import TorchLoader, csr_parts, densify

    adapter = TorchLoader(loader, layout=layout)

    def for_training(batch: Any) -> tuple[Any, Any]:
        data = batch.data
        return densify(*csr_parts(data), data.shape[1]) if layout == "csr" else data, batch.codes["cell_type"]

    def epoch() -> Iterator[Matrix]:
        for batch in adapter:
            yield Matrix(None, None, batch.data.shape[0], partial(for_training, batch))

    return epoch


def write_ours(inputs: list[str], store: str, **options: Any) -> None:
    """Write with this project's defaults, or with options that differ from them."""
    import annbatch

    annbatch.create_anndata_collection(adata_paths=inputs, output_path=store, shuffle=True, seed=0, **options)
