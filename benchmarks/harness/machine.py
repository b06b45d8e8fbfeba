"""What does a benchmark run on, in words and as part of a file's name?"""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path


def cores() -> int:
    """Give the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe_machine() -> str:
    """Describe the processor, the number of usable cores and the memory."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = re.findall(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(), re.MULTILINE)
        name = re.sub(r"\((?:R|TM)\)| CPU| Processor", "", models[0]) if models else name
    memory = ""
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        memory = f", {os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.0f} GiB"
    return f"{name}, {cores()} cores{memory}"


def slug(text: str) -> str:
    """Give a text as part of a file name; the memory at the end of a machine's name is left out."""
    text = re.sub(r", \d+ GiB$", "", text)
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
