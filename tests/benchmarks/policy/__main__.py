"""`python -m tests.benchmarks.policy`, with the options of `nightjar simulate`."""

from __future__ import annotations

from nightjar.loadtests.simulation.command import app
from tests.benchmarks.policy.suite import SUITE

if __name__ == "__main__":
    app(obj=SUITE)
