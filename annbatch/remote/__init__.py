"""How do the bytes of an object store get here?

In the order in which a collection is found and read:

1. `urls`: which object store a URL means, and how it is named without secrets.
2. `location`: where a collection lies: in a local directory, or in a store.
3. `request_pool`: who asks for bytes, how many requests are under way, and what ends them.
4. `object_reads`: bytes of an object, all of them or an error that says why.
5. `disk_cache`: which bytes lie on the local disk already.
6. `cached_reads`: object reads through that cache.
7. `chunk_objects`: where in which object each inner chunk is.
8. `remote_array`: the elements of an array, fetched as merged ranges and decoded by the kernels of `annbatch.shards`.

Other rooms take `locate` and `RemoteFolder` (where a collection lies), `RemoteArray`, `DiskCache` and `Requests`.
"""
