"""Nightjar's scheduler classes on vLLM's real scheduling, model outputs made up, synchronous and with steps in flight."""

from __future__ import annotations

import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nightjar.policy.planners.local import StepOutcome, StepView
from nightjar.policy.step.steering import Steering
from nightjar.policy.wire.report import DrafterState, EngineLoad
from nightjar.policy.wire.settings import k_at

pytest.importorskip("vllm")
from vllm.v1.core.sched.scheduler import Scheduler

from nightjar.deployments.engine.scheduler.steered import SteeredScheduler, most_drafts_of
from nightjar.deployments.engine.start.arguments import steered_engine_kwargs
from nightjar.deployments.engine.start.resolved_facts import EngineFacts
from nightjar.deployments.engine.worker.draft_work import WORK_ATTRIBUTE
from tests.engine.scheduler.scheduler_harness import (
    MAXIMUM,
    Engines,
    hand_over_drafts,
    make_request,
    make_scheduler,
    model_output,
    run_steps,
    steer,
)
from tests.policy.step.steering_settings import local_plan, table


class Clock:
    """Advances by `step_s` with each reading."""

    def __init__(self, step_s: float = 0.0) -> None:
        self.now_s = 100.0
        self.step_s = step_s

    def __call__(self) -> float:
        self.now_s += self.step_s
        return self.now_s


def start(engines: Engines, *, requests: int = 3, prompt_tokens: int = 8, **options: Any) -> Any:
    scheduler = engines.scheduler(**options)
    scheduler.nightjar.clock = Clock(step_s=0.01)
    for index in range(requests):
        scheduler.add_request(make_request(f"request-{index}", prompt_tokens=prompt_tokens))
    return scheduler


def counters(scheduler: Any) -> Any:
    assert scheduler.nightjar.fault == ""
    return scheduler.nightjar.counters.snapshot("engine")


@pytest.mark.parametrize(
    ("extra_args", "most"),
    [
        ({"num_speculative_tokens": 0}, 0),
        ({"num_speculative_tokens": 2, "other": 1}, 2),
        ({"num_speculative_tokens": -1}, None),
        ({"num_speculative_tokens": "0"}, None),
        ({"other": 1}, None),
        ({}, None),
        (None, None),
    ],
)
def test_a_client_asks_for_fewer_drafts_by_a_count_and_anything_else_is_ignored(
    extra_args: dict[str, Any] | None, most: int | None
) -> None:
    request: Any = SimpleNamespace(sampling_params=SimpleNamespace(extra_args=extra_args))
    assert most_drafts_of(request) == most
    pooling: Any = SimpleNamespace(sampling_params=None)
    assert most_drafts_of(pooling) is None


@pytest.mark.parametrize("users", [None, [[1, 2, 4], [3, 16, 2]]])
def test_where_nobody_steers_the_users_own_k_runs_and_not_that_of_the_table_for_graphs(
    both: Engines, users: list[list[int]] | None
) -> None:
    speculative = {"num_speculative_tokens": MAXIMUM, "num_speculative_tokens_per_batch_size": users}
    facts = EngineFacts(
        on_cpu=False,
        async_scheduling=True,
        captures_graphs=True,
        max_num_seqs=16,
        drafter_kind="eagle",
        max_num_speculative_tokens=MAXIMUM,
        runner_is_v1=False,
    )
    kwargs = steered_engine_kwargs({"speculative_config": speculative}, facts).kwargs
    graph_table = kwargs["speculative_config"]["num_speculative_tokens_per_batch_size"]
    assert {length for *_, length in graph_table} >= {0, 1, 3, 4}
    scheduler = start(both, requests=16, graph_table=graph_table, additional_config=kwargs["additional_config"])
    users_own = 2 if users else MAXIMUM
    assert run_steps(scheduler, 4, in_flight=both.in_flight)[-1].num_spec_tokens_to_schedule == users_own
    for sequence, (mode, length) in enumerate((("off", 0), ("shadow", users_own), ("pin=1", 1)), start=1):
        steer(scheduler, mode, sequence)
        assert run_steps(scheduler, 4, in_flight=both.in_flight)[-1].num_spec_tokens_to_schedule == length
    scheduler.nightjar.fault = "an error of ours"
    assert run_steps(scheduler, 4, in_flight=both.in_flight)[-1].num_spec_tokens_to_schedule == users_own


def test_where_no_drafter_sleeps_nothing_but_k_is_changed_of_vllms_scheduling(
    both: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler = start(both)
    config, lookahead_tokens = scheduler.vllm_config, scheduler.num_lookahead_tokens
    seen: set[tuple[int, bool]] = set()
    theirs = Scheduler.schedule

    def schedule(self: Any, *args: Any, **kwargs: Any) -> Any:
        seen.add((self.num_lookahead_tokens, self.vllm_config is config))
        return theirs(self, *args, **kwargs)

    monkeypatch.setattr(Scheduler, "schedule", schedule)
    lengths = []
    for sequence, mode in enumerate(("off", "pin=2", "auto", "shadow"), start=1):
        steer(scheduler, mode, sequence)
        lengths.append(run_steps(scheduler, 6, in_flight=both.in_flight)[-1].num_spec_tokens_to_schedule)
    assert lengths == [0, 2, MAXIMUM, MAXIMUM]
    assert seen == {(lookahead_tokens, True)}


def test_the_chosen_length_is_drafted_in_its_step_and_verified_in_the_next(both: Engines) -> None:
    scheduler = start(both)
    lengths = [4, 0, 2, 2, 1, 4, 3]
    outputs: list[Any] = []
    queue: list[Any] = []
    for sequence, length in enumerate(lengths, start=1):
        steer(scheduler, f"pin={length}", sequence)
        queue.append(scheduler.schedule())
        outputs.append(queue[-1])
        if len(queue) == both.in_flight:
            output = queue.pop(0)
            scheduler.update_from_output(output, model_output(scheduler, output, lambda name, drafts: drafts // 2))
            if both.in_flight == 1:
                hand_over_drafts(scheduler, output)
    assert [output.num_spec_tokens_to_schedule for output in outputs] == lengths
    for before, output in zip(lengths, outputs[1:], strict=False):
        assert {len(tokens) for tokens in output.scheduled_spec_decode_tokens.values()} == ({before} if before else set())
    assert scheduler.nightjar.fault == ""


def test_without_settings_the_engine_runs_its_own_length_and_is_counted(both: Engines) -> None:
    scheduler = start(both)
    run_steps(scheduler, 6, in_flight=both.in_flight)
    assert [total.num_speculative_tokens for total in counters(scheduler).totals] == [MAXIMUM]


def test_rows_decode_once_all_but_their_newest_token_is_cached_also_with_placeholders(both: Engines) -> None:
    scheduler = start(both, prompt_tokens=40, max_num_batched_tokens=64)
    outputs = run_steps(scheduler, 8, in_flight=both.in_flight)
    notes = [output.nightjar_note for output in outputs]
    assert [(note.decode_rows, note.prefill_tokens > 0) for note in notes][:3] == [(0, True), (1, True), (2, True)]
    assert {(note.decode_rows, note.prefill_tokens) for note in notes[3:]} == {(3, 0)}
    assert sum(note.prefill_tokens for note in notes) == 3 * 40


def test_the_context_of_the_decoding_rows_is_what_the_kv_cache_holds_also_as_rows_come_and_go(sync: Engines) -> None:
    scheduler = start(sync, max_num_batched_tokens=64)
    for step in range(16):
        if step in {5, 9}:
            scheduler.add_request(make_request(f"late-{step}", max_tokens=12))
        if step == 7:
            scheduler.finish_requests("request-1", _aborted())
        before = {name: request.num_computed_tokens for name, request in scheduler.requests.items()}
        (output,) = run_steps(scheduler, 1, lambda name, drafts: drafts // 2)
        note = output.nightjar_note
        if not note.prefill_tokens:
            assert note.context_tokens == sum(before[name] for name in output.num_scheduled_tokens)
    assert scheduler.nightjar.fault == ""


def test_a_step_is_clean_only_once_its_length_was_held_by_all_steps_in_flight(both: Engines) -> None:
    scheduler = start(both)
    steer(scheduler, "pin=2", 1)
    run_steps(scheduler, 6, in_flight=both.in_flight)
    before = counters(scheduler)
    steer(scheduler, "pin=3", 2)
    done = run_steps(scheduler, 6, in_flight=both.in_flight)
    at_three = [output for output in done if output.num_spec_tokens_to_schedule == 3]
    clean = {cell.num_speculative_tokens: cell.steps for cell in counters(scheduler).cells}
    assert clean[3] == len(at_three) - both.in_flight
    assert counters(scheduler).transition_steps - before.transition_steps >= both.in_flight


def test_reached_and_accepted_count_rows_by_position(both: Engines) -> None:
    scheduler = start(both)
    accepted_by_name = {"request-0": 0, "request-1": 1, "request-2": 4}
    done = run_steps(scheduler, 7, lambda name, drafts: min(accepted_by_name[name], drafts), in_flight=both.in_flight)
    verifying = [output for output in done if output.scheduled_spec_decode_tokens]
    (total,) = counters(scheduler).totals
    assert total.draft_tokens == 3 * MAXIMUM * len(verifying)
    assert total.accepted_tokens == (0 + 1 + 4) * len(verifying)
    (cell,) = counters(scheduler).cells
    assert cell.reached == (3 * cell.steps,) * MAXIMUM
    assert cell.accepted == (2 * cell.steps, cell.steps, cell.steps, cell.steps)


def test_the_time_since_the_last_output_belongs_to_a_step_unless_the_engine_was_idle(sync: Engines) -> None:
    scheduler = start(sync, requests=0)
    clock = Clock()
    scheduler.nightjar.clock = clock
    for round_number in range(2):
        clock.now_s += 1000.0
        scheduler.add_request(make_request(f"late-{round_number}", max_tokens=15))
        for _ in range(3):
            clock.now_s += 2.0
            run_steps(scheduler, 1)
        scheduler.finish_requests(f"late-{round_number}", _aborted())
    assert counters(scheduler).busy_seconds == pytest.approx(2 * 2 * 2.0)


def test_a_paused_engine_credits_no_time(sync: Engines) -> None:
    from vllm.v1.core.sched.interface import PauseState

    scheduler = start(sync)
    clock = Clock()
    scheduler.nightjar.clock = clock
    run_steps(scheduler, 2)
    scheduler.set_pause_state(PauseState.PAUSED_ALL)
    clock.now_s += 1000.0  # the engine's core calls its scheduler for no step meanwhile
    scheduler.set_pause_state(PauseState.UNPAUSED)
    run_steps(scheduler, 1)
    assert counters(scheduler).busy_seconds < 1.0
    assert counters(scheduler).step_count == 3


def test_tokens_after_a_stop_are_accepted_but_not_generated(sync: Engines) -> None:
    scheduler = start(sync, requests=0)
    scheduler.add_request(make_request("short", max_tokens=3))
    run_steps(scheduler, 2)
    (total,) = counters(scheduler).totals
    assert (total.generated_tokens, total.accepted_tokens) == (3, MAXIMUM)


def test_the_token_that_begins_an_answer_is_counted_when_its_prompt_is_computed_and_never_again(sync: Engines) -> None:
    scheduler = start(sync, requests=3)
    run_steps(scheduler, 4)
    scheduler.add_request(make_request("late", max_tokens=15))
    run_steps(scheduler, 3)
    totals = counters(scheduler).totals
    assert sum(total.first_tokens for total in totals) == 4
    assert sum(total.generated_tokens for total in totals) > 10


def test_a_row_aborted_while_its_step_ran_is_not_counted(sync: Engines) -> None:
    scheduler = start(sync)
    run_steps(scheduler, 1)
    output = scheduler.schedule()
    scheduler.finish_requests("request-0", _aborted())
    scheduler.update_from_output(output, model_output(scheduler, output, lambda name, drafts: drafts))
    (total,) = counters(scheduler).totals
    assert total.draft_tokens == 2 * MAXIMUM


def test_drafts_that_a_grammar_refused_are_not_reached(sync: Engines) -> None:
    scheduler = start(sync)
    run_steps(scheduler, 1)
    output = scheduler.schedule()
    output.num_invalid_spec_tokens = {"request-0": 3}
    scheduler.update_from_output(output, model_output(scheduler, output, lambda name, drafts: 0))
    (total,) = counters(scheduler).totals
    assert total.draft_tokens == 3 * MAXIMUM - 3


def test_a_row_cut_short_by_its_maximum_length_leaves_the_step_clean(sync: Engines) -> None:
    scheduler = start(sync, max_model_len=32)
    done = run_steps(scheduler, 12, lambda name, drafts: 0 if name == "request-0" else drafts)
    cut = [output for output in done if {1, 2, 3} & {len(tokens) for tokens in output.scheduled_spec_decode_tokens.values()}]
    assert cut
    assert all(output.nightjar_note.comparable for output in cut)


def test_a_row_short_for_any_other_reason_spoils_the_step(sync: Engines) -> None:
    scheduler = start(sync)
    run_steps(scheduler, 2)
    scheduler.requests["request-1"].spec_token_ids = []
    (output,) = run_steps(scheduler, 1)
    assert not output.nightjar_note.comparable


def test_a_drafter_that_found_nothing_for_a_row_is_a_miss_and_not_a_row_cut_short(
    sync: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler = start(sync)
    monkeypatch.setattr(scheduler.nightjar, "_drafts_every_row", False)
    run_steps(scheduler, 2)
    before = counters(scheduler).cells[0]
    scheduler.requests["request-1"].spec_token_ids = []
    run_steps(scheduler, 1)
    after = counters(scheduler).cells[0]
    assert after.steps == before.steps + 1
    assert [now - then for now, then in zip(after.reached, before.reached, strict=True)] == [3] * MAXIMUM
    assert [now - then for now, then in zip(after.accepted, before.accepted, strict=True)] == [2] * MAXIMUM


@pytest.mark.parametrize("hook", ["_choose", "_count_verified", "_count"])
def test_an_error_of_ours_leaves_the_engine_its_own_length_and_is_told(
    hook: str, sync: Engines, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    scheduler = start(sync)
    steer(scheduler, "pin=1")

    def fail(*arguments: object) -> None:
        raise RuntimeError("broken on purpose")

    monkeypatch.setattr(scheduler.nightjar, hook, fail)
    done = run_steps(scheduler, 5)
    assert [output.num_spec_tokens_to_schedule for output in done[1:]] == [MAXIMUM] * 4
    assert "broken on purpose" in scheduler.nightjar.fault
    assert all(len(request.output_token_ids) > 4 for request in scheduler.requests.values())


class Alternating:
    """A planner of the engine's own: K = 1, then 3, and so on. With `broken` it raises when it learns."""

    plans_mixed_steps = False

    def __init__(self, broken: bool) -> None:
        self.broken = broken
        self.views: list[StepView] = []
        self.outcomes: list[StepOutcome] = []

    def choose(self, view: StepView) -> int:
        self.views.append(view)
        return 1 if len(self.views) % 2 else 3

    def in_mixed_step(self, view: StepView) -> int:
        return 0

    def learn(self, outcome: StepOutcome) -> None:
        if self.broken:
            raise RuntimeError("broken on purpose")
        self.outcomes.append(outcome)


def start_locally(engines: Engines, *, broken: bool = False) -> tuple[Any, Alternating]:
    scheduler, planner = start(engines), Alternating(broken)
    scheduler.nightjar.steering = Steering(
        max_num_speculative_tokens=MAXIMUM, max_num_seqs=16, local_planners={"alternating": lambda options, context: planner}
    )
    steer(scheduler, "auto", plan=local_plan("alternating"))
    return scheduler, planner


def test_a_planner_of_the_engines_own_is_asked_and_told_of_every_pure_decode_step(both: Engines) -> None:
    scheduler, planner = start_locally(both)
    done = run_steps(scheduler, 9, in_flight=both.in_flight)
    counters(scheduler)
    lengths = [output.num_spec_tokens_to_schedule for output in done]
    assert lengths[0] == 0
    assert lengths[1:7] == [1, 3] * 3
    assert [outcome.num_speculative_tokens for outcome in planner.outcomes[:7]] == lengths[1:8]
    for view, outcome in zip(planner.views, planner.outcomes, strict=False):
        assert (outcome.decode_rows, outcome.context_tokens) == (view.decode_batch_size, view.context_tokens)
        assert outcome.step_seconds > 0
        assert outcome.generated_tokens == 3 + sum(outcome.accepted)
        assert not outcome.settled


def test_a_fault_in_such_a_planner_leaves_the_engine_its_own_length(sync: Engines) -> None:
    scheduler, _ = start_locally(sync, broken=True)
    done = run_steps(scheduler, 5)
    assert [output.num_spec_tokens_to_schedule for output in done[3:]] == [MAXIMUM] * 2
    assert scheduler.nightjar.fault == "after_step: RuntimeError: broken on purpose"


def test_a_note_reaches_a_worker_process_as_nothing(sync: Engines) -> None:
    scheduler = start(sync)
    (output,) = run_steps(scheduler, 1)
    assert pickle.loads(pickle.dumps(output)).nightjar_note is None


def test_a_steered_scheduler_schedules_the_same_tokens_as_plain_vllm(folder: Path) -> None:
    scheduled = []
    for scheduler_class in (Scheduler, SteeredScheduler):
        scheduler = make_scheduler(scheduler_class, folder, max_num_batched_tokens=64)
        for index in range(5):
            scheduler.add_request(make_request(f"request-{index}", prompt_tokens=10 + 7 * index, max_tokens=30))
        scheduled.append([output.num_scheduled_tokens for output in run_steps(scheduler, 20, _every_second)])
    assert scheduled[0] == scheduled[1]


def _every_second(name: str, drafts: int) -> int:
    return drafts // 2


def _aborted() -> Any:
    from vllm.v1.request import RequestStatus

    return RequestStatus.FINISHED_ABORTED


def test_drafts_that_are_verified_beside_prefill_are_as_many_as_the_plan_has_for_that(both: Engines) -> None:
    scheduler = start(both, requests=2, max_num_batched_tokens=64)
    steer(scheduler, "auto", plan=table((1, 16, 3)).model_copy(update={"mixed_rows": table((1, 16, 1)).rows}))
    run_steps(scheduler, 6, in_flight=both.in_flight)
    scheduler.add_request(make_request("long", prompt_tokens=150))
    ordered: list[tuple[bool, int]] = []
    before_step = scheduler.nightjar.before_step

    def watched(output: Any, requests: Any, *rest: Any, **named: Any) -> None:
        before_step(output, requests, *rest, **named)
        request = requests["long"]
        chunk = output.num_scheduled_tokens.get("long", 0)
        ordered.append((request.num_computed_tokens + chunk < request.num_tokens, output.num_spec_tokens_to_schedule))

    scheduler.nightjar.before_step = watched
    run_steps(scheduler, 8, in_flight=both.in_flight)
    assert scheduler.nightjar.fault == ""
    assert [length for _, length in ordered] == [1 if leaves_a_part else 3 for leaves_a_part, _ in ordered]
    assert 2 <= sum(leaves_a_part for leaves_a_part, _ in ordered) < len(ordered)


@pytest.mark.parametrize(("burst", "max_tokens", "k"), [(1, 9, 3), (2, 9, 3), (6, 9, 0), (6, 1, 3)])
def test_the_step_that_reads_the_prompts_of_a_burst_drafts_for_the_batch_that_will_verify(
    both: Engines, burst: int, max_tokens: int, k: int
) -> None:
    scheduler, plan = start(both, requests=2, can_be_dormant=True), table((1, 4, 3), (5, 16, 0))
    steer(scheduler, "auto", plan=plan)
    run_steps(scheduler, 3, in_flight=both.in_flight)
    for index in range(burst):
        scheduler.add_request(make_request(f"burst-{index}", max_tokens=max_tokens))
    ran: list[tuple[int, int, int, bool]] = []
    before_step = scheduler.nightjar.before_step

    def watched(output: Any, *rest: Any, **named: Any) -> None:
        before_step(output, *rest, **named)
        load = scheduler.nightjar.snapshot(EngineLoad(num_running_reqs=1), DrafterState.IN_SYNC, (), "").load
        reads = getattr(output, WORK_ATTRIBUTE).runs
        ran.append((len(output.scheduled_new_reqs), load.decode_batch_size, output.num_spec_tokens_to_schedule, reads))

    scheduler.nightjar.before_step = watched
    run_steps(scheduler, 4, in_flight=both.in_flight)
    assert scheduler.nightjar.fault == ""
    assert ran[0] == (burst, 2 if k else 2 + burst, k, k > 0), "a draft model reads no prompts of rows that are not drafted for"
    assert [length for _, _, length, _ in ran] == [k_at(plan.rows, size) for _, size, _, _ in ran]


def test_a_draft_model_drafts_on_for_the_rows_that_decode_while_a_prompt_is_read_in_parts_that_will_be_one_row_too_many(
    both: Engines,
) -> None:
    scheduler, plan = start(both, requests=4, can_be_dormant=True, max_num_batched_tokens=64), table((1, 4, 3), (5, 16, 0))
    steer(scheduler, "auto", plan=plan)
    run_steps(scheduler, 3, in_flight=both.in_flight)
    scheduler.add_request(make_request("long", prompt_tokens=200))
    outputs = run_steps(scheduler, 9, in_flight=both.in_flight)
    parts = [output for output in outputs if output.nightjar_note.prefill_tokens]
    assert scheduler.nightjar.fault == ""
    assert len(parts) > 3
    assert {(output.num_spec_tokens_to_schedule, getattr(output, WORK_ATTRIBUTE).runs) for output in parts} == {(3, True)}
    assert [output.num_spec_tokens_to_schedule for output in outputs[-2:]] == [0, 0], "five rows decode"
