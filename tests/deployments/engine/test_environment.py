"""The engine's environment: one pinned core each, the fast OpenMP, and nothing of the user's overridden."""

from __future__ import annotations

import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest

from nightjar.deployments.engine.environment import (
    HostFacts,
    apply_environment,
    engine_environment,
    gather_host_facts,
    is_on_cpu,
    pinned_cores,
)

CPU = HostFacts(
    on_cpu=True,
    replica="41:2:3:boot",
    local_rank=1,
    cores_per_engine=1,
    allowed_cores=(0, 2, 4),
    openmp_library="/env/lib/libiomp5.so",
    models_are_local=True,
)
GPU = replace(CPU, on_cpu=False)


def test_cpu_engine_gets_its_core_its_openmp_and_no_hub() -> None:
    assert engine_environment(CPU) == {
        "NIGHTJAR_REPLICA": "41:2:3:boot",
        "NIGHTJAR_ENGINE_FOLDER": "",
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        "HF_HUB_OFFLINE": "1",
        "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
        "OMP_NUM_THREADS": "1",
        "LD_PRELOAD": "/env/lib/libiomp5.so",
        "VLLM_CPU_OMP_THREADS_BIND": "2",
        "VLLM_CPU_KVCACHE_SPACE": "2",
    }


@pytest.mark.parametrize(
    ("rank", "per_engine", "cores"), [(0, 1, (0,)), (2, 1, (4,)), (3, 1, (0,)), (1, 2, (4, 0)), (0, 9, (0, 2, 4))]
)
def test_engines_take_the_next_cores_and_start_over(rank: int, per_engine: int, cores: tuple[int, ...]) -> None:
    assert pinned_cores(replace(CPU, local_rank=rank, cores_per_engine=per_engine)) == cores


@pytest.mark.parametrize(
    ("per_engine", "claimed", "bound"),
    [(1, (), "4|0"), (4, (0, 2, 4, 6), "0,2|4,6"), (1, (2,), "2|2"), (3, (0, 2, 4), "0|2")],
)
def test_each_rank_of_data_parallelism_has_cores_of_its_own_where_there_are_enough(
    per_engine: int, claimed: tuple[int, ...], bound: str
) -> None:
    facts = replace(CPU, num_ranks=2, cores_per_engine=per_engine, claimed_cores=claimed)
    assert engine_environment(facts)["VLLM_CPU_OMP_THREADS_BIND"] == bound


def test_gpu_engine_gets_nothing_that_only_a_cpu_needs() -> None:
    of_every_engine = {"NIGHTJAR_REPLICA", "NIGHTJAR_ENGINE_FOLDER", "VLLM_WORKER_MULTIPROC_METHOD", "HF_HUB_OFFLINE"}
    assert set(engine_environment(GPU)) == of_every_engine


def test_where_cores_and_memory_are_left_to_vllm_the_fast_openmp_is_all_that_a_cpu_engine_gets() -> None:
    added = set(engine_environment(replace(CPU, cores_per_engine=0))) - set(engine_environment(GPU))
    assert added == {"LD_PRELOAD"}


def test_what_the_engine_arguments_decide_is_left_to_them() -> None:
    environment = engine_environment(replace(CPU, kv_cache_is_sized=True, num_workers=2, models_are_local=False))
    assert not {"VLLM_CPU_KVCACHE_SPACE", "VLLM_CPU_OMP_THREADS_BIND", "HF_HUB_OFFLINE"} & set(environment)


@pytest.mark.parametrize(("folder", "holds_sockets"), [("/tmp/folder", True), ("/" + "x" * 100, False)])
def test_sockets_are_in_the_engines_folder_where_their_names_fit(folder: str, holds_sockets: bool) -> None:
    environment = engine_environment(replace(CPU, engine_folder=folder))
    assert environment["NIGHTJAR_ENGINE_FOLDER"] == folder
    assert environment.get("VLLM_RPC_BASE_PATH") == (folder if holds_sockets else None)


def test_users_values_stay() -> None:
    environ = {"VLLM_CPU_OMP_THREADS_BIND": "0-1", "LD_PRELOAD": "/x/libgomp.so"}
    applied = apply_environment(engine_environment(CPU), environ)
    assert environ["VLLM_CPU_OMP_THREADS_BIND"] == "0-1"
    assert environ["LD_PRELOAD"] == "/x/libgomp.so"
    assert not {"VLLM_CPU_OMP_THREADS_BIND", "LD_PRELOAD"} & set(applied)


def test_what_names_the_replica_is_never_inherited() -> None:
    environ = {"NIGHTJAR_REPLICA": "7:7:7:boot", "NIGHTJAR_ENGINE_FOLDER": "/tmp/of-another"}
    apply_environment(engine_environment(replace(CPU, engine_folder="")), environ)
    assert (environ["NIGHTJAR_REPLICA"], environ["NIGHTJAR_ENGINE_FOLDER"]) == ("41:2:3:boot", "")


def test_openmp_joins_other_preloaded_libraries() -> None:
    environ = {"LD_PRELOAD": "/x/libtcmalloc.so"}
    apply_environment(engine_environment(CPU), environ)
    assert environ["LD_PRELOAD"] == "/x/libtcmalloc.so:/env/lib/libiomp5.so"


def test_an_engine_core_joins_the_cluster_of_its_replica_whatever_address_is_inherited() -> None:
    """Ray's executor lives in the core, which Ray did not start: without an address it starts a Ray of its own and waits."""
    environ = {"RAY_ADDRESS": "http://127.0.0.1:8265"}
    apply_environment(engine_environment(replace(GPU, ray_address="10.0.0.1:6379")), environ)
    assert environ["RAY_ADDRESS"] == "10.0.0.1:6379"
    assert "RAY_ADDRESS" not in engine_environment(GPU)


@pytest.mark.parametrize(("is_initialized", "address"), [(True, "10.0.0.1:6379"), (False, "")])
def test_the_address_is_that_of_the_cluster_that_this_process_works_for(
    monkeypatch: pytest.MonkeyPatch, is_initialized: bool, address: str
) -> None:
    context = SimpleNamespace(gcs_address="10.0.0.1:6379")
    ray = SimpleNamespace(is_initialized=lambda: is_initialized, get_runtime_context=lambda: context)
    monkeypatch.setitem(sys.modules, "ray", ray)
    assert gather_host_facts(on_cpu=False, replica="", local_rank=0, cores_per_engine=1).ray_address == address


@pytest.mark.parametrize(
    ("is_cpu", "ray_device_key", "on_cpu"), [(True, "", True), (True, "GPU", False), (False, "GPU", False), (False, "", False)]
)
def test_an_engine_is_on_a_cpu_where_its_platform_is_one_without_devices_of_rays(
    monkeypatch: pytest.MonkeyPatch, is_cpu: bool, ray_device_key: str, on_cpu: bool
) -> None:
    platform = SimpleNamespace(is_cpu=lambda: is_cpu, ray_device_key=ray_device_key)
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "vllm.platforms", SimpleNamespace(current_platform=platform))
    assert is_on_cpu() is on_cpu
