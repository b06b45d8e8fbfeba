"""How do AnnData files become a shuffled collection?

1. *Inputs*: describe every file, join genes, obs and var.
2. *Checks*: look at every value once; refuse what breaks a rule, and learn the smallest types that hold the rest.
3. *Shuffle plan*: which input row goes where.
4. *Sharded stores*: each store's rows in their final order, written in a hidden directory.
5. *Manifest*, last; then the directory takes its place.

Nothing is written before steps 1 to 3 are done. The rows are gathered in memory (`annbatch.write.gather`), at their
stored size.
"""

from __future__ import annotations

import operator
import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from tqdm.auto import tqdm

from annbatch.batch import CSR
from annbatch.collection import FORMAT, Collection, digest_names
from annbatch.errors import InputError
from annbatch.manifest import StoreEntry
from annbatch.write.gather import Table, load_table, take_rows
from annbatch.write.inputs import Source, as_paths, describe, read_blocks
from annbatch.write.join import GeneJoin, join_genes, join_obs, join_var
from annbatch.write.narrow import ValueScan, choose_types
from annbatch.write.output import check_output, finish_before_raising, seal, staged
from annbatch.write.sharded import Layout, write_store
from annbatch.write.shuffle import RowPlan, plan_rows

if TYPE_CHECKING:
    from collections.abc import Iterator

_DISTRIBUTION = "annbatch-dlpack"


def create_anndata_collection(
    adata_paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    output_path: str | os.PathLike[str],
    *,
    shuffle: bool = True,
    seed: int = 0,
    join: Literal["outer", "inner"] = "outer",
    var_names: Iterable[str] | None = None,
    rows_per_store: int = 2**20,
    chunk_elements: int = 2**15,
    shard_elements: int = 2**25,
    narrow: bool = True,
    allow_nonfinite: bool = False,
    overwrite: bool = False,
    progress: bool = True,
) -> Collection:
    """Write the cells of AnnData files, shuffled, as a collection of sharded zarr stores.

    ``output_path`` becomes a directory of ``chunk_{i}.zarr``, each a complete AnnData store that `anndata.read_zarr`
    opens, and
    ``collection.json``. It appears all at once when everything is written, or not at all.

    Layers and numeric obsm arrays that all inputs share are carried along, X and layers always as CSR; obsm elements of
    another kind are
    left out with a warning, and raw, uns, varm, obsp and varp are left out. Strings in obs become categoricals, whose
    categories are the
    union over all inputs, the same in every store. Every cell gets its source file, as given, in the obs column
    ``src_path``; a
    ``src_path`` that an input already has is kept. A var column is kept if no two inputs contradict each other about a
    gene.

    Parameters
    ----------
    adata_paths
        Inputs, ``.h5ad`` files or ``.zarr`` directories (v2 or v3), X as CSR, CSC or dense. A single path counts as a
        list of one.
    output_path
        Directory to make, with its parents. It may exist only if it is empty, or to be overwritten.
    shuffle
        Whether rows go out in a uniformly random order (the same for the same seed, on any machine), or as they come.
    seed
        Seed of that order, in [0, 2**64).
    join
        Genes: ``"outer"`` for all of them (zero where an input lacks one), ``"inner"`` for those that all inputs have,
        both in the order of
        first appearance.
    var_names
        The genes to write instead, in this order; ``join`` then has no effect. Each must be in at least one input.
    rows_per_store
        Rows of every store but the last.
    chunk_elements
        Elements of an inner chunk of X's ``data`` and ``indices``: what a reader decodes at once.
    shard_elements
        Elements of a shard, which is one file; at most, and in whole chunks.
    narrow
        Whether values that are all whole and non-negative are stored in the smallest of uint16, uint32 and uint64 that
        holds them, and
        column numbers too. The original type is recorded as ``original-dtype`` in the group's attributes.
    allow_nonfinite
        Whether NaN and infinite values in X and layers are stored as they are instead of refused.
    overwrite
        Whether a collection at ``output_path`` is replaced, once the new one is complete. Nothing else is ever
        replaced.
    progress
        Whether to show progress bars.

    Returns
    -------
    Collection
        The new collection.

    Raises
    ------
    InputError
        If an argument or an input breaks a rule; nothing has been written then.
    MissingInputError
        If an input does not exist.
    OutputExistsError
        If something is at ``output_path`` that may not be replaced.
    OutputError
        If the output cannot be written, say because the disk is full; what was written is removed.

    Examples
    --------
    >>> collection = create_anndata_collection(["a.h5ad", "b.h5ad"], "store")  # doctest: +SKIP
    """
    paths = as_paths(adata_paths)
    seed = operator.index(seed)
    # Beside the real directory, so that a link to it stays a link and the rename stays on one filesystem.
    output = Path(os.path.realpath(output_path))
    with _as_input_error():
        layout = Layout(chunk_elements, shard_elements)
        # Checks the options before the inputs are read; the plan itself needs their rows.
        plan_rows(0, rows_per_store=rows_per_store, shuffle=shuffle, seed=seed)
    check_output(output, overwrite=overwrite)

    sources = [describe(path) for path in _bar(paths, progress, "opening", "file")]
    genes = join_genes(sources, join, var_names)
    obs, var = join_obs(sources), join_var(sources, genes)

    keys = [key for key in sources[0].elements if all(key in source.elements for source in sources)]
    n_obs = len(obs)
    with _cell_bar(n_obs * len(keys), progress, "checking") as report:
        scans = {key: _scan(key, sources, genes, report, allow_nonfinite=allow_nonfinite) for key in keys}
    types = {key: choose_types(key, scans[key], len(var), narrow=narrow) for key in keys}
    obsm = _shared_obsm(sources)

    plan = plan_rows(n_obs, rows_per_store=rows_per_store, shuffle=shuffle, seed=seed)
    with _cell_bar(n_obs * len(keys), progress, "reading") as report:
        table = load_table(sources, genes, obs, var, scans, types, obsm, report)

    with staged(output, overwrite=overwrite) as building:
        with _cell_bar(n_obs * len(keys), progress, "writing") as report:
            stores = finish_before_raising(
                lambda checkpoint: _write_stores(building, table, plan, layout, report, checkpoint)
            )
        Collection(
            path=output,
            format=FORMAT,
            n_obs=n_obs,
            n_vars=len(var),
            var_digest=digest_names(genes.names),
            stores=stores,
            types=types,
            obs_columns=tuple(obs.columns),
            shuffled=shuffle,
            seed=seed if shuffle else None,
            software=_software(),
        ).save(building)
    return Collection.open(output)


def _scan(
    key: str, sources: Sequence[Source], genes: GeneJoin, report: Callable[[int], object], *, allow_nonfinite: bool
) -> list[ValueScan]:
    """Scan every value of element ``key`` that will be written, one `ValueScan` per input."""
    scans = []
    for source, columns in zip(sources, genes.columns, strict=True):
        scan, row = None, 0
        for block in read_blocks(source, key, columns, len(genes.names)):
            if not allow_nonfinite:
                _check_finite(block, source, key, row)
            piece = ValueScan.of(block.data)
            scan = piece if scan is None else scan.merge(piece)
            row += block.shape[0]
            report(block.shape[0])
        assert scan is not None  # an input without rows has been refused
        scans.append(scan)
    return scans


def _check_finite(block: CSR, source: Source, key: str, first_row: int) -> None:
    bad = np.flatnonzero(~np.isfinite(block.data))
    if len(bad):
        row = int(np.searchsorted(block.indptr, bad[0], side="right")) - 1 + first_row
        raise InputError(
            f"{source.path}: {key} must hold finite values, got {block.data[bad[0]]} in row {row} "
            f"({source.obs.index[row]!r}); allow_nonfinite=True stores such values as they are"
        )


def _shared_obsm(sources: Sequence[Source]) -> list[str]:
    """Names of the obsm arrays that all inputs have; warns of those that are no numeric arrays."""
    names = []
    for name in sources[0].obsm:
        if not all(name in source.obsm for source in sources):
            continue
        shapes = {source.path: source.obsm[name] for source in sources}
        if any(shape is None for shape in shapes.values()):
            unfit = next(path for path, shape in shapes.items() if shape is None)
            warnings.warn(f"obsm {name!r} is left out: it is no numeric array in {unfit}", UserWarning, stacklevel=3)
        elif len(set(shapes.values())) > 1:
            raise InputError(f"obsm {name!r} must have rows of the same shape in all inputs, got {shapes}")
        else:
            names.append(name)
    return names


def _write_stores(
    building: Path,
    table: Table,
    plan: RowPlan,
    layout: Layout,
    report: Callable[[int], object],
    checkpoint: Callable[[], None],
) -> tuple[StoreEntry, ...]:
    def advance(rows: int) -> None:
        checkpoint()
        report(rows)

    stores = []
    for i, rows in enumerate(plan.stores()):
        name = f"chunk_{i}.zarr"
        nnz = write_store(building / name, take_rows(table, rows), layout, advance)
        checkpoint()
        stores.append(StoreEntry(name, len(rows), nnz, seal(building / name)))
    return tuple(stores)


@contextmanager
def _as_input_error() -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except ValueError as e:
        raise InputError(str(e)) from e


def _bar(items: Sequence[str], progress: bool, what: str, unit: str) -> Iterable[str]:
    bar: Iterable[str] = tqdm(items, desc=what, unit=unit, disable=not progress)
    return bar


@contextmanager
def _cell_bar(total: int, progress: bool, what: str) -> Iterator[Callable[[int], object]]:
    with tqdm(total=total, desc=what, unit="cell", unit_scale=True, disable=not progress) as bar:
        yield bar.update


def _software() -> str:
    try:
        return f"{_DISTRIBUTION} {version(_DISTRIBUTION)}"
    except PackageNotFoundError:
        return _DISTRIBUTION
