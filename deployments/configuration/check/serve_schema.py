"""Ray Serve's config file as records, so that it is checked without Ray; a test holds the field names against Ray's own schema.

Serve drops misspelt fields in silence; here they are refused. Values are coerced as Serve coerces them. What the records do not
look into (logging, routers, gangs) is Serve's to check.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    StrictInt,
    model_validator,
)


def _number_or_auto(value: object) -> object:
    if value is None or value == "auto" or (isinstance(value, int) and not isinstance(value, bool) and value > 0):
        return value
    raise ValueError('must be a whole number above 0, or "auto"')


def _unbounded_or_positive(value: int) -> int:
    if value == -1 or value > 0:
        return value
    raise ValueError("must be above 0, or -1 for no limit")


def _is_import_path(value: str) -> str:
    module, separator, name = value.partition(":") if ":" in value else value.rpartition(".")
    if not module or not separator or not name or ":" in name:
        raise ValueError("must name a builder as module:attribute, for example nightjar.deployments.app:build")
    return value


class ServeRecord(BaseModel):
    """Refuses fields that Serve would drop."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class HTTPOptions(ServeRecord):
    """Where the HTTP proxies listen."""

    host: str | None = None
    port: Annotated[int, Field(ge=0, le=65535)] | None = None
    root_path: str | None = None
    request_timeout_s: PositiveFloat | None = None
    keep_alive_timeout_s: NonNegativeInt | None = None
    ssl_keyfile: str | None = None
    ssl_certfile: str | None = None
    ssl_keyfile_password: str | None = None
    ssl_ca_certs: str | None = None

    @model_validator(mode="after")
    def _key_and_certificate_go_together(self) -> Self:
        if (self.ssl_keyfile is None) != (self.ssl_certfile is None):
            raise ValueError("ssl_keyfile and ssl_certfile go together; set both or none")
        return self


class GRPCOptions(ServeRecord):
    """Where the gRPC proxies listen."""

    port: Annotated[int, Field(ge=0, le=65535)] | None = None
    grpc_servicer_functions: list[str] | None = None
    request_timeout_s: PositiveFloat | None = None
    enable_reflection: bool | None = None


class AutoscalingConfig(ServeRecord):
    """How many replicas, and when."""

    min_replicas: NonNegativeInt = 1
    initial_replicas: NonNegativeInt | None = None
    max_replicas: PositiveInt = 1
    target_ongoing_requests: PositiveFloat | None = 2.0
    metrics_interval_s: PositiveFloat | None = None
    look_back_period_s: PositiveFloat | None = None
    smoothing_factor: PositiveFloat | None = None
    upscale_smoothing_factor: PositiveFloat | None = None
    downscale_smoothing_factor: PositiveFloat | None = None
    upscaling_factor: PositiveFloat | None = None
    downscaling_factor: PositiveFloat | None = None
    downscale_delay_s: NonNegativeFloat | None = None
    downscale_to_zero_delay_s: NonNegativeFloat | None = None
    upscale_delay_s: NonNegativeFloat | None = None
    aggregation_function: str | None = None
    policy: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _bounds_are_in_order(self) -> Self:
        if self.min_replicas > self.max_replicas:
            raise ValueError(
                f"min_replicas {self.min_replicas} is above max_replicas {self.max_replicas} (default 1); "
                "raise max_replicas or lower min_replicas"
            )
        if self.initial_replicas is not None and not self.min_replicas <= self.initial_replicas <= self.max_replicas:
            raise ValueError(
                f"initial_replicas {self.initial_replicas} must be from min_replicas {self.min_replicas} to "
                f"max_replicas {self.max_replicas}; change one of the three"
            )
        return self


class RayActorOptions(ServeRecord):
    """What a replica's actor takes of its node."""

    runtime_env: dict[str, Any] | None = None
    num_cpus: NonNegativeFloat | None = None
    num_gpus: NonNegativeFloat | None = None
    memory: NonNegativeFloat | None = None
    resources: dict[str, Any] | None = None
    accelerator_type: str | None = None
    label_selector: dict[str, str] | None = None
    fallback_strategy: list[dict[str, Any]] | None = None


class DeploymentOptions(ServeRecord):
    """What `deployment_config` of an `llm_configs` entry takes."""

    name: str | None = None
    num_replicas: Annotated[int | str | None, BeforeValidator(_number_or_auto)] = None
    max_ongoing_requests: PositiveInt | None = None
    max_queued_requests: Annotated[StrictInt, AfterValidator(_unbounded_or_positive)] | None = None
    backpressure_config: dict[str, Any] | None = None
    user_config: dict[str, Any] | None = None
    autoscaling_config: AutoscalingConfig | None = None
    graceful_shutdown_wait_loop_s: NonNegativeFloat | None = None
    graceful_shutdown_timeout_s: NonNegativeFloat | None = None
    health_check_period_s: PositiveFloat | None = None
    health_check_timeout_s: PositiveFloat | None = None
    ray_actor_options: RayActorOptions | None = None
    placement_group_bundles: list[dict[str, float]] | None = None
    placement_group_strategy: Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"] | None = None
    placement_group_bundle_label_selector: list[dict[str, str]] | None = None
    max_replicas_per_node: PositiveInt | None = None
    logging_config: dict[str, Any] | None = None
    request_router_config: dict[str, Any] | None = None
    gang_scheduling_config: dict[str, Any] | None = None
    deployment_actors: list[dict[str, Any]] | None = None
    rolling_update_percentage: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    max_surge_percent: Annotated[int, Field(ge=0, le=100)] | None = None

    @model_validator(mode="after")
    def _one_of_fixed_and_autoscaled(self) -> Self:
        if isinstance(self.num_replicas, int) and self.autoscaling_config is not None:
            raise ValueError(f"num_replicas {self.num_replicas} and autoscaling_config exclude each other; take one of them out")
        return self


class DeploymentOverride(DeploymentOptions):
    """An entry of an application's `deployments`."""

    name: str


class ServeApplication(ServeRecord):
    """One application."""

    name: Annotated[str, Field(min_length=1)] = "default"
    route_prefix: Annotated[str, Field(pattern="^/")] | None = "/"
    import_path: Annotated[str, AfterValidator(_is_import_path)]
    runtime_env: dict[str, Any] | None = None
    deployments: list[DeploymentOverride] = Field(default_factory=list)
    autoscaling_policy: dict[str, Any] | None = None
    args: dict[str, Any] = Field(default_factory=dict)
    logging_config: dict[str, Any] | None = None
    external_scaler_enabled: bool = False


class ServeConfig(ServeRecord):
    """The file."""

    proxy_location: Literal["Disabled", "HeadOnly", "EveryNode"] | None = None
    http_options: HTTPOptions | None = None
    grpc_options: GRPCOptions | None = None
    controller_options: dict[str, Any] | None = None
    logging_config: dict[str, Any] | None = None
    tracing_config: dict[str, Any] | None = None
    applications: Annotated[list[ServeApplication], Field(min_length=1)]
    target_capacity: Annotated[float, Field(ge=0.0, le=100.0)] | None = None
