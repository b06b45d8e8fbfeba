"""What do the modalities of a store share, and how is it opened for reading?

`open_joint_stores` gives a `Store` without matrices for each MuData store of a collection: the rows, and the label
columns, those of MuData's own obs by their names, those of a modality's obs as ``"rna:cell_type"``. The matrices are in
the AnnData stores of the modalities, which `annbatch.stores.anndata_store.open_stores` opens.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from annbatch.shards.codecs import numcodecs_are_known
from annbatch.stores.anndata_store import Store
from annbatch.stores.array_opening import open_each
from annbatch.stores.collection import Collection
from annbatch.stores.manifest import StoreEntry
from annbatch.stores.modality import MEASURED
from annbatch.stores.obs_access import columns_there, joint_obs_of
from annbatch.stores.obs_rows import check_length
from annbatch.stores.store_var import VarInMemory


def mask_column(collection: Collection, modality: str) -> str | None:
    """Give the label column that says which rows have a modality; None if all have."""
    return f"{modality}:{MEASURED}" if collection.modalities[modality].masked else None


@numcodecs_are_known()
def open_joint_stores(collection: Collection, labels: Sequence[str] | None, modalities: Sequence[str]) -> list[Store]:
    """Open what the modalities share.

    Parameters
    ----------
    labels
        Names of label columns; None means all, of MuData and of these modalities. Masks come with either.
    modalities
        The modalities whose matrices are read. Labels may be of others.

    Raises
    ------
    InputError
        If there is no such column; names those that there are.
    StoreError
        If a store cannot be read, or has not the rows that the collection says.
    """
    masks = [mask for name in modalities if (mask := mask_column(collection, name)) is not None]
    wanted = None if labels is None else list(dict.fromkeys([*labels, *masks]))

    def open_one(store: StoreEntry) -> Store:
        name, recorded = f"{collection.path}/{store.name}", collection.recorded(store)
        obs = joint_obs_of(collection.group(store), name, recorded, list(collection.modalities), modalities)
        columns = columns_there(obs, wanted)
        for column in columns.values():
            check_length(column, store.n_obs)
        return Store(name, (store.n_obs, 0), {}, columns, obs, VarInMemory(pd.DataFrame()))

    return open_each(open_one, collection.stores, is_remote=not isinstance(collection.path, Path))
