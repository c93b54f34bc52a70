"""The tutorial, command by command as it is printed: from a checkout to a steered engine, by an own Serve config, and out again.

Only ports, lengths of the load and folders differ. `nightjar run` goes on beside the commands that follow it, as in a terminal of
its own, until the page starts the next one or takes Nightjar out of the file.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import httpx
import pytest

pytest.importorskip("ray.serve")
pytest.importorskip("vllm")
from tests.deployments.serving import need_models
from tests.ports import free_port

pytestmark = [pytest.mark.ray, pytest.mark.engine, pytest.mark.long]

ROOT: Final = Path(__file__).parents[3]
BIN: Final = Path(sys.executable).parent
PAGE: Final = (ROOT / "docs/tutorial.md").read_text(encoding="utf-8")
BEFORE_ANY_TEST: Final = ("make install", "make models", ". .venv/bin/activate")
"""What was done when a test runs; the environment below does what the last one does."""
SERVES_WITHIN_S: Final = 300.0
COMMAND_TIMEOUT_S: Final = 240.0


def commands() -> list[str]:
    """What stands behind a `$`, in the page's order."""
    blocks = re.findall(r"```console\n(.*?)```", PAGE, re.DOTALL)
    return [line[2:] for block in blocks for line in block.splitlines() if line.startswith("$ ")]


def serve_file() -> str:
    """The config that the page has its reader save."""
    (file,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    return str(file)


class Terminal:
    """A folder with the files that the page names, its own port in them, and the environment that `export` adds to."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("NIGHTJAR_", "RAY_", "SERVE_"))}
        self.environment = kept | {
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "NIGHTJAR_URL": f"http://127.0.0.1:{self.port}",
            "RAY_worker_niceness": "0",
            "COLUMNS": "110",
        }
        (folder / "loadtests").symlink_to(ROOT / "loadtests")
        (folder / "cluster/configs").mkdir(parents=True)
        for name in ("cluster/configs/local-cpu.yaml", "serve.yaml"):
            text = serve_file() if name == "serve.yaml" else (ROOT / name).read_text(encoding="utf-8")
            (folder / name).write_text(self.mine(text), encoding="utf-8")

    def mine(self, text: str) -> str:
        """Text with this terminal's port."""
        return text.replace("port: 8000", f"port: {self.port}").replace("127.0.0.1:8000", f"127.0.0.1:{self.port}")

    def type(self, command: str) -> str:
        """What a command prints, once it has ended well."""
        if command.startswith("export "):
            name, _, value = shlex.split(command, comments=True)[1].partition("=")
            self.environment[name] = value
            return ""
        words = shlex.split(self.mine(command).replace(":30@", ":8@"), comments=True)
        done = subprocess.run(
            words, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S, check=False
        )
        assert done.returncode == 0, f"{command}: {done.stdout[-3000:]}{done.stderr[-3000:]}"
        return done.stdout

    @contextlib.contextmanager
    def running(self, command: str) -> Iterator[None]:
        """A command that goes on until Ctrl-C, from when its models answer."""
        with (self.folder / "run.log").open("w") as log:
            process = subprocess.Popen(
                shlex.split(command, comments=True), cwd=self.folder, env=self.environment, stdout=log, stderr=log
            )
        try:
            deadline_s = time.monotonic() + SERVES_WITHIN_S
            while not self._answers():
                told = (self.folder / "run.log").read_text()
                assert process.poll() is None, told
                assert time.monotonic() < deadline_s, told
                time.sleep(0.5)
            yield
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(timeout=120)

    def _answers(self) -> bool:
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(f"http://127.0.0.1:{self.port}/v1/models", timeout=5, trust_env=False).status_code == 200
        return False


def test_the_tutorial_does_what_it_says(tmp_path: Path) -> None:
    need_models("smollm2-135m", "smollm2-135m-x3", "smollm2-135m-noise05", "smollm2-135m-noise08")
    terminal = Terminal(tmp_path)
    before = (tmp_path / "serve.yaml").read_text()
    told: dict[str, list[str]] = {}
    with contextlib.ExitStack() as until_ctrl_c:
        for command in commands():
            if command.startswith(BEFORE_ANY_TEST):
                continue
            if command.startswith(("nightjar run", "nightjar migrate serve.yaml --remove")):
                until_ctrl_c.close()
            if command.startswith("nightjar run"):
                until_ctrl_c.enter_context(terminal.running(command))
            else:
                told.setdefault(command.partition("#")[0].strip(), []).append(terminal.type(command))
    (answer,) = (out for command, outs in told.items() if command.startswith("curl") for out in outs)
    assert '"finish_reason"' in answer
    at_first, in_shadow, steered = told["nightjar status"]
    assert "policy mode auto" in at_first
    assert "policy mode shadow" in in_shadow
    assert re.search(r"group \S+: 1 replica, planner fleet\n +K by decode batch", in_shadow), "a plan, while nothing is steered"
    assert "override: fleet -> auto" in steered
    assert (tmp_path / "serve.yaml").read_text() == before
