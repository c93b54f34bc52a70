"""A policy service that is recorded while simulated engines report to it: every protocol step by hand, no time passes by itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from random import Random

from nightjar.cluster.service.fleet_answers import ActorIdentity
from nightjar.cluster.service.policy_service import PolicyService
from nightjar.cluster.storage.recorder import MAX_RECORDED_REPLICAS, RecordedTick, Recorder, TickSink
from nightjar.cluster.storage.recording import Frame, FrameEncoder, RecordingFile
from nightjar.policy.wire.report import LoadReport
from nightjar.policy.wire.settings import ExchangeReply
from tests.cluster.protocol import EPOCH_S, MemoryJournal, MemoryStore, no_seed
from tests.policy.engines import Replica


@dataclass
class MemoryRecording:
    """A recording in a list, each frame read back from its line."""

    encoder: FrameEncoder = field(default_factory=FrameEncoder)
    frames: list[Frame] = field(default_factory=list)
    ticks: list[RecordedTick] = field(default_factory=list)
    is_full: bool = False
    problem: str = ""

    def holds_s(self, now_s: float) -> float | None:
        return 77.0

    def take(self, tick: RecordedTick) -> bool:
        if self.is_full:
            return False
        self.ticks.append(tick)
        self.frames.append(Frame.model_validate_json(self.encoder.encode(tick).model_dump_json()))
        return True

    @property
    def keys(self) -> list[int]:
        """Ticks whose frame holds the whole state."""
        return [frame.tick for frame in self.frames if frame.is_key]


@dataclass(frozen=True)
class WrittenAtOnce:
    """A recording's file, written on the caller's thread: a test decides faster than any disk takes."""

    file: RecordingFile

    def take(self, tick: RecordedTick) -> bool:
        self.file.write(tick)
        return True

    def holds_s(self, now_s: float) -> float | None:
        return self.file.holds_s(now_s)

    @property
    def problem(self) -> str:
        return self.file.problem


class RecordedFleet:
    """Engines whose reports reach the service at once; what it answers they adopt after the next tick."""

    def __init__(
        self,
        replicas: Sequence[Replica],
        sink: TickSink,
        max_replicas: int = MAX_RECORDED_REPLICAS,
        store: MemoryStore | None = None,
    ) -> None:
        self.replicas = list(replicas)
        self.now_s = EPOCH_S
        self.journal = MemoryJournal()
        self.service = PolicyService(
            store=store or MemoryStore(),
            journal=self.journal,
            clock=lambda: self.now_s,
            identity=ActorIdentity(pid=1),
            retire=lambda: None,
            publish=lambda seen: None,
            read_seed=no_seed,
            recorder=Recorder(sink, max_replicas),
        )
        self._rng = Random(1)
        self._calls: list[tuple[Replica, asyncio.Task[ExchangeReply]]] = []

    async def configure(self, **settings: object) -> None:
        """Mode auto with the K that the engines have step times for, and `settings`."""
        arms = [0, 1, 3, 5]
        await self.service.configure({"mode": "auto", "allowed_num_speculative_tokens": arms, **settings})

    async def run(self, ticks: int, period_s: float = 0.5) -> None:
        """Let every replica work, report and adopt, period after period."""
        for _ in range(ticks):
            self.now_s += period_s
            for replica in self.replicas:
                replica.run_until(self.now_s - EPOCH_S, self._rng)
                await self.send(replica, replica.report())
            await self.tick()

    async def send(self, replica: Replica, report: LoadReport) -> None:
        """Bring one report in; its call stays parked."""
        self._calls.append((replica, asyncio.create_task(self.service.exchange(report.to_wire()))))
        await asyncio.sleep(0)

    async def tick(self) -> None:
        """Decide once; replicas adopt what their calls bring."""
        self.service.tick()
        for _ in range(3):
            await asyncio.sleep(0)
        for replica, call in self._calls:
            if call.done() and (settings := call.result().issued) is not None:
                replica.steering.adopt(settings, replica.now_s)
        await self.hang_up()

    async def hang_up(self) -> None:
        """End every parked call."""
        for _, call in self._calls:
            call.cancel()
        await asyncio.gather(*(call for _, call in self._calls), return_exceptions=True)
        self._calls = []


@asynccontextmanager
async def recorded_fleet(
    *replicas: Replica,
    sink: TickSink,
    max_replicas: int = MAX_RECORDED_REPLICAS,
    store: MemoryStore | None = None,
    **settings: object,
) -> AsyncIterator[RecordedFleet]:
    """A started service in mode auto that decides when it is told to, and `replicas` around it."""
    fleet = RecordedFleet(replicas, sink, max_replicas, store)
    await fleet.service.start()
    await fleet.service.stop()
    await fleet.configure(**settings)
    yield fleet
    await fleet.hang_up()
