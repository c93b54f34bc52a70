"""Which files of the product one report passes, from an engine's counter to the plan in that engine: traced, not told.

vLLM's scheduler with ours in it takes made-up steps; agent, client, actor and policy service are the real ones. vLLM's and Ray's
wires are what is missing: their calls are made at once. A file is on the way where a function of it runs between two plans. Not
counted are records (`policy/wire/`), and `BESIDE`: what only looks on, and what of a report's way is off here and at once says so.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import sys
import tempfile
from collections.abc import Callable, Iterable
from itertools import groupby
from pathlib import Path
from types import CodeType, FrameType, SimpleNamespace
from typing import Any, Final
from unittest.mock import patch

from nightjar.cluster.client import PolicyClient
from nightjar.cluster.policy_actor import PolicyActor
from nightjar.deployments.agent import ReplicaAgent, ReplicaIdentity
from nightjar.deployments.engine.scheduler.control import nightjar_exchange
from nightjar.deployments.engine.scheduler.steered import SteeredScheduler
from nightjar.deployments.engine_control import SteeredEngine
from nightjar.deployments.engine_watch import EngineWatch
from nightjar.policy.wire.report import EngineSnapshot, GroupKey
from tests.cluster.protocol import running_service
from tests.engine.scheduler.scheduler_harness import make_request, make_scheduler, run_steps
from tests.fleet.virtual_fleet import JumpingLoop
from tests.structure import ROOMS, ROOT

ROWS: Final = 4
STEPS_A_TURN: Final = 40
LOOK_S: Final = 1e-4
"""Between two looks at the engine's clock: a turn's steps take less than the half second between two turns."""
BESIDE: Final = (
    "cluster/operator/",  # nothing is set by hand
    "cluster/service/fleet_answers.py",  # what `status` shows
    "cluster/service/memory_kills.py",  # the same
    "cluster/service/other_versions.py",  # one actor alone
    "cluster/storage/",  # what is stored and journaled
    "cluster/telemetry/",
    "deployments/engine/scheduler/draft_slots.py",  # a check
    "deployments/drafter_kinds.py",  # how much of an engine is steered, for `status`
    "deployments/steering_level.py",  # the same
    "deployments/engine_watch.py",  # a health check
    "policy/decision/canary.py",  # none runs
    "policy/evidence/gained.py",  # what `status` shows
    "policy/learned.py",  # what is stored
    "policy/priors.py",  # none was imported
)
BEGINS: Final = "deployments/engine/scheduler/steered.py"
BEGIN, END = "<!-- way -->", "<!-- /way -->"


class _Unseen:
    """Metrics that nobody reads."""

    def begin(self) -> None:
        pass

    def observe(self, snapshot: EngineSnapshot, settings_age_s: float) -> None:
        pass


def _remote(method: Callable[..., Any]) -> Any:
    return SimpleNamespace(remote=method)


def _clock() -> Callable[[], float]:
    """The loop's time, and a little later at each look, so that steps take some."""
    looks = itertools.count()
    return lambda: asyncio.get_running_loop().time() + next(looks) * LOOK_S


async def _at_once(function: Callable[..., Any], *arguments: object) -> Any:
    return function(*arguments)


async def _traced(folder: Path) -> list[str]:
    scheduler = make_scheduler(SteeredScheduler, folder)
    scheduler.nightjar.clock = _clock()
    core: Any = SimpleNamespace(scheduler=scheduler)

    async def utility(method: str, payload: bytes) -> bytes:
        assert method == nightjar_exchange.__name__
        run_steps(scheduler, STEPS_A_TURN)
        return nightjar_exchange(core, payload)

    for number in range(ROWS):
        scheduler.add_request(make_request(str(number)))
    engine: Any = SimpleNamespace(engine=SimpleNamespace(engine_core=SimpleNamespace(call_utility_async=utility)))
    group = GroupKey(target="llama-8b", drafter_kind="draft_model", max_num_speculative_tokens=4, max_num_seqs=16)
    async with running_service() as service:
        await service.configure({"mode": "auto"})
        actor = PolicyActor.__new__(PolicyActor)
        actor._service = service
        client = PolicyClient(resolve=lambda: SimpleNamespace(exchange=_remote(actor.exchange)))
        identity = ReplicaIdentity(replica_id="r1", application="chat", deployment="d", node_id="n1", group=group)
        watch = EngineWatch(hung_after_s=0.0, counts_steps=True)
        agent = ReplicaAgent(engine=SteeredEngine(engine), policy=client, identity=identity, watch=watch, metrics=_Unseen())
        running = asyncio.create_task(agent.run())

        async def until_news() -> None:
            before = scheduler.nightjar.steering.settings_version
            while scheduler.nightjar.steering.settings_version == before:  # noqa: ASYNC110 - the engine says it in this alone
                await asyncio.sleep(0.5)

        await until_news()
        called: dict[CodeType, None] = {}

        def note(frame: FrameType, event: str, _: object) -> None:
            if event == "call" and (frame.f_back is None or frame.f_back.f_code is not until_news.__code__):
                called.setdefault(frame.f_code)

        sys.setprofile(note)
        try:
            await until_news()
            run_steps(scheduler, 1)
        finally:
            sys.setprofile(None)
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
    return list(dict.fromkeys(code.co_filename for code in called if code.co_name != "<module>"))


def files_of_one_report() -> list[str]:
    """The files by their paths in the repository, in the order in which the report passes them first, from the engine's step on.

    Needs vLLM, and no engine; a second, and no clock but its own.
    """
    with (
        tempfile.TemporaryDirectory() as folder,
        patch.object(asyncio, "to_thread", _at_once),
        patch.dict(os.environ, HF_HUB_OFFLINE="1"),
        asyncio.Runner(loop_factory=JumpingLoop) as runner,
    ):
        called = runner.run(_traced(Path(folder)))
    ours = [Path(name).resolve().relative_to(ROOT).as_posix() for name in called if Path(name).resolve().is_relative_to(ROOT)]
    rooms = tuple(f"{room}/" for room in ROOMS if room != "tests")
    passed = [name for name in ours if name.startswith(rooms) and not name.startswith(("policy/wire/", *BESIDE))]
    begins = passed.index(BEGINS)
    return passed[begins:] + passed[:begins]


def in_braces(files: Iterable[str]) -> str:
    """The files as Markdown, neighbours of one folder together.

    >>> print(in_braces(["a/b.py", "a/c.py", "d/e.py", "a/f.py"]))
    `a/{b,c}.py`, `d/e.py`, `a/f.py`
    """
    told = []
    for folder, found in groupby(map(Path, files), key=lambda path: path.parent):
        names = ",".join(path.stem for path in found)
        told.append(f"`{folder}/{{{names}}}.py`" if "," in names else f"`{folder}/{names}.py`")
    return ", ".join(told)


def page() -> str:
    """What stands between the marks in docs/how-it-works.md."""
    files = files_of_one_report()
    return f"{len(files)} files: {in_braces(files)}.\n"
