"""One HTTP server of the small models in a process of its own: `vllm serve`, or `nightjar serve`, with the same arguments.

Raises TurnError, with the last words of its log, where it ends before it is ready or is not ready in time.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx
import psutil

from nightjar.loadtests.arms.arm import TurnError
from tests.ports import free_port

THEIRS: Final = ("tests.benchmarks.load.vllm_command", "serve")
OURS: Final = ("tests.deployments.plain_vllm.nightjar_command", "serve")
MODEL_ID: Final = "chat"
STARTS_WITHIN_S: Final = 2400.0
POLL_PERIOD_S: Final = 0.1
LOG_CHARACTERS: Final = 6000


@dataclass(frozen=True, slots=True)
class RunningServer:
    """A server that is ready. `ready_s` are the seconds that it took from its start."""

    process: subprocess.Popen[bytes]
    url: str
    ready_s: float
    folder: Path
    """Its TMPDIR, gone when it ends."""

    def own_mib(self) -> float:
        """Memory of the process that answers requests, without its engine's processes; what is shared counts by its share."""
        return float(psutil.Process(self.process.pid).memory_full_info().pss / 2**20)

    def own_cpu_s(self) -> float:
        """Processor time of the same process until now."""
        times = psutil.Process(self.process.pid).cpu_times()
        return float(times.user + times.system)


def arguments_of(model: str, options: Mapping[str, object]) -> list[str]:
    """vLLM's command line for these engine arguments.

    >>> arguments_of("m", {"enforce_eager": True, "max_num_seqs": 4, "speculative_config": {"method": "mtp"}})
    ['m', '--enforce-eager', '--max-num-seqs', '4', '--speculative-config', '{"method": "mtp"}']
    """
    arguments = [model]
    for name, value in options.items():
        arguments.append(f"--{name.replace('_', '-')}")
        if value is not True:
            arguments.append(json.dumps(value) if isinstance(value, dict) else str(value))
    return arguments


@contextlib.contextmanager
def running(
    command: Sequence[str], arguments: Sequence[str], environment: Mapping[str, str] | None = None
) -> Iterator[RunningServer]:
    """Start `python -m COMMAND ARGUMENTS` on a free port and yield it once it is ready; nothing of it is left afterwards."""
    port = free_port()
    folder = Path(tempfile.mkdtemp(prefix="nj-", dir="/tmp"))  # short: names of sockets must fit 107 bytes
    where = ["--served-model-name", MODEL_ID, "--host", "127.0.0.1", "--port", str(port)]
    library = Path(sys.prefix) / "lib" / "libiomp5.so"  # as `nightjar serve` loads it by itself
    settings = {
        "TMPDIR": str(folder),
        **({"LD_PRELOAD": str(library)} if library.is_file() else {}),
        "HF_HUB_OFFLINE": "1",
        "VLLM_TARGET_DEVICE": "cpu",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": "1",  # threads of one engine wait for each other, and stand still where others have the cores
        "VLLM_NO_USAGE_STATS": "1",
    }
    began_s = time.monotonic()
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", *command, *arguments, *where],
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **settings, **(environment or {})},
        )
    try:
        url = f"http://127.0.0.1:{port}"
        _wait_until_ready(process, url, began_s, folder / "log")
        yield RunningServer(process, url, time.monotonic() - began_s, folder)
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            for left in psutil.Process(process.pid).children(recursive=True):
                left.kill()
        process.kill()
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _wait_until_ready(process: subprocess.Popen[bytes], url: str, began_s: float, log: Path) -> None:
    with httpx.Client(trust_env=False, timeout=5.0) as client:
        while process.poll() is None and time.monotonic() - began_s < STARTS_WITHIN_S:
            with contextlib.suppress(httpx.HTTPError):
                if client.get(f"{url}/health").is_success:
                    return
            time.sleep(POLL_PERIOD_S)
    said = log.read_text(errors="replace")[-LOG_CHARACTERS:]
    raise TurnError(f"a server was not ready after {time.monotonic() - began_s:.0f} s; its last words:\n{said}")
