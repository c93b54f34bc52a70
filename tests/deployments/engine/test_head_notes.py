"""Word of a loaded head from its worker to the replica."""

from __future__ import annotations

from pathlib import Path

from nightjar.deployments.engine.engine_folder import note_head, noted_head
from nightjar.deployments.engine.environment import ENGINE_FOLDER_VARIABLE


def test_what_a_worker_notes_the_replica_reads(tmp_path: Path) -> None:
    assert noted_head(tmp_path) == ""
    note_head("its attention backend writes KV within attention", {ENGINE_FOLDER_VARIABLE: str(tmp_path)})
    assert noted_head(tmp_path) == "its attention backend writes KV within attention"


def test_without_a_folder_or_with_one_that_is_gone_nothing_happens(tmp_path: Path) -> None:
    note_head("why", {})
    note_head("why", {ENGINE_FOLDER_VARIABLE: str(tmp_path / "gone")})
    assert noted_head(tmp_path / "gone") == ""
    (tmp_path / "head-1.txt").write_bytes(b"\xff\xfe")
    assert noted_head(tmp_path) == ""
