"""Engines too coarse to simulate step by step: what one counts in a second is filled in at once.

For measurements at the size of a fleet, where the policy's own time and memory are what is looked at. A coarse engine decodes a
constant batch, takes its K from the settings as Steering does (plan, then segments in its range), and counts whole seconds of
clean steps with the noise that their number leaves. It is no evidence about goodput: the simulator's engines are.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field
from typing import Protocol

from nightjar.loadtests.simulation.campaign.nominal import Nominal
from nightjar.policy.step.steering import ks_by_batch
from nightjar.policy.wire.batch_buckets import batch_bucket
from nightjar.policy.wire.report import (
    CellCounters,
    Counters,
    DrafterState,
    EngineLoad,
    EngineSnapshot,
    GroupKey,
    LoadReport,
    RestartWish,
    StepTotals,
)
from nightjar.policy.wire.settings import Settings, Table

NOISE = 0.03
"""Standard deviation of a step's log time."""


class Engine(Protocol):
    """What a fleet drives."""

    batch: int
    length: int

    def run(self, seconds: float) -> None:
        """Work for a while."""

    def report(self) -> LoadReport:
        """What the agent would send now."""

    def adopt(self, settings: Settings) -> None:
        """Follow settings from now on."""


@dataclass(slots=True)
class Sums:
    """Cumulative sums of one cell; fields as in CellCounters."""

    steps: int = 0
    step_seconds: float = 0.0
    log_step_seconds: float = 0.0
    log_step_seconds_squared: float = 0.0
    decode_rows: int = 0
    context_tokens: int = 0
    generated_tokens: int = 0
    reached: list[int] = field(default_factory=list)
    accepted: list[int] = field(default_factory=list)


class CoarseEngine:
    """One replica at a constant batch."""

    def __init__(self, replica_id: str, group: GroupKey, nominal: Nominal, batch: int, rng: random.Random) -> None:
        self.batch = batch
        self.length = 0
        self._replica_id = replica_id
        self._group = group
        self._nominal = nominal
        self._rng = rng
        self._survival = nominal.profile.mean_survival()
        self._cells: dict[int, Sums] = {}
        self._steps = 0
        self._reports = 0
        self._lengths = [0] * (group.max_num_seqs + 1)
        self._segments: dict[int, tuple[int, int]] = {}
        self._finished = 0

    def adopt(self, settings: Settings) -> None:
        """Follow settings from now on."""
        assert isinstance(settings.plan, Table)
        self._lengths = ks_by_batch(settings.plan, self._group.max_num_seqs)
        self._segments = {
            segment.segment_id: (segment.num_speculative_tokens, segment.clean_steps)
            for segment in settings.plan.segments
            if segment.segment_id > self._finished and segment.first_batch_size <= self.batch <= segment.last_batch_size
        }

    def run(self, seconds: float) -> None:
        """Work for a while: dealt segments first, then the plan."""
        left_s = seconds
        for segment_id, (length, steps) in sorted(self._segments.items()):
            left_s -= self._count(length, steps)
            self._finished = max(self._finished, segment_id)
        self._segments = {}
        self.length = self._lengths[self.batch]
        steps = int(max(left_s, 0.0) / self._nominal.step_seconds(self.batch, self.length))
        if steps:
            self._count(self.length, steps)

    def report(self) -> LoadReport:
        """What the agent would send now."""
        self._reports += 1
        bucket = batch_bucket(self.batch)
        cells = tuple(
            CellCounters.model_construct(
                batch_bucket=bucket,
                num_speculative_tokens=length,
                steps=sums.steps,
                step_seconds=sums.step_seconds,
                log_step_seconds=sums.log_step_seconds,
                log_step_seconds_squared=sums.log_step_seconds_squared,
                decode_rows=sums.decode_rows,
                context_tokens=sums.context_tokens,
                generated_tokens=sums.generated_tokens,
                reached=tuple(sums.reached),
                accepted=tuple(sums.accepted),
            )
            for length, sums in sorted(self._cells.items())
        )
        totals = tuple(
            StepTotals.model_construct(
                num_speculative_tokens=length,
                steps=sums.steps,
                step_seconds=sums.step_seconds,
                decode_rows=sums.decode_rows,
                prefill_tokens=0,
                generated_tokens=sums.generated_tokens,
                draft_tokens=sum(sums.reached),
                accepted_tokens=sum(sums.accepted),
            )
            for length, sums in sorted(self._cells.items())
        )
        counters = Counters(
            engine_id="engine-1",
            step_count=self._steps,
            busy_seconds=sum(sums.step_seconds for sums in self._cells.values()),
            totals=totals,
            cells=cells,
        )
        load = EngineLoad(decode_batch_size=self.batch, num_running_reqs=self.batch, num_speculative_tokens=self.length)
        return LoadReport(
            replica_id=self._replica_id,
            application="chat",
            group=self._group,
            report_number=self._reports,
            snapshot=EngineSnapshot(counters=counters, load=load, finished_segment_id=self._finished),
        )

    def _count(self, length: int, steps: int) -> float:
        """Count `steps` clean steps at once; returns the seconds they took."""
        sums = self._cells.setdefault(length, Sums(reached=[0] * length, accepted=[0] * length))
        mean_s = self._nominal.step_seconds(self.batch, length)
        drift = NOISE * math.sqrt(steps) * self._rng.gauss(0.0, 1.0)
        log_s = math.log(mean_s)
        rows = steps * self.batch
        took_s = steps * mean_s * math.exp(drift / steps + NOISE * NOISE / 2.0)  # never below the mean of the logarithms
        sums.steps += steps
        sums.step_seconds += took_s
        sums.log_step_seconds += steps * log_s + drift
        sums.log_step_seconds_squared += steps * (log_s * log_s + NOISE * NOISE) + 2 * log_s * drift
        sums.decode_rows += rows
        sums.context_tokens += int(rows * self._nominal.context_per_row)
        sums.generated_tokens += rows
        accepted = rows
        for position in range(length):
            chance = self._survival[position]
            spread = math.sqrt(rows * chance * (1 - chance))
            accepted = min(accepted, max(round(rows * chance + spread * self._rng.gauss(0.0, 1.0)), 0))
            sums.reached[position] += rows
            sums.accepted[position] += accepted
            sums.generated_tokens += accepted
        self._steps += steps
        return took_s


KEY_OF_SLEEPERS = GroupKey(target="model", draft="draft", drafter_kind="draft_model", max_num_speculative_tokens=3, max_num_seqs=64)
BATCH_OF_SLEEPERS = 4
LAG_TOKENS = 4000
RELOAD_S = 3.0
CATCH_UP_S = 1.0


class Sleeper:
    """A replica whose draft lies in host memory: it wishes for it from its first report, and has it back a while after its lease.

    It counts no step: what a storm shows is who may restart when, and that needs no evidence.
    """

    batch = BATCH_OF_SLEEPERS
    length = 0

    def __init__(self, number: int, group_number: int, node: str) -> None:
        self.group_number = group_number
        self.node = node
        self.is_awake = False
        self._replica_id = f"replica-{number}"
        self._group = KEY_OF_SLEEPERS.model_copy(update={"target": f"model-{group_number}"})
        self._reports = 0
        self._now_s = 0.0
        self._back_at_s: float | None = None

    @property
    def is_coming_back(self) -> bool:
        """Whether its weights are being moved back, or it catches up."""
        return self._back_at_s is not None and not self.is_awake

    def adopt(self, settings: Settings) -> None:
        """Begin its restart where there is a lease for it."""
        if settings.restarts.leases and self._back_at_s is None:
            self._back_at_s = self._now_s + RELOAD_S + CATCH_UP_S

    def run(self, seconds: float) -> None:
        """Let the time pass."""
        self._now_s += seconds
        self.is_awake = self._back_at_s is not None and self._now_s >= self._back_at_s

    def report(self) -> LoadReport:
        """What the agent would send now."""
        self._reports += 1
        state = DrafterState.ACTIVE if self.is_awake else DrafterState.RELOADING if self.is_coming_back else DrafterState.OFFLOADED
        wish = RestartWish(wish_id=1, lag_tokens=LAG_TOKENS, reload=True, reload_seconds=RELOAD_S)
        snapshot = EngineSnapshot(
            counters=Counters(engine_id="engine-1"),
            load=EngineLoad(decode_batch_size=self.batch, num_running_reqs=self.batch),
            drafter_state=state,
            finished_wish_id=int(self.is_awake),
            restart_wish=wish if state is DrafterState.OFFLOADED else None,
        )
        return LoadReport(
            replica_id=self._replica_id,
            application="chat",
            node_id=self.node,
            group=self._group,
            report_number=self._reports,
            snapshot=snapshot,
        )
