"""The GCS store: one error, in time, whatever Ray's client does; and a checkpoint that saves what can be saved."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from nightjar.cluster.storage import gcs_store as stored
from nightjar.cluster.storage.checkpoint import Checkpoint, StoreError
from nightjar.cluster.storage.gcs_store import GcsStore
from tests.cluster.protocol import MemoryStore


class Gcs:
    """Ray's KV client as far as we use it."""

    def __init__(self) -> None:
        self.values: dict[tuple[bytes, bytes], bytes] = {}
        self.timeouts_s: list[float] = []

    def internal_kv_get(self, key: bytes, namespace: bytes, timeout: float) -> bytes | None:
        self.timeouts_s.append(timeout)
        return self.values.get((namespace, key))

    def internal_kv_put(self, key: bytes, value: bytes, overwrite: bool, namespace: bytes, timeout: float) -> int:
        assert overwrite
        self.timeouts_s.append(timeout)
        self.values[namespace, key] = value
        return 1


async def test_values_are_kept_in_a_namespace_of_ours_and_every_call_has_a_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    gcs = Gcs()
    monkeypatch.setattr(stored, "_gcs_client", lambda: gcs)
    assert await GcsStore().get("incarnation") is None
    await GcsStore().put("incarnation", b"1")
    await GcsStore().put("incarnation", b"2")
    assert await GcsStore().get("incarnation") == b"2"
    assert gcs.values == {(b"nightjar", b"incarnation"): b"2"}
    assert gcs.timeouts_s == [2.0] * 4


@pytest.mark.parametrize("error", [RuntimeError("no leader"), Exception("rpc"), TimeoutError("deadline")])
async def test_whatever_ray_raises_is_a_store_error_that_names_the_key(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail() -> Any:
        raise error

    monkeypatch.setattr(stored, "_gcs_client", fail)
    with pytest.raises(StoreError, match="key incarnation"):
        await GcsStore().get("incarnation")
    with pytest.raises(StoreError, match="key incarnation"):
        await GcsStore().put("incarnation", b"1")


async def test_a_process_without_ray_has_no_store() -> None:
    pytest.importorskip("ray")
    with pytest.raises(StoreError, match="not connected"):
        await GcsStore().get("incarnation")


async def test_what_has_no_stored_form_is_left_out_and_the_rest_is_saved() -> None:
    kept = MemoryStore()
    checkpoint = Checkpoint(kept)
    await checkpoint.load()
    checkpoint.keep(incarnation=1 << 80)  # msgpack has 64 bits
    checkpoint.keep(fleet_id="f")
    await checkpoint.save()
    assert [key.rpartition(":")[2] for key, _ in kept.puts] == ["fleet_id"]
    checkpoint.keep(incarnation=2)
    await checkpoint.save()
    assert (await Checkpoint(kept).load()).incarnation == 2


async def test_what_was_being_saved_when_a_save_was_cancelled_is_saved_again() -> None:
    kept = ParkingStore()
    checkpoint = Checkpoint(kept)
    await checkpoint.load()
    checkpoint.keep(fleet_id="f")
    cancelled = asyncio.create_task(checkpoint.save())
    await kept.parked.wait()
    cancelled.cancel()
    await asyncio.gather(cancelled, return_exceptions=True)
    kept.room.set()
    await checkpoint.save()
    assert (await Checkpoint(kept).load()).fleet_id == "f"


class ParkingStore(MemoryStore):
    """Takes nothing before it has room."""

    def __init__(self) -> None:
        super().__init__()
        self.parked, self.room = asyncio.Event(), asyncio.Event()

    async def put(self, key: str, value: bytes) -> None:
        self.parked.set()
        await self.room.wait()
        await super().put(key, value)
