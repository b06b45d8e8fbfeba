"""Which settings does a benchmark recommend, and why? Pure.

1. Cold speed counts where the files do not fit in memory, else warm speed: every epoch but the first is warm then.
2. Of the settings that come within a tenth of the fastest, the one with the smallest blocks is recommended, which mixes
   rows best, and of those the one that takes the least memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from annbatch import summary
from annbatch.commands.bench_measurements import Run, Setting

NEAR = 0.9
"""Share of the best speed from which on settings count as equally fast: runs of a few seconds differ by that much."""
_FITS = 0.7
"""Share of the memory that files may take, so that all of them stay there beside other programs."""


@dataclass(frozen=True, slots=True)
class Measured:
    """A setting and its runs."""

    setting: Setting
    """The options."""
    cold: Run | None
    """From the disk, or an object store; None if that could not be measured."""
    warm: Run | None
    """From memory; None with an object store."""


@dataclass(frozen=True, slots=True)
class Advice:
    """What to take."""

    setting: Setting
    """The options."""
    counts: str
    """Which speed decided, ``"cold"`` or ``"warm"``."""
    reasons: tuple[str, ...]
    """Sentences."""


def advise(
    measured: Sequence[Measured], n_bytes: int, memory: int | None, disk: float | None, is_remote: bool
) -> Advice:
    """Choose a setting.

    Parameters
    ----------
    measured
        What was measured, at least one setting.
    n_bytes
        Size of the collection.
    memory
        Memory that files may be kept in, in bytes; None if it is not known.
    disk
        What the disk gives, cold, in bytes per second; None if it is not known.
    is_remote
        Whether the collection lies in an object store.
    """
    fits = memory is not None and n_bytes <= _FITS * memory
    counts = "cold" if measured[0].cold is not None and (is_remote or not fits or measured[0].warm is None) else "warm"
    runs = [(one.setting, one.cold if counts == "cold" else one.warm) for one in measured]
    known = [(setting, run) for setting, run in runs if run is not None]
    fastest, best = max(known, key=lambda each: each[1].cells_per_second)
    near = [each for each in known if each[1].cells_per_second >= NEAR * best.cells_per_second]
    setting, run = min(near, key=lambda each: (each[0].chunk_size, each[1].memory_bytes))
    reasons = [_why_counts(counts, n_bytes, memory, fits=fits, is_remote=is_remote)]
    speed = f"It reads {run.cells_per_second:,.0f} cells/s {counts}"
    if setting == fastest:
        reasons.append(f"{speed}, the fastest of all settings.")
    else:
        share = run.cells_per_second / best.cells_per_second
        reasons.append(
            f"{speed}, {share:.0%} of the fastest ({_words(fastest)}). At equal speed, smaller blocks mix rows better, "
            f"and less memory is better."
        )
    reasons.append(_why_waits(run, setting, disk))
    return Advice(setting, counts, tuple(reasons))


def _why_counts(counts: str, n_bytes: int, memory: int | None, *, fits: bool, is_remote: bool) -> str:
    held = "" if memory is None else f", and {summary.size(memory)} of memory is available"
    size = f"The collection takes {summary.size(n_bytes)}{held}"
    if is_remote:
        return "An object store is read in every epoch; with Loader(cache_dir=…) only in the first."
    if fits:
        return f"{size}. Files are read from memory from the second epoch on, so warm speed counts."
    if counts == "cold":
        return f"{size}. Files are read from disk in every epoch, so cold speed counts."
    return f"{size}. Cold speed is not known here, so warm speed counts."


def _why_waits(run: Run, setting: Setting, disk: float | None) -> str:
    if run.waits_for == "decoding":
        return f"Decoding is the limit: it keeps {setting.threads} threads busy. More cores would make it faster."
    if run.waits_for == "files":
        of_disk = "" if not disk else f", and the disk can give {summary.size(round(disk))}/s"
        return f"Reading is the limit: files gave {summary.size(round(run.bytes_per_second))}/s{of_disk}."
    if run.waits_for == "zarr":
        return "zarr reads these arrays, which is slower than the direct path for arrays that annbatch writes."
    return f"The limit is {run.waits_for or 'the consumer of the batches'}."


def _words(setting: Setting) -> str:
    return (
        f"chunk_size {setting.chunk_size}, preload_nchunks {setting.preload_nchunks}, batch_size {setting.batch_size}"
    )
