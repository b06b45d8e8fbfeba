"""How does a small store become a hostile one?

A `Base` is a store, or a file, as it was written: its bytes by path. `mutate` changes something, structure-aware, and
gives the files that differ and what they then hold; `Mutation.is_hidden` says whether checksums were forged to fit.
"""

from __future__ import annotations

import copy
import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numcodecs import Blosc, Zstd, get_codec

from annbatch.shards.checksum import crc32c
from annbatch.stores.collection import MANIFEST

EXTREMES: list[Any] = [
    *(0, 1, -1, 2, 3, 7, 8, 255, 2**16, 2**31 - 1, 2**31, 2**32, 2**53, 2**62, 2**63 - 1, 2**63, 2**64 - 1, 2**64),
    *(-(2**63), None, True, "", "x", "\x00", "uint8", "int64", "float64", "NaN", "0x7fc00000", "../../x", 0.5, 1e308),
    *(float("inf"), "float128", "complex128", "object", "<U9", "M8[s]", "|O", "/etc/passwd", "csc_matrix", "dict"),
    *([], {}, [0], [2**40], [-1], [2**20, 2**20]),
    *(["bytes"], {"name": "blosc"}, {"name": "pickle"}, {"name": "numcodecs.zstd", "configuration": {"level": 1}}),
    *({"name": "numcodecs.delta", "configuration": {"dtype": dtype}} for dtype in ("<u2", "<u4", "|O")),
    *({"id": "pickle"}, {"id": "blosc"}, [{"id": "pickle", "protocol": 5}], [{"id": "vlen-utf8"}]),
    *("categorical", "nullable-integer", "nullable-boolean", "string-array", "array", "dataframe", "csr_matrix"),
]  # fmt: skip
METADATA = ("zarr.json", ".zarray", ".zattrs", ".zgroup", ".zmetadata", MANIFEST)
INDEX_EXTREMES = (0, 1, 4, 5, 16, 2**31, 2**63, 2**64 - 1)


@dataclass(frozen=True, slots=True)
class Base:
    """What inputs are made from."""

    folder: Path
    """Where it lies."""
    files: dict[str, bytes]
    """Path below the folder to bytes."""
    n_vars: int
    _names: dict[str, list[str]] = field(default_factory=dict)

    def names(self, kind: str) -> list[str]:
        """Give the files in which a kind of change can be made."""
        if kind not in self._names:
            self._names[kind] = [name for name in self.files if _APPLIES[kind](name, self)]
        return self._names[kind]

    @classmethod
    def of(cls, folder: Path, n_vars: int) -> Base:
        """Read what was written."""
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
        return cls(folder, files, n_vars)

    def below(self, prefix: str) -> Base:
        """Give a part of it, which is changed alone."""
        files = {name: stored for name, stored in self.files.items() if name.startswith(prefix)}
        return Base(self.folder, files, self.n_vars)

    def copy(self, folder: Path) -> Base:
        """Write it elsewhere."""
        for name, stored in self.files.items():
            write(folder / name, stored)
        return Base(folder, self.files, self.n_vars)


@dataclass(frozen=True, slots=True)
class Mutation:
    """What was changed."""

    kind: str
    name: str
    """The file."""
    files: dict[str, bytes]
    """Path to bytes of all files that differ."""
    is_hidden: bool
    """Whether checksums say nothing about it."""

    def __str__(self) -> str:
        return f"{self.kind} of {self.name}"


def write(path: Path, stored: bytes) -> None:
    """Write a file and its directories."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(stored)


def mutate(base: Base, rng: np.random.Generator) -> Mutation:
    """Change something."""
    if any(name.endswith(".h5ad") for name in base.files):
        return mutate_h5ad(base, rng)
    chances = {kind: chance for kind, (chance, _) in _KINDS.items() if base.names(kind)}
    kind = str(rng.choice(list(chances), p=np.array(list(chances.values())) / sum(chances.values())))
    names = base.names(kind)
    name = names[rng.integers(len(names))]
    changed = _KINDS[kind][1](base.files[name], rng, name, base)
    files = {name: changed}
    is_hidden = kind in ("metadata", "shard") or (kind == "values" and encoding_of(base, name).chunks_per_shard > 0)
    if MANIFEST in base.files and name != MANIFEST and rng.random() < 0.8:
        # The manifest of who forges agrees with what he forged.
        files[MANIFEST], is_hidden = _recorded(base.files[MANIFEST], name, changed), True
    return Mutation(kind, name, files, is_hidden)


# --- metadata ---------------------------------------------------------------------------------------------------------


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Give the paths to all fields of a JSON value."""
    found = [at] if at else []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        found += places(inner, (*at, key))
    return found


def look_up(value: Any, at: tuple[Any, ...]) -> Any:
    for key in at:
        value = value[key]
    return value


def mutate_metadata(stored: bytes, rng: np.random.Generator, name: str, base: Base) -> bytes:
    """Change one to three fields: remove them, make them extreme, or what another one is."""
    root = json.loads(stored)
    for _ in range(int(rng.integers(1, 4))):
        all_places = places(root)
        if not all_places:
            break
        *parents, key = all_places[rng.integers(len(all_places))]
        parent = look_up(root, tuple(parents))
        kind = rng.integers(4)
        if kind == 0:
            del parent[key]
        elif kind == 1:
            parent[key] = copy.deepcopy(EXTREMES[rng.integers(len(EXTREMES))])
        elif kind == 2:
            parent[key] = copy.deepcopy(look_up(root, all_places[rng.integers(len(all_places))]))
        elif isinstance(parent[key], int) and not isinstance(parent[key], bool):
            parent[key] += int(rng.integers(-3, 4))
        elif isinstance(parent[key], list):
            parent[key] = parent[key] * 2
    return json.dumps(root).encode()


def _recorded(manifest: bytes, name: str, changed: bytes) -> bytes:
    """Give a manifest that agrees with a changed file."""
    root = json.loads(manifest)
    store, _, key = name.partition("/")
    for entry in root["stores"]:
        if entry["name"] == store and key in entry["files"]:
            entry["files"][key] = {"nbytes": len(changed), "crc32c": _crc(changed)}
    return json.dumps(root).encode()


def _crc(stored: bytes) -> int:
    return int(crc32c(np.frombuffer(stored, np.uint8)))


# --- bytes ------------------------------------------------------------------------------------------------------------


def change_bytes(raw: bytearray, rng: np.random.Generator, first: int = 0, stop: int | None = None) -> None:
    """Change some bytes in place."""
    stop = len(raw) if stop is None else stop
    if stop <= first:
        return
    for _ in range(int(rng.integers(1, 6))):
        raw[int(rng.integers(first, stop))] = int(rng.choice([0, 1, 0x7F, 0x80, 0xFF, int(rng.integers(256))]))


def mutate_bytes(stored: bytes, rng: np.random.Generator, name: str, base: Base) -> bytes:
    """Change raw bytes of a file, or its length."""
    raw = bytearray(stored)
    kind = rng.integers(4)
    if kind == 0:
        raw = raw[: int(rng.integers(0, len(raw) + 1))]
    elif kind == 1:
        raw += rng.bytes(int(rng.integers(1, 64)))
    elif kind == 2 and len(raw) > 1:
        a, b = sorted(rng.integers(0, len(raw), 2).tolist())
        raw[a:b] = b""
    else:
        change_bytes(raw, rng)
    return bytes(raw)


# --- shards -----------------------------------------------------------------------------------------------------------


def mutate_shard(stored: bytes, rng: np.random.Generator, name: str, base: Base) -> bytes:
    """Change a shard's index, or a chunk, and forge the checksums of both."""
    encoding = encoding_of(base, name)
    raw, n, n_check = bytearray(stored), encoding.chunks_per_shard, encoding.checksum_bytes
    start = len(raw) - (16 * n + 4)
    index = np.frombuffer(bytes(raw[start:-4]), "<u8").copy()
    k = int(rng.integers(n))
    at, size = int(index[2 * k]), int(index[2 * k + 1])
    if rng.random() < 0.4:
        extremes = [*INDEX_EXTREMES, at, size, len(raw), start]
        index[int(rng.integers(2 * n))] = int(rng.choice(np.array(extremes, np.uint64)))
    elif at + size <= start and size > n_check:
        # The header of a compressed chunk is where a forger would begin.
        stop = at + size - n_check
        change_bytes(raw, rng, at, stop if rng.random() < 0.5 else min(at + 16, stop))
        raw[at : at + size] = encoding.checked(bytes(raw[at:stop]))
    raw[start:-4] = index.tobytes()
    raw[-4:] = _crc(bytes(raw[start:-4])).to_bytes(4, "little")
    return bytes(raw)


def _change_values(values: np.ndarray[Any, Any], rng: np.random.Generator, n_vars: int) -> None:
    info = np.iinfo(values.dtype)
    extremes = [info.min, info.max, info.max - 1, 2**7 - 1, n_vars - 1, n_vars, n_vars + 1, 0, 1]
    if info.min < 0:
        extremes.append(-1)
    for _ in range(int(rng.integers(1, 4))):
        at = int(rng.integers(len(values)))
        near = int(values[at]) + int(rng.integers(-2, 3))
        found = near if rng.random() < 0.3 else extremes[rng.integers(len(extremes))]
        values[at] = min(max(found, info.min), info.max)


def mutate_values(stored: bytes, rng: np.random.Generator, name: str, base: Base) -> bytes:
    """Write other numbers into ``indptr``, codes or ``indices``, encoded and with checksums as they should be."""
    encoding, n_vars = encoding_of(base, name), base.n_vars
    n = encoding.chunks_per_shard
    if n == 0:
        return encoding.changed(stored, rng, n_vars)
    start = len(stored) - (16 * n + 4)
    index = np.frombuffer(stored[start:-4], "<u8").reshape(n, 2).copy()
    chunks = [b"" if at == 2**64 - 1 else stored[at : at + size] for at, size in index.tolist()]
    present = [k for k, chunk in enumerate(chunks) if chunk]
    k = present[rng.integers(len(present))]
    chunks[k] = encoding.changed(chunks[k], rng, n_vars)
    raw = b""
    for k in present:
        index[k] = len(raw), len(chunks[k])
        raw += chunks[k]
    return raw + index.tobytes() + _crc(index.tobytes()).to_bytes(4, "little")


@dataclass(frozen=True, slots=True)
class Encoding:
    """How the chunks of an array are stored."""

    dtype: np.dtype[Any]
    codec: Any
    """numcodecs' codec; None for none."""
    delta: bool
    """Whether elements are stored as differences."""
    checksum_bytes: int
    """How many bytes of each chunk, its last, are its checksum."""
    chunks_per_shard: int
    """Zero where there are no shards."""

    def changed(self, stored: bytes, rng: np.random.Generator, n_vars: int) -> bytes:
        """Change values of a chunk."""
        encoded = stored[: len(stored) - self.checksum_bytes]
        values = np.frombuffer(bytearray(encoded if self.codec is None else self.codec.decode(encoded)), self.dtype)
        if self.delta:
            values = np.cumsum(values, dtype=self.dtype)
        _change_values(values, rng, n_vars)
        if self.delta:
            values = np.diff(values, prepend=self.dtype.type(0))
        return self.checked(bytes(values.tobytes() if self.codec is None else self.codec.encode(values)))

    def checked(self, encoded: bytes) -> bytes:
        """Add the checksum of a chunk, where it has one."""
        return encoded + _crc(encoded).to_bytes(4, "little")[: self.checksum_bytes]


def encoding_of(base: Base, name: str) -> Encoding:
    """Say how the array that a chunk belongs to is stored."""
    array = name[: name.rindex("/c/")] if "/c/" in name else name[: name.rindex("/")]
    if f"{array}/.zarray" in base.files:
        fields = json.loads(base.files[f"{array}/.zarray"])
        compressor = fields["compressor"]
        return Encoding(np.dtype(fields["dtype"]), None if compressor is None else get_codec(compressor), False, 0, 0)
    fields = json.loads(base.files[f"{array}/zarr.json"])
    codecs, chunks_per_shard = fields["codecs"], 0
    if codecs[0]["name"] == "sharding_indexed":
        inner, shard = codecs[0]["configuration"], fields["chunk_grid"]["configuration"]["chunk_shape"]
        codecs, chunks_per_shard = inner["codecs"], math.prod(shard) // math.prod(inner["chunk_shape"])
    names = {codec["name"] for codec in codecs}
    codec = Blosc("lz4", 5, Blosc.SHUFFLE) if "blosc" in names else Zstd() if "zstd" in names else None
    is_delta = "numcodecs.delta" in names
    return Encoding(np.dtype(fields["data_type"]), codec, is_delta, 4 * ("crc32c" in names), chunks_per_shard)


_KINDS: dict[str, tuple[float, Callable[[bytes, np.random.Generator, str, Base], bytes]]] = {
    "metadata": (0.45, mutate_metadata),
    "shard": (0.2, mutate_shard),
    "values": (0.2, mutate_values),
    "bytes": (0.15, mutate_bytes),
}
"""Kind of change -> how often, and what makes it."""
_APPLIES: dict[str, Callable[[str, Base], bool]] = {
    "metadata": lambda name, base: name.endswith(METADATA),
    "shard": lambda name, base: (
        re.search(r"X/(data|indices)/c/", name) is not None and encoding_of(base, name).chunks_per_shard > 0
    ),
    "values": lambda name, base: re.search(r"(X/indices|X/indptr|/codes|/n)/(c/)?\d+$", name) is not None,
    "bytes": lambda name, base: True,
}
"""Kind of change -> whether it can be made in a file."""


# --- HDF5 -------------------------------------------------------------------------------------------------------------


def mutate_h5ad(base: Base, rng: np.random.Generator) -> Mutation:
    """Change an attribute, values of a dataset, or a dataset itself, through h5py; never the structure of HDF5."""
    (name,) = base.files
    path = base.folder / name
    with h5py.File(path, "r+") as file:
        found: list[Any] = [file]
        file.visititems(lambda _, item: found.append(item))
        attributes = [(item, key) for item in found for key in item.attrs]
        arrays = [item for item in found if isinstance(item, h5py.Dataset)]
        kind = str(rng.choice(["attribute", "values", "array"]))
        if kind == "attribute":
            item, key = attributes[rng.integers(len(attributes))]
            change_attribute(item, key, rng)
        elif kind == "values":
            chosen = [item for item in arrays if item.dtype.kind in "iu" and item.size]
            item = chosen[rng.integers(len(chosen))]
            values = item[...].reshape(-1)
            _change_values(values, rng, base.n_vars)
            item[...] = values.reshape(item.shape)
        else:
            item = arrays[rng.integers(len(arrays))]
            change_array(item, rng)
    changed = path.read_bytes()
    return Mutation(f"h5ad {kind}", name, {name: changed}, True)


def change_attribute(item: Any, key: str, rng: np.random.Generator) -> None:
    """Remove an attribute, or let it hold something else."""
    if rng.random() < 0.3:
        del item.attrs[key]
        return
    item.attrs[key] = _attribute(EXTREMES[rng.integers(len(EXTREMES))])


def _attribute(value: Any) -> Any:
    """Give a JSON value as something that an attribute of HDF5 can hold."""
    if isinstance(value, list):
        return np.array([one % 2**63 if isinstance(one, int) else 0 for one in value])
    if isinstance(value, int) and not isinstance(value, bool):
        return np.array(value % 2**64, np.uint64)
    return json.dumps(value) if value is None or isinstance(value, dict) else str(value).replace("\0", "")


def change_array(item: h5py.Dataset, rng: np.random.Generator) -> None:
    """Let an array be of another length or type, or not be there, or be a group or a link."""
    parent, name = item.parent, item.name
    values = None if item.dtype.kind == "O" or not item.size else item[...]
    attributes = dict(item.attrs)
    kind = rng.integers(5)
    del parent[name]
    if kind == 0:
        return
    if kind == 1:
        parent.create_group(name)
    elif kind == 2:
        parent[name] = h5py.ExternalLink("/nowhere.h5", "/X")
        return
    elif kind == 3 or values is None:
        other = rng.choice(["f4", "i1", "u8", "c8", "S3", "f8"])
        parent[name] = np.zeros(int(rng.integers(0, 100)), other)
    else:
        parent[name] = values[: int(rng.integers(0, len(values) + 1))]
    parent[name].attrs.update(attributes)
