"""An outcome is written whole, and ends the process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
PROGRAM = """
import sys, threading
from pathlib import Path
from nightjar.deployments.proof.outcome import end_with
threading.Thread(target=threading.Event().wait).start()
end_with({"steps": 3}, Path(sys.argv[1]))
"""


def test_a_process_ends_with_its_outcome_though_a_thread_of_its_engine_lives_on(tmp_path: Path) -> None:
    file = tmp_path / "outcome.json"
    command = [sys.executable, "-c", PROGRAM, str(file)]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, timeout=600, check=False)
    assert done.returncode == 0
    assert json.loads(file.read_text()) == {"steps": 3}
    assert [each.name for each in tmp_path.iterdir()] == ["outcome.json"]
