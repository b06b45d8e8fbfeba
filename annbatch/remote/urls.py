"""Which object store does a URL mean, and how is a store named so that no secret is shown?"""

from __future__ import annotations

import os
import re
from datetime import timedelta
from typing import Any

from annbatch.errors import StoreError, reason, redacted
from annbatch.remote import request_pool

_SCHEMES = ("s3", "s3a", "gs", "az", "azure", "abfs", "abfss", "adl", "http", "https", "file", "memory")
_URL = re.compile(rf"({'|'.join(_SCHEMES)})://", re.IGNORECASE)


def is_url(text: str) -> bool:
    """Say whether a text is the URL of an object store, rather than a path."""
    return _URL.match(text) is not None


def open_url(url: str) -> Any:
    """Give the obstore store of a URL; keys and regions come from the environment, as obstore documents.

    Raises
    ------
    ImportError
        If obstore is not installed.
    StoreError
        If it cannot make a store of the URL.
    """
    try:
        from obstore.exceptions import BaseError
        from obstore.store import from_url
    except ImportError as e:
        raise ImportError(f"reading {redacted(url)} needs obstore: pip install obstore") from e
    request_pool.check_process()
    idle = timedelta(seconds=request_pool.IDLE_S)
    options: Any = {"connect_timeout": idle, "read_timeout": idle, "timeout": timedelta(hours=1)}
    # obstore takes these options instead of those of the environment, of which this one is in use.
    allowed = (os.environ.get(f"{cloud}_ALLOW_HTTP", "").lower() for cloud in ("AWS", "GOOGLE", "AZURE"))
    options["allow_http"] = url.lower().startswith("http://") or any(text in ("1", "true", "yes") for text in allowed)
    retries: Any = {"max_retries": 100, "retry_timeout": timedelta(seconds=request_pool.RETRY_S)}
    scheme = _URL.match(url)
    more = {} if scheme and scheme[1].lower() in ("file", "memory") else {"client_options": options}
    try:
        return from_url(url, retry_config=retries, **more) if more else from_url(url)
    except (BaseError, ValueError, TypeError, OSError) as e:
        raise StoreError(f"{redacted(url)}: is not a URL that obstore can open: {reason(e)}") from None


def name_of(store: Any) -> str:
    """Give the URL of an obstore store, as people know it and without secrets."""
    kind, prefix = type(store).__name__, getattr(store, "prefix", None)
    place = f"/{prefix}" if prefix else ""
    if kind == "HTTPStore":
        return redacted(str(store.url)).rstrip("/")
    if kind in ("S3Store", "GCSStore"):
        return f"{'s3' if kind == 'S3Store' else 'gs'}://{store.config.get('bucket', '')}{place}"
    if kind == "AzureStore":
        return f"az://{store.config.get('container_name', '')}{place}"
    return f"file://{place}" if kind == "LocalStore" else "memory://"
