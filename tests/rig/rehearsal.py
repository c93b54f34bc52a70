"""`nightjar gpu-proof` without a GPU: `python -m tests.rig.rehearsal`, the proof kit's own test, with tiny models on the rig.

The kit asks this module for what a GPU would have decided (kit/engines.Rehearsal), in every process that it starts: they import it
by name, so the repository is on their PYTHONPATH. Fails as the command does, with its exit codes.
"""

from __future__ import annotations

import os
from pathlib import Path

import typer

from nightjar.deployments.engine.start.arguments import EngineArguments
from nightjar.deployments.proof.kit.chosen import Chosen
from nightjar.deployments.proof.kit.command import AgainOption, Asked, BenchOption, OnlyOption, OutOption, SeedOption, prove
from nightjar.deployments.proof.kit.engines import EngineSpec
from tests.rig.arguments import on_the_rig
from tests.rig.environment import ROOT, rig_environment


def environment(spec: EngineSpec, folder: Path, *, in_one_process: bool) -> dict[str, str]:
    """The rig's. See kit/engines.Rehearsal."""
    return rig_environment(
        folder,
        runner=spec.runner(),
        asynchronous=spec.scheduling == "async",
        in_one_process=in_one_process,
        kv_cache_is_sized=spec.room == "lends",
        environ=os.environ,
    )


def arguments(arguments: EngineArguments, spec: EngineSpec, chosen: Chosen) -> EngineArguments:
    """The rig's. See kit/engines.Rehearsal."""
    return on_the_rig(arguments, runner=spec.runner(), lending_draft=Path(chosen.draft) if spec.room == "lends" else None)


def rehearse(
    out: OutOption = Path("runs/gpu-proof"),
    bench: BenchOption = False,
    again: AgainOption = False,
    only: OnlyOption = None,
    seed: SeedOption = 0,
) -> None:
    """Rehearse `nightjar gpu-proof` on a CPU, with tiny models. Times mean nothing."""
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (ROOT, os.environ.get("PYTHONPATH"))))
    prove(Asked(out, bench=bench, again=again, only=tuple(only or ()), seed=seed, rehearsal="tests.rig.rehearsal"))


if __name__ == "__main__":
    typer.run(rehearse)
