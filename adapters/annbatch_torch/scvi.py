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
from collections.abc import Mapping
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
from annbatch_torch._scvi_batches import ScviBatches, ScviPairs, Tensors
from annbatch_torch._scvi_setup import check_train, placeholder, read_obs, registered_tensors
from annbatch_torch.lightning import AnnDataModule

__all__ = ["ScviDataModule"]


class ScviDataModule(AnnDataModule):
    """The data module of a model of scvi-tools, for ``model.train(datamodule=…)``.

    Pass the arguments of the model's ``setup_anndata`` here, by the same names, and make the model from `adata`.
    Resuming and ranks work as with `AnnDataModule`: under ``strategy="ddp"``, each rank gets its own cells, and
    ``train(ckpt_path=…)`` continues with the next batch.

    Pass ``batch_size`` and ``validation_size`` here, too. ``train`` does not pass them on to a data module, so that
    ``train(batch_size=…)``, ``train(train_size=…)`` and the like raise an error. A last training batch of a single cell
    is dropped, another cell each epoch.

    Methods that go through cells, such as ``get_latent_representation``, need
    ``dataloader=module.inference_dataloader()``. Those that take no ``dataloader``, such as
    ``differential_expression``, need ``adata=module.in_memory(…)``.

    Parameters
    ----------
    model
        Class of the model, such as ``scvi.model.SCVI``.
    data
        A loader to which data have been added, or the path of a collection.
    batch_size
        Cells in a batch. None means that of the loader, or ``scvi.settings.batch_size`` for a path.
    validation_size
        Share of the cells to hold out for validation; 0 holds out none. For semi-supervised models, it is the share of
        each class, and of the cells without a label.
    parts
        Loaders that `annbatch.Loader.split` of ``data`` returned: ``"train"`` and, optionally, ``"val"`` and
        ``"test"``. None splits by ``validation_size``.
    seed
        Seed of the split.
    reference
        A trained model, or the path of a saved one, to continue with these cells by
        ``model.load_query_data(module.adata, reference)``. The arguments of ``setup_anndata`` are then those of the
        reference.
    **setup
        Arguments of ``model.setup_anndata``: ``layer``, ``batch_key``, ``labels_key``, ``unlabeled_category``,
        ``categorical_covariate_keys``, ``continuous_covariate_keys``, ``size_factor_key``, ``sample_key``, and any
        others of the model that name obs columns. Cells whose label is missing get ``unlabeled_category``.

    Attributes
    ----------
    adata : anndata.AnnData
        All cells, (n_obs, n_vars), registered for the model: the names of cells and genes, and the obs columns that
        were named. Counts remain in the collection; X and the layer hold NaN, so that anything that a model computes
        without ``dataloader=`` is NaN or an error. ``model.load(…, adata=module.adata)`` loads a saved model.
    n_obs, n_vars : int
        Number of cells, and of genes.
    n_train, n_val : int
        Number of training cells, and of validation cells.
    train_idx, val_idx, test_idx : numpy.ndarray
        Their positions in `adata`, int64, ascending. After training also ``model.train_indices`` and the like.

    Raises
    ------
    annbatch.errors.InputError
        If a column is not in obs, or a cell lacks a required value; if an argument names something other than obs
        columns and one layer; if ``parts`` are not parts of ``data``; if the genes are not those of the reference, or
        the model takes no reference. When ``train`` starts, if it was given an argument that has no effect with a data
        module.
    TypeError
        If the model's ``setup_anndata`` has no such argument.

    Examples
    --------
    >>> module = ScviDataModule(
    ...     scvi.model.SCVI, "collection", batch_key="donor"
    ... )  # doctest: +SKIP
    >>> model = scvi.model.SCVI(module.adata)  # doctest: +SKIP
    >>> model.train(max_epochs=10, datamodule=module)  # doctest: +SKIP
    >>> embedding = model.get_latent_representation(
    ...     dataloader=module.inference_dataloader()
    ... )  # doctest: +SKIP
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
        reference: BaseModelClass | str | os.PathLike[str] | None = None,
        **setup: Any,
    ) -> None:
        transfer: dict[str, Any] = {}
        if reference is not None:
            reference = reference if isinstance(reference, BaseModelClass) else os.fspath(reference)
            if setup:
                raise InputError(
                    f"{', '.join(setup)}: must not be passed with a reference, which has its own setup arguments"
                )
            setup, transfer = _of_reference(model, reference)
        layer = setup.get("layer")
        ds = _loader(data, batch_size, layer)
        if reference is not None:
            _check_genes(ds.var.index, model, reference)
        is_paired = issubclass(model, SemisupervisedTrainingMixin) and "labels_key" in setup
        obs = read_obs(ds, setup, optional=[setup["labels_key"]] if is_paired and transfer else [])
        if parts is None:
            fractions: dict[str, Any] = {"train": None, "val": validation_size} if validation_size else {"train": None}
            by = setup["labels_key"] if is_paired and setup["labels_key"] in obs else None
            parts = ds.split(fractions, seed=seed, stratify=by)
        else:
            parts = {stage: _loader(part, batch_size, layer) for stage, part in parts.items()}
            _check_parts(parts, ds)
        # Batch normalisation cannot take a batch of one cell.
        parts = {**parts, "train": parts["train"].replace(drop_last=parts["train"].drop_last or 2)}
        super().__init__(**parts, layout="dense")  # type: ignore[arg-type]
        self._ds, self._layer = ds, layer
        self._row_numbers = pd.Index(ds.rows)
        self.n_obs, self.n_vars = ds.n_obs, ds.n_vars
        self.train_idx, self.val_idx, self.test_idx = map(self._places, ("train", "val", "test"))
        # The names under which scvi-tools asks for them: some losses are sums over all cells to train on.
        self.n_train, self.n_val = len(self.train_idx), len(self.val_idx)
        self.adata = placeholder(obs, ds.var.index, layer)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*does not contain unnormalized count data.*", UserWarning)
            model.setup_anndata(self.adata, **transfer, **setup)
        self._registered = registered_tensors(model._get_most_recent_anndata_manager(self.adata, required=True))
        self._is_labelled: npt.NDArray[np.bool_] | None = None
        if is_paired:
            labels = self.adata.obs[setup["labels_key"]]
            self._is_labelled = (labels != setup.get("unlabeled_category")).to_numpy()

    def setup(self, stage: str) -> None:
        """Refuse arguments of ``train`` that have no effect; a trainer calls this before it asks for batches."""
        check_train(self.loaders["train"].batch_size)

    def inference_dataloader(self, stage: str | None = None, *, batch_size: int | None = None) -> ScviBatches:
        """Return batches of all cells, or those of a stage, in the order of `adata`.

        Every rank gets all of them.

        Parameters
        ----------
        stage
            ``"train"``, ``"val"`` or ``"test"``; None means all cells.
        batch_size
            Cells in a batch. None means that of training.
        """
        ds = self._ds if stage is None else self._loader(stage)
        # Loaders may have been given their rows in another order.
        rows = self._ds.rows if stage is None else self._ds.rows[self._places(stage)]
        options: dict[str, Any] = {} if batch_size is None else {"batch_size": batch_size}
        return ScviBatches(TorchLoader(_ordered(ds, rows=rows, **options), layout="dense"), self._tensors)

    def in_memory(self, indices: npt.ArrayLike) -> ad.AnnData:
        """Read cells into an AnnData with their counts, for methods of models that take no ``dataloader``.

        Parameters
        ----------
        indices
            Positions in `adata`, or a mask, (n_obs,) bool.

        Returns
        -------
        anndata.AnnData
            The cells, (n_indices, n_vars), in the order of ``indices``; counts are a CSR matrix.

        Examples
        --------
        >>> some = module.in_memory(
        ...     rng.choice(module.n_obs, 10_000, replace=False)
        ... )  # doctest: +SKIP
        >>> model.differential_expression(some, groupby="cell_type")  # doctest: +SKIP
        """
        chosen = np.arange(self.n_obs)[np.asarray(indices)]
        places, back = np.unique(chosen, return_inverse=True)
        some = _ordered(self._ds, rows=self._ds.rows[places])
        counts = sp.vstack([self._counts(batch).to_scipy() for batch in some], format="csr")[back]
        adata = self.adata[chosen].copy()
        adata.X = counts
        if self._layer is not None:
            adata.layers[self._layer] = counts
        return adata

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
        counts = self._counts(batch)
        at = torch.as_tensor(self._at(batch.index.cpu().numpy()))
        registered = {key: values[at].to(counts.device) for key, values in self._registered.items()}
        return registered | {REGISTRY_KEYS.X_KEY: counts}

    def _counts(self, batch: Any) -> Any:
        return batch.data if self._layer is None else batch["layers"][self._layer]

    def _places(self, stage: str) -> npt.NDArray[np.int64]:
        """Say at which places of `adata` the cells of a stage are."""
        return np.sort(self._at(self.loaders[stage].rows)) if stage in self.loaders else np.empty(0, np.int64)

    def _at(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Say at which places of `adata` rows are, given their global numbers."""
        return self._row_numbers.get_indexer(pd.Index(rows))


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


def _ordered(ds: Loader, **options: Any) -> Loader:
    """Give a loader of all its rows, in their order, to every rank."""
    return ds.replace(shuffle=False, drop_last=False, partition=Partition(0, 1), **options)


def _check_parts(parts: Mapping[str, Loader], ds: Loader) -> None:
    if "train" not in parts:
        raise InputError(f"parts must have a loader for 'train', got {', '.join(parts) or 'none'}")
    for stage, part in parts.items():
        if not (np.isin(part.rows, ds.rows).all() and part.var.index.equals(ds.var.index)):
            raise InputError(f"parts[{stage!r}] must be a part that split of data returned; it has other rows or genes")


def _of_reference(
    model: type[BaseModelClass], reference: BaseModelClass | str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Give the arguments of ``setup_anndata`` that a reference had, and those that transfer its categories."""
    if not hasattr(model, "load_query_data"):
        raise InputError(f"reference must be None for {model.__name__}, which has no load_query_data")
    registry = model.load_registry(reference) if isinstance(reference, str) else reference.registry
    transfer = {"source_registry": registry, "extend_categories": True, "allow_missing_labels": True}
    return registry["setup_args"], transfer


def _check_genes(genes: pd.Index[Any], model: type[BaseModelClass], reference: BaseModelClass | str) -> None:
    wanted = model.prepare_query_anndata(None, reference, return_reference_var_names=True)
    if not genes.equals(wanted):
        raise InputError(
            f"reference must have been trained on the {len(genes):,} genes of the data, in the same order, got "
            f"{len(wanted):,} genes, of which the data have {wanted.isin(genes).sum():,}: pass "
            f"data=Loader(var_names=…, absent=…) with the genes of the reference"
        )
