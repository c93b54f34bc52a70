"""The recording: ticks of the policy as lines of a file beside the journal, from which `nightjar replay` decides them again.

A key frame holds the whole state as it was before its tick decided; every other frame what came in since: reports, settings and
overrides where they changed, and the decisions that changed. A key frame begins every incarnation, every file (so that rotation
leaves all others of use) and every KEY_PERIOD_TICKS. A line is JSON with what a reader needs to choose; its body is msgpack and
compressed, each report with the same replica's report before it as dictionary, because most of it is the same. Fails open: encoding
and writing run in a thread of their own, at most MAX_BACKLOG ticks wait for it, and what does not fit or cannot be written is left
out until the next key frame.
"""

from __future__ import annotations

import base64
import json
import platform
import zlib
from collections.abc import Iterator, Mapping
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final, Literal

import msgpack
import numpy as np
import structlog

from nightjar.cluster.storage.plain_values import packed, unpacked
from nightjar.cluster.storage.recorder import Heard, RecordedTick
from nightjar.cluster.storage.rotated_lines import MAX_FILE_BYTES, MAX_FILES, RotatedLines, rotated_files
from nightjar.policy.operator.overrides import ModeOverride
from nightjar.policy.wire.operator import OperatorSettings
from nightjar.policy.wire.record import PROTOCOL_VERSION, Record
from nightjar.policy.wire.settings import Settings

FILE_NAME: Final = "policy-inputs.jsonl"
FORMAT_VERSION: Final[Literal[4]] = 4
KEY_PERIOD_TICKS: Final = 300
MAX_BACKLOG: Final = 4
LEAST_KEYS_PER_FILE: Final = 8
"""Key frames so large that fewer fit into a file would fill the disk with nothing else."""
COMPRESSION_LEVEL: Final = 6

log = structlog.get_logger(__name__)


class RecordingError(ValueError):
    """A recording that cannot be used. The message is one line for the operator."""


class Frame(Record):
    """One tick as a line: when it decided, in seconds since the epoch, and the seed of its random numbers.

    `number` counts from its key frame, which is 0.
    """

    format: Literal[4] = FORMAT_VERSION
    incarnation: int
    tick: int
    time_s: float
    seed: int
    number: int
    body: str

    @property
    def is_key(self) -> bool:
        """Whether a replay may begin here."""
        return self.number == 0


class FrameEncoder:
    """Ticks to frames, each in terms of those before it. Not thread-safe."""

    def __init__(self, key_period_ticks: int = KEY_PERIOD_TICKS) -> None:
        self._key_period_ticks = key_period_ticks
        self._number = -1
        self._reports: dict[str, bytes] = {}
        self._overrides: tuple[ModeOverride, ...] = ()
        self._decisions: Mapping[str, Settings] = {}

    def encode(self, tick: RecordedTick) -> Frame:
        """The tick as a frame: a key frame where it has to be one, or the last one is long ago."""
        if self._number < 0 or not tick.is_chained or self._number + 1 >= self._key_period_ticks:
            return self.encode_key(tick)
        inputs = [self._input(one) for one in tick.inputs]
        changed = {name: decision for name, decision in tick.decisions.items() if self._decisions.get(name) != decision}
        body: dict[str, Any] = {"inputs": inputs, "decisions": changed, "error": tick.error}
        body["gone"] = [] if tick.error else [name for name in self._decisions if name not in tick.decisions]
        if tick.moment.overrides != self._overrides:
            body["overrides"] = tick.moment.overrides
        self._number += 1
        return self._frame(tick, body)

    def encode_key(self, tick: RecordedTick) -> Frame:
        """The tick as a key frame; its inputs are in its state already."""
        moment = tick.moment
        body = {
            "state": moment.state,
            "settings": moment.settings,
            "overrides": moment.overrides,
            "decisions": tick.decisions,
            "error": tick.error,
            "written_by": this_version(),
        }
        self._number, self._reports, self._decisions = 0, {}, {}
        return self._frame(tick, body)

    def begin_anew(self) -> None:
        """The last frame was lost: the next one is a key frame."""
        self._number = -1

    def _frame(self, tick: RecordedTick, body: Mapping[str, Any]) -> Frame:
        moment = tick.moment
        self._overrides = moment.overrides
        self._decisions = self._decisions if tick.error else tick.decisions
        return Frame(
            incarnation=moment.incarnation,
            tick=moment.tick,
            time_s=moment.time_s,
            seed=moment.seed,
            number=self._number,
            body=base64.b64encode(zlib.compress(packed(body), COMPRESSION_LEVEL)).decode(),
        )

    def _input(self, one: Heard | OperatorSettings) -> list[Any]:
        """`[time, replica, its report after the one before]`, or `[settings]`."""
        if isinstance(one, OperatorSettings):
            return [one]
        replica_id = msgpack.unpackb(one.payload)["replica_id"]
        parts = compressed_after(self._reports.get(replica_id, b""), one.payload)
        self._reports[replica_id] = one.payload
        return [one.time_s, replica_id, parts]


class RecordingFile:
    """A recording in one folder, rotated like the journal. Takes ticks on the event loop and writes them in a thread."""

    def __init__(self, folder: Path, *, max_file_bytes: int = MAX_FILE_BYTES, max_files: int = MAX_FILES) -> None:
        path = folder / FILE_NAME
        self._lines = RotatedLines(path, most_waiting=MAX_BACKLOG, max_file_bytes=max_file_bytes, max_files=max_files)
        self._encoder = FrameEncoder()
        self._most_key_bytes = max_file_bytes // LEAST_KEYS_PER_FILE
        self._has_given_up = False

    @property
    def path(self) -> Path:
        """The file that is being written."""
        return self._lines.path

    def holds_s(self, now_s: float) -> float | None:
        """See TickSink."""
        return None if self._has_given_up else self._lines.holds_s(now_s)

    @property
    def problem(self) -> str:
        """See TickSink."""
        return "the fleet's whole state does not fit eight times into one of its files" if self._has_given_up else ""

    def take(self, tick: RecordedTick) -> bool:
        """See TickSink."""
        return not self._has_given_up and self._lines.take(partial(self.write, tick))

    def write(self, tick: RecordedTick) -> None:
        """Append a tick. Never raises: what cannot be encoded or written is left out, and the next frame is a key frame."""
        if self._has_given_up:
            return
        try:
            frame = self._encoder.encode(tick)
            if not frame.is_key and self._lines.begins_a_file(_line(frame)):
                frame = self._encoder.encode_key(tick)
            written = self._fits(frame) and self._lines.append(_line(frame), frame.time_s)
        except Exception:
            log.exception("tick_not_recorded", tick=tick.moment.tick)
            written = False
        if not written:
            self._encoder.begin_anew()

    def _fits(self, frame: Frame) -> bool:
        """Whether files hold several key frames of this size. Else the fleet is too large, and nothing more is recorded."""
        if not frame.is_key or len(frame.body) <= self._most_key_bytes:
            return True
        self._has_given_up = True
        log.warning("recording_given_up", key_frame_bytes=len(frame.body), most=self._most_key_bytes)
        return False

    def close(self) -> None:
        """Wait until everything taken is written."""
        self._lines.close()


def recording_of(path: Path) -> Path:
    """The recording that belongs to a journal, given as its file or its folder; a recording itself is its own.

    Raises FileNotFoundError where there is no journal, RecordingError where one has no recording.
    """
    if path.name.startswith(FILE_NAME):
        recording = path
    else:
        recording = path / FILE_NAME if path.is_dir() else path.with_name(FILE_NAME)
        if path.exists() and not rotated_files(recording):
            why = "an older release wrote it, or recording was off"
            raise RecordingError(f"{path}: no {FILE_NAME} beside this journal, so it cannot be replayed; {why}")
    if not rotated_files(recording):
        raise FileNotFoundError(f"no journal at {path}")
    return recording


class RecordingReader:
    """The frames of a recording, oldest first, rotated files included. `unreadable_lines` counts those left out so far.

    Raises FileNotFoundError where there is none, and RecordingError for frames of another format.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._files = rotated_files(path)
        self.unreadable_lines = 0
        if not self._files:
            raise FileNotFoundError(f"no recording at {path}")

    def __iter__(self) -> Iterator[Frame]:
        for file in reversed(self._files):
            with file.open("rb") as lines:
                for line in lines:
                    if line.isspace():
                        continue
                    frame = _frame(line, file)
                    if frame is None:
                        self.unreadable_lines += 1
                    else:
                        yield frame


def compressed_after(before: bytes, report: bytes) -> bytes:
    """A report in terms of the one before it; of none where that is empty."""
    compressor = zlib.compressobj(COMPRESSION_LEVEL, wbits=-zlib.MAX_WBITS, zdict=before)
    return compressor.compress(report) + compressor.flush()


def report_after(before: bytes, parts: bytes) -> bytes:
    """The report that `compressed_after` was given. Raises RecordingError for anything else."""
    try:
        return zlib.decompressobj(-zlib.MAX_WBITS, zdict=before).decompress(parts)
    except zlib.error as error:
        raise RecordingError(f"a report cannot be read ({error})") from error


def body_of(text: str) -> dict[str, Any]:
    """What the body of a frame holds, as plain types. Raises RecordingError for anything else."""
    try:
        body: dict[str, Any] = unpacked(zlib.decompress(base64.b64decode(text)))
    except (ValueError, zlib.error) as error:
        raise RecordingError(f"a frame's body cannot be read ({error})") from error
    return body


def this_version() -> str:
    """What decides here: releases and processors may differ in the last bit of a sum."""
    try:
        release = version("nightjar-serve")
    except PackageNotFoundError:
        release = "from source"
    return f"nightjar {release} (protocol {PROTOCOL_VERSION}), numpy {np.__version__}, {platform.machine()}"


def _line(frame: Frame) -> bytes:
    return frame.model_dump_json().encode()


def _frame(line: bytes, file: Path) -> Frame | None:
    """The frame that a line holds; None for a torn line or another file's. Raises RecordingError for another format."""
    try:
        values = json.loads(line)
        found = values.get("format")
        frame = Frame.model_validate(values) if found == FORMAT_VERSION else None
    except (ValueError, AttributeError, RecursionError):
        return None
    if frame is None and found is not None:
        wanted = f"written in format {found!r} by {_written_by(values)}; this release reads {FORMAT_VERSION}"
        raise RecordingError(f"{file}: {wanted}, so replay it with the one that wrote it")
    return frame


def _written_by(values: Mapping[str, Any]) -> str:
    """The release that wrote a frame of another format, as far as one can tell: every file begins with a frame that names it."""
    try:
        return str(body_of(values["body"])["written_by"])
    except (RecordingError, KeyError, TypeError):
        return "another release"
