"""Runs one engine through all scenarios and writes what happened as JSON.

`python -m tests.gpu_paths.engines.engine_process COMBINATION MODELS OUTPUT`, in the rig's environment. A process of its own,
because an engine leaves global state behind and the rig must be in place before vLLM is imported. A scenario that raises is noted,
and the next ones run; an engine that does not start ends the process with vLLM's error.
"""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from nightjar.deployments.proof.driven_engine import DrivenEngine
from nightjar.deployments.proof.lending import crowd, lend_and_take_back
from nightjar.deployments.proof.model_names import ADAPTER
from nightjar.deployments.proof.outcome import end_with
from nightjar.deployments.proof.scenarios import MAX_NUM_SPECULATIVE_TOKENS, REFERENCE_LOGPROBS, abort, run_scenario, scenarios
from nightjar.deployments.proof.stepped_engine import SteppedEngine
from nightjar.deployments.proof.tiny_models import build_tiny_models
from nightjar.policy.wire.settings import EngineCommand
from tests.gpu_paths.engines.combinations import PLAIN, REFERENCE, Combination, engine_arguments
from tests.gpu_paths.engines.spread_engine import RayEngine, SpreadEngine

LENDING_SCENARIO: Final = "a draft that lends its memory"


def run(combination: Combination, models: Path) -> dict[str, Any]:
    """All scenarios on one engine, as plain data."""
    build_tiny_models(models)
    arguments = engine_arguments(combination, models)
    steered = combination.drafter != PLAIN
    result: dict[str, Any] = {"serving_plainly": arguments.serving_plainly, "scenarios": {}}
    if steered and arguments.serving_plainly:
        return result
    engine = _start(combination, arguments.kwargs, steered=steered)
    result["vllm_version"] = importlib.import_module("vllm").__version__
    result["async_scheduling"] = bool(engine.vllm_config.scheduler_config.async_scheduling)
    result["runner_is_v2"] = bool(engine.vllm_config.use_v2_model_runner)
    if combination.lends or combination == REFERENCE:
        assert isinstance(engine, SteppedEngine)
        result["scenarios"][LENDING_SCENARIO] = _lending(engine, steered=steered)
    asked = scenarios(models / ADAPTER, of_all_kinds=combination.answers_all_kinds)
    for scenario in () if combination.lends else asked:
        part: dict[str, Any] = {"greedy": [request.request_id for request in scenario.requests if request.is_greedy]}
        try:
            ran = run_scenario(engine, scenario, steered=steered)
        except Exception:  # noqa: BLE001 - it is told, and the other scenarios run
            part["error"] = traceback.format_exc()[-4000:]
        else:
            part |= {"answers": ran.answers, "missed": scenario.missed(ran)}
            part["ranks"] = [[asdict(step) for step in steps] for steps in ran.ranks]
        result["scenarios"][scenario.name] = part
    if steered:
        result["aborted"] = abort(engine)
        result["fault"] = engine.exchange(EngineCommand()).fault
    engine.shutdown()
    return result


def _lending(engine: SteppedEngine, *, steered: bool) -> dict[str, Any]:
    if steered:
        return lend_and_take_back(engine, MAX_NUM_SPECULATIVE_TOKENS)
    return {"answers": engine.run(crowd(), logprobs=REFERENCE_LOGPROBS), "missed": "", "greedy": [], "ranks": [[]]}


def _start(combination: Combination, arguments: dict[str, Any], *, steered: bool) -> DrivenEngine:
    if combination.executor:
        return RayEngine(arguments)
    if not combination.in_one_process:
        return SpreadEngine(arguments)
    engine = SteppedEngine(arguments)
    if steered:
        engine.record_steps()
    return engine


def main(arguments: Sequence[str]) -> None:
    """See the module."""
    name, models, output = arguments
    end_with(run(Combination.named(name), Path(models)), Path(output))


if __name__ == "__main__":
    main(sys.argv[1:])
