"""The Serve file of these tests, and the object store that its adapter is loaded from.

One application of ray.serve.llm with three models on four engines:

    chat   a separate draft model, two replicas behind the prefix-aware router
    code   ngram, with adapters from an object store; says `server_cls` itself
    plain  no drafter: there is nothing to steer, so it is the reference as well
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from nightjar.deployments.models import resolve_model
from nightjar.deployments.proof import model_names
from tests.deployments.serving import DRAFT, MAX_NUM_SPECULATIVE_TOKENS, TARGET
from tests.ports import free_port

APPLICATION: Final = "llm"
ADAPTER: Final = "code:loud"
BUCKET: Final = "adapters"
NUM_REPLICAS: Final = {"chat": 2, "code": 1, "plain": 1}


def serve_application(*, user_config: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The application as a Serve file holds it; `user_config` is the kill switch of the model `chat`."""
    draft = {"method": "draft_model", "model": resolve_model(DRAFT), "num_speculative_tokens": MAX_NUM_SPECULATIVE_TOKENS}
    ngram = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 3, "prompt_lookup_min": 1}
    router = {"request_router_class": "ray.serve.llm.request_router:PrefixCacheAffinityRouter"}
    return {
        "name": APPLICATION,
        "route_prefix": f"/{APPLICATION}",
        "import_path": "nightjar.deployments.serve_llm:build_openai_app",
        "args": {
            "llm_configs": [
                _model("chat", {"speculative_config": draft}, deployment={"request_router_config": router}),
                _model(
                    "code",
                    {"speculative_config": ngram, "enable_lora": True, "max_loras": 1, "max_lora_rank": 8},
                    server_cls="nightjar.deployments.serve_llm:LLMServer",
                    lora_config={"dynamic_lora_loading_path": f"s3://{BUCKET}", "max_num_adapters_per_replica": 1},
                ),
                _model("plain", {}),
            ],
            "ingress_deployment_config": {"num_replicas": 1, "autoscaling_config": None, "ray_actor_options": {"num_cpus": 0.1}},
        },
        "deployments": [{"name": "LLMServer:chat", "user_config": user_config}],
    }


def gpu_application(tiny_models: Path | None = None) -> dict[str, Any]:
    """The model `chat` alone, on one replica, as a file for GPUs holds it: ray.serve.llm's own placement group and executor.

    With the rig's `tiny_models` on two ranks: the attention heads of the small real model do not divide by two.
    """
    whole = serve_application()
    (chat, *_) = whole["args"]["llm_configs"]
    del chat["placement_group_config"]
    chat["accelerator_config"] = {"kind": "gpu"}
    chat["deployment_config"] = {"num_replicas": 1, "health_check_period_s": 2}
    if tiny_models is not None:
        chat["model_loading_config"]["model_source"] = str(tiny_models / model_names.TARGET)
        chat["engine_kwargs"]["speculative_config"]["model"] = str(tiny_models / model_names.DRAFT)
        chat["engine_kwargs"] |= {"tensor_parallel_size": 2, "kv_cache_memory_bytes": 32 << 20}
    whole["args"]["llm_configs"] = [chat]
    return whole


@contextmanager
def object_store(folder: Path) -> Iterator[None]:
    """An S3 of this process alone, where the environment of what starts meanwhile looks for one; the adapter lies in it."""
    import boto3
    from moto.server import ThreadedMotoServer

    port = free_port()
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    server.start()
    try:
        with pytest.MonkeyPatch.context() as environment:
            environment.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
            for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
                environment.setenv(name, "test")
            environment.setenv("AWS_DEFAULT_REGION", "us-east-1")
            store = boto3.client("s3")
            store.create_bucket(Bucket=BUCKET)
            for path in write_adapter(folder):
                store.upload_file(str(path), BUCKET, f"{ADAPTER.partition(':')[2]}/{path.name}")
            yield
    finally:
        server.stop()


def write_adapter(folder: Path) -> list[Path]:
    """A LoRA adapter of the small model that changes what it says."""
    import torch
    from safetensors.torch import save_file

    rank, generator = 8, torch.Generator().manual_seed(0)
    config = json.loads((Path(resolve_model(TARGET)) / "config.json").read_text())
    hidden = config["hidden_size"]
    weights = {}
    for layer in range(config["num_hidden_layers"]):
        name = f"base_model.model.model.layers.{layer}.self_attn.o_proj"
        weights[f"{name}.lora_A.weight"] = torch.randn(rank, hidden, generator=generator) / hidden**0.5
        weights[f"{name}.lora_B.weight"] = torch.randn(hidden, rank, generator=generator)
    description = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": ["o_proj"], "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(description))
    save_file(weights, folder / "adapter_model.safetensors")
    return sorted(folder.iterdir())


def _model(
    model_id: str, engine_kwargs: dict[str, Any], *, deployment: Mapping[str, Any] | None = None, **fields: Any
) -> dict[str, Any]:
    return {
        "model_loading_config": {"model_id": model_id, "model_source": resolve_model(TARGET)},
        "accelerator_config": {"kind": "cpu"},
        "placement_group_config": {"bundles": [{"CPU": 1}]},
        "engine_kwargs": {
            "dtype": "float32",
            "enforce_eager": True,
            "max_model_len": 512,
            "max_num_seqs": 16,
            "max_num_batched_tokens": 256,
            "kv_cache_memory_bytes": 200_000_000,
            **engine_kwargs,
        },
        "deployment_config": {"num_replicas": NUM_REPLICAS[model_id], "health_check_period_s": 2, **(deployment or {})},
        **fields,
    }
