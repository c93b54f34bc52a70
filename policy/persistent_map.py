"""A dictionary that is never changed: setting a key gives a new one that shares nearly everything with the old.

The fleet's state is a value, and a thousand replicas report twice a second. Copying one dictionary of all replicas for
each report costs 10 microseconds at 1,000 replicas and half a millisecond at 20,000; this copies one of 128 parts.
Shards are picked by a checksum of the key, not by `hash`, so the order of iteration is the same in every process (INV-7).
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from types import GenericAlias
from typing import Any, Final, Generic, TypeVar, get_args

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

_SHARDS: Final = 128
"""Of 10,000 entries, a change copies about 80."""

Value = TypeVar("Value")


class PersistentMap(Mapping[str, Value], Generic[Value]):
    """Immutable mapping from text to values."""

    __slots__ = ("_length", "_shards")

    def __init__(self, items: Mapping[str, Value] | None = None) -> None:
        shards: list[dict[str, Value]] = [{} for _ in range(_SHARDS)]
        for key, value in (items or {}).items():
            shards[_shard(key)][key] = value
        self._shards = tuple(shards)
        self._length = len(items or {})

    def with_item(self, key: str, value: Value) -> PersistentMap[Value]:
        """The same mapping with one key set."""
        index = _shard(key)
        shard = self._shards[index]
        changed: PersistentMap[Value] = PersistentMap.__new__(PersistentMap)
        changed._shards = (*self._shards[:index], {**shard, key: value}, *self._shards[index + 1 :])
        changed._length = self._length + (key not in shard)
        return changed

    def __getitem__(self, key: str) -> Value:
        return self._shards[_shard(key)][key]

    def __iter__(self) -> Iterator[str]:
        for shard in self._shards:
            yield from shard

    def __len__(self) -> int:
        return self._length

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Read from a dictionary, where pydantic reads a value that holds one."""
        (value,) = get_args(source)
        return core_schema.no_info_after_validator_function(cls, handler.generate_schema(GenericAlias(dict, (str, value))))

    def __repr__(self) -> str:
        return f"PersistentMap({dict(self)!r})"


def _shard(key: str) -> int:
    return zlib.crc32(key.encode()) % _SHARDS
