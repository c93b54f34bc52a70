"""Engines in virtual time for tests of the fleet: measured step times, and the very Steering and counters of production."""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from nightjar.policy.decision.fleet import decide
from nightjar.policy.intake import observe
from nightjar.policy.operator.overrides import ModeOverride
from nightjar.policy.state import FleetState
from nightjar.policy.step.counters import StepCount, StepCounters
from nightjar.policy.step.steering import Steering
from nightjar.policy.wire.operator import OperatorSettings, parse_operator_settings
from nightjar.policy.wire.report import EngineLoad, EngineSnapshot, GroupKey, LoadReport
from nightjar.policy.wire.settings import IssuedSettings, Settings, SettingsVersion, Table

MAX_NUM_SEQS = 256
KEY = GroupKey(target="llama-8b", draft="eagle", drafter_kind="eagle", max_num_speculative_tokens=5, max_num_seqs=MAX_NUM_SEQS)
AUTO = parse_operator_settings({"mode": "auto", "allowed_num_speculative_tokens": (0, 1, 3, 5)})

ACCEPTANCE = (0.68, 0.39, 0.20, 0.10, 0.05)
STEP_MILLISECONDS = {
    1: {0: 6.5, 1: 7.4, 3: 8.8, 5: 10.3},
    16: {0: 6.9, 1: 7.9, 3: 9.5, 5: 11.2},
    64: {0: 7.8, 1: 9.7, 3: 13.5, 5: 16.8},
    256: {0: 14.5, 1: 27.1, 3: 41.8, 5: 57.4},
}
"""vLLM pull request 32374, step time by batch and K: the best K are 3, 3, 1 and 0."""


def step_seconds(batch: int, k: int) -> float:
    """The measured table, linear between its batches."""
    sizes = sorted(STEP_MILLISECONDS)
    upper = min(max(bisect_right(sizes, batch), 1), len(sizes) - 1)
    low, high = sizes[upper - 1], sizes[upper]
    share = (batch - low) / (high - low)
    return ((1 - share) * STEP_MILLISECONDS[low][k] + share * STEP_MILLISECONDS[high][k]) / 1e3


def best_k(batch: int, ks: Iterable[int] = (0, 1, 3, 5)) -> int:
    """Argmax of true goodput."""
    return max(ks, key=lambda k: (1 + sum(ACCEPTANCE[:k])) / step_seconds(batch, k))


@dataclass
class Replica:
    """One engine at a constant batch, steered by what the fleet decides for it."""

    replica_id: str
    batch: int = 1
    speed: float = 1.0
    acceptance: tuple[float, ...] = ACCEPTANCE
    engine_id: str = "engine-1"
    application: str = "chat"
    report_number: int = 0
    counters: StepCounters = field(default_factory=StepCounters)
    steering: Steering = field(default_factory=lambda: Steering(max_num_speculative_tokens=5, max_num_seqs=MAX_NUM_SEQS))
    sequence: int = 0
    k: int = 0
    held_steps: int = 0
    now_s: float = 0.0

    def run_until(self, now_s: float, rng: random.Random) -> None:
        """Run steps of the present batch up to a point in time."""
        while self.batch and self.now_s < now_s:
            chosen = self.steering.choose(self.batch, has_prefill=False, now_s=self.now_s)
            k = KEY.max_num_speculative_tokens if chosen is None else chosen
            self.held_steps = self.held_steps + 1 if k == self.k else 1
            self.k = k
            self.step(k, clean=self.held_steps > 2, rng=rng)
        self.now_s = max(self.now_s, now_s)

    def step(self, k: int, *, clean: bool, rng: random.Random) -> None:
        """Run one step and count it."""
        kept = [0] * k
        for _ in range(self.batch):
            luck = rng.random()
            for position in range(k):
                kept[position] += luck < self.acceptance[position]
        seconds = step_seconds(self.batch, k) * rng.uniform(0.97, 1.03) / self.speed
        self.counters.count(
            StepCount(
                num_speculative_tokens=k,
                decode_rows=self.batch,
                context_tokens=100 * self.batch,
                prefill_tokens=0,
                generated_tokens=self.batch + sum(kept),
                reached=[self.batch] * k,
                accepted=kept,
                step_microseconds=round(seconds * 1e6),
                clean=clean,
                in_transition=not clean,
            )
        )
        if clean:
            self.steering.count_clean_step(self.batch, k)
        self.now_s += seconds

    def report(self, **changes: object) -> LoadReport:
        """What the agent would send now."""
        self.report_number += 1
        fields: dict[str, object] = {
            "replica_id": self.replica_id,
            "application": self.application,
            "group": KEY,
            "report_number": self.report_number,
            "snapshot": EngineSnapshot(
                counters=self.counters.snapshot(self.engine_id),
                load=EngineLoad(decode_batch_size=self.batch, num_speculative_tokens=self.k),
                finished_segment_id=self.steering.finished_segment_id,
            ),
        }
        return LoadReport.model_validate({**fields, **changes})

    def adopt(self, settings: Settings) -> None:
        """Take what was decided into force."""
        self.sequence += 1
        issued = IssuedSettings(version=SettingsVersion(incarnation=1, sequence=self.sequence), settings=settings)
        assert self.steering.adopt(issued, self.now_s) == ""


@dataclass
class Fleet:
    """Replicas under one policy, in virtual time; remembers what was dealt."""

    replicas: Sequence[Replica]
    settings: OperatorSettings = AUTO
    overrides: tuple[ModeOverride, ...] = ()
    state: FleetState = field(default_factory=FleetState)
    rng: random.Random = field(default_factory=lambda: random.Random(1))
    now_s: float = 0.0
    decisions: dict[str, Settings] = field(default_factory=dict)
    dealt: dict[int, tuple[str, int, int]] = field(default_factory=dict)
    refusals: list[str] = field(default_factory=list)

    def run(self, seconds: float, period_s: float = 0.5) -> None:
        """Let every replica work, report and adopt, period after period."""
        end_s = self.now_s + seconds
        while self.now_s < end_s:
            self.now_s += period_s
            for replica in self.replicas:
                replica.run_until(self.now_s, self.rng)
                self.observe(replica.report())
            self.decide()

    def observe(self, report: LoadReport) -> str:
        """Hand one report to the policy."""
        self.state, ignored = observe(self.state, report, self.now_s, self.settings)
        if ignored:
            self.refusals.append(ignored)
        return ignored

    def decide_only(self) -> None:
        """Decide once and tell nobody."""
        self.decisions, self.state = decide(self.state, self.settings, self.overrides, self.now_s, self.rng)

    def decide(self) -> None:
        """Decide once and hand every replica its decision."""
        self.decide_only()
        for replica in self.replicas:
            decision = self.decisions.get(replica.replica_id)
            if decision is None:
                continue
            replica.adopt(decision)
            for segment in decision.plan.segments if isinstance(decision.plan, Table) else ():
                cell = (replica.replica_id, segment.first_batch_size, segment.num_speculative_tokens)
                assert self.dealt.setdefault(segment.segment_id, cell) == cell

    def planned(self, batch: int) -> int:
        """K that the group's plan gives a batch."""
        plan = next(iter(self.state.groups.values())).plan
        assert plan is not None
        return plan.num_speculative_tokens(batch)


def table(decision: Settings) -> Table:
    """The decision's plan, which must be a table."""
    assert isinstance(decision.plan, Table)
    return decision.plan
