"""Is a store what its rows, given a piece at a time, are in AnnData, and are its arrays cut as the layout says?"""

from __future__ import annotations

import json
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import zarr

from annbatch.shards.codecs import numcodecs_are_known
from annbatch.stores.manifest import ElementTypes, checksum
from annbatch.write.array_layout import ArrayLayout, Codec
from annbatch.write.inputs.contents import Element
from annbatch.write.inputs.obs_table import NAMES, ObsColumn, ObsTable
from annbatch.write.output import store_writer
from annbatch.write.output.shard_files import ShardFiles
from annbatch.write.output.store_writer import StoreContents, frame_writer, write_store
from annbatch.write.shuffle.run_reader import RowPiece

N, N_GENES = 5, 3
U2, F4 = np.dtype("u2"), np.dtype("f4")
X = np.array([[0, 0, 0], [0, 0, 0], [900, 1, 2], [3, 4, 5], [0, 7, 6]], U2)
DENSE = np.arange(N * N_GENES, dtype=U2).reshape(N, N_GENES)
PCA = np.arange(N * 9, dtype=F4).reshape(N, 9)
ONE = np.arange(N, dtype=F4)[:, None]
CELLS = [f"cell{i}" for i in range(N)]
IDENTIFIERS = ["a", "ä", "", "abc", "d"]

TABLE = ObsTable(
    Path("nowhere"),
    N,
    (
        ObsColumn("kind", 0, np.dtype("i1"), False, pd.Index(["x", "y"]), True),
        ObsColumn("n", 1, np.dtype("i4"), True, None, False),
        ObsColumn("identifier", 2, None, False, None, False),
    ),
    None,
)
CODES, VALUES, MASK = [0, 1, -1, 1, 0], [5, 6, 7, 8, 9], [False, False, False, True, True]
RECORDS = np.array(list(zip(CODES, VALUES, MASK, strict=True)), TABLE.record)


def text(strings: list[str]) -> Any:
    encoded = [one.encode() for one in strings]
    return np.frombuffer(b"".join(encoded), np.uint8), np.cumsum([0, *map(len, encoded)])


def piece(start: int, stop: int) -> RowPiece:
    rows = slice(start, stop)
    csr: Any = sp.csr_matrix(X[rows])
    sparse = SimpleNamespace(data=csr.data, indices=csr.indices.astype(U2), indptr=csr.indptr.astype(np.int64))
    texts = {NAMES: text(CELLS[rows]), "obs2": text(IDENTIFIERS[rows])}
    found: Any = {"X": sparse}
    dense = {"layers/dense": DENSE[rows], "obsm/pca": PCA[rows], "obsm/one": ONE[rows]}
    return RowPiece(RECORDS[rows], texts, found, dense)


CONTENTS = StoreContents(
    N,
    pd.DataFrame({"length": [1, 2, 3]}, index=["g0", "g1", "g2"]),
    TABLE,
    [
        Element("X", "csr", N_GENES),
        Element("layers/dense", "dense", N_GENES),
        Element("obsm/pca", "dense", 9),
        Element("obsm/one", "dense", 1),
    ],
    {
        "X": ElementTypes(U2, F4, U2),
        "layers/dense": ElementTypes(U2, F4, None),
        "obsm/pca": ElementTypes(F4, F4, None),
        "obsm/one": ElementTypes(F4, F4, None),
    },
    {"X": int((X != 0).sum())},
)


def cut(codec: Codec = "blosc") -> ArrayLayout:
    return ArrayLayout(chunk_elements=4, shard_elements=8, plain_rows=3, codec=codec)


def write(
    path: Path,
    codec: Codec = "blosc",
    cuts: tuple[int, ...] = (0, 2, 5),
    pieces: Any = None,
    contents: StoreContents = CONTENTS,
) -> tuple[Any, Any]:
    told: list[int] = []
    pieces = (piece(a, b) for a, b in pairwise(cuts)) if pieces is None else pieces
    with ThreadPoolExecutor(2) as workers:
        files = write_store(path, contents, pieces, cut(codec), workers=workers, syncing=workers, report=told.append)
    return files, told


@pytest.mark.parametrize("codec", ["blosc", "packed", "zstd"])
def test_a_store_holds_its_rows(codec: Codec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(store_writer, "NAMES_IN_CHUNK", 2)
    files, told = write(tmp_path / "store", codec)
    assert told == [2, 3]
    assert {key: checksum(tmp_path / "store" / key) for key in files} == files
    arrays = {"X/data", "X/indices", "layers/dense", "obsm/pca", "obsm/one"}
    assert {key.rpartition("/c/")[0] for key in files} == arrays
    with warnings.catch_warnings(), numcodecs_are_known():
        # anndata 0.13 has reasons of its own to warn of nullable columns.
        warnings.simplefilter("ignore")
        found = ad.read_zarr(tmp_path / "store")
    np.testing.assert_array_equal(found.X.toarray(), X)
    assert found.X.has_sorted_indices
    np.testing.assert_array_equal(found.layers["dense"], DENSE)
    np.testing.assert_array_equal(found.obsm["pca"], PCA)
    np.testing.assert_array_equal(found.obsm["one"], ONE)
    assert found.obs_names.tolist() == CELLS
    assert found.var["length"].tolist() == [1, 2, 3]
    assert found.obs["kind"].cat.codes.tolist() == CODES
    assert found.obs["kind"].cat.ordered
    assert [None if pd.isna(value) else value for value in found.obs["n"]] == [5, 6, 7, None, None]
    assert found.obs["identifier"].tolist() == IDENTIFIERS
    assert list(found.obs.columns) == ["kind", "n", "identifier"]


def codecs_of(array: Any) -> list[str]:
    (codec, *more) = array.metadata.to_dict()["codecs"]
    inner = codec["configuration"].get("codecs") if codec["name"] == "sharding_indexed" else [codec, *more]
    return [one["name"] for one in inner]


@pytest.mark.parametrize(
    ("codec", "data", "indices", "dense"),
    [
        ("blosc", ["bytes", "blosc", "crc32c"], ["bytes", "blosc", "crc32c"], ["bytes", "blosc", "crc32c"]),
        ("packed", ["annbatch.packed"], ["annbatch.packed"], ["bytes", "blosc", "crc32c"]),
        (
            "zstd",
            ["bytes", "numcodecs.shuffle", "zstd", "crc32c"],
            ["numcodecs.delta", "bytes", "numcodecs.shuffle", "zstd", "crc32c"],
            ["bytes", "numcodecs.shuffle", "zstd", "crc32c"],
        ),
    ],
)
def test_arrays_are_cut_and_compressed(
    codec: Codec,
    data: list[str],
    indices: list[str],
    dense: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(store_writer, "NAMES_IN_CHUNK", 2)
    write(tmp_path / "store", codec)
    with numcodecs_are_known():
        root: Any = zarr.open_group(tmp_path / "store", mode="r")
        expected = {
            "X/data": (U2, (4,), (8,), data),
            "X/indices": (U2, (4,), (8,), indices),
            "X/indptr": (np.dtype("i8"), (3,), None, ["bytes"]),
            "layers/dense": (U2, (1, 3), (2, 3), dense),
            "obsm/pca": (F4, (1, 9), (1, 9), dense),
            "obsm/one": (F4, (4, 1), (8, 1), dense),
            "obs/kind/codes": (np.dtype("i1"), (3,), None, ["bytes"]),
            "obs/n/values": (np.dtype("i4"), (3,), None, ["bytes"]),
            "obs/n/mask": (np.dtype(bool), (3,), None, ["bytes"]),
            "var/length": (np.dtype("i8"), (3,), None, ["bytes"]),
        }
        for name, (dtype, chunks, shards, codecs) in expected.items():
            array = root[name]
            assert (array.dtype, array.chunks, array.shards, codecs_of(array)) == (dtype, chunks, shards, codecs), name
            assert array.fill_value == 0
            assert array.attrs["encoding-type"] == "array"
        # Of the names, a window reads some; other text is read as a whole.
        assert (root["obs/_index"].chunks, root["obs/_index"].shards) == ((2,), (2,))
        assert (root["obs/identifier"].chunks, root["obs/identifier"].shards) == ((3,), None)
        assert dict(root.attrs) == {"encoding-type": "anndata", "encoding-version": "0.1.0"}
        assert root["X"].attrs["original-dtype"] == root["layers/dense"].attrs["original-dtype"] == "float32"
        assert "original-dtype" not in root["obsm/pca"].attrs
        assert root["X"].attrs["shape"] == [N, N_GENES]
        assert root["obs"].attrs["column-order"] == ["kind", "n", "identifier"]
        assert {name for name, _ in root.groups()} == {
            *("X", "layers", "obs", "obsm", "obsp", "uns", "var", "varm", "varp")
        }


def test_every_chunk_is_written(tmp_path: Path):
    """Also one of zeros: each has bytes and a checksum."""
    write(tmp_path / "store")
    assert sorted(path.name for path in (tmp_path / "store/X/indptr/c").iterdir()) == ["0", "1"]
    assert len(list((tmp_path / "store/obs/n/mask/c").iterdir())) == 2


def test_differences_are_taken_of_column_numbers_alone(tmp_path: Path):
    write(tmp_path / "store", "packed")
    for name, delta in (("data", False), ("indices", True)):
        stored = json.loads((tmp_path / "store" / "X" / name / "zarr.json").read_bytes())
        (inner,) = stored["codecs"][0]["configuration"]["codecs"]
        assert inner["configuration"] == {"delta": delta}


def test_an_error_between_pieces_closes_all_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    made: list[ShardFiles] = []

    class Remembered(ShardFiles):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            made.append(self)

    def pieces() -> Any:
        yield piece(0, 3)
        assert any(one._file is not None for one in made)
        raise RuntimeError("odd")

    monkeypatch.setattr(store_writer, "ShardFiles", Remembered)
    with pytest.raises(RuntimeError, match="odd"):
        write(tmp_path / "store", pieces=pieces())
    assert all(one._file is None or one._file.closed for one in made)


def test_names_lie_under_the_name_of_the_index(tmp_path: Path):
    write(tmp_path / "store", contents=replace(CONTENTS, table=replace(TABLE, index_name="barcode")))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        obs: Any = ad.io.read_elem(zarr.open_group(tmp_path / "store", mode="r")["obs"])
    assert obs.index.name == "barcode"
    assert obs.index.tolist() == CELLS
    assert list(obs.columns) == ["kind", "n", "identifier"]


TEXT = np.array(["a", "ä", ""], object)


@pytest.mark.parametrize(
    ("values", "text_rows", "chunks", "shards"),
    [
        (np.arange(7), None, (3,), None),
        (np.arange(2), None, (2,), None),
        (np.zeros(0), None, (1,), None),
        (np.arange(8).reshape(4, 2), None, (3, 2), None),
        (np.arange(7), 2, (3,), None),
        (TEXT, None, (3,), None),
        (TEXT, 3, (3,), None),
        (TEXT, 2, (2,), (2,)),
    ],
    ids=["longer", "shorter", "empty", "two axes", "numbers", "text", "text of one chunk", "text of several chunks"],
)
def test_arrays_of_tables_are_cut(values: Any, text_rows: int | None, chunks: Any, shards: Any, tmp_path: Path):
    """Only text is cut into inner chunks, where it is asked for and longer than one of them."""
    root: Any = zarr.open_group(tmp_path / "table", mode="w", zarr_format=3)
    ad.experimental.write_dispatched(root, "values", values, callback=frame_writer(cut(), text_rows))
    assert (root["values"].chunks, root["values"].shards) == (chunks, shards)
    assert ad.io.read_elem(root["values"]).tolist() == values.tolist()
