"""What is a collection, what is an AnnData store, and how is each of its arrays read?

In the order in which a collection is opened:

1. `location`: where a collection lies, and how its files are read.
2. `collection`: what its manifest says, and whether it is whole; `root_group`: how its folder is a zarr group.
3. `manifest`: what the manifest records of a store, a file and an element; `preshuffled`: what is known of a collection
   of scverse annbatch, which has none.
4. `modality`: what the manifest records of a modality, and how options name what belongs to one.
5. `anndata_store`: what each store holds: matrices, obs columns and var; `h5ad_file`: the same for an ``.h5ad`` file,
   and `parallel_opening` for many.
6. `joint_store`: what the modalities of a store share: rows and label columns.
7. `obsm_tables`: tables in obsm, which are read as arrays.
8. `lazy_tables`: which parts of an AnnData have to be read before they are in memory.
9. `refusals`: which arrays are not decoded, because that would run what the store brings.
10. `stored_frame`: how an obs or var is stored, whatever version of AnnData wrote it.
11. `column_kinds`: the kind of an obs column, and what columns of several tables are together; building takes it, too.
12. `obs_access`: which parts of an obs are opened, when somebody asks for them.
13. `label_columns`: obs columns of a store, and of all stores.
14. `united_columns`: how the columns and categories of all stores become one set of columns and codes.
15. `class_columns`: how integers and others become classes.
16. `cell_names`: the names of cells, the index of obs.
17. `obs_rows`: columns and names of all rows or some, as a table.
18. `gene_lists`: the genes of each store, kept once for all that have the same; building takes it, too.
19. `gene_overlap`: whether stores call their genes alike.
20. `gene_join`: the genes of all stores together, and where those of each go.
21. `column_join`: one column of several tables together.
22. `var_columns`: the var columns on which the stores agree.
23. `merged_var_column`: a var column of all inputs as `anndata.concat` makes it.
24. `gene_selection`: which genes a loader yields.
25. `store_genes`: the genes of a loader, and where those of each store go; `store_var`: the var of one store.
26. `common_type`: which type the values of several stores have together.
27. `array_opening`: how an array is opened: by the kernels, or by zarr.
28. `hdf5_arrays`: the same for a dataset of an HDF5 file; `hdf5_links`: which other files hold parts of a file;
   `hdf5_files`: how h5py reads one, and `hdf5_filters`: whether it can; `file_index`: what is kept of a file, so that
   it opens faster the next time, with `indexed_columns`, `indexed_matrices` and `indexed_genes`.
29. `elements`: how the elements of an array get to their places in the batches.
30. `selected_elements`: the same for the elements of wanted columns alone.
31. `chunk_arrival`: how chunks get into memory while others are decoded.
32. `slices`: slices of long one-dimensional arrays, such as ``indptr`` and obs columns.

Other rooms take `Collection`, `open_stores`, `open_anndata` and `open_h5ads`, and read through `Store`, `Elements` and
`ArraySlices`.
"""
