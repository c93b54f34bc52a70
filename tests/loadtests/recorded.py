"""A recorded run in miniature: rows and samples of two modes, with counts that can be added up by hand."""

from __future__ import annotations

from typing import Any

from nightjar.loadtests.arms.samples import StatusSample
from nightjar.loadtests.load.rows import RequestRow
from nightjar.policy.wire.mode import Mode
from nightjar.policy.wire.report import DrafterState, EngineLoad, StepTotals
from nightjar.policy.wire.settings import SettingsVersion, TableRow
from nightjar.policy.wire.status import FleetStatus, GroupStatus, OverrideStatus, PolicyStatus, ReplicaStatus


def totals(
    length: int, steps: int, *, step_seconds: float | None = None, tokens: int | None = None, accepted: int = 0
) -> StepTotals:
    return StepTotals(
        num_speculative_tokens=length,
        steps=steps,
        step_seconds=steps * 0.1 if step_seconds is None else step_seconds,
        decode_rows=steps,
        generated_tokens=steps if tokens is None else tokens,
        draft_tokens=steps * length,
        accepted_tokens=accepted,
    )


def replica(
    name: str = "r1",
    *counted: StepTotals,
    mode: str = "auto",
    load: EngineLoad | None = None,
    sequence: int = 1,
    incarnation: int = 1,
) -> ReplicaStatus:
    return ReplicaStatus(
        replica_id=name,
        application="app",
        node_id="n",
        group_id="g",
        mode=Mode.parse(mode),
        load=load or EngineLoad(),
        drafter_state=DrafterState.IN_SYNC,
        report_age_s=0.1,
        settings_version=SettingsVersion(incarnation=incarnation, sequence=sequence),
        settings_confirmed=True,
        engine_id=f"engine-of-{name}",
        totals=counted,
    )


def fleet(
    *replicas: ReplicaStatus, mode: str = "auto", planner: str = "fleet", overrides: tuple[OverrideStatus, ...] = (), **policy: Any
) -> FleetStatus:
    """One group of these; `policy` are further fields of what the policy says of itself."""
    told: dict[str, Any] = {"incarnation": 1, "pid": 1, "uptime_s": 1.0} | policy
    rows = (TableRow(first_batch_size=1, last_batch_size=4, num_speculative_tokens=5),)
    return FleetStatus(
        policy=PolicyStatus(mode=Mode.parse(mode), planner=planner, **told),
        overrides=overrides,
        groups=(GroupStatus(group_id="g", replicas=len(replicas), planner=planner, rows=rows),),
        replicas=replicas,
    )


def sample(time_s: float, mode: str, *replicas: ReplicaStatus, incarnation: int = 1, pid: int = 1) -> StatusSample:
    return StatusSample(time_s=time_s, mode=mode, status=fleet(*replicas, incarnation=incarnation, pid=pid))


def row(
    request_id: str, phase: str, scheduled_s: float, *, start_s: float, mode: str = "off", error: str = "", **more: Any
) -> RequestRow:
    """`more` are fields of a whole answer that differ."""
    whole = {"ttft_s": 0.5, "tpot_s": 0.1, "e2e_s": 2.0, "completion_tokens": 16, "status": 200}
    failed = {"ttft_s": None, "tpot_s": None, "completion_tokens": None, "status": 0} if error else {}
    named = {"request_id": request_id, "phase": phase, "mode": mode, "scheduled_s": scheduled_s, "start_s": start_s, "error": error}
    return RequestRow.model_validate(whole | more | failed | named)
