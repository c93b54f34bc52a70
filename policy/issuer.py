"""Which settings each replica is to run, under which version: the fence of the control plane (INV-5).

Settings are issued under a version, (incarnation, sequence); the sequence rises only when a replica's content changes, and a
version that this policy never issued, seen in a report, makes the incarnation rise above it. The actor and the simulator issue
settings with this very code; how calls wait for them is the actor's own. Bounded (INV-8): reports of more than MAX_REPLICAS
replicas are refused.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from nightjar.policy.state import MAX_REPLICAS
from nightjar.policy.wire.report import LoadReport
from nightjar.policy.wire.settings import IssuedSettings, Settings, SettingsVersion

MAX_PLAUSIBLE: Final = 1 << 40
"""No policy restarts, and none decides, so often: a reported number above this is a lie or garbage (INV-10)."""


@dataclass(slots=True)
class Slot:
    """One replica as the policy knows it: `known` is the version it says it runs, `sent` the last one given to a call of its.
    `issued` is in force for it.
    """

    application: str
    max_num_speculative_tokens: int
    known: SettingsVersion | None = None
    issued: IssuedSettings | None = None
    sent: SettingsVersion | None = None
    raised_incarnation: bool = False

    @property
    def version(self) -> SettingsVersion | None:
        """Of the settings in force for the replica."""
        return self.issued.version if self.issued is not None else None

    @property
    def is_confirmed(self) -> bool:
        """Whether the replica runs the settings in force, by its own last report."""
        return self.issued is not None and self.known == self.issued.version

    @property
    def has_unsent_news(self) -> bool:
        """Whether there are settings that the replica does not run and was never sent."""
        return self.issued is not None and self.issued.version.is_newer_than(self.known) and self.issued.version != self.sent


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

    def give(self, replica_id: str, known: SettingsVersion | None) -> IssuedSettings | None:
        """Settings newer than the `known` ones, which count as sent from now on; None where what the replica runs is in force."""
        slot = self.slots[replica_id]
        if slot.issued is None or not slot.issued.version.is_newer_than(known):
            return None
        slot.sent = slot.issued.version
        return slot.issued

    def post(self, replica_id: str, settings: Settings) -> IssuedSettings | None:
        """Put settings in force for a replica, under a version of their own.

        Returns those, or None where they are what the replica has already; causes do not count.
        """
        slot = self.slots.get(replica_id)
        if slot is None:
            return None
        if slot.issued is not None:
            before = slot.issued.settings
            if settings == before or settings.without_causes() == before.without_causes():
                return None
        return self._issue(replica_id, slot, settings)

    def raise_incarnation(self, found: int) -> bool:
        """Rise above every foreign version that reports named and above `found`, what a store held; issue all settings anew.

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
            if slot.issued is not None:
                self._issue(replica_id, slot, slot.issued.settings)
        return True

    def keep_only(self, replica_ids: Collection[str]) -> None:
        """Forget every other replica."""
        for replica_id in self.slots.keys() - set(replica_ids):
            self.slots.pop(replica_id).issued = None
            self._gone(replica_id)

    def _news(self, replica_id: str) -> None:
        """Called when a replica's settings got a new version."""

    def _gone(self, replica_id: str) -> None:
        """Called when a replica was forgotten."""

    def _issue(self, replica_id: str, slot: Slot, settings: Settings) -> IssuedSettings:
        self._sequence += 1
        version = SettingsVersion(incarnation=self.incarnation, sequence=self._sequence)
        slot.issued = IssuedSettings(version=version, settings=settings)
        self._news(replica_id)
        return slot.issued

    def _is_foreign(self, slot: Slot | None, known: SettingsVersion) -> bool:
        """Whether another policy must have issued `known`: it is above what this replica, or any, ever got from this one."""
        if slot is not None and slot.issued is not None:
            return known.is_newer_than(slot.issued.version)
        return known.is_newer_than(SettingsVersion(incarnation=self.incarnation, sequence=self._sequence))
