"""How do AnnData files become a shuffled collection, and how does one grow?

The public functions, their options and defaults; `annbatch.write.build` does the work.
"""

from __future__ import annotations

import operator
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from annbatch.check import expanded
from annbatch.errors import InputError, redacted
from annbatch.remote.urls import is_url
from annbatch.stores.collection import Collection
from annbatch.stores.gene_join import How
from annbatch.stores.merged_var_column import Merge
from annbatch.write.array_layout import Codec, chunk_elements_of, kept_layout
from annbatch.write.build import build
from annbatch.write.build_modalities import build_modalities
from annbatch.write.inputs.append_target import AppendTarget
from annbatch.write.inputs.cell_join import JoinObs
from annbatch.write.inputs.main_matrix import MainMatrix, checked_choice
from annbatch.write.inputs.modal_inputs import ModalInputs, as_modal_inputs
from annbatch.write.inputs.opening import Input, Inputs, Load, as_origins
from annbatch.write.inputs.text_file import Repeats
from annbatch.write.options import ModalOptions, Options, Resources

if TYPE_CHECKING:
    from distributed import Client


def create_anndata_collection(
    adata_paths: Inputs | Sequence[Mapping[str, Input]] | ModalInputs,
    output_path: str | os.PathLike[str],
    *,
    modalities: Sequence[str] | None = None,
    join_obs: JoinObs = "inner",
    shuffle: bool = True,
    seed: int = 0,
    join: How = "outer",
    merge: Merge | None = None,
    var_names: Iterable[str] | Mapping[str, Iterable[str]] | None = None,
    var_key: str | None = None,
    repeated_genes: Repeats = "refuse",
    x: MainMatrix = "X",
    layers: Sequence[str] | None = None,
    obsm: Sequence[str] | None = None,
    obs_columns: Sequence[str] | None = None,
    obs_as_strings: Sequence[str] = (),
    dense: Sequence[str] = (),
    groupby: str | Sequence[str] | None = None,
    obs_names: Repeats = "unique",
    strict: bool = False,
    load: Load | None = None,
    rows_per_store: int = 2**20,
    chunk_elements: int | None = None,
    shard_elements: int = 2**25,
    codec: Codec = "blosc",
    narrow: bool = True,
    allow_nonfinite: bool = False,
    memory_limit: str | int = "1GB",
    threads: int | None = None,
    client: Client | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> Collection:
    """Write the cells of AnnData files, shuffled, as a collection of sharded zarr stores.

    ``output_path`` becomes a directory of ``chunk_{i}.zarr``, each a complete AnnData store that `anndata.read_zarr`
    opens, and ``collection.json``. It appears all at once when everything is written, or not at all. A build that was
    killed, or interrupted with Ctrl-C, goes on where it was when it is called again with the same arguments.

    Inputs are read once, in order, and need not fit in memory. The same seed gives the same bytes whatever the memory
    limit and the number of threads or workers.

    Strings in obs become categoricals, whose categories are the union over all inputs, the same in every store. Every
    cell gets its source file as given, or the name of its input, in the obs column ``src_path``; a ``src_path`` that an
    input already has is kept. A var column is kept if no two inputs contradict each other about a gene, unless
    ``merge`` says otherwise. raw (unless ``x`` names it), uns, varm, obsp and varp are left out. A name that a store
    cannot hold, such as one with ``/``, is replaced, with a warning; options take either name. What else is left out
    though nobody chose so, such as obsm arrays of different widths, is warned of, or with ``strict`` refused.

    Parameters
    ----------
    adata_paths
        Inputs: paths of ``.h5ad`` files, also gzipped; ``.zarr`` directories (v2 or v3), also zipped; one modality of
        MuData, ``"cells.h5mu/rna"``; loom files; 10x Genomics ``.h5`` files and folders of ``matrix.mtx``, whose genes
        are named by their identifiers; URLs of these; AnnData in memory or backed; or zarr stores, remote ones too. X
        may be CSR, CSC or dense. A single one counts as a list of one. A dict gives each input a name, which its cells
        have in ``src_path`` instead of the path. Inputs without cells are skipped, with a warning.

        Or inputs with modalities, such as RNA and proteins: ``.h5mu`` files, MuData as ``.zarr`` directories or
        objects, or a list of dicts with an input for each modality, ``[{"rna": "rna.h5ad", "adt": "adt.h5ad"}, …]``.
        Then the stores are MuData, and cells are joined by name. Names of what belongs to one modality begin with it:
        in ``layers``, ``obsm`` and ``dense`` (``"rna:counts"``, ``"rna:X"``), and in ``obs_columns``,
        ``obs_as_strings`` and ``groupby``, where names without it are columns of MuData's own obs. All other options
        are for each modality.
    output_path
        Directory to make, with its parents. It may exist only if it is empty, or to be overwritten.
    modalities
        Which modalities to write, in this order; None for those of the first input. A dict alone, and not in a list,
        needs them.
    join_obs
        Of inputs with modalities, the cells: ``"inner"`` for those that all modalities of their input have, with a
        warning of others, or ``"outer"`` for all. Where a modality lacks a cell, its matrices then have zeros, its obs
        columns are missing, and its obs column ``measured`` is False.
    shuffle
        Whether rows go out in a uniformly random order (the same for the same seed, on any machine), or as they come.
    seed
        Seed of that order, in [0, 2**64).
    join
        Genes: ``"outer"`` for all of them (zero where an input lacks one), ``"inner"`` for those that all inputs have,
        both in the order of first appearance; ``"same"`` refuses inputs that have not all the same genes.
    merge
        var columns: None for those in which no two inputs contradict each other about a gene, put together gene by
        gene. Otherwise whole columns are taken as `anndata.concat` takes them: ``"same"`` for those that are the same
        in all inputs, ``"unique"`` for those that are the same in all inputs that have them, ``"first"`` for that of
        the first input that has it.
    var_names
        The genes to write instead, in this order. Each must be in at least one input. Of several modalities a dict,
        with the genes of those that are not to have all.
    var_key
        var column that names the genes instead of var's index, such as ``"gene_ids"``; the other names become a var
        column. Inputs without it keep their names, with a warning.
    repeated_genes
        What becomes of an input in which genes have the same name: ``"refuse"`` refuses it, ``"unique"`` puts ``-1``,
        ``-2``, … behind all but the first, as ``AnnData.var_names_make_unique`` does.
    x
        What becomes X: ``"X"``, ``"raw/X"`` (with raw's genes; then there are no layers) or ``"layers/…"``. Of a list
        of these, the first that an input has: ``["raw/X", "X"]``. ``"counts"`` takes the first of ``"layers/counts"``,
        ``"raw/X"`` and ``"X"`` that holds non-negative integers, judged by samples when an input is opened and checked
        for all values when it is read. ``Collection.inputs`` says what was taken where.
    layers, obsm
        Layers and numeric obsm arrays to carry along, which must be in all inputs, obsm in one width; None for those
        that are, with a warning of others.
    obs_columns
        obs columns to carry along, which must be of one kind in all inputs that have them; None for all that are, with
        a warning of others.
    obs_as_strings
        obs columns whose values are written as strings, whatever they are: so numbers in one input and strings in
        another are one column. Floats that are all whole are written as integers.
    dense
        Which of ``"X"`` and ``"layers/…"`` are written dense instead of CSR.
    groupby
        obs column whose categories stand together, in their order, rows without one last; rows are shuffled within.
        Values of a column of integers or booleans stand together in ascending order. Of several columns, tuples do, in
        the order of the first column, then of the second, and so on.
    obs_names
        What becomes of names of cells that occur more than once: ``"unique"`` puts ``-1``, ``-2``, … behind them,
        ``"refuse"`` refuses them.
    strict
        Whether to refuse to leave out anything that nobody chose to leave out, instead of a warning.
    load
        Function that makes AnnData of a path, for files of other kinds. It is called for each path whenever a part of
        it is needed; backed AnnData keeps memory bounded.
    rows_per_store
        Rows of every store but the last.
    chunk_elements
        Elements of an inner chunk of X's ``data`` and ``indices``: what a reader decodes at once. None means 32,768,
        and 8,192 for the codec ``"packed"``, of whose chunks a reader decodes only what it needs.
    shard_elements
        Elements of a shard, which is one file; at most, and in whole chunks.
    codec
        What compresses the inner chunks: ``"blosc"``, which every zarr reader decodes; ``"packed"``, which this
        loader decodes fastest, single rows above all, and which zarr-python decodes wherever this package is installed
        (``docs/packed.md`` describes it; values other than integers, and dense matrices, get blosc); or ``"zstd"``
        behind a shuffle of bytes, column numbers as differences, which takes the fewest bytes. A GPU decodes
        ``"packed"`` and ``"zstd"`` (``Loader(decode="gpu")``).
    narrow
        Whether values that are all whole and non-negative are stored in the smallest of uint16, uint32 and uint64 that
        holds them, and column numbers too. The original type is recorded as ``original-dtype`` in the attributes.
    allow_nonfinite
        Whether NaN and infinite values in X and layers are stored as they are instead of refused.
    memory_limit
        Memory for data, like ``"2GB"`` or in bytes, beside what the program itself takes; with a client, of each
        worker.
    threads
        Threads to work with; None for the cores that this process may use, or those of the client's workers.
    client
        A `dask.distributed.Client` whose workers do the work. They must reach inputs and output by the same paths.
    overwrite
        Whether a collection at ``output_path`` is replaced, once the new one is complete, and an unfinished build of
        other arguments discarded. Nothing else is ever replaced.
    progress
        Whether to show progress bars, and what the build will need.

    Returns
    -------
    Collection
        The new collection; its ``inputs`` say what each input lost, what was renamed, and what was left out.

    Raises
    ------
    InputError
        If an argument or an input breaks a rule; several inputs' faults come as one `InputErrors`.
    MissingInputError
        If an input does not exist.
    OutputExistsError
        If something is at ``output_path`` that may not be replaced.
    OutputError
        If the output cannot be written, say because the disk is full, or another process is writing it; what was
        written is removed.

    Examples
    --------
    >>> collection = create_anndata_collection(["a.h5ad", "b.h5ad"], "store")  # doctest: +SKIP
    """
    if isinstance(var_names, str):
        raise InputError(f"var_names must be a list of names, got the string {var_names!r}")
    inputs = as_modal_inputs(adata_paths, modalities, load)
    genes = {} if var_names is None else var_names
    if inputs is None and isinstance(genes, Mapping) and var_names is not None:
        raise InputError("var_names must be a list of names, got a dict, which is for inputs with modalities")
    if inputs is not None and not isinstance(genes, Mapping):
        raise InputError("var_names must be a dict of lists by modality for inputs with modalities, got a list")
    options = Options(
        shuffle=shuffle,
        seed=operator.index(seed),
        join=join,
        merge=merge,
        var_names=None if isinstance(genes, Mapping) else [str(name) for name in genes],
        var_key=var_key,
        repeated_genes=repeated_genes,
        x=checked_choice(x),
        layers=layers,
        obsm=obsm,
        obs_columns=obs_columns,
        obs_as_strings=obs_as_strings,
        dense=dense,
        groupby=() if groupby is None else (groupby,) if isinstance(groupby, str) else tuple(groupby),
        obs_names=obs_names,
        strict=strict,
        rows_per_store=rows_per_store,
        chunk_elements=chunk_elements_of(codec) if chunk_elements is None else chunk_elements,
        shard_elements=shard_elements,
        codec=codec,
        narrow=narrow,
        allow_nonfinite=allow_nonfinite,
    )
    resources = Resources(memory_limit=memory_limit, threads=threads, client=client, progress=progress)
    output = _local("output_path", output_path)
    if inputs is not None and isinstance(genes, Mapping):
        of_modality = {str(name): [str(gene) for gene in of_one] for name, of_one in genes.items()}
        modal = ModalOptions(join_obs=join_obs, var_names=of_modality)
        return build_modalities(inputs, output, options, modal, resources, overwrite=overwrite)
    if join_obs != "inner":
        raise InputError(f"join_obs must be 'inner' for inputs without modalities, got {join_obs!r}")
    return build(as_origins(adata_paths, load), output, options, resources, overwrite=overwrite)


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

    Nothing that is there changes but the manifest, which is replaced at once when the new stores are complete: whoever
    has the collection open goes on reading what it was. The new cells get the collection's genes, elements and obs
    columns; genes of theirs that it lacks are left out with a warning and counted in ``inputs``, obs columns too, and
    categories that are new come behind the known ones. A collection that was grouped by a column no longer is.

    An append that was killed or interrupted goes on when it is called again with the same arguments.

    Parameters
    ----------
    adata_paths
        Inputs, as `create_anndata_collection` takes them. All must have the collection's layers and obsm arrays, these
        in its widths, and obs columns of its kinds, as what it has is in every store: `reshuffle_collection` writes it
        with fewer. A collection with modalities takes inputs that have them, too, and their cells as it took the first.
    collection_path
        The collection's directory.
    layers, obsm
        Those of the collection, so as not to be warned of others that the inputs have; None for the same.
    obs_columns
        Which of the collection's obs columns get values from the inputs; others are missing in the new cells. None for
        all, with a warning of those that the collection lacks.
    shuffle, seed, var_key, repeated_genes, x, obs_as_strings, obs_names, strict, load, rows_per_store
        As for `create_anndata_collection`. ``obs_names`` also concerns names that the collection has already.
    shard_elements, narrow, allow_nonfinite
        As for `create_anndata_collection`.
    chunk_elements, codec
        As for `create_anndata_collection`; None means what the collection's last store has. With another codec than
        that, chunks get the size that suits the codec unless it is given. A collection written with the former codec
        ``"delta"`` goes on with ``"packed"``, with a warning.
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
        As for `create_anndata_collection`; the collection is then as it was.

    Examples
    --------
    >>> collection = append_to_collection(["c.h5ad"], "store")  # doctest: +SKIP
    """
    output = _local("collection_path", collection_path)
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
    """Write all cells of a collection anew, in one uniformly random order: say, after it was appended to.

    It may be written with fewer elements: ``obsm=[]`` leaves out all obsm arrays.

    Parameters
    ----------
    source_path
        A collection of this program, or one that scverse annbatch wrote.
    output_path
        As for `create_anndata_collection`; with ``overwrite`` it may be the collection itself.
    seed, layers, obsm, obs_columns, obs_as_strings, groupby, strict, rows_per_store, shard_elements
        As for `create_anndata_collection`.
    chunk_elements, codec
        As for `create_anndata_collection`; None means what the collection has, if it is one of this program. With
        another codec than that, chunks get the size that suits the codec unless it is given. The former codec
        ``"delta"`` becomes ``"packed"``, with a warning.
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
    >>> collection = reshuffle_collection("store", "reshuffled", seed=1)  # doctest: +SKIP
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


def _local(name: str, path: str | os.PathLike[str]) -> Path:
    """Give the real path of an output; raises InputError if it is a URL."""
    if isinstance(path, str) and is_url(path):
        remedy = "build locally, then copy the collection there"
        raise InputError(f"{name} must be a local directory, got the URL {redacted(path)}; {remedy}")
    # Beside the real directory, so that a link to it stays a link and the rename stays on one filesystem.
    return Path(os.path.realpath(expanded(path)))
