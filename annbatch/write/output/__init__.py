"""How do ordered rows become the stores of a collection that appears all at once?

In the order in which a collection comes to be:

1. `shard_files`: the shards of an array, from rows that come a piece at a time.
2. `store_writer`: one AnnData store.
3. `mudata_store`: AnnData stores of the same cells become one MuData store.
4. `workplace`: a hidden directory that becomes the collection when everything is there.
5. `directory_swap`: two directories swap places so that a path is never empty.

`annbatch.write.passes` calls `write_store`; `annbatch.write.build` works in a `Workplace`.
"""
