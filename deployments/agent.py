"""ReplicaAgent: carries an engine's counters to the policy and the policy's settings to the engine.

One loop beside the serving path, never in it (INV-4). A turn asks the engine for a snapshot and hands it what came down last,
then reports; the policy parks that call until it has news, so a turn takes about one exchange period. A dead, slow or
cut-off policy costs reports and nothing else: the engine keeps the settings it has, and lets them age by itself. The kill
switch does not pass the policy: it wakes the loop and reaches the engine while an exchange is still parked.
Every failure is logged once until it ends, and the next try waits longer. Each snapshot is also what the replica's metrics show.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Final, Protocol

import structlog

from nightjar.cluster.api.operations import OperationError
from nightjar.cluster.telemetry.metrics import PUBLISH_PERIOD_S
from nightjar.deployments.engine_watch import EngineWatch
from nightjar.deployments.steering_level import FULLY, ONLY_OBSERVING, Steered, level_now
from nightjar.policy.exchange import Reporting, backoff_s
from nightjar.policy.wire.mode import Mode
from nightjar.policy.wire.record import MAX_REASON_LENGTH
from nightjar.policy.wire.report import EngineSnapshot, GroupKey, LoadReport, SteeringLevel
from nightjar.policy.wire.settings import EngineCommand, ExchangeReply, IssuedSettings, SettingsVersion

EXCHANGE_TIMEOUT_S: Final = 30.0
"""Well above the longest time that the policy parks a call: `exchange_period_s` is 10 s at most (policy.wire.operator)."""
ENGINE_TIMEOUT_S: Final = 60.0
"""An engine answers between two steps; a step with a long prefill on a CPU takes many seconds."""

log = structlog.get_logger(__name__)


class EngineControl(Protocol):
    """The engine, as the agent sees it."""

    async def exchange(self, command: EngineCommand) -> EngineSnapshot:
        """Apply a command and answer what the engine counted. May raise anything."""


class Policy(Protocol):
    """The policy, as the agent sees it."""

    async def exchange(self, report: LoadReport, timeout_s: float) -> ExchangeReply:
        """Report, and wait for news. May raise anything."""


class Metrics(Protocol):
    """What the agent sees, exported. Neither method may raise or wait."""

    def begin(self) -> None:
        """The agent starts: every counter begins at zero."""

    def observe(self, snapshot: EngineSnapshot, settings_age_s: float) -> None:
        """The engine answered; its settings were last confirmed `settings_age_s` ago."""


@dataclass(frozen=True, slots=True)
class ReplicaIdentity:
    """Who reports, and what is the same in every report."""

    replica_id: str
    application: str
    deployment: str
    node_id: str
    group: GroupKey
    steered: Steered = FULLY  # as the engine started
    notice: str = ""  # what an operator should know of this engine
    rank: int | None = None  # of data parallelism, where the replica has an engine for each

    @property
    def reports_as(self) -> str:
        """The policy's name for this engine: each rank of data parallelism is a replica to it."""
        return self.replica_id if self.rank is None else f"{self.replica_id}-dp{self.rank}"

    @property
    def serving_plainly(self) -> str:
        """Why this engine has no scheduler of ours; empty where it has."""
        return self.steered.reason if self.steered.level is SteeringLevel.PLAINLY else ""

    @property
    def only_observing(self) -> bool:
        """Started in shadow: the engine's arguments are the user's, so its K must not be touched."""
        return self.steered.level is SteeringLevel.OBSERVING


class Failures:
    """Logs a kind of failure once until it ends, and says how long to wait before the next try."""

    def __init__(self, event: str) -> None:
        self._event = event
        self._kinds: set[str] = set()
        self._count = 0

    def failed(self, error: BaseException | str) -> float:
        """Note a failure; seconds to wait."""
        kind = error if isinstance(error, str) else _kind(error)
        if kind not in self._kinds:
            self._kinds.add(kind)
            log.warning(self._event, kind=kind, error=str(error))
        self._count += 1
        return backoff_s(self._count)

    def succeeded(self) -> None:
        """The trouble is over: the next failure of any kind is news again."""
        if self._count:
            log.info("trouble_over", trouble=self._event, failures=self._count)
        self._kinds.clear()
        self._count = 0


def _kind(error: BaseException) -> str:
    """What tells this failure from others, whose words may hold numbers: of a policy's answer also its code, and what led to it."""
    if not isinstance(error, OperationError):
        return type(error).__name__
    cause = f", {type(error.__cause__).__name__}" if error.__cause__ is not None else ""
    return f"{int(error.code)}{cause}"


class ReplicaAgent:
    """The replica loop of one engine. `run` until cancelled; time is the event loop's. `watch` hears of every control call,
    `metrics` of every snapshot.
    """

    def __init__(
        self, *, engine: EngineControl, policy: Policy, identity: ReplicaIdentity, watch: EngineWatch, metrics: Metrics
    ) -> None:
        self._engine = engine
        self._watch = watch
        self._metrics = metrics
        self._policy = policy
        self._identity = identity
        self._local_mode: Mode | None = Mode(kind="shadow") if identity.only_observing else None
        self._refused_mode = ""
        self._woken = asyncio.Event()
        self._reporting = Reporting()
        self._confirmed: SettingsVersion | None = None
        self._running: SettingsVersion | None = None
        self._exchange: asyncio.Task[ExchangeReply] | None = None
        self._engine_retry_s: float | None = None
        self._report_number = 0
        self._engine_failures = Failures("engine_control_failed")
        self._policy_failures = Failures("policy_unavailable")
        self._refusals = Failures("report_or_settings_refused")
        self._turn_failures = Failures("agent_turn_failed")

    @property
    def local_mode(self) -> Mode | None:
        """The kill switch as it stands; None: the policy's mode holds."""
        return self._local_mode

    def set_local_mode(self, mode: Mode | None, error: str = "") -> None:
        """Set the kill switch and return at once; the engine hears of it between its next two steps.

        `error` says why a wanted mode could not be taken; it is shown with the reports. An engine that only observes stays so.
        """
        self._refused_mode = error
        if not self._identity.only_observing:
            self._local_mode = mode
        self._woken.set()

    async def run(self) -> None:
        """Turn after turn, until cancelled. Survives every exception of both ports, and its own."""
        self._reporting = Reporting(next_report_s=self._now_s(), heard_s=self._now_s())
        self._metrics.begin()
        try:
            while True:
                try:
                    await self._turn()
                except Exception as error:  # noqa: BLE001 - a defect of ours: without this loop the engine is unseen and unsteered
                    await asyncio.sleep(self._turn_failures.failed(error))
                else:
                    self._turn_failures.succeeded()
        finally:
            if self._exchange is not None:
                self._exchange.cancel()
                await asyncio.gather(self._exchange, return_exceptions=True)

    async def _turn(self) -> None:
        self._woken.clear()
        snapshot = await self._ask_engine()
        if snapshot is not None and self._exchange is None and self._now_s() >= self._reporting.next_report_s:
            self._report(snapshot)
        await self._wait()
        if self._exchange is not None and self._exchange.done():
            self._take(self._exchange)
            self._exchange = None

    async def _ask_engine(self) -> EngineSnapshot | None:
        confirmed, self._confirmed = self._confirmed, None
        command = EngineCommand(issued=self._settings_to_send(), confirmed=confirmed, local_mode=self._local_mode)
        self._watch.asked(self._now_s())
        try:
            async with asyncio.timeout(ENGINE_TIMEOUT_S):
                snapshot = await self._engine.exchange(command)
        except Exception as error:  # noqa: BLE001 - a report less; Serve's health check deals with a dead or hung engine
            if not isinstance(error, TimeoutError):
                self._watch.failed()
            self._engine_retry_s = self._now_s() + self._engine_failures.failed(error)
            return None
        self._watch.answered(snapshot, self._now_s())
        self._engine_retry_s = None
        if snapshot.refused:
            self._engine_failures.failed(snapshot.refused)
        else:
            self._engine_failures.succeeded()
        self._running = snapshot.settings_version
        self._metrics.observe(snapshot, self._now_s() - self._reporting.heard_s)
        return snapshot

    def _settings_to_send(self) -> IssuedSettings | None:
        """Settings that the engine does not run yet, a new engine's included; none that went unconfirmed for too long."""
        issued = self._reporting.issued
        if issued is None or not issued.version.is_newer_than(self._running):
            return None
        fresh = self._now_s() - self._reporting.heard_s <= issued.settings.settings_max_age_s
        return issued if fresh else None

    def _report(self, snapshot: EngineSnapshot) -> None:
        identity = self._identity
        notices = (self._refused_mode, ONLY_OBSERVING if identity.only_observing else "", identity.notice)
        steered = level_now(identity.steered, identity.group.drafter_kind, snapshot)
        self._report_number += 1
        report = LoadReport(
            replica_id=identity.reports_as,
            application=identity.application,
            deployment=identity.deployment,
            node_id=identity.node_id,
            group=identity.group,
            report_number=self._report_number,
            snapshot=snapshot,
            serving_plainly=identity.serving_plainly[:MAX_REASON_LENGTH],
            steering=steered.level,
            steering_reason=steered.reason[:MAX_REASON_LENGTH],
            layers=steered.layers,
            local_mode=self._local_mode,
            notice="; ".join(part for part in notices if part)[:MAX_REASON_LENGTH],
        )
        self._reporting.begins(snapshot.settings_version, self._now_s())
        self._exchange = asyncio.create_task(self._exchange_within_timeout(report))

    async def _exchange_within_timeout(self, report: LoadReport) -> ExchangeReply:
        async with asyncio.timeout(EXCHANGE_TIMEOUT_S + 1.0):  # the client keeps its own; this holds whatever it does
            return await self._policy.exchange(report, EXCHANGE_TIMEOUT_S)

    async def _wait(self) -> None:
        """Until the exchange ends, the kill switch moves, the engine is asked again, or the next report is due.

        Never longer than metrics keep, also while the policy keeps a call.
        """
        woken = asyncio.create_task(self._woken.wait())
        waiting: set[asyncio.Task[ExchangeReply] | asyncio.Task[bool]] = {woken}
        if self._exchange is not None:
            waiting.add(self._exchange)
        until_s = self._now_s() + PUBLISH_PERIOD_S
        if self._engine_retry_s is not None:
            until_s = self._engine_retry_s
        elif self._exchange is None:
            until_s = min(until_s, self._reporting.next_report_s)
        try:
            timeout_s = max(until_s - self._now_s(), 0.0)
            await asyncio.wait(waiting, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            woken.cancel()

    def _take(self, exchange: asyncio.Task[ExchangeReply]) -> None:
        """What an ended exchange says: news, the confirmation of what runs, a refusal, or a failure."""
        try:
            reply = exchange.result()
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - whatever a client raises: no policy, no news
            self._policy_failures.failed(error)
            self._reporting.fails(self._now_s())
            return
        self._policy_failures.succeeded()
        is_heard, refused = self._reporting.ends(reply, self._now_s())
        if refused:
            self._refusals.failed(refused)
        else:
            self._refusals.succeeded()
        if is_heard and self._reporting.issued is not None:
            self._confirmed = self._reporting.issued.version

    @staticmethod
    def _now_s() -> float:
        return asyncio.get_running_loop().time()
