"""An engine without chance: a step takes 10 ms / speed and gives every request 1 + K tokens. For tests of the fleet side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from nightjar.loadtests.simulation.engine.leases import LeasedRestart
from nightjar.loadtests.simulation.engine.requests import SimulatedRequest
from nightjar.loadtests.simulation.engine.step_account import EngineTotals
from nightjar.loadtests.simulation.profiles import Profile, read_profile
from nightjar.policy.step.counters import StepCount, StepCounters
from nightjar.policy.step.steering import Steering
from nightjar.policy.wire.report import DrafterState, EngineLoad, EngineSnapshot, LoadReport
from nightjar.policy.wire.settings import IssuedSettings

PROFILE: Profile = read_profile("llama-8b-eagle")
STEP_S = 0.01


@dataclass
class FakeEngine:
    """Takes up to `max_num_seqs` requests at a time, first come first served."""

    replica_id: str
    profile: Profile = PROFILE
    speed: float = 1.0
    now_s: float = 0.0
    totals: EngineTotals = field(default_factory=EngineTotals)
    leased_restarts: list[LeasedRestart] = field(default_factory=list)
    drafter_state: DrafterState = DrafterState.IN_SYNC
    guard_trips: int = 0
    acceptance: float = 1.0
    adopted: list[IssuedSettings] = field(default_factory=list)

    def __post_init__(self) -> None:
        limits = self.profile.limits
        self.steering = Steering(
            max_num_speculative_tokens=self.profile.max_num_speculative_tokens, max_num_seqs=limits.max_num_seqs
        )
        self.counters = StepCounters()
        self.running: list[SimulatedRequest] = []
        self.waiting: list[SimulatedRequest] = []
        self.given: dict[int, int] = {}
        self.length, self.held, self.report_number = 0, 0, 0

    @property
    def has_work(self) -> bool:
        return bool(self.running or self.waiting)

    @property
    def decode_batch_size(self) -> int:
        return len(self.running)

    @property
    def num_waiting(self) -> int:
        return len(self.waiting)

    def wait_until(self, now_s: float) -> None:
        if not self.has_work:
            self.now_s = max(self.now_s, now_s)

    def submit(self, request: SimulatedRequest) -> None:
        assert request.number not in self.given
        self.given[request.number] = 0
        self.waiting.append(request)

    def step(self) -> Sequence[SimulatedRequest]:
        assert self.has_work
        room = self.profile.limits.max_num_seqs - len(self.running)
        self.running += self.waiting[:room]
        del self.waiting[:room]
        rows = len(self.running)
        length = self.steering.choose(rows, has_prefill=False, now_s=self.now_s) or 0
        self.held = self.held + 1 if length == self.length else 1
        self.length = length
        self.now_s += STEP_S / self.speed
        answered = []
        for request in self.running:
            assert request.arrival_s <= self.now_s
            if request.first_token_s is None:
                request.first_token_s = self.now_s
            self.given[request.number] += min(1 + length, request.output_tokens - self.given[request.number])
            self.totals.tokens += 1 + length
            if self.given[request.number] == request.output_tokens:
                request.finish_s = self.now_s
                answered.append(request)
        self.running = [request for request in self.running if request not in answered]
        self._count(rows, length)
        return answered

    def report(self) -> LoadReport:
        self.report_number += 1
        return LoadReport(
            replica_id=self.replica_id,
            application="chat",
            group=self.profile.group,
            report_number=self.report_number,
            snapshot=EngineSnapshot(
                counters=self.counters.snapshot(f"engine of {self.replica_id}"),
                load=EngineLoad(decode_batch_size=len(self.running), num_speculative_tokens=self.length),
                settings_version=self.steering.settings_version,
                drafter_state=self.drafter_state,
                finished_segment_id=self.steering.finished_segment_id,
            ),
        )

    def adopt(self, issued: IssuedSettings) -> str:
        refused = self.steering.adopt(issued, self.now_s)
        if not refused:
            self.adopted.append(issued)
        return refused

    def begin_anew(self) -> Sequence[SimulatedRequest]:
        aborted = [*self.waiting, *self.running]
        self.waiting.clear()
        self.running.clear()
        return aborted

    def scale_acceptance(self, factor: float) -> None:
        self.acceptance = factor

    def _count(self, rows: int, length: int) -> None:
        totals = self.totals
        totals.busy_s += STEP_S / self.speed
        totals.steps += 1
        totals.decode_steps += 1
        totals.steps_off += length == 0
        totals.k_sum += length
        self.counters.count(
            StepCount(
                num_speculative_tokens=length,
                decode_rows=rows,
                context_tokens=100 * rows,
                prefill_tokens=0,
                generated_tokens=rows * (1 + length),
                reached=[rows] * length,
                accepted=[rows] * length,
                step_microseconds=round(STEP_S / self.speed * 1e6),
                clean=self.held > 2,
                in_transition=self.held <= 2,
            )
        )
        if self.held > 2:
            self.steering.count_clean_step(rows, length)


def build(number: int, speed: float) -> FakeEngine:
    """What `simulate` takes as its engine builder."""
    return FakeEngine(f"replica-{number}", speed=speed)
