"""What do all inputs of a build hold?

1. `describe_all` opens one input after the other, and names all faults of all of them in one error.
2. `DescribedInputs` is what is kept of them, under the names under which a collection holds their elements.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from annbatch.progress import tracked
from annbatch.stores.obs_access import SRC_PATH
from annbatch.stores.var_columns import VarColumns
from annbatch.write.inputs.agreed_names import agree_on_names, in_written_names
from annbatch.write.inputs.append_target import AppendTarget
from annbatch.write.inputs.contents import Source, describe
from annbatch.write.inputs.faults import Faults
from annbatch.write.inputs.gene_naming import check_key
from annbatch.write.inputs.obs_table import check_groupby
from annbatch.write.inputs.opening import Origin
from annbatch.write.inputs.skipped_inputs import SkippedInputs
from annbatch.write.inputs.spilled_genes import SpilledGeneLists
from annbatch.write.options import Options
from annbatch.write.output.workplace import Workplace


@dataclass(frozen=True, slots=True, eq=False)
class DescribedInputs:
    """All inputs, described."""

    sources: Sequence[Source]
    """Those that have cells."""
    genes: SpilledGeneLists
    """Their genes."""
    var_columns: VarColumns
    """Their var columns; none in an append."""
    skipped: SkippedInputs
    """Those that have none."""


def describe_all(
    place: Workplace,
    origins: Sequence[Origin],
    options: Options,
    present: AppendTarget | None,
    checkpoint: Callable[[], None],
    *,
    progress: bool,
) -> tuple[DescribedInputs, Options]:
    """Describe all inputs; also give the options with the names that are written.

    Parameters
    ----------
    present
        The collection that is appended to, if one is.

    Raises
    ------
    InputError
        If an input, or an option that names something in the inputs, breaks a rule; names all faults of all inputs.
    """
    faults = Faults()
    sources: list[Source] = []
    genes, var_columns = SpilledGeneLists(place.emptied("genes")), VarColumns(options.merge)
    skipped = SkippedInputs(place.emptied("genes-skipped"))
    unkeyed: list[str] = []
    columns, layers, obsm = options.obs_columns, options.layers, options.obsm
    if present is not None:
        columns = [*(present.schema if columns is None else columns), SRC_PATH]
        layers, obsm = present.layers, tuple(present.obsm)
    for number, given in enumerate(tracked(origins, "opening", "file", shown=progress)):
        checkpoint()
        with faults.collecting(given.label):
            origin = given.local(place.temporary / "inputs" / str(number), checkpoint)
            source, var = describe(
                origin,
                options.x,
                columns,
                layers,
                obsm,
                var_key=options.var_key,
                repeated_genes=options.repeated_genes,
            )
            if not source.n_obs:
                skipped.add(number, origin.name, var.index)
                continue
            if var.index.name != options.var_key:
                unkeyed.append(origin.name)
            genes.add(var.index)
            if present is None:
                var_columns.add(var, genes.numbers(len(sources)))
            sources.append(source)
    faults.raise_any()
    skipped.warn(len(origins), strict=options.strict)
    if options.var_key is not None:
        check_key(options.var_key, unkeyed, len(sources), strict=options.strict)
    sources = agree_on_names(sources)
    options = replace(options, **in_written_names(options, sources))
    if present is not None:
        present.check_choice(options.layers, options.obsm, options.obs_columns)
        present.check_elements(sources)
    check_groupby(options.groupby, options.obs_columns, sources)
    return DescribedInputs(sources, genes, var_columns, skipped), options
