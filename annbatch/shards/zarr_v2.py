"""What would the ``zarr.json`` of a zarr v2 array say?

`as_v3` translates what its ``.zarray`` says. Chunks are stored in the same way in both versions, one in an object: only
the names of codecs and keys differ.

Formats: https://zarr-specs.readthedocs.io/en/latest/v2/v2.0.html and
https://zarr-specs.readthedocs.io/en/latest/v3/core/
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np


def as_v3(metadata: Mapping[str, Any]) -> dict[str, Any] | str:
    """Translate the metadata of a zarr v2 array, or give the reason why they have no translation.

    Raises
    ------
    KeyError, TypeError, ValueError, AttributeError
        If they are invalid.
    """
    if not isinstance(metadata["dtype"], str):
        return f"the dtype must be one of numbers, got {metadata['dtype']!r}"
    dtype, shape = np.dtype(metadata["dtype"]), metadata["shape"]
    if metadata["order"] != "C" and len(shape) > 1:
        return f"the order of elements in a chunk must be C, got {metadata['order']!r}"
    endian = {"<": "little", ">": "big", "|": None}[metadata["dtype"][0]]
    filters = [_named(codec) for codec in metadata.get("filters") or ()]
    compressors = [_named(codec) for codec in [metadata["compressor"]] if codec is not None]
    # Differences are those of elements; what shuffles does so with their bytes.
    of_elements = [codec for codec in filters if codec["name"] == "numcodecs.delta"]
    if filters[: len(of_elements)] != of_elements:
        return f"delta must be the first filter, got {[codec['name'] for codec in filters]}"
    to_bytes = {"name": "bytes", "configuration": {"endian": endian} if endian else {}}
    fill = metadata["fill_value"]
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": shape,
        "data_type": dtype.name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": metadata["chunks"]}},
        "chunk_key_encoding": {
            "name": "v2",
            "configuration": {"separator": metadata.get("dimension_separator") or "."},
        },
        "fill_value": 0 if fill is None else fill,
        "codecs": [*of_elements, to_bytes, *filters[len(of_elements) :], *compressors],
    }


def _named(codec: Mapping[str, Any]) -> dict[str, Any]:
    """Give a codec of numcodecs as zarr v3 names it."""
    rest = {key: value for key, value in codec.items() if key != "id"}
    return {"name": f"numcodecs.{codec['id']}", "configuration": rest}
