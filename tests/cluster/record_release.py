"""What a release leaves behind for the next one: its checkpoint, what it learned, its journal's last entry and recording; its wire.

`python -m tests.cluster.record_release FOLDER` runs a small fleet under the policy of the code that is there and writes them. Each
folder of tests/cluster/releases was written so by the last commit that spoke the protocol it is named after.
"""

from __future__ import annotations

import asyncio
import base64
import json
import sys
from collections.abc import Mapping
from pathlib import Path

from nightjar.cluster.storage.checkpoint import LARGE
from nightjar.cluster.storage.learned_file import to_text
from nightjar.cluster.storage.recording import RecordingFile
from tests.cluster.protocol import MemoryStore
from tests.cluster.recorded_fleet import MemoryRecording, WrittenAtOnce, recorded_fleet
from tests.cluster.seeds import some_file
from tests.policy.engines import Replica

RELEASES = Path(__file__).parent / "releases"
RECORDED_TICKS = 3
LEARNING_TICKS = 60


async def record(folder: Path) -> None:
    """Two incarnations over one store: the first one's ticks are recorded, the second learns and is told an override."""
    store, recording = MemoryStore(), RecordingFile(folder)
    engines = [Replica("r1", batch=4), Replica("r2", batch=16)]
    async with recorded_fleet(*engines, sink=WrittenAtOnce(recording), store=store) as fleet:
        await fleet.run(RECORDED_TICKS)
        newcomer = asyncio.create_task(fleet.service.exchange(Replica("r3").report().to_wire()))
        await asyncio.sleep(0)
        await fleet.tick()
        wire = {"report": engines[0].report().to_wire(), "reply": (await newcomer).to_wire()}
    (folder / "wire.json").write_text(in_text(wire))
    recording.close()
    async with recorded_fleet(*engines, sink=MemoryRecording(), store=store, dwell_steps=7) as fleet:
        await fleet.run(LEARNING_TICKS)
        override = {"mode": "pin=1", "scope": "replica", "name": "r2", "reason": "a slow card"}
        await fleet.service.set_mode(override)
        (folder / "learned.json").write_bytes(to_text(fleet.service.learned_file()))
        (folder / "checkpoint.json").write_text(in_text(store.values))
        await fleet.service.import_learned(some_file())
        await fleet.tick()
        await fleet.service._checkpoint.save()
        (folder / "journal.jsonl").write_text(fleet.journal.entries[-1].model_dump_json(exclude_none=True) + "\n")
    (folder / "checkpoint_learned.json").write_text(in_text({name: store.values[name] for name in store.values if is_large(name)}))


def is_large(key: str) -> bool:
    """Whether a stored value is one that no operator's call waits for."""
    return key.rpartition(":")[2] in LARGE


def in_text(values: Mapping[str, bytes]) -> str:
    """Bytes by name as JSON."""
    return json.dumps({name: base64.b64encode(value).decode() for name, value in sorted(values.items())}, indent=1) + "\n"


def read(protocol: int, name: str) -> dict[str, bytes]:
    """What `in_text` wrote of the last release of a protocol."""
    text = (RELEASES / f"protocol_{protocol}" / name).read_text()
    return {name: base64.b64decode(value) for name, value in json.loads(text).items()}


if __name__ == "__main__":
    asyncio.run(record(Path(sys.argv[1])))
