"""How does one compute with a sparse batch under ``torch.compile``, which takes no sparse tensors as arguments?

1. Outside, `csr_parts` gives the three tensors that a batch consists of; they cost nothing.
2. Inside, `densify` makes the dense matrix of them.
"""

from __future__ import annotations

import torch


def csr_parts(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the three tensors of a sparse CSR tensor, on the same memory.

    Parameters
    ----------
    matrix
        Sparse CSR tensor, (n_rows, n_vars), such as ``batch["data"]``.

    Returns
    -------
    crow_indices : torch.Tensor
        Where each row begins, (n_rows + 1,).
    col_indices : torch.Tensor
        Column numbers, (nnz,).
    values : torch.Tensor
        Values, (nnz,), detached.
    """
    # Attached, the values are a view of the sparse tensor, over which torch.compile stumbles.
    return matrix.crow_indices(), matrix.col_indices(), matrix.values().detach()


def densify(crow_indices: torch.Tensor, col_indices: torch.Tensor, values: torch.Tensor, n_vars: int) -> torch.Tensor:
    """Make a dense matrix from the parts of a sparse one.

    It compiles with ``torch.compile(fullgraph=True)``, and is differentiable with respect to ``values``. Elements of
    one row with the same column are summed, as in SciPy. On a GPU, the host does not wait for the device.

    Parameters
    ----------
    crow_indices
        Where each row begins, (n_rows + 1,).
    col_indices
        Column numbers, (nnz,).
    values
        Values, (nnz,).
    n_vars
        Number of columns.

    Returns
    -------
    torch.Tensor
        (n_rows, n_vars), of the dtype of ``values``, in memory of its own.

    Examples
    --------
    >>> @torch.compile(fullgraph=True)  # doctest: +SKIP
    ... def scores(crow_indices, col_indices, values, weight):
    ...     return densify(crow_indices, col_indices, values, weight.shape[0]) @ weight
    >>> for batch in batches:  # doctest: +SKIP
    ...     scores(*csr_parts(batch["data"]), weight)
    """
    n_rows = crow_indices.numel() - 1
    rows = torch.arange(n_rows, device=values.device)
    # Without `output_size` the device would be asked for it, and waited for.
    rows = rows.repeat_interleave(crow_indices.diff(), output_size=values.numel())
    dense = values.new_zeros(n_rows * n_vars)
    dense.scatter_add_(0, rows * n_vars + col_indices, values)
    return dense.view(n_rows, n_vars)
