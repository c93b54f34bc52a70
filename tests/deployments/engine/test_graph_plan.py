"""Which K graphs are captured for, at which sizes, and which steps find one; held against vLLM's own code on the rig."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightjar.deployments.engine.start.graph_tiers import (
    COARSEST_STEP,
    GraphPlan,
    capture_sizes,
    from_table,
    graph_tiers,
    name_ks,
    sizes_in,
    to_table,
    with_capture_sizes,
)
from tests.rig.environment import rig_environment

CASES = [(8, (0, 1, 2)), (64, (0, 1, 3)), (64, (0, 1, 3, 5)), (100, (0, 1, 3, 4)), (256, (0, 1, 3, 7)), (256, (0, 5))]


@given(st.integers(1, 8).flatmap(lambda top: st.tuples(st.just(top), st.lists(st.integers(0, top), min_size=1, max_size=40))))
def test_every_tier_is_named_and_small_batches_keep_their_length(case: tuple[int, list[int]]) -> None:
    top, lengths = case
    tiers = graph_tiers(None, top)
    named = name_ks(lengths, tiers)
    assert len(named) == len(lengths)
    assert named[0] == lengths[0]
    missing = set(tiers) - set(named)
    assert not missing or len(lengths) <= len(tiers), "only an engine with fewer batch sizes than tiers may leave some unnamed"
    if len(lengths) > 2 * len(tiers):
        assert named[: len(lengths) - 2 * len(tiers)] == lengths[: len(lengths) - 2 * len(tiers)]


@given(st.lists(st.integers(0, 9), min_size=1, max_size=30))
def test_a_table_says_the_same_as_the_lengths_it_was_made_of(lengths: list[int]) -> None:
    assert from_table(to_table(lengths), len(lengths), 9) == lengths


@given(st.integers(1, 300), st.integers(1, 9), st.lists(st.integers(0, 9), max_size=3))
def test_sizes_are_ascending_within_what_the_engine_can_reach_and_leave_few_steps_without_a_graph(
    max_num_seqs: int, most: int, wanted: list[int]
) -> None:
    tiers = graph_tiers(wanted, most)
    sizes = capture_sizes(max_num_seqs, tiers)
    assert sizes == sorted(set(sizes))
    if not sizes:
        return
    assert sizes[-1] <= max_num_seqs * (most + 1)
    plan = GraphPlan(tuple(sizes), tiers, max_num_seqs)
    within = [(rows, length) for rows, length in plan.misses() if rows * (length + 1) <= sizes[-1]]
    assert len(within) <= COARSEST_STEP * len(tiers)


@pytest.mark.parametrize(
    ("users", "expected"),
    [
        (None, {"cudagraph_capture_sizes": [1, 2]}),
        ({"cudagraph_mode": "FULL"}, {"cudagraph_mode": "FULL", "cudagraph_capture_sizes": [1, 2]}),
        *((same, same) for same in ({"cudagraph_capture_sizes": [8]}, {"max_cudagraph_capture_size": 64}, 3, "{}")),
    ],
)
def test_a_users_own_sizes_win(users: Any, expected: Any) -> None:
    assert with_capture_sizes(users, [1, 2]) == expected
    assert with_capture_sizes(users, []) == users


@pytest.mark.parametrize(
    ("users", "sizes"), [({"cudagraph_capture_sizes": [8, 1]}, (1, 8)), ({"cudagraph_capture_sizes": "8"}, ()), ({}, ()), (3, ())]
)
def test_sizes_that_are_left_to_vllm_are_not_guessed(users: Any, sizes: tuple[int, ...]) -> None:
    assert sizes_in(users) == sizes


def test_what_has_no_graph_is_told_by_k_and_batch() -> None:
    plan = GraphPlan((1, 2, 4, 8, 12), (0, 1), 8)
    assert not plan.has_full(7, 1)
    assert plan.has_full(6, 1)
    assert "2 of 16 pairs of batch and K have none: K = 1 at batch 7 to 8" in plan.in_words()


ASK_VLLM = """
import json, sys
from types import SimpleNamespace
import torch
from vllm.config import VllmConfig
from vllm.config.compilation import CompilationConfig, CUDAGraphMode
from vllm.v1.worker.gpu import cudagraph_utils

cudagraph_utils.get_pp_group = lambda: SimpleNamespace(is_first_rank=True, is_last_rank=True)
cudagraph_utils.current_platform = SimpleNamespace(get_global_graph_pool=lambda: None)
mode, answers = CUDAGraphMode.FULL_AND_PIECEWISE, []
for rows, tiers, sizes, table in json.loads(sys.argv[1]):
    most = max(tiers)
    speculative = SimpleNamespace(
        num_speculative_tokens_per_batch_size=table, uses_dynamic_speculative_decoding=lambda: True, num_speculative_tokens=most
    )
    config = SimpleNamespace(
        model_config=SimpleNamespace(enforce_eager=False, is_diffusion=False),
        compilation_config=CompilationConfig(cudagraph_mode=mode, cudagraph_capture_sizes=sizes),
        scheduler_config=SimpleNamespace(max_num_seqs=rows, max_num_batched_tokens=8192),
        speculative_config=speculative, diffusion_config=None, num_speculative_tokens=most, uniform_decode_query_len=1 + most,
        performance_mode="balanced", cache_config=SimpleNamespace(use_kda_recoverssm=False),
        parallel_config=SimpleNamespace(
            tensor_parallel_size=1, pipeline_parallel_size=1, data_parallel_size=1, use_sequence_parallel_moe=False
        ),
    )
    config.update_sizes_for_sequence_parallelism = lambda possible: possible
    VllmConfig._set_cudagraph_sizes(config)
    manager = cudagraph_utils.ModelCudaGraphManager(config, torch.device("cpu"), mode, 1 + most)
    manager._graphs_captured = True
    full = [[each.num_tokens, each.uniform_token_count] for each in manager._capture_descs[CUDAGraphMode.FULL]]
    hits = [
        [each, length]
        for length in tiers
        for each in range(1, rows + 1)
        if manager.dispatch(each, each * (1 + length), 1 + length, 0, max_query_len=1 + length).cg_mode is CUDAGraphMode.FULL
    ]
    answers.append({"full": full, "hits": hits})
print(json.dumps(answers))
"""


@pytest.mark.heavy
@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="needs vllm")
def test_graphs_and_hits_are_those_of_vllms_own_code(tmp_path: Path) -> None:
    questions: list[list[Any]] = []
    for rows, tiers in CASES:
        questions.append([rows, tiers, capture_sizes(rows, tiers), to_table(name_ks([max(tiers)] * rows, tiers))])
    environment = os.environ | rig_environment(tmp_path, runner=2, asynchronous=True) | {"VLLM_LOGGING_LEVEL": "ERROR"}
    command = [sys.executable, "-c", ASK_VLLM, json.dumps(questions)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    for (rows, tiers, sizes, _), answer in zip(questions, json.loads(done.stdout.splitlines()[-1]), strict=True):
        plan = GraphPlan(tuple(sizes), tuple(tiers), rows)
        assert sorted(map(list, plan.full_graphs)) == sorted(answer["full"])
        hits = {(each, length) for each, length in answer["hits"]}
        assert set(plan.misses()) == {(each, length) for length in tiers for each in range(1, rows + 1)} - hits
