"""What `status` tells an operator: the fleet, its groups and every replica, as the HTTP API gives it and every view reads it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import ClassVar, Final, Literal

from nightjar.policy.wire.cause import Causes
from nightjar.policy.wire.mode import Mode
from nightjar.policy.wire.record import Record
from nightjar.policy.wire.report import AdapterCounters, DrafterCounters, DrafterState, EngineLoad, Layer, SteeringLevel, StepTotals
from nightjar.policy.wire.settings import SettingsVersion, TableRow

Scope = Literal["fleet", "application", "replica"]
NO_NEW: Final = "no new plan, measurement or lease"
"""What a freeze forbids."""


def shown_name(application: str, replica_id: str) -> str:
    """A replica as `status` names it: its application and the last part of its id, `chat/x1y2z3`."""
    return f"{application}/{replica_id.rpartition('#')[2]}"


def in_utc(time_s: float) -> str:
    """A time on the policy's clock as people read it.

    >>> in_utc(0.0)
    '1970-01-01 00:00:00 UTC'
    """
    return datetime.fromtimestamp(time_s, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


class OverrideStatus(Record):
    """A mode somebody set by hand, with its limit of a step, its objective, its planner, and how long it still holds (None: until
    taken back).

    `carried_from` is the address of the policy of the cluster before, where it was set there.
    """

    scope: Scope
    name: str = ""
    mode: Mode
    max_step_ms: float | None = None
    objective: str | None = None
    planner: str | None = None
    reason: str = ""
    carried_from: str = ""
    seconds_left: float | None = None


class ReplicaStatus(Record):
    """One replica as last reported; `generated_tokens_per_s` is over the last period.

    `causes` are the last decision's, and `reason` their words. `step_causes` are the engine's own, for the K that plan, dwell and
    guard gave its last step, and `decision_reason` their words (older releases have no codes). What the drafter made of that is
    in `drafter_state` and `drafter.reason`. `max_step_ms` is the limit of a step that is its own or its
    application's; `limit_decides` says whether its K differs for that at its present batch. `warning` is the part of `reason` that
    an operator may have to act on: what its agent notes, a fault, distrust, what its guard holds off, a kill switch, a limit.
    """

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
    causes: Causes = ()
    reason: str = ""
    warning: str = ""
    max_step_ms: float | None = None
    limit_decides: bool = False
    step_causes: Causes = ()
    decision_reason: str = ""
    steering: SteeringLevel = SteeringLevel.FULLY
    steering_reason: str = ""
    layers: tuple[Layer, ...] = ()
    engine_id: str = ""
    totals: tuple[StepTotals, ...] = ()


class CellStatus(Record):
    """What is known of one batch bucket at one K: predicted goodput and on how many clean steps it stands."""

    first_batch_size: int
    last_batch_size: int
    num_speculative_tokens: int
    goodput_tokens_per_s: float
    clean_steps: float


class GoodputModelStatus(Record):
    """What the planner `fleet` expected of every K in its last estimate, `age_s` ago (None: there is no evidence yet).

    A row per batch bucket, a column per K, or a single one while no other K ever ran. `goodput_tokens_per_s` is generated tokens a
    second of one replica that runs in the bucket. `goodput_deviation` is the standard deviation of its logarithm, `gain_deviation`
    that of the logarithm of its ratio to K = 0 in the same bucket (0.03 reads as 3 %), wider than the planner's own where one was
    not measured (evidence/doubt.py). It is empty where K = 0 has no column.
    """

    age_s: float | None = None
    first_batch_sizes: tuple[int, ...]
    last_batch_sizes: tuple[int, ...]
    num_speculative_tokens: tuple[int, ...]
    goodput_tokens_per_s: tuple[tuple[float, ...], ...]
    goodput_deviation: tuple[tuple[float, ...], ...]
    gain_deviation: tuple[tuple[float, ...], ...]


class GainedStatus(Record):
    """Engine time that a group saved over the last `over_s` seconds, against `num_speculative_tokens` in every step.

    It counts since the mode of most of its replicas, or the planner that decides, last changed.

    `share` of that time, from `low` to `high` (two deviations; below 0: lost); None where it is not known. `compared_s` of the
    `busy_s` of its engines are behind it (evidence/gained.py).
    """

    num_speculative_tokens: int
    over_s: float
    busy_s: float
    compared_s: float = 0.0
    share: float | None = None
    low: float | None = None
    high: float | None = None


class OpenLeaseStatus(Record):
    """A restart that was permitted, and how long the permission still holds at most."""

    replica_id: str
    reload: bool = False
    seconds_left: float


class WaitingWishStatus(Record):
    """A replica that wishes to restart speculation and holds no lease; its own `reason` says why it waits."""

    replica_id: str
    waiting_s: float
    lag_tokens: int = 0
    reload: bool = False


class RestartsStatus(Record):
    """A group's leases in flight, the wishes that wait, longest first, and how long failed probes still freeze both (0: not)."""

    open_leases: tuple[OpenLeaseStatus, ...] = ()
    waiting: tuple[WaitingWishStatus, ...] = ()
    frozen_seconds_left: float = 0.0


class GroupStatus(Record):
    """A group: its plan, what it learned, its acceptance by position and its restarts.

    `mixed_rows` is K where drafts are verified beside prefill, empty where that is no other K than `rows` has.
    `goodput_model` is None where the planner does not learn, the group has no replica, or many groups have more (status/fleet.py).
    `predicted_tokens_per_s` is what the busy replicas are predicted to generate at their present batches with the plan's K,
    `predicted_off_tokens_per_s` the same with K = 0, `predicted_present_tokens_per_s` with the K that each runs now; None where
    nothing is predicted. All three are of steps that only decode. `predicted_off_deviation` and `predicted_present_deviation` are
    standard deviations of the logarithm of the plan's over either. `not_known` says of a group in shadow why what its plan gives is
    not known, and how to find out: a single K ran, or the doubt exceeds the gain.
    `censored_acceptance`: vLLM chose how many drafts were verified, so `acceptance` is of the drafts that were made.
    `gained` is against the engines' own K, and against off; empty before anything was counted, and where many groups are larger.
    `imported_cells` are those that nobody measured here yet. `causes` are the plan's, `reason` says them in words.
    """

    group_id: str
    replicas: int
    planner: str
    rows: tuple[TableRow, ...] = ()
    mixed_rows: tuple[TableRow, ...] = ()
    acceptance: tuple[float, ...] = ()
    censored_acceptance: bool = False
    cells: tuple[CellStatus, ...] = ()
    goodput_model: GoodputModelStatus | None = None
    predicted_tokens_per_s: float | None = None
    predicted_off_tokens_per_s: float | None = None
    predicted_present_tokens_per_s: float | None = None
    predicted_off_deviation: float | None = None
    predicted_present_deviation: float | None = None
    not_known: str = ""
    gained: tuple[GainedStatus, ...] = ()
    imported_cells: int = 0
    restarts: RestartsStatus = RestartsStatus()
    causes: Causes = ()
    reason: str = ""


class FreezeStatus(Record):
    """A freeze in force: since when and until when (seconds since the epoch; None: until it is ended), and why.

    `carried_from` is the address of the policy of the cluster before, where it was set there.

    >>> FreezeStatus(since_s=0.0, seconds_left=90.0, reason="release").in_words()
    'frozen since 1970-01-01 00:00:00 UTC by hand (release), for 90 s more'
    """

    since_s: float
    reason: str = ""
    carried_from: str = ""
    expires_at_s: float | None = None
    seconds_left: float | None = None

    def in_words(self) -> str:
        """Since when, by whom and for how long."""
        since = in_utc(self.since_s)
        why = f" ({self.reason})" if self.reason else ""
        left = "until it is ended" if self.seconds_left is None else f"for {self.seconds_left:.0f} s more"
        carried = f", carried over from {self.carried_from}" if self.carried_from else ""
        return f"frozen since {since} by hand{why}{carried}, {left}"


class CanaryStatus(Record):
    """A canary that runs, or the last one: what is tried by whom, how it stands, and how long it may still run (None: until ended).

    `members` try it, `controls` are held against them. `ratio` is the canary's goodput over the control's at the same batch, from
    `low` to `high`, as of the last look after `blocks` blocks; None before the first.
    """

    phase: str
    what: str
    whom: str
    words: str
    reason: str = ""
    since_s: float
    phase_since_s: float
    seconds_left: float | None = None
    members: tuple[str, ...] = ()
    controls: int = 0
    blocks: int = 0
    ratio: float | None = None
    low: float | None = None
    high: float | None = None


class PolicyStatus(Record):
    """The policy actor itself. `decision_age_s` is the time since it last decided without an error, or since it started.

    `journal_holds_s` and `replay_holds_s` are the seconds that journal and recording keep at the present pace; absent while that is
    not known. `replay_problem` says why nothing can be replayed.

    `memory_kills` are the Serve replicas that Ray's memory monitor killed within the last hour, `last_memory_kill` says which.
    `seed_problem` says why `seed_from` brought nothing, `seed_notice` that nobody is there yet; `waiting_groups` were imported and
    have no replica yet. `unknown_applications` are those with settings of their own of which no replica reports: not started yet,
    or misspelt. `not_known_before` says why nothing is known of what was set by hand before this cluster, if so.
    """

    incarnation: int
    pid: int
    node_id: str = ""
    uptime_s: float
    journal_path: str = ""
    journal_holds_s: float | None = None
    replay_holds_s: float | None = None
    replay_problem: str = ""
    mode: Mode
    planner: str
    decision_age_s: float = 0.0
    reports: int = 0
    refused_reports: int = 0
    last_refusal: str = ""
    memory_kills: int = 0
    last_memory_kill: str = ""
    settings_error: str = ""
    seed_problem: str = ""
    seed_notice: str = ""
    waiting_groups: tuple[str, ...] = ()
    unknown_applications: tuple[str, ...] = ()
    freeze: FreezeStatus | None = None
    canary: CanaryStatus | None = None
    past_canaries: tuple[str, ...] = ()
    not_known_before: str = ""


class FleetStatus(Record):
    """The answer of `GET /nightjar/status`."""

    max_wire_bytes: ClassVar[int] = 64 << 20
    """Two to three KiB a replica, and what the groups learned: enough for 10,000 replicas. It comes from our own actor."""

    policy: PolicyStatus
    overrides: tuple[OverrideStatus, ...] = ()
    groups: tuple[GroupStatus, ...] = ()
    replicas: tuple[ReplicaStatus, ...] = ()
