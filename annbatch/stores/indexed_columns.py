"""How are arrays, texts and obs columns kept in a file of an index, without pickle?

1. `Arrays` are bytes: a checksum, a header in JSON, and arrays one after the other, to which the header refers. More
   can be added to arrays that were read.
2. `packed_texts` describes a list of strings, `unpacked_texts` gives it again.
3. `packed_column` describes a column of obs; `unpacked_column` gives it again, of the same type. Columns of rare types
   are not kept.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from typing import Any, Self

import google_crc32c
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from annbatch.stores.column_kinds import as_categories

_HEAD = struct.Struct("<8sIQ")
"""What the file is, the checksum of all that follows, and the size of the header."""
_MAGIC = b"annbidx2"
_UNCHECKED = 12
"""Bytes before those that the checksum covers."""


class Arrays:
    """Arrays in a row of bytes; those that are added follow the ``content``, (n,) uint8."""

    def __init__(self, content: NDArray[np.uint8] | None = None) -> None:
        self._content = np.empty(0, np.uint8) if content is None else content
        self._added: list[bytes] = []
        self._nbytes = self._content.size

    @classmethod
    def parsed(cls, stored: NDArray[np.uint8]) -> tuple[dict[str, Any], Self]:
        """Give the header and the arrays of a file, (n,) uint8; raises ValueError if they are damaged."""
        try:
            magic, checksum, size = _HEAD.unpack_from(stored.data)
        except struct.error as e:
            raise ValueError("the file ends early") from e
        # To load a kernel would take longer than to read hundreds of files.
        if magic != _MAGIC or google_crc32c.value(stored[_UNCHECKED:].tobytes()) != checksum:
            raise ValueError("the file is damaged")
        header: dict[str, Any] = json.loads(stored[_HEAD.size : _HEAD.size + size].tobytes())
        return header, cls(stored[_HEAD.size + size :])

    def with_header(self, header: Mapping[str, Any]) -> bytes:
        """Give the bytes of all arrays, behind a header."""
        text = json.dumps(header).encode()
        rest = b"".join([struct.pack("<Q", len(text)), text, self._content.tobytes(), *self._added])
        return _MAGIC + struct.pack("<I", google_crc32c.value(rest)) + rest

    def add(self, values: NDArray[Any]) -> list[Any]:
        """Add an array of numbers or booleans of one dimension; give what the header says of it."""
        return [values.dtype.str, *self.add_bytes(values.tobytes())]

    def add_bytes(self, stored: bytes) -> list[int]:
        """Add bytes; give what the header says of them."""
        place = [self._nbytes, len(stored)]
        self._added.append(stored)
        self._nbytes += len(stored)
        return place

    def get(self, place: Sequence[Any]) -> NDArray[Any]:
        """Give an array that was there before others were added."""
        dtype, offset, nbytes = place
        return self._content[offset : offset + nbytes].copy().view(dtype)

    def get_bytes(self, place: Sequence[int]) -> bytes:
        """Give bytes that were there before others were added."""
        offset, nbytes = place
        return self._content[offset : offset + nbytes].tobytes()


def packed_texts(texts: Sequence[Any], arrays: Arrays) -> list[int] | None:
    """Describe a list of strings; None if something else is in it, or what UTF-8 or a NUL between them cannot hold."""
    if not all(isinstance(text, str) for text in texts):
        return None
    joined = "\0".join(texts)
    if joined.count("\0") != max(0, len(texts) - 1):
        return None
    try:
        return [len(texts), *arrays.add_bytes(joined.encode())]
    except UnicodeEncodeError:
        return None


def unpacked_texts(kept: Sequence[int], arrays: Arrays) -> list[str]:
    """Give a list of strings."""
    n, *place = kept
    return arrays.get_bytes(place).decode().split("\0") if n else []


def packed_column(values: Any, arrays: Arrays) -> dict[str, Any] | None:
    """Describe a column, (n_obs,), as a `StoredFrame` gives it; None if its type is rare."""
    if isinstance(values, pd.Categorical):
        categories = _packed_index(values.categories, arrays)
        codes = arrays.add(np.asarray(values.codes))
        return None if categories is None else {"codes": codes, "of": categories, "ordered": bool(values.ordered)}
    if isinstance(values, np.ndarray) and values.dtype.kind in "biuf":
        return {"values": arrays.add(values)}
    dtype = values.dtype
    if isinstance(dtype, pd.BooleanDtype) or (pd.api.types.is_integer_dtype(dtype) and hasattr(dtype, "numpy_dtype")):
        missing = values.isna()
        plain = values.to_numpy(dtype.numpy_dtype, na_value=False)
        return {"values": arrays.add(plain), "mask": arrays.add(missing)}
    if isinstance(dtype, np.dtype) and pd.isna(values).any():
        # NumPy's arrays have several values that are missing.
        return None
    text = as_categories(pd.Series(values))
    categories = _packed_index(text.categories, arrays)
    found = {"texts": categories, "codes": arrays.add(np.asarray(text.codes)), "dtype": str(dtype)}
    return None if categories is None or _plain_text(text, str(dtype)).dtype != dtype else found


def unpacked_column(kept: Mapping[str, Any], arrays: Arrays) -> Any:
    """Give a column, (n_obs,): a NumPy or a pandas array."""
    if "of" in kept:
        categories = _index(kept["of"], arrays)
        return pd.Categorical.from_codes(arrays.get(kept["codes"]), categories, ordered=kept["ordered"])
    if "texts" in kept:
        text = pd.Categorical.from_codes(arrays.get(kept["codes"]), _index(kept["texts"], arrays))
        return _plain_text(text, kept["dtype"])
    values = arrays.get(kept["values"])
    if "mask" not in kept:
        return values
    of_pandas = pd.arrays.BooleanArray if values.dtype.kind == "b" else pd.arrays.IntegerArray
    return of_pandas(values, arrays.get(kept["mask"]))


def _plain_text(text: pd.Categorical, dtype: str) -> Any:
    values = np.append(text.categories.to_numpy(object), np.array([None], object))[text.codes]
    return values if dtype == "object" else pd.array(values, dtype=dtype)


def _packed_index(index: pd.Index[Any], arrays: Arrays) -> dict[str, Any] | None:
    if isinstance(index.dtype, np.dtype) and index.dtype.kind in "biuf":
        return {"values": arrays.add(index.to_numpy()), "dtype": index.dtype.str}
    texts = index.tolist()
    packed, dtype = packed_texts(texts, arrays), str(index.dtype)
    is_same = packed is not None and pd.Index(texts, dtype=dtype).dtype == index.dtype
    return {"texts": packed, "dtype": dtype} if is_same else None


def _index(kept: Mapping[str, Any], arrays: Arrays) -> pd.Index[Any]:
    values: Any = unpacked_texts(kept["texts"], arrays) if "texts" in kept else arrays.get(kept["values"])
    found: pd.Index[Any] = pd.Index(values, dtype=kept["dtype"])
    return found
