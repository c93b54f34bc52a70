"""Frozen values of the policy as plain types, and back: the fleet's whole state fits into msgpack and comes out equal.

Dataclasses, named tuples, records, arrays and mappings with any keys; order of mappings and memory layout of arrays are kept,
because sums depend on both to the last bit, and a replay must come to the same decisions (INV-7). Types are read from
annotations, so that a new field needs no code here. Fails closed: a value of an unknown type raises TypeError, plain types that
do not fit raise PlainError.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import cache
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import numpy as np
from pydantic import BaseModel, TypeAdapter, ValidationError

from nightjar.policy.persistent_map import PersistentMap
from nightjar.policy.wire.record import describe_validation_error

_AS_IT_IS = (NoneType, bool, int, float, str, bytes)


class PlainError(ValueError):
    """Plain types that are not the value they should be, as another version of the policy writes them."""


def plain(value: object) -> Any:
    """What msgpack packs. Mappings become lists of pairs. Raises TypeError for a type that has no plain form."""
    if type(value) in _AS_IT_IS:
        return value
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", exclude_none=True)
    if is_dataclass(value):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return [[plain(key), plain(item)] for key, item in value.items()]
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return _plain_array(value)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(item) for item in value]
    raise TypeError(f"{type(value).__name__} has no plain form")


def restored(hint: Any, value: Any) -> Any:
    """The value of type `hint` that `plain` gave `value` for. Raises PlainError naming what does not fit."""
    try:
        return _reader(hint)(value)
    except ValidationError as error:
        raise PlainError(describe_validation_error(error)) from error
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise PlainError(f"{getattr(hint, '__name__', hint)}: {error}") from error


def _reader(hint: Any) -> Callable[[Any], Any]:
    """How a type is read back. Annotations of the policy's own values only; anything else is read as it is."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return _union_reader(hint, [argument for argument in arguments if argument is not NoneType])
    if origin is PersistentMap:
        return _map_reader(PersistentMap, str, arguments[0])
    if origin is np.ndarray:
        return _array
    if origin is tuple and not (len(arguments) == 2 and arguments[1] is Ellipsis):
        readers = [_reader(argument) for argument in arguments]
        return lambda items: tuple(read(item) for read, item in zip(readers, items, strict=True))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return _map_reader(dict, *arguments)
    if isinstance(origin, type) and issubclass(origin, Sequence):
        read_item = _reader(arguments[0])
        return lambda items: tuple(read_item(item) for item in items)
    return _class_reader(hint) if isinstance(hint, type) else _as_it_is


def _as_it_is(value: Any) -> Any:
    return value


def _union_reader(hint: Any, arms: Sequence[Any]) -> Callable[[Any], Any]:
    if len(arms) > 1:
        return TypeAdapter(hint).validate_python
    read = _reader(arms[0])
    return lambda value: None if value is None else read(value)


def _map_reader(kind: Callable[[dict[Any, Any]], Any], key: Any, item: Any) -> Callable[[Any], Any]:
    read_key, read_item = _reader(key), _reader(item)
    return lambda pairs: kind({read_key(one): read_item(other) for one, other in pairs})


@cache
def _class_reader(kind: type) -> Callable[[Any], Any]:
    if issubclass(kind, BaseModel):
        return kind.model_validate
    if is_dataclass(kind):
        readers = {field.name: _reader(get_type_hints(kind)[field.name]) for field in fields(kind)}
        return lambda values: kind(**{name: readers[name](value) for name, value in values.items()})
    if issubclass(kind, tuple):
        items = [_reader(item) for item in get_type_hints(kind).values()]
        return lambda values: kind(*(read(value) for read, value in zip(items, values, strict=True)))
    return _as_it_is


def _plain_array(array: np.ndarray[Any, Any]) -> list[object]:
    """Type, shape and order of its axes in memory, outermost first, and the numbers in that order."""
    order = sorted(range(array.ndim), key=lambda axis: -array.strides[axis])
    in_order = array.transpose(order)
    return [array.dtype.str, list(in_order.shape), order, in_order.tobytes()]


def _array(parts: Any) -> np.ndarray[Any, Any]:
    kind, shape, order, numbers = parts
    in_order = np.frombuffer(numbers, dtype=np.dtype(kind)).reshape(shape).copy()
    return in_order.transpose(np.argsort(order)) if order else in_order
