"""K drawn at random in every step, over many batch sizes, so that steps fall on both sides of every captured graph's size.

What the scheduler ordered must be what was set, what the worker ran what was ordered. How often steps of a K ran in a full graph, a
piecewise one or none is counted, not judged: that is the price of a K for which none was captured.
"""

from __future__ import annotations

import itertools
import random
from collections import Counter
from dataclasses import asdict
from typing import Any, Final

from nightjar.deployments.proof.driven_engine import GenerationRequest
from nightjar.deployments.proof.kit.chosen import Chosen
from nightjar.deployments.proof.kit.engines import AtZero, EngineSpec, engine_arguments, why_head_runs
from nightjar.deployments.proof.kit.phases.asked import prompt
from nightjar.deployments.proof.kit.tasks import Found, Outcomes, Phase, Table, Task, Verdict, errors, of_phase
from nightjar.deployments.proof.scenarios import MAX_NUM_SPECULATIVE_TOKENS
from nightjar.deployments.proof.stepped_engine import SteppedEngine
from nightjar.deployments.proof.verdict import Verdict as EngineVerdict
from nightjar.deployments.proof.verdict import judge_steps
from nightjar.policy.wire.settings import EngineCommand

NAME: Final = "random-K"


def tasks(chosen: Chosen) -> list[Task]:
    """Each drafter as production would start it."""
    specs = [EngineSpec(drafter, room="roomy") for drafter in chosen.drafters]
    return [Task(NAME, spec.name, spec) for spec in specs]


def perform(task: Task, chosen: Chosen) -> dict[str, Any]:
    """Batches of each size, each step with another K."""
    assert task.engine is not None
    rng = random.Random(chosen.seed)
    arguments = engine_arguments(task.engine, chosen)
    kwargs = arguments.kwargs | ({"cudagraph_metrics": True} if _has_cudagraph_metrics() else {})
    engine = SteppedEngine(kwargs)
    engine.record_steps()
    ks = range(MAX_NUM_SPECULATIVE_TOKENS + 1)
    numbers = itertools.count()
    batches = []
    for rows in chosen.sizes.batch_sizes:
        options = {"temperature": 0.0, "max_tokens": chosen.sizes.random_tokens, "ignore_eos": True}
        requests = [GenerationRequest(f"random-{number}", prompt(number), options) for number in itertools.islice(numbers, rows)]
        engine.run(requests, lambda _: engine.pin(rng.choice(ks)))
        (steps,) = engine.steps_of_ranks()
        batches.append({"rows": rows, "steps": [asdict(step) for step in steps]})
    result = {"batches": batches, "fault": engine.exchange(EngineCommand()).fault, "tiers": list(arguments.graph_tiers)}
    result["head_runs"] = why_head_runs(arguments, engine)
    engine.shutdown()
    return result


def judge(outcomes: Outcomes, chosen: Chosen) -> Found:
    """Every step of every batch; and how the target ran, by K."""
    wrong = errors(NAME, outcomes)
    tables, sentences = (
        [],
        [f"K was drawn with seed {chosen.seed}, in batches of {', '.join(map(str, chosen.sizes.batch_sizes))} rows."],
    )
    for name, outcome in of_phase(NAME, outcomes).items():
        verdict = EngineVerdict(AtZero(chosen.method("head" if name.startswith("head") else "draft"), outcome["head_runs"]), "")
        modes: dict[int, Counter[str]] = {}
        for batch in outcome["batches"]:
            judge_steps(verdict, f"{batch['rows']} rows", [batch["steps"]])
            for step in batch["steps"]:
                verified = max(step["verified"].values(), default=0)
                modes.setdefault(verified, Counter())[step["graph_mode"] or "unknown"] += 1
        wrong += [f"{name}: {sentence}" for sentence in verdict.wrong_steps]
        wrong += [f"{name}: {outcome['fault']}"] * bool(outcome["fault"])
        unseen = set(range(MAX_NUM_SPECULATIVE_TOKENS + 1)) - verdict.forwards.keys()
        wrong += [f"{name}: K = {k} was never ordered" for k in sorted(unseen)]
        counts = "; ".join(f"K = {k}: {'/'.join(map(str, seen))}" for k, seen in sorted(verdict.forwards.items()))
        sentences.append(
            f"{name}: {verdict.steps - len(verdict.wrong_steps)} of {verdict.steps} steps ran as set; forwards: {counts}."
        )
        kinds = sorted({kind for counter in modes.values() for kind in counter})
        rows = [[name, str(k), *(str(counter[kind]) for kind in kinds)] for k, counter in sorted(modes.items())]
        tables.append(Table(("engine", "drafts verified per row, at most", *(f"steps, graph {kind}" for kind in kinds)), rows))
    return Found(Verdict.FAILED if wrong else Verdict.PROVED, wrong + sentences, tables)


def _has_cudagraph_metrics() -> bool:
    from vllm import EngineArgs

    return hasattr(EngineArgs, "cudagraph_metrics")


RANDOM_K: Final = Phase(NAME, "K at random in every step", tasks, perform, judge)
