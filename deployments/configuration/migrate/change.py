"""`nightjar migrate`: what kind of source it is, and what changes where.

A file is changed only by edits that were undone before: what the edits make is read, and Nightjar taken out of it again. Files are
replaced as a whole, so that a full disk leaves the old one.
"""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nightjar.deployments.configuration.check.source import SourceError
from nightjar.deployments.configuration.migrate.adoption import add_nightjar
from nightjar.deployments.configuration.migrate.application import diff
from nightjar.deployments.configuration.migrate.removal import remove_nightjar
from nightjar.deployments.configuration.migrate.vllm_command import (
    check_no_other_script,
    command_to_config,
    config_to_command,
    is_command,
)

NEW_CONFIG: Final = Path("serve.yaml")
STDIN: Final = "-"


@dataclass(frozen=True, slots=True)
class Change:
    """A text before and after, and the file that holds it after."""

    name_before: str
    before: str
    path: Path
    after: str
    is_new: bool = False  # the file is another one than the source, which stays

    @property
    def changes_something(self) -> bool:
        """False where the source is as it should be."""
        return self.before != self.after

    def diff(self) -> str:
        """As `diff -u` and `git apply` write and read it."""
        return diff(self.before, self.after, self.name_before, str(self.path))

    def write(self) -> None:
        """Write the file. Raises SourceError where that would replace another one."""
        data = self.after.encode()
        if self.is_new and self.path.exists() and self.path.read_bytes() != data:
            raise SourceError(1, f"{self.path} is there already and holds something else; name another file with --output")
        path = self.path.resolve()  # a link stays one
        part = path.with_name(f".{path.name}.part")
        try:
            part.write_bytes(data)
            if path.exists():
                shutil.copymode(path, part)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)


def plan_change(source: str, *, remove: bool, keep_host: bool = False, output: Path | None = None) -> Change:
    """What putting Nightjar in, or taking it out, does to a file or a command. `keep_host`: ray.serve.llm goes on serving.

    Raises SourceError, OSError, UnicodeDecodeError.
    """
    if is_command(source):
        if remove:
            raise SourceError(1, "a command holds no Nightjar; name the Serve config that was made from it")
        return Change("command", f"{source}\n", output or NEW_CONFIG, command_to_config(source), is_new=True)
    path = NEW_CONFIG if source == STDIN else Path(source)
    text = read_text(source)
    if text.startswith("\ufeff"):
        raise SourceError(1, "the file begins with a byte order mark; save it as UTF-8 without one first")
    if is_command(text) and not remove:
        return Change(source, text, output or path.with_suffix(".yaml"), command_to_config(text), is_new=True)
    check_no_other_script(text)
    command = config_to_command(text) if remove else None
    if command is not None:
        return Change(source, text, output or path.with_suffix(".sh"), command, is_new=True)
    after = remove_nightjar(text) if remove else add_nightjar(text, keep_host=keep_host)
    if not remove:
        _check_way_back(text, after)
    return Change(source, text, output or path, after, is_new=source == STDIN or output not in (None, path))


def read_text(source: str) -> str:
    """Of a file, or of standard input, byte for byte but for the encoding. Raises OSError, UnicodeDecodeError."""
    data = sys.stdin.buffer.read() if source == STDIN else Path(source).read_bytes()
    return data.decode("utf-8")


def _check_way_back(before: str, after: str) -> None:
    """Raises SourceError for edits that cannot be undone, byte for byte where the file held nothing of Nightjar's before."""
    try:
        back = remove_nightjar(after)
        held_some = remove_nightjar(before) != before
    except SourceError as error:
        message = f"what would be written could not be taken out again ({error}); nothing is changed: put Nightjar in by hand"
        raise SourceError(error.line, message) from error
    if back != before and not held_some:
        raise SourceError(1, "what would be written could not be taken out again; nothing is changed: put Nightjar in by hand")
