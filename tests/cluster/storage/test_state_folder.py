"""A policy's folder: whole values, one holder, and one error whatever the disk says."""

from __future__ import annotations

import os
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


async def test_a_full_disk_leaves_the_value_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> NoReturn:
        raise OSError(28, "No space left on device")

    folder = StateFolder.take(tmp_path)
    await folder.put("settings", b"before")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match=r"key settings: OSError: .*No space left"):
        await folder.put("settings", b"after")
    assert await folder.get("settings") == b"before"
