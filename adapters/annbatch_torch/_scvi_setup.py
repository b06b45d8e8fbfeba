"""What does scvi-tools register of cells whose counts are elsewhere?

1. `read_obs` reads the obs columns that the arguments of ``setup_anndata`` name.
2. `placeholder` gives an AnnData with these columns, and with NaN in place of the counts.
3. `registered_tensors` gives what was registered: everything that batches hold beside the counts.
4. `check_train` refuses arguments of ``model.train`` that have no effect with a data module, and models that were
   computed from the counts that are not there.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from scvi import REGISTRY_KEYS
from scvi.model.base import BaseModelClass

from annbatch import Loader
from annbatch.errors import InputError

# What to write instead of an argument of ``train``.
_INSTEAD = {
    "train_size": "give validation_size= or parts= to ScviDataModule",
    "validation_size": "give validation_size= or parts= to ScviDataModule",
    "shuffle_set_split": "give parts= to ScviDataModule",
    "batch_size": "give batch_size= to ScviDataModule",
    "datasplitter_kwargs": "give parts= to ScviDataModule",
    "load_sparse_tensor": "leave it out",
    "n_samples_per_label": "leave it out; a data module gives all labelled cells",
}


def read_obs(ds: Loader, setup: Mapping[str, Any], *, optional: Sequence[str] = ()) -> pd.DataFrame:
    """Read the obs columns that arguments of ``setup_anndata`` name.

    Parameters
    ----------
    ds
        The loader of all cells.
    setup
        The arguments.
    optional
        Columns that may be absent.

    Returns
    -------
    DataFrame
        (n_obs, n_columns), indexed by the names of the cells. Missing labels have become the unlabeled category.

    Raises
    ------
    annbatch.errors.InputError
        If an argument names something else than obs columns, a column is not there, or a value is missing.
    """
    for argument, value in setup.items():
        if argument.endswith(("_obsm_key", "_uns_key", "_layer")) and value is not None:
            raise InputError(
                f"{argument} must be None, got {value!r}: a ScviDataModule takes counts from X or one layer, and "
                f"everything else from obs columns"
            )
    named = {argument: value for argument, value in setup.items() if argument.endswith(("_key", "_keys")) and value}
    columns = {argument: [value] if isinstance(value, str) else list(value) for argument, value in named.items()}
    wanted = list(dict.fromkeys(name for names in columns.values() for name in names))
    obs = ds.obs([name for name in wanted if name not in optional or _has_column(ds, name)])
    if (unlabeled := setup.get("unlabeled_category")) is not None and (key := setup.get("labels_key")) in obs:
        labels = obs[key].astype("category")
        if unlabeled not in labels.cat.categories:
            labels = labels.cat.add_categories(unlabeled)
        obs[key] = labels.fillna(unlabeled)
    for argument, names in columns.items():
        for name in names:
            if name in obs and (n_missing := int(obs[name].isna().sum())):
                raise InputError(
                    f"{argument}: obs column {name!r} must have a value for each cell, but {n_missing:,} of "
                    f"{len(obs):,} have none; leave them out with Loader(rows=…)"
                )
    return obs


def placeholder(obs: pd.DataFrame, var: pd.Index, layer: str | None) -> ad.AnnData:
    """Give an AnnData with NaN in place of the counts, so that nobody computes with it.

    Parameters
    ----------
    obs
        (n_obs, n_columns) what is known of the cells.
    var
        (n_vars,) the names of the genes.
    layer
        The layer that the counts are in; None means X alone.
    """
    values, indptr = np.full(len(obs), np.nan, np.float32), np.arange(len(obs) + 1)
    absent = sp.csr_matrix((values, np.zeros(len(obs), np.int32), indptr), shape=(len(obs), len(var)))
    layers = None if layer is None else {layer: absent}
    return ad.AnnData(absent, obs, pd.DataFrame(index=var), layers=layers)


def registered_tensors(manager: Any) -> dict[str, torch.Tensor]:
    """Give what was registered beside the counts: (n_obs, n_columns), in the types that modules compute with."""
    tensors = {}
    for key in manager.data_registry:
        if key == REGISTRY_KEYS.X_KEY:
            continue
        tensor = torch.as_tensor(np.asarray(manager.get_from_registry(key)).reshape(manager.adata.n_obs, -1))
        tensors[key] = tensor.float() if tensor.is_floating_point() else tensor.long()
    return tensors


def check_train(batch_size: int) -> None:
    """Check the ``model.train`` that is running now: its arguments have an effect, and its model holds no NaN.

    scvi-tools does not hand them to data modules, so that they are read from the call itself. Arguments that are what
    ``train`` has by default pass.

    Parameters
    ----------
    batch_size
        Cells in a batch of training, which may be given once more.

    Raises
    ------
    annbatch.errors.InputError
        Names the argument, or the parameter of the model, and says what to write instead.
    """
    running: tuple[Any, Mapping[str, Any]] | None = None
    frame = inspect.currentframe()
    while frame is not None:
        model = frame.f_locals.get("self") if frame.f_code.co_name == "train" else None
        if isinstance(model, BaseModelClass):
            # Models call the method of their parent class with defaults of their own: the outermost call counts.
            running = model, frame.f_locals
        frame = frame.f_back
    if running is None:
        return
    model, given = running
    for name, parameter in inspect.signature(type(model).train).parameters.items():
        if name not in _INSTEAD or name not in given:
            continue
        value = given[name]
        # Models turn None into an empty dict before they begin to train.
        if value in (None, {}, parameter.default) or (name == "batch_size" and value == batch_size):
            continue
        raise InputError(f"train({name}={value!r}) has no effect with a data module: {_INSTEAD[name]}")
    for name, values in model.module.state_dict().items():
        if values.is_floating_point() and values.isnan().any():
            raise InputError(
                f"{type(model).__name__}: {name} must not be NaN before training. It was computed from the counts when "
                "the model was created, and module.adata has none: give the model another argument that needs no "
                "counts, or set the parameter from module.in_memory(…)"
            )


def _has_column(ds: Loader, name: str) -> bool:
    try:
        ds.obs([name])
    except InputError:
        return False
    return True
