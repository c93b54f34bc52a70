"""An object in a process of its own answers calls, survives its own errors, and ends with the pipe."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest

from nightjar.deployments.proof.remote import Remote

ROOT = Path(__file__).parents[3]


def counting(tmp_path: Path) -> Remote:
    return Remote("counter", "tests.deployments.proof.counting", [], tmp_path / "log", os.environ | {"PYTHONPATH": str(ROOT)})


def test_a_call_is_answered_and_one_that_raises_leaves_the_object_as_it_was(tmp_path: Path) -> None:
    with counting(tmp_path) as remote:
        assert remote.call("add", 2) == 2
        with pytest.raises(RuntimeError, match="counter, add: ValueError: below 0"):
            remote.call("add", -1)
        assert remote.call("add", 3) == 5
    log = (tmp_path / "log").read_text()
    assert log.count("began") == 1
    assert "Traceback" in log


def test_a_process_that_ends_in_a_call_is_an_error_that_leads_to_its_log(tmp_path: Path) -> None:
    with counting(tmp_path) as remote, pytest.raises(RuntimeError, match="counter ended during 'vanish'; its log says why"):
        remote.call("vanish")


def test_a_process_whose_caller_ends_during_a_call_ends_by_itself_after_it(tmp_path: Path) -> None:
    remote = counting(tmp_path)
    assert remote.call("add", 1) == 1
    remote._ours.send(("outlast_its_caller", ()))
    remote.close()
    assert remote._process.returncode == 0, "it was not killed"


def test_the_process_ends_when_it_is_closed(tmp_path: Path) -> None:
    before = set(psutil.Process().children())
    with counting(tmp_path) as remote:
        assert remote.call("add", 1) == 1
        (started,) = set(psutil.Process().children()) - before
    assert not started.is_running()
