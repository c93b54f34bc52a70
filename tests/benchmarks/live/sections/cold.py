"""Two replicas that learn together against one that learns alone, each from nothing: tokens lost, a replica.

Nothing means engines that have counted nothing and a policy that stored nothing: whatever an engine has counted it tells any
policy. So each run has engines that were just started. While one learns alone the other serves nobody, and has nothing to tell.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Final

from nightjar.loadtests.arms.samples import StatusSample
from nightjar.loadtests.simulation.evidence.bars import Bar
from nightjar.loadtests.simulation.evidence.grid import Grid
from nightjar.policy.wire.status import ReplicaStatus
from tests.benchmarks.live.applications import OURS, POLICY_SETTINGS
from tests.benchmarks.live.arms import AUTO
from tests.benchmarks.live.crowd import Crowd, Deck
from tests.benchmarks.live.effort import MAX_TOKENS, Effort
from tests.benchmarks.live.playing import Player, question
from tests.benchmarks.live.sections.learning_loss import Moment, lost_tokens, steady_from_s
from tests.benchmarks.measuring.outcome import Lines, Outcome, Tell
from tests.benchmarks.measuring.statistics import resampled

LOAD: Final = "middle"
"""Where speculation pays and its length matters. A policy that knows nothing begins with off."""
ALONE: Final = "alone"
TOGETHER: Final = "together"
LOOK_PERIOD_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class ColdRun:
    """One run of one replica's, look by look."""

    kind: str
    number: int
    replica: str
    looks: tuple[tuple[float, ReplicaStatus], ...]
    """Seconds since it began, and the replica then; the first look is from before."""

    def moments(self, speeds: Mapping[int, float]) -> list[Moment]:
        """Tokens lost until each look. `speeds` by K, one replica's."""
        _, first = self.looks[0]
        return [Moment(at_s, lost_tokens(*_spent(first, now), speeds)) for at_s, now in self.looks]

    @property
    def seconds_by_k(self) -> dict[str, float]:
        """Engine seconds at each K."""
        spent, _ = _spent(self.looks[0][1], self.looks[-1][1])
        return {f"K={length}": round(seconds, 2) for length, seconds in spent.items()}


def run_cold(player: Player, effort: Effort, tell: Tell) -> list[ColdRun]:
    """All runs; replicas of ours must have served nobody yet. Leaves the policy with its usual settings."""
    runs: list[ColdRun] = []
    for number in range(effort.cold_rounds):
        if number:
            tell("starting both engines anew")
            player.system.renew(*OURS)
        learner = OURS[number % len(OURS)]
        runs += _run(player, effort, ALONE, number, [learner], tell)
        tell(f"starting the engine of {learner} anew")
        player.system.renew(learner)
        runs += _run(player, effort, TOGETHER, number, OURS, tell)
    player.system.set_policy(POLICY_SETTINGS)
    return runs


def judge_cold(runs: Sequence[ColdRun], speeds: Mapping[int, float], seed: int) -> Outcome:
    """What the runs lost, now that it is known what each K gives a replica at this load (`speeds`, tokens/s by K)."""
    outcome = Outcome()
    best_speed = max(speeds.values())
    lost: dict[str, list[float]] = {ALONE: [], TOGETHER: []}
    lines = []
    curves: dict[str, list[tuple[float, float]]] = {}
    rows: list[dict[str, Any]] = []
    for run in runs:
        moments = run.moments(speeds)
        steady_s = steady_from_s(moments, best_speed)
        lost[run.kind].append(moments[-1].lost_tokens)
        told = f"{moments[-1].lost_tokens:.0f} ({moments[-1].lost_tokens / best_speed:.1f} s of the best)"
        lines.append([run.kind, str(run.number + 1), run.replica, told, f"{steady_s:.0f}", str(run.seconds_by_k)])
        curves[f"{run.kind} {run.number + 1} {run.replica}"] = [(at_s, lost_now) for at_s, lost_now in moments]
        rows.append({
            "kind": run.kind, "round": run.number + 1, "replica": run.replica, "lost_tokens": round(moments[-1].lost_tokens, 1),
            "steady_from_s": round(steady_s, 1), "seconds_by_k": run.seconds_by_k,
            "lost_by_second": [[round(at_s, 2), round(lost_now, 1)] for at_s, lost_now in moments],
        })  # fmt: skip
    is_measurable = bool(lost[ALONE]) and fmean(lost[ALONE]) > 0
    drawn = f"{len(lost[TOGETHER])} runs together and {len(lost[ALONE])} alone"
    told = "" if is_measurable else "; one alone lost nothing, so there is no ratio"
    bar = Bar(
        name="pooled_over_alone",
        meaning="tokens that a replica loses from a cold start, two that learn together over one that learns alone",
        direction="at most",
        limit=1.0,
        value=_mean_ratio(lost[TOGETHER], lost[ALONE]) if is_measurable else None,
        interval=resampled(lost[TOGETHER], lost[ALONE], _mean_ratio, seed, drawn) if is_measurable else None,
        judged="interval",
        at=f"load {LOAD}{told}; alone {_listed(lost[ALONE])}, together {_listed(lost[TOGETHER])} tokens",
        cells=len(lost[ALONE]),
    )
    outcome.bars.append(bar)
    outcome.facts = {"lost_tokens_per_replica": {kind: [round(value, 1) for value in values] for kind, values in lost.items()}}
    outcome.rows["cold"] = rows
    columns = ("learned", "round", "replica", "tokens lost", "steady from s", "engine seconds by K")
    outcome.tables.append(Grid("From a cold start", columns, lines))
    if curves:
        outcome.charts.append(Lines("Tokens lost while learning", "s", curves))
    return outcome


def _run(player: Player, effort: Effort, kind: str, number: int, names: Sequence[str], tell: Tell) -> list[ColdRun]:
    (load,) = (load for load in effort.loads if load.name == LOAD)
    player.system.forget()
    deck = Deck(question, number * load.rows, load.rows, MAX_TOKENS, is_staggered=True)

    async def script(crowd: Crowd) -> list[StatusSample]:
        looks = [await player.look()]
        began_s = time.monotonic()
        crowd.resize(load.rows)
        while time.monotonic() - began_s < effort.cold_s:
            await asyncio.sleep(LOOK_PERIOD_S)
            looks.append(await player.look())
        return looks

    looks, _ = player.play(AUTO, names, deck, script)
    runs = [ColdRun(kind, number, name, _course(looks, name)) for name in names]
    tell(f"cold, {kind}, round {number + 1}: engine seconds by K {', '.join(str(run.seconds_by_k) for run in runs)}")
    return runs


def _course(looks: Sequence[StatusSample], name: str) -> tuple[tuple[float, ReplicaStatus], ...]:
    """A replica's looks, timed from the first; where an old one of its name is still listed, the one heard last."""
    course = []
    for look in looks:
        listed = [replica for replica in (look.status.replicas if look.status else ()) if replica.application == name]
        if listed:
            course.append((look.time_s - looks[0].time_s, min(listed, key=lambda replica: replica.report_age_s)))
    return tuple(course)


def _spent(first: ReplicaStatus, now: ReplicaStatus) -> tuple[dict[int, float], float]:
    """Engine seconds at each K, and those that catching up took, since the first look."""
    before = {total.num_speculative_tokens: total.step_seconds for total in first.totals}
    spent = {total.num_speculative_tokens: total.step_seconds for total in now.totals}
    seconds = {length: time_s - before.get(length, 0.0) for length, time_s in sorted(spent.items())}
    return {length: time_s for length, time_s in seconds.items() if time_s > 0}, now.catch_up_seconds - first.catch_up_seconds


def _mean_ratio(one: Sequence[float], other: Sequence[float]) -> float:
    return fmean(one) / fmean(other)


def _listed(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.0f}" for value in values) or "none"
