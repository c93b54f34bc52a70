"""The worker of an engine with an EAGLE or MTP head on model runner V2: vLLM's own, whose head at K = 0 writes its KV alone.

What the configuration cannot say of a head, such as how many attention layers it has of its own, is known once it is loaded. A head
that must run as in vLLM is left alone, and the worker notes why in the engine's folder, where the replica finds it. The CPU's is on
the rig (rig/worker.py), since no CPU engine that serves has this runner.
"""

from __future__ import annotations

from typing import Any

import structlog
from vllm.v1.worker.gpu_worker import Worker

from nightjar.deployments.engine.head_notes import note_head
from nightjar.deployments.engine.kv_only_head import KVOnlyHead, why_not

log = structlog.get_logger(__name__)


class KVOnlyHeadMixin:
    """Before a worker of vLLM's."""

    model_runner: Any
    nightjar_head_runs: str = ""
    """Why the loaded head runs at K = 0 as in vLLM."""

    def load_model(self, *arguments: Any, **options: Any) -> None:
        """As vLLM's, then stand before the head."""
        super().load_model(*arguments, **options)  # type: ignore[misc]  # the worker's
        speculator = getattr(self.model_runner, "speculator", None)
        if speculator is None:
            return
        self.nightjar_head_runs = why_not(speculator)
        if self.nightjar_head_runs:
            log.warning("head_runs_at_zero", reason=self.nightjar_head_runs, consequence="it runs once a step, as in vLLM")
            note_head(self.nightjar_head_runs)
        else:
            KVOnlyHead(speculator)


class KVOnlyHeadWorker(KVOnlyHeadMixin, Worker):
    """For `worker_cls` on GPU with model runner V2. Never run on a GPU."""
