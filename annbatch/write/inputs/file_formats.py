"""What is in a file or a folder, and who reads it?

1. `named_part` tells a file from what is named in it: ``cells.h5mu/rna`` is the modality ``rna`` of ``cells.h5mu``.
2. `open_path` looks at what is there, whatever its name ends with, and gives what reads it. Files and zarr groups of
   AnnData are read by `annbatch.write.inputs.stored_input`, so is a modality of MuData; other formats have a module
   each.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any
from zipfile import ZipFile, is_zipfile

import h5py
import zarr
from zarr.storage import ZipStore

from annbatch import summary
from annbatch.errors import InputError, MissingInputError, StoreError
from annbatch.stores.hdf5_filters import ensure_readable
from annbatch.stores.hdf5_links import files_behind
from annbatch.stores.stored_frame import attribute
from annbatch.write.inputs import loom_file, tenx_file
from annbatch.write.inputs.mtx_files import find_mtx, mtx_root
from annbatch.write.inputs.opened_input import Root
from annbatch.write.inputs.stored_input import StoredInput

_OF_A_STORE = ("zarr.json", ".zgroup", ".zmetadata")
_OFTEN_IN_FOLDERS = ("*.h5ad", "*.zarr", "*.h5", "*.h5mu", "*.loom", "*/matrix.mtx*", "*/*.h5ad")


def named_part(path: str) -> tuple[str, str | None]:
    """Split a path that goes on inside a file into the file's own and the rest; None if it ends at a file or folder."""
    if not Path(path).exists():
        for parent in Path(path).parents:
            if parent.is_file():
                return str(parent), Path(path).relative_to(parent).as_posix()
    return path, None


@contextmanager
def open_path(path: str, where: str) -> Iterator[Root]:
    """Open a file or a folder, or a part of a file.

    Parameters
    ----------
    where
        What messages call it.

    Raises
    ------
    MissingInputError
        If nothing is there.
    InputError
        If it is of no known format, or it is unknown which part of it is meant.
    """
    path, part = named_part(path)
    if not Path(path).exists():
        raise MissingInputError(f"{where}: no such file or directory")
    if not _is_store(Path(path)) and (files := find_mtx(Path(path), where)) is not None:
        yield mtx_root(files, where)
    elif Path(path).is_dir():
        _check_store(Path(path), where)
        yield _of_anndata(zarr.open_group(path, mode="r"), where, None)
    elif h5py.is_hdf5(path):
        ensure_readable(path, Path(path).stat().st_mtime_ns)
        with h5py.File(path, mode="r") as file:
            yield _of_hdf5(file, where, part)
    elif is_zipfile(path):
        root = _root_of_zip(path, where)
        with closing(ZipStore(path, mode="r")) as store:
            yield _of_anndata(zarr.open_group(store, path=root, mode="r"), where, part)
    else:
        raise InputError(
            f"{where}: must be an AnnData file, either .h5ad (HDF5) or a .zarr directory. "
            f"Pass load= to read other files"
        )


def files_of(path: str) -> list[Path]:
    """Name the files that an input is made of, as far as they are there."""
    place = Path(named_part(path)[0])
    with suppress(InputError):
        if not _is_store(place) and (found := find_mtx(place, path)) is not None:
            return [found.matrix, found.features, found.barcodes]
    if place.is_dir():
        return sorted(p for p in place.rglob("*") if p.is_file())
    if not place.exists():
        return []
    others: list[Path] = []
    # Whoever opens the file says what is wrong with it.
    with suppress(OSError, StoreError), h5py.File(place, mode="r") as file:
        others = [other for other in files_behind(file) if other != place.absolute()]
    return [place, *others]


def modalities(group: Any) -> list[str]:
    """Name the modalities of MuData in an HDF5 file or a zarr group, in their order; none if it is something else."""
    if attribute(group, "encoding-type") != "MuData" and ("mod" not in group or "X" in group):
        return []
    there = list(group["mod"])
    order = [str(name) for name in attribute(group["mod"], "mod-order", ())]
    return [name for name in order if name in there] + [name for name in there if name not in order]


def _of_hdf5(file: h5py.File, where: str, part: str | None) -> Root:
    if tenx_file.is_v3(file):
        return tenx_file.v3_root(file, where, part)
    if tenx_file.genomes(file):
        return tenx_file.v2_root(file, where, part)
    if loom_file.is_loom(file):
        return loom_file.loom_root(file, where, part)
    return _of_anndata(file, where, part)


def _of_anndata(group: Any, where: str, part: str | None) -> StoredInput:
    """Read AnnData, or one modality of MuData."""
    names = modalities(group)
    if not names:
        if part is not None:
            raise InputError(f"{where}: the path must not continue with {part!r}; only MuData files have modalities")
        return StoredInput(group, where)
    if part is None and len(names) > 1:
        example = f"…/mod/{names[0]}"
        raise InputError(f"{where}: must be one modality, got MuData with {names}; add one to the path: {example}")
    name = names[0] if part is None else part.removeprefix("mod/")
    if name not in names:
        raise InputError(f"{where}: must name a modality of the file, got {name!r}; it has {names}")
    return StoredInput(group["mod"][name], where)


def _root_of_zip(path: str, where: str) -> str:
    """Say where in a zip file the store begins: at the root, or in the only folder, if the folder was packed."""
    with ZipFile(path) as file:
        names = [PurePosixPath(name) for name in file.namelist() if not name.startswith("__MACOSX/")]
    roots = {str(name.parent) for name in names if name.name in _OF_A_STORE and len(name.parts) <= 2}
    tops = {name.parts[0] for name in names}
    root = "." if "." in roots else next(iter(tops), "")
    if root not in roots or (root != "." and len(tops) > 1):
        raise InputError(f"{where}: must hold a zarr store, got a zip file with {summary.short(sorted(tops))}")
    return "" if root == "." else root


def _is_store(folder: Path) -> bool:
    return any((folder / name).exists() for name in _OF_A_STORE)


def _check_store(folder: Path, where: str) -> None:
    """Refuse a folder that is no zarr store."""
    if _is_store(folder):
        return
    held = next((kind for kind in _OFTEN_IN_FOLDERS if next(folder.glob(kind), None)), None)
    remedy = "it holds neither" if held is None else f"pass its contents: {folder}/{held}"
    rule = "must be an AnnData file or a .zarr directory"
    raise InputError(f"{where}: {rule}, got a folder that is not a store; {remedy}")
