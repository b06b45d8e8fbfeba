"""What can be an input, and how is it read?

In the order in which an input is met:

1. `opening`: what can be an input, and how it is opened.
2. `local_copy`: what is compressed, or lies in an object store, comes to the local disk.
3. `file_formats`: what is in a file or a folder, and who reads it.
4. `opened_input`: what an opened input gives, whatever it was opened from.
5. `stored_input`: what a file or store holds, whatever version of AnnData, or other program, wrote it.
6. `memory_input`: AnnData in memory as an input, and whether it is still the same.
7. `tenx_file`: feature-barcode matrices that Cell Ranger wrote as HDF5.
8. `mtx_files`: matrices of 10x Genomics in text files.
9. `loom_file`: loom files.
10. `faults`: what is wrong with the inputs, all of it.
11. `gene_naming`: by which names the genes of an input are joined with those of others.
12. `main_matrix`: which matrix of an input becomes X.
13. `contents`: what the inputs hold, and which of it goes into the collection.
14. `element_names`: under which names a collection holds what the inputs call otherwise.
15. `agreed_names`: under which names the elements of all inputs are written, and what is left out.
16. `spilled_genes`: the genes of each input, kept on disk once for all that have the same.
17. `skipped_inputs`: what becomes of inputs without cells.
18. `append_target`: what new cells must fit to join a collection that is there.
19. `text_file`: many strings on disk, and which of them occur twice.
20. `column_spill`: obs columns that come input by input and go out column by column.
21. `value_names`: which strings stand for the values of a column.
22. `obs_table`: obs tables of any length as rows that travel with their cells.
23. `matrix_rows`: some rows of a matrix, whatever it is stored as.
24. `transpose`: a matrix that is not stored by rows becomes one that is.
25. `rewritten_rows`: a dense matrix whose chunks hold parts of many rows becomes one stored by rows.
26. `narrow_types`: the smallest type that holds the values exactly.
27. `spill`: arrays on disk as their bytes, for a later step.
28. `modal_inputs`: which modalities an input has, and where each is.
29. `cell_join`: which cells have all modalities of an input.
30. `joint_roots`: an input whose rows are the cells that several modalities share.
31. `chosen_rows`: a matrix with some of its rows, and empty ones behind them.

Other rooms take `Origin`, `Source`, `Element`, `Matrix` and `ObsTable`.
"""
