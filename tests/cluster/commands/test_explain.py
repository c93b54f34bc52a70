"""`nightjar explain`: from the running policy over HTTP, and at some time from a journal; what it prints and how it fails."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner, Result

from nightjar.cluster import cli
from nightjar.cluster.api.operations import EXPLAIN, OperationError
from nightjar.cluster.storage.recording import FILE_NAME, RecordingFile, RecordingReader
from nightjar.policy.wire.explanation import Explanation, KExplanation
from nightjar.policy.wire.record import to_plain
from tests.cluster.recorded_fleet import MemoryRecording, WrittenAtOnce, recorded_fleet
from tests.policy.engines import Replica


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli.app, ["explain", *map(str, arguments)], env={"COLUMNS": "200", "NIGHTJAR_URL": ""})


def explained(asked: str, ticks: int = 60) -> Explanation:
    """What the running service answers after so many ticks of two busy replicas."""

    async def run() -> Explanation:
        async with recorded_fleet(Replica("chat#r1", batch=4), Replica("chat#r2", batch=1), sink=MemoryRecording()) as fleet:
            await fleet.run(ticks)
            return await fleet.service.call(EXPLAIN, asked)

    return asyncio.run(run())


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Callable[[httpx.Response], list[httpx.Request]]:
    """Lets the command talk to one answer instead of the network; returns the requests it will have sent."""

    def install(answer: httpx.Response) -> list[httpx.Request]:
        requests: list[httpx.Request] = []
        client_class = httpx.Client

        def record(request: httpx.Request) -> httpx.Response:
            requests.append(request)
            return answer

        transport = httpx.MockTransport(record)
        monkeypatch.setattr(httpx, "Client", lambda **options: client_class(**{**options, "transport": transport}))
        return requests

    return install


def test_the_service_explains_a_replica_by_a_part_of_its_id_with_its_settings() -> None:
    found = explained("r1")
    assert (found.replica_id, found.decided_by, found.decode_batch_size) == ("chat#r1", "planner fleet", 4)
    assert (found.settings_version, found.settings_confirmed) != (None, None)
    assert all(arm.predicted_tokens_per_s is not None for arm in found.arms)


def test_the_service_names_the_replicas_that_exist() -> None:
    with pytest.raises(OperationError, match="no replica 'r7'; there are chat#r1, chat#r2") as refused:
        explained("r7", ticks=1)
    assert refused.value.code == HTTPStatus.NOT_FOUND


def test_explain_shows_the_answer_every_voice_and_every_k(serve: Callable[[httpx.Response], list[httpx.Request]]) -> None:
    requests = serve(httpx.Response(200, json=to_plain(explained("r1"))))
    shown = call("chat#r1", "--url", "http://gpu-box:9000")
    assert shown.exit_code == 0, shown.output
    assert str(requests[0].url) == "http://gpu-box:9000/nightjar/explain?replica=chat%23r1"
    assert "of drafts made" not in " ".join(shown.stdout.split())
    parts = [
        "chat#r1  ",
        "at decode batch 4: batch 4-5: ",
        "=>",
        "planner fleet",
        "mode auto set by the settings",
        "against off",
        "±",
        "steps (own)",
    ]
    assert [part for part in parts if part not in shown.stdout] == []
    rows = [line.split()[0] for line in shown.stdout.splitlines() if line.startswith((" off ", " K="))]
    assert rows == ["off", "K=1", "K=3", "K=5"]
    planned = next(line for line in shown.stdout.splitlines() if "planned" in line)
    assert re.search(r" \d+ \(\d+\) +\d+s +runs, planned$", planned.rstrip()), planned
    assert max(len(line.rstrip()) for line in shown.stdout.splitlines() if line.startswith((" off ", " K="))) <= 80


def test_acceptance_that_adaptive_verification_censors_is_told_as_of_the_drafts_made(
    serve: Callable[[httpx.Response], list[httpx.Request]],
) -> None:
    serve(httpx.Response(200, json=to_plain(explained("r1").model_copy(update={"censored_acceptance": True}))))
    assert re.search(r"acceptance [0-9]\S+ of drafts made;", " ".join(call("chat#r1").stdout.split()))


def test_explain_fits_80_columns_without_a_broken_row(serve: Callable[[httpx.Response], list[httpx.Request]]) -> None:
    answer = explained("r1")
    wide = KExplanation(
        num_speculative_tokens=12,
        predicted_tokens_per_s=12345.6,
        gain_over_off=-0.341,
        gain_deviation=0.5355,
        measured_tokens_per_s=12345.6,
        clean_steps=60000.0,
        own_steps=1234.0,
        measured_age_s=599.0,
        exceeds_limit=True,
    )
    others = [arm.model_copy(update={"measured_tokens_per_s": None}) for arm in answer.arms]
    serve(httpx.Response(200, json=answer.model_copy(update={"arms": (*others, wide)}).model_dump(mode="json")))
    lines = CliRunner().invoke(cli.app, ["explain", "r1"], env={"COLUMNS": "80", "NIGHTJAR_URL": ""}).stdout.splitlines()
    assert max(map(len, lines)) <= 80
    table = lines[next(number for number, line in enumerate(lines) if line.startswith(" K ")) :]
    assert [line.split()[0] for line in table[2:-2]] == ["off", "K=1", "K=3", "K=5", "K=12"], "one line each"
    assert table[-3].split() == ["K=12", "12345.6", "-34%", "±107%", "12345.6", "60000", "(1234)", "9m59s", "over", "limit"]
    assert all(row.split()[1].startswith("~") for row in table[2:6])
    assert lines[-1] == "~ not measured itself, told by its neighbours"


def test_explain_as_json_is_the_record(serve: Callable[[httpx.Response], list[httpx.Request]]) -> None:
    explanation = to_plain(explained("r1"))
    serve(httpx.Response(200, json=explanation))
    assert json.loads(call("r1", "-o", "json").stdout) == explanation


@pytest.mark.parametrize(
    ("answer", "part"),
    [
        (httpx.Response(404, json={"detail": "no replica 'r7'; there are chat#r1"}), "no replica 'r7'; there are chat#r1"),
        (httpx.Response(503, json={"detail": "the policy actor does not answer"}), "does not answer"),
        (httpx.Response(200, json={"replica_id": "r1"}), "no explanation of this version"),
    ],
)
def test_what_brings_no_explanation_is_one_line(
    serve: Callable[[httpx.Response], list[httpx.Request]], answer: httpx.Response, part: str
) -> None:
    serve(answer)
    failed = call("r7")
    assert (failed.exit_code, failed.stderr.count("\n")) == (1, 1)
    assert part in failed.stderr


def write(folder: Path) -> list[float]:
    """A recording of eight ticks; somebody turns the fleet off before the fifth. Returns when each tick decided."""
    file = RecordingFile(folder)

    async def run() -> None:
        async with recorded_fleet(Replica("chat#r1", batch=4), Replica("chat#r2", batch=1), sink=WrittenAtOnce(file)) as fleet:
            await fleet.run(4)
            await fleet.service.set_mode({"mode": "off", "reason": "incident", "for_s": 60.0})
            await fleet.run(4)

    asyncio.run(run())
    file.close()
    return [frame.time_s for frame in RecordingReader(folder / FILE_NAME)]


def at(time_s: float) -> str:
    """A time as a person types it."""
    return f"2023-11-14T22:13:{time_s - 1_700_000_000 + 20:09.6f}Z"


def test_a_journal_explains_what_was_so_at_a_time(tmp_path: Path) -> None:
    times_s = write(tmp_path)
    before, after = (
        json.loads(call("chat#r1", "--journal", tmp_path, "--at", at(time_s + 0.1), "-o", "json").stdout)
        for time_s in (times_s[3], times_s[4])
    )
    assert (before["decided_by"], before["mode"], before["at_s"]) == ("planner fleet", "auto", times_s[3])
    assert (after["decided_by"], after["mode"], after["at_s"]) == ("mode", "off", times_s[4])
    assert "mode off set by fleet by hand (incident), for 60 s more" in after["summary"]


def test_a_journal_without_a_time_explains_its_last_tick(tmp_path: Path) -> None:
    times_s = write(tmp_path)
    assert json.loads(call("r2", "--journal", tmp_path, "-o", "json").stdout)["at_s"] == times_s[-1]


@pytest.mark.parametrize(
    ("replica", "time", "part"),
    [
        ("r7", "2023-11-14T22:13:22Z", "no replica 'r7'; there are chat#r1, chat#r2 at 2023-11-14T22:13:22Z"),
        ("r1", "2023-11-14T22:00:00Z", "holds no tick that can be replayed up to that time"),
        ("r1", "2023-11-14T23:00:00Z", "holds nothing of 2023-11-14T23:00:00Z; its last tick before is of 2023-11-14T22:13:24Z"),
    ],
)
def test_what_a_journal_does_not_hold_is_one_line(tmp_path: Path, replica: str, time: str, part: str) -> None:
    write(tmp_path)
    failed = call(replica, "--journal", tmp_path, "--at", time)
    assert (failed.exit_code, failed.stderr.count("\n")) == (1, 1)
    assert part in failed.stderr


def test_a_time_without_a_journal_is_a_usage_error() -> None:
    failed = call("r1", "--at", "10m")
    assert failed.exit_code == 2
    assert "--at needs --journal FILE" in failed.stderr
