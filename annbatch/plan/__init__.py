"""Which chunk, which piece of it, which address?

Pure: planning takes numbers and gives numbers; nothing here reads. In the order in which a window is planned:

1. `window`: which rows of which store make a window, and in which order they are read.
2. `row_places`: where the elements of these rows lie in the stores, and where in the batches.
3. `column_selection`: which columns are wanted, and how they get into a matrix of these columns alone.
4. `column_map`: which joined column each column of a store becomes, where stores have different genes.
5. `chunk_pieces`: which chunks hold what is wanted, and which piece of them goes to which address.
6. `byte_ranges`: which byte ranges are asked of an object store.

Other rooms take the plans (`WindowPlan`, `RowPlan`, `Pieces`, `Selection`, `ColumnMap`, `ByteRanges`) and the
functions that make them.
"""
