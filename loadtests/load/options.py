"""The options of the Locust load test, beside Locust's own, and what they ask for: a regime, or a trace joined with texts.

Locust ships options to its workers as plain values, so each stays what was typed. Text that makes no regime and a prompts file that
is none are refused when they are read; what needs more (a trace, a tokenizer) is looked at before any load.

Every load process comes to the same from the same options, so that together they send each request exactly once.
Fails closed: whatever is unusable raises a ValueError of one line that names file, line or option.
"""

from __future__ import annotations

import math
import random
from argparse import ArgumentTypeError, BooleanOptionalAction, Namespace
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Final, NamedTuple

from locust.argument_parser import LocustArgumentParser

from nightjar.loadtests.load.driver import LoadPlan, Shard
from nightjar.loadtests.load.goodput import parse_goodput
from nightjar.loadtests.load.prompts import BUILT_IN_PROMPTS, Text, read_prompts, read_texts, shuffled
from nightjar.loadtests.load.regimes import NAMED_REGIMES, TEXT_FORM, Phase, Regime, parse_regime
from nightjar.loadtests.load.trace_join import JoinShares, TraceJoin, context_limits, join_trace, token_counter
from nightjar.loadtests.load.traces import TraceFit, fit_trace, read_trace

TRACE_PHASE: Final = "trace"
LEAST_TRACE_S: Final = 1.0
"""How long a trace of a single moment lasts."""


def add_load_options(parser: LocustArgumentParser) -> None:
    """Shown by --help and in Locust's web page."""
    group = parser.add_argument_group("Nightjar load")
    group.add_argument(
        "--regime",
        type=partial(_usable, parse_regime),
        default="quiet-surge-quiet",
        help=f"{', '.join(sorted(NAMED_REGIMES))}, or {TEXT_FORM}. Default: quiet-surge-quiet",
    )
    group.add_argument("--seed", type=int, default=0, help="Seed of arrivals, prompt order and the join. Default: 0")
    group.add_argument(
        "--prompts",
        type=partial(_usable, _prompts),
        default="",
        help="JSON-lines file with 'prompt', Spec-Bench 'turns', OpenAI 'messages' or ShareGPT 'conversations' per line. "
        "Default: built-in prompts",
    )
    group.add_argument("--model", default="", help="Model id. Default: the first that the server lists")
    group.add_argument(
        "--max-tokens", type=partial(_above_zero, int), default=64, help="Most tokens per answer, of a regime. Default: 64"
    )
    group.add_argument("--temperature", type=float, default=0.0, help="Sampling temperature. Default: 0, greedy")
    group.add_argument(
        "--ignore-eos",
        action=BooleanOptionalAction,
        default=False,
        help="Answers go on to their most tokens: vLLM's extension, which OpenAI's own service refuses. Default: no",
    )
    group.add_argument("--rows", default="", help="File that gets one JSON line per request, replaced at the start. Default: none")
    group.add_argument(
        "--runs",
        default="",
        help="Folder that gets one folder per run (`latest` is the newest): load.json, requests.jsonl and, of a trace, "
        "join.jsonl. Default: none",
    )
    group.add_argument(
        "--drain-s",
        type=partial(_above_zero, float),
        default=60.0,
        help="Seconds to wait for answers after the load's end. Default: 60",
    )
    group.add_argument(
        "--goodput",
        nargs="+",
        default=[],
        metavar="BOUND:MS",
        help="Also the share of requests within this target, as vllm bench serve has it: ttft:500 tpot:50 e2el:2000 (milliseconds)",
    )
    _add_trace_options(parser)


def _add_trace_options(parser: LocustArgumentParser) -> None:
    group = parser.add_argument_group("Nightjar load from a trace, in place of a regime")
    group.add_argument(
        "--trace",
        default="",
        help="CSV with TIMESTAMP, ContextTokens, GeneratedTokens (Azure's) or time, prompt_tokens, output_tokens. "
        "Its texts come from --prompts, those of one category put together to the recorded length",
    )
    group.add_argument(
        "--tokenizer", default="", help="tokenizer.json of the served model, or the folder that holds it. Default: an estimate"
    )
    group.add_argument(
        "--time-scale", type=partial(_above_zero, float), default=1.0, help="Factor of times; 0.5 is twice as fast. Default: 1"
    )
    group.add_argument("--length-scale", type=partial(_above_zero, float), default=1.0, help="Factor of lengths. Default: 1")
    group.add_argument(
        "--trace-s", type=partial(_not_below_zero, float), default=0.0, help="Only the first seconds, as scaled. Default: all"
    )
    group.add_argument(
        "--max-model-len",
        type=partial(_not_below_zero, int),
        default=0,
        help="Context of the model: answers are cut at half of it, prompts at the rest. Default: what the server says, if it does",
    )
    for what in ("prompt", "output"):
        group.add_argument(
            f"--max-{what}-tokens",
            type=partial(_not_below_zero, int),
            default=0,
            help=f"Longer {what}s are cut. Default: as --max-model-len has it",
        )


def _usable(parse: Callable[[str], object], text: str) -> str:
    """`text` itself, once `parse` took it. argparse shows the message of this error only."""
    try:
        parse(text)
    except ValueError as error:
        raise ArgumentTypeError(str(error)) from error
    return text


def _prompts(text: str) -> None:
    if text:
        read_texts(Path(text))


def _above_zero(parse: Callable[[str], Any], text: str) -> Any:
    value = parse(text)
    if not value > 0:
        raise ArgumentTypeError(f"{text} is not above 0")
    return value


def _not_below_zero(parse: Callable[[str], Any], text: str) -> Any:
    value = parse(text)
    if not value >= 0:
        raise ArgumentTypeError(f"{text} is below 0")
    return value


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
