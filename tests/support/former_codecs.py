"""How are collections stored whose codec is no longer offered?

The codec ``"delta"`` put differences, ``numcodecs.delta``, in front of blosc for the column numbers of sparse matrices.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import zarr
from zarr.codecs import BloscCodec, Crc32cCodec

from annbatch import Collection
from annbatch.shards.codecs import numcodecs_are_known
from annbatch.stores.manifest import checksum


def with_differences(collection: Collection) -> Collection:
    """Rewrite a collection's column numbers in place, as the codec ``"delta"`` stored them."""
    stores = []
    for store, path in zip(collection.stores, collection.store_paths, strict=True):
        for key, types in collection.types.items():
            if types.indices is not None:
                _rewrite(path / key / "indices")
        stores.append(replace(store, files={name: checksum(path / name) for name in store.files}))
    replace(collection, stores=tuple(stores)).save(collection.directory)
    return Collection.open(collection.directory)


@numcodecs_are_known()
def _rewrite(path: Path) -> None:
    before = zarr.open_array(path, mode="r")
    values = before[:]
    after = zarr.create_array(
        path,
        shape=before.shape,
        dtype=before.dtype,
        chunks=before.chunks,
        shards=before.shards,
        filters=[{"name": "numcodecs.delta", "configuration": {"dtype": before.dtype.newbyteorder("<").str}}],
        compressors=[
            BloscCodec(cname="lz4", clevel=5, shuffle="shuffle", typesize=before.dtype.itemsize),
            Crc32cCodec(),
        ],
        fill_value=0,
        overwrite=True,
    )
    after[:] = values
