"""The `nightjar` command.

Each room brings its own commands. Those of other rooms need vLLM or Locust and are imported by dotted name only when
one of them is run, so `--help`, `status` and `mode` start at once and work where only the core is installed. Fails with
one line naming what is missing where a room's own dependencies are not installed.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any, Final

import typer
from typer.core import TyperCommand, TyperGroup

from nightjar.cluster.commands.mode import mode
from nightjar.cluster.commands.options import fail
from nightjar.cluster.commands.run import run
from nightjar.cluster.commands.status import status, watch


@dataclass(frozen=True, slots=True)
class RoomCommand:
    """A command of another room: the module whose typer `app` holds it, and its line in `--help`."""

    module: str
    help: str
    is_group: bool
    extra: str


ROOM_COMMANDS: Final = {
    "demo": RoomCommand(
        "nightjar.loadtests.commands", "Two real replicas under a changing load: off, pin=5 and auto compared.", False, "load"
    ),
    "report": RoomCommand("nightjar.loadtests.commands", "Write the HTML report of a recorded run.", False, "load"),
    "models": RoomCommand("nightjar.deployments.commands", "Build the small real models that run on a CPU.", True, "cpu"),
}


class RoomGroup(TyperGroup):
    """Lists the other rooms' commands without importing them and imports one when it is run."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Own commands in the order they were added, then those of the other rooms."""
        return [*super().list_commands(ctx), *ROOM_COMMANDS]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command, for a foreign one only its name and its line of help."""
        room = ROOM_COMMANDS.get(cmd_name)
        return TyperCommand(cmd_name, help=room.help) if room else super().get_command(ctx, cmd_name)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command to run; here a foreign one is imported."""
        room = ROOM_COMMANDS.get(args[0]) if args else None
        if room is None:
            return super().resolve_command(ctx, args)
        return args[0], load_room_command(args[0], room), args[1:]


def load_room_command(name: str, room: RoomCommand) -> Any:
    """Import a room's commands. Leaves with one line where a package that the room needs is not installed."""
    try:
        group = typer.main.get_group(import_module(room.module).app)
    except ModuleNotFoundError as error:
        fail(f"`nightjar {name}` needs the package {error.name}; install nightjar-serve[{room.extra}]")
        raise AssertionError from error
    return group if room.is_group else group.commands[name]


app = typer.Typer(
    name="nightjar",
    cls=RoomGroup,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="LLM serving whose speculative decoding follows the load: run it, watch it, override it.",
)
app.command()(run)
app.command()(status)
app.command()(watch)
app.command()(mode)


def main() -> None:
    """Entry point of the `nightjar` command."""
    app()
