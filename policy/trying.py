"""The canary in one decision: who tries in each group, what these run, and what they and their control did since the last one.

Between `policy.fleet`, which goes through the groups, and `policy.canary`, which judges.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from nightjar.policy.canary.compare import Place, Work
from nightjar.policy.canary.order import Arms
from nightjar.policy.canary.trial import Trial, after_tick, candidates, digest, remembered
from nightjar.policy.modes import ModeOverride
from nightjar.policy.state import FleetState, ReplicaState
from nightjar.policy.wire.mode import Mode
from nightjar.policy.wire.operator import OperatorSettings


class Trying:
    """Made anew for every decision. Without a canary that runs it has nobody try anything."""

    def __init__(self, trial: Trial | None, settings: OperatorSettings, overrides: Sequence[ModeOverride], now_s: float) -> None:
        is_due = trial is not None and trial.is_running and trial.order.is_live(now_s)
        self._trial = trial if is_due else None
        self._ended = trial
        self._settings = settings
        self._overrides = overrides
        self._now_s = now_s
        self._canary: set[str] = set()
        self._control: set[str] = set()
        self._modes: list[Mode] = []
        self._works: dict[bool, list[tuple[Place, Work]]] = {True: [], False: []}

    def group(
        self, group_id: str, members: Mapping[str, ReplicaState], modes: Mapping[str, tuple[Mode, str]]
    ) -> dict[str, ModeOverride]:
        """What the canary has members of a group run, by replica; `modes` are theirs without it. Call it once for each group."""
        if self._trial is None:
            return {}
        free = {
            name: replica.report.application
            for name, replica in members.items()
            if replica.can_be_steered and replica.report.local_mode is None
        }
        own = {name: mode for name, (mode, _) in modes.items()}
        arms = candidates(self._trial, free, own, self._overrides, self._now_s)
        self._canary |= arms.canary
        self._control |= arms.control
        self._modes += [own[name] for name in arms.control]
        for name, replica in members.items():
            if replica.new_work and (name in arms.canary or name in arms.control):
                works = self._works[name in arms.canary]
                works += [((group_id, bucket), work) for bucket, work in sorted(replica.new_work.items())]
        if not self._trial.is_applied:
            return {}
        return {name: self._trial.order.override(name, own[name]) for name in sorted(arms.canary)}

    def settings_of(self, tried: Mapping[str, ModeOverride], its: OperatorSettings) -> dict[str, OperatorSettings]:
        """The settings of those in a group that try others than its own, by replica."""
        if self._trial is None or not self._trial.order.settings:
            return {}
        other = self._trial.order.settings_over(its)
        return dict.fromkeys(tried, other)

    def after(self, *, frozen: bool) -> Trial | None:
        """The canary after all groups have had their turn."""
        if self._ended is None:
            return None
        arms = Arms(frozenset(self._canary), frozenset(self._control))
        against = digest(self._settings, self._modes) if self._modes else self._ended.against
        return after_tick(
            self._ended, arms, self._works[True], self._works[False], against, self._settings, self._now_s, frozen=frozen
        )


def with_canary(state: FleetState, trial: Trial | None) -> FleetState:
    """The fleet with the canary as it is now; one that has just come to its end is remembered."""
    if trial is None or trial is state.canary:
        return state
    has_ended = not trial.is_running and state.canary is not None and state.canary.is_running
    past = remembered(state.past_canaries, trial) if has_ended else state.past_canaries
    return replace(state, canary=trial, past_canaries=past)
