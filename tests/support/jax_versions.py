"""What is named differently in versions of JAX that are supported?"""

from __future__ import annotations

import jax
import jax.experimental

enable_x64 = jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64
"""Takes ``True``, and is a context manager; under ``jax.experimental`` in JAX 0.6."""
