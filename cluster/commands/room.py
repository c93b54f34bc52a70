"""This room's commands, as the other rooms have theirs in `commands.py`."""

from __future__ import annotations

import typer

from nightjar.cluster.commands.canary import canary
from nightjar.cluster.commands.freeze import freeze
from nightjar.cluster.commands.learned import export_file, import_file
from nightjar.cluster.commands.mode import mode
from nightjar.cluster.commands.run import run
from nightjar.cluster.commands.status import status, watch

app = typer.Typer()
for command in (run, status, watch, mode, canary, freeze):
    app.command()(command)
app.command("export")(export_file)
app.command("import")(import_file)
