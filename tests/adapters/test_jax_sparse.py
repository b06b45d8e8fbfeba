"""Is a padded sparse matrix, whole or in parts, what SciPy makes of its elements? No loader is needed for that."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

jax = pytest.importorskip("jax")
jnp = jax.numpy

from annbatch_jax import PaddedCSR, densify, matmul  # noqa: E402

DENSE = np.array([[0, 1, 2], [0, 0, 0], [3, 0, 0], [0, 4, 5]], np.float32)


def whole(*, canonical: bool = False, dtype: Any = np.float32) -> PaddedCSR:
    """The matrix with room for two more elements, which are not zero."""
    return PaddedCSR(
        jnp.array(np.array([1, 2, 3, 4, 5, 6, 7]).astype(dtype)),
        jnp.array([1, 2, 0, 1, 2, 1, 1]),
        jnp.array([0, 2, 2, 3, 5]),
        DENSE.shape,
        canonical,
    )


def parts() -> PaddedCSR:
    """Two rows in each part, padded to four elements."""
    return PaddedCSR(
        jnp.array([[1, 2, 9, 9], [3, 4, 5, 9]], jnp.float32),
        jnp.array([[1, 2, 0, 0], [0, 1, 2, 2]]),
        jnp.array([[0, 2, 2], [0, 1, 3]]),
        DENSE.shape,
    )


@pytest.mark.parametrize("canonical", [True, False])
def test_a_matrix_becomes_dense(canonical: bool) -> None:
    np.testing.assert_array_equal(densify(whole(canonical=canonical)), DENSE)
    assert whole(canonical=canonical).canonical is canonical
    assert PaddedCSR(*[jnp.zeros(1)] * 3, (1, 1)).canonical is False


def test_parts_become_one_dense_matrix() -> None:
    np.testing.assert_array_equal(jax.jit(densify)(parts()), DENSE)
    assert parts().to_bcsr().shape == (2, 2, 3)


def test_booleans_are_not_summed() -> None:
    csr = PaddedCSR(jnp.array([True, True, False, True]), jnp.array([0, 0, 1, 1]), jnp.array([0, 3, 3]), (2, 2))
    np.testing.assert_array_equal(densify(csr), [[True, False], [False, False]])


def test_elements_that_stand_twice_are_summed() -> None:
    csr = PaddedCSR(jnp.array([1.0, 2, 4]), jnp.array([1, 0, 1]), jnp.array([0, 3]), (1, 2))
    np.testing.assert_array_equal(densify(csr), [[2, 5]])


def test_the_same_as_bcsr() -> None:
    found = whole(canonical=True).to_bcsr()
    assert found.shape == DENSE.shape
    assert (found.indices_sorted, found.unique_indices) == (True, True)
    assert not whole().to_bcsr().indices_sorted
    w = np.arange(6, dtype=np.float32).reshape(3, 2)
    np.testing.assert_allclose(matmul(whole(), jnp.array(w)), DENSE @ w)
