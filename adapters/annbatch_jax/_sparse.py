"""How does one compute with a sparse batch under ``jax.jit``, where every new shape is compiled anew?

1. A `PaddedCSR` has room for more elements than it holds, so that batches of different sizes share one shape. Spread
   over devices it is cut into parts of equally many rows, each padded to the same size.
2. `densify` writes its elements into a dense matrix; what is padding falls behind the last row and is dropped.
3. `matmul` multiplies it with a dense matrix.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from jax.experimental.sparse import BCSR

from annbatch.adapter import Summary


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False, repr=False)
class PaddedCSR(Summary):
    """A sparse matrix in compressed rows with room for ``nse`` elements; a pytree whose leaves are its three arrays.

    Elements from ``indptr[-1]`` on are padding and zero, and no function here lets them reach a result or a gradient.

    Where a loader has a ``sharding``, the arrays have a first axis more, one part for each shard of the rows: (parts,
    nse), (parts, nse) and (parts, n_rows / parts + 1).
    """

    data: jax.Array
    """(nse,) values."""
    indices: jax.Array
    """(nse,) int32 column numbers."""
    indptr: jax.Array
    """(n_rows + 1,) int32: where each row starts in ``data`` and ``indices``."""
    shape: tuple[int, int] = field(metadata={"static": True})
    """(n_rows, n_vars), of all parts together."""
    canonical: bool = field(default=False, metadata={"static": True})
    """Whether the columns are known to ascend within each row, none of them twice."""

    def to_bcsr(self) -> BCSR:
        """Give a `jax.experimental.sparse.BCSR` on the same arrays, for what that module can do.

        In parts it has a batch axis: its shape is (parts, n_rows / parts, n_vars).
        """
        n_rows, n_vars = self.shape
        parts = self.indptr.shape[:-1]
        shape = (*parts, n_rows // parts[0], n_vars) if parts else self.shape
        arrays = (self.data, self.indices, self.indptr)
        return BCSR(arrays, shape=shape, indices_sorted=self.canonical, unique_indices=self.canonical)


def densify(csr: PaddedCSR) -> jax.Array:
    """Give the (n_rows, n_vars) dense matrix; for use inside ``jax.jit``, differentiable with respect to ``csr.data``.

    Elements of one row with the same column are summed, as SciPy does. Parts that lie on several devices are made dense
    where they lie, without communication.

    Parameters
    ----------
    csr
        The matrix. Only if it says that it is ``canonical`` is the compiler told so, which is faster on a GPU.

    Returns
    -------
    Array of the values' dtype.
    """
    if csr.indptr.ndim == 1:
        return _densify(csr)
    shape = (csr.shape[0] // csr.indptr.shape[0], csr.shape[1])
    parts = PaddedCSR(csr.data, csr.indices, csr.indptr, shape, csr.canonical)
    return jax.vmap(_densify)(parts).reshape(csr.shape)


def _densify(csr: PaddedCSR) -> jax.Array:
    n_rows, n_vars = csr.shape
    nse = csr.data.shape[0]
    # Every row's end raises the number of its successors' row by one; all ends lie before the padding,
    # which therefore gets row n_rows: out of bounds.
    ends = jnp.zeros(nse, jnp.int32).at[csr.indptr[1:]].add(1, mode="drop", indices_are_sorted=True)
    rows = jnp.cumsum(ends)
    # Zeros as the padding's columns would be duplicates, and the compiler may have been told that there are none.
    columns = jnp.where(rows < n_rows, csr.indices, jnp.arange(nse, dtype=csr.indices.dtype))
    cells = jnp.zeros((n_rows, n_vars), csr.data.dtype).at[rows, columns]
    # JAX adds no booleans.
    put = cells.max if csr.data.dtype == jnp.bool_ else cells.add
    return put(csr.data, mode="drop", unique_indices=csr.canonical, indices_are_sorted=csr.canonical)


def matmul(csr: PaddedCSR, w: jax.Array) -> jax.Array:
    """Give ``csr @ w``; for use inside ``jax.jit``, differentiable with respect to ``w`` and ``csr.data``.

    The matrix is made dense on the way.

    Parameters
    ----------
    csr
        (n_rows, n_vars) matrix. Rows that only fill a batch up give rows of zeros.
    w
        (n_vars, ...) dense array.

    Returns
    -------
    (n_rows, ...) array.
    """
    return densify(csr) @ w
