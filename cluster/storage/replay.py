"""The recording, decided again (INV-7): the production code on the same state, reports, times and random numbers.

Between two key frames the state is what this very code makes of the inputs, so that a replay is proof of more than the last tick.
A key frame begins anew with the state it holds: one difference is told, and again whatever follows from it until the next key
frame. Fails closed: frames that cannot follow each other (a line was lost, a file rotated away) are skipped and counted, never
guessed; a state that another version recorded raises RecordingError.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from nightjar.cluster.storage.plain_values import restored
from nightjar.cluster.storage.recording import Frame, RecordingError, body_of, report_after
from nightjar.policy.controller import Controller
from nightjar.policy.exploration import measuring
from nightjar.policy.operator.overrides import ModeOverride
from nightjar.policy.planners.base import GroupPlan
from nightjar.policy.state import FleetState
from nightjar.policy.wire.operator import OperatorSettings
from nightjar.policy.wire.record import to_plain
from nightjar.policy.wire.report import LoadReport
from nightjar.policy.wire.settings import Local, Settings, Table
from nightjar.policy.words import in_words


@dataclass(frozen=True, slots=True)
class Difference:
    """What one replica was told then, and what the code decides now; `replica_id` is empty where the whole tick failed."""

    replica_id: str
    decided_then: str
    decided_now: str


@dataclass(frozen=True, slots=True)
class ReplayedTick:
    """One tick, decided again: the fleet after it, and where its decisions differ from the recorded ones."""

    frame: Frame
    fleet: FleetState
    settings: OperatorSettings
    overrides: tuple[ModeOverride, ...]
    decisions: Mapping[str, Settings]
    """The last ones: those of this tick, unless it failed."""
    reports: int
    differences: tuple[Difference, ...]


@dataclass(slots=True)
class Skipped:
    """Ticks that were recorded and could not be decided again: those before the first key frame, and those after a lost one."""

    before_first_key: int = 0
    after_a_gap: int = 0


def replay(frames: Iterable[Frame], skipped: Skipped) -> Iterator[ReplayedTick]:
    """Every tick that can be decided again, in order; what cannot is counted in `skipped`.

    Raises RecordingError for a frame that another version wrote, or nobody did.
    """
    run: _Run | None = None
    seen_a_key = False
    for frame in frames:
        if frame.is_key:
            run, seen_a_key = _Run(frame), True
        elif run is not None and not run.is_followed_by(frame):
            run = None
        if run is not None:
            yield run.tick(frame)
        elif seen_a_key:
            skipped.after_a_gap += 1
        else:
            skipped.before_first_key += 1


def between(frames: Iterable[Frame], from_s: float, to_s: float) -> Iterator[Frame]:
    """The frames of a stretch of time, in seconds since the epoch, and those before it that its first one needs."""
    waiting: list[Frame] = []
    for frame in frames:
        if frame.time_s > to_s:
            return
        if frame.is_key:
            waiting = []
        waiting.append(frame)
        if frame.time_s >= from_s:
            yield from waiting
            waiting = []


def leading_to(frames: Iterable[Frame], at_s: float) -> list[Frame]:
    """The last key frame that is not after `at_s`, seconds since the epoch, and the frames that follow it until then."""
    found: list[Frame] = []
    for frame in frames:
        if frame.time_s > at_s:
            break
        found = [frame] if frame.is_key else [*found, frame]
    return found


class _Run:
    """What replays from one key frame to the next."""

    def __init__(self, key: Frame) -> None:
        self._last = key
        self._policy = Controller(OperatorSettings())
        self._recorded: dict[str, Settings] = {}
        self._reports: dict[str, bytes] = {}

    def is_followed_by(self, frame: Frame) -> bool:
        """Whether nothing is missing between the last frame and this one."""
        return frame.number == self._last.number + 1 and frame.incarnation == self._last.incarnation

    def tick(self, frame: Frame) -> ReplayedTick:
        """Decide the tick of `frame`, which is the key frame or follows the last one."""
        try:
            body = body_of(frame.body)
            reports = self._take_in(body)
            error = self._read_decisions(body)
        except (KeyError, TypeError, ValueError) as problem:
            which = f"tick {frame.tick} of incarnation {frame.incarnation}"
            raise RecordingError(f"{which} cannot be read, another version may have recorded it: {problem}") from problem
        self._last = frame
        found = self._decide(frame, error)
        policy = self._policy
        return ReplayedTick(frame, policy.state, policy.settings, policy.overrides, policy.decisions, reports, found)

    def _take_in(self, body: Mapping[str, Any]) -> int:
        """The state as the tick found it; returns how many reports led to it."""
        if "overrides" in body:
            self._policy.overrides = restored(tuple[ModeOverride, ...], body["overrides"])
        if "state" in body:
            self._policy.state = restored(FleetState, body["state"])
            self._policy.settings = restored(OperatorSettings, body["settings"])
            return 0
        reports = 0
        for one in body["inputs"]:
            if len(one) == 1:
                self._policy.settings = restored(OperatorSettings, one[0])
                continue
            time_s, replica_id, parts = one
            report = self._reports[replica_id] = report_after(self._reports.get(replica_id, b""), parts)
            self._policy.observe(LoadReport.from_wire(report), time_s)
            reports += 1
        return reports

    def _read_decisions(self, body: Mapping[str, Any]) -> str:
        """Bring the recorded decisions up to this tick; returns why there were none, if so."""
        for replica_id in body.get("gone", ()):
            self._recorded.pop(replica_id, None)
        self._recorded |= restored(dict[str, Settings], body["decisions"])
        return str(body["error"])

    def _decide(self, frame: Frame, error: str) -> tuple[Difference, ...]:
        """Decide, and compare with what was recorded; a failure leaves state and decisions as they were, as it did then."""
        rng = random.Random(frame.seed)  # noqa: S311 - as then
        try:
            self._policy.tick(frame.time_s, rng)
        except Exception as failure:  # noqa: BLE001 - whatever the policy's own loop survived, the replay does
            now = f"deciding fails ({type(failure).__name__}: {failure})"
            return () if error else (Difference("", "decisions", now),)
        if error:
            return (Difference("", f"deciding failed ({error})", "decisions"),)
        return tuple(differences(self._recorded, self._policy.decisions))


def differences(then: Mapping[str, Settings], now: Mapping[str, Settings]) -> Iterator[Difference]:
    """Every replica whose decision is not the same, by id."""
    for replica_id in sorted(then.keys() | now.keys()):
        before, after = then.get(replica_id), now.get(replica_id)
        if before == after:
            continue
        if before is None or after is None:
            words = ["no decision" if one is None else _said(_facts(one)) for one in (before, after)]
        else:
            facts, facts_now = _facts(before), _facts(after)
            changed = [name for name in facts if facts[name] != facts_now[name]]
            words = [_said({name: one[name] for name in changed}) for one in (facts, facts_now)]
        yield Difference(replica_id, *words)


def _facts(settings: Settings) -> dict[str, str]:
    """Settings in words, part by part; equal words mean an equal part."""
    restarts, offload = settings.restarts, settings.offload
    return {
        "mode": f"mode {settings.mode}",
        **_plan_facts(settings.plan),
        "allowed": f"allowed K {settings.allowed_num_speculative_tokens}",
        "dwell": f"dwell {settings.dwell_steps} steps",
        "micro_restarts": f"restarts of {restarts.micro_restart_tokens} tokens without a lease",
        "chunk": f"catch-up chunks of {restarts.catch_up_chunk_tokens} tokens",
        "leases": f"leases {[(lease.wish_id, lease.time_to_live_s, lease.reload) for lease in restarts.leases]}",
        "restarts": in_words(restarts.causes) or "nothing said of restarts",
        "times": f"reports every {settings.exchange_period_s} s, off after {settings.settings_max_age_s} s without a word",
        "offload": f"offload {to_plain(offload)}" if offload is not None else "no offload",
        "reason": f"because: {in_words(settings.causes)}",
    }


def _plan_facts(plan: Table | Local) -> dict[str, str]:
    if isinstance(plan, Local):
        return {"plan": f"the engine's own planner {plan.planner} {plan.options}", "segments": "", "off_steps": ""}
    ids = "".join(f" #{segment.segment_id} ({segment.clean_steps} steps)" for segment in plan.segments)
    return {
        "plan": in_words(GroupPlan(plan.rows, mixed_rows=plan.mixed_rows).summary),
        "segments": (in_words(measuring(plan.segments)) or "measuring nothing") + ids,
        "off_steps": f"OFF steps {[(step.decode_rows, step.step_seconds) for step in plan.off_steps]}",
    }


def _said(facts: Mapping[str, str]) -> str:
    return "; ".join(words for words in facts.values() if words)
