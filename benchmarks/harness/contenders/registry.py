"""How does each contender open its store and hand over one epoch of batches?

1. A `Contender` names its environment, its store and the functions below; `CONTENDERS` is the list of them all.
2. ``write_*`` make a contender's own store from the input with its own defaults, where it has one.
3. ``open_*`` open it once and give a function; each call of that function is one epoch of `Touched` batches.

Every contender is used as its own documentation tells, with what is fastest where it offers a choice. This module is
imported in environments that hold one contender each, so it imports nothing but NumPy at its top.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from harness.environments import Environment, Unavailable

COLUMNS = (
    *("cell_type", "plate", "donor", "sample", "condition", "tissue", "sex", "phase"),
    *("drug_0", "drug_1", "drug_2", "drug_3", "is_doublet", "age"),
    *("mito_share", "ribo_share", "doublet_score", "s_score", "n_counts", "n_genes"),
)
"""The obs columns of the generated input, in the order in which settings take them."""


@dataclass(frozen=True, slots=True)
class Setting:
    """How a loader is asked to read."""

    name: str
    """How tables call it."""
    batch_size: int = 4096
    """Rows a batch."""
    chunk_size: int = 512
    """Rows read contiguously."""
    preload_nchunks: int = 32
    """Blocks of ``chunk_size`` rows that are shuffled together."""
    columns: int = 1
    """How many obs columns come with a batch."""
    frame: bool = False
    """Whether the obs columns are asked for as a DataFrame where they come as codes otherwise."""
    threads: int | None = None
    """Threads of the loader; None leaves its default."""
    rank: int = 0
    """Which of several processes that share the rows it is."""
    ranks: int = 1
    """How many of them there are."""
    device: str = "cpu"
    """Where batches go, for contenders that know devices."""

    @property
    def window(self) -> int:
        """Rows that a loader holds at once."""
        return max(self.chunk_size * self.preload_nchunks, self.batch_size)

    @property
    def labels(self) -> list[str]:
        """Names of the obs columns."""
        return list(COLUMNS[: self.columns])


@dataclass(frozen=True, slots=True)
class Job:
    """One contender with one setting on one input: what a worker process is started with."""

    contender: str
    """Key of `CONTENDERS`."""
    setting: Setting
    """How it reads."""
    inputs: tuple[str, ...]
    """The generated ``.h5ad`` files."""
    store: str
    """Path of the store that it reads, where it has one."""
    label: str = ""
    """How tables call the row; empty for the contender's title."""
    train: str = ""
    """Model of `training` that is trained on the batches; empty if they are summed up."""


@dataclass(frozen=True, slots=True)
class Matrix:
    """What a batch holds, as a worker touches it."""

    values: Any
    """Stored values, or the whole dense matrix; of NumPy or CuPy."""
    columns: Any | None
    """Column number of each value; None where ``values`` is dense."""
    n_rows: int
    """Number of cells."""
    for_training: Callable[[], tuple[Any, Any]] | None = None
    """Gives a dense (n_rows, n_vars) tensor and (n_rows,) int64 classes, where the contender can be trained from."""


Epoch = Callable[[], Iterator[Matrix]]


@dataclass(frozen=True, slots=True)
class Contender:
    """A way of reading mini-batches."""

    title: str
    """How tables call it."""
    open: Callable[[Job], Epoch]
    """Opens the store and gives the function that runs an epoch."""
    store: str | None = None
    """Whose store it reads: ``ours``, ``peer``, or None for the ``.h5ad`` files themselves."""
    environment: Environment | None = None
    """Where it runs; None for the environment of this project."""
    needs_touch: bool = field(default=True)
    """False for what hands nothing over: its bytes are counted, not its sums."""
    writes: bool = False
    """Whether it writes its store; it then does so for all who read the same one."""


def _ours(path: str) -> Callable[[Job], Epoch]:
    """Open with this project's Loader; ``path`` is ``direct``, ``zarr`` or, with an empty cache, ``cached``."""

    def open_ours(job: Job) -> Epoch:
        import annbatch

        _take_path(path)
        options: dict[str, Any] = {} if job.setting.threads is None else {"threads": job.setting.threads}
        if path == "cached":
            folder = Path(job.inputs[0]).parent / "cache"
            shutil.rmtree(folder, ignore_errors=True)
            options |= {"cache_dir": folder, "cache_limit": "1TB"}
        loader = annbatch.Loader(
            batch_size=job.setting.batch_size,
            chunk_size=job.setting.chunk_size,
            preload_nchunks=job.setting.preload_nchunks,
            partition=annbatch.Partition(job.setting.rank, job.setting.ranks),
            **options,
        ).use_collection(job.store, labels=job.setting.labels)

        def epoch() -> Iterator[Matrix]:
            for batch in loader:
                # As a training loop does: the codes of every label, the DataFrame only where the setting asks for it.
                assert all(len(batch.codes[name]) == batch.data.shape[0] for name in job.setting.labels)
                if job.setting.frame:
                    assert len(batch.labels) == batch.data.shape[0]
                yield Matrix(batch.data.data, batch.data.indices, batch.data.shape[0])

        return epoch

    return open_ours


def _torch(n_workers: int | None = None, method: str | None = None) -> Callable[[Job], Epoch]:
    """Open with this project's adapter for torch, as it is or inside torch's DataLoader."""

    def open_torch(job: Job) -> Epoch:
        from torch.utils.data import DataLoader

        import annbatch
        from annbatch_torch import TorchLoader

        batches: Any = TorchLoader(
            annbatch.Loader(
                batch_size=job.setting.batch_size,
                chunk_size=job.setting.chunk_size,
                preload_nchunks=job.setting.preload_nchunks,
            ).use_collection(job.store, labels=job.setting.labels)
        )
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

    return open_torch


def _take_path(path: str) -> None:
    """Make this process take the direct path or zarr's API: the one place that knows the switch."""
    from annbatch.stores import array_opening

    array_opening.DIRECT = path != "zarr"


def open_peer(job: Job) -> Epoch:
    """Open with scverse annbatch 0.3.1 as its README shows: zarrs pipeline, only the wanted obs columns."""
    from importlib.metadata import version

    import anndata as ad
    import zarr

    import annbatch

    if version("annbatch") != "0.3.1":
        raise Unavailable(f"the peer must be annbatch 0.3.1, found {version('annbatch')}")
    zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"})
    if job.setting.threads is not None:
        zarr.config.set({"threading.max_workers": job.setting.threads})

    def load(group: Any) -> ad.AnnData:
        return ad.AnnData(X=ad.io.sparse_dataset(group["X"]), obs=ad.io.read_elem(group["obs"])[job.setting.labels])

    with ad.settings.override(remove_unused_categories=False):
        loader = annbatch.Loader(
            batch_size=job.setting.batch_size,
            chunk_size=job.setting.chunk_size,
            preload_nchunks=job.setting.preload_nchunks,
            shuffle=True,
        ).use_collection(annbatch.DatasetCollection(job.store, mode="r"), load_adata=load)

    def epoch() -> Iterator[Matrix]:
        for batch in loader:
            x = batch["X"]
            assert len(batch["obs"].columns) == len(job.setting.labels)
            yield Matrix(x.data, x.indices, x.shape[0])

    return epoch


def _remote_groups(url: str, fused: bool) -> list[Any]:
    """Open the stores of a collection that scverse annbatch wrote, through obstore and zarr."""
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


def _peer_remote(fused: bool) -> Callable[[Job], Epoch]:
    """Open with scverse annbatch on zarr's ObjectStore, which zarrs does not read, with one of zarr's pipelines."""

    def open_it(job: Job) -> Epoch:
        import anndata as ad

        import annbatch

        loader = annbatch.Loader(
            batch_size=job.setting.batch_size,
            chunk_size=job.setting.chunk_size,
            preload_nchunks=job.setting.preload_nchunks,
            shuffle=True,
        ).add_adatas(
            [
                ad.AnnData(X=ad.io.sparse_dataset(group["X"]), obs=ad.io.read_elem(group["obs"])[job.setting.labels])
                for group in _remote_groups(job.store, fused)
            ]
        )

        def epoch() -> Iterator[Matrix]:
            for batch in loader:
                x = batch["X"]
                yield Matrix(x.data, x.indices, x.shape[0])

        return epoch

    return open_it


def _objectstore(fused: bool) -> Callable[[Job], Epoch]:
    """Read the blocks of a window through zarr's ObjectStore, all at once, and put them nowhere."""

    def open_it(job: Job) -> Epoch:
        import asyncio

        from zarr.core.sync import sync

        parts = []
        for group in _remote_groups(job.store, fused):
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
            yield Matrix(x.data, x.indices, x.shape[0])

    return epoch


def open_mapped_collection(job: Job) -> Epoch:
    """Open with lamindb's MappedCollection: random rows, dense, a worker process for each core."""
    import os

    from lamindb.core import MappedCollection
    from torch.utils.data import DataLoader

    mapped = MappedCollection(list(job.inputs), obs_keys=job.setting.labels, parallel=True)
    workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    loader = DataLoader(
        mapped,
        batch_size=job.setting.batch_size,
        shuffle=True,
        num_workers=workers,
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


def open_read_h5ad(job: Job) -> Epoch:
    """Read every whole ``.h5ad`` file into memory, one after the other."""
    import anndata as ad

    def epoch() -> Iterator[Matrix]:
        for path in job.inputs:
            x = ad.read_h5ad(path).X
            yield Matrix(x.data, x.indices, x.shape[0])

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
            yield Matrix(x.data, x.indices, x.shape[0])

    return epoch


def open_limit(job: Job) -> Epoch:
    """Read and decode every inner chunk of X once, in storage order, and put it nowhere."""
    from harness.contenders.decoding import decode_epoch

    return decode_epoch(job.store, job.setting.threads)


def write_ours(inputs: list[str], store: str, **options: Any) -> None:
    """Write with this project's defaults, or with options that differ from them."""
    import annbatch

    annbatch.create_anndata_collection(adata_paths=inputs, output_path=store, shuffle=True, seed=0, **options)


def write_peer(inputs: list[str], store: str) -> None:
    """Write with the peer's defaults; only where its memory would not suffice, with a smaller ``dataset_size``."""
    import os

    import zarr

    import annbatch

    zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"})
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    # It held about four times what it was given at once.
    fits = 5 * sum(Path(path).stat().st_size for path in inputs) < memory
    annbatch.DatasetCollection(store).add_adatas(
        inputs, **({} if fits else {"dataset_size": f"{memory // 16 >> 20}MB"})
    )


def write_peer_1gb(inputs: list[str], store: str) -> None:
    """Write with the peer at ``dataset_size="1GB"``."""
    import zarr

    import annbatch

    zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"})
    annbatch.DatasetCollection(store).add_adatas(inputs, dataset_size="1GB")


WRITERS: dict[str, Callable[[list[str], str], None]] = {
    "ours": write_ours,
    "ours-delta": partial(write_ours, codec="delta"),
    "ours-zstd": partial(write_ours, codec="zstd"),
    "peer": write_peer,
    "peer-1GB": write_peer_1gb,
}
"""Whose store, or how it is written -> the function that writes it."""

PEER = Environment("peer", ("annbatch==0.3.1", "zarrs>=0.2.3"))
PEER_REMOTE = Environment("peer-remote", ("annbatch==0.3.1", "obstore==0.12.1", "zarrs>=0.2.3", "zarr==3.4.2"))
TORCH = Environment("torch", ("scDataset==0.3.0", "anndata", "torch"))
LAMINDB = Environment("lamindb", ("lamindb", "torch"))

CONTENDERS = {
    "direct": Contender("annbatch-dlpack", _ours("direct"), "ours", writes=True),
    "direct-delta": Contender("annbatch-dlpack, codec delta", _ours("direct"), "ours-delta", writes=True),
    "direct-zstd": Contender("annbatch-dlpack, codec zstd", _ours("direct"), "ours-zstd", writes=True),
    "cached": Contender("annbatch-dlpack, cached on disk", _ours("cached"), "ours"),
    "zarr": Contender("annbatch-dlpack, zarr path", _ours("zarr"), "ours"),
    "torch": Contender("TorchLoader alone", _torch(), "ours"),
    "torch-0": Contender("in a DataLoader without workers", _torch(0), "ours"),
    **{
        f"torch-{n}-{method}": Contender(f"in a DataLoader, {n} workers by {method}", _torch(n, method), "ours")
        for method in ("fork", "forkserver", "spawn")
        for n in (2, 4)
    },
    "direct-peer-store": Contender("annbatch-dlpack on scverse annbatch's store", _ours("direct"), "peer"),
    "peer": Contender("scverse annbatch 0.3.1", open_peer, "peer", PEER, writes=True),
    "peer-remote": Contender("scverse annbatch 0.3.1, zarr 3.4", _peer_remote(False), "peer", PEER_REMOTE),
    "peer-remote-fused": Contender("scverse annbatch 0.3.1, zarr 3.4 fused", _peer_remote(True), "peer", PEER_REMOTE),
    "objectstore": Contender("zarr ObjectStore, blocks alone", _objectstore(False), "peer"),
    "objectstore-fused": Contender("zarr 3.4 ObjectStore fused, blocks alone", _objectstore(True), "peer", PEER_REMOTE),
    "scdataset": Contender("scDataset 0.3.0", open_scdataset, None, TORCH),
    "mapped": Contender("MappedCollection", open_mapped_collection, None, LAMINDB),
    "annloader": Contender("AnnLoader", open_annloader, None, TORCH),
    "limit": Contender("decoding alone", open_limit, "ours", needs_touch=False),
    "limit-peer-store": Contender("decoding alone, scverse annbatch's store", open_limit, "peer", needs_touch=False),
    "read-h5ad": Contender("read_h5ad, uncompressed", open_read_h5ad, None),
    "read-zarr": Contender("read_zarr with zarrs", open_read_zarr, "ours"),
}
"""Name on the command line -> contender."""
