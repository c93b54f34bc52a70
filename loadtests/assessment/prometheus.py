"""Asks a Prometheus for the raw samples of vLLM's series, an hour at a time. Reads only, and sends nothing but the queries.

A range selector in an instant query gives samples at the times at which they were scraped, so that gaps and restarts show.
Fails as `PrometheusError`, whose message is one line for whoever asked: nothing answers, a token is missing, the selector is none,
or something else than a Prometheus answers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import httpx
from pydantic import BaseModel, SecretStr, ValidationError

from nightjar.cluster.api.http_client import LOOPBACK_HOSTS
from nightjar.loadtests.assessment.scrapes import PREFIXES, Collector, EngineScrapes, Metric
from nightjar.policy.wire.record import web_address

CHUNK_S: Final = 3600
"""Of one question: ten engines scraped every 15 s answer with about a megabyte."""
TIMEOUT_S: Final = 60.0


class PrometheusError(Exception):
    """A question that brought no answer to use. The message is one line."""


class _Series(BaseModel):
    metric: dict[str, str]
    values: list[tuple[float, float]]


class _Data(BaseModel):
    result: list[_Series]


class _Answer(BaseModel):
    data: _Data
    warnings: list[str] = []


@dataclass(frozen=True, slots=True)
class Found:
    """What was kept of a time: engines, and what Prometheus itself warned of, such as a store that did not answer."""

    engines: list[EngineScrapes]
    warnings: tuple[str, ...] = ()


def read_scrapes(
    client: httpx.Client, selector: str, from_s: float, to_s: float, chunk_read: Callable[[float], None] = lambda _: None
) -> Found:
    """All samples from `from_s` to `to_s` (seconds since the epoch) of series that match `selector` (`a="b",c=~"d.*"`, or empty).

    `chunk_read` hears of each part of the time that was read, as a share of the whole. Raises PrometheusError.
    """
    query = _query(selector)
    collector = Collector()
    warnings: dict[str, None] = {}
    for chunk_from_s, chunk_to_s in _chunks(from_s, to_s):
        answer = _ask(client, f"{query}[{math.ceil(chunk_to_s - chunk_from_s)}s]", chunk_to_s)
        for series in answer.data.result:
            collector.add(series.metric, series.values)
        warnings |= dict.fromkeys(answer.warnings)
        chunk_read((chunk_to_s - chunk_from_s) / (to_s - from_s))
    return Found(collector.engines(), tuple(warnings))


def read_recording(file: Path) -> tuple[Found, float, float]:
    """What a recorded answer of Prometheus holds, with the times of its first and last sample. Raises PrometheusError, OSError."""
    try:
        answer = _Answer.model_validate_json(file.read_bytes())
    except ValidationError as error:
        raise PrometheusError(f"{file}: no answer of Prometheus' /api/v1/query") from error
    collector = Collector()
    for series in answer.data.result:
        collector.add(series.metric, series.values)
    times_s = [at_s for series in answer.data.result for at_s, _ in series.values]
    if not times_s:
        raise PrometheusError(f"{file}: holds no sample")
    return Found(collector.engines(), tuple(answer.warnings)), min(times_s), max(times_s)


def open_prometheus(url: str, token: SecretStr | None = None, transport: httpx.BaseTransport | None = None) -> httpx.Client:
    """A client of the Prometheus at `url`, its path prefix included. Raises PrometheusError for what is no address."""
    address = web_address(url)
    if address is None:
        raise PrometheusError(f"--prometheus {url!r} is no address such as http://prometheus:9090")
    return httpx.Client(
        base_url=url.rstrip("/"),
        headers={"Authorization": f"Bearer {token.get_secret_value()}"} if token else {},
        timeout=TIMEOUT_S,
        transport=transport,
        trust_env=address.hostname not in LOOPBACK_HOSTS,
    )


def _query(selector: str) -> str:
    names = f"(?:{'|'.join(PREFIXES)})(?:{'|'.join(Metric)})"
    return "{" + ",".join(part for part in (f'__name__=~"{names}"', selector.strip().strip("{}").strip(" ,")) if part) + "}"


def _chunks(from_s: float, to_s: float) -> Iterator[tuple[float, float]]:
    count = max(math.ceil((to_s - from_s) / CHUNK_S), 1)
    edges = [from_s + (to_s - from_s) * number / count for number in range(count + 1)]
    yield from pairwise(edges)


def _ask(client: httpx.Client, query: str, at_s: float) -> _Answer:
    url = str(client.base_url).rstrip("/")
    try:
        response = client.get("api/v1/query", params={"query": query, "time": f"{at_s:.3f}"})
    except httpx.TimeoutException as error:
        raise PrometheusError(f"{url} did not answer within {TIMEOUT_S:g} s") from error
    except httpx.HTTPError as error:
        raise PrometheusError(f"nothing answers at {url} ({error}); is --prometheus right?") from error
    if not response.is_success:
        raise PrometheusError(_refusal(url, response))
    try:
        return _Answer.model_validate_json(response.content)
    except ValidationError as error:
        raise PrometheusError(f"{url}: the answer is none of Prometheus' HTTP API; is this a Prometheus?") from error


def _refusal(url: str, response: httpx.Response) -> str:
    if response.status_code in {401, 403}:
        return f"{url} answered {response.status_code}: it wants a bearer token (--token-file), or refuses this one"
    try:
        answer: Mapping[str, Any] = response.json()
        return f"{url} refused the query: {' '.join(str(answer['error']).split())[:300]}; is --selector right?"
    except (ValueError, KeyError, TypeError):
        return f"{url} answered {response.status_code} to /api/v1/query; is this a Prometheus?"
