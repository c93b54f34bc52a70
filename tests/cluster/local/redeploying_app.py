"""A Serve application without a model: answers, and deploys the Serve config that is posted to it, as `serve deploy` would."""

import threading
from collections.abc import Mapping

from ray import serve
from ray.serve.context import _get_global_client
from ray.serve.schema import ServeDeploySchema
from starlette.requests import Request


class Redeployer:
    """Its one route."""

    async def __call__(self, request: Request) -> str:
        if request.method == "POST":
            config = ServeDeploySchema.model_validate(await request.json())
            await _get_global_client()._controller.apply_config.remote(config)
        return "done"


class NeverReady:
    """A replica that stays in its constructor, as an engine that loads a large model does."""

    def __init__(self) -> None:
        threading.Event().wait()


def build(args: Mapping[str, object]) -> serve.Application:
    return serve.deployment(Redeployer, ray_actor_options={"num_cpus": 0}).bind()


def build_what_fails(args: Mapping[str, object]) -> serve.Application:
    raise RuntimeError("this application cannot be built")


def build_what_never_gets_ready(args: Mapping[str, object]) -> serve.Application:
    return serve.deployment(NeverReady, ray_actor_options={"num_cpus": 0}).bind()
