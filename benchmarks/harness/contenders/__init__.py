"""Who takes part, and how does each open its store and hand over one epoch of batches?

1. `ours`: this project's loader, on a CPU, inside torch's ``DataLoader``, on a GPU.
2. `peer`: scverse annbatch 0.3.1, on a CPU, on a web server, on a GPU.
3. `others`: scDataset, lamindb's MappedCollection, AnnLoader, zarr's ``ObjectStore``, and reading whole files.
4. `per_cell`: cellstream 0.11 and bixverse 0.2.1, whose stores hold each cell by itself.
5. `limits`: one stage alone, which no loader can be faster than.
6. `registry`: all of them by name, and who writes which store.

Every contender is used as its own documentation tells, with what is fastest where it offers a choice. All modules but
`limits` are imported in environments that hold one contender each: at their top they import nothing but NumPy.
"""
