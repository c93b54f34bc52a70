"""An arm counts once every replica confirmed it, and what ran before comes back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from nightjar.cluster.api.http_client import HttpClient
from nightjar.loadtests.arms import session
from nightjar.loadtests.arms.arm import TurnError, parse_arm
from nightjar.loadtests.arms.session import Session, not_applied, put_back_request, service_api
from nightjar.policy.wire.mode import Mode
from nightjar.policy.wire.status import FleetStatus, OverrideStatus
from tests.loadtests import recorded
from tests.loadtests.arms.fleet import FakeFleet
from tests.loadtests.fake_server import running_fake_server
from tests.loadtests.recorded import replica


def status(*modes: str, planner: str = "fleet", decision_age_s: float = 0.0, confirmed: bool = True) -> FleetStatus:
    replicas = (
        replica(f"r{number}", mode=mode).model_copy(update={"settings_confirmed": confirmed}) for number, mode in enumerate(modes)
    )
    return recorded.fleet(*replicas, planner=planner, decision_age_s=decision_age_s)


@pytest.mark.parametrize(
    ("seen", "why"),
    [
        (status("off", "off"), ""),
        (status("off", "off", decision_age_s=3.0), "the policy has not decided since"),
        (status("off"), "1 of 2 replicas report"),
        (status("off", "auto"), "replica r1 runs auto"),
        (status("off", "off", confirmed=False), "replica r0 has not confirmed its settings"),
    ],
)
def test_an_arm_is_applied_when_every_replica_confirmed_what_was_decided_since(seen: FleetStatus, why: str) -> None:
    assert not_applied(seen, parse_arm("off"), 2, set_for_s=2.0).startswith(why)
    assert bool(not_applied(seen, parse_arm("off"), 2, set_for_s=2.0)) == bool(why)


def test_a_planners_arm_is_applied_when_that_planner_plans_every_group() -> None:
    assert not_applied(status("auto", "auto"), parse_arm("nightjar"), 2, 1.0) == "groups are planned by fleet"
    assert not not_applied(status("auto", "auto", planner="nightjar"), parse_arm("nightjar"), 2, 1.0)


def by_hand(seconds_left: float | None, planner: str | None = None) -> OverrideStatus:
    return OverrideStatus(scope="fleet", mode=Mode.parse("auto"), planner=planner, reason="trial", seconds_left=seconds_left)


@pytest.mark.parametrize(
    ("before", "request_"),
    [
        (None, {"mode": "default", "scope": "fleet"}),
        (by_hand(None, "nightjar"), {"mode": "auto", "scope": "fleet", "reason": "trial", "planner": "nightjar"}),
        (by_hand(100.0), {"mode": "auto", "scope": "fleet", "reason": "trial", "for_s": 40.0}),
        (by_hand(50.0), {"mode": "default", "scope": "fleet"}),
    ],
)
def test_what_was_set_by_hand_is_set_again_for_the_rest_of_its_time(
    before: OverrideStatus | None, request_: dict[str, object]
) -> None:
    assert put_back_request(before, since_s=60.0) == request_


@pytest.fixture
def fleet(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeFleet]:
    monkeypatch.setattr(session, "STEADY_S", 0.0)
    with running_fake_server() as server:
        yield FakeFleet(server)


class Seconds:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


def session_of(fleet: FakeFleet, folder: Path) -> tuple[HttpClient, Session]:
    api, clock = service_api(fleet.server.url, "token"), Seconds()
    return api, Session(api, "nightjar compare", learned_file=folder / "learned.json", clock=clock, sleep=clock.sleep)


def test_a_planner_is_asked_for_by_name_with_an_end_and_given_back(fleet: FakeFleet, tmp_path: Path) -> None:
    api, running = session_of(fleet, tmp_path)
    with api:
        assert len(running.prepare().replicas) == 2
        running.run(parse_arm("nightjar"), resets=False, for_s=99.0)
        assert fleet.planner == "nightjar"
        assert running.put_back() == "the settings"
    assert fleet.told == [
        {"mode": "auto", "scope": "fleet", "for_s": 99.0, "reason": "nightjar compare", "planner": "nightjar"},
        {"mode": "default", "scope": "fleet"},
    ]


def test_nothing_is_put_back_where_nothing_was_set(fleet: FakeFleet, tmp_path: Path) -> None:
    api, running = session_of(fleet, tmp_path)
    with api:
        running.prepare()
        assert running.put_back() == ""
    assert fleet.told == []


def test_an_arm_that_no_replica_confirms_ends_with_one_line_after_its_time(fleet: FakeFleet, tmp_path: Path) -> None:
    api, running = session_of(fleet, tmp_path)
    fleet.confirms = False
    running.prepare()
    with api, pytest.raises(TurnError, match="arm off was not applied by every replica within 60 s: replica r1 runs auto"):
        running.run(parse_arm("off"), resets=False, for_s=99.0)


def test_a_mode_set_by_hand_for_less_than_the_fleet_has_to_be_taken_back_first(fleet: FakeFleet, tmp_path: Path) -> None:
    fleet.overrides.append(OverrideStatus(scope="application", name="chat", mode=Mode.parse("off")))
    api, running = session_of(fleet, tmp_path)
    with api, pytest.raises(TurnError, match="take it back: nightjar mode default --application chat"):
        running.prepare()


def test_what_the_fleet_knew_before_the_first_reset_is_kept_in_a_file_and_given_back(tmp_path: Path) -> None:
    asked: list[tuple[str, str, bytes]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append((request.method, request.url.path, request.content))
        if request.url.path == "/nightjar/status":
            planner = "nightjar" if any(path == "/nightjar/mode" for _, path, _ in asked) else "fleet"
            return httpx.Response(200, content=status("auto", "auto", planner=planner, decision_age_s=-1.0).model_dump_json())
        return httpx.Response(200, content=b"known" if request.method == "GET" else b'{"override": null, "groups": []}')

    clock = Seconds()
    api = HttpClient("http://h", transport=httpx.MockTransport(answer))
    running = Session(api, "a test", learned_file=tmp_path / "learned.json", clock=clock, sleep=clock.sleep)
    with api:
        running.prepare()
        for _ in range(2):
            running.run(parse_arm("nightjar"), resets=True, for_s=9.0)
        running.put_back()
    assert (tmp_path / "learned.json").read_bytes() == b"known"
    assert [path for method, path, _ in asked if method == "GET"].count("/nightjar/learned") == 1
    assert [json.loads(body).get("learned") for _, path, body in asked if path == "/nightjar/mode"] == ["reset", "reset", None]
    assert asked[-1] == ("POST", "/nightjar/learned", b"known")


def test_what_cannot_be_put_back_is_tried_again_and_then_said_in_one_line(fleet: FakeFleet, tmp_path: Path) -> None:
    api, running = session_of(fleet, tmp_path)
    running.prepare()
    running.run(parse_arm("off"), resets=False, for_s=9.0)
    refused: list[str] = []

    def refuse(body: dict[str, object]) -> tuple[int, bytes]:
        refused.append(str(body["mode"]))
        return 503, b'{"detail": "the policy actor does not answer"}'

    fleet.server.set_mode = refuse
    with api, pytest.raises(TurnError) as told:
        running.put_back()
    assert refused == ["default"] * session.PUT_BACK_TRIES
    assert "the settings" in str(told.value)
    assert "`nightjar mode default` takes back what is set" in str(told.value)
    assert "\n" not in str(told.value)
