"""How do AnnData files become a shuffled collection?

`create_anndata_collection` owns the options and their defaults; `annbatch.write.build` and
`annbatch.write.build_modalities` do the work.
"""

from __future__ import annotations

import operator
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from annbatch.errors import InputError
from annbatch.stores.collection import Collection
from annbatch.stores.gene_join import How
from annbatch.stores.merged_var_column import Merge
from annbatch.write.array_layout import Codec, chunk_elements_of
from annbatch.write.build import build
from annbatch.write.build_modalities import build_modalities
from annbatch.write.inputs.cell_join import JoinObs
from annbatch.write.inputs.main_matrix import MainMatrix, checked_choice
from annbatch.write.inputs.modal_inputs import ModalInputs, as_modal_inputs
from annbatch.write.inputs.opening import Input, Inputs, Load, as_origins
from annbatch.write.inputs.text_file import Repeats
from annbatch.write.options import ModalOptions, Options, Resources, local_directory

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

    The collection is a directory with ``chunk_{i}.zarr``, each a complete AnnData store that `anndata.read_zarr` opens,
    and the manifest ``collection.json``. The directory appears when everything is written, or not at all. If a build is
    killed or interrupted with Ctrl-C, the same call continues it.

    Inputs are read once, in order, and need not fit in memory. The same seed gives the same bytes, whatever the memory
    limit and the number of threads or workers.

    What is kept:

    - Strings in obs become categoricals. Their categories are the union over all inputs, the same in every store.
    - Each cell gets its source file as given, or the name of its input, in the obs column ``src_path``. If an input
      already has a ``src_path``, it is kept.
    - A var column is kept if no two inputs contradict each other about a gene, unless ``merge`` says otherwise.
    - raw (unless ``x`` names it), uns, varm, obsp and varp are left out. If the inputs have any of them, a warning
      names them.
    - A name that a store cannot hold, such as one with ``/``, is replaced, with a warning. Options accept both names.
    - Anything else that is left out without having been deselected, such as obsm arrays of different widths, gives a
      warning, or with ``strict`` an error.

    Parameters
    ----------
    adata_paths
        The inputs, one or a list: paths of ``.h5ad`` files, also gzipped; ``.zarr`` directories (v2 or v3), also
        zipped; one modality of MuData, ``"cells.h5mu/rna"``; loom files; 10x Genomics ``.h5`` files, and folders of
        ``matrix.mtx``, both with genes named by their identifiers; URLs of these; AnnData in memory or backed; or zarr
        stores, also remote ones. X may be CSR, CSC or dense. A dict gives each input a name, which ``src_path`` then
        holds instead of the path. Inputs without cells are skipped, with a warning.

        For several modalities, such as RNA and proteins: ``.h5mu`` files, MuData as ``.zarr`` directories or objects,
        or a list of dicts with an input for each modality, ``[{"rna": "rna.h5ad", "adt": "adt.h5ad"}, …]``. The stores
        are then MuData, and cells are joined by name. Prefix names with their modality in ``layers``, ``obsm`` and
        ``dense`` (``"rna:counts"``, ``"rna:X"``). Do so too in ``obs_columns``, ``obs_as_strings`` and ``groupby``,
        where a name without a prefix is a column of MuData's own obs. All other options apply to each modality.
    output_path
        Directory to create, with its parents. It must be empty or not exist, unless ``overwrite`` is set.
    modalities
        Modalities to write, in this order; None means those of the first input. Required if ``adata_paths`` is a single
        dict of modalities.
    join_obs
        Which cells of inputs with modalities to write. ``"inner"``: those that all modalities of their input have, with
        a warning about the others. ``"outer"``: all. Where a modality lacks a cell, its matrices hold zeros, its
        obs columns are missing, and its obs column ``measured`` is False.
    shuffle
        Whether to write rows in a uniformly random order, which is the same on any machine for the same seed. Otherwise
        rows keep the order of the inputs.
    seed
        Seed of that order, in [0, 2**64).
    join
        Which genes to write. ``"outer"``: all, with zeros where an input lacks one. ``"inner"``: those that all inputs
        have. Both are in the order of first appearance. ``"same"``: refuse inputs whose sets of genes differ.
    merge
        Which var columns to write. None: those in which no two inputs contradict each other about a gene, put together
        gene by gene. Otherwise whole columns, as `anndata.concat` chooses them. ``"same"``: those that are equal in all
        inputs. ``"unique"``: those that are equal in all inputs that have them. ``"first"``: the column of the first
        input that has it.
    var_names
        Genes to write instead, in this order. Each must be in at least one input. With several modalities, a dict of
        lists for the modalities that shall not keep all genes.
    var_key
        var column that names the genes, such as ``"gene_ids"``, instead of var's index, whose names then become a var
        column. Inputs without the column keep their names, with a warning.
    repeated_genes
        What to do with an input that names several genes alike. ``"refuse"``: raise an error. ``"unique"``: append
        ``-1``, ``-2``, … to all but the first, as ``AnnData.var_names_make_unique`` does.
    x
        Which matrix becomes X: ``"X"``, ``"raw/X"`` (with raw's genes, and without layers) or ``"layers/…"``. From a
        list, such as ``["raw/X", "X"]``, each input provides the first that it has. ``"counts"`` takes the first of
        ``"layers/counts"``, ``"raw/X"`` and ``"X"`` that holds non-negative integers: samples decide when an input is
        opened, and all values are checked when it is read. ``Collection.inputs`` records the choice for each input.
    layers, obsm
        Layers and numeric obsm arrays to write. All inputs must have them, obsm arrays with the same width. None means
        those for which that holds, with a warning that names the others.
    obs_columns
        obs columns to write. They must be of one kind in all inputs that have them. None means those for which that
        holds, with a warning that names the others.
    obs_as_strings
        obs columns whose values to write as strings. This joins a column that holds numbers in one input and strings in
        another. Floats are written as integers if they are all whole.
    dense
        Which of ``"X"`` and ``"layers/…"`` to write dense instead of CSR.
    groupby
        obs column by which to group rows: its categories follow one another in their order, rows without a category
        come last, and rows are shuffled within each. Integers and booleans are in ascending order. Several columns give
        tuples, sorted by the first column, then by the second, and so on.
    obs_names
        What to do with cell names that occur more than once. ``"unique"``: append ``-1``, ``-2``, …. ``"refuse"``:
        raise an error.
    strict
        Whether to raise an error, instead of a warning, before leaving out anything that was not deselected; raw, uns,
        varm, obsp and varp only give a warning in any case.
    load
        Function that makes AnnData from a path, for other kinds of files. It is called whenever a part of the input is
        needed; return backed AnnData to keep memory bounded.
    rows_per_store
        Rows of every store but the last.
    chunk_elements
        Elements of an inner chunk, the unit of decoding, of X's ``data`` and ``indices``. None means 32,768, and 8,192
        for the codec ``"packed"``, of which readers decode only the part that they need.
    shard_elements
        Maximum number of elements of a shard, which is one file; rounded down to whole chunks.
    codec
        Compression of the inner chunks. ``"blosc"``: every zarr reader decodes it. ``"packed"``: this loader decodes it
        fastest, in particular single rows, and zarr-python decodes it where this package is installed
        (``docs/packed.md`` describes the format); values other than integers, and dense matrices, get blosc.
        ``"zstd"``, after a byte shuffle and with column numbers as differences: takes the fewest bytes. GPUs decode
        ``"packed"`` and ``"zstd"`` (``Loader(decode="gpu")``).
    narrow
        Whether to store values that are all whole and non-negative in the smallest of uint16, uint32 and uint64 that
        holds them, and column numbers likewise. The attribute ``original-dtype`` records the original type.
    allow_nonfinite
        Whether to store NaN and infinite values in X and layers instead of refusing them.
    memory_limit
        Memory for data, such as ``"2GB"``, or in bytes; what the program itself takes comes on top. With a client, the
        limit of each worker.
    threads
        Number of threads. None means the cores that this process may use, or those of the client's workers.
    client
        A `dask.distributed.Client` whose workers do the work. They must reach inputs and output by the same paths.
    overwrite
        Whether to replace a collection at ``output_path`` once the new one is complete, and to discard an unfinished
        build with other arguments. Anything else at that path is never replaced.
    progress
        Whether to show progress bars and the expected resources.

    Returns
    -------
    Collection
        The new collection. Its ``inputs`` record what each input lost, what was renamed and what was left out.

    Raises
    ------
    InputError
        If an argument or an input breaks a rule. Faults of several inputs are raised as one `InputErrors`.
    MissingInputError
        If an input does not exist.
    OutputExistsError
        If there is something at ``output_path`` that may not be replaced.
    OutputError
        If the output cannot be written, for example because the disk is full or another process writes it. What was
        written is removed.

    Examples
    --------
    >>> from annbatch import create_anndata_collection
    >>> collection = create_anndata_collection(
    ...     ["a.h5ad", "b.h5ad"], "cells", progress=False
    ... )
    >>> collection.n_obs, collection.store_paths[0].name
    (120, 'chunk_0.zarr')
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
    output = local_directory("output_path", output_path)
    if inputs is not None and isinstance(genes, Mapping):
        of_modality = {str(name): [str(gene) for gene in of_one] for name, of_one in genes.items()}
        modal = ModalOptions(join_obs=join_obs, var_names=of_modality)
        return build_modalities(inputs, output, options, modal, resources, overwrite=overwrite)
    if join_obs != "inner":
        raise InputError(f"join_obs must be 'inner' for inputs without modalities, got {join_obs!r}")
    return build(as_origins(adata_paths, load), output, options, resources, overwrite=overwrite)
