"""vLLM's arguments as a user's words and back, and which servers are left to vLLM."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from typing import Any

import pytest

from nightjar.deployments.plain_vllm.arguments import configured, users_kwargs, why_plainly, with_kwargs

NGRAM = {"method": "ngram", "num_speculative_tokens": 4}


@dataclass
class Compilation:
    """One of vLLM's configuration objects."""

    level: int = 3
    cudagraph_capture_sizes: list[int] | None = None


@dataclass
class Arguments:
    """vLLM's EngineArgs as far as we use them."""

    model: str = "default"
    max_num_seqs: int | None = None
    scheduler_cls: str | None = None
    speculative_config: dict[str, Any] | None = None
    spec_method: str | None = None
    spec_tokens: int | None = None
    compilation_config: Compilation = field(default_factory=Compilation)

    def create_engine_config(self, usage_context: object) -> dict[str, Any]:
        """As vLLM's: it writes into the arguments."""
        del usage_context
        self.speculative_config = self.speculative_config or {}
        if self.spec_method is not None:
            self.speculative_config["method"] = self.spec_method
        self.speculative_config.update(target_model_config=object(), target_parallel_config=object())
        return self.speculative_config


def arguments(**values: Any) -> Any:
    return Arguments(**values)


def test_vllms_defaults_are_no_words_of_the_user() -> None:
    assert users_kwargs(arguments(model="m", max_num_seqs=4)) == {"model": "m", "max_num_seqs": 4}


def test_a_speculative_config_is_one_mapping_however_it_was_spelled() -> None:
    as_one = users_kwargs(arguments(speculative_config={"method": "ngram", "num-speculative-tokens": 4}))
    in_parts = users_kwargs(arguments(spec_method="ngram", spec_tokens=4))
    assert as_one == in_parts == {"speculative_config": NGRAM}


def test_configuring_leaves_the_arguments_as_they_were() -> None:
    given = arguments(speculative_config=dict(NGRAM))
    assert "target_model_config" in configured(given, None)
    assert given.speculative_config == NGRAM


def test_what_is_chosen_is_set_and_everything_else_stays() -> None:
    given = arguments(model="m", spec_method="ngram", spec_tokens=4, compilation_config=Compilation(level=2))
    users = users_kwargs(given)
    assert users["compilation_config"] == {"level": 2}
    chosen = users | {
        "scheduler_cls": "ours",
        "speculative_config": NGRAM | {"num_speculative_tokens_per_batch_size": [[1, 4, 4]]},
        "compilation_config": {"level": 2, "cudagraph_capture_sizes": [1, 2]},
    }
    made: Any = with_kwargs(given, users, chosen)
    assert (made.model, made.scheduler_cls, made.spec_method, made.spec_tokens) == ("m", "ours", None, None)
    assert made.speculative_config == chosen["speculative_config"]
    assert made.compilation_config == Compilation(level=2, cudagraph_capture_sizes=[1, 2])
    assert (given.scheduler_cls, given.spec_method, given.compilation_config) == (None, "ngram", Compilation(level=2))


@pytest.mark.parametrize(
    ("said", "variables", "reason"),
    [
        ({}, {}, ""),
        ({"data_parallel_size": 2, "api_server_count": 1}, {}, ""),
        ({"data_parallel_size": 2, "data_parallel_rank": 1}, {}, ""),
        ({"data_parallel_size": 4, "data_parallel_size_local": 1, "data_parallel_hybrid_lb": True}, {}, ""),
        ({"data_parallel_size": 4, "data_parallel_size_local": 1, "data_parallel_start_rank": 0}, {}, ""),
        ({"data_parallel_size": 4, "data_parallel_size_local": 2, "data_parallel_start_rank": 2, "api_server_count": 1}, {}, ""),
        ({"data_parallel_size": 2, "enable_elastic_ep": True}, {}, ""),
        ({}, {"VLLM_USE_RUST_FRONTEND": "0"}, ""),
        ({"api_server_count": 4}, {}, "4 API server processes"),
        ({"data_parallel_size": 2}, {}, "2 API server processes"),
        ({"data_parallel_size": 4, "data_parallel_size_local": 2, "data_parallel_hybrid_lb": True}, {}, "2 API server processes"),
        ({"data_parallel_size": 4, "data_parallel_start_rank": 2, "api_server_count": 3}, {}, "3 API server processes"),
        ({"data_parallel_size": 4, "data_parallel_size_local": 2}, {}, "--data-parallel-size-local 2 of 4: other commands start"),
        ({"data_parallel_size": 4, "data_parallel_size_local": 0, "api_server_count": 1}, {}, "size-local 0 of 4: other commands"),
        ({"nnodes": 2, "data_parallel_size": 2}, {}, "--nnodes 2: other commands start what runs on the other nodes"),
        ({"nnodes": 2, "node_rank": 1, "headless": True}, {}, "--headless"),
        ({"api_server_count": 0}, {}, "--api-server-count 0 starts no API server here"),
        ({"headless": True}, {}, "--headless starts no API server here"),
        ({"grpc": True}, {}, "--grpc"),
        ({"data_parallel_multi_port_external_lb": True}, {}, "several"),
        ({}, {"VLLM_USE_RUST_FRONTEND": "1"}, "VLLM_USE_RUST_FRONTEND"),
    ],
)
def test_one_python_server_beside_its_engine_is_steered_and_any_other_is_left_to_vllm(
    said: dict[str, Any], variables: dict[str, str], reason: str
) -> None:
    found = why_plainly(argparse.Namespace(**said), variables)
    assert reason in found
    assert bool(found) is bool(reason)
