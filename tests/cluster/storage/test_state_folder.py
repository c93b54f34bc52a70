"""A policy's folder: whole values, one holder, and one error whatever the disk says."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import pwd
import threading
import time
from pathlib import Path
from typing import NoReturn

import pytest

from nightjar.cluster.storage.checkpoint import StoreError
from nightjar.cluster.storage.state_folder import StateFolder, StateFolderError


async def test_what_one_process_stored_the_next_one_reads(tmp_path: Path) -> None:
    first = StateFolder.take(tmp_path / "new" / "state")
    assert await first.get("policy-v3:learned") is None
    await first.put("policy-v3:learned", b"one")
    await first.put("policy-v3:learned", b"two")
    first.close()
    assert await StateFolder.take(tmp_path / "new" / "state").get("policy-v3:learned") == b"two"


def test_a_folder_has_one_holder_at_a_time(tmp_path: Path) -> None:
    first = StateFolder.take(tmp_path)
    with pytest.raises(StateFolderError, match="another policy holds it; name one for each policy"):
        StateFolder.take(tmp_path)
    first.close()
    StateFolder.take(tmp_path).close()


def test_a_place_that_cannot_be_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StateFolderError, match=r"state folder .*/file/state: cannot be used .*; name another one"):
        StateFolder.take(tmp_path / "file" / "state")


def test_a_user_without_a_home_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(user_id: int) -> NoReturn:
        raise KeyError(user_id)

    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", unknown)  # as of a pod's user
    with pytest.raises(StateFolderError, match=r"state folder ~/state: no home folder is known .*; set HOME or name another one"):
        StateFolder.take(Path("~/state"))


def test_a_file_system_without_locks_is_no_other_policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: object) -> NoReturn:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with pytest.raises(StateFolderError, match=r"its file system keeps no locks \(.*No locks available\)") as refused:
        StateFolder.take(tmp_path)
    assert not refused.value.is_held


async def test_a_value_whose_caller_gave_up_is_overtaken_by_the_next_one(tmp_path: Path, held_disk: HeldDisk) -> None:
    folder = StateFolder.take(tmp_path)
    older = asyncio.create_task(folder.put("learned", b"older"))
    await asyncio.to_thread(held_disk.is_asked.wait, 10.0)
    older.cancel()
    await asyncio.gather(older, return_exceptions=True)
    held_disk.next_takes_s = 0.4
    newer = asyncio.create_task(folder.put("learned", b"newer"))
    await asyncio.sleep(0.2)
    held_disk.lets_go.set()
    await newer
    assert await folder.get("learned") == b"newer"
    assert {file.name for file in await asyncio.to_thread(lambda: [*tmp_path.iterdir()])} == {"learned", "lock"}


async def test_what_is_still_being_written_when_the_folder_is_given_back_is_left_out(tmp_path: Path, held_disk: HeldDisk) -> None:
    folder = StateFolder.take(tmp_path)
    writing = asyncio.create_task(folder.put("learned", b"older"))
    await asyncio.to_thread(held_disk.is_asked.wait, 10.0)
    folder.close()
    next_one = StateFolder.take(tmp_path)
    held_disk.lets_go.set()
    await asyncio.gather(writing, return_exceptions=True)
    assert await next_one.get("learned") is None


async def test_two_holders_of_one_folder_write_no_file_together(tmp_path: Path, held_disk: HeldDisk) -> None:
    older = StateFolder.take(tmp_path)
    writing = asyncio.create_task(older.put("learned", b"older"))
    await asyncio.to_thread(held_disk.is_asked.wait, 10.0)
    (tmp_path / "lock").unlink()
    newer = StateFolder.take(tmp_path)
    await newer.put("learned", b"newer")
    held_disk.lets_go.set()
    with pytest.raises(StoreError, match="another policy holds it now"):
        await writing
    assert await newer.get("learned") == b"newer"


async def test_a_full_disk_leaves_the_value_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> NoReturn:
        raise OSError(28, "No space left on device")

    folder = StateFolder.take(tmp_path)
    await folder.put("settings", b"before")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match=r"key settings: OSError: .*No space left"):
        await folder.put("settings", b"after")
    assert await folder.get("settings") == b"before"


class HeldDisk:
    """Holds the first write that it is asked for, until it `lets_go`."""

    def __init__(self) -> None:
        self.is_asked, self.lets_go = threading.Event(), threading.Event()
        self.next_takes_s = 0.0

    def fsync(self, _: int) -> None:
        if not self.is_asked.is_set():
            self.is_asked.set()
            self.lets_go.wait(10.0)
        else:
            time.sleep(self.next_takes_s)


@pytest.fixture
def held_disk(monkeypatch: pytest.MonkeyPatch) -> HeldDisk:
    disk = HeldDisk()
    monkeypatch.setattr(os, "fsync", disk.fsync)
    return disk
