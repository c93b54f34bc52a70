"""What every record is: a frozen value, validated where it enters, with a msgpack form.

A report is untrusted data (INV-10), so each field has bounds and every sequence a maximum length. On the wire a record is
msgpack of plain types: unknown fields are ignored and new fields are optional, so that replicas and actors of neighbouring versions
understand each other.
Fails closed: bytes that are too long, not msgpack or out of bounds raise `WireError`, which names field, value and limit.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Final, Self
from urllib.parse import SplitResult, urlsplit

import msgpack
from pydantic import BaseModel, ConfigDict, Field, ValidationError

PROTOCOL_VERSION: Final = 3
MAX_RECORD_BYTES: Final = 1 << 20
MAX_NUM_SPECULATIVE_TOKENS: Final = 32
MAX_BATCH_SIZE: Final = 4096
MAX_REASON_LENGTH: Final = 1024
MAX_NAMED: Final = 1000
"""Of what goes by a name one policy keeps so many of each kind: groups, overrides, applications with settings of their own. So its
memory (INV-8), what it stores, and what people read stay bounded."""
Identifier = Annotated[str, Field(min_length=1, max_length=256)]
Reason = Annotated[str, Field(max_length=MAX_REASON_LENGTH)]
NumSpeculativeTokens = Annotated[int, Field(ge=0, le=MAX_NUM_SPECULATIVE_TOKENS)]
BatchSize = Annotated[int, Field(ge=0, le=MAX_BATCH_SIZE)]
Count = Annotated[int, Field(ge=0, lt=1 << 53)]
Seconds = Annotated[float, Field(ge=0.0, le=1e9)]
_CREDENTIALS: Final = re.compile(r"""(?<![^\s'"])[^\s'":]*:[^\s'"]*@(?!sha\d+:)""")
"""Begins where a word does, so that a long text is looked at once."""
SHORTEST_STEP_SECONDS: Final = 1e-5
LONGEST_STEP_SECONDS: Final = 600.0
"""No step of any engine is shorter or longer (INV-10), nor longer by what brings its drafter back (switch_cost.py)."""
MOST_SUM: Final = 1e30
"""Of what many reports add up to. Thousands of replicas may add counts of 2^53 each, and what was counted must always be storable:
the bound only keeps out what would overflow when it is squared."""
DecayedSum = Annotated[float, Field(ge=0.0, le=MOST_SUM)]
PositiveSum = Annotated[float, Field(gt=0.0, le=MOST_SUM)]
SignedSum = Annotated[float, Field(ge=-MOST_SUM, le=MOST_SUM)]


class WireError(ValueError):
    """Bytes that are not the record they should be. The message names the field, the value seen and what is allowed."""


def without_credentials(text: str) -> str:
    """A text for messages and logs, without users and passwords of addresses. An image's digest stays.

    >>> without_credentials("'http://me:secret@host/learned' is no place")
    "'***@host/learned' is no place"
    >>> without_credentials("http://host:8000/learned and serve:1@sha256:0")
    'http://host:8000/learned and serve:1@sha256:0'
    """
    return _CREDENTIALS.sub("***@", text)


def web_address(text: str) -> SplitResult | None:
    """The parts of an http or https address; None where it is none.

    >>> [address.netloc if (address := web_address(text)) else None for text in ("http://[::1]:80/a", "http://a:b", "ftp://a", "a")]
    ['[::1]:80', None, None, None]
    """
    try:
        parts = urlsplit(text)
        return parts if parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0 else None
    except ValueError:  # a port that is no number, a bracket that is not closed
        return None


def describe_validation_error(error: ValidationError, limit: int = 3) -> str:
    """The first `limit` problems of a pydantic error on one line: `field: what was wrong (got value)`."""
    problems = []
    for detail in error.errors(include_url=False, include_context=False)[:limit]:
        path = ".".join(str(part) for part in detail["loc"]) or "record"
        problems.append(f"{path}: {detail['msg']} (got {without_credentials(_shown(detail['input']))[:80]!r})")
    remaining = error.error_count() - len(problems)
    return "; ".join(problems) + (f"; and {remaining} more" if remaining > 0 else "")


def _shown(value: object) -> str:
    try:
        return str(value)
    except RecursionError:
        return "values nested too deeply to show"


class Record(BaseModel):
    """A frozen value with a msgpack form."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    max_wire_bytes: ClassVar[int] = MAX_RECORD_BYTES
    """The longest wire form that is parsed."""

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A copy with other values, which pydantic takes unchecked.

        Raises TypeError for what is no field: pydantic would keep it, and what moved to another record would change nothing.
        """
        fields = type(self).model_fields
        unknown = sorted(set(update or ()) - fields.keys())
        if unknown:
            raise TypeError(f"{type(self).__name__} has no {', '.join(unknown)}; its fields are {', '.join(fields)}")
        return super().model_copy(update=update, deep=deep)

    def to_wire(self) -> bytes:
        """msgpack of the record's plain form; fields that are None are left out."""
        packed: bytes = msgpack.packb(self.model_dump(mode="json", exclude_none=True))
        return packed

    @classmethod
    def from_wire(cls, payload: bytes) -> Self:
        """Parse what `to_wire` wrote.

        Raises WireError for more than `max_wire_bytes`, for bytes that are not msgpack and for values out of bounds.
        """
        if len(payload) > cls.max_wire_bytes:
            raise WireError(f"{cls.__name__}: {len(payload)} bytes, allowed are at most {cls.max_wire_bytes}")
        try:
            return cls.model_validate(msgpack.unpackb(payload))
        except ValidationError as error:
            raise WireError(f"{cls.__name__}: {describe_validation_error(error)}") from error
        except (ValueError, TypeError, msgpack.exceptions.UnpackException) as error:
            raise WireError(f"{cls.__name__}: {len(payload)} bytes that are not msgpack ({error})") from error


def to_plain(record: Record) -> dict[str, Any]:
    """The record as JSON-ready plain types, as the journal and the HTTP API write it."""
    return record.model_dump(mode="json", exclude_none=True)
