"""Two ranks of a dense target behind one front end, on a CPU: as plain vLLM serves them, and steered by the real policy.

`python -m tests.engine.data_parallel_process ROLE OUTPUT`, with ROLE `plain` or `steered`, starts a replica's server and writes
what happened as JSON. An agent for each rank reports to a policy service of this process, as a replica's do to the actor.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Final

from nightjar.cluster.service.policy_service import PolicyService
from nightjar.deployments.agent import Policy, ReplicaAgent, ReplicaIdentity
from nightjar.deployments.engine.start.hooks import missing_hooks
from nightjar.deployments.engine.start.launch import EngineRequest
from nightjar.deployments.engine.start.openai_server import OpenAIServer, start_openai_server
from nightjar.deployments.engine_control import SteeredEngine
from nightjar.deployments.engine_watch import EngineWatch
from nightjar.deployments.llm_config import SteeringOptions
from nightjar.deployments.proof.model_names import DRAFT, TARGET
from nightjar.deployments.proof.tiny_models import build_tiny_models
from nightjar.policy.wire.report import Layer, LoadReport
from nightjar.policy.wire.settings import EngineCommand, ExchangeReply
from nightjar.policy.wire.status import ReplicaStatus, shown_name
from tests.cluster.protocol import running_service
from tests.fleet.hosted_engine import UnseenMetrics

RANKS: Final = 2
MAX_NUM_SPECULATIVE_TOKENS: Final = 4
REPLICA: Final = "chat#LLM#x1y2"
TOKENS: Final = 32
PROMPTS: Final = tuple([256, first, 20, 30] for first in (10, 40, 90))
ROUNDS: Final = (("pin=1", "pin=3"), ("off", "pin=2"))
"""The mode of each rank, and then another."""
PATIENCE_S: Final = 120.0
LOOK_PERIOD_S: Final = 0.05


class Questions:
    """What a worker is asked here; vLLM adds it to the worker's class."""

    vllm_config: Any

    def table(self) -> Any:
        """The table of lengths that this worker would capture graphs for."""
        return self.vllm_config.speculative_config.num_speculative_tokens_per_batch_size


class InProcess(Policy):
    """The policy without an actor between."""

    def __init__(self, service: PolicyService) -> None:
        self._service = service
        self.reports: dict[str, int] = {}

    async def exchange(self, report: LoadReport, timeout_s: float) -> ExchangeReply:
        """See agent.Policy."""
        self.reports[report.replica_id] = self.reports.get(report.replica_id, 0) + 1
        async with asyncio.timeout(timeout_s):
            return await self._service.exchange(report.to_wire())


async def started(models: Path, *without: Layer) -> OpenAIServer:
    """The server of a replica whose engine has ranks."""
    kwargs = {
        "model": str(models / TARGET),
        "dtype": "float32",
        "max_num_seqs": 4,
        "max_model_len": 512,
        "enforce_eager": True,
        "kv_cache_memory_bytes": 64 << 20,
        "data_parallel_size": RANKS,
        "worker_extension_cls": "tests.engine.data_parallel_process.Questions",
        "speculative_config": {
            "method": "draft_model",
            "model": str(models / DRAFT),
            "num_speculative_tokens": MAX_NUM_SPECULATIVE_TOKENS,
        },
    }
    request = EngineRequest(
        served_model_name="chat",
        target_name="tiny",
        draft_name="tiny-draft",
        engine_kwargs=kwargs,
        models_are_local=True,
        local_rank=0,
        cores_per_engine=1,
        options=SteeringOptions(without=without),
    )

    async def starts_in_auto() -> bool:
        return False

    return await start_openai_server(request, wants_shadow=starts_in_auto, missing_hooks=missing_hooks())


async def texts(server: OpenAIServer, rank: int) -> list[list[int]]:
    """What the rank generates, greedily, of all prompts at once."""
    from vllm import SamplingParams

    async def one(number: int, prompt: list[int]) -> list[int]:
        wanted = SamplingParams(temperature=0.0, max_tokens=TOKENS, ignore_eos=True)
        tokens: list[int] = []
        answers = server.engine.generate({"prompt_token_ids": prompt}, wanted, f"{rank}-{number}", data_parallel_rank=rank)
        async for answer in answers:
            tokens = list(answer.outputs[0].token_ids)
        return tokens

    return await asyncio.gather(*(one(number, prompt) for number, prompt in enumerate(PROMPTS)))


async def plain(models: Path) -> dict[str, Any]:
    """What vLLM answers, and what was said of it."""
    server = await started(models, Layer.STEERING)
    outcome = {"ranks": list(server.ranks), "why": server.arguments.serving_plainly, "texts": await texts(server, 0)}
    server.shutdown(5.0)
    return outcome


async def steered(models: Path) -> dict[str, Any]:
    """Each rank under a mode of its own, then the end of one rank's core."""
    server = await started(models)
    outcome: dict[str, Any] = {"ranks": list(server.ranks), "why": server.arguments.serving_plainly, "rounds": []}
    outcome["client"] = type(server.engine.engine_core).__name__
    outcome["tables"] = [await _asked(server, rank, "collective_rpc", "table") for rank in range(RANKS)]
    async with running_service() as service, _agents(server, service) as policy:
        names = [f"{REPLICA}-dp{rank}" for rank in range(RANKS)]
        await _until(lambda: set(policy.reports) == set(names))
        for modes in ROUNDS:
            for name, mode in zip(names, modes, strict=True):
                await service.set_mode({"scope": "replica", "name": name, "mode": mode})
            await _in_force(service, modes)
            before = {one.replica_id: _steps(one) for one in _confirmed(service)}
            answers = [await texts(server, rank) for rank in range(RANKS)]
            await _reported(policy)
            ran = [_difference(before[one.replica_id], _steps(one)) for one in service.status().replicas]
            outcome["rounds"].append({"modes": modes, "texts": answers, "steps_by_k": ran})
        replicas = service.status().replicas
        outcome["names"] = [shown_name(one.application, one.replica_id) for one in replicas]
        outcome["groups"] = sorted({one.group_id for one in replicas})
        outcome["engine_ids"] = sorted({one.engine_id for one in replicas})
        outcome["levels"] = [one.steering.value for one in replicas]
        outcome["faults"] = [one.warning for one in replicas]
    outcome["end"] = await _end_of_a_rank(server)
    return outcome


@contextlib.asynccontextmanager
async def _agents(server: OpenAIServer, service: PolicyService) -> AsyncIterator[InProcess]:
    policy = InProcess(service)
    agents = [
        ReplicaAgent(
            engine=SteeredEngine(server, rank),
            policy=policy,
            identity=ReplicaIdentity(REPLICA, "chat", "LLM", "node", server.group, rank=rank),
            watch=EngineWatch(),
            metrics=UnseenMetrics(),
        )
        for rank in server.ranks
    ]
    tasks = [asyncio.create_task(agent.run()) for agent in agents]
    try:
        yield policy
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _asked(server: OpenAIServer, rank: int, method: str, *arguments: object) -> Any:
    core: Any = server.engine.engine_core
    return await core._call_utility_async(method, *arguments, engine=core.core_engines[rank])


async def _end_of_a_rank(server: OpenAIServer) -> dict[str, Any]:
    """Kill the core of rank 1, and ask rank 0."""
    core: Any = server.engine.engine_core
    os.kill(core.resources.engine_manager.processes[1].pid, signal.SIGKILL)
    await _until(lambda: server.engine.errored)
    try:
        await SteeredEngine(server, 0).exchange(EngineCommand())
        said = "an answer"
    except Exception as error:  # noqa: BLE001 - its name is what is looked at
        said = type(error).__name__
    server.shutdown(5.0)
    return {"errored": True, "rank 0": said}


def _confirmed(service: PolicyService) -> list[ReplicaStatus]:
    """Of all ranks, once each runs what the policy decided last; else none."""
    replicas = service.status().replicas
    return list(replicas) if all(one.settings_confirmed for one in replicas) else []


async def _in_force(service: PolicyService, modes: tuple[str, ...]) -> None:
    """Until each rank runs its mode."""
    await _until(lambda: [str(one.mode) for one in _confirmed(service)] == list(modes))


def _steps(replica: ReplicaStatus) -> dict[int, int]:
    return {totals.num_speculative_tokens: totals.steps for totals in replica.totals if totals.steps}


def _difference(before: dict[int, int], after: dict[int, int]) -> dict[int, int]:
    return {k: more for k, steps in after.items() if (more := steps - before.get(k, 0))}


async def _reported(policy: InProcess) -> None:
    """Until each rank has told of all that it did up to now."""
    heard = dict(policy.reports)
    await _until(lambda: all(policy.reports[name] >= count + 2 for name, count in heard.items()))


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110 - of another process
            await asyncio.sleep(LOOK_PERIOD_S)


if __name__ == "__main__":
    role, output = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        models_folder = build_tiny_models(Path(folder) / "tiny")
        happened = asyncio.run({"plain": plain, "steered": steered}[role](models_folder))
    Path(output).write_text(json.dumps(happened))
