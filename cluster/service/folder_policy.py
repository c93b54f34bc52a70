"""A policy where there is no Ray: the same service, and a folder for all that it keeps.

A thread of one server (policy_thread.py) and `nightjar policy` run it. No name makes it the only one, as the actor's does: its
folder is locked, and one that finds that another policy has taken its folder all the same grants no restart from then on and stores
nothing (INV-6). It never ends for want of reports. Fails as the folder fails, in words, and otherwise as the service does.
"""

from __future__ import annotations

import asyncio
import os
import platform
from collections.abc import Callable, Mapping
from typing import Final

import structlog

from nightjar.cluster.api.operations import CONFIGURE
from nightjar.cluster.service.fleet_answers import ActorIdentity
from nightjar.cluster.service.other_versions import LOOK_PERIOD_S, LOOK_TIMEOUT_S, grant_nothing
from nightjar.cluster.service.policy_service import PolicyService, epoch_clock
from nightjar.cluster.service.seed_from import SeedReader
from nightjar.cluster.storage.journal import JournalFile
from nightjar.cluster.storage.recorder import Recorder, recorded_replicas
from nightjar.cluster.storage.recording import RecordingFile
from nightjar.cluster.storage.rotated_lines import chosen_file_bytes
from nightjar.cluster.storage.state_folder import StateFolder
from nightjar.cluster.telemetry.metrics import Backend, Exporter
from nightjar.cluster.telemetry.policy_metrics import POLICY_METRICS
from nightjar.policy.controller import Controller

JOURNAL_FOLDER: Final = "journal"

log = structlog.get_logger(__name__)


class Successor:
    """See OtherPolicies: one that has taken the folder of this policy. `lost` is called once, when that is noticed."""

    def __init__(self, why_lost: Callable[[], str], lost: Callable[[str], None] = lambda _: None) -> None:
        self._why_lost = why_lost
        self._lost = lost
        self._reason = ""
        self._is_held = False

    async def notice_s(self) -> float:
        """Whether there was one before, the folder does not tell."""
        return LOOK_PERIOD_S + LOOK_TIMEOUT_S

    async def keep_looking(self) -> None:
        """Look every LOOK_PERIOD_S, until there is one."""
        while not self._reason:
            await asyncio.sleep(LOOK_PERIOD_S)
            self._reason = await asyncio.to_thread(self._why_lost)
        log.error("policy_replaced", reason=self._reason, consequence="this one grants no restarts and stores nothing")
        self._lost(self._reason)

    def hold_back(self, controller: Controller, now_s: float) -> list[str]:
        """See OtherPolicies."""
        turned = bool(self._reason) and not self._is_held
        self._is_held = bool(self._reason)
        grant_nothing(controller, now_s, is_held=self._is_held, has_turned=turned)
        return [f"{self._reason}: this one grants no restarts"] if turned else []


async def begun_policy(
    store: StateFolder,
    settings: Mapping[str, object],
    backend: Backend,
    *,
    is_kept: bool = True,
    lost: Callable[[str], None] = lambda _: None,
) -> PolicyService:
    """A policy that decides, by `settings` (a `user_config`) and what the store holds. Raises whatever its start raises.

    `is_kept`: the folder is there for the next start, too.
    """
    journal, file_bytes = store.path / JOURNAL_FOLDER, chosen_file_bytes()
    exporter = Exporter(POLICY_METRICS, backend)
    policy = PolicyService(
        store=store,
        journal=JournalFile(journal, max_file_bytes=file_bytes),
        clock=epoch_clock(),
        identity=ActorIdentity(pid=os.getpid(), node_id=platform.node(), state_folder=str(store.path), outlives_process=is_kept),
        retire=None,
        publish=lambda seen: exporter.publish(seen, source="this process"),
        read_seed=SeedReader(),
        recorder=Recorder(RecordingFile(journal, max_file_bytes=file_bytes), recorded_replicas()),
        other_policies=Successor(store.why_lost, lost),
    )
    await policy.start()
    await policy.call(CONFIGURE, settings)
    return policy
