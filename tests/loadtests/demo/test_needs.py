"""The demo says before it starts what a machine lacks: what cannot work ends it, what is slow is a warning."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from nightjar.loadtests.demo import command as commands
from nightjar.loadtests.demo.machine import MachineFacts, NeedsError, ServedModel, machine_facts, read_served, warnings_for
from nightjar.loadtests.demo.memory import GIB
from nightjar.loadtests.demo.run import LOCAL_CONFIG
from tests.loadtests.demo.fake_demo import ENOUGH

SERVED = ServedModel(num_speculative_tokens=5, replicas=2, cores=2.0, is_exact=True)

FILE = """
applications:
- name: chat
  args:
    llm_configs:
    - model_loading_config: {{model_id: m}}
      engine_kwargs: {{dtype: {dtype}, speculative_config: {{num_speculative_tokens: 4}}}}
      deployment_config: {{num_replicas: 3, ray_actor_options: {{num_cpus: 2}}}}
- name: nightjar
  deployments:
  - name: Policy
    user_config: {{mode: auto{allowed}}}
"""


def test_a_machine_with_enough_of_everything_has_no_warning() -> None:
    assert warnings_for(SERVED, ENOUGH) == ()


@pytest.mark.parametrize(
    ("machine", "told"),
    [
        (replace(ENOUGH, cores=1, usable=1), "2 replicas need 2 processor cores; this machine has 1"),
        (replace(ENOUGH, free_bytes=6 * GIB), "the demo needs 10 GiB of free memory; 6.0 GiB are free. End other programs first"),
        (replace(ENOUGH, flags=frozenset({"sse2"})), "vLLM for CPU needs a processor with AVX2; this one has none"),
    ],
    ids=["one core", "six GiB", "no AVX2"],
)
def test_what_cannot_work_ends_the_demo_in_one_line_before_anything_starts(
    machine: MachineFacts, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(NeedsError) as raised:
        warnings_for(SERVED, machine)
    assert str(raised.value) == told
    monkeypatch.setattr(commands, "machine_facts", lambda: machine)
    result = CliRunner().invoke(commands.app, ["demo", "--runs", str(tmp_path / "runs")])
    assert (result.exit_code, result.output) == (1, f"error: {told}\n")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("machine", "told"),
    [
        (replace(ENOUGH, flags=frozenset({"avx2"})), "no AVX-512: steps take several times as long"),
        (replace(ENOUGH, cores=4, usable=1), "this process may use 1 of 4 cores, which 2 replicas will share"),
    ],
    ids=["no AVX-512", "pinned to one core"],
)
def test_what_is_only_slow_is_a_warning(machine: MachineFacts, told: str) -> None:
    (warning,) = warnings_for(SERVED, machine)
    assert told in warning


def test_what_cannot_be_found_out_is_not_judged() -> None:
    unknown = replace(ENOUGH, free_bytes=None, flags=frozenset())
    assert warnings_for(SERVED, unknown) == warnings_for(SERVED, replace(ENOUGH, architecture="aarch64", flags=frozenset())) == ()


def test_the_file_names_replicas_and_the_greatest_length_that_the_policy_may_choose(tmp_path: Path) -> None:
    path = tmp_path / "serve.yaml"
    path.write_text(FILE.format(dtype="float32", allowed=", allowed_num_speculative_tokens: [0, 1, 3]"))
    assert read_served(path) == ServedModel(num_speculative_tokens=3, replicas=3, cores=6.0, is_exact=True)
    path.write_text(FILE.format(dtype="auto", allowed=""))
    assert read_served(path) == ServedModel(num_speculative_tokens=4, replicas=3, cores=6.0, is_exact=False)


@pytest.mark.parametrize("text", ["applications: []", "applications: 3", "[]", "applications: [{args: {llm_configs: [{}]}}]"])
def test_a_file_without_a_model_that_speculates_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "serve.yaml"
    path.write_text(text)
    with pytest.raises(NeedsError, match="names no model with"):
        read_served(path)
    path.write_text("{")
    with pytest.raises(NeedsError, match="cannot be read"):
        read_served(path)
    with pytest.raises(NeedsError, match="cannot be read"):
        read_served(tmp_path / "nothing.yaml")


def test_the_demos_own_file_can_be_read() -> None:
    assert read_served(LOCAL_CONFIG).replicas == 2


def test_a_container_has_what_its_limits_leave(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("model name : X\nflags\t\t: fpu avx2 avx512f\n")
    (tmp_path / "meminfo").write_text(f"MemTotal: 99 kB\nMemAvailable: {16 << 20} kB\n")
    bare = machine_facts(tmp_path, tmp_path / "no cgroup")
    assert (bare.free_bytes, sorted(bare.flags)) == (16 * GIB, ["avx2", "avx512f", "fpu"])
    for name, text in (
        ("memory.max", str(8 * GIB)),
        ("memory.current", str(4 * GIB)),
        ("memory.stat", f"anon 1\ninactive_file {GIB}\n"),
        ("cpu.max", "150000 100000\n"),
    ):
        (tmp_path / name).write_text(text)
    limited = machine_facts(tmp_path, tmp_path)
    assert (limited.free_bytes, limited.cores, limited.usable) == (5 * GIB, 1, 1)
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert machine_facts(tmp_path, tmp_path) == bare
    assert machine_facts(tmp_path / "nothing", tmp_path / "nothing").free_bytes is None
