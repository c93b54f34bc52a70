"""Off against plain vLLM: places that fit, turns that cancel drift, and times of steps in which all rows decode."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, Self

import pytest

from nightjar.deployments.proof.kit.chosen import ON_A_GPU
from nightjar.deployments.proof.kit.engines import EngineSpec
from nightjar.deployments.proof.kit.metered import all_rows_decoding
from nightjar.deployments.proof.kit.phases import off
from nightjar.deployments.proof.kit.plan import phase_named
from nightjar.deployments.proof.kit.tasks import Task
from tests.deployments.proof.kit.outcomes import ON_RIG, good_run, place


class Scripted:
    """A vLLM engine whose steps give each request, by its number, as many tokens in all; None: no output of it."""

    def __init__(self, *steps: Sequence[int | None], tokens: int) -> None:
        self._steps, self._tokens = list(steps), tokens

    def has_unfinished_requests(self) -> bool:
        return bool(self._steps)

    def step(self) -> list[Any]:
        return [
            SimpleNamespace(
                request_id=str(number), outputs=[SimpleNamespace(token_ids=[0] * count)], finished=count == self._tokens
            )
            for number, count in enumerate(self._steps.pop(0))
            if count is not None
        ]


def test_a_time_is_of_the_steps_between_every_rows_first_token_and_the_first_rows_last() -> None:
    clock = itertools.count(10.0, 2.0)
    engine = Scripted([1, None], [2, 1], [3, 2], [4, 3], [5, 4], [None, 5], tokens=5)
    assert all_rows_decoding(engine, 2, lambda: next(clock)) == {"tokens": 4.0, "seconds": 4.0}


def test_a_row_that_begins_when_another_is_done_gives_no_time() -> None:
    assert all_rows_decoding(Scripted([1, None], [2, None], [None, 1], [None, 2], tokens=2), 2) == {"tokens": 0.0, "seconds": 0.0}


def test_rows_are_as_many_as_the_cache_holds_and_a_context_that_fits_no_row_is_left_out() -> None:
    def found(kv_tokens: int, longest: int = 32128) -> list[tuple[int, int]]:
        return [(each["rows"], each["context"]) for each in off.places_within(kv_tokens, longest, ON_A_GPU)]

    assert found(1 << 20) == [(4, 64), (8, 64), (64, 64), (256, 64), (4, 32000)]
    assert found(70_000) == [(4, 64), (8, 64), (64, 64), (256, 64), (2, 32000)]
    assert found(20_000) == [(4, 64), (8, 64), (64, 64), (104, 64)]
    assert found(1 << 20, longest=4096)[-1] == (4, 3968)


class FakeEngine:
    """Plain vLLM and ours, which slow down by a tenth with each engine that starts."""

    started: ClassVar[list[EngineSpec]] = []
    held: ClassVar[list[int]] = []
    refuses: ClassVar[str] = ""
    refused_rooms: ClassVar[tuple[str, ...]] = ("long", "short")

    def __init__(self, spec: EngineSpec, *_: object) -> None:
        if self.refuses and spec.room in self.refused_rooms:
            raise RuntimeError(self.refuses)
        self.started.append(spec)
        self._seconds = 1.0 + 0.1 * len(self.started)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def hold(self, num_speculative_tokens: int) -> None:
        self.held.append(num_speculative_tokens)

    def kv_tokens(self) -> int:
        return 10_000

    def decode(self, *_: int) -> dict[str, float]:
        return {"tokens": 100.0, "seconds": self._seconds}


@pytest.fixture
def performed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], dict[str, Any]]:
    for name in ("started", "held"):
        monkeypatch.setattr(FakeEngine, name, [])
    monkeypatch.setattr(off, "MeteredEngine", FakeEngine)
    (tmp_path / "config.json").write_text("{}")
    chosen = dataclasses.replace(ON_RIG, target=str(tmp_path), work=str(tmp_path))
    return lambda: off.perform(Task("off", "draft"), chosen)


def test_both_take_two_turns_so_that_a_machine_that_slows_down_steadily_makes_neither_look_slower(performed: Any) -> None:
    outcome = performed()
    assert [(spec.stock, spec.drafter) for spec in FakeEngine.started] == [
        (False, "draft"),
        (True, "none"),
        (True, "none"),
        (False, "draft"),
    ]
    assert FakeEngine.held == [0, 0]
    run = good_run() | {"off.draft": outcome, "off.head": outcome}
    (table,) = phase_named("off").judge(run, ON_RIG).tables
    assert {row[5] for row in table.rows} == {"1.000"}
    assert {row[7] for row in table.rows} == {str(2 * ON_RIG.sizes.rounds)}


def test_a_target_that_does_not_fit_is_told_and_any_other_error_fails(performed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeEngine, "refuses", "KV cache memory is too small")
    assert performed() == {"places": [], "unable": "KV cache memory is too small"}
    monkeypatch.setattr(FakeEngine, "refuses", "not steered: why")
    with pytest.raises(RuntimeError, match="not steered"):
        performed()


def test_where_the_longest_context_does_not_fit_the_shorter_ones_are_measured_and_the_answer_says_so(
    tmp_path: Path, performed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeEngine, "refuses", "32128 tokens need more KV cache memory")
    monkeypatch.setattr(FakeEngine, "refused_rooms", ("long",))
    on_a_gpu = dataclasses.replace(ON_RIG, rehearsal="", target=str(tmp_path), work=str(tmp_path))
    outcome = off.perform(Task("off", "draft"), on_a_gpu)
    assert [(each["rows"], each["context"]) for each in outcome["places"]] == [
        (4, 64),
        (8, 64),
        (52, 64),
        (2, 3968),
        (4, 32000),
    ]
    run = good_run() | {"off.draft": outcome, "off.head": outcome}
    found = phase_named("off").judge(run, ON_RIG)
    first, *others = found.sentences
    assert first.startswith("Off keeps the wanted 0.97 of plain vLLM's tokens a second wherever it was measured: ")
    assert first.endswith("At the longest context: not measured, 32000 tokens.")
    assert [row[2] for row in found.tables[0].rows] == ["64", "64", "64", "3968"] * 2
    assert "draft: not measured at the longest context, since the engine does not fit this machine: 32128 tokens need" in others[0]


def test_the_first_sentence_says_whether_off_is_plain_enough_and_how_it_is_at_the_longest_context() -> None:
    run = good_run()
    run["off.head"] = {"places": [place(8, 64, 83.0), place(4, 32000, 99.0)], "unable": ""}
    assert phase_named("off").judge(run, ON_RIG).sentences[0] == (
        "Off keeps the wanted 0.97 of plain vLLM's tokens a second not everywhere: least 0.830 (0.830 to 0.830) (head, 8 rows of "
        "64 tokens). At the longest context: head, 4 rows of 32000 tokens 0.990 (0.990 to 0.990)."
    )


def test_a_context_without_a_ratio_is_told_as_that_and_no_shorter_one_stands_for_it() -> None:
    run = good_run() | {"off.draft": {"places": [], "unable": ""}}
    run["off.head"] = {"places": [place(8, 64, 99.0), place(4, 32000, 0.0)], "unable": ""}
    assert phase_named("off").judge(run, ON_RIG).sentences[0] == (
        "Off keeps the wanted 0.97 of plain vLLM's tokens a second wherever it was measured: least 0.990 (0.990 to 0.990) (head, 8 "
        "rows of 64 tokens). At the longest context: not measured, 32000 tokens."
    )


def test_a_place_where_no_round_had_all_rows_decoding_is_named() -> None:
    run = good_run()
    run["off.head"]["places"][0]["off"] = [{"tokens": 0.0, "seconds": 0.0}] * 6
    found = phase_named("off").judge(run, ON_RIG)
    assert "head: 4 rows of 64 tokens: no round in which all rows decoded at the same time" in found.sentences
