"""A Ray cluster of our own on this machine for the applications of one Serve file: the process that `session` starts.

It touches no other cluster: RAY_ADDRESS is ignored, ports are free ones, files lie in a temp folder of its own (a short
path, for Ray's sockets may have 107 bytes) and so does its authentication token, unless the user brought one.
Engines share the machine's cores, so Ray's daemons are kept quiet: no dashboard, no metrics pipeline, no usage reports, no
workers started ahead of need, a Serve control loop of 0.5 s for 0.1 s. Measured idle on 2 cores: 8 % of one core for Ray, Serve
and an empty application, 18 % with two idle replicas and the policy. A variable that the user has set wins, so
RAY_enable_metrics_collection=1 brings Ray's and vLLM's Prometheus metrics back.

Where the kernel shares the processor among login sessions first (sched_autogroup_enabled), niceness holds only within a session,
and engines that are busy on every core leave a command in another terminal a tenth of one core. So the session as a whole is made
nicer once it serves (SESSION_NICENESS; not before, for Ray gives its node 15 s to start). `make status-times`, two replicas under
full load on two cores: `nightjar status` takes 0.8 s (1.0 at worst of 6), and 2.5 s (8.7) where the session is not nice.

It runs until its stdin closes. Ray's daemons are started with the parent-death signal and end even if this process is killed.
Fails with the file's, Ray's or Serve's words on stderr and exit code 1; the temp folder with the logs is then kept and named.
Where Ray's node was too slow to start, the exit code is START_AGAIN.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import re
import secrets
import select
import shutil
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from nightjar.cluster.api.access import TOKEN_FILE_VARIABLE, TOKEN_VARIABLE, TokenError, configured_token
from nightjar.cluster.api.http_client import DEFAULT_URL
from nightjar.cluster.local.ports import PortError, choose_port, reachable_url
from nightjar.cluster.local.progress import Progress
from nightjar.cluster.local.session import START_AGAIN, STOPPED_BEFORE_SERVING
from nightjar.cluster.serve_config import POLICY_IMPORT_PATH, ServeFile, ServeFileError, load_serve_file

OBJECT_STORE_BYTES: Final = 128 * 1024 * 1024
DEPLOY_POLL_PERIOD_S: Final = 0.5
WATCH_PERIOD_S: Final = 5.0
HEARTBEAT_PERIOD_S: Final = 1.0
NODE_TIMED_OUT: Final = "The current node timed out during startup"
"""Ray's words (`ray._private.node.Node`, Ray 2.60). Its raylet ends where the node's agents are not up after 15 s, as on a busy
machine. No setting changes that (ray-project/ray, issue 65983)."""
SESSION_NICENESS: Final = 5
"""Of the session among others: a third of the weight of one that is not nice. A command starts within a second, and engines go on
beside another user's busy processes; with the 15 of Ray's workers they would have a thirtieth."""
NICENESS_VARIABLE: Final = "RAY_worker_niceness"
AUTOGROUP: Final = Path("/proc/self/autogroup")

COLOURS: Final = re.compile(r"\x1b\[[0-9;]*m")
MAX_LINE_LENGTH: Final = 200
WAITS_FOR_ROOM: Final = re.compile(
    r"has (\d+) replicas that have taken more than (\S+) to be scheduled.*each replica: (.*), total resources available: (.*)\. Use"
)
LOADS: Final = re.compile(r"has (\d+) replicas that have taken more than (\S+) to initialize\.")
SAYS_NOTHING: Final = ("For further information visit", "During handling of the above exception")
"""Begin lines that a message may end with and that have no point of their own."""

QUIET_ENVIRONMENT: Final = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_enable_metrics_collection": "0",
    "RAY_enable_worker_prestart": "0",
    "RAY_prestart_worker_first_driver": "0",
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.5",
    "RAY_SERVE_METRICS_EXPORT_INTERVAL_MS": "10000",
}


class ClusterError(Exception):
    """The cluster or an application did not start, or stopped on its own. The message is for the operator."""


class NodeTooSlowError(ClusterError):
    """Ray's node was not up in the time that Ray gives it. Another start may do."""


class LocalCluster:
    """Starts Ray, Serve and the applications, and stops them."""

    def __init__(self, serve_file: ServeFile, port: int, folder: Path, progress: Progress, stop: threading.Event) -> None:
        self._serve_file = serve_file
        self._port = port
        self._folder = folder
        self._progress = progress
        self._stop = stop

    def serve(self, on_ready: Callable[[], None]) -> bool:
        """Blocks until `stop` is set; then everything is stopped. Whether it ever served. Raises ClusterError."""
        try:
            client = self._start()
            ready = client is not None and self._wait_until_running(client)
            if ready:
                self._progress.wait_for("")
                on_ready()
                self._watch(client)
            return ready
        except ClusterError:
            raise
        except Exception as error:
            message = f"Ray: {type(error).__name__}: {error}"
            if NODE_TIMED_OUT in message:
                raise NodeTooSlowError(f"{message}\nRay gives a node's agents 15 s to start; is this machine busy?") from error
            raise ClusterError(message) from error
        finally:
            self._shut_down()

    def _start(self) -> Any:
        """Serve's client with all applications submitted, None where `stop` was set on the way."""
        import ray
        from ray.serve._private.api import serve_start
        from ray.serve.schema import ServeDeploySchema

        for name in ("ray", "ray.serve"):
            logging.getLogger(name).setLevel(logging.ERROR)
        self._progress.wait_for("starting a Ray cluster of its own")
        ray.init(
            address="local",
            namespace="serve",
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _temp_dir=str(self._folder),
        )
        if self._stop.is_set():
            return None
        self._progress.wait_for("starting Ray Serve")
        http_options = {**(self._serve_file.values.get("http_options") or {}), "port": self._port}
        config = ServeDeploySchema.model_validate({**self._serve_file.values, "http_options": http_options})
        client = serve_start(
            http_options=config.http_options.model_dump(),
            proxy_location=config.proxy_location,
            global_logging_config=config.logging_config,
            controller_options=config.controller_options,
        )
        if not self._stop.is_set():
            client.deploy_apps(config)
        return client

    def _wait_until_running(self, client: Any) -> bool:
        """Whether all applications run (False: stopped before). Raises ClusterError where one failed for good."""
        wanted = {application.name for application in self._serve_file.applications}
        while not self._stop.wait(DEPLOY_POLL_PERIOD_S):
            applications = [status for status in client.list_serve_statuses() if status.name in wanted]
            failures = [status for status in applications if status.app_status.status.value == "DEPLOY_FAILED"]
            if failures:
                raise ClusterError("\n".join(describe_failure(status) for status in failures))
            pending = [status for status in applications if status.app_status.status.value != "RUNNING"]
            if len(applications) == len(wanted) and not pending:
                client.wait_for_proxies_serving(wait_for_applications_running=True)
                return True
            self._progress.wait_for("; ".join(describe_pending(status) for status in pending) or "waiting for Ray Serve")
        return False

    def _watch(self, client: Any) -> None:
        """Say when an application's state changes. Raises ClusterError where Serve itself is gone."""
        import ray

        known: dict[str, str] = {}
        while not self._stop.wait(WATCH_PERIOD_S):
            try:
                applications = client.list_serve_statuses()
            except ray.exceptions.RayError as error:
                raise ClusterError(f"Ray Serve does not answer any more: {error}") from error
            for status in applications:
                state = status.app_status.status.value
                if state != known.get(status.name, "RUNNING"):
                    self._progress.say(describe_pending(status))
                known[status.name] = state

    def _shut_down(self) -> None:
        import ray
        from ray import serve

        self._progress.wait_for("stopping")
        if ray.is_initialized():
            with contextlib.redirect_stdout(io.StringIO()):  # Ray prints that the controller, told to end, has ended
                serve.shutdown()
                ray.shutdown()
        self._progress.wait_for("")


def describe_pending(status: Any) -> str:
    """One line of Serve's `StatusOverview`: `smollm2 DEPLOYING (LLM UPDATING: ...)`. Names the deployments that are not healthy."""
    deployments = [
        f"{deployment.name} {deployment.status.value}" + (f": {summary}" if (summary := summarize(deployment.message)) else "")
        for deployment in status.deployment_statuses
        if deployment.status.value != "HEALTHY"
    ]
    return f"{status.name} {status.app_status.status.value}" + (f" ({'; '.join(deployments)})" if deployments else "")


def describe_failure(status: Any) -> str:
    """Everything that Serve knows of an application that failed, as one block."""
    lines = [f"application {status.name} failed to deploy", *_text_lines(status.app_status.message)]
    for deployment in status.deployment_statuses:
        if deployment.message and deployment.status.value != "HEALTHY":
            lines.append(f"deployment {deployment.name} ({deployment.status.value}):")
            lines.extend(_text_lines(deployment.message))
    return "\n  ".join(lines)


def summarize(message: str) -> str:
    """The first line of a message, and the last, where a traceback has its point. What Serve says of a slow start, in short."""
    if waits := WAITS_FOR_ROOM.search(message):
        count, waited, needed, free = waits.groups()
        return f"{count} not placed after {waited}: each replica needs {needed}, available are {free}"[:MAX_LINE_LENGTH]
    if loads := LOADS.search(message):
        return f"{loads[1]} still loading after {loads[2]}"
    lines = [line for line in _text_lines(message) if not line.strip().startswith(SAYS_NOTHING)]
    if not lines:
        return ""
    ends = [lines[0]] if len(lines) == 1 else [lines[0], lines[-1].strip()]
    return " ... ".join(line[:MAX_LINE_LENGTH] for line in ends)


def _text_lines(message: str) -> list[str]:
    """The lines of a message without colours and without empty ones."""
    return [line.rstrip() for line in COLOURS.sub("", message).splitlines() if line.strip()]


def prepare_environment(folder: Path) -> None:
    """Set what Ray's processes inherit. What the user set stays; Ray turns its token authentication on by itself."""
    os.environ.pop("RAY_ADDRESS", None)
    for name, value in QUIET_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if not {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys():
        token_file = folder / "auth_token"
        token_file.touch(mode=0o600)
        token_file.write_text(secrets.token_hex(32), encoding="ascii")
        os.environ["RAY_AUTH_TOKEN_PATH"] = str(token_file)


def make_session_nicer(autogroup: Path = AUTOGROUP) -> bool:
    """Let other sessions' processes go first, as Ray's workers do within this one; whether that was done.

    Not where the user has set the workers' niceness, where this process shares its session with a terminal, or where the kernel has
    no autogroups.
    """
    if NICENESS_VARIABLE in os.environ or os.getsid(0) != os.getpid():
        return False
    try:
        autogroup.write_text(str(SESSION_NICENESS), encoding="ascii")
    except OSError:
        return False
    return True


def announce(serve_file: ServeFile, url: str, folder: Path, as_json: bool, instead_of: int | None = None) -> None:
    """Say on stdout that it serves, and where; the file's port where that was in use; and how other commands find it."""
    if as_json:
        lines = [json.dumps({"url": url, "pid": os.getppid(), "logs": str(folder)})]
    else:
        routes = [(application.name, application.route_prefix) for application in serve_file.applications]
        other = f" (port {instead_of} is in use)" if instead_of is not None else ""
        told = [f"  other commands, in another terminal: export NIGHTJAR_URL={url}"] if url != DEFAULT_URL else []
        lines = [
            f"serving at {url}{other}",
            *(f"  {name}: {url}{route.rstrip('/')}" for name, route in routes if route),
            *told,
            f"logs in {folder} while it runs; `nightjar watch --url {url}` shows the fleet; Ctrl-C stops everything",
        ]
    print("\n".join(lines), file=sys.__stdout__, flush=True)


def hold_lifeline(stop: threading.Event, progress: Progress) -> None:
    """Set `stop` when stdin closes; until then keep the progress alive."""
    while not select.select([sys.stdin], [], [], HEARTBEAT_PERIOD_S)[0]:
        progress.heartbeat()
    stop.set()
    while True:
        progress.heartbeat()
        threading.Event().wait(HEARTBEAT_PERIOD_S)


def main(file: str, port: str, output: str, temp_folder: str) -> int:
    """Check, serve until stdin closes, clean up. `temp_folder` exists and is empty. Returns the exit code."""
    folder = Path(temp_folder)
    sys.stdout = sys.stderr  # what Ray and the applications' modules print is not the command's output
    stop = threading.Event()
    progress = Progress(lambda line: print(line, file=sys.stderr, flush=True))  # noqa: T201 - a command's own output
    threading.Thread(target=hold_lifeline, args=(stop, progress), name="lifeline", daemon=True).start()
    try:
        progress.wait_for(f"checking {file}")
        token = configured_token()
        serve_file = load_serve_file(Path(file))
        chosen_port = choose_port(serve_file.host, int(port) if port else None, serve_file.port)
    except (ServeFileError, PortError, TokenError) as error:
        return complain(str(error))
    instead_of = serve_file.port if not port and chosen_port != serve_file.port else None
    if instead_of is not None:
        progress.say(f"port {instead_of} is in use, taking {chosen_port}")
    if token is None and any(application.import_path == POLICY_IMPORT_PATH for application in serve_file.applications):
        progress.say(f"the HTTP API is read-only: set {TOKEN_VARIABLE} or {TOKEN_FILE_VARIABLE} to allow `nightjar mode`")
    prepare_environment(folder)
    url = reachable_url(serve_file.host, chosen_port)

    def on_ready() -> None:
        make_session_nicer()
        announce(serve_file, url, folder, output == "json", instead_of)

    try:
        served = LocalCluster(serve_file, chosen_port, folder, progress, stop).serve(on_ready)
    except ClusterError as error:
        code = complain(f"{error}\nlogs are kept in {folder}")
        return START_AGAIN if isinstance(error, NodeTooSlowError) else code
    shutil.rmtree(folder, ignore_errors=True)
    return 0 if served else STOPPED_BEFORE_SERVING


def complain(message: str) -> int:
    """Say on stderr what is wrong. Returns exit code 1."""
    sys.stderr.write(f"error: {message}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
