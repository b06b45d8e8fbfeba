"""Does ``fit`` of Keras train on every row once an epoch, and can a run begin with any epoch?

The truth is what the core loader gives. A model of its own tells in which step it was trained on a row: rows are those
of the identity matrix, the model sums up the weights of a row, and the learning rate is the number of the step.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from typing import Any

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp

from annbatch import Loader

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(600)]

N_ROWS = 107


def core() -> Loader:
    asked: dict[str, Any] = {"batch_size": 8, "chunk_size": 2, "preload_nchunks": 8, "threads": 1}
    return Loader(**asked).add_anndatas([ad.AnnData(sp.eye(N_ROWS, format="csr", dtype=np.float32))])


def steps(epoch: int) -> np.ndarray:
    """Give the step of an epoch, from 1, in which each row comes."""
    ds, found = core(), np.zeros(N_ROWS)
    ds.set_epoch(epoch)
    for number, batch in enumerate(ds, start=1):
        found[batch["index"]] = number
    return found


def batches_for(backend: str, ds: Loader) -> Any:
    if backend == "tensorflow":
        import tensorflow as tf

        def pairs() -> Any:
            for batch in ds:
                yield batch["data"].to_scipy().toarray(), batch["index"]

        signature = (tf.TensorSpec((None, N_ROWS), tf.float32), tf.TensorSpec((None,), tf.int64))
        return tf.data.Dataset.from_generator(pairs, output_signature=signature).prefetch(2)

    from torch.utils.data import DataLoader

    from annbatch_torch import TorchLoader

    dicts = TorchLoader(ds, layout="dense", form="dict")
    return DataLoader(dicts, batch_size=None, collate_fn=lambda batch: (batch["data"], batch["index"]))


def trained(backend: str, first: int, last: int) -> list[np.ndarray]:
    """Give the weights after each epoch: for each row the sum of the numbers of its steps."""
    import keras

    class Number(keras.optimizers.schedules.LearningRateSchedule):
        def __call__(self, step: Any) -> Any:
            return keras.ops.cast(step, "float32") + 1.0

    ds, weights = core(), []
    model = keras.Sequential([keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros")])
    model.compile(keras.optimizers.SGD(Number()), lambda _, predicted: -keras.ops.sum(predicted))
    noted = keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda epoch, logs: ds.set_epoch(epoch),
        on_epoch_end=lambda epoch, logs: weights.append(np.asarray(model.get_weights()[0]).ravel().copy()),
    )
    model.fit(batches_for(backend, ds), initial_epoch=first, epochs=last, callbacks=[noted], verbose=0)
    return weights


def main(backend: str) -> None:
    whole = trained(backend, 0, 2)
    np.testing.assert_array_equal(whole[0], steps(0))
    # TensorFlow counts one step more: that in which it notices the end of the first epoch.
    second = whole[1] - whole[0]
    np.testing.assert_array_equal(second - second.min() + 1, steps(1))
    (later,) = trained(backend, 1, 2)
    np.testing.assert_array_equal(later, steps(1))
    assert (steps(0) != steps(1)).any()


@pytest.mark.parametrize(
    ("backend", "needed"), [("torch", ["torch"]), ("jax", ["jax", "torch"]), ("tensorflow", ["tensorflow"])]
)
def test_every_row_once_and_from_any_epoch(backend: str, needed: list[str]) -> None:
    # A process of its own, because Keras chooses its backend when it is imported.
    if absent := [module for module in ["keras", *needed] if find_spec(module) is None]:
        pytest.skip(f"{', '.join(absent)} is not installed: make test-clients")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "KERAS_BACKEND": backend}
    done = subprocess.run(
        [sys.executable, __file__, backend], env=environment, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr[-4000:]


if __name__ == "__main__":
    main(sys.argv[1])
