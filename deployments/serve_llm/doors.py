"""Which requests reach a model that ray.serve.llm serves: the key is asked for, and vLLM's other routes stay closed.

ray.serve.llm's ingress asks for no key. With direct streaming requests go past it into vLLM's own server, which asks for one
below some prefixes alone and answers routes that manage an engine (Ray 2.60, ingress.py and vllm_engine.py, build_asgi_app). So
the ingress gets the key that vLLM has, `VLLM_API_KEY`, and a server answers what a replica of ours answers (routes.py). Fails
closed: a route that was not named is a 404. An ingress or a server class of the user's own is left as it is.
"""

from __future__ import annotations

import functools
import inspect
import os
import secrets
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Annotated, Any, Final

from fastapi import Depends, HTTPException, Request
from ray.serve.llm.ingress import OpenAiIngress as TheirOpenAiIngress
from starlette.responses import JSONResponse
from starlette.routing import compile_path

from nightjar.deployments.routes import API_KEY, SERVED, route_problem

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.types import ASGIApp, Receive, Scope, Send

ENDPOINTS: Final = (
    "models",
    "model_data",
    "completions",
    "chat",
    "embeddings",
    "transcriptions",
    "score",
    "tokenize",
    "detokenize",
)
"""Methods of their ingress that answer a route; a test holds them against Ray's own table."""
ONE_MODEL: Final = "/v1/models/{model:path}"
"""Of ray.serve.llm, beside vLLM's."""


def ask_for_key(request: Request) -> None:
    """Raise 401 unless the caller presents `VLLM_API_KEY` as a bearer; without such a variable anybody may call, as in vLLM."""
    key = os.environ.get(API_KEY)
    scheme, _, presented = request.headers.get("Authorization", "").partition(" ")
    is_key = secrets.compare_digest(presented.encode(), os.fsencode(key or ""))
    if key and not (scheme.lower() == "bearer" and is_key):
        raise HTTPException(401, "a key is needed: Authorization: Bearer KEY", {"WWW-Authenticate": "Bearer"})


def _asking(endpoint: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """An endpoint whose route asks for the key before it looks at anything else of a request."""

    @functools.wraps(endpoint)
    async def asking(*args: Any, key: None = None, **kwargs: Any) -> Any:
        del key  # FastAPI has asked
        return await endpoint(*args, **kwargs)

    signature = inspect.signature(endpoint)
    key = inspect.Parameter("key", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[None, Depends(ask_for_key)])
    asking.__signature__ = signature.replace(parameters=[*signature.parameters.values(), key])  # type: ignore[attr-defined]
    return asking


class OpenAiIngress(TheirOpenAiIngress):
    """Theirs, asking for the key. Serve names a deployment by its class, so this one has the name of theirs."""


for _name in ENDPOINTS:
    if hasattr(TheirOpenAiIngress, _name):
        setattr(OpenAiIngress, _name, _asking(getattr(TheirOpenAiIngress, _name)))


class NamedRoutes:
    """ASGI middleware: a path that is none of `allowed` is a 404, as if the application had no such route."""

    def __init__(self, app: ASGIApp, *, allowed: Iterable[str]) -> None:
        self._app = app
        self._allowed = [compile_path(path)[0] for path in sorted(allowed)]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        path = str(scope.get("path", "")).removeprefix(str(scope.get("root_path", "")))
        if scope["type"] not in ("http", "websocket") or any(pattern.match(path) for pattern in self._allowed):
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await JSONResponse({"detail": "Not Found"}, 404)(scope, receive, send)
        else:
            await send({"type": "websocket.close"})


def answer_named_routes(app: FastAPI, extra_routes: Iterable[str]) -> None:
    """Let an application of vLLM's answer the routes of our own replicas and `extra_routes` alone."""
    app.middleware_stack = None  # vLLM has built it; Starlette builds it anew, with what is added here outermost
    app.add_middleware(NamedRoutes, allowed={*SERVED, ONE_MODEL, *(path for path in extra_routes if not route_problem(path))})
