"""A restart that fails in silence on a real engine: acceptance gives it away, and the next one has to wait (INV-1 all along)."""

from __future__ import annotations

from typing import Any

import pytest

from nightjar.policy.step.drafter import FIRST_HOLD_S
from tests.engine.comparing import difference
from tests.engine.probe_scenarios import BATCH, HELD_BATCH, RESTART_AFTER_STEPS

pytestmark = pytest.mark.engine

STORY = ["works", "fails", "held", "fails again", "held for longer", "mended"]
FAILURES_SO_FAR = [0, 1, 1, 2, 2, 2]
HELD = "its drafts were not accepted after the last restart: no other for "


@pytest.mark.parametrize("chapter", STORY)
def test_inv_1_greedy_output_is_plain_vllms(chapter: str, reference: dict[str, Any], probe: dict[str, Any]) -> None:
    batch = HELD_BATCH if chapter.startswith("held") else BATCH
    problems = [difference(request, reference["greedy"], probe[chapter]["outputs"]) for request in batch]
    assert [problem for problem in problems if problem] == []
    assert probe[chapter]["end"]["fault"] == ""


@pytest.mark.parametrize(("chapter", "failures"), [*zip(STORY, FAILURES_SO_FAR, strict=True)])
def test_failed_probes_are_counted_in_the_snapshot(chapter: str, failures: int, probe: dict[str, Any]) -> None:
    assert probe[chapter]["end"]["counters"]["failed_probes"] == failures


@pytest.mark.parametrize("chapter", ["fails", "fails again"])
def test_a_drafter_whose_drafts_are_thrown_away_after_a_restart_goes_back_to_dormant(chapter: str, probe: dict[str, Any]) -> None:
    states = [state for state, _ in probe[chapter]["steps"]]
    assert "catching_up" in states[RESTART_AFTER_STEPS:]
    probing = states.index("probing")
    assert "active" not in states[RESTART_AFTER_STEPS:]
    assert set(states[states.index("dormant", probing) :]) == {"dormant"}
    assert probe[chapter]["end"]["drafter_state"] == "dormant"


@pytest.mark.parametrize(("chapter", "hold_s"), [("fails", FIRST_HOLD_S), ("fails again", 2 * FIRST_HOLD_S)])
def test_the_reason_says_for_how_long_there_is_no_other_restart(chapter: str, hold_s: float, probe: dict[str, Any]) -> None:
    reasons = [reason for _, reason in probe[chapter]["steps"] if reason.startswith(HELD)]
    assert reasons[0] == f"{HELD}{hold_s:.0f} s"


@pytest.mark.parametrize(("before", "held"), [("fails", "held"), ("fails again", "held for longer")])
def test_while_it_is_held_nothing_restarts_and_no_lease_is_wished_for(before: str, held: str, probe: dict[str, Any]) -> None:
    outcome = probe[held]
    assert outcome["restarts"] == probe[before]["restarts"]
    assert {state for state, _ in outcome["steps"]} == {"dormant"}
    assert all(reason.startswith(HELD) for _, reason in outcome["steps"][RESTART_AFTER_STEPS + 1 :])
    assert outcome["end"]["restart_wish"] is None


def test_a_mended_drafter_passes_its_probe_after_the_hold_and_runs(probe: dict[str, Any]) -> None:
    states = [state for state, _ in probe["mended"]["steps"]]
    assert states[-1] == probe["mended"]["end"]["drafter_state"] == "active"
    assert "probing" in states
    assert probe["mended"]["end"]["drafter"]["reason"] == ""
