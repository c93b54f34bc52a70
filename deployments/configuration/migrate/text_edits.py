"""Edits of a config's text that leave every other byte alone: comments, blank lines, quotes, line ends.

Places are lines and columns of one Serve config, as PyYAML's marks count them; `applied` moves them to where that config stands in
its file. All edits name places of the original, so their order does not matter; two edits of one place are a mistake of the caller.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from difflib import unified_diff
from typing import Final

import yaml

OTHER_LINE_BREAKS: Final = ("\x85", "\u2028", "\u2029")
"""What ends a line for YAML, and for nothing else."""


@dataclass(slots=True)
class TextEdits:
    """What is to change, collected."""

    replaced: dict[int, list[tuple[int, int, str]]] = field(default_factory=lambda: defaultdict(list))
    after: dict[int, list[str]] = field(default_factory=lambda: defaultdict(list))
    deleted: set[int] = field(default_factory=set)

    def replace(self, line: int, start: int, end: int, text: str) -> None:
        """Put `text` in place of columns `start` to `end` of a line."""
        self.replaced[line].append((start, end, text))

    def insert_after(self, line: int, lines: list[str]) -> None:
        """Put whole lines after a line; -1 is before the first."""
        self.after[line] += lines

    def delete(self, first: int, last: int) -> None:
        """Take whole lines out, both ends included."""
        self.deleted |= set(range(first, last + 1))

    def applied(self, text: str, *, first_line: int = 0, indent: int = 0) -> str:
        """The file's text with the edits, for a config that begins at `first_line` and is indented by `indent` columns."""
        newline = newline_of(text)
        lines = text.split(newline)
        result = lines[:first_line] + [" " * indent + new for new in self.after.get(-1, ())]
        for number, line in enumerate(lines[first_line:]):
            if number not in self.deleted:
                result.append(_edited(line, self.replaced.get(number, ()), indent))
            result += [" " * indent + new for new in self.after.get(number, ())]
        return newline.join(result)


def newline_of(text: str) -> str:
    r"""`"\n"` or `"\r\n"`. Raises ValueError for a text that mixes them, whose lines PyYAML counts otherwise than we do."""
    windows = text.count("\r\n")
    if text.count("\r") != windows or (windows and text.count("\n") != windows) or any(mark in text for mark in OTHER_LINE_BREAKS):
        raise ValueError("line ends are mixed; convert the file to one kind first")
    return "\r\n" if windows else "\n"


def last_line(node: yaml.Node) -> int:
    """The last line that holds something of a node; comments and blank lines behind it are not its own."""
    if isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        ends = node.value[-1]
        return max(last_line(part) for part in (ends if isinstance(ends, tuple) else (ends,)))
    end = node.end_mark
    return end.line - 1 if end.column == 0 and end.line > node.start_mark.line else end.line


def diff(before: str, after: str, name_before: str, name_after: str) -> str:
    """The unified diff, empty where nothing changed."""
    lines = unified_diff(_split(before), _split(after), name_before, name_after)
    return "".join(line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in lines)


def _split(text: str) -> list[str]:
    return [f"{line}\n" for line in text.split("\n")[:-1]] + [rest for rest in text.split("\n")[-1:] if rest]


def _edited(line: str, edits: list[tuple[int, int, str]] | tuple[()], indent: int) -> str:
    for start, end, text in sorted(edits, reverse=True):
        line = line[: start + indent] + text + line[end + indent :]
    return line
