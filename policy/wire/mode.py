"""The mode: what an operator wants of a fleet, an application or a replica.

Fails closed: text that is no mode raises pydantic's ValueError with what is allowed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Literal, Self

from pydantic import model_serializer, model_validator

from nightjar.policy.wire.record import MAX_NUM_SPECULATIVE_TOKENS, NumSpeculativeTokens, Record


class Mode(Record):
    """What the operator wants: `auto` runs the planner, `shadow` plans and touches nothing, `off`, `pin=K`.

    A plain string on every wire and in every file. `pin` holds num_speculative_tokens, the other kinds do not.
    """

    kind: Literal["auto", "shadow", "off", "pin"]
    num_speculative_tokens: NumSpeculativeTokens | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: object) -> object:
        if value is False:
            return {"kind": "off"}  # YAML reads an unquoted off as false
        if isinstance(value, Mapping | Mode):
            return value
        if not isinstance(value, str):
            value = str(value)
        if value in {"auto", "shadow", "off"}:
            return {"kind": value}
        pinned = re.fullmatch(r"pin=(\d{1,3})", value)
        if pinned and int(pinned[1]) <= MAX_NUM_SPECULATIVE_TOKENS:
            return {"kind": "pin", "num_speculative_tokens": int(pinned[1])}
        raise ValueError(f"mode {value[:40]!r} is none of auto, shadow, off, pin=K with K from 0 to {MAX_NUM_SPECULATIVE_TOKENS}")

    @model_validator(mode="after")
    def _only_pin_holds_a_k(self) -> Self:
        if (self.kind == "pin") != (self.num_speculative_tokens is not None):
            raise ValueError("num_speculative_tokens belongs to mode pin, and only to it")
        return self

    @model_serializer(mode="plain")
    def _to_text(self) -> str:
        return str(self)

    @classmethod
    def parse(cls, text: str) -> Mode:
        """Parse `auto`, `shadow`, `off` or `pin=K`. Raises ValueError (pydantic's) naming what is allowed."""
        return cls.model_validate(text)

    def why_slow(self, graph_tiers: Sequence[int]) -> str:
        """What a pinned K costs where an engine captured full graphs for `graph_tiers` alone (empty: any K runs as well).

        >>> Mode.parse("pin=2").why_slow((0, 1, 3, 5))
        'K=2 is none of the graph tiers 0, 1, 3, 5: its steps find no full CUDA graph and run slower'
        >>> Mode.parse("pin=3").why_slow((0, 1, 3, 5)), Mode.parse("pin=2").why_slow(())
        ('', '')
        """
        pinned = self.num_speculative_tokens
        if pinned is None or not graph_tiers or pinned in graph_tiers:
            return ""
        tiers = ", ".join(map(str, graph_tiers))
        return f"K={pinned} is none of the graph tiers {tiers}: its steps find no full CUDA graph and run slower"

    def __str__(self) -> str:
        return f"pin={self.num_speculative_tokens}" if self.kind == "pin" else self.kind
