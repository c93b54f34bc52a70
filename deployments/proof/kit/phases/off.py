"""What "off" costs beside plain vLLM: our engine at K = 0 and vLLM without speculation on its default runner. Runs before all else.

Whoever speculates pays this whenever K is 0, and a CPU cannot show it: on GPUs it is graphs, metadata and attention over long
contexts. Authors of two engines found 17 to 30 % there (vLLM's pull request 53426, TensorRT-LLM's 18837). Each engine has the
machine's memory to itself, in two turns (ours, plain, plain, ours), so that what drifts slowly does the same to both. Timed are the
steps in which all rows decode. Where a KV cache does not hold the longest context a shorter one is measured; a target that does not
fit at all is told and fails nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from nightjar.deployments.proof.kit.chosen import Chosen, Sizes
from nightjar.deployments.proof.kit.engines import EngineSpec, Room
from nightjar.deployments.proof.kit.metered import MeteredEngine
from nightjar.deployments.proof.kit.tasks import Found, Outcomes, Phase, Table, Task, Verdict, errors, of_phase
from nightjar.loadtests.arms.statistics import Ratio, Speed, matched, paired_ratio

NAME: Final = "off"
WANTED: Final = 0.97
"""Of plain vLLM's tokens a second; as of the engines on a CPU (docs/evidence.md)."""
TURNS: Final = ("off", "plain", "plain", "off")
SHORT_TOKENS: Final = 64
"""Of a prompt where rows are many."""


def tasks(chosen: Chosen) -> list[Task]:
    """One for each drafter."""
    return [Task(NAME, drafter) for drafter in chosen.drafters]


def perform(task: Task, chosen: Chosen) -> dict[str, Any]:
    """Both engines at each place, in their turns. `places`: of each, what either gave in each round; of one that does not fit,
    nothing."""
    drafter = next(drafter for drafter in chosen.drafters if drafter == task.name)
    rooms: dict[Room, int] = {"long": chosen.longest_tokens}
    if chosen.shorter_tokens < chosen.longest_tokens:
        rooms["short"] = chosen.shorter_tokens
    unable, missed = "", list[dict[str, Any]]()
    for room, longest in rooms.items():
        specs = {"off": EngineSpec(drafter, room=room), "plain": EngineSpec(room=room, stock=True)}
        try:
            return {"places": [*_measured(specs, longest, chosen, f"{task.file_name}.engines.log"), *missed], "unable": unable}
        except RuntimeError as error:
            if "memory" not in str(error):
                raise
            unable = unable or str(error)[:400]
            missed = missed or [_place(chosen.sizes.off_context_rows, longest - chosen.sizes.measured_tokens)]
    return {"places": [], "unable": unable}


def _measured(specs: Mapping[str, EngineSpec], longest_tokens: int, chosen: Chosen, log: str) -> list[dict[str, Any]]:
    """Both engines in their turns at all places up to a context; a RuntimeError where one does not start."""
    work, places = Path(chosen.work), list[dict[str, Any]]()
    for name in TURNS:
        with MeteredEngine(specs[name], chosen, work, work / log) as engine:
            if name == "off":
                engine.hold(0)
            places = places or places_within(engine.kv_tokens(), longest_tokens, chosen.sizes)
            for place in places:
                size = place["rows"], place["context"], chosen.sizes.measured_tokens
                rounds = [engine.decode(*size, chosen.seed) for _ in range(chosen.sizes.rounds + 1)]
                place[name] += rounds[1:]  # the first round fills the cache of prompts, and compiles
    return places


def places_within(kv_tokens: int, longest_tokens: int, sizes: Sizes) -> list[dict[str, Any]]:
    """Rows and tokens of context to measure at, with as many rows as the KV cache holds."""
    wanted = [(rows, min(SHORT_TOKENS, longest_tokens - sizes.measured_tokens)) for rows in sizes.off_rows]
    wanted.append((sizes.off_context_rows, longest_tokens - sizes.measured_tokens))
    found = [(min(rows, kv_tokens // (context + sizes.measured_tokens)), context) for rows, context in wanted]
    return [_place(rows, context) for rows, context in dict.fromkeys(found) if rows]


def _place(rows: int, context: int) -> dict[str, Any]:
    return {"rows": rows, "context": context, "off": [], "plain": []}


def judge(outcomes: Outcomes, chosen: Chosen) -> Found:
    """Tokens per second over plain vLLM's. The first sentence is the answer; none of it is a proof, since time is not."""
    wrong = errors(NAME, outcomes)
    table = Table(("drafter", "rows", "context", "plain, tokens/s", "off, tokens/s", "off / plain", "95 %", "rounds"), [])
    unable, answers, contexts = [], [], [0]
    for drafter, outcome in of_phase(NAME, outcomes).items():
        if outcome["unable"]:
            what = "not measured at the longest context" if outcome["places"] else "not measured"
            unable.append(f"{drafter}: {what}, since the engine does not fit this machine: {outcome['unable']}")
        for place in outcome["places"]:
            contexts.append(place["context"])
            if not place["off"]:
                continue  # it did not fit
            off, plain = (dict(enumerate(Speed(**each) for each in place[name])) for name in ("off", "plain"))
            if not (pairs := matched(off, plain)):
                unable.append(f"{drafter}: {_named(place)}: no round in which all rows decoded at the same time")
                continue
            ratio = paired_ratio(pairs, chosen.seed)
            speeds = [f"{_per_s([pair[side] for pair in pairs]):.1f}" for side in (1, 0)]
            size = [str(place["rows"]), str(place["context"])]
            table.rows.append([drafter, *size, *speeds, f"{ratio.value:.3f}", str(ratio.interval), str(ratio.rounds)])
            answers.append((f"{drafter}, {_named(place)}", place["context"], ratio))
    words = [f"{chosen.sizes.measured_tokens} tokens per row, prompts drawn with seed {chosen.seed}. Below 1, off is slower."]
    words += ["On the rig plain vLLM runs its kernels in an interpreter: the ratios say nothing about a GPU."] * chosen.on_rig
    verdict = Verdict.MEASURED if answers else Verdict.LEFT_OUT
    return Found(
        Verdict.FAILED if wrong else verdict,
        [*wrong, *_answer(answers, max(contexts), is_whole=not unable), *unable, *words],
        [table],
    )


def _answer(answers: Sequence[tuple[str, int, Ratio]], longest: int, *, is_whole: bool) -> list[str]:
    """The least ratio against what is wanted, and each at the `longest` context that was asked for."""
    if not answers:
        return []
    where, _, least = min(answers, key=lambda one: one[2].value)
    there = "; ".join(f"{where} {ratio}" for where, context, ratio in answers if context == longest)
    there = there or f"not measured, {longest} tokens"
    kept = "not everywhere" if least.value < WANTED else "everywhere" if is_whole else "wherever it was measured"
    first = f"Off keeps the wanted {WANTED} of plain vLLM's tokens a second {kept}: least {least} ({where})."
    return [f"{first} At the longest context: {there}."]


def _named(place: Mapping[str, Any]) -> str:
    return f"{place['rows']} rows of {place['context']} tokens"


def _per_s(speeds: Sequence[Speed]) -> float:
    return sum(speed.tokens for speed in speeds) / sum(speed.seconds for speed in speeds)


OFF: Final = Phase(NAME, "Off against plain vLLM", tasks, perform, judge)
