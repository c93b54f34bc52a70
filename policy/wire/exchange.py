"""The two envelopes: what a replica's agent hands its engine, and what the policy answers to a report."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from nightjar.policy.wire.mode import Mode
from nightjar.policy.wire.record import PROTOCOL_VERSION, Reason, Record
from nightjar.policy.wire.settings import IssuedSettings, SettingsVersion


class EngineCommand(Record):
    """What the replica tells its engine on the control channel. Complete each time: an absent field means none.

    `issued` settings are adopted if newer; `confirmed` names settings that the policy said still hold, and restarts their age;
    `local_mode` is the replica's own kill switch, which overrides the settings' mode until a command carries another value.
    """

    issued: IssuedSettings | None = None
    confirmed: SettingsVersion | None = None
    local_mode: Mode | None = None


class ExchangeReply(Record):
    """The policy's answer to a report: settings if newer ones exist, or why the report was refused."""

    protocol_version: int = PROTOCOL_VERSION
    incarnation: Annotated[int, Field(ge=0, lt=1 << 53)]
    issued: IssuedSettings | None = None
    refused: Reason = ""
