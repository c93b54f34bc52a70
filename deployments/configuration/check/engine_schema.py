"""What vLLM's engine arguments may hold, as far as it is known without vLLM: names, types, ranges, tables.

The names stand in `vllm_names.json`, read from vLLM's own dataclasses: those of one version, and which of the versions that were
read have a name that not all have. A test compares it with the sources that are at hand. A name that a replica's vLLM does not
know ends it at its start, minutes after the deployment. Of the values only those are looked into that steering, memory or the most
common mistakes hang on; the others are vLLM's to check. Types are strict, for vLLM's arguments are a plain dataclass that takes a
number in quotes and fails on it later.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictBool, model_validator

from nightjar.deployments.configuration.check.findings import Finding, Place, schema_findings
from nightjar.deployments.drafter_kinds import KINDS, SEPARATE_DRAFT_MODEL, kind_of
from nightjar.deployments.engine.start.vllm_versions import READ, in_words

_NAMES: Final = json.loads(Path(__file__).with_name("vllm_names.json").read_text(encoding="utf-8"))

VLLM_VERSION: Final[str] = _NAMES["vllm_version"]
ENGINE_ARGUMENTS: Final = frozenset[str](_NAMES["engine_arguments"])
"""Fields of `AsyncEngineArgs`."""
SERVER_ARGUMENTS: Final = frozenset[str](_NAMES["server_arguments"])
"""Fields of `FrontendArgs`: what vLLM's OpenAI server takes beside the engine."""
SPECULATIVE_ARGUMENTS: Final = frozenset[str](_NAMES["speculative_arguments"])
"""Fields of `SpeculativeConfig` that a user may set."""
IN_SOME_VERSIONS: Final[Mapping[str, Collection[str]]] = _NAMES["in_some_versions"]["arguments"]
"""Of the first two: those that not every version has that was read, with those that have it."""
SPECULATIVE_IN_SOME_VERSIONS: Final[Mapping[str, Collection[str]]] = _NAMES["in_some_versions"]["speculative_arguments"]
"""The same of `SpeculativeConfig`."""
FLAGS: Final = frozenset[str](_NAMES["flags"])
"""Of the first two: yes or no, `--name` and `--no-name` on the command line."""
LISTS: Final = frozenset[str](_NAMES["lists"])
"""Of the first two: take several words on the command line."""
TEXTS: Final = frozenset[str](_NAMES["texts"])
"""Of the first two: text, also where it looks like a number."""


SPECULATIVE_METHODS: Final = tuple(sorted(method for method, kind in KINDS.items() if not kind.variant_of))
"""vLLM's names, but for the aliases of mtp."""

PositiveCount = Annotated[int, Field(ge=1)]


def versions_with(name: str, *, speculative: bool = False) -> Collection[str]:
    """The versions of vLLM that have this argument, of those that were read; none where it is no argument.

    >>> versions_with("monokernel"), versions_with("xpress_topc", speculative=True), versions_with("max_num_seq")
    (['0.33'], ['0.33'], ())
    """
    some = SPECULATIVE_IN_SOME_VERSIONS if speculative else IN_SOME_VERSIONS
    if name in some:
        return some[name]
    in_all = SPECULATIVE_ARGUMENTS if speculative else ENGINE_ARGUMENTS | SERVER_ARGUMENTS
    return tuple(map(in_words, READ)) if name in in_all else ()


def is_method(name: str) -> bool:
    """Whether vLLM knows it; each model family has an alias of mtp of its own.

    >>> is_method("eagle3"), is_method("deepseek_mtp"), is_method("egale3")
    (True, True, False)
    """
    return name in SPECULATIVE_METHODS or name.endswith("_mtp")


def _known_method(name: str) -> str:
    if not is_method(name):
        raise ValueError(f"must be one of {', '.join(SPECULATIVE_METHODS)}")
    return name


def _length(value: int) -> int:
    if value == -1 or value >= 1:
        return value
    raise ValueError("must be 1 or more, or -1 for what fits into memory")


class SpeculativeKwargs(BaseModel):
    """`speculative_config`."""

    model_config = ConfigDict(frozen=True, strict=True, extra="allow", protected_namespaces=())

    method: Annotated[str, AfterValidator(_known_method)] | None = None
    model: str | None = None
    num_speculative_tokens: PositiveCount | None = None
    draft_tensor_parallel_size: PositiveCount | None = None
    max_model_len: PositiveCount | None = None
    prompt_lookup_max: PositiveCount | None = None
    prompt_lookup_min: PositiveCount | None = None
    quantization: str | None = None
    parallel_drafting: StrictBool = False
    use_heterogeneous_vocab: StrictBool = False
    disable_padded_drafter_batch: StrictBool = False
    num_speculative_tokens_per_batch_size: list[list[int]] | None = None

    @model_validator(mode="after")
    def _lookup_is_a_range(self) -> Self:
        low, high = self.prompt_lookup_min, self.prompt_lookup_max
        if low is not None and high is not None and low > high:
            raise ValueError(f"prompt_lookup_min {low} is above prompt_lookup_max {high}; swap or change them")
        return self

    @model_validator(mode="after")
    def _has_what_it_drafts_with(self) -> Self:
        method = self.method or SEPARATE_DRAFT_MODEL
        if kind_of(method).model == "required" and not self.model:
            raise ValueError(f"method {method} needs model, the drafter's folder or hub name; add it")
        return self


class EngineKwargs(BaseModel):
    """`engine_kwargs`."""

    model_config = ConfigDict(frozen=True, strict=True, extra="allow", protected_namespaces=())

    tensor_parallel_size: PositiveCount = 1
    pipeline_parallel_size: PositiveCount = 1
    data_parallel_size: PositiveCount = 1
    data_parallel_size_local: Annotated[int, Field(ge=0)] | None = None
    nnodes: PositiveCount = 1
    decode_context_parallel_size: PositiveCount = 1
    prefill_context_parallel_size: PositiveCount = 1
    max_num_seqs: PositiveCount | None = None
    max_num_batched_tokens: PositiveCount | None = None
    max_model_len: Annotated[int, AfterValidator(_length)] | None = None
    gpu_memory_utilization: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    kv_cache_memory_bytes: PositiveCount | None = None
    num_gpu_blocks_override: PositiveCount | None = None
    block_size: PositiveCount | None = None
    dtype: Literal["auto", "half", "float16", "bfloat16", "float", "float32"] = "auto"
    kv_cache_dtype: str = "auto"
    quantization: str | None = None
    enforce_eager: StrictBool = False
    enable_prefix_caching: StrictBool | None = None
    enable_chunked_prefill: StrictBool | None = None
    async_scheduling: StrictBool | None = None
    enable_sleep_mode: StrictBool = False
    enable_cumem_allocator: StrictBool = False
    trust_remote_code: StrictBool = False
    additional_config: dict[str, Any] | None = None
    kv_transfer_config: dict[str, Any] | None = None
    speculative_config: SpeculativeKwargs | None = None


def argument_findings(engine_kwargs: Mapping[str, Any], place: Place) -> Iterator[Finding]:
    """What keeps values, which stand at `place`, from being engine arguments. Nothing may look further into those."""
    found = list(schema_findings(EngineKwargs, engine_kwargs, place))
    yield from found
    speculative = None if found else EngineKwargs.model_validate(engine_kwargs).speculative_config
    rows = speculative.num_speculative_tokens_per_batch_size if speculative else None
    if speculative and rows is not None and (problem := table_problem(rows, speculative.num_speculative_tokens)):
        yield Finding("error", (*place, "speculative_config", "num_speculative_tokens_per_batch_size"), problem)


def table_problem(rows: list[list[int]], max_num_speculative_tokens: int | None) -> str:
    """What is wrong with a table [[first batch, last batch, K], ...]; empty where vLLM takes it and it can be what is meant.

    >>> table_problem([[1, 8, 5], [8, 32, 1]], 5)
    'row [8, 32, 1] begins at or below batch 8, where the row before ends; rows must ascend: let it begin at 9'
    >>> table_problem([[1, 8, 9]], 5)
    'row [1, 8, 9] asks for 9 tokens, num_speculative_tokens is 5; allowed are 0 to 5: lower it or raise num_speculative_tokens'
    """
    last_batch = 0
    for number, row in enumerate(rows):
        if len(row) != 3:
            return f"row {row} has {len(row)} numbers; three are needed: first batch, last batch, tokens"
        first, last, k = row
        if number == 0 and first != 1:
            return f"row {row} begins at batch {first}; the first row must begin at 1"
        if first <= last_batch:
            return (
                f"row {row} begins at or below batch {last_batch}, where the row before ends; rows must ascend: "
                f"let it begin at {last_batch + 1}"
            )
        if last < first:
            return f"row {row} ends before it begins; swap {first} and {last}"
        if k < 0:
            return f"row {row} asks for {k} tokens; allowed is 0 (off) and more"
        if max_num_speculative_tokens is not None and k > max_num_speculative_tokens:
            return (
                f"row {row} asks for {k} tokens, num_speculative_tokens is {max_num_speculative_tokens}; allowed are 0 to "
                f"{max_num_speculative_tokens}: lower it or raise num_speculative_tokens"
            )
        last_batch = last
    return "" if rows else "no rows; write at least one, for example [[1, 32, 3]], or take the table out"
