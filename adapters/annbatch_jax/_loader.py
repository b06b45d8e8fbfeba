"""How do the core's batches become JAX arrays?

1. The `Emit` asks for padded rows and a capacity rule, so that a jitted step meets few shapes.
2. `jax.device_put` takes over a whole batch at once, never bare ``from_dlpack``: that would commit the arrays to the
   CPU, and on a GPU build everything computed from them would stay there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from annbatch.adapter import Adapter, converted
from annbatch.batch import CSR, Array, Batch, Capacity, Emit
from annbatch.errors import InputError
from annbatch.order import Partition
from annbatch_jax._sparse import PaddedCSR

if TYPE_CHECKING:
    from annbatch.loader import Loader

_BUCKETS = Capacity()


@dataclass(frozen=True, eq=False, kw_only=True)
class JaxBatch(Batch):
    """A batch in JAX arrays, with one more key: ``mask``."""

    mask: jax.Array
    """(n_rows,) bool: True for rows of the data, False for those that only fill the batch up."""

    def __iter__(self) -> Iterator[str]:
        yield from super().__iter__()
        yield "mask"


class JaxLoader(Adapter):
    """Mini-batches of an `annbatch.Loader` as JAX arrays whose shapes a jitted step can live with.

    Every batch has exactly ``batch_size`` rows: the last one of an epoch is filled up with empty rows. Iterating gives

    - ``batch["data"]``: a `PaddedCSR`, or a dense (batch_size, n_vars) array;
    - ``batch["mask"]``: (batch_size,) bool, False for rows that only fill up;
    - ``batch["labels"]``: the label columns as a DataFrame, built only when asked for;
    - ``batch["index"]``: (batch_size,) int64 global row numbers, -1 for rows that only fill up, unless the core loader
      leaves them out. They stay a NumPy array: JAX would narrow them to int32 wherever 64-bit types are off;
    - ``batch.codes[column]``: (batch_size,) int32 codes into ``categories[column]``, missing -1; float32 values,
      missing NaN, for a numeric column. Rows that only fill up are missing.

    On the CPU ``data`` is the core's own memory. A batch may be kept: its memory is not used again before the last
    array on it is gone.

    Under ``jax.distributed`` each process gets its own windows, and equally many batches, unless the core loader was
    given a ``partition``.

    Parameters
    ----------
    ds
        The core loader, its data already added. It stays reachable as ``.loader``.
    layout
        ``"padded_csr"`` or ``"dense"``.
    dtype
        Type of the values. A 16-bit float costs one more pass, since JAX narrows float32 to it.
    nse
        Rule that gives the number of elements to make room for, from the number needed: each value that it takes is
        one compilation of a step. `annbatch.batch.Capacity` says which growth, or which fixed capacity.
    canonical
        Whether in all stores the columns are known to ascend within each row, none of them twice, as they do in what
        `annbatch.create_anndata_collection` writes. `densify` is then faster on a GPU, and undefined if it is not so.

    Raises
    ------
    annbatch.errors.InputError
        If ``layout`` or ``dtype`` is not one that can be served here; nothing has been read yet.
    """

    def __init__(
        self,
        ds: Loader,
        *,
        layout: Literal["padded_csr", "dense"] = "padded_csr",
        dtype: Any = jnp.float32,
        nse: Callable[[int], int] = _BUCKETS,
        canonical: bool = False,
    ) -> None:
        if layout not in ("padded_csr", "dense"):
            raise InputError(f"layout must be 'padded_csr' or 'dense', got {layout!r}")
        self.dtype = _usable_dtype(dtype)
        # The core's kernels know no 16-bit floats: it gives float32, and JAX narrows that.
        emitted = np.dtype(np.float32) if self.dtype in (jnp.float16, jnp.bfloat16) else self.dtype
        int32 = np.dtype(np.int32)
        if layout == "dense":
            emit = Emit(dtype=emitted, layout="dense", pad_rows=True)
        else:
            emit = Emit(dtype=emitted, index_dtype=int32, nse=nse, pad_rows=True)
        super().__init__(ds, emit)
        self._canonical = canonical

    def __iter__(self) -> Iterator[JaxBatch]:
        return map(self._hand_over, self.loader.batches(self._emit, self.partition))

    @property
    def partition(self) -> Partition | None:
        """Which consumer this process is: as the core loader was told, else its number among JAX's processes."""
        if self.loader.partition is not None or jax.process_count() == 1:
            return self.loader.partition
        return Partition(jax.process_index(), jax.process_count())

    def _hand_over(self, batch: Batch) -> JaxBatch:
        n_rows = batch.data.shape[0]
        mask = np.arange(n_rows) < n_rows - batch.n_padding
        on_host = {
            "data": self._host_matrix(batch.data),
            "layers": converted(batch.layers, self._host_matrix),
            "obsm": converted(batch.obsm, lambda array: array),
            "codes": dict(batch.codes),
            "mask": mask,
        }
        handed = jax.device_put(on_host)
        handed["data"] = self._narrowed(handed["data"])
        handed["layers"] = converted(handed["layers"], self._narrowed)
        rest = {f.name: getattr(batch, f.name) for f in fields(batch) if f.name not in handed}
        return JaxBatch(**handed, **rest)

    def _narrowed(self, matrix: Any) -> Any:
        if isinstance(matrix, PaddedCSR):
            return replace(matrix, data=matrix.data.astype(self.dtype))
        return matrix.astype(self.dtype)

    def _host_matrix(self, data: CSR | Array) -> Any:
        if not isinstance(data, CSR):
            return data
        return PaddedCSR(data.data, data.indices, data.indptr, shape=data.shape, canonical=self._canonical)  # type: ignore[arg-type]


def _usable_dtype(dtype: Any) -> np.dtype[Any]:
    """Give the dtype if JAX holds values of it without changing them."""
    wanted: np.dtype[Any] = np.dtype(dtype)
    if wanted != jnp.bfloat16 and (wanted.kind not in "fiu" or wanted.itemsize > 8):
        raise InputError(f"dtype must be a real number type of at most 64 bits, got {wanted}")
    if jax.dtypes.canonicalize_dtype(wanted) != wanted:
        raise InputError(f"dtype must have at most 32 bits unless jax_enable_x64 is set, got {wanted}")
    return wanted
