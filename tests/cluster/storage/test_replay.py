"""INV-7: the recording replays off-line to the same decisions; a decision that changed is found and named; lost lines are told."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs
from typer.testing import CliRunner, Result

from nightjar.cluster import cli
from nightjar.cluster.api.operations import OperationError
from nightjar.cluster.storage import recording
from nightjar.cluster.storage.journal import FILE_NAME as JOURNAL_NAME
from nightjar.cluster.storage.plain_values import packed, restored, unpacked
from nightjar.cluster.storage.recorder import RECORDED_REPLICAS_VARIABLE, RecordedTick, recorded_replicas
from nightjar.cluster.storage.recording import (
    FILE_NAME,
    FrameEncoder,
    RecordingError,
    RecordingFile,
    RecordingReader,
    compressed_after,
    report_after,
    this_version,
)
from nightjar.cluster.storage.replay import Skipped, between, leading_to, replay
from nightjar.cluster.storage.rotated_lines import rotated_files
from nightjar.policy.evidence.goodput import GoodputModel
from nightjar.policy.planners import PLANNERS
from nightjar.policy.planners.base import GroupPlan, GroupView, one_k
from nightjar.policy.state import FleetState
from nightjar.policy.wire.cause import Code, because
from nightjar.policy.wire.report import DrafterState, EngineSnapshot, RestartWish
from nightjar.policy.wire.settings import Settings, SettingsVersion, Table
from tests.cluster.record_release import RELEASES
from tests.cluster.recorded_fleet import MemoryRecording, RecordedFleet, WrittenAtOnce, recorded_fleet
from tests.policy.engines import Replica


def some_replicas() -> list[Replica]:
    """Four replicas of one group: quorum, exploration and paces all matter."""
    return [Replica(f"r{number}", batch=batch, speed=1.0 - 0.02 * number) for number, batch in enumerate((4, 4, 4, 16))]


def recorded(ticks: int, *, sink: Any = None, **wanted: Any) -> Any:
    """The sink (a MemoryRecording unless given) after so many ticks of four replicas."""
    found = sink if sink is not None else MemoryRecording()

    async def run() -> None:
        async with recorded_fleet(*some_replicas(), sink=found, **wanted) as fleet:
            await fleet.run(ticks)

    asyncio.run(run())
    return found


def assert_equal_replay(kept: MemoryRecording) -> None:
    skipped = Skipped()
    ticks = list(replay(kept.frames, skipped))
    assert [(tick.frame.tick, tick.differences) for tick in ticks] == [(tick.moment.tick, ()) for tick in kept.ticks]
    assert [tick.decisions for tick in ticks] == [tick.decisions for tick in kept.ticks]
    assert skipped == Skipped()


EVENT = st.one_of(
    st.tuples(st.just("batch"), st.sampled_from([0, 1, 3, 16, 40])),
    st.tuples(st.just("planner"), st.sampled_from(["fleet", "off", "fixed", "nightjar"])),
    st.tuples(st.just("mode"), st.sampled_from(["auto", "shadow", "off", "pin=1", "default"])),
    st.tuples(st.just("by hand"), st.tuples(st.sampled_from(["fleet", "nightjar"]), st.sampled_from(["keep", "reset"]))),
    st.tuples(st.just("freeze"), st.sampled_from([True, False])),
    st.tuples(st.just("canary"), st.sampled_from(["begin", "end", "promote"])),
    st.tuples(st.just("wait"), st.sampled_from([0.1, 3.0, 40.0])),
    st.tuples(st.sampled_from(["again", "engine", "foreign", "lie", "silence", "wish"]), st.none()),
)


async def happen(fleet: RecordedFleet, what: str, how: Any, number: int) -> None:
    """One thing that happens to one replica, or to the fleet."""
    replica = fleet.replicas[number]
    if what == "batch":
        replica.batch = how
    elif what == "planner":
        await fleet.configure(planner=how, num_speculative_tokens=3, calibration_clean_steps=4)
    elif what == "mode":
        with contextlib.suppress(OperationError):  # a replica that has not reported yet
            await fleet.service.set_mode(
                {"mode": how, "scope": "replica", "name": replica.replica_id, "for_s": 2.0, "reason": "test"}
            )
    elif what == "by hand":
        planner, learned = how
        await fleet.service.set_mode({"mode": "auto", "planner": planner, "learned": learned, "for_s": 2.0})
    elif what == "freeze":
        await fleet.service.freeze({"frozen": how})
    elif what == "canary":
        tried = {"mode": "pin=1", "share": 0.25, "block_s": 1.0} if how == "begin" else {}
        with contextlib.suppress(OperationError):  # none that could begin, or be promoted
            await fleet.service.canary({"do": how, **tried})
    elif what == "wait":
        fleet.now_s += how
        for other in fleet.replicas:
            other.now_s += how
    elif what == "engine":
        fleet.replicas[number] = Replica(replica.replica_id, replica.batch, engine_id=f"engine-{fleet.now_s}", now_s=replica.now_s)
    else:
        await fleet.send(replica, strange_report(replica, what))


def strange_report(replica: Replica, what: str) -> Any:
    """A report that came twice, runs another policy's settings, cannot be true, tells of a silent engine, or wishes to restart."""
    report = replica.report()
    snapshot, counters = report.snapshot, report.snapshot.counters
    if what == "again":
        replica.report_number -= 1
    elif what == "foreign":
        snapshot = snapshot.model_copy(update={"settings_version": SettingsVersion(incarnation=9, sequence=1)})
    elif what == "lie":
        snapshot = snapshot.model_copy(update={"counters": counters.model_copy(update={"step_count": counters.step_count + 10**9})})
    elif what == "silence":
        snapshot = EngineSnapshot(counters=counters.model_copy(update={"engine_id": "none"}))
    else:
        wish = {"restart_wish": RestartWish(wish_id=7, lag_tokens=4000), "drafter_state": DrafterState.DORMANT}
        snapshot = snapshot.model_copy(update=wish)
    return report.model_copy(update={"snapshot": snapshot})


FROZEN_AND_RESET: list[tuple[tuple[str, Any], int]] = [
    (("freeze", True), 3), (("freeze", True), 0), (("planner", "nightjar"), 0), (("silence", None), 1), (("mode", "pin=1"), 1),
    (("by hand", ("nightjar", "keep")), 0), (("mode", "auto"), 2), (("by hand", ("nightjar", "keep")), 2), (("batch", 16), 3),
    (("wait", 40.0), 2), (("by hand", ("fleet", "reset")), 3), (("silence", None), 0), (("mode", "off"), 1),
    (("freeze", True), 3), (("mode", "off"), 2),
]  # fmt: skip
"""A key frame in mid freeze holds two equal plans where the fleet had the same one twice."""


@pytest.mark.heavy
@settings(max_examples=15, phases=[Phase.explicit, Phase.reuse, Phase.generate])  # to shrink fleets takes minutes
@given(st.lists(st.tuples(EVENT, st.integers(0, 3)), max_size=15), st.sampled_from([5, 300]))
@example(events=FROZEN_AND_RESET, key_period_ticks=300)
def test_inv_7_whatever_happens_to_a_fleet_its_recording_replays_to_the_same_decisions(
    events: list[tuple[tuple[str, Any], int]], key_period_ticks: int
) -> None:
    kept = MemoryRecording(FrameEncoder(key_period_ticks))

    async def run() -> FleetState:
        async with recorded_fleet(*some_replicas(), sink=kept) as fleet:
            await fleet.run(4)
            for (what, how), number in events:
                await happen(fleet, what, how, number)
                await fleet.run(1)
            return fleet.service._controller.state

    after = asyncio.run(run())
    assert_equal_replay(kept)
    assert list(replay(kept.frames, Skipped()))[-1].fleet == after


def test_inv_7_a_minute_of_learning_and_measuring_replays_from_its_first_key_frame_alone() -> None:
    kept = recorded(120)
    assert kept.keys == [1]
    plans = [decision.plan for tick in kept.ticks for decision in tick.decisions.values()]
    assert any(isinstance(plan, Table) and plan.segments for plan in plans)
    assert len({str(plan) for plan in plans}) > 5
    assert_equal_replay(kept)


def test_inv_7_a_canary_from_its_baseline_to_its_end_replays() -> None:
    kept = MemoryRecording()

    async def run() -> None:
        async with recorded_fleet(*some_replicas(), sink=kept) as fleet:
            await fleet.run(10)
            await fleet.service.canary({"mode": "off", "share": 0.25, "block_s": 1.0})
            await fleet.run(60)

    asyncio.run(run())
    phases = [tick.moment.state.canary.phase for tick in kept.ticks if tick.moment.state.canary is not None]
    assert list(dict.fromkeys(phases)) == ["baseline", "trial", "rolled back"]
    assert kept.keys == [1, 11]
    assert_equal_replay(kept)


def test_inv_7_a_tick_that_failed_fails_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(view: GroupView) -> GroupPlan:
        raise ZeroDivisionError("by zero")

    monkeypatch.setitem(PLANNERS, "fixed", fail)
    with capture_logs():
        kept = recorded(3, planner="fixed")
    assert {tick.error for tick in kept.ticks} == {"ZeroDivisionError: by zero"}
    assert_equal_replay(kept)
    monkeypatch.undo()
    first = next(replay(kept.frames, Skipped()))
    assert [one.decided_then for one in first.differences] == ["deciding failed (ZeroDivisionError: by zero)"]


def test_inv_7_a_state_that_something_else_changed_is_recorded_whole() -> None:
    kept = MemoryRecording()

    async def run() -> None:
        async with recorded_fleet(*some_replicas(), sink=kept) as fleet:
            await fleet.run(3)
            before = fleet.service._controller.state
            fleet.service._controller.state = FleetState(before.replicas, before.groups, next_segment_id=500)
            await fleet.run(3)

    asyncio.run(run())
    assert kept.keys == [1, 4]
    assert_equal_replay(kept)


def test_inv_7_an_incarnation_that_rises_begins_with_a_whole_state() -> None:
    kept = MemoryRecording()

    async def run() -> None:
        async with recorded_fleet(*some_replicas(), sink=kept) as fleet:
            await fleet.run(2)
            await happen(fleet, "foreign", None, 0)
            await fleet.run(2)

    asyncio.run(run())
    assert [(frame.incarnation, frame.is_key) for frame in kept.frames] == [(1, True), (1, False), (10, True), (10, False)]
    assert_equal_replay(kept)


def test_ticks_that_the_sink_leaves_out_cost_no_others() -> None:
    kept = MemoryRecording()

    async def run() -> None:
        async with recorded_fleet(*some_replicas(), sink=kept) as fleet:
            await fleet.run(2)
            kept.is_full = True
            await fleet.run(2)
            kept.is_full = False
            await fleet.run(2)

    asyncio.run(run())
    assert ([tick.moment.tick for tick in kept.ticks], kept.keys) == ([1, 2, 5, 6], [1, 5])
    assert_equal_replay(kept)


@pytest.mark.parametrize(("most", "ticks"), [(0, []), (3, []), (4, [1, 2, 3])])
def test_a_fleet_above_the_limit_is_not_recorded(most: int, ticks: list[int]) -> None:
    with capture_logs() as logs:
        kept = recorded(3, max_replicas=most)
    assert [tick.moment.tick for tick in kept.ticks] == ticks
    assert [event["event"] for event in logs if event["event"].startswith("journal_inputs")] == ["journal_inputs_paused"] * (
        most == 3
    )


@pytest.mark.parametrize(
    ("most", "problem"),
    [
        (0, "recording is off (NIGHTJAR_RECORDED_REPLICAS=0)"),
        (3, "the fleet is larger than 3 replicas (NIGHTJAR_RECORDED_REPLICAS)"),
        (4, ""),
    ],
)
async def test_status_says_how_long_a_replay_reaches_back_and_why_there_is_none(most: int, problem: str) -> None:
    async with recorded_fleet(*some_replicas(), sink=MemoryRecording(), max_replicas=most) as fleet:
        await fleet.run(3)
        policy = fleet.service.status().policy
    assert (policy.replay_holds_s, policy.replay_problem) == (None if problem else 77.0, problem)


@pytest.mark.parametrize(("chosen", "most"), [(None, 256), ("0", 0), ("12", 12), ("many", 256)])
def test_the_operator_says_up_to_how_many_replicas_are_recorded(
    chosen: str | None, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(RECORDED_REPLICAS_VARIABLE, raising=False)
    if chosen is not None:
        monkeypatch.setenv(RECORDED_REPLICAS_VARIABLE, chosen)
    assert recorded_replicas() == most


LIMIT = 30_000


def write(folder: Path, ticks: int, **limits: int) -> Path:
    """The journal's path beside a recording of so many ticks."""
    file = RecordingFile(folder, **limits)
    recorded(ticks, sink=WrittenAtOnce(file))
    file.close()
    return folder / JOURNAL_NAME


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})


def test_replay_says_that_all_decisions_are_equal(tmp_path: Path) -> None:
    replayed = call("replay", write(tmp_path, 6))
    assert replayed.exit_code == 0, replayed.output
    assert "6 ticks of incarnation 1" in replayed.stdout
    assert "20 reports of up to 4 replicas" in replayed.stdout
    assert "all decisions are equal" in replayed.stdout


def test_the_folder_and_the_recording_itself_name_the_journal_as_well(tmp_path: Path) -> None:
    write(tmp_path, 2)
    assert [call("replay", path).exit_code for path in (tmp_path, tmp_path / FILE_NAME)] == [0, 0]


def test_replay_names_replica_tick_and_both_decisions_where_the_code_decides_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = RecordingFile(tmp_path)
    recorded(3, sink=WrittenAtOnce(file), planner="fixed", num_speculative_tokens=3)
    file.close()
    monkeypatch.setitem(
        PLANNERS, "fixed", lambda view: GroupPlan(one_k(1, view.key.max_num_seqs), (because(Code.OTHER, "K=1 since today"),))
    )
    replayed = call("replay", tmp_path)
    assert replayed.exit_code == 1
    shown = " ".join(replayed.stdout.split())
    assert "3 ticks differ" in shown
    assert "tick 1 of incarnation 1" in shown
    assert "replica r0 then: K=3 at batch 1-256;" in shown
    assert "now: K=1 at batch 1-256; because: fixed: K=1 since today" in shown
    as_json = json.loads(call("replay", tmp_path, "-o", "json").stdout)
    assert (as_json["differing_ticks"], as_json["differing"][0]["replicas"][0]["replica_id"]) == (3, "r0")


@pytest.mark.heavy
def test_inv_7_a_replay_in_another_process_with_other_hashes_is_equal(tmp_path: Path) -> None:
    write(tmp_path, 40)
    program = "from nightjar.cluster.cli import main; main()"
    replayed = subprocess.run(
        [sys.executable, "-c", program, "replay", str(tmp_path)],
        env={**os.environ, "PYTHONHASHSEED": "12345"},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert replayed.returncode == 0, replayed.stdout + replayed.stderr


def test_every_file_begins_with_a_whole_state_so_that_rotation_leaves_the_rest_of_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recording, "LEAST_KEYS_PER_FILE", 2)
    write(tmp_path, 120, max_file_bytes=LIMIT, max_files=2)
    files = rotated_files(tmp_path / FILE_NAME)
    assert len(files) == 2
    assert all(json.loads(file.read_bytes().splitlines()[0])["number"] == 0 for file in files)
    assert all(file.stat().st_size <= LIMIT for file in files)
    result = json.loads(call("replay", tmp_path, "-o", "json").stdout)
    assert 0 < result["ticks"] < 120
    assert (result["differing_ticks"], result["skipped"]) == (0, {"before_first_key": 0, "after_a_gap": 0})


def lines_after(folder: Path, change: Callable[[list[bytes]], list[bytes]]) -> None:
    """Rewrite the recording's lines."""
    file = folder / FILE_NAME
    file.write_bytes(b"\n".join(change(file.read_bytes().splitlines())) + b"\n")


def two_keys(folder: Path) -> None:
    """A recording of eight ticks with key frames at the first and the fifth."""
    for _ in range(2):
        write(folder, 4)


def test_what_was_rotated_away_before_the_first_whole_state_is_skipped_and_said(tmp_path: Path) -> None:
    two_keys(tmp_path)
    lines_after(tmp_path, lambda lines: lines[1:])
    replayed = call("replay", tmp_path)
    assert replayed.exit_code == 0, replayed.output
    assert "before the first whole state (what they follow was rotated away): 3" in replayed.stdout
    assert "4 ticks of" in replayed.stdout


@pytest.mark.parametrize("other", [None, b"[" * 10_000], ids=["torn", "nested too deeply"])
def test_a_torn_line_is_said_and_ends_the_replay_until_the_next_whole_state(tmp_path: Path, other: bytes | None) -> None:
    two_keys(tmp_path)
    lines_after(tmp_path, lambda lines: [lines[0], lines[1], other or lines[2][:200], *lines[3:]])
    replayed = call("replay", tmp_path)
    assert replayed.exit_code == 0, replayed.output
    assert "lines left out, torn or of something else: 1" in replayed.stdout
    assert "ticks skipped after a lost one, up to the next whole state: 1" in replayed.stdout
    assert "6 ticks of" in replayed.stdout


def test_a_stretch_of_time_is_replayed_from_the_state_before_it(tmp_path: Path) -> None:
    write(tmp_path, 8)
    frames = list(RecordingReader(tmp_path / FILE_NAME))
    begin, end = frames[4].time_s, frames[6].time_s
    assert [frame.tick for frame in between(frames, begin, end)] == [1, 2, 3, 4, 5, 6, 7]
    assert [frame.tick for frame in leading_to(frames, begin)] == [1, 2, 3, 4, 5]
    result = json.loads(call("replay", tmp_path, "--from", iso(begin), "--to", iso(end), "-o", "json").stdout)
    assert (result["ticks"], result["differing_ticks"]) == (3, 0)


def iso(time_s: float) -> str:
    """As a person types it, to the microsecond."""
    return str(np.datetime64(round(time_s * 1e6), "us")) + "+00:00"


def test_a_journal_of_an_older_release_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / JOURNAL_NAME).write_text('{"incarnation": 1}\n')
    replayed = call("replay", tmp_path / JOURNAL_NAME)
    assert (replayed.exit_code, replayed.stderr.count("\n")) == (1, 1)
    assert "an older release wrote it, or recording was off" in replayed.stderr


def test_a_recording_of_another_format_is_one_clear_line(tmp_path: Path) -> None:
    write(tmp_path, 2)
    lines_after(tmp_path, lambda lines: [line.replace(b'"format":4', b'"format":9') for line in lines])
    replayed = call("replay", tmp_path)
    assert (replayed.exit_code, replayed.stderr.count("\n")) == (1, 1)
    assert (
        f"written in format 9 by {this_version()}; this release reads 4, so replay it with the one that wrote it" in replayed.stderr
    )


def test_a_recording_of_the_last_protocol_says_in_one_line_which_release_replays_it(tmp_path: Path) -> None:
    shutil.copy(RELEASES / "protocol_2" / FILE_NAME, tmp_path)
    replayed = call("replay", tmp_path)
    assert (replayed.exit_code, replayed.stderr.count("\n")) == (1, 1)
    assert "written in format 3 by nightjar 0.1.0 (protocol 2), numpy 2.3.5, x86_64; this release reads 4" in replayed.stderr


def test_no_journal_is_one_clear_line(tmp_path: Path) -> None:
    replayed = call("replay", tmp_path / "none.jsonl")
    assert (replayed.exit_code, replayed.stderr) == (1, f"error: no journal at {tmp_path / 'none.jsonl'}\n")


def test_a_time_that_is_none_is_a_usage_error(tmp_path: Path) -> None:
    replayed = call("replay", tmp_path, "--from", "yesterday")
    assert replayed.exit_code == 2
    assert "'yesterday'" in replayed.stderr


def test_nothing_to_replay_is_no_success(tmp_path: Path) -> None:
    write(tmp_path, 2)
    assert call("replay", tmp_path, "--from", "1m").exit_code == 1


def test_a_disk_that_takes_nothing_costs_the_ticks_until_it_works_again(tmp_path: Path) -> None:
    blocked = tmp_path / "journal"
    blocked.write_text("a file where the folder should be")
    kept = recorded(6)
    file = RecordingFile(blocked)
    for tick in kept.ticks[:3]:
        file.write(tick)
    blocked.unlink()
    for tick in kept.ticks[3:]:
        file.write(tick)
    frames = list(RecordingReader(file.path))
    assert [(frame.tick, frame.is_key) for frame in frames] == [(4, True), (5, False), (6, False)]
    assert all(not tick.differences for tick in replay(frames, Skipped()))


def test_a_slow_disk_costs_ticks_and_no_decision(tmp_path: Path) -> None:
    file = RecordingFile(tmp_path)
    (tick,) = recorded(1).ticks
    with file._lines._lock:
        assert [file.take(tick) for _ in range(6)] == [True, True, True, True, False, False]
    file.close()
    assert not file.take(tick)


def test_a_fleet_whose_state_would_fill_the_files_is_given_up_with_one_line_in_the_log(tmp_path: Path) -> None:
    file = RecordingFile(tmp_path, max_file_bytes=4_000)
    ticks = recorded(4).ticks
    with capture_logs() as logs:
        for tick in ticks:
            file.write(tick)
            file.take(tick)
    assert [event["event"] for event in logs] == ["recording_given_up"]
    assert (file.holds_s(1e9), file.problem) == (None, "the fleet's whole state does not fit eight times into one of its files")
    assert not file.path.exists() or file.path.stat().st_size < 4_000
    file.close()


def test_a_fleets_state_comes_back_equal_and_in_the_same_order() -> None:
    state = recorded(60).ticks[-1].moment.state
    again = restored(FleetState, unpacked(packed(state)))
    assert again == state
    (group,), (group_again,) = state.groups.values(), again.groups.values()
    assert list(group_again.evidence.cells) == list(group.evidence.cells)
    model, model_again = group.estimate.goodput_model, group_again.estimate.goodput_model
    assert all(np.array_equal(getattr(model, one.name), getattr(model_again, one.name)) for one in fields(GoodputModel))
    assert model_again.covariance.strides == model.covariance.strides


ARRAY = np.arange(24, dtype=np.float64).reshape(2, 3, 4)


NAMED = np.array([(1, 0.5), (2, 0.25)], dtype=[("steps", np.int64), ("seconds", np.float64)])


@pytest.mark.parametrize("one", [ARRAY.transpose(2, 0, 1), np.array(3), ARRAY[:, ::2].transpose(1, 2, 0).copy("K"), NAMED])
def test_arrays_keep_the_order_of_their_axes_in_memory(one: np.ndarray[Any, Any]) -> None:
    again = unpacked(packed(one))
    assert np.array_equal(again, one)
    assert (again.dtype, again.strides) == (one.dtype, one.strides)


@pytest.mark.parametrize("one", [ARRAY[:, ::2, ::-1], ARRAY[0, 0, :0]])
def test_a_part_of_an_array_comes_back_equal(one: np.ndarray[Any, Any]) -> None:
    assert np.array_equal(unpacked(packed(one)), one)


def test_values_of_another_version_are_refused_by_name() -> None:
    (tick,) = recorded(1).ticks
    assert restored(Settings, unpacked(packed(tick.decisions["r0"]))).dwell_steps == 4
    with pytest.raises(ValueError, match=r"FleetState: 0\.colour: Unexpected keyword argument"):
        restored(FleetState, {**unpacked(packed(tick.moment.state)), "colour": "blue"})
    with pytest.raises(ValueError, match="3 bytes that are not msgpack"):
        unpacked(b"\xc1??")
    with pytest.raises(TypeError, match="complex has no plain form"):
        packed(1j)


def test_a_frame_that_another_version_recorded_is_one_clear_line() -> None:
    tick: RecordedTick = recorded(1).ticks[0]
    frame = FrameEncoder().encode(tick)
    with pytest.raises(RecordingError, match="tick 1 of incarnation 1 cannot be read"):
        list(replay([frame.model_copy(update={"body": "AAAA"})], Skipped()))


@given(st.binary(max_size=200), st.binary(max_size=200))
@example(before=bytes(range(256)) * 400, report=bytes(range(256)) * 400 + b"new")
def test_a_report_comes_back_after_the_one_before_it(before: bytes, report: bytes) -> None:
    assert report_after(before, compressed_after(before, report)) == report


def test_a_report_without_the_one_before_it_cannot_be_read() -> None:
    parts = compressed_after(b"one report, and what is in it", b"another report, and what is in it")
    with pytest.raises(RecordingError, match="a report cannot be read"):
        report_after(b"", parts)
