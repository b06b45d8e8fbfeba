"""How fast do batches reach a GPU, and how much of the time does it train?

1. Generate two inputs, unless the work folder has them: one to time loaders on, one of 20,000 genes and 100 cell types
   to train on. Each contender makes its environment and its store (`harness.stores.prepare`).
2. Time what the machine can do at best (`harness.contenders.limits`).
3. For each size of windows, time all contenders in interleaved rounds; every batch is summed up on the GPU.
4. Time batches on the CPU with all cores, at the first of these sizes.
5. Train two models on the batches (`harness.training`), at the largest size, and see for which share of the time no
   step runs.
6. After each round, write what there is so far, so that a run that is cut off leaves its results.

Without a CUDA device it says so and ends with exit code 2. ``--device cpu`` then tries its ways as far as they go on
the CPU; what it measures there means nothing, and goes to the work folder.

Usage: ``python benchmarks/bench_gpu.py [--cells 200000] [--settings 512x32,512x64,512x128] [--tests] …``
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from harness import BENCHMARKS
from harness.command_line import options, prepared
from harness.contenders.registry import CONTENDERS, CPU_CONTENDERS, GPU_CONTENDERS, GPU_LIMITS, PEER, PEER_GPU
from harness.environments import Unavailable
from harness.plots import plot_speeds
from harness.results import print_table, save
from harness.rounds import measure
from harness.settings import ON_CPU, Setting
from harness.stores import Bench, jobs_of, prepare_each

TRAINED = ("gpu-cpu-csr", "gpu-gpu-csr", "gpu-gpu-dense", "gpu-peer-torch")
"""Contenders that models are trained from; where batches are CSR, making them dense is no part of the step."""
Keep = Callable[[list[dict[str, Any]]], None]
"""What is given rows that may not be complete."""
GENES, TYPES, NNZ = 20_000, 100, 1_500
"""Columns, cell types and stored elements a cell of the input to train on."""


def describe_gpu() -> tuple[str, dict[str, str]]:
    """Give the GPU's name, and the versions of what drives it.

    Raises
    ------
    Unavailable
        If there is none that CuPy can use.
    """
    try:
        import cupy

        cupy.cuda.Device().use()
        name = cupy.cuda.runtime.getDeviceProperties(0)["name"].decode()
        found = {"cupy": cupy.__version__, "driver's CUDA": _dotted(cupy.cuda.runtime.driverGetVersion())}
    except ImportError as error:
        raise Unavailable(f"CuPy could not be imported ({error}): make bench-gpu installs it") from error
    except cupy.cuda.runtime.CUDARuntimeError as error:
        raise Unavailable(str(error)) from error
    for package in ("torch", "nvidia-libnvcomp-cu12", "nvidia-libnvcomp-cu13"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return name, found


def _dotted(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


def settings_of(names: str, device: str) -> list[Setting]:
    """Give settings as ``512x32`` names them: rows of a block, blocks of a window."""
    found = []
    for name in names.split(","):
        chunk_size, preload_nchunks = map(int, name.split("x"))
        found.append(Setting(name, chunk_size=chunk_size, preload_nchunks=preload_nchunks, device=device))
    return found


def with_one_peer(bench: Bench) -> Bench:
    """Let the peer's environment for GPUs read on the CPU, too, unless it has one for that."""
    try:
        return replace(bench, pythons={PEER.name: bench.python(PEER_GPU)} | bench.pythons)
    except Unavailable as error:
        print(f"  {PEER_GPU.name}: {error}", flush=True)
        return bench


def measured(
    arguments: argparse.Namespace, bench: Bench, names: tuple[str, ...], settings: list[Setting], keep: Keep
) -> Iterator[list[dict[str, Any]]]:
    """Time the limits, the contenders at each setting, batches on the CPU, and training; give the rows of each."""
    prepare_each(bench, [*GPU_LIMITS, *CPU_CONTENDERS, *names])
    print("limits", flush=True)
    yield measure(bench, jobs_of(bench, GPU_LIMITS, settings[0]), warm_ups=2, keep=keep)
    for setting in settings:
        print(f"setting {setting.name}", flush=True)
        yield measure(bench, jobs_of(bench, names, setting), warm_ups=2, keep=keep)
    on_cpu = replace(settings[0], name=f"{settings[0].name}{ON_CPU}", device="cpu")
    print(f"setting {on_cpu.name}", flush=True)
    yield measure(bench, jobs_of(bench, CPU_CONTENDERS, on_cpu), warm_ups=2, keep=keep)
    if not arguments.train:
        return
    cells = arguments.train_cells or max(1, arguments.cells // 2)
    genes = min(GENES, arguments.genes)
    changes = {"cells": cells, "genes": genes, "nnz": min(NNZ, genes // 4), "types": TYPES}
    training = prepared(arguments, **changes)
    facts = {key: training.facts[key] for key in ("n_obs", "n_vars", "nnz")}
    setting = max(settings, key=lambda one: one.window)
    chosen = [name for name in TRAINED if name in names]
    prepare_each(training, chosen)
    for model in arguments.train.split(","):
        print(f"training {model}, setting {setting.name}", flush=True)

        def named(rows: list[dict[str, Any]], model: str = model) -> list[dict[str, Any]]:
            return [row | {"setting": f"{model}, {row['setting']}", "model": model} | facts for row in rows]

        jobs = jobs_of(training, chosen, setting, train=model)
        yield named(measure(training, jobs, warm_ups=2, keep=lambda rows, named=named: keep(named(rows))))


def main() -> None:
    """Run the benchmark from the command line."""
    parser = options("Time this project's loader and its closest peer on a GPU, and train from them.")
    parser.add_argument("--device", default="cuda", help="CUDA device; 'cpu' only tries what can be tried there")
    parser.add_argument("--settings", default="512x32,512x64,512x128", help="rows of a block x blocks of a window")
    parser.add_argument("--contenders", default=",".join(GPU_CONTENDERS), help=f"of {', '.join(GPU_CONTENDERS)}")
    parser.add_argument("--train", default="regression,vae", help="models to train; empty for none")
    parser.add_argument("--train-cells", type=int, default=0, help="cells to train on; 0 is half of --cells")
    parser.add_argument("--tests", action="store_true", help="run the tests that need a GPU first; stop if one fails")
    parser.set_defaults(seconds=5.0)
    arguments = parser.parse_args()
    names = tuple(arguments.contenders.split(","))
    if unknown := [name for name in names if name not in GPU_CONTENDERS]:
        parser.error(f"unknown: {', '.join(unknown)}; there are {', '.join(GPU_CONTENDERS)}")
    software: dict[str, str] = {}
    if arguments.device == "cpu":
        arguments.results = arguments.work / "without-gpu"
        print(f"without a GPU: nothing that is measured means anything; results go to {arguments.results}", flush=True)
    else:
        try:
            gpu, software = describe_gpu()
        except Unavailable as error:
            parser.exit(2, f"bench_gpu.py needs a CUDA device that is usable here, got: {error}\n")
        arguments.machine = f"{gpu}, {arguments.machine}"
    if arguments.tests:
        command = [sys.executable, "-m", "pytest", "-m", "gpu", str(BENCHMARKS.parent / "tests")]
        if status := subprocess.run(command, cwd=BENCHMARKS.parent, check=False).returncode:
            parser.exit(status, "bench_gpu.py stops: the tests that need a GPU failed\n")
    bench = with_one_peer(prepared(arguments))
    rows: list[dict[str, Any]] = []
    settings = settings_of(arguments.settings, arguments.device)

    def keep(more: list[dict[str, Any]]) -> None:
        save("gpu", arguments, bench.facts, rows + more, software)

    for more in measured(arguments, bench, names, settings, keep):
        rows += more
        path = save("gpu", arguments, bench.facts, rows, software)
        if any(map(is_speed, rows)):
            plot_speeds(path, is_speed)
    print_table(rows, reference=CONTENDERS["gpu-peer-torch"].title)
    for row in rows:
        if "idle_share" in row:
            shares = ", ".join(f"{share:.1%}" for share in row["idle_share"])
            print(f"{row['setting']}, {row['contender']}: no step runs for {shares} of the time")


def is_speed(row: dict[str, Any]) -> bool:
    """Say whether a row is about a loader alone."""
    return not row["contender"].startswith("limit") and "model" not in row


if __name__ == "__main__":
    main()
