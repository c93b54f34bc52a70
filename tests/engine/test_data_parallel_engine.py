"""The ranks of a dense target are engines of their own: each reports, is steered, and answers as plain vLLM does. Float32."""

from __future__ import annotations

import os
from typing import Any

import pytest

pytest.importorskip("vllm")

from tests.engine.data_parallel_process import RANKS, REPLICA, ROUNDS
from tests.engine_run import ON_A_CPU, ran_once

pytestmark = pytest.mark.engine


@pytest.fixture(scope="session")
def data_parallel(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What happened to two ranks, plain and steered."""
    own = tmp_path_factory.getbasetemp()
    shared = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    variables = ON_A_CPU | {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"}

    def run(role: str) -> dict[str, Any]:
        program = ["tests.engine.data_parallel_process", role]
        return ran_once(program, shared / f"data_parallel_{role}.json", lambda: os.environ | variables, 900)

    return {role: run(role) for role in ("plain", "steered")}


def test_each_rank_is_a_replica_to_the_policy_and_all_are_of_one_group(data_parallel: dict[str, Any]) -> None:
    found = data_parallel["steered"]
    assert (found["ranks"], found["why"]) == ([0, 1], "")
    assert found["names"] == [f"chat/{REPLICA.rpartition('#')[2]}-dp{rank}" for rank in range(RANKS)]
    assert len(found["groups"]) == 1
    assert len(found["engine_ids"]) == RANKS
    assert (found["levels"], found["faults"]) == (["fully"] * RANKS, [""] * RANKS)


def test_each_rank_keeps_the_table_of_lengths_that_vllm_drops(data_parallel: dict[str, Any]) -> None:
    assert data_parallel["steered"]["tables"] == [[[[1, 4, 4]]]] * RANKS


def test_each_rank_runs_its_own_k(data_parallel: dict[str, Any]) -> None:
    for modes, found in zip(ROUNDS, data_parallel["steered"]["rounds"], strict=True):
        for mode, steps in zip(modes, found["steps_by_k"], strict=True):
            assert set(steps) == {"0" if mode == "off" else mode.removeprefix("pin=")}


def test_inv_1_each_rank_answers_as_plain_vllm_whatever_its_k(data_parallel: dict[str, Any]) -> None:
    expected = data_parallel["plain"]["texts"]
    for found in data_parallel["steered"]["rounds"]:
        assert found["texts"] == [expected] * RANKS


def test_served_plainly_the_ranks_are_one_engine_that_reports(data_parallel: dict[str, Any]) -> None:
    assert data_parallel["plain"]["ranks"] == [None]
    assert "switched off" in data_parallel["plain"]["why"]


def test_with_one_core_dead_the_engine_is_dead_as_vllms_own_is(data_parallel: dict[str, Any]) -> None:
    assert data_parallel["steered"]["end"] == {"errored": True, "rank 0": "EngineDeadError"}
