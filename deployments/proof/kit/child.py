"""One task of the proof kit in a process of its own, in the environment that running.py made for it.

`python -m nightjar.deployments.proof.kit.child PHASE TASK CHOSEN.json OUTCOME.json`. A task that raises
ends the process with the error; its log has all of it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from nightjar.deployments.engine.process_guard import end_with_replica
from nightjar.deployments.proof.kit.chosen import Chosen
from nightjar.deployments.proof.kit.plan import phase_named
from nightjar.deployments.proof.outcome import end_with


def main(arguments: Sequence[str]) -> None:
    """See the module."""
    end_with_replica()
    phase_name, task_name, chosen_file, outcome_file = arguments
    chosen = Chosen.from_plain(json.loads(Path(chosen_file).read_text(encoding="utf-8")))
    phase = phase_named(phase_name)
    task = next(task for task in phase.tasks(chosen) if task.name == task_name)
    end_with(phase.perform(task, chosen), Path(outcome_file))


if __name__ == "__main__":
    main(sys.argv[1:])
