"""How an engine starts: how much of it is steered, on which runner and backend, its graphs, seconds and KV cache beside stock's.

The stock engine has the same drafter and a fixed K, as somebody has it today.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from nightjar.deployments.engine import graph_memory
from nightjar.deployments.engine.environment import ENGINE_FOLDER_VARIABLE
from nightjar.deployments.proof.driven_engine import GenerationRequest
from nightjar.deployments.proof.kit.chosen import Chosen
from nightjar.deployments.proof.kit.engines import EngineSpec, engine_arguments
from nightjar.deployments.proof.kit.phases.asked import prompt
from nightjar.deployments.proof.kit.tasks import Found, Outcomes, Phase, Table, Task, Verdict, errors, of_phase
from nightjar.deployments.proof.stepped_engine import SteppedEngine
from nightjar.deployments.steering_level import level_at_start, level_now
from nightjar.policy.wire.report import SteeringLevel
from nightjar.policy.wire.settings import EngineCommand

NAME: Final = "start-up"


def tasks(chosen: Chosen) -> list[Task]:
    """Each drafter, stock and steered."""
    specs = [EngineSpec(drafter, room="roomy", stock=stock) for drafter in chosen.drafters for stock in (True, False)]
    return [Task(NAME, spec.name, spec) for spec in specs]


def perform(task: Task, chosen: Chosen) -> dict[str, Any]:
    """Start it, and let it answer once."""
    assert task.engine is not None
    with tempfile.TemporaryDirectory() as folder:
        os.environ[ENGINE_FOLDER_VARIABLE] = folder  # where the worker notes what its graphs took
        began_s = time.monotonic()
        arguments = engine_arguments(task.engine, chosen)
        engine = SteppedEngine(arguments.kwargs)
        seconds = time.monotonic() - began_s
        captured = graph_memory.in_words(graph_memory.captures(Path(folder)))
    options = {"temperature": 0.0, "max_tokens": 16, "ignore_eos": True}
    answers = engine.run([GenerationRequest("first", prompt(0), options)])
    steered = level_at_start(arguments)
    if not task.engine.stock and steered.level is not SteeringLevel.PLAINLY:
        steered = level_now(steered, arguments.drafter_kind, engine.exchange(EngineCommand()))
    cache = engine.vllm_config.cache_config
    result = {
        "steering": "" if task.engine.stock else steered.level.value,
        "reason": "" if task.engine.stock else steered.reason,
        "notice": arguments.notice,
        "seconds": seconds,
        "runner": 2 if getattr(engine.vllm_config, "use_v2_model_runner", False) else 1,
        "asynchronous": bool(engine.vllm_config.scheduler_config.async_scheduling),
        "backend": _backend(engine.runner),
        "graph_mode": "none"
        if engine.vllm_config.model_config.enforce_eager
        else engine.vllm_config.compilation_config.cudagraph_mode.name,
        "graph_sizes": len(engine.vllm_config.compilation_config.cudagraph_capture_sizes or ()),
        "tiers": list(arguments.graph_tiers),
        "captured": captured,
        "kv_tokens": int(cache.num_gpu_blocks or 0) * int(cache.block_size),
        "tokens": len(answers["first"]["token_ids"]),
    }
    engine.shutdown()
    return result


def judge(outcomes: Outcomes, chosen: Chosen) -> Found:
    """Whether each drafter's engine is steered, as far as its kind allows."""
    wrong = errors(NAME, outcomes)
    seen = of_phase(NAME, outcomes)
    table = Table(("engine", "steered", "runner", "scheduling", "attention", "graphs", "sizes", "ready after", "KV tokens"), [])
    sentences = []
    for task in tasks(chosen):
        if (outcome := seen.get(task.name)) is None:
            continue
        table.rows.append(
            [
                task.name,
                outcome["steering"] or "stock",
                f"V{outcome['runner']}",
                "async" if outcome["asynchronous"] else "sync",
                outcome["backend"],
                outcome["graph_mode"].lower(),
                str(outcome["graph_sizes"]),
                f"{outcome['seconds']:.0f} s",
                f"{outcome['kv_tokens']:,}",
            ]
        )
        if outcome["tokens"] != 16:
            wrong.append(f"{task.name}: answered {outcome['tokens']} tokens of 16")
        if outcome["steering"] == SteeringLevel.PLAINLY.value:
            wrong.append(f"{task.name}: not steered: {outcome['reason']}")
        elif outcome["reason"]:
            sentences.append(f"{task.name} is steered {outcome['steering'].replace('_', ' ')}: {outcome['reason']}.")
        sentences += [f"{task.name}: {words}." for words in (outcome["notice"], outcome["captured"]) if words]
    if chosen.on_rig:
        sentences.append("Seconds and KV tokens of the rig say nothing about a GPU; it captures no graphs.")
    return Found(Verdict.FAILED if wrong else Verdict.PROVED, wrong + (sentences or ["Both start steered."]), [table])


def _backend(runner: Any) -> str:
    """Of the attention, of either runner; what vLLM calls it."""
    try:
        return str(runner.attn_groups[0][0].backend.get_name())
    except (AttributeError, IndexError, TypeError):
        return "unknown"


START_UP: Final = Phase(NAME, "Start-up", tasks, perform, judge)
