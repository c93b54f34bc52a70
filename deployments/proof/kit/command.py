"""`nightjar gpu-proof`, and what it shares with its rehearsal without a GPU (tests/rig/rehearsal.py)."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from nightjar.deployments.proof.kit.chosen import ChosenModelError, choose
from nightjar.deployments.proof.kit.report import judge_all, write
from nightjar.deployments.proof.kit.running import (
    TASKS,
    AnotherRunError,
    Ended,
    alone_in,
    begun,
    open_folder,
    read_outcomes,
    run_tasks,
    wanted_phases,
)
from nightjar.deployments.proof.kit.tasks import Verdict
from nightjar.deployments.proof.kit.telling import Cleaner

app = typer.Typer()
OutOption = Annotated[Path, typer.Option(help="Folder of the run: the page, the JSON, logs. A run that was cut off goes on there.")]
BenchOption = Annotated[bool, typer.Option("--bench", help="Also the contest of speeds: an hour and a half for each drafter.")]
AgainOption = Annotated[bool, typer.Option("--again", help="Begin anew, and forget what the folder holds.")]
OnlyOption = Annotated[list[str] | None, typer.Option(help="This phase alone; may be repeated. Others keep what they found.")]
SeedOption = Annotated[int, typer.Option(help="Of everything that is drawn.", min=0)]


@dataclass(frozen=True, slots=True)
class Asked:
    """The command line. `rehearsal` as in Chosen."""

    out: Path
    target: str = ""
    draft: str = ""
    head: str = ""
    bench: bool = False
    again: bool = False
    only: tuple[str, ...] = ()
    seed: int = 0
    rehearsal: str = ""


@app.command(name="gpu-proof")
def gpu_proof(
    target: Annotated[str, typer.Option(help="Folder or hub name; without it, tiny models made by code.")] = "",
    draft: Annotated[str, typer.Option(help="A separate draft model of the target's vocabulary.")] = "",
    head: Annotated[
        str, typer.Option(help="An EAGLE, MTP, DFlash or DSpark head of the target; `mtp` where the target has it built in.")
    ] = "",
    out: OutOption = Path("runs/gpu-proof"),
    bench: BenchOption = False,
    rig: Annotated[bool, typer.Option("--rig", hidden=True)] = False,
    again: AgainOption = False,
    only: OnlyOption = None,
    seed: SeedOption = 0,
) -> None:
    """Prove on this machine's GPU what Nightjar says of it, in about 45 minutes, and write a page that you can send back.

    Needs vLLM, and the machine to itself. The page and the JSON hold no prompt, no answer, no secret and no path. Exit code 1 where
    a phase failed, 2 where nothing could be run.
    """
    if rig:
        _refuse("--rig left the package: in a checkout of the repository, python -m tests.rig.rehearsal is the same")
    prove(Asked(out, target, draft, head, bench, again, tuple(only or ()), seed))


def prove(asked: Asked) -> None:
    """Run what is asked for and write the page. Raises typer.Exit, with the codes of the command."""
    console, out = Console(highlight=False, soft_wrap=True), asked.out
    phases = wanted_phases(bench=asked.bench, only=asked.only)
    if unknown := sorted(set(asked.only) - {phase.name for phase in phases}):
        known = ", ".join(phase.name for phase in wanted_phases(bench=True, only=()))
        _refuse(f"--only {unknown[0]}: no such phase; there are {known}")
    try:
        importlib.import_module("vllm")
    except ImportError as error:
        _refuse(f"vLLM cannot be imported ({error}); install nightjar-serve[gpu]")
    out.mkdir(parents=True, exist_ok=True)
    try:
        chosen = choose(
            rehearsal=asked.rehearsal,
            seed=asked.seed,
            target=asked.target,
            draft=asked.draft,
            head=asked.head,
            made=(out / "models").resolve(),
            download=_download,
            build=_build,
        )
        work = open_folder(out, chosen, again=asked.again)
    except (ChosenModelError, AnotherRunError) as error:
        _refuse(str(error))
    chosen = replace(chosen, work=str(work.resolve()))
    cleaner = Cleaner([chosen.target, chosen.draft, chosen.head, chosen.work, str(out.resolve())])

    def tell(ended: Ended) -> None:
        state = (
            "there already"
            if ended.was_there
            else f"{ended.seconds:5.0f} s" + (f"  failed: {cleaner.clean(ended.error)}" if ended.error else "")
        )
        console.print(f"{ended.task.phase:14} {ended.task.name:22} {state}", markup=False)

    try:
        with alone_in(work):
            seconds = run_tasks(phases, chosen, tell)
    except AnotherRunError as error:
        _refuse(str(error))
    phases = begun(wanted_phases(bench=True, only=()), chosen)
    outcomes = read_outcomes(phases, chosen)
    judged = judge_all(phases, outcomes, chosen, seconds, cleaner)
    for each in judged:
        console.print(
            f"{each.found.verdict.value:9} {each.phase.title}: {each.found.sentences[0] if each.found.sentences else ''}",
            markup=False,
        )
    files = write(out, judged, outcomes, chosen, cleaner)
    console.print(f"Read {files[-1]} before you send it; {out / TASKS} holds logs, which stay here.", markup=False)
    raise typer.Exit(1 if any(each.found.verdict is Verdict.FAILED for each in judged) else 0)


def _refuse(reason: str) -> None:
    typer.echo(reason, err=True)
    raise typer.Exit(2)


def _download(name: str) -> str:
    hub: Any = importlib.import_module("huggingface_hub")
    return str(hub.snapshot_download(name, ignore_patterns=["*.pth", "*.gguf", "original/*"]))


def _build(folder: Path) -> object:
    tiny_models: Any = importlib.import_module("nightjar.deployments.proof.tiny_models")
    return tiny_models.build_tiny_models(folder, tiny_models.ATTENTIVE)  # whose drafters are worth nothing without their KV
