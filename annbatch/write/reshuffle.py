"""How is a collection written anew, in another order or with fewer elements?

`reshuffle_collection` passes the stores of a collection to `annbatch.write.create`, as inputs whose genes, elements and
codec it knows.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from annbatch.stores.collection import Collection
from annbatch.write.array_layout import Codec, kept_layout
from annbatch.write.create import create_anndata_collection

if TYPE_CHECKING:
    from distributed import Client


def reshuffle_collection(
    source_path: str | os.PathLike[str],
    output_path: str | os.PathLike[str],
    *,
    seed: int = 0,
    layers: Sequence[str] | None = None,
    obsm: Sequence[str] | None = None,
    obs_columns: Sequence[str] | None = None,
    obs_as_strings: Sequence[str] = (),
    groupby: str | Sequence[str] | None = None,
    strict: bool = False,
    rows_per_store: int = 2**20,
    chunk_elements: int | None = None,
    shard_elements: int = 2**25,
    codec: Codec | None = None,
    memory_limit: str | int = "1GB",
    threads: int | None = None,
    client: Client | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> Collection:
    """Write all cells of a collection anew, in one uniformly random order, for example after cells were appended.

    The new collection may have fewer elements: ``obsm=[]``, for example, leaves out all obsm arrays.

    Parameters
    ----------
    source_path
        A collection of this program, or one that scverse annbatch wrote.
    output_path
        As for `create_anndata_collection`. With ``overwrite`` it may be the collection itself.
    seed, layers, obsm, obs_columns, obs_as_strings, groupby, strict, rows_per_store, shard_elements
        As for `create_anndata_collection`.
    chunk_elements, codec
        As for `create_anndata_collection`. None means that of the collection, if it is one of this program. If the
        codec changes, chunks get the default size of the new codec, unless it is given. The former codec ``"delta"``
        becomes ``"packed"``, with a warning.
    memory_limit, threads, client, overwrite, progress
        As for `create_anndata_collection`.

    Returns
    -------
    Collection
        The new collection.

    Raises
    ------
    StoreError
        If there is no complete collection at ``source_path``.
    InputError, OutputExistsError, OutputError
        As for `create_anndata_collection`.

    Examples
    --------
    >>> from annbatch import reshuffle_collection
    >>> collection = reshuffle_collection(
    ...     "collection", "reshuffled", seed=1, progress=False
    ... )
    >>> collection.seed
    1
    """
    source = Collection.open(source_path)
    codec, chunk_elements = kept_layout(source, codec, chunk_elements)
    chosen = None if layers is None else [_layer_key(name) for name in layers]
    dense = [
        key
        for key, types in source.types.items()
        if types.indices is None and (chosen is None or key.rpartition(":")[2] == "X" or key in chosen)
    ]
    return create_anndata_collection(
        list(source.store_paths),
        output_path,
        modalities=list(source.modalities) or None,
        join_obs="outer" if any(one.masked for one in source.modalities.values()) else "inner",
        seed=seed,
        layers=layers,
        obsm=obsm,
        obs_columns=obs_columns,
        obs_as_strings=obs_as_strings,
        groupby=groupby,
        strict=strict,
        dense=dense,
        allow_nonfinite=True,
        rows_per_store=rows_per_store,
        chunk_elements=chunk_elements,
        shard_elements=shard_elements,
        codec=codec,
        memory_limit=memory_limit,
        threads=threads,
        client=client,
        overwrite=overwrite,
        progress=progress,
    )


def _layer_key(name: str) -> str:
    """Give the key of a layer, which may be one of a modality."""
    modality, colon, own = name.rpartition(":")
    return f"{modality}{colon}layers/{own}"
