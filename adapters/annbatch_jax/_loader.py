"""How do the core's batches become JAX arrays?

1. The `Emit` asks for padded rows and a capacity rule, so that a jitted step meets few shapes; with a sharding, for a
   part of the rows for each of this process's shards.
2. `jax.device_put` takes over a whole batch at once, never bare ``from_dlpack``: that would commit the arrays to the
   CPU, and on a GPU build everything computed from them would stay there. What the core has made on a CUDA device JAX
   gets as it is (`annbatch_jax._device`).
3. `_Ahead` does so with the next batches before they are asked for: copies to a device go on while a step computes.
4. Processes that share their batches compare what those follow from, before they begin (`annbatch_jax._agreement`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from annbatch.adapter import (
    CSR,
    Adapter,
    Array,
    Batch,
    Capacity,
    Emit,
    Epoch,
    Partition,
    a_loader,
    converted,
    converted_modalities,
    integer,
)
from annbatch.errors import InputError
from annbatch_jax._agreement import Agreement
from annbatch_jax._batch import JaxBatch, held
from annbatch_jax._device import Lender, lender
from annbatch_jax._sharding import Placement
from annbatch_jax._sparse import PaddedCSR

if TYPE_CHECKING:
    from annbatch import Loader

_BUCKETS = Capacity()


class JaxLoader(Adapter):
    """Mini-batches of an `annbatch.Loader` as JAX arrays of few different shapes, for jitted steps.

    Every batch has exactly ``batch_size`` rows; the last one of an epoch is padded with empty rows. Iterating yields

    - ``batch["data"]``: a `PaddedCSR`, or a dense (batch_size, n_vars) array.
    - ``batch["mask"]``: which rows are data, (batch_size,) bool; False for padding rows.
    - ``batch["labels"]``: the label columns as a DataFrame, built when it is accessed.
    - ``batch["index"]``: global row numbers, (batch_size,) int64, -1 for padding rows, unless the core loader has
      ``return_index=False``. They remain a NumPy array, since JAX narrows int64 to int32 unless 64-bit types are on.
    - ``batch.codes[column]``: codes into ``categories[column]``, (batch_size,) int32, missing -1. For a column of
      numbers or booleans, its values: int32, float32 (missing NaN) or bool. If 64-bit types are on, integers are int64,
      and float64 if some may be missing. If they are off, a value that does not fit 32 bits raises an error. Padding
      rows are missing, or False.
    - ``batch["obsm"][name]``: a dense array, or a matrix like ``data`` if it is stored sparse; float32 (float64 if
      ``dtype`` is), or integers, as in ``codes``.
    - For a collection with modalities, ``batch["rna"]["data"]`` and the like replace ``data``, ``layers`` and ``obsm``.

    A batch is a pytree, which ``jax.jit(step)(batch)`` accepts; see `JaxBatch`.

    **Memory.** On the CPU, and with ``Loader(device="cuda")``, ``data`` is the core's own memory. You may keep a batch:
    its memory is not reused before the last array on it is gone and the computations that read it are done.

    **Devices.** Batches of ``Loader(device="cuda")`` are committed to that device. They are made ahead, on a stream of
    their own; the host waits only if a batch is not ready when you request it. Their memory is CuPy's: let JAX leave
    some for it (``XLA_PYTHON_CLIENT_MEM_FRACTION``).

    **Processes.** Under ``jax.distributed``, each process gets its own windows, and all get the same number of batches,
    unless the core loader has a ``partition``. With a ``sharding`` that spans processes, ``data``, ``mask`` and
    ``codes`` are global arrays with ``batch_size`` rows from each process; ``index`` and ``labels`` have only the rows
    of this process.

    Parameters
    ----------
    ds
        The core loader, to which data have been added. It stays reachable as ``.loader``.
    layout
        ``"padded_csr"`` or ``"dense"``.
    dtype
        Type of the values. The core loader's ``casting`` must allow it, unless it is float32: wider floats are then
        rounded, and integers that float32 cannot represent raise an error. 16-bit floats cost an additional pass, in
        which JAX converts float32, except for dense float16 that the core makes on a device.
    nse
        Capacity rule for `PaddedCSR`, from the elements of a batch to those that are allocated. Each capacity is one
        compilation of a step. `annbatch.Capacity` gives buckets, or a fixed capacity.
    canonical
        Whether the columns are known to ascend within each row, without duplicates, in X and layers of all stores;
        obsm does not matter. This holds for stores that `annbatch.create_anndata_collection` wrote. `densify` is then
        faster on a GPU; if it does not hold, results are undefined.
    sharding
        How rows are placed on devices, such as ``NamedSharding(mesh, PartitionSpec("data"))``. None means JAX's default
        device, to which arrays are not committed. `PaddedCSR` describes the form of ``data``. Processes also plan each
        other's batches, so that all have the same capacity without communication; a fixed capacity avoids this work.
        Must be None for loaders on a CUDA device.
    prefetch_to_device
        Number of further batches to put or make on the device ahead of time, if they have been read already.

    Raises
    ------
    annbatch.errors.InputError
        If ``layout``, ``dtype`` or ``sharding`` is not supported; nothing has been read yet. While iterating, if a
        value does not fit its type, or if processes that share a sharding differ in their data, settings, epoch or
        position in it.

    Examples
    --------
    >>> import annbatch
    >>> from annbatch_jax import JaxLoader
    >>> ds = annbatch.Loader(batch_size=32).use_collection(
    ...     "collection", labels=["cell_type"]
    ... )
    >>> for batch in JaxLoader(ds, layout="dense"):
    ...     x, y, mask = batch["data"], batch.codes["cell_type"], batch["mask"]
    >>> x.shape, int(mask.sum())
    ((32, 6), 24)
    """

    def __init__(
        self,
        ds: Loader,
        *,
        layout: Literal["padded_csr", "dense"] = "padded_csr",
        dtype: Any = jnp.float32,
        nse: Callable[[int], int] = _BUCKETS,
        canonical: bool = False,
        sharding: jax.sharding.NamedSharding | None = None,
        prefetch_to_device: int = 2,
    ) -> None:
        if layout not in ("padded_csr", "dense"):
            raise InputError(f"layout must be 'padded_csr' or 'dense', got {layout!r}")
        self.layout = layout
        self.dtype = _usable_dtype(dtype)
        born_on = a_loader(ds).device
        # The core's kernels for the CPU know no 16-bit floats: it gives float32, and JAX narrows that.
        emitted = np.dtype(np.float32) if self.dtype in (jnp.float16, jnp.bfloat16) else self.dtype
        if born_on != "cpu" and layout == "dense" and self.dtype == jnp.float16:
            emitted = self.dtype
        # A function of the user's could not compute with the bits.
        is_bfloat16 = born_on != "cpu" and layout == "dense" and self.dtype == jnp.bfloat16 and not ds.has_function
        narrowed: Any = self.dtype.name if self.dtype in (jnp.float16, jnp.bfloat16) else None
        emit = Emit(dtype=emitted, narrowed=narrowed, layout="dense", bfloat16=is_bfloat16, pad_rows=True)
        if layout == "padded_csr":
            emit = replace(emit, layout="csr", index_dtype=np.dtype(np.int32), nse=nse)
        super().__init__(ds, emit)
        self._is_narrowed = emitted != self.dtype
        self._canonical = canonical
        self._n_ahead = integer("prefetch_to_device", prefetch_to_device, 0)
        if born_on != "cpu" and sharding is not None:
            raise InputError(f"sharding must be None for Loader(device={born_on!r})")
        self._placement = None if sharding is None else Placement.of(sharding, ds.batch_size)
        self._lender = None if born_on == "cpu" else lender(int(born_on.removeprefix("cuda:")))
        self._agreement: Agreement | None = None
        if self._placement is not None:
            self._share(self._placement)

    def _share(self, placement: Placement) -> None:
        own = self.loader.partition
        if placement.is_shared:
            if own not in (None, placement.partition):
                raise InputError(
                    f"partition of the Loader must be that of the sharding, {placement.partition}, got {own}"
                )
            self._agreement = Agreement(placement.processes)
        if self._emit.layout == "csr":
            nse = self._emit.nse
            is_fixed = isinstance(nse, Capacity) and nse.fixed is not None
            self._emit = replace(self._emit, parts=placement.n_local, alike=placement.is_shared and not is_fixed)

    def __iter__(self) -> Iterator[JaxBatch]:
        emit, agree, confirm = self._emit, None, None
        if self._agreement is not None:
            agree = partial(self._agree, self._agreement)
            if emit.alike and emit.nse is not None:
                rule = _Remembering(emit.nse)
                emit = replace(emit, nse=rule)
                confirm = partial(self._confirm, self._agreement, rule)
        epoch = self.loader.batches(emit, self.partition)
        if self._lender is not None:
            return _MadeAhead(epoch, self._hand_over, self._n_ahead, self._lender)
        return _Ahead(epoch, self._hand_over, self._n_ahead, agree, confirm)

    @property
    def partition(self) -> Partition | None:
        """The consumer that this process is, by the loader's ``partition`` or otherwise by its JAX process index."""
        if self._placement is not None and self._placement.is_shared:
            return self._placement.partition
        if self.loader.partition is not None or jax.process_count() == 1:
            return self.loader.partition
        return Partition(jax.process_index(), jax.process_count())

    def _settings(self) -> dict[str, Any]:
        """Say what the shapes and rows of the batches follow from."""
        loader, nse = self.loader, self._emit.nse
        state = loader.state_dict()
        return {
            **{f"data {name}": value for name, value in state["fingerprint"].items()},
            "order": state["order_version"],
            "epoch": loader.next_epoch,
            "batches had": state["parts"] if loader.next_epoch == state["epoch"] else [],
            "layout": self._emit.layout,
            "dtype": str(self.dtype),
            "n_vars": {name: one.n_vars for name, one in loader.mod.items()} or loader.n_vars,
            "canonical": self._canonical,
            "nse": repr(nse) if isinstance(nse, Capacity) else getattr(nse, "__qualname__", type(nse).__name__),
            "layers": list(loader.layers),
            "obsm": list(loader.obsm),
        }

    def _agree(self, agreement: Agreement) -> None:
        """Compare what the epoch that begins follows from."""
        agreement.check(f"epoch {self.loader.next_epoch}", self._settings())

    @staticmethod
    def _confirm(agreement: Agreement, rule: _Remembering) -> None:
        """Compare what the first batches need: other copies of the data would need something else."""
        agreement.check("the first batches", {"elements": rule.first, "nse": rule.rule(rule.first)})

    def _hand_over(self, batch: Batch) -> JaxBatch:
        return self._made_of(batch, self._put)

    def _on_host(self, batch: Batch) -> JaxBatch:
        """Give a batch of the core as `JaxBatch`, with NumPy's arrays in it."""
        return self._made_of(batch, lambda tree: tree)

    def _made_of(self, batch: Batch, put: Callable[[Any], Any]) -> JaxBatch:
        n_rows = batch.n_rows
        mask = np.arange(n_rows) < n_rows - batch.n_padding
        handed = put(
            {
                "data": None if batch.data is None else self._matrix(batch.data),
                "layers": converted(batch.layers, self._matrix),
                "obsm": None if batch.obsm is None else {name: self._obsm(name, m) for name, m in batch.obsm.items()},
                "codes": {name: held(codes, f"obs[{name!r}]") for name, codes in batch.codes.items()},
                "mask": mask,
                "modalities": converted_modalities(batch.modalities, self._matrix, self._obsm, lambda held: held),
            }
        )
        if self._is_narrowed:
            handed["data"] = None if batch.data is None else self._narrowed(handed["data"])
            handed["layers"] = converted(handed["layers"], self._narrowed)
            handed["modalities"] = converted_modalities(
                handed["modalities"], self._narrowed, lambda _, held: held, lambda held: held
            )
        rest = {f.name: getattr(batch, f.name) for f in fields(batch) if f.name not in handed}
        return JaxBatch(**handed, **rest)

    def _put(self, tree: Any) -> Any:
        """Make JAX arrays of the core's."""
        by = self._placement or self._lender
        return jax.device_put(tree) if by is None else by.put(tree)

    def _narrowed(self, matrix: Any) -> Any:
        if self._emit.bfloat16 and not isinstance(matrix, PaddedCSR):
            return _from_bits(matrix)
        values = matrix.data if isinstance(matrix, PaddedCSR) else matrix
        # Integers are a transform's: numbers of tokens, say.
        if not jnp.issubdtype(values.dtype, jnp.floating):
            return matrix
        values = _cast(values, self.dtype)
        return replace(matrix, data=values) if isinstance(matrix, PaddedCSR) else values

    def _matrix(self, data: CSR | Array) -> Any:
        """Give the tree of a matrix; a transform may have given values another type."""
        values = data.data if isinstance(data, CSR) else data
        if values.dtype.kind == "f" and self._emit.dtype is not None and self._emit.dtype.kind == "f":
            values = values.astype(self._emit.dtype, copy=False)
        values = held(values, "data")
        return self._tree(replace(data, data=values) if isinstance(data, CSR) else values, self._canonical)

    def _obsm(self, name: str, data: CSR | Array) -> Any:
        if isinstance(data, CSR):
            return self._tree(replace(data, data=held(data.data, f"obsm/{name}")), canonical=False)
        return held(data, f"obsm/{name}")

    def _tree(self, data: CSR | Array, canonical: bool) -> Any:
        if not isinstance(data, CSR):
            return data
        n_rows, n_vars = data.shape
        if self._placement is not None:
            n_rows *= len(self._placement.processes)
        return PaddedCSR(data.data, data.indices, data.indptr, (n_rows, n_vars), canonical)  # type: ignore[arg-type]


class _Ahead(Iterator[JaxBatch]):
    """Hands batches over before they are asked for; one that the user has let go is kept by nothing here.

    ``agree`` is called before the first batch is read, ``confirm`` when it was.
    """

    def __init__(
        self,
        epoch: Epoch,
        hand_over: Callable[[Batch], JaxBatch],
        n: int,
        agree: Callable[[], None] | None,
        confirm: Callable[[], None] | None,
    ) -> None:
        self._epoch, self._hand_over, self._n = epoch, hand_over, n
        self._agree, self._confirm = agree, confirm
        self._handed: deque[JaxBatch] = deque()

    def __next__(self) -> JaxBatch:
        with self._epoch.lock:
            if self._agree is not None:
                self._agree()
                self._agree = None
            batch = next(self._epoch)
            if self._confirm is not None:
                self._confirm()
                self._confirm = None
            handed = self._handed.popleft() if self._handed else self._hand_over(batch)
            self._handed.extend(map(self._hand_over, self._epoch.ahead(self._n)[len(self._handed) :]))
            return handed


class _MadeAhead(Iterator[JaxBatch]):
    """Lets batches be made on a device before they are asked for, and hands each over when it is."""

    def __init__(
        self,
        epoch: Epoch,
        hand_over: Callable[[Batch], JaxBatch],
        n: int,
        lender: Lender,
    ) -> None:
        self._epoch, self._hand_over, self._n, self._lender = epoch, hand_over, n, lender
        self._waits: deque[Callable[[], None]] = deque()

    def __next__(self) -> JaxBatch:
        with self._epoch.lock, self._lender:
            # Before memory is taken for new batches.
            self._lender.returned.settle()
            batch = next(self._epoch)
            wait = self._waits.popleft() if self._waits else self._lender.wait_for_made()
            for _ in self._epoch.ahead(self._n)[len(self._waits) :]:
                self._waits.append(self._lender.wait_for_made())
            wait()
            return self._hand_over(batch)


def _cast(values: Any, dtype: Any) -> Any:
    """Cast each shard where it lies: computations on global arrays have to start in one order in all processes."""
    if isinstance(values, np.ndarray) or values.is_fully_addressable:
        return values.astype(dtype)
    shards = [shard.data.astype(dtype) for shard in values.addressable_shards]
    return jax.make_array_from_single_device_arrays(values.shape, values.sharding, shards)


@jax.jit
def _from_bits(bits: jax.Array) -> jax.Array:
    return jax.lax.bitcast_convert_type(bits, jnp.bfloat16)


class _Remembering:
    """A rule for capacities that remembers the first number that it was asked about."""

    def __init__(self, rule: Callable[[int], int]) -> None:
        self.rule = rule
        self.first = 0

    def __call__(self, n_elements: int) -> int:
        self.first = self.first or n_elements
        return self.rule(n_elements)


def _usable_dtype(dtype: Any) -> np.dtype[Any]:
    """Give the dtype if JAX holds values of it without changing them."""
    wanted: np.dtype[Any] = np.dtype(dtype)
    if wanted != jnp.bfloat16 and (wanted.kind not in "fiu" or wanted.itemsize > 8):
        raise InputError(f"dtype must be a real number type of at most 64 bits, got {wanted}")
    if jax.dtypes.canonicalize_dtype(wanted) != wanted:
        raise InputError(f"dtype must have at most 32 bits unless jax_enable_x64 is set, got {wanted}")
    return wanted
