"""What is a collection, what is an AnnData store, and how is each of its arrays read?

In the order in which a collection is opened:

1. `collection`: the directory, its manifest as a value, and whether it is whole.
2. `manifest`: what the manifest records of a store, a file and an element.
3. `refusals`: which arrays are not decoded, because that would run what the store brings.
4. `anndata_store`: the matrices, obs columns and var of one store, opened.
5. `label_columns`: obs columns, and how the categories of all stores become one set of codes.
6. `elements`: the elements of an array, read by the path that suits it: kernels, object store, or zarr.
7. `slices`: slices of long one-dimensional arrays, such as ``indptr`` and obs columns.

Other rooms take `Collection`, `open_stores` and `open_anndata`, and read through `Store`, `Elements` and `ArraySlices`.
"""
