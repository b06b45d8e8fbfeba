"""How does a test change one value deep in a manifest?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def put(*keys: Any) -> Callable[[Any, Any], None]:
    """Give a function that puts a value under these keys of nested dicts and lists."""

    def edit(manifest: Any, value: Any) -> None:
        for key in keys[:-1]:
            manifest = manifest[key]
        manifest[keys[-1]] = value

    return edit
