"""How do the core's batches become torch tensors?

1. The `Emit` asks for what torch takes as it is: int32 indices, and one of torch's types of values. To copy batches to
   a GPU it asks for CSR in page-locked memory in any case: a dense matrix is made where it is wanted, of far fewer
   bytes.
2. Each buffer becomes a tensor by DLPack. Copies to a GPU are queued, and their sources kept until they are made. What
   the core has made on a GPU stays where it is (`annbatch_torch._device`).
3. A rank, or a worker process of a ``DataLoader``, says which consumer it is.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import numpy as np
import torch
import torch.distributed
from torch.utils.data import IterableDataset, get_worker_info
from torch.utils.data._utils.collate import default_collate_fn_map
from torch.utils.dlpack import from_dlpack

from annbatch.adapter import (
    CSR,
    WHOLE,
    Adapter,
    Array,
    Batch,
    Emit,
    Fields,
    Partition,
    Stats,
    a_loader,
    available_cores,
    check_flat,
    converted,
    converted_modalities,
    flat,
)
from annbatch.errors import InputError
from annbatch_torch._dealers import check_dealers
from annbatch_torch._device import Copies, OnCurrentStream, event_behind_copies, page_locked
from annbatch_torch._sparse import densify
from annbatch_torch._workers import SharedEpoch, SharedStats

if TYPE_CHECKING:
    from annbatch import Loader

# uint16 and wider unsigned types are left out: torch stores them and computes next to nothing with them.
# The core's kernels know no 16-bit floats: it gives float32, and torch narrows that.
_EMITTED: dict[torch.dtype, type[np.generic]] = {
    torch.float32: np.float32,
    torch.float64: np.float64,
    torch.float16: np.float32,
    torch.bfloat16: np.float32,
    torch.uint8: np.uint8,
    torch.int8: np.int8,
    torch.int16: np.int16,
    torch.int32: np.int32,
    torch.int64: np.int64,
}
_NARROWED: dict[torch.dtype, Literal["float16", "bfloat16"]] = {torch.float16: "float16", torch.bfloat16: "bfloat16"}

# Of obsm: unsigned integers come in the next type with which torch computes.
_WIDENED = {torch.uint16: torch.int32, torch.uint32: torch.int64}


@dataclass(frozen=True, eq=False, repr=False)
class TorchBatch(Fields):
    """A batch of torch tensors, with the keys and attributes of `annbatch.Batch`.

    It behaves like a mapping, but is not a `collections.abc.Mapping`, which torch's ``DataLoader`` would take apart.
    """

    keys = Mapping.keys
    items = Mapping.items
    values = Mapping.values
    get = Mapping.get
    __contains__ = Mapping.__contains__

    def to(self, device: str | torch.device, *, non_blocking: bool = False) -> TorchBatch:
        """Return the batch with all its tensors on a device."""
        return self._mapped(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> TorchBatch:
        """Return the batch with all its tensors in pinned memory; ``DataLoader(pin_memory=True)`` calls this."""
        return self._mapped(_pinned)

    def _mapped(self, convert: Callable[[torch.Tensor], torch.Tensor]) -> TorchBatch:
        return replace(
            self,
            data=None if self.data is None else convert(self.data),
            codes={name: convert(codes) for name, codes in self.codes.items()},
            layers=converted(self.layers, convert),
            obsm=converted(self.obsm, convert),
            index=None if self.index is None else convert(self.index),
            modalities=converted_modalities(self.modalities, convert, lambda _, held: convert(held), convert),
        )


class TorchLoader(Adapter, IterableDataset[Any]):
    """Mini-batches of an `annbatch.Loader` as torch tensors; also a dataset for torch's ``DataLoader``.

    Iterating yields batches with the keys of the core loader's, in torch tensors:

    - ``batch["data"]``: a sparse CSR tensor or a dense tensor, (n_rows, n_vars). ``crow_indices`` and ``col_indices``
      are int32, or int64 from 2**31 elements on.
    - ``batch["labels"]``: the label columns as a DataFrame, built when it is accessed.
    - ``batch["index"]``: global row numbers, (n_rows,) int64, unless the core loader has ``return_index=False``.
    - ``batch.codes[column]``: codes into ``categories[column]``, (n_rows,) int64, missing -1, as loss functions take
      them. For a column of numbers or booleans, its values, in the types of `annbatch.Batch`: int64, float32, bool, or
      float64 for integers of which some may be missing.
    - ``batch["obsm"][name]``: a dense tensor, or a matrix like ``data`` if it is stored sparse; float32 (float64 if
      ``dtype`` is) or integers.
    - For a collection with modalities, ``batch["rna"]["data"]`` and the like replace ``data``, ``layers`` and ``obsm``.

    **Memory.** On the CPU, ``data`` and ``index`` are the core's own memory, and so is ``data`` of
    ``Loader(device="cuda")``. You may keep a batch: its memory, host or device, is not reused before the last tensor on
    it is gone.

    **Streams.** On a CUDA device, use a batch on the stream that was current when you requested it. To use it on
    another stream, let that stream wait for the first one, and keep the batch until the other stream is done. If the
    core made the batch, ``Tensor.record_stream`` does not help, since the memory is CuPy's, not torch's.

    **Processes.** Under ``torch.distributed``, each rank gets its own windows, and all get the same number of batches,
    unless the core loader has a ``partition``. The workers of a ``DataLoader(…, batch_size=None, num_workers=n)`` share
    out the windows of their rank, which gets the same batches as without workers, in another order. Each iteration is
    the next epoch, whether or not workers persist; `set_epoch` chooses one. Workers recognise a new epoch by the seeds
    that torch draws for them: if you call ``torch.manual_seed`` with the same number before each epoch, call
    `set_epoch`, too. A loader reads on threads of its own and does not need workers to be fast.

    Parameters
    ----------
    ds
        The core loader, to which data have been added. It stays reachable as ``.loader``.
    device
        Device of the tensors: the CPU or a CUDA device. None means the device of the core loader. With
        ``Loader(device="cuda")``, tensors are the memory that the core has made on the device. Otherwise, they are
        copied from page-locked memory. Both are queued on the stream that is current in torch when a batch is asked
        for, and nothing waits for them. Worker processes of a ``DataLoader`` give CPU tensors only: call
        ``batch.to(device)`` in the training process.
    layout
        ``"csr"`` or ``"dense"``.
    dtype
        Type of the values. The core loader's ``casting`` must allow it, unless it is float32: wider floats are then
        rounded, and integers that float32 cannot represent raise an error. 16-bit floats cost an additional pass, in
        which torch converts float32, unless the core makes dense batches on a device.
    form
        ``"batch"`` yields a `TorchBatch`. ``"dict"`` yields a plain dict of tensors, which other libraries can move and
        concatenate: ``data``, ``index``, ``layers`` and ``obsm`` as above, and the codes of each label column under the
        column's name, ``batch["cell_type"]``. There is no ``labels``; the codes and `annbatch.Loader.categories` hold
        the same. With modalities, each modality is a dict.

    Raises
    ------
    annbatch.errors.InputError
        If ``layout``, ``dtype``, ``device`` or ``form`` is not supported, or a dict cannot hold the batches of the core
        loader; nothing has been read yet. While iterating, if a value of ``data`` or ``codes`` does not fit its type.

    Examples
    --------
    >>> import annbatch
    >>> from annbatch_torch import TorchLoader
    >>> ds = annbatch.Loader(batch_size=32).use_collection(
    ...     "collection", labels=["cell_type"]
    ... )
    >>> for batch in TorchLoader(ds, layout="dense"):
    ...     x, y = batch["data"], batch.codes["cell_type"]
    >>> x.dtype, y.dtype
    (torch.float32, torch.int64)
    """

    def __init__(
        self,
        ds: Loader,
        *,
        device: str | torch.device | None = None,
        layout: Literal["csr", "dense"] = "csr",
        dtype: torch.dtype = torch.float32,
        form: Literal["batch", "dict"] = "batch",
    ) -> None:
        if form not in ("batch", "dict"):
            raise InputError(f"form must be 'batch' or 'dict', got {form!r}")
        if layout not in ("csr", "dense"):
            raise InputError(f"layout must be 'csr' or 'dense', got {layout!r}")
        if dtype not in _EMITTED:
            raise InputError(f"dtype must be one of {', '.join(map(str, _EMITTED))}, got {dtype!r}")
        born_on = a_loader(ds).device
        self.device = _usable_device(born_on if device is None else device)
        self._is_born_there = born_on != "cpu"
        if self._is_born_there and self.device != _usable_device(born_on):
            raise InputError(f"device must be {born_on!r}, that of the Loader, got {str(device)!r}")
        is_copied = self.device.type == "cuda" and not self._is_born_there
        emit = Emit(
            dtype=np.dtype(_EMITTED[dtype]),
            narrowed=_NARROWED.get(dtype),
            layout="csr" if is_copied else layout,
            allocate=page_locked if is_copied else None,
        )
        if self._is_born_there and layout == "dense" and dtype == torch.float16:
            emit = replace(emit, dtype=np.dtype(np.float16))
        # A function of the user's could not compute with the bits.
        if self._is_born_there and layout == "dense" and dtype == torch.bfloat16 and not ds.has_function:
            emit = replace(emit, bfloat16=True)
        super().__init__(ds, emit)
        if form == "dict":
            check_flat(ds)
        self.form = form
        self.dtype = dtype
        self.layout = layout
        self._copies = Copies() if is_copied else None
        self._shared_epoch = SharedEpoch()
        self._shared_stats = SharedStats()
        self._rank: Partition | None = None
        self._is_resumed = False
        self._n_iterations = 0
        self._iteration = 0

    def __iter__(self) -> Iterator[Any]:
        if self.loader.partition is None:
            check_dealers()
        if (worker := get_worker_info()) is not None:
            try:
                self._enter_worker(worker.id, worker.num_workers, worker.seed - worker.id)
            except (RuntimeError, InputError) as error:
                # Raised here, it would end the worker without a word to the parent.
                return _raising(error)
            return self._shared_stats.noting(super().__iter__(), worker.id, self._iteration, self.loader.stats)
        self._shared_stats.clear()
        if self._is_born_there:
            return OnCurrentStream(self.loader.batches(self._emit, self.partition), self._hand_over, self.device)
        return super().__iter__()

    @property
    def partition(self) -> Partition | None:
        """The consumer that this process is, by the loader's ``partition`` or else by its rank; with its worker."""
        partition = self.loader.partition or self._rank or _rank()
        if (worker := get_worker_info()) is not None:
            partition = replace(partition or WHOLE, worker=worker.id, n_workers=worker.num_workers)
        return partition

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next ``iter`` starts, here and in the workers of a ``DataLoader``."""
        super().set_epoch(epoch)
        if get_worker_info() is None:
            self._shared_epoch.set(epoch)

    def stats(self) -> Stats:
        """Return the speed of the running or last epoch, as `Loader.stats` does.

        With worker processes of a ``DataLoader``, it is the sum of their counts, without the time that the caller
        waited, which workers do not know.
        """
        shared = self._shared_stats.read() if get_worker_info() is None else None
        return shared or super().stats()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Make the next ``iter`` continue where a state was taken, as `Loader.load_state_dict` does."""
        super().load_state_dict(state)
        if get_worker_info() is None:
            self._shared_epoch.set(self.loader.next_epoch, resumes=True)
        else:
            self._is_resumed = True

    def __getstate__(self) -> dict[str, Any]:
        if self.loader.partition is None:
            check_dealers()
        # A process that is spawned belongs to no process group, and is one of this rank's workers.
        return self.__dict__ | {"_rank": self._rank or _rank(), "_copies": None if self._copies is None else Copies()}

    def _enter_worker(self, worker: int, n_workers: int, seed: int) -> None:
        """Agree with the other workers on the epoch, and share the cores with them."""
        if self._is_born_there or self._copies is not None:
            raise InputError(f"device must be 'cpu' in worker processes of a DataLoader, got {str(self.device)!r}")
        if self.loader.threads is None:
            self.loader.threads = max(1, available_cores() // n_workers)
        iteration = self._iteration = seed * 1000003 + self._n_iterations & 0x7FFFFFFFFFFFFFFF
        self._n_iterations += 1
        if self._is_resumed:
            self._shared_epoch.note(worker, iteration, self.loader.next_epoch)
        else:
            if (epoch := self._shared_epoch.heard()) is not None:
                self.loader.set_epoch(epoch)
            epoch = self._shared_epoch.claim(worker, iteration, self.loader.next_epoch)
            # The state of a worker that has not given a batch of the epoch must already be one of the epoch.
            if epoch != self.loader.state_dict()["epoch"]:
                self.loader.set_epoch(epoch)
        self._is_resumed = False

    def _hand_over(self, batch: Batch) -> TorchBatch | dict[str, Any]:
        handed = TorchBatch(
            data=None if batch.data is None else self._matrix(batch.data),
            codes={name: self._codes(codes) for name, codes in batch.codes.items()},
            index=None if batch.index is None else self._tensor(batch.index),
            make_labels=batch.make_labels,
            layers=converted(batch.layers, self._matrix),
            obsm=None if batch.obsm is None else {name: self._obsm(name, array) for name, array in batch.obsm.items()},
            n_padding=batch.n_padding,
            names=batch.names,
            modalities=converted_modalities(batch.modalities, self._matrix, self._obsm, self._tensor),
        )
        if self._copies is not None:
            self._copies.keep(batch, event_behind_copies(self.device))
        return handed if self.form == "batch" else flat(handed)

    def _matrix(self, data: CSR | Array, name: str = "data") -> torch.Tensor:
        if self._emit.bfloat16 and not isinstance(data, CSR):
            return self._tensor(data).view(torch.bfloat16)
        values = self._values(name, data)
        # Integers where floats were asked for are a transform's: numbers of tokens, say.
        if values.is_floating_point() and self.dtype.is_floating_point:
            values = values.to(self.dtype)
        return self._sparse(data, values) if isinstance(data, CSR) else values

    def _obsm(self, name: str, data: CSR | Array) -> torch.Tensor:
        values = self._values(f"obsm/{name}", data)
        return self._sparse(data, values) if isinstance(data, CSR) else values

    def _values(self, name: str, data: CSR | Array) -> torch.Tensor:
        """Give the values of a matrix in a type with which torch computes."""
        tensor = self._tensor(data.data if isinstance(data, CSR) else data)
        if tensor.dtype == torch.uint64:
            tensor = tensor.view(torch.int64)
            if (tensor < 0).any():
                raise InputError(f"{name}: values must be below 2**63 to become an int64 tensor, got larger ones")
        return tensor.to(_WIDENED.get(tensor.dtype, tensor.dtype))

    def _sparse(self, data: CSR, values: torch.Tensor) -> torch.Tensor:
        """Give a matrix, of these values, in the layout that was asked for."""
        crow_indices, col_indices = self._tensor(data.indptr), self._tensor(data.indices)
        if self.layout == "dense":
            return densify(crow_indices, col_indices, values, data.shape[1])
        _accept_beta_state()
        # Checking the invariants would cost far more than the rest does, and the core keeps them.
        return torch.sparse_csr_tensor(crow_indices, col_indices, values, size=data.shape, check_invariants=False)

    def _codes(self, codes: Array) -> torch.Tensor:
        tensor = self._tensor(codes)
        return tensor.to(torch.int64) if tensor.dtype == torch.int32 else tensor

    def _tensor(self, array: Array) -> torch.Tensor:
        # `from_dlpack` takes read-only arrays without the warning that `from_numpy` gives.
        tensor = from_dlpack(array)
        if tensor.device != self.device and self._copies is None:
            # Nobody here owns host memory until it was copied; torch does so with page-locked memory of its own.
            tensor = tensor.pin_memory()
        return tensor.to(self.device, non_blocking=True)


def _refuse_collation(batches: Any, *, collate_fn_map: Any = None) -> NoReturn:
    """Say what to write where a ``DataLoader`` would make a batch of batches."""
    raise TypeError(
        "TorchLoader yields whole batches, which a DataLoader must not batch again: write "
        "DataLoader(TorchLoader(ds), batch_size=None)"
    )


# torch documents this table as the way to extend `default_collate`.
default_collate_fn_map[TorchBatch] = _refuse_collation


def _pinned(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.layout != torch.sparse_csr:
        return tensor.pin_memory()
    return torch.sparse_csr_tensor(
        tensor.crow_indices().pin_memory(),
        tensor.col_indices().pin_memory(),
        tensor.values().pin_memory(),
        size=tensor.shape,
        check_invariants=False,
    )


def _raising(error: Exception) -> Iterator[Any]:
    yield from ()
    raise error


def _rank() -> Partition | None:
    """Give this process's place in the process group, if there is one."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return Partition(torch.distributed.get_rank(), torch.distributed.get_world_size())
    return None


def _usable_device(device: str | torch.device) -> torch.device:
    """Give the device after one allocation on it, so that a wrong one is refused before anything is read."""
    try:
        usable = torch.device(device)
        if usable.type in ("cpu", "cuda"):
            return torch.empty(1, device=usable).device
    # A torch without CUDA says so with an AssertionError.
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"device must be the CPU or a CUDA device, got {str(device)!r}: {reason}") from error
    raise InputError(f"device must be the CPU or a CUDA device, got {str(device)!r}")


@cache
def _accept_beta_state() -> None:
    """Let torch say once in each process, unheard, that sparse CSR tensors are in beta state."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta state", category=UserWarning)
        zero: Any = torch.zeros(1, dtype=torch.int32)
        torch.sparse_csr_tensor(zero, zero[:0], zero[:0], size=(0, 0), check_invariants=False)
