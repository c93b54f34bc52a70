"""What the tables say of a replica."""

import pytest
from rich.console import Console, Group
from rich.constrain import Constrain
from rich.text import Text

from nightjar.cluster.display.fleet import acceptance, drafter_cell, fleet_view, gained_text, plan_text, settings_cell, speculation
from nightjar.policy.wire.mode import Mode
from nightjar.policy.wire.report import AdapterCounters, DrafterCounters, DrafterState, EngineLoad, Layer, SteeringLevel
from nightjar.policy.wire.settings import TableRow
from nightjar.policy.wire.status import (
    CanaryStatus,
    FleetStatus,
    FreezeStatus,
    GainedStatus,
    OpenLeaseStatus,
    RestartsStatus,
    WaitingWishStatus,
)
from tests.cluster.fleets import some_fleet


def rendered(fleet: FleetStatus, width: int = 220, view_width: int | None = None, rows: int | None = None) -> str:
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        console.print(fleet_view(fleet, view_width, rows))
    return capture.get()


def test_in_shadow_k_reads_what_runs_and_what_would_run() -> None:
    assert speculation(some_fleet(mode="shadow").replicas[0]) == "0 -> 5"
    assert speculation(some_fleet(mode="auto").replicas[0]) == "5"


@pytest.mark.parametrize("mode", ["shadow", "auto", "off"])
def test_the_k_of_an_idle_replica_is_shown_as_that_of_its_last_step(mode: str) -> None:
    replica = some_fleet(mode=mode).replicas[0]
    idle = replica.model_copy(update={"load": EngineLoad(num_speculative_tokens=2, planned_num_speculative_tokens=0)})
    assert speculation(idle) == "(2)"


def test_settings_that_are_not_the_newest_are_marked_with_their_age() -> None:
    newest, behind = some_fleet().replicas
    assert settings_cell(newest) == "3.17, 0s ago"
    assert settings_cell(behind) == "3.17 behind, 12s ago"


def test_a_freeze_is_told_at_the_top() -> None:
    fleet = some_fleet()
    freeze = FreezeStatus(since_s=0.0, seconds_left=90.0, reason="release")
    shown = rendered(fleet.model_copy(update={"policy": fleet.policy.model_copy(update={"freeze": freeze})}))
    told = "frozen since 1970-01-01 00:00:00 UTC by hand (release), for 90 s more: no new plan, measurement or lease"
    assert told in shown.splitlines()[2]
    assert "frozen" not in rendered(fleet)


def test_a_canary_is_told_with_what_is_left_of_its_time() -> None:
    canary = CanaryStatus(
        phase="trial", what="mode off", whom="the replicas", words="canary mode off: trial", since_s=0.0, phase_since_s=0.0,
        seconds_left=90.0, reason="is it",
    )  # fmt: skip
    fleet = some_fleet()
    shown = rendered(fleet.model_copy(update={"policy": fleet.policy.model_copy(update={"canary": canary})}))
    assert "canary mode off: trial, 1m30s left (is it)" in shown.splitlines()[2]


def test_in_80_columns_each_replica_is_a_row_and_no_word_is_broken() -> None:
    fleet = some_fleet()
    first, second = fleet.replicas
    busy = EngineLoad(
        decode_batch_size=256,
        num_waiting_reqs=1024,
        kv_cache_usage=1.0,
        num_speculative_tokens=10,
        planned_num_speculative_tokens=10,
    )
    much = {
        "replica_id": "qwen-32b#LLM#abcd1234",
        "application": "qwen-32b",
        "load": busy,
        "generated_tokens_per_s": 12345.6,
        "drafter_state": DrafterState.CATCHING_UP,
        "warning": "the guard holds batch 129-192 off: speculation measured worse than off; its agent relocates blocks",
    }
    text = rendered(fleet.model_copy(update={"replicas": (first.model_copy(update=much), second)}), width=80)
    assert max(map(len, text.splitlines())) <= 80
    (row,) = [line for line in text.splitlines() if "qwen-32b/abcd1234 " in line]
    assert row.split() == ["qwen-32b/abcd1234", "256", "1024", "100%", "10", "0.80..0.40", "12345.6", "catching", "up"]
    words = set(text.split())
    assert {"replica", "waiting", "accepted", "drafter", "relocates", "blocks"} <= words


def test_a_mode_that_is_not_the_fleets_has_a_column_and_fits_as_well() -> None:
    fleet = some_fleet()
    pinned = fleet.replicas[0].model_copy(update={"mode": Mode.parse("pin=3")})
    text = rendered(fleet.model_copy(update={"replicas": (pinned, fleet.replicas[1])}), width=80)
    assert "pin=3" in text
    assert max(map(len, text.splitlines())) <= 80
    assert "mode" not in rendered(fleet).split("replica ")[1].splitlines()[0], "the policy's line says it"


def test_what_is_true_of_many_replicas_is_said_once() -> None:
    fleet = some_fleet()
    held = {"warning": "the guard holds batch 3 off"}
    many = tuple(fleet.replicas[0].model_copy(update={"replica_id": f"smollm2#LLM#{number}", **held}) for number in range(6))
    text = " ".join(rendered(fleet.model_copy(update={"replicas": many})).split())
    assert text.count("the guard holds batch 3 off") == 1
    assert "smollm2/0, smollm2/1, smollm2/2, smollm2/3 and 2 more: the guard holds batch 3 off" in text


def test_a_group_tells_what_its_plan_gives_over_off() -> None:
    fleet = some_fleet()
    group = fleet.groups[0].model_copy(
        update={"predicted_tokens_per_s": 412.0, "predicted_off_tokens_per_s": 320.0, "reason": "a; b"}
    )
    text = rendered(fleet.model_copy(update={"groups": (group,)}))
    assert "group smollm2-1234: 2 replicas, planner fleet" in text
    assert "K by decode batch  1-5: 5  6-16: 0" in text
    assert "The plan is predicted to give 412 tok/s now: 1.29 of off." in text
    assert "of off" not in rendered(fleet), "nothing is predicted"
    unmeasured = group.model_copy(update={"cells": ()})
    assert "of off" not in rendered(fleet.model_copy(update={"groups": (unmeasured,)})), "nobody ran a step of it yet"
    present = group.model_copy(update={"predicted_present_tokens_per_s": 400.0})
    shown = rendered(fleet.model_copy(update={"groups": (present,)}))
    assert "The plan is predicted to give 412 tok/s now: 1.29 of off, 1.03 of what runs." in shown


def test_a_group_says_in_one_sentence_what_it_waits_for_and_leaves_reasons_to_explain() -> None:
    fleet = some_fleet()
    lease, wish = OpenLeaseStatus(replica_id="a", seconds_left=9.0), WaitingWishStatus(replica_id="b", waiting_s=2.0)
    restarts = RestartsStatus(open_leases=(lease,), waiting=(wish, wish))
    update = {"restarts": restarts, "imported_cells": 1, "reason": "batch 1: K=5 gives 9 tok/s; batch 2: K=5 gives 12 tok/s"}
    text = rendered(fleet.model_copy(update={"groups": (fleet.groups[0].model_copy(update=update),)}))
    assert "  1 of 3 restarts of speculation may run; 1 of 1 cells are imported, not measured here." in text
    assert "gives 9 tok/s" not in text
    assert "Why this K: nightjar explain smollm2/abc" in text


def test_what_a_group_gained_is_told_with_its_doubt_and_what_is_not_known_as_such() -> None:
    known = GainedStatus(num_speculative_tokens=5, over_s=3900.0, busy_s=9.0, compared_s=8.0, share=0.12, low=0.07, high=0.174)
    unknown = GainedStatus(num_speculative_tokens=0, over_s=3900.0, busy_s=9.0)
    assert gained_text((known, unknown)) == "+12% (+7 to +17%) of K=5's engine time; of off's not known"
    assert gained_text((unknown, unknown)) == "not known"
    lost = known.model_copy(update={"share": -0.02, "low": -0.05, "high": 0.01, "num_speculative_tokens": 0})
    assert gained_text((known, lost)).endswith("; -2% (-5 to +1%) of off's")
    fleet = some_fleet()
    group = fleet.groups[0].model_copy(update={"gained": (known, unknown)})
    text = rendered(fleet.model_copy(update={"groups": (group,)}), width=80)
    assert "gained in 1h5m" in text


def test_every_sign_in_the_table_is_explained_where_it_stands() -> None:
    fleet = some_fleet()
    assert "accepted: how often the first .. last draft token was" in rendered(fleet)
    assert "not measured" not in rendered(fleet)
    assert "idle now" not in rendered(fleet)
    unmeasured = fleet.replicas[0].model_copy(update={"acceptance": (), "load": EngineLoad(num_speculative_tokens=2)})
    text = rendered(fleet.model_copy(update={"replicas": (unmeasured,)}))
    assert "(K): of the last step, idle now; -: not measured yet" in text
    assert "K: what runs -> what the plan would run" in rendered(some_fleet(mode="shadow"))
    censored = fleet.groups[0].model_copy(update={"censored_acceptance": True})
    text = rendered(fleet.model_copy(update={"groups": (censored,)}))
    assert "under adaptive verification: of drafts made" in " ".join(text.split())


def test_two_replicas_with_a_freeze_a_canary_and_a_warning_fit_24_rows_of_80_columns() -> None:
    fleet = some_fleet()
    group = fleet.groups[0].model_copy(
        update={
            "mixed_rows": fleet.groups[0].rows,
            "predicted_tokens_per_s": 412.0,
            "predicted_off_tokens_per_s": 320.0,
            "predicted_present_tokens_per_s": 400.0,
            "imported_cells": 3,
            "reason": "; ".join(f"batch {batch}: off gives 27.7 tok/s predicted" for batch in range(12)),
        }
    )
    canary = CanaryStatus(
        phase="trial", what="mode off", whom="the replicas", words="canary mode off: trial", since_s=0.0, phase_since_s=0.0
    )
    policy = fleet.policy.model_copy(update={"freeze": FreezeStatus(since_s=0.0, seconds_left=90.0), "canary": canary})
    held = fleet.replicas[0].model_copy(update={"warning": "the guard holds batch 3 off: speculation measured worse than off"})
    text = rendered(
        fleet.model_copy(update={"groups": (group,), "policy": policy, "replicas": (held, fleet.replicas[1])}), width=80
    )
    lines = text.splitlines()
    assert len(lines) <= 23, "and a row for the prompt"
    assert max(map(len, lines)) <= 80


def test_a_width_and_a_number_of_rows_hold_the_view_within_them() -> None:
    fleet = some_fleet()
    many = tuple(fleet.replicas[0].model_copy(update={"replica_id": f"smollm2#LLM#{number}"}) for number in range(40))
    text = rendered(fleet.model_copy(update={"replicas": many}), width=220, view_width=80, rows=5)
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 80
    assert text.count("smollm2/") == 6, "five rows and the name to explain"
    assert "and 35 more replicas: nightjar status" in text


def test_refused_settings_show_with_their_error() -> None:
    fleet = some_fleet()
    update = {"settings_error": "modee: no such setting", "refused_reports": 2, "last_refusal": "too long"}
    policy = fleet.policy.model_copy(update=update)
    text = rendered(fleet.model_copy(update={"policy": policy}))
    assert "settings refused, the previous ones hold: modee: no such setting" in text
    assert "2 reports refused (last: too long)" in text


def test_replicas_that_fell_silent_are_not_said_never_to_have_reported() -> None:
    fleet = some_fleet()
    silent = fleet.model_copy(update={"replicas": (), "policy": fleet.policy.model_copy(update={"reports": 412})})
    assert "no replica reports any more, 412 reports came before" in rendered(silent)


def test_a_policy_that_decides_no_more_says_since_when() -> None:
    fleet = some_fleet()
    stuck = fleet.policy.model_copy(update={"decision_age_s": 90.0})
    assert "last decided 1m30s ago" in rendered(fleet.model_copy(update={"policy": stuck}))
    assert "last decided" not in rendered(fleet)


@pytest.mark.parametrize(
    ("known", "line"),
    [
        ({"journal_holds_s": 205.0, "replay_problem": "too large"}, "journal keeps about 3m25s, nothing for a replay: too large"),
        ({"journal_holds_s": 1_700.0, "replay_holds_s": 1_080.0}, "journal keeps about 28m20s, 18m of inputs for a replay"),
        ({"replay_problem": "off"}, "journal nothing for a replay: off"),
    ],
)
def test_what_the_journal_keeps_at_this_fleets_size_is_told(known: dict[str, object], line: str) -> None:
    fleet = some_fleet()
    shown = rendered(fleet.model_copy(update={"policy": fleet.policy.model_copy(update=known)}))
    assert line in [row.strip() for row in shown.splitlines()]
    assert "journal" not in rendered(fleet)


def test_a_fleet_without_replicas_says_so() -> None:
    fleet = some_fleet()
    empty = {"replicas": (), "groups": (), "policy": fleet.policy.model_copy(update={"reports": 0})}
    assert "no replica has reported yet" in rendered(fleet.model_copy(update=empty))


def test_a_replica_that_is_served_plainly_says_why_instead_of_a_decision() -> None:
    fleet = some_fleet()
    plain = fleet.replicas[0].model_copy(update={"steering": SteeringLevel.PLAINLY, "steering_reason": "suffix decoding asserts K"})
    text = rendered(fleet.model_copy(update={"replicas": (plain,)}))
    assert "served plainly: suffix decoding asserts K" in text
    assert "K=5 up to batch 4" not in text


def test_the_first_line_says_how_much_of_the_fleet_is_steered_and_why_not_more() -> None:
    fleet = some_fleet()
    (first, *_) = fleet.replicas
    plain = first.model_copy(update={"steering": SteeringLevel.PLAINLY, "steering_reason": "hooks moved"})
    awake = first.model_copy(update={"steering": SteeringLevel.WITHOUT_SLEEPING, "steering_reason": "a KV connector is in use"})
    text = rendered(fleet.model_copy(update={"replicas": (plain, first, plain, awake)}))
    assert text.splitlines()[0].rstrip() == (
        "steering 1 fully, 1 without sleeping (a KV connector is in use), 2 plainly (hooks moved)"
    )
    assert rendered(fleet.model_copy(update={"replicas": ()})).startswith("steering no replica")


def test_the_first_line_counts_replicas_by_the_layers_that_work() -> None:
    fleet = some_fleet()
    (first, *_) = fleet.replicas
    sleeps = first.model_copy(update={"layers": (Layer.STEERING, Layer.SLEEPING)})
    head = first.model_copy(update={"layers": (Layer.STEERING, Layer.HEADS)})
    text = rendered(fleet.model_copy(update={"replicas": (sleeps, head, sleeps, first)}))
    assert text.splitlines()[0].rstrip() == "steering 4 fully; layers: steering 3, sleeping 2, heads 1"


def test_a_drafter_tells_where_it_is_what_it_cost_and_why_it_waits() -> None:
    replica = some_fleet().replicas[0].model_copy(
        update={
            "drafter_state": DrafterState.OFFLOADED,
            "drafter": DrafterCounters(
                lag_tokens=90, recomputed_tokens=700, micro_restarts=3, probes=4, offloads=2, reloads=1, moved_bytes=1_614_000_000,
                borrowed_blocks=41, relocated_blocks=12, preempted_requests=1, reason="waits for a lease to restart",
            ),
            "restarts": 4,
            "failed_probes": 1,
            "catch_up_seconds": 1.25,
        }
    )  # fmt: skip
    assert drafter_cell(replica) == (
        "offloaded, lag 90, 41 blocks lent, 4 restarts (3 micro), 700 tokens caught up (+1.2 s), 1 of 4 probes failed, 2 offloads, "
        "1.6 GB moved, 12 blocks relocated, 1 requests preempted for it: waits for a lease to restart"
    )


def test_failed_probes_are_told_of_a_replica_that_waits_for_nothing() -> None:
    fleet = some_fleet()
    failed = fleet.replicas[0].model_copy(update={"failed_probes": 2, "drafter": DrafterCounters(probes=5)})
    assert "smollm2/abc: drafter active, 2 of 5 probes failed" in rendered(fleet.model_copy(update={"replicas": (failed,)}))
    assert "drafter active" not in rendered(fleet)


def test_a_drafter_that_did_nothing_yet_says_only_where_it_is() -> None:
    replica = some_fleet().replicas[0].model_copy(update={"drafter": DrafterCounters(), "restarts": 0, "failed_probes": 0})
    assert drafter_cell(replica) == replica.drafter_state.value


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        ([], "-"),
        ([(1, 1, 5)], "1: 5"),
        ([(1, 1, 5), (2, 5, 5), (6, 16, 0)], "1-5: 5  6-16: 0"),
        ([(1, 2, 5), (4, 5, 5)], "1-2: 5  4-5: 5"),
    ],
)
def test_a_plan_joins_neighbours_of_equal_k(rows: list[tuple[int, int, int]], text: str) -> None:
    plan = [TableRow(first_batch_size=first, last_batch_size=last, num_speculative_tokens=k) for first, last, k in rows]
    assert plan_text(plan) == text


def with_adapters(*counted: AdapterCounters) -> FleetStatus:
    """Both replicas of the fleet with the same counts."""
    fleet = some_fleet()
    replicas = tuple(replica.model_copy(update={"adapters": counted}) for replica in fleet.replicas)
    return fleet.model_copy(update={"replicas": replicas})


def test_acceptance_of_lora_adapters_is_summed_over_replicas_and_the_lowest_comes_first() -> None:
    chat = AdapterCounters(adapter="chat", rows=10, draft_tokens=40, accepted_tokens=30)
    sql = AdapterCounters(adapter="sql", rows=20, draft_tokens=50, accepted_tokens=5)
    line = "LoRA adapters of smollm2, accepted draft tokens: sql 10% of 100, chat 75% of 80"
    assert line in rendered(with_adapters(chat, sql))


def test_many_lora_adapters_are_cut_to_the_eight_lowest() -> None:
    counted = [AdapterCounters(adapter=f"a{number}", draft_tokens=100, accepted_tokens=number) for number in range(11)]
    text = " ".join(rendered(with_adapters(*counted)).split())
    assert "a7 7% of 200, and 3 more in -o json" in text
    assert "a8" not in text


def test_a_fleet_without_lora_adapters_does_not_speak_of_them() -> None:
    assert "LoRA" not in rendered(some_fleet())


def test_acceptance_shows_its_first_and_last_position() -> None:
    assert (acceptance(()), acceptance((0.8,)), acceptance((0.8, 0.6, 0.41))) == ("-", "0.80", "0.80..0.41")


def test_a_seed_that_is_of_no_use_and_groups_that_wait_for_a_replica_are_shown() -> None:
    fleet = some_fleet()
    update = {"seed_problem": "seed_from: /data/x.json: cannot be read", "waiting_groups": ("llama-8b-1a2b", "qwen-3c4d")}
    text = rendered(fleet.model_copy(update={"policy": fleet.policy.model_copy(update=update)}))
    assert "seed_from: /data/x.json: cannot be read" in text
    assert "imported, waiting for a replica: llama-8b-1a2b, qwen-3c4d" in text


def test_an_override_is_told_with_its_limit_of_a_step_and_its_objective() -> None:
    (override,) = some_fleet().overrides
    limited = override.model_copy(update={"mode": Mode.parse("auto"), "max_step_ms": 40.0, "objective": "latency"})
    text = rendered(some_fleet().model_copy(update={"overrides": (limited,)}))
    assert "override: application smollm2 -> auto, steps of up to 40 ms, objective latency, for 1m30s more (too [hot])" in text


def test_what_was_carried_over_says_from_where_and_what_it_wins_over() -> None:
    fleet = some_fleet()
    carried = fleet.overrides[0].model_copy(update={"carried_from": "http://llm-serve-svc:8000/nightjar/learned"})
    text = rendered(fleet.model_copy(update={"overrides": (carried,)}))
    words = "carried over from http://llm-serve-svc:8000/nightjar/learned; wins over mode auto of the settings"
    assert words in " ".join(text.split())
    assert "carried over" not in rendered(fleet)


def test_that_nothing_is_known_of_what_was_set_by_hand_before_stands_on_the_first_line() -> None:
    fleet = some_fleet()
    policy = fleet.policy.model_copy(update={"not_known_before": "the store cannot be read"})
    text = rendered(fleet.model_copy(update={"policy": policy}))
    assert text.startswith("what was set by hand before is not known, mode auto of the settings holds: the store cannot be read")


def test_applications_that_have_settings_of_their_own_and_no_replica_are_told() -> None:
    fleet = some_fleet()
    policy = fleet.policy.model_copy(update={"unknown_applications": ("chta",)})
    assert "settings per application: no replica of chta reports" in rendered(fleet.model_copy(update={"policy": policy}))


def test_a_place_to_seed_from_where_nobody_is_yet_is_shown_and_is_no_alarm() -> None:
    fleet = some_fleet()
    notice = "seed_from: http://llm-serve-svc:8000/nightjar/learned: answered 503, allowed is 200"
    shown = fleet_view(fleet.model_copy(update={"policy": fleet.policy.model_copy(update={"seed_notice": notice})}))
    assert isinstance(shown, Constrain)
    assert isinstance(shown.renderable, Group)
    (line,) = (part for part in shown.renderable.renderables if isinstance(part, Text) and "seed_from" in part.plain)
    assert (line.plain, line.style) == (notice, "cyan")
