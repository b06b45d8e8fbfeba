"""What is a collection of stores, and is this one whole?

1. A collection is a directory of AnnData stores with a manifest, ``collection.json``, that was written last: no
   manifest, no collection.
2. `Collection` is that manifest as a value; `to_json` and `from_json` are its two directions, and the second checks
   every field.
3. `Collection.open` also takes a directory that scverse annbatch preshuffled: such a store has no manifest, so what is
   known is read from it.
4. `Collection.verify` compares every file with its recorded size and checksum.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from dataclasses import field as field_of
from pathlib import Path
from typing import Any

import pandas as pd
import zarr

from annbatch import summary
from annbatch.check import distinct_names
from annbatch.errors import CorruptStoreError, InputError, StoreError, naming
from annbatch.remote.disk_cache import DiskCache
from annbatch.stores.array_opening import open_each
from annbatch.stores.location import Folder, LocalFolder, RemoteFolder, locate
from annbatch.stores.manifest import (
    ElementTypes,
    FileEntry,
    InputEntry,
    StoreEntry,
    count,
    element_types,
    field,
    hex_digest,
    input_entry,
    store_entry,
    store_number,
    write_whole,
)
from annbatch.stores.modality import FOLDER, ModalityEntry, fault_of_name, modality_entry
from annbatch.stores.obs_access import Obs, joint_obs_of, obs_of
from annbatch.stores.obs_rows import read_obs
from annbatch.stores.preshuffled import PRESHUFFLED, find_stores, is_preshuffled
from annbatch.stores.root_group import COLLECTION, check_root_group
from annbatch.summary import Summary

MANIFEST = "collection.json"
FORMAT = COLLECTION
FORMAT_VERSION = 1
VERSION_WITH_MODALITIES = 2
"""``format_version`` of a collection with modalities, which programs that know none must not read."""


@dataclass(frozen=True, slots=True, repr=False)
class Collection(Summary):
    """A directory of AnnData stores that together hold one table of cells.

    Examples
    --------
    >>> from annbatch import Collection
    >>> collection = Collection.open("collection")
    >>> collection.n_obs, collection.n_vars, collection.store_paths[0].name
    (120, 6, 'chunk_0.zarr')
    """

    path: Path | RemoteFolder
    """The directory, or the place in an object store or a zarr store."""
    format: str
    """Layout of the collection, ``"annbatch-dlpack-collection"``, or ``"annbatch-preshuffled"`` if scverse annbatch
    wrote it."""
    n_obs: int
    """Number of rows of all stores together."""
    n_vars: int
    """Number of columns of every store."""
    var_digest: str
    """SHA-256, in hex, of the var names, each as UTF-8 and followed by one zero byte."""
    stores: tuple[StoreEntry, ...]
    """The stores, in numeric order."""
    types: Mapping[str, ElementTypes]
    """Types of ``"X"`` and ``"layers/{name}"``; empty if there is no manifest."""
    obs_columns: tuple[str, ...]
    """Names of the obs columns."""
    shuffled: bool
    """Whether the rows were shuffled when they were written."""
    seed: int | None
    """Seed of that shuffle; None if the rows were not shuffled or the seed is unknown."""
    software: str
    """Name and version of the program that wrote the collection."""
    grouped_by: str | tuple[str, ...] | None = None
    """obs column by which rows are grouped. Its categories follow one another in their order through the whole
    collection, and rows without a category come last. Several columns give tuples, sorted by the first column, then by
    the second, and so on. None if rows are not grouped."""
    inputs: tuple[InputEntry, ...] = ()
    """The inputs of the collection, in order; empty if they are unknown."""
    modalities: Mapping[str, ModalityEntry] = field_of(default_factory=dict)
    """Modalities by name, all with the same cells as rows; empty if the stores are AnnData stores. With modalities,
    ``n_vars`` is the sum of theirs, and ``types`` has keys such as ``"rna:X"``."""

    @classmethod
    def open(cls, path: Any) -> Collection:
        """Open a collection that annbatch or scverse annbatch wrote.

        Parameters
        ----------
        path
            A directory; its URL in an object store (``s3://``, ``gs://``, ``az://``, ``https://``); or an obstore
            store, or a zarr store, whose root it is. A `Collection` is returned as it is.

        Raises
        ------
        StoreError
            If there is no complete collection at ``path``, or it cannot be read.
        ImportError
            If obstore is needed to read it, and is not installed.
        """
        if isinstance(path, cls):
            return path
        return cls.at(locate(path))

    @classmethod
    def at(cls, folder: Folder) -> Collection:
        """Open the collection in a folder, as `open` does; raises StoreError."""
        if isinstance(folder, LocalFolder) and not folder.path.is_dir():
            raise StoreError(f"{folder}: no such directory; a collection is a directory")
        with naming(f"{folder}/{MANIFEST}"):
            try:
                text = folder.read(MANIFEST).decode()
            except FileNotFoundError:
                pass
            else:
                return cls.from_json(text, folder.path if isinstance(folder, LocalFolder) else folder)
        if is_preshuffled(folder):
            return _open_preshuffled(folder)
        raise StoreError(
            f"{folder}: not a collection: it has no {MANIFEST} (written last, so an unfinished build has none), "
            f"and the root group's encoding-type is not {PRESHUFFLED!r}"
        )

    def through(self, open_cache: Callable[[], DiskCache | None]) -> Collection:
        """Return the same collection, read through a cache if it is in an object store."""
        return self if isinstance(self.path, Path) else replace(self, path=self.path.through(open_cache))

    def _facts(self) -> dict[str, str]:
        return {
            "path": str(self.path),
            "n_obs": f"{self.n_obs:,}",
            "n_vars": f"{self.n_vars:,}",
            "stores": f"{len(self.stores):,}",
            "elements": summary.names(self.types),
            "obs_columns": summary.names(self.obs_columns),
            "shuffled": str(self.shuffled),
            "grouped_by": str(self.grouped_by),
        } | ({"modalities": summary.names(self.modalities)} if self.modalities else {})

    def modality(self, name: str) -> Collection:
        """Return one modality as a collection of AnnData stores, the folders ``mod/{name}`` of the stores.

        Raises
        ------
        InputError
            If there is no modality of this name.
        """
        if name not in self.modalities:
            raise InputError(f"{self.path}: {name!r} must be one of the modalities, {summary.names(self.modalities)}")
        found, prefix = self.modalities[name], f"{FOLDER}/{name}/"
        stores = [
            StoreEntry(
                f"{store.name}/{FOLDER}/{name}",
                store.n_obs,
                nnz,
                {key.removeprefix(prefix): file for key, file in store.files.items() if key.startswith(prefix)},
            )
            for store, nnz in zip(self.stores, found.nnz, strict=True)
        ]
        return replace(
            self,
            n_vars=found.n_vars,
            var_digest=found.var_digest,
            stores=tuple(stores),
            types=found.types,
            obs_columns=found.obs_columns,
            modalities={},
        )

    @property
    def directory(self) -> Path:
        """The local directory of the collection.

        Raises
        ------
        StoreError
            If the collection is not in a local directory.
        """
        if not isinstance(self.path, Path):
            raise StoreError(f"{self.path}: must be in a local directory; copy the collection to a local disk")
        return self.path

    @property
    def store_paths(self) -> tuple[Path, ...]:
        """Directories of the stores, in numeric order.

        Raises
        ------
        StoreError
            If the collection is not in a local directory.
        """
        return tuple(self.directory / store.name for store in self.stores)

    def group(self, store: StoreEntry) -> zarr.Group:
        """Open one of the stores.

        Raises
        ------
        StoreError
            If it cannot be read.
        """
        return self._folder.group(store.name)

    def obs(self, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """Read obs without the counts.

        Columns are read a slice of rows at a time; only the requested columns are read.

        Parameters
        ----------
        columns
            Names of obs columns. None means all that the stores share, with a warning that names the others; ``[]``
            means only the names of the cells.

        Returns
        -------
        DataFrame
            (n_obs, n_columns), indexed by the names of the cells, in the order of the stores: row i has the global row
            number i in ``batch["index"]`` of a loader of this collection. Categories are those of all stores.

        Raises
        ------
        InputError
            If a column is missing, or of different kinds in different stores, or a store has no names.
        StoreError
            If a store cannot be read.

        Examples
        --------
        >>> from annbatch import Collection
        >>> Collection.open("collection").obs(["cell_type", "donor"]).shape
        (120, 2)
        """
        chosen = None if columns is None else distinct_names("columns", columns)
        names = list(self.modalities)

        def obs_of_store(store: StoreEntry) -> Obs:
            place = self.group(store), f"{self.path}/{store.name}", self.recorded(store)
            return joint_obs_of(*place, names, names) if names else obs_of(*place)

        tables = open_each(
            obs_of_store,
            self.stores,
            is_remote=not isinstance(self.path, Path),
        )
        return read_obs(tables, [store.n_obs for store in self.stores], chosen)

    def recorded(self, store: StoreEntry) -> dict[str, int]:
        """Return the CRC-32C checksums of a store's files, by their keys in the zarr store that `group` opens."""
        # A local one begins at the AnnData store, another at the collection.
        prefix = "" if isinstance(self.path, Path) else f"{store.name}/"
        return {f"{prefix}{key}": file.crc32c for key, file in store.files.items()}

    def digest(self) -> str:
        """Return a hash of the contents of the stores, in hex; it does not depend on where the collection is."""
        state = hashlib.blake2b(f"{self.n_vars} {self.var_digest}".encode(), digest_size=16)
        for store in self.stores:
            state.update(f"\n{store.name} {store.n_obs} {store.nnz}".encode())
            for name, file in store.files.items():
                state.update(f"\n{name} {file.nbytes} {file.crc32c}".encode())
        return state.hexdigest()

    def to_json(self) -> str:
        """Return the text of the manifest, which does not hold the collection's own path."""
        modalities = {name: modality.to_json() for name, modality in self.modalities.items()}
        return json.dumps(
            {
                "format": self.format,
                "format_version": VERSION_WITH_MODALITIES if modalities else FORMAT_VERSION,
                "software": self.software,
                "n_obs": self.n_obs,
                "n_vars": self.n_vars,
                "var_digest": self.var_digest,
                "shuffled": self.shuffled,
                "seed": self.seed,
                "obs_columns": list(self.obs_columns),
                **({"modalities": modalities} if modalities else {"types": _types_to_json(self.types)}),
                "grouped_by": self.grouped_by,
                "inputs": [entry.to_json() for entry in self.inputs],
                "stores": [store.to_json() for store in self.stores],
            },
            indent=1,
        )

    @classmethod
    def from_json(cls, text: str, path: str | os.PathLike[str] | RemoteFolder) -> Collection:
        """Read the text of a manifest.

        Parameters
        ----------
        text
            The manifest, JSON.
        path
            Where the collection is.

        Raises
        ------
        StoreError
            If the text is not a manifest that this version can read. The error names the field, the rule and
            the value.
        """
        path = path if isinstance(path, RemoteFolder) else Path(path)
        where = f"{path}/{MANIFEST}"
        try:
            root = json.loads(text)
        except (ValueError, RecursionError) as e:
            raise StoreError(f"{where}: not JSON: {e}") from e
        if not isinstance(root, dict) or root.get("format") != FORMAT:
            found = root.get("format") if isinstance(root, dict) else root
            raise StoreError(f"{where}: format must be {FORMAT!r}, got {found!r}")
        version = field(root, "format_version", int, where)
        if version not in (FORMAT_VERSION, VERSION_WITH_MODALITIES):
            remedy = ""
            if version > VERSION_WITH_MODALITIES:
                remedy = f"; {root.get('software')!r} wrote it: upgrade annbatch-dlpack to that version or a newer one"
            raise StoreError(
                f"{where}: format_version must be {FORMAT_VERSION}, or {VERSION_WITH_MODALITIES} with modalities, for "
                f"this version, got {version}{remedy}"
            )
        stores = sorted(
            (store_entry(entry, f"{where}: stores[{i}]") for i, entry in enumerate(field(root, "stores", list, where))),
            key=lambda store: store_number(store.name),
        )
        if len({store.name for store in stores}) != len(stores):
            raise StoreError(f"{where}: store names must differ, got {[store.name for store in stores]}")
        n_obs = count(root, "n_obs", where)
        if n_obs != sum(store.n_obs for store in stores):
            raise StoreError(f"{where}: n_obs must be the stores' sum {sum(s.n_obs for s in stores)}, got {n_obs}")
        obs_columns = field(root, "obs_columns", list, where)
        if not all(isinstance(name, str) for name in obs_columns):
            raise StoreError(f"{where}: obs_columns must be strings, got {obs_columns!r}")
        n_vars = count(root, "n_vars", where)
        modalities = _modalities(root, len(stores), where) if version == VERSION_WITH_MODALITIES else {}
        if modalities and n_vars != (total := sum(one.n_vars for one in modalities.values())):
            raise StoreError(f"{where}: n_vars must be the sum of the modalities, {total}, got {n_vars}")
        return cls(
            path=path,
            format=FORMAT,
            n_obs=n_obs,
            n_vars=n_vars,
            var_digest=hex_digest(root, "var_digest", where),
            stores=tuple(stores),
            types=types_of(modalities)
            if modalities
            else {
                key: element_types(entry, f"{where}: types[{key!r}]")
                for key, entry in field(root, "types", dict, where).items()
            },
            obs_columns=tuple(obs_columns),
            shuffled=field(root, "shuffled", bool, where),
            seed=None if root.get("seed") is None else count(root, "seed", where, below=2**64),
            software=field(root, "software", str, where),
            grouped_by=_grouped_by(root, where),
            inputs=tuple(
                input_entry(entry, f"{where}: inputs[{i}]")
                # Absent from collections of before this was recorded.
                for i, entry in enumerate(field(root, "inputs", list, where) if "inputs" in root else [])
            ),
            modalities=modalities,
        )

    def save(self, directory: Path) -> None:
        """Write the manifest into a directory, in full or not at all."""
        write_whole(directory / MANIFEST, self.to_json())

    def check_sizes(self) -> None:
        """Compare the size of every recorded file, without reading any.

        Raises
        ------
        CorruptStoreError
            If a file is missing, or does not have its recorded size. The error names the file.
        """
        recorded = self._files()
        try:
            sizes = self._folder.sizes((store.name for store in self.stores), recorded) if recorded else {}
        except OSError as e:
            raise CorruptStoreError(f"{self.path}: cannot be read: {e}") from e
        for key, wanted in recorded.items():
            nbytes = sizes.get(key)
            if nbytes is None:
                raise CorruptStoreError(f"{self.path}/{key}: cannot be read: it is missing")
            if nbytes != wanted.nbytes:
                raise CorruptStoreError(f"{self.path}/{key}: must have {wanted.nbytes} bytes, as written, got {nbytes}")

    def verify(self) -> None:
        """Compare the size and the checksum of every recorded file, reading all bytes once.

        Raises
        ------
        CorruptStoreError
            If a file is missing, or differs from what was written, or the ``zarr.json`` beside the manifest is not that
            of a group with these stores. The error names the file.
        StoreError
            If the object store of the collection cannot be read.
        """
        verify_root_group(self)
        verify_files(self)

    @property
    def _folder(self) -> Folder:
        return LocalFolder(self.path) if isinstance(self.path, Path) else self.path

    def _files(self) -> dict[str, FileEntry]:
        return {f"{store.name}/{name}": file for store in self.stores for name, file in store.files.items()}


def verify_root_group(collection: Collection) -> None:
    """Check the ``zarr.json`` beside the manifest, if there is one; raises as `Collection.verify` does."""
    if collection.format == FORMAT:
        check_root_group(collection._folder, [store.name.partition("/")[0] for store in collection.stores])


def verify_files(collection: Collection) -> None:
    """Compare the files of the stores with the manifest; raises as `Collection.verify` does."""
    for key, wanted in collection._files().items():
        try:
            found = collection._folder.checksum(key)
        except OSError as e:
            raise CorruptStoreError(f"{collection.path}/{key}: cannot be read: {e}") from e
        if found != wanted:
            raise CorruptStoreError(
                f"{collection.path}/{key}: must have {wanted.nbytes} bytes of crc32c {wanted.crc32c:#010x}, as "
                f"written, got {found.nbytes} bytes of {found.crc32c:#010x}"
            )


def types_of(modalities: Mapping[str, ModalityEntry]) -> dict[str, ElementTypes]:
    """Give the types of all modalities, by modality and element: ``"rna:X"``."""
    return {f"{name}:{key}": types for name, one in modalities.items() for key, types in one.types.items()}


def _types_to_json(types: Mapping[str, ElementTypes]) -> dict[str, Any]:
    return {key: found.to_json() for key, found in types.items()}


def _modalities(root: Mapping[str, Any], n_stores: int, where: str) -> dict[str, ModalityEntry]:
    entries = field(root, "modalities", dict, where)
    for name in entries:
        if fault := fault_of_name(name):
            raise StoreError(f"{where}: the name of a modality {fault}, got {name!r}")
    if not entries:
        raise StoreError(f"{where}: modalities must name at least one, got none")
    return {name: modality_entry(entry, n_stores, f"{where}: modalities[{name!r}]") for name, entry in entries.items()}


def digest_names(names: Iterable[str]) -> str:
    """SHA-256, in hex, of ``names`` in their order: each as UTF-8, followed by one zero byte."""
    digest = hashlib.sha256()
    for name in names:
        digest.update(str(name).encode() + b"\0")
    return digest.hexdigest()


def _grouped_by(root: Mapping[str, Any], where: str) -> str | tuple[str, ...] | None:
    """Read the column or columns by which rows are grouped."""
    found = root.get("grouped_by")
    if isinstance(found, list) and found and all(isinstance(name, str) for name in found):
        return tuple(found)
    return None if found is None else field(root, "grouped_by", str, where)


def _open_preshuffled(folder: Folder) -> Collection:
    found = find_stores(folder)
    return Collection(
        path=folder.path if isinstance(folder, LocalFolder) else folder,
        format=PRESHUFFLED,
        n_obs=sum(store.n_obs for store in found.stores),
        n_vars=found.n_vars,
        var_digest=digest_names(found.var_names),
        stores=found.stores,
        types={},
        obs_columns=found.obs_columns,
        shuffled=True,
        seed=None,
        software="annbatch (scverse)",
    )
