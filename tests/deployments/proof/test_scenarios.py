"""What engines are asked while K changes: every change of K, and batches whose checks notice what they are for."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import pytest

from nightjar.deployments.proof.scenarios import (
    CAPPED_SCENARIO,
    CHANGING_K,
    MAX_NUM_SPECULATIVE_TOKENS,
    Ran,
    Scenario,
    scenarios,
)

SCENARIOS = {scenario.name: scenario for scenario in scenarios(Path("adapter"))}


def answer(text: str = "", *, tokens: tuple[int, ...] = (), cached_tokens: int = 0, finish_reason: str = "stop") -> dict[str, Any]:
    return {"text": text, "token_ids": list(tokens), "cached_tokens": cached_tokens, "finish_reason": finish_reason}


def ran(answers: dict[str, Any] | None = None, *, preemptions: int = 0, **most_verified: int) -> Ran:
    return Ran(answers or {}, [[]], preemptions, {name.replace("_", "-"): count for name, count in most_verified.items()})


def test_each_change_of_k_comes_once_a_round() -> None:
    ks = range(MAX_NUM_SPECULATIVE_TOKENS + 1)
    assert Counter(pairwise((*CHANGING_K, CHANGING_K[0]))) == dict.fromkeys(product(ks, ks), 1)


def test_no_two_requests_of_all_scenarios_share_a_name_of_which_one_begins_the_other() -> None:
    names = [request.request_id for scenario in SCENARIOS.values() for request in scenario.requests]
    assert len(names) == len(set(names))
    assert not [(one, other) for one, other in product(names, names) if other.startswith(f"{one}-")]


JSON, REGEX = '{"name": "a", "ok": true}', "abc-123xyz"
GRAMMARS = {
    "json-0": answer(JSON),
    "json-1": answer(JSON),
    "regex-0": answer(REGEX),
    "regex-1": answer(REGEX),
    "free-0": answer("x"),
}
VARIED = {f"mixed-{index}": answer(tokens=tuple(range(24))) for index in range(5)}
ADAPTED = {"adapter-0": answer(tokens=(1, 2)), "adapter-1": answer(tokens=(3, 4)), "adapter-2": answer()}


@pytest.mark.parametrize(
    ("scenario", "right", "wrong"),
    [
        ("fixed K", ran(fixed_0=2), ran(fixed_0=0)),
        ("cached prefix", ran({"prefix-0": answer(cached_tokens=64)}), ran({"prefix-0": answer()})),
        ("grammars", ran(GRAMMARS), ran(GRAMMARS | {"json-1": answer('{"name": 1')})),
        ("grammars", ran(GRAMMARS), ran(GRAMMARS | {"json-0": answer('{"name": "a"}')})),
        ("grammars", ran(GRAMMARS), ran(GRAMMARS | {"regex-1": answer("abc-1")})),
        ("sampled beside greedy, logprobs", ran(VARIED), ran(VARIED | {"mixed-3": answer(tokens=(7,) * 24)})),
        ("preemption", ran(preemptions=1), ran()),
        (CAPPED_SCENARIO, ran(capped_0=0, capped_1=3, capped_2=1), ran(capped_0=1, capped_1=3, capped_2=1)),
        (CAPPED_SCENARIO, ran(capped_0=0, capped_1=3, capped_2=1), ran(capped_0=0, capped_1=3, capped_2=2)),
        (CAPPED_SCENARIO, ran(capped_0=0, capped_1=3, capped_2=1), ran(capped_0=0, capped_1=1, capped_2=1)),
        ("LoRA", ran(ADAPTED), ran(ADAPTED | {"adapter-1": answer(tokens=(1, 2))})),
    ],
)
def test_a_batch_that_did_not_meet_what_it_is_for_says_so(scenario: str, right: Ran, wrong: Ran) -> None:
    checked: Scenario = SCENARIOS[scenario]
    assert checked.missed(right) == ""
    assert checked.missed(wrong) != ""
