"""What is a collection, what is an AnnData store, and how is each of its arrays read?

In the order in which a collection is opened:

1. `location`: where a collection lies, and how its files are read.
2. `collection`: what its manifest says, and whether it is whole.
3. `manifest`: what the manifest records of a store, a file and an element.
4. `anndata_store`: what each store holds: matrices, obs columns and var.
5. `obsm_tables`: tables in obsm, which are read as arrays.
6. `lazy_tables`: which parts of an AnnData have to be read before they are in memory.
7. `refusals`: which arrays are not decoded, because that would run what the store brings.
8. `stored_frame`: how an obs or var is stored, whatever version of AnnData wrote it.
9. `column_kinds`: the kind of an obs column, and what columns of several tables are together; building takes it, too.
10. `obs_access`: which parts of an obs are opened, when somebody asks for them.
11. `label_columns`: obs columns, and how the categories of all stores become one set of codes.
12. `class_columns`: how integers and others become classes.
13. `cell_names`: the names of cells, the index of obs.
14. `obs_rows`: columns and names of all rows or some, as a table.
15. `gene_selection`: which genes a loader yields.
16. `common_type`: which type the values of several stores have together.
17. `array_opening`: how an array is opened: by the kernels, or by zarr.
18. `elements`: how the elements of an array get to their places in the batches.
19. `selected_elements`: the same for the elements of wanted columns alone.
20. `slices`: slices of long one-dimensional arrays, such as ``indptr`` and obs columns.

Other rooms take `Collection`, `open_stores` and `open_anndata`, and read through `Store`, `Elements` and `ArraySlices`.
"""
