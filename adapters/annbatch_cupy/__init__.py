"""How do batches reach CuPy?

1. `CupyLoader` asks the core for the types that cupyx's sparse matrices take.
2. What a loader on a CUDA device has made is wrapped as it is. Buffers of the host are copied to the current device, in
   the order of the current stream.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

try:
    import cupy
    from cupyx.scipy.sparse import csr_matrix
except ImportError as error:
    raise ImportError(
        "annbatch_cupy needs CuPy, which could not be imported: "
        "pip install cupy-cuda12x (or cupy-cuda13x, as your CUDA version is)"
    ) from error

from annbatch.adapter import CSR, Adapter, Array, Batch, Emit, a_loader, converted, converted_modalities
from annbatch.errors import InputError

if TYPE_CHECKING:
    from annbatch import Loader

__all__ = ["CupyLoader"]

_DTYPES = ("float32", "float64", "bool")


class CupyLoader(Adapter):
    """Mini-batches of an `annbatch.Loader` as CuPy arrays and `cupyx.scipy.sparse.csr_matrix`.

    Iterating yields batches with the keys of the core loader's, in arrays on a CUDA device:

    - ``batch["data"]``: a `cupyx.scipy.sparse.csr_matrix` with int32 ``indices`` and ``indptr``, or a dense array,
      (n_rows, n_vars).
    - ``batch["labels"]``: the label columns as a DataFrame on the host, built when it is accessed.
    - ``batch["index"]``: global row numbers, (n_rows,) int64, unless the core loader has ``return_index=False``.
    - ``batch.codes[column]``: codes into ``categories[column]``, (n_rows,) int32, missing -1. For a column of numbers
      or booleans, its values, in the types of `annbatch.Batch`.
    - ``batch["obsm"][name]``: a dense array, or a matrix like ``data`` if it is stored sparse; float32 (float64 if
      ``dtype`` is), or integers if it is dense.
    - For a collection with modalities, ``batch["rna"]["data"]`` and the like replace ``data``, ``layers`` and ``obsm``.

    With ``Loader(device="cuda")``, ``data`` is the core's own memory, on its device. Otherwise everything is copied to
    the current device.

    All work is queued on the stream that is current when you request a batch. Nothing waits for it, or for what is
    already queued there. On that stream, you may use and drop a batch at any time. To use it on another stream, let
    that stream wait for the first one, and keep the batch until the other stream is done: CuPy gives dropped memory to
    what is queued next on the stream where it was allocated. Device memory comes from CuPy's current allocator (its
    pool, or that of RMM after ``cupy.cuda.set_allocator(rmm.allocators.cupy.rmm_cupy_allocator)``), which is never
    flushed.

    Parameters
    ----------
    ds
        The core loader, to which data have been added. It stays reachable as ``.loader``.
    layout
        ``"csr"`` or ``"dense"``.
    dtype
        Type of the values: float32, float64 or bool, the real types that cupyx's sparse matrices support. The core
        loader's ``casting`` must allow it, unless it is float32: wider floats are then rounded, and integers that
        float32 cannot represent raise an error.

    Raises
    ------
    annbatch.errors.InputError
        If ``layout`` or ``dtype`` is not supported, obsm has a sparse matrix of integers, or there is no usable CUDA
        device; nothing has been read yet. While iterating, if a value of ``data`` or ``codes`` does not fit its type.

    Examples
    --------
    >>> import annbatch  # doctest: +SKIP
    >>> from annbatch_cupy import CupyLoader  # doctest: +SKIP
    >>> ds = annbatch.Loader(batch_size=32, device="cuda").use_collection(
    ...     "collection"
    ... )  # doctest: +SKIP
    >>> for batch in CupyLoader(ds):  # doctest: +SKIP
    ...     totals = batch["data"].sum(axis=1)
    """

    def __init__(self, ds: Loader, *, layout: Literal["csr", "dense"] = "csr", dtype: Any = np.float32) -> None:
        if layout not in ("csr", "dense"):
            raise InputError(f"layout must be 'csr' or 'dense', got {layout!r}")
        self.layout = layout
        self.dtype = np.dtype(dtype)
        if self.dtype.name not in _DTYPES:
            raise InputError(f"dtype must be one that cupyx takes, {', '.join(_DTYPES)}, got {self.dtype}")
        where = a_loader(ds).device
        self._device: AbstractContextManager[Any] = nullcontext()
        try:
            cupy.cuda.Device().use()
            if where != "cpu":
                self._device = cupy.cuda.Device(int(where.removeprefix("cuda:")))
        except cupy.cuda.runtime.CUDARuntimeError as error:
            raise InputError(f"CupyLoader needs a usable CUDA device: {error}") from error
        super().__init__(ds, Emit(dtype=self.dtype, index_dtype=np.dtype(np.int32), layout=layout))
        for element, values in self._emitted.items():
            if values.is_sparse and layout == "csr" and values.dtype.name not in _DTYPES:
                raise InputError(
                    f"{element}: sparse matrices of cupyx must be of {', '.join(_DTYPES)}, got {values.dtype}: store "
                    f"it as float32, or pass layout='dense'"
                )

    def _hand_over(self, batch: Batch) -> Batch:
        # `cupy.asarray` gives back an array of this device as it is, and stages host memory of its own, so that the
        # core's buffers are free once it returns.
        with self._device:
            return replace(
                batch,
                data=None if batch.data is None else _matrix(batch.data),
                codes={name: cupy.asarray(codes) for name, codes in batch.codes.items()},
                layers=converted(batch.layers, _matrix),
                obsm=converted(batch.obsm, _matrix),
                index=None if batch.index is None else cupy.asarray(batch.index),
                modalities=converted_modalities(batch.modalities, _matrix, lambda _, held: _matrix(held), cupy.asarray),
            )


def _matrix(data: CSR | Array) -> Any:
    if not isinstance(data, CSR):
        return cupy.asarray(data)
    if data.data.dtype.name not in _DTYPES:
        raise InputError(f"transform must return a CSR of {', '.join(_DTYPES)} for cupyx, got {data.data.dtype}")
    # Not from its parts at once: that constructor reads indptr back, and so waits for all that is queued on the stream.
    matrix = csr_matrix(data.shape, dtype=data.data.dtype)
    matrix.data, matrix.indices, matrix.indptr = map(cupy.asarray, (data.data, data.indices, data.indptr))
    return matrix
