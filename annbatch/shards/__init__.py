"""How do the stored bytes of a local zarr array, or of an HDF5 dataset, become elements in their places?

Without zarr or HDF5, and without the GIL. In the order in which an array is read:

1. `array_metadata`: what the metadata of an array say, and whether the kernels can read it; `zarr_v2`: how those of
   zarr v2 are translated.
2. `codecs`: which codec chains are decoded, and by which C functions; `libdeflate`: the faster one for zlib streams.
3. `shard_index`: which object holds which inner chunks, and what a shard's index says.
4. `hdf5_chunks`: the same for a dataset of an HDF5 file: which filters are decoded, where its chunks are; `file_stamp`:
   whether the file has changed since.
5. `chunk_files`: where in which file each chunk is.
6. `page_cache`: whether it holds chunks, and how the system is asked to fill it; `uncached_reads`: the way past it.
7. `checksum`: crc32c at the speed of memory; `hdf5_bytes`: fletcher32, lzf and byte order.
8. `decode_kernels`: the compiled function that reads, checks and decodes a chunk; `scatter_kernels`: the loops that
   call it, and place what it decoded.
9. `scatter`: how threads share the chunks of a window.
10. `select_kernels` and `select_scatter`: the same where few columns of a CSR matrix are wanted;
    `select_vectors`: 32 column numbers at once.
11. `local_array`: all of these together.

The packed format (``docs/packed.md``):

12. `packed_layout`: where in a packed chunk does what stand.
13. `packed_encoder`: integers to bytes.
14. `packed_kernels`: the compiled function that decodes the blocks that are wanted; `packed_vectors`: 16 values at
    once.
15. `packed_codec`: both as a codec of zarr's.

Other rooms take `ShardedArray`. Arrays in object stores (`annbatch.remote`) use the same metadata, index, codecs and
kernels; the device (`annbatch.device`) takes stored chunks before they are decoded.
"""
