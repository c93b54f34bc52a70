"""A Serve application without an engine that streams for as long as asked, each piece with the node that it comes from."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator

import ray
from ray import serve
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse

PIECE_S = 0.2


class Streamer:
    """One replica; `?pieces=N` streams so many, without it the node answers at once."""

    async def __call__(self, request: Request) -> Response:
        node = ray.get_runtime_context().get_node_id()
        pieces = int(request.query_params.get("pieces", 0))
        return StreamingResponse(_stream(node, pieces)) if pieces else PlainTextResponse(node)


async def _stream(node: str, pieces: int) -> AsyncIterator[str]:
    for _ in range(pieces):
        yield f"{node}\n"
        await asyncio.sleep(PIECE_S)


def main(address: str, port: str) -> None:
    """Deploy it on the cluster at an address, its proxy on the head, and leave it running."""
    ray.init(address=address, namespace="serve", log_to_driver=False)
    serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": int(port)})
    streamer = serve.deployment(
        Streamer, ray_actor_options={"num_cpus": 0, "resources": {"worker": 1}}, graceful_shutdown_timeout_s=30.0
    )
    serve.run(streamer.bind(), name="streams", route_prefix="/")


if __name__ == "__main__":
    main(*sys.argv[1:])
