"""Frozen values of the policy as msgpack, and back: the fleet's whole state comes out equal.

Mappings keep their order and arrays their layout in memory, because sums depend on both to the last bit, and a replay must come to
the same decisions (INV-7). pydantic reads values back by their annotations, so that a new field needs no code here. Fails closed: a
value of an unknown type raises TypeError, what does not fit the annotations raises ValueError.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from types import GenericAlias
from typing import Any, Final

import msgpack
import numpy as np
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from nightjar.policy.wire.record import describe_validation_error

_ARRAY: Final = 1
"""msgpack's code for an array: an extension type of ours."""
_AS_ANNOTATED: Final = ConfigDict(extra="forbid", arbitrary_types_allowed=True)
"""Of dataclasses and named tuples; records have a configuration of their own."""


def packed(value: object) -> bytes:
    """msgpack of a value, or of lists and mappings of values. Raises TypeError for a type that has no plain form."""
    whole: bytes = msgpack.packb(value, default=_plain)
    return whole


def unpacked(whole: bytes) -> Any:
    """What `packed` packed, as plain types and arrays, lists as tuples. Raises ValueError."""
    try:
        return msgpack.unpackb(whole, use_list=False, strict_map_key=False, ext_hook=_array)
    except (ValueError, TypeError, msgpack.exceptions.UnpackException) as error:
        raise ValueError(f"{len(whole)} bytes that are not msgpack ({error})") from error


def restored(hint: Any, value: Any) -> Any:
    """The value of type `hint` of which `unpacked` gave `value`. Raises ValueError naming what does not fit."""
    try:
        return _adapter(hint).validate_python((value,))[0]
    except ValidationError as error:
        raise ValueError(f"{getattr(hint, '__name__', hint)}: {describe_validation_error(error)}") from error


@cache
def _adapter(hint: Any) -> TypeAdapter[Any]:
    """Of a tuple with one value, since pydantic takes no configuration for a dataclass itself."""
    alone: Any = GenericAlias(tuple, (hint,))
    return TypeAdapter(alone, config=_AS_ANNOTATED)


def _plain(value: object) -> Any:
    """What msgpack packs in the place of a value that it does not know."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", exclude_none=True)
    if is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in fields(value)}
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        dense = value.copy(order="K")
        kind = dense.dtype.str if dense.dtype.names is None else dense.dtype.descr
        parts = [kind, dense.shape, dense.strides, dense.ravel(order="K").tobytes()]
        return msgpack.ExtType(_ARRAY, msgpack.packb(parts))
    raise TypeError(f"{type(value).__name__} has no plain form")


def _array(_code: int, parts: bytes) -> np.ndarray[Any, Any]:
    """The array that `_plain` packed: its type, shape and strides, and its numbers as they lie in memory."""
    kind, shape, strides, numbers = msgpack.unpackb(parts)
    dtype = np.dtype(kind if isinstance(kind, str) else [tuple(field) for field in kind])
    return np.ndarray(shape, dtype, bytearray(numbers), strides=strides)
