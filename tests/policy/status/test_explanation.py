"""Why a replica's K is what it is: each authority speaks for itself, and the first one that decides is the answer."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from nightjar.policy.operator.overrides import ModeOverride
from nightjar.policy.status.causes import InForce
from nightjar.policy.status.explanation import UnknownReplicaError, explain, find_replica
from nightjar.policy.wire.cause import Code, because
from nightjar.policy.wire.explanation import Explanation
from nightjar.policy.wire.mode import Mode
from nightjar.policy.wire.operator import parse_operator_settings
from nightjar.policy.wire.report import DrafterCounters, DrafterState, EngineLoad, EngineSnapshot, RestartWish
from nightjar.policy.wire.settings import SettingsVersion
from tests.policy.engines import AUTO, KEY, Fleet, Replica, best_k

LEARNED = Fleet([Replica("chat#r1", batch=4), Replica("chat#r2", batch=4)])
LEARNED.run(30.0)


def of(
    asked: str = "chat#r1", *, overrides: tuple[ModeOverride, ...] = (), in_force: InForce | None = None, **said: Any
) -> Explanation:
    """The explanation of a replica whose last report says this; fields of the snapshot, else of the report."""
    fleet = Fleet(LEARNED.replicas, overrides=overrides, state=LEARNED.state, now_s=LEARNED.now_s)
    report = LEARNED.replicas[0].report()
    in_snapshot = {name: value for name, value in said.items() if name in EngineSnapshot.model_fields}
    in_report = {name: value for name, value in said.items() if name not in in_snapshot}
    fleet.observe(report.model_copy(update={"snapshot": report.snapshot.model_copy(update=in_snapshot), **in_report}))
    assert fleet.refusals == []
    fleet.decide_only()
    return explain(fleet.state, fleet.decisions, fleet.settings, fleet.overrides, asked, fleet.now_s, in_force)


def load(batch: int = 4, runs: int = 0, planned: int = 0) -> EngineLoad:
    return EngineLoad(decode_batch_size=batch, num_speculative_tokens=runs, planned_num_speculative_tokens=planned)


def words(explained: Explanation, who: str) -> str:
    return "; ".join(statement.words for statement in explained.statements if statement.who == who)


def test_the_plan_decides_where_nobody_else_does_and_says_what_it_predicts() -> None:
    explained = of(load=load(runs=3, planned=3), causes=(because(Code.PLAN),))
    assert explained.decided_by == "planner fleet"
    assert explained.summary.startswith("K=3 at decode batch 4: batch 4-5: K=3 gives ")
    assert explained.planned_num_speculative_tokens == best_k(4) == 3
    assert words(explained, "mode") == "mode auto set by the settings"


def test_every_k_comes_with_what_was_predicted_with_its_doubt_and_what_was_measured() -> None:
    explained = of()
    by_k = {one.num_speculative_tokens: one for one in explained.arms}
    assert list(by_k) == [0, 1, 3, 5]
    assert (explained.first_batch_size, explained.last_batch_size) == (4, 5)
    off, best = by_k[0], by_k[3]
    assert best.predicted_tokens_per_s is not None
    assert off.predicted_tokens_per_s is not None
    assert best.gain_over_off == pytest.approx(best.predicted_tokens_per_s / off.predicted_tokens_per_s - 1.0)
    assert best.measured_tokens_per_s == pytest.approx(best.predicted_tokens_per_s, rel=0.05)
    assert 0.0 < (best.gain_deviation or 0.0) < 0.1
    assert (off.gain_over_off, off.gain_deviation) == (None, None)
    assert best.clean_steps > 100
    assert best.measured_age_s == pytest.approx(0.0, abs=1.0)


def test_an_override_beats_the_plan_and_is_told_with_reason_and_expiry() -> None:
    override = ModeOverride(
        scope="application", name="chat", mode=Mode.parse("off"), reason="incident", expires_at_s=LEARNED.now_s + 90.0
    )
    explained = of(overrides=(override,), load=load(), causes=(because(Code.OFF),))
    assert explained.decided_by == "mode"
    assert explained.summary == "off at decode batch 4: mode off set by application chat by hand (incident), for 90 s more"


def test_shadow_says_what_the_plan_would_run() -> None:
    override = ModeOverride(scope="fleet", mode=Mode.parse("shadow"))
    explained = of(overrides=(override,), load=load(runs=5))
    assert explained.summary.endswith("set by fleet by hand, until taken back; nothing is touched, the plan would run K=3")


def test_a_replica_beside_adaptive_verification_begins_in_shadow_and_says_what_ends_that() -> None:
    adaptive = KEY.model_copy(update={"adaptive_verification": True})
    fleet = Fleet([Replica("chat#r1", batch=4)])
    fleet.observe(fleet.replicas[0].report(group=adaptive))
    fleet.decide()
    explained = explain(fleet.state, fleet.decisions, fleet.settings, (), "chat#r1", fleet.now_s)
    assert explained.mode == fleet.decisions["chat#r1"].mode == Mode.parse("shadow")
    assert explained.censored_acceptance
    beside = "the settings' auto, which beside vLLM's adaptive verification waits for a mode by hand"
    assert words(explained, "mode").startswith(f"mode shadow set by {beside}; nothing is touched")
    by_hand = ModeOverride(scope="application", name="chat", mode=Mode.parse("auto"))
    fleet.overrides = (by_hand,)
    fleet.decide()
    assert fleet.decisions["chat#r1"].mode == Mode.parse("auto")


def test_the_replicas_own_kill_switch_beats_every_override() -> None:
    override = ModeOverride(scope="replica", name="chat#r1", mode=Mode.parse("pin=1"))
    explained = of(overrides=(override,), local_mode=Mode.parse("off"), load=load())
    assert (explained.decided_by, explained.mode) == ("kill switch", Mode.parse("off"))
    assert "pin=1" in words(explained, "mode")


def test_a_local_mode_of_auto_leaves_the_answer_to_the_plan_also_under_an_override() -> None:
    override = ModeOverride(scope="fleet", mode=Mode.parse("off"))
    explained = of(overrides=(override,), local_mode=Mode.parse("auto"), load=load(runs=3, planned=3))
    assert explained.decided_by == "planner fleet"


@pytest.mark.parametrize(
    ("said", "decided_by", "part"),
    [
        ({"serving_plainly": "suffix is not known"}, "engine", "served plainly, not steered: suffix is not known"),
        ({"fault": "KeyError: 'r7'"}, "engine", "since an error in the hooks: KeyError: 'r7'"),
        ({"load": load(), "causes": (because(Code.AGED),)}, "settings", "its settings are older than 300 s"),
        ({"refused": "plan.planner 'x' is unknown"}, "settings", "refused the newest settings: plan.planner 'x'"),
        ({"load": load(planned=0), "held_buckets": (3,)}, "guard", "the guard holds batch 4-5 off"),
        ({"load": load(), "causes": (because(Code.DWELL),)}, "dwell", "until the present K was held for 4 steps"),
        ({"load": load(), "causes": (because(Code.MIXED),)}, "prefill", "such steps never raise an engine's own K"),
        ({"load": load(), "causes": (because(Code.CHECKING),)}, "guard", "checks by some steps at K=0"),
        (
            {
                "load": load(planned=3),
                "drafter_state": DrafterState.DORMANT,
                "causes": (because(Code.PLAN), because(Code.REQUESTS, num_speculative_tokens=0)),
            },
            "requests",
            "no request of the step takes more than K=0",
        ),
        ({"load": load(runs=1, planned=1), "causes": (because(Code.BESIDE_PREFILL),)}, "prefill", "for which the plan has K=1"),
    ],
)
def test_whoever_disposes_is_the_answer(said: dict[str, Any], decided_by: str, part: str) -> None:
    explained = of(**said)
    assert explained.decided_by == decided_by
    assert part in explained.summary


def test_a_guard_that_holds_another_batch_is_told_and_decides_nothing() -> None:
    explained = of(load=load(runs=3, planned=3), held_buckets=(9,))
    assert "batch 32-47" in words(explained, "guard")
    assert explained.decided_by == "planner fleet"


def test_inv_10_of_a_guard_that_holds_batches_that_no_engine_has_the_others_are_shown() -> None:
    explained = of(load=load(runs=3, planned=3), held_buckets=(9, 40, 63))
    assert words(explained, "guard").startswith("the guard holds batch 32-47 off: ")


def test_inv_8_a_report_gives_few_causes_of_its_last_step() -> None:
    snapshot = dict(LEARNED.replicas[0].report().snapshot)
    EngineSnapshot.model_validate(snapshot | {"causes": (because(Code.DWELL),) * 8})
    with pytest.raises(ValidationError, match="at most 8 items"):
        EngineSnapshot.model_validate(snapshot | {"causes": (because(Code.DWELL),) * 9})


def test_a_drafter_that_waits_for_a_lease_says_for_what_and_for_how_long() -> None:
    explained = of(
        load=load(planned=3),
        drafter_state=DrafterState.DORMANT,
        drafter=DrafterCounters(lag_tokens=5000, reason="waits for a lease to restart"),
        restart_wish=RestartWish(wish_id=1, lag_tokens=5000),
    )
    assert explained.decided_by == "drafter"
    assert explained.summary.startswith("off at decode batch 4: the drafter is dormant; waits for a lease to restart; ")
    assert "it wishes to restart over 5000 tokens that its draft missed, for 0 s" in explained.summary


def test_memory_pressure_is_told_with_what_was_lent() -> None:
    lent = DrafterCounters(borrowed_blocks=120, reason="waits for a lease to restart")
    explained = of(load=load(planned=3), drafter_state=DrafterState.OFFLOADED, drafter=lent)
    assert "the drafter is offloaded; under memory pressure 120 KV blocks of its memory are lent to requests" in explained.summary


def test_a_dormant_drafter_is_no_reason_where_the_plan_itself_is_off() -> None:
    plans_off = parse_operator_settings({"mode": "auto", "planner": "off"})
    fleet = Fleet([Replica("chat#r1", batch=4)], settings=plans_off)
    fleet.run(2.0)
    explained = explain(fleet.state, fleet.decisions, fleet.settings, (), "chat#r1", fleet.now_s)
    assert (explained.decided_by, explained.planned_num_speculative_tokens) == ("planner off", 0)
    assert [one.predicted_tokens_per_s for one in explained.arms] == [None] * len(explained.arms)


def test_a_measurement_under_way_is_the_answer_while_it_runs() -> None:
    fleet = Fleet([Replica("chat#r1", batch=4)])
    while not fleet.state.groups or not next(iter(fleet.state.groups.values())).exploration.segments:
        fleet.run(0.5)
    report = fleet.replicas[0].report()
    snapshot = report.snapshot.model_copy(update={"causes": (because(Code.SEGMENT),)})
    fleet.observe(report.model_copy(update={"snapshot": snapshot}))
    explained = explain(fleet.state, fleet.decisions, fleet.settings, (), "chat#r1", fleet.now_s)
    assert explained.decided_by == "measurement"
    assert "so that its group learns what it gives" in explained.summary


def test_settings_on_their_way_and_an_old_report_are_said() -> None:
    version = SettingsVersion(incarnation=3, sequence=18)
    explained = of(in_force=InForce(version, is_confirmed=False))
    assert "in force are 3.18" in words(explained, "settings")
    assert explained.settings_confirmed is False
    late = explain(LEARNED.state, LEARNED.decisions, AUTO, (), "chat#r1", LEARNED.now_s + 20.0)
    assert words(late, "report") == "the last report is 20 s old: all of this is as of then"


def test_an_idle_replica_and_one_without_a_decision_say_so() -> None:
    assert of(load=load(batch=0, runs=3)).summary.startswith("idle, its last step ran K=3: ")
    fleet = Fleet([Replica("new", batch=1)])
    fleet.observe(fleet.replicas[0].report())
    explained = explain(fleet.state, {}, AUTO, (), "new", 0.0)
    assert (explained.decided_by, explained.planned_num_speculative_tokens) == ("policy", None)


def test_a_part_of_an_id_that_no_other_has_is_enough() -> None:
    assert of("r1").replica_id == "chat#r1"
    with pytest.raises(UnknownReplicaError, match=r"2 replicas go by 'chat'; there are chat#r1, chat#r2$"):
        find_replica({"chat#r2": "chat", "chat#r1": "chat"}, "chat")


def test_a_replica_is_found_by_the_name_that_status_shows_whatever_its_id_holds() -> None:
    replicas = {"pjh92kr0": "chat", "a1b2c3d4": "mail", "mail#LLM#xyz": "mail"}
    for asked, found in (("chat/pjh92kr0", "pjh92kr0"), ("chat", "pjh92kr0"), ("mail/xyz", "mail#LLM#xyz"), ("l/a1", "a1b2c3d4")):
        assert find_replica(replicas, asked) == found


def test_an_unknown_replica_names_those_that_exist() -> None:
    with pytest.raises(UnknownReplicaError, match=r"no replica 'x'; there are r00, r01, .*, r09 and 15 more$"):
        find_replica({f"r{number:02}": "chat" for number in range(25)}, "x")
    with pytest.raises(UnknownReplicaError, match="no replica ''; there are none"):
        find_replica({}, "")
