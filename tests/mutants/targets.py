"""Which modules are mutated, and which tests must notice.

A module is listed because a wrong decision there does harm that nobody sees at once: speculation that loses, restarts that all
happen together, settings of a dead policy, drafts on missing KV or for a client that wants none, a demo that passes what it should
not. The tests of a module are its own fast files and no others, so that a mutant dies where a reader would look for the test.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

PURE: Final = ("numpy", "pydantic", "msgpack", "structlog", "hypothesis", "looptime", "pytest_asyncio")
VLLM: Final = (
    *PURE,
    "torch",
    "vllm.v1.core.sched.async_scheduler",
    "vllm.v1.engine.core",
    "vllm.v1.structured_output",
    "vllm.v1.worker.cpu_worker",
)


@dataclass(frozen=True, slots=True)
class Target:
    """A module by its path; `only` names the classes and functions in it that count (all, if empty)."""

    module: str
    tests: tuple[str, ...]
    only: tuple[str, ...] = ()
    libraries: tuple[str, ...] = PURE
    """Imported once, before the first test run."""


TARGETS: Final = (
    # the guard
    Target("policy/step/guard.py", ("tests/policy/step/test_guard_numbers.py", "tests/policy/step/test_guard.py")),
    Target(
        "policy/step/steering.py",
        ("tests/policy/step/test_bounds.py", "tests/policy/step/test_steering.py", "tests/policy/step/test_local_plans.py"),
    ),
    # how many restart at once
    Target("policy/restarts/budget.py", ("tests/policy/restarts/test_budget.py",)),
    # fencing
    Target("policy/wire/settings.py", ("tests/policy/wire/test_settings_version.py",), only=("SettingsVersion",)),
    Target("policy/issuer.py", ("tests/policy/test_issuer.py",)),
    Target(
        "policy/controller.py",
        ("tests/policy/test_controller.py",),
        only=("Controller.take", "Controller.tick", "Controller.rise_above"),
    ),
    Target("policy/exchange.py", ("tests/policy/test_exchange.py",)),
    Target(
        "deployments/agent.py",
        ("tests/deployments/test_agent.py",),
        only=("ReplicaAgent._settings_to_send", "ReplicaAgent._take"),
    ),
    Target("cluster/service/mailbox.py", ("tests/cluster/service/test_exchange.py",)),
    Target(
        "cluster/service/policy_service.py",
        (
            "tests/cluster/operator/test_operator.py",
            "tests/cluster/operator/test_canary.py",
            "tests/cluster/service/test_exchange.py",
            "tests/cluster/service/test_fencing.py",
            "tests/cluster/service/test_other_versions.py",
        ),
        only=("PolicyService.start", "PolicyService._take_up", "PolicyService._take_up_late", "PolicyService._decide"),
    ),
    Target(
        "cluster/storage/checkpoint.py",
        ("tests/cluster/operator/test_operator.py", "tests/cluster/storage/test_checkpoint.py"),
        only=(
            "Checkpoint.load",
            "Checkpoint.take_found",
            "Checkpoint.has_read",
            "Checkpoint.keep",
            "Checkpoint.save",
            "Checkpoint._may_overwrite",
            "unseal",
        ),
    ),
    # dormancy and catch-up
    Target(
        "policy/step/drafter.py",
        (
            "tests/policy/step/test_drafter_bounds.py",
            "tests/policy/step/test_drafter_transitions.py",
            "tests/policy/step/test_drafter.py",
        ),
    ),
    Target("policy/step/probe.py", ("tests/policy/step/test_probe.py", "tests/policy/step/test_drafter.py")),
    Target("policy/evidence/catch_up.py", ("tests/policy/evidence/test_catch_up.py",)),
    Target("deployments/engine/scheduler/catch_up_plan.py", ("tests/engine/scheduler/test_catch_up_plan.py",), libraries=VLLM),
    Target(
        "deployments/engine/scheduler/lag_ledger.py",
        ("tests/engine/scheduler/test_lag_ledger.py", "tests/engine/scheduler/test_drafting.py"),
        libraries=VLLM,
    ),
    Target(
        "deployments/engine/scheduler/drafting.py",
        ("tests/engine/scheduler/test_drafting_by_hand.py", "tests/engine/scheduler/test_drafting.py"),
        libraries=VLLM,
    ),
    # opt-out, and the fence in the engine
    Target(
        "deployments/engine/scheduler/step_loop.py",
        ("tests/engine/scheduler/test_step_loop.py", "tests/engine/scheduler/test_drafting.py"),
        only=("StepLoop.adopt", "StepLoop.confirm", "StepLoop.add_request", "StepLoop.leave", "StepLoop.draft_limits"),
        libraries=VLLM,
    ),
    Target(
        "deployments/engine/scheduler/steered.py",
        ("tests/engine/scheduler/test_scheduler.py", "tests/engine/scheduler/test_drafting.py"),
        only=(
            "SteeredScheduler.add_request",
            "SteeredScheduler.update_draft_token_ids",
            "SteeredScheduler._limit_drafts",
            "most_drafts_of",
        ),
        libraries=VLLM,
    ),
    # what the demo says of itself
    Target("loadtests/demo/checks.py", ("tests/loadtests/demo/test_checks.py",)),
)
