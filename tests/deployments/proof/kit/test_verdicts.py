"""A phase is proved where everything that it looks at holds, and failed by any one thing that does not."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from nightjar.deployments.proof.kit.plan import PHASES, phase_named
from nightjar.deployments.proof.kit.tasks import Verdict
from tests.deployments.proof.kit.outcomes import ON_RIG, answer, good_run, step

Change = Callable[[dict[str, Any]], object]


def test_a_run_in_which_all_is_well_is_proved_and_measured_and_every_task_of_every_phase_is_judged() -> None:
    run = good_run()
    assert {task.file_name for phase in PHASES for task in phase.tasks(ON_RIG)} == run.keys()
    verdicts = {phase.name: phase.judge(run, ON_RIG) for phase in PHASES}
    assert {name: found.verdict for name, found in verdicts.items()} == {
        phase.name: Verdict.MEASURED if phase.name in {"off", "contest"} else Verdict.PROVED for phase in PHASES
    }, [found.sentences for found in verdicts.values()]


@pytest.mark.parametrize("phase", PHASES, ids=lambda phase: phase.name)
def test_a_task_that_did_not_end_well_fails_its_phase_and_says_why(phase: Any) -> None:
    run = good_run()
    failed = phase.tasks(ON_RIG)[-1]
    run[failed.file_name] = {"error": "RuntimeError: out of memory"}
    found = phase.judge(run, ON_RIG)
    assert found.verdict is Verdict.FAILED
    assert found.sentences[0] == f"{failed.name} did not end well: RuntimeError: out of memory"


WRONG: list[tuple[str, Change, str]] = [
    ("facts", lambda run: run["facts.machine"]["replaced"].append("Event"), "replaced torch.cuda.Event"),
    ("facts", lambda run: run["facts.machine"]["missing"]["sleeping"].append("X.y"), "lacks what sleeping hooks into: X.y"),
    ("start-up", lambda run: run["start-up.head"].update(steering="plainly", reason="refused"), "head: not steered: refused"),
    ("start-up", lambda run: run["start-up.draft"].update(tokens=3), "draft: answered 3 tokens of 16"),
    (
        "correctness",
        lambda run: run["correctness.head"]["scenarios"]["changing K"]["answers"].update(a=answer(1, 99, 3)),
        "head: changing K, a: token 1 is 99, plain decoding's 2",
    ),
    ("correctness", lambda run: run["correctness.draft"].update(fault="leave: X"), "draft: fault: leave: X"),
    (
        "correctness",
        lambda run: run["correctness.draft"]["scenarios"]["changing K"]["ranks"][0].append(step(0, 1)),
        "draft: changing K, step 4: K = 0 took 1 forwards",
    ),
    ("correctness", lambda run: run["correctness.head-sync"].update(serving_plainly="why"), "head-sync: served plainly: why"),
    ("random-K", lambda run: run["random-K.draft"]["batches"][0]["steps"].append(step(2, 3)), "K = 2 took 3 forwards"),
    ("random-K", lambda run: run["random-K.head"]["batches"][0]["steps"].pop(), "head: K = 2 was never ordered"),
    ("random-K", lambda run: run["random-K.head"].update(fault="before_step: X"), "head: before_step: X"),
    (
        "catch-up",
        lambda run: run["catch-up.draft"]["lags"]["catch-up-8"]["steps"][2].update(forwards=1),
        "catch-up-8: it ran forwards while it slept",
    ),
    (
        "catch-up",
        lambda run: run["catch-up.draft"]["lags"]["catch-up-24"]["steps"][-1].update(verified={}),
        "catch-up-24: no draft was verified after it woke",
    ),
    ("catch-up", lambda run: run["catch-up.draft"]["lags"]["catch-up-8"].update(recomputed_tokens=0), "it read nothing again"),
    ("lending", lambda run: run["lending.draft"]["cycles"][1].update(missed="it never came back"), "cycle 2: it never came back"),
    ("lending", lambda run: run["lending.draft"]["cycles"][0].update(answers={"a": answer(1, 99)}), "cycle 1, a: token 1"),
    (
        "coming-back",
        lambda run: run["coming-back.head"].update(after_off=[100, 20]),
        "head: after an off stretch 0.200 of the drafts are accepted, never off 0.500",
    ),
    ("coming-back", lambda run: run["coming-back.draft"].update(after_off=[20, 10]), "draft: 20 drafts were verified (after off)"),
    (
        "coming-back",
        lambda run: run["coming-back.head"].update(verified_while_off=9),
        "head: it was not off: drafts were",
    ),
    ("coming-back", lambda run: run["coming-back.draft"].update(never_off=[100, 0]), "draft: after an off stretch"),
    ("coming-back", lambda run: run["coming-back.draft"].update(answers={"a": answer(1, 99)}), "draft, a: token 1 is 99"),
    (
        "catch-up",
        lambda run: run["catch-up.draft"]["lags"]["catch-up-24"].update(recomputed_tokens=30),
        "catch-up-24: it read 30 tokens again and had missed 3",
    ),
    ("facts", lambda run: run["facts.machine"]["missing"]["heads"].append("Z"), "lacks what heads hooks into: Z"),
    ("contest", lambda run: run["contest.draft"].update(unable={"Nightjar": "no"}), "draft: Nightjar did not take part: no"),
    ("failing-open", lambda run: run["failing-open.refused"].update(was_refused=False), "it was not the refusing worker"),
    ("failing-open", lambda run: run["failing-open.refused"].update(reason=""), "did not say that it serves plainly"),
    ("failing-open", lambda run: run["failing-open.refused"].update(remembered=False), "the refusal was not remembered"),
    ("failing-open", lambda run: run["failing-open.fault-head"].update(fault=""), "fault-head: the fault was not told"),
    (
        "failing-open",
        lambda run: run["failing-open.required"]["cases"]["a vLLM without our hooks, required"].update(launched=1),
        "a vLLM without our hooks, required: 1 engines were started, expected 0",
    ),
    (
        "failing-open",
        lambda run: run["failing-open.required"].update(kwargs_are_the_users=False),
        "got other arguments",
    ),
]


@pytest.mark.parametrize(("phase", "change", "words"), WRONG, ids=[f"{phase}-{number}" for number, (phase, *_) in enumerate(WRONG)])
def test_one_thing_that_does_not_hold_fails_its_phase_and_is_named(phase: str, change: Change, words: str) -> None:
    run = good_run()
    change(run)
    found = phase_named(phase).judge(run, ON_RIG)
    assert found.verdict is Verdict.FAILED
    assert any(words in sentence for sentence in found.sentences), found.sentences


def test_on_a_gpu_a_machine_without_one_fails_and_near_ties_of_half_precision_are_counted() -> None:
    on_gpu = dataclasses.replace(ON_RIG, rehearsal="")
    run = good_run()
    assert "torch finds no GPU" in phase_named("facts").judge(run, on_gpu).sentences[0]
    run["correctness.plain"]["scenarios"]["changing K"]["answers"]["a"]["logprobs"][1]["99"] = -0.2
    changed = run["correctness.draft"]["scenarios"]["changing K"]["answers"]
    changed["a"] = answer(1, 99, 7)
    found = phase_named("correctness").judge(run, on_gpu)
    row = next(row for row in found.tables[0].rows if row[0] == "draft")
    assert row[2:5] == ["1 of 1", "1", "1"]
    assert phase_named("correctness").judge(run, ON_RIG).verdict is Verdict.FAILED


def test_what_needs_a_model_that_is_not_there_is_left_out() -> None:
    head_alone = dataclasses.replace(ON_RIG, draft="")
    for name in ("catch-up", "lending"):
        assert not phase_named(name).tasks(head_alone)
        assert phase_named(name).judge({}, head_alone).verdict is Verdict.LEFT_OUT
    made_on_gpu = dataclasses.replace(ON_RIG, rehearsal="")
    assert phase_named("lending").judge({}, made_on_gpu).verdict is Verdict.LEFT_OUT


def test_a_contests_round_that_gave_nothing_shows_in_its_number_of_rounds() -> None:
    run = good_run()
    ours = [row for row in run["contest.draft"]["rows"] if row["contender"] == "Nightjar"]
    ours[0]["tokens"] = 0
    (table,) = phase_named("contest").judge(run, ON_RIG).tables
    rounds = sum(row["load"] == ours[0]["load"] for row in ours)
    assert f"{rounds - 1} of {rounds}" in [row[-1] for row in table.rows]


def test_a_contender_or_a_pair_that_cannot_run_is_told_and_fails_nothing() -> None:
    run = good_run()
    run["contest.draft"].update(unable={"adaptive verification": "not for this drafter"})
    found = phase_named("contest").judge(run, ON_RIG)
    assert found.verdict is Verdict.MEASURED
    assert "draft: adaptive verification did not take part: not for this drafter" in found.sentences
    for name in ("draft", "head"):
        run[f"off.{name}"] = {"places": [], "unable": "No available memory"}
    found = phase_named("off").judge(run, ON_RIG)
    assert found.verdict is Verdict.LEFT_OUT
    assert "does not fit this machine: No available memory" in found.sentences[0]
