"""How does each contender put batches on a GPU, and how fast could anybody?

Importing this module adds its contenders to `registry.CONTENDERS`:

1. ``ours …``: this project, decoding on the CPU from the store that it writes by default, or on the GPU from one whose
   codec is zstd.
2. ``peer …``: scverse annbatch 0.3.1 as its documentation says: ``preload_to_gpu=True``, its zarrs pipeline.
3. ``limit …``: what the machine can do at best (`limits`); they hand nothing over.

Setting `Setting.device` to ``"cpu"`` tries the same code where there is no GPU; its figures mean nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from harness.contenders.registry import CONTENDERS, Contender, Epoch, Job, Matrix
from harness.environments import Environment, Unavailable


def cupy_package() -> str:
    """Give the name under which CuPy is installed here; other environments get the same."""
    for name in ("cupy-cuda13x", "cupy-cuda12x"):
        try:
            version(name)
        except PackageNotFoundError:
            continue
        return name
    return "cupy-cuda13x"


def _loader(job: Job, decode: str) -> Any:
    """Open this project's loader on the setting's device."""
    import annbatch

    setting = job.setting
    options = {} if setting.device == "cpu" else {"device": setting.device, "decode": decode}
    loader = annbatch.Loader(
        batch_size=setting.batch_size,
        chunk_size=setting.chunk_size,
        preload_nchunks=setting.preload_nchunks,
        **options,
    ).use_collection(job.store, labels=setting.labels)
    if setting.device != "cpu" and loader.decode != decode:
        raise Unavailable(f"chunks must be decoded by the {decode}, got {loader.decode}")
    return loader


def _ours(decode: str, layout: str) -> Callable[[Job], Epoch]:
    """Open with this project: through its CuPy adapter, or its torch adapter to train."""

    def open_ours(job: Job) -> Epoch:
        loader = _loader(job, decode)
        if job.train:
            return _ours_for_training(loader, job, layout)
        if job.setting.device == "cpu":
            from annbatch import Emit

            emit = Emit(dtype=np.dtype(np.float32), layout=layout)
            batches: Callable[[], Any] = partial(loader.batches, emit)
        else:
            from annbatch_cupy import CupyLoader

            adapter = CupyLoader(loader, layout=layout)
            batches = partial(iter, adapter)

        def epoch() -> Iterator[Matrix]:
            for batch in batches():
                data = batch.data
                assert all(len(batch.codes[name]) == data.shape[0] for name in job.setting.labels)
                if layout == "dense":
                    yield Matrix(data, None, data.shape[0])
                else:
                    yield Matrix(data.data, data.indices, data.shape[0])

        return epoch

    return open_ours


def _ours_for_training(loader: Any, job: Job, layout: str) -> Epoch:
    from annbatch_torch import TorchLoader, csr_parts, densify

    adapter = TorchLoader(loader, layout=layout)

    def for_training(batch: Any) -> tuple[Any, Any]:
        data = batch.data
        return densify(*csr_parts(data), data.shape[1]) if layout == "csr" else data, batch.codes["cell_type"]

    def epoch() -> Iterator[Matrix]:
        for batch in adapter:
            yield Matrix(None, None, batch.data.shape[0], partial(for_training, batch))

    return epoch


def _peer(library: str | None, dense: bool = False) -> Callable[[Job], Epoch]:
    """Open with scverse annbatch: batches of cupyx, or of torch, made dense as it recommends where they shall be."""

    def open_peer(job: Job) -> Epoch:
        import anndata as ad
        import zarr

        import annbatch

        if version("annbatch") != "0.3.1":
            raise Unavailable(f"the peer must be annbatch 0.3.1, found {version('annbatch')}")
        zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"})
        setting, on_gpu = job.setting, job.setting.device != "cpu"

        def load(group: Any) -> ad.AnnData:
            return ad.AnnData(X=ad.io.sparse_dataset(group["X"]), obs=ad.io.read_elem(group["obs"])[setting.labels])

        with ad.settings.override(remove_unused_categories=False):
            loader = annbatch.Loader(
                batch_size=setting.batch_size,
                chunk_size=setting.chunk_size,
                preload_nchunks=setting.preload_nchunks,
                shuffle=True,
                preload_to_gpu=on_gpu,
                to=library,
            ).use_collection(annbatch.DatasetCollection(job.store, mode="r"), load_adata=load)

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
                    yield Matrix(x.data, x.indices, x.shape[0])

        return epoch

    return open_peer


def _shared(tensor: Any) -> Any:
    """Give a tensor as an array on the same memory."""
    if tensor.device.type == "cpu":
        return tensor.numpy()
    import cupy

    return cupy.asarray(tensor)


def _limit(stage: str) -> Callable[[Job], Epoch]:
    """Open with a function of `limits`, which this project's environment alone can import."""

    def open_limit(job: Job) -> Epoch:
        from harness.contenders import limits

        return limits.STAGES[stage](job)

    return open_limit


PEER_GPU = Environment("peer-gpu", ("annbatch==0.3.1", f"{cupy_package()}[ctk]", "torch>=2.6", "zarrs>=0.2.3"))

CONTENDERS |= {
    "gpu-cpu-csr": Contender("ours cpu-decode csr", _ours("cpu", "csr"), "ours"),
    "gpu-cpu-csr-delta": Contender("ours cpu-decode csr, codec delta", _ours("cpu", "csr"), "ours-delta"),
    "gpu-gpu-csr": Contender("ours gpu-decode csr", _ours("gpu", "csr"), "ours-zstd"),
    "gpu-gpu-dense": Contender("ours gpu-decode dense", _ours("gpu", "dense"), "ours-zstd"),
    "gpu-peer-torch": Contender("peer torch", _peer("torch"), "peer", PEER_GPU, writes=True),
    "gpu-peer-cupy": Contender("peer cupy", _peer(None), "peer", PEER_GPU, writes=True),
    "gpu-peer-torch-dense": Contender("peer torch dense", _peer("torch", dense=True), "peer", PEER_GPU, writes=True),
    **{
        f"limit-{stage}": Contender(f"limit: {what}", _limit(stage), "ours-zstd", needs_touch=False)
        for stage, what in (
            ("read", "page cache, zstd"),
            ("copy", "copy, as decoded"),
            ("copy-zstd", "copy, zstd"),
            ("nvcomp", "nvCOMP alone"),
            ("kvikio", "KvikIO into the GPU, zstd"),
        )
    },
}
GPU_CONTENDERS = tuple(name for name in CONTENDERS if name.startswith("gpu-"))
LIMITS = ("limit-read", "limit-copy", "limit-copy-zstd", "limit-nvcomp", "limit-kvikio")
