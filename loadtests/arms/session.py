"""How a running system is put into an arm and seen to be in it, and how what ran before is put back at the end.

All of it goes over the policy's API, as an operator would do it, so it stands in the journal, and each mode can expire by itself
should this program be killed. Every wait has an end. Fails with TurnError in one line: what did not happen in time and what was
seen, or what has to be taken back first; with OperationError where the API does not answer.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import httpx
from pydantic import SecretStr

from nightjar.cluster.api.http_client import HttpClient
from nightjar.cluster.api.operations import IMPORT, LEARNED, MODE, STATUS, Body, OperationError
from nightjar.loadtests.arms.arm import Arm, TurnError
from nightjar.policy.wire.status import FleetStatus, OverrideStatus

PATIENCE_S: Final = 60.0
"""For a steady fleet, and again for every arm."""
STEADY_S: Final = 4.0
"""So long does the number of replicas stand still before it is taken for all of them."""
POLL_PERIOD_S: Final = 0.2
PUT_BACK_TRIES: Final = 5
PUT_BACK_PAUSE_S: Final = 3.0
TIMEOUT_S: Final = 5.0


class Session:
    """One system that runs arms. `prepare` first; `put_back` last and always, where the system is not this program's own."""

    def __init__(
        self,
        api: HttpClient,
        reason: str,
        *,
        learned_file: Path | None = None,
        look: Callable[[], FleetStatus | None] | None = None,
        patience_s: float = PATIENCE_S,
        replicas: int = 0,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """`reason` stands in the journal.

        learned_file  keeps what the fleet knew before an arm made it forget; without one that is not given back
        look          sees the fleet in place of the API: None where it does not answer just now
        replicas      how many there are, where they are known without `prepare`
        """
        self._api = api
        self._reason = reason
        self._learned_file = learned_file
        self._look = look or (lambda: api.call(STATUS))
        self._patience_s = patience_s
        self._has_reset = False
        self._has_set = False
        self._clock = clock
        self._sleep = sleep
        self._replicas = replicas
        self._before: OverrideStatus | None = None
        self._prepared_at_s: float | None = None

    def prepare(self) -> FleetStatus:
        """The fleet, once the number of its replicas stands still. What is set by hand is remembered. Raises TurnError."""
        deadline_s, known, since_s, seen = self._clock() + self._patience_s, 0, self._clock(), "the policy knows no replica"
        while self._clock() <= deadline_s:
            status = self._look()
            count = len(status.replicas) if status else 0
            if count != known:
                known, since_s, seen = count, self._clock(), f"{count} replicas a moment ago"
            if status and known and self._clock() - since_s >= STEADY_S:
                return self._prepared(status)
            self._sleep(POLL_PERIOD_S)
        raise TurnError(f"no steady fleet within {self._patience_s:g} s: {seen}")

    def _prepared(self, status: FleetStatus) -> FleetStatus:
        for override in status.overrides:
            if override.scope != "fleet":
                raise TurnError(
                    f"{override.scope} {override.name} runs {override.mode} by hand, which no arm changes; take it back: "
                    f"nightjar mode default --{override.scope} {override.name}"
                )
        self._replicas = len(status.replicas)
        self._before = next(iter(status.overrides), None)
        self._prepared_at_s = self._clock()
        return status

    @property
    def mode_before(self) -> str:
        """What ran before, in words."""
        before = self._before
        if before is None:
            return "the settings"
        return f"{before.mode} by hand" + (f", planner {before.planner}" if before.planner else "")

    def run(self, arm: Arm, *, resets: bool = False, for_s: float | None = None) -> FleetStatus:
        """Run an arm, for so many seconds at most; the status in which every replica confirmed it. Raises TurnError.

        `resets`: planners begin it without what they have learned.
        """
        if resets and self._learned_file is not None and not self._learned_file.exists():
            self._learned_file.write_bytes(self._api.call(LEARNED))
        self._has_reset |= resets
        request: Body = {"mode": str(arm.mode), "scope": "fleet", "reason": self._reason}
        if for_s is not None:
            request["for_s"] = for_s
        if arm.planner is not None:
            request["planner"] = arm.planner
        if resets:
            request["learned"] = "reset"
        self._has_set = True
        self._api.call(MODE, request)
        set_at_s = self._clock()
        problem = ""
        while self._clock() - set_at_s <= self._patience_s:
            asked_at_s = self._clock()
            try:
                status = self._look()
            except OperationError as error:  # a policy that starts anew
                status, problem = None, str(error)
            if status is not None:
                problem = not_applied(status, arm, self._replicas, asked_at_s - set_at_s)
                if not problem:
                    return status
            self._sleep(POLL_PERIOD_S)
        raise TurnError(
            f"arm {arm.name} was not applied by every replica within {self._patience_s:g} s: "
            f"{problem or 'the policy does not answer'}"
        )

    def put_back(self) -> str:
        """Have the system run what it ran before; returns that in words, empty where nothing was touched. Raises TurnError."""
        if not self._has_set or self._prepared_at_s is None:
            return ""
        problem = ""
        for attempt in range(PUT_BACK_TRIES):
            if attempt:
                self._sleep(PUT_BACK_PAUSE_S)
            try:
                self._api.call(MODE, put_back_request(self._before, self._clock() - self._prepared_at_s))
                if self._has_reset and self._learned_file is not None:
                    self._api.call(IMPORT, self._learned_file.read_bytes(), ())
                return self.mode_before
            except OperationError as error:
                problem = str(error)
        raise TurnError(
            f"what ran before ({self.mode_before}) is not put back ({problem}); `nightjar mode default` takes back what is set"
        )


def not_applied(status: FleetStatus, arm: Arm, replicas: int, set_for_s: float) -> str:
    """Why an arm that was set `set_for_s` ago is not in force everywhere yet; empty where it is."""
    if status.policy.decision_age_s >= set_for_s:
        return "the policy has not decided since"
    if len(status.replicas) < replicas:
        return f"{len(status.replicas)} of {replicas} replicas report"
    for replica in status.replicas:
        if replica.mode != arm.mode:
            return f"replica {replica.replica_id} runs {replica.mode} ({replica.reason})"
        if not replica.settings_confirmed:
            return f"replica {replica.replica_id} has not confirmed its settings"
    planners = {group.planner for group in status.groups if group.replicas}
    if arm.planner is not None and planners != {arm.planner}:
        return f"groups are planned by {', '.join(sorted(planners)) or 'nobody'}"
    return ""


def put_back_request(before: OverrideStatus | None, since_s: float) -> Body:
    """The body that sets again what was set by hand `since_s` ago; what would have ended meanwhile is taken back."""
    left_s = before.seconds_left - since_s if before is not None and before.seconds_left is not None else None
    if before is None or (left_s is not None and left_s <= 0):
        return {"mode": "default", "scope": "fleet"}
    request: Body = {"mode": str(before.mode), "scope": "fleet", "reason": before.reason}
    if left_s is not None:
        request["for_s"] = left_s
    if before.planner is not None:
        request["planner"] = before.planner
    if before.max_step_ms is not None:
        request["max_step_ms"] = before.max_step_ms
    if before.objective is not None:
        request["objective"] = before.objective
    return request


def service_api(url: str, token: str) -> HttpClient:
    """The API of a running system, writing with `token`. Close it, or use it as a context. Raises OperationError."""
    transport = httpx.HTTPTransport()  # of its own: httpx then takes no proxy from the environment
    return HttpClient(url, token=SecretStr(token) if token else None, timeout_s=TIMEOUT_S, transport=transport)
