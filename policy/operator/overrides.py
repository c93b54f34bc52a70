"""What mode, limit of a step and objective a replica has: the operator's settings, and overrides that people set by hand for a
while.

An override names the fleet, an application or a replica; the most specific live one wins over the settings. Expiry is a
point on the caller's clock, so an override that nobody takes back ends by itself. Fails closed: an override whose scope
and name do not fit is refused when it is made, so the functions below never meet one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Final, Self

from pydantic import Field, model_validator

from nightjar.policy.wire.cause import Cause, Causes, Code, because
from nightjar.policy.wire.mode import Mode
from nightjar.policy.wire.operator import MaxStepMs, Objective, OperatorSettings, PlannerName
from nightjar.policy.wire.record import Reason, Record
from nightjar.policy.wire.report import GroupKey
from nightjar.policy.wire.status import Scope

BESIDE_ADAPTIVE: Final = "the settings' auto, which beside vLLM's adaptive verification waits for a mode by hand"
"""Who says that a replica is in shadow where nobody did."""
_MOST_SPECIFIC_FIRST: Final[tuple[Scope, ...]] = ("replica", "application", "fleet")


_SHADOW: Final = Mode(kind="shadow")


class ModeOverride(Record):
    """A mode set by hand. `name` is the application's or the replica's; the scope fleet has none.

    `max_step_ms` limits the steps of the same replicas, and by `objective` their K is chosen, where their mode lets a planner
    decide. `planner` decides in place of the settings' one, for the whole fleet only: replicas of a group share a plan. Planners
    that engines run themselves began anew at `anew_at_s`, a second of the epoch (None: they never had to). `carried_from` is the
    address of the policy of the cluster before, where it was set there.
    """

    scope: Scope
    name: Annotated[str, Field(max_length=256)] = ""
    mode: Mode
    max_step_ms: MaxStepMs | None = None
    objective: Objective | None = None
    planner: PlannerName | None = None
    anew_at_s: float | None = None
    expires_at_s: float | None = None
    reason: Reason = ""
    carried_from: Reason = ""

    @model_validator(mode="after")
    def _name_fits_scope(self) -> Self:
        if self.scope == "fleet" and self.name:
            raise ValueError(f"scope fleet takes no name (got {self.name!r}); use scope application or replica")
        if self.scope != "fleet" and not self.name:
            raise ValueError(f"scope {self.scope} needs the name of the {self.scope}")
        return self

    @model_validator(mode="after")
    def _aims_have_a_plan_to_shape(self) -> Self:
        check_aims(self.mode, self.max_step_ms, self.objective)
        return self

    @model_validator(mode="after")
    def _planner_has_a_plan_to_make(self) -> Self:
        check_planner(self.scope, self.mode, self.planner)
        return self

    def is_live(self, now_s: float) -> bool:
        """Whether it still holds at `now_s`, seconds on the clock that set `expires_at_s`."""
        return self.expires_at_s is None or now_s < self.expires_at_s


@dataclass(frozen=True, slots=True)
class ReplicaLimit:
    """Milliseconds that a step of a replica may take with speculation, and who says so, in words."""

    max_step_ms: float
    set_by: str

    def cause(self, code: Code, **numbers: float) -> Cause:
        """What follows from it."""
        return because(code, self.set_by, max_step_ms=self.max_step_ms, **numbers)


def live_overrides(overrides: Sequence[ModeOverride], now_s: float) -> tuple[ModeOverride, ...]:
    """Those that have not expired, in their order."""
    return tuple(override for override in overrides if override.is_live(now_s))


def set_override(overrides: Sequence[ModeOverride], override: ModeOverride) -> tuple[ModeOverride, ...]:
    """Add an override in place of an earlier one of the same scope and name."""
    place = (override.scope, override.name)
    return (*(other for other in overrides if (other.scope, other.name) != place), override)


def effective_mode(
    replica_id: str,
    application: str,
    operator_mode: Mode,
    overrides: Sequence[ModeOverride],
    now_s: float,
    *,
    adaptive_verification: bool = False,
) -> tuple[Mode, str]:
    """The mode of one replica and, in words, who set it: replica before application before fleet before settings.

    Beside vLLM's `adaptive_verification` the settings' auto is no operator's word of this replica, and means shadow.

    >>> drain = ModeOverride(scope="application", name="chat", mode=Mode.parse("off"), reason="incident", expires_at_s=60.0)
    >>> mode, who = effective_mode("r1", "chat", Mode.parse("auto"), [drain], now_s=59.0)
    >>> str(mode), who
    ('off', 'application chat by hand (incident)')
    >>> [str(effective_mode("r1", "chat", Mode.parse("auto"), [drain], 60.0, adaptive_verification=it)[0]) for it in (False, True)]
    ['auto', 'shadow']
    """
    override = override_of(replica_id, application, overrides, now_s)
    if override is not None:
        return override.mode, set_by(override)
    if adaptive_verification and operator_mode.kind == "auto":
        return _SHADOW, BESIDE_ADAPTIVE
    return operator_mode, "the settings"


def override_of(replica_id: str, application: str, overrides: Sequence[ModeOverride], now_s: float) -> ModeOverride | None:
    """The live override that concerns a replica, the most specific one; None where the settings hold."""
    return next(_concerning(replica_id, application, overrides, now_s), None)


def _limiting(replica_id: str, application: str, overrides: Sequence[ModeOverride], now_s: float) -> ModeOverride | None:
    """The most specific live override that limits a replica's steps; None where none does."""
    found = _concerning(replica_id, application, overrides, now_s)
    return next((override for override in found if override.max_step_ms is not None), None)


def check_aims(mode: Mode | None, max_step_ms: float | None, objective: Objective | None) -> None:
    """Raise ValueError for a limit or an objective beside a mode that plans nothing, or beside none (an override that is taken
    back)."""
    if mode is not None and mode.kind not in {"off", "pin"}:
        return
    plans_nothing = f"with mode {mode or 'default'}, which plans nothing; allowed are auto and shadow"
    if max_step_ms is not None:
        raise ValueError(f"max_step_ms: {max_step_ms:g} {plans_nothing}")
    if objective is not None:
        raise ValueError(f"objective: {objective} {plans_nothing}")


def check_pin(mode: Mode, maxima: Iterable[int]) -> None:
    """Raise ValueError for a pinned K above each of `maxima`, those of the engines concerned. Without any it may be right."""
    most, pinned = max(maxima, default=None), mode.num_speculative_tokens
    if pinned is not None and most is not None and pinned > most:
        raise ValueError(f"mode: pin={pinned} is above the maximum of every engine concerned; allowed is at most pin={most}")


def check_planner(scope: Scope, mode: Mode | None, planner: PlannerName | None) -> None:
    """Raise ValueError for a planner of less than the fleet, or beside a mode that plans nothing."""
    if planner is None:
        return
    if scope != "fleet":
        raise ValueError(
            f"planner: {planner} for one {scope}; replicas of a group share a plan, so it is set for the whole fleet alone"
        )
    if mode is None or mode.kind in {"off", "pin"}:
        raise ValueError(f"planner: {planner} with mode {mode or 'default'}, which plans nothing; allowed are auto and shadow")


def fleet_override(overrides: Sequence[ModeOverride], now_s: float) -> ModeOverride | None:
    """The live override of the whole fleet; None where there is none."""
    return next((override for override in overrides if override.scope == "fleet" and override.is_live(now_s)), None)


def with_overrides(settings: OperatorSettings, overrides: Sequence[ModeOverride], now_s: float) -> OperatorSettings:
    """The settings with the planner that decides now and its objective: those set by hand for the fleet while that holds, else
    their own.

    >>> by_hand = ModeOverride(scope="fleet", mode=Mode.parse("auto"), planner="nightjar", expires_at_s=60.0)
    >>> [with_overrides(OperatorSettings(), [by_hand], now_s).planner for now_s in (59.0, 60.0)]
    ['nightjar', 'fleet']
    """
    override = fleet_override(overrides, now_s)
    if override is None:
        return settings
    settings = settings.with_objective(override.objective)
    return settings if override.planner in {None, settings.planner} else settings.model_copy(update={"planner": override.planner})


def limit_of(
    replica_id: str, application: str, settings: OperatorSettings, overrides: Sequence[ModeOverride], now_s: float
) -> ReplicaLimit | None:
    """The limit of a replica that is not the fleet's: by hand, or else its application's; None where the fleet's is as strict.

    >>> settings = OperatorSettings(max_step_ms_per_application={"chat": 40.0}, max_step_ms=60.0)
    >>> limit_of("r1", "chat", settings, (), 0.0), limit_of("r2", "mail", settings, (), 0.0)
    (ReplicaLimit(max_step_ms=40.0, set_by='application chat'), None)
    """
    override = _limiting(replica_id, application, overrides, now_s)
    if override is not None and override.max_step_ms is not None:
        limit = ReplicaLimit(override.max_step_ms, set_by(override))
    elif application in settings.max_step_ms_per_application:
        limit = ReplicaLimit(settings.max_step_ms_per_application[application], f"application {application}")
    else:
        return None
    return limit if settings.max_step_ms is None or limit.max_step_ms < settings.max_step_ms else None


def objective_of(
    replica_id: str, application: str, settings: OperatorSettings, overrides: Sequence[ModeOverride], now_s: float
) -> tuple[Objective | None, bool]:
    """The objective of a replica that is not the fleet's (None where it is), and whether it was set by hand and not for its
    application in the settings.

    >>> settings = OperatorSettings(objective_per_application={"jobs": "throughput"})
    >>> by_hand = ModeOverride(scope="replica", name="r2", mode=Mode.parse("auto"), objective="latency")
    >>> objective_of("r1", "jobs", settings, [by_hand], 0.0), objective_of("r2", "jobs", settings, [by_hand], 0.0)
    (('throughput', False), (None, False))
    """
    found = _concerning(replica_id, application, overrides, now_s)
    by_hand = next((override.objective for override in found if override.objective is not None), None)
    wanted = by_hand or settings.objective_per_application.get(application)
    return (None, False) if wanted in {None, settings.objective} else (wanted, by_hand is not None)


def _concerning(replica_id: str, application: str, overrides: Sequence[ModeOverride], now_s: float) -> Iterator[ModeOverride]:
    names = {"replica": replica_id, "application": application, "fleet": ""}
    for scope in _MOST_SPECIFIC_FIRST:
        for override in overrides:
            if override.scope == scope and override.name == names[scope] and override.is_live(now_s):
                yield override


def slower(mode: Mode, key: GroupKey) -> Causes:
    """What a pinned K costs where an engine has no graphs for it; empty where nothing."""
    return (because(Code.SLOWER, why),) if (why := mode.why_slow(key.graph_tiers)) else ()


def set_by(override: ModeOverride) -> str:
    """Who set it, in words."""
    target = f"{override.scope} {override.name}".rstrip()
    return f"{target} by hand ({override.reason})" if override.reason else f"{target} by hand"
