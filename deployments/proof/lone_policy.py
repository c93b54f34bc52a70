"""The product's policy beside one engine, in the caller's process: snapshots go in, settings come out, nobody else is there.

Runs the controller that the actor runs. Deciding takes its time from whoever calls it, which in a cluster it does not. Fails
loudly: a snapshot that the policy refuses raises RuntimeError.
"""

from __future__ import annotations

import random
from typing import Final

from nightjar.policy.controller import Controller
from nightjar.policy.operator.overrides import ModeOverride
from nightjar.policy.wire.mode import Mode
from nightjar.policy.wire.operator import parse_operator_settings
from nightjar.policy.wire.report import EngineSnapshot, GroupKey, LoadReport
from nightjar.policy.wire.settings import Settings

REPLICA: Final = "replica-1"


class LonePolicy:
    """The planner `fleet` of a fleet of one, in mode auto."""

    def __init__(self, group: GroupKey, seed: int) -> None:
        self._group = group
        self._controller = Controller(parse_operator_settings({"mode": "auto"}))
        self._controller.overrides = (ModeOverride(scope="fleet", mode=Mode(kind="auto")),)  # beside adaptive verification, too
        self._rng = random.Random(seed)  # noqa: S311 - exploration, no secret
        self._reports = 0
        self.exchange_period_s = self._controller.settings.exchange_period_s

    def decide(self, snapshot: EngineSnapshot, now_s: float) -> Settings:
        """What the engine shall run, after what it says of itself; `now_s` is of any steady clock."""
        self._reports += 1
        report = LoadReport(
            replica_id=REPLICA, application="proof", group=self._group, report_number=self._reports, snapshot=snapshot
        )
        refused = self._controller.observe(report, now_s)
        if refused:
            raise RuntimeError(f"the policy refused a report: {refused}")
        self._controller.tick(now_s, self._rng)
        return self._controller.decisions[REPLICA]
