"""The way of a Ray user: `ray start`, `serve deploy`, Locust against it, and Nightjar taken out again while requests run.

The commands are those of the README, each in a process of its own, as a person types them.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import yaml

pytest.importorskip("ray.serve")
pytest.importorskip("vllm")
from nightjar.cluster.local.cluster import QUIET_ENVIRONMENT
from nightjar.cluster.local.session import end_session
from nightjar.deployments.models import models_folder
from tests.deployments.serving import need_models, until
from tests.ports import free_port

pytestmark = [pytest.mark.ray, pytest.mark.engine]

ROOT = Path(__file__).parents[3]
BIN = Path(sys.executable).parent
LOCAL_CPU = ROOT / "cluster/configs/local-cpu.yaml"
SERVES_WITHIN_S = 300.0
STARTS = 3
"""Of `ray start`, each with ports of its own: two processes may have asked for one port at once."""
ANSWERS_WITHIN_S = 180.0
USERS = 2
PAUSE_S = 2.0
"""Between two requests of a user: enough to notice a gap, and not all of a machine on which other tests run as well."""

RAY_SERVE_LLM = """\
# One replica of a small model on a CPU, by ray.serve.llm.
http_options: {{host: 127.0.0.1, port: {port}}}
applications:
- name: chat
  route_prefix: /
  import_path: ray.serve.llm:build_openai_app
  args:
    llm_configs:
    - model_loading_config: {{model_id: smollm2, model_source: {target}}}
      accelerator_config: {{kind: cpu}}
      placement_group_config: {{bundles: [{{CPU: 1}}]}}
      engine_kwargs:
        dtype: float32
        enforce_eager: true
        max_model_len: 512
        max_num_seqs: 16
        speculative_config: {{method: draft_model, model: {draft}, num_speculative_tokens: 3}}
      deployment_config: {{num_replicas: 1, max_ongoing_requests: 64}}
"""


@dataclass(frozen=True, slots=True)
class HandStartedRay:
    """A cluster that `ray start` left running."""

    folder: Path
    """Where commands are typed: a checkout's configs lie in it, on a free port."""
    environment: dict[str, str]
    port: int

    @property
    def url(self) -> str:
        """Where Serve's proxy listens."""
        return f"http://127.0.0.1:{self.port}"

    def run(self, command: str, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
        """A command line of this installation, to its end."""
        return subprocess.run(
            shlex.split(command),
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def succeeds(self, command: str) -> str:
        """What a command line says that must end well."""
        done = self.run(command)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def shown_in_a_terminal(self, command: str, until_it_says: str) -> str:
        """What a command line that goes on for ever draws in a terminal, until it said something or five minutes are over."""
        ours, theirs = os.openpty()
        process = subprocess.Popen(
            shlex.split(command), cwd=self.folder, env=self.environment, stdin=theirs, stdout=theirs, stderr=theirs
        )
        os.close(theirs)
        shown = b""
        deadline_s = time.monotonic() + 300
        while until_it_says.encode() not in shown and time.monotonic() < deadline_s:
            if select.select([ours], [], [], 1.0)[0]:
                shown += os.read(ours, 65_536)
        process.kill()
        process.wait(timeout=30)
        os.close(ours)
        return shown.decode(errors="replace")

    def deploy(self, command: str, *applications: str) -> None:
        """`serve deploy`, and wait until exactly these applications run as the file says."""
        self.succeeds(command)
        until(lambda: self._runs(applications), within_s=SERVES_WITHIN_S, what=f"applications {applications} run")

    def _runs(self, applications: tuple[str, ...]) -> bool:
        told = self.succeeds("serve status")
        states = {name: one["status"] for name, one in yaml.safe_load(told)["applications"].items()}
        assert "DEPLOY_FAILED" not in states.values(), told
        return set(states) == set(applications) and set(states.values()) == {"RUNNING"}

    def locust(self, rows: Path, regime: str) -> list[str]:
        """The command that plays a regime from two processes."""
        return [
            str(BIN / "locust"), "-f", "loadtests/locustfile.py", "--headless", "--processes", "2", "--host", self.url,
            "--master-bind-port", str(bind := free_port()), "--master-port", str(bind),
            "--regime", regime, "--max-tokens", "24", "--drain-s", "240", "--rows", str(rows),
        ]  # fmt: skip


@pytest.fixture(scope="module")
def ray_by_hand() -> Iterator[HandStartedRay]:
    """Started by `ray start --head`; at the end nothing of it is left."""
    need_models("smollm2-135m", "smollm2-135m-x3", "smollm2-135m-noise05", "smollm2-135m-noise08")
    with contextlib.ExitStack() as started:
        for _ in range(STARTS):
            system, folder = started.enter_context(_ray_started_by_hand())
            if _answers(system):
                break
            said = _last_words(folder)
            started.close()
        else:
            pytest.fail(f"the dashboard answered in none of {STARTS} starts; Ray's last words: {said}")
        yield system


def _answers(system: HandStartedRay) -> bool:
    """Whether Serve's REST interface comes to answer in the time of one start."""
    deadline_s = time.monotonic() + ANSWERS_WITHIN_S
    while time.monotonic() < deadline_s:
        if system.run("serve status").returncode == 0:
            return True
        time.sleep(0.5)
    return False


def _last_words(folder: Path) -> str:
    """The ends of what Ray and its dashboard wrote, in one line: a summary of failures shows no more."""
    logs = [folder / "ray.log", *sorted((folder / "session_latest/logs").glob("dashboard*"))]
    ends = [(log.name, log.read_text(errors="replace").split("\n")[-4:]) for log in logs]
    return "; ".join(f"{name}: {' / '.join(filter(None, lines))}" for name, lines in ends)


@contextlib.contextmanager
def _ray_started_by_hand() -> Iterator[tuple[HandStartedRay, Path]]:
    """One `ray start --head`, and the folder of what it writes. Its ports are its own."""
    folder = Path(tempfile.mkdtemp(prefix="nj-", dir="/tmp"))  # short: Ray's socket names must fit 107 bytes
    (folder / "token").write_text("0" * 64)
    ours = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "NIGHTJAR_", "SERVE_"))}
    environment = ours | QUIET_ENVIRONMENT | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
        "NIGHTJAR_JOURNAL_DIR": str(folder / "journal"),
        "RAYLLM_ENABLE_WORKER_PROCESS_SETUP_HOOK": "0",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "HF_HUB_OFFLINE": "1",
        "RAY_worker_niceness": "0",
        "NIGHTJAR_API_TOKEN": "s3cret",
        "NIGHTJAR_URL": f"http://127.0.0.1:{(port := free_port())}",
        "RAY_DASHBOARD_ADDRESS": f"http://127.0.0.1:{(dashboard_port := free_port())}",
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "COLUMNS": "200",
    }  # fmt: skip
    configs = folder / "typed/cluster/configs"
    configs.mkdir(parents=True)
    (configs / LOCAL_CPU.name).write_text(LOCAL_CPU.read_text().replace("port: 8000", f"port: {port}"))
    command = [
        str(BIN / "ray"), "start", "--head", "--block", "--num-cpus", "4", "--object-store-memory", str(128 << 20),
        "--temp-dir", str(folder), "--port", str(free_port()), "--ray-client-server-port", str(free_port()),
        "--dashboard-port", str(dashboard_port), "--dashboard-agent-listen-port", str(free_port()),
    ]  # fmt: skip
    with (folder / "ray.log").open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        yield HandStartedRay(folder / "typed", environment, port), folder
    finally:
        process.terminate()
        end_session(process.pid, 30.0)
        process.wait(timeout=30)
        shutil.rmtree(folder, ignore_errors=True)


def failures(rows: Path) -> list[str]:
    """Errors of the requests of a load, none of which may be missing."""
    found = [json.loads(line) for line in rows.read_text().splitlines()]
    assert found
    return [row["error"] or str(row["status"]) for row in found if row.get("error") or row["status"] != 200]


def test_local_file_serves_on_a_cluster_started_by_hand_and_locust_in_two_processes_fails_no_request(
    ray_by_hand: HandStartedRay, tmp_path: Path
) -> None:
    ray_by_hand.deploy("serve deploy cluster/configs/local-cpu.yaml", "smollm2", "nightjar")
    rows = tmp_path / "rows.jsonl"
    load = subprocess.run(
        ray_by_hand.locust(rows, "quiet:10@0.5,surge:10@2"),
        cwd=ROOT, env=ray_by_hand.environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert load.returncode == 0, load.stdout + load.stderr
    assert re.search(r"LLM +e2e +\d+ +0\(0\.00%\)", load.stdout + load.stderr), "a table, with no failure"
    assert failures(rows) == []


@pytest.mark.long
def test_the_operators_commands_show_and_override_what_runs(ray_by_hand: HandStartedRay) -> None:
    ray_by_hand.deploy("serve deploy cluster/configs/local-cpu.yaml", "smollm2", "nightjar")
    assert ray_by_hand.succeeds("nightjar status").count("smollm2") >= 2
    assert "mode pin=3 for 30m" in ray_by_hand.succeeds('nightjar mode pin=3 --for 30m --reason "comparing"')
    assert "comparing" in ray_by_hand.succeeds("nightjar status")
    assert "mode off" in ray_by_hand.succeeds("nightjar mode off")
    assert "mode auto" in ray_by_hand.succeeds("nightjar mode auto")
    assert "mode default" in ray_by_hand.succeeds("nightjar mode default")
    assert "baseline, 0 of 8 blocks" in ray_by_hand.succeeds("nightjar canary --mode pin=3 --share 0.25")
    assert "on 25 % of the replicas" in ray_by_hand.succeeds("nightjar status")
    assert "ended" in ray_by_hand.succeeds("nightjar canary --end")
    assert "frozen for 2h" in ray_by_hand.succeeds('nightjar freeze --for 2h --reason "release"')
    assert "by hand (release)" in ray_by_hand.succeeds("nightjar status")
    assert "not frozen" in ray_by_hand.succeeds("nightjar freeze --end")
    assert "comparing" not in ray_by_hand.succeeds("nightjar status")
    fleet = json.loads(ray_by_hand.succeeds("nightjar status -o json"))
    replica_id = fleet["replicas"][0]["replica_id"]
    assert replica_id in ray_by_hand.succeeds("nightjar explain REPLICA".replace("REPLICA", replica_id))
    ray_by_hand.succeeds("nightjar export learned.json")
    ray_by_hand.succeeds("nightjar import learned.json")
    journal = Path(fleet["policy"]["journal_path"])
    assert journal.parent == Path(ray_by_hand.environment["NIGHTJAR_JOURNAL_DIR"])
    ray_by_hand.succeeds("nightjar replay JOURNAL".replace("JOURNAL", str(journal.parent)))
    typed = "nightjar explain REPLICA --journal JOURNAL --at 10m".replace("10m", "1s")
    assert replica_id in ray_by_hand.succeeds(typed.replace("REPLICA", replica_id).replace("JOURNAL", str(journal.parent)))
    assert "smollm2" in ray_by_hand.shown_in_a_terminal("nightjar watch", until_it_says="smollm2")


@pytest.mark.long
def test_compare_runs_each_arm_at_every_replica_and_puts_back_what_ran_before(ray_by_hand: HandStartedRay) -> None:
    ray_by_hand.deploy("serve deploy cluster/configs/local-cpu.yaml", "smollm2", "nightjar")
    ray_by_hand.succeeds('nightjar mode pin=3 --for 30m --reason "comparing"')
    typed = "nightjar compare --arm off --arm pin=5 --arm nightjar --arm fleet"
    short = "--regime quiet:5@1 --max-tokens 12 --rounds 1 --lessons 0 --warm-up-s 1 --folder compared"
    done = ray_by_hand.run(f"{typed} {short}", timeout_s=400)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no verdict from 1 of at least 6 rounds" in done.stdout
    assert "put back: pin=3 by hand" in done.stderr
    lines = (ray_by_hand.folder / "compared/turns.jsonl").read_text().splitlines()
    turns = {turn["arm"]: turn for turn in map(json.loads, lines)}
    assert {arm: turn["planner"] for arm, turn in turns.items()} == {
        "off": "fleet",
        "pin=5": "fleet",
        "nightjar": "nightjar",
        "fleet": "fleet",
    }
    assert turns["off"]["share_of_steps_off"] == 1.0
    at_five = 5 * (1 - turns["pin=5"]["share_of_steps_off"])  # what ran at no K ran while a drafter came back
    assert turns["pin=5"]["mean_num_speculative_tokens"] == pytest.approx(at_five) != 0
    ray_by_hand.succeeds("nightjar report compared")
    fleet = json.loads(ray_by_hand.succeeds("nightjar status -o json"))
    assert [override["mode"] for override in fleet["overrides"]] == ["pin=3"]
    ray_by_hand.succeeds("nightjar mode default")
    ray_by_hand.succeeds(f"nightjar replay {Path(fleet['policy']['journal_path']).parent}")


def test_nightjar_goes_in_and_out_again_under_load_by_migrate_and_serve_deploy_and_fails_no_request(
    ray_by_hand: HandStartedRay,
) -> None:
    file = ray_by_hand.folder / "serve.yaml"
    target, draft = (models_folder() / name for name in ("smollm2-135m", "smollm2-135m-noise08"))
    before = RAY_SERVE_LLM.format(port=ray_by_hand.port, target=target, draft=draft)
    file.write_text(before)
    ray_by_hand.succeeds("nightjar migrate serve.yaml --write")
    ray_by_hand.succeeds("nightjar check serve.yaml")
    migrated = file.read_text()
    file.write_text(migrated.replace("num_gpus: 1", "num_gpus: 0"))  # migrate counts on GPUs; here are none
    ray_by_hand.deploy("serve deploy serve.yaml", "chat", "nightjar")
    file.write_text(migrated)
    with asking(ray_by_hand.url) as answers:
        until(lambda: len(answers) >= 3, within_s=60, what="requests are answered")
        ray_by_hand.succeeds("nightjar migrate serve.yaml --remove --write")
        assert file.read_text() == before
        ray_by_hand.deploy("serve deploy serve.yaml", "chat")
        without_us = len(answers)
        until(lambda: len(answers) >= without_us + 2 * USERS + 1, within_s=120, what="requests that began after Nightjar was gone")
    assert set(answers) == {200}


@contextlib.contextmanager
def asking(url: str) -> Iterator[list[int | str]]:
    """Users that ask again and again until the end of the block: the status of every answer, or what broke it."""
    answers: list[int | str] = []
    over = threading.Event()
    body = {"model": "smollm2", "messages": [{"role": "user", "content": "Count to five."}], "max_tokens": 24}

    def user() -> None:
        with httpx.Client(base_url=url, timeout=240, trust_env=False) as client:
            while not over.wait(PAUSE_S):
                try:
                    answers.append(client.post("/v1/chat/completions", json=body).status_code)
                except httpx.HTTPError as error:
                    answers.append(f"{type(error).__name__}: {error}")

    with ThreadPoolExecutor(USERS) as pool:
        users = [pool.submit(user) for _ in range(USERS)]
        try:
            yield answers
        finally:
            over.set()
    for each in users:
        each.result()
