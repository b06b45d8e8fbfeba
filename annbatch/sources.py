"""Which stores does a loader read, and where do they come from?

1. `Sources.with_anndatas` and `Sources.with_collection` open what a user passes, and give the sources with it.
2. `Sources.reopened` opens all of it once more, for other elements or through another cache.

All calls must agree on the labels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import anndata as ad

from annbatch.check import distinct_names
from annbatch.errors import InputError
from annbatch.remote.disk_cache import DiskCache
from annbatch.stores.anndata_store import Store, Wanted, open_anndata, open_stores
from annbatch.stores.collection import Collection
from annbatch.stores.location import locate


@dataclass(frozen=True, slots=True)
class Opening:
    """What is opened of every source, and how."""

    elements: tuple[str, ...]
    """``"X"``, ``"layers/…"``, ``"obsm/…"``."""
    cache: Callable[[], DiskCache | None]
    """Opens the cache for what lies in object stores."""


@dataclass(frozen=True, slots=True, eq=False)
class Sources:
    """The stores of a loader, in the order in which their rows are numbered."""

    stores: tuple[Store, ...] = ()
    labels: tuple[str, ...] | None = None
    """The obs columns asked for; None means all that the stores share."""
    given: tuple[ad.AnnData | Collection | None, ...] = ()
    """What the stores were opened from; None if that was in another process."""
    n_anndatas: int = 0
    """How many AnnData objects there are among it."""
    digests: tuple[str, ...] = ()
    """What tells each collection from others."""

    def with_anndatas(self, adatas: Sequence[ad.AnnData], labels: Sequence[str] | None, opening: Opening) -> Sources:
        """Open AnnData objects; raises as `annbatch.Loader.add_anndatas` does."""
        adatas = list(adatas)
        if not adatas:
            raise InputError("adatas must hold at least one AnnData, got none")
        for i, adata in enumerate(adatas):
            if not isinstance(adata, ad.AnnData):
                raise InputError(f"adatas[{i}] must be an AnnData, got {type(adata).__name__}")
        chosen = self._same_labels(labels)
        wanted, cache = Wanted(chosen, opening.elements), opening.cache()
        stores = [open_anndata(adata, wanted, f"adatas[{i}]", cache) for i, adata in enumerate(adatas, self.n_anndatas)]
        return replace(
            self,
            stores=(*self.stores, *stores),
            labels=chosen,
            given=(*self.given, *adatas),
            n_anndatas=self.n_anndatas + len(adatas),
        )

    def with_collection(self, path: Any, labels: Sequence[str] | None, opening: Opening) -> Sources:
        """Open a collection; raises as `annbatch.Loader.use_collection` does."""
        if isinstance(path, Collection):
            collection = path.through(opening.cache)
        else:
            collection = Collection.at(locate(path).through(opening.cache))
        collection.check_sizes()
        chosen = self._same_labels(labels)
        return replace(
            self,
            stores=(*self.stores, *open_stores(collection, Wanted(chosen, opening.elements))),
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
        for one in self.given:
            if one is None:
                raise InputError(
                    "layers, obsm and the cache cannot be replaced in a process that the loader was sent to: replace "
                    "them before"
                )
            if isinstance(one, Collection):
                found = found.with_collection(one, self.labels, opening)
            else:
                found = found.with_anndatas([one], self.labels, opening)
        return found

    def for_others(self) -> Sources:
        """Give the sources as other processes get them: with the stores, but without what was opened."""
        kept = (one if isinstance(one, Collection) and isinstance(one.path, Path) else None for one in self.given)
        return replace(self, given=tuple(kept))

    def _same_labels(self, labels: Sequence[str] | None) -> tuple[str, ...] | None:
        """Check that labels are those of the calls before, if there were any."""
        wanted = None if labels is None else distinct_names("labels", labels)
        if self.stores:
            before, now = (None if one is None else sorted(one) for one in (self.labels, wanted))
            if before != now:
                raise InputError(f"labels must be the same in all calls, {before} so far, got {now}")
        return wanted
