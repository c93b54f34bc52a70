"""The Serve applications of the benchmark: our replicas, the stock rivals, and the policy's API.

Every replica is an application of its own, pinned to a core of its own: so each gets exactly the rows that a section asks for,
which Serve's router, spreading by chance, would not give it, and each can be started anew alone. A group is made by what engines
are and not by applications: the policy sees two replicas of one group.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Final

from nightjar.loadtests.arms.stock_table import TableRows
from tests.benchmarks.engine.environment import has_bfloat16, has_matrix_units
from tests.benchmarks.engine.fixture import (
    DTYPE,
    MAX_MODEL_LEN,
    MAX_NUM_BATCHED_TOKENS,
    MAX_NUM_SEQS,
    MAX_NUM_SPECULATIVE_TOKENS,
)
from tests.benchmarks.live.chat_client import MODEL_ID

OURS: Final = ("first", "second")
STOCK: Final = ("stock-first", "stock-second")
POLICY: Final = "nightjar"
POLICY_SETTINGS: Final[dict[str, Any]] = {"mode": "auto", "planner": "fleet"}
KV_CACHE_BYTES: Final = (1280 if has_matrix_units() else 576 if has_bfloat16() else 480) << 20
"""What the fullest load holds at most, so that nobody waits, and no more: four engines must fit into 24 GiB. With
float32 weights and no more than this they take 22 of them."""
BLOCK_SIZE: Final = 32
"""Small, for short answers."""
STOCK_SCHEDULER: Final = "vllm.v1.core.sched.scheduler.Scheduler"
"""vLLM's own. An engine whose arguments name a scheduler themselves is served plainly, by these arguments alone."""


def cores() -> tuple[int, ...]:
    """A core for each replica. Raises RuntimeError where there are too few."""
    allowed = sorted(os.sched_getaffinity(0))
    if len(allowed) < len(OURS):
        raise RuntimeError(f"{len(allowed)} core: two replicas need a core each")
    return tuple(allowed[: len(OURS)])


def our_replica(name: str, core: int, models: Mapping[str, str], starts: int) -> dict[str, Any]:
    """A replica of ours as a Serve file would list it. Another number of `starts` makes Serve start it anew."""
    return _replica(name, core, models, {}, {}, {"NIGHTJAR_BENCH_STARTS": str(starts)})


def stock_replica(name: str, core: int, models: Mapping[str, str], table: TableRows) -> dict[str, Any]:
    """A rival: vLLM as it is, with the table that it takes itself. At K = 0 its drafter runs on."""
    rows = [list(row) for row in table]
    return _replica(name, core, models, {"scheduler_cls": STOCK_SCHEDULER}, {"num_speculative_tokens_per_batch_size": rows}, {})


def policy_application() -> dict[str, Any]:
    """The policy's HTTP API, and what an operator has set."""
    return {
        "name": POLICY,
        "route_prefix": f"/{POLICY}",
        "import_path": "nightjar.cluster.policy_app:build",
        "deployments": [{"name": "Policy", "user_config": POLICY_SETTINGS}],
    }


def _replica(
    name: str,
    core: int,
    models: Mapping[str, str],
    engine_kwargs: Mapping[str, Any],
    speculative: Mapping[str, Any],
    environment: Mapping[str, str],
) -> dict[str, Any]:
    model = {
        "model_loading_config": {"model_id": MODEL_ID, "model_source": models["target"]},
        "engine_kwargs": {
            "dtype": DTYPE,
            "enforce_eager": True,
            "enable_prefix_caching": False,
            "max_model_len": MAX_MODEL_LEN,
            "max_num_seqs": MAX_NUM_SEQS,
            "max_num_batched_tokens": MAX_NUM_BATCHED_TOKENS,
            "kv_cache_memory_bytes": KV_CACHE_BYTES,
            "block_size": BLOCK_SIZE,
            "speculative_config": {
                "method": "draft_model",
                "model": models["draft"],
                "num_speculative_tokens": MAX_NUM_SPECULATIVE_TOKENS,
                **speculative,
            },
            **engine_kwargs,
        },
        "runtime_env": {"env_vars": {"VLLM_CPU_OMP_THREADS_BIND": str(core), **environment}},
        "deployment_config": {"num_replicas": 1},
    }
    return {
        "name": name,
        "route_prefix": f"/{name}",
        "import_path": "nightjar.deployments.app:build",
        "args": {"llm_configs": [model]},
    }
