"""What a step loop keeps between steps: settings in force for both its parts, and what clients asked for."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from nightjar.policy.wire.cause import Code
from nightjar.policy.wire.report import DrafterState, EngineLoad
from nightjar.policy.wire.settings import SettingsVersion
from tests.policy.step.steering_settings import settings

pytest.importorskip("vllm")

from nightjar.deployments.engine.scheduler.step_loop import StepLoop
from nightjar.deployments.engine.scheduler.step_note import NOTE_ATTRIBUTE


class Life:
    """Writes down what the drafter's life is told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str, float]] = []

    def adopt(self, given: Any, now_s: float) -> None:
        self.told.append(("adopt", f"dwell {given.dwell_steps}", now_s))

    def confirm(self, now_s: float) -> None:
        self.told.append(("confirm", "", now_s))


class FakeDrafting:
    """A drafting whose rows `behind` may verify no draft, and whose parts fail when told to."""

    def __init__(self) -> None:
        self.life = Life()
        self.ledger = self
        self.opted_out: set[str] = set()
        self.behind: list[str] = []
        self.left: list[str] = []
        self.error = ""

    def leave(self, request: Any) -> None:
        self._fail()
        self.left.append(request.request_id)

    def rows_without_drafts(self, requests: Mapping[str, Any]) -> list[str]:
        self._fail()
        return [name for name in self.behind if name in requests]

    def _fail(self) -> None:
        if self.error:
            raise RuntimeError(self.error)


def make_loop(drafting: FakeDrafting | None = None) -> StepLoop:
    given: Any = drafting
    return StepLoop(
        max_num_speculative_tokens=5,
        max_num_seqs=16,
        max_model_len=100,
        settle_steps=2,
        drafts_every_row=True,
        clock=iter(range(1, 100)).__next__,
        drafting=given,
    )


def request(name: str, *, is_finished: bool = False) -> Any:
    return SimpleNamespace(request_id=name, lora_request=None, is_finished=lambda: is_finished)


def test_settings_reach_the_drafters_life_and_the_same_ones_again_only_confirm() -> None:
    drafting = FakeDrafting()
    loop = make_loop(drafting)
    assert [loop.adopt(settings(sequence=number, dwell_steps=number)) for number in (2, 2, 3)] == ["", "", ""]
    assert drafting.life.told == [("adopt", "dwell 2", 1), ("confirm", "", 2), ("adopt", "dwell 3", 3)]


def test_inv_5_settings_that_are_refused_reach_nobody() -> None:
    drafting = FakeDrafting()
    loop = make_loop(drafting)
    loop.adopt(settings(sequence=2))
    assert "older than 1.2" in loop.adopt(settings(sequence=1))
    assert [what for what, _, _ in drafting.life.told] == ["adopt"]
    assert str(loop.steering.settings_version) == "1.2"


def test_a_drafter_that_is_kept_in_sync_needs_no_life() -> None:
    loop = make_loop()
    assert loop.adopt(settings()) == ""
    loop.confirm(settings().version)
    loop.add_request(request("a"), 0)
    loop.leave(request("a", is_finished=True))
    assert loop.draft_limits({"a": request("a")}) == {}
    assert loop.fault == ""


@pytest.mark.parametrize(("sequence", "is_heard"), [(2, True), (3, False), (1, False)])
def test_only_the_version_in_force_can_be_confirmed(sequence: int, is_heard: bool) -> None:
    drafting = FakeDrafting()
    loop = make_loop(drafting)
    loop.adopt(settings(sequence=2, max_age_s=10.0))
    for _ in range(8):
        loop.clock()
    loop.confirm(SettingsVersion(incarnation=1, sequence=sequence))
    assert (("confirm", "", 10) in drafting.life.told) is is_heard
    assert (loop.steering.choose(1, False, 15.0) == 5) is is_heard, "the settings' age began anew"


@pytest.mark.parametrize(("most", "limits", "opted_out"), [(None, {}, set()), (0, {"a": 0}, {"a"}), (2, {"a": 2}, set())])
def test_a_clients_wish_for_fewer_drafts_is_kept_and_none_at_all_is_an_opt_out(
    most: int | None, limits: dict[str, int], opted_out: set[str]
) -> None:
    drafting = FakeDrafting()
    loop = make_loop(drafting)
    loop.add_request(request("a"), most)
    assert loop.draft_limits({"a": request("a")}) == limits
    assert drafting.opted_out == opted_out
    assert loop.draft_limits({}) == {}, "of requests that the scheduler holds"
    loop.leave(request("a"))
    assert loop.draft_limits({"a": request("a")}) == limits, "a request that is preempted comes again"
    assert drafting.opted_out == opted_out
    loop.leave(request("a", is_finished=True))
    assert loop.draft_limits({"a": request("a")}) == {}
    assert drafting.opted_out == set()
    assert drafting.left == ["a", "a"]


def test_rows_that_miss_something_verify_no_draft_whatever_their_client_wants() -> None:
    drafting = FakeDrafting()
    loop = make_loop(drafting)
    loop.add_request(request("a"), 2)
    drafting.behind = ["a", "b", "gone"]
    assert loop.draft_limits({"a": request("a"), "b": request("b")}) == {"a": 0, "b": 0}


def test_after_a_fault_only_what_clients_want_counts_and_the_ledger_is_left_alone() -> None:
    drafting = FakeDrafting()
    loop = make_loop(drafting)
    loop.add_request(request("a"), 2)
    drafting.behind, loop.fault = ["b"], "an earlier one"
    assert loop.draft_limits({"a": request("a"), "b": request("b")}) == {"a": 2}
    loop.leave(request("b", is_finished=True))
    assert drafting.left == []


@pytest.mark.parametrize("what", ["leave", "draft_limits"])
def test_an_error_of_ours_is_a_fault_and_not_the_engines_end(what: str) -> None:
    drafting = FakeDrafting()
    loop = make_loop(drafting)
    loop.add_request(request("a"), 2)
    drafting.error = "a mistake of ours"
    if what == "leave":
        loop.leave(request("b", is_finished=True))
    else:
        assert loop.draft_limits({"a": request("a")}) == {"a": 2}
    assert loop.fault == f"{what}: RuntimeError: a mistake of ours"


def decoding(**more: Any) -> Any:
    """A step of one row, "a", that decodes."""
    return SimpleNamespace(
        num_scheduled_tokens={"a": 1},
        total_num_scheduled_tokens=1,
        scheduled_new_reqs=[],
        scheduled_cached_reqs=SimpleNamespace(req_ids=["a"], resumed_req_ids=set()),
        scheduled_spec_decode_tokens={},
        num_spec_tokens_to_schedule=5,
        **more,
    )


def row() -> Any:
    return SimpleNamespace(is_prefill_chunk=False, num_computed_tokens=9, num_tokens=10, use_structured_output=False)


def causes_of(loop: StepLoop) -> dict[str, dict[str, int | float]]:
    """What the engine would say of its last step, with the numbers."""
    said = loop.snapshot(EngineLoad(), DrafterState.IN_SYNC, (), "").causes
    return {cause.code: cause.numbers for cause in said}


@pytest.mark.parametrize(("skips", "length"), [(None, 5), (False, 5), (True, 0)])
def test_a_step_whose_drafts_vllm_skips_counts_as_one_without(skips: bool | None, length: int) -> None:
    loop = make_loop()
    loop.adopt(settings(mode="pin=5"))
    output = decoding(**({} if skips is None else {"skip_drafts": skips}))
    loop.before_step(output, {"a": row()}, loop.sleeps([row()], 0))
    assert loop.fault == ""
    assert output.num_spec_tokens_to_schedule == getattr(output, NOTE_ATTRIBUTE).num_speculative_tokens == length
    assert (Code.REQUESTS in causes_of(loop)) == bool(skips)


@pytest.mark.parametrize("most_drafts", [0, 2])
def test_a_k_that_clients_lowered_is_said_to_be_theirs_until_a_step_that_takes_all(most_drafts: int) -> None:
    loop = make_loop()
    loop.adopt(settings(mode="pin=5"))
    loop.add_request(request("a"), most_drafts)
    loop.before_step(output := decoding(), {"a": row()}, loop.sleeps([row()], 0))
    assert output.num_spec_tokens_to_schedule == most_drafts
    assert causes_of(loop) == {Code.PIN: {}, Code.REQUESTS: {"num_speculative_tokens": most_drafts}}
    loop.leave(request("a", is_finished=True))
    loop.before_step(decoding(), {"a": row()}, loop.sleeps([row()], 0))
    assert causes_of(loop) == {Code.PIN: {}}
