"""What the policy actor answers to an operator: plain dicts with an `error` in words, never an exception over the wire."""

from __future__ import annotations

from typing import NotRequired, TypedDict

from nightjar.policy.wire.operator import OperatorSettings


class ConfigureAnswer(TypedDict):
    """The settings in force after the call, and why the ones asked for are not, if so."""

    settings: dict[str, object]
    error: str


class Outlives(TypedDict):
    """Whether what is set by hand outlives the loss of the head node, and an upgrade that runs both clusters."""

    head: bool
    upgrade: bool


class SetModeAnswer(TypedDict):
    """The override in force (None: taken back), and why it is not, if so. Older releases do not say what it outlives."""

    override: dict[str, object] | None
    error: str
    outlives: NotRequired[Outlives]


class FreezeAnswer(TypedDict):
    """The freeze in force (None: ended), and why it is not as asked for, if so. Older releases do not say what it outlives."""

    freeze: dict[str, object] | None
    error: str
    outlives: NotRequired[Outlives]


class CanaryAnswer(TypedDict):
    """The canary that runs, or has ended (None: there was none), and why it is not as asked for, if so."""

    canary: dict[str, object] | None
    error: str


class ImportedGroup(TypedDict):
    """A group that was taken from a file; without replicas it waits for the first one of its key."""

    group_id: str
    cells: int
    replicas: int


class ImportAnswer(TypedDict):
    """The groups that were taken, and why none was, if so."""

    groups: list[ImportedGroup]
    error: str


class ExplainAnswer(TypedDict):
    """A policy.wire.explanation.Explanation in plain types (None: no replica goes by that name), and why there is none, if so."""

    explanation: dict[str, object] | None
    error: str


def changed_fields(before: OperatorSettings, after: OperatorSettings) -> str:
    """`name old -> new` of every field that differs."""
    changes = [
        f"{name} {getattr(before, name)} -> {getattr(after, name)}"
        for name in OperatorSettings.model_fields
        if getattr(before, name) != getattr(after, name)
    ]
    return ", ".join(changes)
