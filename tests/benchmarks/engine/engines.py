"""The engines as the sections see them: each a process of its own, called across a pipe, one at a time (proof/remote.py)."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from nightjar.deployments.proof.remote import Remote
from nightjar.policy.step.drafter import UNLIMITED
from nightjar.policy.wire.mode import Mode
from nightjar.policy.wire.report import EngineSnapshot
from nightjar.policy.wire.settings import (
    EngineCommand,
    IssuedSettings,
    Lease,
    RestartLimits,
    Settings,
    SettingsVersion,
    Table,
    TableRow,
)
from tests.benchmarks.engine.fixture import KV_CACHE_GIB, MAX_NUM_SEQS, MAX_NUM_SPECULATIVE_TOKENS, Role
from tests.benchmarks.engine.step_record import Step

HOST: Final = "tests.benchmarks.engine.engine_host"
NO_LIMIT_S: Final = 86_400.0
SETTLE_STEPS: Final = 2
"""Steps after a change of K that are not measured: the first verifies drafts of the K before, and so does no part of the second."""
MOST_CATCH_UP_STEPS: Final = 400


class Engine(Remote):
    """One engine, whose own output goes to `log`. Rows are named by numbers that are never used twice."""

    def __init__(self, role: Role, models: Mapping[str, str], log: Path) -> None:
        self.role = role
        kv_cache = {"VLLM_CPU_KVCACHE_SPACE": str(KV_CACHE_GIB[role])} if role in KV_CACHE_GIB else {}
        super().__init__(f"engine {role}", HOST, [role, json.dumps(dict(models))], log, os.environ | kv_cache)
        self._numbers = itertools.count()
        self._sequence = itertools.count(1)
        self._version: SettingsVersion | None = None
        self.call("start")

    def encode(self, questions: Sequence[str]) -> list[list[int]]:
        """Token ids of chat prompts."""
        encoded: list[list[int]] = self.call("encode", list(questions))
        return encoded

    def add(self, prompts: Sequence[Sequence[int]], max_tokens: int) -> list[int]:
        """Add greedy requests of exactly `max_tokens` tokens; their row numbers."""
        rows = [next(self._numbers) for _ in prompts]
        self.call("add", dict(zip(rows, prompts, strict=True)), max_tokens)
        return rows

    def run(self, steps: int = 1, tokens: int = 0) -> list[Step]:
        """At least `steps` steps, and on until `tokens` tokens are generated; fewer once nobody is left."""
        taken: list[Step] = self.call("run", steps, tokens)
        return taken

    def run_out(self) -> list[Step]:
        """Steps until nobody is left."""
        steps: list[Step] = []
        while taken := self.run():
            steps += taken
        return steps

    def run_prefill(self) -> list[Step]:
        """Steps until every request decodes."""
        taken = self.run()
        while taken[-1].prefill_tokens:
            taken += self.run()
        return taken

    def abort(self) -> None:
        """Drop every request."""
        self.call("abort")

    def exchange(self, command: EngineCommand) -> EngineSnapshot:
        """Apply a command; raises RuntimeError where it was refused, and where our step loop has failed."""
        snapshot: EngineSnapshot = self.call("exchange", command)
        if snapshot.refused or snapshot.fault:
            raise RuntimeError(f"engine {self.role}: {snapshot.refused or snapshot.fault}")
        return snapshot

    def adopt(self, settings: Settings) -> EngineSnapshot:
        """Put settings in force, under the next version."""
        self._version = SettingsVersion(incarnation=1, sequence=next(self._sequence))
        return self.exchange(EngineCommand(issued=IssuedSettings(version=self._version, settings=settings)))

    def confirm(self) -> EngineSnapshot:
        """Say that the settings in force still hold."""
        return self.exchange(EngineCommand(confirmed=self._version))

    def grant(self, settings: Settings) -> None:
        """Put settings in force with the lease that the engine wishes for; where it wishes for none, leave it be."""
        wish = self.exchange(EngineCommand()).restart_wish
        if wish is not None:
            lease = Lease(wish_id=wish.wish_id, time_to_live_s=NO_LIMIT_S, reload=wish.reload)
            restarts = settings.restarts.model_copy(update={"leases": (lease,)})
            self.adopt(settings.model_copy(update={"restarts": restarts}))

    def hold(self, num_speculative_tokens: int, *, chunk_tokens: int | None = None) -> None:
        """Pin a K (0: off); restarts need no permission."""
        self.adopt(held(num_speculative_tokens, chunk_tokens=chunk_tokens))

    def settle(self, num_speculative_tokens: int) -> list[Step]:
        """Steps until the K runs, the drafter misses nothing, and the K was held for SETTLE_STEPS."""
        taken, settled = self.run(), 0
        while True:
            step = taken[-1]
            settled = settled + 1 if step.num_speculative_tokens == num_speculative_tokens and not step.recomputed_tokens else 0
            if settled >= SETTLE_STEPS:
                return taken
            if len(taken) > MOST_CATCH_UP_STEPS:
                raise RuntimeError(f"K={num_speculative_tokens} did not settle in {MOST_CATCH_UP_STEPS} steps")
            taken += self.run()

    def probe_forwards(self) -> int:
        """Forwards of the draft model so far, as its worker counts them."""
        forwards: int = self.call("probe_forwards")
        return forwards

    def restarts(self) -> int:
        """Restarts of the drafter so far."""
        return self.exchange(EngineCommand()).counters.restarts

    def kv_tokens(self) -> dict[str, int]:
        """Tokens of KV that fit: `loaded` beside the draft, `offloaded` without it."""
        tokens: dict[str, int] = self.call("kv_tokens")
        return tokens

    def press(self) -> None:
        """Memory counts as short before the next step."""
        self.call("press")

    def moves(self) -> tuple[int, int]:
        """How often the draft has left and come back."""
        drafter = self.exchange(EngineCommand()).drafter
        return drafter.offloads, drafter.reloads

    def lag_tokens(self) -> int:
        """Draft tokens that a restart now would recompute."""
        lag: int = self.call("lag_tokens")
        return lag

    def catch_up(self, how: str) -> None:
        """How lag is caught up from now on; see EngineHost."""
        self.call("catch_up", how)


def held(num_speculative_tokens: int, *, chunk_tokens: int | None = None) -> Settings:
    """Settings that hold one K at every batch."""
    mode = Mode.parse(f"pin={num_speculative_tokens}") if num_speculative_tokens else Mode(kind="off")
    row = TableRow(first_batch_size=1, last_batch_size=MAX_NUM_SEQS, num_speculative_tokens=num_speculative_tokens)
    restarts = RestartLimits(micro_restart_tokens=UNLIMITED, catch_up_chunk_tokens=chunk_tokens)
    return by_plan((row,)).model_copy(update={"mode": mode, "restarts": restarts})


def by_plan(rows: tuple[TableRow, ...]) -> Settings:
    """Settings that follow a plan; restarts need no permission, reloads do."""
    return Settings(
        mode=Mode(kind="auto"),
        plan=Table(rows=rows),
        allowed_num_speculative_tokens=tuple(range(MAX_NUM_SPECULATIVE_TOKENS + 1)),
        settings_max_age_s=NO_LIMIT_S,
        restarts=RestartLimits(micro_restart_tokens=UNLIMITED),
    )
