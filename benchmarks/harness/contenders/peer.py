"""How does scverse annbatch 0.3.1 take part?

As its README shows: with the zarrs pipeline and only the wanted obs columns; on a GPU with ``preload_to_gpu=True``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from harness.environments import Unavailable
from harness.jobs import Epoch, Job, Matrix


def _use_zarrs() -> None:
    import zarr

    zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"})


def _read_group(group: Any, job: Job) -> Any:
    import anndata as ad

    return ad.AnnData(X=ad.io.sparse_dataset(group["X"]), obs=ad.io.read_elem(group["obs"])[job.setting.labels])


def _opened(job: Job, **options: Any) -> Any:
    """Open a collection on the local disk."""
    import anndata as ad

    import annbatch

    if version("annbatch") != "0.3.1":
        raise Unavailable(f"the peer must be annbatch 0.3.1, found {version('annbatch')}")
    _use_zarrs()
    with ad.settings.override(remove_unused_categories=False):
        loader = annbatch.Loader(shuffle=True, **job.setting.reading, **options)
        return loader.use_collection(
            annbatch.DatasetCollection(job.store, mode="r"), load_adata=partial(_read_group, job=job)
        )


def open_peer(job: Job) -> Epoch:
    """Open on the CPU."""
    if job.setting.threads is not None:
        import zarr

        zarr.config.set({"threading.max_workers": job.setting.threads})
    # What it would do by default depends on what else is installed.
    loader = _opened(job, preload_to_gpu=False, to=None)

    def epoch() -> Iterator[Matrix]:
        for batch in loader:
            assert len(batch["obs"].columns) == len(job.setting.labels)
            yield Matrix.of_csr(batch["X"])

    return epoch


def open_gpu(library: str | None, dense: bool = False) -> Callable[[Job], Epoch]:
    """Open on a GPU: batches of cupyx, or of torch, made dense as it recommends where they shall be."""

    def open_it(job: Job) -> Epoch:
        loader = _opened(job, preload_to_gpu=job.setting.device != "cpu", to=library)

        def for_training(batch: Any) -> tuple[Any, Any]:
            import torch

            codes = batch["obs"]["cell_type"].cat.codes.to_numpy(np.int64)
            return batch["X"].to_dense(), torch.from_numpy(codes).to(batch["X"].device, non_blocking=True)

        def epoch() -> Iterator[Matrix]:
            for batch in loader:
                x = batch["X"]
                if job.train:
                    yield Matrix(None, None, x.shape[0], partial(for_training, batch))
                elif dense:
                    yield Matrix(_shared(x.to_dense()), None, x.shape[0])
                elif library == "torch":
                    yield Matrix(_shared(x.values()), _shared(x.col_indices()), x.shape[0])
                else:
                    yield Matrix.of_csr(x)

        return epoch

    return open_it


def _shared(tensor: Any) -> Any:
    """Give a tensor as an array on the same memory."""
    if tensor.device.type == "cpu":
        return tensor.numpy()
    import cupy

    return cupy.asarray(tensor)


def groups_of_url(url: str, fused: bool) -> list[Any]:
    """Open the stores of a collection on a web server through obstore and zarr, with one of zarr's pipelines."""
    import urllib.error
    import urllib.request

    import zarr
    from obstore.store import HTTPStore

    name = "FusedCodecPipeline" if fused else "BatchedCodecPipeline"
    zarr.config.set({"codec_pipeline.path": f"zarr.core.codec_pipeline.{name}", "async.concurrency": 64})
    store = zarr.storage.ObjectStore(HTTPStore(url, client_options={"allow_http": True}), read_only=True)
    groups: list[Any] = []
    while True:
        # A plain web server lists nothing.
        try:
            urllib.request.urlopen(f"{url}/dataset_{len(groups)}/zarr.json").close()
        except urllib.error.HTTPError:
            return groups
        groups.append(zarr.open_group(store, path=f"dataset_{len(groups)}", mode="r"))


def open_remote(fused: bool) -> Callable[[Job], Epoch]:
    """Open on zarr's ObjectStore, which zarrs does not read."""

    def open_it(job: Job) -> Epoch:
        import annbatch

        adatas = [_read_group(group, job) for group in groups_of_url(job.store, fused)]
        loader = annbatch.Loader(shuffle=True, **job.setting.reading).add_adatas(adatas)

        def epoch() -> Iterator[Matrix]:
            for batch in loader:
                yield Matrix.of_csr(batch["X"])

        return epoch

    return open_it


def write_peer(inputs: list[str], store: str) -> None:
    """Write with the peer's defaults; only where its memory would not suffice, with a smaller ``dataset_size``."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    # It held about four times what it was given at once.
    fits = 5 * sum(Path(path).stat().st_size for path in inputs) < memory
    write_sized(inputs, store, **({} if fits else {"dataset_size": f"{memory // 16 >> 20}MB"}))


def write_sized(inputs: list[str], store: str, **options: Any) -> None:
    """Write with the options that are given, such as ``dataset_size="1GB"``."""
    import annbatch

    _use_zarrs()
    annbatch.DatasetCollection(store).add_adatas(inputs, **options)
