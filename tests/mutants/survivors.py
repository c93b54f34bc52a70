"""Mutants that live, and why: explained.toml.

An entry names a mutant by module and by its changed lines before and after (spaces do not count), so that it outlives every
change elsewhere in the file. An entry that fits no mutant any more, or one that is killed, is named in the report: it should go.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

FILE: Final = Path(__file__).with_name("explained.toml")


class ExplanationError(ValueError):
    """explained.toml does not say what it must."""


@dataclass(frozen=True, slots=True)
class Explained:
    """One change that no test kills, and why."""

    module: str
    before: str
    after: str
    why: str

    @property
    def key(self) -> tuple[str, str, str]:
        """What names the mutant."""
        return self.module, self.before, self.after


def read_explained(text: str) -> dict[tuple[str, str, str], Explained]:
    """The entries of explained.toml: `module`, `before`, `after` (one or several) and `why`. Raises ExplanationError."""
    found: dict[tuple[str, str, str], Explained] = {}
    for entry in tomllib.loads(text).get("survivor", ()):
        if not {"module", "before", "after", "why"} == entry.keys() or not str(entry["why"]).strip():
            raise ExplanationError(
                f"explained.toml, {entry.get('module')}: {entry.get('before')!r} has {sorted(entry)}; wanted are module, before, "
                "after and a why that is not empty"
            )
        afters: Sequence[str] = [entry["after"]] if isinstance(entry["after"], str) else entry["after"]
        for after in afters:
            explained = Explained(entry["module"], _plain(entry["before"]), _plain(after), entry["why"])
            if explained.key in found:
                raise ExplanationError(f"explained.toml, {entry['module']}: {after!r} is explained twice; keep one")
            found[explained.key] = explained
    return found


def unused(explained: Iterable[Explained], survived: Iterable[tuple[str, str, str]], modules: Iterable[str]) -> list[Explained]:
    """Entries of `modules` that explain none of the mutants that `survived`."""
    keys, tried = set(survived), set(modules)
    return [entry for entry in explained if entry.module in tried and entry.key not in keys]


def _plain(line: str) -> str:
    return " ".join(line.split())
