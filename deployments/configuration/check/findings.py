"""What `nightjar check` says: findings with a line, worst first to matter, and a record's validation errors as findings.

An error is a configuration that will not do what it says; a warning one that will disappoint; advice is neither, and fails nothing.
Each names the place, the value seen, what is allowed and the way out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, Final, Literal, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, PydanticUndefined

from nightjar.policy.wire.record import without_credentials

_MANY: Final = 24
"""More names than these are not listed."""
Severity = Literal["error", "warning", "advice"]
ServedOn = Literal["this machine", "pods", "unknown"]
"""Whose folders an engine will find: this machine's under `nightjar run`, its pods' own in a RayService."""
Place = tuple[str | int, ...]
"""Keys and list positions from the top of a configuration down to a value."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One sentence about one place of a file. An error's names the value seen, what is allowed and the way out."""

    severity: Severity
    place: Place
    message: str
    line: int = field(default=0, compare=False)  # in the file, counted from 1; 0 where only its values were looked at

    def text(self, file: str) -> str:
        """As compilers write it, so that editors jump to it."""
        place = ".".join(str(part) for part in self.place)
        where = f" {place}:" if place else ""
        return f"{file}:{self.line}: {self.severity}:{where} {without_credentials(self.message)}"


def shown(value: object) -> str:
    """A value as messages show it: short, on one line, without the passwords of addresses."""
    text = without_credentials(" ".join(repr(value).split()))
    return text if len(text) <= 80 else f"{text[:77]}..."


def schema_findings(model: type[BaseModel], values: object, place: Place) -> Iterator[Finding]:
    """What keeps `values`, which stand at `place`, from being a `model`."""
    try:
        model.model_validate(values)
    except ValidationError as error:
        for detail in error.errors(include_url=False):
            yield Finding("error", (*place, *_place_of(detail)), _message(model, detail))


def no_such_name(name: str, value: object, allowed: Iterable[str], what: str = "field") -> str:
    """The message for a misspelt name, with the nearest real one."""
    allowed = sorted(allowed)
    if near := near_name(name, allowed):
        hint = f"did you mean {near}?"
    elif len(allowed) <= _MANY:
        hint = f"allowed are {', '.join(allowed)}; take it out"
    else:
        hint = "take it out, or look its name up"
    return f"no such {what} (value {shown(value)}); {hint}"


def near_name(name: str, allowed: Iterable[str], likeness: float = 0.7) -> str:
    """The name that was probably meant; empty where none is as like as that."""
    return next(iter(get_close_matches(name, sorted(allowed), n=1, cutoff=likeness)), "")


def place_named_in(message: str, values: object) -> Place:
    """The key that a message about several of a mapping's values names first; nothing where it names none."""
    if not isinstance(values, Mapping):
        return ()
    words = re.findall(r"[a-z_]+", message)
    return next(((word,) for word in words if word in values), ())


def _place_of(detail: ErrorDetails) -> Place:
    location = tuple(detail["loc"])
    return (*location, *place_named_in(detail["msg"], detail["input"])) if detail["type"] == "value_error" else location


def _message(model: type[BaseModel], detail: ErrorDetails) -> str:
    location, value = detail["loc"], detail["input"]
    parent = _model_at(model, location[:-1])
    if detail["type"] == "extra_forbidden":
        return no_such_name(str(location[-1]), value, parent.model_fields if parent else ())
    if detail["type"] == "missing":
        return f"missing; add it to {shown(value)}"
    said = detail["msg"].removeprefix("Value error, ").replace("Input should be", "must be").replace("Input should", "must")
    if isinstance(value, Mapping) and detail["type"] == "value_error":
        return said
    return f"{shown(value)} {said}{_way_out(parent, location)}"


def _way_out(parent: type[BaseModel] | None, location: tuple[int | str, ...]) -> str:
    field = parent.model_fields.get(str(location[-1])) if parent and location else None
    if field is None or field.is_required():
        return "; correct it"
    default = field.get_default()
    is_told = default is not None and default is not PydanticUndefined
    return f"; correct it, or take it out for the default{f' {default}' if is_told else ''}"


def _model_at(model: type[BaseModel], location: tuple[int | str, ...]) -> type[BaseModel] | None:
    """The record that holds the field at the end of `location`."""
    found: type[BaseModel] | None = model
    for part in location:
        if isinstance(part, int) or found is None:
            continue
        field = found.model_fields.get(part)
        found = _record_in(field.annotation) if field else None
    return found


def _record_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((record for inner in get_args(annotation) if (record := _record_in(inner))), None)
