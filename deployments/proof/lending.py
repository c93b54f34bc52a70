"""A draft that lends its memory in mid-generation and takes it back: asleep, away, its memory full of requests' KV, drafting again.

Only on a stepped engine, whose steps are known. The answers must be plain decoding's; that the memory really moved is told by the
engine's own counters, and by the pages themselves where the rig's device faults on what was released.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from nightjar.deployments.proof.driven_engine import DrivenEngine, GenerationRequest
from nightjar.deployments.proof.stepped_engine import SteppedEngine
from nightjar.policy.wire.report import DrafterState
from nightjar.policy.wire.settings import EngineCommand, Lease, OffloadRules

RULES: Final = OffloadRules(free_share_below=0.6, pressure_s=0.0, reload_free_share=0.0)
"""Requests that wait for blocks are pressure enough, and the draft may come back at once."""
OFF_AFTER_STEPS: Final = 5
BACK_AFTER_STEPS: Final = 30
LEASE_S: Final = 600.0
LENDING_KV_BYTES: Final = 2 << 20
"""About twenty blocks of the tiny target and its draft: fewer than the crowd needs."""


def crowd(max_tokens: int = 72, cycle: int = 0) -> list[GenerationRequest]:
    """More requests than the blocks beside the draft can hold, and longer than it takes to lend and to return.

    Some end earlier: into the blocks that they free others move.
    """
    options = [{"temperature": 0.0, "max_tokens": max_tokens - 6 * (index % 4), "ignore_eos": True} for index in range(8)]
    return [
        GenerationRequest(f"lend-{cycle}-{index}", f"request {index} " + "ab" * (20 + index), options[index]) for index in range(8)
    ]


def grant(engine: DrivenEngine, mode: str, rules: OffloadRules = RULES) -> None:
    """Steer with whatever restart the engine wishes for granted."""
    wish = engine.exchange(EngineCommand()).restart_wish
    leases = () if wish is None else (Lease(wish_id=wish.wish_id, time_to_live_s=LEASE_S, reload=wish.reload),)
    engine.steer(mode, leases=leases, offload=rules)


def lend_and_take_back(engine: SteppedEngine, most: int, requests: Sequence[GenerationRequest] | None = None) -> dict[str, Any]:
    """Answers, and what is missing of a whole round: off, offloaded, blocks lent, reloaded, drafts verified again."""
    requests = crowd() if requests is None else requests
    before = engine.exchange(EngineCommand()).drafter
    states: list[DrafterState] = []
    most_lent_blocks = drafted_after = 0

    def script(step: int) -> None:
        nonlocal most_lent_blocks, drafted_after
        snapshot = engine.exchange(EngineCommand())
        states.append(snapshot.drafter_state)
        most_lent_blocks = max(most_lent_blocks, snapshot.drafter.borrowed_blocks)
        drafted_after += bool(snapshot.drafter.reloads > before.reloads and snapshot.load.num_speculative_tokens)
        if step == OFF_AFTER_STEPS:
            engine.steer("off", offload=RULES)
        elif step >= BACK_AFTER_STEPS and snapshot.drafter_state in {DrafterState.OFFLOADED, DrafterState.DORMANT}:
            grant(engine, f"pin={most}")

    engine.steer(f"pin={most}")
    answers = engine.run(requests, script)
    snapshot = engine.exchange(EngineCommand())
    wanted = {
        "the draft was never offloaded": snapshot.drafter.offloads - before.offloads,
        "it never came back": snapshot.drafter.reloads - before.reloads,
        "no request used a lent block": most_lent_blocks,
        "no block in use was moved": snapshot.drafter.relocated_blocks - before.relocated_blocks,
        "no draft was made after it came back": drafted_after,
        "KV blocks are still in use": engine.is_idle(),
    }
    missed = [words for words, seen in wanted.items() if not seen]
    return {
        "answers": answers,
        "missed": "; ".join(missed) and f"{'; '.join(missed)} (states: {', '.join(dict.fromkeys(states))})",
        "greedy": [request.request_id for request in requests],
        "ranks": [[]],
    }
