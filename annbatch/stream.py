"""Where is `Stream`, which stood here? In `annbatch.samplers`; this path is deprecated."""

from __future__ import annotations

import warnings

from annbatch.samplers import Stream

__all__ = ["Stream"]

warnings.warn("annbatch.stream is deprecated: import Stream from annbatch.samplers", FutureWarning, stacklevel=2)
