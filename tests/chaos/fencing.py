"""A build without the fence (INV-5), to see that the test of it can fail: this process takes settings whatever their version."""

from __future__ import annotations

from nightjar.policy.exchange import Reporting
from nightjar.policy.wire.settings import ExchangeReply, SettingsVersion


def take_out() -> None:
    """In this process, for good: other settings are newer settings, and no reply is stale."""
    SettingsVersion.is_newer_than = _is_other_than  # type: ignore[method-assign]
    Reporting.stale = _is_never_stale  # type: ignore[method-assign]


def _is_other_than(self: SettingsVersion, other: SettingsVersion | None) -> bool:
    return self != other


def _is_never_stale(self: Reporting, reply: ExchangeReply) -> str:
    return ""
