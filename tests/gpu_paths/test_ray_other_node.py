"""Workers of vLLM's Ray executor on another node than their replica's: without its files, and with pids of their own.

The other node is a raylet in namespaces of its own. Where the replica has its engine's folder it has an empty file system, and
no pid there is one here. Making namespaces takes a root user. What a killed worker leaves in that node's shared memory is not
looked at: vLLM's ring buffers stay there, since Ray kills a worker's resource tracker with it, and nothing of ours runs there.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import psutil
import pytest

pytest.importorskip("ray")
pytest.importorskip("vllm")
from nightjar.deployments.proof.tiny_models import build_tiny_models
from tests.deployments import serving
from tests.gpu_paths.ray_application import (
    NAME,
    SETTINGS,
    application,
    assert_catches_up,
    assert_steered_with_plain_decodings_texts,
    running_engine,
    variables,
)

pytestmark = [pytest.mark.ray, pytest.mark.engine, pytest.mark.long, pytest.mark.filterwarnings("ignore")]

NAMESPACES: Final = ("unshare", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child")
NUM_GPUS: Final = 2


@pytest.fixture
def folder() -> Iterator[Path]:
    """Where the replica's node has its temporary files; short, for the sockets below it."""
    if shutil.which(NAMESPACES[0]) is None or subprocess.run([*NAMESPACES, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this user may not make namespaces (unshare): run it as root")
    path = Path(tempfile.mkdtemp(prefix="nj-", dir="/tmp"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


def test_two_ranks_on_another_node_are_steered_write_nothing_of_ours_and_end_with_their_replica(
    folder: Path, tmp_path: Path
) -> None:
    """INV-1 and INV-2. Ray ends them with their engine core: no guard knows the replica there."""
    models = build_tiny_models(tmp_path / "models")
    environment = variables(tmp_path / "environment") | {"TMPDIR": str(folder)}
    with serving.serve_cluster(variables=environment) as cluster, other_node(folder, environment), cluster.http(NAME) as client:
        serving.configure(SETTINGS)
        cluster.deploy(application(models, ranks=2))
        engine = running_engine(ranks=2, on_this_node=False)
        (noted,) = folder.glob("nightjar-engine-*")
        assert {int(note.name.rpartition("-")[2]) for note in noted.glob("process-*")} == {engine.core.pid}
        assert_steered_with_plain_decodings_texts(client)
        assert_catches_up(client)
        engine.replica.kill()
        engine.assert_nothing_is_left()


@contextmanager
def other_node(hidden: Path, environment: dict[str, str]) -> Iterator[None]:
    """A node of this cluster that has the devices, shared memory of its own, and nothing in the folder `hidden`."""
    import ray

    address = ray.get_runtime_context().gcs_address
    start = f"{sys.executable} -m ray.scripts.scripts start --address={address} --num-cpus=0 --num-gpus={NUM_GPUS} --block"
    mounts = " && ".join(f"mount -t tmpfs none {place}" for place in (hidden, "/dev/shm"))
    command = [*NAMESPACES, "sh", "-c", f"{mounts} && exec {start}"]
    with (hidden.parent / f"{hidden.name}.log").open("w") as log:
        process = subprocess.Popen(command, env=os.environ | environment, stdout=log, stderr=log)
        try:
            serving.until(lambda: ray.cluster_resources().get("GPU") == NUM_GPUS, within_s=30, what="the other node")
            yield
        finally:
            below = psutil.Process(process.pid).children(recursive=True)
            process.kill()
            for each in below:
                if each.is_running():
                    each.kill()
            process.wait(30)
            Path(log.name).unlink()
