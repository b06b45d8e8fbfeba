"""How are arrays and obs columns kept in a file of an index, without pickle?

1. `Arrays` are bytes: a checksum, a header in JSON, and arrays one after the other, to which the header refers.
2. `packed_column` describes a column of obs; `unpacked_column` gives it again, of the same type. Columns of rare types
   are not kept.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import Any, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from annbatch.shards.checksum import crc32c
from annbatch.stores.column_kinds import as_categories

_HEAD = struct.Struct("<8sIQ")
"""What the file is, the checksum of all that follows, and the size of the header."""
_MAGIC = b"annbidx1"


class Arrays:
    """Arrays in a row of bytes."""

    def __init__(self, content: bytes = b"") -> None:
        self._content = content
        self._added: list[bytes] = []
        self._nbytes = 0

    @classmethod
    def parsed(cls, stored: bytes) -> tuple[dict[str, Any], Self]:
        """Give the header and the arrays; raises ValueError if they are damaged."""
        magic, checksum, size = _HEAD.unpack_from(stored)
        if magic != _MAGIC or crc32c(np.frombuffer(bytearray(stored[12:]), np.uint8)) != checksum:
            raise ValueError("the file is damaged")
        header: dict[str, Any] = json.loads(stored[_HEAD.size : _HEAD.size + size])
        return header, cls(stored[_HEAD.size + size :])

    def with_header(self, header: Mapping[str, Any]) -> bytes:
        """Give the bytes of the arrays that were added, behind a header."""
        text = json.dumps(header).encode()
        rest = b"".join([struct.pack("<Q", len(text)), text, *self._added])
        return _MAGIC + struct.pack("<I", crc32c(np.frombuffer(bytearray(rest), np.uint8))) + rest

    def add(self, values: NDArray[Any]) -> list[Any]:
        """Add an array of numbers or booleans of one dimension; give what the header says of it."""
        place = [values.dtype.str, self._nbytes, len(values)]
        self._added.append(values.tobytes())
        self._nbytes += values.nbytes
        return place

    def get(self, place: list[Any]) -> NDArray[Any]:
        """Give an array."""
        dtype, offset, size = place
        return np.frombuffer(self._content, dtype, size, offset).copy()


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
    if not all(isinstance(text, str) for text in texts):
        return None
    found = {"texts": texts, "dtype": str(index.dtype)}
    return found if _index(found, arrays).dtype == index.dtype else None


def _index(kept: Mapping[str, Any], arrays: Arrays) -> pd.Index[Any]:
    texts = kept.get("texts")
    found: pd.Index[Any] = pd.Index(arrays.get(kept["values"]) if texts is None else texts, dtype=kept["dtype"])
    return found
