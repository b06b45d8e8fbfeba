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
    """A sparse matrix in compressed sparse row format with room for ``nse`` elements.

    It is a pytree whose leaves are its three arrays. Elements from ``indptr[-1]`` on are padding and zero; `densify`
    and `matmul` keep them out of results and gradients.

    If the loader has a ``sharding``, the arrays have a first axis, with one part for each shard of the rows: (parts,
    nse), (parts, nse) and (parts, n_rows / parts + 1).
    """

    data: jax.Array
    """Values, (nse,)."""
    indices: jax.Array
    """Column numbers, (nse,) int32."""
    indptr: jax.Array
    """Where each row begins in ``data`` and ``indices``, (n_rows + 1,) int32."""
    shape: tuple[int, int] = field(metadata={"static": True})
    """Shape of the matrix, (n_rows, n_vars), of all parts together."""
    canonical: bool = field(default=False, metadata={"static": True})
    """Whether the columns are known to ascend within each row, without duplicates."""

    def to_bcsr(self) -> BCSR:
        """Return the matrix as a `jax.experimental.sparse.BCSR` on the same arrays.

        A matrix in parts gets a batch axis: its shape is (parts, n_rows / parts, n_vars).
        """
        n_rows, n_vars = self.shape
        parts = self.indptr.shape[:-1]
        shape = (*parts, n_rows // parts[0], n_vars) if parts else self.shape
        arrays = (self.data, self.indices, self.indptr)
        return BCSR(arrays, shape=shape, indices_sorted=self.canonical, unique_indices=self.canonical)


def densify(csr: PaddedCSR) -> jax.Array:
    """Make a dense matrix; for use inside ``jax.jit``, and differentiable with respect to ``csr.data``.

    Elements of one row with the same column are summed, as in SciPy. Parts on several devices are made dense where they
    are, without communication.

    Parameters
    ----------
    csr
        The matrix. If it is ``canonical``, the compiler is told so, which is faster on a GPU.

    Returns
    -------
    jax.Array
        (n_rows, n_vars), of the dtype of the values.

    Examples
    --------
    >>> import annbatch, jax
    >>> from annbatch_jax import JaxLoader, densify
    >>> ds = annbatch.Loader(batch_size=32).use_collection("collection")
    >>> dense = jax.jit(densify)(next(iter(JaxLoader(ds)))["data"])
    >>> dense.shape
    (32, 6)
    """
    if csr.indptr.ndim == 1:
        return _densify(csr)
    shape = (csr.shape[0] // csr.indptr.shape[0], csr.shape[1])
    parts = PaddedCSR(csr.data, csr.indices, csr.indptr, shape, csr.canonical)
    return jax.vmap(_densify)(parts).reshape(csr.shape)


def _densify(csr: PaddedCSR) -> jax.Array:
    n_rows, n_vars = csr.shape
    nse = csr.data.size
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
    """Compute ``csr @ w``; for use inside ``jax.jit``, and differentiable with respect to ``w`` and ``csr.data``.

    It makes the matrix dense first.

    Parameters
    ----------
    csr
        Sparse matrix, (n_rows, n_vars). Padding rows give rows of zeros.
    w
        Dense array, (n_vars, ...).

    Returns
    -------
    jax.Array
        The product, (n_rows, ...).
    """
    return densify(csr) @ w
