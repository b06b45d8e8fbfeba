"""Does a loader on a device give the batches of `.h5ad` files that one on the CPU gives?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pytest

import host_device
from annbatch import Emit, InputError, Loader
from annbatch import dataset as dataset_module
from annbatch import loader_data as loader_module
from datagen import named_matrix
from device_epochs import both
from host_device import HostDevice

pytest.importorskip("hdf5plugin", reason="hdf5plugin is not installed")

from h5ad_files import LAYOUTS, write

pytestmark = pytest.mark.skipif(host_device.COMPILER is None, reason="no C++ compiler")

SMALL: dict[str, Any] = {"batch_size": 8, "chunk_size": 5, "preload_nchunks": 3, "seed": 3, "layers": ["dense"]}
# Why chunks are decoded on the CPU; None where the device can decode them.
DECODED: dict[str, str | None] = {
    "contiguous": "are raw, not packed or zstd",
    "gzip": "are zlib, not packed or zstd",
    "zstd shuffle": None,
    "bitshuffle": "not read directly",
}


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> HostDevice:
    found = HostDevice()
    monkeypatch.setattr(loader_module, "open_device", lambda name: found)
    monkeypatch.setattr(dataset_module, "missing", lambda: None)
    return found


def test_h5ad_files(device: HostDevice, tmp_path: Path) -> None:
    cells = ad.AnnData(named_matrix(np.random.default_rng(0), range(60), range(40), density=0.4))
    for name, why in DECODED.items():
        path = write(cells, tmp_path / f"{name}.h5ad", LAYOUTS[name])
        for layout in ("csr", "dense"):
            emit = Emit(layout=layout)
            ds, _ = both(device, lambda ds, path=path: ds.use_h5ad(path, labels=[]), emit, **SMALL)
            assert ds.decode == ("cpu" if why else "gpu"), name
        if why:
            with pytest.raises(InputError, match=f"decode='gpu' is not possible: .*{why}"):
                Loader(**SMALL, device="cuda", decode="gpu").use_h5ad(path, labels=[])
