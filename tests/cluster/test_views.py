"""What the tables say of a replica."""

import pytest
from rich.console import Console

from nightjar.cluster.views import acceptance, drafter_cell, fleet_view, plan_text, settings_cell, speculation
from nightjar.policy.wire.report import AdapterCounters, DrafterCounters, DrafterState, SteeringLevel
from nightjar.policy.wire.settings import TableRow
from nightjar.policy.wire.status import FleetStatus
from tests.cluster.fleets import some_fleet


def rendered(fleet: FleetStatus) -> str:
    console = Console(width=220, color_system=None)
    with console.capture() as capture:
        console.print(fleet_view(fleet))
    return capture.get()


def test_in_shadow_k_reads_what_runs_and_what_would_run() -> None:
    assert speculation(some_fleet(mode="shadow").replicas[0]) == "0 -> 5"
    assert speculation(some_fleet(mode="auto").replicas[0]) == "5"


def test_settings_that_are_not_the_newest_are_marked_with_their_age() -> None:
    newest, behind = some_fleet().replicas
    assert settings_cell(newest) == "3.17, 0s ago"
    assert settings_cell(behind) == "3.17 behind, 12s ago"


def test_refused_settings_show_with_their_error() -> None:
    fleet = some_fleet()
    update = {"settings_error": "modee: no such setting", "refused_reports": 2, "last_refusal": "too long"}
    policy = fleet.policy.model_copy(update=update)
    text = rendered(fleet.model_copy(update={"policy": policy}))
    assert "settings refused, the previous ones hold: modee: no such setting" in text
    assert "2 refused (last: too long)" in text


def test_a_policy_that_decides_no_more_says_since_when() -> None:
    fleet = some_fleet()
    stuck = fleet.policy.model_copy(update={"decision_age_s": 90.0})
    assert "last decided 1m30s ago" in rendered(fleet.model_copy(update={"policy": stuck}))
    assert "last decided" not in rendered(fleet)


def test_a_fleet_without_replicas_says_so() -> None:
    assert "no replica has reported yet" in rendered(some_fleet().model_copy(update={"replicas": (), "groups": ()}))


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
