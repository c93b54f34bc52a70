"""A small fleet as `status` tells it, for tests of the views, the API and the command."""

from nightjar.policy.wire.mode import Mode
from nightjar.policy.wire.report import DrafterState, EngineLoad
from nightjar.policy.wire.settings import SettingsVersion, TableRow
from nightjar.policy.wire.status import CellStatus, FleetStatus, GroupStatus, OverrideStatus, PolicyStatus, ReplicaStatus


def some_fleet(*, mode: str = "auto") -> FleetStatus:
    """Two replicas of one group, the second of them silent for a while."""
    parsed = Mode.parse(mode)
    load = EngineLoad(
        decode_batch_size=3,
        num_running_reqs=4,
        num_waiting_reqs=1,
        kv_cache_usage=0.25,
        num_speculative_tokens=0 if mode == "shadow" else 5,
        planned_num_speculative_tokens=5,
    )
    first = ReplicaStatus(
        replica_id="smollm2#LLM#abc",
        application="smollm2",
        node_id="n1",
        group_id="smollm2-1234",
        mode=parsed,
        load=load,
        drafter_state=DrafterState.ACTIVE,
        acceptance=(0.8, 0.6, 0.4),
        generated_tokens_per_s=41.5,
        report_age_s=0.4,
        settings_version=SettingsVersion(incarnation=3, sequence=17),
        settings_confirmed=True,
        reason="K=5 up to batch 4",
    )
    second = first.model_copy(update={"replica_id": "smollm2#LLM#def", "report_age_s": 12.0, "settings_confirmed": False})
    rows = (
        TableRow(first_batch_size=1, last_batch_size=1, num_speculative_tokens=5),
        TableRow(first_batch_size=2, last_batch_size=5, num_speculative_tokens=5),
        TableRow(first_batch_size=6, last_batch_size=16, num_speculative_tokens=0),
    )
    override = OverrideStatus(scope="application", name="smollm2", mode=Mode.parse("off"), reason="too [hot]", seconds_left=90.0)
    policy = PolicyStatus(incarnation=3, pid=42, uptime_s=75.0, mode=parsed, planner="fleet", reports=9)
    cell = CellStatus(first_batch_size=3, last_batch_size=3, num_speculative_tokens=5, goodput_tokens_per_s=40.0, clean_steps=12.0)
    group = GroupStatus(group_id="smollm2-1234", replicas=2, planner="fleet", rows=rows, acceptance=(0.8, 0.6), cells=(cell,))
    return FleetStatus(policy=policy, overrides=(override,), groups=(group,), replicas=(first, second))
