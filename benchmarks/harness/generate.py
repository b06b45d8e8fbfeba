"""What would a large single-cell collection look like, if it could be had from a seed?

1. Genes get power-law means in random column order; each cell type raises marker genes of its own (`profiles`).
2. Cells get a cell type and a log-normal library size, whose median is chosen so that a cell has the wanted number of
   stored elements on average (`library_median`).
3. A cell draws its library's molecules one by one from its type's profile; molecules of one gene are counted
   (`draw_cells`, a compiled loop that depends on seed and row alone, so that blocks can be drawn in any order).
4. Blocks of cells stream into uncompressed ``.h5ad`` files (`write_file`); memory holds two blocks.
5. A JSON file beside them states the sums over all cells, which every loader must find again.

Usage: ``python benchmarks/harness/generate.py OUTPUT [--cells 200000] [--genes 30000] [--nnz 2226] [--files 2] …``
"""

from __future__ import annotations

import argparse
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import numba as nb
import numpy as np
import pandas as pd

BLOCK_ROWS = 2048
"""Cells drawn and written at a time."""
N_MARKERS = 200
"""Genes that one cell type raises."""
LIBRARY_SIGMA = 0.45
"""Spread of the log-normal library sizes."""


@dataclass(frozen=True, slots=True)
class Spec:
    """What to generate; equal specs give equal files."""

    cells: int = 200_000
    """Rows of all files together."""
    genes: int = 30_000
    """Columns."""
    nnz: int = 2_226
    """Wanted mean number of stored elements a cell."""
    files: int = 2
    """How many ``.h5ad`` files share the cells."""
    types: int = 20
    """Cell types."""
    index_dtype: str = "int32"
    """Type of ``indices``; ``indptr`` is int64 where a file's elements need it."""
    seed: int = 0
    """Everything random follows from it."""

    def __post_init__(self) -> None:
        for name in ("cells", "genes", "nnz", "files", "types"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        if self.index_dtype not in ("int32", "int64"):
            raise ValueError(f"index_dtype must be int32 or int64, got {self.index_dtype}")
        if self.nnz > self.genes // 2:
            raise ValueError(f"nnz must be <= genes / 2 = {self.genes // 2}, got {self.nnz}")
        if self.files > self.cells:
            raise ValueError(f"files must be <= cells = {self.cells}, got {self.files}")


def profiles(spec: Spec) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Give each cell type's share of every gene, (types, genes) float64 whose rows sum to 1."""
    rng = np.random.default_rng([spec.seed, 1])
    base = (np.arange(spec.genes) + spec.genes / 300) ** -1.6
    base = rng.permutation(base)
    n_markers = min(N_MARKERS, spec.genes // 10 or 1)
    shares = np.tile(base, (spec.types, 1)) * rng.lognormal(0, 0.3, (spec.types, spec.genes))
    for row in shares:
        markers = rng.choice(spec.genes, n_markers, replace=False)
        row[markers] *= rng.lognormal(np.log(15), 0.7, n_markers)
    shares /= shares.sum(axis=1, keepdims=True)
    return shares


def library_median(spec: Spec, shares: np.ndarray[Any, Any], abundance: np.ndarray[Any, Any]) -> float:
    """Find the median library size whose cells have ``spec.nnz`` distinct genes on average.

    A gene of share p is missing from a library of L molecules with probability exp(-L p); cell types are averaged by
    their abundance, the log-normal over its mid-quantiles.
    """
    from scipy.stats import norm

    factors = np.exp(LIBRARY_SIGMA * norm.ppf((np.arange(8) + 0.5) / 8))
    low, high = 1.0, 1e7
    while high / low > 1.001:
        middle = float(np.sqrt(low * high))
        mean = np.mean([abundance @ -np.expm1(-middle * factor * shares).sum(axis=1) for factor in factors])
        low, high = (middle, high) if mean < spec.nnz else (low, middle)
    return low


def alias_tables(shares: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Prepare drawing genes in constant time (Walker 1977, Vose 1991): (types, genes) thresholds and aliases."""
    thresholds = np.empty(shares.shape, np.uint32)
    aliases = np.empty(shares.shape, np.int32)
    for share, threshold, alias in zip(shares, thresholds, aliases, strict=True):
        _alias_table(share * len(share), threshold, alias)
    return thresholds, aliases


@nb.njit(cache=True)
def _alias_table(scaled, threshold, alias):  # type: ignore[no-untyped-def]
    n = len(scaled)
    small, large = np.empty(n, np.int32), np.empty(n, np.int32)
    n_small = n_large = 0
    for i in range(n):
        threshold[i], alias[i] = np.uint32(0xFFFFFFFF), i
        if scaled[i] < 1:
            small[n_small] = i
            n_small += 1
        else:
            large[n_large] = i
            n_large += 1
    while n_small and n_large:
        n_small -= 1
        i, j = small[n_small], large[n_large - 1]
        threshold[i], alias[i] = np.uint32(min(scaled[i] * 4294967296.0, 4294967295.0)), j
        scaled[j] -= 1 - scaled[i]
        if scaled[j] < 1:
            n_large -= 1
            small[n_small] = j
            n_small += 1


@nb.njit(nogil=True, cache=True)
def _next(state):  # type: ignore[no-untyped-def]
    """One step of splitmix64: (new state, 64 random bits)."""
    state += np.uint64(0x9E3779B97F4A7C15)
    z = state
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state, z ^ (z >> np.uint64(31))


@nb.njit(nogil=True, cache=True)
def draw_cells(seed, first, types, molecules, thresholds, aliases, indptr, values, columns):  # type: ignore[no-untyped-def]
    """Draw cells ``first``, ``first + 1``, …; fill indptr (n + 1,), values and columns; False if they are too short."""
    n_genes = thresholds.shape[1]
    counts = np.zeros((n_genes + 3) // 4 * 4, np.uint16)
    quads = counts.view(np.uint64)
    _, key = _next(np.uint64(seed))
    at = 0
    indptr[0] = 0
    for cell in range(len(types)):
        threshold, alias = thresholds[types[cell]], aliases[types[cell]]
        _, state = _next(key ^ np.uint64(first + cell))
        for _ in range(molecules[cell]):
            state, bits = _next(state)
            gene = np.int64(((bits >> np.uint64(32)) * np.uint64(n_genes)) >> np.uint64(32))
            if np.uint32(bits & np.uint64(0xFFFFFFFF)) >= threshold[gene]:
                gene = np.int64(alias[gene])
            if counts[gene] < 65535:
                counts[gene] += 1
        if at + n_genes > len(columns) and at + molecules[cell] > len(columns):
            return False
        for quad in range(len(quads)):
            if quads[quad]:
                for gene in range(4 * quad, 4 * quad + 4):
                    if counts[gene]:
                        values[at], columns[at] = counts[gene], gene
                        at += 1
                quads[quad] = 0
        indptr[cell + 1] = at
    return True


def make_obs(spec: Spec, first: int, stop: int, types: np.ndarray[Any, Any]) -> pd.DataFrame:
    """Describe cells ``first`` to ``stop`` in twenty columns, categorical, numeric and boolean."""
    rng = np.random.default_rng([spec.seed, 2, first])
    n = stop - first
    place = np.arange(first, stop) / spec.cells

    def category(prefix: str, codes: np.ndarray[Any, Any], n_categories: int) -> pd.Categorical:
        return pd.Categorical.from_codes(codes, [f"{prefix} {i:02d}" for i in range(n_categories)])

    plate = np.minimum((place * 14).astype(int), 13)
    donor = np.minimum((place * 140).astype(int), 139) % 10
    columns: dict[str, Any] = {
        "cell_type": category("type", types, spec.types),
        "plate": category("plate", plate, 14),
        "donor": category("donor", donor, 10),
        "sample": category("sample", plate * 10 + donor, 140),
        "condition": category("condition", donor % 2, 2),
        "tissue": category("tissue", donor % 5, 5),
        "sex": category("sex", (donor // 2) % 2, 2),
        "phase": category("phase", rng.integers(0, 3, n), 3),
    }
    for i in range(4):
        columns[f"drug_{i}"] = category("drug", rng.integers(0, 50, n), 50)
    columns["is_doublet"] = rng.random(n) < 0.05
    columns["age"] = (20 + 6 * donor).astype(np.int32)
    for name in ("mito_share", "ribo_share", "doublet_score", "s_score"):
        columns[name] = rng.random(n, np.float32)
    return pd.DataFrame(columns, index=pd.Index([f"cell-{i}" for i in range(first, stop)]))


def write_file(spec: Spec, path: Path, first: int, stop: int, workers: ThreadPoolExecutor) -> dict[str, Any]:
    """Write cells ``first`` to ``stop`` as one uncompressed ``.h5ad`` and give the sums of what was written.

    Blocks go to two plain files first: only then is the number of elements known, and a contiguous HDF5 dataset, which
    is what AnnData itself writes, needs it.
    """
    shares = profiles(spec)
    abundance = np.random.default_rng([spec.seed, 4]).dirichlet(np.full(spec.types, 2.0))
    median = library_median(spec, shares, abundance)
    thresholds, aliases = alias_tables(shares)
    rng = np.random.default_rng([spec.seed, 3, first])
    types = rng.choice(spec.types, stop - first, p=abundance).astype(np.int8)
    molecules = np.maximum(median * rng.lognormal(0, LIBRARY_SIGMA, stop - first), 1).astype(np.int64)
    index_dtype = np.dtype(spec.index_dtype)

    def draw(start: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        part = slice(start, min(start + BLOCK_ROWS, stop - first))
        room = int(np.minimum(molecules[part], spec.genes).sum()) + spec.genes
        values, columns = np.empty(room, np.float32), np.empty(room, index_dtype)
        indptr = np.empty(part.stop - part.start + 1, np.int64)
        if not draw_cells(
            spec.seed, first + start, types[part], molecules[part], thresholds, aliases, indptr, values, columns
        ):
            raise AssertionError("the room for a block's elements was computed too small")
        return values[: indptr[-1]], columns[: indptr[-1]], indptr

    row_ends = [np.zeros(1, np.int64)]
    nnz = sum_columns = sum_values = 0
    n_counts = []
    spills = path.with_suffix(".values"), path.with_suffix(".columns")
    with spills[0].open("wb") as values_file, spills[1].open("wb") as columns_file:
        starts = list(range(0, stop - first, BLOCK_ROWS))
        pending = [workers.submit(draw, start) for start in starts[:2]]
        for later in [*starts[2:], None, None]:
            if not pending:
                break
            values, columns, indptr = pending.pop(0).result()
            if later is not None:
                pending.append(workers.submit(draw, later))
            values.tofile(values_file)
            columns.tofile(columns_file)
            row_ends.append(indptr[1:] + nnz)
            n_counts.append(np.add.reduceat(values, indptr[:-1], dtype=np.float32))
            nnz += len(values)
            sum_values += int(values.sum(dtype=np.float64))
            sum_columns += int(columns.sum(dtype=np.int64))
    obs = make_obs(spec, first, stop, types)
    obs["n_counts"] = np.concatenate(n_counts)
    obs["n_genes"] = np.diff(np.concatenate(row_ends)).astype(np.int32)
    var = pd.DataFrame(index=pd.Index([f"gene-{i}" for i in range(spec.genes)]))
    ad.AnnData(obs=obs, var=var, shape=(len(obs), len(var))).write_h5ad(path)
    with h5py.File(path, "r+") as file:
        x = file.create_group("X")
        x.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": [len(obs), spec.genes]})
        x["indptr"] = np.concatenate(row_ends).astype(np.int64 if nnz >= 2**31 else index_dtype)
        for name, spill, dtype in (("data", spills[0], np.dtype(np.float32)), ("indices", spills[1], index_dtype)):
            target = x.create_dataset(name, (nnz,), dtype)
            step = 4 << 20
            with spill.open("rb") as source:
                for at in range(0, nnz, step):
                    target[at : at + step] = np.fromfile(source, dtype, step)
            spill.unlink()
    return {"n_obs": len(obs), "nnz": nnz, "sum_values": sum_values, "sum_columns": sum_columns}


def generate(spec: Spec, output: Path) -> dict[str, Any]:
    """Write the files of ``spec`` under ``output`` unless they are there already; give the facts about them.

    Returns
    -------
    dict
        ``spec``, ``files`` (names), ``n_obs``, ``n_vars``, ``nnz``, ``bytes``, ``sum_values`` (sum of all stored
        values) and ``sum_columns`` (sum of the column numbers of all stored elements); also in ``input.json``.
    """
    facts_path = output / "input.json"
    if facts_path.exists():
        facts: dict[str, Any] = json.loads(facts_path.read_text())
        if facts["spec"] == asdict(spec):
            return facts
        raise FileExistsError(
            f"{facts_path} describes another input: {facts['spec']}; remove it or choose another folder"
        )
    output.mkdir(parents=True, exist_ok=True)
    bounds = np.linspace(0, spec.cells, spec.files + 1).astype(int).tolist()
    names, parts = [], []
    started = time.perf_counter()
    with ThreadPoolExecutor(os.cpu_count()) as workers:
        for i in range(spec.files):
            names.append(f"input_{i}.h5ad")
            parts.append(write_file(spec, output / names[-1], bounds[i], bounds[i + 1], workers))
            print(f"{names[-1]}: {parts[-1]['n_obs']} cells, {time.perf_counter() - started:.1f} s", flush=True)
    facts = {"spec": asdict(spec), "files": names, "n_vars": spec.genes}
    facts |= {key: sum(part[key] for part in parts) for key in parts[0]}
    facts["bytes"] = sum((output / name).stat().st_size for name in names)
    facts_path.write_text(json.dumps(facts, indent=2) + "\n")
    return facts


def main() -> None:
    """Generate from the command line."""
    parser = argparse.ArgumentParser(description="Write generated single-cell counts as .h5ad files.")
    parser.add_argument("output", type=Path)
    defaults = Spec()
    for name in Spec.__dataclass_fields__:
        default = getattr(defaults, name)
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    arguments = vars(parser.parse_args())
    output = arguments.pop("output")
    facts = generate(Spec(**arguments), output)
    print(json.dumps(facts, indent=2))


if __name__ == "__main__":
    main()
