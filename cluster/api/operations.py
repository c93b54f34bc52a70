"""What an operator asks of the policy: a row for each operation, and the one error that says why it did not happen.

The actor's methods (policy_actor.py), the routes of the HTTP API (policy_api.py) and the calls of both clients, client.py over Ray
and http_client.py over HTTP, are made from these rows; a command names its row. What an operation does is in policy_service.py. To
add one: a row here, in `_READS` or `_WRITES`, and there a method and its line in `_handlers`. A row's `name` and arguments are what
applications and actors of neighbouring releases call: they stay as they are.

What is sent is checked by the policy alone, which knows the replicas and the settings: by the request here, and by the modules of
operator/ against the fleet. A request's docstring is what docs/api.md says of its route.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Annotated, Any, Final, Generic, Literal, NotRequired, ParamSpec, TypedDict, TypeVar, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from nightjar.policy.operator.canary.order import MAX_SHARE
from nightjar.policy.wire.explanation import Explanation
from nightjar.policy.wire.mode import Mode
from nightjar.policy.wire.operator import MaxStepMs, Objective, PlannerName
from nightjar.policy.wire.record import Reason, Record, describe_validation_error, to_plain
from nightjar.policy.wire.status import FleetStatus, Scope

P = ParamSpec("P")
Answer = TypeVar("Answer")
M = TypeVar("M", bound=BaseModel)

HoldsForS = Annotated[float, Field(gt=0, le=31_536_000)]
"""Up to a year; without one it holds until somebody ends it."""


class OperationError(Exception):
    """An operation that did not happen, or brought no answer: `code` as in HTTP, and one line for the operator.

    422 wrong values, 404 no such replica, 401 and 403 tokens, 413 too long, 503 and 504 no answer, 502 one of something else.
    """

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code

    def __reduce__(self) -> tuple[type[OperationError], tuple[int, str]]:
        """As itself in another process: else an exception is made anew from what its base was given, which is the line alone."""
        return type(self), (self.code, str(self))


def refused(message: str) -> OperationError:
    """Of wrong values: the message names the field, the value and what is allowed."""
    return OperationError(HTTPStatus.UNPROCESSABLE_ENTITY, message)


def unavailable(why: str) -> OperationError:
    """The policy did not answer; the caller goes on with what it has."""
    return OperationError(HTTPStatus.SERVICE_UNAVAILABLE, why)


def checked(kind: type[M], values: object) -> M:
    """What a client sent, as the request that it spells. Raises OperationError."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise refused(describe_validation_error(error)) from error


Body = dict[str, object]
"""A request as a client writes it: the fields of one of the following."""


class ModeRequest(BaseModel):
    """Override the mode of the fleet, an application or a replica; what `nightjar mode` sends.

    The body is a JSON object: `mode` (`auto`, `shadow`, `off`, `pin=K`, or `default` to take an override back), and if wanted
    `scope` (`fleet`, `application`, `replica`), `name`, `for_s`, `max_step_ms`, `objective` and `reason`; for the fleet with `auto`
    or `shadow` also `planner` (who decides in place of the settings' one), and with any mode `learned`: `reset` has every planner
    begin anew, `keep` is the default. The answer holds the `override`, and what it `outlives`: the loss of the `head` node, an
    `upgrade` that runs both clusters.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    mode: Mode | None  # None is `default`
    scope: Scope = "fleet"
    name: Annotated[str, Field(max_length=256)] = ""
    max_step_ms: MaxStepMs | None = None
    objective: Objective | None = None
    planner: PlannerName | None = None
    learned: Literal["keep", "reset"] = "keep"
    for_s: HoldsForS | None = None
    reason: Reason = ""


class FreezeRequest(BaseModel):
    """Freeze the fleet, or end that; what `nightjar freeze` sends.

    The body is a JSON object: `frozen` (true begins or prolongs, false ends), and if wanted `for_s` and `reason`. While it
    lasts there is no new plan, measurement or lease; modes, limits, guard and kill switch act. The answer holds the `freeze`,
    and what it `outlives`, as with a mode.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=True)

    frozen: bool
    for_s: HoldsForS | None = None
    reason: Reason = ""


class CanaryRequest(BaseModel):
    """Let some replicas try a mode or settings, end that, or promote it; what `nightjar canary` sends.

    The body is a JSON object: `do` (`begin`, `end`, `promote`), and with `begin` what is tried (`mode`, `max_step_ms`,
    `objective`, `settings`), by whom (`share`, `application`), and if wanted `for_s`, `block_s` and `reason`. The answer holds the
    `canary`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    do: Literal["begin", "end", "promote"] = "begin"
    mode: Mode | None = None
    max_step_ms: MaxStepMs | None = None
    objective: Objective | None = None
    settings: dict[str, float | int | str] = Field(default_factory=dict)
    share: Annotated[float, Field(gt=0.0, le=MAX_SHARE)] | None = None
    application: Annotated[str, Field(max_length=256)] = ""
    for_s: HoldsForS | None = None
    block_s: Annotated[float, Field(ge=1.0, le=600.0)] = 10.0
    reason: Reason = ""


class ConfigureAnswer(TypedDict):
    """The settings in force."""

    settings: dict[str, object]


class Outlives(TypedDict):
    """Whether what is set by hand outlives the loss of the head node, and an upgrade that runs both clusters.

    `folder` is where a policy without a cluster keeps it for its next start; empty where there is a cluster. `process` is false
    where that folder could not be had, so that the end of the policy's process ends it.
    """

    head: bool
    upgrade: bool
    folder: NotRequired[str]
    process: NotRequired[bool]


class ModeAnswer(TypedDict):
    """The override in force (None: taken back, if there `was_set` one). Older releases do not say what it outlives."""

    override: dict[str, object] | None
    was_set: NotRequired[bool]
    outlives: NotRequired[Outlives]


class FreezeAnswer(TypedDict):
    """The freeze in force (None: ended). Older releases do not say what it outlives."""

    freeze: dict[str, object] | None
    outlives: NotRequired[Outlives]


class CanaryAnswer(TypedDict):
    """The canary that runs, or has ended (None: there was none)."""

    canary: dict[str, object] | None


class ImportedGroup(TypedDict):
    """A group that was taken from a file; without replicas it waits for the first one of its key."""

    group_id: str
    cells: int
    replicas: int


class ImportAnswer(TypedDict):
    """The groups that were taken."""

    groups: list[ImportedGroup]


@dataclass(frozen=True, slots=True)
class Query:
    """An operation's last argument, where it stands in the query. A list is repeated there."""

    name: str
    description: str = ""
    is_list: bool = False

    def described(self) -> dict[str, object]:
        """As OpenAPI has it."""
        return {"name": self.name, "in": "query", "description": self.description, "schema": {"type": "string", "default": ""}}


@dataclass(frozen=True, slots=True)
class Route:
    """Of the HTTP API. POST changes something and needs the token that writes. `body` is how the first argument is sent, if it is.

    `description` is what docs/api.md says.
    """

    method: Literal["GET", "POST"]
    path: str
    description: str | None
    body: Literal["", "object", "file"] = ""
    query: Query | None = None


@dataclass(frozen=True)
class Operation(Generic[P, Answer]):
    """One that takes P and answers with `answer`: a record, a TypedDict, text or bytes.

    `name` is the actor's method, `refused_as` the code of an OperationError that it raises.
    """

    name: str
    answer: type[Answer]
    route: Route | None = None
    refused_as: int = HTTPStatus.UNPROCESSABLE_ENTITY

    def done_by(self, handler: Callable[P, Answer | Awaitable[Answer]]) -> tuple[str, Callable[..., Any]]:
        """An entry in a table of who does what. A handler raises OperationError, and nothing else that is expected."""
        return self.name, handler

    def to_wire(self, answer: Any) -> object:
        """What the actor answers."""
        if isinstance(answer, Explanation):
            return {"explanation": to_plain(answer)}
        return answer.to_wire() if isinstance(answer, Record) else answer

    def from_wire(self, payload: Any) -> Answer:
        """What the actor's answer means. Raises ValueError, KeyError or TypeError where it is something else."""
        kind: Any = self.answer
        if kind is Explanation:
            payload = kind.model_validate(payload["explanation"])
        return cast("Answer", kind.from_wire(payload) if kind is FleetStatus else payload)

    def to_body(self, answer: Any) -> bytes:
        """What the HTTP API answers."""
        if isinstance(answer, Record):
            return answer.model_dump_json(exclude_none=True).encode()
        if isinstance(answer, bytes):
            return answer
        return json.dumps(answer, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()

    def from_body(self, body: bytes) -> Answer:
        """What an answer of the HTTP API means. Raises ValueError in words where it is something else."""
        kind: Any = self.answer
        answer: Any = body
        if kind is bytes:
            return cast("Answer", answer)
        try:
            answer = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise ValueError("the answer is no JSON; is this Nightjar?") from error
        if issubclass(kind, Record):
            try:
                answer = kind.model_validate(answer)
            except ValidationError as error:
                word = kind.__name__.removeprefix("Fleet").lower()
                problem = f"the answer is no {word} of this version of Nightjar: {describe_validation_error(error)}"
                raise ValueError(problem) from error
        elif not isinstance(answer, dict):
            raise ValueError("the answer is no JSON object; is this Nightjar?")
        elif (name := next(iter(kind.__annotations__))) not in answer:
            raise ValueError(f"the answer names no {name}; is this Nightjar?")
        return cast("Answer", answer)


STARTING_MODE: Final = Operation[[str, str], str]("starting_mode", str)
"""The mode that a replica of this id and application gets if it starts now. Costs the actor nothing."""
CONFIGURE: Final = Operation[[Mapping[str, object]], ConfigureAnswer]("configure", ConfigureAnswer)
"""Replace the operator's settings as a whole: Serve's `user_config`."""
STATUS: Final = Operation[[], FleetStatus](
    "status",
    FleetStatus,
    Route(
        "GET",
        "/status",
        """The fleet as the policy sees it: what `nightjar status -o json` prints (`policy/wire/status.py`).

        It may be a second old, or ten while the actor is busy, but not older than what was last written.
        """,
    ),
)
EXPLAIN: Final = Operation[[str], Explanation](
    "explain",
    Explanation,
    Route(
        "GET",
        "/explain",
        "Why one replica's K is what it is: what `nightjar explain -o json` prints (`policy/wire/explanation.py`).",
        query=Query("replica", "A replica's id as in status, or a part of it that no other has."),
    ),
    refused_as=HTTPStatus.NOT_FOUND,
)
LEARNED: Final = Operation[[], bytes](
    "learned", bytes, Route("GET", "/learned", "What the fleet has learned, as a file that `nightjar import` and `seed_from` take.")
)
MODE: Final = Operation[[Mapping[str, object]], ModeAnswer](
    "set_mode", ModeAnswer, Route("POST", "/mode", ModeRequest.__doc__, "object")
)
FREEZE: Final = Operation[[Mapping[str, object]], FreezeAnswer](
    "freeze", FreezeAnswer, Route("POST", "/freeze", FreezeRequest.__doc__, "object")
)
CANARY: Final = Operation[[Mapping[str, object]], CanaryAnswer](
    "canary", CanaryAnswer, Route("POST", "/canary", CanaryRequest.__doc__, "object")
)
IMPORT: Final = Operation[[bytes, Sequence[str]], ImportAnswer](
    "import_learned",
    ImportAnswer,
    Route(
        "POST",
        "/learned",
        """Give the fleet what another has learned; what `nightjar import` sends.

        The body is the file. `group` in the query, repeatable, names groups of it; all without. The answer holds the `groups`.
        """,
        "file",
        Query("group", is_list=True),
    ),
)
_READS: Final = (STARTING_MODE, STATUS, EXPLAIN, LEARNED)
_WRITES: Final = (CONFIGURE, MODE, FREEZE, CANARY, IMPORT)
OPERATIONS: Final[Sequence[Operation[..., Any]]] = (*_READS, *_WRITES)
