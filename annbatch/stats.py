"""How fast was an epoch, and what did it wait for?

1. `Stats.of` takes what was counted (`annbatch.counters`).
2. `Stats.waits_for` compares how long each stage was busy: a stage that several threads share by the
   average of the threads.
3. `Stats.together` adds up what worker processes counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Self

from annbatch import summary
from annbatch.counters import Counters
from annbatch.summary import Summary

_FEW = 0.05
"""Share of the time below which waiting does not matter."""


@dataclass(frozen=True, slots=True, repr=False)
class Stats(Summary):
    """Counts and times of an epoch so far.

    Times of stages that several threads share are sums over these threads: four threads can spend four seconds in one
    second.
    """

    epoch: int = 0
    """Number of the epoch."""
    cells: int = 0
    """Cells in the batches that were handed over, without padding."""
    batches: int = 0
    """Batches that were handed over."""
    seconds: float = 0.0
    """Seconds from the request for the first batch until the last batch was handed over, or the epoch ended."""
    first_batch_seconds: float = 0.0
    """Seconds until the first batch was handed over, which cannot be read ahead."""
    wait_seconds: float | None = 0.0
    """Seconds, out of ``seconds``, that the caller waited for batches, including the first one. None with worker
    processes of a ``DataLoader``, since the caller is in another process."""
    bytes_read: int = 0
    """Bytes read from files and received from object stores. What zarr reads, or what comes from the cache of
    ``cache_dir``, is not counted."""
    bytes_decoded: int = 0
    """Bytes of decoded chunks, in the types in which they are stored."""
    requests: int = 0
    """Requests to object stores, including repeated ones. Those of zarr are not counted."""
    retries: int = 0
    """Requests that the loader repeated because an answer was an error or incomplete. Repeats by the client of the
    object store are not counted."""
    cache_hits: int = 0
    """Pages of 16 KiB that were in the cache of ``cache_dir``."""
    cache_misses: int = 0
    """Pages of the cache that had to be requested."""
    read_seconds: float = 0.0
    """Seconds in which threads read files, or waited for others to read ahead of them."""
    request_seconds: float = 0.0
    """Seconds in which threads waited for object stores."""
    zarr_seconds: float = 0.0
    """Seconds in which threads waited for arrays that zarr or NumPy reads and decodes."""
    decode_seconds: float = 0.0
    """Seconds of all other work on batches, such as decoding chunks, casting and placing values, selecting genes, and
    reading labels."""
    transform_seconds: float = 0.0
    """Seconds in the functions of ``transform``."""
    plan_seconds: float = 0.0
    """Seconds of planning what to read. One thread does that, ahead of reading."""
    device_seconds: float = 0.0
    """Seconds in which the caller's thread made batches on a device."""
    peak_slab_bytes: int = 0
    """Maximum memory, in bytes, of batches that were read ahead or not yet dropped."""
    threads: int = 0
    """Threads that read and decode, in all worker processes."""
    workers: int = 0
    """Worker processes of a ``DataLoader`` that were counted; 0 without any."""

    @classmethod
    def of(cls, counters: Counters, peak_slab_bytes: int) -> Self:
        """Take what was counted."""
        began = counters.began_ns

        def seconds(stage: str) -> float:
            return counters[stage] / 1e9

        return cls(
            epoch=counters.epoch,
            cells=counters.cells,
            batches=counters.batches,
            seconds=(counters.last_ns - began) / 1e9,
            first_batch_seconds=(counters.first_ns - began) / 1e9 if counters.first_ns else 0.0,
            wait_seconds=counters.wait_ns / 1e9,
            peak_slab_bytes=peak_slab_bytes,
            threads=counters.threads,
            bytes_read=counters["bytes_read"],
            bytes_decoded=counters["bytes_decoded"],
            requests=counters["requests"],
            retries=counters["retries"],
            cache_hits=counters["cache_hits"],
            cache_misses=counters["cache_misses"],
            read_seconds=seconds("read"),
            request_seconds=seconds("request"),
            zarr_seconds=seconds("zarr"),
            decode_seconds=seconds("decode"),
            transform_seconds=seconds("transform"),
            plan_seconds=seconds("plan"),
            device_seconds=seconds("device"),
        )

    @classmethod
    def together(cls, each: Sequence[Stats], seconds: float) -> Self:
        """Add up the counts of worker processes, which took so many seconds from the first to the last batch."""
        summed = {
            field.name: sum(getattr(one, field.name) for one in each)
            for field in fields(cls)
            if field.name not in ("epoch", "seconds", "first_batch_seconds", "wait_seconds", "workers")
        }
        return cls(
            epoch=max(one.epoch for one in each),
            seconds=seconds,
            first_batch_seconds=min(one.first_batch_seconds for one in each),
            wait_seconds=None,
            workers=len(each),
            **summed,
        )

    @property
    def cells_per_second(self) -> float:
        """Cells per second."""
        return self.cells / self.seconds if self.seconds else 0.0

    @property
    def wait_share(self) -> float | None:
        """Share of the time in which the caller waited for a batch; None if ``wait_seconds`` is None."""
        if self.wait_seconds is None:
            return None
        return self.wait_seconds / self.seconds if self.seconds else 0.0

    @property
    def busy(self) -> Mapping[str, float]:
        """Share of the time in which each stage was at work, averaged over the threads that share it."""
        threads = max(1, self.threads)
        shared = {
            "files": self.read_seconds,
            "zarr": self.zarr_seconds,
            "decoding": self.decode_seconds,
            "transform": self.transform_seconds,
        }
        alone = {"object store": self.request_seconds, "planning": self.plan_seconds, "device": self.device_seconds}
        found = {name: value / threads for name, value in shared.items()} | {
            name: value / max(1, self.workers) for name, value in alone.items()
        }
        return {name: value / self.seconds if self.seconds else 0.0 for name, value in found.items()}

    @property
    def waits_for(self) -> str | None:
        """The stage that was busy longest, and so what the caller waited for.

        One of ``"files"``, ``"object store"``, ``"zarr"``, ``"decoding"``, ``"transform"``, ``"planning"`` and
        ``"device"``; None if the caller waited for less than 5 % of the time.
        """
        busy = self.busy
        if not any(busy.values()) or (self.wait_share is not None and self.wait_share < _FEW):
            return None
        return max(busy, key=busy.__getitem__)

    def __str__(self) -> str:
        facts = self._facts()
        width = max(map(len, facts))
        return "\n".join(f"{name:<{width}}  {text}" for name, text in facts.items())

    def _facts(self) -> dict[str, str]:
        facts = {
            "epoch": str(self.epoch),
            "cells": f"{self.cells:,} in {self.batches:,} batches, {self.seconds:.2f} s",
            "speed": f"{self.cells_per_second:,.0f} cells/s",
        }
        if self.wait_share is not None:
            facts["caller waited"] = (
                f"{self.wait_share:.0%} of the time: {self.wait_seconds:.2f} s, "
                f"{self.first_batch_seconds:.2f} s of it for the first batch"
            )
        facts["waits for"] = self.waits_for or "nothing"
        facts["busy"] = ", ".join(f"{name} {share:.0%}" for name, share in self.busy.items() if share >= 0.005) or "–"
        facts["bytes"] = f"{summary.size(self.bytes_read)} read, {summary.size(self.bytes_decoded)} decoded"
        if self.requests:
            facts["requests"] = f"{self.requests:,}, {self.retries:,} of them repeated"
        if pages := self.cache_hits + self.cache_misses:
            facts["cache"] = f"{self.cache_hits:,} of {pages:,} pages found"
        processes = f" in {self.workers} worker processes" if self.workers else ""
        return facts | {
            "memory of batches": summary.size(self.peak_slab_bytes),
            "threads": f"{self.threads}{processes}",
        }
