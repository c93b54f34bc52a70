"""The policy as an asyncio service: takes reports, decides once a period, hands settings to parked calls. Knows no Ray.

Clock, store and journal come from outside, so every protocol test runs this very code in virtual time. Fails open towards
replicas (INV-4): `exchange` answers whatever happens, a report that is wrong changes nothing (INV-10), a tick that raises is
journaled and leaves the settings as they were. Fails cold: without the store's word at start the policy begins with its defaults,
takes the operator's stored will up as soon as it can be read, and rises above whatever incarnation replicas name (INV-5).
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from inspect import isawaitable
from typing import Final, TypeVar

import structlog

from nightjar.cluster.api import operations
from nightjar.cluster.api.operations import Answer, Operation, P
from nightjar.cluster.operator.state import OperatorState
from nightjar.cluster.service.fleet_answers import AboutService, ActorIdentity, explanation_of, status_of
from nightjar.cluster.service.mailbox import Mailbox
from nightjar.cluster.service.memory_kills import MemoryKills
from nightjar.cluster.service.other_versions import OtherPolicies, OtherVersions, foreign_protocol, no_other_actors
from nightjar.cluster.service.seed_from import ReadSeed, SeedFrom, is_policy
from nightjar.cluster.storage.checkpoint import LARGE, Checkpoint, KeyValueStore, Remembered
from nightjar.cluster.storage.journal import Journal, entry_of
from nightjar.cluster.storage.learned_file import (
    LearnedFile,
    LearnedFileError,
    chosen_groups,
    learned_file,
    parse_learned_file,
    to_text,
)
from nightjar.cluster.storage.recorder import Moment, Recorder
from nightjar.cluster.telemetry.logs import log_plain_tracebacks
from nightjar.cluster.telemetry.metrics import PUBLISH_PERIOD_S
from nightjar.cluster.telemetry.policy_metrics import PolicyNumbers, policy_numbers
from nightjar.policy.controller import Controller
from nightjar.policy.operator.overrides import effective_mode
from nightjar.policy.priors import exported
from nightjar.policy.status.stock_table import stock_tables
from nightjar.policy.wire.explanation import Explanation
from nightjar.policy.wire.mode import Mode
from nightjar.policy.wire.operator import OperatorSettings
from nightjar.policy.wire.record import MAX_REASON_LENGTH, WireError
from nightjar.policy.wire.report import DrafterState, LoadReport
from nightjar.policy.wire.settings import ExchangeReply, IssuedSettings
from nightjar.policy.wire.status import FleetStatus

IDLE_EXIT_S: Final = 600.0
"""Without a report for so long, the actor serves nobody and leaves; the next replica creates another."""

T = TypeVar("T")

log = structlog.get_logger(__name__)


class PolicyService:
    """One fleet's policy. `start` before use, `stop` at the end; everything runs on one event loop.

    `clock` gives seconds since the epoch and never steps back, so an expiry in it means the same to the next actor; `retire` is
    called once when no report came for IDLE_EXIT_S, and a policy without one waits for reports for ever. `publish` is shown the
    policy every PUBLISH_PERIOD_S, also while deciding is stuck; it must not wait. `recorder` notes what a replay needs (INV-7);
    without one nothing is noted. `other_policies` knows of those that may grant beside this one; without it there are none.
    `memory_kills` knows of replicas that Ray killed.
    """

    def __init__(
        self,
        *,
        store: KeyValueStore,
        journal: Journal,
        clock: Callable[[], float],
        identity: ActorIdentity,
        retire: Callable[[], None] | None,
        publish: Callable[[PolicyNumbers], None],
        read_seed: ReadSeed,
        recorder: Recorder | None = None,
        other_policies: OtherPolicies | None = None,
        memory_kills: MemoryKills | None = None,
    ) -> None:
        log_plain_tracebacks()
        self._checkpoint = Checkpoint(store)
        self._others = other_policies or OtherVersions(no_other_actors)
        self._clock = clock
        self._retire = retire
        self._publish = publish
        self._last_report_at_s = now_s = clock()
        self._mailbox = Mailbox(incarnation=0)
        self._controller = Controller(OperatorSettings(), self._mailbox)
        self._operator = OperatorState(self._checkpoint, self._controller, identity.service)
        self._drafter_states: dict[str, DrafterState] = {}
        self._causes: list[str] = []
        self._ticks = 0
        self._fleet_id = uuid.uuid4().hex
        self._seed_from = SeedFrom(
            read_seed, self._take_seed, lambda file: file.about.fleet_id == self._fleet_id, self._heed_predecessor
        )
        self._about = AboutService(identity, now_s, now_s, journal, recorder or Recorder(), memory_kills or MemoryKills())
        self._kept_waiting = self._controller.state.waiting
        self._handlers = dict(
            (
                operations.STARTING_MODE.done_by(lambda replica_id, application: str(self.starting_mode(replica_id, application))),
                operations.CONFIGURE.done_by(self.configure),
                operations.STATUS.done_by(self.status),
                operations.EXPLAIN.done_by(self.explain),
                operations.LEARNED.done_by(self.learned),
                operations.MODE.done_by(self.set_mode),
                operations.FREEZE.done_by(self.freeze),
                operations.CANARY.done_by(self.canary),
                operations.IMPORT.done_by(self.import_file),
            )
        )
        self._decide_now = asyncio.Event()
        self._tasks: tuple[asyncio.Task[None], ...] = ()

    async def start(self) -> None:
        """Take up where the predecessor stopped, as far as the store tells, and begin to decide."""
        remembered = await self._checkpoint.load()
        self._take_up(remembered)
        self._kept_waiting = self._controller.state.waiting
        self._controller.await_leases(self._clock() + await self._others.notice_s())
        self._controller.note_learned()
        self._mailbox.incarnation = remembered.incarnation + 1
        self._checkpoint.keep(incarnation=self.incarnation, fleet_id=self._fleet_id)
        await self._checkpoint.save()
        self._causes = [f"policy started as incarnation {self.incarnation}", *remembered.problems]
        log.info("policy_started", incarnation=self.incarnation, journal=self._about.journal.path, mode=str(self._settings.mode))
        loops = (
            self._keep_deciding(),
            self._keep_publishing(),
            self._checkpoint.keep_saving(),
            self._others.keep_looking(),
            self._about.memory_kills.keep_looking(),
        )
        self._tasks = tuple(asyncio.create_task(loop) for loop in loops)
        self._seed_from.follow(self._settings.seed_from)

    def _take_up(self, remembered: Remembered) -> None:
        """Go on from what the store gave, except where an operator or the fleet itself has said something since."""
        self._operator.take_up(remembered, self._clock())
        self._fleet_id = remembered.fleet_id or self._fleet_id
        canaries = remembered.canary
        self._controller.take_up(
            remembered.learned, self._clock(), waiting=remembered.waiting, canary=canaries.trial, past_canaries=canaries.past
        )

    def _take_up_late(self, found: Remembered) -> None:
        self._take_up(found)
        policy = self._controller
        self._checkpoint.keep(overrides=policy.overrides, freeze=policy.freeze, fleet_id=self._fleet_id)
        self._seed_from.follow(self._settings.seed_from)
        self._causes += [f"the store can be read again: mode {self._settings.mode}", *found.problems]
        log.info("stored_state_taken_up", mode=str(self._settings.mode), overrides=len(found.overrides))

    async def stop(self) -> None:
        """Stop deciding. Parked calls end with their period."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._seed_from.stop()

    async def save(self) -> None:
        """Store what is not stored yet: what was learned, for one, is written every few seconds. Never raises."""
        await self._checkpoint.save()

    @property
    def _settings(self) -> OperatorSettings:
        return self._controller.settings

    @property
    def incarnation(self) -> int:
        """Of this policy; it may rise while it runs."""
        return self._mailbox.incarnation

    async def exchange(self, payload: bytes) -> ExchangeReply:
        """Take a LoadReport and answer with settings newer than the replica runs, or without any where they still hold.

        Waits up to `exchange_period_s` for news. Never raises: what cannot be taken is refused, with the reason (INV-4, INV-10).
        """
        try:
            return await self.exchange_report(payload)
        except WireError as error:
            return ExchangeReply(incarnation=self.incarnation, refused=str(error)[:MAX_REASON_LENGTH])

    async def exchange_report(self, payload: bytes) -> ExchangeReply:
        """The same, but for bytes that are no report: refused and counted as there, they raise WireError."""
        try:
            return await self._exchange(payload)
        except WireError as error:
            self._refuse(str(error))
            raise
        except Exception as error:
            log.exception("exchange_failed")
            return self._refuse(f"the policy failed on this report: {type(error).__name__}: {error}")

    async def _exchange(self, payload: bytes) -> ExchangeReply:
        report = LoadReport.from_wire(payload)
        if refused := foreign_protocol(report):
            return self._refuse(refused)
        now_s, before = self._clock(), self._controller.state
        taken = self._controller.take(report, now_s)
        if not taken.is_admitted:
            return self._refuse(taken.refused)
        self._about.recorder.observed(before, self._controller.state, payload, now_s, self._settings)
        self._last_report_at_s = now_s
        refused = self._about.refusals.note(taken.refused, now_s) if taken.refused else ""
        self._about.reports += not taken.refused
        issued = await self._mailbox.collect(report.replica_id, self._settings.exchange_period_s)
        return ExchangeReply(incarnation=self.incarnation, issued=issued, refused=refused)

    async def call(self, operation: Operation[P, Answer], *arguments: P.args, **_: P.kwargs) -> Answer:
        """Do what an operator asks for. Raises OperationError."""
        answer = self._handlers[operation.name](*arguments)
        done: Answer = await answer if isawaitable(answer) else answer
        return done

    async def configure(self, values: Mapping[str, object]) -> operations.ConfigureAnswer:
        """Replace the operator's settings as a whole; a wrong set changes nothing and its error shows in `status`."""
        answer, change = self._operator.configure(values)
        self._seed_from.follow(self._settings.seed_from)
        return await self._changed_by_operator(answer, change)

    async def set_mode(self, values: Mapping[str, object]) -> operations.ModeAnswer:
        """Set or take back one override; a wrong request changes nothing."""
        answer = await self._changed_by_operator(*self._operator.set_mode(values, self._clock()))
        return {**answer, "outlives": self._outlives} if answer["override"] is not None else answer

    async def freeze(self, values: Mapping[str, object]) -> operations.FreezeAnswer:
        """Begin, prolong or end a freeze; a wrong request changes nothing."""
        answer = await self._changed_by_operator(*self._operator.set_freeze(values, self._clock()))
        return {**answer, "outlives": self._outlives} if answer["freeze"] is not None else answer

    @property
    def _outlives(self) -> operations.Outlives:
        identity = self._about.identity
        return {
            "head": identity.has_fault_tolerance,
            "upgrade": is_policy(self._settings.seed_from),
            "folder": identity.state_folder,
            "process": identity.outlives_process,
        }

    async def canary(self, values: Mapping[str, object]) -> operations.CanaryAnswer:
        """Begin, end or promote a canary; a wrong request changes nothing."""
        return await self._changed_by_operator(*self._operator.canary(values, self._clock()))

    def learned_file(self) -> LearnedFile:
        """What the fleet has learned, for a file. Reads values that nobody changes, so that it may be called from any thread."""
        now_s, by_hand, state = self._clock(), self._operator.by_hand(self._clock()), self._controller.state
        tables = stock_tables(state, self._settings, now_s)
        return learned_file(exported(state, now_s), self.incarnation, now_s, self._fleet_id, by_hand, tables)

    async def learned(self) -> bytes:
        """The same as the file's bytes. Written in a thread: the largest takes a while."""
        return await asyncio.to_thread(lambda: to_text(self.learned_file()))

    async def import_file(self, content: bytes, group_ids: Sequence[str]) -> operations.ImportAnswer:
        """Take the groups of a file's bytes, or those named. Read in a thread, for the same reason."""
        try:
            return await self.import_learned(await asyncio.to_thread(parse_learned_file, content), group_ids)
        except LearnedFileError as error:
            raise operations.refused(str(error)) from error

    async def import_learned(self, file: LearnedFile, group_ids: Sequence[str] = ()) -> operations.ImportAnswer:
        """Take the groups of a file, or those named, as a prior of groups of the same key, now or when they appear.

        Raises LearnedFileError for one that it does not hold.
        """
        chosen = chosen_groups(file, group_ids)
        self._controller.seed(chosen.groups)
        replicas = Counter(replica.group_id for replica in self._controller.state.replicas.values())
        taken = [(group.key.group_id, len(group.cells)) for group in chosen.groups]
        groups = [operations.ImportedGroup(group_id=name, cells=cells, replicas=replicas[name]) for name, cells in taken]
        return await self._changed_by_operator(operations.ImportAnswer(groups=groups), f"imported: {chosen.in_words()}")

    def _take_seed(self, place: str, file: LearnedFile) -> None:
        self._controller.seed(file.groups)
        self._causes.append(f"seeded from {place}: {file.in_words()}")
        log.info("seeded", cause=self._causes[-1])
        self._decide_now.set()

    def _heed_predecessor(self, place: str, file: LearnedFile | None) -> bool:
        """Take what is set by hand at the policy of the cluster before, if it answered. Whether its word still counts."""
        now_s = self._clock()
        news = self._operator.hear(place, file.about, now_s) if file is not None else []
        self._causes += news
        for told in news:
            log.warning("handed_over", news=told)
        if news:
            self._decide_now.set()
        return self._operator.heeds(now_s)

    async def _changed_by_operator(self, answer: T, cause: str) -> T:
        """The answer, after what it changed is stored and about to be decided on; without a cause nothing has changed."""
        if cause:
            self._causes.append(cause)
            log.info("changed_by_operator", cause=cause)
            self._decide_now.set()
            await self._checkpoint.save(but=LARGE)
        return answer

    def status(self) -> FleetStatus:
        """The fleet, its groups and every replica as of now."""
        now_s, asks_policy = self._clock(), is_policy(self._settings.seed_from)
        return status_of(
            self._about,
            self._controller,
            now_s,
            settings_error=self._operator.settings_error,
            seed_problem=self._seed_from.problem,
            seed_notice=self._seed_from.notice,
            not_known_before=self._operator.not_known_before(
                now_s, asks_policy=asks_policy, is_first_reading=self._seed_from.is_first_reading
            ),
        )

    def starting_mode(self, replica_id: str, application: str) -> Mode:
        """The mode that a replica gets that starts now."""
        return effective_mode(replica_id, application, self._settings.mode, self._controller.overrides, self._clock())[0]

    def explain(self, asked: str) -> Explanation:
        """Why the K of one replica is what it is, asked for by its id or a part of it that no other has."""
        return explanation_of(asked, self._controller, self._clock())

    def tick(self) -> None:
        """Decide once and journal it, unless the first settings wait for a seed. Never raises: where deciding fails, the settings
        in force stay.
        """
        if self._waits_for_seed:
            return
        try:
            self._tick()
        except Exception:
            log.exception("tick_failed", tick=self._ticks)

    @property
    def _waits_for_seed(self) -> bool:
        """Only a fleet that has learned nothing waits, for a few seconds, and no person's word waits with it."""
        policy = self._controller
        is_planned = policy.settings.mode.kind in {"auto", "shadow"} and not policy.overrides
        is_open = policy.freeze is None  # a frozen fleet runs the plans that it has
        return not policy.learned.groups and is_planned and is_open and self._seed_from.is_first_reading

    def _tick(self) -> None:
        self._ticks += 1
        now_s = self._clock()
        seed = (self.incarnation << 32) + self._ticks
        error, decided = "", dict[str, IssuedSettings]()
        try:
            decided = self._decide(now_s, seed)
        except Exception as failure:
            log.exception("decisions_failed", tick=self._ticks)
            error = f"{type(failure).__name__}: {failure}"
        causes, self._causes = tuple(self._causes), []
        if has_learned := self._controller.note_learned():
            self._checkpoint.keep(learned=self._controller.learned)
        fleet = self._controller.state
        if fleet.waiting is not self._kept_waiting:
            self._kept_waiting = fleet.waiting
            self._checkpoint.keep(waiting=tuple(fleet.waiting.values()))
        drafter_states = {name: replica.report.snapshot.drafter_state for name, replica in fleet.replicas.items()}
        has_turned, self._drafter_states = drafter_states != self._drafter_states, drafter_states
        if decided or causes or has_learned or has_turned or error:
            self._about.journal.append(entry_of(self._controller, self._ticks, now_s, seed, causes, decided, error))

    def _decide(self, now_s: float, seed: int) -> dict[str, IssuedSettings]:
        policy, found = self._controller, self._checkpoint.take_found()
        if found is not None:
            self._take_up_late(found)
        if policy.rise_above(found.incarnation if found is not None else 0, now_s):
            self._causes.append(f"incarnation rose to {self.incarnation}: a report or the store named another policy's")
            log.warning("incarnation_rose", incarnation=self.incarnation)
            self._checkpoint.keep(incarnation=self.incarnation)
        self._causes += self._others.hold_back(policy, now_s)
        self._causes += self._operator.drop_expired(now_s)
        moment = Moment(self.incarnation, self._ticks, now_s, seed, policy.state, policy.settings, policy.overrides)
        try:
            issued = policy.tick(now_s, random.Random(seed))  # noqa: S311 - exploration, no secret; a replay draws the same
        except Exception as failure:
            self._about.recorder.failed(moment, f"{type(failure).__name__}: {failure}")
            raise
        self._about.decided_at_s = now_s
        self._about.recorder.decided(moment, policy.decisions, policy.state)
        for news in self._operator.keep_canary(moment.state.canary):
            self._causes.append(news)
            log.warning("canary", news=news)
        return issued

    async def _keep_deciding(self) -> None:
        while self._retire is None or self._clock() - self._last_report_at_s < IDLE_EXIT_S:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._settings.decision_period_s):
                    await self._decide_now.wait()
            self._decide_now.clear()
            self.tick()
        log.info("policy_retired", idle_s=IDLE_EXIT_S)
        await self._checkpoint.save()
        self._retire()

    async def _keep_publishing(self) -> None:
        while True:
            try:
                about, now_s = self._about, self._clock()
                self._publish(policy_numbers(self._controller, about.decided_at_s, about.reports, about.refusals.count, now_s))
            except Exception:
                log.exception("publishing_failed")
            await asyncio.sleep(PUBLISH_PERIOD_S)

    def _refuse(self, problem: str) -> ExchangeReply:
        return ExchangeReply(incarnation=self.incarnation, refused=self._about.refusals.note(problem, self._clock()))


def epoch_clock() -> Callable[[], float]:
    """The service's clock outside of tests: seconds since the epoch, read once and monotonic from then on, so that it does not step
    when the system's time is set."""
    offset_s = time.time() - time.monotonic()
    return lambda: time.monotonic() + offset_s
