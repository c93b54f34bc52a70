"""Starting vLLM's server fails open: what refuses Nightjar's arguments leaves the user with the engine they asked for."""

from __future__ import annotations

import pytest

from nightjar.deployments.engine.arguments import EngineArguments
from nightjar.deployments.engine.openai_server import EngineArgumentError, split_kwargs, start_failing_open

STEERED = EngineArguments({"scheduler_cls": "ours"}, "draft_model", 4)
PLAIN = EngineArguments({}, "draft_model", 4)


def launch_plain_only(arguments: EngineArguments) -> str:
    if "scheduler_cls" in arguments.kwargs:
        raise RuntimeError("no such scheduler")
    return "engine"


def test_engine_that_takes_the_steered_arguments_is_steered() -> None:
    assert start_failing_open(STEERED, PLAIN, lambda _: "engine") == ("engine", STEERED)


def test_engine_that_refuses_them_serves_plainly_and_says_why() -> None:
    engine, arguments = start_failing_open(STEERED, PLAIN, launch_plain_only)
    assert engine == "engine"
    assert arguments.kwargs == PLAIN.kwargs
    assert arguments.serving_plainly == "the engine refused the steered arguments (RuntimeError: no such scheduler)"


def test_mistake_in_the_users_own_arguments_is_the_users_own_error() -> None:
    def launch_nothing(arguments: EngineArguments) -> str:
        raise ValueError(f"no memory for {sorted(arguments.kwargs)}")

    with pytest.raises(ValueError, match=r"no memory for \[\]"):
        start_failing_open(STEERED, PLAIN, launch_nothing)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch and vLLM, on import
def test_kwargs_are_vllms_own_engines_and_servers_alike() -> None:
    pytest.importorskip("vllm")
    engine_kwargs, frontend_kwargs = split_kwargs({"max_num_seqs": 4, "enable_auto_tool_choice": True})
    assert engine_kwargs == {"max_num_seqs": 4}
    assert frontend_kwargs == {"enable_auto_tool_choice": True}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch and vLLM, on import
def test_misspelt_kwarg_is_named_with_the_nearest_real_one() -> None:
    pytest.importorskip("vllm")
    with pytest.raises(EngineArgumentError, match=r"vLLM has no argument max_num_seq; did you mean max_num_seqs\?"):
        split_kwargs({"max_num_seq": 4})
