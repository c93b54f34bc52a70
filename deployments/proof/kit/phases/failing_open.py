"""What goes wrong with us must not cost an answer: refused at the start, failed on the way, not to be steered at all.

An engine whose worker takes a gibibyte and refuses is started again with the user's own arguments; one whose steering raises in
mid-generation goes on with its own K; one that cannot be steered serves plainly, or does not start where steering is required.
"""

from __future__ import annotations

import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from nightjar.deployments.proof.driven_engine import DrivenEngine
from nightjar.deployments.proof.executed_steps import ExecutedStep
from nightjar.deployments.proof.kit.chosen import Chosen
from nightjar.deployments.proof.kit.engines import AtZero, EngineSpec, engine_arguments, user_arguments
from nightjar.deployments.proof.kit.phases import asked
from nightjar.deployments.proof.kit.phases.correctness import near_tie, plain_answers
from nightjar.deployments.proof.kit.tasks import Found, Outcomes, Phase, Table, Task, Verdict, errors, of_phase
from nightjar.deployments.proof.scenarios import MAX_NUM_SPECULATIVE_TOKENS
from nightjar.deployments.proof.verdict import Verdict as EngineVerdict
from nightjar.deployments.proof.verdict import judge_texts
from nightjar.policy.wire.report import EngineSnapshot
from nightjar.policy.wire.settings import EngineCommand

NAME: Final = "failing-open"
REFUSED: Final = "refused"
REQUIRED: Final = "required"
FAULT: Final = "fault"
REFUSING_WORKER: Final = "nightjar.deployments.proof.kit.refusing_worker.RefusingWorker"
MARKER_VARIABLE: Final = "NIGHTJAR_PROOF_REFUSED"
"""Names a file that is there once the worker has refused: the engine's own error does not say why it did not start."""
FAULT_AFTER_STEPS: Final = 4
OUR_MISTAKE: Final = "a mistake of ours, planted"


class UnsteeredEngine(DrivenEngine):
    """vLLM's own, whose core has a process of its own, as in a replica. Needs VLLM_ENABLE_V1_MULTIPROCESSING=1."""

    def exchange(self, command: EngineCommand) -> EngineSnapshot:
        """It has no control channel."""
        raise NotImplementedError("this engine has no control channel")

    def steps_of_ranks(self) -> list[list[ExecutedStep]]:
        """Nothing is recorded."""
        return []

    def shutdown(self) -> None:
        """End the core and its workers."""
        self.engine.engine_core.shutdown()


def tasks(chosen: Chosen) -> list[Task]:
    """With the first drafter that there is, and a fault with each."""
    first, *_ = chosen.drafters
    spec = EngineSpec(first, room="roomy")
    faults = [Task(NAME, f"{FAULT}-{drafter}", EngineSpec(drafter, room="roomy")) for drafter in chosen.drafters]
    return [Task(NAME, REFUSED, spec, in_one_process=False), Task(NAME, REQUIRED, spec), *faults]


def perform(task: Task, chosen: Chosen) -> dict[str, Any]:
    """See the module."""
    assert task.engine is not None
    if task.name == REFUSED:
        return _refused(task.engine, chosen)
    if task.name == REQUIRED:
        return _required(task.engine, chosen)
    return _fault(task.engine, chosen)


def _refused(spec: EngineSpec, chosen: Chosen) -> dict[str, Any]:
    from nightjar.deployments.engine.engine_processes import Processes
    from nightjar.deployments.engine.start.arguments import EngineArguments
    from nightjar.deployments.engine.start.fallback import Refusals, start_failing_open

    steered = engine_arguments(spec, chosen)
    refused = replace(steered, kwargs={**steered.kwargs, "worker_cls": REFUSING_WORKER})
    plain = EngineArguments(user_arguments(spec, chosen), steered.drafter_kind, steered.max_num_speculative_tokens)

    def start(arguments: EngineArguments) -> DrivenEngine:
        return UnsteeredEngine(arguments.kwargs)

    for name in steered.environment:
        del os.environ[name]  # the plain engine is to find the environment as its user left it
    began_s = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        marker = Path(folder) / "refused"
        os.environ[MARKER_VARIABLE] = str(marker)
        refusals = Refusals(Path(folder))
        engine, arguments = start_failing_open(
            refused, plain, lambda chosen: chosen, start, os.environ, refusals=refusals, processes=Processes()
        )
        remembered, was_refused = refusals.reason(refused), marker.exists()
    seconds = time.monotonic() - began_s
    answers = engine.run(asked.fault_requests())
    engine.shutdown()
    return {
        "reason": arguments.serving_plainly,
        "remembered": bool(remembered),
        "seconds": seconds,
        "was_refused": was_refused,
        "runner": 2 if getattr(engine.vllm_config, "use_v2_model_runner", False) else 1,
        "greedy": list(answers),
        "answers": answers,
    }


def _required(spec: EngineSpec, chosen: Chosen) -> dict[str, Any]:
    from nightjar.deployments.engine.engine_processes import Processes
    from nightjar.deployments.engine.start.arguments import EngineArguments, steered_engine_kwargs
    from nightjar.deployments.engine.start.fallback import Refusals, SteeringRequiredError, start_failing_open
    from nightjar.deployments.engine.start.hooks import MissingHooks
    from nightjar.deployments.engine.start.resolved_facts import EngineFacts

    user = user_arguments(spec, chosen)
    facts = EngineFacts(
        on_cpu=False,
        async_scheduling=True,
        captures_graphs=False,
        max_num_seqs=chosen.sizes.max_num_seqs,
        drafter_kind=chosen.method(spec.drafter),
        max_num_speculative_tokens=MAX_NUM_SPECULATIVE_TOKENS,
    )
    cases = {
        "a vLLM without our hooks": steered_engine_kwargs(
            user, facts, missing_hooks=MissingHooks(steering=("Scheduler.schedule",))
        ),
        "a drafter that nobody looked at": steered_engine_kwargs(user, replace(facts, drafter_kind="newest")),
    }
    found: dict[str, Any] = {}
    for name, arguments in cases.items():
        launched: list[EngineArguments] = []
        for required in (False, True):
            said = ""
            with tempfile.TemporaryDirectory() as folder:
                try:
                    start_failing_open(
                        arguments,
                        arguments,
                        lambda chosen: chosen,
                        launched.append,
                        dict(os.environ),
                        refusals=Refusals(Path(folder)),
                        processes=Processes(),
                        require_steering=required,
                    )
                except SteeringRequiredError as error:
                    said = str(error)
            found[f"{name}, required" if required else name] = {
                "launched": len(launched),
                "said": said or arguments.serving_plainly,
            }
            launched.clear()
    return {"cases": found, "kwargs_are_the_users": all(arguments.kwargs == user for arguments in cases.values())}


def _fault(spec: EngineSpec, chosen: Chosen) -> dict[str, Any]:
    from nightjar.deployments.proof.stepped_engine import SteppedEngine

    engine = SteppedEngine(engine_arguments(spec, chosen).kwargs)

    def fails(*_: object) -> None:
        raise RuntimeError(OUR_MISTAKE)

    def plant(step: int) -> None:
        if step == FAULT_AFTER_STEPS:
            engine.scheduler.nightjar._choose = fails

    engine.steer(f"pin={MAX_NUM_SPECULATIVE_TOKENS}")
    answers = engine.run(asked.fault_requests(), plant)
    result = {"greedy": list(answers), "answers": answers, "fault": engine.exchange(EngineCommand()).fault}
    engine.shutdown()
    return result


def judge(outcomes: Outcomes, chosen: Chosen) -> Found:
    """Answers are plain decoding's whatever went wrong, and the reason is told."""
    wrong = errors(NAME, outcomes)
    seen = of_phase(NAME, outcomes)
    reference = plain_answers(outcomes)
    if reference is None:
        return Found(Verdict.FAILED, wrong or ["plain decoding did not run: its answers are missing"])
    verdict = EngineVerdict(AtZero("none"), "")
    table = Table(("what went wrong", "what followed"), [])
    for task in tasks(chosen):
        if (outcome := seen.get(task.name)) is None:
            continue
        if task.name == REQUIRED:
            wrong += _judge_required(outcome, table)
            continue
        judge_texts(verdict, task.name, outcome, reference[asked.FAULT], near_tie(chosen))
        if task.name == REFUSED:
            wrong += [] if outcome["reason"] else ["refused: the engine did not say that it serves plainly"]
            wrong += (
                [] if outcome["was_refused"] else ["refused: it was not the refusing worker that kept the engine from starting"]
            )
            wrong += [] if outcome["remembered"] else ["refused: the refusal was not remembered"]
            table.rows.append(
                [
                    "a worker refuses to start",
                    f"served plainly on V{outcome['runner']}, {outcome['seconds']:.0f} s later: {outcome['reason']}",
                ]
            )
        else:
            told = OUR_MISTAKE in outcome["fault"]
            wrong += [] if told else [f"{task.name}: the fault was not told ({outcome['fault'] or 'nothing was'})"]
            table.rows.append(
                [f"our code raises in mid-generation ({task.engine and task.engine.drafter})", f"goes on; told: {outcome['fault']}"]
            )
    wrong += verdict.texts
    well = f"{verdict.compared} answers of {verdict.compared} are plain decoding's."
    return Found(Verdict.FAILED if wrong else Verdict.PROVED, wrong or [well], [table])


def _judge_required(outcome: Any, table: Table) -> list[str]:
    wrong = (
        [] if outcome["kwargs_are_the_users"] else ["required: an engine that is not steered got other arguments than the user's"]
    )
    for name, case in outcome["cases"].items():
        expected = 0 if name.endswith(", required") else 1
        if case["launched"] != expected:
            wrong.append(f"{name}: {case['launched']} engines were started, expected {expected}")
        table.rows.append([name, f"{'started plainly' if case['launched'] else 'not started'}: {case['said']}"])
    return wrong


FAILING_OPEN: Final = Phase(NAME, "Failing open", tasks, perform, judge)
