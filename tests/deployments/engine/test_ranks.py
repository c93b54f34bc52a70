"""Ranks of data parallelism: which are steered each by itself, and the table that vLLM drops from their configuration."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from nightjar.deployments.configuration.check.engine_facts import has_experts, why_plain_with
from nightjar.deployments.engine.start.ranks import restore_table, why_plain_in, why_plain_under_ray
from nightjar.deployments.llm_config import num_ranks

TABLE = ((1, 2, 4), (3, 8, 1))


def configuration(size: int, table: Any = None, **parallel: Any) -> Any:
    """As much of vLLM's as is looked at."""
    of_ranks = {"data_parallel_size": size, "data_parallel_size_local": size, "data_parallel_backend": "mp", **parallel}
    speculative = SimpleNamespace(num_speculative_tokens_per_batch_size=table, num_speculative_tokens=4)
    speculative.uses_dynamic_speculative_decoding = lambda: speculative.num_speculative_tokens_per_batch_size is not None
    return SimpleNamespace(
        parallel_config=SimpleNamespace(**of_ranks), speculative_config=speculative, model_config=SimpleNamespace(is_moe=False)
    )


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch and vLLM, on import
def test_the_table_that_vllm_drops_is_put_back_and_the_core_of_one_rank_keeps_it() -> None:
    vllm_config = pytest.importorskip("vllm.config").VllmConfig
    config = configuration(2, [list(row) for row in TABLE])
    vllm_config._maybe_disable_dynamic_sd_for_data_parallel(config)
    assert config.speculative_config.num_speculative_tokens_per_batch_size is None
    restore_table(config, TABLE)
    config.parallel_config.data_parallel_size = 1  # as the core's process makes it, before vLLM looks again
    vllm_config._maybe_disable_dynamic_sd_for_data_parallel(config)
    assert config.speculative_config.num_speculative_tokens_per_batch_size == list(TABLE)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch and vLLM, on import
def test_vllm_makes_the_core_of_a_dense_targets_rank_one_of_size_1() -> None:
    parallel_config = pytest.importorskip("vllm.config").ParallelConfig
    rank = SimpleNamespace(data_parallel_size=4, nnodes_within_dp=1, node_rank_within_dp=0)
    parallel_config.reconfigure_for_independent_dp_rank(rank)
    assert (rank.data_parallel_size, rank.data_parallel_rank) == (1, 0)


def test_without_a_dropped_table_a_configuration_stays_as_it_is() -> None:
    dropped, kept = configuration(2), configuration(1, [[1, 8, 3]])
    without: Any = SimpleNamespace(speculative_config=None)
    restore_table(dropped, ())
    restore_table(kept, TABLE)
    restore_table(without, TABLE)
    assert dropped.speculative_config.num_speculative_tokens_per_batch_size is None
    assert kept.speculative_config.num_speculative_tokens_per_batch_size == [[1, 8, 3]]


@pytest.mark.parametrize(
    ("parallel", "is_moe", "reason"),
    [
        ({}, False, ""),
        ({}, True, "data_parallel_size 4 and a mixture of experts: its ranks step together, and their K would have to agree"),
        ({"data_parallel_backend": "ray"}, False, "data_parallel_backend 'ray': ranks that are no processes here"),
        ({"data_parallel_size_local": 2}, False, "data_parallel_size_local 2 of 4: another command starts the other ranks"),
        ({"data_parallel_size_local": 2, "data_parallel_hybrid_lb": True}, False, ""),
        ({"data_parallel_size_local": 1, "data_parallel_external_lb": True}, False, ""),
    ],
)
def test_ranks_are_steered_where_each_is_a_dense_core_of_this_front_end(
    parallel: dict[str, Any], is_moe: bool, reason: str
) -> None:
    config = configuration(4, **parallel)
    config.model_config.is_moe = is_moe
    assert why_plain_in(config).startswith(reason)
    assert bool(why_plain_in(config)) is bool(reason)
    assert why_plain_with({"data_parallel_size": 4, **parallel}, is_moe=is_moe) == why_plain_in(config)


@pytest.mark.parametrize("is_moe", [False, True])
def test_an_engine_without_data_parallelism_has_no_ranks_to_speak_of(is_moe: bool) -> None:
    assert why_plain_with({}, is_moe=is_moe) == "" == why_plain_under_ray(1)
    assert num_ranks({}) == 1


def test_a_rank_with_a_front_end_of_its_own_is_one_engine() -> None:
    own = {"data_parallel_size": 4, "data_parallel_rank": 3}
    assert (num_ranks(own), why_plain_with(own, is_moe=False)) == (1, "")
    assert num_ranks({"data_parallel_size": 4, "data_parallel_size_local": 2, "data_parallel_start_rank": 2}) == 2


@pytest.mark.parametrize("key", ["num_experts", "moe_num_experts", "n_routed_experts", "num_local_experts"])
def test_a_mixture_of_experts_is_known_from_its_config(key: str) -> None:
    assert has_experts({key: 8})
    assert has_experts({"text_config": {key: 8}})
    assert not has_experts({key: 0})
