"""Which of vLLM's HTTP routes a replica answers: its door.

Serve's port is often the public one, and vLLM's server has routes for whoever runs the engine beside those for whoever asks it:
some generate without vLLM's API key, some pause the engine. So a replica answers the OpenAI routes and `/health`, what the operator
names beside them (`extra_routes`), and never a route that manages the engine. Every other path is vLLM's own 404. Fails
closed: a route that a newer vLLM adds is not answered until somebody names it, and naming one that manages is refused.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from fastapi import FastAPI

API_KEY: Final = "VLLM_API_KEY"
"""vLLM's variable for the key that it asks for, below `/v1`, `/v2`, `/inference` and `/cohere` alone."""

SERVED: Final = frozenset(
    {
        "/health",
        "/v1/models",
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/responses",
        "/v1/responses/{response_id}",
        "/v1/responses/{response_id}/cancel",
        "/v1/embeddings",
        "/v1/audio/transcriptions",
        "/v1/audio/translations",
        "/v1/realtime",
    }
)
"""Of vLLM 0.32: OpenAI's, and what load balancers ask."""

BY_NAME: Final = frozenset(
    {
        "/metrics",
        "/version",
        "/load",
        "/ping",
        "/tokenize",
        "/detokenize",
        "/tokenizer_info",
        "/docs",
        "/docs/oauth2-redirect",
        "/redoc",
        "/openapi.json",
        "/v1/messages",
        "/v1/messages/count_tokens",
        "/v1/messages/render",
        "/v1/chat/completions/batch",
        "/v1/chat/completions/render",
        "/v1/chat/completions/derender",
        "/v1/completions/render",
        "/v1/completions/derender",
        "/v1/responses/render",
        "/v1/systemone",
        "/v1/score",
        "/v1/rerank",
        "/v2/embed",
        "/v2/rerank",
        "/cohere/v2/chat",
        "/score",
        "/rerank",
        "/classify",
        "/pooling",
        "/generative_scoring",
        "/kv_event_sources",
        "/invocations",
        "/inference/v1/generate",
    }
)
"""Answered where they are named. vLLM's API key guards those below `/v1`, `/v2`, `/inference` and `/cohere` alone."""

MANAGEMENT: Final = frozenset(
    {
        "/abort_requests",
        "/adapters",
        "/adapters/{adapter_name}",
        "/inference/v1/abort_requests",
        "/collective_rpc",
        "/fault_tolerance/apply",
        "/fault_tolerance/status",
        "/finish_weight_update",
        "/get_world_size",
        "/init_weight_transfer_engine",
        "/is_paused",
        "/is_scaling_elastic_ep",
        "/is_sleeping",
        "/pause",
        "/release_kv_cache_memory",
        "/reset_encoder_cache",
        "/reset_mm_cache",
        "/reset_prefix_cache",
        "/resume",
        "/scale_elastic_ep",
        "/server_info",
        "/shutdown_weight_transfer_engine",
        "/sleep",
        "/start_draft_weight_update",
        "/start_profile",
        "/start_weight_update",
        "/stop_profile",
        "/update_weight_version",
        "/update_weights",
        "/v1/load_lora_adapter",
        "/v1/unload_lora_adapter",
        "/wake_up",
        "/weight_checker",
        "/weight_info",
    }
)
"""Never answered: they stop, change or profile one engine of many, and Serve would choose which."""


def route_problem(path: str) -> str:
    """Why a path cannot be one of `extra_routes`; empty where it can.

    >>> route_problem("/metrics"), route_problem("/sleep")
    ('', '/sleep manages an engine and is never answered from outside')
    >>> route_problem("metrics")
    "'metrics' is no path; a route begins with /, such as /metrics"
    """
    if not path.startswith("/") or not path.isprintable() or " " in path:
        return f"{path[:80]!r} is no path; a route begins with /, such as /metrics"
    if path.rstrip("/") in MANAGEMENT:
        return f"{path} manages an engine and is never answered from outside"
    return ""


def close_other_routes(app: FastAPI, extra_routes: Iterable[str]) -> tuple[str, ...]:
    """Take every route out of vLLM's application that is neither SERVED nor among `extra_routes`; their paths, for the log."""
    allowed = SERVED | {path for path in extra_routes if not route_problem(path)}
    closed = [route for route in app.router.routes if getattr(route, "path", "") not in allowed]
    app.router.routes[:] = [route for route in app.router.routes if route not in closed]
    return tuple(sorted({str(getattr(route, "path", route)) for route in closed}))


def absent_routes(app: FastAPI, extra_routes: Iterable[str]) -> tuple[str, ...]:
    """Those of `extra_routes` that the application does not have: misspelt, or not for this model's tasks."""
    return tuple(sorted(set(extra_routes) - {getattr(route, "path", "") for route in app.router.routes}))
