"""A worker of the rig's runner V2 that refuses to start, once its process has noted itself and taken its device."""

from __future__ import annotations

from tests.rig.v2_worker import SteeredV2CPUWorker


class RefusingV2Worker(SteeredV2CPUWorker):
    """For `worker_cls`."""

    def load_model(self, *_args: object, **_options: object) -> None:
        """Raise."""
        raise RuntimeError("this worker refuses to start")
