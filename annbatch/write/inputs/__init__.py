"""What can be an input, and how is it read?

In the order in which an input is met:

1. `opening`: what can be an input, and how it is opened.
2. `stored_input`: what a file or store holds, whatever version of AnnData, or other program, wrote it.
3. `hdf5_filters`: whether HDF5 can read what a file is compressed with.
4. `faults`: what is wrong with the inputs, all of it.
5. `contents`: what the inputs hold, and which of it goes into the collection.
6. `element_names`: under which names a collection holds what the inputs call otherwise.
7. `agreed_names`: under which names the elements of all inputs are written, and what is left out.
8. `gene_lists`: the genes of each input, kept once for all that have the same.
9. `gene_join`: the genes and the columns of all inputs together.
10. `var_columns`: the var columns on which the inputs agree.
11. `append_target`: what new cells must fit to join a collection that is there.
12. `text_file`: many strings on disk, and which of them occur twice.
13. `column_spill`: obs columns that come input by input and go out column by column.
14. `obs_table`: obs tables of any length as rows that travel with their cells.
15. `matrix_rows`: some rows of a matrix, whatever it is stored as.
16. `transpose`: a matrix stored by columns becomes one stored by rows.
17. `narrow_types`: the smallest type that holds the values exactly.
18. `spill`: arrays on disk as their bytes, for a later step.

Other rooms take `Origin`, `Source`, `Element`, `Matrix`, `GeneJoin` and `ObsTable`.
"""
