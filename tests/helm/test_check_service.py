"""The script of `helm test`, run as the pod runs it: it waits, says what is missing, and ends."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.helm.rendering import CHART, needs_helm, release

ANSWERS = {"/-/healthz": b"success", "/nightjar/health": b"{}", "/m/v1/models": b'{"data": [{"id": "tiny"}]}'}


@contextmanager
def serving(answers: dict[str, bytes], api_key: str = "") -> Iterator[str]:
    """A server; with a key it guards `/v1` as vLLM does, and nothing else may see it."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

        def do_GET(self) -> None:
            wanted = f"Bearer {api_key}" if api_key and "/v1/" in self.path else None
            if self.headers.get("Authorization") != wanted:
                self.send_response(401)
            else:
                self.send_response(200 if self.path in answers else 404)
            self.end_headers()
            self.wfile.write(answers.get(self.path, b""))

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def check(url: str, script: str, *arguments: str, api_key: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", script, f"--service={url}", *arguments]
    environment = {**os.environ, "OPENAI_API_KEY": api_key}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30, check=False)


@pytest.mark.parametrize(
    ("missing", "told"),
    [("", "serves"), ("/nightjar/health", "/nightjar/health: HTTP Error 404"), ("/m/v1/models", "/m/v1/models: HTTP Error 404")],
)
def test_what_does_not_answer_is_named(missing: str, told: str) -> None:
    script = (CHART / "files/check_service.py").read_text()
    with serving({path: body for path, body in ANSWERS.items() if path != missing}) as url:
        done = check(url, script, "--model=/m=tiny", "--answers=/nightjar/health", "--timeout-s=0.01")
    assert done.returncode == (1 if missing else 0)
    assert told in done.stdout


@pytest.mark.parametrize("body", [b'{"data": [{"id": "other"}]}', b"not JSON", b"[]"])
def test_a_model_that_is_not_listed_is_named(body: bytes) -> None:
    script = (CHART / "files/check_service.py").read_text()
    with serving(ANSWERS | {"/m/v1/models": body}) as url:
        done = check(url, script, "--model=/m=tiny", "--timeout-s=0.01")
    assert done.returncode == 1
    assert "/m/v1/models does not list tiny" in done.stdout


@pytest.mark.parametrize(
    ("key", "told"),
    [("sesame", "serves"), ("sesame\n", "serves"), ("", "the key in OPENAI_API_KEY is missing"), ("x", "is wrong: see")],
)
def test_a_server_that_asks_for_a_key_is_shown_it(key: str, told: str) -> None:
    script = (CHART / "files/check_service.py").read_text()
    with serving(ANSWERS, api_key="sesame") as url:
        done = check(url, script, "--model=/m=tiny", "--answers=/nightjar/health", "--timeout-s=0.01", api_key=key)
    assert told in done.stdout
    assert done.returncode == (0 if told == "serves" else 1)


@needs_helm
def test_the_test_pod_runs_that_script_with_arguments_that_it_takes() -> None:
    values = {
        "models": [{"name": "m", "modelId": "tiny", "modelSource": "org/tiny", "routePrefix": "/m"}],
        "helmTest": {"timeoutS": 1},
    }
    pod = release(values=values).one("Pod")
    assert pod["metadata"]["annotations"]["helm.sh/hook"] == "test"
    (container,) = pod["spec"]["containers"]
    script, *arguments = container["args"]
    assert container["command"] == ["python", "-c"]
    with serving(ANSWERS) as url:
        done = check(url, script, *(argument for argument in arguments if not argument.startswith("--service=")))
    assert done.returncode == 0, done.stdout + done.stderr


def test_with_the_incremental_upgrade_the_gateway_is_asked_whose_name_the_chart_cannot_know() -> None:
    rendered = release(CHART / "examples/incremental-upgrade.yaml", values={"loadTest": {"enabled": True}})
    (test,) = (pod for pod in rendered.all("Pod") if pod["metadata"]["name"].endswith("-test"))
    assert "--service=http://nightjar-gateway-istio" in test["spec"]["containers"][0]["args"]
    hosts = {
        argument
        for job in rendered.all("Job")
        for argument in job["spec"]["template"]["spec"]["containers"][0]["args"]
        if argument.startswith("--host=")
    }
    assert hosts == {"--host=http://nightjar-gateway-istio"}
