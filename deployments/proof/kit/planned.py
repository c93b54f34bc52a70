"""The product's policy beside one engine, in its process: real snapshots go up, real settings come down between two steps.

Runs `policy.fleet` as the actor does, on the real clock. Deciding takes its time from the engine here, which in a cluster it does
not: the contest counts that against us.
"""

from __future__ import annotations

import random
import time
from typing import Any, Final

from nightjar.deployments.engine.arguments import EngineArguments
from nightjar.deployments.proof.driven_engine import DrivenEngine
from nightjar.policy.fleet import decide, empty_fleet, observe
from nightjar.policy.issuing import Issuer
from nightjar.policy.wire.exchange import EngineCommand
from nightjar.policy.wire.operator import parse_operator_settings
from nightjar.policy.wire.report import GroupKey, LoadReport
from nightjar.policy.wire.settings import SettingsVersion

REPLICA: Final = "replica-1"


class PlannedByPolicy:
    """One engine under the fleet planner."""

    def __init__(self, engine: DrivenEngine, arguments: EngineArguments, seed: int) -> None:
        self._engine = engine
        self._group = _group(engine.vllm_config, arguments)
        self._operator = parse_operator_settings({"mode": "auto"})
        self._state = empty_fleet()
        self._rng = random.Random(seed)
        self._reports = 0
        self._issuer = Issuer(incarnation=2)
        """Above all versions of settings that the engine was given by hand before."""
        self._version: SettingsVersion | None = None
        self._next_s = 0.0

    def before_step(self) -> None:
        """Exchange, if the period is over."""
        now_s = time.monotonic()
        if now_s < self._next_s:
            return
        self._next_s = now_s + self._operator.exchange_period_s
        snapshot = self._engine.exchange(EngineCommand(confirmed=self._version))
        self._reports += 1
        report = LoadReport(
            replica_id=REPLICA, application="proof", group=self._group, report_number=self._reports, snapshot=snapshot
        )
        self._state, refused = observe(self._state, report, now_s, self._operator)
        if refused := self._issuer.admit(report) or refused:
            raise RuntimeError(f"the policy refused a report: {refused}")
        decisions, self._state = decide(self._state, self._operator, (), now_s, self._rng)
        issued = self._issuer.post(REPLICA, decisions[REPLICA])
        if issued is None:
            return
        self._version = issued.version
        adopted = self._engine.exchange(EngineCommand(issued=issued))
        if adopted.refused or adopted.fault:
            raise RuntimeError(f"the engine did not follow: {adopted.refused or adopted.fault}")


def _group(config: Any, arguments: EngineArguments) -> GroupKey:
    import vllm

    return GroupKey(
        target="target",
        draft="draft",
        drafter_kind=arguments.drafter_kind,
        accelerator="proof",
        dtype=str(config.model_config.dtype).removeprefix("torch."),
        max_num_speculative_tokens=arguments.max_num_speculative_tokens,
        max_num_seqs=config.scheduler_config.max_num_seqs,
        engine_version=vllm.__version__,
        graph_tiers=arguments.graph_tiers,
    )
