"""What the tasks of a run in which all is well would give, small."""

from __future__ import annotations

from typing import Any

from nightjar.deployments.proof.kit.chosen import MADE_BY_CODE, Chosen

ON_RIG = Chosen(
    "tests.rig.rehearsal",
    0,
    "/w/target",
    "/w/draft",
    "/w/eagle",
    "eagle",
    {"target": MADE_BY_CODE, "draft": MADE_BY_CODE, "head": f"{MADE_BY_CODE} (eagle)"},
    "/w/adapter",
)


def answer(*tokens: int) -> dict[str, Any]:
    logprobs = [{str(token): -0.1, "99": -4.0} for token in tokens]
    return {"token_ids": list(tokens), "text": " ".join(map(str, tokens)), "finish_reason": "length", "logprobs": logprobs}


def step(ordered: int, forwards: int, **other: Any) -> dict[str, Any]:
    plain = {
        "verified": {},
        "drafter_state": "active",
        "catches_up": False,
        "skips_drafts": False,
        "stray_slot": "",
        "replays": 0,
        "kv_writes": 0,
        "requests": ["a"],
    }
    return {"pinned": ordered, "num_speculative_tokens": ordered, "forwards": forwards, "graph_mode": "NONE"} | plain | other


def steps(kv_writes: int) -> list[dict[str, Any]]:
    return [step(3, 3), step(0, 0, verified={"a": 3}, kv_writes=kv_writes), step(1, 1), step(2, 2)]


def engine(kv_writes: int) -> dict[str, Any]:
    scenario = {"greedy": ["a"], "answers": {"a": answer(1, 2, 3)}, "missed": "", "ranks": [steps(kv_writes)]}
    return {"serving_plainly": "", "aborted": "", "fault": "", "head_runs": "", "runner": 1, "scenarios": {"changing K": scenario}}


def lag() -> dict[str, Any]:
    asleep = [step(0, 0, drafter_state="dormant") for _ in range(3)]
    ran = [step(3, 3), *asleep, step(0, 1, drafter_state="catching_up", catches_up=True), step(3, 3), step(3, 3, verified={"a": 3})]
    return {
        "rows": 1,
        "greedy": ["a"],
        "answers": {"a": answer(1, 2)},
        "most_lag_tokens": 3,
        "recomputed_tokens": 3,
        "states": ["active", "dormant", "catching_up"],
        "seconds": [0.01] * (len(ran) + 1),
        "state_of_step": [each["drafter_state"] for each in ran],
        "steps": ran,
    }


def start(steered: str) -> dict[str, Any]:
    return {
        "steering": steered,
        "reason": "" if steered in {"", "fully"} else "its head is kept in step",
        "notice": "",
        "seconds": 9.0,
        "runner": 1,
        "asynchronous": True,
        "backend": "CPU_ATTN",
        "graph_mode": "none",
        "graph_sizes": 0,
        "captured": "",
        "kv_tokens": 1024,
        "tokens": 16,
    }


def place(rows: int, context: int, off_tokens: float) -> dict[str, Any]:
    """Of the phase about off: where plain vLLM gives 100 tokens in each round."""
    off, plain = ([{"tokens": tokens, "seconds": 1.0}] * 6 for tokens in (off_tokens, 100.0))
    return {"rows": rows, "context": context, "off": off, "plain": plain}


def good_run() -> dict[str, Any]:
    """By `Task.file_name`."""
    answers = {"a": answer(1, 2)}
    asked = ("back", *(f"catch-up-{each}" for each in (8, 24, 48)), *(f"lending-{each}" for each in (0, 1)), "fault")
    other = dict.fromkeys(asked, answers)
    cycle = {"greedy": ["a"], "answers": answers, "missed": "", "moved_bytes": 1 << 20, "moving_seconds": 0.1}
    cycle |= {"relocated_blocks": 1, "preempted": 0}
    cases = {
        f"{what}{required}": {"launched": 0 if required else 1, "said": "why"}
        for what in ("a vLLM without our hooks", "a drafter that nobody looked at")
        for required in ("", ", required")
    }
    batches = {"batches": [{"rows": 1, "steps": steps(0)}], "fault": "", "tiers": [], "head_runs": ""}
    rows = [
        {"round": number, "contender": name, "load": load, "tokens": tokens, "seconds": 2.0}
        for number in range(2)
        for load in ("1", "ramp")
        for name, tokens in (("no speculation", 100.0), ("Nightjar", 150.0))
    ]
    return {
        "facts.machine": {
            "packages": {"torch": "2"},
            "python": "3.11",
            "system": "Linux",
            "processor": "x86_64",
            "gpus": [],
            "cuda": "",
            "driver": "",
            "replaced": [],
            "cpu_worker_imported": False,
            "missing": {"steering": [], "sleeping": [], "lending": [], "heads": [], "draft on v2": []},
            "models": ON_RIG.names,
        },
        **{f"start-up.{name}": start("") for name in ("stock-draft", "stock-head")},
        "start-up.draft": start("fully"),
        "start-up.head": start("without_sleeping"),
        "correctness.plain": engine(0),
        "correctness.plain-roomy": {"other": other},
        **{
            f"coming-back.{name}": {
                "greedy": ["a"],
                "answers": answers,
                "after_off": [100, 49],
                "never_off": [100, 50],
                "verified_while_off": 0,
                "fault": "",
            }
            for name in ("draft", "head")
        },
        **{f"correctness.{name}": engine(0) for name in ("draft", "draft-sync")},
        **{f"correctness.{name}": engine(1) for name in ("head", "head-sync")},
        "random-K.draft": batches,
        "random-K.head": batches | {"batches": [{"rows": 1, "steps": steps(1)}]},
        **{f"off.{name}": {"places": [place(4, 64, 99.0), place(2, 256, 98.0)], "unable": ""} for name in ("draft", "head")},
        "catch-up.draft": {"lags": {f"catch-up-{each}": lag() for each in (8, 24, 48)}, "fault": ""},
        "lending.draft": {"cycles": [cycle, cycle], "fault": "", "notice": "", "free_bytes_lost": 0},
        "failing-open.refused": {
            "reason": "refused",
            "remembered": True,
            "was_refused": True,
            "runner": 2,
            "seconds": 9.0,
            "greedy": ["a"],
            "answers": answers,
        },
        "failing-open.required": {"cases": cases, "kwargs_are_the_users": True},
        **{
            f"failing-open.fault-{name}": {"greedy": ["a"], "answers": answers, "fault": "before_step: a mistake of ours, planted"}
            for name in ("draft", "head")
        },
        "contest.draft": {"rows": rows, "table": [], "unable": {}},
    }
