"""Scenarios of requests that run right up to `max_model_len`, where drafts would stand beyond the last position there is.

Stock vLLM drafts nothing at all in a step where any row is that near to the limit, and hands out zeros as drafts for every row: all
of them miss, and acceptance would seem to fall whenever a long request ends. Run by engine_process.py.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from nightjar.deployments.proof.driven_engine import GenerationRequest

MAX_MODEL_LEN: Final = 160
OPTIONS: Final[dict[str, Any]] = {"max_model_len": MAX_MODEL_LEN, "kv_cache_memory_bytes": 192 << 20}
PROMPT_WORDS: Final = (84, 92, 100, 108, 116, 124)
PHASES: Final = (("off", 2), ("pin=4", 3))
"""Modes and for how many steps: a restart every five steps, so that every row has one shortly before its end."""
_FILLER: Final = "it was a long way home and the road was dark but we went on and on until we saw the light of the house "


def long_batch() -> list[GenerationRequest]:
    """Greedy requests of different lengths that only the limit ends."""
    options = {"temperature": 0.0, "max_tokens": 10 * MAX_MODEL_LEN, "ignore_eos": True}
    words = (_FILLER * 8).split()
    return [GenerationRequest(f"long-{length}", f"Story {length}: {' '.join(words[:length])}", options) for length in PROMPT_WORDS]


def length_limit_reference(models: Path) -> dict[str, Any]:
    """What plain vLLM answers."""
    from tests.engine.engine_process import EngineProcess

    return EngineProcess(models, steered=False, **OPTIONS).run(long_batch(), logprobs=20)


def length_limit(models: Path) -> dict[str, Any]:
    """Every scenario, one after another."""
    from tests.engine.engine_process import EngineProcess

    engine = EngineProcess(models, steered=True, **OPTIONS)
    result: dict[str, Any] = {"fixed": _run(engine, long_batch(), lambda step: None)}
    result["restarted"] = _run(engine, long_batch(), _restarts(engine))
    result["restarted alone"] = _run(engine, long_batch()[-1:], _restarts(engine))
    return result


def _restarts(engine: Any) -> Callable[[int], None]:
    modes = [mode for mode, steps in PHASES for _ in range(steps)]

    def script(step: int) -> None:
        place = step % len(modes)
        if modes[place] != modes[place - 1]:
            engine.steer(modes[place])

    return script


def _run(engine: Any, requests: list[GenerationRequest], script: Callable[[int], None]) -> dict[str, Any]:
    """Outputs, every step's rows that verified drafts, and what the counters made of them."""
    loop = engine.scheduler.nightjar
    steps: list[dict[str, Any]] = []
    verified = loop.verified

    def noted(scheduler_output: Any, model_runner_output: Any, running: dict[str, Any]) -> Any:
        counted = verified(scheduler_output, model_runner_output, running)
        drafts = scheduler_output.scheduled_spec_decode_tokens
        rows = []
        for request_id, row in model_runner_output.req_id_to_index.items():
            rows.append(
                {
                    "room": MAX_MODEL_LEN - running[request_id].num_tokens - 1,
                    "drafts": list(drafts.get(request_id, ())),
                    "accepted": max(len(model_runner_output.sampled_token_ids[row]) - 1, 0),
                }
            )
        steps.append(
            {
                "rows": rows,
                "state": loop.drafting.life.state.value,
                "reached": list(counted.reached),
                "accepted": list(counted.accepted),
            }
        )
        return counted

    engine.scheduler.reset_prefix_cache()
    engine.steer("pin=4")
    before = engine.exchange_plain()["counters"]["totals"]
    loop.verified = noted
    restarts = loop.drafting.life.restarts
    outputs = engine.run(requests, script)
    del loop.verified
    return {
        "outputs": outputs,
        "steps": steps,
        "totals": [_sum(before), _sum(engine.exchange_plain()["counters"]["totals"])],
        "restarts": loop.drafting.life.restarts - restarts,
        "fault": loop.fault,
    }


def _sum(totals: list[dict[str, Any]]) -> list[int]:
    return [sum(total[name] for total in totals) for name in ("draft_tokens", "accepted_tokens")]
