"""Where the policy actor keeps what must outlive its process: a key-value port, and Ray's GCS store behind it.

The GCS store is private to Ray and blocking, so every call runs in a thread and carries a timeout. Values survive the
actor, and the head node only where GCS fault tolerance is on. Fails loudly: a store that cannot be reached in time, or
that answers with an error, raises `StoreError`; the caller decides that this means a cold start.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final, ParamSpec, Protocol, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

STORE_TIMEOUT_S: Final = 2.0
"""Longest that one read or write may take: an actor that starts must not keep replicas waiting for a sick store."""

NAMESPACE: Final = b"nightjar"


class StoreError(RuntimeError):
    """The store did not take or give a value. The message names the key and what went wrong."""


class KeyValueStore(Protocol):
    """Small values by key. Both methods raise StoreError, and neither blocks the event loop."""

    async def get(self, key: str) -> bytes | None:
        """The value last put under `key`, None where nothing was."""
        ...

    async def put(self, key: str, value: bytes) -> None:
        """Replace the value under `key`."""
        ...


class GcsStore:
    """Ray's own key-value store, in a namespace of ours. Works in any process that is connected to a cluster."""

    async def get(self, key: str) -> bytes | None:
        """See KeyValueStore."""
        return await _in_thread(key, _read, key.encode())

    async def put(self, key: str, value: bytes) -> None:
        """See KeyValueStore."""
        await _in_thread(key, _write, key.encode(), value)


async def _in_thread(key: str, call: Callable[P, T], *arguments: P.args, **keywords: P.kwargs) -> T:
    try:
        async with asyncio.timeout(STORE_TIMEOUT_S + 0.5):  # above the client's own timeout, which frees the thread
            return await asyncio.to_thread(call, *arguments, **keywords)
    except TimeoutError as error:
        raise StoreError(f"key {key}: no answer within {STORE_TIMEOUT_S} s") from error
    except Exception as error:  # Ray's KV client raises RpcError, RuntimeError and plain Exception alike
        raise StoreError(f"key {key}: {type(error).__name__}: {error}") from error


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
