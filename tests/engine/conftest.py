"""Imports vLLM once, before any test, and runs the engine processes that several test modules look at."""

import importlib.util
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

if importlib.util.find_spec("vllm"):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what its dependencies deprecate at import is not ours to mend
        importlib.import_module("nightjar.deployments.engine.scheduler")
        importlib.import_module("nightjar.deployments.engine.worker")


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What plain vLLM answers."""
    return run_engine_process("reference", tmp_path_factory.mktemp("reference"), VLLM_CPU_KVCACHE_SPACE="1")


@pytest.fixture(scope="session")
def steered(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What happened in the steered engine's scenarios."""
    return run_engine_process("steered", tmp_path_factory.mktemp("steered"), VLLM_CPU_KVCACHE_SPACE="1")


@pytest.fixture(scope="session")
def lending(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What happened in the scenarios of an engine whose draft sleeps and lends its memory (which sizes its own KV cache)."""
    return run_engine_process("lending", tmp_path_factory.mktemp("lending"))


@pytest.fixture(scope="session")
def tensor_parallel(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What plain vLLM answers on two ranks, and what happened in the scenarios there."""
    return run_engine_process("tensor_parallel", tmp_path_factory.mktemp("tensor_parallel"))


@pytest.fixture(scope="session")
def length_limit_reference(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What plain vLLM answers to requests that only the limit ends."""
    return run_engine_process("length_limit_reference", tmp_path_factory.mktemp("length_limit_reference"))


@pytest.fixture(scope="session")
def length_limit(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What happened to requests that only the limit ends."""
    return run_engine_process("length_limit", tmp_path_factory.mktemp("length_limit"))


@pytest.fixture(scope="session")
def probe(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What happened to a drafter whose restarts fail in silence."""
    return run_engine_process("probe", tmp_path_factory.mktemp("probe"))


def run_engine_process(role: str, folder: Path, **variables: str) -> dict[str, Any]:
    """Run engine_process.py with what an engine on CPU needs in its environment; its output is shown where it fails."""
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
    output = folder / "outcome.json"
    command = [sys.executable, "-m", "tests.engine.engine_process", role, str(output)]
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert finished.returncode == 0, finished.stdout[-3000:] + finished.stderr[-6000:]
    outcome: dict[str, Any] = json.loads(output.read_text())
    return outcome
