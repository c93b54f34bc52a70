"""One engine on runner V2, whose K goes through an off stretch and then changes at random: every drafted token is kept.

`python -m tests.gpu_paths.off_process COMBINATION VARIANT STEPS MODELS OUTPUT`, in the rig's environment. VARIANT is `ours`, whose
head writes its KV alone at K = 0, or whose draft model sleeps and catches up, `stock`, whose drafter runs as vLLM runs it, or
`forgets`, the control: nothing is written or read again, and the drafter's KV has holes. All three have our scheduler, the same
requests and the same K in every step.
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

from nightjar.deployments.proof.combinations import Combination, engine_arguments
from nightjar.deployments.proof.driven_engine import EngineRequest
from nightjar.deployments.proof.scenarios import MAX_NUM_SPECULATIVE_TOKENS
from nightjar.deployments.proof.stepped_engine import SteppedEngine
from nightjar.deployments.rig.tiny_models import ATTENTIVE, ATTENTIVE_EAGLE3, build_tiny_models
from nightjar.policy.records import EngineCommand

ROWS: Final = 4
STEPS_BEFORE: Final = 12
STEPS_OFF: Final = 64
STEPS_BACK: Final = 20
OPTIONS: Final = {"temperature": 0.0, "ignore_eos": True}
SEED: Final = 24


@dataclass(slots=True)
class Watched:
    """What the engine drafted and accepted, step by step."""

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
    watched = Watched()
    speculator, scheduler = engine.runner.speculator, engine.scheduler
    propose, take_in = speculator.propose, scheduler.update_from_output

    def proposing(input_batch: Any, *arguments: Any, **options: Any) -> Any:
        drafts = propose(input_batch, *arguments, **options)
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
    requests = [EngineRequest(f"row-{row}", f"Count {row}: one, two, ", {**OPTIONS, "max_tokens": 220}) for row in range(ROWS)]

    def pin(step: int) -> None:
        engine.pin(0 if STEPS_BEFORE <= step < STEPS_BEFORE + STEPS_OFF else MAX_NUM_SPECULATIVE_TOKENS)

    return engine.run(requests, pin)


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


def make_forget(engine: SteppedEngine) -> None:
    """Take away the pass that writes a head's KV at K = 0, or that with which a draft model reads what it missed."""
    ours, speculator = engine.runner.speculator.propose.__self__, engine.runner.speculator
    if type(ours).__name__ == "SteeredDraftOnV2":
        ours._recompute = lambda *_: None
        return
    assert type(ours).__name__ == "KVOnlyHead"
    stock = speculator._run_model
    speculator._run_model = lambda *given, **options: None if given[1] is None else stock(*given, **options)


VARIANTS: Final[dict[str, Callable[[dict[str, Any]], dict[str, Any]]]] = {
    "ours": lambda kwargs: kwargs,
    "forgets": lambda kwargs: kwargs,
    "stock": lambda kwargs: {name: value for name, value in kwargs.items() if name != "worker_cls"},
}


def run(combination: Combination, variant: str, steps: int, models: Path) -> dict[str, Any]:
    """Both parts, as plain data."""
    family = ATTENTIVE_EAGLE3 if combination.drafter == "eagle3" else ATTENTIVE
    models = build_tiny_models(models.with_name("models-eagle3" if family is ATTENTIVE_EAGLE3 else "models-attentive"), family)
    engine = SteppedEngine(VARIANTS[variant](engine_arguments(combination, models).kwargs))
    if variant == "forgets":
        make_forget(engine)
    engine.record_steps()
    watched = watch(engine)
    result: dict[str, Any] = {"off": {"answers": off_stretch(engine), **watched.taken()}}
    preempted = engine.preemptions()
    result["stress"] = {"answers": stress(engine, steps, random.Random(SEED)), **watched.taken()}
    result["preemptions"] = engine.preemptions() - preempted
    (taken,) = engine.steps_of_ranks()
    result["steps"] = [[step.num_speculative_tokens, step.forwards, step.kv_writes, step.catches_up] for step in taken]
    result["fault"] = engine.exchange(EngineCommand()).fault
    return result


def main(arguments: Sequence[str]) -> None:
    """See the module."""
    name, variant, steps, models, output = arguments
    result = run(Combination.named(name), variant, int(steps), Path(models))
    Path(output).write_text(json.dumps(result))
    sys.stdout.flush()
    os._exit(0)  # an engine's threads may outlive it


if __name__ == "__main__":
    main(sys.argv[1:])
