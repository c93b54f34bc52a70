"""Records on the wire: what goes out comes back, neighbours of other versions understand it, and garbage is named."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from nightjar.policy.planners.base import GroupPlan
from nightjar.policy.step.steering import ks_by_batch
from nightjar.policy.wire.cause import Cause, Code
from nightjar.policy.wire.mode import Mode
from nightjar.policy.wire.record import MAX_RECORD_BYTES, WireError, to_plain, without_credentials
from nightjar.policy.wire.report import (
    CellCounters,
    Counters,
    DrafterCounters,
    DrafterState,
    EngineLoad,
    EngineSnapshot,
    GroupKey,
    LoadReport,
    RestartWish,
    StepTotals,
)
from nightjar.policy.wire.settings import (
    ExchangeReply,
    ExplorationSegment,
    IssuedSettings,
    Lease,
    Local,
    RestartLimits,
    Settings,
    SettingsVersion,
    Table,
    TableRow,
    k_at,
)
from nightjar.policy.wire.status import FleetStatus, PolicyStatus

ks = st.integers(0, 32)
counts = st.integers(0, (1 << 53) - 1)
seconds = st.floats(0.0, 1e9)
names = st.text(min_size=1, max_size=20)
reasons = st.text(max_size=40)
modes = st.sampled_from(["auto", "shadow", "off"]) | ks.map(lambda k: f"pin={k}")
versions = st.builds(SettingsVersion, incarnation=counts, sequence=counts)
positions = st.lists(counts, max_size=5).map(tuple)
cells = st.builds(
    CellCounters,
    batch_bucket=st.integers(0, 63),
    num_speculative_tokens=ks,
    steps=counts,
    step_seconds=seconds,
    log_step_seconds=st.floats(-1e12, 1e12),
    decode_rows=counts,
    reached=positions,
    accepted=positions,
)
totals = st.builds(StepTotals, num_speculative_tokens=ks, steps=counts, generated_tokens=counts)
counters = st.builds(
    Counters,
    engine_id=names,
    step_count=counts,
    totals=st.lists(totals, max_size=3).map(tuple),
    cells=st.lists(cells, max_size=3).map(tuple),
)
snapshots = st.builds(
    EngineSnapshot,
    counters=counters,
    load=st.builds(EngineLoad, decode_batch_size=st.integers(0, 4096), kv_cache_usage=st.floats(0, 1)),
    settings_version=st.none() | versions,
    drafter_state=st.sampled_from(DrafterState),
    finished_segment_id=counts,
    restart_wish=st.none() | st.builds(RestartWish, wish_id=st.integers(1, 1 << 52), lag_tokens=counts, reload=st.booleans()),
    drafter=st.builds(DrafterCounters, lag_tokens=counts, recomputed_tokens=counts, reason=reasons),
)
groups = st.builds(GroupKey, target=names, draft=reasons, max_num_speculative_tokens=ks, max_num_seqs=st.integers(1, 4096))
reports = st.builds(
    LoadReport,
    replica_id=names,
    application=names,
    group=groups,
    report_number=counts,
    snapshot=snapshots,
    serving_plainly=reasons,
    local_mode=st.none() | modes.map(Mode.parse),
)


@st.composite
def tables(draw: st.DrawFn) -> Table:
    edges = sorted(draw(st.sets(st.integers(0, 4096), min_size=1, max_size=6)))
    rows = tuple(
        TableRow(first_batch_size=first, last_batch_size=following - 1, num_speculative_tokens=draw(ks))
        for first, following in zip(edges, [*edges[1:], 4097], strict=True)
    )
    segments = st.builds(
        ExplorationSegment,
        segment_id=st.integers(1, 1 << 52),
        first_batch_size=st.integers(0, 4096),
        last_batch_size=st.integers(0, 4096),
        num_speculative_tokens=ks,
        clean_steps=st.integers(1, 10_000),
        time_to_live_s=seconds,
    )
    return Table(rows=rows, segments=tuple(draw(st.lists(segments, max_size=2))))


local_plans = st.builds(
    Local, planner=names, options=st.dictionaries(names, st.integers(-5, 5) | st.booleans() | reasons, max_size=3)
)
leases = st.builds(Lease, wish_id=st.integers(1, 1 << 52), time_to_live_s=seconds, reload=st.booleans())
causes = st.builds(Cause, code=st.sampled_from(Code), numbers=st.dictionaries(names, counts | seconds, max_size=4), text=reasons)
some_causes = st.lists(causes, max_size=3).map(tuple)
all_settings = st.builds(
    Settings,
    mode=modes.map(Mode.parse),
    plan=tables() | local_plans,
    allowed_num_speculative_tokens=st.lists(ks, min_size=1, max_size=5).map(tuple),
    restarts=st.builds(RestartLimits, leases=st.lists(leases, max_size=2).map(tuple), causes=some_causes),
    causes=some_causes,
)


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(reports)
def test_a_report_survives_the_wire(report: LoadReport) -> None:
    assert LoadReport.from_wire(report.to_wire()) == report


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.builds(IssuedSettings, version=versions, settings=all_settings), counts)
def test_a_reply_with_settings_survives_the_wire_and_json(issued: IssuedSettings, incarnation: int) -> None:
    reply = ExchangeReply(incarnation=incarnation, issued=issued)
    assert ExchangeReply.from_wire(reply.to_wire()) == reply
    assert ExchangeReply.model_validate(to_plain(reply)) == reply


@given(st.binary(max_size=200))
def test_any_bytes_are_a_record_or_a_wire_error(payload: bytes) -> None:
    try:
        LoadReport.from_wire(payload)
    except WireError as error:
        assert str(error).startswith("LoadReport: ")  # noqa: PT017 - both outcomes are legal


def report_fields() -> dict[str, Any]:
    fields: dict[str, Any] = msgpack.unpackb(
        LoadReport(
            replica_id="a",
            application="chat",
            group=GroupKey(target="t"),
            report_number=1,
            snapshot=EngineSnapshot(counters=Counters(engine_id="e")),
        ).to_wire()
    )
    return fields


def test_fields_of_a_newer_version_are_ignored_at_every_level() -> None:
    newer = report_fields() | {"protocol_version": 2, "invented_later": [1]}
    newer["snapshot"]["counters"]["invented_later"] = "x"
    assert LoadReport.from_wire(msgpack.packb(newer)).protocol_version == 2


def test_a_report_of_an_older_version_that_lacks_optional_fields_is_understood() -> None:
    older = {key: report_fields()[key] for key in ("replica_id", "application", "group", "report_number")}
    older |= {"group": {"target": "t"}, "snapshot": {"counters": {"engine_id": "e"}}}
    assert LoadReport.from_wire(msgpack.packb(older)) == LoadReport.from_wire(msgpack.packb(report_fields()))


def test_a_copy_with_what_is_no_field_is_refused() -> None:
    row = TableRow(first_batch_size=1, last_batch_size=4, num_speculative_tokens=2)
    assert row.model_copy(update={"last_batch_size": 8}).last_batch_size == 8
    with pytest.raises(TypeError, match="TableRow has no leases; its fields are first_batch_size, last_batch_size"):
        row.model_copy(update={"leases": ()})


def test_an_oversized_record_is_refused_unread() -> None:
    with pytest.raises(WireError, match=f"LoadReport: {MAX_RECORD_BYTES + 1} bytes, allowed are at most {MAX_RECORD_BYTES}"):
        LoadReport.from_wire(b"\x00" * (MAX_RECORD_BYTES + 1))


def test_the_status_of_thousands_of_replicas_is_read() -> None:
    policy = PolicyStatus(
        incarnation=1, pid=1, uptime_s=0.0, mode=Mode.parse("auto"), planner="fleet", last_refusal="x" * 5_000_000
    )
    payload = FleetStatus(policy=policy).to_wire()
    assert len(payload) > MAX_RECORD_BYTES
    assert FleetStatus.from_wire(payload).policy == policy


def test_bytes_that_are_not_msgpack_are_named_as_such() -> None:
    with pytest.raises(WireError, match="not msgpack"):
        LoadReport.from_wire(b"\xc1")


@pytest.mark.parametrize("depth", [900, 1000, 1020, 100_000])
def test_values_within_each_other_a_thousand_deep_are_refused_in_words(depth: int) -> None:
    with pytest.raises(WireError, match="LoadReport: "):
        LoadReport.from_wire(b"\x91" * depth + b"\x01")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("step_count", -1),
        ("step_count", 1 << 53),
        ("busy_seconds", float("nan")),
        ("busy_seconds", float("inf")),
        ("engine_id", ""),
    ],
)
def test_a_value_out_of_bounds_is_refused_with_its_field(field: str, value: object) -> None:
    fields = report_fields()
    fields["snapshot"]["counters"][field] = value
    with pytest.raises(WireError, match=rf"LoadReport: snapshot\.counters\.{field}: "):
        LoadReport.from_wire(msgpack.packb(fields))


@pytest.mark.parametrize("text", ["auto", "shadow", "off", "pin=0", "pin=32"])
def test_a_mode_is_the_same_text_everywhere(text: str) -> None:
    mode = Mode.parse(text)
    assert str(mode) == text
    assert Mode.from_wire(msgpack.packb(text)) == mode


@pytest.mark.parametrize("text", ["", "on", "pin", "pin=", "pin=33", "pin=-1", "pin=x", "AUTO", "pin=3 "])
def test_a_mode_that_is_none_names_what_is_allowed(text: str) -> None:
    with pytest.raises(ValidationError, match="none of auto, shadow, off, pin=K with K from 0 to 32"):
        Mode.parse(text)


def test_rows_that_overlap_or_run_backwards_are_refused() -> None:
    row = TableRow(first_batch_size=1, last_batch_size=4, num_speculative_tokens=1)
    with pytest.raises(ValidationError, match="rows must ascend without overlap"):
        Table(rows=(row, row))
    with pytest.raises(ValidationError, match="first_batch_size 5 is above last_batch_size 4"):
        TableRow(first_batch_size=5, last_batch_size=4, num_speculative_tokens=1)


@given(tables(), st.data())
def test_a_batch_in_a_gap_takes_the_row_before_it_one_below_all_rows_the_first_and_one_above_them_off(
    table: Table, data: st.DataObject
) -> None:
    rows = tuple(row for row in table.rows if data.draw(st.booleans())) or table.rows[:1]
    batch = data.draw(st.integers(0, 4096))
    begun = [row for row in rows if row.first_batch_size <= batch]
    expected = 0 if batch > rows[-1].last_batch_size else (begun[-1] if begun else rows[0]).num_speculative_tokens
    assert k_at(rows, batch) == expected
    assert GroupPlan(rows).num_speculative_tokens(batch) == ks_by_batch(Table(rows=rows), 4096)[batch] == expected


@given(groups, groups)
def test_a_group_id_tells_groups_apart(one: GroupKey, other: GroupKey) -> None:
    assert (one.group_id == other.group_id) == (one == other)


@pytest.mark.parametrize("text", [":" * 200_000, "a" * 200_000, "'a:" * 100_000, "a@" * 100_000])
def test_a_text_of_any_length_is_looked_through_once_for_passwords(text: str) -> None:
    """At its square, let alone its cube, this would hold the policy's only thread for hours."""
    assert without_credentials(text) == text


def test_every_password_of_a_text_is_taken_out_of_it() -> None:
    text = """'http://me:secret@host/a' "b:c@d" http://e:8000/f https://g:h@i@j k:l@sha256:00"""
    assert without_credentials(text) == """'***@host/a' "***@d" http://e:8000/f ***@j k:l@sha256:00"""
