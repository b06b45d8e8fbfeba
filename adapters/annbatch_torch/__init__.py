"""How do batches reach torch?

1. `TorchLoader` asks the core for the types and the layout that torch takes as they are.
2. Each batch's buffers become tensors by DLPack: the same memory on the CPU, one copy to a GPU.
3. Ranks of ``torch.distributed`` and worker processes of a ``DataLoader`` are consumers: each gets its own windows.
4. `csr_parts` and `densify` are the way into ``torch.compile``, which takes no sparse tensors.
"""

from __future__ import annotations

try:
    import torch  # noqa: F401  here only to say what is missing
except ImportError as error:
    raise ImportError("annbatch_torch needs PyTorch, which could not be imported: pip install torch") from error

from annbatch_torch._loader import TorchBatch, TorchLoader
from annbatch_torch._sparse import csr_parts, densify

__all__ = ["TorchBatch", "TorchLoader", "csr_parts", "densify"]
