"""One comparison's run: its plan, the folder that keeps it, and the conductor who plays its turns one by one.

The folder holds the plan, a file of raw rows or results a turn, and a line for each turn that came to its end.

A turn's line is written last, so a turn that was broken off is played again, into the same file, when the run goes on.
Fails closed: a folder of another plan, or a line that is none, raises RunFilesError in one line. The last line alone may be torn.

A turn is: switch, send the load, keep what came of it. What ran before is put back whatever happens. It fails as what it calls
does, with TurnError or OperationError, each one line.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import Field, ValidationError

from nightjar.cluster.api.http_client import HttpClient
from nightjar.cluster.api.operations import STATUS, OperationError
from nightjar.loadtests.arms.arm import Arm, Turn, turns
from nightjar.loadtests.arms.load import MOST_TURN_S, Load, check_file, send
from nightjar.loadtests.arms.samples import EngineHistory, StatusSample, WorkByK, all_work, mean_k, share_off
from nightjar.loadtests.arms.session import Session
from nightjar.policy.wire.record import Record, describe_validation_error

PLAN_FILE: Final = "compare.json"
TURNS_FILE: Final = "turns.jsonl"
PAGE_FILE: Final = "report.html"
TABLE_FILE: Final = "table.md"
EXPIRES_AFTER_S: Final = MOST_TURN_S + 300.0
"""A mode that this program set and did not take back, because it was killed, ends by itself."""

Learned = Literal["keep", "reset"]


class RunFilesError(ValueError):
    """A folder that is no run of this comparison."""


class ComparePlan(Record):
    """A whole comparison. `learned`: whether planners that learn go on from the turn before, or begin each turn anew."""

    arms: tuple[Arm, ...]
    url: str
    load: Load
    rounds: Annotated[int, Field(ge=1, le=1000)]
    lessons: Annotated[int, Field(ge=0, le=100)]
    seed: int = 0
    learned: Learned = "keep"

    def arm(self, name: str) -> Arm:
        """By its name."""
        return next(arm for arm in self.arms if arm.name == name)

    def turns(self, done: Collection[tuple[int, str]] = ()) -> list[Turn]:
        """Those that are left, in order."""
        return turns([arm.name for arm in self.arms], self.rounds, self.lessons, seed=self.seed, done=done)


class Facts(Record):
    """Where and when a run began, and against what; `mode_before` is what ran before and is put back."""

    plan: ComparePlan
    began: str
    command: str
    commit: str = ""
    machine: dict[str, str] = Field(default_factory=dict)
    load_at_begin: str = ""
    model: str = ""
    replicas: int = 0
    mode_before: str = ""


class PlayedTurn(Record):
    """A turn that was played. What engines did in it is of all replicas; None of another server, or where nobody said.

    planner  who decided, as the policy says
    """

    round: Annotated[int, Field(ge=1)]
    arm: str
    is_lesson: bool
    began_s: float
    ended_s: float
    file: str
    planner: str = ""
    steps: int | None = None
    mean_num_speculative_tokens: float | None = None
    share_of_steps_off: float | None = None


@dataclass(frozen=True, slots=True)
class RunFiles:
    """Reads and writes one folder."""

    folder: Path

    def begin(self, facts: Facts) -> None:
        """A new run in the folder. Raises RunFilesError where it holds another run."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if (self.folder / PLAN_FILE).exists():
            raise RunFilesError(f"{self.folder} holds a comparison already; --resume goes on with it, or name another folder")
        (self.folder / PLAN_FILE).write_text(facts.model_dump_json(indent=2) + "\n", encoding="utf-8")

    def facts(self) -> Facts:
        """What the run began with. Raises RunFilesError."""
        path = self.folder / PLAN_FILE
        try:
            return Facts.model_validate_json(path.read_bytes())
        except OSError as error:
            raise RunFilesError(f"{self.folder} is no comparison: {error.strerror} ({path.name})") from error
        except ValidationError as error:
            raise RunFilesError(f"{path}: {describe_validation_error(error)}") from error

    def resumed(self, plan: ComparePlan) -> Facts:
        """The same, of a run that goes on. Raises RunFilesError where its plan is another; more rounds may be asked for."""
        found = self.facts()
        before = found.plan.model_copy(update={"rounds": plan.rounds})
        differs = [name for name in ComparePlan.model_fields if getattr(before, name) != getattr(plan, name)]
        if differs:
            raise RunFilesError(
                f"{self.folder} is a run with another {', '.join(differs)}; give the same as then ({found.command}) or a new folder"
            )
        changed = found.model_copy(update={"plan": plan})
        (self.folder / PLAN_FILE).write_text(changed.model_dump_json(indent=2) + "\n", encoding="utf-8")
        return changed

    def file_of(self, turn: Turn, suffix: str) -> Path:
        """Where a turn's raw rows or results go."""
        return self.folder / f"round-{turn.round:02d}-{turn.arm}.{suffix}"

    def keep(self, played: PlayedTurn) -> None:
        """A turn came to its end."""
        with (self.folder / TURNS_FILE).open("a", encoding="utf-8") as file:
            file.write(played.model_dump_json(exclude_none=True) + "\n")

    def played(self) -> tuple[PlayedTurn, ...]:
        """Every turn that came to its end. Raises RunFilesError for a line that is none, except a torn last one."""
        path = self.folder / TURNS_FILE
        if not path.exists():
            return ()
        *lines, last = path.read_text(encoding="utf-8").split("\n")
        found = []
        for number, line in enumerate(lines, start=1):
            try:
                found.append(PlayedTurn.model_validate_json(line))
            except ValidationError as error:
                raise RunFilesError(f"{path}:{number} is no turn: {describe_validation_error(error)}") from error
        if last:  # written in part when the run was killed
            path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        return tuple(found)


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
            k = played.mean_num_speculative_tokens
            ran = "" if k is None else f", mean K {k:.2f}"
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
        work: WorkByK = EngineHistory([first, last]).work(first.time_s, last.time_s)
        return played.model_copy(
            update={
                "steps": all_work(work).steps,
                "mean_num_speculative_tokens": mean_k(work),
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
