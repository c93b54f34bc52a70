"""The demo's steps on a running system that no other comparison has: ask for texts, kill the policy, keep its journal."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from nightjar.loadtests.arms.rounds import TurnError
from nightjar.loadtests.demo_checks import Answer
from nightjar.loadtests.openai_stream import ChatRequest, Server, stream_chat
from nightjar.policy.wire.status import FleetStatus

KILL_NOTICE: Final = (
    'now the policy actor is killed on purpose; lines of Ray that follow, such as "A worker died or was killed", are expected'
)


def ask(server: Server, model: str, prompt: str, max_tokens: int) -> Answer:
    """The greedy answer to one prompt, with the two best logprobs at every place."""
    result = stream_chat(server, ChatRequest(model, prompt, max_tokens, top_logprobs=2))
    return Answer(prompt, result.tokens, result.error or ("" if result.tokens else "the server sent no logprobs"))


class PolicyKill:
    """Kills the policy actor once, `after_s` seconds into a load, and says when a newer incarnation answers."""

    def __init__(self, after_s: float) -> None:
        self.killed_at_s: float | None = None
        self._after_s = after_s
        self._killed_incarnation = -1
        self._is_back = False

    def poll(self, status: FleetStatus | None, elapsed_s: float, say: Callable[[str], None]) -> None:
        """Call often. Raises TurnError where the actor cannot be killed."""
        if status is None or elapsed_s < self._after_s:
            return
        policy = status.policy
        if self.killed_at_s is None:
            say(KILL_NOTICE)
            self.killed_at_s = time.time()
            kill_policy(policy.pid)
            self._killed_incarnation = policy.incarnation
            say(f"killed the policy actor: process {policy.pid}, incarnation {policy.incarnation}; serving goes on")
        elif not self._is_back and policy.incarnation > self._killed_incarnation:
            self._is_back = True
            say(f"the policy is back as incarnation {policy.incarnation}, process {policy.pid}")


def kill_policy(pid: int) -> None:
    """SIGKILL the policy actor, as a crash would. Raises TurnError where `pid` is not surely the actor on this machine."""
    try:
        title = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError as error:
        raise TurnError(f"the policy actor's process {pid} is not on this machine ({error})") from error
    if "PolicyActor" not in title:
        raise TurnError(f"process {pid} is {title[:60]!r}, not the policy actor; nothing was killed")
    os.kill(pid, signal.SIGKILL)


def keep_journal(status: FleetStatus | None, target: Path) -> None:
    """Copy the policy's journal, rotated files included, oldest first. An empty file where there is none to read."""
    newest = Path(status.policy.journal_path) if status and status.policy.journal_path else None
    with target.open("wb") as copy:
        for file in _journal_files(newest) if newest else ():
            with file.open("rb") as lines:
                shutil.copyfileobj(lines, copy)


def _journal_files(newest: Path) -> list[Path]:
    rotated = sorted(newest.parent.glob(f"{newest.name}.*[0-9]"), key=lambda file: int(file.suffix[1:]), reverse=True)
    return [*rotated, *([newest] if newest.exists() else [])]
