"""An engine that refuses Nightjar's arguments leaves the user with the engine they asked for, and no loop of refusals."""

from __future__ import annotations

import signal
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import pytest

from nightjar.deployments.engine.arguments import EngineArguments
from nightjar.deployments.engine.failing_open import (
    MEMORY_SETTLES_WITHIN_S,
    PROCESSES_END_WITHIN_S,
    REMEMBERED_S,
    Processes,
    Refusals,
    SteeringRequiredError,
    device_bytes_in_use,
    start_failing_open,
)

T = TypeVar("T")

GIB = 1 << 30
STEERED = EngineArguments({"scheduler_cls": "ours"}, "draft_model", 4)
PLAIN = EngineArguments({}, "draft_model", 4)


def launch_plain_only(arguments: EngineArguments) -> str:
    if "scheduler_cls" in arguments.kwargs:
        raise RuntimeError("no such scheduler")
    return "engine"


@dataclass
class Node:
    """Processes and a device's memory by the second, a clock that only sleeping moves, and what was killed."""

    running: list[Collection[int]] = field(default_factory=lambda: [()])
    used_bytes: list[int | None] = field(default_factory=lambda: [None])
    now_s: float = 1000.0
    killed: list[int] = field(default_factory=list)
    slept_s: float = 0.0

    def processes(self) -> Processes:
        return Processes(
            pids=partial(_next_of, list(self.running)),
            used_bytes=partial(_next_of, list(self.used_bytes)),
            kill=self.kill,
            clock=lambda: self.now_s,
            sleep=self.sleep,
        )

    def kill(self, pid: int, number: int) -> None:
        assert number == signal.SIGKILL
        self.killed.append(pid)

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds
        self.slept_s += seconds


def _next_of(values: list[T]) -> T:
    """One after another, the last again and again."""
    return values.pop(0) if len(values) > 1 else values[0]


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


def test_processes_that_outlive_a_refused_engine_are_killed_after_a_while_and_no_others(node: Node, refusals: Refusals) -> None:
    node.running = [(7,), (7, 9)]
    start(node, refusals)
    assert node.killed == [9]
    assert node.slept_s == pytest.approx(PROCESSES_END_WITHIN_S)


def test_the_plain_engine_starts_only_when_memory_is_given_back_no_more(node: Node, refusals: Refusals) -> None:
    node.used_bytes = [70 * GIB, 40 * GIB, 2 * GIB, 2 * GIB]
    processes = node.processes()
    processes.wait_for_memory()
    assert processes.used_bytes() == 2 * GIB


def test_memory_that_falls_for_ever_is_not_waited_for(node: Node) -> None:
    node.used_bytes = [number * GIB for number in range(1000, 0, -1)]
    node.processes().wait_for_memory()
    assert node.slept_s == pytest.approx(MEMORY_SETTLES_WITHIN_S)


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


def test_without_nvidias_driver_no_memory_is_waited_for() -> None:
    pytest.importorskip("vllm")
    assert device_bytes_in_use() is None
