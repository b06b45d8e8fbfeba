"""Which threads of a loader are at work?"""

from __future__ import annotations

import threading


def background_threads() -> list[threading.Thread]:
    """Threads that read; the one that requests run in, if any test needed it, stays for the process."""
    found = [thread for thread in threading.enumerate() if thread.name.startswith("annbatch")]
    return [thread for thread in found if thread.name != "annbatch-requests"]
