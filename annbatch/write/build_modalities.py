"""How do inputs with several modalities become one collection, whose stores are MuData?

1. *Join* the cells of each input by name, and keep on disk which rows each modality has of them.
2. *Plan* a build of what the modalities share, names and obs, and one of each modality. All faults are found here.
3. *Write* them one after the other, each as a build writes AnnData stores. A row's place follows from the number of
   its joint cell, so that all come out in one order, in stores of equally many rows.
4. *Assemble* a MuData store of each number's AnnData stores, by moving them, and *commit*.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from annbatch import summary
from annbatch.errors import InputError
from annbatch.progress import tracked
from annbatch.shards.codecs import numcodecs_are_known
from annbatch.stores.collection import MANIFEST, Collection, digest_names, types_of
from annbatch.stores.manifest import InputEntry
from annbatch.stores.modality import ModalityEntry
from annbatch.warn import warn
from annbatch.write.build import Planned, check_output_or_unfinished, plan_rows, software, write_rows
from annbatch.write.inputs.agreed_names import warn_of_unkept
from annbatch.write.inputs.append_target import AppendTarget, extended
from annbatch.write.inputs.cell_join import CellRows, RowFile, join_cells
from annbatch.write.inputs.faults import Faults
from annbatch.write.inputs.joint_roots import BorrowedColumn, JointOrigin, JointRoot, ModalityOrigin, open_whole
from annbatch.write.inputs.modal_inputs import ModalInput
from annbatch.write.inputs.opening import Origin
from annbatch.write.inputs.text_file import TextFile
from annbatch.write.interruption import finish_before_raising
from annbatch.write.options import ModalOptions, Options, Resources
from annbatch.write.output.mudata_store import assemble
from annbatch.write.output.workplace import Mode, Workplace, claimed
from annbatch.write.shuffle.job import JointOrder

_JOINT = "joint"


@numcodecs_are_known()
def build_modalities(
    inputs: Sequence[ModalInput],
    output: Path,
    options: Options,
    modal: ModalOptions,
    resources: Resources,
    *,
    append: bool = False,
    overwrite: bool = False,
) -> Collection:
    """Write a new collection with modalities, or with ``append`` more stores for the one that is there."""
    mode: Mode = "append" if append else "create"
    if not append:
        check_output_or_unfinished(output, overwrite)
    arguments = (
        options.to_json()
        | modal.to_json()
        | {
            "memory_limit": resources.memory_bytes,
            "inputs": [[one.name, one.stamp()] for one in inputs],
            "software": software(),
        }
    )
    with claimed(output, mode, arguments, overwrite=overwrite) as place:
        if not place.finished:
            finish_before_raising(lambda checkpoint: _build(place, inputs, options, modal, resources, checkpoint))
    return Collection.open(output)


def _build(
    place: Workplace,
    inputs: Sequence[ModalInput],
    options: Options,
    modal: ModalOptions,
    resources: Resources,
    checkpoint: Callable[[], None],
) -> None:
    names = list(inputs[0].parts)
    modal.check(options, names)
    present = AppendTarget.check(place.output) if place.mode == "append" else None
    joined = _join(place.emptied("cells"), inputs, modal, options, resources, checkpoint)
    places = {name: _part(place, number) for number, name in enumerate([_JOINT, *names])}
    target = None if present is None else _joint_target(present)
    whole = plan_rows(places[_JOINT], joined.whole, modal.of_joint(options, names), resources, target, checkpoint)
    plans = {_JOINT: whole}
    for name in names:
        order = JointOrder(joined.rows[name].path, whole.job.table, whole.options.groupby)
        origins = [replace(origin, names=whole.job.table.text("names")) for origin in joined.parts[name]]
        target = None if present is None else AppendTarget.of(present.modality(name))
        plans[name] = plan_rows(
            places[name], origins, modal.of_modality(options, name), resources, target, checkpoint, order
        )
    found = {name: _written(places[name], plan, resources, checkpoint) for name, plan in plans.items()}
    stores = []
    for number, entry in enumerate(found[_JOINT].stores):
        checkpoint()
        parts = {name: one.stores[number] for name, one in found.items() if name != _JOINT}
        folders = {name: places[name].stores / entry.name for name in found}
        stores.append(assemble(place.stores / entry.name, entry, folders.pop(_JOINT), parts, folders, options.layout))
    modalities = {name: _modality(one, modal) for name, one in found.items() if name != _JOINT}
    collection = replace(
        found[_JOINT],
        path=place.stores,
        n_vars=sum(one.n_vars for one in modalities.values()),
        var_digest=digest_names(one.var_digest for one in modalities.values()),
        stores=tuple(stores),
        types=types_of(modalities),
        shuffled=options.shuffle,
        seed=options.seed if options.shuffle else None,
        inputs=tuple(_entry(number, found, joined, inputs) for number in range(len(inputs))),
        modalities=modalities,
    )
    place.commit(collection if present is None else _extended(present, collection))


@dataclass(frozen=True, slots=True, eq=False)
class _Joined:
    """The inputs with the rows of the joint cells."""

    whole: list[Origin]
    """Per input: what its modalities share."""
    parts: Mapping[str, list[ModalityOrigin]]
    """By modality: each input."""
    rows: Mapping[str, RowFile]
    """By modality: (n_obs,) the joint row of each row of its inputs."""
    lost: list[Mapping[str, int]]
    """Per input: cells of each modality that are not among the joint ones."""
    left_out: list[tuple[str, ...]]
    """Per input: what of MuData itself is not carried."""


def _join(
    directory: Path,
    inputs: Sequence[ModalInput],
    modal: ModalOptions,
    options: Options,
    resources: Resources,
    checkpoint: Callable[[], None],
) -> _Joined:
    modalities = list(inputs[0].parts)
    names = TextFile(directory / "names.text")
    rows = {name: RowFile(directory / f"joint{i}") for i, name in enumerate(modalities)}
    joined = _Joined([], {name: [] for name in modalities}, rows, [], [])
    faults, first = Faults(), 0
    for number, one in enumerate(tracked(inputs, "joining cells", "file", shown=resources.progress)):
        checkpoint()
        with faults.collecting(one.name):
            # Copies of files that cannot be read where they are stay for a build that goes on.
            copies = directory.parent / "inputs"
            local = (part.local(copies / f"{number}-{i}", checkpoint) for i, part in enumerate(one.parts.values()))
            one = replace(one, parts=dict(zip(one.parts, local, strict=True)))
            of_names = {}
            for name, part in one.parts.items():
                with part.open() as root:
                    of_names[name] = root.obs_names()
            joint, found = join_cells(of_names, modal.join_obs, one.name)
            columns, left_out = _joint_columns(directory / f"{number}", one, joint, found, options)
            names.append(joint.to_numpy(object))
            joined.whole.append(
                JointOrigin(one.name, "", None, columns=columns, first=first, n_obs=len(joint), names=names)
            )
            for i, (name, cells) in enumerate(found.items()):
                part, own = one.parts[name], RowFile(directory / f"{number}" / f"own{i}")
                is_whole = np.array_equal(cells.own, np.arange(len(of_names[name])))
                if not is_whole:
                    own.save(cells.own)
                rows[name].append(first + cells.joint)
                origin = ModalityOrigin(
                    part.name,
                    part.given,
                    part.load,
                    part.address,
                    part.group,
                    inner=part,
                    n_own=len(of_names[name]),
                    own=None if is_whole else own,
                    joint=rows[name],
                    first=first,
                    n_obs=len(joint),
                    marked=modal.join_obs == "outer",
                    directory=directory / f"{number}" / f"starts{i}",
                )
                joined.parts[name].append(origin)
            joined.lost.append({name: cells.n_lost for name, cells in found.items() if cells.n_lost})
            joined.left_out.append(left_out)
            first += len(joint)
    faults.raise_any()
    _warn_of_lost(inputs, joined, strict=options.strict)
    return joined


def _joint_columns(
    directory: Path,
    one: ModalInput,
    joint: pd.Index[Any],
    found: Mapping[str, CellRows],
    options: Options,
) -> tuple[tuple[tuple[str, BorrowedColumn], ...], tuple[str, ...]]:
    """Find the obs columns of what modalities share: those of MuData itself, and those that cells are grouped by."""
    directory.mkdir()
    columns: dict[str, BorrowedColumn] = {}
    left_out: tuple[str, ...] = ()
    if one.whole is not None:
        rows = RowFile(directory / "whole")
        with open_whole(one.whole) as root:
            index = pd.Index(root.obs_names(), dtype=object)
            if not index.is_unique:
                twice = index[index.duplicated()][0]
                raise InputError(f"{one.name}: obs names of MuData must be unique, got {twice!r} more than once")
            rows.save(index.get_indexer(joint))
            names = root.column_names
            obsm = root.names("obsm")
        columns = {str(name): BorrowedColumn(one.whole, name, rows, True, len(index)) for name in names}
        # Those that are called like a modality say which cells it has.
        left_out = tuple(f"obsm/{name}" for name in obsm if name not in one.all_modalities)
    for number, name in enumerate(options.groupby):
        modality, _, own_name = name.partition(":")
        if name in columns or modality not in found:
            continue
        rows, cells = RowFile(directory / f"group{number}"), found[modality]
        of_joint = np.empty(len(joint), np.int64)
        of_joint[cells.joint] = cells.own
        rows.save(of_joint)
        with one.parts[modality].open() as part:
            if own_name in part.column_names:
                n_own = len(part.obs_names())
                columns[name] = BorrowedColumn(one.parts[modality], own_name, rows, False, n_own)
    return tuple(columns.items()), left_out


def _warn_of_lost(inputs: Sequence[ModalInput], joined: _Joined, *, strict: bool) -> None:
    if any(joined.lost):
        number = next(i for i, lost in enumerate(joined.lost) if lost)
        some = ", ".join(f"{n:,} of {name!r}" for name, n in joined.lost[number].items())
        more = sum(map(bool, joined.lost)) - 1
        others = f", and cells of {more:,} more inputs," if more else ""
        said = f"{some} in {inputs[number].name}{others} are not in every modality"
        remedy = "join_obs='outer' keeps them"
        if strict:
            raise InputError(f"no cell may be left out (strict=True), but cells {said}; {remedy}")
        warn(f"cells are left out: {said}; {remedy}")
    if left_out := sorted({key for keys in joined.left_out for key in keys}):
        said = f"{summary.short(left_out)} of MuData itself, which belong to no modality"
        if strict:
            raise InputError(f"no element may be left out (strict=True), but there are {said}")
        warn(f"elements are left out: {said}")
    unkept = {key for one in inputs for key in one.unkept}
    warn_of_unkept(unkept, " of MuData itself")


def _part(place: Workplace, number: int) -> Workplace:
    """Give a place of its own, within, to one of the builds."""
    part = replace(place, path=place.temporary / "parts" / f"{number}")
    part.stores.mkdir(parents=True, exist_ok=True)
    part.temporary.mkdir(exist_ok=True)
    shutil.rmtree(part.temporary / "partial", ignore_errors=True)
    return part


def _written(place: Workplace, plan: Planned, resources: Resources, checkpoint: Callable[[], None]) -> Collection:
    """Write the stores of one of the builds, unless they were when the build was interrupted."""
    if (place.stores / MANIFEST).exists():
        return Collection.from_json((place.stores / MANIFEST).read_text(encoding="utf-8"), place.stores)
    collection = write_rows(place, plan, resources, checkpoint)
    collection.save(place.stores)
    # The joint obs says where the rows of the others go.
    for name in ("runs", "by_rows"):
        shutil.rmtree(place.temporary / name, ignore_errors=True)
    return collection


def _modality(found: Collection, modal: ModalOptions) -> ModalityEntry:
    nnz = tuple(store.nnz for store in found.stores)
    is_masked = modal.join_obs == "outer"
    return ModalityEntry(found.n_vars, found.var_digest, found.obs_columns, found.types, nnz, is_masked)


def _entry(number: int, found: Mapping[str, Collection], joined: _Joined, inputs: Sequence[ModalInput]) -> InputEntry:
    """Say what became of an input: of all its modalities together."""
    joint = found[_JOINT].inputs[number]
    parts = {name: one.inputs[number] for name, one in found.items() if name != _JOINT}
    counts = [part.counts_lost for part in parts.values()]
    renamed = {f"{name}:{own}": f"{name}:{new}" for name, part in parts.items() for own, new in part.renamed.items()}
    x = [f"{name}:{part.x}" for name, part in parts.items() if part.x is not None]
    return InputEntry(
        name=inputs[number].name,
        n_obs=joint.n_obs,
        n_vars=sum(part.n_vars for part in parts.values()),
        genes_lost=sum(part.genes_lost for part in parts.values()),
        elements_lost=sum(part.elements_lost for part in parts.values()),
        counts_lost=None if None in counts else sum(n for n in counts if n is not None),
        renamed={**joint.renamed, **renamed},
        left_out=(
            *joint.left_out,
            *joined.left_out[number],
            *inputs[number].unkept,
            *(f"{name}:{key}" for name, part in parts.items() for key in part.left_out),
        ),
        x=", ".join(x) or None,
        cells_lost=joined.lost[number],
    )


def _joint_target(present: Collection) -> AppendTarget:
    """Say what the joint obs of new cells must fit."""
    found = AppendTarget.of(replace(present, types={}))
    return replace(found, var=JointRoot.no_genes(), obsm={}, types={})


def _extended(old: Collection, added: Collection) -> Collection:
    """Give the manifest of a collection with the stores of ``added``."""
    modalities = {}
    for name, one in old.modalities.items():
        other = added.modalities[name]
        types = {key: found.merge(other.types[key]) for key, found in one.types.items()}
        modalities[name] = replace(one, types=types, nnz=one.nnz + other.nnz)
    return replace(extended(old, added), modalities=modalities, types=types_of(modalities))
