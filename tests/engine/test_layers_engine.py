"""An engine in which every layer but steering is off: K is obeyed, and the rest is vLLM's own. One small engine on a CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.engine_run import ON_A_CPU

pytest.importorskip("vllm")

pytestmark = [pytest.mark.engine, pytest.mark.long]

ENGINE = """
import json, sys
from pathlib import Path
from vllm import EngineArgs
from nightjar.deployments.engine.start.arguments import steered_engine_kwargs
from nightjar.deployments.engine.start.resolved_facts import resolve_facts
from nightjar.deployments.proof.driven_engine import GenerationRequest
from nightjar.deployments.proof.stepped_engine import SteppedEngine
from nightjar.deployments.proof.model_names import DRAFT, TARGET
from nightjar.deployments.proof.tiny_models import build_tiny_models
from nightjar.policy.wire.report import Layer

models, output = build_tiny_models(Path(sys.argv[1]) / "models"), Path(sys.argv[2])
user = {
    "model": str(models / TARGET), "dtype": "float32", "max_num_seqs": 4, "max_model_len": 512, "enforce_eager": True,
    "disable_log_stats": False, "kv_cache_memory_bytes": 32 << 20,
    "speculative_config": {"method": "draft_model", "model": str(models / DRAFT), "num_speculative_tokens": 3},
}
facts = resolve_facts(EngineArgs(**user).create_engine_config(), on_cpu=True)
arguments = steered_engine_kwargs(user, facts, without=(Layer.SLEEPING, Layer.HEADS))
engine = SteppedEngine(arguments.kwargs)
lookahead_tokens, forwards, seen = engine.scheduler.num_lookahead_tokens, 0, {}
model = engine.runner.drafter.model
theirs = model.forward

def forward(*arguments, **options):
    global forwards
    forwards += 1
    return theirs(*arguments, **options)

model.forward = forward
for number, length in enumerate((3, 0, 2, 0, 1)):
    engine.pin(length)
    engine.add(GenerationRequest(f"request-{number}", "hello there", {"temperature": 0.0, "max_tokens": 24, "ignore_eos": True}))
    for _ in range(3):
        engine.engine.step()
    forwards = 0
    engine.engine.step()
    seen[str(length)] = forwards
    assert engine.scheduler.num_lookahead_tokens == lookahead_tokens
result = {
    "worker": type(engine.worker).__module__,
    "drafter": type(engine.runner.drafter).__module__,
    "scheduler": type(engine.scheduler).__module__,
    "forwards": seen,
    "fault": engine.scheduler.nightjar.fault,
    "layers": [layer.value for layer in arguments.layers],
}
output.write_text(json.dumps(result))
engine.shutdown()
"""


def test_with_every_layer_but_steering_off_worker_and_drafter_are_vllms_and_k_is_obeyed(tmp_path: Path) -> None:
    output = tmp_path / "result.json"
    command = [sys.executable, "-c", ENGINE, str(tmp_path), str(output)]
    finished = subprocess.run(command, env=os.environ | ON_A_CPU, capture_output=True, text=True, timeout=600, check=False)
    assert output.exists(), finished.stdout[-3000:] + finished.stderr[-6000:]
    found = json.loads(output.read_text())
    assert found["layers"] == ["steering"]
    assert found["scheduler"] == "nightjar.deployments.engine.scheduler.steered"
    assert found["worker"] == "vllm.v1.worker.cpu_worker"
    assert found["drafter"] == "vllm.v1.spec_decode.draft_model"
    assert found["fault"] == ""
    # At K = 0 the draft runs once, as in vLLM, to keep in step.
    assert found["forwards"] == {"3": 3, "0": 1, "2": 2, "1": 1}
