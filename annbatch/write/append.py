"""How do cells join a collection that exists?

`append_to_collection` takes the collection's genes, elements and codec, and builds stores for the new cells like those
that are there.
"""

from __future__ import annotations

import operator
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from annbatch.errors import InputError
from annbatch.stores.collection import Collection
from annbatch.write.array_layout import Codec, kept_layout
from annbatch.write.build import build
from annbatch.write.build_modalities import build_modalities
from annbatch.write.inputs.append_target import AppendTarget
from annbatch.write.inputs.main_matrix import MainMatrix, checked_choice
from annbatch.write.inputs.modal_inputs import ModalInputs, as_modal_inputs
from annbatch.write.inputs.opening import Input, Inputs, Load, as_origins
from annbatch.write.inputs.text_file import Repeats
from annbatch.write.options import ModalOptions, Options, Resources, local_directory

if TYPE_CHECKING:
    from distributed import Client


def append_to_collection(
    adata_paths: Inputs | Sequence[Mapping[str, Input]] | ModalInputs,
    collection_path: str | os.PathLike[str],
    *,
    shuffle: bool = True,
    seed: int = 0,
    var_key: str | None = None,
    repeated_genes: Repeats = "refuse",
    x: MainMatrix = "X",
    layers: Sequence[str] | None = None,
    obsm: Sequence[str] | None = None,
    obs_columns: Sequence[str] | None = None,
    obs_as_strings: Sequence[str] = (),
    obs_names: Repeats = "unique",
    strict: bool = False,
    load: Load | None = None,
    rows_per_store: int = 2**20,
    chunk_elements: int | None = None,
    shard_elements: int = 2**25,
    codec: Codec | None = None,
    narrow: bool = True,
    allow_nonfinite: bool = False,
    memory_limit: str | int = "1GB",
    threads: int | None = None,
    client: Client | None = None,
    progress: bool = True,
) -> Collection:
    """Add the cells of AnnData files to a collection, as new stores, shuffled among themselves.

    The existing stores do not change. The manifest is replaced in one step when the new stores are complete, so that
    programs that have the collection open go on reading it as it was.

    The new cells get the collection's genes, elements and obs columns. Genes and obs columns that the collection lacks
    are left out, with a warning, and counted in ``inputs``. New categories are appended to the known ones. A collection
    that was grouped by a column is no longer grouped.

    If an append is killed or interrupted, the same call continues it.

    Parameters
    ----------
    adata_paths
        Inputs, as for `create_anndata_collection`. Since every store holds the same elements, all inputs must have the
        collection's layers and obsm arrays, the latter with the same widths, and obs columns of the same kinds. Use
        `reshuffle_collection` to write a collection with fewer elements. A collection with modalities takes inputs with
        modalities, and chooses their cells as it chose the first ones.
    collection_path
        The collection's directory.
    layers, obsm
        Those of the collection; naming them silences the warning about others that the inputs have. None means the
        same.
    obs_columns
        The collection's obs columns that get values from the inputs; others are missing in the new cells. None means
        all, with a warning that names obs columns that the collection lacks.
    shuffle, seed, var_key, repeated_genes, x, obs_as_strings, obs_names, strict, load, rows_per_store
        As for `create_anndata_collection`. ``obs_names`` also applies to names that the collection already has.
    shard_elements, narrow, allow_nonfinite
        As for `create_anndata_collection`.
    chunk_elements, codec
        As for `create_anndata_collection`. None means that of the collection's last store. If the codec changes, chunks
        get the default size of the new codec, unless it is given. A collection written with the former codec
        ``"delta"`` continues with ``"packed"``, with a warning.
    memory_limit, threads, client, progress
        As for `create_anndata_collection`.

    Returns
    -------
    Collection
        The collection with its new stores.

    Raises
    ------
    InputError
        If an argument or an input breaks a rule, or there is no collection of this program.
    OutputError
        As for `create_anndata_collection`; the collection is then as it was before.

    Examples
    --------
    >>> from annbatch import append_to_collection
    >>> collection = append_to_collection(["c.h5ad"], "collection", progress=False)
    >>> collection.n_obs, len(collection.stores)
    (160, 2)
    """
    output = local_directory("collection_path", collection_path)
    collection = AppendTarget.check(output)
    codec, chunk_elements = kept_layout(collection, codec, chunk_elements)
    inputs = as_modal_inputs(adata_paths, list(collection.modalities) or None, load)
    if inputs is not None and not collection.modalities:
        raise InputError(f"{output}: has no modalities, got the input {inputs[0].name} with {list(inputs[0].parts)}")
    options = Options(
        shuffle=shuffle,
        seed=operator.index(seed),
        join="outer",
        merge=None,
        var_names=None,
        var_key=var_key,
        repeated_genes=repeated_genes,
        x=checked_choice(x),
        layers=layers,
        obsm=obsm,
        obs_columns=obs_columns,
        obs_as_strings=obs_as_strings,
        dense=(),
        groupby=(),
        obs_names=obs_names,
        strict=strict,
        rows_per_store=rows_per_store,
        chunk_elements=chunk_elements,
        shard_elements=shard_elements,
        codec=codec,
        narrow=narrow,
        allow_nonfinite=allow_nonfinite,
    )
    resources = Resources(memory_limit=memory_limit, threads=threads, client=client, progress=progress)
    if inputs is not None:
        is_masked = any(one.masked for one in collection.modalities.values())
        modal = ModalOptions(join_obs="outer" if is_masked else "inner", var_names={})
        return build_modalities(inputs, output, options, modal, resources, append=True)
    return build(as_origins(adata_paths, load), output, options, resources, append=True)
