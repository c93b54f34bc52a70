"""The canary in one decision: who tries in each group, what these run, and what they and their control did since the last one.

Between `policy.decision.group`, which decides for one, and `policy.operator.canary`, which judges.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from nightjar.policy.operator.canary.compare import Place, Work
from nightjar.policy.operator.canary.order import Arms, CanaryOrder
from nightjar.policy.operator.canary.trial import Trial, after_tick, candidates, digest, remembered
from nightjar.policy.operator.overrides import ModeOverride
from nightjar.policy.state import FleetState, ReplicaState
from nightjar.policy.wire.mode import Mode
from nightjar.policy.wire.operator import OperatorSettings


@dataclass(frozen=True, slots=True)
class Tried:
    """What a canary does in one group: what its replicas run instead, who tries, who is the control and in which modes, and what
    both generated since the last tick.
    """

    overrides: Mapping[str, ModeOverride] = field(default_factory=dict)
    arms: Arms = field(default_factory=Arms)
    control_modes: tuple[Mode, ...] = ()
    canary_work: tuple[tuple[Place, Work], ...] = ()
    control_work: tuple[tuple[Place, Work], ...] = ()
    order: CanaryOrder | None = None

    def settings_over(self, settings: OperatorSettings) -> dict[str, OperatorSettings]:
        """The settings of those that try others than their group's, by replica."""
        if self.order is None or not self.order.settings:
            return {}
        return dict.fromkeys(self.overrides, self.order.settings_over(settings))


def tried_in(
    trial: Trial | None,
    group_id: str,
    members: Mapping[str, ReplicaState],
    modes: Mapping[str, tuple[Mode, str]],
    overrides: Sequence[ModeOverride],
    now_s: float,
) -> Tried:
    """What a canary does among the members of a group, whose modes without it are `modes`; nothing where none runs."""
    if trial is None or not trial.is_running or not trial.order.is_live(now_s):
        return Tried()
    free = {
        name: replica.report.application
        for name, replica in members.items()
        if replica.can_be_steered and replica.report.local_mode is None
    }
    own = {name: mode for name, (mode, _) in modes.items()}
    arms = candidates(trial, free, own, overrides, now_s)
    return Tried(
        {name: trial.order.override(name, own[name]) for name in sorted(arms.canary)} if trial.is_applied else {},
        arms,
        tuple(own[name] for name in arms.control),
        tuple(_work(group_id, members, arms.canary)),
        tuple(_work(group_id, members, arms.control)),
        trial.order,
    )


def _work(group_id: str, members: Mapping[str, ReplicaState], arm: Container[str]) -> Iterator[tuple[Place, Work]]:
    for name, replica in members.items():
        if name in arm:
            yield from (((group_id, bucket), work) for bucket, work in sorted(replica.new_work.items()))


def after_decision(
    trial: Trial | None, tried: Sequence[Tried], settings: OperatorSettings, now_s: float, *, frozen: bool
) -> Trial | None:
    """The canary after all groups have decided."""
    if trial is None:
        return None
    arms = Arms(
        frozenset(name for one in tried for name in one.arms.canary), frozenset(name for one in tried for name in one.arms.control)
    )
    modes = [mode for one in tried for mode in one.control_modes]
    against = digest(settings, modes) if modes else trial.against
    canary = [work for one in tried for work in one.canary_work]
    control = [work for one in tried for work in one.control_work]
    return after_tick(trial, arms, canary, control, against, settings, now_s, frozen=frozen)


def with_canary(state: FleetState, trial: Trial | None) -> FleetState:
    """The fleet with the canary as it is now; one that has just come to its end is remembered."""
    if trial is None or trial is state.canary:
        return state
    has_ended = not trial.is_running and state.canary is not None and state.canary.is_running
    past = remembered(state.past_canaries, trial) if has_ended else state.past_canaries
    return replace(state, canary=trial, past_canaries=past)
