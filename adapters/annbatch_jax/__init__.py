"""How do batches reach JAX?

1. `JaxLoader` asks the core for few distinct shapes: a static number of rows, room for a rounded number of elements.
2. Each batch goes over in one `jax.device_put`: the same memory on the CPU, one copy to an accelerator.
3. `densify` and `matmul` compute with the padded matrix inside ``jax.jit``.
"""

from __future__ import annotations

try:
    import jax  # noqa: F401  here only to say what is missing
except ImportError as error:
    raise ImportError("annbatch_jax needs JAX, which could not be imported: pip install jax") from error

from annbatch_jax._batch import JaxBatch
from annbatch_jax._loader import JaxLoader
from annbatch_jax._sparse import PaddedCSR, densify, matmul

__all__ = ["JaxBatch", "JaxLoader", "PaddedCSR", "densify", "matmul"]
