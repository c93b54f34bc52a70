"""One engine on runner V2, whose K goes through an off stretch and then changes at random: every drafted token is kept.

`python -m tests.gpu_paths.off_process COMBINATION STEPS MODELS OUTPUT`, in the rig's environment. The engine goes through all of it
as each of these, one after the other, with empty caches, the same requests and the same K in every step:

ours     the head writes its KV alone at K = 0; a draft model sleeps and catches up
log      the same head, which makes the writes of LOG_STEPS steps at once
stock    the drafter's `propose` is vLLM's own
forgets  the control: nothing is written or read again, and the drafter's KV has holes; through the off stretch alone
"""

from __future__ import annotations

import json
import os
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from nightjar.deployments.engine.draft_on_v2 import SteeredDraftOnV2
from nightjar.deployments.engine.kv_only_head import KVOnlyHead
from nightjar.deployments.proof.combinations import Combination, engine_arguments
from nightjar.deployments.proof.driven_engine import EngineRequest
from nightjar.deployments.proof.scenarios import CHANGING_LENGTHS, ENGINE_OPTIONS, MAX_NUM_SPECULATIVE_TOKENS
from nightjar.deployments.proof.stepped_engine import SteppedEngine
from nightjar.deployments.rig.tiny_models import ATTENTIVE, ATTENTIVE_EAGLE3, build_tiny_models
from nightjar.policy.wire.exchange import EngineCommand
from tests.gpu_paths.multiply_adds import count_multiply_adds, multiply_by_torch
from tests.gpu_paths.off_stretch import LOG_STEPS, STEPS_BACK, STEPS_BEFORE, STEPS_OFF

ROWS: Final = 4
MAX_TOKENS: Final = 3 * STEPS_BEFORE + STEPS_OFF + 3 * STEPS_BACK
"""Of a row of the off stretch: more than it generates in these steps at the acceptance that a tiny head has."""
OPTIONS: Final = {"temperature": 0.0, "ignore_eos": True}
SEED: Final = 24


@dataclass(slots=True)
class Watched:
    """What the engine drafted and accepted, step by step. What drafts may be exchanged in between."""

    propose: Callable[..., Any]
    drafts: list[dict[str, list[int]]] = field(default_factory=list)
    """Drafted tokens of each request; of a step of K = 0 none."""
    lengths: list[int] = field(default_factory=list)
    counts: list[tuple[int, int]] = field(default_factory=list)
    """Drafts that were verified, and how many of them accepted."""

    def taken(self) -> dict[str, Any]:
        """All of it, and forget it."""
        plain = {"drafts": self.drafts, "lengths": self.lengths, "counts": self.counts}
        self.drafts, self.lengths, self.counts = [], [], []
        return plain


def watch(engine: SteppedEngine) -> Watched:
    """From now on."""
    speculator, scheduler = engine.runner.speculator, engine.scheduler
    watched = Watched(speculator.propose)
    take_in = scheduler.update_from_output

    def proposing(input_batch: Any, *arguments: Any, **options: Any) -> Any:
        drafts = watched.propose(input_batch, *arguments, **options)
        length = options.get("num_speculative_tokens")
        if not options.get("dummy_run") and length is not None:
            names = [name.rpartition("-")[0] for name in input_batch.req_ids]
            watched.lengths.append(length)
            watched.drafts.append(dict(zip(names, drafts[:, :length].tolist(), strict=False)) if length else {})
        return drafts

    def taking_in(scheduler_output: Any, model_runner_output: Any) -> Any:
        verified, index = scheduler_output.scheduled_spec_decode_tokens, model_runner_output.req_id_to_index
        sampled = model_runner_output.sampled_token_ids
        accepted = sum(max(len(sampled[index[name]]) - 1, 0) for name, drafts in verified.items() if drafts and sampled)
        watched.counts.append((sum(map(len, verified.values())), accepted))
        return take_in(scheduler_output, model_runner_output)

    speculator.propose, scheduler.update_from_output = proposing, taking_in
    return watched


def off_stretch(engine: SteppedEngine) -> dict[str, Any]:
    """K at its maximum, 0 for long, and at its maximum again, with rows that last through all of it."""
    requests = [
        EngineRequest(f"row-{row}", f"Count {row}: one, two, ", {**OPTIONS, "max_tokens": MAX_TOKENS}) for row in range(ROWS)
    ]

    def pin(step: int) -> None:
        engine.pin(0 if STEPS_BEFORE <= step < STEPS_BEFORE + STEPS_OFF else MAX_NUM_SPECULATIVE_TOKENS)

    return engine.run(requests, pin)


def up_to_the_limit(engine: SteppedEngine) -> dict[str, Any]:
    """A row that runs to the last position that the model has, beside a short one, while K changes."""
    longest = int(ENGINE_OPTIONS["max_model_len"])
    prompt = ("It was a long way home, and the road was dark. " * 12)[: longest - 24]
    requests = [
        EngineRequest("limit-0", prompt, {**OPTIONS, "max_tokens": longest}),
        EngineRequest("limit-1", "x", {**OPTIONS, "max_tokens": 20}),
    ]
    return engine.run(requests, lambda step: engine.pin(CHANGING_LENGTHS[step % len(CHANGING_LENGTHS)]))


def stress(engine: SteppedEngine, steps: int, rng: random.Random) -> dict[str, Any]:
    """Requests that come, end and are taken back at random, while K changes every few steps and is often 0.

    There are few KV blocks: requests are preempted, long prompts are chunked, and prompts share beginnings.
    """
    answers: dict[str, Any] = {}
    alive: list[str] = []
    number = length = 0
    for _ in range(steps):
        if rng.random() < 0.35:
            length = rng.choice((0, 0, 0, 1, 2, MAX_NUM_SPECULATIVE_TOKENS))
            engine.pin(length)
        if len(alive) < 8 and rng.random() < 0.4:
            engine.add(request := numbered(number))
            alive.append(request.request_id)
            number += 1
        if alive and rng.random() < 0.03:
            engine.engine.abort_request([taken := alive.pop(rng.randrange(len(alive)))])
            answers[taken] = "aborted"
        for output in engine.engine.step():
            if output.finished and output.request_id in alive:
                alive.remove(output.request_id)
                answers[output.request_id] = list(output.outputs[0].token_ids)
    engine.engine.abort_request(alive)
    while engine.engine.has_unfinished_requests():
        engine.engine.step()
    return answers


def numbered(number: int) -> EngineRequest:
    """A request that is the same in every run, however many steps the ones before it took."""
    rng = random.Random(f"{SEED}-{number}")
    shared = "In a hole in the ground there lived a model. " * rng.randrange(4)
    cap = {"extra_args": {"num_speculative_tokens": 0}} if rng.random() < 0.15 else {}
    return EngineRequest(f"stress-{number}", f"{shared}{number}", {**OPTIONS, **cap, "max_tokens": rng.randrange(8, 60)})


def make_forget(drafter: KVOnlyHead | SteeredDraftOnV2, speculator: Any) -> None:
    """Take away the pass that writes a head's KV at K = 0, or that with which a draft model reads what it missed."""
    if isinstance(drafter, SteeredDraftOnV2):
        drafter._recompute = lambda *_: None  # type: ignore[method-assign]
        return
    stock = speculator._run_model
    speculator._run_model = lambda *given, **options: None if given[1] is None else stock(*given, **options)


def run(combination: Combination, steps: int, models: Path) -> dict[str, Any]:
    """What happened, by variant, as plain data."""
    family = ATTENTIVE_EAGLE3 if combination.drafter == "eagle3" else ATTENTIVE
    models = build_tiny_models(models.with_name("models-eagle3" if family is ATTENTIVE_EAGLE3 else "models-attentive"), family)
    multiply_by_torch()
    engine = SteppedEngine(engine_arguments(combination, models, head_log_steps=LOG_STEPS).kwargs)
    drafter: KVOnlyHead | SteeredDraftOnV2 = engine.runner.speculator.propose.__self__
    owed = getattr(drafter, "owed", None)
    outcome: dict[str, Any] = {}
    if isinstance(drafter, KVOnlyHead):
        assert owed is not None, "the setting that keeps what a head owes did not reach its worker"
        drafter.owed = None
        outcome["multiply_adds"] = count_multiply_adds(engine) if combination.scheduling == "sync" else []
        _forget_all(engine)
    engine.record_steps()
    watched = watch(engine)
    outcome["ours"] = _through_all(engine, watched, steps)
    if isinstance(drafter, KVOnlyHead):
        drafter.owed = owed
        outcome["log"] = _through_all(engine, watched, steps)
        drafter.owed = None
    ours, watched.propose = watched.propose, drafter._propose
    outcome["stock"] = _through_all(engine, watched, steps)
    watched.propose = ours
    make_forget(drafter, engine.runner.speculator)
    outcome["forgets"] = {"off": {"answers": off_stretch(engine), **watched.taken()}}
    return outcome


def _through_all(engine: SteppedEngine, watched: Watched, steps: int) -> dict[str, Any]:
    """Both parts."""
    before = engine.preemptions()
    outcome: dict[str, Any] = {"off": {"answers": off_stretch(engine), **watched.taken()}}
    outcome["off"]["steps"] = _taken(engine)
    outcome["stress"] = {"answers": stress(engine, steps, random.Random(SEED)), **watched.taken()}
    outcome["stress"]["steps"] = _taken(engine)
    outcome["limit"] = {"answers": up_to_the_limit(engine), **watched.taken()}
    _taken(engine)
    outcome["preemptions"] = engine.preemptions() - before
    outcome["fault"] = engine.exchange(EngineCommand()).fault
    _forget_all(engine)
    return outcome


def _forget_all(engine: SteppedEngine) -> None:
    """Nothing of one variant's KV is left for the next, which would find it in the very same blocks."""
    assert engine.engine.reset_prefix_cache(), "requests still hold blocks"
    for kv_cache in engine.runner.kv_caches:
        kv_cache.zero_()


def _taken(engine: SteppedEngine) -> list[list[Any]]:
    (taken,) = engine.steps_of_ranks()
    return [[step.num_speculative_tokens, step.forwards, step.kv_writes, step.catches_up] for step in taken]


def main(arguments: Sequence[str]) -> None:
    """See the module."""
    name, steps, models, output = arguments
    result = run(Combination.named(name), int(steps), Path(models))
    Path(output).write_text(json.dumps(result))
    sys.stdout.flush()
    os._exit(0)  # an engine's threads may outlive it


if __name__ == "__main__":
    main(sys.argv[1:])
