"""Who is fastest: no speculation, a fixed K, vLLM's table tuned for this machine, vLLM's adaptive verification, ours, and ours as
the ceiling of adaptive verification.

With --bench alone. Each contender has a process of its own and the machine to itself, in an order that is drawn anew in each round;
a round gives each the same time at each number of rows, after a time to warm up (ours learns in it), and once over a ramp. Requests
are closed loops of prompts of ours, greedy, 64 to 256 tokens. No verdict: the ratios to plain vLLM over the rounds.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any, Final

from nightjar.deployments.proof.kit.chosen import Chosen, Drafter
from nightjar.deployments.proof.kit.engines import EngineSpec
from nightjar.deployments.proof.kit.metered import MeteredEngine
from nightjar.deployments.proof.kit.tasks import Found, Outcomes, Phase, Table, Task, Verdict, errors, of_phase
from nightjar.deployments.proof.scenarios import MAX_NUM_SPECULATIVE_TOKENS
from nightjar.loadtests.arms.arm import shuffled
from nightjar.loadtests.arms.statistics import Speed, matched, paired_ratio
from nightjar.loadtests.arms.stock_table import tuned_table

NAME: Final = "contest"
PLAIN: Final = "no speculation"
OURS: Final = "Nightjar"
RAMP: Final = "ramp"
ADAPTIVE: Final = "enable_adaptive_verification"
"""Of vLLM's `speculative_config`. Most drafters and attention backends do not have it: such an engine does not start."""


def tasks(chosen: Chosen) -> list[Task]:
    """One for each drafter, with all its contenders; the rig has two contenders, and so one drafter."""
    return [Task(NAME, drafter) for drafter in (chosen.drafters[:1] if chosen.on_rig else chosen.drafters)]


def perform(task: Task, chosen: Chosen) -> dict[str, Any]:
    """All rounds."""
    drafter = next(drafter for drafter in chosen.drafters if drafter == task.name)
    log = Path(chosen.work) / f"{task.file_name}.engines.log"
    rng = random.Random(chosen.seed)
    tuned = {} if chosen.on_rig else _tune(drafter, chosen, log)
    contenders = _contenders(drafter, chosen, tuned)
    rows: list[dict[str, Any]] = []
    unable: dict[str, str] = {}
    for number, order in enumerate(shuffled(list(contenders), chosen.sizes.contest_rounds, rng)):
        for name in order:
            if name in unable:
                continue
            try:
                with MeteredEngine(contenders[name], chosen, Path(chosen.work), log) as engine:
                    rows += [{"round": number, "contender": name, **row} for row in _loads(engine, chosen)]
            except RuntimeError as error:
                unable[name] = str(error)[:400]
    return {
        "rows": rows,
        "unable": unable,
        "table": [list(row) for row in contenders[_TABLE].table] if _TABLE in contenders else [],
    }


_TABLE: Final = "vLLM's table, tuned"


def _contenders(drafter: Drafter, chosen: Chosen, tuned: dict[int, dict[int, float]]) -> dict[str, EngineSpec]:
    ours = EngineSpec(drafter, room="roomy")
    found = {PLAIN: EngineSpec(room="roomy", stock=True), OURS: ours}
    if chosen.on_rig:
        return found
    fixed = EngineSpec(drafter, room="roomy", stock=True)
    found[f"K = {MAX_NUM_SPECULATIVE_TOKENS}"] = fixed
    found[_TABLE] = EngineSpec(drafter, room="roomy", stock=True, table=tuned_table(tuned, chosen.sizes.max_num_seqs))
    if _has_adaptive_verification():
        found["adaptive verification"] = EngineSpec(drafter, room="roomy", stock=True, extra={ADAPTIVE: True})
        if drafter == "head":  # beside a draft model it has no ceiling
            found[f"{OURS} over adaptive verification"] = EngineSpec(drafter, room="roomy", extra={ADAPTIVE: True})
    return found


def _has_adaptive_verification() -> bool:
    from vllm.config import SpeculativeConfig

    return hasattr(SpeculativeConfig, ADAPTIVE)


def _tune(drafter: Drafter, chosen: Chosen, log: Path) -> dict[int, dict[int, float]]:
    """Tokens per second by number of rows and K, of an engine held at each."""
    found: dict[int, dict[int, float]] = {}
    with MeteredEngine(EngineSpec(drafter, room="roomy"), chosen, Path(chosen.work), log) as engine:
        for rows in chosen.sizes.contest_rows:
            speeds = {}
            for k in range(MAX_NUM_SPECULATIVE_TOKENS + 1):
                engine.hold(k)
                engine.flow(rows, chosen.sizes.contest_s / 4, planned=False)
                flow = engine.flow(rows, chosen.sizes.contest_s / 2, planned=False)
                speeds[k] = flow["tokens"] / flow["seconds"]
            found[rows] = speeds
            engine.empty()
    return found


def _loads(engine: MeteredEngine, chosen: Chosen) -> list[dict[str, Any]]:
    sizes = chosen.sizes
    found: list[dict[str, Any]] = []
    for rows in sizes.contest_rows:
        engine.flow(rows, sizes.contest_s / 2, planned=True)
        found.append({"load": str(rows), **engine.flow(rows, sizes.contest_s, planned=True)})
        engine.empty()
    parts = [engine.flow(rows, sizes.contest_s / 2, planned=True) for rows in sizes.ramp]
    engine.empty()
    return [*found, {"load": RAMP, **{name: sum(part[name] for part in parts) for name in ("tokens", "seconds")}}]


def judge(outcomes: Outcomes, chosen: Chosen) -> Found:
    """Tokens per second over those of plain vLLM in the same round."""
    wrong = errors(NAME, outcomes)
    tables = []
    unable: list[str] = []
    for drafter, outcome in of_phase(NAME, outcomes).items():
        for name, reason in outcome["unable"].items():
            (wrong if name in {PLAIN, OURS} else unable).append(f"{drafter}: {name} did not take part: {reason}")
        speeds: dict[tuple[str, str], dict[int, Speed]] = {}
        for row in outcome["rows"]:
            speeds.setdefault((row["contender"], row["load"]), {})[row["round"]] = Speed(row["tokens"], row["seconds"])
        table = Table((drafter, "rows", "tokens/s", "over plain vLLM", "95 %", "rounds"), [])
        for (name, load), own in sorted(speeds.items(), key=lambda one: one[0][0]):
            pairs = matched(own, speeds.get((PLAIN, load), {}))
            over = paired_ratio(pairs, chosen.seed) if pairs else None
            per_s = sum(one.tokens for one in own.values()) / sum(one.seconds for one in own.values())
            found = [f"{over.value:.3f}", str(over.interval)] if over else ["unknown", "unknown"]
            compared = over.rounds if over else 0
            rounds = str(compared) if compared == len(own) else f"{compared} of {len(own)}"
            table.rows.append([name, load, f"{per_s:.1f}", *found, rounds])
        tables.append(table)
    words = f"Tokens per second of each contender over plain vLLM's of the same rounds; order drawn with seed {chosen.seed}."
    rig = ["On the rig plain vLLM runs its kernels in an interpreter: the ratios say nothing about a GPU."] * chosen.on_rig
    return Found(Verdict.FAILED if wrong else Verdict.MEASURED, [*wrong, words, *rig, *unable], tables)


CONTEST: Final = Phase(NAME, "Contest", tasks, perform, judge, without_bench=False)
