"""The journal: what is written is read back, files are bounded, and a disk that fails stops nothing."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from nightjar.cluster.storage.journal import FILE_NAME, MAX_WAITING_ENTRIES, JournalEntry, JournalFile, ReplicaInput, read_journal
from nightjar.cluster.storage.rotated_lines import (
    ALLOWED_MIB,
    DEFAULT_MIB,
    MAX_FILES,
    SIZE_VARIABLE,
    chosen_file_bytes,
    rotated_files,
)
from nightjar.policy.learned import LearnedTables
from nightjar.policy.operator.overrides import ModeOverride
from nightjar.policy.wire.cause import Code, because
from nightjar.policy.wire.mode import Mode
from nightjar.policy.wire.operator import OperatorSettings
from nightjar.policy.wire.report import EngineLoad
from nightjar.policy.wire.settings import IssuedSettings, Settings, SettingsVersion, Table, TableRow


def entry(tick: int = 1, time_s: float = 1_700_000_000.25) -> JournalEntry:
    settings = Settings(
        mode=Mode(kind="auto"),
        plan=Table(rows=(TableRow(first_batch_size=1, last_batch_size=8, num_speculative_tokens=3),)),
        allowed_num_speculative_tokens=(0, 3),
        causes=(because(Code.ROW, num_speculative_tokens=3, first_batch_size=1, last_batch_size=8),),
    )
    return JournalEntry(
        incarnation=3,
        tick=tick,
        time_s=time_s,
        seed=(3 << 32) + tick,
        causes=("override: fleet off",),
        operator_settings=OperatorSettings(mode=Mode(kind="auto")),
        overrides=(ModeOverride(scope="fleet", mode=Mode.parse("pin=2"), expires_at_s=1.7e9),),
        learned=LearnedTables(),
        replicas=(ReplicaInput(replica_id="r1", group_id="g", load=EngineLoad(decode_batch_size=4)),),
        decided={"r1": IssuedSettings(version=SettingsVersion(incarnation=3, sequence=tick), settings=settings)},
    )


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    journal = JournalFile(tmp_path / "deep" / "folder")
    for tick in range(1, 4):
        journal.write(entry(tick))
    assert list(read_journal(Path(journal.path))) == [entry(1), entry(2), entry(3)]


def test_what_is_appended_is_written_in_order_by_a_thread_of_its_own(tmp_path: Path) -> None:
    journal = JournalFile(tmp_path)
    for tick in range(1, 4):
        journal.append(entry(tick))
    journal.close()
    assert [read.tick for read in read_journal(Path(journal.path))] == [1, 2, 3]


def test_a_disk_that_hangs_holds_nobody_up_and_loses_what_it_cannot_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal, goes_on, written = JournalFile(tmp_path), threading.Event(), []

    def hang(entry: JournalEntry) -> None:
        goes_on.wait()
        written.append(entry.tick)

    monkeypatch.setattr(journal, "write", hang)
    with capture_logs() as logs:
        for tick in range(1, MAX_WAITING_ENTRIES + 4):
            journal.append(entry(tick))
        goes_on.set()
        journal.close()
    assert written == list(range(1, MAX_WAITING_ENTRIES + 1))
    assert [event["event"] for event in logs] == ["journal_falls_behind"]


def test_files_are_rotated_by_size_and_the_oldest_is_dropped(tmp_path: Path) -> None:
    line_bytes = len(entry().model_dump_json(exclude_none=True)) + 10
    journal = JournalFile(tmp_path, max_file_bytes=2 * line_bytes, max_files=3)
    for tick in range(1, 21):
        journal.write(entry(tick))
    files = rotated_files(Path(journal.path))
    assert [file.name for file in files] == [FILE_NAME, f"{FILE_NAME}.1", f"{FILE_NAME}.2"]
    assert all(file.stat().st_size <= 2 * line_bytes for file in files)
    assert [read.tick for read in read_journal(Path(journal.path))] == [15, 16, 17, 18, 19, 20]


def test_a_torn_last_line_is_skipped_and_costs_no_other_entry(tmp_path: Path) -> None:
    JournalFile(tmp_path).write(entry(1))
    with (tmp_path / FILE_NAME).open("ab") as file:
        file.write(b'{"incarnation": 3, "ti')
    JournalFile(tmp_path).write(entry(2))
    with capture_logs() as logs:
        assert [read.tick for read in read_journal(tmp_path / FILE_NAME)] == [1, 2]
    assert [event["event"] for event in logs] == ["journal_line_skipped"]


def test_a_disk_that_takes_nothing_is_logged_once_until_it_works_again(tmp_path: Path) -> None:
    blocked = tmp_path / "journal"
    blocked.write_text("a file where the folder should be")
    journal = JournalFile(blocked)
    with capture_logs() as logs:
        for tick in range(5):
            journal.write(entry(tick))
        blocked.unlink()
        journal.write(entry(9))
    assert [event["event"] for event in logs] == ["journal_not_written", "journal_written_again"]
    assert [read.tick for read in read_journal(Path(journal.path))] == [9]


def test_reading_where_no_journal_is_says_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no journal at"):
        list(read_journal(tmp_path / FILE_NAME))


@pytest.mark.parametrize("entries", [100, 5_000], ids=["before a rotation", "after many"])
def test_a_journal_says_how_long_it_keeps_entries_at_the_present_pace(entries: int, tmp_path: Path) -> None:
    line_bytes = len(entry(1_000).model_dump_json(exclude_none=True)) + 1
    journal = JournalFile(tmp_path, max_file_bytes=200 * line_bytes, max_files=4)
    for second in range(entries):
        journal.write(entry(1_000, time_s=float(second)))
    assert journal.holds_s(float(entries)) == pytest.approx(800.0, rel=0.05)


def test_a_journal_follows_a_fleet_that_grew_and_fills_a_file_in_seconds(tmp_path: Path) -> None:
    line_bytes = len(entry(1_000).model_dump_json(exclude_none=True)) + 1
    journal = JournalFile(tmp_path, max_file_bytes=200 * line_bytes, max_files=4)
    for second in range(1_000):
        journal.write(entry(1_000, time_s=float(second)))
    for tenth in range(4_000):
        journal.write(entry(1_000, time_s=1_000.0 + tenth / 10.0))
    assert journal.holds_s(1_400.0) == pytest.approx(80.0, rel=0.05)


def test_a_journal_of_less_than_a_minute_says_nothing_of_what_it_keeps(tmp_path: Path) -> None:
    journal = JournalFile(tmp_path)
    assert journal.holds_s(0.0) is None
    for second in range(30):
        journal.write(entry(time_s=float(second)))
    assert journal.holds_s(30.0) is None


def test_a_journal_of_a_fleet_in_which_nothing_happens_says_nothing_of_what_it_keeps(tmp_path: Path) -> None:
    journal = JournalFile(tmp_path)
    journal.write(entry(time_s=0.0))
    assert journal.holds_s(600.0) is None, "and not 466,000 days"
    journal.write(entry(time_s=900.0))
    assert journal.holds_s(1_800.0) is not None


def test_the_size_of_a_journal_is_chosen_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SIZE_VARIABLE, "2048")
    assert chosen_file_bytes() * MAX_FILES == 2048 << 20


@pytest.mark.parametrize("value", ["", "8", "64MiB", "-1", "2000000"])
def test_a_size_that_may_not_be_is_logged_and_the_default_holds(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SIZE_VARIABLE, value)
    with capture_logs() as logs:
        assert chosen_file_bytes() * MAX_FILES == DEFAULT_MIB << 20
    told = [(event["event"], event["value"], event["allowed"]) for event in logs]
    assert told == ([("journal_size_unreadable", value, f"{ALLOWED_MIB[0]} to {ALLOWED_MIB[-1]}")] if value else [])
