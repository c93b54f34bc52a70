"""`make load-trace` as docs/load-traces.md has it, against a server made up."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

import pytest

from nightjar.loadtests.load.figures import LoadSummary
from tests.loadtests.fake_server import running_fake_server
from tests.loadtests.load.trace_files import write_trace_files

ROOT = Path(__file__).parents[3]
COMMAND = "make load-trace TRACE=requests.csv PROMPTS=texts.jsonl"


@pytest.mark.command
def test_the_target_plays_a_trace_against_the_server_that_it_is_given(tmp_path: Path) -> None:
    files = write_trace_files(tmp_path, requests=6)
    command = COMMAND.replace("requests.csv", str(files.trace)).replace("texts.jsonl", str(files.prompts))
    with running_fake_server() as server:
        words = (f"HOST={server.url}", f"ARGS=--runs {tmp_path / 'runs'}")
        done = subprocess.run([*shlex.split(command), *words], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(server.requests) == 6
    summary = LoadSummary.model_validate_json((tmp_path / "runs/latest/load.json").read_bytes())
    assert (summary.load, summary.figures.requests, summary.figures.failed) == (files.trace.name, 6, 0)


def test_the_target_says_what_it_needs_where_it_is_given_nothing() -> None:
    done = subprocess.run(["make", "--dry-run", "load-trace"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0
    assert "TRACE is needed: make load-trace TRACE=requests.csv PROMPTS=texts.jsonl" in done.stderr
