"""`nightjar gpu-proof`."""

from __future__ import annotations

import importlib
from dataclasses import replace
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


@app.command(name="gpu-proof")
def gpu_proof(
    target: Annotated[str, typer.Option(help="Folder or hub name; without it, tiny models made by code.")] = "",
    draft: Annotated[str, typer.Option(help="A separate draft model of the target's vocabulary.")] = "",
    head: Annotated[str, typer.Option(help="An EAGLE or MTP head of the target; `mtp` where the target has it built in.")] = "",
    out: Annotated[
        Path, typer.Option(help="Folder of the run: the page, the JSON, logs. A run that was cut off goes on there.")
    ] = Path("runs/gpu-proof"),
    bench: Annotated[
        bool, typer.Option("--bench", help="Also the contest of speeds: an hour and a half for each drafter.")
    ] = False,
    rig: Annotated[bool, typer.Option("--rig", help="A rehearsal on a CPU, with tiny models.")] = False,
    again: Annotated[bool, typer.Option("--again", help="Begin anew, and forget what the folder holds.")] = False,
    only: Annotated[list[str] | None, typer.Option(help="This phase alone; may be repeated. Others keep what they found.")] = None,
    seed: Annotated[int, typer.Option(help="Of everything that is drawn.", min=0)] = 0,
) -> None:
    """Prove on this machine's GPU what Nightjar says of it, in about 45 minutes, and write a page that you can send back.

    Needs vLLM, and the machine to itself. The page and the JSON hold no prompt, no answer, no secret and no path. Exit code 1 where
    a phase failed, 2 where nothing could be run.
    """
    console = Console(highlight=False, soft_wrap=True)
    phases = wanted_phases(bench=bench, only=only or ())
    if unknown := sorted(set(only or ()) - {phase.name for phase in phases}):
        known = ", ".join(phase.name for phase in wanted_phases(bench=True, only=()))
        _refuse(f"--only {unknown[0]}: no such phase; there are {known}")
    try:
        importlib.import_module("vllm")
    except ImportError as error:
        _refuse(f"vLLM cannot be imported ({error}); install nightjar-serve[gpu], or [cpu] for --rig")
    out.mkdir(parents=True, exist_ok=True)
    try:
        chosen = choose(
            on_rig=rig,
            seed=seed,
            target=target,
            draft=draft,
            head=head,
            made=(out / "models").resolve(),
            download=_download,
            build=_build,
        )
        work = open_folder(out, chosen, again=again)
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
    tiny_models: Any = importlib.import_module("nightjar.deployments.rig.tiny_models")
    return tiny_models.build_tiny_models(folder, tiny_models.ATTENTIVE)  # whose drafters are worth nothing without their KV
