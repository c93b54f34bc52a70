"""The policy's store in a Ray cluster: Ray's own key-value store, in a namespace of ours.

It is private to Ray and blocking, so every call runs in a thread and carries a timeout. Fails as StoreError, and in time, whatever
Ray's client raises.
"""

from __future__ import annotations

from typing import Any, Final

from nightjar.cluster.storage.checkpoint import STORE_TIMEOUT_S, called_in_time

NAMESPACE: Final = b"nightjar"


class GcsStore:
    """Works in any process that is connected to a cluster. Values survive the actor, and the head node only where GCS fault
    tolerance is on.
    """

    async def get(self, key: str) -> bytes | None:
        """See KeyValueStore."""
        return await called_in_time(key, _read, key.encode())

    async def put(self, key: str, value: bytes) -> None:
        """See KeyValueStore."""
        await called_in_time(key, _write, key.encode(), value)


def _read(key: bytes) -> bytes | None:
    value: bytes | None = _gcs_client().internal_kv_get(key, NAMESPACE, timeout=STORE_TIMEOUT_S)
    return value


def _write(key: bytes, value: bytes) -> None:
    _gcs_client().internal_kv_put(key, value, True, NAMESPACE, timeout=STORE_TIMEOUT_S)


def _gcs_client() -> Any:
    from ray.experimental.internal_kv import internal_kv_get_gcs_client  # private to Ray: imported where it is used

    client = internal_kv_get_gcs_client()
    if client is None:
        raise RuntimeError("this process is not connected to a Ray cluster")
    return client
