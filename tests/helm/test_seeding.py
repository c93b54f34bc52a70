"""What a cluster that takes over learns from the one before it: where it asks, with which token, and that pods let it through."""

from __future__ import annotations

from typing import Any

import pytest

from nightjar.cluster.service.seed_from import is_policy
from tests.helm.rendering import CHART, Release, needs_helm, notes_of, release

pytestmark = needs_helm

READERS: dict[str, Any] = {"existingReadTokenSecret": "readers"}
OWN_SERVICE = "http://llm-nightjar-serve-svc:8000/nightjar/learned"
BY_VARIABLE = [{"name": "NIGHTJAR_API_READ_TOKEN", "valueFrom": {"secretKeyRef": {"name": "readers", "key": "token"}}}]
INCREMENTAL = CHART / "examples/incremental-upgrade.yaml"


def settings_of(rendered: Release) -> dict[str, Any]:
    """What the policy's application is given."""
    *_, policy = rendered.serve_config["applications"]
    (deployment,) = policy["deployments"]
    settings: dict[str, Any] = deployment["user_config"]
    return settings


@pytest.mark.parametrize(
    "values", [{"policy": READERS}, {"policy": {"readAccess": "open"}}, {"env": BY_VARIABLE}], ids=["secret", "open", "variable"]
)
def test_a_new_cluster_seeds_itself_from_the_service_that_the_one_before_it_answers(values: dict[str, Any]) -> None:
    settings = settings_of(release(values=values))
    assert settings == {"mode": "shadow", "planner": "fleet", "seed_from": OWN_SERVICE}
    assert is_policy(OWN_SERVICE), "so it is asked with the read token"


def test_the_service_is_the_rayservices_whatever_the_release_is_called() -> None:
    rendered = release(values={"policy": READERS, "fullnameOverride": "chat"})
    assert rendered.one("RayService")["metadata"]["name"] == "chat"
    assert settings_of(rendered)["seed_from"] == "http://chat-serve-svc:8000/nightjar/learned"


@pytest.mark.parametrize("place", ["/data/learned.json", "http://elsewhere:8000/nightjar/learned", ""])
def test_a_place_that_the_settings_name_is_the_users_and_an_empty_one_is_none(place: str) -> None:
    assert settings_of(release(values={"policy": READERS | {"settings": {"seed_from": place}}}))["seed_from"] == place


@pytest.mark.parametrize(
    "values",
    [{}, {"policy": READERS | {"seedFromService": False}}, {"policy": {"existingTokenSecret": "writers"}}],
    ids=["nobody may read", "turned off", "a token to write"],
)
def test_where_it_is_turned_off_or_nobody_may_read_nothing_is_asked(values: dict[str, Any]) -> None:
    assert "seed_from" not in settings_of(release(values=values))


def test_the_incremental_upgrade_has_no_service_of_one_name_to_ask() -> None:
    assert "seed_from" not in settings_of(release(INCREMENTAL, values={"policy": READERS}))


def test_the_head_where_the_policy_runs_has_the_token_of_the_same_secret_that_the_service_asks_for() -> None:
    for template in release(values={"policy": READERS}).ray_pods().values():
        (container,) = template["spec"]["containers"]
        environment = {variable["name"]: variable.get("value") for variable in container["env"]}
        assert environment["NIGHTJAR_API_READ_TOKEN_FILE"] == "/etc/nightjar/api-read-token/token"
        (secret,) = (volume["secret"] for volume in template["spec"]["volumes"] if volume["name"] == "api-read-token")
        assert secret["secretName"] == "readers"


@pytest.mark.parametrize("egress", [[], [{"to": [{"ipBlock": {"cidr": "10.0.0.0/8"}}], "ports": [{"port": 443}]}]])
def test_the_network_policy_lets_the_pods_of_two_clusters_of_a_release_reach_each_others_port(egress: list[Any]) -> None:
    rendered = release(values={"policy": READERS, "networkPolicy": {"enabled": True, "clients": [], "egress": egress}})
    policy = rendered.one("NetworkPolicy")["spec"]
    ways = [(policy["ingress"], "from"), *([(policy["egress"], "to")] if egress else [])]
    for rules, peer in ways:
        (own,) = (rule for rule in rules if rule[peer] == [{"podSelector": policy["podSelector"]}])
        assert "ports" not in own, "all of them, Serve's 8000 too"
    selector = policy["podSelector"]
    roles = selector["matchExpressions"][0]["values"]
    for template in rendered.ray_pods().values():
        labels = template["metadata"]["labels"]
        assert selector["matchLabels"].items() <= labels.items()
        assert labels["app.kubernetes.io/component"] in roles
        assert not [label for label in selector["matchLabels"] if label.startswith("ray.io/")], "no cluster's own label"


def test_the_notes_say_so_where_the_second_cluster_of_an_upgrade_would_learn_anew() -> None:
    upgrade = ("--set", "upgradeStrategy.type=NewCluster")
    said = "The second cluster will learn anew: policy.existingReadTokenSecret names no token to read with."
    assert said in notes_of(*upgrade)
    for option in ("existingReadTokenSecret=readers", "seedFromService=false", "settings.seed_from=/data/learned.json"):
        assert "learn anew" not in notes_of(*upgrade, "--set", f"policy.{option}")
    assert "learn anew: an incremental upgrade has no service of one name" in notes_of("--values", str(INCREMENTAL))
