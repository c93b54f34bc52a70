"""What "off" costs beside plain vLLM: our engine at K = 0 and vLLM without speculation on its default runner, side by side.

Both are in memory at once, and are timed in turns, each first in every other round. A ratio, so that it survives a slow machine;
its interval is drawn from the rounds.
"""

from __future__ import annotations

import random
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from nightjar.deployments.proof.kit.chosen import Chosen
from nightjar.deployments.proof.kit.engines import EngineSpec
from nightjar.deployments.proof.kit.metered import MeteredEngine
from nightjar.deployments.proof.kit.tasks import Found, Outcomes, Phase, Table, Task, Verdict, errors, of_phase
from nightjar.loadtests.arms.statistics import of_times, paired_ratio

NAME: Final = "off"
PLAIN: Final = EngineSpec(room="shared", stock=True)


def tasks(chosen: Chosen) -> list[Task]:
    """A pair for each drafter."""
    return [Task(NAME, drafter) for drafter in chosen.drafters]


def perform(task: Task, chosen: Chosen) -> dict[str, Any]:
    """Time both in turns at each number of rows."""
    drafter = next(drafter for drafter in chosen.drafters if drafter == task.name)
    work = Path(chosen.work)
    log = work / f"{task.file_name}.engines.log"
    rng = random.Random(chosen.seed)
    rows_seconds: dict[str, list[dict[str, float]]] = {}
    with ExitStack() as stack:
        try:
            engines = {
                "plain": stack.enter_context(MeteredEngine(PLAIN, chosen, work, log)),
                "off": stack.enter_context(MeteredEngine(EngineSpec(drafter, room="shared"), chosen, work, log)),
            }
        except RuntimeError as error:
            if "memory" not in str(error):
                raise
            return {"seconds": {}, "unable": str(error)[:400]}
        engines["off"].hold(0)
        for rows in [rows for rows in chosen.sizes.contest_rows if rows <= chosen.sizes.max_num_seqs]:
            rounds = []
            for number in range(chosen.sizes.rounds + 1):
                order = ["plain", "off"] if number % 2 else ["off", "plain"]
                seed = rng.randrange(1 << 30)
                rounds.append({name: engines[name].batch(rows, chosen.sizes.measured_tokens, seed) for name in order})
            rows_seconds[str(rows)] = rounds[1:]  # the first round compiles
    return {"seconds": rows_seconds, "unable": ""}


def judge(outcomes: Outcomes, chosen: Chosen) -> Found:
    """Ratios; no verdict, since time is no proof."""
    wrong = errors(NAME, outcomes)
    table = Table(("drafter", "rows", "off / plain, seconds", "95 %", "rounds"), [])
    unable = []
    for name, outcome in of_phase(NAME, outcomes).items():
        if outcome["unable"]:
            unable.append(
                f"{name}: not measured, since two engines of this target do not fit beside each other: {outcome['unable']}"
            )
        for rows, rounds in outcome["seconds"].items():
            ratio = paired_ratio(of_times([each["off"] for each in rounds], [each["plain"] for each in rounds]), chosen.seed)
            table.rows.append([name, rows, f"{ratio.value:.3f}", str(ratio.interval), str(ratio.rounds)])
    words = (
        f"{chosen.sizes.measured_tokens} tokens per row, the rounds' prompts drawn with seed {chosen.seed}. Above 1, off is slower."
    )
    rig = ["On the rig plain vLLM runs its kernels in an interpreter: the ratios say nothing about a GPU."] * chosen.on_rig
    verdict = Verdict.MEASURED if table.rows else Verdict.LEFT_OUT
    return Found(Verdict.FAILED if wrong else verdict, [*wrong, *unable, words, *rig], [table])


OFF: Final = Phase(NAME, "Off against plain vLLM", tasks, perform, judge)
