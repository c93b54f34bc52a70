"""What one engine step asks of the draft model, decided by the scheduler and shipped to the workers with the step.

Work and memory moves travel as attributes of vLLM's SchedulerOutput, so that they arrive with the step that they belong to and
every tensor-parallel rank does the same. Token ids come along, because under async scheduling a worker's own copy holds
placeholders. A step without any (vLLM's warm-up, a scheduler that failed open) drafts as vLLM would.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final, NamedTuple

WORK_ATTRIBUTE: Final = "nightjar_draft_work"
MEMORY_ATTRIBUTE: Final = "nightjar_draft_memory"
ROWS_ATTRIBUTE: Final = "nightjar_block_ids"
"""Of requests whose KV blocks moved, on model runner V2: all block ids by request id, a list for each KV cache group."""
RELOAD_FAILURE_ATTRIBUTE: Final = "nightjar_reload_failure"
"""On vLLM's ModelRunnerOutput, on the way back: why a RELOAD broke off in the step, so that the draft is as offloaded as before."""
DRAFTER_FAILURE_ATTRIBUTE: Final = "nightjar_drafter_failure"
"""There as well: why a pass that only the drafter needs broke off. A draft model read nothing that the step told it to read again;
a head runs as in vLLM from then on."""


class MemoryMove(IntEnum):
    """Where the draft model's memory goes."""

    OFFLOAD = 1
    """Weights leave the accelerator, and so does the draft layers' KV."""
    RELOAD = 2
    """Weights come back; nothing of the draft's KV is valid."""


class MemoryWork(NamedTuple):
    """One step's part of a move (memory/interface.py)."""

    move: MemoryMove
    share: float
    """How much of all its bytes have moved once the worker is done with this part: 0 only begins it, 1 ends it."""


class Recompute(NamedTuple):
    """Tokens of one request that the draft reads again: `token_ids` from position `first_token` on.

    With `own_tokens` it reads what the target reads of the request in this step as well, right after them: then the request
    misses nothing once the step is done.
    """

    request_id: str
    first_token: int
    token_ids: tuple[int, ...]
    own_tokens: bool


class DraftWork(NamedTuple):
    """One step's orders. A tuple, because one is made for every step."""

    runs: bool
    """Whether the drafter proposes tokens in this step (it then reads this step's tokens of every row)."""
    recompute: tuple[Recompute, ...] = ()
    """What it reads again before that."""


SLEEP: Final = DraftWork(runs=False)
RUN: Final = DraftWork(runs=True)
