"""Which threads of a loader are at work?

A loader that a test left to the garbage collector keeps its threads until that comes. What `remember` saw before a test
is therefore none of this test's.
"""

from __future__ import annotations

import threading

_of_others: set[threading.Thread] = set()


def remember() -> None:
    """Take the threads that there are now for those of other tests."""
    _of_others.clear()
    _of_others.update(threading.enumerate())


def background_threads() -> list[threading.Thread]:
    """Threads that read; the one that requests run in, if any test needed it, stays for the process."""
    found = [thread for thread in threading.enumerate() if thread.name.startswith("annbatch")]
    return [thread for thread in found if thread.name != "annbatch-requests" and thread not in _of_others]
