"""An engine that refuses Nightjar's arguments leaves the user with the engine they asked for, and no loop of refusals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pydantic
import pytest

from nightjar.deployments.engine.start.arguments import EngineArguments
from nightjar.deployments.engine.start.fallback import REMEMBERED_S, Refusals, SteeringRequiredError, start_failing_open
from nightjar.policy.wire.record import MAX_REASON_LENGTH
from tests.deployments.engine.nodes import Node

STEERED = EngineArguments({"scheduler_cls": "ours"}, "draft_model", 4)
PLAIN = EngineArguments({}, "draft_model", 4)


NO_SCHEDULER = "RuntimeError: no such scheduler"


def configure(arguments: EngineArguments) -> EngineArguments:
    return arguments


def start_plain_only(arguments: EngineArguments) -> str:
    if "scheduler_cls" in arguments.kwargs:
        raise RuntimeError("no such scheduler")
    return "engine"


def start_any(arguments: EngineArguments) -> str:
    return "engine"


@pytest.fixture
def node() -> Node:
    return Node()


@pytest.fixture
def refusals(tmp_path: Path, node: Node) -> Refusals:
    return Refusals(tmp_path / "refused", clock=lambda: node.now_s)


@dataclass
class Starting:
    """`start_failing_open` on one node."""

    node: Node
    refusals: Refusals
    environ: dict[str, str] = field(default_factory=dict)

    def __call__(
        self,
        start: Callable[[EngineArguments], str] = start_plain_only,
        arguments: EngineArguments = STEERED,
        configure: Callable[[EngineArguments], EngineArguments] = configure,
        *,
        require_steering: bool = False,
    ) -> tuple[str, EngineArguments]:
        return start_failing_open(
            arguments,
            PLAIN,
            configure,
            start,
            self.environ,
            refusals=self.refusals,
            processes=self.node.processes(),
            require_steering=require_steering,
        )


@pytest.fixture
def starting(node: Node, refusals: Refusals) -> Starting:
    return Starting(node, refusals)


def failing(*errors: Exception) -> Callable[[EngineArguments], EngineArguments]:
    """Raises these for steered arguments, one at a call, and then takes them; plain ones it takes always."""
    left = list(errors)

    def take(arguments: EngineArguments) -> EngineArguments:
        if left and "scheduler_cls" in arguments.kwargs:
            raise left.pop(0)
        return arguments

    return take


def of_validation() -> list[Exception]:
    class Model(pydantic.BaseModel):
        max_num_seqs: int

    class FromTaskError(Exception):
        """As Ray hands on what a task raised."""

        cause = ValueError("max_num_seqs")

    try:
        Model.model_validate({"max_num_seqs": "many"})
    except pydantic.ValidationError as error:
        found: Exception = error
    return [found, ValueError("K"), TypeError("K"), AssertionError("K"), NotImplementedError("K"), FromTaskError("K")]


class HubError(FileNotFoundError, ValueError):
    """As huggingface_hub's LocalEntryNotFoundError, which is both."""


PASSING = [ConnectionError("the hub"), TimeoutError("the hub"), HubError("the hub"), RuntimeError("a task's node is gone")]


def test_engine_that_takes_the_steered_arguments_is_steered(starting: Starting) -> None:
    assert starting(start_any) == ("engine", STEERED)


def test_engine_that_refuses_them_twice_serves_plainly_and_says_why(starting: Starting) -> None:
    engine, arguments = starting()
    assert engine == "engine"
    assert arguments.kwargs == PLAIN.kwargs
    assert arguments.serving_plainly.startswith(f"the engine refused the steered arguments twice ({NO_SCHEDULER}); since ")


@pytest.mark.parametrize("where", ["start", "configure"])
@pytest.mark.parametrize("error", PASSING, ids=repr)
def test_engine_that_fails_for_a_moment_is_steered_at_the_second_try(where: str, error: Exception, starting: Starting) -> None:
    takes = failing(error)
    started = starting(start_any, configure=takes) if where == "configure" else starting(lambda chosen: start_any(takes(chosen)))
    assert started == ("engine", STEERED)
    assert starting.refusals.reason(STEERED) == ""


def test_an_engine_core_that_cannot_say_why_it_failed_is_tried_again_whatever_the_type_of_its_error(starting: Starting) -> None:
    takes = failing(ValueError("Free memory on device is less than desired"))
    assert starting(lambda chosen: start_any(takes(chosen))) == ("engine", STEERED)


def test_both_causes_are_told_where_they_differ(starting: Starting) -> None:
    takes = failing(ConnectionError("the hub"), RuntimeError("no memory"))
    _, arguments = starting(lambda chosen: start_any(takes(chosen)))
    assert "twice (ConnectionError: the hub; then RuntimeError: no memory); since " in arguments.serving_plainly


@pytest.mark.parametrize("error", of_validation(), ids=lambda error: type(error).__name__)
def test_a_refusal_by_validation_is_not_tried_again_before_the_next_start(error: Exception, starting: Starting) -> None:
    takes = failing(error)
    _, arguments = starting(start_any, configure=takes)
    assert arguments.kwargs == PLAIN.kwargs
    assert arguments.serving_plainly.startswith(f"vLLM's configuration refuses the steered arguments ({type(error).__name__}: ")
    assert arguments.serving_plainly.endswith(
        "), until they or the versions of vLLM and Nightjar change; since 1970-01-01 00:16:40 UTC"
    )
    assert starting(start_any, configure=takes) == ("engine", STEERED)


def test_each_try_has_a_configuration_of_its_own(starting: Starting) -> None:
    configured: list[EngineArguments] = []

    def configure(arguments: EngineArguments) -> EngineArguments:
        configured.append(replace(arguments))
        return configured[-1]

    started: list[EngineArguments] = []

    def start(configuration: EngineArguments) -> str:
        started.append(configuration)
        return start_plain_only(configuration)

    starting(start, configure=configure)
    assert [id(each) for each in started] == [id(each) for each in configured]
    assert started == [STEERED, STEERED, replace(PLAIN, serving_plainly=started[-1].serving_plainly)]


def test_variables_of_a_steered_engine_stay_with_it_and_are_gone_before_a_plain_one_starts(starting: Starting) -> None:
    arguments = replace(STEERED, environment={"RUNNER": "0"})
    starting.environ["THEIRS"] = "1"
    seen = []

    def start(chosen: EngineArguments) -> str:
        seen.append(dict(starting.environ))
        return start_plain_only(chosen)

    starting(start, arguments)
    assert seen == [{"THEIRS": "1", "RUNNER": "0"}, {"THEIRS": "1", "RUNNER": "0"}, {"THEIRS": "1"}]
    starting.node.now_s += REMEMBERED_S
    starting(start_any, arguments)
    assert starting.environ == {"THEIRS": "1", "RUNNER": "0"}


def test_mistake_in_the_users_own_arguments_is_the_users_own_error(starting: Starting) -> None:
    def start_nothing(arguments: EngineArguments) -> str:
        raise ValueError(f"no memory for {sorted(arguments.kwargs)}")

    with pytest.raises(ValueError, match=r"no memory for \[\]"):
        starting(start_nothing)


def test_the_next_engine_starts_only_when_the_refused_ones_processes_have_ended(starting: Starting) -> None:
    """The first look is before the start: those processes are not the engine's."""
    node = starting.node
    node.running = [(7,), (7, 8, 9), (7, 9), (7,), (7, 10), (7,)]
    waited_s = []

    def start(arguments: EngineArguments) -> str:
        waited_s.append(node.slept_s)
        return start_plain_only(arguments)

    starting(start)
    assert waited_s == [0.0, 1.0, 1.5]
    assert node.killed == []


def test_a_replica_started_again_does_not_try_what_was_just_refused(starting: Starting) -> None:
    _, refused = starting()
    starting.node.now_s += 60.0
    _, again = starting(start_any)
    assert again.kwargs == PLAIN.kwargs
    assert again.serving_plainly == refused.serving_plainly


def test_the_reason_says_since_when_it_holds_and_which_start_ends_it(starting: Starting) -> None:
    """The node's clock stands at 16 minutes and 40 seconds past midnight."""
    _, arguments = starting()
    assert arguments.serving_plainly.endswith(
        "; since 1970-01-01 00:16:40 UTC; a replica that starts on this node after 1970-01-01 00:31:40 UTC, "
        "or with other arguments, tries them again"
    )
    starting.node.now_s += REMEMBERED_S - 1.0
    assert starting(start_any)[1].serving_plainly == arguments.serving_plainly
    starting.node.now_s += 1.0
    assert starting(start_any) == ("engine", STEERED)


def test_other_arguments_are_tried_at_once(starting: Starting) -> None:
    starting()
    others = replace(STEERED, kwargs={"scheduler_cls": "ours", "max_num_seqs": 8})
    assert starting(start_any, others) == ("engine", others)


@pytest.mark.parametrize("where", ["start", "configure"])
def test_a_long_reason_fits_into_a_report_with_what_ends_it(where: str, starting: Starting) -> None:
    takes = failing(*(ValueError(f"{number} {2000 * '.'}") for number in range(2)))
    _, arguments = (
        starting(start_any, configure=takes) if where == "configure" else starting(lambda chosen: start_any(takes(chosen)))
    )
    assert len(arguments.serving_plainly) <= MAX_REASON_LENGTH
    assert "; since 1970-01-01 00:16:40 UTC" in arguments.serving_plainly


def test_arguments_that_were_taken_at_last_are_forgotten_to_have_been_refused(refusals: Refusals) -> None:
    refusals.note(STEERED, "no memory")
    assert refusals.reason(STEERED)
    refusals.forget(STEERED)
    assert refusals.reason(STEERED) == ""


def test_a_note_that_cannot_be_read_is_no_refusal(refusals: Refusals) -> None:
    refusals.note(STEERED, "no memory")
    (file,) = refusals.folder.iterdir()
    file.write_text("{")
    assert refusals.reason(STEERED) == ""


def test_where_no_note_can_be_written_the_next_start_tries_again_and_the_reason_says_so(tmp_path: Path, node: Node) -> None:
    (tmp_path / "a file").write_text("")
    starting = Starting(node, Refusals(tmp_path / "a file", clock=lambda: node.now_s))
    _, arguments = starting()
    assert arguments.serving_plainly.endswith("; since 1970-01-01 00:16:40 UTC; the next start of a replica tries them again")
    assert starting(start_any) == ("engine", STEERED)


def test_where_steering_is_required_no_plain_engine_starts_and_the_reason_is_told(starting: Starting) -> None:
    started = []

    def start(arguments: EngineArguments) -> str:
        started.append(arguments)
        return start_plain_only(arguments)

    unsteerable = replace(PLAIN, serving_plainly="drafter 'medusa' does not obey a K chosen per step")
    for arguments, reason in ((STEERED, "no such scheduler"), (unsteerable, "'medusa' does not obey")):
        with pytest.raises(SteeringRequiredError, match=f"would serve as plain vLLM: .*{reason}.*require_steering: false"):
            starting(start, arguments, require_steering=True)
    assert started == [STEERED, STEERED]


def test_where_steering_is_required_each_start_tries_the_steered_arguments(starting: Starting) -> None:
    with pytest.raises(SteeringRequiredError):
        starting(require_steering=True)
    assert starting(start_any, require_steering=True) == ("engine", STEERED)
