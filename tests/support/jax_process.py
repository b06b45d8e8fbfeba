"""What holds on several JAX devices; `test_jax_sharding` runs it in processes of its own.

Usage: jax_process.py devices
       jax_process.py processes RANK PORT

The first needs eight devices, the second two processes of two devices each.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import anndata as ad
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

import annbatch_jax._agreement
from adapter_truth import N_VARS, Truth, make_stores
from annbatch import Capacity, Loader, Partition
from annbatch.errors import InputError
from annbatch_jax import JaxLoader, PaddedCSR, densify, matmul

STORES, TRUTH = make_stores()
BUCKETS = Capacity(growth=1.25, smallest=64)
ROWS = PartitionSpec("data")


def core(stores: list[ad.AnnData] = STORES, **options: Any) -> Loader:
    defaults: dict[str, Any] = {"batch_size": 16, "chunk_size": 8, "preload_nchunks": 6, "threads": 1}
    return Loader(**(defaults | options)).add_anndatas(stores)


def by_rows(n: int = 0) -> NamedSharding:
    return NamedSharding(Mesh(np.array(jax.devices()[: n or None]), ("data",)), ROWS)


def on_host(array: jax.Array) -> np.ndarray:
    """Give the rows that lie on this process's devices."""
    shards = {shard.index[0].start or 0: np.asarray(shard.data) for shard in array.addressable_shards}
    return np.concatenate([shards[start] for start in sorted(shards)])


def check_rows(batch: Any, dense: jax.Array, truth: Truth, categories: Any) -> None:
    codes = {name: on_host(array) for name, array in batch.codes.items()}
    truth.check(batch.index, on_host(dense), codes, categories)
    np.testing.assert_array_equal(on_host(batch.mask), batch.index >= 0)


@contextmanager
def refused(*words: str) -> Iterator[None]:
    with pytest.raises(InputError) as caught:
        yield
    assert all(word in str(caught.value) for word in words), caught.value


# --- one process, eight devices --------------------------------------------------------------------------------------


def sparse_parts_are_right_where_they_lie() -> None:
    """Each device gets its part of the rows, makes it dense without the others, and sums its gradient with them."""
    sharding = by_rows()
    dense, product = jax.jit(densify), jax.jit(matmul)
    weight = jax.random.normal(jax.random.key(0), (N_VARS, 3))
    gradient = jax.jit(jax.grad(lambda w, data: jnp.square(matmul(data, w) / 1e4).sum()))
    expected = jax.grad(lambda w, data: jnp.square(data @ w / 1e4).sum())
    ds = JaxLoader(core(), nse=BUCKETS, sharding=sharding)
    n_rows = 0
    for batch in ds:
        csr = batch.data
        nse = csr.data.shape[1]
        assert BUCKETS(int(csr.indptr[:, -1].max())) == nse
        assert (csr.data.shape, csr.indices.shape, csr.indptr.shape) == ((8, nse), (8, nse), (8, 3))
        assert csr.shape == (16, N_VARS)
        assert all(leaf.committed and leaf.sharding == sharding for leaf in jax.tree.leaves((csr, batch.mask)))
        result = dense(csr)
        assert result.sharding.is_equivalent_to(sharding, 2)
        check_rows(batch, result, TRUTH, ds.categories)
        whole = np.asarray(result)
        np.testing.assert_allclose(product(csr, weight), whole @ np.asarray(weight), rtol=1e-5, atol=1e-2)
        np.testing.assert_allclose(gradient(weight, csr), expected(weight, whole), rtol=1e-5, atol=1e-5)
        n_rows += (batch.index >= 0).sum()
    assert n_rows == TRUTH.x.shape[0]
    for canonical in (False, True):
        program = dense.lower(PaddedCSR(csr.data, csr.indices, csr.indptr, csr.shape, canonical)).compile().as_text()
        assert "scatter" in program
        assert not any(word in program for word in ("all-reduce", "all-gather", "all-to-all", "permute"))


def parts_are_the_cores_memory() -> None:
    """On CPU devices nothing is copied: rooms are multiples of 64 elements, so that each part is aligned."""
    for layout in ("padded_csr", "dense"):
        # Dense rows must fill whole multiples of 64 bytes as well.
        options = {"batch_size": 128} if layout == "dense" else {}
        ds = JaxLoader(core(**options), layout=layout, nse=BUCKETS, sharding=by_rows())
        pairs = []
        hand_over = ds._hand_over

        def recorded(batch: Any, hand_over: Any = hand_over, pairs: Any = pairs) -> Any:
            pairs.append((batch, handed := hand_over(batch)))
            return handed

        ds._hand_over = recorded
        assert sum(1 for _ in ds) == len(pairs)
        for mine, handed in pairs:
            arrays = [(mine.data, handed.data)]
            if layout == "padded_csr":
                arrays = [(getattr(mine.data, name), getattr(handed.data, name)) for name in ("data", "indices")]
            for host, device in arrays:
                for shard in device.addressable_shards:
                    address = host[shard.index[0].start or 0 :].ctypes.data
                    assert address % 64 == 0
                    assert shard.data.unsafe_buffer_pointer() == address


def dense_rows_are_right() -> None:
    ds = JaxLoader(core(), layout="dense", sharding=by_rows(4))
    for batch in ds:
        assert batch.data.sharding == by_rows(4)
        assert {shard.data.shape for shard in batch.data.addressable_shards} == {(4, N_VARS)}
        check_rows(batch, batch.data, TRUTH, ds.categories)


def an_axis_for_the_model_repeats_the_rows() -> None:
    sharding = NamedSharding(Mesh(np.array(jax.devices()).reshape(4, 2), ("data", "model")), ROWS)
    for rows, parts in ((sharding, 4), (NamedSharding(sharding.mesh, PartitionSpec(("data", "model"))), 8)):
        ds = JaxLoader(core(), nse=BUCKETS, sharding=rows)
        for batch in ds:
            assert batch.data.indptr.shape == (parts, 16 // parts + 1)
            check_rows(batch, jax.jit(densify)(batch.data), TRUTH, ds.categories)


def a_mesh_with_explicit_axes_works() -> None:
    if not hasattr(jax, "set_mesh"):
        return  # JAX 0.6 cannot index arrays of such a mesh.
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Explicit,))
    ds = JaxLoader(core(), nse=BUCKETS, sharding=NamedSharding(mesh, ROWS))
    with jax.set_mesh(mesh):
        for batch in ds:
            check_rows(batch, jax.jit(densify)(batch.data), TRUTH, ds.categories)


def chosen_genes_come_in_parts() -> None:
    genes = [41, 3, 17]
    truth = Truth(TRUTH.x[:, genes], TRUTH.obs)
    ds = JaxLoader(core(var_names=[str(gene) for gene in genes]), nse=Capacity(fixed=8), sharding=by_rows())
    for batch in ds:
        assert batch.data.data.shape == (8, 8)
        check_rows(batch, jax.jit(densify)(batch.data), truth, ds.categories)


def sixteen_bits_stay_where_they_are() -> None:
    ds = JaxLoader(core(casting="same_kind"), dtype=jnp.bfloat16, sharding=by_rows())
    batch = next(iter(ds))
    assert batch.data.data.dtype == jnp.bfloat16
    assert batch.data.data.sharding.is_equivalent_to(by_rows(), 2)
    expected = jnp.asarray(TRUTH.x[batch.index].toarray()).astype(jnp.bfloat16)
    np.testing.assert_array_equal(np.asarray(jax.jit(densify)(batch.data)), expected)


def a_bcsr_has_a_batch_axis() -> None:
    batch = next(iter(JaxLoader(core(), sharding=by_rows())))
    bcsr = batch.data.to_bcsr()
    assert bcsr.shape == (8, 2, N_VARS)
    np.testing.assert_array_equal(np.asarray(bcsr.todense()).reshape(16, -1), TRUTH.x[batch.index].toarray())


def kept_batches_stay_as_they_are() -> None:
    rng = np.random.default_rng(0)
    ds = JaxLoader(core(), nse=Capacity(fixed=128), sharding=by_rows())
    kept: list[Any] = []
    addresses: list[int] = []
    for _ in range(4):
        for batch in ds:
            kept.append(batch)
            addresses.append(batch.data.data.addressable_shards[0].data.unsafe_buffer_pointer())
            if rng.random() < 0.8:
                del kept[rng.integers(len(kept))]
        del batch
        gc.collect()
    assert len(kept) < len(set(addresses)) < 0.8 * len(addresses)
    for batch in kept:
        check_rows(batch, jax.jit(densify)(batch.data), TRUTH, ds.categories)


def without_a_sharding_the_default_device_is_used() -> None:
    """Nothing is committed, so that what is computed from it may still move."""
    device = jax.devices()[5]
    with jax.default_device(device):
        batch = next(iter(JaxLoader(core())))
        leaves = jax.tree.leaves((batch.data, batch.mask, batch.codes))
        assert all(leaf.devices() == {device} and not leaf.committed for leaf in leaves)


def shardings_that_cannot_be_served_are_refused() -> None:
    mesh = by_rows().mesh
    with refused("batch_size must be a multiple of the 8 shards", "got 12"):
        JaxLoader(core(batch_size=12), sharding=by_rows())
    with refused("must cut only rows", "'data'"):
        JaxLoader(core(), sharding=NamedSharding(mesh, PartitionSpec(None, "data")))
    with refused("must be a jax.sharding.NamedSharding, got SingleDeviceSharding"):
        JaxLoader(core(), sharding=SingleDeviceSharding(jax.devices()[0]))


ON_DEVICES: list[Callable[[], None]] = [
    sparse_parts_are_right_where_they_lie,
    parts_are_the_cores_memory,
    dense_rows_are_right,
    an_axis_for_the_model_repeats_the_rows,
    a_mesh_with_explicit_axes_works,
    chosen_genes_come_in_parts,
    sixteen_bits_stay_where_they_are,
    a_bcsr_has_a_batch_axis,
    kept_batches_stay_as_they_are,
    without_a_sharding_the_default_device_is_used,
    shardings_that_cannot_be_served_are_refused,
]


# --- two processes, two devices each ---------------------------------------------------------------------------------


def of_both(**options: Any) -> Iterator[tuple[Any, Any]]:
    """Give the core's batches for both processes, as each of them can compute them alone."""
    return zip(*(iter(core(partition=Partition(rank, 2), **options)) for rank in range(2)), strict=True)


def check_epoch(ds: JaxLoader, truth: Truth = TRUTH, **options: Any) -> None:
    """Compare global batches with what the core gives each process; their sum needs both processes."""
    total = jax.jit(lambda data: (densify(data) if isinstance(data, PaddedCSR) else data).sum(dtype=jnp.float32))
    dense = jax.jit(densify)
    n_batches = 0
    for batch, both in zip(ds, of_both(**options), strict=True):
        n_batches += 1
        np.testing.assert_array_equal(batch.index[batch.index >= 0], both[jax.process_index()].index)
        is_sparse = isinstance(batch.data, PaddedCSR)
        matrix = dense(batch.data) if is_sparse else batch.data
        assert matrix.shape == (32, truth.x.shape[1])
        check_rows(batch, matrix, truth, ds.categories)
        rows = np.concatenate([one.index for one in both])
        np.testing.assert_allclose(total(batch.data), truth.x[rows].sum(), rtol=1e-5)
        if is_sparse:
            assert batch.data.data.shape[0] == batch.data.indptr.shape[0] == 4
            # Each of the four devices has eight rows; all have room for the fullest.
            needed = max(
                int(np.diff(truth.x.indptr)[part].sum())
                for one in both
                for part in np.split(np.append(one.index, np.full(16 - len(one.index), -1)), 2)
                for part in [part[part >= 0]]
            )
            shape = batch.data.data.shape[1]
            assert shape == ds._emit.nse(needed) or "var_names" in options
    assert n_batches == len(ds)


def global_batches_are_those_of_both_processes() -> None:
    check_epoch(JaxLoader(core(), nse=BUCKETS, sharding=by_rows()))


def with_a_fixed_room() -> None:
    ds = JaxLoader(core(), nse=Capacity(fixed=512), sharding=by_rows())
    assert not ds._emit.alike
    check_epoch(ds)


def with_dense_rows() -> None:
    check_epoch(JaxLoader(core(), layout="dense", sharding=by_rows()))


def with_chosen_genes() -> None:
    genes = [41, 3, 17]
    options = {"var_names": [str(gene) for gene in genes]}
    ds = JaxLoader(core(**options), nse=Capacity(smallest=8), sharding=by_rows())
    check_epoch(ds, Truth(TRUTH.x[:, genes], TRUTH.obs), **options)


def with_sixteen_bits() -> None:
    """Each process narrows its own shards ahead, whenever it comes to them."""
    ds = JaxLoader(core(casting="same_kind"), dtype=jnp.bfloat16, nse=Capacity(fixed=512), sharding=by_rows())
    total = jax.jit(lambda data: densify(data).sum(dtype=jnp.float32))
    found = [float(total(batch.data)) for batch in ds]
    assert len(found) == len(ds)
    np.testing.assert_allclose(sum(found), TRUTH.x.sum(), rtol=1e-2)


def with_devices_in_turn() -> None:
    """The order of the devices in the mesh is the user's."""
    devices = np.array(jax.devices())[[0, 2, 1, 3]]
    check_epoch(JaxLoader(core(), nse=BUCKETS, sharding=NamedSharding(Mesh(devices, ("data",)), ROWS)))


def what_is_left_of_an_epoch_is_shared_too() -> None:
    rows, state = [], None
    for part in range(2):
        ds = JaxLoader(core(), nse=BUCKETS, sharding=by_rows())
        if state is not None:
            ds.load_state_dict(state)
        for number, batch in enumerate(ds, 1):
            rows += [int(row) for row in batch.index if row >= 0]
            if number == 3 and not part:
                break
        state = ds.state_dict()
    whole = core(partition=Partition(jax.process_index(), 2))
    np.testing.assert_array_equal(rows, np.concatenate([batch.index for batch in whole]))


def differing_settings_are_an_error() -> None:
    rank = jax.process_index()
    with refused("agree on epoch 0", f"seed is {1 - rank} in process {1 - rank} and {rank} in process {rank}"):
        next(iter(JaxLoader(core(seed=rank), sharding=by_rows())))
    with refused("batch_size is"):
        next(iter(JaxLoader(core(batch_size=16 + 16 * rank), sharding=by_rows())))
    with refused("nse is"):
        next(iter(JaxLoader(core(), nse=Capacity(growth=1.25 + rank), sharding=by_rows())))
    ds = JaxLoader(core(), sharding=by_rows())
    ds.set_epoch(3 * rank)
    with refused("epoch is"):
        next(iter(ds))
    first = core()
    state = first.state_dict()
    ds = JaxLoader(core(), sharding=by_rows())
    ds.load_state_dict(state | {"parts": [[2, 1]] * rank})
    with refused("batches had is"):
        next(iter(ds))


def another_copy_of_the_data_is_an_error() -> None:
    """Rows in another order have the same sizes in all, but not in each batch."""
    stores = STORES
    if jax.process_index() == 1:
        stores = [
            ad.AnnData(X=store.X.to_memory()[::-1].tocsr(), obs=store.obs[::-1], var=store.var) for store in STORES
        ]
    with refused("agree on the first batches", "elements is"):
        next(iter(JaxLoader(core(stores), sharding=by_rows())))


def a_process_that_does_not_come_is_an_error() -> None:
    ds = JaxLoader(core(), sharding=by_rows())
    if jax.process_index() == 0:
        annbatch_jax._agreement.PATIENCE_S = 1
        with refused("process 1 did not begin epoch 0 within 1 s of process 0"):
            next(iter(ds))


def a_partition_of_another_process_is_refused() -> None:
    with refused("partition of the Loader must be that of the sharding"):
        JaxLoader(core(partition=Partition(1 - jax.process_index(), 2)), sharding=by_rows())
    with refused("each process the same number of rows of its own"):
        JaxLoader(core(), sharding=NamedSharding(by_rows().mesh, PartitionSpec()))


IN_PROCESSES: list[Callable[[], None]] = [
    global_batches_are_those_of_both_processes,
    with_a_fixed_room,
    with_dense_rows,
    with_chosen_genes,
    with_sixteen_bits,
    with_devices_in_turn,
    what_is_left_of_an_epoch_is_shared_too,
    differing_settings_are_an_error,
    another_copy_of_the_data_is_an_error,
    a_partition_of_another_process_is_refused,
    a_process_that_does_not_come_is_an_error,
]


if __name__ == "__main__":
    mode, *rest = sys.argv[1:]
    if mode == "processes":
        rank, port = rest
        jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=int(rank))
    for check in ON_DEVICES if mode == "devices" else IN_PROCESSES:
        check()
        print(check.__name__, flush=True)
    if mode == "processes":
        jax.distributed.shutdown()
    print("all hold")
