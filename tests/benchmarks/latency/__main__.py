"""`python -m tests.benchmarks.latency`, with the options of `nightjar simulate`."""

from __future__ import annotations

from nightjar.loadtests.simulation.command import app
from tests.benchmarks.latency.suite import SUITE

if __name__ == "__main__":
    app(obj=SUITE)
