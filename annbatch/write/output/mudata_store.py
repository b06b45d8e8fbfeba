"""How do AnnData stores of the same cells become one MuData store?

`assemble` moves them below ``mod/``, the obs that they share to its place, and writes what else a MuData store has:
var of all modalities, and the maps that say which rows and columns belong to which. It may be done again from any point
on. Nothing large is copied.

Format: https://mudata.readthedocs.io/stable/io/spec.html
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import zarr

from annbatch.errors import InputError
from annbatch.stores.manifest import FileEntry, StoreEntry
from annbatch.stores.modality import FOLDER
from annbatch.stores.stored_frame import as_text
from annbatch.write.array_layout import ArrayLayout
from annbatch.write.output.store_writer import frame_writer
from annbatch.write.output.workplace import seal

_SHARED = "obs"


def assemble(
    target: Path,
    joint: StoreEntry,
    joint_folder: Path,
    parts: Mapping[str, StoreEntry],
    folders: Mapping[str, Path],
    layout: ArrayLayout,
) -> StoreEntry:
    """Make the MuData store ``target``.

    Parameters
    ----------
    joint, joint_folder
        An AnnData store whose obs the modalities share.
    parts, folders
        By modality: its AnnData store.

    Returns
    -------
    StoreEntry
        What is in it, all files of the modalities included.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The 'future.infer_string' option is deprecated")
        root = zarr.open_group(
            target,
            mode="a",
            zarr_format=3,
            attributes={"encoding-type": "MuData", "encoding-version": "0.1.0", "axis": 0},
        )
        root.require_group(FOLDER).attrs["mod-order"] = list(parts)
        known: dict[str, FileEntry] = {}
        for name, entry in parts.items():
            _move(folders[name], target / FOLDER / name)
            known |= {f"{FOLDER}/{name}/{key}": file for key, file in entry.files.items()}
        _move(joint_folder / _SHARED, target / _SHARED)
        known |= {key: file for key, file in joint.files.items() if key.startswith(f"{_SHARED}/")}
        _check_names(root, target, list(parts))
        _write_rest(root, list(parts), joint.n_obs, layout)
    return StoreEntry(joint.name, joint.n_obs, None, seal(target, known))


def _move(source: Path, target: Path) -> None:
    if source.exists():
        source.rename(target)


def _check_names(root: Any, target: Path, names: list[str]) -> None:
    """Refuse stores whose rows are not the same cells: of one key, which is rare, cells come in the order of inputs."""
    joint = np.asarray(_index(root[_SHARED]))
    for name in names:
        if len(differs := np.flatnonzero(np.asarray(_index(root[f"{FOLDER}/{name}/obs"])) != joint)):
            raise InputError(
                f"{target.name}: row {differs[0]} must be the same cell in all modalities, but differs in {name!r}; "
                f"choose another seed"
            )


def _write_rest(root: Any, names: list[str], n_obs: int, layout: ArrayLayout) -> None:
    genes = {name: as_text(_index(root[f"{FOLDER}/{name}/var"])) for name in names}
    bounds = np.cumsum([0, *map(len, genes.values())])
    writing = frame_writer(layout)

    def write(key: str, value: Any, group: Any = root) -> None:
        ad.experimental.write_dispatched(group, key, value, callback=writing)

    write("var", pd.DataFrame(index=pd.Index(np.concatenate(list(genes.values())), dtype=object)))
    for key in ("obsm", "varm", "obsp", "varp", "uns", "obsmap", "varmap"):
        write(key, {})
    for name, start, stop in zip(names, bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        columns = np.zeros(int(bounds[-1]), np.uint32)
        columns[start:stop] = np.arange(1, stop - start + 1)
        # Counted from 1; 0 is none.
        write(name, np.arange(1, n_obs + 1, dtype=np.uint32), root["obsmap"])
        write(name, columns, root["varmap"])
        write(name, np.ones((n_obs, 1), bool), root["obsm"])
        write(name, (columns > 0)[:, None], root["varm"])


def _index(frame: Any) -> Any:
    return ad.io.read_elem(frame[frame.attrs["_index"]])
