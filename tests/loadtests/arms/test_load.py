"""A load that is interrupted stops what sends it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from nightjar.loadtests.arms import load

DEAF_TO_SIGINT = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(print("stopped", flush=True)))
print("up", flush=True)
time.sleep(600)
"""


def test_locust_is_stopped_also_where_one_of_its_greenlets_would_swallow_an_interrupt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load, "locust_command", lambda *_: [sys.executable, "-uc", DEAF_TO_SIGINT])
    log = tmp_path / "load.log"

    def interrupt_once_up() -> None:
        if "up" in log.read_text():
            raise KeyboardInterrupt

    sent = load.Load(regime="quiet:10@1")
    with pytest.raises(KeyboardInterrupt):
        load.send(sent, "http://h", 0, tmp_path / "rows.jsonl", "round 1", log=log, on_poll=interrupt_once_up)
    assert log.read_text().splitlines() == ["up", "stopped"]
