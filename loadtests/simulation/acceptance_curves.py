"""Acceptance that others published: the mean acceptance length of a drafter by K, as InferenceX measured it for today's models.

A curve says what was accepted and nothing of step times: `PROFILE+CURVE` puts it in the place of a profile's own acceptance
(profiles.py). The file keeps the published numbers with their source and licence; what the simulator needs is computed from them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field

CURVES_FILE: Final = Path(__file__).parent / "profiles" / "acceptance" / "inferencex.json"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Curve(_Part):
    """Mean acceptance length by K, from 1, as somebody measured it: generated tokens of a row and step."""

    model: str
    file: str
    run: str
    lengths: Annotated[tuple[Annotated[float, Field(ge=1.0, le=33.0)], ...], Field(min_length=2, max_length=32)]

    def survival(self) -> tuple[float, ...]:
        """The probability that more than i drafts are accepted, as near to the curve's differences as one that never rises.

        Each K was a run of its own, so neighbours that would rise with the position share their mean; where a longer K gave
        less, nothing is accepted of what it adds.

        >>> curve = Curve(model="m", file="f", run="1", lengths=(1.8, 2.3, 2.9, 2.8))
        >>> [round(share, 3) for share in curve.survival()]
        [0.8, 0.55, 0.55, 0.0]
        """
        runs: list[tuple[float, int]] = []
        for later, earlier in zip(self.lengths, (1.0, *self.lengths), strict=False):
            total, count = later - earlier, 1
            while runs and runs[-1][0] / runs[-1][1] < total / count:
                before, more = runs.pop()
                total, count = total + before, count + more
            runs.append((total, count))
        return tuple(min(max(total / count, 0.0), 1.0) for total, count in runs for _ in range(count))


class Curves(_Part):
    """Curves of one source, by name."""

    source: str
    licence: str
    measured: str
    curves: dict[str, Curve]


def acceptance_curves() -> Curves:
    """The curves that ship: InferenceX's."""
    return Curves.model_validate_json(CURVES_FILE.read_text(encoding="utf-8"))
