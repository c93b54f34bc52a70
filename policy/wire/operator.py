"""The operator's settings: every one with its meaning, unit, default, range and reason.

They live in the policy app's `user_config` and in the HTTP API, never in Serve `args` (a change there replaces every
replica). Fails closed: an unknown or misspelt field, or a value out of range, refuses the whole set with one message;
the settings in force stay.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Annotated, Final, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from nightjar.policy.wire.mode import Mode
from nightjar.policy.wire.record import (
    MAX_NAMED,
    MAX_NUM_SPECULATIVE_TOKENS,
    NumSpeculativeTokens,
    describe_validation_error,
    web_address,
    without_credentials,
)
from nightjar.policy.wire.settings import OffloadRules, Table, TableRow
from nightjar.policy.wire.switch_cost import MAX_SWITCH_COST_ROWS, SwitchCostRow, check_rows

DraftOffload = Literal["never", "under_memory_pressure"]
PlannerName = Literal["off", "fixed", "schedule", "nightjar", "fleet"]
"""Of those in policy/planners/__init__.py, which has what each does."""
PLANNER_NAMES: Final[tuple[PlannerName, ...]] = get_args(PlannerName)
Objective = Literal["latency", "throughput"]
OBJECTIVES: Final[tuple[Objective, ...]] = get_args(Objective)
ScheduleRow = tuple[int, int, int]
"""First batch, last batch, K."""
MaxStepMs = Annotated[float, Field(gt=0.0, le=600_000.0)]
"""Milliseconds that an engine step may take with speculation."""
ApplicationName = Annotated[str, Field(min_length=1, max_length=256)]
LEAST_PERIODS: Final = 3
"""Periods within which a replica that lives has been heard: fewer without a report are no silence, and after so many everybody runs
what was decided."""


class SettingsError(ValueError):
    """Operator's settings that cannot be used. The message names the field, the value and what is allowed."""


class OperatorSettings(BaseModel):
    """What an operator may set while the fleet runs. All fields have defaults; none replaces a replica."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)

    mode: Mode = Field(
        default=Mode(kind="shadow"),
        description="auto runs the planner, shadow plans and touches nothing, off and pin=K override it. "
        "shadow is the default, so that installing Nightjar changes nothing until somebody says so.",
    )
    planner: PlannerName = Field(
        default="fleet",
        description="Who decides K in mode auto. fleet learns from all replicas of a group; nightjar is the paper's bandit, "
        "each engine by itself; fixed and schedule are static.",
    )
    num_speculative_tokens: NumSpeculativeTokens | None = Field(
        default=None,
        description="K of the planner fixed; None means each engine's own maximum.",
    )
    num_speculative_tokens_per_batch_size: tuple[ScheduleRow, ...] = Field(
        default=(),
        max_length=256,
        description="Table of the planner schedule in vLLM's form, rows [first_batch, last_batch, K], keyed on decode batch size.",
    )
    allowed_num_speculative_tokens: tuple[NumSpeculativeTokens, ...] | None = Field(
        default=None,
        max_length=MAX_NUM_SPECULATIVE_TOKENS + 1,
        description="The K that may run; 0 is always among them. None means 0, 1, 2, 3, 5, 8, ... up to the engine's maximum, "
        "and the maximum: fewer K are learned sooner.",
    )
    objective: Objective = Field(
        default="latency",
        description="What the planner fleet chooses K by where requests wait or prompts are computed beside decode rows: latency, "
        "the least time of all requests in the system; throughput, the most tokens per busy second. Where neither is so, both "
        "run the same K.",
    )
    objective_per_application: Mapping[ApplicationName, Objective] = Field(
        default={},
        max_length=MAX_NAMED,
        description="objective of single applications, by name, for example {batch: throughput}. Their replicas go on learning "
        "with their group and run their own plan of what it knows.",
    )
    max_step_ms: MaxStepMs | None = Field(
        default=None,
        description="Milliseconds that an engine step may take with speculation: K is only one whose predicted step, with its "
        "doubt and its prefill, stays below; off always may run. Of the planner fleet. A step is the time between two outputs of "
        "a request, so this bounds its p99; None plans for the objective alone.",
    )
    max_step_ms_per_application: Mapping[ApplicationName, MaxStepMs] = Field(
        default={},
        max_length=MAX_NAMED,
        description="max_step_ms of single applications, by name, for example {chat: 40}. Their replicas go on learning with their "
        "group and run its plan where it keeps their limit, elsewhere the best K that does. It cannot loosen max_step_ms.",
    )
    dwell_steps: Annotated[int, Field(ge=0, le=1000)] = Field(
        default=4,
        description="Engine steps that a K is held before it may rise (falling is free). Stops flapping when the batch "
        "crosses a bucket's edge on every step; each change also spoils two measured steps.",
    )
    exchange_period_s: Annotated[float, Field(ge=0.1, le=10.0)] = Field(
        default=0.5,
        description="Seconds between a replica's reports, at most a third of settings_max_age_s and of replica_timeout_s. One "
        "actor takes about 1,000 reports a second: 0.5 s serves 500 replicas.",
    )
    decision_period_s: Annotated[float, Field(ge=0.1, le=30.0)] = Field(
        default=1.0,
        description="Seconds between decisions of the policy.",
    )
    settings_max_age_s: Annotated[float, Field(ge=5.0, le=86_400.0)] = Field(
        default=300.0,
        description="Seconds that a replica without a policy keeps its last settings; after that it only runs K = 0.",
    )
    replica_timeout_s: Annotated[float, Field(ge=2.0, le=3600.0)] = Field(
        default=30.0,
        description="Seconds without a report after which a replica counts as gone. Longer than the longest engine step.",
    )
    calibration_clean_steps: Annotated[int, Field(ge=1, le=1000)] = Field(
        default=8,
        description="Clean engine steps that one measurement of a batch bucket at one K takes.",
    )
    evidence_half_life_steps: Annotated[float, Field(ge=50, le=1e7)] = Field(
        default=2000.0,
        description="Clean steps of a cell after which an old measurement counts half: how fast the fleet follows drift.",
    )
    switch_margin: Annotated[float, Field(ge=0.0, le=0.5)] = Field(
        default=0.02,
        description="Share by which another K's predicted goodput must exceed the present one's before the plan changes; of "
        "objective throughput, and where no request waits.",
    )

    switch_cost_table: Annotated[tuple[SwitchCostRow, ...], Field(max_length=MAX_SWITCH_COST_ROWS)] | None = Field(
        default=None,
        description="C_switch of the planner nightjar, rows [longest lag in tokens, decode batch size, seconds]: what bringing the "
        "drafter back costs. null: what restarts of the group took, and before the first was measured the two points that the "
        "paper prints for an RTX 4090. A table given here wins; [] makes it free.",
    )

    @field_validator("switch_cost_table")
    @classmethod
    def _switch_cost_is_a_table(cls, rows: tuple[SwitchCostRow, ...] | None) -> tuple[SwitchCostRow, ...] | None:
        check_rows(rows or ())
        return rows

    seed_from: Annotated[str, Field(max_length=1024)] = Field(
        default="",
        description="File that `nightjar export` wrote, or the address of one or of another policy "
        "(http://host:8000/nightjar/learned), so that a new cluster starts warm; from a policy that this one takes the place of, "
        "also with the modes and the freeze that were set by hand there. An absolute path is read where the policy actor runs. "
        "Read at start and when it changes; what was measured here wins over it. The first settings wait up to 10 s for it. "
        "One that cannot be read or used shows in status, is tried again every minute, and the fleet serves on without it. The "
        "address of a policy that nobody serves yet is no error, and one's own gives nothing.",
    )

    @field_validator("seed_from")
    @classmethod
    def _seed_from_is_a_place(cls, place: str) -> str:
        check_place(place)
        return place

    max_restart_share: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        default=0.2,
        description="Share of a group's replicas that may restart speculation by lease at the same time; one always may. All "
        "replicas see the same load fall, and each is slow while it catches up.",
    )
    max_restart_slowdown: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        default=0.04,
        description="Share of a group's capacity that restarts by lease may take at the same time. With catch_up_slowdown 0.5 "
        "each takes a third of its replica: an eighth of the replicas, at least one.",
    )
    max_reloads_per_node: Annotated[int, Field(ge=1, le=64)] = Field(
        default=1,
        description="Replicas of one node that may move draft weights back at the same time: they share the host's link.",
    )
    max_lease_ttl_s: Annotated[float, Field(ge=5.0, le=600.0)] = Field(
        default=60.0,
        description="Seconds that any lease lives at most, and that a new policy waits before it grants: leases of its "
        "predecessor may be in use until then.",
    )
    catch_up_slowdown: Annotated[float, Field(ge=0.01, le=4.0)] = Field(
        default=0.5,
        description="Share by which catching up may make one engine step longer: it bounds the tokens recomputed in a step. "
        "Higher restarts sooner and slows requests in flight more.",
    )
    draft_offload: DraftOffload = Field(
        default="never",
        description="Whether dormant draft weights may move to host memory when KV blocks run out, and the KV cache grow by "
        "what they held. never, because bringing them back takes seconds: a choice for engines that are short of memory for "
        "long. Engines obey that were started with it (draft_offload in their llm_configs entry), since they plan their blocks "
        "for it.",
    )
    offload_below_free_share: Annotated[float, Field(ge=0.0, le=0.9)] = Field(
        default=0.1,
        description="Share of free KV blocks below which, while requests wait, memory counts as short.",
    )
    offload_after_s: Annotated[float, Field(ge=0.0, le=3600.0)] = Field(
        default=10.0,
        description="Seconds that memory must have been short before weights move: a burst is over sooner than they are back.",
    )
    reload_above_free_share: Annotated[float, Field(ge=0.0, le=1.0)] = Field(
        default=0.3,
        description="Share of KV blocks, those lent not counted, that must be free for weights to come back: the pool shrinks "
        "first, and well above offload_below_free_share the two do not chase each other.",
    )

    @model_validator(mode="after")
    def _reports_come_before_anybody_misses_them(self) -> Self:
        for name in ("settings_max_age_s", "replica_timeout_s"):
            if getattr(self, name) < LEAST_PERIODS * self.exchange_period_s:
                raise ValueError(
                    f"{name} {getattr(self, name):g}, allowed are at least {LEAST_PERIODS} times exchange_period_s "
                    f"{self.exchange_period_s:g}: one lost report would count as silence"
                )
        return self

    @model_validator(mode="after")
    def _weights_come_back_above_where_they_leave(self) -> Self:
        if self.reload_above_free_share <= self.offload_below_free_share:
            raise ValueError(
                f"reload_above_free_share {self.reload_above_free_share} must be above offload_below_free_share "
                f"{self.offload_below_free_share}"
            )
        return self

    @model_validator(mode="after")
    def _schedule_is_a_table(self) -> Self:
        if self.planner == "schedule" and not self.num_speculative_tokens_per_batch_size:
            raise ValueError("planner schedule needs num_speculative_tokens_per_batch_size, for example [[1, 8, 5], [9, 32, 1]]")
        return self

    @field_validator("num_speculative_tokens_per_batch_size")
    @classmethod
    def _schedule_rows_ascend(cls, rows: tuple[ScheduleRow, ...]) -> tuple[ScheduleRow, ...]:
        if rows:
            _schedule_table(rows)
        return rows

    def __hash__(self) -> int:
        """Equal settings have the same; a mapping has none of its own."""
        return hash((self.mode, self.planner, self.allowed_num_speculative_tokens, self.objective, self.max_step_ms))

    @property
    def named_applications(self) -> tuple[str, ...]:
        """Applications that a setting of their own names, in their order."""
        return tuple(dict.fromkeys((*self.max_step_ms_per_application, *self.objective_per_application)))

    def with_objective(self, objective: Objective | None) -> Self:
        """The settings with another objective; themselves where it is theirs, or None."""
        return self if objective in {None, self.objective} else self.model_copy(update={"objective": objective})

    def schedule_table(self) -> Table:
        """`num_speculative_tokens_per_batch_size` as a plan. Raises ValueError for rows that do not ascend."""
        return _schedule_table(self.num_speculative_tokens_per_batch_size)

    def offload_rules(self) -> OffloadRules | None:
        """When weights may leave the accelerator and come back; None where they never may."""
        if self.draft_offload == "never":
            return None
        return OffloadRules(
            free_share_below=self.offload_below_free_share,
            pressure_s=self.offload_after_s,
            reload_free_share=self.reload_above_free_share,
        )

    def runnable_ks(self, max_num_speculative_tokens: int, graph_tiers: Sequence[int] = ()) -> tuple[int, ...]:
        """The K that may run in an engine whose maximum is `max_num_speculative_tokens`, ascending, 0 included.

        Where the engine captured graphs for some K alone, `graph_tiers`, these and no others.

        >>> OperatorSettings().runnable_ks(5), OperatorSettings(allowed_num_speculative_tokens=(2, 9)).runnable_ks(4)
        ((0, 1, 2, 3, 5), (0, 2))
        >>> OperatorSettings().runnable_ks(5, (0, 1, 4, 5))
        (0, 1, 4, 5)
        >>> OperatorSettings(allowed_num_speculative_tokens=(1, 2)).runnable_ks(4, (0, 1, 4))
        (0, 1)
        """
        if self.allowed_num_speculative_tokens is not None:
            wanted = set(self.allowed_num_speculative_tokens)
        else:
            wanted = set(graph_tiers) or {1, 2, 3, 5, 8, 13, 21, max_num_speculative_tokens}
        captured = set(graph_tiers) or wanted
        return tuple(sorted({k for k in wanted & captured if k <= max_num_speculative_tokens} | {0}))


def _schedule_table(rows: tuple[ScheduleRow, ...]) -> Table:
    """Rows in vLLM's form as a plan. Raises ValueError naming what is wrong of the first bad row."""
    try:
        return Table(
            rows=tuple(TableRow(first_batch_size=first, last_batch_size=last, num_speculative_tokens=k) for first, last, k in rows)
        )
    except ValidationError as error:
        raise ValueError(describe_validation_error(error, limit=1).partition(" (got ")[0]) from error


def check_place(place: str) -> None:
    """Raise ValueError unless `place` is empty, an absolute path, or an http(s) address. A password would show in every status.

    >>> check_place("/data/learned.json"), check_place("https://store.example.com/learned.json")
    (None, None)
    """
    allowed = "allowed are an absolute path, an http or https address without user or password, or nothing"
    if not place.isprintable():
        raise ValueError(f"characters that cannot be printed; {allowed}")
    if not place or ("://" not in place and place.startswith("/")):
        return
    address = web_address(place)
    if address is None or "@" in address.netloc:
        raise ValueError(f"no place of a file; {allowed}")


@dataclass(frozen=True, slots=True)
class SettingProblem:
    """What is wrong with one setting; `location` is its path, empty where several do not fit together."""

    location: tuple[str | int, ...]
    message: str

    def __str__(self) -> str:
        return f"{'.'.join(str(part) for part in self.location) or 'settings'}: {self.message}"


def parse_operator_settings(values: Mapping[str, object]) -> OperatorSettings:
    """Settings from a `user_config` or an HTTP body.

    Raises SettingsError with every problem on one line; a misspelt name comes with the nearest real one.
    """
    try:
        return OperatorSettings.model_validate(dict(values))
    except ValidationError as error:
        raise SettingsError("; ".join(str(problem) for problem in _problems(error))) from error


def setting_problems(values: Mapping[str, object]) -> tuple[SettingProblem, ...]:
    """Everything that `parse_operator_settings` would refuse, each with its place."""
    try:
        OperatorSettings.model_validate(dict(values))
    except ValidationError as error:
        return tuple(_problems(error))
    return ()


def _problems(error: ValidationError) -> Iterator[SettingProblem]:
    for detail in error.errors(include_url=False):
        location, value = detail["loc"], without_credentials(repr(detail["input"]))[:80]
        if detail["type"] == "extra_forbidden":
            near = get_close_matches(str(location[-1]), OperatorSettings.model_fields, n=1)
            hint = f"did you mean {near[0]}?" if near else f"allowed are {', '.join(sorted(OperatorSettings.model_fields))}"
            yield SettingProblem(location, f"no such setting (value {value}); {hint}")
        else:
            yield SettingProblem(location, f"{detail['msg'].removeprefix('Value error, ')} (value {value})")
