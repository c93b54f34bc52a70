"""What a journal and the rows of a load test say on the dashboards, and that saying it twice changes nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from nightjar.cluster.cli import app
from nightjar.cluster.dashboards.annotations import RowsError, happened, phases, read_load_rows
from nightjar.cluster.storage.journal import FILE_NAME, JournalEntry, JournalFile, ReplicaInput
from nightjar.policy.wire.mode import Mode
from nightjar.policy.wire.operator import OperatorSettings
from nightjar.policy.wire.report import EngineLoad, RestartWish
from nightjar.policy.wire.settings import IssuedSettings, Lease, RestartLimits, Settings, SettingsVersion, Table, TableRow
from tests.cluster.dashboards.fake_grafana import TOKEN, FakeGrafana, running_grafana

BEGAN_S = 1_700_000_000.0


def entry(tick: int, incarnation: int = 1, **leases: int) -> JournalEntry:
    """A tick, a second after the one before, in which replicas hold leases for these wishes."""
    return JournalEntry(
        incarnation=incarnation,
        tick=tick,
        time_s=BEGAN_S + tick,
        seed=tick,
        operator_settings=OperatorSettings(mode=Mode(kind="auto")),
        replicas=tuple(
            ReplicaInput(replica_id=name, group_id="g", load=EngineLoad(), restart_wish=RestartWish(wish_id=wish, lag_tokens=320))
            for name, wish in leases.items()
        ),
        decided={
            name: IssuedSettings(
                version=SettingsVersion(incarnation=incarnation, sequence=tick),
                settings=Settings(
                    mode=Mode(kind="auto"),
                    plan=Table(rows=(TableRow(first_batch_size=1, last_batch_size=8, num_speculative_tokens=3),)),
                    allowed_num_speculative_tokens=(0, 3),
                    restarts=RestartLimits(leases=(Lease(wish_id=wish, time_to_live_s=30.0),)),
                ),
            )
            for name, wish in leases.items()
        },
    )


def write_rows(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def row(phase: str, due_s: float, **fields: Any) -> dict[str, Any]:
    return {
        "request_id": "r",
        "phase": phase,
        "start_s": BEGAN_S + due_s,
        "scheduled_s": due_s,
        "e2e_s": 1.0,
        "status": 200,
    } | fields


@pytest.fixture
def grafana() -> Iterator[FakeGrafana]:
    with running_grafana() as running:
        yield running


def test_a_lease_is_one_moment_however_long_it_is_in_force() -> None:
    found = list(happened([entry(1), entry(2, r1=7), entry(3, r1=7), entry(4, r1=8, r2=7)]))
    assert [(one.start_ms - BEGAN_S * 1e3, one.text) for one in found] == [
        (2e3, "r1 may restart speculation, 320 tokens to catch up"),
        (4e3, "r1 may restart speculation, 320 tokens to catch up"),
        (4e3, "r2 may restart speculation, 320 tokens to catch up"),
    ]
    assert {(one.tags, one.end_ms - one.start_ms) for one in found} == {(("nightjar", "restart"), 0)}


def test_a_new_incarnation_of_the_policy_is_a_moment_and_the_first_one_is_none() -> None:
    (found,) = happened([entry(1, incarnation=4), entry(2, incarnation=4), entry(1, incarnation=5)])
    assert (found.text, found.tags) == ("policy actor started anew (incarnation 5)", ("nightjar", "policy"))


def test_an_incarnation_that_rose_while_the_policy_ran_is_no_start() -> None:
    (found,) = happened([entry(7, incarnation=4), entry(8, incarnation=9)])
    assert found.text == "policy actor heard of another one's incarnation and rose above it (incarnation 9)"


def test_phases_are_told_apart_by_when_requests_were_due_however_late_they_were_sent(tmp_path: Path) -> None:
    rows = write_rows(
        tmp_path / "rows.jsonl",
        row("low", 0.0),
        row("high", 11.0),
        row("low", 12.0, schedule_lag_s=3.0, scheduled_s=9.0),
        row("high", 19.0),
        row("low", 20.0),
        row("low", 30.0, mode="auto"),
    )
    found = [(one.text, one.start_ms - BEGAN_S * 1e3, one.end_ms - BEGAN_S * 1e3) for one in phases(read_load_rows(rows))]
    assert found == [
        ("load: low, 2 requests", 0.0, 9e3),
        ("load: high, 2 requests", 11e3, 19e3),
        ("load: low, 1 request", 20e3, 20e3),
        ("load: low, mode auto, 1 request", 30e3, 30e3),
    ]


def test_phases_do_not_mix_though_load_processes_began_apart(tmp_path: Path) -> None:
    later = [row(phase, due_s, start_s=BEGAN_S + due_s + 0.2) for phase, due_s in (("quiet", 0.0), ("quiet", 9.9), ("surge", 10.0))]
    rows = write_rows(tmp_path / "rows.jsonl", row("quiet", 9.95), row("surge", 10.05), *later)
    assert [one.text for one in phases(read_load_rows(rows))] == ["load: quiet, 3 requests", "load: surge, 2 requests"]


@pytest.mark.parametrize("line", ["{", "[]", '{"phase": "low"}', '{"phase": "low", "start_s": -1}'])
def test_a_line_that_is_no_row_is_named(line: str, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", row("low", 0.0))
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(RowsError, match=r"rows\.jsonl:2 is no row"):
        read_load_rows(path)


def test_a_file_of_rows_that_cannot_be_read_is_named_with_what_is_expected(tmp_path: Path) -> None:
    with pytest.raises(RowsError, match=r"none: No such file or directory; expected the rows of a load test"):
        read_load_rows(tmp_path / "none")
    (tmp_path / "binary").write_bytes(b"\xff")
    with pytest.raises(RowsError, match=r"binary: not UTF-8; expected"):
        read_load_rows(tmp_path / "binary")


def push(grafana: FakeGrafana, *arguments: str) -> list[tuple[str, str]]:
    environment = {"NIGHTJAR_GRAFANA_TOKEN": TOKEN}
    done = CliRunner().invoke(app, ["dashboards", "push", "--url", grafana.url, "-o", "json", *arguments], env=environment)
    assert done.exit_code == 0, done.stderr
    changes = [json.loads(line) for line in done.stdout.splitlines()]
    return [(change["outcome"], change["name"]) for change in changes if change["kind"] == "annotation"]


def test_a_second_push_annotates_only_what_happened_since(grafana: FakeGrafana, tmp_path: Path) -> None:
    journal = JournalFile(tmp_path)
    for one in (entry(1), entry(2, r1=7)):
        journal.write(one)
    load = write_rows(tmp_path / "rows.jsonl", row("quiet", 0.0), row("surge", 5.0), row("surge", 9.0))
    files = ("--journal", str(tmp_path / FILE_NAME), "--load", str(load))
    assert [outcome for outcome, _ in push(grafana, *files)] == ["created"] * 3
    assert [outcome for outcome, _ in push(grafana, *files)] == ["unchanged"] * 3
    journal.write(entry(3, r2=1))
    assert push(grafana, "--journal", str(tmp_path / FILE_NAME)) == [
        ("unchanged", "r1 may restart speculation, 320 tokens to catch up"),
        ("created", "r2 may restart speculation, 320 tokens to catch up"),
    ]
    assert len(grafana.annotations) == 4
    surge = next(one for one in grafana.annotations if "surge" in one["text"])
    assert (surge["timeEnd"] - surge["time"], surge["tags"]) == (4_000, ["nightjar", "load"])


def test_annotating_alone_touches_no_dashboard(grafana: FakeGrafana, tmp_path: Path) -> None:
    load = write_rows(tmp_path / "rows.jsonl", row("quiet", 0.0), row("surge", 5.0))
    arguments = ["dashboards", "annotate", "--url", grafana.url, "--load", str(load)]
    done = CliRunner().invoke(app, arguments, env={"NIGHTJAR_GRAFANA_TOKEN": TOKEN})
    assert done.exit_code == 0, done.stderr
    assert len(grafana.annotations) == 2
    assert {request.path.partition("?")[0] for request in grafana.requests} == {"/api/annotations"}


def test_annotating_with_nothing_is_refused(grafana: FakeGrafana) -> None:
    arguments = ["dashboards", "annotate", "--url", grafana.url]
    done = CliRunner().invoke(app, arguments, env={"NIGHTJAR_GRAFANA_TOKEN": TOKEN})
    assert (done.exit_code, grafana.requests) == (1, [])
    assert "name --journal, --load, or both" in done.stderr


def test_a_journal_that_is_not_there_is_one_line_and_nothing_is_written(grafana: FakeGrafana, tmp_path: Path) -> None:
    arguments = ["dashboards", "push", "--url", grafana.url, "--journal", str(tmp_path / "none")]
    done = CliRunner().invoke(app, arguments, env={"NIGHTJAR_GRAFANA_TOKEN": TOKEN, "COLUMNS": "200"})
    assert done.exit_code == 1
    assert f"error: no journal at {tmp_path / 'none'}" in done.stderr
    assert grafana.requests == []
