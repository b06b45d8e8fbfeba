"""Can a device decode the chunks of a matrix, and what does it take?

1. `why_not` says whether it can: packed chunks or zstd, alike in form, on the local disk.
2. `needs_nvcomp` says whether nvCOMP decodes any; packed chunks are unpacked by a kernel of this project.
3. `part_of` gives the kind of part that makes the batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from annbatch.batches.decoded_on_device import DecodedOnDevicePart
from annbatch.batches.on_device import OnDevicePart
from annbatch.batches.unpacked_on_device import UnpackedOnDevicePart
from annbatch.shards.codecs import Codec
from annbatch.shards.hdf5_chunks import FileChunks
from annbatch.shards.scatter import Form
from annbatch.stores.anndata_store import Matrix, SparseMatrix
from annbatch.stores.elements import DirectElements

_KINDS: dict[Codec, type[OnDevicePart]] = {Codec.PACKED: UnpackedOnDevicePart, Codec.ZSTD: DecodedOnDevicePart}


def why_not(matrices: Sequence[tuple[str, Matrix]]) -> str | None:
    """Say why a device cannot decode the chunks of these sparse matrices of all stores; None if it can.

    Dense ones among them do not matter: they are decoded on the CPU in any case.
    """
    sparse = [(name, matrix) for name, matrix in matrices if isinstance(matrix, SparseMatrix)]
    if not sparse:
        return "there is no sparse matrix"
    forms: dict[str, Form] = {}
    codecs: dict[str, Codec] = {}
    for name, matrix in sparse:
        for key, elements in (("data", matrix.data), ("indices", matrix.indices)):
            if not isinstance(elements, DirectElements):
                return f"{name}/{key} is not read directly from a local disk"
            form = elements.form
            codec = form.decoder.codec
            if codec not in _KINDS:
                return f"the chunks of {name}/{key} are {codec.name.lower()}, not packed or zstd"
            if form.decoder.fletcher32 or form.decoder.swapped:
                return f"{name}/{key} is stored big-endian, or with fletcher32 checksums"
            if isinstance(places := elements.tables.layout, FileChunks) and not places.are_compressed:
                return f"the compressor left some chunks of {name}/{key} as they were"
            if form.decoder.shuffle not in (1, form.dtype.itemsize):
                return (
                    f"{name}/{key} is shuffled by {form.decoder.shuffle} bytes, its elements have {form.dtype.itemsize}"
                )
            if codec is not codecs.setdefault(name, codec):
                names = codecs[name].name.lower(), codec.name.lower()
                return f"the chunks of {name}/data are {names[0]}, those of {name}/indices {names[1]}"
            element = name.rpartition(" ")[2]
            if codec is Codec.ZSTD:
                # Collections that were appended to may hold both: what are differences is summed up when it is decoded.
                form = replace(form, decoder=replace(form.decoder, delta=False))
            if forms.setdefault(f"{element}/{key}", form) != form:
                return f"the chunks of {name}/{key} have another type, size or codec than those of the first store"
    return None


def needs_nvcomp(matrices: Sequence[Matrix]) -> bool:
    """Say whether any of the sparse matrices that a device can decode is decoded by nvCOMP."""
    sparse = [matrix for matrix in matrices if isinstance(matrix, SparseMatrix)]
    return any(part_of(matrix) is DecodedOnDevicePart for matrix in sparse)


def part_of(matrix: SparseMatrix) -> type[OnDevicePart]:
    """Give the kind of part for a matrix that a device can decode."""
    assert isinstance(matrix.data, DirectElements)
    return _KINDS[matrix.data.form.decoder.codec]
