"""What an operator wants tried, and by whom: a mode, a limit of a step, an objective or settings, for a share of the replicas.

Which replicas is read from their ids alone, so that a restarted policy, the simulator and a replay choose the same ones, and a
replica that comes or goes moves at most one other. Fails closed: without both a canary and a control in its group a replica is
neither.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Annotated, Final, NamedTuple

from pydantic import Field

from nightjar.policy.operator.overrides import ModeOverride
from nightjar.policy.wire.mode import Mode
from nightjar.policy.wire.operator import MaxStepMs, Objective, OperatorSettings
from nightjar.policy.wire.record import Reason, Record

CANARY_SETTINGS: Final = (
    "dwell_steps",
    "draft_offload",
    "offload_below_free_share",
    "offload_after_s",
    "reload_above_free_share",
)
"""Settings that two replicas of one group can have differently: they go to each engine with its plan. All others are the group's or
the fleet's: one plan is made, one budget kept and one clock run for all."""
MAX_SHARE: Final = 0.5
"""Of a group's replicas, before rounding."""


class CanaryOrder(Record):
    """One canary as it was asked for, at `since_s` on the policy's clock, when the settings' mode was `over`.

    `share` is of the replicas of each group, of `application` alone where one is named; None: all of that application, against the
    others of its groups. Blocks of `block_s` seconds are compared.
    """

    mode: Mode | None = None
    max_step_ms: MaxStepMs | None = None
    objective: Objective | None = None
    settings: dict[str, float | int | str] = Field(default_factory=dict, max_length=len(CANARY_SETTINGS))
    share: Annotated[float, Field(gt=0.0, le=MAX_SHARE)] | None = None
    application: Annotated[str, Field(max_length=256)] = ""
    since_s: float
    expires_at_s: float | None = None
    reason: Reason = ""
    block_s: Annotated[float, Field(ge=1.0, le=600.0)] = 10.0
    over: Mode

    def is_live(self, now_s: float) -> bool:
        """Whether its time is not over."""
        return self.expires_at_s is None or now_s < self.expires_at_s

    def override(self, replica_id: str, mode: Mode) -> ModeOverride:
        """What one of its replicas runs whose mode is `mode` without it."""
        wanted = self.mode or mode
        limit_ms, objective = (self.max_step_ms, self.objective) if wanted.kind in {"auto", "shadow"} else (None, None)
        return ModeOverride(
            scope="replica", name=replica_id, mode=wanted, max_step_ms=limit_ms, objective=objective, reason="canary"
        )

    def settings_over(self, settings: OperatorSettings) -> OperatorSettings:
        """The settings of one of its replicas."""
        return settings.model_copy(update=self.settings) if self.settings else settings

    def what(self) -> str:
        """What is tried, in words.

        >>> CanaryOrder(mode=Mode.parse("pin=3"), settings={"dwell_steps": 8}, since_s=0.0, over=Mode.parse("auto")).what()
        'mode pin=3, dwell_steps 8'
        """
        mode = f"mode {self.mode}" if self.mode is not None else ""
        limit = f"max_step_ms {self.max_step_ms:g}" if self.max_step_ms is not None else ""
        objective = f"objective {self.objective}" if self.objective is not None else ""
        return ", ".join(filter(None, (mode, limit, objective, *(f"{name} {value}" for name, value in self.settings.items()))))

    def whom(self) -> str:
        """Who tries it, in words.

        >>> CanaryOrder(share=0.25, application="chat", since_s=0.0, over=Mode.parse("auto")).whom()
        '25 % of the replicas of application chat'
        """
        replicas = "the replicas" if self.share is None else f"{self.share:.0%} of the replicas".replace("%", " %")
        return f"{replicas} of application {self.application}" if self.application else replicas


class Arms(NamedTuple):
    """Replicas of one group that try, and those that are held against them. Both, or neither."""

    canary: frozenset[str] = frozenset()
    control: frozenset[str] = frozenset()


def arms_of(order: CanaryOrder, candidates: Mapping[str, str]) -> Arms:
    """Who tries in a group, and who is the control. `candidates` are replicas and their applications.

    >>> order = CanaryOrder(share=0.25, since_s=0.0, over=Mode.parse("auto"))
    >>> arms = arms_of(order, {f"r{number}": "chat" for number in range(8)})
    >>> sorted(arms.canary), len(arms.control)
    (['r5', 'r6'], 6)
    """
    named = [replica_id for replica_id, application in candidates.items() if order.application in {"", application}]
    if order.share is None:
        canary, control = set(named), candidates.keys() - set(named)
    else:
        ranked = sorted(named, key=lambda replica_id: hashlib.sha256(replica_id.encode()).digest())
        count = min(max(round(order.share * len(ranked)), 1), len(ranked) - 1)
        canary, control = set(ranked[: max(count, 0)]), set(ranked[max(count, 0) :])
    return Arms(frozenset(canary), frozenset(control)) if canary and control else Arms()
