"""The replica's side of the exchange without engine, network or clock: what a reply means, and when the next report is due.

The agent (deployments/agent.py) and the simulator run this very code; the policy's side is issuer.py. Fails closed: a reply of
another protocol, or from before the settings that are known, changes and confirms nothing (INV-5), and after failures the next
report waits longer each time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from nightjar.policy.wire.operator import OperatorSettings
from nightjar.policy.wire.record import PROTOCOL_VERSION
from nightjar.policy.wire.settings import ExchangeReply, IssuedSettings, SettingsVersion

DEFAULT_PERIOD_S: Final = OperatorSettings().exchange_period_s
"""Between two reports before the policy has said how often, and after the first that failed: as without any operator's settings."""
MAX_BACKOFF_S: Final = 5.0
"""Between two attempts, however many have failed: so long an engine may be late to learn that the policy is back."""


def backoff_s(failures: int, first_s: float = DEFAULT_PERIOD_S) -> float:
    """Seconds to wait after so many failures in a row.

    >>> [backoff_s(failures) for failures in (1, 2, 3, 4, 5, 10**6)]
    [0.5, 1.0, 2.0, 4.0, 5.0, 5.0]
    """
    return min(first_s * 2.0 ** min(failures - 1, 16), MAX_BACKOFF_S)


@dataclass(slots=True)
class Reporting:
    """One replica's exchange, one call at a time, on any steady clock.

    `issued` are the newest settings that are known, `heard_s` is when the policy last sent or confirmed them.
    """

    next_report_s: float = 0.0
    heard_s: float = 0.0
    issued: IssuedSettings | None = None
    _reported: SettingsVersion | None = None
    _started_s: float = 0.0
    _failures: int = 0

    def begins(self, version: SettingsVersion | None, now_s: float) -> None:
        """A report goes out that names the settings the engine runs."""
        self._reported, self._started_s = version, now_s

    def fails(self, now_s: float) -> None:
        """The call broke off."""
        self._failures += 1
        self.next_report_s = now_s + backoff_s(self._failures)

    def ends(self, reply: ExchangeReply, now_s: float) -> tuple[bool, str]:
        """Take the reply to the last report: whether `issued` are new or confirmed by it, and why it was refused, if so.

        Settings may come with a refusal: a replica whose counts cannot be true gets them all the same.
        """
        period_s = DEFAULT_PERIOD_S if self.issued is None else self.issued.settings.exchange_period_s
        stale = self.stale(reply)
        refused = stale or reply.refused
        due_s = self._started_s + period_s
        if refused:
            self.fails(now_s)
            self.next_report_s = max(self.next_report_s, due_s)
        else:
            self._failures, self.next_report_s = 0, due_s
        if reply.issued is not None and not stale:
            self.issued = reply.issued
            self.next_report_s = self.next_report_s if refused else now_s  # the report that acknowledges them
        elif refused or self.issued is None or self.issued.version != self._reported:
            return False, refused
        self.heard_s = now_s
        return True, refused

    def stale(self, reply: ExchangeReply) -> str:
        """Why a reply must not count: it is of another protocol, or comes from before the settings that are known already (INV-5).
        Empty if it may.
        """
        if reply.protocol_version != PROTOCOL_VERSION:
            return f"the policy speaks protocol {reply.protocol_version}, this replica {PROTOCOL_VERSION}: nothing of it is taken"
        known = None if self.issued is None else self.issued.version
        if known is None:
            return ""
        if reply.issued is not None and known.is_newer_than(reply.issued.version):
            return f"settings {reply.issued.version} are older than {known}, which is known already"
        if reply.incarnation < known.incarnation:
            return f"the policy is of incarnation {reply.incarnation}, older than the settings {known}"
        return ""
