"""Stand-ins for what surrounds the policy service: a store, a journal and a replica that obeys the protocol."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

import pytest

from nightjar.cluster.api.operations import OperationError
from nightjar.cluster.service.fleet_answers import ActorIdentity
from nightjar.cluster.service.memory_kills import MemoryKills
from nightjar.cluster.service.other_versions import OtherPolicies
from nightjar.cluster.service.policy_service import PolicyService
from nightjar.cluster.service.seed_from import ReadSeed
from nightjar.cluster.storage.checkpoint import KeyValueStore, StoreError
from nightjar.cluster.storage.journal import JournalEntry
from nightjar.cluster.storage.learned_file import LearnedFile, LearnedFileError
from nightjar.cluster.storage.recorder import Recorder
from nightjar.cluster.telemetry.policy_metrics import PolicyNumbers
from nightjar.policy.wire.mode import Mode
from nightjar.policy.wire.report import (
    CellCounters,
    Counters,
    DrafterState,
    EngineLoad,
    EngineSnapshot,
    GroupKey,
    LoadReport,
    StepTotals,
)
from nightjar.policy.wire.settings import ExchangeReply, IssuedSettings, Settings, SettingsVersion

EPOCH_S = 1_700_000_000.0
HEAD = ActorIdentity(pid=1, node_id="head")
GROUP = GroupKey(target="smollm2", drafter_kind="draft_model", max_num_speculative_tokens=5, max_num_seqs=8)


@dataclass
class MemoryStore:
    """A key-value store that fails when told to."""

    values: dict[str, bytes] = field(default_factory=dict)
    is_reachable: bool = True
    delay_s: float = 0.0
    puts: list[tuple[str, bytes]] = field(default_factory=list)

    async def get(self, key: str) -> bytes | None:
        await self._answer(key)
        return self.values.get(key)

    async def put(self, key: str, value: bytes) -> None:
        await self._answer(key)
        self.puts.append((key, value))
        self.values[key] = value

    async def _answer(self, key: str) -> None:
        await asyncio.sleep(self.delay_s)
        if not self.is_reachable:
            raise StoreError(f"key {key}: unreachable")


@dataclass
class MemoryJournal:
    """A journal in a list."""

    entries: list[JournalEntry] = field(default_factory=list)
    path: str = ""

    def append(self, entry: JournalEntry) -> None:
        self.entries.append(entry)

    def holds_s(self, now_s: float) -> float | None:
        return None

    @property
    def causes(self) -> list[str]:
        return [cause for entry in self.entries for cause in entry.causes]


def loop_clock() -> Callable[[], float]:
    """Seconds since a made-up epoch, on the running loop's (virtual) time."""
    return lambda: EPOCH_S + asyncio.get_running_loop().time()


async def no_seed(place: str) -> LearnedFile:
    """A world without files."""
    raise LearnedFileError("no such file")


Reached = Callable[[PolicyService], PolicyService]
"""How replicas reach a service: as Ray carries a call, or over HTTP (over_http.py). Operators' calls go to the service itself."""


def directly(service: PolicyService) -> PolicyService:
    """As the actor has it."""
    return service


each_way: Reached = directly
"""What `running_service` does; the fixture of this name has a test run both ways."""


@asynccontextmanager
async def running_service(
    store: KeyValueStore | None = None,
    journal: MemoryJournal | None = None,
    retire: Callable[[], None] | None = lambda: None,
    publish: Callable[[PolicyNumbers], None] = lambda seen: None,
    read_seed: ReadSeed = no_seed,
    other_policies: OtherPolicies | None = None,
    memory_kills: MemoryKills | None = None,
    identity: ActorIdentity = HEAD,
    recorder: Recorder | None = None,
) -> AsyncIterator[PolicyService]:
    """A started policy service; its tasks end with the block."""
    service = PolicyService(
        store=store or MemoryStore(),
        journal=journal or MemoryJournal(),
        clock=loop_clock(),
        identity=identity,
        retire=retire,
        publish=publish,
        read_seed=read_seed,
        other_policies=other_policies,
        memory_kills=memory_kills,
        recorder=recorder,
    )
    await service.start()
    try:
        yield each_way(service)
    finally:
        await service.stop()


@dataclass
class Replica:
    """What an agent and its engine do: report what they run, adopt what is newer, count steps."""

    replica_id: str = "r1"
    application: str = "chat"
    engine_id: str = "e1"
    group: GroupKey = GROUP
    issued: IssuedSettings | None = None
    steps: int = 0
    reports: int = 0
    drafter_state: DrafterState = DrafterState.ACTIVE

    def run(self, steps: int) -> None:
        """Count clean steps of 10 ms at batch 1 and K = 0."""
        self.steps += steps

    def report(self) -> LoadReport:
        self.reports += 1
        seconds = self.steps * 0.01
        cell = CellCounters(
            batch_bucket=0,
            num_speculative_tokens=0,
            steps=self.steps,
            step_seconds=seconds,
            log_step_seconds=self.steps * -4.605170186,
            log_step_seconds_squared=self.steps * 21.2075924,
            decode_rows=self.steps,
            context_tokens=100 * self.steps,
            generated_tokens=self.steps,
        )
        totals = StepTotals(
            num_speculative_tokens=0, steps=self.steps, step_seconds=seconds, decode_rows=self.steps, generated_tokens=self.steps
        )
        counters = Counters(
            engine_id=self.engine_id,
            step_count=self.steps,
            busy_seconds=seconds,
            totals=(totals,),
            cells=(cell,) if self.steps else (),
        )
        return LoadReport(
            replica_id=self.replica_id,
            application=self.application,
            group=self.group,
            report_number=self.reports,
            snapshot=EngineSnapshot(
                counters=counters,
                load=EngineLoad(decode_batch_size=1),
                settings_version=self.version,
                drafter_state=self.drafter_state,
            ),
        )

    def apply(self, reply: ExchangeReply) -> None:
        """Adopt settings that are newer than what runs."""
        if reply.issued is None:
            return
        if reply.issued.version.is_newer_than(self.version):
            self.issued = reply.issued

    async def exchange(self, service: PolicyService) -> ExchangeReply:
        reply = await service.exchange(self.report().to_wire())
        self.apply(reply)
        return reply

    @property
    def version(self) -> SettingsVersion | None:
        return self.issued.version if self.issued else None

    @property
    def settings(self) -> Settings | None:
        return self.issued.settings if self.issued else None

    @property
    def mode(self) -> Mode | None:
        return self.settings.mode if self.settings else None


def without_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls in threads are made at once: virtual time does not wait for them."""

    async def call(function: Callable[..., Any], *arguments: object) -> Any:
        return function(*arguments)

    monkeypatch.setattr(asyncio, "to_thread", call)


async def refusal(operation: Awaitable[Any]) -> str:
    """What a wrong request is answered with."""
    with pytest.raises(OperationError) as refused:
        await operation
    assert refused.value.code == HTTPStatus.UNPROCESSABLE_ENTITY
    return str(refused.value)


async def settled(service: PolicyService, *replicas: Replica, rounds: int = 4) -> None:
    """Let every replica report until it runs what the policy wants."""
    for _ in range(rounds):
        await asyncio.gather(*(replica.exchange(service) for replica in replicas))
