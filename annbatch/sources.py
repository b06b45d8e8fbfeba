"""Which stores does a loader read, and where do they come from?

1. `Sources.with_anndatas`, `Sources.with_h5ads` and `Sources.with_collection` open what a user passes, and give the
   sources with it.
2. `Sources.reopened` opens all of it once more, for other elements or through another cache.

All calls must agree on the labels, and on the modalities.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import anndata as ad

from annbatch.check import distinct_names
from annbatch.errors import InputError
from annbatch.remote.disk_cache import DiskCache
from annbatch.stores.anndata_store import Store, Wanted, open_anndata, open_stores
from annbatch.stores.collection import Collection
from annbatch.stores.file_index import FileIndex
from annbatch.stores.h5ad_file import h5ad_paths
from annbatch.stores.joint_store import mask_column, open_joint_stores
from annbatch.stores.location import locate
from annbatch.stores.modality import check_prefixed, own_names
from annbatch.stores.obs_access import check_asked
from annbatch.stores.parallel_opening import open_h5ads


@dataclass(frozen=True, slots=True)
class Opening:
    """What is opened of every source, and how."""

    elements: tuple[str, ...]
    """``"X"``, ``"layers/…"``, ``"obsm/…"``."""
    cache: Callable[[], DiskCache | None]
    """Opens the cache for what lies in object stores."""
    index: FileIndex | None = None
    """What was read of ``.h5ad`` files before."""
    modalities: tuple[str, ...] | None = None
    """Which modalities, where there are some; None means all. Elements then are ``"layers/rna:…"`` and the like."""

    def of_modality(self, name: str) -> tuple[str, ...]:
        """Give the elements of one modality, by their own names."""
        parts = (element.partition("/") for element in self.elements)
        return ("X", *(f"{part}/{own}" for part, _, key in parts for own in own_names([key], name)))


@dataclass(frozen=True, slots=True, eq=False)
class ModalityStores:
    """The stores of one modality."""

    stores: tuple[Store, ...]
    mask: str | None
    """The label column that says which rows have it; None if all have."""


@dataclass(frozen=True, slots=True, eq=False)
class Sources:
    """The stores of a loader, in the order in which their rows are numbered."""

    stores: tuple[Store, ...] = ()
    labels: tuple[str, ...] | None = None
    """The obs columns asked for; None means all."""
    given: tuple[ad.AnnData | Collection | Path | None, ...] = ()
    """What the stores were opened from, ``.h5ad`` files by their paths; None if that was in another process."""
    n_anndatas: int = 0
    """How many AnnData objects there are among it."""
    digests: tuple[str, ...] = ()
    """What tells each collection from others."""
    modalities: Mapping[str, ModalityStores] = field(default_factory=dict)
    """Where the stores share modalities: the matrices of each."""

    def with_anndatas(self, adatas: Sequence[ad.AnnData], labels: Sequence[str] | None, opening: Opening) -> Sources:
        """Open AnnData objects; raises as `annbatch.Loader.add_anndatas` does."""
        adatas = list(adatas)
        if not adatas:
            raise InputError("adatas must hold at least one AnnData, got none")
        for i, adata in enumerate(adatas):
            if not isinstance(adata, ad.AnnData):
                raise InputError(f"adatas[{i}] must be an AnnData, got {type(adata).__name__}")
        self._check_modalities((), opening)
        chosen = self._same_labels(labels)
        wanted, cache = Wanted(chosen, opening.elements), opening.cache()
        stores = [open_anndata(adata, wanted, f"adatas[{i}]", cache) for i, adata in enumerate(adatas, self.n_anndatas)]
        return replace(
            self,
            stores=self._with_stores(stores, chosen),
            labels=chosen,
            given=(*self.given, *adatas),
            n_anndatas=self.n_anndatas + len(adatas),
        )

    def with_h5ads(self, paths: Any, labels: Sequence[str] | None, opening: Opening) -> Sources:
        """Open ``.h5ad`` files; raises as `annbatch.Loader.use_h5ad` does."""
        files = h5ad_paths(paths)
        self._check_modalities((), opening)
        chosen = self._same_labels(labels)
        wanted = Wanted(chosen, opening.elements)
        stores = open_h5ads(files, wanted, opening.index)
        return replace(self, stores=self._with_stores(stores, chosen), labels=chosen, given=(*self.given, *files))

    def with_collection(self, path: Any, labels: Sequence[str] | None, opening: Opening) -> Sources:
        """Open a collection; raises as `annbatch.Loader.use_collection` does."""
        if isinstance(path, Collection):
            collection = path.through(opening.cache)
        else:
            collection = Collection.at(locate(path).through(opening.cache))
        collection.check_sizes()
        modalities = self._check_modalities(tuple(collection.modalities), opening)
        chosen = self._same_labels(labels)
        parts = {name: self._with_modality(collection, name, opening) for name in modalities}
        if modalities:
            stores = open_joint_stores(collection, chosen, modalities)
        else:
            stores = open_stores(collection, Wanted(chosen, opening.elements))
        return replace(
            self,
            stores=self._with_stores(stores, chosen),
            modalities=parts,
            labels=chosen,
            given=(*self.given, collection),
            digests=(*self.digests, collection.digest()),
        )

    def reopened(self, opening: Opening) -> Sources:
        """Open everything again.

        Raises
        ------
        InputError
            If that is not at hand in this process, or an element is not there.
        """
        found = Sources()
        for are_files, alike in groupby(self.given, lambda one: isinstance(one, Path)):
            if are_files:
                found = found.with_h5ads(alike, self.labels, opening)
                continue
            for one in alike:
                if one is None:
                    raise InputError(
                        "layers, obsm, modalities and the cache can only be replaced in the process that opened the "
                        "stores: call replace before the loader is sent to another process"
                    )
                if isinstance(one, Collection):
                    found = found.with_collection(one, self.labels, opening)
                else:
                    assert isinstance(one, ad.AnnData)
                    found = found.with_anndatas([one], self.labels, opening)
        return found

    @property
    def are_unshuffled(self) -> bool:
        """Whether some of them may lie as they were written."""
        return any(one is not None and not (isinstance(one, Collection) and one.shuffled) for one in self.given)

    def inputs(self) -> list[Any]:
        """Give them as a build takes them.

        Raises
        ------
        InputError
            If they are not at hand in this process.
        """
        found: list[Any] = []
        for one in self.given:
            if one is None:
                raise InputError(
                    "write_collection must be called in the process that opened the stores, and the loader was sent "
                    "to another one"
                )
            if isinstance(one, Collection):
                found += [f"{one.path}/{store.name}" for store in one.stores]
            else:
                found.append(one)
        return found

    def for_others(self) -> Sources:
        """Give the sources as other processes get them: with the stores, but without what was opened."""
        kept = (
            one if isinstance(one.path if isinstance(one, Collection) else one, Path) else None for one in self.given
        )
        return replace(self, given=tuple(kept))

    def _with_stores(self, new: Sequence[Store], labels: Sequence[str] | None) -> tuple[Store, ...]:
        """Give all stores; raises InputError if none of them has a label."""
        stores = (*self.stores, *new)
        check_asked([store.obs for store in stores], labels or (), "labels")
        return stores

    def _with_modality(self, collection: Collection, name: str, opening: Opening) -> ModalityStores:
        """Open the stores of one modality of a collection, behind those that there are."""
        mask = mask_column(collection, name)
        before = self.modalities[name] if self.stores else ModalityStores((), mask)
        if before.mask != mask:
            raise InputError(f"{collection.path}: the modality {name!r} must have a mask in all collections or in none")
        stores = open_stores(collection.modality(name), Wanted((), opening.of_modality(name)))
        return ModalityStores((*before.stores, *stores), mask)

    def _check_modalities(self, there: tuple[str, ...], opening: Opening) -> tuple[str, ...]:
        """Give the modalities to read, of those that there are, and refuse others than before."""
        wanted = there if opening.modalities is None else opening.modalities
        if not there and wanted:
            raise InputError(f"modalities must be None for data without modalities, got {list(wanted)}")
        if unknown := [name for name in wanted if name not in there]:
            raise InputError(f"modalities must be among those of the collection, {list(there)}, got {unknown}")
        if self.stores and tuple(self.modalities) != wanted:
            before = f"the modalities {list(self.modalities)}" if self.modalities else "no modalities"
            now = list(wanted) if wanted else "none"
            raise InputError(
                f"data must have {before} like the data added before, got {now}; choose and order them with modalities="
            )
        if wanted:
            for part in ("layers", "obsm"):
                keys = [key for one, _, key in (element.partition("/") for element in opening.elements) if one == part]
                check_prefixed(part, keys, wanted)
        return wanted

    def _same_labels(self, labels: Sequence[str] | None) -> tuple[str, ...] | None:
        """Check that labels are those of the calls before, if there were any."""
        wanted = None if labels is None else distinct_names("labels", labels)
        if self.stores:
            before, now = (None if one is None else sorted(one) for one in (self.labels, wanted))
            if before != now:
                raise InputError(f"labels must be the same in all calls, {before} so far, got {now}")
        return wanted
