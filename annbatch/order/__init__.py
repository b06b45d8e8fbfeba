"""Which row comes when?

Pure: nothing here reads a store, starts a thread or looks at the environment. In the order in which an epoch is made:

1. `permutation`: random orders that never change between versions and machines.
2. `stream`: the rows of a table in such an order, where neighbours stay together.
3. `row_selection`: which rows are meant, if not all.
4. `consumers`: which consumer gets which rows in which batch, and what is left when an epoch stops half-way.
5. `turns`: which of a consumer's windows one of its worker processes reads.
6. `row_table`: what a sampler knows of the data, and what it gives.
7. `splits`: which rows are for training, which for validation.
8. `state`: where a training run stands, and whether it may go on.
9. `schedule`: all of these together, for given stores and settings.
10. `mixing`: how well windows mix rows that lie as they were written.

Other rooms take `Partition`, `Window` and `Segment` (what to read), `Schedule` (where they come from) and `Position`
(how far a run has come). `annbatch.samplers` builds on `consumers`, `permutation`, `stream` and `row_table`.
"""
