"""Requests of the real-engine tests: a third sampled, the greedy ones with logprobs, stop strings and JSON schemas among them."""

from __future__ import annotations

from typing import Any, Final

from nightjar.deployments.proof.driven_engine import GenerationRequest

_SUBJECTS: Final = ("sea", "dog", "winter", "trains", "bees", "coffee", "moon", "chess", "volcanoes", "bread", "rain", "robots")
_TASKS: Final = ("Tell a short story about {}.", "List five facts about {}.")
_SCHEMA: Final = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
_FILLER: Final = "The road home was long and dark, but they went on until they saw a light. "
_SHARED_PREFIX: Final = "You are a careful assistant. Read all of this before you answer. " * 24


def mixed_batch() -> list[GenerationRequest]:
    """24 requests: 8 sampled with seeds, 16 greedy, of which 2 want JSON, 2 stop at a string and 3 want logprobs.

    The sampled ones run longest, to their full length: a scenario that begins late in the batch finds rows to work on.
    """
    requests = []
    for index in range(24):
        options: dict[str, Any] = {"temperature": 0.0, "max_tokens": 24 + index % 3 * 12}
        schema = None
        if index % 3 == 2:
            options |= {"temperature": 0.8, "seed": index, "ignore_eos": True}
        elif index in {0, 9}:
            schema = _SCHEMA
        elif index in {3, 12}:
            options |= {"stop": [".", "\n"]}
        elif index in {6, 15, 18}:
            options |= {"logprobs": 3}
        requests.append(
            GenerationRequest(f"mixed-{index}", _chat(_TASKS[index % 2].format(_SUBJECTS[index // 2])), options, schema)
        )
    return requests


def seeded_batch() -> list[GenerationRequest]:
    """4 sampled requests with seeds, the same 4 that opted out of drafts, and a greedy one."""
    sampled = {"temperature": 0.8, "max_tokens": 24, "ignore_eos": True}
    opt_out = {"extra_args": {"num_speculative_tokens": 0}}
    requests = [GenerationRequest("beside", _chat("Describe fog to a child."), {"temperature": 0.0, "max_tokens": 24})]
    for index in range(4):
        prompt, options = _chat(_TASKS[0].format(_SUBJECTS[index])), sampled | {"seed": index}
        requests += [
            GenerationRequest(f"seeded-{index}", prompt, options),
            GenerationRequest(f"opted-out-{index}", prompt, options | opt_out),
        ]
    return requests


def greedy_batch() -> list[GenerationRequest]:
    """8 greedy requests of different lengths."""
    return [
        GenerationRequest(
            f"greedy-{index}", _chat(f"Describe {subject} to a child."), {"temperature": 0.0, "max_tokens": 20 + 4 * index}
        )
        for index, subject in enumerate(_SUBJECTS[:8])
    ]


def shared_prefix_batch() -> list[GenerationRequest]:
    """6 greedy requests whose first few hundred tokens are the same."""
    return [
        GenerationRequest(
            f"prefix-{index}", _chat(f"{_SHARED_PREFIX} Now describe {subject}."), {"temperature": 0.0, "max_tokens": 24}
        )
        for index, subject in enumerate(_SUBJECTS[:6])
    ]


def crowded_batch() -> list[GenerationRequest]:
    """14 greedy requests that end a KV block of 128 tokens with their prompts nearly, and cross into the next while they decode."""
    return [
        GenerationRequest(
            f"crowded-{index}",
            _chat(f"{_FILLER * 5}Now describe {subject} in the voice of a {teller}."),
            {"temperature": 0.0, "max_tokens": 32 + 4 * (index % 3), "ignore_eos": True},
        )
        for index, (subject, teller) in enumerate((subject, teller) for teller in ("child", "pilot") for subject in _SUBJECTS[:7])
    ]


def _chat(content: str) -> str:
    return f"<|im_start|>user\n{content}<|im_end|>\n<|im_start|>assistant\n"
