"""How does a model of scvi-tools train from a collection?

1. scvi-tools itself registers the cells: the model's own ``setup_anndata`` gets an AnnData of all cells with the obs
   columns that it asks for, and without counts. Categories, codes and the registry are those of an AnnData in memory.
2. A batch is a dictionary of tensors, as the modules of scvi-tools take it: counts come from the collection,
   everything else from what was registered, by row number.
3. Semi-supervised models get pairs: a batch of all cells and one of cells that have a label.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from itertools import chain, repeat
from typing import Any

import anndata as ad
import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.sparse as sp
import torch

try:
    import scvi
    from scvi import REGISTRY_KEYS
    from scvi.model.base import BaseModelClass, SemisupervisedTrainingMixin
except ImportError as error:
    raise ImportError(
        "annbatch_torch.scvi needs scvi-tools, which could not be imported: pip install 'scvi-tools>=1.4'"
    ) from error

from annbatch import Loader, Partition
from annbatch.errors import InputError
from annbatch_torch._loader import TorchBatch, TorchLoader
from annbatch_torch.lightning import AnnDataModule

__all__ = ["ScviDataModule"]

Tensors = dict[str, torch.Tensor]


class ScviDataModule(AnnDataModule):
    """The batches of a model of scvi-tools: what ``model.train(datamodule=…)`` takes.

    The arguments of the model's ``setup_anndata`` are given here, by the same names. The model is made from `adata`.
    Resuming and ranks work as with `AnnDataModule`: under ``strategy="ddp"`` each rank gets its own cells, and
    ``train(ckpt_path=…)`` goes on with the next batch.

    ``train(train_size=…, validation_size=…, batch_size=…)`` have no effect with a data module: give ``validation_size``
    and ``batch_size`` here. A last training batch of a single cell is left out, another one each epoch. Methods that go
    through cells, such as ``get_latent_representation``, need ``dataloader=module.inference_dataloader()``.

    Parameters
    ----------
    model
        A class of models, such as ``scvi.model.SCVI``.
    data
        A loader, its data already added, or the path of a collection.
    batch_size
        Cells in a batch; None means that of the loader, or ``scvi.settings.batch_size`` for a path.
    validation_size
        Share of the cells that are held out for validation; 0 holds out none.
    parts
        Loaders as `annbatch.Loader.split` of ``data`` gives them: ``"train"`` and, if wanted, ``"val"`` and ``"test"``.
        None splits by ``validation_size``.
    seed
        Seed of the split.
    **setup
        Arguments of ``model.setup_anndata``: ``layer``, ``batch_key``, ``labels_key``, ``unlabeled_category``,
        ``categorical_covariate_keys``, ``continuous_covariate_keys``, ``size_factor_key``, ``sample_key`` and what else
        the model has for columns of obs. Cells whose label is missing get ``unlabeled_category``.

    Attributes
    ----------
    adata : anndata.AnnData
        (n_obs, n_vars) all cells, registered for the model: the names of cells and genes, and the obs columns that were
        named. The counts are in the collection. Here X and the layer hold NaN, so that what a model computes without
        ``dataloader=`` is NaN or an error. ``model.load(…, adata=module.adata)`` loads a saved model.
    n_obs, n_vars : int
        Cells and genes.

    Raises
    ------
    annbatch.errors.InputError
        If a column is not in obs, or a cell has no value where one is needed.
    TypeError
        If the model's ``setup_anndata`` has no such argument.

    Examples
    --------
    >>> module = ScviDataModule(scvi.model.SCVI, "collection", batch_key="donor")  # doctest: +SKIP
    >>> model = scvi.model.SCVI(module.adata)  # doctest: +SKIP
    >>> model.train(max_epochs=10, datamodule=module)  # doctest: +SKIP
    >>> embedding = model.get_latent_representation(dataloader=module.inference_dataloader())  # doctest: +SKIP
    """

    def __init__(
        self,
        model: type[BaseModelClass],
        data: Loader | str | os.PathLike[str],
        *,
        batch_size: int | None = None,
        validation_size: float = 0.1,
        parts: Mapping[str, Loader] | None = None,
        seed: int = 0,
        **setup: Any,
    ) -> None:
        layer = setup.get("layer")
        ds = _loader(data, batch_size, layer)
        if parts is None:
            fractions: dict[str, Any] = {"train": None, "val": validation_size} if validation_size else {"train": None}
            parts = ds.split(fractions, seed=seed)
        else:
            parts = {stage: _loader(part, batch_size, layer) for stage, part in parts.items()}
        # Batch normalisation cannot take a batch of one cell.
        parts = {**parts, "train": parts["train"].replace(drop_last=parts["train"].drop_last or 2)}
        super().__init__(**parts, layout="dense")  # type: ignore[arg-type]
        self._ds, self._layer = ds, layer
        self.n_obs, self.n_vars = ds.n_obs, ds.n_vars
        obs = _obs(ds, setup)
        absent = _absent(self.n_obs, self.n_vars)
        layers = None if layer is None else {layer: absent}
        self.adata = ad.AnnData(absent, obs, pd.DataFrame(index=ds.var.index), layers=layers)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*does not contain unnormalized count data.*", UserWarning)
            model.setup_anndata(self.adata, **setup)
        manager = model._get_most_recent_anndata_manager(self.adata, required=True)
        self._registered = {key: _tensor(manager, key) for key in manager.data_registry if key != REGISTRY_KEYS.X_KEY}
        self._row_numbers = pd.Index(ds.rows)
        self._is_labelled: npt.NDArray[np.bool_] | None = None
        if issubclass(model, SemisupervisedTrainingMixin) and "labels_key" in setup:
            self._is_labelled = (obs[setup["labels_key"]] != setup.get("unlabeled_category")).to_numpy()

    def inference_dataloader(self, stage: str | None = None, *, batch_size: int | None = None) -> ScviBatches:
        """Give all cells, or those of a stage, in the order of `adata`; every rank gets all of them.

        Parameters
        ----------
        stage
            ``"train"``, ``"val"`` or ``"test"``; None means all cells.
        batch_size
            Cells in a batch; None means that of training.
        """
        ds = self._ds if stage is None else self.loaders[stage]
        options: dict[str, Any] = {} if batch_size is None else {"batch_size": batch_size}
        ordered = ds.replace(shuffle=False, drop_last=False, partition=Partition(0, 1), **options)
        return ScviBatches(TorchLoader(ordered, layout="dense"), self._tensors)

    def _batches(self, stage: str) -> Any:
        batches = super()._batches(stage)
        whole = ScviBatches(batches, self._tensors)
        if self._is_labelled is None:
            return whole
        part = self.loaders[stage]
        labelled = part.rows[self._is_labelled[self._at(part.rows)]]
        if not labelled.size:
            return whole
        of_labelled = part.replace(rows=labelled, shuffle=True, drop_last=2)
        labelled_batches = TorchLoader(of_labelled, device=batches.device, layout="dense")
        return ScviPairs(whole, ScviBatches(labelled_batches, self._tensors))

    def _tensors(self, batch: TorchBatch) -> Tensors:
        """Give a batch as the modules of scvi-tools take it."""
        assert batch.index is not None
        counts = batch.data if self._layer is None else batch["layers"][self._layer]
        at = torch.as_tensor(self._at(batch.index.cpu().numpy()))
        registered = {key: values[at].to(counts.device) for key, values in self._registered.items()}
        return registered | {REGISTRY_KEYS.X_KEY: counts}

    def _at(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Say at which places of `adata` rows are, given their global numbers."""
        return self._row_numbers.get_indexer(pd.Index(rows))


class ScviBatches:
    """Batches as dictionaries of tensors; what a stage of a `ScviDataModule` gives.

    Parameters
    ----------
    batches
        The batches of a loader.
    tensors
        Gives the dictionary of a batch.
    """

    def __init__(self, batches: TorchLoader, tensors: Callable[[TorchBatch], Tensors]) -> None:
        self.batches = batches
        self._tensors = tensors

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Tensors]:
        return map(self._tensors, self.batches)

    def state_dict(self) -> dict[str, Any]:
        """Say where the batches stand."""
        return self.batches.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where a state was taken."""
        self.batches.load_state_dict(state)


class ScviPairs:
    """Pairs of a batch of all cells and one of labelled cells, which come round as often as it takes.

    Which labelled cells come in an epoch depends on the epoch alone.

    Parameters
    ----------
    whole
        Batches of all cells.
    labelled
        Batches of those that have a label.

    Raises
    ------
    annbatch.errors.InputError
        If there are too few labelled cells for a batch.
    """

    def __init__(self, whole: ScviBatches, labelled: ScviBatches) -> None:
        if not len(labelled):
            raise InputError("there must be labelled cells for a batch of each rank; drop_last must not leave them out")
        self.whole = whole
        self.labelled = labelled
        self._n_given = 0
        self._goes_on = False

    def __len__(self) -> int:
        return len(self.whole)

    def __iter__(self) -> Iterator[tuple[Tensors, Tensors]]:
        endless: Iterator[Tensors] | None = None
        for batch in self.whole:
            if endless is None:
                if not self._goes_on:
                    rounds = -(-len(self.whole) // len(self.labelled))
                    self.labelled.batches.set_epoch(self.whole.state_dict()["epoch"] * rounds)
                    self._n_given = 0
                self._goes_on = False
                endless = chain.from_iterable(repeat(self.labelled))
            self._n_given += 1
            yield batch, next(endless)

    def state_dict(self) -> dict[str, Any]:
        """Say where both stand."""
        return {"whole": self.whole.state_dict(), "labelled": self.labelled.state_dict(), "n_given": self._n_given}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where a state was taken."""
        self.whole.load_state_dict(state["whole"])
        self.labelled.load_state_dict(state["labelled"])
        self._n_given = state["n_given"]
        self._goes_on = 0 < self._n_given < len(self)


def _loader(data: Loader | str | os.PathLike[str], batch_size: int | None, layer: str | None) -> Loader:
    """Give a loader that carries what batches are made of, and no label columns of its own."""
    if not isinstance(data, Loader):
        data = Loader(batch_size=batch_size or scvi.settings.batch_size).use_collection(data, labels=[])
    options: dict[str, Any] = {"return_index": True}
    if layer is not None and layer not in data.layers:
        options["layers"] = (*data.layers, layer)
    if batch_size is not None:
        options["batch_size"] = batch_size
    return data.replace(**options)


def _obs(ds: Loader, setup: Mapping[str, Any]) -> pd.DataFrame:
    """Read the obs columns that are named, and see to it that values are missing nowhere."""
    named = {argument: value for argument, value in setup.items() if argument.endswith(("_key", "_keys")) and value}
    columns = {argument: [value] if isinstance(value, str) else list(value) for argument, value in named.items()}
    obs = ds.obs(list(dict.fromkeys(name for names in columns.values() for name in names)))
    if (unlabeled := setup.get("unlabeled_category")) is not None:
        labels = obs[setup["labels_key"]].astype("category")
        if unlabeled not in labels.cat.categories:
            labels = labels.cat.add_categories(unlabeled)
        obs[setup["labels_key"]] = labels.fillna(unlabeled)
    for argument, names in columns.items():
        for name in names:
            if n_missing := int(obs[name].isna().sum()):
                raise InputError(
                    f"{argument}: obs column {name!r} must have a value for each cell, and {n_missing:,} of "
                    f"{len(obs):,} have none; leave them out with Loader(rows=…)"
                )
    return obs


def _tensor(manager: Any, key: str) -> torch.Tensor:
    """Give what was registered by a key, (n_obs, n_columns), in the types that modules compute with."""
    tensor = torch.as_tensor(np.asarray(manager.get_from_registry(key)).reshape(manager.adata.n_obs, -1))
    return tensor.float() if tensor.is_floating_point() else tensor.long()


def _absent(n_obs: int, n_vars: int) -> sp.csr_matrix:
    """Give a matrix in place of counts that are elsewhere: NaN in each row, so that nobody computes with it."""
    values = np.full(n_obs, np.nan, np.float32)
    return sp.csr_matrix((values, np.zeros(n_obs, np.int32), np.arange(n_obs + 1)), shape=(n_obs, n_vars))
