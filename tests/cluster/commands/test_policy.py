"""`nightjar policy`: what it refuses in one line, how it waits for its folder, and one that is killed and comes back."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from structlog.testing import capture_logs
from typer.testing import CliRunner, Result

from nightjar.cluster import cli
from nightjar.cluster.api.exchange_client import HttpPolicy
from nightjar.cluster.api.operations import OperationError
from nightjar.cluster.commands.policy import TAKE_WITHIN_S, taken
from nightjar.cluster.storage.state_folder import StateFolder, StateFolderError
from tests.cluster.protocol import Replica
from tests.ports import free_port

pytestmark = pytest.mark.usefixtures("plain_environment")

STARTS_WITHIN_S = 120.0


def call(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, ["policy", *map(str, arguments)])


def test_beyond_this_machine_it_starts_only_with_the_token_of_those_who_report(tmp_path: Path) -> None:
    refused = call("--state", tmp_path, "--host", "0.0.0.0")
    assert refused.exit_code == 1
    assert refused.stderr == (
        "error: --host 0.0.0.0: whoever reaches it could report; set NIGHTJAR_EXCHANGE_TOKEN (or ..._FILE) here and there\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_what_is_wrong_with_its_settings_or_its_folder_is_one_line(tmp_path: Path) -> None:
    settings = tmp_path / "settings.yaml"
    settings.write_text("dwel_steps: 7\n")
    (tmp_path / "file").write_text("")
    for arguments, named in (
        (("--state", tmp_path, "--settings", settings), f"error: --settings {settings}: dwel_steps"),
        (("--state", tmp_path / "file" / "state"), f"error: state folder {tmp_path}/file/state: cannot be used"),
    ):
        refused = call(*arguments)
        assert refused.exit_code == 1
        (line,) = refused.stderr.splitlines()
        assert line.startswith(named)


@pytest.mark.looptime
async def test_a_second_policy_waits_for_a_folder_that_is_held_and_says_so_once(tmp_path: Path) -> None:
    first = StateFolder.take(tmp_path)
    with capture_logs() as logs:
        second = asyncio.create_task(taken(tmp_path))
        await asyncio.sleep(TAKE_WITHIN_S / 2)
        assert not second.done()
        first.close()
        assert (await second).why_lost() == ""
    assert [entry["event"] for entry in logs] == ["state_folder_held"]


@pytest.mark.looptime
async def test_a_second_policy_ends_in_words_where_its_folder_stays_held(tmp_path: Path) -> None:
    first = StateFolder.take(tmp_path)
    began_s = asyncio.get_running_loop().time()
    with pytest.raises(StateFolderError, match=f"state folder {tmp_path}: another policy holds it; name one for each policy"):
        await taken(tmp_path)
    assert asyncio.get_running_loop().time() - began_s >= TAKE_WITHIN_S
    first.close()


@contextmanager
def running(state: Path, port: int, settings: Path) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "tests.deployments.plain_vllm.nightjar_command", "policy"]
    command += ["--state", str(state), "--port", str(port), "--settings", str(settings)]
    process = subprocess.Popen(command)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


async def reports_until(holds: Callable[[], bool], policy: HttpPolicy, replica: Replica) -> None:
    """Report as an agent does, whatever the policy answers."""
    ends_s = time.monotonic() + STARTS_WITHIN_S
    while not holds():
        assert time.monotonic() < ends_s, f"the replica runs {replica.version}, {replica.mode}"
        try:
            replica.apply(await policy.exchange(replica.report(), 30.0))
        except OperationError:
            await asyncio.sleep(0.2)


@pytest.mark.heavy
async def test_inv_5_a_policy_that_is_killed_under_reports_comes_back_with_its_state_and_above_what_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NIGHTJAR_EXCHANGE_TOKEN", "s3cret")
    state, port, settings = tmp_path / "state", free_port(), tmp_path / "settings.yaml"
    settings.write_text("mode: pin=2\n")
    url = f"http://127.0.0.1:{port}"
    policy, replica = HttpPolicy(url), Replica()
    with running(state, port, settings) as first:
        await reports_until(lambda: str(replica.mode) == "pin=2", policy, replica)
        before = replica.version
        first.kill()
        first.wait()
        with pytest.raises(OperationError):
            await policy.exchange(replica.report(), 30.0)
    with running(state, port, settings) as second:
        await reports_until(lambda: replica.version != before, policy, replica)
        assert before is not None
        assert replica.version is not None
        assert replica.version.incarnation > before.incarnation
        assert str(replica.mode) == "pin=2"
        async with httpx.AsyncClient(base_url=url, trust_env=False) as reader:
            status = (await reader.get("/nightjar/status")).json()
            assert [one["replica_id"] for one in status["replicas"]] == ["r1"]
            assert status["policy"]["incarnation"] == replica.version.incarnation
            assert "nightjar_policy_reports_total" in (await reader.get("/metrics")).text
        second.terminate()
        assert second.wait(timeout=STARTS_WITHIN_S) == -signal.SIGTERM
    await policy.close()
