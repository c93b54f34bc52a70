"""Plays the turns of a comparison one by one: switch, send the load, keep what came of it.

What ran before is put back whatever happens. Fails as what it calls does: TurnError or OperationError, each one line; the
turns that came to their end are kept, and the run goes on from there when it is asked to.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nightjar.cluster.http_client import HttpClient
from nightjar.cluster.operations import STATUS, OperationError
from nightjar.loadtests.arms.load import MOST_TURN_S, check_file, send
from nightjar.loadtests.arms.rounds import Turn
from nightjar.loadtests.arms.session import Session
from nightjar.loadtests.compare.run_files import ComparePlan, PlayedTurn, RunFiles
from nightjar.loadtests.samples import EngineHistory, StatusSample, WorkByLength, all_work, mean_length, share_off

EXPIRES_AFTER_S: Final = MOST_TURN_S + 300.0
"""A mode that this program set and did not take back, because it was killed, ends by itself."""


@dataclass(slots=True)
class Conductor:
    """One comparison. Without `api` and `session` every arm is another server."""

    plan: ComparePlan
    files: RunFiles
    api: HttpClient | None
    session: Session | None
    say: Callable[[str], None]
    clock: Callable[[], float] = time.time

    def run(self) -> None:
        """Every turn that is left."""
        done = {(turn.round, turn.arm) for turn in self.files.played()}
        left = self.plan.turns(done)
        if done:
            self.say(f"{len(done)} turns were played before, {len(left)} are left")
        for number, turn in enumerate(left, start=1):
            played = self._play(turn)
            self.files.keep(played)
            lesson = " (a lesson, not counted)" if turn.is_lesson else ""
            length = played.mean_num_speculative_tokens
            ran = "" if length is None else f", mean K {length:.2f}"
            self.say(
                f"{number} of {len(left)}: round {turn.round}, {turn.arm}{lesson}: {played.ended_s - played.began_s:.0f} s{ran}"
            )

    def _play(self, turn: Turn) -> PlayedTurn:
        arm = self.plan.arm(turn.arm)
        path = self.files.file_of(turn, "json" if self.plan.load.command else "jsonl")
        planner = ""
        if not arm.url:
            assert self.session is not None
            resets = self.plan.learned == "reset" and arm.learns
            status = self.session.run(arm, resets=resets, for_s=EXPIRES_AFTER_S)
            planner = ", ".join(sorted({group.planner for group in status.groups if group.replicas}))
        first, began_s = self._look(arm.url), self.clock()
        self._send(turn, arm.url or self.plan.url, path)
        last, ended_s = self._look(arm.url), self.clock()
        played = PlayedTurn(**turn._asdict(), began_s=began_s, ended_s=ended_s, file=path.name, planner=planner)
        if first is None or last is None:
            return played
        work: WorkByLength = EngineHistory([first, last]).work(first.time_s, last.time_s)
        return played.model_copy(
            update={
                "steps": all_work(work).steps,
                "mean_num_speculative_tokens": mean_length(work),
                "share_of_steps_off": share_off(work),
            }
        )

    def _send(self, turn: Turn, url: str, path: Path) -> None:
        """Rounds differ in their seed, the arms of a round do not."""
        where, places = f"round {turn.round}, arm {turn.arm}", {"round": str(turn.round), "arm": turn.arm}
        send(self.plan.load, url, self.plan.seed + turn.round, path, where, places=places)
        check_file(self.plan.load, path, where)

    def _look(self, url: str) -> StatusSample | None:
        """What the engines have done so far; None of another server, or of a policy that does not answer just now."""
        if url or self.api is None:
            return None
        try:
            return StatusSample(time_s=self.clock(), status=self.api.call(STATUS))
        except OperationError:
            return None
