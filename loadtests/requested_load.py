"""What the options of a load test ask for: a regime with prompts, or a trace joined with texts.

Every load process comes to the same from the same options, so that together they send each request exactly once.
Fails closed: whatever is unusable raises a ValueError of one line that names file, line or option.
"""

from __future__ import annotations

import math
import random
from argparse import Namespace
from functools import lru_cache
from pathlib import Path
from typing import Final, NamedTuple

from nightjar.loadtests.goodput import parse_goodput
from nightjar.loadtests.load_driver import LoadPlan, Shard
from nightjar.loadtests.prompts import BUILT_IN_PROMPTS, Text, read_prompts, read_texts, shuffled
from nightjar.loadtests.regimes import Phase, Regime, parse_regime
from nightjar.loadtests.token_counting import token_counter
from nightjar.loadtests.trace_join import JoinShares, TraceJoin, context_limits, join_trace
from nightjar.loadtests.traces import TraceFit, fit_trace, read_trace

TRACE_PHASE: Final = "trace"
LEAST_TRACE_S: Final = 1.0
"""How long a trace of a single moment lasts."""


class RequestedLoad(NamedTuple):
    """The plan of one load process, and what a reader of its results must know; `join` is there with a trace only."""

    plan: LoadPlan
    name: str
    token_counting: str
    join: TraceJoin | None

    @property
    def shares(self) -> JoinShares | None:
        """How a joined trace was changed."""
        return self.join.shares if self.join else None


def requested_load(options: Namespace, shard: Shard) -> RequestedLoad:
    """The share of one process. Raises ValueError."""
    if not options.trace:
        prompts = shuffled(read_prompts(Path(options.prompts)) if options.prompts else BUILT_IN_PROMPTS, options.seed)
        regime = parse_regime(options.regime)
        plan = LoadPlan(regime, options.seed, prompts, shard, options.drain_s, options.max_tokens)
        return RequestedLoad(plan, options.regime, "", None)
    join = _join(
        options.trace, options.prompts, options.tokenizer, options.seed, options.max_model_len,
        options.max_prompt_tokens, options.max_output_tokens, options.time_scale, options.length_scale, options.trace_s,
    )  # fmt: skip
    last_s = max(join.requests[-1].due_s, LEAST_TRACE_S)
    regime = Regime((Phase(TRACE_PHASE, last_s, requests_per_s=len(join.requests) / last_s),))
    plan = LoadPlan(regime, options.seed, (), shard, options.drain_s, trace=join.requests)
    return RequestedLoad(plan, Path(options.trace).name, join.token_counting, join)


def check_files(options: Namespace) -> None:
    """Read every file that the options name, and the target of goodput. Raises ValueError for the first that is unusable."""
    if options.trace:
        read_trace(Path(options.trace))
    if options.prompts:
        read_texts(Path(options.prompts))
    token_counter(options.tokenizer)
    parse_goodput(options.goodput)


@lru_cache(maxsize=1)
def _join(
    trace: str,
    prompts: str,
    tokenizer: str,
    seed: int,
    max_model_len: int,
    max_prompt_tokens: int,
    max_output_tokens: int,
    time_scale: float,
    length_scale: float,
    trace_s: float,
) -> TraceJoin:
    """Limits of 0 are none."""
    counter = token_counter(tokenizer)
    context = context_limits(max_model_len, counter) if max_model_len else (math.inf, math.inf)
    fit = TraceFit(
        time_scale=time_scale,
        length_scale=length_scale,
        duration_s=trace_s or math.inf,
        max_prompt_tokens=min(context[0], max_prompt_tokens or math.inf),
        max_output_tokens=min(context[1], max_output_tokens or math.inf),
    )
    built_in = (Text(line, "built-in", (prompt,)) for line, prompt in enumerate(BUILT_IN_PROMPTS, start=1))
    texts = read_texts(Path(prompts)) if prompts else tuple(built_in)
    return join_trace(fit_trace(read_trace(Path(trace)), fit), texts, counter, random.Random(f"join:{seed}"))  # noqa: S311
