"""One engine on runner V2, whose K goes through an off stretch and then changes at random: every drafted token is kept.

`python -m tests.gpu_paths.engines.off_process COMBINATION STEPS SEED MODELS OUTPUT`, in the rig's environment. The engine goes
through all of it as each of these, one after the other, with empty caches, the same requests and the same K in every step:

ours     the head writes its KV alone at K = 0, a block's queries are left out; a draft model sleeps and catches up
stock    the drafter's `propose` is vLLM's own, and no step is scheduled as one in which it sleeps
every    of a draft model: the same, never asleep and with no draft verified, so that each token of each answer has a draft after it
forgets  the control: nothing is written or read again, and the drafter's KV has holes; through the off stretch alone

A head of `ours` computes in batches of the same shapes as in `stock`, so both agree to the last bit. A draft model that waited and
came back has other shapes and rounds otherwise: with each drafted token goes its margin, by which it was the likeliest.
"""

from __future__ import annotations

import itertools
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from nightjar.deployments.engine.worker.kv_only_head import KVOnlyHead, QuietBlock
from nightjar.deployments.engine.worker.v2 import SteeredDraftOnV2
from nightjar.deployments.proof.driven_engine import GenerationRequest, plain_answer
from nightjar.deployments.proof.outcome import end_with
from nightjar.deployments.proof.scenarios import CHANGING_K, ENGINE_OPTIONS, MAX_NUM_SPECULATIVE_TOKENS, OPT_OUT
from nightjar.deployments.proof.stepped_engine import SteppedEngine
from nightjar.deployments.proof.tiny_models import ATTENTIVE, ATTENTIVE_EAGLE3, build_tiny_models
from nightjar.policy.wire.settings import EngineCommand
from tests.gpu_paths.engines.combinations import Combination, engine_arguments
from tests.gpu_paths.engines.multiply_adds import count_multiply_adds, multiply_by_torch
from tests.gpu_paths.engines.off_stretch import STEPS_BACK, STEPS_BEFORE, STEPS_OFF

ROWS: Final = 4
MAX_TOKENS: Final = 3 * STEPS_BEFORE + STEPS_OFF + 3 * STEPS_BACK
"""Of a row of the off stretch: more than it generates in these steps at the acceptance that a tiny head has."""
OPTIONS: Final = {"temperature": 0.0, "ignore_eos": True}
OPT_OUT_OPTIONS: Final = {"extra_args": {OPT_OUT: 0}}
ROWS_OF_EVERY: Final = 6
LOGPROBS: Final = 5

REJECTED_ARGUMENT: Final = 5
"""Of vLLM's `propose` after the batch: `num_rejected` (0.32, v1/worker/gpu/spec_decode)."""

Draft = tuple[int, list[int], list[float]]
"""Tokens of prompt and answer that it continues, the drafted tokens, and each one's margin in logits."""


@dataclass(slots=True)
class Watched:
    """What the engine drafted and accepted, step by step. What drafts may be exchanged in between."""

    propose: Callable[..., Any]
    drafts: list[dict[str, list[int]]] = field(default_factory=list)
    """Drafted tokens of each request; of a step of K = 0 none."""
    lengths: list[int] = field(default_factory=list)
    counts: list[tuple[int, int]] = field(default_factory=list)
    """Drafts that were verified, and how many of them accepted."""
    verified: list[tuple[str, *Draft]] = field(default_factory=list)
    """The request, and as much of its draft as was verified."""
    last: dict[str, Draft] = field(default_factory=dict)
    """What was drafted last for each request, verified or not."""
    every: list[tuple[str, *Draft]] | None = None
    """Whole drafts, verified or not, where they are wanted."""

    def taken(self) -> dict[str, Any]:
        """All of it, and forget it."""
        plain = {"drafts": self.drafts, "lengths": self.lengths, "counts": self.counts, "verified": self.verified}
        self.drafts, self.lengths, self.counts, self.verified, self.last = [], [], [], [], {}
        return plain

    def note(self, input_batch: Any, num_rejected: Any, drafts: Any, length: int, margins: Sequence[Sequence[float]]) -> None:
        """One step, in which each row was drafted for; `margins` are those of each forward."""
        names = [name.rpartition("-")[0] for name in input_batch.req_ids]
        continued = (input_batch.seq_lens[: len(names)] - num_rejected[: len(names)] + 1).tolist()
        num_verified = [0] * len(names) if input_batch.num_draft_tokens_per_req is None else input_batch.num_draft_tokens_per_req
        self.lengths.append(length)
        self.drafts.append(dict(zip(names, drafts[:, :length].tolist(), strict=False)) if length else {})
        for row, (name, count) in enumerate(zip(names, num_verified, strict=False)):
            if count and name in self.last:
                tokens_before, tokens, of_tokens = self.last[name]
                self.verified.append((name, tokens_before, tokens[: int(count)], of_tokens[: int(count)]))
            whole = drafts[row].tolist()[: len(margins)]
            self.last[name] = (continued[row], whole, [forward[row] for forward in margins])
            if self.every is not None:
                self.every.append((name, *self.last[name]))


def watch(engine: SteppedEngine) -> Watched:
    """From now on."""
    speculator, scheduler = engine.runner.speculator, engine.scheduler
    watched = Watched(speculator.propose)
    take_in, compute_logits = scheduler.update_from_output, speculator.compute_draft_logits
    margins: list[list[float]] = []

    def computing(*arguments: Any, **options: Any) -> Any:
        logits = compute_logits(*arguments, **options)
        best = logits.topk(2, dim=-1).values
        margins.append((best[:, 0] - best[:, 1]).tolist())
        return logits

    def proposing(input_batch: Any, *arguments: Any, **options: Any) -> Any:
        margins.clear()
        drafts = watched.propose(input_batch, *arguments, **options)
        length = options.get("num_speculative_tokens")
        if not options.get("dummy_run") and length is not None:
            num_rejected = arguments[REJECTED_ARGUMENT]
            watched.note(input_batch, num_rejected, drafts, length, margins)
        return drafts

    def taking_in(scheduler_output: Any, model_runner_output: Any) -> Any:
        verified, index = scheduler_output.scheduled_spec_decode_tokens, model_runner_output.req_id_to_index
        sampled = model_runner_output.sampled_token_ids
        accepted = sum(max(len(sampled[index[name]]) - 1, 0) for name, drafts in verified.items() if drafts and sampled)
        watched.counts.append((sum(map(len, verified.values())), accepted))
        return take_in(scheduler_output, model_runner_output)

    speculator.propose, speculator.compute_draft_logits, scheduler.update_from_output = proposing, computing, taking_in
    return watched


def rows() -> list[GenerationRequest]:
    """Of the off stretch."""
    return [
        GenerationRequest(f"row-{row}", f"Count {row}: one, two, ", {**OPTIONS, "max_tokens": MAX_TOKENS}) for row in range(ROWS)
    ]


def off_stretch(engine: SteppedEngine) -> dict[str, Any]:
    """K at its maximum, 0 for long, and at its maximum again, with rows that last through all of it."""

    def pin(step: int) -> None:
        engine.pin(0 if STEPS_BEFORE <= step < STEPS_BEFORE + STEPS_OFF else MAX_NUM_SPECULATIVE_TOKENS)

    return engine.run(rows(), pin)


def limit_rows() -> list[GenerationRequest]:
    """One that runs to the last position that the model has, and a short one."""
    longest = int(ENGINE_OPTIONS["max_model_len"])
    prompt = ("It was a long way home, and the road was dark. " * 12)[: longest - 24]
    return [
        GenerationRequest("limit-0", prompt, {**OPTIONS, "max_tokens": longest}),
        GenerationRequest("limit-1", "x", {**OPTIONS, "max_tokens": 20}),
    ]


def up_to_the_limit(engine: SteppedEngine) -> dict[str, Any]:
    """Both, while K changes."""
    return engine.run(limit_rows(), lambda step: engine.pin(CHANGING_K[step % len(CHANGING_K)]))


def stress(engine: SteppedEngine, steps: int, seed: str) -> dict[str, Any]:
    """Requests that come, end and are taken back at random, while K changes every few steps and is often 0.

    There are few KV blocks: requests are preempted, long prompts are chunked, and prompts share beginnings.
    """
    rng = random.Random(seed)
    answers: dict[str, Any] = {}
    alive: list[str] = []
    number = length = 0
    for _ in range(steps):
        if rng.random() < 0.35:
            length = rng.choice((0, 0, 0, 1, 2, MAX_NUM_SPECULATIVE_TOKENS))
            engine.pin(length)
        if len(alive) < 8 and rng.random() < 0.4:
            engine.add(request := numbered(number, seed))
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


def numbered(number: int, seed: str) -> GenerationRequest:
    """A request that is the same in every run of a seed, however many steps the ones before it took."""
    rng = random.Random(f"{seed}-{number}")
    shared = "In a hole in the ground there lived a model. " * rng.randrange(4)
    cap = {"extra_args": {"num_speculative_tokens": 0}} if rng.random() < 0.15 else {}
    return GenerationRequest(f"stress-{number}", f"{shared}{number}", {**OPTIONS, **cap, "max_tokens": rng.randrange(8, 60)})


def draft_after_every_token(engine: SteppedEngine, watched: Watched, requests: Sequence[GenerationRequest]) -> dict[str, Any]:
    """What stock vLLM drafts after each token of each answer; its answers have the logprobs that tell near ties.

    The requests opted out of drafts, so each step generates one token of each. One more has not, so the drafter never sleeps.
    """
    watched.every = []
    waiting, answers = list(requests), {}
    alive: set[str] = set()
    companion = ""
    engine.pin(MAX_NUM_SPECULATIVE_TOKENS)
    for number in itertools.count():
        if not companion:
            companion = f"companion-{number}"
            engine.add(GenerationRequest(companion, f"{number}", {**OPTIONS, "max_tokens": 200}))
        while waiting and len(alive) < ROWS_OF_EVERY:
            request = waiting.pop(0)
            engine.add(replace(request, options={**request.options, **OPT_OUT_OPTIONS}), logprobs=LOGPROBS)
            alive.add(request.request_id)
        if not alive:
            break
        for output in engine.engine.step():
            if output.finished and output.request_id in alive:
                alive.remove(output.request_id)
                answers[output.request_id] = plain_answer(output)
            elif output.finished:
                companion = ""
    engine.engine.abort_request([companion])
    while engine.engine.has_unfinished_requests():
        engine.engine.step()
    _taken(engine)
    drafts, watched.every = watched.every, None
    watched.taken()
    return {"answers": answers, "drafts": [draft for draft in drafts if draft[0] in answers]}


def make_forget(drafter: KVOnlyHead | QuietBlock | SteeredDraftOnV2, speculator: Any) -> None:
    """Take away the pass that writes a head's KV at K = 0, or that with which a draft model reads what it missed."""
    if isinstance(drafter, QuietBlock):
        write = speculator._precompute_context_kv
        speculator._precompute_context_kv = lambda *given: None if "_generate_draft" in vars(speculator) else write(*given)
        return
    if isinstance(drafter, SteeredDraftOnV2):
        drafter._recompute = lambda *_: None  # type: ignore[method-assign]
        return
    stock = speculator._run_model
    speculator._run_model = lambda *given, **options: None if given[1] is None else stock(*given, **options)


def run(combination: Combination, steps: int, seed: str, models: Path) -> dict[str, Any]:
    """What happened, by variant, as plain data."""
    family = ATTENTIVE_EAGLE3 if combination.drafter == "eagle3" else ATTENTIVE
    models = build_tiny_models(models.with_name("models-eagle3" if family is ATTENTIVE_EAGLE3 else "models-attentive"), family)
    multiply_by_torch()
    engine = SteppedEngine(engine_arguments(combination, models).kwargs)
    drafter: KVOnlyHead | QuietBlock | SteeredDraftOnV2 = engine.runner.speculator.propose.__self__
    outcome: dict[str, Any] = {}
    if not isinstance(drafter, SteeredDraftOnV2):
        outcome["multiply_adds"] = count_multiply_adds(engine) if combination.scheduling == "sync" else []
        _forget_all(engine)
    engine.record_steps()
    watched = watch(engine)
    outcome["ours"] = _through_all(engine, watched, steps, seed)
    ours, watched.propose = watched.propose, drafter._propose
    engine.scheduler.nightjar.sleeps = lambda *_: False  # it drafts in steps of K = 0, too, and needs their slots
    outcome["stock"] = _through_all(engine, watched, steps, seed)
    del engine.scheduler.nightjar.sleeps
    if isinstance(drafter, SteeredDraftOnV2):
        answered = outcome["ours"]["stress"]["answers"]
        finished = [int(name.rpartition("-")[2]) for name, answer in answered.items() if answer != "aborted"]
        requests = [*rows(), *limit_rows(), *(numbered(number, seed) for number in finished)]
        outcome["every"] = draft_after_every_token(engine, watched, requests)
        _forget_all(engine)
    watched.propose = ours
    make_forget(drafter, engine.runner.speculator)
    outcome["forgets"] = {"off": {"answers": off_stretch(engine), **watched.taken()}}
    return outcome


def _through_all(engine: SteppedEngine, watched: Watched, steps: int, seed: str) -> dict[str, Any]:
    """Both parts."""
    before = engine.preemptions()
    outcome: dict[str, Any] = {"off": {"answers": off_stretch(engine), **watched.taken()}}
    outcome["off"]["steps"] = _taken(engine)
    outcome["stress"] = {"answers": stress(engine, steps, seed), **watched.taken()}
    outcome["stress"]["steps"] = _taken(engine)
    outcome["limit"] = {"answers": up_to_the_limit(engine), **watched.taken()}
    _taken(engine)
    outcome["preemptions"] = engine.preemptions() - before
    outcome["fault"] = engine.exchange(EngineCommand()).fault
    _forget_all(engine)
    return outcome


def _forget_all(engine: SteppedEngine) -> None:
    """Nothing of one variant's KV is left for the next, which would find it in the very same blocks."""
    assert engine.is_idle(), "requests still hold blocks"
    assert engine.engine.reset_prefix_cache()
    for kv_cache in engine.runner.kv_caches:
        kv_cache.zero_()


def _taken(engine: SteppedEngine) -> list[list[Any]]:
    (taken,) = engine.steps_of_ranks()
    assert not (stray := [step.stray_slot for step in taken if step.stray_slot]), stray[0]
    return [[step.num_speculative_tokens, step.forwards, step.kv_writes, step.catches_up or step.skips_drafts] for step in taken]


def main(arguments: Sequence[str]) -> None:
    """See the module."""
    name, steps, seed, models, output = arguments
    end_with(run(Combination.named(name), int(steps), f"{seed}-{name}", Path(models)), Path(output))


if __name__ == "__main__":
    main(sys.argv[1:])
