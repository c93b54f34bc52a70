"""What mode a replica is in: the operator's settings, and overrides that people set by hand for a while.

An override names the fleet, an application or a replica; the most specific live one wins over the settings. Expiry is a
point on the caller's clock, so an override that nobody takes back ends by itself. Fails closed: an override whose scope
and name do not fit is refused when it is made, so the functions below never meet one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Final, Self

from pydantic import Field, model_validator

from nightjar.policy.wire.mode import Mode
from nightjar.policy.wire.record import Reason, Record
from nightjar.policy.wire.status import Scope

_MOST_SPECIFIC_FIRST: Final[tuple[Scope, ...]] = ("replica", "application", "fleet")


class ModeOverride(Record):
    """A mode set by hand. `name` is the application's or the replica's; the scope fleet has none."""

    scope: Scope
    name: Annotated[str, Field(max_length=256)] = ""
    mode: Mode
    expires_at_s: float | None = None
    reason: Reason = ""

    @model_validator(mode="after")
    def _name_fits_scope(self) -> Self:
        if self.scope == "fleet" and self.name:
            raise ValueError(f"scope fleet takes no name (got {self.name!r}); use scope application or replica")
        if self.scope != "fleet" and not self.name:
            raise ValueError(f"scope {self.scope} needs the name of the {self.scope}")
        return self

    def is_live(self, now_s: float) -> bool:
        """Whether it still holds at `now_s`, seconds on the clock that set `expires_at_s`."""
        return self.expires_at_s is None or now_s < self.expires_at_s


def live_overrides(overrides: Sequence[ModeOverride], now_s: float) -> tuple[ModeOverride, ...]:
    """Those that have not expired, in their order."""
    return tuple(override for override in overrides if override.is_live(now_s))


def set_override(overrides: Sequence[ModeOverride], override: ModeOverride) -> tuple[ModeOverride, ...]:
    """Add an override in place of an earlier one of the same scope and name."""
    place = (override.scope, override.name)
    return (*(other for other in overrides if (other.scope, other.name) != place), override)


def effective_mode(
    replica_id: str, application: str, operator_mode: Mode, overrides: Sequence[ModeOverride], now_s: float
) -> tuple[Mode, str]:
    """The mode of one replica and, in words, who set it: replica before application before fleet before settings.

    >>> drain = ModeOverride(scope="application", name="chat", mode=Mode.parse("off"), reason="incident", expires_at_s=60.0)
    >>> mode, who = effective_mode("r1", "chat", Mode.parse("auto"), [drain], now_s=59.0)
    >>> str(mode), who
    ('off', 'application chat by hand (incident)')
    >>> str(effective_mode("r1", "chat", Mode.parse("auto"), [drain], now_s=60.0)[0])
    'auto'
    """
    override = override_of(replica_id, application, overrides, now_s)
    return (override.mode, _set_by(override)) if override is not None else (operator_mode, "the settings")


def override_of(replica_id: str, application: str, overrides: Sequence[ModeOverride], now_s: float) -> ModeOverride | None:
    """The live override that concerns a replica, the most specific one; None where the settings hold."""
    names = {"replica": replica_id, "application": application, "fleet": ""}
    for scope in _MOST_SPECIFIC_FIRST:
        for override in overrides:
            if override.scope == scope and override.name == names[scope] and override.is_live(now_s):
                return override
    return None


def _set_by(override: ModeOverride) -> str:
    target = f"{override.scope} {override.name}".rstrip()
    return f"{target} by hand ({override.reason})" if override.reason else f"{target} by hand"
