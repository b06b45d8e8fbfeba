"""May the arrays of a store be decoded, or would that run what the store brings?

zarr v2 knows a codec, ``pickle``, whose decoding executes what is stored. Arrays that name it, or a codec of another
package, are refused before any of their bytes are read; zarr v3 has no such codec.
"""

from __future__ import annotations

from typing import Any

import zarr

from annbatch.errors import StoreError

_HARMLESS = frozenset(
    [
        *("blosc", "zstd", "lz4", "zlib", "gzip", "bz2", "lzma", "shuffle", "delta", "fixedscaleoffset", "quantize"),
        *("vlen-utf8", "vlen-bytes", "vlen-array", "json2", "msgpack2", "packbits", "astype", "bitround", "crc32"),
        *("crc32c", "adler32", "fletcher32", "jenkins_lookup3", "categorize", "base64", "pcodec", "zfpy"),
    ]
)
"""numcodecs' codecs that execute nothing."""


def refuse_executable(found: zarr.Group | zarr.Array[Any], name: str) -> None:
    """Refuse an array, or a group with an array, whose decoding may execute what is stored.

    Raises
    ------
    StoreError
        Names the array and the codec.
    """
    if found.metadata.zarr_format != 2:
        return
    arrays = [("", found)] if isinstance(found, zarr.Array) else found.members(max_depth=None)
    for path, array in arrays:
        if isinstance(array, zarr.Array):
            metadata = array.metadata.to_dict()
            codecs = [metadata.get("compressor"), *(metadata.get("filters") or ())]  # type: ignore[misc]
            for codec in codecs:
                identity = codec.get("id") if isinstance(codec, dict) else getattr(codec, "codec_id", codec)
                if identity is not None and identity not in _HARMLESS:
                    where = f"{name}/{path}".rstrip("/")
                    raise StoreError(f"{where}: the codec {identity!r} is refused, because it may execute stored code")
