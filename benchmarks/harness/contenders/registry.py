"""Who can take part, under which name, and who writes which store?"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib.metadata import PackageNotFoundError, version

from harness.contenders import others, ours, peer, per_cell
from harness.environments import Environment
from harness.jobs import Contender, Epoch, Job


def cupy_package() -> str:
    """Give the name under which CuPy is installed here; other environments get the same."""
    for name in ("cupy-cuda13x", "cupy-cuda12x"):
        try:
            version(name)
        except PackageNotFoundError:
            continue
        return name
    return "cupy-cuda13x"


def _limit(stage: str) -> Callable[[Job], Epoch]:
    """Open with a function of `limits`, which this project's environment alone can import."""

    def open_limit(job: Job) -> Epoch:
        from harness.contenders import limits

        return limits.STAGES[stage](job)

    return open_limit


CODECS = ("blosc", "packed", "zstd")
"""Codecs of this project's collections; the first one is the default."""


def of_codec(codec: str) -> str:
    """Give the name of this project's contender that reads a collection of a codec."""
    return "direct" if codec == CODECS[0] else f"direct-{codec}"


WRITERS: dict[str, Callable[[list[str], str], None]] = {
    "ours": ours.write_ours,
    **{f"ours-{codec}": partial(ours.write_ours, codec=codec) for codec in CODECS[1:]},
    "peer": peer.write_peer,
    "peer-1GB": partial(peer.write_sized, dataset_size="1GB"),
    "cellstream": per_cell.write_cellstream,
    "bixverse": per_cell.write_bixverse,
}
"""Whose store, or how it is written -> the function that writes it."""

PEER = Environment("peer", ("annbatch==0.3.1", "zarrs>=0.2.3"))
PEER_REMOTE = Environment("peer-remote", ("annbatch==0.3.1", "obstore==0.12.1", "zarrs>=0.2.3", "zarr==3.4.2"))
PEER_GPU = Environment("peer-gpu", ("annbatch==0.3.1", f"{cupy_package()}[ctk]", "torch>=2.6", "zarrs>=0.2.3"))
TORCH = Environment("torch", ("scDataset==0.3.0", "anndata", "torch"))
LAMINDB = Environment("lamindb", ("lamindb", "torch"))
CELLSTREAM = Environment("cellstream", ("cellstream==0.11.0",), minimum=(3, 11))
BIXVERSE = Environment("bixverse", ("bixverse[sparse]==0.2.1", "anndata"), minimum=(3, 11))

CONTENDERS = {
    "direct": Contender("annbatch-dlpack", ours.open_ours("direct"), "ours", writes=True),
    **{
        of_codec(codec): Contender(
            f"annbatch-dlpack, codec {codec}", ours.open_ours("direct"), f"ours-{codec}", writes=True
        )
        for codec in CODECS[1:]
    },
    "h5ad": Contender("annbatch-dlpack, .h5ad in place", ours.open_ours("direct")),
    "cached": Contender("annbatch-dlpack, cached on disk", ours.open_ours("cached"), "ours"),
    "zarr": Contender("annbatch-dlpack, zarr path", ours.open_ours("zarr"), "ours"),
    "torch": Contender("TorchLoader alone", ours.open_torch(), "ours"),
    "torch-0": Contender("in a DataLoader without workers", ours.open_torch(0), "ours"),
    **{
        f"torch-{n}-{method}": Contender(
            f"in a DataLoader, {n} workers by {method}", ours.open_torch(n, method), "ours"
        )
        for method in ("fork", "forkserver", "spawn")
        for n in (2, 4)
    },
    "direct-peer-store": Contender("annbatch-dlpack on scverse annbatch's store", ours.open_ours("direct"), "peer"),
    "peer": Contender("scverse annbatch 0.3.1", peer.open_peer, "peer", PEER, writes=True),
    "peer-remote": Contender("scverse annbatch 0.3.1, zarr 3.4", peer.open_remote(False), "peer", PEER_REMOTE),
    "peer-remote-fused": Contender(
        "scverse annbatch 0.3.1, zarr 3.4 fused", peer.open_remote(True), "peer", PEER_REMOTE
    ),
    "objectstore": Contender("zarr ObjectStore, blocks alone", others.open_objectstore(False), "peer"),
    "objectstore-fused": Contender(
        "zarr 3.4 ObjectStore fused, blocks alone", others.open_objectstore(True), "peer", PEER_REMOTE
    ),
    "cellstream": Contender("cellstream 0.11", per_cell.open_cellstream, "cellstream", CELLSTREAM, writes=True),
    "bixverse": Contender("bixverse 0.2.1", per_cell.open_bixverse, "bixverse", BIXVERSE, writes=True),
    "scdataset": Contender("scDataset 0.3.0", others.open_scdataset, None, TORCH),
    "mapped": Contender("MappedCollection", others.open_mapped_collection, None, LAMINDB),
    "annloader": Contender("AnnLoader", others.open_annloader, None, TORCH),
    "limit": Contender("decoding alone", _limit("decode"), "ours", needs_touch=False),
    "limit-peer-store": Contender(
        "decoding alone, scverse annbatch's store", _limit("decode"), "peer", needs_touch=False
    ),
    "read-h5ad": Contender("read_h5ad, uncompressed", others.open_read_h5ad, None),
    "read-zarr": Contender("read_zarr with zarrs", others.open_read_zarr, "ours"),
    "gpu-cpu-csr": Contender("ours cpu-decode csr", ours.open_gpu("cpu", "csr"), "ours"),
    "gpu-cpu-csr-packed": Contender("ours cpu-decode csr, codec packed", ours.open_gpu("cpu", "csr"), "ours-packed"),
    "gpu-gpu-csr-packed": Contender("ours gpu-decode csr, codec packed", ours.open_gpu("gpu", "csr"), "ours-packed"),
    "gpu-gpu-dense-packed": Contender(
        "ours gpu-decode dense, codec packed", ours.open_gpu("gpu", "dense"), "ours-packed"
    ),
    "gpu-gpu-csr": Contender("ours gpu-decode csr", ours.open_gpu("gpu", "csr"), "ours-zstd"),
    "gpu-gpu-dense": Contender("ours gpu-decode dense", ours.open_gpu("gpu", "dense"), "ours-zstd"),
    "gpu-peer-torch": Contender("peer torch", peer.open_gpu("torch"), "peer", PEER_GPU, writes=True),
    "gpu-peer-cupy": Contender("peer cupy", peer.open_gpu(None), "peer", PEER_GPU, writes=True),
    "gpu-peer-torch-dense": Contender(
        "peer torch dense", peer.open_gpu("torch", dense=True), "peer", PEER_GPU, writes=True
    ),
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
"""Name on the command line -> contender."""
GPU_CONTENDERS = tuple(name for name in CONTENDERS if name.startswith("gpu-"))
CPU_CONTENDERS = ("direct", "direct-packed", "peer", "limit")
"""Who is timed beside them on the CPU."""
GPU_LIMITS = ("limit-read", "limit-copy", "limit-copy-zstd", "limit-nvcomp", "limit-kvikio")
