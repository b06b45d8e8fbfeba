"""How do inputs become stores of a collection?

1. *Claim* a hidden directory beside the output; an interrupted build of the same arguments goes on there.
2. *Describe* every input; join genes, choose elements, and spool obs, input by input, to the disk.
3. *Plan*: share out the memory, state and check the disk, cut the inputs into runs.
4. *Pass 1*: read each input once, sequentially, into runs that are sorted by group and key.
5. *Types*: all values have been seen, so the smallest types that hold them are known.
6. *Pass 2*: merge the runs into stores, a piece at a time.
7. *Commit* the manifest, last; then everything takes its place.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from itertools import accumulate
from pathlib import Path

from annbatch import summary
from annbatch.progress import progress_bar, say, tracked
from annbatch.shards.codecs import numcodecs_are_known
from annbatch.stores.collection import FORMAT, Collection, digest_names
from annbatch.stores.gene_join import fit_genes, join_genes, warn_of_lost_genes
from annbatch.stores.gene_overlap import few_in_common
from annbatch.stores.manifest import write_whole
from annbatch.warn import warn
from annbatch.write.described_inputs import DescribedInputs, describe_all
from annbatch.write.inputs.agreed_names import (
    Changes,
    Kept,
    changes,
    warn_of_changes,
    with_written_names,
)
from annbatch.write.inputs.append_target import AppendTarget
from annbatch.write.inputs.contents import Element, Source, select_elements
from annbatch.write.inputs.faults import Faults
from annbatch.write.inputs.main_matrix import COUNTS
from annbatch.write.inputs.obs_table import ObsTable, spool
from annbatch.write.inputs.opening import Origin
from annbatch.write.interruption import finish_before_raising
from annbatch.write.manifest_records import input_entries, types_of_elements
from annbatch.write.options import Options, Resources
from annbatch.write.output.workplace import Mode, Workplace, check_output, claimed, hidden_directory
from annbatch.write.passes import Local, OnDask, Passes, row_costs
from annbatch.write.shuffle.budget import Budget, check_disk, disk_bytes, element_bytes
from annbatch.write.shuffle.job import Ints, Job, JointOrder, RunSpec
from annbatch.write.shuffle.run_writer import plan_runs

_DISTRIBUTION = "annbatch-dlpack"
_log = logging.getLogger("annbatch")


@dataclass(frozen=True, slots=True, eq=False)
class Planned:
    """Stores before they are written."""

    job: Job
    inputs: DescribedInputs
    options: Options
    """With the names that are written."""
    changed: list[Changes]
    """Per input: what is renamed and left out."""
    budget: Budget
    present: AppendTarget | None
    """What they are appended to."""


@numcodecs_are_known()
def build(
    origins: Sequence[Origin],
    output: Path,
    options: Options,
    resources: Resources,
    *,
    append: bool = False,
    overwrite: bool = False,
) -> Collection:
    """Write a new collection at ``output``, or with ``append`` more stores for the one that is there, and checked."""
    mode: Mode = "append" if append else "create"
    if not append:
        check_output_or_unfinished(output, overwrite)
    arguments = options.to_json() | {
        "memory_limit": resources.memory_bytes,
        "inputs": [[origin.name, origin.stamp()] for origin in origins],
        "software": software(),
    }
    with claimed(output, mode, arguments, overwrite=overwrite) as place:
        if not place.finished:
            finish_before_raising(lambda checkpoint: _build(place, origins, options, resources, checkpoint))
    return Collection.open(output)


def _build(
    place: Workplace,
    origins: Sequence[Origin],
    options: Options,
    resources: Resources,
    checkpoint: Callable[[], None],
) -> None:
    present = AppendTarget.open(place.output) if place.mode == "append" else None
    planned = plan_rows(place, origins, options, resources, present, checkpoint)
    collection = write_rows(place, planned, resources, checkpoint)
    place.commit(collection if present is None else present.extended(collection))


def plan_rows(
    place: Workplace,
    origins: Sequence[Origin],
    options: Options,
    resources: Resources,
    present: AppendTarget | None,
    checkpoint: Callable[[], None],
    joint: JointOrder | None = None,
) -> Planned:
    """Do all that comes before the passes: whatever is wrong with the inputs is found here."""
    inputs, options = describe_all(place, origins, options, present, checkpoint, progress=resources.progress)
    job, changed, budget = _plan(place, inputs, options, resources, present, checkpoint, joint)
    return Planned(job, inputs, options, changed, budget, present)


def write_rows(place: Workplace, planned: Planned, resources: Resources, checkpoint: Callable[[], None]) -> Collection:
    """Do both passes; gives the manifest of the stores that were written."""
    job, options, budget, present = planned.job, planned.options, planned.budget, planned.present
    passes: Passes = Local(budget.tasks, checkpoint) if resources.client is None else OnDask(resources.client)
    specs = _specs(job, resources, checkpoint)
    with progress_bar(job.n_obs, "reading", "cell", shown=resources.progress) as report:
        runs = passes.write_runs(job, specs, report)
    checkpoint()
    types = types_of_elements(job, specs, runs, options, {} if present is None else present.types)
    with progress_bar(job.n_obs, "writing", "cell", shown=resources.progress) as report:
        stores = passes.write_stores(job, runs, types, report)
    return Collection(
        path=place.stores,
        format=FORMAT,
        n_obs=job.n_obs,
        n_vars=job.n_vars,
        var_digest=digest_names(job.var.index),
        stores=tuple(stores),
        types={key: found for key, found in types.items() if not key.startswith("obsm/")},
        obs_columns=tuple(column.name for column in job.table.columns),
        shuffled=options.shuffle,
        seed=options.seed if options.shuffle else None,
        software=software(),
        grouped_by=options.groupby[0] if len(options.groupby) == 1 else options.groupby or None,
        inputs=input_entries(job, planned.changed, specs, runs, options, planned.inputs.skipped),
    )


def _plan(
    place: Workplace,
    inputs: DescribedInputs,
    options: Options,
    resources: Resources,
    present: AppendTarget | None,
    checkpoint: Callable[[], None],
    joint: JointOrder | None,
) -> tuple[Job, list[Changes], Budget]:
    sources, lists = inputs.sources, inputs.genes
    paths = [source.name for source in sources]
    if present is None:
        genes = join_genes(lists, paths, options.join, options.var_names)
        if (few := few_in_common(lists, paths)) is not None:
            warn(few)
        var = with_written_names(inputs.var_columns.joined(genes.names, lists.known), sources)
    else:
        genes, var = fit_genes(lists, paths, present.var.index), present.var
        warn_of_lost_genes(genes, paths, strict=options.strict)
    n_vars = len(var)
    elements: tuple[Element, ...] = ()
    faults = Faults()
    with faults.keeping():
        elements = select_elements(
            sources,
            n_vars,
            layers=options.layers if present is None else present.layers,
            obsm=options.obsm if present is None else tuple(present.obsm),
            dense=options.dense if present is None else present.dense,
        )
    with faults.keeping():
        table = _spool(place, sources, options, resources, present, checkpoint)
    faults.raise_any()
    names = [column.name for column in table.columns]
    kept = Kept(elements, names, list(var.columns) if present is None else None, table.unjoined, options.merge)
    changed = changes(sources, kept, options)
    warn_of_changes(sources, changed, kept, in_collection=present is not None, strict=options.strict)
    if options.groupby:
        table.groups(options.groupby, 0, 0)
    text_bytes = sum(table.text(name).path.stat().st_size for name in table.texts) / table.n_obs
    budget = Budget.of(
        resources.memory_bytes,
        resources.task_threads,
        store_rows=min(table.n_obs, options.rows_per_store),
        record_bytes=table.record.itemsize,
        text_bytes=text_bytes,
        n_texts=len(table.texts),
    )
    cell_bytes = table.record.itemsize + text_bytes + 24
    _state(place, *disk_bytes(sources, elements, n_vars, cell_bytes, budget.run_bytes), resources)
    job = Job(
        directory=place.temporary,
        output=place.stores,
        sources=tuple(sources),
        first_rows=tuple(accumulate((source.n_obs for source in sources[:-1]), initial=0)),
        genes=genes,
        var=var,
        elements=elements,
        table=table,
        seed=options.seed if options.shuffle else None,
        groupby=options.groupby if joint is None else joint.groupby,
        joint=joint,
        narrow=options.narrow,
        x_holds_counts=options.x == (COUNTS,),
        allow_nonfinite=options.allow_nonfinite,
        rows_per_store=options.rows_per_store,
        first_store=0 if present is None else present.next_store,
        layout=options.layout,
        row_bytes=element_bytes(sources, elements, n_vars),
        run_bytes=budget.run_bytes,
        block_elements=budget.block_elements,
        piece_bytes=budget.piece_bytes,
        threads=resources.task_threads,
    )
    return job, changed, budget


def _spool(
    place: Workplace,
    sources: Sequence[Source],
    options: Options,
    resources: Resources,
    present: AppendTarget | None,
    checkpoint: Callable[[], None],
) -> ObsTable:
    def advance(inputs: int) -> None:
        checkpoint()
        report(inputs)

    directory = place.emptied("obs")
    others = [] if present is None else present.names(place.temporary / "names")
    with progress_bar(len(sources), "obs", "file", shown=resources.progress) as report:
        return spool(
            sources,
            directory,
            names=options.obs_columns,
            strings=options.obs_as_strings,
            required=options.groupby,
            repeats=options.obs_names,
            schema=None if present is None else present.schema,
            others=others,
            report=advance,
        )


def _state(place: Workplace, least: int, most: int, resources: Resources) -> None:
    """Say what the build will need, and check that it is there."""
    message = (
        f"the build needs {summary.size(least)} to {summary.size(most)} of temporary space in "
        f"{place.path.parent}, in addition to the collection itself, and up to "
        f"{summary.size(resources.memory_bytes)} of memory"
    )
    _log.info("%s: %s", place.output, message)
    if resources.progress:
        say(message)
    check_disk(place.temporary, (least, most))


def _specs(job: Job, resources: Resources, checkpoint: Callable[[], None]) -> list[RunSpec]:
    """Cut the inputs into runs; a build that goes on keeps the cut that it began with."""
    path = job.directory / "runs.json"
    if path.exists():
        return [RunSpec(*spec) for spec in json.loads(path.read_text(encoding="utf-8"))]
    (job.directory / "by_rows").mkdir(exist_ok=True)
    faults = Faults()

    def costs() -> Iterator[Ints]:
        for number in tracked(range(len(job.sources)), "planning", "file", shown=resources.progress):
            with faults.collecting(job.sources[number].origin.label):
                found = row_costs(job, number, checkpoint)
            if not len(faults):
                yield found

    specs = plan_runs(costs(), job.run_bytes)
    faults.raise_any()
    write_whole(path, json.dumps([[s.number, s.source, s.start, s.stop] for s in specs]))
    return specs


def check_output_or_unfinished(output: Path, overwrite: bool) -> None:
    """Refuse a taken path at once, unless an interrupted build may just have to be brought to its end."""
    if not hidden_directory(output).exists():
        check_output(output, overwrite=overwrite)


def software() -> str:
    """Name and version of this program."""
    try:
        return f"{_DISTRIBUTION} {version(_DISTRIBUTION)}"
    except PackageNotFoundError:
        return _DISTRIBUTION
