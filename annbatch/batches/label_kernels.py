"""How do the labels of a window get to their batches in one call that holds no GIL?

A job is one column in one store: a row of a table of integers, whose fields are named below. `gather` takes the jobs of
all columns and stores, turns codes into those of the collection, and puts every value at its place in the memory of its
batch. Addresses and a kind take the place of arrays and types, so that one compiled function serves all columns.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from annbatch.native import Kernel, inline, pointer

(
    FIRST,  # where in the window's ascending order the job's rows begin
    STOP,  # where they end
    VALUES,  # address of the values
    N_VALUES,  # how many there are
    KIND,  # their type: a number of `KINDS`
    PLACES,  # address of the rows' places among the values, int64
    MASK,  # address of what says which values are missing, bool; 0 if nothing does
    N_MASK,
    MASK_PLACES,
    N_CATEGORIES,  # how many categories the codes have; -1 for numbers
    RECODE,  # address of the collection's code for each code and, behind them, for -1, int32; 0 if they are the same
    TARGET,  # place in the memory of a batch, in bytes for each of its rows
    ITEMSIZE,  # bytes of a value there; codes have four
    MISSING,  # place of what says which values are missing, bool; -1 if nothing does
) = range(14)
N_FIELDS = 14

KINDS = [np.dtype(name) for name in ("?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8")]
"""Types that codes can have; values that are no codes are copied, whatever their type."""

_BOOL, _I8, _I16, _I32, _I64, _U8, _U16, _U32, _U64 = (np.empty(0, dtype) for dtype in KINDS)


@inline
def _integer(kind: Any, address: Any, i: Any) -> Any:
    """Give value i of an array of integers."""
    if kind == 1:
        return np.int64(pointer(address + i, _I8)[0])
    if kind == 2:
        return np.int64(pointer(address + 2 * i, _I16)[0])
    if kind == 3:
        return np.int64(pointer(address + 4 * i, _I32)[0])
    if kind == 6:
        return np.int64(pointer(address + 2 * i, _U16)[0])
    if kind == 7:
        return np.int64(pointer(address + 4 * i, _U32)[0])
    if kind in (4, 8):
        return pointer(address + 8 * i, _I64)[0]
    return np.int64(pointer(address + i, _U8)[0])


@inline
def _copy(source: Any, target: Any, itemsize: Any) -> None:
    if itemsize == 8:
        pointer(target, _I64)[0] = pointer(source, _I64)[0]
    elif itemsize == 4:
        pointer(target, _I32)[0] = pointer(source, _I32)[0]
    else:
        for k in range(itemsize):
            pointer(target + k, _U8)[0] = pointer(source + k, _U8)[0]


@Kernel
def gather(order: Any, cuts: Any, bases: Any, rows: Any, index: Any, jobs: Any) -> Any:
    """Put row numbers, codes, values and masks into the memory of the batches.

    Parameters
    ----------
    order
        (n_rows,) int64: which row of the window comes when in the ascending order.
    cuts
        (n_batches + 1,) int64: batch b holds rows [cuts[b], cuts[b + 1]) of the window.
    bases
        (n_batches,) int64: address of each batch's memory.
    rows
        (n_rows,) int64: the window's row numbers, which go to ``index``.
    index
        Place of the row numbers, as ``TARGET``.
    jobs
        (n_jobs, N_FIELDS) int64.

    Returns
    -------
    job, is_short, code
        The first job that failed, or -1: its column is shorter than the store, or the code is none of its categories.
    """
    number = np.empty(order.size, np.int64)
    for b in range(bases.size):
        n = cuts[b + 1] - cuts[b]
        target = pointer(bases[b] + index * n, _I64)
        for i in range(n):
            number[cuts[b] + i] = b
            target[i] = rows[cuts[b] + i]
    # For each row in the order of reading: its batch's memory, its place in the batch, the batch's rows.
    base_of, at_of, n_of = (
        np.empty(order.size, np.int64),
        np.empty(order.size, np.int64),
        np.empty(order.size, np.int64),
    )
    for i in range(order.size):
        b = number[order[i]]
        base_of[i], at_of[i], n_of[i] = bases[b], order[i] - cuts[b], cuts[b + 1] - cuts[b]
    for j in range(jobs.shape[0]):
        first, stop, kind, values = jobs[j, FIRST], jobs[j, STOP], jobs[j, KIND], jobs[j, VALUES]
        itemsize, recode, n_categories = jobs[j, ITEMSIZE], jobs[j, RECODE], jobs[j, N_CATEGORIES]
        places, mask_places = pointer(jobs[j, PLACES], _I64), pointer(jobs[j, MASK_PLACES], _I64)
        for i in range(first, stop):
            place = places[i - first]
            if place < 0 or place >= jobs[j, N_VALUES]:
                return j, True, 0
            base, at, n = base_of[i], at_of[i], n_of[i]
            is_missing = False
            if jobs[j, MASK]:
                mask_place = mask_places[i - first]
                if mask_place < 0 or mask_place >= jobs[j, N_MASK]:
                    return j, True, 0
                is_missing = pointer(jobs[j, MASK] + mask_place, _U8)[0] != 0
            target = base + jobs[j, TARGET] * n + itemsize * at
            if n_categories >= 0:
                code = np.int64(-1) if is_missing else _integer(kind, values, place)
                if code < -1 or code >= n_categories:
                    return j, False, code
                if recode:
                    code = np.int64(pointer(recode + 4 * (code if code >= 0 else n_categories), _I32)[0])
                pointer(target, _I32)[0] = code
            else:
                _copy(values + itemsize * place, target, itemsize)
                if jobs[j, MISSING] >= 0:
                    pointer(base + jobs[j, MISSING] * n + at, _U8)[0] = is_missing
    return -1, False, 0
