"""What can be done with collections from the command line?

``annbatch create``, ``append``, ``info``, ``verify`` and ``head``. Each is a function of the library with its options;
nothing is done here but that. Results go to standard output, as text or with ``--json`` as one JSON value; progress and
errors go to standard error.

A parameter of a command has the name of the argument that it becomes: see `annbatch.commands.library_errors`.

Exit codes: 0 done; 1 the output cannot be written, or something is in its place; 2 an argument or an input breaks a
rule; 3 a collection is damaged, or is none; 130 Ctrl-C.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, BinaryIO, TypeVar, get_args

import anndata as ad
import click
import numpy as np
import pandas as pd

from annbatch import summary
from annbatch.commands.input_lists import chosen_inputs, gene_names, listed_paths
from annbatch.commands.library_errors import Command
from annbatch.errors import OutputError, StoreError, naming
from annbatch.progress import progress_bar
from annbatch.shards.codecs import numcodecs_are_known
from annbatch.stores.collection import Collection
from annbatch.stores.refusals import refuse_executable
from annbatch.verify import verify_store
from annbatch.write import append_to_collection, create_anndata_collection
from annbatch.write.array_layout import Codec
from annbatch.write.inputs.matrix_rows import matrix_of

F = TypeVar("F", bound=Callable[..., Any])

COMMANDS: dict[str, click.Command] = {}
"""All commands, by name."""


def _command(function: F) -> click.Command:
    """Make a command of a function."""
    as_json = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
    command = click.command(cls=Command)(as_json(function))
    COMMANDS[str(command.name)] = command
    return command


def _options_of_both(function: F) -> F:
    """Add the options that ``create`` and ``append`` share."""
    options = [
        click.option(
            "--inputs-from",
            metavar="FILE",
            type=click.File("rb"),
            help="File of further INPUTS, one a line; - is standard input. Blank lines and # comments are skipped.",
        ),
        click.option("--seed", type=click.IntRange(0, 2**64 - 1), default=0, help="Seed of the shuffle."),
        click.option("--shuffle/--no-shuffle", default=True, help="Whether cells go out in random order."),
        click.option("--var-key", help="var column that names the genes, such as gene_ids; by default var's index."),
        click.option(
            "--repeated-genes",
            type=click.Choice(["refuse", "unique"]),
            default="refuse",
            help="Names of genes that occur twice in a file: refuse them, or make them unique.",
        ),
        click.option(
            "--x",
            multiple=True,
            default=["X"],
            help="What becomes X: X, raw/X or layers/NAME; given several times, the first that an input has. "
            "counts: the first of layers/counts, raw/X and X that holds counts.",
        ),
        click.option("--obs-as-strings", multiple=True, help="obs column to write as strings, whatever it holds."),
        click.option(
            "--obs-names",
            type=click.Choice(["unique", "refuse"]),
            default="unique",
            help="Names of cells that occur twice: make them unique, or refuse them.",
        ),
        click.option("--strict", is_flag=True, help="Refuse to leave anything out, instead of a warning."),
        click.option("--rows-per-store", type=click.IntRange(1), default=2**20, help="Cells in a store."),
        click.option("--allow-nonfinite", is_flag=True, help="Store NaN and infinite values instead of refusing them."),
        click.option("--memory-limit", default="1GB", help="Memory for data, like 2GB."),
        click.option("--threads", type=click.IntRange(1), help="Threads; by default one for each core."),
        click.option("--progress/--no-progress", default=True, help="Whether to show progress bars."),
    ]
    for option in reversed(options):
        function = option(function)
    return function


_INPUTS = click.argument("adata_paths", metavar="[INPUTS]...", nargs=-1)
_CODEC = partial(click.option, "--codec", type=click.Choice(get_args(Codec)))


@_command
@_INPUTS
@click.argument("output_path", metavar="OUTPUT", type=click.Path(file_okay=False))
@_options_of_both
@_CODEC(
    default="blosc",
    help="blosc is read by every zarr reader, delta fastest by this loader; zstd is what a GPU can decode.",
)
@click.option(
    "--join",
    type=click.Choice(["outer", "inner", "same"]),
    default="outer",
    help="Genes: all of them, those in all files, or refuse files whose genes differ.",
)
@click.option(
    "--genes",
    "var_names",
    metavar="FILE",
    type=click.File("rb"),
    help="File of the genes to write, one a line, in this order.",
)
@click.option("--layer", "layers", multiple=True, help="Layer to carry along; by default all that the files share.")
@click.option("--obsm", multiple=True, help="obsm array to carry along; by default all that the files share.")
@click.option(
    "--obs-column", "--obs-columns", "obs_columns", multiple=True, help="obs column to carry along; by default all."
)
@click.option("--dense", multiple=True, help="Write X or layers/NAME dense.")
@click.option(
    "--groupby",
    multiple=True,
    help="obs column whose categories stand together; of several, tuples of categories do.",
)
@click.option("--overwrite", is_flag=True, help="Replace a collection at OUTPUT once the new one is complete.")
def create(
    adata_paths: Sequence[str],
    inputs_from: BinaryIO | None,
    output_path: str,
    var_names: BinaryIO | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Shuffle the cells of INPUTS into a new collection at OUTPUT.

    INPUTS are files and folders of AnnData (.h5ad, also gzipped; .zarr, also zipped), MuData (FILE.h5mu/MODALITY), loom
    and 10x Genomics (.h5, mtx), their URLs, or quoted patterns of their names, such as "data/*.h5ad". NAME=PATH gives
    an input the name that the obs column src_path has for its cells.

    If this is interrupted, run it again: it goes on where it was; to give it up instead, remove the hidden directory
    .OUTPUT.building beside OUTPUT.
    """
    for name in ("layers", "obsm", "obs_columns"):
        options[name] = list(options[name]) or None
    options["x"] = _one_or_all(options["x"])
    names = None if var_names is None else gene_names(var_names)
    inputs = _inputs(adata_paths, inputs_from)
    _show(create_anndata_collection(inputs, output_path, var_names=names, **options), as_json)


@_command
@_INPUTS
@click.argument("collection_path", metavar="COLLECTION", type=click.Path(file_okay=False))
@_options_of_both
@_CODEC(help="As for create; by default that of the last store in COLLECTION.")
@click.option(
    "--obs-column",
    "--obs-columns",
    "obs_columns",
    multiple=True,
    help="obs column of COLLECTION to take from INPUTS, others are missing in the new cells; by default all.",
)
def append(
    adata_paths: Sequence[str], inputs_from: BinaryIO | None, collection_path: str, as_json: bool, **options: Any
) -> None:
    """Add the cells of INPUTS to COLLECTION, shuffled among themselves.

    Whoever is reading the collection is not disturbed. If this is interrupted, run it again: it goes on where it was.
    """
    options["obs_columns"] = list(options["obs_columns"]) or None
    options["x"] = _one_or_all(options["x"])
    _show(append_to_collection(_inputs(adata_paths, inputs_from), collection_path, **options), as_json)


@_command
@click.argument("collection")
def info(collection: str, as_json: bool) -> None:
    """Say what is in COLLECTION and where it came from."""
    _show(Collection.open(collection), as_json)


@_command
@click.argument("collection")
@click.option("--progress/--no-progress", default=True, help="Whether to show a progress bar.")
def verify(collection: str, progress: bool, as_json: bool) -> None:
    """Read all of COLLECTION and check it.

    Checks the checksum of every file, row counts, that indptr never falls, and that column numbers are in range and in
    order. Stops at nothing: every damaged store is named.
    """
    found = Collection.open(collection)
    damage: dict[str, str] = {}
    with progress_bar(found.n_obs, "verifying", "cell", shown=progress) as report:
        for store in found.stores:
            try:
                verify_store(found, store, report)
            except StoreError as e:
                damage[store.name] = str(e)
    if as_json:
        _print(json.dumps({"ok": not damage, "stores": len(found.stores), "damage": damage}))
    else:
        for message in damage.values():
            _print(message)
        _print(f"{len(found.stores) - len(damage)} of {len(found.stores)} stores are whole")
    if damage:
        sys.exit(3)


@_command
@click.argument("collection")
@click.option("-n", "n_rows", type=click.IntRange(1), default=5, help="How many cells.")
@numcodecs_are_known()
def head(collection: str, n_rows: int, as_json: bool) -> None:
    """Show the first cells of COLLECTION.

    Their obs, how many values of X each has, and what these add up to.
    """
    found = Collection.open(collection)
    obs: list[pd.DataFrame] = []
    lengths: list[int] = []
    sums: list[float] = []
    for store in found.stores:
        n = n_rows - sum(map(len, obs))
        if n <= 0:
            break
        root: Any = found.group(store)
        with naming(f"{found.path}/{store.name}"):
            refuse_executable(root["obs"], "obs")
            obs.append(ad.io.read_elem(root["obs"]).iloc[:n])
            x = matrix_of(root["X"], f"{found.path}/{store.name}/X")
        for row in range(len(obs[-1])):
            start, stop = (row, row + 1) if x.format == "dense" else x.indptr[row : row + 2].tolist()
            values = np.asarray(x.data[start:stop])
            lengths.append(int((values != 0).sum()) if x.format == "dense" else len(values))
            sums.append(float(values.sum()))
    table = pd.concat(obs)
    table["X values"], table["X sum"] = lengths, sums
    if as_json:
        _print(table.reset_index(names="obs_name").to_json(orient="records"))
    else:
        _print(table.to_string(max_cols=12))


def _inputs(given: Sequence[str], file: BinaryIO | None) -> list[str] | dict[str, str]:
    """Give the paths of all inputs, by their names if they have any."""
    if not given and file is None:
        raise click.UsageError("Missing argument 'INPUTS...' or option '--inputs-from'.", click.get_current_context())
    return chosen_inputs([*given, *(() if file is None else listed_paths(file))])


def _one_or_all(keys: Sequence[str]) -> str | Sequence[str]:
    """Give a single value by itself."""
    return keys[0] if len(keys) == 1 else keys


def _print(text: str) -> None:
    """Write to standard output."""
    try:
        click.echo(text)
    except BrokenPipeError:
        # Whoever read it wants no more; click ends the program.
        raise
    except OSError as e:
        raise OutputError(e.errno, f"standard output cannot be written ({e.strerror}); the work itself is done") from e


def _show(collection: Collection, as_json: bool) -> None:
    nbytes = sum(file.nbytes for store in collection.stores for file in store.files.values())
    found = {
        "path": str(collection.path),
        "n_obs": collection.n_obs,
        "n_vars": collection.n_vars,
        "stores": len(collection.stores),
        "bytes": nbytes,
        "nnz": sum(store.nnz for store in collection.stores if store.nnz is not None),
        "types": {key: types.to_json() for key, types in collection.types.items()},
        "obs_columns": list(collection.obs_columns),
        "shuffled": collection.shuffled,
        "seed": collection.seed,
        "grouped_by": collection.grouped_by,
        "software": collection.software,
        "inputs": [entry.to_json() for entry in collection.inputs],
    }
    if as_json:
        _print(json.dumps(found))
        return
    stores = f"{len(collection.stores):,} store{'s' if len(collection.stores) > 1 else ''}"
    _print(
        f"{collection.path}: {collection.n_obs:,} cells × {collection.n_vars:,} genes in {stores}, "
        f"{summary.size(nbytes)}, {found['nnz']:,} values"
    )
    for key, types in collection.types.items():
        _print(f"  {key}: stored as {types.stored}, was {types.original}")
    order = f"shuffled with seed {collection.seed}" if collection.shuffled else "in the order of the inputs"
    by = collection.grouped_by or ()
    grouped = f", grouped by {by if isinstance(by, str) else ' and '.join(by)}" if by else ""
    _print(f"  rows: {order}{grouped}")
    _print(f"  obs: {', '.join(collection.obs_columns)}")
    for entry in collection.inputs:
        if not entry.n_obs:
            _print(f"  {entry.name}: no cells, skipped")
            continue
        lost = f"{entry.genes_lost:,} genes, {entry.elements_lost:,} values"
        counts = "" if entry.counts_lost is None else f", {entry.counts_lost:,} counts"
        _print(f"  {entry.name}: {entry.n_obs:,} cells; lost {lost}{counts}")
        if entry.x is not None:
            _print(f"    X: {entry.x}")
        if entry.renamed:
            _print(f"    renamed: {', '.join(f'{own} to {new}' for own, new in entry.renamed.items())}")
        if entry.left_out:
            _print(f"    left out: {', '.join(entry.left_out)}")
