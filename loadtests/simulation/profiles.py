"""What a simulated engine is made of: step costs, limits, drafter, acceptance and noise, read from one JSON file.

A number in a profile is only as good as its source, so each file names where its numbers come from, part by part, and says
which were assumed or calibrated. Profiles are data, not code: anyone can hold the planners against an engine of theirs by
giving a path (profiles/README.md documents the format).
Fails closed: a file that is missing, not JSON or out of bounds raises `ProfileError`, which names file, field and what is allowed.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from nightjar.policy.wire.record import MAX_BATCH_SIZE, NumSpeculativeTokens, describe_validation_error
from nightjar.policy.wire.report import GroupKey

PROFILES_FOLDER: Final = Path(__file__).parent / "profiles"
PROFILE_NAMES: Final = tuple(sorted(path.stem for path in PROFILES_FOLDER.glob("*.json")))
"""Profiles that every bench runs."""
PUBLISHED_NAMES: Final = tuple(sorted(path.stem for path in (PROFILES_FOLDER / "published").glob("*.json")))
"""Profiles put together from numbers that others published, which nobody here could hold against an engine: they run by name."""
SHIPPED_NAMES: Final = (*PROFILE_NAMES, *PUBLISHED_NAMES)
CURVES_FILE: Final = PROFILES_FOLDER / "acceptance" / "inferencex.json"
WITH: Final = "+"
"""Between a profile and an acceptance curve that takes the place of its own: `llama-70b-eagle3-8xh100+qwen3.5-mtp`."""

Positive = Annotated[float, Field(gt=0.0, le=1e18)]
NotNegative = Annotated[float, Field(ge=0.0, le=1e18)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Survival = Annotated[tuple[Share, ...], Field(min_length=1, max_length=32)]


class ProfileError(ValueError):
    """A profile that cannot be read. The message names the file, the field and what is allowed."""


class Mechanics(StrEnum):
    """What K=0 runs of the drafter.

    dormant  nothing; a restart pays a catch-up
    stock  its first forward in every step, as vLLM does
    kv  of a head the part that writes its KV, in every step; a restart costs nothing
    """

    DORMANT = "dormant"
    STOCK = "stock"
    KV = "kv"


class Part(BaseModel):
    """A frozen part of a profile. Unknown fields are errors: a misspelt number must not fall back to nothing."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Limits(Part):
    """The scheduler's limits and the KV cache."""

    max_num_seqs: Annotated[int, Field(ge=1, le=MAX_BATCH_SIZE)]
    max_num_batched_tokens: Annotated[int, Field(ge=1, le=1 << 20)]
    block_size: Annotated[int, Field(ge=1, le=1024)]
    num_blocks: Annotated[int, Field(ge=1, le=1 << 24)]
    extra_blocks: Annotated[int, Field(ge=0, le=1 << 24)] = 0
    """Blocks that the pool gains while the draft is offloaded."""

    @property
    def num_tokens(self) -> int:
        """Tokens whose KV fits into the blocks that are always there."""
        return self.num_blocks * self.block_size


class Drafter(Part):
    """The drafter, and what it costs to bring it back."""

    kind: Annotated[str, Field(min_length=1, max_length=32)]
    off: Mechanics
    """What K=0 runs, unless stock is wished. Only a separate draft model can be dormant; EAGLE and MTP heads write their KV."""
    arms: Annotated[tuple[NumSpeculativeTokens, ...], Field(min_length=2, max_length=33)]
    """Every K that the engine can run, ascending from 0."""
    drafts_a_block: bool = False
    """Whether one forward over a row's next token and all drafts of the greatest arm drafts at every K above 0 (DFlash, DSpark). A
    roofline charges for it; a table's times are what was measured."""
    catch_up_seconds: NotNegative = 0.0
    """Fixed time of one catch-up pass."""
    catch_up_seconds_per_token: NotNegative = 0.0
    kv_pass_seconds: NotNegative = 0.0
    """Fixed time of one pass that writes a head's KV, and below what each of its tokens adds."""
    kv_pass_seconds_per_token: NotNegative = 0.0
    transfer_bytes: NotNegative = 0.0
    """What an offload or a reload moves over the host link."""
    host_link_bytes_per_s: Positive = 1e10
    relocation_seconds: NotNegative = 0.0
    """Step time that moving the blocks out of the borrowed tail costs once, when the pool shrinks."""

    @model_validator(mode="before")
    @classmethod
    def _log_is_kv(cls, values: object) -> object:
        """A profile of before, in which a head wrote the KV of `log_steps` steps at once: read as `kv` for one release."""
        if not isinstance(values, Mapping):
            return values
        kept = {name: value for name, value in values.items() if name != "log_steps"}
        return kept | {"off": "kv"} if kept.get("off") == "log" else kept

    @model_validator(mode="after")
    def _arms_ascend_from_off(self) -> Self:
        if self.arms[0] != 0 or any(left >= right for left, right in pairwise(self.arms)):
            raise ValueError(f"arms must ascend from 0, got {self.arms}")
        return self


class AcceptanceClass(Part):
    """Requests of one kind: their share of the traffic, and survival[i], the probability that more than i drafts are accepted."""

    name: Annotated[str, Field(min_length=1, max_length=64)]
    share: Annotated[float, Field(gt=0.0, le=1.0)]
    survival: Survival

    @model_validator(mode="after")
    def _survival_falls(self) -> Self:
        if any(later > earlier for earlier, later in pairwise(self.survival)):
            raise ValueError(f"survival must not rise with the position, got {self.survival}")
        return self


class StepNoise(Part):
    """Multiplicative lognormal noise of a step's time with median 1, and rare stalls that add to it."""

    lognormal_sd: Annotated[float, Field(ge=0.0, le=1.0)]
    stall_share: Annotated[float, Field(ge=0.0, le=0.1)] = 0.0
    """Share of the steps that stall."""
    stall_seconds: NotNegative = 0.0


class MeasuredTable(Part):
    """Step times measured by decode batch and K, in milliseconds. Between them: a power law in the batch, linear in K."""

    kind: Literal["table"]
    batch_sizes: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=2, max_length=64)]
    lengths: Annotated[tuple[NumSpeculativeTokens, ...], Field(min_length=2, max_length=33)]
    milliseconds: Annotated[tuple[tuple[Positive, ...], ...], Field(min_length=2, max_length=64)]
    """milliseconds[i][j]: batch_sizes[i] at K = lengths[j]; lengths[0] is 0 and runs no drafter at all (dormant)."""
    stock_off_milliseconds: Annotated[tuple[Positive, ...], Field(min_length=2, max_length=64)]
    """K=0 with the drafter's first forward, for each batch size: the tax of stock mechanics."""
    draft_share: Share
    """Share of what K adds to a step that is drafting; the rest is verification of the step before's drafts."""
    context_tokens_per_row: NotNegative
    """Context at which the table was measured."""
    seconds_per_context_token: NotNegative
    """Time to read one token's KV from the cache."""
    prefill_seconds_per_token: NotNegative

    @model_validator(mode="after")
    def _is_rectangular(self) -> Self:
        rows, columns = len(self.batch_sizes), len(self.lengths)
        if len(self.milliseconds) != rows or len(self.stock_off_milliseconds) != rows:
            raise ValueError(f"milliseconds and stock_off_milliseconds need one entry for each of the {rows} batch sizes")
        if any(len(line) != columns for line in self.milliseconds):
            raise ValueError(f"each line of milliseconds needs one entry for each of the {columns} lengths")
        for name, numbers in (("batch_sizes", self.batch_sizes), ("lengths", self.lengths)):
            if any(left >= right for left, right in pairwise(numbers)):
                raise ValueError(f"{name} must ascend, got {numbers}")
        if self.lengths[0] != 0:
            raise ValueError(f"lengths must begin with 0, got {self.lengths}")
        return self


class Model(Part):
    """A model as the hardware sees it; totals over all GPUs of the engine."""

    weight_bytes: Positive
    flops_per_token: Positive
    kv_bytes_per_token: NotNegative
    layers: Annotated[int, Field(ge=1, le=1000)]
    hidden_size: Annotated[int, Field(ge=1, le=1 << 20)]
    launch_seconds_per_layer: NotNegative
    """Host time to launch one layer's kernels in eager mode: a lower bound of a forward."""


class Roofline(Part):
    """Step times from hardware numbers: the larger of memory, compute and launch time, plus the host's work."""

    kind: Literal["roofline"]
    memory_bytes_per_s: Positive
    memory_share: Annotated[float, Field(gt=0.0, le=1.0)]
    """Achievable share of the memory bandwidth."""
    flops_per_s: Positive
    flops_share: Annotated[float, Field(gt=0.0, le=1.0)]
    tile_tokens: Annotated[int, Field(ge=1, le=4096)]
    """Tokens of one tile of a matrix multiplication: compute time rises by tiles."""
    tile_share: Share
    """How much of the rise is by whole tiles; the rest is proportional."""
    sharpness: Annotated[float, Field(ge=1.0, le=32.0)]
    """Exponent of the smooth maximum of memory and compute time; higher is a sharper knee."""
    tensor_parallel_size: Annotated[int, Field(ge=1, le=64)] = 1
    all_reduce_seconds: NotNegative = 0.0
    """Latency of one of the two all-reduces of a layer, with tensor parallelism."""
    all_reduce_bytes_per_s: Positive = 1e11
    target: Model
    draft: Model
    host_seconds: NotNegative
    """Scheduler and sampler, once per step."""
    host_seconds_per_row: NotNegative
    sampler_seconds_per_token: NotNegative
    """Logits and rejection sampling, per verified token."""
    proposer_seconds: NotNegative
    """Fixed work of the proposer in a step that drafts."""
    proposer_seconds_per_row: NotNegative


class Profile(Part):
    """One kind of engine."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]{0,63}$")]
    description: Annotated[str, Field(min_length=1, max_length=2000)]
    group: GroupKey
    limits: Limits
    drafter: Drafter
    step_cost: MeasuredTable | Roofline = Field(discriminator="kind")
    acceptance_classes: Annotated[tuple[AcceptanceClass, ...], Field(min_length=1, max_length=256)]
    step_noise: StepNoise
    steps: Literal["v1", "v0"] = "v1"
    """How an engine steps. v1: a step computes prompts beside decode rows, and verifies the drafts of the step before. v0, as vLLM
    0.8 and before: prompts have steps of their own, which come first, and a step verifies its own drafts."""
    sources: dict[str, Annotated[str, Field(min_length=1, max_length=2000)]]
    """Where the numbers come from, by dotted path; an entry covers all below it."""

    @model_validator(mode="after")
    def _parts_agree(self) -> Self:
        longest = self.drafter.arms[-1]
        for kind in self.acceptance_classes:
            if len(kind.survival) != longest:
                raise ValueError(f"acceptance class {kind.name!r} has {len(kind.survival)} positions, the longest arm is {longest}")
        total = sum(kind.share for kind in self.acceptance_classes)
        if abs(total - 1.0) > 1e-6:
            raise ValueError(f"shares of the acceptance classes must sum to 1, got {total:.6f}")
        if (self.group.max_num_speculative_tokens, self.group.max_num_seqs) != (longest, self.limits.max_num_seqs):
            raise ValueError("group must repeat the longest arm as max_num_speculative_tokens and the limits' max_num_seqs")
        if isinstance(self.step_cost, MeasuredTable) and self.step_cost.lengths[-1] < longest:
            raise ValueError(f"the table of step times ends at K={self.step_cost.lengths[-1]}, the longest arm is {longest}")
        unsourced = [path for path in self._numbers() if not any(path == at or path.startswith(f"{at}.") for at in self.sources)]
        if unsourced:
            raise ValueError(f"sources says nothing about {', '.join(unsourced[:5])}")
        return self

    def _numbers(self) -> list[str]:
        parts = {
            "limits": self.limits,
            "drafter": self.drafter,
            "step_cost": self.step_cost,
            "step_noise": self.step_noise,
        }
        return [f"{name}.{field}" for name, part in parts.items() for field in part.model_fields_set] + ["acceptance_classes"]

    @property
    def max_num_speculative_tokens(self) -> int:
        """The longest arm."""
        return self.drafter.arms[-1]

    def mean_survival(self) -> tuple[float, ...]:
        """Acceptance by position over the whole traffic, each class by its share: what a table is tuned for."""
        return tuple(
            sum(kind.share * kind.survival[position] for kind in self.acceptance_classes)
            for position in range(self.max_num_speculative_tokens)
        )

    def mechanics(self, wished: Mechanics) -> Mechanics:
        """What an engine of this profile runs at K=0: stock where that is wished, else the least that its drafter can do with."""
        return Mechanics.STOCK if wished is Mechanics.STOCK else self.drafter.off


class Curve(Part):
    """Mean acceptance length by K, from 1, as somebody measured it: generated tokens of a row and step. It says nothing of step
    times."""

    model: str
    file: str
    run: str
    lengths: Annotated[tuple[Annotated[float, Field(ge=1.0, le=33.0)], ...], Field(min_length=2, max_length=32)]

    def survival(self) -> tuple[float, ...]:
        """The probability that more than i drafts are accepted, as near to the curve's differences as one that never rises.

        Each K was a run of its own, so neighbours that would rise with the position share their mean; where a longer K gave
        less, nothing is accepted of what it adds.

        >>> curve = Curve(model="m", file="f", run="1", lengths=(1.8, 2.3, 2.9, 2.8))
        >>> [round(share, 3) for share in curve.survival()]
        [0.8, 0.55, 0.55, 0.0]
        """
        runs: list[tuple[float, int]] = []
        for later, earlier in zip(self.lengths, (1.0, *self.lengths), strict=False):
            total, count = later - earlier, 1
            while runs and runs[-1][0] / runs[-1][1] < total / count:
                before, more = runs.pop()
                total, count = total + before, count + more
            runs.append((total, count))
        return tuple(min(max(total / count, 0.0), 1.0) for total, count in runs for _ in range(count))


class Curves(Part):
    """Curves of one source, by name."""

    source: str
    licence: str
    measured: str
    curves: dict[str, Curve]


def acceptance_curves() -> Curves:
    """The curves that ship: InferenceX's."""
    return Curves.model_validate_json(CURVES_FILE.read_text(encoding="utf-8"))


def _with_curve(profile: Profile, name: str) -> Profile:
    """The profile with a curve's acceptance, and every K that both the curve and the step times know: of a table those that were
    measured or that the profile runs, since a forward that drafts a block has no times between. Raises ProfileError."""
    known = acceptance_curves()
    if name not in known.curves:
        raise ProfileError(f"profile {profile.name}{WITH}{name[:60]}: no such acceptance, allowed are {', '.join(known.curves)}")
    curve, cost = known.curves[name], profile.step_cost
    timed = {*cost.lengths, *profile.drafter.arms} if isinstance(cost, MeasuredTable) else range(len(curve.lengths) + 1)
    arms = tuple(sorted(k for k in timed if k <= len(curve.lengths)))
    told = f"{known.measured} {curve.model}: {known.source}, {curve.file}, run {curve.run}, {known.licence}."
    kind = AcceptanceClass(name="coding", share=1.0, survival=curve.survival()[: arms[-1]])
    return profile.model_copy(
        update={
            "name": f"{profile.name}.{name}"[:64],
            "description": f"{profile.description} Acceptance is another model's, {curve.model}.",
            "group": profile.group.model_copy(update={"max_num_speculative_tokens": arms[-1]}),
            "drafter": profile.drafter.model_copy(update={"arms": arms}),
            "acceptance_classes": (kind,),
            "sources": {**profile.sources, "acceptance_classes": told},
        }
    )


def read_profile(name_or_path: str | Path) -> Profile:
    """Read a profile that ships with Nightjar by its name, or any file by its path; behind a `+` with an acceptance curve's name.

    Raises ProfileError for an unknown name, a file that cannot be read and values out of bounds.
    """
    name = str(name_or_path)
    base, plus, curve = name.rpartition(WITH)
    if plus and not Path(name).exists():
        return _with_curve(read_profile(base), curve)
    folder = PROFILES_FOLDER / "published" if name in PUBLISHED_NAMES else PROFILES_FOLDER
    path = folder / f"{name}.json" if name in SHIPPED_NAMES else Path(name_or_path)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ProfileError(
            f"profile {str(name_or_path)!r}: {error.strerror}; name one of {', '.join(SHIPPED_NAMES)} or a file"
        ) from error
    try:
        return Profile.model_validate_json(text)
    except ValidationError as error:
        raise ProfileError(f"profile {path}: {describe_validation_error(error)}") from error
