"""What an engine is asked while its K changes in every step: everything that a change of K could break.

Each scenario is a batch of requests. Plain vLLM answers the greedy ones once, and every engine must repeat them token by token,
however its K moves; sampled ones share their batches, since one sampled row sends a whole batch through other kernels. A scenario
also says what must have happened on the way (something preempted, a prefix found, a grammar obeyed): a batch that did not meet
what it is for proves nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from nightjar.deployments.proof.driven_engine import DrivenEngine, GenerationRequest
from nightjar.deployments.proof.executed_steps import ExecutedStep
from nightjar.deployments.proof.model_names import ADAPTER_RANK
from nightjar.policy.wire.report import DrafterState
from nightjar.policy.wire.settings import EngineCommand

MAX_NUM_SPECULATIVE_TOKENS: Final = 3
CHANGING_K: Final = (3, 3, 0, 0, 1, 0, 2, 0, 3, 1, 1, 2, 1, 3, 2, 2)
"""K step by step, over and over: each change from one K to another is in it once, and each K held for two steps."""
CAPPED_SCENARIO: Final = "opt-out"
GRAMMARS_SCENARIO: Final = "grammars"
SAMPLED_SCENARIO: Final = "sampled beside greedy, logprobs"
OF_SAMPLING: Final = frozenset({GRAMMARS_SCENARIO, SAMPLED_SCENARIO, CAPPED_SCENARIO})
OPT_OUT: Final = "num_speculative_tokens"
REFERENCE_LOGPROBS: Final = 100
"""Of the unmasked distribution: what a grammar allows need not be among the likeliest."""
ENGINE_OPTIONS: Final[Mapping[str, Any]] = {
    "max_model_len": 512,
    "max_num_seqs": 8,
    "max_num_batched_tokens": 96,
    "block_size": 32,
    "num_gpu_blocks_override": 24,
    "enable_prefix_caching": True,
    "max_logprobs": REFERENCE_LOGPROBS,
    "structured_outputs_config": {"backend": "xgrammar", "disable_any_whitespace": True},
}
"""Small, so that long prompts are chunked, and the crowd's eight requests do not fit."""
ADAPTER_OPTIONS: Final[Mapping[str, Any]] = {
    "enable_lora": True,
    "max_loras": 2,  # rows without an adapter use the last slot on a CPU (vLLM 0.32, lora_ops.py), so that must stay empty
    "max_lora_rank": ADAPTER_RANK,
    "lora_target_modules": ["qkv_proj"],
}

_PROMPTS: Final = (
    "The capital of France is",
    "abcabcabcabcabcabcabc",
    "Once upon a time there was a tiny model that",
    "x",
    '{"name": ',
)
_LONG: Final = "".join(chr(97 + (index * index + 3 * index) % 26) for index in range(200))
_SHARED: Final = "In a hole in the ground there lived a model, and it counted: " * 7
"""More than two blocks of tokens by any tokenizer: vLLM reads the last one that a prefix hit found again for a head."""
_REGEX: Final = "[a-f]{3}-[0-9]{2,5}(xy)*z"
_SCHEMA: Final[Mapping[str, Any]] = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 6}, "ok": {"type": "boolean"}},
    "required": ["name", "ok"],
    "additionalProperties": False,
}

Answers = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Ran:
    """How a scenario went, for its own check."""

    answers: Answers
    ranks: Sequence[Sequence[ExecutedStep]]
    """Steps of each rank's worker; none of a plain engine's."""
    preemptions: int
    most_verified: Mapping[str, int]
    """The most drafts that one step verified of each request."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """A batch, and what else must hold. `ks` is K step by step, over and over."""

    name: str
    requests: Sequence[GenerationRequest]
    missed: Callable[[Ran], str] = lambda _: ""
    """What the batch was for and did not meet, or an answer that is wrong by itself; empty where all is well."""
    ks: Sequence[int] = CHANGING_K


def scenarios(adapter: Path | None, *, of_all_kinds: bool = True) -> tuple[Scenario, ...]:
    """All of them; `adapter` is the folder of a LoRA adapter of the target's, without which one scenario less.

    With `of_all_kinds` False those alone that differ in batches, prompts and blocks, and not in what a request asks of the sampler.
    """
    found = (
        Scenario("fixed K", _greedy("fixed", _PROMPTS, 32), _something_verified, ks=(MAX_NUM_SPECULATIVE_TOKENS,)),
        Scenario("changing K", _greedy("changing", _PROMPTS, 40)),
        Scenario("long prompts in chunks", _greedy("chunk", (_LONG, "short", _LONG[::-1]), 16)),
        Scenario(
            "long prompt alone",
            _greedy("alone", (_LONG[100:] + _LONG[:100],), 16),
            _never_asleep,
            ks=(MAX_NUM_SPECULATIVE_TOKENS,),
        ),
        Scenario("first of a prefix", _greedy("first", (_SHARED + "1",), 8)),
        Scenario("cached prefix", _greedy("prefix", (_SHARED + "2", _SHARED + "3, 4", _SHARED), 16), _found_a_prefix),
        Scenario(GRAMMARS_SCENARIO, _structured(), _grammars_obeyed),
        Scenario(SAMPLED_SCENARIO, _mixed(), _sampled_rows_vary),
        Scenario("preemption", _crowd(), _preempted),
        Scenario(CAPPED_SCENARIO, _capped(), _caps_kept),
    )
    if not of_all_kinds:
        return tuple(scenario for scenario in found if scenario.name not in OF_SAMPLING)
    return found if adapter is None else (*found, Scenario("LoRA", _with_adapter(adapter), _adapter_in_use))


def run_scenario(engine: DrivenEngine, scenario: Scenario, *, steered: bool) -> Ran:
    """Run one on an engine; nobody sets the K of one that is not `steered`, whose answers hold the logprobs that tell near ties."""

    def pin(step: int) -> None:
        if steered:
            engine.pin(scenario.ks[step % len(scenario.ks)])

    preempted_before = engine.preemptions()
    answers = engine.run(scenario.requests, pin, **({} if steered else {"logprobs": REFERENCE_LOGPROBS}))
    preemptions = engine.preemptions() - preempted_before
    if not steered:
        return Ran(answers, [[]], preemptions, {})
    assert engine.is_idle(), f"{scenario.name}: KV blocks are still in use after the last answer"
    ranks = engine.steps_of_ranks()
    return Ran(answers, ranks, preemptions, _most_verified(ranks[0], [request.request_id for request in scenario.requests]))


def abort(engine: DrivenEngine) -> str:
    """Take a request back in mid-generation: what is wrong afterwards, or nothing. The engine is a steered one."""
    engine.add(GenerationRequest("aborted", _PROMPTS[2], {"temperature": 0.0, "max_tokens": 400, "ignore_eos": True}))
    for step in range(6):
        engine.pin(CHANGING_K[step])
        engine.engine.step()
    held = engine.exchange(EngineCommand()).load.kv_cache_usage
    engine.engine.abort_request(["aborted"])
    engine.run([GenerationRequest("after", _PROMPTS[3], {"temperature": 0.0, "max_tokens": 4, "ignore_eos": True})])
    if not held:
        return "the request held no KV blocks before it was aborted"
    return "" if engine.is_idle() else "KV blocks are still in use"


def _greedy(name: str, prompts: Sequence[str], max_tokens: int) -> list[GenerationRequest]:
    options = {"temperature": 0.0, "max_tokens": max_tokens, "ignore_eos": True}
    return [GenerationRequest(f"{name}-{index}", prompt, options) for index, prompt in enumerate(prompts)]


def _structured() -> list[GenerationRequest]:
    bound = {"temperature": 0.0, "max_tokens": 60}
    return [
        GenerationRequest("json-0", "Answer: ", bound, json_schema=_SCHEMA),
        GenerationRequest("regex-0", "Answer: ", bound, regex=_REGEX),
        GenerationRequest("free-0", "Free text", {"temperature": 0.0, "max_tokens": 24, "ignore_eos": True}),
        GenerationRequest("json-1", "x", bound, json_schema=_SCHEMA),
        GenerationRequest("regex-1", "x", bound, regex=_REGEX),
    ]


def _mixed() -> list[GenerationRequest]:
    greedy = {"temperature": 0.0, "max_tokens": 24, "ignore_eos": True}
    sampled = {"temperature": 1.0, "top_p": 0.9, "seed": 3, "max_tokens": 24, "ignore_eos": True}
    options = (greedy, sampled, greedy | {"logprobs": 3}, sampled | {"top_k": 20}, greedy | {"presence_penalty": 1.5})
    return [GenerationRequest(f"mixed-{index}", _PROMPTS[index], each) for index, each in enumerate(options)]


def _crowd() -> list[GenerationRequest]:
    options = {"temperature": 0.0, "max_tokens": 80, "ignore_eos": True}  # by any tokenizer more than the blocks hold
    return [GenerationRequest(f"crowd-{index}", f"request {index} " + "ab" * (20 + index), options) for index in range(8)]


def _capped() -> list[GenerationRequest]:
    options = {"temperature": 0.0, "max_tokens": 24, "ignore_eos": True}
    caps: tuple[dict[str, Any], ...] = ({"extra_args": {OPT_OUT: 0}}, {}, {"extra_args": {OPT_OUT: 1}})
    return [GenerationRequest(f"capped-{index}", _PROMPTS[index], options | cap) for index, cap in enumerate(caps)]


def _with_adapter(adapter: Path) -> list[GenerationRequest]:
    options = {"temperature": 0.0, "max_tokens": 24, "ignore_eos": True}
    return [
        GenerationRequest("adapter-0", _PROMPTS[0], options, adapter=str(adapter)),
        GenerationRequest("adapter-1", _PROMPTS[0], options),
        GenerationRequest("adapter-2", _PROMPTS[2], options, adapter=str(adapter)),
    ]


def _most_verified(steps: Sequence[ExecutedStep], request_ids: Sequence[str]) -> dict[str, int]:
    """vLLM appends to the ids of its clients."""
    most = dict.fromkeys(request_ids, 0)
    for step in steps:
        for internal, count in step.verified.items():
            for request_id in request_ids:
                if internal == request_id or internal.startswith(f"{request_id}-"):
                    most[request_id] = max(most[request_id], count)
    return most


def _something_verified(ran: Ran) -> str:
    return "" if any(ran.most_verified.values()) or not ran.most_verified else "no draft was verified"


def _never_asleep(ran: Ran) -> str:
    """Also where vLLM leaves out the drafts of all chunks but the last (0.33)."""
    asleep = [index for index, step in enumerate(ran.ranks[0]) if step.drafter_state == DrafterState.DORMANT]
    return f"the drafter slept in steps {asleep}" if asleep else ""


def _found_a_prefix(ran: Ran) -> str:
    cached = [answer["cached_tokens"] for answer in ran.answers.values()]
    return "" if all(cached) else f"cached tokens of the prompts: {cached}"


def _grammars_obeyed(ran: Ran) -> str:
    for name, answer in ran.answers.items():
        text = answer["text"]
        if name.startswith("json"):
            try:
                if set(json.loads(text, strict=False)) != set(_SCHEMA["required"]):
                    return f"{name}: the JSON has other fields"
            except ValueError:
                return f"{name}: no JSON"
        if name.startswith("regex") and answer["finish_reason"] == "stop" and not re.fullmatch(_REGEX, text):
            return f"{name}: does not match {_REGEX!r}"
    return ""


def _sampled_rows_vary(ran: Ran) -> str:
    for name in ("mixed-1", "mixed-3"):
        tokens = ran.answers[name]["token_ids"]
        if len(tokens) != 24 or len(set(tokens)) < 4:
            return f"{name}: sampled {len(tokens)} tokens, {len(set(tokens))} of them different"
    return ""


def _preempted(ran: Ran) -> str:
    return "" if ran.preemptions else "nothing was preempted"


def _caps_kept(ran: Ran) -> str:
    most = ran.most_verified
    if not most:
        return ""
    kept = most["capped-0"] == 0 and most["capped-2"] <= 1 and most["capped-1"] > 1
    return "" if kept else f"most drafts verified of a request without cap, with 0 and with 1: {most}"


def _adapter_in_use(ran: Ran) -> str:
    texts = [ran.answers[f"adapter-{index}"]["token_ids"] for index in range(2)]
    return "" if texts[0] != texts[1] else "the adapter changed nothing"
