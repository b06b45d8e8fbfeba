"""How is an epoch on a device of the tests compared with the same on the CPU?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from annbatch import CSR, Batch, Emit, Loader
from epochs import each_batch
from host_device import HostDevice


def parts_of(matrix: Any) -> list[np.ndarray]:
    return [matrix.data, matrix.indices, matrix.indptr] if isinstance(matrix, CSR) else [matrix]


def matrices_of(batch: Batch) -> Iterator[tuple[str, Any]]:
    yield "X", batch.data
    for kind in ("layers", "obsm"):
        yield from (getattr(batch, kind) or {}).items()


def check_same(found: list[Batch], expected: list[Batch]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.n_padding == other.n_padding
        for (name, matrix), (_, truth) in zip(matrices_of(one), matrices_of(other), strict=True):
            assert matrix.shape == truth.shape
            for part, true_part in zip(parts_of(matrix), parts_of(truth), strict=True):
                assert part.dtype == true_part.dtype, name
                assert part.tobytes() == true_part.tobytes(), name
        np.testing.assert_array_equal(one.index, other.index)
        for name in other.codes:
            np.testing.assert_array_equal(one.codes[name], other.codes[name])


def both(device: HostDevice, add: Any, emit: Emit = Emit(), **options: Any) -> tuple[Loader, list[Batch]]:  # noqa: B008
    """Compare an epoch on the device with the same on the CPU."""
    options = {"casting": "unsafe"} | options
    on_cpu = {name: value for name, value in options.items() if name != "decode"}
    cpu = add(Loader(**on_cpu))
    # None if the last batch is dropped, and the only one.
    expected = list(each_batch(cpu.batches(emit), len(cpu))) if len(cpu) else []
    ds = add(Loader(**options, device="cuda"))
    found = list(ds.batches(emit))
    device.synchronize()
    check_same(found, expected)
    return ds, found
