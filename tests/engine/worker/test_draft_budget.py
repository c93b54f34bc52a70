"""The simulator's adaptive verification against vLLM's own: its cost tables, its budget and what it admits, on a CPU, no engine."""

from __future__ import annotations

import importlib
import warnings
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nightjar.loadtests.simulation.engine.draft_budget import CostTables, admitted, chosen_budget, cost_tables

pytest.importorskip("vllm")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what vLLM's dependencies deprecate at import is not ours to mend
    vllms: Any = importlib.import_module("vllm.v1.worker.gpu.spec_decode.adaptive_verification")
    torch: Any = importlib.import_module("torch")

LONGEST = 5
MOST_REQUESTS = 32
MOST_TOKENS = 600


@st.composite
def curves(draw: st.DrawFn) -> list[tuple[int, float]]:
    """Profiled sizes with costs that may fall, as noise makes them."""
    sizes = sorted(draw(st.sets(st.integers(1, 400), min_size=1, max_size=8)))
    return [(size, draw(st.floats(0.01, 50.0))) for size in sizes]


@given(curves(), curves(), st.sampled_from([0, 64, 128, 400]))
@settings(deadline=None)
def test_cost_tables_are_vllms(draft: list[tuple[int, float]], verify: list[tuple[int, float]], graph_limit: int) -> None:
    ours = cost_tables(draft, verify, MOST_REQUESTS, MOST_TOKENS, graph_limit)
    drafting, verifying = vllms.build_cost_tables_from_curves(draft, verify, MOST_REQUESTS, MOST_TOKENS, graph_limit)
    assert ours.draft_ms == pytest.approx(drafting)
    assert ours.verify_ms == pytest.approx(verifying)


def confidences(seed: int, rows: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Of each position given the one before it, all different."""
    return np.random.default_rng(seed).uniform(0.05, 0.99, (rows, LONGEST)).astype(np.float32)


def vllms_budget(costs: CostTables, confidence: Any, scheduled: list[int], prompt_tokens: int) -> int:
    """What vLLM's manager decides, without the GPU that it is made for: `get_num_tokens` runs on the host."""
    rows = len(scheduled)
    names = [f"request-{row}" for row in range(rows)]
    manager: Any = object.__new__(vllms.AdaptiveVerificationManager)
    manager.num_speculative_steps = LONGEST
    manager.num_bonus_tokens = 1
    manager.cost_tables = costs.draft_ms, costs.verify_ms
    manager._max_total_logits = 10**6
    manager._stale_idx = 0
    manager._stale_confidences = [SimpleNamespace(np=confidence)]
    manager.req_states = SimpleNamespace(
        req_id_to_index={name: row for row, name in enumerate(names)},
        num_computed_tokens_np=np.full(rows, 100),
        prefill_len=SimpleNamespace(np=np.full(rows, 50)),
    )
    tokens = {name: 1 + drafts for name, drafts in zip(names, scheduled, strict=True)}
    tokens[names[0]] += prompt_tokens
    drafts = {name: [7] * count for name, count in zip(names, scheduled, strict=True)}
    return int(manager.get_num_tokens(tokens, drafts)) - rows - prompt_tokens


@given(
    st.integers(0, 2**32 - 1),
    st.lists(st.integers(0, LONGEST), min_size=1, max_size=MOST_REQUESTS),
    st.integers(0, 200),
    curves(),
    curves(),
)
@settings(deadline=None)
def test_the_budget_is_vllms(
    seed: int, scheduled: list[int], prompt_tokens: int, draft: list[tuple[int, float]], verify: list[tuple[int, float]]
) -> None:
    costs = cost_tables(draft, verify, MOST_REQUESTS, MOST_TOKENS, 128)
    confidence = confidences(seed, len(scheduled))
    survival = np.cumprod(confidence.astype(np.float64), axis=1)
    valid = survival[np.arange(LONGEST)[None, :] < np.array(scheduled)[:, None]]
    rows = len(scheduled)
    ours = chosen_budget(costs, valid, rows, rows + prompt_tokens, rows, len(valid))
    assert ours == vllms_budget(costs, confidence, scheduled, prompt_tokens)


@given(st.integers(0, 2**32 - 1), st.lists(st.integers(0, LONGEST), min_size=1, max_size=MOST_REQUESTS), st.data())
@settings(deadline=None)
def test_the_drafts_that_are_admitted_are_vllms(seed: int, scheduled: list[int], data: st.DataObject) -> None:
    confidence, most = confidences(seed, len(scheduled)), sum(scheduled)
    budget = data.draw(st.integers(0, most))
    ours = admitted(np.cumprod(confidence, axis=1).astype(np.float64), np.array(scheduled), budget)
    theirs = torch.tensor(scheduled, dtype=torch.int32)
    if budget < most:  # vLLM calls it there alone
        rows = torch.arange(len(scheduled))
        vllms._assign_draft_token_budget(torch.from_numpy(confidence), rows, theirs, budget, LONGEST)
    assert ours.tolist() == theirs.tolist()
