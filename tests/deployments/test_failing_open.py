"""An engine that refuses Nightjar's arguments leaves the user with the engine they asked for, and no loop of refusals."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from nightjar.deployments.engine.arguments import EngineArguments
from nightjar.deployments.engine.failing_open import (
    REMEMBERED_S,
    Refusals,
    SteeringRequiredError,
    start_failing_open,
)
from tests.deployments.nodes import Node

STEERED = EngineArguments({"scheduler_cls": "ours"}, "draft_model", 4)
PLAIN = EngineArguments({}, "draft_model", 4)


def launch_plain_only(arguments: EngineArguments) -> str:
    if "scheduler_cls" in arguments.kwargs:
        raise RuntimeError("no such scheduler")
    return "engine"


@pytest.fixture
def node() -> Node:
    return Node()


@pytest.fixture
def refusals(tmp_path: Path, node: Node) -> Refusals:
    return Refusals(tmp_path / "refused", clock=lambda: node.now_s)


def start(
    node: Node, refusals: Refusals, arguments: EngineArguments = STEERED, environ: dict[str, str] | None = None
) -> tuple[str, EngineArguments]:
    environ = {} if environ is None else environ
    return start_failing_open(arguments, PLAIN, launch_plain_only, environ, refusals=refusals, processes=node.processes())


def test_engine_that_takes_the_steered_arguments_is_steered(node: Node, refusals: Refusals) -> None:
    taken = start_failing_open(STEERED, PLAIN, lambda _: "engine", {}, refusals=refusals, processes=node.processes())
    assert taken == ("engine", STEERED)


def test_engine_that_refuses_them_serves_plainly_and_says_why(node: Node, refusals: Refusals) -> None:
    engine, arguments = start(node, refusals)
    assert engine == "engine"
    assert arguments.kwargs == PLAIN.kwargs
    assert arguments.serving_plainly == "the engine refused the steered arguments (RuntimeError: no such scheduler)"


def test_variables_of_a_steered_engine_stay_with_it_and_are_gone_before_a_plain_one_starts(node: Node, refusals: Refusals) -> None:
    arguments = replace(STEERED, environment={"RUNNER": "0"})
    environ = {"THEIRS": "1"}
    seen = []

    def launch(chosen: EngineArguments) -> str:
        seen.append(dict(environ))
        return launch_plain_only(chosen)

    start_failing_open(arguments, PLAIN, launch, environ, refusals=refusals, processes=node.processes())
    assert seen == [{"THEIRS": "1", "RUNNER": "0"}, {"THEIRS": "1"}]
    node.now_s += REMEMBERED_S
    start_failing_open(arguments, PLAIN, lambda _: "engine", environ, refusals=refusals, processes=node.processes())
    assert environ == {"THEIRS": "1", "RUNNER": "0"}


def test_mistake_in_the_users_own_arguments_is_the_users_own_error(node: Node, refusals: Refusals) -> None:
    def launch_nothing(arguments: EngineArguments) -> str:
        raise ValueError(f"no memory for {sorted(arguments.kwargs)}")

    with pytest.raises(ValueError, match=r"no memory for \[\]"):
        start_failing_open(STEERED, PLAIN, launch_nothing, {}, refusals=refusals, processes=node.processes())


def test_the_plain_engine_starts_only_when_the_refused_ones_processes_have_ended(node: Node, refusals: Refusals) -> None:
    """The first look is before the launch: those processes are not the engine's."""
    node.running = [(7,), (7, 8, 9), (7, 9), (7,)]
    start(node, refusals)
    assert node.slept_s > 0
    assert node.killed == []


def test_a_replica_started_again_does_not_try_what_was_just_refused(node: Node, refusals: Refusals) -> None:
    start(node, refusals)
    node.now_s += 60.0
    _, arguments = start_failing_open(STEERED, PLAIN, lambda _: "engine", {}, refusals=refusals, processes=node.processes())
    assert arguments.kwargs == PLAIN.kwargs
    assert "no such scheduler" in arguments.serving_plainly
    assert f"seen 60 s ago on this node, tried again in {REMEMBERED_S - 60:.0f} s" in arguments.serving_plainly


@pytest.mark.parametrize(
    ("arguments", "later_s"),
    [(STEERED, REMEMBERED_S), (replace(STEERED, kwargs={"scheduler_cls": "ours", "max_num_seqs": 8}), 1.0)],
    ids=["after a while", "other arguments"],
)
def test_refused_arguments_are_tried_again(arguments: EngineArguments, later_s: float, node: Node, refusals: Refusals) -> None:
    start(node, refusals)
    node.now_s += later_s
    taken = start_failing_open(arguments, PLAIN, lambda _: "engine", {}, refusals=refusals, processes=node.processes())
    assert taken == ("engine", arguments)


def test_arguments_that_were_taken_at_last_are_forgotten_to_have_been_refused(node: Node, refusals: Refusals) -> None:
    refusals.note(STEERED, "no memory")
    assert refusals.reason(STEERED)
    refusals.forget(STEERED)
    assert refusals.reason(STEERED) == ""


def test_a_note_that_cannot_be_read_or_written_is_no_refusal(node: Node, tmp_path: Path, refusals: Refusals) -> None:
    refusals.note(STEERED, "no memory")
    (file,) = refusals.folder.iterdir()
    file.write_text("{")
    assert refusals.reason(STEERED) == ""
    (tmp_path / "a file").write_text("")
    Refusals(tmp_path / "a file").note(STEERED, "no memory")


def test_where_steering_is_required_no_plain_engine_starts_and_the_reason_is_told(node: Node, refusals: Refusals) -> None:
    launched = []

    def launch(arguments: EngineArguments) -> str:
        launched.append(arguments)
        return launch_plain_only(arguments)

    unsteerable = replace(PLAIN, serving_plainly="drafter 'medusa' does not obey a K chosen per step")
    for arguments, reason in ((STEERED, "no such scheduler"), (unsteerable, "'medusa' does not obey")):
        with pytest.raises(SteeringRequiredError, match=f"would serve as plain vLLM: .*{reason}.*require_steering: false"):
            start_failing_open(arguments, PLAIN, launch, {}, refusals=refusals, processes=node.processes(), require_steering=True)
    assert launched == [STEERED]


def test_where_steering_is_required_an_engine_that_is_steered_starts(node: Node, refusals: Refusals) -> None:
    processes = node.processes()
    taken = start_failing_open(
        STEERED, PLAIN, lambda _: "engine", {}, refusals=refusals, processes=processes, require_steering=True
    )
    assert taken == ("engine", STEERED)
