"""Imports vLLM once, before any test, and runs the engine processes that several test modules look at.

Each role runs once a session, also where pytest has several workers: the first that needs it runs it, the others wait for its file.
"""

import importlib.util
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

if importlib.util.find_spec("vllm"):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what its dependencies deprecate at import is not ours to mend
        importlib.import_module("nightjar.deployments.engine.scheduler")
        importlib.import_module("nightjar.deployments.engine.cpu_worker")


Outcome = dict[str, Any]
RunRole = Callable[..., Outcome]


@pytest.fixture(scope="session")
def run_role(tmp_path_factory: pytest.TempPathFactory) -> RunRole:
    """Runs a role of engine_process.py with these variables, or reads what it wrote where another worker ran it."""
    own = tmp_path_factory.getbasetemp()
    shared = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own

    def run(role: str, **variables: str) -> Outcome:
        output = shared / f"{role}.json"
        with FileLock(f"{output}.lock"):
            if not output.exists():
                run_engine_process(role, output, **variables)
        outcome: Outcome = json.loads(output.read_text())
        return outcome

    return run


@pytest.fixture(scope="session")
def reference(run_role: RunRole) -> Outcome:
    """What plain vLLM answers."""
    return run_role("reference", VLLM_CPU_KVCACHE_SPACE="1")


@pytest.fixture(scope="session")
def steered(run_role: RunRole) -> Outcome:
    """What happened in the steered engine's scenarios."""
    return run_role("steered", VLLM_CPU_KVCACHE_SPACE="1")


@pytest.fixture(scope="session")
def lending(run_role: RunRole) -> Outcome:
    """What happened in the scenarios of an engine whose draft sleeps and lends its memory (which sizes its own KV cache)."""
    return run_role("lending")


@pytest.fixture(scope="session")
def tensor_parallel(run_role: RunRole) -> Outcome:
    """What plain vLLM answers on two ranks, and what happened in the scenarios there."""
    return run_role("tensor_parallel")


@pytest.fixture(scope="session")
def length_limit_reference(run_role: RunRole) -> Outcome:
    """What plain vLLM answers to requests that only the limit ends."""
    return run_role("length_limit_reference")


@pytest.fixture(scope="session")
def length_limit(run_role: RunRole) -> Outcome:
    """What happened to requests that only the limit ends."""
    return run_role("length_limit")


@pytest.fixture(scope="session")
def probe(run_role: RunRole) -> Outcome:
    """What happened to a drafter whose restarts fail in silence."""
    return run_role("probe")


def run_engine_process(role: str, output: Path, **variables: str) -> None:
    """Run engine_process.py with what an engine on CPU needs in its environment; what it printed is shown where it fails."""
    environment = os.environ | {
        "LD_PRELOAD": str(Path(sys.prefix) / "lib" / "libiomp5.so"),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_NO_USAGE_STATS": "1",
        **variables,
    }
    command = [sys.executable, "-m", "tests.engine.engine_process", role, str(output)]
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1800, check=False)
    assert finished.returncode == 0, finished.stdout[-3000:] + finished.stderr[-6000:]
