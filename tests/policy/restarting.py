"""Replicas that want to restart, and a policy on the far end of a way that loses, doubles and reorders; all in virtual time."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from nightjar.policy.controller import Controller
from nightjar.policy.issuer import Issuer
from nightjar.policy.state import FleetState
from nightjar.policy.step.drafter import DrafterLife
from nightjar.policy.step.steering import Steering
from nightjar.policy.wire.operator import OperatorSettings, parse_operator_settings
from nightjar.policy.wire.report import Counters, DrafterState, EngineLoad, EngineSnapshot, GroupKey, LoadReport
from nightjar.policy.wire.settings import IssuedSettings

KEY = GroupKey(target="llama-8b", draft="llama-1b", drafter_kind="draft_model", max_num_speculative_tokens=3, max_num_seqs=4)
ORDERED = parse_operator_settings(
    {"mode": "auto", "planner": "fixed", "num_speculative_tokens": 3, "max_lease_ttl_s": 12.0, "max_restart_slowdown": 1.0}
)
STEP_S = 0.05
LAG_TOKENS = 2000


@dataclass
class RestartingReplica:
    """One engine with one request. `step` runs K = `wanted` as far as its drafter's life allows."""

    replica_id: str
    node_id: str = "n1"
    engine_id: str = "engine-1"
    wanted: int = 3
    lag: int = LAG_TOKENS
    now_s: float = 0.0
    steps: int = 0
    held_back: int = 0
    """Steps whose drafter had missed nothing and that did not draft all the same."""
    reports: int = 0
    life: DrafterLife = field(default_factory=lambda: DrafterLife(can_be_dormant=True))
    steering: Steering = field(default_factory=lambda: Steering(max_num_speculative_tokens=3, max_num_seqs=4))

    def __post_init__(self) -> None:
        self.life.before_step(0, self.lag, self.now_s)

    @property
    def catches_up(self) -> bool:
        return self.life.state is DrafterState.CATCHING_UP

    def run_until(self, now_s: float) -> None:
        while self.now_s < now_s:
            self.now_s = min(self.now_s + STEP_S, now_s)
            self.steps += 1
            order = self.life.before_step(self.wanted, self.lag, self.now_s)
            k = order.num_speculative_tokens
            self.held_back += k != self.wanted and not self.lag
            self.lag = max(self.lag - order.catch_up_tokens, 0) if k or order.catch_up_tokens else self.lag + 1
            self.life.after_step(order, [1] * k, [1] * k, self.now_s)

    def fall_behind(self) -> None:
        """Load was high for a while: the plan was off and prompts came in."""
        self.life.before_step(0, self.lag, self.now_s)
        self.lag = LAG_TOKENS

    def report(self) -> LoadReport:
        self.reports += 1
        return LoadReport(
            replica_id=self.replica_id,
            application="chat",
            node_id=self.node_id,
            group=KEY,
            report_number=self.reports,
            snapshot=EngineSnapshot(
                counters=Counters(engine_id=self.engine_id, step_count=self.steps),
                load=EngineLoad(decode_batch_size=1),
                drafter_state=self.life.state,
                finished_wish_id=self.life.finished_wish_id,
                restart_wish=self.life.wish(self.lag, self.now_s),
                settings_version=self.steering.settings_version,
            ),
        )

    def adopt(self, issued: IssuedSettings) -> None:
        """As the step loop does: the fence decides (INV-5), then the drafter hears of it. No restart here goes without a lease."""
        if not self.steering.adopt(issued, self.now_s):
            leased_only = issued.settings.restarts.model_copy(update={"micro_restart_tokens": 0})
            self.life.adopt(issued.settings.model_copy(update={"restarts": leased_only}), self.now_s)


class Policy(Controller):
    """One policy incarnation after the other, over the same fleet."""

    def __init__(self, settings: OperatorSettings = ORDERED) -> None:
        super().__init__(settings)
        self.rng = random.Random(0)

    def die_and_come_back(self, now_s: float) -> None:
        self.issuer = Issuer(self.issuer.incarnation + 1)
        self.state = FleetState()
        self.await_leases(now_s)

    def decide(self, now_s: float) -> dict[str, IssuedSettings]:
        """Tick once; the settings in force for each replica."""
        self.tick(now_s, self.rng)
        return {replica_id: slot.issued for replica_id, slot in self.issuer.slots.items() if slot.issued is not None}
