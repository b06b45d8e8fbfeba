"""What can be an input, and how is it read?

In the order in which an input is met:

1. `opening`: what can be an input, and how it is opened.
2. `hdf5_filters`: whether HDF5 can read what a file is compressed with.
3. `contents`: what the inputs hold, and which of it goes into the collection.
4. `gene_lists`: the genes of each input, kept once for all that have the same.
5. `gene_join`: the genes and the columns of all inputs together.
6. `var_columns`: the var columns on which the inputs agree.
7. `append_target`: what new cells must fit to join a collection that is there.
8. `text_file`: many strings on disk, and which of them occur twice.
9. `obs_table`: obs tables of any length as rows that travel with their cells.
10. `matrix_rows`: some rows of a matrix, whatever it is stored as.
11. `transpose`: a matrix stored by columns becomes one stored by rows.
12. `narrow_types`: the smallest type that holds the values exactly.
13. `spill`: arrays on disk as their bytes, for a later step.

Other rooms take `Origin`, `Source`, `Element`, `Matrix`, `GeneJoin` and `ObsTable`.
"""
