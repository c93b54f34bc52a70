"""The runbook at three in the morning: each alert's paragraph begins with what to type, and what is typed is right."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Final

import pytest

from nightjar.cluster import cli
from nightjar.cluster.dashboards.rules import ALERTS, RUNBOOK, Alert

ROOT: Final = Path(__file__).parents[3]
TEXT: Final = (ROOT / RUNBOOK).read_text(encoding="utf-8")
BLOCK: Final = re.compile(r"```console\n(.*?)```", re.DOTALL)
LINES: Final = [line for block in BLOCK.findall(TEXT) for line in block.splitlines()]


def programs(line: str) -> list[list[str]]:
    """What a line runs: the programs of its pipe, without comments, and those that kubectl runs in a pod.

    >>> programs("$ a b | kubectl exec x -- nightjar status   # why")
    [['a', 'b'], ['kubectl', 'exec', 'x'], ['nightjar', 'status']]
    """
    found: list[list[str]] = [[]]
    lexer = shlex.shlex(line.removeprefix("$ "), posix=True, punctuation_chars="|")
    lexer.whitespace_split = True
    for word in lexer:
        if word in {"|", "--"}:
            found.append([])
        else:
            found[-1].append(word)
    return found


ALL_PROGRAMS: Final = [words for line in LINES for words in programs(line)]
OURS: Final = sorted({shlex.join(words) for words in ALL_PROGRAMS if words[0] == "nightjar"})


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert.name)
def test_an_alerts_paragraph_begins_with_a_command_to_type(alert: Alert) -> None:
    (_, paragraph) = TEXT.split(f"## {alert.name}\n")
    begins = re.match(r"\n```console\n\$ (\w+) ", paragraph)
    assert begins, paragraph[:80]
    assert begins.group(1) in {"kubectl", "nightjar"}


def test_every_line_of_a_block_is_a_command() -> None:
    assert [line for line in LINES if not line.startswith("$ ")] == []
    assert {words[0] for words in ALL_PROGRAMS} <= {"kubectl", "nightjar", "helm", "xargs", "grep", "serve", "ray", "wget"}


@pytest.mark.parametrize("command", OURS)
def test_what_is_typed_of_ours_parses(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "policy-journal.jsonl").touch()
    monkeypatch.chdir(tmp_path)
    _, name, *arguments = shlex.split(command)
    cli.load_command(name, cli.COMMANDS[name]).make_context(name, arguments)


def test_a_command_that_does_not_parse_would_be_found() -> None:
    with pytest.raises(Exception, match="No such option"):
        cli.load_command("status", cli.COMMANDS["status"]).make_context("status", ["--nosuch"])


def test_what_is_looked_for_in_logs_is_logged_by_that_name() -> None:
    of_logs = [words for words in ALL_PROGRAMS if words[0] == "grep" and words[-1].endswith("/logs")]
    patterns = {word for words in of_logs for word in words if re.fullmatch(r"[\w|]{9,}", word)}
    events = {event for pattern in patterns for event in pattern.split("|")}
    sources = "".join(
        path.read_text(encoding="utf-8") for room in ("cluster", "deployments") for path in (ROOT / room).rglob("*.py")
    )
    assert events >= {"tick_failed", "engine_died", "step_loop_failed"}
    assert {event for event in events if f'"{event}"' not in sources and f"class {event}(" not in sources} == set()
