"""How do the other loaders take part, and what does reading without a loader give?"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from harness.contenders.peer import groups_of_url
from harness.jobs import Epoch, Job, Matrix
from harness.machine import cores


def open_scdataset(job: Job) -> Epoch:
    """Open with scDataset: blocks of the setting's size, CSR kept sparse, no worker processes (they were slower)."""
    import anndata as ad
    from anndata.experimental import AnnCollection
    from scdataset import BlockShuffling, scDataset
    from torch.utils.data import DataLoader

    setting = job.setting
    collection = AnnCollection([ad.read_h5ad(path, backed="r") for path in job.inputs], join_obs="inner")

    def fetch(collection: Any, rows: Any) -> tuple[Any, Any]:
        view = collection[rows]
        return view.X, view.obs[setting.labels]

    dataset = scDataset(
        collection,
        BlockShuffling(block_size=setting.chunk_size),
        batch_size=setting.batch_size,
        fetch_factor=setting.window // setting.batch_size,
        fetch_callback=fetch,
        batch_callback=lambda fetched, rows: (fetched[0][rows], fetched[1].iloc[rows]),
        seed=0,
    )
    loader = DataLoader(dataset, batch_size=None)

    def epoch() -> Iterator[Matrix]:
        for x, _ in loader:
            yield Matrix.of_csr(x)

    return epoch


def open_mapped_collection(job: Job) -> Epoch:
    """Open with lamindb's MappedCollection: random rows, dense, a worker process for each core."""
    from lamindb.core import MappedCollection
    from torch.utils.data import DataLoader

    mapped = MappedCollection(list(job.inputs), obs_keys=job.setting.labels, parallel=True)
    loader = DataLoader(
        mapped,
        batch_size=job.setting.batch_size,
        shuffle=True,
        num_workers=cores(),
        prefetch_factor=1,
        worker_init_fn=mapped.torch_worker_init_fn,
    )

    def epoch() -> Iterator[Matrix]:
        for batch in loader:
            yield Matrix(batch["X"].numpy(), None, len(batch["X"]))

    return epoch


def open_annloader(job: Job) -> Epoch:
    """Open with anndata.experimental.AnnLoader on backed files: random rows, dense tensors."""
    import anndata as ad
    from anndata.experimental import AnnLoader

    adatas = [ad.read_h5ad(path, backed="r") for path in job.inputs]
    loader = AnnLoader(adatas, batch_size=job.setting.batch_size, shuffle=True)

    def epoch() -> Iterator[Matrix]:
        for batch in loader:
            x = batch.X.numpy()
            assert all(len(batch.obs[name]) == len(x) for name in job.setting.labels)
            yield Matrix(x, None, len(x))

    return epoch


def open_objectstore(fused: bool) -> Callable[[Job], Epoch]:
    """Read the blocks of a window through zarr's ObjectStore, all at once, and put them nowhere."""

    def open_it(job: Job) -> Epoch:
        import asyncio

        from zarr.core.sync import sync

        parts = []
        for group in groups_of_url(job.store, fused):
            x = group["X"]
            parts.append((x["data"].async_array, x["indices"].async_array, x["indptr"][:]))
        size, window = job.setting.chunk_size, job.setting.preload_nchunks
        blocks = [(i, first) for i, part in enumerate(parts) for first in range(0, len(part[2]) - 1, size)]

        async def read(chosen: list[tuple[int, int]]) -> list[Matrix]:
            # Both arrays of all blocks are asked for together, as many requests at a time as zarr is set to.
            slots = asyncio.Semaphore(64)

            async def one(array: Any, start: int, stop: int) -> Any:
                async with slots:
                    return await array.getitem(slice(start, stop))

            wanted, n_rows = [], []
            for i, first in chosen:
                data, indices, indptr = parts[i]
                last = min(first + size, len(indptr) - 1)
                n_rows.append(last - first)
                wanted += [one(array, int(indptr[first]), int(indptr[last])) for array in (data, indices)]
            found = await asyncio.gather(*wanted)
            return [Matrix(found[2 * i], found[2 * i + 1], n) for i, n in enumerate(n_rows)]

        def epoch() -> Iterator[Matrix]:
            order = np.random.default_rng(0).permutation(len(blocks))
            for start in range(0, len(order), window):
                yield from sync(read([blocks[i] for i in order[start : start + window]]))

        return epoch

    return open_it


def open_read_h5ad(job: Job) -> Epoch:
    """Read every whole ``.h5ad`` file into memory, one after the other."""
    import anndata as ad

    def epoch() -> Iterator[Matrix]:
        for path in job.inputs:
            x = ad.read_h5ad(path).X
            yield Matrix.of_csr(x)

    return epoch


def open_read_zarr(job: Job) -> Epoch:
    """Read every whole store of a collection into memory through zarr with the zarrs pipeline."""
    import anndata as ad
    import zarr

    zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"})
    stores = sorted(path for path in Path(job.store).iterdir() if (path / "X").is_dir())

    def epoch() -> Iterator[Matrix]:
        for path in stores:
            x = ad.read_zarr(path).X
            yield Matrix.of_csr(x)

    return epoch
