"""What is said of genes that cannot be joined, or are left out?

`write/test_write_many_inputs.py` asks which genes are joined, and where those of each input go.
"""

from __future__ import annotations

import re
from typing import Any

import pandas as pd
import pytest

from annbatch.errors import InputError
from annbatch.stores.gene_join import fit_genes, join_genes, warn_of_lost_genes
from annbatch.stores.gene_lists import GeneLists

PATHS = ["a.h5ad", "b.h5ad", "c.h5ad"]
INPUTS = [["g1", "g2"], ["g2", "g1"], ["g2", "g3", "g4"]]


def lists_of(*inputs: list[str]) -> GeneLists:
    lists = GeneLists()
    for names in inputs:
        lists.add(pd.Index(names, dtype=object))
    return lists


@pytest.mark.parametrize(
    ("inputs", "join", "var_names", "message"),
    [
        (INPUTS, "left", None, "join must be 'outer', 'inner' or 'same', got 'left'"),
        (INPUTS, "outer", "g1", "var_names must be a list of names, got the string 'g1'"),
        (INPUTS, "outer", list("abcbaa"), "var_names must be unique, got more than one of ['b', 'a', 'a']"),
        (INPUTS, "outer", ["g4", "x", "y"], "var_names must be in at least one input, got ['x', 'y']"),
        (INPUTS, "outer", list("abcde"), "got ['a', 'b', 'c', 'd', 'e']"),
        (INPUTS, "outer", list("abcdef"), "got ['a', 'b', 'c', 'd', 'e'] …"),
        (INPUTS, "outer", [], "no genes are left: join='outer' of ['a.h5ad', 'b.h5ad', 'c.h5ad'] has no gene"),
        (
            [["g1"], ["g2"]],
            "inner",
            None,
            "join='inner' of ['a.h5ad', 'b.h5ad'] has no gene in common; a.h5ad",
        ),
        (
            INPUTS,
            "same",
            None,
            "c.h5ad: must have the same genes as a.h5ad (join='same'), lacks 1 ['g1'] and has 2 others ['g3', 'g4'];",
        ),
        (INPUTS, "same", ["g2"], "c.h5ad: must have the same genes as a.h5ad"),
        ([["g1", "g2"], ["g1"]], "same", None, "b.h5ad: must have the same genes as a.h5ad (join='same'), lacks 1"),
        ([["g1"], ["g1", "g2"]], "same", None, "lacks 0 [] and has 1 others ['g2']"),
    ],
    ids=str,
)
def test_what_cannot_be_joined(inputs: list[list[str]], join: Any, var_names: Any, message: str):
    with pytest.raises(InputError, match=re.escape(message)):
        join_genes(lists_of(*inputs), PATHS[: len(inputs)], join, var_names)


def test_inputs_that_have_genes_in_common_are_not_blamed():
    with pytest.raises(InputError, match="has no gene in common$"):
        join_genes(lists_of(*INPUTS), PATHS, "outer", [])


def test_given_genes_come_in_their_order():
    found = join_genes(lists_of(*INPUTS), PATHS, "outer", iter(["g3", "g1"]))
    assert found.names.tolist() == ["g3", "g1"]
    assert [found.columns(i).tolist() for i in range(3)] == [[1, -1], [-1, 1], [-1, 0, -1]]
    assert found.n_lost() == [(2, 1), (2, 1), (3, 2)]


def test_an_input_without_a_gene_of_the_collection():
    genes, strange = [f"g{i}" for i in range(7)], [f"x{i}" for i in range(6)]
    message = (
        "b.h5ad: must share a gene with the collection, got ['x0', 'x1', 'x2', 'x3', 'x4'] …; the collection has "
        "['g0', 'g1', 'g2', 'g3', 'g4'] …. var_key="
    )
    with pytest.raises(InputError, match=re.escape(message)):
        fit_genes(lists_of(genes, strange), PATHS[:2], pd.Index(genes, dtype=object))


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ([["g1"], ["g1", "x"]], "1 of the 2 genes of b.h5ad are not in the collection: ['x']"),
        (
            [["g1", "y", "x"], ["g1"], ["x", "g1"]],
            "2 of the 3 genes of a.h5ad, and genes of 1 more inputs, are not in the collection: ['y', 'x']",
        ),
        ([["g1", *"abcdef"]], "6 of the 7 genes of a.h5ad are not in the collection: ['a', 'b', 'c', 'd', 'e'] …"),
        ([["g1", *"abcde"]], "5 of the 6 genes of a.h5ad are not in the collection: ['a', 'b', 'c', 'd', 'e']"),
    ],
    ids=str,
)
def test_lost_genes_are_named(inputs: list[list[str]], said: str):
    found = fit_genes(lists_of(*inputs), PATHS[: len(inputs)], pd.Index(["g1"], dtype=object))
    with pytest.warns(UserWarning, match=rf"^genes are left out: {re.escape(said)}$"):
        warn_of_lost_genes(found, PATHS, strict=False)
    with pytest.raises(InputError, match=rf"^no gene may be left out \(strict=True\), but {re.escape(said)}$"):
        warn_of_lost_genes(found, PATHS, strict=True)


def test_nothing_is_said_where_no_gene_is_lost():
    found = fit_genes(lists_of(["g1"], ["g2", "g1"]), PATHS[:2], pd.Index(["g1", "g2", "g3"], dtype=object))
    for strict in (False, True):
        warn_of_lost_genes(found, PATHS, strict=strict)
