"""One request as a simulated engine carries it, from its arrival to its last token."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True, eq=False)
class SimulatedRequest:
    """What is asked, when it was answered, and how far the engine is with it.

    The engine that it is submitted to owns everything after `cached_tokens`. `first_token_s` and `finish_s` are None until they
    happen; `admission` is the order in which the engine took it up, again after each preemption.
    """

    number: int
    arrival_s: float
    prompt_tokens: int
    output_tokens: int
    acceptance_class: int
    cached_tokens: int = 0
    """The leading tokens of its prompt that the prefix cache holds, fewer than all; after a preemption they are there again."""
    first_token_s: float | None = None
    finish_s: float | None = None
    generated_tokens: int = 0
    computed_tokens: int = 0
    """Tokens of prompt and earlier output whose KV is computed, while it prefills."""
    draft_tokens: int = 0
    """The leading ones of those that the draft has computed, too."""
    held_blocks: int = 0
    admission: int = 0
    draws: int = 0
    """Steps in which it verified drafts."""

    @property
    def prefill_tokens(self) -> int:
        """Tokens to compute before it decodes: its prompt, and after a preemption what it had generated."""
        return self.prompt_tokens + self.generated_tokens
