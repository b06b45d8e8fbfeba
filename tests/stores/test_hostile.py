"""What does a store that means harm get? See ``SECURITY.md``."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
import zarr

import dying
import fuzz_stores
from annbatch import Collection, CorruptStoreError, InputError, Loader, StoreError, create_anndata_collection
from annbatch.shards.array_metadata import describe
from annbatch.sources import Sources
from annbatch.stores import elements
from datagen import named_adata
from mutations import Base, mutate_values
from stores import named_stores, opened_store


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("something in the store was executed",))


def test_codecs_that_unpickle_are_refused_unread(tmp_path):
    """Of numbers zarr refuses them itself; of text it does not."""
    named_stores(tmp_path, "v2", sizes=(10,))
    column = tmp_path / "0.zarr/obs/donor"
    if not (column / ".zarray").exists():  # pandas 3 knows text that may be missing, and anndata writes that as a group
        column /= "values"
    fields = json.loads((column / ".zarray").read_text())
    fields["filters"] += [{"id": "pickle", "protocol": 5}]
    (column / ".zarray").write_text(json.dumps(fields | {"compressor": None}))
    (column / "0").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(StoreError, match=r"obs/donor(/values)?: the codec 'pickle' is refused, because it may execute"):
        opened_store(tmp_path / "0.zarr", ("donor",))


def written(tmp_path: Path) -> Path:
    named_stores(tmp_path, "v3 sharded", sizes=(10,))
    return tmp_path / "0.zarr"


def test_a_row_longer_than_the_matrix_is_wide(tmp_path):
    """It would take any amount of memory, were it believed."""
    path = written(tmp_path)
    indptr = zarr.open_array(path / "X/indptr", mode="r+")
    indptr[5:] = indptr[-1]
    ds = Loader(batch_size=4).add_anndatas([ad.AnnData(X=ad.io.sparse_dataset(zarr.open_group(path, mode="r")["X"]))])
    with pytest.raises(CorruptStoreError, match="a row must have at most 30 elements, got"):
        list(ds)


@pytest.mark.parametrize(
    ("field", "value"),
    [("shape", [2**50]), ("shape", [2**63]), ("shape", [-5]), ("shape", [2**40, 2**40])],
    ids=str,
)
def test_sizes_beyond_all_memory_are_refused(tmp_path, field, value):
    path = written(tmp_path)
    metadata = path / "X/data/zarr.json"
    fields = json.loads(metadata.read_text())
    metadata.write_text(json.dumps(fields | {field: value}))
    assert isinstance(describe(path / "X/data"), str)


def test_a_shard_index_beyond_all_memory_is_refused(tmp_path):
    path = written(tmp_path)
    metadata = path / "X/data/zarr.json"
    fields = json.loads(metadata.read_text())
    fields["chunk_grid"]["configuration"]["chunk_shape"] = [7 * 2**40]
    metadata.write_text(json.dumps(fields))
    assert isinstance(describe(path / "X/data"), str)


MALFORMED = {
    "no encoding": ("X", "attributes", {}),
    "a shape of text": ("X", "attributes", {"encoding-type": "csr_matrix", "shape": ["many", "more"]}),
    "a shape of nothing": ("X", "attributes", {"encoding-type": "csr_matrix"}),
    "a codec that nobody knows": ("X/data", "codecs", [{"name": "bytes", "configuration": 7}]),
    "values that are no numbers": ("X/data", "data_type", "string"),
    "columns of a table that is none": ("obs", "attributes", {"column-order": 3}),
    "a column of another kind": ("obs/donor", "attributes", {"encoding-type": "categorical"}),
    "a column without values": ("obs/stage", "node_type", "array"),
    "genes that are no table": ("var", "attributes", {"encoding-type": "dict", "encoding-version": "0.1.0"}),
    "a root that is no group": ("", "node_type", []),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_metadata_are_a_typed_error_that_names_the_element(tmp_path, name):
    path = written(tmp_path)
    element, key, value = MALFORMED[name]
    metadata = path / element / "zarr.json"
    fields = json.loads(metadata.read_text())
    assert key in fields
    metadata.write_text(json.dumps(fields | {key: value}))
    with pytest.raises(StoreError) as found:
        opened_store(path, None)
    assert str(path) in str(found.value)
    assert element.split("/")[-1] in str(found.value)


@pytest.mark.parametrize("separator", ["\0", "/../../../", "", 7])
def test_keys_of_chunks_lead_nowhere_else(tmp_path, separator):
    metadata = written(tmp_path) / "X/data/zarr.json"
    fields = json.loads(metadata.read_text())
    fields["chunk_key_encoding"] = {"name": "default", "configuration": {"separator": separator}}
    metadata.write_text(json.dumps(fields))
    assert "the separator of chunk keys must be" in str(describe(metadata.parent))


def test_chunks_larger_than_any_number(tmp_path):
    adatas, x, _ = named_stores(tmp_path, "v2", sizes=(10,))
    for size, message in ((2**70, None), (2**63, r"X/data: (must|cannot)")):
        metadata = tmp_path / "0.zarr/X/data/.zarray"
        fields = json.loads(metadata.read_text())
        metadata.write_text(json.dumps(fields | ({"chunks": [size]} if message is None else {"shape": [size]})))
        with pytest.raises(StoreError, match=message or "0.zarr X/data"):
            ds = Loader(batch_size=4)
            ds._use(Sources((opened_store(tmp_path / "0.zarr", ()),), ()))
            list(ds)


def test_a_manifest_of_any_depth_is_a_typed_error(tmp_path):
    (tmp_path / "collection.json").write_text("[" * 100_000)
    with pytest.raises(StoreError, match=r"collection\.json: not JSON"):
        Collection.open(tmp_path)


@pytest.mark.parametrize(
    ("array", "key", "value"),
    [
        ("obs/donor", "filters", [{"id": "vlen-utf8"}, {"id": "pickle", "protocol": 5}]),
        ("X/data", "compressor", {"id": "pickle", "protocol": 5}),
        ("X/indices", "filters", [{"id": "somebodys.codec"}]),
        ("obs/_index", "compressor", {"id": "pickle", "protocol": 5}),
        ("var/_index", "filters", [{"id": "vlen-utf8"}, {"id": "pickle", "protocol": 5}]),
    ],
)
def test_builds_refuse_codecs_that_may_run_what_is_stored(tmp_path, array, key, value):
    named_stores(tmp_path, "v2", sizes=(10,))
    folder = tmp_path / "0.zarr" / array
    if not (folder / ".zarray").exists():
        folder /= "values"
    fields = json.loads((folder / ".zarray").read_text())
    (folder / ".zarray").write_text(json.dumps(fields | {"compressor": None, key: value}))
    (folder / "0").write_bytes(pickle.dumps(Bomb()))
    # Some of them zarr does not even open.
    refusals = (
        f"{array}.*: the codec '.*' is refused, because it may execute",
        "No Zarr data type found",
        "UnknownCodecError|codec not available",
    )
    message = rf"0\.zarr.*({'|'.join(refusals)})"
    with pytest.raises(InputError, match=message):
        create_anndata_collection(tmp_path / "0.zarr", tmp_path / "store", progress=False)
    assert not (tmp_path / "store").exists()


def test_mutated_values_are_what_the_writer_would_have_written(tmp_path):
    """A mutation that a checksum or a codec would give away tests nothing."""
    adata = named_adata(np.random.default_rng(0), range(40), range(30))
    collection = create_anndata_collection(adata, tmp_path / "a", chunk_elements=16, shard_elements=64, progress=False)
    base, name = Base.of(tmp_path / "a", 30), "chunk_0.zarr/X/indices/c/0"
    before = zarr.open_array(collection.store_paths[0] / "X/indices", mode="r")[:]
    (tmp_path / "a" / name).write_bytes(mutate_values(base.files[name], np.random.default_rng(3), name, base))
    after = zarr.open_array(collection.store_paths[0] / "X/indices", mode="r")[:]
    assert 1 <= (before != after).sum() <= 3


@pytest.mark.parametrize("inputs", [200, pytest.param(20_000, marks=pytest.mark.slow)])
def test_mutated_stores(inputs):
    outcomes, findings = fuzz_stores.run(inputs, inputs)
    assert findings == []
    assert sum(outcomes.values()) == inputs
    # Most changes are noticed, and some do no harm.
    assert sum(n for kind, n in outcomes.items() if "Error" in kind) > inputs / 4
    assert any(kind.endswith(": read") for kind in outcomes)


# Python, and JAX where it was imported, warn of threads in a process that forks; the children do not use them.
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning", "ignore:.*fork.*:RuntimeWarning")
def test_deaths_and_silence_are_findings(monkeypatch, tmp_path):
    monkeypatch.setattr(fuzz_stores, "METHOD", "fork")
    monkeypatch.setattr(fuzz_stores, "SILENT_S", 2)
    monkeypatch.setattr(fuzz_stores, "read_inputs", dying.read_inputs)
    found = list(fuzz_stores.outcomes(tmp_path, 0, 5))
    assert [number for number, *_ in found] == [0, 1, 2, 3, 4]
    assert [outcome for _, outcome, _ in found] == ["read", "crash", "read", "hang", "read"]


def test_numbers_of_a_matrix_in_memory_are_shared_out(tmp_path, monkeypatch):
    monkeypatch.setattr(elements, "TASK_BYTES", 64)
    adatas, x, _ = named_stores(tmp_path, "in memory")
    ds = Loader(batch_size=8, chunk_size=4, preload_nchunks=4, threads=2).add_anndatas(adatas)
    for batch in ds:
        assert (batch.data.to_scipy() != x[batch.index]).nnz == 0
    assert len(np.unique(np.concatenate([batch.index for batch in ds]))) == x.shape[0]
