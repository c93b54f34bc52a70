"""Imports vLLM once, before any test, and runs the engine processes that several test modules look at.

Each role runs once a session, also where pytest has several workers: the first that needs it runs it, the others wait for its file.
"""

import importlib.util
import os
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Final

import pytest

from tests.engine_run import ON_A_CPU, ran_once

if importlib.util.find_spec("vllm"):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what its dependencies deprecate at import is not ours to mend
        importlib.import_module("nightjar.deployments.engine.scheduler.steered")
        importlib.import_module("nightjar.deployments.engine.worker.cpu")


TIMEOUT_S: Final = 1800
Outcome = dict[str, Any]
RunRole = Callable[..., Outcome]


@pytest.fixture(scope="session")
def run_role(tmp_path_factory: pytest.TempPathFactory) -> RunRole:
    """Runs a role of engine_process.py with these variables, or reads what it wrote where another worker ran it."""
    own = tmp_path_factory.getbasetemp()
    shared = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own

    def run(role: str, **variables: str) -> Outcome:
        def environment() -> Mapping[str, str]:
            return os.environ | ON_A_CPU | variables

        return ran_once(["tests.engine.engine_process", role], shared / f"{role}.json", environment, TIMEOUT_S)

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
