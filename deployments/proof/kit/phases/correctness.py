"""Texts against plain decoding's, with K changing in every step, everything that a change of K could break among the requests.

The scenarios are those of `make test-gpu-paths`. Plain decoding is vLLM without speculation, on its default runner. In half
precision two tokens that are nearly as likely may change places with the shape of a batch, with plain vLLM as well: such an answer
is compared up to there, and counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from nightjar.deployments.proof.kit.chosen import Chosen
from nightjar.deployments.proof.kit.engines import AtZero, EngineSpec, engine_arguments, why_head_runs
from nightjar.deployments.proof.kit.phases import asked
from nightjar.deployments.proof.kit.tasks import Found, Outcomes, Phase, Table, Task, Verdict, errors, of_phase
from nightjar.deployments.proof.scenarios import REFERENCE_LOGPROBS, abort, run_scenario, scenarios
from nightjar.deployments.proof.stepped_engine import SteppedEngine
from nightjar.deployments.proof.verdict import judge as judge_engine
from nightjar.loadtests.arms.texts import NEAR_TIE, ROUNDED_NEAR_TIE
from nightjar.policy.wire.settings import EngineCommand

NAME: Final = "correctness"
REFERENCE: Final = "plain"
ROOMY_REFERENCE: Final = "plain-roomy"
"""Its plain answers are to what other phases ask, whose requests are longer than the scenarios' engine allows."""


def roomy_reference() -> Task:
    """Plain decoding for the other phases."""
    return Task(NAME, ROOMY_REFERENCE, EngineSpec(stock=True, scheduling="sync", room="roomy"))


def plain_answers(outcomes: Outcomes) -> Mapping[str, Any] | None:
    """To what the other phases ask, by what they ask; None where plain decoding did not run."""
    outcome = of_phase(NAME, outcomes).get(ROOMY_REFERENCE)
    return None if outcome is None else outcome["other"]


def near_tie(chosen: Chosen) -> float:
    """How far apart in logprobs two tokens may be that change places."""
    return NEAR_TIE if chosen.on_rig else ROUNDED_NEAR_TIE


def tasks(chosen: Chosen) -> list[Task]:
    """Plain decoding, and each drafter asynchronous and synchronous, with graphs and without."""
    found = [Task(NAME, REFERENCE, EngineSpec(stock=True, scheduling="sync")), roomy_reference()]
    for drafter in chosen.drafters:
        specs = [EngineSpec(drafter), EngineSpec(drafter, scheduling="sync")]
        if not chosen.on_rig:
            specs.append(EngineSpec(drafter, graphs=False))
        found += [Task(NAME, spec.name, spec) for spec in specs]
    return found


def perform(task: Task, chosen: Chosen) -> dict[str, Any]:
    """Run all scenarios on the task's engine."""
    assert task.engine is not None
    arguments = engine_arguments(task.engine, chosen)
    if task.name == ROOMY_REFERENCE:
        return {"other": other_answers(SteppedEngine(arguments.kwargs), chosen)}
    steered = not task.engine.stock
    result: dict[str, Any] = {
        "serving_plainly": arguments.serving_plainly,
        "scenarios": {},
        "aborted": "",
        "fault": "",
        "head_runs": "",
    }
    if arguments.serving_plainly:
        return result
    engine = SteppedEngine(arguments.kwargs)
    if steered:
        engine.record_steps()
    for scenario in scenarios(Path(chosen.adapter) if chosen.adapter else None):
        ran = run_scenario(engine, scenario, steered=steered)
        result["scenarios"][scenario.name] = {
            "greedy": [request.request_id for request in scenario.requests if request.is_greedy],
            "answers": ran.answers,
            "missed": scenario.missed(ran),
            "ranks": [[asdict(step) for step in steps] for steps in ran.ranks],
        }
    if steered:
        result |= {"aborted": abort(engine), "fault": engine.exchange(EngineCommand()).fault}
        result["head_runs"] = why_head_runs(arguments, engine)
    result["runner"] = 2 if getattr(engine.vllm_config, "use_v2_model_runner", False) else 1
    engine.shutdown()
    return result


def judge(outcomes: Outcomes, chosen: Chosen) -> Found:
    """Every engine against plain decoding."""
    wrong = errors(NAME, outcomes)
    seen = of_phase(NAME, outcomes)
    seen.pop(ROOMY_REFERENCE, None)
    reference = seen.pop(REFERENCE, None)
    if reference is None:
        return Found(Verdict.FAILED, wrong or ["plain decoding did not run"])
    table = Table(("engine", "runner", "texts equal", "up to a near tie", "tokens equal", "K obeyed", "forwards at K = 0"), [])
    for task in tasks(chosen):
        if task.name not in seen or task.engine is None:
            continue
        outcome = seen[task.name]
        at_zero = AtZero(chosen.method(task.engine.drafter), outcome["head_runs"])
        verdict = judge_engine(at_zero, outcome, reference, near_tie(chosen))
        if verdict.served_plainly:
            wrong.append(f"{task.name}: served plainly: {verdict.served_plainly}")
            continue
        wrong += [f"{task.name}: {sentence}" for sentence in (*verdict.missed, *verdict.texts, *verdict.wrong_steps)]
        seen_at_zero = "/".join(map(str, verdict.forwards.get(0, ()))) or "none seen"
        table.rows.append(
            [
                task.name,
                f"V{outcome['runner']}",
                f"{verdict.compared - len(verdict.texts)} of {verdict.compared}",
                str(verdict.near_ties),
                str(verdict.tokens),
                f"{verdict.steps - len(verdict.wrong_steps)} of {verdict.steps}",
                "no model" if at_zero.forwards_at_zero is None else seen_at_zero + ", KV alone" * at_zero.writes_kv_alone,
            ]
        )
    sentences = [
        f"{task.name}: the head runs at K = 0 as in vLLM: {seen[task.name]['head_runs']}."
        for task in tasks(chosen)
        if seen.get(task.name, {}).get("head_runs")
    ]
    left_out = "" if chosen.adapter else " LoRA is left out: no adapter of this target is known."
    well = f"With K changing in every step, greedy answers are plain decoding's, within {near_tie(chosen):g} in logprob.{left_out}"
    return Found(Verdict.FAILED if wrong else Verdict.PROVED, [*(wrong or [well]), *sentences], [table])


def other_answers(engine: SteppedEngine, chosen: Chosen) -> dict[str, Any]:
    """Plain answers to what the phases catch-up, lending and failing open ask, so that they need no plain engine of their own."""
    return {name: engine.run(requests, logprobs=REFERENCE_LOGPROBS) for name, requests in asked.all_requests(chosen).items()}


CORRECTNESS: Final = Phase(NAME, "Correctness", tasks, perform, judge)
