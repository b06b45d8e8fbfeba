"""What does a manifest say about the types of a collection's elements, and about its inputs?

Everything here is pure: runs have been written, and all values seen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from annbatch.stores.manifest import ElementTypes, InputEntry
from annbatch.warn import warn
from annbatch.write.inputs.agreed_names import Changes
from annbatch.write.inputs.narrow_types import ValueScan, choose_types
from annbatch.write.inputs.skipped_inputs import SkippedInputs
from annbatch.write.options import Options
from annbatch.write.shuffle.job import Job, RunSpec
from annbatch.write.shuffle.run_writer import Run


def types_of_elements(
    job: Job,
    specs: Sequence[RunSpec],
    runs: Sequence[Run],
    options: Options,
    present: Mapping[str, ElementTypes],
) -> Mapping[str, ElementTypes]:
    """Choose the types of all stores from what was seen of each input; ``present`` are those of the collection."""
    found = {}
    for element in job.elements:
        scans: dict[int, ValueScan] = {}
        for spec, run in zip(specs, runs, strict=True):
            scan = run.elements[element.key].scan
            scans[spec.source] = scans[spec.source].merge(scan) if spec.source in scans else scan
        narrow = options.narrow and element.has_genes
        known = present.get(element.key)
        types = choose_types(element.key, [scans[i] for i in sorted(scans)], job.n_vars, narrow=narrow, present=known)
        if known is not None and known.original != types.original:
            warn(
                f"{element.key}: the type of batches changes from {known.original} to {types.original}, the common "
                f"type of the collection and the new cells"
            )
        found[element.key] = types if element.kind == "csr" else ElementTypes(types.stored, types.original, None)
    return found


def input_entries(
    job: Job,
    changed: Sequence[Changes],
    specs: Sequence[RunSpec],
    runs: Sequence[Run],
    options: Options,
    skipped: SkippedInputs,
) -> tuple[InputEntry, ...]:
    """Say of each input, in order, what became of it."""
    entries = []
    runs_of: list[list[Run]] = [[] for _ in job.sources]
    for spec, run in zip(specs, runs, strict=True):
        runs_of[spec.source].append(run)
    lost = job.genes.n_lost()
    for source, (n_vars, n_lost), of_source, of_names in zip(job.sources, lost, runs_of, changed, strict=True):
        parts = [run.elements["X"] for run in of_source]
        counts = [part.counts_lost for part in parts]
        entries.append(
            InputEntry(
                source.name,
                source.n_obs,
                n_vars,
                n_lost,
                sum(part.n_lost for part in parts),
                None if None in counts else sum(c for c in counts if c is not None),
                of_names.renamed_keys(),
                of_names.left_out + of_names.unkept,
                source.x if options.x_differs else None,
            )
        )
    for number, entry in skipped.entries(job.var.index):
        entries.insert(number, entry)
    return tuple(entries)
