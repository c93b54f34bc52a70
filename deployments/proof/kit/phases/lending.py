"""A draft model lends its memory and takes it back, several times, in mid-generation: by the driver's own mapping on a GPU.

The models made by code are too small for it there: no whole chunk of the driver's would change hands.
"""

from __future__ import annotations

import importlib
from typing import Any, Final

from nightjar.deployments.drafter_kinds import SEPARATE_DRAFT_MODEL
from nightjar.deployments.proof.kit.chosen import Chosen
from nightjar.deployments.proof.kit.engines import AtZero, EngineSpec, engine_arguments
from nightjar.deployments.proof.kit.phases import asked
from nightjar.deployments.proof.kit.phases.correctness import near_tie, plain_answers
from nightjar.deployments.proof.kit.tasks import Found, Outcomes, Phase, Table, Task, Verdict, errors, of_phase
from nightjar.deployments.proof.lending import crowd, lend_and_take_back
from nightjar.deployments.proof.scenarios import MAX_NUM_SPECULATIVE_TOKENS
from nightjar.deployments.proof.stepped_engine import SteppedEngine
from nightjar.deployments.proof.verdict import Verdict as EngineVerdict
from nightjar.deployments.proof.verdict import judge_texts
from nightjar.policy.wire.settings import EngineCommand

NAME: Final = "lending"


def tasks(chosen: Chosen) -> list[Task]:
    """A draft model with few KV blocks."""
    return [Task(NAME, "draft", EngineSpec("draft", room="lends"))] if _applies(chosen) else []


def perform(task: Task, chosen: Chosen) -> dict[str, Any]:
    """Cycles of off, offload, lend, reload, draft."""
    assert task.engine is not None
    arguments = engine_arguments(task.engine, chosen)
    engine = SteppedEngine(arguments.kwargs)
    cycles = []
    free_before = _free_bytes(chosen)
    for cycle in range(chosen.sizes.lending_cycles):
        before = engine.exchange(EngineCommand()).drafter
        ran = lend_and_take_back(engine, MAX_NUM_SPECULATIVE_TOKENS, crowd(chosen.sizes.lending_tokens, cycle))
        after = engine.exchange(EngineCommand()).drafter
        cycles.append(
            {name: ran[name] for name in ("answers", "missed", "greedy")}
            | {
                "moved_bytes": after.moved_bytes - before.moved_bytes,
                "moving_seconds": after.moving_seconds - before.moving_seconds,
                "relocated_blocks": after.relocated_blocks - before.relocated_blocks,
                "preempted": after.preempted_requests - before.preempted_requests,
            }
        )
    result = {
        "cycles": cycles,
        "fault": engine.exchange(EngineCommand()).fault,
        "notice": arguments.notice,
        "free_bytes_lost": free_before - _free_bytes(chosen),
    }
    engine.shutdown()
    return result


def judge(outcomes: Outcomes, chosen: Chosen) -> Found:
    """Texts, and a whole round each time."""
    if not _applies(chosen):
        return Found(Verdict.LEFT_OUT, ["It needs models of an ordinary size: --target and --draft."])
    wrong = errors(NAME, outcomes)
    outcome = of_phase(NAME, outcomes).get("draft")
    reference = plain_answers(outcomes)
    if outcome is None or reference is None:
        return Found(Verdict.FAILED, wrong or ["plain decoding did not run: its answers are missing"])
    verdict = EngineVerdict(AtZero(SEPARATE_DRAFT_MODEL), "")
    table = Table(("cycle", "GiB moved, there and back", "seconds", "blocks relocated", "requests preempted"), [])
    for number, cycle in enumerate(outcome["cycles"]):
        judge_texts(verdict, f"cycle {number + 1}", cycle, reference[f"{NAME}-{number}"], near_tie(chosen))
        wrong += [f"cycle {number + 1}: {cycle['missed']}"] * bool(cycle["missed"])
        row = [f"{cycle['moved_bytes'] / 2**30:.3f}", f"{cycle['moving_seconds']:.3f}"]
        table.rows.append([str(number + 1), *row, str(cycle["relocated_blocks"]), str(cycle["preempted"])])
    wrong += [*verdict.texts, *([outcome["fault"]] if outcome["fault"] else [])]
    well = f"{len(outcome['cycles'])} times the draft left, requests used its memory, and it came back; texts are plain decoding's."
    sentences = wrong or [well, *([outcome["notice"] + "."] if outcome["notice"] else [])]
    if not chosen.on_rig:
        sentences.append(
            f"Free memory of the GPU after the last cycle is {outcome['free_bytes_lost'] / 2**20:.0f} MiB less than before."
        )
    return Found(Verdict.FAILED if wrong else Verdict.PROVED, sentences, [table])


def _applies(chosen: Chosen) -> bool:
    return bool(chosen.draft) and (chosen.on_rig or not chosen.target_is_made)


def _free_bytes(chosen: Chosen) -> int:
    if chosen.on_rig:
        return 0
    torch: Any = importlib.import_module("torch")
    return int(torch.cuda.mem_get_info()[0])


LENDING: Final = Phase(asked.LENDING, "Lending the draft's memory", tasks, perform, judge)
