"""KV pressure: the same requests with the draft's memory lent to them, without, and in plain vLLM that has all of it for KV.

Three engines of equal memory in turns, in a drawn order. Far more requests than fit come at once, of different lengths, so that
some are preempted and some wait for longer than a draft's leaving takes to pay; the last few run alone: there the plan speculates
again, and the engine that lent its draft's memory pays for taking it back. Both of ours follow one plan; the only difference is
`draft_offload`, with the operator's default triggers.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from nightjar.loadtests.arms.statistics import geometric_mean
from nightjar.loadtests.simulation.evidence.bars import Bar
from nightjar.loadtests.simulation.evidence.grid import Grid
from nightjar.policy.wire.operator import OperatorSettings
from nightjar.policy.wire.report import DrafterState
from nightjar.policy.wire.settings import EngineCommand, Settings, TableRow
from tests.benchmarks.engine.effort import Effort
from tests.benchmarks.engine.engines import Engine, by_plan
from tests.benchmarks.engine.fixture import PRESSED_NUM_SEQS, PRESSED_ROLES, Role, questions
from tests.benchmarks.engine.step_record import Step, core_share
from tests.benchmarks.measuring.outcome import Outcome, Tell
from tests.benchmarks.measuring.statistics import range_of

LENGTHS: Final = (80, 120, 160, 120)
"""Tokens that the first, second, ... request generates, over and over; the last rows run for LAST_TOKENS."""
LAST_ROWS: Final = 3
LAST_TOKENS: Final = 200
LENGTH: Final = 2
SPECULATED_BATCH: Final = 4
"""The plan: K = LENGTH up to so many rows, off above."""
WANTED: Final = 1.05
COMPARED: Final[tuple[Role, ...]] = ("stays", "lends")
"""The bar is about these: plain vLLM is looked at once."""
SHOWN_AS: Final = {"plain_with_all": "plain vLLM", "stays": "draft stays", "lends": "draft lends"}
IN_TRANSITION: Final = (DrafterState.CONTRACTING, DrafterState.RELOADING, DrafterState.CATCHING_UP)


@dataclass(frozen=True, slots=True)
class Pressed:
    """The requests once through one engine."""

    role: Role
    steps: tuple[Step, ...]
    drafter: Mapping[str, Any]
    """DrafterCounters, as differences; empty without a drafter."""

    @property
    def seconds(self) -> float:
        """Time of all steps."""
        return sum(step.seconds for step in self.steps)

    @property
    def speed(self) -> float:
        """Tokens per second."""
        return sum(step.generated for step in self.steps) / self.seconds

    @property
    def preemptions(self) -> int:
        """Requests that lost their blocks and began again, counted each time."""
        return sum(step.preemptions for step in self.steps)

    @property
    def waiting_seconds(self) -> float:
        """Summed over requests: time in the queue, at first and after a preemption."""
        return sum(step.seconds * step.waiting for step in self.steps)

    @property
    def most_rows(self) -> int:
        """Requests in the largest step."""
        return max(len(step.rows) for step in self.steps)

    def latencies(self) -> list[float]:
        """Seconds from the beginning, when all came, to each request's last token."""
        ended: dict[int, float] = {}
        now = 0.0
        for step in self.steps:
            now += step.seconds
            ended |= {row.row: now for row in step.rows if row.generated}
        return list(ended.values())

    def seconds_in(self, state: DrafterState) -> float:
        """Time of the steps that ended with the drafter in a state."""
        return sum(step.seconds for step in self.steps if step.drafter_state == state.value)

    def plain(self) -> dict[str, Any]:
        """For the raw rows."""
        p50, p99 = np.percentile(self.latencies(), [50, 99])
        return {
            "role": self.role,
            "seconds": round(self.seconds, 3),
            "tokens": sum(step.generated for step in self.steps),
            "tokens_per_s": round(self.speed, 3),
            "preemptions": self.preemptions,
            "waiting_seconds": round(self.waiting_seconds, 1),
            "latency_p50_s": round(float(p50), 2),
            "latency_p99_s": round(float(p99), 2),
            "most_rows": self.most_rows,
            "core_share": round(core_share(self.steps), 4),
            "seconds_in": {state.value: round(self.seconds_in(state), 3) for state in IN_TRANSITION},
            "drafter": dict(self.drafter),
        }


def tokens_of(number: int, requests: int) -> int:
    """What a request generates, of so many.

    >>> [tokens_of(number, 48) for number in (0, 1, 2, 3, 4, 47)]
    [80, 120, 160, 120, 80, 200]
    """
    return LAST_TOKENS if number >= requests - LAST_ROWS else LENGTHS[number % len(LENGTHS)]


def measure_pressure(engines: Mapping[Role, Engine], effort: Effort, rng: random.Random, tell: Tell) -> Outcome:
    """The bar of this section, and what it is made of."""
    runs: list[Pressed] = []
    for number in effort.pressure_rounds.numbers():
        roles: tuple[Role, ...] = PRESSED_ROLES if number == 0 else COMPARED
        for role in rng.sample(roles, len(roles)):
            runs.append(_run(engines[role], effort.pressure_requests))
            one = runs[-1].plain()
            tell(
                f"pressure, {SHOWN_AS[role]}: {one['tokens_per_s']:.1f} tokens/s, {one['preemptions']} preemptions, "
                f"p99 {one['latency_p99_s']:.0f} s"
            )
    room = {role: engine.kv_tokens() for role, engine in engines.items()}
    return _outcome(runs, room, effort.pressure_requests)


def _run(engine: Engine, requests: int) -> Pressed:
    prompts = engine.encode(questions(requests))
    drafts = engine.role != "plain_with_all"
    before: dict[str, Any] = {}
    if drafts:
        state = engine.adopt(_settings(engine.role)).drafter_state
        if state in {DrafterState.OFFLOADED, DrafterState.CONTRACTING, DrafterState.RELOADING}:
            raise RuntimeError(f"the last run left the draft {state.value}: this one would begin with memory it has not paid for")
        before = _counters(engine)
    for number, prompt in enumerate(prompts):
        engine.add([prompt], tokens_of(number, requests))
    steps: list[Step] = []
    while taken := engine.run():
        steps += taken
        if drafts and len(taken[-1].rows) <= SPECULATED_BATCH and not taken[-1].num_speculative_tokens:
            engine.grant(_settings(engine.role))
    after = _counters(engine) if drafts else {}
    return Pressed(engine.role, tuple(steps), {name: round(after[name] - before[name], 6) for name in after})


def _settings(role: Role) -> Settings:
    rows = (
        TableRow(first_batch_size=1, last_batch_size=SPECULATED_BATCH, num_speculative_tokens=LENGTH),
        TableRow(first_batch_size=SPECULATED_BATCH + 1, last_batch_size=PRESSED_NUM_SEQS, num_speculative_tokens=0),
    )
    offload = OperatorSettings(draft_offload="under_memory_pressure").offload_rules() if role == "lends" else None
    return by_plan(rows).model_copy(update={"offload": offload})


def _counters(engine: Engine) -> dict[str, Any]:
    counters = engine.exchange(EngineCommand()).drafter
    return counters.model_dump(include=set(COUNTED), mode="json")


COUNTED: Final = (
    "recomputed_tokens",
    "probes",
    "offloads",
    "reloads",
    "moved_bytes",
    "moving_seconds",
    "relocated_blocks",
    "preempted_requests",
)


def _outcome(runs: Sequence[Pressed], room: Mapping[Role, Mapping[str, int]], requests: int) -> Outcome:
    own: dict[Role, list[Pressed]] = {role: [run for run in runs if run.role == role] for role in PRESSED_ROLES}
    ratios = [lends.speed / stays.speed for lends, stays in zip(own["lends"], own["stays"], strict=True)]
    over_plain = own["lends"][0].speed / own["plain_with_all"][0].speed
    bar = Bar(
        name="pressure_tokens",
        meaning="more requests than the KV cache holds: tokens/s with the draft's memory lent, over without",
        direction="at least",
        limit=WANTED,
        value=geometric_mean(ratios),
        interval=range_of(ratios, "rounds"),
        at=f"{len(ratios)} rounds of {requests} requests",
        cells=len(ratios),
    )
    outcome = Outcome(bars=[bar])
    outcome.facts = {
        "lends_over_stays_by_round": [round(ratio, 4) for ratio in ratios],
        "lends_over_plain_of_equal_memory_in_the_first": round(over_plain, 4),
        "most_concurrent_tokens_at_equal_memory": {role: dict(tokens) for role, tokens in room.items()},
        "runs": [run.plain() for run in runs],
    }
    outcome.rows["pressure"] = [run.plain() for run in runs]
    outcome.rows["pressure_steps"] = [
        {"role": run.role, "run": number, "seconds": round(step.seconds, 5), "rows": len(step.rows), "waiting": step.waiting,
         "preemptions": step.preemptions, "num_speculative_tokens": step.num_speculative_tokens,
         "recomputed_tokens": step.recomputed_tokens, "generated": step.generated, "drafter_state": step.drafter_state}
        for number, run in enumerate(runs) for step in run.steps
    ]  # fmt: skip
    lines = []
    for role in PRESSED_ROLES:
        for run in own[role]:
            one = run.plain()
            lines.append(
                [
                    SHOWN_AS[role],
                    f"{room[role]['loaded']} / {room[role]['offloaded']}",
                    f"{one['tokens_per_s']:.1f}",
                    str(one["preemptions"]),
                    f"{one['waiting_seconds']:.0f}",
                    f"{one['latency_p50_s']:.0f}",
                    f"{one['latency_p99_s']:.0f}",
                    str(one["most_rows"]),
                    f"{one['drafter'].get('moving_seconds', 0.0):.2f}",
                    f"{run.seconds_in(DrafterState.CONTRACTING):.2f}",
                    f"{run.seconds_in(DrafterState.CATCHING_UP):.2f}",
                ]
            )
    heading = (
        "engine", "KV tokens, loaded / offloaded", "tokens/s", "preemptions", "waiting s", "p50 s", "p99 s", "most rows",
        "moving s", "contracting s", "catching up s",
    )  # fmt: skip
    outcome.tables.append(Grid("KV pressure at equal memory", heading, lines))
    return outcome
