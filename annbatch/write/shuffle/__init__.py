"""How do the rows of all inputs get into their final order, out of core?

In the order in which a build goes:

1. `budget`: how much memory and disk a build takes, and how it is cut.
2. `job`: what every task of a build knows.
3. `row_keys`: the random key of each row, by which rows are sorted.
4. `run_writer`: pass 1, the rows of an input become sorted runs on disk.
5. `run_merge`: where in the runs the rows of a place in the final order lie.
6. `run_reader`: pass 2, the rows of a store come back from the runs in order.
7. `row_kernels`: rows of different lengths get to their places.
8. `freed_memory`: memory that was freed goes back to the system.

Other rooms take `Job`, `Run`, `StorePlan` and `RowPiece`.
"""
