"""The fleet as operators and replicas meet it: it converges, calibrates once, obeys modes and never deals an illegal K."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nightjar.policy.decision.fleet import decide
from nightjar.policy.evidence.acceptance import AcceptanceEvidence
from nightjar.policy.evidence.catch_up import CatchUpEvidence
from nightjar.policy.evidence.cells import Cell, CellEvidence, Evidence
from nightjar.policy.intake import observe
from nightjar.policy.learned import LearnedGroup, LearnedTables
from nightjar.policy.operator.overrides import ModeOverride
from nightjar.policy.planners import LOCAL_PLANNERS
from nightjar.policy.state import FleetState, GroupState, forgotten, learned, with_learned
from nightjar.policy.status.explanation import explain
from nightjar.policy.status.fleet import fleet_status
from nightjar.policy.wire.mode import Mode
from nightjar.policy.wire.operator import PLANNER_NAMES, OperatorSettings, parse_operator_settings
from nightjar.policy.wire.record import MAX_RECORD_BYTES, WireError
from nightjar.policy.wire.report import EngineLoad, EngineSnapshot
from nightjar.policy.words import in_words
from tests.policy.engines import AUTO, KEY, Fleet, Replica, best_k, table


@pytest.mark.parametrize("batch", [1, 16, 64, 256])
def test_two_replicas_find_the_best_k_of_a_measured_engine(batch: int) -> None:
    fleet = Fleet([Replica("a", batch), Replica("b", batch)])
    fleet.run(8.0)
    assert fleet.planned(batch) == best_k(batch)
    assert not fleet.refusals


def test_a_fleet_whose_load_moves_learns_each_batch_and_needs_no_second_calibration() -> None:
    fleet = Fleet([Replica("a"), Replica("b")])
    for batch in (1, 16, 64, 256):
        fleet.replicas[0].batch = fleet.replicas[1].batch = batch
        fleet.run(8.0)
    dealt = dict(fleet.dealt)
    for batch in (256, 64, 16, 1):
        fleet.replicas[0].batch = fleet.replicas[1].batch = batch
        fleet.run(4.0)
        assert fleet.planned(batch) == best_k(batch)
    assert fleet.dealt == dealt
    assert len({(first, k) for _, first, k in dealt.values()}) == len(dealt), "a cell was measured twice"


def test_a_cold_group_at_a_full_batch_is_off_whatever_its_engines_ran_before() -> None:
    fleet = Fleet([Replica("a", 256)])
    fleet.run(0.5)
    assert fleet.planned(256) == 0
    assert fleet.dealt


def test_a_cold_group_measures_off_within_its_first_decisions() -> None:
    fleet = Fleet([Replica("a", 16)])
    fleet.run(2.0)
    (group,) = fleet.state.groups.values()
    assert any(cell.num_speculative_tokens == 0 for cell in group.evidence.cells)


def test_a_newcomer_in_a_warm_group_runs_the_plan_at_once_and_measures_nothing() -> None:
    fleet = Fleet([Replica("a"), Replica("b")])
    fleet.run(8.0)
    dealt = len(fleet.dealt)
    fleet.replicas = [*fleet.replicas, Replica("c", now_s=fleet.now_s)]
    fleet.run(3.0)
    assert fleet.replicas[2].k == best_k(1)
    assert len(fleet.dealt) == dealt


def test_a_lost_segment_is_dealt_to_another_replica_under_a_new_id() -> None:
    mute = Replica("a")
    fleet = Fleet([mute, Replica("b", 0)])
    fleet.observe(mute.report())
    fleet.decide()
    first = next(iter(fleet.dealt))
    fleet.replicas = [fleet.replicas[1]]
    fleet.replicas[0].batch = 1
    fleet.run(60.0, period_s=1.0)
    assert max(fleet.dealt) > first
    assert fleet.planned(1) == best_k(1)


def test_no_replica_holds_more_than_two_segments_and_no_cell_lies_with_two_replicas_of_a_pair() -> None:
    fleet = Fleet([Replica("a"), Replica("b")])
    for _ in range(12):
        fleet.run(0.5)
        held = [table(decision).segments for decision in fleet.decisions.values()]
        assert all(len(segments) <= 2 for segments in held)
        cells = [(s.first_batch_size, s.num_speculative_tokens) for segments in held for s in segments]
        assert len(cells) == len(set(cells))


@pytest.mark.parametrize("kind", ["off", "pin=1", "shadow"])
def test_a_replica_that_is_not_in_auto_measures_nothing(kind: str) -> None:
    fleet = Fleet([Replica("a")], settings=OperatorSettings(mode=Mode.parse(kind)))
    fleet.run(3.0)
    assert not fleet.dealt


def test_off_and_pin_give_one_k_at_every_batch_and_say_who_set_them() -> None:
    overrides = (
        ModeOverride(scope="replica", name="a", mode=Mode.parse("pin=9"), reason="trial"),
        ModeOverride(scope="fleet", mode=Mode.parse("off")),
    )
    fleet = Fleet([Replica("a"), Replica("b")], overrides=overrides)
    fleet.run(1.0)
    pinned, off = fleet.decisions["a"], fleet.decisions["b"]
    assert [row.num_speculative_tokens for row in table(pinned).rows] == [5]
    assert in_words(pinned.causes) == "mode pin=9 set by replica a by hand (trial), lowered to K=5: the engine's maximum is 5"
    assert [row.num_speculative_tokens for row in table(off).rows] == [0]
    assert in_words(off.causes) == "mode off set by fleet by hand"


@pytest.mark.parametrize(("mode", "is_slower"), [("pin=2", True), ("pin=3", False), ("off", False)])
def test_a_pinned_k_that_has_no_graphs_of_its_own_runs_and_says_so(mode: str, is_slower: bool) -> None:
    tiered = KEY.model_copy(update={"graph_tiers": (0, 1, 3, 5)})
    said = "K=2 is none of the graph tiers 0, 1, 3, 5: its steps find no full CUDA graph and run slower"
    fleet = Fleet([], settings=OperatorSettings(mode=Mode.parse(mode)))
    fleet.observe(Replica("a").report(group=tiered))
    fleet.decide()
    decision = fleet.decisions["a"]
    assert table(decision).rows[0].num_speculative_tokens == (Mode.parse(mode).num_speculative_tokens or 0)
    assert (said in in_words(decision.causes)) is is_slower
    statements = explain(fleet.state, fleet.decisions, fleet.settings, (), "a", 0.0).statements
    (statement,) = [each for each in statements if each.who == "mode"]
    assert (said in statement.words) is is_slower
    fleet = Fleet([])
    fleet.observe(Replica("a").report(group=tiered, local_mode=Mode.parse(mode)))
    fleet.decide()
    _, (status,) = fleet_status(fleet.state, fleet.decisions, 0.0)
    assert (said in status.reason) is is_slower


def test_a_replica_that_serves_plainly_gets_only_off_and_is_told_why() -> None:
    fleet = Fleet([])
    fleet.observe(Replica("a").report(serving_plainly="suffix drafters assert K"))
    fleet.decide()
    assert table(fleet.decisions["a"]).rows[0].num_speculative_tokens == 0
    assert in_words(fleet.decisions["a"].causes) == "serves plainly, not steered: suffix drafters assert K"


def test_replicas_that_serve_plainly_have_no_counters_and_so_no_part_in_the_quorum_of_their_group() -> None:
    fleet, plain = Fleet([Replica("a", 16), Replica("b", 16)]), [Replica("c", 0), Replica("d", 0)]
    for _ in range(16):
        for replica in plain:
            fleet.observe(replica.report(serving_plainly="engine_kwargs set scheduler_cls themselves"))
        fleet.run(0.5)
    assert fleet.planned(16) == best_k(16)
    (group,) = fleet.state.groups.values()
    assert group.evidence.cells


def test_engines_that_failed_open_count_no_steps_and_so_have_no_part_in_the_quorum_of_their_group_and_measure_nothing() -> None:
    fleet, failed = Fleet([Replica("a", 16), Replica("b", 16)]), [Replica("c", 16), Replica("d", 16)]
    for _ in range(16):
        for replica in failed:
            report = replica.report()
            fleet.observe(report.model_copy(update={"snapshot": report.snapshot.model_copy(update={"fault": "KeyError: 'r7'"})}))
        fleet.run(0.5)
        assert set(fleet.decisions) == {"a", "b", "c", "d"}
        assert not any(table(fleet.decisions[replica.replica_id]).segments for replica in failed)
    assert fleet.planned(16) == best_k(16)
    _, replicas = fleet_status(fleet.state, fleet.decisions, fleet.now_s)
    assert [replica.replica_id for replica in replicas] == ["a", "b", "c", "d"]


def test_what_a_replica_noticed_and_a_fault_of_its_hooks_stand_before_the_reason() -> None:
    fleet = Fleet([])
    report = Replica("a").report(notice="user_config refused")
    fleet.observe(report.model_copy(update={"snapshot": report.snapshot.model_copy(update={"fault": "before_step: KeyError"})}))
    fleet.decide()
    _, (replica,) = fleet_status(fleet.state, fleet.decisions, fleet.now_s)
    assert replica.reason.startswith(
        "user_config refused; the engine runs its own K since an error in the hooks: before_step: KeyError; "
    )


def test_a_replicas_own_kill_switch_shows_in_status_and_keeps_it_from_measuring() -> None:
    fleet = Fleet([])
    fleet.observe(Replica("a").report(local_mode="off"))
    fleet.decide()
    _, (replica,) = fleet_status(fleet.state, fleet.decisions, fleet.now_s)
    assert str(replica.mode) == "off"
    assert replica.reason.startswith("mode off set in the replica's own user_config overrides; ")
    assert not table(fleet.decisions["a"]).segments


def test_status_says_in_words_why_and_what_is_measured() -> None:
    fleet = Fleet([Replica("a", 64)])
    fleet.run(0.5)
    _, (measuring,) = fleet_status(fleet.state, fleet.decisions, fleet.now_s)
    assert "measuring K=" in measuring.reason
    fleet.run(8.0)
    (group,), (settled,) = fleet_status(fleet.state, fleet.decisions, fleet.now_s)
    assert settled.reason.startswith("batch 64-95: K=1 gives ")
    assert "tok/s predicted against" in settled.reason
    assert settled.generated_tokens_per_s == pytest.approx(64 * 1.68 / 9.7e-3, rel=0.1)
    assert settled.acceptance[0] == pytest.approx(0.68, abs=0.05)
    assert (group.replicas, group.planner) == (1, "fleet")
    assert group.acceptance[0] == pytest.approx(0.68, abs=0.05)


def test_a_decision_stays_equal_while_nothing_changes() -> None:
    fleet = Fleet([Replica("a"), Replica("b")])
    fleet.run(12.0)
    before = fleet.decisions
    fleet.run(5.0)
    assert fleet.decisions == before


def test_a_silent_replica_is_dropped_after_its_timeout_and_what_the_group_learned_stays() -> None:
    fleet = Fleet([Replica("a")])
    fleet.run(8.0)
    fleet.replicas = []
    fleet.now_s += AUTO.replica_timeout_s + 1.0
    fleet.decide()
    assert not fleet.decisions
    assert not fleet.state.replicas
    assert fleet.planned(1) == best_k(1)


def test_what_was_learned_survives_a_restart_through_the_wire() -> None:
    fleet = Fleet([Replica("a"), Replica("b")])
    fleet.run(8.0)
    tables = learned(fleet.state)
    restored = with_learned(FleetState(), LearnedTables.from_wire(tables.to_wire()))
    assert learned(restored) == tables
    warm = Fleet([Replica("c")], state=restored)
    warm.run(2.0)
    assert warm.planned(1) == best_k(1)
    assert not warm.dealt
    assert restored.next_segment_id > max(fleet.dealt)


def test_a_group_all_of_whose_steps_have_prefill_is_stored_kept_without_replicas_and_read_back() -> None:
    known = Evidence(mixed_cells={Cell(3, 2, prefill=True): CellEvidence(40.0, rows=200.0, seconds=2.0, prefill_tokens=9000.0)})
    fleet = Fleet([], state=FleetState(groups={KEY.group_id: GroupState(KEY, known)}))
    fleet.decide()
    tables = learned(fleet.state)
    restored = with_learned(FleetState(), LearnedTables.from_wire(tables.to_wire()))
    assert restored.groups[KEY.group_id].evidence == known


def test_a_fleet_that_forgot_measures_again_learns_no_step_twice_and_keeps_its_leases() -> None:
    fleet = Fleet([Replica("a", 16), Replica("b", 64)])
    fleet.run(10.0)
    (before,) = fleet.state.groups.values()
    dealt = len(fleet.dealt)
    fleet.state = forgotten(fleet.state)
    fleet.decide_only()
    (after,) = fleet.state.groups.values()
    assert after.evidence.cells == {}
    assert after.restarts.open_leases == before.restarts.open_leases
    fleet.run(10.0)
    assert len(fleet.dealt) > dealt
    assert min(list(fleet.dealt)[dealt:]) > max(list(fleet.dealt)[:dealt])
    (known,) = learned(fleet.state).groups
    assert sum(cell.steps for cell in known.cells) < sum(
        replica.counters.snapshot("engine-1").step_count for replica in fleet.replicas
    )
    assert [fleet.planned(batch) for batch in (16, 64)] == [best_k(batch) for batch in (16, 64)]


def test_a_policy_that_remembers_counts_no_history_again_and_all_that_engines_do_from_then_on() -> None:
    fleet = Fleet([Replica("a", 16), Replica("b", 64)])
    fleet.run(10.0)
    tables = learned(fleet.state)
    fleet.state = with_learned(FleetState(), tables)
    for replica in fleet.replicas:
        fleet.observe(replica.report())
    fleet.decide()
    assert learned(fleet.state).groups == tables.groups
    before = stored_steps(fleet)
    fleet.run(1.0)
    assert before < stored_steps(fleet) < 1.3 * before


def test_a_policy_that_remembers_nothing_counts_what_engines_did_before_it() -> None:
    fleet = Fleet([Replica("a", 16)])
    fleet.run(10.0)
    fleet.state = FleetState()
    fleet.observe(fleet.replicas[0].report())
    fleet.decide()
    assert stored_steps(fleet) > 100


def stored_steps(fleet: Fleet) -> float:
    """Clean steps of the only group, as they are stored."""
    return sum(cell.steps for cell in learned(fleet.state).groups[0].cells)


evidence_cells = st.dictionaries(
    st.builds(Cell, st.integers(0, 23), st.integers(0, 32), st.just(value=False)),
    st.builds(
        CellEvidence,
        steps=st.floats(0.1, 1e6),
        log_seconds=st.floats(-1e6, 1e6),
        rows=st.floats(0.0, 1e9),
        context_tokens=st.floats(0.0, 1e12),
        log_seconds_squared=st.floats(0.0, 1e9),
        generated_tokens=st.floats(0.0, 1e9),
        **dict.fromkeys(("seconds", "prefill_tokens", "draft_tokens", "measured_at_s"), st.just(0.0)),
    ),
    max_size=20,
)


@given(evidence_cells, st.lists(st.tuples(st.floats(0.0, 1e6), st.floats(0.0, 1.0)), max_size=5))
def test_whatever_a_group_knows_survives_being_stored(
    cells: dict[Cell, CellEvidence], positions: list[tuple[float, float]]
) -> None:
    acceptance = AcceptanceEvidence(tuple(rows for rows, _ in positions), tuple(rows * share for rows, share in positions))
    stored = LearnedGroup.of(KEY, Evidence(cells, acceptance), CatchUpEvidence(1.0, 2.0, 3.0, 4.0, 5.0))
    read = LearnedGroup.from_wire(stored.to_wire())
    assert read.evidence() == Evidence(cells, acceptance)
    assert read.catch_up == CatchUpEvidence(1.0, 2.0, 3.0, 4.0, 5.0)


def test_segment_ids_rise_above_any_that_a_replica_reports_finished() -> None:
    replica = Replica("a")
    fleet = Fleet([replica])
    snapshot = EngineSnapshot(
        counters=replica.counters.snapshot("engine-1"), load=EngineLoad(decode_batch_size=1), finished_segment_id=41
    )
    fleet.observe(replica.report(snapshot=snapshot))
    fleet.decide()
    assert min(fleet.dealt) > 41


def test_stored_tables_of_an_unknown_version_are_refused() -> None:
    with pytest.raises(WireError, match="version"):
        LearnedTables.from_wire(LearnedTables().model_copy(update={"version": 3}).to_wire())


def test_the_stored_tables_of_a_full_fleet_fit_one_record() -> None:
    fleet = Fleet([Replica("a")])
    fleet.run(4.0)
    (group,) = fleet.state.groups.values()
    cells = {Cell(bucket, k): next(iter(group.evidence.cells.values())) for bucket in range(24) for k in range(33)}
    crowd = {}
    for number in range(1000):
        key = group.key.model_copy(update={"target": f"model-{number}"})
        crowd[key.group_id] = type(group)(key, type(group.evidence)(cells, group.evidence.acceptance))
    tables = learned(FleetState(groups=crowd))
    assert tables.groups
    assert len(tables.to_wire()) < MAX_RECORD_BYTES


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**32), batches=st.lists(st.sampled_from([0, 1, 5, 16, 64, 256]), min_size=1, max_size=4))
def test_same_reports_and_seed_give_the_same_decisions(seed: int, batches: list[int]) -> None:
    def history() -> list[object]:
        fleet = Fleet([Replica(f"r{index}", batch) for index, batch in enumerate(batches)], rng=random.Random(seed))
        outcomes: list[object] = []
        for _ in range(3):
            fleet.run(0.5)
            outcomes.append(fleet.decisions)
        return outcomes

    assert history() == history()


operator_settings = st.builds(
    lambda mode, planner, fixed, allowed: parse_operator_settings(
        {
            "mode": mode,
            "planner": planner,
            "num_speculative_tokens": fixed,
            "allowed_num_speculative_tokens": allowed,
            "num_speculative_tokens_per_batch_size": [[1, 4, 5], [9, 4000, 32]],
        }
    ),
    mode=st.sampled_from(["auto", "shadow", "off", "pin=0", "pin=3", "pin=32"]),
    planner=st.sampled_from([name for name in PLANNER_NAMES if name not in LOCAL_PLANNERS]),
    fixed=st.none() | st.integers(0, 32),
    allowed=st.none() | st.lists(st.sampled_from([0, 1, 3, 5]), max_size=3).map(tuple),
)


@settings(deadline=None, max_examples=60)
@given(
    chosen=operator_settings,
    maximum=st.integers(0, 5),
    batch=st.sampled_from([0, 1, 7, 256]),
    tiers=st.sampled_from([(), (0, 1, 3), (0, 4)]),
)
def test_every_k_is_legal_and_off_is_always_among_the_allowed(
    chosen: OperatorSettings, maximum: int, batch: int, tiers: tuple[int, ...]
) -> None:
    group = KEY.model_copy(update={"max_num_speculative_tokens": maximum, "graph_tiers": tiers})
    state, ignored = observe(FleetState(), Replica("a", batch).report(group=group), 0.0, chosen)
    assert not ignored
    decisions, _ = decide(state, chosen, (), 0.0, random.Random(0))
    plan = table(decisions["a"])
    ks = {row.num_speculative_tokens for row in plan.rows} | {s.num_speculative_tokens for s in plan.segments}
    assert ks <= set(decisions["a"].allowed_num_speculative_tokens)
    assert 0 in decisions["a"].allowed_num_speculative_tokens
    assert max(ks) <= maximum
    if chosen.mode.kind == "auto" and chosen.allowed_num_speculative_tokens is not None:
        assert ks <= set(chosen.runnable_ks(maximum))
    if chosen.mode.kind == "auto" and tiers:
        assert ks <= {0, *tiers}
