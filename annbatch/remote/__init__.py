"""How do the bytes of an object store get here?

In the order in which bytes are found and read:

1. `urls`: which object store a URL means, and how it is named without secrets.
2. `request_pool`: who asks for bytes, how many requests are under way, and what ends them.
3. `object_reads`: bytes of an object, all of them or an error that says why.
4. `disk_cache`: which bytes lie on the local disk already.
5. `cached_reads`: object reads through that cache.
6. `chunk_objects`: where in which object each inner chunk is.
7. `remote_array`: the elements of an array, fetched as merged ranges and decoded by the kernels of `annbatch.shards`.

Other rooms take `open_url`, `Objects`, `RemoteArray`, `DiskCache` and `Requests`.
"""
