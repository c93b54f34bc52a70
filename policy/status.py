"""What `status` tells an operator: the fleet, its groups and every replica, as the HTTP API gives it and every view reads it."""

from __future__ import annotations

from typing import Literal

from nightjar.policy.records import (
    AdapterCounters,
    DrafterCounters,
    DrafterState,
    EngineLoad,
    Mode,
    Record,
    SettingsVersion,
    StepTotals,
    TableRow,
)

Scope = Literal["fleet", "application", "replica"]


class OverrideStatus(Record):
    """A mode somebody set by hand, and how long it still holds (None: until taken back)."""

    scope: Scope
    name: str = ""
    mode: Mode
    reason: str = ""
    seconds_left: float | None = None


class ReplicaStatus(Record):
    """One replica as last reported. `reason` is the last decision in words; `generated_tokens_per_s` is over the last period."""

    replica_id: str
    application: str
    node_id: str
    group_id: str
    mode: Mode
    load: EngineLoad
    drafter_state: DrafterState
    drafter: DrafterCounters = DrafterCounters()
    adapters: tuple[AdapterCounters, ...] = ()
    restarts: int = 0
    failed_probes: int = 0
    catch_up_seconds: float = 0.0
    acceptance: tuple[float, ...] = ()
    generated_tokens_per_s: float = 0.0
    report_age_s: float
    settings_version: SettingsVersion | None = None
    settings_confirmed: bool = False
    reason: str = ""
    serving_plainly: str = ""
    engine_id: str = ""
    totals: tuple[StepTotals, ...] = ()


class CellStatus(Record):
    """What is known of one batch bucket at one K: predicted goodput and on how many clean steps it stands."""

    first_batch_size: int
    last_batch_size: int
    num_speculative_tokens: int
    goodput_tokens_per_s: float
    clean_steps: float


class GroupStatus(Record):
    """A group: its plan, what it learned and its acceptance by position."""

    group_id: str
    replicas: int
    planner: str
    rows: tuple[TableRow, ...] = ()
    acceptance: tuple[float, ...] = ()
    cells: tuple[CellStatus, ...] = ()
    reason: str = ""


class PolicyStatus(Record):
    """The policy actor itself."""

    incarnation: int
    pid: int
    node_id: str = ""
    uptime_s: float
    journal_path: str = ""
    mode: Mode
    planner: str
    reports: int = 0
    refused_reports: int = 0
    last_refusal: str = ""
    settings_error: str = ""


class FleetStatus(Record):
    """The answer of `GET /nightjar/status`."""

    policy: PolicyStatus
    overrides: tuple[OverrideStatus, ...] = ()
    groups: tuple[GroupStatus, ...] = ()
    replicas: tuple[ReplicaStatus, ...] = ()
