"""What does it cost to hand batches over to a framework, and which layout serves a model best?

1. ``cost``: batches of the core beside the same batches through each adapter, in interleaved rounds of whole epochs
   within one process; and the time of a hand-over itself, waiting for the framework included.
2. ``layouts``: for each framework and layout the time until the next batch is there, its bytes, and how long a first
   layer of 128 units takes on it, forwards, and forwards and backwards. Interleaved rounds again.

Usage: ``python benchmarks/handover.py COMMAND [options]``
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

import annbatch
from annbatch.adapter import Adapter
from annbatch_jax import JaxLoader, densify, matmul
from annbatch_torch import TorchLoader, csr_parts
from annbatch_torch import densify as torch_densify
from harness.command_line import options, prepared, run_command
from harness.results import median, save, spread
from harness.stores import Bench, prepare

BATCH, HIDDEN = 4096, 128
Rows = list[dict[str, Any]]


def opened(store: Path) -> annbatch.Loader:
    """Open the collection as all rows here read it."""
    return annbatch.Loader(batch_size=BATCH).use_collection(store, labels=["cell_type"])


def wait_for(batch: Any) -> None:
    """Wait until a batch's arrays are really there."""
    if isinstance(batch, annbatch.Batch):
        jax.block_until_ready((batch.data, batch.codes))
    elif batch.data.device.type == "cuda":
        torch.cuda.synchronize()


def epochs(adapter: Adapter, through: bool, n: int) -> tuple[float, float, float]:
    """Read epochs through an adapter, or bare; give seconds, CPU seconds, and the seconds of a hand-over (median)."""
    handing = [] if through else [0.0]
    cpu_before, started = time.process_time(), time.perf_counter()
    for _ in range(n):
        for batch in adapter.loader.batches(adapter._emit):
            if through:
                before = time.perf_counter()
                handed = adapter._hand_over(batch)
                wait_for(handed)
                handing.append(time.perf_counter() - before)
                del handed
            # A batch that is held costs the loader a slab.
            del batch
    return time.perf_counter() - started, time.process_time() - cpu_before, float(np.median(handing))


def cost(arguments: argparse.Namespace) -> None:
    """Time the core and each adapter in turn."""
    bench = prepared(arguments)
    store = store_of(bench)
    rows: Rows = []
    # A loader for each form of batches, so that memory is used again from round to round.
    for setting, adapters in (
        ("CSR", {"torch": TorchLoader(opened(store))}),
        ("padded CSR", {"JAX": JaxLoader(opened(store))}),
        ("dense", dense_adapters(opened(store))),
    ):
        n_obs = bench.facts["n_obs"]
        contenders = {"core": (next(iter(adapters.values())), False)} | {
            name: (adapter, True) for name, adapter in adapters.items()
        }
        warm = {name: epochs(adapter, through, 1)[0] for name, (adapter, through) in contenders.items()}
        found: dict[str, dict[str, list[float]]] = {
            name: {"cells_per_s": [], "cells_per_cpu_s": [], "handing_ms": []} for name in contenders
        }
        n = max(1, round(bench.total_s / bench.rounds / min(warm.values())))
        for number in range(bench.rounds):
            # The order turns from round to round, so that no contender always follows the same one.
            for name in [*contenders][number % len(contenders) :] + [*contenders][: number % len(contenders)]:
                seconds, cpu_s, handing = epochs(*contenders[name], n)
                found[name]["cells_per_s"].append(round(n * n_obs / seconds, 1))
                found[name]["cells_per_cpu_s"].append(round(n * n_obs / cpu_s, 1))
                found[name]["handing_ms"].append(round(1000 * handing, 4))
        for name, measured in found.items():
            row = {"contender": name, "setting": setting, "batch_ms": [], **measured}
            row["batch_ms"] = [round(1000 * BATCH / rate, 3) for rate in measured["cells_per_s"]]
            rows.append(row)
            print(
                f"{setting:<12} {name:<6} {median(row):>10,.0f} cells/s ± {spread(row):.0%}, "
                f"{median(row, 'cells_per_cpu_s'):,.0f} cells/CPU s, "
                f"{np.median(row['batch_ms']):.2f} ms a batch, handing over {np.median(row['handing_ms']):.3f} ms",
                flush=True,
            )
        next(iter(adapters.values())).loader.close()
    save("handover", arguments, bench.facts, rows)


def dense_adapters(core: annbatch.Loader) -> dict[str, Adapter]:
    """Give both dense adapters on one loader."""
    return {"torch": TorchLoader(core, layout="dense"), "JAX": JaxLoader(core, layout="dense")}


def store_of(bench: Bench) -> Path:
    """Give the project's store of the input, written if it is not there."""
    store = prepare(bench, "direct")
    assert store is not None
    return store


# --- layouts ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Layout:
    """A framework and a layout."""

    adapter: Adapter
    """Gives the batches."""
    forward: Callable[[Any], Any]
    """The first layer's output for ``batch.data``, complete."""
    both: Callable[[Any], Any]
    """The same, and the gradient of its weights."""


def torch_layout(core: annbatch.Loader, layout: Any, product: Callable[[Any, Any], Any], device: str = "cpu") -> Layout:
    """Multiply as torch does; ``product`` takes the data and the weights."""
    weight = torch.randn(core.n_vars, HIDDEN, device=device, requires_grad=True)

    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    def forward(data: Any) -> None:
        with torch.no_grad():
            product(data, weight)
        wait()

    def both(data: Any) -> None:
        weight.grad = None
        product(data, weight).square().mean().backward()
        wait()

    return Layout(TorchLoader(core, layout=layout, device=device), forward, both)


def jax_layout(core: annbatch.Loader, layout: Any, product: Callable[[Any, Any], Any]) -> Layout:
    """Multiply in a jitted function."""
    weight = jax.random.normal(jax.random.key(0), (core.n_vars, HIDDEN))
    forward = jax.jit(product)
    both = jax.jit(jax.grad(lambda weight, data: jnp.square(product(data, weight)).mean()))
    return Layout(
        JaxLoader(core, layout=layout, canonical=layout == "padded_csr"),
        lambda data: jax.block_until_ready(forward(data, weight)),
        lambda data: jax.block_until_ready(both(weight, data)),
    )


def cupy_layout(core: annbatch.Loader) -> Layout:
    """Multiply cupyx's matrix."""
    import cupy

    from annbatch_cupy import CupyLoader

    weight = cupy.random.standard_normal((core.n_vars, HIDDEN), dtype=cupy.float32)

    def forward(data: Any) -> Any:
        product = data @ weight
        cupy.cuda.get_current_stream().synchronize()
        return product

    def both(data: Any) -> None:
        data.T @ (forward(data) * (2 / HIDDEN / BATCH))
        cupy.cuda.get_current_stream().synchronize()

    return Layout(CupyLoader(core), forward, both)


def all_layouts(store: Path) -> Iterator[tuple[str, Callable[[annbatch.Loader], Layout]]]:
    """Name the layouts that can run here."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    yield "torch, CSR", lambda core: torch_layout(core, "csr", torch.matmul, device)
    yield (
        "torch, CSR, `densify` in the step",
        lambda core: torch_layout(core, "csr", lambda x, w: torch_densify(*csr_parts(x), w.shape[0]) @ w, device),
    )
    yield "torch, dense", lambda core: torch_layout(core, "dense", torch.matmul, device)
    yield "JAX, padded CSR, `matmul`", lambda core: jax_layout(core, "padded_csr", matmul)
    yield (
        "JAX, padded CSR, `densify`, log1p",
        lambda core: jax_layout(core, "padded_csr", lambda x, w: jnp.log1p(densify(x)) @ w),
    )
    yield "JAX, dense", lambda core: jax_layout(core, "dense", jnp.matmul)
    if device == "cuda":
        yield "CuPy, CSR", cupy_layout


def n_bytes(data: Any) -> int:
    """Bytes of a batch's matrix."""
    if isinstance(data, torch.Tensor):
        parts: Any = csr_parts(data) if data.is_sparse_csr else (data,)
        return sum(part.numel() * part.element_size() for part in parts)
    parts = [getattr(data, name, None) for name in ("data", "indices", "indptr")]
    return data.nbytes if parts[1] is None else sum(part.nbytes for part in parts)


def timed_ms(call: Callable[[], Any]) -> float:
    """Give the milliseconds that a call takes."""
    started = time.perf_counter()
    call()
    return round(1000 * (time.perf_counter() - started), 3)


def layouts(arguments: argparse.Namespace) -> None:
    """Time loading and a first layer in each layout."""
    bench = prepared(arguments)
    store = store_of(bench)
    entries, rows = {}, []
    for name, make in all_layouts(store):
        layout = make(opened(store))
        batch = next(iter(layout.adapter))
        data = batch.data
        layout.forward(data)
        layout.both(data)
        layout.adapter.loader.close()
        entries[name] = (layout, data)
        rows.append({"contender": name, "bytes": n_bytes(data), "load_ms": [], "forward_ms": [], "both_ms": []})
        del batch
    for number in range(-1, bench.rounds):
        for row in rows:
            layout, data = entries[row["contender"]]
            found = {
                "load_ms": round(1000 * epochs(layout.adapter, True, 1)[0] / len(layout.adapter), 3),
                "forward_ms": timed_ms(lambda: layout.forward(data)),  # noqa: B023  called at once
                "both_ms": timed_ms(lambda: layout.both(data)),  # noqa: B023
            }
            # Nothing of this one may be read ahead, or stay in memory, while another one is timed.
            layout.adapter.loader.close()
            if number >= 0:
                for key, value in found.items():
                    row[key].append(value)
        print(f"round {number + 1} of {bench.rounds}", flush=True)
    for row in rows:
        load, forward, both = (np.median(row[key]) for key in ("load_ms", "forward_ms", "both_ms"))
        print(
            f"{row['contender']:<36} {row['bytes'] / 1e6:>7,.1f} MB, loads in {load:,.1f} ms, "
            f"forwards {forward:,.1f} ms, and backwards {both:,.1f} ms",
            flush=True,
        )
    save("layouts", arguments, bench.facts, rows)


COMMANDS: dict[str, Callable[[argparse.Namespace], None]] = {"cost": cost, "layouts": layouts}


def main() -> None:
    """Run one measurement from the command line."""
    run_command(options("Measure what handing batches over to a framework costs."), COMMANDS)


if __name__ == "__main__":
    main()
