"""What `make bench-shards` shows, with a few hundred replicas: whole groups may be split among policies, a node may not."""

from __future__ import annotations

import math

import pytest

from tests.benchmarks.scale.bench_shards import GROUPS, Storm, judge_learning, judge_storms, learn, shards, storm

REPLICAS = 160


def test_every_group_is_whole_under_one_policy() -> None:
    of_policies = [{engine.report().group.target for engine in fleet.engines} for fleet in shards(REPLICAS, 4, seed=0)]
    assert sum(len(groups) for groups in of_policies) == len(set().union(*of_policies)) == GROUPS
    assert sum(len(fleet.engines) for fleet in shards(REPLICAS, 16, seed=0)) == REPLICAS


def test_a_node_whose_replicas_are_of_several_policies_reloads_more_than_the_operator_allows() -> None:
    mixed = [storm(REPLICAS, policies, "nodes of many groups", 12).most_on_a_node for policies in (1, 4)]
    assert mixed[0] == 1
    assert 1 < mixed[1] <= 4


def test_a_node_whose_replicas_are_of_one_policy_never_does_and_all_come_back() -> None:
    ended = storm(REPLICAS + GROUPS, 4, "nodes of one group")  # nine a group: one node is not full
    assert (ended.most_on_a_node, ended.share_back) == (1, 1.0)
    assert ended.back_s is not None


@pytest.mark.heavy
def test_several_policies_learn_as_one_does() -> None:
    one, several = (learn(REPLICAS, policies, seed=0, seconds=8) for policies in (1, 4))
    assert min(one["at_best"], several["at_best"]) >= 0.9


def test_a_fleet_that_did_not_learn_in_time_misses_its_bar() -> None:
    row = {"policies": 4.0, "replicas": 160.0, "decide_ms_median": 1.0, "decide_ms_max": 1.0, "observe_ms_median": 1.0}
    outcome = judge_learning([row | {"at_best": 0.5}, row | {"at_best": 0.96, "learned_s": 7.0}])
    assert [bar.verdict for bar in outcome.bars] == ["MISSED", "reached"]
    assert [line[4] for line in outcome.tables[0].rows] == ["not in 20", "7"]


@pytest.mark.parametrize(("most", "verdict"), [(1, "reached"), (2, "MISSED")])
def test_only_where_a_node_is_of_one_policy_its_budget_is_a_bar(most: int, verdict: str) -> None:
    whole = Storm(4, "nodes of one group", most, 0.1, 40, 1.0)
    mixed = Storm(4, "nodes of many groups", 4, 0.1, None, 0.5)
    outcome = judge_storms([whole, mixed])
    assert [bar.verdict for bar in outcome.bars] == [verdict, "stated"]
    assert [line[4] for line in outcome.tables[0].rows] == ["40 s", "50% after 90 s"]
    assert math.isclose(outcome.rows["storms"][0]["share_back"], 1.0)
