"""What can be done with collections from the command line?

``annbatch create``, ``append``, ``reshuffle``, ``info``, ``verify`` and ``head``. Each is a function of the library
with its options; nothing is done here but that. Results go to standard output, as text or with ``--json`` as one JSON
value; progress and errors go to standard error.

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

from annbatch.commands.input_lists import chosen_inputs, gene_names, listed_paths
from annbatch.commands.library_errors import Command
from annbatch.commands.results import print_text, show
from annbatch.errors import StoreError, naming
from annbatch.progress import progress_bar
from annbatch.shards.codecs import numcodecs_are_known
from annbatch.stores.collection import Collection, verify_root_group
from annbatch.stores.merged_var_column import Merge
from annbatch.stores.modality import FOLDER
from annbatch.stores.refusals import refuse_executable
from annbatch.stores.root_group import ROOT_GROUP
from annbatch.verify import verify_store
from annbatch.write import append_to_collection, create_anndata_collection, reshuffle_collection
from annbatch.write.array_layout import Codec
from annbatch.write.inputs.cell_join import JoinObs
from annbatch.write.inputs.matrix_rows import matrix_of

F = TypeVar("F", bound=Callable[..., Any])

COMMANDS: dict[str, click.Command] = {}
"""These commands, by name."""


def _command(function: F) -> click.Command:
    """Make a command of a function."""
    as_json = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
    command = click.command(cls=Command)(as_json(function))
    COMMANDS[str(command.name)] = command
    return command


def _with(*options: Callable[[F], F]) -> Callable[[F], F]:
    """Add options to a command, in this order."""

    def add(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return add


_INPUT_OPTIONS = _with(
    click.option(
        "--inputs-from",
        metavar="FILE",
        type=click.File("rb"),
        help="Read further INPUTS from FILE, one a line; - is standard input. Blank lines and # comments are skipped.",
    ),
    click.option("--shuffle/--no-shuffle", default=True, help="Shuffle the cells, or keep the order of the inputs."),
    click.option("--var-key", help="var column with the gene names, such as gene_ids; by default the index of var."),
    click.option(
        "--repeated-genes",
        type=click.Choice(["refuse", "unique"]),
        default="refuse",
        help="Gene names that occur twice in a file: refuse them, or make them unique.",
    ),
    click.option(
        "--x",
        multiple=True,
        default=["X"],
        help="What to write as X: X, raw/X or layers/NAME. Repeat it to take the first that an input has. "
        "counts is the first of layers/counts, raw/X and X that holds counts.",
    ),
    click.option(
        "--obs-names",
        type=click.Choice(["unique", "refuse"]),
        default="unique",
        help="Cell names that occur twice: make them unique, or refuse them.",
    ),
    click.option("--allow-nonfinite", is_flag=True, help="Write NaN and infinite values instead of refusing them."),
)
"""Options of ``create`` and ``append``."""

_BUILD_OPTIONS = _with(
    click.option("--seed", type=click.IntRange(0, 2**64 - 1), default=0, help="Seed of the shuffle."),
    click.option(
        "--obs-as-strings", multiple=True, help="obs column to write as strings, whatever its type. Repeatable."
    ),
    click.option("--strict", is_flag=True, help="Fail instead of leaving out genes, columns or matrices."),
    click.option("--rows-per-store", type=click.IntRange(1), default=2**20, help="Cells per store."),
    click.option("--memory-limit", default="1GB", help="Memory for data, such as 2GB; the program takes some more."),
    click.option("--threads", type=click.IntRange(1), help="Number of threads; by default one per core."),
    click.option("--progress/--no-progress", default=True, help="Show progress bars."),
)
"""Options of ``create``, ``append`` and ``reshuffle``."""

_LAYERS = partial(click.option, "--layer", "--layers", "layers", multiple=True)
_OBSM = partial(click.option, "--obsm", multiple=True)
_OBS_COLUMNS = partial(click.option, "--obs-column", "--obs-columns", "obs_columns", multiple=True)
_NONE = _with(
    click.option("--no-layers", is_flag=True, help="Write no layers."),
    click.option("--no-obsm", is_flag=True, help="Write no obsm arrays."),
)
_GROUPBY = click.option(
    "--groupby",
    multiple=True,
    help="obs column of categories, integers or booleans whose cells to keep together. Repeat it to group by several.",
)
_OVERWRITE = click.option(
    "--overwrite", is_flag=True, help="Replace a collection at OUTPUT once the new one is complete."
)
_OUTPUT = click.argument("output_path", metavar="OUTPUT", type=click.Path(file_okay=False))
_INPUTS = click.argument("adata_paths", metavar="[INPUTS]...", nargs=-1)
_CODEC = partial(click.option, "--codec", type=click.Choice(get_args(Codec)))


@_command
@_INPUTS
@_OUTPUT
@_INPUT_OPTIONS
@_BUILD_OPTIONS
@_CODEC(
    default="blosc",
    help="Compression: blosc opens in every zarr reader, packed is fastest with this loader, zstd is smallest.",
)
@click.option(
    "--join",
    type=click.Choice(["outer", "inner", "same"]),
    default="outer",
    help="Genes to write: outer takes all, inner those in all files, same refuses files whose genes differ.",
)
@click.option(
    "--merge",
    type=click.Choice(get_args(Merge)),
    help="Which var columns to write, as in anndata.concat; by default those without contradictions between files.",
)
@click.option(
    "--genes",
    "var_names",
    metavar="FILE",
    type=click.File("rb"),
    help="Write the genes named in FILE, one a line, in this order.",
)
@_LAYERS(help="Layer to write; by default all that the files share. Repeatable.")
@_OBSM(help="obsm array to write; by default all that the files share. Repeatable.")
@_NONE
@_OBS_COLUMNS(help="obs column to write; by default all. Repeatable.")
@click.option("--dense", multiple=True, help="Matrix to write dense: X or layers/NAME. Repeatable.")
@_GROUPBY
@click.option(
    "--modality",
    "--modalities",
    "modalities",
    multiple=True,
    help="Modality of .h5mu files to write; by default all. Repeatable. Other options name its elements MODALITY:NAME.",
)
@click.option(
    "--join-obs",
    type=click.Choice(get_args(JoinObs)),
    default="inner",
    help="Cells of files with modalities: those that all modalities have, or all.",
)
@_OVERWRITE
def create(
    adata_paths: Sequence[str],
    inputs_from: BinaryIO | None,
    output_path: str,
    var_names: BinaryIO | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Shuffle the cells of INPUTS into a new collection at OUTPUT.

    INPUTS are files or folders of AnnData (.h5ad, also gzipped; .zarr, also zipped), MuData (.h5mu, or one modality as
    FILE.h5mu/MODALITY), loom or 10x Genomics (.h5, mtx). They may be URLs, or quoted patterns such as "data/*.h5ad".
    NAME=PATH names an input: its cells have NAME in the obs column src_path. With --modality, NAME is the modality that
    PATH holds.

    If the command is interrupted, run it again to resume. To give up instead, remove the hidden directory
    .OUTPUT.building beside OUTPUT.
    """
    options["modalities"] = list(options["modalities"]) or None
    names = None if var_names is None else gene_names(var_names)
    inputs = _inputs(adata_paths, inputs_from)
    show(create_anndata_collection(inputs, output_path, var_names=names, **_arguments(options)), as_json)


@_command
@_INPUTS
@click.argument("collection_path", metavar="COLLECTION", type=click.Path(file_okay=False))
@_INPUT_OPTIONS
@_BUILD_OPTIONS
@_CODEC(help="As for create; by default the codec of the last store in COLLECTION.")
@_LAYERS(help="Layer of COLLECTION; name all of them to silence the warning about others in INPUTS.")
@_OBSM(help="obsm array of COLLECTION; name all of them to silence the warning about others in INPUTS.")
@_OBS_COLUMNS(help="obs column of COLLECTION to take from INPUTS; by default all. Others are missing in the new cells.")
def append(
    adata_paths: Sequence[str], inputs_from: BinaryIO | None, collection_path: str, as_json: bool, **options: Any
) -> None:
    """Add the cells of INPUTS to COLLECTION, shuffled among themselves.

    Programs that read the collection are not disturbed. If the command is interrupted, run it again to resume.
    """
    inputs = _inputs(adata_paths, inputs_from)
    show(append_to_collection(inputs, collection_path, **_arguments(options)), as_json)


@_command
@click.argument("source_path", metavar="COLLECTION", type=click.Path(file_okay=False))
@_OUTPUT
@_BUILD_OPTIONS
@_CODEC(help="As for create; by default the codec of COLLECTION.")
@_LAYERS(help="Layer to keep; by default all. Repeatable.")
@_OBSM(help="obsm array to keep; by default all. Repeatable.")
@_NONE
@_OBS_COLUMNS(help="obs column to keep; by default all. Repeatable.")
@_GROUPBY
@_OVERWRITE
def reshuffle(source_path: str, output_path: str, as_json: bool, **options: Any) -> None:
    """Write all cells of COLLECTION to OUTPUT in a new random order.

    This mixes appended cells with earlier ones. It can leave out layers, obsm arrays and obs columns that further
    inputs lack. With --overwrite, OUTPUT may be COLLECTION itself.
    """
    show(reshuffle_collection(source_path, output_path, **_arguments(options)), as_json)


@_command
@click.argument("collection")
def info(collection: str, as_json: bool) -> None:
    """Show what COLLECTION holds and where it came from."""
    show(Collection.open(collection), as_json)


@_command
@click.argument("collection")
@click.option("--progress/--no-progress", default=True, help="Show a progress bar.")
def verify(collection: str, progress: bool, as_json: bool) -> None:
    """Read COLLECTION in full and check it.

    Checks the checksum of every file. Then checks X and layers (shapes, indptr, column numbers), obs (a value for each
    cell, codes that have a category), obsm (rows) and var (the names of the genes). Continues after damage and names
    every damaged store.
    """
    found = Collection.open(collection)
    damage: dict[str, str] = {}
    try:
        verify_root_group(found)
    except StoreError as e:
        damage[ROOT_GROUP] = str(e)
    with progress_bar(found.n_obs, "verifying", "cell", shown=progress) as report:
        for store in found.stores:
            try:
                verify_store(found, store, report)
            except StoreError as e:
                damage[store.name] = str(e)
    if as_json:
        print_text(json.dumps({"ok": not damage, "stores": len(found.stores), "damage": damage}))
    else:
        for message in damage.values():
            print_text(message)
        n_whole = sum(store.name not in damage for store in found.stores)
        print_text(f"{n_whole} of {len(found.stores)} stores are whole")
    if damage:
        sys.exit(3)


@_command
@click.argument("collection")
@click.option("-n", "n_rows", type=click.IntRange(1), default=5, help="Number of cells.")
@numcodecs_are_known()
def head(collection: str, n_rows: int, as_json: bool) -> None:
    """Show the first cells of COLLECTION.

    Shows obs, and for each cell the number of values of X and their sum, in each modality.
    """
    found = Collection.open(collection)
    obs: list[pd.DataFrame] = []
    of_each = {f"{name}:": f"{FOLDER}/{name}/X" for name in found.modalities} or {"": "X"}
    lengths: dict[str, list[int]] = {prefix: [] for prefix in of_each}
    sums: dict[str, list[float]] = {prefix: [] for prefix in of_each}
    for store in found.stores:
        n = n_rows - sum(map(len, obs))
        if n <= 0:
            break
        root: Any = found.group(store)
        with naming(f"{found.path}/{store.name}"):
            refuse_executable(root["obs"], "obs")
            obs.append(ad.io.read_elem(root["obs"]).iloc[:n])
            for prefix, name in of_each.items():
                x = matrix_of(root[name], f"{found.path}/{store.name}/{name}")
                for row in range(len(obs[-1])):
                    start, stop = (row, row + 1) if x.format == "dense" else x.indptr[row : row + 2].tolist()
                    values = np.asarray(x.data[start:stop])
                    lengths[prefix].append(int((values != 0).sum()) if x.format == "dense" else len(values))
                    sums[prefix].append(float(values.sum()))
    table = pd.concat(obs)
    for prefix in of_each:
        table[f"{prefix}X values"], table[f"{prefix}X sum"] = lengths[prefix], sums[prefix]
    if as_json:
        print_text(table.reset_index(names="obs_name").to_json(orient="records"))
    else:
        print_text(table.to_string(max_cols=12))


def _arguments(options: dict[str, Any]) -> dict[str, Any]:
    """Make arguments of options: an option that is not given is no choice."""
    for name in ("layers", "obsm", "obs_columns"):
        chosen = list(options.pop(name)) or None
        if options.pop(f"no_{name}", False):
            if chosen:
                raise click.UsageError(
                    f"--no-{name} must not be combined with names, got {', '.join(chosen)}.",
                    click.get_current_context(),
                )
            chosen = []
        options[name] = chosen
    return options


def _inputs(given: Sequence[str], file: BinaryIO | None) -> list[str] | dict[str, str]:
    """Give the paths of all inputs, by their names if they have any."""
    if not given and file is None:
        raise click.UsageError("Missing argument 'INPUTS...' or option '--inputs-from'.", click.get_current_context())
    return chosen_inputs([*given, *(() if file is None else listed_paths(file))])
