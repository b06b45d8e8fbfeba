"""Does any input make the decoder crash, or write outside its buffers? Run as a script or, as tests do, in a fork.

Every buffer of the kernel ends at a page that cannot be touched and begins behind a margin of known bytes. Chunks that
numcodecs and h5py wrote are truncated, flipped, overwritten and forged, and go through the kernel by file, as a store's
do.
A crash ends the process with a signal; a byte outside, or a context spoilt for the next good chunk, with an assertion.
"""

from __future__ import annotations

import argparse
import ctypes
import mmap
import os
import tempfile
from typing import Any

import google_crc32c
import h5py
import numcodecs
import numpy as np

from annbatch.shards.codecs import HEAD_NBYTES, TAIL_NBYTES, Codec, Decoder, Library, Workspace, library
from annbatch.shards.decode_kernels import DECODE, Job, Status
from annbatch.shards.scatter_kernels import scatter_chunks

N = 6000
DTYPE = np.dtype("u2")
MARGIN = 4096
CANARY = 0xA5

libc = ctypes.CDLL(None, use_errno=True)
keep: list[mmap.mmap] = []


def guarded(nbytes: int) -> np.ndarray[Any, Any]:
    """Give (MARGIN + nbytes,) bytes that end exactly at a page without access; 64-byte aligned if nbytes is."""
    page = mmap.PAGESIZE
    size = -(-(MARGIN + nbytes) // page) * page
    block = mmap.mmap(-1, size + page)
    keep.append(block)
    memory = np.frombuffer(block, np.uint8)
    address = memory.ctypes.data + size
    assert libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(page), 0) == 0, os.strerror(ctypes.get_errno())
    part = memory[size - MARGIN - nbytes : size]
    part[:] = CANARY
    return part


def seeds(values: np.ndarray[Any, Any]) -> list[tuple[Codec, int, bytes]]:
    """Give stored forms of the values: (codec, shuffle, bytes)."""
    out = [(Codec.RAW, 1, values.tobytes())]
    for cname in ("lz4", "lz4hc", "zstd", "zlib", "blosclz"):
        for shuffle in (0, 1, 2):
            out.append((Codec.BLOSC, 1, bytes(numcodecs.Blosc(cname, 5, shuffle).encode(values))))
    out.append((Codec.BLOSC, 1, bytes(numcodecs.Blosc("lz4", 5, 1, blocksize=512).encode(values))))
    shuffled = numcodecs.Shuffle(2).encode(values.copy())
    out += [(Codec.ZSTD, 1, bytes(numcodecs.Zstd(3).encode(values)))]
    out += [(Codec.ZSTD, 2, bytes(numcodecs.Zstd(3).encode(np.asarray(shuffled))))]
    for codec, compression in ((Codec.ZLIB, "gzip"), (Codec.LZF, "lzf")):
        out += [(codec, 2 if shuffle else 1, through_hdf5(values, compression, shuffle)) for shuffle in (False, True)]
    return out


def through_hdf5(
    values: np.ndarray[Any, Any], compression: str | None, shuffle: bool, fletcher32: bool = False
) -> bytes:
    """Give the bytes that HDF5 stores for values in one chunk."""
    with h5py.File("values", "w", driver="core", backing_store=False) as file:
        settings = {"compression": compression, "shuffle": shuffle, "fletcher32": fletcher32}
        dataset = file.create_dataset("values", data=values, chunks=values.shape, **settings)
        mask, stored = dataset.id.read_direct_chunk((0,))
        assert mask == 0
        return bytes(stored)


def with_fletcher32(stored: bytes) -> bytes:
    """Give bytes with the checksum behind them that HDF5 computes."""
    return through_hdf5(np.frombuffer(stored, np.uint8), None, False, fletcher32=True)


def mutate(rng: np.random.Generator, good: bytes) -> bytes:
    """Give a damaged copy."""
    data = bytearray(good)
    match rng.integers(6):
        case 0:
            del data[int(rng.integers(1, len(data))) :]
        case 1:
            for place in rng.integers(0, len(data), rng.integers(1, 6)):
                data[place] ^= 1 << int(rng.integers(8))
        case 2:
            # The header and the block starts are where damage hurts most.
            for place in rng.integers(0, min(64, len(data)), rng.integers(1, 8)):
                data[place] = int(rng.integers(256))
        case 3:
            start = int(rng.integers(0, len(data)))
            stop = min(len(data), start + int(rng.integers(1, 200)))
            data[start:stop] = rng.integers(0, 256, stop - start, dtype=np.uint8).tobytes()
        case 4:
            # A plausible blosc header with random fields, before random bytes.
            word = int(rng.integers(0, 2**31))
            fields = np.array([N * 2, rng.choice([N * 2, 16, 1, 0, -1, word]), len(data)], "<i4").tobytes()
            head = bytes([2, 1, int(rng.integers(256)), int(rng.choice([1, 2, 4, 8, 255]))]) + fields
            tail = rng.integers(0, 256, max(0, len(data) - 16), dtype=np.uint8).tobytes()
            if rng.integers(2):
                tail = bytes(data[16:])
            data[:] = (head + tail)[: len(data)]
        case _:
            data += rng.integers(0, 256, int(rng.integers(1, 300)), dtype=np.uint8).tobytes()
    # Often the stored size is put right, so that the decoder itself gets to see the damage.
    if rng.integers(2) and len(data) >= 16:
        data[12:16] = np.int32(len(data)).tobytes()
    return bytes(data)


def fuzz(count: int, seed: int) -> dict[str, int]:
    """Decode damaged chunks; give how often each status came."""
    rng = np.random.default_rng(seed)
    values = np.minimum(rng.geometric(0.4, N), 400).astype(DTYPE)
    loaded, workspace = library(), Workspace()
    assert isinstance(loaded, Library)
    room = (
        -(-Decoder(Codec.BLOSC).stored_nbytes(values.size, values.itemsize)[1] // 64) * 64 + HEAD_NBYTES + TAIL_NBYTES
    )
    buffers = [guarded(room), guarded(values.nbytes), guarded(values.nbytes), guarded(4 * N)]
    raw, shuffled, scratch, target = (buffer[MARGIN:] for buffer in buffers)
    one = np.array([0, N], np.int64)
    counts: dict[str, int] = {}
    with tempfile.TemporaryFile() as file:

        def decode(
            codec: Codec,
            shuffle: int,
            delta: bool,
            stored: bytes,
            verify: bool,
            left: bool = False,
            swapped: bool = False,
        ) -> Status:
            fletcher = verify and codec in (Codec.ZLIB, Codec.LZF)
            if fletcher:
                stored = with_fletcher32(stored)
            elif verify:
                stored += google_crc32c.value(stored).to_bytes(4, "little")
            # The read bytes lie as close to the forbidden page as the kernel allows.
            nbytes = -(-len(stored) // 64) * 64 + HEAD_NBYTES + TAIL_NBYTES
            os.ftruncate(file.fileno(), 0)
            os.pwrite(file.fileno(), stored, 0)
            decoder = Decoder(codec, shuffle, verify and not fletcher, delta, fletcher, swapped)
            own_raw, elements = raw[max(0, raw.size - nbytes) :], scratch.view(DTYPE)
            job = Job(decoder, workspace, np.zeros(1, DTYPE), one[:1], one[1:], own_raw, shuffled, elements)
            status, _ = scatter_chunks(
                DECODE.address,
                job.fields,
                np.array([file.fileno()], np.int32),
                one[:1],
                np.array([-len(stored) - 1 if left else len(stored)], np.int64),
                np.array([0, 1], np.int64),
                one[:1],
                one[1:],
                np.array([target.ctypes.data], np.int64),
                -1,
                elements,
                np.empty(0, np.float32),
                np.zeros(1, np.int64),
            )
            assert all((buffer[:MARGIN] == CANARY).all() for buffer in buffers), "a byte was written before a buffer"
            return Status(status)

        goods = seeds(values)
        for i in range(count):
            codec, shuffle, good = goods[i % len(goods)]
            # HDF5 says of a chunk that its compressor left it as it was.
            left = bool(i & 128) and codec in (Codec.ZLIB, Codec.LZF)
            status = decode(codec, shuffle, bool(i & 32), mutate(rng, good), bool(i & 64), left, swapped=bool(i & 256))
            counts[status.name] = counts.get(status.name, 0) + 1
            if i % 16 == 0:
                for delta, expected in ((False, values), (True, np.cumsum(values, dtype=DTYPE))):
                    target[:] = 0
                    assert decode(codec, shuffle, delta, good, verify=True) is Status.OK, "the context was spoilt"
                    assert (target.view(np.float32) == expected).all(), "a good chunk was decoded wrongly"
    return counts


def main() -> None:
    """Fuzz, and print how often each status came."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    print(fuzz(**vars(parser.parse_args())))


if __name__ == "__main__":
    main()
