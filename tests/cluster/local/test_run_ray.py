"""`nightjar run` with a real Ray: serves every application of a file, changes live, and leaves nothing behind."""

import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from nightjar.cluster.api.exchange_client import HttpPolicy
from nightjar.cluster.api.operations import OperationError
from nightjar.cluster.local.cluster import NODE_TIMED_OUT
from nightjar.cluster.local.session import session_members
from tests.cluster.nightjar_run import START_TIMEOUT_S, Run, wait_until
from tests.cluster.protocol import Replica
from tests.ports import free_port

pytestmark = pytest.mark.ray

TOKEN = "s3cret"
REPORTS_TOKEN = "r3port"
CHANGE_TIMEOUT_S = 300.0


def serve_values(port: int, *, user_config: dict[str, Any], builder: str = "build") -> dict[str, Any]:
    policy = {"name": "Policy", "user_config": user_config}
    model_app = {"name": "model", "import_path": f"tests.cluster.local.redeploying_app:{builder}", "route_prefix": "/"}
    policy_app = {
        "name": "nightjar",
        "import_path": "nightjar.cluster.policy_app:build",
        "route_prefix": "/nightjar",
        "deployments": [policy],
    }
    return {"http_options": {"host": "127.0.0.1", "port": port}, "applications": [model_app, policy_app]}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, int]]:
    """URL and port of a running service; stopped at the end, with the proof that nothing of it is left."""
    port = free_port()
    values = serve_values(port, user_config={"mode": "auto", "dwell_steps": 7})
    run = Run(tmp_path_factory.mktemp("run"), values, NIGHTJAR_API_TOKEN=TOKEN, NIGHTJAR_EXCHANGE_TOKEN=REPORTS_TOKEN)
    announced = run.ready()
    session = run.session
    assert announced["pid"] == run.process.pid
    assert Path(announced["logs"]).is_dir()
    assert len(session_members(session)) > 5
    yield announced["url"], port
    assert run.stop() == 0, run.err.read_text()
    assert session_members(session) == []
    assert not Path(announced["logs"]).exists()


def status(url: str) -> dict[str, Any]:
    answer = httpx.get(f"{url}/nightjar/status", timeout=10.0)
    assert answer.status_code == 200, answer.text
    fleet: dict[str, Any] = answer.json()
    return fleet


def post_mode(url: str, token: str, **request: object) -> httpx.Response:
    return httpx.post(f"{url}/nightjar/mode", json=request, headers={"Authorization": f"Bearer {token}"}, timeout=10.0)


def test_every_application_of_the_file_serves(service: tuple[str, int]) -> None:
    url, _ = service
    assert httpx.get(url, timeout=10.0).text == "done"
    assert status(url)["policy"]["incarnation"] >= 1


def test_a_mode_set_with_the_token_shows_in_status_until_it_is_taken_back(service: tuple[str, int]) -> None:
    url, _ = service
    assert post_mode(url, "wrong", mode="off").status_code == 401
    assert post_mode(url, TOKEN, mode="off", for_s=600, reason="test").status_code == 200
    (override,) = status(url)["overrides"]
    assert (override["mode"], override["reason"]) == ("off", "test")
    assert post_mode(url, TOKEN, mode="default").status_code == 200
    assert status(url)["overrides"] == []


async def test_servers_without_ray_are_steered_by_the_clusters_policy_with_their_own_token_and_by_no_other(
    service: tuple[str, int],
) -> None:
    url, _ = service
    replica, stranger = Replica(replica_id="without-ray"), HttpPolicy(url, token=lambda: SecretStr(TOKEN))
    with pytest.raises(OperationError, match="wrong token"):
        await stranger.exchange(replica.report(), 30.0)
    await stranger.close()
    policy = HttpPolicy(url, token=lambda: SecretStr(REPORTS_TOKEN))
    assert await policy.starting_mode(replica.replica_id, replica.application, 30.0) == status(url)["policy"]["mode"]
    replica.apply(await policy.exchange(replica.report(), 30.0))
    assert post_mode(url, TOKEN, mode="pin=1").status_code == 200
    ends_s = time.monotonic() + CHANGE_TIMEOUT_S
    while str(replica.mode) != "pin=1":
        assert time.monotonic() < ends_s, f"the server runs {replica.version}, {replica.mode}"
        replica.apply(await policy.exchange(replica.report(), 30.0))
    assert [one["replica_id"] for one in status(url)["replicas"]] == [replica.replica_id]
    assert post_mode(url, TOKEN, mode="default").status_code == 200
    await policy.close()


def test_a_wrong_user_config_keeps_the_settings_in_force_and_the_policy_app_alive(service: tuple[str, int]) -> None:
    url, port = service
    wait_until(lambda: status(url)["policy"]["mode"] == "auto", CHANGE_TIMEOUT_S)
    actor = status(url)["policy"]["pid"]
    redeploy(url, serve_values(port, user_config={"mode": "off", "dwel_steps": 7}))
    wait_until(lambda: status(url)["policy"]["settings_error"] != "", CHANGE_TIMEOUT_S)
    policy = status(url)["policy"]
    assert "dwel_steps: no such setting (value 7); did you mean dwell_steps?" in policy["settings_error"]
    assert (policy["mode"], policy["pid"]) == ("auto", actor)
    redeploy(url, serve_values(port, user_config={"mode": "auto"}))
    wait_until(lambda: status(url)["policy"]["settings_error"] == "", CHANGE_TIMEOUT_S)


def redeploy(url: str, values: dict[str, Any]) -> None:
    assert httpx.post(url, json=values, timeout=30.0).status_code == 200


def test_a_requested_port_in_use_is_one_line_and_starts_nothing(service: tuple[str, int], tmp_path: Path) -> None:
    _, port = service
    second = Run(tmp_path, serve_values(port, user_config={}), "--port", str(port))
    assert second.process.wait(START_TIMEOUT_S) == 1
    assert f"error: port: {port} on 127.0.0.1 is in use" in second.err.read_text()
    assert "Ray" not in second.err.read_text()


def test_an_application_that_fails_is_one_block_with_exit_code_1(tmp_path: Path) -> None:
    run = Run(tmp_path, serve_values(free_port(), user_config={}, builder="build_what_fails"))
    session = run.session
    assert run.process.wait(START_TIMEOUT_S) == 1
    said = run.err.read_text()
    assert "error: application model failed to deploy" in said
    assert "this application cannot be built" in said
    logs = Path(said.rpartition("logs are kept in ")[2].strip())
    assert logs.is_dir()
    shutil.rmtree(logs)
    assert session_members(session) == []


@pytest.mark.parametrize("phase", ["starting a Ray cluster", "starting Ray Serve", "DEPLOYING"])
def test_a_signal_while_it_starts_leaves_nothing_behind(tmp_path: Path, phase: str) -> None:
    run = Run(tmp_path, serve_values(free_port(), user_config={}, builder="build_what_never_gets_ready"))
    run.wait_until_it_says(phase)
    session = run.session
    assert run.stop(signal.SIGINT) == 128 + signal.SIGINT
    assert session_members(session) == []
    assert run.out.read_text() == ""


def test_ray_still_says_in_these_words_that_a_node_was_too_slow() -> None:
    from ray._private import node

    assert NODE_TIMED_OUT in Path(node.__file__).read_text(encoding="utf-8")
