"""A fleet of two behind a fake server: it obeys modes and planners at once, and remembers what it was told."""

from __future__ import annotations

import json
from typing import Any

from nightjar.policy.wire.mode import Mode
from nightjar.policy.wire.record import to_plain
from nightjar.policy.wire.status import OverrideStatus
from tests.loadtests.fake_server import FakeServer
from tests.loadtests.recorded import fleet, replica, totals


class FakeFleet:
    """State behind the fake server's answers."""

    def __init__(self, server: FakeServer) -> None:
        self.server = server
        self.settings = Mode.parse("auto")
        self.overrides: list[OverrideStatus] = []
        self.told: list[dict[str, Any]] = []
        self.steps = 0
        self.confirms = True
        server.set_mode, server.fleet_status = self.set_mode, self.status

    @property
    def override(self) -> OverrideStatus | None:
        return next((one for one in self.overrides if one.scope == "fleet"), None)

    @property
    def mode(self) -> Mode:
        return self.override.mode if self.override else self.settings

    @property
    def planner(self) -> str:
        return (self.override.planner if self.override else None) or "fleet"

    def set_mode(self, body: dict[str, Any]) -> tuple[int, bytes]:
        self.told.append(body)
        self.overrides = [one for one in self.overrides if one.scope != "fleet"]
        if body["mode"] != "default":
            mode = Mode.parse(body["mode"])
            planner, left_s = body.get("planner"), body.get("for_s")
            self.overrides.append(
                OverrideStatus(scope="fleet", mode=mode, planner=planner, reason=body.get("reason", ""), seconds_left=left_s)
            )
        return 200, b'{"override": null}'

    def status(self) -> bytes:
        self.steps += 10
        counted = totals(self.mode.num_speculative_tokens or 0, self.steps)
        mode = str(self.mode if self.confirms else self.settings)
        replicas = (replica(name, counted, mode=mode) for name in ("r1", "r2"))
        overrides = tuple(self.overrides)
        status = fleet(*replicas, mode=str(self.settings), planner=self.planner, overrides=overrides, decision_age_s=-1e9)
        return json.dumps(to_plain(status)).encode()
