"""How is a benchmark run, so that its figures can be compared and believed?"""

from pathlib import Path

BENCHMARKS = Path(__file__).resolve().parents[1]
"""The folder of the commands, which is where `harness` is imported from."""
