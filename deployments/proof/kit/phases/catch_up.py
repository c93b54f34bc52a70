"""A draft model that slept reads what it missed, and drafts again: whether it reads just that, and how long it takes.

Each row runs, sleeps until it has missed a number of tokens, and is woken under a lease.
"""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any, Final

from nightjar.deployments.drafter_kinds import SEPARATE_DRAFT_MODEL
from nightjar.deployments.proof.kit.chosen import Chosen
from nightjar.deployments.proof.kit.engines import AtZero, EngineSpec, engine_arguments
from nightjar.deployments.proof.kit.phases.asked import ACTIVE_STEPS, catch_up_requests
from nightjar.deployments.proof.kit.phases.correctness import near_tie, plain_answers
from nightjar.deployments.proof.kit.tasks import Found, Outcomes, Phase, Table, Task, Verdict, errors, of_phase
from nightjar.deployments.proof.lending import grant
from nightjar.deployments.proof.scenarios import MAX_NUM_SPECULATIVE_TOKENS
from nightjar.deployments.proof.stepped_engine import SteppedEngine
from nightjar.deployments.proof.verdict import Verdict as EngineVerdict
from nightjar.deployments.proof.verdict import judge_texts
from nightjar.policy.wire.report import DrafterState
from nightjar.policy.wire.settings import EngineCommand

NAME: Final = "catch-up"
ASLEEP: Final = DrafterState.DORMANT


def tasks(chosen: Chosen) -> list[Task]:
    """A draft model, asynchronous as in production."""
    return [Task(NAME, "draft", EngineSpec("draft", room="roomy"))] if chosen.draft else []


def perform(task: Task, chosen: Chosen) -> dict[str, Any]:
    """A batch for each lag."""
    assert task.engine is not None
    engine = SteppedEngine(engine_arguments(task.engine, chosen).kwargs)
    engine.record_steps()
    lags = {f"{NAME}-{lag}": _sleep_and_wake(engine, chosen, lag) for lag in chosen.sizes.lags_tokens}
    result = {"lags": lags, "fault": engine.exchange(EngineCommand()).fault}
    engine.shutdown()
    return result


def _sleep_and_wake(engine: SteppedEngine, chosen: Chosen, lag_tokens: int) -> dict[str, Any]:
    requests = catch_up_requests(chosen, lag_tokens)
    seconds: list[float] = []
    states: list[str] = []
    before = engine.exchange(EngineCommand()).drafter
    most_lag_tokens = 0
    slept_for = 0
    last_s = time.perf_counter()

    def script(step: int) -> None:
        nonlocal last_s, most_lag_tokens, slept_for
        now_s = time.perf_counter()
        seconds.append(now_s - last_s)
        last_s = now_s
        snapshot = engine.exchange(EngineCommand())
        states.append(snapshot.drafter_state.value)
        most_lag_tokens = max(most_lag_tokens, snapshot.drafter.lag_tokens)
        if step == ACTIVE_STEPS:
            engine.steer("off")
        elif snapshot.drafter_state is ASLEEP:
            slept_for += 1
            if slept_for >= lag_tokens:
                grant(engine, f"pin={MAX_NUM_SPECULATIVE_TOKENS}")

    engine.steer(f"pin={MAX_NUM_SPECULATIVE_TOKENS}")
    answers = engine.run(requests, script)
    after = engine.exchange(EngineCommand()).drafter
    (steps,) = engine.steps_of_ranks()
    return {
        "rows": len(requests),
        "greedy": [request.request_id for request in requests],
        "answers": answers,
        "most_lag_tokens": most_lag_tokens,
        "recomputed_tokens": after.recomputed_tokens - before.recomputed_tokens,
        "states": list(dict.fromkeys(states)),
        "seconds": seconds,
        "state_of_step": states,
        "steps": [asdict(step) for step in steps],
    }


def judge(outcomes: Outcomes, chosen: Chosen) -> Found:
    """Texts, no forward while it sleeps, a catch-up, and drafts verified afterwards."""
    if not chosen.draft:
        return Found(Verdict.LEFT_OUT, ["It needs a draft model: --draft."])
    wrong = errors(NAME, outcomes)
    outcome = of_phase(NAME, outcomes).get("draft")
    reference = plain_answers(outcomes)
    if outcome is None or reference is None:
        return Found(Verdict.FAILED, wrong or ["plain decoding did not run: its answers are missing"])
    if outcome["fault"]:
        wrong.append(outcome["fault"])
    table = Table(
        ("rows", "tokens missed", "tokens read again", "steps that caught up", "their seconds", "a step asleep, seconds"), []
    )
    verdict = EngineVerdict(AtZero(SEPARATE_DRAFT_MODEL), "")
    for name, lag in outcome["lags"].items():
        judge_texts(verdict, name, lag, reference[name], near_tie(chosen))
        wrong += [f"{name}: {sentence}" for sentence in _missing(lag)]
        most = lag["most_lag_tokens"] + lag["rows"] * (MAX_NUM_SPECULATIVE_TOKENS + 1)
        if lag["recomputed_tokens"] > most:
            wrong.append(f"{name}: it read {lag['recomputed_tokens']} tokens again and had missed {lag['most_lag_tokens']}")
        caught = [index for index, step in enumerate(lag["steps"]) if step["catches_up"]]
        asleep = [
            seconds for seconds, state in zip(lag["seconds"][1:], lag["state_of_step"], strict=False) if state == ASLEEP.value
        ]
        took = sum(lag["seconds"][index + 1] for index in caught if index + 1 < len(lag["seconds"]))
        table.rows.append(
            [
                str(lag["rows"]),
                str(lag["most_lag_tokens"]),
                str(lag["recomputed_tokens"]),
                str(len(caught)),
                f"{took:.4f}",
                f"{sorted(asleep)[len(asleep) // 2]:.4f}" if asleep else "none",
            ]
        )
    wrong += verdict.texts
    well = "The draft model ran nothing while it slept, read what it had missed, and drafted again; texts are plain decoding's."
    return Found(Verdict.FAILED if wrong else Verdict.PROVED, wrong or [well], [table])


def _missing(lag: dict[str, Any]) -> list[str]:
    steps = lag["steps"]
    woken = next((index for index, step in enumerate(steps) if step["catches_up"]), len(steps))
    asleep = [step for step in steps[:woken] if step["drafter_state"] == ASLEEP.value]
    wanted = {
        "the draft never slept": asleep,
        "it ran forwards while it slept": not any(step["forwards"] for step in asleep),
        "it never caught up": woken < len(steps),
        "it read nothing again": lag["recomputed_tokens"],
        "no draft was verified after it woke": any(step["verified"] for step in steps[woken + 1 :]),
    }
    return [words for words, seen in wanted.items() if not seen]


CATCH_UP: Final = Phase(NAME, "Catching up", tasks, perform, judge)
