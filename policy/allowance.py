"""What a group's exploration may lose, in tokens (INV-3): a share of its output, and a grant for a cold start.

Two purses. Measurements that pay back soon draw on all that is left; those that can wait draw on a smaller share of the output as
well, so that a group whose plan is settled does not pay for curiosity all day. Fails towards less exploration: what is not there
is not spent, and what is saved up is bounded.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

OUTPUT_SHARE: Final = 0.01
"""Of a group's generated tokens, what exploration may lose in the long run (INV-3)."""
PATIENT_SHARE: Final = 0.003
"""The same for measurements that can wait: a bucket whose plan is settled is not to pay for curiosity all day."""
COLD_START_TOKENS_PER_ROW: Final = 100.0
"""Tokens a row that a group may lose before it earned an allowance, three times over in a
group of three or more: all arms of a bucket or two."""


@dataclass(frozen=True, slots=True)
class Allowance:
    """Tokens that a group's exploration may still lose, the most decode rows for which a cold start was granted, and the tokens
    that measurements which can wait may take of them."""

    tokens: float = 0.0
    most_rows: float = 0.0
    patient_tokens: float = 0.0

    @property
    def most_tokens(self) -> float:
        """What is saved up is never more: a cold start's grant, so that a quiet day does not pay for a wild hour."""
        return COLD_START_TOKENS_PER_ROW * self.most_rows

    def earn(self, generated_tokens: float, rows: float) -> Allowance:
        """The allowance after `generated_tokens` more, in a group that runs `rows` decode rows, three times over where it has three
        replicas or more.

        >>> Allowance().earn(0.0, 4.0), Allowance(5.0, 4.0).earn(1000.0, 2.0)
        (Allowance(tokens=400.0, most_rows=4.0, patient_tokens=0.0), Allowance(tokens=15.0, most_rows=4.0, patient_tokens=3.0))
        """
        after = replace(self, most_rows=max(self.most_rows, rows))
        granted = after.most_tokens - self.most_tokens
        return replace(
            after,
            tokens=min(self.tokens + granted + OUTPUT_SHARE * generated_tokens, after.most_tokens),
            patient_tokens=min(self.patient_tokens + PATIENT_SHARE * generated_tokens, after.most_tokens),
        )

    def reaches_for(self, tokens: float, can_wait: bool) -> bool:
        """Whether a measurement may lose so many tokens now."""
        return tokens <= (min(self.tokens, self.patient_tokens) if can_wait else self.tokens)

    def spend(self, tokens: float, can_wait: bool) -> Allowance:
        """The allowance after a measurement that is expected to lose `tokens`."""
        waited = tokens if can_wait else 0.0
        return replace(self, tokens=self.tokens - tokens, patient_tokens=self.patient_tokens - waited)
