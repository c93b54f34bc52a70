"""What a person may type that is no number, no text or no address, and names that look like marks of a terminal's."""

from __future__ import annotations

import json
from collections.abc import Callable

import httpx
import pytest
from typer.testing import CliRunner, Result

from nightjar.cluster import cli
from nightjar.cluster.api.operations import CanaryRequest, ModeRequest, OperationError, checked
from tests.cluster.fleets import some_fleet

Handler = Callable[[httpx.Request], httpx.Response]

pytestmark = pytest.mark.usefixtures("plain_environment")


def call(*arguments: str) -> Result:
    return CliRunner().invoke(cli.app, list(arguments))


def checking_policy(request: httpx.Request) -> httpx.Response:
    """Refuses what the policy refuses of a body by itself."""
    kind: type[ModeRequest | CanaryRequest] = ModeRequest if request.url.path.endswith("/mode") else CanaryRequest
    try:
        checked(kind, json.loads(request.content))
    except OperationError as error:
        return httpx.Response(error.code, json={"detail": str(error)})
    return httpx.Response(200, json={"override": {}, "canary": {}})


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("mode", "auto", "--max-step-ms", "nan"), "--max-step-ms: Input should be a finite number"),
        (("mode", "auto", "--max-step-ms", "inf"), "--max-step-ms: Input should be a finite number"),
        (("canary", "--mode", "off", "--share", "nan"), "--share: Input should be a finite number"),
        (("canary", "--share", "0.5", "--set", "dwell_steps=nan"), "--set dwell_steps"),
        (("canary", "--share", "0.5", "--set", "dwell_steps=1e400"), "--set dwell_steps"),
        (("mode", "off", "--reason", "f\udcfcr heute"), "--reason: Input should be a valid string"),
        (("explain", "\udcfc"), "it is no text in UTF-8"),
    ],
)
def test_a_number_or_a_text_that_is_none_is_refused_by_its_option(
    serve: Callable[[Handler], list[httpx.Request]], arguments: tuple[str, ...], said: str
) -> None:
    sent = serve(checking_policy)
    refused = call(*arguments)
    assert (refused.exit_code, refused.stderr.count("\n")) == (1, 1), refused.exception
    assert said in refused.stderr
    assert {request.headers["Content-Type"] for request in sent if request.method == "POST"} <= {"application/json"}


@pytest.mark.parametrize("url", ["http://gpu-box:8000\n", "http://gpu\tbox:8000", "http://\udcfc:8000", "http://a:80/\x01"])
def test_an_address_that_no_host_can_have_is_one_line(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIGHTJAR_URL", url)
    refused = call("status")
    assert (refused.exit_code, refused.stderr.count("\n")) == (1, 1), refused.exception
    assert "is not an address such as http://127.0.0.1:8000" in refused.stderr


@pytest.mark.parametrize("name", ["llama[v2]", "chat[/prod]", "[bold]chat", "team:x:chat"])
def test_a_name_with_brackets_or_colons_is_shown_as_it_is(serve: Callable[[Handler], list[httpx.Request]], name: str) -> None:
    known = some_fleet()
    replicas = tuple(one.model_copy(update={"application": name, "replica_id": f"{name}#LLM#abc"}) for one in known.replicas)
    fleet = known.model_copy(update={"replicas": replicas}).model_dump(mode="json")
    outlives = {"head": False, "upgrade": False, "folder": f"/srv/{name}"}
    answers = {"GET": fleet, "POST": {"override": {}, "freeze": {}, "outlives": outlives}}
    serve(lambda request: httpx.Response(200, json=answers[request.method]))
    assert f" {name}/abc " in call("status").stdout
    assert f"application {name}: mode off" in call("mode", "off", "--application", name).stdout
    assert f"kept in /srv/{name}: " in call("freeze").stdout


def test_an_address_in_an_error_is_shown_as_it_is(serve: Callable[[Handler], list[httpx.Request]]) -> None:
    serve(lambda _: httpx.Response(404))
    assert "http://[fd00:a:b::1]:8000/nightjar/status answered 404" in call("status", "--url", "http://[fd00:a:b::1]:8000").stderr


def test_a_mode_that_is_taken_back_where_none_was_set_is_told_so(serve: Callable[[Handler], list[httpx.Request]]) -> None:
    was_set = iter([False, True])
    serve(lambda _: httpx.Response(200, json={"override": None, "was_set": next(was_set)}))
    misspelt, taken_back = (call("mode", "default", "--application", name) for name in ("caht", "chat"))
    assert "no mode of this application was set by hand: nothing has changed" in misspelt.stdout
    assert taken_back.stdout == "application chat: mode default\n"
