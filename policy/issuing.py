"""Which settings each replica is to run, under which version: the fence of the control plane (INV-5).

Every settings record carries (incarnation, sequence); the sequence rises only when a replica's content changes, and a version
that this policy never issued, seen in a report, makes the incarnation rise above it. The actor and the simulator issue
settings with this very code; how calls wait for them is the actor's own. Bounded (INV-8): reports of more than MAX_REPLICAS
replicas are refused.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from nightjar.policy.state import Decision
from nightjar.policy.wire.operator import OperatorSettings
from nightjar.policy.wire.report import LoadReport
from nightjar.policy.wire.settings import Settings, SettingsVersion

MAX_REPLICAS: Final = 10_000
"""Far above what one actor serves (about 1,000 reports a second), below the calls that Ray lets an actor hold (20,000)."""

MAX_PLAUSIBLE: Final = 1 << 40
"""No policy restarts, and none decides, so often: a reported number above this is a lie or garbage (INV-10)."""

UNSTAMPED: Final = SettingsVersion(incarnation=0, sequence=0)


def settings_of(decision: Decision, operator_settings: OperatorSettings) -> Settings:
    """One replica's decision as settings, not stamped with a version yet."""
    return Settings(
        version=UNSTAMPED,
        mode=decision.mode,
        plan=decision.plan,
        allowed_num_speculative_tokens=decision.allowed_num_speculative_tokens,
        dwell_steps=decision.dwell_steps,
        settings_max_age_s=operator_settings.settings_max_age_s,
        exchange_period_s=operator_settings.exchange_period_s,
        micro_restart_tokens=decision.terms.micro_restart_tokens,
        catch_up_chunk_tokens=decision.terms.catch_up_chunk_tokens,
        leases=decision.terms.leases,
        offload=operator_settings.offload_rules(),
        reason=decision.reason,
    )


@dataclass(slots=True)
class Slot:
    """One replica as the policy knows it: `known` is the version it says it runs, `sent` the last one given to a call of its.

    `posted` is what was decided for it last, and what the operator said then.
    """

    application: str
    max_num_speculative_tokens: int
    known: SettingsVersion | None = None
    settings: Settings | None = None
    sent: SettingsVersion | None = None
    raised_incarnation: bool = False
    posted: tuple[Decision, OperatorSettings] | None = None

    @property
    def version(self) -> SettingsVersion | None:
        """Of the settings in force for the replica."""
        return self.settings.version if self.settings is not None else None

    @property
    def is_confirmed(self) -> bool:
        """Whether the replica runs the settings in force, by its own last report."""
        return self.settings is not None and self.known == self.settings.version

    @property
    def has_unsent_news(self) -> bool:
        """Whether there are settings that the replica does not run and was never sent."""
        return self.settings is not None and self.settings.version.is_newer_than(self.known) and self.settings.version != self.sent


class Issuer:
    """Slots by replica id. A subclass learns through `_news` and `_gone` what changed for whom."""

    def __init__(self, incarnation: int) -> None:
        self.incarnation = incarnation
        self.slots: dict[str, Slot] = {}
        self._sequence = 0
        self._highest_reported = 0

    def admit(self, report: LoadReport) -> str:
        """Open or refresh the slot of a report's replica. Returns "" or why the report is refused; then nothing has changed."""
        slot = self.slots.get(report.replica_id)
        if slot is None and len(self.slots) >= MAX_REPLICAS:
            return f"replica_id {report.replica_id}: the fleet is full, at most {MAX_REPLICAS} replicas report to one policy"
        known = report.snapshot.settings_version
        foreign = known is not None and self._is_foreign(slot, known)
        if known is not None and foreign:
            if max(known.incarnation, known.sequence) >= MAX_PLAUSIBLE:
                return f"snapshot.settings_version {known}: numbers from {MAX_PLAUSIBLE} on are implausible"
            if slot is not None and slot.raised_incarnation:
                return f"snapshot.settings_version {known}: never issued, and this replica has named such a version before"
            self._highest_reported = max(self._highest_reported, known.incarnation)
        if slot is None:
            slot = self.slots[report.replica_id] = Slot(report.application, report.group.max_num_speculative_tokens)
        slot.application = report.application
        slot.max_num_speculative_tokens = report.group.max_num_speculative_tokens
        slot.known = known
        return ""

    def give(self, replica_id: str, known: SettingsVersion | None) -> Settings | None:
        """Settings newer than the `known` ones, which count as sent from now on; None where what the replica runs is in force."""
        slot = self.slots[replica_id]
        if slot.settings is None or not slot.settings.version.is_newer_than(known):
            return None
        slot.sent = slot.settings.version
        return slot.settings

    def post(self, replica_id: str, decision: Decision, operator_settings: OperatorSettings) -> Settings | None:
        """Put a decision in force for a replica, as settings that are stamped.

        Returns those settings, or None where the content is what the replica has already; words do not count as content.
        """
        slot = self.slots.get(replica_id)
        if slot is None or slot.posted == (decision, operator_settings):
            return None
        settings = settings_of(decision, operator_settings)
        slot.posted = decision, operator_settings
        if slot.settings is not None:
            unchanged = settings.model_copy(update={"version": slot.settings.version, "reason": slot.settings.reason})
            if unchanged == slot.settings:
                return None
        return self._stamp(replica_id, slot, settings)

    def raise_incarnation(self, found: int) -> bool:
        """Rise above every foreign version that reports named and above `found`, what a store held; stamp all settings anew.

        False where this policy is above them already.
        """
        highest = max(self._highest_reported, found)
        if highest < self.incarnation:
            return False
        for slot in self.slots.values():
            slot.raised_incarnation |= slot.known is not None and self._is_foreign(slot, slot.known)
        self.incarnation = highest + 1
        self._highest_reported = 0
        for replica_id, slot in self.slots.items():
            if slot.settings is not None:
                self._stamp(replica_id, slot, slot.settings)
        return True

    def keep_only(self, replica_ids: Collection[str]) -> None:
        """Forget every other replica."""
        for replica_id in self.slots.keys() - set(replica_ids):
            self.slots.pop(replica_id).settings = None
            self._gone(replica_id)

    def _news(self, replica_id: str) -> None:
        """Called when a replica's settings got a new version."""

    def _gone(self, replica_id: str) -> None:
        """Called when a replica was forgotten."""

    def _stamp(self, replica_id: str, slot: Slot, settings: Settings) -> Settings:
        self._sequence += 1
        version = SettingsVersion(incarnation=self.incarnation, sequence=self._sequence)
        slot.settings = settings.model_copy(update={"version": version})
        self._news(replica_id)
        return slot.settings

    def _is_foreign(self, slot: Slot | None, known: SettingsVersion) -> bool:
        """Whether another policy must have issued `known`: it is above what this replica, or any, ever got from this one."""
        if slot is not None and slot.settings is not None:
            return known.is_newer_than(slot.settings.version)
        return known.is_newer_than(SettingsVersion(incarnation=self.incarnation, sequence=self._sequence))
