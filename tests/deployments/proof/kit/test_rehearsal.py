"""The whole proof kit on the rig, contest included: under ten minutes on two cores with nothing beside it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from nightjar.deployments.proof.kit.plan import PHASES

ROOT: Final = Path(__file__).parents[4]
pytest.importorskip("vllm")
pytestmark = [pytest.mark.engine, pytest.mark.long]


def proof(out: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.rig.rehearsal", "--bench", "--out", str(out)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1800, check=False)


def test_the_rehearsal_proves_every_phase_and_a_second_run_finds_all_of_it_there(tmp_path: Path) -> None:
    first = proof(tmp_path)
    assert first.returncode == 0, first.stdout[-6000:] + first.stderr[-3000:]
    plain = json.loads((tmp_path / "proof.json").read_text())
    assert {phase["name"]: phase["verdict"] for phase in plain["phases"]} == {
        phase.name: "measured" if phase.name in {"off", "contest"} else "proved" for phase in PHASES
    }
    second = proof(tmp_path)
    assert second.returncode == 0
    assert second.stdout.count("there already") == first.stdout.count(" s\n")
